//! Btree nodes: a log of sorted sets of keys (`docs/format.md` 4).
//!
//! A node is read whole or not at all, with one exception that is not made here: if only its *last* set is
//! bad, it may be one whose writing a power cut interrupted. [`NodeError`] says so and hands over the sets in
//! front; whether to go on without the last one is for the caller, and rarely yes (`docs/format.md` 4.3).

use crate::bytes::{put, put_words, round_up, u32_at, u64_at};
use crate::crc;
use crate::error::FormatError;
use crate::key::{Key, key_words, parse_key};
use crate::ptr::Ptr;
use std::fmt;
use std::ops::Range;
use thiserror::Error;

/// Bytes in front of a set's keys.
pub const HEADER_BYTES: usize = 32;
/// The version written, and the newest there is: its checksum starts from the pointer to the node.
pub const VERSION: u32 = 1;
const MAGIC: u64 = 0x9013_5c78_b99e_07f5;

/// Byte offsets of the fields.
mod at {
    pub(super) const MAGIC: usize = 8;
    pub(super) const SEQ: usize = 16;
    pub(super) const VERSION: usize = 24;
    pub(super) const KEYS: usize = 28;
}

/// One sorted run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bset {
    /// 1, or 0 in very old sets.
    pub version: u32,
    /// The block of the node it starts at.
    pub block_offset: usize,
    /// Blocks it takes.
    pub blocks: usize,
    /// Its keys, whose order nobody has checked yet (F31, F32).
    pub keys: Vec<Key>,
}

/// What a node's bytes say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// What all its sets carry.
    pub seq: u64,
    /// Oldest first, at least one; only the first may be empty.
    pub sets: Vec<Bset>,
    /// Blocks up to the end of the last set, where the next one goes.
    pub blocks_used: usize,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node seq {:016x} blocks {}", self.seq, self.blocks_used)?;
        for set in &self.sets {
            let (at, blocks) = (set.block_offset, set.blocks);
            write!(
                f,
                "\n  bset at block {at} blocks {blocks} version {}",
                set.version
            )?;
            set.keys
                .iter()
                .try_for_each(|key| write!(f, "\n    {key}"))?;
        }
        Ok(())
    }
}

/// Why a node cannot be used as it is (F45, F46).
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("bset {set}: {error}")]
pub struct NodeError {
    /// The set that failed, counted from 0.
    pub set: usize,
    /// Whether it is the last one and not the only one: nothing behind it carries the node's seq. An append
    /// that was cut off looks like this, and so does rot. Never true of a set whose checksum is right.
    pub is_last: bool,
    /// The sets in front of it. Empty if it is the first.
    pub intact: Box<Node>,
    /// What is wrong; its offset counts from the start of the node.
    pub error: FormatError,
}

/// Where a set of `seq` was found to break a rule.
struct Broken {
    error: FormatError,
    /// Blocks it takes by its own header, if that can be believed.
    blocks: Option<usize>,
    /// Whether a torn write can look like this.
    may_be_torn: bool,
}

impl Broken {
    fn header(what: &'static str, at: usize, found: String, expected: &str) -> Broken {
        let at = u64::try_from(at).unwrap_or(u64::MAX);
        Broken {
            error: FormatError::new(what, at, found, expected),
            blocks: None,
            may_be_torn: true,
        }
    }

    /// The same seen from the node, in which the set starts at byte `start`.
    fn shifted(self, start: usize) -> Broken {
        let start = u64::try_from(start).unwrap_or(u64::MAX);
        Broken {
            error: self.error.shifted(start),
            ..self
        }
    }
}

/// Reads a node. `bytes` are as many sectors as its key says, rounded down to whole blocks; `key_ptr` is the
/// first pointer word of that key, unchanged (it seeds the checksums).
pub fn parse_node(
    bytes: &[u8],
    block_bytes: usize,
    key_ptr: Ptr,
    set_magic: u64,
) -> Result<Node, NodeError> {
    let reader = Reader::new(bytes, block_bytes, key_ptr, set_magic);
    let (sound, broken) = reader.sets();
    let mut node = Node {
        seq: sound.seq,
        sets: Vec::with_capacity(sound.sets.len()),
        blocks_used: 0,
    };
    for set in sound.sets {
        match reader.set(set, node.blocks_used) {
            Ok(set) => {
                node.blocks_used += set.blocks;
                node.sets.push(set);
            }
            Err(broken) => return Err(reader.failed(node, broken)),
        }
    }
    match broken {
        None => Ok(node),
        Some(broken) => Err(reader.failed(node, broken)),
    }
}

/// A node whose sets are sound as bytes: a look at a long node in two steps, of which the second, [`RawSet::keys`], can be cut
/// into many.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawNode {
    /// What all its sets carry.
    pub seq: u64,
    /// Oldest first, at least one.
    pub sets: Vec<RawSet>,
    /// Blocks up to the end of the last set.
    pub blocks_used: usize,
}

