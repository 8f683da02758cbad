//! The UUID table: which inode is which backing device or flash-only volume (`docs/format.md` 7).
//!
//! The table has no checksum and no magic, so parsing it cannot fail and proves nothing. [`check`] says how
//! plausible it is; garbage shows there. A slot that was given up is not used again while the index may hold keys
//! of whoever had it; a kernel never uses it again.

use crate::bytes::{array, is_zero, put, u32_at, u64_at};
use std::collections::BTreeMap;
use std::fmt;
use uuid::Uuid;

/// Bytes of an entry.
pub const ENTRY_BYTES: usize = 128;
/// Bytes of an entry under jset version 0.
pub const OLD_ENTRY_BYTES: usize = 64;
/// The uuid of a slot that was given up.
pub const INVALIDATED: [u8; 16] = [
    0xa0, 0x3e, 0xf8, 0xed, 0x3e, 0xe1, 0xb8, 0x78, 0xc8, 0x50, 0xfc, 0x5e, 0xcb, 0x16, 0xcd, 0x99,
];
/// The flag of a volume that has no backing device.
pub const FLASH_ONLY: u32 = 1;
/// A size that needs more sectors than this is garbage.
pub const SECTORS_LIMIT: u64 = 1 << 54;
const RESERVED_AT: usize = 72;

/// One slot of the table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UuidEntry {
    /// The backing device, something random for a flash-only volume, zero, or [`INVALIDATED`].
    pub uuid: [u8; 16],
    /// The label; may end in a newline, unlike the superblock's copy.
    pub label: [u8; 32],
    /// When the slot was taken, unix seconds.
    pub first_reg: u32,
    /// When its device was last registered.
    pub last_reg: u32,
    /// When the slot was given up.
    pub invalidated: u32,
    /// [`FLASH_ONLY`] or nothing.
    pub flags: u32,
    /// Size of a flash-only volume.
    pub sectors: u64,
    /// Zero by the format; kept as read.
    pub reserved: [u8; ENTRY_BYTES - RESERVED_AT],
}

impl UuidEntry {
    /// A free slot.
    pub const EMPTY: UuidEntry = UuidEntry {
        uuid: [0; 16],
        label: [0; 32],
        first_reg: 0,
        last_reg: 0,
        invalidated: 0,
        flags: 0,
        sectors: 0,
        reserved: [0; ENTRY_BYTES - RESERVED_AT],
    };

    /// The slot of a backing device attached `now`.
    pub fn cached(uuid: [u8; 16], label: [u8; 32], now: u32) -> UuidEntry {
        UuidEntry {
            uuid,
            label,
            first_reg: now,
            last_reg: now,
            ..Self::EMPTY
        }
    }

    /// The slot of a flash-only volume made `now`.
    pub fn flash_only(uuid: [u8; 16], label: [u8; 32], now: u32, sectors: u64) -> UuidEntry {
        UuidEntry {
            flags: FLASH_ONLY,
            sectors,
            ..Self::cached(uuid, label, now)
        }
    }

    /// Whether the slot is free.
    pub fn is_empty(&self) -> bool {
        self.uuid == [0; 16]
    }

    /// Whether the slot was given up; it is not free before all keys of it are gone.
    pub fn is_invalidated(&self) -> bool {
        self.uuid == INVALIDATED
    }

    /// Whether somebody has the slot.
    pub fn is_used(&self) -> bool {
        !self.is_empty() && !self.is_invalidated()
    }

    /// Whether this is a flash-only volume.
    pub fn is_flash_only(&self) -> bool {
        self.is_used() && self.flags & FLASH_ONLY != 0
    }

    /// Whether this is a flash-only volume with flags and a size that can be meant (F53, F55). The table has no
    /// checksum, and what garbage names is no volume.
    pub fn is_servable(&self) -> bool {
        self.is_flash_only()
            && self.flags == FLASH_ONLY
            && (1..SECTORS_LIMIT).contains(&self.sectors)
    }

    /// Gives the slot up. Label and times stay, for whoever looks.
    pub fn invalidate(&mut self, now: u32) {
        self.uuid = INVALIDATED;
        self.flags &= !FLASH_ONLY;
        self.invalidated = now;
    }

    /// The label up to its first NUL or final newline.
    pub fn label(&self) -> String {
        let text = crate::superblock::label_text(&self.label);
        text.trim_end_matches('\n').to_owned()
    }

    fn parse(bytes: &[u8]) -> UuidEntry {
        UuidEntry {
            flags: u32_at(bytes, 60),
            sectors: u64_at(bytes, 64),
            reserved: array(bytes, RESERVED_AT),
            ..Self::parse_old(bytes)
        }
    }

