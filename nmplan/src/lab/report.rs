//! The verdict of a lab as text for people, in lines of a given width and without colours.
//!
//! Pure: a [`Verdict`] in, text out. First what there is to know in a line, then who reached whom as a matrix of
//! groups with what its figures mean, then the tests, then everything that is not as it must be, in full.

use std::collections::BTreeSet;
use std::fmt::Write;

use schema::scalars::Name;
use schema::text::{count, plain};

use super::matrix::{Cell, Matrix, Together};
use super::scenario::Step;
use super::verdict::{
    BehindVerdict, Carrier, ClientVerdict, FailedOutcome, FailedProbe, NetworkVerdict, NodeVerdict, Pair,
    ProbesVerdict, Rule, StepVerdict, Verdict, WayVerdict,
};
use crate::render::tests_hold;

/// How wide a column of the matrix is: `120 ig`, and a blank.
const COLUMN: usize = 7;
/// How much of a group's name is shown in its row at most, and where more columns fit beside less of it.
const NAMES: [usize; 2] = [28, 14];

/// The text of the networks with everybody there.
pub fn text(verdict: &Verdict, width: usize) -> String {
    let networks: Vec<_> = verdict.networks.iter().map(|it| network(it, width)).collect();
    networks.join("\n")
}

/// The text of a step of the scenario, the `number`th of so many.
pub fn step(verdict: &StepVerdict, number: usize, all: usize, width: usize) -> String {
    let StepVerdict { step, seconds, follows, networks } = verdict;
    let mut text = format!("{number} of {all}: {step}; known to all after {seconds:.1} s\n");
    for it in follows {
        let _ = writeln!(text, "  {it}");
    }
    for network in networks {
        text.push_str(&summary(network, "  ", width));
        text.push_str(&failures(network, "    "));
    }
    text
}

