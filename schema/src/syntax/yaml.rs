//! YAML 1.2: an object is an entry of its kind's map; a field is an entry of its object's map.
//!
//! Aliases, anchors, tags, merge keys and further documents are refused, so the text is the data and its size is the
//! data's size. A plain scalar is a boolean, a number or null only where YAML's core schema and every older reader
//! agree about it; `010` and `1_000` stay texts, which a field that wants a number then refuses.

use std::borrow::Cow;

use granit_parser::{Event, Options, Parser, ScalarStyle};

use super::{Context, MAX_DEPTH};
use crate::descriptor::Descriptor;
use crate::report::Code;
use crate::value::{Data, Document, Key, Member, Record, Span, Spanned, Value};

pub(super) fn parse(text: &str, context: &mut Context) {
    let before = context.report.len();
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.emit_unresolved_aliases = true;
    let mut events = Events { parser: Parser::new_from_str_with_options(text, options), context, depth: 0 };
    let tree = events.document();
    if context.report.len() > before {
        return;
    }
    match tree.map(|tree| (tree.span, tree.data)) {
        Some((_, Data::Record(record))) => objects_of(record, None, context),
        None | Some((_, Data::Null)) => {}
        Some((span, data)) => {
            let message = format!("a file holds kinds and their objects, not {}", data.describe());
            context.problem(Code::WrongType, span, message, Some("start with `networks:`".into()));
        }
    }
}

/// Reads a record as the collections of kinds inside a parent; what is no kind is left to be a field.
fn objects_of(record: Record, parent: Option<(&'static Descriptor, &Spanned)>, context: &mut Context) {
    for (word, member) in record {
        match context.kind(|kind| kind.plural == &*word, parent.map(|(kind, _)| kind)) {
            Some(kind) => collection(kind, parent.map(|(_, name)| name), member.value, context),
            None => context.unknown_word(&word, member.key.0, parent.map(|(kind, _)| kind), |kind| kind.plural),
        }
    }
}

/// Reads `plural: { name: { .. }, .. }`; a bare name or a list of names declares objects without fields.
fn collection(kind: &'static Descriptor, parent: Option<&Spanned>, value: Value, context: &mut Context) {
    match value.data {
        Data::Record(record) => {
            for (name, member) in record {
                let name = Spanned { text: (&*name).into(), span: member.key.0 };
                object(kind, name, parent, member.value, context);
            }
        }
        Data::Text(name) => {
            let name = Spanned { text: (&*name).into(), span: value.span };
            context.document(kind, name, parent, Record::new());
        }
        Data::List(items) => items.into_iter().for_each(|item| match item.data {
            Data::Text(_) => collection(kind, parent, item, context),
            data => misplaced(kind, item.span, &data, context),
        }),
        Data::Null => {}
        data => misplaced(kind, value.span, &data, context),
    }
}

fn misplaced(kind: &Descriptor, span: Span, data: &Data, context: &mut Context) {
    let message = format!("{:?} holds objects by their names, not {}", kind.plural, data.describe());
    context.problem(Code::MissingName, span, message, Some(format!("write {}: {{ NAME: {{ .. }} }}", kind.plural)));
}

fn object(kind: &'static Descriptor, name: Spanned, parent: Option<&Spanned>, value: Value, context: &mut Context) {
    let record = match value.data {
        Data::Record(record) => record,
        Data::Null => Record::new(),
        data => {
            let message = format!("a {} holds fields, not {}", kind.word, data.describe());
            return context.problem(Code::WrongType, value.span, message, Some("write them as { field: value }".into()));
        }
    };
    let holder = context.kinds.iter().any(|inner| inner.within == Some(kind.word));
    let is_field = |word: &str| !holder || kind.fields.iter().any(|field| field.name == word);
    let (fields, inner): (Record, Record) = record.into_iter().partition(|(word, _)| is_field(word));
    let holds_objects = !inner.is_empty();
    objects_of(inner, Some((kind, &name)), context);
    if !(holds_objects && fields.is_empty()) {
        context.document(kind, name, parent, fields);
    }
}

/// The events of one file, being read into a tree.
struct Events<'a, 'c> {
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    context: &'c mut Context,
    depth: usize,
}

impl<'a> Events<'a, '_> {
    /// The next event and its place; nothing at the end or after an error, which is reported.
    fn next(&mut self) -> Option<(Event<'a>, Span)> {
        match self.parser.next_event()? {
            Ok((event, span)) => {
                let range = span.byte_range().unwrap_or_default();
                Some((event, Span::new(range.start, range.end)))
            }
            Err(error) => {
                let at = error.marker().byte_offset().unwrap_or_default();
                let message = error.info();
                self.context.problem(Code::Yaml, Span::new(at, at), message, None);
                None
            }
        }
    }

    /// The one document of a file.
    fn document(&mut self) -> Option<Value> {
        let mut tree = None;
        while let Some(next) = self.next() {
            match next {
                (Event::DocumentStart(..), span) if tree.is_some() => {
                    self.refuse(span, "a second document starts here", "split the file at ---");
                    return None;
                }
                (Event::StreamStart | Event::StreamEnd | Event::DocumentStart(..) | Event::DocumentEnd, _) => {}
                (event, span) => tree = Some(self.node(event, span)?),
            }
        }
        tree
    }

    fn refuse(&mut self, span: Span, message: &str, help: &str) {
        self.context.problem(Code::YamlFeature, span, message, Some(help.into()));
    }

    /// The node that starts with this event; nothing after an error.
    fn node(&mut self, event: Event<'a>, span: Span) -> Option<Value> {
        if event.tag().is_some() {
            self.refuse(span, "tags mean nothing here", "take it away: each field knows its type");
            return None;
        }
        let alias = event.is_alias() || matches!(event, Event::UnresolvedAlias(_));
        if alias || event.anchor_id().is_some_and(|id| id > 0) {
            self.refuse(span, "anchors and aliases are not supported", "write the value out");
            return None;
        }
        match event {
            Event::Scalar(text, style, ..) => Some(Value { span, data: scalar(text, style) }),
            Event::SequenceStart(..) => self.nested(span, Self::list),
            Event::MappingStart(..) => self.nested(span, Self::record),
            other => {
                self.context.problem(Code::Yaml, span, format!("a value belongs here, not {other:?}"), None);
                None
            }
        }
    }

    fn nested(&mut self, span: Span, read: fn(&mut Self) -> Option<Data>) -> Option<Value> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let message = format!("more than {MAX_DEPTH} lists and maps are open here");
            self.context.problem(Code::TooDeep, span, message, Some("nest less deep".into()));
            return None;
        }
        let data = read(self)?;
        self.depth -= 1;
        Some(Value { span, data })
    }

    fn list(&mut self) -> Option<Data> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Some(Data::List(items)),
                (event, span) => items.push(self.node(event, span)?),
            }
        }
    }

    fn record(&mut self) -> Option<Data> {
        let mut record = Record::new();
        loop {
            let (event, key) = match self.next()? {
                (Event::MappingEnd, _) => return Some(Data::Record(record)),
                next => next,
            };
            let name = self.key(event, key)?;
            let (event, span) = self.next()?;
            let value = self.node(event, span)?;
            match record.get(&*name) {
                Some(first) => self.context.duplicate(&name, first.key.0, key),
                None => drop(record.insert(name.into(), Member { key: Key(key), value })),
            }
        }
    }

    fn key(&mut self, event: Event<'a>, span: Span) -> Option<Cow<'a, str>> {
        match event {
            Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<" => {
                self.refuse(span, "merge keys are not supported", "write the fields out");
                None
            }
            Event::Scalar(text, _, anchor, None) if anchor == 0 => Some(text),
            _ => {
                self.refuse(span, "a key is a plain text", "write a text without anchor or tag");
                None
            }
        }
    }
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle) -> Data {
    if style != ScalarStyle::Plain {
        return Data::Text((&*text).into());
    }
    match &*text {
        "" | "~" | "null" | "Null" | "NULL" => Data::Null,
        "true" | "True" | "TRUE" => Data::Bool(true),
        "false" | "False" | "FALSE" => Data::Bool(false),
        plain => number(plain).unwrap_or_else(|| Data::Text(plain.into())),
    }
}

