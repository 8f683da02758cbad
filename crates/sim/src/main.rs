//! `cargo x sim`: runs the world on seeds.
#![forbid(unsafe_code)]

use brigade_sim::drive::recount_every;
use brigade_sim::exec::Trace;
use brigade_sim::life::Choice;
#[cfg(feature = "instrumented")]
use brigade_sim::mutants;
use brigade_sim::run::{Kind, Scripts, Spec};
use brigade_sim::swarm::{self, Bounds};
use brigade_sim::tally::Tally;
use brigade_sim::{export, shrink, sweep};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
cargo x sim [--seed N] [--runs N] [--minutes M] [--jobs N] [--keep-going]   the swarm
cargo x sim --seed N [--rounds N] [--only R:N,...] [--shift N]              one run, perhaps without some requests, or in another order
cargo x sim --seed N --trace                                                every event of it
cargo x sim --seed N --shrink                                               fewer requests that still fail
cargo x sim --twice [--runs N]                                              the same seed twice: the same trace
cargo x sim --sweep prefixes|faults [--seed N] [--runs N]                   N short workloads, everything that can happen
cargo x sim --export DIR [--seed N] [--runs N]                              crash images as files, for another reader
cargo x sim --near DIR [--seed N] [--behind N]                              images with pointers as old as they may be
cargo x sim --mutations [--only NAME] [--minutes M]                         deliberate mistakes, each until found
cargo x sim --mutant NAME                                                   one of them, until found

Runs, also with --trace, --shrink and --twice: --plan swarm|half-done|cut-openings|overtaking|shrinking|cachefaults|lifecycle|prefixes says what a seed does, --mutant NAME makes a mistake.
With --recount N all counters are recounted and compared after every N steps of the engine.
BRIGADE_VERBOSE=1 tells the story of a run.";

struct Arguments(Vec<String>);

impl Arguments {
    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|argument| argument == name)
    }

    fn text(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|argument| argument == name)?;
        self.0.get(at + 1).map(String::as_str)
    }

    fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| format!("{name}: {text:?} is no number"))
        };
        self.text(name).map(parse).transpose()
    }

    fn bounds(&self) -> Result<Bounds, String> {
        let jobs = std::thread::available_parallelism().map_or(1, |count| count.get());
        let minutes = self.number("--minutes")?;
        let runs = self.number("--runs")?;
        let seed = self.number("--seed")?;
        Ok(Bounds {
            seed: seed.unwrap_or(1),
            runs: runs.unwrap_or(match (minutes, seed) {
                (Some(_), _) => u64::MAX,
                (None, Some(_)) => 1,
                (None, None) => 1000,
            }),
            time: Duration::from_secs(60 * minutes.unwrap_or(60 * 24)),
            jobs: self.number("--jobs")?.unwrap_or(jobs as u64) as usize,
            keep_going: self.has("--keep-going"),
            how: String::new(),
        })
    }

    /// What the runs are.
    fn spec(&self) -> Result<Spec, String> {
        let kind = self.text("--plan").map(|name| {
            let all =
                "swarm, half-done, cut-openings, overtaking, shrinking, cachefaults, lifecycle or prefixes";
            Kind::named(name).ok_or(format!("--plan: {name:?} is not {all}"))
        });
        let mutant = self.text("--mutant").map(|name| {
            if !cfg!(feature = "instrumented") {
                return Err("--mutant needs the feature `instrumented`".to_string());
            }
            Spec::of_mutant(name).ok_or(format!("--mutant: there is no {name:?}"))
        });
        let mut spec = mutant.transpose()?.unwrap_or_default();
        spec.kind = kind.transpose()?;
        Ok(spec)
    }
}

