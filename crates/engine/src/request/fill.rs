//! Putting clean data into the cache: what was read on a miss, and copies of what is written to the backing device.
//!
//! ```text
//! room at once ─────────────────────────────────────────► write to the cache ─► (flushed? REQ-1) ─► index
//! no bucket ready: memory for it ─► in the background, in turn with all other data: room ─┘
//!                                   └► its range is written, drought, stop: dropped
//! ```
//!
//! A fill is not dropped because a batch of buckets is just being persisted: it waits, holding its buffer and nothing else,
//! neither a range nor a bucket. Its candidate stays open, so whoever writes its range sends it away. Only so many bytes wait
//! ([`crate::limits::FILLS_WAITING_BYTES`]); beyond that the *request* waits, with no range held, but not longer than
//! [`FILL_PATIENCE`]: that is back-pressure by a table write, never by a whole pass over the cache. It does not wait in a drought,
//! nor because the cache device is slower than the backing device: then it goes on, and its data is not put into the cache.
//! What becomes of each fill is counted.

use super::{Cache, Core, Fill, NoPlace, Placed};
use crate::buckets::FillRoom;
use crate::data::Candidate;
use crate::limits::{FILL_BYTES_MAX, FILL_PATIENCE};
use crate::marks::{self, Mark};
use crate::stats::Counter;
use crate::wait::either;
use brigade_env::{Buffer, Env, StreamId};
use std::cell::RefCell;
use std::rc::Rc;

