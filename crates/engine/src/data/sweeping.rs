//! What removed devices and volumes left goes, and their slots in the UUID table are free again.
//!
//! ```text
//! invalidated slots ─► their extents, a few at a time: holes in the index, journalled
//!    ─► every leaf of their ranges rewritten, so that none hides a key of theirs in an older set ─► looked through: nothing there
//!    ═► an entry that needs none with a key of theirs ─► UUID table with free slots ═► entry that names it ─► slots may be given out
//! ```
//! - **SWEEP-1** Only what an invalidated slot names goes, dirty data too: giving the slot up was the order for that. A slot
//!   that is free and has keys all the same means that the table is damaged (F51), and nothing of it is touched.
//! - **SWEEP-2** A slot becomes free when neither a leaf nor the replay range has a key of its inode, not even one that is hidden or stale
//!   (docs/format.md 4.6). So the next device that gets it cannot inherit anything, whoever opens the set, after whatever crash.
//! - **SWEEP-3** Who gives up a slot has ended everything that used it. From then on nobody adds keys to it: moving only replaces what is
//!   there.
//!
//! All of it is done again by the next opening if this one ends before the table is written; the slot is as it was until then.
//! The kernel never does any of this.

use super::clients::Clients;
use super::insert::Inserter;
use crate::btree::{Index, Pages, Tree};
use crate::buckets::Buckets;
use crate::error::Poison;
use crate::extents::Extent;
use crate::journal::Journal;
use crate::limits::{
    HOLE_SECTORS_MAX, MOVING_IDLE, SLICE_KEYS, SWEEP_EXTENTS, SWEEP_LOOK, SWEEP_PATIENCE,
};
use crate::marks::{self, Mark};
use crate::meta::UuidTable;
use crate::mutations::{self, Mutation};
use crate::stats::Counter;
use crate::steps::{Steps, Task};
use crate::watched::Watched;
use brigade_env::Env;
use brigade_env::sync::{Notify, yield_now};
use brigade_format::Pos;
use brigade_format::uuid_table::UuidEntry;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// Time between looks of who waits for a slot.
const SWEPT_LOOK: Duration = Duration::from_millis(10);
/// Pause after an error.
const PAUSE: Duration = Duration::from_secs(10);
/// Time left to clients after each step, by the time it took, and at most.
const REST: u32 = 3;
const REST_MAX: Duration = Duration::from_millis(500);
/// And at least.
const REST_MIN: Duration = Duration::from_millis(5);

/// What a set's sweeper works with.
pub struct SweeperParts<E: Env> {
    /// The world.
    pub env: E,
    /// Thrown when durability failed.
    pub poison: Rc<Poison>,
    /// Where steps are timed.
    pub steps: Rc<Steps>,
    /// The index.
    pub index: Rc<Watched<Index>>,
    /// Brings parts of it into memory.
    pub pages: Rc<Pages<E>>,
    /// The way into it.
    pub inserter: Rc<Inserter<E>>,
    /// Rewrites leaves.
    pub tree: Rc<Tree<E>>,
    /// What becomes free, and what that takes.
    pub buckets: Rc<Buckets>,
    /// Says what may be replayed.
    pub journal: Rc<Journal<E>>,
    /// The slots.
    pub uuids: Rc<UuidTable<E>>,
    /// Inodes with keys that were seen at the opening, whose slots are not given out.
    pub inodes_seen: Rc<RefCell<BTreeSet<u32>>>,
    /// Who else works on the volumes.
    pub clients: Rc<Clients>,
}

/// See the module documentation.
pub struct Sweeper<E: Env> {
    parts: SweeperParts<E>,
    /// Slots that became free.
    pub reclaimed_slots: Counter,
    /// Bytes that left the cache.
    pub reclaimed_bytes: Counter,
    is_closing: Cell<bool>,
    running: Cell<bool>,
    changed: Notify,
}

/// Inodes whose slots were given up.
type Removed = BTreeSet<u32>;

/// What a part of a leaf has of removed inodes.
struct Found {
    extents: Vec<Extent>,
    /// The leaf has yet to be told something about one.
    is_pending: bool,
    /// Where to go on.
    next: Pos,
}

