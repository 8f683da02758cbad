//! The bucket allocator: who owns each bucket, which ones may be taken over, and when a gen must be durable first.
//!
//! Cached data is never deleted piece by piece. Adding one to a bucket's gen makes every pointer into it stale at
//! once; the only disk work is to make the new gen durable before the bucket is overwritten. This module decides and
//! keeps count. It is pure: no clock, no I/O, no knowledge of btree or journal; a background task above writes the
//! gen table and tells the outcome.
//!
//! Unlike the kernel there is no mark pass: live and dirty sectors of every bucket are counted as keys come and go, so
//! what may be recycled is always known exactly, and a garbage collection only has to rewrite leaves whose oldest
//! pointers fall behind.
//!
//! # Life cycle
//!
//! ```text
//!                  gather              batch_durable            allocate
//!      Idle ───────────────► Incoming ───────────────► Ready ───────────────► Open
//!   data or nothing          gen + 1                     │ ▲                    │
//!       ▲   ▲                 │   ▲                      │ │                    │ full, or seal
//!       │   │                 └───┘ abandon_batch        │ │ gen + 1            │
//!       │   └────────────────────────────────────────────┼─┼────────────────────┘
//!       │                                  take_metadata │ │ top_up, allocate
//!       │ too far ahead                                  ▼ │
//!       └────────────────── Unused ◄──────────────── Metadata
//!                              │     free_metadata       ▲
//!                              └──────── gen + 1 ────────┘
//!                                     take_metadata
//! ```
//!
//! Fixed buckets (below the first bucket) never move. [`Allocator::start`] sorts what was loaded: metadata stays,
//! buckets nothing names become Unused, all others Idle.
//!
//! # Invariants
//!
//! * ALLOC-1 (partition): every bucket has exactly one place; it is in the list its place names, once, and in no other.
//! * ALLOC-2 (durable before reuse): a bucket leaves Incoming only with a [`Batch`] whose table is durable. Buckets
//!   get to Ready in no other way than this or out of Unused; the types in `tokens` have no other constructors.
//! * ALLOC-3: nothing stored names an Unused bucket with its current gen.
//! * ALLOC-4: live sectors ≥ dirty sectors, and only Idle and Open buckets have any. They count exactly the pointers
//!   that carry the bucket's current gen.
//! * ALLOC-5: a victim was Idle, without dirty sectors and without pins, its gen less than 94 ahead of the oldest
//!   pointer and less than 64 ahead of the durable table (docs/format.md 6.3, 6.5).
//! * ALLOC-6: an open bucket is pinned by its slot while it has space.
//! * ALLOC-7: while Unused holds anything, the btree, table and moving reserves are full; data never takes from the
//!   btree and table reserves.
//! * ALLOC-8: the totals of [`Stats`] equal a recount.
//! * ALLOC-9: whatever may be recycled is in the order of victims, except who waits for a table or a gc; it is there by its
//!   live sectors, and by a recency that is not above its own.
//! * ALLOC-10: a bucket that was set aside as bad keeps its place and a pin for good.
//!
//! What must not be recycled for reasons this module cannot see, the caller pins ([`Allocator::pin`]): a leaf write
//! under way that carries an unjournalled change (docs/format.md 6.5 (a)), dirty keys in the replay range (6.5 (b)),
//! keys not yet inserted, reads under way.

mod ageing;
mod bad;
mod batch;
mod bucket;
mod counting;
pub mod devices;
mod discard;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gc;
mod lists;
mod metadata;
mod moving;
mod open;
mod order;
mod priorities;
mod tokens;
mod victims;

#[cfg(test)]
mod catalogue_tests;
mod check;
#[cfg(test)]
mod rules_tests;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "fuzzing"))]
mod twin;

use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use brigade_format::{BucketNr, Gen, Ptr};
use std::collections::{BTreeSet, VecDeque};

use ageing::{Ageing, STAMP_PAST};
use bucket::{Bucket, Class, Counts, Flag, Place};
use counting::Counting;
use lists::Lists;
use open::OpenBuckets;
use order::{Order, past_at, recency_at};

pub use batch::Recycled;
pub use counting::PRIO_EMPTY;
pub use discard::Discarding;
pub use gc::GcBase;
pub use lists::{Reserve, Sizes};
pub use metadata::MetadataBucket;
pub use moving::{Chooser, Chosen};
pub use open::{Data, Placement};
pub use priorities::{Priorities, PriorityCount};
pub use tokens::{Batch, Releasing};
pub use victims::{Gathered, Refusals, Replacement};

