//! Fields that hold one value: newtypes that only their parser makes.
//!
//! Each scalar owns its range and its normal form; [`Scalar::GOOD`] and [`Scalar::BAD`] are shown in the
//! reference and tested by one test over all of them. A scalar is written the same way in every language, on
//! the wire and in the store: as the text that [`Display`](std::fmt::Display) writes.

pub(crate) mod described;
mod domain_name;
mod endpoint;
mod expiry;
mod fingerprint;
mod interface_name;
mod keys;
mod limit;
mod name;
mod ports;
mod range;
mod seconds;
mod selector;
mod uses;

pub use described::Time;
pub use domain_name::DomainName;
pub use endpoint::{Endpoint, EndpointHost, Port};
pub use expiry::Expiry;
pub use fingerprint::Fingerprint;
pub use interface_name::InterfaceName;
pub use keys::{CaPin, Identity, SigningKey, Verifier, WireGuardKey};
pub use limit::Limit;
pub use name::{Name, NetworkName};
pub use ports::PortRange;
pub use range::{Ipv4Range, Ipv6Range, OuterRange, is_default, overlap};
pub use seconds::Seconds;
pub use selector::Selector;
pub use uses::Uses;

use std::fmt::Display;
use std::str::FromStr;

use crate::descriptor::Reference;

/// A value that is written as one word; only its parser makes one.
///
/// The error of the parser is the end of the sentence "`"x"` is not a NAME: ..."; it says what is wrong, not
/// what was given.
pub trait Scalar: Clone + Ord + Display + FromStr<Err: Display> {
    /// What it is called in messages and in the reference, with its article: `a duration`.
    const NAME: &'static str;
    /// What it means and what it may hold, for the reference.
    const DOC: &'static str;
    /// Texts that parse, the first of them typical.
    const GOOD: &'static [&'static str];
    /// Texts that do not.
    const BAD: &'static [&'static str];
    /// How a value is written as a bare number, if it is; absent: the scalar has no bare numbers, and they
    /// are refused.
    const INTEGER: Option<fn(&Self) -> Option<i64>> = None;

    /// The word of the kinds that are named by it (see [`Descriptor`](crate::descriptor::Descriptor)), whose
    /// names are values of it; absent: names are none.
    const NAMES: Option<&'static str> = None;

    /// A text that parses and that the author of one that does not may have meant.
    fn meant(_text: &str) -> Option<String> {
        None
    }

    /// The name of another resource, if it holds one.
    fn reference(&self) -> Option<Reference<'_>> {
        None
    }

    /// Reads a bare number: by default as its text.
    fn from_integer(number: i64) -> Result<Self, <Self as FromStr>::Err> {
        number.to_string().parse()
    }
}

/// A whole number as it is written everywhere: digits alone, without a sign and without leading zeros, since
/// readers disagree about whether those make it octal. Absent: it is not written so, or too large.
pub(crate) fn decimal<T: FromStr>(text: &str) -> Option<T> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let leading = text.len() > 1 && text.starts_with('0');
    if digits && !leading { text.parse().ok() } else { None }
}

/// Makes serde read and write a scalar as its text, and documents describe it so.
macro_rules! serde_as_text {
    ($($type:ty),+ $(,)?) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                crate::scalars::described::scalar::<Self>()
            }
        }
    )+};
}
serde_as_text!(
    Name,
    NetworkName,
    Ipv4Range,
    Ipv6Range,
    Endpoint,
    Expiry,
    DomainName,
    Seconds,
    Selector,
    Uses
);
serde_as_text!(WireGuardKey, Identity, SigningKey, Verifier, CaPin, Fingerprint);

#[cfg(test)]
mod tests {
    use super::*;

    fn examples_hold<T: Scalar>() {
        for good in T::GOOD {
            let value: T = good.parse().unwrap_or_else(|why| panic!("{good:?} is {}: {why}", T::NAME));
            let again: T =
                value.to_string().parse().unwrap_or_else(|why| panic!("{value} reads back: {why}"));
            assert!(value == again, "{good:?} and {value} are one value");
        }
        for bad in T::BAD {
            assert!(bad.parse::<T>().is_err(), "{bad:?} is not {}", T::NAME);
        }
    }

    #[test]
    fn good_examples_parse_and_bad_ones_do_not() {
        examples_hold::<Name>();
        examples_hold::<NetworkName>();
        examples_hold::<Ipv4Range>();
        examples_hold::<Ipv6Range>();
        examples_hold::<std::net::Ipv4Addr>();
        examples_hold::<std::net::Ipv6Addr>();
        examples_hold::<Endpoint>();
        examples_hold::<PortRange>();
        examples_hold::<Limit>();
        examples_hold::<Expiry>();
        examples_hold::<DomainName>();
        examples_hold::<WireGuardKey>();
        examples_hold::<Identity>();
        examples_hold::<SigningKey>();
        examples_hold::<Verifier>();
        examples_hold::<CaPin>();
        examples_hold::<Fingerprint>();
        examples_hold::<Seconds>();
        examples_hold::<Selector>();
        examples_hold::<Uses>();
    }
}
