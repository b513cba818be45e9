//! Problems with their locations in the files.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, MietteSpanContents,
    NamedSource, Severity as Grade, SourceCode, SourceSpan, SpanContents,
};
use schema::report::{Problem, Report, Severity};
use schema::syntax::Source;
use schema::text::{count, is_shown, plain};
use schema::value::{Location, SourceId};

/// How many problems are shown unless all are asked for.
const SHOWN: usize = 20;
/// The longest line, in bytes, that is shown in full.
const WIDE: usize = 200;

/// The problems of a report as text: each with its location, what to do, and related locations.
pub fn problems(report: &Report, sources: &[Source], width: usize, full: bool) -> String {
    let handler = GraphicalReportHandler::new_themed(GraphicalTheme::unicode())
        .with_links(false)
        .with_width(width)
        .with_context_lines(1)
        .tab_width(4)
        .without_syntax_highlighting();
    let mut text = String::new();
    let shown = if full { usize::MAX } else { SHOWN };
    for problem in report.problems().take(shown) {
        let located = Located::of(problem, sources);
        for part in [&located].into_iter().chain(&located.elsewhere) {
            // Writing into a String cannot fail.
            let _ = handler.render_report(&mut text, part);
            text.push('\n');
        }
    }
    let left_out = report.len().saturating_sub(shown);
    if left_out > 0 {
        text += &format!("... and {} more; -v shows all\n\n", count(left_out as u64, "problem"));
    }
    text
}

/// A problem in the form that miette draws.
#[derive(Debug)]
struct Located {
    grade: Grade,
    code: Option<&'static str>,
    message: String,
    help: Option<String>,
    label: Option<LabeledSpan>,
    source: Option<NamedSource<Excerpt>>,
    elsewhere: Vec<Located>,
    here: Vec<LabeledSpan>,
}

impl Located {
    fn of(problem: &Problem, sources: &[Source]) -> Self {
        let file = |at: Location| sources.get(at.source.0 as usize);
        let source = problem.at.and_then(file).map(named);
        let file_of_problem = problem.at.map(|at| at.source);
        let is_here = |at: &Location| Some(at.source) == file_of_problem;
        let here = problem.related.iter().filter(|(at, _)| is_here(at));
        let elsewhere = problem.related.iter().filter(|(at, _)| !is_here(at)).map(|(at, what)| Self {
            grade: Grade::Advice,
            code: None,
            message: what.clone(),
            help: None,
            label: Some(own(*at, None, sources)),
            source: file(*at).map(named),
            elsewhere: Vec::new(),
            here: Vec::new(),
        });
        Self {
            grade: match problem.code.severity() {
                Severity::Error => Grade::Error,
                Severity::Warning => Grade::Warning,
            },
            code: Some(problem.code.name()),
            message: problem.message.clone(),
            help: problem.help.clone(),
            label: problem
                .at
                .filter(|_| source.is_some())
                .map(|at| own(at, Some(problem.code.title()), sources)),
            source,
            here: here.map(|(at, what)| other(*at, what, sources)).collect(),
            elsewhere: elsewhere.collect(),
        }
    }
}

fn named(source: &Source) -> NamedSource<Excerpt> {
    NamedSource::new(plain(&source.name), Excerpt(visible(&source.text)))
}

/// The text of a file as it may be shown, each character in its place: whatever controls a terminal or changes the
/// order of what is on it stands as another of as many bytes, so that spans hold.
fn visible(text: &Arc<str>) -> Arc<str> {
    let stays = |c: char| is_shown(c) || matches!(c, '\n' | '\r' | '\t');
    if text.chars().all(stays) {
        return text.clone();
    }
    let shown = |c: char| match c.len_utf8() {
        _ if stays(c) => c,
        1 => '?',
        2 => '\u{bf}',
        3 => '\u{fffd}',
        _ => '\u{1f7e6}',
    };
    text.chars().map(shown).collect::<String>().into()
}

/// The location of a problem.
fn own(at: Location, what: Option<&str>, sources: &[Source]) -> LabeledSpan {
    let (span, what) = mark(at, what, sources);
    LabeledSpan::new_primary_with_span(what, span)
}

