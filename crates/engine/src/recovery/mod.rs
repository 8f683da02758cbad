//! Reading a cache device at open, and deciding whether it may be opened. Nothing is written here.
//!
//! The order is that of `docs/format.md` 8.2: journal, gen table, root, UUID table, the whole tree, the replay range.
//! There is no difference between a clean and an unclean start, but for one: after a clean stop of Brigade itself, which
//! says so in its last entry, leaves are not read (`How::may_count_later`). Only when every pointer has raised its bucket's gen
//! is anything called stale; then the replayed keys are laid over the tree (8.5) and the result is the index the set
//! works with. Deviations are judged by the table in 11: they are reported, bar writing, or stop the opening.
//!
//! - `journal` and `search`: the ring, the replay range, what lies behind the newest entry.
//! - `prios`, `marks`: gens, and what is known of each bucket.
//! - `tree`: nodes, checked and flattened.
//! - `replay`: which key wins.
//! - `uuids`: the table of devices and volumes.
//! - `outside`: what may not be dirty.
//! - `passing`: leaves that are too many to be kept.
//!
//! Memory: one read window, the extents (or, where these are too many, a few bytes per leaf), a few bytes per bucket and the keys of
//! the replay range.

mod findings;
mod journal;
mod marks;
mod outside;
mod passing;
mod prios;
mod proof;
mod reads;
mod replay;
mod search;
mod tree;
mod uuids;

#[cfg(test)]
mod golden_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod testing_disk;
#[cfg(test)]
mod tests;

pub use crate::journal::survivor::{SurvivorEntry, SurvivorLog};
pub use findings::{Finding, LoadError, Severity};
pub use outside::is_dirty_outside;
pub use passing::{Held, HeldInode};

use crate::extents::{Extent, ExtentMap};
use crate::marks::{Mark, hit};
use crate::mutations::{self, Mutation};
use brigade_env::{Env, SECTOR_BYTES};
use brigade_format::jset;
use brigade_format::superblock::{CacheGeometry, Superblock};
use brigade_format::uuid_table::UuidEntry;
use brigade_format::{Gen, Key, Pos};
use findings::Findings;
use marks::{Marks, Owner};
use replay::{Outcome, Replay};
use std::collections::BTreeSet;
use tree::Leaves;
use uuids::Uuids;

/// How the set is to be opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// Nothing will be written: findings that only bar writing are tolerated.
    pub read_only: bool,
    /// After a clean stop of Brigade leaves need not be read: they are counted later, while the set works.
    pub may_count_later: bool,
    /// Leaves that would take more memory are read, but not kept.
    pub memory_bytes: Option<u64>,
}

/// The newest journal entry on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newest {
    /// Its seq.
    pub seq: u64,
    /// Oldest entry to be replayed.
    pub last_seq: u64,
    /// 0 means that the UUID table is in the old format.
    pub version: u32,
    /// Where the UUID table is.
    pub uuid_bucket: Key,
    /// The root of the tree.
    pub root: Key,
    /// Its level; 0 means that the root is a leaf.
    pub root_level: u16,
    /// What Brigade says in it, if it wrote it, as far as its mark tells.
    pub mark: Option<jset::Mark>,
    /// First bucket of the gen table.
    pub prio_head: u64,
    /// Where the entry stands on the device.
    pub byte_offset: u64,
}

/// Where the journal ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Ring index of the bucket that holds the newest entry.
    pub newest_index: usize,
    /// Sector within that bucket right behind the newest entry.
    pub newest_end_sector: u64,
    /// Per ring index the highest valid seq found, 0 if none.
    pub bucket_max_seq: Vec<u64>,
}

/// A live btree node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedNode {
    /// 0 for leaves.
    pub level: u16,
    /// The key that points at it.
    pub key: Key,
    /// Index of its parent in the list; the root has none.
    pub parent: Option<usize>,
    /// The seq all its sets carry.
    pub seq: u64,
    /// Blocks its sets fill.
    pub blocks_used: u32,
    /// Where its left neighbour ends; it holds positions behind this one.
    pub low: Pos,
    /// One of its sets was written by a very old kernel (bset version 0).
    pub has_old_bset_version: bool,
}

/// What opening cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadStats {
    /// Bytes of metadata read.
    pub bytes_read: u64,
    /// Keys in all sets of all live nodes.
    pub keys: u64,
    /// Live nodes.
    pub nodes: u64,
    /// Levels of the tree.
    pub depth: u16,
    /// Valid journal entries found, previous laps included.
    pub journal_entries: u64,
    /// Entries of the replay range.
    pub replayed_entries: u64,
    /// Keys in them.
    pub replayed_keys: u64,
}

