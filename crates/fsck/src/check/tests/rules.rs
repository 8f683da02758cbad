//! One rule broken at a time: it is met, where it is broken, and no other error is.

use super::made::{
    BUCKET, BUCKET_SECTORS, DATA, Made, PRIOS, ROOT, UUIDS, backing, extent, pointer,
};
use super::{check, check_with, device, met};
use crate::check::{Options, Report, Severity, Verdict, run};
use Severity::{Error, Note, Warning};
use brigade_format::{BackingState, Gen, Key, Pos, Ptr, UuidEntry};

/// A leaf as the root with these sets.
fn leaf(sets: &[Vec<Key>]) -> Made {
    let mut made = Made::new();
    made.node(ROOT, sets);
    made
}

fn beside(made: Made, state: BackingState, sectors: u64) -> Report {
    let (cache, back) = (made.finish(), backing(state, sectors));
    let options = Options {
        data: true,
        ..Options::default()
    };
    run(
        &[device("c", &cache), device("b", &back)],
        &options,
        &mut |_| {},
    )
}

#[track_caller]
fn only(report: &Report, id: &'static str, severity: Severity) {
    assert_eq!(met(report), [(id, severity)], "{:#?}", report.findings);
}

#[track_caller]
fn only_at(report: &Report, id: &'static str, offset: u64) {
    only(report, id, Error);
    assert_eq!(report.findings[0].offset, offset, "{:?}", report.findings);
}

#[test]
fn a_set_that_keeps_all_rules_is_clean_and_seen_as_it_is() {
    let mut made = leaf(&[
        vec![extent(100, 8, DATA, false), extent(200, 8, DATA + 1, true)],
        vec![Key::hole(0, 104, 2)],
    ]);
    made.entries = vec![vec![extent(300, 16, DATA + 2, true)], vec![]];
    let report = check(&made.finish());
    assert_eq!((met(&report), report.verdict()), (vec![], Verdict::Clean));
    let view = &report.sets[0];
    assert_eq!(
        (view.newest_seq, view.last_seq, view.replayed_keys),
        (2, 1, 1)
    );
    let volume = &view.volumes[0];
    assert_eq!(
        (volume.extents, volume.clean_sectors, volume.dirty_sectors),
        (4, 6, 24)
    );
    let buckets = view.buckets;
    assert_eq!((buckets.dirty, buckets.clean, buckets.nodes), (2, 1, 1));
    assert_eq!((buckets.superblock, buckets.journal), (2, 4));
    assert_eq!((buckets.prios, buckets.uuids), (1, 1));
    assert_eq!(buckets.unreferenced, super::made::BUCKETS - 12);
}

#[test]
fn an_entry_after_a_gap_and_an_entry_that_says_nothing_sensible_are_met() {
    let mut made = Made::new();
    made.last_seq = 5;
    made.first_seq = 7;
    made.entries = vec![vec![], vec![]];
    only(&check(&made.finish()), "F15", Error);

    let mut made = Made::new();
    made.superblock.set_discard(true);
    (made.first_seq, made.last_seq) = (7, 5);
    made.entries = vec![vec![], vec![]];
    only(&check(&made.finish()), "F15", Warning);

    let mut made = Made::new();
    made.last_seq = 0;
    only(&check(&made.finish()), "F11", Error);
}

#[test]
fn a_torn_entry_is_a_warning_only_where_the_next_one_belongs() {
    let whole = |made: &Made| made.entry(3, 1, &[extent(400, 8, DATA, true)]);
    let made = || {
        let mut made = Made::new();
        made.entries = vec![vec![], vec![]];
        made
    };
    // Behind the newest, and at the start of the next bucket.
    for offset in [3 * BUCKET + 1024, 4 * BUCKET] {
        for cut in [0, 8] {
            let mut made = made();
            let mut torn = whole(&made);
            torn[cut] ^= 1;
            made.put(offset, &torn);
            only(&check(&made.finish()), "F18", Warning);
        }
    }
    let mut made = made();
    let mut torn = whole(&made);
    torn[0] ^= 1;
    made.put(3 * BUCKET + 2048, &torn);
    only_at(&check(&made.finish()), "F19", 3 * BUCKET + 2048);
}

/// T172.
#[test]
fn a_valid_entry_behind_a_damaged_one_is_an_error() {
    let mut made = Made::new();
    made.entries = vec![vec![], vec![], vec![]];
    let offset = made.entry_offsets()[1];
    let mut image = made.finish();
    image[offset as usize + 30] ^= 4;
    let report = check(&image);
    assert!(report.counts[&("F19", Error)] >= 2, "{:?}", report.findings);
}

