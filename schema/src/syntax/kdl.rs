//! KDL 2.0: an object is a node with its name, if its kind has names, as argument; a field is a property, or a child with arguments.
//! A record is a child with properties and a block; a collection of records is one such child for each.
//!
//! The parser recurses on blocks, and a stack that runs out ends the process. So nesting is counted by
//! [`too_deep`] first. In a malformed file the parser may see blocks where that function saw a text, so the
//! parser also runs on a thread with a stack that would hold every brace of the file, one inside the other.

mod habits;

use std::fmt::Write as _;
use std::thread;

use kdl::{KdlDocument, KdlEntry, KdlError, KdlNode, KdlValue};
use miette::SourceSpan;

use super::{Context, Draft, MAX_DEPTH};
use crate::descriptor::{Descriptor, Type, with_article};
use crate::document::{Document, Spanned};
use crate::report::Code;
use crate::value::{Data, FieldValue, Key, Record, Span, Value};
use habits::Habit;

/// Errors shown for one file: one mistake makes a KDL parser report everything after it.
const MAX_ERRORS: usize = 3;
/// How the parser begins what it says of a block without an end.
const UNCLOSED: &str = "No closing '}'";
/// The most blocks in one file, which bounds the stack.
const MAX_BLOCKS: usize = 32_768;
/// The most stack that the parser needs for each level of blocks or comments inside another.
const LEVEL: usize = 16 << 10;

pub(super) fn parse(text: &str, context: &mut Context) {
    if let Some((at, what)) = too_deep(text) {
        let message = format!("more than {MAX_DEPTH} {what} are open here");
        let help = "nest less deeply, and check for one that is not closed";
        return context.problem(Code::TooDeep, Span::new(at, at + 1), message, Some(help.into()));
    }
    let blocks = text.bytes().filter(|byte| *byte == b'{').count() + text.matches("/*").count();
    if blocks > MAX_BLOCKS {
        let message = format!("the file holds {blocks} blocks, {MAX_BLOCKS} are allowed");
        return context.problem(
            Code::TooLarge,
            Span::new(0, 0),
            message,
            Some("split it into several files".into()),
        );
    }
    let parse = || KdlDocument::parse(text);
    let parsed = thread::scope(|scope| {
        let stack = LEVEL * (blocks + 2 * MAX_DEPTH);
        let thread = thread::Builder::new().stack_size(stack).spawn_scoped(scope, parse);
        thread.expect("a thread can be started").join().expect("the KDL parser does not panic")
    });
    match parsed {
        Ok(document) => read_top(&document, context),
        Err(error) => errors(error, text, context),
    }
}

/// Where more than the allowed number of blocks or comments are open, and which; nothing if nowhere.
///
/// Knows just enough of KDL to distinguish a brace in a string or comment from one outside; where a file is
/// malformed it may count too many or too few.
fn too_deep(text: &str) -> Option<(usize, &'static str)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut open = 0usize;
    while at < bytes.len() {
        match bytes[at] {
            b'{' => {
                open += 1;
                if open > MAX_DEPTH {
                    return Some((at, "blocks"));
                }
            }
            b'}' => open = open.saturating_sub(1),
            b'"' => at = after_string(bytes, at, 0),
            b'#' => {
                let hashes = bytes[at..].iter().take_while(|byte| **byte == b'#').count();
                if bytes.get(at + hashes) == Some(&b'"') {
                    at = after_string(bytes, at + hashes, hashes);
                } else {
                    at += hashes - 1;
                }
            }
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at += bytes[at..].iter().take_while(|byte| !matches!(byte, b'\n' | b'\r')).count();
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => match after_comment(bytes, at) {
                Ok(after) => at = after,
                Err(deep) => return Some((deep, "comments")),
            },
            _ => {}
        }
        at += 1;
    }
    None
}

