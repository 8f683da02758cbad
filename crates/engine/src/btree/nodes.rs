//! Nodes in memory: where they are, what they own, what they say, what is pending. Pure.
//!
//! What a leaf says is here or *away*, on disk only. It may leave memory when nothing of it is pending or being written; who
//! looks at it or changes it has it brought back before, in the same step.

use crate::extents::{Extent, ExtentMap, Merge};
use brigade_format::{Key, Pos};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::time::Duration;

/// Names a node as long as it is in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

/// A node.
pub struct Node {
    /// 0 is a leaf.
    pub level: u16,
    /// Position, size and bucket.
    pub key: Key,
    /// Ranges of the node begin here (L of docs/format.md 4.5).
    pub low: Pos,
    /// Number that all its sets carry.
    pub seq: u64,
    /// Blocks that hold sets.
    pub blocks_used: u64,
    /// `None` for the root.
    pub parent: Option<NodeId>,
    /// Interior: live children by position.
    pub children: BTreeMap<Pos, NodeId>,
    /// Leaf: what it says, with what is pending. Stale extents may linger until their range is touched. `None`: away.
    pub(super) content: Option<ExtentMap>,
    /// Leaf: entries of its content, as it is or was.
    pub(super) extents: usize,
    /// Leaf: dirty sectors of its content.
    pub(super) dirty_sectors: u64,
    /// Leaf: what it says is counted.
    is_counted: bool,
    /// Leaf: looked at lately.
    hot: Cell<bool>,
    /// Writes of it that are under way; meanwhile what is on disk is not what it says.
    pub(super) writing: u32,
    /// Leaf: what it said when it left, to be compared when it is back. Only simulation keeps that.
    pub(super) shadow: Option<ExtentMap>,
    /// Leaf: what it said when it was written, in order, that is stale and so was not written, but that a crash may bring back; until
    /// the gen table of this number is durable.
    left_out: Vec<Extent>,
    left_out_until: u64,
    /// Leaf: keys to be appended.
    pub pending: ExtentMap,
    /// Leaf: the journal entry pinned for them.
    pub pinned_seq: Option<u64>,
    /// Leaf: since when something is pending.
    pub pending_since: Option<Duration>,
    /// To be rewritten at its next write, in a collection or not.
    pub rewrite_wanted: bool,
    /// The collection that was under way, or the last one, when it was made.
    made_in: u64,
}

/// All nodes of a set.
#[derive(Default)]
pub struct Nodes {
    slots: Vec<Option<Node>>,
    free: Vec<usize>,
    leaves: BTreeMap<Pos, NodeId>,
    /// Leaves with something pending, by the entry they pin (unpinned ones last).
    dirty: BTreeSet<(u64, NodeId)>,
    pending_keys: usize,
    /// Leaves whose content is here, and some that were; the first was looked at longest ago, or so.
    here: VecDeque<NodeId>,
    root: Option<NodeId>,
    /// Number of the collection that is under way, or of the last one.
    pass: u64,
    is_passing: bool,
    /// Ranges whose leaves somebody is having brought here, by number; these stay until all are here.
    wanted: BTreeMap<u64, (Pos, Pos)>,
    wanted_next: u64,
    looks: Cell<u64>,
    uncounted: usize,
    /// Leaves, and some that were, with what was left out of them, by the gen table that ends it; and how much that is.
    leaving_out: VecDeque<(u64, NodeId)>,
    left_out: usize,
    /// Leaves whose pending sets were taken for new ones that have no place yet.
    pub(super) rewriting: usize,
}

const UNPINNED: u64 = u64::MAX;
/// Leaves whose left out extents are forgotten in a step.
const FORGOTTEN_AT_ONCE: usize = 64;

impl Node {
    /// Gives a leaf its first content, so much of which is dirty.
    pub(super) fn hold(&mut self, content: ExtentMap, dirty_sectors: u64) {
        self.extents = content.len();
        self.dirty_sectors = dirty_sectors;
        self.content = Some(content);
    }
}

