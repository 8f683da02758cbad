//! A `RefCell` that counts how often its content may have changed, so that whoever recounts everything can leave out the steps in which
//! nothing can have happened.

use std::cell::{BorrowError, Cell, Ref, RefCell, RefMut};

/// See above.
pub struct Watched<T> {
    value: RefCell<T>,
    changes: Cell<u64>,
}

impl<T> Watched<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        Watched {
            value: RefCell::new(value),
            changes: Cell::new(0),
        }
    }

    /// For looking at it.
    ///
    /// # Panics
    /// While it is borrowed for changing.
    pub fn borrow(&self) -> Ref<'_, T> {
        self.value.borrow()
    }

    /// For looking at it, unless it is borrowed for changing.
    pub fn try_borrow(&self) -> Result<Ref<'_, T>, BorrowError> {
        self.value.try_borrow()
    }

    /// For changing it.
    ///
    /// # Panics
    /// While it is borrowed.
    pub fn borrow_mut(&self) -> RefMut<'_, T> {
        self.changes.set(self.changes.get().wrapping_add(1));
        self.value.borrow_mut()
    }

    /// How often it was borrowed for changing.
    pub fn changes(&self) -> u64 {
        self.changes.get()
    }
}
