//! The invariants of the module above, checked the slow way: after every step of its tests, and now and then in simulation.

use std::collections::BTreeMap;

use brigade_format::BucketNr;

use super::Allocator;
use super::bucket::{Counts, Place};
use super::lists::Reserve;
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
    }

    /// The same, with the batch that is under way, if one is.
    #[cfg(test)]
    pub(super) fn check(&self, batch: Option<&Batch>) {
        self.check_partition(batch, false);
        self.check_counters();
        self.check_open();
        self.check_reserves();
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
            .abandoned
            .iter()
            .for_each(|bucket: &Incoming| note(bucket.nr(), Place::Incoming));
        batch
            .into_iter()
            .flat_map(Batch::buckets)
            .for_each(|nr| note(nr, Place::Incoming));
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
            let expected = match bucket.place {
                Place::Fixed | Place::Idle | Place::Metadata => None,
                place => Some(place),
            };
            let nr = BucketNr(index as u64);
            if is_batch_elsewhere && bucket.place == Place::Incoming {
                continue;
            }
            assert_eq!(listed.get(&nr).copied(), expected, "ALLOC-1: {nr:?}");
            assert_eq!(
                bucket.place == Place::Fixed,
                nr.0 < self.config.first_bucket,
                "ALLOC-1: fixed"
            );
        }
    }

    fn check_counters(&self) {
        for bucket in &self.buckets {
            assert!(bucket.live_sectors >= bucket.dirty_sectors, "ALLOC-4");
            assert!(
                bucket.holds_data() || bucket.live_sectors == 0,
                "ALLOC-4: {bucket:?}"
            );
            assert!(
                bucket.gen_age() <= super::GEN_AGE_MAX
                    && bucket.table_lag() <= super::TABLE_LAG_MAX,
                "ALLOC-5"
            );
            assert!(bucket.gen_age() <= self.need_gc && bucket.table_lag() <= self.table_lag);
        }
        assert_eq!(Counts::of(&self.buckets), self.counts, "ALLOC-8");
    }

    fn check_open(&self) {
        for slot in &self.open.slots {
            assert_eq!(slot.bucket.is_some(), slot.sectors_free > 0, "ALLOC-6");
            if let Some(nr) = slot.bucket {
                assert!(self.bucket(nr).pin > 0, "ALLOC-6");
            }
        }
    }

    fn check_reserves(&self) {
        assert!(
            self.lists.unused.is_empty() || self.lists.hungry_reserve().is_none(),
            "ALLOC-7"
        );
    }
}
