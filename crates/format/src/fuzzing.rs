//! What the fuzz targets run, as plain functions, so that ordinary tests run the same over random and
//! mutated input. Each must return for any bytes; what it asserts is that what was read writes back the same.

use crate::bytes;
use crate::crc;
use crate::error::FormatError;
use crate::jset::{self, Probe};
use crate::key::{Key, KeyRules, key_words, parse_keys};
use crate::node;
use crate::order;
use crate::prio;
use crate::ptr::Ptr;
use crate::superblock::Superblock;
use crate::uuid_table;

const SET: u64 = 0x0123_4567_89ab_cdef;
const BLOCK: usize = 512;

/// Keys: parse, judge, cut, print, write back.
pub fn keys(input: &[u8]) {
    let Ok(keys) = parse_keys(input) else {
        return;
    };
    let rules = KeyRules {
        bucket_sectors: 128,
        first_bucket: 1,
        nbuckets: 4096,
    };
    for key in &keys {
        let _ = (
            rules.check_extent(key),
            rules.check_node(key),
            key.to_string(),
        );
        let _ = key
            .cut_front(key.size() / 2)
            .merged_with(&key.cut_back(1), 128);
    }
    let _ = (
        order::check_leaf_set(&keys),
        order::check_interior_set(&keys),
    );
    let words = key_words(&keys);
    let mut output = vec![0; words.len() * 8];
    bytes::put_words(&mut output, 0, &words);
    assert_eq!(output, input, "keys must write back as they were read");
}

/// Superblock: parse, judge for several devices, print, write back.
pub fn superblock(input: &[u8]) {
    let Ok(mut read) = Superblock::parse(input) else {
        return;
    };
    let _ = (read.to_string(), read.label(), read.unknown_flags());
    for (sectors, block) in [(0, 512), (1 << 20, 512), (u64::MAX, 4096)] {
        let _ = read.cache_geometry(sectors, block);
        let _ = read.backing_data_offset(sectors, block);
    }
    assert_eq!(
        read.encode(),
        input[..4096],
        "a superblock must write back as it was read"
    );
    read.count_write();
    let written = read.encode();
    assert_eq!(
        Superblock::parse(&written).map(|again| again.seq),
        Ok(read.seq)
    );
}

/// Prio bucket: as given, then with its magic and checksum made right.
pub fn prio(input: &[u8]) {
    let entries = prio::entries_per_bucket(input.len());
    let _ = prio::parse_prio_bucket(input, SET, entries);
    let _ = prio::parse_prio_bucket(input, SET, entries.saturating_add(1));
    let sealed = prio::encode(1, 2, &[], SET, input.len().max(prio::HEADER_BYTES));
    let mut bytes = input.to_vec();
    bytes.resize(sealed.len(), 0);
    bytes::put(&mut bytes, 8, &sealed[8..16]);
    let csum = crc::checksum(crc::SEED, &bytes[8..]);
    bytes::put(&mut bytes, 0, &csum.to_le_bytes());
    let read = prio::parse_prio_bucket(&bytes, SET, entries).expect("sealed");
    let _ = read.to_string();
    let again = prio::encode(read.seq, read.next_bucket, &read.entries, SET, bytes.len());
    assert_eq!(prio::parse_prio_bucket(&again, SET, entries), Ok(read));
}

/// A journal bucket: probed at every block as given, then with magic and checksum made right.
pub fn jset(input: &[u8]) {
    probe_blocks(input);
    let mut bytes = input.to_vec();
    bytes.resize(bytes.len().max(jset::HEADER_BYTES), 0);
    let header_magic = sample_entry();
    bytes::put(&mut bytes, 8, &header_magic[8..16]);
    let len = bytes.len().min(jset::MAX_BYTES) / 8 * 8;
    let words = u32::try_from((len - jset::HEADER_BYTES) / 8).unwrap_or(0);
    bytes::put(&mut bytes, 28, &words.to_le_bytes());
    let csum = crc::checksum(crc::SEED, &bytes[8..len]);
    bytes::put(&mut bytes, 0, &csum.to_le_bytes());
    assert!(
        matches!(jset::probe(&bytes, SET), Probe::Valid(_)),
        "sealed"
    );
    probe_blocks(&bytes);
}

