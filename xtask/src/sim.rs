//! `cargo x sim`: builds the simulator, fast and with all assertions, and hands everything on to it.

use crate::process::{Context, Result};
use crate::server::cargo;
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
