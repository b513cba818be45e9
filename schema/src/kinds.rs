//! THE list of kinds. Nothing else enumerates them.
//!
//! To add a kind: write its file, add its line here, give it an example. Everything else loops over the list.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::attribute::{self, Describe, Mismatch, Struct};
use crate::descriptor::{Descriptor, Reference, Target};
use crate::rules::{Claim, Findings, Rules};
use crate::scalars::Name;
use crate::snapshot::{ResourceId, Snapshot};
use crate::value::{Record, Span, Value};

/// Declares the kinds: the modules, the enums, and how a kind leads to its type.
macro_rules! kinds {
    ($($file:ident: $kind:ident),+ $(,)?) => {
        $(mod $file; pub use $file::$kind;)+

        /// A class of objects. The order is that of plans: a kind comes after those that it lives in or
        /// refers to, save that it may refer to what lives inside it.
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

            /// The tags that members have by it.
            pub fn tags_given(&self) -> Option<&BTreeSet<Name>> {
                match self { $(Self::$kind(it) => it.tags_given(),)+ }
            }

            /// Visits every name of another object that it holds.
            pub fn references(&self, visit: &mut dyn FnMut(Reference<'_>)) {
                match self { $(Self::$kind(it) => it.references(visit),)+ }
            }

            /// Checks the rules of its kind.
            pub fn check(&self, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>) {
                match self { $(Self::$kind(it) => it.check(id, world, findings),)+ }
            }

            /// Reports what it hardly means, though no rule is broken.
            pub fn doubt(&self, id: &ResourceId, world: &Snapshot, findings: &mut Findings<'_>) {
                match self { $(Self::$kind(it) => it.doubt(id, world, findings),)+ }
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
    ingress: Ingress,
    external_client: ExternalClient,
    group: Group,
    allow: Allow,
    egress: Egress,
    relay: Relay,
    test: Test,
}
pub use network::Acl;
pub use test::{NoReach, Path, Reach};

/// A struct that is a kind of object.
pub trait Resource: Describe + Rules + 'static {
    /// Which kind.
    const KIND: Kind;
    /// The object, if it is of this kind.
    fn of(object: &Object) -> Option<&Arc<Self>>;
}

impl Kind {
    /// The kind of that descriptor, if it describes one.
    pub fn of(descriptor: &Descriptor) -> Option<Self> {
        descriptor.word.parse().ok()
    }
}

impl Kind {
    /// The kinds that a name may belong to.
    pub fn meant_by(target: Target) -> impl Iterator<Item = Self> {
        let meant = move |descriptor: &Descriptor| match target {
            Target::Kind(word) => descriptor.word == word,
            Target::NamedBy(word) => descriptor.named_by.contains(&word),
        };
        Self::ALL.iter().copied().filter(move |kind| meant(kind.descriptor()))
    }

    /// The kinds whose names are unique together with the names of this one, itself among them.
    pub fn namesakes(self) -> impl Iterator<Item = Self> {
        let Descriptor { word, namespace, .. } = self.descriptor();
        let shares = move |descriptor: &Descriptor| match namespace {
            Some(_) => descriptor.namespace == *namespace,
            None => descriptor.word == *word,
        };
        Self::ALL.iter().copied().filter(move |kind| shares(kind.descriptor()))
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
    use super::*;
    use crate::descriptor::{Field, Fields, Type};
    use crate::value::{FieldValue, Key};

    fn well_formed(name: &str) -> bool {
        name.parse::<Name>().is_ok() && name == name.to_lowercase()
    }

    /// Every type that fields of a kind are made of, with the field.
    fn types(kind: Kind, visit: &mut dyn FnMut(&Field, &'static Type)) {
        kind.descriptor().fields.iter().for_each(|field| field.ty.walk(&mut |ty| visit(field, ty)));
    }

    fn well_described(word: &str, fields: &'static Fields) {
        let mut names = BTreeSet::new();
        for Field { name, doc, .. } in fields {
            assert!(well_formed(name) && names.insert(name), "{word}.{name}");
            assert!(doc.ends_with('.') && doc.contains(' '), "{word}.{name} is explained in sentences");
        }
    }

    #[test]
    fn words_and_fields_are_unique_and_well_formed() {
        let mut words = BTreeSet::new();
        for kind in Kind::ALL {
            let Descriptor { word, plural, within, fields, .. } = kind.descriptor();
            assert!(well_formed(word) && well_formed(plural), "{word}");
            assert!(words.insert((within, word)), "{word} is one kind");
            well_described(word, fields);
            types(*kind, &mut |field, ty| match ty {
                Type::Record(inner) => well_described(field.name, inner),
                Type::Choice(words) => {
                    let chosen: BTreeSet<_> = words.iter().map(|word| word.word).collect();
                    assert!(
                        chosen.len() == words.len() && chosen.iter().all(|word| well_formed(word)),
                        "{word}"
                    );
                    assert!(words.iter().all(|word| word.doc.ends_with('.')), "{word}.{}", field.name);
                }
                Type::Bool
                | Type::Integer { .. }
                | Type::Scalar(_)
                | Type::Text
                | Type::Reference(_)
                | Type::Set(_)
                | Type::List(_)
                | Type::NonEmpty(_)
                | Type::Map(_) => {}
            });
            let is_word = |name: &str| Kind::DESCRIPTORS.iter().any(|inner| inner.word == name);
            assert!(
                within.is_some() || !fields.names().any(is_word),
                "{word}: no field is called like a kind inside it"
            );
        }
    }

    #[test]
    fn every_kind_lives_in_a_kind_and_refers_to_kinds_that_come_before_it_or_live_inside_it() {
        for kind in Kind::ALL {
            let Descriptor { word, within, .. } = kind.descriptor();
            assert!(
                within.is_none_or(|holder| holder.parse::<Kind>().is_ok_and(|holder| holder < *kind)),
                "{word}"
            );
            types(*kind, &mut |field, ty| {
                let target = if let Type::Reference(kind) = ty {
                    Some(Target::Kind(kind))
                } else if let Type::Scalar(scalar) = ty {
                    scalar.names.map(Target::NamedBy)
                } else {
                    None
                };
                let Some(target) = target else { return };
                assert!(Kind::meant_by(target).next().is_some(), "{word}.{} refers to a kind", field.name);
                if let Type::Reference(_) = ty {
                    let in_order = |it: Kind| it <= *kind || it.descriptor().within == Some(word);
                    assert!(
                        Kind::meant_by(target).all(in_order),
                        "{word}.{} refers to a later kind",
                        field.name
                    );
                }
            });
        }
    }

    #[test]
    fn kinds_that_the_same_names_share_a_namespace_so_that_a_name_is_of_one_object() {
        for word in Kind::DESCRIPTORS.iter().flat_map(|descriptor| descriptor.named_by) {
            let namespaces: BTreeSet<_> =
                Kind::meant_by(Target::NamedBy(word)).map(|kind| kind.descriptor().namespace).collect();
            assert!(namespaces.len() == 1 && !namespaces.contains(&None), "{word}: {namespaces:?}");
        }
    }

    #[test]
    fn no_collection_holds_a_collection() {
        for kind in Kind::ALL {
            types(*kind, &mut |field, ty| {
                let holds = matches!(ty, Type::Set(_) | Type::List(_)).then(|| ty.inner()).flatten();
                let nested = holds.is_some_and(|inner| inner.inner().is_some());
                assert!(!nested, "{kind}.{}: KDL writes a list as a row of values or blocks", field.name);
            });
        }
    }

    #[test]
    fn every_default_is_a_value_of_its_field() {
        for kind in Kind::ALL {
            for field in kind.descriptor().fields {
                let Some(default) = field.default else { continue };
                let member = FieldValue { key: Key::default(), value: default() };
                let fields = Record::from([(field.name.into(), member)]);
                let mut found = Vec::new();
                kind.read(&fields, Span::default(), &mut found);
                found.retain(|mismatch| mismatch.code != crate::report::Code::MissingField);
                assert!(found.is_empty(), "{kind}.{}: {found:?}", field.name);
            }
        }
    }
}