/// Everything a set needs to start working.
pub struct Loaded {
    /// The newest journal entry.
    pub newest: Newest,
    /// Where the journal ends.
    pub ring: Ring,
    /// Per bucket the gen, raised by every pointer.
    pub gens: Vec<Gen>,
    /// Per bucket the gen the table on disk says.
    pub chain_gens: Vec<Gen>,
    /// Per bucket the hotness hint.
    pub prios: Vec<u16>,
    /// Per bucket the oldest gen of any pointer to it, stale ones and those of freeing keys too; its own gen if there is none.
    pub oldest_gens: Vec<Gen>,
    /// Buckets of the current gen table, head first.
    pub prio_buckets: Vec<u64>,
    /// Its seq.
    pub prio_seq: u64,
    /// Live nodes, root first, then level by level in key order.
    pub nodes: Vec<LoadedNode>,
    /// Leaves were read. If not, nothing is known of what they hold, and all they need is that somebody counts it.
    pub is_counted: bool,
    /// What is cached where, after replay: live extents only, none crossing a leaf boundary. Empty if leaves were not kept.
    pub index: ExtentMap,
    /// Leaves were counted but not kept: what they hold after replay, in sums. The leaves on disk do not have the overlay.
    pub held: Option<Held>,
    /// What must be added to the leaves so that the tree alone says what the index says: the decisions for exactly the
    /// sectors that replayed keys cover, holes included, sorted, without overlap, cut at leaf boundaries.
    pub overlay: Vec<Extent>,
    /// Dirty extents of the tree kept against a replayed key: to be journalled again before anything else, if the ring has a place.
    pub rejournal: Vec<Extent>,
    /// Clean extents that were made dirty since, as the backing device has something else there.
    pub settled: Vec<Extent>,
    /// Those of `rejournal` that nothing proves newer than the journal's key (F47). They bar writing; a kernel erases them, and
    /// a read-only opening serves what a kernel would.
    pub doubtful: Vec<Extent>,
    /// Per bucket: a pointer of its current gen stands in the tree or the replay range, as far as that was read.
    pub referenced: Vec<bool>,
    /// Inodes with any key in the tree or the replay range: slots that must not be given out.
    pub inodes_seen: BTreeSet<u32>,
    /// All slots of the UUID table.
    pub uuids: Vec<UuidEntry>,
    /// The table on disk is in the old format.
    pub uuids_are_old_format: bool,
    /// What was tolerated.
    pub findings: Vec<Finding>,
    /// What it cost.
    pub stats: LoadStats,
}

