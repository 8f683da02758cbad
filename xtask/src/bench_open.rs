//! `cargo x bench open`: how a set with very many extents is opened.
//!
//! The set is made by Brigade itself: writes of single sectors, none beside another, in an order that jumps about, so that
//! each is an extent of its own. Then it is opened several times. What counts is that no byte of metadata is read
//! twice: by the server's own count, by the kernel's of the same process, and by its system calls one by one where there
//! is an strace.

use crate::nbd::Client;
use crate::pattern::{SECTOR, fill};
use crate::process::{Context, Result, need_programs};
use crate::server::{Extra, Serve, Server, brigade, format, must_serve, start_ready, start_with};
use crate::trace::{self, Reads};
use serde_json::Value;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

const EXTENTS: u64 = 1_000_000;
const EXTENTS_MIN: u64 = 1000;
/// Openings; the median is reported.
const OPENINGS: usize = 5;
/// Sectors of the volume for each extent: the written one and one between it and the next.
const SPACING: u64 = 2;
const IN_FLIGHT: u64 = 64;
/// A prime beside which the number of extents has no common divisor, unless it is a multiple of it.
const STRIDE: u64 = 611_953;
const MIB: u64 = 1 << 20;
/// Beside the data and its index: room for whatever the cache keeps free, and to stay below the limits of dirty data.
const CACHE_SHARE: u64 = 4;
/// What a process reads beside its devices: its own libraries, /proc, configuration.
const OTHER_READS: u64 = MIB;
const SUPERBLOCK_BYTES: u64 = 8192;
const TICKS_PER_SECOND: f64 = 100.0;

/// What one opening took.
struct Opening {
    seconds: f64,
    cpu_seconds: f64,
    stop_seconds: f64,
    /// Read from the cache device, by the server's own count.
    counted: u64,
    /// Read by the process, as the kernel counts it.
    seen: u64,
    resident: u64,
    resident_most: u64,
    status: Value,
}

/// Runs `cargo x bench open [--extents N]`, or with `--memory` that of a set too large to wait for.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    if arguments.iter().any(|argument| argument == "--memory") {
        return crate::bench_open_large::main(arguments);
    }
    let extents = match arguments {
        [] => EXTENTS,
        [flag, number] if flag == "--extents" => number.parse().context("--extents")?,
        _ => {
            println!("cargo x bench open [--extents N] [--memory M,... ...]");
            return Ok(ExitCode::from(2));
        }
    };
    if extents < EXTENTS_MIN || extents % STRIDE == 0 {
        return Err(format!(
            "--extents: at least {EXTENTS_MIN}, and no multiple of {STRIDE}"
        ));
    }
    let program = brigade()?;
    let scratch = tempfile::Builder::new()
        .prefix("brigade-bench-")
        .tempdir()
        .context("no scratch folder")?;
    let serve = make(&program, scratch.path(), extents)?;
    let mut openings = Vec::new();
    for _ in 0..OPENINGS {
        openings.push(open(&program, &serve, "uring", scratch.path())?);
    }
    // Reads by io_uring are in the kernel's count of storage reads only, reads by threads in that of all reads.
    let threads = open(&program, &serve, "threads", scratch.path())?;
    let traced = traced(&program, &serve, scratch.path())?;
    report(extents, &mut openings, &threads, traced.as_ref())
}

/// What one more opening, with all that follows until the stop, reads from the cache device; none without strace.
fn traced(program: &Path, serve: &Serve, folder: &Path) -> Result<Option<Reads>> {
    if let Err(why) = need_programs(&[("strace", "strace")]) {
        println!("system calls not looked at: {why}");
        return Ok(None);
    }
    let log = folder.join("strace.log");
    let extra = Extra {
        options: engine("threads"),
        under: trace::under(&log),
    };
    must_serve(start_with(program, serve, &extra, folder)?)?.stop()?;
    let cache = serve.caches.first().ok_or("no cache device")?;
    trace::reads_of(&trace::finished(&log)?, cache).map(Some)
}

fn engine(name: &str) -> Vec<String> {
    vec!["--engine".into(), name.into()]
}

/// Makes the set, writes every extent, and stops in order.
fn make(program: &Path, folder: &Path, extents: u64) -> Result<Serve> {
    let (cache, backing) = (folder.join("cache.img"), folder.join("back.img"));
    let volume_bytes = extents * SPACING * SECTOR as u64;
    let backing_bytes = (volume_bytes + 2 * MIB).next_multiple_of(MIB);
    let cache_bytes = (extents * SECTOR as u64 * CACHE_SHARE + 512 * MIB).next_multiple_of(MIB);
    format(
        program,
        (&cache, cache_bytes),
        (&backing, backing_bytes),
        &["--mode", "writeback", "--block-size", "512"],
    )?;
    let serve = Serve {
        caches: vec![cache],
        backings: vec![backing],
        mode: Some("writeback"),
        read_only: false,
    };
    let start = Instant::now();
    let server = start_ready(program, &serve, folder)?;
    write(&server, extents)?;
    let status = server.status()?;
    let keys = number(&status, "keys");
    for task in status["cache_set"]["background"]
        .as_array()
        .into_iter()
        .flatten()
    {
        println!(
            "background {}: {} steps, {} ms, the longest {} us",
            task["task"].as_str().unwrap_or_default(),
            task["steps"],
            task["total_ms"],
            task["longest_us"]
        );
    }
    server.stop()?;
    println!(
        "{extents} extents written in {:.1} s, {keys} keys in the index before the stop",
        start.elapsed().as_secs_f64()
    );
    Ok(serve)
}

