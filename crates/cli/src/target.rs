//! A device or file that was named on the command line.

use crate::failure::{Failure, Outcome};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What it is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To look, whoever else uses it.
    Look,
    /// To write, with nobody else using it.
    Write,
}

/// An open device.
#[derive(Debug)]
pub struct Target {
    /// As it was named.
    pub path: PathBuf,
    /// Open, and locked if it is to be written.
    pub file: File,
    /// Usable size: whole sectors.
    pub size_bytes: u64,
    /// Smallest unit it takes; 512 for a file.
    pub logical_block_bytes: u32,
}

impl Target {
    /// Opens it; one line says why not.
    pub fn open(path: &Path, purpose: Purpose) -> Outcome<Target> {
        open(path, purpose).map_err(|error| Failure::cannot(format!("{}: {error}", path.display())))
    }

    /// Its name in messages.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The 4096 bytes a superblock stands in.
    pub fn superblock_bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 4096];
        if self.size_bytes < 8192 {
            return Err(io::Error::other(format!(
                "{} bytes are too small for a superblock",
                self.size_bytes
            )));
        }
        self.file.read_exact_at(&mut bytes, 4096)?;
        Ok(bytes)
    }
}

fn open(path: &Path, purpose: Purpose) -> io::Result<Target> {
    let metadata = std::fs::metadata(path)?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::Error::other(
            "neither a block device nor a regular file",
        ));
    }
    let is_write = purpose == Purpose::Write;
    let mut options = OpenOptions::new();
    options.read(true).write(is_write);
    if is_write && kind.is_block_device() {
        options.custom_flags(libc::O_EXCL);
    }
    let mut file = options
        .open(path)
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => io::Error::other("in use (mounted, or part of something larger)"),
            _ => error,
        })?;
    if is_write {
        lock(&file)?;
    }
    let size_bytes = file.seek(SeekFrom::End(0))? & !511;
    let logical_block_bytes = if kind.is_block_device() {
        logical_block(metadata.rdev()).unwrap_or(512)
    } else {
        512
    };
    Ok(Target {
        path: path.to_owned(),
        file,
        size_bytes,
        logical_block_bytes,
    })
}

/// A server that has just ended may hold its devices a moment longer, while the kernel takes its ring down.
fn lock(file: &File) -> io::Result<()> {
    const ATTEMPTS: u32 = 50;
    for attempt in 1..=ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if attempt < ATTEMPTS => {
                std::thread::sleep(Duration::from_millis(20))
            }
            Err(TryLockError::WouldBlock) => break,
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::other("in use by another process"))
}

/// What sysfs says of the disk, or of the disk a partition lies on.
fn logical_block(rdev: u64) -> Option<u32> {
    let major = (rdev >> 8) & 0xfff | (rdev >> 32) & !0xfff;
    let minor = rdev & 0xff | (rdev >> 12) & 0xff_ff00;
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
        .canonicalize()
        .ok()?;
    let queue = "queue/logical_block_size";
    let text = std::fs::read_to_string(device.join(queue))
        .or_else(|_| std::fs::read_to_string(device.join("..").join(queue)))
        .ok()?;
    text.trim().parse().ok()
}
