//! What writing back of one volume has to know of the others of its set.

use super::rate::{GcAfter, Idle};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

/// All attached backing devices of a set.
#[derive(Default)]
pub struct Together {
    /// Sizes by inode.
    sectors: RefCell<BTreeMap<u32, u64>>,
    idle: Cell<Idle>,
    gc: Cell<GcAfter>,
    moves: Cell<u64>,
}

impl Together {
    /// A device of this size is attached, or has it from now on.
    pub fn attach(&self, inode: u32, sectors: u64) {
        self.sectors.borrow_mut().insert(inode, sectors);
    }

    /// It is not any more.
    pub fn detach(&self, inode: u32) {
        self.sectors.borrow_mut().remove(&inode);
    }

    /// All sizes.
    pub fn sizes(&self) -> Vec<u64> {
        self.sectors.borrow().values().copied().collect()
    }

    /// One device's update; says whether nobody has asked for anything for long.
    pub fn is_idle(&self, last_request: Duration) -> bool {
        let devices = self.sectors.borrow().len() as u64;
        self.with(&self.idle, |idle| idle.update(last_request, devices))
    }

    /// See [`GcAfter::update`].
    pub fn note_use(&self, gc_is_wanted: bool, in_use: u64) {
        self.with(&self.gc, |gc| gc.update(gc_is_wanted, in_use));
    }

    /// See [`GcAfter::became_clean`].
    pub fn became_clean(&self) -> bool {
        self.with(&self.gc, GcAfter::became_clean)
    }

    /// Dirty data has another place in the cache now.
    pub fn note_move(&self) {
        self.moves.set(self.moves.get() + 1);
    }

    /// How often that happened.
    pub fn moves(&self) -> u64 {
        self.moves.get()
    }

    fn with<T: Copy, R>(&self, cell: &Cell<T>, change: impl FnOnce(&mut T) -> R) -> R {
        let mut value = cell.get();
        let result = change(&mut value);
        cell.set(value);
        result
    }
}
