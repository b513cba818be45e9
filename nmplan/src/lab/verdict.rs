//! The verdict of a lab as text for people.
//!
//! Pure: a [`Verdict`] in, text out.

use std::fmt::Write;

use super::run::{NetworkVerdict, Pair, Verdict};

/// The most nodes for which a table shows who reached whom; with more, only pairs without an answer are
/// listed.
const TABLE: usize = 12;

/// The text of a verdict.
pub fn text(verdict: &Verdict) -> String {
    let networks: Vec<_> = verdict.networks.iter().map(network).collect();
    networks.join("\n")
}

fn network(network: &NetworkVerdict) -> String {
    let NetworkVerdict { name, nodes, pairs } = network;
    let reached = pairs.iter().filter(|pair| pair.is_reached()).count();
    let mut text = match nodes.len() {
        1 => format!("{name}: one node, no other to reach"),
        _ => format!("{name}: {reached} of {} pairs reach each other", pairs.len()),
    };
    let names = nodes.iter().map(|node| node.names + node.missing.len()).max().unwrap_or(0);
    let everywhere = names - nodes.iter().map(|node| node.missing.len()).max().unwrap_or(0);
    if names > 0 {
        let _ = write!(text, ", {everywhere} of {names} names resolve everywhere");
    }
    text.push('\n');
    let width = nodes.iter().map(|node| node.name.len()).max().unwrap_or(0);
    for node in nodes {
        let addresses: Vec<_> = node.addresses.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "  {:width$}  {}", node.name, addresses.join("  "));
    }
    if (2..=TABLE).contains(&nodes.len()) {
        text.push('\n');
        text.push_str(&table(network));
    }
    let unknown = nodes.iter().filter(|node| !node.missing.is_empty());
    if reached < pairs.len() || unknown.clone().next().is_some() {
        text.push('\n');
    }
    for pair in pairs.iter().filter(|pair| !pair.is_reached()) {
        let silent: Vec<_> = pair
            .answers
            .iter()
            .filter(|(_, took)| took.is_none())
            .map(|(address, _)| address.to_string())
            .collect();
        let _ = writeln!(text, "  {} did not reach {} at {}", pair.from, pair.to, silent.join(", "));
    }
    for node in unknown {
        let missing: Vec<_> = node.missing.iter().map(String::as_str).collect();
        let _ = writeln!(text, "  {} does not resolve {}", node.name, missing.join(", "));
    }
    text
}

/// Who reached whom, with the time of the slowest address in milliseconds.
fn table(network: &NetworkVerdict) -> String {
    let names: Vec<&str> = network.nodes.iter().map(|node| &*node.name).collect();
    let first = names.iter().map(|name| name.len()).chain(["from \\ to".len()]).max().unwrap_or(0);
    let mut text = format!("  {:first$}", "from \\ to");
    for name in &names {
        let _ = write!(text, "  {name:>8}");
    }
    text.push('\n');
    for from in &names {
        let _ = write!(text, "  {from:first$}");
        for to in &names {
            let pair = network.pairs.iter().find(|pair| pair.from == *from && pair.to == *to);
            let _ = write!(text, "  {:>width$}", pair.map_or("-".into(), cell), width = to.len().max(8));
        }
        text.push('\n');
    }
    text
}

fn cell(pair: &Pair) -> String {
    if !pair.is_reached() {
        return "no".into();
    }
    let slowest = pair.answers.values().flatten().copied().fold(0.0, f64::max);
    format!("{slowest:.1} ms")
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::IpAddr;

    use super::super::run::NodeVerdict;
    use super::*;

    fn verdict(answer: Option<f64>) -> Verdict {
        let address = |number: u8| IpAddr::from([10, 0, 0, number]);
        let node = |name: &str, number| NodeVerdict {
            name: name.into(),
            addresses: vec![address(number)],
            device: Some("kernel".into()),
            names: 2,
            missing: BTreeSet::new(),
        };
        let pair = |from: &str, to: &str, number, answer| Pair {
            from: from.into(),
            to: to.into(),
            answers: BTreeMap::from([(address(number), answer)]),
        };
        let network = NetworkVerdict {
            name: "corp".parse().expect("a good name"),
            nodes: vec![node("a", 1), node("db-1", 2)],
            pairs: vec![pair("a", "db-1", 2, Some(0.42)), pair("db-1", "a", 1, answer)],
        };
        Verdict { networks: vec![network] }
    }

    const HEAD: &str = "  a     10.0.0.1\n  db-1  10.0.0.2\n\n  from \\ to         a      db-1\n";

    #[test]
    fn who_reached_whom_is_a_table() {
        let first = "corp: 2 of 2 pairs reach each other, 2 of 2 names resolve everywhere\n";
        let rows = "  a                 -    0.4 ms\n  db-1         1.0 ms         -\n";
        assert_eq!(text(&verdict(Some(1.0))), [first, HEAD, rows].concat());
    }

    #[test]
    fn a_single_node_has_no_other_to_reach_and_may_lack_names() {
        let mut verdict = verdict(Some(1.0));
        verdict.networks[0].nodes.pop();
        verdict.networks[0].pairs.clear();
        assert!(verdict.is_good());
        assert_eq!(
            text(&verdict),
            "corp: one node, no other to reach, 2 of 2 names resolve everywhere\n  a  10.0.0.1\n"
        );
        verdict.networks[0].nodes[0].missing.insert("b.corp".into());
        assert!(!verdict.is_good());
        assert!(text(&verdict).ends_with("\n  a does not resolve b.corp\n"), "{}", text(&verdict));
    }

    #[test]
    fn pairs_without_an_answer_are_listed() {
        assert!(!verdict(None).is_good());
        let first = "corp: 1 of 2 pairs reach each other, 2 of 2 names resolve everywhere\n";
        let rows = "  a                 -    0.4 ms\n  db-1             no         -\n";
        let last = "\n  db-1 did not reach a at 10.0.0.1\n";
        assert_eq!(text(&verdict(None)), [first, HEAD, rows, last].concat());
    }
}
