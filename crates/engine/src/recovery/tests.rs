//! Tests of recovery on small images built for the purpose.

mod replay;

use super::testing_disk::{BUCKET, Disk, Entry, JOURNAL, extent, node_key};
use super::{HeldInode, How, LoadError, Loaded, Severity};
use crate::extents::Extent;
use brigade_format::uuid_table::INVALIDATED;
use brigade_format::{Gen, Key, Pos, Ptr};
use std::collections::BTreeMap;

const READ_ONLY: How = How {
    read_only: true,
    may_count_later: false,
    memory_bytes: None,
};

const NO_MEMORY: How = How {
    read_only: false,
    may_count_later: false,
    memory_bytes: Some(0),
};

fn entry(seq: u64, last_seq: u64, keys: &[Key]) -> Entry {
    Entry {
        seq,
        last_seq,
        keys: keys.to_vec(),
    }
}

/// A disk whose tree holds `sets` and whose journal has one entry for each of `replayed`.
fn disk(sets: &[&[Key]], replayed: &[Key]) -> Disk {
    disk_of_level(0, sets, replayed)
}

fn disk_of_level(level: u16, sets: &[&[Key]], replayed: &[Key]) -> Disk {
    let mut disk = Disk::new();
    disk.level = level;
    disk.sets = if sets.is_empty() {
        vec![Vec::new()]
    } else {
        sets.iter().map(|set| set.to_vec()).collect()
    };
    let mut entries: Vec<Entry> = replayed
        .iter()
        .enumerate()
        .map(|(i, key)| entry(i as u64 + 1, 1, &[*key]))
        .collect();
    entries.push(entry(replayed.len() as u64 + 1, 1, &[]));
    disk.journal(1, &entries);
    disk
}

fn loaded(mut disk: Disk) -> Loaded {
    disk.finish();
    let loaded = disk.load().unwrap_or_else(|error| panic!("{error}"));
    passes_as_well(&disk, &loaded);
    loaded
}

fn refusal(mut disk: Disk) -> LoadError {
    disk.finish();
    let refusal = disk.load().err().expect("a refusal");
    // Sums show F41 only where more is said to be in a bucket than fits.
    if refusal.id != Some("F41") {
        let passed = disk.load_with(&[], NO_MEMORY).err();
        assert_eq!(passed.expect("a refusal"), refusal);
    }
    refusal
}

/// Without memory for leaves an opening comes to the same, in sums.
fn passes_as_well(disk: &Disk, loaded: &Loaded) {
    let passed = disk.load_with(&[], NO_MEMORY).unwrap();
    let held = passed.held.expect("leaves that are not kept");
    assert!(passed.index.is_empty());
    let mut buckets = vec![(0, 0); loaded.gens.len()];
    let mut inodes: BTreeMap<u32, HeldInode> = BTreeMap::new();
    for e in loaded.index.iter() {
        let (of, sectors) = (inodes.entry(e.inode).or_default(), e.sectors());
        let bucket = &mut buckets[(e.ptr.unwrap().sector() / BUCKET) as usize];
        of.end = e.end;
        bucket.0 += sectors as u32;
        if e.dirty {
            bucket.1 += sectors as u32;
            of.dirty_sectors += sectors;
            of.dirty = Some((of.dirty.map_or(e.start, |dirty| dirty.0), e.end));
        } else {
            of.clean_sectors += sectors;
        }
    }
    assert_eq!((&held.buckets, &held.inodes), (&buckets, &inodes));
    let extents: usize = held.leaves.iter().map(|leaf| leaf.0).sum();
    assert_eq!(extents, loaded.index.len());
    assert_eq!(
        (&passed.overlay, &passed.rejournal, &passed.doubtful),
        (&loaded.overlay, &loaded.rejournal, &loaded.doubtful)
    );
    assert_eq!(
        (&passed.gens, &passed.oldest_gens, &passed.referenced),
        (&loaded.gens, &loaded.oldest_gens, &loaded.referenced)
    );
    assert_eq!(
        (&passed.findings, &passed.nodes, &passed.inodes_seen),
        (&loaded.findings, &loaded.nodes, &loaded.inodes_seen)
    );
}

