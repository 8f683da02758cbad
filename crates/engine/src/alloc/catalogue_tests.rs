//! Arithmetic and limits of the allocator that no rule's own test goes through: tables of cases, policies at their edges.

use brigade_format::{BucketNr, Gen, Ptr};
use std::sync::{Arc, Mutex};

use super::bucket::{Bucket, Place};
use super::{Allocator, Batch, Config, PRIO_FRESH, PRIO_METADATA, Replacement, Sizes};

const CONFIG: Config = Config {
    first_bucket: 1,
    nbuckets: 64,
    bucket_sectors: 16,
    block_sectors: 4,
    table_buckets: 1,
    journal_buckets: 0,
    replacement: Replacement::Lru,
};

fn ptr(nr: u64) -> Ptr {
    Ptr::new(nr * u64::from(CONFIG.bucket_sectors), Gen(0))
}

/// Buckets that hold clean data: number, recency, live sectors. A batch takes as many as asked for.
fn with_data(config: Config, batch: usize, buckets: &[(u64, u16, u32)]) -> Allocator {
    let sizes = Sizes {
        batch,
        ..Sizes::of(&config)
    };
    let mut alloc = Allocator::with_sizes(config, sizes);
    for (nr, prio, live) in buckets {
        alloc.set_gen(BucketNr(*nr), Gen(0), *prio);
        alloc.mark_referenced(BucketNr(*nr));
        alloc.add_live(ptr(*nr), *live, false);
    }
    alloc.start();
    alloc
}

fn numbers(batch: &Batch) -> Vec<u64> {
    batch.buckets().map(|nr| nr.0).collect()
}

fn recycled(alloc: &mut Allocator, random: impl FnMut() -> u64) -> Vec<u64> {
    alloc.gather(usize::MAX, random);
    alloc
        .begin_batch()
        .as_ref()
        .map(numbers)
        .unwrap_or_default()
}

/// T10: the kernel's marks are counts here, so there are none that could be invalid.
#[test]
fn a_bucket_may_go_if_it_is_idle_clean_unpinned_and_both_gens_have_room() {
    let places = [
        Place::Fixed,
        Place::Metadata,
        Place::Unused,
        Place::Incoming,
        Place::Ready,
        Place::Open,
        Place::Idle,
    ];
    let mut may_go = 0;
    for place in places {
        for dirty in [0, 1, 16] {
            for pin in [0, 1, u16::MAX] {
                for age in [0, 1, 93, 94, 128, 255u8] {
                    for lag in [0, 1, 63, 64, 255u8] {
                        let mut bucket = Bucket::new(place);
                        bucket.add_live(16, false);
                        bucket.add_live(dirty, true);
                        bucket.pin = pin;
                        bucket.r#gen = Gen(40);
                        bucket.last_gc = Gen(40u8.wrapping_sub(age));
                        bucket.durable_gen = Gen(40u8.wrapping_sub(lag));
                        let has_room = age < 94 && lag < 64;
                        let expected = place == Place::Idle && dirty == 0 && pin == 0 && has_room;
                        let is = bucket.is_eligible();
                        assert_eq!(is, expected, "{place:?} {dirty} {pin} {age} {lag}");
                        may_go += u32::from(is);
                    }
                }
            }
        }
    }
    assert_eq!(may_go, 9, "three distances each");
}

/// T11.
#[test]
#[should_panic(expected = "ALLOC-5")]
fn recycling_a_bucket_that_became_dirty_stops_the_program() {
    let mut alloc = with_data(CONFIG, 8, &[(10, 9, 4)]);
    alloc.add_live(ptr(10), 4, true);
    let _ = alloc.invalidate(BucketNr(10));
}

/// T11.
#[test]
#[should_panic(expected = "ALLOC-")]
fn recycling_metadata_stops_the_program() {
    let mut alloc = Allocator::new(CONFIG);
    alloc.mark_metadata(BucketNr(10));
    alloc.start();
    let _ = alloc.invalidate(BucketNr(10));
}

