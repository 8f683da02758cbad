//! How many errors a device may have (section E.9 of the behaviour specification).
//!
//! An error counts 2^20. After every `decay` requests what has been counted becomes 127/128 of itself, so that half of it is forgotten
//! after 88 times as many requests: that is the half-life that is set. Without one nothing is ever forgotten.

use crate::settings::{Knob, Settings};
use std::io;

/// What an error counts.
const ERROR: u64 = 1 << 20;
/// Steps of 127/128 to a half.
const STEPS_OF_HALFLIFE: u64 = 88;
/// Errors of the operating system that mean that there is no device any more: ENXIO, ENODEV, ESHUTDOWN, ENOMEDIUM.
const GONE: [i32; 4] = [6, 19, 108, 123];

/// The errors of a device, and how many are too many.
#[derive(Clone, Copy, Debug, Default)]
pub struct ErrorBudget {
    errors: u64,
    requests: u64,
}

impl ErrorBudget {
    /// A request was made; `halflife` is as it is set, 0 for none.
    pub fn request(&mut self, halflife: u64) {
        let decay = halflife / STEPS_OF_HALFLIFE;
        if decay == 0 {
            return;
        }
        self.requests += 1;
        if self.requests >= decay {
            self.requests = 0;
            self.errors = self.errors / 128 * 127 + self.errors % 128 * 127 / 128;
        }
    }

    /// A request failed. Says whether that was one too many; if so, counting starts anew.
    pub fn error(&mut self, limit: u64) -> bool {
        self.errors = self.errors.saturating_add(ERROR);
        let is_spent = self.errors() >= limit;
        if is_spent {
            self.errors = 0;
        }
        is_spent
    }

    /// Errors that are not forgotten.
    pub fn errors(&self) -> u64 {
        self.errors / ERROR
    }

    /// Whether any part of an error is not forgotten.
    pub fn is_blank(&self) -> bool {
        self.errors == 0
    }
}

/// Where the limits of a device are.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Errors that are too many.
    pub errors: Knob,
    /// Requests after which half of them are forgotten; absent: never.
    pub halflife: Option<Knob>,
}

impl Limits {
    /// Of a cache device.
    pub const CACHE: Limits = Limits {
        errors: Knob::SetIoErrorLimit,
        halflife: Some(Knob::IoErrorHalflife),
    };
    /// Of a backing device.
    pub const BACKING: Limits = Limits {
        errors: Knob::VolumeIoErrorLimit,
        halflife: None,
    };

    /// As they are now.
    pub fn now(&self, settings: &Settings) -> (u64, u64) {
        let halflife = self.halflife.map_or(0, |knob| settings.get(knob));
        (settings.get(self.errors), halflife)
    }
}

/// Whether the device itself is no longer there. One that comes back may have lost what it had not made durable.
pub fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|it| GONE.contains(&it))
}

/// Whether an error says something of the device, and not of what was asked of it.
pub fn is_of_device(error: &io::Error) -> bool {
    !matches!(
        error.kind(),
        io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after_errors(count: u64, limit: u64) -> bool {
        let mut budget = ErrorBudget::default();
        let results: Vec<bool> = (0..count).map(|_| budget.error(limit)).collect();
        assert!(results[..results.len() - 1].iter().all(|is| !is));
        results[results.len() - 1]
    }

    /// T139: 7 of 8 errors are not too many, the eighth is; for a backing device it is the 64th.
    #[test]
    fn the_error_that_reaches_the_limit_is_one_too_many() {
        let settings = |scope| Settings::new(scope, &Default::default());
        let (cache, _) = Limits::CACHE.now(&settings(crate::settings::Scope::CacheSet));
        let (backing, halflife) = Limits::BACKING.now(&settings(crate::settings::Scope::Volume));
        assert_eq!((cache, backing, halflife), (8, 64, 0));
        assert!(!after_errors(7, cache));
        assert!(after_errors(8, cache));
        assert!(!after_errors(63, backing));
        assert!(after_errors(64, backing));
    }

    /// T139: half of the errors are forgotten after the half-life, in steps of 88; without one none ever is.
    #[test]
    fn half_of_the_errors_are_forgotten_after_the_halflife() {
        let mut budget = ErrorBudget::default();
        for _ in 0..6 {
            assert!(!budget.error(8));
        }
        // Shown as 4928, since 5000 / 88 is 56.
        (0..4928).for_each(|_| budget.request(5000));
        let left = budget.errors as f64 / (6 * ERROR) as f64;
        assert!((0.49..0.51).contains(&left), "{left}");
        let mut never = ErrorBudget::default();
        never.error(8);
        (0..100_000).for_each(|_| never.request(0));
        (0..100_000).for_each(|_| never.request(87));
        assert_eq!(never.errors, ERROR);
    }

    #[test]
    fn errors_that_are_far_apart_are_never_too_many() {
        let mut budget = ErrorBudget::default();
        for _ in 0..100 {
            assert!(!budget.error(8));
            (0..2000).for_each(|_| budget.request(5000));
        }
        assert!(budget.errors() < 8);
    }

    #[test]
    fn after_too_many_errors_counting_starts_anew() {
        let mut budget = ErrorBudget::default();
        budget.error(2);
        assert!(budget.error(2));
        assert!(budget.is_blank());
        assert!(!budget.error(2));
    }

    #[test]
    fn a_limit_of_none_is_reached_by_the_first_error() {
        assert!(ErrorBudget::default().error(0));
        assert!(ErrorBudget::default().error(1));
    }
}
