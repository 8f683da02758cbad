//! Interop tests: Brigade against the kernel, against crashes, and against images the kernel wrote.
//!
//! Each test is one function that says what it saw or what went wrong. `cargo x test` runs them all with few rounds;
//! `cargo x interop all --long` takes the time for many, and `cargo x interop NAME [--rounds N] [--seed N]` runs one and
//! repeats what a printed seed did.

mod alternation;
mod check_kernel;
mod check_own;
mod faults;
mod filesystem;
mod golden_images;
mod histories;
mod kill;
pub mod lifecycle;
mod made_images;
mod power_loss;
pub mod reasons;
mod sim_images;

use crate::kernel;
use crate::pattern::SECTOR;
use crate::process::{Context, Result};
use crate::server;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

const MIB: u64 = 1 << 20;

/// What a test is given.
pub struct Setting {
    /// The program under judgement.
    pub program: PathBuf,
    /// An empty folder, gone afterwards.
    pub scratch: PathBuf,
    /// How often to repeat.
    pub rounds: u64,
    /// Start of all randomness.
    pub seed: u64,
    /// Only fixtures with this name, where there are several.
    pub only: Option<String>,
}

/// How a test ended well.
pub enum Passed {
    /// It ran; what it saw.
    Ran(String),
    /// It could not run here; why.
    Skipped(String),
}

/// One test.
pub struct Test {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it shows.
    pub shows: &'static str,
    /// It boots the kernel.
    pub needs_kernel: bool,
    /// How often it repeats by itself, and with `--long`.
    pub rounds: [u64; 2],
    run: fn(&Setting) -> Result<Passed>,
}

/// All tests, quick ones first.
pub const TESTS: &[Test] = &[
    Test {
        name: "fixtures",
        shows: "what the kernel wrote is read as the kernel reads it, and nothing is written to it",
        needs_kernel: false,
        rounds: [1, 1],
        run: golden_images::read_only,
    },
    Test {
        name: "kill",
        shows: "acknowledged writes survive kill -9 of the server",
        needs_kernel: false,
        rounds: [6, 20],
        run: kill::run,
    },
    Test {
        name: "fixtures-check",
        shows: "brigade check finds nothing on the kernel's undamaged images and names what is damaged in the others",
        needs_kernel: false,
        rounds: [1, 1],
        run: check_own::fixtures,
    },
    Test {
        name: "check-own",
        shows: "brigade check finds nothing after kill -9 of the server, and after a stop",
        needs_kernel: false,
        rounds: [6, 40],
        run: check_own::run,
    },
    Test {
        name: "fio",
        shows: "fio verifies random writes over four times the cache",
        needs_kernel: false,
        rounds: [1, 1],
        run: filesystem::fio,
    },
    Test {
        name: "faults",
        shows: "a failing cache device is nothing to clients in clean modes, and loses nothing in writeback mode",
        needs_kernel: false,
        rounds: [4, 32],
        run: faults::run,
    },
    Test {
        name: "lifecycle",
        shows: "fio finds no error while devices and volumes come, go, grow and change beneath it",
        needs_kernel: false,
        rounds: [1, 5],
        run: lifecycle::run,
    },
    Test {
        name: "reasons",
        shows: "every request is counted once, by what it was and why it went its way, exactly as its clients count",
        needs_kernel: false,
        rounds: [1, 10],
        run: reasons::run,
    },
    Test {
        name: "kernel-judges",
        shows: "the harness itself: the kernel reads its own image as it did before",
        needs_kernel: true,
        rounds: [1, 1],
        run: golden_images::kernel_alone,
    },
    Test {
        name: "kernel-turns",
        shows: "the harness itself: what the kernel flushed is there after a stop and after a crash",
        needs_kernel: true,
        rounds: [1, 1],
        run: alternation::kernel_turns,
    },
    Test {
        name: "kernel-opens",
        shows: "the kernel reads what Brigade formatted and wrote",
        needs_kernel: true,
        rounds: [1, 1],
        run: alternation::kernel_opens,
    },
    // T162.
    Test {
        name: "fixtures-rw",
        shows: "images opened read-write by Brigade and stopped are still the kernel's",
        needs_kernel: true,
        rounds: [8, u64::MAX],
        run: golden_images::read_write,
    },
    // T162.
    Test {
        name: "alternation",
        shows: "Brigade and the kernel take turns on one set, with clean stops and crashes, and nothing is lost",
        needs_kernel: true,
        rounds: [2, 20],
        run: alternation::run,
    },
    Test {
        name: "check-kernel",
        shows: "brigade check finds nothing on sets that the kernel made, used, and stopped or was killed over",
        needs_kernel: true,
        rounds: [6, 120],
        run: check_kernel::run,
    },
    Test {
        name: "sim-images",
        shows: "crash images of the simulator read the same in the kernel as after Brigade's recovery",
        needs_kernel: true,
        rounds: [6, 200],
        run: sim_images::run,
    },
    Test {
        name: "histories",
        shows: "the kernel takes sets whose buckets had many lives, ran out, or were first used by Brigade",
        needs_kernel: true,
        rounds: [1, 10],
        run: histories::run,
    },
    Test {
        name: "made-images",
        shows: "the kernel and Brigade take the large images that mkimage lays out (a round: 200,000 extents)",
        needs_kernel: true,
        rounds: [1, 50],
        run: made_images::run,
    },
    Test {
        name: "ext4",
        shows: "a file system goes from Brigade to the kernel and back",
        needs_kernel: true,
        rounds: [1, 1],
        run: filesystem::ext4,
    },
    Test {
        name: "power-loss",
        shows: "what Brigade acknowledged a flush for survives a machine that stops",
        needs_kernel: true,
        rounds: [1, 20],
        run: power_loss::run,
    },
];

