//! A cache device that fails, for real: nbdkit's error filter behind a FUSE file, under the server's own I/O.
//!
//! In the modes in which the backing device always has everything, a client sees no error whatever the cache device does. In writeback
//! mode a client may see errors, but what was acknowledged is there when the device is well again, and nothing else ever is read.

use super::{MIB, Passed, Setting, check_export};
use crate::model::Model;
use crate::nbd::Client;
use crate::pattern::{Operation, RandomWorkload, SECTOR, classify, fill, mix};
use crate::process::{Context, Result, need_programs};
use crate::server::{Serve, Server, format, start_ready};
use crate::slow_file::SlowFile;
use std::path::Path;
use std::time::{Duration, Instant};

const CACHE_BYTES: u64 = 64 * MIB;
const BACKING_BYTES: u64 = 65 * MIB;
const VOLUME_SECTORS: u64 = BACKING_BYTES / SECTOR as u64 - 16;
/// Modes and rates of errors, in turn.
const MODES: [&str; 4] = ["writethrough", "writearound", "none", "writeback"];
const RATES: [&str; 4] = ["0.3%", "3%", "30%", "100%"];
/// Until something is cached.
const WARM: u64 = 1500;
const SICK: Duration = Duration::from_secs(4);
const READ_PERCENT: u64 = 60;
const FLUSH_PERCENT: u64 = 3;

/// What happened in a round.
#[derive(Default)]
struct Seen {
    requests: u64,
    refused: u64,
    injected: u64,
}

/// Runs rounds with one mode and rate after the other.
pub fn run(setting: &Setting) -> Result<Passed> {
    if !Path::new("/dev/fuse").exists() {
        return Ok(Passed::Skipped("there is no /dev/fuse".into()));
    }
    if let Err(why) = need_programs(&[("nbdkit", "nbdkit"), ("nbdfuse", "libnbd-bin")]) {
        return Ok(Passed::Skipped(why));
    }
    let (mut clean, mut dirty) = (Seen::default(), Seen::default());
    for round in 0..setting.rounds {
        let mode = MODES[round as usize % MODES.len()];
        let rate = RATES[(round as usize * 3 / 2) % RATES.len()];
        let seed = mix(setting.seed.wrapping_add(round));
        let what = format!(
            "round {round} of seed {}: {mode}, {rate} of errors",
            setting.seed
        );
        // Where only reads fail and many errors are borne, the set goes on.
        let is_borne = round % 2 == 0;
        let seen = one(setting, (mode, rate, is_borne), seed).context(what)?;
        let all = match mode {
            "writeback" => &mut dirty,
            _ => &mut clean,
        };
        all.requests += seen.requests;
        all.refused += seen.refused;
        all.injected += seen.injected;
    }
    if clean.refused > 0 {
        return Err(format!("{} requests failed in clean modes", clean.refused));
    }
    let text = |seen: &Seen| {
        format!(
            "{} requests, {} errors injected, {} requests refused",
            seen.requests, seen.injected, seen.refused
        )
    };
    Ok(Passed::Ran(format!(
        "clean modes: {}; writeback: {}; seed {}",
        text(&clean),
        text(&dirty),
        setting.seed
    )))
}

