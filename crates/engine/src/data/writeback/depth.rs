//! How many runs are written to a backing device at the same time.
//!
//! More of them let a disk choose the shortest way and keep several disks busy; too many only wait for each other, and everybody else
//! waits behind them. So their number grows while writes take little longer than the shortest did, and shrinks when they do.

use crate::limits::{WRITEBACK_DEPTH_MAX, WRITEBACK_LATENCY_FINE};
use std::time::Duration;

/// Where it begins.
const DEPTH_FIRST: usize = 8;
/// Up to so many times longer than the shortest says that there is room for much more.
const FINE: u32 = 2;
/// So many times longer than the shortest is too long.
const TOO_LONG: u32 = 8;
/// Part of the average that one write makes.
const PART: u32 = 8;

/// See the module documentation.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    depth: usize,
    shortest: Option<Duration>,
    average: Duration,
}

impl Default for Depth {
    fn default() -> Self {
        Depth {
            depth: DEPTH_FIRST,
            shortest: None,
            average: Duration::ZERO,
        }
    }
}

impl Depth {
    /// Runs at the same time.
    pub fn get(&self) -> usize {
        self.depth
    }

    /// What a write takes on average, of the last ones.
    pub fn average(&self) -> Duration {
        self.average
    }

    /// A write took so long.
    pub fn wrote(&mut self, took: Duration) {
        self.average = match self.shortest {
            None => took,
            Some(_) => (self.average * (PART - 1) + took) / PART,
        };
        let shortest = self.shortest.map_or(took, |shortest| shortest.min(took));
        self.shortest = Some(shortest);
    }

    /// A round has ended that wrote so many runs; `wanted` is what a write should take at most, zero if that does not matter.
    pub fn round_ended(&mut self, runs: usize, wanted: Duration) {
        let Some(shortest) = self.shortest else {
            return;
        };
        let fine = match wanted.is_zero() {
            true => WRITEBACK_LATENCY_FINE.max(shortest * TOO_LONG),
            false => wanted,
        };
        if self.average > fine {
            self.depth = (self.depth * 3 / 4).max(1);
        } else if runs >= self.depth && self.average <= shortest * FINE {
            self.depth = (self.depth * 2).min(WRITEBACK_DEPTH_MAX);
        } else if runs >= self.depth {
            self.depth = (self.depth + self.depth.div_ceil(4)).min(WRITEBACK_DEPTH_MAX);
        }
        // What was the shortest once may not be possible any more.
        self.shortest = Some(shortest + shortest / 64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After so many rounds with a device on which the n-th write of those at the same time takes so long.
    fn after(rounds: usize, took: impl Fn(u64) -> Duration, wanted: Duration) -> usize {
        let mut depth = Depth::default();
        for _ in 0..rounds {
            let together = depth.get() as u64;
            (1..=together).for_each(|number| depth.wrote(took(number)));
            depth.round_ended(together as usize, wanted);
        }
        depth.get()
    }

    #[test]
    fn a_device_that_takes_more_at_once_gets_more_and_one_that_does_not_gets_less() {
        let (millis, none) = (Duration::from_millis, Duration::ZERO);
        assert_eq!(after(40, |_| millis(1), none), WRITEBACK_DEPTH_MAX);
        let one_by_one = after(200, |number| millis(10 * number), none);
        assert!((4..=16).contains(&one_by_one), "{one_by_one}");
        let bounded = after(200, |number| millis(10 * number), millis(20));
        assert!((1..=4).contains(&bounded), "{bounded}");
        assert_eq!(after(40, |_| millis(50), millis(20)), 1);
    }

    #[test]
    fn few_runs_say_nothing_about_more() {
        let mut depth = Depth::default();
        depth.wrote(Duration::from_millis(1));
        depth.round_ended(1, Duration::ZERO);
        assert_eq!(depth.get(), DEPTH_FIRST);
    }
}
