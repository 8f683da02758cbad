//! Reading the journal: every bucket of the ring, each to its first bad block, and what lies behind.
//!
//! `docs/format.md` 5.3-5.9. The reader does not search for the newest entry, it reads everything and takes the
//! highest seq; the search a kernel makes is replayed on what was read, only to report where it would have come to
//! another answer (F13). Only the keys of entries that may belong to the replay range are kept in memory.

use super::findings::{Findings, LoadError, Severity};
use super::reads::ReadWindow;
use super::search::kernel_search;
use super::{Newest, Ring, SurvivorEntry};
use crate::mutations::{self, Mutation};
use brigade_env::{Device, Env};
use brigade_format::jset::{self, JsetView, Probe};
use brigade_format::superblock::CacheGeometry;
use brigade_format::{FormatError, Key, parse_keys};
use std::collections::BTreeMap;

const SECTOR: u64 = brigade_env::SECTOR_BYTES;
/// Journal buckets are read in pieces of this size, so that a ring of large buckets is not read in vain.
const CHUNK_BYTES: u64 = 256 << 10;
/// No set lives long enough for a higher seq; below it nobody's arithmetic overflows.
const SEQ_MAX: u64 = 1 << 62;

/// What is remembered of every valid entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryHead {
    pub(super) seq: u64,
    pub(super) last_seq: u64,
    version: u32,
    csum: u64,
    /// Ring index and byte within the bucket.
    index: usize,
    at: u64,
}

/// An entry that may be needed.
struct Kept {
    head: EntryHead,
    bytes_len: u64,
    uuid_bucket: Result<Key, FormatError>,
    root: Result<Key, FormatError>,
    root_level: u16,
    mark: Option<jset::Mark>,
    prio_head: u64,
    key_bytes: Vec<u8>,
}

/// An entry of the replay range, oldest first.
pub(super) struct ReplayEntry {
    pub(super) keys: Vec<Key>,
    /// Where the keys start on the device, for messages.
    pub(super) offset: u64,
}

/// The journal as far as opening needs it.
pub(super) struct Journal {
    pub(super) newest: Newest,
    pub(super) ring: Ring,
    pub(super) replay: Vec<ReplayEntry>,
    /// Head of the gen table that the last valid entry behind a damaged one names (F19).
    pub(super) later_prio_head: Option<u64>,
    pub(super) bytes_read: u64,
    pub(super) entries_found: u64,
}

/// The first block of a bucket that is no valid entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BadBlock {
    at: u64,
    /// The seq it claims, if it has the magic.
    claimed_seq: Option<u64>,
}

/// A suspect block or later entry behind the newest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Behind {
    index: usize,
    at: u64,
    seq: u64,
    /// For a valid entry the gen table it names.
    valid: Option<u64>,
}

/// Parameters every part of the reader needs.
struct Reader<'a, E: Env> {
    env: &'a E,
    device: &'a E::Device,
    geometry: &'a CacheGeometry,
    bytes_read: u64,
}

impl<E: Env> Reader<'_, E> {
    fn bucket_bytes(&self) -> u64 {
        u64::from(self.geometry.bucket_sectors).saturating_mul(SECTOR)
    }

    fn block_bytes(&self) -> u64 {
        u64::from(self.geometry.block_sectors.max(1)) * SECTOR
    }

    fn base(&self, index: usize) -> u64 {
        self.geometry.journal_buckets[index].saturating_mul(self.bucket_bytes())
    }

    fn round(&self, bytes: u64) -> u64 {
        bytes
            .div_ceil(self.block_bytes())
            .max(1)
            .saturating_mul(self.block_bytes())
    }
}

/// A sliding view of one journal bucket.
struct Slider {
    index: usize,
    data: Vec<u8>,
    start: u64,
}

impl Slider {
    fn new(index: usize) -> Slider {
        Slider {
            index,
            data: Vec::new(),
            start: 0,
        }
    }