/// Inode 0's content as (start, end, bucket, is_dirty).
fn content(loaded: &Loaded) -> Vec<(u64, u64, u64, bool)> {
    loaded.index.iter().map(flat).collect()
}

fn flat(e: Extent) -> (u64, u64, u64, bool) {
    (
        e.start,
        e.end,
        e.ptr.map_or(0, |ptr| ptr.sector() / BUCKET),
        e.dirty,
    )
}

fn overlay(loaded: &Loaded) -> Vec<(u64, u64, u64, bool)> {
    loaded.overlay.iter().copied().map(flat).collect()
}

fn found(loaded: &Loaded, id: &str) -> Vec<Severity> {
    loaded
        .findings
        .iter()
        .filter(|f| f.id == id)
        .map(|f| f.severity)
        .collect()
}

#[test]
fn an_empty_set_opens_with_nothing_cached_and_nothing_to_say() {
    let loaded = loaded(disk(&[], &[]));
    assert!(loaded.index.is_empty() && loaded.overlay.is_empty() && loaded.rejournal.is_empty());
    assert_eq!(loaded.findings, vec![]);
    assert_eq!(
        (
            loaded.newest.seq,
            loaded.ring.newest_index,
            loaded.ring.newest_end_sector
        ),
        (1, 1, 1)
    );
    assert_eq!(loaded.nodes.len(), 1);
    assert_eq!(loaded.nodes[0].blocks_used, 1);
    assert_eq!(loaded.prio_buckets, vec![20]);
}

/// T109.
#[test]
fn later_sets_of_a_leaf_win_sector_by_sector() {
    let old = [extent(0, 8, 100, 0, false), extent(20, 30, 101, 0, true)];
    let new = [extent(4, 6, 102, 0, true), Key::hole(0, 22, 3)];
    let loaded = loaded(disk(&[&old, &new], &[]));
    assert_eq!(
        content(&loaded),
        vec![
            (0, 4, 100, false),
            (4, 6, 102, true),
            (6, 8, 100, false),
            (20, 22, 101, true),
            (25, 30, 101, true)
        ]
    );
}

// ---- gens

/// T59.
#[test]
fn pointers_raise_gens_before_anything_is_called_stale() {
    let tree = [extent(0, 2, 100, 1, false), extent(4, 6, 100, 3, false)];
    let loaded = loaded(disk(&[&tree], &[extent(8, 9, 101, 2, true)]));
    assert_eq!((loaded.gens[100], loaded.gens[101]), (Gen(3), Gen(2)));
    assert_eq!(
        (
            loaded.oldest_gens[100],
            loaded.oldest_gens[101],
            loaded.oldest_gens[102]
        ),
        (Gen(1), Gen(2), Gen(0))
    );
    assert!(loaded.referenced[100] && loaded.referenced[101] && !loaded.referenced[102]);
    assert_eq!(
        content(&loaded),
        vec![(4, 6, 100, false), (8, 9, 101, true)]
    );
}

/// A root in which the leaf in bucket 31 took the place of the one in 30, which is free at generation 2.
fn disk_with_a_freeing_key() -> Disk {
    let mut disk = disk_of_level(1, &[], &[]);
    let freeing = Key::freeing(BUCKET as u32, Ptr::new(30 * BUCKET, Gen(2)));
    disk.sets = vec![
        vec![node_key(Pos::MAX, 30, 1)],
        vec![freeing, node_key(Pos::MAX, 31, 1)],
    ];
    disk.nodes = vec![(31, vec![vec![extent(0, 4, 100, 0, false)]])];
    disk
}

/// T107.
#[test]
fn a_freeing_key_takes_the_place_of_the_node_it_names() {
    let loaded = loaded(disk_with_a_freeing_key());
    assert_eq!(loaded.gens[30], Gen(2));
    assert_eq!(loaded.nodes.len(), 2);
    assert_eq!(content(&loaded), vec![(0, 4, 100, false)]);
}

