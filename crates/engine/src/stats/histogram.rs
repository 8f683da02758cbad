//! Times of requests, in buckets that are at most a sixteenth of their lower bound wide.
//!
//! Below 16 ns each value has a bucket of its own; above, each power of two has 16 equal ones. So whatever percentile is asked
//! for is known within 1/16, over twelve orders of magnitude, in a table of a few kilobytes that never grows.

use std::cell::Cell;
use std::time::Duration;

/// Buckets of each power of two.
const PARTS: u64 = 16;
const PARTS_BITS: u32 = PARTS.ilog2();
/// Times from 2 to the power of this on, in nanoseconds, are not told apart: 18 minutes.
const BITS_MAX: u32 = 40;
const BUCKETS: usize = (BITS_MAX - PARTS_BITS + 1) as usize * PARTS as usize + 1;

/// See the module documentation.
#[derive(Debug)]
pub struct Histogram {
    buckets: Box<[Cell<u64>; BUCKETS]>,
    count: Cell<u64>,
    max: Cell<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            buckets: Box::new([const { Cell::new(0) }; BUCKETS]),
            count: Cell::new(0),
            max: Cell::new(0),
        }
    }
}

fn bucket_of(nanos: u64) -> usize {
    if nanos < PARTS {
        return nanos as usize;
    }
    let bits = nanos.ilog2();
    if bits >= BITS_MAX {
        return BUCKETS - 1;
    }
    let part = (nanos >> (bits - PARTS_BITS)) % PARTS;
    ((bits - PARTS_BITS + 1) as u64 * PARTS + part) as usize
}

/// The greatest value of a bucket.
fn last_of(bucket: usize) -> u64 {
    let (power, part) = (bucket as u64 / PARTS, bucket as u64 % PARTS);
    match power {
        0 => part,
        _ => ((PARTS + part + 1) << (power - 1)) - 1,
    }
}

impl Histogram {
    /// Notes one.
    pub fn record(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = &self.buckets[bucket_of(nanos)];
        bucket.set(bucket.get() + 1);
        self.count.set(self.count.get() + 1);
        self.max.set(self.max.get().max(nanos));
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count.get()
    }

    /// The longest, in seconds.
    pub fn max(&self) -> f64 {
        self.max.get() as f64 / 1e9
    }

    /// What so many of a thousand do not exceed, in seconds: no less than that, and at most a sixteenth more.
    pub fn permille(&self, permille: u64) -> f64 {
        let mut left = (self.count.get() * permille).div_ceil(1000).max(1);
        for (bucket, count) in self.buckets.iter().enumerate() {
            if left <= count.get() {
                let bound = match bucket {
                    _ if bucket == BUCKETS - 1 => u64::MAX,
                    _ => last_of(bucket),
                };
                return bound.min(self.max.get()) as f64 / 1e9;
            }
            left -= count.get();
        }
        0.0
    }

    /// Forgets all.
    pub fn clear(&self) {
        self.buckets.iter().for_each(|bucket| bucket.set(0));
        self.count.set(0);
        self.max.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bucket_begins_where_the_one_before_ends_and_is_narrow() {
        for bucket in 1..BUCKETS - 1 {
            let (first, last) = (last_of(bucket - 1) + 1, last_of(bucket));
            assert_eq!((bucket_of(first), bucket_of(last)), (bucket, bucket));
            assert!((last - first) * PARTS <= first, "{first}..={last}");
        }
        assert_eq!(last_of(BUCKETS - 2), (1 << BITS_MAX) - 1);
        assert_eq!(bucket_of(1 << BITS_MAX), BUCKETS - 1);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_within_a_sixteenth_of_those_of_a_sorted_list() {
        let histogram = Histogram::default();
        let mut chance = 1u64;
        let mut times: Vec<u64> = (0..10_000)
            .map(|_| {
                chance = chance
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (chance >> 24) >> (chance % 39)
            })
            .collect();
        times
            .iter()
            .for_each(|time| histogram.record(Duration::from_nanos(*time)));
        times.sort_unstable();
        for permille in [1, 250, 500, 900, 990, 999, 1000] {
            let exact = times[(times.len() * permille / 1000).max(1) - 1] as f64 / 1e9;
            let found = histogram.permille(permille as u64);
            let is_close = found >= exact && found <= exact * (17.0 / 16.0);
            assert!(is_close, "{permille}: {found} for {exact}");
        }
        assert_eq!(histogram.max(), times[times.len() - 1] as f64 / 1e9);
        assert_eq!(histogram.count(), 10_000);
        histogram.clear();
        assert_eq!(
            (histogram.count(), histogram.max(), histogram.permille(500)),
            (0, 0.0, 0.0)
        );
    }

    #[test]
    fn what_takes_for_ever_is_the_longest() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_secs(86_400));
        assert_eq!(histogram.permille(500), 86_400.0);
    }
}
