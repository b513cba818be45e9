//! Ports that a rule names.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::{Scalar, decimal};

/// One port, or a range of ports with both ends in it; 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The ports.
    pub fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl Scalar for PortRange {
    const NAME: &'static str = "a port or a range of ports";
    const DOC: &'static str = "A port from 1 to 65535, or two with a hyphen between them, the lower one first, for all from one to the other.";
    const GOOD: &'static [&'static str] = &["5432", "8000-8999", "1", "65535", "1-65535"];
    const BAD: &'static [&'static str] = &[
        "", "0", "65536", "http", "80,443", "80:90", "90-80", "-80", "80-", "080", "1-65536", "80 - 90",
        "1-2-3", "80, 443",
    ];
    const INTEGER: Option<fn(&Self) -> Option<i64>> =
        Some(|range| (range.first == range.last).then_some(i64::from(range.first)));

    fn meant(text: &str) -> Option<String> {
        let (first, last) = text.split_once(['-', ':', '\u{2013}'])?;
        let (first, last): (u16, u16) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let meant = format!("{}-{}", first.min(last), first.max(last));
        meant.parse::<Self>().is_ok().then_some(meant)
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (decimal::<u16>(first), decimal::<u16>(last)) {
            (Some(first @ 1..), Some(last @ 1..)) if first <= last => Ok(Self { first, last }),
            (Some(1..), Some(1..)) => Err("its first port is greater than its last".into()),
            _ if text.contains(',') => Err("it is several; write each as a value of its own".into()),
            _ => Err("it is neither a port from 1 to 65535 nor a range of ports such as 8000-8999".into()),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        if first == last { first.fmt(f) } else { write!(f, "{first}-{last}") }
    }
}
