//! How much of something a change may do.

use std::fmt;
use std::str::FromStr;

use super::{Scalar, decimal};

/// How much of something a change may do at most: a number, a percentage of what there is, or the larger of
/// both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Limit {
    /// Absent: no percentage is allowed, the number alone counts. At most 100.
    percent: Option<u8>,
    /// Absent: the percentage alone counts.
    number: Option<u32>,
}

impl Limit {
    /// How many of `total` are allowed; of a percentage, the whole ones.
    pub fn of(self, total: u64) -> u64 {
        let share = self.percent.map(|percent| u128::from(total) * u128::from(percent) / 100);
        let share = share.map_or(0, |share| u64::try_from(share).unwrap_or(total));
        share.max(self.number.unwrap_or(0).into())
    }
}

impl Scalar for Limit {
    const NAME: &'static str = "a limit";
    const DOC: &'static str = "A whole number, a percentage of what there is (whole, 0 to 100; of the result, fractions do not count), or both, of which the larger is allowed.";
    const GOOD: &'static [&'static str] = &["5% or 3", "25%", "3", "3 or 5%", "0", "0%", "100%"];
    const BAD: &'static [&'static str] = &[
        "", "-1", "101%", "1.5%", "5 %", "5%,3", "5% and 3", "5% or", "3 or 4", "5% or 6%", "%", "05%",
        "many",
    ];
    const INTEGER: Option<fn(&Self) -> Option<i64>> = Some(|limit| match limit {
        Self { percent: None, number } => number.map(i64::from),
        Self { percent: Some(_), number: _ } => None,
    });

    fn meant(text: &str) -> Option<String> {
        let plain = text.to_lowercase().replace(" or ", ",").replace(" and ", ",").replace(' ', "");
        let parts = plain.split([',', '/', '|']).map(|part| match part.trim_start_matches('0') {
            "" | "%" => part.to_owned(),
            kept => kept.to_owned(),
        });
        let meant: Self = parts.collect::<Vec<_>>().join(" or ").parse().ok()?;
        Some(meant.to_string())
    }
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "it is not written like 3, 5% or \"5% or 3\", with whole numbers";
        let part = |part: &str| match part.strip_suffix('%') {
            Some(percent) => match decimal(percent) {
                Some(percent @ 0..=100) => Ok(Self { percent: Some(percent), number: None }),
                Some(_) => Err("there are at most 100 percent".to_owned()),
                None if decimal::<u64>(percent).is_some() => Err("there are at most 100 percent".to_owned()),
                None => Err(FORM.to_owned()),
            },
            None => match decimal(part) {
                Some(number) => Ok(Self { percent: None, number: Some(number) }),
                None if decimal::<u128>(part).is_some() => Err(format!("it is larger than {}", u32::MAX)),
                None => Err(FORM.to_owned()),
            },
        };
        let Some((one, other)) = text.split_once(" or ") else { return part(text) };
        match (part(one)?, part(other)?) {
            (Self { percent, number: None }, Self { percent: None, number })
            | (Self { percent: None, number }, Self { percent, number: None }) => {
                Ok(Self { percent, number })
            }
            _ => Err("one of the two is a percentage, and the other a number".to_owned()),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.percent, self.number) {
            (Some(percent), Some(number)) => write!(f, "{percent}% or {number}"),
            (Some(percent), None) => write!(f, "{percent}%"),
            (None, number) => number.unwrap_or(0).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_of_percentage_and_number_is_allowed_and_fractions_do_not_count() {
        let allowed = |text: &str, total| text.parse::<Limit>().expect("good").of(total);
        assert_eq!(
            [0, 1, 19, 20, 79, 80, 1_000].map(|total| allowed("5% or 3", total)),
            [3, 3, 3, 3, 3, 4, 50]
        );
        assert_eq!([0, 3, 4, 99].map(|total| allowed("25%", total)), [0, 0, 1, 24]);
        assert_eq!([0, 1_000].map(|total| allowed("7", total)), [7, 7]);
        assert_eq!(allowed("100%", u64::MAX), u64::MAX);
        assert_eq!(["3 or 5%", "03"].map(Limit::meant), [Some("5% or 3".into()), Some("3".into())]);
    }

    #[test]
    fn what_is_wrong_is_said_and_what_was_meant_proposed() {
        let why = |text: &str| text.parse::<Limit>().expect_err("it is not one");
        for text in ["101%", "100000%"] {
            assert_eq!(why(text), "there are at most 100 percent", "{text}");
        }
        assert_eq!(why("5000000000"), "it is larger than 4294967295");
        assert_eq!(why("3 or 4"), "one of the two is a percentage, and the other a number");
        assert!(why("few").contains("it is not written like"));
        for (text, meant) in
            [("5 %", "5%"), ("5%,3", "5% or 3"), ("5% and 3", "5% or 3"), ("05%", "5%"), ("0 %", "0%")]
        {
            assert_eq!(Limit::meant(text).as_deref(), Some(meant), "{text}");
        }
        assert_eq!([Limit::meant("few"), Limit::meant("-1")], [None, None]);
    }
}
