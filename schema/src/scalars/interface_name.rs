//! Names of network interfaces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Scalar;

/// The name of a network interface of a host, as the kernel allows it (`dev_valid_name` in Linux): 1 to 15
/// bytes, neither `.` nor `..`, without `/`, `:` and white space; here of printable ASCII alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(Box<str>);

impl InterfaceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Scalar for InterfaceName {
    const NAME: &'static str = "an interface name";
    const DOC: &'static str = "The name of a network interface of a host: 1 to 15 characters of printable ASCII, without `/`, `:`, quotes, \
        backslashes and spaces.";
    const GOOD: &'static [&'static str] = &["eth0", "enp3s0f1", "br-lan", "eth0.100", "wlan_0"];
    const BAD: &'static [&'static str] =
        &["", ".", "..", "a/b", "eth0:1", "a b", "sixteen-letters-", "büro", "a\"b", "a\\b", "*"];
}

impl FromStr for InterfaceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A wildcard of nft(8) would match other interfaces.
        let bad = |c: char| !c.is_ascii_graphic() || "/:\"\\*".contains(c);
        match text {
            "" => Err("it is empty".into()),
            "." | ".." => Err("no interface has this name".into()),
            _ if text.len() > 15 => Err("it has more than 15 characters".into()),
            _ if text.contains(bad) => {
                Err("it has a character that no name of an interface should have".into())
            }
            _ => Ok(Self(text.into())),
        }
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<InterfaceName> for String {
    fn from(name: InterfaceName) -> Self {
        name.0.into()
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
