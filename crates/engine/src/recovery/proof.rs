//! Was the tree's extent or the stale journal key written first (F47)?
//!
//! `docs/format.md` 8.5: if the leaf that holds the kept extent T has the replayed key's location in a set *older*
//! than T's, T is proved newer and keeping it is only worth a warning. This needs the sets one by one, which the
//! walk did not keep; the few leaves concerned are read again.

use super::LoadedNode;
use super::findings::{Findings, LoadError, Severity};
use super::replay::Conflict;
use super::tree::Tree;
use super::uuids::Uuids;
use crate::extents::Extent;
use brigade_env::{Device, Env, SECTOR_BYTES};
use brigade_format::node::{self, Bset};
use brigade_format::superblock::CacheGeometry;

/// Reports every conflict, as a warning where the leaf proves which one is newer. Gives the extents for which nothing does.
pub(super) async fn judge_conflicts<E: Env>(
    env: &E,
    device: &E::Device,
    geometry: &CacheGeometry,
    tree: &Tree,
    table: &Uuids,
    conflicts: &[Conflict],
    findings: &mut Findings,
) -> Result<Vec<Extent>, LoadError> {
    let mut doubtful = Vec::new();
    let mut sets: Option<(usize, Vec<Bset>)> = None;
    for conflict in conflicts {
        let leaf = leaf_of(tree, &conflict.kept);
        if sets.as_ref().is_none_or(|(index, _)| *index != leaf) {
            let read = read_sets(env, device, geometry, &tree.nodes[leaf]);
            sets = Some((leaf, read.await?));
        }
        let is_proved = sets
            .as_ref()
            .is_some_and(|(_, sets)| is_newer(sets, conflict));
        let is_harmless = is_proved || table.is_removed(conflict.kept.inode);
        if !is_harmless {
            doubtful.push(conflict.kept);
        }
        let severity = if is_harmless {
            Severity::Warning
        } else {
            Severity::BarsWriting
        };
        let e = &conflict.kept;
        let text = format!(
            "inode {}, sectors {}..{}: the journal's dirty key is stale, the tree's dirty extent was kept{}",
            e.inode,
            e.start,
            e.end,
            if is_proved {
                " (it is the newer one)"
            } else {
                ""
            }
        );
        findings.report(
            "F47",
            severity,
            "journal key",
            super::byte_of(&conflict.replayed),
            text,
        )?;
    }
    Ok(doubtful)
}

fn leaf_of(tree: &Tree, e: &Extent) -> usize {
    let leaves = &tree.nodes[tree.leaves.clone()];
    let at = leaves.partition_point(|leaf| {
        let high = leaf.key.pos();
        (high.inode, high.offset) <= (e.inode, e.start)
    });
    tree.leaves.start + at.min(leaves.len().saturating_sub(1))
}

/// Reads one leaf again, or for the first time.
pub(super) async fn read_sets<E: Env>(
    env: &E,
    device: &E::Device,
    geometry: &CacheGeometry,
    leaf: &LoadedNode,
) -> Result<Vec<Bset>, LoadError> {
    let key = &leaf.key;
    let Some(ptr) = key.ptr(0) else {
        return Ok(Vec::new());
    };
    let block = geometry.block_sectors.max(1);
    let bytes = (key.size() / block * block) as usize * SECTOR_BYTES as usize;
    let offset = ptr.sector() * SECTOR_BYTES;
    let structure = "btree node (level 0)";
    let buffer = env.buffers().get(bytes);
    let buffer = device
        .read(offset, buffer)
        .await
        .map_err(|e| LoadError::io(structure, offset, &e))?;
    let block_bytes = block as usize * SECTOR_BYTES as usize;
    let node = node::parse_node(&buffer, block_bytes, ptr, geometry.set_magic)
        .map_err(|e| LoadError::format("F46", structure, offset, &e.error))?;
    Ok(node.sets)
}

/// Does the set place all sectors of `e` where `e` says?
fn places(set: &Bset, e: &Extent) -> bool {
    let mut at = e.start;
    for key in &set.keys {
        let Some(own) = Extent::from_key(key) else {
            continue;
        };
        if own.inode != e.inode || own.end <= at || own.start > at {
            continue;
        }
        let end = own.end.min(e.end);
        if own.slice(at, end).ptr != e.slice(at, end).ptr {
            return false;
        }
        at = end;
        if at == e.end {
            return true;
        }
    }
    false
}

fn is_newer(sets: &[Bset], conflict: &Conflict) -> bool {
    let kept = sets.iter().rposition(|set| places(set, &conflict.kept));
    kept.is_some_and(|kept| {
        sets[..kept]
            .iter()
            .any(|set| places(set, &conflict.replayed))
    })
}
