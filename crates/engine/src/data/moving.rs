//! Moving gc: what lives in buckets that are mostly dead is written together elsewhere, so that they can be recycled.
//!
//! ```text
//! much in use ─► buckets worth emptying ─► all leaves, a slice at a time: extents in such a bucket
//!    ─► hold the range ─► still the same? ─► room, pinned ─► read ─► write ─► still the same, its bucket not recycled?
//!    ─► in that step: the new place in index and journal, dirty as before ─► unpin, let go
//! ```
//! - **MOVE-1** An extent gets its new place only where the index has exactly the old one in that very step, and only if the old
//!   bucket was not recycled: a clean one may have given other bytes.
//! - **MOVE-2** The range is held from before the read until then. A direct write that found dirty data under it lets go of just that data
//!   in the end; had it moved meanwhile, older data would stay over newer (see `let_go_of_dirty` in `request/direct.rs`).
//! - **MOVE-3** Moves are journalled, those of clean data too. A leaf alone would know the new place too late: were that recycled before the
//!   leaf is written, the index would say that nothing is cached there, a direct write would make no hole, and a crash would bring
//!   the old place back, which nobody recycled.
//! - **MOVE-4** Nobody waits for buckets since something was moved: room comes from a reserve of its own and from what is above the low
//!   mark, and without any the pass ends.
//!
//! Moved bytes are a small part of what clients have written; more of them go only while nobody asks for anything.

use super::clients::Clients;
use super::insert::Inserter;
use super::writeback::same;
use crate::alloc::{Chosen, Data, Placement};
use crate::btree::{Index, Pages};
use crate::buckets::Buckets;
use crate::device::Disk;
use crate::error::Poison;
use crate::extents::Extent;
use crate::limits::{
    MOVING_BURST_BYTES, MOVING_CHOICE_BUCKETS, MOVING_EXTENTS, MOVING_IDLE, MOVING_IDLE_RATE,
    MOVING_IN_USE_PERCENT, MOVING_LOOK, MOVING_PART, MOVING_PIECE_SECTORS, SECTOR, SLICE_KEYS,
    moving_is_eager,
};
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use crate::settings::{Knob, Settings};
use crate::stats::{Cause, Counter};
use crate::watched::Watched;
use brigade_env::sync::{Notify, join_by, yield_now};
use brigade_env::{Buffer, Durability, Env};
use brigade_format::Pos;
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// Pause after an error.
const PAUSE: Duration = Duration::from_secs(1);

/// What a set's mover works with.
pub struct MoverParts<E: Env> {
    /// The world.
    pub env: E,
    /// Where data is.
    pub cache: Rc<Disk<E>>,
    /// Thrown when durability failed.
    pub poison: Rc<Poison>,
    /// The index.
    pub index: Rc<Watched<Index>>,
    /// Brings parts of it into memory.
    pub pages: Rc<Pages<E>>,
    /// The way into it.
    pub inserter: Rc<Inserter<E>>,
    /// What is chosen, and where it goes.
    pub buckets: Rc<Buckets>,
    /// Who else works on the volumes.
    pub clients: Rc<Clients>,
    /// Sectors of a block.
    pub block_sectors: u64,
    /// Whether it may.
    pub settings: Rc<Settings>,
}

/// See the module documentation.
pub struct Mover<E: Env> {
    parts: MoverParts<E>,
    /// Bytes that may be moved now, and what it was worked out from.
    credit: Cell<i64>,
    counted: Cell<(u64, Duration)>,
    /// Bytes written since the start to move something.
    pub moved_bytes: Counter,
    /// Buckets that were emptied.
    pub moved_buckets: Counter,
    is_closing: Cell<bool>,
    is_paused: Cell<bool>,
    running: Cell<bool>,
    changed: Notify,
}

/// What became of something that was to be moved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moved {
    /// It was, or it is not what it was any more.
    Done,
    /// There is no room.
    NoRoom,
}

