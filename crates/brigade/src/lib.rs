//! Brigade inside a program: open cache and backing devices, get a handle that may be used from any thread.
//!
//! The cache itself lives on one thread of its own (its world is made there and dies there); a [`Handle`] only sends
//! requests to it and waits for answers. The `brigade serve` command is this crate plus signals.
//!
//! ```no_run
//! # fn main() -> std::io::Result<()> {
//! let handle = brigade::Brigade::builder().cache("cache.img").backing("disk.img").open()?;
//! handle.write(0, 0, &[7; 4096], true)?;
//! let mut sector = [0; 4096];
//! handle.read(0, 0, &mut sector)?;
//! handle.stop()?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod builder;
mod config;
#[cfg(feature = "control")]
pub mod control;
mod error;
mod face;
mod handle;
mod lifecycle;
mod settings;
mod state_dir;
mod world;

pub use brigade_format::superblock::CacheMode;
pub use brigade_uring::Engine;
pub use builder::{Brigade, Builder};
pub use config::{Config, Serve};
pub use error::Error;
pub use face::{AckPolicy, definitions, is_volume_number};
pub use handle::{Handle, VolumeInfo};