#[test]
fn stale_pointers_to_nodes_count_for_how_far_gens_may_go_and_refuse_nothing() {
    let mut disk = disk_with_a_freeing_key();
    disk.gens[30] = 101;
    let loaded = loaded(disk);
    let distance = |nr: usize| loaded.gens[nr].after(loaded.oldest_gens[nr]);
    assert_eq!((distance(30), distance(31)), (100, 0));
    assert_eq!(found(&loaded, "F42"), Vec::<Severity>::new());
}

/// T13.
#[test]
fn a_key_97_gens_behind_is_refused_and_one_96_behind_is_a_hole() {
    let stale = |behind: u8| {
        let mut disk = disk(&[&[extent(0, 8, 100, 0, false)]], &[]);
        disk.gens[100] = behind;
        disk
    };
    assert!(loaded(stale(96)).index.is_empty());
    assert_eq!(refusal(stale(97)).id, Some("F42"));
    let mut hidden = disk(
        &[
            &[extent(0, 8, 100, 0, false)],
            &[extent(0, 8, 101, 0, false)],
        ],
        &[],
    );
    hidden.gens[100] = 100;
    assert_eq!(found(&loaded(hidden), "F42"), vec![Severity::Warning]);
}

#[test]
fn a_stale_root_is_refused() {
    let mut disk = disk(&[], &[]);
    disk.gens[22] = 2;
    assert_eq!(refusal(disk).id, Some("F36"));
}

// ---- the journal

/// T119, T173.
#[test]
fn a_torn_entry_where_the_next_one_would_stand_is_a_warning() {
    let mut disk = disk(&[], &[extent(0, 8, 100, 0, true)]);
    let end = 2;
    let torn = disk.entry(&entry(3, 1, &[extent(0, 8, 101, 0, true)]));
    let at = ((2 + 1) * BUCKET + end) as usize * 512;
    disk.bytes[at..at + torn.len()].copy_from_slice(&torn);
    disk.damage(1, end);
    disk.journal(2, &[entry(3, 1, &[])]);
    disk.damage(2, 0);
    let loaded = loaded(disk);
    assert_eq!(
        found(&loaded, "F18"),
        vec![Severity::Warning, Severity::Warning]
    );
    assert_eq!(content(&loaded), vec![(0, 8, 100, true)]);
}

/// T172.
#[test]
fn a_valid_entry_behind_a_damaged_one_bars_writing() {
    let mut disk = Disk::new();
    let entries: Vec<Entry> = (1..=4)
        .map(|seq| entry(seq, 1, &[extent(seq, seq + 1, 99 + seq, 0, true)]))
        .collect();
    disk.journal(1, &entries);
    disk.damage(1, 2);
    disk.finish();
    assert_eq!(disk.load().err().and_then(|e| e.id), Some("F19"));
    let loaded = disk.load_with(&[], READ_ONLY).expect("read-only");
    assert_eq!(loaded.newest.seq, 2);
    assert_eq!(content(&loaded), vec![(1, 2, 100, true), (2, 3, 101, true)]);
}

/// T174.
#[test]
fn a_valid_entry_behind_one_without_its_magic_bars_writing() {
    let mut disk = Disk::new();
    let entries: Vec<Entry> = (1..=4)
        .map(|seq| entry(seq, 1, &[extent(seq, seq + 1, 99 + seq, 0, true)]))
        .collect();
    disk.journal(1, &entries);
    disk.erase_magic(1, 2);
    disk.finish();
    assert_eq!(disk.load().err().and_then(|e| e.id), Some("F19"));
    let loaded = disk.load_with(&[], READ_ONLY).expect("read-only");
    assert_eq!(loaded.newest.seq, 2);
    assert_eq!(content(&loaded), vec![(1, 2, 100, true), (2, 3, 101, true)]);
}

