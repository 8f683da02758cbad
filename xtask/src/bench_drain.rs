//! `cargo x bench drain`: how long it takes until dirty data is on a backing device whose seeks take time, beside the kernel.
//!
//! Random blocks of 4 KiB are written to a new cache in memory with writing back switched off. A copy of the cache device and of the
//! (still empty) backing device then goes to the kernel, in the virtual machine, with its best settings: `writeback_percent` 0, which is
//! full speed, and `writeback_delay` 0. Both get the backing device from the same kind of server (`seek_disk.rs`): Brigade by
//! nbdfuse, the kernel by the virtual machine's own client.
//!
//! The time of the kernel is from the registration of the set to the state "clean"; that of Brigade from the start of `brigade drain`
//! on a serving set to its end. What the progress says is left is compared with what was, from a quarter of the way on.

use crate::bench_wa::scratch;
use crate::kernel::{self, Boot};
use crate::load::{self, Kind, Request};
use crate::nbd::Client;
use crate::options::Options;
use crate::pattern::mix;
use crate::process::{Context, Result, output};
use crate::seek_disk::{Done, FULL_STROKE, RATE, SETTLE, SeekDisk};
use crate::server::{Extra, Serve, Server, brigade, format, must_serve, start_ready, start_with};
use crate::slow_file::FuseFile;
use serde_json::Value;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const DIRTY: u64 = 64 * MIB;
const DEPTH: usize = 32;
const TARGET: f64 = 0.5;
const ETA_TARGET: f64 = 0.1;
const LOOK: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(7200);

/// What is written, and where.
struct Plan {
    dirty: u64,
    volume: u64,
    seed: u64,
    settle: Duration,
}

/// Runs `cargo x bench drain [--dirty SIZE] [--volume SIZE] [--seed N] [--settle MICROSECONDS] [--no-kernel]`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let flags = ["--dirty", "--volume", "--seed", "--settle"];
    let options = Options::of(arguments, &flags, &["--no-kernel"])?;
    let dirty = options.number("--dirty", DIRTY)?;
    let plan = Plan {
        dirty,
        volume: options.number("--volume", 8 * dirty)?,
        seed: options.number("--seed", 1)?,
        settle: Duration::from_micros(options.number("--settle", SETTLE.as_micros() as u64)?),
    };
    let program = brigade()?;
    let folder = scratch("brigade-drain-")?;
    println!(
        "{} MiB of random blocks of 4 KiB in a volume of {} MiB; a seek takes {:.1} ms and up to {:.1} ms more, 1 MiB {:.1} ms",
        plan.dirty / MIB,
        plan.volume / MIB,
        plan.settle.as_secs_f64() * 1e3,
        FULL_STROKE.as_secs_f64() * 1e3,
        MIB as f64 / RATE * 1e3
    );
    let [cache, backing] = plan.prepare(&program, folder.path())?;
    let copies = [("kernel-cache", &cache), ("kernel-back", &backing)].map(|(name, from)| {
        let to = folder.path().join(name);
        let copied = output(Command::new("cp").arg("--sparse=always").arg(from).arg(&to));
        copied.map(|_| to)
    });
    let ours = plan.of_brigade(&program, folder.path(), &cache, &backing)?;
    let mut is_good = ours.report();
    if !options.has("--no-kernel") {
        let [cache, backing] = copies;
        let theirs = plan.of_kernel(&cache?, &backing?)?;
        let ratio = ours.seconds / theirs;
        is_good &= ratio <= TARGET;
        println!(
            "kernel: {theirs:.1} s; ratio {ratio:.2} (<= {TARGET}) {}",
            verdict(ratio <= TARGET)
        );
    }
    Ok(match is_good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "ok" } else { "MISSED" }
}

/// How Brigade did.
struct Drained {
    seconds: f64,
    disk: Done,
    /// Seconds since the start, and seconds that were said to be left.
    said: Vec<(f64, f64)>,
}

impl Drained {
    fn report(&self) -> bool {
        let late = |said: &&(f64, f64)| said.0 >= self.seconds / 4.0;
        let off = |said: &(f64, f64)| (said.0 + said.1 - self.seconds).abs() / self.seconds;
        let worst = self.said.iter().filter(late).map(off).fold(0.0, f64::max);
        println!("Brigade: {:.1} s, {}", self.seconds, self.disk);
        println!(
            "  expected end, from a quarter on: at most {:.1} % off (<= {:.0} %) {}, {} looks",
            worst * 100.0,
            ETA_TARGET * 100.0,
            verdict(worst <= ETA_TARGET),
            self.said.len()
        );
        worst <= ETA_TARGET
    }
}