/// Reads the whole set and decides whether it may be opened.
pub async fn load<E: Env>(
    env: &E,
    device: &E::Device,
    superblock: Superblock,
    geometry: CacheGeometry,
    survivors: &[SurvivorEntry],
    how: How,
) -> Result<Loaded, LoadError> {
    let geometry = &geometry;
    let mut findings = Findings::new(how.read_only);
    let mut inodes = BTreeSet::new();
    let journal = journal::read(
        env,
        device,
        geometry,
        superblock.discard(),
        survivors,
        &mut findings,
    )
    .await?;
    let newest = journal.newest;
    let is_replayed = journal.replay.iter().any(|entry| !entry.keys.is_empty());
    let counts_later = how.may_count_later
        && newest.mark == Some(jset::Mark::Stopped)
        && newest.seq == newest.last_seq
        && journal.later_prio_head.is_none()
        && !is_replayed
        && findings.is_empty();
    let chain = prios::read(env, device, geometry, newest.prio_head, &mut findings).await?;
    let mut marks = Marks::new(geometry, chain.entries);
    claim_metadata(&mut marks, &chain.buckets, Owner::Prio)?;
    if let Some(head) = journal.later_prio_head {
        raise_by_later_chain(env, device, geometry, head, &mut marks).await;
    }
    uuids::check_key(geometry, &newest, &mut findings)?;
    if let Some(ptr) = newest.uuid_bucket.ptr(0) {
        let bucket = marks.bucket(ptr) as u64;
        claim_metadata(&mut marks, &[bucket], Owner::Uuids)?;
    }
    let table = uuids::read(env, device, geometry, &newest, &mut findings).await?;
    let mut tree = tree::read(
        env,
        device,
        geometry,
        &newest,
        &mut marks,
        &mut inodes,
        &mut findings,
        match counts_later {
            true => Leaves::Later,
            false => Leaves::Now(how.memory_bytes),
        },
    )
    .await?;
    if counts_later && marks.is_ahead {
        // The table is not what a clean stop leaves.
        let at_once = How {
            may_count_later: false,
            ..how
        };
        let again = load(
            env,
            device,
            superblock,
            geometry.clone(),
            survivors,
            at_once,
        );
        return Box::pin(again).await;
    }
    let replayed = raise_by_journal(&journal, &mut marks, &mut inodes);
    if let Some(ptr) = newest.uuid_bucket.ptr(0) {
        marks.see_node(ptr);
    }
    tree::check_nodes_are_live(&tree, &marks)?;
    let mut reported = BTreeSet::new();
    for extents in [&tree.extents, &replayed] {
        tree::check_gens(extents, &marks, &mut findings)?;
        tree::check_staleness(extents, &marks, &mut reported, &mut findings)?;
    }
    let boundaries: Vec<Pos> = tree.nodes[tree.leaves.clone()]
        .iter()
        .map(|leaf| leaf.key.pos())
        .collect();
    let replay = Replay::new(&replayed, &boundaries, geometry.bucket_sectors);
    let (outcome, held) = if tree.is_passed {
        hit(Mark::OpenPassesLeaves);
        let passed = passing::resolve(
            env,
            device,
            geometry,
            &mut tree,
            &replay,
            &mut marks,
            &table,
            newest.mark.is_none(),
            &mut reported,
            &mut findings,
        );
        let (outcome, held) = passed.await?;
        (outcome, Some(held))
    } else {
        let is_stale = |ptr| marks.is_stale(ptr);
        let outcome = replay.resolve(&tree.extents, replay.newest(), is_stale);
        judge_outcome(&outcome, &table, newest.root_level == 0, &mut findings)?;
        judge_data_owners(&outcome.index, &mut marks, &mut findings)?;
        (outcome, None)
    };
    tree::check_hidden_staleness(&marks, &reported, &mut findings);
    let doubtful = proof::judge_conflicts(
        env,
        device,
        geometry,
        &tree,
        &table,
        &outcome.conflicts,
        &mut findings,
    )
    .await?;
    judge_gens(&marks, &mut findings);
    let uses = match &held {
        Some(held) => held.uses(),
        None => uuids::uses(&outcome.index),
    };
    uuids::judge(&table, &uses, &inodes, &mut findings)?;
    let stats = LoadStats {
        bytes_read: journal.bytes_read + chain.bytes_read + table.bytes_read + tree.bytes_read,
        keys: tree.keys,
        nodes: tree.nodes.len() as u64,
        depth: newest.root_level + 1,
        journal_entries: journal.entries_found,
        replayed_entries: journal.replay.len() as u64,
        replayed_keys: replayed.len() as u64,
    };
    if counts_later {
        hit(Mark::OpenCountsLater);
    }
    Ok(Loaded {
        newest,
        is_counted: !counts_later,
        ring: journal.ring,
        oldest_gens: marks.oldest_gens(),
        gens: marks.gens,
        chain_gens: marks.chain_gens,
        prios: marks.prios,
        prio_buckets: chain.buckets,
        prio_seq: chain.seq,
        nodes: tree.nodes,
        index: outcome.index,
        held,
        overlay: outcome.overlay,
        settled: Vec::new(),
        rejournal: outcome
            .conflicts
            .iter()
            .map(|conflict| conflict.kept)
            .collect(),
        doubtful,
        referenced: marks.referenced,
        inodes_seen: inodes,
        uuids: table.entries,
        uuids_are_old_format: newest.version == 0,
        findings: findings.finish(),
        stats,
    })
}

/// F40 for buckets that are named by number or by the journal.
fn claim_metadata(marks: &mut Marks, buckets: &[u64], owner: Owner) -> Result<(), LoadError> {
    for &bucket in buckets {
        let before = marks.claim(bucket, owner);
        if before != Owner::Nobody {
            let text = format!(
                "{} lies in bucket {bucket}, which belongs to {}",
                owner.name(),
                before.name()
            );
            return Err(LoadError::new(
                "F40",
                "bucket",
                marks.bucket_offset(bucket as usize),
                text,
            ));
        }
    }
    Ok(())
}

/// Behind a damaged entry stands a valid one: buckets that its gen table let be reused must not be served (5.9).
async fn raise_by_later_chain<E: Env>(
    env: &E,
    device: &E::Device,
    geometry: &CacheGeometry,
    head: u64,
    marks: &mut Marks,
) {
    let mut ignored = Findings::new(true);
    match prios::read(env, device, geometry, head, &mut ignored).await {
        Ok(chain) => marks.raise_by_chain(&chain.entries),
        Err(error) => {
            tracing::warn!("the gen table behind the damaged journal entry is not usable: {error}")
        }
    }
}

