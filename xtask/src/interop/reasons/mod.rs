//! Every count of requests and of why they went which way, against clients that counted themselves.
//!
//! Clients ask for everything there is, in ways that differ in what decides whether it is cached, of four volumes: two that are cached,
//! one of which comes and goes, one without a cache, and one of the cache alone that fills it. Meanwhile settings change so that
//! every rule of docs/requests.md has its turn. When all is quiet, requests and bytes are those that the clients counted, and all
//! sums hold, exactly.
//!
//! Before that single requests are asked of which the reason is known, and one counter more is looked for each time.

mod known;
mod load;
mod sums;

use super::{MIB, Passed, Setting};
use crate::bench_wa::scratch;
use crate::nbd::Client;
use crate::pattern::mix;
use crate::process::{Context, Result, find_program, output};
use crate::server::{Extra, Serve, Server, format, must_serve, start_with};
use load::{Asker, Export};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const CACHE_BYTES: u64 = 64 * MIB;
const VOLUME_BYTES: u64 = 96 * MIB;
const RAW_BYTES: u64 = 24 * MIB;
/// Nearly all of the cache.
const FLASH_BYTES: u64 = 60 * MIB;
const ASKERS: u64 = 4;
const IN_GATE: Duration = Duration::from_secs(20);
const TURN: Duration = Duration::from_millis(300);
const QUIET: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(200);
/// Memory of the server: what it has by default, and so little that it has to do without.
pub const MEMORIES: [&str; 2] = ["4G", "512k"];
/// Settings and their values.
type Change = &'static [(&'static str, &'static str)];

/// What is set, one after the other, again and again.
const CHANGES: [Change; 16] = [
    &[("one.cache_mode", "writethrough")],
    &[("sequential_cutoff", "0")],
    &[("one.cache_mode", "writearound")],
    &[
        ("one.cache_mode", "writeback"),
        ("sequential_cutoff", "256k"),
    ],
    &[("writeback_running", "off"), ("cutoff_writeback", "5")],
    &[("cutoff_writeback_sync", "20")],
    &[("cutoff_writeback", "70"), ("cutoff_writeback_sync", "90")],
    &[("readahead_cache_policy", "meta-only")],
    &[("one.cache_mode", "none")],
    &[
        ("readahead_cache_policy", "all"),
        ("two.cache_mode", "writethrough"),
    ],
    &[
        ("congested_read_threshold_us", "1"),
        ("congested_write_threshold_us", "1"),
    ],
    &[
        ("one.cache_mode", "writeback"),
        ("two.cache_mode", "writeback"),
    ],
    &[("writeback_running", "on"), ("writeback_percent", "0")],
    &[
        ("congested_read_threshold_us", "2000"),
        ("congested_write_threshold_us", "20000"),
    ],
    &[("cutoff_writeback", "40"), ("cutoff_writeback_sync", "70")],
    &[
        ("writeback_percent", "10"),
        ("sequential_cutoff", "4M"),
        ("journal_delay_ms", "5"),
    ],
];

/// What a run came to.
pub struct Report {
    /// Requests by outcome and reason, and waits.
    pub table: Vec<(String, u64)>,
    /// Requests that clients were answered.
    pub requests: u64,
    /// Sums that were compared.
    pub sums: usize,
    /// Those that differ.
    pub complaints: Vec<String>,
}

impl Report {
    /// The table, reasons without a request at its end.
    pub fn print(&self) {
        let seen = self.table.iter().filter(|(_, count)| *count > 0);
        seen.for_each(|(name, count)| println!("   {name:40} {count:>10}"));
        let never = self.table.iter().filter(|(_, count)| *count == 0);
        let never: Vec<&str> = never.map(|(name, _)| name.as_str()).collect();
        println!("   never: {}", never.join(", "));
    }
}

