//! All entries of the journal, found by reading every bucket, and by a kernel's search for comparison
//! (docs/format.md 5.3, 5.4, 5.9).

use crate::source::{ReadAt, read};
use brigade_format::jset::{self, Probe};
use brigade_format::superblock::CacheGeometry;
use brigade_format::{JsetHeader, Key};
use std::collections::{BTreeMap, BTreeSet};

/// More than any journal a kernel makes; what lies beyond is reported and not kept.
const ENTRIES_MAX: usize = 1 << 21;
/// How much is read at a time; at least two entries of full length.
const WINDOW_BYTES: usize = 1 << 20;

/// Where an entry was found and what it claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Index in the ring.
    pub index: usize,
    /// Byte on the device.
    pub offset: u64,
    pub seq: u64,
    pub last_seq: u64,
    pub version: u32,
    /// Bytes it takes in its bucket.
    pub bytes: u64,
    /// Stands for the content: equal in entries that are equal.
    pub csum: u64,
    /// Behind a block of its bucket that is no valid entry: nobody uses it.
    pub is_behind_bad: bool,
}

/// A block with an entry's magic and nothing valid behind it.
#[derive(Clone, Debug)]
pub(crate) struct Suspect {
    pub index: usize,
    pub offset: u64,
    pub claimed_seq: u64,
    pub error: String,
}

/// What reading the journal gave.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub found: Vec<Found>,
    pub suspects: Vec<Suspect>,
    pub errors: Vec<String>,
}

/// What a search came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub newest_seq: u64,
    pub replay: BTreeSet<u64>,
}

impl Scan {
    /// Reads every journal bucket to its end, block by block where it must.
    pub fn read(source: &dyn ReadAt, geometry: &CacheGeometry) -> Scan {
        Scan::read_telling(source, geometry, &mut |_| {})
    }

    /// As [`Scan::read`]; says which index comes next.
    pub fn read_telling(
        source: &dyn ReadAt,
        geometry: &CacheGeometry,
        tell: &mut dyn FnMut(usize),
    ) -> Scan {
        let mut scan = Scan::default();
        for (index, &bucket) in geometry.journal_buckets.iter().enumerate() {
            tell(index);
            if let Err(error) = scan.read_bucket(source, geometry, index, bucket) {
                scan.errors
                    .push(format!("journal bucket {bucket}: {error}"));
            }
        }
        scan
    }

    fn read_bucket(
        &mut self,
        source: &dyn ReadAt,
        geometry: &CacheGeometry,
        index: usize,
        bucket: u64,
    ) -> std::io::Result<()> {
        let start = bucket * geometry.bucket_bytes();
        let size = geometry.bucket_bytes();
        let block = geometry.block_bytes();
        let (mut window, mut window_at) = (Vec::new(), 0);
        let mut at = 0;
        let mut is_behind_bad = false;
        while at + block as u64 <= size {
            let used = (at - window_at) as usize;
            let left = (size - at) as usize;
            if window.len().saturating_sub(used) < left.min(jset::MAX_BYTES) {
                window = read(source, start + at, left.min(WINDOW_BYTES))?;
                window_at = at;
            }
            let bytes = &window[(at - window_at) as usize..];
            let offset = start + at;
            match jset::probe(bytes, geometry.set_magic) {
                Probe::Valid(view) => {
                    self.keep(Found {
                        index,
                        offset,
                        seq: view.seq,
                        last_seq: view.last_seq,
                        version: view.version,
                        bytes: view.disk_bytes(block) as u64,
                        csum: view
                            .bytes()
                            .first_chunk()
                            .map_or(0, |b| u64::from_le_bytes(*b)),
                        is_behind_bad,
                    });
                    at += view.disk_bytes(block) as u64;
                    continue;
                }
                Probe::Suspect { claimed_seq, error } => {
                    if self.suspects.len() < ENTRIES_MAX / 16 {
                        self.suspects.push(Suspect {
                            index,
                            offset,
                            claimed_seq,
                            error: error.to_string(),
                        });
                    }
                }
                Probe::NotAnEntry if !is_behind_bad => {
                    if let Some(claimed_seq) = without_magic(bytes, geometry.set_magic) {
                        self.suspects.push(Suspect {
                            index,
                            offset,
                            claimed_seq,
                            error: "all of an entry but its magic".into(),
                        });
                    }
                }
                Probe::NotAnEntry => {}
            }
            is_behind_bad = true;
            at += block as u64;
        }
        Ok(())
    }

