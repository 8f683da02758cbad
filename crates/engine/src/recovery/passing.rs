//! Leaves that are read and judged, but not kept: where the index as a whole would take more memory than is allowed.
//!
//! They are read twice. The first time every key is checked and raises gens, as ever. Only then is it final what is stale, so the
//! second time replay decides, leaf by leaf, and of what comes out only sums are kept (and what replay has to tell the leaves). That
//! no sector of the cache belongs to two extents (F41) shows only where a bucket has more than fits; `brigade check` looks closer.

use super::findings::{Findings, LoadError, Severity};
use super::marks::{Marks, Owner};
use super::replay::{Outcome, Replay};
use super::tree::{self, Tree};
use super::uuids::{Use, Uuids};
use super::{Loaded, LoadedNode, byte_of, judge_outcome};
use crate::extents::{Extent, ExtentMap, Merge};
use crate::limits::SETTLE_BYTES_MAX;
use brigade_env::{Env, SECTOR_BYTES};
use brigade_format::superblock::CacheGeometry;
use std::collections::{BTreeMap, BTreeSet};

/// Leaves that are here at once.
const LEAVES_AT_ONCE: usize = 16;
/// Clean extents that are kept to be compared.
const CLEAN_EXTENTS_MAX: usize = 1 << 17;
/// Memory that a byte of a leaf takes in the index, in bytes, while all leaves are read.
const MEMORY_FACTOR: u64 = 4;

/// What leaves hold, in sums.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Per bucket: live sectors, and how many of them are dirty.
    pub buckets: Vec<(u32, u32)>,
    /// Per leaf, in key order: extents, and dirty sectors.
    pub leaves: Vec<(usize, u64)>,
    /// Per inode.
    pub inodes: BTreeMap<u32, HeldInode>,
    /// Clean extents of inodes that have few, if somebody may have to compare them with the backing device; ascending.
    pub clean: Vec<Extent>,
}

/// What there is of one inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeldInode {
    /// Dirty sectors.
    pub dirty_sectors: u64,
    /// Clean sectors.
    pub clean_sectors: u64,
    /// Where the first dirty extent begins and the last one ends.
    pub dirty: Option<(u64, u64)>,
    /// Where the last extent ends.
    pub end: u64,
    /// There was too much clean data to be kept in [`Held::clean`].
    pub is_much_clean: bool,
}

impl Held {
    fn add(&mut self, bucket: usize, e: &Extent) {
        let sectors = e.sectors();
        let inode = self.inodes.entry(e.inode).or_default();
        inode.end = e.end;
        let of_bucket = &mut self.buckets[bucket];
        of_bucket.0 = of_bucket.0.saturating_add(sectors as u32);
        if e.dirty {
            of_bucket.1 = of_bucket.1.saturating_add(sectors as u32);
            inode.add_dirty(e);
        } else {
            inode.clean_sectors += sectors;
        }
    }

    /// Keeps a clean extent to be compared, as long as its inode has few.
    fn keep_clean(&mut self, e: &Extent) {
        let inode = self.inodes.entry(e.inode).or_default();
        if e.dirty || inode.is_much_clean {
            return;
        }
        let is_much = inode.clean_sectors > SETTLE_BYTES_MAX / SECTOR_BYTES;
        if is_much || self.clean.len() >= CLEAN_EXTENTS_MAX {
            inode.is_much_clean = true;
            // What is its own was kept last: any image may have a million inodes, and nobody looks at all that is kept for each.
            while self.clean.last().is_some_and(|kept| kept.inode == e.inode) {
                self.clean.pop();
            }
        } else {
            self.clean.push(*e);
        }
    }

