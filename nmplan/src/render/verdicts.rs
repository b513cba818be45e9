//! What became of tests, as text.

use owo_colors::OwoColorize;
use schema::judge::{Outcome, Verdict};
use schema::text::count;

/// How many tests hold.
pub fn tests_hold(hold: u64, tests: u64) -> String {
    match (hold, tests) {
        (_, 0) => "there are no tests".into(),
        (1, 1) => "1 test holds".into(),
        (0, 1) => "1 test fails".into(),
        (hold, tests) if hold == tests => format!("{} hold", count(tests, "test")),
        (hold, tests) => format!("{hold} of {tests} tests hold"),
    }
}

/// The assertions of tests, each with whether it holds.
pub fn verdicts(verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    for test in verdicts.chunk_by(|one, other| one.id == other.id) {
        text.extend(test.first().map(|first| format!("{}\n", first.id.bold())));
        for Verdict { name, outcome, .. } in test {
            let sign = match outcome {
                Outcome::Holds => "holds".green().to_string(),
                Outcome::Warns => "holds of nobody".yellow().to_string(),
                Outcome::Fails => "fails".red().to_string(),
            };
            text += &format!("  {name}: {sign}\n");
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// The assertions that fail, in one line each.
pub fn failing(verdicts: &[Verdict]) -> Vec<String> {
    let failing = verdicts.iter().filter(|verdict| verdict.fails());
    let line = |Verdict { id, name, message, .. }: &Verdict| {
        format!("  {id}: {name}\n        {}", message.as_deref().unwrap_or_default())
    };
    failing.map(line).collect()
}