fn sample_entry() -> Vec<u8> {
    let key = crate::Key::hole(0, 0, 0);
    let header = jset::JsetHeader {
        seq: 1,
        last_seq: 1,
        version: 1,
        uuid_bucket: key,
        btree_root: key,
        btree_level: 0,
        prio_bucket: 0,
    };
    jset::encode(&header, &[], SET, BLOCK)
}

fn probe_blocks(bucket: &[u8]) {
    for at in (0..bucket.len()).step_by(BLOCK) {
        let Probe::Valid(view) = jset::probe(&bucket[at..], SET) else {
            continue;
        };
        let _ = view.check();
        if let Ok(read) = view.to_jset() {
            let _ = read.to_string();
            let written = read.encode(SET, BLOCK);
            let Probe::Valid(again) = jset::probe(&written, SET) else {
                panic!("what was written must be valid");
            };
            assert_eq!(again.to_jset(), Ok(read));
        }
    }
}

/// A btree node: as given, then as a row of sets with headers made right.
pub fn node(input: &[u8]) {
    let ptr = Ptr(0x5_0001);
    both_readers(input, BLOCK, ptr, SET);
    both_readers(input, 0, ptr, SET);
    let mut bytes = Vec::new();
    for chunk in input.chunks(700) {
        let words: Vec<u64> = chunk
            .chunks_exact(8)
            .map(|word| bytes::u64_at(word, 0))
            .collect();
        bytes.extend(node::encode_bset(&words, 7, ptr, SET, BLOCK));
    }
    both_readers(&bytes, BLOCK, ptr, SET);
    match node::parse_node(&bytes, BLOCK, ptr, SET) {
        Ok(read) => {
            let _ = read.to_string();
            assert_eq!(read.blocks_used * BLOCK, bytes.len());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A node as a whole, and its sets first and then their keys some at a time: the same node, or the same error.
pub fn both_readers(bytes: &[u8], block_bytes: usize, ptr: Ptr, set_magic: u64) {
    let whole = node::parse_node(bytes, block_bytes, ptr, set_magic);
    let in_steps = node::parse_sets(bytes, block_bytes, ptr, set_magic).and_then(|raw| {
        let sets: Result<Vec<_>, _> = raw
            .sets
            .into_iter()
            .map(|set| keys_of(set, bytes))
            .collect();
        Ok((raw.seq, raw.blocks_used, sets?))
    });
    match (whole, in_steps) {
        (Ok(node), Ok(in_steps)) => {
            let sets = node.sets.into_iter().map(|set| (set.version, set.keys));
            assert_eq!((node.seq, node.blocks_used, sets.collect()), in_steps);
        }
        // The whole tells of bad keys before it tells of a bad set behind them.
        (Err(whole), Err(error)) => {
            let is_in_front =
                whole.error.structure == "bset keys" && whole.error.offset < error.offset;
            assert!(whole.error == error || is_in_front, "{whole} or {error}");
        }
        (whole, in_steps) => panic!("{whole:?} or {in_steps:?}"),
    }
}

fn keys_of(mut set: node::RawSet, bytes: &[u8]) -> Result<(u32, Vec<Key>), FormatError> {
    let mut keys = Vec::new();
    loop {
        let some = set.keys(bytes, 7)?;
        if some.is_empty() {
            return Ok((set.version, keys));
        }
        keys.extend(some);
    }
}

/// The UUID table in both formats.
pub fn uuids(input: &[u8]) {
    let slots = input.len() / uuid_table::ENTRY_BYTES;
    let table = uuid_table::parse(input, slots);
    assert_eq!(
        uuid_table::encode(&table),
        input[..slots * uuid_table::ENTRY_BYTES]
    );
    for mut entry in table.iter().cloned() {
        let _ = (entry.to_string(), entry.is_flash_only());
        entry.invalidate(5);
        assert!(entry.is_invalidated());
    }
    uuid_table::check(&table).iter().for_each(|finding| {
        let _ = finding.to_string();
    });
    let (old, _) = uuid_table::parse_old(input, slots + 1);
    assert_eq!(old.len(), slots + 1);
}