    /// Clean extents of a range, ascending; `None` if there were too many to be kept.
    pub fn clean_of(&self, inode: u32, start: u64, end: u64) -> Option<Vec<Extent>> {
        let of = self.inodes.get(&inode).copied().unwrap_or_default();
        let overlaps = |e: &&Extent| e.inode == inode && e.start < end && e.end > start;
        let kept = self.clean.iter().filter(overlaps);
        (!of.is_much_clean).then(|| kept.map(|e| e.slice(start, end)).collect())
    }

    pub(super) fn uses(&self) -> BTreeMap<u32, Use> {
        let of = |inode: &HeldInode| Use {
            end: inode.end,
            has_dirty: inode.dirty_sectors > 0,
            has_clean: inode.clean_sectors > 0,
        };
        let uses = self.inodes.iter();
        uses.map(|(nr, inode)| (*nr, of(inode))).collect()
    }
}

impl HeldInode {
    fn add_dirty(&mut self, e: &Extent) {
        self.dirty_sectors += e.sectors();
        let (first, last) = self.dirty.unwrap_or((e.start, e.end));
        self.dirty = Some((first.min(e.start), last.max(e.end)));
    }
}

impl Loaded {
    /// Makes clean data dirty, as far as it is counted; a leaf has yet to be told.
    pub fn make_dirty(&mut self, extent: Extent, bucket_sectors: u32) {
        let Some(held) = &mut self.held else {
            self.index
                .insert(extent, Merge::NONE, bucket_sectors, |_| ());
            return;
        };
        let (sectors, is_leaf) = (extent.sectors(), |node: &&LoadedNode| node.level == 0);
        let bucket = extent.ptr.map(|ptr| ptr.bucket(bucket_sectors).0 as usize);
        if let Some((_, dirty)) = bucket.and_then(|bucket| held.buckets.get_mut(bucket)) {
            *dirty = dirty.saturating_add(sectors as u32);
        }
        let inode = held.inodes.entry(extent.inode).or_default();
        inode.clean_sectors = inode.clean_sectors.saturating_sub(sectors);
        inode.add_dirty(&extent);
        let mut leaves = self.nodes.iter().filter(is_leaf);
        let ends_there = |leaf: &LoadedNode| {
            let high = leaf.key.pos();
            (extent.inode, extent.end) <= (high.inode, high.offset)
        };
        if let Some((_, dirty)) = leaves
            .position(ends_there)
            .and_then(|leaf| held.leaves.get_mut(leaf))
        {
            *dirty += sectors;
        }
    }
}

/// Whether leaves of so many bytes are too much for so much memory.
pub(super) fn is_too_much(leaf_bytes: u64, memory_bytes: Option<u64>) -> bool {
    memory_bytes.is_some_and(|most| leaf_bytes.saturating_mul(MEMORY_FACTOR) > most)
}

/// Goes through all leaves once more, after gens are final.
#[allow(clippy::too_many_arguments, reason = "one walk fills all of these")]
pub(super) async fn resolve<E: Env>(
    env: &E,
    device: &E::Device,
    geometry: &CacheGeometry,
    tree: &mut Tree,
    replay: &Replay<'_>,
    marks: &mut Marks,
    table: &Uuids,
    keeps_clean: bool,
    reported: &mut BTreeSet<usize>,
    findings: &mut Findings,
) -> Result<(Outcome, Held), LoadError> {
    let mut held = Held {
        buckets: vec![(0, 0); marks.gens.len()],
        ..Held::default()
    };
    let mut all = Outcome::default();
    let mut newest = replay.newest();
    let root_is_leaf = tree.leaves.start == 0;
    let leaves = tree.leaves.clone();
    for first in leaves.clone().step_by(LEAVES_AT_ONCE) {
        let some = first..leaves.end.min(first + LEAVES_AT_ONCE);
        let extents = tree::read_again(env, device, geometry, tree, marks, some.clone()).await?;
        tree::check_gens(&extents, marks, findings)?;
        tree::check_staleness(&extents, marks, reported, findings)?;
        let mut rest = &extents[..];
        for leaf in some {
            let high = tree.nodes[leaf].key.pos();
            let is_mine = |e: &Extent| (e.inode, e.end) <= (high.inode, high.offset);
            let (mine, behind) = rest.split_at(rest.partition_point(is_mine));
            let (decided, later) = newest.split_at(newest.partition_point(is_mine));
            (rest, newest) = (behind, later);
            let outcome = replay.resolve(mine, decided, |ptr| marks.is_stale(ptr));
            judge_outcome(&outcome, table, root_is_leaf, findings)?;
            hold(&outcome.index, marks, &mut held, keeps_clean, findings)?;
            all.overlay.extend(outcome.overlay);
            all.conflicts.extend(outcome.conflicts);
        }
    }
    judge_sums(&held, geometry, marks, findings)?;
    Ok((all, held))
}

