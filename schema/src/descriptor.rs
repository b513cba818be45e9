//! What a kind looks like, as data: the one description that parsers, differ, renderer, REST and reference
//! loop over.
//!
//! It is made by the derives out of the structs of the kinds and what [`attribute`](crate::attribute) says of
//! their types.

use crate::value::{Step, Value};

/// A class of objects, as data.
#[derive(Debug)]
pub struct Descriptor {
    /// Its word in KDL, in resource ids and in messages: `access-key`.
    pub word: &'static str,
    /// The key of its collection in YAML: `access-keys`.
    pub plural: &'static str,
    /// Whether its objects have names; if not, there is at most one of it, which is written without.
    pub named: bool,
    /// The word of the kind that holds it; absent: it is at the top of a file.
    pub within: Option<&'static str>,
    /// The set of names that it shares with other kinds: in one network no two objects of one namespace have
    /// the same name. Absent: its names are its own.
    pub namespace: Option<&'static str>,
    /// What names its objects, besides fields for names of this kind alone: `selector`, `alias`. Kinds that
    /// are named by the same share a namespace.
    pub named_by: &'static [&'static str],
    /// What its objects hold.
    pub fields: &'static Fields,
}

/// Settings that belong together: those of an object, or of a record inside one.
#[derive(Debug)]
pub struct Fields {
    /// What they describe, for users.
    pub doc: &'static str,
    /// Each of them, in the order of the reference.
    pub fields: &'static [Field],
}

/// A setting, as data.
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
    /// Its value when it is not given; absent: it has none. Bodies leave out what equals it, so a change of a
    /// default requires new formats of plans and rows.
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
    /// One of these words.
    Choice(&'static [Word]),
    /// The name of a resource of the kind of that word in the same network.
    Reference(&'static str),
    /// Values without order or repetition.
    Set(&'static Type),
    /// Values whose order has a meaning.
    List(&'static Type),
    /// The same collection, with at least one value in it.
    NonEmpty(&'static Type),
    /// Values by name.
    Map(&'static Type),
    /// Settings of their own.
    Record(&'static Fields),
}

/// One of the words that a choice is between.
#[derive(Debug)]
pub struct Word {
    /// The word.
    pub word: &'static str,
    /// What it means, for users.
    pub doc: &'static str,
}

/// Which resources a name may be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Those of the kind of that word.
    Kind(&'static str),
    /// Those of every kind that is [named by](Descriptor::named_by) it: `selector`.
    NamedBy(&'static str),
}

/// The name of another resource that a value holds, found by visiting what a field holds.
#[derive(Clone, Debug)]
pub struct Reference<'a> {
    /// What it may be the name of.
    pub to: Target,
    /// The network of the resource; absent: that of the reference. A reference to another network is not
    /// checked.
    pub network: Option<&'a str>,
    /// The name.
    pub name: &'a str,
    /// The value as it is written, which begins with the name: `api`, `api.corp`.
    pub text: &'a str,
    /// Whether the holder consists of what it refers to, as an alias of its target. Such references may not
    /// form a cycle; references that only select may.
    pub builds: bool,
    /// The steps from the resource to the value; for a member of a set, those to the set, since its order is
    /// not that of the file.
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
    /// Whether it may be written as a bare number.
    pub integer: bool,
    /// The word of the kinds that are [named by](Descriptor::named_by) it, whose names are values of it;
    /// absent: names are none.
    pub names: Option<&'static str>,
}

impl Fields {
    /// The field of that name.
    pub fn get(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// Each field, in the order of the reference.
    pub fn iter(&self) -> std::slice::Iter<'static, Field> {
        self.fields.iter()
    }

    /// The names of the fields, in the same order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + Clone + use<> {
        self.iter().map(|field| field.name)
    }
}

impl IntoIterator for &Fields {
    type Item = &'static Field;
    type IntoIter = std::slice::Iter<'static, Field>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Field {
    /// The canonical value that a body means by holding or leaving out the field; absent: nothing.
    pub fn in_body(&self, body: &Value) -> Option<Value> {
        body.field(self.name).cloned().or_else(|| self.default.map(|default| default()))
    }
}

impl Type {
    /// The type of what a collection holds, or of the collection of which there must be at least one.
    pub fn inner(&self) -> Option<&'static Type> {
        match self {
            Self::Set(inner) | Self::List(inner) | Self::NonEmpty(inner) | Self::Map(inner) => Some(inner),
            Self::Bool
            | Self::Integer { .. }
            | Self::Scalar(_)
            | Self::Text
            | Self::Choice(_)
            | Self::Reference(_)
            | Self::Record(_) => None,
        }
    }

    /// The settings of the records that it is or holds.
    pub fn record(&self) -> Option<&'static Fields> {
        if let Self::Record(fields) = self { Some(fields) } else { self.inner()?.record() }
    }

    /// The type of a named part of it: a field of its record, an entry of its map.
    pub fn member(&self, name: &str) -> Option<&'static Type> {
        if let Self::Record(fields) = self {
            return fields.get(name).map(|field| &field.ty);
        }
        let inner = self.inner()?;
        if let Self::Map(_) = self { Some(inner) } else { inner.member(name) }
    }

    /// Whether it is a collection of records, each of which is written as a block of its own.
    pub fn repeats(&self) -> bool {
        match self {
            Self::Set(inner) | Self::List(inner) => matches!(inner, Self::Record(_)),
            Self::NonEmpty(inner) => inner.repeats(),
            Self::Bool
            | Self::Integer { .. }
            | Self::Scalar(_)
            | Self::Text
            | Self::Choice(_)
            | Self::Reference(_)
            | Self::Map(_)
            | Self::Record(_) => false,
        }
    }

    /// Visits the type and all that it is made of, the fields of records among it.
    pub fn walk(&'static self, visit: &mut dyn FnMut(&'static Type)) {
        visit(self);
        if let Some(inner) = self.inner() {
            inner.walk(visit);
        }
        if let Self::Record(fields) = self {
            fields.iter().for_each(|field| field.ty.walk(visit));
        }
    }
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
