//! Every verb that changes what is served, while fio writes and verifies on all volumes that it is done to.
//!
//! fio writes random blocks and reads them back, several jobs on ranges of their own; beside it a probe on each volume asks one small
//! thing after the other, so that each pause is known with its time, and so with the verb it belongs to: that of the last verb
//! that began before it ended. Some ranges are written once and looked at in the end.
//!
//! A pass through `brigade stop` ends all connections; before it fio writes everything once, and verifies it afterwards, when the
//! devices have other names and come in another order.

mod story;
mod world;

use super::{MIB, Passed, Setting};
use crate::bench_wa::scratch;
use crate::fio;
use crate::pattern::mix;
use crate::probe::{Sample, longest};
use crate::process::{Context, Result};
use std::path::Path;
use std::time::{Duration, Instant};

/// Jobs of fio on a volume.
const JOBS: u64 = 2;
/// Writes a second of a job. Two processors serve all of it.
pub const RATE: u64 = 300;
const BLOCK: u64 = 4096;
const PROBE_BLOCKS: u64 = 256;
/// What is compared at once.
const PIECE: u64 = MIB / 4;
/// Writes of ours in flight.
const DEPTH: u64 = 32;
/// Time between two verbs, which belongs to the first of them.
const AFTER: Duration = Duration::from_millis(700);
/// Until there is something dirty.
const DIRTYING: Duration = Duration::from_millis(1500);
const ATTEMPTS: u32 = 10;
const LABELS: [&str; 4] = ["alpha", "beta", "gamma", "delta"];
/// Their names after a restart, in which they are given in another order.
const RENAMED: [&str; 4] = ["d3", "d1", "d2", "d0"];
/// Those that are worked on all the time.
const BUSY: [&str; 3] = ["alpha", "beta", "gamma"];
const MODES: [&str; 4] = ["none", "writearound", "writethrough", "writeback"];

/// How large everything is. Of each volume the beginning is fio's, then come a probe, what is written once, and blocks that are
/// written one by one to be dirty.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// As many times the smallest sizes.
    pub times: u64,
    /// Writes a second of a job.
    pub rate: u64,
}

impl Scale {
    fn cache(self) -> u64 {
        256 * MIB * self.times
    }

    fn fio(self) -> u64 {
        40 * MIB * self.times
    }

    fn probe(self) -> u64 {
        self.fio()
    }

    fn still(self) -> u64 {
        44 * MIB * self.times
    }

    fn still_bytes(self) -> u64 {
        4 * MIB * self.times
    }

    fn bulk(self) -> u64 {
        48 * MIB * self.times
    }

    fn bulk_bytes(self) -> u64 {
        12 * MIB * self.times
    }

    fn volume(self) -> u64 {
        64 * MIB * self.times
    }

    fn grown(self) -> u64 {
        16 * MIB * self.times
    }
}

/// What one verb came to.
pub struct Step {
    /// What was done.
    pub name: String,
    /// When it began.
    pub from: Instant,
    /// How long the verb itself took.
    pub took: Duration,
}

/// What was seen of all of it.
#[derive(Default)]
pub struct Report {
    /// In order.
    pub steps: Vec<Step>,
    /// Of the probes, by export.
    pub samples: Vec<(String, Vec<Sample>)>,
    /// Of the loop that does nothing.
    pub idle: Vec<Sample>,
    /// Of fio, over all of its processes.
    pub fio: fio::Report,
    /// Bytes that were read and compared in the end.
    pub compared: u64,
}

impl Report {
    /// Until when the aftermath of a step is its own.
    fn end_of(&self, step: usize) -> Instant {
        let next = self.steps.get(step + 1).map(|next| next.from);
        next.unwrap_or_else(|| self.steps[step].from + self.steps[step].took + AFTER)
    }

    /// The longest pause of a step, on whichever volume, and of the loop that does nothing meanwhile.
    pub fn pause_of(&self, step: usize) -> (Duration, Duration) {
        let (from, to) = (self.steps[step].from, self.end_of(step));
        let of = |(_, samples): &(String, Vec<Sample>)| longest(samples, from, to);
        let pause = self.samples.iter().map(of).max().unwrap_or_default();
        (pause, longest(&self.idle, from, to))
    }

    /// The longest pause of all, fio's too.
    pub fn longest(&self) -> Duration {
        let pauses = (0..self.steps.len()).map(|step| self.pause_of(step).0);
        pauses.max().unwrap_or_default().max(self.fio.longest)
    }

    /// One line for each verb.
    pub fn print(&self) {
        println!(
            "   {:44} {:>9} {:>9} {:>9}",
            "ms", "took", "pause", "machine"
        );
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        for (at, step) in self.steps.iter().enumerate() {
            let (pause, idle) = self.pause_of(at);
            println!(
                "   {:44} {:9.1} {:9.1} {:9.1}",
                step.name,
                ms(step.took),
                ms(pause),
                ms(idle)
            );
        }
        println!(
            "   {:44} {:>9} {:9.1}",
            "fio, of all requests",
            "",
            ms(self.fio.longest)
        );
    }
}

/// Runs rounds and prints the longest pause of each verb.
pub fn run(setting: &Setting) -> Result<Passed> {
    if !fio::speaks_nbd()? {
        return Ok(Passed::Skipped("this fio has no nbd engine".into()));
    }
    let mut note = String::new();
    for round in 0..setting.rounds {
        let seed = mix(setting.seed.wrapping_add(round)) & 0xffff_ffff;
        let scale = Scale {
            times: 1,
            rate: RATE,
        };
        let report = judge(&setting.program, seed, scale).context(format!("round {round}"))?;
        report.print();
        note = format!(
            "{} verbs, fio: {} writes, {} verified reads, 0 errors; longest pause {:.0} ms, {} MiB compared in the end",
            report.steps.len(),
            report.fio.writes,
            report.fio.reads,
            report.longest().as_secs_f64() * 1e3,
            report.compared / MIB
        );
    }
    Ok(Passed::Ran(note))
}

/// One round, in memory.
pub fn judge(program: &Path, seed: u64, scale: Scale) -> Result<Report> {
    let folder = scratch("brigade-lifecycle-")?;
    let outcome = story::round(program, folder.path(), (seed, scale));
    if outcome.is_err() {
        println!("   kept: {}", folder.keep().display());
    }
    outcome
}
