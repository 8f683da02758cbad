//! Turns: Brigade and the kernel use one set alternately, and the host's model knows what must be there.

use super::{MIB, Passed, Setting, check_export, complain};
use crate::golden::{ExtentContent, parse_map};
use crate::kernel::{self, Boot, KillWhen, Outcome};
use crate::model::Model;
use crate::nbd::Client;
use crate::pattern::{Operation, RandomWorkload, SECTOR, fill, mix};
use crate::process::{Context, Result};
use crate::server::{self, Serve, start_ready};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

const CACHE_BYTES: u64 = 64 * MIB;
const BACKING_BYTES: u64 = 256 * MIB;
const DATA_OFFSET_SECTORS: u64 = 16;
const DEPTH: usize = 16;
const BRIGADE_OPERATIONS: u64 = 6000;
const KERNEL_OPERATIONS: u64 = 1500;
const KERNEL_FLUSH_EVERY: u64 = 100;
/// Tags of a turn start here times the turn's number.
const TURN: u64 = 1_000_000;

/// A formatted pair of images and what must be on it.
pub struct Pair {
    /// The cache device.
    pub cache: PathBuf,
    /// The backing device.
    pub backing: PathBuf,
    /// The record.
    pub model: Model,
}

impl Pair {
    /// Formats a pair with `brigade format`, in writeback mode.
    pub fn format(setting: &Setting) -> Result<Pair> {
        let (cache, backing) = (
            setting.scratch.join("cache.img"),
            setting.scratch.join("back.img"),
        );
        server::format(
            &setting.program,
            (&cache, CACHE_BYTES),
            (&backing, BACKING_BYTES),
            &[
                "--bucket-size",
                "64k",
                "--block-size",
                "512",
                "--mode",
                "writeback",
            ],
        )?;
        let model = Model::new(BACKING_BYTES / SECTOR as u64 - DATA_OFFSET_SECTORS);
        Ok(Pair {
            cache,
            backing,
            model,
        })
    }

    /// How to serve it.
    pub fn serve(&self) -> Serve {
        Serve {
            caches: vec![self.cache.clone()],
            backings: vec![self.backing.clone()],
            mode: Some("writeback"),
            read_only: false,
        }
    }

    /// A random workload over the whole volume.
    pub fn load(&self, seed: u64) -> RandomWorkload {
        RandomWorkload {
            seed,
            start: 0,
            range: self.model.sectors() / 8 * 8,
            align: 8,
            count_max: 32,
        }
    }
}

/// Writes a workload with many requests in flight and keeps the record; overlapping operations wait for each
/// other, so that the record is exact. What was in flight when the connection breaks stays open in the model.
pub fn write_load(
    client: &mut Client,
    model: &mut Model,
    load: &RandomWorkload,
    tag: u64,
    count: u64,
) -> Result<()> {
    let mut flight = Flight::default();
    let mut bytes = vec![0u8; (load.align * load.count_max) as usize * SECTOR];
    for i in 0..count {
        let operation = load.operation(i);
        while flight.is_full()
            || load_slots(load, operation).any(|slot| flight.slots.contains(&slot))
        {
            flight.receive(client, model, load)?;
        }
        let data = &mut bytes[..operation.count as usize * SECTOR];
        fill(data, operation.sector, tag + i);
        model.sent(operation, tag + i);
        let cookie = client.send_write(operation.sector * SECTOR as u64, data, i % 64 == 63);
        flight.slots.extend(load_slots(load, operation));
        flight.operations.insert(cookie, (operation, tag + i));
        client.push()?;
    }
    while !flight.operations.is_empty() {
        flight.receive(client, model, load)?;
    }
    Ok(())
}

/// The units of alignment an operation touches.
fn load_slots(load: &RandomWorkload, operation: Operation) -> Range<u64> {
    operation.sector / load.align..(operation.sector + operation.count) / load.align
}

/// What was sent and not yet answered.
#[derive(Default)]
struct Flight {
    operations: HashMap<u64, (Operation, u64)>,
    slots: HashSet<u64>,
}

impl Flight {
    fn is_full(&self) -> bool {
        self.operations.len() >= DEPTH
    }

