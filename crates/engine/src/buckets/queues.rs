//! Who waits for what, in the order of asking.
//!
//! Three queues: buckets for metadata, room for data, and memory for clean data on its way. Only the first of a queue
//! is ever woken, and only if what it needs is there; it stays the first until it has taken that or leaves, and then the next
//! one is looked at. So one release wakes as many as it can serve, each once, and nobody is overtaken.
//!
//! * BKT-1: service in each queue is in the order of asking; a newcomer takes nothing while somebody of its queue waits.
//! * BKT-2: while somebody waits for buckets for metadata, data takes no bucket, only what open buckets still have.
//! * BKT-3: whenever what is there suffices for the first of a queue, that one is awake.

use crate::mutations::{self, Mutation};
use brigade_env::sync::Notify;
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use crate::alloc::Data;

/// What somebody waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// So many buckets for nodes or tables, all at once.
    Metadata(usize),
    /// So many sectors for data of this kind, all at once.
    Data(u64, Data),
    /// So many bytes of memory for clean data on its way.
    Fill(usize),
}

impl Need {
    fn queue(self) -> usize {
        match self {
            Need::Metadata(_) => 0,
            Need::Data(..) => 1,
            Need::Fill(_) => 2,
        }
    }
}

/// Says what is there.
pub trait Supply {
    /// Could this be taken now? With `new_buckets` unset, data may only be put into buckets that are open.
    fn suffices(&self, need: Need, new_buckets: bool) -> bool;
}

/// One who waits.
pub struct Waiter {
    pub need: Need,
    is_awake: Cell<bool>,
    turn: Notify,
}

impl Waiter {
    fn wake(&self) {
        if !self.is_awake.replace(true) {
            self.turn.notify_all();
        }
    }

    /// Waits until what is needed may be there.
    pub async fn turn(&self) {
        if !self.is_awake.get() {
            self.turn.wait().await;
        }
        self.is_awake.set(false);
    }
}

/// See the module documentation.
#[derive(Default)]
pub struct Queues([VecDeque<Rc<Waiter>>; 3]);

impl Queues {
    /// Takes a place at the end of a queue.
    pub fn enter(&mut self, need: Need) -> Rc<Waiter> {
        let waiter = Rc::new(Waiter {
            need,
            is_awake: Cell::new(false),
            turn: Notify::new(),
        });
        self.0[need.queue()].push_back(waiter.clone());
        waiter
    }

    /// Gives the place up, served or not.
    pub fn leave(&mut self, waiter: &Rc<Waiter>) {
        self.0[waiter.need.queue()].retain(|other| !Rc::ptr_eq(other, waiter));
    }

    /// Whether one who waits, or else a newcomer, is next (BKT-1).
    pub fn is_next(&self, need: Need, waiter: Option<&Rc<Waiter>>) -> bool {
        let overtakes = mutations::is(Mutation::AllocNewcomerOvertakes);
        match (self.0[need.queue()].front(), waiter) {
            _ if overtakes => true,
            (None, _) => true,
            (Some(first), Some(waiter)) => Rc::ptr_eq(first, waiter),
            (Some(_), None) => false,
        }
    }

    /// Whether data may take buckets (BKT-2).
    pub fn new_buckets(&self) -> bool {
        self.0[0].is_empty() || mutations::is(Mutation::AllocDataBeforeMetadata)
    }

    /// Whether anybody waits for room for data.
    pub fn is_data_waited_for(&self) -> bool {
        !self.0[1].is_empty()
    }

    /// The largest number of buckets for metadata that somebody waits for.
    pub fn metadata_wanted(&self) -> usize {
        let wanted = |waiter: &Rc<Waiter>| match waiter.need {
            Need::Metadata(count) => count,
            _ => 0,
        };
        self.0[0].iter().map(wanted).max().unwrap_or(0)
    }

    /// Something is there that was not: wakes the first of each queue if that suffices (BKT-3).
    pub fn serve(&self, supply: &impl Supply) {
        let new_buckets = self.new_buckets();
        for first in self.0.iter().filter_map(VecDeque::front) {
            let is_lost = mutations::is(Mutation::AllocWakesNobody);
            if supply.suffices(first.need, new_buckets) && !is_lost {
                first.wake();
            }
        }
    }

    /// Nothing can be had, so the one whose fate it is looks, and all who have something else to do instead.
    pub fn tell_drought(&self) {
        let first = self.0[0].front().into_iter();
        first.chain(&self.0[1]).for_each(|waiter| waiter.wake());
    }

    /// Wakes everybody.
    pub fn wake_all(&self) {
        self.0.iter().flatten().for_each(|waiter| waiter.wake());
    }
}

#[cfg(test)]
#[path = "queues_tests.rs"]
mod tests;
