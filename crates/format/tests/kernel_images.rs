//! Structures that a Linux 6.12 kernel wrote, cut out of cache sets: they parse, they are what the kernel
//! said, and where the format leaves a writer no choice we write the same bytes.

use brigade_format::fuzzing::both_readers;
use brigade_format::superblock::{BackingState, CacheGeometry, CacheMode, Role, Superblock};
use brigade_format::{Pos, Probe, Ptr, jset, key_words, node, order, prio, uuid_table};
use std::path::Path;

const BLOCK: usize = 512;
const LEAF: Ptr = Ptr(0x68_e002);
const ROOT: Ptr = Ptr(0x120_4003);
const COALESCED_ROOT: Ptr = Ptr(0xad_e001);
const COALESCED_SET: u64 = 0x034d_9e5c_a662_bbba;

fn data(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    std::fs::read(folder.join(name)).unwrap()
}

fn geometry() -> CacheGeometry {
    let superblock = Superblock::parse(&data("kill-gens-8k-cache-superblock.bin")).unwrap();
    superblock.cache_geometry(5120 * 16, 512).unwrap()
}

#[test]
fn superblocks_of_all_kinds_write_back_as_they_were() {
    let all = [
        ("kill-gens-8k-cache-superblock.bin", 3, Role::Cache),
        ("kill-gens-8k-backing-superblock.bin", 1, Role::Backing),
        ("v0-cache-superblock.bin", 0, Role::Cache),
        ("v5-cache-superblock.bin", 5, Role::Cache),
        ("v6-backing-superblock.bin", 6, Role::Backing),
    ];
    for (name, version, role) in all {
        let bytes = data(name);
        let superblock = Superblock::parse(&bytes).unwrap();
        assert_eq!(
            (superblock.version, superblock.role()),
            (version, role),
            "{name}"
        );
        assert_eq!(superblock.encode()[..], bytes[..], "{name}");
    }
}

#[test]
fn the_geometry_of_a_used_cache_device_is_known() {
    let geometry = geometry();
    assert_eq!((geometry.bucket_sectors, geometry.block_sectors), (16, 1));
    assert_eq!((geometry.nbuckets, geometry.prio_buckets), (5120, 2));
    assert_eq!((geometry.node_sectors, geometry.uuid_slots), (16, 64));
    assert_eq!(geometry.journal_buckets.len(), 40);
}

#[test]
fn backing_devices_say_where_their_data_is_and_whether_it_is_whole() {
    let backing = Superblock::parse(&data("v6-backing-superblock.bin")).unwrap();
    assert_eq!(backing.backing_data_offset(196_608, 512), Ok(2048));
    assert_eq!(backing.state(), BackingState::Dirty);
    assert_eq!(backing.cache_mode(), Some(CacheMode::Writeback));
}

#[test]
fn a_journal_bucket_holds_entries_in_order() {
    let (geometry, bucket) = (geometry(), data("kill-gens-8k-journal.bin"));
    let (mut at, mut seqs) = (0, Vec::new());
    while let Probe::Valid(view) = jset::probe(&bucket[at..], geometry.set_magic) {
        assert_eq!(view.check(), Ok(()));
        let jset = view.to_jset().unwrap();
        let rules = geometry.key_rules();
        assert_eq!(rules.check_node(&jset.header.btree_root), Ok(()));
        assert_eq!(rules.check_node(&jset.header.uuid_bucket), Ok(()));
        for key in &jset.keys {
            assert_eq!(rules.check_extent(key), Ok(()));
        }
        let written = jset.encode(geometry.set_magic, BLOCK);
        assert_eq!(written[240..view.bytes_len], view.bytes()[240..]);
        seqs.push(view.seq);
        at += view.disk_bytes(BLOCK);
        if at >= bucket.len() {
            break;
        }
    }
    assert!(seqs.contains(&711), "the newest entry is here: {seqs:?}");
    let jump = seqs.windows(2).position(|pair| pair[1] != pair[0] + 1);
    let fresh = jump.map_or(&seqs[..], |at| &seqs[..=at]);
    assert_eq!(
        fresh.last(),
        Some(&711),
        "what follows is from an earlier lap"
    );
}

#[test]
fn a_prio_bucket_written_again_has_the_same_bytes() {
    let (geometry, bytes) = (geometry(), data("kill-gens-8k-prio.bin"));
    let count = usize::try_from(geometry.prios_per_bucket).unwrap();
    let read = prio::parse_prio_bucket(&bytes, geometry.set_magic, count).unwrap();
    assert_eq!(read.entries.len(), 2717);
    let written = prio::encode(
        read.seq,
        read.next_bucket,
        &read.entries,
        geometry.set_magic,
        bytes.len(),
    );
    // One byte does not hold a whole entry: an old value may lie there.
    let tail = prio::HEADER_BYTES + count * prio::ENTRY_BYTES;
    assert_eq!(written[8..tail], bytes[8..tail]);
}