impl<E: Env> Mover<E> {
    /// Of one set.
    pub fn new(parts: MoverParts<E>) -> Rc<Self> {
        Rc::new(Mover {
            parts,
            credit: Cell::new(0),
            counted: Cell::default(),
            moved_bytes: Counter::default(),
            moved_buckets: Counter::default(),
            is_closing: Cell::new(false),
            is_paused: Cell::new(false),
            running: Cell::new(false),
            changed: Notify::new(),
        })
    }

    /// The background task.
    pub async fn run(self: Rc<Self>) {
        self.running.set(true);
        while !self.is_over() {
            let dirtied = self.parts.inserter.dirtied.wait();
            if self.parts.buckets.get().is_counting() {
                self.pause(MOVING_LOOK).await;
                continue;
            }
            if !self.pays() {
                self.wait(dirtied).await;
                self.pause(look()).await;
                continue;
            }
            match self.pass().await {
                Ok(true) => self.pause(look()).await,
                Ok(false) => {
                    self.wait(dirtied).await;
                    self.pause(look()).await;
                }
                Err(error) => {
                    tracing::warn!(device = self.parts.cache.name(), %error, "moving gc failed; nothing is lost");
                    self.pause(PAUSE).await;
                }
            }
        }
        self.running.set(false);
        self.changed.notify_all();
    }

    fn is_over(&self) -> bool {
        self.is_closing.get() || self.parts.poison.is_thrown()
    }

    /// Whether so many buckets hold what cannot be dropped that it is worth while.
    fn pays(&self) -> bool {
        if self.is_paused.get() || !self.parts.settings.is_on(Knob::CopyGcEnabled) {
            return false;
        }
        let in_use = u64::from(self.parts.buckets.get().stats().in_use_percent);
        in_use > MOVING_IN_USE_PERCENT || moving_is_eager()
    }

    async fn pause(&self, pause: Duration) {
        let closing = self.changed.wait();
        if !self.is_over() {
            crate::wait::either(self.parts.env.sleep(pause), closing).await;
        }
    }

    async fn wait(&self, dirtied: impl Future<Output = ()>) {
        let closing = self.changed.wait();
        if !self.is_over() {
            crate::wait::either(dirtied, closing).await;
        }
    }

