//! Writing to the backing device: writethrough, bypass, zeroes, discard.
//!
//! ```text
//! hold the range ─► hole over clean extents, durable (REQ-3) ─► backing device (and, admitted, the cache)
//!    ─► over dirty extents: flush the backing device, then hole (REQ-2) ─► acknowledged
//!    ─► admitted: after the next flush of the backing device, clean extent (REQ-1)
//! ```
//! If there is no bucket for the copy, it is made after all this, when no range is held any more.
//!
//! Where nothing is cached, which is the common case of a bypass, the journal is not involved.

use super::{Backing, Cache, Core, Fill, Placed, fill};
use crate::buckets::FillRoom;
use crate::extents::Extent;
use crate::limits::{FILL_SECTORS_MAX, HOLE_SECTORS_MAX, SLICE_KEYS};
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use crate::stats::{Cause, Fate, Filling};
use brigade_env::sync::{join, yield_now};
use brigade_env::{Buffer, Durability, Env, StreamId};
use std::cell::Cell;
use std::io;
use std::rc::Rc;

/// What is written to the backing device.
pub enum DirectWrite {
    /// Data.
    Data(Buffer),
    /// No data.
    Clear(Clear),
}

/// What becomes of a range that is cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// It reads as zeros.
    Zeroes {
        /// It may be deallocated.
        may_unmap: bool,
    },
    /// It may read as anything.
    Discard,
}

/// Writes a range of the backing device; with `admit` the data also goes to the cache.
pub async fn write<E: Env>(
    core: &Rc<Core<E>>,
    backing: &Backing<E>,
    stream: StreamId,
    range: (u64, u64),
    what: DirectWrite,
    fua: bool,
    admit: bool,
) -> io::Result<()> {
    let (start, end) = range;
    let Some(cache) = core.attached().cloned() else {
        // Others may be under way that began while there was a cache.
        let _held = core.locks.lock(start, end).await;
        return to_backing(backing, start, end - start, what, fua).await;
    };
    let is_copied = admit && end - start <= FILL_SECTORS_MAX;
    if admit && !is_copied {
        core.counters.fills.count(Fate::DroppedSize);
    }
    // Memory for a copy that may have to wait for a bucket is waited for before anything is held.
    let room = if is_copied {
        fill::ahead(core, &cache, (end - start) as usize * 512).await
    } else {
        None
    };
    let _held = core.locks.lock(start, end).await;
    core.candidates.cancel(start, end);
    // Tells whether a write to the cache overtakes this one: its data is newer, and may have left the cache again by the time
    // the copy of this one would enter.
    let overtaken = core.candidates.open(start, end);
    let let_go = let_go_of_clean(core, &cache, start, end).await;
    // What looks like nothing cached may be a hole whose journal entry just failed.
    let dirty = match let_go.and_then(|dirty| cache.poison.check().map(|()| dirty)) {
        Ok(dirty) => dirty,
        Err(error) => {
            core.leave(error).await?;
            return to_backing(backing, start, end - start, what, fua).await;
        }
    };
    let what = match what {
        // A device may ignore a discard, or a part of it; under dirty data that is dropped old content would come to light.
        DirectWrite::Clear(Clear::Discard)
            if !dirty.is_empty() && !mutations::is(Mutation::DiscardOverDirty) =>
        {
            marks::hit(Mark::ClearBecomesZeroes);
            DirectWrite::Clear(Clear::Zeroes { may_unmap: true })
        }
        what => what,
    };
    let copy = match (&what, is_copied) {
        (DirectWrite::Data(buffer), true) => {
            place_copy(core, &cache, stream, (start, end), buffer, room)
        }
        _ => Copy::None,
    };
    let to_backing = to_backing(backing, start, end - start, what, fua);
    let (written, copied) = match copy {
        Copy::None => (to_backing.await, Copied::None),
        Copy::Waits(copy, room) => (to_backing.await, Copied::Waits(copy, room)),
        Copy::Placed(placed, copy, filling) => {
            let to_cache = core.write_placed(&cache, Cause::Fill, &placed, copy);
            let (written, copied) = join(to_backing, to_cache).await;
            (written, Copied::Written(placed, copied, filling))
        }
    };
    let finished = match written {
        Ok(()) => match finish(&cache, backing, &dirty, fua).await {
            // The data is where it is to be. If what is cached becomes void, no key matters.
            Err(error) => core.leave(error).await,
            Ok(()) => Ok(()),
        },
        Err(error) => Err(error),
    };
    let may_enter = !overtaken.is_cancelled();
    core.candidates.cancel(start, end);
    match copied {
        Copied::None => (),
        // The new candidates begin after that: they have what was just written.
        Copied::Written(placed, Ok(()), filling) if may_enter && finished.is_ok() => {
            let candidate = core.candidates.open(start, end);
            drop(_held);
            core.admit(
                &cache,
                Fill {
                    candidate,
                    extents: placed.extents,
                    pinned: placed.pinned,
                    filling,
                },
            );
        }
        Copied::Waits(copy, room) if may_enter && finished.is_ok() => {
            let pieces = fill::candidates(core, &cache, stream, (start, end));
            drop(_held);
            fill::wait_for_all(core, &cache, pieces, &copy, room);
        }
        Copied::Written(placed, copied, filling) => {
            if copied.is_ok() && finished.is_ok() {
                filling.ends(Fate::Collided);
            }
            core.unpin(&cache, placed.pinned);
        }
        Copied::Waits(..) => {
            let fate = match finished.is_ok() {
                true => Fate::Collided,
                false => Fate::Failed,
            };
            core.counters.fills.count(fate);
        }
    }
    finished
}