/// The last byte of the string whose first quote is at `at`, after that many hashes.
fn after_string(bytes: &[u8], at: usize, hashes: usize) -> usize {
    let quotes = if bytes[at..].starts_with(b"\"\"\"") { 3 } else { 1 };
    let mut place = at + quotes;
    while place < bytes.len() {
        let ends = bytes[place..].iter().take(quotes).filter(|byte| **byte == b'"').count() == quotes
            && bytes[place + quotes..].iter().take(hashes).filter(|byte| **byte == b'#').count() == hashes;
        match bytes[place] {
            b'"' if ends => return place + quotes + hashes - 1,
            b'\\' if hashes == 0 => place += 2,
            b'\n' if quotes == 1 => return place,
            _ => place += 1,
        }
    }
    bytes.len()
}

/// The last byte of the comment that opens at `at`; comments nest, if too many do, the place of the one that
/// is too deep.
fn after_comment(bytes: &[u8], at: usize) -> Result<usize, usize> {
    let mut place = at;
    let mut open = 0usize;
    while place + 1 < bytes.len() {
        match &bytes[place..place + 2] {
            b"/*" => {
                open += 1;
                place += 2;
                if open > MAX_DEPTH {
                    return Err(place - 2);
                }
            }
            b"*/" => {
                open -= 1;
                place += 2;
                if open == 0 {
                    return Ok(place - 1);
                }
            }
            _ => place += 1,
        }
    }
    Ok(bytes.len())
}

fn errors(error: KdlError, text: &str, context: &mut Context) {
    // What follows from a habit of another language is not reported beside it.
    if let Some(Habit { span, message, help }) = habits::find(text) {
        return context.problem(Code::Kdl, span, message, Some(help));
    }
    let mut found = error.diagnostics;
    found.sort_by_key(|one| one.span.offset());
    // Unclosed blocks follow from the mistake before them; alone they are the mistake.
    if found.len() > 1 {
        let first = found.remove(0);
        let follows = |message: &str| message.to_lowercase().contains("clos");
        found.retain(|one| !one.message.as_deref().is_some_and(follows));
        found.insert(0, first);
    }
    let more = found.len().saturating_sub(MAX_ERRORS);
    for (place, one) in found.into_iter().take(MAX_ERRORS).enumerate() {
        let end = (one.span.offset() + one.span.len()).min(text.len());
        // For a bad value after an = sign the parser reports the whole block around it, up to where it goes
        // wrong.
        let value =
            one.message.as_deref().is_some_and(|message| message.starts_with("Expected property value"));
        let start = if value { value_before(text, end) } else { one.span.offset().min(end) };
        let end = if value { value_after(text, end) } else { end };
        let open = one.message.as_deref().is_some_and(|message| message.starts_with(UNCLOSED));
        let brace = if open { habits::unclosed(text) } else { None };
        let (start, end) = brace.map_or((start, end), |brace| (brace, brace + 1));
        let span = Span::new(start, end);
        let written = text.get(span.start as usize..end).unwrap_or_default();
        let (mut message, help) = described(written, &one.message.unwrap_or_default()).map_or_else(
            |(message, help)| (message, one.help.or(help)),
            |(message, help)| (message, Some(help)),
        );
        if place + 1 == MAX_ERRORS && more > 0 {
            let _ = write!(message, " ({more} more after it)");
        }
        context.problem(Code::Kdl, span, message, help);
    }
}

/// The start of the value that contains a place, or ends there.
fn value_before(text: &str, at: usize) -> usize {
    let before = text.get(..at).unwrap_or_default();
    before.rfind(['=', ' ', '\t', '\n', '{', ';']).map_or(0, |sign| sign + 1)
}

/// The end of the value that contains a place.
fn value_after(text: &str, at: usize) -> usize {
    let after = text.get(at..).unwrap_or_default();
    at + after.find([' ', '\t', '\r', '\n', '{', '}', ';']).unwrap_or(after.len())
}

/// Message and help for the usual mistakes; for all others the parser's own message, in our form.
fn described(written: &str, message: &str) -> Result<(String, String), (String, Option<String>)> {
    let number = written.trim_start_matches(['+', '-', '.']).starts_with(|c: char| c.is_ascii_digit());
    if is_keyword(written) {
        Ok((
            format!("{written} is not a value in KDL 2"),
            format!("write #{written}, or {written:?} for a text"),
        ))
    } else if number {
        Ok((format!("{written} is not a number"), format!("put it in quotes: {written:?}")))
    } else if message.starts_with(UNCLOSED) {
        Ok(("this block is never closed".into(), "close it with }".into()))
    } else if message.starts_with("Unexpected newline") {
        Ok(("this text is not closed on its line".into(), "close it with \"".into()))
    } else if written.starts_with('"') && written.contains('\\') {
        Ok(("this text has a backslash that escapes nothing".into(), "write a backslash as \\\\".into()))
    } else {
        let mut rest = message.trim_end_matches('.').chars();
        let first = rest.next().map_or("this is not KDL".into(), |first| first.to_lowercase().to_string());
        Err((first + rest.as_str(), Some("see https://kdl.dev for the form of KDL 2".into())))
    }
}

