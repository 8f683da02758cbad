//! Leaves are copied, those that are mostly empty together with their neighbours, cut into new ones, and these written.

use super::shape::{groups, interior_nodes, levels_above};
use super::{Aim, KEY_WORDS, NewNode, Tree};
use crate::alloc::MetadataBucket;
use crate::btree::nodes::NodeId;
use crate::extents::Extent;
use crate::limits::{SLICE_KEYS, rewritten_together};
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use brigade_env::Env;
use brigade_env::sync::yield_now;
use brigade_format::Key;
use std::collections::BTreeSet;
use std::io;

/// Keys that are copied before any of them is written, about.
const COPIED_KEYS: usize = 1 << 15;

/// What a leaf, or several side by side with the same parent, said when it was copied.
struct Copy {
    leaves: Vec<NodeId>,
    keys: Vec<Key>,
    /// What is stale, and so not among them, but not durably.
    left_out: Vec<Extent>,
    /// Keys for each new leaf.
    sizes: Vec<usize>,
    pins: Vec<u64>,
}

impl<E: Env> Tree<E> {
    /// Rewrites leaves together, as many at a time as there are buckets for: their parents, and above all the journal
    /// entry that names a new root, are then written once for all of them.
    pub(super) async fn rewrite_leaves(&self, ids: &[NodeId], aim: Aim) -> io::Result<()> {
        let mut copies: Vec<Copy> = Vec::new();
        let mut keys = 0;
        for &leaf in ids {
            let copy = match self.copy(leaf).await {
                Ok(copy) => copy,
                Err(error) => {
                    // The others are written: what they had pending is only in the copies.
                    self.write_copies(copies, aim).await?;
                    return Err(error);
                }
            };
            keys += copy.keys.len();
            copies.push(copy);
            if keys >= COPIED_KEYS {
                self.write_copies(std::mem::take(&mut copies), aim).await?;
                keys = 0;
            }
        }
        self.write_copies(copies, aim).await
    }

    /// Copies what a leaf says, and takes what is pending.
    async fn copy(&self, leaf: NodeId) -> io::Result<Copy> {
        self.pages.bring_leaf(leaf).await?;
        let began = self.env.now();
        let (mut from, high, pin, extents) = {
            let nodes = &mut self.index.borrow_mut().nodes;
            let (_, pin) = nodes.take_pending(leaf);
            nodes.rewriting += 1;
            let node = nodes.get_mut(leaf);
            node.writing += 1;
            (node.low, node.key.pos(), pin, node.extents)
        };
        let mut keys = Vec::with_capacity(extents);
        let mut left_out = Vec::new();
        loop {
            let some: Vec<_> = {
                let index = self.index.borrow();
                let behind = index.nodes.content(leaf).iter_between(from, high);
                // One that grew over the end of the last slice is taken from there on.
                let rest = |extent: Extent| match extent.inode == from.inode {
                    true => extent.slice(from.offset, extent.end),
                    false => extent,
                };
                behind.take(SLICE_KEYS).map(rest).collect()
            };
            {
                let alloc = self.buckets.get();
                self.index.borrow_mut().purge_stale(&alloc, leaf, &some);
                for extent in &some {
                    let Some(ptr) = extent.ptr else { continue };
                    if !alloc.is_stale(ptr) {
                        keys.push(extent.to_key());
                    } else if !alloc.is_stale_durably(ptr)
                        && !mutations::is(Mutation::LeafForgetsRevivable)
                    {
                        left_out.push(*extent);
                    }
                }
            }
            yield_now().await;
            match some.last() {
                Some(last) if some.len() == SLICE_KEYS => from = last.to_key().pos(),
                _ => break,
            }
        }
        let sizes = groups(keys.iter().map(Key::words), self.words_of(0));
        yield_now().await;
        self.pages.times.sort.record(began, self.env.now());
        Ok(Copy {
            leaves: vec![leaf],
            keys,
            left_out,
            sizes,
            pins: pin.into_iter().collect(),
        })
    }

    /// The same copies, neighbours that fill little of a node together as one. Their parents stay the same until what takes their
    /// place is written.
    fn joined(&self, copies: Vec<Copy>) -> Vec<Copy> {
        let mut joined = Vec::with_capacity(copies.len());
        copies
            .into_iter()
            .for_each(|copy| self.join(&mut joined, copy));
        joined
    }

    /// Adds a copy to others. If it and the last one are neighbours and fill little of a node together, they become one.
    fn join(&self, copies: &mut Vec<Copy>, copy: Copy) {
        let Some(last) = copies.last_mut() else {
            return copies.push(copy);
        };
        let words = |copy: &Copy| copy.keys.iter().map(Key::words).sum::<usize>();
        let is_little = self.is_little(words(last) + words(&copy), 0);
        let are_neighbours = {
            let nodes = &self.index.borrow().nodes;
            let left = nodes.get(*last.leaves.last().expect("one at least"));
            let right = nodes.get(copy.leaves[0]);
            left.parent.is_some() && left.parent == right.parent && left.key.pos() == right.low
        };
        if !is_little || !are_neighbours {
            return copies.push(copy);
        }
        marks::hit(Mark::BtreeLeavesJoin);
        last.leaves.extend(copy.leaves);
        last.keys.extend(copy.keys);
        last.left_out.extend(copy.left_out);
        last.pins.extend(copy.pins);
        last.sizes = vec![last.keys.len()];
    }

