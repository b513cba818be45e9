//! Resources as they were written: only their form is checked.

use std::sync::Arc;

use crate::descriptor::Descriptor;
use crate::value::{Data, Location, Record, SourceId, Span, Step, Value};

/// A resource as it was written: only its form is checked.
#[derive(Clone, Debug)]
pub struct Document {
    /// What it claims to be.
    pub descriptor: &'static Descriptor,
    /// The file that it is in.
    pub source: SourceId,
    /// Its name.
    pub name: Spanned,
    /// The name of what holds it, where its kind lives inside another.
    pub parent: Option<Spanned>,
    /// Its fields.
    pub fields: Record,
    /// Whether all of it could be read. If not, the problem is reported already and `fields` lacks what could
    /// not be read, so nothing may be concluded from what is missing.
    pub whole: bool,
}

/// A text and its place.
#[derive(Clone, Debug)]
pub struct Spanned {
    /// The text.
    pub text: Arc<str>,
    /// Its place.
    pub span: Span,
}

impl Document {
    /// The place of its name.
    pub fn at(&self) -> Location {
        Location { source: self.source, span: self.name.span }
    }

    /// The place of the value that a path leads to, or of the last one on it that exists; for an empty path
    /// that of the name.
    pub fn location(&self, path: &[Step<'_>]) -> Location {
        let span = self.walk(path).last().map_or(self.name.span, |value| value.span);
        Location { source: self.source, span }
    }

    /// The place of one text of the value that a path leads to, alone or in a list.
    pub fn element(&self, path: &[Step<'_>], text: &str) -> Option<Location> {
        let value = self.walk(path).nth(path.len().checked_sub(1)?)?;
        let is = |item: &&Value| matches!(&item.data, Data::Text(it) if **it == *text);
        let items =
            if let Data::List(items) = &value.data { items.as_slice() } else { std::slice::from_ref(value) };
        Some(Location { source: self.source, span: items.iter().find(is)?.span })
    }

    /// The values that a path leads through, as far as there are any.
    fn walk(&self, path: &[Step<'_>]) -> impl Iterator<Item = &Value> {
        let (first, rest) = path.split_first().map_or((None, path), |(first, rest)| (Some(*first), rest));
        let field = match first {
            Some(Step::Field(name)) => self.fields.get(name).map(|member| &member.value),
            Some(Step::Index(_)) | None => None,
        };
        let mut rest = rest.iter();
        std::iter::successors(field, move |value| value.step(*rest.next()?))
    }

    /// Whether it defines the resource by more than a word that could not be read.
    pub(crate) fn says_anything(&self) -> bool {
        self.whole || !self.fields.is_empty()
    }
}