/// Lets replayed keys raise gens, newest entry first, and gives them as extents, oldest first.
fn raise_by_journal(
    journal: &journal::Journal,
    marks: &mut Marks,
    inodes: &mut BTreeSet<u32>,
) -> Vec<Extent> {
    for key in journal.replay.iter().rev().flat_map(|entry| &entry.keys) {
        inodes.insert(key.inode());
        key.ptrs()
            .filter(|ptr| ptr.is_available())
            .for_each(|ptr| marks.see_data(ptr));
    }
    let mut extents: Vec<Extent> = journal
        .replay
        .iter()
        .flat_map(|entry| &entry.keys)
        .filter_map(Extent::from_key)
        .collect();
    if !extents.is_empty() {
        hit(Mark::ReplayKeys);
    }
    if mutations::is(Mutation::ReplayBackwards) {
        extents.reverse();
    }
    extents
}

fn byte_of(e: &Extent) -> u64 {
    e.ptr
        .map_or(0, |ptr| ptr.sector())
        .saturating_mul(SECTOR_BYTES)
}

/// F43: dirty data that is gone, or looks as if. What belonged to a removed device is nobody's loss.
/// F43 and what 8.5 found. A kernel's gc never writes a leaf that is the root, yet lets buckets go that keys in its memory
/// have let go of: after its crash such a leaf still has dirty keys whose data was written back and whose buckets hold
/// something else (K22). What was overwritten instead has a newer key in the replay range, so nothing is lost.
fn judge_outcome(
    outcome: &Outcome,
    table: &Uuids,
    root_is_leaf: bool,
    findings: &mut Findings,
) -> Result<(), LoadError> {
    for e in &outcome.lost {
        let is_written_back = root_is_leaf && table.is_cached(e.inode);
        let (severity, what) = if table.is_removed(e.inode) || is_written_back {
            (
                Severity::Warning,
                "is in reused buckets: it was written back before",
            )
        } else {
            (Severity::BarsWriting, "was overwritten")
        };
        let text = format_args!(
            "dirty data of inode {}, sectors {}..{}, {what}",
            e.inode, e.start, e.end
        );
        findings.report("F43", severity, "extent", byte_of(e), text)?;
    }
    for e in &outcome.cleaned {
        let text = format_args!(
            "replayed dirty key of inode {}, sectors {}..{}, is stale: cleaned and reused",
            e.inode, e.start, e.end
        );
        findings.warn("F43", "journal key", byte_of(e), text);
    }
    Ok(())
}

/// F40 and F41: data lies in buckets nobody else owns, and no sector twice.
fn judge_data_owners(
    index: &ExtentMap,
    marks: &mut Marks,
    findings: &mut Findings,
) -> Result<(), LoadError> {
    let mut places: Vec<(u64, u32)> = Vec::with_capacity(index.len());
    for e in index.iter() {
        let Some(ptr) = e.ptr else { continue };
        let owner = marks.claim(marks.bucket(ptr) as u64, Owner::Data);
        if owner != Owner::Nobody {
            let text = format!("{e:?} lies in a bucket that belongs to {}", owner.name());
            findings.report("F40", Severity::Fatal, "extent", byte_of(&e), text)?;
        }
        places.push((ptr.sector(), e.sectors().min(Extent::MAX_SECTORS) as u32));
    }
    places.sort_unstable();
    for pair in places.windows(2) {
        if pair[0].0 + u64::from(pair[0].1) > pair[1].0 {
            let text = format!("cache sector {} belongs to two extents", pair[1].0);
            findings.report(
                "F41",
                Severity::Fatal,
                "extent",
                pair[1].0.saturating_mul(SECTOR_BYTES),
                text,
            )?;
        }
    }
    Ok(())
}

/// F44: pointers far ahead of the gen table.
fn judge_gens(marks: &Marks, findings: &mut Findings) {
    const AHEAD_MAX: u8 = 64;
    for (bucket, (now, chain)) in marks.gens.iter().zip(&marks.chain_gens).enumerate() {
        let ahead = now.after(*chain);
        if ahead > AHEAD_MAX {
            let text = format_args!("a pointer is {ahead} gens ahead of the gen table");
            findings.warn(
                "F44",
                format_args!("bucket {bucket}"),
                marks.bucket_offset(bucket),
                text,
            );
        }
    }
}
