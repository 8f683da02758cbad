//! What a check has to say: findings by rule, bounded in number, and the view of the set it came to.

use brigade_format::{BackingState, CacheMode};
use std::collections::BTreeMap;
use std::fmt::{self, Display};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing, and what an undamaged set may show after a crash.
    Note,
    /// The set is usable; something is not as any writer should leave it.
    Warning,
    /// Damage: a writer must not go on, or data is lost or in doubt.
    Error,
}

impl Severity {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

/// One deviation from the rules of `docs/format.md` 11.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The rule, as "F46".
    pub id: &'static str,
    /// The device, as it was named.
    pub device: String,
    /// The structure, as "btree leaf" or "journal entry 17".
    pub structure: String,
    /// Byte of the device at which the structure starts.
    pub start: u64,
    /// Its length in bytes.
    pub length: u64,
    /// Byte of the device at which the rule is broken, as near as it is known; inside the structure.
    pub offset: u64,
    /// What is there and what should be.
    pub message: String,
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} {} at byte {}: {} ({})",
            self.device,
            self.severity.name(),
            self.structure,
            self.offset,
            self.message,
            self.id
        )
    }
}

/// What the whole check comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was checked and nothing is wrong.
    Clean,
    /// Something is.
    Errors,
    /// Nothing wrong was seen, but not everything could be looked at.
    Unchecked,
}

/// Findings and view.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The first of each rule; how many there are in all is in the counts.
    pub findings: Vec<Finding>,
    /// How many by rule and severity.
    pub counts: BTreeMap<(&'static str, Severity), u64>,
    /// What could not be looked at, and why.
    pub unchecked: Vec<String>,
    /// The cache sets.
    pub sets: Vec<SetView>,
    /// The backing devices.
    pub backings: Vec<BackingView>,
}

impl Report {
    /// How many findings of a severity there are, kept or not.
    pub fn count(&self, severity: Severity) -> u64 {
        let of = |entry: (&(&'static str, Severity), &u64)| {
            if entry.0.1 == severity { *entry.1 } else { 0 }
        };
        self.counts.iter().map(of).sum()
    }

    /// What it comes to.
    pub fn verdict(&self) -> Verdict {
        if self.count(Severity::Error) > 0 {
            Verdict::Errors
        } else if self.unchecked.is_empty() {
            Verdict::Clean
        } else {
            Verdict::Unchecked
        }
    }
}

/// A cache set as the next opening would find it, after replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetView {
    /// The cache device, as it was named.
    pub device: String,
    /// The set.
    pub set_uuid: [u8; 16],
    /// Whether it was ever initialised; if not, all that follows is zero.
    pub is_initialised: bool,
    /// Sectors of a bucket.
    pub bucket_sectors: u32,
    /// Number of the newest journal entry.
    pub newest_seq: u64,
    /// Number of the oldest entry that is still needed.
    pub last_seq: u64,
    /// Keys to replay.
    pub replayed_keys: u64,
    /// Level of the root.
    pub root_level: u16,
    /// Nodes of the tree.
    pub nodes: u64,
    /// Keys in all sets of all nodes.
    pub keys: u64,
    /// Who has how many buckets.
    pub buckets: Buckets,
    /// Whether the extents were gone through: without that, buckets of data and what volumes have are unknown.
    pub has_extents: bool,
    /// Every slot in use, and every inode with extents.
    pub volumes: Vec<VolumeView>,
}

/// Buckets by owner; together they are all of the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Buckets {
    /// In front of the first that is used.
    pub superblock: u64,
    /// The ring.
    pub journal: u64,
    /// The chain.
    pub prios: u64,
    /// The UUID table.
    pub uuids: u64,
    /// Nodes of the tree.
    pub nodes: u64,
    /// At least one dirty live extent.
    pub dirty: u64,
    /// Live extents, none dirty.
    pub clean: u64,
    /// Nobody's.
    pub unreferenced: u64,
}

/// What a slot is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SlotKind {
    /// Never given to anybody.
    #[default]
    Free,
    /// A backing device's.
    Cached,
    /// A volume without backing device.
    Flash,
    /// Given up: its extents mean nothing.
    Invalidated,
}

/// What the index holds for one inode after replay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeView {
    /// Inode, slot of the UUID table.
    pub slot: u32,
    /// What the slot is.
    pub kind: SlotKind,
    /// The uuid in the slot.
    pub uuid: [u8; 16],
    /// The label in the slot.
    pub label: String,
    /// Live extents.
    pub extents: u64,
    /// Sectors of clean ones.
    pub clean_sectors: u64,
    /// Sectors of dirty ones.
    pub dirty_sectors: u64,
}

/// A backing device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingView {
    /// As it was named.
    pub device: String,
    /// Its uuid.
    pub uuid: [u8; 16],
    /// The set it names.
    pub set_uuid: [u8; 16],
    /// What its superblock says.
    pub state: BackingState,
    /// What its superblock says, where it says something that exists.
    pub mode: Option<CacheMode>,
    /// Its slot, in the set it names if that was given.
    pub slot: Option<u32>,
}

/// Where something stands.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub device: String,
    pub structure: String,
    pub start: u64,
    pub length: u64,
}

/// How many of one rule are kept.
const KEPT_PER_RULE: u64 = 100;

/// Collects findings.
pub(super) struct Findings {
    max: usize,
    pub report: Report,
}

impl Findings {
    pub fn new(max: usize) -> Findings {
        Findings {
            max,
            report: Report::default(),
        }
    }

    /// Adds one; the words are made only if it is kept.
    pub fn add(
        &mut self,
        severity: Severity,
        id: &'static str,
        place: &Place,
        offset: u64,
        message: impl Display,
    ) {
        let count = self.report.counts.entry((id, severity)).or_insert(0);
        *count += 1;
        if *count > KEPT_PER_RULE || self.report.findings.len() >= self.max {
            return;
        }
        self.report.findings.push(Finding {
            severity,
            id,
            device: place.device.clone(),
            structure: place.structure.clone(),
            start: place.start,
            length: place.length,
            offset,
            message: message.to_string(),
        });
    }

    pub fn error(&mut self, id: &'static str, place: &Place, offset: u64, message: impl Display) {
        self.add(Severity::Error, id, place, offset, message);
    }

    pub fn warn(&mut self, id: &'static str, place: &Place, offset: u64, message: impl Display) {
        self.add(Severity::Warning, id, place, offset, message);
    }

    pub fn note(&mut self, id: &'static str, place: &Place, offset: u64, message: impl Display) {
        self.add(Severity::Note, id, place, offset, message);
    }

    /// Something that could not be looked at.
    pub fn unchecked(&mut self, what: String) {
        if self.report.unchecked.len() < self.max {
            self.report.unchecked.push(what);
        }
    }
}
