//! The record in memory of keys that are acknowledged but not yet in the journal.
//!
//! ```text
//! 0        header: magic, set uuid, session (superblock seq), checksum
//! 4096     region of stages with even numbers   records back to back: seq, words, checksum, keys
//! 4096+R   region of stages with odd numbers
//! ```
//! At most two stages are not on disk: the one in flight and the one being filled, so two regions suffice; a region starts
//! anew with each stage. A reader takes records of a region while their checksum is right and their number is that of the
//! first, and uses stages that directly follow the newest entry on disk. The session number ties the record to one
//! opening of the set: whoever opens it later (also the kernel) raises the number in the superblock.

use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use brigade_env::Survivor;
use brigade_format::{Key, crc, parse_keys};

const MAGIC: u64 = 0x3143_4552_4452_4221;
const HEADER_BYTES: usize = 40;
const REGION_START: u64 = 4096;
const REGION_BYTES: u64 = 1 << 20;
const RECORD_BYTES: usize = 24;

/// Keys acknowledged in the record that did not reach the journal on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurvivorEntry {
    /// The journal seq they were meant for.
    pub seq: u64,
    /// In insertion order.
    pub keys: Vec<Key>,
}

/// Writes the record.
pub struct SurvivorLog<S: Survivor> {
    store: S,
    at: [u64; 2],
    seq: [u64; 2],
}

impl<S: Survivor> SurvivorLog<S> {
    /// Empties the store and ties it to one opening of the set.
    pub fn start(store: S, set_uuid: &[u8; 16], session: u64) -> std::io::Result<Self> {
        store.clear()?;
        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend_from_slice(&MAGIC.to_le_bytes());
        header.extend_from_slice(set_uuid);
        header.extend_from_slice(&session.to_le_bytes());
        header.extend_from_slice(&crc::checksum(crc::SEED, &header).to_le_bytes());
        store.write(0, &header)?;
        Ok(SurvivorLog {
            store,
            at: [0; 2],
            seq: [0; 2],
        })
    }

