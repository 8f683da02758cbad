//! Writing nodes: appends, rewrites, splits, new roots.
//!
//! One structural turn at a time. A turn plans in small steps (takes pending sets, copies content, cuts it into nodes), then writes:
//!
//! ```text
//! append:   flush (data the keys name) ─► tails ─► flush ─► first units (durable) ─► unpin
//! rewrite:  content here ─► copied in slices ─► buckets ─► flush ─► new nodes (durable) ─► parent: append or rewrite ─► ... ─► unpin, free the old bucket
//! new root: node (durable) ─► journal entry naming it ─► free the old bucket
//! ```
//!
//! In a collection neighbours under one parent that fill little of a node together become one, leaves and interior nodes alike:
//! several old nodes then have one new one. A root with one interior child gives way to that, which is a new root without a write.
//!
//! While the content of a leaf is copied, what is inserted goes to its pending set as well, and from there to those of the new
//! leaves. So nothing is lost whether the copy has it or not.
//!
//! No turn waits for the journal entry that names a new root: the journal may have no room before more leaves are written.
//! Pins can be given back at once, because they only hold back the headers of entries to come, which name the new root.
//! Buckets cannot: the root of the last durable entry still leads to them, so they are *retired* until the entry is durable.

mod background;
mod rewrite;
mod shape;

use super::index::Index;
use super::nodes::NodeId;
use super::pages::Pages;
use crate::buckets::Buckets;
use crate::device::Disk;
use crate::error::Poison;
use crate::journal::Journal;
use crate::limits::{LEAF_PENDING_WORDS, SECTOR, SLICE_KEYS, keys_most, leaf_batch};
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use crate::stats::Cause;
use crate::watched::Watched;
use brigade_env::sync::{Lock, Notify, join_by, yield_now};
use brigade_env::{Buffer, Durability, Env};
use brigade_format::{BucketNr, Key, key_words, node};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

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
    index: Rc<Watched<Index>>,
    pages: Rc<Pages<E>>,
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
    gc_asked: Cell<bool>,
    gc_paused: Cell<bool>,
    /// A pass failed, and no other begins by itself until then.
    gc_not_before: Cell<Duration>,
    failures: RefCell<Failures>,
    /// Most extents there were since the last pass.
    extents_most: Cell<usize>,
    pass: RefCell<Pass>,
    is_closing: Cell<bool>,
    idle: Notify,
    running: Cell<bool>,
}

/// Writes of short sets that begin in one step.
const APPENDS_AT_ONCE: usize = 8;
/// Words of a node's key in its parent.
const KEY_WORDS: usize = 3;

struct Write {
    sector: u64,
    bytes: Vec<u8>,
}

/// A new node, not encoded yet.
struct NewNode {
    id: NodeId,
    keys: Vec<Key>,
}

