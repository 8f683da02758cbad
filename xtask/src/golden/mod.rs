//! Golden images: what the kernel's bcache wrote, with what the kernel itself read from it afterwards.
//!
//! A case is a manifest `NAME.json` with either an archive of images or patches to another case's images, and per
//! volume the extents the kernel read. The project's own are in `fixtures/`; any other folder of that form will do.
//!
//! ```text
//! case ── unpack ──> images ── serve, dump ──> observed ── judge ──> verdict      (check, read-only)
//!                      └────── serve, stop ──> guest hashes every volume ──^      (check, read-write)
//! ```
//!
//! Serves `cargo x golden` and the interop tests of the fixtures, which are the same code with the fixtures' folder.

mod case;
mod check;
mod command;
mod extents;
mod guest;
mod judge;

pub use case::{Case, Image, Volume, fixtures, list, load};
pub use check::{Place, Results, is_for_writing, read_only, read_write};
pub use command::main;
pub use extents::{Extent, ExtentContent, parse_map};
pub use guest::kernel_reads;
pub use judge::{Observed, Refusal, Served, Verdict, judge};
