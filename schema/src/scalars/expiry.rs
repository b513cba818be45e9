//! When something expires.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::{Scalar, Seconds};

/// When something expires: a time after its creation, or at a date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Expiry {
    /// This long after its creation, by the server's clock.
    After(Seconds),
    /// At the start of this day, in UTC.
    On(Date),
}

impl Expiry {
    /// The moment, for something made at `created`; the last representable one where it lies beyond all
    /// dates.
    pub fn moment(self, created: Timestamp) -> Timestamp {
        let moment = match self {
            Self::After(span) => created.checked_add(span.duration()).ok(),
            Self::On(date) => TimeZone::UTC.to_timestamp(date.into()).ok(),
        };
        moment.unwrap_or(Timestamp::MAX)
    }
}

impl Scalar for Expiry {
    const NAME: &'static str = "a date or a duration";
    const DOC: &'static str = "A day (`2027-03-01`: it expires at the start of it, in UTC) or a duration after the creation (`30d`).";
    const GOOD: &'static [&'static str] = &["30d", "2027-03-01", "12h"];
    const BAD: &'static [&'static str] =
        &["", "tomorrow", "2027-13-01", "2027-02-30", "30", "0s", "99999999d", "030d"];
}

impl FromStr for Expiry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Seconds>() {
            Ok(Seconds(0)) => return Err("it expires at once".into()),
            Ok(span) => return Ok(Self::After(span)),
            // What is shaped like a duration is one, though perhaps too long.
            Err(why)
                if text.starts_with(|c: char| c.is_ascii_digit()) && text.ends_with(char::is_alphabetic) =>
            {
                return Err(why);
            }
            Err(_) => {}
        }
        let shaped = text.len() == 10 && text.bytes().filter(|b| *b == b'-').count() == 2;
        match (shaped, text.parse()) {
            (true, Ok(date)) => Ok(Self::On(date)),
            (true, Err(_)) => Err("that day does not exist".into()),
            (false, _) => Err("it is not written like 30d or 2027-03-01".into()),
        }
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::After(span) => span.fmt(f),
            Self::On(date) => date.fmt(f),
        }
    }
}