impl<E: Env> Tree<E> {
    /// Ties the parts together.
    pub fn new(
        env: E,
        disk: Rc<Disk<E>>,
        poison: Rc<Poison>,
        layout: Layout,
        index: Rc<Watched<Index>>,
        pages: Rc<Pages<E>>,
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
            pages,
            buckets,
            journal,
            structure: Lock::default(),
            demand: Notify::new(),
            gc_passes: Cell::new(0),
            gc_asked: Cell::new(false),
            gc_paused: Cell::new(false),
            gc_not_before: Cell::default(),
            failures: RefCell::default(),
            extents_most: Cell::new(0),
            pass: RefCell::default(),
            is_closing: Cell::new(false),
            idle: Notify::new(),
            running: Cell::new(false),
        })
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
        self.write(ids, Aim::Durable).await
    }

    async fn write(&self, ids: &[NodeId], aim: Aim) -> io::Result<()> {
        let _turn = self.structure.lock().await;
        let written = self.write_in_turn(ids, aim).await;
        self.pages.shrink_all().await;
        self.pages.turn_ended();
        written
    }

    async fn write_in_turn(&self, ids: &[NodeId], aim: Aim) -> io::Result<()> {
        self.poison.check()?;
        let mut writes = Vec::new();
        let mut written = Vec::new();
        let mut pins = Vec::new();
        let mut rewrites = Vec::new();
        for &id in ids {
            match self.plan_append(id, aim) {
                Plan::Nothing => continue,
                Plan::Append(write, pin) => {
                    writes.push(write);
                    written.push(id);
                    pins.extend(pin);
                }
                Plan::Rewrite => rewrites.push(id),
            }
            yield_now().await;
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
            self.are_written(written);
        }
        self.rewrite_leaves(&rewrites, aim).await
    }

    /// What is on disk of these leaves is what they say, but for what is pending by now.
    fn are_written(&self, leaves: impl IntoIterator<Item = NodeId>) {
        let nodes = &mut self.index.borrow_mut().nodes;
        for leaf in leaves {
            nodes.get_mut(leaf).writing -= 1;
        }
    }

    fn unpin(&self, pins: impl IntoIterator<Item = u64>) {
        pins.into_iter().for_each(|seq| self.journal.unpin(seq));
    }

    fn plan_append(&self, id: NodeId, aim: Aim) -> Plan {
        let mut index = self.index.borrow_mut();
        if !index.nodes.is_live(id) {
            return Plan::Nothing;
        }
        let node = index.nodes.get(id);
        if node.rewrite_wanted || aim == Aim::New && index.nodes.is_old(id) {
            return Plan::Rewrite;
        }
        if node.pending.is_empty() {
            return Plan::Nothing;
        }
        // Never but where simulation gives nodes less room than there is: an append takes no bucket.
        let room = self.words_of(0);
        if room + KEY_WORDS <= self.node_words() && node.extents * KEY_WORDS > room {
            return Plan::Rewrite;
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
        let node = index.nodes.get_mut(id);
        node.blocks_used += bytes.len() as u64 / self.block_bytes();
        node.writing += 1;
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

    /// The same of a node of this level, in whole keys.
    fn words_of(&self, level: u16) -> usize {
        keys_most(level, self.node_words() / KEY_WORDS) * KEY_WORDS
    }

    /// Whether so many words fill so little of a node that several nodes are better one. It then takes as much again before
    /// the one splits.
    fn is_little(&self, words: usize, level: u16) -> bool {
        words <= self.words_of(level) * 2 / 5
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
        let is_long = |write: &&Write| write.bytes.len() > unit;
        let tails: Vec<_> = writes.iter().filter(is_long).collect();
        if !tails.is_empty() {
            marks::hit(Mark::BtreeFirstUnitApart);
            let tails = tails.into_iter().map(|write| self.write_tail(write));
            all_ok(join_by(APPENDS_AT_ONCE, tails).await)?;
            if !mutations::is(Mutation::AppendTailVolatile) {
                self.disk.flush().await?;
            }
        }
        let head = |write: Write| async move {
            let head = &write.bytes[..unit.min(write.bytes.len())];
            self.disk
                .write_metadata(Cause::Nodes, write.sector, head, Durability::Durable)
                .await
        };
        all_ok(join_by(APPENDS_AT_ONCE, writes.into_iter().map(head)).await)
    }

    /// What is behind the first unit of a set.
    async fn write_tail(&self, write: &Write) -> io::Result<()> {
        let unit = self.layout.unit_bytes;
        let (sector, bytes) = (write.sector + unit as u64 / SECTOR, &write.bytes[unit..]);
        self.disk
            .write_metadata(Cause::Nodes, sector, bytes, Durability::Volatile)
            .await
    }

    /// Writes new nodes, which nothing names yet.
    async fn write_new(&self, nodes: Vec<NewNode>) -> io::Result<()> {
        let mut writes = Vec::with_capacity(nodes.len());
        for node in nodes {
            writes.push(self.encode_new(node).await);
        }
        let write = |(sector, buffer): (u64, Buffer)| async move {
            self.disk
                .write_metadata_buffer(Cause::Nodes, sector, buffer, Durability::Durable)
                .await
        };
        all_ok(join_by(1, writes.into_iter().map(write)).await)
    }

    /// Where a new node goes, and its bytes, made in slices.
    async fn encode_new(&self, NewNode { id, keys }: NewNode) -> (u64, Buffer) {
        let (key, seq) = {
            let index = self.index.borrow();
            let node = index.nodes.get(id);
            (node.key, node.seq)
        };
        let ptr = key.ptr(0).expect("a node has a place");
        let words = keys.iter().map(Key::words).sum();
        let bytes = node::bset_bytes(words).next_multiple_of(self.block_bytes() as usize);
        let mut buffer = self.disk.buffers().get(bytes);
        let mut there = 0;
        for some in keys.chunks(SLICE_KEYS) {
            there = node::put_keys(&mut buffer, there, some);
            yield_now().await;
        }
        node::seal_bset(&mut buffer, there, seq, ptr, self.layout.set_magic);
        yield_now().await;
        (ptr.sector(), buffer)
    }
}

/// How a pass over all nodes goes.
#[derive(Clone, Debug, Default)]
pub struct Pass {
    /// Why.
    pub reason: &'static str,
    /// It is not over.
    pub is_running: bool,
    /// Since when.
    pub began: Duration,
    /// Leaves it has been at.
    pub done: usize,
    /// Leaves there were.
    pub total: usize,
}

/// Passes that failed.
#[derive(Default)]
struct Failures {
    count: u64,
    in_a_row: u32,
    last: String,
}

/// Why leaves are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// What is pending is to be durable.
    Durable,
    /// Those that the collection has yet to rewrite are to be new, too.
    New,
}

enum Plan {
    Nothing,
    Append(Write, Option<u64>),
    Rewrite,
}

fn all_ok(results: Vec<io::Result<()>>) -> io::Result<()> {
    results.into_iter().collect()
}
