//! The kernel's statistics: totals, and what is left of them as time passes (behaviour G.9).
//!
//! Events are collected. At each tick, of which there are 22 in five minutes, what was collected is added to three sums, and
//! then the sums become 31/32 of what they were: one at each tick, one at every 12th, one at every 288th, so that half of an event
//! is left after five minutes, an hour, a day. Sums are kept in 65536ths.
//!
//! No task ticks: whoever adds or asks makes up for the ticks that passed. What is shown includes what was collected since the
//! last one, and all of it has 64 bits (H.18).

use serde::Serialize;
use std::cell::RefCell;
use std::time::Duration;

/// Ticks in [`TICKS_SECONDS`].
const TICKS: u128 = 22;
const TICKS_SECONDS: u128 = 300;
/// Ticks between decays: five minutes, hour, day.
const PERIODS: [u64; 3] = [1, 12, 288];
/// Decays after which nothing is left of any sum.
const DECAYS_MAX: u64 = 2048;
const UNIT: u64 = 1 << 16;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A read was served from the cache alone.
    Hit,
    /// It was not.
    Miss,
    /// The same of reads that bypass the cache.
    BypassHit,
    /// It was not, of those.
    BypassMiss,
    /// What was read on a miss was written before it got into the cache.
    Collision,
    /// Sectors of requests that bypassed the cache.
    BypassedSectors,
}

const EVENTS: usize = 6;

type Counts = [u64; EVENTS];

#[derive(Default)]
struct Sums {
    total: Counts,
    /// Since the last tick.
    pending: Counts,
    /// In 65536ths.
    decaying: [Counts; 3],
    tick: u64,
}

/// See the module documentation.
#[derive(Default)]
pub struct Decaying(RefCell<Sums>);

fn tick_at(now: Duration) -> u64 {
    let ticks = now.as_nanos() * TICKS / (TICKS_SECONDS * 1_000_000_000);
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

impl Sums {
    fn catch_up(&mut self, now: Duration) {
        let tick = tick_at(now);
        if tick <= self.tick {
            return;
        }
        let pending = std::mem::take(&mut self.pending);
        for (sums, period) in self.decaying.iter_mut().zip(PERIODS) {
            let decays = (tick / period - self.tick / period).min(DECAYS_MAX);
            for (sum, pending) in sums.iter_mut().zip(pending) {
                *sum = sum.saturating_add(pending.saturating_mul(UNIT));
                for _ in 0..decays {
                    // As by 31/32, without a product that might not fit.
                    *sum -= sum.div_ceil(32);
                }
            }
        }
        self.tick = tick;
    }
}

impl Decaying {
    /// Counts events.
    pub fn add(&self, now: Duration, event: Event, n: u64) {
        let mut sums = self.0.borrow_mut();
        sums.catch_up(now);
        let at = event as usize;
        sums.pending[at] = sums.pending[at].saturating_add(n);
        sums.total[at] = sums.total[at].saturating_add(n);
    }

    /// All of it as it is now.
    pub fn shown(&self, now: Duration) -> Statistics {
        let mut sums = self.0.borrow_mut();
        sums.catch_up(now);
        let live = |at: usize| {
            let mut counts = sums.decaying[at].map(|sum| sum / UNIT);
            for (count, pending) in counts.iter_mut().zip(sums.pending) {
                *count = count.saturating_add(pending);
            }
            Values::new(counts)
        };
        Statistics {
            total: Values::new(sums.total),
            five_minute: live(0),
            hour: live(1),
            day: live(2),
        }
    }

    /// Totals begin at zero again.
    pub fn clear_totals(&self) {
        self.0.borrow_mut().total = Counts::default();
    }
}

/// The seven values over four times.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Statistics {
    /// Since the server started or they were cleared.
    pub total: Values,
    /// Decaying with a half-life of five minutes.
    pub five_minute: Values,
    /// Of an hour.
    pub hour: Values,
    /// Of a day.
    pub day: Values,
}

/// Names are the kernel's.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of the JSON and say it")]
pub struct Values {
    pub cache_hits: u64,
    pub cache_misses: u64,
    pub cache_bypass_hits: u64,
    pub cache_bypass_misses: u64,
    pub cache_hit_ratio: u64,
    pub cache_miss_collisions: u64,
    /// Bytes.
    pub bypassed: u64,
}

