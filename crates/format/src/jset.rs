//! Journal entries (`docs/format.md` 5.1, 5.3).
//!
//! A journal bucket is probed block by block. What a probe finds is one of three things and not two: a block
//! without the magic is nothing, but one that has it and fails a check may be an entry that was durable once,
//! and whoever opens the set must think about it (`docs/format.md` 5.9). So it keeps its claimed sequence
//! number.

use crate::bytes::{put, put_words, round_up, u16_at, u32_at, u64_at};
use crate::crc;
use crate::error::{FormatError, ensure};
use crate::key::{Key, key_words, parse_key, parse_keys};
use std::fmt;

/// Bytes in front of the keys.
pub const HEADER_BYTES: usize = 240;
/// Most bytes of an entry, keys included.
pub const MAX_BYTES: usize = 32768;
/// Most words of keys.
pub const MAX_KEY_WORDS: usize = 4066;
/// The version written, and the newest there is.
pub const VERSION: u32 = 1;
/// The version under which the UUID table has 64-byte entries.
pub const VERSION_OLD_UUIDS: u32 = 0;
const MAGIC: u64 = 0x2452_35c1_a362_5032;
/// Bytes of padding behind the level, where Brigade leaves its mark.
const MARK_BYTES: usize = 6;

const _: () = assert!(HEADER_BYTES + 8 * MAX_KEY_WORDS == MAX_BYTES);

/// Byte offsets of the fields.
mod at {
    pub(super) const MAGIC: usize = 8;
    pub(super) const SEQ: usize = 16;
    pub(super) const VERSION: usize = 24;
    pub(super) const KEYS: usize = 28;
    pub(super) const LAST_SEQ: usize = 32;
    pub(super) const UUID_BUCKET: usize = 40;
    pub(super) const BTREE_ROOT: usize = 104;
    pub(super) const BTREE_LEVEL: usize = 168;
    pub(super) const MARK: usize = 170;
    pub(super) const PRIO_BUCKET: usize = 176;
}

/// Bytes of the slot a key is padded to in the header.
const SLOT_BYTES: usize = 64;

/// What an entry says besides its keys. Root, UUID and prio fields of the newest entry describe the set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JsetHeader {
    /// The entry's number; the first ever is 1.
    pub seq: u64,
    /// The oldest entry still needed.
    pub last_seq: u64,
    /// [`VERSION`], or [`VERSION_OLD_UUIDS`] in very old sets.
    pub version: u32,
    /// Where the UUID table is.
    pub uuid_bucket: Key,
    /// The root node.
    pub btree_root: Key,
    /// Its level; 0 if the root is a leaf.
    pub btree_level: u16,
    /// The bucket of the first link of the prio chain.
    pub prio_bucket: u64,
}

/// A whole entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Jset {
    /// What it says besides its keys.
    pub header: JsetHeader,
    /// Leaf keys in the order they were inserted.
    pub keys: Vec<Key>,
}

impl Jset {
    /// As [`encode`].
    ///
    /// # Panics
    /// As [`encode`].
    pub fn encode(&self, set_magic: u64, block_bytes: usize) -> Vec<u8> {
        encode(&self.header, &key_words(&self.keys), set_magic, block_bytes)
    }
}

impl fmt::Display for Jset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = &self.header;
        writeln!(f, "jset seq {} last_seq {}", header.seq, header.last_seq)?;
        writeln!(f, "  version      {}", header.version)?;
        writeln!(f, "  uuid_bucket  {}", header.uuid_bucket)?;
        writeln!(f, "  btree_root   {}", header.btree_root)?;
        writeln!(f, "  btree_level  {}", header.btree_level)?;
        writeln!(f, "  prio_bucket  {}", header.prio_bucket)?;
        write!(f, "  keys         {}", self.keys.len())?;
        self.keys
            .iter()
            .try_for_each(|key| write!(f, "\n    {key}"))
    }
}

/// What a block of a journal bucket is the start of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Probe<'a> {
    /// No magic: leftovers, or nothing.
    NotAnEntry,
    /// The magic, but a length or checksum that cannot be.
    Suspect {
        /// What its seq field says.
        claimed_seq: u64,
        /// What is wrong.
        error: FormatError,
    },
    /// An entry whose checksum is right.
    Valid(JsetView<'a>),
}

