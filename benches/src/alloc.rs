//! The bucket allocator beside its full-scan twin, in the same run.
//!
//! Rounds of one and the other alternate, so that a machine busy with other things slows both; medians are printed.

use crate::HEAP;
use crate::chance::Chance;
use crate::report::{Report, Target, median, time};
use crate::twin::Twin;
use crate::world::{GATHER_AT_ONCE, PIECE, Size, World, full, used};
use brigade_engine::alloc::Sizes;
use brigade_format::BucketNr;
use std::hint::black_box;

/// What can be run alone.
pub const PARTS: [&str; 6] = ["refill", "rescale", "cycle", "fast", "memory", "table"];

/// Sectors of the buckets, where nothing else is said.
const BUCKET_SECTORS: u32 = 1024;
/// Of so many buckets one is touched before the second measurement of refills.
const TOUCHED_OF: u64 = 4;

/// Other steps than the engine's.
const SMALLER_STEPS: [usize; 2] = [1, 256];
/// Steps of ageing per look at the clock, which takes longer than one step.
const STEPS_TIMED: u32 = 4;

/// How large and how long.
struct Scale {
    large: Size,
    middle: Size,
    small: Size,
    /// Caches whose tables are measured, in bytes.
    caches: Vec<u64>,
    steps: usize,
    rounds: usize,
    /// The figures are held to their targets.
    is_judged: bool,
}

impl Scale {
    fn new(is_quick: bool) -> Scale {
        let size = |bits: u32| Size {
            nbuckets: 1 << bits,
            bucket_sectors: BUCKET_SECTORS,
        };
        let caches = [26, 30, 36, 43].map(|bits| 1u64 << bits);
        if is_quick {
            return Scale {
                large: size(14),
                middle: size(13),
                small: size(12),
                caches: caches[..2].to_vec(),
                steps: 10,
                rounds: 2,
                is_judged: false,
            };
        }
        Scale {
            large: size(24),
            middle: size(20),
            small: size(12),
            caches: caches.to_vec(),
            steps: 101,
            rounds: 5,
            is_judged: true,
        }
    }

    fn target(&self, target: Target) -> Target {
        if self.is_judged { target } else { Target::None }
    }
}

/// Measures everything, or one part.
pub fn run(is_quick: bool, only: Option<&str>) -> Report {
    let scale = Scale::new(is_quick);
    let mut report = Report::default();
    let parts: [fn(&Scale, &mut Report); 6] = [refill, rescale, cycle, fast, memory, table];
    for (name, part) in PARTS.iter().zip(parts) {
        if only.is_none_or(|only| only == *name) {
            part(&scale, &mut report);
        }
    }
    report
}

fn per_bucket(size: Size) -> String {
    match size.nbuckets.is_power_of_two() {
        true => format!("2^{} buckets", size.nbuckets.ilog2()),
        false => format!("{} buckets", size.nbuckets),
    }
}

// ---- refills -------------------------------------------------------------------------------------------------------

fn refill(scale: &Scale, report: &mut Report) {
    let size = scale.large;
    report.head(&format!(
        "refilling a batch, {}, any recency, any live sectors, 1 of 32 dirty",
        per_bucket(size)
    ));
    let mut world = World::start(size, used(size));
    let mut twin = Twin::load(&size, used(size));
    steps(scale, report, "", &mut world, &mut twin);
    let mut chance = Chance::new(1);
    for _ in 0..size.nbuckets / TOUCHED_OF {
        let nr = chance.below(size.nbuckets - 1) + 1;
        world.alloc.touch(BucketNr(nr));
        twin.touch(nr);
    }
    steps(scale, report, " after touches", &mut world, &mut twin);
    batches(scale, report, &mut world, &mut twin);
}

/// Single steps, one of the twin's after every few of the engine's. Smaller ones show what a step costs before its first
/// victim.
fn steps(scale: &Scale, report: &mut Report, when: &str, world: &mut World, twin: &mut Twin) {
    let (mut own, mut scans) = (SMALLER_STEPS.map(|_| Vec::new()), Vec::new());
    let mut full = Vec::new();
    let scan_every = (scale.steps / scale.rounds).max(1);
    for step in 0..scale.steps {
        if world.alloc.is_batch_full() {
            world.write_table();
        }
        full.push(time(|| world.step(GATHER_AT_ONCE)).0);
        for (count, times) in SMALLER_STEPS.iter().zip(&mut own) {
            times.push(time(|| world.step(*count)).0);
        }
        if step.is_multiple_of(scan_every) {
            scans.push(time(|| black_box(twin.refill(GATHER_AT_ONCE))).0);
        }
    }
    let worst = full.iter().copied().fold(0.0, f64::max);
    let (full, scan) = (median(full), median(scans));
    let name = |what: &str| format!("step of {GATHER_AT_ONCE} victims{when}: {what}");
    report.row(&name("engine"), full / 1e3, "us", Target::None);
    report.row(&name("engine, slowest"), worst / 1e3, "us", Target::None);
    let each = full / GATHER_AT_ONCE as f64;
    report.row(&name("engine, per victim"), each, "ns", Target::None);
    report.row(&name("full scan"), scan / 1e3, "us", Target::None);
    // What was read since comes up first and has to be put where it belongs now, which is the work that reads were spared.
    let target = if when.is_empty() {
        scale.target(Target::AtLeast(1000.0))
    } else {
        Target::None
    };
    report.row(&name("times faster"), scan / full, "x", target);
    for (count, times) in SMALLER_STEPS.iter().zip(own) {
        let name = format!("step of {count} victims{when}: engine");
        report.row(&name, median(times) / 1e3, "us", Target::None);
    }
}

