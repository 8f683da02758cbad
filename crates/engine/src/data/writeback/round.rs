//! One round: some dirty extents are copied to the backing device, and are clean.

use super::bridge::Bridge;
use super::scan::{Batch, runs, same};
use super::task::Writeback;
use crate::btree::Index;
use crate::data::candidates::Candidate;
use crate::extents::Extent;
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use crate::settings::Knob;
use crate::stats::Cause;
use brigade_env::sync::{Lock, join_all, yield_now};
use brigade_env::{Buffer, Durability, Env};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;

/// Bytes that copying begins with in one step, about.
const COPIED_AT_ONCE: u64 = 256 << 10;
/// Extents that become clean in one step.
const CLEANED_AT_ONCE: usize = 32;
/// Spans with gaps that are copied at the same time: each keeps others from its whole range.
const DEPTH_OF_SPANS: usize = 3;
/// Extents of one run that the backing device does not take, after which the rest of it stays dirty too.
const REFUSED_OF_A_RUN: usize = 4;

/// Bounds what one step does: devices in memory do at once what they are asked for, and others have to wait for it.
#[derive(Default)]
pub struct Breath {
    turn: Lock,
    bytes: Cell<u64>,
}

impl Breath {
    /// Comes back when so many bytes may be copied, after a step for the others if there was enough.
    async fn take(&self, bytes: u64) {
        let _turn = self.turn.lock().await;
        if self.bytes.get() > 0 && self.bytes.get() + bytes > COPIED_AT_ONCE {
            yield_now().await;
            self.bytes.set(0);
        }
        self.bytes.set(self.bytes.get() + bytes);
    }
}

/// What the workers of a round share.
struct Round<'a> {
    /// What nobody has begun with.
    left: RefCell<VecDeque<&'a [Extent]>>,
    breath: Breath,
    /// Sectors of the longest gap to be written over; none any more after one that was not.
    gap: Cell<u64>,
    /// Moves of dirty data before it.
    moves: u64,
    /// Requests to the backing device, and their bytes.
    requests: Cell<u64>,
    bytes: Cell<u64>,
}

impl Round<'_> {
    fn count(&self, bytes: usize) {
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + bytes as u64);
    }
}

/// Extents whose data is on the backing device, what tells of writes since, one for each extent that was to be copied, and the first
/// error.
struct Copied {
    candidates: Vec<(u64, Candidate)>,
    extents: Vec<Extent>,
    error: Option<io::Error>,
}

fn has_gaps(group: &[Extent]) -> bool {
    group.windows(2).any(|pair| pair[0].end < pair[1].start)
}

