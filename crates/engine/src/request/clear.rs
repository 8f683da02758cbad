//! Zeroes and discards.

use super::policy::Kind;
use super::{Cache, Clear, Core, DirectWrite, direct};
use crate::limits::CLEAR_SECTORS_MAX;
use crate::marks::{self, Mark};
use crate::stats::OtherOutcome;
use brigade_env::{Env, StreamId};
use std::io;
use std::rc::Rc;

/// Zeroes or discards a range.
pub async fn clear<E: Env>(
    core: Rc<Core<E>>,
    sector: u64,
    sectors: u64,
    what: Clear,
    fua: bool,
) -> io::Result<()> {
    core.note_request();
    let started = core.last_request.get();
    let (counts, times) = match what {
        Clear::Discard => (&core.counters.discards, &core.counters.latency.discard),
        Clear::Zeroes { .. } => (&core.counters.zeroes, &core.counters.latency.zeroes),
    };
    counts.all.begin();
    let result = clear_admitted(&core, sector, sectors, what, fua).await;
    counts.end(result.as_ref().ok().copied(), sectors * 512);
    times.record(core.env.now().saturating_sub(started));
    result.map(|_| ())
}

async fn clear_admitted<E: Env>(
    core: &Rc<Core<E>>,
    sector: u64,
    sectors: u64,
    what: Clear,
    fua: bool,
) -> io::Result<OtherOutcome> {
    let _admitted = core.admit_write().await?;
    let start = sector + core.data_offset();
    if let Some(cache) = core.attached() {
        // It always does, and is counted among those that do.
        core.bypasses(cache, StreamId::default(), Kind::Clear, (start, sectors));
    }
    if let Some(backing) = &core.backing {
        // What the backing device cannot drop, the cache does not drop either: old content must not come back.
        if what == Clear::Discard && !backing.disk.geometry().can_discard {
            return Ok(OtherOutcome::Ignored);
        }
    }
    // In pieces: what is cached of a range is looked through in one go.
    let (mut at, end) = (start, start + sectors);
    while at < end {
        let piece = (at, end.min(at + CLEAR_SECTORS_MAX));
        clear_piece(core, piece, what, fua).await?;
        at = piece.1;
    }
    Ok(OtherOutcome::Done)
}

async fn clear_piece<E: Env>(
    core: &Rc<Core<E>>,
    (start, end): (u64, u64),
    what: Clear,
    fua: bool,
) -> io::Result<()> {
    match (&core.backing, &core.cache) {
        (Some(backing), _) => {
            let what = DirectWrite::Clear(what);
            direct::write(
                core,
                backing,
                StreamId::default(),
                (start, end),
                what,
                fua,
                false,
            )
            .await
        }
        (None, Some(cache)) => clear_flash(core, cache, start, end, fua).await,
        (None, None) => Ok(()),
    }
}

/// Drops a range of a flash volume, which reads as zeros then.
async fn clear_flash<E: Env>(
    core: &Core<E>,
    cache: &Cache<E>,
    start: u64,
    end: u64,
    fua: bool,
) -> io::Result<()> {
    let Some(writer) = &cache.writer else {
        return Err(io::ErrorKind::ReadOnlyFilesystem.into());
    };
    let (before, after) = (start.saturating_sub(1), end + 1);
    cache.pages.bring(core.inode, before, after).await?;
    let live = cache
        .index
        .borrow()
        .live(&cache.buckets.get(), core.inode, start, end);
    if cache.hole_splits(core.inode, start, end) && !cache.has_room_for_keys() {
        marks::hit(Mark::ClearSplitRefused);
        return Err(io::ErrorKind::StorageFull.into());
    }
    let inserted = writer.inserter.insert_all(&direct::holes(&live)).await?;
    match inserted {
        // What hides the range may have been journalled by an earlier, plain request.
        _ if fua => writer.journal.flush().await,
        Some(seq) => writer.journal.survives(seq).await,
        None => Ok(()),
    }
}
