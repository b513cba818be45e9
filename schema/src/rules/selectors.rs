//! What hardly means what its author thinks: selectors that select nothing, as far as files can say, ranges
//! that hold the network's own, endpoints that a range hides, and what a kind doubts of its own objects.
//!
//! All that [`check`] finds are warnings. It is for whoever reads files; who is selected at the moment
//! depends on who has joined, and is for a plan to say.

use std::cell::Cell;
use std::collections::BTreeSet;

use ipnet::IpNet;

use super::{Claim, Findings, endpoints};
use crate::descriptor::{Fields, Type};
use crate::kinds::{Group, Network, Resource};
use crate::report::{Code, Problem, Report, did_you_mean};
use crate::rules::source_map::SourceMap;
use crate::scalars::{Name, Scalar, Selector, overlap};
use crate::snapshot::{Entry, ResourceId, Snapshot};
use crate::value::{Data, Step, Value};

/// What an object selects: by a selector, or by the tag of a group.
struct Selection<'a> {
    selector: Selector,
    /// As it is written.
    text: String,
    /// The steps to it; for a member of a set, to the set.
    path: &'a [Step<'static>],
}

/// Checks what is selected, in declarations that break no rule.
pub fn check(world: &Snapshot, source_map: &SourceMap) -> Report {
    let suggestions = Cell::new(0);
    let mut findings = Findings { report: Report::default(), source_map, id: None, suggestions };
    for (name, network) in world.networks() {
        let given = world.entries_in(name).filter_map(|(_, entry)| entry.object.tags_given());
        let tags: BTreeSet<&Name> = given.flatten().collect();
        let claims = world.entries_in(name).flat_map(|(_, entry)| entry.object.claims());
        let routes = claims.filter_map(|(_, claim)| route(claim)).collect();
        let known = Known { network, tags, routes };
        for (id, entry) in world.entries_in(name) {
            selections(entry, &mut |selection| {
                if let Some(problem) = doubt(&selection, id, &known, &findings) {
                    let Selection { text, path, .. } = &selection;
                    findings.report.push(problem.at(source_map.element_or_field(id, path, text)).about(id));
                }
            });
        }
    }
    for (id, entry) in world.entries() {
        findings.id = Some(id);
        entry.object.doubt(id, world, &mut findings);
    }
    findings.report.append(endpoints::check_hidden(world, source_map));
    findings.report
}

/// What selectors of a network may select.
struct Known<'a> {
    network: &'a Network,
    /// The tags that somebody has, or will have.
    tags: BTreeSet<&'a Name>,
    /// The ranges outside of it that are forwarded to.
    routes: Vec<IpNet>,
}

fn route(claim: Claim) -> Option<IpNet> {
    match claim {
        Claim::Route(range) => Some(range),
        Claim::Range(_) | Claim::Pool(_) | Claim::Reserved(_) | Claim::Meant(_) | Claim::Endpoint(_) => None,
    }
}

/// Visits all that an object selects.
fn selections(entry: &Entry, visit: &mut dyn FnMut(Selection<'_>)) {
    if let Some(group) = Group::of(&entry.object) {
        for tag in &group.tags {
            let path = &[Step::Field("tags")];
            visit(Selection { selector: Selector::Tag(tag.clone()), text: tag.to_string(), path });
        }
    }
    let fields = entry.object.kind().descriptor().fields;
    if holds_selectors(fields) {
        walk(&Type::Record(fields), &entry.object.body(), &mut Vec::new(), visit);
    }
}

fn is_selector(ty: &Type) -> bool {
    matches!(ty, Type::Scalar(scalar) if scalar.name == Selector::NAME)
}

fn holds_selectors(fields: &Fields) -> bool {
    let mut holds = false;
    fields.iter().for_each(|field| field.ty.walk(&mut |ty| holds |= is_selector(ty)));
    holds
}

/// Visits the selectors in a value of a type.
fn walk(ty: &Type, value: &Value, path: &mut Vec<Step<'static>>, visit: &mut dyn FnMut(Selection<'_>)) {
    match (ty, &value.data) {
        (_, Data::Text(text)) if is_selector(ty) => {
            if let Ok(selector) = text.parse() {
                visit(Selection { selector, text: text.to_string(), path });
            }
        }
        (Type::Record(fields), Data::Record(record)) => {
            for field in *fields {
                let Some(member) = record.get(field.name) else { continue };
                path.push(Step::Field(field.name));
                walk(&field.ty, &member.value, path, visit);
                path.pop();
            }
        }
        (Type::List(inner), Data::List(items)) => {
            for (index, item) in items.iter().enumerate() {
                path.push(Step::Index(index));
                walk(inner, item, path, visit);
                path.pop();
            }
        }
        (Type::Set(inner), Data::List(items)) => {
            items.iter().for_each(|item| walk(inner, item, path, visit));
        }
        // The names of a map are not part of a path.
        (Type::Map(inner), Data::Record(record)) => {
            record.values().for_each(|member| walk(inner, &member.value, path, visit));
        }
        (Type::NonEmpty(inner), _) => walk(inner, value, path, visit),
        (_, _) => {}
    }
}

