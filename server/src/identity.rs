//! The server's secrets: its CA, the key that signs Views, the keys of nonces and sessions, tokens.
//!
//! Everything is made at the first start, from the operating system's generator, and kept in the data
//! directory with mode 0600. There is no default secret. A first start is one on an empty directory: whatever
//! is missing later is never made a second time.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek as ed25519;
use hmac::{Hmac, Mac};
use jiff::Timestamp;
use netclient::device::boottime;
use proto::position::{Position, Stamp};
use proto::secret::Secret;
use proto::sign::Invalid;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use schema::chain::ChainHash;
use schema::scalars::{CaPin, Fingerprint, Identity, SigningKey};
use schema::snapshot::Revision;
use sha2::{Digest, Sha256};
use x25519_dalek::StaticSecret;

use crate::core::nonces::Nonce;
pub use crate::data_dir::{DATABASE, DataDir, IdentityError, random};

/// Seconds that a session is valid for.
const SESSION_LIFE: u32 = 3_600;

/// The keys that answer agents.
#[derive(Debug)]
pub struct Secrets {
    signing_key: ed25519::SigningKey,
    mac_key: Secret<[u8; 32]>,
    /// What distinguishes the nonces of this process from those of any other with the same keys.
    process: [u8; 8],
}

/// What the server needs to end TLS.
pub struct Certificate {
    /// The server's certificate, then its CA's.
    pub chain: Vec<CertificateDer<'static>>,
    /// The server's private key.
    pub key: PrivateKeyDer<'static>,
    /// SHA-256 of the CA's public key.
    pub ca_pin: CaPin,
}

/// Why a session is not valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidSession {
    /// It was valid, as each is for an hour.
    Expired,
    /// This server has not opened it.
    Forged,
}

impl Secrets {
    /// Reads the keys, and creates them first if there are none.
    pub fn open(directory: &DataDir) -> Result<Self, IdentityError> {
        let signing_key = ed25519::SigningKey::from_bytes(directory.secret("signing.key")?.expose());
        Ok(Self { signing_key, mac_key: directory.secret("session.key")?, process: process()? })
    }

    /// The key that signs what agents are sent.
    pub fn signing_key(&self) -> &ed25519::SigningKey {
        &self.signing_key
    }

    fn mac(&self, purpose: &str, bytes: &[u8]) -> [u8; 32] {
        self.mac_of(purpose, bytes).finalize().into_bytes().into()
    }

    fn mac_of(&self, purpose: &str, bytes: &[u8]) -> Hmac<Sha256> {
        let mac = <Hmac<Sha256> as Mac>::new_from_slice(self.mac_key.expose())
            .expect("HMAC takes a key of any length");
        mac.chain_update(purpose.as_bytes()).chain_update([0]).chain_update(bytes)
    }

