//! A record on a memory file system: it outlives the process because the page cache does.
//!
//! The file is written through a mapping: a record is a copy of some hundred bytes for every acknowledged write, and
//! the system call around it cost six times that. The mapped part is allocated before it is mapped, so that a full file
//! system is an error of the first write and not a signal at some later one. Nothing is mapped before the first write
//! and after [`Survivor::clear`], and what lies beyond the mapping, or cannot be mapped, is written plainly.
//!
//! While the mapping exists this process does not shorten the file. Nobody else has a reason to: it is private to the
//! server (mode 0600), and who truncates it takes acknowledged writes away in any case.

use crate::sys::Mapping;
use brigade_env::Survivor;
use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// What is mapped: the engine's record has 2 MiB and a header.
const MAPPED_BYTES: usize = (2 << 20) + (64 << 10);

/// How the file is written.
#[derive(Debug)]
enum Way {
    Unmapped,
    Mapped(Mapping),
    Plain,
}

/// A file written in place. Nothing is synced: it is to survive `kill -9`, not a power loss.
#[derive(Debug)]
pub struct HostSurvivor {
    file: File,
    way: RefCell<Way>,
}

impl HostSurvivor {
    pub(crate) fn open(path: &Path) -> io::Result<HostSurvivor> {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let file = options.open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{}: not a regular file", path.display()),
            ));
        }
        Ok(HostSurvivor {
            file,
            way: RefCell::new(Way::Unmapped),
        })
    }
}

impl Survivor for HostSurvivor {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut way = self.way.borrow_mut();
        if let Way::Unmapped = *way {
            *way = match Mapping::new(&self.file, MAPPED_BYTES) {
                Ok(mapping) => Way::Mapped(mapping),
                Err(_) => Way::Plain,
            };
        }
        match &*way {
            Way::Mapped(mapping) if mapping.write(offset, bytes) => Ok(()),
            _ => self.file.write_all_at(bytes, offset),
        }
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.file.metadata()?.len()).map_err(io::Error::other)?;
        let mut content = vec![0; length];
        self.file.read_exact_at(&mut content, 0)?;
        Ok(content)
    }

    fn clear(&self) -> io::Result<()> {
        *self.way.borrow_mut() = Way::Unmapped;
        self.file.set_len(0)
    }
}
