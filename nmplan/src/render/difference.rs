//! The differences of a field, as text: of a set the items that are removed and added, of a list its order as
//! well, of a record each of its fields by path.

use schema::descriptor::{Fields, Type};
use schema::diff::{FieldChange, fields};
use schema::value::{Data, Value};

use super::{NONE, value};

/// The most characters that the meaning of an absent field is shown with.
const SHORT: usize = 24;

/// One difference: the path to what differs, separated by blanks, and how it differs.
pub(super) type Difference = (String, String);

/// The differences of a field; at least one.
pub(super) fn differences(change: &FieldChange) -> Vec<Difference> {
    let FieldChange { field, before, after } = change;
    let differences = of(field.name.to_owned(), &field.ty, before.as_ref(), after.as_ref());
    let Some(meaning) = absent(field.doc).filter(|_| before.is_none() || after.is_none()) else {
        return differences;
    };
    let explained = format!("({meaning})");
    differences.into_iter().map(|(path, how)| (path, how.replace(NONE, &explained))).collect()
}

/// What it means that a field is absent, as its documentation says it in a few words.
fn absent(doc: &str) -> Option<&str> {
    let meaning = doc.split("Absent: ").nth(1)?.trim_end_matches('.').trim();
    (meaning.len() <= SHORT && !meaning.contains(['\n', '.', ';'])).then_some(meaning)
}

fn of(path: String, ty: &Type, before: Option<&Value>, after: Option<&Value>) -> Vec<Difference> {
    match ty {
        Type::NonEmpty(inner) => of(path, inner, before, after),
        Type::Set(_) => vec![(path, of_set(before, after))],
        Type::List(Type::Record(fields)) => of_records(&path, fields, items(before), items(after)),
        Type::List(_) => vec![(path, of_list(before, after))],
        Type::Map(inner) => of_map(&path, inner, before, after),
        Type::Record(fields) => of_record(path, fields, before, after),
        Type::Bool
        | Type::Integer { .. }
        | Type::Scalar(_)
        | Type::Text
        | Type::Choice(_)
        | Type::Reference(_) => {
            vec![(path, replaced(before, after))]
        }
    }
}

fn replaced(before: Option<&Value>, after: Option<&Value>) -> String {
    let shown = |value: Option<&Value>| value.map_or(NONE.to_owned(), self::value);
    format!("{} -> {}", shown(before), shown(after))
}

fn items(value: Option<&Value>) -> &[Value] {
    match value.map(|value| &value.data) {
        Some(Data::List(items)) => items,
        Some(_) | None => &[],
    }
}

/// The items of one list that another lacks, with their indices; of repeated items the surplus.
fn beyond<'a>(these: &'a [Value], those: &[Value]) -> Vec<(usize, &'a Value)> {
    let mut left: Vec<&Value> = those.iter().collect();
    let mut beyond = Vec::new();
    for (index, item) in these.iter().enumerate() {
        match left.iter().position(|other| *other == item) {
            Some(at) => drop(left.remove(at)),
            None => beyond.push((index, item)),
        }
    }
    beyond
}

fn of_set(before: Option<&Value>, after: Option<&Value>) -> String {
    let (was, is) = (items(before), items(after));
    let emptied = |value: Option<&Value>| value.is_some_and(|value| items(Some(value)).is_empty());
    if was.len().max(is.len()) < 2 || emptied(before) || emptied(after) {
        return replaced(before, after);
    }
    let gone = beyond(was, is).into_iter().map(|(_, item)| format!("-{}", value(item)));
    let come = beyond(is, was).into_iter().map(|(_, item)| format!("+{}", value(item)));
    gone.chain(come).collect::<Vec<_>>().join(" ")
}

fn of_list(before: Option<&Value>, after: Option<&Value>) -> String {
    let (was, is) = (items(before), items(after));
    let same = was.len() == is.len() && beyond(was, is).is_empty();
    let reordered = if same && !was.is_empty() { "reordered: " } else { "" };
    format!("{reordered}{}", replaced(before, after))
}

/// The records of a list that are removed and added; if as many are added as removed, they count as changed.
fn of_records(path: &str, of: &'static Fields, was: &[Value], is: &[Value]) -> Vec<Difference> {
    let (gone, come) = (beyond(was, is), beyond(is, was));
    let mut lines = Vec::new();
    if gone.len() == come.len() {
        for ((_, before), (index, after)) in gone.iter().zip(&come) {
            let path = if is.len() > 1 { format!("{path} #{}", index + 1) } else { path.to_owned() };
            lines.extend(of_record(path, of, Some(before), Some(after)));
        }
    } else {
        let signed =
            |sign: &str, (_, item): &(usize, &Value)| (path.to_owned(), format!("{sign}{}", value(item)));
        lines.extend(gone.iter().map(|item| signed("-", item)));
        lines.extend(come.iter().map(|item| signed("+", item)));
    }
    lines.extend(reordered(was, is).map(|order| (path.to_owned(), order)));
    lines
}

/// The new order of the records that stay, by their old indices; none if it is the old one.
fn reordered(was: &[Value], is: &[Value]) -> Option<String> {
    let mut indices = Vec::new();
    for item in is {
        let index = (0..was.len()).find(|index| was[*index] == *item && !indices.contains(index));
        indices.extend(index);
    }
    let numbers = indices.iter().map(|index| format!("#{}", index + 1)).collect::<Vec<_>>();
    (!indices.is_sorted()).then(|| format!("reordered: {}", numbers.join(", ")))
}

