//! The log next to a membership file: what the server sent since the membership was last written whole.
//!
//! Pure. `network-NAME.json` is the *base*: a membership with its View at a position. `network-NAME.log`
//! continues it: a header that names the base by its hash, then one record for each update, in the order in
//! which they came. So a change of one peer costs the bytes of that change, however large the mesh is.
//! Invariants:
//!
//! - a record is read whole or not at all: it says how long it is, and has a checksum over that and over
//!   itself;
//! - a log of another base is ignored: after a new base is written, the old log need not be removed in the
//!   same instant;
//! - what is read is accepted as when it arrived ([`Membership::accept`]): signature, position and count are
//!   checked, and the first update that does not apply ends the log. So whatever a crash leaves, the View is
//!   one that the server sent.
//!
//! ```text
//! log    = "nmlog 2\n" SHA-256(base) record*
//! record = length:u32 crc32(length update):u32 update     numbers in big endian, the update as protobuf
//! ```

use prost::Message;
use proto::wire::Update;
use schema::scalars::Identity;
use sha2::{Digest, Sha256};

use crate::membership::{Accepted, Membership};

/// The first bytes of a log; another format has others.
const MAGIC: &[u8; 8] = b"nmlog 2\n";
/// The size of the header: the first bytes, and the hash of the base.
const HEADER: usize = MAGIC.len() + 32;
/// The size of what a record has before its update.
const PREFIX: usize = 8;
/// The shortest log for which a new base is written. Checking a record is mostly checking a signature, some
/// 50 us, and a change of one peer is some 250 bytes: a log of this length is read in about 15 ms.
const SHORTEST: u64 = 64 << 10;

/// The state of a membership on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Journal {
    base: [u8; 32],
    base_length: u64,
    /// The length of the log; 0: it has not begun.
    length: u64,
}

/// Bytes to write into a log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct JournalEntry {
    /// Their position; what the file has from there on is worthless.
    pub(crate) at: u64,
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
}

impl Journal {
    /// The journal of a new base, without a log.
    pub(crate) fn begin(base: &[u8]) -> Self {
        Self { base: Sha256::digest(base).into(), base_length: base.len() as u64, length: 0 }
    }

    /// Applies the log to a membership as the base has it; also returns whether the end of the log was
    /// unusable.
    pub(crate) fn replay(base: &[u8], log: &[u8], membership: &mut Membership) -> (Self, bool) {
        let mut journal = Self::begin(base);
        let Some(mut rest) = log.strip_prefix(&*journal.header()) else { return (journal, false) };
        let mut length = HEADER;
        while let Some((update, size)) = read_record(rest) {
            match membership.accept(&update, &NOBODY) {
                Ok(Accepted::Changed | Accepted::Same) => {}
                Ok(Accepted::Overtaken | Accepted::Removed | Accepted::Forgotten) | Err(_) => break,
            }
            length += size;
            rest = &rest[size..];
        }
        journal.length = length as u64;
        (journal, !rest.is_empty())
    }

    /// What to write to add one more update to the log; absent: a new base costs less in the long run.
    ///
    /// That is when the log would be longer than the base. So an agent writes at most about twice what it is
    /// sent, and reads at its start at most twice what it has to know.
    pub(crate) fn entry(&self, update: &Update) -> Option<JournalEntry> {
        let mut bytes = if self.length == 0 { self.header() } else { Vec::new() };
        write_record(update, &mut bytes);
        let length = self.length + bytes.len() as u64;
        (length <= self.base_length.max(SHORTEST)).then_some(JournalEntry { at: self.length, bytes })
    }

    /// Records that an entry is on the disk.
    pub(crate) fn written(&mut self, entry: &JournalEntry) {
        self.length = entry.at + entry.bytes.len() as u64;
    }

    fn header(&self) -> Vec<u8> {
        [&MAGIC[..], &self.base].concat()
    }
}

/// An identity that no host has: a log holds no update that removes one.
const NOBODY: Identity = Identity([0; 32]);

fn write_record(update: &Update, bytes: &mut Vec<u8>) {
    let update = update.encode_to_vec();
    let length =
        u32::try_from(update.len()).expect("an update is shorter than what tonic takes, which is 64 MiB");
    bytes.extend(length.to_be_bytes());
    bytes.extend(checksum(length, &update).to_be_bytes());
    bytes.extend(update);
}

/// The first record and its size in bytes; absent: there is no complete one.
fn read_record(bytes: &[u8]) -> Option<(Update, usize)> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk()?;
    let length = u32::from_be_bytes(*length);
    let update = rest.get(..usize::try_from(length).ok()?)?;
    let sound = checksum(length, update) == u32::from_be_bytes(*sum);
    let size = PREFIX + update.len();
    sound.then(|| Update::decode(update).ok()).flatten().map(|update| (update, size))
}

fn checksum(length: u32, update: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&length.to_be_bytes());
    sum.update(update);
    sum.finalize()
}
