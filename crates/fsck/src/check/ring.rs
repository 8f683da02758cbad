//! The journal: what the newest entry says, what is to be replayed, and what is wrong with the ring (F10 to F19).

use super::devices::Cache;
use super::report::{Findings, Place, Severity};
use super::{Options, Phase, Progress, Watch};
use crate::journal::{self, Found, Scan, Suspect, foreign_magic};
use crate::source::read;
use brigade_format::jset::{self, MAX_BYTES};
use brigade_format::{JsetHeader, Key, Probe};

/// A key that the next opening inserts.
#[derive(Clone, Copy)]
pub(super) struct Replayed {
    pub key: Key,
    pub seq: u64,
    /// Byte on the device at which its entry starts.
    pub entry: u64,
}

/// What the journal says.
pub(super) struct Ring {
    pub head: JsetHeader,
    /// The entry it stands in.
    pub place: Place,
    /// In the order in which they are inserted.
    pub replayed: Vec<Replayed>,
    /// Whether these are all keys that are needed.
    pub is_whole: bool,
}

/// Byte offsets in an entry, for messages.
pub(super) const UUID_BUCKET_AT: u64 = 40;
pub(super) const BTREE_ROOT_AT: u64 = 104;
const LAST_SEQ_AT: u64 = 32;

/// What a key to be replayed takes: itself, and the piece it becomes of what is laid over the tree.
const BYTES_PER_KEY: u64 = size_of::<Replayed>() as u64 + 96;

/// Reads the journal; `None` if nothing in it can be used.
pub(super) fn check(
    cache: &Cache<'_>,
    options: &Options,
    watch: &mut dyn Watch,
    findings: &mut Findings,
) -> Option<Ring> {
    let total = cache.geometry.journal_buckets.len() as u64;
    let scan = Scan::read_telling(cache.source, &cache.geometry, &mut |index| {
        watch.progress(Progress {
            device: &cache.name,
            phase: Phase::Journal,
            done: index as u64,
            total,
        });
    });
    for error in &scan.errors {
        findings.unchecked(format!("{}: {error}", cache.name));
    }
    let Some(newest) = scan.newest() else {
        no_entry(cache, findings);
        return None;
    };
    let mut entries: Vec<Found> = scan.usable().copied().collect();
    entries.sort_by_key(|entry| entry.seq);
    numbers(cache, &entries, &newest, findings);
    kernels_search(cache, &scan, findings);
    behind_the_newest(cache, &scan, &newest, findings);
    let needed = newest.last_seq.max(1)..=newest.seq;
    let mut range: Vec<Found> = entries;
    range.retain(|entry| needed.contains(&entry.seq));
    range.dedup_by_key(|entry| entry.seq);
    let has_gap = gaps(cache, &range, &newest, findings);
    let head = head(cache, &newest, findings)?;
    let (replayed, is_read) = keys(cache, &range, options, findings);
    Some(Ring {
        head,
        place: place_of(cache, &newest),
        replayed,
        is_whole: is_read && !has_gap,
    })
}

fn place_of(cache: &Cache<'_>, entry: &Found) -> Place {
    cache.place(
        format!("journal entry {}", entry.seq),
        entry.offset,
        entry.bytes,
    )
}

/// The ring as a whole.
fn ring_place(cache: &Cache<'_>) -> Place {
    let bucket = cache.geometry.bucket_bytes();
    let buckets = &cache.geometry.journal_buckets;
    let start = buckets.first().map_or(0, |first| first * bucket);
    cache.place("journal", start, buckets.len() as u64 * bucket)
}

fn no_entry(cache: &Cache<'_>, findings: &mut Findings) {
    let place = ring_place(cache);
    let bucket = cache.geometry.bucket_bytes();
    let length = usize::try_from(bucket.min(MAX_BYTES as u64)).unwrap_or(MAX_BYTES);
    let foreign = cache.geometry.journal_buckets.iter().find_map(|nr| {
        let bytes = read(cache.source, nr * bucket, length).ok()?;
        foreign_magic(&bytes)
    });
    if let Some(magic) = foreign {
        let text = format!(
            "the set uuid does not start as that of the journal's entries does ({:016x})",
            u64::from_be_bytes(magic)
        );
        let place = cache.superblock_place();
        findings.error("F10", &place, place.start + 56, text);
    }
    findings.error("F10", &place, place.start, "no valid entry");
}