/// Runs for a short while.
pub fn run(setting: &Setting) -> Result<Passed> {
    let mut note = String::new();
    for round in 0..setting.rounds {
        let seed = mix(setting.seed.wrapping_add(round));
        let memory = MEMORIES[(seed % 2) as usize];
        let report = judge(&setting.program, seed, IN_GATE, memory)?;
        report.print();
        if let Some(first) = report.complaints.first() {
            return Err(format!("round {round}: {first}"));
        }
        let (requests, sums) = (report.requests, report.sums);
        note = format!("{requests} requests, {sums} sums, memory {memory}");
    }
    Ok(Passed::Ran(note))
}

/// One run, in memory.
pub fn judge(program: &Path, seed: u64, time: Duration, memory: &str) -> Result<Report> {
    let folder = scratch("brigade-reasons-")?;
    let (server, exports) = serve(program, folder.path(), memory)?;
    let mut asked = known::ask(&server)?;
    let is_over = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| -> Result<()> {
        let asker = |number: u64| Asker {
            socket: server.socket.clone(),
            exports: exports.clone(),
            seed: mix(seed.wrapping_add(number)),
        };
        let threads: Vec<_> = (0..ASKERS)
            .map(|number| {
                let asker = asker(number);
                let is_over = &is_over;
                scope.spawn(move || asker.run(is_over))
            })
            .collect();
        let turned = turn(&server, folder.path(), time, &|| {
            threads.iter().any(|thread| thread.is_finished())
        });
        is_over.store(true, Ordering::Relaxed);
        for thread in threads {
            let more = thread.join().map_err(|_| "a client panicked")?;
            load::add(&mut asked, more.context("a client")?);
        }
        turned
    });
    outcome?;
    let status = quiet(&server)?;
    let sums = sums::of(&status, &exports, &asked)?;
    let report = Report {
        table: table(&status),
        requests: asked.values().map(|count| count.requests).sum(),
        sums: sums.len(),
        complaints: sums.iter().filter_map(sums::Sum::complaint).collect(),
    };
    server.stop()?;
    let mut check = Command::new(program);
    check.current_dir(folder.path());
    output(check.args(["check", "cache", "one", "two"]))?;
    Ok(report)
}

fn serve(program: &Path, folder: &Path, memory: &str) -> Result<(Server, Vec<Export>)> {
    let at = |name: &str| folder.join(name);
    let words = [
        "--bucket-size",
        "64k",
        "--label",
        "one",
        "--mode",
        "writeback",
    ];
    let [cache, one] = [at("cache"), at("one")];
    format(program, (&cache, CACHE_BYTES), (&one, VOLUME_BYTES), &words)?;
    for (name, bytes) in [("two", VOLUME_BYTES), ("raw", RAW_BYTES)] {
        let mut alone = Command::new(program);
        alone
            .current_dir(folder)
            .args(["format", "--backing", name]);
        output(alone.args(["--create", &bytes.to_string(), "--label", name]))?;
    }
    let serve = Serve {
        caches: vec![cache],
        backings: vec![one, at("two"), at("raw")],
        ..Serve::default()
    };
    let extra = Extra {
        options: vec!["--memory".into(), memory.into()],
        ..Extra::default()
    };
    let server = must_serve(start_with(program, &serve, &extra, folder)?)?;
    server.verb(&["attach", &at("two").display().to_string()])?;
    let flash = FLASH_BYTES.to_string();
    server.verb(&["volume", "create", &flash, "--label", "flash"])?;
    let export = |name: &str| -> Result<Export> {
        let client = Client::connect(&server.socket, name)?;
        let bytes = client.size;
        client.disconnect();
        Ok(Export {
            name: name.into(),
            bytes,
            is_flash: name == "flash",
        })
    };
    let exports = ["one", "two", "flash", "raw"].map(export);
    let exports: Result<Vec<Export>> = exports.into_iter().collect();
    Ok((server, exports?))
}

