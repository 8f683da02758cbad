//! Recycling: a batch of victims, one write of the gen table, and only then reuse.

use crate::marks::{self, Mark};
use brigade_format::{BucketNr, Gen};

use super::bucket::{Bucket, Class, Place};
use super::lists::Reserve;
use super::metadata::MetadataBucket;
use super::tokens::{Batch, Incoming};
use super::{Allocator, PRIO_FRESH, TABLE_LAG_WANTS_WRITE};

impl Allocator {
    /// Should a table be written soon? True when buckets for data run low and there are some to recycle, or when gens
    /// run ahead of the durable table; never while a batch is under way.
    pub fn wants_batch(&self) -> bool {
        if self.batch_in_progress {
            return false;
        }
        let for_data = self.lists.ready(Reserve::Normal).len() + self.lists.unused.len();
        let may_help = self.counts[Class::Clean] > 0 || !self.lists.abandoned.is_empty();
        (for_data < self.lists.sizes.low_water && may_help)
            || self.table_lag >= TABLE_LAG_WANTS_WRITE
    }

    /// Are buckets for data running low with nothing to recycle in sight?
    pub fn is_short_of_victims(&self) -> bool {
        let for_data = self.lists.ready(Reserve::Normal).len() + self.lists.unused.len();
        !self.batch_in_progress && for_data < self.lists.sizes.low_water && !self.wants_batch()
    }

    /// Recycles as many buckets as one table write should pay for, and sets the table's own buckets aside.
    ///
    /// `None` if a batch is under way, if no bucket can be recycled (and gens do not run ahead), or if there are no
    /// buckets for the table. `random` is asked by the random policy only.
    pub fn begin_batch(&mut self, random: impl FnMut() -> u64) -> Option<Batch> {
        if !self.may_begin() {
            return None;
        }
        let room = self
            .lists
            .sizes
            .batch
            .saturating_sub(self.lists.abandoned.len());
        let victims = self.victims(room, random);
        let is_idle = victims.is_empty() && self.lists.abandoned.is_empty();
        if is_idle && self.table_lag < TABLE_LAG_WANTS_WRITE {
            return None;
        }
        if is_idle {
            marks::hit(Mark::AllocBatchOfNothing);
        }
        Some(self.begin(victims))
    }

    /// A batch without new victims: for a table written for its own sake (first run, clean shutdown).
    pub fn begin_table_write(&mut self) -> Option<Batch> {
        self.may_begin().then(|| self.begin(Vec::new()))
    }

    /// The table is written and a durable journal entry names it: the recycled buckets may be filled.
    ///
    /// The table's buckets stay metadata; the caller frees those of the table before.
    pub fn batch_durable(&mut self, batch: Batch) {
        self.end_batch();
        let (incoming, gens, proof) = batch.durable();
        for (bucket, r#gen) in self.buckets.iter_mut().zip(gens) {
            bucket.durable_gen = r#gen;
        }
        self.table_lag = self
            .buckets
            .iter()
            .map(Bucket::table_lag)
            .max()
            .unwrap_or(0);
        for bucket in incoming {
            self.go(bucket.nr(), Place::Incoming, Place::Ready);
            self.lists.push_ready(bucket.release(&proof));
        }
    }

    /// The table may or may not have reached the device: nothing is released, and the next batch takes the recycled
    /// buckets along. The table's buckets stay metadata; a caller who knows that nothing durable names them frees them.
    pub fn abandon_batch(&mut self, batch: Batch) {
        self.end_batch();
        self.lists.abandoned = batch.abandoned();
    }

    fn may_begin(&self) -> bool {
        assert!(self.started, "a batch while loading");
        !self.batch_in_progress
            && self.available_for(Reserve::Prio) >= self.config.table_buckets as usize
    }

    fn begin(&mut self, victims: Vec<BucketNr>) -> Batch {
        self.batch_in_progress = true;
        let table = self.take_table();
        let mut incoming = std::mem::take(&mut self.lists.abandoned);
        incoming.extend(victims.into_iter().map(|nr| self.invalidate(nr)));
        let gens: Vec<Gen> = self.gens_snapshot();
        Batch::new(incoming, table, gens)
    }

    fn end_batch(&mut self) {
        assert!(self.batch_in_progress, "a batch ends once");
        self.batch_in_progress = false;
    }

    /// All buckets of the table at once, so that a table write never gets stuck half way.
    fn take_table(&mut self) -> Vec<MetadataBucket> {
        let count = self.config.table_buckets;
        (0..count)
            .map(|_| self.take_metadata(Reserve::Prio).expect("counted before"))
            .collect()
    }

    /// Makes every pointer into the bucket stale.
    fn invalidate(&mut self, nr: BucketNr) -> Incoming {
        assert!(self.bucket(nr).is_eligible(), "ALLOC-5");
        self.increment_gen(nr);
        self.go(nr, Place::Idle, Place::Incoming);
        self.update(nr, |bucket| bucket.prio = PRIO_FRESH);
        Incoming::new(nr)
    }
}
