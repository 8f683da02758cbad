//! Says what to open and how.

use crate::face::{AckPolicy, Knob, Options};
use crate::handle::Handle;
use crate::{Config, Error, world};
use brigade_format::superblock::CacheMode;
use brigade_uring::{Engine, HostOptions};
use std::path::PathBuf;

/// Where it begins.
pub struct Brigade;

impl Brigade {
    /// Nothing to open yet, everything at its default.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

/// What to open and how; [`Builder::open`] does it.
#[derive(Clone, Default)]
pub struct Builder {
    pub(crate) caches: Vec<PathBuf>,
    pub(crate) backings: Vec<PathBuf>,
    pub(crate) nbd: Vec<String>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) config: Option<Config>,
    pub(crate) options: Options,
    pub(crate) host: HostOptions,
    pub(crate) run_anyway: bool,
}

impl Builder {
    /// Nothing to open yet, everything at its default.
    pub fn new() -> Builder {
        Builder::default()
    }

    /// A cache device.
    pub fn cache(mut self, path: impl Into<PathBuf>) -> Builder {
        self.caches.push(path.into());
        self
    }

    /// A backing device.
    pub fn backing(mut self, path: impl Into<PathBuf>) -> Builder {
        self.backings.push(path.into());
        self
    }

    /// Serve the volumes by NBD as well, at `unix:PATH` or `tcp:HOST:PORT`.
    pub fn nbd(mut self, address: impl Into<String>) -> Builder {
        self.nbd.push(address.into());
        self
    }

    /// Cache mode of all volumes from now on, instead of what the backing devices say.
    pub fn mode(mut self, mode: CacheMode) -> Builder {
        self.options.mode = Some(mode);
        self
    }

    /// Write nothing to any device.
    pub fn read_only(mut self, read_only: bool) -> Builder {
        self.options.read_only = read_only;
        self
    }

    /// Serve backing devices whose cache set is not given without it. What that set has of them is void from then on, dirty data too.
    pub fn run_anyway(mut self, run_anyway: bool) -> Builder {
        self.run_anyway = run_anyway;
        self
    }

    /// Bound of the memory for the index and its buffers.
    pub fn memory_bytes(mut self, bytes: u64) -> Builder {
        self.options.memory_bytes = bytes;
        // Buffers that are kept for the next use are no small part of a small memory.
        let share = usize::try_from(bytes / 16).unwrap_or(usize::MAX);
        let usual = HostOptions::default().buffer_pool_bytes;
        self.host.buffer_pool_bytes = share.min(usual);
        self
    }

    /// When a write is acknowledged.
    pub fn ack(mut self, ack: AckPolicy) -> Builder {
        self.options.ack = ack;
        self
    }

    /// Settings as they stand in a file, which changes are written to.
    pub fn config(mut self, config: Config) -> Builder {
        self.config = Some(config);
        self
    }

    /// Look for every bucket that is handed out in all lists, which is slow.
    pub fn expensive_checks(mut self, on: bool) -> Builder {
        self.options
            .settings
            .insert(Knob::ExpensiveDebugChecks, u64::from(on));
        self
    }

    /// How I/O is done.
    pub fn engine(mut self, engine: Engine) -> Builder {
        self.host.engine = engine;
        self
    }

    /// Where the acknowledgement record lies: a directory on a memory file system.
    pub fn state_dir(mut self, path: impl Into<PathBuf>) -> Builder {
        self.state_dir = Some(path.into());
        self
    }

    /// Opens (and recovers) everything on a thread of its own. Returns when requests are accepted, or with the reason
    /// why nothing is served; then nothing was written unless recovery had begun.
    pub fn open(self) -> Result<Handle, Error> {
        world::start(self)
    }
}