fn write(server: &Server, extents: u64) -> Result<()> {
    let mut client = Client::connect(&server.socket, "")?;
    let mut data = vec![0u8; SECTOR];
    let receive = |client: &mut Client| match client.receive()?.error {
        0 => Ok(()),
        error => Err(format!("the server answered a write with error {error}")),
    };
    let mut open = 0;
    for i in 0..extents {
        let sector = i * STRIDE % extents * SPACING;
        fill(&mut data, sector, 1);
        client.send_write(sector * SECTOR as u64, &data, false);
        open += 1;
        // Half of the window at a time: fewer, larger exchanges.
        if open == IN_FLIGHT {
            client.push()?;
            while open > IN_FLIGHT / 2 {
                receive(&mut client)?;
                open -= 1;
            }
        }
    }
    for _ in 0..open {
        receive(&mut client)?;
    }
    client.flush()?;
    client.disconnect();
    Ok(())
}

fn open(program: &Path, serve: &Serve, name: &str, folder: &Path) -> Result<Opening> {
    let extra = Extra {
        options: engine(name),
        ..Extra::default()
    };
    let start = Instant::now();
    let server = must_serve(start_with(program, serve, &extra, folder)?)?;
    let seconds = start.elapsed().as_secs_f64();
    let pid = server.pid();
    let cpu_seconds = cpu_seconds(pid)?;
    let reads = if name == "uring" {
        "read_bytes"
    } else {
        "rchar"
    };
    let seen = proc_number(pid, "io", reads)?;
    let kib = |key: &str| proc_number(pid, "status", key).map(|kib| kib * 1024);
    let (resident, resident_most) = (kib("VmRSS")?, kib("VmHWM")?);
    let status = server.status()?;
    let stop = Instant::now();
    server.stop()?;
    Ok(Opening {
        seconds,
        cpu_seconds,
        stop_seconds: stop.elapsed().as_secs_f64(),
        counted: number(&status, "read_bytes"),
        seen,
        resident,
        resident_most,
        status,
    })
}

/// A number about the index.
pub fn number(status: &Value, key: &str) -> u64 {
    status["cache_set"]["btree"][key].as_u64().unwrap_or(0)
}

/// Bytes of metadata on the cache device: its superblock, and every bucket of journal, tables and nodes whole.
fn metadata_bytes(status: &Value) -> u64 {
    let devices = status["cache_set"]["devices"].as_array();
    let device = |device: &Value| {
        let buckets = device["buckets"]["metadata"].as_u64().unwrap_or(0);
        SUPERBLOCK_BYTES + buckets * device["bucket_bytes"].as_u64().unwrap_or(0)
    };
    devices.into_iter().flatten().map(device).sum()
}

fn report(
    extents: u64,
    openings: &mut [Opening],
    threads: &Opening,
    traced: Option<&Reads>,
) -> Result<ExitCode> {
    let mut wrong = Vec::new();
    for (name, opening) in openings
        .iter()
        .map(|opening| ("uring", opening))
        .chain([("threads", threads)])
    {
        complaints(extents, name, opening, &mut wrong);
    }
    if let Some(reads) = traced {
        println!(
            "by its system calls, from start to stop: {} bytes read from the cache device, {} of them again",
            reads.total, reads.again
        );
        if let Some(offset) = reads.first_again {
            wrong.push(format!(
                "read again: {} bytes, first at byte {offset}",
                reads.again
            ));
        }
    }
    openings.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let middle = openings.get(openings.len() / 2).ok_or("no opening")?;
    let status = &middle.status;
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    println!(
        "opened {OPENINGS} times: {:.2} s ({:.2} to {:.2}), {:.2} s CPU; stopped in {:.2} s",
        middle.seconds,
        openings[0].seconds,
        openings[openings.len() - 1].seconds,
        middle.cpu_seconds,
        middle.stop_seconds
    );
    println!(
        "index: {} keys, {} nodes, depth {}, {:.1} MiB in memory by status; process {:.1} MiB resident, {:.1} at most",
        number(status, "keys"),
        number(status, "nodes"),
        number(status, "depth"),
        mib(number(status, "memory_bytes")),
        mib(middle.resident),
        mib(middle.resident_most)
    );
    println!(
        "metadata on the cache device {:.1} MiB; read {:.1} MiB by status, {:.1} MiB by /proc/PID/io ({:.1} MiB with threads)",
        mib(metadata_bytes(status)),
        mib(middle.counted),
        mib(middle.seen),
        mib(threads.seen)
    );
    for line in &wrong {
        println!("WRONG: {line}");
    }
    Ok(match wrong.len() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn complaints(extents: u64, name: &str, opening: &Opening, wrong: &mut Vec<String>) {
    let there = metadata_bytes(&opening.status);
    if opening.counted > there {
        wrong.push(format!(
            "{name}: read {} of {there} bytes of metadata by the server's count: some twice",
            opening.counted
        ));
    }
    if opening.seen > there + OTHER_READS {
        wrong.push(format!(
            "{name}: read {} bytes by the kernel's count, {there} of metadata are there: some twice",
            opening.seen
        ));
    }
    let keys = number(&opening.status, "keys");
    if keys < extents {
        wrong.push(format!(
            "{name}: {keys} keys in the index, {extents} extents were written"
        ));
    }
}

/// Processor time of a process so far.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the server is gone")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|text| text.parse::<f64>().ok());
    Ok((ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / TICKS_PER_SECOND)
}

/// A number from a file of `KEY: NUMBER` lines in a process's folder.
pub fn proc_number(pid: u32, file: &str, key: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/{file}");
    let text = std::fs::read_to_string(&path).context(&path)?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| format!("{path} has no {key}"))
}
