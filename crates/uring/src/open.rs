//! Opening a device: what it is, who else has it, and what alignment its I/O needs.

use crate::sys;
use brigade_env::{BufferPool, Geometry, SECTOR_BYTES};
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Devices that lie on others, one above the other, that are looked through.
const STACKED_MAX: u32 = 8;

/// What a device is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OpenMode {
    /// Writes fail with `EROFS`; others may read too.
    ReadOnly,
    /// Ours alone.
    #[default]
    ReadWrite,
}

/// How to open a device.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// What for.
    pub mode: OpenMode,
    /// Refuse if somebody else has it open in a way that excludes ours.
    pub lock: bool,
    /// Present a regular file as a device with blocks of this size: a power of two, 512 to 4096.
    pub logical_block_bytes: Option<u32>,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        DeviceOptions {
            mode: OpenMode::ReadWrite,
            lock: true,
            logical_block_bytes: None,
        }
    }
}

/// An open device.
pub(crate) struct Opened {
    pub(crate) fd: OwnedFd,
    pub(crate) geometry: Geometry,
    pub(crate) is_block: bool,
    /// Reads and writes are copies of memory.
    pub(crate) is_in_memory: bool,
    /// Offsets and lengths must be multiples of this.
    pub(crate) unit_bytes: u64,
    /// Memory must be aligned to this.
    pub(crate) memory_align: usize,
}

fn invalid(path: &Path, what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{}: {what}", path.display()),
    )
}

fn in_use(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::ResourceBusy,
        format!("{}: device already in use", path.display()),
    )
}

/// Says which path an opening error is about, keeping its kind.
fn about(path: &Path) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Opens `path`; see [`crate::HostEnv::open_device_with`].
pub(crate) fn open(path: &Path, options: &DeviceOptions) -> io::Result<Opened> {
    let expected = std::fs::metadata(path).map_err(about(path))?;
    let is_block = check_kind(path, &expected)?;
    let (file, is_direct) = open_file(path, options, is_block)?;
    let found = file.metadata().map_err(about(path))?;
    if check_kind(path, &found)? != is_block {
        return Err(invalid(path, "changed while it was opened"));
    }
    if options.lock {
        sys::try_lock(&fd_of(&file)?, options.mode == OpenMode::ReadWrite).map_err(|error| {
            match error.kind() {
                io::ErrorKind::WouldBlock => in_use(path),
                _ => about(path)(error),
            }
        })?;
    }
    if is_block {
        measure_block(path, file, &found, options)
    } else {
        measure_file(path, file, found.len(), is_direct, options)
    }
}

fn check_kind(path: &Path, metadata: &Metadata) -> io::Result<bool> {
    let kind = metadata.file_type();
    if kind.is_block_device() || kind.is_file() {
        return Ok(kind.is_block_device());
    }
    Err(invalid(
        path,
        if kind.is_dir() {
            "is a directory"
        } else {
            "neither a block device nor a regular file"
        },
    ))
}

/// A duplicate for calls that want an `OwnedFd`; it shares the open file description and so its lock and flags.
fn fd_of(file: &File) -> io::Result<OwnedFd> {
    Ok(file.try_clone()?.into())
}

fn open_file(path: &Path, options: &DeviceOptions, is_block: bool) -> io::Result<(File, bool)> {
    let may_write = options.mode == OpenMode::ReadWrite;
    let exclusive = if is_block && may_write && options.lock {
        libc::O_EXCL
    } else {
        0
    };
    let attempt = |flags: i32| {
        OpenOptions::new()
            .read(true)
            .write(may_write)
            .custom_flags(exclusive | flags)
            .open(path)
    };
    let (result, is_direct) = match attempt(libc::O_DIRECT) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (attempt(0), false),
        other => (other, true),
    };
    let file = result.map_err(|error| match error.kind() {
        io::ErrorKind::ResourceBusy => in_use(path),
        _ => about(path)(error),
    })?;
    Ok((file, is_direct))
}

fn measure_block(
    path: &Path,
    file: File,
    metadata: &Metadata,
    options: &DeviceOptions,
) -> io::Result<Opened> {
    let fd = OwnedFd::from(file);
    let size_bytes = sys::block_size_bytes(&fd).map_err(about(path))?;
    let (logical, physical) = sys::block_units(&fd).map_err(about(path))?;
    if !logical.is_power_of_two() || !(512..=65536).contains(&logical) {
        return Err(invalid(
            path,
            &format!("logical block size {logical} is not supported"),
        ));
    }
    if options
        .logical_block_bytes
        .is_some_and(|wanted| wanted != logical)
    {
        return Err(invalid(
            path,
            &format!("its logical block size is {logical} bytes"),
        ));
    }
    let is_read_only = options.mode == OpenMode::ReadOnly;
    let place = place_of(metadata.rdev());
    let geometry = Geometry {
        size_bytes: size_bytes - size_bytes % SECTOR_BYTES,
        logical_block_bytes: logical,
        physical_block_bytes: physical.max(logical),
        can_discard: !is_read_only && discards(&place),
        is_read_only,
        optimal_io_bytes: sys::optimal_io_bytes(&fd).map_err(about(path))?,
        partial_stripes_expensive: has_parity(&place, STACKED_MAX),
    };
    Ok(Opened {
        fd,
        geometry,
        is_block: true,
        is_in_memory: false,
        unit_bytes: logical.into(),
        memory_align: logical as usize,
    })
}

