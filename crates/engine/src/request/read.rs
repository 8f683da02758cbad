//! Reading.
//!
//! Map the range to pieces, read them all at once, and look again whether the buckets read from are still the same: one that
//! was recycled meanwhile may hold other bytes by now, and the whole request is mapped anew, also where data was dirty (it
//! was written back, then recycled). Gaps come from the backing device and are put into the cache afterwards. What is clean and
//! cannot be read comes from there, too (`failing`).

use super::{Backing, Cache, Core, fill};
use crate::extents::Extent;
use crate::limits::FILL_SECTORS_MAX;
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use brigade_env::sync::join_all;
use brigade_env::{Buffer, Env, StreamId};
use brigade_format::Ptr;
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
    core.check_enabled()?;
    let start = sector + core.data_offset();
    let result = match (core.attached(), &core.backing) {
        (None, Some(backing)) => backing.disk.read_bytes(start, sectors as usize * 512).await,
        (Some(cache), _) => cached(&core, cache, stream, start, sectors).await,
        (None, None) => Err(io::ErrorKind::NotFound.into()),
    };
    core.counters
        .read_latency
        .record(core.env.now().saturating_sub(started));
    result
}

async fn cached<E: Env>(
    core: &Rc<Core<E>>,
    cache: &Rc<Cache<E>>,
    stream: StreamId,
    start: u64,
    sectors: u64,
) -> io::Result<Buffer> {
    let is_flash = core.backing.is_none();
    let bypass = is_flash || core.bypasses(cache, stream, start, sectors, false);
    // Putting misses into the cache may recycle what was hit, in a small cache each time: a second round only reads.
    let mut fills = !bypass;
    loop {
        if let Err(error) = core.bring(cache, start, start + sectors).await {
            return core.read_instead(cache, start, sectors, error).await;
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
            fills = false;
            continue;
        }
        let buffer = outcome?;
        if let (Some(seq), Some(writer)) = (unwritten, writer) {
            marks::hit(Mark::ReadUnwritten);
            if let Err(error) = writer.journal.survives(seq).await {
                return core.read_instead(cache, start, sectors, error).await;
            }
        }
        let counters = &core.counters;
        match (is_hit, bypass) {
            (true, _) => {
                counters.hits.add(1);
                counters.hit_bytes.add(buffer.len() as u64);
            }
            (false, false) => {
                counters.misses.add(1);
                counters.miss_bytes.add(buffer.len() as u64);
            }
            (false, true) => counters.read_bypassed.add(1),
        }
        return Ok(buffer);
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
    let is_wanted = fill
        && !core.takes_nothing()
        && cache.writer.is_some()
        && piece.end - piece.start <= FILL_SECTORS_MAX;
    if !is_wanted {
        return backing.disk.read_bytes(piece.start, bytes).await;
    }
    // Opened before the first byte is read: a write from here on cancels them.
    let pieces = fill::candidates(core, cache, stream, (piece.start, piece.end));
    let buffer = backing.disk.read_bytes(piece.start, bytes).await?;
    fill::begin(core, cache, pieces, piece.start, &buffer).await;
    Ok(buffer)
}

/// Brings a range into the cache, whatever its size.
pub async fn prefetch<E: Env>(
    core: Rc<Core<E>>,
    stream: StreamId,
    sector: u64,
    sectors: u64,
) -> io::Result<()> {
    core.check_enabled()?;
    let Some(cache) = core.attached().cloned() else {
        return Ok(());
    };
    let start = sector + core.data_offset();
    let mut at = start;
    while at < start + sectors {
        let end = (start + sectors).min(at + FILL_SECTORS_MAX);
        core.bring(&cache, at, end).await?;
        let pieces = map(&core, &cache, at, end);
        read_pieces(&core, &cache, stream, &pieces, true).await?;
        at = end;
    }
    Ok(())
}
