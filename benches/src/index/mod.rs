//! The engine's index beside the standard library's map and redb.
//!
//! All three hold extents of 4 KiB under the sector they end at, as the format orders them, and answer which extent covers a
//! sector. They are filled one after the other in the same jumbled order, then they take turns: lookups, overwrites, new extents
//! and their removal, in rounds. Their answers are compared.
//!
//! Times are processor time of the one thread.

mod engine;
mod others;

use crate::HEAP;
use crate::chance::Chance;
use crate::report::{Report, Target, median, time};
pub use engine::Engine;
pub use others::{Redb, Standard};

/// The volume all extents are of.
const INODE: u32 = 1;
/// Sectors of an extent.
const SECTORS: u64 = 8;
/// Extents of a transaction while a subject is filled.
const FILL: usize = 1_000_000;
/// Smaller maps fit the processor's caches and have no targets.
const TARGETS_FROM: u64 = 1_000_000;

/// Something that knows where an extent is. Extents are given by where they start, and their places.
pub trait Subject {
    /// New extents, or such as are there.
    fn insert(&mut self, extents: &[(u64, u64)]);
    /// Removes extents that are there.
    fn remove(&mut self, extents: &[(u64, u64)]);
    /// The sum of the places where these sectors are, so that nothing is left out.
    fn lookup(&self, starts: &[u64]) -> u64;
}

/// What a round measures, each so many times.
const WHAT: [&str; 4] = ["lookups/s", "overwrites/s", "inserts/s", "removals/s"];
/// What the index has to reach, by the standard map's and by redb's.
const LEAST: [[Option<f64>; 2]; 4] = [
    [Some(0.5), Some(1.0)],
    [None, None],
    [Some(0.2), Some(1.0)],
    [None, None],
];
const NAMES: [&str; 3] = ["index", "BTreeMap", "redb"];

/// Measures all three at each size.
pub fn run(sizes: &[u64]) -> Report {
    let mut report = Report::default();
    for &size in sizes {
        measure(&mut report, size);
    }
    report
}

/// How much is measured at a size.
struct Plan {
    size: u64,
    rounds: u64,
    operations: u64,
}

impl Plan {
    fn new(size: u64) -> Plan {
        let operations = (size / 10).clamp(1, 250_000);
        let rounds = (1_000_000 / operations).clamp(5, 51);
        Plan {
            size,
            rounds,
            operations,
        }
    }

    /// Where an extent starts. Every second place of 4 KiB has one; a prime spreads the order in which they come.
    fn start(&self, nr: u64) -> u64 {
        nr * 2_147_483_647 % self.size * 2 * SECTORS
    }

    /// Extents of one round, all at places where none were before; `how` gives where they start.
    fn extents(&self, turn: u64, how: impl FnMut(u64) -> u64) -> Vec<(u64, u64)> {
        let first = self.size + turn * self.operations;
        let places = (first..first + self.operations).map(|nr| nr * SECTORS);
        (0..self.operations).map(how).zip(places).collect()
    }

    /// All places end below.
    fn place_max(&self) -> u64 {
        (self.size + 2 * self.rounds * self.operations) * SECTORS
    }
}

fn measure(report: &mut Report, size: u64) {
    let plan = Plan::new(size);
    let mut subjects: [Box<dyn Subject>; 3] = [
        Box::new(Engine::new(size, size * 2 * SECTORS, plan.place_max())),
        Box::new(Standard::default()),
        Box::new(Redb::in_memory()),
    ];
    let (filling, heaps) = fill(&plan, &mut subjects);
    let mut chance = Chance::new(size);
    let mut rates = WHAT.map(|_| NAMES.map(|_| Vec::new()));
    for round in 0..plan.rounds {
        let times = take_turns(&plan, round, &mut chance, &mut subjects);
        for (rates, times) in rates.iter_mut().zip(times) {
            for (rates, nanos) in rates.iter_mut().zip(times) {
                rates.push(plan.operations as f64 * 1e9 / nanos.max(1.0));
            }
        }
    }
    report.table(&format!("{size} extents"), &NAMES);
    for (what, rates) in WHAT.iter().zip(&rates) {
        let medians = rates.each_ref().map(|rates| median(rates.clone()));
        report.figures(what, &medians);
    }
    report.figures("filling, extents/s", &filling);
    report.figures("heap of an extent, bytes", &heaps);
    judge(report, size, &rates);
}