/// F40, and the sums of one leaf.
fn hold(
    index: &ExtentMap,
    marks: &mut Marks,
    held: &mut Held,
    keeps_clean: bool,
    findings: &mut Findings,
) -> Result<(), LoadError> {
    let mut dirty = 0;
    for e in index.iter() {
        let Some(ptr) = e.ptr else { continue };
        let bucket = marks.bucket(ptr);
        let owner = marks.claim(bucket as u64, Owner::Data);
        if owner != Owner::Nobody {
            let text = format!("{e:?} lies in a bucket that belongs to {}", owner.name());
            findings.report("F40", Severity::Fatal, "extent", byte_of(&e), text)?;
        }
        held.add(bucket, &e);
        if keeps_clean {
            held.keep_clean(&e);
        }
        dirty += if e.dirty { e.sectors() } else { 0 };
    }
    held.leaves.push((index.len(), dirty));
    Ok(())
}

/// F41 as far as sums show it.
fn judge_sums(
    held: &Held,
    geometry: &CacheGeometry,
    marks: &Marks,
    findings: &mut Findings,
) -> Result<(), LoadError> {
    for (bucket, (live, _)) in held.buckets.iter().enumerate() {
        if *live > geometry.bucket_sectors {
            let text = format!(
                "{live} sectors of data in a bucket of {}",
                geometry.bucket_sectors
            );
            let offset = marks.bucket_offset(bucket);
            findings.report("F41", Severity::Fatal, "bucket", offset, text)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use brigade_format::{Gen, Ptr};

    fn extent(inode: u32, number: u64, sectors: u64) -> Extent {
        Extent {
            inode,
            start: number * 4096,
            end: number * 4096 + sectors,
            ptr: Some(Ptr::new(64, Gen(0))),
            dirty: false,
        }
    }

    #[test]
    fn of_an_inode_with_too_much_clean_data_nothing_is_kept_and_of_others_all() {
        let mut held = Held {
            buckets: vec![(0, 0)],
            ..Held::default()
        };
        let large = SETTLE_BYTES_MAX / SECTOR_BYTES / 4096 + 2;
        let mut take = |e: Extent| {
            held.add(0, &e);
            held.keep_clean(&e);
        };
        take(extent(1, 0, 8));
        (0..large).for_each(|number| take(extent(2, number, 4096)));
        take(extent(3, 0, 8));
        // As many as may be kept, and then each of very many inodes has one more.
        (0..CLEAN_EXTENTS_MAX as u64).for_each(|number| take(extent(4, number, 1)));
        (5..500_000).for_each(|inode| take(extent(inode, 0, 1)));
        let kept = |inode| held.clean_of(inode, 2, u64::MAX).map(|of| of.len());
        assert_eq!((kept(1), kept(2), kept(3)), (Some(1), None, Some(1)));
        assert_eq!(
            held.clean_of(1, 2, 5),
            Some(vec![extent(1, 0, 8).slice(2, 5)])
        );
        assert_eq!((kept(4), kept(1_000_000)), (None, Some(0)));
        assert!(held.clean.len() <= CLEAN_EXTENTS_MAX);
    }
}
