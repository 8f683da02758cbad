//! Writing superblocks, always durably (docs/format.md 10.12, 10.13).

use crate::device::Disk;
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use crate::stats::Cause;
use brigade_env::sync::Lock;
use brigade_env::{Durability, Env};
use brigade_format::{BackingState, CacheMode, Superblock};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

/// First sector of every superblock.
const SUPERBLOCK_SECTOR: u64 = 8;

/// Writes a superblock; what it refers to is made durable before, it itself is when this returns.
pub async fn write_superblock<E: Env>(disk: &Disk<E>, superblock: &Superblock) -> io::Result<()> {
    disk.flush().await?;
    disk.write_metadata(
        Cause::Superblock,
        SUPERBLOCK_SECTOR,
        &superblock.encode(),
        Durability::Durable,
    )
    .await
}

/// The superblock of a cache device that is open.
pub struct CacheSuper<E: Env> {
    disk: Rc<Disk<E>>,
    superblock: RefCell<Superblock>,
    turn: Lock,
}

impl<E: Env> CacheSuper<E> {
    /// As it stands on `disk`.
    pub fn new(disk: Rc<Disk<E>>, superblock: Superblock) -> Self {
        CacheSuper {
            disk,
            superblock: RefCell::new(superblock),
            turn: Lock::default(),
        }
    }

    /// A copy of the whole.
    pub fn get(&self) -> Superblock {
        self.superblock.borrow().clone()
    }

    /// Has the device say something else from now on. Its number of writes stays: the record in memory of this opening is known by it.
    pub async fn change(&self, change: impl FnOnce(&mut Superblock)) -> io::Result<()> {
        let _turn = self.turn.lock().await;
        let mut next = self.get();
        change(&mut next);
        if next == self.get() {
            return Ok(());
        }
        write_superblock(&self.disk, &next).await?;
        *self.superblock.borrow_mut() = next;
        Ok(())
    }
}

/// The superblock of a backing device, and its passage between clean and dirty.
///
/// *Dirty* is on disk before the first dirty key can be (docs/format.md 9.5); *clean* only after everything was written
/// back, while no write that makes data dirty is under way.
pub struct BackingSuper<E: Env> {
    disk: Rc<Disk<E>>,
    superblock: RefCell<Superblock>,
    turn: Lock,
    intents: Cell<usize>,
}

/// A write that is about to make data dirty. While one exists the device does not become clean.
pub struct DirtyIntent<'a, E: Env>(&'a BackingSuper<E>);

impl<E: Env> Drop for DirtyIntent<'_, E> {
    fn drop(&mut self) {
        self.0.intents.set(self.0.intents.get() - 1);
    }
}

impl<E: Env> BackingSuper<E> {
    /// As read from `disk`.
    pub fn new(disk: Rc<Disk<E>>, superblock: Superblock) -> Self {
        BackingSuper {
            disk,
            superblock: RefCell::new(superblock),
            turn: Lock::default(),
            intents: Cell::new(0),
        }
    }

    /// The state as it stands on disk (or is just being written).
    pub fn state(&self) -> BackingState {
        self.superblock.borrow().state()
    }

    /// A copy of the whole.
    pub fn get(&self) -> Superblock {
        self.superblock.borrow().clone()
    }

    async fn change_in_turn(&self, change: impl FnOnce(&mut Superblock)) -> io::Result<()> {
        let mut next = self.get();
        change(&mut next);
        write_superblock(&self.disk, &next).await?;
        *self.superblock.borrow_mut() = next;
        Ok(())
    }

    /// Makes sure the device says dirty before the caller makes anything dirty.
    pub async fn dirty_intent(&self) -> io::Result<DirtyIntent<'_, E>> {
        self.intents.set(self.intents.get() + 1);
        let intent = DirtyIntent(self);
        if self.state() != BackingState::Dirty && !mutations::is(Mutation::DirtyStateLate) {
            let _turn = self.turn.lock().await;
            if self.state() != BackingState::Dirty {
                self.change_in_turn(|superblock| superblock.set_state(BackingState::Dirty))
                    .await?;
            }
        }
        Ok(intent)
    }

    /// Has the device say how it is to be cached from now on.
    pub async fn set_mode(&self, mode: CacheMode) -> io::Result<()> {
        let _turn = self.turn.lock().await;
        if self.superblock.borrow().cache_mode() == Some(mode) {
            return Ok(());
        }
        self.change_in_turn(|superblock| superblock.set_cache_mode(mode))
            .await
    }

    /// Lets the device say clean, if `is_clean` holds and nobody is about to make something dirty.
    pub async fn become_clean(&self, is_clean: impl Fn() -> bool) -> io::Result<bool> {
        let _turn = self.turn.lock().await;
        let is_wanted = self.intents.get() > 0 || !is_clean();
        if self.state() == BackingState::Dirty && is_wanted {
            marks::hit(Mark::SuperblockStaysDirty);
        }
        if self.state() != BackingState::Dirty
            || (is_wanted && !mutations::is(Mutation::CleanStateEarly))
        {
            return Ok(false);
        }
        marks::hit(Mark::SuperblockBecomesClean);
        // Whoever comes from here on waits for the turn and writes dirty again before going on.
        self.superblock.borrow_mut().set_state(BackingState::Clean);
        let superblock = self.get();
        write_superblock(&self.disk, &superblock).await?;
        Ok(true)
    }
}
