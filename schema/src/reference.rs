//! The kinds as a reference: Markdown for people, JSON Schema for REST bodies and for whole YAML files.
//!
//! Everything here is a loop over descriptors and names no kind. The doc comments of kinds, fields and
//! scalars are the prose.

use serde_json::{Map, Value as Json, json};

use crate::descriptor::{Descriptor, Field, Fields, ScalarType, Type, Word, with_article};
use crate::value::Value;

const HEAD: &str = "\
# Kinds

<!-- Generated from the descriptions in the source: UPDATE=1 cargo test -p schema --test reference -->

What may be declared, and every field of it. A field is written in KDL as `field=value` after the name or as
`field value` in the block, in YAML as `field: value`; a field that is absent has its default. Of several values, KDL
has a row (`tags \"web\" \"db\"`) and YAML a list; a single value may be written in place of a list of one.
";

const PROJECT_HEAD: &str = "\
# The project file

<!-- Generated from the descriptions in the source: UPDATE=1 cargo test -p schema --test reference -->

`nmplan.kdl` (or `nmplan.yaml`) names the project of a directory, its variables and its envs. `${name}` inside a value
of a declaring file stands for a variable; `$${` is a literal `${`. A directory without such a file can be validated and
planned: its env is `default`, and every file in it is read.
";

/// The paragraph for kinds with fields that hold blocks.
const BLOCKS: &str = "\
A block of fields is written in KDL as `word field=value` or with braces, in YAML as a map; where several may be given, KDL
repeats the word and YAML has a list of maps.
";

/// The reference of the kinds in Markdown: for each its fields, then the scalars that they hold.
pub fn markdown(kinds: &[&'static Descriptor]) -> String {
    written(HEAD, kinds, |kind| format!("{}.kdl", kind.word))
}

/// The reference of what a project file holds; one example shows all of it.
pub fn project_markdown(kinds: &[&'static Descriptor]) -> String {
    written(PROJECT_HEAD, kinds, |_| "nmplan.kdl".to_owned())
}

fn written(head: &str, kinds: &[&'static Descriptor], example: impl Fn(&Descriptor) -> String) -> String {
    let sections = kinds.iter().map(|kind| section(kind, &example(kind)));
    let scalars: Vec<_> = scalars(kinds).into_iter().map(|scalar| scalar_section(scalar, kinds)).collect();
    let blocks = kinds.iter().any(|kind| kind.fields.iter().any(|field| field.ty.record().is_some()));
    let middle = (!scalars.is_empty()).then(|| "## Values\n".to_owned());
    [head.to_owned()]
        .into_iter()
        .chain(blocks.then(|| BLOCKS.to_owned()))
        .chain(sections)
        .chain(middle)
        .chain(scalars)
        .collect::<Vec<_>>()
        .join("\n")
}

/// The JSON Schema of the body of each kind in its canonical form, by the kind's word: the
/// `components.schemas` of an OpenAPI 3.1 document.
pub fn components(kinds: &[&Descriptor]) -> Json {
    kinds
        .iter()
        .map(|kind| (kind.word.to_owned(), record(kind.fields, Form::Body)))
        .collect::<Map<_, _>>()
        .into()
}

/// The JSON Schema (draft 2020-12) of a YAML file that holds these kinds: what editors check while a user
/// types.
pub fn file_schema(kinds: &[&Descriptor]) -> Json {
    let definitions: Map<_, _> =
        kinds.iter().map(|kind| (kind.word.to_owned(), object(kind, kinds))).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": ["object", "null"],
        "properties": collections(None, kinds),
        "additionalProperties": false,
        "$defs": definitions,
    })
}

fn section(kind: &Descriptor, example: &str) -> String {
    let Descriptor { word, plural, within, fields, .. } = kind;
    let doc = fields.doc;
    let place =
        within.map_or("at the top of a file".to_owned(), |holder| format!("inside {}", with_article(holder)));
    let mut text = format!("## {word}\n\n{doc}\n\n");
    text += &match kind.named {
        true => {
            format!("It is written {place}: in KDL as `{word} \"NAME\"`, in YAML as an entry of `{plural}`. ")
        }
        false => {
            format!("It is written {place}, once and without a name: in KDL and in YAML as `{word}`. ")
        }
    };
    text += &format!("[{example}]({example}) shows every field.\n\n");
    text + &table(fields) + &records(word, fields)
}

fn table(fields: &Fields) -> String {
    let mut text = "| field | holds | default | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for field in fields {
        let Field { name, doc, ty, .. } = field;
        text += &format!(
            "| `{name}` | {} | {} | {} |\n",
            held(ty),
            default(field),
            cell(&(doc.to_string() + &words(ty)))
        );
    }
    text
}