/// T173.
#[test]
fn a_suspect_block_elsewhere_or_of_a_later_seq_bars_writing() {
    for (index, seq) in [(4, 3), (2, 4)] {
        let mut disk = disk(&[], &[extent(0, 8, 100, 0, true)]);
        disk.journal(index, &[entry(seq, 1, &[])]);
        disk.damage(index, 0);
        assert_eq!(refusal(disk).id, Some("F19"), "index {index} seq {seq}");
    }
}

#[test]
fn leftovers_of_the_previous_lap_mean_nothing() {
    let mut disk = Disk::new();
    for index in 0..JOURNAL {
        let first = 1 + 4 * ((index + 7) % JOURNAL);
        let entries: Vec<Entry> = (first..first + 4).map(|seq| entry(seq, seq, &[])).collect();
        disk.journal(index, &entries);
    }
    disk.journal(1, &[entry(33, 32, &[]), entry(34, 33, &[])]);
    let loaded = loaded(disk);
    assert_eq!((loaded.newest.seq, loaded.newest.last_seq), (34, 33));
    assert_eq!(loaded.ring.newest_index, 1);
    assert_eq!(loaded.ring.newest_end_sector, 2);
    assert_eq!(
        loaded.ring.bucket_max_seq,
        vec![32, 34, 8, 12, 16, 20, 24, 28]
    );
    assert_eq!(loaded.findings, vec![]);
}

/// T119.
#[test]
fn a_gap_in_the_middle_is_refused_and_one_at_the_start_only_without_discard() {
    let gap = |seqs: &[u64], discard| {
        let mut disk = Disk::new();
        disk.discard = discard;
        for (i, seq) in seqs.iter().enumerate() {
            disk.journal(1 + i as u64, &[entry(*seq, 1, &[])]);
        }
        disk.finish();
        disk.load()
    };
    assert!(gap(&[1, 2, 3], false).is_ok());
    assert_eq!(gap(&[1, 3], true).err().and_then(|e| e.id), Some("F15"));
    assert_eq!(gap(&[2, 3], false).err().and_then(|e| e.id), Some("F15"));
    let loaded = gap(&[2, 3], true).expect("entries that were discarded");
    assert_eq!(found(&loaded, "F15"), vec![Severity::Warning]);
}

#[test]
fn an_entry_a_kernel_would_not_find_is_reported() {
    let mut disk = Disk::new();
    disk.journal(1, &[entry(1, 1, &[])]);
    disk.journal(2, &[entry(2, 1, &[])]);
    disk.journal(6, &[entry(3, 1, &[])]);
    assert!(!found(&loaded(disk), "F13").is_empty());
}

#[test]
fn a_seq_nobody_can_count_on_from_and_a_last_seq_of_zero_are_refused() {
    for (seq, last_seq) in [(u64::MAX, u64::MAX), (5, 0), (5, 6)] {
        let mut disk = Disk::new();
        disk.journal(1, &[entry(seq, last_seq, &[])]);
        assert_eq!(refusal(disk).id, Some("F11"), "{seq} {last_seq}");
    }
}

#[test]
fn no_entry_at_all_is_refused() {
    assert_eq!(refusal(Disk::new()).id, Some("F10"));
}

#[test]
fn an_invalid_key_to_be_replayed_is_refused() {
    let outside = Key::extent(0, 0, 8, Ptr::new(601 * BUCKET, Gen(0)), false);
    assert_eq!(refusal(disk(&[], &[outside])).id, Some("F16"));
    let dead = Key::hole(0, 5, 1).cut_front(1);
    assert_eq!(refusal(disk(&[], &[dead])).id, Some("F16"));
}

// ---- the tree

