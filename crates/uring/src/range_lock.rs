//! Turns for ranges of blocks, for devices whose block is larger than a sector.
//!
//! A write of part of a block reads the block, changes it and writes it back. Meanwhile no other write may touch the
//! block, be it aligned or not, or what it wrote would flip back. Whole-block writes do not exclude each other.

use brigade_env::sync::Notify;
use std::cell::{Cell, RefCell};
use std::ops::Range;

struct Entry {
    ticket: u64,
    range: Range<u64>,
    is_exclusive: bool,
}

impl Entry {
    fn excludes(&self, other: &Entry) -> bool {
        let overlaps = self.range.start < other.range.end && other.range.start < self.range.end;
        overlaps && (self.is_exclusive || other.is_exclusive)
    }
}

/// Claims in the order of arrival; one is granted when no earlier one excludes it.
#[derive(Default)]
pub(crate) struct RangeLock {
    entries: RefCell<Vec<Entry>>,
    tickets: Cell<u64>,
    changed: Notify,
}

impl RangeLock {
    /// Waits for its turn on `range`.
    pub(crate) async fn claim(&self, range: Range<u64>, is_exclusive: bool) -> Claim<'_> {
        let ticket = self.tickets.replace(self.tickets.get() + 1);
        self.entries.borrow_mut().push(Entry {
            ticket,
            range,
            is_exclusive,
        });
        let claim = Claim { lock: self, ticket };
        while self.must_wait(ticket) {
            self.changed.wait().await;
        }
        claim
    }

    fn must_wait(&self, ticket: u64) -> bool {
        let entries = self.entries.borrow();
        let Some(mine) = entries.iter().find(|entry| entry.ticket == ticket) else {
            return false;
        };
        entries
            .iter()
            .take_while(|entry| entry.ticket != ticket)
            .any(|entry| entry.excludes(mine))
    }
}

/// A claim; dropping it lets others on.
pub(crate) struct Claim<'a> {
    lock: &'a RangeLock,
    ticket: u64,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.lock
            .entries
            .borrow_mut()
            .retain(|entry| entry.ticket != self.ticket);
        self.lock.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    fn poll<F: Future>(future: &mut Pin<Box<F>>) -> Poll<F::Output> {
        future
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn whole_blocks_share_and_a_part_of_a_block_waits_for_all_before_it() {
        let lock = RangeLock::default();
        let Poll::Ready(first) = poll(&mut Box::pin(lock.claim(0..8, false))) else {
            panic!("free")
        };
        let Poll::Ready(second) = poll(&mut Box::pin(lock.claim(4..12, false))) else {
            panic!("shared")
        };
        let mut part = Box::pin(lock.claim(7..9, true));
        assert!(poll(&mut part).is_pending());
        let mut later = Box::pin(lock.claim(8..9, false));
        assert!(poll(&mut later).is_pending(), "it must not overtake");
        assert!(poll(&mut Box::pin(lock.claim(20..21, true))).is_ready());
        drop(first);
        assert!(poll(&mut part).is_pending());
        drop(second);
        let Poll::Ready(part) = poll(&mut part) else {
            panic!("its turn")
        };
        assert!(poll(&mut later).is_pending());
        drop(part);
        assert!(poll(&mut later).is_ready());
    }

    #[test]
    fn a_claim_that_gives_up_waiting_is_forgotten() {
        let lock = RangeLock::default();
        let Poll::Ready(held) = poll(&mut Box::pin(lock.claim(0..1, true))) else {
            panic!("free")
        };
        let mut waiting = Box::pin(lock.claim(0..1, true));
        assert!(poll(&mut waiting).is_pending());
        drop(waiting);
        drop(held);
        assert!(poll(&mut Box::pin(lock.claim(0..1, true))).is_ready());
        assert!(lock.entries.borrow().is_empty());
    }
}