    /// Adds keys of stage `seq`. Returns once they would survive the process.
    pub fn append(&mut self, seq: u64, words: &[u64]) -> std::io::Result<()> {
        let region = (seq % 2) as usize;
        if self.seq[region] != seq {
            self.seq[region] = seq;
            self.at[region] = 0;
        }
        let mut record = Vec::with_capacity(RECORD_BYTES + words.len() * 8);
        record.extend_from_slice(&seq.to_le_bytes());
        record.extend_from_slice(&(words.len() as u64).to_le_bytes());
        record.extend_from_slice(&[0; 8]);
        words
            .iter()
            .for_each(|word| record.extend_from_slice(&word.to_le_bytes()));
        let checksum = crc::checksum(seq ^ self.at[region], &record);
        record[16..24].copy_from_slice(&checksum.to_le_bytes());
        let at = self.at[region];
        if at + record.len() as u64 > REGION_BYTES {
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.store
            .write(REGION_START + region as u64 * REGION_BYTES + at, &record)?;
        self.at[region] = at + record.len() as u64;
        Ok(())
    }

    /// Nothing in it is needed any more.
    pub fn finish(&mut self) -> std::io::Result<()> {
        self.store.clear()
    }
}

/// Stages acknowledged in the opening `session` of the set, ascending by number. Anything unreadable counts as absent.
pub fn recall<S: Survivor>(store: &S, set_uuid: &[u8; 16], session: u64) -> Vec<SurvivorEntry> {
    let Ok(bytes) = store.read() else {
        return Vec::new();
    };
    let mut header = Vec::from(MAGIC.to_le_bytes());
    header.extend_from_slice(set_uuid);
    header.extend_from_slice(&session.to_le_bytes());
    header.extend_from_slice(&crc::checksum(crc::SEED, &header).to_le_bytes());
    let is_ours = bytes.get(..HEADER_BYTES) == Some(&header[..]);
    if !is_ours && !mutations::is(Mutation::RecordOfAnyone) {
        if !bytes.is_empty() {
            marks::hit(Mark::RecordStale);
        }
        return Vec::new();
    }
    let region = |start: u64| bytes.get(start as usize..).unwrap_or(&[]);
    let mut entries: Vec<_> = [REGION_START, REGION_START + REGION_BYTES]
        .into_iter()
        .filter_map(|start| recall_region(region(start)))
        .collect();
    entries.sort_by_key(|entry| entry.seq);
    entries
}

fn recall_region(bytes: &[u8]) -> Option<SurvivorEntry> {
    let bytes = &bytes[..bytes.len().min(REGION_BYTES as usize)];
    let mut at = 0;
    let mut entry: Option<SurvivorEntry> = None;
    while let Some((seq, keys, next)) = recall_record(bytes, at) {
        let entry = entry.get_or_insert_with(|| SurvivorEntry {
            seq,
            keys: Vec::new(),
        });
        if entry.seq != seq {
            break;
        }
        entry.keys.extend(keys);
        at = next;
    }
    entry
}

fn recall_record(bytes: &[u8], at: usize) -> Option<(u64, Vec<Key>, usize)> {
    let head = bytes.get(at..at.checked_add(RECORD_BYTES)?)?;
    let word = |i: usize| {
        head[i * 8..]
            .first_chunk()
            .map(|chunk| u64::from_le_bytes(*chunk))
    };
    let (seq, words, checksum) = (word(0)?, word(1)?, word(2)?);
    let end = usize::try_from(words)
        .ok()?
        .checked_mul(8)?
        .checked_add(at + RECORD_BYTES)?;
    let mut record = bytes.get(at..end)?.to_vec();
    record[16..24].fill(0);
    if crc::checksum(seq ^ at as u64, &record) != checksum {
        return None;
    }
    let keys = parse_keys(&record[RECORD_BYTES..]).ok()?;
    Some((seq, keys, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use brigade_format::{Gen, Ptr};
    use std::cell::RefCell;
    use std::rc::Rc;

    #[derive(Clone, Default)]
    struct Memory(Rc<RefCell<Vec<u8>>>);

    impl Survivor for Memory {
        fn write(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
            let mut all = self.0.borrow_mut();
            let end = offset as usize + bytes.len();
            if all.len() < end {
                all.resize(end, 0);
            }
            all[offset as usize..end].copy_from_slice(bytes);
            Ok(())
        }
        fn read(&self) -> std::io::Result<Vec<u8>> {
            Ok(self.0.borrow().clone())
        }
        fn clear(&self) -> std::io::Result<()> {
            self.0.borrow_mut().clear();
            Ok(())
        }
    }

    fn words(start: u64) -> Vec<u64> {
        let mut words = Vec::new();
        Key::extent(1, start, 8, Ptr::new(4096, Gen(1)), true).push_to(&mut words);
        words
    }

    #[test]
    fn two_stages_are_recalled_in_order_and_older_ones_are_gone() {
        let store = Memory::default();
        let mut log = SurvivorLog::start(store.clone(), &[7; 16], 3).expect("memory");
        for seq in 5..=8 {
            log.append(seq, &words(seq * 8)).expect("memory");
            log.append(seq, &words(seq * 8 + 1000)).expect("memory");
        }
        let entries = recall(&store, &[7; 16], 3);
        assert_eq!(entries.iter().map(|e| e.seq).collect::<Vec<_>>(), [7, 8]);
        assert!(entries.iter().all(|e| e.keys.len() == 2));
    }

    #[test]
    fn a_record_of_another_session_or_set_is_not_used() {
        let store = Memory::default();
        let mut log = SurvivorLog::start(store.clone(), &[7; 16], 3).expect("memory");
        log.append(5, &words(8)).expect("memory");
        assert!(recall(&store, &[7; 16], 4).is_empty());
        assert!(recall(&store, &[8; 16], 3).is_empty());
        assert_eq!(recall(&store, &[7; 16], 3).len(), 1);
    }

    #[test]
    fn a_damaged_record_ends_its_region_without_a_panic() {
        let store = Memory::default();
        let mut log = SurvivorLog::start(store.clone(), &[7; 16], 3).expect("memory");
        log.append(6, &words(8)).expect("memory");
        log.append(6, &words(80)).expect("memory");
        let length = store.0.borrow().len();
        for byte in REGION_START as usize..length {
            store.0.borrow_mut()[byte] ^= 0x40;
            let keys: usize = recall(&store, &[7; 16], 3)
                .iter()
                .map(|e| e.keys.len())
                .sum();
            assert!(keys < 2, "byte {byte}");
            store.0.borrow_mut()[byte] ^= 0x40;
        }
    }
}