fn of_record(
    path: String,
    of: &'static Fields,
    before: Option<&Value>,
    after: Option<&Value>,
) -> Vec<Difference> {
    if before.is_none() || after.is_none() {
        return vec![(path, replaced(before, after))];
    }
    let changes = fields(of, before, after);
    let inside = |change: &FieldChange| {
        let inner = differences(change).into_iter();
        inner.map(|(field, how)| (format!("{path} {field}"), how)).collect::<Vec<_>>()
    };
    changes.iter().flat_map(inside).collect()
}

fn of_map(
    path: &str,
    inner: &'static Type,
    before: Option<&Value>,
    after: Option<&Value>,
) -> Vec<Difference> {
    let record = |value: Option<&Value>| value.and_then(Value::as_record).cloned().unwrap_or_default();
    let (was, is) = (record(before), record(after));
    let mut names: Vec<_> = was.keys().chain(is.keys()).collect();
    names.sort();
    names.dedup();
    let mut lines = Vec::new();
    for name in names {
        let (before, after) = (was.get(name).map(|it| &it.value), is.get(name).map(|it| &it.value));
        if before != after {
            lines.extend(of(format!("{path} {name}"), inner, before, after));
        }
    }
    if lines.is_empty() { vec![(path.to_owned(), replaced(before, after))] } else { lines }
}

#[cfg(test)]
mod tests {
    use schema::descriptor::Field;

    use super::*;

    const fn field(name: &'static str, ty: Type) -> Field {
        Field { name, doc: "One.", ty, required: false, default: None }
    }

    const REACH: Fields = Fields {
        doc: "One.",
        fields: &[
            field("from", Type::Set(&Type::Text)),
            Field { default: Some(|| Value::text("tcp")), ..field("proto", Type::Text) },
            field(
                "hops",
                Type::List(&Type::Record(&Fields { doc: "One.", fields: &[field("node", Type::Text)] })),
            ),
        ],
    };

    /// The differences between two values in JSON; the empty text stands for an absent one.
    fn shown(ty: Type, before: &str, after: &str) -> Vec<String> {
        let value =
            |json: &str| (!json.is_empty()).then(|| serde_json::from_str::<Value>(json).expect("JSON"));
        let lines = of("f".to_owned(), &ty, value(before).as_ref(), value(after).as_ref());
        lines.into_iter().map(|(path, how)| format!("{path}: {how}")).collect()
    }

    #[test]
    fn a_set_shows_what_is_removed_and_added_and_distinguishes_absent_from_empty() {
        let shown = |before: &str, after: &str| shown(Type::Set(&Type::Text), before, after).concat();
        assert_eq!(shown(r#"["a","b"]"#, r#"["b","c"]"#), "f: -a +c");
        assert_eq!(shown(r#"["a"]"#, r#"["b"]"#), "f: a -> b");
        assert_eq!(shown("", r#"["a","b"]"#), "f: +a +b");
        assert_eq!(shown("", "[]"), "f: (none) -> (empty)");
        assert_eq!(shown(r#"["a","b"]"#, "[]"), "f: a,b -> (empty)");
    }

    #[test]
    fn a_list_that_is_reordered_is_shown_as_that() {
        let shown = |before: &str, after: &str| {
            shown(Type::NonEmpty(&Type::List(&Type::Text)), before, after).concat()
        };
        assert_eq!(shown(r#"["a","b"]"#, r#"["b","a"]"#), "f: reordered: a,b -> b,a");
        assert_eq!(shown(r#"["a","b"]"#, r#"["b","c"]"#), "f: a,b -> b,c");
        assert_eq!(shown(r#"["a","a","b"]"#, r#"["a","b","b"]"#), "f: a,a,b -> a,b,b");
        assert_eq!(shown("", r#"["b","c"]"#), "f: (none) -> b,c");
    }

    #[test]
    fn a_record_shows_each_field_that_differs_by_its_path() {
        let shown = |before: &str, after: &str| shown(Type::Record(&REACH), before, after);
        let changed = shown(r#"{"from":["a","b"]}"#, r#"{"from":["b","c"],"proto":"udp"}"#);
        assert_eq!(changed, ["f from: -a +c", "f proto: tcp -> udp"]);
        assert_eq!(shown("", r#"{"from":["a"]}"#), ["f: (none) -> {from=a}"]);
    }

    #[test]
    fn repeated_records_show_what_is_removed_added_changed_and_moved() {
        let shown = |before: &str, after: &str| shown(Type::List(&Type::Record(&REACH)), before, after);
        let one = r#"{"proto":"udp"}"#;
        let two = r#"{"from":["a"],"hops":[{"node":"x"}]}"#;
        let other = r#"{"from":["a"],"hops":[{"node":"y"}]}"#;
        let list = |records: &[&str]| format!("[{}]", records.join(","));
        assert_eq!(shown("", &list(&[one, one])), ["f: +{proto=udp}", "f: +{proto=udp}"]);
        assert_eq!(shown(&list(&[one, two]), &list(&[two])), ["f: -{proto=udp}"]);
        assert_eq!(shown(&list(&[one, two]), &list(&[one, other])), ["f #2 hops node: x -> y"]);
        assert_eq!(shown(&list(&[one, two]), &list(&[two, one])), ["f: reordered: #2, #1"]);
        let moved = shown(&list(&[one, two]), &list(&[two, other, one]));
        assert_eq!(moved, ["f: +{from=a hops={node=y}}", "f: reordered: #2, #1"]);
    }

    #[test]
    fn a_map_shows_each_entry_that_differs() {
        let shown = |before: &str, after: &str| shown(Type::Map(&Type::Text), before, after);
        assert_eq!(
            shown(r#"{"a":"1","b":"2"}"#, r#"{"b":"3","c":"4"}"#),
            ["f a: 1 -> (none)", "f b: 2 -> 3", "f c: (none) -> 4"]
        );
        assert_eq!(shown("", "{}"), ["f: (none) -> {}"]);
    }
}