#[test]
fn a_key_that_must_not_be_replayed_is_met() {
    let mut made = Made::new();
    let beyond = Key::extent(0, 100, 8, pointer(9999, 1), true);
    made.entries = vec![vec![extent(100, 8, DATA, true), beyond]];
    only(&check(&made.finish()), "F16", Error);
}

#[test]
fn a_set_uuid_that_is_not_the_journals_is_named() {
    let mut made = Made::new();
    made.superblock.set_uuid = [3; 16];
    let report = check(&made.finish());
    only(&report, "F10", Error);
    assert_eq!(report.findings[0].structure, "superblock");
    only(&check(&blank_journal()), "F10", Error);
}

fn blank_journal() -> Vec<u8> {
    let mut image = Made::new().finish();
    image[3 * BUCKET as usize..4 * BUCKET as usize].fill(0);
    image
}

#[test]
fn a_chain_that_leads_astray_or_is_damaged_is_met() {
    let mut made = Made::new();
    made.head.prio_bucket = 100_000;
    only(&check(&made.finish()), "F20", Error);
    let mut image = Made::new().finish();
    image[(PRIOS * BUCKET) as usize + 3000] ^= 1;
    only_at(&check(&image), "F21", PRIOS * BUCKET);
}

#[test]
fn keys_out_of_order_or_on_top_of_each_other_are_met() {
    let (first, second) = (extent(100, 8, DATA, false), extent(200, 8, DATA + 1, true));
    only(&check(&leaf(&[vec![second, first]]).finish()), "F32", Error);
    let over = extent(104, 8, DATA + 1, true);
    only(&check(&leaf(&[vec![first, over]]).finish()), "F32", Error);
    // In another set it is how things are overwritten.
    let report = check(&leaf(&[vec![first], vec![over]]).finish());
    assert_eq!(met(&report), []);
}

#[test]
fn a_key_outside_its_node_is_met() {
    let mut made = Made::new();
    made.root_over(&[(50, Pos::new(0, 180)), (51, Pos::MAX)]);
    made.node(50, &[vec![extent(176, 8, DATA, true)]]);
    made.node(51, &[vec![]]);
    only_at(&check(&made.finish()), "F33", 50 * BUCKET + 32);
}

#[test]
fn a_leaf_key_that_cannot_be_is_met() {
    let dirty_hole = Key::hole(0, 100, 8).with_dirty(true);
    let across = Key::extent(0, 100, 8, pointer(DATA, 1).advance(12), true);
    let other_device = Key::extent(0, 100, 8, Ptr(pointer(DATA, 1).0 | 1 << 51), true);
    for key in [dirty_hole, across, other_device] {
        only_at(
            &check(&leaf(&[vec![key]]).finish()),
            "F34",
            ROOT * BUCKET + 32,
        );
    }
}

#[test]
fn children_that_do_not_fit_their_parent_are_met() {
    let with_root = |children: Vec<Key>| {
        let mut made = Made::new();
        made.node(50, &[vec![]]);
        made.node(51, &[vec![]]);
        made.node(ROOT, &[children]);
        made.head.btree_level = 1;
        check(&made.finish())
    };
    let made = Made::new();
    let (left, right) = (
        made.child(50, Pos::new(0, 180), 1),
        made.child(51, Pos::MAX, 1),
    );
    assert_eq!(met(&with_root(vec![left, right])), []);
    only(&with_root(vec![left]), "F39", Error);
    only(&with_root(vec![made.child(50, Pos::MAX, 0)]), "F38", Error);
    only(&with_root(vec![right, left]), "F31", Error);
    only(
        &with_root(vec![left, right.with_dirty(true)]).clone_of("F36"),
        "F36",
        Error,
    );
    let twice = with_root(vec![left, made.child(50, Pos::MAX, 1)]);
    only(&twice, "F40", Error);
}

impl Report {
    /// What else a bad key brings with it is left out.
    fn clone_of(&self, id: &'static str) -> Report {
        let mut report = self.clone();
        report.counts.retain(|key, _| key.0 == id);
        report
    }
}

#[test]
fn two_live_children_at_one_position_are_met() {
    let mut made = Made::new();
    made.node(50, &[vec![]]);
    made.node(51, &[vec![]]);
    let child = |bucket| made.child(bucket, Pos::MAX, 1);
    let sets = [vec![child(50)], vec![child(51)]];
    made.node(ROOT, &sets);
    made.head.btree_level = 1;
    only(&check(&made.finish()), "F37", Error);
}

