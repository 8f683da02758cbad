//! The rules of the allocator one by one, by their numbers in `docs/allocator.md`, and the proof that each can fail.
//!
//! The table there names for every rule the tests that hold it and the deliberate mistakes that break it. With the feature
//! `instrumented`, each of those mistakes is made, and the tests of its row have to see it.

use brigade_format::{BucketNr, Gen, Ptr};

use super::bucket::Place;
use super::{
    Allocator, Batch, Config, Data, GEN_AGE_MAX, PRIO_FRESH, PRIO_METADATA, Placement, Replacement,
    Reserve, Sizes, TABLE_LAG_MAX, TABLE_LAG_WANTS_WRITE,
};

const CONFIG: Config = Config {
    first_bucket: 1,
    nbuckets: 64,
    bucket_sectors: 16,
    block_sectors: 4,
    table_buckets: 1,
    journal_buckets: 0,
    replacement: Replacement::Lru,
};

fn started(config: Config) -> Allocator {
    let mut alloc = Allocator::new(config);
    alloc.start();
    alloc
}

/// Buckets that hold clean data: number, recency, live sectors.
fn with_data(config: Config, buckets: &[(u64, u16, u32)]) -> Allocator {
    let mut alloc = Allocator::new(config);
    for (nr, prio, live) in buckets {
        alloc.set_gen(BucketNr(*nr), Gen(0), *prio);
        alloc.mark_referenced(BucketNr(*nr));
        alloc.add_live(first_sector(*nr, 0), *live, false);
    }
    alloc.start();
    alloc
}

