//! A cache set that is open.

use crate::btree::{Index, Tree};
use crate::data::{Mover, Sweeper};
use crate::device::Disk;
use crate::error::Error;
use crate::journal::Journal;
use crate::meta::{CacheSuper, GenTable, UuidTable};
use crate::recovery::{Finding, LoadStats};
use crate::request::Cache;
use crate::settings::Knob;
use crate::stats::{
    BtreeStatus, BucketStatus, CacheSetStatus, DeviceStatus, GcStatus, JournalStatus,
    RecycledStatus, StallStatus, VictimStatus,
};
use brigade_env::Env;
use brigade_format::{BucketNr, CacheGeometry, Gen, uuid_text};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

/// Bytes of a key with one pointer.
const KEY_BYTES: u64 = 24;

/// See the module documentation.
pub struct CacheSet<E: Env> {
    /// What requests use.
    pub cache: Rc<Cache<E>>,
    /// The cache device's superblock as it is on disk.
    pub superblock: CacheSuper<E>,
    /// Its sizes.
    pub geometry: CacheGeometry,
    /// Which inode is what.
    pub uuids: Rc<UuidTable<E>>,
    /// What writing needs; absent when the set is open read-only.
    pub running: Option<Running<E>>,
    /// What was noticed at open.
    pub findings: Vec<Finding>,
    /// What opening read.
    pub loaded: LoadStats,
    /// When it was opened.
    pub opened: Duration,
    /// Leaves were not read when it was opened, so the next line does not know of all.
    pub was_counted_later: bool,
    /// Slots of devices that have not come since the set was opened after a kernel's session: what is cached of them may be older than
    /// what they have (F70).
    pub unsettled: RefCell<BTreeSet<u32>>,
    /// Changes of index and allocator at the last [`CacheSet::audit_changes`].
    pub audited: Cell<(u64, u64)>,
    /// Inodes with keys in tree or journal: their slots must not be given out.
    pub inodes_seen: Rc<RefCell<BTreeSet<u32>>>,
}

/// The parts and tasks of a set that may be written.
pub struct Running<E: Env> {
    /// Makes changes durable.
    pub journal: Rc<Journal<E>>,
    /// The index on disk.
    pub tree: Rc<Tree<E>>,
    /// Makes buckets ready.
    pub table: Rc<GenTable<E>>,
    /// Empties buckets that are mostly dead.
    pub mover: Rc<Mover<E>>,
    /// Makes slots of removed devices free.
    pub sweeper: Rc<Sweeper<E>>,
}

impl<E: Env> CacheSet<E> {
    /// The cache device.
    pub fn disk(&self) -> &Rc<Disk<E>> {
        &self.cache.disk
    }

    /// The set's identity, as text.
    pub fn uuid(&self) -> String {
        uuid_text(&self.superblock.get().set_uuid)
    }

    /// What a kernel's session left of a device does not matter any more. Journal entries say that nothing has to be compared after this
    /// session only once that is so of all devices: one that never came would else be taken for settled at the next opening
    /// (docs/format.md 8.4).
    pub fn settled(&self, slot: u32) {
        let mut unsettled = self.unsettled.borrow_mut();
        let was_last = unsettled.remove(&slot) && unsettled.is_empty();
        if let (true, Some(running)) = (was_last, &self.running) {
            running.journal.settle();
        }
    }

    /// Checks every invariant that can be seen from memory, slowly; panics with what does not hold.
    pub fn audit(&self) {
        let (index, alloc) = (self.cache.index.borrow(), self.cache.buckets.get());
        index.audit(&alloc);
        self.disk().written_by();
        alloc.audit();
        self.audit_journal();
    }

    fn audit_journal(&self) {
        if let Some(running) = &self.running {
            let index = self.cache.index.borrow();
            running.journal.audit(index.nodes.pinned_seqs());
        }
    }

    /// The same, but for what is counted in index and allocator if nothing can have changed there since this was asked last.
    pub fn audit_changes(&self) {
        let now = (self.cache.index.changes(), self.cache.buckets.changes());
        match self.audited.replace(now) == now {
            true => self.audit_journal(),
            false => self.audit(),
        }
    }

    /// See [`crate::Server::oldest_gens`].
    pub fn oldest_gens(&self) -> Vec<Gen> {
        let alloc = self.cache.buckets.get();
        (0..self.geometry.nbuckets)
            .map(|nr| alloc.oldest_gen_of(BucketNr(nr)))
            .collect()
    }

