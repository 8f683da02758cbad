//! Which buckets are worth emptying, and room for what is in them.
//!
//! A bucket with dirty data is not recycled, however little of it is left; one whose little clean data is much used would be a
//! loss. What lives in such buckets is written together elsewhere, so that they are free. The benefit is the space gained,
//! the longer the bucket was not used the surer (what is used now may be overwritten soon, and then was moved in vain); the cost is
//! what has to be copied. As in a log-structured file system: space x age / live.
//!
//! Buckets are looked at a slice at a time, as there may be many millions. Copies go to a reserve of their own; of what everybody shares they take
//! only what is above the mark below which more is made ready, so nobody waits since something was moved.

use super::bucket::{Bucket, Place};
use super::lists::Reserve;
use super::open::{Data, Placement};
use super::{Allocator, PRIO_FRESH};
use crate::limits::moving_live_percent;
use crate::mutations::{self, Mutation};
use brigade_format::{BucketNr, Gen, Ptr};
use std::collections::BTreeMap;

/// The stream of what is moved (the kernel's, too).
const STREAM: u16 = 0;
/// Clean data used within so many steps of age, which is as much traffic as the cache is large, is worth keeping.
const RECENT_STEPS: u16 = 1024;
/// Kinds of data, each of which has open buckets of its own.
const KINDS: u64 = 2;
/// Most buckets that are emptied in one pass.
const CHOSEN_MAX: usize = 4096;
/// The part of what is ready above the low mark that one pass may fill.
const SPARE_PART: u64 = 4;

/// Looks for the best buckets to be emptied, in slices.
#[derive(Clone, Debug)]
pub struct Chooser {
    next: u64,
    budget_sectors: u64,
    /// By score, the lowest first.
    best: BTreeMap<(u64, u64), (Gen, u32)>,
    live_sectors: u64,
}

/// Buckets to be emptied.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    gens: BTreeMap<u64, Gen>,
    bucket_sectors: u32,
}

impl Chosen {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.gens.is_empty()
    }

    /// Whether a pointer is into one of them, and as it was when it was chosen.
    pub fn has(&self, ptr: Ptr) -> bool {
        let nr = ptr.bucket(self.bucket_sectors).0;
        self.gens.get(&nr) == Some(&ptr.r#gen())
    }

    /// All of them.
    pub fn buckets(&self) -> impl Iterator<Item = (BucketNr, Gen)> + '_ {
        self.gens.iter().map(|(nr, r#gen)| (BucketNr(*nr), *r#gen))
    }
}

impl Allocator {
    /// Begins to look for buckets whose live data one pass can move.
    pub fn choose_moves(&self) -> Chooser {
        let spare = self.ready_for_data().saturating_sub(self.low_water()) as u64 / SPARE_PART;
        let buckets = self.lists.ready(Reserve::MovingGc).len() as u64 + spare;
        Chooser {
            next: self.config.first_bucket,
            budget_sectors: buckets * u64::from(self.config.bucket_sectors),
            best: BTreeMap::new(),
            live_sectors: 0,
        }
    }

    /// Looks at up to `count` more buckets; says whether all were looked at.
    pub fn choose_some(&self, chooser: &mut Chooser, count: u64) -> bool {
        let end = (chooser.next.saturating_add(count)).min(self.config.nbuckets);
        for nr in (chooser.next..end).map(BucketNr) {
            if self.is_worth_moving(nr) {
                let bucket = self.bucket(nr);
                let entry = (bucket.r#gen, bucket.live.get());
                chooser.offer((self.gain_of(nr), nr.0), entry);
            }
        }
        chooser.next = end;
        end == self.config.nbuckets
    }

    /// What was found, if moving it gains anything: what is live takes fewer buckets than it is in now, even if the last one of each
    /// kind of data is not filled. Without that the same data would go round for ever.
    pub fn chosen(&self, chooser: Chooser) -> Chosen {
        let taken = chooser
            .live_sectors
            .div_ceil(u64::from(self.config.bucket_sectors));
        if (chooser.best.len() as u64) < taken + KINDS {
            return Chosen::default();
        }
        let gens = chooser.best.iter();
        Chosen {
            gens: gens.map(|((_, nr), (r#gen, _))| (*nr, *r#gen)).collect(),
            bucket_sectors: self.config.bucket_sectors,
        }
    }

    /// Whether a chosen bucket holds nothing any more.
    pub fn is_emptied(&self, nr: BucketNr, r#gen: Gen) -> bool {
        let bucket = self.bucket(nr);
        bucket.r#gen != r#gen || bucket.live.get() == 0
    }

    /// No more than half of it is live, and without being moved that would keep the bucket, or would be missed.
    fn is_worth_moving(&self, nr: BucketNr) -> bool {
        let bucket = self.bucket(nr);
        let live = bucket.live.get();
        bucket.place() == Place::Idle
            && bucket.pin == 0
            && live > 0
            && u64::from(live) * 100
                <= u64::from(self.config.bucket_sectors) * moving_live_percent()
            && bucket.may_increment()
            && (bucket.dirty.get() > 0 || self.prio_of(nr) > PRIO_FRESH - RECENT_STEPS)
    }

    fn gain_of(&self, nr: BucketNr) -> u64 {
        let bucket: &Bucket = self.bucket(nr);
        let live = u64::from(bucket.live.get());
        let dead = u64::from(self.config.bucket_sectors) - live;
        let age = u64::from(PRIO_FRESH.saturating_sub(self.prio_of(nr))) + 1;
        // Sectors and ages have 16 bits each.
        ((dead * age) << 16) / live
    }

    /// Room for data that is moved: its own open bucket, and a new one out of the reserve that is there for it. `None`: there is none now.
    ///
    /// Of what everybody shares it takes only what is not missed, and nothing at all if `reserve_only`.
    pub fn allocate_moving(
        &mut self,
        inode: u32,
        start: u64,
        sectors: u64,
        kind: Data,
        reserve_only: bool,
    ) -> Option<Placement> {
        let index = match self.open.slot_with_space(STREAM, kind) {
            Some(index) => index,
            None => {
                let has_spare = self.ready_for_data() > self.low_water();
                let bucket = if has_spare && !reserve_only {
                    self.take_data(true)
                } else if !self.lists.unused.is_empty()
                    || mutations::is(Mutation::AllocWriterHasNoReserve)
                {
                    // Unused buckets fill the reserve up again (ALLOC-7), so taking it would take those.
                    None
                } else {
                    self.lists.pop_ready(Reserve::MovingGc)
                };
                let Some(bucket) = bucket else {
                    self.trace_failure(Reserve::MovingGc);
                    return None;
                };
                let nr = bucket.nr();
                let index = self.open.slot_for(STREAM, kind);
                self.attach(index, bucket, kind);
                self.trace_allocation(nr, Reserve::MovingGc);
                index
            }
        };
        let placement = self.put(index, (inode, start, sectors), STREAM);
        self.top_up();
        Some(placement)
    }
}

impl Chooser {
    fn offer(&mut self, key: (u64, u64), (r#gen, live): (Gen, u32)) {
        self.best.insert(key, (r#gen, live));
        self.live_sectors += u64::from(live);
        while self.live_sectors > self.budget_sectors || self.best.len() > CHOSEN_MAX {
            let Some((_, (_, live))) = self.best.pop_first() else {
                return;
            };
            self.live_sectors -= u64::from(live);
        }
    }
}

#[cfg(test)]
#[path = "moving_tests.rs"]
mod tests;
