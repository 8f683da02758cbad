//! The kernel on demand: boots a real Linux with bcache in QEMU, hands it images, runs a script in it.
//!
//! Serves the interop tests (`cargo x interop`) and people (`cargo x kernel run`). The machine is emulated
//! (no KVM, no host module, no root once it is set up), so that every place that can run `cargo` can ask
//! the kernel what it thinks of our bytes.
//!
//! ```text
//! setup ── apt ──> package ── unpack ──> <cache>/kernel/<version>/{vmlinuz, root/lib/modules}
//! run ──> initramfs (busybox, modules, helpers, script, copies) ──> QEMU ──> console lines ──> outcome
//! ```
//!
//! - The guest speaks through its console only: `@@vm begin` when the script starts, `@@vm exit=N` when it
//!   ended. What never says `begin` has not touched an image and is booted again.
//! - A hard kill is `SIGKILL` to QEMU: the crash of a machine whose drives keep what they had accepted.

mod command_line;
mod initramfs;
mod machine;
mod setup;

pub use command_line::main;
pub use machine::run;
pub use setup::{Installed, installed, setup};

use std::path::PathBuf;
use std::time::Duration;

/// When to pull the plug.
#[derive(Clone, Debug)]
pub enum KillWhen {
    /// This long after the script began.
    After(Duration),
    /// When a console line matches this regular expression.
    Marker(String),
}

/// One boot: what the guest gets and what to watch for.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Text of the script (busybox sh), run after the helpers of `guest/lib.sh` are loaded.
    pub script: String,
    /// Disk images: `/dev/vda`, `/dev/vdb`, ...
    pub images: Vec<PathBuf>,
    /// More drives after the images, which `snapshot` leaves writable.
    pub data: Vec<PathBuf>,
    /// Files or host command names put under `/payload` with their shared libraries.
    pub copies: Vec<String>,
    /// Environment of the script.
    pub env: Vec<(String, String)>,
    /// Throw the guest's writes to the images away.
    pub snapshot: bool,
    /// Sector size of the drives.
    pub block_size: Option<u32>,
    /// Hard kill.
    pub kill: Option<KillWhen>,
    /// How long after the marker.
    pub kill_delay: Duration,
    /// Give up after this long.
    pub timeout: Duration,
    /// A private network: guest 10.0.2.15, host 10.0.2.2.
    pub net: bool,
    /// Where the guest's `/out` goes.
    pub out: Option<PathBuf>,
    /// Where the console goes as well.
    pub log: Option<PathBuf>,
    /// Show the console while it runs.
    pub echo: bool,
    /// Show the kernel's boot messages too.
    pub verbose: bool,
    /// An oops ends the guest, and does not leave it waiting for what died.
    pub ends_at_oops: bool,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Guest processors.
    pub processors: u32,
}

impl Default for Boot {
    fn default() -> Self {
        Boot {
            script: String::new(),
            images: Vec::new(),
            data: Vec::new(),
            copies: Vec::new(),
            env: Vec::new(),
            snapshot: false,
            block_size: None,
            kill: None,
            kill_delay: Duration::ZERO,
            timeout: Duration::from_secs(300),
            net: false,
            out: None,
            log: None,
            echo: false,
            verbose: false,
            ends_at_oops: false,
            memory_mib: 1024,
            processors: 2,
        }
    }
}

/// The guest's name of drive number `index`.
pub fn drive_name(index: usize) -> String {
    let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
    match index {
        0..26 => format!("vd{}", letter(index)),
        _ => format!("vd{}{}", letter(index / 26 - 1), letter(index)),
    }
}

/// How a boot ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The script ended by itself with this status.
    Exited(i32),
    /// Killed where it was to be killed.
    Killed,
    /// The script ended before the kill marker was seen.
    MarkerNotSeen(i32),
    /// The time was up.
    TimedOut,
    /// The guest went away without a status (panic, oops).
    Died,
}

impl Outcome {
    /// The exit status that `cargo x kernel run` gives: the script's own, or 123..126.
    pub fn status(self) -> i32 {
        match self {
            Outcome::Exited(status) => status,
            Outcome::Killed => 0,
            Outcome::MarkerNotSeen(_) => 123,
            Outcome::TimedOut => 124,
            Outcome::Died => 126,
        }
    }
}

/// A boot that is over.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub outcome: Outcome,
    /// What the script and the kernel said since the script began.
    pub console: String,
    /// From starting QEMU to the first line of the script.
    pub boot_time: Duration,
}

impl Finished {
    /// The console, if the script ended with status 0 or the kill came as ordered; else what went wrong.
    pub fn ok(self) -> Result<String, String> {
        match self.outcome {
            Outcome::Exited(0) | Outcome::Killed => Ok(self.console),
            other => Err(format!(
                "guest: {other:?}; last lines:\n{}",
                crate::process::last_lines(&self.console, 15)
            )),
        }
    }
}