/// Recency of a bucket just filled or hit.
pub const PRIO_FRESH: u16 = 32768;
/// Recency that marks metadata.
pub const PRIO_METADATA: u16 = 65535;
/// A bucket whose gen is this far ahead of its oldest pointer is not recycled (kernel: 96). A node's bucket gets one further when
/// the node is freed, whatever it was before, and a kernel shuts a set down at 97: it must find room for that.
pub const GEN_AGE_MAX: u8 = 94;
/// From this age on, leaves with old pointers should be rewritten in the background.
pub const GEN_AGE_WANTS_GC: u8 = 64;
/// Victims to be chosen in one synchronous step: some tens of microseconds.
pub const GATHER_STEP: usize = 32;
/// Buckets to be looked at for them.
pub const LOOKS_STEP: usize = 128;
/// No gen may be further than this ahead of the durable table (docs/format.md 6.3).
pub const TABLE_LAG_MAX: u8 = 64;
/// From this lag on a table write is wanted even without victims.
pub const TABLE_LAG_WANTS_WRITE: u8 = 48;

/// What the allocator needs to know about the cache device.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// First bucket that may hold anything but the superblock area.
    pub first_bucket: u64,
    /// Number of buckets, fixed ones included.
    pub nbuckets: u64,
    /// Bucket size.
    pub bucket_sectors: u32,
    /// Smallest unit handed out; a shorter rest of a bucket is wasted.
    pub block_sectors: u32,
    /// Buckets one gen table takes.
    pub table_buckets: u32,
    /// Journal buckets; replay may need as many btree nodes.
    pub journal_buckets: u32,
    /// Who goes first.
    pub replacement: Replacement,
}

/// Totals over all buckets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stats {
    /// All buckets of the device.
    pub total: u64,
    /// Unused, incoming and ready ones.
    pub free: u64,
    /// Holding clean data or nothing.
    pub clean: u64,
    /// Holding some dirty data.
    pub dirty: u64,
    /// Btree nodes, gen tables, journal and everything below the first bucket.
    pub metadata: u64,
    /// Free ones and clean ones that are not being filled: what could be had without writing anything back.
    pub available: u64,
    /// Share of buckets that is not available.
    pub in_use_percent: u8,
}

/// The allocator of one cache device. See the module's text.
#[cfg_attr(test, derive(Clone))]
pub struct Allocator {
    config: Config,
    buckets: Vec<Bucket>,
    counts: Counts,
    lists: Lists,
    open: OpenBuckets,
    started: bool,
    /// Gens have to be durable before buckets are reused. Only a set that never ran can do without.
    is_synchronous: bool,
    /// Recycled buckets are discarded before they are ready.
    discards: bool,
    /// Every bucket that is handed out is looked for in all lists.
    checks_everything: bool,
    batch_in_progress: bool,
    /// Tables that were begun since the set was opened, and the last of them that is durable.
    tables_begun: u64,
    tables_durable: u64,
    ageing: Ageing,
    order: Order,
    /// Where FIFO looks next.
    fifo_cursor: u32,
    /// Buckets that came up as victims when their gens had no room, see [`Flag::Parked`].
    parked: VecDeque<u32>,
    /// How many of them may have room now.
    unpark_left: usize,
    /// Buckets that may be looked at in this step of choosing victims.
    looks_left: usize,
    refusals: Refusals,
    /// Buckets whose gens are ahead of the durable table, but for those of a batch under way.
    lagging: Vec<u32>,
    /// [`Lists::taken`] when the batch under way began.
    taken_before: u64,
    /// Buckets taken while a table was written, lately.
    taken_lately: usize,
    /// Largest distance of any gen from its oldest pointer.
    need_gc: u8,
    /// The same, of gens that moved since a gc began to end.
    need_gc_since: u8,
    /// Largest distance of any gen from the durable table.
    table_lag: u8,
    /// The same, of those looked at, while it is found out anew.
    table_lag_next: u8,
    /// Leaves have yet to be counted.
    counting: Option<Counting>,
    /// Buckets that are bad.
    bad: BTreeSet<BucketNr>,
    live_sectors: u64,
    recycled: Recycled,
}

impl Allocator {
    /// An allocator that knows nothing yet: load it, then [`Allocator::start`].
    pub fn new(config: Config) -> Allocator {
        Allocator::with_sizes(config, Sizes::of(&config))
    }

