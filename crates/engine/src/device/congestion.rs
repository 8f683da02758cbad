//! How busy the cache device is: requests that would only queue there had better go elsewhere (behaviour E.3.2).
//!
//! A counter goes down by the milliseconds of each slow request of data or nodes, and up by one for each fast one and each
//! millisecond since the last slow one. From it follows how long a run has to be for its requests to bypass the cache: the busier,
//! the shorter. "Micro" and "milli" are 1024ths here, as in the kernel.

use std::cell::Cell;
use std::time::Duration;

/// The counter goes no lower than minus this.
const DEPTH: i64 = 1024;

/// See the module documentation.
#[derive(Default)]
pub struct Congestion {
    /// Zero or less.
    counter: Cell<i64>,
    /// When a request was slow last, in these microseconds.
    last: Cell<i64>,
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_nanos() / 1024).unwrap_or(i64::MAX)
}

impl Congestion {
    /// A request that took so long is done. With a threshold of zero it does not count.
    pub fn record(&self, now: Duration, took: Duration, threshold: u64) {
        if threshold == 0 {
            return;
        }
        let (took, counter) = (micros(took), self.counter.get());
        if took > i64::try_from(threshold).unwrap_or(i64::MAX) {
            self.last.set(micros(now));
            self.counter
                .set(counter - (took / 1024).min(DEPTH + counter));
        } else if counter < 0 {
            self.counter.set(counter + 1);
        }
    }

    /// Sectors of a run from which on its requests bypass the cache; zero if it is not congested. `random` is asked only if it is.
    pub fn cutoff(&self, now: Duration, random: impl FnOnce() -> u32) -> u64 {
        let since = (micros(now) - self.last.get()) / 1024;
        if since < 0 {
            return 0;
        }
        let mut i = since.saturating_add(self.counter.get());
        if i >= 0 {
            return 0;
        }
        i += DEPTH;
        if i > 0 {
            i = ((64 + i % 64) << (i / 64)) / 64;
        }
        i -= i64::from(random().count_ones());
        i.max(1) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: u64 = 2000;

    fn ms(n: u64) -> Duration {
        Duration::from_nanos(n * 1024 * 1024)
    }

    fn us(n: u64) -> Duration {
        Duration::from_nanos(n * 1024)
    }

    /// With the counter at this and the last slow request just now.
    fn congested(counter: i64) -> Congestion {
        Congestion {
            counter: Cell::new(counter),
            last: Cell::new(micros(ms(5000))),
        }
    }

    /// T130: from nearly every run to hardly any.
    #[test]
    fn the_busier_the_device_the_shorter_the_runs_that_bypass_it() {
        let cutoff = |counter| congested(counter).cutoff(ms(5000), || 0);
        assert_eq!(cutoff(0), 0);
        assert_eq!(cutoff(-1), 127 << 9);
        assert_eq!(cutoff(-2), 126 << 9);
        assert_eq!(cutoff(-1024), 1);
        assert_eq!(cutoff(-960), (64 << 1) / 64);
        assert_eq!(cutoff(-512), 256);
        for counter in -1023..-1 {
            assert!(cutoff(counter) <= cutoff(counter + 1), "{counter}");
        }
        assert_eq!(congested(-512).cutoff(ms(5000), || 0xff), 256 - 8);
        assert_eq!(congested(-1024).cutoff(ms(5000), || u32::MAX), 1);
    }

    /// T130: a slow request counts with all of its time, and no more than there is room for.
    #[test]
    fn slow_requests_lower_the_counter_by_their_milliseconds() {
        let congestion = Congestion::default();
        congestion.record(ms(10), us(2000), READ);
        assert_eq!(congestion.counter.get(), 0, "no more than the threshold");
        congestion.record(ms(10), us(2560), READ);
        assert_eq!(congestion.counter.get(), -2);
        assert_eq!(congestion.last.get(), micros(ms(10)));
        congestion.record(ms(11), ms(1_000_000), READ);
        assert_eq!(congestion.counter.get(), -DEPTH);
        congestion.record(ms(11), ms(1), READ);
        assert_eq!(congestion.counter.get(), 1 - DEPTH);
        congestion.record(ms(11), ms(1_000_000), 0);
        assert_eq!(congestion.counter.get(), 1 - DEPTH, "switched off");
    }

    /// T130: by time and by fast requests.
    #[test]
    fn a_device_recovers_with_each_millisecond_and_each_fast_request() {
        let congestion = congested(-10);
        assert!(congestion.cutoff(ms(5009), || 0) > 0);
        assert_eq!(congestion.cutoff(ms(5010), || 0), 0);
        for _ in 0..20 {
            congestion.record(ms(5000), us(100), READ);
        }
        assert_eq!(congestion.counter.get(), 0);
        assert_eq!(congestion.cutoff(ms(5000), || 0), 0);
        assert_eq!(
            congested(-10).cutoff(ms(4000), || 0),
            0,
            "a clock that went back"
        );
    }
}