/// An entry whose checksum is right. Its keys are not looked at before [`JsetView::keys`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JsetView<'a> {
    /// The entry's number.
    pub seq: u64,
    /// The oldest entry it needs.
    pub last_seq: u64,
    /// Its version, unchecked; see [`JsetView::check`].
    pub version: u32,
    /// Words of keys.
    pub key_words: usize,
    /// Level of the root.
    pub btree_level: u16,
    /// First link of the prio chain.
    pub prio_bucket: u64,
    /// Length without the padding to a whole block.
    pub bytes_len: usize,
    bytes: &'a [u8],
}

impl<'a> JsetView<'a> {
    /// The entry's bytes without its padding.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether Brigade wrote it, going by padding that nobody else gives a meaning. A hint: what it allows must be right for
    /// any image.
    pub fn mark(&self) -> Option<Mark> {
        let found = self.bytes.get(at::MARK..at::MARK + MARK_BYTES)?;
        [Mark::Running, Mark::Stopped]
            .into_iter()
            .find(|mark| found == mark_of(self.bytes, *mark))
    }

    /// Bytes it takes in its bucket.
    pub fn disk_bytes(&self, block_bytes: usize) -> usize {
        round_up(self.bytes_len, block_bytes)
    }

    /// Version and sequence numbers (F11).
    pub fn check(&self) -> Result<(), FormatError> {
        let (seq, last_seq, version) = (self.seq, self.last_seq, self.version);
        let offset = |at: usize| u64::try_from(at).unwrap_or(u64::MAX);
        ensure(
            version <= VERSION,
            "jset version",
            offset(at::VERSION),
            || version.to_string(),
            "0 or 1",
        )?;
        ensure(
            1 <= last_seq && last_seq <= seq,
            "jset last_seq",
            offset(at::LAST_SEQ),
            || format!("{last_seq} in entry {seq}"),
            "1 <= last_seq <= seq",
        )
    }

    /// The keys (F12). Offsets in an error count from the start of the entry.
    pub fn keys(&self) -> Result<Vec<Key>, FormatError> {
        let area = self.bytes.get(HEADER_BYTES..).unwrap_or_default();
        parse_keys(area).map_err(|error| FormatError {
            structure: "jset keys",
            ..error.shifted(240)
        })
    }

    /// Where the UUID table is.
    pub fn uuid_bucket(&self) -> Result<Key, FormatError> {
        self.slot(at::UUID_BUCKET, "jset uuid_bucket")
    }

    /// The root node.
    pub fn btree_root(&self) -> Result<Key, FormatError> {
        self.slot(at::BTREE_ROOT, "jset btree_root")
    }

    /// Everything but the keys, which must be checked too before it is used for more than looking.
    pub fn header(&self) -> Result<JsetHeader, FormatError> {
        Ok(JsetHeader {
            seq: self.seq,
            last_seq: self.last_seq,
            version: self.version,
            uuid_bucket: self.uuid_bucket()?,
            btree_root: self.btree_root()?,
            btree_level: self.btree_level,
            prio_bucket: self.prio_bucket,
        })
    }

    /// The entry as a value of its own.
    pub fn to_jset(&self) -> Result<Jset, FormatError> {
        Ok(Jset {
            header: self.header()?,
            keys: self.keys()?,
        })
    }

    fn slot(&self, at: usize, structure: &'static str) -> Result<Key, FormatError> {
        let slot = self.bytes.get(at..at + SLOT_BYTES).unwrap_or_default();
        parse_key(slot).map_err(|error| FormatError {
            structure,
            ..error.shifted(u64::try_from(at).unwrap_or(u64::MAX))
        })
    }
}

/// What starts at the first of `bytes`, which are the rest of a journal bucket from one of its blocks on.
pub fn probe(bytes: &[u8], set_magic: u64) -> Probe<'_> {
    if bytes.len() < at::SEQ + 8 || u64_at(bytes, at::MAGIC) != set_magic ^ MAGIC {
        return Probe::NotAnEntry;
    }
    match view(bytes) {
        Ok(view) => Probe::Valid(view),
        Err(error) => Probe::Suspect {
            claimed_seq: u64_at(bytes, at::SEQ),
            error,
        },
    }
}