#[test]
fn keys_out_of_order_or_out_of_range_are_refused() {
    let unsorted = [extent(8, 9, 100, 0, false), extent(0, 2, 101, 0, false)];
    assert_eq!(refusal(disk(&[&unsorted], &[])).id, Some("F32"));
    let overlapping = [extent(0, 4, 100, 0, false), extent(3, 6, 101, 0, false)];
    assert_eq!(refusal(disk(&[&overlapping], &[])).id, Some("F32"));
    let mut wide = disk_of_level(1, &[], &[]);
    wide.sets = vec![vec![
        node_key(Pos::new(0, 6), 30, 1),
        node_key(Pos::MAX, 31, 1),
    ]];
    wide.nodes = vec![
        (30, vec![Vec::new()]),
        (31, vec![vec![extent(4, 9, 100, 0, false)]]),
    ];
    assert_eq!(refusal(wide).id, Some("F33"));
}

/// T108.
#[test]
fn an_interior_node_needs_exactly_the_children_that_tile_it() {
    let tree = |sets: Vec<Vec<Key>>| {
        let mut disk = disk_of_level(1, &[], &[]);
        disk.sets = sets;
        disk.nodes = vec![(30, vec![Vec::new()]), (31, vec![Vec::new()])];
        disk.finish();
        disk.load().err().and_then(|e| e.id)
    };
    assert_eq!(
        tree(vec![vec![
            node_key(Pos::new(0, 6), 30, 1),
            node_key(Pos::MAX, 31, 1)
        ]]),
        None
    );
    assert_eq!(tree(vec![vec![]]), Some("F38"));
    assert_eq!(
        tree(vec![vec![node_key(Pos::new(0, 6), 30, 1)]]),
        Some("F39")
    );
    assert_eq!(
        tree(vec![
            vec![node_key(Pos::MAX, 30, 1)],
            vec![node_key(Pos::MAX, 31, 1)]
        ]),
        Some("F37")
    );
    assert_eq!(
        tree(vec![vec![
            node_key(Pos::new(0, 6), 30, 1),
            node_key(Pos::MAX, 30, 1)
        ]]),
        Some("F40")
    );
    assert_eq!(
        tree(vec![vec![
            node_key(Pos::new(0, 9), 30, 1),
            node_key(Pos::new(0, 9), 31, 1)
        ]]),
        Some("F31")
    );
}

/// T84.
#[test]
fn a_bucket_or_sector_with_two_owners_is_refused() {
    assert_eq!(
        refusal(disk(&[&[extent(0, 8, 20, 0, false)]], &[])).id,
        Some("F40")
    );
    let twice = [extent(0, 8, 100, 0, false), extent(10, 12, 100, 0, false)];
    assert_eq!(refusal(disk(&[&twice], &[])).id, Some("F41"));
}

#[test]
fn a_key_of_several_pointers_is_refused() {
    let mut words = Vec::new();
    extent(0, 8, 100, 0, false).push_to(&mut words);
    words[0] += 1 << 60;
    words.push(Ptr::new(101 * BUCKET, Gen(0)).0);
    let key = Key::from_words(&words).unwrap();
    assert_eq!(refusal(disk(&[&[key]], &[])).id, Some("F34"));
}

#[test]
fn what_a_removed_device_lost_is_only_reported() {
    let mut disk = disk(&[&[extent(0, 8, 100, 4, true)]], &[]);
    disk.gens[100] = 5;
    disk.slots = vec![(INVALIDATED, 0)];
    assert_eq!(found(&loaded(disk), "F43"), vec![Severity::Warning]);
}

// ---- the UUID table

#[test]
fn data_of_a_slot_never_given_out_bars_writing_and_a_removed_one_warns() {
    let mut unknown = disk(
        &[&[Key::extent(3, 0, 8, Ptr::new(100 * BUCKET, Gen(0)), false)]],
        &[],
    );
    unknown.finish();
    assert_eq!(unknown.load().err().and_then(|e| e.id), Some("F51"));
    assert!(unknown.load_with(&[], READ_ONLY).is_ok());
    let mut removed = disk(&[&[extent(0, 8, 100, 0, true)]], &[]);
    removed.slots = vec![(INVALIDATED, 0)];
    assert!(!found(&loaded(removed), "F51").is_empty());
}

