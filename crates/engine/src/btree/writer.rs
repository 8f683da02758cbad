//! Writing nodes: appends, rewrites, splits, new roots.
//!
//! One structural turn at a time. A turn plans synchronously (takes pending sets, cuts content into nodes), then writes:
//!
//! ```text
//! append:   flush (data the keys name) ─► tails ─► flush ─► first units (durable) ─► unpin
//! rewrite:  buckets ─► flush ─► new nodes (durable) ─► parent: append or rewrite ─► ... ─► unpin, free the old bucket
//! new root: node (durable) ─► journal entry naming it ─► free the old bucket
//! ```
//!
//! No turn waits for the journal entry that names a new root: the journal may have no room before more leaves are written.
//! Pins can be given back at once, because they only hold back the headers of entries to come, which name the new root.
//! Buckets cannot: the root of the last durable entry still leads to them, so they are *retired* until the entry is durable.

use super::index::Index;
use super::nodes::NodeId;
use crate::alloc::{GEN_AGE_WANTS_GC, GcBase, MetadataBucket};
use crate::buckets::Buckets;
use crate::device::Disk;
use crate::error::Poison;
use crate::extents::Extent;
use crate::journal::Journal;
use crate::limits::{LEAF_DELAY, LEAF_PENDING_WORDS, SECTOR, leaf_batch};
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use brigade_env::sync::{Lock, Notify, join_all, yield_now};
use brigade_env::{Durability, Env};
use brigade_format::{BucketNr, Key, Pos, Ptr, key_words, node};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::{Rc, Weak};

/// Sizes of a set that nodes depend on.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// For checksums and magics.
    pub set_magic: u64,
    /// Sectors of a bucket.
    pub bucket_sectors: u64,
    /// Sectors of a block.
    pub block_sectors: u64,
    /// Sectors of a new node.
    pub node_sectors: u64,
    /// Bytes the device writes as one: the smaller of block and physical sector, not less than the logical one.
    pub unit_bytes: usize,
}

/// See the module documentation.
pub struct Tree<E: Env> {
    env: E,
    disk: Rc<Disk<E>>,
    poison: Rc<Poison>,
    layout: Layout,
    index: Rc<RefCell<Index>>,
    buckets: Rc<Buckets>,
    journal: Rc<Journal<E>>,
    structure: Lock,
    me: Weak<Tree<E>>,
    /// Journal entry that names the root as it is now.
    root_seq: Cell<u64>,
    /// Buckets of replaced nodes, by the entry whose root does not lead to them any more (TREE-5).
    retired: RefCell<BTreeMap<u64, Vec<BucketNr>>>,
    /// A leaf has much pending.
    pub demand: Notify,
    gc_passes: Cell<u64>,
    is_closing: Cell<bool>,
    idle: Notify,
    running: Cell<bool>,
}

/// Leaves rewritten in one turn of a pass over all of them.
const GC_LEAVES: usize = 8;
/// Empty buckets that are let go of in one step.
const GC_EMPTY: usize = 256;
/// Buckets that a gc looks at in one step.
const GC_BUCKETS: usize = 1 << 15;
/// Words of a node's key in its parent.
const KEY_WORDS: usize = 3;

struct Write {
    sector: u64,
    bytes: Vec<u8>,
}

impl<E: Env> Tree<E> {
    /// Ties the parts together.
    pub fn new(
        env: E,
        disk: Rc<Disk<E>>,
        poison: Rc<Poison>,
        layout: Layout,
        index: Rc<RefCell<Index>>,
        buckets: Rc<Buckets>,
        journal: Rc<Journal<E>>,
    ) -> Rc<Self> {
        Rc::new_cyclic(|me| Tree {
            me: me.clone(),
            root_seq: Cell::new(0),
            retired: RefCell::default(),
            env,
            disk,
            poison,
            layout,
            index,
            buckets,
            journal,
            structure: Lock::default(),
            demand: Notify::new(),
            gc_passes: Cell::new(0),
            is_closing: Cell::new(false),
            idle: Notify::new(),
            running: Cell::new(false),
        })
    }

    /// Passes over all nodes since the start.
    pub fn gc_passes(&self) -> u64 {
        self.gc_passes.get()
    }