impl Plan {
    /// A set with that much dirty data.
    fn prepare(&self, program: &Path, folder: &Path) -> Result<[PathBuf; 2]> {
        let [cache, backing] = ["cache", "back"].map(|name| folder.join(name));
        let words = ["--bucket-size", "64k", "--mode", "writeback"];
        let sizes = (4 * self.dirty + 64 * MIB, self.volume + MIB);
        format(program, (&cache, sizes.0), (&backing, sizes.1), &words)?;
        let serve = Serve {
            caches: vec![cache.clone()],
            backings: vec![backing.clone()],
            ..Serve::default()
        };
        let server = start_ready(program, &serve, folder)?;
        server.set(&[("writeback_running", "off"), ("sequential_cutoff", "0")])?;
        let blocks = self.volume / BLOCK;
        let mut seen = HashSet::new();
        let mut numbers = (0..)
            .map(|i| mix(self.seed << 40 | i) % blocks)
            .filter(|block| seen.insert(*block))
            .take((self.dirty / BLOCK) as usize);
        let request = |block: u64| Request {
            kind: Kind::Write,
            offset: block * BLOCK,
            bytes: BLOCK as u32,
        };
        let client = Client::connect(&server.socket, "")?;
        load::run(
            client,
            DEPTH,
            || numbers.next().map(request),
            |done| match done.error {
                0 => Ok(()),
                error => Err(format!("a write failed with error {error}")),
            },
        )?;
        let dirty = dirty_bytes(&server.status()?)?;
        server.stop()?;
        if dirty != self.dirty {
            return Err(format!("{dirty} bytes are dirty and not {}", self.dirty));
        }
        Ok([cache, backing])
    }

    fn of_brigade(
        &self,
        program: &Path,
        folder: &Path,
        cache: &Path,
        backing: &Path,
    ) -> Result<Drained> {
        let disk = SeekDisk::new(backing, self.settle)?;
        let size = std::fs::metadata(backing).context("no image")?.len();
        // Dropped behind the server, which holds it open.
        let slow = FuseFile::new(&disk.socket, &folder.join("slow"), size)?;
        let serve = Serve {
            caches: vec![cache.to_owned()],
            backings: vec![slow.path.clone()],
            ..Serve::default()
        };
        let config = folder.join("brigade.toml");
        std::fs::write(&config, "[volumes]\nwriteback_running = false\n").context("no file")?;
        let extra = Extra {
            options: vec!["--config".into(), config.display().to_string()],
            ..Extra::default()
        };
        let server = must_serve(start_with(program, &serve, &extra, folder)?)?;
        let before = disk.done();
        let start = Instant::now();
        let mut drain = Command::new(program);
        let drain = drain.args(["drain", "--control"]).arg(&server.control);
        let mut drain = drain.spawn().context("cannot start brigade drain")?;
        let mut said = Vec::new();
        let status = loop {
            if let Some(status) = drain.try_wait().context("brigade drain")? {
                break status;
            }
            if start.elapsed() > PATIENCE {
                return Err("the drain does not end".into());
            }
            if let Some(left) = seconds_left(&server)? {
                said.push((start.elapsed().as_secs_f64(), left));
            }
            std::thread::sleep(LOOK);
        };
        let seconds = start.elapsed().as_secs_f64();
        let disk = disk.done().since(before);
        let left = dirty_bytes(&server.status()?)?;
        server.stop()?;
        if !status.success() || left > 0 {
            return Err(format!(
                "brigade drain ended with {status}, {left} bytes are dirty"
            ));
        }
        Ok(Drained {
            seconds,
            disk,
            said,
        })
    }

    /// Seconds.
    fn of_kernel(&self, cache: &Path, backing: &Path) -> Result<f64> {
        kernel::setup(None, false)?;
        let disk = SeekDisk::new(backing, self.settle)?;
        let script = "at() { set -- $(cat /proc/uptime); echo AT $1; }\n\
             register vda vdb || exit 1; at; await_volume vdb; await_set vda\n\
             d=$(_back vdb); echo 0 > $d/writeback_percent; echo 0 > $d/writeback_delay\n\
             echo LEFT $(cat $d/dirty_data)\n\
             until [ \"$(cat $d/state)\" = clean ]; do sleep 0.2; done; at\n\
             echo LEFT $(cat $d/dirty_data); kernel_log; stop_everything\n";
        let boot = Boot {
            script: script.into(),
            images: vec![cache.to_owned(), disk.socket.clone()],
            timeout: PATIENCE,
            ..Boot::default()
        };
        let console = kernel::run(&boot)?.ok()?;
        let at = |line: &str| {
            line.strip_prefix("AT ")
                .and_then(|text| text.trim().parse().ok())
        };
        let times: Vec<f64> = console.lines().filter_map(at).collect();
        let left: Vec<&str> = console
            .lines()
            .filter_map(|line| line.strip_prefix("LEFT "))
            .collect();
        println!(
            "  the kernel had {} of dirty data and has {}; {}",
            left.first().unwrap_or(&"?"),
            left.last().unwrap_or(&"?"),
            disk.done()
        );
        match times[..] {
            [start, end] => Ok(end - start),
            _ => Err(format!("the guest said no times:\n{console}")),
        }
    }
}

fn dirty_bytes(status: &Value) -> Result<u64> {
    let bytes = status["volumes"][0]["dirty_bytes"].as_u64();
    bytes.ok_or("the status has no dirty_bytes".into())
}

/// What the server expects.
fn seconds_left(server: &Server) -> Result<Option<f64>> {
    let status = server.status()?;
    let drain = &status["volumes"][0]["writeback"]["drain"];
    Ok(match drain["state"].as_str() {
        Some("running") => drain["eta_seconds"].as_f64(),
        _ => None,
    })
}
