//! Where the next entry goes.

/// Ring buckets kept back for entries that make room: one for a stage already filled, one for a new root or table, one
/// for the entry that lets `last_seq` advance.
const RESERVE: usize = 3;

/// What the ring looked like at open.
#[derive(Clone, Debug)]
pub struct RingStart {
    /// Bucket numbers, in ring order.
    pub buckets: Vec<u64>,
    /// Index of the bucket with the newest entry; the first new one goes to the next.
    pub newest_index: usize,
    /// Highest entry number found in each.
    pub bucket_max_seq: Vec<u64>,
}

/// The ring and the write position in it.
pub(super) struct Ring {
    buckets: Vec<u64>,
    bucket_sectors: u64,
    max_seq: Vec<u64>,
    index: usize,
    /// Next free sector in the current bucket; at `bucket_sectors` the next entry moves on.
    used_sectors: u64,
}

impl Ring {
    pub fn new(start: RingStart, bucket_sectors: u64) -> Self {
        assert_eq!(
            start.buckets.len(),
            start.bucket_max_seq.len(),
            "one number a bucket"
        );
        Ring {
            buckets: start.buckets,
            bucket_sectors,
            max_seq: start.bucket_max_seq,
            index: start.newest_index,
            used_sectors: bucket_sectors,
        }
    }

    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Buckets that clients must leave free (JNL-4).
    pub fn reserve(&self) -> usize {
        RESERVE.min(self.buckets.len() - 1)
    }

    /// Buckets after the current one that hold nothing needed, given `last_seq` of a durable entry.
    pub fn free(&self, durable_last_seq: u64) -> usize {
        (1..self.buckets.len())
            .take_while(|ahead| {
                self.max_seq[(self.index + ahead) % self.buckets.len()] < durable_last_seq
            })
            .count()
    }

    /// Takes space for an entry of `sectors` that itself needs `last_seq` and later ones; `None` if the next bucket is
    /// still needed (JNL-3), or is the last free one and this entry, once durable, would not free another (JNL-6).
    pub fn take(
        &mut self,
        sectors: u64,
        seq: u64,
        last_seq: u64,
        durable_last_seq: u64,
    ) -> Option<u64> {
        assert!(sectors <= self.bucket_sectors, "an entry fits a bucket");
        if self.used_sectors + sectors > self.bucket_sectors {
            let free = self.free(durable_last_seq);
            if free == 0 || (free == 1 && self.free(last_seq) == 1) {
                return None;
            }
            self.index = (self.index + 1) % self.buckets.len();
            self.used_sectors = 0;
        }
        let sector = self.buckets[self.index] * self.bucket_sectors + self.used_sectors;
        self.used_sectors += sectors;
        self.max_seq[self.index] = seq;
        Some(sector)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> Ring {
        let start = RingStart {
            buckets: vec![1, 2, 3, 4],
            newest_index: 0,
            bucket_max_seq: vec![0; 4],
        };
        Ring::new(start, 8)
    }

    #[test]
    fn a_session_starts_in_the_bucket_after_the_newest_entry() {
        assert_eq!(ring().take(1, 1, 1, 1), Some(2 * 8));
    }

    #[test]
    fn a_bucket_with_a_needed_entry_is_not_overwritten() {
        let mut ring = ring();
        for seq in 1..=3 {
            assert!(ring.take(8, seq, 1, 1).is_some());
        }
        assert_eq!(ring.free(1), 1);
        assert!(ring.take(8, 4, 4, 1).is_some(), "index 0 held nothing");
        assert_eq!(ring.free(1), 0);
        assert_eq!(ring.take(8, 5, 5, 1), None, "entry 1 is needed");
        assert_eq!(
            ring.take(8, 5, 5, 2),
            Some(2 * 8),
            "entry 1 is not needed any more"
        );
    }

    #[test]
    fn the_last_free_bucket_is_for_an_entry_that_frees_another() {
        let mut ring = ring();
        for seq in 1..=3 {
            assert!(ring.take(8, seq, 1, 1).is_some());
        }
        assert_eq!(ring.take(8, 4, 1, 1), None, "entry 1 would still be needed");
        assert_eq!(ring.take(8, 4, 2, 1), Some(8));
    }

    #[test]
    fn an_entry_never_crosses_a_bucket() {
        let mut ring = ring();
        assert_eq!(ring.take(5, 1, 1, 1), Some(16));
        assert_eq!(ring.take(5, 2, 1, 1), Some(24));
    }
}
