//! YAML 1.2: an object is an entry of its kind's map, or of the file's where its kind has no names; a field is
//! an entry of its object's map.
//!
//! Aliases, anchors, tags, merge keys and further documents are refused, so the text is the data and its size
//! is the data's size. A plain scalar is a boolean, a number or null only where YAML's core schema and every
//! older reader agree about it; `010` and `1_000` stay texts, which a field that wants a number then refuses.

use std::borrow::Cow;

use granit_parser::{ErrorKind, Event, Options, Parser, ScalarStyle};

use super::{Context, Draft, MAX_DEPTH};
use crate::descriptor::{Descriptor, with_article};
use crate::document::{Document, Spanned};
use crate::report::Code;
use crate::value::{Data, FieldValue, Key, Record, Span, Value};

pub(super) fn parse(text: &str, context: &mut Context) {
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.emit_unresolved_aliases = true;
    let mut events =
        Events { text, parser: Parser::new_from_str_with_options(text, options), context, depth: 0 };
    let tree = events.document();
    match tree.map(|tree| (tree.span, tree.data)) {
        Some((_, Data::Record(record))) => drop(objects_of(record, None, context)),
        None | Some((_, Data::Null)) => {}
        Some((span, data)) => {
            let message = format!("a file holds kinds and their objects, not {}", data.describe());
            context.problem(Code::WrongType, span, message, Some("start with `networks:`".into()));
        }
    }
}

/// Reads a record as the collections of kinds inside a parent. Returns how many there are, and whether all
/// were known.
fn objects_of(
    record: Record,
    parent: Option<(&'static Descriptor, &Spanned)>,
    context: &mut Context,
) -> (usize, bool) {
    let mut known = 0;
    let mut whole = true;
    for (word, member) in record {
        match context.kind(|kind| kind.plural == &*word, parent.map(|(kind, _)| kind)) {
            Some(kind) if !kind.named => {
                known += 1;
                let name = Spanned { text: kind.word.into(), span: member.key.0 };
                object(kind, name, parent.map(|(_, name)| name), member.value, context);
            }
            Some(kind) => {
                known += 1;
                collection(kind, parent.map(|(_, name)| name), member.value, context);
            }
            None => {
                whole = false;
                context.unknown_word(&word, member.key.0, parent.map(|(kind, _)| kind), |kind| kind.plural);
            }
        }
    }
    (known, whole)
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
            context.document(kind, name, parent, Draft::new());
        }
        Data::List(items) => items.into_iter().for_each(|item| match item.data {
            Data::Text(_) => collection(kind, parent, item, context),
            Data::Null
            | Data::Flag
            | Data::Bool(_)
            | Data::Integer(_)
            | Data::Float(_)
            | Data::List(_)
            | Data::Record(_) => {
                misplaced(kind, item.span, &item.data, context);
            }
        }),
        Data::Null => {}
        data @ (Data::Flag | Data::Bool(_) | Data::Integer(_) | Data::Float(_)) => {
            misplaced(kind, value.span, &data, context)
        }
    }
}

fn misplaced(kind: &Descriptor, span: Span, data: &Data, context: &mut Context) {
    let message = format!("{:?} holds objects by their names, not {}", kind.plural, data.describe());
    context.problem(
        Code::MissingName,
        span,
        message,
        Some(format!("write {}: {{ NAME: {{ .. }} }}", kind.plural)),
    );
}

fn object(
    kind: &'static Descriptor,
    name: Spanned,
    parent: Option<&Spanned>,
    value: Value,
    context: &mut Context,
) {
    let record = match value.data {
        Data::Record(record) => record,
        Data::Null => Record::new(),
        data @ (Data::Flag
        | Data::Bool(_)
        | Data::Integer(_)
        | Data::Float(_)
        | Data::Text(_)
        | Data::List(_)) => {
            let message = format!("{} holds fields, not {}", with_article(kind.word), data.describe());
            context.problem(
                Code::WrongType,
                value.span,
                message,
                Some("write them as { field: value }".into()),
            );
            return context.document(kind, name, parent, Draft { whole: false, ..Draft::new() });
        }
    };
    let holder = context.kinds.iter().any(|inner| inner.within == Some(kind.word));
    let is_field = |word: &str| !holder || kind.fields.get(word).is_some();
    let (fields, inner): (Record, Record) = record.into_iter().partition(|(word, _)| is_field(word));
    let (known, whole) = objects_of(inner, Some((kind, &name)), context);
    context.document(kind, name, parent, Draft { fields, whole, holds_objects: known > 0 });
}

