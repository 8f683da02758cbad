//! Stripes that are dirty as a whole are written back before all else, where parts of stripes cost much (F.2, F.6).
//!
//! A write of part of a stripe of RAID 5 or 6 reads what it needs for the parity first. The kernel does not tell programs that a device
//! is of this kind, but which level an array of its own has; for anything else there are settings.

use super::scan::{Batch, Budget};
use super::task::{PAUSE, PAUSE_MAX, Writeback};
use crate::btree::StripeLayout;
use crate::limits::WRITEBACK_EXTENTS;
use crate::marks::{self, Mark};
use crate::settings::Knob;
use crate::stats::StripeStatus;
use brigade_env::sync::yield_now;
use brigade_env::{Env, Geometry};
use std::cell::Cell;
use std::time::Duration;

/// Stripes are not shorter, if the device says how long they are: 4 MiB in sectors.
const SECTORS_MIN: u64 = 8192;
/// What they are shown as if nobody knows, in sectors.
const SECTORS_UNKNOWN: u64 = 1 << 31;
/// Stripes are not shorter, whoever says so, as changes are counted for each one: 32 KiB in sectors.
const SECTORS_LEAST: u64 = 64;
/// There are no more than memory has so many bytes for each.
const MEMORY_OF_EACH: u64 = 1024;
/// Rounds of full stripes in a row; then it is the turn of what else is dirty.
const ROUNDS_IN_A_ROW: u32 = 4;
/// Extents of full stripes in one round, about: as many of 4 KiB as it may have bytes.
const EXTENTS_MAX: usize = 16 * WRITEBACK_EXTENTS;
/// Extents counted in one step.
const COUNTED_AT_ONCE: usize = 512;
/// Steps of counting before it is looked what else there is to do.
const STEPS_IN_A_ROW: usize = 16;
/// The places of `off` and `on` among the choices of [`Knob::PartialStripesExpensive`].
const OFF: u64 = 1;
const ON: u64 = 2;

/// What writing back of one volume knows of its stripes.
#[derive(Default)]
pub struct Striped {
    /// What is left of the run of full stripes that is being written.
    run: Cell<Option<(u64, u64)>>,
    rounds_in_a_row: Cell<u32>,
    /// What goes out now is ahead of its turn: the pass that is under way still comes to it, or has been there.
    pub(super) is_ahead: Cell<bool>,
    /// One could not be written; all wait for their turn in the pass that is under way.
    has_failed: Cell<bool>,
    /// Something could not be read; counting goes on after this, and if it fails again after so long a pause.
    rests_until: Cell<Duration>,
    pause: Cell<Duration>,
}

/// Sectors of a stripe, and whether parts of it are expensive: by the settings, else by what the device says.
fn stripe_of(device: &Geometry, size_bytes: u64, expensive: u64) -> (Option<u64>, bool) {
    let optimal = u64::from(device.optimal_io_bytes) / 512;
    let sectors = match size_bytes.div_ceil(512) {
        0 if optimal == 0 => None,
        0 => Some(SECTORS_MIN.next_multiple_of(optimal)),
        sectors => Some(sectors.max(SECTORS_LEAST)),
    };
    let is_expensive = match expensive {
        ON => true,
        OFF => false,
        _ => device.partial_stripes_expensive && optimal > 0,
    };
    (sectors, is_expensive && sectors.is_some())
}

impl<E: Env> Writeback<E> {
    fn stripe(&self) -> (Option<u64>, bool) {
        let settings = &self.parts.settings;
        stripe_of(
            &self.parts.backing.geometry(),
            settings.get(Knob::StripeSize),
            settings.get(Knob::PartialStripesExpensive),
        )
    }

