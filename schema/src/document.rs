//! Resources as they were written, before anything about them is checked but their form.

use std::sync::Arc;

use crate::descriptor::Descriptor;
use crate::value::{Location, Record, SourceId, Span};

/// A resource as it was written: nothing about it is checked but its form.
#[derive(Clone, Debug)]
pub struct Document {
    /// What it claims to be.
    pub descriptor: &'static Descriptor,
    /// The file that it stands in.
    pub source: SourceId,
    /// Its name.
    pub name: Spanned,
    /// The name of what holds it, where its kind lives inside another.
    pub parent: Option<Spanned>,
    /// Its fields.
    pub fields: Record,
    /// Whether all of it could be read. If not, the problem is reported already and `fields` lacks what it is about, so
    /// nothing is concluded from what is missing.
    pub whole: bool,
}

/// A text and the place where it stood.
#[derive(Clone, Debug)]
pub struct Spanned {
    /// The text.
    pub text: Arc<str>,
    /// Where it stood.
    pub span: Span,
}

impl Document {
    /// Where its name stands.
    pub fn at(&self) -> Location {
        Location { source: self.source, span: self.name.span }
    }

    /// Where a field's value stands, or else its name.
    pub fn field_at(&self, field: &str) -> Location {
        let span = self.fields.get(field).map(|member| member.value.span);
        Location { source: self.source, span: span.unwrap_or(self.name.span) }
    }

    /// Whether anything but a word that could not be read defines the resource here.
    pub(crate) fn says_anything(&self) -> bool {
        self.whole || !self.fields.is_empty()
    }
}