/// A number that no reader of YAML takes for another one.
fn number(plain: &str) -> Option<Data> {
    let digits = plain.strip_prefix('-').unwrap_or(plain);
    let decimal = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if decimal(digits) && (digits == "0" || !digits.starts_with('0')) {
        return Some(plain.parse().map_or_else(|_| Data::Float(plain.into()), Data::Integer));
    }
    let (whole, fraction) = digits.split_once('.')?;
    (decimal(whole) && decimal(fraction)).then(|| Data::Float(plain.into()))
}

pub(super) fn print(documents: &[Document]) -> String {
    let tree = tree(documents, None);
    serde_saphyr::to_string(&tree).expect("a value without a type can be written as YAML")
}

/// The objects inside a parent, as the record that a file holds.
fn tree(documents: &[Document], parent: Option<&Document>) -> Value {
    let mut kinds = parent.map(|parent| parent.fields.clone()).unwrap_or_default();
    let inside = |document: &&Document| match parent {
        None => document.parent.is_none(),
        Some(parent) => {
            document.descriptor.within == Some(parent.descriptor.word)
                && document.parent.as_ref().is_some_and(|name| name.text == parent.name.text)
        }
    };
    for document in documents.iter().filter(inside) {
        let collection = kinds.entry(document.descriptor.plural.into()).or_insert_with(|| {
            Member::from(Value::from(Data::Record(Record::new())))
        });
        if let Data::Record(objects) = &mut collection.value.data {
            objects.insert((&*document.name.text).into(), tree(documents, Some(document)).into());
        }
    }
    Data::Record(kinds).into()
}
