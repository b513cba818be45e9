//! Why one member reaches another, or not, as text.

use owo_colors::OwoColorize;
use schema::judge::explain::{Answer, Because, Explanation};
use schema::text::plain;

/// The answer in one line without its word, and all of it: the rules that it rests on, each with its file and
/// line, and the way that packets take.
pub fn explanation(
    explained: &Explanation,
    places: &[(Option<&str>, Option<usize>)],
    with_joined: bool,
) -> (String, String) {
    let said = answer(explained);
    let word = match explained.answer {
        Answer::Yes => "yes".green().bold().to_string(),
        Answer::Partly => "partly".yellow().bold().to_string(),
        Answer::No => "no".red().bold().to_string(),
    };
    let mut text = format!("{word}: {said}\n");
    for (rule, place) in explained.rules.iter().zip(places) {
        let at = match place {
            (Some(file), Some(line)) => format!(" ({}:{line})", plain(file)),
            (None, _) | (_, None) => String::new(),
        };
        text += &format!("  {}: {}{at}\n", rule.id, rule.gives);
    }
    if let Some(pair) = &explained.except {
        text += &format!("Not reached, for example: {} by {}.\n", pair.to, pair.from);
    }
    match (explained.answer, &*explained.via) {
        (Answer::No, _) => {}
        (Answer::Yes | Answer::Partly, []) => text += "Packets go directly.\n",
        (Answer::Yes | Answer::Partly, nodes) => {
            let nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
            text += &format!("Packets go via {}.\n", nodes.join(", then "));
        }
    }
    if with_joined && !explained.awaited.is_empty() {
        let (names, have) = (
            super::names(explained.awaited.iter()),
            if explained.awaited.len() == 1 { "has" } else { "have" },
        );
        text += &format!("That holds once {names} {have} joined.\n");
    }
    if !with_joined {
        text += "This is of the files alone, as if every declared node had joined.\n";
    }
    (said, text)
}

fn answer(explained: &Explanation) -> String {
    let Explanation { network, from, to, asked, because, opens, .. } = explained;
    let what = if asked.is_everything() { "anything".to_owned() } else { asked.to_string() };
    match because {
        Because::Rules if explained.answer == Answer::Partly => {
            format!("not all of {from} may open {what} at all of {to} in network {network}, by these rules:")
        }
        Because::Rules if asked.is_everything() => {
            format!("{from} may open {opens} at {to} in network {network}, by these rules:")
        }
        Because::Rules => format!("{from} may open {what} at {to} in network {network}, by these rules:"),
        Because::AclAllow => {
            format!("{from} may open everything at {to}, since the acl of network {network} is allow")
        }
        Because::OtherPorts => {
            format!(
                "{from} may not open {what} at {to} in network {network}; these rules allow only {opens}:"
            )
        }
        Because::OtherDirection => {
            format!(
                "{from} may open nothing at {to} in network {network}; these rules are for the other direction, answers included:"
            )
        }
        Because::NoRule => format!("no rule of network {network} lets {from} open anything at {to}"),
        Because::SameMember => format!("{from} and {to} are one and the same member of network {network}"),
        Because::Nobody => format!("{from} or {to} selects no member of network {network}"),
        Because::NoWay => {
            let obstacle = explained.obstacle.as_deref().unwrap_or("since there is no way");
            let rules = if explained.rules.is_empty() { "" } else { "; these rules would allow it:" };
            format!("{from} reaches nothing at {to} in network {network}, {obstacle}{rules}")
        }
    }
}
