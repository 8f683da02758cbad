//! Recycling: victims are gathered, one write of the gen table pays for all of them, and only then are they reused.

use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use brigade_format::{BucketNr, Gen};

use super::bucket::{Class, Place};
use super::lists::Reserve;
use super::metadata::MetadataBucket;
use super::tokens::{Batch, Incoming, Ready, Releasing, TableDurable};
use super::victims::Gathered;
use super::{Allocator, GATHER_STEP, LOOKS_STEP, PRIO_FRESH, TABLE_LAG_WANTS_WRITE};

/// Buckets that were recycled so far.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Recycled {
    /// Nothing in them was live.
    pub empty: u64,
    /// They held clean data.
    pub evicted: u64,
    /// Sectors of it.
    pub evicted_sectors: u64,
}

impl Allocator {
    /// Should a table be written soon? True when buckets for data run low and there are some to recycle, or when gens
    /// run ahead of the durable table; never while a batch is under way.
    pub fn wants_batch(&self) -> bool {
        if self.batch_in_progress {
            return false;
        }
        let may_help = self.counts[Class::Clean] > 0 || !self.lists.incoming.is_empty();
        (self.ready_for_data() < self.low_water() && may_help)
            || (self.table_lag >= TABLE_LAG_WANTS_WRITE && !mutations::is(Mutation::AllocLagUnseen))
    }

    /// Are buckets for data running low with nothing to recycle in sight?
    pub fn is_short_of_victims(&self) -> bool {
        !self.batch_in_progress && self.ready_for_data() < self.low_water() && !self.wants_batch()
    }

    /// Is the batch as large as it gets? Smaller ones are worth a table write only if somebody waits.
    pub fn is_batch_full(&self) -> bool {
        self.lists.incoming.len() >= self.lists.sizes.batch
    }

    /// A small batch, while there are buckets left: more may become clean before a table has to be written.
    pub fn may_wait_for_more(&self) -> bool {
        !self.lists.incoming.is_empty()
            && !self.is_batch_full()
            && self.ready_for_data() > self.low_water() / 2
            && self.table_lag < TABLE_LAG_WANTS_WRITE
    }

    /// Buckets that data can have at once.
    pub fn ready_for_data(&self) -> usize {
        self.lists.ready(Reserve::Normal).len() + self.lists.unused.len()
    }

    /// With fewer buckets than this for data, more are made: twice what was lately taken while a table was written, so that
    /// they last until the next ones come.
    pub fn low_water(&self) -> usize {
        if mutations::is(Mutation::AllocBatchLate) {
            return 1;
        }
        let most = (self.config.nbuckets / 16) as usize;
        let wanted = (2 * self.taken_lately).min(most);
        wanted.max(self.lists.sizes.low_water)
    }

    /// Recycles up to `most` more buckets into the next batch; gives how many. Their gens are raised, and they may be filled
    /// once a table says so. `random` is asked by the random policy only.
    pub fn gather(&mut self, most: usize, random: impl FnMut() -> u64) -> usize {
        self.gather_some(most, usize::MAX, random).taken
    }

    /// The same in a step that ends after so many looks at buckets, most of which may have been used since they were looked at
    /// last. At most [`GATHER_STEP`] victims and [`LOOKS_STEP`] looks are some tens of microseconds.
    pub fn gather_step(&mut self, random: impl FnMut() -> u64) -> Gathered {
        self.gather_some(GATHER_STEP, LOOKS_STEP, random)
    }

    fn gather_some(&mut self, most: usize, looks: usize, random: impl FnMut() -> u64) -> Gathered {
        self.looks_left = looks;
        assert!(self.started, "a batch while loading");
        let room = self
            .lists
            .sizes
            .batch
            .saturating_sub(self.lists.incoming.len());
        let one = mutations::is(Mutation::AllocBatchOfOne);
        let room = if one { room.min(1) } else { room };
        self.victims(room.min(most), random, |alloc, nr| {
            let bucket = alloc.invalidate(nr);
            if alloc.is_synchronous && !mutations::is(Mutation::AllocNoTable) {
                alloc.lists.incoming.push(bucket);
            } else {
                alloc.release(bucket, &TableDurable::not_needed());
            }
        })
    }

    /// Number of the first gen table that will say all that is stale now; see [`Allocator::tables_durable`].
    pub fn next_table(&self) -> u64 {
        self.tables_begun + 1
    }

    /// Number of the last gen table that is durable.
    pub fn tables_durable(&self) -> u64 {
        self.tables_durable
    }

    /// Whether a table is being written.
    pub fn is_batch_under_way(&self) -> bool {
        self.batch_in_progress
    }

    /// Begins to write a table for what was gathered, and sets the table's own buckets aside.
    ///
    /// `None` if a batch is under way, if nothing was gathered (and gens do not run ahead), or if there are no
    /// buckets for the table.
    pub fn begin_batch(&mut self) -> Option<Batch> {
        let is_idle = self.lists.incoming.is_empty();
        if is_idle && self.table_lag < TABLE_LAG_WANTS_WRITE {
            return None;
        }
        let batch = self.begin_table_write()?;
        if is_idle {
            marks::hit(Mark::AllocBatchOfNothing);
        }
        Some(batch)
    }

