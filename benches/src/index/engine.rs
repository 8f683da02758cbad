//! The engine's index at work, all of its leaves in memory.
//!
//! Leaves are there before the extents, and as many as these will fill; their sets are not written, but what is pending of
//! a leaf is taken when the engine would write it. Extents are dirty and journalled, as of a volume in writeback mode.

use super::{INODE, SECTORS, Subject};
use crate::world::{Size, State, World};
use brigade_engine::alloc::PRIO_FRESH;
use brigade_engine::extents::Extent;
use brigade_engine::{Change, Index, Nodes};
use brigade_format::{Gen, Key, Pos, Ptr};
use std::time::Duration;

const BUCKET_SECTORS: u32 = 1024;
/// Keys of a leaf: of 256 KiB, three quarters full.
const LEAF_KEYS: u64 = 8192;
const NODE_SECTORS: u32 = 512;
/// Keys pending at which the engine writes a leaf.
const PENDING_MAX: usize = 512;
/// Inserts after which the engine looks for such leaves.
const ROUND: usize = 512;
/// Inserts that share a journal entry.
const ENTRY_INSERTS: u64 = 32;
/// First buckets: tables, reserves, and what is ready to be written.
const OTHER_BUCKETS: u64 = 4096;
const GEN: u8 = 1;

/// See the module documentation.
pub struct Engine {
    index: Index,
    world: World,
    inserts: u64,
}

impl Engine {
    /// No extents yet; so many will end below a sector, and data will lie below a place.
    pub fn new(extents: u64, sectors: u64, place_max: u64) -> Engine {
        let leaves = extents.div_ceil(LEAF_KEYS);
        let mut nodes = Nodes::default();
        let place = Ptr::new(0, Gen(GEN));
        let end = |nr: u64| match nr {
            0 => Pos::ZERO,
            nr if nr == leaves => Pos::MAX,
            nr => Pos {
                inode: INODE,
                offset: sectors / leaves * nr / SECTORS * SECTORS,
            },
        };
        let key = |pos| Key::node(pos, NODE_SECTORS, place);
        let root = nodes.add(1, key(Pos::MAX), Pos::ZERO, 1, 1, None);
        nodes.set_root(root);
        for nr in 0..leaves {
            let leaf = nodes.add(0, key(end(nr + 1)), end(nr), 1, 1, Some(root));
            nodes.adopt(root, &[leaf]);
        }
        let index = Index::new(Default::default(), nodes, BUCKET_SECTORS);
        let size = Size {
            nbuckets: OTHER_BUCKETS + place_max.div_ceil(u64::from(BUCKET_SECTORS)),
            bucket_sectors: BUCKET_SECTORS,
        };
        let state = |nr| State {
            is_named: nr >= OTHER_BUCKETS,
            r#gen: GEN,
            prio: PRIO_FRESH,
            live: 0,
            is_dirty: false,
        };
        let world = World::start(size, state);
        Engine {
            index,
            world,
            inserts: 0,
        }
    }

    /// Extents in all leaves.
    pub fn extents(&self) -> usize {
        self.index.extents()
    }

    /// Leaves.
    pub fn leaves(&self) -> usize {
        self.index.nodes.leaf_count()
    }

    /// Panics with what does not hold.
    pub fn audit(&self) {
        self.index.audit(&self.world.alloc);
    }

    fn lay(&mut self, extents: &[(u64, u64)], ptr: impl Fn(u64) -> Option<Ptr>) {
        for extents in extents.chunks(ROUND) {
            for &(start, place) in extents {
                let change = Change {
                    seq: Some(self.inserts / ENTRY_INSERTS),
                    now: Duration::ZERO,
                };
                self.inserts += 1;
                let ptr = ptr(place);
                let extent = Extent {
                    inode: INODE,
                    start,
                    end: start + SECTORS,
                    ptr,
                    dirty: ptr.is_some(),
                };
                self.index.insert(&mut self.world.alloc, extent, change);
            }
            self.take_pending();
        }
    }

    /// What is left of the writing of leaves without encoding and devices.
    fn take_pending(&mut self) {
        let nodes = &mut self.index.nodes;
        let is_due = |id: &_| nodes.get(*id).pending.len() > PENDING_MAX;
        let due: Vec<_> = nodes.dirty().filter(is_due).collect();
        due.into_iter().for_each(|leaf| {
            nodes.take_pending(leaf);
        });
    }
}

impl Subject for Engine {
    fn insert(&mut self, extents: &[(u64, u64)]) {
        let first = OTHER_BUCKETS * u64::from(BUCKET_SECTORS);
        self.lay(extents, |place| Some(Ptr::new(first + place, Gen(GEN))));
    }

    fn remove(&mut self, extents: &[(u64, u64)]) {
        self.lay(extents, |_| None);
    }

    fn lookup(&self, starts: &[u64]) -> u64 {
        let first = OTHER_BUCKETS * u64::from(BUCKET_SECTORS);
        let place = |&start: &u64| {
            let end = start + 1;
            let is_here = self.index.nodes.away(INODE, start, end).is_none();
            assert!(is_here, "all leaves are here");
            let ptr = self.index.range(INODE, start, end).next()?.ptr?;
            (!self.world.alloc.is_stale(ptr)).then(|| ptr.sector() - first)
        };
        starts.iter().filter_map(place).sum()
    }
}
