//! Recycled buckets are discarded on their way to being ready, if the device is to be told (docs/format.md 6.6).
//!
//! Their gens are durable then, so what is lost is lost already. The kernel discards one bucket after the other while everybody
//! waits for buckets; here the caller takes them a few at a time, neighbours together, and may skip the rest: a discard is a
//! hint.

use std::ops::Range;

use super::Allocator;

impl Allocator {
    /// Whether recycled buckets come to [`Allocator::next_discards`] before they are ready.
    pub fn set_discards(&mut self, on: bool) {
        self.discards = on;
        if !on {
            self.discarded(usize::MAX);
        }
    }

    /// Up to `count` buckets that should be discarded next, as runs of bucket numbers, and how many buckets they are. They
    /// stay where they are until [`Allocator::discarded`].
    pub fn next_discards(&self, count: usize) -> (Vec<Range<u64>>, usize) {
        let next = self.lists.to_discard.iter().take(count);
        let mut numbers: Vec<u64> = next.map(|bucket| bucket.nr().0).collect();
        numbers.sort_unstable();
        let runs = numbers.chunk_by(|a, b| a + 1 == *b);
        let runs = runs.map(|run| run[0]..run[0] + run.len() as u64).collect();
        (runs, numbers.len())
    }

    /// The first `count` of them were discarded, or will not be: they are ready.
    pub fn discarded(&mut self, count: usize) {
        for _ in 0..count {
            let Some(bucket) = self.lists.to_discard.pop_front() else {
                return;
            };
            self.make_ready(bucket);
        }
    }
}
