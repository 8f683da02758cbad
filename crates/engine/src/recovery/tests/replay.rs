//! What replayed keys do to what the tree has: docs/format.md 8.5, row by row.

use super::super::testing_disk::{extent, node_key};
use super::super::{How, Severity, SurvivorEntry};
use super::{READ_ONLY, content, disk, disk_of_level, flat, found, loaded, overlay};
use brigade_format::{Key, Pos, Ptr};

#[test]
fn a_live_clean_replayed_key_wins_over_anything() {
    let loaded = loaded(disk(
        &[&[extent(0, 8, 100, 0, true)]],
        &[extent(2, 4, 101, 0, false)],
    ));
    assert_eq!(
        content(&loaded),
        vec![(0, 2, 100, true), (2, 4, 101, false), (4, 8, 100, true)]
    );
    assert_eq!(overlay(&loaded), vec![(2, 4, 101, false)]);
}

/// T170.
#[test]
fn a_live_dirty_replayed_key_is_dirty_unless_the_tree_has_the_same_location_clean() {
    let tree = [extent(0, 4, 100, 0, false), extent(8, 12, 101, 0, false)];
    let loaded = loaded(disk(
        &[&tree],
        &[extent(0, 8, 100, 0, true), extent(8, 12, 102, 0, true)],
    ));
    assert_eq!(
        content(&loaded),
        vec![(0, 4, 100, false), (4, 8, 100, true), (8, 12, 102, true)]
    );
    assert_eq!(overlay(&loaded), content(&loaded));
}

#[test]
fn a_replayed_hole_and_a_check_pointer_hide_what_the_tree_has() {
    let check = Key::extent(0, 4, 2, Ptr::check(7), false);
    let loaded = loaded(disk(
        &[&[extent(0, 8, 100, 0, true)]],
        &[Key::hole(0, 0, 2), check],
    ));
    assert_eq!(content(&loaded), vec![(2, 4, 100, true), (6, 8, 100, true)]);
    assert_eq!(overlay(&loaded), vec![(0, 2, 0, false), (4, 6, 0, false)]);
}

/// T166.
#[test]
fn a_stale_clean_replayed_key_hides_even_live_dirty_data() {
    let mut disk = disk(
        &[&[extent(0, 8, 100, 0, true)]],
        &[extent(2, 4, 101, 4, false)],
    );
    disk.gens[101] = 5;
    let loaded = loaded(disk);
    assert_eq!(content(&loaded), vec![(0, 2, 100, true), (4, 8, 100, true)]);
    assert_eq!(overlay(&loaded), vec![(2, 4, 0, false)]);
}

/// T165.
#[test]
fn a_stale_dirty_replayed_key_never_erases_live_dirty_data_and_bars_writing_unless_proved_older() {
    let mut disk = disk(
        &[&[extent(0, 8, 100, 0, true)]],
        &[extent(2, 4, 101, 4, true)],
    );
    disk.gens[101] = 5;
    disk.finish();
    assert_eq!(disk.load().err().and_then(|e| e.id), Some("F47"));
    let loaded = disk.load_with(&[], READ_ONLY).expect("read-only");
    assert_eq!(content(&loaded).iter().map(|e| e.1 - e.0).sum::<u64>(), 8);
    assert_eq!(overlay(&loaded), vec![(2, 4, 100, true)]);
    assert_eq!(loaded.rejournal, loaded.overlay);
    assert_eq!(found(&loaded, "F47"), vec![Severity::BarsWriting]);
}

/// T165.
#[test]
fn a_kept_extent_is_only_a_warning_if_its_leaf_proves_it_newer() {
    let mut disk = disk(
        &[&[extent(2, 4, 101, 4, true)], &[extent(0, 8, 100, 0, true)]],
        &[extent(2, 4, 101, 4, true)],
    );
    disk.gens[101] = 5;
    let loaded = loaded(disk);
    assert_eq!(found(&loaded, "F47"), vec![Severity::Warning]);
    assert_eq!(
        loaded
            .rejournal
            .iter()
            .copied()
            .map(flat)
            .collect::<Vec<_>>(),
        vec![(2, 4, 100, true)]
    );
}