fn read_top(document: &KdlDocument, context: &mut Context) {
    for node in document.nodes() {
        let word = node.name().value();
        match context.kind(|kind| kind.word == word, None) {
            Some(kind) => object(node, kind, None, context),
            None => context.unknown_word(word, span(node.name().span()), None, |kind| kind.word),
        }
    }
}

/// Reads a node as an object, and the objects inside it.
fn object(node: &KdlNode, kind: &'static Descriptor, parent: Option<&Spanned>, context: &mut Context) {
    refuse_annotation(node.ty().is_some(), node.name().span(), context);
    let mut draft = Draft::new();
    let word = || Spanned { text: kind.word.into(), span: span(node.name().span()) };
    let mut name = (!kind.named).then(word);
    for entry in node.entries() {
        let value = value(entry, context);
        match (entry.name(), &value.data, &name) {
            (Some(key), _, _) => insert(&mut draft.fields, key.value(), span(key.span()), value, context),
            (None, Data::Text(text), None) => {
                name = Some(Spanned { text: (&**text).into(), span: value.span })
            }
            (None, _, None) => {
                let message = format!(
                    "the name of {} is a text, not {}",
                    with_article(kind.word),
                    value.data.describe()
                );
                context.problem(
                    Code::MissingName,
                    value.span,
                    message,
                    Some("write a name in quotes".into()),
                );
                return;
            }
            (None, _, Some(_)) => {
                let message = match kind.named {
                    true => format!("{} has one argument, its name", with_article(kind.word)),
                    false => format!("{} has no name and no arguments", with_article(kind.word)),
                };
                context.problem(
                    Code::ExtraArgument,
                    value.span,
                    message,
                    Some("write fields as name=value".into()),
                );
                draft.whole = false;
            }
        }
    }
    let Some(name) = name else {
        let message = format!("this {} has no name", kind.word);
        let help = format!("write it after the word: {} \"...\"", kind.word);
        return context.problem(Code::MissingName, span(node.name().span()), message, Some(help));
    };
    children(node, kind, &name, &mut draft, context);
    context.document(kind, name, parent, draft);
}

/// Reads the children of an object: its fields, and the objects inside it.
fn children(
    node: &KdlNode,
    kind: &'static Descriptor,
    name: &Spanned,
    draft: &mut Draft,
    context: &mut Context,
) {
    let holder = context.kinds.iter().any(|inner| inner.within == Some(kind.word));
    for child in node.iter_children() {
        let word = child.name().value();
        let place = span(child.name().span());
        if let Some(inner) = context.kind(|inner| inner.word == word, Some(kind)) {
            draft.holds_objects = true;
            object(child, inner, Some(name), context);
        } else if holder && kind.fields.get(word).is_none() {
            context.unknown_word(word, place, Some(kind), |kind| kind.word);
            draft.whole = false;
        } else {
            let ty = kind.fields.get(word).map(|field| &field.ty);
            draft.whole &= child_field(child, ty, &mut draft.fields, context);
        }
    }
}

/// Reads a child as a field of a record and, where its blocks may repeat, adds it to what the record has.
/// Returns whether it could be read.
fn child_field(node: &KdlNode, ty: Option<&Type>, record: &mut Record, context: &mut Context) -> bool {
    let Some(value) = field(node, ty, context) else { return false };
    let name = node.name().value();
    let key = span(node.name().span());
    match record.get_mut(name) {
        Some(first) if ty.is_some_and(Type::repeats) => append(&mut first.value, value),
        Some(_) | None => insert(record, name, key, value, context),
    }
    true
}

