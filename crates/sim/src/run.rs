//! One run as the command line names it: a kind, perhaps a mistake, and a seed. Whatever found something prints the command that
//! does just that again.

use crate::exec::Trace;
use crate::life::{Choice, Life};
use crate::plan::Plan;
use crate::sweep;
use crate::tally::Tally;
use crate::work::Request;
use brigade_engine::marks;
use brigade_engine::mutations::{self, Mutation};
use std::cell::RefCell;
use std::rc::Rc;

/// The requests of a run, by round.
pub type Scripts = Rc<RefCell<Vec<Vec<Request>>>>;

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A life of the swarm.
    Swarm,
    /// A life whose crashes come half way from one root to the next.
    HalfDone,
    /// A life whose openings are cut off after they took up the record.
    CutOpenings,
    /// A life in which many requests overtake each other.
    Overtaking,
    /// A life whose tree is deep and loses much of what it holds.
    Shrinking,
    /// A life without writeback whose cache device fails.
    CacheFaults,
    /// A life in which volumes and devices come and go.
    Lifecycle,
    /// A short workload, crashed after every device operation.
    Prefixes,
}

impl Kind {
    const ALL: [(&'static str, Kind); 8] = [
        ("swarm", Kind::Swarm),
        ("half-done", Kind::HalfDone),
        ("cut-openings", Kind::CutOpenings),
        ("overtaking", Kind::Overtaking),
        ("shrinking", Kind::Shrinking),
        ("cachefaults", Kind::CacheFaults),
        ("lifecycle", Kind::Lifecycle),
        ("prefixes", Kind::Prefixes),
    ];

    /// By its name.
    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL
            .iter()
            .find(|(text, _)| *text == name)
            .map(|(_, kind)| *kind)
    }

    fn name(self) -> &'static str {
        let named = Kind::ALL.iter().find(|(_, kind)| *kind == self);
        named.expect("all are listed").0
    }

    /// What a seed does that looks for a mistake.
    fn for_mistakes(seed: u64) -> Kind {
        match seed % 8 {
            0 => Kind::Prefixes,
            1 | 5 => Kind::HalfDone,
            2 | 3 => Kind::CutOpenings,
            4 => Kind::Overtaking,
            6 => Kind::Shrinking,
            _ if seed.is_multiple_of(3) => Kind::CacheFaults,
            _ if seed % 3 == 1 => Kind::Lifecycle,
            _ => Kind::Swarm,
        }
    }
}

/// See the module documentation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spec {
    /// What is run, if it was chosen.
    pub kind: Option<Kind>,
    /// The mistake that is made.
    pub mutant: Option<(Mutation, &'static str)>,
}

impl Spec {
    /// A run that makes the mistake of this name.
    pub fn of_mutant(name: &str) -> Option<Spec> {
        let (mutation, text, _) = mutations::ALL.iter().find(|(_, text, _)| *text == name)?;
        Some(Spec {
            kind: None,
            mutant: Some((*mutation, text)),
        })
    }

    fn kind(&self, seed: u64) -> Kind {
        self.kind.unwrap_or(match self.mutant {
            Some(_) => Kind::for_mistakes(seed),
            None => Kind::Swarm,
        })
    }

    /// What to say on the command line, besides the seed.
    pub fn arguments(&self) -> String {
        let mutant = self.mutant.map(|(_, name)| format!(" --mutant {name}"));
        let kind = self.kind.map(|kind| format!(" --plan {}", kind.name()));
        mutant.unwrap_or_default() + &kind.unwrap_or_default()
    }

    /// The command that runs a seed.
    pub fn command(&self, seed: u64) -> String {
        format!("cargo x sim{} --seed {seed}", self.arguments())
    }

    /// Runs a seed.
    pub fn run(&self, seed: u64) -> Tally {
        self.run_some(
            seed,
            Choice::default(),
            Trace::default(),
            Scripts::default(),
        )
    }

    /// Runs a seed, perhaps without some of its requests; notes its events, and the requests that were made.
    pub fn run_some(&self, seed: u64, choice: Choice, trace: Trace, scripts: Scripts) -> Tally {
        #[cfg(feature = "instrumented")]
        mutations::choose(self.mutant.map(|(mutation, _)| mutation));
        marks::take();
        let plan = match self.kind(seed) {
            Kind::Swarm => Plan::swarm(seed),
            Kind::HalfDone => Plan::half_done(seed),
            Kind::CutOpenings => Plan::cut_openings(seed),
            Kind::Overtaking => Plan::overtaking(seed),
            Kind::Shrinking => Plan::shrinking(seed),
            Kind::CacheFaults => Plan::cache_faults(seed),
            Kind::Lifecycle => Plan::lifecycle(seed),
            Kind::Prefixes => {
                return sweep::prefixes_of(seed, choice, trace, scripts);
            }
        };
        let mut life = Life::traced(seed, plan, choice, trace);
        life.scripts = scripts;
        let mut tally = life.run();
        tally.marks = marks::take();
        tally
    }
}
