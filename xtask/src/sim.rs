//! `cargo x sim`: builds the simulator, fast and with all assertions, and hands everything on to it.

use crate::process::{Context, Result, output};
use crate::server::cargo;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Runs it. Coverage marks and deliberate mistakes are compiled in.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let commit = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .output();
    let commit = commit.map_or_else(
        |_| "unknown".to_string(),
        |out| String::from_utf8_lossy(&out.stdout).trim().to_string(),
    );
    let status = cargo()
        .args([
            "run",
            "--quiet",
            "--profile",
            "sim",
            "--package",
            "brigade-sim",
        ])
        .args(["--features", "instrumented", "--"])
        .args(arguments)
        .env("BRIGADE_COMMIT", commit)
        .status()
        .context("cannot run cargo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Crash images of so many seeds, each in a folder named by its seed. Built as the tests build it, which is quick.
pub fn export(folder: &Path, seed: u64, count: u64) -> Result<()> {
    let mut export = cargo();
    export.args([
        "run",
        "--quiet",
        "--package",
        "brigade-sim",
        "--",
        "--export",
    ]);
    export.arg(folder);
    let (seed, count) = (seed.to_string(), count.to_string());
    export.args(["--seed", &seed, "--runs", &count]);
    output(&mut export).map(drop)
}

/// Sets whose oldest pointers are as old as they may be; see the simulator's module `near`.
pub fn near(folder: &Path, seed: u64) -> Result<()> {
    let mut near = cargo();
    near.args(["run", "--quiet", "--package", "brigade-sim"]);
    near.args(["--features", "instrumented", "--", "--near"]);
    near.arg(folder).args(["--seed", &seed.to_string()]);
    output(&mut near).map(drop)
}
