//! The tree node by node: each by itself, and its keys by the place it has (F30 to F39, F45, F46). Raises the generations.
//!
//! Levels fall with every step and no bucket is entered twice, so a walk ends whatever the keys say.

use super::chain::Chain;
use super::devices::Cache;
use super::report::{Findings, Place};
use super::ring::{BTREE_ROOT_AT, Ring};
use super::{Phase, Progress, Watch};
use crate::source::read;
use crate::tree::LEVEL_MAX;
use brigade_format::node::{self, Bset, HEADER_BYTES, Node};
use brigade_format::{FormatError, Gen, Key, NodeError, Pos, Ptr, SECTOR_BYTES, crc, order};
use std::collections::BTreeSet;

/// A place in the tree.
#[derive(Clone, Copy)]
pub(super) struct Spot {
    pub key: Key,
    pub level: u16,
    /// Where the left neighbour ends.
    pub low: Pos,
    pub is_root: bool,
    /// Byte of the device at which its key stands.
    pub named_at: u64,
}

impl Spot {
    /// The root's.
    pub fn root(ring: &Ring) -> Spot {
        Spot {
            key: ring.head.btree_root,
            level: ring.head.btree_level,
            low: Pos::ZERO,
            is_root: true,
            named_at: ring.place.start + BTREE_ROOT_AT,
        }
    }

    pub fn ptr(&self) -> Ptr {
        self.key.ptr(0).unwrap_or(Ptr(0))
    }

    fn start(&self) -> u64 {
        self.ptr().sector() * SECTOR_BYTES
    }

    /// For findings.
    pub fn place(&self, cache: &Cache<'_>) -> Place {
        let bucket = self.ptr().bucket(cache.geometry.bucket_sectors);
        let what = match (self.is_root, self.level) {
            (true, _) => "btree root".to_owned(),
            (_, 0) => "btree leaf".to_owned(),
            (_, level) => format!("btree node of level {level}"),
        };
        let length = u64::from(self.key.size()) * SECTOR_BYTES;
        cache.place(format!("{what} (bucket {bucket})"), self.start(), length)
    }
}

/// Why a node's content is not known.
pub(super) enum Trouble {
    Io(std::io::Error),
    /// Smaller than a block.
    Small,
    /// Its bucket is another node's already.
    Twice,
    Content(Box<NodeError>),
}

/// Called with each node and the keys of its children; may raise generations, by which children are chosen.
pub(super) type Visit<'v> = dyn FnMut(&mut Chain, &Spot, Result<&Node, Trouble>) + 'v;

/// Visits every node, parents first, left to right.
pub(super) fn walk(cache: &Cache<'_>, root: Spot, chain: &mut Chain, visit: &mut Visit<'_>) {
    let mut entered = BTreeSet::new();
    let mut stack = vec![root];
    while let Some(spot) = stack.pop() {
        let bucket = spot.ptr().bucket(cache.geometry.bucket_sectors);
        let result = match entered.insert(bucket.0) {
            true => read_node(cache, &spot),
            false => Err(Trouble::Twice),
        };
        match result {
            Err(trouble) => visit(chain, &spot, Err(trouble)),
            Ok(node) => {
                visit(chain, &spot, Ok(&node));
                if spot.level > 0 {
                    let children = children(cache, &spot, &node, chain);
                    stack.extend(children.into_iter().rev());
                }
            }
        }
    }
}

fn read_bytes(cache: &Cache<'_>, spot: &Spot) -> Result<Vec<u8>, Trouble> {
    let block = cache.geometry.block_sectors.max(1);
    let length = (spot.key.size() / block * block) as usize * SECTOR_BYTES as usize;
    if length == 0 {
        return Err(Trouble::Small);
    }
    read(cache.source, spot.start(), length).map_err(Trouble::Io)
}

