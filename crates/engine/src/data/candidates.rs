//! Clean data on its way into the index.
//!
//! Between reading (or writing) a range of the backing device and entering it into the index, anybody may write the range. A
//! *candidate* stands for such data from before its first byte is read; every write of the range cancels it, and a cancelled
//! candidate is dropped. This takes the place of the kernel's placeholder keys, in memory only.

use brigade_env::sync::Notify;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// No candidate is longer than this, in sectors, so that overlaps are found by looking back no further.
const SECTORS_MAX: u64 = 1 << 16;

/// All candidates of one volume.
#[derive(Default)]
pub struct Candidates {
    open: RefCell<BTreeMap<(u64, u64), Open>>,
    next: Cell<u64>,
    /// No open one is longer.
    longest: Cell<u64>,
}

struct Open {
    end: u64,
    fate: Rc<Fate>,
}

/// What became of a candidate.
#[derive(Default)]
struct Fate {
    is_cancelled: Cell<bool>,
    told: Notify,
}

/// One range. Dropping it ends it.
pub struct Candidate {
    all: Rc<Candidates>,
    key: (u64, u64),
    fate: Rc<Fate>,
}

impl Candidates {
    /// A candidate for a range, to be made before its data is read or written.
    pub fn open(self: &Rc<Self>, start: u64, end: u64) -> Candidate {
        assert!(
            start < end && end - start <= SECTORS_MAX,
            "a candidate is short"
        );
        let id = self.next.get();
        self.next.set(id + 1);
        let longest = match self.open.borrow().is_empty() {
            true => 0,
            false => self.longest.get(),
        };
        self.longest.set(longest.max(end - start));
        let fate = Rc::<Fate>::default();
        self.open.borrow_mut().insert(
            (start, id),
            Open {
                end,
                fate: fate.clone(),
            },
        );
        Candidate {
            all: self.clone(),
            key: (start, id),
            fate,
        }
    }

    /// The range was written: what was read of it before must not enter the index.
    pub fn cancel(&self, start: u64, end: u64) {
        let open = self.open.borrow();
        let from = (start.saturating_sub(self.longest.get()), 0);
        for (_, candidate) in open
            .range(from..(end, 0))
            .filter(|(_, candidate)| candidate.end > start)
        {
            candidate.fate.is_cancelled.set(true);
            candidate.fate.told.notify_all();
        }
    }
}

impl Candidate {
    /// Somebody wrote to the range since the candidate was opened.
    pub fn is_cancelled(&self) -> bool {
        self.fate.is_cancelled.get()
    }

    /// Completes once somebody writes to the range.
    pub async fn cancelled(&self) {
        while !self.is_cancelled() {
            self.fate.told.wait().await;
        }
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        self.all.open.borrow_mut().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T101.
    #[test]
    fn a_write_cancels_the_candidates_it_overlaps_and_no_others() {
        let all = Rc::new(Candidates::default());
        let (a, b, c) = (all.open(0, 8), all.open(4, 2000), all.open(16, 24));
        all.cancel(8, 16);
        assert!(!a.is_cancelled() && b.is_cancelled() && !c.is_cancelled());
        drop((a, b, c));
        assert!(all.open.borrow().is_empty());
    }
}