    /// The bytes from `at`, at least one whole entry of them unless the bucket ends.
    async fn from<E: Env>(
        &mut self,
        reader: &mut Reader<'_, E>,
        at: u64,
    ) -> Result<&[u8], LoadError> {
        let bucket_bytes = reader.bucket_bytes();
        let have = self.start + self.data.len() as u64;
        let want = (at + jset::MAX_BYTES as u64).min(bucket_bytes);
        if at < self.start || at > have {
            self.data.clear();
            self.start = at;
        }
        let have = self.start + self.data.len() as u64;
        if have < want {
            self.data.drain(..(at - self.start) as usize);
            self.start = at;
            let length = CHUNK_BYTES.max(want - have).min(bucket_bytes - have);
            let offset = reader.base(self.index) + have;
            let buffer = reader.env.buffers().get(length as usize);
            let buffer = reader
                .device
                .read(offset, buffer)
                .await
                .map_err(|e| LoadError::io(name(self.index), offset, &e))?;
            reader.bytes_read += length;
            self.data.extend_from_slice(&buffer);
        }
        Ok(&self.data[(at - self.start) as usize..])
    }
}

fn name(index: usize) -> String {
    format!("journal bucket {index}")
}

/// Everything the first pass learns.
struct Scan {
    heads: Vec<Vec<EntryHead>>,
    bad: Vec<Option<BadBlock>>,
    kept: BTreeMap<u64, Kept>,
    /// Highest seq so far and the last_seq that entry has.
    best: Option<(u64, u64)>,
    /// The bytes at the end of that entry's bucket, to read on without reading again.
    best_tail: Option<Slider>,
}

impl Scan {
    fn accept(&mut self, index: usize, at: u64, view: &JsetView<'_>) {
        let csum = word(view.bytes());
        let head = EntryHead {
            seq: view.seq,
            last_seq: view.last_seq,
            version: view.version,
            csum,
            index,
            at,
        };
        self.heads[index].push(head);
        if self.best.is_none_or(|(seq, _)| head.seq > seq) {
            let horizon = head.last_seq.min(head.seq);
            self.best = Some((head.seq, horizon));
            self.kept = self.kept.split_off(&horizon);
        }
        let horizon = self.best.map_or(0, |(_, horizon)| horizon);
        if head.seq < horizon || self.kept.contains_key(&head.seq) {
            return;
        }
        let kept = Kept {
            head,
            bytes_len: view.bytes_len as u64,
            uuid_bucket: view.uuid_bucket(),
            root: view.btree_root(),
            root_level: view.btree_level,
            mark: view.mark(),
            prio_head: view.prio_bucket,
            key_bytes: view
                .bytes()
                .get(jset::HEADER_BYTES..)
                .unwrap_or_default()
                .to_vec(),
        };
        self.kept.insert(head.seq, kept);
    }
}

