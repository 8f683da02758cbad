//! Whether it is quicker to write over what lies between dirty extents than to leave it out.
//!
//! On a disk with an arm most of the time of a small write is not its data. Where dirty extents lie close to each other, a whole span is
//! read from the backing device, the dirty data is laid over it, and it is written back in one piece: two requests instead of many. While
//! that goes on the range lock of the span keeps everybody else from writing to the backing device there, so what lies between is
//! written as it was.
//!
//! Which gaps are worth that is worked out from what rounds took. A request costs `a` seconds and its bytes 1/`b` seconds each, as seen
//! over whole rounds, with as many requests at the same time as there are:
//!
//! ```text
//! plain rounds     t1 = a + x1 / b      small requests
//! bridged rounds   t2 = a + x2 / b      large ones
//! a gap of g       saves a request, costs g / b twice    ->  g <= a * b / 2
//! ```
//! So a device for which requests cost little has nothing written over. Now and then both are measured again.

use std::time::Duration;

/// Sectors of a gap that is tried as long as nothing is known.
const GAP_TRIED: u64 = 128;
/// Shorter ones are not worth the trouble.
const GAP_MIN: u64 = 8;
/// Requests that take less on average are quick enough.
const QUICK: f64 = 50e-6;
/// So many rounds later it is looked again what the other kind of round takes.
const ROUNDS_KNOWN: u32 = 64;
/// Requests of a round that say something.
const REQUESTS_MIN: u64 = 4;
/// Large requests are so many times longer than small ones, at least.
const LARGER: f64 = 4.0;
/// Part of the average that one round makes.
const PART: f64 = 0.25;

/// What one request takes, on average.
#[derive(Clone, Copy, Debug)]
struct Cost {
    bytes: f64,
    seconds: f64,
}

/// See the module documentation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bridge {
    small: Option<Cost>,
    large: Option<Cost>,
    /// Rounds since the other kind was measured.
    rounds: u32,
    is_off: bool,
}

impl Bridge {
    /// Sectors of the longest gap to be written over, no more than `most`; 0: none is.
    pub fn gap(&self, most: u64) -> u64 {
        let Some(small) = self.small.filter(|_| !self.is_off && most >= GAP_MIN) else {
            return 0;
        };
        let tried = match small.seconds < QUICK {
            true => 0,
            false => GAP_TRIED.min(most),
        };
        let Some(large) = self.large else {
            return tried;
        };
        let gap = worth(small, large);
        match (gap >= GAP_MIN, self.rounds >= ROUNDS_KNOWN) {
            (true, false) => gap.min(most),
            (false, true) => tried,
            (true, true) | (false, false) => 0,
        }
    }

    /// A round has ended that made so many requests to the backing device, with so many bytes in all.
    pub fn round_ended(&mut self, requests: u64, bytes: u64, took: Duration) {
        if requests < REQUESTS_MIN {
            return;
        }
        let seen = Cost {
            bytes: bytes as f64 / requests as f64,
            seconds: took.as_secs_f64() / requests as f64,
        };
        let small = |small: Cost| seen.bytes >= LARGER * small.bytes;
        let is_large = self.small.is_some_and(small);
        average(
            if is_large {
                &mut self.large
            } else {
                &mut self.small
            },
            seen,
        );
        let is_other = match (self.small, self.large) {
            (Some(small), Some(large)) => is_large != (worth(small, large) >= GAP_MIN),
            _ => true,
        };
        self.rounds = if is_other {
            0
        } else {
            self.rounds.saturating_add(1)
        };
    }

    /// The device did not take what was written over a gap: it is left alone from now on.
    pub fn failed(&mut self) {
        self.is_off = true;
    }
}

fn average(cost: &mut Option<Cost>, seen: Cost) {
    let mix = |old: f64, new: f64| old + PART * (new - old);
    *cost = Some(cost.map_or(seen, |old| Cost {
        bytes: mix(old.bytes, seen.bytes),
        seconds: mix(old.seconds, seen.seconds),
    }));
}

/// Sectors of a gap that takes as long to read and to write as a request takes beside its data.
fn worth(small: Cost, large: Cost) -> u64 {
    let per_byte = (large.seconds - small.seconds) / (large.bytes - small.bytes).max(1.0);
    let per_byte = per_byte.max(1e-12);
    let own = (small.seconds - small.bytes * per_byte).max(0.0);
    (own / per_byte / 2.0 / 512.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds of 32 extents of 8 sectors on a device where a request takes `own` seconds and a byte `per_byte`, with gaps of so many
    /// sectors between them; gives the gap of each round.
    fn gaps(rounds: usize, own: f64, per_byte: f64, between: u64) -> Vec<u64> {
        let mut bridge = Bridge::default();
        let mut seen = Vec::new();
        for _ in 0..rounds {
            let gap = bridge.gap(512);
            let (requests, bytes) = match gap >= between {
                true => (8, 2 * 32 * (between + 8) * 512),
                false => (32, 32 * 4096),
            };
            let took = requests as f64 * own + bytes as f64 * per_byte;
            bridge.round_ended(requests, bytes, Duration::from_secs_f64(took));
            seen.push(gap);
        }
        seen
    }

    #[test]
    fn a_disk_with_an_arm_has_gaps_written_over_and_a_quick_one_has_not() {
        // 1.2 ms and 150 MB/s: 90 kB are as long as half a request.
        let seen = gaps(40, 1.2e-3, 1.0 / 150e6, 56);
        assert_eq!(seen[..2], [0, GAP_TRIED]);
        let settled = seen[30];
        assert!((150..=190).contains(&settled), "{settled}");
        // 100,000 requests and 1 GB a second.
        assert!(gaps(200, 10e-6, 1e-9, 8).iter().all(|gap| *gap == 0));
        // Far away, but with little bandwidth: tried, and not again soon.
        let seen = gaps(60, 100e-6, 1.0 / 20e6, 56);
        assert_eq!(seen.iter().filter(|gap| **gap > 0).count(), 1, "{seen:?}");
    }

    #[test]
    fn what_is_known_is_measured_again() {
        let seen = gaps(300, 1.2e-3, 1.0 / 150e6, 56);
        let plain = seen.iter().filter(|gap| **gap == 0).count();
        assert!((3..=6).contains(&plain), "{plain}");
        let seen = gaps(300, 100e-6, 1.0 / 20e6, 56);
        let tried = seen.iter().filter(|gap| **gap > 0).count();
        assert!((3..=6).contains(&tried), "{tried}");
    }

    #[test]
    fn long_plain_rounds_before_do_not_keep_it_from_being_tried() {
        let mut bridge = Bridge::default();
        for _ in 0..1000 {
            bridge.round_ended(32, 32 * 4096, Duration::from_micros(32 * 1200));
        }
        assert_eq!(bridge.gap(512), GAP_TRIED);
        // Nothing lies so near that a request becomes longer.
        for _ in 0..1000 {
            bridge.round_ended(32, 32 * 4096, Duration::from_micros(32 * 1200));
            assert_eq!(bridge.gap(512), GAP_TRIED);
        }
    }

    #[test]
    fn nothing_is_written_over_if_nobody_wants_it_or_it_failed() {
        let mut bridge = Bridge::default();
        bridge.round_ended(32, 32 * 4096, Duration::from_millis(40));
        assert_eq!((bridge.gap(0), bridge.gap(64)), (0, 64));
        bridge.failed();
        assert_eq!(bridge.gap(64), 0);
    }
}
