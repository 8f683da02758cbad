//! Asks the rules of [`super::policy`] about the requests of a volume.

use super::policy::{Asked, Dirtying, Kind, Late, State, bypass, should_writeback};
use super::{Cache, Core};
use crate::marks::{self, Mark};
use crate::settings::Knob;
use crate::stats::{Event, NotDirty, Reason, WriteOutcome};
use brigade_env::{Env, StreamId};
use std::time::Duration;

/// The place of `meta-only` among the choices of [`Knob::ReadaheadCachePolicy`].
const META_ONLY: u64 = 1;

struct Asking<'a, E: Env> {
    core: &'a Core<E>,
    cache: &'a Cache<E>,
    stream: StreamId,
    asked: Asked,
    now: Duration,
}

impl<E: Env> Asking<'_, E> {
    fn has_too_much(&self) -> bool {
        let fill_bytes = self.cache.buckets.fill_bytes() as u64;
        let index_bytes = self.cache.index.borrow().memory_bytes();
        index_bytes + fill_bytes > self.core.options.memory_bytes
    }
}

impl<E: Env> Late for Asking<'_, E> {
    fn is_memory_full(&mut self) -> bool {
        if self.has_too_much() {
            self.cache.pages.shrink();
        }
        self.has_too_much()
    }

    fn congested(&mut self) -> u64 {
        self.cache.disk.congested()
    }

    fn run_bytes(&mut self) -> u64 {
        let mut recent = self.core.recent.borrow_mut();
        recent.note(self.stream, self.asked.start, self.asked.sectors, self.now)
    }
}

fn mark_of(reason: Reason) -> Option<Mark> {
    match reason {
        Reason::CacheFull => Some(Mark::RouteBypassFull),
        Reason::Unaligned => Some(Mark::RouteBypassAlignment),
        Reason::Memory => Some(Mark::RouteBypassMemory),
        Reason::Sequential => Some(Mark::RouteBypassSequential),
        Reason::Congested => Some(Mark::RouteBypassCongested),
        _ => None,
    }
}

impl<E: Env> Core<E> {
    /// Counts what the kernel does. It does not of volumes without cache, or without backing device.
    pub(super) fn note(&self, event: Event, n: u64) {
        if let (Some(cache), Some(_)) = (&self.cache, &self.backing) {
            let now = self.env.now();
            self.counters.decaying.add(now, event, n);
            cache.counters.decaying.add(now, event, n);
        }
    }

    /// Why a request that just came must not leave data in the cache, if so; in sectors of the backing device. It is counted.
    pub(super) fn bypasses(
        &self,
        cache: &Cache<E>,
        stream: StreamId,
        kind: Kind,
        range: (u64, u64),
    ) -> Option<Reason> {
        let reason = self.bypass_of(cache, stream, kind, range);
        self.note_bypass(cache, reason, range.1);
        reason
    }

    /// So many sectors bypass the cache, or do not.
    fn note_bypass(&self, cache: &Cache<E>, reason: Option<Reason>, sectors: u64) {
        match reason {
            // All of it is kept where nothing else is.
            _ if self.backing.is_none() => {}
            None => cache.buckets.get_mut().account_traffic(sectors),
            Some(reason) => {
                if let Some(mark) = mark_of(reason) {
                    marks::hit(mark);
                }
                self.note(Event::BypassedSectors, sectors);
            }
        }
    }

    fn bypass_of(
        &self,
        cache: &Cache<E>,
        stream: StreamId,
        kind: Kind,
        (start, sectors): (u64, u64),
    ) -> Option<Reason> {
        self.backing.as_ref()?;
        let asked = Asked {
            kind,
            start,
            sectors,
        };
        let read_ahead = self.settings.get(Knob::ReadaheadCachePolicy);
        let state = State {
            is_detaching: self.takes_nothing(),
            in_use_percent: u64::from(cache.buckets.get().stats().in_use_percent),
            mode: self.mode(),
            refuses_read_ahead: read_ahead == META_ONLY,
            block_sectors: cache.block_sectors,
            sequential_cutoff: self.settings.get(Knob::SequentialCutoff),
        };
        let mut late = Asking {
            core: self,
            cache,
            stream,
            asked,
            // The time of this very request: nothing was awaited since it was noted.
            now: self.last_request.get(),
        };
        bypass(&asked, &state, &mut late)
    }

    /// The way of a write that just came.
    pub(super) fn way(
        &self,
        cache: &Cache<E>,
        stream: StreamId,
        range: (u64, u64),
        is_sync: bool,
    ) -> WriteOutcome {
        let reason = self.bypass_of(cache, stream, Kind::Write, range);
        // Other reasons leave no choice.
        let is_long_run = matches!(reason, Some(Reason::Sequential | Reason::Congested));
        let touches_dirty_stripe = (reason.is_none() || is_long_run) && {
            let index = cache.index.borrow();
            let stripes = index.stripes(self.inode);
            stripes.is_some_and(|stripes| stripes.touches_dirty(range.0, range.0 + range.1))
        };
        let write = Dirtying {
            mode: self.mode(),
            is_detaching: self.takes_nothing(),
            in_use_percent: u64::from(cache.buckets.get().stats().in_use_percent),
            cutoff: cache.settings.get(Knob::CutoffWriteback),
            cutoff_sync: cache.settings.get(Knob::CutoffWritebackSync),
            is_discard: false,
            touches_dirty_stripe,
            bypasses: reason.is_some(),
            is_sync,
        };
        let verdict = should_writeback(&write);
        let reason = reason.filter(|_| verdict.is_err());
        self.note_bypass(cache, reason, range.1);
        match (verdict, reason) {
            (Ok(()), _) => WriteOutcome::Writeback,
            (Err(_), Some(reason)) => WriteOutcome::Bypassed(reason),
            (Err(why), None) => {
                if matches!(why, NotDirty::Cutoff | NotDirty::CutoffSync) {
                    marks::hit(Mark::RouteNotDirty);
                }
                WriteOutcome::Writethrough(why)
            }
        }
    }
}