    async fn write_copies(&self, copies: Vec<Copy>, aim: Aim) -> io::Result<()> {
        let mut rest = copies;
        let is_early = mutations::is(Mutation::LeavesJoinEarly);
        if is_early && aim == Aim::New {
            rest = self.joined(rest);
        }
        while !rest.is_empty() {
            let (mut spare, count) = self.reserve_for(&rest).await?;
            let later = rest.split_off(count);
            // Not before: writing those in front may have split their parent.
            if !is_early && aim == Aim::New {
                rest = self.joined(rest);
            }
            let (began, is_split) = (self.env.now(), rest.iter().any(|it| it.sizes.len() > 1));
            let (mut new_nodes, mut replaced, mut pins) = (Vec::new(), Vec::new(), Vec::new());
            for copy in rest {
                pins.extend(&copy.pins);
                let mark = match copy.sizes.len() {
                    1 => Mark::BtreeLeafRewrite,
                    _ => Mark::BtreeLeafSplit,
                };
                marks::hit(mark);
                let leaves = copy.leaves.clone();
                let nodes = self.put_in_place(copy, &mut spare);
                replaced.push((leaves, nodes.iter().map(|node| node.id).collect::<Vec<_>>()));
                new_nodes.extend(nodes);
                yield_now().await;
            }
            rest = later;
            if !mutations::is(Mutation::LeafForgetsFlush) {
                self.disk.flush().await?;
            }
            self.write_new(new_nodes).await?;
            self.are_written(replaced.iter().flat_map(|(_, news)| news.iter().copied()));
            self.replace(replaced, &mut spare, pins).await?;
            self.buckets
                .free_metadata(spare.into_iter().map(|bucket| bucket.nr));
            if is_split {
                self.pages.times.split.record(began, self.env.now());
            }
        }
        Ok(())
    }

    /// Cuts a copy into new leaves that take the old one's place in memory at once, with what came since.
    fn put_in_place(&self, copy: Copy, spare: &mut Vec<MetadataBucket>) -> Vec<NewNode> {
        let mut index = self.index.borrow_mut();
        let (first, last) = (copy.leaves[0], copy.leaves[copy.leaves.len() - 1]);
        let (low, high) = (index.nodes.get(first).low, index.nodes.get(last).key.pos());
        // The old leaves leave the search order before the last new one, with the same position, enters it.
        for leaf in &copy.leaves {
            index.nodes.hide_leaf(*leaf);
            index.nodes.rewriting -= 1;
        }
        let parent = index.nodes.get(first).parent;
        let nodes = self.cut(&mut index, 0, copy.keys, low, high, parent, spare);
        let news: Vec<_> = nodes.iter().map(|node| node.id).collect();
        for pin in index.hand_over(&copy.leaves, &news, |seq| self.journal.unpin(seq)) {
            self.journal.pin(pin);
        }
        let until = self.buckets.get().next_table();
        for new in news {
            let node = index.nodes.get_mut(new);
            node.writing += 1;
            let (low, high) = (node.low, node.key.pos());
            let its = copy
                .left_out
                .iter()
                .filter_map(|extent| extent.within(low, high));
            index.nodes.leave_out(new, its.collect(), until);
        }
        nodes
    }

    /// Takes buckets for writing the first of these copies, at least one, and all their ancestors; says how many copies.
    async fn reserve_for(&self, copies: &[Copy]) -> io::Result<(Vec<MetadataBucket>, usize)> {
        let leaves: Vec<_> = copies.iter().map(|copy| copy.leaves[0]).collect();
        let sizes: Vec<_> = copies.iter().map(|copy| copy.sizes.len()).collect();
        let there = self.buckets.get().metadata_available();
        let mut count = rewritten_together(copies.len());
        while count > 1 && self.buckets_needed(&leaves[..count], &sizes[..count]) > there {
            marks::hit(Mark::BtreeFewerAtOnce);
            count = count.div_ceil(2);
        }
        let needed = self.buckets_needed(&leaves[..count], &sizes[..count]);
        let taken = match self.buckets.take_metadata_at_once(needed) {
            Some(taken) => taken,
            None => self.buckets.take_metadata(needed).await?,
        };
        Ok((taken, count))
    }

    /// The most leaves that can take the place of this one, as it is.
    pub(super) fn new_leaves_most(&self, leaf: NodeId) -> usize {
        let words = self.index.borrow().nodes.get(leaf).extents * KEY_WORDS;
        match words <= self.words_of(0) * 4 / 5 {
            true => 1,
            false => words.div_ceil(self.words_of(0) * 3 / 5) + 1,
        }
    }

    /// The most buckets that rewriting these leaves, which become so many each, and everything above them can take.
    pub(super) fn buckets_needed(&self, leaves: &[NodeId], new_leaves: &[usize]) -> usize {
        // The very rule by which they are cut: a number of words instead would now and then be a node less.
        let room = self.words_of(1) / KEY_WORDS;
        let mut news: usize = new_leaves.iter().sum();
        let mut needed = news;
        let index = self.index.borrow();
        let mut level: BTreeSet<NodeId> = leaves.iter().copied().collect();
        while level.iter().any(|id| index.nodes.get(*id).parent.is_some()) {
            level = level
                .iter()
                .filter_map(|id| index.nodes.get(*id).parent)
                .collect();
            // One that a kernel wrote may have more children than one of ours.
            let parts = |id: &NodeId| interior_nodes(index.nodes.get(*id).children.len(), room) + 1;
            news =
                level.iter().map(|id| parts(id).max(3)).sum::<usize>() + interior_nodes(news, room);
            needed += news;
        }
        // New levels above what is the root now.
        needed + levels_above(news, room) + 2
    }
}
