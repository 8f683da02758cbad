//! Small worlds completely, large ones at random, and the rules one by one.

use std::collections::BTreeSet;

use brigade_format::{BucketNr, Gen, Ptr};
use proptest::prelude::*;

use super::bucket::Place;
use super::twin::{Step, World, dice};
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

/// A number from the environment, for longer runs than the gate's.
fn asked_for(name: &str, default: u64) -> u64 {
    let asked = std::env::var(name).ok();
    asked.map_or(default, |text| text.parse().expect("a number"))
}

/// Takes every sequence of these steps up to a length, but each world that is met again only once: what comes after it was
/// seen. In each world the power fails in every way.
fn explore(world: &World, steps: &[Step], depth: u32) -> BTreeSet<[u64; 2]> {
    let started = std::time::Instant::now();
    let mut seen: BTreeSet<[u64; 2]> = BTreeSet::from([world.digest()]);
    let mut worlds = vec![world.clone()];
    let (mut taken, mut crashes) = (0u64, 0);
    for level in 1..=depth {
        let mut next = Vec::new();
        for world in &worlds {
            for step in steps {
                let mut changed = world.clone();
                changed.step(*step);
                taken += 1;
                if seen.insert(changed.digest()) {
                    crashes += changed.crash_every_way();
                    if level < depth {
                        next.push(changed);
                    }
                }
            }
        }
        worlds = next;
    }
    let sequences: u64 = (1..=depth)
        .map(|depth| (steps.len() as u64).pow(depth))
        .sum();
    println!(
        "{sequences} sequences of up to {depth} of {} steps: {} worlds, {taken} steps taken, {crashes} power losses, {:.1} s",
        steps.len(),
        seen.len(),
        started.elapsed().as_secs_f32()
    );
    seen
}

/// The worlds that all sequences lead to, each gone through to its end.
fn explore_all(world: &World, steps: &[Step], depth: u32, seen: &mut BTreeSet<[u64; 2]>) {
    seen.insert(world.digest());
    for step in steps.iter().filter(|_| depth > 0) {
        let mut changed = world.clone();
        changed.step(*step);
        explore_all(&changed, steps, depth - 1, seen);
    }
}

/// How long the sequences are.
fn depth() -> u32 {
    asked_for("BRIGADE_ALLOC_DEPTH", 8) as u32
}

#[test]
fn every_short_history_of_a_five_bucket_world_keeps_the_invariants() {
    let steps = [
        Step::Allocate {
            stream: 1,
            sectors: 4,
            kind: Data::Cached,
        },
        Step::Insert { dirty: false },
        Step::Insert { dirty: true },
        Step::Clean(0),
        Step::TakeNode,
        Step::FreeNode(0),
        Step::BeginBatch,
        Step::Durable,
        Step::AbandonBatch,
    ];
    explore(&World::new(CONFIG, SIZES), &steps, depth());
}

#[test]
fn every_short_history_of_a_full_world_keeps_the_invariants() {
    let mut world = World::new(CONFIG, SIZES);
    // Three buckets of data, the reserves untouched.
    for dirty in [false, false, true] {
        world.step(Step::Allocate {
            stream: 1,
            sectors: 4,
            kind: Data::Cached,
        });
        world.step(Step::Insert { dirty });
    }
    let steps = [
        Step::Allocate {
            stream: 2,
            sectors: 2,
            kind: Data::Flash,
        },
        Step::Insert { dirty: true },
        Step::Clean(2),
        Step::Remove(0),
        Step::TakeNode,
        Step::BeginBatch,
        Step::BeginTable,
        Step::Durable,
        Step::AbandonBatch,
        Step::CloseOpen,
    ];
    explore(&world, &steps, depth());
}

/// A world with a clean and a dirty bucket, and steps with pins, power losses and garbage collection.
fn crashing() -> (World, [Step; 11]) {
    let mut world = World::new(CONFIG, SIZES);
    for dirty in [false, true] {
        world.step(Step::Allocate {
            stream: 1,
            sectors: 4,
            kind: Data::Cached,
        });
        world.step(Step::Insert { dirty });
    }
    let steps = [
        Step::Allocate {
            stream: 1,
            sectors: 4,
            kind: Data::Cached,
        },
        Step::Insert { dirty: false },
        Step::Hold(0),
        Step::LetGo,
        Step::Remove(0),
        Step::BeginBatch,
        Step::Durable,
        Step::Gc,
        Step::Flush,
        Step::Crash(0),
        Step::Crash(3),
    ];
    (world, steps)
}

#[test]
fn every_short_history_of_a_world_that_crashes_keeps_the_invariants() {
    let (world, steps) = crashing();
    explore(&world, &steps, depth());
}

/// Else going through a world only once would not be enough.
#[test]
fn worlds_that_look_alike_go_on_alike() {
    let (world, steps) = crashing();
    let mut all = BTreeSet::new();
    explore_all(&world, &steps, 4, &mut all);
    assert_eq!(all, explore(&world, &steps, 4));
}

fn step() -> impl Strategy<Value = Step> {
    any::<[u8; 4]>().prop_map(Step::of)
}

fn policy() -> impl Strategy<Value = Replacement> {
    prop_oneof![3 => Just(Replacement::Lru), 1 => Just(Replacement::Fifo), 1 => Just(Replacement::Random)]
}