    fn keep(&mut self, found: Found) {
        if self.found.len() == ENTRIES_MAX {
            self.errors.push(format!(
                "more than {ENTRIES_MAX} journal entries; the rest is left out"
            ));
        }
        if self.found.len() <= ENTRIES_MAX {
            self.found.push(found);
        }
    }

    /// The entry with the highest seq of those that can be used.
    pub fn newest(&self) -> Option<Found> {
        self.usable().max_by_key(|f| f.seq).copied()
    }

    pub fn usable(&self) -> impl Iterator<Item = &Found> {
        self.found.iter().filter(|f| !f.is_behind_bad)
    }

    /// What must be replayed, by everything that was found.
    pub fn exhaustive(&self) -> Option<Range> {
        let newest = self.newest()?;
        let seqs = self.usable().map(|f| f.seq);
        let replay = seqs
            .filter(|seq| (newest.last_seq..=newest.seq).contains(seq))
            .collect();
        Some(Range {
            newest_seq: newest.seq,
            replay,
        })
    }

    /// What a kernel's search comes to: it does not read every bucket (docs/format.md 5.4).
    pub fn by_kernel_search(&self, ring: usize) -> Option<Range> {
        let mut by_index: Vec<Vec<Found>> = vec![Vec::new(); ring];
        for found in self.usable() {
            by_index.get_mut(found.index)?.push(*found);
        }
        Search {
            by_index,
            list: BTreeMap::new(),
            last_seq_max: 0,
            visited: vec![false; ring],
        }
        .run()
    }

    /// Entries behind a bad block, and bad blocks, that claim more than the newest entry: F19, or F18 if it is one block
    /// where the next entry would stand.
    pub fn later(&self, newest_seq: u64) -> (Vec<Found>, Vec<&Suspect>) {
        let entries = self
            .found
            .iter()
            .filter(|f| f.is_behind_bad && f.seq > newest_seq)
            .copied()
            .collect();
        (
            entries,
            self.suspects
                .iter()
                .filter(|s| s.claimed_seq > newest_seq)
                .collect(),
        )
    }
}

/// The seq of an entry that would be valid with the right magic, which its checksum covers.
fn without_magic(bytes: &[u8], set_magic: u64) -> Option<u64> {
    let mut patched = bytes.get(..bytes.len().min(jset::MAX_BYTES))?.to_vec();
    patched
        .get_mut(8..16)?
        .copy_from_slice(&magic_of(set_magic));
    match jset::probe(&patched, set_magic) {
        Probe::Valid(view) => Some(view.seq),
        _ => None,
    }
}

/// The magic of the set's entries, as an entry has it.
fn magic_of(set_magic: u64) -> [u8; 8] {
    let nothing = Key::hole(0, 0, 0);
    let header = JsetHeader {
        seq: 1,
        last_seq: 1,
        version: jset::VERSION,
        uuid_bucket: nothing,
        btree_root: nothing,
        btree_level: 0,
        prio_bucket: 0,
    };
    let entry = jset::encode(&header, &[], set_magic, jset::HEADER_BYTES);
    let mut magic = [0; 8];
    magic.copy_from_slice(&entry[8..16]);
    magic
}

/// The magic in an entry of whatever set at the start of `bytes`; `None` if there is no entry. A checksum covers the magic,
/// so this is no guess.
pub(crate) fn foreign_magic(bytes: &[u8]) -> Option<[u8; 8]> {
    let magic = *bytes.get(8..)?.first_chunk::<8>()?;
    let own = magic_of(0);
    let set_magic = u64::from_le_bytes(magic) ^ u64::from_le_bytes(own);
    matches!(jset::probe(bytes, set_magic), Probe::Valid(_)).then_some(set_magic.to_le_bytes())
}

