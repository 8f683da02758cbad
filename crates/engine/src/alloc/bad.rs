//! Buckets that a request failed on. They stay where they are, with a pin that nobody ends, so nothing recycles them as long as the
//! set is open, and nothing more is put into them. What is still in them is served while it can be read. No table knows of it: the next
//! opening starts anew.

use super::Allocator;
use brigade_format::{BucketNr, Ptr};

/// Buckets set aside at most, and of how many buckets one at most.
const BAD_MAX: usize = 1024;
const ONE_OF: u64 = 16;

impl Allocator {
    /// Sets the bucket that a pointer names aside, if it is still the same and there are not too many of them. Says whether it did.
    pub fn set_aside(&mut self, ptr: Ptr) -> bool {
        let nr = self.nr_of(ptr);
        let most = BAD_MAX.min((self.config.nbuckets / ONE_OF) as usize);
        let is_there = self.is_current(ptr) && self.bucket(nr).holds_data();
        if !is_there || self.bad.len() >= most || !self.bad.insert(nr) {
            return false;
        }
        self.pin(nr);
        self.close(nr);
        true
    }

    /// Whether the bucket that a pointer names was set aside.
    pub fn is_set_aside(&self, ptr: Ptr) -> bool {
        self.bad.contains(&self.nr_of(ptr))
    }

    /// Buckets that were set aside.
    pub fn set_aside_count(&self) -> usize {
        self.bad.len()
    }

    pub(super) fn check_bad(&self) {
        for nr in &self.bad {
            let bucket = self.bucket(*nr);
            assert!(bucket.holds_data() && bucket.pin > 0, "ALLOC-10");
        }
    }

    fn close(&mut self, nr: BucketNr) {
        let mut slots = self.open.slots.iter();
        let index = slots.position(|slot| slot.bucket == Some(nr));
        if let Some(index) = index {
            self.seal(index);
        }
    }
}