fn read_node(cache: &Cache<'_>, spot: &Spot) -> Result<Node, Trouble> {
    let bytes = read_bytes(cache, spot)?;
    let geometry = &cache.geometry;
    node::parse_node(
        &bytes,
        geometry.block_bytes(),
        spot.ptr(),
        geometry.set_magic,
    )
    .map_err(|error| Trouble::Content(Box::new(error)))
}

/// Every key of a node with its set and its byte on the device.
pub(super) fn keys_of<'n>(
    cache: &Cache<'_>,
    spot: &Spot,
    node: &'n Node,
) -> impl Iterator<Item = (usize, &'n Key, u64)> {
    let (start, block) = (spot.start(), cache.geometry.block_bytes());
    node.sets.iter().enumerate().flat_map(move |(nr, set)| {
        let mut at = start + set_at(set, block);
        set.keys.iter().map(move |key| {
            let here = at;
            at += key.words() as u64 * 8;
            (nr, key, here)
        })
    })
}

/// Where a set's keys start in its node.
fn set_at(set: &Bset, block_bytes: usize) -> u64 {
    (set.block_offset * block_bytes + HEADER_BYTES) as u64
}

/// The live children in the order of their positions.
fn children(cache: &Cache<'_>, spot: &Spot, node: &Node, chain: &Chain) -> Vec<Spot> {
    let rules = cache.geometry.key_rules();
    let mut live: Vec<(Key, u64)> = keys_of(cache, spot, node)
        .filter(|(_, key, _)| {
            !key.is_freeing() && rules.check_node(key).is_ok() && chain.key_staleness(key) == 0
        })
        .map(|(_, key, at)| (*key, at))
        .collect();
    live.sort_by_key(|(key, _)| key.pos());
    let mut low = spot.low;
    live.into_iter()
        .map(|(key, named_at)| {
            let child = Spot {
                key,
                level: spot.level.saturating_sub(1),
                low,
                is_root: false,
                named_at,
            };
            low = key.pos();
            child
        })
        .collect()
}

/// What the first walk found.
pub(super) struct Nodes {
    pub root: Spot,
    pub count: u64,
    pub keys: u64,
    /// Every node, for a look at their generations when all are known.
    pub all: Vec<(Ptr, u64)>,
    /// Whether every node could be read.
    pub is_whole: bool,
}

/// Walks the tree for the first time; `None` if there is no way in.
pub(super) fn check(
    cache: &Cache<'_>,
    ring: &Ring,
    chain: &mut Chain,
    watch: &mut dyn Watch,
    findings: &mut Findings,
) -> Option<Nodes> {
    let root = Spot::root(ring);
    check_root(cache, ring, &root, findings)?;
    chain.gens.raise(&root.key);
    let mut first = First {
        cache,
        nodes: Nodes {
            root,
            count: 0,
            keys: 0,
            all: Vec::new(),
            is_whole: true,
        },
        trial_bytes_left: TRIAL_BYTES_MAX,
        entry: &ring.place,
        is_level_doubted: false,
        findings,
    };
    let total = chain.nodes_hint;
    walk(cache, root, chain, &mut |chain, spot, node| {
        let done = first.nodes.count;
        watch.progress(Progress {
            device: &cache.name,
            phase: Phase::Nodes,
            done,
            total: total.max(done),
        });
        match node {
            Ok(node) => first.node(chain, spot, node),
            Err(trouble) => first.trouble(chain, spot, trouble),
        }
    });
    Some(first.nodes)
}

fn check_root(cache: &Cache<'_>, ring: &Ring, root: &Spot, findings: &mut Findings) -> Option<()> {
    let (place, at) = (&ring.place, root.named_at);
    if let Err(error) = cache.geometry.key_rules().check_node(&root.key) {
        findings.error("F36", place, at, format_args!("root {error}"));
        return None;
    }
    if root.key.pos() != Pos::MAX {
        let text = format!("the root's key {} is not at the highest position", root.key);
        findings.error("F30", place, at, text);
    }
    if root.level > LEVEL_MAX {
        let text = format!("level {} of the root, at most {LEVEL_MAX}", root.level);
        findings.error("F30", place, place.start + 168, text);
        return None;
    }
    Some(())
}

