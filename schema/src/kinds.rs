//! THE list of kinds. Nothing else enumerates them.
//!
//! To add a kind: write its file, add its line here, give it an example. The rest loops.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::attribute::{self, Describe, Mismatch};
use crate::descriptor::{Descriptor, Reference, Target};
use crate::rules::{Claim, Findings, Rules};
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::{Record, Span, Value};

/// Declares the kinds: the modules, the enums, and the way from a kind to its type.
macro_rules! kinds {
    ($($file:ident: $kind:ident),+ $(,)?) => {
        $(mod $file; pub use $file::$kind;)+

        /// A class of objects. The order is that of plans: what is referred to comes first.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(#[doc = concat!("[`", stringify!($kind), "`].")] $kind,)+
        }

        /// One object of any kind.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object {
            $(#[doc = concat!("A [`", stringify!($kind), "`].")] $kind(Arc<$kind>),)+
        }

        impl Kind {
            /// Every kind, in order.
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];
            /// The descriptors, in the same order.
            pub const DESCRIPTORS: &'static [&'static Descriptor] = &[$(<$kind as Describe>::DESCRIPTOR),+];

            /// The kind as data.
            pub const fn descriptor(self) -> &'static Descriptor {
                match self { $(Self::$kind => <$kind as Describe>::DESCRIPTOR,)+ }
            }

            /// Reads an object of this kind from its fields, reporting all that is wrong.
            pub fn read(self, fields: &Record, header: Span, found: &mut Vec<Mismatch>) -> Option<Object> {
                match self {
                    $(Self::$kind => attribute::read(fields, header, found).map(|it| Object::$kind(Arc::new(it))),)+
                }
            }
        }

        impl Object {
            /// Its kind.
            pub const fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)+ }
            }

            /// Its fields in canonical form.
            pub fn body(&self) -> Value {
                match self { $(Self::$kind(it) => attribute::write(&**it),)+ }
            }

            /// The addresses that it claims, each with the field that does.
            pub fn claims(&self) -> Vec<(&'static str, Claim)> {
                match self { $(Self::$kind(it) => it.claims(),)+ }
            }

            /// Visits every name of another object that it holds.
            pub fn references(&self, visit: &mut dyn FnMut(Reference<'_>)) {
                match self { $(Self::$kind(it) => it.references(visit),)+ }
            }

            /// Checks the rules of its kind.
            pub fn check(&self, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>) {
                match self { $(Self::$kind(it) => it.check(id, world, findings),)+ }
            }
        }

        $(impl Resource for $kind {
            const KIND: Kind = Kind::$kind;

            fn of(object: &Object) -> Option<&Arc<Self>> {
                #[expect(clippy::allow_attributes, reason = "with one kind there is no other")]
                #[allow(unreachable_patterns, clippy::wildcard_enum_match_arm)]
                match object { Object::$kind(it) => Some(it), _ => None }
            }
        })+
    };
}

kinds! {
    network: Network,
    node: Node,
    access_key: AccessKey,
    dns: Dns,
}

pub use network::Port;

/// A struct that is a kind of object.
pub trait Resource: Describe + Rules + 'static {
    /// Which kind.
    const KIND: Kind;
    /// The object, if it is of this kind.
    fn of(object: &Object) -> Option<&Arc<Self>>;
}

impl Kind {
    /// The kind of that descriptor, if it is one of a kind.
    pub fn of(descriptor: &Descriptor) -> Option<Self> {
        descriptor.word.parse().ok()
    }
}

impl Kind {
    /// The kinds whose objects a name may be of.
    pub fn meant_by(target: Target) -> impl Iterator<Item = Self> {
        let meant = move |descriptor: &Descriptor| match target {
            Target::Kind(word) => descriptor.word == word,
            Target::Namespace(namespace) => descriptor.namespace == Some(namespace),
        };
        Self::ALL.iter().copied().filter(move |kind| meant(kind.descriptor()))
    }

    /// The kinds whose names are unique together with the names of this one, itself among them.
    pub fn namesakes(self) -> impl Iterator<Item = Self> {
        let Descriptor { word, namespace, .. } = self.descriptor();
        Self::meant_by(namespace.map_or(Target::Kind(word), Target::Namespace))
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|kind| kind.descriptor().word == word);
        found.ok_or_else(|| format!("there is no kind {word:?}"))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.descriptor().word)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::descriptor::{Field, Type};
    use crate::scalars::Name;
    use crate::value::{Key, Member};

    fn well_formed(name: &str) -> bool {
        name.parse::<Name>().is_ok() && name == name.to_lowercase()
    }

    #[test]
    fn words_and_fields_are_unique_and_well_formed() {
        let mut words = BTreeSet::new();
        for kind in Kind::DESCRIPTORS {
            assert!(well_formed(kind.word) && well_formed(kind.plural), "{}", kind.word);
            assert!(words.insert((kind.within, kind.word)), "{} is one kind", kind.word);
            let mut names = BTreeSet::new();
            for Field { name, doc, .. } in kind.fields {
                assert!(well_formed(name) && names.insert(name), "{}.{name}", kind.word);
                assert!(doc.ends_with('.') && doc.contains(' '), "{}.{name} is explained in sentences", kind.word);
                assert!(kind.within.is_some() || !Kind::DESCRIPTORS.iter().any(|inner| inner.word == *name));
            }
        }
    }

    #[test]
    fn every_kind_lives_in_a_kind_and_refers_to_kinds() {
        let known = |word: &str| word.parse::<Kind>().is_ok();
        for kind in Kind::DESCRIPTORS {
            assert!(kind.within.is_none_or(known), "{} lives in a kind", kind.word);
            for field in kind.fields {
                let mut ty = &field.ty;
                while let Type::Set(inner) | Type::Map(inner) = ty {
                    ty = inner;
                }
                if let Type::Reference(target) = ty {
                    assert!(Kind::meant_by(*target).next().is_some(), "{}.{} refers to a kind", kind.word, field.name);
                }
            }
        }
    }

    #[test]
    fn every_default_is_a_value_of_its_field() {
        for kind in Kind::ALL {
            for field in kind.descriptor().fields {
                let Some(default) = field.default else { continue };
                let member = Member { key: Key::default(), value: default() };
                let fields = Record::from([(field.name.into(), member)]);
                let mut found = Vec::new();
                kind.read(&fields, Span::default(), &mut found);
                found.retain(|mismatch| mismatch.code != crate::report::Code::MissingField);
                assert!(found.is_empty(), "{kind}.{}: {found:?}", field.name);
            }
        }
    }
}
