//! Which state of the server a View is of: (epoch, revision) and a stamp that distinguishes histories.
//!
//! A database that was put back from a copy goes on with revisions that it has given out before, for other
//! states. So a position has a [`Stamp`]: the beginning of the chain hash of its revision, and a MAC by which
//! the server recognises a position as its own, even one that its database no longer knows. Agents keep it
//! and send it back, and do not look into it.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schema::chain::ChainHash;
use schema::snapshot::Revision;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How many bytes of a chain hash a stamp has. 96 bits differ between any two histories; each byte is paid
/// twice for every update and node.
const HASH: usize = 12;
/// How many bytes of a MAC a stamp has. It can be tried at the server only, so 64 bits cannot be guessed.
const MAC: usize = 8;

/// What distinguishes histories that have the same epoch and revision; all zeros: none.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Stamp([u8; HASH + MAC]);

impl Stamp {
    /// The stamp of a revision with this chain hash; `mac` is the server's, over the position.
    pub fn new(hash: &ChainHash, mac: &[u8; 32]) -> Self {
        let mut bytes = [0; HASH + MAC];
        bytes[..HASH].copy_from_slice(&hash.bytes()[..HASH]);
        bytes[HASH..].copy_from_slice(&mac[..MAC]);
        Self(bytes)
    }

    /// Whether it is of a revision with this chain hash.
    pub fn is_of(&self, hash: &ChainHash) -> bool {
        self.hash() == &hash.bytes()[..HASH]
    }

    /// The beginning of the chain hash.
    pub fn hash(&self) -> &[u8] {
        &self.0[..HASH]
    }

    /// The beginning of the MAC.
    pub fn mac(&self) -> &[u8] {
        &self.0[HASH..]
    }

    /// Its bytes in a message; none for no stamp.
    pub fn to_bytes(self) -> Vec<u8> {
        if self == Self::default() { Vec::new() } else { self.0.to_vec() }
    }

    /// The stamp in a message; what has another length is none.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.try_into().unwrap_or_default())
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl Serialize for Stamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&URL_SAFE_NO_PAD.encode(self.to_bytes()))
    }
}

/// What cannot be read is no stamp: the server then sends the whole View.
impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self::from_bytes(&URL_SAFE_NO_PAD.decode(text).unwrap_or_default()))
    }
}

/// The state of the server that a View is of. The default is that of a node that has no View.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The epoch of the server's database.
    pub epoch: u64,
    /// The revision in it.
    pub revision: Revision,
    /// The history of that revision.
    #[serde(default)]
    pub stamp: Stamp,
}

impl Position {
    /// Epoch and revision, which alone decide what is newer.
    pub fn place(&self) -> (u64, Revision) {
        (self.epoch, self.revision)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_comes_back_from_a_message() {
        let hash = ChainHash::start("server");
        let stamp = Stamp::new(&hash, &[7; 32]);
        assert!(stamp.is_of(&hash) && !stamp.is_of(&hash.next("entry")));
        assert_eq!(Stamp::from_bytes(&stamp.to_bytes()), stamp);
        assert_eq!(Stamp::from_bytes(&stamp.to_bytes()[1..]), Stamp::default());
        assert_eq!(Stamp::from_bytes(&Stamp::default().to_bytes()), Stamp::default());
        assert!(Stamp::default().to_bytes().is_empty(), "none takes no room in a message");
    }
}
