//! Which types a field may have, and how each is read and written.
//!
//! Types bring their own facts through [`Attribute`]; an attribute in the source exists only for what a type
//! cannot carry. The derives emit data and a loop over fields: [`Describe`] for a class of objects, `Record`
//! for a struct inside one, [`Choice`] for words to choose from. Collections are in [`collections`].
//!
//! A field that equals its default, or what its type is when absent, is never written. So a field that is
//! added changes no body that does not use it.

pub mod collections;

use std::marker::PhantomData;

use crate::descriptor::{Descriptor, Field, Fields, Reference, ScalarType, Target, Type, Word, with_article};
use crate::report::{Code, did_you_mean};
use crate::scalars::{Name, Scalar};
use crate::value::{Data, FieldValue, Record, Span, Value};

pub use collections::NonEmpty;

/// A type that a field may have.
pub trait Attribute: Sized {
    /// The type as data.
    const TYPE: Type;
    /// Whether a field of this type must be given.
    const REQUIRED: bool = true;
    /// The value where the field is not given, for types that may be absent.
    fn absent() -> Option<Self> {
        None
    }
    /// Reads a value, reporting all that is wrong with it.
    fn from_value(value: &Value, found: &mut Vec<Mismatch>) -> Option<Self>;
    /// Writes the canonical value.
    fn to_value(&self) -> Value;
    /// Visits every name of another resource that the value holds.
    fn references(&self, _visit: &mut dyn FnMut(Reference<'_>)) {}
}

/// A struct with described fields; derived.
pub trait Struct: Sized {
    /// The fields as data.
    const FIELDS: &'static Fields;
    /// Reads every field, reporting all that is wrong; nothing if anything is.
    fn read(fields: &mut Reader<'_>) -> Option<Self>;
    /// Writes every field that differs from its default.
    fn write(&self, fields: &mut Writer);
    /// Visits every name of another resource that its fields hold.
    fn references(&self, visit: &mut dyn FnMut(Reference<'_>));
}

/// A struct that is a class of objects; derived.
pub trait Describe: Struct {
    /// The word of its descriptor, apart from it so that kinds may refer to each other.
    const WORD: &'static str;
    /// The class as data.
    const DESCRIPTOR: &'static Descriptor;
}

/// An enum of words to choose from; derived.
pub trait Choice: Copy + 'static {
    /// The words, one for each of [`Choice::ALL`].
    const WORDS: &'static [Word];
    /// Every variant, in order.
    const ALL: &'static [Self];
    /// The index of this one among them.
    fn index(self) -> usize;
    /// The word of this one.
    fn word(self) -> &'static str {
        Self::WORDS[self.index()].word
    }
}

/// What is wrong with a value.
#[derive(Debug)]
pub struct Mismatch {
    /// Which of the problems.
    pub code: Code,
    /// Where, in the file of the document.
    pub span: Span,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

/// A reference to a resource of a kind in the same network; the rules check that the resource exists.
pub struct Ref<T> {
    /// The name of the resource.
    pub name: Name,
    kind: PhantomData<fn() -> T>,
}

/// A whole number between two bounds, both allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bounded<const MIN: i64, const MAX: i64>(i64);

/// Fields, being read.
pub struct Reader<'a> {
    record: &'a Record,
    fields: &'static Fields,
    what: &'a str,
    header: Span,
    found: &'a mut Vec<Mismatch>,
}

/// Fields, being written.
#[derive(Debug, Default)]
pub struct Writer {
    record: Record,
}

/// Reads an object from its fields. Every field that is unknown, missing or of the wrong type is reported,
/// and nothing is returned if there is one. `header` is the place of its name.
pub fn read<T: Describe>(record: &Record, header: Span, found: &mut Vec<Mismatch>) -> Option<T> {
    read_fields(record, &with_article(T::WORD), header, found)
}

/// Writes an object as a record in canonical form.
pub fn write<T: Struct>(it: &T) -> Value {
    let mut writer = Writer::default();
    it.write(&mut writer);
    Data::Record(writer.record).into()
}

/// Reads a struct inside an object.
pub fn record_from_value<T: Struct>(value: &Value, found: &mut Vec<Mismatch>) -> Option<T> {
    let Some(record) = value.as_record() else {
        let names = T::FIELDS.names().collect::<Vec<_>>().join(", ");
        found.push(wrong_type(value, "a block of fields", Some(format!("its fields are {names}"))));
        return None;
    };
    read_fields(record, "this block", value.span, found)
}

fn read_fields<T: Struct>(record: &Record, what: &str, header: Span, found: &mut Vec<Mismatch>) -> Option<T> {
    let before = found.len();
    for (name, member) in record.iter().filter(|(name, _)| T::FIELDS.get(name).is_none()) {
        found.push(Mismatch {
            code: Code::UnknownField,
            span: member.key.0,
            message: format!("{what} has no field {name:?}"),
            help: Some(help_for_field(T::FIELDS, name)),
        });
    }
    let mut reader = Reader { record, fields: T::FIELDS, what, header, found };
    let read = T::read(&mut reader);
    if found.len() > before { None } else { read }
}

fn help_for_field(of: &Fields, name: &str) -> String {
    let names = of.names();
    if let Some(help) = did_you_mean(name, names.clone()) {
        return help;
    }
    match names.collect::<Vec<_>>() {
        names if names.is_empty() => "it has no fields at all".into(),
        names => format!("its fields are {}", names.join(", ")),
    }
}

impl Reader<'_> {
    /// Reads the field at that place of the description, or takes its default.
    pub fn take<T: Attribute>(&mut self, index: usize, default: impl FnOnce() -> Option<T>) -> Option<T> {
        let field = &self.fields.fields[index];
        if let Some(member) = self.record.get(field.name) {
            return T::from_value(&member.value, self.found);
        }
        let absent = default().or_else(T::absent);
        if absent.is_none() {
            self.found.push(Mismatch {
                code: Code::MissingField,
                span: self.header,
                message: format!("{} needs the field {:?}", self.what, field.name),
                help: Some(example(&field.ty)),
            });
        }
        absent
    }
}

fn example(ty: &Type) -> String {
    match ty {
        Type::Scalar(scalar) => format!("give it a value such as {:?}", scalar.good[0]),
        Type::Integer { min, .. } => format!("give it a value such as {min}"),
        Type::Bool => "give it a value such as true".into(),
        Type::Choice(words) => format!("choose {}", one_of(words)),
        Type::Reference(kind) => format!("give it the name of {}", with_article(kind)),
        Type::Text => "give it a value such as \"...\"".into(),
        Type::Set(inner) | Type::List(inner) | Type::NonEmpty(inner) => example(inner),
        Type::Map(_) => "give it a block of names and values".into(),
        Type::Record(fields) => {
            format!("give it a block with its fields: {}", fields.names().collect::<Vec<_>>().join(", "))
        }
    }
}

impl Writer {
    /// Writes a field, unless it holds what its absence means.
    pub fn put<T: Attribute>(&mut self, field: &'static Field, value: &T) {
        let value = value.to_value();
        let absent = field.default.map(|default| default()).or_else(|| T::absent().as_ref().map(T::to_value));
        if absent.as_ref() != Some(&value) {
            self.record.insert(field.name.into(), FieldValue::from(value));
        }
    }
}

/// "X belongs here, not Y"; without help of its own it says what to do about the form of Y.
fn wrong_type(value: &Value, wanted: &str, help: Option<String>) -> Mismatch {
    let message = format!("{wanted} belongs here, not {}", value.data.describe());
    let help = help.or_else(|| help_for_form(&value.data).map(str::to_owned));
    Mismatch { code: Code::WrongType, span: value.span, message, help }
}

fn help_for_form(data: &Data) -> Option<&'static str> {
    match data {
        Data::Null => Some("give it a value, or remove the field"),
        Data::Flag => Some("write the value after it"),
        Data::List(_) => Some("give it one value"),
        Data::Record(_) => Some("give it a value in place of the block"),
        Data::Bool(_) | Data::Integer(_) | Data::Float(_) | Data::Text(_) => None,
    }
}

impl Attribute for bool {
    const TYPE: Type = Type::Bool;

