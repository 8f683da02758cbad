//! How recent what is cached is, over all buckets: the kernel's `priority_stats`.
//!
//! Buckets are counted some at a time, by recency, so nobody waits for a look at all of them. What changes between two steps is counted
//! as it was or as it is.

use brigade_format::BucketNr;
use serde::Serialize;

use super::bucket::{Class, Place};
use super::{Allocator, PRIO_FRESH, PRIO_METADATA};

/// Buckets counted in one step.
const STEP: u64 = 1 << 13;
/// Parts that the quantiles cut buckets into.
const PARTS: u64 = 32;

/// Shares in percent of all buckets, and ages: how far a recency is from that of data just used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Priorities {
    /// Nothing live is in them.
    pub unused_percent: u64,
    /// All of it is clean.
    pub clean_percent: u64,
    /// Some of it is dirty.
    pub dirty_percent: u64,
    /// Journal, nodes, tables.
    pub metadata_percent: u64,
    /// Mean age of data that is not at the oldest.
    pub average: u64,
    /// Sectors of the buckets between two quantiles.
    pub sectors_per_quantile: u64,
    /// Ages, the least first.
    pub quantiles: Vec<u64>,
}

/// A count under way.
pub struct PriorityCount {
    next: u64,
    unused: u64,
    clean: u64,
    dirty: u64,
    metadata: u64,
    /// Buckets by recency.
    recencies: Vec<u32>,
}

impl Default for PriorityCount {
    fn default() -> PriorityCount {
        PriorityCount {
            next: 0,
            unused: 0,
            clean: 0,
            dirty: 0,
            metadata: 0,
            recencies: vec![0; usize::from(PRIO_FRESH) + 1],
        }
    }
}

impl Allocator {
    /// Counts some more buckets; says whether these were the last.
    pub fn count_priorities(&self, count: &mut PriorityCount) -> bool {
        let end = self.config.nbuckets.min(count.next + STEP);
        for nr in count.next..end {
            let bucket = self.bucket(BucketNr(nr));
            count.unused += u64::from(bucket.holds_data() && bucket.live.get() == 0);
            match (bucket.class(), bucket.place()) {
                (Class::Metadata, _) => count.metadata += 1,
                (Class::Free, _) => count.unused += 1,
                (Class::Dirty, _) => count.dirty += 1,
                _ => count.clean += 1,
            }
            let prio = self.prio_of(BucketNr(nr));
            let is_data = prio != 0 && prio != PRIO_METADATA && bucket.place() != Place::Fixed;
            if is_data && let Some(same) = count.recencies.get_mut(usize::from(prio)) {
                *same += 1;
            }
        }
        count.next = end;
        end == self.config.nbuckets
    }

    /// What was counted comes to.
    pub fn priorities(&self, count: &PriorityCount) -> Priorities {
        let share = |buckets: u64| buckets * 100 / self.config.nbuckets.max(1);
        let by_age = || {
            let ages = count.recencies.iter().rev().enumerate();
            ages.map(|(age, buckets)| (age as u64, u64::from(*buckets)))
        };
        let buckets: u64 = by_age().map(|(_, buckets)| buckets).sum();
        let ages: u64 = by_age().map(|(age, buckets)| age * buckets).sum();
        Priorities {
            unused_percent: share(count.unused),
            clean_percent: share(count.clean),
            dirty_percent: share(count.dirty),
            metadata_percent: share(count.metadata),
            average: ages / buckets.max(1),
            sectors_per_quantile: buckets * u64::from(self.config.bucket_sectors) / PARTS,
            quantiles: quantiles(by_age(), buckets),
        }
    }
}

/// Of `total` in order of age the first of each part but the first.
fn quantiles(by_age: impl Iterator<Item = (u64, u64)>, total: u64) -> Vec<u64> {
    let (mut quantiles, mut passed) = (Vec::new(), 0);
    for (age, buckets) in by_age {
        passed += buckets;
        while quantiles.len() as u64 + 1 < PARTS
            && passed > total * (quantiles.len() as u64 + 1) / PARTS
        {
            quantiles.push(age);
        }
    }
    quantiles
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Replacement};
    use super::*;
    use brigade_format::{Gen, Ptr};

    #[test]
    fn shares_average_and_quantiles_are_those_of_a_sorted_list() {
        let mut alloc = Allocator::new(Config {
            first_bucket: 1,
            nbuckets: 20_000,
            bucket_sectors: 16,
            block_sectors: 4,
            table_buckets: 1,
            journal_buckets: 0,
            replacement: Replacement::Lru,
        });
        let mut prios = Vec::new();
        for nr in 100..15_100u64 {
            let prio = (nr * 7919 % 32_768) as u16;
            alloc.set_gen(BucketNr(nr), Gen(0), prio);
            alloc.mark_referenced(BucketNr(nr));
            alloc.add_live(Ptr::new(nr * 16, Gen(0)), 16, nr % 3 == 0);
            prios.extend(Some(u64::from(prio)).filter(|prio| *prio > 0));
        }
        for nr in 15_100..15_300 {
            alloc.mark_metadata(BucketNr(nr));
        }
        alloc.start();
        let (mut count, mut steps) = (PriorityCount::default(), 1);
        while !alloc.count_priorities(&mut count) {
            steps += 1;
        }
        assert_eq!(steps, 3, "a few thousand at a time");
        let found = alloc.priorities(&count);
        // Those that hold nothing are at zero, and do not count.
        prios.sort_unstable_by(|a, b| b.cmp(a));
        let n = prios.len();
        let ages: Vec<u64> = prios.iter().map(|prio| 32_768 - prio).collect();
        assert_eq!(found.average, ages.iter().sum::<u64>() / n as u64);
        assert_eq!(found.sectors_per_quantile, n as u64 * 16 / 32);
        let expected: Vec<u64> = (1..32).map(|i| ages[n * i / 32]).collect();
        assert_eq!(found.quantiles, expected);
        let shares = [
            found.clean_percent,
            found.dirty_percent,
            found.metadata_percent,
        ];
        assert_eq!((shares, found.unused_percent), ([50, 25, 1], 23));
    }

    #[test]
    fn an_empty_cache_has_no_ages() {
        assert_eq!(quantiles(std::iter::empty(), 0), [0u64; 0]);
        let one = quantiles([(5, 1)].into_iter(), 1);
        assert_eq!(one, [5; 31]);
    }
}
