//! Walking the tree from the root, level by level: nodes checked, gens raised, leaves flattened.
//!
//! `docs/format.md` 4 and 8.2 step 6. Nodes of a level are read ahead and judged in order. In an interior node all
//! keys raise gens before any child is called live; whether a leaf's extents are stale is not judged here at all,
//! since later nodes and the journal may still raise. Every bucket can be one node only, which bounds the walk.

use super::findings::{Findings, LoadError, Severity};
use super::marks::{Marks, Owner};
use super::reads::ReadWindow;
use super::{LoadedNode, Newest, passing};
use crate::extents::{Extent, Layers};
use brigade_env::{Env, SECTOR_BYTES};
use brigade_format::node::{self, Node};
use brigade_format::superblock::CacheGeometry;
use brigade_format::{Key, KeyRules, Pos};
use std::collections::BTreeSet;
use std::ops::Range;

/// Practical bound of the tree's height (`docs/format.md` 11, F30).
const LEVEL_MAX: u16 = 4;

/// The tree as read.
#[derive(Default)]
pub(super) struct Tree {
    /// Root first, then level by level in key order; the last level are the leaves.
    pub(super) nodes: Vec<LoadedNode>,
    pub(super) leaves: Range<usize>,
    /// Effective content of all leaves, sorted, stale extents included, holes left out; nothing if they were passed.
    pub(super) extents: Vec<Extent>,
    /// Leaves were read and judged, but not kept.
    pub(super) is_passed: bool,
    pub(super) bytes_read: u64,
    pub(super) keys: u64,
}

struct Walk<'a> {
    geometry: &'a CacheGeometry,
    rules: KeyRules,
    marks: &'a mut Marks,
    inodes: &'a mut BTreeSet<u32>,
    findings: &'a mut Findings,
    /// Gens are final.
    is_again: bool,
    tree: Tree,
}

/// What is done with leaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaves {
    /// They are not read.
    Later,
    /// They are read; what they say is kept unless it takes more than so many bytes of memory.
    Now(Option<u64>),
}

/// Reads every live node, or all but the leaves. The prio chain's gens must be in `marks`.
#[allow(clippy::too_many_arguments, reason = "one walk fills all of these")]
pub(super) async fn read<E: Env>(
    env: &E,
    device: &E::Device,
    geometry: &CacheGeometry,
    newest: &Newest,
    marks: &mut Marks,
    inodes: &mut BTreeSet<u32>,
    findings: &mut Findings,
    leaves: Leaves,
) -> Result<Tree, LoadError> {
    let tree = Tree {
        nodes: Vec::new(),
        leaves: 0..0,
        extents: Vec::new(),
        is_passed: false,
        bytes_read: 0,
        keys: 0,
    };
    let mut walk = Walk {
        geometry,
        rules: geometry.key_rules(),
        marks,
        inodes,
        findings,
        is_again: false,
        tree,
    };
    walk.root(newest)?;
    let mut level = 0..1;
    loop {
        let next = walk.tree.nodes.len();
        let are_leaves = walk.tree.nodes[level.start].level == 0;
        if are_leaves && let Leaves::Now(memory_bytes) = leaves {
            let bytes = level.clone().map(|leaf| walk.node_bytes(leaf)).sum();
            walk.tree.is_passed = passing::is_too_much(bytes, memory_bytes);
        }
        if leaves != Leaves::Later || !are_leaves {
            walk.read_level(env, device, level.clone()).await?;
        }
        if are_leaves {
            walk.tree.leaves = level;
            return Ok(walk.tree);
        }
        level = next..walk.tree.nodes.len();
    }
}

/// Reads some leaves once more, and gives what they say.
pub(super) async fn read_again<E: Env>(
    env: &E,
    device: &E::Device,
    geometry: &CacheGeometry,
    tree: &mut Tree,
    marks: &mut Marks,
    leaves: Range<usize>,
) -> Result<Vec<Extent>, LoadError> {
    // All that there is to say of them was said.
    let (mut inodes, mut findings) = (BTreeSet::new(), Findings::new(true));
    let keys = tree.keys;
    let mut walk = Walk {
        geometry,
        rules: geometry.key_rules(),
        marks,
        inodes: &mut inodes,
        findings: &mut findings,
        is_again: true,
        tree: std::mem::take(tree),
    };
    walk.tree.is_passed = false;
    let result = walk.read_level(env, device, leaves).await;
    *tree = walk.tree;
    (tree.is_passed, tree.keys) = (true, keys);
    result?;
    Ok(std::mem::take(&mut tree.extents))
}