impl<E: Env> Sweeper<E> {
    /// Of one set.
    pub fn new(parts: SweeperParts<E>) -> Rc<Self> {
        Rc::new(Sweeper {
            parts,
            reclaimed_slots: Counter::default(),
            reclaimed_bytes: Counter::default(),
            is_closing: Cell::new(false),
            running: Cell::new(false),
            changed: Notify::new(),
        })
    }

    /// A slot may have been given up: begins to sweep, unless that is under way. There is no task while there is nothing to do.
    pub fn look(self: &Rc<Self>) {
        if !self.removed().is_empty() && !self.running.replace(true) {
            let parts = &self.parts;
            let run = self.clone().run();
            let timed = parts.steps.timed(&parts.env, Task::Sweep, run);
            parts.env.spawn(timed);
        }
    }

    async fn run(self: Rc<Self>) {
        while !self.is_over() {
            let removed = self.removed();
            if removed.is_empty() {
                break;
            } else if self.parts.buckets.get().is_counting() {
                self.pause(SWEEP_LOOK).await;
            } else if let Err(error) = self.sweep(&removed).await
                && !self.is_over()
            {
                tracing::warn!(%error, "what removed devices left stays for now");
                self.pause(PAUSE).await;
            }
        }
        self.running.set(false);
        self.changed.notify_all();
    }

    /// Slots that were given up and are not free yet.
    pub fn removed(&self) -> BTreeSet<u32> {
        let entries = self.parts.uuids.entries();
        let slots = entries.iter().enumerate();
        slots
            .filter(|(_, entry)| entry.is_invalidated())
            .map(|(slot, _)| slot as u32)
            .collect()
    }

    /// Waits until all of them are free, as long as somebody wants it, but not for ever: buckets may be short, or leaves not be read.
    pub async fn swept(&self, is_wanted: impl Fn() -> bool) {
        let env = &self.parts.env;
        let until = env.now() + SWEEP_PATIENCE;
        let is_waited_for = || is_wanted() && !self.is_over() && env.now() < until;
        while is_waited_for() && !self.removed().is_empty() {
            env.sleep(SWEPT_LOOK).await;
        }
    }

    /// Whether no leaf says anything of an inode. Reads those leaves of it that nobody looked at yet.
    pub async fn is_unused(&self, inode: u32) -> io::Result<bool> {
        self.is_gone(&Removed::from([inode])).await
    }

    fn is_over(&self) -> bool {
        self.is_closing.get() || self.parts.poison.is_thrown()
    }

    async fn pause(&self, pause: Duration) {
        let closing = self.changed.wait();
        if !self.is_over() {
            crate::wait::either(self.parts.env.sleep(pause), closing).await;
        }
    }

    async fn sweep(&self, removed: &Removed) -> io::Result<()> {
        self.purge(removed).await?;
        if !mutations::is(Mutation::SlotSweptInMemory) {
            self.rewrite_leaves(removed).await?;
        }
        if self.is_over() || !self.is_gone(removed).await? {
            return Ok(());
        }
        if !mutations::is(Mutation::SlotRecycledEarly) {
            self.outlive().await?;
        }
        self.recycle(removed).await
    }

    // ---- extents -------------------------------------------------------------------------------------------------

    /// Takes all extents of removed inodes out of the index.
    async fn purge(&self, removed: &Removed) -> io::Result<()> {
        let mut at = first(removed, Pos::ZERO);
        while let Some(pos) = at {
            self.wait_for_room().await;
            if self.is_over() {
                return Ok(());
            }
            let began = self.parts.env.now();
            let found = self.find(removed, pos).await?;
            at = first(removed, found.next);
            if !found.extents.is_empty() {
                self.let_go(&found.extents).await?;
                self.make_way(began).await;
            }
            yield_now().await;
        }
        Ok(())
    }

    /// Holes take room in the journal and keep leaves from leaving memory until these are written. They make no leaf grow, and what
    /// goes makes buckets free: so a shortage of those slows this down and does not stop it.
    async fn wait_for_room(&self) {
        let parts = &self.parts;
        let dirty_leaves = parts.index.borrow().nodes.dirty_count();
        if !parts.buckets.get().has_room_for_keys(dirty_leaves) {
            parts.inserter.ask_for_leaf_writes();
            self.pause(SWEEP_LOOK).await;
        }
        while parts.journal.is_pressed() && !self.is_over() {
            self.pause(SWEEP_LOOK).await;
        }
    }

