//! `cargo x bench fills`: how much of what passes through a small cache in sequence gets into it, by Brigade and by the kernel.
//!
//! The kernel drops a fill if no bucket is ready at that moment; in Brigade fills wait. Both get the same: a new cache, a
//! volume of several times its size, and requests of one bucket each, first reads of the whole and then writes of the whole
//! (writethrough). Two figures are printed for each, as a share of all bytes:
//!
//! - *dropped*: what was not written to the cache device. Of the kernel by the sectors that it wrote to that drive, its metadata
//!   included, so that its share is rather too small; of Brigade by its counters.
//! - *missing*: what of the last half cache size is not read from the cache afterwards, in requests of 64 KiB. Of the kernel by
//!   the sectors that it read from the backing drive (misses do not fill then: `sequential_cutoff` is below the size of
//!   requests); of Brigade by its counter of bytes that were hit.
//!
//! Nothing may be bypassed as sequential. The kernel is told so; Brigade's server has no such switch, so it is asked in an order
//! in which no request follows the one before: of each `WINDOW` of requests the odd ones first. All images are in memory, which
//! makes it harder: a slow backing device would leave more time to recycle.

use crate::kernel::{self, Boot};
use crate::nbd::Client;
use crate::process::{Context, Result};
use crate::server::{Serve, Server, brigade, format, start_ready};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
/// The volume in cache sizes.
const TIMES: u64 = 4;
/// Requests in flight to Brigade.
const DEPTH: u64 = 4;
/// Requests within which the order is changed.
const WINDOW: u64 = 16;
const AGAIN_BYTES: u64 = 64 << 10;
/// Most that Brigade may drop.
const TARGET_PERCENT: f64 = 1.0;

/// A cache.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    cache_bytes: u64,
    bucket: &'static str,
    bucket_bytes: u64,
}

const CASES: [Case; 2] = [
    Case {
        name: "64 MiB, buckets of 64 KiB",
        cache_bytes: 64 * MIB,
        bucket: "64k",
        bucket_bytes: 64 << 10,
    },
    Case {
        name: "1 GiB, buckets of 512 KiB",
        cache_bytes: 1 << 30,
        bucket: "512k",
        bucket_bytes: 512 << 10,
    },
];

/// Shares in percent.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Figures {
    dropped: f64,
    missing: f64,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Read,
    Write,
}

impl Case {
    fn volume_bytes(&self) -> u64 {
        TIMES * self.cache_bytes
    }

    /// Where the part begins that is read again.
    fn again(&self) -> u64 {
        self.volume_bytes() - self.cache_bytes / 2
    }

    fn format(&self, program: &Path, folder: &Path) -> Result<[PathBuf; 2]> {
        let [cache, backing] = ["cache.img", "back.img"].map(|name| folder.join(name));
        let backing_bytes = self.volume_bytes() + MIB;
        let options = ["--bucket-size", self.bucket];
        format(
            program,
            (&cache, self.cache_bytes),
            (&backing, backing_bytes),
            &options,
        )?;
        Ok([cache, backing])
    }
}

/// Runs `cargo x bench fills [--no-kernel] [--quick]`; `--quick`: only the smallest cache.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let program = brigade()?;
    let count = if has("--quick") { 1 } else { CASES.len() };
    println!(
        "requests of one bucket in sequence over {TIMES} times the cache; percent of all bytes"
    );
    println!(
        "{:28} {:6} {:>16} {:>16} {:>16} {:>16}",
        "cache", "", "Brigade dropped", "kernel dropped", "Brigade missing", "kernel missing"
    );
    let mut is_good = true;
    for case in &CASES[..count] {
        let theirs = match has("--no-kernel") {
            true => [None; 2],
            false => of_kernel(&program, case)?.map(Some),
        };
        for (way, theirs) in [Way::Read, Way::Write].into_iter().zip(theirs) {
            let own = of_brigade(&program, case, way)?;
            let name = if way == Way::Read { "reads" } else { "writes" };
            let kernel = |figure: fn(&Figures) -> f64| match &theirs {
                Some(figures) => format!("{:.1}", figure(figures)),
                None => "-".into(),
            };
            println!(
                "{:28} {name:6} {:>16.1} {:>16} {:>16.1} {:>16}",
                case.name,
                own.dropped,
                kernel(|figures| figures.dropped),
                own.missing,
                kernel(|figures| figures.missing)
            );
            is_good &= own.dropped <= TARGET_PERCENT;
        }
    }
    Ok(match is_good {
        true => ExitCode::SUCCESS,
        false => {
            println!("MISSED: Brigade drops more than {TARGET_PERCENT} %");
            ExitCode::FAILURE
        }
    })
}