    fn receive(
        &mut self,
        client: &mut Client,
        model: &mut Model,
        load: &RandomWorkload,
    ) -> Result<()> {
        let reply = client.receive()?;
        let unknown = || format!("an answer to the unknown request {}", reply.cookie);
        let (operation, tag) = self.operations.remove(&reply.cookie).ok_or_else(unknown)?;
        for slot in load_slots(load, operation) {
            self.slots.remove(&slot);
        }
        if reply.error != 0 {
            return Err(format!("a write was answered with error {}", reply.error));
        }
        model.lasting(operation, tag);
        Ok(())
    }
}

fn kernel_boot(pair: &Pair) -> Boot {
    Boot {
        images: vec![pair.cache.clone(), pair.backing.clone()],
        timeout: Duration::from_secs(400),
        ..Boot::default()
    }
}

const OPEN: &str = "register vda vdb || exit 1; await_volume vdb; await_set vda\n\
    set_mode vdb writeback; cache_everything vdb; hold_writeback vdb\n\
    v=/dev/$(volume_of vdb)\necho STATE $(state_of vdb)\nsectors map $v > /out/map || fail map\n";

/// The kernel opens a pair, and what it reads must be what the model says.
fn kernel_checks(setting: &Setting, pair: &mut Pair, snapshot: bool) -> Result<String> {
    let out = super::folder(setting, "out")?;
    let script = format!("{OPEN}facts; kernel_log; stop_everything\n");
    let boot = Boot {
        script,
        snapshot,
        out: Some(out.clone()),
        ..kernel_boot(pair)
    };
    let console = kernel::run(&boot)?.ok()?;
    judge_map(pair, &out, "what the kernel reads")?;
    Ok(console)
}

fn judge_map(pair: &mut Pair, out: &std::path::Path, what: &str) -> Result<()> {
    let map = std::fs::read_to_string(out.join("map")).context("the guest left no map")?;
    complain(what, pair.model.observe_map(&parse_map(&map)?))
}

/// Brigade formats, serves and fills; the kernel reads the same.
pub fn kernel_opens(setting: &Setting) -> Result<Passed> {
    let mut pair = Pair::format(setting)?;
    let server = start_ready(&setting.program, &pair.serve(), &setting.scratch)?;
    let mut client = Client::connect(&server.socket, "")?;
    let load = pair.load(setting.seed);
    write_load(
        &mut client,
        &mut pair.model,
        &load,
        TURN,
        BRIGADE_OPERATIONS,
    )?;
    client.flush()?;
    client.disconnect();
    check_export(&server, &mut pair.model, "what Brigade reads back")?;
    server.stop()?;
    let console = kernel_checks(setting, &mut pair, true)?;
    let state = console
        .lines()
        .find(|line| line.starts_with("STATE"))
        .unwrap_or("STATE ?")
        .to_lowercase();
    Ok(Passed::Ran(format!(
        "{BRIGADE_OPERATIONS} writes read back by the kernel ({state})"
    )))
}

/// Turns with clean stops and crashes of either side.
pub fn run(setting: &Setting) -> Result<Passed> {
    let rounds = setting.rounds;
    let mut pair = Pair::format(setting)?;
    for round in 0..rounds {
        // Two rounds have a crash and a stop of either side, in an order that the seed gives.
        let dies = |seed: u64| (seed & 1) ^ (round & 1) == 1;
        let (brigade_dies, kernel_dies) = (dies(setting.seed), dies(setting.seed >> 1));
        let turn = format!(
            "round {round} (Brigade {}, kernel {})",
            end(brigade_dies),
            end(kernel_dies)
        );
        brigade_turn(setting, &mut pair, round, brigade_dies).context(&turn)?;
        kernel_turn(setting, &mut pair, round, kernel_dies).context(&turn)?;
        println!("  {turn}: fine");
    }
    let server = start_ready(&setting.program, &pair.serve(), &setting.scratch)?;
    check_export(&server, &mut pair.model, "after the last turn")?;
    server.stop()?;
    kernel_checks(setting, &mut pair, true)?;
    Ok(Passed::Ran(format!("{rounds} rounds")))
}

fn end(dies: bool) -> &'static str {
    if dies { "killed" } else { "stopped" }
}

