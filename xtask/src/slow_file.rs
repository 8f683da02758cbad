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

/// The file, there as long as this is.
pub struct SlowFile {
    /// Where it is.
    pub path: PathBuf,
    nbdkit: Child,
    nbdfuse: Option<Child>,
}

impl SlowFile {
    /// What is in `image`, at a path beside it; each write is delayed.
    pub fn new(image: &Path, delay_ms: u64) -> Result<SlowFile> {
        need_programs(&[("nbdkit", "nbdkit"), ("nbdfuse", "libnbd-bin")])?;
        if !Path::new("/dev/fuse").exists() {
            return Err("there is no /dev/fuse".into());
        }
        let size = std::fs::metadata(image).context("no image")?.len();
        let [path, socket] = ["slow", "slow.sock"].map(|end| image.with_extension(end));
        std::fs::write(&path, b"").context("cannot make a mount point")?;
        let program = |name| find_program(name).ok_or(format!("no {name}"));
        let nbdkit = Command::new(program("nbdkit")?)
            .args(["--foreground", "--threads", THREADS, "--unix"])
            .arg(&socket)
            .args(["--filter=delay", "file"])
            .arg(image)
            .arg(format!("delay-write={delay_ms}ms"))
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start nbdkit")?;
        let mut slow = SlowFile {
            path,
            nbdkit,
            nbdfuse: None,
        };
        wait(|| socket.exists()).map_err(|()| "nbdkit does not listen")?;
        let mounted = Command::new(program("nbdfuse")?)
            .args(["--connections", CONNECTIONS])
            .arg(&slow.path)
            .arg(format!("nbd+unix:///?socket={}", socket.display()))
            .stdin(Stdio::null())
            .spawn()
            .context("cannot start nbdfuse")?;
        slow.nbdfuse = Some(mounted);
        let there = || std::fs::metadata(&slow.path).is_ok_and(|file| file.len() == size);
        wait(there).map_err(|()| "nbdfuse does not mount")?;
        Ok(slow)
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
        if let Some(nbdfuse) = &mut self.nbdfuse {
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
            if wait(|| nbdfuse.try_wait().is_ok_and(|ended| ended.is_some())).is_err() {
                let _ = nbdfuse.kill();
                let _ = nbdfuse.wait();
            }
        }
        let _ = self.nbdkit.kill();
        let _ = self.nbdkit.wait();
    }
}
