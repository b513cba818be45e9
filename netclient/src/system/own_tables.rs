//! Which changes of the packet filter are this process's own, and what others did to the tables that it set.
//!
//! The kernel reports every change with the number of the netlink socket by which it was made, and the end of
//! every transaction ([`watch`](super::watch)). Whoever changes a table says by which socket before anything is
//! sent, so a report never comes before that is known; the end of the transaction makes the number foreign
//! again. What is left is somebody else's doing, whatever it was: a table that is not as it was set any more
//! is counted, and never compared, since a comparison would have to know all that may be in one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The part of a message's type that says nftables, and the message that ends a transaction
/// (linux/netfilter/nfnetlink.h, nf_tables.h).
const SUBSYSTEM: u16 = 10;
const NEW_GENERATION: u16 = 15;
/// The family of tables `inet` (NFPROTO_INET; linux/netfilter.h).
const INET: u8 = 1;
/// The attribute with the name of the table, which has the same number in every message about what is in one
/// (NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, ...; linux/netfilter/nf_tables.h).
const TABLE: u16 = 1;
/// The bits of an attribute's type that are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER; linux/netlink.h).
const FLAGS: u16 = 0xc000;

/// The tables `inet` that this process has set, and its own changes that are on their way. Clones share both.
#[derive(Clone, Debug, Default)]
pub struct OwnTables(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// How often others have changed a table since it was set first.
    changes: BTreeMap<String, u64>,
    /// The sockets by which a transaction of this process is on its way; absent: nobody hears of its end.
    sockets: Option<BTreeSet<u32>>,
}

/// What a message of the kernel says of the packet filter.
#[derive(Debug, PartialEq, Eq)]
enum Report<'a> {
    /// Something in a table was changed by the socket of this number, which is 0 if no program did it.
    Changed(&'a [u8], u32),
    /// All that was changed by this socket has been reported.
    Done(u32),
}

impl OwnTables {
    /// How often others have changed a table, which counts as this process's own from now on.
    pub(crate) fn changes_by_others(&self, table: &str) -> u64 {
        *self.lock().changes.entry(table.to_owned()).or_default()
    }

    /// A table is removed: who makes one of that name does not touch this process.
    pub(crate) fn forget(&self, table: &str) {
        self.lock().changes.remove(table);
    }

    /// What the socket of this number is about to change is this process's own doing, until the end of the
    /// transaction is heard of. Where that message is lost with others, the next transaction of a socket of
    /// this number counts as well.
    pub(super) fn begin(&self, socket: u32) {
        if let Some(sockets) = &mut self.lock().sockets {
            sockets.insert(socket);
        }
    }

    /// A transaction has failed, so nobody will hear of its end.
    pub(super) fn abandon(&self, socket: u32) {
        if let Some(sockets) = &mut self.lock().sockets {
            sockets.remove(&socket);
        }
    }

    /// Somebody hears of every transaction from now on.
    pub(super) fn watched(&self) {
        self.lock().sockets = Some(BTreeSet::new());
    }

