//! `cargo x bench gc`: what clients notice of garbage collection.
//!
//! A cache in memory, a backing device whose writes take 2 ms, and a volume of twice the cache: random writes of 4 KiB in
//! writeback mode, 32 in flight, as fast as they go, as many of them dirty as may be. Every request's latency is kept with its time. Meanwhile the status is
//! asked ten times a second; a collection is between two such moments if `gc.running` is true at the later one or
//! `gc.passes` has grown (and, to be sure of some, one is asked for now and then, `POST /v1/gc`).
//!
//! A request counts as one *during* collection if any of its time is in such an interval. Percentiles of these and of all others
//! are compared, and whole seconds in which nothing was completed are counted.

use crate::bench_wa::scratch;
use crate::control::ask;
use crate::load::{self, Kind, Request, quantile};
use crate::nbd::Client;
use crate::options::Options;
use crate::pattern::mix;
use crate::process::{Context, Result};
use crate::server::{DIRTIEST, Serve, brigade, format, start_ready};
use crate::slow_file::SlowFile;
use serde_json::Value;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
const CACHE_BYTES: u64 = 256 * MIB;
const DEPTH: u64 = 32;
const DELAY_MS: u64 = 2;
const POLL: Duration = Duration::from_millis(100);
const TARGET_RATIO: f64 = 1.5;
const QUANTILES: [(&str, f64); 4] = [
    ("P50", 0.5),
    ("P99", 0.99),
    ("P99.9", 0.999),
    ("P99.99", 0.9999),
];
/// The quantile that has a target. Lower ones say how many writes go to the slow device, which changes with how full the cache is.
const JUDGED: f64 = 0.9999;
/// A quantile of fewer requests than make so many above it says nothing.
const ABOVE_MIN: f64 = 5.0;
/// Requests at most so long before or after a collection are its neighbours.
const NEAR_MS: u32 = 5000;

/// A completed request.
#[derive(Clone, Copy)]
struct Sample {
    /// When, since the start.
    at_ms: u32,
    latency_us: u32,
}

/// What the poller saw.
#[derive(Default)]
struct Seen {
    /// Milliseconds between which there was a collection, ascending and apart.
    active: Vec<Range<u32>>,
    reasons: Vec<String>,
    /// The last status.
    last: Value,
    refused: Option<String>,
}

