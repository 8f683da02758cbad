//! `cargo x bench wa`: what is written to the cache device for each byte that a client writes, with the cache always full.
//!
//! A new cache and a volume somewhat larger, both in memory, writeback. Blocks of 4 KiB are written until the blocks that hold
//! data are `--full` percent of the cache device; then ten times the cache is written, every block of the volume with equal
//! chance. A write to a block without data is followed by a trim of one with data, wherever, so that the share stays. So
//! the cache never has room but what trims and overwrites leave in pieces all over it, while dirty data is written back.
//!
//! - *amplification*: bytes written to the cache device, metadata included, by bytes written by the client.
//! - *per cached byte*: the same by the bytes that went into the cache: a cache that lets writes pass to the backing device
//!   does not look better by that.
//!
//! Brigade's cutoffs are as high as they go, so that as much as possible becomes dirty; the kernel's cannot be changed.
//!
//! The kernel gets the very same writes and trims, in a smaller world, slice by slice from two jobs of fio; its bytes are those that the cache
//! drive says were written to it, from the end of the filling to the end of the writing.

use crate::kernel::{self, Boot};
use crate::load::{self, Kind, Request};
use crate::nbd::Client;
use crate::options::Options;
use crate::pattern::mix;
use crate::process::{Context, Result, need_programs};
use crate::server::{DIRTIEST, Serve, Server, brigade, format, start_ready};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const DEPTH: usize = 32;
const CACHE_BYTES: u64 = 256 * MIB;
const KERNEL_CACHE_BYTES: u64 = 36 * MIB;
const TARGET: f64 = 1.3;
const ENOSPC: u32 = 28;
/// The volume in the guest, where there is no other.
const GUEST_VOLUME: &str = "/dev/bcache0";
/// In so many pieces the guest gets its requests, writes and trims of one beside each other: fio cannot replay them as one.
const KERNEL_SLICES: usize = 50;
/// A prime that is no divisor of a number of blocks of any size that is asked for.
const STRIDE: u64 = 2_147_483_647;

/// What is done to the cache.
#[derive(Clone, Debug)]
struct Plan {
    cache_bytes: u64,
    bucket_bytes: u64,
    /// Blocks of the volume.
    blocks: u64,
    /// Blocks that hold data.
    live: u64,
    /// Writes after the filling.
    writes: u64,
}

/// The largest bucket of which a cache has as many as it must (513).
fn largest_bucket(cache_bytes: u64) -> u64 {
    (cache_bytes / 513 + 1).next_power_of_two() / 2
}

impl Plan {
    fn of(options: &Options<'_>, cache_bytes: u64) -> Result<Plan> {
        let full = options.number("--full", 95)?.clamp(1, 200);
        let volume = options.fraction("--volume", 1.2)?;
        let live = cache_bytes / BLOCK * full / 100;
        let blocks = ((cache_bytes / BLOCK) as f64 * volume) as u64;
        if live + 1 >= blocks {
            return Err("--volume: more than --full of the cache".into());
        }
        Ok(Plan {
            cache_bytes,
            bucket_bytes: options
                .number("--bucket", 64 << 10)?
                .min(largest_bucket(cache_bytes)),
            blocks,
            live,
            writes: options.number("--times", 10)? * (cache_bytes / BLOCK),
        })
    }

    fn format(&self, program: &Path, folder: &Path) -> Result<[PathBuf; 2]> {
        let [cache, backing] = ["cache.img", "back.img"].map(|name| folder.join(name));
        let bucket = self.bucket_bytes.to_string();
        let options = ["--bucket-size", &bucket, "--mode", "writeback"];
        let sizes = (self.cache_bytes, self.blocks * BLOCK + MIB);
        format(program, (&cache, sizes.0), (&backing, sizes.1), &options)?;
        Ok([cache, backing])
    }

    /// The blocks that the filling writes.
    fn filling(&self) -> impl Iterator<Item = u64> + use<> {
        let blocks = self.blocks;
        (0..self.live).map(move |i| i * STRIDE % blocks)
    }
}

/// The requests after the filling.
struct Churn {
    blocks: u64,
    left: u64,
    chance: u64,
    /// Blocks with data, in no order, and where each block is among them.
    live: Vec<u32>,
    place: Vec<u32>,
    trim: Option<u64>,
}

const NOWHERE: u32 = u32::MAX;

impl Churn {
    fn new(plan: &Plan) -> Churn {
        let mut place = vec![NOWHERE; plan.blocks as usize];
        let live: Vec<u32> = plan.filling().map(|block| block as u32).collect();
        for (at, block) in (0..).zip(&live) {
            place[*block as usize] = at;
        }
        Churn {
            blocks: plan.blocks,
            left: plan.writes,
            chance: 1,
            live,
            place,
            trim: None,
        }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.chance += 1;
        mix(self.chance) % bound
    }
}

