//! Deliberate mistakes of the engine, each of which must be found.
//!
//! Only with the feature `instrumented`.

#[cfg(feature = "instrumented")]
use crate::swarm::{self, Bounds, Outcome};
#[cfg(feature = "instrumented")]
use crate::{sweep, tally::Tally};
#[cfg(feature = "instrumented")]
use brigade_engine::mutations::{self, Mutation};

#[cfg(feature = "instrumented")]
fn one(mutation: Mutation, seed: u64) -> Tally {
    mutations::choose(Some(mutation));
    if seed.is_multiple_of(8) {
        sweep::prefixes(seed)
    } else {
        swarm::one(seed)
    }
}

/// Makes every mistake whose name contains `name` until it is found; says whether all were.
#[cfg(feature = "instrumented")]
pub fn run(bounds: Bounds, name: &str) -> bool {
    let chosen = mutations::ALL
        .iter()
        .filter(|(_, text, _)| text.contains(name));
    let (mut found, mut all) = (0, 0);
    for (mutation, text, what) in chosen {
        all += 1;
        let outcome = swarm::run(bounds, |seed| one(*mutation, seed));
        found += u64::from(!outcome.found.is_empty());
        print(text, what, &outcome);
    }
    println!("{found} of {all} mistakes found");
    found == all
}

#[cfg(feature = "instrumented")]
fn print(name: &str, what: &str, outcome: &Outcome) {
    let seconds = outcome.took.as_secs_f64();
    let runs = outcome.tally.runs;
    match outcome.found.first() {
        Some(found) => {
            let lines = found.message.lines().skip(1).chain(found.message.lines());
            let line: String = lines
                .take(1)
                .flat_map(|line| line.chars().take(150))
                .collect();
            println!(
                "FOUND  {seconds:6.1} s {name:24} seed {}: {line}",
                found.seed
            );
        }
        None => println!("MISSED {seconds:6.1} s {name:24} {runs} runs: {what}"),
    }
}
