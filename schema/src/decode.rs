//! Documents to a snapshot, reporting every problem.

use crate::attribute::Mismatch;
use crate::descriptor::with_article;
use crate::document::{Document, Spanned};
use crate::kinds::Kind;
use crate::report::{Code, Problem, Report};
use crate::rules::source_map::SourceMap;
use crate::scalars::{Name, NetworkName, Scalar};
use crate::snapshot::{Entry, ResourceId, Revision, Snapshot};
use crate::value::{Location, Span, Value};

/// What files declare: the resources, and the place of each in its file.
#[derive(Debug, Default)]
pub struct Declared {
    /// The resources.
    pub snapshot: Snapshot,
    /// Their places.
    pub source_map: SourceMap,
}

/// Reads documents into resources, reporting every problem of all files at once. Whether they keep the rules
/// is for [`rules::check`](crate::rules::check) to say.
pub fn decode(documents: Vec<Document>) -> (Declared, Report) {
    let mut declared = Declared::default();
    let mut report = Report::default();
    for document in documents {
        let Some((id, kind)) = identify(&document, &mut report) else { continue };
        let said = declared.source_map.document(&id).filter(|first| first.says_anything());
        if said.is_some() && !document.says_anything() {
            continue;
        }
        if let Some(first) = said.map(Document::at) {
            let at = Location { source: document.source, span: document.name.span };
            let problem = Problem::new(Code::DuplicateResource, format!("{id} is defined twice")).at(at);
            report.push(
                problem.see(Some(first), "defined here first").help(help_for_twice(&document)).about(&id),
            );
            continue;
        }
        let mut found = Vec::new();
        let object = kind.read(&document.fields, document.name.span, &mut found);
        if !document.whole {
            found.retain(|mismatch| mismatch.code != Code::MissingField);
        }
        if let Some(object) = object.filter(|_| document.whole) {
            declared.snapshot.put(id.clone(), Entry { object, revision: Revision(0), owner: None });
        }
        report_mismatches(found, &id, document.source, &mut report);
        declared.source_map.insert(id, document);
    }
    (declared, report)
}

/// Reads the fields of one resource that came without a file: a body of the wire or the store.
pub fn decode_body(id: &ResourceId, body: &Value) -> Result<Entry, Report> {
    let mut report = Report::default();
    let Some(record) = body.as_record() else {
        let message = format!("{id} holds fields, not {}", body.data.describe());
        report.push(Problem::new(Code::WrongType, message).about(id));
        return Err(report);
    };
    let mut found = Vec::new();
    let object = id.kind.read(record, Span::default(), &mut found);
    for mismatch in found {
        report.push(Problem::new(mismatch.code, mismatch.message).help(mismatch.help).about(id));
    }
    object.map(|object| Entry { object, revision: Revision(0), owner: None }).ok_or(report)
}

fn help_for_twice(document: &Document) -> String {
    match document.parent {
        Some(_) => "keep one of the two, or rename one".into(),
        None => "move its fields into one of the two".into(),
    }
}

fn report_mismatches(
    found: Vec<Mismatch>,
    id: &ResourceId,
    source: crate::value::SourceId,
    report: &mut Report,
) {
    for Mismatch { code, span, message, help } in found {
        report.push(Problem::new(code, message).at(Location { source, span }).help(help).about(id));
    }
}

/// The id that a document claims.
fn identify(document: &Document, report: &mut Report) -> Option<(ResourceId, Kind)> {
    let kind = Kind::of(document.descriptor)?;
    let mut read =
        |spanned: &Spanned| spanned.text.parse().map_err(|why| report.push(bad_name(document, spanned, why)));
    let id = match &document.parent {
        None => {
            let network: NetworkName = document
                .name
                .text
                .parse()
                .map_err(|why| report.push(bad_name(document, &document.name, why)))
                .ok()?;
            ResourceId::of_network(network)
        }
        Some(parent) => {
            let name: Result<Name, ()> = read(&document.name);
            // A network's own block reports its bad name; its objects say nothing about it.
            let network = parent.text.parse().ok()?;
            ResourceId { network, kind, name: name.ok()? }
        }
    };
    Some((id, kind))
}

fn bad_name(document: &Document, name: &Spanned, why: String) -> Problem {
    let at = Location { source: document.source, span: name.span };
    let message = format!(
        "{:?} is not a valid name for {}: {why}",
        &*name.text,
        with_article(document.descriptor.word)
    );
    let meant =
        if document.parent.is_some() { Name::meant(&name.text) } else { NetworkName::meant(&name.text) };
    let help = meant.map_or("choose another name".to_owned(), |meant| format!("did you mean {meant:?}?"));
    Problem::new(Code::InvalidName, message).at(at).help(help)
}
