//! Benchmarks that are compiled together with what they measure, and the maker of images to measure with; `cargo x bench alloc`
//! and `cargo x mkimage` build and run them.
//!
//! They are a package of their own because the tools in `xtask` depend on none of the project's crates.

#![forbid(unsafe_code)]

pub mod alloc;
pub mod chance;
pub mod image;
pub mod index;
pub mod report;
pub mod twin;
pub mod world;

use peak_alloc::PeakAlloc;

/// The heap of every program of this package, counted.
#[global_allocator]
pub static HEAP: PeakAlloc = PeakAlloc;
