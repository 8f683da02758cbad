//! What clients ask for, from volume sectors to device I/O.
//!
//! A request is mapped synchronously (which parts are where, which way a write goes), then bytes move, then, for writes, the
//! index changes in one step, and only then is it acknowledged.
//!
//! | way | data goes to | index | acknowledged when |
//! |---|---|---|---|
//! | writeback | cache | dirty extents | the keys survive the process |
//! | direct, admitted (writethrough) | backing and cache | clean, after the next flush of the backing device | backing write done |
//! | direct (bypass, discard, zeroes) | backing | nothing cached | backing write done |
//!
//! Direct writes keep three laws (docs/format.md 10.11):
//! - **REQ-1** No clean extent becomes durable before the backing device durably has the same data: clean data enters the index
//!   after a flush.
//! - **REQ-2** Nothing hides dirty data before the backing device durably has newer data: the hole over a dirty extent follows a
//!   flush.
//! - **REQ-3** While the backing device is written, no durable clean extent covers the range: a hole over clean extents
//!   is durable before.

mod clear;
mod decide;
mod direct;
mod failing;
mod fill;
mod flush;
mod policy;
mod read;
mod recent;
mod status;
mod writeback;

use crate::alloc::{Data, Reserve};
use crate::btree::{Index, Pages};
use crate::buckets::{Buckets, Ticket};
use crate::data::{Candidate, Candidates, Clients, Inserter, RangeLocks};
use crate::device::Disk;
use crate::error::Poison;
use crate::extents::Extent;
use crate::journal::Journal;
use crate::limits::UNFLUSHED_FILLS_PART;
use crate::marks::{self, Mark};
use crate::meta::BackingSuper;
use crate::mutations::{self, Mutation};
use crate::options::Options;
use crate::settings::{Knob, Settings};
use crate::stats::{
    Cause, Event, Fate, Filling, NotDirty, Reason, SetCounters, VolumeCounters, WriteOutcome,
};
use crate::steps::{Steps, Task};
use crate::watched::Watched;
use brigade_env::sync::Notify;
use brigade_env::{Buffer, BufferPool, Durability, Env, StreamId};
use brigade_format::{BucketNr, CacheMode};
use recent::Recent;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

pub use clear::clear;
pub use direct::{Clear, DirectWrite, forget_all_clean};
pub use failing::Troubles;
pub use flush::flush;
pub use read::{prefetch, read};
pub use status::status;

/// What requests need of a cache set.
pub struct Cache<E: Env> {
    /// The cache device.
    pub disk: Rc<Disk<E>>,
    /// Thrown when durability failed.
    pub poison: Rc<Poison>,
    /// What is cached.
    pub index: Rc<Watched<Index>>,
    /// Brings parts of it into memory.
    pub pages: Rc<Pages<E>>,
    /// Buckets to put data in.
    pub buckets: Rc<Buckets>,
    /// Way into the index; absent when nothing may be written.
    pub writer: Option<CacheWriter<E>>,
    /// Choices that may change.
    pub settings: Rc<Settings>,
    /// How long background tasks take.
    pub steps: Rc<Steps>,
    /// Its volumes, for background work on all of it.
    pub clients: Rc<Clients>,
    /// What happened, on all volumes that were ever served.
    pub counters: SetCounters,
    /// Sectors of a bucket.
    pub bucket_sectors: u32,
    /// Sectors of a block.
    pub block_sectors: u64,
}

impl<E: Env> Cache<E> {
    /// Whether the index may grow: the tree must find buckets for what it has yet to write, or everything stops. If not,
    /// leaves are asked to be written, so that this passes if it can.
    fn has_room_for_keys(&self) -> bool {
        let dirty_leaves = self.index.borrow().nodes.dirty_count();
        let has_room = self.buckets.get().has_room_for_keys(dirty_leaves);
        if let (false, Some(writer)) = (has_room, &self.writer) {
            writer.inserter.ask_for_leaf_writes();
        }
        has_room
    }

    /// Whether a hole makes two extents of one.
    fn hole_splits(&self, inode: u32, start: u64, end: u64) -> bool {
        let (index, alloc) = (self.index.borrow(), self.buckets.get());
        start > 0
            && matches!(index.live(&alloc, inode, start - 1, end + 1)[..], [only] if only.start < start && only.end > end)
    }
}

