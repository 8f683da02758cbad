//! `cargo x bench open --memory M,...`: opening a set with so many extents that waiting for its index would be noticed.
//!
//! The image is made by `cargo x mkimage`. It is opened once for each limit on memory: how long from the start of the process
//! until the first read is answered (an extent with known data, by its content), until the server says that its marks are built
//! (`MARKS` in its status), and what memory it takes while reads at random go all over the index.

use crate::bench_open::{number, proc_number};
use crate::load::{self, Kind, Request};
use crate::mkimage::{Sample, make};
use crate::nbd::Client;
use crate::options::{Options, size};
use crate::pattern::{Content, SECTOR, classify, mix};
use crate::process::{Context, Result};
use crate::server::{Extra, Serve, Server, Started, brigade, start_with};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Where the status says that every bucket's mark is known.
const MARKS: &str = "/cache_set/gc/marks_built";
const EXTENTS: u64 = 10_000_000;
const SAMPLES: u64 = 10_000;
const DEPTH: usize = 32;
const BLOCK: u32 = 4096;
const FIRST_READ_SECONDS: f64 = 1.0;
const MARKS_SECONDS: f64 = 10.0;
const MARKS_PATIENCE: Duration = Duration::from_secs(120);
/// More resident memory than asked for.
const MEMORY_FACTOR: f64 = 1.1;

/// Runs `cargo x bench open --memory M,... [--extents N] [--seconds S] [--dirty PERCENT] [--sets N] [--by WHO] [--in DIR]`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let flags = [
        "--memory",
        "--extents",
        "--seconds",
        "--dirty",
        "--sets",
        "--by",
        "--in",
    ];
    let options = Options::of(arguments, &flags, &[])?;
    let extents = options.number("--extents", EXTENTS)?;
    let sample = Sample {
        extents,
        dirty_percent: options.number("--dirty", 0)?,
        every: (extents / SAMPLES).max(1),
    };
    let seconds = options.number("--seconds", 10)?;
    let program = brigade()?;
    let base = options
        .text("--in")
        .map_or_else(std::env::temp_dir, Into::into);
    let scratch = tempfile::Builder::new()
        .prefix("brigade-bench-")
        .tempdir_in(base)
        .context("no scratch folder")?;
    let [cache, backing] = ["cache.img", "back.img"].map(|name| scratch.path().join(name));
    let mut words = sample.options();
    for flag in ["--sets", "--by"] {
        let value = options.text(flag);
        words.extend(
            value
                .into_iter()
                .flat_map(|value| [flag.into(), value.into()]),
        );
    }
    println!("{}", make(&words, &cache, &backing)?);
    let serve = Serve {
        caches: vec![cache],
        backings: vec![backing],
        ..Serve::default()
    };
    let mut is_good = true;
    for memory in options.text("--memory").unwrap_or("1G").split(',') {
        let case = Case {
            sample,
            memory,
            seconds,
        };
        is_good &= case.run(&program, &serve, scratch.path())?;
    }
    Ok(match is_good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

struct Case<'a> {
    sample: Sample,
    memory: &'a str,
    seconds: u64,
}

