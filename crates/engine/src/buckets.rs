//! The allocator with waiting: who needs buckets sleeps here, who makes them is felt here.
//!
//! [`crate::alloc`] decides and never waits. Whoever waits stands in one of the queues of [`queues`], which say in what order
//! they are served. Metadata is asked for in one piece, before any node is touched, and data before its range or after it was
//! let go, so nobody who holds something waits for a bucket.
//!
//! Room for data is asked for by writes, which go another way as soon as nothing can be recycled, and by clean data on its way
//! into the cache ("fills"). A fill is dropped only in a *drought*: nothing can be recycled, and nothing is under way that would
//! let go of buckets. Fills hold memory, so much and no more ([`FILL_BYTES_MAX`], or less).

mod queues;

use crate::alloc::{Allocator, Data, MetadataBucket, Reserve, Stats};
use crate::error::Poison;
use crate::limits::{FILL_BYTES_MAX, SLOT_IDLE};
use crate::marks::{self, Mark};
use crate::watched::Watched;
use brigade_env::sync::Notify;
use brigade_format::{BucketNr, Ptr};
use queues::{Need, Queues, Supply, Waiter};
use std::cell::{Cell, Ref, RefCell, RefMut};
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Looks of a dry allocator, 50 ms apart, after which a drought in which nothing changes is taken to be for ever.
const DRY_LOOKS_MAX: u32 = 2400;
/// Such looks after which clean data gives up.
const DRY_LOOKS_FILL: u32 = 2;

/// Bucket state shared by all parts of a set.
pub struct Buckets {
    alloc: Watched<Allocator>,
    poison: Rc<Poison>,
    /// Buckets became ready or unused, or a search for some ended without any.
    pub released: Released,
    /// Somebody wants more, or victims may have appeared.
    pub demand: Notify,
    /// The last search for victims found none.
    pub is_dry: Cell<bool>,
    /// Most buckets that somebody waits for to put metadata in.
    pub metadata_wanted: Cell<usize>,
    queues: RefCell<Queues>,
    /// Nobody makes buckets ready any more.
    is_over: Cell<bool>,
    /// Pins of data on its way into the index, which end without anybody waiting for a bucket.
    pins_under_way: Cell<usize>,
    /// How often such a pin ended.
    pins_ended: Cell<u64>,
    drought: Cell<Drought>,
    fill_bytes: Cell<usize>,
    fill_bytes_max: Cell<usize>,
    /// Nothing more is put into the cache unless it is written.
    fills_over: Cell<bool>,
    /// No fill is on its way any more.
    fills_ended: Notify,
    /// When idle open buckets were last looked for.
    ticked: Cell<Duration>,
}

/// Searches in a row that found nothing while nothing changed.
#[derive(Clone, Copy)]
struct Drought {
    looks: u32,
    seen: (Stats, u64),
}

/// Tells the queues of something new.
pub struct Released(Weak<Buckets>);

impl Released {
    /// Wakes whom what is there suffices for; in a drought, who has to decide what now.
    pub fn notify_all(&self) {
        if let Some(buckets) = self.0.upgrade() {
            buckets.look();
        }
    }
}

/// A place in a queue. Dropping it gives the place up.
pub struct Ticket {
    buckets: Rc<Buckets>,
    waiter: Rc<Waiter>,
}

impl Ticket {
    /// Waits until it may be served, or there is something to decide.
    pub async fn turn(&self) {
        self.buckets.demand.notify_all();
        self.waiter.turn().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let buckets = &self.buckets;
        // It is borrowed only if a broken invariant just took the step down.
        if let Ok(mut queues) = buckets.queues.try_borrow_mut() {
            queues.leave(&self.waiter);
            buckets.metadata_wanted.set(queues.metadata_wanted());
        }
        buckets.serve();
    }
}

/// Memory set aside for clean data on its way into the cache.
pub struct FillRoom {
    buckets: Rc<Buckets>,
    bytes: usize,
}

impl FillRoom {
    /// A part of it, for a part of the data.
    pub fn split(&mut self, bytes: usize) -> FillRoom {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        FillRoom {
            buckets: self.buckets.clone(),
            bytes,
        }
    }
}

