//! What became of requests: each ends in exactly one way, and is under way until then.
//!
//! So the ways it ended add up to the requests that came, at any moment, and reasons add up to their totals. [`audit`] of each
//! kind says whether they do; simulation asks.
//!
//! [`audit`]: ReadCounts::audit

use super::reasons::{By, Fate, NotDirty, Reason};
use super::{Counter, VolumeCounters};
use std::cell::Cell;
use std::rc::Rc;

/// How many came, and are under way.
#[derive(Debug, Default)]
pub struct Requests {
    /// All.
    pub requests: Counter,
    /// Those that have not ended.
    pub in_flight: Cell<u64>,
    /// Those that ended in an error.
    pub failed: Counter,
}

impl Requests {
    /// One comes.
    pub fn begin(&self) {
        self.requests.add(1);
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// One ends; who ended well is counted elsewhere.
    fn end(&self, is_failed: bool) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.failed.add(u64::from(is_failed));
    }

    fn audit(&self, what: &str, ended_well: u64) {
        let ended = ended_well + self.failed.get() + self.in_flight.get();
        assert_eq!(self.requests.get(), ended, "{what} are counted once each");
    }
}

/// How a read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Served by the cache alone.
    Hit,
    /// Some of it came from the backing device, or is nowhere.
    Miss,
    /// It left the cache as it was; all of it was there or not.
    Bypassed(Reason, bool),
}

/// Reads.
#[derive(Debug, Default)]
pub struct ReadCounts {
    /// All of them.
    pub all: Requests,
    /// Served by the cache alone.
    pub hits: Counter,
    /// Bytes of these.
    pub hit_bytes: Counter,
    /// Not all of it was there.
    pub misses: Counter,
    /// Bytes of these.
    pub miss_bytes: Counter,
    /// They left the cache as it was.
    pub bypassed: Counter,
    /// Bytes of these.
    pub bypassed_bytes: Counter,
    /// Of these, served by the cache alone.
    pub bypass_hits: Counter,
    /// Of these, not.
    pub bypass_misses: Counter,
    /// Why.
    pub bypassed_by: By<Reason>,
}

impl ReadCounts {
    /// One ends; `None` if it failed.
    pub fn end(&self, outcome: Option<ReadOutcome>, bytes: u64) {
        self.all.end(outcome.is_none());
        let (count, count_bytes) = match outcome {
            None => return,
            Some(ReadOutcome::Hit) => (&self.hits, &self.hit_bytes),
            Some(ReadOutcome::Miss) => (&self.misses, &self.miss_bytes),
            Some(ReadOutcome::Bypassed(reason, is_hit)) => {
                self.bypassed_by.add(reason, 1);
                match is_hit {
                    true => self.bypass_hits.add(1),
                    false => self.bypass_misses.add(1),
                }
                (&self.bypassed, &self.bypassed_bytes)
            }
        };
        count.add(1);
        count_bytes.add(bytes);
    }

    /// Panics if sums are not what they are sums of.
    pub fn audit(&self) {
        let bypassed = self.bypassed.get();
        let well = self.hits.get() + self.misses.get() + bypassed;
        self.all.audit("reads", well);
        let by_hit = self.bypass_hits.get() + self.bypass_misses.get();
        assert_eq!((self.bypassed_by.sum(), by_hit), (bypassed, bypassed));
    }
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    /// It is dirty in the cache.
    Writeback,
    /// It is on the backing device, and was meant for the cache too.
    Writethrough(NotDirty),
    /// It is on the backing device alone.
    Bypassed(Reason),
}

/// Writes.
#[derive(Debug, Default)]
pub struct WriteCounts {
    /// All of them.
    pub all: Requests,
    /// They went to the cache alone.
    pub writeback: Counter,
    /// They went to both.
    pub writethrough: Counter,
    /// Why these did not become dirty.
    pub not_dirty_by: By<NotDirty>,
    /// They went to the backing device alone.
    pub bypassed: Counter,
    /// Why.
    pub bypassed_by: By<Reason>,
    /// Bytes of all.
    pub bytes: Counter,
    /// Bytes of those that bypassed the cache.
    pub bypassed_bytes: Counter,
    /// They had to wait for buckets.
    pub bucket_waits: Counter,
}

impl WriteCounts {
    /// One ends; `None` if it failed.
    pub fn end(&self, outcome: Option<WriteOutcome>, bytes: u64) {
        self.all.end(outcome.is_none());
        match outcome {
            None => (),
            Some(WriteOutcome::Writeback) => self.writeback.add(1),
            Some(WriteOutcome::Writethrough(reason)) => {
                self.writethrough.add(1);
                self.not_dirty_by.add(reason, 1);
            }
            Some(WriteOutcome::Bypassed(reason)) => {
                self.bypassed.add(1);
                self.bypassed_by.add(reason, 1);
                self.bypassed_bytes.add(bytes);
            }
        }
    }

    /// Panics if sums are not what they are sums of.
    pub fn audit(&self) {
        let (through, bypassed) = (self.writethrough.get(), self.bypassed.get());
        self.all
            .audit("writes", self.writeback.get() + through + bypassed);
        let by_reason = (self.not_dirty_by.sum(), self.bypassed_by.sum());
        assert_eq!(by_reason, (through, bypassed));
    }
}