impl Nodes {
    /// Adds a node that is or will be on disk. It becomes findable as a leaf at once if it is one.
    pub fn add(
        &mut self,
        level: u16,
        key: Key,
        low: Pos,
        seq: u64,
        blocks_used: u64,
        parent: Option<NodeId>,
    ) -> NodeId {
        let node = Node {
            level,
            key,
            low,
            seq,
            blocks_used,
            parent,
            children: BTreeMap::new(),
            content: (level == 0).then(ExtentMap::new),
            extents: 0,
            dirty_sectors: 0,
            is_counted: true,
            hot: Cell::new(true),
            writing: 0,
            shadow: None,
            left_out: Vec::new(),
            left_out_until: 0,
            pending: ExtentMap::keeping_holes(),
            pinned_seq: None,
            pending_since: None,
            rewrite_wanted: false,
            made_in: self.pass,
        };
        let id = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Some(node);
                NodeId(slot)
            }
            None => {
                self.slots.push(Some(node));
                NodeId(self.slots.len() - 1)
            }
        };
        if level == 0 {
            self.leaves.insert(key.pos(), id);
            self.here.push_back(id);
            self.forget_those_gone();
        }
        id
    }

    /// Keeps the list of leaves that are here from growing with those that were.
    fn forget_those_gone(&mut self) {
        if self.here.len() <= 2 * self.leaves.len() + 16 {
            return;
        }
        let slots = &self.slots;
        let mut seen = BTreeSet::new();
        self.here.retain(|id| {
            let node = slots[id.0].as_ref();
            node.is_some_and(|node| node.content.is_some()) && seen.insert(*id)
        });
    }

    /// Takes a node out. Its pending set must have been taken before.
    pub fn remove(&mut self, id: NodeId) -> Node {
        let node = self.slots[id.0].take().expect("a live node");
        assert!(node.pending.is_empty(), "nothing pending is dropped");
        self.left_out -= node.left_out.len();
        if node.level == 0 && self.leaves.get(&node.key.pos()) == Some(&id) {
            self.leaves.remove(&node.key.pos());
        }
        self.free.push(id.0);
        node
    }

    /// Takes a leaf that is being replaced out of the search order; it stays a node until its parent is written.
    pub fn hide_leaf(&mut self, id: NodeId) {
        let pos = self.get(id).key.pos();
        let hidden = self.leaves.remove(&pos);
        assert_eq!(hidden, Some(id), "a leaf in the search order");
    }

    /// Makes `parent` the parent of nodes.
    pub fn adopt(&mut self, parent: NodeId, children: &[NodeId]) {
        for &child in children {
            self.get_mut(child).parent = Some(parent);
            let pos = self.get(child).key.pos();
            self.get_mut(parent).children.insert(pos, child);
        }
    }

    /// The node.
    pub fn get(&self, id: NodeId) -> &Node {
        self.slots[id.0].as_ref().expect("a live node")
    }

    /// The node, to change it.
    pub fn get_mut(&mut self, id: NodeId) -> &mut Node {
        self.slots[id.0].as_mut().expect("a live node")
    }

    /// Whether it is (still) in the tree.
    pub fn is_live(&self, id: NodeId) -> bool {
        self.slots.get(id.0).is_some_and(Option::is_some)
    }

    /// The root.
    pub fn root(&self) -> NodeId {
        self.root.expect("a tree has a root")
    }

    /// Makes a node the root.
    pub fn set_root(&mut self, id: NodeId) {
        self.root = Some(id);
        self.get_mut(id).parent = None;
    }

    /// Number of nodes.
    pub fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Number of leaves.
    pub fn leaf_count(&self) -> usize {
        self.leaves.len()
    }

    /// All leaves, ascending.
    pub fn leaves(&self) -> Vec<NodeId> {
        self.leaves.values().copied().collect()
    }

    /// A collection begins: all nodes that are there are old.
    pub fn begin_pass(&mut self) {
        self.pass += 1;
        self.is_passing = true;
    }

    /// It is over, or given up.
    pub fn end_pass(&mut self) {
        self.is_passing = false;
    }

    /// Whether a collection is under way.
    pub fn is_passing(&self) -> bool {
        self.is_passing
    }

    /// Whether the collection that is under way has yet to rewrite a node.
    pub fn is_old(&self, id: NodeId) -> bool {
        self.is_passing && self.get(id).made_in < self.pass
    }

    /// The leaf that owns the range starting at `start` of `inode`, and where its part of the inode ends.
    pub fn leaf_of(&self, inode: u32, start: u64) -> (NodeId, u64) {
        let after = (
            Bound::Excluded(Pos {
                inode,
                offset: start,
            }),
            Bound::Unbounded,
        );
        let (high, id) = self
            .leaves
            .range(after)
            .next()
            .expect("leaves tile the key space");
        (
            *id,
            if high.inode == inode {
                high.offset
            } else {
                u64::MAX
            },
        )
    }

    /// The leaf that owns what ends behind a position, its own position, and whether it is worth reading if it is away: only for dirty
    /// data, the rest may as well be dropped.
    pub fn leaf_behind(&self, pos: Pos) -> (NodeId, Pos, bool) {
        let behind = (Bound::Excluded(pos), Bound::Unbounded);
        let (high, id) = self
            .leaves
            .range(behind)
            .next()
            .expect("leaves tile the key space");
        let leaf = self.get(*id);
        let is_wanted = leaf.content.is_some() || leaf.dirty_sectors > 0;
        (*id, *high, is_wanted)
    }

    /// The leaf that owns what ends behind a position and those that follow it, a few at most, and none that begins at `end` or
    /// behind.
    pub fn leaves_behind(&self, pos: Pos, end: Pos, most: usize) -> Vec<NodeId> {
        let behind = (Bound::Excluded(pos), Bound::Unbounded);
        let leaves = self.leaves.range(behind).map(|(_, id)| *id);
        leaves
            .take_while(|id| self.get(*id).low < end)
            .take(most)
            .collect()
    }

    /// What a leaf says between two positions, if it is still in the search order with this position, and here.
    pub fn content_between(
        &self,
        id: NodeId,
        low: Pos,
        high: Pos,
    ) -> Option<impl Iterator<Item = Extent> + '_> {
        if self.leaves.get(&high) != Some(&id) {
            return None;
        }
        let node = self.get(id);
        node.hot.set(true);
        let content = node.content.as_ref()?;
        Some(content.iter_between(low.max(node.low), high))
    }

    /// Leaves with a part of the range, ascending.
    pub fn leaves_of(&self, inode: u32, start: u64, end: u64) -> impl Iterator<Item = NodeId> + '_ {
        let after = Pos {
            inode,
            offset: start,
        };
        let low = Pos { inode, offset: end };
        self.leaves
            .range((Bound::Excluded(after), Bound::Unbounded))
            .map(|(_, id)| *id)
            .take_while(move |id| start < end && self.get(*id).low < low)
    }

    /// A leaf of the range whose content is away. The others are noted as looked at.
    pub fn away(&self, inode: u32, start: u64, end: u64) -> Option<NodeId> {
        self.looks.set(self.looks.get() + 1);
        self.leaves_of(inode, start, end).find(|id| {
            let node = self.get(*id);
            node.hot.set(true);
            node.content.is_none()
        })
    }

    /// Whether a leaf is only on disk. One that was replaced says nothing any more, here or there.
    pub fn is_away(&self, id: NodeId) -> bool {
        let is_away = |node: &Node| {
            let is_found = self.leaves.get(&node.key.pos()) == Some(&id);
            node.level == 0 && node.content.is_none() && is_found
        };
        self.slots
            .get(id.0)
            .and_then(Option::as_ref)
            .is_some_and(is_away)
    }

    /// How often somebody asked for a range.
    pub fn looks(&self) -> u64 {
        self.looks.get()
    }

    /// What a leaf says, which is here.
    pub fn content(&self, id: NodeId) -> &ExtentMap {
        self.get(id).content.as_ref().expect("brought before")
    }

    /// A leaf that nobody looked at since the set was opened.
    pub fn leave_uncounted(&mut self, id: NodeId) {
        let node = self.get_mut(id);
        node.content = None;
        node.is_counted = false;
        self.uncounted += 1;
    }

    /// A leaf that was read and counted, but not kept.
    pub fn leave_counted(&mut self, id: NodeId, extents: usize, dirty_sectors: u64) {
        let node = self.get_mut(id);
        (node.content, node.extents, node.dirty_sectors) = (None, extents, dirty_sectors);
    }

    /// A new leaf was written without these, which are stale, but come back with a crash until the gen table with the number `until` is
    /// durable. They are kept until then: whoever reads the leaf again has to know of them (TREE-7).
    pub fn leave_out(&mut self, id: NodeId, extents: Vec<Extent>, until: u64) {
        if extents.is_empty() {
            return;
        }
        self.left_out += extents.len();
        self.leaving_out.push_back((until, id));
        let node = self.get_mut(id);
        assert!(node.left_out.is_empty(), "a new leaf");
        (node.left_out, node.left_out_until) = (extents, until);
    }

    /// Forgets some of what was left out, as the gen table of this number is durable.
    pub fn forget_left_out(&mut self, durable: u64) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let Some((_, of)) = self
                .leaving_out
                .pop_front_if(|(until, _)| *until <= durable)
            else {
                break;
            };
            // Another one may have its number now.
            let Some(node) = self.slots[of.0].as_mut() else {
                continue;
            };
            if node.left_out_until <= durable {
                self.left_out -= std::mem::take(&mut node.left_out).len();
            }
        }
    }

    /// What was left out of a leaf that is read.
    pub fn left_out_of(&self, id: NodeId) -> &[Extent] {
        &self.get(id).left_out
    }

    /// How much was left out of all leaves, those that were too.
    pub fn left_out(&self) -> usize {
        self.left_out + self.leaving_out.len()
    }

    /// Leaves that were not looked at since the set was opened.
    pub fn uncounted(&self) -> usize {
        self.uncounted
    }

    /// Whether a leaf is not among them.
    pub fn is_counted(&self, id: NodeId) -> bool {
        self.get(id).is_counted
    }

    /// Gives a leaf that was away its content, all of which is counted.
    pub fn arrive(&mut self, id: NodeId, content: ExtentMap, dirty_sectors: u64) {
        if !self.is_counted(id) {
            self.uncounted -= 1;
            let node = self.get_mut(id);
            node.dirty_sectors = dirty_sectors;
            node.is_counted = true;
        }
        let node = self.get_mut(id);
        node.extents = content.len();
        node.hot.set(true);
        let before = node.content.replace(content);
        assert!(before.is_none(), "it was away");
        self.here.push_back(id);
    }

    /// Sends away the leaf that was not looked at for longest, if one can go; says which.
    pub fn send_away(&mut self) -> Option<NodeId> {
        for _ in 0..2 * self.here.len() {
            let id = self.here.pop_front()?;
            let Some(node) = self.slots[id.0].as_mut() else {
                continue;
            };
            let is_leaf_here = node.level == 0 && node.content.is_some();
            if !is_leaf_here {
                continue;
            }
            let (low, high) = (node.low, node.key.pos());
            let mut wanted = self.wanted.values();
            if node.hot.replace(false)
                || node.writing > 0
                || !node.pending.is_empty()
                || wanted.any(|(from, to)| *from < high && low < *to)
            {
                self.here.push_back(id);
                continue;
            }
            let content = node.content.take();
            node.shadow = content.filter(|_| cfg!(any(test, feature = "instrumented")));
            return Some(id);
        }
        None
    }

    /// Keeps the leaves of a range here until [`Nodes::unwant`].
    pub fn want(&mut self, low: Pos, high: Pos) -> u64 {
        self.wanted_next += 1;
        self.wanted.insert(self.wanted_next, (low, high));
        self.wanted_next
    }

    /// Ends one [`Nodes::want`].
    pub fn unwant(&mut self, number: u64) {
        self.wanted.remove(&number);
    }

    /// The first part of a range, within one leaf, where there may be dirty data.
    pub fn next_dirty(&self, inode: u32, start: u64, end: u64) -> Option<(u64, u64)> {
        let leaf = self
            .leaves_of(inode, start, end)
            .map(|id| self.get(id))
            .find(|leaf| leaf.dirty_sectors > 0 || !leaf.is_counted)?;
        let low = if leaf.low.inode == inode {
            leaf.low.offset
        } else {
            0
        };
        let high = leaf.key.pos();
        let high = if high.inode == inode {
            high.offset
        } else {
            u64::MAX
        };
        Some((start.max(low), end.min(high)))
    }

    /// Leaves whose content is here, about.
    pub fn here_count(&self) -> usize {
        self.here.len()
    }

    /// Adds to a leaf's pending set. `seq` is the journal entry with the key, if it is journalled; says whether that entry
    /// is to be pinned.
    pub fn add_pending(
        &mut self,
        id: NodeId,
        extent: Extent,
        bucket_sectors: u32,
        seq: Option<u64>,
        now: Duration,
    ) -> bool {
        let key_before = self.dirty_key(id);
        let node = self.get_mut(id);
        let before = node.pending.len();
        node.pending
            .insert(extent, Merge::BOTH, bucket_sectors, |_| ());
        let after = node.pending.len();
        node.pending_since.get_or_insert(now);
        let pins = seq.is_some() && node.pinned_seq.is_none();
        if pins {
            node.pinned_seq = seq;
        }
        self.pending_keys = self.pending_keys + after - before;
        let key = self.dirty_key(id);
        if before == 0 || key != key_before {
            self.dirty.remove(&key_before);
            self.dirty.insert(key);
        }
        pins
    }

    /// Gives a new leaf what was pending of the one it replaces; says whether it is anything, so that the pin is its, too.
    pub fn take_over_pending(
        &mut self,
        id: NodeId,
        pending: ExtentMap,
        pinned_seq: Option<u64>,
        since: Option<Duration>,
    ) -> bool {
        if pending.is_empty() {
            return false;
        }
        self.pending_keys += pending.len();
        let node = self.get_mut(id);
        (node.pending, node.pinned_seq, node.pending_since) = (pending, pinned_seq, since);
        let key = self.dirty_key(id);
        self.dirty.insert(key);
        true
    }

    /// Keys that are pending.
    pub fn pending_keys(&self) -> usize {
        self.pending_keys
    }

    /// Takes what is pending, and the pin, which is now the caller's.
    pub fn take_pending(&mut self, id: NodeId) -> (ExtentMap, Option<u64>) {
        self.dirty.remove(&self.dirty_key(id));
        let node = self.get_mut(id);
        node.pending_since = None;
        let pending = std::mem::replace(&mut node.pending, ExtentMap::keeping_holes());
        let pin = node.pinned_seq.take();
        self.pending_keys -= pending.len();
        (pending, pin)
    }

    /// Leaves with something pending, those that pin the oldest entries first.
    pub fn dirty(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.dirty.iter().map(|(_, id)| *id)
    }

    /// TREE-1: leaves tile the key space, and every node is where its parent says.
    pub fn audit(&self) {
        let mut low = Pos::ZERO;
        for (pos, id) in &self.leaves {
            let leaf = self.get(*id);
            assert_eq!((leaf.low, leaf.key.pos()), (low, *pos), "TREE-1");
            low = *pos;
        }
        assert_eq!(low, Pos::MAX, "TREE-1: the last leaf ends everything");
        let pending = self.slots.iter().flatten().map(|node| node.pending.len());
        assert_eq!(pending.sum::<usize>(), self.pending_keys, "pending keys");
        let left_out = self.slots.iter().flatten().map(|node| node.left_out.len());
        assert_eq!(left_out.sum::<usize>(), self.left_out, "left out extents");
        for (slot, node) in self.slots.iter().enumerate() {
            if let Some(node) = node {
                self.audit_children(NodeId(slot), node);
            }
        }
    }

    /// Children tile their parent; one that is being replaced has none.
    fn audit_children(&self, id: NodeId, node: &Node) {
        let mut low = node.low;
        for (pos, child) in &node.children {
            let child = self.get(*child);
            assert_eq!((child.low, child.key.pos()), (low, *pos), "TREE-1: ranges");
            assert_eq!(child.level + 1, node.level, "TREE-1: levels");
            assert_eq!(child.parent, Some(id), "TREE-1: parents");
            low = *pos;
        }
        let is_whole = node.children.is_empty() || low == node.key.pos();
        assert!(is_whole, "TREE-1: the last child ends where its node does");
    }

    /// Entries that leaves hold (TREE-3).
    pub fn pinned_seqs(&self) -> impl Iterator<Item = u64> + '_ {
        self.slots
            .iter()
            .flatten()
            .filter_map(|node| node.pinned_seq)
    }

    /// Leaves with something pending that pin this entry or an older one.
    pub fn pinned_through(&self, seq: u64) -> Vec<NodeId> {
        let through = self.dirty.iter().take_while(|(pinned, _)| *pinned <= seq);
        through.map(|(_, id)| *id).collect()
    }

    /// Number of leaves with something pending, or for which buckets are yet to be found.
    pub fn dirty_count(&self) -> usize {
        self.dirty.len() + self.rewriting
    }

    fn dirty_key(&self, id: NodeId) -> (u64, NodeId) {
        (self.get(id).pinned_seq.unwrap_or(UNPINNED), id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use brigade_format::{Gen, Ptr};

    fn leaf(nodes: &mut Nodes, low: Pos, high: Pos) -> NodeId {
        nodes.add(
            0,
            Key::node(high, 128, Ptr::new(1280, Gen(1))),
            low,
            9,
            1,
            None,
        )
    }

    #[test]
    fn a_leaf_owns_what_starts_below_its_position() {
        let mut nodes = Nodes::default();
        let middle = Pos {
            inode: 1,
            offset: 100,
        };
        let first = leaf(&mut nodes, Pos::ZERO, middle);
        let second = leaf(&mut nodes, middle, Pos::MAX);
        assert_eq!(nodes.leaf_of(0, 5000), (first, u64::MAX));
        assert_eq!(nodes.leaf_of(1, 99), (first, 100));
        assert_eq!(nodes.leaf_of(1, 100).0, second);
        let of_range = |start, end| nodes.leaves_of(1, start, end).collect::<Vec<_>>();
        assert_eq!(of_range(90, 100), [first]);
        assert_eq!(of_range(90, 101), [first, second]);
        assert_eq!(of_range(100, 101), [second]);
        assert_eq!(of_range(100, 100), []);
    }

    #[test]
    fn a_leaf_that_nobody_looks_at_and_that_owes_nothing_goes_first() {
        let mut nodes = Nodes::default();
        let pos = |offset| Pos { inode: 1, offset };
        let first = leaf(&mut nodes, Pos::ZERO, pos(100));
        let second = leaf(&mut nodes, pos(100), pos(200));
        let third = leaf(&mut nodes, pos(200), Pos::MAX);
        let hole = Extent::hole(1, 0, 8);
        nodes.add_pending(first, hole, 128, None, Duration::ZERO);
        nodes.get_mut(second).writing = 1;
        assert_eq!(nodes.send_away(), Some(third));
        assert!(nodes.is_away(third) && !nodes.is_away(second));
        assert_eq!(nodes.send_away(), None);
        assert_eq!(nodes.away(1, 0, 201), Some(third));
        nodes.arrive(third, ExtentMap::new(), 0);
        nodes.get_mut(second).writing = 0;
        assert_eq!(nodes.away(1, 100, 200), None, "looked at, so it stays");
        nodes.take_pending(first);
        assert_eq!(nodes.send_away(), Some(first));
        nodes.hide_leaf(first);
        assert!(
            !nodes.is_away(first),
            "nobody brings back what was replaced"
        );
    }

    #[test]
    fn leaves_come_in_the_order_of_the_entries_they_pin() {
        let mut nodes = Nodes::default();
        let middle = Pos {
            inode: 1,
            offset: 100,
        };
        let first = leaf(&mut nodes, Pos::ZERO, middle);
        let second = leaf(&mut nodes, middle, Pos::MAX);
        let hole = |start| Extent {
            inode: 1,
            start,
            end: start + 8,
            ptr: None,
            dirty: false,
        };
        assert!(nodes.add_pending(first, hole(0), 128, Some(7), Duration::ZERO));
        assert!(nodes.add_pending(second, hole(200), 128, Some(5), Duration::ZERO));
        assert!(!nodes.add_pending(second, hole(300), 128, Some(9), Duration::ZERO));
        assert_eq!(nodes.dirty().collect::<Vec<_>>(), [second, first]);
        let (pending, pin) = nodes.take_pending(second);
        assert_eq!((pending.len(), pin), (2, Some(5)));
        assert_eq!(nodes.dirty().collect::<Vec<_>>(), [first]);
    }
    #[test]
    fn a_leaf_with_a_fill_comes_earlier_once_it_pins_an_entry() {
        let mut nodes = Nodes::default();
        let middle = Pos {
            inode: 1,
            offset: 100,
        };
        let first = leaf(&mut nodes, Pos::ZERO, middle);
        let second = leaf(&mut nodes, middle, Pos::MAX);
        let hole = |start| Extent::hole(1, start, start + 8);
        nodes.add_pending(first, hole(0), 128, Some(7), Duration::ZERO);
        nodes.add_pending(second, hole(200), 128, None, Duration::ZERO);
        assert_eq!(nodes.dirty().collect::<Vec<_>>(), [first, second]);
        assert!(nodes.add_pending(second, hole(300), 128, Some(6), Duration::ZERO));
        assert!(!nodes.add_pending(second, hole(300), 128, Some(8), Duration::ZERO));
        assert_eq!(nodes.dirty().collect::<Vec<_>>(), [second, first]);
        assert_eq!(nodes.dirty_count(), 2);
    }
}
