//! The background task: leaves are written in time, the journal gets room, and old pointers go before generations come round.

use super::{Aim, KEY_WORDS, Pass, Tree};
use crate::alloc::{GEN_AGE_WANTS_GC, GcBase};
use crate::btree::nodes::NodeId;
use crate::limits::{LEAF_DELAY, SWEEP_LEAVES, collections_held, leaf_batch};
use crate::marks::{self, Mark};
use brigade_env::Env;
use brigade_env::sync::yield_now;
use brigade_format::Pos;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// Leaves rewritten in one turn of a pass over all of them.
const GC_LEAVES: usize = 4;
/// Leaves are sparse if there are so many, and so many times what is needed.
const SPARSE_LEAVES: usize = 16;
const SPARSE: usize = 4;
/// Time left to clients after each of these turns, by the time it took, and at most.
const GC_REST: u32 = 3;
const GC_REST_MAX: Duration = Duration::from_millis(500);
/// Time after a pass that could not read a leaf in which no other begins by itself; twice as long after each further one, up to this.
const GC_AGAIN: Duration = Duration::from_secs(60);
const GC_AGAIN_MAX: Duration = Duration::from_secs(3600);
/// Generations behind from which on no time is left to anybody.
const GC_LATE: u8 = 80;
/// Empty buckets that are let go of in one step.
const GC_EMPTY: usize = 256;
/// Buckets that a gc looks at in one step.
const GC_BUCKETS: usize = 1 << 15;

impl<E: Env> Tree<E> {
    /// The background task: writes leaves when the journal needs room, when much is pending, or after a while; rewrites all
    /// of them when generations run away from the oldest pointers.
    pub async fn run(self: Rc<Self>) {
        self.running.set(true);
        self.clone().spawn_ticker();
        while !self.is_closing.get() && !self.poison.is_thrown() {
            let demand = self.demand.wait();
            let pressure = self.journal.pressure.wait();
            let memory = self.pages.leaf_writes_wanted.wait();
            if !matches!(self.round().await, Ok(true)) {
                crate::wait::either(demand, crate::wait::either(memory, pressure)).await;
            }
        }
        self.running.set(false);
        self.idle.notify_all();
    }

    fn spawn_ticker(self: Rc<Self>) {
        let env = self.env.clone();
        env.spawn(async move {
            while !self.is_closing.get() && !self.poison.is_thrown() {
                self.env.sleep(LEAF_DELAY / 6).await;
                self.demand.notify_all();
            }
        });
    }

    /// One round of background work; says whether it did something.
    async fn round(&self) -> io::Result<bool> {
        if self.journal.is_pressed() && self.relieve_journal().await? {
            return Ok(true);
        }
        let due = self.due();
        if !due.is_empty() {
            self.write_leaves(&due).await?;
            return Ok(true);
        }
        if self.is_paused() {
            return Ok(false);
        }
        if self.gc_asked.get() {
            return self.pass("asked for").await;
        }
        if self.env.now() < self.gc_not_before.get() {
            return Ok(false);
        }
        if self.is_sparse() {
            return self.pass("sparse leaves").await;
        }
        if self.buckets.get().need_gc() >= GEN_AGE_WANTS_GC && !collections_held() {
            return self.pass("generations").await;
        }
        Ok(false)
    }

    async fn relieve_journal(&self) -> io::Result<bool> {
        marks::hit(Mark::JournalPressed);
        let oldest: Vec<_> = self
            .index
            .borrow()
            .nodes
            .dirty()
            .take(leaf_batch())
            .collect();
        self.write_leaves(&oldest).await?;
        let frees = self.journal.would_free();
        if frees {
            self.journal.write_now().await?;
        }
        Ok(frees || !oldest.is_empty())
    }

    fn due(&self) -> Vec<NodeId> {
        let now = self.env.now();
        let index = self.index.borrow();
        let high = self.pending_words_high();
        // What is pending may keep clients from adding more.
        let has_room = self
            .buckets
            .get()
            .has_room_for_keys(2 * index.nodes.dirty_count());
        let is_short = !has_room || self.pages.is_short();
        let is_due = |id: &NodeId| {
            let node = index.nodes.get(*id);
            let old = node
                .pending_since
                .is_some_and(|since| now.saturating_sub(since) >= LEAF_DELAY);
            is_short || old || node.pending.len() * 3 > high
        };
        index
            .nodes
            .dirty()
            .filter(is_due)
            .take(leaf_batch())
            .collect()
    }

    /// Whether leaves could be far fewer, since there were once more extents. A pass may leave some sparse ones that have different
    /// parents; they are not tried again before extents halve once more.
    fn is_sparse(&self) -> bool {
        let index = self.index.borrow();
        let (extents, leaves) = (index.extents(), index.nodes.leaf_count());
        let most = self.extents_most.get().max(extents);
        self.extents_most.set(most);
        let needed = (extents * KEY_WORDS).div_ceil(self.words_of(0) * 3 / 5);
        let is_counted = index.nodes.uncounted() == 0;
        is_counted && leaves >= SPARSE_LEAVES && leaves > SPARSE * needed && extents < most / 2
    }

