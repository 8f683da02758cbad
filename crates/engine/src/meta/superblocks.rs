//! Writing superblocks, always durably (docs/format.md 10.12, 10.13).

use crate::device::Disk;
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use crate::stats::Cause;
use brigade_env::sync::{Lock, Notify};
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
/// back, while no write that makes data dirty is under way. *Stale* is on disk before the volume goes on without its cache, and stays.
pub struct BackingSuper<E: Env> {
    disk: Rc<Disk<E>>,
    superblock: RefCell<Superblock>,
    turn: Lock,
    intents: Cell<usize>,
    /// How often one began.
    intended: Cell<u64>,
    intents_changed: Notify,
    /// Those who try to have it say stale: nothing becomes dirty meanwhile.
    leavers: Cell<usize>,
    /// It says stale, or was told to: nothing becomes dirty any more.
    has_left: Cell<bool>,
    /// A write failed that was to make it say clean.
    is_unsure: Cell<bool>,
}

/// A write that is about to make data dirty. While one exists the device does not become clean.
pub struct DirtyIntent<'a, E: Env>(&'a BackingSuper<E>);

impl<E: Env> Drop for DirtyIntent<'_, E> {
    fn drop(&mut self) {
        self.0.intents.set(self.0.intents.get() - 1);
        self.0.intents_changed.notify_all();
    }
}

/// Counted until it is dropped.
struct Leaver<'a>(&'a Cell<usize>);

impl<'a> Leaver<'a> {
    fn begin(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Leaver(count)
    }
}

impl Drop for Leaver<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
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
            intended: Cell::new(0),
            intents_changed: Notify::new(),
            leavers: Cell::new(0),
            has_left: Cell::new(false),
            is_unsure: Cell::new(false),
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
        self.is_unsure.set(false);
        Ok(())
    }

    /// Makes sure the device says dirty before the caller makes anything dirty.
    pub async fn dirty_intent(&self) -> io::Result<DirtyIntent<'_, E>> {
        if self.is_leaving() {
            return Err(io::Error::other("the volume goes on without its cache"));
        }
        self.intents.set(self.intents.get() + 1);
        self.intended.set(self.intended.get() + 1);
        let intent = DirtyIntent(self);
        let is_needed = || self.state() != BackingState::Dirty || self.is_unsure.get();
        if is_needed() && !mutations::is(Mutation::DirtyStateLate) {
            let _turn = self.turn.lock().await;
            if is_needed() {
                self.change_in_turn(|superblock| superblock.set_state(BackingState::Dirty))
                    .await?;
            }
        }
        Ok(intent)
    }

    /// Whether nothing becomes dirty any more.
    pub fn is_leaving(&self) -> bool {
        self.leavers.get() > 0 || self.has_left.get()
    }

    /// Has the device say that what is cached of it is void, if `is_clean` holds once all writes that may make something dirty are
    /// over. From then on it may be written without its cache: no later opening, of whoever, takes up what that has
    /// (docs/format.md 9.2, 9.3).
    pub async fn leave(&self, is_clean: impl Fn() -> bool) -> io::Result<bool> {
        if self.state() == BackingState::None {
            return Ok(true);
        }
        // Others who leave at the same time and find something dirty let nobody in as long as this one has not looked.
        let _leaver = Leaver::begin(&self.leavers);
        self.intents_changed
            .until(|| (self.intents.get() == 0).then_some(()))
            .await;
        let _turn = self.turn.lock().await;
        if matches!(self.state(), BackingState::Stale | BackingState::None) {
            return Ok(true);
        }
        if self.intents.get() > 0 || !is_clean() {
            return Ok(false);
        }
        // Also if it cannot be written: nobody knows what the device says then.
        self.has_left.set(true);
        if !mutations::is(Mutation::LeavesClean) {
            self.change_in_turn(|superblock| superblock.set_state(BackingState::Stale))
                .await?;
        }
        Ok(true)
    }

    /// Has the device say what it is to say as it is attached, unless it does already. What it left before does not matter any more.
    pub async fn join(&self, change: impl FnOnce(&mut Superblock)) -> io::Result<()> {
        let _turn = self.turn.lock().await;
        let mut next = self.get();
        change(&mut next);
        if next != self.get() {
            self.change_in_turn(|superblock| *superblock = next).await?;
        }
        self.has_left.set(false);
        Ok(())
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

    /// How often somebody was about to make something dirty.
    pub fn intended(&self) -> u64 {
        self.intended.get()
    }

    /// Lets the device say clean, if `is_clean` holds and nobody is about to make something dirty, nor was since `intended`. (What was
    /// made dirty meanwhile may be gone again, but not durably so.)
    pub async fn become_clean(
        &self,
        intended: u64,
        is_clean: impl Fn() -> bool,
    ) -> io::Result<bool> {
        let _turn = self.turn.lock().await;
        let was_wanted = self.intended.get() != intended;
        let is_wanted = self.intents.get() > 0 || was_wanted || !is_clean();
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
        if let Err(error) = write_superblock(&self.disk, &superblock).await {
            // Nobody knows which of the two it says.
            self.is_unsure.set(true);
            self.superblock.borrow_mut().set_state(BackingState::Dirty);
            return Err(error);
        }
        self.is_unsure.set(false);
        Ok(true)
    }

    /// Whether somebody makes data dirty now.
    pub fn has_intents(&self) -> bool {
        self.intents.get() > 0
    }

    /// Has the device say something else of itself from now on, durably. Nobody makes data dirty meanwhile that was clean before.
    pub async fn change(&self, change: impl FnOnce(&mut Superblock)) -> io::Result<()> {
        let _turn = self.turn.lock().await;
        self.change_in_turn(change).await
    }
}