impl Drop for FillRoom {
    fn drop(&mut self) {
        let bytes = &self.buckets.fill_bytes;
        bytes.set(bytes.get() - self.bytes);
        if bytes.get() == 0 {
            self.buckets.fills_ended.notify_all();
        }
        self.buckets.serve();
    }
}

struct There<'a>(&'a Allocator, usize, usize);

impl Supply for There<'_> {
    fn suffices(&self, need: Need, new_buckets: bool) -> bool {
        match need {
            Need::Metadata(count) => self.0.can_take_metadata(count),
            Need::Data(sectors, kind) => self.0.room_for(kind, new_buckets) >= sectors,
            // What is larger than all of it goes alone.
            Need::Fill(bytes) => self.1 == 0 || self.1 + bytes <= self.2,
        }
    }
}

impl Buckets {
    /// Wraps the allocator of a set.
    pub fn new(alloc: Allocator, poison: Rc<Poison>) -> Rc<Self> {
        let drought = Drought {
            looks: 0,
            seen: (alloc.stats(), 0),
        };
        let buckets = Rc::new_cyclic(|weak| Buckets {
            alloc: Watched::new(alloc),
            poison: poison.clone(),
            released: Released(weak.clone()),
            demand: Notify::new(),
            is_dry: Cell::new(false),
            metadata_wanted: Cell::new(0),
            queues: RefCell::default(),
            is_over: Cell::new(false),
            pins_under_way: Cell::new(0),
            pins_ended: Cell::new(0),
            drought: Cell::new(drought),
            fill_bytes: Cell::new(0),
            fill_bytes_max: Cell::new(FILL_BYTES_MAX),
            fills_over: Cell::new(false),
            fills_ended: Notify::new(),
            ticked: Cell::new(Duration::ZERO),
        });
        let weak = Rc::downgrade(&buckets);
        poison.when_thrown(move || {
            if let Some(buckets) = weak.upgrade() {
                buckets.wake_all();
            }
        });
        buckets
    }

