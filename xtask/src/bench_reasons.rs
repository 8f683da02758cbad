//! `cargo x bench reasons`: is every request counted, exactly once and for a reason?
//!
//! What is done and compared is with the test (`interop/reasons`), which does it for some seconds.

use crate::interop::{any_seed, reasons};
use crate::options::Options;
use crate::process::Result;
use crate::server::brigade;
use std::process::ExitCode;
use std::time::Duration;

const MINUTES: f64 = 10.0;

/// Runs `cargo x bench reasons [--minutes M] [--memory SIZE] [--seed N]`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let options = Options::of(arguments, &["--minutes", "--memory", "--seed"], &[])?;
    let memory = options.text("--memory").unwrap_or(reasons::MEMORIES[0]);
    let time = Duration::from_secs_f64(options.fraction("--minutes", MINUTES)?.max(0.0) * 60.0);
    let seed = options.number("--seed", any_seed())?;
    let report = reasons::judge(&brigade()?, seed, time, memory)?;
    report.print();
    println!(
        "{} requests, {} sums, memory {memory}, seed {seed}",
        report.requests, report.sums
    );
    match report.complaints.first() {
        None => {
            println!("OK");
            Ok(ExitCode::SUCCESS)
        }
        Some(first) => {
            println!("{first} ({} more)", report.complaints.len() - 1);
            Ok(ExitCode::FAILURE)
        }
    }
}
