//! Who is recycled next.
//!
//! LRU weighs recency with live sectors: the oldest data is worth an eighth of fresh data per sector, and a bucket
//! without live sectors is worth nothing and goes first. It looks at all buckets once per batch.

use crate::marks::{self, Mark};
use std::collections::BinaryHeap;

use brigade_format::BucketNr;

use super::bucket::Bucket;
use super::{Allocator, PRIO_FRESH};

/// The policies of the superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replacement {
    /// Least valuable first.
    Lru,
    /// In order of bucket number, round and round.
    Fifo,
    /// Any.
    Random,
}

impl Allocator {
    /// Takes effect with the next batch.
    pub fn set_replacement(&mut self, replacement: Replacement) {
        self.config.replacement = replacement;
    }

    /// Up to `count` different eligible buckets, in the order in which they go.
    pub(super) fn victims(&mut self, count: usize, random: impl FnMut() -> u64) -> Vec<BucketNr> {
        match self.config.replacement {
            Replacement::Lru => self.lru(count),
            Replacement::Fifo => {
                marks::hit(Mark::AllocPolicyFifo);
                self.fifo(count)
            }
            Replacement::Random => {
                marks::hit(Mark::AllocPolicyRandom);
                self.random(count, random)
            }
        }
    }

    fn lru(&self, count: usize) -> Vec<BucketNr> {
        let min_prio = self.min_prio;
        let mut heap: BinaryHeap<(i64, u64)> = BinaryHeap::with_capacity(count + 1);
        for nr in self.all().filter(|nr| self.bucket(*nr).is_eligible()) {
            let candidate = (value(self.bucket(nr), min_prio), nr.0);
            if heap.len() < count {
                heap.push(candidate);
            } else if let Some(mut top) = heap.peek_mut()
                && candidate < *top
            {
                *top = candidate;
            }
        }
        heap.into_sorted_vec()
            .into_iter()
            .map(|(_, nr)| BucketNr(nr))
            .collect()
    }

    fn fifo(&mut self, count: usize) -> Vec<BucketNr> {
        let (first, nbuckets) = (self.config.first_bucket, self.config.nbuckets);
        let mut chosen = Vec::new();
        for _ in first..nbuckets {
            if chosen.len() == count {
                break;
            }
            if self.fifo_cursor < first || self.fifo_cursor >= nbuckets {
                self.fifo_cursor = first;
            }
            let nr = BucketNr(self.fifo_cursor);
            self.fifo_cursor += 1;
            if self.bucket(nr).is_eligible() {
                chosen.push(nr);
            }
        }
        chosen
    }

    fn random(&self, count: usize, mut random: impl FnMut() -> u64) -> Vec<BucketNr> {
        let (first, nbuckets) = (self.config.first_bucket, self.config.nbuckets);
        let mut is_chosen = vec![false; nbuckets as usize];
        let mut chosen = Vec::new();
        for _ in 0..(nbuckets / 2).max(1) {
            if chosen.len() == count {
                break;
            }
            let nr = BucketNr(first + random() % (nbuckets - first));
            if self.bucket(nr).is_eligible() && !is_chosen[nr.0 as usize] {
                is_chosen[nr.0 as usize] = true;
                chosen.push(nr);
            }
        }
        chosen
    }
}

/// Smaller goes earlier. Signed and clamped: a prio below the minimum of the last rescale must not wrap.
fn value(bucket: &Bucket, min_prio: u16) -> i64 {
    let min_prio = i64::from(min_prio.min(PRIO_FRESH));
    let floor = (i64::from(PRIO_FRESH) - min_prio) / 8;
    let recency = (i64::from(bucket.prio) - min_prio + floor).max(0);
    recency * i64::from(bucket.live_sectors)
}
