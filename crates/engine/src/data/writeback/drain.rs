//! A drain: everything dirty of a volume goes to the backing device, as fast as it goes.
//!
//! It is over when nothing is dirty, or when a whole pass that began after it did has left nothing behind: then only what was written
//! meanwhile is dirty. How long it will take is worked out from what was written in the last while: the first half of a disk is no measure of the
//! second.

use crate::stats::DrainStatus;
use std::collections::VecDeque;
use std::time::Duration;

/// Looks back that are kept.
const SAMPLES: usize = 256;
/// The last while is that of this part of what was written: neither a slow start counts for long nor a moment of something else.
const WHILE_PART: u64 = 2;

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainEnd {
    /// Nothing that was dirty when it began still is.
    Done,
    /// Somebody did not want it any more.
    Cancelled,
    /// The volume was stopped.
    Stopped,
    /// One of the devices takes nothing any more.
    Failed,
}

/// One drain.
#[derive(Clone, Debug)]
pub struct Drain {
    began: Duration,
    /// Not known before all that is dirty is counted.
    dirty_at_start: Option<u64>,
    written: u64,
    /// When so many sectors were written in all, the first one before any was.
    samples: VecDeque<(Duration, u64)>,
    ended: Option<(Duration, DrainEnd)>,
    last_error: Option<String>,
    /// Whether the pass that began since has left nothing behind so far.
    pass: Option<bool>,
}

impl Drain {
    /// Begins with so many dirty sectors, if that is known.
    pub fn new(now: Duration, dirty: Option<u64>) -> Self {
        Drain {
            began: now,
            dirty_at_start: dirty,
            written: 0,
            samples: VecDeque::from([(now, 0)]),
            ended: None,
            last_error: None,
            pass: None,
        }
    }

