//! What people write who know KDL 1, other languages or a word processor: found in a file that is no KDL 2,
//! so that the mistake itself is reported, once, and not what the parser makes of it.
//!
//! Pure text: [`find`] knows just enough of KDL to pass by strings and comments, and [`unclosed`] goes by the
//! indentation.

use super::{after_comment, after_string};
use crate::value::Span;

/// A habit of other languages.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Habit {
    /// Where it begins and ends.
    pub(super) span: Span,
    /// What it is.
    pub(super) message: String,
    /// What to write.
    pub(super) help: String,
}

impl Habit {
    fn new(start: usize, end: usize, message: &str, help: impl Into<String>) -> Self {
        Self { span: Span::new(start, end), message: message.into(), help: help.into() }
    }
}

/// The first habit in a file.
pub(super) fn find(text: &str) -> Option<Habit> {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let rest = text.get(at..).unwrap_or_default();
        let before = text.get(..at).unwrap_or_default();
        let in_line = &before[before.rfind('\n').map_or(0, |newline| newline + 1)..];
        let starts = in_line.is_empty() || in_line.ends_with([' ', '\t', '{', '}', ';', '=']);
        if let Some(habit) = merge_mark(rest, at, in_line)
            .or_else(|| equals(rest, at, in_line))
            .or_else(|| starts.then(|| token(rest, at, in_line)).flatten())
        {
            return Some(habit);
        }
        at = match bytes[at] {
            b'"' => after_string(bytes, at, 0) + 1,
            b'#' => {
                let hashes = rest.bytes().take_while(|byte| *byte == b'#').count();
                let quoted = bytes.get(at + hashes) == Some(&b'"');
                if quoted { after_string(bytes, at + hashes, hashes) + 1 } else { at + hashes }
            }
            b'/' if rest.starts_with("//") => at + line(rest).len(),
            b'/' if rest.starts_with("/*") => after_comment(bytes, at).unwrap_or(bytes.len()) + 1,
            _ => at + rest.chars().next().map_or(1, char::len_utf8),
        };
    }
    None
}

/// The mark that a merge leaves where two sides differ (git-merge(1)).
fn merge_mark(rest: &str, at: usize, in_line: &str) -> Option<Habit> {
    let marks = ["<<<<<<<", "=======", ">>>>>>>", "|||||||"];
    let marked = in_line.is_empty() && marks.iter().any(|mark| line(rest).starts_with(mark));
    let message = "this line marks a conflict of a merge that was not resolved";
    let help = "keep one of the two sides, and remove the marks";
    marked.then(|| Habit::new(at, at + line(rest).len(), message, help))
}

/// A habit at the start of a token.
fn token(rest: &str, at: usize, in_line: &str) -> Option<Habit> {
    comment(rest, at, in_line)
        .or_else(|| raw_text(rest, at))
        .or_else(|| quote(rest, at))
        .or_else(|| equals(rest, at, in_line))
}

fn comment(rest: &str, at: usize, in_line: &str) -> Option<Habit> {
    let after = rest.strip_prefix('#')?.trim_start_matches('#');
    let blank = after.is_empty() || after.starts_with(char::is_whitespace);
    let alone = in_line.trim().is_empty() && after.starts_with(char::is_alphanumeric);
    let message = "# begins no comment in KDL";
    (blank || alone).then(|| Habit::new(at, at + line(rest).len(), message, "begin it with //"))
}

fn raw_text(rest: &str, at: usize) -> Option<Habit> {
    let hashes = rest.strip_prefix('r')?.bytes().take_while(|byte| *byte == b'#').count();
    let bytes = rest.as_bytes();
    if bytes.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let end = (after_string(bytes, 1 + hashes, hashes.max(1)) + 1).min(line(rest).len());
    // Without hashes, KDL 1 ends it at the next quote.
    let end = if hashes == 0 {
        rest[2..].find('"').map_or(end, |quote| quote + 3).min(line(rest).len())
    } else {
        end
    };
    let inner = rest[..end].trim_start_matches('r').trim_matches('#').trim_matches('"');
    Some(Habit::new(at, at + end, "this is how KDL 1 writes a raw text", format!("write #\"{inner}\"#")))
}

fn quote(rest: &str, at: usize) -> Option<Habit> {
    let first = rest.chars().next().filter(|c| "“”„‟‘’‚«»".contains(*c))?;
    let word = rest.split(char::is_whitespace).next().unwrap_or_default();
    let message = format!("{first} is no quote in KDL");
    Some(Habit::new(at, at + word.len(), &message, "put the text between two \""))
}

