//! Nodes in memory: where they are, what they own, what is pending. Pure.

use crate::extents::{Extent, ExtentMap, Merge};
use brigade_format::{Key, Pos};
use std::collections::{BTreeMap, BTreeSet};
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
    root: Option<NodeId>,
    /// Number of the collection that is under way, or of the last one.
    pass: u64,
    is_passing: bool,
}

const UNPINNED: u64 = u64::MAX;

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
        }
        id
    }

    /// Takes a node out. Its pending set must have been taken before.
    pub fn remove(&mut self, id: NodeId) -> Node {
        let node = self.slots[id.0].take().expect("a live node");
        assert!(node.pending.is_empty(), "nothing pending is dropped");
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
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
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

    /// Whether the collection that is under way has yet to rewrite a node.
    pub fn is_old(&self, id: NodeId) -> bool {
        self.is_passing && self.get(id).made_in < self.pass
    }

    /// The leaf that owns the range starting at `start` of `inode`, and where its part of the inode ends.
    pub fn leaf_of(&self, inode: u32, start: u64) -> (NodeId, u64) {
        let after = (
            std::ops::Bound::Excluded(Pos {
                inode,
                offset: start,
            }),
            std::ops::Bound::Unbounded,
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

    /// How an extent of leaf `id` may be merged with its neighbours without crossing the leaf's boundaries.
    pub fn merge_within(&self, id: NodeId, inode: u32, start: u64, end: u64) -> Merge {
        let node = self.get(id);
        let high = node.key.pos();
        Merge {
            left: node.low.inode < inode || node.low.offset < start,
            right: high.inode > inode || high.offset > end,
        }
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
        let merge = self.merge_within(id, extent.inode, extent.start, extent.end);
        self.dirty.remove(&self.dirty_key(id));
        let node = self.get_mut(id);
        node.pending.insert(extent, merge, bucket_sectors, |_| ());
        node.pending_since.get_or_insert(now);
        let pins = seq.is_some() && node.pinned_seq.is_none();
        if pins {
            node.pinned_seq = seq;
        }
        let key = self.dirty_key(id);
        self.dirty.insert(key);
        pins
    }

    /// Takes what is pending, and the pin, which is now the caller's.
    pub fn take_pending(&mut self, id: NodeId) -> (ExtentMap, Option<u64>) {
        self.dirty.remove(&self.dirty_key(id));
        let node = self.get_mut(id);
        node.pending_since = None;
        (
            std::mem::replace(&mut node.pending, ExtentMap::keeping_holes()),
            node.pinned_seq.take(),
        )
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
        for node in self.slots.iter().flatten() {
            for (pos, child) in &node.children {
                assert_eq!(self.get(*child).key.pos(), *pos, "TREE-1: children");
                assert_eq!(self.get(*child).level + 1, node.level, "TREE-1: levels");
            }
        }
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

    /// Number of leaves with something pending.
    pub fn dirty_count(&self) -> usize {
        self.dirty.len()
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
        let at_edge = nodes.merge_within(second, 1, 100, 200);
        assert!(!at_edge.left && at_edge.right);
        let before_edge = nodes.merge_within(first, 1, 90, 100);
        assert!(before_edge.left && !before_edge.right);
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
}
