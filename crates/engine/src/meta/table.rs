//! The gen table on disk and the task that makes buckets ready.
//!
//! ```text
//! victims: gen + 1 in memory ─► links, last to first ─► journal entry naming the first (flushes before, durable) ─► reuse
//!                                                                                     └► old chain's buckets are free
//! ```
//! (docs/format.md 6.6, 10.3.) A freed node's gen is not raised in memory before the parent's append is durable, so the table
//! never says more than the tree (10.5).

use crate::alloc::{Batch, Releasing};
use crate::buckets::Buckets;
use crate::device::Disk;
use crate::error::Poison;
use crate::journal::Journal;
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use crate::stats::Cause;
use brigade_env::sync::{Notify, join_all, join_by, yield_now};
use brigade_env::{Durability, Env};
use brigade_format::{BucketNr, prio};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// How often a dry allocator looks again without being asked.
const DRY_PAUSE: Duration = Duration::from_millis(50);

/// Buckets that are looked at in one step.
const SLICE_BUCKETS: usize = 1 << 13;
/// Recycled buckets that are made ready in one step.
const RELEASED_AT_ONCE: usize = 256;
/// Links of a table that are written at once.
const LINKS_AT_ONCE: usize = 4;

/// Buckets that are discarded at once.
const DISCARDS_AT_ONCE: usize = 32;
/// Time for the discards of one batch; the rest of it is not discarded.
const DISCARD_TIME: Duration = Duration::from_millis(100);

/// What the table's writer starts with.
pub struct TableSetup {
    /// See [`brigade_format::CacheGeometry`].
    pub set_magic: u64,
    /// Sectors of a bucket.
    pub bucket_sectors: u64,
    /// Bytes of a bucket that are used.
    pub meta_bytes: usize,
    /// The chain the journal names now; empty for a new set.
    pub chain: Vec<BucketNr>,
    /// Its number.
    pub seq: u64,
    /// Discard buckets before they are reused.
    pub discard: bool,
}

/// See the module documentation.
pub struct GenTable<E: Env> {
    env: E,
    disk: Rc<Disk<E>>,
    poison: Rc<Poison>,
    buckets: Rc<Buckets>,
    setup: TableSetup,
    chain: RefCell<Vec<BucketNr>>,
    seq: Cell<u64>,
    is_closing: Cell<bool>,
    running: Cell<bool>,
    ended: Notify,
}

impl<E: Env> GenTable<E> {
    /// Ties the parts together.
    pub fn new(
        env: E,
        disk: Rc<Disk<E>>,
        poison: Rc<Poison>,
        buckets: Rc<Buckets>,
        setup: TableSetup,
    ) -> Rc<Self> {
        let (chain, seq) = (RefCell::new(setup.chain.clone()), Cell::new(setup.seq));
        buckets.get_mut().set_discards(setup.discard);
        Rc::new(GenTable {
            env,
            disk,
            poison,
            buckets,
            setup,
            chain,
            seq,
            is_closing: Cell::new(false),
            running: Cell::new(false),
            ended: Notify::new(),
        })
    }

    /// Writes the links of the batch's table; nothing names them yet. Gives the head.
    pub async fn write_links(&self, batch: &Batch) -> io::Result<BucketNr> {
        self.write_all(batch, false).await
    }

    async fn write_all(&self, batch: &Batch, is_stop: bool) -> io::Result<BucketNr> {
        let seq = self.seq.get() + 1;
        self.seq.set(seq);
        let links: Vec<BucketNr> = batch
            .table_buckets()
            .iter()
            .map(|bucket| bucket.nr)
            .collect();
        let numbered: Vec<(usize, BucketNr)> = links.iter().copied().enumerate().collect();
        // A few at a time: the links of a large device take much memory.
        for some in numbered.chunks(LINKS_AT_ONCE) {
            let writes = some.iter().map(|(at, nr)| {
                let next = links.get(at + 1).map_or(0, |next| next.0);
                self.write_link(seq, *at as u64, *nr, next, is_stop)
            });
            let results = join_by(1, writes.collect::<Vec<_>>()).await;
            results.into_iter().collect::<io::Result<()>>()?;
        }
        Ok(links[0])
    }

    /// Gens may move between one slice and the next: each says at least what the batch needs.
    async fn write_link(
        &self,
        seq: u64,
        at: u64,
        nr: BucketNr,
        next: u64,
        is_stop: bool,
    ) -> io::Result<()> {
        let per_link = prio::entries_per_bucket(self.setup.meta_bytes) as u64;
        let range = at * per_link..(at + 1) * per_link;
        let mut entries = Vec::new();
        for from in range.clone().step_by(SLICE_BUCKETS) {
            let some = from..range.end.min(from + SLICE_BUCKETS as u64);
            entries.extend(match is_stop {
                true => self.buckets.get().stop_entries(some),
                false => self.buckets.get().table_entries(some),
            });
            yield_now().await;
        }
        let (magic, size) = (self.setup.set_magic, self.setup.meta_bytes);
        let bytes = prio::encode(seq, next, &entries, magic, size);
        yield_now().await;
        let sector = nr.0 * self.setup.bucket_sectors;
        self.disk
            .write_metadata(Cause::GenTable, sector, &bytes, Durability::Volatile)
            .await
    }

