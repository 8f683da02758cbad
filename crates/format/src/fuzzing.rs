//! What the fuzz targets run, as plain functions, so that ordinary tests run the same over random and
//! mutated input. Each must return for any bytes; what it asserts is that what was read writes back the same.

use crate::bytes;
use crate::key::{KeyRules, key_words, parse_keys};
use crate::prio;
use crate::superblock::Superblock;

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
    const SET: u64 = 0x0123_4567_89ab_cdef;
    let entries = prio::entries_per_bucket(input.len());
    let _ = prio::parse_prio_bucket(input, SET, entries);
    let _ = prio::parse_prio_bucket(input, SET, entries.saturating_add(1));
    let sealed = prio::encode(1, 2, &[], SET, input.len().max(prio::HEADER_BYTES));
    let mut bytes = input.to_vec();
    bytes.resize(sealed.len(), 0);
    bytes::put(&mut bytes, 8, &sealed[8..16]);
    let csum = crate::crc::checksum(crate::crc::SEED, &bytes[8..]);
    bytes::put(&mut bytes, 0, &csum.to_le_bytes());
    let read = prio::parse_prio_bucket(&bytes, SET, entries).expect("sealed");
    let _ = read.to_string();
    let again = prio::encode(read.seq, read.next_bucket, &read.entries, SET, bytes.len());
    assert_eq!(prio::parse_prio_bucket(&again, SET, entries), Ok(read));
}
