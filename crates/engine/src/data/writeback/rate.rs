//! How fast dirty data is written back: arithmetic only, no clock and no device.
//!
//! ```text
//! dirty - target ─► proportional (or fragments, if those ask for more) ┐
//! its sum, while writing back keeps up ─► integral ────────────────────┴─► rate ─► no later than the deadline ─► less for a slow device
//! ```
//! What it works out is what the kernel works out, up to the last two steps, which it does not have; but in 64 bits, so that no
//! target is too far away. The [`Limiter`] then says how long to rest after so many sectors.

use std::time::Duration;

/// Sectors a second of an idle set: as fast as it goes.
pub const RATE_IDLE: u64 = i32::MAX as u64;
/// Most that the controller asks for.
const RATE_MAX: i64 = 1_000_000_000;
/// What is left of that rate when the first request comes, until it is worked out anew.
pub const RATE_DISTURBED: u64 = 1;
/// Updates without a request after which a set of one device is idle; of n devices n² as many, as each of them counts.
const IDLE_UPDATES: u64 = 6;
/// In-use percentages: above the first fragments count, above the others they count more.
const FRAGMENTS_LOW: u64 = 50;
const FRAGMENTS_MID: u64 = 57;
const FRAGMENTS_HIGH: u64 = 64;
/// Fragments count where dirty data would fit into less than so many times fewer buckets.
const FRAGMENTS_MANY: u64 = 3;
/// Bits of a device's share of the target.
const SHARE_BITS: u32 = 14;
/// The limiter is this far behind the clock at most: what was not written in time is forgotten.
const BEHIND_MAX: Duration = Duration::from_secs(2);
/// And this far ahead: no rest is longer.
const AHEAD_MAX: Duration = Duration::from_millis(2500);
/// Who is no further behind than this keeps up.
const KEEPS_UP: Duration = Duration::from_millis(1);
/// In-use percentage from which a collection follows, if that is wanted.
const GC_IN_USE: u64 = 50;

/// Sectors of a device that are meant to be dirty: its share, by size, of so many percent of what flash volumes have left of the
/// cache. No device is too small to have one.
pub fn target(
    cache_sectors: u64,
    flash_dirty: u64,
    percent: u64,
    mine: u64,
    all: impl Iterator<Item = u64>,
) -> u64 {
    let all: u128 = all.map(u128::from).sum();
    let share = ((u128::from(mine) << SHARE_BITS) / all.max(1)).clamp(1, 1 << SHARE_BITS);
    let wanted = u128::from(cache_sectors.saturating_sub(flash_dirty)) * u128::from(percent) / 100;
    u64::try_from((wanted * share) >> SHARE_BITS).unwrap_or(u64::MAX)
}

/// The settings it obeys.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// What the distance from the target is divided by.
    pub p_inverse: u64,
    /// What the sum of distances is divided by.
    pub i_inverse: u64,
    /// Weights of fragments, if they count.
    pub fragments: Option<[u64; 3]>,
    /// The least, in sectors a second.
    pub minimum: u64,
    /// Seconds between updates.
    pub period: u64,
    /// Seconds within which everything is to be written back; 0: no matter.
    pub deadline: u64,
    /// What writes to the backing device should take on average; 0: no matter.
    pub latency: Duration,
}

/// What is seen at an update.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Dirty sectors of the device.
    pub dirty: u64,
    /// Those that are meant to be.
    pub target: u64,
    /// Percent of the cache.
    pub in_use: u64,
    /// Buckets that are not available, and sectors of each.
    pub used_buckets: u64,
    /// Sectors of a bucket.
    pub bucket_sectors: u64,
    /// The rate so far.
    pub rate: u64,
    /// Whether writing back keeps up with it.
    pub keeps_up: bool,
    /// Most dirty sectors since the last whole pass through the volume began.
    pub most_dirty: u64,
    /// What writes to the backing device take on average.
    pub latency: Duration,
}

/// The controller, and how it came to its last result, for who wants to see it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Controller {
    sum: i64,
    /// Sectors a second for the distance from the target, or for fragments.
    pub proportional: i64,
    /// For the sum of distances.
    pub integral: i64,
    /// By how much the rate changed.
    pub change: i64,
}

