//! Dirty data outside of its device (F64), where leaves were not read.
//!
//! Only leaves that reach out of the device's range are looked into: as a rule the last one of its inode.

use super::{LoadError, Loaded, LoadedNode, proof};
use crate::extents::{Extent, Layers};
use brigade_env::{Env, SECTOR_BYTES};
use brigade_format::{CacheGeometry, Pos};

/// Whether an inode has dirty data outside of these sectors, in a set that is counted later.
pub async fn is_dirty_outside<E: Env>(
    env: &E,
    device: &E::Device,
    geometry: &CacheGeometry,
    loaded: &Loaded,
    inode: u32,
    (low, high): (u64, u64),
) -> Result<bool, LoadError> {
    let reaches_out = |leaf: &&LoadedNode| {
        let meets = |from, to| {
            let pos = |offset| Pos { inode, offset };
            from < to && leaf.low < pos(to) && pos(from) < leaf.key.pos()
        };
        leaf.level == 0 && (meets(0, low) || meets(high, u64::MAX))
    };
    let is_live = |extent: &Extent| {
        extent.ptr.is_some_and(|ptr| {
            let bucket = ptr.bucket(geometry.bucket_sectors).0 as usize;
            let now = loaded.gens.get(bucket);
            now.is_some_and(|now| now.after(ptr.r#gen()) == 0)
        })
    };
    let is_outside = |extent: &Extent| {
        let is_out = extent.start < low || extent.end > high;
        extent.inode == inode && extent.dirty && is_out && is_live(extent)
    };
    for leaf in loaded.nodes.iter().filter(reaches_out) {
        let mut layers = Layers::default();
        for set in proof::read_sets(env, device, geometry, leaf).await? {
            let run: Vec<_> = set.keys.iter().filter_map(Extent::from_key).collect();
            let follows =
                |pair: &[Extent]| (pair[0].inode, pair[0].end) <= (pair[1].inode, pair[1].start);
            if !run.windows(2).all(follows) {
                let offset = leaf.key.ptr(0).map_or(0, |ptr| ptr.sector()) * SECTOR_BYTES;
                let text = "extents that do not follow each other";
                return Err(LoadError::new("F32", "btree node (level 0)", offset, text));
            }
            layers.push(run);
        }
        if layers.finish().iter().any(is_outside) {
            return Ok(true);
        }
    }
    Ok(false)
}