/// How much is summed in all to try nodes with a wrong checksum under other generations.
const TRIAL_BYTES_MAX: u64 = 1 << 30;

struct First<'a, 'b> {
    cache: &'a Cache<'b>,
    nodes: Nodes,
    trial_bytes_left: u64,
    /// The journal entry that names the root.
    entry: &'a Place,
    is_level_doubted: bool,
    findings: &'a mut Findings,
}

impl First<'_, '_> {
    fn node(&mut self, chain: &mut Chain, spot: &Spot, node: &Node) {
        self.nodes.count += 1;
        self.nodes.all.push((spot.ptr(), spot.named_at));
        self.judge(chain, spot, node);
        self.behind(spot, node);
    }

    /// Behind the last set there is nothing of this node. A set whose checksum is right but for the seq was one of its sets;
    /// one that is valid under another seq and the very pointer to this node most likely is, too, since a bucket gets a new
    /// generation before it holds another node.
    fn behind(&mut self, spot: &Spot, node: &Node) {
        let place = spot.place(self.cache);
        let block = self.cache.geometry.block_bytes();
        let offset = place.start + (node.blocks_used * block) as u64;
        let Some((mut set, magic)) = self.leftover(&place, offset) else {
            return;
        };
        let word = |set: &[u8], at: usize| {
            set.get(at..)
                .and_then(|rest| rest.first_chunk())
                .map(|word| u64::from_le_bytes(*word))
        };
        if word(&set, 8) != Some(magic) {
            return;
        }
        let seed = match set.get(24) {
            Some(0) => crc::SEED,
            _ => spot.ptr().0,
        };
        let is_valid =
            |set: &[u8]| word(set, 0) == set.get(8..).map(|body| crc::checksum(seed, body));
        if is_valid(&set) && seed != crc::SEED {
            let text = "behind the last set stands a valid one of another seq, for this very node";
            self.findings.warn("F46", &place, offset + 16, text);
        }
        if let Some(seq) = set.get_mut(16..24) {
            seq.copy_from_slice(&node.seq.to_le_bytes());
        }
        if is_valid(&set) {
            let text = "behind the last set stands one of which all is right but the seq: what it says is lost";
            self.findings.error("F46", &place, offset + 16, text);
        }
    }

    /// What stands at `offset` as a set as long as it says, and the magic it should have.
    fn leftover(&self, place: &Place, offset: u64) -> Option<(Vec<u8>, u64)> {
        let rest = (place.start + place.length).checked_sub(offset)?;
        let first = read(self.cache.source, place.start, HEADER_BYTES).ok()?;
        let magic = u64::from_le_bytes(*first.get(8..)?.first_chunk()?);
        if rest < HEADER_BYTES as u64 {
            return None;
        }
        let head = read(self.cache.source, offset, HEADER_BYTES).ok()?;
        let words = u32::from_le_bytes(*head.get(28..)?.first_chunk()?);
        let length = node::bset_bytes(words as usize);
        if words == 0 || length as u64 > rest {
            return None;
        }
        Some((read(self.cache.source, offset, length).ok()?, magic))
    }

    /// A leaf has no key at the highest position, and an interior node always has one at its own.
    fn level(&mut self, spot: &Spot, node: &Node) {
        let rules = self.cache.geometry.key_rules();
        let keys = || node.sets.iter().flat_map(|set| &set.keys);
        let is_wrong = match spot.level {
            0 => keys().any(|key| key.pos() == Pos::MAX && key.size() > 0),
            _ => {
                let has_end = keys().any(|key| key.pos() == spot.key.pos());
                let is_leafs = |key: &Key| rules.check_node(key).is_err();
                !has_end && (keys().next().is_none() || keys().any(is_leafs))
            }
        };
        if is_wrong && !self.is_level_doubted {
            self.is_level_doubted = true;
            let looks = if spot.level == 0 {
                "an interior node"
            } else {
                "a leaf"
            };
            let bucket = spot.ptr().bucket(self.cache.geometry.bucket_sectors);
            let text = format!(
                "by the level of the root the node in bucket {bucket} has level {}, but it looks like {looks}",
                spot.level
            );
            self.findings
                .error("F30", self.entry, self.entry.start + 168, text);
        }
    }

