//! Shorter scripts that still fail: first fewer rounds, then fewer and fewer requests.

use crate::exec::Trace;
use crate::life::{Choice, Life};
use crate::plan::Plan;
use crate::swarm::attempt;
use crate::work::Request;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Runs that are tried at most.
const ATTEMPTS_MAX: u32 = 600;

type Scripts = Rc<RefCell<Vec<Vec<Request>>>>;

fn violates(seed: u64, choice: &Choice) -> Option<(String, Vec<Vec<Request>>)> {
    let scripts: Scripts = Rc::default();
    let (kept, choice) = (scripts.clone(), choice.clone());
    let result = attempt(move || {
        let mut life = Life::traced(seed, Plan::swarm(seed), choice, Trace::default());
        life.scripts = kept;
        life.run()
    });
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
}

/// Shortens the run of a seed of the swarm; `None` if it does not fail.
pub fn shrink(seed: u64) -> Option<Shrunk> {
    let mut choice = Choice::default();
    let (mut message, mut scripts) = violates(seed, &choice)?;
    for rounds in 0..scripts.len() as u64 {
        let fewer = Choice {
            rounds: Some(rounds),
            ..Choice::default()
        };
        if let Some(found) = violates(seed, &fewer) {
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
        let before = left.len();
        while at < left.len() && attempts < ATTEMPTS_MAX {
            let mut rest = left.clone();
            rest.drain(at..(at + size).min(left.len()));
            let fewer = Choice {
                only: Some(rest.iter().copied().collect::<BTreeSet<_>>()),
                ..choice.clone()
            };
            attempts += 1;
            match violates(seed, &fewer) {
                Some(found) => {
                    (message, scripts) = found;
                    left = rest;
                    choice = fewer;
                }
                None => at += size,
            }
        }
        if attempts >= ATTEMPTS_MAX || (size == 1 && left.len() == before) {
            break;
        }
        size = (size / 2).max(1);
    }
    Some(Shrunk {
        choice,
        message,
        scripts,
    })
}

impl Shrunk {
    /// The script, and the command that runs it.
    pub fn print(&self, seed: u64) {
        for (round, script) in self.scripts.iter().enumerate() {
            println!("round {round}: {} requests", script.len());
            for request in script {
                println!("  {request:?}");
            }
        }
        println!("{}", self.message);
        let only = self.choice.only.iter().flatten();
        let only: Vec<String> = only
            .map(|(round, number)| format!("{round}:{number}"))
            .collect();
        let rounds = self
            .choice
            .rounds
            .map(|rounds| format!(" --rounds {rounds}"));
        println!(
            "replay: cargo x sim --trace --seed {seed}{} --only {}",
            rounds.unwrap_or_default(),
            if only.is_empty() {
                "none".into()
            } else {
                only.join(",")
            }
        );
    }
}
