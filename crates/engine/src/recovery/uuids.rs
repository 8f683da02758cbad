//! Reading the UUID table, which carries no checksum and is therefore judged by plausibility.
//!
//! `docs/format.md` 7 and, for the rules, 11 (F50-F55).

use super::Newest;
use super::findings::{Findings, LoadError, Severity};
use crate::extents::ExtentMap;
use brigade_env::{Device, Env, SECTOR_BYTES};
use brigade_format::superblock::CacheGeometry;
use brigade_format::uuid_table::{self, UuidEntry};
use brigade_format::{Key, Pos};
use std::collections::{BTreeMap, BTreeSet};

const STRUCTURE: &str = "uuid table";

/// The table as read.
pub(super) struct Uuids {
    pub(super) entries: Vec<UuidEntry>,
    pub(super) offset: u64,
    pub(super) bytes_read: u64,
}

impl Uuids {
    /// The slot's device or volume was removed: what its keys say matters to nobody.
    pub(super) fn is_removed(&self, inode: u32) -> bool {
        self.entries
            .get(inode as usize)
            .is_some_and(UuidEntry::is_invalidated)
    }

    /// The slot belongs to a backing device.
    pub(super) fn is_cached(&self, inode: u32) -> bool {
        let is_cached = |entry: &UuidEntry| entry.is_used() && !entry.is_flash_only();
        self.entries.get(inode as usize).is_some_and(is_cached)
    }
}

/// Checks the key of the table (F50).
pub(super) fn check_key(
    geometry: &CacheGeometry,
    newest: &Newest,
    findings: &mut Findings,
) -> Result<(), LoadError> {
    let (key, structure, offset) = (&newest.uuid_bucket, "uuid bucket key", newest.byte_offset);
    geometry
        .key_rules()
        .check_node(key)
        .map_err(|e| LoadError::format("F50", structure, offset, &e))?;
    if key.pos() != Pos::ZERO {
        return Err(LoadError::new(
            "F50",
            structure,
            offset,
            "its position is not 0",
        ));
    }
    if key.size() != geometry.meta_sectors {
        let text = format_args!(
            "{} sectors long instead of {}",
            key.size(),
            geometry.meta_sectors
        );
        findings.warn("F50", structure, offset, text);
    }
    Ok(())
}

/// Reads the table its key names; a shorter one leaves the slots behind its end empty.
pub(super) async fn read<E: Env>(
    env: &E,
    device: &E::Device,
    geometry: &CacheGeometry,
    newest: &Newest,
    findings: &mut Findings,
) -> Result<Uuids, LoadError> {
    let key: &Key = &newest.uuid_bucket;
    let offset = key
        .ptr(0)
        .map_or(0, |ptr| ptr.sector())
        .saturating_mul(SECTOR_BYTES);
    let bytes = u64::from(key.size().min(geometry.meta_sectors)) * SECTOR_BYTES;
    let buffer = env.buffers().get(bytes as usize);
    let buffer = device
        .read(offset, buffer)
        .await
        .map_err(|e| LoadError::io(STRUCTURE, offset, &e))?;
    let slots = geometry.uuid_slots as usize;
    let mut entries = if newest.version == 0 {
        let (entries, has_more) = uuid_table::parse_old(&buffer, slots);
        if has_more {
            let text = "entries in the second half of an old table would be forgotten";
            findings.report("F50", Severity::BarsWriting, STRUCTURE, offset, text)?;
        }
        entries
    } else {
        uuid_table::parse(&buffer, slots)
    };
    entries.resize(slots, UuidEntry::EMPTY);
    Ok(Uuids {
        entries,
        offset,
        bytes_read: bytes,
    })
}

/// What the index holds of one inode.
#[derive(Default)]
pub(super) struct Use {
    pub(super) end: u64,
    pub(super) has_dirty: bool,
    pub(super) has_clean: bool,
}

/// What an index holds of each inode.
pub(super) fn uses(index: &ExtentMap) -> BTreeMap<u32, Use> {
    let mut uses: BTreeMap<u32, Use> = BTreeMap::new();
    let mut current = (u32::MAX, Use::default());
    for e in index.iter() {
        if e.inode != current.0 {
            let before = std::mem::replace(&mut current, (e.inode, Use::default()));
            uses.insert(before.0, before.1);
        }
        current.1.end = e.end;
        current.1.has_dirty |= e.dirty;
        current.1.has_clean |= !e.dirty;
    }
    uses.insert(current.0, current.1);
    uses.remove(&u32::MAX);
    uses
}

/// F51-F55: is the table plausible, also against what the index holds?
pub(super) fn judge(
    uuids: &Uuids,
    uses: &BTreeMap<u32, Use>,
    inodes: &BTreeSet<u32>,
    findings: &mut Findings,
) -> Result<(), LoadError> {
    judge_slots(uuids, uses, findings)?;
    judge_inodes(uuids, uses, inodes, findings)
}

fn judge_slots(
    uuids: &Uuids,
    uses: &BTreeMap<u32, Use>,
    findings: &mut Findings,
) -> Result<(), LoadError> {
    for found in uuid_table::check(&uuids.entries) {
        let severity = match (found.is_error, found.id) {
            (true, "F52") => Severity::Fatal,
            (true, _) => Severity::BarsWriting,
            (false, _) => Severity::Warning,
        };
        let offset = uuids.offset + uuid_table::ENTRY_BYTES as u64 * found.slot as u64;
        findings.report(
            found.id,
            severity,
            format_args!("{STRUCTURE} slot {}", found.slot),
            offset,
            &found.what,
        )?;
    }
    for (&inode, used) in uses {
        let Some(entry) = uuids
            .entries
            .get(inode as usize)
            .filter(|entry| entry.is_used())
        else {
            continue;
        };
        let offset = uuids.offset + uuid_table::ENTRY_BYTES as u64 * u64::from(inode);
        if entry.is_flash_only() && used.end > entry.sectors {
            let text = format_args!(
                "volume of slot {inode} has data up to {}, beyond {}",
                used.end, entry.sectors
            );
            findings.warn("F53", STRUCTURE, offset, text);
        }
        if entry.is_flash_only() && used.has_clean {
            findings.warn(
                "F53",
                STRUCTURE,
                offset,
                format_args!("volume of slot {inode} has data that is not dirty"),
            );
        }
    }
    Ok(())
}

fn judge_inodes(
    uuids: &Uuids,
    uses: &BTreeMap<u32, Use>,
    inodes: &BTreeSet<u32>,
    findings: &mut Findings,
) -> Result<(), LoadError> {
    for &inode in inodes {
        let slot = uuids.entries.get(inode as usize);
        let offset = uuids.offset.saturating_add(128 * u64::from(inode));
        match (slot, uses.get(&inode)) {
            (Some(entry), used) if entry.is_invalidated() => {
                if let Some(used) = used {
                    let kind = if used.has_dirty {
                        "dirty and other"
                    } else {
                        "clean"
                    };
                    findings.warn(
                        "F51",
                        STRUCTURE,
                        offset,
                        format_args!("{kind} data of the removed slot {inode}"),
                    );
                }
            }
            (Some(entry), _) if !entry.is_empty() => {}
            (_, Some(_)) => {
                let text = format!("data of inode {inode}, a slot that was never given out");
                findings.report("F51", Severity::BarsWriting, STRUCTURE, offset, text)?;
            }
            (_, None) => {
                let text = format_args!("keys of inode {inode}, a slot that was never given out");
                findings.warn("F51", STRUCTURE, offset, text);
            }
        }
    }
    Ok(())
}