fn request(kind: Kind, block: u64) -> Request {
    Request {
        kind,
        offset: block * BLOCK,
        bytes: BLOCK as u32,
    }
}

impl Iterator for Churn {
    type Item = Request;

    fn next(&mut self) -> Option<Request> {
        if let Some(block) = self.trim.take() {
            return Some(request(Kind::Trim, block));
        }
        self.left = self.left.checked_sub(1)?;
        let block = self.below(self.blocks);
        if self.place[block as usize] == NOWHERE {
            // It takes the place of the one that is trimmed.
            let at = self.below(self.live.len() as u64) as usize;
            let victim = std::mem::replace(&mut self.live[at], block as u32);
            self.place[victim as usize] = NOWHERE;
            self.place[block as usize] = at as u32;
            self.trim = Some(u64::from(victim));
        }
        Some(request(Kind::Write, block))
    }
}

/// Runs `cargo x bench wa [--cache SIZE] [--kernel-cache SIZE] [--bucket SIZE] [--full PERCENT] [--volume X] [--times N]
/// [--no-kernel]`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let flags = [
        "--cache",
        "--kernel-cache",
        "--bucket",
        "--full",
        "--volume",
        "--times",
    ];
    let options = Options::of(arguments, &flags, &["--no-kernel"])?;
    let program = brigade()?;
    let plan = Plan::of(&options, options.number("--cache", CACHE_BYTES)?)?;
    let is_good = of_brigade(&program, &plan)?;
    if !options.has("--no-kernel") {
        let bytes = options.number("--kernel-cache", KERNEL_CACHE_BYTES)?;
        of_kernel(&program, &Plan::of(&options, bytes)?)?;
    }
    Ok(match is_good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// A folder in memory.
pub fn scratch(prefix: &str) -> Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    let base = match memory.is_dir() {
        true => memory,
        false => Path::new("/tmp"),
    };
    let mut builder = tempfile::Builder::new();
    builder
        .prefix(prefix)
        .tempdir_in(base)
        .context("no scratch folder")
}

// ---- Brigade -------------------------------------------------------------------------------------------------------

/// What the server counts.
#[derive(Clone, Copy)]
struct Counts {
    written: u64,
    metadata: u64,
    writeback: u64,
    writethrough: u64,
    bypassed: u64,
    written_back: u64,
}

impl Counts {
    fn of(status: &Value) -> Result<Counts> {
        let number = |path: &str| {
            let value = status.pointer(path).and_then(Value::as_u64);
            value.ok_or(format!("no {path} in the status"))
        };
        Ok(Counts {
            written: number("/cache_set/devices/0/written_bytes")?,
            metadata: number("/cache_set/devices/0/metadata_written_bytes")?,
            writeback: number("/volumes/0/writes/writeback")?,
            writethrough: number("/volumes/0/writes/writethrough")?,
            bypassed: number("/volumes/0/writes/bypassed")?,
            written_back: number("/volumes/0/writes/written_back_bytes")?,
        })
    }
}

/// True if the figures are as they should be.
fn of_brigade(program: &Path, plan: &Plan) -> Result<bool> {
    let folder = scratch("brigade-wa-")?;
    let [cache, backing] = plan.format(program, folder.path())?;
    let serve = Serve {
        caches: vec![cache],
        backings: vec![backing],
        mode: Some("writeback"),
        read_only: false,
    };
    let server = start_ready(program, &serve, folder.path())?;
    println!(
        "Brigade: cache {} MiB, {} MiB of data in a volume of {} MiB, then {} MiB written in blocks of 4 KiB, {DEPTH} in flight",
        plan.cache_bytes / MIB,
        plan.live * BLOCK / MIB,
        plan.blocks * BLOCK / MIB,
        plan.writes * BLOCK / MIB
    );
    server.set(&DIRTIEST)?;
    let mut errors = BTreeMap::new();
    let filling = plan.filling().map(|block| request(Kind::Write, block));
    drive(&server, filling, &mut errors)?;
    let before = Counts::of(&server.status()?)?;
    let start = Instant::now();
    drive(&server, Churn::new(plan), &mut errors)?;
    let seconds = start.elapsed().as_secs_f64();
    let after = Counts::of(&server.status()?)?;
    server.stop()?;
    Ok(report(plan, before, after, seconds, &errors))
}

