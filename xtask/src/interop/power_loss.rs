//! A machine that stops: Brigade runs inside the guest, QEMU is killed, the host's Brigade opens the images.

use super::alternation::Pair;
use super::{Passed, Setting, check_export};
use crate::kernel::{self, Boot, KillWhen, Outcome};
use crate::pattern::mix;
use crate::process::Result;
use crate::server::start_ready;
use std::time::Duration;

const OPERATIONS: u64 = 20_000;
const FLUSH_EVERY: u64 = 50;
const FLUSHES_MAX: u64 = 12;
const TAG: u64 = 1_000_000;

/// Writes and flushes in the guest, kills it at a flush, and looks for everything that flush covered.
pub fn run(setting: &Setting) -> Result<Passed> {
    let mut notes = Vec::new();
    let mut pair = Pair::format(setting)?;
    for round in 0..setting.rounds {
        notes.push(one(setting, &mut pair, round)?);
    }
    Ok(Passed::Ran(format!(
        "flushed operations all there: {}",
        notes.join(", ")
    )))
}

fn one(setting: &Setting, pair: &mut Pair, round: u64) -> Result<String> {
    let load = pair.load(mix(setting.seed ^ round));
    let tag = (round + 1) * TAG;
    let flushes = 1 + mix(setting.seed.wrapping_add(round)) % FLUSHES_MAX;
    let brigade = setting.program.file_name().unwrap_or_default().display();
    let script = format!(
        "{brigade} serve --cache /dev/vda --backing /dev/vdb --mode writeback --nbd unix:/run/nbd --control /run/control > /run/said 2>&1 &\n\
         until_true 60 grep -q ^ready /run/said || {{ cat /run/said; fail serve; }}\n\
         sectors rand nbd:/run/nbd {} {OPERATIONS} {} {} {} {} {tag} 1 {FLUSH_EVERY} 0 || {{ cat /run/said; fail rand; }}\n",
        load.seed, load.start, load.range, load.align, load.count_max
    );
    let boot = Boot {
        script,
        images: vec![pair.cache.clone(), pair.backing.clone()],
        copies: vec![setting.program.display().to_string()],
        kill: Some(KillWhen::Marker(format!(
            "@@flushed {}$",
            flushes * FLUSH_EVERY
        ))),
        kill_delay: Duration::from_millis(mix(setting.seed ^ !round) % 300),
        timeout: Duration::from_secs(300),
        ..Boot::default()
    };
    let finished = kernel::run(&boot)?;
    if finished.outcome != Outcome::Killed {
        return Err(format!(
            "the guest was not killed: {:?}\n{}",
            finished.outcome, finished.console
        ));
    }
    let flushed = finished
        .console
        .lines()
        .filter_map(|line| line.strip_prefix("@@flushed ")?.parse::<u64>().ok());
    let flushed = flushed.max().unwrap_or(0);
    pair.model.workload(&load, tag, flushed, OPERATIONS);
    let server = start_ready(&setting.program, &pair.serve(), &setting.scratch)?;
    check_export(
        &server,
        &mut pair.model,
        &format!("round {round}, after {flushed} flushed operations"),
    )?;
    server.stop()?;
    Ok(flushed.to_string())
}