/// The kernel's turns alone, on a set it formatted itself: a clean stop, then a crash. The harness must find that
/// nothing that was flushed is lost.
pub fn kernel_turns(setting: &Setting) -> Result<Passed> {
    let images = super::folder(setting, "images")?;
    let case = crate::golden::load(&crate::golden::fixtures(), "fresh")?;
    case.unpack(&images)?;
    let volumes = case.volumes();
    let volume = volumes.first().ok_or("the case has no volume")?;
    let mut model = Model::new(volume.sectors);
    for extent in case.extents(volume)? {
        let ExtentContent::Tag(tag) = extent.what else {
            return Err("the case holds other than pattern".into());
        };
        model.lasting(
            Operation {
                sector: extent.start,
                count: extent.count,
            },
            tag,
        );
    }
    let mut pair = Pair {
        cache: images.join("cache.img"),
        backing: images.join("back.img"),
        model,
    };
    kernel_turn(setting, &mut pair, 0, false)?;
    kernel_turn(setting, &mut pair, 1, true)?;
    kernel_checks(setting, &mut pair, true)?;
    Ok(Passed::Ran("a stop and a crash".into()))
}

fn brigade_turn(setting: &Setting, pair: &mut Pair, round: u64, dies: bool) -> Result<()> {
    let server = start_ready(&setting.program, &pair.serve(), &setting.scratch)?;
    check_export(&server, &mut pair.model, "what Brigade reads")?;
    let mut client = Client::connect(&server.socket, "")?;
    let load = pair.load(mix(setting.seed ^ (2 * round)));
    write_load(
        &mut client,
        &mut pair.model,
        &load,
        (2 * round + 1) * TURN,
        BRIGADE_OPERATIONS,
    )?;
    client.flush()?;
    if !dies {
        return server.stop();
    }
    // What was acknowledged and not flushed survives a kill only for Brigade itself (the test `kill` sees to
    // that); the kernel may find it or not.
    let (load, tag, count) = (
        pair.load(mix(setting.seed ^ !round)),
        (2 * round + 1) * TURN + TURN / 2,
        500,
    );
    write_load(&mut client, &mut pair.model.clone(), &load, tag, count)?;
    pair.model.workload(&load, tag, 0, count);
    server.kill()
}

fn kernel_turn(setting: &Setting, pair: &mut Pair, round: u64, dies: bool) -> Result<()> {
    let out = super::folder(setting, "out")?;
    let load = pair.load(mix(setting.seed ^ (2 * round + 1)));
    let tag = (2 * round + 2) * TURN;
    let write = format!(
        "sectors rand $v {} {KERNEL_OPERATIONS} {} {} {} {} {tag} 1 {KERNEL_FLUSH_EVERY} 10 || fail rand\n",
        load.seed, load.start, load.range, load.align, load.count_max
    );
    if !dies {
        let script = format!("{OPEN}{write}kernel_log; stop_everything\n");
        let boot = Boot {
            script,
            out: Some(out.clone()),
            ..kernel_boot(pair)
        };
        kernel::run(&boot)?.ok()?;
        judge_map(pair, &out, "what the kernel reads")?;
        pair.model
            .workload(&load, tag, KERNEL_OPERATIONS, KERNEL_OPERATIONS);
        return Ok(());
    }
    kernel_checks(setting, pair, true)?;
    let flushes = 1 + mix(setting.seed + round) % (KERNEL_OPERATIONS / KERNEL_FLUSH_EVERY - 2);
    let marker = format!("@@flushed {}$", flushes * KERNEL_FLUSH_EVERY);
    let open = OPEN.replace("sectors map $v > /out/map || fail map\n", "");
    let boot = Boot {
        script: format!("{open}{write}sleep 60\n"),
        kill: Some(KillWhen::Marker(marker)),
        kill_delay: Duration::from_millis(mix(round ^ setting.seed) % 400),
        ..kernel_boot(pair)
    };
    let finished = kernel::run(&boot)?;
    if finished.outcome != Outcome::Killed {
        return Err(format!(
            "the guest was not killed: {:?}\n{}",
            finished.outcome, finished.console
        ));
    }
    let last = |word: &str| {
        let numbers = finished
            .console
            .lines()
            .filter_map(|line| line.strip_prefix(word)?.trim().parse::<u64>().ok());
        numbers.max().unwrap_or(0)
    };
    pair.model
        .workload(&load, tag, last("@@flushed "), KERNEL_OPERATIONS);
    Ok(())
}
