//! A table as sets and chains by name, written in nft(8)'s language, and the commands that lead from one to
//! another. Knows nothing of what they mean.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::net::IpAddr;

use schema::access::ClassId;

use super::{Interval, MAPS, chain, map};

const TAKES_ALL: &str = "a text takes everything";

/// A table without its members.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Script {
    pub(super) sets: BTreeMap<String, Set>,
    /// The lines of chains; of a base chain the first says where it is asked.
    pub(super) chains: BTreeMap<String, Vec<String>>,
}

/// A set, or a map of what leads to chains.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) ty: &'static str,
    pub(super) interval: bool,
    pub(super) map: bool,
    pub(super) elements: Vec<String>,
}

impl Set {
    fn word(&self) -> &'static str {
        if self.map { "map" } else { "set" }
    }

    /// Its declaration, with its elements.
    fn text(&self, name: &str) -> String {
        let verdict = if self.map { " : verdict" } else { "" };
        let flags = if self.interval { " flags interval;" } else { "" };
        let elements = self.elements.join(", ");
        let elements = if elements.is_empty() { elements } else { format!(" elements = {{ {elements} }}") };
        format!("  {} {name} {{ type {}{verdict};{flags}{elements} }}\n", self.word(), self.ty)
    }
}

impl Script {
    /// The content of the table, with its members.
    pub(super) fn text(&self, members: &BTreeMap<IpAddr, ClassId>) -> String {
        let mut text = String::new();
        for (name, ty) in MAPS.into_iter().zip(["ipv4_addr", "ipv6_addr"]) {
            let of_family = members.iter().filter(|(address, _)| map(address) == name);
            let elements = of_family.map(|(address, class)| leads_to(address, class)).collect();
            text += &Set { ty, interval: false, map: true, elements }.text(name);
        }
        text.extend(self.sets.iter().map(|(name, set)| set.text(name)));
        text.extend(self.chains.iter().map(|(name, lines)| chain_text(name, lines)));
        text
    }

    /// The commands that lead to another one in this table, while members go and others come; empty: none.
    ///
    /// Sets that stay are emptied and filled, since nft(8) does not take what overlaps out and in again.
    pub(super) fn commands(
        &self,
        after: &Self,
        table: &str,
        gone: &BTreeSet<IpAddr>,
        new: &BTreeMap<IpAddr, ClassId>,
    ) -> String {
        let mut text = String::new();
        let mut say = |command: fmt::Arguments<'_>| writeln!(text, "{command}").expect(TAKES_ALL);
        let sets = differing(&self.sets, &after.sets);
        let chains = differing(&self.chains, &after.chains);
        for (map, elements) in by_map(gone.iter().map(|address| (*address, address.to_string()))) {
            say(format_args!("delete element inet {table} {map} {{ {elements} }}"));
        }
        for name in &sets.changed {
            say(format_args!("flush {} inet {table} {name}", after.sets[*name].word()));
        }
        for name in chains.gone.iter().chain(&chains.changed) {
            say(format_args!("flush chain inet {table} {name}"));
        }
        // No rule and no element leads to them any more.
        for name in &sets.gone {
            say(format_args!("delete {} inet {table} {name}", self.sets[*name].word()));
        }
        for name in &chains.gone {
            say(format_args!("delete chain inet {table} {name}"));
        }
        let made = sets.new.iter().map(|name| after.sets[*name].text(name));
        let put = chains.changed.iter().chain(&chains.new);
        let put = put.map(|name| chain_text(name, &after.chains[*name]));
        let body: String = made.chain(put).collect();
        if !body.is_empty() {
            say(format_args!("table inet {table} {{\n{body}}}"));
        }
        for name in &sets.changed {
            let elements = after.sets[*name].elements.join(", ");
            if !elements.is_empty() {
                say(format_args!("add element inet {table} {name} {{ {elements} }}"));
            }
        }
        for (map, elements) in by_map(new.iter().map(|(address, class)| (*address, leads_to(address, class))))
        {
            say(format_args!("add element inet {table} {map} {{ {elements} }}"));
        }
        text
    }
}

/// The names of what differs.
struct Differing<'a> {
    gone: Vec<&'a String>,
    changed: Vec<&'a String>,
    new: Vec<&'a String>,
}

fn differing<'a, T: PartialEq>(
    before: &'a BTreeMap<String, T>,
    after: &'a BTreeMap<String, T>,
) -> Differing<'a> {
    Differing {
        gone: before.keys().filter(|name| !after.contains_key(*name)).collect(),
        changed: after
            .iter()
            .filter(|(name, now)| before.get(*name).is_some_and(|then| then != *now))
            .map(|(name, _)| name)
            .collect(),
        new: after.keys().filter(|name| !before.contains_key(*name)).collect(),
    }
}

/// Elements, in one text for each map.
fn by_map(elements: impl Iterator<Item = (IpAddr, String)>) -> BTreeMap<&'static str, String> {
    let mut maps: BTreeMap<&str, String> = BTreeMap::new();
    for (address, element) in elements {
        let text = maps.entry(map(&address)).or_default();
        let comma = if text.is_empty() { "" } else { ", " };
        write!(text, "{comma}{element}").expect(TAKES_ALL);
    }
    maps
}

fn leads_to(address: &IpAddr, class: &ClassId) -> String {
    format!("{address} : jump {}", chain(class))
}

fn chain_text(name: &str, lines: &[String]) -> String {
    let lines: String = lines.iter().map(|line| format!("    {line}\n")).collect();
    format!("  chain {name} {{\n{lines}  }}\n")
}

/// As an element.
impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last, class } = self;
        write!(f, "{first}")?;
        if first != last {
            write!(f, "-{last}")?;
        }
        class.iter().try_for_each(|class| write!(f, " : jump {}", chain(class)))
    }
}