    /// The journal names `batch`'s table durably: releases the batch, frees the old chain.
    pub async fn finish(&self, batch: Batch) {
        let links = batch
            .table_buckets()
            .iter()
            .map(|bucket| bucket.nr)
            .collect();
        let old = self.chain.replace(links);
        let mut releasing = Releasing::new(batch);
        while !self
            .buckets
            .get_mut()
            .release_some(&mut releasing, RELEASED_AT_ONCE)
        {
            self.buckets.released.notify_all();
            yield_now().await;
        }
        self.buckets.free_metadata(old);
    }

    /// Writes the table of a batch and releases it.
    pub async fn write(&self, journal: &Journal<E>, batch: Batch) -> io::Result<()> {
        let head = self.write_links(&batch).await?;
        journal.set_roots(|roots| roots.prio_head = head.0);
        if !mutations::is(Mutation::AllocReleasesEarly) {
            journal.write_now().await?;
        }
        self.finish(batch).await;
        self.discard().await;
        Ok(())
    }

    /// Writes the table of a clean stop, if there is room for one. What it says holds as long as nothing else is written.
    pub async fn write_last(&self, journal: &Journal<E>) -> io::Result<bool> {
        let batch = self.buckets.get_mut().begin_table_write();
        let Some(batch) = batch else {
            return Ok(false);
        };
        let head = self.write_all(&batch, true).await?;
        journal.set_roots(|roots| roots.prio_head = head.0);
        journal.write_now().await?;
        self.finish(batch).await;
        Ok(true)
    }

    /// Tells the device about recycled buckets, as far as there is time; the others are ready without that.
    async fn discard(&self) {
        let began = self.env.now();
        loop {
            let is_late =
                self.env.now().saturating_sub(began) > DISCARD_TIME || self.is_closing.get();
            let most = if is_late {
                RELEASED_AT_ONCE
            } else {
                DISCARDS_AT_ONCE
            };
            // Another table's buckets may be among them; who takes one out of the list is alone with it.
            let discarding = self.buckets.get_mut().take_discards(most);
            if discarding.is_empty() {
                self.buckets.released.notify_all();
                return;
            }
            if is_late {
                self.buckets.get_mut().discarded(discarding);
                yield_now().await;
            } else {
                let size = self.setup.bucket_sectors;
                let discard = |run: std::ops::Range<u64>| async move {
                    // A discard is a hint; its failure means nothing.
                    let sectors = (run.end - run.start) * size;
                    let _ = self.disk.discard(run.start * size, sectors).await;
                };
                join_all(discarding.runs().into_iter().map(discard)).await;
                self.buckets.get_mut().discarded(discarding);
            }
            self.buckets.released.notify_all();
        }
    }

    /// The background task: recycles buckets ahead of demand.
    pub async fn run(self: Rc<Self>, journal: Rc<Journal<E>>) {
        self.running.set(true);
        self.recycle(&journal).await;
        self.running.set(false);
        self.ended.notify_all();
    }

    async fn recycle(&self, journal: &Journal<E>) {
        loop {
            let demand = self.buckets.demand.wait();
            if self.is_closing.get() || self.poison.is_thrown() {
                self.buckets.wake_all();
                return;
            }
            let batch = self.begin().await;
            let Some(batch) = batch else {
                if self.buckets.is_dry.get() {
                    marks::hit(Mark::AllocDry);
                    drop(demand);
                    self.env.sleep(DRY_PAUSE).await;
                    self.buckets.released.notify_all();
                } else {
                    demand.await;
                }
                continue;
            };
            self.buckets.is_dry.set(false);
            if self.write(journal, batch).await.is_err() {
                self.buckets.wake_all();
                return;
            }
        }
    }

    async fn begin(&self) -> Option<Batch> {
        let metadata_wanted = &self.buckets.metadata_wanted;
        {
            let alloc = self.buckets.get();
            let metadata_short = metadata_wanted.get() > alloc.metadata_available();
            if !alloc.wants_batch() && !metadata_short {
                // Nothing to be had although something is missing is drought as well.
                self.buckets.is_dry.set(alloc.is_short_of_victims());
                return None;
            }
        }
        self.gather().await;
        let is_data_short = self.buckets.is_data_waited_for();
        let mut alloc = self.buckets.get_mut();
        let metadata_short = metadata_wanted.get() > alloc.metadata_available();
        if !metadata_short && !is_data_short && alloc.may_wait_for_more() {
            self.buckets.is_dry.set(false);
            return None;
        }
        let batch = alloc.begin_batch();
        // If it is only another table that has to come first, this is no drought.
        let is_dry = batch.is_none() && !alloc.is_batch_under_way();
        self.buckets.is_dry.set(is_dry);
        batch
    }

    /// Victims for one table, a few at a time: nobody waits for the choice of many thousand.
    async fn gather(&self) {
        loop {
            {
                let mut alloc = self.buckets.get_mut();
                let gathered = alloc.gather_step(|| self.env.random_u64());
                if gathered.taken > 0 {
                    self.buckets.is_dry.set(false);
                }
                if gathered.is_over || alloc.is_batch_full() || self.is_closing.get() {
                    return;
                }
            }
            yield_now().await;
        }
    }

    /// Lets the task end and waits for its last table.
    pub async fn stop(&self) {
        self.is_closing.set(true);
        self.buckets.demand.notify_all();
        while self.running.get() {
            self.ended.wait().await;
        }
    }
}
