//! Where the next entry goes.

use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};

/// Ring buckets kept back at least for entries that make room, where the ring has so many.
const RESERVE: usize = 3;
/// Entries without keys that find room behind those with keys: new roots, new tables, and the one that lets `last_seq` advance.
/// As many as the ring has room for.
const SMALL_ENTRIES: [u64; 3] = [6, 4, 2];

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
    /// Clients are let in while `reserve` buckets are free. Two full entries and those that make room must fit what is
    /// free then, less the one bucket that only an entry which frees another may take (JNL-6): a server killed with one entry on its
    /// way and a full stage behind it leaves both to the next one, which begins in the next bucket. Half the ring is to be for clients.
    /// Where it is too small for all that, less of it is.
    pub fn new(
        count: usize,
        bucket_sectors: u64,
        block_sectors: u64,
        entry_sectors_max: u64,
    ) -> Option<RingPlan> {
        let bucket_blocks = bucket_sectors / block_sectors;
        let blocks_max = entry_sectors_max.min(bucket_sectors) / block_sectors;
        let all = count.checked_sub(1)?;
        let plan = |reserve_max: usize, full, small| {
            let reserve = |blocks| 1 + buckets_for(full, blocks, small, bucket_blocks) as usize;
            let is_enough = |blocks: &u64| reserve(*blocks) <= reserve_max;
            let entry_blocks = (1..=blocks_max).rev().find(is_enough)?;
            Some(RingPlan {
                entry_sectors: entry_blocks * block_sectors,
                reserve: reserve(entry_blocks).max(RESERVE.min(all)),
            })
        };
        let half = RESERVE.max(count / 2).min(all);
        [half, all]
            .into_iter()
            .find_map(|most| {
                SMALL_ENTRIES
                    .into_iter()
                    .find_map(|small| plan(most, 2, small))
            })
            .or_else(|| plan(all, 1, SMALL_ENTRIES[2]))
    }
}

/// Buckets that entries take: one or two full ones, and behind them some of a block each. None crosses the end of a bucket. (Nothing
/// comes between full ones: whatever asks for an entry takes the stage along, and openings journal the record first.)
fn buckets_for(full: u64, entry_blocks: u64, small: u64, bucket_blocks: u64) -> u64 {
    let are_apart = full > 1 && 2 * entry_blocks > bucket_blocks;
    let (before, first) = match are_apart {
        true => (1, entry_blocks),
        false => (0, full * entry_blocks),
    };
    before + (first + small).div_ceil(bucket_blocks)
}

/// The ring and the write position in it.
#[cfg_attr(test, derive(Clone))]
pub(super) struct Ring {
    buckets: Vec<u64>,
    bucket_sectors: u64,
    block_sectors: u64,
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
        (bucket_sectors, block_sectors): (u64, u64),
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
            block_sectors,
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

    /// Whether there is a place for an entry of `sectors` that frees nothing, and behind it one for an entry without keys that does.
    pub fn has_place(&self, sectors: u64, durable_last_seq: u64) -> bool {
        let rest = self.bucket_sectors - self.used_sectors;
        match self.free(durable_last_seq) {
            0 => sectors + self.block_sectors <= rest,
            1 => sectors <= rest,
            _ => true,
        }
    }

