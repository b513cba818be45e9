//! Keys that others may know: 32 bytes each, of five types that cannot be confused.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Scalar;

/// Makes a newtype of 32 bytes that is written in base64 with padding, and a scalar of it.
macro_rules! key {
    ($(#[doc = $doc:literal])+ $type:ident, $name:literal, $reference:literal, $good:literal, $cut:literal) => {
        $(#[doc = $doc])+
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(pub [u8; 32]);

        impl Scalar for $type {
            const NAME: &'static str = $name;
            const DOC: &'static str = $reference;
            const GOOD: &'static [&'static str] = &[$good];
            const BAD: &'static [&'static str] = &["", $cut, "AAAA", "..."];
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                decode(text, $name)?.try_into().map_err(|why| format!("{why}"))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&STANDARD.encode(self.0))
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

key!(
    /// A WireGuard public key: a point of Curve25519 (X25519, RFC 7748), written as `wg pubkey` prints it:
    /// base64 of 32 bytes; see wg(8).
    WireGuardKey,
    "a WireGuard public key",
    "Base64 of 32 bytes, as `wg pubkey` prints it.",
    "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
    "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8D="
);

key!(
    /// A host's identity at a server: the Ed25519 public key (RFC 8032) that verifies what its agent signs,
    /// written as base64 of 32 bytes. A host has one at each server, whichever of its networks it is a node
    /// of.
    Identity,
    "a host's identity",
    "Base64 of the 32 bytes of an Ed25519 public key, whose private key the agent made.",
    "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w=",
    "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1="
);

key!(
    /// A server's signing key: the Ed25519 public key (RFC 8032) that verifies the Views and answers that it
    /// sends, written as base64 of 32 bytes. It identifies the server: an agent takes it from a token and
    /// keeps it.
    SigningKey,
    "a server's signing key",
    "Base64 of the 32 bytes of an Ed25519 public key, whose private key the server made at its first start.",
    "gTl3Dqh9F19Wo1Rmw0x+zMuNipG07jeiXfYPW4/Js5Q=",
    "gTl3Dqh9F19Wo1Rmw0x+zMuNipG07jeiXfYPW4/Js5="
);

key!(
    /// An access key's verifier: the Ed25519 public key (RFC 8032) that verifies what the holder of a token
    /// signs with the seed in it, written as base64 of 32 bytes. The server knows it and never the seed.
    Verifier,
    "an access key's verifier",
    "Base64 of the 32 bytes of an Ed25519 public key, whose seed is in the token.",
    "7UkoxijRwsbq6QM4kFmVYSlZJzpcY/k2NsFGFKyHN9E=",
    "7UkoxijRwsbq6QM4kFmVYSlZJzpcY/k2NsFGFKyHN9="
);

key!(
    /// What pins a server's certificate: the SHA-256 of its CA's public key (the SubjectPublicKeyInfo in DER,
    /// as in RFC 7469), written as base64 of 32 bytes.
    CaPin,
    "a CA pin",
    "Base64 of the SHA-256 of a CA's public key (SubjectPublicKeyInfo in DER).",
    "fpYmGOlARTS4RrJAXiR47ABpr/JJfib6pjQnETMCAgU=",
    "fpYmGOlARTS4RrJAXiR47ABpr/JJfib6pjQnETMCAg="
);

/// Any 32 bytes may be such a key: what is signed with it shows whether it is one.
macro_rules! any_bytes {
    ($($type:ident)+) => {
        $(impl From<[u8; 32]> for $type {
            fn from(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }
        })+
    };
}

any_bytes!(Identity SigningKey Verifier CaPin);

/// 32 bytes that are not a WireGuard public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a WireGuard public key is below 2^255 - 19 (RFC 7748), which this is not; use what `wg pubkey` prints"
)]
pub struct NotCanonical;

impl TryFrom<[u8; 32]> for WireGuardKey {
    type Error = NotCanonical;

    /// Takes the one form of a key only: X25519 ignores the highest bit and reduces by 2^255 - 19 (RFC 7748,
    /// section 5), so other bytes would be second names of the same key.
    fn try_from(bytes: [u8; 32]) -> Result<Self, NotCanonical> {
        // Little-endian: 2^255 - 19 is ed ff .. ff 7f.
        let [first, middle @ .., last] = &bytes;
        let above = *last == 0x7f && middle.iter().all(|byte| *byte == 0xff) && *first >= 0xed;
        if *last > 0x7f || above { Err(NotCanonical) } else { Ok(Self(bytes)) }
    }
}

fn decode(text: &str, name: &str) -> Result<[u8; 32], String> {
    let bytes =
        STANDARD.decode(text).map_err(|_| format!("{name} is base64 with padding, which this is not"))?;
    let count = bytes.len();
    bytes.try_into().map_err(|_| format!("{name} has 32 bytes, this has {count}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wireguard_key_has_one_form() {
        let [mut highest, mut prime] = [[0; 32], [0xff; 32]];
        (prime[0], prime[31]) = (0xed, 0x7f);
        assert_eq!(WireGuardKey::try_from(prime), Err(NotCanonical), "2^255 - 19 is another name of 0");
        prime[0] = 0xec;
        assert_eq!(WireGuardKey::try_from(prime), Ok(WireGuardKey(prime)), "the largest");
        prime[0] = 0xff;
        assert_eq!(WireGuardKey::try_from(prime), Err(NotCanonical));
        assert!(WireGuardKey::try_from(highest).is_ok());
        highest[31] = 0x80;
        assert_eq!(WireGuardKey::try_from(highest), Err(NotCanonical), "bit 255 is ignored by X25519");
        let text = STANDARD.encode(highest);
        assert_eq!(text.parse::<WireGuardKey>(), Err(NotCanonical.to_string()));
        assert!(text.parse::<Identity>().is_ok(), "an Ed25519 key has that bit");
    }

    #[test]
    fn what_does_not_parse_is_called_by_its_own_name() {
        assert_eq!("AAAA".parse::<CaPin>(), Err("a CA pin has 32 bytes, this has 3".into()));
        assert_eq!(
            "...".parse::<Identity>(),
            Err("a host's identity is base64 with padding, which this is not".into())
        );
    }
}
