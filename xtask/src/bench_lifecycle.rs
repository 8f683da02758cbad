//! `cargo x bench lifecycle`: the longest pause of any client while devices and volumes come, go, grow and change.
//!
//! What is done and how is with the test (`interop/lifecycle.rs`), which prints the pauses and fails at errors only. Here a pause above the
//! limit is a failure too: of a probe of our own, which asks one thing at a time, or of any request of fio. The loop that does
//! nothing says what of a pause is the machine's.

use crate::interop::{any_seed, lifecycle};
use crate::options::Options;
use crate::pattern::mix;
use crate::process::Result;
use crate::server::brigade;
use std::process::ExitCode;
use std::time::Duration;

const LIMIT_MS: u64 = 200;
/// Four times as much and as fast as in the gate.
const SCALE: u64 = 4;
const RATE: u64 = 4 * lifecycle::RATE;

/// Runs `cargo x bench lifecycle [--rounds N] [--limit MS] [--rate N] [--scale N] [--seed N]`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let flags = ["--rounds", "--limit", "--rate", "--scale", "--seed"];
    let options = Options::of(arguments, &flags, &[])?;
    let limit = Duration::from_millis(options.number("--limit", LIMIT_MS)?);
    let scale = lifecycle::Scale {
        times: options.number("--scale", SCALE)?.max(1),
        rate: options.number("--rate", RATE)?.max(1),
    };
    let seed = options.number("--seed", any_seed())?;
    if !crate::fio::speaks_nbd()? {
        return Err("this fio has no nbd engine".into());
    }
    let program = brigade()?;
    let mut is_met = true;
    for round in 0..options.number("--rounds", 1)?.max(1) {
        let seed = mix(seed.wrapping_add(round)) & 0xffff_ffff;
        let report = lifecycle::judge(&program, seed, scale)?;
        report.print();
        let longest = report.longest();
        is_met &= longest <= limit;
        println!(
            "round {round}: {} writes and {} verified reads of fio, 0 errors; longest pause {:.1} ms (<= {}) {}",
            report.fio.writes,
            report.fio.reads,
            longest.as_secs_f64() * 1e3,
            limit.as_millis(),
            if longest <= limit { "ok" } else { "MISSED" }
        );
    }
    Ok(match is_met {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