    /// Takes space for an entry of `sectors` that itself needs `last_seq` and later ones; `None` if the next bucket is
    /// still needed (JNL-3), or if this entry would take the last place and, once durable, not free a bucket (JNL-6).
    pub fn take(
        &mut self,
        sectors: u64,
        seq: u64,
        last_seq: u64,
        durable_last_seq: u64,
    ) -> Option<u64> {
        assert!(sectors <= self.bucket_sectors, "an entry fits a bucket");
        let free = self.free(durable_last_seq);
        if self.free(last_seq) <= free && !self.has_place(sectors, durable_last_seq) {
            marks::hit(Mark::JournalLastBucket);
            return None;
        }
        if free == 0 && self.used_sectors + sectors > self.bucket_sectors {
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
        with_free(4, 3, 8)
    }

    #[test]
    fn a_session_starts_behind_the_newest_entry_when_no_bucket_is_free() {
        let start = RingStart {
            buckets: vec![1, 2, 3],
            newest_index: 1,
            newest_end_sector: 4,
            bucket_max_seq: vec![8, 9, 7],
        };
        let mut full = Ring::new(start, (8, 2), 2, 7);
        assert_eq!(full.free(7), 0);
        assert_eq!(full.take(2, 10, 7, 7), Some(2 * 8 + 4));
        assert_eq!(full.take(2, 11, 11, 7), Some(2 * 8 + 6));
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
        let mut few = Ring::new(start([8, 9, 0, 0, 7]), (8, 1), 3, 7);
        assert_eq!(few.take(2, 10, 7, 7), Some(2 * 8 + 4));
        let mut enough = Ring::new(start([8, 9, 0, 0, 6]), (8, 1), 3, 7);
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
        let planned = |count, bucket_sectors, block_sectors| {
            let plan = RingPlan::new(count, bucket_sectors, block_sectors, 64);
            plan.map(|plan| (plan.entry_sectors, plan.reserve))
        };
        assert_eq!(planned(3, 12, 4), Some((4, 2)), "one entry and two small");
        assert_eq!(planned(3, 64, 8), Some((8, 2)));
        assert_eq!(planned(3, 128, 8), Some((40, 2)));
        assert_eq!(planned(4, 8, 4), Some((4, 3)));
        assert_eq!(planned(8, 8, 8), Some((8, 7)));
        assert_eq!(planned(5, 128, 8), Some((64, 3)));
        assert_eq!(planned(4, 128, 8), Some((64, 3)));
        assert_eq!(planned(256, 1024, 8), Some((64, 3)));
        for (count, blocks) in (3..9).flat_map(|count| (1..20).map(move |blocks| (count, blocks))) {
            let Some((entry, reserve)) = planned(count, blocks, 1) else {
                continue;
            };
            assert!(reserve < count, "clients are let into an empty ring");
            let fits = |entries: &[u64]| {
                let mut ring = with_free(count, reserve, blocks);
                let mut places = entries.iter().zip(1..);
                places.all(|(blocks, seq)| ring.take(*blocks, seq, 1, 1).is_some())
            };
            assert!(fits(&[entry, 1, 1]));
            assert!(fits(&[entry, entry, 1, 1]) || !fits(&[1, 1, 1, 1]));
        }
    }

    /// A ring of which so many buckets are free, and none of the current one.
    fn with_free(count: usize, free: usize, bucket_sectors: u64) -> Ring {
        let start = RingStart {
            buckets: (1..).take(count).collect(),
            newest_index: 0,
            newest_end_sector: bucket_sectors,
            bucket_max_seq: (0..count).map(|at| u64::from(at > free)).collect(),
        };
        Ring::new(start, (bucket_sectors, 1), free, 1)
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

    /// A kernel may leave a ring like that.
    #[test]
    fn the_last_blocks_of_a_ring_without_a_free_bucket_are_for_an_entry_that_frees_one() {
        let start = RingStart {
            buckets: vec![1, 2, 3],
            newest_index: 1,
            newest_end_sector: 4,
            bucket_max_seq: vec![8, 9, 7],
        };
        let mut full = Ring::new(start, (8, 2), 2, 7);
        assert!(full.has_place(2, 7) && !full.has_place(4, 7));
        assert_eq!(full.take(4, 10, 7, 7), None);
        assert_eq!(full.take(2, 10, 7, 7), Some(2 * 8 + 4));
        assert_eq!(full.take(2, 11, 7, 7), None);
        assert_eq!(full.take(2, 11, 11, 7), Some(2 * 8 + 6));
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
