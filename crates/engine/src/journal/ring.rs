//! Where the next entry goes.

use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};

/// Ring buckets kept back at least for entries that make room, where the ring has so many.
const RESERVE: usize = 3;
/// Entries without keys that must find room behind a full stage: a new table and the entry that lets `last_seq` advance.
const SMALL_ENTRIES: u64 = 2;

/// What the ring looked like at open.
#[derive(Clone, Debug)]
pub struct RingStart {
    /// Bucket numbers, in ring order.
    pub buckets: Vec<u64>,
    /// Index of the bucket with the newest entry; the first new one goes to the next.
    pub newest_index: usize,
    /// Sector in that bucket right behind the newest entry. The first new one goes there if no other place is free.
    pub newest_end_sector: u64,
    /// Highest entry number found in each.
    pub bucket_max_seq: Vec<u64>,
}

/// How much of a ring one entry with clients' keys may take, and what stays free for the entries that make room (JNL-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPlan {
    /// Longest entry, in sectors.
    pub entry_sectors: u64,
    /// Buckets that clients leave free.
    pub reserve: usize,
}

impl RingPlan {
    /// For a ring of `count` buckets; `None` if it is too small to be written to without ever getting stuck.
    ///
    /// Clients are let in while `reserve` buckets are free. Then a full stage and the entries that make room must fit what is
    /// free, less the one bucket that only an entry which frees another may take (JNL-6).
    pub fn new(
        count: usize,
        bucket_sectors: u64,
        block_sectors: u64,
        entry_sectors_max: u64,
    ) -> Option<RingPlan> {
        let bucket_blocks = bucket_sectors / block_sectors;
        let usable = (count as u64).checked_sub(2)?.saturating_mul(bucket_blocks);
        let entry_blocks = (entry_sectors_max.min(bucket_sectors) / block_sectors)
            .min(usable.checked_sub(SMALL_ENTRIES)?);
        if entry_blocks == 0 {
            return None;
        }
        let needed = 1 + (entry_blocks + SMALL_ENTRIES).div_ceil(bucket_blocks) as usize;
        let reserve = needed.max(RESERVE.min(count - 1));
        Some(RingPlan {
            entry_sectors: entry_blocks * block_sectors,
            reserve,
        })
    }
}

/// The ring and the write position in it.
pub(super) struct Ring {
    buckets: Vec<u64>,
    bucket_sectors: u64,
    reserve: usize,
    max_seq: Vec<u64>,
    index: usize,
    /// Next free sector in the current bucket; at `bucket_sectors` the next entry moves on.
    used_sectors: u64,
}

impl Ring {
    /// Begins in the bucket behind the newest entry's, or, where there are fewer free than clients leave, right behind that entry
    /// (both are legal, docs/format.md 5.9): openings that are killed one after the other take no bucket each then.
    pub fn new(
        start: RingStart,
        bucket_sectors: u64,
        reserve: usize,
        durable_last_seq: u64,
    ) -> Self {
        assert_eq!(
            start.buckets.len(),
            start.bucket_max_seq.len(),
            "one number a bucket"
        );
        let mut ring = Ring {
            buckets: start.buckets,
            bucket_sectors,
            reserve,
            max_seq: start.bucket_max_seq,
            index: start.newest_index,
            used_sectors: bucket_sectors,
        };
        if ring.free(durable_last_seq) < reserve {
            marks::hit(Mark::JournalStartsBehindNewest);
            ring.used_sectors = start.newest_end_sector.min(bucket_sectors);
        }
        ring
    }

    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Buckets that clients must leave free (JNL-4).
    pub fn reserve(&self) -> usize {
        self.reserve
    }

    /// Buckets after the current one that hold nothing needed, given `last_seq` of a durable entry.
    pub fn free(&self, durable_last_seq: u64) -> usize {
        if mutations::is(Mutation::JournalOverwrites) {
            return self.buckets.len() - 1;
        }
        (1..self.buckets.len())
            .take_while(|ahead| {
                self.max_seq[(self.index + ahead) % self.buckets.len()] < durable_last_seq
            })
            .count()
    }

    /// Whether there is space for an entry of `sectors` that itself needs `last_seq` and later ones. Not if the next bucket is still
    /// needed (JNL-3), or is the last free one and this entry, once durable, would not free another (JNL-6).
    pub fn has_place(&self, sectors: u64, last_seq: u64, durable_last_seq: u64) -> bool {
        assert!(sectors <= self.bucket_sectors, "an entry fits a bucket");
        if self.used_sectors + sectors <= self.bucket_sectors {
            return true;
        }
        let free = self.free(durable_last_seq);
        let is_kept = free == 1 && self.free(last_seq) == 1;
        if is_kept {
            marks::hit(Mark::JournalLastBucket);
        }
        free > 0 && !is_kept
    }

