//! Text to documents: one front end for each language; none knows the kinds.
//!
//! A front end knows from the table of [`Descriptor`]s it is given which words open an object and which
//! fields collect repeated blocks (`reach` twice in one test); what a field holds, the decoder judges. Input
//! is bounded: its size and nesting are checked before a parser that recurses sees it.

mod insert;
mod kdl;
mod variables;
mod yaml;

use std::borrow::Cow;
use std::sync::Arc;

use crate::descriptor::{Descriptor, with_article};
use crate::document::{Document, Spanned};
use crate::report::{Code, Problem, Report, did_you_mean};
use crate::value::{Location, Record, SourceId, Span};

pub use insert::insert;
pub use variables::{Variables, substitute};

/// The largest file, in bytes.
pub const MAX_SIZE: usize = 16 << 20;
/// The deepest nesting of blocks and lists.
pub const MAX_DEPTH: usize = 64;

/// The byte order mark.
const MARK: char = '\u{feff}';

/// A file, or what takes its place.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its path, as messages show it.
    pub name: Arc<str>,
    /// What it holds.
    pub text: Arc<str>,
    /// What it is written in.
    pub language: Language,
}

/// The languages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// KDL 2.
    Kdl,
    /// YAML 1.2, a safe part of it.
    Yaml,
}

impl Language {
    /// The language of a file of that name, if its ending is known, in whatever case.
    pub fn of(path: &str) -> Option<Self> {
        match &*path.rsplit_once('.')?.1.to_ascii_lowercase() {
            "kdl" => Some(Self::Kdl),
            "yaml" | "yml" => Some(Self::Yaml),
            _ => None,
        }
    }
}

/// Reads the objects of one file; `kinds` are those that it may hold, at the top or inside each other.
pub fn parse(
    source: &Source,
    id: SourceId,
    kinds: &'static [&'static Descriptor],
) -> (Vec<Document>, Report) {
    let mut context = Context { source: id, kinds, documents: Vec::new(), report: Report::default() };
    if source.text.len() > MAX_SIZE {
        let message = format!("{} holds more than the {MAX_SIZE} bytes that are allowed", source.name);
        context.problem(Code::TooLarge, Span::new(0, 0), message, Some("split it into several files".into()));
        return (context.documents, context.report);
    }
    let text = without_mark(&source.text);
    match source.language {
        Language::Kdl => kdl::parse(&text, &mut context),
        Language::Yaml => yaml::parse(&text, &mut context),
    }
    (context.documents, context.report)
}

/// The text without a byte order mark at its start, which both languages allow (KDL 2, section 3.16; YAML
/// 1.2, section 5.2). Empty lines of the same length take its place, so that every place stays where it is.
fn without_mark(text: &str) -> Cow<'_, str> {
    match text.strip_prefix(MARK) {
        Some(rest) => ["\n".repeat(MARK.len_utf8()).as_str(), rest].concat().into(),
        None => text.into(),
    }
}

/// Writes documents in a language; parsing the text and putting variables in returns equal documents.
pub fn print(documents: &[Document], language: Language) -> String {
    let documents = variables::escape(documents);
    match language {
        Language::Kdl => kdl::print(&documents),
        Language::Yaml => yaml::print(&documents),
    }
}

/// The parts of an object that have been read.
struct Draft {
    fields: Record,
    whole: bool,
    holds_objects: bool,
}

impl Draft {
    fn new() -> Self {
        Self { fields: Record::new(), whole: true, holds_objects: false }
    }
}

/// The state of a front end while it reads one file.
struct Context {
    source: SourceId,
    kinds: &'static [&'static Descriptor],
    documents: Vec<Document>,
    report: Report,
}

impl Context {
    fn problem(&mut self, code: Code, span: Span, message: impl Into<String>, help: Option<String>) {
        let at = Location { source: self.source, span };
        self.report.push(Problem::new(code, message).at(at).help(help));
    }

    fn duplicate(&mut self, name: &str, first: Span, second: Span) {
        let at = |span| Location { source: self.source, span };
        let problem = Problem::new(Code::DuplicateKey, format!("{name:?} is given twice"))
            .at(at(second))
            .see(Some(at(first)), "given here first")
            .help(Some("keep one of the two".to_owned()));
        self.report.push(problem);
    }

    /// The kind that a word opens inside a parent.
    fn kind(
        &self,
        word: impl Fn(&Descriptor) -> bool,
        parent: Option<&Descriptor>,
    ) -> Option<&'static Descriptor> {
        let within = parent.map(|parent| parent.word);
        self.kinds.iter().copied().find(|kind| kind.within == within && word(kind))
    }

    /// Reports a word that is neither a kind that may be here nor a field of the parent.
    fn unknown_word(
        &mut self,
        word: &str,
        span: Span,
        parent: Option<&Descriptor>,
        name: fn(&Descriptor) -> &'static str,
    ) {
        let within = parent.map(|parent| parent.word);
        let kinds: Vec<_> =
            self.kinds.iter().filter(|kind| kind.within == within).map(|kind| name(kind)).collect();
        let fields: Vec<_> = parent.into_iter().flat_map(|parent| parent.fields.names()).collect();
        let elsewhere = self.kinds.iter().find(|kind| name(kind) == word).and_then(|kind| kind.within);
        let help = did_you_mean(word, kinds.iter().chain(&fields).copied()).unwrap_or_else(|| {
            match (parent, elsewhere) {
                (None, Some(holder)) => format!("write it inside {}", with_article(holder)),
                (None, None) => format!("only these are allowed: {}", kinds.join(", ")),
                (Some(parent), _) => {
                    format!(
                        "{} holds {}; its fields are {}",
                        with_article(parent.word),
                        kinds.join(", "),
                        fields.join(", ")
                    )
                }
            }
        });
        let place =
            within.map_or("at the top of a file".to_owned(), |word| format!("in {}", with_article(word)));
        self.problem(Code::UnknownWord, span, format!("{word:?} is not known {place}"), Some(help));
    }

    /// Adds an object, unless it is a block that only adds objects to it.
    fn document(
        &mut self,
        descriptor: &'static Descriptor,
        name: Spanned,
        parent: Option<&Spanned>,
        draft: Draft,
    ) {
        let Draft { fields, whole, holds_objects } = draft;
        if holds_objects && whole && fields.is_empty() {
            return;
        }
        let source = self.source;
        let parent = parent.cloned();
        self.documents.push(Document { descriptor, source, name, parent, fields, whole });
    }
}
