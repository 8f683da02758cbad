//! The rules one by one, and whole histories beside the twin.

mod histories;

use brigade_format::{BucketNr, Gen, Ptr};

use super::bucket::Place;
use super::{Allocator, Batch, Config, Data, PRIO_FRESH, Replacement, Reserve, Sizes};
use crate::marks::{self, Mark};

const CONFIG: Config = Config {
    first_bucket: 1,
    nbuckets: 6,
    bucket_sectors: 4,
    block_sectors: 2,
    table_buckets: 1,
    journal_buckets: 0,
    replacement: Replacement::Lru,
};

const SIZES: Sizes = Sizes {
    btree: 1,
    prio: 1,
    moving_gc: 0,
    low_water: 1,
    batch: 2,
    slots: 2,
};

fn config(nbuckets: u64) -> Config {
    Config { nbuckets, ..CONFIG }
}

/// Marks are counted with the feature `instrumented` only.
fn assert_reached(mark: Mark) {
    assert!(
        !cfg!(feature = "instrumented") || marks::hits(mark) > 0,
        "{mark:?} is not reached"
    );
}

/// Everything that can be recycled at once.
fn next_batch(alloc: &mut Allocator) -> Option<Batch> {
    alloc.gather(usize::MAX, || 0);
    alloc.begin_batch()
}

fn started(config: Config) -> Allocator {
    let mut alloc = Allocator::new(config);
    alloc.start();
    alloc
}

fn cached(
    alloc: &mut Allocator,
    stream: u16,
    start: u64,
    sectors: u64,
) -> Option<super::Placement> {
    alloc.allocate(stream, 1, start, sectors, Data::Cached, false)
}

/// T44, T52.
#[test]
fn an_empty_device_starts_unused_and_needs_no_table_write_to_fill() {
    let mut alloc = started(config(64));
    assert_eq!(alloc.stats().available, 63);
    let mut filled = 0;
    while let Some(placement) = cached(&mut alloc, 1, filled * 4, 4) {
        alloc.add_live(placement.ptr, placement.sectors, false);
        alloc.release_pin(placement.bucket);
        filled += 1;
    }
    assert!(alloc.wants_batch());
    assert!(
        alloc.can_take_metadata(8),
        "data left the btree's reserve alone"
    );
    assert_eq!(alloc.stats().clean, filled);
    let batch = next_batch(&mut alloc).expect("clean buckets to recycle");
    assert!(
        !alloc.wants_batch() && next_batch(&mut alloc).is_none(),
        "one batch at a time"
    );
    assert!(
        cached(&mut alloc, 1, 0, 4).is_none(),
        "nothing before the table is durable"
    );
    alloc.batch_durable(batch);
    assert!(cached(&mut alloc, 1, 0, 4).is_some());
}

/// T63.
#[test]
fn what_is_named_or_holds_data_does_not_start_unused() {
    let mut alloc = Allocator::new(config(64));
    alloc.set_gen(BucketNr(3), Gen(7), 100);
    alloc.add_live(Ptr::new(3 * 4, Gen(8)), 4, true);
    alloc.mark_referenced(BucketNr(4));
    alloc.mark_metadata(BucketNr(5));
    alloc.set_gen(BucketNr(6), Gen(9), 65535);
    alloc.add_live(Ptr::new(6 * 4, Gen(8)), 4, true);
    alloc.add_live(Ptr::new(7 * 4, Gen(0)), 2, false);
    alloc.set_gen(BucketNr(7), Gen(0), 65535);
    alloc.start();
    let place = |nr: u64| alloc.bucket(BucketNr(nr)).place();
    assert_eq!(
        [place(3), place(4), place(5), place(7)],
        [Place::Idle, Place::Idle, Place::Metadata, Place::Idle]
    );
    assert_ne!(place(6), Place::Idle, "only a stale pointer names it");
    assert_eq!(alloc.gen_of(BucketNr(3)), Gen(8), "raised by the pointer");
    assert_eq!(alloc.live_of(BucketNr(3)), (4, 4));
    assert_eq!(
        alloc.prio_of(BucketNr(7)),
        PRIO_FRESH,
        "data does not keep the prio of metadata"
    );
}