/// What is there only when the set may be written.
pub struct CacheWriter<E: Env> {
    /// The way into the index.
    pub inserter: Rc<Inserter<E>>,
    /// Makes it durable.
    pub journal: Rc<Journal<E>>,
}

/// What requests need of a backing device.
pub struct Backing<E: Env> {
    /// The device.
    pub disk: Rc<Disk<E>>,
    /// Its superblock.
    pub superblock: Rc<BackingSuper<E>>,
    /// First sector of the volume.
    pub data_offset: u64,
    /// Something was written since the last flush.
    pub unflushed: Cell<bool>,
}

/// A volume, as requests see it. Only requests, with what they leave in the background, and the volume itself keep one for longer than
/// a step: when those of a core that was exchanged are over is seen by that (`set/volume.rs`).
pub struct Core<E: Env> {
    /// The world.
    pub env: E,
    /// Where buffers come from.
    pub buffers: BufferPool,
    /// The cache, unless the volume runs without.
    pub cache: Option<Rc<Cache<E>>>,
    /// The backing device, unless it is a flash volume.
    pub backing: Option<Rc<Backing<E>>>,
    /// Its slot in the UUID table.
    pub inode: u32,
    /// Capacity.
    pub sectors: u64,
    /// Nothing may be written.
    pub is_read_only: bool,
    /// Choices.
    pub options: Rc<Options>,
    /// Choices that may change.
    pub settings: Rc<Settings>,
    /// What happened.
    pub counters: Rc<VolumeCounters>,
    /// Who writes to the backing device.
    pub locks: Rc<RangeLocks>,
    /// Clean data on its way into the index.
    pub candidates: Rc<Candidates>,
    /// Clean data that waits for a flush of the backing device.
    pub unflushed_fills: RefCell<UnflushedFills>,
    /// Recent requests, for sequential detection.
    pub recent: RefCell<Recent>,
    /// When the last request came.
    pub last_request: Rc<Cell<Duration>>,
    /// A flush for waiting fills is on its way.
    pub fill_flush_set: Cell<bool>,
    /// Writes under way, and whether more are let in.
    pub admission: Rc<Admission>,
    /// What went wrong with it.
    pub troubles: Rc<Troubles>,
    /// It is being detached: what is cached is used, nothing new gets into the cache.
    pub detaching: Cell<bool>,
    /// It was attached, and requests that know of no cache are still under way: nothing gets into the cache yet.
    pub joining: Cell<bool>,
}

/// Who writes now. Closed before a set stops, so that nothing changes behind its last journal entry.
#[derive(Default)]
pub struct Admission {
    under_way: Cell<usize>,
    is_closed: Cell<bool>,
    changed: Notify,
}

/// A write under way.
struct Admitted(Rc<Admission>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
        self.0.changed.notify_all();
    }
}

impl Admission {
    fn enter(self: &Rc<Self>) -> io::Result<Admitted> {
        if self.is_closed.get() {
            marks::hit(Mark::StopRefusesLate);
            return Err(io::Error::other("the volume is being stopped"));
        }
        self.under_way.set(self.under_way.get() + 1);
        Ok(Admitted(self.clone()))
    }

    /// Lets no more writes in and waits for those under way.
    pub async fn close(&self) {
        self.is_closed.set(true);
        self.changed
            .until(|| (self.under_way.get() == 0).then_some(()))
            .await;
    }
}

/// Clean data in the cache that is not in the index yet.
pub struct Fill {
    candidate: Candidate,
    extents: Vec<Extent>,
    pinned: Vec<BucketNr>,
    filling: Filling,
}

/// Clean data that waits for a flush of the backing device.
#[derive(Default)]
pub struct UnflushedFills {
    fills: Vec<Fill>,
    sectors: u64,
    /// A flush for them is about to begin.
    is_urgent: bool,
}

impl UnflushedFills {
    fn push(&mut self, fill: Fill) {
        self.sectors += fill.extents.iter().map(Extent::sectors).sum::<u64>();
        self.fills.push(fill);
    }

    /// Whether it holds so much of a cache that a flush is urgent, as nothing of it can be recycled; said once.
    fn becomes_urgent(&mut self, cache_sectors: u64) -> bool {
        let holds_much = self.sectors * UNFLUSHED_FILLS_PART > cache_sectors;
        holds_much && !std::mem::replace(&mut self.is_urgent, true)
    }
}