    /// Takes that space, if there is.
    pub fn take(
        &mut self,
        sectors: u64,
        seq: u64,
        last_seq: u64,
        durable_last_seq: u64,
    ) -> Option<u64> {
        if !self.has_place(sectors, last_seq, durable_last_seq) {
            return None;
        }
        if self.used_sectors + sectors > self.bucket_sectors {
            self.index = (self.index + 1) % self.buckets.len();
            if self.index == 0 {
                marks::hit(Mark::JournalWraps);
            }
            self.used_sectors = 0;
        }
        let sector = self.buckets[self.index] * self.bucket_sectors + self.used_sectors;
        self.used_sectors += sectors;
        self.max_seq[self.index] = seq;
        Some(sector)
    }
}

#[cfg(test)]
mod twin;

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Ring {
        let start = RingStart {
            buckets: vec![1, 2, 3, 4],
            newest_index: 0,
            newest_end_sector: 8,
            bucket_max_seq: vec![0; 4],
        };
        Ring::new(start, 8, 3, 1)
    }

    #[test]
    fn a_session_starts_behind_the_newest_entry_when_no_bucket_is_free() {
        let start = RingStart {
            buckets: vec![1, 2, 3],
            newest_index: 1,
            newest_end_sector: 4,
            bucket_max_seq: vec![8, 9, 7],
        };
        let mut full = Ring::new(start, 8, 2, 7);
        assert_eq!(full.free(7), 0);
        assert_eq!(full.take(2, 10, 7, 7), Some(2 * 8 + 4));
        assert_eq!(full.take(2, 11, 7, 7), Some(2 * 8 + 6));
        assert_eq!(full.take(2, 12, 12, 7), None, "entry 7 is still needed");
        assert_eq!(full.take(2, 12, 12, 11), Some(3 * 8));
    }

    #[test]
    fn a_session_takes_no_bucket_of_those_that_clients_leave() {
        let start = |max_seq: [u64; 5]| RingStart {
            buckets: vec![1, 2, 3, 4, 5],
            newest_index: 1,
            newest_end_sector: 4,
            bucket_max_seq: max_seq.to_vec(),
        };
        let mut few = Ring::new(start([8, 9, 0, 0, 7]), 8, 3, 7);
        assert_eq!(few.take(2, 10, 7, 7), Some(2 * 8 + 4));
        let mut enough = Ring::new(start([8, 9, 0, 0, 6]), 8, 3, 7);
        assert_eq!(enough.take(2, 10, 7, 7), Some(3 * 8));
    }

    #[test]
    fn a_ring_that_clients_may_fill_keeps_room_for_the_entries_that_make_room() {
        assert_eq!(RingPlan::new(2, 64, 8, 64), None);
        assert_eq!(
            RingPlan::new(3, 8, 4, 64),
            None,
            "a single entry, and nothing behind it"
        );
        assert_eq!(RingPlan::new(4, 8, 8, 64), None);
        assert_eq!(
            RingPlan::new(3, 64, 8, 64),
            Some(RingPlan {
                entry_sectors: 48,
                reserve: 2
            })
        );
        assert_eq!(
            RingPlan::new(4, 8, 4, 64),
            Some(RingPlan {
                entry_sectors: 8,
                reserve: 3
            })
        );
        assert_eq!(
            RingPlan::new(256, 1024, 8, 64),
            Some(RingPlan {
                entry_sectors: 64,
                reserve: 3
            })
        );
        for (count, blocks) in (3..9).flat_map(|count| (1..20).map(move |blocks| (count, blocks))) {
            let Some(plan) = RingPlan::new(count, blocks, 1, 64) else {
                continue;
            };
            assert!(plan.reserve < count, "clients are let into an empty ring");
            assert!((plan.reserve as u64 - 1) * blocks >= plan.entry_sectors + 2);
        }
    }

    #[test]
    fn a_session_starts_in_the_bucket_after_the_newest_entry() {
        assert_eq!(ring().take(1, 1, 1, 1), Some(2 * 8));
    }

    /// T116.
    #[test]
    fn a_bucket_with_a_needed_entry_is_not_overwritten() {
        let mut ring = ring();
        for seq in 1..=3 {
            assert!(ring.take(8, seq, 1, 1).is_some());
        }
        assert_eq!(ring.free(1), 1);
        assert!(ring.take(8, 4, 4, 1).is_some(), "index 0 held nothing");
        assert_eq!(ring.free(1), 0);
        assert_eq!(ring.take(8, 5, 5, 1), None, "entry 1 is needed");
        assert_eq!(
            ring.take(8, 5, 5, 2),
            Some(2 * 8),
            "entry 1 is not needed any more"
        );
    }

    #[test]
    fn the_last_free_bucket_is_for_an_entry_that_frees_another() {
        let mut ring = ring();
        for seq in 1..=3 {
            assert!(ring.take(8, seq, 1, 1).is_some());
        }
        assert_eq!(ring.take(8, 4, 1, 1), None, "entry 1 would still be needed");
        assert_eq!(ring.take(8, 4, 2, 1), Some(8));
    }

    /// T115.
    #[test]
    fn an_entry_never_crosses_a_bucket() {
        let mut ring = ring();
        assert_eq!(ring.take(5, 1, 1, 1), Some(16));
        assert_eq!(ring.take(5, 2, 1, 1), Some(24));
    }
}