    /// Keys and their order; raises.
    fn judge(&mut self, chain: &mut Chain, spot: &Spot, node: &Node) {
        self.level(spot, node);
        let place = spot.place(self.cache);
        let block = self.cache.geometry.block_bytes();
        for set in &node.sets {
            let (rule, verdict) = match spot.level {
                0 => ("F32", order::check_leaf_set(&set.keys)),
                _ => ("F31", order::check_interior_set(&set.keys)),
            };
            if let Err(error) = verdict {
                let offset = place.start + set_at(set, block) + error.offset;
                self.say(rule, &place, offset, &error);
            }
        }
        for (_, key, at) in keys_of(self.cache, spot, node) {
            self.nodes.keys += 1;
            let is_good = match spot.level {
                0 => self.leaf_key(spot, &place, key, at),
                _ => self.interior_key(spot, &place, key, at),
            };
            if key.csum_type() != 0 {
                let text = format!("key {key}: CSUM not 0");
                self.findings.warn("F35", &place, at, text);
            }
            if is_good && (spot.level > 0 || key.size() > 0) {
                chain.gens.raise(key);
            }
        }
        if spot.level > 0 {
            self.children(chain, spot, &place, node);
        }
    }

    fn say(&mut self, id: &'static str, place: &Place, offset: u64, error: &FormatError) {
        let FormatError {
            structure,
            found,
            expected,
            ..
        } = error;
        let text = format!("{structure}: found {found}, expected {expected}");
        self.findings.error(id, place, offset, text);
    }

    fn leaf_key(&mut self, spot: &Spot, place: &Place, key: &Key, at: u64) -> bool {
        if key.size() == 0 {
            return true;
        }
        if let Err(error) = order::check_leaf_range(key, spot.low, spot.key.pos()) {
            self.say("F33", place, at, &error);
        }
        if key.ptr_count() > 1 {
            let text = format!("key {key}: {} pointers", key.ptr_count());
            self.findings.warn("F34", place, at, text);
        }
        match self.cache.geometry.key_rules().check_extent(key) {
            Ok(()) => true,
            Err(error) => {
                self.say("F34", place, at, &error);
                false
            }
        }
    }

    fn interior_key(&mut self, spot: &Spot, place: &Place, key: &Key, at: u64) -> bool {
        if let Err(error) = order::check_interior_range(key, spot.low, spot.key.pos()) {
            self.say("F33", place, at, &error);
        }
        match self.cache.geometry.key_rules().check_node(key) {
            Ok(()) => true,
            Err(error) => {
                self.say("F36", place, at, &error);
                // A child that cannot be reached.
                self.nodes.is_whole = false;
                false
            }
        }
    }

    /// F37 to F39.
    fn children(&mut self, chain: &Chain, spot: &Spot, place: &Place, node: &Node) {
        let children = children(self.cache, spot, node, chain);
        for pair in children.windows(2) {
            if pair[0].key.pos() == pair[1].key.pos() {
                let text = format!("two live children at {}", pair[1].key.pos());
                self.findings.error("F37", place, pair[1].named_at, text);
            }
        }
        match children.last() {
            None => self
                .findings
                .error("F38", place, place.start, "no live child"),
            Some(last) if last.key.pos() != spot.key.pos() => {
                let (ours, end) = (last.key.pos(), spot.key.pos());
                let text = format!("the last live child ends at {ours}, the node at {end}");
                self.findings.error("F39", place, last.named_at, text);
            }
            Some(_) => {}
        }
    }