/// What each word of a choice means, as paragraphs after the meaning of its field.
fn words(ty: &Type) -> String {
    if let Type::Choice(words) = ty {
        return words.iter().map(|Word { word, doc }| format!("\n\n`{word}`: {doc}")).collect();
    }
    ty.inner().map(words).unwrap_or_default()
}

/// The tables of the blocks in fields, and in fields of those.
fn records(path: &str, fields: &Fields) -> String {
    let with_records = fields.iter().filter_map(|field| Some((field.name, field.ty.record()?)));
    let section = |(name, inner): (&str, &Fields)| {
        let path = format!("{path} {name}");
        format!("\n### {path}\n\n{}\n\n{}{}", inner.doc, table(inner), records(&path, inner))
    };
    with_records.map(section).collect()
}

fn scalar_section(scalar: &ScalarType, kinds: &[&Descriptor]) -> String {
    let ScalarType { name, doc, good, bad, names, .. } = scalar;
    let list = |texts: &[&str]| texts.iter().map(|text| format!("`{text:?}`")).collect::<Vec<_>>().join(", ");
    let named = kinds.iter().filter(|kind| names.is_some_and(|word| kind.named_by.contains(&word)));
    let named: Vec<_> = named.map(|kind| format!("[{0}](#{0})", kind.word)).collect();
    let named = match &*named {
        [] => String::new(),
        named => format!(" The name is that of one of these in the network: {}.", named.join(", ")),
    };
    format!("### {name}\n\n{doc}{named}\n\nFor example {}; but not {}.\n", list(good), list(bad))
}

/// What a field holds, in a few words with links.
fn held(ty: &Type) -> String {
    match ty {
        Type::Bool => "a boolean".into(),
        Type::Integer { min, max } => format!("a whole number, {min} to {max}"),
        Type::Scalar(scalar) => format!("[{}](#{})", scalar.name, anchor(scalar.name)),
        Type::Text => "a text".into(),
        Type::Reference(kind) => format!("the name of a [{kind}](#{kind})"),
        Type::Choice(words) => {
            let words: Vec<_> = words.iter().map(|word| format!("`{}`", word.word)).collect();
            format!("one of {}", words.join(", "))
        }
        Type::Set(inner) => format!("any number, each {}", held(inner)),
        Type::List(inner) => format!("any number in order, each {}", held(inner)),
        Type::NonEmpty(inner) => held(inner).replacen("any number", "at least one", 1),
        Type::Map(inner) => format!("any number by name, each {}", held(inner)),
        Type::Record(_) => "a block of fields, below".into(),
    }
}

/// The anchor that Markdown renderers make of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn default(field: &Field) -> String {
    match field.default {
        Some(default) => format!("`{}`", default()),
        None if field.required => "must be given".into(),
        None => "absent".into(),
    }
}

/// A text as a cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace("\n\n", "<br>")
}