impl Values {
    fn new(counts: Counts) -> Values {
        let of = |event: Event| counts[event as usize];
        let (hits, misses) = (of(Event::Hit), of(Event::Miss));
        let ratio = u128::from(hits) * 100 / (u128::from(hits) + u128::from(misses)).max(1);
        Values {
            cache_hits: hits,
            cache_misses: misses,
            cache_bypass_hits: of(Event::BypassHit),
            cache_bypass_misses: of(Event::BypassMiss),
            cache_hit_ratio: ratio as u64,
            cache_miss_collisions: of(Event::Collision),
            bypassed: of(Event::BypassedSectors).saturating_mul(512),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first moment of a tick.
    fn at(tick: u64) -> Duration {
        let nanos = (u128::from(tick) * TICKS_SECONDS * 1_000_000_000).div_ceil(TICKS);
        Duration::from_nanos(u64::try_from(nanos).unwrap())
    }

    #[test]
    fn ticks_come_22_times_in_five_minutes() {
        assert_eq!(tick_at(Duration::from_secs(300)), 22);
        for tick in [1, 7, 288, 6336] {
            assert_eq!(tick_at(at(tick)), tick);
            assert_eq!(tick_at(at(tick) - Duration::from_nanos(1)), tick - 1);
        }
    }

    /// T160: also that 10^6 events in a tick are exact.
    #[test]
    fn half_of_the_events_is_left_after_five_minutes_an_hour_and_a_day() {
        for (ticks, which) in [(22, 0), (264, 1), (6336, 2)] {
            let decaying = Decaying::default();
            decaying.add(at(0), Event::Hit, 1_000_000);
            decaying.add(at(0), Event::BypassedSectors, 1_000_000);
            let shown = decaying.shown(at(0));
            for values in [&shown.total, &shown.five_minute, &shown.hour, &shown.day] {
                assert_eq!(values.cache_hits, 1_000_000, "live");
                assert_eq!(values.bypassed, 512_000_000);
            }
            let later = decaying.shown(at(ticks));
            let hits = [&later.five_minute, &later.hour, &later.day].map(|it| it.cache_hits);
            // 31/32 to the power of 22.
            assert!((497_000..=498_000).contains(&hits[which]), "{hits:?}");
            assert!(hits[..which].iter().all(|hits| *hits < 10_000), "{hits:?}");
            assert!(
                hits[which + 1..].iter().all(|hits| *hits > 900_000),
                "{hits:?}"
            );
            assert_eq!(later.total.cache_hits, 1_000_000, "a total stays");
        }
    }

    #[test]
    fn who_looks_at_every_tick_sees_what_who_looks_at_the_last_one_sees() {
        let (often, once) = (Decaying::default(), Decaying::default());
        for decaying in [&often, &once] {
            decaying.add(at(5), Event::Miss, 12_345);
        }
        for tick in 5..700 {
            often.shown(at(tick));
        }
        assert_eq!(often.shown(at(700)), once.shown(at(700)));
        assert_eq!(once.shown(Duration::MAX).day.cache_misses, 0);
        assert_eq!(
            once.shown(at(0)).day.cache_misses,
            0,
            "time does not go back"
        );
    }

    #[test]
    fn any_number_of_events_fits() {
        let decaying = Decaying::default();
        decaying.add(at(0), Event::Hit, u64::MAX);
        decaying.add(at(0), Event::Hit, 1);
        assert_eq!(decaying.shown(at(0)).total.cache_hits, u64::MAX);
        assert_eq!(decaying.shown(at(1)).total.cache_hit_ratio, 100);
        assert_eq!(decaying.shown(Duration::MAX).day.cache_hits, 0);
    }

    #[test]
    fn clearing_takes_the_totals_and_nothing_else() {
        let decaying = Decaying::default();
        decaying.add(at(0), Event::Hit, 3);
        decaying.add(at(0), Event::Miss, 1);
        assert_eq!(decaying.shown(at(0)).total.cache_hit_ratio, 75);
        decaying.clear_totals();
        let shown = decaying.shown(at(0));
        assert_eq!(shown.total, Values::default());
        assert_eq!(shown.hour.cache_hits, 3);
    }
}