impl<E: Env> Writeback<E> {
    /// Writes a batch back; gives the sectors cleaned and the first error of what stays dirty.
    pub(super) async fn round(
        &self,
        batch: &Batch,
        gap: u64,
        moves: u64,
    ) -> io::Result<(u64, Option<io::Error>)> {
        // A crash must not take the key and leave the data on the backing device, under an older clean copy.
        self.parts.journal.flush().await?;
        let all = runs(&batch.extents, gap).collect::<VecDeque<_>>();
        let runs = all.len();
        let round = Round {
            left: RefCell::new(all),
            breath: Breath::default(),
            gap: Cell::new(gap),
            moves,
            requests: Cell::new(0),
            bytes: Cell::new(0),
        };
        let depth = match gap {
            0 => self.depth.get().get(),
            _ => DEPTH_OF_SPANS,
        };
        let began = self.parts.env.now();
        let workers = (0..depth.min(runs)).map(|_| self.work_off(&round));
        let (mut candidates, mut copied, mut first_error) = (BTreeMap::new(), Vec::new(), None);
        for result in join_all(workers).await.into_iter().flatten() {
            match result {
                Ok(run) => {
                    candidates.extend(run.candidates);
                    copied.extend(run.extents);
                    first_error = first_error.or(run.error);
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        let took = self.parts.env.now().saturating_sub(began);
        self.change(&self.bridge, |bridge| {
            bridge.round_ended(round.requests.get(), round.bytes.get(), took)
        });
        if gap == 0 {
            let wanted = self.parts.settings.time(Knob::WritebackLatency);
            self.change(&self.depth, |depth| depth.round_ended(runs, wanted));
        }
        let cleaned = self.finish(copied, &candidates, round.moves).await?;
        Ok((cleaned, first_error))
    }

    /// Copies run after run until none is left.
    async fn work_off(&self, round: &Round<'_>) -> Vec<io::Result<Copied>> {
        let mut results = Vec::new();
        while !self.is_closing.get() {
            let next = round.left.borrow_mut().pop_front();
            let Some(run) = next else { break };
            results.push(self.copy_run(run, round).await);
        }
        results
    }

    /// Flushes the backing device, and calls clean what is on it.
    async fn finish(
        &self,
        mut copied: Vec<Extent>,
        candidates: &BTreeMap<u64, Candidate>,
        moves: u64,
    ) -> io::Result<u64> {
        if copied.is_empty() {
            return Ok(0);
        }
        copied.sort_unstable_by_key(|extent| extent.start);
        if !mutations::is(Mutation::CleanWithoutFlush) {
            self.parts.backing.flush().await?;
        }
        let sectors = copied.iter().map(Extent::sectors).sum::<u64>();
        self.parts.counters.written_back_bytes.add(sectors * 512);
        for extent in &mut copied {
            extent.dirty = false;
        }
        let cleaned = Cell::new(0);
        for some in copied.chunks(CLEANED_AT_ONCE) {
            self.clean(some, candidates, &cleaned, moves).await?;
            yield_now().await;
        }
        Ok(cleaned.get())
    }

    /// What was to be written back is not what it was: if it was only moved, it is still to be.
    fn note_moved(&self, index: &Index, extent: &Extent, moves: u64) {
        if self.parts.clients.writeback.moves() == moves {
            return;
        }
        let is_moved = |it: &Extent| it.dirty && *it != extent.slice(it.start, it.end);
        let there = index.range(extent.inode, extent.start, extent.end);
        self.note_left(&there.filter(is_moved).collect::<Vec<_>>());
    }

    /// Calls extents clean where nothing was written since they were copied.
    async fn clean(
        &self,
        clean: &[Extent],
        candidates: &BTreeMap<u64, Candidate>,
        cleaned: &Cell<u64>,
        moves: u64,
    ) -> io::Result<()> {
        let still = |index: &Index, extent: &Extent| {
            // Each of the two looks below sees what a write to the cache changed, so both have to be missing.
            if mutations::is(Mutation::WritebackIgnoresChange) {
                return vec![*extent];
            }
            let dirty = Extent {
                dirty: true,
                ..*extent
            };
            // What was written directly since is not what was copied, although the index may not know yet.
            let candidate = candidates.range(..=extent.start).next_back();
            if candidate.is_none_or(|(_, candidate)| candidate.is_cancelled())
                && !mutations::is(Mutation::WritebackIgnoresDirect)
            {
                marks::hit(Mark::WritebackChanged);
                self.parts.counters.writeback_failed.add(1);
                self.note_left(&same(index, &dirty));
                self.note_moved(index, &dirty, moves);
                return Vec::new();
            }
            let mut still = same(index, &dirty);
            self.note_moved(index, &dirty, moves);
            for part in &mut still {
                part.dirty = false;
                cleaned.set(cleaned.get() + part.sectors());
            }
            if still.is_empty() {
                self.parts.counters.writeback_failed.add(1);
            } else {
                self.parts.counters.writeback_done.add(1);
            }
            still
        };
        self.parts.inserter.insert(clean, still).await.map(|_| ())
    }

    /// Copies what is still there of a run.
    async fn copy_run(&self, run: &[Extent], round: &Round<'_>) -> io::Result<Copied> {
        let parts = &self.parts;
        let (start, end) = (run[0].start, run[run.len() - 1].end);
        let locked = match mutations::is(Mutation::BridgeUnlocked) {
            true => run[0].end,
            false => end,
        };
        let _held = parts.locks.lock(start, locked).await;
        let opened = run.iter().map(|extent| {
            let candidate = parts.candidates.open(extent.start, extent.end);
            (extent.start, candidate)
        });
        let mut copied = Copied {
            candidates: opened.collect(),
            extents: Vec::new(),
            error: None,
        };
        self.bring(start, end).await?;
        let before: Vec<Extent> = {
            let index = parts.index.borrow();
            run.iter()
                .inspect(|extent| self.note_moved(&index, extent, round.moves))
                .flat_map(|extent| same(&index, extent))
                .collect()
        };
        let mut readable = Vec::new();
        for group in runs(&before, round.gap.get()) {
            for (extent, piece) in group.iter().zip(self.read(group, &round.breath).await) {
                match piece {
                    Ok(piece) => readable.push((*extent, piece)),
                    Err(error) => {
                        self.note_left(&[*extent]);
                        copied.error.get_or_insert(error);
                    }
                }
            }
            let (extents, mut pieces): (Vec<Extent>, VecDeque<Buffer>) = readable.drain(..).unzip();
            for group in runs(&extents, round.gap.get()) {
                self.copy_group(group, &mut pieces, round, &mut copied)
                    .await?;
            }
        }
        Ok(copied)
    }

    /// Writes extents whose data was read, with what lies between them if that can be read.
    async fn copy_group(
        &self,
        group: &[Extent],
        pieces: &mut VecDeque<Buffer>,
        round: &Round<'_>,
        copied: &mut Copied,
    ) -> io::Result<()> {
        if has_gaps(group)
            && let Some(span) = self.read_span(group, round).await
        {
            marks::hit(Mark::WritebackBridges);
            let data = self.lay_over(span, group, pieces, &round.breath).await;
            return self.write(group, data, round, copied).await;
        }
        for group in runs(group, 0) {
            let data = self.join(group, pieces, &round.breath).await;
            self.write(group, data, round, copied).await?;
        }
        Ok(())
    }

    fn leave_gaps_alone(&self, round: &Round<'_>) {
        round.gap.set(0);
        self.change(&self.bridge, Bridge::failed);
    }

    /// What the backing device has from the first of these extents to the last. Its range lock is held: nobody else writes there.
    async fn read_span(&self, group: &[Extent], round: &Round<'_>) -> Option<Buffer> {
        let (start, end) = (group[0].start, group[group.len() - 1].end);
        let bytes = (end - start) as usize * 512;
        round.breath.take(bytes as u64).await;
        round.count(bytes);
        let read = self.parts.backing.read_bytes(start, bytes).await;
        if let Err(error) = &read {
            tracing::warn!(device = self.parts.backing.name(), %error, start, "what lies between dirty data cannot be read; it is left alone from now on");
            self.leave_gaps_alone(round);
        }
        read.ok()
    }

    /// Extents one by one. Who cannot be read is known by its bucket from then on, and does not count as an error again.
    async fn read(&self, group: &[Extent], breath: &Breath) -> Vec<io::Result<Buffer>> {
        let (cache, buckets) = (&self.parts.cache, &self.parts.buckets);
        let read = |extent: &Extent| {
            let (extent, bytes) = (*extent, extent.sectors() * 512);
            async move {
                breath.take(bytes).await;
                let buffer = cache.buffers().get(bytes as usize);
                let ptr = extent.ptr.expect("dirty data has a place");
                if buckets.get().is_set_aside(ptr) {
                    return cache.read_again(ptr.sector(), buffer).await;
                }
                let read = cache.read_data(ptr.sector(), buffer).await;
                if read.is_err() {
                    buckets.set_aside([ptr]);
                }
                read
            }
        };
        join_all(group.iter().map(read)).await
    }

    /// Adjacent extents, as one piece, of the first of these.
    async fn join(
        &self,
        group: &[Extent],
        pieces: &mut VecDeque<Buffer>,
        breath: &Breath,
    ) -> Buffer {
        if group.len() == 1
            && let Some(piece) = pieces.pop_front()
        {
            return piece;
        }
        let bytes = (group[group.len() - 1].end - group[0].start) * 512;
        let all = self.parts.cache.buffers().get(bytes as usize);
        self.lay_over(all, group, pieces, breath).await
    }

    /// Puts the first of these pieces, those of the extents, where they belong in what begins with the first extent.
    async fn lay_over(
        &self,
        mut all: Buffer,
        group: &[Extent],
        pieces: &mut VecDeque<Buffer>,
        breath: &Breath,
    ) -> Buffer {
        for (extent, piece) in group.iter().zip(pieces.drain(..group.len())) {
            breath.take(piece.len() as u64).await;
            let at = (extent.start - group[0].start) as usize * 512;
            all[at..at + piece.len()].copy_from_slice(&piece);
        }
        all
    }

    /// Writes extents and what lies between them to the backing device, but for those that have changed: in as few pieces as these leave,
    /// as their range is held meanwhile. What the backing device does not take together goes one by one.
    async fn write(
        &self,
        group: &[Extent],
        data: Buffer,
        round: &Round<'_>,
        copied: &mut Copied,
    ) -> io::Result<()> {
        let (first, mut data) = (group[0].start, Some(data));
        let mut left = vec![group];
        while let Some(some) = left.pop() {
            if round.gap.get() == 0 && has_gaps(some) {
                left.extend(runs(some, 0).collect::<Vec<_>>().into_iter().rev());
                continue;
            }
            let (start, end) = (some[0].start, some[some.len() - 1].end);
            let piece = match &data {
                Some(data) if some.len() < group.len() => {
                    let at = (start - first) as usize * 512..(end - first) as usize * 512;
                    Some(self.piece_of(&data[at], &round.breath).await)
                }
                _ => {
                    round.breath.take((end - start) * 512).await;
                    None
                }
            };
            self.bring(start, end).await?;
            let same = self.split_at_changes(some, round.moves);
            if same.first().is_none_or(|part| part.len() < some.len()) {
                left.extend(same.into_iter().rev());
                continue;
            }
            let buffer = piece.or_else(|| data.take());
            let buffer = buffer.expect("only the whole takes it");
            if some.len() > 1 {
                marks::hit(Mark::WritebackMerges);
            }
            match self.write_out(start, buffer, round).await {
                Ok(()) => copied.extents.extend_from_slice(some),
                Err(error) => {
                    copied.error.get_or_insert(error);
                    if has_gaps(some) {
                        self.leave_gaps_alone(round);
                    }
                    self.write_parts(some, &round.breath, copied).await?;
                }
            }
        }
        Ok(())
    }

    async fn piece_of(&self, data: &[u8], breath: &Breath) -> Buffer {
        let mut piece = self.parts.backing.buffers().get(data.len());
        let slice = COPIED_AT_ONCE as usize;
        for (to, from) in piece.chunks_mut(slice).zip(data.chunks(slice)) {
            breath.take(from.len() as u64).await;
            to.copy_from_slice(from);
        }
        piece
    }

    /// Extents that are still the same, those together between which none is not.
    fn split_at_changes<'a>(&self, extents: &'a [Extent], moves: u64) -> Vec<&'a [Extent]> {
        let index = self.parts.index.borrow();
        let is_same = |extent: &Extent| same(&index, extent) == [*extent];
        let parts = extents.split(|extent| {
            let has_changed = !is_same(extent);
            if has_changed {
                self.note_left(&same(&index, extent));
                self.note_moved(&index, extent, moves);
            }
            has_changed
        });
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// Writes one by one what the backing device did not take together.
    async fn write_parts(
        &self,
        group: &[Extent],
        breath: &Breath,
        copied: &mut Copied,
    ) -> io::Result<()> {
        let mut refused = 0;
        for extent in group.iter().filter(|_| group.len() > 1) {
            if refused == REFUSED_OF_A_RUN {
                break;
            }
            let one = std::slice::from_ref(extent);
            let Some(Ok(piece)) = self.read(one, breath).await.pop() else {
                continue;
            };
            self.bring(extent.start, extent.end).await?;
            if !self.is_same(one) {
                continue;
            }
            let backing = &self.parts.backing;
            let written = backing.write_again(Cause::WrittenBack, extent.start, piece);
            match written.await {
                Ok(()) => copied.extents.push(*extent),
                Err(_) => refused += 1,
            }
        }
        Ok(())
    }

    async fn write_out(&self, sector: u64, buffer: Buffer, round: &Round<'_>) -> io::Result<()> {
        let parts = &self.parts;
        round.count(buffer.len());
        let began = parts.env.now();
        let written = parts
            .backing
            .write(Cause::WrittenBack, sector, buffer, Durability::Volatile);
        written.await?;
        let took = parts.env.now().saturating_sub(began);
        if round.gap.get() == 0 {
            self.change(&self.depth, |depth| depth.wrote(took));
        }
        Ok(())
    }

    fn is_same(&self, extents: &[Extent]) -> bool {
        let index = self.parts.index.borrow();
        extents
            .iter()
            .all(|extent| same(&index, extent) == [*extent])
    }

    async fn bring(&self, start: u64, end: u64) -> io::Result<()> {
        let pages = &self.parts.pages;
        pages.bring_urgently(self.parts.inode, start, end).await
    }
}
