//! Sequential detection: does a request continue a recent one?
//!
//! A stream that reads or writes far in one run does not profit from a cache and would push out what does. Per volume the
//! ends of the last 128 requests are remembered for five seconds; per stream the average length of its runs.

use crate::limits::{RECENT_REQUESTS, RECENT_VALID};
use brigade_env::StreamId;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

struct Run {
    end: u64,
    bytes: u64,
    expires: Duration,
}

#[derive(Default)]
struct StreamRuns {
    current_bytes: u64,
    average_bytes: u64,
}

/// See the module documentation.
#[derive(Default)]
pub struct Recent {
    /// Most recent last.
    runs: VecDeque<Run>,
    streams: BTreeMap<StreamId, StreamRuns>,
}

impl Recent {
    /// Notes a request; gives the bytes of the run it belongs to, or its stream's average if that is more.
    pub fn note(&mut self, stream: StreamId, start: u64, sectors: u64, now: Duration) -> u64 {
        let found = self.runs.iter().rposition(|run| run.end == start && run.expires > now);
        if self.streams.len() > RECENT_REQUESTS && !self.streams.contains_key(&stream) {
            self.streams.clear();
        }
        let stream = self.streams.entry(stream).or_default();
        let mut run = match found {
            Some(at) => self.runs.remove(at).expect("found just now"),
            None => {
                stream.average_bytes = (stream.average_bytes * 7 + stream.current_bytes) / 8;
                stream.current_bytes = 0;
                if self.runs.len() == RECENT_REQUESTS {
                    self.runs.pop_front();
                }
                Run { end: 0, bytes: 0, expires: Duration::ZERO }
            }
        };
        run.bytes = run.bytes.saturating_add(sectors * 512);
        run.end = start + sectors;
        run.expires = now + RECENT_VALID;
        stream.current_bytes = run.bytes;
        self.runs.push_back(run);
        stream.current_bytes.max(stream.average_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 2048;

    #[test]
    fn a_run_of_one_mebibyte_requests_reaches_four_at_the_fourth() {
        let mut recent = Recent::default();
        let runs: Vec<_> = (0..5).map(|i| recent.note(StreamId(1), i * MIB, MIB, Duration::ZERO) >> 20).collect();
        assert_eq!(runs, [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_pause_of_five_seconds_ends_a_run() {
        let mut recent = Recent::default();
        recent.note(StreamId(1), 0, MIB, Duration::ZERO);
        assert_eq!(recent.note(StreamId(1), MIB, MIB, Duration::from_secs(5)) >> 20, 1);
    }

    #[test]
    fn of_129_interleaved_runs_the_oldest_is_forgotten() {
        let mut recent = Recent::default();
        for i in 0..129 {
            recent.note(StreamId(i as u16), i * 1_000_000, 8, Duration::ZERO);
        }
        assert_eq!(recent.note(StreamId(200), 8, 8, Duration::ZERO), 8 * 512);
        assert_eq!(recent.note(StreamId(201), 2_000_008, 8, Duration::ZERO), 16 * 512);
    }

    #[test]
    fn small_requests_after_long_runs_are_judged_by_the_average() {
        let mut recent = Recent::default();
        for run in 0..40 {
            for i in 0..16 {
                recent.note(StreamId(1), run * 1_000_000 + i * MIB, MIB, Duration::ZERO);
            }
        }
        assert!(recent.note(StreamId(1), 77, 8, Duration::ZERO) > 4 << 20);
        assert_eq!(recent.note(StreamId(2), 99_999_999, 8, Duration::ZERO), 4096);
    }
}