    /// For deciding; never held across an await.
    pub fn get(&self) -> Ref<'_, Allocator> {
        self.alloc.borrow()
    }

    /// For changing; never held across an await.
    pub fn get_mut(&self) -> RefMut<'_, Allocator> {
        self.alloc.borrow_mut()
    }

    /// How often it was taken for changing.
    pub fn changes(&self) -> u64 {
        self.alloc.changes()
    }

    /// Whether the pointer's bucket was recycled (docs/format.md 6.3).
    pub fn is_stale(&self, ptr: Ptr) -> bool {
        self.alloc.borrow().is_stale(ptr)
    }

    // ---- metadata ------------------------------------------------------------------------------------------------

    /// Takes `count` buckets for nodes, all at once, if they are there and nobody waits for some.
    pub fn take_metadata_at_once(&self, count: usize) -> Option<Vec<MetadataBucket>> {
        let is_next = self.is_next(Need::Metadata(count), None);
        is_next.then(|| self.take_metadata_now(count))?
    }

    /// Takes `count` buckets for nodes or the UUID table, all at once, waiting in turn until so many are there. Poisons
    /// the set if they never will be: whoever waits here holds up everything.
    pub async fn take_metadata(self: &Rc<Self>, count: usize) -> io::Result<Vec<MetadataBucket>> {
        let need = Need::Metadata(count);
        let mut ticket = None;
        let mut drought = (0, self.get().stats());
        loop {
            self.poison.check()?;
            if self.is_next(need, ticket.as_ref())
                && let Some(taken) = self.take_metadata_now(count)
            {
                return Ok(taken);
            }
            if self.is_over.get() {
                return Err(io::Error::other("no buckets for nodes: the set is closed"));
            }
            marks::hit(Mark::AllocMetadataWaits);
            ticket.get_or_insert_with(|| self.enter(need)).turn().await;
            let stats = self.get().stats();
            let is_over = !self.get().is_counting();
            drought = if is_over && self.is_dry.get() && drought.1 == stats {
                (drought.0 + 1, stats)
            } else {
                (0, stats)
            };
            if drought.0 > DRY_LOOKS_MAX {
                let there = self.get().metadata_available();
                let why = format!(
                    "no buckets for nodes: {count} are needed, {there} are free, and nothing can be recycled"
                );
                self.poison.throw(why.clone());
                return Err(io::Error::other(why));
            }
        }
    }

    fn take_metadata_now(&self, count: usize) -> Option<Vec<MetadataBucket>> {
        let mut alloc = self.alloc.borrow_mut();
        if !alloc.can_take_metadata(count) {
            alloc.trace_failure(Reserve::Btree);
            return None;
        }
        let take = |_| {
            let bucket = alloc.take_metadata(Reserve::Btree);
            let bucket = bucket.expect("counted just now");
            alloc.trace_allocation(bucket.nr, Reserve::Btree);
            bucket
        };
        let taken = (0..count).map(take).collect();
        if alloc.wants_batch() {
            self.demand.notify_all();
        }
        Some(taken)
    }

    /// Gives back metadata buckets that nothing durable names.
    pub fn free_metadata(&self, buckets: impl IntoIterator<Item = BucketNr>) {
        let mut alloc = self.alloc.borrow_mut();
        for nr in buckets {
            alloc.free_metadata(nr);
        }
        drop(alloc);
        self.serve();
    }

    // ---- data ----------------------------------------------------------------------------------------------------

    /// How data may be placed now by one who waits, or else by a newcomer: not at all, only into open buckets (`false`), or
    /// into new ones too (`true`).
    pub fn data_turn(&self, ticket: Option<&Ticket>) -> Option<bool> {
        // The sectors do not matter for whose turn it is.
        let is_next = self.is_next(Need::Data(0, Data::Cached), ticket);
        is_next.then(|| self.queues.borrow().new_buckets())
    }

    /// Takes a place among those who wait for room for data. Only for what is sure to be there at once one day
    /// ([`Allocator::sure_sectors`]): the first one holds up all others.
    pub fn queue_for_data(self: &Rc<Self>, sectors: u64, kind: Data) -> Ticket {
        self.enter(Need::Data(sectors, kind))
    }

    /// Whether anybody waits for room for data.
    pub fn is_data_waited_for(&self) -> bool {
        self.queues.borrow().is_data_waited_for()
    }

    /// Data was placed: so many pins will end without anybody waiting for a bucket.
    pub fn pins_begin(&self, count: usize) {
        self.pins_under_way.set(self.pins_under_way.get() + count);
    }

    /// Ends the pins of placed data.
    pub fn pins_end(&self, pinned: impl IntoIterator<Item = BucketNr>) {
        let mut alloc = self.alloc.borrow_mut();
        for nr in pinned {
            alloc.release_pin(nr);
            self.pins_under_way.set(self.pins_under_way.get() - 1);
            self.pins_ended.set(self.pins_ended.get() + 1);
        }
        drop(alloc);
        if self.is_dry.get() {
            self.demand.notify_all();
        }
    }

    /// A request on the place of these pointers failed: their buckets are not used any more.
    pub fn set_aside(&self, ptrs: impl IntoIterator<Item = Ptr>) {
        let mut alloc = self.alloc.borrow_mut();
        for ptr in ptrs {
            if alloc.set_aside(ptr) {
                marks::hit(Mark::BucketSetAside);
            }
        }
    }

    /// Whether nothing can be recycled, and nothing is under way that would change that.
    pub fn is_drought(&self) -> bool {
        let drought = self.drought.get();
        self.is_dry.get()
            && self.pins_under_way.get() == 0
            && drought.looks >= DRY_LOOKS_FILL
            && drought.seen == self.seen()
    }

    /// Closes open buckets that nobody used for a while.
    pub fn tick(&self, now: Duration) {
        if now.saturating_sub(self.ticked.get()) >= SLOT_IDLE {
            self.ticked.set(now);
            self.alloc.borrow_mut().close_idle();
        }
    }

    // ---- memory of fills -----------------------------------------------------------------------------------------

    /// Fills may take so much of this memory that the rest has room for the index.
    pub fn limit_fills(&self, memory_bytes: u64) {
        let eighth = usize::try_from(memory_bytes / 8).unwrap_or(usize::MAX);
        self.fill_bytes_max.set(eighth.min(FILL_BYTES_MAX));
    }

    /// Memory that fills may take.
    pub fn fill_bytes_max(&self) -> usize {
        self.fill_bytes_max.get()
    }

    /// Memory for a fill, if there is some and nobody waits for it.
    pub fn try_fill_room(self: &Rc<Self>, bytes: usize) -> Option<FillRoom> {
        self.take_fill_room(bytes, None)
    }

    /// The same, waiting for it in turn; `None` once nobody makes buckets any more, or none can be made.
    pub async fn fill_room(self: &Rc<Self>, bytes: usize) -> Option<FillRoom> {
        let mut ticket = None;
        loop {
            if let Some(room) = self.take_fill_room(bytes, ticket.as_ref()) {
                return Some(room);
            }
            if self.is_closed() || self.is_drought() {
                return None;
            }
            ticket
                .get_or_insert_with(|| self.enter(Need::Fill(bytes)))
                .turn()
                .await;
        }
    }

    /// Memory that fills hold.
    pub fn fill_bytes(&self) -> usize {
        self.fill_bytes.get()
    }

    fn take_fill_room(self: &Rc<Self>, bytes: usize, ticket: Option<&Ticket>) -> Option<FillRoom> {
        let need = Need::Fill(bytes);
        let taken = self.fill_bytes.get();
        if self.is_closed()
            || !self.is_next(need, ticket)
            || !There(&self.get(), taken, self.fill_bytes_max()).suffices(need, true)
        {
            return None;
        }
        self.fill_bytes.set(taken + bytes);
        Some(FillRoom {
            buckets: self.clone(),
            bytes,
        })
    }

    /// Lets fills end, and waits for those that are being written: after a stop nothing writes to a bucket any more.
    pub async fn end_fills(&self) {
        self.fills_over.set(true);
        self.queues.borrow().wake_all();
        while self.fill_bytes.get() > 0 {
            self.fills_ended.wait().await;
        }
    }

    // ---- queues --------------------------------------------------------------------------------------------------

    /// Whether the set takes no more fills, since it is poisoned or closing.
    pub fn is_closed(&self) -> bool {
        self.is_over.get() || self.fills_over.get() || self.poison.is_thrown()
    }

    /// Wakes everybody for the last time: the set is poisoned or closing.
    pub fn wake_all(&self) {
        self.is_over.set(true);
        self.queues.borrow().wake_all();
        self.demand.notify_all();
    }

    fn enter(self: &Rc<Self>, need: Need) -> Ticket {
        let mut queues = self.queues.borrow_mut();
        let waiter = queues.enter(need);
        self.metadata_wanted.set(queues.metadata_wanted());
        Ticket {
            buckets: self.clone(),
            waiter,
        }
    }

    fn is_next(&self, need: Need, ticket: Option<&Ticket>) -> bool {
        let waiter = ticket.map(|ticket| &ticket.waiter);
        self.queues.borrow().is_next(need, waiter)
    }

    fn serve(&self) {
        if let (Ok(queues), Ok(alloc)) = (self.queues.try_borrow(), self.alloc.try_borrow()) {
            queues.serve(&There(&alloc, self.fill_bytes.get(), self.fill_bytes_max()));
        }
    }

    fn seen(&self) -> (Stats, u64) {
        (self.get().stats(), self.pins_ended.get())
    }

    fn look(&self) {
        if self.is_dry.get() {
            let seen = self.seen();
            let before = self.drought.get();
            let is_same = before.seen == seen;
            let looks = if is_same {
                before.looks.saturating_add(1)
            } else {
                0
            };
            self.drought.set(Drought { looks, seen });
            self.queues.borrow().tell_drought();
        }
        self.serve();
    }
}

#[cfg(test)]
#[path = "buckets/tests.rs"]
mod tests;
