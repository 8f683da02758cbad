//! The one way into the index.
//!
//! A change enters the map, the counters, the leaf's pending set, the journal's stage and the record in memory in one
//! synchronous step. So of two overlapping changes the one that is later in the index is later in the journal
//! (docs/format.md 8.3), and whoever compares before changing compares with what he changes.

use crate::btree::{Change, Index, Pages};
use crate::buckets::Buckets;
use crate::extents::Extent;
use crate::journal::Journal;
use crate::marks::{self, Mark};
use crate::watched::Watched;
use brigade_env::Env;
use brigade_env::sync::Notify;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

/// Words of keys that one operation adds at once; more are added in several steps.
const WORDS_AT_ONCE: usize = 192;

/// See the module documentation.
pub struct Inserter<E: Env> {
    env: E,
    index: Rc<Watched<Index>>,
    pages: Rc<Pages<E>>,
    buckets: Rc<Buckets>,
    journal: Rc<Journal<E>>,
    /// Raised every so often, when leaves may have much pending.
    leaf_demand: Rc<dyn Fn()>,
    inserted_words: Cell<usize>,
    words_high: usize,
    /// Changes of entries that may not be durable yet, where no record in memory has them.
    unwritten: RefCell<VecDeque<(u64, Extent)>>,
    /// Something became dirty.
    pub dirtied: Notify,
}

impl<E: Env> Inserter<E> {
    /// Ties the parts together. `leaf_demand` is called after every `words_high` words.
    pub fn new(
        env: E,
        index: Rc<Watched<Index>>,
        pages: Rc<Pages<E>>,
        buckets: Rc<Buckets>,
        journal: Rc<Journal<E>>,
        words_high: usize,
        leaf_demand: Rc<dyn Fn()>,
    ) -> Rc<Self> {
        let (inserted_words, dirtied) = (Cell::new(0), Notify::new());
        Rc::new(Inserter {
            env,
            index,
            pages,
            buckets,
            journal,
            leaf_demand,
            inserted_words,
            words_high,
            unwritten: RefCell::default(),
            dirtied,
        })
    }

    /// Lays extents and holes over what is there, journalled. `still` is asked, in the same step as the change, what of it
    /// is still to be done. Gives the number of the last journal entry used.
    pub async fn insert(
        &self,
        extents: &[Extent],
        mut still: impl FnMut(&Index, &Extent) -> Vec<Extent>,
    ) -> io::Result<Option<u64>> {
        let mut last = None;
        let at_once = WORDS_AT_ONCE.min(self.journal.words_max()) / 3;
        let mut left: VecDeque<Extent> = extents.iter().copied().collect();
        while !left.is_empty() {
            let first = left[0];
            self.pages
                .bring(first.inode, first.start, first.end)
                .await?;
            let is_here = |e: &&Extent| self.pages.is_here(e.inode, e.start, e.end);
            let count = left.iter().take(at_once).take_while(is_here).count();
            let has_room = self.journal.has_room(count * 3);
            self.journal.room(count * 3).await?;
            if !has_room {
                continue;
            }
            if count < left.len() {
                marks::hit(Mark::InsertInPieces);
            }
            let wanted: Vec<Extent> = {
                let index = self.index.borrow();
                left.drain(..count)
                    .flat_map(|extent| still(&index, &extent))
                    .collect()
            };
            if wanted.is_empty() {
                continue;
            }
            // What fell into more pieces than it was meant to be takes its turn again, piece by piece.
            if wanted.len() <= count || self.journal.has_room(wanted.len() * 3) {
                last = Some(self.apply(&wanted));
            } else {
                wanted
                    .into_iter()
                    .rev()
                    .for_each(|piece| left.push_front(piece));
            }
        }
        Ok(last)
    }

    /// Has leaves written that are due.
    pub fn ask_for_leaf_writes(&self) {
        (self.leaf_demand)();
    }

    /// Lays everything given over what is there, journalled.
    pub async fn insert_all(&self, extents: &[Extent]) -> io::Result<Option<u64>> {
        self.insert(extents, |_, extent| vec![*extent]).await
    }

    fn apply(&self, extents: &[Extent]) -> u64 {
        let seq = self.journal.append(extents.iter().map(Extent::to_key));
        self.change(extents, Some(seq));
        if !self.journal.remembers() {
            self.forget_written();
            let ranges = extents.iter().map(|extent| (seq, *extent));
            self.unwritten.borrow_mut().extend(ranges);
        }
        if extents.iter().any(|extent| extent.dirty) {
            self.dirtied.notify_all();
        }
        seq
    }

    /// The journal entry that has to be durable before what the index says of a range survives this process. `None` where it
    /// does already: who has read something must not find it gone after a crash, acknowledged or not.
    pub fn unwritten(&self, inode: u32, start: u64, end: u64) -> Option<u64> {
        self.forget_written();
        let unwritten = self.unwritten.borrow();
        let overlaps =
            |extent: &Extent| extent.inode == inode && extent.start < end && extent.end > start;
        unwritten
            .iter()
            .rev()
            .find(|(_, extent)| overlaps(extent))
            .map(|(seq, _)| *seq)
    }

    fn forget_written(&self) {
        let mut unwritten = self.unwritten.borrow_mut();
        let durable = self.journal.durable_seq();
        while unwritten.front().is_some_and(|(seq, _)| *seq <= durable) {
            unwritten.pop_front();
        }
    }

    /// Puts clean data where nothing is cached; only the leaf will know. Gives the sectors that found room.
    pub fn fill(&self, extent: Extent) -> u64 {
        assert!(!extent.dirty, "dirty data is journalled");
        let absent =
            self.index
                .borrow()
                .absent(&self.buckets.get(), extent.inode, extent.start, extent.end);
        let pieces: Vec<_> = absent
            .into_iter()
            .map(|(start, end)| extent.slice(start, end))
            .collect();
        self.change(&pieces, None);
        pieces.iter().map(Extent::sectors).sum()
    }

    fn change(&self, extents: &[Extent], seq: Option<u64>) {
        let change = Change {
            seq,
            now: self.env.now(),
        };
        let mut index = self.index.borrow_mut();
        let mut alloc = self.buckets.get_mut();
        for &extent in extents {
            for pin in index.insert(&mut alloc, extent, change) {
                self.journal.pin(pin);
            }
        }
        drop((index, alloc));
        let words = self.inserted_words.get() + extents.len() * 3;
        self.inserted_words.set(words % self.words_high);
        if words >= self.words_high {
            (self.leaf_demand)();
            self.pages.shrink();
        }
        if self.buckets.is_dry.get() {
            self.buckets.demand.notify_all();
        }
    }
}