    /// Asks for a pass over all nodes, soon.
    pub fn ask_for_gc(&self) {
        self.gc_asked.set(true);
        self.demand.notify_all();
    }

    /// Passes since the start, and how the one goes that is under way, or how the last one went.
    pub fn gc(&self) -> (u64, Pass) {
        (self.gc_passes.get(), self.pass.borrow().clone())
    }

    /// Passes that failed since the start, and why the last one did.
    pub fn gc_failures(&self) -> (u64, String) {
        let failures = self.failures.borrow();
        (failures.count, failures.last.clone())
    }

    /// A pass, of which everybody may know.
    async fn pass(&self, reason: &'static str) -> io::Result<bool> {
        *self.pass.borrow_mut() = Pass {
            reason,
            is_running: true,
            began: self.env.now(),
            ..Pass::default()
        };
        let result = self.rewrite_everything().await;
        self.pass.borrow_mut().is_running = false;
        match &result {
            Ok(true) => {
                self.failures.borrow_mut().in_a_row = 0;
                let began = self.pass.borrow().began;
                self.pages.times.gc.record(began, self.env.now());
            }
            Ok(false) => return result,
            Err(error) => {
                tracing::warn!(device = self.disk.name(), %error, "a garbage collection failed");
                let mut failures = self.failures.borrow_mut();
                let pause = GC_AGAIN * (1 << failures.in_a_row.min(6));
                self.gc_not_before
                    .set(self.env.now() + pause.min(GC_AGAIN_MAX));
                failures.in_a_row += 1;
                failures.count += 1;
                failures.last = error.to_string();
            }
        }
        self.gc_asked.set(false);
        self.extents_most.set(self.index.borrow().extents());
        result
    }

    /// Rewrites every node, so that no pointer older than now's generations is left in the tree, not even a stale one to a
    /// node in an old set of an interior node. A leaf's new place makes its parents be written, and these are rewritten then.
    /// Says whether it came to its end.
    async fn rewrite_everything(&self) -> io::Result<bool> {
        let mut base = GcBase::default();
        while !self.buckets.get().gc_note(&mut base, GC_BUCKETS) {
            yield_now().await;
        }
        let began = {
            // What another turn copied before the note above must not count as new.
            let _turn = self.structure.lock().await;
            self.index.borrow_mut().nodes.begin_pass();
            self.journal.ask()
        };
        let done = self.rewrite_leaves_of_pass().await;
        self.index.borrow_mut().nodes.end_pass();
        if !done? {
            return Ok(false);
        }
        self.settle_after(began).await?;
        while !self.buckets.get_mut().gc_finish(&mut base, GC_BUCKETS) {
            yield_now().await;
        }
        while !self.buckets.get_mut().gc_release_empty(&mut base, GC_EMPTY) {
            yield_now().await;
        }
        self.buckets.released.notify_all();
        marks::hit(Mark::BtreeGcPass);
        self.gc_passes.set(self.gc_passes.get() + 1);
        self.buckets.demand.notify_all();
        Ok(true)
    }

    /// Everything else that this task does goes on in between. A leaf that cannot be read fails the pass, but only in the end.
    async fn rewrite_leaves_of_pass(&self) -> io::Result<bool> {
        let leaves = self.index.borrow().nodes.leaves();
        self.pass.borrow_mut().total = leaves.len();
        let mut result = Ok(true);
        for some in leaves.chunks(GC_LEAVES.min(leaf_batch())) {
            let (began, looks) = (self.env.now(), self.index.borrow().nodes.looks());
            if self.is_closing.get() || !self.can_rewrite(some) {
                return Ok(false);
            }
            if let Err(error) = self.write(some, Aim::New).await {
                self.poison.check()?;
                result = Err(error);
            }
            if self.journal.is_pressed() {
                self.relieve_journal().await?;
            }
            let due = self.due();
            self.write_leaves(&due).await?;
            self.pass.borrow_mut().done += some.len();
            self.make_way(began, looks).await?;
            self.rest_while_paused().await?;
        }
        result
    }

    /// What cannot wait goes on.
    async fn rest_while_paused(&self) -> io::Result<()> {
        while self.is_paused() && !self.is_closing.get() {
            self.poison.check()?;
            let demand = self.demand.wait();
            let pressure = self.journal.pressure.wait();
            let memory = self.pages.leaf_writes_wanted.wait();
            let due = self.due();
            self.write_leaves(&due).await?;
            if !self.journal.is_pressed() || !self.relieve_journal().await? {
                crate::wait::either(demand, crate::wait::either(memory, pressure)).await;
            }
        }
        Ok(())
    }

    /// Whether collections rest. They do not once generations are late.
    fn is_paused(&self) -> bool {
        self.gc_paused.get() && self.buckets.get().need_gc() < GC_LATE
    }

