//! Adds a field to an object in its file, and leaves every other byte of the file as it is.
//!
//! Where a field may stand depends on how the object is written. So each place is tried, and the first is taken
//! with which the file reads as before but for that field.

use super::{Language, Source, kdl, parse};
use crate::descriptor::Descriptor;
use crate::document::Document;
use crate::value::{Data, SourceId, Span};

/// The text of a file with one more field, a text, in the object whose name is at `name`. Nothing if the
/// object has the field, cannot be found, or is written so that no place for it is known.
pub fn insert(
    source: &Source,
    kinds: &'static [&'static Descriptor],
    name: Span,
    field: &str,
    value: &str,
) -> Option<String> {
    let documents = read(source, kinds)?;
    let number = documents.iter().position(|document| document.name.span == name)?;
    let is_wanted = |text: &String| {
        let changed = Source { text: text.as_str().into(), ..source.clone() };
        read(&changed, kinds).is_some_and(|changed| has_one_more(&documents, &changed, number, field, value))
    };
    candidates(source, &documents[number], field, value).into_iter().find(is_wanted)
}

fn read(source: &Source, kinds: &'static [&'static Descriptor]) -> Option<Vec<Document>> {
    let (documents, report) = parse(source, SourceId(0), kinds);
    (!report.has_errors()).then_some(documents)
}

/// The texts to try.
fn candidates(source: &Source, document: &Document, field: &str, value: &str) -> Vec<String> {
    let with = |at: usize, what: String| {
        let (before, after) = source.text.split_at_checked(at)?;
        Some([before, &what, after].concat())
    };
    match source.language {
        Language::Kdl => {
            let property = format!(" {field}={}", kdl::quoted(value));
            with(document.name.span.end as usize, property).into_iter().collect()
        }
        Language::Yaml => {
            let Some(first) = document.fields.values().map(|member| member.key.0.start as usize).min() else {
                return Vec::new();
            };
            // Base64, names and addresses need no escape; what does is refused by the comparison.
            let entry = format!("{field}: \"{value}\"");
            let before = source.text.get(..first).unwrap_or_default();
            let indent = &before[before.rfind('\n').map_or(0, |end| end + 1)..];
            let line_end = if before.ends_with(&format!("\r\n{indent}")) { "\r\n" } else { "\n" };
            let line = with(first, format!("{entry}{line_end}{indent}"));
            line.into_iter().chain(with(first, format!("{entry}, "))).collect()
        }
    }
}

/// Whether documents are as before, but for one more field of one of them.
fn has_one_more(before: &[Document], after: &[Document], number: usize, field: &str, value: &str) -> bool {
    let same = |(index, (before, after)): (usize, (&Document, &Document))| {
        let mut fields = after.fields.clone();
        let added = if index == number { fields.remove(field) } else { None };
        let is_added = |added: crate::value::FieldValue| matches!(&added.value.data, Data::Text(text) if **text == *value);
        let parent = |document: &Document| document.parent.as_ref().map(|parent| parent.text.clone());
        std::ptr::eq(before.descriptor, after.descriptor)
            && (&before.name.text, parent(before)) == (&after.name.text, parent(after))
            && before.whole == after.whole
            && before.fields == fields
            && (index != number || added.is_some_and(is_added))
    };
    before.len() == after.len() && before.iter().zip(after).enumerate().all(same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Kind;

    /// The text with a public key for the client of that name.
    fn added(text: &str, language: Language, name: &str) -> Option<String> {
        let source = Source { name: "mesh".into(), text: text.into(), language };
        let documents = read(&source, Kind::DESCRIPTORS)?;
        let at = documents.iter().find(|document| &*document.name.text == name)?.name.span;
        insert(&source, Kind::DESCRIPTORS, at, "public-key", "k+/=")
    }

    #[test]
    fn a_field_stands_after_the_name_in_kdl() {
        for (before, after) in [
            (
                "network \"n\" { external-client \"a\" via=\"i\" } // end",
                "network \"n\" { external-client \"a\" public-key=\"k+/=\" via=\"i\" } // end",
            ),
            (
                "network n {\r\n\texternal-client  a /* x */ {\r\n via \"i\"; }\r\n}",
                "network n {\r\n\texternal-client  a public-key=\"k+/=\" /* x */ {\r\n via \"i\"; }\r\n}",
            ),
            (
                "\u{feff}network n { external-client #\"a\"# \\\n via=i }",
                "\u{feff}network n { external-client #\"a\"# public-key=\"k+/=\" \\\n via=i }",
            ),
        ] {
            assert_eq!(added(before, Language::Kdl, "a").as_deref(), Some(after));
        }
    }

    #[test]
    fn a_field_stands_before_the_first_in_yaml_as_that_is_written() {
        let network = |clients: &str| format!("networks:\n  n:\n    external-clients:\n{clients}");
        for (before, after) in [
            (
                "      a:\n        via: i # x\n",
                "      a:\n        public-key: \"k+/=\"\n        via: i # x\n",
            ),
            (
                "      a:\r\n        via: i\r\n",
                "      a:\r\n        public-key: \"k+/=\"\r\n        via: i\r\n",
            ),
            ("      a: { via: i }\n", "      a: { public-key: \"k+/=\", via: i }\n"),
            (
                "      a: {via: i}\n      b: {via: i}",
                "      a: {public-key: \"k+/=\", via: i}\n      b: {via: i}",
            ),
            (
                "      a: {\n        via: i\n      }\n",
                "      a: {\n        public-key: \"k+/=\", via: i\n      }\n",
            ),
            (
                "      a:\n        # first\n        tags: [x]\n        via: i\n",
                "      a:\n        # first\n        public-key: \"k+/=\"\n        tags: [x]\n        via: i\n",
            ),
        ] {
            assert_eq!(added(&network(before), Language::Yaml, "a"), Some(network(after)), "{before}");
        }
        let json = r#"{"networks": {"n": {"external-clients": {"a": {"via": "i"}}}}}"#;
        let after = r#"{"networks": {"n": {"external-clients": {"a": {public-key: "k+/=", "via": "i"}}}}}"#;
        assert_eq!(added(json, Language::Yaml, "a").as_deref(), Some(after));
    }

    #[test]
    fn where_no_place_is_known_nothing_is_changed() {
        for text in [
            "network n { external-client a public-key=x via=i }",
            "network n { external-client a via=i { public-key x } }",
        ] {
            assert_eq!(added(text, Language::Kdl, "a"), None, "it is there: {text}");
        }
        let complex = "networks:\n  n:\n    external-clients:\n      a:\n        ? via\n        : i\n";
        assert_eq!(added(complex, Language::Yaml, "a"), None);
        let empty = "networks:\n  n:\n    external-clients:\n      a:\n";
        assert_eq!(added(empty, Language::Yaml, "a"), None);
    }
}