/// What is doubtful about a selection; nothing if it may select somebody.
fn doubt(
    selection: &Selection<'_>,
    id: &ResourceId,
    known: &Known<'_>,
    findings: &Findings<'_>,
) -> Option<Problem> {
    let tags = &known.tags;
    let Selection { selector, text, path } = selection;
    let field = path.iter().rev().find_map(|step| step.field()).unwrap_or_default();
    let selects = format!("`{field}` of {id} selects {text:?}");
    match selector {
        Selector::Name(_) | Selector::All => None,
        Selector::Tag(tag) if tags.contains(tag) => None,
        Selector::Tag(tag) => {
            let before = text.strip_suffix(tag.as_str()).unwrap_or_default();
            let known = if findings.may_suggest() { tags.iter().collect() } else { Vec::new() };
            let known: Vec<_> = known.into_iter().map(|tag| format!("{before}{tag}")).collect();
            let give = || {
                "give a node, an external client or an access key that tag, or select something else"
                    .to_owned()
            };
            let message = format!(
                "{selects}, but no declared node or external client has that tag, and no access key gives it"
            );
            let help = did_you_mean(text, known.iter().map(String::as_str)).unwrap_or_else(give);
            Some(Problem::new(Code::SelectsNothing, message).help(help))
        }
        Selector::Range(range) => doubtful_range(&selects, *range, known, field == "for"),
    }
}

/// The same of a range; `members` are all that may be meant where hosts outside of the network are not.
fn doubtful_range(selects: &str, range: IpNet, known: &Known<'_>, members: bool) -> Option<Problem> {
    let Known { network, routes, .. } = known;
    let reached = |reaches: &dyn Fn(&IpNet) -> bool| !members && routes.iter().any(reaches);
    let nothing = |why: &str| Problem::new(Code::SelectsNothing, format!("{selects}, {why}"));
    let single = range.prefix_len() == range.max_prefix_len();
    match network.range_of(range.network()) {
        _ if range.prefix_len() == 0 && reached(&|route| *route == range) => None,
        _ if range.prefix_len() == 0 => {
            let why = if members { "and no member is there" } else { "and the network has none" };
            let problem = nothing(&format!("which means a gateway to the internet, {why}"));
            Some(problem.help("write \"*\" for every member".to_owned()))
        }
        Some(own) if own.contains(&range) => (single && !network.has_room_at(range.network())).then(|| {
            nothing("an address that no member can have")
                .help(format!("choose another address of {own}, or a wider range"))
        }),
        Some(own) if range.contains(&own) => {
            let message = format!(
                "{selects}, which holds the network's own {own}, so every member with an address there is selected"
            );
            let help = format!("write \"*\" for every member, or only what lies outside of {own}");
            Some(Problem::new(Code::RangeHoldsNetwork, message).help(help))
        }
        Some(_) | None if reached(&|route| overlap(route, &range)) => None,
        Some(_) | None if members => {
            let problem = nothing("which lies outside of the network, where no member is");
            Some(problem.help(select_members(network)))
        }
        Some(_) | None => {
            let problem = nothing("which lies outside of the network, and no egress forwards to it");
            Some(problem.help(format!("declare an egress for it, or {}", select_members(network))))
        }
    }
}