/// Runs `cargo x bench gc [--minutes M] [--cache SIZE] [--bucket SIZE] [--delay MS] [--depth N] [--trigger S] [--warm S]
/// [--table FILE] [--set NAME=VALUE,...]`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let flags = [
        "--minutes",
        "--cache",
        "--bucket",
        "--delay",
        "--depth",
        "--trigger",
        "--warm",
        "--table",
        "--set",
    ];
    let options = Options::of(arguments, &flags, &[])?;
    let program = brigade()?;
    let folder = scratch("brigade-gc-")?;
    let [cache, image] = ["cache.img", "back.img"].map(|name| folder.path().join(name));
    let cache_bytes = options.number("--cache", CACHE_BYTES)?;
    let volume = 2 * cache_bytes;
    let bucket = options.number("--bucket", 64 << 10)?.to_string();
    let words = ["--bucket-size", &bucket, "--mode", "writeback"];
    format(
        &program,
        (&cache, cache_bytes),
        (&image, volume + MIB),
        &words,
    )?;
    let delay = options.number("--delay", DELAY_MS)?;
    // Dropped behind the server, which holds it open.
    let slow = (delay > 0)
        .then(|| SlowFile::new(&image, delay))
        .transpose()?;
    let serve = Serve {
        caches: vec![cache],
        backings: vec![slow.as_ref().map_or(image, |slow| slow.path.clone())],
        mode: Some("writeback"),
        read_only: false,
    };
    let server = start_ready(&program, &serve, folder.path())?;
    server.set(&DIRTIEST)?;
    if let Some(more) = options.text("--set") {
        let pairs = more.split(',').filter_map(|pair| pair.split_once('='));
        server.set(&pairs.collect::<Vec<_>>())?;
    }
    let seconds = options.fraction("--minutes", 1.0)? * 60.0;
    let depth = options.number("--depth", DEPTH)?;
    println!(
        "cache {} MiB, volume {} MiB, {delay} ms for each write of the backing device, {depth} writes of 4 KiB in flight, {seconds:.0} s",
        cache_bytes / MIB,
        volume / MIB
    );
    let run = Run {
        control: server.control.clone(),
        time: Duration::from_secs_f64(seconds),
        trigger: options.number("--trigger", 20)?,
    };
    let client = Client::connect(&server.socket, "")?;
    let (samples, seen) = run.both(client, depth as usize, volume / BLOCK)?;
    server.stop()?;
    let warm_ms = (options.number("--warm", 10)? * 1000) as u32;
    if let Some(path) = options.text("--table") {
        std::fs::write(path, table(&samples, &seen.active)).context(path)?;
    }
    let samples: Vec<Sample> = samples.into_iter().filter(|s| s.at_ms >= warm_ms).collect();
    Ok(match report(&samples, &seen, warm_ms, run.time) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

struct Run {
    control: PathBuf,
    time: Duration,
    /// Seconds between collections that are asked for; 0: none are.
    trigger: u64,
}

impl Run {
    /// The load, and beside it the poller.
    fn both(&self, client: Client, depth: usize, blocks: u64) -> Result<(Vec<Sample>, Seen)> {
        let (start, is_over) = (Instant::now(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let poller = scope.spawn(|| self.poll(start, &is_over));
            let samples = self.load(client, depth, blocks, start);
            is_over.store(true, Ordering::Relaxed);
            let seen = poller.join().map_err(|_| "the poller panicked")??;
            Ok((samples?, seen))
        })
    }

    fn load(
        &self,
        client: Client,
        depth: usize,
        blocks: u64,
        start: Instant,
    ) -> Result<Vec<Sample>> {
        let (mut chance, mut samples) = (0u64, Vec::new());
        let next = || {
            chance += 1;
            (start.elapsed() < self.time).then(|| Request {
                kind: Kind::Write,
                offset: mix(chance) % blocks * BLOCK,
                bytes: BLOCK as u32,
            })
        };
        load::run(client, depth, next, |done| {
            if done.error != 0 {
                return Err(format!("a write failed with error {}", done.error));
            }
            samples.push(Sample {
                at_ms: (done.at - start).as_millis() as u32,
                latency_us: (done.at - done.sent).as_micros().min(u128::from(u32::MAX)) as u32,
            });
            Ok(())
        })?;
        Ok(samples)
    }

    fn poll(&self, start: Instant, is_over: &AtomicBool) -> Result<Seen> {
        let mut seen = Seen::default();
        let now = || start.elapsed().as_millis() as u32;
        let (mut before_ms, mut passes) = (now(), None);
        let mut asked = Duration::ZERO;
        while !is_over.load(Ordering::Relaxed) {
            let status = ask(&self.control, "GET", "/v1/status", None)?;
            let at = now();
            let gc = &status["cache_set"]["gc"];
            let count = gc["passes"].as_u64();
            let has_passed = passes.is_some() && passes != count;
            if gc["running"].as_bool().unwrap_or(false) || has_passed {
                seen.enter(before_ms..at, gc["reason"].as_str());
            }
            (before_ms, passes) = (at, count);
            seen.last = status;
            if self.trigger > 0 && start.elapsed() - asked >= Duration::from_secs(self.trigger) {
                asked = start.elapsed();
                if let Err(why) = ask(&self.control, "POST", "/v1/gc", None) {
                    seen.refused = Some(why);
                }
            }
            std::thread::sleep(POLL);
        }
        Ok(seen)
    }
}

impl Seen {
    fn enter(&mut self, range: Range<u32>, reason: Option<&str>) {
        match self
            .active
            .last_mut()
            .filter(|last| last.end >= range.start)
        {
            Some(last) => last.end = range.end,
            None => self.active.push(range),
        }
        let reason = reason.unwrap_or("unknown").to_string();
        if !self.reasons.contains(&reason) {
            self.reasons.push(reason);
        }
    }
}

/// Whether any of the request's time is in one of these ranges, made wider by `more`.
fn is_in(ranges: &[Range<u32>], sample: &Sample, more: u32) -> bool {
    let began = sample.at_ms.saturating_sub(sample.latency_us / 1000);
    let behind = ranges.partition_point(|range| range.end.saturating_add(more) < began);
    let range = ranges.get(behind);
    range.is_some_and(|range| range.start.saturating_sub(more) <= sample.at_ms)
}

fn sorted<'a>(samples: impl Iterator<Item = &'a Sample>) -> Vec<u32> {
    let mut latencies: Vec<u32> = samples.map(|sample| sample.latency_us).collect();
    latencies.sort_unstable();
    latencies
}

/// True if nothing was noticed.
fn report(samples: &[Sample], seen: &Seen, warm_ms: u32, time: Duration) -> bool {
    let active_ms: u32 = seen
        .active
        .iter()
        .map(|range| range.end - range.start)
        .sum();
    let gc = &seen.last["cache_set"]["gc"];
    println!(
        "{} writes, {:.0}/s; collections: {} intervals, {:.1} s, reasons {:?}; the last status: {gc}",
        samples.len(),
        samples.len() as f64 / (time.as_secs_f64() - f64::from(warm_ms) / 1000.0).max(0.001),
        seen.active.len(),
        f64::from(active_ms) / 1000.0,
        seen.reasons
    );
    for task in seen.last["cache_set"]["background"]
        .as_array()
        .into_iter()
        .flatten()
    {
        println!("  background: {task}");
    }
    let writes = &seen.last["volumes"][0]["writes"];
    let stalls = &seen.last["cache_set"]["stalls"];
    println!("  writes: {writes}; stalls: {stalls}");
    if let Some(why) = &seen.refused {
        println!("  asking for a collection: {why}");
    }
    let is_steady = report_stalls(samples, warm_ms, time);
    let (during, outside): (Vec<&Sample>, Vec<&Sample>) = samples
        .iter()
        .partition(|sample| is_in(&seen.active, sample, 0));
    let near = outside.iter().copied();
    let near = sorted(near.filter(|sample| is_in(&seen.active, sample, NEAR_MS)));
    let [during, outside] = [during, outside].map(|some| sorted(some.into_iter()));
    if during.is_empty() || outside.is_empty() {
        println!(
            "nothing to compare: {} writes during, {} outside",
            during.len(),
            outside.len()
        );
        return false;
    }
    compare(&during, &outside, &near) && is_steady
}

