//! Spans of time.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{Scalar, decimal};

/// A span of time in whole seconds, written with its unit: `90s`, `15m`, `24h`, `30d`, also `1h30m`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds(pub u32);

const UNITS: [(char, u32); 5] = [('w', 604_800), ('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

impl Seconds {
    /// A number of hours.
    pub const fn hours(count: u32) -> Self {
        Self(count * 3_600)
    }

    /// The same span as the standard library's type.
    pub const fn duration(self) -> Duration {
        Duration::from_secs(self.0 as u64)
    }
}

impl Scalar for Seconds {
    const NAME: &'static str = "a duration";
    const DOC: &'static str = "Whole numbers with their units: `s`, `m`, `h`, `d`, `w`; largest unit first. A bare number is seconds.";
    const GOOD: &'static [&'static str] = &["20s", "15m", "24h", "30d", "1h30m", "0s", "2w"];
    const BAD: &'static [&'static str] =
        &["", "20", "s", "1.5h", "-1s", "30m1h", "1d1d", "99999999999s", "99999999d", "5 m", "05m"];
    const INTEGER: Option<fn(&Self) -> Option<i64>> = Some(|_| None);

    fn meant(text: &str) -> Option<String> {
        // A bare number is seconds, and zeros before a number mean nothing.
        let parts = text.split_inclusive(|c: char| c.is_ascii_alphabetic()).map(|part| {
            let kept = part.trim_start_matches('0');
            if kept.starts_with(|c: char| c.is_ascii_digit()) { kept.to_owned() } else { format!("0{kept}") }
        });
        let text: String = parts.collect();
        let seconds: Self = decimal(&text).map(Self).or_else(|| text.parse().ok())?;
        Some(seconds.to_string())
    }

    fn from_integer(number: i64) -> Result<Self, String> {
        u32::try_from(number).map(Self).map_err(|_| "it is not between 0 seconds and 136 years".into())
    }
}

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const TOO_LONG: &str = "it is longer than 136 years";
        const FORM: &str = "it is not written like 20s, 15m, 24h or 1h30m";
        let mut total = 0u32;
        let mut digits = String::new();
        let mut units = UNITS.as_slice();
        for c in text.chars() {
            if c.is_ascii_digit() {
                digits.push(c);
                continue;
            }
            let place = units.iter().position(|(unit, _)| *unit == c).ok_or(FORM)?;
            let count = std::mem::take(&mut digits);
            if count.len() > 1 && count.starts_with('0') {
                return Err("its numbers are written without leading zeros".into());
            }
            if count.is_empty() {
                return Err(FORM.into());
            }
            let count: u32 = count.parse().map_err(|_| TOO_LONG)?;
            let more = count.checked_mul(units[place].1).and_then(|more| total.checked_add(more));
            total = more.ok_or(TOO_LONG)?;
            units = &units[place + 1..];
        }
        if text.is_empty() || !digits.is_empty() {
            return Err(FORM.into());
        }
        Ok(Self(total))
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        // Weeks are read but not written: "30d" should not come back as "4w2d".
        let mut rest = self.0;
        for (unit, size) in &UNITS[1..] {
            let count = rest / size;
            rest %= size;
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_or_has_leading_zeros_is_told_so() {
        let why = |text: &str| text.parse::<Seconds>().expect_err("it is not one");
        for text in ["99999999d", "99999999999s", "9999999999999999999999w", "4294967295s1s"] {
            assert!(
                why(text).contains("longer than 136 years") || text.ends_with("1s"),
                "{text}: {}",
                why(text)
            );
        }
        assert!(why("090s").contains("without leading zeros"));
        assert_eq!(Seconds::meant("090s").as_deref(), Some("1m30s"));
        assert_eq!(Seconds::meant("01h030m").as_deref(), Some("1h30m"));
        assert_eq!(Seconds::meant("0020").as_deref(), Some("20s"));
        assert_eq!(Seconds::meant("20").as_deref(), Some("20s"));
        assert_eq!(Seconds::meant("soon"), None);
    }
}
