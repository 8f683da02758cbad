use super::*;
use crate::ptr::{Gen, Pos, Ptr};
use crate::testing::hex;
use proptest::prelude::*;

const SET: u64 = 0xa74f_1947_fde1_428f;

const PUBLISHED: &str = "
    567d2f2bd6d8091dbd12835e862c1d8301000000000000000100000000000000
    01000000000000000000000800000090000000000000000001000b0000000000
    0000000000000000000000000000000000000000000000000000000000000000
    0000000000000000ffff0f0800000090ffffffffffffff7f0100050000000000
    0000000000000000000000000000000000000000000000000000000000000000
    0000000000000000000000000000000009000000000000000000000000000000
    0000000000000000000000000000000000000000000000000000000000000000
    00000000000000000000000000000000";

fn header() -> JsetHeader {
    JsetHeader {
        seq: 1,
        last_seq: 1,
        version: 1,
        uuid_bucket: Key::node(Pos::ZERO, 128, Ptr::new(0xb00, Gen(1))),
        btree_root: Key::node(Pos::MAX, 128, Ptr::new(0x500, Gen(1))),
        btree_level: 0,
        prio_bucket: 9,
    }
}

fn suspect(bytes: &[u8]) -> Option<(u64, FormatError)> {
    match probe(bytes, SET) {
        Probe::Suspect { claimed_seq, error } => Some((claimed_seq, error)),
        _ => None,
    }
}

#[test]
fn a_mark_is_seen_and_the_entry_stays_valid() {
    let mut bytes = encode(&header(), &[7, 8], SET, 512);
    let marked = |bytes: &[u8]| match probe(bytes, SET) {
        Probe::Valid(view) => view.mark(),
        other => panic!("{other:?}"),
    };
    assert_eq!(marked(&bytes), None);
    mark(&mut bytes, Mark::Stopped);
    assert_eq!(marked(&bytes), Some(Mark::Stopped));
    mark(&mut bytes, Mark::Running);
    assert_eq!(marked(&bytes), Some(Mark::Running));
    let left_over: [u8; 6] = std::array::from_fn(|i| bytes[170 + i]);
    let mut next = encode(&JsetHeader { seq: 2, ..header() }, &[], SET, 512);
    next[170..176].copy_from_slice(&left_over);
    let csum = crate::crc::checksum(crate::crc::SEED, &next[8..240]);
    next[..8].copy_from_slice(&csum.to_le_bytes());
    assert_eq!(
        marked(&next),
        None,
        "the mark of one entry says nothing in another"
    );
}

#[test]
fn the_published_entry_is_what_we_write_and_read() {
    let bytes = encode(&header(), &[], SET, 512);
    assert_eq!(bytes.len(), 512);
    assert_eq!(bytes[..240], hex(PUBLISHED));
    assert_eq!(u64_at(&bytes, 0), 0x1d09_d8d6_2b2f_7d56);
    let Probe::Valid(view) = probe(&bytes, SET) else {
        panic!("not valid");
    };
    assert_eq!((view.bytes_len, view.disk_bytes(512)), (240, 512));
    assert_eq!(view.header(), Ok(header()));
    assert_eq!(view.check(), Ok(()));
}

#[test]
fn garbage_behind_padded_keys_and_behind_the_entry_does_not_matter() {
    let mut bytes = encode(&header(), &[], SET, 512);
    bytes[240..].fill(0xff);
    bytes[40 + 24..104].fill(0xee);
    bytes[184..240].fill(0xdd);
    let csum = crc::checksum(crc::SEED, &bytes[8..240]);
    put(&mut bytes, 0, &csum.to_le_bytes());
    let Probe::Valid(view) = probe(&bytes, SET) else {
        panic!("not valid");
    };
    assert_eq!(view.header(), Ok(header()));
}

#[test]
fn another_sets_entry_is_none() {
    let bytes = encode(&header(), &[], SET, 512);
    assert_eq!(probe(&bytes, SET ^ 1), Probe::NotAnEntry);
    assert_eq!(probe(&bytes[..16], SET), Probe::NotAnEntry);
    assert_eq!(probe(&[], SET), Probe::NotAnEntry);
}

