//! Where the acknowledgement record lies: memory that outlives this process but not the host.

use crate::Error;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

const PLACES: [&str; 2] = ["/dev/shm/brigade", "/run/brigade"];

/// The directory asked for, or the first usual place that is ours.
pub fn choose(asked: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(path) = asked {
        usable(path).map_err(|e| Error::at(path.display(), e))?;
        return Ok(path.to_owned());
    }
    let found = PLACES
        .iter()
        .map(Path::new)
        .find(|path| usable(path).is_ok());
    found.map(Path::to_owned).ok_or_else(|| {
        Error::new(format!(
            "no place for the acknowledgement record: none of {} is ours to write",
            PLACES.join(", ")
        ))
    })
}

/// The record of a set. Its name tells this boot from others: a record that outlived the host, on a disk, may name data that
/// did not, and must not be found.
/// Where boots cannot be told apart there is no record.
pub fn record(dir: &Path, set: &str) -> Option<PathBuf> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(dir.join(record_name(set, &boot)))
}

fn record_name(set: &str, boot: &str) -> String {
    format!("{set}.{}", boot.trim())
}

/// Makes it if it is missing. Others must not be able to put a record of their own there.
fn usable(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(path)?;
    if !metadata.is_dir() {
        return Err(io::Error::other("not a directory"));
    }
    if metadata.uid() != std::fs::metadata("/proc/self")?.uid() {
        return Err(io::Error::other("belongs to another user"));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(io::Error::other("others may write to it"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_record_of_another_boot_has_another_name() {
        assert_ne!(record_name("set", "one\n"), record_name("set", "two\n"));
        let dir = Path::new("/nowhere");
        assert_eq!(record(dir, "set"), record(dir, "set"));
        assert!(record(dir, "set").is_some());
    }

    #[test]
    fn a_directory_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state");
        assert_eq!(choose(Some(&path)).expect("made"), path);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).expect("ours");
        assert!(
            choose(Some(&path))
                .expect_err("refused")
                .to_string()
                .contains("others may write")
        );
    }
}
