//! How often something may be used.

use std::fmt;
use std::str::FromStr;

use super::{Scalar, decimal};

/// How many nodes may join with a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Uses {
    /// At most so many, at least one.
    Count(u32),
    /// Any number.
    Unlimited,
}

impl Uses {
    /// How many are left after `used`; absent: any number.
    pub fn left(self, used: u32) -> Option<u32> {
        match self {
            Self::Count(count) => Some(count.saturating_sub(used)),
            Self::Unlimited => None,
        }
    }
}

impl Scalar for Uses {
    const NAME: &'static str = "a number of uses";
    const DOC: &'static str = "A whole number from 1 to 1000000, or `unlimited`.";
    const GOOD: &'static [&'static str] = &["50", "unlimited", "1"];
    const BAD: &'static [&'static str] = &["0", "-1", "1000001", "many", "", "1.5", "050", "+5"];
    const INTEGER: Option<fn(&Self) -> Option<i64>> = Some(|uses| uses.left(0).map(i64::from));

    fn meant(text: &str) -> Option<String> {
        let meant = text.trim_start_matches('0');
        Some(meant.to_owned()).filter(|meant| meant.parse::<Self>().is_ok())
    }
}

impl FromStr for Uses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unlimited" {
            return Ok(Self::Unlimited);
        }
        match decimal(text) {
            Some(count @ 1..=1_000_000) => Ok(Self::Count(count)),
            Some(_) | None => {
                Err("it is neither a whole number from 1 to 1000000, without leading zeros, nor `unlimited`"
                    .into())
            }
        }
    }
}

impl fmt::Display for Uses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::Unlimited => f.write_str("unlimited"),
        }
    }
}