    /// A nonce that serves in this process alone, and the public half of the ephemeral key that belongs to
    /// it. The clock of the host has no part in it: whoever sets that back cuts no agent off.
    pub fn challenge(&self) -> (Vec<u8>, [u8; 32]) {
        let mut nonce = Vec::with_capacity(40);
        let made = u64::try_from(boottime().as_micros()).expect("no host runs for 500,000 years");
        nonce.extend_from_slice(&made.to_be_bytes());
        nonce.extend_from_slice(&self.process);
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).expect("the operating system returned random numbers at the start");
        nonce.extend_from_slice(&random);
        let mac = self.mac("nonce", &nonce);
        nonce.extend_from_slice(&mac[..16]);
        let public = x25519_dalek::PublicKey::from(&self.ephemeral_of(&nonce)).to_bytes();
        (nonce, public)
    }

    /// Checks that this process made a nonce. Whether it may still serve,
    /// [`Nonces`](crate::core::nonces::Nonces) knows; one of an earlier process is over.
    pub fn nonce(&self, bytes: &[u8]) -> Result<Nonce, Invalid> {
        let (body, mac) = bytes.split_last_chunk::<16>().ok_or(Invalid::Part("nonce"))?;
        self.mac_of("nonce", body).verify_truncated_left(mac).map_err(|_| Invalid::Part("nonce"))?;
        let (made, rest) = body.split_first_chunk::<8>().ok_or(Invalid::Part("nonce"))?;
        if !rest.starts_with(&self.process) {
            return Err(Invalid::NonceExpired);
        }
        Ok(Nonce { made: Duration::from_micros(u64::from_be_bytes(*made)), bytes: bytes.into() })
    }

    /// The ephemeral key that belongs to a nonce of this server.
    pub fn ephemeral(&self, nonce: &Nonce) -> StaticSecret {
        self.ephemeral_of(&nonce.bytes)
    }

    fn ephemeral_of(&self, nonce: &[u8]) -> StaticSecret {
        StaticSecret::from(self.mac("ephemeral", nonce))
    }

    /// The position of a View: of a revision whose log entry has this hash.
    pub fn position(&self, epoch: u64, revision: Revision, hash: &ChainHash) -> Position {
        let bare = Position { epoch, revision, stamp: Stamp::new(hash, &[0; 32]) };
        Position { stamp: Stamp::new(hash, &self.mac("position", &place_and_hash(&bare))), ..bare }
    }

    /// Whether this server, or a replica with the same keys, gave out a position.
    pub fn made(&self, at: &Position) -> bool {
        self.mac_of("position", &place_and_hash(at)).verify_truncated_left(at.stamp.mac()).is_ok()
    }

    /// A session for an identity: its token, and the seconds that it is valid for.
    pub fn session(&self, identity: &Identity) -> (Secret<String>, u32) {
        let mut bytes = identity.0.to_vec();
        bytes.extend_from_slice(&(Timestamp::now().as_second() + i64::from(SESSION_LIFE)).to_be_bytes());
        let mac = self.mac("session", &bytes);
        bytes.extend_from_slice(&mac[..16]);
        (Secret::new(URL_SAFE_NO_PAD.encode(bytes)), SESSION_LIFE)
    }

    /// The identity of a session's token, while it is valid.
    pub fn identity_of(&self, token: &str) -> Result<Identity, InvalidSession> {
        let (identity, until) = self.session_of(token).ok_or(InvalidSession::Forged)?;
        let left = until.saturating_sub(Timestamp::now().as_second());
        // One that was opened while the clock was ahead would be valid for as long as it was.
        let valid = (0..=i64::from(SESSION_LIFE)).contains(&left);
        if valid { Ok(identity) } else { Err(InvalidSession::Expired) }
    }

    /// The identity of a session that this server opened, and the second until which it is valid.
    fn session_of(&self, token: &str) -> Option<(Identity, i64)> {
        let mut bytes = [0u8; 56];
        let length = URL_SAFE_NO_PAD.decode_slice(token, &mut bytes).ok()?;
        let (body, mac) = bytes.get(..length)?.split_last_chunk::<16>()?;
        self.mac_of("session", body).verify_truncated_left(mac).ok()?;
        let (identity, until) = body.split_first_chunk::<32>()?;
        Some((Identity(*identity), i64::from_be_bytes(until.try_into().ok()?)))
    }
}

/// The fingerprint of the server's signing key, by which hosts without a token know the server; nothing before its
/// first start.
pub fn pin(directory: &DataDir) -> Result<Option<Fingerprint>, IdentityError> {
    if directory.read("signing.key")?.is_none() {
        return Ok(None);
    }
    let key = ed25519::SigningKey::from_bytes(directory.secret("signing.key")?.expose());
    Ok(Some(proto::sign::public_key::<SigningKey>(&key).fingerprint()))
}

/// A random number for this process.
fn process() -> Result<[u8; 8], IdentityError> {
    let random = random()?;
    Ok(*random.expose().first_chunk().expect("there are 32 bytes"))
}

/// What the MAC of a position covers.
fn place_and_hash(at: &Position) -> Vec<u8> {
    [&at.epoch.to_be_bytes()[..], &at.revision.0.to_be_bytes(), at.stamp.hash()].concat()
}

/// Creates the server's certificate, and its CA first if there is none.
pub fn certificate(directory: &DataDir, hosts: &[&str]) -> Result<Certificate, IdentityError> {
    let key = match directory.read("ca.key")? {
        Some(pem) => {
            let damaged = |why: String| IdentityError::Damaged { path: directory.file("ca.key"), why };
            let pem = std::str::from_utf8(pem.expose()).map_err(|error| damaged(error.to_string()))?;
            KeyPair::from_pem(pem).map_err(|error| damaged(error.to_string()))?
        }
        None => {
            directory.may_make("ca.key")?;
            let key = KeyPair::generate()?;
            directory.write("ca.key", Secret::new(key.serialize_pem()).expose().as_bytes())?;
            key
        }
    };
    let pin = CaPin(Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&key)).into());
    let params = ca_params();
    if directory.read("ca.pem")?.is_none() {
        directory.write("ca.pem", params.self_signed(&key)?.pem().as_bytes())?;
    }
    let pem = directory.read("ca.pem")?.unwrap_or_default();
    let damaged = |why: String| IdentityError::Damaged { path: directory.file("ca.pem"), why };
    let ca = CertificateDer::from_pem_slice(pem.expose())
        .map_err(|error: pem::Error| damaged(error.to_string()))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&ca).map_err(|error| damaged(error.to_string()))?;
    if Sha256::digest(parsed.tbs_certificate.subject_pki.raw)[..] != pin.0 {
        return Err(damaged("it does not belong to ca.key".into()));
    }
    let issuer = Issuer::new(params, key);
    let server_key = KeyPair::generate()?;
    let server = server_params(hosts)?.signed_by(&server_key, &issuer)?;
    Ok(Certificate {
        chain: vec![server.der().clone(), ca],
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(server_key.serialize_der())),
        ca_pin: pin,
    })
}