#[test]
fn every_set_of_a_leaf_written_again_has_the_same_bytes() {
    let (geometry, bytes) = (geometry(), data("kill-gens-8k-leaf.bin"));
    let leaf = node::parse_node(&bytes, BLOCK, LEAF, geometry.set_magic).unwrap();
    assert_eq!(leaf.sets.len(), 11);
    for set in &leaf.sets {
        let words = key_words(&set.keys);
        let written = node::encode_bset(&words, leaf.seq, LEAF, geometry.set_magic, BLOCK);
        let at = set.block_offset * BLOCK;
        let len = node::bset_bytes(words.len());
        assert_eq!(written[..len], bytes[at..at + len]);
        assert_eq!(order::check_leaf_set(&set.keys), Ok(()));
    }
}

#[test]
fn the_root_of_a_killed_set_names_live_and_freed_children() {
    let (geometry, bytes) = (geometry(), data("kill-gens-8k-root.bin"));
    let root = node::parse_node(&bytes, BLOCK, ROOT, geometry.set_magic).unwrap();
    assert_eq!(root.sets.len(), 5);
    for set in &root.sets {
        assert_eq!(order::check_interior_set(&set.keys), Ok(()));
    }
    let keys: Vec<_> = root.sets.iter().flat_map(|set| &set.keys).collect();
    assert_eq!(keys.len(), 49);
    let rules = geometry.key_rules();
    assert!(keys.iter().all(|key| rules.check_node(key).is_ok()));
    assert!(keys.iter().any(|key| key.is_freeing()));
    assert!(keys.iter().any(|key| key.pos() == Pos::MAX));
}

/// T107.
#[test]
fn a_freeing_key_outdates_the_key_of_the_node_that_was_replaced() {
    let bytes = data("btree-coalesced-root.bin");
    let root = node::parse_node(&bytes, BLOCK, COALESCED_ROOT, COALESCED_SET).unwrap();
    let keys: Vec<_> = root.sets.iter().flat_map(|set| &set.keys).collect();
    let freed: Vec<Ptr> = keys
        .iter()
        .filter(|key| key.is_freeing())
        .filter_map(|key| key.ptr(0))
        .collect();
    let is_outdated = |ptr: Ptr| {
        freed
            .iter()
            .any(|new| new.sector() == ptr.sector() && new.r#gen().after(ptr.r#gen()) > 0)
    };
    let named: Vec<Ptr> = keys
        .iter()
        .filter(|key| !key.is_freeing())
        .filter_map(|key| key.ptr(0))
        .collect();
    assert!(named.iter().any(|&ptr| is_outdated(ptr)), "merged away");
    assert!(named.iter().any(|&ptr| !is_outdated(ptr)), "still there");
}

#[test]
fn a_node_read_with_another_generation_is_refused() {
    let (geometry, bytes) = (geometry(), data("kill-gens-8k-root.bin"));
    let other = ROOT.with_gen(ROOT.r#gen().next());
    let error = node::parse_node(&bytes, BLOCK, other, geometry.set_magic).unwrap_err();
    assert_eq!((error.set, error.error.structure), (0, "bset csum"));
}

#[test]
fn uuid_tables_are_plausible_and_write_back_as_they_were() {
    for name in ["kill-gens-8k-uuids.bin", "flash-removed-uuids.bin"] {
        let bytes = data(name);
        let table = uuid_table::parse(&bytes, bytes.len() / uuid_table::ENTRY_BYTES);
        assert_eq!(uuid_table::check(&table), [], "{name}");
        assert_eq!(uuid_table::encode(&table), bytes, "{name}");
    }
    let table = uuid_table::parse(&data("flash-removed-uuids.bin"), 32);
    assert!(table.iter().any(|entry| entry.is_invalidated()));
    assert!(table.iter().any(|entry| entry.is_flash_only()));
}

#[test]
fn real_nodes_read_in_two_steps_are_the_same() {
    let magic = geometry().set_magic;
    for (name, place, magic) in [
        ("kill-gens-8k-leaf.bin", LEAF, magic),
        ("kill-gens-8k-root.bin", ROOT, magic),
        ("btree-coalesced-root.bin", COALESCED_ROOT, COALESCED_SET),
    ] {
        let bytes = data(name);
        both_readers(&bytes, BLOCK, place, magic);
        // Cut off anywhere.
        for blocks in 0..bytes.len() / BLOCK {
            let mut bytes = bytes.clone();
            bytes[blocks * BLOCK..].fill(0);
            both_readers(&bytes, BLOCK, place, magic);
        }
    }
}

/// Every structure with single bits flipped: never a panic, and never keys that differ.
#[test]
fn no_flipped_bit_in_a_real_structure_gets_through_or_panics() {
    let geometry = geometry();
    let leaf = data("kill-gens-8k-leaf.bin");
    let whole = node::parse_node(&leaf, BLOCK, LEAF, geometry.set_magic).unwrap();
    for bit in (0..leaf.len() * 8).step_by(13) {
        let mut bytes = leaf.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        both_readers(&bytes, BLOCK, LEAF, geometry.set_magic);
        if let Ok(read) = node::parse_node(&bytes, BLOCK, LEAF, geometry.set_magic) {
            assert!(whole.sets.starts_with(&read.sets));
        }
    }
    let bucket = data("kill-gens-8k-journal.bin");
    for bit in (0..bucket.len() * 8).step_by(13) {
        let mut bytes = bucket.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        brigade_format::fuzzing::jset(&bytes);
    }
}