fn one(
    setting: &Setting,
    (mode, rate, is_borne): (&'static str, &str, bool),
    seed: u64,
) -> Result<Seen> {
    let what = if is_borne { "pread-" } else { "" };
    let at = |name: &str| setting.scratch.join(name);
    let (cache, backing, trigger, log) = (at("f-cache"), at("f-back"), at("f-fail"), at("f-log"));
    for path in [&trigger, &log] {
        let _ = std::fs::remove_file(path);
    }
    let words = ["--bucket-size", "64k", "--mode", mode];
    format(
        &setting.program,
        (&cache, CACHE_BYTES),
        (&backing, BACKING_BYTES),
        &words,
    )?;
    let mut model = Model::new(VOLUME_SECTORS);
    let mut seen = Seen::default();
    {
        let parameters = [
            format!("error-file={}", trigger.display()),
            format!("error-{what}rate={rate}"),
            "error=EIO".into(),
            format!("logfile={}", log.display()),
        ];
        let parameters: Vec<&str> = parameters.iter().map(String::as_str).collect();
        // Dropped behind the server, which holds it open.
        let slow = SlowFile::filtered(&cache, &["log", "error"], &parameters)?;
        let serve = Serve {
            caches: vec![slow.path.clone()],
            backings: vec![backing.clone()],
            mode: Some(mode),
            read_only: false,
        };
        let server = start_ready(&setting.program, &serve, &setting.scratch)?;
        let limit = if is_borne { "1000000" } else { "8" };
        server.set(&[
            ("sequential_cutoff", "0"),
            ("cache_set.io_error_limit", limit),
        ])?;
        load(&server, &mut model, seed, &mut seen, |done, _| done < WARM)?;
        std::fs::write(&trigger, b"").context("no file")?;
        load(&server, &mut model, mix(seed), &mut seen, |_, time| {
            time < SICK
        })?;
        std::fs::remove_file(&trigger).context("no file")?;
        load(&server, &mut model, mix(seed + 1), &mut seen, |done, _| {
            done < WARM / 4
        })?;
        // A set that has failed does not stop in order, and that is right.
        let _ = server.stop();
    }
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    seen.injected = log
        .lines()
        .filter(|line| line.contains("error=EIO"))
        .count() as u64;
    let serve = Serve {
        caches: vec![cache],
        backings: vec![backing],
        ..Serve::default()
    };
    let server = start_ready(&setting.program, &serve, &setting.scratch)?;
    check_export(&server, &mut model, "with the cache device well again")?;
    server.stop()?;
    Ok(seen)
}

/// One request after the other, with what came of each.
fn load(
    server: &Server,
    model: &mut Model,
    seed: u64,
    seen: &mut Seen,
    go_on: impl Fn(u64, Duration) -> bool,
) -> Result<()> {
    let load = RandomWorkload {
        seed,
        start: 0,
        range: VOLUME_SECTORS / 8 * 8,
        align: 8,
        count_max: 16,
    };
    let mut client = Client::connect(&server.socket, "")?;
    let (start, mut done) = (Instant::now(), 0);
    while go_on(done, start.elapsed()) {
        let operation = load.operation(done);
        let dice = mix(seed ^ done << 1) % 100;
        let refused = match dice {
            ..READ_PERCENT => !read(&mut client, model, operation)?,
            _ if dice >= 100 - FLUSH_PERCENT => {
                client.send_flush();
                client.push()?;
                client.receive()?.error != 0
            }
            _ => !write(
                &mut client,
                model,
                operation,
                (seed >> 24 << 20) | (done + 1),
            )?,
        };
        seen.requests += 1;
        seen.refused += u64::from(refused);
        done += 1;
    }
    client.disconnect();
    Ok(())
}

/// False if it was refused.
fn read(client: &mut Client, model: &mut Model, operation: Operation) -> Result<bool> {
    let bytes = operation.count as usize * SECTOR;
    client.send_read(operation.sector * SECTOR as u64, bytes);
    client.push()?;
    let reply = client.receive()?;
    if reply.error != 0 {
        return Ok(false);
    }
    for (sector, data) in (operation.sector..).zip(reply.data.chunks(SECTOR)) {
        let (found, wanted) = (classify(data, sector), model.expected(sector));
        if !model.observe(sector, found) {
            return Err(format!("sector {sector}: want {wanted}, found {found:?}"));
        }
    }
    Ok(true)
}

/// False if it was refused; then both values are possible.
fn write(client: &mut Client, model: &mut Model, operation: Operation, tag: u64) -> Result<bool> {
    let mut data = vec![0; operation.count as usize * SECTOR];
    fill(&mut data, operation.sector, tag);
    model.sent(operation, tag);
    client.send_write(operation.sector * SECTOR as u64, &data, false);
    client.push()?;
    let is_fine = client.receive()?.error == 0;
    if is_fine {
        model.lasting(operation, tag);
    }
    Ok(is_fine)
}
