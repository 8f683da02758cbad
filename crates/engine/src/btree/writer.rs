//! Writing nodes: appends, rewrites, splits, new roots.
//!
//! One structural turn at a time. A turn plans synchronously (takes pending sets, cuts content into nodes), then writes:
//!
//! ```text
//! append:   flush (data the keys name) ─► tails ─► flush ─► first units (durable) ─► unpin
//! rewrite:  buckets ─► flush ─► new nodes (durable) ─► parent: append or rewrite ─► ... ─► unpin, free the old bucket
//! new root: node (durable) ─► journal entry naming it ─► free the old bucket
//! ```

use super::index::Index;
use super::nodes::NodeId;
use crate::alloc::{GEN_AGE_WANTS_GC, MetadataBucket};
use crate::buckets::Buckets;
use crate::device::Disk;
use crate::error::Poison;
use crate::extents::Extent;
use crate::journal::Journal;
use crate::limits::{LEAF_BATCH, LEAF_DELAY, LEAF_PENDING_WORDS, SECTOR};
use brigade_env::sync::{Lock, Notify, join_all, yield_now};
use brigade_env::{Durability, Env};
use brigade_format::{Key, Pos, Ptr, key_words, node};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

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
    /// A leaf has much pending.
    pub demand: Notify,
    gc_passes: Cell<u64>,
    is_closing: Cell<bool>,
    idle: Notify,
    running: Cell<bool>,
}

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
        Rc::new(Tree {
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

    /// Passes over all leaves since the start.
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
        for batch in ids.chunks(LEAF_BATCH) {
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
            self.disk.flush().await?;
            self.append(writes).await?;
            self.unpin(pins);
        }
        for id in rewrites {
            self.rewrite_leaf(id).await?;
        }
        Ok(())
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
        let words = node.pending.iter().map(|extent| extent.to_key().words()).sum();
        let Some(sector) = self.append_at(node.key, node.blocks_used, words) else { return Plan::Rewrite };
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
        node::encode_bset(&key_words(keys), seq, ptr, self.layout.set_magic, self.block_bytes() as usize)
    }

    /// Makes sets visible, each as a whole (TREE-4).
    async fn append(&self, writes: Vec<Write>) -> io::Result<()> {
        let unit = self.layout.unit_bytes;
        let tail = |write: &Write| (write.bytes.len() > unit).then(|| (write.sector, write.bytes[unit..].to_vec()));
        let tails: Vec<_> = writes.iter().filter_map(tail).collect();
        if !tails.is_empty() {
            let write = |(sector, bytes): (u64, Vec<u8>)| async move {
                self.disk.write_metadata(sector + unit as u64 / SECTOR, &bytes, Durability::Volatile).await
            };
            all_ok(join_all(tails.into_iter().map(write)).await)?;
            self.disk.flush().await?;
        }
        let head = |write: Write| async move {
            let head = &write.bytes[..unit.min(write.bytes.len())];
            self.disk.write_metadata(write.sector, head, Durability::Durable).await
        };
        all_ok(join_all(writes.into_iter().map(head)).await)
    }

    /// Writes new nodes, which nothing names yet.
    async fn write_new(&self, writes: Vec<Write>) -> io::Result<()> {
        let write = |write: Write| async move {
            self.disk.write_metadata(write.sector, &write.bytes, Durability::Durable).await
        };
        all_ok(join_all(writes.into_iter().map(write)).await)
    }

    async fn rewrite_leaf(&self, id: NodeId) -> io::Result<()> {
        let (mut spare, content) = self.reserve_for(id).await?;
        let (writes, news, pin) = self.plan_rewrite(id, content, &mut spare);
        self.disk.flush().await?;
        self.write_new(writes).await?;
        self.replace(id, news, &mut spare, pin).await?;
        self.buckets.free_metadata(spare.into_iter().map(|bucket| bucket.nr));
        Ok(())
    }

    /// Takes as many buckets as rewriting the leaf and all its ancestors can need, and the leaf's content at that moment.
    async fn reserve_for(&self, id: NodeId) -> io::Result<(Vec<MetadataBucket>, Vec<Extent>)> {
        let mut want = 0;
        let mut taken = Vec::new();
        loop {
            let content = self.leaf_content(id);
            let nodes = groups(content.iter().map(|extent| extent.to_key().words()), self.node_words()).len();
            let depth = usize::from(self.index.borrow().nodes.get(self.index.borrow().nodes.root()).level);
            let needed = nodes + (depth + 1) * 3;
            if taken.len() >= needed {
                return Ok((taken, content));
            }
            want = needed.max(want + 1);
            self.buckets.free_metadata(taken.drain(..).map(|bucket: MetadataBucket| bucket.nr));
            taken = self.buckets.take_metadata(want).await?;
        }
    }

    fn leaf_content(&self, id: NodeId) -> Vec<Extent> {
        let mut index = self.index.borrow_mut();
        let alloc = self.buckets.get();
        let node = index.nodes.get(id);
        let all: Vec<_> = index.map.iter_between(node.low, node.key.pos()).collect();
        index.purge_stale(&alloc, &all);
        all.into_iter().filter(|extent| extent.ptr.is_some_and(|ptr| !alloc.is_stale(ptr))).collect()
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
    #[allow(clippy::too_many_arguments, reason = "one place describes a run of sibling nodes")]
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
            let pos = if last { high } else { mine.last().expect("only the last group may be empty").pos() };
            let bucket = spare.pop().expect("reserved");
            let sector = bucket.nr.0 * self.layout.bucket_sectors;
            let key = Key::node(pos, self.layout.node_sectors as u32, Ptr::new(sector, bucket.r#gen));
            let seq = self.env.random_u64().max(1);
            let bytes = self.encode(mine, seq, key);
            let blocks = bytes.len() as u64 / self.block_bytes();
            writes.push(Write { sector, bytes });
            news.push(index.nodes.add(level, key, low, seq, blocks, parent));
            low = pos;
        }
        (writes, news)
    }

    /// Puts new nodes, durable already, in the place of an old one, up to the root if need be (TREE-5). `pin` is given back
    /// as soon as the journal may let go of what the old leaf had pending.
    async fn replace(
        &self,
        old: NodeId,
        news: Vec<NodeId>,
        spare: &mut Vec<MetadataBucket>,
        pin: Option<u64>,
    ) -> io::Result<()> {
        let parent = self.index.borrow().nodes.get(old).parent;
        let old_key = match parent {
            None => self.replace_root(old, news, spare, pin).await?,
            Some(parent) => Box::pin(self.replace_child(parent, old, news, spare, pin)).await?,
        };
        let place = old_key.ptr(0).expect("a node has a place");
        self.buckets.free_metadata([place.bucket(self.layout.bucket_sectors as u32)]);
        Ok(())
    }

    async fn replace_root(
        &self,
        old: NodeId,
        news: Vec<NodeId>,
        spare: &mut Vec<MetadataBucket>,
        pin: Option<u64>,
    ) -> io::Result<Key> {
        let root = match news[..] {
            [only] => only,
            _ => {
                let (writes, root) = {
                    let mut index = self.index.borrow_mut();
                    let level = index.nodes.get(old).level + 1;
                    let keys = news.iter().map(|id| index.nodes.get(*id).key).collect();
                    let (writes, roots) = self.cut(&mut index, level, keys, Pos::ZERO, Pos::MAX, None, spare);
                    assert_eq!(roots.len(), 1, "a new root holds a few children");
                    index.nodes.adopt(roots[0], &news);
                    (writes, roots[0])
                };
                self.write_new(writes).await?;
                root
            }
        };
        let (key, level, old_key) = {
            let mut index = self.index.borrow_mut();
            index.nodes.set_root(root);
            let old = index.nodes.remove(old);
            (index.nodes.get(root).key, index.nodes.get(root).level, old.key)
        };
        self.journal.set_roots(|roots| {
            roots.root = key;
            roots.root_level = level;
        });
        // The entry that names the new root needs no entry whose keys the new root has: it makes room by itself.
        self.unpin(pin);
        self.journal.write_now().await?;
        Ok(old_key)
    }

    async fn replace_child(
        &self,
        parent: NodeId,
        old: NodeId,
        news: Vec<NodeId>,
        spare: &mut Vec<MetadataBucket>,
        pin: Option<u64>,
    ) -> io::Result<Key> {
        let (old_key, plan) = {
            let mut index = self.index.borrow_mut();
            let old_key = index.nodes.get(old).key;
            let old_ptr = old_key.ptr(0).expect("a node has a place");
            let freeing = Key::freeing(old_key.size(), Ptr::new(old_ptr.sector(), old_ptr.r#gen().next()));
            let mut keys = vec![freeing];
            keys.extend(news.iter().map(|id| index.nodes.get(*id).key));
            index.nodes.get_mut(parent).children.remove(&old_key.pos());
            index.nodes.adopt(parent, &news);
            index.nodes.remove(old);
            (old_key, self.plan_interior(&mut index, parent, &keys, spare))
        };
        match plan {
            InteriorPlan::Append(write) => {
                self.append(vec![write]).await?;
                self.unpin(pin);
            }
            InteriorPlan::Rewrite(writes, parents) => {
                self.write_new(writes).await?;
                self.replace(parent, parents, spare, pin).await?;
            }
        }
        Ok(old_key)
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
        if let Some(sector) = self.append_at(node.key, node.blocks_used, words) {
            let bytes = self.encode(keys, node.seq, node.key);
            index.nodes.get_mut(id).blocks_used += bytes.len() as u64 / self.block_bytes();
            return InteriorPlan::Append(Write { sector, bytes });
        }
        let (level, low, high, parent) = (node.level, node.low, node.key.pos(), node.parent);
        let children: Vec<_> = node.children.values().copied().collect();
        let keys = children.iter().map(|child| index.nodes.get(*child).key).collect();
        let (writes, parents) = self.cut(index, level, keys, low, high, parent, spare);
        index.nodes.get_mut(id).children.clear();
        let mut rest = &children[..];
        for &parent in &parents {
            let high = index.nodes.get(parent).key.pos();
            let mine = rest.iter().take_while(|child| index.nodes.get(**child).key.pos() <= high).count();
            let (mine, others) = rest.split_at(mine);
            index.nodes.adopt(parent, mine);
            rest = others;
        }
        assert!(rest.is_empty(), "every child has a parent");
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
        let oldest: Vec<_> = self.index.borrow().nodes.dirty().take(LEAF_BATCH).collect();
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
        let is_due = |id: &NodeId| {
            let node = index.nodes.get(*id);
            let old = node.pending_since.is_some_and(|since| now.saturating_sub(since) >= LEAF_DELAY);
            old || node.pending.len() * 3 > high
        };
        index.nodes.dirty().filter(is_due).take(LEAF_BATCH).collect()
    }

    /// Rewrites every leaf, so that no pointer older than now's generations is left in the tree.
    async fn rewrite_everything(&self) -> io::Result<()> {
        let gens = self.buckets.get().gens_snapshot();
        let leaves = {
            let mut index = self.index.borrow_mut();
            let leaves = index.nodes.leaves();
            leaves.iter().for_each(|id| index.nodes.get_mut(*id).rewrite_wanted = true);
            leaves
        };
        for id in leaves {
            self.write_leaves(&[id]).await?;
            if self.is_closing.get() {
                return Ok(());
            }
            yield_now().await;
        }
        self.buckets.get_mut().gc_finished(&gens);
        self.gc_passes.set(self.gc_passes.get() + 1);
        self.buckets.demand.notify_all();
        Ok(())
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
