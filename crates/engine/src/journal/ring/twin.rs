//! The ring beside a naive one that remembers every entry: nothing needed is ever overwritten, space is refused for a reason, and there is
//! always some for an entry that makes room, whenever a session ends and the next one goes on.

use super::{Ring, RingStart};
use proptest::prelude::*;
use std::collections::BTreeMap;

const BUCKET_SECTORS: u64 = 8;

/// Every entry and where it stands, by number.
#[derive(Default)]
struct Twin {
    entries: BTreeMap<u64, (u64, u64)>,
}

impl Twin {
    /// A bucket is begun anew: what was in it is gone.
    fn write(&mut self, seq: u64, sector: u64, sectors: u64) {
        let bucket = sector / BUCKET_SECTORS;
        if sector.is_multiple_of(BUCKET_SECTORS) {
            self.entries
                .retain(|_, (at, _)| *at / BUCKET_SECTORS != bucket);
        }
        let end = sector + sectors;
        assert!(end <= (bucket + 1) * BUCKET_SECTORS, "within its bucket");
        let overlaps = |(at, length): &(u64, u64)| *at < end && sector < at + length;
        assert!(
            !self.entries.values().any(overlaps),
            "two entries in one place"
        );
        self.entries.insert(seq, (sector, sectors));
    }

    /// Buckets without anything from `needed` on.
    fn free(&self, count: u64, needed: u64) -> u64 {
        let is_free = |bucket: &u64| {
            let mut needed = self.entries.range(needed..);
            !needed.any(|(_, (at, _))| at / BUCKET_SECTORS == *bucket)
        };
        (0..count).filter(is_free).count() as u64
    }

    /// What a new session finds.
    fn start(&self, count: u64) -> RingStart {
        let newest = self.entries.last_key_value();
        let (newest_start, newest_sectors) = newest.map_or((0, 1), |(_, place)| *place);
        let mut bucket_max_seq = vec![0; count as usize];
        for (seq, (sector, _)) in &self.entries {
            bucket_max_seq[(sector / BUCKET_SECTORS) as usize] = *seq;
        }
        RingStart {
            buckets: (0..count).collect(),
            newest_index: (newest_start / BUCKET_SECTORS) as usize,
            newest_end_sector: newest_start % BUCKET_SECTORS + newest_sectors,
            bucket_max_seq,
        }
    }
}

/// Sizes of entries, how far each one lets `last_seq` advance, in percent of what is open, and whether a session ends before it.
fn steps() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
    let advance = prop_oneof![Just(0), 0..=100_u64];
    let ends = proptest::bool::weighted(0.1);
    proptest::collection::vec((1..=BUCKET_SECTORS, advance, ends), 1..120)
}

/// A ring of two buckets is never written to, and would refuse more than it has to.
fn run(count: u64, reserve: usize, steps: &[(u64, u64, bool)]) {
    let mut twin = Twin::default();
    let begin =
        |twin: &Twin, last| Ring::new(twin.start(count), (BUCKET_SECTORS, 1), reserve, last);
    let mut ring = begin(&twin, 1);
    let (mut seq, mut durable_last) = (1, 1);
    for &(sectors, advance, ends) in steps {
        if ends {
            ring = begin(&twin, durable_last);
        }
        let makes_room = ring.clone().take(1, seq, seq, durable_last);
        assert!(makes_room.is_some(), "JNL-6: entry {seq}");
        let last = durable_last + (seq - durable_last) * advance / 100;
        match ring.take(sectors, seq, last, durable_last) {
            Some(sector) => {
                twin.write(seq, sector, sectors);
                for needed in durable_last..=seq {
                    assert!(twin.entries.contains_key(&needed), "JNL-3: entry {needed}");
                }
                (seq, durable_last) = (seq + 1, last);
            }
            None => {
                let frees = twin.free(count, last) > twin.free(count, durable_last);
                let free = twin.free(count, durable_last);
                assert!(free == 0 || !frees, "JNL-6: {free} free, {frees}");
                assert!(free <= 2, "at most the last one is kept: {free}");
            }
        }
    }
}

proptest! {
    /// T116.
    #[test]
    fn a_ring_equals_its_twin_after_every_step(count in 3..7_u64, reserve in 1..4_usize, steps in steps()) {
        run(count, reserve, &steps);
    }
}
