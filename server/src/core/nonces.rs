//! Which nonces may still serve: each one once, and none for a node that was removed after it was handed out.
//!
//! Whoever ends TLS in front of the server can record a request and send it again. A nonce lives for a
//! minute, so what has to be remembered is what happened within the last one; nonces of an earlier process of
//! the server are not known ([`Secrets::nonce`](crate::identity::Secrets::nonce)), since nobody remembers
//! which of them were used. Times are those since the host was started, which nobody can set. Pure: they are
//! passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::sign::Invalid;
use schema::scalars::{Identity, NetworkName};

/// How long a nonce may serve.
pub const LIFE: Duration = Duration::from_secs(60);

/// A nonce that this server made: its bytes, and when.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nonce {
    /// When it was made, since the host was started.
    pub made: Duration,
    /// All of it.
    pub bytes: Box<[u8]>,
}

/// What is remembered of the last minute.
#[derive(Debug, Default)]
pub struct Nonces {
    spent: BTreeSet<Nonce>,
    removed: BTreeMap<(NetworkName, Identity), Duration>,
}

impl Nonces {
    /// Uses a nonce up, for a request whose signatures were checked: nobody else can use up a nonce of
    /// somebody.
    pub fn spend(&mut self, nonce: Nonce, now: Duration) -> Result<(), Invalid> {
        if nonce.made + LIFE < now {
            return Err(Invalid::NonceExpired);
        }
        self.spent = self.spent.split_off(&Nonce { made: now.saturating_sub(LIFE), bytes: Box::default() });
        if self.spent.insert(nonce) { Ok(()) } else { Err(Invalid::NonceUsed) }
    }

    /// Notes that a node was removed, or has left.
    pub fn removed(&mut self, network: NetworkName, identity: Identity, now: Duration) {
        self.removed.retain(|_, at| *at + LIFE >= now);
        self.removed.insert((network, identity), now);
    }

    /// Whether a join may be carried out: its identity was not removed from the network after the nonce was
    /// made, which was before the join was signed.
    pub fn may_join(&self, network: &NetworkName, identity: Identity, made: Duration) -> Result<(), Invalid> {
        match self.removed.get(&(network.clone(), identity)) {
            Some(removed) if *removed >= made => Err(Invalid::NonceExpired),
            Some(_) | None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    fn nonce(made: u64, byte: u8) -> Nonce {
        Nonce { made: at(made), bytes: [byte; 40].into() }
    }

    #[test]
    fn a_nonce_serves_once_within_its_minute() {
        let mut nonces = Nonces::default();
        assert_eq!(nonces.spend(nonce(1, 0), at(1)), Ok(()), "right after the host was started");
        assert_eq!(nonces.spend(nonce(1_000, 1), at(1_001)), Ok(()));
        assert_eq!(nonces.spend(nonce(1_000, 1), at(1_060)), Err(Invalid::NonceUsed));
        assert_eq!(nonces.spend(nonce(1_000, 2), at(1_060)), Ok(()));
        assert_eq!(nonces.spend(nonce(1_000, 3), at(1_061)), Err(Invalid::NonceExpired));
        assert_eq!(nonces.spend(nonce(2_000, 5), at(2_000)), Ok(()));
        assert_eq!(nonces.spent.len(), 1, "what cannot come again is forgotten");
    }

    #[test]
    fn a_removal_outlives_the_joins_that_were_signed_before_it() {
        let mut nonces = Nonces::default();
        let [corp, lab]: [NetworkName; 2] = ["corp", "lab"].map(|name| name.parse().expect("good"));
        let [mine, other] = [Identity([1; 32]), Identity([2; 32])];
        nonces.removed(corp.clone(), mine, at(1_010));
        assert_eq!(nonces.may_join(&corp, mine, at(1_010)), Err(Invalid::NonceExpired));
        assert_eq!(nonces.may_join(&corp, mine, at(1_011)), Ok(()), "whoever signs anew may join again");
        assert_eq!(nonces.may_join(&corp, other, at(1_005)), Ok(()));
        assert_eq!(nonces.may_join(&lab, mine, at(1_005)), Ok(()));
        nonces.removed(lab, other, at(1_071));
        assert_eq!(nonces.removed.len(), 1, "what no nonce reaches is forgotten");
    }
}
