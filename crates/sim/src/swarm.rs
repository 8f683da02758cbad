//! Many lives, on all processors: each is one seed on one thread.

use crate::disk::KINDS;
use crate::exec::Trace;
use crate::life::Choice;
use crate::run::{Scripts, Spec};
use crate::tally::Tally;
use brigade_engine::marks;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

thread_local! {
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A step of the world that takes this long never ends.
const HANGS_AFTER: Duration = Duration::from_secs(60);

/// What a worker does, for who watches.
struct Watched {
    seed: Mutex<Option<u64>>,
    heart: &'static AtomicU64,
}

impl Watched {
    fn new() -> Self {
        Watched {
            seed: Mutex::new(None),
            // A few bytes a thread, for as long as the program runs.
            heart: Box::leak(Box::new(AtomicU64::new(0))),
        }
    }
}

/// Watches until no worker is left; a hang cannot be ended, so it ends the program.
fn watch(workers: &[Watched], left: &AtomicU64, how: &str) {
    let mut last: Vec<(u64, Instant)> = vec![(0, Instant::now()); workers.len()];
    while left.load(Ordering::Relaxed) > 0 {
        std::thread::sleep(Duration::from_millis(20));
        for (worker, last) in workers.iter().zip(&mut last) {
            let seed = *worker.seed.lock().expect("no panic here");
            let beats = worker.heart.load(Ordering::Relaxed);
            if seed.is_none() || beats != last.0 {
                *last = (beats, Instant::now());
            }
            if let Some(seed) = seed.filter(|_| last.1.elapsed() > HANGS_AFTER) {
                println!(
                    "VIOLATION seed {seed}: a step does not end\nreplay: cargo x sim{how} --seed {seed}"
                );
                std::process::abort();
            }
        }
    }
}

/// Keeps what panics say instead of printing it.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        LAST_PANIC.with(|last| *last.borrow_mut() = info.to_string());
    }));
}

/// Runs something that may find a violation.
pub fn attempt<T>(what: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(what)).map_err(|_| LAST_PANIC.with(|last| last.take()))
}

/// A violation.
#[derive(Clone, Debug)]
pub struct Found {
    /// Of the run.
    pub seed: u64,
    /// What did not hold.
    pub message: String,
}

/// How long, how many.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// First seed.
    pub seed: u64,
    /// Runs at most.
    pub runs: u64,
    /// Time at most.
    pub time: Duration,
    /// Threads.
    pub jobs: usize,
    /// Go on after a violation.
    pub keep_going: bool,
    /// What to say on the command line, besides the seed, to get the same run again.
    pub how: String,
}

/// What a swarm found.
#[derive(Default)]
pub struct Outcome {
    /// What happened.
    pub tally: Tally,
    /// Violations.
    pub found: Vec<Found>,
    /// Real time.
    pub took: Duration,
}

/// Runs `one` for seed after seed, within the bounds.
pub fn run(bounds: Bounds, one: impl Fn(u64) -> Tally + Sync) -> Outcome {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let outcome = Mutex::new(Outcome::default());
    let workers: Vec<Watched> = (0..bounds.jobs).map(|_| Watched::new()).collect();
    let left = AtomicU64::new(bounds.jobs as u64);
    std::thread::scope(|scope| {
        for mine in &workers {
            let (next, stop, outcome, one, left) = (&next, &stop, &outcome, &one, &left);
            scope.spawn(move || {
                crate::exec::beat(mine.heart);
                while !stop.load(Ordering::Relaxed) && started.elapsed() < bounds.time {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= bounds.runs {
                        break;
                    }
                    let seed = bounds.seed.wrapping_add(number);
                    *mine.seed.lock().expect("no panic here") = Some(seed);
                    let result = attempt(|| one(seed));
                    let mut outcome = outcome.lock().expect("no panic here");
                    match result {
                        Ok(tally) => outcome.tally.add(&tally),
                        Err(message) => {
                            outcome.found.push(Found { seed, message });
                            stop.store(!bounds.keep_going, Ordering::Relaxed);
                        }
                    }
                }
                *mine.seed.lock().expect("no panic here") = None;
                left.fetch_sub(1, Ordering::Relaxed);
            });
        }
        watch(&workers, &left, &bounds.how);
    });
    let mut outcome = outcome.into_inner().expect("no panic here");
    outcome.found.sort_by_key(|found| found.seed);
    outcome.took = started.elapsed();
    outcome
}

/// One run, and all its events.
pub fn traced(spec: Spec, seed: u64, choice: Choice) -> (Result<Tally, String>, Trace) {
    let trace = Trace::with_text();
    let handed = trace.clone();
    let result = attempt(move || spec.run_some(seed, choice, handed, Scripts::default()));
    (result, trace)
}

impl Outcome {
    /// The table.
    pub fn print(&self) {
        let tally = &self.tally;
        let seconds = self.took.as_secs_f64().max(0.001);
        let runs = tally.runs.max(1) as f64;
        let row = |name: &str, count: u64| {
            println!("{name:28} {count:>12} {:>12.2}", count as f64 / runs)
        };
        println!("{:28} {:>12} {:>12}", "", "total", "a run");
        println!(
            "{:28} {:>12} {:>10.1}/s",
            "runs",
            tally.runs,
            tally.runs as f64 / seconds
        );
        row("requests", tally.requests);
        row("  that failed", tally.failed);
        row("crashes", tally.crashes());
        row("  kills", tally.kills);
        row("  losses of power", tally.power_losses);
        row("  of these while opening", tally.cut_openings);
        row("clean stops", tally.stops);
        row("faults", tally.faults.iter().sum());
        for (name, count) in KINDS.iter().zip(tally.faults) {
            row(&format!("  {name}"), count);
        }
        println!(
            "rotten metadata: {} openings refused, {} not",
            tally.rotten[0], tally.rotten[1]
        );
        if tally.of_cache_faults == tally.runs {
            let faults: u64 = tally.faults.iter().sum();
            let failed = tally.failed;
            println!(
                "only the cache device failed, nothing was dirty: {faults} faults, {failed} requests failed"
            );
        }
        println!("violations: {}", self.found.len());
        self.print_marks();
    }

    fn print_marks(&self) {
        let hits = &self.tally.marks;
        if hits.is_empty() {
            return;
        }
        let reached = hits.iter().filter(|count| **count > 0).count();
        println!("coverage marks: {reached} of {} hit", hits.len());
        for ((name, what), _) in marks::ALL
            .iter()
            .zip(hits)
            .filter(|(_, count)| **count == 0)
        {
            println!("  never hit: {name}: {what}");
        }
    }
}