#[test]
fn a_uuid_in_two_slots_is_refused() {
    let mut disk = disk(&[], &[]);
    disk.slots = vec![([7; 16], 0), ([7; 16], 0)];
    assert_eq!(refusal(disk).id, Some("F52"));
}

#[test]
fn every_inode_with_a_key_is_seen_even_if_nothing_of_it_is_cached() {
    let mut disk = disk(&[&[Key::hole(5, 0, 3)]], &[Key::hole(9, 0, 3)]);
    disk.slots = (0..10).map(|i| ([i + 1; 16], 0)).collect();
    assert_eq!(
        loaded(disk).inodes_seen.into_iter().collect::<Vec<_>>(),
        vec![5, 9]
    );
}

#[test]
fn metadata_is_read_once() {
    let loaded = loaded(disk(&[&[extent(0, 8, 100, 0, true)]], &[]));
    assert_eq!(loaded.stats.bytes_read, (JOURNAL + 3) * BUCKET * 512);
}

#[test]
fn no_single_damaged_byte_of_the_metadata_panics() {
    let mut disk = disk(
        &[
            &[extent(0, 8, 100, 0, true), extent(9, 12, 101, 0, false)],
            &[extent(2, 4, 102, 0, true)],
        ],
        &[extent(3, 6, 103, 0, true), Key::hole(0, 10, 1)],
    );
    disk.finish();
    let buckets = [3, 20, 21, 22];
    for bucket in buckets {
        for byte in 0..1024 {
            let at = bucket * (BUCKET as usize) * 512 + byte;
            let before = disk.bytes[at];
            disk.bytes[at] = before.wrapping_add(1 + (byte % 250) as u8);
            let _ = disk.load_with(&[], READ_ONLY);
            disk.bytes[at] = before;
        }
    }
}

/// Run it alone, in release: `cargo test --release -p brigade-engine million -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn a_million_extents_are_flattened_and_indexed_in_about_a_second() {
    use crate::extents::Layers;
    let start = std::time::Instant::now();
    let extent = |i: u64, bucket: u64| Extent {
        inode: 0,
        start: 8 * i,
        end: 8 * i + 8,
        ptr: Some(Ptr::new(bucket * BUCKET, Gen(0))),
        dirty: true,
    };
    let mut tree = Vec::new();
    for leaf in 0..100 {
        let mut layers = Layers::default();
        layers.push((0..9000).map(|i| extent(leaf * 10_000 + i, i)).collect());
        for set in 0..40 {
            let keys = (0..25).map(|i| extent(leaf * 10_000 + 9000 + set + 40 * i, i));
            layers.push(keys.collect());
        }
        tree.extend(layers.finish());
    }
    let flattened = start.elapsed();
    let replayed: Vec<Extent> = (0..20_000)
        .map(|i| extent(i * 7919 % 1_000_000, i))
        .collect();
    let replay = super::replay::Replay::new(&replayed, &[Pos::MAX], 16);
    let outcome = replay.resolve(&tree, replay.newest(), |_| false);
    eprintln!(
        "flattened {flattened:?}, all {:?}, {} extents",
        start.elapsed(),
        outcome.index.len()
    );
    assert_eq!(outcome.index.len(), 1_000_000);
}

#[test]
fn more_data_in_a_bucket_than_fits_is_found_in_the_sums_too() {
    let keys = [extent(0, 16, 100, 0, false), extent(20, 30, 100, 0, true)];
    let mut disk = disk(&[&keys], &[]);
    disk.finish();
    let passed = disk.load_with(&[], NO_MEMORY).err().expect("a refusal");
    assert_eq!(passed.id, Some("F41"));
}

#[test]
fn gens_that_chase_each_other_round_the_circle_are_refused() {
    // 85 is ahead of 0, 171 of 85, and 0 of 171.
    let keys = [
        extent(0, 4, 100, 85, false),
        extent(8, 12, 100, 171, false),
        extent(16, 20, 100, 0, false),
    ];
    assert_eq!(refusal(disk(&[&keys], &[])).id, Some("F42"));
}