fn word(bytes: &[u8]) -> u64 {
    bytes
        .get(..8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// Reads the whole ring and judges it.
pub(super) async fn read<E: Env>(
    env: &E,
    device: &E::Device,
    geometry: &CacheGeometry,
    discards: bool,
    survivors: &[SurvivorEntry],
    findings: &mut Findings,
) -> Result<Journal, LoadError> {
    let mut reader = Reader {
        env,
        device,
        geometry,
        bytes_read: 0,
    };
    let mut scan = scan_ring(&mut reader).await?;
    let all: Vec<EntryHead> = scan.heads.iter().flatten().copied().collect();
    let Some((newest_seq, _)) = scan.best else {
        let base = if geometry.journal_buckets.is_empty() {
            0
        } else {
            reader.base(0)
        };
        return Err(LoadError::new(
            "F10",
            "journal",
            base,
            "no journal entries found",
        ));
    };
    let newest = scan
        .kept
        .get(&newest_seq)
        .expect("the newest entry is kept");
    let (newest_head, newest_end) = (newest.head, newest.head.at + reader.round(newest.bytes_len));
    judge_heads(&reader, &all, newest_head, findings)?;
    let range = judge_range(&reader, &all, newest_head, discards, findings)?;
    judge_search(&reader, &scan.heads, newest_head, &range, findings);
    let behind = look_behind(&mut reader, &scan.bad, scan.best_tail.take(), newest_head).await?;
    let later_prio_head = judge_behind(&reader, &behind, newest_head, newest_end, findings)?;
    let byte_offset = reader.base(newest_head.index) + newest_head.at;
    let slot = |id, key: &Result<Key, FormatError>| {
        key.clone().map_err(|e| {
            LoadError::format(id, format!("journal entry {newest_seq}"), byte_offset, &e)
        })
    };
    let newest = Newest {
        seq: newest_seq,
        last_seq: newest_head.last_seq,
        version: newest_head.version,
        uuid_bucket: slot("F50", &newest.uuid_bucket)?,
        root: slot("F36", &newest.root)?,
        root_level: newest.root_level,
        mark: newest.mark,
        prio_head: newest.prio_head,
        byte_offset,
    };
    let ring = Ring {
        newest_index: newest_head.index,
        newest_end_sector: newest_end / SECTOR,
        bucket_max_seq: scan
            .heads
            .iter()
            .map(|heads| heads.iter().map(|h| h.seq).max().unwrap_or(0))
            .collect(),
    };
    let mut replay = Vec::with_capacity(range.len());
    let later = usize::from(mutations::is(Mutation::ReplayFromLater) && range.len() > 1);
    for seq in range.into_iter().skip(later) {
        let Some(kept) = scan.kept.remove(&seq) else {
            continue;
        };
        replay.push(replay_entry(&reader, &kept)?);
    }
    add_survivors(&mut replay, survivors, newest_seq, newest.byte_offset)?;
    check_keys(geometry, &replay)?;
    Ok(Journal {
        newest,
        ring,
        replay,
        later_prio_head,
        bytes_read: reader.bytes_read,
        entries_found: all.len() as u64,
    })
}

/// Reads every bucket to its first bad block. First pieces are asked for ahead.
async fn scan_ring<E: Env>(reader: &mut Reader<'_, E>) -> Result<Scan, LoadError> {
    let count = reader.geometry.journal_buckets.len();
    let first = CHUNK_BYTES.min(reader.bucket_bytes());
    let mut scan = Scan {
        heads: vec![Vec::new(); count],
        bad: vec![None; count],
        kept: BTreeMap::new(),
        best: None,
        best_tail: None,
    };
    let mut window = ReadWindow::default();
    let mut asked = 0;
    for index in 0..count {
        while asked < count && window.has_room(first as usize) {
            let buffer = reader.env.buffers().get(first as usize);
            window.start(reader.device, reader.base(asked), buffer);
            asked += 1;
        }
        let buffer = window
            .next()
            .await
            .map_err(|e| LoadError::io(name(index), reader.base(index), &e))?;
        reader.bytes_read += first;
        let mut slider = Slider {
            index,
            data: buffer.to_vec(),
            start: 0,
        };
        drop(buffer);
        let best_before = scan.best;
        scan.bad[index] = scan_bucket(reader, &mut slider, &mut scan).await?;
        if scan.best != best_before {
            scan.best_tail = Some(slider);
        }
    }
    Ok(scan)
}

async fn scan_bucket<E: Env>(
    reader: &mut Reader<'_, E>,
    slider: &mut Slider,
    scan: &mut Scan,
) -> Result<Option<BadBlock>, LoadError> {
    let (magic, bucket_bytes, index) = (
        reader.geometry.set_magic,
        reader.bucket_bytes(),
        slider.index,
    );
    let mut at = 0;
    while at < bucket_bytes {
        let bytes = slider.from(reader, at).await?;
        match jset::probe(bytes, magic) {
            Probe::Valid(view) => {
                scan.accept(index, at, &view);
                at += reader.round(view.bytes_len as u64);
            }
            Probe::Suspect { claimed_seq, .. } => {
                return Ok(Some(BadBlock {
                    at,
                    claimed_seq: Some(claimed_seq),
                }));
            }
            Probe::NotAnEntry => {
                return Ok(Some(BadBlock {
                    at,
                    claimed_seq: None,
                }));
            }
        }
    }
    Ok(None)
}

/// F11, F14, F17: what the heads of all valid entries say together.
fn judge_heads<E: Env>(
    reader: &Reader<'_, E>,
    all: &[EntryHead],
    newest: EntryHead,
    findings: &mut Findings,
) -> Result<(), LoadError> {
    let severity = |head: &EntryHead| match head.seq >= newest.last_seq || head.seq == newest.seq {
        true => Severity::Fatal,
        false => Severity::Warning,
    };
    let mut sorted: Vec<&EntryHead> = all.iter().collect();
    sorted.sort_by_key(|head| (head.seq, head.csum));
    for head in &sorted {
        if head.version > 1 || head.last_seq == 0 || head.last_seq > head.seq || head.seq > SEQ_MAX
        {
            let text = format!(
                "entry {}: version {}, last_seq {}",
                head.seq, head.version, head.last_seq
            );
            findings.report(
                "F11",
                severity(head),
                name(head.index),
                reader.base(head.index) + head.at,
                text,
            )?;
        }
    }
    for pair in sorted.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        let offset = reader.base(b.index) + b.at;
        if a.seq == b.seq && a.csum != b.csum {
            let text = format!("two different entries {}", a.seq);
            findings.report("F14", severity(a), name(b.index), offset, text)?;
        }
        if a.seq < b.seq && a.last_seq > b.last_seq {
            let text = format!(
                "last_seq goes back from {} to {} at entry {}",
                a.last_seq, b.last_seq, b.seq
            );
            findings.report("F17", Severity::Warning, name(b.index), offset, text)?;
        }
    }
    Ok(())
}

/// F15: the seqs of the replay range, which must all be there.
fn judge_range<E: Env>(
    reader: &Reader<'_, E>,
    all: &[EntryHead],
    newest: EntryHead,
    discards: bool,
    findings: &mut Findings,
) -> Result<Vec<u64>, LoadError> {
    let offset = reader.base(newest.index) + newest.at;
    let mut range: Vec<u64> = all
        .iter()
        .map(|head| head.seq)
        .filter(|seq| *seq >= newest.last_seq)
        .collect();
    range.sort_unstable();
    range.dedup();
    for pair in range.windows(2) {
        if pair[0] + 1 != pair[1] {
            let text = format!(
                "entries {}-{} are missing (replay {}-{})",
                pair[0] + 1,
                pair[1] - 1,
                newest.last_seq,
                newest.seq
            );
            findings.report("F15", Severity::Fatal, "journal", offset, text)?;
        }
    }
    if let Some(&first) = range.first()
        && first > newest.last_seq
    {
        let severity = if discards {
            Severity::Warning
        } else {
            Severity::Fatal
        };
        let text = format!(
            "entries {}-{} are missing (replay {}-{})",
            newest.last_seq,
            first - 1,
            newest.last_seq,
            newest.seq
        );
        findings.report("F15", severity, "journal", offset, text)?;
    }
    Ok(range)
}

/// F13: would a kernel find the same?
fn judge_search<E: Env>(
    reader: &Reader<'_, E>,
    heads: &[Vec<EntryHead>],
    newest: EntryHead,
    range: &[u64],
    findings: &mut Findings,
) {
    let offset = reader.base(newest.index) + newest.at;
    let text = match kernel_search(heads) {
        Some(found) if found == range => return,
        Some(found) => format!(
            "a kernel would find entries {}-{} ({}), there are {}-{} ({})",
            found.first().unwrap_or(&0),
            found.last().unwrap_or(&0),
            found.len(),
            range.first().unwrap_or(&0),
            newest.seq,
            range.len()
        ),
        None => "too many entries to say what a kernel would find".to_string(),
    };
    findings.warn("F13", "journal", offset, text);
}

/// Reads on behind the first bad block of the newest entry's bucket and of every bucket that stops at a suspect block.
async fn look_behind<E: Env>(
    reader: &mut Reader<'_, E>,
    bad: &[Option<BadBlock>],
    mut best_tail: Option<Slider>,
    newest: EntryHead,
) -> Result<Vec<Behind>, LoadError> {
    let mut behind = Vec::new();
    for (index, block) in bad.iter().enumerate() {
        let Some(block) = block else { continue };
        let is_suspect = block.claimed_seq.is_some_and(|seq| seq > newest.seq);
        if index == newest.index || is_suspect {
            let tail = best_tail.take_if(|tail| tail.index == index);
            let slider = tail.unwrap_or_else(|| Slider::new(index));
            look_behind_in(reader, slider, block.at, newest.seq, &mut behind).await?;
        }
    }
    Ok(behind)
}

async fn look_behind_in<E: Env>(
    reader: &mut Reader<'_, E>,
    mut slider: Slider,
    first: u64,
    newest_seq: u64,
    behind: &mut Vec<Behind>,
) -> Result<(), LoadError> {
    let (magic, bucket_bytes, block_bytes) = (
        reader.geometry.set_magic,
        reader.bucket_bytes(),
        reader.block_bytes(),
    );
    let index = slider.index;
    let mut at = first;
    while at < bucket_bytes {
        let bytes = slider.from(reader, at).await?;
        let (step, seq, valid) = match jset::probe(bytes, magic) {
            Probe::Valid(view) => (
                reader.round(view.bytes_len as u64),
                view.seq,
                Some(view.prio_bucket),
            ),
            Probe::Suspect { claimed_seq, .. } => (block_bytes, claimed_seq, None),
            Probe::NotAnEntry => (block_bytes, 0, None),
        };
        if seq > newest_seq {
            behind.push(Behind {
                index,
                at,
                seq,
                valid,
            });
        }
        at += step;
    }
    Ok(())
}

/// F18 or F19. Gives the gen table named by the last valid entry behind the damage.
fn judge_behind<E: Env>(
    reader: &Reader<'_, E>,
    behind: &[Behind],
    newest: EntryHead,
    newest_end: u64,
    findings: &mut Findings,
) -> Result<Option<u64>, LoadError> {
    let next_index = (newest.index + 1) % reader.geometry.journal_buckets.len().max(1);
    let torn = |b: &Behind| {
        let stands_next =
            (b.index, b.at) == (newest.index, newest_end) || (b.index, b.at) == (next_index, 0);
        stands_next && b.valid.is_none() && Some(b.seq) == newest.seq.checked_add(1)
    };
    for b in behind {
        let offset = reader.base(b.index) + b.at;
        if torn(b) {
            let text = format!(
                "entry {} was being written when the machine stopped, or is damaged",
                b.seq
            );
            findings.report("F18", Severity::Warning, name(b.index), offset, text)?;
            continue;
        }
        let what = if b.valid.is_some() {
            "a valid entry"
        } else {
            "a damaged entry"
        };
        let text = format!(
            "{what} {} stands behind damage, the last usable one is {}: acknowledged writes are lost",
            b.seq, newest.seq
        );
        findings.report("F19", Severity::BarsWriting, name(b.index), offset, text)?;
    }
    Ok(behind
        .iter()
        .filter(|b| b.valid.is_some())
        .max_by_key(|b| b.seq)
        .and_then(|b| b.valid))
}

fn replay_entry<E: Env>(reader: &Reader<'_, E>, kept: &Kept) -> Result<ReplayEntry, LoadError> {
    let offset = reader.base(kept.head.index) + kept.head.at + jset::HEADER_BYTES as u64;
    let structure = format!("journal entry {}", kept.head.seq);
    let keys =
        parse_keys(&kept.key_bytes).map_err(|e| LoadError::format("F12", structure, offset, &e))?;
    Ok(ReplayEntry { keys, offset })
}

/// Keys that were acknowledged but reached only the record in memory come after the newest entry.
fn add_survivors(
    replay: &mut Vec<ReplayEntry>,
    survivors: &[SurvivorEntry],
    newest_seq: u64,
    offset: u64,
) -> Result<(), LoadError> {
    let mut before = newest_seq;
    for entry in survivors.iter().filter(|entry| entry.seq > newest_seq) {
        if entry.seq < before {
            let text = format!("entry {} comes behind entry {before}", entry.seq);
            let structure = "record of acknowledged writes".to_string();
            return Err(LoadError {
                structure,
                byte_offset: 0,
                message: text,
                id: None,
            });
        }
        before = entry.seq;
        replay.push(ReplayEntry {
            keys: entry.keys.clone(),
            offset,
        });
    }
    Ok(())
}

/// F16: keys to be replayed are valid extents.
fn check_keys(geometry: &CacheGeometry, replay: &[ReplayEntry]) -> Result<(), LoadError> {
    let rules = geometry.key_rules();
    for entry in replay {
        let mut offset = entry.offset;
        for key in &entry.keys {
            if key.size() == 0 {
                return Err(LoadError::new(
                    "F16",
                    "journal key",
                    offset,
                    "a key of no sectors",
                ));
            }
            super::tree::check_extent(&rules, key, "F16", "journal key", offset)?;
            offset += 8 * key.words() as u64;
        }
    }
    Ok(())
}
