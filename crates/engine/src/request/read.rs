//! Reading.
//!
//! Map the range to pieces, read them all at once, and look again whether the buckets read from are still the same: one that
//! was recycled meanwhile may hold other bytes by now, and the whole request is mapped anew, also where data was dirty (it
//! was written back, then recycled). Gaps come from the backing device and are put into the cache afterwards. What is clean and
//! cannot be read comes from there, too (`failing`).

use super::policy::Kind;
use super::{Backing, Cache, Core, fill};
use crate::extents::Extent;
use crate::limits::FILL_SECTORS_MAX;
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use crate::stats::{Event, OtherOutcome, ReadOutcome, Reason};
use brigade_env::sync::{join_all, yield_now};
use brigade_env::{Buffer, Env, StreamId};
use brigade_format::Ptr;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

/// A part of a request and where its bytes are, in key sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    start: u64,
    end: u64,
    /// `None`: not cached.
    ptr: Option<Ptr>,
    dirty: bool,
}

impl Piece {
    fn bytes(&self) -> usize {
        (self.end - self.start) as usize * 512
    }

    fn extent(&self, inode: u32) -> Extent {
        Extent {
            inode,
            start: self.start,
            end: self.end,
            ptr: self.ptr,
            dirty: self.dirty,
        }
    }
}

/// Reads `sectors` of a volume.
pub async fn read<E: Env>(
    core: Rc<Core<E>>,
    stream: StreamId,
    sector: u64,
    sectors: u64,
) -> io::Result<Buffer> {
    core.note_request();
    let started = core.last_request.get();
    let counters = &core.counters;
    counters.reads.all.begin();
    let result = read_enabled(&core, stream, sector + core.data_offset(), sectors).await;
    let outcome = result.as_ref().ok().map(|(_, outcome)| *outcome);
    counters.reads.end(outcome, sectors * 512);
    if let Some(outcome) = outcome {
        core.note(event_of(outcome), 1);
    }
    let took = core.env.now().saturating_sub(started);
    counters.latency.read.record(took);
    result.map(|(buffer, _)| buffer)
}

async fn read_enabled<E: Env>(
    core: &Rc<Core<E>>,
    stream: StreamId,
    start: u64,
    sectors: u64,
) -> io::Result<(Buffer, ReadOutcome)> {
    core.check_enabled()?;
    match (core.attached(), &core.backing) {
        (None, Some(backing)) => backing
            .disk
            .read_bytes(start, sectors as usize * 512)
            .await
            .map(|buffer| (buffer, ReadOutcome::Bypassed(Reason::NoCache, false))),
        (Some(cache), _) => cached(core, cache, stream, start, sectors).await,
        (None, None) => Err(io::ErrorKind::NotFound.into()),
    }
}

fn event_of(outcome: ReadOutcome) -> Event {
    match outcome {
        ReadOutcome::Hit => Event::Hit,
        ReadOutcome::Miss => Event::Miss,
        ReadOutcome::Bypassed(_, true) => Event::BypassHit,
        ReadOutcome::Bypassed(_, false) => Event::BypassMiss,
    }
}

/// Not all of it came from the cache.
fn missed(bypass: Option<Reason>) -> ReadOutcome {
    match bypass {
        Some(reason) => ReadOutcome::Bypassed(reason, false),
        None => ReadOutcome::Miss,
    }
}

async fn cached<E: Env>(
    core: &Rc<Core<E>>,
    cache: &Rc<Cache<E>>,
    stream: StreamId,
    start: u64,
    sectors: u64,
) -> io::Result<(Buffer, ReadOutcome)> {
    let bypass = core.bypasses(cache, stream, Kind::Read, (start, sectors));
    // Putting misses into the cache may recycle what was hit, in a small cache each time: a second round only reads.
    let mut fills = bypass.is_none();
    loop {
        if let Err(error) = core.bring(cache, start, start + sectors).await {
            let buffer = core.read_instead(cache, start, sectors, error).await?;
            return Ok((buffer, missed(bypass)));
        }
        let pieces = map(core, cache, start, start + sectors);
        let writer = cache.writer.as_ref();
        let unwritten = writer.and_then(|writer| {
            writer
                .inserter
                .unwritten(core.inode, start, start + sectors)
        });
        let is_hit = pieces.iter().all(|piece| piece.ptr.is_some());
        let outcome = match pieces[..] {
            [piece @ Piece { ptr: Some(_), .. }] => {
                core.read_cached(cache, piece.extent(core.inode)).await
            }
            _ => read_pieces(core, cache, stream, &pieces, fills).await,
        };
        if pieces
            .iter()
            .filter_map(|piece| piece.ptr)
            .any(|ptr| cache.buckets.is_stale(ptr))
            && !mutations::is(Mutation::ReadIgnoresReuse)
        {
            marks::hit(Mark::ReadStale);
            core.counters.read_races.add(1);
            cache.counters.read_races.add(1);
            fills = false;
            continue;
        }
        let buffer = outcome?;
        if let (Some(seq), Some(writer)) = (unwritten, writer) {
            marks::hit(Mark::ReadUnwritten);
            if let Err(error) = writer.journal.survives(seq).await {
                let buffer = core.read_instead(cache, start, sectors, error).await?;
                return Ok((buffer, missed(bypass)));
            }
        }
        let outcome = match (bypass, is_hit) {
            (Some(reason), true) => ReadOutcome::Bypassed(reason, true),
            (None, true) => ReadOutcome::Hit,
            (_, false) => missed(bypass),
        };
        return Ok((buffer, outcome));
    }
}

