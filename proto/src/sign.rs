//! What a signature covers, and how it is made and checked.
//!
//! Every signature covers a purpose, so that one made for a purpose is not valid for another, and every part
//! with its length, so that no two meanings have the same bytes. Requests cover the server's signing key, so
//! that a request to one server cannot be replayed to another, and a nonce of the server's, so that clocks do
//! not matter.

use ed25519_dalek::{self as ed25519, Signature, Signer, VerifyingKey};
use hmac::{Hmac, Mac};
use prost::Message;
use schema::scalars::{CaPin, Fingerprint, Identity, Name, NetworkName, SigningKey, Verifier};
use schema::snapshot::Revision;
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey as Point, StaticSecret};

use crate::position::{Position, Stamp};
use crate::wire::{
    CheckInRequest, IdentifyRequest, IdentifyResponse, JoinRequest, LeaveRequest, RegisterRequest,
    RegisterResponse, Update, Waiting, WatchRequest, update::Body,
};

/// The part of a request that only a holder of the access key's token could have made.
pub const ACCESS_KEY_SIGNATURE: &str = "access key's signature";

const DOMAIN: &[u8] = b"netmaker agent v1";

/// Why what a message is signed or proved with is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A signature, proof, key or nonce is not valid.
    #[error("the {0} is not valid")]
    Part(&'static str),
    /// The nonce was valid once.
    #[error("the nonce has expired, or the node was removed after it was handed out; try again")]
    NonceExpired,
    /// The nonce has served already: the request was recorded and sent again.
    #[error("the nonce has been used; each request needs a nonce of its own")]
    NonceUsed,
}

/// Why a server is not the one that a host was told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// Its signing key is another one.
    #[error("its signing key has the fingerprint {0}")]
    Other(Fingerprint),
    /// Its answer is not valid.
    #[error(transparent)]
    Invalid(Invalid),
}

/// The private key that 32 secret bytes encode.
pub fn from_seed(seed: &[u8; 32]) -> ed25519::SigningKey {
    ed25519::SigningKey::from_bytes(seed)
}

/// A public key that verifies Ed25519 signatures.
pub trait Ed25519: From<[u8; 32]> {}

impl Ed25519 for Identity {}
impl Ed25519 for SigningKey {}
impl Ed25519 for Verifier {}

/// The public key of a private one, as the type of its use.
pub fn public_key<K: Ed25519>(key: &ed25519::SigningKey) -> K {
    key.verifying_key().to_bytes().into()
}