    /// A table whether or not anything was gathered: written for its own sake (first run, clean shutdown).
    pub fn begin_table_write(&mut self) -> Option<Batch> {
        assert!(self.started, "a batch while loading");
        let has_room = self.available_for(Reserve::Prio) >= self.config.table_buckets as usize;
        (!self.batch_in_progress && has_room).then(|| self.begin())
    }

    /// The table is written and a durable journal entry names it: the recycled buckets may be filled.
    ///
    /// The table's buckets stay metadata; the caller frees those of the table before.
    pub fn batch_durable(&mut self, batch: Batch) {
        let mut releasing = Releasing::new(batch);
        while !self.release_some(&mut releasing, usize::MAX) {}
    }

    /// A step of [`Allocator::batch_durable`]: at most `most` buckets are looked at. Says whether it was the last one; until then no
    /// other batch begins.
    pub fn release_some(&mut self, releasing: &mut Releasing, most: usize) -> bool {
        let now = mutations::is(Mutation::AllocTableSaysNow);
        if releasing.gens.len() > 0 {
            for (nr, r#gen) in releasing.gens.by_ref().take(most) {
                let bucket = &mut self.buckets[nr as usize];
                bucket.durable_gen = if now { bucket.r#gen } else { r#gen };
                if bucket.table_lag() > 0 {
                    self.lagging.push(nr);
                }
            }
            return false;
        }
        if releasing.incoming.len() > 0 {
            for bucket in releasing.incoming.by_ref().take(most) {
                self.release(bucket, &releasing.proof);
            }
            return false;
        }
        let from = releasing.looked_at.unwrap_or_else(|| {
            // Gens go on meanwhile, so what is noted of those from here on is part of the new maximum.
            self.table_lag_next = 0;
            0
        });
        let to = self.lagging.len().min(from.saturating_add(most));
        let lag = |nr: &u32| self.buckets[*nr as usize].table_lag();
        let highest = self.lagging[from..to].iter().map(lag).max().unwrap_or(0);
        self.table_lag_next = self.table_lag_next.max(highest);
        releasing.looked_at = Some(to);
        if to < self.lagging.len() {
            return false;
        }
        self.table_lag = self.table_lag_next;
        self.tables_durable = self.tables_begun;
        self.end_batch();
        self.unpark();
        let taken = (self.lists.taken - self.taken_before) as usize;
        self.taken_lately = taken.max(self.taken_lately - self.taken_lately.div_ceil(8));
        true
    }

    /// The table may or may not have reached the device: nothing is released, and the next batch takes the recycled
    /// buckets along. The table's buckets stay metadata; a caller who knows that nothing durable names them frees them.
    pub fn abandon_batch(&mut self, batch: Batch) {
        if mutations::is(Mutation::AllocAbandonReleases) {
            return self.batch_durable(batch);
        }
        self.end_batch();
        let (incoming, gens) = batch.abandoned();
        self.lagging.extend(gens.into_iter().map(|(nr, _)| nr));
        let gathered = std::mem::replace(&mut self.lists.incoming, incoming);
        self.lists.incoming.extend(gathered);
    }

    fn begin(&mut self) -> Batch {
        self.batch_in_progress = true;
        self.tables_begun += 1;
        self.taken_before = self.lists.taken;
        let table = self.take_table();
        let incoming = std::mem::take(&mut self.lists.incoming);
        let gens: Vec<(u32, Gen)> = std::mem::take(&mut self.lagging)
            .into_iter()
            .map(|nr| (nr, self.buckets[nr as usize].r#gen))
            .collect();
        Batch::new(incoming, table, gens)
    }

    fn end_batch(&mut self) {
        assert!(self.batch_in_progress, "a batch ends once");
        self.batch_in_progress = false;
    }

    fn release(&mut self, bucket: Incoming, proof: &TableDurable) {
        let bucket = bucket.release(proof);
        if self.discards && !mutations::is(Mutation::AllocDiscardSkipped) {
            self.lists.to_discard.push_back(bucket);
        } else {
            self.make_ready(bucket);
        }
    }

    pub(super) fn make_ready(&mut self, bucket: Ready) {
        self.go(bucket.nr(), Place::Incoming, Place::Ready);
        self.lists.push_ready(bucket);
    }

    /// All buckets of the table at once, so that a table write never gets stuck half way.
    fn take_table(&mut self) -> Vec<MetadataBucket> {
        let count = self.config.table_buckets;
        (0..count)
            .map(|_| self.take_metadata(Reserve::Prio).expect("counted before"))
            .collect()
    }

    /// Makes every pointer into the bucket stale.
    pub(super) fn invalidate(&mut self, nr: BucketNr) -> Incoming {
        let bucket = *self.bucket(nr);
        assert!(bucket.is_eligible(), "ALLOC-5");
        let live = u64::from(bucket.live.get());
        self.recycled.empty += u64::from(live == 0);
        self.recycled.evicted += u64::from(live > 0);
        self.recycled.evicted_sectors += live;
        if bucket.live.get() > 0 {
            let sector = nr.0 * u64::from(self.config.bucket_sectors);
            tracing::trace!(
                target: "brigade::alloc",
                sectors = bucket.live.get(),
                bucket = nr.0,
                sector,
                "invalidate"
            );
        }
        self.increment_gen(nr);
        self.go(nr, Place::Idle, Place::Incoming);
        if !mutations::is(Mutation::AllocKeepsPrio) {
            self.set_prio(nr, PRIO_FRESH);
        }
        Incoming::new(nr)
    }
}
