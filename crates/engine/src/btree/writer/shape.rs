//! What changes in the shape of the tree: content is cut into nodes, and these take the place of others, up to the root.

use super::{KEY_WORDS, NewNode, Tree, Write};
use crate::alloc::MetadataBucket;
use crate::btree::index::Index;
use crate::btree::nodes::{NodeId, Nodes};
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use brigade_env::Env;
use brigade_env::sync::yield_now;
use brigade_format::{BucketNr, Key, Pos, Ptr, node};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;

impl<E: Env> Tree<E> {
    /// Cuts keys into nodes of one level and adds these to the tree.
    #[allow(
        clippy::too_many_arguments,
        reason = "one place describes a run of sibling nodes"
    )]
    pub(super) fn cut(
        &self,
        index: &mut Index,
        level: u16,
        keys: Vec<Key>,
        low: Pos,
        high: Pos,
        parent: Option<NodeId>,
        spare: &mut Vec<MetadataBucket>,
    ) -> Vec<NewNode> {
        let sizes = match level {
            0 => groups(keys.iter().map(Key::words), self.words_of(0)),
            _ => even_groups(keys.len(), self.words_of(level) / KEY_WORDS),
        };
        let mut low = low;
        let mut nodes = Vec::new();
        let mut parts = split(keys, &sizes).into_iter().peekable();
        while let Some(mine) = parts.next() {
            let pos = if parts.peek().is_none() {
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
            let words = mine.iter().map(Key::words).sum();
            let blocks = (node::bset_bytes(words) as u64).div_ceil(self.block_bytes());
            nodes.push(NewNode {
                id: index.nodes.add(level, key, low, seq, blocks, parent),
                keys: mine,
            });
            low = pos;
        }
        nodes
    }

    /// Puts new nodes, durable already, in the place of old ones of the same level, up to the root if need be (TREE-5).
    /// `pins` are given back as soon as the journal may let go of what the old leaves had pending.
    pub(super) async fn replace(
        &self,
        replaced: Vec<Replaced>,
        spare: &mut Vec<MetadataBucket>,
        pins: Vec<u64>,
    ) -> io::Result<()> {
        let old_keys: Vec<Key> = {
            let index = self.index.borrow();
            replaced
                .iter()
                .flat_map(|(olds, _)| olds)
                .map(|old| index.nodes.get(*old).key)
                .collect()
        };
        let is_root = self
            .index
            .borrow()
            .nodes
            .get(replaced[0].0[0])
            .parent
            .is_none();
        if is_root {
            assert_eq!(replaced.len(), 1, "a tree has one root");
            for (olds, news) in replaced {
                self.replace_root(olds, news, spare, pins.clone()).await?;
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
        olds: Vec<NodeId>,
        news: Vec<NodeId>,
        spare: &mut Vec<MetadataBucket>,
        pins: Vec<u64>,
    ) -> io::Result<()> {
        let mut top = news;
        while top.len() > 1 {
            marks::hit(Mark::BtreeNewLevel);
            let above = self.plan_level(&top, spare);
            top = ids(&above);
            self.write_new(above).await?;
        }
        let root = top[0];
        let (key, level) = {
            let mut index = self.index.borrow_mut();
            index.nodes.set_root(root);
            olds.into_iter()
                .for_each(|old| drop(index.nodes.remove(old)));
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
    fn plan_level(&self, below: &[NodeId], spare: &mut Vec<MetadataBucket>) -> Vec<NewNode> {
        let mut index = self.index.borrow_mut();
        let level = index.nodes.get(below[0]).level + 1;
        let keys = below.iter().map(|id| index.nodes.get(*id).key).collect();
        let nodes = self.cut(&mut index, level, keys, Pos::ZERO, Pos::MAX, None, spare);
        adopt_in_order(&mut index, &ids(&nodes), below);
        nodes
    }

    async fn replace_children(
        &self,
        replaced: Vec<Replaced>,
        spare: &mut Vec<MetadataBucket>,
        pins: Vec<u64>,
    ) -> io::Result<()> {
        let (mut appends, mut new_nodes, mut above) = (Vec::new(), Vec::new(), Vec::new());
        let (mut touched, mut planned) = (self.move_in(replaced), BTreeSet::new());
        while let Some((parent, keys)) = touched.pop_first() {
            if let Some((roots, root)) = lonely(&self.index.borrow().nodes, parent) {
                marks::hit(Mark::BtreeLevelGoes);
                above.push((roots, vec![root]));
                break;
            }
            let run = self.sparse_run(&self.index.borrow().nodes, parent, &planned);
            touched.retain(|id, _| !run.contains(id));
            planned.extend(run.iter().copied());
            let plan = self.plan_interior(&mut self.index.borrow_mut(), &run, &keys, spare);
            match plan {
                InteriorPlan::Append(write) => {
                    marks::hit(Mark::BtreeInteriorAppend);
                    appends.push(write);
                }
                InteriorPlan::Rewrite(nodes) => {
                    marks::hit(Mark::BtreeInteriorRewrite);
                    if nodes.len() > 1 {
                        marks::hit(Mark::BtreeInteriorSplit);
                    }
                    if run.len() > 1 {
                        marks::hit(Mark::BtreeInteriorsJoin);
                    }
                    above.push((run, ids(&nodes)));
                    new_nodes.extend(nodes);
                }
            }
            yield_now().await;
        }
        self.append(appends).await?;
        self.write_new(new_nodes).await?;
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
        for (olds, news) in replaced {
            let parent = index.nodes.get(olds[0]).parent.expect("not the root");
            let (freeing, live) = keys.entry(parent).or_default();
            live.extend(news.iter().map(|id| index.nodes.get(*id).key));
            for old in olds {
                let old_key = index.nodes.get(old).key;
                let old_ptr = old_key.ptr(0).expect("a node has a place");
                freeing.push(Key::freeing(
                    old_key.size(),
                    Ptr::new(old_ptr.sector(), old_ptr.r#gen().next()),
                ));
                index.nodes.get_mut(parent).children.remove(&old_key.pos());
                index.nodes.remove(old);
            }
            index.nodes.adopt(parent, &news);
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

    /// An interior node, and in a collection those beside it under the same parent that fill little of a node together with it,
    /// in order. Those that are planned already stay what they will be.
    fn sparse_run(&self, nodes: &Nodes, id: NodeId, planned: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let node = nodes.get(id);
        let Some(parent) = node.parent.filter(|_| nodes.is_passing()) else {
            return vec![id];
        };
        let mut children = node.children.len();
        let mut fits = |beside: &NodeId| {
            let more = children + nodes.get(*beside).children.len();
            let is_joined =
                !planned.contains(beside) && self.is_little(more * KEY_WORDS, node.level);
            if is_joined {
                children = more;
            }
            is_joined
        };
        let (siblings, pos) = (&nodes.get(parent).children, node.key.pos());
        let behind = siblings.range((Bound::Excluded(pos), Bound::Unbounded));
        let behind: Vec<_> = behind.map(|(_, id)| *id).take_while(&mut fits).collect();
        let before = siblings.range(..pos).rev().map(|(_, id)| *id);
        let mut run: Vec<_> = before.take_while(&mut fits).collect();
        run.reverse();
        run.push(id);
        run.extend(behind);
        run
    }

    /// What is to become of nodes side by side whose children changed: the keys that say so are appended, or one or more new
    /// nodes take their place.
    fn plan_interior(
        &self,
        index: &mut Index,
        run: &[NodeId],
        keys: &[Key],
        spare: &mut Vec<MetadataBucket>,
    ) -> InteriorPlan {
        let (id, last) = (run[0], run[run.len() - 1]);
        let node = index.nodes.get(id);
        let words = keys.iter().map(Key::words).sum();
        let place = self.append_at(node.key, node.blocks_used, words);
        let is_old = index.nodes.is_old(id) && !mutations::is(Mutation::GcLeavesOnly);
        let is_wide = node.children.len() * KEY_WORDS > self.words_of(node.level);
        let is_kept = run.len() == 1 && !node.rewrite_wanted && !is_old && !is_wide;
        if let Some(sector) = place.filter(|_| is_kept) {
            let bytes = self.encode(keys, node.seq, node.key);
            index.nodes.get_mut(id).blocks_used += bytes.len() as u64 / self.block_bytes();
            return InteriorPlan::Append(Write { sector, bytes });
        }
        let (level, low, parent) = (node.level, node.low, node.parent);
        let high = index.nodes.get(last).key.pos();
        let children: Vec<_> = run
            .iter()
            .flat_map(|id| index.nodes.get(*id).children.values().copied())
            .collect();
        let keys = children
            .iter()
            .map(|child| index.nodes.get(*child).key)
            .collect();
        let nodes = self.cut(index, level, keys, low, high, parent, spare);
        for id in run {
            index.nodes.get_mut(*id).children.clear();
        }
        adopt_in_order(index, &ids(&nodes), &children);
        InteriorPlan::Rewrite(nodes)
    }
}

/// Nodes side by side, and what takes their place.
pub(super) type Replaced = (Vec<NodeId>, Vec<NodeId>);

enum InteriorPlan {
    Append(Write),
    Rewrite(Vec<NewNode>),
}

fn ids(nodes: &[NewNode]) -> Vec<NodeId> {
    nodes.iter().map(|node| node.id).collect()
}

/// The root and those below it that a collection finds with one interior child each, if there are any, and the child that can be
/// the root instead. A leaf stays below a root: a kernel does not collect one that is alone (docs/format.md, K22).
fn lonely(nodes: &Nodes, root: NodeId) -> Option<(Vec<NodeId>, NodeId)> {
    if !nodes.is_passing() || nodes.get(root).parent.is_some() {
        return None;
    }
    let (mut roots, mut top) = (Vec::new(), root);
    while nodes.get(top).level > 1 && nodes.get(top).children.len() == 1 {
        let (_, child) = nodes.get(top).children.first_key_value()?;
        roots.push(top);
        top = *child;
    }
    (!roots.is_empty()).then_some((roots, top))
}

/// How many keys go into each node: one node if they fill at most 4/5 of it, else runs of about 3/5 (docs/format.md 4.7).
pub(super) fn groups(words: impl Iterator<Item = usize>, node_words: usize) -> Vec<usize> {
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

/// Parts of these sizes. Nothing is copied if there is one.
fn split(mut keys: Vec<Key>, sizes: &[usize]) -> Vec<Vec<Key>> {
    let behind = sizes.iter().skip(1).rev();
    let mut parts: Vec<_> = behind
        .map(|size| keys.split_off(keys.len() - size))
        .collect();
    parts.push(keys);
    parts.reverse();
    parts
}

/// The same of children, of which so many fit, without a rest of a few.
fn even_groups(children: usize, room: usize) -> Vec<usize> {
    let nodes = interior_nodes(children, room);
    let end = |node: usize| children * node / nodes;
    (0..nodes).map(|node| end(node + 1) - end(node)).collect()
}

/// How many nodes these children take, where so many fit into one.
pub(super) fn interior_nodes(children: usize, room: usize) -> usize {
    match children <= room * 4 / 5 {
        true => 1,
        false => children.div_ceil((room * 3 / 5).max(1)).max(2),
    }
}

/// How many nodes the levels above so many siblings take until there is one root.
pub(super) fn levels_above(siblings: usize, room: usize) -> usize {
    let (mut top, mut needed) = (siblings, 0);
    while top > 1 {
        top = interior_nodes(top, room);
        needed += top;
    }
    needed
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

#[cfg(test)]
mod tests {
    use super::*;

    /// T105.
    #[test]
    fn content_up_to_four_fifths_stays_one_node_and_more_is_split_evenly() {
        assert_eq!(groups([].into_iter(), 100), [0]);
        assert_eq!(groups([3; 26].into_iter(), 100), [26]);
        let counts = groups([3; 30].into_iter(), 100);
        assert_eq!(counts, [15, 15]);
        assert_eq!(even_groups(137, 169), [68, 69]);
        let many = groups([3; 1000].into_iter(), 100);
        assert_eq!(many.iter().sum::<usize>(), 1000);
        assert!(many.iter().all(|count| count * 3 <= 80), "{many:?}");
    }

    #[test]
    fn parts_follow_each_other() {
        let key = |offset| Key::hole(1, offset, 8);
        let keys: Vec<_> = (0..7).map(|at| key(at * 8)).collect();
        let parts = split(keys.clone(), &[3, 2, 2]);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2, 2]);
        assert_eq!(parts.concat(), keys);
        assert_eq!(split(Vec::new(), &[0]), [Vec::new()]);
    }

    /// Counted in words, seven children of nodes with room for four were taken for three nodes; they are four, and a rewrite ran out of
    /// buckets. (Simulation, seed 9383 of 58ff607.)
    #[test]
    fn what_is_reserved_for_new_levels_is_what_they_take() {
        for room in 4..40 {
            for siblings in 1..300 {
                let (mut top, mut taken) = (siblings, 0);
                while top > 1 {
                    top = even_groups(top, room).len();
                    taken += top;
                }
                assert_eq!(levels_above(siblings, room), taken, "{siblings} in {room}");
            }
        }
        assert_eq!(even_groups(7, 4).len(), 4);
    }
}