    /// Takes in a message of the kernel; whether it says that somebody else changed one of the tables.
    pub(super) fn hear(&self, message: &[u8]) -> bool {
        let mut state = self.lock();
        match report(message) {
            Some(Report::Done(socket)) => {
                if let Some(sockets) = &mut state.sockets {
                    sockets.remove(&socket);
                }
                false
            }
            Some(Report::Changed(table, socket)) => {
                let own = state.sockets.as_ref().is_some_and(|sockets| sockets.contains(&socket));
                let table = str::from_utf8(table).ok().filter(|_| !own);
                let changes = table.and_then(|table| state.changes.get_mut(table));
                changes.map(|changes| *changes += 1).is_some()
            }
            None => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a message: the header of netlink(7), four bytes of nfnetlink of which the first is the family, and
/// attributes.
fn report(message: &[u8]) -> Option<Report<'_>> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let socket = u32::from_ne_bytes(message.get(12..16)?.try_into().ok()?);
    if kind >> 8 != SUBSYSTEM {
        return None;
    }
    if kind & 0xff == NEW_GENERATION {
        return Some(Report::Done(socket));
    }
    let mut attributes = message.get(20..).filter(|_| message[16] == INET)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let content = attributes.get(4..length)?;
        if kind & !FLAGS == TABLE {
            // Texts end with NUL.
            return Some(Report::Changed(content.strip_suffix(b"\0").unwrap_or(content), socket));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW_RULE: u16 = 6;

    /// A message of the kernel about a table of that name, which comes after another attribute.
    fn message(kind: u16, family: u8, socket: u32, table: &str) -> Vec<u8> {
        let mut attributes = [6u16.to_ne_bytes(), 7u16.to_ne_bytes()].concat();
        attributes.extend([9, 9, 0, 0]);
        let length = u16::try_from(4 + table.len() + 1).expect("short");
        attributes.extend([length.to_ne_bytes(), (TABLE | 0x4000).to_ne_bytes()].concat());
        attributes.extend(table.bytes().chain([0]));
        attributes.resize(attributes.len().next_multiple_of(4), 0);
        let mut bytes = u32::try_from(20 + attributes.len()).expect("short").to_ne_bytes().to_vec();
        bytes.extend((SUBSYSTEM << 8 | kind).to_ne_bytes());
        bytes.extend([0; 6]);
        bytes.extend(socket.to_ne_bytes());
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(attributes);
        bytes
    }

    fn watched() -> OwnTables {
        let own = OwnTables::default();
        own.watched();
        own
    }

    #[test]
    fn what_others_do_to_a_table_that_was_set_counts_whatever_it_is() {
        let own = watched();
        assert!(!own.hear(&message(NEW_RULE, INET, 7, "nm-own")), "it was not set");
        assert_eq!(own.changes_by_others("nm-own"), 0);
        for kind in [0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 18, 20] {
            assert!(own.hear(&message(kind, INET, 7, "nm-own")), "{kind}");
        }
        assert_eq!(own.changes_by_others("nm-own"), 12);
        assert!(!own.hear(&message(NEW_RULE, INET, 7, "nm-own-3")), "another agent's");
        assert!(!own.hear(&message(NEW_RULE, INET + 1, 7, "nm-own")), "a table of another family");
        own.forget("nm-own");
        assert!(!own.hear(&message(NEW_RULE, INET, 7, "nm-own")), "it was removed");
    }

    #[test]
    fn a_transaction_is_our_own_until_it_has_ended() {
        let own = watched();
        own.changes_by_others("nm-own");
        own.begin(7);
        assert!(!own.hear(&message(NEW_RULE, INET, 7, "nm-own")));
        assert!(own.hear(&message(NEW_RULE, INET, 8, "nm-own")), "meanwhile, by another socket");
        assert!(!own.hear(&message(NEW_GENERATION, 0, 8, "")));
        assert!(!own.hear(&message(NEW_RULE, INET, 7, "nm-own")), "of the same transaction");
        assert!(!own.hear(&message(NEW_GENERATION, 0, 7, "")));
        assert!(own.hear(&message(NEW_RULE, INET, 7, "nm-own")), "the number is another program's now");
        own.begin(9);
        own.abandon(9);
        assert!(own.hear(&message(NEW_RULE, INET, 9, "nm-own")), "it had failed");
    }

    #[test]
    fn where_nobody_listens_nothing_is_remembered() {
        let own = OwnTables::default();
        own.begin(7);
        assert_eq!(own.lock().sockets, None);
    }

    #[test]
    fn what_is_cut_off_or_of_something_else_says_nothing() {
        let whole = message(NEW_RULE, INET, 7, "nm-own");
        assert_eq!(report(&whole), Some(Report::Changed(b"nm-own", 7)));
        for length in 0..whole.len() - 1 {
            assert_eq!(report(&whole[..length]), None, "{length}");
        }
        let mut other = whole;
        other[5] = 1;
        assert_eq!(report(&other), None);
    }
}