/// The mode that a value of [`Knob::CacheMode`] stands for.
pub fn mode_of(value: u64) -> CacheMode {
    use CacheMode::{None, Writearound, Writeback, Writethrough};
    [Writethrough, Writeback, Writearound, None][value as usize % 4]
}

/// Why there is no room for data in the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum NoPlace {
    /// The index may not grow.
    Keys,
    /// Not enough buckets are ready, or others wait for some.
    Now,
}

/// Data placed in the cache, pinned until its keys are in the index.
struct Placed {
    extents: Vec<Extent>,
    pinned: Vec<BucketNr>,
}

impl<E: Env> Core<E> {
    /// First sector of the volume in the terms of keys and of the backing device.
    pub fn data_offset(&self) -> u64 {
        self.backing
            .as_ref()
            .map_or(0, |backing| backing.data_offset)
    }

    /// How it is cached.
    pub fn mode(&self) -> CacheMode {
        mode_of(self.settings.get(Knob::CacheMode))
    }

    fn note_request(&self) {
        self.last_request.set(self.env.now());
    }

    /// Lets a write in, if there is nothing against it. A cache set that failed may be left before.
    async fn admit_write(&self) -> io::Result<Admitted> {
        if self.is_read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.check_enabled()?;
        self.leave_if_failed().await?;
        if let Some(backing) = &self.backing {
            backing.disk.check()?;
        }
        self.admission.enter()
    }

    /// Whether nothing new may get into the cache, whatever the mode.
    pub fn takes_nothing(&self) -> bool {
        let is_leaving = |backing: &Rc<Backing<E>>| backing.superblock.is_leaving();
        self.detaching.get() || self.joining.get() || self.backing.as_ref().is_some_and(is_leaving)
    }