    /// Pending words at which a leaf should be written.
    pub fn pending_words_high(&self) -> usize {
        LEAF_PENDING_WORDS.min(self.node_words() / 4)
    }

    /// Writes every leaf with something pending and waits until all that was pending at the call is durable.
    pub async fn write_all(&self) -> io::Result<()> {
        let ids: Vec<_> = self.index.borrow().nodes.dirty().collect();
        for batch in ids.chunks(leaf_batch()) {
            self.write_leaves(batch).await?;
        }
        Ok(())
    }

    /// Makes these leaves durable as they are now (or were at some time during the call).
    pub async fn write_leaves(&self, ids: &[NodeId]) -> io::Result<()> {
        let _turn = self.structure.lock().await;
        self.poison.check()?;
        let mut writes = Vec::new();
        let mut pins = Vec::new();
        let mut rewrites = Vec::new();
        for &id in ids {
            match self.plan_append(id) {
                Plan::Nothing => (),
                Plan::Append(write, pin) => {
                    writes.push(write);
                    pins.extend(pin);
                }
                Plan::Rewrite => rewrites.push(id),
            }
        }
        if !writes.is_empty() {
            marks::hit(Mark::BtreeAppend);
            if mutations::is(Mutation::LeafUnpinsEarly) {
                self.unpin(std::mem::take(&mut pins));
            }
            if !mutations::is(Mutation::LeafForgetsFlush) {
                self.disk.flush().await?;
            }
            self.append(writes).await?;
            self.unpin(pins);
        }
        self.rewrite_leaves(&rewrites).await
    }

    fn unpin(&self, pins: impl IntoIterator<Item = u64>) {
        pins.into_iter().for_each(|seq| self.journal.unpin(seq));
    }

    fn plan_append(&self, id: NodeId) -> Plan {
        let mut index = self.index.borrow_mut();
        if !index.nodes.is_live(id) {
            return Plan::Nothing;
        }
        let node = index.nodes.get(id);
        if node.rewrite_wanted {
            return Plan::Rewrite;
        }
        if node.pending.is_empty() {
            return Plan::Nothing;
        }
        let words = node
            .pending
            .iter()
            .map(|extent| extent.to_key().words())
            .sum();
        let Some(sector) = self.append_at(node.key, node.blocks_used, words) else {
            return Plan::Rewrite;
        };
        let (key, seq) = (node.key, node.seq);
        let (pending, pin) = index.nodes.take_pending(id);
        let keys: Vec<_> = pending.iter().map(|extent| extent.to_key()).collect();
        let bytes = self.encode(&keys, seq, key);
        index.nodes.get_mut(id).blocks_used += bytes.len() as u64 / self.block_bytes();
        Plan::Append(Write { sector, bytes }, pin)
    }

    /// Where a set of `words` goes in a node, if it still fits.
    fn append_at(&self, key: Key, blocks_used: u64, words: usize) -> Option<u64> {
        let blocks = u64::from(key.size()) / self.layout.block_sectors;
        let needed = (node::HEADER_BYTES as u64 + words as u64 * 8).div_ceil(self.block_bytes());
        let start = key.ptr(0).expect("a node has a place").sector();
        (blocks_used + needed <= blocks).then_some(start + blocks_used * self.layout.block_sectors)
    }

    fn block_bytes(&self) -> u64 {
        self.layout.block_sectors * SECTOR
    }

    /// Words of keys that fit an empty node in one set.
    fn node_words(&self) -> usize {
        (self.layout.node_sectors * SECTOR) as usize / 8 - node::HEADER_BYTES / 8
    }

    fn encode(&self, keys: &[Key], seq: u64, node: Key) -> Vec<u8> {
        let ptr = node.ptr(0).expect("a node has a place");
        node::encode_bset(
            &key_words(keys),
            seq,
            ptr,
            self.layout.set_magic,
            self.block_bytes() as usize,
        )
    }

