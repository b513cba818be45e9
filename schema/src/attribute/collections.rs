//! Collections as fields: sets, lists, maps, and those that may not be empty.
//!
//! A single value is a collection of one, and a word without a value an empty one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

use super::{Attribute, Mismatch, wrong_type};
use crate::descriptor::{Reference, Type};
use crate::report::Code;
use crate::value::{Data, FieldValue, Step, Value};

/// A collection with at least one value in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NonEmpty<C>(C);

/// A collection that can be empty.
pub trait Collection: Attribute {
    /// Whether nothing is in it.
    fn is_empty(&self) -> bool;
}

impl<T: Attribute + Ord> Attribute for BTreeSet<T> {
    const TYPE: Type = Type::Set(&T::TYPE);
    const REQUIRED: bool = false;

    fn absent() -> Option<Self> {
        Some(Self::new())
    }

    fn from_value(value: &Value, found: &mut Vec<Mismatch>) -> Option<Self> {
        items(value, found)
    }

    fn to_value(&self) -> Value {
        Value::list(self.iter().map(T::to_value))
    }

    fn references(&self, visit: &mut dyn FnMut(Reference<'_>)) {
        self.iter().for_each(|it| it.references(visit));
    }
}

impl<T: Attribute> Attribute for Vec<T> {
    const TYPE: Type = Type::List(&T::TYPE);
    const REQUIRED: bool = false;

    fn absent() -> Option<Self> {
        Some(Self::new())
    }

    fn from_value(value: &Value, found: &mut Vec<Mismatch>) -> Option<Self> {
        items(value, found)
    }

    fn to_value(&self) -> Value {
        Value::list(self.iter().map(T::to_value))
    }

    fn references(&self, visit: &mut dyn FnMut(Reference<'_>)) {
        for (index, it) in self.iter().enumerate() {
            it.references(&mut |reference| visit(reference.inside(Step::Index(index))));
        }
    }
}

/// Reads every item of a collection, reporting all that is wrong; nothing if anything is.
fn items<T: Attribute, C: FromIterator<T>>(value: &Value, found: &mut Vec<Mismatch>) -> Option<C> {
    let items = match &value.data {
        Data::List(items) => items.as_slice(),
        Data::Flag => &[],
        Data::Null | Data::Bool(_) | Data::Integer(_) | Data::Float(_) | Data::Text(_) | Data::Record(_) => {
            std::slice::from_ref(value)
        }
    };
    let read: Vec<Option<T>> = items.iter().map(|item| T::from_value(item, found)).collect();
    read.into_iter().collect()
}

impl<T: Attribute> Attribute for BTreeMap<Box<str>, T> {
    const TYPE: Type = Type::Map(&T::TYPE);
    const REQUIRED: bool = false;

    fn absent() -> Option<Self> {
        Some(Self::new())
    }

    fn from_value(value: &Value, found: &mut Vec<Mismatch>) -> Option<Self> {
        let record = match &value.data {
            Data::Record(record) => record,
            Data::Flag => return Some(Self::new()),
            Data::Null
            | Data::Bool(_)
            | Data::Integer(_)
            | Data::Float(_)
            | Data::Text(_)
            | Data::List(_) => {
                found.push(wrong_type(value, "a block of names and values", None));
                return None;
            }
        };
        let read = record.iter().map(|(name, member)| (name, T::from_value(&member.value, found)));
        let read: Vec<_> = read.collect();
        read.into_iter().map(|(name, item)| Some((name.clone(), item?))).collect()
    }

    fn to_value(&self) -> Value {
        let written = self.iter().map(|(name, item)| (name.clone(), FieldValue::from(item.to_value())));
        Data::Record(written.collect()).into()
    }

    /// The names of a map are not part of the path, since they are not names of fields.
    fn references(&self, visit: &mut dyn FnMut(Reference<'_>)) {
        self.values().for_each(|it| it.references(visit));
    }
}

impl<T: Attribute + Ord> Collection for BTreeSet<T> {
    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl<T: Attribute> Collection for Vec<T> {
    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

impl<C: Collection> NonEmpty<C> {
    /// The collection, if anything is in it.
    pub fn new(of: C) -> Option<Self> {
        (!of.is_empty()).then_some(Self(of))
    }
}

impl<C> Deref for NonEmpty<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.0
    }
}

impl<C: Collection> Attribute for NonEmpty<C> {
    const TYPE: Type = Type::NonEmpty(&C::TYPE);

    fn from_value(value: &Value, found: &mut Vec<Mismatch>) -> Option<Self> {
        let of = C::from_value(value, found)?;
        let read = Self::new(of);
        if read.is_none() {
            found.push(Mismatch {
                code: Code::InvalidValue,
                span: value.span,
                message: "at least one value belongs here".into(),
                help: Some("write one or more".into()),
            });
        }
        read
    }

    fn to_value(&self) -> Value {
        self.0.to_value()
    }

    fn references(&self, visit: &mut dyn FnMut(Reference<'_>)) {
        self.0.references(visit);
    }
}