    /// Has stripes counted as the settings and the device want it, and counts some. Says whether there is more to count.
    pub(super) async fn keep_stripes(&self) -> bool {
        let parts = &self.parts;
        let range = (parts.range.0, parts.backing.sectors());
        let layout = match self.stripe() {
            (Some(sectors), true) => {
                let most = parts.memory_bytes / MEMORY_OF_EACH;
                Some(StripeLayout::new(sectors, range, most))
            }
            _ => None,
        };
        let is_other = {
            let index = parts.index.borrow();
            index.stripes(parts.inode).map(|now| now.layout()) != layout
        };
        if is_other {
            parts.index.borrow_mut().set_stripes(parts.inode, layout);
            self.stripes.run.set(None);
        }
        for _ in 0..STEPS_IN_A_ROW {
            if !self.has_uncounted() || self.rests_from_counting() || self.is_closing.get() {
                return false;
            }
            let state = &self.stripes;
            if self.count_some().await {
                state.pause.set(Duration::ZERO);
            } else {
                let pause = (state.pause.get() * 2).clamp(PAUSE, PAUSE_MAX);
                state.pause.set(pause);
                state.rests_until.set(parts.env.now() + pause);
            }
            yield_now().await;
        }
        self.has_uncounted() && !self.rests_from_counting()
    }

    /// There is more to count.
    pub(super) fn has_uncounted(&self) -> bool {
        let index = self.parts.index.borrow();
        let stripes = index.stripes(self.parts.inode);
        stripes.is_some_and(|stripes| !stripes.is_counted())
    }

    fn rests_from_counting(&self) -> bool {
        self.parts.env.now() < self.stripes.rests_until.get()
    }

    /// Counts a leaf, or some of it. Says whether it could be read.
    async fn count_some(&self) -> bool {
        let parts = &self.parts;
        let inode = parts.inode;
        let next = {
            let mut index = parts.index.borrow_mut();
            let Some(stripes) = index.stripes(inode) else {
                return true;
            };
            let (from, end) = (stripes.counted_to(), stripes.layout().range.1);
            let next = index.nodes.next_dirty(inode, from, end);
            let start = next.map_or(end, |(start, _)| start);
            if let Some(stripes) = index.stripes_mut(inode) {
                stripes.count(start, std::iter::empty());
            }
            next
        };
        let Some((start, end)) = next else {
            return true;
        };
        if parts.pages.bring_urgently(inode, start, end).await.is_err() {
            return false;
        }
        let mut index = parts.index.borrow_mut();
        index.count_stripes(inode, end, COUNTED_AT_ONCE);
        true
    }

    /// The volume goes.
    pub(super) fn forget_stripes(&self) {
        let inode = self.parts.inode;
        if self.parts.index.borrow().stripes(inode).is_some() {
            self.parts.index.borrow_mut().set_stripes(inode, None);
        }
    }

    /// Extents of stripes that are dirty as a whole, if there are any: as many stripes as there is room for, of which none is cut unless it is
    /// longer, or only little may be written at once.
    pub(super) async fn next_of_full_stripes(&self, budget: Budget) -> Option<Batch> {
        if !self.is_turn_of_full() {
            return None;
        }
        let mut batch = Batch::default();
        batch.is_of_stripes = true;
        let room = Budget {
            extents: EXTENTS_MAX,
            ..budget
        };
        let mut from = None;
        while let Some((start, to)) = self.take_full(from) {
            let end = self.end_of_whole(start, to, budget.sectors.saturating_sub(batch.sectors));
            let end = match end {
                None if batch.extents.is_empty() => Some(to.min(start + budget.sectors)),
                end => end,
            };
            let next = match end {
                Some(end) => self
                    .gather(&mut batch, start, end, room)
                    .await
                    .or(Some(end)),
                // It goes with the next round.
                None => Some(start),
            };
            let next = next.filter(|next| *next < to);
            self.stripes.run.set(next.map(|next| (next, to)));
            if next.is_some() || batch.error.is_some() {
                break;
            }
            from = Some(to);
            yield_now().await;
            if self.is_closing.get() {
                return None;
            }
        }
        if batch.extents.is_empty() && batch.error.is_none() {
            return None;
        }
        marks::hit(Mark::WritebackFullStripes);
        Some(batch)
    }