fn map<E: Env>(core: &Core<E>, cache: &Cache<E>, start: u64, end: u64) -> Vec<Piece> {
    let index = cache.index.borrow();
    let mut alloc = cache.buckets.get_mut();
    let mut pieces = Vec::with_capacity(1);
    let mut at = start;
    for extent in index.range(core.inode, start, end) {
        let Some(ptr) = extent.ptr.filter(|ptr| !alloc.is_stale(*ptr)) else {
            continue;
        };
        if at < extent.start {
            pieces.push(Piece {
                start: at,
                end: extent.start,
                ptr: None,
                dirty: false,
            });
        }
        alloc.touch(ptr.bucket(cache.bucket_sectors));
        pieces.push(Piece {
            start: extent.start,
            end: extent.end,
            ptr: Some(ptr),
            dirty: extent.dirty,
        });
        at = extent.end;
    }
    if at < end {
        pieces.push(Piece {
            start: at,
            end,
            ptr: None,
            dirty: false,
        });
    }
    pieces
}

async fn read_pieces<E: Env>(
    core: &Rc<Core<E>>,
    cache: &Rc<Cache<E>>,
    stream: StreamId,
    pieces: &[Piece],
    fill: bool,
) -> io::Result<Buffer> {
    let read = |piece: Piece| async move {
        match (piece.ptr, &core.backing) {
            (Some(_), _) => core.read_cached(cache, piece.extent(core.inode)).await,
            (None, Some(backing)) => miss(core, cache, backing, stream, piece, fill).await,
            (None, None) => Ok(core.buffers.get_zeroed(piece.bytes())),
        }
    };
    let mut results = join_all(pieces.iter().map(|piece| read(*piece))).await;
    if results.len() == 1 {
        return results.remove(0);
    }
    let total = pieces.iter().map(Piece::bytes).sum();
    let mut whole = core.buffers.get(total);
    let mut at = 0;
    for result in results {
        let part = result?;
        whole[at..at + part.len()].copy_from_slice(&part);
        at += part.len();
    }
    Ok(whole)
}

/// Reads a gap from the backing device, and starts putting it into the cache.
async fn miss<E: Env>(
    core: &Rc<Core<E>>,
    cache: &Rc<Cache<E>>,
    backing: &Backing<E>,
    stream: StreamId,
    piece: Piece,
    fill: bool,
) -> io::Result<Buffer> {
    let bytes = piece.bytes();
    if !fill || core.takes_nothing() || cache.writer.is_none() {
        return backing.disk.read_bytes(piece.start, bytes).await;
    }
    // Opened before the first byte is read: a write from here on cancels them.
    let mut pieces = VecDeque::from(fill::candidates(
        core,
        cache,
        stream,
        (piece.start, piece.end),
    ));
    let buffer = backing.disk.read_bytes(piece.start, bytes).await?;
    // What is long is copied in several steps, as others would have to wait for one.
    while let Some(first) = pieces.front() {
        let end = first.start + FILL_SECTORS_MAX;
        let count = pieces.partition_point(|piece| piece.end <= end).max(1);
        let some = pieces.drain(..count).collect();
        if !fill::begin(core, cache, some, piece.start, &buffer).await {
            fill::no_memory(cache, pieces.make_contiguous());
            break;
        }
        if !pieces.is_empty() {
            yield_now().await;
        }
    }
    Ok(buffer)
}

/// Brings a range into the cache, whatever its size, unless that is to be left as it is.
pub async fn prefetch<E: Env>(
    core: Rc<Core<E>>,
    stream: StreamId,
    sector: u64,
    sectors: u64,
) -> io::Result<()> {
    core.note_request();
    let counts = &core.counters.prefetches;
    counts.all.begin();
    let result = read_ahead(&core, stream, sector + core.data_offset(), sectors).await;
    counts.end(result.as_ref().ok().copied(), sectors * 512);
    result.map(|_| ())
}

async fn read_ahead<E: Env>(
    core: &Rc<Core<E>>,
    stream: StreamId,
    start: u64,
    sectors: u64,
) -> io::Result<OtherOutcome> {
    core.check_enabled()?;
    let Some(cache) = core.attached().cloned() else {
        return Ok(OtherOutcome::Bypassed(Reason::NoCache));
    };
    if let Some(reason) = core.bypasses(&cache, stream, Kind::ReadAhead, (start, sectors)) {
        return Ok(OtherOutcome::Bypassed(reason));
    }
    let mut at = start;
    while at < start + sectors {
        let end = (start + sectors).min(at + FILL_SECTORS_MAX);
        core.bring(&cache, at, end).await?;
        let pieces = map(core, &cache, at, end);
        read_pieces(core, &cache, stream, &pieces, true).await?;
        at = end;
    }
    Ok(OtherOutcome::Done)
}