proptest! {
    #[test]
    fn any_history_equals_its_twin_after_every_step(
        replacement in policy(),
        nbuckets in 8..40u64,
        table_buckets in 1..3u32,
        steps in proptest::collection::vec(step(), 1..300),
    ) {
        let config = Config { replacement, table_buckets, bucket_sectors: 8, ..config(nbuckets) };
        let sizes = Sizes { prio: 2 * table_buckets as usize, moving_gc: 1, slots: 3, batch: 4, ..SIZES };
        let mut world = World::new(config, sizes);
        steps.into_iter().for_each(|step| world.step(step));
    }
}

/// As the fuzz target, which begins anywhere.
#[test]
fn no_bytes_make_a_history_that_differs_from_its_twin() {
    let mut dice = dice(5);
    for length in 0..300 {
        let bytes: Vec<u8> = (0..length * 8).map(|_| dice() as u8).collect();
        super::fuzzing::steps(&bytes);
    }
}

/// So many steps at random. Histories come from a seed, so a failure repeats.
fn long_run(replacement: Replacement, seed: u64) {
    let steps = asked_for("BRIGADE_ALLOC_STEPS", 150_000);
    let sizes = Sizes {
        prio: 2,
        moving_gc: 1,
        slots: 3,
        batch: 6,
        ..SIZES
    };
    let config = Config {
        bucket_sectors: 8,
        replacement,
        ..config(16)
    };
    let mut world = World::new(config, sizes);
    let mut dice = dice(seed);
    let started = std::time::Instant::now();
    for _ in 0..steps {
        world.step(Step::of((dice() as u32).to_le_bytes()));
    }
    println!(
        "{replacement:?}: {steps} steps, {} recycled, {} crashes, {:.1} s",
        world.recycled,
        world.crashes,
        started.elapsed().as_secs_f32()
    );
    assert!(world.handed_out > steps / 12);
    assert!(world.recycled > steps / 40, "gens come round");
}

#[test]
fn a_long_run_of_lru_equals_its_twin() {
    long_run(Replacement::Lru, 1);
}

#[test]
fn a_long_run_of_fifo_equals_its_twin() {
    long_run(Replacement::Fifo, 2);
}

#[test]
fn a_long_run_of_random_equals_its_twin() {
    long_run(Replacement::Random, 3);
}

/// So many buckets that the order of victims has several runs in a group.
#[test]
fn a_run_with_many_buckets_equals_its_twin() {
    for (seed, replacement) in [
        (6, Replacement::Lru),
        (7, Replacement::Fifo),
        (8, Replacement::Random),
    ] {
        let config = Config {
            bucket_sectors: 8,
            replacement,
            ..config(600)
        };
        let sizes = Sizes {
            btree: 4,
            prio: 2,
            batch: 40,
            ..SIZES
        };
        let mut world = World::new(config, sizes);
        let mut dice = dice(seed);
        for _ in 0..asked_for("BRIGADE_ALLOC_STEPS", 150_000) / 20 {
            let bytes = (dice() as u32).to_le_bytes();
            let step = match Step::of(bytes) {
                // It loses nothing, so that buckets stay full.
                Step::Crash(_) => Step::Crash(bytes[1] % 2),
                Step::Insert { .. } => Step::Insert {
                    dirty: bytes[2] < 20,
                },
                step => step,
            };
            world.step(step);
        }
        assert!(world.recycled > 300, "{} recycled", world.recycled);
    }
}

/// Gens of one bucket come round again and again while the power fails; the world looks at every pointer that is left. For
/// long times there is no collection, no table or no power loss, so that gens run as far ahead as they may.
#[test]
fn a_bucket_reused_many_times_never_brings_an_old_pointer_back() {
    let reuses = asked_for("BRIGADE_ALLOC_REUSES", 5_000);
    let mut world = World::new(config(5), SIZES);
    let mut dice = dice(4);
    let (mut steps, mut times) = (0u64, 0);
    let (mut age_max, mut lag_max) = (0, 0);
    let started = std::time::Instant::now();
    while world.reuses() < reuses {
        if steps.is_multiple_of(8192) {
            times = dice() as u8;
        }
        let [has_gc, has_tables, is_calm] = [times % 4 > 0, times / 4 % 4 > 0, times / 16 % 4 == 0];
        let which = dice() as u8;
        world.step(match dice() % 128 {
            0..28 => Step::Allocate {
                stream: 1,
                sectors: 4,
                kind: Data::Cached,
            },
            28..56 => Step::Insert { dirty: which < 16 },
            56..60 => Step::Clean(which),
            60..64 => Step::Remove(which),
            64..70 => Step::TakeNode,
            70..76 => Step::FreeNode(which),
            76..96 if has_tables => Step::BeginBatch,
            76..86 => Step::TakeNode,
            86..96 => Step::FreeNode(which),
            96..117 => Step::Durable,
            117 => Step::AbandonBatch,
            118..121 if has_gc => Step::Gc,
            121..125 => Step::Flush,
            125 => Step::CloseOpen,
            126 if !is_calm => Step::Crash(which),
            _ => Step::FreeNode(which),
        });
        age_max = age_max.max(world.alloc.need_gc());
        lag_max = lag_max.max(world.alloc.table_lag());
        steps += 1;
        assert!(steps < 200_000 + reuses * 400, "buckets are not reused");
    }
    println!(
        "{reuses} reuses of one bucket in {steps} steps with {} crashes, {:.1} s",
        world.crashes,
        started.elapsed().as_secs_f32()
    );
    assert!(world.crashes > reuses / 20);
    assert_eq!((age_max, lag_max), (94, 64), "gens went as far as they may");
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