fn main() -> ExitCode {
    let arguments = Arguments(std::env::args().skip(1).collect());
    swarm::catch_panics();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sim: {error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool, String> {
    recount_every(arguments.number("--recount")?.unwrap_or(0));
    if arguments.has("--trace") {
        return trace(arguments);
    }
    if arguments.has("--shrink") {
        return shrink(arguments);
    }
    if arguments.has("--twice") {
        return twice(arguments);
    }
    let is_search = arguments.has("--mutant") && arguments.text("--seed").is_none();
    if arguments.has("--mutations") || is_search {
        return mutants(arguments);
    }
    if let Some(folder) = arguments.text("--export") {
        return exported(arguments, Path::new(folder));
    }
    if let Some(folder) = arguments.text("--near") {
        return near(arguments, Path::new(folder));
    }
    if let Some(what) = arguments.text("--sweep") {
        return swept(arguments, what);
    }
    let (spec, choice) = (arguments.spec()?, choice(arguments)?);
    let how = spec.arguments();
    let bounds = Bounds {
        how: how.clone(),
        ..arguments.bounds()?
    };
    let outcome = swarm::run(bounds, |seed| {
        spec.run_some(seed, choice.clone(), Trace::default(), Scripts::default())
    });
    outcome.print();
    report(&outcome.found, &how);
    Ok(outcome.found.is_empty())
}

fn report(found: &[swarm::Found], how: &str) {
    let commit = std::env::var("BRIGADE_COMMIT").unwrap_or_else(|_| "unknown".into());
    for found in found.iter().take(20) {
        println!("\nVIOLATION seed {} commit {commit}", found.seed);
        println!("{}", found.message);
        println!("replay: cargo x sim{how} --seed {}", found.seed);
    }
}

fn choice(arguments: &Arguments) -> Result<Choice, String> {
    let pair = |text: &str| {
        let (round, number) = text.split_once(':')?;
        Some((round.parse().ok()?, number.parse().ok()?))
    };
    let only = match arguments.text("--only") {
        None => None,
        Some("none") => Some(BTreeSet::new()),
        Some(text) => Some(
            text.split(',')
                .map(|text| pair(text).ok_or(format!("--only: {text:?}")))
                .collect::<Result<BTreeSet<_>, _>>()?,
        ),
    };
    let rounds = arguments.number("--rounds")?;
    let shift = arguments.number("--shift")?.unwrap_or(0);
    Ok(Choice {
        only,
        rounds,
        shift,
    })
}

fn trace(arguments: &Arguments) -> Result<bool, String> {
    let seed = arguments.number("--seed")?.unwrap_or(1);
    let (result, trace) = swarm::traced(arguments.spec()?, seed, choice(arguments)?);
    print!("{}", trace.take_text());
    let (events, digest) = trace.digest();
    println!("{events} events, digest {digest:016x}");
    if let Err(message) = &result {
        println!("VIOLATION {message}");
    }
    Ok(result.is_ok())
}

fn shrink(arguments: &Arguments) -> Result<bool, String> {
    let seed = arguments.number("--seed")?.unwrap_or(1);
    let spec = arguments.spec()?;
    match shrink::shrink(spec, seed) {
        Some(shrunk) => shrunk.print(spec, seed),
        None => println!("seed {seed} does not fail"),
    }
    Ok(true)
}

/// Every event of the same seed is the same twice.
fn twice(arguments: &Arguments) -> Result<bool, String> {
    let spec = arguments.spec()?;
    let outcome = swarm::run(arguments.bounds()?, |seed| {
        let texts = [(); 2].map(|()| {
            let (result, trace) = swarm::traced(spec, seed, Choice::default());
            (trace.take_text(), result)
        });
        assert!(texts[0].0 == texts[1].0, "two runs of one seed differ");
        texts[0].1.clone().unwrap_or_default()
    });
    println!(
        "{} seeds ran twice, byte for byte alike",
        outcome.tally.runs
    );
    report(&outcome.found, &format!("{} --twice", spec.arguments()));
    Ok(outcome.found.is_empty())
}

/// Crash images of so many seeds, each in a folder named by its seed.
fn exported(arguments: &Arguments, folder: &Path) -> Result<bool, String> {
    let folder = folder.to_path_buf();
    let outcome = swarm::run(arguments.bounds()?, move |seed| {
        if let Err(error) = export::export(seed, &folder.join(seed.to_string())) {
            panic!("{error}");
        }
        Tally {
            runs: 1,
            ..Tally::default()
        }
    });
    println!("{} images", outcome.tally.runs);
    report(&outcome.found, " --export DIR");
    Ok(outcome.found.is_empty())
}

fn swept(arguments: &Arguments, what: &str) -> Result<bool, String> {
    let mut bounds = arguments.bounds()?;
    bounds.how = format!(" --sweep {what}");
    if arguments.text("--runs").is_none() && arguments.text("--seed").is_none() {
        bounds.runs = 200;
    }
    let workloads = bounds.runs;
    let outcome = match what {
        "prefixes" => swarm::run(bounds, sweep::prefixes),
        "faults" => swarm::run(bounds, sweep::faults),
        _ => return Err(format!("--sweep: {what:?}")),
    };
    println!("{workloads} workloads at most; a run is one crash or one failure");
    outcome.print();
    report(&outcome.found, &format!(" --sweep {what}"));
    Ok(outcome.found.is_empty())
}

#[cfg(feature = "instrumented")]
fn near(arguments: &Arguments, folder: &Path) -> Result<bool, String> {
    use brigade_sim::near;
    let seed = arguments.number("--seed")?.unwrap_or(1);
    let behind = arguments.number("--behind")?;
    let behind = behind.map_or(near::BEHIND, |behind| behind.min(96) as u8);
    for history in near::HISTORIES {
        let folder = folder.join(history.name());
        let made = swarm::attempt(|| near::export(seed, history, behind, &folder))?;
        let note = made.map_err(|error| error.to_string())?;
        println!("{}: {note}", history.name());
    }
    Ok(true)
}

#[cfg(not(feature = "instrumented"))]
fn near(_: &Arguments, _: &Path) -> Result<bool, String> {
    Err("--near needs the feature `instrumented`".into())
}

#[cfg(feature = "instrumented")]
fn mutants(arguments: &Arguments) -> Result<bool, String> {
    let mut bounds = arguments.bounds()?;
    bounds.runs = u64::MAX;
    if arguments.text("--minutes").is_none() {
        bounds.time = Duration::from_secs(300);
    }
    if let Some(seconds) = arguments.number("--seconds")? {
        bounds.time = Duration::from_secs(seconds);
    }
    if arguments.has("--mutant") {
        let spec = arguments.spec()?;
        bounds.how = spec.arguments();
        return Ok(mutants::run_one(bounds, spec));
    }
    mutants::run(bounds, arguments.text("--only").unwrap_or("")).map_err(|error| error.to_string())
}

#[cfg(not(feature = "instrumented"))]
fn mutants(_: &Arguments) -> Result<bool, String> {
    Err("--mutations needs the feature `instrumented`".into())
}
