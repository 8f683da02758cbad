//! `cargo x test`: the one gate. Runs every judge there is, says how each went, and what could not run.
//!
//! A part that cannot run here (no root to install with, no network) is SKIPPED, loudly and counted; it is never
//! taken for a pass.

use crate::interop::{self, Passed};
use crate::process::{Context, Result, find_program, last_lines, need_programs};
use crate::server::{brigade, cargo};
use crate::{kernel, tidy};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const SHOWN_LINES: usize = 60;
/// Lines of a failed part that are said again at the very end, where whoever reads only the end sees them.
const TOLD_LINES: usize = 20;
/// What cargo says while it works, which hides what went wrong.
const PROGRESS: [&str; 6] = [
    "Compiling ",
    "Downloaded ",
    "Downloading ",
    "Locking ",
    "Updating ",
    "Adding ",
];

/// Results so far.
#[derive(Default)]
struct Gate {
    passed: u32,
    failed: Vec<(String, Vec<String>)>,
    skipped: Vec<String>,
}

impl Gate {
    /// Runs one part, prints how it went and keeps the score.
    fn part(&mut self, name: &str, run: impl FnOnce() -> Result<Passed>) {
        println!("== {name}");
        let start = Instant::now();
        let outcome = run();
        let seconds = start.elapsed().as_secs_f32();
        match outcome {
            Ok(Passed::Ran(note)) => {
                self.passed += 1;
                println!(
                    "   passed in {seconds:.1} s{}",
                    if note.is_empty() {
                        note
                    } else {
                        format!(": {note}")
                    }
                );
            }
            Ok(Passed::Skipped(why)) => {
                println!("   SKIPPED: {why}");
                self.skipped.push(format!("{name}: {why}"));
            }
            Err(error) => {
                let error = without_progress(&error);
                println!(
                    "   FAILED after {seconds:.1} s\n{}",
                    last_lines(&error, SHOWN_LINES)
                );
                self.failed.push((name.to_string(), culprits(&error)));
            }
        }
    }

    fn finish(self, time: Duration) -> ExitCode {
        println!();
        for why in &self.skipped {
            println!("SKIPPED: {why}");
        }
        for (name, culprits) in &self.failed {
            println!("FAILED: {name}");
            culprits.iter().for_each(|line| println!("   {line}"));
        }
        println!("{:.0} s", time.as_secs_f32());
        println!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped.len()
        );
        if self.failed.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Runs `cargo x test [--fast] [--seed N]`; `--fast` leaves the virtual machine out.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let fast = arguments.iter().any(|argument| argument == "--fast");
    let seed = match arguments
        .iter()
        .skip_while(|argument| *argument != "--seed")
        .nth(1)
    {
        Some(text) => text.parse().context("--seed")?,
        None => interop::any_seed(),
    };
    let start = Instant::now();
    let mut gate = Gate::default();
    gate.part("fmt", || {
        quietly(cargo().args(["fmt", "--all", "--check", "--", "-l"]))
    });
    gate.part("tidy", tidy::check);
    gate.part("clippy", || {
        quietly(cargo().args([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    });
    gate.part("doc", || {
        quietly(cargo().env("RUSTDOCFLAGS", "-D warnings").args([
            "doc",
            "--quiet",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ]))
    });
    gate.part("test", tests);
    gate.part("mistakes", mistakes);
    gate.part("deny", deny);
    interop_parts(&mut gate, fast, seed);
    Ok(gate.finish(start.elapsed()))
}

/// The text without what cargo says about its progress.
fn without_progress(text: &str) -> String {
    let is_progress = |line: &&str| {
        PROGRESS
            .iter()
            .any(|word| line.trim_start().starts_with(word))
    };
    let lines: Vec<&str> = text.lines().filter(|line| !is_progress(line)).collect();
    lines.join("\n")
}

/// The lines that name what failed: failed tests, panics with their message, errors of the compiler.
fn culprits(text: &str) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    let mut is_message = false;
    for line in text.lines().map(str::trim) {
        let is_named = line.starts_with("FAIL ")
            || line.starts_with("TIMEOUT ")
            || line.starts_with("SIG")
            || line.starts_with("error")
            || line.ends_with(" ... FAILED")
            || line.ends_with(" --- FAILED");
        let is_panic = line.contains("panicked at ");
        if (is_named || is_panic || is_message) && !told.iter().any(|has| has == line) {
            told.push(line.to_string());
        }
        is_message = is_panic;
    }
    if told.is_empty() {
        told.extend(text.lines().rev().take(3).map(str::to_string));
        told.reverse();
    }
    told.truncate(TOLD_LINES);
    told
}

fn quietly(command: &mut Command) -> Result<Passed> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .context("cannot run cargo")?;
    if out.status.success() {
        return Ok(Passed::Ran(String::new()));
    }
    Err(format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    ))
}

