//! `brigade check` on the project's golden images, and on what Brigade itself leaves: after every kill -9 in mid-write and
//! every stop.

use super::alternation::{Pair, write_load};
use super::{Passed, Setting};
use crate::nbd::Client;
use crate::pattern::mix;
use crate::process::{Context, Result};
use crate::server::start_ready;
use crate::{golden, golden_fsck};
use std::time::Duration;

const OPERATIONS: u64 = 3000;

/// The project's own golden images: clean where undamaged, named where damaged.
pub fn fixtures(setting: &Setting) -> Result<Passed> {
    let folder = golden::fixtures();
    let mut cases = golden::list(&folder)?;
    if let Some(only) = &setting.only {
        cases.retain(|case| case.name == *only);
    }
    let (summary, wrong) = golden_fsck::run(&setting.program, &folder, &cases, false)?;
    match wrong.is_empty() {
        true => Ok(Passed::Ran(summary)),
        false => Err(format!("{summary}: {}", wrong.join(", "))),
    }
}

/// Serves, writes, ends it one way or the other, checks.
pub fn run(setting: &Setting) -> Result<Passed> {
    let mut pair = Pair::format(setting)?;
    let (mut kills, mut keys, mut notes) = (0, 0, String::new());
    for round in 0..setting.rounds {
        let chance = mix(setting.seed ^ (round + 1));
        let is_killed = !chance.is_multiple_of(4);
        kills += u64::from(is_killed);
        let what = format!(
            "round {round} ({})",
            if is_killed { "killed" } else { "stopped" }
        );
        one(setting, &mut pair, round, is_killed).context(&what)?;
        let checked = golden_fsck::check(&setting.program, &[&pair.cache, &pair.backing])?;
        let bad: Vec<String> = ["error", "warning"]
            .iter()
            .flat_map(|severity| checked.of(severity))
            .filter(|finding| finding["id"] != "F18")
            .take(10)
            .map(ToString::to_string)
            .collect();
        if checked.status != Some(0) || !bad.is_empty() {
            return Err(format!(
                "{what}: {}\n  {}",
                checked.rules(),
                bad.join("\n  ")
            ));
        }
        keys = checked.report["sets"][0]["btree"]["keys"]
            .as_u64()
            .unwrap_or(0);
        notes = checked.rules();
    }
    Ok(Passed::Ran(format!(
        "{} images, {kills} of them killed over; the last with {keys} keys [{notes}]",
        setting.rounds
    )))
}

fn one(setting: &Setting, pair: &mut Pair, round: u64, is_killed: bool) -> Result<()> {
    let server = start_ready(&setting.program, &pair.serve(), &setting.scratch)?;
    let load = pair.load(mix(setting.seed.wrapping_mul(31) ^ round));
    let (pid, delay) = (server.pid(), 20 + mix(setting.seed + round) % 700);
    let mut client = Client::connect(&server.socket, "")?;
    if !is_killed {
        write_load(
            &mut client,
            &mut pair.model,
            &load,
            (round + 1) * 1_000_000,
            OPERATIONS,
        )?;
        client.disconnect();
        return server.stop();
    }
    // The connection breaks when the server dies, which is wanted.
    let shot = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(delay));
        let pid = pid.to_string();
        std::process::Command::new("kill")
            .args(["-KILL", &pid])
            .status()
    });
    let endless = OPERATIONS * 100;
    let ended = write_load(
        &mut client,
        &mut pair.model,
        &load,
        (round + 1) * 1_000_000,
        endless,
    );
    shot.join()
        .map_err(|_| "the thread died")?
        .context("cannot run kill")?;
    server.kill()?;
    match ended {
        Err(error) if error.contains("answered with error") => Err(error),
        _ => Ok(()),
    }
}
