//! The world on a real Linux host: [`HostEnv`] implements `brigade_env::Env`.
//!
//! One thread, one executor, one engine. The engine is io_uring (one ring, one `io_uring_enter` per turn of the
//! loop that both submits and waits) or, where a container forbids io_uring, a small pool of threads for files and
//! `poll(2)` for sockets. Everything above the engine is the same: an operation lives in a slot that owns its buffer
//! and its file until the kernel is done with them, so a future may be dropped at any time.
//!
//! ```text
//!   HostDevice  HostStream  HostListener      what the env traits ask for
//!         \         |          /
//!          Core: slots, tasks, timers         one thread, no locks
//!               /         \
//!            Ring        Threads              submit(request) ... completion(result)
//! ```
//!
//! This is the one crate that makes system calls; `unsafe` is confined to `operation`,
//! `ring`, `threads`, `reactor`, `wake`, `view` and `sys`.
//!
//! **Invariants.**
//! - URING-1: a slot is reused only after the engine has reported its operation's completion.
//! - URING-2: a short transfer or an interrupted call is continued by the slot, not by the future, so an operation
//!   whose future is gone still runs to its end (sockets: it is cancelled instead).
//! - URING-3: no engine is ever given a timeout per wait on the ring; one `TIMEOUT` entry stands for the nearest
//!   deadline and is touched only when that moves closer.

mod device;
mod host;
mod open;
mod operation;
mod range_lock;
mod reactor;
mod ring;
mod slots;
mod socket;
mod survivor;
mod sys;
mod tasks;
#[cfg(test)]
mod tests;
mod threads;
mod timers;
mod view;
mod wake;

pub use device::HostDevice;
pub use host::{Engine, HostEnv, HostOptions, Remote};
pub use open::{DeviceOptions, OpenMode};
pub use socket::{HostListener, HostStream};
pub use survivor::HostSurvivor;
