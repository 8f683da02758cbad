//! The project's tools: the one gate (`cargo x test`), the kernel harness, golden images, interop, benches.
//!
//! Everything that a person or CI runs on the project is here, in Rust, and depends on none of the
//! project's own crates: the gate must be able to report that they do not build, and the judge shares no
//! code with the judged.

#![forbid(unsafe_code)]

pub mod attributes;
pub mod bench;
pub mod bench_alloc;
pub mod bench_drain;
pub mod bench_fills;
pub mod bench_gc;
pub mod bench_lifecycle;
pub mod bench_open;
pub mod bench_open_large;
pub mod bench_reasons;
pub mod bench_steps;
pub mod bench_sync;
pub mod bench_wa;
pub mod catalogue;
pub mod control;
pub mod fio;
pub mod golden;
pub mod golden_fsck;
pub mod interop;
pub mod kernel;
pub mod load;
pub mod mkimage;
pub mod model;
pub mod nbd;
pub mod options;
pub mod pattern;
pub mod probe;
pub mod process;
pub mod sectors;
pub mod seek_disk;
pub mod server;
pub mod sim;
pub mod sim_values;
pub mod slow_file;
pub mod test;
pub mod tests_table;
pub mod tidy;
pub mod trace;
