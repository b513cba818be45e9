//! What a kind looks like, as data: the one description that parsers, differ, renderer, REST and reference loop over.
//!
//! It is made by the derives out of the structs of the kinds and what [`attribute`](crate::attribute) says of their types.

use crate::value::Value;

/// A class of objects, as data.
#[derive(Debug)]
pub struct Descriptor {
    /// Its word in KDL, in resource ids and in messages: `access-key`.
    pub word: &'static str,
    /// The key of its collection in YAML: `access-keys`.
    pub plural: &'static str,
    /// The word of the kind that holds it; absent: it stands at the top of a file.
    pub within: Option<&'static str>,
    /// Whether its names also resolve, and so are unique among all such kinds of one network.
    pub resolves: bool,
    /// What it is, for users.
    pub doc: &'static str,
    /// Its fields, in the order of the reference.
    pub fields: &'static [Field],
}

/// A setting of an object, as data.
#[derive(Debug)]
pub struct Field {
    /// Its name in every language.
    pub name: &'static str,
    /// What it means, for users.
    pub doc: &'static str,
    /// What it holds.
    pub ty: Type,
    /// Whether it must be given.
    pub required: bool,
    /// What holds when it is absent; absent itself: nothing does.
    pub default: Option<fn() -> Value>,
}

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// Yes or no.
    Bool,
    /// A whole number.
    Integer {
        /// The smallest.
        min: i64,
        /// The largest.
        max: i64,
    },
    /// A text with a grammar.
    Scalar(&'static ScalarType),
    /// Any text.
    Text,
    /// The name of a resource of that kind in the same network.
    Reference(&'static str),
    /// Values without order or repetition.
    Set(&'static Type),
    /// Values by name.
    Map(&'static Type),
}

/// A [`Scalar`], as data.
#[derive(Debug)]
pub struct ScalarType {
    /// What it is called, with its article.
    pub name: &'static str,
    /// What it may hold.
    pub doc: &'static str,
    /// Texts that parse.
    pub good: &'static [&'static str],
    /// Texts that do not.
    pub bad: &'static [&'static str],
    /// Whether a bare number may stand for it.
    pub integer: bool,
}

/// The word with `a` or `an` before it.
pub fn with_article(word: &str) -> String {
    let article = if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {word}")
}
