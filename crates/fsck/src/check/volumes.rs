//! Slots, extents and backing devices beside each other (F51, F61, F62), and the view of them.

use super::devices::{Backing, Cache, Known};
use super::extents::Usage;
use super::report::{Findings, SlotKind, VolumeView};
use super::slots::Slots;
use brigade_format::BackingState;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Checks them; `usage` is `None` if the extents are not known.
pub(super) fn check(
    cache: &Cache<'_>,
    slots: &Slots,
    usage: Option<&BTreeMap<u32, Usage>>,
    backings: &[Backing<'_>],
    findings: &mut Findings,
) -> Vec<VolumeView> {
    let volumes: Vec<VolumeView> = volumes(slots, usage, |volume| owner(slots, volume, findings));
    strangers(cache, slots, &volumes, backings, findings);
    for backing in backings {
        attached(cache, slots, &volumes, usage.is_some(), backing, findings);
    }
    volumes
}

/// How many inodes without a slot are kept for the view.
const STRANGERS_MAX: usize = 1000;

/// The view of every slot in use and every inode with extents; all of them are shown to `look`.
fn volumes(
    slots: &Slots,
    usage: Option<&BTreeMap<u32, Usage>>,
    mut look: impl FnMut(&VolumeView),
) -> Vec<VolumeView> {
    let used = (0..)
        .zip(&slots.entries)
        .filter(|(_, entry)| !entry.is_empty());
    let mut inodes: BTreeSet<u32> = used.map(|(slot, _)| slot).collect();
    inodes.extend(usage.into_iter().flat_map(|usage| usage.keys().copied()));
    let mut views = Vec::new();
    for slot in inodes {
        let usage = usage.and_then(|usage| usage.get(&slot)).copied();
        let usage = usage.unwrap_or_default();
        let entry = slots.get(slot);
        let view = VolumeView {
            slot,
            kind: slots.kind(slot),
            uuid: entry.uuid,
            label: entry.label(),
            extents: usage.extents,
            clean_sectors: usage.clean_sectors,
            dirty_sectors: usage.dirty_sectors,
        };
        look(&view);
        if views.len() < slots.entries.len() + STRANGERS_MAX {
            views.push(view);
        }
    }
    views
}

/// F51.
fn owner(slots: &Slots, volume: &VolumeView, findings: &mut Findings) {
    if volume.extents == 0 {
        return;
    }
    let at = slots.offset(volume.slot);
    let sectors = volume.clean_sectors + volume.dirty_sectors;
    let text = format!(
        "slot {}: {} extents with {sectors} sectors, {} of them dirty",
        volume.slot, volume.extents, volume.dirty_sectors
    );
    match volume.kind {
        SlotKind::Free => findings.error(
            "F51",
            &slots.place,
            at,
            format_args!("{text}, of a slot that was never given to anybody"),
        ),
        SlotKind::Invalidated => findings.note(
            "F51",
            &slots.place,
            at,
            format_args!("{text}, orphans of a slot that was given up"),
        ),
        SlotKind::Cached | SlotKind::Flash => {}
    }
}

/// Slots whose backing device is not here: what they hold cannot be compared with it. If a dirty device of the set is
/// without a slot at the same time, the uuid in the slot may be the one that is wrong.
fn strangers(
    cache: &Cache<'_>,
    slots: &Slots,
    volumes: &[VolumeView],
    backings: &[Backing<'_>],
    findings: &mut Findings,
) {
    let is_here = |uuid: &[u8; 16]| backings.iter().any(|b| b.superblock.uuid == *uuid);
    let has_homeless = backings.iter().any(|b| {
        b.set_uuid() == cache.superblock.set_uuid
            && b.superblock.state() == BackingState::Dirty
            && slots.slot_of(&b.superblock.uuid).is_none()
    });
    let cached = volumes
        .iter()
        .filter(|v| v.kind == SlotKind::Cached && v.extents > 0);
    for volume in cached.filter(|volume| !is_here(&volume.uuid)) {
        let text = format!(
            "slot {}: backing device {} with {} dirty sectors is not among the devices given, or not usable",
            volume.slot,
            Uuid::from_bytes(volume.uuid),
            volume.dirty_sectors
        );
        let at = slots.offset(volume.slot);
        if has_homeless {
            let text = format!("{text}, and a dirty device of the set has no slot");
            findings.error("F61", &slots.place, at, text);
        } else {
            findings.note("F61", &slots.place, at, text);
        }
    }
}

/// F61, F62.
fn attached(
    cache: &Cache<'_>,
    slots: &Slots,
    volumes: &[VolumeView],
    has_extents: bool,
    backing: &Backing<'_>,
    findings: &mut Findings,
) {
    let place = backing.place();
    let slot = slots.slot_of(&backing.superblock.uuid);
    let dirty_sectors = volumes
        .iter()
        .find(|volume| Some(volume.slot) == slot)
        .map_or(0, |volume| volume.dirty_sectors);
    let set = Uuid::from_bytes(cache.superblock.set_uuid);
    if backing.set_uuid() != cache.superblock.set_uuid {
        let Some(slot) = slot.filter(|_| backing.is_attached()) else {
            return;
        };
        let other = Uuid::from_bytes(backing.set_uuid());
        let text = format!(
            "it names set {other}, but has slot {slot} of set {set} ({}) with {dirty_sectors} dirty sectors",
            cache.name
        );
        return match dirty_sectors {
            0 => findings.warn("F61", &place, place.start + 56, text),
            _ => findings.error("F61", &place, place.start + 56, text),
        };
    }
    findings.report.backings[backing.view].slot = slot;
    let (ours, theirs) = (backing.superblock.block_size, cache.superblock.block_size);
    if ours < theirs {
        let text = format!(
            "blocks of {ours} sectors, smaller than the set's of {theirs}: it cannot be attached"
        );
        match backing.is_attached() {
            true => findings.error("F60", &place, place.start + 192, text),
            false => findings.warn("F60", &place, place.start + 192, text),
        }
    }
    let state = backing.superblock.state();
    match (state, slot) {
        (BackingState::Dirty, None) => {
            let text = format!("dirty, and set {set} ({}) has no slot for it", cache.name);
            findings.error("F61", &place, place.start, text);
        }
        (BackingState::Clean, None) => {
            let text = format!(
                "clean, and set {set} ({}) has no slot for it yet",
                cache.name
            );
            findings.note("F61", &place, place.start, text);
        }
        (BackingState::Clean, Some(slot)) if has_extents && dirty_sectors > 0 => {
            let text =
                format!("clean, and the cache has {dirty_sectors} dirty sectors in slot {slot}");
            findings.note("F62", &place, place.start + 104, text);
        }
        (BackingState::None | BackingState::Stale, Some(slot)) if dirty_sectors > 0 => {
            let text = format!(
                "{state}: the {dirty_sectors} dirty sectors that the cache has in slot {slot} are void"
            );
            findings.note("F61", &place, place.start + 104, text);
        }
        _ => {}
    }
}

/// A blank set: it has no slots.
pub(super) fn blank(cache: &Cache<'_>, backings: &[Backing<'_>], findings: &mut Findings) {
    let of_set = |b: &&Backing<'_>| b.set_uuid() == cache.superblock.set_uuid;
    for backing in backings.iter().filter(of_set) {
        let place = backing.place();
        let text = format!(
            "{}, and its set ({}) is blank",
            backing.superblock.state(),
            cache.name
        );
        match backing.superblock.state() {
            BackingState::Dirty => findings.error("F61", &place, place.start, text),
            BackingState::Clean => findings.note("F61", &place, place.start, text),
            _ => {}
        }
    }
}

/// Attached devices whose set is not among those given: nothing can be said about them.
pub(super) fn without_set(known: &Known<'_>, findings: &mut Findings) {
    for backing in known.backings.iter().filter(|b| b.is_attached()) {
        let has_set = |cache: &Cache<'_>| cache.superblock.set_uuid == backing.set_uuid();
        if !known.caches.iter().any(has_set) {
            let place = backing.place();
            let text = format!(
                "{}, and its set {} is not among the devices given",
                backing.superblock.state(),
                Uuid::from_bytes(backing.set_uuid())
            );
            findings.note("F61", &place, place.start, text);
        }
    }
}
