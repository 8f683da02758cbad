//! What is chosen, and where it goes.

use super::super::{Config, Replacement, Sizes};
use super::*;

const SIZES: Sizes = Sizes {
    btree: 2,
    prio: 2,
    moving_gc: 3,
    low_water: 2,
    batch: 4,
    slots: 4,
};

/// Forty buckets of 64 sectors, all of them empty.
fn empty() -> Allocator {
    let config = Config {
        first_bucket: 1,
        nbuckets: 41,
        bucket_sectors: 64,
        block_sectors: 8,
        table_buckets: 1,
        journal_buckets: 0,
        replacement: Replacement::Lru,
    };
    let mut alloc = Allocator::with_sizes(config, SIZES);
    alloc.start();
    alloc
}

/// Fills a bucket of a stream of its own and lets go of all but so much of it.
fn fill(alloc: &mut Allocator, at: u64, live: u32, dirty: bool) -> BucketNr {
    let place = alloc
        .allocate(at as u16 + 1, 1, at * 1000, 64, Data::Cached, false)
        .expect("room");
    assert_eq!(place.sectors, 64);
    if live > 0 {
        alloc.add_live(place.ptr, live, dirty);
    }
    alloc.release_pin(place.bucket);
    place.bucket
}

fn choose(alloc: &Allocator) -> Vec<BucketNr> {
    let mut chooser = alloc.choose_moves();
    while !alloc.choose_some(&mut chooser, 7) {}
    let chosen = alloc.chosen(chooser);
    chosen.buckets().map(|(nr, _)| nr).collect()
}

/// So much traffic that nothing used before counts as recent.
fn grow_old(alloc: &mut Allocator) {
    for _ in 0..1100 {
        alloc.account_traffic(64);
    }
}

/// T94.
#[test]
fn buckets_that_are_empty_full_pinned_or_metadata_are_not_chosen() {
    let mut alloc = empty();
    let good: Vec<_> = (0..4).map(|at| fill(&mut alloc, at, 8, true)).collect();
    fill(&mut alloc, 4, 0, false);
    fill(&mut alloc, 5, 33, true);
    fill(&mut alloc, 6, 64, true);
    let pinned = fill(&mut alloc, 7, 8, true);
    alloc.pin(pinned);
    alloc.take_metadata(Reserve::Btree).expect("a node");
    assert_eq!(choose(&alloc), good);
    alloc.unpin(pinned);
    assert_eq!(choose(&alloc).len(), 5);
}

#[test]
fn clean_data_moves_only_if_it_was_used_lately() {
    let mut alloc = empty();
    let buckets: Vec<_> = (0..6).map(|at| fill(&mut alloc, at, 8, at < 3)).collect();
    assert_eq!(choose(&alloc), buckets);
    grow_old(&mut alloc);
    assert_eq!(choose(&alloc), buckets[..3], "only the dirty ones");
    alloc.touch(buckets[4]);
    assert_eq!(choose(&alloc), [&buckets[..3], &buckets[4..5]].concat());
}

/// T94.
#[test]
fn what_gains_most_goes_first_and_no_more_than_there_is_room_for() {
    let mut alloc = empty();
    // Three buckets are kept for moves, and a quarter of what is left above the low mark; each takes two halves.
    let halves: Vec<_> = (0..20).map(|at| fill(&mut alloc, at, 32, true)).collect();
    let room = |alloc: &Allocator| {
        let spare = (alloc.ready_for_data() - alloc.low_water()) / SPARE_PART as usize;
        (alloc.lists.ready(Reserve::MovingGc).len() + spare) * 2
    };
    assert!(room(&alloc) < halves.len());
    assert_eq!(choose(&alloc).len(), room(&alloc));
    let emptier: Vec<_> = (20..23).map(|at| fill(&mut alloc, at, 8, true)).collect();
    let chosen = choose(&alloc);
    assert!(emptier.iter().all(|nr| chosen.contains(nr)));
    // Of equals the older ones.
    let mut alloc = empty();
    let old: Vec<_> = (0..6).map(|at| fill(&mut alloc, at, 32, true)).collect();
    grow_old(&mut alloc);
    let young: Vec<_> = (6..18).map(|at| fill(&mut alloc, at, 32, true)).collect();
    let chosen = choose(&alloc);
    assert!(old.iter().all(|nr| chosen.contains(nr)), "{chosen:?}");
    assert!(!young.iter().all(|nr| chosen.contains(nr)), "{chosen:?}");
}

#[test]
fn what_gains_nothing_is_left_alone() {
    let mut alloc = empty();
    fill(&mut alloc, 0, 32, true);
    assert_eq!(choose(&alloc), []);
    fill(&mut alloc, 1, 32, true);
    // Of two kinds these would take two buckets again.
    assert_eq!(choose(&alloc), []);
    fill(&mut alloc, 2, 32, true);
    assert_eq!(choose(&alloc), []);
    fill(&mut alloc, 3, 32, true);
    assert_eq!(choose(&alloc).len(), 4);
}

#[test]
fn moves_take_their_reserve_and_what_is_not_missed_and_fill_buckets_of_their_own() {
    let mut alloc = empty();
    let client = alloc.allocate(7, 1, 0, 8, Data::Cached, false).unwrap();
    let take = |alloc: &mut Allocator, reserve_only| {
        alloc.allocate_moving(1, 8, 64, Data::Cached, reserve_only)
    };
    let first = take(&mut alloc, false).unwrap();
    assert_ne!(first.bucket, client.bucket);
    // What is shared is left alone while somebody waits, or it is short.
    assert_eq!(take(&mut alloc, true), None);
    while take(&mut alloc, false).is_some() {}
    assert_eq!(alloc.ready_for_data(), alloc.low_water());
    assert_eq!(alloc.lists.ready(Reserve::MovingGc).len(), 3);
    while alloc.ready_for_data() > 0 {
        alloc
            .allocate(7, 1, 500, 64, Data::Cached, false)
            .expect("there is one");
    }
    // The reserve is nobody else's, and lasts as long as it lasts.
    assert_eq!((0..9).filter_map(|_| take(&mut alloc, true)).count(), 3);
    assert!(alloc.can_take_metadata(2));
    alloc.audit();
}

#[test]
fn a_bucket_that_was_recycled_is_not_the_one_that_was_chosen() {
    let mut alloc = empty();
    let buckets: Vec<_> = (0..4).map(|at| fill(&mut alloc, at, 8, true)).collect();
    let mut chooser = alloc.choose_moves();
    assert!(alloc.choose_some(&mut chooser, 100));
    let chosen = alloc.chosen(chooser);
    let (nr, r#gen) = (buckets[0], alloc.gen_of(buckets[0]));
    let ptr = Ptr::new(nr.0 * 64, r#gen);
    assert!(chosen.has(ptr) && chosen.has(ptr.advance(63)));
    assert!(!chosen.has(Ptr::new(nr.0 * 64, r#gen.next())));
    assert!(!alloc.is_emptied(nr, r#gen));
    alloc.sub_live(ptr, 8, true);
    assert!(alloc.is_emptied(nr, r#gen));
}