#[test]
fn a_pointer_outside_the_device_is_stale_and_counts_nothing() {
    let mut alloc = Allocator::new(config(64));
    let outside = Ptr::new(64 * 4, Gen(0));
    alloc.add_live(outside, 4, true);
    alloc.start();
    alloc.sub_live(outside, 4, true);
    assert!(alloc.is_stale(outside));
}

/// T83.
#[test]
fn forged_counts_stick_instead_of_wrapping() {
    let mut alloc = Allocator::new(config(64));
    let ptr = Ptr::new(3 * 4, Gen(0));
    alloc.add_live(ptr, u32::MAX, true);
    alloc.add_live(ptr, u32::MAX, true);
    alloc.start();
    alloc.sub_live(ptr, u32::MAX, true);
    alloc.sub_live(ptr, u32::MAX, true);
    assert_eq!(alloc.live_of(BucketNr(3)), (0xff_ffff, 0xff_ffff));
}

/// T67, T68, T75.
#[test]
fn a_sequential_stream_keeps_its_bucket_and_others_get_their_own() {
    let mut alloc = started(Config {
        bucket_sectors: 16,
        ..config(256)
    });
    let first = cached(&mut alloc, 1, 0, 4).expect("space");
    let other = cached(&mut alloc, 2, 1000, 4).expect("space");
    assert_ne!(first.bucket, other.bucket);
    let next = cached(&mut alloc, 3, 4, 4).expect("space");
    assert_eq!(
        next.ptr,
        first.ptr.advance(4),
        "continuation of the extent beats the stream"
    );
    let same_stream = cached(&mut alloc, 2, 5000, 4).expect("space");
    assert_eq!(same_stream.ptr, other.ptr.advance(4));
    let flash = alloc
        .allocate(2, 1, 5004, 4, Data::Flash, false)
        .expect("space");
    assert_ne!(flash.bucket, other.bucket, "kinds of data do not mix");
    let after_flash = cached(&mut alloc, 2, 5004, 4).expect("space");
    assert_eq!(
        after_flash.ptr,
        other.ptr.advance(8),
        "nor do they close each other's buckets"
    );
    let rest = cached(&mut alloc, 3, 8, 100).expect("space");
    assert_eq!(rest.sectors, 8, "no more than the bucket has");
    assert_eq!(
        alloc.bucket(first.bucket).pin,
        3,
        "the slot's pin is gone, three keys hold theirs"
    );
}

#[test]
fn a_rest_smaller_than_a_block_is_wasted() {
    let mut alloc = started(Config {
        bucket_sectors: 16,
        block_sectors: 8,
        ..config(256)
    });
    let first = cached(&mut alloc, 1, 0, 9).expect("space");
    let next = cached(&mut alloc, 1, 9, 4).expect("space");
    assert_eq!(first.sectors, 9);
    assert_ne!(first.bucket, next.bucket);
}

/// T39, T40, T77.
#[test]
fn data_never_takes_what_is_kept_for_metadata_and_the_collector() {
    let mut alloc = started(Config {
        table_buckets: 2,
        ..config(64)
    });
    while cached(&mut alloc, 1, 0, 4).is_some() {}
    let kept = |alloc: &Allocator, reserve| alloc.lists.ready(reserve).len();
    let sizes = alloc.lists.sizes;
    assert_eq!(kept(&alloc, Reserve::Btree), sizes.btree);
    assert_eq!(kept(&alloc, Reserve::Prio), 4);
    assert!(
        alloc.allocate(0, 1, 0, 4, Data::Cached, true).is_some(),
        "the collector has its own"
    );
    assert_eq!(kept(&alloc, Reserve::MovingGc), sizes.moving_gc - 1);
    for _ in 0..sizes.btree {
        assert!(alloc.take_metadata(Reserve::Btree).is_some());
    }
    assert!(alloc.take_metadata(Reserve::Btree).is_none());
    assert!(
        alloc.begin_table_write().is_some(),
        "nodes leave the table's reserve alone"
    );
}

