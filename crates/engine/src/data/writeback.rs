//! Background writing back of dirty data.
//!
//! ```text
//! dirty extents, ascending ─► keys durable ─► hold the range ─► read from the cache ─► still the same? ─► write to the backing device
//!    ─► flush it ─► still the same? clean in the index, journalled      (docs/format.md 10.10)
//! nothing dirty left: cleanings durable ─► the backing device says clean   (docs/format.md 9.5)
//! ```
//! "Still the same" compares location and dirty flag per sector in the step that acts on it, so a write that came meanwhile
//! is never called clean. Nor is a range that was written directly since: there the backing device has newer data before the
//! index says so, and a candidate tells. A round is bounded in extents, bytes and keys looked at.

use super::candidates::{Candidate, Candidates};
use super::insert::Inserter;
use super::locks::RangeLocks;
use crate::btree::{Index, Pages};
use crate::buckets::Buckets;
use crate::device::Disk;
use crate::extents::Extent;
use crate::journal::Journal;
use crate::limits::{WRITEBACK_BYTES, WRITEBACK_EXTENTS, WRITEBACK_IN_USE_PERCENT};
use crate::marks::{self, Mark};
use crate::meta::BackingSuper;
use crate::mutations::{self, Mutation};
use crate::settings::{Knob, Settings};
use crate::stats::{Cause, VolumeCounters};
use brigade_env::sync::{Notify, join_all, join_by, yield_now};
use brigade_env::{Durability, Env};
use brigade_format::BackingState;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// Longest piece written back in one I/O, in sectors.
const PIECE_SECTORS: u64 = 2048;
/// Keys looked at in one synchronous step.
const SCAN_KEYS: usize = 512;
/// Bytes that copying begins with in one step, about, and extents.
const COPIED_AT_ONCE: u64 = 256 << 10;
const COPIES_AT_ONCE: u64 = 16;
/// Extents that become clean in one step.
const CLEANED_AT_ONCE: usize = 32;
/// Pause after an error.
const PAUSE: Duration = Duration::from_secs(1);
/// Time between looks while there is little to do.
const LOOK: Duration = Duration::from_millis(100);

/// What a volume's writeback works with.
pub struct WritebackParts<E: Env> {
    /// The world.
    pub env: E,
    /// The volume's slot.
    pub inode: u32,
    /// Where dirty data is.
    pub cache: Rc<Disk<E>>,
    /// Where it goes.
    pub backing: Rc<Disk<E>>,
    /// Its state.
    pub superblock: Rc<BackingSuper<E>>,
    /// First and last sector (exclusive) of the backing device that are served.
    pub range: (u64, u64),
    /// The index.
    pub index: Rc<RefCell<Index>>,
    /// Brings parts of it into memory.
    pub pages: Rc<Pages<E>>,
    /// The way into it.
    pub inserter: Rc<Inserter<E>>,
    /// For making cleanings durable.
    pub journal: Rc<Journal<E>>,
    /// Who writes to the backing device.
    pub locks: Rc<RangeLocks>,
    /// Tells whether somebody wrote to the backing device since data was copied there.
    pub candidates: Rc<Candidates>,
    /// What happened.
    pub counters: Rc<VolumeCounters>,
    /// Sectors of the cache, of which a share may be dirty.
    pub cache_sectors: u64,
    /// The cache's buckets: scattered dirty data fills many of them long before it fills the target.
    pub buckets: Rc<Buckets>,
    /// How fast, and whether at all.
    pub settings: Rc<Settings>,
    /// When the last request came.
    pub last_request: Rc<Cell<Duration>>,
}

/// See the module documentation.
pub struct Writeback<E: Env> {
    parts: WritebackParts<E>,
    cursor: Cell<u64>,
    is_closing: Cell<bool>,
    running: Cell<bool>,
    changed: Notify,
}

impl<E: Env> Writeback<E> {
    /// Of one volume.
    pub fn new(parts: WritebackParts<E>) -> Rc<Self> {
        let (is_closing, running) = (Cell::new(false), Cell::new(false));
        Rc::new(Writeback {
            parts,
            cursor: Cell::new(0),
            is_closing,
            running,
            changed: Notify::new(),
        })
    }

    fn dirty(&self) -> u64 {
        self.parts.index.borrow().dirty_sectors(self.parts.inode)
    }

