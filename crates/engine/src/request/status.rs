//! Block status: what is where.

use super::Core;
use brigade_env::{Env, StatusExtent};
use std::io;
use std::rc::Rc;

/// Keys looked at for one answer; it covers less of the range if there are more.
const KEYS_MAX: usize = 1 << 15;

/// States of a range, adjacent equal ones merged, at most `most` of them.
pub async fn status<E: Env>(
    core: Rc<Core<E>>,
    sector: u64,
    sectors: u64,
    most: usize,
) -> io::Result<Vec<StatusExtent>> {
    let start = sector + core.data_offset();
    let end = start + sectors;
    let mut answer = Answer {
        runs: Vec::new(),
        most,
        is_flash: core.backing.is_none(),
        at: start,
        keys: 0,
    };
    core.check_enabled()?;
    if let Some(cache) = core.attached() {
        let mut at = start;
        while at < end && !answer.is_full() {
            let leaf_end = cache.index.borrow().nodes.leaf_of(core.inode, at).1;
            let to = end.min(leaf_end);
            if let Err(error) = core.bring(cache, at, to).await {
                if !core.backing_has_all(cache) {
                    return Err(error);
                }
                // Nobody knows what of it is cached; it reads the same wherever it comes from.
                at = to;
                continue;
            }
            let (index, alloc) = (cache.index.borrow(), cache.buckets.get());
            let live = index
                .range(core.inode, at, to)
                .filter(|extent| extent.ptr.is_some_and(|ptr| !alloc.is_stale(ptr)));
            for extent in live {
                answer.gap(extent.start);
                let state = if extent.dirty { 2 } else { 1 };
                answer.push(extent.end, false, state);
                if answer.is_full() {
                    break;
                }
            }
            at = to;
        }
    }
    if !answer.is_full() {
        answer.gap(end);
    }
    answer.runs.truncate(most);
    Ok(answer.runs)
}

struct Answer {
    runs: Vec<StatusExtent>,
    most: usize,
    is_flash: bool,
    at: u64,
    keys: usize,
}

impl Answer {
    /// Whether enough was said.
    fn is_full(&self) -> bool {
        self.runs.len() > self.most || self.keys > KEYS_MAX
    }

    /// Nothing is cached up to there.
    fn gap(&mut self, end: u64) {
        if self.at < end {
            self.push(end, self.is_flash, 0);
        }
    }

    fn push(&mut self, end: u64, is_hole: bool, cache_state: u32) {
        let length = (end - self.at) * 512;
        (self.at, self.keys) = (end, self.keys + 1);
        match self.runs.last_mut() {
            Some(last) if last.is_hole == is_hole && last.cache_state == cache_state => {
                last.length += length
            }
            _ => self.runs.push(StatusExtent {
                length,
                is_hole,
                cache_state,
            }),
        }
    }
}
