//! The allocator with waiting: who needs buckets sleeps here, who makes them is woken here.
//!
//! [`crate::alloc`] decides and never waits. Waiters re-check after every release; metadata is asked for in one piece, before
//! any node is touched, so nobody who holds something waits for a bucket.

use crate::alloc::{Allocator, MetadataBucket, Reserve};
use crate::error::Poison;
use crate::marks::{self, Mark};
use brigade_env::sync::Notify;
use brigade_format::{BucketNr, Ptr};
use std::cell::{Cell, Ref, RefCell, RefMut};
use std::io;
use std::rc::Rc;

/// Looks of a dry allocator, 50 ms apart, after which a drought in which nothing changes is taken to be for ever.
const DRY_LOOKS_MAX: u32 = 2400;

/// Bucket state shared by all parts of a set.
pub struct Buckets {
    alloc: RefCell<Allocator>,
    poison: Rc<Poison>,
    /// Buckets became ready or unused.
    pub released: Notify,
    /// Somebody wants more, or victims may have appeared.
    pub demand: Notify,
    /// The last search for victims found none.
    pub is_dry: Cell<bool>,
    /// Most buckets that somebody waits for to put metadata in.
    pub metadata_wanted: Cell<usize>,
}

impl Buckets {
    /// Wraps the allocator of a set.
    pub fn new(alloc: Allocator, poison: Rc<Poison>) -> Rc<Self> {
        let buckets = Rc::new(Buckets {
            alloc: RefCell::new(alloc),
            poison: poison.clone(),
            released: Notify::new(),
            demand: Notify::new(),
            is_dry: Cell::new(false),
            metadata_wanted: Cell::new(0),
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

    /// Whether the pointer's bucket was recycled (docs/format.md 6.3).
    pub fn is_stale(&self, ptr: Ptr) -> bool {
        self.alloc.borrow().is_stale(ptr)
    }

    /// Takes `count` buckets for nodes or the UUID table, all at once, waiting until so many are there. Poisons the set
    /// if they never will be: whoever waits here holds up everything.
    pub async fn take_metadata(&self, count: usize) -> io::Result<Vec<MetadataBucket>> {
        let mut drought = (0, self.get().stats());
        loop {
            self.poison.check()?;
            let released = self.released.wait();
            {
                let mut alloc = self.alloc.borrow_mut();
                if alloc.can_take_metadata(count) {
                    let take = |_| {
                        alloc
                            .take_metadata(Reserve::Btree)
                            .expect("counted just now")
                    };
                    let taken = (0..count).map(take).collect();
                    self.metadata_wanted.set(0);
                    if alloc.wants_batch() {
                        self.demand.notify_all();
                    }
                    return Ok(taken);
                }
            }
            marks::hit(Mark::AllocMetadataWaits);
            self.metadata_wanted
                .set(count.max(self.metadata_wanted.get()));
            self.demand.notify_all();
            released.await;
            let stats = self.get().stats();
            drought = if self.is_dry.get() && drought.1 == stats {
                (drought.0 + 1, stats)
            } else {
                (0, stats)
            };
            if drought.0 > DRY_LOOKS_MAX {
                let there = self.get().metadata_available();
                self.poison.throw(format!(
                    "no buckets for nodes: {count} are needed, {there} are free, and nothing can be recycled"
                ));
            }
        }
    }

    /// Gives back metadata buckets that nothing durable names.
    pub fn free_metadata(&self, buckets: impl IntoIterator<Item = BucketNr>) {
        let mut alloc = self.alloc.borrow_mut();
        for nr in buckets {
            alloc.free_metadata(nr);
        }
        drop(alloc);
        self.released.notify_all();
    }

    /// Wakes everybody, for instance because the set is poisoned or closing.
    pub fn wake_all(&self) {
        self.released.notify_all();
        self.demand.notify_all();
    }
}
