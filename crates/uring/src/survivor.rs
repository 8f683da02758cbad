//! A record on a memory file system: it outlives the process because the page cache does.

use brigade_env::Survivor;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// A file written in place with plain writes. Nothing is synced: it is to survive `kill -9`, not a power loss.
#[derive(Debug)]
pub struct HostSurvivor(File);

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
        Ok(HostSurvivor(file))
    }
}

impl Survivor for HostSurvivor {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.0.metadata()?.len()).map_err(io::Error::other)?;
        let mut content = vec![0; length];
        self.0.read_exact_at(&mut content, 0)?;
        Ok(content)
    }

    fn clear(&self) -> io::Result<()> {
        self.0.set_len(0)
    }
}