    /// Writes everything and ends; what is dirty stays dirty. After this the next open has nothing to replay.
    pub async fn stop(&self) -> Result<(), Error> {
        let Some(running) = &self.running else {
            return Ok(());
        };
        let name = self.disk().name();
        running.mover.stop().await;
        running.sweeper.stop().await;
        self.cache.buckets.end_fills().await;
        running.tree.stop().await;
        // Writing leaves may need buckets, so whoever recycles them goes last.
        let written = running.tree.write_all().await;
        // Until then buckets may be waited for that can be recycled once all leaves are counted.
        self.cache.pages.stop();
        running.table.stop().await;
        let result = match written {
            Ok(()) => match running.table.write_last(&running.journal).await {
                Ok(with_table) => running.journal.close(with_table && self.names_all()).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        running.journal.abandon();
        match (result, self.cache.poison.reason()) {
            (Ok(()), None) => Ok(()),
            (_, Some(reason)) => Err(Error {
                kind: crate::ErrorKind::Poisoned,
                device: name.into(),
                what: reason,
            }),
            (Err(error), None) => Err(Error::io(name, "stop", &error)),
        }
    }

    /// Rewrites all nodes soon, so that buckets which nothing live points to can be reused at once.
    pub fn ask_for_gc(&self) {
        if let Some(running) = &self.running {
            running.tree.ask_for_gc();
        }
    }

    /// What is wrong with it now, in words.
    pub fn troubles(&self) -> Vec<String> {
        let name = self.disk().name();
        let failed = self.cache.poison.reason();
        let mut said: Vec<String> = failed
            .map(|why| format!("{name}: {why}"))
            .into_iter()
            .collect();
        if let Some((count, last)) = self.disk().errors() {
            let aside = self.cache.buckets.get().set_aside_count();
            said.push(format!(
                "{last} ({count} errors so far; {aside} buckets are not used any more)"
            ));
        }
        if self.cache.settings.is_on(Knob::SetIoDisable) {
            said.push(format!("{name}: requests are refused, as io_disable is on"));
        }
        said
    }

    /// Has collections and moving rest, or go on.
    pub fn pause_gc(&self, is_paused: bool) {
        if let Some(running) = &self.running {
            running.tree.pause_gc(is_paused);
            running.mover.pause_moving(is_paused);
        }
    }

    fn gc_status(&self) -> GcStatus {
        let (passes, pass) = match &self.running {
            Some(running) => running.tree.gc(),
            None => Default::default(),
        };
        let (failed_passes, last_failure) = match &self.running {
            Some(running) => running.tree.gc_failures(),
            None => Default::default(),
        };
        let (uncounted, leaves) = self.cache.pages.uncounted();
        let mover = self.running.as_ref().map(|it| &it.mover);
        let sweeper = self.running.as_ref().map(|it| &it.sweeper);
        let now = self.cache.pages.now();
        let (is_running, reason, done, total, began) = match uncounted > 0 {
            true => (true, "first count", leaves - uncounted, leaves, self.opened),
            false => (
                pass.is_running,
                pass.reason,
                pass.done,
                pass.total,
                pass.began,
            ),
        };
        let left = total.saturating_sub(done) as u32;
        let eta = now.saturating_sub(began) * left / (done.max(1) as u32);
        GcStatus {
            marks_built: !self.cache.buckets.get().is_counting(),
            running: is_running,
            paused: self.running.as_ref().is_some_and(|it| it.tree.gc_paused()),
            reason: reason.into(),
            progress_percent: (done * 100 / total.max(1)) as u64,
            eta_seconds: if is_running { eta.as_secs() } else { 0 },
            longest_step_us: self.cache.steps.longest().as_micros() as u64,
            passes,
            failed_passes,
            last_failure,
            generations_behind: u64::from(self.cache.buckets.get().need_gc()),
            moved_bytes: mover.map_or(0, |mover| mover.moved_bytes.get()),
            moved_buckets: mover.map_or(0, |mover| mover.moved_buckets.get()),
            removed_slots: self.removed_slots(),
            reclaimed_slots: sweeper.map_or(0, |sweeper| sweeper.reclaimed_slots.get()),
            reclaimed_bytes: sweeper.map_or(0, |sweeper| sweeper.reclaimed_bytes.get()),
        }
    }

    fn removed_slots(&self) -> u64 {
        let entries = self.uuids.entries();
        entries.iter().filter(|it| it.is_invalidated()).count() as u64
    }

    /// Whether no key is of an inode whose slot in the UUID table is empty, as far as is known from the opening.
    fn names_all(&self) -> bool {
        let entries = self.uuids.entries();
        let is_named = |inode: &u32| {
            let entry = entries.get(*inode as usize);
            entry.is_some_and(|entry| !entry.is_empty())
        };
        self.inodes_seen.borrow().iter().all(is_named)
    }

    fn stalls(&self) -> StallStatus {
        let counters = &self.cache.counters;
        let running = self.running.as_ref();
        StallStatus {
            bucket: counters.bucket_waits.get(),
            fill_bucket: counters.fill_waits.get(),
            fill_memory: counters.fill_request_waits.get(),
            journal: running.map_or(0, |running| running.journal.room_waits()),
            leaf: self.cache.pages.waits(),
        }
    }

    /// For `status`.
    pub fn status(&self) -> CacheSetStatus {
        let index = self.cache.index.borrow();
        let buckets = self.cache.buckets.get();
        let (stats, refused) = (buckets.stats(), buckets.refusals());
        let (written_bytes, metadata_written_bytes) = self.disk().written();
        let counters = &self.cache.counters;
        let recycled = buckets.recycled();
        let root = index.nodes.root();
        let node_bytes = u64::from(self.geometry.node_sectors) * 512;
        let root_keys = match index.nodes.get(root).level {
            0 => index.extents(),
            _ => index.nodes.get(root).children.len(),
        } as u64;
        let (leaf_reads, leaf_read_bytes) = self.cache.pages.loads();
        let state = match (self.cache.poison.is_thrown(), &self.running) {
            (true, _) => "poisoned",
            (false, None) => "read-only",
            (false, Some(_)) => "running",
        };
        CacheSetStatus {
            uuid: self.uuid(),
            state: state.into(),
            devices: vec![DeviceStatus {
                path: self.disk().name().into(),
                bucket_bytes: self.geometry.bucket_bytes(),
                block_bytes: self.geometry.block_bytes() as u64,
                buckets: BucketStatus {
                    total: stats.total,
                    free: stats.free,
                    clean: stats.clean,
                    dirty: stats.dirty,
                    metadata: stats.metadata,
                    set_aside: buckets.set_aside_count() as u64,
                },
                victims_refused: VictimStatus {
                    dirty: refused.dirty,
                    pinned: refused.pinned,
                    generation: refused.gen_age,
                    table: refused.table_lag,
                    used: refused.touched,
                },
                written_bytes,
                metadata_written_bytes,
                written_by: self.disk().written_by(),
                aged_steps: buckets.aged_steps(),
                recycled: RecycledStatus {
                    buckets: recycled.empty + recycled.evicted,
                    empty: recycled.empty,
                    evicted: recycled.evicted,
                    evicted_bytes: recycled.evicted_sectors * 512,
                },
            }],
            btree: BtreeStatus {
                keys: index.extents() as u64,
                nodes: index.nodes.count() as u64,
                depth: u64::from(index.nodes.get(root).level),
                memory_bytes: index.memory_bytes(),
                used_percent: used_percent(&index, self.geometry.node_bytes()),
                read_bytes: self.loaded.bytes_read,
                leaf_reads,
                leaf_read_bytes,
            },
            journal: self
                .running
                .as_ref()
                .map_or(JournalStatus::default(), |running| running.journal.status()),
            gc: self.gc_status(),
            times: self.cache.pages.times.status(self.cache.pages.now()),
            background: self.cache.steps.status(),
            stats: counters.decaying.shown(self.cache.pages.now()),
            stalls: self.stalls(),
            cache_read_races: counters.read_races.get(),
            cache_available_percent: 100 - u64::from(stats.in_use_percent),
            average_key_size: buckets.live_sectors() * 512 / (index.extents() as u64).max(1),
            congested: self.disk().congested() * 512,
            btree_cache_size: (index.nodes.count() as u64).saturating_sub(1) * node_bytes,
            root_usage_percent: root_keys * KEY_BYTES * 100 / node_bytes.max(1),
        }
    }
}

/// What live keys take of the leaves, as a kernel's collection finds it.
fn used_percent(index: &Index, node_bytes: usize) -> u64 {
    let leaves = (index.nodes.leaf_count() * node_bytes) as u64;
    index.extents() as u64 * KEY_BYTES * 100 / leaves.max(1)
}
