//! What the devices given say of themselves, and what of it must not be served. Nothing here writes.

use super::attach::{self, Refusal};
use super::open::{Found, Prepared};
use crate::device::{Disk, Illness};
use crate::error::{Error, Poison};
use crate::health::Limits;
use crate::limits::{BUCKET_MEMORY_BYTES, BUCKETS_MEMORY_BYTES_MIN, SECTOR};
use crate::options::Options;
use crate::recovery;
use crate::settings::{Knob, Scope, Settings};
use crate::steps::Steps;
use brigade_env::Env;
use brigade_format::uuid_table::UuidEntry;
use brigade_format::{BackingState, Role, Superblock, uuid_text};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// A backing device whose superblock was read and found good.
pub(super) struct FoundBacking<E: Env> {
    pub(super) disk: Rc<Disk<E>>,
    pub(super) superblock: Superblock,
    pub(super) data_offset: u64,
}

async fn read_superblock<E: Env>(disk: &Disk<E>, wanted: Role) -> Result<Superblock, Error> {
    read_superblock_bytes(disk)?;
    let bytes = disk
        .read_bytes(8, 4096)
        .await
        .map_err(|error| Error::io(disk.name(), "superblock at byte 4096", &error))?;
    let superblock = Superblock::parse(&bytes)
        .map_err(|error| Error::format(disk.name(), error.shifted(4096)))?;
    if superblock.role() != wanted {
        let (is, wants) = match wanted {
            Role::Cache => ("backing", "cache"),
            Role::Backing => ("cache", "backing"),
        };
        let what = format!(
            "superblock version at byte 4112: found {} ({is} device), expected a {wants} device",
            superblock.version
        );
        return Err(Error::format(disk.name(), what));
    }
    Ok(superblock)
}

/// Whether the device is large enough for its own geometry, in the words of an error.
fn read_superblock_bytes<E: Env>(disk: &Disk<E>) -> Result<(), Error> {
    if disk.geometry().size_bytes < 16 * SECTOR {
        let what = format!(
            "superblock at byte 4096: the device has only {} bytes",
            disk.geometry().size_bytes
        );
        return Err(Error::format(disk.name(), what));
    }
    Ok(())
}

pub(super) async fn find_cache<E: Env>(
    env: &E,
    device: E::Device,
    options: &Options,
) -> Result<Found<E>, Error> {
    let poison = Rc::new(Poison::default());
    let disk = Disk::new(env, device, poison.clone());
    let superblock = read_superblock(&disk, Role::Cache).await?;
    let logical = disk.geometry().logical_block_bytes;
    let geometry = superblock
        .cache_geometry(disk.sectors(), logical)
        .map_err(|error| Error::format(disk.name(), error.shifted(4096)))?;
    // A sparse file of some megabytes may say that it has any number of buckets.
    let needed = geometry.nbuckets.saturating_mul(BUCKET_MEMORY_BYTES);
    if needed > options.memory_bytes.max(BUCKETS_MEMORY_BYTES_MIN) {
        let what = format!(
            "superblock nbuckets: the tables of {} buckets need {} MiB of memory, the limit is {} MiB",
            geometry.nbuckets,
            needed >> 20,
            options.memory_bytes >> 20
        );
        return Err(Error::refused(disk.name(), what));
    }
    let settings = settings_of(&superblock, options);
    watch(env, &disk, &poison, &settings);
    Ok(Found {
        disk,
        poison,
        superblock,
        geometry,
        steps: Rc::new(Steps::default()),
        settings,
    })
}

/// A set whose device has too many errors, or is gone, has failed; what a failed set does is a choice.
fn watch<E: Env>(env: &E, disk: &Rc<Disk<E>>, poison: &Rc<Poison>, settings: &Rc<Settings>) {
    let (to_throw, env, choices) = (Rc::downgrade(poison), env.clone(), settings.clone());
    let tell = move |illness: Illness| {
        if let Some(poison) = to_throw.upgrade() {
            match illness {
                Illness::Errors(last) => poison.throw(format!("too many errors, the last: {last}")),
                Illness::Gone(last) => poison.throw(format!("the device is gone: {last}")),
            }
        }
    };
    disk.watch(Limits::CACHE, settings.clone(), tell);
    poison.when_thrown(move || {
        if choices.get(Knob::Errors) != 0 {
            env.end_process("a cache set failed, and `errors` is `panic`");
        }
    });
}

/// What was asked for, and of what the superblock has what that says.
fn settings_of(superblock: &Superblock, options: &Options) -> Rc<Settings> {
    let mut initial = options.settings.clone();
    let replacement = superblock.replacement().map_or(0, |it| it as u64);
    initial.insert(Knob::Discard, u64::from(superblock.discard()));
    initial.insert(Knob::CacheReplacementPolicy, replacement);
    Rc::new(Settings::new(Scope::CacheSet, &initial))
}

pub(super) async fn find_backing<E: Env>(
    env: &E,
    device: E::Device,
) -> Result<FoundBacking<E>, Error> {
    let disk = Disk::new(env, device, Rc::new(Poison::default()));
    let superblock = read_superblock(&disk, Role::Backing).await?;
    let logical = disk.geometry().logical_block_bytes;
    let data_offset = superblock
        .backing_data_offset(disk.sectors(), logical)
        .map_err(|error| Error::format(disk.name(), error.shifted(4096)))?;
    Ok(FoundBacking {
        disk,
        superblock,
        data_offset,
    })
}