fn first_sector(nr: u64, r#gen: u8) -> Ptr {
    Ptr::new(nr * u64::from(CONFIG.bucket_sectors), Gen(r#gen))
}

fn put(alloc: &mut Allocator, stream: u16, start: u64, sectors: u64) -> Option<Placement> {
    alloc.allocate(stream, 1, start, sectors, Data::Cached, false)
}

/// All that data may have is full of clean data.
fn full(nbuckets: u64) -> Allocator {
    let mut alloc = started(Config { nbuckets, ..CONFIG });
    while fill(&mut alloc).is_some() {}
    alloc
}

/// Takes a whole bucket and fills it with clean data.
fn fill(alloc: &mut Allocator) -> Option<BucketNr> {
    let placed = put(alloc, 1, 0, u64::from(CONFIG.bucket_sectors))?;
    alloc.add_live(placed.ptr, placed.sectors, false);
    alloc.release_pin(placed.bucket);
    Some(placed.bucket)
}

fn next_batch(alloc: &mut Allocator) -> Batch {
    alloc.gather(usize::MAX, || 0);
    alloc.begin_batch().expect("victims")
}

fn numbers(batch: &Batch) -> Vec<u64> {
    batch.buckets().map(|nr| nr.0).collect()
}

/// The table is durable, and the one before is free.
fn end(alloc: &mut Allocator, batch: Batch) {
    let table: Vec<BucketNr> = batch.table_buckets().iter().map(|one| one.nr).collect();
    alloc.batch_durable(batch);
    table.into_iter().for_each(|nr| alloc.free_metadata(nr));
}

// ---- A1, A2, A9: gens --------------------------------------------------------------------------------------------------

/// T2.
#[test]
fn a_pointer_is_good_only_while_its_gen_is_not_behind_its_buckets() {
    let mut alloc = Allocator::new(CONFIG);
    alloc.set_gen(BucketNr(3), Gen(5), 0);
    alloc.start();
    // The start may have added one to it.
    let own = alloc.gen_of(BucketNr(3)).0;
    assert!(!alloc.is_stale(first_sector(3, own)));
    assert!(alloc.is_stale(first_sector(3, own - 1)));
    assert!(
        !alloc.is_stale(first_sector(3, own + 1)),
        "newer is not stale"
    );
}

#[test]
fn a_bucket_that_is_recycled_outdates_all_its_pointers_and_nothing_else() {
    let mut alloc = with_data(CONFIG, &[(10, 9, 4), (11, 9, 4)]);
    alloc.pin(BucketNr(11));
    let batch = next_batch(&mut alloc);
    assert_eq!(numbers(&batch), [10]);
    assert!(alloc.is_stale(first_sector(10, 0)) && !alloc.is_stale(first_sector(11, 0)));
    assert_eq!(alloc.gen_of(BucketNr(10)), Gen(1));
    assert_eq!((alloc.live_of(BucketNr(10)), alloc.need_gc()), ((0, 0), 1));
    end(&mut alloc, batch);
}

/// T3.
#[test]
fn how_far_a_gen_is_from_its_oldest_pointer_is_known_at_once() {
    let mut alloc = Allocator::new(CONFIG);
    alloc.set_gen(BucketNr(10), Gen(255), 0);
    alloc.mark_referenced(BucketNr(10));
    alloc.note_pointer_gen(BucketNr(10), Gen(250));
    alloc.start();
    assert_eq!(alloc.need_gc(), 5);
    let batch = next_batch(&mut alloc);
    assert_eq!(alloc.gen_of(BucketNr(10)), Gen(0), "it wraps");
    assert_eq!(alloc.need_gc(), 6);
    end(&mut alloc, batch);
}

// ---- A3, A4, A22: tables -----------------------------------------------------------------------------------------------

/// T52.
#[test]
fn nothing_of_a_batch_is_handed_out_before_its_table_is_durable() {
    let mut alloc = full(64);
    let batch = next_batch(&mut alloc);
    let recycled = numbers(&batch);
    assert!(fill(&mut alloc).is_none());
    alloc.batch_durable(batch);
    // Reserves come first; what they leave is for data.
    let filled: Vec<u64> = std::iter::from_fn(|| fill(&mut alloc))
        .map(|nr| nr.0)
        .collect();
    assert!(!filled.is_empty() && filled.iter().all(|nr| recycled.contains(nr)));
}

/// T56.
#[test]
fn a_batch_whose_table_failed_releases_nothing_and_the_next_one_takes_it_along() {
    let mut alloc = full(64);
    let batch = next_batch(&mut alloc);
    let recycled = numbers(&batch);
    let table: Vec<BucketNr> = batch.table_buckets().iter().map(|one| one.nr).collect();
    alloc.abandon_batch(batch);
    assert!(fill(&mut alloc).is_none(), "the gens are not durable");
    table.into_iter().for_each(|nr| alloc.free_metadata(nr));
    let batch = alloc.begin_batch().expect("what was gathered before");
    assert_eq!(numbers(&batch), recycled);
    alloc.batch_durable(batch);
    assert!(fill(&mut alloc).is_some());
}

/// T54.
#[test]
fn one_table_pays_for_as_many_buckets_as_a_batch_holds() {
    let mut alloc = full(64);
    let batch = next_batch(&mut alloc);
    assert_eq!(batch.len(), alloc.lists.sizes.batch);
    assert_eq!(batch.table_buckets().len(), 1);
    end(&mut alloc, batch);
}

#[test]
fn a_table_says_what_was_true_when_it_was_begun() {
    let mut alloc = full(32);
    let node = alloc.take_metadata(Reserve::Btree).expect("a bucket");
    assert_eq!(alloc.bucket(node.nr).table_lag(), 1);
    let batch = alloc.begin_table_write().expect("buckets for it");
    // While it is written the gen goes on.
    alloc.free_metadata(node.nr);
    assert_eq!(alloc.bucket(node.nr).table_lag(), 2);
    alloc.batch_durable(batch);
    assert_eq!(alloc.bucket(node.nr).table_lag(), 1);
}

// ---- A5: ready ones ----------------------------------------------------------------------------------------------------

#[test]
fn more_buckets_are_wanted_before_the_last_one_is_gone() {
    let mut alloc = started(Config {
        nbuckets: 1024,
        ..CONFIG
    });
    while !alloc.wants_batch() {
        fill(&mut alloc).expect("not one allocation had to wait");
    }
    assert!(
        alloc.ready_for_data() >= 7,
        "{} left",
        alloc.ready_for_data()
    );
}

// ---- A7, A34, A35: unused buckets --------------------------------------------------------------------------------------

/// T45, T66.
#[test]
fn a_freed_node_is_used_again_without_a_table_and_one_gen_on() {
    let mut alloc = full(32);
    let nodes: Vec<_> = std::iter::from_fn(|| alloc.take_metadata(Reserve::Btree)).collect();
    let available = alloc.stats().available;
    let node = nodes[0];
    alloc.free_metadata(node.nr);
    assert_eq!(alloc.stats().available, available + 1);
    let again = alloc.take_metadata(Reserve::Btree).expect("the freed one");
    assert_eq!(again.nr, node.nr);
    assert_eq!(again.r#gen, node.r#gen.next());
    assert_eq!(alloc.stats().available, available);
}

#[test]
fn a_bucket_that_something_hidden_names_is_taken_over_only_with_a_table() {
    let mut alloc = Allocator::new(CONFIG);
    alloc.mark_referenced(BucketNr(4));
    alloc.start();
    assert_eq!(alloc.bucket(BucketNr(4)).place(), Place::Idle);
    let batch = next_batch(&mut alloc);
    assert_eq!(numbers(&batch), [4]);
    end(&mut alloc, batch);
}

// ---- A8, A10: how far gens may go --------------------------------------------------------------------------------------

/// T4, T5.
#[test]
fn a_bucket_whose_gen_is_94_ahead_of_a_pointer_waits_for_a_gc() {
    let mut alloc = Allocator::new(CONFIG);
    for (nr, oldest) in [(10, 7), (11, 6)] {
        alloc.set_gen(BucketNr(nr), Gen(100), 9);
        alloc.mark_referenced(BucketNr(nr));
        alloc.note_pointer_gen(BucketNr(nr), Gen(oldest));
    }
    alloc.start();
    let batch = next_batch(&mut alloc);
    assert_eq!(numbers(&batch), [10]);
    end(&mut alloc, batch);
    assert_eq!((alloc.need_gc(), alloc.gather(9, || 0)), (GEN_AGE_MAX, 0));
    assert_eq!(alloc.refusals().gen_age, 1);
    let mut base = alloc.gc_base();
    alloc.gc_finished(&mut base);
    assert_eq!((alloc.need_gc(), alloc.gather(9, || 0)), (0, 1));
}

/// T8.
#[test]
fn a_table_is_wanted_when_gens_run_ahead_of_it_though_buckets_abound() {
    let mut alloc = started(CONFIG);
    while alloc.table_lag() < TABLE_LAG_WANTS_WRITE {
        assert!(!alloc.wants_batch());
        let node = alloc.take_metadata(Reserve::Btree).expect("a bucket");
        alloc.free_metadata(node.nr);
    }
    assert!(alloc.ready_for_data() > alloc.low_water() && alloc.wants_batch());
    let batch = alloc.begin_batch().expect("a table for its own sake");
    end(&mut alloc, batch);
    assert!(alloc.table_lag() <= 1);
}

#[test]
fn no_gen_goes_further_ahead_of_the_durable_table_than_64() {
    let mut alloc = started(CONFIG);
    for _ in 0..64 * 64 * 2 {
        let Some(node) = alloc.take_metadata(Reserve::Btree) else {
            break;
        };
        alloc.free_metadata(node.nr);
        assert!(alloc.table_lag() <= TABLE_LAG_MAX);
    }
    assert_eq!(alloc.table_lag(), TABLE_LAG_MAX);
}

// ---- A13, A14, A15, A16, A19: who goes ---------------------------------------------------------------------------------

#[test]
fn a_recycled_bucket_is_as_recent_as_can_be() {
    let mut alloc = with_data(CONFIG, &[(10, 9, 4)]);
    let batch = next_batch(&mut alloc);
    assert_eq!(
        alloc.table_entries(10..11),
        [(PRIO_FRESH, Gen(1))],
        "and its table says so"
    );
    end(&mut alloc, batch);
}

/// T21.
#[test]
fn the_oldest_data_is_worth_an_eighth_of_fresh_data_per_sector() {
    // All one step of age from each other; before the first step the lowest recency is taken to be 0.
    let list = [(10, 0, 15), (11, 32768, 1), (12, 0, 8), (13, 0, 10)];
    let mut alloc = with_data(CONFIG, &list);
    // 15, 9 * 1, 8 and 10 eighths.
    let batch = next_batch(&mut alloc);
    assert_eq!(numbers(&batch), [12, 11, 13, 10]);
    end(&mut alloc, batch);
}

#[test]
fn what_was_read_since_the_order_heard_of_it_goes_by_what_it_is_worth_now() {
    let list: Vec<(u64, u16, u32)> = (10..14).map(|nr| (nr, 100, 4)).collect();
    let mut alloc = with_data(CONFIG, &list);
    alloc.touch(BucketNr(10));
    alloc.touch(BucketNr(12));
    let batch = next_batch(&mut alloc);
    assert_eq!(numbers(&batch), [11, 13, 10, 12]);
    end(&mut alloc, batch);
}

/// T27.
#[test]
fn fifo_goes_on_where_it_stopped_although_earlier_buckets_may_go_again() {
    let list: Vec<(u64, u16, u32)> = (10..14).map(|nr| (nr, 100, 4)).collect();
    let config = Config {
        replacement: Replacement::Fifo,
        ..CONFIG
    };
    let mut alloc = with_data(config, &list);
    assert_eq!(alloc.gather(2, || 0), 2);
    alloc.mark_let_go_again(BucketNr(10));
    assert_eq!(alloc.gather(1, || 0), 1);
    assert_eq!(
        alloc.bucket(BucketNr(12)).place(),
        Place::Incoming,
        "not 10 again"
    );
}

impl Allocator {
    /// Puts a gathered bucket back among those that hold data, as nothing but a long story does otherwise.
    fn mark_let_go_again(&mut self, nr: BucketNr) {
        self.lists.incoming.retain(|bucket| bucket.nr() != nr);
        self.go(nr, Place::Incoming, Place::Idle);
    }
}

// ---- A21, A25, A26, A53: reserves --------------------------------------------------------------------------------------

/// T37.
#[test]
fn the_reserve_of_the_table_is_filled_first_and_what_everybody_shares_last() {
    let config = Config {
        nbuckets: 2048,
        ..CONFIG
    };
    let sizes = Sizes {
        btree: 2,
        prio: 2,
        moving_gc: 2,
        batch: 7,
        ..Sizes::of(&config)
    };
    let none = Sizes {
        btree: 0,
        prio: 0,
        moving_gc: 0,
        ..sizes
    };
    let mut alloc = Allocator::with_sizes(config, none);
    for nr in 1..2048 {
        alloc.mark_referenced(BucketNr(nr));
    }
    alloc.start();
    alloc.lists.sizes = sizes;
    alloc.gather(7, || 0);
    let gathered = std::mem::take(&mut alloc.lists.incoming);
    let batch = Batch::new(gathered, Vec::new(), Vec::new());
    alloc.batch_in_progress = true;
    alloc.batch_durable(batch);
    let ready = |reserve| -> Vec<u64> {
        let list = alloc.lists.ready(reserve).iter();
        list.map(|bucket| bucket.nr().0).collect()
    };
    assert_eq!(ready(Reserve::Prio), [1, 2]);
    assert_eq!(ready(Reserve::Btree), [3, 4]);
    assert_eq!(ready(Reserve::MovingGc), [5, 6]);
    assert_eq!(ready(Reserve::Normal), [7]);
}

/// T38.
#[test]
fn everybody_takes_what_is_shared_before_their_own_reserve() {
    let mut alloc = full(64);
    let batch = next_batch(&mut alloc);
    end(&mut alloc, batch);
    assert!(alloc.lists.ready(Reserve::Normal).len() > 1);
    let kept = |alloc: &Allocator| {
        [Reserve::Btree, Reserve::Prio, Reserve::MovingGc].map(|one| alloc.lists.ready(one).len())
    };
    let before = kept(&alloc);
    while alloc.ready_for_data() > 0 {
        assert!(alloc.take_metadata(Reserve::Btree).is_some());
        assert_eq!(kept(&alloc), before);
    }
    assert!(alloc.take_metadata(Reserve::Btree).is_some());
    assert_eq!(kept(&alloc)[0], before[0] - 1, "now its own");
    assert_eq!(kept(&alloc)[1..], before[1..]);
}

#[test]
fn as_many_nodes_as_promised_can_be_taken_and_no_more() {
    let mut alloc = started(CONFIG);
    let promised = alloc.metadata_available();
    assert!(alloc.can_take_metadata(promised) && !alloc.can_take_metadata(promised + 1));
    let taken = std::iter::from_fn(|| alloc.take_metadata(Reserve::Btree)).count();
    assert_eq!(taken, promised);
}

// ---- A31, A32: just allocated ------------------------------------------------------------------------------------------

#[test]
fn what_was_taken_is_in_no_list_any_more() {
    let mut alloc = started(CONFIG);
    let node = alloc.take_metadata(Reserve::Btree).expect("a bucket");
    let placed = put(&mut alloc, 1, 0, 4).expect("a bucket");
    assert_eq!(alloc.bucket(node.nr).place(), Place::Metadata);
    assert_eq!(alloc.bucket(placed.bucket).place(), Place::Open);
    alloc.audit();
}

/// T41.
#[test]
fn data_just_placed_is_as_recent_as_can_be_and_metadata_is_marked_by_its_recency() {
    let mut alloc = started(CONFIG);
    let node = alloc.take_metadata(Reserve::Btree).expect("a bucket");
    let placed = put(&mut alloc, 1, 0, 4).expect("a bucket");
    let prio = |nr: BucketNr| alloc.table_entries(nr.0..nr.0 + 1)[0].0;
    assert_eq!(prio(node.nr), PRIO_METADATA);
    assert_eq!(prio(placed.bucket), PRIO_FRESH);
    assert_eq!(alloc.bucket(placed.bucket).pin, 2, "its slot and its key");
}

// ---- A50: the pool's end -----------------------------------------------------------------------------------------------

#[test]
fn buckets_closed_at_the_end_hold_no_pin_but_those_of_their_keys() {
    let mut alloc = started(CONFIG);
    let placed = put(&mut alloc, 1, 0, 4).expect("a bucket");
    alloc.close_open_buckets();
    assert_eq!(alloc.bucket(placed.bucket).pin, 1);
    alloc.release_pin(placed.bucket);
    assert_eq!(alloc.bucket(placed.bucket).pin, 0);
    assert_eq!(alloc.room_for(Data::Cached, false), 0);
}

// ---- the proof ---------------------------------------------------------------------------------------------------------

/// Makes each mistake of the table in a process of its own and runs the tests of its row there.
#[cfg(feature = "instrumented")]
mod mistakes {
    use crate::mutations::{self, Mutation};
    use std::collections::BTreeSet;
    use std::process::{Command, Output};

    const TABLE: &str = include_str!("../../../../docs/allocator.md");

    /// What stands in back quotes in a column.
    fn quoted(column: &str) -> Vec<&str> {
        column.split('`').skip(1).step_by(2).collect()
    }

    fn run(arguments: &[&str], mistake: &str) -> Output {
        let program = std::env::current_exe().expect("this test");
        let mut command = Command::new(program);
        command.args(arguments).env("BRIGADE_MISTAKE", mistake);
        let smaller = [
            ("PROPTEST_CASES", "40"),
            ("PROPTEST_MAX_SHRINK_ITERS", "0"),
            ("BRIGADE_ALLOC_DEPTH", "6"),
            ("BRIGADE_ALLOC_STEPS", "20000"),
            ("BRIGADE_ALLOC_REUSES", "500"),
            ("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1"),
            ("RUST_BACKTRACE", "0"),
        ];
        command.envs(smaller);
        command.output().expect("this test runs")
    }

    /// Full names of the tests of this program.
    fn all_tests() -> Vec<String> {
        let program = std::env::current_exe().expect("this test");
        let listed = Command::new(program).arg("--list").output();
        let listed = String::from_utf8(listed.expect("a list").stdout).expect("names");
        let name = |line: &str| Some(line.strip_suffix(": test")?.to_string());
        listed.lines().filter_map(name).collect()
    }

    fn mistake(name: &str) -> Mutation {
        let found = mutations::ALL.iter().find(|(_, text, _)| *text == name);
        found.unwrap_or_else(|| panic!("no mistake {name}")).0
    }

    /// Whether one of the tests sees the mistake.
    fn is_seen(tests: &[&String], name: &str) -> bool {
        let started = std::time::Instant::now();
        let mut arguments = vec!["--exact", "--test-threads", "1"];
        arguments.extend(tests.iter().map(|test| test.as_str()));
        let out = run(&arguments, name);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let has_run = said.contains(&format!("running {} test", tests.len()));
        assert!(has_run, "{name}: {said}");
        let seconds = started.elapsed().as_secs_f32();
        println!("{name}: {seconds:.1} s, {}", out.status);
        !out.status.success()
    }

    #[test]
    fn every_mistake_of_the_allocator_is_seen_by_the_tests_of_its_row() {
        let all = all_tests();
        let (mut seen, mut missed, mut left) = (BTreeSet::new(), Vec::new(), Vec::new());
        for row in TABLE.lines().filter(|line| line.starts_with("| A")) {
            let columns: Vec<&str> = row.split('|').map(str::trim).collect();
            let wanted = quoted(columns[4]);
            let is_here = |test: &&String| {
                wanted
                    .iter()
                    .any(|name| test.ends_with(&format!("::{name}")))
            };
            let tests: Vec<&String> = all.iter().filter(is_here).collect();
            for name in quoted(columns[5]) {
                let is_by_chance = !mutations::is_for_tests(mistake(name));
                if !tests.is_empty() && is_seen(&tests, name) {
                    seen.insert(name);
                } else if is_by_chance {
                    left.push(name);
                } else {
                    missed.push(format!("{}: {name} by {wanted:?}", columns[1]));
                }
            }
        }
        println!("{} mistakes are seen by the tests of their row", seen.len());
        println!("left to simulation: {left:?}");
        assert!(missed.is_empty(), "not seen:\n{}", missed.join("\n"));
        let of_alloc = mutations::ALL.iter().map(|(_, name, _)| *name);
        let unnamed: Vec<&str> = of_alloc
            .filter(|name| {
                name.starts_with("Alloc") && !seen.contains(name) && !left.contains(name)
            })
            .collect();
        assert!(unnamed.is_empty(), "in no row: {unnamed:?}");
    }
}
