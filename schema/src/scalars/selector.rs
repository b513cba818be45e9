//! Which members or addresses a rule, a route or a test is about.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::{Name, Scalar};
use crate::descriptor::{Reference, Target};

/// One form of saying which members or addresses are meant.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// The node of the name, or the members of the group of that name.
    Name(Name),
    /// Every member with the tag.
    Tag(Name),
    /// Every address of the range.
    Range(IpNet),
    /// Every member.
    All,
}

/// The prefix of a tag.
const TAG: &str = "tag:";

impl Scalar for Selector {
    const NAME: &'static str = "a selector";
    const DOC: &'static str = "A declared name; `tag:` and a tag, for every member that has it; a range in CIDR notation (one address \
        as `10.40.0.7/32`), for every member with an address in it, but `0.0.0.0/0` and `::/0` for none; or `*`, \
        for every member.";
    const GOOD: &'static [&'static str] =
        &["db-1", "tag:web", "192.168.10.0/24", "*", "0.0.0.0/0", "fd40::7/128"];
    const BAD: &'static [&'static str] = &[
        "",
        "tag:",
        "tag:Web",
        "tags:web",
        "10.40.0.7",
        "fd40::7",
        "10.40.0.7/16",
        "10.40.0.0/33",
        "**",
        "a/b",
    ];
    const NAMES: Option<&'static str> = Some("selector");

    fn meant(text: &str) -> Option<String> {
        let meant = match (text.parse::<IpAddr>(), text.parse::<IpNet>(), text.strip_prefix(TAG)) {
            (Ok(address), ..) => IpNet::from(address).to_string(),
            (_, Ok(range), _) => range.trunc().to_string(),
            (_, _, Some(tag)) => format!("{TAG}{}", Name::meant(tag)?),
            (_, _, None) if text.contains(['/', ':', '.']) => return None,
            (_, _, None) => Name::meant(text)?,
        };
        meant.parse::<Self>().is_ok().then_some(meant)
    }

    fn reference(&self) -> Option<Reference<'_>> {
        let Self::Name(name) = self else { return None };
        let to = Target::NamedBy("selector");
        let name = name.as_str();
        Some(Reference { to, network: None, name, text: name, builds: false, path: Vec::new() })
    }
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::All);
        }
        if let Some(tag) = text.strip_prefix(TAG) {
            return tag.parse().map(Self::Tag).map_err(|why| format!("its tag is not a name: {why}"));
        }
        if text.parse::<IpAddr>().is_ok() {
            return Err("an address needs a prefix length".into());
        }
        if !text.contains('/') {
            return text.parse().map(Self::Name);
        }
        let range: IpNet = text.parse().map_err(|_| "it is not written like 192.168.10.0/24 or fd40::/64")?;
        if range.trunc() != range {
            return Err(format!("bits are set beyond its prefix; the range is {}", range.trunc()));
        }
        Ok(Self::Range(range))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => name.fmt(f),
            Self::Tag(tag) => write!(f, "{TAG}{tag}"),
            Self::Range(range) => range.fmt(f),
            Self::All => f.write_str("*"),
        }
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read_as_what_it_selects_and_written_back() {
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let range = |text: &str| Selector::Range(text.parse().expect("a range"));
        for (text, selector) in [
            ("db-1", Selector::Name(name("db-1"))),
            ("7", Selector::Name(name("7"))),
            ("tag:web", Selector::Tag(name("web"))),
            ("192.168.10.0/24", range("192.168.10.0/24")),
            ("10.40.0.7/32", range("10.40.0.7/32")),
            ("::/0", range("::/0")),
            ("*", Selector::All),
        ] {
            assert_eq!(text.parse(), Ok(selector.clone()));
            assert_eq!(selector.to_string(), text);
        }
    }

    #[test]
    fn what_is_refused_is_refused_with_what_was_meant() {
        for (text, why, meant) in [
            ("10.40.0.7", "an address needs a prefix length", Some("10.40.0.7/32")),
            ("FD40:0::7", "an address needs a prefix length", Some("fd40::7/128")),
            (
                "10.40.0.7/16",
                "bits are set beyond its prefix; the range is 10.40.0.0/16",
                Some("10.40.0.0/16"),
            ),
            ("10.40.0.0/33", "it is not written like 192.168.10.0/24 or fd40::/64", None),
            ("tag:", "its tag is not a name: it is empty", None),
            (
                "tag:Web_1",
                "its tag is not a name: 'W' is not allowed in it; lower-case letters, digits and inner hyphens are",
                Some("tag:web-1"),
            ),
            ("DB", "'D' is not allowed in it; lower-case letters, digits and inner hyphens are", Some("db")),
        ] {
            assert_eq!(text.parse::<Selector>().expect_err("it is refused"), why, "{text}");
            assert_eq!(Selector::meant(text).as_deref(), meant, "{text}");
        }
    }

    #[test]
    fn only_a_name_is_a_reference() {
        let names: Vec<_> =
            Selector::GOOD.iter().map(|text| text.parse::<Selector>().expect("good")).collect();
        let names: Vec<_> =
            names.iter().filter_map(|it| it.reference().map(|reference| reference.name)).collect();
        assert_eq!(names, ["db-1"]);
    }
}
