//! `cargo x bench sync`: one write of 4 KiB, one flush, again and again: what an fsync costs a client.
//!
//! Brigade with a cache in writeback mode, with only what is dirty in the cache, takes turns with Brigade serving the cache device alone,
//! without a cache: the same frontend, client and file. All are in memory. Each round gives one ratio, and the median of those is
//! judged. A flush of the backing device has no place here, as nothing is written to it: they are counted by the server.

use crate::bench_wa::scratch;
use crate::nbd::Client;
use crate::options::Options;
use crate::pattern::{fill, mix};
use crate::process::Result;
use crate::server::{Serve, Server, brigade, format, start_ready};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
const ROUNDS: u64 = 21;
const ROUND: Duration = Duration::from_millis(500);
const VOLUME: u64 = 64 * MIB;
const TARGET: f64 = 0.5;

/// Runs `cargo x bench sync [--rounds N]`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let options = Options::of(arguments, &["--rounds"], &[])?;
    let rounds = options.number("--rounds", ROUNDS)?.max(1);
    let program = brigade()?;
    let folder = scratch("brigade-sync-")?;
    let at = |name: &str| folder.path().join(name);
    let words = ["--bucket-size", "64k", "--mode", "writeback"];
    format(
        &program,
        (&at("cache"), 512 * MIB),
        (&at("back"), VOLUME + MIB),
        &words,
    )?;
    format(
        &program,
        (&at("other"), 512 * MIB),
        (&at("raw"), VOLUME + MIB),
        &words,
    )?;
    let cached = Serve {
        caches: vec![at("cache")],
        backings: vec![at("back")],
        ..Serve::default()
    };
    let raw = Serve {
        backings: vec![at("raw")],
        ..Serve::default()
    };
    // A backing device on its own that belongs to a set is not served; this one belongs to none.
    let alone = ["--backing", "raw", "--force"];
    let mut again = std::process::Command::new(&program);
    crate::process::output(again.arg("format").args(alone).current_dir(folder.path()))?;
    let [one, two] = ["one", "two"].map(at);
    for path in [&one, &two] {
        std::fs::create_dir(path).map_err(|error| error.to_string())?;
    }
    let cached = start_ready(&program, &cached, &one)?;
    let raw = start_ready(&program, &raw, &two)?;
    warm(&cached)?;
    warm(&raw)?;
    let before = backing(&cached)?;
    let mut ratios = Vec::new();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let (a, b) = (rate(&cached, round)?, rate(&raw, round)?);
        ours.push(a);
        theirs.push(b);
        ratios.push(a / b);
    }
    let after = backing(&cached)?;
    for server in [cached, raw] {
        server.stop()?;
    }
    let ratio = median(&mut ratios);
    let (flushes, written) = (after.0 - before.0, after.1 - before.1);
    println!("write of 4 KiB and flush, one at a time, a second (medians of {rounds} rounds):");
    println!("  cached, writeback   {:9.0}", median(&mut ours));
    println!("  cache device alone  {:9.0}", median(&mut theirs));
    println!(
        "  ratio               {ratio:9.2}  (>= {TARGET}) {}",
        verdict(ratio >= TARGET)
    );
    let is_quiet = written > 0 || flushes == 0;
    println!(
        "  flushes of the backing device meanwhile: {flushes}, bytes written to it: {written}  {}",
        verdict(is_quiet)
    );
    Ok(match ratio >= TARGET && is_quiet {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "ok" } else { "MISSED" }
}

/// Flushes of the backing device, and bytes written to it.
fn backing(server: &Server) -> Result<(u64, u64)> {
    let status = server.status()?;
    let of = &status["volumes"][0]["backing"];
    let number = |key: &str| of[key].as_u64().ok_or(format!("the status has no {key}"));
    Ok((number("flushes")?, number("written_bytes")?))
}

/// The first flush has to be passed on, whatever was there before.
fn warm(server: &Server) -> Result<()> {
    // Nothing is to be written back meanwhile; what is dirty fits well.
    server.set(&[("writeback_running", "off")])?;
    let mut client = Client::connect(&server.socket, "")?;
    client.flush()?;
    client.disconnect();
    Ok(())
}

/// Writes with a flush each, a second.
fn rate(server: &Server, round: u64) -> Result<f64> {
    let mut client = Client::connect(&server.socket, "")?;
    let mut data = vec![0; BLOCK];
    fill(&mut data, 0, round + 1);
    let (start, mut count) = (Instant::now(), 0u64);
    while start.elapsed() < ROUND {
        let block = mix(round << 32 | count) % (VOLUME / BLOCK as u64);
        client.write_at(block * BLOCK as u64, &data, false)?;
        client.flush()?;
        count += 1;
    }
    let rate = count as f64 / start.elapsed().as_secs_f64();
    client.disconnect();
    Ok(rate)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