#[derive(Clone, Default)]
struct Listener(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Listener {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{}={value:?} ", field.name());
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0);
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// T12: what is lost is traced, and only if something is. (Here the counts go to zero at once: they are of live data.)
#[test]
fn recycling_adds_one_to_the_gen_makes_it_recent_and_is_traced_if_data_is_lost() {
    let listener = Listener::default();
    let events = listener.0.clone();
    let alloc = tracing::subscriber::with_default(listener, || {
        let mut alloc = with_data(CONFIG, 8, &[(10, 9, 4), (11, 9, 0)]);
        alloc.gather(usize::MAX, || 0);
        alloc
    });
    for nr in [10, 11].map(BucketNr) {
        assert_eq!(alloc.gen_of(nr), Gen(1));
        assert_eq!(alloc.prio_of(nr), PRIO_FRESH);
        assert_eq!(alloc.bucket(nr).place(), Place::Incoming);
    }
    let events = events.lock().unwrap();
    let lost = events.iter().filter(|it| it.contains("message=invalidate"));
    let lost: Vec<&String> = lost.collect();
    assert_eq!(lost.len(), 1, "{events:?}");
    assert!(lost[0].contains("sectors=4"), "{lost:?}");
}

/// T15, T16: after one very large request the steps it was too large for come with the next ones. Better: the kernel counts in 32 bits.
#[test]
fn each_1024th_of_the_size_is_one_step_and_no_request_is_more_than_one() {
    let config = Config {
        nbuckets: 2048,
        bucket_sectors: 1024,
        ..CONFIG
    };
    let sizes = Sizes::of(&config);
    let mut alloc = Allocator::with_sizes(config, sizes);
    alloc.account_traffic(1);
    assert_eq!(alloc.ageing.steps(), 1);
    for _ in 0..5 {
        alloc.account_traffic(2047);
        let before = alloc.ageing.steps();
        alloc.account_traffic(1);
        assert_eq!(alloc.ageing.steps(), before + 1, "at 2048 sectors");
    }
    assert_eq!(alloc.ageing.steps(), 6);
    alloc.account_traffic(3 * 2048 + 5);
    assert_eq!(alloc.ageing.steps(), 7);
    alloc.account_traffic(0);
    assert_eq!(alloc.ageing.steps(), 8, "what is left is caught up with");
}

/// T17: metadata and the lowest recency; the others are in the test of the step itself.
#[test]
fn a_step_leaves_metadata_alone_and_finds_the_lowest_recency() {
    let mut alloc = Allocator::new(CONFIG);
    for (nr, prio) in [(10, 0), (11, 7), (12, 300)] {
        alloc.set_gen(BucketNr(nr), Gen(0), prio);
        alloc.mark_referenced(BucketNr(nr));
    }
    alloc.mark_metadata(BucketNr(13));
    alloc.start();
    alloc.account_traffic(1);
    assert_eq!(alloc.prio_of(BucketNr(13)), PRIO_METADATA);
    let prios = [10, 11, 12].map(|nr| alloc.prio_of(BucketNr(nr)));
    assert_eq!((prios, alloc.ageing.min_prio), ([0, 6, 299], 6));
}

/// T20, T21.
#[test]
fn values_never_wrap_and_grow_with_recency_and_live_sectors() {
    let mut alloc = Allocator::new(CONFIG);
    for min_prio in [0, 1, 3640, 3641, 16384, PRIO_FRESH, PRIO_METADATA] {
        alloc.ageing.min_prio = min_prio;
        let mut before = (0, 0);
        for recency in [0, 1, 3640, 3641, 16384, PRIO_FRESH - 1, PRIO_FRESH] {
            let value = alloc.value(recency, 16);
            assert!(value >= before, "{min_prio} {recency}");
            before = value;
            let of_more = alloc.value(recency, 0xff_ffff);
            assert!(alloc.value(recency, 0) <= value && value <= of_more);
            assert!(of_more.0 < 1 << 42);
        }
    }
    for min_prio in [0, 800, 32760] {
        alloc.ageing.min_prio = min_prio;
        let eighth = u64::from(PRIO_FRESH - min_prio) / 8;
        assert_eq!(alloc.value(min_prio, 3).0, eighth * 3);
        assert_eq!(alloc.value(PRIO_FRESH, 3).0, eighth * 9 * 3);
    }
}

/// T22.
#[test]
fn of_ten_thousand_values_the_smallest_go_and_in_order() {
    let config = Config {
        nbuckets: 12_000,
        ..CONFIG
    };
    // Recencies in no order, each there once.
    let buckets: Vec<(u64, u16, u32)> = (0..10_000u64)
        .map(|at| (1000 + at, (1 + at * 7919 % 10_000) as u16, 16))
        .collect();
    let mut alloc = with_data(config, 500, &buckets);
    let mut expected = buckets;
    expected.sort_by_key(|(_, prio, _)| *prio);
    let expected: Vec<u64> = expected.iter().take(500).map(|(nr, ..)| *nr).collect();
    assert_eq!(recycled(&mut alloc, || 0), expected);
}

/// T24.
#[test]
fn with_fewer_than_a_batch_all_go_and_it_is_over() {
    let mut alloc = with_data(CONFIG, 8, &[(10, 9, 4), (12, 3, 4), (15, 5, 4)]);
    let gathered = alloc.gather_step(|| 0);
    assert_eq!((gathered.taken, gathered.is_over), (3, true));
    let batch = alloc.begin_batch().expect("a small one");
    assert_eq!(numbers(&batch), [12, 15, 10]);
    alloc.batch_durable(batch);
    assert_eq!(alloc.gather(usize::MAX, || 0), 0);
}

/// T27, T28.
#[test]
fn fifo_skips_what_may_not_go_goes_round_and_ends_if_there_is_none() {
    let config = Config {
        replacement: Replacement::Fifo,
        ..CONFIG
    };
    let list: Vec<(u64, u16, u32)> = (1..7).map(|nr| (nr, 9, 4)).collect();
    let mut alloc = with_data(config, 8, &list);
    alloc.pin(BucketNr(2));
    alloc.add_live(ptr(4), 4, true);
    assert_eq!(alloc.gather(3, || 0), 3);
    let first = alloc.begin_batch().expect("victims");
    assert_eq!(numbers(&first), [1, 3, 5]);
    alloc.batch_durable(first);
    alloc.unpin(BucketNr(2));
    // On from 5: 6, and round to 2, never below the first bucket.
    assert_eq!(recycled(&mut alloc, || 0), [6, 2]);
    let gathered = alloc.gather_step(|| 0);
    assert_eq!((gathered.taken, gathered.is_over), (0, true));
}

/// T30: chi-square of the first ones taken, with a generator of its own.
#[test]
fn random_takes_every_bucket_as_often_as_any_other() {
    let config = Config {
        nbuckets: 128,
        replacement: Replacement::Random,
        ..CONFIG
    };
    let list: Vec<(u64, u16, u32)> = (1..64).map(|nr| (nr, 9, 4)).collect();
    let mut x = 88_172_645_463_325_252u64;
    let mut dice = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let mut counts = [0u64; 128];
    let (rounds, each) = (2000, 5);
    for _ in 0..rounds {
        let mut alloc = with_data(config, each, &list);
        alloc.pin(BucketNr(7));
        let taken = recycled(&mut alloc, &mut dice);
        let different: std::collections::BTreeSet<_> = taken.iter().collect();
        assert_eq!((taken.len(), different.len()), (each, each), "each once");
        taken.iter().for_each(|nr| counts[*nr as usize] += 1);
    }
    assert_eq!((counts[0], counts[7]), (0, 0), "what may not go never does");
    let mean = (rounds * each as u64) as f64 / 62.0;
    let fair = (1..64)
        .filter(|nr| *nr != 7)
        .map(|nr| counts[nr] as f64 - mean);
    let chi_square: f64 = fair.map(|off| off * off / mean).sum();
    // With 61 degrees of freedom more than 120 has a chance of one in a hundred thousand.
    assert!(chi_square < 120.0, "{chi_square} {counts:?}");
}
