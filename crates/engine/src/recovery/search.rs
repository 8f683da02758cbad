//! The search for the newest journal entry as a kernel makes it (`docs/format.md` 5.4), on entries already read.
//!
//! It serves one purpose: to tell whether a kernel would come to the same newest entry and the same replay set. The
//! reader itself trusts only the exhaustive scan.

use super::journal::EntryHead;

/// Steps after which the question is given up: only a crafted journal needs more.
const STEPS_MAX: u64 = 20_000_000;

struct Search<'a> {
    buckets: &'a [Vec<EntryHead>],
    visited: Vec<bool>,
    /// Sorted by seq.
    list: Vec<EntryHead>,
    steps: u64,
}

impl Search<'_> {
    /// Takes over one bucket's entries. Says whether it found something; `None` when the steps are used up.
    fn read(&mut self, index: usize) -> Option<bool> {
        self.visited[index] = true;
        let mut found = false;
        for entry in &self.buckets[index] {
            let stale = self
                .list
                .iter()
                .take_while(|kept| kept.seq < entry.last_seq)
                .count();
            self.list.drain(..stale);
            self.steps += 1 + stale as u64;
            found |= self.place(*entry);
            if self.steps > STEPS_MAX {
                return None;
            }
        }
        Some(found)
    }

    fn place(&mut self, entry: EntryHead) -> bool {
        let mut at = self.list.len();
        while at > 0 {
            let kept = self.list[at - 1];
            self.steps += 1;
            if kept.seq == entry.seq || entry.seq < kept.last_seq {
                return false;
            }
            if entry.seq > kept.seq {
                break;
            }
            at -= 1;
        }
        self.list.insert(at, entry);
        true
    }

    fn last_seq(&self) -> u64 {
        self.list.last().map_or(0, |entry| entry.seq)
    }

    /// A bucket with entries: scattered probes first, then in order.
    fn find_any(&mut self) -> Option<Option<usize>> {
        let count = self.buckets.len();
        for i in 0..count {
            let index = ((i as u64).wrapping_mul(2_654_435_769) & 0xffff_ffff) as usize % count;
            if self.visited[index] {
                break;
            }
            if self.read(index)? {
                return Some(Some(index));
            }
        }
        for index in 0..count {
            if !self.visited[index] && self.read(index)? {
                return Some(Some(index));
            }
        }
        Some(None)
    }

    /// From a bucket with entries to the one where they end.
    fn bisect(&mut self, found: usize) -> Option<usize> {
        let mut low = found;
        let mut high = (found + 1..self.buckets.len())
            .find(|i| self.visited[*i])
            .unwrap_or(self.buckets.len());
        let mut middle = low;
        while low + 1 < high {
            let before = self.last_seq();
            middle = (low + high) / 2;
            self.read(middle)?;
            if self.last_seq() != before {
                low = middle
            } else {
                high = middle
            }
        }
        Some(middle)
    }

    /// Downwards around the ring until a bucket adds nothing.
    fn collect(&mut self, from: usize) -> Option<()> {
        let count = self.buckets.len();
        let mut index = (from + count - 1) % count;
        while index != from {
            if !self.visited[index] && !self.read(index)? {
                break;
            }
            index = (index + count - 1) % count;
        }
        Some(())
    }
}

/// The seqs a kernel would replay, ascending; `None` if finding out takes too long.
pub(super) fn kernel_search(buckets: &[Vec<EntryHead>]) -> Option<Vec<u64>> {
    let mut search = Search {
        buckets,
        visited: vec![false; buckets.len()],
        list: Vec::new(),
        steps: 0,
    };
    if let Some(found) = search.find_any()? {
        let end = search.bisect(found)?;
        search.collect(end)?;
    }
    Some(search.list.iter().map(|entry| entry.seq).collect())
}
