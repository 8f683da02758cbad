//! Small worlds completely, large ones at random.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::twin::{Step, World, dice};
use super::super::{Config, Data, Replacement, Sizes, fuzzing};
use super::{CONFIG, SIZES, config};

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

/// T51, T53, T66.
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
    /// T51.
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
        fuzzing::steps(&bytes);
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

/// T26.
#[test]
fn a_long_run_of_lru_equals_its_twin() {
    long_run(Replacement::Lru, 1);
}

/// T27.
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

/// T9: gens of one bucket come round again and again while the power fails; the world looks at every pointer that is left. For
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