/// The ratios of each round, so that a machine that is busy with other things slows all subjects.
fn judge(report: &mut Report, size: u64, rates: &[[Vec<f64>; 3]; 4]) {
    for ((what, least), [index, standard, redb]) in WHAT.iter().zip(LEAST).zip(rates) {
        for ((name, other), least) in [("BTreeMap", standard), ("redb", redb)].iter().zip(least) {
            let ratios = index.iter().zip(other.iter()).map(|(a, b)| a / b).collect();
            let target = least.filter(|_| size >= TARGETS_FROM);
            let target = target.map_or(Target::None, Target::AtLeast);
            report.row(
                &format!("{what}, index by {name}"),
                median(ratios),
                "x",
                target,
            );
        }
    }
}

/// Extents inserted in a second, and bytes of the heap for each, by subject.
fn fill(plan: &Plan, subjects: &mut [Box<dyn Subject>; 3]) -> ([f64; 3], [f64; 3]) {
    let extents: Vec<_> = (0..plan.size)
        .map(|nr| (plan.start(nr), nr * SECTORS))
        .collect();
    let (mut rates, mut heaps) = ([0.0; 3], [0.0; 3]);
    for (at, subject) in subjects.iter_mut().enumerate() {
        let before = HEAP.current_usage();
        let (nanos, ()) = time(|| extents.chunks(FILL).for_each(|some| subject.insert(some)));
        rates[at] = plan.size as f64 * 1e9 / nanos.max(1.0);
        heaps[at] = HEAP.current_usage().saturating_sub(before) as f64 / plan.size as f64;
    }
    (rates, heaps)
}

/// Nanoseconds of each kind of operation and each subject.
fn take_turns(
    plan: &Plan,
    round: u64,
    chance: &mut Chance,
    subjects: &mut [Box<dyn Subject>; 3],
) -> [[f64; 3]; 4] {
    let any = |chance: &mut Chance| plan.start(chance.below(plan.size));
    let sectors: Vec<u64> = (0..plan.operations)
        .map(|_| any(chance) + chance.below(SECTORS))
        .collect();
    let old = plan.extents(2 * round, |_| any(chance));
    // Between those that are there: others in each round.
    let new = plan.extents(2 * round + 1, |nr| {
        plan.start(round * plan.operations + nr) + SECTORS
    });
    let (mut times, mut sums) = ([[0.0; 3]; 4], [0; 3]);
    for turn in 0..subjects.len() {
        let at = (turn + round as usize) % subjects.len();
        let subject = &mut subjects[at];
        (times[0][at], sums[at]) = time(|| subject.lookup(&sectors));
        times[1][at] = time(|| subject.insert(&old)).0;
        times[2][at] = time(|| subject.insert(&new)).0;
        times[3][at] = time(|| subject.remove(&new)).0;
    }
    assert!(
        sums.iter().all(|sum| *sum == sums[0]),
        "different answers: {sums:?}"
    );
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_measured_keeps_the_invariants_of_the_index() {
        let plan = Plan::new(30_000);
        let mut engine = Engine::new(plan.size, plan.size * 2 * SECTORS, plan.place_max());
        let start = |nr| plan.start(nr);
        let extents: Vec<_> = (0..plan.size).map(|nr| (start(nr), nr * SECTORS)).collect();
        engine.insert(&extents);
        let new = plan.extents(0, |nr| start(nr) + SECTORS);
        engine.insert(&plan.extents(1, start));
        engine.insert(&new);
        engine.audit();
        engine.remove(&new);
        engine.audit();
        assert_eq!(engine.extents(), 30_000);
        assert_eq!(engine.leaves(), 4);
    }
}