    /// Makes sets visible, each as a whole (TREE-4).
    async fn append(&self, writes: Vec<Write>) -> io::Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        let unit = self.layout.unit_bytes;
        let tail = |write: &Write| {
            (write.bytes.len() > unit).then(|| (write.sector, write.bytes[unit..].to_vec()))
        };
        let tails: Vec<_> = writes.iter().filter_map(tail).collect();
        if !tails.is_empty() {
            let write = |(sector, bytes): (u64, Vec<u8>)| async move {
                self.disk
                    .write_metadata(sector + unit as u64 / SECTOR, &bytes, Durability::Volatile)
                    .await
            };
            marks::hit(Mark::BtreeFirstUnitApart);
            all_ok(join_all(tails.into_iter().map(write)).await)?;
            if !mutations::is(Mutation::AppendTailVolatile) {
                self.disk.flush().await?;
            }
        }
        let head = |write: Write| async move {
            let head = &write.bytes[..unit.min(write.bytes.len())];
            self.disk
                .write_metadata(write.sector, head, Durability::Durable)
                .await
        };
        all_ok(join_all(writes.into_iter().map(head)).await)
    }

    /// Writes new nodes, which nothing names yet.
    async fn write_new(&self, writes: Vec<Write>) -> io::Result<()> {
        let write = |write: Write| async move {
            self.disk
                .write_metadata(write.sector, &write.bytes, Durability::Durable)
                .await
        };
        all_ok(join_all(writes.into_iter().map(write)).await)
    }

    /// Rewrites leaves together, as many at a time as there are buckets for: their parents, and above all the journal
    /// entry that names a new root, are then written once for all of them.
    async fn rewrite_leaves(&self, ids: &[NodeId]) -> io::Result<()> {
        let mut rest = ids;
        while !rest.is_empty() {
            let (mut spare, count) = self.reserve_for(rest).await?;
            let (now, later) = rest.split_at(count);
            rest = later;
            let (mut writes, mut replaced, mut pins) = (Vec::new(), Vec::new(), Vec::new());
            for &id in now {
                let content = self.leaf_content(id);
                let (some, news, pin) = self.plan_rewrite(id, content, &mut spare);
                if news.len() == 1 {
                    marks::hit(Mark::BtreeLeafRewrite);
                } else {
                    marks::hit(Mark::BtreeLeafSplit);
                }
                writes.extend(some);
                replaced.push((id, news));
                pins.extend(pin);
            }
            if !mutations::is(Mutation::LeafForgetsFlush) {
                self.disk.flush().await?;
            }
            self.write_new(writes).await?;
            self.replace(replaced, &mut spare, pins).await?;
            self.buckets
                .free_metadata(spare.into_iter().map(|bucket| bucket.nr));
        }
        Ok(())
    }

    /// Takes buckets for rewriting the first of these leaves, at least one, and all their ancestors; says how many leaves.
    /// Nothing happens between the last look at what is needed and the return.
    async fn reserve_for(&self, ids: &[NodeId]) -> io::Result<(Vec<MetadataBucket>, usize)> {
        let mut sizes = self.new_leaves(ids);
        loop {
            let there = self.buckets.get().metadata_available();
            let mut count = ids.len();
            while count > 1 && self.buckets_needed(&ids[..count], &sizes[..count]) > there {
                marks::hit(Mark::BtreeFewerAtOnce);
                count = count.div_ceil(2);
            }
            let needed = self.buckets_needed(&ids[..count], &sizes[..count]);
            if needed <= there {
                return Ok((self.buckets.take_metadata(needed).await?, count));
            }
            let taken = self.buckets.take_metadata(needed).await?;
            // While it waited, the leaves may have grown.
            sizes = self.new_leaves(ids);
            if self.buckets_needed(&ids[..count], &sizes[..count]) <= taken.len() {
                return Ok((taken, count));
            }
            self.buckets
                .free_metadata(taken.into_iter().map(|bucket| bucket.nr));
        }
    }

    /// How many leaves take the place of each of these.
    fn new_leaves(&self, leaves: &[NodeId]) -> Vec<usize> {
        let count = |id: &NodeId| {
            let words = self
                .leaf_content(*id)
                .into_iter()
                .map(|extent| extent.to_key().words());
            groups(words, self.node_words()).len()
        };
        leaves.iter().map(count).collect()
    }

    /// The most buckets that rewriting these leaves, which become so many each, and everything above them can take.
    fn buckets_needed(&self, leaves: &[NodeId], new_leaves: &[usize]) -> usize {
        let above = |news: usize| (news * KEY_WORDS).div_ceil(self.node_words() * 3 / 5);
        let mut news: usize = new_leaves.iter().sum();
        let mut needed = news;
        let index = self.index.borrow();
        let mut level: BTreeSet<NodeId> = leaves.iter().copied().collect();
        while level.iter().any(|id| index.nodes.get(*id).parent.is_some()) {
            level = level
                .iter()
                .filter_map(|id| index.nodes.get(*id).parent)
                .collect();
            news = level.len() * 3 + above(news);
            needed += news;
        }
        // New levels above what is the root now.
        while news > 1 {
            news = if news * KEY_WORDS <= self.node_words() * 4 / 5 {
                1
            } else {
                above(news).max(2)
            };
            needed += news;
        }
        needed + 2
    }

    fn leaf_content(&self, id: NodeId) -> Vec<Extent> {
        let mut index = self.index.borrow_mut();
        let alloc = self.buckets.get();
        let node = index.nodes.get(id);
        let all: Vec<_> = index.map.iter_between(node.low, node.key.pos()).collect();
        index.purge_stale(&alloc, &all);
        all.into_iter()
            .filter(|extent| extent.ptr.is_some_and(|ptr| !alloc.is_stale(ptr)))
            .collect()
    }

    /// Cuts the content into new leaves that take the old one's place in memory at once.
    fn plan_rewrite(
        &self,
        id: NodeId,
        content: Vec<Extent>,
        spare: &mut Vec<MetadataBucket>,
    ) -> (Vec<Write>, Vec<NodeId>, Option<u64>) {
        let keys: Vec<_> = content.iter().map(Extent::to_key).collect();
        let mut index = self.index.borrow_mut();
        let (_, pin) = index.nodes.take_pending(id);
        let (low, high) = (index.nodes.get(id).low, index.nodes.get(id).key.pos());
        // The old leaf leaves the search order before the last new one, with the same position, enters it.
        index.nodes.hide_leaf(id);
        let parent = index.nodes.get(id).parent;
        let (writes, news) = self.cut(&mut index, 0, keys, low, high, parent, spare);
        (writes, news, pin)
    }

    /// Cuts keys into nodes of one level, adds these to the tree and says what to write.
    #[allow(
        clippy::too_many_arguments,
        reason = "one place describes a run of sibling nodes"
    )]
    fn cut(
        &self,
        index: &mut Index,
        level: u16,
        keys: Vec<Key>,
        low: Pos,
        high: Pos,
        parent: Option<NodeId>,
        spare: &mut Vec<MetadataBucket>,
    ) -> (Vec<Write>, Vec<NodeId>) {
        let sizes = groups(keys.iter().map(Key::words), self.node_words());
        let mut rest = &keys[..];
        let mut low = low;
        let mut writes = Vec::new();
        let mut news = Vec::new();
        for (i, &count) in sizes.iter().enumerate() {
            let (mine, others) = rest.split_at(count);
            rest = others;
            let last = i + 1 == sizes.len();
            let pos = if last {
                high
            } else {
                mine.last().expect("only the last group may be empty").pos()
            };
            let bucket = spare.pop().expect("reserved");
            let sector = bucket.nr.0 * self.layout.bucket_sectors;
            let key = Key::node(
                pos,
                self.layout.node_sectors as u32,
                Ptr::new(sector, bucket.r#gen),
            );
            let seq = self.env.random_u64().max(1);
            let bytes = self.encode(mine, seq, key);
            let blocks = bytes.len() as u64 / self.block_bytes();
            writes.push(Write { sector, bytes });
            news.push(index.nodes.add(level, key, low, seq, blocks, parent));
            low = pos;
        }
        (writes, news)
    }

    /// Puts new nodes, durable already, in the place of old ones of the same level, up to the root if need be (TREE-5).
    /// `pins` are given back as soon as the journal may let go of what the old leaves had pending.
    async fn replace(
        &self,
        replaced: Vec<Replaced>,
        spare: &mut Vec<MetadataBucket>,
        pins: Vec<u64>,
    ) -> io::Result<()> {
        let old_keys: Vec<Key> = {
            let index = self.index.borrow();
            replaced
                .iter()
                .map(|(old, _)| index.nodes.get(*old).key)
                .collect()
        };
        let is_root = self
            .index
            .borrow()
            .nodes
            .get(replaced[0].0)
            .parent
            .is_none();
        if is_root {
            assert_eq!(replaced.len(), 1, "a tree has one root");
            for (old, news) in replaced {
                self.replace_root(old, news, spare, pins.clone()).await?;
            }
        } else {
            Box::pin(self.replace_children(replaced, spare, pins)).await?;
        }
        let place = |key: &Key| {
            key.ptr(0)
                .expect("a node has a place")
                .bucket(self.layout.bucket_sectors as u32)
        };
        self.retire(old_keys.iter().map(place));
        Ok(())
    }

    /// Frees buckets of replaced nodes, as soon as the root that does not lead to them is named durably (TREE-5).
    fn retire(&self, buckets: impl Iterator<Item = BucketNr>) {
        let root_seq = self.root_seq.get();
        if self.journal.durable_seq() >= root_seq {
            self.buckets.free_metadata(buckets);
            return;
        }
        marks::hit(Mark::BtreeRetired);
        if mutations::is(Mutation::NodeFreedEarly) {
            self.buckets.free_metadata(buckets);
        } else {
            self.retired
                .borrow_mut()
                .entry(root_seq)
                .or_default()
                .extend(buckets);
        }
    }

    /// Asks for the entry that names the new root, and frees what waits for it once it is durable.
    fn name_root(&self) {
        let seq = self.journal.ask();
        self.root_seq.set(seq);
        let me = self.me.clone();
        let journal = self.journal.clone();
        self.env.spawn(async move {
            if journal.flush_through(seq).await.is_err() {
                return;
            }
            if let Some(tree) = me.upgrade() {
                let waiting = tree.retired.borrow_mut().split_off(&(seq + 1));
                let free = tree.retired.replace(waiting);
                tree.buckets.free_metadata(free.into_values().flatten());
            }
        });
    }

    async fn replace_root(
        &self,
        old: NodeId,
        news: Vec<NodeId>,
        spare: &mut Vec<MetadataBucket>,
        pins: Vec<u64>,
    ) -> io::Result<()> {
        let mut top = news;
        while top.len() > 1 {
            marks::hit(Mark::BtreeNewLevel);
            let (writes, above) = self.plan_level(&top, spare);
            self.write_new(writes).await?;
            top = above;
        }
        let root = top[0];
        let (key, level) = {
            let mut index = self.index.borrow_mut();
            index.nodes.set_root(root);
            index.nodes.remove(old);
            (index.nodes.get(root).key, index.nodes.get(root).level)
        };
        if !mutations::is(Mutation::RootForgotten) {
            self.journal.set_roots(|roots| {
                roots.root = key;
                roots.root_level = level;
            });
        }
        // The entry that names the new root needs no entry whose keys the new root has: it makes room by itself.
        self.unpin(pins);
        self.name_root();
        Ok(())
    }

    /// A level of interior nodes over these siblings, which are all there are of their level.
    fn plan_level(
        &self,
        below: &[NodeId],
        spare: &mut Vec<MetadataBucket>,
    ) -> (Vec<Write>, Vec<NodeId>) {
        let mut index = self.index.borrow_mut();
        let level = index.nodes.get(below[0]).level + 1;
        let keys = below.iter().map(|id| index.nodes.get(*id).key).collect();
        let (writes, nodes) = self.cut(&mut index, level, keys, Pos::ZERO, Pos::MAX, None, spare);
        adopt_in_order(&mut index, &nodes, below);
        (writes, nodes)
    }

    async fn replace_children(
        &self,
        replaced: Vec<Replaced>,
        spare: &mut Vec<MetadataBucket>,
        pins: Vec<u64>,
    ) -> io::Result<()> {
        let (mut appends, mut writes, mut above) = (Vec::new(), Vec::new(), Vec::new());
        for (parent, keys) in self.move_in(replaced) {
            match self.plan_interior(&mut self.index.borrow_mut(), parent, &keys, spare) {
                InteriorPlan::Append(write) => {
                    marks::hit(Mark::BtreeInteriorAppend);
                    appends.push(write);
                }
                InteriorPlan::Rewrite(some, parents) => {
                    marks::hit(Mark::BtreeInteriorRewrite);
                    if parents.len() > 1 {
                        marks::hit(Mark::BtreeInteriorSplit);
                    }
                    writes.extend(some);
                    above.push((parent, parents));
                }
            }
        }
        self.append(appends).await?;
        self.write_new(writes).await?;
        if above.is_empty() {
            self.unpin(pins);
            return Ok(());
        }
        self.replace(above, spare, pins).await
    }

    /// In memory, the new children take the place of the old ones. Gives for each parent the keys that say so.
    fn move_in(&self, replaced: Vec<Replaced>) -> BTreeMap<NodeId, Vec<Key>> {
        let mut index = self.index.borrow_mut();
        let mut keys: BTreeMap<NodeId, (Vec<Key>, Vec<Key>)> = BTreeMap::new();
        for (old, news) in replaced {
            let parent = index.nodes.get(old).parent.expect("not the root");
            let old_key = index.nodes.get(old).key;
            let old_ptr = old_key.ptr(0).expect("a node has a place");
            let (freeing, live) = keys.entry(parent).or_default();
            freeing.push(Key::freeing(
                old_key.size(),
                Ptr::new(old_ptr.sector(), old_ptr.r#gen().next()),
            ));
            live.extend(news.iter().map(|id| index.nodes.get(*id).key));
            index.nodes.get_mut(parent).children.remove(&old_key.pos());
            index.nodes.adopt(parent, &news);
            index.nodes.remove(old);
        }
        let sorted = |(mut freeing, mut live): (Vec<Key>, Vec<Key>)| {
            live.sort_by_key(Key::pos);
            freeing.append(&mut live);
            freeing
        };
        keys.into_iter()
            .map(|(parent, both)| (parent, sorted(both)))
            .collect()
    }

    fn plan_interior(
        &self,
        index: &mut Index,
        id: NodeId,
        keys: &[Key],
        spare: &mut Vec<MetadataBucket>,
    ) -> InteriorPlan {
        let node = index.nodes.get(id);
        let words = keys.iter().map(Key::words).sum();
        let place = self.append_at(node.key, node.blocks_used, words);
        if let Some(sector) = place.filter(|_| !node.rewrite_wanted) {
            let bytes = self.encode(keys, node.seq, node.key);
            index.nodes.get_mut(id).blocks_used += bytes.len() as u64 / self.block_bytes();
            return InteriorPlan::Append(Write { sector, bytes });
        }
        let (level, low, high, parent) = (node.level, node.low, node.key.pos(), node.parent);
        let children: Vec<_> = node.children.values().copied().collect();
        let keys = children
            .iter()
            .map(|child| index.nodes.get(*child).key)
            .collect();
        let (writes, parents) = self.cut(index, level, keys, low, high, parent, spare);
        index.nodes.get_mut(id).children.clear();
        adopt_in_order(index, &parents, &children);
        InteriorPlan::Rewrite(writes, parents)
    }

    /// The background task: writes leaves when the journal needs room, when much is pending, or after a while; rewrites all
    /// of them when generations run away from the oldest pointers.
    pub async fn run(self: Rc<Self>) {
        self.running.set(true);
        self.clone().spawn_ticker();
        while !self.is_closing.get() && !self.poison.is_thrown() {
            let demand = self.demand.wait();
            let pressure = self.journal.pressure.wait();
            if !matches!(self.round().await, Ok(true)) {
                crate::wait::either(demand, pressure).await;
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
        if self.buckets.get().need_gc() >= GEN_AGE_WANTS_GC {
            self.rewrite_everything().await?;
            return Ok(true);
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
        let is_short = !self
            .buckets
            .get()
            .has_room_for_keys(2 * index.nodes.dirty_count());
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

    /// Rewrites every node, so that no pointer older than now's generations is left in the tree, not even a stale one to a
    /// node in an old set of an interior node. A leaf's new place makes its parents be written, and these are rewritten then.
    async fn rewrite_everything(&self) -> io::Result<()> {
        let mut base = GcBase::default();
        while !self.buckets.get().gc_note(&mut base, GC_BUCKETS) {
            yield_now().await;
        }
        let began = self.journal.ask();
        let leaves = {
            let nodes = &mut self.index.borrow_mut().nodes;
            nodes.want_rewrite(!mutations::is(Mutation::GcLeavesOnly));
            nodes.leaves()
        };
        for some in leaves.chunks(GC_LEAVES.min(leaf_batch())) {
            self.write_leaves(some).await?;
            if self.is_closing.get() {
                return Ok(());
            }
            if self.journal.is_pressed() {
                self.relieve_journal().await?;
            }
            yield_now().await;
        }
        self.settle_root().await?;
        while !self.buckets.get_mut().gc_finish(&mut base, GC_BUCKETS) {
            yield_now().await;
        }
        if self.journal.durable_last_seq() > began {
            while !self.buckets.get_mut().gc_release_empty(&mut base, GC_EMPTY) {
                yield_now().await;
            }
            self.buckets.released.notify_all();
        }
        marks::hit(Mark::BtreeGcPass);
        self.gc_passes.set(self.gc_passes.get() + 1);
        self.buckets.demand.notify_all();
        Ok(())
    }

    /// Waits until no crash can bring back a node that was replaced before. The task that relieves the journal waits here, so
    /// it goes on relieving.
    async fn settle_root(&self) -> io::Result<()> {
        let seq = self.root_seq.get();
        loop {
            self.poison.check()?;
            let pressure = self.journal.pressure.wait();
            if self.journal.durable_seq() >= seq {
                return Ok(());
            }
            if !self.journal.is_pressed() || !self.relieve_journal().await? {
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

/// A node and what takes its place.
type Replaced = (NodeId, Vec<NodeId>);

enum Plan {
    Nothing,
    Append(Write, Option<u64>),
    Rewrite,
}

enum InteriorPlan {
    Append(Write),
    Rewrite(Vec<Write>, Vec<NodeId>),
}

/// How many keys go into each node: one node if they fill at most 4/5 of it, else runs of about 3/5 (docs/format.md 4.7).
fn groups(words: impl Iterator<Item = usize>, node_words: usize) -> Vec<usize> {
    let words: Vec<usize> = words.collect();
    let total: usize = words.iter().sum();
    if total <= node_words * 4 / 5 {
        return vec![words.len()];
    }
    let nodes = total.div_ceil(node_words * 3 / 5).max(2);
    let target = total.div_ceil(nodes);
    let mut counts = Vec::new();
    let (mut count, mut filled) = (0, 0);
    for size in words {
        if filled + size > target && count > 0 {
            counts.push(count);
            (count, filled) = (0, 0);
        }
        count += 1;
        filled += size;
    }
    counts.push(count);
    counts
}

/// Gives each child to the parent whose range it is in; both come in order.
fn adopt_in_order(index: &mut Index, parents: &[NodeId], children: &[NodeId]) {
    let mut rest = children;
    for &parent in parents {
        let high = index.nodes.get(parent).key.pos();
        let mine = rest
            .iter()
            .take_while(|child| index.nodes.get(**child).key.pos() <= high)
            .count();
        let (mine, others) = rest.split_at(mine);
        index.nodes.adopt(parent, mine);
        rest = others;
    }
    assert!(rest.is_empty(), "every child has a parent");
}

fn all_ok(results: Vec<io::Result<()>>) -> io::Result<()> {
    results.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_up_to_four_fifths_stays_one_node_and_more_is_split_evenly() {
        assert_eq!(groups([].into_iter(), 100), [0]);
        assert_eq!(groups([3; 26].into_iter(), 100), [26]);
        let counts = groups([3; 30].into_iter(), 100);
        assert_eq!(counts, [15, 15]);
        let many = groups([3; 1000].into_iter(), 100);
        assert_eq!(many.iter().sum::<usize>(), 1000);
        assert!(many.iter().all(|count| count * 3 <= 80), "{many:?}");
    }
}
