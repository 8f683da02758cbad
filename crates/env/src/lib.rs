//! The world as a parameter: devices, buffers, time, tasks and chance.
//!
//! The engine reaches everything outside its own memory through [`Env`], so that the same code runs on
//! io_uring, on a thread pool and, replayed from one seed, in a deterministic simulator. Everything here is
//! for one thread: a task is never moved, nothing needs to be `Send`.
//!
//! Two traits look alike and are not: a [`Device`] is what the engine stands on (a file, a disk); a
//! [`BlockDevice`] is what a frontend serves (a volume). Calls go down, never up.
#![forbid(unsafe_code)]

mod block;
mod buffer;
mod device;
mod net;
pub mod sync;
pub mod waits;

pub use block::{BlockDevice, BlockSizes, Exports, StatusExtent, StreamId};
pub use buffer::{Buffer, BufferPool, PAGE_BYTES};
pub use device::{Device, Durability, Geometry, SECTOR_BYTES};
pub use net::{Listener, Segment, Stream};

use std::future::Future;
use std::time::Duration;

/// Everything the engine may ask of the world. Cheap to clone; all clones are the same world.
pub trait Env: Clone + 'static {
    /// What cache and backing devices are.
    type Device: Device;
    /// A record in memory that outlives the process (not the host); see [`Survivor`].
    type Survivor: Survivor;

    /// Starts a task on this thread. Dropping the world drops its tasks without running them further.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);
    /// Time since an arbitrary start; never goes back.
    fn now(&self) -> Duration;
    /// Time that this thread has been at work, where the world knows; else as [`Env::now`]. What others took of the processor
    /// meanwhile is no part of it.
    fn time_at_work(&self) -> Duration {
        self.now()
    }
    /// Completes once [`Env::now`] is at least `deadline`.
    fn sleep_until(&self, deadline: Duration) -> impl Future<Output = ()> + 'static;
    /// Wall clock, seconds since 1970, as superblocks and UUID tables hold it.
    fn unix_seconds(&self) -> u32;
    /// The world's chance. Not for secrets.
    fn random_u64(&self) -> u64;
    /// Where buffers for this world's devices come from.
    fn buffers(&self) -> &BufferPool;

    /// Ends the process at once, with nothing written or waited for: asked for where going on is worse than stopping.
    fn end_process(&self, why: &str) {
        panic!("{why}");
    }

    /// Completes after `delay`.
    #[cfg_attr(feature = "instrumented", track_caller)]
    fn sleep(&self, delay: Duration) -> impl Future<Output = ()> + 'static {
        self.sleep_until(self.now().saturating_add(delay))
    }
}

/// A small byte store that survives the death of the process but not that of the host: a file on a memory
/// file system, or, in the simulator, a vector that only a power loss clears.
///
/// # Contract
/// A write that returned is seen by whoever opens the same store after `kill -9` of this process. Calls
/// return at once; they never wait for a disk.
pub trait Survivor: 'static {
    /// Overwrites bytes at `offset`, growing the store if needed.
    fn write(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()>;
    /// The whole content, perhaps with zeros behind what was written.
    fn read(&self) -> std::io::Result<Vec<u8>>;
    /// Empties the store.
    fn clear(&self) -> std::io::Result<()>;
}