/// Changes one thing after the other until the time is over.
fn turn(
    server: &Server,
    folder: &Path,
    time: Duration,
    is_broken: &dyn Fn() -> bool,
) -> Result<()> {
    let two = folder.join("two").display().to_string();
    let start = Instant::now();
    let mut turns = 0;
    while start.elapsed() < time && !is_broken() {
        server.set(CHANGES[turns % CHANGES.len()])?;
        match turns % 23 {
            3 => server.verb(&["gc", "--no-wait"]).map(drop)?,
            7 => look(server)?,
            9 => server.verb(&["drain", "--no-wait"]).map(drop)?,
            11 => server.verb(&["drain", "--cancel"]).map(drop)?,
            15 => server.verb(&["detach", "two"]).map(drop)?,
            18 => server.verb(&["attach", &two]).map(drop)?,
            _ => {}
        }
        turns += 1;
        std::thread::sleep(TURN);
    }
    Ok(())
}

/// Somebody asks what is where, which is no request that is counted.
fn look(server: &Server) -> Result<()> {
    if find_program("nbdinfo").is_none() {
        return Ok(());
    }
    let mut info = Command::new("nbdinfo");
    let info = info.arg("--map=brigade:state").arg(server.uri("one"));
    output(info).map(drop)
}

/// The status, once nothing is under way.
fn quiet(server: &Server) -> Result<Value> {
    let start = Instant::now();
    let mut before = Value::Null;
    loop {
        let status = server.status()?;
        let counts = counts(&status);
        if under_way(&status) == 0 && counts == before {
            return Ok(status);
        }
        if start.elapsed() > QUIET {
            return Err(format!("{} are still under way", under_way(&status)));
        }
        before = counts;
        std::thread::sleep(LOOK);
    }
}

/// What clients ask for, as the status groups it.
const KINDS: [&str; 6] = [
    "reads",
    "writes",
    "discards",
    "zeroes",
    "flushes",
    "prefetches",
];

/// What clients do; writing back may go on.
fn counts(status: &Value) -> Value {
    let of = |volume: &Value| {
        let kinds = KINDS.iter().chain(&["fills"]);
        let requests = kinds.map(|kind| volume[*kind]["requests"].clone());
        requests.collect::<Vec<_>>()
    };
    let volumes = status["volumes"].as_array().into_iter().flatten();
    volumes.map(|volume| Value::from(of(volume))).collect()
}

fn under_way(status: &Value) -> u64 {
    let number = |value: &Value| value.as_u64().unwrap_or(u64::MAX / 1000);
    let of = |volume: &Value| {
        let requests: u64 = KINDS
            .iter()
            .map(|kind| number(&volume[*kind]["in_flight"]))
            .sum();
        requests + number(&volume["fills"]["under_way"])
    };
    let volumes = status["volumes"].as_array().into_iter().flatten();
    volumes.map(of).sum()
}

/// Requests by outcome and reason, over all volumes.
fn table(status: &Value) -> Vec<(String, u64)> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let keys = [
        ("reads", "hits", ""),
        ("reads", "misses", ""),
        ("reads", "bypassed_by", "bypassed, "),
        ("writes", "writeback", ""),
        ("writes", "not_dirty_by", "both, "),
        ("writes", "bypassed_by", "bypassed, "),
        ("prefetches", "done", ""),
        ("prefetches", "ignored_by", "ignored, "),
        ("discards", "done", ""),
        ("discards", "ignored", ""),
        ("zeroes", "done", ""),
        ("flushes", "done", ""),
        ("fills", "ended_by", ""),
    ];
    for volume in status["volumes"].as_array().into_iter().flatten() {
        for (kind, key, how) in keys {
            let value = &volume[kind][key];
            match value.as_object() {
                Some(reasons) => reasons.iter().for_each(|(reason, count)| {
                    *counts.entry(format!("{kind}: {how}{reason}")).or_default() +=
                        count.as_u64().unwrap_or(0);
                }),
                None => {
                    *counts.entry(format!("{kind}: {key}")).or_default() +=
                        value.as_u64().unwrap_or(0);
                }
            }
        }
    }
    let set = &status["cache_set"];
    let recycled = &set["devices"][0]["recycled"];
    for (what, values) in [("stalls", &set["stalls"]), ("recycled", recycled)] {
        for (key, count) in values.as_object().into_iter().flatten() {
            let count = count.as_u64().unwrap_or(0);
            counts.insert(format!("{what}: {key}"), count);
        }
    }
    counts.into_iter().collect()
}
