//! What members of a network may open at each other: a set of protocols and ports.
//!
//! Pure sets: rules add up by union, and what a change gains or loses is a difference. Who may open what at
//! whom is decided by [`policy`](crate::compile::policy).

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use range_set_blaze::RangeSetBlaze;
use schema_derive::Choice;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::attribute::Choice as _;

/// A protocol that a rule or a test may name.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Choice, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
    Udp,
    /// ICMP and ICMPv6 (RFC 792, RFC 4443).
    Icmp,
}

impl Protocol {
    /// Whether it has ports.
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A set of ports, 0 to 65535.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports(RangeSetBlaze<u16>);

impl Ports {
    /// Every port.
    pub fn every() -> Self {
        Self::from_iter([0..=u16::MAX])
    }

    /// Whether no port is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every port is in it.
    pub fn is_every(&self) -> bool {
        self.0.ranges_len() == 1 && self.0.len() == 0x1_0000
    }

    /// Whether a port is in it.
    pub fn contains(&self, port: u16) -> bool {
        self.0.contains(port)
    }

    /// Its ranges, in order, with a gap between each and the next.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u16>> + '_ {
        self.0.ranges()
    }
}

impl FromIterator<RangeInclusive<u16>> for Ports {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u16>>>(ranges: I) -> Self {
        Self(ranges.into_iter().collect())
    }
}

/// As it is written: `80`, `80, 5000-5001`.
impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.ranges().enumerate() {
            let (first, last) = range.into_inner();
            let comma = if index > 0 { ", " } else { "" };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

impl Serialize for Ports {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.ranges().map(RangeInclusive::into_inner))
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ranges = Vec::<(u16, u16)>::deserialize(deserializer)?;
        Ok(ranges.into_iter().map(|(first, last)| first..=last).collect())
    }
}

/// What may be opened: a set of protocols and ports. The default is nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Access {
    /// TCP ports.
    pub tcp: Ports,
    /// UDP ports.
    pub udp: Ports,
    /// ICMP and ICMPv6.
    pub icmp: bool,
    /// Every other protocol.
    pub others: bool,
}

impl Access {
    /// Every protocol and every port.
    pub fn everything() -> Self {
        Self { tcp: Ports::every(), udp: Ports::every(), icmp: true, others: true }
    }

    /// Some ports of a protocol; of one without ports all of it. Absent: every protocol, every port.
    pub fn of(protocol: Option<Protocol>, ports: Option<Ports>) -> Self {
        let ports = ports.unwrap_or_else(Ports::every);
        match protocol {
            None => Self::everything(),
            Some(Protocol::Tcp) => Self { tcp: ports, ..Self::default() },
            Some(Protocol::Udp) => Self { udp: ports, ..Self::default() },
            Some(Protocol::Icmp) => Self { icmp: true, ..Self::default() },
        }
    }

    /// Whether nothing is in it.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Whether everything is in it.
    pub fn is_everything(&self) -> bool {
        self.icmp && self.others && self.tcp.is_every() && self.udp.is_every()
    }

    /// What is in either.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            tcp: Ports(&self.tcp.0 | &other.tcp.0),
            udp: Ports(&self.udp.0 | &other.udp.0),
            icmp: self.icmp || other.icmp,
            others: self.others || other.others,
        }
    }

    /// What is in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        Self {
            tcp: Ports(&self.tcp.0 & &other.tcp.0),
            udp: Ports(&self.udp.0 & &other.udp.0),
            icmp: self.icmp && other.icmp,
            others: self.others && other.others,
        }
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self {
            tcp: Ports(&self.tcp.0 - &other.tcp.0),
            udp: Ports(&self.udp.0 - &other.udp.0),
            icmp: self.icmp && !other.icmp,
            others: self.others && !other.others,
        }
    }

    /// Its only protocol and the ports of that, absent where it is every port; no protocol if it is several or
    /// all.
    pub fn single(&self) -> (Option<Protocol>, Option<String>) {
        let ports = |ports: &Ports| Some(ports.to_string()).filter(|_| !ports.is_every());
        match (self.tcp.is_empty(), self.udp.is_empty(), self.icmp, self.others) {
            (false, true, false, false) => (Some(Protocol::Tcp), ports(&self.tcp)),
            (true, false, false, false) => (Some(Protocol::Udp), ports(&self.udp)),
            (true, true, true, false) => (Some(Protocol::Icmp), None),
            _ => (None, None),
        }
    }

    /// Whether all of the other is in it.
    pub fn contains(&self, other: &Self) -> bool {
        other.without(self).is_nothing()
    }
}