fn select_members(network: &Network) -> String {
    let own: Vec<_> = network.ranges().map(|range| range.to_string()).collect();
    format!("select members: by name, by tag, or by a range inside of {}", own.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;
    use crate::kinds::Kind;
    use crate::rules;
    use crate::syntax::{Language, Source, parse};
    use crate::value::SourceId;

    /// The problems of a selector in a network of both families.
    fn found(selector: &str) -> Vec<Code> {
        found_with(selector, "")
    }

    /// The same, where more is declared.
    fn found_with(selector: &str, more: &str) -> Vec<Code> {
        let text = format!(
            r#"network "corp" acl="deny" ipv4="10.40.0.0/16" ipv6="fd40::/64" {{
                node "a" {{ tags "of-node"; }}
                access-key "k" {{ tags "of-key"; }}
                group "g" tags="of-key"
                allow "x" from="a" to={selector:?}
                {more}
            }}
            network "lab" ipv4="10.41.0.0/16" {{ node "b" {{ tags "elsewhere"; }}; }}"#
        );
        let source = Source { name: "a.kdl".into(), text: text.into(), language: Language::Kdl };
        let (declared, mut report) = decode(parse(&source, SourceId(0), Kind::DESCRIPTORS).0);
        report.append(rules::check(&declared.snapshot, &declared.source_map));
        assert!(report.is_empty(), "{selector}: {report:#?}");
        let report = check(&declared.snapshot, &declared.source_map);
        report.problems().map(|problem| problem.code).collect()
    }

    #[test]
    fn a_selector_that_may_select_somebody_is_no_problem_and_every_other_is() {
        for good in [
            "a",
            "g",
            "*",
            "tag:of-node",
            "tag:of-key",
            "10.40.0.0/16",
            "10.40.0.0/31",
            "10.40.0.1/32",
            "fd40::/64",
            "fd40::1/128",
            "10.40.255.254/32",
        ] {
            assert_eq!(found(good), [], "{good}");
        }
        for bad in [
            "tag:nobody",
            "tag:elsewhere",
            "10.40.0.0/32",
            "10.40.255.255/32",
            "fd40::/128",
            "10.41.0.0/16",
            "0.0.0.0/0",
            "::/0",
            "fd41::/64",
        ] {
            assert_eq!(found(bad), [Code::SelectsNothing], "{bad}");
        }
        for wide in ["10.0.0.0/8", "0.0.0.0/1", "fd00::/8"] {
            assert_eq!(found(wide), [Code::RangeHoldsNetwork], "{wide}");
        }
    }

    #[test]
    fn a_range_outside_of_the_network_selects_what_an_egress_forwards_to() {
        let egress = |ranges: &str| format!("egress \"e\" via=\"a\" {{ ranges {ranges}; }}");
        let (office, both) = (egress("\"192.168.0.0/16\""), egress("\"192.168.0.0/16\" \"0.0.0.0/0\""));
        for good in ["192.168.0.0/16", "192.168.7.0/24", "192.0.0.0/8", "192.168.7.9/32"] {
            assert_eq!(found_with(good, &office), [], "{good}");
        }
        for bad in ["10.41.0.0/16", "0.0.0.0/0", "::/0", "fd41::/64"] {
            assert_eq!(found_with(bad, &office), [Code::SelectsNothing], "{bad}");
        }
        for good in ["0.0.0.0/0", "203.0.113.0/24"] {
            assert_eq!(found_with(good, &both), [], "{good}");
        }
        assert_eq!(found_with("::/0", &both), [Code::SelectsNothing]);
        let only_for =
            |of: &str| format!("egress \"f\" via=\"a\" ranges=\"172.16.0.0/24\" for={of:?};{both}");
        assert_eq!(found_with("a", &only_for("tag:of-key")), []);
        for outside in ["192.168.7.0/24", "0.0.0.0/0"] {
            assert_eq!(
                found_with("a", &only_for(outside)),
                [Code::SelectsNothing],
                "no member is in {outside}"
            );
        }
    }
}
