//! Shorter scripts that still fail: first fewer rounds, then fewer and fewer requests. What is left out changes when everything else
//! happens, so each is tried in several orders of events.

use crate::exec::Trace;
use crate::life::Choice;
use crate::run::{Scripts, Spec};
use crate::swarm::attempt;
use crate::work::Request;
use std::time::{Duration, Instant};

/// Runs that are tried at most.
const ATTEMPTS_MAX: u32 = 4000;
/// Real time that is spent at most, about.
const TIME_MAX: Duration = Duration::from_secs(60);
/// Orders of events in which a shorter run is tried.
const ORDERS: u64 = 4;

/// Runs a seed with some of its requests; what does not hold, if anything, and what was asked for.
pub fn violates(spec: Spec, seed: u64, choice: &Choice) -> Option<(String, Vec<Vec<Request>>)> {
    let scripts = Scripts::default();
    let (kept, choice) = (scripts.clone(), choice.clone());
    let result = attempt(move || spec.run_some(seed, choice, Trace::default(), kept));
    let message = result.err()?;
    let scripts = scripts.borrow().clone();
    Some((message, scripts))
}

/// What is left of a failing run.
pub struct Shrunk {
    /// What to leave in.
    pub choice: Choice,
    /// What does not hold.
    pub message: String,
    /// The requests, by round.
    pub scripts: Vec<Vec<Request>>,
    /// Requests before anything was left out.
    pub before: usize,
}

/// Where it was noticed that something does not hold: what is left of a run fails there too.
fn place(message: &str) -> &str {
    message.lines().next().unwrap_or_default()
}

/// A run that is made shorter and shorter.
struct Search {
    spec: Spec,
    seed: u64,
    best: Shrunk,
    tried: u32,
    started: Instant,
}

impl Search {
    fn is_over(&self) -> bool {
        self.tried >= ATTEMPTS_MAX || self.started.elapsed() > TIME_MAX
    }

    /// Takes what this leaves, if it still fails in some order of events.
    fn accepts(&mut self, fewer: &Choice) -> bool {
        let others = (0..ORDERS).filter(|shift| *shift != fewer.shift);
        for shift in std::iter::once(fewer.shift).chain(others) {
            if self.is_over() {
                return false;
            }
            self.tried += 1;
            let choice = Choice {
                shift,
                ..fewer.clone()
            };
            let found = violates(self.spec, self.seed, &choice);
            let Some((message, scripts)) =
                found.filter(|(message, _)| place(message) == place(&self.best.message))
            else {
                continue;
            };
            self.best = Shrunk {
                choice,
                message,
                scripts,
                before: self.best.before,
            };
            return true;
        }
        false
    }

    fn cut_rounds(&mut self) {
        for rounds in 0..self.best.scripts.len() as u64 {
            let fewer = Choice {
                rounds: Some(rounds),
                ..Choice::default()
            };
            if self.accepts(&fewer) {
                return;
            }
        }
    }

    /// Leaves pieces out that get smaller and smaller.
    fn cut_requests(&mut self) {
        let mut left = numbers(&self.best.scripts);
        let mut size = left.len().div_ceil(2).max(1);
        while !self.is_over() {
            let (mut at, last) = (0, left.len());
            while at < left.len() {
                let mut rest = left.clone();
                rest.drain(at..(at + size).min(left.len()));
                let fewer = Choice {
                    only: Some(rest.iter().copied().collect()),
                    ..self.best.choice.clone()
                };
                if self.accepts(&fewer) {
                    left = rest;
                } else {
                    at += size;
                }
            }
            if size == 1 && left.len() == last {
                return;
            }
            size = (size / 2).max(1);
        }
    }
}

fn numbers(scripts: &[Vec<Request>]) -> Vec<(u64, u64)> {
    let numbered = (0..).zip(scripts);
    let pairs = numbered.flat_map(|(round, script)| script.iter().map(move |r| (round, r.number)));
    pairs.collect()
}

/// Shortens the run of a seed; `None` if it does not fail.
pub fn shrink(spec: Spec, seed: u64) -> Option<Shrunk> {
    let choice = Choice::default();
    let (message, scripts) = violates(spec, seed, &choice)?;
    let best = Shrunk {
        choice,
        message,
        before: requests(&scripts),
        scripts,
    };
    let mut search = Search {
        spec,
        seed,
        best,
        tried: 0,
        started: Instant::now(),
    };
    search.cut_rounds();
    search.cut_requests();
    Some(search.best)
}

fn requests(scripts: &[Vec<Request>]) -> usize {
    scripts.iter().map(Vec::len).sum()
}

impl Shrunk {
    /// Requests that are left.
    pub fn after(&self) -> usize {
        requests(&self.scripts)
    }

    /// The command that runs what is left.
    pub fn command(&self, spec: Spec, seed: u64) -> String {
        let rounds = self.choice.rounds;
        let rounds = rounds.map(|rounds| format!(" --rounds {rounds}"));
        let only = self.choice.only.as_ref().map(|only| {
            let only: Vec<String> = only
                .iter()
                .map(|(round, number)| format!("{round}:{number}"))
                .collect();
            match only[..] {
                [] => " --only none".into(),
                _ => format!(" --only {}", only.join(",")),
            }
        });
        let shift = match self.choice.shift {
            0 => String::new(),
            shift => format!(" --shift {shift}"),
        };
        spec.command(seed) + &rounds.unwrap_or_default() + &shift + &only.unwrap_or_default()
    }

    /// The script, and the command that runs it.
    pub fn print(&self, spec: Spec, seed: u64) {
        for (round, script) in self.scripts.iter().enumerate() {
            println!("round {round}: {} requests", script.len());
            for request in script {
                println!("  {request:?}");
            }
        }
        println!("{}", self.message);
        println!("{} requests, {} before", self.after(), self.before);
        println!("replay: {}", self.command(spec, seed));
    }
}