    /// Extents of removed inodes behind a position, among the next keys of one leaf.
    async fn find(&self, removed: &Removed, pos: Pos) -> io::Result<Found> {
        let parts = &self.parts;
        let (leaf, high, _) = parts.index.borrow().nodes.leaf_behind(pos);
        parts.pages.bring_leaf(leaf).await?;
        let index = parts.index.borrow();
        let Some(content) = index.nodes.content_between(leaf, pos, high) else {
            // Another one took its place, or it left again.
            return Ok(Found {
                extents: Vec::new(),
                is_pending: false,
                next: pos,
            });
        };
        let is_removed = |extent: &Extent| removed.contains(&extent.inode);
        let mut pending = index.nodes.get(leaf).pending.iter_between(pos, high);
        let mut found = Found {
            extents: Vec::new(),
            is_pending: pending.any(|extent| is_removed(&extent)),
            next: high,
        };
        for (seen, extent) in content.enumerate() {
            if is_removed(&extent) {
                found.extents.push(extent);
            }
            if seen + 1 == SLICE_KEYS || found.extents.len() == SWEEP_EXTENTS {
                found.next = extent.to_key().pos();
                break;
            }
        }
        Ok(found)
    }

    /// Lays holes over extents, which are ascending and of one leaf.
    async fn let_go(&self, extents: &[Extent]) -> io::Result<()> {
        marks::hit(Mark::SlotSwept);
        let is_live = |extent: &&Extent| {
            let is_stale = |ptr| self.parts.buckets.is_stale(ptr);
            extent.ptr.is_some_and(|ptr| !is_stale(ptr))
        };
        let sectors: u64 = extents.iter().filter(is_live).map(Extent::sectors).sum();
        self.parts.inserter.insert_all(&holes(extents)).await?;
        self.reclaimed_bytes.add(sectors * 512);
        Ok(())
    }

    // ---- leaves --------------------------------------------------------------------------------------------------

    /// Rewrites all leaves of removed inodes, which say nothing of these any more. (Older sets of theirs may.)
    async fn rewrite_leaves(&self, removed: &Removed) -> io::Result<()> {
        let mut at = first(removed, Pos::ZERO);
        while let Some(pos) = at.filter(|_| !self.is_over()) {
            let began = self.parts.env.now();
            let end = Pos {
                inode: pos.inode + 1,
                offset: 0,
            };
            match self.parts.tree.rewrite_behind(pos, end).await? {
                Some(high) => at = first(removed, high),
                None => self.pause(SWEEP_LOOK).await,
            }
            self.make_way(began).await;
        }
        Ok(())
    }

    /// Whether no leaf says anything of removed inodes, nor has yet to be told.
    async fn is_gone(&self, removed: &Removed) -> io::Result<bool> {
        let mut at = first(removed, Pos::ZERO);
        while let Some(pos) = at.filter(|_| !self.is_over()) {
            let found = self.find(removed, pos).await?;
            let is_told = mutations::is(Mutation::SlotSweptInMemory) || !found.is_pending;
            if !found.extents.is_empty() || !is_told {
                return Ok(false);
            }
            at = first(removed, found.next);
            yield_now().await;
        }
        Ok(true)
    }

    // ---- slots ---------------------------------------------------------------------------------------------------

    /// Waits until nothing that was journalled so far can be replayed (SWEEP-2). Leaves are written in their own time.
    async fn outlive(&self) -> io::Result<()> {
        let parts = &self.parts;
        let seq = parts.journal.ask();
        while !parts.tree.is_outlived(seq) {
            parts.poison.check()?;
            if self.is_over() {
                return Ok(());
            }
            if parts.journal.status().last_seq > seq {
                parts.journal.write_now().await?;
            } else {
                self.pause(SWEEP_LOOK).await;
            }
        }
        Ok(())
    }