/// The CA's certificate: the same at every start, so that the file on the disk stays valid.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "nmserver CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    params.serial_number = Some(1u64.into());
    params
}

fn server_params(hosts: &[&str]) -> Result<CertificateParams, IdentityError> {
    let always = ["localhost", "127.0.0.1", "::1"];
    let all: BTreeSet<&str> = hosts.iter().copied().chain(always).collect();
    let (mut names, mut addresses) = (Vec::new(), Vec::new());
    for host in all {
        match host.parse::<IpAddr>() {
            Ok(address) => addresses.push(SanType::IpAddress(address)),
            Err(_) => names.push(host.to_owned()),
        }
    }
    let mut params = CertificateParams::new(names)?;
    params.subject_alt_names.extend(addresses);
    params.distinguished_name.push(DnType::CommonName, "nmserver");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    Ok(params)
}

/// A new bearer token: its id, the text to hand out, and the hash to keep.
pub fn new_token() -> Result<(String, Secret<String>, [u8; 32]), IdentityError> {
    let bytes = random()?;
    let id: String = random()?.expose().iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let secret = Secret::new(URL_SAFE_NO_PAD.encode(bytes.expose()));
    let hash = Sha256::digest(secret.expose().as_bytes()).into();
    let token = Secret::new(["nma_", &id, "_", secret.expose()].concat());
    Ok((id, token, hash))
}