/// A set whose checksum is right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RawSet {
    /// 1, or 0 in very old sets.
    pub version: u32,
    keys: Range<usize>,
}

impl RawSet {
    /// No fewer than the keys that are left of it: none is shorter than two words.
    pub fn keys_at_most(&self) -> usize {
        self.keys.len() / 16
    }

    /// Up to `most` of its keys; they are taken off. `bytes` are those of the node. Empty at the end.
    pub fn keys(&mut self, bytes: &[u8], most: usize) -> Result<Vec<Key>, FormatError> {
        let mut keys = Vec::with_capacity(most.min(self.keys.len() / 24));
        while keys.len() < most && !self.keys.is_empty() {
            let rest = bytes.get(self.keys.clone()).unwrap_or_default();
            let offset = u64::try_from(self.keys.start).unwrap_or(u64::MAX);
            let key = parse_key(rest).map_err(|error| FormatError {
                structure: "bset keys",
                ..error.shifted(offset)
            })?;
            self.keys.start += key.words() * 8;
            keys.push(key);
        }
        Ok(keys)
    }
}

/// As [`parse_node`], without a look at the keys.
pub fn parse_sets(
    bytes: &[u8],
    block_bytes: usize,
    key_ptr: Ptr,
    set_magic: u64,
) -> Result<RawNode, FormatError> {
    let reader = Reader::new(bytes, block_bytes, key_ptr, set_magic);
    match reader.sets() {
        (node, None) => Ok(node),
        (_, Some(broken)) => Err(broken.error),
    }
}

/// The bytes of a node and what is needed to judge them.
struct Reader<'a> {
    bytes: &'a [u8],
    block_bytes: usize,
    blocks: usize,
    key_ptr: Ptr,
    magic: u64,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], block_bytes: usize, key_ptr: Ptr, set_magic: u64) -> Reader<'a> {
        Reader {
            bytes,
            block_bytes,
            blocks: bytes.len().checked_div(block_bytes).unwrap_or(0),
            key_ptr,
            magic: set_magic ^ MAGIC,
        }
    }

    /// The sets whose bytes are sound, up to the first that is not, and what is wrong with that one.
    fn sets(&self) -> (RawNode, Option<Broken>) {
        let mut node = RawNode {
            seq: self.seq_at(0).unwrap_or(0),
            sets: Vec::new(),
            blocks_used: 0,
        };
        if node.seq == 0 || self.block_bytes < HEADER_BYTES {
            let expected = "a seq that is not 0, in at least one block";
            let broken = Broken::header("bset seq", at::SEQ, node.seq.to_string(), expected);
            return (node, Some(broken));
        }
        while self.seq_at(node.blocks_used) == Some(node.seq) {
            let start = node.blocks_used * self.block_bytes;
            let (version, set) = match self.sound_set(node.blocks_used) {
                Ok(sound) => sound,
                Err(broken) => return (node, Some(broken.shifted(start))),
            };
            node.blocks_used += set.len().div_ceil(self.block_bytes);
            node.sets.push(RawSet {
                version,
                keys: start + HEADER_BYTES..start + set.len(),
            });
        }
        let stray = self.stray(node.blocks_used, node.seq);
        (node, stray)
    }

    /// A set of the node behind its last one, where none may be.
    fn stray(&self, from: usize, seq: u64) -> Option<Broken> {
        let block = self.next_with_seq(from, seq)?;
        let found = format!("the node's seq in block {block}");
        let expected = "nothing of this node behind its last set";
        let at = block * self.block_bytes + at::SEQ;
        let mut stray = Broken::header("stray bset", at, found, expected);
        stray.may_be_torn = false;
        Some(stray)
    }

    /// The node's bytes from `block` on; `None` behind the last block.
    fn rest(&self, block: usize) -> Option<&'a [u8]> {
        let start = block.checked_mul(self.block_bytes)?;
        let end = self.blocks.checked_mul(self.block_bytes)?;
        self.bytes.get(start..end).filter(|rest| !rest.is_empty())
    }

    fn seq_at(&self, block: usize) -> Option<u64> {
        self.rest(block).map(|rest| u64_at(rest, at::SEQ))
    }

    fn next_with_seq(&self, from: usize, seq: u64) -> Option<usize> {
        (from..self.blocks).find(|&block| self.seq_at(block) == Some(seq))
    }

    /// A sound set, which starts at `block`, with its keys.
    fn set(&self, mut set: RawSet, block: usize) -> Result<Bset, Broken> {
        let len = HEADER_BYTES + set.keys.len();
        let keys = set.keys(self.bytes, usize::MAX).map_err(|error| Broken {
            error,
            blocks: None,
            may_be_torn: false,
        })?;
        Ok(Bset {
            version: set.version,
            block_offset: block,
            blocks: len.div_ceil(self.block_bytes),
            keys,
        })
    }

    /// The version and the bytes, without padding, of the set that starts at `block`. Offsets in errors count from the start of
    /// the set, here and below.
    fn sound_set(&self, block: usize) -> Result<(u32, &'a [u8]), Broken> {
        let rest = self.rest(block).unwrap_or_default();
        let version = u32_at(rest, at::VERSION);
        if version > VERSION {
            let found = version.to_string();
            return Err(Broken::header("bset version", at::VERSION, found, "0 or 1"));
        }
        let words = u32_at(rest, at::KEYS);
        let len = usize::try_from(words)
            .ok()
            .and_then(|words| words.checked_mul(8)?.checked_add(HEADER_BYTES));
        let Some(set) = len.and_then(|len| rest.get(..len)) else {
            let found = format!("{words} words");
            let expected = "a set that ends inside its node";
            return Err(Broken::header("bset keys", at::KEYS, found, expected));
        };
        let magic = u64_at(set, at::MAGIC);
        if magic != self.magic {
            let (found, expected) = (format!("{magic:016x}"), format!("{:016x}", self.magic));
            return Err(Broken::header("bset magic", at::MAGIC, found, &expected));
        }
        let blocks = set.len().div_ceil(self.block_bytes);
        self.check_body(block, version, set)
            .map_err(|broken| Broken {
                blocks: Some(blocks),
                ..broken
            })?;
        Ok((version, set))
    }

    /// Checksum, and that a later set is not empty.
    fn check_body(&self, block: usize, version: u32, set: &[u8]) -> Result<(), Broken> {
        let seed = if version == 0 {
            crc::SEED
        } else {
            self.key_ptr.0
        };
        let (stored, computed) = (
            u64_at(set, 0),
            crc::checksum(seed, set.get(8..).unwrap_or_default()),
        );
        if stored != computed {
            let (found, expected) = (format!("{stored:016x}"), format!("{computed:016x}"));
            return Err(Broken::header("bset csum", 0, found, &expected));
        }
        if block > 0 && set.len() == HEADER_BYTES {
            let mut empty =
                Broken::header("bset keys", at::KEYS, "0 words".into(), "a set with keys");
            empty.may_be_torn = false;
            return Err(empty);
        }
        Ok(())
    }

    /// The error of a node in which `broken` follows the sets of `node`.
    fn failed(&self, node: Node, broken: Broken) -> NodeError {
        let behind = node.blocks_used.saturating_add(broken.blocks.unwrap_or(1));
        NodeError {
            set: node.sets.len(),
            is_last: broken.may_be_torn
                && !node.sets.is_empty()
                && self.next_with_seq(behind, node.seq).is_none(),
            intact: Box::new(node),
            error: broken.error,
        }
    }
}

