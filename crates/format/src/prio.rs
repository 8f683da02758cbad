//! Prio buckets: the priority and generation of every bucket (`docs/format.md` 6.1, 6.2).
//!
//! A chain of them holds one entry for each bucket of the device. Following the chain is the caller's, with
//! two things to know: links are counted, because the last one's `next_bucket` names an old chain, and links
//! must be checked for range and repetition, because nothing here can.

use crate::bytes::{array, put, u16_at, u32_at, u64_at};
use crate::crc;
use crate::error::{FormatError, ensure};
use crate::ptr::Gen;
use std::fmt;

/// Bytes in front of the entries.
pub const HEADER_BYTES: usize = 40;
/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 3;
/// The prio of metadata.
pub const PRIO_NODE: u16 = 0xffff;
/// The prio of what was just allocated or hit.
pub const PRIO_INITIAL: u16 = 0x8000;
const MAGIC: u64 = 0x6750_e15f_8733_7f91;

/// Entries that fit a prio bucket of `meta_bytes`.
pub fn entries_per_bucket(meta_bytes: usize) -> usize {
    meta_bytes.saturating_sub(HEADER_BYTES) / ENTRY_BYTES
}

/// One link of the chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PrioBucket {
    /// The same in all links of one write.
    pub seq: u64,
    /// The next link, or, in the last one, anything.
    pub next_bucket: u64,
    /// Prio and generation of consecutive buckets.
    pub entries: Vec<(u16, Gen)>,
}

impl fmt::Display for PrioBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seq, next) = (self.seq, self.next_bucket);
        let count = self.entries.len();
        write!(f, "prio_set seq {seq} next_bucket {next} entries {count}")
    }
}

/// Reads a link whose `bytes` are all the metadata part of its bucket, with `entries` entries in use.
pub fn parse_prio_bucket(
    bytes: &[u8],
    set_magic: u64,
    entries: usize,
) -> Result<PrioBucket, FormatError> {
    let fits = entries <= entries_per_bucket(bytes.len()) && bytes.len() >= HEADER_BYTES;
    ensure(
        fits,
        "prio_set",
        0,
        || format!("{} bytes", bytes.len()),
        "room for the entries",
    )?;
    let (magic, wanted) = (u64_at(bytes, 8), set_magic ^ MAGIC);
    if magic != wanted {
        let (found, expected) = (format!("{magic:016x}"), format!("{wanted:016x}"));
        return Err(FormatError::new("prio_set magic", 8, found, expected));
    }
    let computed = crc::checksum(crc::SEED, bytes.get(8..).unwrap_or_default());
    let stored = u64_at(bytes, 0);
    if stored != computed {
        let (found, expected) = (format!("{stored:016x}"), format!("{computed:016x}"));
        return Err(FormatError::new("prio_set csum", 0, found, expected));
    }
    let packed = bytes.get(HEADER_BYTES..).unwrap_or_default();
    Ok(PrioBucket {
        seq: u64_at(bytes, 16),
        next_bucket: u64_at(bytes, 32),
        entries: packed
            .chunks_exact(ENTRY_BYTES)
            .take(entries)
            .map(|entry| (u16_at(entry, 0), Gen(array::<1>(entry, 2)[0])))
            .collect(),
    })
}

/// The version field, which says nothing and which a kernel writes as 0.
pub fn version(bytes: &[u8]) -> u32 {
    u32_at(bytes, 24)
}

/// The bytes of a link: `meta_bytes` of them, zeros behind the entries.
///
/// # Panics
/// If the entries do not fit.
pub fn encode(
    seq: u64,
    next_bucket: u64,
    entries: &[(u16, Gen)],
    set_magic: u64,
    meta_bytes: usize,
) -> Vec<u8> {
    assert!(
        entries.len() <= entries_per_bucket(meta_bytes) && meta_bytes >= HEADER_BYTES,
        "{} prios do not fit {meta_bytes} bytes",
        entries.len()
    );
    let mut bytes = vec![0; meta_bytes];
    put(&mut bytes, 8, &(set_magic ^ MAGIC).to_le_bytes());
    put(&mut bytes, 16, &seq.to_le_bytes());
    put(&mut bytes, 32, &next_bucket.to_le_bytes());
    let packed = bytes.get_mut(HEADER_BYTES..).unwrap_or_default();
    for (place, (prio, r#gen)) in packed.chunks_exact_mut(ENTRY_BYTES).zip(entries) {
        let [low, high] = prio.to_le_bytes();
        place.copy_from_slice(&[low, high, r#gen.0]);
    }
    let csum = crc::checksum(crc::SEED, bytes.get(8..).unwrap_or_default());
    put(&mut bytes, 0, &csum.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SET: u64 = 0xa74f_1947_fde1_428f;

    #[test]
    fn the_published_prio_set_has_the_published_checksum() {
        let mut entries = vec![(0, Gen(0)); 9];
        entries.extend([(PRIO_INITIAL, Gen(1)); 8]);
        entries.resize(9 + 8 + 21815, (0, Gen(0)));
        let bytes = encode(1, 0, &entries, SET, 65536);
        assert_eq!(u64_at(&bytes, 0), 0x211b_15a2_f44a_6976);
    }

    proptest! {
        #[test]
        fn entries_survive_writing_and_reading(
            seq: u64,
            next: u64,
            raw in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..100),
        ) {
            let entries: Vec<_> = raw.iter().map(|&(prio, r#gen)| (prio, Gen(r#gen))).collect();
            let bytes = encode(seq, next, &entries, SET, 4096);
            let read = parse_prio_bucket(&bytes, SET, entries.len()).unwrap();
            prop_assert_eq!(read, PrioBucket { seq, next_bucket: next, entries });
        }

        #[test]
        fn any_flipped_bit_is_noticed(bit in 0usize..512 * 8) {
            let mut bytes = encode(5, 7, &[(1, Gen(2)); 150], SET, 512);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(parse_prio_bucket(&bytes, SET, 150).is_err());
        }

        #[test]
        fn no_bytes_make_prios_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            crate::fuzzing::prio(&bytes);
        }
    }
}