/// What the scenario will play.
pub fn steps_to_come(steps: &[Step]) -> String {
    let both =
        steps.chunks(2).map(|both| both.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    both.map(|both| format!("  {both}\n")).collect()
}

/// How many steps went as they must.
pub fn steps(verdicts: &[StepVerdict]) -> String {
    let good = verdicts.iter().filter(|step| step.is_good()).count();
    let steps = count(verdicts.len() as u64, "step");
    if good == verdicts.len() {
        return format!("In each of {steps} packets showed what must hold.\n");
    }
    let bad = verdicts.iter().filter(|step| !step.is_good()).map(|it| format!("  {}\n", it.step));
    format!(
        "In {} of {steps} packets showed something else than must hold:\n{}",
        verdicts.len() - good,
        bad.collect::<String>()
    )
}

fn network(network: &NetworkVerdict, width: usize) -> String {
    let NetworkVerdict { nodes, clients, behind, matrix, .. } = network;
    let mut text = summary(network, "", width);
    let parties = nodes.len() + clients.len() + behind.iter().map(|it| it.addresses.len()).sum::<usize>();
    // A group of one each: there is room for addresses.
    let apart = matrix.groups.len() == parties;
    if apart {
        text.push_str(&addresses(network));
    }
    if matrix.groups.len() > 1 || !apart {
        let _ = write!(text, "\n{}", table(matrix, width));
        if !apart {
            let _ = write!(text, "\n{}", members(matrix, width));
        }
    }
    let tests = tests(network);
    if !tests.is_empty() {
        let _ = write!(text, "\n{tests}");
    }
    let failures = failures(network, "  ");
    if !failures.is_empty() {
        let _ = write!(text, "\n  What is not as it must be:\n{failures}");
    }
    text
}

/// What there is to know of a network in a line, or as few as it takes.
fn summary(network: &NetworkVerdict, indent: &str, width: usize) -> String {
    let NetworkVerdict { name, nodes, pairs, tests, .. } = network;
    let reached = pairs.iter().filter(|pair| pair.allowed && pair.is_reached()).count();
    let allowed = pairs.iter().filter(|pair| pair.allowed).count();
    let lost = pairs.iter().filter(|pair| pair.lost).count();
    let mut all = match pairs.len() {
        0 => vec!["one node".to_owned(), "no other to reach".to_owned()],
        all if allowed == all => vec![format!("{reached} of {all} pairs reach each other")],
        all => {
            vec![format!("{reached} of the {allowed} pairs reach each other that may"), format!("of {all}")]
        }
    };
    if lost > 0 {
        all.push(format!("{lost} have no way meanwhile"));
    }
    if !tests.is_empty() {
        let hold = tests.keys().filter(|test| network.holds(test)).count();
        all.push(tests_hold(hold as u64, tests.len() as u64));
    }
    all.extend(names(nodes));
    let head = format!("{indent}{name}: ");
    // Further lines are a little further in.
    folded(&head, &all, width).replace(&format!("\n{:1$}", "", head.len()), &format!("\n{indent}  "))
}

/// How many names resolve. In a network with rules nodes do not know the same ones.
fn names(nodes: &[NodeVerdict]) -> Option<String> {
    let expected: BTreeSet<usize> = nodes.iter().map(|node| node.names + node.missing.len()).collect();
    let missing = nodes.iter().map(|node| node.missing.len());
    let most = expected.last().copied().unwrap_or(0);
    match (most, expected.len()) {
        (0, _) => None,
        (_, 1) => {
            let everywhere = most - missing.max().unwrap_or(0);
            Some(format!("{everywhere} of {most} names resolve everywhere"))
        }
        _ if missing.sum::<usize>() == 0 => Some("every name resolves where it should".to_owned()),
        _ => Some("not every name resolves where it should".to_owned()),
    }
}

/// Everybody with his addresses.
fn addresses(NetworkVerdict { nodes, clients, behind, .. }: &NetworkVerdict) -> String {
    let of_nodes = nodes.iter().map(|node| (node.name.clone(), &node.addresses, String::new()));
    let of_clients =
        clients.iter().map(|ClientVerdict { name, addresses }| (name.clone(), addresses, String::new()));
    let of_hosts = behind.iter().map(|BehindVerdict { range, addresses, gateways }| {
        (range.to_string(), addresses, format!("  behind {}", gateways.join(", ")))
    });
    let all: Vec<_> = of_nodes.chain(of_clients).chain(of_hosts).collect();
    let width = all.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    let line = |(name, addresses, more): (String, &Vec<_>, String)| {
        let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        format!("  {name:width$}  {}{more}\n", addresses.join("  "))
    };
    all.into_iter().map(line).collect()
}

/// What stands above the labels of rows, and left of those of columns.
const FROM_TO: &str = "from \\ to";

/// Who reached whom, by groups: as many columns in a block as fit.
fn table(matrix: &Matrix, width: usize) -> String {
    // Whoever opens nothing, as the internet, has no row.
    let has = |at: &usize, end: fn(&Cell) -> usize| matrix.cells.iter().any(|cell| end(cell) == *at);
    let groups = || 0..matrix.groups.len();
    let rows: Vec<_> = groups().filter(|at| has(at, |cell| cell.from)).collect();
    let columns: Vec<_> = groups().filter(|at| has(at, |cell| cell.to)).collect();
    let labels = NAMES.map(|most| Labels::new(matrix, &rows, most));
    let blocks = |labels: &Labels| columns.len().div_ceil(labels.columns(width)).max(1);
    let [long, short] = &labels;
    let labels = if blocks(short) < blocks(long) { short } else { long };
    let block = |columns: &[usize]| {
        let mut text = format!("  {:1$}", FROM_TO, labels.width);
        text.extend(columns.iter().map(|at| format!("{:>COLUMN$}", letter(*at))));
        text.push('\n');
        for (from, label) in rows.iter().zip(&labels.of_rows) {
            let _ = write!(text, "  {label:0$}", labels.width);
            text.extend(columns.iter().map(|to| format!("{:>COLUMN$}", cell(matrix.cell(*from, *to)))));
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    };
    let at_once = columns.len().div_ceil(blocks(labels)).max(1);
    let blocks: Vec<_> = columns.chunks(at_once).map(block).collect();
    format!("{}\n{}", blocks.join("\n"), figures(matrix))
}

/// The labels of rows.
struct Labels {
    of_rows: Vec<String>,
    width: usize,
}

impl Labels {
    /// With so many characters of each name at most.
    fn new(matrix: &Matrix, rows: &[usize], most: usize) -> Self {
        let of_rows: Vec<_> = rows.iter().map(|at| label(*at, &matrix.groups[*at], most)).collect();
        let width = of_rows.iter().map(|label| label.chars().count()).chain([FROM_TO.len()]).max();
        Self { of_rows, width: width.unwrap_or_default() }
    }

    /// How many columns fit beside them.
    fn columns(&self, width: usize) -> usize {
        (width.saturating_sub(2 + self.width) / COLUMN).max(1)
    }
}

fn label(at: usize, group: &Together, most: usize) -> String {
    let short: String = match group.name.chars().count() {
        count if count <= most => group.name.clone(),
        _ => group.name.chars().take(most - 2).chain("..".chars()).collect(),
    };
    let size = group.parties.len();
    let size = if size > 1 { format!(" ({size})") } else { String::new() };
    format!("{:<2} {short}{size}", letter(at))
}

/// A, B and so on; AA after Z.
fn letter(at: usize) -> String {
    let last = char::from(b'A' + u8::try_from(at % 26).unwrap_or_default());
    if at < 26 { last.to_string() } else { letter(at / 26 - 1) + &last.to_string() }
}

fn cell(cell: Option<&Cell>) -> String {
    let Some(cell) = cell else { return String::new() };
    match (cell.wrong, cell.allowed, cell.slowest) {
        (1.., ..) => format!("{}!", cell.wrong),
        (_, 0, _) if cell.lost > 0 => "away".to_owned(),
        (_, 0, _) => ".".to_owned(),
        (_, allowed, Some(slowest)) if cell.reached == allowed => {
            let digits = usize::from(slowest < 9.95);
            format!("{slowest:.digits$} {}", ways(cell))
        }
        (_, allowed, _) => format!("{}/{allowed}", cell.reached),
    }
}

/// A letter for each kind of way.
fn ways(cell: &Cell) -> String {
    let direct = cell.ways.iter().any(Vec::is_empty).then_some('d');
    direct.into_iter().chain(cell.by.iter().map(|it| sign(*it).0)).collect()
}

const fn sign(carrier: Carrier) -> (char, &'static str) {
    match carrier {
        Carrier::Hub => ('h', "by the hub"),
        Carrier::Relay => ('r', "by a relay"),
        Carrier::Ingress => ('i', "by an ingress"),
        Carrier::Gateway => ('g', "by a gateway"),
    }
}

/// What the figures are that a matrix has.
fn figures(matrix: &Matrix) -> String {
    let shown: BTreeSet<String> = matrix.cells.iter().map(|it| cell(Some(it))).collect();
    let has = |sign: &str| shown.iter().any(|it| it.contains(sign));
    let mut text = String::new();
    let mut line = |is_shown: bool, figure: &str, means: &str| {
        if is_shown {
            let _ = writeln!(text, "  {figure:7}{means}");
        }
    };
    line(has(" "), "0.4 d", "all pairs reached what they may; the slowest answer in ms, and the way");
    line(has("/"), "3/4", "so many pairs reached what they may, of those that may");
    line(has("!"), "1!", "so many pairs reached what they may not");
    line(has("away"), "away", "they may, but nobody carries it at present");
    line(shown.contains("."), ".", "they may open nothing there, and nothing passed");
    let ways: BTreeSet<Carrier> = matrix.cells.iter().flat_map(|cell| cell.by.iter().copied()).collect();
    let ways: Vec<_> = ways.into_iter().map(sign).map(|(sign, means)| format!("{sign} {means}")).collect();
    if has(" ") {
        let _ = writeln!(text, "  Ways: {}.", [vec!["d directly".to_owned()], ways].concat().join(", "));
    }
    text
}

/// Who is in each group that is named otherwise than whoever is in it, and whoever has no row.
fn members(matrix: &Matrix, width: usize) -> String {
    let is_itself = |group: &Together| group.parties == [&*group.name];
    let has_row = |at: usize| matrix.cells.iter().any(|cell| cell.from == at);
    let several = matrix.groups.iter().enumerate().filter(|(at, group)| !is_itself(group) || !has_row(*at));
    let line = |(at, group): (usize, &Together)| {
        let name = if is_itself(group) { String::new() } else { format!("{}: ", group.name) };
        let parties = group.parties.iter().enumerate().map(|(at, party)| match at {
            0 => name.clone() + party,
            _ => party.clone(),
        });
        folded(&format!("  {:<2} ", letter(at)), &parties.collect::<Vec<_>>(), width)
    };
    several.map(line).collect()
}

/// A list in lines of a width, all but the first of them indented.
fn folded(head: &str, items: &[String], width: usize) -> String {
    let indent = " ".repeat(head.chars().count());
    let mut text = String::new();
    let mut line = head.to_owned();
    for (at, item) in items.iter().enumerate() {
        let item = if at + 1 < items.len() { format!("{item}, ") } else { item.clone() };
        if line.trim_end().len() + item.trim_end().len() > width && line.trim() != head.trim() {
            let _ = writeln!(text, "{}", line.trim_end());
            line = indent.clone();
        }
        line.push_str(&item);
    }
    text + line.trim_end() + "\n"
}

/// What packets showed of tests, and of what no test names.
fn tests(network: &NetworkVerdict) -> String {
    let NetworkVerdict { tests, sample, untried, .. } = network;
    let mut text = String::new();
    for (name, verdict) in tests {
        let ways = of_test(network, name);
        text.push_str(&line(&format!("test {name}"), verdict, &ways));
    }
    if sample.tried > 0 {
        text.push_str(&line("what no test names", sample, &[]));
    }
    for (node, services) in untried {
        let services: Vec<_> = services.iter().map(String::as_str).collect();
        let _ = writeln!(
            text,
            "  not tried at {node}, where another program has the port: {}",
            services.join(", ")
        );
    }
    text
}

fn of_test<'a>(network: &'a NetworkVerdict, test: &Name) -> Vec<&'a WayVerdict> {
    let is_of_it = |way: &&WayVerdict| way.test.as_ref().is_some_and(|rule| rule.id.name == *test);
    network.ways.iter().filter(is_of_it).collect()
}

