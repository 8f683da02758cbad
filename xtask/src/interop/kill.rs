//! `kill -9` of the server at random moments: every acknowledged byte is there afterwards (P1).

use super::alternation::{Pair, write_load};
use super::{Passed, Setting, check_export};
use crate::nbd::Client;
use crate::pattern::mix;
use crate::process::{Context, Result};
use crate::server::start_ready;
use std::process::{Command, Stdio};

const OPERATIONS_MAX: u64 = 100_000;
const DELAY_MS_MAX: u64 = 700;

/// Writes until the server is shot, restarts it, and compares with the record, again and again.
pub fn run(setting: &Setting) -> Result<Passed> {
    let rounds = setting.rounds;
    let mut pair = Pair::format(setting)?;
    for round in 0..rounds {
        one(setting, &mut pair, round)
            .context(format!("round {round} of seed {}", setting.seed))?;
    }
    let server = start_ready(&setting.program, &pair.serve(), &setting.scratch)?;
    check_export(&server, &mut pair.model, "after the last kill")?;
    server.stop()?;
    let server = start_ready(&setting.program, &pair.serve(), &setting.scratch)?;
    check_export(&server, &mut pair.model, "after a clean stop")?;
    server.stop()?;
    Ok(Passed::Ran(format!(
        "{rounds} kills, seed {}",
        setting.seed
    )))
}

fn one(setting: &Setting, pair: &mut Pair, round: u64) -> Result<()> {
    let server = start_ready(&setting.program, &pair.serve(), &setting.scratch)?;
    check_export(&server, &mut pair.model, "after a kill")?;
    let delay = mix(setting.seed.wrapping_add(round)) % DELAY_MS_MAX;
    let mut shot = Command::new("sh")
        .args([
            "-c",
            &format!(
                "sleep {}.{:03}; kill -KILL {}",
                delay / 1000,
                delay % 1000,
                server.pid()
            ),
        ])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run sh")?;
    let mut client = Client::connect(&server.socket, "")?;
    let load = pair.load(mix(setting.seed ^ round));
    // The connection breaks when the server dies: that is the end that is wanted.
    let ended = write_load(
        &mut client,
        &mut pair.model,
        &load,
        (round + 1) * 1_000_000,
        OPERATIONS_MAX,
    );
    shot.wait().context("cannot wait for sh")?;
    server.kill()?;
    match ended {
        Err(error) if error.contains("answered with error") => Err(error),
        _ => Ok(()),
    }
}