    fn parse_old(bytes: &[u8]) -> UuidEntry {
        UuidEntry {
            uuid: array(bytes, 0),
            label: array(bytes, 16),
            first_reg: u32_at(bytes, 48),
            last_reg: u32_at(bytes, 52),
            invalidated: u32_at(bytes, 56),
            ..Self::EMPTY
        }
    }

    fn write_to(&self, bytes: &mut [u8]) {
        put(bytes, 0, &self.uuid);
        put(bytes, 16, &self.label);
        put(bytes, 48, &self.first_reg.to_le_bytes());
        put(bytes, 52, &self.last_reg.to_le_bytes());
        put(bytes, 56, &self.invalidated.to_le_bytes());
        put(bytes, 60, &self.flags.to_le_bytes());
        put(bytes, 64, &self.sectors.to_le_bytes());
        put(bytes, RESERVED_AT, &self.reserved);
    }
}

impl fmt::Display for UuidEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "free");
        }
        if self.is_invalidated() {
            return write!(f, "invalidated {}", self.invalidated);
        }
        write!(
            f,
            "{} label {:?}",
            Uuid::from_bytes(self.uuid),
            self.label()
        )?;
        write!(
            f,
            " first_reg {} last_reg {}",
            self.first_reg, self.last_reg
        )?;
        if self.is_flash_only() {
            write!(f, " flash-only sectors {}", self.sectors)?;
        }
        Ok(())
    }
}

/// The table's `slots` entries; what lies behind `bytes` reads as free.
pub fn parse(bytes: &[u8], slots: usize) -> Vec<UuidEntry> {
    entries(bytes, slots, ENTRY_BYTES, UuidEntry::parse)
}

/// The table's `slots` entries in the format of jset version 0, and whether there is anything behind them.
/// If so, a kernel of that time used slots that cannot be converted: no writing to this set.
pub fn parse_old(bytes: &[u8], slots: usize) -> (Vec<UuidEntry>, bool) {
    let used = slots.saturating_mul(OLD_ENTRY_BYTES);
    let all = slots.saturating_mul(ENTRY_BYTES).min(bytes.len());
    let second_half = bytes.get(used..all).unwrap_or_default();
    let table = entries(bytes, slots, OLD_ENTRY_BYTES, UuidEntry::parse_old);
    (table, !is_zero(second_half))
}

fn entries(
    bytes: &[u8],
    slots: usize,
    entry_bytes: usize,
    parse: fn(&[u8]) -> UuidEntry,
) -> Vec<UuidEntry> {
    let mut table: Vec<_> = bytes
        .chunks_exact(entry_bytes)
        .take(slots)
        .map(parse)
        .collect();
    table.resize(slots, UuidEntry::EMPTY);
    table
}

/// The table's bytes, 128 for each slot.
pub fn encode(table: &[UuidEntry]) -> Vec<u8> {
    let mut bytes = vec![0; table.len() * ENTRY_BYTES];
    for (place, entry) in bytes.chunks_exact_mut(ENTRY_BYTES).zip(table) {
        entry.write_to(place);
    }
    bytes
}

/// Something about a table that should not be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The rule of `docs/format.md` 11 that is broken.
    pub id: &'static str,
    /// The slot.
    pub slot: usize,
    /// Whether the set may not be written to because of it.
    pub is_error: bool,
    /// What was found.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} uuid slot {}: {}", self.id, self.slot, self.what)
    }
}

/// How far a table is from plausible: F52, F54, F55, and of F53 what does not need the index.
pub fn check(table: &[UuidEntry]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut owners = BTreeMap::new();
    for (slot, entry) in table.iter().enumerate() {
        let mut found = |id, is_error, what: String| {
            findings.push(Finding {
                id,
                slot,
                is_error,
                what,
            });
        };
        if entry.is_empty() {
            if *entry != UuidEntry::EMPTY {
                found("F54", false, "free, but not all zero".into());
            }
        } else if entry.is_invalidated() {
            if entry.invalidated == 0 {
                found("F54", false, "invalidated at no time".into());
            }
        } else {
            if let Some(owner) = owners.insert(entry.uuid, slot) {
                let uuid = Uuid::from_bytes(entry.uuid);
                found("F52", true, format!("{uuid} is in slot {owner} as well"));
            }
            check_used(entry, found);
        }
    }
    findings
}

