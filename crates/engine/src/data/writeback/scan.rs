//! Which dirty data is next: ascending, again and again from the start, in slices.

use super::task::Writeback;
use crate::btree::Index;
use crate::extents::Extent;
use crate::limits::{WRITEBACK_EXTENTS, WRITEBACK_RUN_SECTORS, WRITEBACK_SPAN_SECTORS};
use crate::marks::{self, Mark};
use brigade_env::Env;
use brigade_env::sync::yield_now;
use std::io;

/// Keys looked at in one synchronous step.
const SCAN_KEYS: usize = 512;

/// How much is taken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Extents, about.
    pub extents: usize,
    /// Sectors, about.
    pub sectors: u64,
}

/// Dirty extents in order.
#[derive(Debug, Default)]
pub struct Batch {
    /// None is longer than a run.
    pub extents: Vec<Extent>,
    /// Sectors of all.
    pub sectors: u64,
    /// Where the last run begins.
    run_start: u64,
    /// Of stripes that are dirty as a whole, ahead of their turn.
    pub is_of_stripes: bool,
    /// The end of the volume was reached; the next batch begins at its start.
    pub is_last: bool,
    /// Nobody can tell what is in a leaf; the next batch begins behind it.
    pub error: Option<io::Error>,
}

impl Batch {
    fn push(&mut self, extent: Extent) {
        if !self.continues(&extent) {
            self.run_start = extent.start;
        }
        self.sectors += extent.sectors();
        self.extents.push(extent);
    }

    /// Whether there is enough. What only makes the last run longer is welcome.
    fn is_full(&self, budget: Budget, next: &Extent) -> bool {
        let is_enough = self.extents.len() >= budget.extents || self.sectors >= budget.sectors;
        is_enough && !self.continues(next)
    }

    fn continues(&self, next: &Extent) -> bool {
        let is_near = next.end - self.run_start.min(next.end) <= WRITEBACK_RUN_SECTORS;
        is_near
            && self
                .extents
                .last()
                .is_some_and(|last| last.end == next.start)
    }
}

/// Extents that lie side by side, or no more than `gap` sectors apart, and are written together.
pub fn runs(extents: &[Extent], gap: u64) -> impl Iterator<Item = &[Extent]> {
    let mut left = extents;
    let longest = match gap {
        0 => WRITEBACK_RUN_SECTORS,
        _ => WRITEBACK_SPAN_SECTORS,
    };
    std::iter::from_fn(move || {
        let first = left.first()?;
        let belongs = |pair: &[Extent]| {
            pair[1].start - pair[0].end <= gap && pair[1].end - first.start <= longest
        };
        let more = left.windows(2).take_while(|pair| belongs(pair)).count();
        let (run, rest) = left.split_at(more + 1);
        left = rest;
        Some(run)
    })
}

/// The parts of an extent's range where the index still has exactly it: same location, same dirty flag.
pub fn same(index: &Index, extent: &Extent) -> Vec<Extent> {
    let is_same = |found: &Extent| *found == extent.slice(found.start, found.end);
    index
        .range(extent.inode, extent.start, extent.end)
        .filter(is_same)
        .collect()
}

impl<E: Env> Writeback<E> {
    /// Dirty extents in pieces: stripes that are dirty as a whole, if these are counted, or those from the cursor on.
    pub(super) async fn next_batch(&self, budget: Budget) -> Batch {
        if let Some(batch) = self.next_of_full_stripes(budget).await {
            return batch;
        }
        let (low, high) = self.parts.range;
        let mut batch = Batch::default();
        let from = self.cursor.get().clamp(low, high);
        let next = self.gather(&mut batch, from, high, budget).await;
        self.cursor.set(next.unwrap_or(low));
        batch.is_last = next.is_none();
        if batch.is_last {
            marks::hit(Mark::WritebackWraps);
        }
        batch
    }

