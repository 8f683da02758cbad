//! Who is recycled next.
//!
//! LRU weighs recency with live sectors: the oldest data is worth an eighth of fresh data per sector, and a bucket
//! without live sectors is worth nothing and goes first; of equals the one with the lowest number. (What has live sectors but
//! is so old that its value is cut off at zero goes by recency before that.) FIFO goes round by number. RANDOM draws numbers; when the dice show too many that may not go, the next one from the last draw on goes.
//!
//! All of them take victims out of `order`, a few at a time, in O(log n) each.

use crate::limits::gen_age_max;
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use brigade_format::BucketNr;

use super::bucket::{Flag, Place};
use super::order::{Head, Order};
use super::{Allocator, PRIO_FRESH};

/// Draws for one victim before the next best is taken.
const DRAWS: usize = 16;

/// The policies of the superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replacement {
    /// Least valuable first.
    Lru,
    /// In order of bucket number, round and round.
    Fifo,
    /// Any.
    Random,
}

/// What one step of choosing victims came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gathered {
    /// Victims.
    pub taken: usize,
    /// There are no more at the moment.
    pub is_over: bool,
}

/// How often a bucket came up as victim and was not taken, by reason.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Refusals {
    /// Some of its data is dirty.
    pub dirty: u64,
    /// Somebody holds it.
    pub pinned: u64,
    /// Its gen is too far ahead of the oldest pointer: a gc has to come first.
    pub gen_age: u64,
    /// Its gen is too far ahead of the durable table.
    pub table_lag: u64,
    /// It was used since.
    pub touched: u64,
}

/// What a group offers: by value and, of what is worth nothing, recency; then number. And the group.
type Offer = Reverse<((u64, u16), u32, u32)>;

impl Allocator {
    /// Takes effect with the next victim. Puts all buckets into a new order.
    pub fn set_replacement(&mut self, replacement: Replacement) {
        let is_by_number = replacement != Replacement::Lru;
        let was_by_number = self.config.replacement != Replacement::Lru;
        if mutations::is(Mutation::AllocPolicyStuck) {
            return;
        }
        self.config.replacement = replacement;
        if !self.started || is_by_number == was_by_number {
            return;
        }
        // While leaves are counted nothing is in order, and the end of counting puts everything there.
        match self.keeps_order() {
            true => self.reorder(),
            false => self.begin_order(),
        }
    }

    pub(super) fn reorder(&mut self) {
        self.begin_order();
        self.order.fill(&mut self.buckets);
    }

    /// An order that nothing is in.
    pub(super) fn begin_order(&mut self) {
        let is_by_number = self.config.replacement != Replacement::Lru;
        self.order = Order::new(self.config.bucket_sectors, is_by_number);
        self.order.age = self.ageing.steps();
    }

    /// How often buckets came up and were not taken.
    pub fn refusals(&self) -> Refusals {
        self.refusals
    }

    /// Takes up to `count` victims out of the order, in the order in which they go, and hands each to `take`.
    pub(super) fn victims(
        &mut self,
        count: usize,
        random: impl FnMut() -> u64,
        take: impl FnMut(&mut Allocator, BucketNr),
    ) -> Gathered {
        if self.is_counting() {
            return Gathered::new(0, true);
        }
        self.unpark_some();
        match self.config.replacement {
            Replacement::Lru => self.lru(count, take),
            Replacement::Fifo => {
                marks::hit(Mark::AllocPolicyFifo);
                self.fifo(count, take)
            }
            Replacement::Random => {
                marks::hit(Mark::AllocPolicyRandom);
                self.random(count, random, take)
            }
        }
    }

    /// Value of data of this recency, per sector. Signed and clamped: a recency below the lowest one of the last step must
    /// not wrap.
    fn worth(&self, recency: u16) -> u64 {
        let min_prio = i64::from(self.ageing.min_prio.min(PRIO_FRESH));
        let floor = (i64::from(PRIO_FRESH) - min_prio) / 8;
        let floor = floor * i64::from(!mutations::is(Mutation::AllocFloorless));
        (i64::from(recency) - min_prio + floor).max(0) as u64
    }

    /// Whether one more bucket may be looked at in this step.
    fn look(&mut self) -> bool {
        let may_look = self.looks_left > 0;
        self.looks_left -= usize::from(may_look);
        may_look
    }

    fn lru(&mut self, count: usize, mut take: impl FnMut(&mut Allocator, BucketNr)) -> Gathered {
        if count == 0 {
            return Gathered::new(0, false);
        }
        let mut offers = self.offers(count);
        let mut taken = 0;
        while let Some(Reverse((value, nr, group))) = offers.pop() {
            if !self.look() {
                return Gathered::new(taken, false);
            }
            let Some(head) = self.order.head_of(group) else {
                continue;
            };
            debug_assert_eq!(head.nr, nr);
            if let Some(past) = self.order.next_past(&self.buckets, head) {
                // It came to zero without being told.
                self.order.lapse(&mut self.buckets, past);
            } else if self.refuse(nr) {
            } else if self.value_of(nr) != value && !mutations::is(Mutation::AllocTrustsOrder) {
                self.refusals.touched += 1;
                self.order.renew(&mut self.buckets, nr);
            } else {
                self.take_out(nr);
                take(self, BucketNr(u64::from(nr)));
                taken += 1;
                if taken == count {
                    return Gathered::new(taken, false);
                }
            }
            let next = self.order.head_of(group);
            offers.extend(next.map(|head| self.offer(head)));
        }
        Gathered::new(taken, true)
    }