/// Whole batches, as large as the engine makes them.
fn batches(scale: &Scale, report: &mut Report, world: &mut World, twin: &mut Twin) {
    let size = Sizes::of(&scale.large.config()).batch;
    let (mut own, mut scans) = (Vec::new(), Vec::new());
    world.write_table();
    for _ in 0..scale.rounds {
        let mut gathered = 0;
        let (taken, ()) = time(|| {
            while !world.alloc.is_batch_full() {
                gathered += world.step(GATHER_AT_ONCE);
            }
        });
        own.push(taken / gathered as f64);
        world.write_table();
        scans.push(time(|| black_box(twin.refill(size))).0 / size as f64);
    }
    let (own, scan) = (median(own), median(scans));
    let name = |what: &str| format!("batch of {size} victims: {what}");
    report.row(&name("engine, per victim"), own, "ns", Target::None);
    report.row(&name("full scan, per victim"), scan, "ns", Target::None);
    let one = format!("batch of {size} victims: times faster than one scan for all");
    report.row(&one, scan / own, "x", Target::None);
}

// ---- ageing --------------------------------------------------------------------------------------------------------

fn rescale(scale: &Scale, report: &mut Report) {
    let size = scale.large;
    report.head(&format!("a step of ageing, {}", per_bucket(size)));
    let mut world = World::start(size, used(size));
    let mut twin = Twin::load(&size, used(size));
    let step = size.nbuckets * u64::from(size.bucket_sectors) / 1024;
    // The first traffic of all is a step; from then on the count is exact.
    world.alloc.account_traffic(1);
    let (mut own, mut scans) = (Vec::new(), Vec::new());
    for round in 0..scale.steps * 10 {
        let (taken, ()) = time(|| {
            for _ in 0..STEPS_TIMED {
                world.alloc.account_traffic(step);
            }
        });
        own.push(taken / f64::from(STEPS_TIMED));
        if round.is_multiple_of(scale.steps) {
            scans.push(time(|| twin.rescale()).0);
        }
    }
    let worst = own.iter().copied().fold(0.0, f64::max);
    let (own, scan) = (median(own), median(scans));
    report.row("step of ageing: engine", own, "ns", Target::None);
    report.row("step of ageing: engine, slowest", worst, "ns", Target::None);
    report.row("step of ageing: loop over all", scan, "ns", Target::None);
    report.row(
        "step of ageing: times faster",
        scan / own,
        "x",
        Target::None,
    );
}

// ---- allocation ----------------------------------------------------------------------------------------------------

/// Whole lives of buckets: recycled, tabled, filled, entered in the index.
fn cycle(scale: &Scale, report: &mut Report) {
    report.head("a bucket's whole cycle, with its share of victims, tables and collections");
    let sizes = [scale.small, scale.middle, scale.large];
    let mut worlds = sizes.map(|size| World::start(size, used(size)));
    let mut pieces = sizes.map(|_| Vec::new());
    let mut wholes = sizes.map(|_| Vec::new());
    for _ in 0..scale.rounds {
        for at in 0..sizes.len() {
            pieces[at].push(cycles(&mut worlds[at], sizes[at], PIECE));
            wholes[at].push(cycles(
                &mut worlds[at],
                sizes[at],
                u64::from(BUCKET_SECTORS),
            ));
        }
    }
    let mut row = |name: &str, per: f64, times: [Vec<f64>; 3], target: Target| {
        let times = times.map(median);
        for (size, time) in sizes.iter().zip(times) {
            let text = format!("{name}, {}", per_bucket(*size));
            report.row(&text, time / per, "ns", Target::None);
        }
        let text = format!("{name}, largest against smallest");
        report.row(&text, times[2] / times[0], "x", target);
    };
    let count = f64::from(BUCKET_SECTORS) / PIECE as f64;
    let target = scale.target(Target::AtMost(2.0));
    row("4 KiB allocated, entered, released", count, pieces, target);
    // All of it is waiting for memory, some microseconds for 512 KiB of data.
    let name = "whole bucket allocated, entered, released";
    row(name, 1.0, wholes, Target::None);
}