/// The events of one file, being read into a tree.
struct Events<'a, 'c> {
    text: &'a str,
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
                let span = Span::new(at, at);
                if *error.kind() == ErrorKind::RecursionLimitExceeded {
                    self.too_deep(span);
                    return None;
                }
                let message = error.info();
                let help = help_for(&message).map(str::to_owned);
                self.context.problem(Code::Yaml, span, message, help);
                None
            }
        }
    }

    fn too_deep(&mut self, span: Span) {
        let message = format!("more than {MAX_DEPTH} lists and maps are open here");
        let help = "nest less deeply, and check for one that is not closed";
        self.context.problem(Code::TooDeep, span, message, Some(help.into()));
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
                (
                    Event::StreamStart | Event::StreamEnd | Event::DocumentStart(..) | Event::DocumentEnd,
                    _,
                ) => {}
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
            self.refuse(
                self.mark_before('!', span),
                "tags are not supported",
                "remove it: each field has its type",
            );
            return None;
        }
        if event.is_alias() || matches!(event, Event::UnresolvedAlias(_)) {
            self.refuse(span, "aliases are not supported", "write the value out");
            return None;
        }
        if event.anchor_id().is_some_and(|id| id > 0) {
            let help = "remove it, and write the value out wherever it is used";
            self.refuse(self.mark_before('&', span), "anchors are not supported", help);
            return None;
        }
        if let Event::Scalar(text, style, ..) = event {
            return Some(Value { span, data: scalar(text, style) });
        }
        let list = matches!(event, Event::SequenceStart(..));
        self.nested(span, if list { Self::list } else { Self::record })
    }

    /// The place of the tag or anchor of a node: the word with that mark before it.
    fn mark_before(&self, mark: char, node: Span) -> Span {
        let place = |start: usize| {
            let word = self.text[start..].split(char::is_whitespace).next().unwrap_or_default();
            Span::new(start, start + word.len())
        };
        self.text[..node.start as usize].rfind(mark).map_or(node, place)
    }

    fn nested(&mut self, span: Span, read: fn(&mut Self) -> Option<Data>) -> Option<Value> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            self.too_deep(span);
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
                None => drop(record.insert(name.into(), FieldValue { key: Key(key), value })),
            }
        }
    }

    fn key(&mut self, event: Event<'a>, span: Span) -> Option<Cow<'a, str>> {
        if let Event::Scalar(text, style, 0, None) = event {
            if style != ScalarStyle::Plain || text != "<<" {
                return Some(text);
            }
            self.refuse(span, "merge keys are not supported", "write out the fields that it merges");
        } else {
            self.refuse(
                span,
                "a key is one text, without tag, anchor or alias",
                "write an entry for each key",
            );
        }
        None
    }
}

/// How the usual mistakes are corrected, by the parser's words for them.
fn help_for(message: &str) -> Option<&'static str> {
    const HELP: [(&str, &str); 6] = [
        ("tab", "indent with spaces"),
        ("did not find expected", "indent it like the lines that it belongs to"),
        (
            "mapping values",
            "write what holds fields as `name:` alone on its line, and put a text that has `: ` in it in quotes",
        ),
        ("unexpected character", "put the text in quotes"),
        ("unclosed quote", "close it, or remove it"),
        ("bracket", "close the bracket that was opened last"),
    ];
    HELP.iter().find(|(words, _)| message.contains(words)).map(|(_, help)| *help)
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

/// A number that all readers of YAML agree on.
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
        if !document.descriptor.named {
            kinds.insert(document.descriptor.plural.into(), tree(documents, Some(document)).into());
            continue;
        }
        let collection = kinds
            .entry(document.descriptor.plural.into())
            .or_insert_with(|| FieldValue::from(Value::from(Data::Record(Record::new()))));
        if let Data::Record(objects) = &mut collection.value.data {
            objects.insert((&*document.name.text).into(), tree(documents, Some(document)).into());
        }
    }
    Data::Record(kinds).into()
}
