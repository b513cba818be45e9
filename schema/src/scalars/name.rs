//! Names of networks and of what they hold.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use super::Scalar;

/// The name of a resource inside its network: a DNS label, so that a node can be called by it.
///
/// Lower-case letters, digits and inner hyphens, 1 to 63 characters (RFC 1123, section 2.1).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// The name of a network: a [`Name`] of at most 12 characters.
///
/// Its interface is `nm-<network>`, and Linux allows 15 characters for an interface (`IFNAMSIZ` less one).
/// `comms`, alone or followed by digits, is taken by the control tunnel.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkName(Name);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Name {
    /// The name that sorts before every other: where a search begins.
    pub(crate) fn lowest() -> Self {
        Self("0".into())
    }

    /// What sorts after every name: where a search goes on behind all of one kind.
    pub(crate) fn highest() -> Self {
        static HIGHEST: LazyLock<Name> = LazyLock::new(|| Name("z".repeat(64).into()));
        HIGHEST.clone()
    }
}

impl NetworkName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The same name, as that of any resource.
    pub fn name(&self) -> &Name {
        &self.0
    }
}

impl Scalar for Name {
    const NAME: &'static str = "a name";
    const DOC: &'static str = "Lower-case letters, digits and inner hyphens, 1 to 63 characters.";
    const GOOD: &'static [&'static str] = &["db-1", "gw-fra", "a", "0"];
    const BAD: &'static [&'static str] = &[
        "",
        "-a",
        "a-",
        "A",
        "a_b",
        "a.b",
        "ä",
        "a123456789012345678901234567890123456789012345678901234567890123",
    ];

    fn meant(text: &str) -> Option<String> {
        let name: Self = a_label(text).unwrap_or_else(|| shaped(text, 63)).parse().ok()?;
        (name.as_str() != text).then(|| name.to_string())
    }
}

/// A name that is not ASCII as the DNS has it (RFC 5890, section 2.3.2.1); absent: it is ASCII, or no name in any
/// writing.
pub(super) fn a_label(text: &str) -> Option<String> {
    if text.is_ascii() { None } else { idna::domain_to_ascii(text).ok() }
}

/// The text reduced to what a name may hold, cut to `longest`.
fn shaped(text: &str, longest: usize) -> String {
    let lower = text.to_lowercase().replace(['_', '.', ' '], "-");
    let kept = lower.chars().filter(|c| matches!(c, 'a'..='z' | '0'..='9' | '-'));
    let shaped: String = kept.skip_while(|c| *c == '-').take(longest).collect();
    shaped.trim_end_matches('-').to_owned()
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it is empty".into());
        }
        if let Some(odd) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
            let ascii = if odd.is_ascii() { "" } else { " of ASCII" };
            return Err(format!(
                "{odd:?} is not allowed in it; lower-case letters{ascii}, digits and inner hyphens are"
            ));
        }
        if text.len() > 63 {
            return Err(format!("it has {} characters; 63 are allowed", text.len()));
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err("it starts or ends with a hyphen".into());
        }
        Ok(Self(text.into()))
    }
}

impl Scalar for NetworkName {
    const NAME: &'static str = "a network's name";
    const DOC: &'static str =
        "A name of at most 12 characters; `comms`, alone or followed by digits, is reserved.";
    const GOOD: &'static [&'static str] = &["corp", "lab-2", "comms-x", "a23456789012"];
    const BAD: &'static [&'static str] = &["a234567890123", "comms", "comms2", "Corp"];

    fn meant(text: &str) -> Option<String> {
        let a_label = a_label(text).filter(|label| label.parse::<Self>().is_ok());
        let name: Self = a_label.unwrap_or_else(|| shaped(text, 12)).parse().ok()?;
        (name.as_str() != text).then(|| name.to_string())
    }
}

impl FromStr for NetworkName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name: Name = text.parse()?;
        if text.len() > 12 {
            return Err(format!(
                "it has {} characters; 12 are allowed, because its interface is nm-{text}",
                text.len()
            ));
        }
        let reserved =
            text.strip_prefix("comms").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
        if reserved {
            return Err("it is reserved for the control tunnel".into());
        }
        Ok(Self(name))
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for NetworkName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