/// A data key as a leaf or the journal may hold it. Keys of several pointers were never written by one-device
/// kernels and are refused rather than half understood.
pub(super) fn check_extent(
    rules: &KeyRules,
    key: &Key,
    id: &'static str,
    structure: &str,
    offset: u64,
) -> Result<(), LoadError> {
    rules
        .check_extent(key)
        .map_err(|e| LoadError::format(id, structure, offset, &e))?;
    check_one_pointer(key, id, structure, offset)
}

fn check_one_pointer(
    key: &Key,
    id: &'static str,
    structure: &str,
    offset: u64,
) -> Result<(), LoadError> {
    if key.ptr_count() > 1 {
        let text = format!(
            "a key of {} pointers, which one-device sets do not have",
            key.ptr_count()
        );
        return Err(LoadError::new(id, structure, offset, text));
    }
    Ok(())
}

/// Where a node stands, for messages.
struct Place {
    index: usize,
    offset: u64,
    level: u16,
    low: Pos,
    high: Pos,
}

impl Place {
    fn structure(&self) -> String {
        format!("btree node (level {})", self.level)
    }

    fn error(&self, id: &'static str, text: impl std::fmt::Display) -> LoadError {
        LoadError::new(id, self.structure(), self.offset, text)
    }
}

impl Walk<'_> {
    fn root(&mut self, newest: &Newest) -> Result<(), LoadError> {
        let (structure, offset) = ("root key", newest.byte_offset);
        self.rules
            .check_node(&newest.root)
            .map_err(|e| LoadError::format("F36", structure, offset, &e))?;
        check_one_pointer(&newest.root, "F36", structure, offset)?;
        if newest.root.pos() != Pos::MAX {
            return Err(LoadError::new(
                "F30",
                structure,
                offset,
                "its position is not the highest one",
            ));
        }
        if newest.root_level > LEVEL_MAX {
            let text = format!(
                "level {}, at most {LEVEL_MAX} is possible",
                newest.root_level
            );
            return Err(LoadError::new("F30", structure, offset, text));
        }
        self.add_node(newest.root_level, newest.root, None, Pos::ZERO, offset)
    }

    /// Takes a live node key into the list. Its gen raises, its bucket becomes a node's.
    fn add_node(
        &mut self,
        level: u16,
        key: Key,
        parent: Option<usize>,
        low: Pos,
        offset: u64,
    ) -> Result<(), LoadError> {
        let structure = if parent.is_some() {
            "interior key"
        } else {
            "root key"
        };
        let Some(ptr) = key.ptr(0) else {
            return Err(LoadError::new("F36", structure, offset, "no pointer"));
        };
        if self.marks.is_stale(ptr) {
            let text = format!(
                "its pointer is {} gens behind its bucket",
                self.marks.staleness(ptr)
            );
            return Err(LoadError::new("F36", structure, offset, text));
        }
        self.marks.see_node(ptr);
        let bucket = self.marks.bucket(ptr) as u64;
        let owner = self.marks.claim(bucket, Owner::Node);
        if owner != Owner::Nobody {
            let text = format!(
                "a node in bucket {bucket}, which belongs to {}",
                owner.name()
            );
            return Err(LoadError::new("F40", structure, offset, text));
        }
        let node = LoadedNode {
            level,
            key,
            parent,
            seq: 0,
            blocks_used: 0,
            low,
            has_old_bset_version: false,
        };
        self.tree.nodes.push(node);
        Ok(())
    }

    fn node_bytes(&self, index: usize) -> u64 {
        let block = self.geometry.block_sectors.max(1);
        u64::from(self.tree.nodes[index].key.size() / block * block) * SECTOR_BYTES
    }

    fn place(&self, index: usize) -> Place {
        let node = &self.tree.nodes[index];
        let offset = node.key.ptr(0).map_or(0, |ptr| ptr.sector()) * SECTOR_BYTES;
        Place {
            index,
            offset,
            level: node.level,
            low: node.low,
            high: node.key.pos(),
        }
    }

    async fn read_level<E: Env>(
        &mut self,
        env: &E,
        device: &E::Device,
        level: Range<usize>,
    ) -> Result<(), LoadError> {
        let mut window = ReadWindow::default();
        let mut asked = level.start;
        for index in level.clone() {
            while asked < level.end && window.has_room(self.node_bytes(asked) as usize) {
                let (bytes, place) = (self.node_bytes(asked), self.place(asked));
                if bytes == 0 {
                    return Err(place.error("F36", "smaller than one block"));
                }
                window.start(device, place.offset, env.buffers().get(bytes as usize));
                asked += 1;
            }
            let place = self.place(index);
            let buffer = window
                .next()
                .await
                .map_err(|e| LoadError::io(place.structure(), place.offset, &e))?;
            self.tree.bytes_read += buffer.len() as u64;
            let node = self.parse(&place, &buffer)?;
            drop(buffer);
            if place.level == 0 {
                self.leaf(&place, node)?
            } else {
                self.interior(&place, node)?
            }
        }
        Ok(())
    }

    fn parse(&mut self, place: &Place, bytes: &[u8]) -> Result<Node, LoadError> {
        let block_bytes = self.geometry.block_sectors as usize * SECTOR_BYTES as usize;
        let ptr = self.tree.nodes[place.index]
            .key
            .ptr(0)
            .expect("checked when it was added");
        let node =
            node::parse_node(bytes, block_bytes, ptr, self.geometry.set_magic).map_err(|e| {
                let mut error = LoadError::format("F46", place.structure(), place.offset, &e.error);
                if e.is_last {
                    error
                        .message
                        .push_str("; it is the node's last set: an append cut short, or rot");
                }
                error
            })?;
        let loaded = &mut self.tree.nodes[place.index];
        loaded.seq = node.seq;
        loaded.blocks_used = node.blocks_used as u32;
        loaded.has_old_bset_version = node.sets.iter().any(|set| set.version == 0);
        self.tree.keys += node
            .sets
            .iter()
            .map(|set| set.keys.len() as u64)
            .sum::<u64>();
        Ok(node)
    }

    fn warn_csum(&mut self, place: &Place, key: &Key) {
        if key.csum_type() != 0 {
            let text = format_args!("a key of inode {} has a checksum type", key.inode());
            self.findings
                .warn("F35", place.structure(), place.offset, text);
        }
    }

    fn leaf(&mut self, place: &Place, node: Node) -> Result<(), LoadError> {
        let mut layers = Layers::default();
        for set in &node.sets {
            layers.push(self.leaf_set(place, &set.keys)?);
        }
        if self.tree.is_passed {
            return Ok(());
        }
        self.tree
            .extents
            .extend(layers.finish().into_iter().filter(|e| e.ptr.is_some()));
        Ok(())
    }

    /// One set of a leaf: checked, its pointers noted.
    fn leaf_set(&mut self, place: &Place, keys: &[Key]) -> Result<Vec<Extent>, LoadError> {
        let mut run: Vec<Extent> = Vec::with_capacity(keys.len());
        let mut inode = None;
        for key in keys {
            if inode != Some(key.inode()) {
                inode = Some(key.inode());
                self.inodes.insert(key.inode());
            }
            if key.size() == 0 {
                continue;
            }
            check_extent(&self.rules, key, "F34", "leaf key", place.offset)?;
            self.warn_csum(place, key);
            let Some(extent) = Extent::from_key(key) else {
                return Err(place.error("F34", "a key of an impossible range"));
            };
            let start = Pos {
                inode: extent.inode,
                offset: extent.start,
            };
            if start < place.low || key.pos() > place.high {
                return Err(place.error(
                    "F33",
                    format_args!("{extent:?} lies outside the node's range"),
                ));
            }
            if let Some(last) = run.last()
                && (last.inode, last.end) > (extent.inode, extent.start)
            {
                return Err(place.error("F32", format_args!("{extent:?} does not follow {last:?}")));
            }
            if !self.is_again {
                key.ptrs()
                    .filter(|ptr| ptr.is_available())
                    .for_each(|ptr| self.marks.see_data(ptr));
            }
            run.push(extent);
        }
        Ok(run)
    }

    fn interior(&mut self, place: &Place, node: Node) -> Result<(), LoadError> {
        for set in &node.sets {
            self.interior_set(place, &set.keys)?;
        }
        let mut live: Vec<Key> = node
            .sets
            .iter()
            .flat_map(|set| &set.keys)
            .filter(|key| {
                !key.is_freeing() && key.ptr(0).is_some_and(|ptr| !self.marks.is_stale(ptr))
            })
            .copied()
            .collect();
        live.sort_by_key(Key::pos);
        self.children(place, &live)
    }

    fn interior_set(&mut self, place: &Place, keys: &[Key]) -> Result<(), LoadError> {
        let mut last = Pos::ZERO;
        for key in keys {
            self.rules
                .check_node(key)
                .map_err(|e| LoadError::format("F36", "interior key", place.offset, &e))?;
            check_one_pointer(key, "F36", "interior key", place.offset)?;
            self.warn_csum(place, key);
            let pos = key.pos();
            let Some(ptr) = key.ptr(0) else {
                return Err(place.error("F36", "a key without pointer"));
            };
            if key.is_freeing() {
                if last != Pos::ZERO {
                    return Err(place.error("F31", "a freeing key behind others"));
                }
                self.marks.see_freed(ptr);
                continue;
            }
            if pos <= last && last != Pos::ZERO {
                return Err(place.error("F31", format_args!("{pos:?} does not follow {last:?}")));
            }
            if pos <= place.low || pos > place.high {
                return Err(
                    place.error("F33", format_args!("{pos:?} lies outside the node's range"))
                );
            }
            last = pos;
            self.marks.see_node(ptr);
        }
        Ok(())
    }

    fn children(&mut self, place: &Place, live: &[Key]) -> Result<(), LoadError> {
        let Some(last) = live.last() else {
            return Err(place.error("F38", "no live child"));
        };
        if last.pos() != place.high {
            return Err(place.error(
                "F39",
                format_args!("its children end at {:?}, not {:?}", last.pos(), place.high),
            ));
        }
        let mut low = place.low;
        for (i, key) in live.iter().enumerate() {
            if i > 0 && live[i - 1].pos() == key.pos() {
                return Err(
                    place.error("F37", format_args!("two live children at {:?}", key.pos()))
                );
            }
            self.add_node(place.level - 1, *key, Some(place.index), low, place.offset)?;
            low = key.pos();
        }
        Ok(())
    }
}

