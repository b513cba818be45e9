//! What a kind looks like, as data: the one description that parsers, differ, renderer, REST and reference loop over.
//!
//! It is made by the derives out of the structs of the kinds and what [`attribute`](crate::attribute) says of their types.

use crate::value::{Step, Value};

/// A class of objects, as data.
#[derive(Debug)]
pub struct Descriptor {
    /// Its word in KDL, in resource ids and in messages: `access-key`.
    pub word: &'static str,
    /// The key of its collection in YAML: `access-keys`.
    pub plural: &'static str,
    /// The word of the kind that holds it; absent: it stands at the top of a file.
    pub within: Option<&'static str>,
    /// The set of names that it shares with other kinds: in one network no two objects of one namespace have the same
    /// name. Absent: its names are its own.
    pub namespace: Option<&'static str>,
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
    /// The name of a resource in the same network.
    Reference(Target),
    /// Values without order or repetition.
    Set(&'static Type),
    /// Values by name.
    Map(&'static Type),
}

/// Which resources a name may be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Those of the kind of that word.
    Kind(&'static str),
    /// Those of every kind of that namespace.
    Namespace(&'static str),
}

/// A name that a value holds of another resource, found by visiting what a field holds.
#[derive(Clone, Debug)]
pub struct Reference<'a> {
    /// What it may be the name of.
    pub to: Target,
    /// The network of the resource; absent: the one that the reference stands in. One to another network is no matter of
    /// the declarations.
    pub network: Option<&'a str>,
    /// The name.
    pub name: &'a str,
    /// The value as it is written, which begins with the name: `api`, `api.corp`.
    pub text: &'a str,
    /// Whether what holds the reference is made of what it refers to, as a name of what it stands for. Such references
    /// may not lead back to where they began; one that only selects whom something is about may.
    pub builds: bool,
    /// The steps from the resource to the value; of a set to the set, since its order is not that of its file.
    pub path: Vec<Step<'static>>,
}

/// A [`Scalar`](crate::scalars::Scalar), as data.
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

impl Reference<'_> {
    /// The same reference, seen from one step further out.
    #[must_use]
    pub fn inside(mut self, step: Step<'static>) -> Self {
        self.path.insert(0, step);
        self
    }
}

/// The word with `a` or `an` before it.
pub fn with_article(word: &str) -> String {
    let article = if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {word}")
}
