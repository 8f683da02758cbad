//! The invariants of the module above, checked the slow way: after every step of its tests, and now and then in simulation.

use std::collections::BTreeMap;

use crate::mutations::{self, Mutation};
use brigade_format::BucketNr;

use super::Allocator;
use super::bucket::{Bucket, Counts, Flag, Place};
use super::lists::Reserve;
use super::order::recency_at;
use super::tokens::{Batch, Incoming};

const RESERVES: [Reserve; 4] = [
    Reserve::Btree,
    Reserve::Prio,
    Reserve::MovingGc,
    Reserve::Normal,
];

impl Allocator {
    /// Panics with the number of the first invariant that does not hold. A batch may be under way.
    pub fn audit(&self) {
        self.check_partition(None, true);
        self.check_counters();
        self.check_open();
        self.check_reserves();
        self.check_order();
        self.check_bad();
    }

    /// The same, with the batch that is under way, if one is.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check(&self, batch: Option<&Batch>) {
        self.check_partition(batch, false);
        self.check_counters();
        self.check_open();
        self.check_reserves();
        self.check_order();
        self.check_bad();
    }

    fn check_partition(&self, batch: Option<&Batch>, is_batch_elsewhere: bool) {
        let mut listed: BTreeMap<BucketNr, Place> = BTreeMap::new();
        let mut note = |nr, place| {
            assert_eq!(
                listed.insert(nr, place),
                None,
                "ALLOC-1: {nr:?} is listed twice"
            )
        };
        self.lists
            .unused
            .iter()
            .for_each(|bucket| note(bucket.nr(), Place::Unused));
        self.lists
            .incoming
            .iter()
            .for_each(|bucket: &Incoming| note(bucket.nr(), Place::Incoming));
        batch
            .into_iter()
            .flat_map(Batch::buckets)
            .for_each(|nr| note(nr, Place::Incoming));
        let to_discard = self.lists.to_discard.iter();
        to_discard.for_each(|bucket| note(bucket.nr(), Place::Incoming));
        let whole = self.lists.whole.iter();
        whole.for_each(|nr| note(*nr, Place::Open));
        for reserve in RESERVES {
            self.lists
                .ready(reserve)
                .iter()
                .for_each(|bucket| note(bucket.nr(), Place::Ready));
        }
        self.open
            .slots
            .iter()
            .filter_map(|slot| slot.bucket)
            .for_each(|nr| note(nr, Place::Open));
        for (index, bucket) in self.buckets.iter().enumerate() {
            let expected = match bucket.place() {
                Place::Fixed | Place::Idle | Place::Metadata => None,
                place => Some(place),
            };
            let nr = BucketNr(index as u64);
            if is_batch_elsewhere && bucket.place() == Place::Incoming {
                continue;
            }
            assert_eq!(listed.get(&nr).copied(), expected, "ALLOC-1: {nr:?}");
            assert_eq!(
                bucket.place() == Place::Fixed,
                nr.0 < self.config.first_bucket,
                "ALLOC-1: fixed"
            );
        }
    }

    fn check_counters(&self) {
        for bucket in &self.buckets {
            assert!(bucket.live.get() >= bucket.dirty.get(), "ALLOC-4");
            assert!(
                bucket.holds_data() || bucket.live.get() == 0,
                "ALLOC-4: {bucket:?}"
            );
            assert!(
                bucket.gen_age() <= super::GEN_AGE_MAX
                    && bucket.table_lag() <= super::TABLE_LAG_MAX,
                "ALLOC-5"
            );
            assert!(
                (self.is_counting() || bucket.gen_age() <= self.need_gc)
                    && bucket.table_lag() <= self.table_lag
            );
        }
        assert_eq!(Counts::of(&self.buckets), self.counts, "ALLOC-8");
        let live = |bucket: &Bucket| u64::from(bucket.live.get());
        let live: u64 = self.buckets.iter().map(live).sum();
        assert_eq!(live, self.live_sectors, "ALLOC-8");
    }

    /// A bucket that was just taken is in no list any more.
    pub(super) fn check_handed_out(&self, nr: BucketNr) {
        if mutations::is(Mutation::AllocChecksNothing) {
            return;
        }
        let ready = RESERVES
            .into_iter()
            .flat_map(|reserve| self.lists.ready(reserve));
        let to_discard = self.lists.to_discard.iter();
        let mut ready = ready.chain(to_discard).map(|bucket| bucket.nr());
        assert!(
            !ready.any(|other| other == nr),
            "ALLOC-1: {nr:?} is still ready"
        );
        let unused = self.lists.unused.iter().map(|bucket| bucket.nr());
        let mut other = unused.chain(self.lists.incoming.iter().map(Incoming::nr));
        assert!(
            !other.any(|other| other == nr),
            "ALLOC-1: {nr:?} is still listed"
        );
        let is_ordered = self.bucket(nr).is(Flag::Ordered);
        assert!(!is_ordered, "ALLOC-9: {nr:?} is still a victim");
    }

    fn check_open(&self) {
        for slot in &self.open.slots {
            assert_eq!(slot.bucket.is_some(), slot.sectors_free > 0, "ALLOC-6");
            if let Some(nr) = slot.bucket {
                assert!(self.bucket(nr).pin > 0, "ALLOC-6");
            }
        }
    }

    fn check_order(&self) {
        self.order.check(&self.buckets);
        let age = self.ageing.age();
        let mut counts: BTreeMap<u16, u32> = BTreeMap::new();
        let mut lagging: Vec<bool> = vec![false; self.buckets.len()];
        for nr in &self.lagging {
            assert!(
                !std::mem::replace(&mut lagging[*nr as usize], true),
                "listed twice"
            );
        }
        for (nr, bucket) in self.buckets.iter().enumerate() {
            let is_in = bucket.is(Flag::Ordered);
            let is_kept = !self.is_counting();
            let must_be_in = is_kept && bucket.is_let_go() && !bucket.is(Flag::Parked);
            assert!(is_in || !must_be_in, "ALLOC-9: {nr} is missing");
            assert!(!is_in || bucket.place() == Place::Idle, "ALLOC-9: {nr}");
            let recency = self.prio_of(BucketNr(nr as u64));
            let known = recency_at(bucket.ordered, age);
            let is_bound = bucket.is(Flag::Lapsed) || known <= recency;
            assert!(!is_in || is_bound, "ALLOC-9: {nr} is older than {known}");
            if bucket.ages() && recency > 0 {
                *counts.entry(bucket.stamp).or_default() += 1;
            }
            assert!(!lagging[nr] || bucket.table_lag() > 0);
        }
        assert!(
            counts.into_iter().eq(self.ageing.counts()),
            "ALLOC-8: recencies"
        );
    }

    fn check_reserves(&self) {
        assert!(
            self.lists.unused.is_empty() || self.lists.hungry_reserve().is_none(),
            "ALLOC-7"
        );
    }
}
