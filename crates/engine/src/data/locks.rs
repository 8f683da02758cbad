//! Ranges of a backing device that somebody is writing to.
//!
//! Everything that writes to a backing device holds its range: overlapping writes go there one after the other, so the
//! device and the index end with the same one, and in the order in which they came. Writes that only go to the cache do not take part.

use crate::marks::{self, Mark};
use brigade_env::sync::Notify;
use brigade_env::waits::{Hold, Place, Wait};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

/// Held ranges of one volume, and those waited for.
#[derive(Default)]
pub struct RangeLocks {
    /// Start to end; they do not overlap.
    held: RefCell<BTreeMap<u64, u64>>,
    /// Ranges that somebody waits for, in the order in which they came.
    waiting: RefCell<BTreeMap<u64, (u64, u64)>>,
    next_ticket: Cell<u64>,
    released: Notify,
}

/// A held range.
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    start: u64,
    _hold: Hold,
}

/// A place in the queue.
struct Ticket<'a> {
    locks: &'a RangeLocks,
    number: u64,
}

impl RangeLocks {
    /// Waits until nobody holds any part of the range, and nobody waits for one who came before; then holds it.
    #[cfg_attr(feature = "instrumented", track_caller)]
    pub fn lock(&self, start: u64, end: u64) -> impl Future<Output = RangeGuard<'_>> {
        self.lock_at(start, end, Place::here())
    }

    async fn lock_at(&self, start: u64, end: u64, place: Place) -> RangeGuard<'_> {
        assert!(start < end, "a range with sectors");
        if !self.is_held(start, end) && !self.is_waited_for(start, end, u64::MAX) {
            return self.hold(start, end, place);
        }
        marks::hit(Mark::LocksWait);
        let ticket = self.queue(start, end);
        let _wait = Wait::new("a range", self, Some((start, end)), place);
        while self.is_held(start, end) || self.is_waited_for(start, end, ticket.number) {
            self.released.wait().await;
        }
        // The guard first: the end of the ticket wakes those behind.
        let guard = self.hold(start, end, place);
        drop(ticket);
        guard
    }

    fn hold(&self, start: u64, end: u64, place: Place) -> RangeGuard<'_> {
        self.held.borrow_mut().insert(start, end);
        RangeGuard {
            locks: self,
            start,
            _hold: Hold::new(self, Some((start, end)), place),
        }
    }

    fn queue(&self, start: u64, end: u64) -> Ticket<'_> {
        let number = self.next_ticket.get();
        self.next_ticket.set(number + 1);
        self.waiting.borrow_mut().insert(number, (start, end));
        Ticket {
            locks: self,
            number,
        }
    }

    /// Whether somebody holds any part of the range.
    pub fn is_held(&self, start: u64, end: u64) -> bool {
        let held = self.held.borrow();
        held.range(..end)
            .next_back()
            .is_some_and(|(_, held_end)| *held_end > start)
    }

    /// Whether somebody before a ticket waits for any part of the range.
    fn is_waited_for(&self, start: u64, end: u64, ticket: u64) -> bool {
        let waiting = self.waiting.borrow();
        waiting
            .range(..ticket)
            .any(|(_, &(other_start, other_end))| other_start < end && start < other_end)
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        self.locks.held.borrow_mut().remove(&self.start);
        self.locks.released.notify_all();
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.locks.waiting.borrow_mut().remove(&self.number);
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn overlapping_ranges_wait_and_others_do_not() {
        let locks = RangeLocks::default();
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(first) = pin!(locks.lock(8, 16)).poll(&mut context) else {
            panic!("free")
        };
        assert!(pin!(locks.lock(16, 24)).poll(&mut context).is_ready());
        assert!(pin!(locks.lock(0, 8)).poll(&mut context).is_ready());
        let mut waiting = pin!(locks.lock(0, 9));
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        drop(first);
        assert!(waiting.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn a_small_range_does_not_overtake_a_large_one_that_waits() {
        let locks = RangeLocks::default();
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(first) = pin!(locks.lock(0, 8)).poll(&mut context) else {
            panic!("free")
        };
        let mut large = pin!(locks.lock(0, 100));
        assert!(large.as_mut().poll(&mut context).is_pending());
        let mut small = Box::pin(locks.lock(50, 58));
        assert!(
            small.as_mut().poll(&mut context).is_pending(),
            "nobody holds it, but somebody waits"
        );
        drop(first);
        assert!(small.as_mut().poll(&mut context).is_pending());
        let Poll::Ready(second) = large.as_mut().poll(&mut context) else {
            panic!("its turn")
        };
        assert!(small.as_mut().poll(&mut context).is_pending());
        drop(second);
        assert!(small.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn one_who_gives_up_waiting_holds_up_nobody() {
        let locks = RangeLocks::default();
        let mut context = Context::from_waker(Waker::noop());
        let Poll::Ready(_first) = pin!(locks.lock(0, 8)).poll(&mut context) else {
            panic!("free")
        };
        let mut large = Box::pin(locks.lock(0, 100));
        assert!(large.as_mut().poll(&mut context).is_pending());
        let mut small = pin!(locks.lock(50, 58));
        assert!(small.as_mut().poll(&mut context).is_pending());
        drop(large);
        assert!(small.as_mut().poll(&mut context).is_ready());
    }
}