/// A copy cannot be told from the original: given both, neither is used (docs/format.md 8.2).
pub(super) fn refuse_copies<E: Env>(
    caches: &[Found<E>],
    backings: &[FoundBacking<E>],
) -> Result<(), Error> {
    let caches = caches
        .iter()
        .map(|found| (found.disk.name(), found.superblock.set_uuid));
    refuse_same("superblock set uuid at byte 4152", caches)?;
    let backings = backings
        .iter()
        .map(|found| (found.disk.name(), found.superblock.uuid));
    refuse_same("superblock uuid at byte 4136", backings)
}

/// Refuses the first device that says the same of itself as one before it.
fn refuse_same<'a>(
    structure: &str,
    devices: impl Iterator<Item = (&'a str, [u8; 16])>,
) -> Result<(), Error> {
    let mut seen = BTreeMap::new();
    for (name, uuid) in devices {
        if let Some(other) = seen.insert(uuid, name) {
            let what = format!("{structure}: {other} has the same; give only one");
            return Err(Error::refused(name, what));
        }
    }
    Ok(())
}

/// A cache device alone is served for its flash volumes, and for those to come.
pub(super) fn warn_of_nothing<E: Env>(
    sets: &[Prepared<E>],
    backings: &[FoundBacking<E>],
) -> Vec<String> {
    let has_flash = |set: &Prepared<E>| set.uuids().iter().any(UuidEntry::is_servable);
    match sets.first() {
        Some(set) if backings.is_empty() && !sets.iter().any(has_flash) => vec![format!(
            "{}: no volume to serve yet: no backing device given, and the set has no flash volume",
            set.found.disk.name()
        )],
        _ => Vec::new(),
    }
}

/// Whether a device may be attached to, or run beside, what was read. Nothing has been written so far.
pub(super) async fn check_attach<E: Env>(
    env: &E,
    sets: &[Prepared<E>],
    backing: &FoundBacking<E>,
    options: &Options,
) -> Result<(), Error> {
    let mine = |set: &&Prepared<E>| set.found.superblock.set_uuid == backing.superblock.set_uuid;
    let Some(set) = sets.iter().find(mine) else {
        return Ok(());
    };
    let name = backing.disk.name();
    if set.loaded.is_none() && backing.superblock.state() == BackingState::Dirty {
        let what = "backing superblock: state is dirty, but its cache set is blank: its newer data is not there";
        return Err(Error::refused(name, what));
    }
    let none_seen = BTreeSet::new();
    let seen = set
        .loaded
        .as_ref()
        .map_or(&none_seen, |loaded| &loaded.inodes_seen);
    let plan = attach::plan(
        &set.uuids(),
        seen,
        &backing.superblock,
        set.found.geometry.block_sectors,
        0,
        !set.is_read_only(options),
    );
    let plan = match plan {
        Ok(plan) => plan,
        Err(Refusal::RunsAlone(_) | Refusal::UntilSwept) => return Ok(()),
        Err(Refusal::Waits(why)) => {
            return Err(Error::refused(name, format!("backing superblock: {why}")));
        }
    };
    let (low, high) = (backing.data_offset, backing.disk.sectors());
    let is_outside =
        |extent: crate::extents::Extent| extent.dirty && (extent.start < low || extent.end > high);
    let Some(loaded) = &set.loaded else {
        return Ok(());
    };
    if plan.is_new || set.is_read_only(options) {
        return Ok(());
    }
    let found = &set.found;
    let is_dirty_outside = match (&loaded.held, loaded.is_counted) {
        (Some(held), _) => {
            let dirty = held.inodes.get(&plan.slot).and_then(|inode| inode.dirty);
            dirty.is_some_and(|(start, end)| start < low || end > high)
        }
        (None, true) => {
            let mut extents = loaded.index.range(plan.slot, 0, u64::MAX >> 1);
            extents.any(is_outside)
        }
        (None, false) => {
            let (device, geometry) = (found.disk.device(), &found.geometry);
            recovery::is_dirty_outside(env, device, geometry, loaded, plan.slot, (low, high))
                .await
                .map_err(|error| Error::format(found.disk.name(), error))?
        }
    };
    if is_dirty_outside {
        let what = format!(
            "size: the cache holds dirty data outside sectors {low}..{high} of this device; it can only be served read-only (F64)"
        );
        return Err(Error::refused(name, what));
    }
    Ok(())
}

/// A device whose data may be partly in a cache is not served without it.
pub(super) fn refuse_orphans<E: Env>(
    caches: &[Found<E>],
    backings: &[FoundBacking<E>],
) -> Result<(), Error> {
    for backing in backings {
        let uuid = backing.superblock.set_uuid;
        let state = backing.superblock.state();
        let has_set = caches.iter().any(|cache| cache.superblock.set_uuid == uuid);
        if !has_set && matches!(state, BackingState::Clean | BackingState::Dirty) {
            let what = format!(
                "superblock set uuid at byte 4152: state is {state} and its cache set {} is not among the devices given",
                uuid_text(&uuid)
            );
            return Err(Error::refused(backing.disk.name(), what));
        }
    }
    Ok(())
}