fn append(list: &mut Value, item: Value) {
    if let Data::List(items) = &mut list.data {
        items.push(item);
    } else {
        let first = list.clone();
        list.data = Data::List(vec![first, item]);
    }
}

/// Reads a child as a value: no argument is a flag, one is a scalar, several are a list, a block is a record.
fn field(node: &KdlNode, ty: Option<&Type>, context: &mut Context) -> Option<Value> {
    refuse_annotation(node.ty().is_some(), node.name().span(), context);
    let name = span(node.name().span());
    let mut items = Vec::new();
    let mut record = Record::new();
    let mut whole = true;
    for entry in node.entries() {
        let value = value(entry, context);
        match entry.name() {
            Some(key) => insert(&mut record, key.value(), span(key.span()), value, context),
            None => items.push(value),
        }
    }
    for child in node.iter_children() {
        let ty = ty.and_then(|ty| ty.member(child.name().value()));
        whole &= child_field(child, ty, &mut record, context);
    }
    let block = !record.is_empty() || node.children().is_some();
    let data = match (items.len(), block) {
        _ if !whole => return None,
        (0, false) => Data::Flag,
        (0, true) => Data::Record(record),
        (1, false) => return items.pop(),
        (_, false) => Data::List(items),
        (_, true) => {
            let message = format!("{:?} has values and a block", node.name().value());
            context.problem(Code::ExtraArgument, name, message, Some("keep one of the two".into()));
            return None;
        }
    };
    Some(Value { span: name, data })
}

fn value(entry: &KdlEntry, context: &mut Context) -> Value {
    refuse_annotation(entry.ty().is_some(), entry.span(), context);
    let data = match entry.value() {
        KdlValue::String(text) => Data::Text(text.as_str().into()),
        KdlValue::Integer(number) => {
            i64::try_from(*number).map_or_else(|_| Data::Float(number.to_string().into()), Data::Integer)
        }
        KdlValue::Float(number) => {
            let written = entry.format().map(|format| format.value_repr.clone());
            Data::Float(written.unwrap_or_else(|| number.to_string()).into())
        }
        KdlValue::Bool(value) => Data::Bool(*value),
        KdlValue::Null => Data::Null,
    };
    Value { span: value_span(entry), data }
}

/// The place of the value alone: a property's own span holds its key as well.
fn value_span(entry: &KdlEntry) -> Span {
    let whole = span(entry.span());
    let written = entry.format().map_or(0, |format| format.value_repr.len());
    let start = if entry.name().is_some() && written > 0 {
        whole.end as usize - written
    } else {
        whole.start as usize
    };
    Span::new(start.max(whole.start as usize), whole.end as usize)
}

fn insert(fields: &mut Record, name: &str, key: Span, value: Value, context: &mut Context) {
    match fields.get(name) {
        Some(first) => context.duplicate(name, first.key.0, key),
        None => drop(fields.insert(name.into(), FieldValue { key: Key(key), value })),
    }
}

fn refuse_annotation(there: bool, at: SourceSpan, context: &mut Context) {
    if there {
        let help = Some("remove the word in parentheses: each field has its type".to_owned());
        context.problem(Code::Kdl, span(at), "type annotations are not supported", help);
    }
}

fn span(of: SourceSpan) -> Span {
    Span::new(of.offset(), of.offset() + of.len())
}

pub(super) fn print(documents: &[Document]) -> String {
    let mut text = String::new();
    for document in documents.iter().filter(|document| document.parent.is_none()) {
        print_object(document, documents, 0, &mut text);
    }
    text
}

fn print_object(document: &Document, all: &[Document], indent: usize, text: &mut String) {
    let inner: Vec<_> = all
        .iter()
        .filter(|inner| inner.descriptor.within == Some(document.descriptor.word))
        .filter(|inner| inner.parent.as_ref().is_some_and(|parent| parent.text == document.name.text))
        .collect();
    let _ = write!(text, "{:indent$}{}", "", document.descriptor.word);
    if document.descriptor.named {
        let _ = write!(text, " {}", quoted(&document.name.text));
    }
    let as_property = |value: &Value| if inner.is_empty() { scalar(value) } else { None };
    let rest = print_properties(&document.fields, as_property, text);
    if rest.is_empty() && inner.is_empty() {
        text.push('\n');
        return;
    }
    text.push_str(" {\n");
    for (name, value) in rest {
        print_field(name, value, indent + 4, text);
    }
    for document in inner {
        print_object(document, all, indent + 4, text);
    }
    let _ = writeln!(text, "{:indent$}}}", "");
}