    /// Goes on without the cache if that failed; fails if it cannot.
    async fn leave_if_failed(&self) -> io::Result<()> {
        match self.attached().map(|cache| cache.poison.check()) {
            Some(Err(error)) => self.leave(error).await,
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// What kind of data the volume has.
    fn kind(&self) -> Data {
        if self.backing.is_some() {
            Data::Cached
        } else {
            Data::Flash
        }
    }

    /// Takes room in the cache for a range, all of it or nothing. Does not wait, and takes nothing if somebody else is next.
    fn place(
        &self,
        cache: &Cache<E>,
        stream: StreamId,
        (start, sectors): (u64, u64),
        dirty: bool,
        ticket: Option<&Ticket>,
    ) -> Result<Placed, NoPlace> {
        if !cache.has_room_for_keys() {
            return Err(NoPlace::Keys);
        }
        let buckets = &cache.buckets;
        buckets.tick(self.env.now());
        let new_buckets = buckets.data_turn(ticket).ok_or(NoPlace::Now)?;
        let mut alloc = buckets.get_mut();
        // What an attempt that fails has begun would be wasted.
        if alloc.room_for(self.kind(), new_buckets) < sectors {
            alloc.trace_failure(Reserve::Normal);
            drop(alloc);
            buckets.demand.notify_all();
            return Err(NoPlace::Now);
        }
        // Placements after the first stay aligned to blocks.
        let most = crate::limits::EXTENT_SECTORS_MAX / cache.block_sectors * cache.block_sectors;
        let mut placed = Placed {
            extents: Vec::new(),
            pinned: Vec::new(),
        };
        let mut at = start;
        while at < start + sectors {
            let wanted = (start + sectors - at).min(most);
            let (kind, inode) = (self.kind(), self.inode);
            let place = if new_buckets {
                alloc.allocate(stream.0, inode, at, wanted, kind, false)
            } else {
                alloc.allocate_in_open(stream.0, inode, at, wanted, kind)
            };
            let Some(place) = place else { break };
            let end = at + u64::from(place.sectors);
            placed.extents.push(Extent {
                inode,
                start: at,
                end,
                ptr: Some(place.ptr),
                dirty,
            });
            placed.pinned.push(place.bucket);
            at = end;
        }
        let wants_batch = alloc.wants_batch();
        drop(alloc);
        buckets.pins_begin(placed.pinned.len());
        if at < start + sectors {
            buckets.pins_end(placed.pinned);
            buckets.demand.notify_all();
            return Err(NoPlace::Now);
        }
        if wants_batch {
            buckets.demand.notify_all();
        }
        if placed.extents.len() > 1 {
            marks::hit(Mark::PlaceSeveral);
        }
        Ok(placed)
    }

    /// Writes data to where it was placed. If that fails its buckets are not used any more.
    async fn write_placed(
        &self,
        cache: &Cache<E>,
        cause: Cause,
        placed: &Placed,
        buffer: Buffer,
    ) -> io::Result<()> {
        let written = self.write_extents(cache, cause, placed, buffer).await;
        if written.is_err() {
            let places = placed.extents.iter().filter_map(|extent| extent.ptr);
            cache.buckets.set_aside(places);
        }
        written
    }

    async fn write_extents(
        &self,
        cache: &Cache<E>,
        cause: Cause,
        placed: &Placed,
        buffer: Buffer,
    ) -> io::Result<()> {
        if let [only] = placed.extents[..] {
            let ptr = only.ptr.expect("placed");
            return cache
                .disk
                .write(cause, ptr.sector(), buffer, Durability::Volatile)
                .await
                .map(|_| ());
        }
        let start = placed.extents[0].start;
        let piece = |extent: &Extent| {
            let bytes = (extent.start - start) as usize * 512..(extent.end - start) as usize * 512;
            let mut piece = self.buffers.get(bytes.len());
            piece.copy_from_slice(&buffer[bytes]);
            let ptr = extent.ptr.expect("placed");
            async move {
                cache
                    .disk
                    .write(cause, ptr.sector(), piece, Durability::Volatile)
                    .await
                    .map(|_| ())
            }
        };
        let pieces: Vec<_> = placed.extents.iter().map(piece).collect();
        brigade_env::sync::join_all(pieces)
            .await
            .into_iter()
            .collect()
    }

    fn unpin(&self, cache: &Cache<E>, pinned: Vec<BucketNr>) {
        cache.buckets.pins_end(pinned);
    }

    /// Enters clean data into the index, later if its leaves are away, or drops it if the range was written or is being
    /// written.
    fn finish_fill(self: &Rc<Self>, cache: &Rc<Cache<E>>, fill: Fill) {
        let is_here = |extent: &Extent| cache.pages.is_here(self.inode, extent.start, extent.end);
        fill.filling.ends(Fate::Entered);
        for (entered, extent) in fill.extents.iter().enumerate() {
            // Each is looked for by itself: leaves may go as soon as one was entered.
            if !is_here(extent) {
                return self.finish_fill_later(cache, fill, entered);
            }
            if !self.enter(cache, &fill, extent) {
                break;
            }
        }
        self.unpin(cache, fill.pinned);
    }

    fn finish_fill_later(self: &Rc<Self>, cache: &Rc<Cache<E>>, fill: Fill, entered: usize) {
        let (core, cache) = (self.clone(), cache.clone());
        let steps = cache.steps.clone();
        let later = async move {
            for extent in &fill.extents[entered..] {
                let here = cache
                    .pages
                    .bring(core.inode, extent.start, extent.end)
                    .await;
                if here.is_err() {
                    fill.filling.ends(Fate::Failed);
                    break;
                }
                if !core.enter(&cache, &fill, extent) {
                    break;
                }
            }
            core.unpin(&cache, fill.pinned);
        };
        self.env.spawn(steps.timed(&self.env, Task::Fill, later));
    }

    /// Enters a part of a fill, whose leaves are here, unless the range was written; says whether it did.
    fn enter(&self, cache: &Cache<E>, fill: &Fill, extent: &Extent) -> bool {
        let writer = cache.writer.as_ref().expect("filled since it is writable");
        let is_written =
            fill.candidate.is_cancelled() || self.locks.is_held(extent.start, extent.end);
        if is_written && !mutations::is(Mutation::CopyIgnoresWrites) {
            marks::hit(Mark::CopyLostRace);
            fill.filling.ends(Fate::Collided);
            self.note(Event::Collision, 1);
            return false;
        }
        let sectors = writer.inserter.fill(*extent);
        self.counters.fills.bytes.add(sectors * 512);
        true
    }

    /// Enters clean data into the index now, or once the backing device was flushed if it may not durably have it (REQ-1).
    fn admit(self: &Rc<Self>, cache: &Rc<Cache<E>>, fill: Fill) {
        let is_unflushed =
            |backing: &Rc<Backing<E>>| backing.unflushed.get() || backing.disk.is_flushing();
        let unflushed = self.backing.as_ref().is_some_and(is_unflushed);
        if !unflushed || mutations::is(Mutation::CopyBeforeFlush) {
            self.finish_fill(cache, fill);
            return;
        }
        marks::hit(Mark::CopyWaitsForFlush);
        let size = cache.buckets.get().stats().total * u64::from(cache.bucket_sectors);
        let is_urgent = {
            let mut unflushed = self.unflushed_fills.borrow_mut();
            unflushed.push(fill);
            unflushed.becomes_urgent(size)
        };
        if is_urgent {
            marks::hit(Mark::CopyFlushesEarly);
            let core = self.clone();
            self.env.spawn(async move { core.flush_for_fills().await });
        }
        if !self.fill_flush_set.replace(true) {
            let core = self.clone();
            self.env.spawn(async move {
                core.env.sleep(crate::limits::JOURNAL_DELAY_MAX).await;
                core.fill_flush_set.set(false);
                core.flush_for_fills().await;
            });
        }
    }

    async fn flush_for_fills(self: &Rc<Self>) {
        if let Err(error) = self.flush_backing().await {
            tracing::warn!(%error, "flush of the backing device failed");
        }
    }
}

/// Writes a range, the way its volume, its mode and the state of the cache ask for.
pub async fn write<E: Env>(
    core: Rc<Core<E>>,
    stream: StreamId,
    sector: u64,
    buffer: Buffer,
    fua: bool,
) -> io::Result<()> {
    core.note_request();
    let started = core.last_request.get();
    let (counters, bytes) = (&core.counters, buffer.len() as u64);
    counters.writes.all.begin();
    let result = write_admitted(&core, stream, sector, buffer, fua).await;
    counters.writes.end(result.as_ref().ok().copied(), bytes);
    let took = core.env.now().saturating_sub(started);
    counters.latency.write.record(took);
    result.map(|_| ())
}

async fn write_admitted<E: Env>(
    core: &Rc<Core<E>>,
    stream: StreamId,
    sector: u64,
    buffer: Buffer,
    fua: bool,
) -> io::Result<WriteOutcome> {
    let _admitted = core.admit_write().await?;
    core.counters.writes.bytes.add(buffer.len() as u64);
    let result = route(core, stream, sector + core.data_offset(), buffer, fua).await;
    core.leave_if_failed().await?;
    result
}

async fn route<E: Env>(
    core: &Rc<Core<E>>,
    stream: StreamId,
    start: u64,
    buffer: Buffer,
    fua: bool,
) -> io::Result<WriteOutcome> {
    let sectors = buffer.len() as u64 / 512;
    let way = match (core.attached(), &core.backing) {
        (None, _) => WriteOutcome::Bypassed(Reason::NoCache),
        (Some(_), None) => WriteOutcome::Writeback,
        (Some(cache), Some(_)) => core.way(cache, stream, (start, sectors), fua),
    };
    let (mut way, mut buffer) = (way, buffer);
    if let (WriteOutcome::Writeback, Some(cache)) = (way, core.attached()) {
        match writeback::write(core, cache, stream, start, buffer, fua).await? {
            writeback::Outcome::Done => return Ok(way),
            writeback::Outcome::NoRoom(back) => {
                marks::hit(Mark::PlaceNoRoom);
                (way, buffer) = (WriteOutcome::Writethrough(NotDirty::NoRoom), back);
            }
        }
    }
    let Some(backing) = &core.backing else {
        return Err(io::ErrorKind::StorageFull.into());
    };
    let is_admitted = matches!(way, WriteOutcome::Writethrough(_));
    let (what, range) = (DirectWrite::Data(buffer), (start, start + sectors));
    direct::write(core, backing, stream, range, what, fua, is_admitted).await?;
    Ok(way)
}

/// Caches in another way from now on, also after a restart. Requests under way go on as they began, and dirty data stays until
/// it is written back.
pub async fn set_mode<E: Env>(core: Rc<Core<E>>, mode: CacheMode) -> io::Result<()> {
    let _admitted = core.admit_write().await?;
    let Some(backing) = &core.backing else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    backing.superblock.set_mode(mode).await?;
    core.settings.set(Knob::CacheMode, mode as u64);
    Ok(())
}