/// In words: `everything`, `tcp 5432, udp, icmp`, `everything but tcp 22`, `nothing`.
impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_everything() {
            return f.write_str("everything");
        }
        if self.others {
            return write!(f, "everything but {}", Self::everything().without(self));
        }
        let of = |protocol: Protocol, ports: &Ports| match (ports.is_empty(), ports.is_every()) {
            (true, _) => None,
            (_, true) => Some(protocol.to_string()),
            (false, false) => Some(format!("{protocol} {ports}")),
        };
        let icmp = self.icmp.then(|| Protocol::Icmp.to_string());
        let parts: Vec<_> = [of(Protocol::Tcp, &self.tcp), of(Protocol::Udp, &self.udp), icmp]
            .into_iter()
            .flatten()
            .collect();
        if parts.is_empty() { f.write_str("nothing") } else { f.write_str(&parts.join(", ")) }
    }
}

/// The identity of a class of members on the wire and in packet filters: 128 bits of the SHA-256 of which
/// sides of rules it is on. The default is that of members that are on none, as all are in a network without
/// rules.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(pub [u8; 16]);

impl ClassId {
    /// The id of what has this content, of which equal ones have equal ids.
    pub fn of(content: &[u8]) -> Self {
        let mut id = Self::default();
        id.0.copy_from_slice(&Sha256::digest(content)[..16]);
        id
    }
}

/// 32 hexadecimal digits.
impl fmt::Display for ClassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for ClassId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = "a class is 32 hexadecimal digits";
        let plain = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = u128::from_str_radix(text, 16).map_err(|_| malformed)?;
        if plain { Ok(Self(id.to_be_bytes())) } else { Err(malformed) }
    }
}

/// As its digits: a map of what classes may open is a JSON object.
impl Serialize for ClassId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClassId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Debug for ClassId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(ranges: &[(u16, u16)]) -> Ports {
        ranges.iter().map(|(first, last)| *first..=*last).collect()
    }

    #[test]
    fn ports_that_touch_are_one_range() {
        let together = ports(&[(80, 80), (81, 90), (443, 443), (85, 95)]);
        assert_eq!(together.to_string(), "80-95, 443");
        assert_eq!(together, ports(&[(443, 443), (80, 95)]));
        assert!(together.contains(95) && !together.contains(96));
        assert!(ports(&[(0, 100), (101, u16::MAX)]).is_every() && !ports(&[(1, u16::MAX)]).is_every());
        let json = serde_json::to_string(&together).expect("it can be written");
        assert_eq!(json, "[[80,95],[443,443]]");
        assert_eq!(serde_json::from_str::<Ports>(&json).expect("it reads back"), together);
    }

    #[test]
    fn what_classes_may_open_can_be_stored() {
        let class = ClassId::of(b"web");
        let access = std::collections::BTreeMap::from([(class, Access::everything())]);
        let json = serde_json::to_string(&access).expect("it can be written");
        assert!(json.contains(&class.to_string()), "{json}");
        assert_eq!(
            serde_json::from_str::<std::collections::BTreeMap<_, _>>(&json).expect("it reads"),
            access
        );
        for text in ["", "+0000000000000000000000000000000", "00", "g0000000000000000000000000000000"] {
            assert!(text.parse::<ClassId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn access_adds_up_and_is_said_in_words() {
        let web = Access::of(Some(Protocol::Tcp), Some(ports(&[(80, 80), (443, 443)])));
        let names = Access::of(Some(Protocol::Udp), None);
        let ping = Access::of(Some(Protocol::Icmp), None);
        let all = Access::of(None, None);
        for (access, words) in [
            (Access::default(), "nothing"),
            (web.clone(), "tcp 80, 443"),
            (web.or(&names).or(&ping), "tcp 80, 443, udp, icmp"),
            (all.clone(), "everything"),
            (all.without(&web), "everything but tcp 80, 443"),
            (all.without(&all), "nothing"),
            (all.and(&names), "udp"),
            (web.and(&names), "nothing"),
        ] {
            assert_eq!(access.to_string(), words);
        }
        assert!(all.contains(&web) && !web.contains(&all) && web.contains(&Access::default()));
        assert!(all.without(&web).or(&web).is_everything());
    }
}
