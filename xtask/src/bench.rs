//! `cargo x bench nbd`: Brigade beside nbdkit, in the same run, on the same memory-backed files.
//!
//! Ratios are what counts: the servers take turns, every round gives one ratio, and the median of those is
//! printed, so that a machine that is busy with other things slows all of them. The client is the judge's own
//! and the same for all.

use crate::nbd::{Client, REPLY_MAGIC, REQUEST_MAGIC};
use crate::pattern::{SECTOR, fill, mix};
use crate::process::{Context, Result, find_program, need_programs, output};
use crate::server::{Serve, Server, brigade, format, start_ready};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const VOLUME_BYTES: u64 = 256 << 20;
const CACHE_BYTES: u64 = 1 << 30;
const BLOCK: usize = 4096;
const DEPTH: usize = 32;
const REPLY_BYTES: usize = 16;
const INBOX_BYTES: usize = 256 << 10;
const FILL_BYTES: usize = 64 << 10;
/// Many short rounds: what else the machine does then meets all servers alike.
const ROUNDS: usize = 21;
const ROUND_TIME: Duration = Duration::from_millis(500);
const TICKS_PER_SECOND: f64 = 100.0;
/// Cached reads against nbdkit's file plugin.
const TARGET_NBDKIT: f64 = 2.5;
/// Cached reads against Brigade without a cache.
const TARGET_PASS_THROUGH: f64 = 0.8;

/// A server under measurement.
struct Subject {
    name: &'static str,
    socket: PathBuf,
    pid: u32,
    _process: Process,
}