/// What is to be put into the cache beside the backing device.
enum Copy {
    None,
    Placed(Placed, Buffer, Filling),
    /// Once that is done, since there is no bucket now and a range is held.
    Waits(Buffer, FillRoom),
}

/// What became of it so far.
enum Copied {
    None,
    Written(Placed, io::Result<()>, Filling),
    Waits(Buffer, FillRoom),
}

fn place_copy<E: Env>(
    core: &Core<E>,
    cache: &Cache<E>,
    stream: StreamId,
    (start, end): (u64, u64),
    buffer: &Buffer,
    room: Option<FillRoom>,
) -> Copy {
    let copy = || {
        let mut copy = core.buffers.get(buffer.len());
        copy.copy_from_slice(buffer);
        copy
    };
    match core.place(cache, stream, (start, end - start), false, None) {
        Ok(placed) => Copy::Placed(placed, copy(), Filling::begin(&core.counters)),
        Err(why) => match fill::room_at_once(cache, why, room, buffer.len()) {
            Ok(room) => Copy::Waits(copy(), room),
            Err(fate) => {
                core.counters.fills.count(fate);
                Copy::None
            }
        },
    }
}

/// Marks the device unflushed, again when it is dropped: a flush that began while the write ran does not cover it.
struct Unflushed<'a>(&'a Cell<bool>);

impl Drop for Unflushed<'_> {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

async fn to_backing<E: Env>(
    backing: &Backing<E>,
    start: u64,
    sectors: u64,
    what: DirectWrite,
    fua: bool,
) -> io::Result<()> {
    let _unflushed = Unflushed(&backing.unflushed);
    match what {
        DirectWrite::Data(buffer) => {
            let durability = if fua && !mutations::is(Mutation::FuaForgottenDirect) {
                Durability::Durable
            } else {
                Durability::Volatile
            };
            return backing
                .disk
                .write(Cause::Client, start, buffer, durability)
                .await
                .map(|_| ());
        }
        DirectWrite::Clear(Clear::Zeroes { may_unmap }) => {
            backing.disk.write_zeroes(start, sectors, may_unmap).await
        }
        DirectWrite::Clear(Clear::Discard) => backing.disk.discard(start, sectors).await,
    }?;
    if fua {
        backing.disk.flush().await
    } else {
        Ok(())
    }
}

/// Drops clean extents of the range, durably, also those that only a crash could bring back; gives the dirty ones, which
/// are durable then.
async fn let_go_of_clean<E: Env>(
    core: &Core<E>,
    cache: &Cache<E>,
    start: u64,
    end: u64,
) -> io::Result<Vec<Extent>> {
    let writer = cache.writer.as_ref().expect("checked to be writable");
    if mutations::is(Mutation::DirectForgetsClean) {
        return Ok(Vec::new());
    }
    core.bring(cache, start, end).await?;
    let live = cache
        .index
        .borrow()
        .revivable(&cache.buckets.get(), core.inode, start, end);
    let (dirty, clean): (Vec<_>, Vec<_>) = live.into_iter().partition(|extent| extent.dirty);
    if clean.is_empty() {
        // Under a dirty extent that a crash takes an older clean one may come to light.
        if !dirty.is_empty() {
            writer.journal.flush().await?;
        }
        return Ok(dirty);
    }
    let is_clean = |extent: &Extent| !extent.dirty;
    let inserted = writer
        .inserter
        .insert(&holes(&clean), |index, hole| {
            let now = index.revivable(&cache.buckets.get(), hole.inode, hole.start, hole.end);
            holes(&now.into_iter().filter(is_clean).collect::<Vec<_>>())
        })
        .await?;
    marks::hit(Mark::DirectHidesClean);
    match inserted {
        _ if mutations::is(Mutation::DirectHoleVolatile) => (),
        Some(seq) => writer.journal.flush_through(seq).await?,
        // Somebody else covered it meanwhile, with a key that need not be durable yet.
        None => {
            marks::hit(Mark::DirectHiddenMeanwhile);
            writer.journal.flush().await?;
        }
    }
    Ok(dirty)
}

