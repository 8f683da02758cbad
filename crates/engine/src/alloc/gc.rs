//! What a garbage collection does to buckets: oldest pointers catch up, and what nothing points to is found.
//!
//! The gens from before the collection are noted, and afterwards no pointer older than those stands anywhere. Both are done a
//! slice at a time, as there may be many millions of buckets. A gen noted early is only lower than it might be, which errs on
//! the safe side.

use brigade_format::{BucketNr, Gen};

use super::Allocator;
use super::bucket::{Bucket, Place};

/// Empty buckets that are remembered, at most.
const EMPTY_MAX: usize = 1 << 16;

/// Gens from before a garbage collection; see the module's functions of [`Allocator`].
#[derive(Clone, Debug, Default)]
pub struct GcBase {
    gens: Vec<Gen>,
    /// Buckets without live data, as they were noted.
    empty: Vec<(u32, Gen)>,
    done: usize,
    age_max: u8,
}

impl Allocator {
    /// Notes the gens of up to `count` more buckets; says whether all are noted. To be done before the first leaf is
    /// rewritten.
    pub fn gc_note(&self, base: &mut GcBase, count: usize) -> bool {
        let from = base.gens.len();
        let to = (from + count).min(self.buckets.len());
        for (nr, bucket) in (from as u32..).zip(&self.buckets[from..to]) {
            base.gens.push(bucket.r#gen);
            // Before all leaves are counted nobody knows what is empty.
            if is_empty(bucket) && !self.is_counting() && base.empty.len() < EMPTY_MAX {
                base.empty.push((nr, bucket.r#gen));
            }
        }
        to == self.buckets.len()
    }

    /// Every leaf was rewritten, durably, without the pointers that the noted gens call stale. Takes that in for up to `count`
    /// more buckets; says whether it is done for all.
    pub fn gc_finish(&mut self, base: &mut GcBase, count: usize) -> bool {
        assert_eq!(base.gens.len(), self.buckets.len(), "all gens are noted");
        if base.done == 0 {
            self.need_gc_since = 0;
        }
        let to = (base.done + count).min(base.gens.len());
        for nr in base.done..to {
            let bucket = &mut self.buckets[nr];
            bucket.last_gc = base.gens[nr];
            base.age_max = base.age_max.max(bucket.gen_age());
        }
        base.done = to;
        if to < base.gens.len() {
            return false;
        }
        self.need_gc = base.age_max.max(self.need_gc_since);
        self.unpark();
        true
    }

    /// Buckets that had no live data before the collection began and have none now are named by nothing any more, provided
    /// that no entry of the journal from before it can be replayed: they may be reused without a table write. Looks at up to
    /// `count` of them; says whether it was through with all.
    pub fn gc_release_empty(&mut self, base: &mut GcBase, count: usize) -> bool {
        let left = base.empty.len().saturating_sub(count);
        for (nr, r#gen) in base.empty.drain(left..) {
            let bucket = self.buckets[nr as usize];
            if is_empty(&bucket) && bucket.r#gen == r#gen && bucket.may_increment() {
                self.enter_unused(BucketNr(u64::from(nr)), Place::Idle);
            }
        }
        self.top_up();
        left == 0
    }

    /// The whole of it at once.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn gc_finished(&mut self, base: &mut GcBase) {
        assert!(self.gc_finish(base, usize::MAX));
    }

    /// All gens at once.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn gc_base(&self) -> GcBase {
        let mut base = GcBase::default();
        self.gc_note(&mut base, usize::MAX / 2);
        base
    }
}

fn is_empty(bucket: &Bucket) -> bool {
    bucket.place() == Place::Idle && bucket.live.get() == 0 && bucket.pin == 0
}
