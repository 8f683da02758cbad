//! Starting before all pointers are counted.
//!
//! After a clean stop the gen table says every gen exactly, and which buckets nothing names (docs/format.md 8.4). That is
//! enough to begin with: those empty buckets are handed out, everything else stays as it is until every leaf was looked at
//! once. Whatever a leaf says is counted then. The table is no authority: what contradicts it is an error of the image.

use crate::mutations::{self, Mutation};
use brigade_format::{BucketNr, Gen, Ptr};

use super::bucket::{Bucket, Flag, Place};
use super::{Allocator, GEN_AGE_MAX};

/// Recency by which the table of a clean stop says that nothing names a bucket.
pub const PRIO_EMPTY: u16 = 0;

/// No pointer to a bucket that is called empty is older than this: some room is left until it is known how old they are.
const EMPTY_AGE_MAX: u8 = GEN_AGE_MAX - 4;

/// Counting under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Counting {
    /// By bucket the oldest gen of a pointer seen so far.
    oldest: Vec<Gen>,
    /// By bucket whether something stored names it with the gen it had at the start.
    named: Vec<bool>,
    /// Gens by the table of the buckets that it called empty.
    empty: Vec<Option<Gen>>,
    done: usize,
    age_max: u8,
    is_ending: bool,
}

impl Allocator {
    /// Ends loading, like [`Allocator::start`], of a set whose leaves were not looked at. `named`: what else names buckets with
    /// their gens. All that are not known to be empty must have been marked as referenced.
    pub fn start_counting(&mut self, named: Vec<bool>) {
        let oldest = self.buckets.iter().map(|bucket| bucket.last_gc).collect();
        let empty = |bucket: &Bucket| (bucket.stamp == PRIO_EMPTY).then_some(bucket.r#gen);
        let empty = self.buckets.iter().map(empty).collect();
        for bucket in &mut self.buckets {
            // What is empty had pointers at most so old when the table was written; of others nothing is known.
            let behind = if bucket.stamp == PRIO_EMPTY {
                EMPTY_AGE_MAX
            } else {
                GEN_AGE_MAX
            };
            bucket.last_gc = Gen(bucket.r#gen.0.wrapping_sub(behind));
        }
        // No order is kept meanwhile: nothing is recycled, and everything changes.
        self.counting = Some(Counting {
            oldest,
            named,
            empty,
            ..Counting::default()
        });
        self.start();
    }

    /// Whether some leaves have yet to be counted, so that no bucket can be recycled.
    pub fn is_counting(&self) -> bool {
        self.counting.is_some()
    }

    /// Whether an order of victims is kept.
    pub(super) fn keeps_order(&self) -> bool {
        let is_ending = |counting: &Counting| counting.is_ending;
        self.counting.as_ref().is_none_or(is_ending)
    }

    /// Whether the oldest pointer to the bucket is known; otherwise the most that it can be is taken for it, and the end of counting finds
    /// out.
    pub(super) fn knows_age_of(&self, nr: BucketNr) -> bool {
        let is_done = |counting: &Counting| (nr.0 as usize) < counting.done;
        self.counting.as_ref().is_none_or(is_done)
    }

    /// A leaf holds a pointer of this gen, live or not. Fails if the table said that there is none.
    pub fn count_pointer(&mut self, ptr: Ptr) -> Result<(), String> {
        let nr = self.nr_of(ptr).0 as usize;
        let Some(counting) = &mut self.counting else {
            return Ok(());
        };
        if counting.empty[nr].is_some_and(|then| then.after(ptr.r#gen()) == 0) {
            return Err(format!(
                "{ptr:?}: the gen table calls bucket {nr} empty (F40)"
            ));
        }
        let own = self.buckets[nr].r#gen;
        counting.named[nr] |= own == ptr.r#gen();
        let oldest = &mut counting.oldest[nr];
        if own.after(ptr.r#gen()) > own.after(*oldest) {
            *oldest = ptr.r#gen();
        }
        Ok(())
    }

    /// Counts live data of a leaf. Fails if it contradicts the table or other pointers.
    pub fn count_live(&mut self, ptr: Ptr, sectors: u32, dirty: bool) -> Result<(), String> {
        let nr = self.nr_of(ptr);
        let bucket = *self.bucket(nr);
        if bucket.r#gen != ptr.r#gen() {
            let own = bucket.r#gen.0;
            return Err(format!(
                "{ptr:?} is newer than gen {own} of bucket {} (F44)",
                nr.0
            ));
        }
        if bucket.place() != Place::Idle {
            let place = bucket.place();
            return Err(format!(
                "{ptr:?}: bucket {} is not one of data: {place:?} (F40)",
                nr.0
            ));
        }
        if bucket.live.get() + sectors > self.config.bucket_sectors {
            return Err(format!(
                "{ptr:?}: bucket {} holds more than it can (F41)",
                nr.0
            ));
        }
        self.add_live(ptr, sectors, dirty);
        Ok(())
    }

    /// All leaves were counted. Takes that in for up to `count` more buckets; says whether it is done for all.
    pub fn finish_counting(&mut self, count: usize) -> bool {
        let Some(mut counting) = self.counting.take() else {
            return true;
        };
        if counting.done == 0 {
            self.need_gc_since = 0;
        }
        let to = (counting.done + count).min(self.buckets.len());
        for nr in counting.done..to {
            let bucket = &mut self.buckets[nr];
            bucket.last_gc = counting.oldest[nr];
            counting.age_max = counting.age_max.max(bucket.gen_age());
            // Not recycled since the start, and nobody named it.
            let is_unnamed = bucket.is(Flag::Referenced) && !counting.named[nr];
            let is_empty = bucket.place() == Place::Idle && bucket.live.get() == 0;
            if is_unnamed && is_empty && bucket.pin == 0 {
                self.enter_unused(BucketNr(nr as u64), Place::Idle);
            }
            let bucket = &mut self.buckets[nr];
            if bucket.is_let_go() && !bucket.is(Flag::Ordered) && !bucket.is(Flag::Parked) {
                self.order.insert(&mut self.buckets, nr as u32);
            }
        }
        counting.is_ending = true;
        counting.done = to;
        if to < self.buckets.len() {
            self.counting = Some(counting);
            self.top_up();
            return false;
        }
        self.need_gc = counting.age_max.max(self.need_gc_since);
        self.need_gc_since = self.need_gc;
        self.top_up();
        self.unpark();
        true
    }

    /// What the table of a clean stop says of buckets.
    pub fn stop_entries(&self, range: std::ops::Range<u64>) -> Vec<(u16, Gen)> {
        let mut entries = self.table_entries(range.clone());
        for (nr, (prio, _)) in (range.start..).zip(&mut entries) {
            let is_empty = is_known_empty(self.bucket(BucketNr(nr)));
            let is_lie = mutations::is(Mutation::StopCallsAllEmpty) && *prio < super::PRIO_METADATA;
            *prio = match is_empty || is_lie {
                true => PRIO_EMPTY,
                false => (*prio).max(PRIO_EMPTY + 1),
            };
        }
        entries
    }
}

/// Whether nothing stored names it, and no pointer to it is very old.
fn is_known_empty(bucket: &Bucket) -> bool {
    let is_free = matches!(
        bucket.place(),
        Place::Unused | Place::Incoming | Place::Ready
    );
    is_free && bucket.gen_age() <= EMPTY_AGE_MAX
}
