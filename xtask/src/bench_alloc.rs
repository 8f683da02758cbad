//! `cargo x bench alloc`, the bucket allocator beside a full scan, and `cargo x bench index`, the index beside other maps.
//!
//! What is measured is compiled together with the measurement, so it is a package of its own (`benches`), built here in release
//! mode and run. Its exit status is 1 if a figure misses its target.

use crate::process::{Context, Result};
use crate::server::cargo;
use std::process::ExitCode;

/// Runs `cargo x bench alloc [--quick] [--only PART]`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    run("bench-alloc", arguments)
}

/// Runs `cargo x bench index [--quick] [EXTENTS]...`.
pub fn index(arguments: &[String]) -> Result<ExitCode> {
    run("bench-index", arguments)
}

fn run(program: &str, arguments: &[String]) -> Result<ExitCode> {
    let status = cargo()
        .args(["run", "--quiet", "--release", "-p", "brigade-benches"])
        .args(["--bin", program, "--"])
        .args(arguments)
        .status()
        .context("cannot run cargo")?;
    Ok(match status.code() {
        Some(0) => ExitCode::SUCCESS,
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        None => ExitCode::FAILURE,
    })
}
