//! Clean data that is unlike the backing device, after a kernel had the set.
//!
//! A kernel acknowledges a write to the backing device before the key that replaces the cached copy is in its journal
//! (docs/format.md 10.11, K3). After its crash the cache serves the older data until the bucket is recycled, and then the newer
//! data shows without anybody having written it. What is served must not change by itself, so what the cache serves
//! becomes true: such data is made dirty before anything else happens, and is written back. Brigade's own sessions leave
//! nothing of the kind; they mark their journal entries, and nothing is compared after them.

use super::attach;
use super::open::Prepared;
use crate::device::Disk;
use crate::error::Error;
use crate::extents::Extent;
use crate::limits::SETTLE_BYTES_MAX;
use crate::meta::write_superblock;
use crate::recovery::Held;
use brigade_env::Env;
use brigade_env::sync::join_all;
use brigade_format::{BackingState, Superblock};
use std::io;
use std::rc::Rc;

/// Longest piece compared at once, in sectors.
const PIECE_SECTORS: u64 = 2048;
/// Pieces compared at the same time.
const PIECES: usize = 16;

/// Compares, and makes dirty what differs. Gives a warning if there is something to say.
pub async fn settle<E: Env>(
    prepared: &mut Prepared<E>,
    backing: &Rc<Disk<E>>,
    superblock: &mut Superblock,
    data_offset: u64,
) -> Result<Option<String>, Error> {
    let uuids = prepared.uuids();
    let Some(loaded) = prepared
        .loaded
        .as_mut()
        .filter(|loaded| loaded.newest.mark.is_none())
    else {
        return Ok(None);
    };
    let block_sectors = prepared.found.geometry.block_sectors;
    let seen = &loaded.inodes_seen;
    let plan = attach::plan(&uuids, seen, superblock, block_sectors, 0, false);
    let Some(plan) = plan.ok().filter(|plan| !plan.is_new) else {
        return Ok(None);
    };
    let is_clean = |extent: &Extent| extent.ptr.is_some() && !extent.dirty;
    let range = (data_offset, backing.sectors());
    let clean = match &loaded.held {
        Some(held) => held.clean_of(plan.slot, range.0, range.1),
        None => {
            let all = loaded.index.range(plan.slot, range.0, range.1);
            Some(all.filter(is_clean).collect())
        }
    };
    let of_held = |held: &Held| held.inodes.get(&plan.slot).map_or(0, |it| it.clean_sectors);
    let sectors = match &clean {
        Some(clean) => clean.iter().map(Extent::sectors).sum(),
        None => loaded.held.as_ref().map_or(0, of_held),
    };
    let bytes = sectors * 512;
    let Some(clean) = clean.filter(|_| bytes <= SETTLE_BYTES_MAX) else {
        let what = format!(
            "{}: {} MiB of clean data from a kernel's session were not compared with it; if that session crashed, sectors \
             written last may change when they leave the cache (F70)",
            backing.name(),
            bytes >> 20
        );
        return Ok(Some(what));
    };
    let io = |error: io::Error| Error::io(backing.name(), "comparison with the cache", &error);
    let unlike = unlike(&prepared.found.disk, backing, &clean)
        .await
        .map_err(io)?;
    if unlike.is_empty() {
        return Ok(None);
    }
    if superblock.state() != BackingState::Dirty {
        superblock.set_state(BackingState::Dirty);
        write_superblock(backing, superblock).await.map_err(io)?;
    }
    let sectors: u64 = unlike.iter().map(Extent::sectors).sum();
    for extent in unlike {
        let bucket_sectors = prepared.found.geometry.bucket_sectors;
        loaded.make_dirty(extent, bucket_sectors);
        loaded.overlay.push(extent);
        loaded.settled.push(extent);
    }
    Ok(Some(format!(
        "{}: {sectors} sectors are unlike their clean copies in the cache, as a kernel's crash leaves them; what the cache \
         has counts and is written back (F70)",
        backing.name()
    )))
}

/// The parts of clean extents that the backing device does not have, as dirty extents.
async fn unlike<E: Env>(
    cache: &Disk<E>,
    backing: &Disk<E>,
    clean: &[Extent],
) -> io::Result<Vec<Extent>> {
    let pieces: Vec<Extent> = clean.iter().flat_map(pieces).collect();
    let mut unlike = Vec::new();
    for some in pieces.chunks(PIECES) {
        let compared = join_all(some.iter().map(|piece| compare(cache, backing, *piece))).await;
        for differing in compared {
            unlike.extend(differing?);
        }
    }
    Ok(unlike)
}

fn pieces(extent: &Extent) -> Vec<Extent> {
    let starts = (extent.start..extent.end).step_by(PIECE_SECTORS as usize);
    starts
        .map(|start| extent.slice(start, extent.end.min(start + PIECE_SECTORS)))
        .collect()
}

async fn compare<E: Env>(
    cache: &Disk<E>,
    backing: &Disk<E>,
    piece: Extent,
) -> io::Result<Vec<Extent>> {
    let bytes = piece.sectors() as usize * 512;
    let place = piece.ptr.expect("clean data has a place").sector();
    let ours = cache.read_bytes(place, bytes).await?;
    let theirs = backing.read_bytes(piece.start, bytes).await?;
    let mut runs: Vec<Extent> = Vec::new();
    for (i, (a, b)) in ours.chunks(512).zip(theirs.chunks(512)).enumerate() {
        if a == b {
            continue;
        }
        let at = piece.start + i as u64;
        match runs.last_mut() {
            Some(last) if last.end == at => *last = piece.slice(last.start, at + 1),
            _ => runs.push(piece.slice(at, at + 1)),
        }
    }
    runs.iter_mut().for_each(|run| run.dirty = true);
    Ok(runs)
}
