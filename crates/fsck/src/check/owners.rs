//! Who has which bucket, and which sectors of the cache are some extent's (F40, F41).

use super::report::Buckets;
use brigade_format::BucketNr;

/// What a bucket is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Nobody,
    Clean,
    Dirty,
    Node,
    Uuids,
    Prios,
    Journal,
    Superblock,
}

impl Class {
    /// In words, for "the bucket is that of ...".
    pub fn name(self) -> &'static str {
        match self {
            Class::Nobody => "nobody",
            Class::Clean | Class::Dirty => "data",
            Class::Node => "a btree node",
            Class::Uuids => "the uuid table",
            Class::Prios => "the prio chain",
            Class::Journal => "the journal",
            Class::Superblock => "the superblock",
        }
    }

    fn is_data(self) -> bool {
        matches!(self, Class::Clean | Class::Dirty)
    }
}

/// One class for each bucket.
pub(super) struct Owners(Vec<Class>);

impl Owners {
    pub fn new(count: usize) -> Owners {
        Owners(vec![Class::Nobody; count])
    }

    /// Gives the bucket to `class`, or says whose it is already.
    pub fn claim(&mut self, bucket: BucketNr, class: Class) -> Result<(), Class> {
        let slot = usize::try_from(bucket.0)
            .ok()
            .and_then(|bucket| self.0.get_mut(bucket));
        let Some(slot) = slot else {
            return Ok(());
        };
        match *slot {
            Class::Nobody => *slot = class,
            there if there.is_data() && class.is_data() => {
                if class == Class::Dirty {
                    *slot = class;
                }
            }
            there => return Err(there),
        }
        Ok(())
    }

    pub fn count(&self) -> Buckets {
        let of = |class| self.0.iter().filter(|owner| **owner == class).count() as u64;
        Buckets {
            superblock: of(Class::Superblock),
            journal: of(Class::Journal),
            prios: of(Class::Prios),
            uuids: of(Class::Uuids),
            nodes: of(Class::Node),
            dirty: of(Class::Dirty),
            clean: of(Class::Clean),
            unreferenced: of(Class::Nobody),
        }
    }
}

const CHUNK_SECTORS: u64 = 1 << 18;
const WORDS: usize = (CHUNK_SECTORS / 64) as usize;

/// A bit for each sector of a window of the device; made where it is needed.
pub(super) struct SectorMap {
    start: u64,
    chunks: Vec<Option<Box<[u64]>>>,
}

/// Windows that cover `sectors`, each with a map of at most `memory_max` bytes.
pub(super) fn windows(sectors: u64, memory_max: u64) -> impl Iterator<Item = SectorMap> {
    let chunks_max = (memory_max / (CHUNK_SECTORS / 8)).max(1);
    let chunks = sectors.div_ceil(CHUNK_SECTORS).max(1);
    (0..chunks.div_ceil(chunks_max)).map(move |nr| {
        let first = nr * chunks_max;
        let count = chunks_max.min(chunks - first);
        SectorMap {
            start: first * CHUNK_SECTORS,
            chunks: (0..count).map(|_| None).collect(),
        }
    })
}

impl SectorMap {
    /// Marks `start..end` as far as it lies in the window; gives the first sector that was marked before.
    pub fn mark(&mut self, start: u64, end: u64) -> Option<u64> {
        let window_end = self.start + self.chunks.len() as u64 * CHUNK_SECTORS;
        let (mut at, end) = (start.max(self.start), end.min(window_end));
        let mut twice = None;
        while at < end {
            let inside = at - self.start;
            let (chunk, bit) = (inside / CHUNK_SECTORS, inside % CHUNK_SECTORS);
            let words = self.chunks[chunk as usize]
                .get_or_insert_with(|| vec![0; WORDS].into_boxed_slice());
            let count = (64 - bit % 64).min(end - at);
            let mask = (u64::MAX >> (64 - count)) << (bit % 64);
            let word = &mut words[(bit / 64) as usize];
            if *word & mask != 0 && twice.is_none() {
                let first = u64::from((*word & mask).trailing_zeros());
                twice = Some(at - bit % 64 + first);
            }
            *word |= mask;
            at += count;
        }
        twice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_marked_twice_is_named_in_whatever_window_it_lies() {
        let sectors = 3 * CHUNK_SECTORS;
        for memory in [0, CHUNK_SECTORS / 8, CHUNK_SECTORS] {
            let mut twice = Vec::new();
            for mut map in windows(sectors, memory) {
                assert_eq!(map.mark(10, 20), None);
                let end = CHUNK_SECTORS + 100;
                assert_eq!(map.mark(CHUNK_SECTORS - 70, end), None);
                assert_eq!(map.mark(20, 21), None);
                twice.extend(map.mark(end - 1, end + 5));
                twice.extend(map.mark(19, 30));
                twice.extend(map.mark(CHUNK_SECTORS - 1, CHUNK_SECTORS + 1));
                assert_eq!(map.mark(2 * CHUNK_SECTORS, sectors), None);
            }
            twice.sort_unstable();
            twice.dedup();
            let mut expected = vec![19, CHUNK_SECTORS - 1, CHUNK_SECTORS + 99];
            if memory < CHUNK_SECTORS {
                // The last range begins in one window and ends in the next: each names its part.
                expected.insert(2, CHUNK_SECTORS);
            }
            assert_eq!(twice, expected);
        }
    }

    #[test]
    fn a_bucket_of_data_is_dirty_as_soon_as_one_extent_is() {
        let mut owners = Owners::new(3);
        assert_eq!(owners.claim(BucketNr(1), Class::Dirty), Ok(()));
        assert_eq!(owners.claim(BucketNr(1), Class::Clean), Ok(()));
        assert_eq!(owners.claim(BucketNr(2), Class::Node), Ok(()));
        assert_eq!(owners.claim(BucketNr(2), Class::Clean), Err(Class::Node));
        assert_eq!(owners.claim(BucketNr(9), Class::Clean), Ok(()));
        let count = owners.count();
        assert_eq!((count.dirty, count.nodes, count.unreferenced), (1, 1, 1));
    }
}
