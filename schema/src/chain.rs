//! The chain of hashes over the revision log: which history a revision belongs to.
//!
//! Each entry of the log has a hash that covers its text and the hash of the entry before it. So the hash of
//! one entry names everything that led to it, and two servers, or a server and a copy of it that went on by
//! itself, have different hashes at the same revision. Invariant: what a hash covers never changes, because
//! databases store them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// The hash of a log entry and, through it, of all entries before it: SHA-256, written as 64 hexadecimal
/// digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChainHash([u8; 32]);

impl ChainHash {
    /// The hash before the first entry of a server: another one for every server.
    pub fn start(server_id: &str) -> Self {
        Self(Sha256::new().chain_update("netmaker log v1\0").chain_update(server_id).finalize().into())
    }

    /// The hash of the entry that follows, from its text as it is stored.
    #[must_use]
    pub fn next(&self, entry: &str) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(entry).finalize().into())
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for ChainHash {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ChainHash {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "a chain hash has 64 hexadecimal digits";
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(WRONG);
        }
        for (place, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[place * 2..place * 2 + 2], 16).map_err(|_| WRONG)?;
        }
        Ok(Self(bytes))
    }
}

impl Serialize for ChainHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ChainHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_names_everything_that_led_to_it() {
        let start = ChainHash::start("server");
        let second = start.next("one").next("two");
        assert_eq!(second, ChainHash::start("server").next("one").next("two"));
        for other in [
            start,
            start.next("one"),
            start.next("two").next("one"),
            start.next("onetwo"),
            start.next("one").next("two!"),
            ChainHash::start("other").next("one").next("two"),
        ] {
            assert_ne!(second, other);
        }
    }

    /// Databases store hashes: what they cover may never change.
    #[test]
    fn hashes_are_what_they_have_always_been() {
        let hash = ChainHash::start("server").next("one");
        let bytes: [u8; 32] = {
            let start: [u8; 32] = Sha256::digest("netmaker log v1\0server").into();
            Sha256::digest([&start[..], b"one"].concat()).into()
        };
        assert_eq!(hash.bytes(), &bytes);
    }

    #[test]
    fn a_hash_reads_back_and_nothing_else_is_one() {
        let hash = ChainHash::start("server");
        assert_eq!(hash.to_string().parse(), Ok(hash));
        let json = serde_json::to_string(&hash).expect("it can be written");
        assert_eq!(serde_json::from_str::<ChainHash>(&json).expect("it reads back"), hash);
        for bad in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            assert!(bad.parse::<ChainHash>().is_err(), "{bad}");
        }
    }
}