    /// As [`Allocator::new`], with list sizes chosen by hand.
    pub fn with_sizes(config: Config, sizes: Sizes) -> Allocator {
        assert!(
            config.first_bucket < config.nbuckets,
            "a cache device needs buckets"
        );
        assert!(config.nbuckets < u64::from(u32::MAX), "too many buckets");
        assert!(0 < config.block_sectors && config.block_sectors <= config.bucket_sectors);
        let mut buckets = vec![Bucket::new(Place::Idle); config.nbuckets as usize];
        buckets[..config.first_bucket as usize].fill(Bucket::new(Place::Fixed));
        let counts = Counts::of(&buckets);
        Allocator {
            config,
            buckets,
            counts,
            lists: Lists::new(sizes),
            open: OpenBuckets::new(sizes.slots),
            started: false,
            is_synchronous: true,
            discards: false,
            checks_everything: false,
            batch_in_progress: false,
            tables_begun: 0,
            tables_durable: 0,
            ageing: Ageing::new(),
            order: Order::new(config.bucket_sectors, false),
            fifo_cursor: 0,
            parked: VecDeque::new(),
            unpark_left: 0,
            looks_left: 0,
            refusals: Refusals::default(),
            lagging: Vec::new(),
            taken_before: 0,
            taken_lately: 0,
            need_gc: 0,
            need_gc_since: 0,
            table_lag: 0,
            table_lag_next: 0,
            counting: None,
            bad: BTreeSet::new(),
            live_sectors: 0,
            recycled: Recycled::default(),
        }
    }

    // ---- loading -------------------------------------------------------------------------------------------------

    /// Loading: what the durable gen table says. Comes before everything else about this bucket.
    pub fn set_gen(&mut self, nr: BucketNr, r#gen: Gen, prio: u16) {
        self.assert_loading();
        self.update(nr, |bucket| {
            bucket.r#gen = r#gen;
            bucket.durable_gen = r#gen;
            bucket.last_gc = r#gen;
            bucket.stamp = prio;
        });
    }