/// A related location.
fn other(at: Location, what: &str, sources: &[Source]) -> LabeledSpan {
    let (span, what) = mark(at, Some(what), sources);
    LabeledSpan::new_with_span(what, span)
}

/// A mark below the first line of a location; further lines are not marked.
fn mark(at: Location, what: Option<&str>, sources: &[Source]) -> (SourceSpan, Option<String>) {
    let (start, end) = (at.span.start as usize, at.span.end as usize);
    let text =
        sources.get(at.source.0 as usize).and_then(|source| source.text.get(start..end)).unwrap_or_default();
    let first = text.lines().next().unwrap_or_default().trim_end();
    let marked = first.floor_char_boundary(WIDE / 4);
    (SourceSpan::from((start, marked)), what.map(str::to_owned))
}

/// A text of which the lines around a span are shown, and of a very long line only the part around the span:
/// a generator may write a whole network in one line.
#[derive(Clone, Debug)]
struct Excerpt(Arc<str>);

impl SourceCode for Excerpt {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let text = &*self.0;
        let start = span.offset();
        let end = start + span.len();
        // miette then asks for the parts.
        if end > text.len() || span.len() > WIDE {
            return Err(MietteError::OutOfBounds);
        }
        let range = match (before, after) {
            (0, 0) => start..end,
            _ => around(text, start, end),
        };
        let line_start = line_start(text, range.start);
        let line = text[..range.start].matches('\n').count();
        let column = text[line_start..range.start].chars().count();
        let shown = &text[range.clone()];
        let span = SourceSpan::from((range.start, shown.len()));
        let lines = shown.matches('\n').count() + 1;
        Ok(Box::new(MietteSpanContents::new(shown.as_bytes(), span, line, column, lines)))
    }
}

fn line_start(text: &str, at: usize) -> usize {
    text[..at].rfind('\n').map_or(0, |newline| newline + 1)
}

fn line_end(text: &str, at: usize) -> usize {
    let end = text[at..].find('\n').map_or(text.len(), |newline| at + newline);
    if text[at..end].ends_with('\r') { end - 1 } else { end }
}

/// The lines of a span with one before and one after, or the part of a very long line around it.
fn around(text: &str, start: usize, end: usize) -> Range<usize> {
    let (from, to) = (line_start(text, start), line_end(text, end));
    if to - from > WIDE {
        let near = |at: usize| text.floor_char_boundary(at);
        return from.max(near(start.saturating_sub(WIDE / 4)))..to.min(near(end + WIDE / 4));
    }
    let previous =
        from.checked_sub(1).map(|newline| line_start(text, newline)).filter(|start| from - start <= WIDE);
    let next =
        text[to..].find('\n').map(|newline| line_end(text, to + newline + 1)).filter(|end| end - to <= WIDE);
    previous.unwrap_or(from)..next.unwrap_or(to)
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Located {}

impl Diagnostic for Located {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.code.map(|code| Box::new(code) as _)
    }

    fn severity(&self) -> Option<Grade> {
        Some(self.grade)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as _)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_ref().map(|source| source as _)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let labels = self.label.iter().chain(&self.here).cloned();
        self.source.is_some().then(|| Box::new(labels) as _)
    }
}

/// The starts of lines in files, computed once for each file.
#[derive(Debug, Default)]
pub struct Lines {
    starts: RefCell<BTreeMap<SourceId, Rc<Vec<usize>>>>,
}

impl Lines {
    /// The line and the character in it of a byte, both from 1.
    pub fn position(&self, source: SourceId, text: &str, byte: u32) -> (usize, usize) {
        let mut files = self.starts.borrow_mut();
        let starts = files.entry(source).or_insert_with(|| {
            let after =
                text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(index, _)| index + 1);
            Rc::new([0].into_iter().chain(after).collect())
        });
        let byte = (byte as usize).min(text.len());
        let line = starts.partition_point(|start| *start <= byte);
        let column = text.get(starts[line - 1]..byte).map_or(1, |before| before.chars().count() + 1);
        (line, column)
    }
}