#[test]
fn a_freeing_key_takes_the_replaced_child_out_of_the_tree() {
    let mut made = Made::new();
    made.node(51, &[vec![]]);
    let freeing = Key::freeing(made.geometry.node_sectors, pointer(50, 2));
    let sets = [
        vec![made.child(50, Pos::MAX, 1)],
        vec![freeing, made.child(51, Pos::MAX, 1)],
    ];
    made.node(ROOT, &sets);
    made.head.btree_level = 1;
    let report = check(&made.finish());
    only(&report, "F44", Note);
    assert_eq!(report.sets[0].nodes, 2);
}

/// T175.
#[test]
fn a_damaged_last_set_names_the_range_in_doubt() {
    let mut made = Made::new();
    let last = made.node(
        ROOT,
        &[
            vec![extent(100, 8, DATA, false)],
            vec![extent(200, 8, DATA + 1, true)],
        ],
    );
    let mut image = made.finish();
    image[last as usize + 40] ^= 1;
    let report = check(&image);
    only(&report, "F46", Error);
    assert!(
        report.findings[0].message.contains("0:0 to MAX"),
        "{:?}",
        report.findings
    );
    assert!(!report.sets[0].has_extents && !report.unchecked.is_empty());
}

#[test]
fn a_set_that_is_only_not_found_any_more_is_met() {
    let mut made = Made::new();
    let sets = [
        vec![extent(100, 8, DATA, false)],
        vec![extent(200, 8, DATA + 1, true)],
    ];
    let last = made.node(ROOT, &sets);
    let mut image = made.finish();
    image[last as usize + 17] ^= 1;
    only_at(&check(&image), "F46", last + 16);
    // Of another incarnation of the bucket nothing is known.
    let mut made = Made::new();
    let magic = made.geometry.set_magic;
    let words = brigade_format::key_words(&sets[1]);
    let leftover =
        |r#gen| brigade_format::node::encode_bset(&words, 99, pointer(ROOT, r#gen), magic, 512);
    made.put(ROOT * BUCKET + 512, &leftover(0));
    let image = made.image.clone();
    assert_eq!(met(&check(&made.finish())), []);
    let mut made = Made {
        image,
        ..Made::new()
    };
    made.put(ROOT * BUCKET + 512, &leftover(1));
    only(&check(&made.finish()), "F46", Warning);
}

#[test]
fn a_pointer_of_another_generation_than_its_node_is_told_from_a_damaged_node() {
    let mut made = Made::new();
    made.head.btree_root = made.child(ROOT, Pos::MAX, 2);
    let report = check(&made.finish());
    assert_eq!(report.findings[0].structure, "pointer to a btree node");
}

#[test]
fn a_level_that_the_root_does_not_have_is_met_in_the_journal() {
    let mut made = Made::new();
    made.node(50, &[vec![extent(100, 8, DATA, true)]]);
    made.root_over(&[(50, Pos::MAX)]);
    for level in [0, 2] {
        let mut made = Made {
            image: made.image.clone(),
            ..Made::new()
        };
        made.head.btree_level = level;
        let report = check(&made.finish());
        let met = report
            .findings
            .iter()
            .any(|finding| finding.id == "F30" && finding.structure == "journal entry 1");
        assert!(met, "{level}: {:?}", report.findings);
    }
}

#[test]
fn pointers_that_lead_to_something_else_are_met_as_well_as_what_they_lead_to() {
    let mut made = Made::new();
    made.head.btree_root = made.child(70, Pos::MAX, 1);
    let report = check(&made.finish());
    assert_eq!(report.findings[0].structure, "pointer to a btree node");
    let mut made = Made::new();
    made.head.prio_bucket = 70;
    let report = check(&made.finish());
    assert_eq!(met(&report), [("F20", Error), ("F21", Error)]);
    assert_eq!(report.findings[0].structure, "journal entry 1");
}

#[test]
fn a_bucket_with_two_owners_is_met() {
    for bucket in [1, 3, PRIOS, UUIDS, ROOT] {
        let report = check(&leaf(&[vec![extent(100, 8, bucket, true)]]).finish());
        let id = if bucket < 2 { "F34" } else { "F40" };
        only_at(&report, id, ROOT * BUCKET + 32);
    }
    let mut made = Made::new();
    made.head.uuid_bucket = Key::node(Pos::ZERO, BUCKET_SECTORS, pointer(PRIOS, 1));
    let report = check(&made.finish());
    assert!(
        report.counts.contains_key(&("F40", Error)),
        "{:?}",
        report.findings
    );
}

