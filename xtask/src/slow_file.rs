//! A file whose writes take their time: nbdkit with its delay filter behind a FUSE file of nbdfuse.
//!
//! A server takes files and block devices; this is a file, and needs neither a kernel module nor a virtual machine, but root
//! or `fusermount3`, and `/dev/fuse`. Without a delay the writes still go through two processes.

use crate::process::{Context, Result, find_program, need_programs};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);
const CONNECTIONS: &str = "8";
const THREADS: &str = "64";

/// What an NBD server on a unix socket exports, as a file; there as long as this is.
pub struct FuseFile {
    /// Where it is.
    pub path: PathBuf,
    nbdfuse: Child,
}

/// The file, there as long as this is.
pub struct SlowFile {
    /// Where it is.
    pub path: PathBuf,
    /// Gone before the server.
    file: Option<FuseFile>,
    nbdkit: Child,
}

impl SlowFile {
    /// What is in `image`, at a path beside it; each write is delayed.
    pub fn new(image: &Path, delay_ms: u64) -> Result<SlowFile> {
        let delay = format!("delay-write={delay_ms}ms");
        SlowFile::filtered(image, &["delay"], &[&delay])
    }

    /// What is in `image`, at a path beside it, through filters of nbdkit.
    pub fn filtered(image: &Path, filters: &[&str], parameters: &[&str]) -> Result<SlowFile> {
        need_programs(&[("nbdkit", "nbdkit"), ("nbdfuse", "libnbd-bin")])?;
        let size = std::fs::metadata(image).context("no image")?.len();
        let [path, socket] = ["slow", "slow.sock"].map(|end| image.with_extension(end));
        let _ = std::fs::remove_file(&socket);
        let nbdkit = find_program("nbdkit").ok_or("no nbdkit")?;
        let nbdkit = Command::new(nbdkit)
            .args(["--foreground", "--threads", THREADS, "--unix"])
            .arg(&socket)
            .args(filters.iter().map(|filter| format!("--filter={filter}")))
            .arg("file")
            .arg(image)
            .args(parameters)
            .stdin(Stdio::null())
            .stderr(match filters.contains(&"error") {
                // Each error that it injects is a line.
                true => Stdio::null(),
                false => Stdio::inherit(),
            })
            .spawn()
            .context("cannot start nbdkit")?;
        let mut slow = SlowFile {
            path: path.clone(),
            file: None,
            nbdkit,
        };
        wait(|| socket.exists()).map_err(|()| "nbdkit does not listen")?;
        slow.file = Some(FuseFile::new(&socket, &path, size)?);
        Ok(slow)
    }
}

impl FuseFile {
    /// At this path, once it has the size it should have.
    pub fn new(socket: &Path, path: &Path, size: u64) -> Result<FuseFile> {
        need_programs(&[("nbdfuse", "libnbd-bin")])?;
        if !Path::new("/dev/fuse").exists() {
            return Err("there is no /dev/fuse".into());
        }
        std::fs::write(path, b"").context("cannot make a mount point")?;
        let nbdfuse = Command::new(find_program("nbdfuse").ok_or("no nbdfuse")?)
            .args(["--connections", CONNECTIONS])
            .arg(path)
            .arg(format!("nbd+unix:///?socket={}", socket.display()))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start nbdfuse")?;
        let file = FuseFile {
            path: path.to_owned(),
            nbdfuse,
        };
        let there = || std::fs::metadata(&file.path).is_ok_and(|it| it.len() == size);
        wait(there).map_err(|()| "nbdfuse does not mount")?;
        Ok(file)
    }
}

fn wait(mut until: impl FnMut() -> bool) -> std::result::Result<(), ()> {
    let end = Instant::now() + PATIENCE;
    while !until() {
        if Instant::now() > end {
            return Err(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

impl Drop for SlowFile {
    fn drop(&mut self) {
        drop(self.file.take());
        let _ = self.nbdkit.kill();
        let _ = self.nbdkit.wait();
    }
}

impl Drop for FuseFile {
    fn drop(&mut self) {
        let unmounts = [("fusermount3", "-u"), ("umount", "--")];
        for (program, flag) in unmounts {
            let Some(program) = find_program(program) else {
                continue;
            };
            let status = Command::new(program).arg(flag).arg(&self.path).status();
            if status.is_ok_and(|status| status.success()) {
                break;
            }
        }
        let has_ended = || self.nbdfuse.try_wait().is_ok_and(|ended| ended.is_some());
        if wait(has_ended).is_err() {
            let _ = self.nbdfuse.kill();
            let _ = self.nbdfuse.wait();
        }
    }
}