struct Search {
    by_index: Vec<Vec<Found>>,
    /// seq to last_seq.
    list: BTreeMap<u64, u64>,
    /// Of all ever in the list. An entry that left it had a lower one than the entry that drove it out.
    last_seq_max: u64,
    visited: Vec<bool>,
}

impl Search {
    fn run(mut self) -> Option<Range> {
        let n = self.by_index.len();
        let left = self
            .golden_hop(n)
            .or_else(|| (0..n).find(|&i| !self.visited[i] && self.visit(i)))?;
        let mut low = left;
        let mut middle = left;
        let high = (left + 1..n).find(|&i| self.visited[i]).unwrap_or(n);
        let mut right = high;
        while low + 1 < right {
            let before = self.newest();
            middle = (low + right) / 2;
            self.visit(middle);
            if self.newest() != before {
                low = middle
            } else {
                right = middle
            }
        }
        let mut index = (middle + n - 1) % n;
        while index != middle {
            if !self.visited[index] && !self.visit(index) {
                break;
            }
            index = (index + n - 1) % n;
        }
        let newest_seq = self.newest()?;
        Some(Range {
            newest_seq,
            replay: self.list.keys().copied().collect(),
        })
    }

    fn golden_hop(&mut self, n: usize) -> Option<usize> {
        for i in 0..n as u32 {
            let index = i.wrapping_mul(2_654_435_769) as usize % n;
            if self.visited[index] {
                return None;
            }
            if self.visit(index) {
                return Some(index);
            }
        }
        None
    }

    fn newest(&self) -> Option<u64> {
        self.list.last_key_value().map(|(&seq, _)| seq)
    }

    /// Whether it found something.
    fn visit(&mut self, index: usize) -> bool {
        self.visited[index] = true;
        let mut has_inserted = false;
        for found in std::mem::take(&mut self.by_index[index]) {
            self.list = match found.last_seq {
                0 => std::mem::take(&mut self.list),
                oldest => self.list.split_off(&oldest),
            };
            if self.list.contains_key(&found.seq) || found.seq < self.last_seq_max {
                continue;
            }
            self.list.insert(found.seq, found.last_seq);
            self.last_seq_max = self.last_seq_max.max(found.last_seq);
            has_inserted = true;
        }
        has_inserted
    }
}

/// Reads one entry again: header and keys.
pub(crate) fn load(
    source: &dyn ReadAt,
    geometry: &CacheGeometry,
    found: &Found,
) -> Result<(JsetHeader, Vec<Key>), String> {
    let bucket = geometry.bucket_bytes();
    let rest = (bucket - found.offset % bucket).min(jset::MAX_BYTES as u64);
    let bytes = read(source, found.offset, rest as usize).map_err(|e| e.to_string())?;
    let Probe::Valid(view) = jset::probe(&bytes, geometry.set_magic) else {
        return Err("changed while it was read".into());
    };
    let keys = view
        .keys()
        .map_err(|e| e.shifted(found.offset).to_string())?;
    let head = view
        .header()
        .map_err(|e| e.shifted(found.offset).to_string())?;
    Ok((head, keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rings as a writer leaves them: every length, every place of the newest bucket, with and without a previous lap.
    #[test]
    fn a_kernel_finds_in_a_legal_ring_what_reading_everything_finds() {
        for ring in 2..40_usize {
            for written in 1..=2 * ring as u64 {
                let mut scan = Scan::default();
                for bucket in (1..=written).rev().take(ring) {
                    for entry in 0..3 {
                        let seq = bucket * 3 + entry;
                        scan.found.push(Found {
                            index: (bucket % ring as u64) as usize,
                            offset: 0,
                            seq,
                            last_seq: seq.saturating_sub(4).max(3),
                            version: 1,
                            bytes: 512,
                            csum: seq,
                            is_behind_bad: false,
                        });
                    }
                }
                assert_eq!(
                    scan.by_kernel_search(ring),
                    scan.exhaustive(),
                    "ring {ring}, {written} written"
                );
            }
        }
    }

    #[test]
    fn an_empty_ring_has_no_newest_entry() {
        let scan = Scan::default();
        assert_eq!(
            (
                scan.exhaustive(),
                scan.by_kernel_search(8),
                scan.by_kernel_search(0)
            ),
            (None, None, None)
        );
    }
}