fn report_stalls(samples: &[Sample], warm_ms: u32, time: Duration) -> bool {
    let first = warm_ms / 1000;
    let mut counts = vec![0u64; (time.as_secs() as u32).saturating_sub(first) as usize];
    for sample in samples {
        if let Some(count) = counts.get_mut((sample.at_ms / 1000 - first) as usize) {
            *count += 1;
        }
    }
    let empty = counts.iter().filter(|count| **count == 0).count();
    let gaps = samples.windows(2).map(|pair| pair[1].at_ms - pair[0].at_ms);
    println!(
        "  seconds without a completed write: {empty} (0) {}; longest time without one: {} ms",
        if empty == 0 { "ok" } else { "MISSED" },
        gaps.max().unwrap_or(0)
    );
    empty == 0
}

fn compare(during: &[u32], outside: &[u32], near: &[u32]) -> bool {
    println!(
        "  {:8} {:>12} {:>12} {:>8} {:>24}",
        "latency", "during, us", "outside, us", "ratio", "within 5 s of one, us"
    );
    let mut is_good = true;
    for (name, part) in QUANTILES {
        let [with, without, beside] = [during, outside, near].map(|some| quantile(some, part));
        let ratio = f64::from(with) / f64::from(without.max(1));
        let says_something = during.len() as f64 * (1.0 - part) >= ABOVE_MIN;
        let verdict = match (part == JUDGED, says_something, ratio <= TARGET_RATIO) {
            (false, _, _) => String::new(),
            (true, false, _) => "too few to judge".into(),
            (true, true, true) => format!("(<= {TARGET_RATIO}) ok"),
            (true, true, false) => format!("(<= {TARGET_RATIO}) MISSED"),
        };
        is_good &= !verdict.ends_with("MISSED");
        println!("  {name:8} {with:>12} {without:>12} {ratio:>8.2} {beside:>24}  {verdict}");
    }
    println!(
        "  {} writes during, {} outside",
        during.len(),
        outside.len()
    );
    is_good
}

/// A line for each second.
fn table(samples: &[Sample], active: &[Range<u32>]) -> String {
    let mut text = String::from("second,writes,p50_us,p99_us,max_us,during_gc\n");
    for some in samples.chunk_by(|a, b| a.at_ms / 1000 == b.at_ms / 1000) {
        let latencies = sorted(some.iter());
        let during = some.iter().filter(|sample| is_in(active, sample, 0));
        let _ = writeln!(
            text,
            "{},{},{},{},{},{}",
            some[0].at_ms / 1000,
            some.len(),
            quantile(&latencies, 0.5),
            quantile(&latencies, 0.99),
            latencies[latencies.len() - 1],
            during.count()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(at_ms: u32, latency_us: u32) -> Sample {
        Sample { at_ms, latency_us }
    }

    #[test]
    fn a_request_is_during_a_collection_if_any_of_its_time_is() {
        let ranges = [100..200, 500..600];
        let is_during = |at, latency| is_in(&ranges, &sample(at, latency), 0);
        assert!(is_during(150, 10) && is_during(250, 60_000) && is_during(700, 600_000));
        assert!(!is_during(99, 10) && !is_during(400, 100_000) && !is_during(700, 10));
        assert!(is_in(&ranges, &sample(700, 10), 150));
    }

    #[test]
    fn intervals_that_touch_are_one() {
        let mut seen = Seen::default();
        seen.enter(0..100, Some("full"));
        seen.enter(100..200, Some("full"));
        seen.enter(300..400, None);
        assert_eq!(seen.active, [0..200, 300..400]);
        assert_eq!(seen.reasons, ["full", "unknown"]);
    }

    #[test]
    fn a_second_without_writes_is_seen() {
        let time = Duration::from_secs(4);
        let some = [sample(1500, 1), sample(2500, 1), sample(3000, 1)];
        assert!(!report_stalls(&some, 0, time));
        assert!(report_stalls(&some, 1000, time));
    }

    #[test]
    fn slower_during_collections_is_a_miss() {
        let (slow, fast) = (vec![160; 60_000], vec![100; 60_000]);
        assert!(!compare(&slow, &fast, &fast));
        assert!(compare(&fast, &slow, &fast));
        // Of so few the slowest say nothing, and the median has no target.
        assert!(compare(&slow[..100], &fast, &fast));
    }
}
