//! `cargo x sim`: runs the world on seeds.
#![forbid(unsafe_code)]

use brigade_sim::life::Choice;
use brigade_sim::swarm::{self, Bounds};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
cargo x sim [--seed N] [--runs N] [--minutes M] [--jobs N] [--keep-going]   the swarm
cargo x sim --seed N --trace                             one run, every event";

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
        })
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
    if arguments.has("--trace") {
        return trace(arguments);
    }
    let outcome = swarm::run(arguments.bounds()?, swarm::one);
    outcome.print();
    report(&outcome.found, "");
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

fn trace(arguments: &Arguments) -> Result<bool, String> {
    let seed = arguments.number("--seed")?.unwrap_or(1);
    let (result, trace) = swarm::traced(seed, Choice::default());
    print!("{}", trace.take_text());
    let (events, digest) = trace.digest();
    println!("{events} events, digest {digest:016x}");
    if let Err(message) = &result {
        println!("VIOLATION {message}");
    }
    Ok(result.is_ok())
}
