//! Ranges of a backing device that somebody is writing to.
//!
//! Everything that writes to a backing device holds its range: overlapping writes go there one after the other, so the
//! device and the index end with the same one. Writes that only go to the cache do not take part.

use brigade_env::sync::Notify;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Held ranges of one volume.
#[derive(Default)]
pub struct RangeLocks {
    /// Start to end; they do not overlap.
    held: RefCell<BTreeMap<u64, u64>>,
    released: Notify,
}

/// A held range.
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    start: u64,
}

impl RangeLocks {
    /// Waits until nobody holds any part of the range, and holds it.
    pub async fn lock(&self, start: u64, end: u64) -> RangeGuard<'_> {
        assert!(start < end, "a range with sectors");
        while self.is_held(start, end) {
            self.released.wait().await;
        }
        self.held.borrow_mut().insert(start, end);
        RangeGuard { locks: self, start }
    }

    /// Whether somebody holds any part of the range.
    pub fn is_held(&self, start: u64, end: u64) -> bool {
        let held = self.held.borrow();
        held.range(..end)
            .next_back()
            .is_some_and(|(_, held_end)| *held_end > start)
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        self.locks.held.borrow_mut().remove(&self.start);
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
}