/// Once all gens are raised, no node may have turned out stale.
pub(super) fn check_nodes_are_live(tree: &Tree, marks: &Marks) -> Result<(), LoadError> {
    for node in &tree.nodes {
        let Some(ptr) = node.key.ptr(0) else { continue };
        if marks.is_stale(ptr) {
            let structure = format!("btree node (level {})", node.level);
            let text = format!(
                "the pointer to it is {} gens behind its bucket",
                marks.staleness(ptr)
            );
            return Err(LoadError::new(
                "F36",
                structure,
                ptr.sector() * SECTOR_BYTES,
                text,
            ));
        }
    }
    Ok(())
}

/// Pointers that were seen in another order than they are worth: some gen is over half the circle away (F42).
pub(super) fn check_gens(
    extents: &[Extent],
    marks: &Marks,
    findings: &mut Findings,
) -> Result<(), LoadError> {
    for e in extents {
        let Some(ptr) = e.ptr else { continue };
        if !marks.is_stale(ptr) && marks.gens[marks.bucket(ptr)] != ptr.r#gen() {
            let text = format!("{e:?} is newer than its bucket");
            findings.report("F42", Severity::Fatal, "extent", super::byte_of(e), text)?;
        }
    }
    Ok(())
}

/// Pointers that are further behind would make them look new before long (F42).
const BEHIND_MAX: u8 = 96;