    /// Where what fits into so many sectors ends, with a stripe; nothing if that is none.
    fn end_of_whole(&self, start: u64, to: u64, room: u64) -> Option<u64> {
        let index = self.parts.index.borrow();
        let sectors = index.stripes(self.parts.inode)?.layout().sectors;
        let most = start.saturating_add(room);
        let whole = most - most % sectors;
        Some(to.min(whole)).filter(|end| *end > start)
    }

    fn is_turn_of_full(&self) -> bool {
        let state = &self.stripes;
        let index = self.parts.index.borrow();
        let stripes = index.stripes(self.parts.inode);
        let has_some = state.run.get().is_some() || stripes.is_some_and(|it| it.has_waiting());
        let is_turn =
            has_some && !state.has_failed.get() && state.rounds_in_a_row.get() < ROUNDS_IN_A_ROW;
        state.rounds_in_a_row.set(match is_turn {
            true => state.rounds_in_a_row.get() + 1,
            false => 0,
        });
        is_turn
    }

    /// What is next of full stripes: the rest of a run, or one behind a sector; without one, from where the pass is on, or from the start.
    fn take_full(&self, from: Option<u64>) -> Option<(u64, u64)> {
        if let Some(run) = self.stripes.run.take() {
            return Some(run);
        }
        let mut index = self.parts.index.borrow_mut();
        let stripes = index.stripes_mut(self.parts.inode)?;
        match from {
            Some(from) => stripes.take_full(from),
            None => stripes
                .take_full(self.cursor.get())
                .or_else(|| stripes.take_full(0)),
        }
    }

    /// A round has failed, or a pass is over.
    pub(super) fn note_round(&self, batch: &Batch, has_failed: bool) {
        if batch.is_of_stripes && has_failed {
            self.stripes.has_failed.set(true);
            self.stripes.run.set(None);
        }
        if batch.is_last {
            self.stripes.has_failed.set(false);
        }
    }

    /// For `status`.
    pub(super) fn stripe_status(&self) -> StripeStatus {
        let (sectors, partial_expensive) = self.stripe();
        let index = self.parts.index.borrow();
        let stripes = index.stripes(self.parts.inode);
        let (dirty, full) = stripes.map_or((0, 0), |it| it.counts());
        StripeStatus {
            size: sectors.unwrap_or(SECTORS_UNKNOWN) * 512,
            partial_expensive,
            dirty: dirty as u64,
            full: full as u64,
            counted: stripes.is_some_and(|it| it.is_counted()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T147: what the kernel does with an optimal size, and what is said by hand.
    #[test]
    fn stripes_are_as_the_device_says_or_as_is_set() {
        let device = |optimal_io_bytes, partial_stripes_expensive| Geometry {
            size_bytes: 1 << 30,
            logical_block_bytes: 512,
            physical_block_bytes: 512,
            can_discard: false,
            is_read_only: false,
            optimal_io_bytes,
            partial_stripes_expensive,
        };
        let raid = device(192 << 10, true);
        assert_eq!(
            stripe_of(&raid, 0, 0),
            (Some(22 * 384), true),
            "not below 4 MiB"
        );
        assert_eq!(stripe_of(&device(8 << 20, true), 0, 0), (Some(16384), true));
        assert_eq!(
            stripe_of(&device(64 << 10, false), 0, 0),
            (Some(8192), false)
        );
        assert_eq!(stripe_of(&device(0, true), 0, 0), (None, false));
        assert_eq!(
            stripe_of(&device(0, false), 0, ON),
            (None, false),
            "unknown"
        );
        assert_eq!(
            stripe_of(&device(0, false), 96 << 10, ON),
            (Some(192), true)
        );
        assert_eq!(stripe_of(&raid, 96 << 10, OFF), (Some(192), false));
        assert_eq!(stripe_of(&raid, 1, 0), (Some(64), true));
    }
}
