//! Variables: strings put in for `${name}` inside texts, before any field looks at them.

use std::collections::BTreeMap;

use crate::report::{Code, Problem, Report, did_you_mean};
use crate::value::{Data, Document, Location, Value};

/// The values of the variables, by their names.
pub type Variables = BTreeMap<String, String>;

/// Puts the variables in for `${name}` in every text of the documents; `$${` is a literal `${`.
pub fn substitute(documents: &mut [Document], variables: &Variables, report: &mut Report) {
    for document in documents {
        let source = document.source;
        let mut unknown = |name: &str, span| {
            let known = variables.keys().map(String::as_str);
            let help = did_you_mean(name, known).unwrap_or_else(|| format!("declare it in nmplan.kdl: var {name:?}"));
            let message = format!("no variable is called {name:?}");
            report.push(Problem::new(Code::UnknownVariable, message).at(Location { source, span }).help(help));
        };
        for member in document.fields.values_mut() {
            put_in(&mut member.value, variables, &mut unknown);
        }
    }
}

fn put_in(value: &mut Value, variables: &Variables, unknown: &mut impl FnMut(&str, crate::value::Span)) {
    match &mut value.data {
        Data::Text(text) if text.contains("${") => {
            *text = expand(text, variables, |name| unknown(name, value.span)).into();
        }
        Data::List(items) => items.iter_mut().for_each(|item| put_in(item, variables, unknown)),
        Data::Record(record) => {
            record.values_mut().for_each(|member| put_in(&mut member.value, variables, unknown));
        }
        Data::Null | Data::Bool(_) | Data::Integer(_) | Data::Float(_) | Data::Text(_) => {}
    }
}

fn expand(text: &str, variables: &Variables, mut unknown: impl FnMut(&str)) -> String {
    let (mut expanded, mut rest) = (String::new(), text);
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            expanded.push_str(before);
            expanded.push_str("${");
            rest = &from[2..];
            continue;
        }
        expanded.push_str(before);
        let name = from[2..].split('}').next().unwrap_or_default();
        match variables.get(name) {
            Some(value) => expanded.push_str(value),
            None => unknown(name),
        }
        rest = from.get(2 + name.len() + 1..).unwrap_or_default();
    }
    expanded + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_put_in_and_doubled_dollars_stay() {
        let variables = Variables::from([("a".into(), "1".into()), ("b-c".into(), "${a}".into())]);
        let known = |text: &str| expand(text, &variables, |name| panic!("{name} is known"));
        assert_eq!(known("x${a}y${b-c}"), "x1y${a}");
        assert_eq!(known("$${a} $ {a} ${a}"), "${a} $ {a} 1");
        let mut unknown = Vec::new();
        expand("${x} ${y", &variables, |name| unknown.push(name.to_owned()));
        assert_eq!(unknown, ["x", "y"]);
    }
}
