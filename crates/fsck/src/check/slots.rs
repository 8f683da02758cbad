//! The UUID table by itself (F50, F52, F54, F55), and what each slot means for the extents of its inode.

use super::devices::{Backing, Cache};
use super::report::{Findings, Place, SlotKind};
use super::ring::{Ring, UUID_BUCKET_AT};
use crate::source::read;
use brigade_format::uuid_table::{self, ENTRY_BYTES, OLD_ENTRY_BYTES, UuidEntry};
use brigade_format::{BackingState, Pos, SECTOR_BYTES, jset};

/// The table.
pub(super) struct Slots {
    pub entries: Vec<UuidEntry>,
    pub place: Place,
    entry_bytes: u64,
}

impl Slots {
    /// Byte of the device at which a slot stands.
    pub fn offset(&self, slot: u32) -> u64 {
        self.place
            .start
            .saturating_add(u64::from(slot) * self.entry_bytes)
    }

    pub fn get(&self, slot: u32) -> &UuidEntry {
        let entry = usize::try_from(slot)
            .ok()
            .and_then(|slot| self.entries.get(slot));
        entry.unwrap_or(&UuidEntry::EMPTY)
    }

    pub fn kind(&self, slot: u32) -> SlotKind {
        let entry = self.get(slot);
        if entry.is_empty() {
            SlotKind::Free
        } else if entry.is_invalidated() {
            SlotKind::Invalidated
        } else if entry.is_flash_only() {
            SlotKind::Flash
        } else {
            SlotKind::Cached
        }
    }

    /// The slot of a backing device: the first with its uuid.
    pub fn slot_of(&self, uuid: &[u8; 16]) -> Option<u32> {
        let slot = self.entries.iter().position(|entry| entry.uuid == *uuid)?;
        u32::try_from(slot).ok()
    }
}

/// Reads the table; `None` if its key leads nowhere.
pub(super) fn check(cache: &Cache<'_>, ring: &Ring, findings: &mut Findings) -> Option<Slots> {
    let key = &ring.head.uuid_bucket;
    let key_at = ring.place.start + UUID_BUCKET_AT;
    if let Err(error) = cache.geometry.key_rules().check_node(key) {
        findings.error("F50", &ring.place, key_at, format_args!("uuid {error}"));
        return None;
    }
    if key.pos() != Pos::ZERO {
        let text = format!("uuid key {key} is not at position 0:0");
        findings.error("F50", &ring.place, key_at, text);
    }
    if key.size() != cache.geometry.meta_sectors {
        let (size, whole) = (key.size(), cache.geometry.meta_sectors);
        let text = format!("uuid key of {size} sectors, a table has {whole}");
        findings.warn("F50", &ring.place, key_at, text);
    }
    let start = key.ptr(0)?.sector() * SECTOR_BYTES;
    let sectors = key.size().min(cache.geometry.meta_sectors);
    let length = sectors as usize * SECTOR_BYTES as usize;
    let place = cache.place("uuid table", start, length as u64);
    let bytes = match read(cache.source, start, length) {
        Ok(bytes) => bytes,
        Err(error) => {
            findings.unchecked(format!("{}: uuid table: {error}", cache.name));
            return None;
        }
    };
    let count = cache.geometry.uuid_slots as usize;
    let is_old = ring.head.version == jset::VERSION_OLD_UUIDS;
    let entries = if is_old {
        let (entries, has_more) = uuid_table::parse_old(&bytes, count);
        if has_more {
            let text =
                "slots in the second half of a table of the old format, which nobody can convert";
            findings.error("F50", &place, start + length as u64 / 2, text);
        }
        entries
    } else {
        uuid_table::parse(&bytes, count)
    };
    let entry_bytes = if is_old { OLD_ENTRY_BYTES } else { ENTRY_BYTES } as u64;
    let slots = Slots {
        entries,
        place,
        entry_bytes,
    };
    for finding in uuid_table::check(&slots.entries) {
        let offset = slots.offset(u32::try_from(finding.slot).unwrap_or(u32::MAX));
        let text = format!("slot {}: {}", finding.slot, finding.what);
        match finding.is_error {
            true => findings.error(finding.id, &slots.place, offset, text),
            false => findings.warn(finding.id, &slots.place, offset, text),
        }
    }
    Some(slots)
}

/// What the extents of an inode are held to.
#[derive(Clone, Copy)]
pub(super) enum Rule<'a, 'b> {
    /// Nobody's, or somebody's who does not want them: their content means nothing.
    Void,
    /// A flash-only volume of so many sectors.
    Flash(u64),
    /// A backing device, if it is here.
    Cached(Option<&'a Backing<'b>>),
}

/// The rule for an inode.
pub(super) fn rule<'a, 'b>(
    slots: &Slots,
    inode: u32,
    set_uuid: &[u8; 16],
    backings: &'a [Backing<'b>],
) -> Rule<'a, 'b> {
    match slots.kind(inode) {
        SlotKind::Free | SlotKind::Invalidated => Rule::Void,
        SlotKind::Flash => Rule::Flash(slots.get(inode).sectors),
        SlotKind::Cached => {
            let uuid = slots.get(inode).uuid;
            let backing = backings.iter().find(|b| b.superblock.uuid == uuid);
            match backing {
                // Run without the set, or let go of: its extents are obsolete, and the next attachment gives it a new slot.
                Some(b)
                    if matches!(
                        b.superblock.state(),
                        BackingState::None | BackingState::Stale
                    ) =>
                {
                    Rule::Void
                }
                Some(b) if b.set_uuid() == *set_uuid => Rule::Cached(Some(b)),
                _ => Rule::Cached(None),
            }
        }
    }
}
