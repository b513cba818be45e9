//! What the name of a network is in the DNS: its names end in it, as those of others end in a top-level domain.
//!
//! Agents let names of a network resolve before those of anybody else, and a name server of its zone answers
//! nothing else below it. A name that hosts or others need is refused; one that is delegated to somebody is a
//! warning, since nobody in the network may ever need a name below it.

use crate::scalars::NetworkName;

/// Top-level domains with names that hosts resolve in their own way (the registry of Special-Use Domain Names,
/// RFC 6761), and those that nearly every host needs; with what each is.
const TAKEN: &[(&str, &str)] = &[
    ("alt", "is for names outside of the DNS (RFC 9476)"),
    ("arpa", "is the domain of the internet's own infrastructure (RFC 3172)"),
    ("com", "is a public domain"),
    ("example", "is for documentation (RFC 6761)"),
    ("invalid", "never resolves (RFC 6761)"),
    ("local", "is resolved on the link by multicast (RFC 6762)"),
    ("localhost", "is each host's own (RFC 6761)"),
    ("net", "is a public domain"),
    ("onion", "belongs to Tor (RFC 7686)"),
    ("org", "is a public domain"),
    ("test", "is for tests of DNS software (RFC 6761)"),
];

/// The other top-level domains that IANA has delegated, of 3 to 12 characters, in order: as of 2023. One that was
/// delegated later is no warning, one that is gone is one.
const DELEGATED: &str = include_str!("delegated.txt");

/// What a network's name is to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Hosts or others need it: why, as the end of a sentence that names it.
    Taken(&'static str),
    /// Somebody has it as a top-level domain.
    Delegated,
}

/// What the name of a network is to others; absent: nothing.
pub fn standing(network: &NetworkName) -> Option<Standing> {
    let name = network.as_str();
    if let Some((_, what)) = TAKEN.iter().find(|(taken, _)| *taken == name) {
        return Some(Standing::Taken(what));
    }
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Standing::Taken("programs take for the end of an address (RFC 1123, section 2.1)"));
    }
    if name.len() == 2 && name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Some(Standing::Taken("is a country's, or kept for one (ISO 3166)"));
    }
    DELEGATED.split_whitespace().any(|delegated| delegated == name).then_some(Standing::Delegated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_hosts_or_others_need_is_taken_and_one_that_somebody_has_is_known() {
        let standing = |name: &str| standing(&name.parse().expect("a name"));
        for name in ["com", "net", "org", "arpa", "test", "localhost", "de", "zz", "42", "0"] {
            assert!(matches!(standing(name), Some(Standing::Taken(_))), "{name}");
        }
        for name in ["dev", "cloud", "app", "xn--p1acf"] {
            assert_eq!(standing(name), Some(Standing::Delegated), "{name}");
        }
        for name in ["corp", "home", "lan", "internal", "a1", "1a", "0x10", "x"] {
            assert_eq!(standing(name), None, "{name}");
        }
    }

    #[test]
    fn the_list_holds_names_of_networks_alone_each_once() {
        let listed: Vec<_> = DELEGATED.split_whitespace().collect();
        assert!(listed.is_sorted_by(|one, next| one < next));
        for name in listed {
            assert!(name.parse::<NetworkName>().is_ok() && name.len() > 2, "{name}");
            assert!(TAKEN.iter().all(|(taken, _)| *taken != name), "{name}");
        }
    }
}