    fn from_value(value: &Value, found: &mut Vec<Mismatch>) -> Option<Self> {
        match &value.data {
            Data::Bool(it) => return Some(*it),
            Data::Flag => return Some(true),
            Data::Text(text) if matches!(&**text, "true" | "false" | "yes" | "no" | "on" | "off") => {
                let help = "write true or false without quotes (in KDL #true or #false)";
                found.push(wrong_type(value, "a boolean", Some(help.into())));
            }
            Data::Null
            | Data::Integer(_)
            | Data::Float(_)
            | Data::Text(_)
            | Data::List(_)
            | Data::Record(_) => {
                found.push(wrong_type(value, "a boolean", None));
            }
        }
        None
    }

    fn to_value(&self) -> Value {
        Data::Bool(*self).into()
    }
}

impl<const MIN: i64, const MAX: i64> Bounded<MIN, MAX> {
    /// The number if it lies between the bounds; a bound that lies outside of them is a mistake of the
    /// caller, and refused when it is compiled in a `const`.
    pub const fn new(number: i64) -> Self {
        assert!(number >= MIN && number <= MAX, "the number lies outside of the bounds of its type");
        Self(number)
    }

    /// The number.
    pub const fn number(self) -> i64 {
        self.0
    }
}

impl<const MIN: i64, const MAX: i64> Attribute for Bounded<MIN, MAX> {
    const TYPE: Type = Type::Integer { min: MIN, max: MAX };