#[test]
fn a_bad_length_or_checksum_leaves_a_suspect_with_its_claim() {
    let mut bytes = encode(
        &JsetHeader {
            seq: 77,
            ..header()
        },
        &[1, 2, 3],
        SET,
        512,
    );
    bytes[300] ^= 1;
    assert!(
        matches!(probe(&bytes, SET), Probe::Valid(_)),
        "padding is not covered"
    );
    bytes[250] ^= 1;
    let (seq, error) = suspect(&bytes).unwrap();
    assert_eq!((seq, error.structure), (77, "jset csum"));
    for words in [35u32, 4067, u32::MAX] {
        put(&mut bytes, 28, &words.to_le_bytes());
        let (seq, error) = suspect(&bytes).unwrap();
        assert_eq!((seq, error.structure), (77, "jset keys"));
    }
}

#[test]
fn the_longest_entry_fills_eight_pages() {
    let keys = vec![Key::hole(0, 0, 1); MAX_KEY_WORDS / 2];
    let jset = Jset {
        header: header(),
        keys,
    };
    let bytes = jset.encode(SET, 4096);
    assert_eq!(bytes.len(), MAX_BYTES);
    let Probe::Valid(view) = probe(&bytes, SET) else {
        panic!("not valid");
    };
    assert_eq!(view.to_jset(), Ok(jset));
    assert!(suspect(&bytes[..bytes.len() - 512]).is_some());
}

#[test]
fn sequence_numbers_and_versions_that_cannot_be_are_named() {
    let check = |header: JsetHeader| {
        let bytes = encode(&header, &[], SET, 512);
        let Probe::Valid(view) = probe(&bytes, SET) else {
            panic!("not valid");
        };
        view.check().err().map(|error| error.structure)
    };
    assert_eq!(
        check(JsetHeader {
            version: 0,
            ..header()
        }),
        None
    );
    assert_eq!(
        check(JsetHeader {
            version: 9,
            ..header()
        }),
        Some("jset version")
    );
    assert_eq!(
        check(JsetHeader {
            last_seq: 2,
            ..header()
        }),
        Some("jset last_seq")
    );
    assert_eq!(
        check(JsetHeader {
            last_seq: 0,
            ..header()
        }),
        Some("jset last_seq")
    );
}

#[test]
fn keys_that_do_not_tile_are_named_from_the_start_of_the_entry() {
    let mut words = key_words(&[Key::hole(1, 2, 3)]);
    words.push(Key::hole(1, 2, 3).high_word());
    let bytes = encode(&header(), &words, SET, 512);
    let Probe::Valid(view) = probe(&bytes, SET) else {
        panic!("not valid");
    };
    let error = view.keys().unwrap_err();
    assert_eq!((error.structure, error.offset), ("jset keys", 256));
}

#[test]
fn a_root_key_with_seven_pointers_does_not_fit_its_slot() {
    let mut bytes = encode(&header(), &[], SET, 512);
    bytes[104 + 7] |= 0x70;
    let csum = crc::checksum(crc::SEED, &bytes[8..240]);
    put(&mut bytes, 0, &csum.to_le_bytes());
    let Probe::Valid(view) = probe(&bytes, SET) else {
        panic!("not valid");
    };
    let error = view.btree_root().unwrap_err();
    assert_eq!((error.structure, error.offset), ("jset btree_root", 104));
}

proptest! {
    #[test]
    fn entries_survive_writing_and_reading(
        seq: u64, last_seq: u64, level: u16, prio: u64,
        keys in proptest::collection::vec((0u32..1 << 20, 0u64..1 << 40, 0u32..65536), 0..50),
        block_bytes in prop::sample::select(vec![512usize, 1024, 4096]),
    ) {
        let header = JsetHeader { seq, last_seq, btree_level: level, prio_bucket: prio, ..header() };
        let keys = keys
            .into_iter()
            .map(|(inode, start, size)| Key::extent(inode, start, size, Ptr(start), size % 2 == 0))
            .collect();
        let jset = Jset { header, keys };
        let bytes = jset.encode(SET, block_bytes);
        prop_assert_eq!(bytes.len() % block_bytes, 0);
        let Probe::Valid(view) = probe(&bytes, SET) else {
            return Err(TestCaseError::fail("not valid"));
        };
        prop_assert_eq!(view.to_jset().unwrap(), jset);
    }

    #[test]
    fn a_flipped_bit_in_an_entry_is_noticed(bit in 0..(240 + 24) * 8usize) {
        let mut bytes = encode(&header(), &[1, 2, 3], SET, 512);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!matches!(probe(&bytes, SET), Probe::Valid(_)));
    }

    #[test]
    fn no_bytes_make_a_journal_entry_panic(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        crate::fuzzing::jset(&bytes);
    }
}