/// T14, T17.
#[test]
fn traffic_ages_what_is_not_pinned_one_step_per_1024th_of_the_cache() {
    let mut alloc = Allocator::new(Config {
        bucket_sectors: 1024,
        ..config(1024)
    });
    for nr in [3, 4, 5] {
        alloc.set_gen(BucketNr(nr), Gen(0), [1, 100, 100][nr as usize - 3]);
        alloc.mark_referenced(BucketNr(nr));
    }
    alloc.start();
    alloc.pin(BucketNr(5));
    let prios = |alloc: &Allocator| [3, 4, 5].map(|nr| alloc.prio_of(BucketNr(nr)));
    alloc.account_traffic(1);
    assert_eq!(
        prios(&alloc),
        [0, 99, 100],
        "the first request always rescales"
    );
    alloc.account_traffic(1023);
    assert_eq!(prios(&alloc), [0, 99, 100]);
    alloc.account_traffic(1);
    assert_eq!(prios(&alloc), [0, 98, 100], "what is at zero stays there");
    alloc.account_traffic(u64::MAX);
    alloc.account_traffic(u64::MAX);
}

fn with_data(buckets: &[(u64, u16, u32)]) -> Allocator {
    let mut alloc = Allocator::new(Config {
        bucket_sectors: 64,
        ..config(64)
    });
    for (nr, prio, live) in buckets {
        alloc.set_gen(BucketNr(*nr), Gen(0), *prio);
        alloc.mark_referenced(BucketNr(*nr));
        alloc.add_live(Ptr::new(nr * 64, Gen(0)), *live, false);
    }
    alloc.start();
    alloc
}

/// T22, T23, T25.
#[test]
fn the_least_valuable_go_first_and_ties_by_number() {
    let list = [
        (10, 100, 64),
        (11, 32768, 64),
        (12, 32768, 2),
        (13, 100, 64),
        (14, 32768, 0),
        (15, 0, 64),
    ];
    let mut alloc = with_data(&list);
    let order: Vec<u64> = next_batch(&mut alloc)
        .expect("a batch")
        .buckets()
        .map(|nr| nr.0)
        .collect();
    // Values 4196 * 64, 36864 * 64, 36864 * 2, as the first, 0, 4096 * 64. The batch takes four.
    assert_eq!(order, [14, 12, 15, 10]);
}

#[test]
fn fifo_goes_round_by_number() {
    let list = [
        (10, 9, 1),
        (11, 9, 1),
        (12, 9, 1),
        (13, 9, 1),
        (14, 9, 1),
        (15, 9, 1),
    ];
    let mut alloc = with_data(&list);
    alloc.set_replacement(Replacement::Fifo);
    let batch = next_batch(&mut alloc).expect("a batch");
    assert_eq!(
        batch.buckets().map(|nr| nr.0).collect::<Vec<_>>(),
        [10, 11, 12, 13]
    );
    alloc.batch_durable(batch);
    let batch = next_batch(&mut alloc).expect("a batch");
    assert_eq!(batch.buckets().map(|nr| nr.0).collect::<Vec<_>>(), [14, 15]);
}

#[test]
fn random_takes_what_the_dice_say_and_each_bucket_once() {
    let mut alloc = with_data(&[(10, 9, 1), (11, 9, 1), (12, 9, 1)]);
    alloc.set_replacement(Replacement::Random);
    let mut dice = [10, 10, 0, 11].into_iter().chain(std::iter::repeat(11));
    alloc.gather(usize::MAX, || dice.next().expect("endless"));
    let batch = alloc.begin_batch().expect("a batch");
    assert_eq!(
        batch.buckets().map(|nr| nr.0).collect::<Vec<_>>(),
        [11, 12, 10]
    );
}