    /// Has passes rest, or go on.
    pub fn pause_gc(&self, is_paused: bool) {
        self.gc_paused.set(is_paused);
        self.demand.notify_all();
    }

    /// Whether passes are to rest.
    pub fn gc_paused(&self) -> bool {
        self.gc_paused.get()
    }

    /// Leaves device and processor to clients for a while, if there are some: they get [`GC_REST`] times what the work took that
    /// began then. Less time is left the closer generations are to their bound. What cannot wait goes on.
    async fn make_way(&self, began: Duration, looks: u64) -> io::Result<()> {
        yield_now().await;
        let is_alone = self.index.borrow().nodes.looks() == looks;
        let is_late = self.buckets.get().need_gc() >= GC_LATE || self.journal.is_pressed();
        if is_alone || is_late {
            return Ok(());
        }
        let took = self.env.now().saturating_sub(began);
        let mut until = self.env.now() + (took * GC_REST).min(GC_REST_MAX);
        let last = until + GC_REST_MAX;
        loop {
            let demand = self.demand.wait();
            let pressure = self.journal.pressure.wait();
            let memory = self.pages.leaf_writes_wanted.wait();
            let due = self.due();
            if !due.is_empty() {
                // That is no rest, and wants one.
                let began = self.env.now();
                self.write_leaves(&due).await?;
                until = last.min(until + (self.env.now() - began) * (1 + GC_REST));
            }
            let rest = until.saturating_sub(self.env.now());
            if rest.is_zero() || self.journal.is_pressed() || self.is_closing.get() {
                return Ok(());
            }
            let asked = crate::wait::either(demand, crate::wait::either(memory, pressure));
            crate::wait::either(self.env.sleep(rest), asked).await;
        }
    }

    /// Whether there are buckets for rewriting one of these leaves. Who waits for them holds up everything that may make some.
    fn can_rewrite(&self, leaves: &[NodeId]) -> bool {
        let is_old = |id: &&NodeId| {
            let nodes = &self.index.borrow().nodes;
            nodes.is_live(**id) && nodes.is_old(**id)
        };
        let first = leaves.iter().find(is_old);
        first.is_none_or(|id| self.has_buckets_for(&[*id]))
    }

    /// Rewrites the leaf that owns what ends behind a position and some that follow, none of which begins at `end` or behind; those
    /// that are mostly empty become one. Gives where the last of them ends, or `None` if there are no buckets for that now.
    pub async fn rewrite_behind(&self, pos: Pos, end: Pos) -> io::Result<Option<Pos>> {
        let _turn = self.structure.lock().await;
        self.poison.check()?;
        let mut leaves = {
            let nodes = &self.index.borrow().nodes;
            nodes.leaves_behind(pos, end, SWEEP_LEAVES.min(leaf_batch()))
        };
        while !leaves.is_empty() && !self.has_buckets_for(&leaves) {
            leaves.pop();
        }
        let Some(last) = leaves.last() else {
            return Ok(None);
        };
        let high = self.index.borrow().nodes.get(*last).key.pos();
        let rewritten = self.rewrite_leaves(&leaves, Aim::New).await;
        self.pages.shrink_all().await;
        self.pages.turn_ended();
        rewritten.map(|()| Some(high))
    }

    /// Whether there are buckets for rewriting these leaves, all together.
    fn has_buckets_for(&self, leaves: &[NodeId]) -> bool {
        let most: Vec<_> = leaves.iter().map(|id| self.new_leaves_most(*id)).collect();
        self.buckets_needed(leaves, &most) <= self.buckets.get().metadata_available()
    }

    /// Whether no crash can bring back a node that was replaced, nor a key of entry `seq` or before.
    pub fn is_outlived(&self, seq: u64) -> bool {
        let has_root = self.journal.durable_seq() >= self.root_seq.get();
        has_root && self.journal.durable_last_seq() > seq
    }

    /// Waits until no crash can bring back a node that was replaced before, nor a key from before entry `began`. The task that
    /// relieves the journal waits here, so it goes on relieving.
    async fn settle_after(&self, began: u64) -> io::Result<()> {
        let root = self.root_seq.get();
        loop {
            self.poison.check()?;
            let pressure = self.journal.pressure.wait();
            if self.journal.durable_seq() >= root && self.journal.durable_last_seq() > began {
                return Ok(());
            }
            // What is left of that time is only what was told to leaves twice.
            let pinned = self.index.borrow().nodes.pinned_through(began);
            self.write_leaves(&pinned).await?;
            if !self.journal.is_pressed() || !self.relieve_journal().await? {
                let seq = self.journal.ask();
                let flushed = async { drop(self.journal.flush_through(seq).await) };
                crate::wait::either(flushed, pressure).await;
            }
        }
    }

    /// Stops the background task and waits for its last round.
    pub async fn stop(&self) {
        self.is_closing.set(true);
        self.demand.notify_all();
        while self.running.get() {
            self.idle.wait().await;
        }
    }
}
