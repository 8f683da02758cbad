//! Who sleeps until when.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Duration;

/// A sleeper's place: deadline, then order of arrival.
pub(crate) type TimerKey = (Duration, u64);

/// Sleepers in the order of their deadlines.
#[derive(Default)]
pub(crate) struct Timers {
    sleepers: RefCell<BTreeMap<TimerKey, Waker>>,
    arrivals: Cell<u64>,
}

impl Timers {
    /// Adds a sleeper.
    pub(crate) fn add(&self, deadline: Duration, waker: Waker) -> TimerKey {
        let key = (deadline, self.arrivals.replace(self.arrivals.get() + 1));
        self.sleepers.borrow_mut().insert(key, waker);
        key
    }

    /// A sleeper was polled again: remembers its newest waker.
    pub(crate) fn renew(&self, key: TimerKey, waker: &Waker) {
        if let Some(known) = self.sleepers.borrow_mut().get_mut(&key) {
            known.clone_from(waker);
        }
    }

    /// A sleeper left.
    pub(crate) fn remove(&self, key: TimerKey) {
        self.sleepers.borrow_mut().remove(&key);
    }

    /// The nearest deadline.
    pub(crate) fn nearest(&self) -> Option<Duration> {
        self.sleepers
            .borrow()
            .first_key_value()
            .map(|(key, _)| key.0)
    }

    /// Wakes everybody whose deadline has come, earliest first.
    pub(crate) fn fire(&self, now: Duration) {
        while self.nearest().is_some_and(|deadline| deadline <= now) {
            let first = self.sleepers.borrow_mut().pop_first();
            if let Some((_, waker)) = first {
                waker.wake();
            }
        }
    }
}
