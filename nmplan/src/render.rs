//! Plans, problems and nodes as text for people. Pure: values in, text out; it names no kind.
//!
//! The text is styled throughout; the console removes the styles where they would not be shown. Nothing
//! relies on colour: the symbols `+ ~ -` carry the meaning.

mod carrying;
mod details;
mod difference;
mod explanation;
mod guard;
mod history;
mod impact;
mod keys;
mod plan;
mod problems;
mod reach;
mod status;
mod table;
mod verdicts;

use owo_colors::OwoColorize;
use schema::diff::Action;
use schema::value::{Data, Value};

pub use details::details;
pub use explanation::explanation;
pub use guard::{guard, guards};
pub use history::{HistoryEntry, RevisionState, history};
pub use keys::tokens;
pub use plan::{Shown, changes, plan};
pub use problems::{Lines, problems};
pub use status::{bans, declared, nodes, status, status_of};
pub use verdicts::{tests_hold, verdicts};

/// How a difference shows that there is no value.
const NONE: &str = "(none)";

/// How many names or ranges are listed; more are only counted.
const LISTED: usize = 3;

/// How many lines of the same kind are shown before the rest is counted.
const FOLD: usize = 40;

/// The symbol of an action, in its colour.
fn symbol(action: Action) -> String {
    let sign = action.symbol();
    match action {
        Action::Create => sign.green().to_string(),
        Action::Update => sign.yellow().to_string(),
        Action::Delete => sign.red().to_string(),
    }
}

/// A value as one word or several, separated by commas.
fn value(value: &Value) -> String {
    match &value.data {
        Data::Null => NONE.into(),
        Data::Flag => "true".into(),
        Data::Bool(it) => it.to_string(),
        Data::Integer(it) => it.to_string(),
        Data::Float(it) => it.to_string(),
        Data::Text(it) if it.is_empty() || it.contains([' ', ',', '=']) => format!("{it:?}"),
        Data::Text(it) => it.escape_debug().to_string(),
        Data::List(items) if items.is_empty() => "(empty)".into(),
        Data::List(items) => items.iter().map(self::value).collect::<Vec<_>>().join(","),
        Data::Record(record) => {
            let members =
                record.iter().map(|(name, member)| format!("{name}={}", self::value(&member.value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(" "))
        }
    }
}

/// Lines below a title; nothing if there are none.
fn section(title: &str, of: Vec<String>) -> String {
    if of.is_empty() { String::new() } else { format!("\n{}\n{}", title.bold(), lines(of)) }
}

/// Facts, each with its name before it and in lines of its own; one without a line is left out.
fn facts(facts: Vec<(&'static str, Vec<String>)>) -> String {
    let width = facts.iter().filter(|(_, lines)| !lines.is_empty()).map(|(name, _)| name.len()).max();
    let width = width.unwrap_or_default();
    let named = |(name, lines): (&str, Vec<String>)| {
        let line = |(place, line)| format!("  {:width$}  {line}\n", if place == 0 { name } else { "" });
        lines.into_iter().enumerate().map(line).collect::<String>()
    };
    facts.into_iter().map(named).collect()
}

/// Lines, each with its end.
fn lines(lines: Vec<String>) -> String {
    lines.into_iter().map(|line| line + "\n").collect()
}

/// The lines, of which the last are only counted if there are too many; a line paired with `true` is always
/// shown.
fn fold(lines: Vec<(String, bool)>, full: bool) -> Vec<String> {
    let foldable = lines.iter().filter(|(_, kept)| !kept).count();
    let shown = if full || foldable <= FOLD { foldable } else { FOLD / 2 };
    let mut text = Vec::new();
    let mut before = 0;
    for (line, kept) in lines {
        before += usize::from(!kept);
        if kept || before <= shown {
            text.push(line);
        }
    }
    if foldable > shown {
        text.push(format!("    ... and {} more; -v shows all", foldable - shown).dimmed().to_string());
    }
    text
}

/// `a`, `a and b`, `a, b and c`.
fn names(names: impl Iterator<Item = impl ToString>) -> String {
    let mut names: Vec<_> = names.map(|name| name.to_string()).collect();
    match names.pop() {
        Some(last) if !names.is_empty() => format!("{} and {last}", names.join(", ")),
        last => last.unwrap_or_default(),
    }
}

/// A text in lines of `columns`, as far as its words allow; absent: of any length. Tables
/// are none of its business: they fit by themselves, or are lists in which a long word stays beside its name.
pub fn wrapped(text: String, columns: Option<usize>) -> String {
    match columns {
        Some(columns) => wrap(&text, columns),
        None => text,
    }
}

/// Lines of at most so many characters, as far as their words allow: what does not fit goes on below, further to the
/// right than its line begins. Commands, which are indented by four, stay in one piece.
fn wrap(text: &str, columns: usize) -> String {
    let line = |line: &str| {
        let indent = line.chars().take_while(|c| *c == ' ').count();
        if line.starts_with("    nmplan ") {
            return line.to_owned();
        }
        let hanging = " ".repeat((indent + 4).min(columns / 2));
        let options = textwrap::Options::new(columns)
            .subsequent_indent(&hanging)
            .break_words(false)
            .word_separator(textwrap::WordSeparator::AsciiSpace)
            .word_splitter(textwrap::WordSplitter::NoHyphenation)
            .wrap_algorithm(textwrap::WrapAlgorithm::FirstFit);
        textwrap::fill(line, options)
    };
    text.lines().map(|it| line(it) + "\n").collect()
}