fn scratch() -> Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() {
        memory
    } else {
        Path::new("/tmp")
    };
    tempfile::Builder::new()
        .prefix("brigade-fills-")
        .tempdir_in(base)
        .context("no scratch folder")
}

fn percent(part: u64, all: u64) -> f64 {
    part as f64 * 100.0 / all.max(1) as f64
}

// ---- Brigade -------------------------------------------------------------------------------------------------------

fn of_brigade(program: &Path, case: &Case, way: Way) -> Result<Figures> {
    let folder = scratch()?;
    let [cache, backing] = case.format(program, folder.path())?;
    let serve = Serve {
        caches: vec![cache],
        backings: vec![backing],
        mode: Some("writethrough"),
        read_only: false,
    };
    let server = start_ready(program, &serve, folder.path())?;
    pass(&server, way, 0..case.volume_bytes(), case.bucket_bytes)?;
    let entered = settled(&server, way)?;
    let again = case.again()..case.volume_bytes();
    let length = again.end - again.start;
    let before = hit(&server.status()?)?;
    pass(&server, Way::Read, again, AGAIN_BYTES)?;
    let found = hit(&server.status()?)? - before;
    server.stop()?;
    let all = case.volume_bytes();
    Ok(Figures {
        dropped: percent(all.saturating_sub(entered), all),
        missing: percent(length.saturating_sub(found), length),
    })
}

/// Bytes that entered the cache, once no more do.
fn settled(server: &Server, way: Way) -> Result<u64> {
    let look = || -> Result<u64> {
        let status = server.status()?;
        match way {
            Way::Read => number(&status["volumes"][0]["reads"]["fill_bytes"]),
            Way::Write => number(&status["cache_set"]["devices"][0]["written_bytes"]),
        }
    };
    let mut before = look()?;
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = look()?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
}

fn number(value: &Value) -> Result<u64> {
    value
        .as_u64()
        .ok_or_else(|| "a number is missing in the status".into())
}

fn hit(status: &Value) -> Result<u64> {
    number(&status["volumes"][0]["reads"]["hit_bytes"])
}

/// All of a range once.
fn pass(server: &Server, way: Way, range: std::ops::Range<u64>, bytes: u64) -> Result<()> {
    let mut client = Client::connect(&server.socket, "")?;
    let data = vec![0x5a; bytes as usize];
    let (count, mut open) = ((range.end - range.start) / bytes, 0);
    let receive = |client: &mut Client| match client.receive()?.error {
        0 => Ok(()),
        error => Err(format!("the server answered with error {error}")),
    };
    for i in 0..count {
        let at = range.start + mixed(i, count) * bytes;
        match way {
            Way::Read => client.send_read(at, bytes as usize),
            Way::Write => client.send_write(at, &data, false),
        };
        client.push()?;
        open += 1;
        if open == DEPTH {
            receive(&mut client)?;
            open -= 1;
        }
    }
    for _ in 0..open {
        receive(&mut client)?;
    }
    client.disconnect();
    Ok(())
}