/// Runs one test in a fresh folder.
pub fn run(
    test: &Test,
    program: &Path,
    rounds: Option<u64>,
    seed: u64,
    only: Option<String>,
) -> Result<Passed> {
    if test.needs_kernel {
        kernel::setup(None, false)?;
    }
    let scratch = tempfile::Builder::new()
        .prefix("brigade-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    let setting = Setting {
        program: program.to_path_buf(),
        scratch: scratch.path().to_path_buf(),
        rounds: rounds.unwrap_or(test.rounds[0]),
        seed,
        only,
    };
    (test.run)(&setting).map_err(|error| {
        let kept = scratch.keep();
        format!(
            "{error}\n  kept: {}\n  again: cargo x interop {} --seed {seed}",
            kept.display(),
            test.name
        )
    })
}

/// A seed nobody chose.
pub fn any_seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    crate::pattern::mix(now.as_nanos() as u64) >> 16
}

/// `cargo x interop`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let option = |name: &str| arguments.iter().skip_while(|a| *a != name).nth(1).cloned();
    let number = |name: &str| {
        option(name)
            .map(|text| text.parse::<u64>().context(name))
            .transpose()
    };
    let name = arguments.first().map_or("", String::as_str);
    let chosen: Vec<&Test> = TESTS
        .iter()
        .filter(|test| name == test.name || name == "all")
        .collect();
    if chosen.is_empty() {
        println!("cargo x interop NAME|all [--long] [--rounds N] [--seed N] [--only FIXTURE]");
        TESTS
            .iter()
            .for_each(|test| println!("  {:14} {}", test.name, test.shows));
        return Ok(ExitCode::from(2));
    }
    let is_long = arguments.iter().any(|argument| argument == "--long");
    let seed = number("--seed")?.unwrap_or_else(any_seed);
    let (rounds, only) = (number("--rounds")?, option("--only"));
    let is_harness = |test: &&Test| test.shows.starts_with("the harness itself");
    let program = if chosen.iter().all(is_harness) {
        PathBuf::new()
    } else {
        server::brigade()?
    };
    let mut failed = Vec::new();
    for test in chosen {
        let rounds = rounds.or(is_long.then_some(test.rounds[1]));
        if let Err(error) = report(test, &program, rounds, seed, only.clone()) {
            println!("FAILED: {}: {error}", test.name);
            failed.push(test.name);
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(format!("failed: {}", failed.join(", ")))
}

/// Runs one test and prints how it went.
fn report(
    test: &Test,
    program: &Path,
    rounds: Option<u64>,
    seed: u64,
    only: Option<String>,
) -> Result<()> {
    let start = Instant::now();
    println!("{}: {} (seed {seed})", test.name, test.shows);
    match run(test, program, rounds, seed, only)? {
        Passed::Ran(note) => println!("passed in {:.1} s: {note}", start.elapsed().as_secs_f32()),
        Passed::Skipped(why) => println!("SKIPPED: {why}"),
    }
    Ok(())
}

/// A folder inside the scratch folder, made anew.
pub fn folder(setting: &Setting, name: &str) -> Result<PathBuf> {
    let path = setting.scratch.join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).context("cannot make a folder")?;
    Ok(path)
}

/// Reads a whole export into a model and fails with the differences.
pub fn check_export(
    server: &server::Server,
    model: &mut crate::model::Model,
    what: &str,
) -> Result<()> {
    let mut client = crate::nbd::Client::connect(&server.socket, "")?;
    if client.size != model.sectors() * SECTOR as u64 {
        return Err(format!(
            "{what}: the volume has {} bytes, not {}",
            client.size,
            model.sectors() * SECTOR as u64
        ));
    }
    let mut complaints = crate::model::Complaints::default();
    let mut at = 0;
    while at < client.size {
        let bytes = client.read_at(at, (client.size - at).min(MIB / 4) as usize)?;
        for (i, sector) in bytes.chunks_exact(SECTOR).enumerate() {
            let number = at / SECTOR as u64 + i as u64;
            model.observe_one(
                number,
                crate::pattern::classify(sector, number),
                &mut complaints,
            );
        }
        at += bytes.len() as u64;
    }
    client.disconnect();
    complain(what, complaints.finish())
}

/// Fails with these lines if there are any.
pub fn complain(what: &str, lines: Vec<String>) -> Result<()> {
    if lines.is_empty() {
        Ok(())
    } else {
        Err(format!("{what}:\n  {}", lines.join("\n  ")))
    }
}