/// Discards, zeroes, flushes, reads ahead.
#[derive(Debug, Default)]
pub struct OtherCounts {
    /// All of them.
    pub all: Requests,
    /// Done.
    pub done: Counter,
    /// Not done, as they need not be.
    pub ignored: Counter,
    /// Why, of reads ahead.
    pub ignored_by: By<Reason>,
    /// Bytes of those that were done.
    pub bytes: Counter,
}

/// How one of them ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherOutcome {
    /// It was done.
    Done,
    /// It need not be: no device could.
    Ignored,
    /// It need not be: it was only for the cache, which it bypasses.
    Bypassed(Reason),
}

impl OtherCounts {
    /// One ends; `None` if it failed.
    pub fn end(&self, outcome: Option<OtherOutcome>, bytes: u64) {
        self.all.end(outcome.is_none());
        match outcome {
            None => (),
            Some(OtherOutcome::Done) => {
                self.done.add(1);
                self.bytes.add(bytes);
            }
            Some(OtherOutcome::Ignored) => self.ignored.add(1),
            Some(OtherOutcome::Bypassed(reason)) => {
                self.ignored.add(1);
                self.ignored_by.add(reason, 1);
            }
        }
    }

    /// Panics if sums are not what they are sums of.
    pub fn audit(&self, what: &str) {
        let ignored = self.ignored.get();
        self.all.audit(what, self.done.get() + ignored);
        assert!(self.ignored_by.sum() <= ignored, "{what}");
    }
}

/// Clean data on its way into the cache, in pieces that each find one place or several at once.
#[derive(Debug, Default)]
pub struct FillCounts {
    /// All pieces.
    pub begun: Counter,
    /// Those that are on their way.
    pub under_way: Cell<u64>,
    /// What became of the others.
    pub ended_by: By<Fate>,
    /// Bytes that got there.
    pub bytes: Counter,
    /// Pieces that had to wait for a bucket.
    pub waits: Counter,
    /// Requests that had to wait, as much was on its way.
    pub request_waits: Counter,
}

impl FillCounts {
    /// A piece that ends as it begins.
    pub fn count(&self, fate: Fate) {
        self.begun.add(1);
        self.ended_by.add(fate, 1);
    }

    /// Panics if sums are not what they are sums of.
    pub fn audit(&self) {
        let ended = self.ended_by.sum() + self.under_way.get();
        assert_eq!(self.begun.get(), ended, "fills are counted once each");
    }
}

/// A piece on its way. Its fate is counted when it is dropped: failed, unless somebody knows better.
pub struct Filling {
    counters: Rc<VolumeCounters>,
    fate: Cell<Fate>,
}

impl Filling {
    /// One begins.
    pub fn begin(counters: &Rc<VolumeCounters>) -> Filling {
        let fills = &counters.fills;
        fills.begun.add(1);
        fills.under_way.set(fills.under_way.get() + 1);
        Filling {
            counters: counters.clone(),
            fate: Cell::new(Fate::Failed),
        }
    }

    /// That is what becomes of it.
    pub fn ends(&self, fate: Fate) {
        self.fate.set(fate);
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        let fills = &self.counters.fills;
        fills.under_way.set(fills.under_way.get() - 1);
        fills.ended_by.add(self.fate.get(), 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_end_is_counted_once_and_sums_agree() {
        let counters = Rc::<VolumeCounters>::default();
        let reads = &counters.reads;
        let outcomes = [
            Some(ReadOutcome::Hit),
            Some(ReadOutcome::Miss),
            Some(ReadOutcome::Bypassed(Reason::Sequential, true)),
            Some(ReadOutcome::Bypassed(Reason::Unaligned, false)),
            None,
        ];
        for outcome in outcomes {
            reads.all.begin();
            counters.audit();
            reads.end(outcome, 512);
            counters.audit();
        }
        reads.all.begin();
        assert_eq!(reads.all.requests.get(), 6);
        assert_eq!((reads.all.failed.get(), reads.all.in_flight.get()), (1, 1));
        assert_eq!(reads.bypassed_by.get(Reason::Sequential), 1);
        assert_eq!(reads.bypassed_bytes.get(), 1024);
        let filling = Filling::begin(&counters);
        counters.fills.count(Fate::DroppedSize);
        counters.audit();
        filling.ends(Fate::Entered);
        drop(filling);
        drop(Filling::begin(&counters));
        counters.audit();
        let ended = &counters.fills.ended_by;
        let fates = [
            Fate::Entered,
            Fate::DroppedSize,
            Fate::Failed,
            Fate::Stopped,
        ];
        assert_eq!(fates.map(|fate| ended.get(fate)), [1, 1, 1, 0]);
    }

    #[test]
    #[should_panic(expected = "writes are counted once each")]
    fn a_write_without_an_end_of_its_own_is_noticed() {
        let counters = VolumeCounters::default();
        counters.writes.all.begin();
        counters.writes.end(Some(WriteOutcome::Writeback), 0);
        counters.writes.writethrough.add(1);
        counters.audit();
    }
}