    fn trouble(&mut self, chain: &mut Chain, spot: &Spot, trouble: Trouble) {
        self.nodes.is_whole = false;
        let place = spot.place(self.cache);
        match trouble {
            Trouble::Io(error) => {
                let (device, structure) = (&place.device, &place.structure);
                let text = format!("{device}: {structure} at byte {}: {error}", place.start);
                self.findings.unchecked(text);
            }
            Trouble::Small => {
                self.findings
                    .error("F36", &place, spot.named_at, "a node smaller than a block");
            }
            Trouble::Twice => {
                let text = "the bucket is that of another node of the tree as well";
                self.findings.error("F40", &place, place.start, text);
            }
            Trouble::Content(error) => {
                self.content(spot, &place, &error);
                // What stands in front of the bad set counts for the generations.
                if !error.intact.sets.is_empty() {
                    let rules = self.cache.geometry.key_rules();
                    for (_, key, _) in keys_of(self.cache, spot, &error.intact) {
                        let is_good = match spot.level {
                            0 => key.size() > 0 && rules.check_extent(key).is_ok(),
                            _ => rules.check_node(key).is_ok(),
                        };
                        if is_good {
                            chain.gens.raise(key);
                        }
                    }
                }
            }
        }
    }

    fn content(&mut self, spot: &Spot, place: &Place, failed: &NodeError) {
        let FormatError {
            structure,
            offset,
            found,
            expected,
        } = &failed.error;
        let at = place.start.saturating_add(*offset);
        let in_set = offset
            .saturating_sub((failed.intact.blocks_used * self.cache.geometry.block_bytes()) as u64);
        let is_tiling = *structure == "bset keys" && in_set >= HEADER_BYTES as u64;
        let id = if is_tiling { "F45" } else { "F46" };
        let mut text = format!(
            "set {}: {structure}: found {found}, expected {expected}",
            failed.set
        );
        if failed.is_last {
            text.push_str(&format!(
                "; the last set of the node, cut off while it was written or damaged since: what it says of {} to {} is in doubt",
                spot.low,
                spot.key.pos()
            ));
        }
        if failed.set == 0
            && *structure == "bset csum"
            && let Some(written) = self.generation_written(spot)
        {
            let text = format!(
                "the pointer to the node in bucket {} has generation {}, the node was written under {written}",
                spot.ptr().bucket(self.cache.geometry.bucket_sectors),
                spot.ptr().r#gen()
            );
            let holder = self
                .cache
                .place("pointer to a btree node", spot.named_at, 24);
            self.findings.error("F46", &holder, spot.named_at, text);
        }
        if failed.set == 0 && matches!(*structure, "bset magic" | "bset seq") {
            let bucket = spot.ptr().bucket(self.cache.geometry.bucket_sectors);
            let text = format!("it leads to bucket {bucket}, where no node is");
            let holder = self
                .cache
                .place("pointer to a btree node", spot.named_at, 24);
            self.findings.error("F46", &holder, spot.named_at, text);
        }
        self.findings.error(id, place, at, text);
    }

    /// The generation under which the checksums of a node are right: they start from the pointer to it.
    fn generation_written(&mut self, spot: &Spot) -> Option<Gen> {
        let bytes = read_bytes(self.cache, spot).ok()?;
        let sum = (bytes.len() as u64).checked_mul(256)?;
        self.trial_bytes_left = self.trial_bytes_left.checked_sub(sum)?;
        let geometry = &self.cache.geometry;
        (0..=255).map(Gen).find(|&r#gen| {
            let ptr = spot.ptr().with_gen(r#gen);
            match node::parse_node(&bytes, geometry.block_bytes(), ptr, geometry.set_magic) {
                Ok(_) => true,
                Err(error) => error.set > 0,
            }
        })
    }
}