/// F42 for extents that nothing hides. Their buckets are noted in `reported`.
pub(super) fn check_staleness(
    extents: &[Extent],
    marks: &Marks,
    reported: &mut BTreeSet<usize>,
    findings: &mut Findings,
) -> Result<(), LoadError> {
    for e in extents {
        let Some(ptr) = e.ptr else { continue };
        if marks.staleness(ptr) > BEHIND_MAX {
            let text = format!("{e:?} is {} gens behind its bucket", marks.staleness(ptr));
            findings.report(
                "F42",
                Severity::Fatal,
                "extent",
                ptr.sector() * SECTOR_BYTES,
                text,
            )?;
            reported.insert(marks.bucket(ptr));
        }
    }
    Ok(())
}

/// F42 for all others, which only warns.
pub(super) fn check_hidden_staleness(
    marks: &Marks,
    reported: &BTreeSet<usize>,
    findings: &mut Findings,
) {
    for (bucket, oldest) in marks.oldest_data_gens().into_iter().enumerate() {
        let behind = marks.gens[bucket].after(oldest);
        if behind > BEHIND_MAX && !reported.contains(&bucket) {
            let text = format_args!("a hidden key points {behind} gens behind bucket {bucket}");
            findings.warn("F42", "btree", marks.bucket_offset(bucket), text);
        }
    }
}
