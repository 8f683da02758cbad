//! What the cache is for: which requests leave it as it is, and which writes become dirty (behaviour E.3, E.5).
//!
//! Both are lists of rules of which the first that matches decides, so each request has one reason. What is costly to know, or
//! changes something when it is asked, is asked only if it is that rule's turn.

use crate::stats::{NotDirty, Reason};
use brigade_format::CacheMode;

/// With more of the cache in use than this, in percent, nothing more is cached. In use is what holds dirty data or metadata or is being
/// filled: what is clean can be had at once, and never keeps anything out (H.35).
pub const IN_USE_MAX: u64 = 95;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A read.
    Read,
    /// A range is to be brought into the cache. (No frontend tells whether it is metadata.)
    ReadAhead,
    /// A write.
    Write,
    /// Zeroes, or a discard.
    Clear,
}

/// A request, in sectors of the backing device.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// What.
    pub kind: Kind,
    /// From where.
    pub start: u64,
    /// How much.
    pub sectors: u64,
}

/// How things stand, as far as that is known at no cost.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// The volume is leaving its cache.
    pub is_detaching: bool,
    /// Share of the cache that could not be had at once.
    pub in_use_percent: u64,
    /// How the volume is cached.
    pub mode: CacheMode,
    /// Reads ahead do not fill the cache.
    pub refuses_read_ahead: bool,
    /// Sectors of a block of the cache.
    pub block_sectors: u64,
    /// Bytes of a run from which on its requests bypass the cache; 0: none do.
    pub sequential_cutoff: u64,
}

/// What is only asked when it matters.
pub trait Late {
    /// Whether the index may take no more memory.
    fn is_memory_full(&mut self) -> bool;
    /// Sectors of a run from which on the cache device is too busy for it; 0 if it is not busy.
    fn congested(&mut self) -> u64;
    /// Notes the request, and gives the bytes of the run that it continues.
    fn run_bytes(&mut self) -> u64;
}

/// Why a request bypasses the cache, if it does.
pub fn bypass(asked: &Asked, state: &State, late: &mut impl Late) -> Option<Reason> {
    let before = by_state(asked, state);
    if before.is_some() || asked.kind == Kind::ReadAhead {
        // Who asks for the cache by name is not kept out by the length of a run.
        return before.or_else(|| late.is_memory_full().then_some(Reason::Memory));
    }
    if late.is_memory_full() {
        return Some(Reason::Memory);
    }
    let congested = late.congested();
    if congested == 0 && state.sequential_cutoff == 0 {
        return None;
    }
    let run_sectors = late.run_bytes() / 512;
    if state.sequential_cutoff != 0 && run_sectors >= state.sequential_cutoff / 512 {
        return Some(Reason::Sequential);
    }
    (congested != 0 && run_sectors >= congested).then_some(Reason::Congested)
}

fn by_state(asked: &Asked, state: &State) -> Option<Reason> {
    let is_whole = |sectors: u64| sectors.is_multiple_of(state.block_sectors);
    let rules = [
        (state.is_detaching, Reason::Detaching),
        (asked.kind == Kind::Clear, Reason::Discard),
        (state.in_use_percent > IN_USE_MAX, Reason::CacheFull),
        (state.mode == CacheMode::None, Reason::ModeNone),
        (
            state.mode == CacheMode::Writearound && asked.kind == Kind::Write,
            Reason::Writearound,
        ),
        (
            state.refuses_read_ahead && asked.kind == Kind::ReadAhead,
            Reason::ReadaheadPolicy,
        ),
        (
            !is_whole(asked.start) || !is_whole(asked.sectors),
            Reason::Unaligned,
        ),
    ];
    let found = rules.into_iter().find(|(matches, _)| *matches);
    found.map(|(_, reason)| reason)
}

/// A write, and how things stand for it.
#[derive(Clone, Copy, Debug)]
pub struct Dirtying {
    /// How the volume is cached.
    pub mode: CacheMode,
    /// It is leaving its cache.
    pub is_detaching: bool,
    /// Share of the cache that could not be had at once.
    pub in_use_percent: u64,
    /// With more in use than this only what is to be durable at once becomes dirty.
    pub cutoff: u64,
    /// With more in use than this nothing does.
    pub cutoff_sync: u64,
    /// It says that data is not needed.
    pub is_discard: bool,
    /// Parts of a stripe are costly to write, and one that it touches has dirty data.
    pub touches_dirty_stripe: bool,
    /// It was not admitted to the cache.
    pub bypasses: bool,
    /// It is to be durable at once.
    pub is_sync: bool,
}

/// Whether a write goes to the cache alone; if not, why.
pub fn should_writeback(write: &Dirtying) -> Result<(), NotDirty> {
    let refusals = [
        (write.mode != CacheMode::Writeback, NotDirty::Mode),
        (write.is_detaching, NotDirty::Detaching),
        (
            write.in_use_percent > write.cutoff_sync,
            NotDirty::CutoffSync,
        ),
        (write.is_discard, NotDirty::Discard),
    ];
    if let Some((_, why)) = refusals.into_iter().find(|(matches, _)| *matches) {
        return Err(why);
    }
    if write.touches_dirty_stripe {
        return Ok(());
    }
    if write.bypasses {
        return Err(NotDirty::Bypass);
    }
    match write.is_sync || write.in_use_percent <= write.cutoff {
        true => Ok(()),
        false => Err(NotDirty::Cutoff),
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