/// The order of requests: in each full window the odd ones, then the even ones.
fn mixed(i: u64, count: u64) -> u64 {
    let (window, at) = (i / WINDOW * WINDOW, i % WINDOW);
    let half = WINDOW / 2;
    match (window + WINDOW <= count, at < half) {
        (true, true) => window + 2 * at + 1,
        (true, false) => window + 2 * (at - half),
        (false, _) => i,
    }
}

// ---- the kernel ----------------------------------------------------------------------------------------------------

fn of_kernel(program: &Path, case: &Case) -> Result<[Figures; 2]> {
    kernel::setup(None, false)?;
    let folder = scratch()?;
    let images = case.format(program, folder.path())?;
    let (volume, bucket, again) = (case.volume_bytes(), case.bucket_bytes, case.again());
    let (count, skip) = (volume / bucket, again / AGAIN_BYTES);
    let count_again = (volume - again) / AGAIN_BYTES;
    let script = format!(
        "register vda vdb || exit 1; await_volume vdb; await_set vda\n\
         set_mode vdb writethrough\n\
         v=/dev/$(volume_of vdb); b=/sys/block/vdb/bcache\n\
         at() {{ set -- $1 $(cat /sys/block/vda/stat) @ $(cat /sys/block/vdb/stat); _name=$1; _written=$8\n\
         while [ $1 != @ ]; do shift; done; echo AT $_name $_written $4; }}\n\
         again() {{ echo 4096 > $b/sequential_cutoff\n\
         dd if=$v of=/dev/null bs={AGAIN_BYTES} skip={skip} count={count_again} iflag=direct 2>/dev/null || fail dd; }}\n\
         cache_everything vdb; at r0\n\
         dd if=$v of=/dev/null bs={bucket} count={count} iflag=direct 2>/dev/null || fail dd\n\
         sleep 2; at r1; again; at r2\n\
         cache_everything vdb; at w0\n\
         dd if=/dev/zero of=$v bs={bucket} count={count} oflag=direct 2>/dev/null || fail dd\n\
         sleep 2; at w1; again; at w2\n\
         stop_everything\n"
    );
    let boot = Boot {
        script,
        images: images.to_vec(),
        copies: vec!["dd".into()],
        timeout: Duration::from_secs(900),
        ..Boot::default()
    };
    let console = kernel::run(&boot)?.ok()?;
    let figures = |way: &str| -> Result<Figures> {
        let [zero, one, two] =
            ["0", "1", "2"].map(|part| counts(&console, &format!("{way}{part}")));
        let (zero, one, two) = (zero?, one?, two?);
        let entered = (one[0] - zero[0]) * SECTOR;
        Ok(Figures {
            dropped: percent(volume.saturating_sub(entered), volume),
            missing: percent((two[1] - one[1]) * SECTOR, volume - again),
        })
    };
    Ok([figures("r")?, figures("w")?])
}

/// Sectors written to the cache drive and read from the backing drive by then.
fn counts(console: &str, name: &str) -> Result<[u64; 2]> {
    let line = console
        .lines()
        .find_map(|line| line.strip_prefix("AT ")?.strip_prefix(name));
    let words: Option<Vec<u64>> = line.map(|line| {
        line.split_whitespace()
            .map_while(|word| word.parse().ok())
            .collect()
    });
    match words.as_deref() {
        Some([written, read]) => Ok([*written, *read]),
        _ => Err(format!("the guest did not count {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mixed_order_has_every_request_once_and_none_after_its_predecessor() {
        let count = 4 * WINDOW;
        let order: Vec<u64> = (0..count).map(|i| mixed(i, count)).collect();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..count));
        assert!(order.windows(2).all(|pair| pair[0] + 1 != pair[1]));
    }

    #[test]
    fn counts_are_found_on_the_console() {
        let console = "x\nAT r0 8 16\nAT r1 80 160\n";
        assert_eq!(counts(console, "r1"), Ok([80, 160]));
        assert!(counts(console, "w1").is_err());
    }
}
