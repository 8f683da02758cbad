//! Recycled buckets are discarded on their way to being ready, if the device is to be told (docs/format.md 6.6).
//!
//! Their gens are durable then, so what is lost is lost already. The kernel discards one bucket after the other while everybody
//! waits for buckets; here the caller takes them a few at a time, neighbours together, and may skip the rest: a discard is a
//! hint. A bucket is in nobody else's hands while it is discarded, and ready only after that.

use std::ops::Range;

use super::Allocator;
use super::tokens::Ready;

/// Buckets that are being discarded. Without [`Allocator::discarded`] they are lost until restart.
#[must_use = "the buckets are lost until restart"]
#[derive(Debug)]
pub struct Discarding(Vec<Ready>);

impl Discarding {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Runs of bucket numbers.
    pub fn runs(&self) -> Vec<Range<u64>> {
        let mut numbers: Vec<u64> = self.0.iter().map(|bucket| bucket.nr().0).collect();
        numbers.sort_unstable();
        let runs = numbers.chunk_by(|a, b| a + 1 == *b);
        runs.map(|run| run[0]..run[0] + run.len() as u64).collect()
    }
}

impl Allocator {
    /// Whether recycled buckets come to [`Allocator::take_discards`] before they are ready.
    pub fn set_discards(&mut self, on: bool) {
        self.discards = on;
        if !on {
            self.skip_discards();
        }
    }

    /// Up to `count` buckets that should be discarded next.
    pub fn take_discards(&mut self, count: usize) -> Discarding {
        let count = count.min(self.lists.to_discard.len());
        Discarding(self.lists.to_discard.drain(..count).collect())
    }

    /// They were discarded, or as good as: they are ready.
    pub fn discarded(&mut self, discarding: Discarding) {
        discarding
            .0
            .into_iter()
            .for_each(|bucket| self.make_ready(bucket));
    }

    /// What is left will not be discarded: it is ready.
    fn skip_discards(&mut self) {
        let all = self.take_discards(usize::MAX);
        self.discarded(all);
    }
}