/// T168.
#[test]
fn what_an_older_replayed_key_placed_is_hidden_by_a_newer_stale_dirty_one() {
    let replayed = [extent(0, 3, 100, 0, true), extent(2, 4, 101, 4, true)];
    let mut disk = disk(&[&[extent(0, 8, 100, 0, true)]], &replayed);
    disk.gens[101] = 5;
    disk.finish();
    let loaded = disk.load_with(&[], READ_ONLY).expect("read-only");
    let sectors: u64 = loaded.index.range(0, 2, 3).map(|e| e.sectors()).sum();
    assert_eq!(
        sectors, 0,
        "sector 2: T stands in the older entry, so K had replaced it"
    );
    assert_eq!(
        loaded
            .rejournal
            .iter()
            .copied()
            .map(flat)
            .collect::<Vec<_>>(),
        vec![(3, 4, 100, true)]
    );
}

/// T167.
#[test]
fn a_stale_dirty_replayed_key_over_clean_data_leaves_nothing_cached() {
    let mut disk = disk(
        &[&[extent(0, 8, 100, 0, false)]],
        &[extent(2, 4, 101, 4, true)],
    );
    disk.gens[101] = 5;
    let loaded = loaded(disk);
    assert_eq!(
        content(&loaded),
        vec![(0, 2, 100, false), (4, 8, 100, false)]
    );
    assert_eq!(found(&loaded, "F43"), vec![Severity::Warning]);
}

#[test]
fn stale_dirty_data_in_a_leaf_that_is_the_root_was_written_back() {
    let mut disk = disk(&[&[extent(0, 8, 100, 4, true)]], &[]);
    disk.gens[100] = 5;
    let loaded = loaded(disk);
    assert_eq!(found(&loaded, "F43"), vec![Severity::Warning]);
    assert!(loaded.index.is_empty());
}

#[test]
fn stale_dirty_data_of_a_flash_volume_is_lost_and_bars_writing() {
    let mut disk = disk(&[&[extent(0, 8, 100, 4, true)]], &[]);
    disk.slots = vec![(disk.slots[0].0, 1)];
    disk.gens[100] = 5;
    disk.finish();
    assert_eq!(disk.load().err().and_then(|e| e.id), Some("F43"));
    assert!(
        disk.load_with(&[], READ_ONLY)
            .expect("read-only")
            .index
            .is_empty()
    );
}

/// T169.
#[test]
fn of_several_replayed_keys_the_newest_decides_and_survivors_come_last() {
    let mut disk = disk(
        &[],
        &[extent(0, 8, 100, 0, true), extent(0, 4, 101, 0, true)],
    );
    disk.finish();
    let survivors = [
        SurvivorEntry {
            seq: 3,
            keys: vec![extent(0, 8, 109, 0, true)],
        },
        SurvivorEntry {
            seq: 4,
            keys: vec![extent(1, 2, 102, 0, true), extent(6, 7, 103, 0, true)],
        },
    ];
    let loaded = disk.load_with(&survivors, How::default()).expect("opened");
    assert_eq!(loaded.newest.seq, 3);
    assert_eq!(
        content(&loaded),
        vec![
            (0, 1, 101, true),
            (1, 2, 102, true),
            (2, 4, 101, true),
            (4, 6, 100, true),
            (6, 7, 103, true),
            (7, 8, 100, true)
        ]
    );
}

/// T104.
#[test]
fn decisions_are_cut_at_leaf_boundaries() {
    let mut disk = disk_of_level(1, &[], &[extent(0, 10, 100, 0, true), Key::hole(0, 30, 20)]);
    disk.sets = vec![vec![
        node_key(Pos::new(0, 6), 30, 1),
        node_key(Pos::new(0, 40), 31, 1),
        node_key(Pos::MAX, 32, 1),
    ]];
    disk.nodes = (30..33).map(|bucket| (bucket, vec![Vec::new()])).collect();
    let loaded = loaded(disk);
    assert_eq!(
        content(&loaded),
        vec![(0, 6, 100, true), (6, 10, 100, true)]
    );
    assert_eq!(
        overlay(&loaded),
        vec![
            (0, 6, 100, true),
            (6, 10, 100, true),
            (30, 40, 0, false),
            (40, 50, 0, false)
        ]
    );
    assert_eq!(
        loaded
            .nodes
            .iter()
            .map(|n| (n.level, n.low))
            .collect::<Vec<_>>(),
        vec![
            (1, Pos::ZERO),
            (0, Pos::ZERO),
            (0, Pos::new(0, 6)),
            (0, Pos::new(0, 40))
        ]
    );
}
