//! The access token: everything that a host needs to join, in one word.
//!
//! `nmj_`, then base64url of a message and its CRC-32. It holds the secret of an access key, which nmplan
//! made and the server has never seen, the server's View-signing key, and what pins the server's certificate.
//! It decodes offline.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message;
use schema::scalars::{CaPin, Name, NetworkName, SigningKey};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::secret::Secret;

const PREFIX: &str = "nmj_";
/// The bytes of a CRC-32.
const CHECKSUM: usize = 4;

/// What a host joins with. It is a secret: it prints itself only through [`Token::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Where the server's gRPC service is found: `host:port`, at least one.
    pub addresses: Vec<String>,
    /// The key that signs what agents are sent.
    pub signing_key: SigningKey,
    /// SHA-256 of the public key of the server's own CA; absent: the system's roots decide.
    pub ca_pin: Option<CaPin>,
    /// The network.
    pub network: NetworkName,
    /// The access key.
    pub key: Name,
    /// The Ed25519 seed that signs a join.
    pub seed: Secret<[u8; 32]>,
}

/// Why a text is not a valid token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It does not look like one.
    #[error("it does not start with nmj_")]
    NoPrefix,
    /// A character was lost or changed in copying.
    #[error("it is mistyped or cut off: its checksum does not match")]
    Checksum,
    /// It is whole, but this program does not understand it.
    #[error("it was made by another version of nmplan, or by another program")]
    Content,
}

/// Tokens by the ids of their access keys: what a file of tokens holds, as one JSON object.
pub type Tokens = BTreeMap<String, Secret<String>>;

/// Why a text does not lead to one token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// It is no token.
    #[error("the token is not valid; copy it again, whole")]
    Token(#[from] TokenError),
    /// It is neither a token nor a file of tokens. The error names no content, which is secret.
    #[error(
        "it is not a file of tokens, one JSON object from access keys to tokens: line {line}, column {column}"
    )]
    Content {
        /// The line, from 1.
        line: usize,
        /// The character in it, from 1.
        column: usize,
    },
    /// There are several.
    #[error("there are tokens of several access keys; choose one: --key {}", .0.join(", or --key "))]
    Several(Vec<String>),
    /// There is none of that key.
    #[error("there is no token of the access key {asked}; there {}", listed(.known))]
    None {
        /// The key that was asked for.
        asked: String,
        /// The keys that there are.
        known: Vec<String>,
    },
    /// The file is empty.
    #[error("the file has no token; `nmplan apply --keys-to FILE` writes those of the keys that it creates")]
    Empty,
}

fn listed(ids: &[String]) -> String {
    match ids {
        [] => "is none".into(),
        [one] => format!("is one of {one}"),
        several => format!("are those of {}", several.join(", ")),
    }
}

/// The token in a text: the text is one, or it is a file of tokens, from which `key` chooses by the name or
/// the resource id of an access key. A key that is given must be that of the token.
pub fn choose(text: &str, key: Option<&str>) -> Result<Token, ChoiceError> {
    let tokens: Tokens = if text.trim_start().starts_with('{') {
        let content =
            |error: serde_json::Error| ChoiceError::Content { line: error.line(), column: error.column() };
        serde_json::from_str(text).map_err(content)?
    } else {
        let token: Token = text.parse()?;
        Tokens::from([(token.id(), token.reveal())])
    };
    let meant = |id: &&String| {
        key.is_none_or(|key| **id == key || id.rsplit_once('/').is_some_and(|(_, name)| name == key))
    };
    let found: Vec<&String> = tokens.keys().filter(meant).collect();
    match (&*found, key) {
        ([id], _) => Ok(tokens[*id].expose().parse()?),
        ([], None) => Err(ChoiceError::Empty),
        ([], Some(asked)) => {
            Err(ChoiceError::None { asked: asked.into(), known: tokens.into_keys().collect() })
        }
        (several, _) => Err(ChoiceError::Several(several.iter().map(|id| (*id).clone()).collect())),
    }
}

/// What a token holds, as it is encoded.
#[derive(Clone, PartialEq, Message, Zeroize, ZeroizeOnDrop)]
#[prost(skip_debug)]
struct Body {
    #[prost(string, repeated, tag = "1")]
    addresses: Vec<String>,
    #[prost(bytes = "vec", tag = "2")]
    signing_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    ca_pin: Vec<u8>,
    #[prost(string, tag = "4")]
    network: String,
    #[prost(string, tag = "5")]
    key: String,
    #[prost(bytes = "vec", tag = "6")]
    seed: Vec<u8>,
}

