//! What happened in how many runs.

use crate::disk::KINDS;

/// Counters of one run, or of many.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Lives.
    pub runs: u64,
    /// Requests that were answered.
    pub requests: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Lives in which only the cache device failed and nothing was dirty, so that no request may have failed.
    pub of_cache_faults: u64,
    /// Ends by kill.
    pub kills: u64,
    /// Ends by loss of power.
    pub power_losses: u64,
    /// Those of both that came while a set was being opened.
    pub cut_openings: u64,
    /// Clean ends.
    pub stops: u64,
    /// Openings of copies with rotten metadata: refused, and not.
    pub rotten: [u64; 2],
    /// Faults by [`crate::disk::Kind`].
    pub faults: [u64; KINDS.len()],
    /// Times each coverage mark was hit; empty unless compiled in.
    pub marks: Vec<u64>,
}

impl Tally {
    /// Adds another one.
    pub fn add(&mut self, other: &Tally) {
        self.runs += other.runs;
        self.requests += other.requests;
        self.failed += other.failed;
        self.of_cache_faults += other.of_cache_faults;
        self.kills += other.kills;
        self.power_losses += other.power_losses;
        self.cut_openings += other.cut_openings;
        self.stops += other.stops;
        for (mine, more) in self.rotten.iter_mut().zip(other.rotten) {
            *mine += more;
        }
        for (mine, more) in self.faults.iter_mut().zip(other.faults) {
            *mine += more;
        }
        if self.marks.len() < other.marks.len() {
            self.marks.resize(other.marks.len(), 0);
        }
        for (mine, more) in self.marks.iter_mut().zip(&other.marks) {
            *mine += more;
        }
    }

    /// Kills and losses of power.
    pub fn crashes(&self) -> u64 {
        self.kills + self.power_losses
    }
}
