//! Block status: what is where.

use super::Core;
use brigade_env::{Env, StatusExtent};

/// Keys looked at for one answer; it covers less of the range if there are more.
const KEYS_MAX: usize = 1 << 15;

/// States of a range, adjacent equal ones merged, at most `most` of them.
pub fn status<E: Env>(core: &Core<E>, sector: u64, sectors: u64, most: usize) -> Vec<StatusExtent> {
    let start = sector + core.data_offset();
    let end = start + sectors;
    let is_flash = core.backing.is_none();
    let mut runs: Vec<StatusExtent> = Vec::new();
    let mut push = |sectors: u64, is_hole: bool, cache_state: u32| {
        let length = sectors * 512;
        match runs.last_mut() {
            Some(last) if last.is_hole == is_hole && last.cache_state == cache_state => {
                last.length += length
            }
            _ => runs.push(StatusExtent {
                length,
                is_hole,
                cache_state,
            }),
        }
        runs.len() <= most
    };
    let mut at = start;
    let mut is_whole = true;
    if let Some(cache) = &core.cache {
        let (index, alloc) = (cache.index.borrow(), cache.buckets.get());
        for (seen, extent) in index.map.range(core.inode, start, end).enumerate() {
            if extent.ptr.is_none_or(|ptr| alloc.is_stale(ptr)) {
                continue;
            }
            let before = at >= extent.start || push(extent.start - at, is_flash, 0);
            is_whole = before && push(extent.sectors(), false, if extent.dirty { 2 } else { 1 });
            at = extent.end;
            if !is_whole || seen > KEYS_MAX {
                is_whole = false;
                break;
            }
        }
    }
    if is_whole && at < end {
        push(end - at, is_flash, 0);
    }
    runs.truncate(most);
    runs
}