    /// Dirty extents of a range, as many as there is room for; gives where to go on, if there is more.
    pub(super) async fn gather(
        &self,
        batch: &mut Batch,
        from: u64,
        to: u64,
        budget: Budget,
    ) -> Option<u64> {
        let mut at = from;
        loop {
            let (found, next) = self.scan(at, to).await;
            let found = match found {
                Ok(found) => found,
                // What was found goes first.
                Err(_) if !batch.extents.is_empty() => return Some(at),
                Err(error) => {
                    batch.error = Some(error);
                    return next;
                }
            };
            for extent in found {
                if batch.is_full(budget, &extent) {
                    return Some(extent.start);
                }
                batch.push(extent);
            }
            at = next?;
            if self.is_closing.get() {
                *batch = Batch::default();
                return Some(from);
            }
            yield_now().await;
        }
    }

    /// Dirty pieces among the next keys, and where to go on, whatever became of them.
    async fn scan(&self, from: u64, to: u64) -> (io::Result<Vec<Extent>>, Option<u64>) {
        let inode = self.parts.inode;
        let next = self.parts.index.borrow().nodes.next_dirty(inode, from, to);
        let Some((start, end)) = next else {
            return (Ok(Vec::new()), None);
        };
        let behind = (end < to).then_some(end);
        let pages = &self.parts.pages;
        if let Err(error) = pages.bring_urgently(inode, start, end).await {
            return (Err(error), behind);
        }
        let index = self.parts.index.borrow();
        let mut found = Vec::new();
        for (seen, extent) in index.range(inode, start, end).enumerate() {
            if seen == SCAN_KEYS || found.len() > WRITEBACK_EXTENTS {
                return (Ok(found), Some(extent.start));
            }
            let mut at = extent.start;
            while extent.dirty && at < extent.end {
                let end = extent.end.min(at + WRITEBACK_RUN_SECTORS);
                found.push(extent.slice(at, end));
                at = end;
            }
        }
        (Ok(found), behind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u64, end: u64) -> Extent {
        Extent {
            inode: 0,
            start,
            end,
            ptr: None,
            dirty: true,
        }
    }

    fn cut(extents: &[(u64, u64)]) -> Vec<Vec<(u64, u64)>> {
        cut_at(extents, 0)
    }

    fn cut_at(extents: &[(u64, u64)], gap: u64) -> Vec<Vec<(u64, u64)>> {
        let extents: Vec<_> = extents.iter().map(|(s, e)| extent(*s, *e)).collect();
        let pairs = |run: &[Extent]| run.iter().map(|it| (it.start, it.end)).collect();
        runs(&extents, gap).map(pairs).collect()
    }

    #[test]
    fn what_lies_side_by_side_is_one_run_up_to_its_longest() {
        assert!(cut(&[]).is_empty());
        assert_eq!(
            cut(&[(0, 8), (8, 16), (17, 20), (20, 24)]),
            [vec![(0, 8), (8, 16)], vec![(17, 20), (20, 24)]]
        );
        let most = WRITEBACK_RUN_SECTORS;
        assert_eq!(
            cut(&[(8, most), (most, most + 8), (most + 8, most + 9)]),
            [
                vec![(8, most), (most, most + 8)],
                vec![(most + 8, most + 9)]
            ]
        );
        assert_eq!(cut(&[(0, 9 * most)]), [vec![(0, 9 * most)]]);
        let most = WRITEBACK_SPAN_SECTORS;
        assert_eq!(
            cut_at(
                &[
                    (0, 8),
                    (12, 16),
                    (21, 24),
                    (24, most),
                    (most, most + 21),
                    (most + 21, most + 22)
                ],
                4
            ),
            [
                vec![(0, 8), (12, 16)],
                vec![(21, 24), (24, most), (most, most + 21)],
                vec![(most + 21, most + 22)]
            ]
        );
    }

    #[test]
    fn a_batch_is_full_but_for_what_makes_its_last_run_longer() {
        let budget = Budget {
            extents: 2,
            sectors: 1 << 20,
        };
        let mut batch = Batch::default();
        assert!(!batch.is_full(budget, &extent(0, 8)));
        batch.push(extent(0, 8));
        batch.push(extent(16, 24));
        assert!(batch.is_full(budget, &extent(25, 32)));
        assert!(!batch.is_full(budget, &extent(24, 32)));
        assert!(batch.is_full(budget, &extent(24, 17 + WRITEBACK_RUN_SECTORS)));
    }
}
