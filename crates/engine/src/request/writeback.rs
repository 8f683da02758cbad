//! Writing to the cache only: the data becomes dirty there.
//!
//! ```text
//! backing device says dirty (durable) ─► data in the cache ─► keys in index, journal stage, record in memory ─► acknowledged
//!                                                                           FUA: ... ─► journal entry durable ─► acknowledged
//! ```

use super::{Cache, Core, NoPlace, Placed, fill};
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use crate::stats::Cause;
use brigade_env::{Buffer, Env, StreamId};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// A flash volume has no other place for what is too large to be placed at once, so it is written in pieces.
const FLASH_PIECE_BUCKETS: u64 = 4;

/// Time between looks whether all leaves are counted.
const COUNT_LOOK: Duration = Duration::from_millis(10);
/// How often a write that has no other place looks whether there is room for its keys, as leaves are written; and once none is pending,
/// whose buckets may be about to come back.
const KEYS_LOOKS: u32 = 300;
const KEYS_LAST_LOOKS: u32 = 10;

/// What became of the attempt.
pub enum Outcome {
    /// Done and acknowledgeable.
    Done,
    /// There is no room for all of it and none is to be had soon.
    NoRoom(Buffer),
}

/// Writes a range to the cache.
pub async fn write<E: Env>(
    core: &Rc<Core<E>>,
    cache: &Rc<Cache<E>>,
    stream: StreamId,
    start: u64,
    buffer: Buffer,
    fua: bool,
) -> io::Result<Outcome> {
    let piece_sectors = u64::from(cache.bucket_sectors) * FLASH_PIECE_BUCKETS;
    let piece_bytes = piece_sectors.min(fill::sure_sectors(cache)) as usize * 512;
    if core.backing.is_some() || buffer.len() <= piece_bytes {
        return write_piece(core, cache, stream, start, buffer, fua).await;
    }
    let mut at = start;
    for bytes in buffer.chunks(piece_bytes) {
        let mut piece = core.buffers.get(bytes.len());
        piece.copy_from_slice(bytes);
        if let Outcome::NoRoom(_) = write_piece(core, cache, stream, at, piece, fua).await? {
            return Ok(Outcome::NoRoom(buffer));
        }
        at += bytes.len() as u64 / 512;
    }
    Ok(Outcome::Done)
}

async fn write_piece<E: Env>(
    core: &Rc<Core<E>>,
    cache: &Rc<Cache<E>>,
    stream: StreamId,
    start: u64,
    buffer: Buffer,
    fua: bool,
) -> io::Result<Outcome> {
    let writer = cache.writer.as_ref().expect("checked to be writable");
    let sectors = buffer.len() as u64 / 512;
    let _intent = match &core.backing {
        Some(backing) => Some(backing.superblock.dirty_intent().await?),
        None => None,
    };
    if core.takes_nothing() && core.backing.is_some() {
        // Since it was decided. Who detaches waits for the intent, and nothing becomes dirty after it (docs/durability.md).
        marks::hit(Mark::DetachSendsAway);
        return Ok(Outcome::NoRoom(buffer));
    }
    let Some(placed) = place(core, cache, stream, start, sectors).await? else {
        return Ok(Outcome::NoRoom(buffer));
    };
    let mut placed = placed;
    if mutations::is(Mutation::PinLost) {
        core.unpin(cache, std::mem::take(&mut placed.pinned));
    }
    if let Err(error) = core
        .write_placed(cache, Cause::Client, &placed, buffer)
        .await
        && !mutations::is(Mutation::AckWithFailedData)
    {
        core.unpin(cache, placed.pinned);
        return Err(error);
    }
    // Piece by piece, in the step in which the index has it: no copy of older data is let in behind it, and a direct write that
    // ends now knows that it was overtaken. (Until its bucket is unpinned the piece itself would keep such a copy out.)
    let inserted = writer.inserter.insert(&placed.extents, |_, extent| {
        core.candidates.cancel(extent.start, extent.end);
        vec![*extent]
    });
    let inserted = inserted.await;
    core.unpin(cache, placed.pinned);
    if let Some(seq) = inserted? {
        if fua && !mutations::is(Mutation::FuaForgottenCached) {
            writer.journal.flush_through(seq).await?;
        } else {
            writer.journal.survives(seq).await?;
        }
    }
    Ok(Outcome::Done)
}

/// Takes room for the range, waiting in turn while buckets are being made ready.
async fn place<E: Env>(
    core: &Core<E>,
    cache: &Cache<E>,
    stream: StreamId,
    start: u64,
    sectors: u64,
) -> io::Result<Option<Placed>> {
    let buckets = &cache.buckets;
    let mut ticket = None;
    let mut looks = 0;
    loop {
        cache.poison.check()?;
        match core.place(cache, stream, (start, sectors), true, ticket.as_ref()) {
            Ok(placed) => return Ok(Some(placed)),
            Err(NoPlace::Keys) if waits_for_count(core, cache) => {
                core.env.sleep(COUNT_LOOK).await;
                continue;
            }
            Err(NoPlace::Keys) if core.backing.is_none() && looks < KEYS_LOOKS => {
                marks::hit(Mark::PlaceWaitsForKeys);
                looks += match cache.index.borrow().nodes.dirty_count() {
                    0 => KEYS_LOOKS / KEYS_LAST_LOOKS,
                    _ => 1,
                };
                // Others behind it may need no keys, or have another place.
                ticket = None;
                core.env.sleep(COUNT_LOOK).await;
                continue;
            }
            Err(NoPlace::Keys) => return Ok(None),
            // More than is sure to be ready at once goes another way, as does everything when nothing can be recycled.
            Err(NoPlace::Now)
                if is_hopeless(core, cache) || sectors > fill::sure_sectors(cache) =>
            {
                return Ok(None);
            }
            Err(NoPlace::Now) => marks::hit(Mark::PlaceWaits),
        }
        if ticket.is_none() {
            core.counters.writes.bucket_waits.add(1);
            cache.counters.bucket_waits.add(1);
            // Who waits to put there what this is going to cover only stands in the way.
            core.candidates.cancel(start, start + sectors);
        }
        ticket
            .get_or_insert_with(|| buckets.queue_for_data(sectors, core.kind()))
            .turn()
            .await;
    }
}

/// Whether no bucket is to be had soon. A flash volume has no other place for its data, so it waits for the first count.
fn is_hopeless<E: Env>(core: &Core<E>, cache: &Cache<E>) -> bool {
    cache.buckets.is_dry.get() && !waits_for_count(core, cache)
}

fn waits_for_count<E: Env>(core: &Core<E>, cache: &Cache<E>) -> bool {
    core.backing.is_none() && cache.buckets.get().is_counting()
}
