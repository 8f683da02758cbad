//! Checks a cache set and its backing devices against every rule of `docs/format.md` 11, and writes nothing.
//!
//! It reads as an opening would: superblocks, journal, generations, table, tree. The tree is walked twice, since whether a
//! pointer still holds is known only when all of them were seen: first node by node, then extent by extent in the order of
//! their positions, with the keys to be replayed laid over (8.5).
//!
//! ```text
//! devices ──> ring ──> chain ──> slots ──> nodes ──> extents ──> volumes
//! F1-F5 F60  F10-F19  F20-F22  F50-F55   F30-F39    F40-F43     F51 F53 F61 F62
//!                     F42 F44            F45 F46    F47 F64 F70
//! ```
//!
//! Each step needs what the ones in front of it found; where that is broken the rest is not guessed at, and the report says what
//! was not looked at. Memory: a few bytes a bucket that the prio chain really covers, a bit for each cached sector up to a
//! limit (beyond it the tree is walked several times), the keys to be replayed, and one node.
//!
//! What a crash leaves behind in an undamaged set is a note and no more; an entry that looks torn is a warning, since rot
//! looks the same.

mod chain;
mod cover;
mod devices;
mod effective;
mod extents;
mod nodes;
mod owners;
mod replay;
mod report;
mod ring;
mod set;
mod slots;
#[cfg(test)]
mod tests;
mod volumes;

pub use effective::Extent;
pub use report::{
    BackingView, Buckets, Finding, Report, SetView, Severity, SlotKind, Verdict, VolumeView,
};

use crate::source::Device;
use report::Findings;

/// How to check.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Compare clean data with the backing devices (F70): reads all of it twice.
    pub data: bool,
    /// How many findings are kept in words.
    pub findings_max: usize,
    /// Bytes that the keys to be replayed, and apart from them the map of cached sectors, may take. More sectors than that
    /// are checked in several walks; more keys are left out and the report says so.
    pub memory_max: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            data: false,
            findings_max: 1000,
            memory_max: 512 << 20,
        }
    }
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Journal buckets.
    Journal,
    /// Links of the prio chain.
    Prios,
    /// Nodes, the first time.
    Nodes,
    /// Nodes again, for their extents.
    Extents,
}

/// How far it has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The device that is being read.
    pub device: &'a str,
    /// What is being done.
    pub phase: Phase,
    /// How much of it.
    pub done: u64,
    /// Of how much; an estimate, and never less than `done`.
    pub total: u64,
}

/// Looks on while a check runs.
pub trait Watch {
    /// It has come this far.
    fn progress(&mut self, progress: Progress<'_>) {
        let _ = progress;
    }

    /// A live extent of the set on `device` (an index into the devices given), after replay, in ascending order. Extents
    /// that touch are not joined.
    fn extent(&mut self, device: usize, extent: &Extent) {
        let _ = (device, extent);
    }
}

struct Told<'a>(&'a mut dyn FnMut(Progress<'_>));

impl Watch for Told<'_> {
    fn progress(&mut self, progress: Progress<'_>) {
        (self.0)(progress);
    }
}

/// Checks the devices together: cache devices, and backing devices in any order.
pub fn run(
    devices: &[Device<'_>],
    options: &Options,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Report {
    run_watched(devices, options, &mut Told(progress))
}

/// As [`run`], and shows every extent.
pub fn run_watched(devices: &[Device<'_>], options: &Options, watch: &mut dyn Watch) -> Report {
    let mut findings = Findings::new(options.findings_max);
    let known = devices::read(devices, &mut findings);
    for cache in &known.caches {
        set::check(cache, &known.backings, options, watch, &mut findings);
    }
    volumes::without_set(&known, &mut findings);
    findings.report
}