/// The scalars that fields of the kinds hold, each once, in the order of their first use.
fn scalars(kinds: &[&'static Descriptor]) -> Vec<&'static ScalarType> {
    let mut scalars: Vec<&ScalarType> = Vec::new();
    for field in kinds.iter().flat_map(|kind| kind.fields.iter()) {
        field.ty.walk(&mut |ty| {
            if let Type::Scalar(scalar) = ty
                && scalars.iter().all(|known| known.name != scalar.name)
            {
                scalars.push(scalar);
            }
        });
    }
    scalars
}

/// The collections inside a holder, or at the top of a file: by names, or as names alone.
fn collections(holder: Option<&str>, kinds: &[&Descriptor]) -> Map<String, Json> {
    let inside = kinds.iter().filter(|kind| kind.within == holder);
    let collection = |kind: &&Descriptor| {
        let object = json!({ "$ref": format!("#/$defs/{}", kind.word) });
        if !kind.named {
            return (kind.plural.to_owned(), object);
        }
        let names =
            json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] });
        let by_name = json!({ "type": ["object", "null"], "additionalProperties": object });
        (kind.plural.to_owned(), json!({ "description": kind.fields.doc, "anyOf": [by_name, names] }))
    };
    inside.map(collection).collect()
}

/// An object as an entry of a file: its fields, and the collections inside it.
fn object(kind: &Descriptor, kinds: &[&Descriptor]) -> Json {
    let mut schema = record(kind.fields, Form::File);
    schema["type"] = json!(["object", "null"]);
    if let Some(properties) = schema["properties"].as_object_mut() {
        properties.extend(collections(Some(kind.word), kinds));
    }
    schema
}

fn record(fields: &Fields, form: Form) -> Json {
    let property = |field: &'static Field| {
        let mut schema = schema(&field.ty, form);
        schema["description"] = field.doc.into();
        if let Some(default) = field.default {
            schema["default"] = literal(&default());
        }
        (field.name.to_owned(), schema)
    };
    let required: Vec<_> = fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    json!({
        "type": "object",
        "description": fields.doc,
        "properties": fields.iter().map(property).collect::<Map<_, _>>(),
        "required": required,
        "additionalProperties": false,
    })
}

fn literal(value: &Value) -> Json {
    serde_json::to_value(value).expect("a value can be written as JSON")
}

/// What a schema describes.
#[derive(Clone, Copy)]
enum Form {
    /// Bodies: every value in canonical form.
    Body,
    /// Files: a single value may be written in place of a set or list of one.
    File,
}

fn schema(ty: &Type, form: Form) -> Json {
    match (ty, form) {
        (Type::Bool, _) => json!({ "type": "boolean" }),
        (Type::Integer { min, max }, _) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        (Type::Scalar(scalar), _) => {
            let types = if scalar.integer { json!(["string", "integer"]) } else { json!("string") };
            json!({ "type": types, "title": scalar.name, "examples": scalar.good })
        }
        (Type::Text, _) => json!({ "type": "string" }),
        (Type::Choice(words), _) => json!({ "enum": words.iter().map(|word| word.word).collect::<Vec<_>>() }),
        (Type::Reference(kind), _) => {
            json!({ "type": "string", "title": format!("the name of {}", with_article(kind)) })
        }
        (Type::Set(inner), Form::Body) => {
            json!({ "type": "array", "items": schema(inner, form), "uniqueItems": true })
        }
        (Type::List(inner), Form::Body) => json!({ "type": "array", "items": schema(inner, form) }),
        (Type::Set(inner) | Type::List(inner), Form::File) => {
            let element = schema(inner, form);
            json!({ "anyOf": [element, { "type": "array", "items": element }] })
        }
        (Type::NonEmpty(inner), _) => {
            // The keyword binds arrays alone, so that it may be next to the choice between an element and an
            // array.
            let mut schema = schema(inner, form);
            schema["minItems"] = json!(1);
            schema
        }
        (Type::Map(inner), _) => json!({ "type": "object", "additionalProperties": schema(inner, form) }),
        (Type::Record(fields), _) => record(fields, form),
    }
}