/// Clean data that is not in the cache yet.
pub(super) struct Wanted {
    pub candidate: Candidate,
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

/// Whether more may be under way to the cache device. If not, that is counted.
pub(super) fn may_begin<E: Env>(core: &Core<E>, bytes: usize) -> bool {
    let fits = core.fill_bytes.get() + bytes <= FILL_BYTES_MAX;
    if !fits {
        drop_fill(&core.counters.fill_dropped_memory, Mark::FillDroppedMemory);
    }
    fits
}

/// Starts putting pieces of what was read from `start` on into the cache. Waits only while much else waits for buckets.
pub(super) async fn begin<E: Env>(
    core: &Rc<Core<E>>,
    cache: &Rc<Cache<E>>,
    pieces: Vec<Wanted>,
    start: u64,
    buffer: &Buffer,
) {
    for piece in pieces {
        let at = (piece.start - start) as usize * 512;
        let bytes = &buffer[at..at + piece.bytes()];
        let copy = || {
            let mut copy = core.buffers.get(bytes.len());
            copy.copy_from_slice(bytes);
            copy
        };
        let (from, sectors) = (piece.start, piece.sectors());
        match core.place(cache, piece.stream, (from, sectors), false, None) {
            Ok(placed) => store_apart(core, cache, piece, placed, copy()),
            Err(why) => {
                if let Some(room) = room_after(core, cache, why, piece.bytes()).await {
                    wait_apart(core, cache, piece, copy(), room);
                }
            }
        }
    }
}

/// Memory for a fill that found no room; `None` if it is dropped, which is counted.
async fn room_after<E: Env>(
    core: &Core<E>,
    cache: &Cache<E>,
    why: NoPlace,
    bytes: usize,
) -> Option<FillRoom> {
    give_up(core, cache, why).then_some(())?;
    let room = ahead(core, cache, bytes).await;
    if room.is_none() {
        drop_fill(&core.counters.fill_dropped_memory, Mark::FillDroppedMemory);
    }
    room
}

/// Whether a fill that found no room may wait. If not, that is counted.
fn give_up<E: Env>(core: &Core<E>, cache: &Cache<E>, why: NoPlace) -> bool {
    let counters = &core.counters;
    match why {
        NoPlace::Keys => drop_fill(&counters.fill_dropped_keys, Mark::FillDroppedKeys),
        NoPlace::Now if cache.buckets.is_drought() => {
            drop_fill(&counters.fill_dropped_dry, Mark::FillDroppedDry)
        }
        NoPlace::Now => return true,
    }
    false
}

fn drop_fill(counter: &Counter, mark: Mark) {
    marks::hit(Mark::CopyDropped);
    marks::hit(mark);
    counter.add(1);
}

/// Memory for a fill that is going to wait, itself waited for no longer than is bearable. Whoever calls this holds nothing.
pub(super) async fn ahead<E: Env>(
    core: &Core<E>,
    cache: &Cache<E>,
    bytes: usize,
) -> Option<FillRoom> {
    if let Some(room) = cache.buckets.try_fill_room(bytes) {
        return Some(room);
    }
    marks::hit(Mark::FillRequestWaits);
    let room = RefCell::new(None);
    let wait = async {
        let found = cache.buckets.fill_room(bytes).await;
        *room.borrow_mut() = found;
    };
    either(wait, core.env.sleep(FILL_PATIENCE)).await;
    room.into_inner()
}

/// Memory for a copy that is made under a range that is held: there it must not wait.
pub(super) fn room_at_once<E: Env>(
    core: &Core<E>,
    cache: &Cache<E>,
    why: NoPlace,
    ahead: Option<FillRoom>,
    bytes: usize,
) -> Option<FillRoom> {
    give_up(core, cache, why).then_some(())?;
    let room = ahead.or_else(|| cache.buckets.try_fill_room(bytes));
    if room.is_none() {
        drop_fill(&core.counters.fill_dropped_memory, Mark::FillDroppedMemory);
    }
    room
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
        let at = (piece.start - start) as usize * 512;
        let bytes = &copy[at..at + piece.bytes()];
        let mut copy = core.buffers.get(bytes.len());
        copy.copy_from_slice(bytes);
        wait_apart(core, cache, piece, copy, room.split(bytes.len()));
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
    let env = core.env.clone();
    env.spawn(async move {
        if let Some(placed) = wait_for_room(&core, &cache, &wanted).await {
            drop(room);
            store(&core, &cache, wanted, placed, copy).await;
        }
    });
}

/// Waits in turn until there is room for a fill; `None` once it is not wanted any more or can have none.
async fn wait_for_room<E: Env>(
    core: &Core<E>,
    cache: &Cache<E>,
    wanted: &Wanted,
) -> Option<Placed> {
    marks::hit(Mark::FillWaits);
    core.counters.fill_waits.add(1);
    let (start, sectors) = (wanted.start, wanted.sectors());
    let ticket = cache.buckets.queue_for_data(sectors, core.kind());
    loop {
        if cache.buckets.is_closed() {
            return None;
        }
        if wanted.candidate.is_cancelled() {
            marks::hit(Mark::FillCancelled);
            core.counters.fill_cancelled.add(1);
            return None;
        }
        match core.place(cache, wanted.stream, (start, sectors), false, Some(&ticket)) {
            Ok(placed) => return Some(placed),
            Err(why) => give_up(core, cache, why).then_some(())?,
        }
        either(ticket.turn(), wanted.candidate.cancelled()).await;
    }
}

fn store_apart<E: Env>(
    core: &Rc<Core<E>>,
    cache: &Rc<Cache<E>>,
    wanted: Wanted,
    placed: Placed,
    copy: Buffer,
) {
    let (core, cache) = (core.clone(), cache.clone());
    let env = core.env.clone();
    core.fill_bytes.set(core.fill_bytes.get() + copy.len());
    env.spawn(async move {
        let bytes = copy.len();
        write_and_admit(&core, &cache, wanted, placed, copy).await;
        core.fill_bytes.set(core.fill_bytes.get() - bytes);
    });
}

async fn store<E: Env>(
    core: &Rc<Core<E>>,
    cache: &Rc<Cache<E>>,
    wanted: Wanted,
    placed: Placed,
    copy: Buffer,
) {
    let bytes = copy.len();
    core.fill_bytes.set(core.fill_bytes.get() + bytes);
    write_and_admit(core, cache, wanted, placed, copy).await;
    core.fill_bytes.set(core.fill_bytes.get() - bytes);
}

async fn write_and_admit<E: Env>(
    core: &Rc<Core<E>>,
    cache: &Rc<Cache<E>>,
    wanted: Wanted,
    placed: Placed,
    copy: Buffer,
) {
    match core.write_placed(cache, &placed, copy).await {
        Ok(()) => {
            let fill = Fill {
                candidate: wanted.candidate,
                extents: placed.extents,
                pinned: placed.pinned,
            };
            core.admit(cache, fill);
        }
        Err(_) => core.unpin(cache, placed.pinned),
    }
}