fn transcript(purpose: &str, parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    for part in [DOMAIN, purpose.as_bytes()].iter().chain(parts) {
        bytes.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

fn verify(what: &'static str, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), Invalid> {
    let key =
        key.try_into().ok().and_then(|key| VerifyingKey::from_bytes(key).ok()).ok_or(Invalid::Part(what))?;
    let signature = Signature::from_slice(signature).map_err(|_| Invalid::Part(what))?;
    key.verify_strict(message, &signature).map_err(|_| Invalid::Part(what))
}

fn hash(message: &impl Message) -> [u8; 32] {
    Sha256::digest(message.encode_to_vec()).into()
}

fn join_transcript(server: &SigningKey, request: &JoinRequest) -> Vec<u8> {
    let bare = JoinRequest {
        proof: Vec::new().into(),
        key_signature: Vec::new().into(),
        identity_signature: Vec::new().into(),
        ..request.clone()
    };
    let parts: [&[u8]; 5] =
        [&server.0, request.network.as_bytes(), request.name.as_bytes(), &request.nonce, &hash(&bare)];
    transcript("join", &parts)
}

/// Signs a join with everything that it needs: the access key's seed, if there is one, the identity, and the
/// WireGuard key.
pub fn sign_join(
    request: &mut JoinRequest,
    server: &SigningKey,
    ephemeral: &[u8; 32],
    access_key: Option<&ed25519::SigningKey>,
    identity: &ed25519::SigningKey,
    private_key: &[u8; 32],
) {
    let covered = join_transcript(server, request);
    request.proof = proof(private_key, ephemeral, &covered).to_vec().into();
    request.key_signature = access_key.map(|key| key.sign(&covered).to_vec()).unwrap_or_default().into();
    request.identity_signature = identity.sign(&covered).to_vec().into();
}

/// Checks a join: it was made by a holder of the identity and of the WireGuard key that it names and, if one is
/// passed, of the access key.
pub fn verify_join(
    request: &JoinRequest,
    server: &SigningKey,
    ephemeral: &StaticSecret,
    access_key: Option<&Verifier>,
) -> Result<(), Invalid> {
    let covered = join_transcript(server, request);
    if let Some(key) = access_key {
        verify(ACCESS_KEY_SIGNATURE, &key.0, &covered, &request.key_signature)?;
    }
    verify("identity's signature", &request.identity, &covered, &request.identity_signature)?;
    verify_proof(&request.public_key, ephemeral, &covered, &request.proof)
}

fn waiting_transcript(request: &JoinRequest, left: u32) -> Vec<u8> {
    let parts: [&[u8]; 4] =
        [request.network.as_bytes(), &request.identity, &request.nonce, &left.to_be_bytes()];
    transcript("waiting", &parts)
}

/// Signs the answer to a host that waits: for how many seconds yet.
pub fn sign_waiting(left: u32, request: &JoinRequest, key: &ed25519::SigningKey) -> Waiting {
    Waiting { left, signature: key.sign(&waiting_transcript(request, left)).to_vec().into() }
}

/// Checks that this is the server's answer to this host's request.
pub fn verify_waiting(answer: &Waiting, request: &JoinRequest, server: &SigningKey) -> Result<(), Invalid> {
    let covered = waiting_transcript(request, answer.left);
    verify("server's signature", &server.0, &covered, &answer.signature)
}

fn identify_transcript(request: &IdentifyRequest, ca_pin: &[u8]) -> Vec<u8> {
    transcript("identify", &[&request.nonce, ca_pin])
}

/// Signs who the server is.
pub fn sign_identify(
    request: &IdentifyRequest,
    ca_pin: Option<&CaPin>,
    key: &ed25519::SigningKey,
) -> IdentifyResponse {
    let ca_pin = ca_pin.map(|pin| pin.0.to_vec()).unwrap_or_default();
    let signature = key.sign(&identify_transcript(request, &ca_pin)).to_vec().into();
    let signing_key = public_key::<SigningKey>(key).0.to_vec().into();
    IdentifyResponse { signing_key, ca_pin: ca_pin.into(), signature }
}

/// Checks who the server is: its signing key has the expected fingerprint, and has signed the rest.
pub fn verify_identify(
    answer: &IdentifyResponse,
    request: &IdentifyRequest,
    expected: Fingerprint,
) -> Result<(SigningKey, Option<CaPin>), Unidentified> {
    let malformed = |what| Unidentified::Invalid(Invalid::Part(what));
    let key: [u8; 32] = (*answer.signing_key).try_into().map_err(|_| malformed("server's signing key"))?;
    let key = SigningKey(key);
    if key.fingerprint() != expected {
        return Err(Unidentified::Other(key.fingerprint()));
    }
    let covered = identify_transcript(request, &answer.ca_pin);
    verify("server's signature", &key.0, &covered, &answer.signature).map_err(Unidentified::Invalid)?;
    let pin = match &*answer.ca_pin {
        [] => None,
        pin => Some(CaPin(pin.try_into().map_err(|_| malformed("pin of the server's CA"))?)),
    };
    Ok((key, pin))
}

fn register_transcript(server: &SigningKey, request: &RegisterRequest) -> Vec<u8> {
    let bare = RegisterRequest {
        proof: Vec::new().into(),
        key_signature: Vec::new().into(),
        identity_signature: Vec::new().into(),
        ..request.clone()
    };
    transcript("register", &[&server.0, &request.nonce, &hash(&bare)])
}

/// Signs a registration: by the identity, and by the access key's seed where the host has not joined.
pub fn sign_register(
    request: &mut RegisterRequest,
    server: &SigningKey,
    ephemeral: &[u8; 32],
    access_key: Option<&ed25519::SigningKey>,
    identity: &ed25519::SigningKey,
    private_key: &[u8; 32],
) {
    let covered = register_transcript(server, request);
    request.proof = proof(private_key, ephemeral, &covered).to_vec().into();
    request.key_signature = access_key.map(|key| key.sign(&covered).to_vec()).unwrap_or_default().into();
    request.identity_signature = identity.sign(&covered).to_vec().into();
}

/// Checks a registration: it was made by a holder of the identity and of the tunnel's key that it names and,
/// if one is passed, of the access key.
pub fn verify_register(
    request: &RegisterRequest,
    server: &SigningKey,
    ephemeral: &StaticSecret,
    access_key: Option<&Verifier>,
) -> Result<(), Invalid> {
    let covered = register_transcript(server, request);
    if let Some(key) = access_key {
        verify(ACCESS_KEY_SIGNATURE, &key.0, &covered, &request.key_signature)?;
    }
    verify("identity's signature", &request.identity, &covered, &request.identity_signature)?;
    verify_proof(&request.public_key, ephemeral, &covered, &request.proof)
}

fn registered_transcript(request: &RegisterRequest, answer: &RegisterResponse) -> Vec<u8> {
    let bare = RegisterResponse { signature: Vec::new().into(), ..answer.clone() };
    transcript("registered", &[&request.nonce, &request.identity, &request.public_key, &hash(&bare)])
}

/// Signs the answer to a registration.
pub fn sign_registered(answer: &mut RegisterResponse, request: &RegisterRequest, key: &ed25519::SigningKey) {
    answer.signature = key.sign(&registered_transcript(request, answer)).to_vec().into();
}

/// Checks that this is the server's answer to this registration.
pub fn verify_registered(
    answer: &RegisterResponse,
    request: &RegisterRequest,
    server: &SigningKey,
) -> Result<(), Invalid> {
    verify("server's signature", &server.0, &registered_transcript(request, answer), &answer.signature)
}

fn verify_proof(
    public: &[u8],
    ephemeral: &StaticSecret,
    covered: &[u8],
    proof: &[u8],
) -> Result<(), Invalid> {
    let public: [u8; 32] = public.try_into().map_err(|_| Invalid::Part("public key"))?;
    let shared = ephemeral.diffie_hellman(&Point::from(public));
    // A point of low order makes the same shared secret with any other key: anyone could prove that they hold
    // such a key.
    if !shared.was_contributory() {
        return Err(Invalid::Part("WireGuard key"));
    }
    mac(shared.as_bytes(), covered)
        .verify_slice(proof)
        .map_err(|_| Invalid::Part("proof of the WireGuard key"))
}

fn proof(private: &[u8; 32], public: &[u8; 32], covered: &[u8]) -> [u8; 32] {
    let shared = StaticSecret::from(*private).diffie_hellman(&Point::from(*public));
    mac(shared.as_bytes(), covered).finalize().into_bytes().into()
}

fn mac(key: &[u8], covered: &[u8]) -> Hmac<Sha256> {
    let mac = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.chain_update(covered)
}

fn session_transcript(server: &SigningKey, nonce: &[u8], identity: &[u8]) -> Vec<u8> {
    transcript("session", &[&server.0, nonce, identity])
}

/// Signs the nonce that opens a session.
pub fn sign_session(server: &SigningKey, nonce: &[u8], identity: &ed25519::SigningKey) -> Vec<u8> {
    identity.sign(&session_transcript(server, nonce, &public_key::<Identity>(identity).0)).to_vec()
}

/// Checks the signature that opens a session.
pub fn verify_session(
    server: &SigningKey,
    nonce: &[u8],
    identity: &[u8],
    signature: &[u8],
) -> Result<(), Invalid> {
    verify("identity's signature", identity, &session_transcript(server, nonce, identity), signature)
}

fn leave_transcript(server: &SigningKey, request: &LeaveRequest) -> Vec<u8> {
    transcript("leave", &[&server.0, request.network.as_bytes(), &request.nonce, &request.identity])
}

/// Signs a leave.
pub fn sign_leave(request: &mut LeaveRequest, server: &SigningKey, identity: &ed25519::SigningKey) {
    request.signature = identity.sign(&leave_transcript(server, request)).to_vec().into();
}

/// Checks a leave.
pub fn verify_leave(request: &LeaveRequest, server: &SigningKey) -> Result<(), Invalid> {
    verify("identity's signature", &request.identity, &leave_transcript(server, request), &request.signature)
}

/// A request in a session that its node signs as well, with a nonce: whoever ends TLS has the session, and
/// can record the request, but not make it do anything a second time.
pub trait SignedCall: Message + Clone {
    /// What it is signed for.
    const PURPOSE: &'static str;
    /// The nonce that it is signed with.
    fn nonce(&self) -> &[u8];
    /// Its signature.
    fn signature(&mut self) -> &mut prost::bytes::Bytes;
}

impl SignedCall for CheckInRequest {
    const PURPOSE: &'static str = "check-in";

    fn nonce(&self) -> &[u8] {
        &self.nonce
    }

    fn signature(&mut self) -> &mut prost::bytes::Bytes {
        &mut self.signature
    }
}

impl SignedCall for WatchRequest {
    const PURPOSE: &'static str = "watch";

    fn nonce(&self) -> &[u8] {
        &self.nonce
    }

    fn signature(&mut self) -> &mut prost::bytes::Bytes {
        &mut self.signature
    }
}

fn call_transcript<R: SignedCall>(server: &SigningKey, identity: &Identity, request: &R) -> Vec<u8> {
    let mut bare = request.clone();
    bare.signature().clear();
    transcript(R::PURPOSE, &[&server.0, &identity.0, request.nonce(), &hash(&bare)])
}

/// Signs a call by the identity of its node.
pub fn sign_call<R: SignedCall>(request: &mut R, server: &SigningKey, identity: &ed25519::SigningKey) {
    let covered = call_transcript(server, &public_key(identity), request);
    *request.signature() = identity.sign(&covered).to_vec().into();
}

/// Checks that a call was signed by the identity of its session.
pub fn verify_call<R: SignedCall>(
    request: &R,
    server: &SigningKey,
    identity: &Identity,
) -> Result<(), Invalid> {
    let signature = request.clone().signature().clone();
    verify("identity's signature", &identity.0, &call_transcript(server, identity, request), &signature)
}

/// What identifies an update besides its body: whom it is for, and which step it is.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// The network.
    pub network: &'a NetworkName,
    /// The node that it is for.
    pub node: &'a Name,
    /// The position that a delta applies to, in the epoch of `to`; the default for a whole View.
    pub from: Position,
    /// The position that it results in.
    pub to: Position,
}

/// The body of an update with its hash: made once, and signed for each node that is sent it.
#[derive(Clone, Debug)]
pub struct SignedBody {
    body: Body,
    hash: [u8; 32],
}

impl SignedBody {
    /// An encoded View.
    pub fn whole(view: Vec<u8>) -> Self {
        Self { hash: Sha256::digest(&view).into(), body: Body::Whole(view.into()) }
    }

    /// An encoded delta.
    pub fn delta(delta: Vec<u8>) -> Self {
        Self { hash: Sha256::digest(&delta).into(), body: Body::Delta(delta.into()) }
    }

    /// The message that the node of this identity is removed.
    pub fn removed(identity: &Identity) -> Self {
        Self { hash: Sha256::digest(identity.0).into(), body: Body::Removed(identity.0.to_vec().into()) }
    }

    /// The encoded body. Clones share it.
    pub fn bytes(&self) -> prost::bytes::Bytes {
        let (Body::Whole(bytes) | Body::Delta(bytes) | Body::Removed(bytes)) = &self.body;
        bytes.clone()
    }

    /// The update for one node.
    pub fn sign(self, header: Header<'_>, key: &ed25519::SigningKey) -> Update {
        let Header { network: _, node: _, from, to } = header;
        let signature = key.sign(&update_transcript(header, Some(&self.body), &self.hash)).to_vec().into();
        Update {
            epoch: to.epoch,
            from: from.revision.0,
            to: to.revision.0,
            body: Some(self.body),
            signature,
            from_stamp: from.stamp.to_bytes().into(),
            to_stamp: to.stamp.to_bytes().into(),
        }
    }
}

fn update_transcript(header: Header<'_>, body: Option<&Body>, hash: &[u8; 32]) -> Vec<u8> {
    let purpose = match body {
        Some(Body::Whole(_)) => "view",
        Some(Body::Delta(_)) => "delta",
        Some(Body::Removed(_)) => "removed",
        None => "nothing",
    };
    let Header { network, node, from, to } = header;
    let [epoch, revision, base] = [to.epoch, to.revision.0, from.revision.0].map(u64::to_be_bytes);
    let [stamp, base_stamp] = [to.stamp, from.stamp].map(Stamp::to_bytes);
    // A server that has removed a node no longer knows its name, so the identity replaces it.
    let node = if matches!(body, Some(Body::Removed(_))) { &[] } else { node.as_str().as_bytes() };
    transcript(
        purpose,
        &[network.as_str().as_bytes(), node, &epoch, &base, &base_stamp, &revision, &stamp, hash],
    )
}

/// The position that an update applies to; of a whole View, none.
pub fn from(update: &Update) -> Position {
    let Update { epoch, from, from_stamp, .. } = update;
    Position { epoch: *epoch, revision: Revision(*from), stamp: Stamp::from_bytes(from_stamp) }
}

/// The position that an update results in.
pub fn to(update: &Update) -> Position {
    let Update { epoch, to, to_stamp, .. } = update;
    Position { epoch: *epoch, revision: Revision(*to), stamp: Stamp::from_bytes(to_stamp) }
}

/// Checks that the server made this update for this node.
pub fn verify_update(
    update: &Update,
    network: &NetworkName,
    node: &Name,
    server: &SigningKey,
) -> Result<(), Invalid> {
    let Update { body, signature, .. } = update;
    let bytes: &[u8] = match body {
        Some(Body::Whole(bytes) | Body::Delta(bytes) | Body::Removed(bytes)) => bytes,
        None => &[],
    };
    let header = Header { network, node, from: from(update), to: to(update) };
    let transcript = update_transcript(header, body.as_ref(), &Sha256::digest(bytes).into());
    verify("server's signature", &server.0, &transcript, signature)
}

#[cfg(test)]
mod tests {
    use schema::chain::ChainHash;
    use x25519_dalek::x25519;

    use super::*;

    fn keys() -> (ed25519::SigningKey, ed25519::SigningKey, [u8; 32], StaticSecret) {
        (from_seed(&[1; 32]), from_seed(&[2; 32]), [3; 32], StaticSecret::from([4; 32]))
    }

    fn join() -> JoinRequest {
        let (access_key, identity, private, ephemeral) = keys();
        let mut request = JoinRequest {
            network: "corp".into(),
            name: "db-1".into(),
            nonce: vec![9; 40].into(),
            identity: public_key::<Identity>(&identity).0.to_vec().into(),
            public_key: x25519(private, x25519_dalek::X25519_BASEPOINT_BYTES).to_vec().into(),
            ..JoinRequest::default()
        };
        let ephemeral = x25519_dalek::PublicKey::from(&ephemeral).to_bytes();
        sign_join(&mut request, &SigningKey([7; 32]), &ephemeral, Some(&access_key), &identity, &private);
        request
    }

    fn check(request: &JoinRequest, server: [u8; 32]) -> Result<(), Invalid> {
        let (access_key, _, _, ephemeral) = keys();
        verify_join(request, &SigningKey(server), &ephemeral, Some(&public_key(&access_key)))
    }

    #[test]
    fn a_join_holds_for_what_it_says_and_nothing_else() {
        assert_eq!(check(&join(), [7; 32]), Ok(()));
        assert!(check(&join(), [8; 32]).is_err());
        assert!(check(&JoinRequest { name: "db-2".into(), ..join() }, [7; 32]).is_err());
        assert!(check(&JoinRequest { network: "prod".into(), ..join() }, [7; 32]).is_err());
        assert!(check(&JoinRequest { os: "x".into(), ..join() }, [7; 32]).is_err());
        assert!(check(&JoinRequest { nonce: vec![8; 40].into(), ..join() }, [7; 32]).is_err());
    }

    #[test]
    fn a_signed_call_holds_for_what_it_says_and_nothing_else() {
        let (_, key, ..) = keys();
        let (server, identity) = (SigningKey([7; 32]), public_key(&key));
        let mut watch =
            WatchRequest { network: "corp".into(), nonce: vec![9; 40].into(), ..Default::default() };
        sign_call(&mut watch, &server, &key);
        assert_eq!(verify_call(&watch, &server, &identity), Ok(()));
        assert!(verify_call(&watch, &SigningKey([8; 32]), &identity).is_err());
        assert!(verify_call(&watch, &server, &Identity([8; 32])).is_err());
        let WatchRequest { network, nonce, signature, .. } = watch.clone();
        assert!(
            verify_call(&WatchRequest { network: "prod".into(), ..watch.clone() }, &server, &identity)
                .is_err()
        );
        assert!(verify_call(&WatchRequest { revision: 1, ..watch.clone() }, &server, &identity).is_err());
        assert!(
            verify_call(&WatchRequest { nonce: vec![8; 40].into(), ..watch }, &server, &identity).is_err()
        );
        let other = CheckInRequest { network, nonce, signature, ..Default::default() };
        assert!(verify_call(&other, &server, &identity).is_err(), "it is for one purpose");
    }

    #[test]
    fn another_hosts_wireguard_key_cannot_be_joined_with() {
        let (access_key, identity, _, ephemeral) = keys();
        let mut request = join();
        let theirs = x25519([5; 32], x25519_dalek::X25519_BASEPOINT_BYTES);
        request.public_key = theirs.to_vec().into();
        let ephemeral = x25519_dalek::PublicKey::from(&ephemeral).to_bytes();
        sign_join(&mut request, &SigningKey([7; 32]), &ephemeral, Some(&access_key), &identity, &[3; 32]);
        assert_eq!(check(&request, [7; 32]), Err(Invalid::Part("proof of the WireGuard key")));
    }

    #[test]
    fn a_key_that_anyone_could_hold_is_refused() {
        let (access_key, identity, private, ephemeral) = keys();
        let mut request = join();
        request.public_key = vec![0; 32].into();
        let ephemeral = x25519_dalek::PublicKey::from(&ephemeral).to_bytes();
        sign_join(&mut request, &SigningKey([7; 32]), &ephemeral, Some(&access_key), &identity, &private);
        request.proof = mac(&[0; 32], &join_transcript(&SigningKey([7; 32]), &request))
            .finalize()
            .into_bytes()
            .to_vec()
            .into();
        assert_eq!(check(&request, [7; 32]), Err(Invalid::Part("WireGuard key")));
    }

    fn register(access_key: Option<&ed25519::SigningKey>) -> RegisterRequest {
        let (_, identity, private, ephemeral) = keys();
        let mut request = RegisterRequest {
            network: "corp".into(),
            key: "k".into(),
            nonce: vec![9; 40].into(),
            identity: public_key::<Identity>(&identity).0.to_vec().into(),
            public_key: x25519(private, x25519_dalek::X25519_BASEPOINT_BYTES).to_vec().into(),
            ..RegisterRequest::default()
        };
        let ephemeral = x25519_dalek::PublicKey::from(&ephemeral).to_bytes();
        sign_register(&mut request, &SigningKey([7; 32]), &ephemeral, access_key, &identity, &private);
        request
    }

    #[test]
    fn a_registration_holds_for_what_it_says_and_nothing_else() {
        let (access_key, _, _, ephemeral) = keys();
        let verifier = public_key(&access_key);
        let check =
            |request: &RegisterRequest, key| verify_register(request, &SigningKey([7; 32]), &ephemeral, key);
        let signed = register(Some(&access_key));
        assert_eq!(check(&signed, Some(&verifier)), Ok(()));
        let bare = register(None);
        assert_eq!(check(&bare, None), Ok(()), "the identity alone");
        assert!(check(&bare, Some(&verifier)).is_err(), "the key is asked for");
        assert!(check(&RegisterRequest { network: "prod".into(), ..signed.clone() }, None).is_err());
        assert!(check(&RegisterRequest { nonce: vec![8; 40].into(), ..signed.clone() }, None).is_err());
        let theirs = x25519([5; 32], x25519_dalek::X25519_BASEPOINT_BYTES).to_vec();
        assert!(check(&RegisterRequest { public_key: theirs.into(), ..signed }, None).is_err());
    }

    #[test]
    fn a_server_is_known_by_the_fingerprint_of_the_key_that_signs_its_answer_to_that_host() {
        let [server, other] = [[6; 32], [7; 32]].map(|seed| from_seed(&seed));
        let request = IdentifyRequest { nonce: vec![1; 32].into() };
        let (key, pin) = (public_key::<SigningKey>(&server), CaPin([2; 32]));
        let expected = key.fingerprint();
        for pin in [Some(pin), None] {
            let answer = sign_identify(&request, pin.as_ref(), &server);
            assert_eq!(verify_identify(&answer, &request, expected), Ok((key, pin)));
            let later = IdentifyRequest { nonce: vec![3; 32].into() };
            assert!(verify_identify(&answer, &later, expected).is_err(), "it was recorded");
            for forged in [vec![4; 32], vec![4; 31], Vec::new()] {
                let answer = IdentifyResponse { ca_pin: forged.clone().into(), ..answer.clone() };
                let verified = verify_identify(&answer, &request, expected);
                assert_eq!(verified.is_ok(), forged.is_empty() && pin.is_none(), "{forged:?}");
            }
        }
        let answer = sign_identify(&request, Some(&pin), &other);
        let found = public_key::<SigningKey>(&other).fingerprint();
        assert_eq!(verify_identify(&answer, &request, expected), Err(Unidentified::Other(found)));
        let pretended = IdentifyResponse { signing_key: key.0.to_vec().into(), ..answer };
        assert!(matches!(verify_identify(&pretended, &request, expected), Err(Unidentified::Invalid(_))));
    }

    #[test]
    fn that_a_host_waits_holds_for_its_request_alone() {
        let server = from_seed(&[6; 32]);
        let request = JoinRequest {
            network: "corp".into(),
            identity: vec![1; 32].into(),
            nonce: vec![2; 40].into(),
            ..JoinRequest::default()
        };
        let answer = sign_waiting(60, &request, &server);
        let check =
            |answer: &Waiting, request: &JoinRequest| verify_waiting(answer, request, &public_key(&server));
        assert_eq!(check(&answer, &request), Ok(()));
        assert!(check(&Waiting { left: 0, ..answer.clone() }, &request).is_err(), "nobody else drops it");
        for other in [
            JoinRequest { nonce: vec![3; 40].into(), ..request.clone() },
            JoinRequest { network: "lab".into(), ..request.clone() },
            JoinRequest { identity: vec![4; 32].into(), ..request.clone() },
        ] {
            assert!(check(&answer, &other).is_err());
        }
    }

    #[test]
    fn an_answer_to_a_registration_holds_for_that_one() {
        let server = from_seed(&[6; 32]);
        let request = register(None);
        let mut answer =
            RegisterResponse { endpoint: "192.0.2.1:50555".into(), ..RegisterResponse::default() };
        sign_registered(&mut answer, &request, &server);
        let check =
            |answer: &RegisterResponse, request| verify_registered(answer, request, &public_key(&server));
        assert_eq!(check(&answer, &request), Ok(()));
        assert!(
            check(&RegisterResponse { endpoint: "192.0.2.2:50555".into(), ..answer.clone() }, &request)
                .is_err()
        );
        assert!(check(&answer, &RegisterRequest { nonce: vec![8; 40].into(), ..request.clone() }).is_err());
    }

    #[test]
    fn an_update_holds_for_one_node_and_one_step() {
        let server = from_seed(&[6; 32]);
        let (network, node): (NetworkName, Name) =
            ("corp".parse().expect("good"), "a".parse().expect("good"));
        let at = |revision: u64| Position {
            epoch: 1,
            revision: Revision(revision),
            stamp: Stamp::new(&ChainHash::start("s").next(&revision.to_string()), &[1; 32]),
        };
        let header = Header { network: &network, node: &node, from: at(4), to: at(5) };
        let update = SignedBody::delta(vec![1, 2, 3]).sign(header, &server);
        let check =
            |update: &Update, node: &Name| verify_update(update, &network, node, &public_key(&server));
        assert_eq!(check(&update, &node), Ok(()));
        assert!(check(&update, &"b".parse().expect("good")).is_err());
        assert!(check(&Update { from: 3, ..update.clone() }, &node).is_err());
        assert!(check(&Update { epoch: 2, ..update.clone() }, &node).is_err());
        for other in [at(9).stamp.to_bytes(), Vec::new()] {
            assert!(check(&Update { from_stamp: other.clone().into(), ..update.clone() }, &node).is_err());
            assert!(check(&Update { to_stamp: other.into(), ..update.clone() }, &node).is_err());
        }
        let whole = Some(Body::Whole(vec![1, 2, 3].into()));
        assert!(check(&Update { body: whole, ..update.clone() }, &node).is_err());
    }
}