#[test]
fn dirty_pinned_and_too_old_buckets_are_not_recycled() {
    marks::take();
    let mut alloc = Allocator::new(config(64));
    for nr in 10..16 {
        alloc.set_gen(BucketNr(nr), Gen(100), 1);
        alloc.mark_referenced(BucketNr(nr));
    }
    alloc.add_live(Ptr::new(10 * 4, Gen(100)), 4, true);
    alloc.note_pointer_gen(BucketNr(11), Gen(6));
    alloc.note_pointer_gen(BucketNr(12), Gen(7));
    alloc.start();
    alloc.pin(BucketNr(13));
    assert_eq!(alloc.need_gc(), 94);
    let batch = next_batch(&mut alloc).expect("a batch");
    assert_eq!(
        batch.buckets().map(|nr| nr.0).collect::<Vec<_>>(),
        [12, 14, 15]
    );
    assert_reached(Mark::AllocGenAtLimit);
    alloc.batch_durable(batch);
    let mut base = alloc.gc_base();
    alloc.gc_finished(&mut base);
    assert_eq!(alloc.need_gc(), 0);
    let batch = next_batch(&mut alloc).expect("the gc made the old one eligible");
    assert_eq!(batch.buckets().map(|nr| nr.0).collect::<Vec<_>>(), [11]);
}

#[test]
fn metadata_churn_without_table_writes_stops_before_gens_run_too_far_ahead() {
    marks::take();
    let mut alloc = started(config(16));
    let mut taken = 0u32;
    while let Some(node) = alloc.take_metadata(Reserve::Btree) {
        alloc.free_metadata(node.nr);
        taken += 1;
    }
    assert!(taken > 64, "{taken}");
    assert!(alloc.table_lag() <= 64 && alloc.wants_batch());
    let batch = next_batch(&mut alloc).expect("the table's reserve was not touched by nodes");
    assert_reached(Mark::AllocBatchOfNothing);
    alloc.batch_durable(batch);
    assert!(
        alloc.wants_batch(),
        "the table caught up, so the buckets can be recycled"
    );
    let batch = next_batch(&mut alloc).expect("victims");
    alloc.batch_durable(batch);
    assert!(alloc.can_take_metadata(1));
}

/// T45.
#[test]
fn in_use_follows_every_change_at_once() {
    let mut alloc = started(Config {
        bucket_sectors: 8,
        ..config(100)
    });
    assert_eq!(alloc.stats().in_use_percent, 1);
    let placement = cached(&mut alloc, 1, 0, 8).expect("space");
    alloc.add_live(placement.ptr, 8, true);
    assert_eq!((alloc.stats().dirty, alloc.stats().in_use_percent), (1, 2));
    alloc.sub_live(placement.ptr, 8, true);
    alloc.add_live(placement.ptr, 8, false);
    assert_eq!(
        (
            alloc.stats().dirty,
            alloc.stats().clean,
            alloc.stats().in_use_percent
        ),
        (0, 1, 1)
    );
}

/// T35.
#[test]
fn sizes_grow_with_the_device() {
    let small = Sizes::of(&config(128));
    assert_eq!(
        (
            small.moving_gc,
            small.batch,
            small.slots,
            small.btree,
            small.prio
        ),
        (2, 8, 4, 16, 2)
    );
    let large = Sizes::of(&Config {
        journal_buckets: 256,
        table_buckets: 7,
        ..config(1 << 20)
    });
    assert_eq!(
        (large.moving_gc, large.batch, large.slots),
        (1024, 10485, 128)
    );
    assert_eq!((large.btree, large.prio), (256, 14));
}