fn line(
    what: &str,
    ProbesVerdict { test: _, tried, lost: _, failed }: &ProbesVerdict,
    ways: &[&WayVerdict],
) -> String {
    let wrong = failed.len() + ways.iter().filter(|way| !way.agrees()).count();
    let all = tried + ways.len();
    let mut kinds = Vec::new();
    if *tried > 0 || ways.is_empty() {
        kinds.push(count(*tried as u64, "probe"));
    }
    if !ways.is_empty() {
        kinds.push(count(ways.len() as u64, "way"));
    }
    let show = if all == 1 { "shows" } else { "show" };
    match wrong {
        0 => format!("  {what}: {} {show} what must hold\n", kinds.join(" and ")),
        wrong => format!("  {what}: {wrong} of {} {show} otherwise\n", kinds.join(" and ")),
    }
}

/// Everything that is not as it must be.
fn failures(network: &NetworkVerdict, indent: &str) -> String {
    let NetworkVerdict { nodes, pairs, ways, tests, sample, .. } = network;
    let mut text = String::new();
    let mut put = |what: String, details: Vec<String>| {
        let _ = writeln!(text, "{indent}{what}");
        text.extend(details.into_iter().map(|detail| format!("{indent}  {detail}\n")));
    };
    // What a test says of it is said there.
    let failed = tests.values().flat_map(|test| &test.failed);
    let told_of: BTreeSet<_> = failed.map(|probe| (&probe.from, &probe.to, &probe.service)).collect();
    let is_told = |pair: &Pair| told_of.contains(&(&pair.from, &pair.to, &pair.service));
    for pair in pairs.iter().filter(|pair| !pair.agrees() && !is_told(pair)) {
        let Pair { from, to, allowed, answers, service, via, rules, .. } = pair;
        let wrong = answers.iter().filter(|(_, took)| took.is_none() == *allowed);
        let at: Vec<_> = wrong.map(|(address, _)| address.to_string()).collect();
        let outcome = if *allowed { FailedOutcome::Nothing } else { FailedOutcome::Answered };
        let told = told(*allowed, outcome);
        let details = details(*allowed, via.as_ref(), rules);
        put(tried((from, to, &at.join(", ")), service), [vec![told], details].concat());
    }
    for verdict in tests.values().chain([sample]) {
        for FailedProbe { from, to, at, service, allowed, outcome, via, rules } in &verdict.failed {
            let asks = verdict.test.iter().map(|test| format!("as {} demands", place(test)));
            let told = std::iter::once(told(*allowed, *outcome)).chain(asks);
            let details = details(*allowed, via.as_ref(), rules);
            put(tried((from, to, &at.to_string()), service), told.chain(details).collect());
        }
    }
    for WayVerdict { from, to, at, expected, seen, test } in ways.iter().filter(|way| !way.agrees()) {
        let asks = test.iter().map(|test| format!("as {} demands", place(test)));
        let told = format!("must go {}; went {}", way(expected), way(seen));
        let ends = (&**from, &**to, &*at.to_string());
        put(between(ends), std::iter::once(told).chain(asks).collect());
    }
    for node in nodes.iter().filter(|node| !node.missing.is_empty()) {
        let missing: Vec<_> = node.missing.iter().map(String::as_str).collect();
        put(format!("{} does not resolve {}", node.name, missing.join(", ")), Vec::new());
    }
    text
}

