//! Putting clean data into the cache: what was read on a miss, and copies of what is written to the backing device.
//!
//! ```text
//! room at once ─────────────────────────────────────────► write to the cache ─► (flushed? REQ-1) ─► index
//! no bucket ready: memory for it ─► in the background, in turn with all other data: room ─┘
//!                                   └► its range is written, drought, stop: dropped
//! ```
//!
//! A fill is not dropped because a batch of buckets is just being persisted: it waits, holding its buffer and nothing else,
//! neither a range nor a bucket. Its candidate stays open, so whoever writes its range sends it away. Only so many bytes are
//! held ([`crate::limits::FILL_BYTES_MAX`]); beyond that the *request* waits, with no range held. If it is buckets that are
//! missing, that is back-pressure by a few table writes, never by a whole pass over the cache, and ends after [`FILL_PATIENCE`] at
//! the latest; if the cache device is just slower than the backing device, the request goes on much sooner
//! ([`FILL_PATIENCE_DEVICE`]); in a drought at once. Then its data is not put into the cache. What becomes of each fill is
//! counted.

use super::{Cache, Core, Fill, NoPlace, Placed};
use crate::buckets::FillRoom;
use crate::data::Candidate;
use crate::limits::{FILL_PATIENCE, FILL_PATIENCE_DEVICE};
use crate::marks::{self, Mark};
use crate::stats::{Cause, Fate, Filling};
use crate::steps::Task;
use crate::wait::either;
use brigade_env::{Buffer, Env, StreamId};
use std::cell::RefCell;
use std::rc::Rc;

/// Clean data that is not in the cache yet.
pub(super) struct Wanted {
    pub candidate: Candidate,
    pub filling: Filling,
    pub stream: StreamId,
    pub start: u64,
    pub end: u64,
}

impl Wanted {
    fn sectors(&self) -> u64 {
        self.end - self.start
    }

    fn bytes(&self) -> usize {
        self.sectors() as usize * 512
    }
}

/// Opens candidates for a range, in pieces for each of which there will be room at once some day.
pub(super) fn candidates<E: Env>(
    core: &Core<E>,
    cache: &Cache<E>,
    stream: StreamId,
    (start, end): (u64, u64),
) -> Vec<Wanted> {
    let most = sure_sectors(cache);
    let mut pieces = Vec::with_capacity(1);
    let mut at = start;
    while at < end {
        let piece_end = end.min(at + most);
        pieces.push(Wanted {
            candidate: core.candidates.open(at, piece_end),
            filling: Filling::begin(&core.counters),
            stream,
            start: at,
            end: piece_end,
        });
        at = piece_end;
    }
    pieces
}

/// Sectors for which a waiter finds room at once some day, in whole blocks.
pub(super) fn sure_sectors<E: Env>(cache: &Cache<E>) -> u64 {
    let sure = cache.buckets.get().sure_sectors();
    (sure / cache.block_sectors * cache.block_sectors).max(cache.block_sectors)
}

/// Starts putting pieces of what was read from `start` on into the cache. Waits only while much else is on its way; says whether
/// there was memory for them.
pub(super) async fn begin<E: Env>(
    core: &Rc<Core<E>>,
    cache: &Rc<Cache<E>>,
    pieces: Vec<Wanted>,
    start: u64,
    buffer: &Buffer,
) -> bool {
    let bytes = pieces.iter().map(Wanted::bytes).sum();
    let Some(mut room) = ahead(core, cache, bytes).await else {
        no_memory(cache, &pieces);
        return false;
    };
    for piece in pieces {
        let copy = copy_of(core, &piece, start, buffer);
        let range = (piece.start, piece.sectors());
        let room = room.split(copy.len());
        match core.place(cache, piece.stream, range, false, None) {
            Ok(placed) => {
                let (core, cache) = (core.clone(), cache.clone());
                let (env, steps) = (core.env.clone(), cache.steps.clone());
                let fill = async move {
                    let _room = room;
                    store(&core, &cache, piece, placed, copy).await;
                };
                env.spawn(steps.timed(&env, Task::Fill, fill));
            }
            Err(why) => match refusal(cache, why) {
                None => wait_apart(core, cache, piece, copy, room),
                Some(fate) => piece.filling.ends(fate),
            },
        }
    }
    true
}

fn copy_of<E: Env>(core: &Core<E>, piece: &Wanted, start: u64, whole: &Buffer) -> Buffer {
    let at = (piece.start - start) as usize * 512;
    let mut copy = core.buffers.get(piece.bytes());
    copy.copy_from_slice(&whole[at..at + piece.bytes()]);
    copy
}

/// What becomes of a fill that found no room, unless it may wait.
fn refusal<E: Env>(cache: &Cache<E>, why: NoPlace) -> Option<Fate> {
    let (fate, mark) = match why {
        NoPlace::Keys => (Fate::DroppedKeys, Mark::FillDroppedKeys),
        NoPlace::Now if cache.buckets.is_drought() => (Fate::DroppedDry, Mark::FillDroppedDry),
        NoPlace::Now => return None,
    };
    marks::hit(Mark::CopyDropped);
    marks::hit(mark);
    Some(fate)
}