fn place_of(device: u64) -> PathBuf {
    let (major, minor) = (libc::major(device), libc::minor(device));
    format!("/sys/dev/block/{major}:{minor}").into()
}

/// What the kernel tells of a block device in its folder; of a partition, what it tells of the disk.
fn attribute(place: &Path, name: &str) -> Option<String> {
    let files = [place.join(name), place.join("..").join(name)];
    let found = files
        .iter()
        .find_map(|file| std::fs::read_to_string(file).ok());
    found.map(|text| text.trim().to_string())
}

/// Whether the queue behind a block device takes discards.
fn discards(place: &Path) -> bool {
    let limit = attribute(place, "queue/discard_max_bytes");
    limit.is_some_and(|limit| limit.parse::<u64>().is_ok_and(|limit| limit > 0))
}

/// Whether it is, or lies on, an array of the kernel's with parity, which reads when only part of a stripe is written.
fn has_parity(place: &Path, stacked_max: u32) -> bool {
    let level = attribute(place, "md/level");
    if level.is_some_and(|level| ["raid4", "raid5", "raid6"].contains(&level.as_str())) {
        return true;
    }
    let folders = [place.join("slaves"), place.join("../slaves")];
    let below = folders.iter().flat_map(std::fs::read_dir).flatten();
    let mut below = below.filter_map(Result::ok).map(|entry| entry.path());
    stacked_max > 0 && below.any(|place| has_parity(&place, stacked_max - 1))
}

fn measure_file(
    path: &Path,
    file: File,
    length: u64,
    is_direct: bool,
    options: &DeviceOptions,
) -> io::Result<Opened> {
    let logical = options.logical_block_bytes.unwrap_or(512);
    if !logical.is_power_of_two() || !(512..=4096).contains(&logical) {
        return Err(invalid(
            path,
            &format!("logical block size {logical} is not supported for a file"),
        ));
    }
    let size_bytes = length - length % u64::from(logical);
    let mut unit_bytes = if is_direct { direct_unit(&file) } else { None };
    if unit_bytes.is_some_and(|unit| !size_bytes.is_multiple_of(unit)) {
        // The last sectors could not be written without growing the file.
        unit_bytes = None;
    }
    let fd = fd_of(&file)?;
    if is_direct && unit_bytes.is_none() {
        sys::change_flags(&fd, 0, libc::O_DIRECT).map_err(about(path))?;
    }
    let is_read_only = options.mode == OpenMode::ReadOnly;
    let geometry = Geometry {
        size_bytes,
        logical_block_bytes: logical,
        physical_block_bytes: logical,
        can_discard: !is_read_only,
        is_read_only,
        optimal_io_bytes: 0,
        partial_stripes_expensive: false,
    };
    Ok(Opened {
        is_in_memory: sys::is_in_memory(&fd),
        fd,
        geometry,
        is_block: false,
        unit_bytes: unit_bytes
            .unwrap_or(1)
            .max(if logical > 512 { logical.into() } else { 1 }),
        memory_align: unit_bytes.map_or(1, |unit| unit as usize),
    })
}

/// The smallest unit direct reads take, found by trying; `None` if none works. An empty file tells nothing, and
/// needs no direct I/O.
fn direct_unit(file: &File) -> Option<u64> {
    let pool = BufferPool::new(0);
    [512_usize, 1024, 2048, 4096].into_iter().find_map(|unit| {
        let mut buffer = pool.get(2 * 4096);
        // The memory is aligned to the unit and no better, so that the answer is good for memory as well.
        buffer.set_range(if unit < 4096 {
            unit..2 * unit
        } else {
            4096..8192
        });
        let offset = unit as u64;
        let first = file.read_at(&mut buffer, 0);
        let second = file.read_at(&mut buffer, offset);
        (matches!(first, Ok(count) if count > 0) && second.is_ok()).then_some(offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_with_parity_are_known_by_their_level_also_below_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let device = |name: &str, level: Option<&str>, slaves: &[&str]| {
            let place = folder.path().join(name);
            for kind in ["md", "slaves", "part"] {
                std::fs::create_dir_all(place.join(kind)).expect("made");
            }
            if let Some(level) = level {
                std::fs::write(place.join("md/level"), format!("{level}\n")).expect("written");
            }
            for slave in slaves {
                let below = folder.path().join(slave);
                std::os::unix::fs::symlink(below, place.join("slaves").join(slave))
                    .expect("linked");
            }
            place
        };
        let array = device("md0", Some("raid5"), &["disk"]);
        let mirror = device("md1", Some("raid1"), &["md0"]);
        device("crypt", None, &["md0"]);
        let logical = device("logical", None, &["disk", "crypt"]);
        let plain = device("disk", None, &[]);
        assert!(has_parity(&array, 0) && has_parity(&array.join("part"), 0));
        assert!(has_parity(&logical, 2) && !has_parity(&logical, 1));
        assert!(has_parity(&mirror, 1) && !has_parity(&mirror, 0) && !has_parity(&plain, 8));
        assert!(has_parity(&logical.join("part"), 2));
        let round = device("round", None, &["round"]);
        assert!(!has_parity(&round, 8));
    }
}
