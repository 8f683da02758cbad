//! The full-scan allocator that Brigade's is compared with: what must be known of a bucket and no more, a bounded heap over a
//! scan of all buckets for every refill, and a loop over all buckets for every step of ageing.

use crate::world::{Size, State};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

const PRIO_FRESH: u16 = 32768;
const PRIO_METADATA: u16 = 65535;
const GEN_AGE_MAX: u8 = 94;

/// A bucket in 12 bytes.
#[derive(Clone, Copy)]
struct Bucket {
    pin: i32,
    prio: u16,
    r#gen: u8,
    last_gc: u8,
    live: u16,
    /// Nothing of it is clean data.
    is_dirty: bool,
}

/// See the module documentation.
pub struct Twin {
    buckets: Vec<Bucket>,
    first: usize,
    min_prio: u16,
}

impl Twin {
    /// The same cache as [`crate::world::World::load`] makes.
    pub fn load(size: &Size, state: impl Fn(u64) -> State) -> Twin {
        let first = size.config().first_bucket;
        let bucket = |nr: u64| {
            let state = state(nr);
            Bucket {
                pin: i32::from(!state.is_named || nr < first),
                prio: state.prio,
                r#gen: state.r#gen,
                last_gc: state.r#gen,
                live: state.live as u16,
                is_dirty: state.is_dirty,
            }
        };
        Twin {
            buckets: (0..size.nbuckets).map(bucket).collect(),
            first: first as usize,
            min_prio: 0,
        }
    }

    /// The least valuable buckets, least first, recycled: a refill.
    pub fn refill(&mut self, count: usize) -> Vec<u32> {
        let capacity = 2 * count;
        let mut heap: BinaryHeap<(u64, u32)> = BinaryHeap::with_capacity(capacity + 1);
        let floor = (u64::from(PRIO_FRESH) - u64::from(self.min_prio)) / 8;
        for (nr, bucket) in (self.first as u32..).zip(&self.buckets[self.first..]) {
            let age = bucket.r#gen.wrapping_sub(bucket.last_gc);
            if bucket.is_dirty || bucket.pin != 0 || age >= GEN_AGE_MAX {
                continue;
            }
            let worth = u64::from(bucket.prio.saturating_sub(self.min_prio)) + floor;
            let value = worth * u64::from(bucket.live);
            if heap.len() < capacity {
                heap.push((value, nr));
            } else if let Some(mut top) = heap.peek_mut()
                && value < top.0
            {
                *top = (value, nr);
            }
        }
        let mut smallest: BinaryHeap<Reverse<(u64, u32)>> = heap.into_iter().map(Reverse).collect();
        let mut victims = Vec::with_capacity(count);
        while victims.len() < count
            && let Some(Reverse((_, nr))) = smallest.pop()
        {
            self.invalidate(nr);
            victims.push(nr);
        }
        victims
    }

    fn invalidate(&mut self, nr: u32) {
        let bucket = &mut self.buckets[nr as usize];
        bucket.r#gen = bucket.r#gen.wrapping_add(1);
        bucket.prio = PRIO_FRESH;
        bucket.pin += 1;
    }

    /// A step of ageing.
    pub fn rescale(&mut self) {
        self.min_prio = PRIO_METADATA;
        for bucket in &mut self.buckets[self.first..] {
            if bucket.prio != 0 && bucket.prio != PRIO_METADATA && bucket.pin == 0 {
                bucket.prio -= 1;
                self.min_prio = self.min_prio.min(bucket.prio);
            }
        }
        self.min_prio = self.min_prio.min(PRIO_FRESH);
    }

    /// A read was served from a bucket.
    pub fn touch(&mut self, nr: u64) {
        self.buckets[nr as usize].prio = PRIO_FRESH;
    }
}