/// What the index and its journal have to say once the data was written.
async fn finish<E: Env>(
    cache: &Cache<E>,
    backing: &Backing<E>,
    dirty: &[Extent],
    fua: bool,
) -> io::Result<()> {
    let_go_of_dirty(cache, backing, dirty, fua).await?;
    match fua {
        // What hides the range may have been journalled by an earlier, plain write.
        true => flush_journal(cache).await,
        false => Ok(()),
    }
}

/// Drops clean extents of a range that nobody asks for yet, durably, in small steps and as long as somebody wants it. What is dirty stays.
pub async fn forget_all_clean<E: Env>(
    core: &Core<E>,
    start: u64,
    end: u64,
    is_wanted: impl Fn() -> bool,
) -> io::Result<()> {
    let Some(cache) = &core.cache else {
        return Ok(());
    };
    let mut at = start;
    while at < end {
        if !is_wanted() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let leaf_end = cache.index.borrow().nodes.leaf_of(core.inode, at).1;
        let to = end.min(leaf_end);
        core.bring(cache, at, to).await?;
        let (found, last) = {
            let index = cache.index.borrow();
            let some = index.range(core.inode, at, to).take(SLICE_KEYS);
            some.fold((0, at), |(found, _), extent| (found + 1, extent.end))
        };
        let until = match found {
            SLICE_KEYS => last,
            _ => to,
        };
        if found > 0 {
            drop_clean(core, at, until).await?;
        }
        at = until;
        yield_now().await;
    }
    Ok(())
}

async fn drop_clean<E: Env>(core: &Core<E>, start: u64, end: u64) -> io::Result<()> {
    let Some(cache) = core.cache.as_ref().filter(|cache| cache.writer.is_some()) else {
        return Ok(());
    };
    let _held = core.locks.lock(start, end).await;
    let_go_of_clean(core, cache, start, end).await.map(drop)
}

/// Drops dirty extents whose range was just written, once the backing device durably has the new data.
async fn let_go_of_dirty<E: Env>(
    cache: &Cache<E>,
    backing: &Backing<E>,
    dirty: &[Extent],
    fua: bool,
) -> io::Result<()> {
    if dirty.is_empty() {
        return Ok(());
    }
    let writer = cache.writer.as_ref().expect("checked to be writable");
    marks::hit(Mark::DirectHidesDirty);
    if !mutations::is(Mutation::DirectHidesEarly) {
        backing.disk.flush().await?;
    }
    let (mut last, mut is_hidden) = (None, false);
    for old in dirty {
        let seq = writer
            .inserter
            .insert(&holes(&[*old]), |index, hole| {
                holes(&crate::data::same(index, &old.slice(hole.start, hole.end)))
            })
            .await?;
        is_hidden |= seq.is_none();
        last = seq.or(last);
    }
    if is_hidden && !fua && !mutations::is(Mutation::DirectHiddenVolatile) {
        // By a write that is not acknowledged: should its key not survive, the old data would come back over the new.
        marks::hit(Mark::DirectDirtyHidden);
        return flush_journal(cache).await;
    }
    let Some(seq) = last else { return Ok(()) };
    if fua {
        Ok(())
    } else {
        writer.journal.survives(seq).await
    }
}

async fn flush_journal<E: Env>(cache: &Cache<E>) -> io::Result<()> {
    cache
        .writer
        .as_ref()
        .expect("checked to be writable")
        .journal
        .flush()
        .await
}

pub(super) fn holes(extents: &[Extent]) -> Vec<Extent> {
    let mut holes = Vec::with_capacity(extents.len());
    for extent in extents {
        let mut at = extent.start;
        while at < extent.end {
            let end = extent.end.min(at + HOLE_SECTORS_MAX);
            holes.push(Extent::hole(extent.inode, at, end));
            at = end;
        }
    }
    holes
}