impl Token {
    /// The token as text.
    pub fn reveal(&self) -> Secret<String> {
        let body = Body {
            addresses: self.addresses.clone(),
            signing_key: self.signing_key.0.to_vec(),
            ca_pin: self.ca_pin.map(|pin| pin.0.to_vec()).unwrap_or_default(),
            network: self.network.to_string(),
            key: self.key.to_string(),
            seed: self.seed.expose().to_vec(),
        };
        // A buffer that never grows leaves no copies.
        let mut bytes = Zeroizing::new(Vec::with_capacity(body.encoded_len() + CHECKSUM));
        body.encode(&mut *bytes).expect("a vector takes everything");
        let checksum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&checksum.to_be_bytes());
        let length = PREFIX.len() + base64::encoded_len(bytes.len(), false).expect("a token is short");
        let mut text = Secret::new(String::with_capacity(length));
        text.expose_mut().push_str(PREFIX);
        URL_SAFE_NO_PAD.encode_string(&*bytes, text.expose_mut());
        text
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(TokenError::NoPrefix)?;
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(encoded).map_err(|_| TokenError::Checksum)?);
        let (body, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(TokenError::Checksum)?;
        if crc32fast::hash(body).to_be_bytes() != *checksum {
            return Err(TokenError::Checksum);
        }
        let body = Body::decode(body).map_err(|_| TokenError::Content)?;
        Self::read(&body).ok_or(TokenError::Content)
    }
}

impl Token {
    /// The resource id of its access key.
    pub fn id(&self) -> String {
        format!("{}/access-key/{}", self.network, self.key)
    }

    fn read(body: &Body) -> Option<Self> {
        let ca_pin = match &*body.ca_pin {
            [] => None,
            pin => Some(CaPin(pin.try_into().ok()?)),
        };
        Some(Self {
            addresses: Some(body.addresses.clone()).filter(|addresses| !addresses.is_empty())?,
            signing_key: SigningKey((&*body.signing_key).try_into().ok()?),
            ca_pin,
            network: body.network.parse().ok()?,
            key: body.key.parse().ok()?,
            seed: Secret::new((&*body.seed).try_into().ok()?),
        })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({} at {:?})", self.id(), self.addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token {
            addresses: vec!["nm.example.net:50051".into()],
            signing_key: SigningKey([1; 32]),
            ca_pin: Some(CaPin([2; 32])),
            network: "corp".parse().expect("good"),
            key: "ci".parse().expect("good"),
            seed: Secret::new([3; 32]),
        }
    }

    #[test]
    fn a_token_reads_back() {
        let text = token().reveal();
        assert_eq!(text.expose().parse(), Ok(token()));
        assert_eq!(format!("  {}\n", text.expose()).parse(), Ok(token()));
        assert_eq!(text.expose().len(), text.expose().capacity(), "the text never grew");
    }

    #[test]
    fn every_single_typo_is_noticed() {
        let text = token().reveal();
        let text = text.expose();
        for place in 0..text.len() {
            for other in ['A', 'b', '0', '_', '='] {
                let mut typed: Vec<char> = text.chars().collect();
                if typed[place] != other {
                    typed[place] = other;
                    let typed: String = typed.into_iter().collect();
                    assert!(typed.parse::<Token>().is_err(), "{other} at {place} is noticed");
                }
            }
            assert!(text[..place].parse::<Token>().is_err(), "a cut at {place} is noticed");
        }
    }

    #[test]
    fn a_token_does_not_print_its_secret() {
        assert_eq!(format!("{:?}", token()), "Token(corp/access-key/ci at [\"nm.example.net:50051\"])");
    }

    #[test]
    fn a_token_is_chosen_from_a_file_of_tokens() {
        let of = |network: &str, key: &str| Token {
            network: network.parse().expect("good"),
            key: key.parse().expect("good"),
            ..token()
        };
        let file = |tokens: &[Token]| {
            let entry = |token: &Token| format!("{:?}: {:?}", token.id(), token.reveal().expose());
            format!("{{\n  {}\n}}\n", tokens.iter().map(entry).collect::<Vec<_>>().join(",\n  "))
        };
        let one = file(&[of("corp", "ci")]);
        assert_eq!(choose(&one, None), Ok(of("corp", "ci")));
        assert_eq!(choose(token().reveal().expose(), Some("ci")), Ok(token()));
        let several = file(&[of("corp", "ci"), of("corp", "gw"), of("lab", "ci")]);
        assert_eq!(choose(&several, Some("gw")), Ok(of("corp", "gw")));
        assert_eq!(choose(&several, Some("lab/access-key/ci")), Ok(of("lab", "ci")));
        let refused = |text: &str, key| choose(text, key).expect_err("it is refused").to_string();
        assert_eq!(
            refused(&several, Some("ci")),
            "there are tokens of several access keys; choose one: --key corp/access-key/ci, or --key lab/access-key/ci"
        );
        assert!(refused(&several, None).contains("--key corp/access-key/gw"));
        assert_eq!(
            refused(&one, Some("db")),
            "there is no token of the access key db; there is one of corp/access-key/ci"
        );
        assert!(
            refused(token().reveal().expose(), Some("db")).contains("there is one of corp/access-key/ci")
        );
        assert!(refused("{}", None).contains("--keys-to FILE"));
        let secret = refused("{\"corp/access-key/ci\": nmj_marked}", None);
        assert!(secret.contains("line 1") && !secret.contains("marked"), "{secret}");
        assert!(refused("nmj_x", None).contains("copy it again"));
    }
}
