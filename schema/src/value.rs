//! Data without a type: what every syntax reads, what the wire and the store carry, what the differ compares.
//!
//! A [`Value`] knows its place in its file; two Values are equal whatever their places. Its JSON form is
//! canonical once serialised by RFC 8785, because a record keeps its fields sorted.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text::count;

/// A stretch of a file, in bytes; empty at 0 where there is no file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The first byte.
    pub start: u32,
    /// The byte after the last one.
    pub end: u32,
}

/// Which of the files that were read together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u32);

/// A place in one of the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The file.
    pub source: SourceId,
    /// The place in it.
    pub span: Span,
}

/// One step from a value to one that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step<'a> {
    /// To the field of that name.
    Field(&'a str),
    /// To the item of a list at that index, from 0; a single value in place of a list of one is its own item.
    Index(usize),
}

impl<'a> Step<'a> {
    /// The name of the field that it leads to, if it does.
    pub fn field(self) -> Option<&'a str> {
        match self {
            Self::Field(name) => Some(name),
            Self::Index(_) => None,
        }
    }
}

/// Data and its place.
#[derive(Clone, Debug)]
pub struct Value {
    /// Its place.
    pub span: Span,
    /// What it is.
    pub data: Data,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Nothing, said explicitly.
    Null,
    /// A name alone, as KDL's `protect`: true in place of a boolean, empty in place of a collection. Bodies
    /// do not hold one.
    Flag,
    /// Yes or no.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction or too large, as it was written: no field takes one, and messages show it.
    Float(Box<str>),
    /// Text.
    Text(Box<str>),
    /// Several values in their order.
    List(Vec<Value>),
    /// Fields by their names.
    Record(Record),
}

/// Fields by their names, sorted.
pub type Record = BTreeMap<Box<str>, FieldValue>;

/// A field of a record.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldValue {
    /// The place of its name.
    pub key: Key,
    /// Its value.
    pub value: Value,
}

/// The place of a field's name; records that differ only in it are equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Key(pub Span);

impl PartialEq for Key {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Span {
    /// From the first byte to the one after the last.
    pub fn new(start: usize, end: usize) -> Self {
        let byte = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Self { start: byte(start), end: byte(end) }
    }
}

impl Value {
    /// A text without a place.
    pub fn text(text: impl Into<Box<str>>) -> Self {
        Data::Text(text.into()).into()
    }

    /// A list without a place.
    pub fn list(items: impl IntoIterator<Item = Value>) -> Self {
        Data::List(items.into_iter().collect()).into()
    }

    /// The fields, if it is a record.
    pub fn as_record(&self) -> Option<&Record> {
        match &self.data {
            Data::Record(record) => Some(record),
            Data::Null
            | Data::Flag
            | Data::Bool(_)
            | Data::Integer(_)
            | Data::Float(_)
            | Data::Text(_)
            | Data::List(_) => None,
        }
    }

    /// The value that one step leads to, if there is one.
    pub fn step(&self, step: Step<'_>) -> Option<&Value> {
        match (step, &self.data) {
            (Step::Field(name), _) => self.field(name),
            (Step::Index(index), Data::List(items)) => items.get(index),
            (Step::Index(0), _) => Some(self),
            (Step::Index(_), _) => None,
        }
    }

    /// The field of that name, if it is a record that has one.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.as_record()?.get(name).map(|member| &member.value)
    }
}

impl Data {
    /// What it is called in messages: `the text "x"`, `the number 5`.
    pub fn describe(&self) -> String {
        match self {
            Self::Null => "an empty value".into(),
            Self::Flag => "a name without a value".into(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Integer(value) => format!("the number {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Text(value) => format!("the text {value:?}"),
            Self::List(items) if items.is_empty() => "an empty list".into(),
            Self::List(items) => format!("a list of {}", count(items.len() as u64, "value")),
            Self::Record(_) => "a block of fields".into(),
        }
    }
}

impl From<Data> for Value {
    fn from(data: Data) -> Self {
        Self { span: Span::default(), data }
    }
}

impl From<Value> for FieldValue {
    fn from(value: Value) -> Self {
        Self { key: Key::default(), value }
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.data == other.data
    }
}

impl Eq for Value {}

/// Writes the value for the readers of a plan: texts bare, lists in brackets.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.data {
            Data::Null => f.write_str("(none)"),
            Data::Flag => f.write_str("true"),
            Data::Bool(value) => value.fmt(f),
            Data::Integer(value) => value.fmt(f),
            Data::Float(value) | Data::Text(value) => f.write_str(value),
            Data::List(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if index > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
            Data::Record(record) => {
                f.write_str("{")?;
                for (index, (name, member)) in record.iter().enumerate() {
                    write!(f, "{}{name}: {}", if index > 0 { ", " } else { "" }, member.value)?;
                }
                f.write_str("}")
            }
        }
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.data {
            Data::Null => serializer.serialize_unit(),
            Data::Flag => serializer.serialize_bool(true),
            Data::Bool(value) => serializer.serialize_bool(*value),
            Data::Integer(value) => serializer.serialize_i64(*value),
            Data::Float(value) | Data::Text(value) => serializer.serialize_str(value),
            Data::List(items) => {
                let mut list = serializer.serialize_seq(Some(items.len()))?;
                for item in items {
                    list.serialize_element(item)?;
                }
                list.end()
            }
            Data::Record(record) => {
                let mut map = serializer.serialize_map(Some(record.len()))?;
                for (name, member) in record {
                    map.serialize_entry(name, &member.value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue).map(Value::from)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Data;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Data, E> {
        Ok(Data::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Data, E> {
        Ok(Data::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Data, E> {
        Ok(Data::Integer(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Data, E> {
        Ok(i64::try_from(value).map_or_else(|_| Data::Float(value.to_string().into()), Data::Integer))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Data, E> {
        Ok(Data::Float(value.to_string().into()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Data, E> {
        Ok(Data::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Data, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element::<Value>()? {
            items.push(item);
        }
        Ok(Data::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Data, A::Error> {
        let mut record = Record::new();
        while let Some((name, value)) = map.next_entry::<Box<str>, Value>()? {
            if record.contains_key(&name) {
                return Err(A::Error::custom(format!("the field {name:?} is given twice")));
            }
            record.insert(name, value.into());
        }
        Ok(Data::Record(record))
    }
}