/// An equals sign after the name of a field in a block, where its value follows at once. On the line of an
/// object, blanks around it are allowed.
fn equals(rest: &str, at: usize, in_line: &str) -> Option<Habit> {
    let value = rest.strip_prefix('=')?;
    let here = in_line.rsplit(['{', ';']).next().unwrap_or_default().trim();
    if here.is_empty() || here.contains(char::is_whitespace) {
        return None;
    }
    let value = line(value).trim().split([' ', '\t', ';', '}']).next().unwrap_or_default();
    let message = "a field in a block is written without an equals sign";
    Some(Habit::new(at, at + 1, message, format!("write {here} {value}")))
}

fn line(rest: &str) -> &str {
    rest.split(['\n', '\r']).next().unwrap_or_default()
}

/// Where the brace is that lacks its closing one, judged by the indentation: what stands no deeper than the
/// line that opened a block is not inside of it. `text` has a block that is never closed.
pub(super) fn unclosed(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    // Each open brace, with the indentation of its line.
    let mut open: Vec<(usize, usize)> = Vec::new();
    let (mut at, mut indent, mut fresh) = (0, 0, true);
    while at < bytes.len() {
        let byte = bytes[at];
        match byte {
            b'\n' => (indent, fresh) = (0, true),
            b' ' | b'\t' | b'\r' if fresh => indent += 1,
            _ => {
                let shallow = open.last().filter(|(_, opener)| {
                    fresh && if byte == b'}' { indent < *opener } else { indent <= *opener }
                });
                if let Some((brace, _)) = shallow.filter(|_| !text[at..].starts_with("//")) {
                    return Some(*brace);
                }
                fresh = false;
                match byte {
                    b'{' => open.push((at, indent)),
                    b'}' => drop(open.pop()),
                    b'"' => at = after_string(bytes, at, 0),
                    b'/' if bytes.get(at + 1) == Some(&b'/') => at += line(&text[at..]).len() - 1,
                    b'/' if bytes.get(at + 1) == Some(&b'*') => {
                        at = after_comment(bytes, at).unwrap_or(bytes.len())
                    }
                    _ => {}
                }
            }
        }
        at += 1;
    }
    open.last().map(|(brace, _)| *brace)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of the habit, and what to write.
    fn found(text: &str) -> Option<(&str, String)> {
        find(text).map(|habit| (&text[habit.span.start as usize..habit.span.end as usize], habit.help))
    }

    #[test]
    fn each_habit_is_found_where_it_begins() {
        for (text, habit, help) in [
            ("a {\n  # why\n}", "# why", "//"),
            ("a \"x\" # why", "# why", "//"),
            ("#why\na", "#why", "//"),
            ("a r\"x\\y\" b", "r\"x\\y\"", "#\"x\\y\"#"),
            ("a r#\"x\"y\"# b", "r#\"x\"y\"#", "#\"x\"y\"#"),
            ("a “x” b", "“x”", "\""),
            ("a {\n  ipv4 = \"x\"\n}", "=", "write ipv4 \"x\""),
            ("a { ipv4=\"x\"; }", "=", "write ipv4 \"x\""),
            ("a\n<<<<<<< HEAD\nb\n=======\nc\n>>>>>>> x\n", "<<<<<<< HEAD", "one of the two sides"),
        ] {
            let (place, said) = found(text).unwrap_or_else(|| panic!("{text:?} has a habit"));
            assert_eq!(place, habit, "{text:?}");
            assert!(said.contains(help), "{text:?}: {said}");
        }
    }

    #[test]
    fn what_is_kdl_2_is_no_habit() {
        for text in [
            "a #true b=#false #null #inf #-inf #nan",
            "a #\"# no = comment\"# ##\"x\"##",
            "// # x = “y” r\"z\"\na",
            "/* # x */ a=\"b\"",
            "a \"# x = “y”\"",
            "bar\"x\"",
            "a \"\"\"\n  # x\n  \"\"\"",
            "a b=\"c\"",
            "a b = \"c\" d= \"e\"",
        ] {
            assert_eq!(found(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_block_that_lacks_its_brace_is_the_one_that_the_indentation_closes() {
        let opens = |text: &str| {
            unclosed(text)
                .map(|at| text[..at].trim_end().rsplit([' ', '\n']).next().unwrap_or_default().to_owned())
        };
        assert_eq!(opens("a {\n  b {\n}\n").as_deref(), Some("b"));
        assert_eq!(opens("a {\n  b {\n    x\n  c {\n  }\n}\n").as_deref(), Some("b"));
        assert_eq!(opens("a {\n  b {\n  }\n").as_deref(), Some("a"));
        assert_eq!(opens("a {\n  b {\n  }\nc {\n}\n").as_deref(), Some("a"));
        assert_eq!(opens("a {\n  x \"}\" // }\n").as_deref(), Some("a"));
    }
}
