//! How often larger pieces of work happen and how long they take: the kernel's time statistics.
//!
//! Averages are running ones, each new sample with an eighth of the weight; the first one is taken as it is.

use serde::Serialize;
use std::cell::Cell;
use std::time::Duration;

/// Weight of what was before, in parts of which a new sample is one.
const WEIGHT: u32 = 8;

/// Times of one kind of work.
#[derive(Debug, Default)]
pub struct Times {
    /// Between two ends.
    frequency: Cell<Option<Duration>>,
    duration: Cell<Option<Duration>>,
    longest: Cell<Duration>,
    last: Cell<Option<Duration>>,
}

/// For `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TimesStatus {
    /// Average time from one to the next; 0 before there were two.
    pub average_frequency_sec: f64,
    /// Average time it takes.
    pub average_duration_us: u64,
    /// Longest time it took.
    pub max_duration_us: u64,
    /// Time since the last one; -1: never.
    pub last_sec: i64,
}

impl Times {
    /// Counts one that began and ended then.
    pub fn record(&self, began: Duration, ended: Duration) {
        let took = ended.saturating_sub(began);
        self.duration.set(Some(average(self.duration.get(), took)));
        self.longest.set(self.longest.get().max(took));
        if let Some(last) = self.last.get() {
            let pause = ended.saturating_sub(last);
            self.frequency
                .set(Some(average(self.frequency.get(), pause)));
        }
        self.last.set(Some(ended));
    }

    /// As they are now.
    pub fn status(&self, now: Duration) -> TimesStatus {
        let since = |last: Duration| now.saturating_sub(last).as_secs() as i64;
        TimesStatus {
            average_frequency_sec: self.frequency.get().unwrap_or_default().as_secs_f64(),
            average_duration_us: self.duration.get().unwrap_or_default().as_micros() as u64,
            max_duration_us: self.longest.get().as_micros() as u64,
            last_sec: self.last.get().map_or(-1, since),
        }
    }
}

fn average(before: Option<Duration>, sample: Duration) -> Duration {
    before.map_or(sample, |before| (before * (WEIGHT - 1) + sample) / WEIGHT)
}

/// Work on nodes of the index.
#[derive(Debug, Default)]
pub struct IndexTimes {
    /// Passes over all leaves.
    pub gc: Times,
    /// Leaves that become several.
    pub split: Times,
    /// Making of a leaf's content.
    pub sort: Times,
    /// Reading of a leaf.
    pub read: Times,
}

/// For `status`.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of the JSON and say it")]
pub struct IndexTimesStatus {
    pub gc: TimesStatus,
    pub split: TimesStatus,
    pub sort: TimesStatus,
    pub read: TimesStatus,
}

impl IndexTimes {
    /// As they are now.
    pub fn status(&self, now: Duration) -> IndexTimesStatus {
        IndexTimesStatus {
            gc: self.gc.status(now),
            split: self.split.status(now),
            sort: self.sort.status(now),
            read: self.read.status(now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sample_is_taken_as_it_is_and_later_ones_weigh_an_eighth() {
        let (times, at) = (Times::default(), Duration::from_millis);
        assert_eq!(times.status(at(9000)).last_sec, -1);
        times.record(at(1000), at(1080));
        let one = times.status(at(1080));
        let frequency = one.average_frequency_sec;
        assert_eq!((one.average_duration_us, frequency), (80_000, 0.0));
        times.record(at(3000), at(3080 + 80));
        times.record(at(4000), at(4000));
        let three = times.status(at(6500));
        // (80 * 7 + 160) / 8 = 90, (90 * 7 + 0) / 8; 2080, then (2080 * 7 + 840) / 8.
        assert_eq!(three.average_duration_us, 78_750);
        assert_eq!(three.average_frequency_sec, 1.925);
        assert_eq!((three.max_duration_us, three.last_sec), (160_000, 2));
    }
}