/// Unit and integration tests with nextest where it is installed, then the examples in the docs.
fn tests() -> Result<Passed> {
    if find_program("cargo-nextest").is_none() {
        return quietly(cargo().args(["test", "--quiet", "--workspace", "--no-fail-fast"]));
    }
    let flags = [
        "nextest",
        "run",
        "--workspace",
        "--no-fail-fast",
        "--status-level",
        "fail",
    ];
    quietly(cargo().args(flags).args(["--final-status-level", "fail"]))?;
    quietly(cargo().args(["test", "--quiet", "--workspace", "--doc"]))
}

/// Every deliberate mistake of the allocator is seen by a test of the rule it breaks (docs/allocator.md), and stories that end
/// well end badly with theirs.
fn mistakes() -> Result<Passed> {
    let instrumented = |tests: &[&str]| {
        let mut cargo = cargo();
        cargo.args(["test", "--quiet", "--package", "brigade-engine"]);
        cargo.args(["--features", "instrumented"]).args(tests);
        quietly(&mut cargo)
    };
    instrumented(&["--lib", "every_mistake_of_the_allocator"])?;
    instrumented(&["--test", "orders", "--test", "paging", "--test", "bridging"])
}

fn deny() -> Result<Passed> {
    if find_program("cargo-deny").is_none() && !home_cargo("cargo-deny").exists() {
        return Ok(Passed::Skipped(
            "cargo-deny is not installed (cargo install cargo-deny --locked)".into(),
        ));
    }
    quietly(cargo().args(["deny", "--offline", "check", "licenses", "bans", "sources"]))
}

fn home_cargo(program: &str) -> PathBuf {
    std::env::var_os("HOME")
        .map(PathBuf::from)
        .unwrap_or_default()
        .join(".cargo/bin")
        .join(program)
}

fn interop_parts(gate: &mut Gate, fast: bool, seed: u64) {
    let mut program = None;
    gate.part("build", || {
        program = Some(brigade()?);
        Ok(Passed::Ran(String::new()))
    });
    // Our own client stands in for these where they cannot be installed.
    if let Err(why) = need_programs(&[
        ("nbdcopy", "libnbd-bin"),
        ("nbdkit", "nbdkit"),
        ("mkfs.ext4", "e2fsprogs"),
    ]) {
        println!("   {why}");
    }
    let kernel_missing = if fast {
        Some("--fast".to_string())
    } else {
        kernel::setup(None, false).err()
    };
    for test in interop::TESTS {
        gate.part(&format!("interop {} (seed {seed})", test.name), || {
            if test.needs_kernel
                && let Some(why) = &kernel_missing
            {
                return Ok(Passed::Skipped(why.clone()));
            }
            let Some(program) = &program else {
                return Err("there is no brigade to judge".into());
            };
            interop::run(test, program, None, seed, None)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_names_what_failed_and_not_what_was_compiled() {
        let text = "   Compiling engine v0.1.0\n        FAIL [   0.1s] engine::story it_ends\n\
                    thread 'it_ends' panicked at tests/story.rs:3:5:\nit did not end\nnote: run with\n\
                    error: test run failed";
        let clean = without_progress(text);
        assert!(!clean.contains("Compiling"));
        assert_eq!(
            culprits(&clean),
            [
                "FAIL [   0.1s] engine::story it_ends",
                "thread 'it_ends' panicked at tests/story.rs:3:5:",
                "it did not end",
                "error: test run failed"
            ]
        );
        assert_eq!(culprits("a\nb\nc\nd"), ["b", "c", "d"]);
    }
}