    /// Loading: a stored pointer proves the bucket reached this gen (docs/format.md 6.3). Older gens are ignored.
    pub fn raise_gen(&mut self, nr: BucketNr, r#gen: Gen) {
        self.assert_loading();
        if r#gen.after(self.bucket(nr).r#gen) == 0 {
            return;
        }
        self.update(nr, |bucket| {
            bucket.r#gen = r#gen;
            bucket.forget_data();
            bucket.set(Flag::Referenced, false);
        });
        self.note_age(nr);
    }

    /// Loading: a pointer of this gen stands in the tree or the replay range; keeps the oldest.
    pub fn note_pointer_gen(&mut self, nr: BucketNr, r#gen: Gen) {
        self.assert_loading();
        if self.bucket(nr).last_gc.after(r#gen) > 0 {
            self.update(nr, |bucket| bucket.last_gc = r#gen);
            self.note_age(nr);
        }
    }

    /// Loading: something stored names the bucket with its current gen, even if it is hidden by something newer.
    /// Such a bucket is not taken over without a table write (docs/format.md 6.5). Comes after the raising.
    pub fn mark_referenced(&mut self, nr: BucketNr) {
        self.assert_loading();
        self.update(nr, |bucket| bucket.set(Flag::Referenced, true));
    }

    /// Loading: the bucket is a btree node, part of the gen table, the uuid table or the journal.
    pub fn mark_metadata(&mut self, nr: BucketNr) {
        self.assert_loading();
        if self.bucket(nr).place() == Place::Fixed {
            return;
        }
        self.update(nr, |bucket| {
            bucket.put(Place::Metadata);
            bucket.forget_data();
        });
    }

    /// Ends loading: buckets that nothing names become unused, and allocation is legal.
    pub fn start(&mut self) {
        self.assert_loading();
        for nr in self.all() {
            let bucket = *self.bucket(nr);
            if bucket.place() != Place::Idle {
                continue;
            }
            if bucket.stamp > PRIO_FRESH {
                self.update(nr, |bucket| bucket.stamp = PRIO_FRESH);
            }
            let is_hidden = mutations::is(Mutation::AllocTakesReferenced);
            let is_named = bucket.is(Flag::Referenced) && !is_hidden || bucket.live.get() > 0;
            if !is_named && bucket.pin == 0 {
                self.enter_unused(nr, Place::Idle);
            }
        }
        self.top_up();
        for (nr, bucket) in (0..).zip(&mut self.buckets) {
            if bucket.ages() {
                bucket.stamp = self.ageing.stamp(bucket.stamp);
            }
            if bucket.table_lag() > 0 {
                self.lagging.push(nr);
            }
        }
        self.started = true;
        match self.keeps_order() {
            true => self.reorder(),
            false => self.begin_order(),
        }
    }

    /// Whether buckets wait for a table write before they are reused. Without, a crash may bring back what was in them: only
    /// for a set to which nothing durable points yet, such as one being initialised (the kernel's CACHE_SYNC).
    pub fn set_synchronous(&mut self, is_synchronous: bool) {
        self.is_synchronous = is_synchronous;
    }

    /// Looks for every bucket that is handed out in all lists from now on, which is slow (the kernel's
    /// `expensive_debug_checks`).
    pub fn set_expensive_checks(&mut self, on: bool) {
        self.checks_everything = on;
    }

    // ---- pointers ------------------------------------------------------------------------------------------------

    /// No pointer to the bucket that may still stand in the tree is older than this.
    pub fn oldest_gen_of(&self, nr: BucketNr) -> Gen {
        self.bucket(nr).last_gc
    }

    /// Current gen of a bucket.
    pub fn gen_of(&self, nr: BucketNr) -> Gen {
        self.bucket(nr).r#gen
    }

    /// Does the pointer's gen lie behind its bucket's? A pointer to no bucket at all counts as stale.
    pub fn is_stale(&self, ptr: Ptr) -> bool {
        match self.buckets.get(self.nr_of(ptr).0 as usize) {
            Some(bucket) => {
                let late = u8::from(mutations::is(Mutation::AllocStaleLate));
                bucket.r#gen.after(ptr.r#gen()) > late
            }
            None => true,
        }
    }

    /// Does the pointer have just its bucket's gen? One that is not stale and has not is newer than anything handed out.
    pub fn is_current(&self, ptr: Ptr) -> bool {
        let bucket = self.buckets.get(self.nr_of(ptr).0 as usize);
        bucket.is_some_and(|bucket| bucket.r#gen == ptr.r#gen())
    }

    /// As [`Allocator::is_stale`], but by what the durable gen table says: what is stale in this way stays so whatever
    /// happens.
    pub fn is_stale_durably(&self, ptr: Ptr) -> bool {
        match self.buckets.get(self.nr_of(ptr).0 as usize) {
            Some(bucket) => bucket.durable_gen.after(ptr.r#gen()) > 0,
            None => true,
        }
    }

    /// A key with this pointer entered the index. Nothing happens if the pointer is stale.
    pub fn add_live(&mut self, ptr: Ptr, sectors: u32, dirty: bool) {
        if let Some(nr) = self.holder_of(ptr) {
            self.update(nr, |bucket| bucket.add_live(sectors, dirty));
        }
    }

    /// A key with this pointer, or a part of it, left the index. Nothing happens if the pointer is stale.
    pub fn sub_live(&mut self, ptr: Ptr, sectors: u32, dirty: bool) {
        if let Some(nr) = self.holder_of(ptr) {
            self.update(nr, |bucket| bucket.sub_live(sectors, dirty));
        }
    }

    /// Buckets that may be recycled.
    pub fn bucket_numbers(&self) -> impl Iterator<Item = BucketNr> + use<> {
        (self.config.first_bucket..self.config.nbuckets).map(BucketNr)
    }

    /// Live and dirty sectors of a bucket.
    pub fn live_of(&self, nr: BucketNr) -> (u32, u32) {
        let bucket = self.bucket(nr);
        (bucket.live.get(), bucket.dirty.get())
    }

    /// A read was served from the bucket.
    pub fn touch(&mut self, nr: BucketNr) {
        if self.bucket(nr).holds_data() && !mutations::is(Mutation::AllocTouchForgotten) {
            self.set_prio(nr, PRIO_FRESH);
        }
    }

    /// Keeps a bucket from being recycled until [`Allocator::unpin`]. Only for a bucket found through a pointer
    /// that is not stale, in the same synchronous step.
    pub fn pin(&mut self, nr: BucketNr) {
        let bucket = self.bucket(nr);
        assert!(
            bucket.holds_data() || bucket.place() == Place::Metadata,
            "pin on a bucket nobody can point at"
        );
        self.update(nr, Bucket::add_pin);
    }

    /// Ends one [`Allocator::pin`].
    pub fn unpin(&mut self, nr: BucketNr) {
        self.update(nr, Bucket::sub_pin);
    }

    /// Ends the pin a [`Placement`] came with: its key was inserted, or abandoned.
    pub fn release_pin(&mut self, nr: BucketNr) {
        self.unpin(nr);
    }

    // ---- ageing and gens -----------------------------------------------------------------------------------------

    /// Counts traffic that was not bypassed; each 1024th of the cache's size ages every bucket that holds data and is not
    /// pinned.
    pub fn account_traffic(&mut self, sectors: u64) {
        let size = self
            .config
            .nbuckets
            .saturating_mul(u64::from(self.config.bucket_sectors));
        if self.ageing.traffic(sectors, (size / 1024).max(1)) {
            self.ageing.step();
            if mutations::is(Mutation::AllocAgesDouble) {
                self.ageing.step();
            }
            self.order.age = self.ageing.steps();
            self.sweep();
        }
    }

    /// Keeps the stamps of a few buckets within reach of the age.
    fn sweep(&mut self) {
        for nr in self.ageing.sweep(self.config.nbuckets) {
            let age = self.ageing.age();
            let bucket = &mut self.buckets[nr as usize];
            if bucket.ages() && past_at(bucket.stamp, age) >= STAMP_PAST {
                bucket.stamp = age;
            }
            let is_stamped = bucket.is(Flag::Ordered) && !bucket.is(Flag::Lapsed);
            if is_stamped && past_at(bucket.ordered, age) >= STAMP_PAST {
                self.order.lapse(&mut self.buckets, nr as u32);
            }
        }
    }

    /// Recency of a bucket.
    pub fn prio_of(&self, nr: BucketNr) -> u16 {
        let bucket = self.bucket(nr);
        match bucket.place() {
            Place::Metadata if !mutations::is(Mutation::AllocMetadataCold) => PRIO_METADATA,
            _ if self.started && bucket.ages() => recency_at(bucket.stamp, self.ageing.age()),
            _ => bucket.stamp,
        }
    }

    fn set_prio(&mut self, nr: BucketNr, prio: u16) {
        let bucket = self.bucket(nr);
        let (stamp, ages) = (bucket.stamp, bucket.ages());
        self.buckets[nr.0 as usize].stamp = if self.started && ages {
            self.ageing.unstamp(stamp);
            self.ageing.stamp(prio)
        } else {
            prio
        };
    }

    /// Largest distance of a gen from the oldest pointer that may still stand: [`GEN_AGE_WANTS_GC`] asks for a gc.
    pub fn need_gc(&self) -> u8 {
        if self.is_counting() { 0 } else { self.need_gc }
    }

    /// What the gen table should say about a range of buckets, which may reach beyond the last.
    pub fn table_entries(&self, range: std::ops::Range<u64>) -> Vec<(u16, Gen)> {
        (range.start..range.end.min(self.config.nbuckets))
            .map(BucketNr)
            .map(|nr| (self.prio_of(nr), self.gen_of(nr)))
            .collect()
    }

    /// Largest distance of a gen from the durable table.
    pub fn table_lag(&self) -> u8 {
        self.table_lag
    }

    // ---- totals --------------------------------------------------------------------------------------------------

    /// Totals, kept up to date with every change.
    pub fn stats(&self) -> Stats {
        let counts = &self.counts;
        let total = self.config.nbuckets;
        let available = counts[Class::Free] + counts[Class::Clean];
        Stats {
            total,
            free: counts[Class::Free],
            clean: counts[Class::Clean] + counts[Class::OpenClean],
            dirty: counts[Class::Dirty],
            metadata: counts[Class::Metadata],
            available,
            in_use_percent: ((total - available) * 100 / total) as u8,
        }
    }

    /// Steps of ageing so far.
    pub fn aged_steps(&self) -> u64 {
        self.ageing.steps()
    }

    /// Live sectors of all buckets.
    pub fn live_sectors(&self) -> u64 {
        self.live_sectors
    }

    /// Buckets that were recycled.
    pub fn recycled(&self) -> Recycled {
        self.recycled
    }

    // ---- helpers -------------------------------------------------------------------------------------------------

    fn assert_loading(&self) {
        assert!(!self.started, "loading ends with start");
    }

    fn all(&self) -> impl Iterator<Item = BucketNr> + use<> {
        (self.config.first_bucket..self.config.nbuckets).map(BucketNr)
    }

    fn bucket(&self, nr: BucketNr) -> &Bucket {
        &self.buckets[nr.0 as usize]
    }

    fn nr_of(&self, ptr: Ptr) -> BucketNr {
        ptr.bucket(self.config.bucket_sectors)
    }

    /// The one gate for changes, so that the totals (ALLOC-8) and the order (ALLOC-9) never drift.
    fn update(&mut self, nr: BucketNr, change: impl FnOnce(&mut Bucket)) {
        let bucket = &mut self.buckets[nr.0 as usize];
        let before = *bucket;
        change(bucket);
        let after = *bucket;
        self.live_sectors += u64::from(after.live.get());
        self.live_sectors -= u64::from(before.live.get());
        if before.class() != after.class() && !mutations::is(Mutation::AllocCountsStale) {
            self.counts.shift(before.class(), after.class());
        }
        if self.started {
            self.follow(nr, before, after);
        }
    }

    fn follow(&mut self, nr: BucketNr, before: Bucket, after: Bucket) {
        let bucket = &mut self.buckets[nr.0 as usize];
        if before.ages() && !after.ages() {
            bucket.stamp = self.ageing.unstamp(after.stamp);
        } else if !before.ages() && after.ages() {
            bucket.stamp = self.ageing.stamp(after.stamp);
        }
        if !self.keeps_order() {
            return;
        }
        let mut is_ordered = after.is(Flag::Ordered);
        let group = |bucket: Bucket| self.order.group_of(bucket.live.get());
        if is_ordered && (after.place() != Place::Idle || group(before) != group(after)) {
            let live = before.live.get();
            self.order.remove(&mut self.buckets, nr.0 as u32, live);
            is_ordered = false;
        }
        if !is_ordered && after.is_let_go() && !after.is(Flag::Parked) {
            self.order.insert(&mut self.buckets, nr.0 as u32);
        }
    }

    /// Moves a bucket along one arrow, asserting where it comes from.
    fn go(&mut self, nr: BucketNr, from: Place, to: Place) {
        self.update(nr, |bucket| {
            assert_eq!(bucket.place(), from, "ALLOC-1: bucket on its way to {to:?}");
            if to != Place::Metadata || !mutations::is(Mutation::AllocPlaceForgotten) {
                bucket.put(to);
            }
        });
        if self.checks_everything && from == Place::Ready {
            self.check_handed_out(nr);
        }
    }

    /// The bucket whose counters this pointer moves; `None` if it is stale.
    fn holder_of(&mut self, ptr: Ptr) -> Option<BucketNr> {
        if self.is_stale(ptr) {
            return None;
        }
        let nr = self.nr_of(ptr);
        if !self.started {
            self.raise_gen(nr, ptr.r#gen());
        }
        let bucket = self.bucket(nr);
        assert_eq!(
            bucket.r#gen,
            ptr.r#gen(),
            "ALLOC-4: a pointer from the future"
        );
        // An extent in a metadata bucket of a forged image is the loader's finding to report, not ours to count.
        if matches!(bucket.place(), Place::Metadata | Place::Fixed) {
            return None;
        }
        assert!(
            bucket.holds_data(),
            "ALLOC-4: a live pointer into {:?}",
            bucket.place()
        );
        Some(nr)
    }

    /// Adds one to the gen.
    fn increment_gen(&mut self, nr: BucketNr) {
        let before = *self.bucket(nr);
        assert!(before.may_increment(), "ALLOC-5: gen too far ahead");
        self.update(nr, |bucket| {
            if bucket.r#gen.0 == u8::MAX {
                marks::hit(Mark::AllocGenWraps);
            }
            if !mutations::is(Mutation::AllocForgetsGen) {
                bucket.r#gen = bucket.r#gen.next();
            }
            bucket.forget_data();
            bucket.set(Flag::Referenced, false);
        });
        if self.started && before.table_lag() == 0 && self.bucket(nr).table_lag() > 0 {
            self.lagging.push(nr.0 as u32);
        }
        self.note_age(nr);
    }

    fn note_age(&mut self, nr: BucketNr) {
        if mutations::is(Mutation::AllocAgeForgotten) {
            return;
        }
        let (mut age, lag) = (self.bucket(nr).gen_age(), self.bucket(nr).table_lag());
        if !self.knows_age_of(nr) {
            age = 0;
        }
        self.need_gc = self.need_gc.max(age);
        self.need_gc_since = self.need_gc_since.max(age);
        self.table_lag = self.table_lag.max(lag);
        self.table_lag_next = self.table_lag_next.max(lag);
    }
}