enum Process {
    Nbdkit(Child),
    Brigade(#[expect(dead_code, reason = "kept for its drop")] Server),
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Process::Nbdkit(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One measurement.
#[derive(Clone, Copy)]
struct Rate {
    per_second: f64,
    cpu_us: f64,
}

/// Runs `cargo x bench nbd [--rounds N] [--only nbdkit|passthrough|cached]`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    if arguments.first().map(String::as_str) != Some("nbd") {
        println!("cargo x bench nbd [--rounds N] [--only nbdkit|passthrough|cached]");
        return Ok(ExitCode::from(2));
    }
    let value = |flag: &str| arguments.iter().skip_while(|a| *a != flag).nth(1);
    let rounds = match value("--rounds") {
        Some(text) => text.parse::<usize>().context("--rounds")?.max(1),
        None => ROUNDS,
    };
    need_programs(&[("nbdkit", "nbdkit")])?;
    let program = brigade()?;
    let base = if Path::new("/dev/shm").is_dir() {
        Path::new("/dev/shm")
    } else {
        Path::new("/tmp")
    };
    let scratch = tempfile::Builder::new()
        .prefix("brigade-bench-")
        .tempdir_in(base)
        .context("no scratch folder")?;
    let subjects = [
        nbdkit(scratch.path())?,
        pass_through(&program, scratch.path())?,
        cached(&program, scratch.path())?,
    ];
    if let Some(name) = value("--only") {
        return only(&subjects, name, rounds);
    }
    for subject in &subjects {
        warm(subject).context(subject.name)?;
    }
    println!(
        "4 KiB blocks, queue depth {DEPTH}, one connection, {rounds} rounds of {ROUND_TIME:?} each, median"
    );
    let [nbdkit, pass_through, cached] = compare(&subjects, rounds, false)?;
    let against_nbdkit = ratio(
        "randread cached/nbdkit",
        &cached,
        &nbdkit,
        Some(TARGET_NBDKIT),
    );
    let against_pass = ratio(
        "randread cached/passthrough",
        &cached,
        &pass_through,
        Some(TARGET_PASS_THROUGH),
    );
    let [nbdkit, pass_through, cached] = compare(&subjects, rounds, true)?;
    ratio("randwrite cached/nbdkit", &cached, &nbdkit, None);
    ratio("randwrite cached/passthrough", &cached, &pass_through, None);
    Ok(if against_nbdkit && against_pass {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// One server alone, for a profiler to look at.
fn only(subjects: &[Subject; 3], name: &str, rounds: usize) -> Result<ExitCode> {
    let subject = subjects.iter().find(|subject| subject.name == name);
    let subject = subject.ok_or("--only: nbdkit, passthrough or cached")?;
    warm(subject)?;
    println!("{name} is process {}", subject.pid);
    for write in [false, true] {
        let rates = (0..rounds)
            .map(|round| measure(subject, write, mix(round as u64)))
            .collect::<Result<Vec<Rate>>>()?;
        report(subject, &rates, write);
    }
    Ok(ExitCode::SUCCESS)
}

fn nbdkit(folder: &Path) -> Result<Subject> {
    let (file, socket) = (folder.join("nbdkit.img"), folder.join("nbdkit.sock"));
    std::fs::File::create(&file)
        .and_then(|file| file.set_len(VOLUME_BYTES))
        .context("cannot make a file")?;
    let program = find_program("nbdkit").ok_or("no nbdkit")?;
    let child = Command::new(program)
        .args(["--foreground", "--unix"])
        .arg(&socket)
        .arg("file")
        .arg(&file)
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start nbdkit")?;
    let subject = Subject {
        name: "nbdkit",
        socket,
        pid: child.id(),
        _process: Process::Nbdkit(child),
    };
    let end = Instant::now() + Duration::from_secs(10);
    while Client::connect(&subject.socket, "").is_err() {
        if Instant::now() > end {
            return Err("nbdkit does not answer".into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(subject)
}

fn serving(name: &'static str, program: &Path, folder: &Path, serve: &Serve) -> Result<Subject> {
    let server = start_ready(program, serve, folder)?;
    Ok(Subject {
        name,
        socket: server.socket.clone(),
        pid: server.pid(),
        _process: Process::Brigade(server),
    })
}

fn subfolder(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    std::fs::create_dir_all(&path).context("cannot make a folder")?;
    Ok(path)
}

fn pass_through(program: &Path, folder: &Path) -> Result<Subject> {
    let folder = subfolder(folder, "passthrough")?;
    let backing = folder.join("back.img");
    std::fs::File::create(&backing)
        .and_then(|file| file.set_len(VOLUME_BYTES))
        .context("cannot make a file")?;
    output(
        Command::new(program)
            .arg("format")
            .arg("--backing")
            .arg(&backing),
    )?;
    serving(
        "passthrough",
        program,
        &folder,
        &Serve {
            backings: vec![backing],
            ..Serve::default()
        },
    )
}

fn cached(program: &Path, folder: &Path) -> Result<Subject> {
    let folder = subfolder(folder, "cached")?;
    let (cache, backing) = (folder.join("cache.img"), folder.join("back.img"));
    format(
        program,
        (&cache, CACHE_BYTES),
        (&backing, VOLUME_BYTES),
        &["--mode", "writeback"],
    )?;
    let serve = Serve {
        caches: vec![cache],
        backings: vec![backing],
        mode: Some("writeback"),
        read_only: false,
    };
    serving("cached", program, &folder, &serve)
}

/// Writes everything once, in an order in which nothing looks sequential, and reads it once.
fn warm(subject: &Subject) -> Result<()> {
    let mut client = Client::connect(&subject.socket, "")?;
    let pieces = client.size / FILL_BYTES as u64;
    let mut data = vec![0u8; FILL_BYTES];
    // An odd stride visits every piece of a power of two, and nearly every one of another number.
    for i in 0..pieces {
        let offset = (i * 1021 % pieces) * FILL_BYTES as u64;
        fill(&mut data, offset / SECTOR as u64, 1);
        client.write_at(offset, &data, false)?;
    }
    client.flush()?;
    for i in 0..pieces {
        client.read_at((i * 1021 % pieces) * FILL_BYTES as u64, FILL_BYTES)?;
    }
    client.disconnect();
    Ok(())
}

fn compare(subjects: &[Subject; 3], rounds: usize, write: bool) -> Result<[Vec<Rate>; 3]> {
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..rounds {
        for turn in 0..subjects.len() {
            let i = (turn + round) % subjects.len();
            let rate = measure(&subjects[i], write, mix(round as u64)).context(subjects[i].name)?;
            rates[i].push(rate);
        }
    }
    for (subject, rates) in subjects.iter().zip(&rates) {
        report(subject, rates, write);
    }
    Ok(rates)
}

fn report(subject: &Subject, rates: &[Rate], write: bool) {
    let (speed, cpu) = (
        median(rates.iter().map(|r| r.per_second)),
        median(rates.iter().map(|r| r.cpu_us)),
    );
    let kind = if write { "randwrite" } else { "randread" };
    println!(
        "{kind:10} {:12} {speed:9.0} IO/s {cpu:6.2} server CPU us/IO",
        subject.name
    );
}

fn measure(subject: &Subject, write: bool, seed: u64) -> Result<Rate> {
    let client = Client::connect(&subject.socket, "")?;
    // The last piece may be cut off; it was not warmed.
    let blocks = client.size / FILL_BYTES as u64 * (FILL_BYTES / BLOCK) as u64;
    let mut load = Load::new(client.into_stream()?, blocks, write, seed);
    let cpu_before = cpu_seconds(subject.pid)?;
    let start = Instant::now();
    (0..DEPTH).for_each(|slot| load.ask(slot));
    while start.elapsed() < ROUND_TIME {
        load.send()?;
        load.receive(true)?;
    }
    let (time, done) = (start.elapsed().as_secs_f64(), load.done);
    let cpu = cpu_seconds(subject.pid)? - cpu_before;
    load.send()?;
    while load.busy.contains(&true) {
        load.receive(false)?;
    }
    Ok(Rate {
        per_second: done as f64 / time,
        cpu_us: cpu * 1e6 / done.max(1) as f64,
    })
}

/// A client that costs as little as possible: all requests that are due leave in one call, whatever has arrived is
/// taken in one call, and of an answer the header is looked at.
struct Load {
    socket: UnixStream,
    blocks: u64,
    data: Option<Vec<u8>>,
    chance: u64,
    /// By cookie.
    busy: [bool; DEPTH],
    done: u64,
    outbox: Vec<u8>,
    inbox: Vec<u8>,
    received: usize,
}

impl Load {
    fn new(socket: UnixStream, blocks: u64, write: bool, seed: u64) -> Self {
        let mut data = vec![0u8; BLOCK];
        fill(&mut data, 0, 2);
        Load {
            socket,
            blocks,
            data: write.then_some(data),
            chance: seed,
            busy: [false; DEPTH],
            done: 0,
            outbox: Vec::new(),
            inbox: vec![0; INBOX_BYTES],
            received: 0,
        }
    }

    fn ask(&mut self, slot: usize) {
        self.chance = self.chance.wrapping_add(1);
        let offset = mix(self.chance) % self.blocks * BLOCK as u64;
        let mut header = [0u8; 28];
        header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        header[7] = u8::from(self.data.is_some());
        header[8..16].copy_from_slice(&(slot as u64).to_be_bytes());
        header[16..24].copy_from_slice(&offset.to_be_bytes());
        header[24..].copy_from_slice(&(BLOCK as u32).to_be_bytes());
        self.outbox.extend_from_slice(&header);
        if let Some(data) = &self.data {
            self.outbox.extend_from_slice(data);
        }
        self.busy[slot] = true;
    }

    fn send(&mut self) -> Result<()> {
        let sent = self
            .socket
            .write_all(&self.outbox)
            .context("NBD connection");
        self.outbox.clear();
        sent
    }

    /// Waits until something arrives; every answer makes room for the next request if there is to be one.
    fn receive(&mut self, again: bool) -> Result<()> {
        let space = &mut self.inbox[self.received..];
        let count = self.socket.read(space).context("NBD connection")?;
        if count == 0 {
            return Err("the server closed the connection".into());
        }
        self.received += count;
        let body = if self.data.is_some() { 0 } else { BLOCK };
        let mut at = 0;
        while self.received - at >= REPLY_BYTES + body {
            let slot = self.check_reply(at)?;
            at += REPLY_BYTES + body;
            self.done += 1;
            if again {
                self.ask(slot);
            }
        }
        self.inbox.copy_within(at..self.received, 0);
        self.received -= at;
        Ok(())
    }

    fn check_reply(&mut self, at: usize) -> Result<usize> {
        let header = &self.inbox[at..at + REPLY_BYTES];
        let word = |i: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| header[i * 4 + byte]));
        if word(0) != REPLY_MAGIC || word(1) != 0 {
            return Err(format!(
                "an answer with magic {:#x} and error {}",
                word(0),
                word(1)
            ));
        }
        let slot = (u64::from(word(2)) << 32 | u64::from(word(3))) as usize;
        match self.busy.get_mut(slot) {
            Some(busy) if *busy => *busy = false,
            _ => return Err(format!("an answer to no request: {slot}")),
        }
        Ok(slot)
    }
}

/// Processor time of a process, from the fields after its name.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the server is gone")?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |i: usize| {
        fields
            .get(i)
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    Ok((ticks(11) + ticks(12)) / TICKS_PER_SECOND)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// Prints the median of the rounds' ratios; true if it reaches the target.
fn ratio(name: &str, above: &[Rate], below: &[Rate], target: Option<f64>) -> bool {
    let value = median(
        above
            .iter()
            .zip(below)
            .map(|(a, b)| a.per_second / b.per_second),
    );
    let reached = target.is_none_or(|target| value >= target);
    let note = target.map_or(String::new(), |target| {
        format!(
            " (target {target}: {})",
            if reached { "reached" } else { "MISSED" }
        )
    });
    // Where the client is the narrow place, the server's processor time per request tells more.
    let cpu = median(
        above
            .iter()
            .zip(below)
            .map(|(a, b)| b.cpu_us / a.cpu_us.max(0.01)),
    );
    println!("{name} {value:.2}{note}, requests per server CPU second {cpu:.2}");
    reached
}