impl Case<'_> {
    fn run(&self, program: &Path, serve: &Serve, folder: &Path) -> Result<bool> {
        let limit = size(self.memory)?;
        let extra = Extra {
            options: vec!["--memory".into(), self.memory.into()],
            ..Extra::default()
        };
        println!("--memory {}:", self.memory);
        let start = Instant::now();
        let server = match start_with(program, serve, &extra, folder)? {
            Started::Ready(server) => server,
            Started::Refused { status, lines } => {
                println!(
                    "  MISSED: ended with status {status:?}: {}",
                    lines.join("; ")
                );
                return Ok(false);
            }
        };
        let ready = start.elapsed().as_secs_f64();
        self.read_first(&server)?;
        let first = start.elapsed().as_secs_f64();
        let opened = proc_number(server.pid(), "status", "VmRSS")? << 10;
        let marks = marks_built(&server, start)?;
        let reads = self.read_at_random(&server)?;
        let kib = |key: &str| proc_number(server.pid(), "status", key).map(|kib| kib << 10);
        let (resident, most, own) = (kib("VmRSS")?, kib("VmHWM")?, kib("RssAnon")?);
        let status = server.status()?;
        let stop = Instant::now();
        server.stop()?;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "  ready after {ready:.2} s; {} keys, index {:.0} MiB by status, {:.1} MiB of metadata read; stopped in {:.2} s",
            number(&status, "keys"),
            mib(number(&status, "memory_bytes")),
            mib(number(&status, "read_bytes")),
            stop.elapsed().as_secs_f64()
        );
        println!(
            "  resident {:.0} MiB when open, {:.0} MiB after {reads:.0} reads/s for {} s, of which {:.0} MiB its own",
            mib(opened),
            mib(resident),
            self.seconds,
            mib(own)
        );
        let figures = [
            ("first read, s", Some(first), FIRST_READ_SECONDS),
            ("marks built, s", marks, MARKS_SECONDS),
            (
                "most resident, MiB",
                Some(mib(most)),
                mib(limit) * MEMORY_FACTOR,
            ),
        ];
        Ok(figures
            .into_iter()
            .fold(true, |good, (name, value, target)| {
                figure(name, value, target) && good
            }))
    }

    /// One read of an extent in the middle that has data.
    fn read_first(&self, server: &Server) -> Result<()> {
        let mut client = Client::connect(&server.socket, "")?;
        let extent = self.sample.extents / self.sample.every / 2 * self.sample.every;
        let sector = self.sample.sector(extent);
        let bytes = client.read_at(sector * SECTOR as u64, SECTOR)?;
        client.disconnect();
        match classify(&bytes, sector) {
            Content::Tag(tag) if tag == self.sample.tag(extent) => Ok(()),
            other => Err(format!("extent {extent} reads as {other:?}")),
        }
    }

    /// Reads extents at random and gives reads per second.
    fn read_at_random(&self, server: &Server) -> Result<f64> {
        let client = Client::connect(&server.socket, "")?;
        let (start, time) = (Instant::now(), Duration::from_secs(self.seconds));
        let (mut chance, mut count) = (0u64, 0u64);
        let next = || {
            chance += 1;
            let extent = mix(chance) % self.sample.extents;
            (start.elapsed() < time).then(|| Request {
                kind: Kind::Read,
                offset: self.sample.sector(extent) * SECTOR as u64,
                bytes: BLOCK,
            })
        };
        load::run(client, DEPTH, next, |done| {
            count += 1;
            match done.error {
                0 => Ok(()),
                error => Err(format!("a read failed with error {error}")),
            }
        })?;
        Ok(count as f64 / start.elapsed().as_secs_f64())
    }
}

/// Seconds from the start until the marks were built; none if the server does not say.
fn marks_built(server: &Server, start: Instant) -> Result<Option<f64>> {
    loop {
        match server
            .status()?
            .pointer(MARKS)
            .and_then(|value| value.as_bool())
        {
            None => return Ok(None),
            Some(true) => return Ok(Some(start.elapsed().as_secs_f64())),
            Some(false) if start.elapsed() > MARKS_PATIENCE => return Ok(Some(f64::INFINITY)),
            Some(false) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Prints a figure with its target; true unless it is missed.
fn figure(name: &str, value: Option<f64>, most: f64) -> bool {
    let shown = value.map_or("n/a".into(), |value| format!("{value:.2}"));
    let is_met = value.is_none_or(|value| value <= most);
    let verdict = match value {
        None => "",
        Some(_) if is_met => "ok",
        Some(_) => "MISSED",
    };
    println!("  {name:20} {shown:>10}  (<= {most:.1}) {verdict}");
    is_met
}
