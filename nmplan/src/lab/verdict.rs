//! The verdict of a lab as text for people.
//!
//! Pure: a [`Verdict`] in, text out.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use schema::scalars::Name;

use super::run::{
    BehindVerdict, ClientVerdict, FailedOutcome, FailedProbe, NetworkVerdict, NodeVerdict, Pair,
    ProbesVerdict, Verdict,
};

/// The most nodes for which a table shows who reached whom; with more, only pairs without an answer are
/// listed.
const TABLE: usize = 12;

/// The text of a verdict.
pub fn text(verdict: &Verdict) -> String {
    let networks: Vec<_> = verdict.networks.iter().map(network).collect();
    networks.join("\n")
}

fn network(network: &NetworkVerdict) -> String {
    let NetworkVerdict { name, nodes, clients, behind, pairs, tests, sample, untried } = network;
    let reached = pairs.iter().filter(|pair| pair.is_reached()).count();
    let allowed = pairs.iter().filter(|pair| pair.allowed).count();
    let mut text = match nodes.len() + clients.len() {
        1 => format!("{name}: one node, no other to reach"),
        _ if allowed == pairs.len() => format!("{name}: {reached} of {} pairs reach each other", pairs.len()),
        _ if allowed == 0 => format!("{name}: none of {} pairs may ping each other", pairs.len()),
        _ => format!("{name}: {reached} of the {allowed} pairs ping each other that may, of {}", pairs.len()),
    };
    text.push_str(&names(nodes));
    text.push('\n');
    let of_nodes = nodes.iter().map(|node| (node.name.clone(), &node.addresses, String::new()));
    let of_clients =
        clients.iter().map(|ClientVerdict { name, addresses }| (name.clone(), addresses, String::new()));
    let of_hosts = behind.iter().map(|BehindVerdict { range, addresses, gateways }| {
        (range.to_string(), addresses, format!("  behind {}", gateways.join(", ")))
    });
    let all: Vec<_> = of_nodes.chain(of_clients).chain(of_hosts).collect();
    let width = all.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    for (name, addresses, more) in all {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        let _ = writeln!(text, "  {name:width$}  {}{more}", addresses.join("  "));
    }
    if (2..=TABLE).contains(&(nodes.len() + clients.len())) {
        text.push('\n');
        text.push_str(&table(network));
    }
    let unknown = nodes.iter().filter(|node| !node.missing.is_empty());
    let wrong = pairs.iter().filter(|pair| !pair.agrees());
    if wrong.clone().next().is_some() || unknown.clone().next().is_some() {
        text.push('\n');
    }
    for Pair { from, to, allowed, answers } in wrong {
        let other = answers.iter().filter(|(_, took)| took.is_none() == *allowed);
        let addresses: Vec<_> = other.map(|(address, _)| address.to_string()).collect();
        let (did, why) = if *allowed { ("did not reach", "") } else { ("pinged", ", which no rule lets it") };
        let _ = writeln!(text, "  {from} {did} {to} at {}{why}", addresses.join(", "));
    }
    for node in unknown {
        let missing: Vec<_> = node.missing.iter().map(String::as_str).collect();
        let _ = writeln!(text, "  {} does not resolve {}", node.name, missing.join(", "));
    }
    text.push_str(&probes(tests, sample, untried));
    text
}

/// How many names resolve. In a network with rules nodes do not know the same ones.
fn names(nodes: &[NodeVerdict]) -> String {
    let expected: BTreeSet<usize> = nodes.iter().map(|node| node.names + node.missing.len()).collect();
    let missing = nodes.iter().map(|node| node.missing.len());
    let most = expected.last().copied().unwrap_or(0);
    match (most, expected.len()) {
        (0, _) => String::new(),
        (_, 1) => {
            let everywhere = most - missing.max().unwrap_or(0);
            format!(", {everywhere} of {most} names resolve everywhere")
        }
        _ if missing.sum::<usize>() == 0 => ", every name resolves where it should".to_owned(),
        _ => ", not every name resolves where it should".to_owned(),
    }
}

/// What probes showed, where there are tests, or where anything is not as it must be.
fn probes(
    tests: &BTreeMap<Name, ProbesVerdict>,
    sample: &ProbesVerdict,
    untried: &BTreeMap<String, BTreeSet<String>>,
) -> String {
    let mut text = String::new();
    for (name, verdict) in tests {
        text.push_str(&line(&format!("test {name}"), verdict));
    }
    if sample.tried > 0 {
        text.push_str(&line("what no test names", sample));
    }
    for (node, services) in untried {
        let services: Vec<_> = services.iter().map(String::as_str).collect();
        let _ = writeln!(
            text,
            "  not tried at {node}, where another program has the port: {}",
            services.join(", ")
        );
    }
    if text.is_empty() { text } else { format!("\n{text}") }
}

