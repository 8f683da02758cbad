//! Walking the tree, and the generations that say which of its pointers still hold (docs/format.md 4.3 to 4.5, 6.3).
//!
//! Levels fall with every step and no bucket is entered twice, so a walk ends whatever the keys say.

use crate::source::{ReadAt, read};
use brigade_format::node::{self, Node};
use brigade_format::superblock::CacheGeometry;
use brigade_format::{Gen, Key, Ptr};
use std::collections::BTreeSet;

/// Deeper trees do not exist (F30).
pub(crate) const LEVEL_MAX: u16 = 4;

/// Generation of each bucket, as far as known.
#[derive(Clone, Debug)]
pub(crate) struct Gens {
    gens: Vec<Gen>,
    bucket_sectors: u32,
}

impl Gens {
    pub fn new(gens: Vec<Gen>, geometry: &CacheGeometry) -> Gens {
        Gens {
            gens,
            bucket_sectors: geometry.bucket_sectors,
        }
    }

    fn of(&self, ptr: Ptr) -> Option<Gen> {
        let bucket = usize::try_from(ptr.bucket(self.bucket_sectors).0).ok()?;
        self.gens.get(bucket).copied()
    }

    /// How far behind its bucket a pointer is; 0 for one that holds, `None` where nothing is known.
    pub fn staleness(&self, ptr: Ptr) -> Option<u8> {
        ptr.is_available()
            .then(|| self.of(ptr).map(|bucket_gen| bucket_gen.after(ptr.r#gen())))?
    }

    /// A key as a whole: stale as soon as one pointer is.
    pub fn is_stale(&self, key: &Key) -> bool {
        key.ptrs()
            .any(|ptr| self.staleness(ptr).is_some_and(|staleness| staleness > 0))
    }

    /// A pointer that is newer than what is known of its bucket is believed.
    pub fn raise(&mut self, key: &Key) {
        for ptr in key.ptrs().filter(|ptr| ptr.is_available()) {
            if let Some(bucket_gen) = self.of(ptr)
                && bucket_gen.after(ptr.r#gen()) == 0
            {
                let bucket = ptr.bucket(self.bucket_sectors).0 as usize;
                self.gens[bucket] = ptr.r#gen();
            }
        }
    }

    /// Of a bucket by number.
    pub fn at(&self, bucket: usize) -> Option<Gen> {
        self.gens.get(bucket).copied()
    }

    pub fn len(&self) -> usize {
        self.gens.len()
    }
}

/// What a walk meets.
pub(crate) enum Step<'a> {
    /// A node that could be read.
    Node {
        level: u16,
        key: &'a Key,
        node: &'a Node,
    },
    /// One that could not.
    Error {
        level: u16,
        key: &'a Key,
        error: String,
    },
}

/// A walk from the root down, parents first, left to right.
pub(crate) struct Walk<'a> {
    pub source: &'a dyn ReadAt,
    pub geometry: &'a CacheGeometry,
    pub root: Key,
    pub root_level: u16,
}

impl Walk<'_> {
    /// Visits every node; `gens` may be raised by the visitor, and decides which children are entered.
    pub fn run<E>(
        &self,
        gens: &mut Gens,
        mut visit: impl FnMut(&mut Gens, Step<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.root_level > LEVEL_MAX {
            let error = format!(
                "level {} of the root: at most {LEVEL_MAX} is plausible",
                self.root_level
            );
            return visit(
                gens,
                Step::Error {
                    level: self.root_level,
                    key: &self.root,
                    error,
                },
            );
        }
        let mut entered = BTreeSet::new();
        let mut stack = vec![(self.root, self.root_level)];
        while let Some((key, level)) = stack.pop() {
            let node = match self.read_node(&key, &mut entered) {
                Ok(node) => node,
                Err(error) => {
                    visit(
                        gens,
                        Step::Error {
                            level,
                            key: &key,
                            error,
                        },
                    )?;
                    continue;
                }
            };
            visit(
                gens,
                Step::Node {
                    level,
                    key: &key,
                    node: &node,
                },
            )?;
            if let Some(child_level) = level.checked_sub(1) {
                let children = children(&node, gens);
                stack.extend(children.into_iter().rev().map(|child| (child, child_level)));
            }
        }
        Ok(())
    }

    fn read_node(&self, key: &Key, entered: &mut BTreeSet<u64>) -> Result<Node, String> {
        self.geometry
            .key_rules()
            .check_node(key)
            .map_err(|e| e.to_string())?;
        let ptr = key.ptr(0).ok_or("key without pointer")?;
        if !entered.insert(ptr.sector()) {
            return Err(format!(
                "the node at sector {} is in the tree twice",
                ptr.sector()
            ));
        }
        let block = self.geometry.block_bytes();
        let length = key.size() as usize * 512 / block * block;
        let offset = ptr.sector() * 512;
        let bytes = read(self.source, offset, length).map_err(|e| e.to_string())?;
        node::parse_node(&bytes, block, ptr, self.geometry.set_magic)
            .map_err(|e| format!("node at byte {offset}: {e}"))
    }
}

/// The live children in order of position: of several at one place the one that is not stale.
fn children(node: &Node, gens: &Gens) -> Vec<Key> {
    let keys = node.sets.iter().flat_map(|set| set.keys.iter());
    let mut live: Vec<Key> = keys
        .filter(|key| !key.is_freeing() && !gens.is_stale(key))
        .copied()
        .collect();
    live.sort_by_key(Key::pos);
    live
}