impl Controller {
    /// The rate from now on.
    pub fn update(&mut self, terms: &Terms, seen: &Seen) -> u64 {
        let error = signed(seen.dirty).saturating_sub(signed(seen.target));
        self.proportional = error / signed(terms.p_inverse.max(1));
        if let Some(weights) = terms.fragments
            && let Some(fragments) = fragments(weights, seen)
        {
            self.proportional = self.proportional.max(fragments);
        }
        if (error < 0 && self.sum > 0) || (error > 0 && seen.keeps_up) {
            let more = error.saturating_mul(signed(terms.period));
            self.sum = self.sum.saturating_add(more);
        }
        self.integral = self.sum / signed(terms.i_inverse.max(1));
        let minimum = signed(terms.minimum).min(RATE_MAX);
        let both = self.proportional.saturating_add(self.integral);
        let rate = both.clamp(minimum, RATE_MAX) as u64;
        let rate = slowed(rate, terms, seen).max(in_time(terms, seen));
        self.change = signed(rate) - signed(seen.rate);
        rate
    }

    /// An idle set has nothing to work out.
    pub fn rest(&mut self) {
        (self.proportional, self.integral, self.change) = (0, 0, 0);
    }
}

/// What buckets ask for that hold little but dirty data.
fn fragments([low, mid, high]: [u64; 3], seen: &Seen) -> Option<i64> {
    if seen.in_use <= FRAGMENTS_LOW || seen.dirty == 0 || seen.used_buckets == 0 {
        return None;
    }
    let times = seen.used_buckets.saturating_mul(seen.bucket_sectors) / seen.dirty;
    let (weight, above) = if seen.in_use <= FRAGMENTS_MID {
        (low, FRAGMENTS_LOW)
    } else if seen.in_use <= FRAGMENTS_HIGH {
        (mid, FRAGMENTS_MID)
    } else {
        (high, FRAGMENTS_HIGH)
    };
    let term = weight.saturating_mul(seen.in_use - above);
    let each = seen.dirty / seen.used_buckets;
    (times > FRAGMENTS_MANY).then(|| signed(each.saturating_mul(term)))
}

/// The rate of a device that is slower than it should be is less in proportion.
fn slowed(rate: u64, terms: &Terms, seen: &Seen) -> u64 {
    if terms.latency.is_zero() || seen.latency <= terms.latency {
        return rate;
    }
    let (wanted, is) = (terms.latency.as_nanos(), seen.latency.as_nanos());
    let slowed = u128::from(rate) * wanted / is;
    u64::try_from(slowed).unwrap_or(rate).max(terms.minimum)
}

/// What a whole pass through the volume takes to end within the deadline, so that nothing stays dirty for longer than two.
fn in_time(terms: &Terms, seen: &Seen) -> u64 {
    match terms.deadline {
        0 => 0,
        seconds => seen.most_dirty.max(seen.dirty).div_ceil(seconds),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Says how long to rest, so that so many sectors a second are written on average.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limiter {
    next: Duration,
}

impl Limiter {
    /// Nothing is owed.
    pub fn reset(&mut self, now: Duration) {
        self.next = now;
    }

    /// So much is being written; gives the rest to take before more is.
    pub fn take(&mut self, sectors: u64, rate: u64, now: Duration) -> Duration {
        let nanos = u128::from(sectors) * 1_000_000_000 / u128::from(rate.max(1));
        let more = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let (least, most) = (now.saturating_sub(BEHIND_MAX), now + AHEAD_MAX);
        self.next = self.next.saturating_add(more).clamp(least, most);
        self.rest(now)
    }

    /// What is left of the rest.
    pub fn rest(&self, now: Duration) -> Duration {
        self.next.saturating_sub(now)
    }

    /// Whether what should be written by now is.
    pub fn keeps_up(&self, now: Duration) -> bool {
        now < self.next + KEEPS_UP
    }
}

/// Whether anybody asks for anything, for all devices of a set together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Idle {
    updates: u64,
    last_request: Duration,
}

impl Idle {
    /// One device's update, with the time of the last request to any; says whether that is long ago.
    pub fn update(&mut self, last_request: Duration, devices: u64) -> bool {
        if last_request != self.last_request {
            (self.updates, self.last_request) = (0, last_request);
        }
        self.updates = self.updates.saturating_add(1);
        self.updates >= devices.saturating_mul(devices).saturating_mul(IDLE_UPDATES)
    }
}

/// Whether a collection is to follow.
#[derive(Clone, Copy, Debug, Default)]
pub struct GcAfter {
    is_armed: bool,
}

impl GcAfter {
    /// At an update.
    pub fn update(&mut self, is_wanted: bool, in_use: u64) {
        self.is_armed = is_wanted && (self.is_armed || in_use >= GC_IN_USE);
    }

    /// A device became clean; says whether that was awaited, once.
    pub fn became_clean(&mut self) -> bool {
        std::mem::take(&mut self.is_armed)
    }
}

#[cfg(test)]
#[path = "rate_tests.rs"]
mod tests;
