//! The index in memory: what is cached where, per sector, and which leaf has yet to be told.
//!
//! Changing it is one synchronous step: the map, the bucket counters, the dirty counters and the leaf's pending set change
//! together.

use super::nodes::Nodes;
use crate::alloc::Allocator;
use crate::extents::{Extent, ExtentMap};
use brigade_format::BucketNr;
use std::collections::BTreeMap;
use std::time::Duration;

/// See the module documentation.
pub struct Index {
    /// Every live extent; stale ones may linger until their range is touched.
    pub map: ExtentMap,
    /// The tree the map is kept in.
    pub nodes: Nodes,
    dirty_sectors: BTreeMap<u32, u64>,
    bucket_sectors: u32,
}

/// Where a change goes besides memory.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Journal entry that has it; `None` for a fill, which only the leaf will know.
    pub seq: Option<u64>,
    /// Now.
    pub now: Duration,
}

impl Index {
    /// An index over a map and its tree as found at open.
    pub fn new(map: ExtentMap, nodes: Nodes, bucket_sectors: u32) -> Self {
        let mut dirty_sectors = BTreeMap::new();
        for extent in map.iter().filter(|extent| extent.dirty) {
            *dirty_sectors.entry(extent.inode).or_insert(0) += extent.sectors();
        }
        Index {
            map,
            nodes,
            dirty_sectors,
            bucket_sectors,
        }
    }

    /// Dirty sectors of a volume.
    pub fn dirty_sectors(&self, inode: u32) -> u64 {
        self.dirty_sectors.get(&inode).copied().unwrap_or(0)
    }

    /// Lays an extent or hole over what is there. Gives the journal entry to pin, if a leaf now needs it.
    pub fn insert(&mut self, alloc: &mut Allocator, extent: Extent, change: Change) -> Vec<u64> {
        let mut pins = Vec::new();
        let mut at = extent.start;
        while at < extent.end {
            let (leaf, leaf_end) = self.nodes.leaf_of(extent.inode, at);
            let piece = extent.slice(at, extent.end.min(leaf_end));
            at = piece.end;
            let merge = self
                .nodes
                .merge_within(leaf, piece.inode, piece.start, piece.end);
            let dirty = self.dirty_sectors.entry(piece.inode).or_default();
            self.map
                .insert(piece, merge, self.bucket_sectors, |removed| {
                    let Some(ptr) = removed.ptr else { return };
                    if removed.dirty {
                        *dirty -= removed.sectors();
                    }
                    alloc.sub_live(ptr, removed.sectors() as u32, removed.dirty);
                });
            if let Some(ptr) = piece.ptr {
                if piece.dirty {
                    *dirty += piece.sectors();
                }
                alloc.add_live(ptr, piece.sectors() as u32, piece.dirty);
            }
            if self
                .nodes
                .add_pending(leaf, piece, self.bucket_sectors, change.seq, change.now)
            {
                pins.extend(change.seq);
            }
        }
        pins
    }

    /// Tells the leaves something that the map has already. Gives the journal entry to pin, once for each leaf that now
    /// needs it.
    pub fn add_pending(&mut self, extent: Extent, change: Change) -> Vec<u64> {
        let mut pins = Vec::new();
        let mut at = extent.start;
        while at < extent.end {
            let (leaf, leaf_end) = self.nodes.leaf_of(extent.inode, at);
            let piece = extent.slice(at, extent.end.min(leaf_end));
            at = piece.end;
            if self
                .nodes
                .add_pending(leaf, piece, self.bucket_sectors, change.seq, change.now)
            {
                pins.extend(change.seq);
            }
        }
        pins
    }

    /// Live extents of a range, ascending; stale ones are left out.
    pub fn live(&self, alloc: &Allocator, inode: u32, start: u64, end: u64) -> Vec<Extent> {
        let is_live = |extent: &Extent| extent.ptr.is_some_and(|ptr| !alloc.is_stale(ptr));
        self.map.range(inode, start, end).filter(is_live).collect()
    }

    /// Live extents of a range, and those stale ones that a crash may make live again, since the gen that made them
    /// stale is not durable yet.
    pub fn revivable(&self, alloc: &Allocator, inode: u32, start: u64, end: u64) -> Vec<Extent> {
        let is_there = |extent: &Extent| extent.ptr.is_some_and(|ptr| !alloc.is_stale_durably(ptr));
        self.map.range(inode, start, end).filter(is_there).collect()
    }

    /// Parts of a range that hold nothing live.
    pub fn absent(&self, alloc: &Allocator, inode: u32, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = start;
        for extent in self.live(alloc, inode, start, end) {
            if at < extent.start {
                gaps.push((at, extent.start));
            }
            at = extent.end;
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }

    /// Forgets the stale extents of a range, so that they take no memory. Those that a crash may revive stay.
    pub fn purge_stale(&mut self, alloc: &Allocator, extents: &[Extent]) {
        for extent in extents {
            if extent.ptr.is_some_and(|ptr| alloc.is_stale_durably(ptr)) {
                assert!(!extent.dirty, "a bucket with dirty data is not recycled");
                self.map
                    .remove(extent.inode, extent.start, extent.end, |_| ());
            }
        }
    }

    /// Recounts and compares everything, slowly; panics with what does not hold.
    pub fn audit(&self, alloc: &Allocator) {
        self.map.check();
        self.nodes.audit();
        let mut dirty: BTreeMap<u32, u64> = BTreeMap::new();
        let mut live: BTreeMap<BucketNr, (u32, u32)> = BTreeMap::new();
        for extent in self.map.iter() {
            let (_, leaf_end) = self.nodes.leaf_of(extent.inode, extent.start);
            assert!(
                extent.end <= leaf_end,
                "TREE-1: {extent:?} crosses {leaf_end}"
            );
            let sectors = extent.sectors();
            if extent.dirty {
                *dirty.entry(extent.inode).or_default() += sectors;
            }
            if let Some(ptr) = extent.ptr.filter(|ptr| !alloc.is_stale(*ptr)) {
                let of_bucket = live.entry(ptr.bucket(self.bucket_sectors)).or_default();
                of_bucket.0 += sectors as u32;
                of_bucket.1 += if extent.dirty { sectors as u32 } else { 0 };
            }
        }
        for (inode, sectors) in &self.dirty_sectors {
            let recount = dirty.get(inode).copied().unwrap_or(0);
            assert_eq!(*sectors, recount, "dirty sectors of inode {inode}");
        }
        for nr in alloc.bucket_numbers() {
            let recount = live.get(&nr).copied().unwrap_or((0, 0));
            assert_eq!(alloc.live_of(nr), recount, "ALLOC-4: {nr:?}");
        }
        self.audit_pending(alloc);
    }

    /// TREE-2: what a leaf has yet to be told is what the map has.
    fn audit_pending(&self, alloc: &Allocator) {
        for id in self.nodes.dirty() {
            for told in self.nodes.get(id).pending.iter() {
                let is_stale = |ptr| alloc.is_stale(ptr);
                if told.ptr.is_some_and(is_stale) {
                    continue;
                }
                let mut at = told.start;
                for has in self.map.range(told.inode, told.start, told.end) {
                    assert_eq!(has, told.slice(has.start, has.end), "TREE-2: {told:?}");
                    at = if has.start == at { has.end } else { at };
                }
                let is_whole = told.ptr.is_none() || at == told.end;
                assert!(is_whole, "TREE-2: {told:?} ends at {at}");
            }
        }
    }

    /// Memory it takes, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        (self.map.memory_bytes() + self.nodes.len() * size_of::<super::nodes::Node>()) as u64
    }
}
