//! Access keys that stay open for good: whoever finds the token, years later, can join with it.

use super::Planned;
use crate::kinds::AccessKey;
use crate::report::{Code, Report};
use crate::scalars::Uses;

/// How often a key lets hosts join that nobody has to know, for good; nothing if its end comes by itself. A key
/// that may be used once ends with its use, and one with `for` lets in only those that are named.
fn endless(key: &AccessKey) -> Option<Uses> {
    let several = key.uses() != Uses::Count(1);
    (key.expires.is_none() && key.r#for.is_empty() && several).then(|| key.uses())
}

/// Checks the keys of a network that are made, and those that become such keys, or for more hosts.
pub(super) fn check(planned: &Planned<'_>, report: &mut Report) {
    for (id, was, is) in planned.changed::<AccessKey>() {
        let Some(uses) = endless(is) else { continue };
        // Every number is less than `unlimited`.
        if was.and_then(|was| endless(was)).is_some_and(|before| before >= uses) {
            continue;
        }
        let many = match uses {
            Uses::Count(count) => format!("{count} hosts"),
            Uses::Unlimited => "any number of hosts".to_owned(),
        };
        let message = format!(
            "{id} never expires, and lets {many} join: whoever finds its token can do so years from now"
        );
        let problem = planned.warning(Code::EndlessKey, message, id, None);
        report.push(problem.help("set `expires`, such as expires=\"30d\"".to_owned()));
    }
}