    fn from_value(value: &Value, found: &mut Vec<Mismatch>) -> Option<Self> {
        match &value.data {
            Data::Integer(number) if (MIN..=MAX).contains(number) => return Some(Self(*number)),
            Data::Integer(number) => found.push(Mismatch {
                code: Code::InvalidValue,
                span: value.span,
                message: format!("{number} is not a whole number from {MIN} to {MAX}"),
                help: None,
            }),
            Data::Text(text) => {
                let number: Option<i64> = text.parse().ok();
                let help = number.map(|number| format!("write {number}, without quotes and leading zeros"));
                found.push(wrong_type(value, "a whole number", help));
            }
            Data::Null | Data::Flag | Data::Bool(_) | Data::Float(_) | Data::List(_) | Data::Record(_) => {
                found.push(wrong_type(value, "a whole number", None));
            }
        }
        None
    }

    fn to_value(&self) -> Value {
        Data::Integer(self.0).into()
    }
}

impl Attribute for Box<str> {
    const TYPE: Type = Type::Text;

    fn from_value(value: &Value, found: &mut Vec<Mismatch>) -> Option<Self> {
        if let Data::Text(text) = &value.data {
            return Some(text.clone());
        }
        found.push(wrong_type(value, "a text", bare(&value.data).map(|text| in_quotes(&text))));
        None
    }

    fn to_value(&self) -> Value {
        Value::text(self.clone())
    }
}

/// The text that a value without quotes would be with them.
fn bare(data: &Data) -> Option<String> {
    match data {
        Data::Bool(it) => Some(it.to_string()),
        Data::Integer(it) => Some(it.to_string()),
        Data::Float(it) => Some(it.to_string()),
        Data::Null | Data::Flag | Data::Text(_) | Data::List(_) | Data::Record(_) => None,
    }
}

fn in_quotes(text: &str) -> String {
    format!("put it in quotes: {text:?}")
}

fn examples<T: Scalar>() -> String {
    let examples: Vec<_> = T::GOOD.iter().take(2).map(|good| format!("{good:?}")).collect();
    format!("for example: {}", examples.join(", "))
}

/// Reads a scalar as a field.
pub fn scalar_from_value<T: Scalar>(value: &Value, found: &mut Vec<Mismatch>) -> Option<T> {
    let (given, meant, parsed) = match &value.data {
        Data::Text(text) => (format!("{text:?}"), T::meant(text), text.parse()),
        Data::Integer(number) if T::INTEGER.is_some() => (number.to_string(), None, T::from_integer(*number)),
        Data::Null
        | Data::Flag
        | Data::Bool(_)
        | Data::Integer(_)
        | Data::Float(_)
        | Data::List(_)
        | Data::Record(_) => {
            let help = bare(&value.data).map(|text| match text.parse::<T>() {
                Ok(_) => in_quotes(&text),
                Err(_) => examples::<T>(),
            });
            found.push(wrong_type(value, T::NAME, help));
            return None;
        }
    };
    let why = match parsed {
        Ok(it) => return Some(it),
        Err(why) => why,
    };
    found.push(Mismatch {
        code: Code::InvalidValue,
        span: value.span,
        message: format!("{given} is not {}: {why}", T::NAME),
        help: Some(meant.map_or_else(examples::<T>, |meant| format!("did you mean {meant:?}?"))),
    });
    None
}

impl<T: Scalar> Attribute for T {
    const TYPE: Type = Type::Scalar(&ScalarType {
        name: T::NAME,
        doc: T::DOC,
        good: T::GOOD,
        bad: T::BAD,
        integer: T::INTEGER.is_some(),
        names: T::NAMES,
    });