/// ns per bucket, over two batches: each begins with the one just after a table.
fn cycles(world: &mut World, size: Size, piece: u64) -> f64 {
    while world.alloc.ready_for_data() >= world.alloc.low_water() {
        world.write(u64::from(size.bucket_sectors));
    }
    world.recycle();
    let (tables, mut sectors) = (world.tables, 0);
    // Small caches have small batches: what is measured lasts some ms.
    let least = 1 << 22;
    let (taken, ()) = time(|| {
        while world.tables < tables + 2 || sectors < least {
            sectors += world.write(piece);
            world.tend();
        }
    });
    taken / (sectors as f64 / f64::from(size.bucket_sectors))
}

/// Room in an open bucket.
fn fast(scale: &Scale, report: &mut Report) {
    let size = scale.middle;
    report.head(&format!(
        "room in an open bucket, warm, {}",
        per_bucket(size)
    ));
    let mut world = World::start(size, used(size));
    let (mut bare, mut entered) = (Vec::new(), Vec::new());
    let count = u64::from(size.bucket_sectors) / PIECE - 2;
    for round in 0..scale.steps * 20 {
        world.tend();
        // Opens a bucket; its end is not measured.
        world.write(PIECE);
        if round.is_multiple_of(2) {
            let (taken, ()) = time(|| {
                for _ in 0..count {
                    let placement = world.place(PIECE);
                    world.alloc.release_pin(placement.bucket);
                }
            });
            bare.push(taken / count as f64);
        } else {
            let (taken, ()) = time(|| {
                for _ in 0..count {
                    world.write(PIECE);
                }
            });
            entered.push(taken / count as f64);
        }
        world.write(PIECE);
    }
    let target = scale.target(Target::AtMost(150.0));
    report.row("allocate 4 KiB, release_pin", median(bare), "ns", target);
    let name = "the same, entered in the index, traffic counted";
    report.row(name, median(entered), "ns", Target::None);
}

// ---- memory and start ----------------------------------------------------------------------------------------------

fn memory(scale: &Scale, report: &mut Report) {
    report.head("memory and start");
    let tiny = Size {
        nbuckets: 64,
        bucket_sectors: BUCKET_SECTORS,
    };
    let sizes = [tiny, scale.small, scale.middle, scale.large];
    let mut constant = 0.0;
    for size in sizes {
        let before = HEAP.current_usage();
        let mut world = World::load(size, used(size));
        let loaded = HEAP.current_usage();
        HEAP.reset_peak_usage();
        let (taken, ()) = time(|| world.alloc.start());
        let peak = HEAP.peak_usage() - loaded.min(HEAP.peak_usage());
        let bytes = (HEAP.current_usage() - before) as f64;
        let each = size.nbuckets as f64;
        if size.nbuckets == tiny.nbuckets {
            constant = bytes - 24.0 * each;
            report.row("constant part", constant / 1024.0, "KiB", Target::None);
            continue;
        }
        let name = |what: &str| format!("{}: {what}", per_bucket(size));
        let is_large = size.nbuckets == scale.large.nbuckets;
        let target = match is_large {
            true => scale.target(Target::AtMost(24.0)),
            false => Target::None,
        };
        report.row(
            &name("heap after start, per bucket"),
            bytes / each,
            "bytes",
            Target::None,
        );
        let rest = (bytes - constant) / each;
        report.row(
            &name("the same without the constant part"),
            rest,
            "bytes",
            target,
        );
        let more = peak as f64 / each;
        report.row(
            &name("more during start, per bucket"),
            more,
            "bytes",
            Target::None,
        );
        report.row(&name("start()"), taken / 1e6, "ms", Target::None);
    }
}

// ---- tables --------------------------------------------------------------------------------------------------------

/// Bytes of gen table for data, when a full cache is filled on and on.
fn table(scale: &Scale, report: &mut Report) {
    report.head("gen table written / data written, filling a full cache");
    for (bucket_sectors, most) in [(1024, 1.0), (128, 3.0)] {
        for bytes in &scale.caches {
            let size = Size {
                nbuckets: bytes / (u64::from(bucket_sectors) * 512),
                bucket_sectors,
            };
            // Smaller ones cannot be formatted.
            if size.nbuckets <= 512 {
                continue;
            }
            let share = table_share(size);
            let name = format!(
                "cache of {} with buckets of {} KiB",
                human(*bytes),
                bucket_sectors / 2
            );
            report.row(
                &name,
                share * 100.0,
                "%",
                scale.target(Target::AtMost(most)),
            );
        }
    }
}

fn table_share(size: Size) -> f64 {
    let mut world = World::start(size, full(size));
    let whole = u64::from(size.bucket_sectors);
    // The first batches come upon what was never used.
    while world.tables < 2 {
        world.write(whole);
        world.tend();
    }
    let (tables, mut sectors) = (world.tables, 0);
    while world.tables < tables + 6 {
        sectors += world.write(whole);
        world.tend();
    }
    let links = (world.tables - tables) * u64::from(size.config().table_buckets);
    (links * whole) as f64 / sectors as f64
}

fn human(bytes: u64) -> String {
    match bytes.ilog2() {
        40.. => format!("{} TiB", bytes >> 40),
        30.. => format!("{} GiB", bytes >> 30),
        _ => format!("{} MiB", bytes >> 20),
    }
}