#[test]
fn a_node_whose_bucket_was_given_away_is_met_where_it_says_so() {
    let mut made = Made::new();
    made.gens[ROOT as usize].1 = Gen(2);
    let report = check(&made.finish());
    only_at(&report, "F40", PRIOS * BUCKET + 40 + 3 * ROOT);
}

#[test]
fn a_sector_of_the_cache_in_two_extents_is_met() {
    let twice = [extent(100, 8, DATA, true), extent(200, 8, DATA, true)];
    let report = check(&leaf(&[twice.to_vec()]).finish());
    only_at(&report, "F41", ROOT * BUCKET + 32 + 24);
    let mut made = leaf(&[vec![twice[0]]]);
    made.entries = vec![vec![twice[1]]];
    only(&check(&made.finish()), "F41", Error);
    // The same key in both places is one extent.
    let mut made = leaf(&[vec![twice[0]]]);
    made.entries = vec![vec![twice[0]]];
    assert_eq!(met(&check(&made.finish())), []);
}

#[test]
fn keys_too_far_behind_are_met_and_hidden_ones_noted() {
    let old = Key::extent(0, 100, 8, pointer(DATA, 0), false);
    let behind = |by: u8, sets: &[Vec<Key>]| {
        let mut made = leaf(sets);
        made.gens[DATA as usize].1 = Gen(by);
        check(&made.finish())
    };
    assert_eq!(met(&behind(96, &[vec![old]])), []);
    only(&behind(97, &[vec![old]]), "F42", Error);
    only(
        &behind(97, &[vec![old], vec![Key::hole(0, 96, 16)]]),
        "F42",
        Note,
    );
}

#[test]
fn lost_data_is_told_from_what_was_written_back() {
    let stale = Key::extent(0, 100, 8, pointer(DATA, 0), true);
    // In a leaf under a root it is lost.
    let mut made = Made::new();
    made.root_over(&[(50, Pos::MAX)]);
    made.node(50, &[vec![stale]]);
    only(&check(&made.finish()), "F43", Error);
    // A kernel leaves it in a root that is a leaf; of a flash-only volume it is lost there, too.
    only(&check(&leaf(&[vec![stale]]).finish()), "F43", Warning);
    let mut made = leaf(&[vec![stale]]);
    made.table[0] = UuidEntry::flash_only([7; 16], [0; 32], 5, 1000);
    only(&check(&made.finish()), "F43", Error);
    // By replay alone.
    let mut made = Made::new();
    made.entries = vec![vec![stale]];
    only(&check(&made.finish()), "F43", Note);
    // Decided by a newer key.
    let mut made = leaf(&[vec![stale]]);
    made.entries = vec![vec![Key::hole(0, 100, 8)]];
    assert_eq!(met(&check(&made.finish())), []);
}

/// T165.
#[test]
fn live_dirty_data_under_a_stale_replayed_key_is_an_error_unless_proved_newer() {
    let stale = Key::extent(0, 100, 8, pointer(DATA, 0), true);
    let moved = extent(100, 8, DATA + 1, true);
    let mut made = leaf(&[vec![moved]]);
    made.entries = vec![vec![stale]];
    only(&check(&made.finish()), "F47", Error);
    let mut made = leaf(&[vec![stale], vec![moved]]);
    made.entries = vec![vec![stale]];
    only(&check(&made.finish()), "F47", Warning);
}

#[test]
fn slots_and_their_extents_are_compared() {
    let key = |inode| Key::extent(inode, 100, 8, pointer(DATA, 1), true);
    only(&check(&leaf(&[vec![key(3)]]).finish()), "F51", Error);
    let mut made = leaf(&[vec![key(1)]]);
    made.table[1] = UuidEntry::cached([8; 16], [0; 32], 5);
    made.table[1].invalidate(9);
    only(&check(&made.finish()), "F51", Note);
    let mut made = leaf(&[vec![key(1)]]);
    made.table[1] = UuidEntry::flash_only([7; 16], [0; 32], 5, 104);
    only(&check(&made.finish()), "F53", Warning);
    let mut made = Made::new();
    made.table[1] = made.table[0].clone();
    only(&check(&made.finish()), "F52", Error);
}