    /// What all groups offer; the records of the best `count` are on their way to the processor.
    fn offers(&self, count: usize) -> BinaryHeap<Offer> {
        let mut offers: Vec<Offer> = self.order.heads().map(|head| self.offer(head)).collect();
        let best = count.min(offers.len());
        let by_value = |a: &Offer, b: &Offer| b.cmp(a);
        if best < offers.len() {
            offers.select_nth_unstable_by(best, by_value);
        }
        offers[..best].sort_unstable_by(by_value);
        // Most victims come from the best groups.
        let warm = |(at, Reverse((_, _, group))): (usize, &Offer)| {
            let each = (count >> at.min(16)).max(2);
            self.order.warm(&self.buckets, *group, each)
        };
        let best = offers[..best].iter().enumerate();
        std::hint::black_box(best.map(warm).sum::<u64>());
        BinaryHeap::from(offers)
    }

    fn offer(&self, head: Head) -> Offer {
        Reverse((self.value(head.recency, head.group), head.nr, head.group))
    }

    pub(super) fn value(&self, recency: u16, live: u32) -> (u64, u16) {
        let ignored = mutations::is(Mutation::AllocIgnoresLive);
        let live = if ignored { live.min(1) } else { live };
        match self.worth(recency) * u64::from(live) {
            0 if live > 0 => (0, recency),
            value => (value, 0),
        }
    }

    /// The value of a bucket now.
    fn value_of(&self, nr: u32) -> (u64, u16) {
        let live = self.buckets[nr as usize].live.get();
        let recency = self.prio_of(BucketNr(u64::from(nr)));
        self.value(recency, self.order.group_of(live))
    }

    fn take_out(&mut self, nr: u32) {
        let live = self.buckets[nr as usize].live.get();
        self.order.remove(&mut self.buckets, nr, live);
    }

    /// Takes a bucket out of the order that may not be recycled now; says whether that is so. It comes back when it may.
    fn refuse(&mut self, nr: u32) -> bool {
        let bucket = self.buckets[nr as usize];
        if bucket.is_eligible() {
            return false;
        }
        self.take_out(nr);
        if !bucket.is_let_go() {
            let is_dirty = bucket.dirty.get() > 0;
            self.refusals.dirty += u64::from(is_dirty);
            self.refusals.pinned += u64::from(!is_dirty);
            return true;
        }
        let is_old = bucket.gen_age() >= gen_age_max(super::GEN_AGE_MAX);
        self.refusals.gen_age += u64::from(is_old);
        self.refusals.table_lag += u64::from(!is_old);
        self.buckets[nr as usize].set(Flag::Parked, true);
        self.parked.push_back(nr);
        true
    }

    /// Gens have room again: who waited for that comes back into the order, before the next victims are chosen.
    pub(super) fn unpark(&mut self) {
        if !mutations::is(Mutation::AllocParkedForgotten) {
            self.unpark_left = self.parked.len();
        }
    }

    fn unpark_some(&mut self) {
        while self.unpark_left > 0 && self.look() {
            self.unpark_left -= 1;
            let nr = self.parked.pop_front().expect("counted");
            let bucket = &mut self.buckets[nr as usize];
            if bucket.place() == Place::Idle && !bucket.may_increment() {
                self.parked.push_back(nr);
                continue;
            }
            bucket.set(Flag::Parked, false);
            if bucket.is_let_go() && !bucket.is(Flag::Ordered) {
                self.order.insert(&mut self.buckets, nr);
            }
        }
    }

    fn fifo(&mut self, count: usize, mut take: impl FnMut(&mut Allocator, BucketNr)) -> Gathered {
        let (mut taken, start) = (0, self.fifo_cursor);
        while taken < count
            && let Some(nr) = self.next_from(self.fifo_cursor)
        {
            if !self.look() {
                return Gathered::new(taken, false);
            }
            if !mutations::is(Mutation::AllocFifoRestarts) {
                self.fifo_cursor = nr + 1;
            }
            if !self.refuse(nr) {
                self.take_out(nr);
                take(self, BucketNr(u64::from(nr)));
                taken += 1;
            }
        }
        if taken < count {
            // All the way round.
            self.fifo_cursor = start;
        }
        Gathered::new(taken, taken < count)
    }

    /// The first in an order by number, from a number on and round.
    fn next_from(&self, least: u32) -> Option<u32> {
        let next = self.order.next_number(&self.buckets, least);
        next.or_else(|| self.order.next_number(&self.buckets, 0))
    }

    fn random(
        &mut self,
        count: usize,
        mut random: impl FnMut() -> u64,
        mut take: impl FnMut(&mut Allocator, BucketNr),
    ) -> Gathered {
        let (first, nbuckets) = (self.config.first_bucket, self.config.nbuckets);
        let mut taken = 0;
        while taken < count && self.order.len() > 0 {
            let mut drawn = 0;
            let mut found = None;
            for _ in 0..DRAWS {
                drawn = (first + random() % (nbuckets - first)) as u32;
                if mutations::is(Mutation::AllocRandomFixed) {
                    drawn = first as u32;
                }
                let bucket = &self.buckets[drawn as usize];
                if bucket.is(Flag::Ordered) && bucket.is_eligible() {
                    found = Some(drawn);
                    break;
                }
            }
            while found.is_none()
                && let Some(nr) = self.next_from(drawn)
            {
                if !self.look() {
                    return Gathered::new(taken, false);
                }
                found = Some(nr).filter(|nr| !self.refuse(*nr));
            }
            let Some(nr) = found else { break };
            self.take_out(nr);
            take(self, BucketNr(u64::from(nr)));
            taken += 1;
        }
        Gathered::new(taken, taken < count)
    }
}

impl Gathered {
    fn new(taken: usize, is_over: bool) -> Gathered {
        Gathered { taken, is_over }
    }
}
