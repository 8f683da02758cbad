//! Shorter scripts that still fail: first fewer rounds, then fewer and fewer requests.

use crate::exec::Trace;
use crate::life::Choice;
use crate::run::{Scripts, Spec};
use crate::swarm::attempt;
use crate::work::Request;
use std::collections::BTreeSet;

/// Runs that are tried at most.
const ATTEMPTS_MAX: u32 = 600;

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

/// Shortens the run of a seed; `None` if it does not fail.
pub fn shrink(spec: Spec, seed: u64) -> Option<Shrunk> {
    let mut choice = Choice::default();
    let (mut message, mut scripts) = violates(spec, seed, &choice)?;
    let before = requests(&scripts);
    for rounds in 0..scripts.len() as u64 {
        let fewer = Choice {
            rounds: Some(rounds),
            ..Choice::default()
        };
        if let Some(found) = violates(spec, seed, &fewer) {
            (message, scripts) = found;
            choice = fewer;
            break;
        }
    }
    let numbered = scripts.iter().enumerate();
    let mut left: Vec<(u64, u64)> = numbered
        .flat_map(|(round, script)| script.iter().map(move |r| (round as u64, r.number)))
        .collect();
    let mut attempts = 0;
    let mut size = left.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let last = left.len();
        while at < left.len() && attempts < ATTEMPTS_MAX {
            let mut rest = left.clone();
            rest.drain(at..(at + size).min(left.len()));
            let fewer = Choice {
                only: Some(rest.iter().copied().collect::<BTreeSet<_>>()),
                ..choice.clone()
            };
            attempts += 1;
            match violates(spec, seed, &fewer) {
                Some(found) => {
                    (message, scripts) = found;
                    left = rest;
                    choice = fewer;
                }
                None => at += size,
            }
        }
        if attempts >= ATTEMPTS_MAX || (size == 1 && left.len() == last) {
            break;
        }
        size = (size / 2).max(1);
    }
    Some(Shrunk {
        choice,
        message,
        scripts,
        before,
    })
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
        spec.command(seed) + &rounds.unwrap_or_default() + &only.unwrap_or_default()
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