#[test]
fn a_backing_device_is_compared_with_its_slot() {
    let dirty = || leaf(&[vec![extent(100, 8, DATA, true)]]);
    let none = |report: Report| assert_eq!(met(&report), [], "{:?}", report.findings);
    none(beside(dirty(), BackingState::Dirty, 4096));
    only(&beside(dirty(), BackingState::Clean, 4096), "F62", Note);
    only(&beside(dirty(), BackingState::Dirty, 104), "F64", Error);
    only(&beside(dirty(), BackingState::Stale, 104), "F61", Note);
    let without_slot = || {
        let mut made = Made::new();
        made.table[0] = UuidEntry::EMPTY;
        made
    };
    only(
        &beside(without_slot(), BackingState::Dirty, 4096),
        "F61",
        Error,
    );
    let mut other_uuid = dirty();
    other_uuid.table[0].uuid[3] ^= 1;
    let report = beside(other_uuid, BackingState::Dirty, 4096);
    only(&report, "F61", Error);
    assert_eq!(report.findings[0].structure, "uuid table");
    only(
        &beside(without_slot(), BackingState::Clean, 4096),
        "F61",
        Note,
    );
    none(beside(without_slot(), BackingState::None, 4096));
    // A set on blocks of 4 KiB takes no device with smaller ones.
    let cache = Made::with_blocks(8).finish();
    let attached = |state| {
        let back = backing(state, 4096);
        let devices = [device("c", &cache), device("b", &back)];
        run(&devices, &Options::default(), &mut |_| {})
    };
    only(&attached(BackingState::Clean), "F60", Error);
    only(&attached(BackingState::None), "F60", Warning);
    let blank = || {
        let mut made = Made::new();
        made.superblock.set_sync(false);
        made
    };
    only(&beside(blank(), BackingState::Dirty, 4096), "F61", Error);
    none(beside(blank(), BackingState::None, 4096));
}

#[test]
fn clean_data_is_compared_with_the_backing_device_if_asked() {
    let clean = || leaf(&[vec![extent(100, 8, DATA, false)]]);
    assert_eq!(met(&beside(clean(), BackingState::Clean, 4096)), []);
    let mut made = clean();
    made.put(DATA * BUCKET + 513, &[1]);
    let report = beside(made, BackingState::Clean, 4096);
    only(&report, "F70", Warning);
    assert_eq!(
        (&*report.findings[0].device, report.findings[0].offset),
        ("b", 101 * 512)
    );
}

/// A leaf of a few kilobytes can give the same sectors of the cache to extents of terabytes.
#[test]
fn data_that_belongs_to_two_extents_is_compared_once() {
    let twice = [extent(100, 8, DATA, false), extent(200, 8, DATA, false)];
    let mut made = leaf(&[twice.to_vec()]);
    made.put(DATA * BUCKET + 513, &[1]);
    let report = beside(made, BackingState::Clean, 4096);
    let ids: Vec<_> = report.findings.iter().map(|found| found.id).collect();
    assert_eq!(ids, ["F70", "F41"]);
}

#[test]
fn two_devices_that_pass_for_one_are_an_error() {
    let (cache, back) = (Made::new().finish(), backing(BackingState::Clean, 4096));
    let both = |devices: &[(&str, &Vec<u8>)]| {
        let devices: Vec<_> = devices
            .iter()
            .map(|(name, image)| device(name, image))
            .collect();
        run(&devices, &Options::default(), &mut |_| {})
    };
    only(
        &both(&[("c", &cache), ("d", &cache), ("b", &back)]),
        "F3",
        Error,
    );
    only(
        &both(&[("c", &cache), ("b", &back), ("e", &back)]),
        "F61",
        Error,
    );
    only(&both(&[("b", &back)]), "F61", Note);
}

#[test]
fn a_limit_of_memory_leaves_nothing_unsaid() {
    let twice = [extent(100, 8, DATA, true), extent(200, 8, DATA, true)];
    let image = leaf(&[twice.to_vec()]).finish();
    let options = Options {
        memory_max: 1,
        ..Options::default()
    };
    let report = check_with(&image, &options);
    only(&report, "F41", Error);
    let mut made = Made::new();
    made.entries = vec![vec![extent(100, 8, DATA, true)], vec![]];
    let report = check_with(&made.finish(), &options);
    assert_eq!(
        report.verdict(),
        Verdict::Unchecked,
        "{:?}",
        report.findings
    );
}
