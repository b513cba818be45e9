//! Fingerprints of public keys: what people compare, and what a file may hold of a key.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

use super::{Identity, Scalar, SigningKey};

const PREFIX: &str = "sha256:";
/// Two hexadecimal digits for each byte.
const DIGITS: usize = 64;

/// The SHA-256 of the 32 bytes of an Ed25519 public key, written `sha256:` and 64 hexadecimal digits: that of
/// a host's identity, or of a server's signing key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    fn of(key: &[u8; 32]) -> Self {
        Self(Sha256::digest(key).into())
    }
}

impl Identity {
    /// Its fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.0)
    }
}

impl SigningKey {
    /// Its fingerprint: what pins the server.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.0)
    }
}

impl Scalar for Fingerprint {
    const NAME: &'static str = "a fingerprint";
    const DOC: &'static str = "`sha256:` and the 64 hexadecimal digits of the SHA-256 of a key, as `netclient join` prints that of its host.";
    const GOOD: &'static [&'static str] =
        &["sha256:66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925"];
    const BAD: &'static [&'static str] = &[
        "",
        "sha256:",
        "sha256:66687aad",
        "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925",
        "sha256:+6687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925",
        "SHA256:ZmhgeqU",
    ];

    fn meant(text: &str) -> Option<String> {
        let digits = text.rsplit(':').next()?.trim();
        let meant: Self = format!("{PREFIX}{digits}").parse().ok()?;
        Some(meant.to_string())
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits =
            text.strip_prefix(PREFIX).ok_or("a fingerprint begins with sha256:, which this does not")?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err("a fingerprint has hexadecimal digits alone after sha256:".into());
        }
        if digits.len() != DIGITS {
            return Err(format!(
                "a fingerprint has {DIGITS} digits after sha256:, this has {}",
                digits.len()
            ));
        }
        let byte = |place| {
            let pair =
                digits.get(2 * place..2 * place + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
            pair.expect("two hexadecimal digits are a byte")
        };
        Ok(Self(std::array::from_fn(byte)))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_the_sha_256_of_a_keys_bytes() {
        // sha256sum of 32 bytes of zeros.
        assert_eq!(Identity([0; 32]).fingerprint().to_string(), Fingerprint::GOOD[0]);
        assert_eq!(SigningKey([0; 32]).fingerprint(), Identity([0; 32]).fingerprint());
        let upper = Fingerprint::GOOD[0].to_uppercase().replace("SHA256", "sha256");
        assert_eq!(upper.parse(), Ok(Identity([0; 32]).fingerprint()), "digits have one meaning");
    }

    #[test]
    fn without_its_prefix_a_fingerprint_is_understood_and_proposed() {
        let digits = &Fingerprint::GOOD[0][PREFIX.len()..];
        for text in [digits.to_owned(), format!("SHA256:{digits}"), format!("sha-256: {digits}")] {
            assert_eq!(Fingerprint::meant(&text).as_deref(), Some(Fingerprint::GOOD[0]), "{text}");
        }
        assert_eq!(Fingerprint::meant("sha256:12"), None);
    }
}