    /// So many sectors are dirty, and nothing was written yet if that was not known before.
    pub fn counted(&mut self, dirty: u64) {
        self.dirty_at_start.get_or_insert(dirty);
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<DrainEnd> {
        self.ended.map(|(_, ended)| ended)
    }

    /// It ends, if it has not yet.
    pub fn end(&mut self, now: Duration, how: DrainEnd) {
        self.ended.get_or_insert((now, how));
    }

    /// So many sectors became clean.
    pub fn wrote(&mut self, now: Duration, sectors: u64) {
        self.written += sectors;
        if self.samples.len() >= SAMPLES {
            let mut number = 0;
            self.samples.retain(|_| {
                number += 1;
                number % 2 == 1
            });
        }
        self.samples.push_back((now, self.written));
    }

    /// Something went wrong; it goes on.
    pub fn failed(&mut self, why: String) {
        self.last_error = Some(why);
    }

    /// A pass begins at the start of the volume.
    pub fn begin_pass(&mut self) {
        self.pass = Some(true);
    }

    /// Something stays as dirty as it was.
    pub fn leave_some(&mut self) {
        self.pass = self.pass.map(|_| false);
    }

    /// The pass ends; says whether it began after the drain and has left nothing behind.
    pub fn end_pass(&mut self) -> bool {
        let is_whole = self.pass.take() == Some(true);
        if is_whole {
            self.last_error = None;
        }
        is_whole
    }

    /// Sectors a second in the last while.
    fn speed(&self) -> Option<f64> {
        let (last, written) = *self.samples.back()?;
        let mut earlier = self.samples.iter().rev();
        let (since, before) = match earlier.find(|sample| sample.1 <= written / WHILE_PART) {
            Some(sample) => *sample,
            None => *self.samples.front()?,
        };
        let seconds = last.saturating_sub(since).as_secs_f64();
        (seconds > 0.0 && written > before).then(|| (written - before) as f64 / seconds)
    }

    /// Seconds left, with so many sectors dirty.
    fn eta(&self, now: Duration, left: u64) -> Option<f64> {
        let (last, _) = *self.samples.back()?;
        let since = now.saturating_sub(last).as_secs_f64();
        Some((left as f64 / self.speed()? - since).max(0.0))
    }

    /// For `status`.
    pub fn status(&self, now: Duration, left: u64) -> DrainStatus {
        let is_running = self.ended.is_none();
        let until = self.ended.map_or(now, |(at, _)| at);
        DrainStatus {
            state: match self.ended() {
                None => "running",
                Some(DrainEnd::Done) => "done",
                Some(DrainEnd::Cancelled) => "cancelled",
                Some(DrainEnd::Stopped) => "stopped",
                Some(DrainEnd::Failed) => "failed",
            }
            .into(),
            dirty_at_start_bytes: self.dirty_at_start.unwrap_or(left) * 512,
            left_bytes: left * 512,
            written_bytes: self.written * 512,
            seconds: until.saturating_sub(self.began).as_secs_f64(),
            bytes_per_second: self.speed().map_or(0, |speed| (speed * 512.0) as u64),
            eta_seconds: is_running.then(|| self.eta(now, left)).flatten(),
            last_error: self.last_error.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sectors of `total` are written, so many a second as `speed` says of those written so far, in rounds of 100; gives the worst
    /// estimate after the first quarter, as a part of what it really took.
    fn worst(total: u64, speed: impl Fn(u64) -> f64) -> f64 {
        let at = Duration::from_secs_f64;
        let round = |written| 100.0 / speed(written);
        let all: f64 = (0..total / 100).map(|n| round(n * 100)).sum();
        let mut drain = Drain::new(at(1.0), Some(total));
        let (mut now, mut worst) = (1.0, 0.0_f64);
        for n in 0..total / 100 {
            now += round(n * 100);
            drain.wrote(at(now), 100);
            let written = (n + 1) * 100;
            if written * 4 >= total {
                for later in [0.0, 0.4] {
                    let seen = now + later * round(written.min(total - 100));
                    let eta = drain.eta(at(seen), total - written).expect("a speed");
                    let really = 1.0 + all - seen;
                    worst = worst.max((eta - really.max(0.0)).abs() / all);
                }
            }
        }
        worst
    }

    #[test]
    fn the_estimate_is_right_from_the_first_quarter_on() {
        assert!(worst(100_000, |_| 5000.0) < 0.01);
        assert!(worst(1_000, |_| 100.0) < 0.1, "in ten rounds only");
        assert!(
            worst(100_000, |written| if written < 10_000 {
                1000.0
            } else {
                8000.0
            }) < 0.1
        );
        assert!(
            worst(100_000, |written| if written < 2_000 {
                30_000.0
            } else {
                2000.0
            }) < 0.1
        );
        // A disk that gets slower towards its end.
        assert!(worst(100_000, |written| 8000.0 - written as f64 / 50.0) < 0.1);
    }

    #[test]
    fn a_drain_that_ended_stays_as_it_was() {
        let at = Duration::from_secs;
        let mut drain = Drain::new(at(1), Some(8));
        drain.end(at(3), DrainEnd::Cancelled);
        drain.end(at(4), DrainEnd::Done);
        let status = drain.status(at(100), 8);
        assert_eq!((status.state.as_str(), status.seconds), ("cancelled", 2.0));
        assert_eq!((status.eta_seconds, status.bytes_per_second), (None, 0));
    }

    #[test]
    fn what_is_dirty_at_the_start_may_be_known_later() {
        let mut drain = Drain::new(Duration::ZERO, None);
        let dirty = |drain: &Drain, left| drain.status(Duration::ZERO, left).dirty_at_start_bytes;
        assert_eq!(dirty(&drain, 8), 8 * 512);
        drain.counted(50);
        drain.counted(70);
        assert_eq!(dirty(&drain, 30), 50 * 512);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut drain = Drain::new(Duration::ZERO, None);
        for n in 0..10_000 {
            drain.wrote(Duration::from_millis(n), 1);
        }
        assert!(drain.samples.len() <= SAMPLES);
        assert!((drain.speed().expect("a speed") - 1000.0).abs() < 20.0);
    }
}