    fn from_value(value: &Value, found: &mut Vec<Mismatch>) -> Option<Self> {
        scalar_from_value(value, found)
    }

    fn to_value(&self) -> Value {
        let number = T::INTEGER.and_then(|number| number(self));
        number.map_or_else(|| Value::text(self.to_string()), |number| Data::Integer(number).into())
    }

    fn references(&self, visit: &mut dyn FnMut(Reference<'_>)) {
        self.reference().into_iter().for_each(visit);
    }
}

/// Reads a choice as a field.
pub fn choice_from_value<T: Choice>(value: &Value, found: &mut Vec<Mismatch>) -> Option<T> {
    let Data::Text(text) = &value.data else {
        found.push(wrong_type(value, &one_of(T::WORDS), None));
        return None;
    };
    let chosen = T::ALL.iter().copied().find(|choice| *choice.word() == **text);
    if chosen.is_none() {
        let meant = did_you_mean(text, T::WORDS.iter().map(|word| word.word));
        found.push(Mismatch {
            code: Code::InvalidValue,
            span: value.span,
            message: format!("{text:?} is not {}", one_of(T::WORDS)),
            help: Some(meant.unwrap_or_else(|| format!("choose {}", one_of(T::WORDS)))),
        });
    }
    chosen
}

/// `one of tcp, udp, icmp`.
fn one_of(words: &[Word]) -> String {
    let words: Vec<_> = words.iter().map(|word| word.word).collect();
    format!("one of {}", words.join(", "))
}

impl<T: Describe> Attribute for Ref<T> {
    const TYPE: Type = Type::Reference(T::WORD);

    fn from_value(value: &Value, found: &mut Vec<Mismatch>) -> Option<Self> {
        scalar_from_value(value, found).map(|name| Self { name, kind: PhantomData })
    }

    fn to_value(&self) -> Value {
        Value::text(self.name.as_str())
    }

    fn references(&self, visit: &mut dyn FnMut(Reference<'_>)) {
        let name = self.name.as_str();
        let to = Target::Kind(T::WORD);
        visit(Reference { to, network: None, name, text: name, builds: true, path: Vec::new() });
    }
}

/// Absent is not the same as empty: a collection that may be absent distinguishes the two.
impl<T: Attribute> Attribute for Option<T> {
    const TYPE: Type = T::TYPE;
    const REQUIRED: bool = false;

    fn absent() -> Option<Self> {
        Some(None)
    }

    fn from_value(value: &Value, found: &mut Vec<Mismatch>) -> Option<Self> {
        T::from_value(value, found).map(Some)
    }

    fn to_value(&self) -> Value {
        self.as_ref().map_or_else(|| Data::Null.into(), T::to_value)
    }

    fn references(&self, visit: &mut dyn FnMut(Reference<'_>)) {
        self.iter().for_each(|it| it.references(visit));
    }
}

impl<T> Ref<T> {
    /// A reference to the resource of that name.
    pub fn new(name: Name) -> Self {
        Self { name, kind: PhantomData }
    }
}

impl<T> Clone for Ref<T> {
    fn clone(&self) -> Self {
        Self::new(self.name.clone())
    }
}

impl<T> std::fmt::Debug for Ref<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.name.fmt(f)
    }
}

impl<T> PartialEq for Ref<T> {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl<T> Eq for Ref<T> {}

impl<T> PartialOrd for Ref<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Ref<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.name.cmp(&other.name)
    }
}
