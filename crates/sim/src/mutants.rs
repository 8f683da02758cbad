//! Deliberate mistakes of the engine, each of which must be found.
//!
//! Only with the feature `instrumented`.

#[cfg(feature = "instrumented")]
use crate::run::Spec;
#[cfg(feature = "instrumented")]
use crate::swarm::{self, Bounds};
#[cfg(feature = "instrumented")]
use brigade_engine::mutations;

/// Makes every mistake whose name contains `name` until it is found; says whether all were. Each has a process of its own, since a
/// mistake may also end in a step that never does.
#[cfg(feature = "instrumented")]
pub fn run(bounds: Bounds, name: &str) -> std::io::Result<bool> {
    let named = mutations::ALL
        .iter()
        .filter(|(_, text, _)| text.contains(name));
    let (tested, chosen): (Vec<_>, Vec<_>) =
        named.partition(|(mutation, _, _)| mutations::is_for_tests(*mutation));
    if !tested.is_empty() {
        println!(
            "left out: {} mistakes that tests find (docs/allocator.md, crates/engine/tests)",
            tested.len()
        );
    }
    let (mut found, mut all) = (0, 0);
    for (_, text, what) in chosen {
        let seconds = bounds.time.as_secs().to_string();
        let jobs = bounds.jobs.to_string();
        let program = std::env::current_exe()?;
        let started = std::time::Instant::now();
        let out = std::process::Command::new(program)
            .args(["--mutant", text, "--seconds", &seconds, "--jobs", &jobs])
            .output()?;
        let took = started.elapsed().as_secs_f64();
        let is_found = !out.status.success();
        all += 1;
        found += u64::from(is_found);
        let said = String::from_utf8_lossy(&out.stdout);
        let word = if is_found { "FOUND " } else { "MISSED" };
        println!("{word} {took:6.1} s {text:24} {what}");
        if said.is_empty() {
            println!("       ended at once");
        }
        // What did not hold, and the command that runs it again.
        said.lines()
            .take(2)
            .for_each(|line| println!("       {line}"));
    }
    println!("{found} of {all} mistakes found");
    Ok(found == all)
}

/// Makes one mistake until it is found; says whether it was not.
#[cfg(feature = "instrumented")]
pub fn run_one(bounds: Bounds, spec: Spec) -> bool {
    let outcome = swarm::run(bounds, |seed| spec.run(seed));
    match outcome.found.first() {
        Some(found) => {
            let lines = found.message.lines().skip(1).chain(found.message.lines());
            let line: String = lines
                .take(1)
                .flat_map(|line| line.chars().take(150))
                .collect();
            println!("seed {}: {line}", found.seed);
            println!("replay: {}", spec.command(found.seed));
        }
        None => println!("{} runs", outcome.tally.runs),
    }
    outcome.found.is_empty()
}