/// What becomes of a fill for which there is no memory.
fn refusal_of_memory<E: Env>(cache: &Cache<E>) -> Fate {
    let (fate, mark) = if cache.buckets.is_closed() {
        return Fate::Stopped;
    } else if cache.buckets.is_drought() {
        (Fate::DroppedDry, Mark::FillDroppedDry)
    } else {
        (Fate::DroppedMemory, Mark::FillDroppedMemory)
    };
    marks::hit(Mark::CopyDropped);
    marks::hit(mark);
    fate
}

/// There is no memory for these.
pub(super) fn no_memory<E: Env>(cache: &Cache<E>, pieces: &[Wanted]) {
    for piece in pieces {
        piece.filling.ends(refusal_of_memory(cache));
    }
}

/// Memory for a fill, waited for no longer than is bearable. Whoever calls this holds nothing.
pub(super) async fn ahead<E: Env>(
    core: &Core<E>,
    cache: &Cache<E>,
    bytes: usize,
) -> Option<FillRoom> {
    if let Some(room) = cache.buckets.try_fill_room(bytes) {
        return Some(room);
    }
    marks::hit(Mark::FillRequestWaits);
    core.counters.fills.request_waits.add(1);
    cache.counters.fill_request_waits.add(1);
    let room = RefCell::new(None);
    let wait = async {
        let found = cache.buckets.fill_room(bytes).await;
        *room.borrow_mut() = found;
    };
    let patience = if cache.buckets.is_data_waited_for() {
        FILL_PATIENCE
    } else {
        FILL_PATIENCE_DEVICE
    };
    either(wait, core.env.sleep(patience)).await;
    room.into_inner()
}

/// Memory for a copy that is made under a range that is held: there it must not wait. If there is none, what becomes of the copy.
pub(super) fn room_at_once<E: Env>(
    cache: &Cache<E>,
    why: NoPlace,
    ahead: Option<FillRoom>,
    bytes: usize,
) -> Result<FillRoom, Fate> {
    if let Some(fate) = refusal(cache, why) {
        return Err(fate);
    }
    let room = ahead.or_else(|| cache.buckets.try_fill_room(bytes));
    room.ok_or_else(|| refusal_of_memory(cache))
}

/// Puts pieces of a copy into the cache in the background, each as soon as there is room.
pub(super) fn wait_for_all<E: Env>(
    core: &Rc<Core<E>>,
    cache: &Rc<Cache<E>>,
    pieces: Vec<Wanted>,
    copy: &Buffer,
    room: FillRoom,
) {
    let mut room = room;
    let start = pieces.first().map_or(0, |piece| piece.start);
    for piece in pieces {
        let copy = copy_of(core, &piece, start, copy);
        let room = room.split(copy.len());
        wait_apart(core, cache, piece, copy, room);
    }
}

fn wait_apart<E: Env>(
    core: &Rc<Core<E>>,
    cache: &Rc<Cache<E>>,
    wanted: Wanted,
    copy: Buffer,
    room: FillRoom,
) {
    let (core, cache) = (core.clone(), cache.clone());
    let (env, steps) = (core.env.clone(), cache.steps.clone());
    let fill = async move {
        let _room = room;
        if let Some(placed) = wait_for_room(&core, &cache, &wanted).await {
            store(&core, &cache, wanted, placed, copy).await;
        }
    };
    env.spawn(steps.timed(&env, Task::Fill, fill));
}

/// Waits in turn until there is room for a fill; `None` once it is not wanted any more or can have none.
async fn wait_for_room<E: Env>(
    core: &Core<E>,
    cache: &Cache<E>,
    wanted: &Wanted,
) -> Option<Placed> {
    marks::hit(Mark::FillWaits);
    core.counters.fills.waits.add(1);
    cache.counters.fill_waits.add(1);
    let (start, sectors) = (wanted.start, wanted.sectors());
    let ticket = cache.buckets.queue_for_data(sectors, core.kind());
    loop {
        if cache.buckets.is_closed() {
            wanted.filling.ends(Fate::Stopped);
            return None;
        }
        if wanted.candidate.is_cancelled() {
            marks::hit(Mark::FillCancelled);
            wanted.filling.ends(Fate::Cancelled);
            return None;
        }
        match core.place(cache, wanted.stream, (start, sectors), false, Some(&ticket)) {
            Ok(placed) => return Some(placed),
            Err(why) => {
                if let Some(fate) = refusal(cache, why) {
                    wanted.filling.ends(fate);
                    return None;
                }
            }
        }
        either(ticket.turn(), wanted.candidate.cancelled()).await;
    }
}

async fn store<E: Env>(
    core: &Rc<Core<E>>,
    cache: &Rc<Cache<E>>,
    wanted: Wanted,
    placed: Placed,
    copy: Buffer,
) {
    if core
        .write_placed(cache, Cause::Fill, &placed, copy)
        .await
        .is_err()
    {
        return core.unpin(cache, placed.pinned);
    }
    let fill = Fill {
        candidate: wanted.candidate,
        extents: placed.extents,
        pinned: placed.pinned,
        filling: wanted.filling,
    };
    core.admit(cache, fill);
}