    /// Empties the best buckets as far as there is room; says whether anything was moved.
    async fn pass(&self) -> io::Result<bool> {
        let chosen = self.choose().await;
        let before = self.moved_bytes.get();
        if !chosen.is_empty() {
            let walked = self.walk(&chosen).await;
            let alloc = self.parts.buckets.get();
            let emptied = chosen
                .buckets()
                .filter(|(nr, r#gen)| alloc.is_emptied(*nr, *r#gen));
            self.moved_buckets.add(emptied.count() as u64);
            walked?;
        }
        Ok(self.moved_bytes.get() > before)
    }

    async fn choose(&self) -> Chosen {
        let mut chooser = self.parts.buckets.get().choose_moves();
        loop {
            let is_done = self
                .parts
                .buckets
                .get()
                .choose_some(&mut chooser, MOVING_CHOICE_BUCKETS);
            if is_done {
                return self.parts.buckets.get().chosen(chooser);
            }
            yield_now().await;
        }
    }

    async fn walk(&self, chosen: &Chosen) -> io::Result<()> {
        let mut pos = Pos::ZERO;
        while pos < Pos::MAX && !self.is_over() {
            let (extents, next) = self.scan(chosen, pos).await?;
            pos = next;
            if !extents.is_empty() {
                self.wait_for_credit().await;
                if self.is_over() || !self.pays() {
                    return Ok(());
                }
                let moves = extents.iter().map(|extent| self.move_one(*extent));
                let moved = join_by(1, moves).await;
                for moved in moved {
                    if moved? == Moved::NoRoom {
                        return Ok(());
                    }
                }
            }
            yield_now().await;
        }
        Ok(())
    }

    /// Extents in chosen buckets among the next keys of one leaf, and where to go on.
    async fn scan(&self, chosen: &Chosen, pos: Pos) -> io::Result<(Vec<Extent>, Pos)> {
        let parts = &self.parts;
        let (leaf, high, is_wanted) = parts.index.borrow().nodes.leaf_behind(pos);
        if !is_wanted {
            return Ok((Vec::new(), high));
        }
        if let Err(error) = parts.pages.bring_leaf(leaf).await {
            // What it says stays where it is, and keeps nothing else from moving.
            parts.poison.check()?;
            tracing::debug!(device = parts.cache.name(), %error, "not moved");
            return Ok((Vec::new(), high));
        }
        let index = parts.index.borrow();
        let Some(content) = index.nodes.content_between(leaf, pos, high) else {
            // Another one took its place, or it left again.
            return Ok((Vec::new(), pos));
        };
        let alloc = parts.buckets.get();
        let is_chosen = |extent: &Extent| {
            extent
                .ptr
                .is_some_and(|ptr| chosen.has(ptr) && !alloc.is_stale(ptr))
        };
        let mut found = Vec::new();
        for (seen, extent) in content.enumerate() {
            if is_chosen(&extent) {
                found.push(extent);
            }
            if seen + 1 == SLICE_KEYS || found.len() == MOVING_EXTENTS {
                return Ok((found, extent.to_key().pos()));
            }
        }
        Ok((found, high))
    }

    // ---- one extent ----------------------------------------------------------------------------------------------

    async fn move_one(&self, extent: Extent) -> io::Result<Moved> {
        let mut at = extent.start;
        while at < extent.end {
            let end = extent.end.min(at + MOVING_PIECE_SECTORS);
            if self.is_over() || self.move_piece(extent.slice(at, end)).await? == Moved::NoRoom {
                return Ok(Moved::NoRoom);
            }
            at = end;
        }
        Ok(Moved::Done)
    }

    /// Moves what is still there of a piece (MOVE-2).
    async fn move_piece(&self, piece: Extent) -> io::Result<Moved> {
        let parts = &self.parts;
        let client = parts.clients.of(piece.inode);
        let _held = if mutations::is(Mutation::MoveWithoutLock) {
            None
        } else {
            Some(client.locks.lock(piece.start, piece.end).await)
        };
        let kind = match client.is_flash.get() {
            true => Data::Flash,
            false => Data::Cached,
        };
        parts
            .pages
            .bring(piece.inode, piece.start, piece.end)
            .await?;
        let still = self.still(&parts.index.borrow(), &piece);
        for part in still {
            let mut at = part.start;
            while at < part.end {
                let rest = part.slice(at, part.end);
                let Some(place) = self.allocate(&rest, kind) else {
                    marks::hit(Mark::MoveFindsNoBucket);
                    return Ok(Moved::NoRoom);
                };
                parts.buckets.pins_begin(1);
                let some = rest.slice(at, rest.end.min(at + u64::from(place.sectors)));
                let copied = self.copy(some, &place).await;
                parts.buckets.pins_end([place.bucket]);
                copied?;
                at = some.end;
            }
        }
        Ok(Moved::Done)
    }

    /// The parts of an extent that the index still has at the same place, if that was not recycled.
    fn still(&self, index: &Index, extent: &Extent) -> Vec<Extent> {
        let is_stale = |ptr| self.parts.buckets.is_stale(ptr);
        if extent.ptr.is_none_or(is_stale) && !mutations::is(Mutation::MoveIgnoresReuse) {
            return Vec::new();
        }
        same(index, extent)
    }

    /// Room, unless somebody might miss it (MOVE-4).
    fn allocate(&self, extent: &Extent, kind: Data) -> Option<Placement> {
        let (buckets, inserter) = (&self.parts.buckets, &self.parts.inserter);
        let dirty_leaves = self.parts.index.borrow().nodes.dirty_count();
        if buckets.metadata_wanted.get() > 0 || !buckets.get().has_room_for_keys(dirty_leaves) {
            inserter.ask_for_leaf_writes();
            return None;
        }
        // What is written is whole blocks; the next one is to begin at one.
        let sectors = extent.sectors().next_multiple_of(self.parts.block_sectors);
        let reserve_only = buckets.is_data_waited_for();
        let mut alloc = buckets.get_mut();
        let place = alloc.allocate_moving(extent.inode, extent.start, sectors, kind, reserve_only);
        let wants_batch = alloc.wants_batch();
        drop(alloc);
        if wants_batch {
            buckets.demand.notify_all();
        }
        place
    }

    /// Copies an extent to its new place, and says so where nothing changed meanwhile (MOVE-1, MOVE-3).
    async fn copy(&self, old: Extent, place: &Placement) -> io::Result<()> {
        let parts = &self.parts;
        let source = old.ptr.expect("what moves has a place");
        let bytes = (old.sectors() * SECTOR) as usize;
        let buffer = parts.cache.buffers().get(bytes);
        let read = match parts.cache.read_data(source.sector(), buffer).await {
            Ok(read) => read,
            // It stays where it is, and keeps nothing else from moving.
            Err(error) => {
                tracing::debug!(device = parts.cache.name(), %error, "not moved");
                parts.buckets.set_aside([source]);
                return Ok(());
            }
        };
        let buffer = self.in_blocks(read, (u64::from(place.sectors) * SECTOR) as usize);
        let written = buffer.len() as u64;
        self.moved_bytes.add(written);
        self.credit.set(self.credit.get() - written as i64);
        parts
            .cache
            .write(
                Cause::Moved,
                place.ptr.sector(),
                buffer,
                Durability::Volatile,
            )
            .await?;
        let new = Extent {
            ptr: Some(place.ptr),
            ..old
        };
        let news = [new];
        let moved = parts.inserter.insert(&news, |index, new| {
            if mutations::is(Mutation::MoveIgnoresChange) {
                return vec![*new];
            }
            let still = self.still(index, &old.slice(new.start, new.end));
            let kept: u64 = still.iter().map(Extent::sectors).sum();
            if kept < new.sectors() {
                marks::hit(Mark::MoveLostRace);
            }
            still
                .into_iter()
                .map(|part| new.slice(part.start, part.end))
                .collect()
        });
        if moved.await?.is_some() {
            if old.dirty {
                self.parts.clients.writeback.note_move();
            }
            marks::hit(match old.dirty {
                true => Mark::MoveDirty,
                false => Mark::MoveClean,
            });
        }
        Ok(())
    }

    /// What was read, filled up to whole blocks.
    fn in_blocks(&self, read: Buffer, bytes: usize) -> Buffer {
        if read.len() == bytes {
            return read;
        }
        let mut whole = self.parts.cache.buffers().get_zeroed(bytes);
        whole[..read.len()].copy_from_slice(&read);
        whole
    }

    // ---- pace ----------------------------------------------------------------------------------------------------

    async fn wait_for_credit(&self) {
        self.count_credit();
        while self.credit.get() <= 0 && !moving_is_eager() && !self.is_over() && self.pays() {
            self.pause(MOVING_LOOK).await;
            self.count_credit();
        }
    }

    /// A part of what clients wrote to the cache since, and more if they are idle.
    fn count_credit(&self) {
        let (written, metadata) = self.parts.cache.written();
        let by_clients = written.saturating_sub(metadata + self.moved_bytes.get());
        let now = self.parts.env.now();
        let (seen, when) = self.counted.replace((by_clients, now));
        let mut credit = by_clients.saturating_sub(seen) / MOVING_PART;
        if now.saturating_sub(self.parts.clients.last_request()) >= MOVING_IDLE {
            let elapsed = now.saturating_sub(when).min(MOVING_IDLE).as_millis() as u64;
            credit += MOVING_IDLE_RATE * elapsed / 1000;
        }
        let most = MOVING_BURST_BYTES as i64;
        let credit = self.credit.get().saturating_add(credit as i64);
        self.credit.set(credit.min(most));
    }

    /// Has moving rest, or go on.
    pub fn pause_moving(&self, is_paused: bool) {
        self.is_paused.set(is_paused);
        self.parts.inserter.dirtied.notify_all();
    }

    /// Stops the task and waits until nothing is being moved.
    pub async fn stop(&self) {
        self.is_closing.set(true);
        self.changed.notify_all();
        while self.running.get() {
            self.changed.wait().await;
        }
    }
}

fn look() -> Duration {
    if moving_is_eager() {
        Duration::from_millis(5)
    } else {
        MOVING_LOOK
    }
}
