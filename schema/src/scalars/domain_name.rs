//! Names of the DNS.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Scalar;
use super::name::a_label;
use crate::descriptor::{Reference, Target};

/// A host name of the DNS: labels joined by dots, without the dot at the end, in lower case.
///
/// At most 253 characters, each label 1 to 63 letters, digits and inner hyphens (RFC 1123, section 2.1).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(Arc<str>);

impl DomainName {
    /// The name as text, without the dot at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What it would be a name of if its last label were that of a network: `api` and `corp` for `api.corp`.
    pub fn in_network(&self) -> Option<(&str, &str)> {
        self.0.split_once('.').filter(|(_, network)| !network.contains('.'))
    }
}

impl Scalar for DomainName {
    const NAME: &'static str = "a domain name";
    const DOC: &'static str =
        "Labels of letters, digits and inner hyphens, joined by dots; at most 253 characters.";
    const GOOD: &'static [&'static str] = &["gw.example.net", "localhost", "EXAMPLE.net", "example.net."];
    const BAD: &'static [&'static str] = &["", ".", "a..b", "-a.net", "a_b.net", "a b", "bücher.example.net"];

    fn meant(text: &str) -> Option<String> {
        a_label(text).filter(|meant| meant.parse::<Self>().is_ok())
    }

    fn reference(&self) -> Option<Reference<'_>> {
        let (name, network) = self.in_network()?;
        let to = Target::NamedBy("alias");
        let network = Some(network);
        let text = self.as_str();
        Some(Reference { to, network, name, text, builds: true, path: Vec::new() })
    }
}

impl FromStr for DomainName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() || text.len() > 253 {
            return Err("it does not have 1 to 253 characters".into());
        }
        for label in text.split('.') {
            let inner = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            if label.is_empty()
                || label.len() > 63
                || !inner
                || label.starts_with('-')
                || label.ends_with('-')
            {
                let ascii = if label.is_ascii() { "" } else { " of ASCII" };
                return Err(format!(
                    "its part {label:?} is not 1 to 63 letters{ascii}, digits and inner hyphens"
                ));
            }
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