/// Versions and numbers of every valid entry (F11, F14, F17). `entries` ascend.
fn numbers(cache: &Cache<'_>, entries: &[Found], newest: &Found, findings: &mut Findings) {
    let severity = |seq: u64| match seq >= newest.last_seq {
        true => Severity::Error,
        false => Severity::Warning,
    };
    let mut before: Option<&Found> = None;
    for entry in entries {
        let place = place_of(cache, entry);
        if entry.version > jset::VERSION {
            let text = format!("version {}, expected 0 or 1", entry.version);
            findings.add(severity(entry.seq), "F11", &place, entry.offset + 24, text);
        }
        if entry.last_seq == 0 || entry.last_seq > entry.seq {
            let text = format!("last_seq {}, expected 1 to its own number", entry.last_seq);
            let offset = entry.offset + LAST_SEQ_AT;
            findings.add(severity(entry.seq), "F11", &place, offset, text);
        }
        if let Some(before) = before {
            if before.seq == entry.seq && before.csum != entry.csum {
                let text = format!("other content than the entry at byte {}", before.offset);
                findings.add(severity(entry.seq), "F14", &place, entry.offset, text);
            }
            if before.version > entry.version {
                let (ours, theirs) = (entry.version, before.version);
                let text = format!("version {ours} after an entry of version {theirs}");
                findings.warn("F11", &place, entry.offset + 24, text);
            }
            if before.last_seq > entry.last_seq {
                let (ours, theirs, seq) = (entry.last_seq, before.last_seq, before.seq);
                let text = format!("last_seq {ours} is less than the {theirs} of entry {seq}");
                findings.warn("F17", &place, entry.offset + LAST_SEQ_AT, text);
            }
        }
        before = Some(entry);
    }
}

fn kernels_search(cache: &Cache<'_>, scan: &Scan, findings: &mut Findings) {
    let all = scan.exhaustive();
    let kernel = scan.by_kernel_search(cache.geometry.journal_buckets.len());
    if all == kernel {
        return;
    }
    let place = ring_place(cache);
    let newest = |range: &Option<journal::Range>| range.as_ref().map_or(0, |r| r.newest_seq);
    let text = format!(
        "a kernel's search comes to newest entry {} and other entries to replay than reading all, which has {}",
        newest(&kernel),
        newest(&all)
    );
    findings.warn("F13", &place, place.start, text);
}

/// F18, F19.
fn behind_the_newest(cache: &Cache<'_>, scan: &Scan, newest: &Found, findings: &mut Findings) {
    let (later, suspects) = scan.later(newest.seq);
    let is_next = |suspect: &Suspect| {
        let ring = &cache.geometry.journal_buckets;
        let next = (newest.index + 1)
            .checked_rem(ring.len())
            .and_then(|index| ring.get(index))
            .map(|bucket| bucket * cache.geometry.bucket_bytes());
        let is_behind = suspect.offset == newest.offset + newest.bytes;
        newest.seq.checked_add(1) == Some(suspect.claimed_seq)
            && (is_behind || Some(suspect.offset) == next)
    };
    let is_torn = later.is_empty() && suspects.iter().all(|suspect| is_next(suspect));
    for suspect in suspects {
        let bucket = cache.geometry.bucket_bytes();
        let rest = bucket - suspect.offset % bucket;
        let place = cache.place(
            format!("journal entry {}", suspect.claimed_seq),
            suspect.offset,
            rest.min(MAX_BYTES as u64),
        );
        if is_torn {
            let text = format!(
                "{}; an entry whose write was cut off, or the newest one damaged",
                suspect.error
            );
            findings.warn("F18", &place, suspect.offset, text);
        } else {
            let text = format!(
                "{}; it was durable once, and entry {} is the newest before it: what was written since is lost",
                suspect.error, newest.seq
            );
            findings.error("F19", &place, suspect.offset, text);
        }
    }
    for entry in later {
        let text = format!(
            "valid, but behind a damaged one: nobody finds it, entry {} passes for the newest",
            newest.seq
        );
        findings.error("F19", &place_of(cache, &entry), entry.offset, text);
    }
}

/// F15; whether anything is missing.
fn gaps(cache: &Cache<'_>, range: &[Found], newest: &Found, findings: &mut Findings) -> bool {
    let place = ring_place(cache);
    let mut is_fatal = false;
    let mut expected = newest.last_seq.max(1);
    let mut end_of_last = None;
    for entry in range {
        if entry.seq > expected {
            let is_discarded = end_of_last.is_none() && cache.superblock.discard();
            let (severity, why) = match is_discarded {
                true => (Severity::Warning, ", taken for discarded"),
                false => (Severity::Error, ""),
            };
            is_fatal |= !is_discarded;
            let text = format!(
                "entries {expected} to {} are missing of {} to {}, which are needed{why}",
                entry.seq - 1,
                newest.last_seq,
                newest.seq
            );
            let offset = end_of_last.unwrap_or(entry.offset);
            findings.add(severity, "F15", &place, offset, text);
        }
        expected = entry.seq.saturating_add(1);
        end_of_last = Some(entry.offset + entry.bytes);
    }
    is_fatal
}