    /// Makes slots free.
    async fn recycle(&self, removed: &Removed) -> io::Result<()> {
        let parts = &self.parts;
        // Who waits for a bucket for long poisons the set; this can wait.
        let turn = loop {
            let turn = parts.uuids.turn().await;
            if self.is_over() {
                return Ok(());
            }
            if parts.buckets.get().metadata_available() > 0 {
                break turn;
            }
            drop(turn);
            self.pause(SWEEP_LOOK).await;
        };
        let mut entries = parts.uuids.entries().clone();
        for slot in removed {
            let entry = &mut entries[*slot as usize];
            assert!(entry.is_invalidated(), "nobody else makes slots free");
            *entry = UuidEntry::EMPTY;
        }
        parts.uuids.write(&turn, &parts.journal, entries).await?;
        marks::hit(Mark::SlotRecycled);
        let mut seen = parts.inodes_seen.borrow_mut();
        seen.retain(|inode| !removed.contains(inode));
        self.reclaimed_slots.add(removed.len() as u64);
        Ok(())
    }

    // ---- pace ----------------------------------------------------------------------------------------------------

    /// Leaves device and processor to clients for a while, if there are some: a few times what the step took.
    async fn make_way(&self, began: Duration) {
        let now = self.parts.env.now();
        let idle = now.saturating_sub(self.parts.clients.last_request());
        if idle < MOVING_IDLE {
            let rest = (now.saturating_sub(began) * REST).clamp(REST_MIN, REST_MAX);
            self.pause(rest).await;
        }
    }

    /// Stops the task and waits for its last step.
    pub async fn stop(&self) {
        self.is_closing.set(true);
        self.changed.notify_all();
        while self.running.get() {
            self.changed.wait().await;
        }
    }
}

/// The first position at or behind another one behind which a removed inode may have something.
fn first(removed: &Removed, pos: Pos) -> Option<Pos> {
    let inode = *removed.range(pos.inode..).next()?;
    (pos < Pos::MAX).then_some(pos.max(Pos { inode, offset: 0 }))
}

/// As few holes as it takes to cover extents. What lies between two of them is nobody's either.
fn holes(extents: &[Extent]) -> Vec<Extent> {
    let mut holes: Vec<Extent> = Vec::new();
    for extent in extents {
        match holes.last_mut() {
            Some(last)
                if last.inode == extent.inode && extent.end - last.start <= HOLE_SECTORS_MAX =>
            {
                last.end = extent.end;
            }
            _ => holes.push(Extent::hole(extent.inode, extent.start, extent.end)),
        }
    }
    holes
}

#[cfg(test)]
mod tests {
    use super::*;
    use brigade_format::{Gen, Ptr};

    #[test]
    fn one_hole_covers_extents_and_what_is_between_them_as_far_as_one_key_goes() {
        let extent = |inode, start: u64, end| Extent {
            inode,
            start,
            end,
            ptr: Some(Ptr::new(start, Gen(1))),
            dirty: true,
        };
        let extents = [
            extent(1, 8, 16),
            extent(1, 100, 101),
            extent(1, 8 + HOLE_SECTORS_MAX - 1, 8 + HOLE_SECTORS_MAX + 1),
            extent(2, 8 + HOLE_SECTORS_MAX + 1, 8 + HOLE_SECTORS_MAX + 5),
        ];
        let wanted = [
            Extent::hole(1, 8, 101),
            Extent::hole(1, extents[2].start, extents[2].end),
            Extent::hole(2, extents[3].start, extents[3].end),
        ];
        assert_eq!(holes(&extents), wanted);
    }

    #[test]
    fn positions_go_on_with_the_next_removed_inode() {
        let removed = BTreeSet::from([3, 7]);
        let pos = |inode, offset| Pos { inode, offset };
        assert_eq!(first(&removed, Pos::ZERO), Some(pos(3, 0)));
        assert_eq!(first(&removed, pos(3, 90)), Some(pos(3, 90)));
        assert_eq!(first(&removed, pos(5, 90)), Some(pos(7, 0)));
        assert_eq!(first(&removed, pos(8, 0)), None);
        assert_eq!(first(&BTreeSet::from([Pos::MAX.inode]), Pos::MAX), None);
    }
}