/// All of these requests, a flush behind them, and the errors that were answered.
fn drive(
    server: &Server,
    mut requests: impl Iterator<Item = Request>,
    errors: &mut BTreeMap<u32, u64>,
) -> Result<()> {
    let client = Client::connect(&server.socket, "")?;
    load::run(
        client,
        DEPTH,
        || requests.next(),
        |done| {
            if done.error != 0 {
                *errors.entry(done.error).or_default() += 1;
            }
            Ok(())
        },
    )?;
    Client::connect(&server.socket, "")?.flush()
}

fn report(
    plan: &Plan,
    before: Counts,
    after: Counts,
    seconds: f64,
    errors: &BTreeMap<u32, u64>,
) -> bool {
    let of = |count: fn(&Counts) -> u64| (count(&after) - count(&before)) as f64;
    let mib = |bytes: f64| bytes / MIB as f64;
    let (client, device) = ((plan.writes * BLOCK) as f64, of(|c| c.written));
    let cached = of(|c| c.writeback + c.writethrough) * BLOCK as f64;
    let share = |requests: f64| requests * 100.0 / plan.writes as f64;
    println!(
        "  {:.1} s, {:.0} writes/s; {:.1} % written to the cache alone, {:.1} % to both devices, {:.1} % past the cache; \
         {:.0} MiB written back",
        seconds,
        plan.writes as f64 / seconds,
        share(of(|c| c.writeback)),
        share(of(|c| c.writethrough)),
        share(of(|c| c.bypassed)),
        mib(of(|c| c.written_back))
    );
    println!(
        "  written to the cache device: {:.0} MiB, of which metadata {:.0} MiB",
        mib(device),
        mib(of(|c| c.metadata))
    );
    let no_space = errors.get(&ENOSPC).copied().unwrap_or(0);
    let others: u64 = errors.values().sum::<u64>() - no_space;
    let amplification = [device / client, device / cached.max(1.0)];
    let verdict = |is_met: bool| if is_met { "ok" } else { "MISSED" };
    println!(
        "  amplification {:.3}, per cached byte {:.3} (<= {TARGET}) {}",
        amplification[0],
        amplification[1],
        verdict(amplification[1] <= TARGET)
    );
    println!(
        "  errors: no space {no_space}, others {others} (0) {}",
        verdict(errors.is_empty())
    );
    amplification[1] <= TARGET && errors.is_empty()
}

// ---- the kernel ----------------------------------------------------------------------------------------------------

/// Writes in the words of fio, version 2 of its logs.
fn fio_writes(requests: impl Iterator<Item = Request>) -> Vec<u8> {
    let mut log = format!("fio version 2 iolog\n{GUEST_VOLUME} add\n{GUEST_VOLUME} open\n");
    for request in requests.filter(|request| request.kind == Kind::Write) {
        let _ = writeln!(
            log,
            "{GUEST_VOLUME} write {} {}",
            request.offset, request.bytes
        );
    }
    (log + GUEST_VOLUME + " close\n").into_bytes()
}

/// Trims as blktrace would have recorded them: fio passes over them in logs of its own format, and replays writes of this one
/// through the page cache. Records of 48 bytes, without anything behind them.
fn fio_trims(requests: impl Iterator<Item = Request>) -> Vec<u8> {
    const MAGIC_AND_VERSION: u32 = 0x6561_7407;
    /// Queued, write, discard.
    const ACTION: u32 = 1 | 1 << (4 + 16) | 1 << (1 + 16) | 1 << (13 + 16);
    /// What it was recorded of: a device that the replay redirects.
    const DEVICE: u32 = 8 << 20;
    let mut log = Vec::new();
    let trims = requests.filter(|request| request.kind == Kind::Trim);
    for (nr, request) in (1u32..).zip(trims) {
        log.extend(MAGIC_AND_VERSION.to_le_bytes());
        log.extend(nr.to_le_bytes());
        log.extend((u64::from(nr) * 1000).to_le_bytes());
        log.extend((request.offset / 512).to_le_bytes());
        for word in [request.bytes, ACTION, 1, DEVICE, 0, 0] {
            log.extend(word.to_le_bytes());
        }
    }
    log
}

