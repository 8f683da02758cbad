use super::*;
use crate::fuzzing::both_readers;
use crate::key::{key_words, parse_keys};
use crate::ptr::{Gen, Pos};
use crate::testing::hex;
use proptest::prelude::*;

const SET: u64 = 0xa74f_1947_fde1_428f;
const PTR: Ptr = Ptr(0x0000_0000_0005_0001);
const BLOCK: usize = 512;

fn keys(from: u64, count: u64) -> Vec<Key> {
    (from..from + count)
        .map(|i| Key::extent(0, 8 * i, 8, Ptr::new(128 + 8 * i, Gen(1)), false))
        .collect()
}

/// A node of 16 blocks with leftovers in its tail.
fn node(sets: &[Vec<Key>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for set in sets {
        bytes.extend(encode_bset(&key_words(set), 99, PTR, SET, BLOCK));
    }
    bytes.resize(16 * BLOCK, 0xa5);
    bytes
}

fn parse(bytes: &[u8]) -> Result<Node, NodeError> {
    parse_node(bytes, BLOCK, PTR, SET)
}

/// A node of three sets of 1, 3 and 2 blocks.
fn three() -> Vec<u8> {
    node(&[keys(0, 10), keys(0, 50), keys(5, 30)])
}

#[test]
fn the_published_sets_have_the_published_checksums() {
    let root = "b36ea87a048740e87a457f443f455c37b50794162578a8260100000000000000";
    let magic = 0x375c_453f_447f_457au64;
    let mut bytes = hex(root);
    bytes.resize(512, 0);
    let read = parse_node(&bytes, BLOCK, PTR, magic ^ MAGIC).unwrap();
    assert_eq!(
        (read.seq, read.sets[0].keys.len()),
        (0x26a8_7825_1694_07b5, 0)
    );
    assert_eq!(encode_bset(&[], read.seq, PTR, magic ^ MAGIC, BLOCK), bytes);

    let second = hex(
        "6d4f9747c975deb96954696859dc54157569f887617cb1a50100000006000000
         000000200000009000000000000000001000540b000000000000002000000090
         605f0900000000000700400a00000000",
    );
    let seq = u64_at(&second, 16);
    let keys = parse_keys(&second[32..]).unwrap();
    assert_eq!(keys[0], Key::freeing(0x200, Ptr(0x0b54_0010)));
    assert!(keys[0].is_freeing() && !keys[1].is_freeing());
    assert_eq!(keys[1].pos(), Pos::new(0, 0x9_5f60));
    let magic = u64_at(&second, 8) ^ MAGIC;
    let written = encode_bset(&key_words(&keys), seq, Ptr(0x0ab0_000e), magic, BLOCK);
    assert_eq!(written[..80], second);
    assert_eq!(u64_at(&written, 0), 0xb9de_75c9_4797_4f6d);
}

#[test]
fn a_node_is_all_its_sets_and_nothing_behind_them() {
    let read = parse(&three()).unwrap();
    let shape: Vec<_> = read
        .sets
        .iter()
        .map(|set| (set.block_offset, set.blocks))
        .collect();
    assert_eq!(shape, [(0, 1), (1, 3), (4, 2)]);
    assert_eq!((read.seq, read.blocks_used), (99, 6));
    assert_eq!(read.sets[2].keys, keys(5, 30));
}

#[test]
fn the_pointer_seeds_the_checksum() {
    let error = parse_node(&three(), BLOCK, Ptr(PTR.0 + 1), SET).unwrap_err();
    assert_eq!((error.set, error.error.structure), (0, "bset csum"));
    assert!(!error.is_last);
}

#[test]
fn a_version_0_set_has_the_common_seed() {
    let mut bytes = node(&[keys(0, 3)]);
    bytes[24] = 0;
    let csum = crc::checksum(crc::SEED, &bytes[8..32 + 9 * 8]);
    put(&mut bytes, 0, &csum.to_le_bytes());
    assert_eq!(parse(&bytes).unwrap().sets[0].version, 0);
}

#[test]
fn a_bad_last_set_is_told_from_a_bad_one_in_the_middle() {
    let mut bytes = three();
    bytes[4 * BLOCK + 100] ^= 1;
    let last = parse(&bytes).unwrap_err();
    assert_eq!((last.set, last.is_last), (2, true));
    assert_eq!(last.error.offset, 4 * 512);
    assert_eq!((last.intact.sets.len(), last.intact.blocks_used), (2, 4));
    bytes[BLOCK + 100] ^= 1;
    let middle = parse(&bytes).unwrap_err();
    assert_eq!((middle.set, middle.is_last), (1, false));
}

#[test]
fn a_set_cut_off_after_its_first_block_is_the_last() {
    let mut bytes = three();
    bytes[5 * BLOCK..6 * BLOCK].fill(0);
    let error = parse(&bytes).unwrap_err();
    assert_eq!((error.set, error.is_last), (2, true));
}

#[test]
fn an_absurd_header_is_the_last_only_if_nothing_of_the_node_follows() {
    for (at, structure) in [(24, "bset version"), (30, "bset keys"), (8, "bset magic")] {
        let mut bytes = three();
        bytes[4 * BLOCK + at] ^= 0x44;
        let error = parse(&bytes).unwrap_err();
        assert_eq!(
            (error.set, error.is_last, error.error.structure),
            (2, true, structure)
        );
        let mut bytes = three();
        bytes[BLOCK + at] ^= 0x44;
        let error = parse(&bytes).unwrap_err();
        assert_eq!(
            (error.set, error.is_last, error.error.structure),
            (1, false, structure)
        );
    }
}

#[test]
fn a_stray_set_is_an_error() {
    let mut bytes = three();
    put(&mut bytes, 9 * BLOCK + 16, &99u64.to_le_bytes());
    let error = parse(&bytes).unwrap_err();
    assert_eq!(
        (error.error.structure, error.error.offset),
        ("stray bset", 9 * 512 + 16)
    );
    assert!(!error.is_last);
}

#[test]
fn only_the_first_set_may_be_empty() {
    assert!(parse(&node(&[vec![], keys(0, 1)])).is_ok());
    let error = parse(&node(&[keys(0, 1), vec![]])).unwrap_err();
    assert_eq!((error.set, error.is_last), (1, false));
}

#[test]
fn a_node_without_a_seq_or_a_block_is_an_error() {
    assert!(parse(&[0; 16 * BLOCK]).is_err());
    assert!(parse(&[]).is_err());
    assert!(parse(&three()[..511]).is_err());
    assert!(parse_node(&three(), 0, PTR, SET).is_err());
    assert!(parse_node(&three(), 8, PTR, SET).is_err());
}

#[test]
fn a_full_node_has_no_room_behind_its_last_set() {
    let bytes = node(&[keys(0, 3)]);
    let read = parse(&bytes[..BLOCK]).unwrap();
    assert_eq!(read.blocks_used, 1);
}

#[test]
fn keys_that_do_not_tile_are_named_from_the_start_of_the_node() {
    let mut words = key_words(&keys(0, 2));
    words.pop();
    let mut bytes = node(&[keys(0, 1)]);
    put(&mut bytes, BLOCK, &encode_bset(&words, 99, PTR, SET, BLOCK));
    let error = parse(&bytes).unwrap_err();
    assert_eq!((error.set, error.is_last), (1, false));
    assert_eq!(error.error.offset, 512 + 32 + 24);
}

proptest! {
    #[test]
    fn sets_survive_writing_and_reading(
        sizes in proptest::collection::vec(1u64..60, 1..5),
        seq in 1u64..,
        ptr: u64,
    ) {
        let sets: Vec<_> = sizes.iter().map(|&count| keys(count, count)).collect();
        let mut bytes = Vec::new();
        for set in &sets {
            bytes.extend(encode_bset(&key_words(set), seq, Ptr(ptr), SET, BLOCK));
        }
        bytes.resize(bytes.len() + BLOCK, 0);
        let read = parse_node(&bytes, BLOCK, Ptr(ptr), SET).unwrap();
        let read_sets: Vec<_> = read.sets.into_iter().map(|set| set.keys).collect();
        prop_assert_eq!(read_sets, sets);
        prop_assert_eq!((read.blocks_used + 1) * BLOCK, bytes.len());
    }

    /// T108.
    #[test]
    fn no_flipped_bit_changes_keys_unnoticed(bit in 0..16 * BLOCK * 8) {
        let mut bytes = three();
        let before = parse(&bytes).unwrap();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // A seq that changes ends the log early, and only what is behind it tells; the last set's does not.
        if let Ok(after) = parse(&bytes) {
            let lost = before.sets.len() - after.sets.len();
            prop_assert_eq!(&before.sets[..after.sets.len()], &after.sets[..]);
            prop_assert!(lost == 0 || lost == 1 && bit / 64 == (4 * BLOCK + 16) / 8);
        }
    }

    #[test]
    fn a_node_read_in_two_steps_is_the_same_node(
        sizes in proptest::collection::vec(0u64..60, 1..5),
        words in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u64>()), 0..2),
        cut in 0usize..16 * BLOCK * 2,
        bits in proptest::collection::vec(0usize..6 * BLOCK * 8, 0..3),
    ) {
        let mut bytes = Vec::new();
        for (at, &count) in sizes.iter().enumerate() {
            let mut set = key_words(&keys(count, count));
            // Sound sets with keys that are not: what replaces a word says how many pointers follow.
            for (index, word) in words.iter().filter(|_| at == 1 && count > 0) {
                let nr = index.index(set.len());
                set[nr] = *word;
            }
            bytes.extend(encode_bset(&set, 99, PTR, SET, BLOCK));
        }
        bytes.resize(16 * BLOCK, 0);
        // Torn, or not.
        bytes.iter_mut().skip(cut).for_each(|byte| *byte = 0);
        for bit in bits {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        both_readers(&bytes, BLOCK, PTR, SET);
    }

    #[test]
    fn no_bytes_make_a_node_panic(bytes in proptest::collection::vec(any::<u8>(), 0..1500)) {
        crate::fuzzing::node(&bytes);
    }
}