fn view(bytes: &[u8]) -> Result<JsetView<'_>, FormatError> {
    let words = u32_at(bytes, at::KEYS);
    let key_words = usize::try_from(words).unwrap_or(usize::MAX);
    let bytes_len = key_words.saturating_mul(8).saturating_add(HEADER_BYTES);
    let entry = bytes.get(..bytes_len).filter(|_| bytes_len <= MAX_BYTES);
    let Some(entry) = entry else {
        let expected = format!("at most {} bytes", bytes.len().min(MAX_BYTES));
        let found = format!("{words} words, {bytes_len} bytes");
        return Err(FormatError::new("jset keys", 28, found, expected));
    };
    let computed = crc::checksum(crc::SEED, entry.get(8..).unwrap_or_default());
    let stored = u64_at(entry, 0);
    if stored != computed {
        let (found, expected) = (format!("{stored:016x}"), format!("{computed:016x}"));
        return Err(FormatError::new("jset csum", 0, found, expected));
    }
    Ok(JsetView {
        seq: u64_at(entry, at::SEQ),
        last_seq: u64_at(entry, at::LAST_SEQ),
        version: u32_at(entry, at::VERSION),
        key_words,
        btree_level: u16_at(entry, at::BTREE_LEVEL),
        prio_bucket: u64_at(entry, at::PRIO_BUCKET),
        bytes_len,
        bytes: entry,
    })
}

/// The bytes of an entry, padded with zeros to whole blocks.
///
/// # Panics
/// If there are more than [`MAX_KEY_WORDS`] words of keys.
pub fn encode(
    header: &JsetHeader,
    key_words: &[u64],
    set_magic: u64,
    block_bytes: usize,
) -> Vec<u8> {
    assert!(
        key_words.len() <= MAX_KEY_WORDS,
        "{} words do not fit a journal entry",
        key_words.len()
    );
    let words = u32::try_from(key_words.len()).unwrap_or(u32::MAX);
    let len = HEADER_BYTES + 8 * key_words.len();
    let mut bytes = vec![0; round_up(len, block_bytes)];
    put(&mut bytes, at::MAGIC, &(set_magic ^ MAGIC).to_le_bytes());
    put(&mut bytes, at::SEQ, &header.seq.to_le_bytes());
    put(&mut bytes, at::VERSION, &header.version.to_le_bytes());
    put(&mut bytes, at::KEYS, &words.to_le_bytes());
    put(&mut bytes, at::LAST_SEQ, &header.last_seq.to_le_bytes());
    put_slot(&mut bytes, at::UUID_BUCKET, &header.uuid_bucket);
    put_slot(&mut bytes, at::BTREE_ROOT, &header.btree_root);
    put(
        &mut bytes,
        at::BTREE_LEVEL,
        &header.btree_level.to_le_bytes(),
    );
    put(
        &mut bytes,
        at::PRIO_BUCKET,
        &header.prio_bucket.to_le_bytes(),
    );
    put_words(&mut bytes, HEADER_BYTES, key_words);
    let csum = crc::checksum(crc::SEED, bytes.get(8..len).unwrap_or_default());
    put(&mut bytes, 0, &csum.to_le_bytes());
    bytes
}

/// What Brigade says of itself in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It wrote it.
    Running,
    /// It wrote it as its last before a clean stop (docs/format.md 8.4): nothing is to be replayed, no pointer in the tree is
    /// newer than the gen table says, and nothing names the buckets whose priority there is 0.
    Stopped,
}

/// The mark depends on magic and number: a kernel leaves in the padding what it once read there, from another entry.
fn mark_of(entry: &[u8], mark: Mark) -> [u8; MARK_BYTES] {
    let seed = match mark {
        Mark::Running => crc::SEED,
        Mark::Stopped => !crc::SEED,
    };
    let sum = crc::checksum(seed, entry.get(at::MAGIC..at::VERSION).unwrap_or_default());
    let mut mark = [0; MARK_BYTES];
    mark.copy_from_slice(&sum.to_le_bytes()[..MARK_BYTES]);
    mark
}

/// Marks an entry as Brigade's; see [`JsetView::mark`].
///
/// # Panics
/// If these are not the bytes of [`encode`].
pub fn mark(entry: &mut [u8], mark: Mark) {
    let mark = mark_of(entry, mark);
    put(entry, at::MARK, &mark);
    let words = u32_at(entry, at::KEYS) as usize;
    let csum = crc::checksum(crc::SEED, &entry[8..HEADER_BYTES + 8 * words]);
    put(entry, 0, &csum.to_le_bytes());
}

fn put_slot(bytes: &mut [u8], at: usize, key: &Key) {
    let mut words = Vec::with_capacity(8);
    key.push_to(&mut words);
    put_words(bytes, at, &words);
}

#[cfg(test)]
mod tests;
