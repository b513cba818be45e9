//! Variables: strings that replace `${name}` inside texts, before any field parses them.

use std::collections::BTreeMap;

use crate::document::Document;
use crate::report::{Code, Problem, Report, did_you_mean};
use crate::value::{Data, Location, Span, Value};

/// The values of the variables, by their names.
pub type Variables = BTreeMap<String, String>;

/// Replaces `${name}` by the value of the variable in every text of the documents; `$${` is a literal `${`.
pub fn substitute(documents: &mut [Document], variables: &Variables, report: &mut Report) {
    for document in documents {
        let source = document.source;
        let mut wrong = |problem: Problem, span| report.push(problem.at(Location { source, span }));
        let before = document.fields.len();
        document.fields.retain(|_, member| put_in(&mut member.value, variables, &mut wrong));
        document.whole &= document.fields.len() == before;
    }
}

/// Replaces the variables in every text of a value. Returns whether all could be replaced: if not, the rest
/// is not checked.
fn put_in(value: &mut Value, variables: &Variables, wrong: &mut impl FnMut(Problem, Span)) -> bool {
    match &mut value.data {
        Data::Text(text) if text.contains("${") => match expand(text, variables) {
            Ok(expanded) => *text = expanded.into(),
            Err(problem) => {
                wrong(problem, value.span);
                return false;
            }
        },
        Data::List(items) => {
            let failed = items.iter_mut().filter_map(|item| (!put_in(item, variables, wrong)).then_some(()));
            return failed.count() == 0;
        }
        Data::Record(record) => {
            let failed =
                record.values_mut().filter_map(|it| (!put_in(&mut it.value, variables, wrong)).then_some(()));
            return failed.count() == 0;
        }
        Data::Null | Data::Flag | Data::Bool(_) | Data::Integer(_) | Data::Float(_) | Data::Text(_) => {}
    }
    true
}

/// The documents as they are written, so that none of their text is taken for a variable when it is read.
pub(super) fn escape(documents: &[Document]) -> Vec<Document> {
    let mut escaped = documents.to_vec();
    for member in escaped.iter_mut().flat_map(|document| document.fields.values_mut()) {
        escape_value(&mut member.value);
    }
    escaped
}

fn escape_value(value: &mut Value) {
    match &mut value.data {
        Data::Text(text) if text.contains("${") => *text = text.replace("${", "$${").into(),
        Data::List(items) => items.iter_mut().for_each(escape_value),
        Data::Record(record) => record.values_mut().for_each(|member| escape_value(&mut member.value)),
        Data::Null | Data::Flag | Data::Bool(_) | Data::Integer(_) | Data::Float(_) | Data::Text(_) => {}
    }
}

fn expand(text: &str, variables: &Variables) -> Result<String, Problem> {
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
        let Some((name, after)) = from[2..].split_once('}') else {
            let problem = Problem::new(
                Code::UnknownVariable,
                format!("the name of a variable is not closed in {from:?}"),
            );
            return Err(problem.help("close it with }, or write $${ if a literal ${ is meant".to_owned()));
        };
        expanded.push_str(variables.get(name).ok_or_else(|| unknown(name, variables))?);
        rest = after;
    }
    Ok(expanded + rest)
}

fn unknown(name: &str, variables: &Variables) -> Problem {
    let help = did_you_mean(name, variables.keys().map(String::as_str));
    let help = help.unwrap_or_else(|| {
        format!(
            "declare the variable {name:?} in the project file, or write $${{{name}}} for the literal text"
        )
    });
    Problem::new(Code::UnknownVariable, format!("there is no variable {name:?}")).help(help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_put_in_and_doubled_dollars_stay() {
        let variables = Variables::from([("a".into(), "1".into()), ("b-c".into(), "${a}".into())]);
        let known =
            |text: &str| expand(text, &variables).unwrap_or_else(|problem| panic!("{}", problem.message));
        assert_eq!(known("x${a}y${b-c}"), "x1y${a}");
        assert_eq!(known("$${a} $ {a} ${a}"), "${a} $ {a} 1");
        for text in ["${a}", "$${a", "$$${", "$", "a ${ b $${"] {
            assert_eq!(known(&text.replace("${", "$${")), text, "what is escaped is read as it was");
        }
        let refused = |text: &str| expand(text, &variables).map_err(|problem| problem.message);
        assert_eq!(refused("${a} ${x}"), Err("there is no variable \"x\"".to_owned()));
        assert_eq!(refused("${a} ${a"), Err("the name of a variable is not closed in \"${a\"".to_owned()));
    }
}