/// Who tried whom, with what.
fn tried(ends: (&str, &str, &str), service: &str) -> String {
    format!("{} by {service}", between(ends))
}

fn between((from, to, at): (&str, &str, &str)) -> String {
    if to == at { format!("{from} -> {to}") } else { format!("{from} -> {to} ({at})") }
}

/// What must be, and what was.
fn told(allowed: bool, outcome: FailedOutcome) -> String {
    let must = if allowed { "must be reached" } else { "must not be reached" };
    let outcome = match outcome {
        FailedOutcome::Answered => "it answered",
        FailedOutcome::Refused => "something else refused it",
        FailedOutcome::Nothing => "nothing came back",
    };
    format!("{must}; {outcome}")
}

/// By which way, and by which rules.
fn details(allowed: bool, via: Option<&Vec<Name>>, rules: &[Rule]) -> Vec<String> {
    let via = match via {
        Some(via) if allowed => {
            let nodes: Vec<_> = via.iter().map(ToString::to_string).collect();
            Some(format!("the way: {}", way(&nodes)))
        }
        Some(_) => None,
        None => Some("the way: there is none".to_owned()),
    };
    let rules = rules.iter().map(|rule| format!("the rule: {}", place(rule)));
    via.into_iter().chain(rules).collect()
}

/// A rule, with its file and line where they are known.
fn place(Rule { id, file, line }: &Rule) -> String {
    match (file, line) {
        (Some(file), Some(line)) => format!("{id} ({}:{line})", plain(file)),
        (None, _) | (_, None) => id.to_string(),
    }
}

fn way(nodes: &[String]) -> String {
    if nodes.is_empty() { "directly".to_owned() } else { format!("via {}", nodes.join(", then ")) }
}