    /// The background task.
    pub async fn run(self: Rc<Self>) {
        self.running.set(true);
        while !self.is_closing.get() {
            if !self.parts.settings.is_on(Knob::WritebackRunning) {
                self.wait(self.parts.settings.changed.wait()).await;
                continue;
            }
            let dirtied = self.parts.inserter.dirtied.wait();
            let dirty = self.dirty();
            let idle = self
                .parts
                .env
                .now()
                .saturating_sub(self.parts.last_request.get())
                >= self.parts.settings.time(Knob::WritebackDelay);
            let is_counted = self.parts.index.borrow().nodes.uncounted() == 0;
            let outcome = if !is_counted {
                // Nobody knows what is dirty.
                self.pause(LOOK).await;
                continue;
            } else if dirty > 0 && (idle || self.is_pressed(dirty)) {
                self.round().await
            } else if dirty == 0 {
                let _ = self.become_clean().await;
                if self.dirty() == 0 && !self.is_closing.get() {
                    self.wait(dirtied).await;
                }
                continue;
            } else {
                self.pause(LOOK.min(self.parts.settings.time(Knob::WritebackDelay)))
                    .await;
                continue;
            };
            if matches!(outcome, Ok(0)) {
                // What is dirty is not to be had, or is written by others.
                self.pause(LOOK).await;
            }
            if let Err(error) = outcome {
                marks::hit(Mark::WritebackFailed);
                tracing::warn!(device = self.parts.backing.name(), %error, "write-back failed; the data stays dirty");
                self.pause(PAUSE).await;
            }
        }
        self.running.set(false);
        self.changed.notify_all();
    }

    fn is_pressed(&self, dirty: u64) -> bool {
        let percent = self.parts.settings.get(Knob::WritebackPercent);
        let target = self.parts.cache_sectors / 100 * percent;
        let in_use = u64::from(self.parts.buckets.get().stats().in_use_percent);
        dirty > target || in_use > WRITEBACK_IN_USE_PERCENT
    }

    async fn pause(&self, pause: Duration) {
        let closing = self.changed.wait();
        if !self.is_closing.get() {
            crate::wait::either(self.parts.env.sleep(pause), closing).await;
        }
    }

    async fn wait(&self, dirtied: impl Future<Output = ()>) {
        let closing = self.changed.wait();
        crate::wait::either(dirtied, closing).await;
    }

    async fn become_clean(&self) -> io::Result<()> {
        if self.parts.superblock.state() != BackingState::Dirty {
            return Ok(());
        }
        self.parts.backing.flush().await?;
        self.parts.journal.flush().await?;
        self.parts
            .superblock
            .become_clean(|| self.dirty() == 0)
            .await
            .map(|_| ())
    }

    /// Writes some dirty extents back; gives the sectors cleaned.
    pub async fn round(&self) -> io::Result<u64> {
        let batch = self.next_batch().await?;
        if batch.is_empty() {
            return Ok(0);
        }
        // A crash must not take the key and leave the data on the backing device, under an older clean copy.
        self.parts.journal.flush().await?;
        let copies = batch.iter().map(|extent| self.write_one(*extent));
        let results = join_by(at_once(&batch), copies).await;
        let (mut candidates, mut copied) = (BTreeMap::new(), Vec::new());
        for (candidate, extents) in results.into_iter().collect::<io::Result<Vec<_>>>()? {
            if let Some(first) = extents.first() {
                candidates.insert(first.start, candidate);
                copied.extend(extents);
            }
        }
        if copied.is_empty() {
            return Ok(0);
        }
        if !mutations::is(Mutation::CleanWithoutFlush) {
            self.parts.backing.flush().await?;
        }
        let clean: Vec<_> = copied
            .iter()
            .map(|extent| Extent {
                dirty: false,
                ..*extent
            })
            .collect();
        let before = self.dirty();
        for some in clean.chunks(CLEANED_AT_ONCE) {
            self.clean(some, &candidates).await?;
            yield_now().await;
        }
        let sectors = copied.iter().map(Extent::sectors).sum::<u64>();
        self.parts.counters.written_back_bytes.add(sectors * 512);
        Ok(sectors.max(before.saturating_sub(self.dirty())))
    }

    /// Calls extents clean where nothing was written since they were copied.
    async fn clean(
        &self,
        clean: &[Extent],
        candidates: &BTreeMap<u64, Candidate>,
    ) -> io::Result<()> {
        self.parts
            .inserter
            .insert(clean, |index, extent| {
                // Each of the two looks below sees what a write to the cache changed, so both have to be missing.
                if mutations::is(Mutation::WritebackIgnoresChange) {
                    return vec![*extent];
                }
                // What was written directly since is not what was copied, although the index may not know yet.
                let candidate = candidates.range(..=extent.start).next_back();
                if candidate.is_none_or(|(_, candidate)| candidate.is_cancelled())
                    && !mutations::is(Mutation::WritebackIgnoresDirect)
                {
                    marks::hit(Mark::WritebackChanged);
                    return Vec::new();
                }
                let still = same(
                    index,
                    &Extent {
                        dirty: true,
                        ..*extent
                    },
                );
                still
                    .into_iter()
                    .map(|extent| Extent {
                        dirty: false,
                        ..extent
                    })
                    .collect()
            })
            .await
            .map(|_| ())
    }

