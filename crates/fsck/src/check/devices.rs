//! Superblocks, and which device belongs to which set (F1 to F5, F60).

use super::report::{BackingView, Findings, Place};
use crate::source::{Device, ReadAt};
use brigade_format::superblock::{self, CacheGeometry, Role, Superblock};
use brigade_format::{BackingState, FormatError, SECTOR_BYTES};
use uuid::Uuid;

/// A cache device with a superblock that can be used.
pub(super) struct Cache<'a> {
    /// Among the devices given.
    pub index: usize,
    pub name: String,
    pub source: &'a dyn ReadAt,
    pub superblock: Superblock,
    pub geometry: CacheGeometry,
}

impl Cache<'_> {
    pub fn place(&self, structure: impl Into<String>, start: u64, length: u64) -> Place {
        Place {
            device: self.name.clone(),
            structure: structure.into(),
            start,
            length,
        }
    }

    pub fn superblock_place(&self) -> Place {
        superblock_place(&self.name, Role::Cache)
    }
}

/// A backing device with a superblock that can be used.
pub(super) struct Backing<'a> {
    pub name: String,
    pub source: &'a dyn ReadAt,
    pub superblock: Superblock,
    /// First sector of its data.
    pub data_start: u64,
    pub sectors: u64,
    /// Of the views in the report.
    pub view: usize,
}

impl Backing<'_> {
    pub fn place(&self) -> Place {
        superblock_place(&self.name, Role::Backing)
    }

    pub fn set_uuid(&self) -> [u8; 16] {
        self.superblock.set_uuid
    }

    /// Clean or dirty: it belongs to the set it names.
    pub fn is_attached(&self) -> bool {
        matches!(
            self.superblock.state(),
            BackingState::Clean | BackingState::Dirty
        )
    }
}

/// All devices that can be used.
#[derive(Default)]
pub(super) struct Known<'a> {
    pub caches: Vec<Cache<'a>>,
    pub backings: Vec<Backing<'a>>,
}

fn superblock_place(device: &str, role: Role) -> Place {
    let structure = match role {
        Role::Cache => "superblock",
        Role::Backing => "backing superblock",
    };
    Place {
        device: device.to_owned(),
        structure: structure.to_owned(),
        start: superblock::DEVICE_OFFSET,
        length: superblock::BYTES as u64,
    }
}

/// Reads every superblock.
pub(super) fn read<'a>(devices: &[Device<'a>], findings: &mut Findings) -> Known<'a> {
    let mut known = Known::default();
    for (index, device) in devices.iter().enumerate() {
        read_one(index, device, findings, &mut known);
    }
    twins(&known, findings);
    known
}

fn read_one<'a>(index: usize, device: &Device<'a>, findings: &mut Findings, known: &mut Known<'a>) {
    let place = superblock_place(&device.name, Role::Cache);
    if device.size_bytes < superblock::DEVICE_OFFSET + superblock::BYTES as u64 {
        let text = format!("{} bytes are too few for one", device.size_bytes);
        return findings.error("F1", &place, place.start, text);
    }
    let bytes = match superblock_bytes(device) {
        Ok(bytes) => bytes,
        Err(error) => {
            return findings.unchecked(format!("{}: superblock: {error}", device.name));
        }
    };
    let role = claimed_role(&bytes);
    let place = superblock_place(&device.name, role);
    let superblock = match Superblock::parse(&bytes) {
        Ok(superblock) => superblock,
        Err(error) => return report(findings, &place, parse_rule(&error, role), &error),
    };
    let logical = device.logical_block_bytes;
    let sectors = device.size_bytes / SECTOR_BYTES;
    flags(&superblock, &place, findings);
    match role {
        Role::Cache => match superblock.cache_geometry(sectors, logical) {
            Ok(geometry) => known.caches.push(Cache {
                index,
                name: device.name.clone(),
                source: device.source,
                superblock,
                geometry,
            }),
            Err(error) => report(findings, &place, geometry_rule(&error), &error),
        },
        Role::Backing => match superblock.backing_data_offset(sectors, logical) {
            Ok(data_start) => {
                let view = findings.report.backings.len();
                findings.report.backings.push(BackingView {
                    device: device.name.clone(),
                    uuid: superblock.uuid,
                    set_uuid: superblock.set_uuid,
                    state: superblock.state(),
                    mode: superblock.cache_mode(),
                    slot: None,
                });
                known.backings.push(Backing {
                    name: device.name.clone(),
                    source: device.source,
                    superblock,
                    data_start,
                    sectors,
                    view,
                });
            }
            Err(error) => report(findings, &place, "F60", &error),
        },
    }
}

fn superblock_bytes(device: &Device<'_>) -> std::io::Result<Vec<u8>> {
    let (start, length) = (superblock::DEVICE_OFFSET, superblock::BYTES);
    crate::source::read(device.source, start, length)
}

/// By the version field, also where nothing else is right.
fn claimed_role(bytes: &[u8]) -> Role {
    let version = bytes
        .get(16..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |field| u64::from_le_bytes(*field));
    Role::of_version(version).unwrap_or(Role::Cache)
}

fn parse_rule(error: &FormatError, role: Role) -> &'static str {
    match (role, error.structure) {
        (Role::Backing, _) => "F60",
        (Role::Cache, "superblock version") => "F3",
        (Role::Cache, "superblock njournal") => "F4",
        (Role::Cache, _) => "F1",
    }
}

fn geometry_rule(error: &FormatError) -> &'static str {
    match error.structure {
        "superblock version"
        | "superblock feature_compat"
        | "superblock feature_incompat"
        | "superblock feature_ro_compat"
        | "superblock nr_in_set"
        | "superblock nr_this_dev" => "F3",
        "superblock journal bucket" | "superblock njournal" => "F4",
        _ => "F2",
    }
}

fn report(findings: &mut Findings, place: &Place, id: &'static str, error: &FormatError) {
    let offset = place.start.saturating_add(error.offset);
    let FormatError {
        structure,
        found,
        expected,
        ..
    } = error;
    findings.error(
        id,
        place,
        offset,
        format_args!("{structure}: found {found}, expected {expected}"),
    );
}

const FLAGS_OFFSET: u64 = superblock::DEVICE_OFFSET + 104;

fn flags(superblock: &Superblock, place: &Place, findings: &mut Findings) {
    if superblock.role() == Role::Cache && superblock.replacement().is_none() {
        let text = format!(
            "replacement policy {} does not exist and hangs a kernel",
            superblock.replacement_raw()
        );
        findings.warn("F5", place, FLAGS_OFFSET, text);
    }
    let unknown = superblock.unknown_flags();
    if unknown != 0 {
        let text = format!("flags {unknown:#x} mean nothing");
        findings.warn("F5", place, FLAGS_OFFSET, text);
    }
}

/// Two devices that pass for the same one: nobody can tell which is the original.
fn twins(known: &Known<'_>, findings: &mut Findings) {
    for (i, cache) in known.caches.iter().enumerate() {
        for other in &known.caches[..i] {
            if other.superblock.set_uuid == cache.superblock.set_uuid {
                let set = Uuid::from_bytes(cache.superblock.set_uuid);
                let text = format!("{} is a cache device of set {set} as well", other.name);
                let place = cache.superblock_place();
                findings.error("F3", &place, place.start, text);
            }
        }
    }
    for (i, backing) in known.backings.iter().enumerate() {
        for other in &known.backings[..i] {
            if other.superblock.uuid == backing.superblock.uuid {
                let place = backing.place();
                let text = format!("{} has the same uuid", other.name);
                findings.error("F61", &place, place.start, text);
            }
        }
    }
}