/// The bytes of a set, padded with zeros to whole blocks. `words` are those of its keys
/// ([`crate::key::key_words`]); `key_ptr` is the pointer word of the key that names, or will name, the node.
///
/// # Panics
/// If `seq` is 0.
pub fn encode_bset(
    words: &[u64],
    seq: u64,
    key_ptr: Ptr,
    set_magic: u64,
    block_bytes: usize,
) -> Vec<u8> {
    let mut bytes = vec![0; round_up(bset_bytes(words.len()), block_bytes)];
    put_words(&mut bytes, HEADER_BYTES, words);
    seal_bset(&mut bytes, words.len(), seq, key_ptr, set_magic);
    bytes
}

/// Puts some more keys into a set that is made in place, behind `words` words of others; gives the words there are then.
/// [`seal_bset`] ends it.
pub fn put_keys(bytes: &mut [u8], words: usize, keys: &[Key]) -> usize {
    let more = key_words(keys);
    put_words(bytes, bset_bytes(words), &more);
    words.saturating_add(more.len())
}

/// Makes a set of whole blocks, as [`encode_bset`], of bytes that have its `words` words of keys already, and whatever else.
///
/// # Panics
/// If `seq` is 0, or the words do not fit.
pub fn seal_bset(bytes: &mut [u8], words: usize, seq: u64, key_ptr: Ptr, set_magic: u64) {
    assert!(seq != 0, "a node's seq is never 0");
    let count = u32::try_from(words).expect("a set has fewer than 2^32 words");
    let len = bset_bytes(words);
    bytes.get_mut(len..).expect("room for all words").fill(0);
    put(bytes, at::MAGIC, &(set_magic ^ MAGIC).to_le_bytes());
    put(bytes, at::SEQ, &seq.to_le_bytes());
    put(bytes, at::VERSION, &VERSION.to_le_bytes());
    put(bytes, at::KEYS, &count.to_le_bytes());
    let csum = crc::checksum(key_ptr.0, bytes.get(8..len).unwrap_or_default());
    put(bytes, 0, &csum.to_le_bytes());
}

/// Bytes of a set of `words` words of keys, before rounding to whole blocks.
pub fn bset_bytes(words: usize) -> usize {
    words.saturating_mul(8).saturating_add(HEADER_BYTES)
}

#[cfg(test)]
mod tests;
