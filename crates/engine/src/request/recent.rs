//! Sequential detection: does a request continue a recent one?
//!
//! A stream that reads or writes far in one run does not profit from a cache and would push out what does. Per volume the
//! ends of the last 128 requests are remembered for five seconds; per stream the average length of its runs.

use crate::limits::{RECENT_REQUESTS, RECENT_VALID};
use brigade_env::StreamId;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Slots of the filter in front of the search.
const FILTER_SLOTS: usize = 1024;

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
pub struct Recent {
    /// Most recent last.
    runs: VecDeque<Run>,
    /// How many runs end at a sector of that hash: nearly every request that continues nothing is spared the search.
    ends: Box<[u8; FILTER_SLOTS]>,
    streams: BTreeMap<StreamId, StreamRuns>,
}

impl Default for Recent {
    fn default() -> Self {
        Recent {
            runs: VecDeque::default(),
            ends: Box::new([0; FILTER_SLOTS]),
            streams: BTreeMap::default(),
        }
    }
}

const _: () = assert!(
    RECENT_REQUESTS <= u8::MAX as usize,
    "runs of one slot are counted in a byte"
);

fn filter_slot(end: u64) -> usize {
    (end.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize % FILTER_SLOTS
}

impl Recent {
    fn find(&self, start: u64, now: Duration) -> Option<usize> {
        if self.ends[filter_slot(start)] == 0 {
            return None;
        }
        self.runs
            .iter()
            .rposition(|run| run.end == start && run.expires > now)
    }

    fn take(&mut self, at: usize) -> Option<Run> {
        let run = self.runs.remove(at)?;
        self.ends[filter_slot(run.end)] -= 1;
        Some(run)
    }

    /// Notes a request; gives the bytes of the run it belongs to, or its stream's average if that is more.
    pub fn note(&mut self, stream: StreamId, start: u64, sectors: u64, now: Duration) -> u64 {
        let found = self.find(start, now).and_then(|at| self.take(at));
        if found.is_none() && self.runs.len() == RECENT_REQUESTS {
            self.take(0);
        }
        if self.streams.len() > RECENT_REQUESTS && !self.streams.contains_key(&stream) {
            self.streams.clear();
        }
        let stream = self.streams.entry(stream).or_default();
        let mut run = found.unwrap_or_else(|| {
            stream.average_bytes = (stream.average_bytes * 7 + stream.current_bytes) / 8;
            stream.current_bytes = 0;
            Run {
                end: 0,
                bytes: 0,
                expires: Duration::ZERO,
            }
        });
        run.bytes = run.bytes.saturating_add(sectors * 512);
        run.end = start + sectors;
        run.expires = now + RECENT_VALID;
        stream.current_bytes = run.bytes;
        self.ends[filter_slot(run.end)] += 1;
        self.runs.push_back(run);
        stream.current_bytes.max(stream.average_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 2048;

    /// T128.
    #[test]
    fn a_run_of_one_mebibyte_requests_reaches_four_at_the_fourth() {
        let mut recent = Recent::default();
        let runs: Vec<_> = (0..5)
            .map(|i| recent.note(StreamId(1), i * MIB, MIB, Duration::ZERO) >> 20)
            .collect();
        assert_eq!(runs, [1, 2, 3, 4, 5]);
    }

    /// T128.
    #[test]
    fn a_pause_of_five_seconds_ends_a_run() {
        let mut recent = Recent::default();
        recent.note(StreamId(1), 0, MIB, Duration::ZERO);
        assert_eq!(
            recent.note(StreamId(1), MIB, MIB, Duration::from_secs(5)) >> 20,
            1
        );
    }

    /// T128.
    #[test]
    fn of_129_interleaved_runs_the_oldest_is_forgotten() {
        let mut recent = Recent::default();
        for i in 0..129 {
            recent.note(StreamId(i as u16), i * 1_000_000, 8, Duration::ZERO);
        }
        assert_eq!(recent.note(StreamId(200), 8, 8, Duration::ZERO), 8 * 512);
        assert_eq!(
            recent.note(StreamId(201), 2_000_008, 8, Duration::ZERO),
            16 * 512
        );
    }

    /// T129.
    #[test]
    fn small_requests_after_long_runs_are_judged_by_the_average() {
        let mut recent = Recent::default();
        for run in 0..40 {
            for i in 0..16 {
                recent.note(StreamId(1), run * 1_000_000 + i * MIB, MIB, Duration::ZERO);
            }
        }
        assert!(recent.note(StreamId(1), 77, 8, Duration::ZERO) > 4 << 20);
        assert_eq!(
            recent.note(StreamId(2), 99_999_999, 8, Duration::ZERO),
            4096
        );
    }

    /// T129: by an eighth with each run.
    #[test]
    fn what_is_left_of_long_runs_becomes_less_with_each_short_one() {
        let mut recent = Recent::default();
        recent.note(StreamId(1), 0, 8 * MIB, Duration::ZERO);
        let short: Vec<u64> = (1..=30)
            .map(|i| recent.note(StreamId(1), i * 1_000_000, 8, Duration::ZERO))
            .collect();
        assert_eq!(short[0], 1 << 20, "an eighth of it at first");
        for (before, after) in short.iter().zip(&short[1..]) {
            let expected = ((before * 7 + 4096) / 8).max(4096);
            assert_eq!(*after, expected);
        }
        assert!(short[29] < 40_000, "{short:?}");
    }

    /// What [`Recent::note`] says, the plain way.
    #[derive(Default)]
    struct Naive {
        runs: Vec<(u64, u64, Duration)>,
        streams: BTreeMap<u16, (u64, u64)>,
    }

    impl Naive {
        fn note(&mut self, stream: u16, start: u64, sectors: u64, now: Duration) -> u64 {
            let (current, average) = self.streams.entry(stream).or_default();
            let bytes = match self
                .runs
                .iter()
                .rposition(|run| run.0 == start && run.2 > now)
            {
                Some(at) => self.runs.remove(at).1,
                None => {
                    *average = (*average * 7 + *current) / 8;
                    if self.runs.len() == RECENT_REQUESTS {
                        self.runs.remove(0);
                    }
                    0
                }
            };
            *current = bytes + sectors * 512;
            self.runs
                .push((start + sectors, *current, now + RECENT_VALID));
            (*current).max(*average)
        }
    }

    #[test]
    fn the_filter_in_front_of_the_search_changes_nothing() {
        let (mut recent, mut naive) = (Recent::default(), Naive::default());
        let mut chance = 1u64;
        for step in 0..50_000u64 {
            chance = chance
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            // Few places, so that runs meet and ends coincide; now and then a leap in time.
            let (start, sectors) = ((chance >> 33) % 400 * 8, (chance >> 50) % 3 * 8 + 8);
            let now = Duration::from_millis(step + step / 1000 * 3000);
            let stream = (chance >> 60) as u16;
            assert_eq!(
                recent.note(StreamId(stream), start, sectors, now),
                naive.note(stream, start, sectors, now)
            );
        }
    }
}