/// The newest entry without its keys.
fn head(cache: &Cache<'_>, newest: &Found, findings: &mut Findings) -> Option<JsetHeader> {
    let place = place_of(cache, newest);
    if newest.version > jset::VERSION || newest.last_seq > newest.seq {
        findings.unchecked(format!(
            "{}: all that the newest journal entry leads to",
            cache.name
        ));
        return None;
    }
    let bytes = entry_bytes(cache, newest, findings)?;
    let Probe::Valid(view) = jset::probe(&bytes, cache.geometry.set_magic) else {
        findings.unchecked(format!("{}: the journal changed meanwhile", cache.name));
        return None;
    };
    for (id, slot, at) in [
        ("F50", view.uuid_bucket(), UUID_BUCKET_AT),
        ("F36", view.btree_root(), BTREE_ROOT_AT),
    ] {
        if let Err(error) = slot {
            findings.error(id, &place, newest.offset + at, error);
        }
    }
    view.header().ok()
}

fn entry_bytes(cache: &Cache<'_>, entry: &Found, findings: &mut Findings) -> Option<Vec<u8>> {
    let length = usize::try_from(entry.bytes).ok()?;
    match read(cache.source, entry.offset, length) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            let name = &cache.name;
            findings.unchecked(format!("{name}: journal entry {}: {error}", entry.seq));
            None
        }
    }
}

/// The keys to be replayed that are good (F12, F16, and F34, F35 as far as they hold for them), and whether all are.
fn keys(
    cache: &Cache<'_>,
    range: &[Found],
    options: &Options,
    findings: &mut Findings,
) -> (Vec<Replayed>, bool) {
    let mut replayed = Vec::new();
    let mut is_whole = true;
    let bytes_each = BYTES_PER_KEY;
    for entry in range {
        if replayed.len() as u64 * bytes_each > options.memory_max {
            let limit = options.memory_max;
            findings.unchecked(format!(
                "{}: journal keys from entry {} on: they take more than {limit} bytes",
                cache.name, entry.seq
            ));
            return (replayed, false);
        }
        is_whole &= entry_keys(cache, entry, &mut replayed, findings).is_some();
    }
    (replayed, is_whole)
}

fn entry_keys(
    cache: &Cache<'_>,
    entry: &Found,
    replayed: &mut Vec<Replayed>,
    findings: &mut Findings,
) -> Option<()> {
    let place = place_of(cache, entry);
    let bytes = entry_bytes(cache, entry, findings)?;
    let Probe::Valid(view) = jset::probe(&bytes, cache.geometry.set_magic) else {
        findings.unchecked(format!("{}: the journal changed meanwhile", cache.name));
        return None;
    };
    let keys = match view.keys() {
        Ok(keys) => keys,
        Err(error) => {
            let offset = entry.offset.saturating_add(error.offset);
            findings.error("F12", &place, offset, error);
            return None;
        }
    };
    let rules = cache.geometry.key_rules();
    let mut at = entry.offset + jset::HEADER_BYTES as u64;
    let mut is_good = true;
    for key in keys {
        let verdict = match key.size() {
            0 => Err(format!("key {key}: SIZE 0")),
            _ => rules.check_extent(&key).map_err(|e| e.to_string()),
        };
        match verdict {
            Ok(()) => replayed.push(Replayed {
                key,
                seq: entry.seq,
                entry: entry.offset,
            }),
            Err(text) => {
                is_good = false;
                findings.error("F16", &place, at, text);
            }
        }
        if key.csum_type() != 0 {
            findings.warn("F35", &place, at, format_args!("key {key}: CSUM not 0"));
        }
        at += key.words() as u64 * 8;
    }
    is_good.then_some(())
}

impl Replayed {
    /// Where it stands, for findings.
    pub fn place(&self, cache: &Cache<'_>) -> Place {
        let bucket = cache.geometry.bucket_bytes();
        let rest = bucket - self.entry % bucket;
        let length = rest.min(MAX_BYTES as u64);
        cache.place(format!("journal entry {}", self.seq), self.entry, length)
    }
}