fn line(what: &str, ProbesVerdict { tried, failed }: &ProbesVerdict) -> String {
    let probes = if *tried == 1 { "probe shows" } else { "probes show" };
    if failed.is_empty() {
        return format!("  {what}: {tried} {probes} what must hold\n");
    }
    let mut text = format!("  {what}: {} of {tried} probes show otherwise\n", failed.len());
    for FailedProbe { from, to, at, service, allowed, outcome } in failed {
        let must = if *allowed { "must reach" } else { "must not reach" };
        let outcome = match outcome {
            FailedOutcome::Answered => "it answered",
            FailedOutcome::Refused => "something else refused it",
            FailedOutcome::Nothing => "nothing came back",
        };
        let _ = writeln!(text, "    {from} {must} {to} at {at} by {service}: {outcome}");
    }
    text
}

/// Who reached whom, with the time of the slowest address in milliseconds.
fn table(network: &NetworkVerdict) -> String {
    let nodes = network.nodes.iter().map(|node| &*node.name);
    let names: Vec<&str> = nodes.chain(network.clients.iter().map(|client| &*client.name)).collect();
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
        return if pair.allowed { "no".into() } else { "may not".into() };
    }
    let slowest = pair.answers.values().flatten().copied().fold(0.0, f64::max);
    format!("{slowest:.1} ms")
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

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
            allowed: true,
            answers: BTreeMap::from([(address(number), answer)]),
        };
        let network = NetworkVerdict {
            name: "corp".parse().expect("a good name"),
            nodes: vec![node("a", 1), node("db-1", 2)],
            clients: Vec::new(),
            behind: Vec::new(),
            pairs: vec![pair("a", "db-1", 2, Some(0.42)), pair("db-1", "a", 1, answer)],
            tests: BTreeMap::new(),
            sample: ProbesVerdict::default(),
            untried: BTreeMap::new(),
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
    #[test]
    fn what_rules_do_not_let_pass_is_no_failure_and_what_passes_all_the_same_is() {
        let mut verdict = verdict(None);
        verdict.networks[0].pairs[1].allowed = false;
        assert!(verdict.is_good());
        let first =
            "corp: 1 of the 1 pairs ping each other that may, of 2, 2 of 2 names resolve everywhere\n";
        let rows = "  a                 -    0.4 ms\n  db-1        may not         -\n";
        assert_eq!(text(&verdict), [first, HEAD, rows].concat());
        verdict.networks[0].pairs[0].allowed = false;
        assert!(!verdict.is_good());
        verdict.networks[0].nodes[0].names = 1;
        assert!(
            text(&verdict)
                .starts_with("corp: none of 2 pairs may ping each other, every name resolves where")
        );
        let last = "\n  a pinged db-1 at 10.0.0.2, which no rule lets it\n";
        assert!(text(&verdict).ends_with(last), "{}", text(&verdict));
    }

    #[test]
    fn probes_are_shown_by_test_and_those_that_disagree_are_listed() {
        let mut verdict = verdict(Some(1.0));
        let failed = FailedProbe {
            from: "a".into(),
            to: "db-1".into(),
            at: IpAddr::from([10, 0, 0, 2]),
            service: "tcp 5432".into(),
            allowed: false,
            outcome: FailedOutcome::Answered,
        };
        let network = &mut verdict.networks[0];
        network.tests.insert("good".parse().expect("a name"), ProbesVerdict { tried: 1, failed: Vec::new() });
        network.sample.tried = 12;
        network.untried.insert("db-1".into(), BTreeSet::from(["tcp 8081".into(), "udp 53".into()]));
        assert!(verdict.is_good());
        let wrong = ProbesVerdict { tried: 2, failed: vec![failed] };
        verdict.networks[0].tests.insert("wrong".parse().expect("a name"), wrong);
        assert!(!verdict.is_good());
        let last = "
  test good: 1 probe shows what must hold
  test wrong: 1 of 2 probes show otherwise
    a must not reach db-1 at 10.0.0.2 by tcp 5432: it answered
  what no test names: 12 probes show what must hold
  not tried at db-1, where another program has the port: tcp 8081, udp 53
";
        assert!(text(&verdict).ends_with(last), "{}", text(&verdict));
    }
}