fn check_used(entry: &UuidEntry, mut found: impl FnMut(&'static str, bool, String)) {
    let (first, last) = (entry.first_reg, entry.last_reg);
    if first == 0 || first > last {
        found("F54", false, format!("first_reg {first}, last_reg {last}"));
    }
    if entry.flags & !FLASH_ONLY != 0 {
        found("F55", true, format!("flags {:#x}", entry.flags));
    }
    let sectors = entry.sectors;
    if sectors >= SECTORS_LIMIT || sectors != 0 && !entry.is_flash_only() {
        found("F55", true, format!("{sectors} sectors"));
    }
    if sectors == 0 && entry.is_flash_only() {
        found("F53", false, "a flash-only volume of no sectors".into());
    }
}

/// A uuid in its usual form: 32 hexadecimal digits in five groups.
pub fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "{}-{}-{}-{}-{}",
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sound() -> Vec<UuidEntry> {
        let mut gone = UuidEntry::flash_only([3; 16], [0; 32], 10, 800);
        gone.invalidate(20);
        vec![
            UuidEntry::cached([1; 16], [b'a'; 32], 10),
            UuidEntry::flash_only([2; 16], [0; 32], 11, 4096),
            gone,
            UuidEntry::EMPTY,
        ]
    }

    fn ids(table: &[UuidEntry]) -> Vec<(&'static str, bool, usize)> {
        let findings = check(table).into_iter();
        findings.map(|f| (f.id, f.is_error, f.slot)).collect()
    }

    #[test]
    fn a_sound_table_has_no_findings_and_survives_writing() {
        let table = sound();
        assert_eq!(ids(&table), []);
        assert_eq!(parse(&encode(&table), 4), table);
        assert!(table[1].is_flash_only() && !table[2].is_flash_only());
        assert_eq!(table[2].sectors, 800, "a removed volume keeps its size");
    }

    #[test]
    fn slots_behind_the_bytes_read_as_free() {
        let bytes = encode(&sound());
        let table = parse(&bytes[..200], 6);
        assert_eq!(table.len(), 6);
        assert!(table[1..].iter().all(UuidEntry::is_empty));
    }

    #[test]
    fn each_kind_of_nonsense_has_its_finding() {
        let with = |change: fn(&mut Vec<UuidEntry>)| {
            let mut table = sound();
            change(&mut table);
            ids(&table)
        };
        assert_eq!(with(|t| t[1].uuid = [1; 16]), [("F52", true, 1)]);
        assert_eq!(with(|t| t[1].sectors = 0), [("F53", false, 1)]);
        assert_eq!(with(|t| t[3].reserved[5] = 1), [("F54", false, 3)]);
        assert_eq!(with(|t| t[2].invalidated = 0), [("F54", false, 2)]);
        assert_eq!(with(|t| t[0].first_reg = 0), [("F54", false, 0)]);
        assert_eq!(with(|t| t[0].last_reg = 9), [("F54", false, 0)]);
        assert_eq!(with(|t| t[0].flags = 2), [("F55", true, 0)]);
        assert_eq!(with(|t| t[0].sectors = 8), [("F55", true, 0)]);
        assert_eq!(with(|t| t[1].sectors = 1 << 54), [("F55", true, 1)]);
    }

    #[test]
    fn garbage_is_no_volume_to_serve() {
        let volume = sound().remove(1);
        let servable = |change: fn(&mut UuidEntry)| {
            let mut volume = volume.clone();
            change(&mut volume);
            volume.is_servable()
        };
        assert!(servable(|_| {}));
        assert!(!servable(|v| v.flags |= 2));
        assert!(!servable(|v| v.flags = 0));
        assert!(!servable(|v| v.sectors = 0));
        assert!(!servable(|v| v.sectors = 1 << 54));
        assert!(!servable(|v| v.invalidate(30)));
    }

    #[test]
    fn two_invalidated_slots_are_no_duplicate() {
        let mut table = sound();
        table[0].invalidate(30);
        assert_eq!(ids(&table), []);
    }

    #[test]
    fn an_old_table_is_the_first_half_of_its_bytes() {
        let new = sound();
        let mut bytes = vec![0; 4 * ENTRY_BYTES];
        put(&mut bytes, 0, &encode(&new[..1])[..60]);
        let (table, more) = parse_old(&bytes, 4);
        assert_eq!((table.len(), more), (4, false));
        assert_eq!(table[0], new[0]);
        bytes[60] = 7;
        assert_eq!(parse_old(&bytes, 4).0[0].flags, 0, "padding is no flags");
        bytes[4 * OLD_ENTRY_BYTES] = 1;
        assert!(parse_old(&bytes, 4).1);
    }

    #[test]
    fn a_label_loses_its_newline() {
        let mut entry = UuidEntry::cached([1; 16], [0; 32], 1);
        entry.label[..6].copy_from_slice(b"attic\n");
        assert_eq!(entry.label(), "attic");
    }

    proptest! {
        #[test]
        fn any_bytes_survive_reading_and_writing(
            bytes in proptest::collection::vec(any::<u8>(), 0..1000),
        ) {
            crate::fuzzing::uuids(&bytes);
        }
    }
}