/// Writes the fields that are properties, and returns the others.
fn print_properties<'a>(
    record: &'a Record,
    as_property: impl Fn(&Value) -> Option<String>,
    text: &mut String,
) -> Vec<(&'a str, &'a Value)> {
    let mut rest = Vec::new();
    for (name, member) in record {
        match as_property(&member.value) {
            Some(value) => drop(write!(text, " {}={value}", word(name))),
            None => rest.push((&**name, &member.value)),
        }
    }
    rest
}

/// Writes a field as a child; a collection of other things than scalars as one child for each of them.
fn print_field(name: &str, value: &Value, indent: usize, text: &mut String) {
    if let Data::List(items) = &value.data
        && items.iter().any(|item| scalar(item).is_none())
    {
        return items.iter().for_each(|item| print_field(name, item, indent, text));
    }
    let _ = write!(text, "{:indent$}{}", "", word(name));
    match &value.data {
        Data::Flag => {}
        Data::List(items) => {
            items.iter().filter_map(scalar).for_each(|item| text.push_str(&format!(" {item}")))
        }
        Data::Record(record) => print_block(record, indent, text),
        Data::Null | Data::Bool(_) | Data::Integer(_) | Data::Float(_) | Data::Text(_) => {
            let _ = write!(text, " {}", scalar(value).unwrap_or_default());
        }
    }
    text.push('\n');
}

/// Writes a record after its name: what it can as properties, the rest in a block.
fn print_block(record: &Record, indent: usize, text: &mut String) {
    let rest = print_properties(record, scalar, text);
    if rest.is_empty() && !record.is_empty() {
        return;
    }
    text.push_str(" {\n");
    for (name, value) in rest {
        print_field(name, value, indent + 4, text);
    }
    let _ = write!(text, "{:indent$}}}", "");
}

/// A value as one word; nothing if it takes more words, or none.
fn scalar(value: &Value) -> Option<String> {
    match &value.data {
        Data::Null => Some("#null".into()),
        Data::Bool(value) => Some(format!("#{value}")),
        Data::Integer(value) => Some(value.to_string()),
        Data::Float(text) | Data::Text(text) => Some(quoted(text)),
        Data::Flag | Data::List(_) | Data::Record(_) => None,
    }
}

/// A field's name, bare where KDL is certain to allow it.
fn word(name: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(plain) && !is_keyword(name) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

fn is_keyword(name: &str) -> bool {
    matches!(name, "true" | "false" | "null" | "inf" | "nan")
}

/// A text in quotes.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            // Line separators and marks that KDL allows only as escapes.
            c if c.is_control()
                || matches!(c, '\u{85}' | '\u{2028}'..='\u{2029}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}') =>
            {
                let _ = write!(quoted, "\\u{{{:x}}}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_in_strings_and_comments_open_nothing() {
        let braces = "{".repeat(100);
        for text in [
            format!("a \"{braces}\""),
            format!("a #\"{braces}\"#"),
            format!("a ##\"\"{braces}\"#\"##"),
            format!("a \"\"\"\n{braces}\n\"\"\""),
            format!("// {braces}\na"),
            format!("/* {braces} /* {braces} */ */ a"),
            "a {}\n".repeat(100),
        ] {
            assert_eq!(too_deep(&text), None, "{text}");
        }
    }

    #[test]
    fn blocks_and_comments_that_nest_too_deep_are_found() {
        assert_eq!(too_deep(&"a {".repeat(64)), None);
        assert_eq!(too_deep(&"a {".repeat(65)), Some((194, "blocks")));
        assert_eq!(too_deep(&"/-a {".repeat(65)), Some((64 * 5 + 4, "blocks")));
        assert_eq!(too_deep(&"/*".repeat(65)), Some((128, "comments")));
        assert_eq!(too_deep(&format!("a \"\n{}", "{".repeat(65))), Some((68, "blocks")));
    }
}
