//! Keys that WireGuard shows to others.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Scalar;

/// A WireGuard public key: a point of Curve25519, written as `wg pubkey` prints it (base64 of 32 bytes; see wg(8)).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl Scalar for PublicKey {
    const NAME: &'static str = "a WireGuard public key";
    const DOC: &'static str = "Base64 of 32 bytes, as `wg pubkey` prints it.";
    const GOOD: &'static [&'static str] = &["xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="];
    const BAD: &'static [&'static str] = &["", "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8D=", "AAAA", "..."];
}

impl FromStr for PublicKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = STANDARD.decode(text).map_err(|_| "it is not base64 with padding")?;
        let count = bytes.len();
        bytes.try_into().map(Self).map_err(|_| format!("it holds {count} bytes; a key has 32"))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