fn of_kernel(program: &Path, plan: &Plan) -> Result<()> {
    need_programs(&[("fio", "fio")])?;
    kernel::setup(None, false)?;
    let folder = scratch("brigade-wa-")?;
    let images = plan.format(program, folder.path())?;
    let filling = plan.filling().map(|block| request(Kind::Write, block));
    let mut logs = vec![("fill.log".to_string(), fio_writes(filling))];
    let requests: Vec<Request> = Churn::new(plan).collect();
    let slices = requests.chunks(requests.len().div_ceil(KERNEL_SLICES));
    for (nr, slice) in slices.enumerate() {
        logs.push((format!("writes.{nr}"), fio_writes(slice.iter().copied())));
        logs.push((format!("trims.{nr}"), fio_trims(slice.iter().copied())));
    }
    let last = logs.len() / 2 - 1;
    let mut copies = vec!["fio".to_string()];
    for (name, bytes) in &logs {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).context("cannot write a log")?;
        copies.push(path.display().to_string());
    }
    let script = format!(
        "register vda vdb || exit 1; await_volume vdb; await_set vda\n\
         set_mode vdb writeback; cache_everything vdb\n\
         at() {{ _name=$1; set -- $(cat /sys/block/vda/stat); _w=$7; set -- $(cat /sys/block/vdb/stat); _b=$7\n\
         set -- $(cat /sys/block/bcache0/stat); echo AT $_name $_w $_b ${{12}} $7; }}\n\
         run() {{ fio --ioengine=libaio --iodepth={DEPTH} --direct=1 \"$@\" > /tmp/fio.out 2>&1 || {{ cat /tmp/fio.out; fail fio; }}\n\
         }}\n\
         run --name=fill --read_iolog=/payload/fill.log; sync; at 0\n\
         for i in $(seq 0 {last}); do run --name=writes --read_iolog=/payload/writes.$i \
         --name=trims --read_iolog=/payload/trims.$i --replay_redirect={GUEST_VOLUME} --replay_no_stall=1; done; sync; at 1\n\
         kernel_log; stop_everything\n"
    );
    let boot = Boot {
        script,
        images: images.to_vec(),
        copies,
        timeout: Duration::from_secs(1800),
        ..Boot::default()
    };
    let console = kernel::run(&boot)?.ok()?;
    let [before, after] = [counts(&console, "0")?, counts(&console, "1")?];
    let [device, back, trims, written] = [0, 1, 2, 3].map(|i| after[i] - before[i]);
    let client = plan.writes * BLOCK;
    if written * 512 != client {
        return Err(format!(
            "the guest wrote {} of {client} bytes",
            written * 512
        ));
    }
    println!(
        "kernel, in the virtual machine: cache {} MiB, {} MiB written; {trims} trims; {} MiB to the cache drive, {} MiB to the backing drive",
        plan.cache_bytes / MIB,
        client / MIB,
        device * 512 / MIB,
        back * 512 / MIB
    );
    println!(
        "  amplification {:.3}",
        device as f64 * 512.0 / client as f64
    );
    Ok(())
}

/// By then: sectors written to the cache drive, to the backing drive, trims of the volume, and sectors written to it.
fn counts(console: &str, name: &str) -> Result<[u64; 4]> {
    let start = format!("AT {name} ");
    let line = console.lines().find_map(|line| line.strip_prefix(&start));
    let words: Option<Vec<u64>> =
        line.map(|line| line.split_whitespace().flat_map(str::parse).collect());
    match words.as_deref() {
        Some([cache, backing, trims, written]) => Ok([*cache, *backing, *trims, *written]),
        _ => Err(format!("the guest did not count {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn plan() -> Plan {
        Plan {
            cache_bytes: MIB,
            bucket_bytes: 4096,
            blocks: 300,
            live: 240,
            writes: 5000,
        }
    }

    #[test]
    fn as_many_blocks_hold_data_after_the_churn_as_before() {
        let plan = plan();
        let mut live: HashSet<u64> = plan.filling().collect();
        assert_eq!(live.len() as u64, plan.live);
        let (mut writes, mut trims) = (0, 0);
        for request in Churn::new(&plan) {
            let block = request.offset / BLOCK;
            match request.kind {
                Kind::Write => {
                    writes += 1;
                    live.insert(block);
                }
                _ => {
                    trims += 1;
                    assert!(live.remove(&block), "a trim of nothing");
                }
            }
        }
        assert_eq!((live.len() as u64, writes), (plan.live, plan.writes));
        assert!(trims > 500, "{trims}");
    }

    #[test]
    fn requests_are_written_as_fio_reads_them() {
        let requests = [request(Kind::Write, 2), request(Kind::Trim, 1)];
        let log = String::from_utf8(fio_writes(requests.into_iter())).expect("text");
        let lines: Vec<&str> = log.lines().collect();
        assert_eq!(
            lines[3..],
            ["/dev/bcache0 write 8192 4096", "/dev/bcache0 close"]
        );
        let log = fio_trims(requests.into_iter());
        assert_eq!(
            (log.len(), log[16], &log[28..32]),
            (48, 8, &[1, 0, 0x12, 0x20][..])
        );
        assert_eq!(counts("x\nAT 1 30 40 5 6\n", "1"), Ok([30, 40, 5, 6]));
    }
}
