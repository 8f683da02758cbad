//! Buckets for one key on several cache devices.
//!
//! A key may point to copies of its data on up to eight devices of a set, never two on one. The devices are asked in order of
//! preference: the one with the largest share of its buckets available first, then the one with the oldest data, then by
//! number. Either all copies get their bucket or none does, and then no trace is left of the attempt: nothing was ever
//! stored that names the buckets, so they are unused again, with no table write.
//!
//! Kernel 6.12 and the sets that Brigade opens have one device, where this is one allocation; all callers are in one thread,
//! so there is nothing to lock and one form is enough.

use crate::mutations::{self, Mutation};
use brigade_format::{BucketNr, Gen, Ptr};

use super::bucket::Place;
use super::lists::Reserve;
use super::{Allocator, PRIO_FRESH};

/// Devices a key may point to.
pub const COPIES_MAX: usize = 8;

/// A whole bucket, pinned once for the key that is going to point to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WholeBucket {
    /// The bucket.
    pub nr: BucketNr,
    /// The gen that pointers to it carry.
    pub r#gen: Gen,
    /// Whom it was taken for.
    pub reserve: Reserve,
}

/// One of the pointers of a key to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// Number of the device in the set, which is its place in the slice.
    pub device: usize,
    /// Its bucket there.
    pub bucket: WholeBucket,
    /// To its first sector.
    pub ptr: Ptr,
}

/// A bucket on each of `count` devices, or nothing.
pub fn allocate_set(
    devices: &mut [Allocator],
    reserve: Reserve,
    count: usize,
) -> Option<Vec<Copy>> {
    assert!(
        (1..=COPIES_MAX.min(devices.len())).contains(&count),
        "a key has one to eight copies, each on its own device"
    );
    let mut copies = Vec::with_capacity(count);
    for device in preference(devices).into_iter().take(count) {
        let same = mutations::is(Mutation::AllocCopiesTogether);
        let device = if same { 0 } else { device };
        let Some(bucket) = devices[device].take_whole(reserve) else {
            if !mutations::is(Mutation::AllocNoUnwind) {
                give_back(devices, &copies);
            }
            return None;
        };
        let sector = bucket.nr.0 * u64::from(devices[device].config.bucket_sectors);
        copies.push(Copy {
            device,
            bucket,
            ptr: Ptr::new(sector, bucket.r#gen).on_device(device as u16),
        });
    }
    Some(copies)
}

/// The key came to nothing: its buckets are unused again.
pub fn give_back(devices: &mut [Allocator], copies: &[Copy]) {
    for copy in copies {
        devices[copy.device].give_back_whole(copy.bucket);
    }
}

/// Devices in the order in which they should be asked.
fn preference(devices: &[Allocator]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..devices.len()).collect();
    order.sort_by_key(|at| {
        let device = &devices[*at];
        let stats = device.stats();
        // In thousandths, so that devices of about the same use take turns by age.
        let used = (stats.total - stats.available) * 1000 / stats.total;
        let any = mutations::is(Mutation::AllocNoPreference);
        let used = if any { 0 } else { used };
        (used, device.ageing.min_prio, *at)
    });
    order
}

impl Allocator {
    /// A bucket for one user, outside of the open buckets.
    pub fn take_whole(&mut self, reserve: Reserve) -> Option<WholeBucket> {
        if matches!(reserve, Reserve::Btree | Reserve::Prio) {
            let bucket = self.take_metadata(reserve)?;
            self.pin(bucket.nr);
            let (nr, r#gen) = (bucket.nr, bucket.r#gen);
            return Some(WholeBucket { nr, r#gen, reserve });
        }
        let nr = self.take_data(reserve == Reserve::MovingGc)?.nr();
        self.go(nr, Place::Ready, Place::Open);
        self.set_prio(nr, PRIO_FRESH);
        self.pin(nr);
        self.lists.whole.insert(nr);
        let r#gen = self.gen_of(nr);
        Some(WholeBucket { nr, r#gen, reserve })
    }

    /// Its key is in the index: the pin of the key ends, and nothing more is put into the bucket.
    pub fn release_whole(&mut self, bucket: WholeBucket) {
        if self.lists.whole.remove(&bucket.nr) {
            self.go(bucket.nr, Place::Open, Place::Idle);
        }
        self.unpin(bucket.nr);
    }

    /// It was not used, and nothing names it.
    pub fn give_back_whole(&mut self, bucket: WholeBucket) {
        self.unpin(bucket.nr);
        if self.lists.whole.remove(&bucket.nr) {
            assert_eq!(self.live_of(bucket.nr), (0, 0), "ALLOC-3: it is named");
            self.enter_unused(bucket.nr, Place::Open);
            self.top_up();
        } else {
            self.free_metadata(bucket.nr);
        }
    }
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