    /// Copies what is still there of an extent; gives what was copied, and what tells of writes since.
    async fn write_one(&self, extent: Extent) -> io::Result<(Candidate, Vec<Extent>)> {
        let parts = &self.parts;
        let _held = parts.locks.lock(extent.start, extent.end).await;
        let candidate = parts.candidates.open(extent.start, extent.end);
        self.bring(&extent).await?;
        let before = same(&parts.index.borrow(), &extent);
        let read = |piece: Extent| async move {
            let buffer = parts.cache.buffers().get(piece.sectors() as usize * 512);
            let ptr = piece.ptr.expect("dirty data has a place");
            parts
                .cache
                .read_data(ptr.sector(), buffer)
                .await
                .map(|buffer| (piece, buffer))
        };
        let data = join_all(before.into_iter().map(read)).await;
        let write = |result: io::Result<(Extent, brigade_env::Buffer)>| async move {
            let (piece, buffer) = result?;
            self.bring(&piece).await?;
            if same(&parts.index.borrow(), &piece) != [piece] {
                return Ok(None);
            }
            parts
                .backing
                .write(
                    Cause::WrittenBack,
                    piece.start,
                    buffer,
                    Durability::Volatile,
                )
                .await
                .map(|_| Some(piece))
        };
        let written = join_all(data.into_iter().map(write)).await;
        let copied = written.into_iter().collect::<io::Result<Vec<_>>>()?;
        Ok((candidate, copied.into_iter().flatten().collect()))
    }

    async fn bring(&self, extent: &Extent) -> io::Result<()> {
        let pages = &self.parts.pages;
        pages
            .bring_urgently(extent.inode, extent.start, extent.end)
            .await
    }

    /// Dirty extents from the cursor on, in pieces.
    async fn next_batch(&self) -> io::Result<Vec<Extent>> {
        let (low, high) = self.parts.range;
        let mut batch = Vec::new();
        let mut bytes = 0;
        let start = self.cursor.get().clamp(low, high);
        let mut at = start;
        let mut wrapped = false;
        loop {
            let (found, next) = self.scan(at, if wrapped { start } else { high }).await?;
            for extent in found {
                if batch.len() >= WRITEBACK_EXTENTS || bytes >= WRITEBACK_BYTES {
                    self.cursor.set(extent.start);
                    return Ok(batch);
                }
                bytes += extent.sectors() * 512;
                batch.push(extent);
            }
            match next {
                Some(next) => at = next,
                None if wrapped || start == low => {
                    self.cursor.set(low);
                    return Ok(batch);
                }
                None => {
                    marks::hit(Mark::WritebackWraps);
                    (wrapped, at) = (true, low);
                }
            }
            yield_now().await;
        }
    }

    /// Dirty pieces among the next keys, and where to go on.
    async fn scan(&self, from: u64, to: u64) -> io::Result<(Vec<Extent>, Option<u64>)> {
        let inode = self.parts.inode;
        let next = self.parts.index.borrow().nodes.next_dirty(inode, from, to);
        let Some((start, end)) = next else {
            return Ok((Vec::new(), None));
        };
        self.parts.pages.bring_urgently(inode, start, end).await?;
        let index = self.parts.index.borrow();
        let mut found = Vec::new();
        for (seen, extent) in index.range(inode, start, end).enumerate() {
            if seen == SCAN_KEYS || found.len() > WRITEBACK_EXTENTS {
                return Ok((found, Some(extent.start)));
            }
            let mut at = extent.start;
            while extent.dirty && at < extent.end {
                let end = extent.end.min(at + PIECE_SECTORS);
                found.push(extent.slice(at, end));
                at = end;
            }
        }
        Ok((found, (end < to).then_some(end)))
    }

    /// Stops the task and waits for its round to end.
    pub async fn stop(&self) {
        self.is_closing.set(true);
        self.changed.notify_all();
        self.parts.inserter.dirtied.notify_all();
        while self.running.get() {
            self.changed.wait().await;
        }
    }
}

/// How many extents of a batch begin to be copied in one step.
fn at_once(batch: &[Extent]) -> usize {
    let bytes: u64 = batch.iter().map(|extent| extent.sectors() * 512).sum();
    let each = (bytes / batch.len().max(1) as u64).max(512);
    (COPIED_AT_ONCE / each).clamp(1, COPIES_AT_ONCE) as usize
}

/// The parts of an extent's range where the index still has exactly it: same location, same dirty flag.
pub fn same(index: &Index, extent: &Extent) -> Vec<Extent> {
    let is_same = |found: &Extent| *found == extent.slice(found.start, found.end);
    index
        .range(extent.inode, extent.start, extent.end)
        .filter(is_same)
        .collect()
}