/// Whether a text has the form of a bearer token's id.
pub fn is_token_id(text: &str) -> bool {
    text.len() == 10 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The id of a bearer token, and the hash of its secret; nothing if it is not of that form.
pub fn hash_of(token: &str) -> Option<(String, [u8; 32])> {
    let (id, secret) = token.strip_prefix("nma_")?.split_once('_')?;
    Some((id.to_owned(), Sha256::digest(secret.as_bytes()).into()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::data_dir::tests::data;

    fn secrets() -> Secrets {
        Secrets {
            signing_key: ed25519::SigningKey::from_bytes(&[1; 32]),
            mac_key: Secret::new([2; 32]),
            process: [9; 8],
        }
    }

    #[test]
    fn a_nonce_is_valid_where_it_was_made_and_nowhere_else() {
        let (nonce, public) = secrets().challenge();
        let known = secrets().nonce(&nonce).expect("it is valid");
        assert!(known.made <= boottime() && known.made + Duration::from_mins(1) > boottime());
        let ephemeral = secrets().ephemeral(&known);
        assert_eq!(x25519_dalek::PublicKey::from(&ephemeral).to_bytes(), public);
        let other = Secrets { mac_key: Secret::new([3; 32]), ..secrets() };
        assert_eq!(other.nonce(&nonce), Err(Invalid::Part("nonce")));
        let restarted = Secrets { process: [8; 8], ..secrets() };
        assert_eq!(restarted.nonce(&nonce), Err(Invalid::NonceExpired), "whatever either clock shows");
        for place in 0..nonce.len() {
            let mut changed = nonce.clone();
            changed[place] ^= 1;
            assert!(secrets().nonce(&changed).is_err());
            assert!(secrets().nonce(&nonce[..place]).is_err());
        }
    }

    #[test]
    fn a_position_is_recognised_by_the_server_that_gave_it_out_and_cannot_be_made_up() {
        let hash = ChainHash::start("server");
        let at = secrets().position(5, Revision(9), &hash);
        assert!(secrets().made(&at) && at.stamp.is_of(&hash));
        let other = Secrets { mac_key: Secret::new([3; 32]), ..secrets() };
        assert!(!other.made(&at));
        let foreign = Stamp::new(&hash.next("x"), &[0; 32]);
        for forged in [
            Position { epoch: 6, ..at },
            Position { revision: Revision(10), ..at },
            Position { stamp: foreign, ..at },
            Position { stamp: Stamp::default(), ..at },
            Position::default(),
        ] {
            assert!(!secrets().made(&forged), "{forged:?}");
        }
    }

    #[test]
    fn a_session_is_for_one_identity() {
        let identity = Identity([7; 32]);
        let (token, _) = secrets().session(&identity);
        assert_eq!(secrets().identity_of(token.expose()), Ok(identity));
        assert_eq!(secrets().identity_of(&token.expose()[1..]), Err(InvalidSession::Forged));
        assert_eq!(secrets().identity_of(""), Err(InvalidSession::Forged));
        let ahead = |seconds: i64| {
            let mut bytes = identity.0.to_vec();
            bytes.extend_from_slice(&(Timestamp::now().as_second() + seconds).to_be_bytes());
            let mac = secrets().mac("session", &bytes);
            bytes.extend_from_slice(&mac[..16]);
            secrets().identity_of(&URL_SAFE_NO_PAD.encode(bytes))
        };
        assert_eq!(ahead(i64::from(SESSION_LIFE) - 5), Ok(identity));
        assert_eq!(ahead(-5), Err(InvalidSession::Expired));
        let early = ahead(i64::from(SESSION_LIFE) + 60);
        assert_eq!(early, Err(InvalidSession::Expired), "it was opened while the clock was ahead");
        let other = Secrets { mac_key: Secret::new([3; 32]), ..secrets() };
        assert_eq!(other.identity_of(token.expose()), Err(InvalidSession::Forged));
    }

    #[test]
    fn a_server_keeps_its_keys_and_its_ca() {
        let directory = tempfile::tempdir().expect("a directory");
        let data = DataDir::open(&directory.path().join("data")).expect("it opens");
        let key = Secrets::open(&data).expect("made").signing_key().to_bytes();
        assert_eq!(Secrets::open(&data).expect("read").signing_key().to_bytes(), key);
        let first = certificate(&data, &["nm.example.net", "proxy.example.net"]).expect("made");
        let second = certificate(&data, &["192.0.2.1"]).expect("made");
        assert_eq!((first.ca_pin, &first.chain[1]), (second.ca_pin, &second.chain[1]));
        use std::os::unix::fs::PermissionsExt;
        for file in ["ca.key", "ca.pem", "signing.key", "session.key"] {
            let mode = fs::metadata(data.file(file)).expect("it is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        data.write("signing.key", b"short").expect("written");
        assert!(Secrets::open(&data).is_err(), "a damaged key is not replaced by another");
    }

    /// A data directory that does not exist yet, in a temporary one.
    #[test]
    fn a_key_that_agents_know_is_never_replaced() {
        let (_directory, path) = data();
        let data = DataDir::open(&path).expect("it opens");
        Secrets::open(&data).expect("made");
        certificate(&data, &[]).expect("made");
        let data = DataDir::open(&path).expect("it opens");
        for file in ["signing.key", "ca.key"] {
            fs::remove_file(data.file(file)).expect("removed");
        }
        assert!(matches!(Secrets::open(&data), Err(IdentityError::Missing(_))));
        assert!(matches!(certificate(&data, &[]), Err(IdentityError::Missing(_))));
        data.write("ca.key", KeyPair::generate().expect("made").serialize_pem().as_bytes()).expect("written");
        assert!(
            matches!(certificate(&data, &[]), Err(IdentityError::Damaged { .. })),
            "ca.pem is of another key"
        );
    }

    #[test]
    fn the_certificate_names_every_address_of_the_server() {
        let (_directory, path) = data();
        let data = DataDir::open(&path).expect("it opens");
        let made = certificate(&data, &["nm.example.net", "192.0.2.1", "localhost"]).expect("made");
        let (_, parsed) = x509_parser::parse_x509_certificate(&made.chain[0]).expect("it parses");
        let names = parsed.subject_alternative_name().expect("there is one").expect("there is one");
        assert_eq!(names.value.general_names.len(), 5, "{:?}", names.value.general_names);
    }

    #[test]
    fn no_secret_is_printed() {
        let (session, _) = secrets().session(&Identity([7; 32]));
        let (_, token, _) = new_token().expect("made");
        let printed = format!("{:?} {session:?} {token:?}", secrets());
        let key = secrets().signing_key().verifying_key();
        assert_eq!(
            printed,
            format!(
                "Secrets {{ signing_key: SigningKey {{ verifying_key: {key:?}, .. }}, mac_key: Secret(..), process: [9, 9, 9, 9, \
                 9, 9, 9, 9] }} Secret(..) Secret(..)"
            )
        );
    }

    #[test]
    fn a_token_is_known_by_its_hash() {
        let (id, token, hash) = new_token().expect("made");
        assert!(is_token_id(&id) && !is_token_id("ci") && !is_token_id("00000000ag"), "{id}");
        assert_eq!(hash_of(token.expose()), Some((id, hash)));
        assert_eq!(hash_of("nma_x"), None);
    }
}
