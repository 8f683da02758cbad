//! Every verb that changes what is served, while fio writes and verifies on all volumes that it is done to.
//!
//! fio writes random blocks and reads them back, several jobs on ranges of their own; beside it a probe on each volume asks one small
//! thing after the other, so that each pause is known with its time, and so with the verb it belongs to: that of the last verb
//! that began before it ended. Some ranges are written once and looked at in the end.
//!
//! A pass through `brigade stop` ends all connections; before it fio writes everything once, and verifies it afterwards, when the
//! devices have other names and come in another order.

use super::{MIB, Passed, Setting};
use crate::bench_wa::scratch;
use crate::fio::{self, Fio, Target};
use crate::nbd::{Client, exports};
use crate::pattern::{Content, SECTOR, classify, fill, mix};
use crate::probe::{Idler, Probe, Sample, Seen, longest};
use crate::process::{Context, Result, output};
use crate::server::{Serve, Server, format, start_ready};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Jobs of fio on a volume.
const JOBS: u64 = 2;
/// Writes a second of a job. Two processors serve all of it.
pub const RATE: u64 = 300;
const BLOCK: u64 = 4096;
const PROBE_BLOCKS: u64 = 256;
/// What is compared at once.
const PIECE: u64 = MIB / 4;
/// Writes of ours in flight.
const DEPTH: u64 = 32;
/// Time between two verbs, which belongs to the first of them.
const AFTER: Duration = Duration::from_millis(700);
/// Until there is something dirty.
const DIRTYING: Duration = Duration::from_millis(1500);
const ATTEMPTS: u32 = 10;
const LABELS: [&str; 4] = ["alpha", "beta", "gamma", "delta"];
/// Their names after a restart, in which they are given in another order.
const RENAMED: [&str; 4] = ["d3", "d1", "d2", "d0"];
/// Those that are worked on all the time.
const BUSY: [&str; 3] = ["alpha", "beta", "gamma"];
const MODES: [&str; 4] = ["none", "writearound", "writethrough", "writeback"];

/// How large everything is. Of each volume the beginning is fio's, then come a probe, what is written once, and blocks that are
/// written one by one to be dirty.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// As many times the smallest sizes.
    pub times: u64,
    /// Writes a second of a job.
    pub rate: u64,
}

impl Scale {
    fn cache(self) -> u64 {
        256 * MIB * self.times
    }

    fn fio(self) -> u64 {
        40 * MIB * self.times
    }

    fn probe(self) -> u64 {
        self.fio()
    }

    fn still(self) -> u64 {
        44 * MIB * self.times
    }

    fn still_bytes(self) -> u64 {
        4 * MIB * self.times
    }

    fn bulk(self) -> u64 {
        48 * MIB * self.times
    }

    fn bulk_bytes(self) -> u64 {
        12 * MIB * self.times
    }

    fn volume(self) -> u64 {
        64 * MIB * self.times
    }

    fn grown(self) -> u64 {
        16 * MIB * self.times
    }
}

/// What one verb came to.
pub struct Step {
    /// What was done.
    pub name: String,
    /// When it began.
    pub from: Instant,
    /// How long the verb itself took.
    pub took: Duration,
}

/// What was seen of all of it.
#[derive(Default)]
pub struct Report {
    /// In order.
    pub steps: Vec<Step>,
    /// Of the probes, by export.
    pub samples: Vec<(String, Vec<Sample>)>,
    /// Of the loop that does nothing.
    pub idle: Vec<Sample>,
    /// Of fio, over all of its processes.
    pub fio: fio::Report,
    /// Bytes that were read and compared in the end.
    pub compared: u64,
}

impl Report {
    /// Until when the aftermath of a step is its own.
    fn end_of(&self, step: usize) -> Instant {
        let next = self.steps.get(step + 1).map(|next| next.from);
        next.unwrap_or_else(|| self.steps[step].from + self.steps[step].took + AFTER)
    }

    /// The longest pause of a step, on whichever volume, and of the loop that does nothing meanwhile.
    pub fn pause_of(&self, step: usize) -> (Duration, Duration) {
        let (from, to) = (self.steps[step].from, self.end_of(step));
        let of = |(_, samples): &(String, Vec<Sample>)| longest(samples, from, to);
        let pause = self.samples.iter().map(of).max().unwrap_or_default();
        (pause, longest(&self.idle, from, to))
    }

    /// The longest pause of all, fio's too.
    pub fn longest(&self) -> Duration {
        let pauses = (0..self.steps.len()).map(|step| self.pause_of(step).0);
        pauses.max().unwrap_or_default().max(self.fio.longest)
    }

    /// One line for each verb.
    pub fn print(&self) {
        println!(
            "   {:44} {:>9} {:>9} {:>9}",
            "ms", "took", "pause", "machine"
        );
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        for (at, step) in self.steps.iter().enumerate() {
            let (pause, idle) = self.pause_of(at);
            println!(
                "   {:44} {:9.1} {:9.1} {:9.1}",
                step.name,
                ms(step.took),
                ms(pause),
                ms(idle)
            );
        }
        println!(
            "   {:44} {:>9} {:9.1}",
            "fio, of all requests",
            "",
            ms(self.fio.longest)
        );
    }
}

/// Runs rounds and prints the longest pause of each verb.
pub fn run(setting: &Setting) -> Result<Passed> {
    if !fio::speaks_nbd()? {
        return Ok(Passed::Skipped("this fio has no nbd engine".into()));
    }
    let mut note = String::new();
    for round in 0..setting.rounds {
        let seed = mix(setting.seed.wrapping_add(round)) & 0xffff_ffff;
        let scale = Scale {
            times: 1,
            rate: RATE,
        };
        let report = judge(&setting.program, seed, scale).context(format!("round {round}"))?;
        report.print();
        note = format!(
            "{} verbs, fio: {} writes, {} verified reads, 0 errors; longest pause {:.0} ms, {} MiB compared in the end",
            report.steps.len(),
            report.fio.writes,
            report.fio.reads,
            report.longest().as_secs_f64() * 1e3,
            report.compared / MIB
        );
    }
    Ok(Passed::Ran(note))
}

/// One round, in memory.
pub fn judge(program: &Path, seed: u64, scale: Scale) -> Result<Report> {
    let folder = scratch("brigade-lifecycle-")?;
    let outcome = round(program, folder.path(), (seed, scale));
    if outcome.is_err() {
        println!("   kept: {}", folder.keep().display());
    }
    outcome
}

/// Everything at work.
struct World {
    folder: PathBuf,
    program: PathBuf,
    seed: u64,
    scale: Scale,
    server: Option<Server>,
    fios: BTreeMap<String, Fio>,
    probes: BTreeMap<String, Probe>,
    idler: Option<Idler>,
    report: Report,
    /// Of probes that ended, by the label of their volume.
    seen: BTreeMap<String, Seen>,
    /// Ranges that were written once: label, first byte, bytes, tag.
    still: Vec<(String, u64, u64, u64)>,
    bulks: u64,
}

fn round(program: &Path, folder: &Path, chance: (u64, Scale)) -> Result<Report> {
    let mut world = World::new(program, folder, chance)?;
    devices(&mut world)?;
    modes(&mut world)?;
    detaching(&mut world)?;
    sizes(&mut world)?;
    flash(&mut world)?;
    names(&mut world)?;
    idle_volume(&mut world)?;
    background(&mut world)?;
    let mut world = restart(world)?;
    background(&mut world)?;
    finish(world)
}

impl World {
    /// A set with one volume, and one that is served without a cache.
    fn new(program: &Path, folder: &Path, (seed, scale): (u64, Scale)) -> Result<World> {
        let at = |name: &str| folder.join(name);
        let words = ["--bucket-size", "128k", "--label", "alpha"];
        let [cache, alpha] = [at("cache"), at("alpha")];
        let sizes = (scale.cache(), scale.volume());
        format(program, (&cache, sizes.0), (&alpha, sizes.1), &words)?;
        for name in &LABELS[1..] {
            let size = scale.volume().to_string();
            let mut alone = Command::new(program);
            alone.current_dir(folder).arg("format");
            output(alone.args(["--backing", name, "--create", &size, "--label", name]))?;
        }
        let serve = Serve {
            caches: vec![cache],
            backings: vec![alpha, at("gamma")],
            ..Serve::default()
        };
        let server = start_ready(program, &serve, folder)?;
        let mut world = World {
            folder: folder.into(),
            program: program.into(),
            seed,
            scale,
            server: Some(server),
            fios: BTreeMap::new(),
            probes: BTreeMap::new(),
            idler: Some(Idler::start()),
            report: Report::default(),
            seen: BTreeMap::new(),
            still: Vec::new(),
            bulks: 0,
        };
        for name in ["alpha", "gamma"] {
            world.still(name, scale.still(), scale.still_bytes())?;
            world.work(name, name)?;
        }
        std::thread::sleep(AFTER);
        Ok(world)
    }

    fn server(&self) -> Result<&Server> {
        self.server
            .as_ref()
            .ok_or_else(|| "nothing is served".into())
    }

    fn target(&self, label: &str, export: &str) -> Result<Target> {
        let name = label
            .bytes()
            .fold(7, |sum, byte| mix(sum ^ u64::from(byte)));
        Ok(Target {
            uri: self.server()?.uri(export),
            bytes: self.scale.fio(),
            jobs: JOBS,
            seed: mix(self.seed ^ name),
        })
    }

    /// fio and a probe begin to work on a volume.
    fn work(&mut self, label: &str, export: &str) -> Result<()> {
        let fio = Fio::start(
            &self.target(label, export)?,
            self.scale.rate,
            &self.folder,
            label,
        )?;
        self.fios.insert(label.into(), fio);
        let number = self.probes.len() + self.report.samples.len();
        let seed = mix(self.seed ^ number as u64) & 0xff_ffff;
        let probe = Probe::start(
            &self.server()?.socket,
            export,
            self.scale.probe(),
            PROBE_BLOCKS,
            seed,
        )?;
        self.probes.insert(label.into(), probe);
        Ok(())
    }

    /// They end.
    fn rest(&mut self, label: &str) -> Result<()> {
        let fio = self.fios.remove(label).ok_or("no fio")?;
        let seen = fio.end().context(format!("{label}: fio"))?;
        let all = &mut self.report.fio;
        all.reads += seen.reads;
        all.writes += seen.writes;
        all.longest = all.longest.max(seen.longest);
        let probe = self.probes.remove(label).ok_or("no probe")?;
        let mut seen = probe.end()?;
        let samples = std::mem::take(&mut seen.samples);
        self.report.samples.push((label.into(), samples));
        self.seen.insert(label.into(), seen);
        Ok(())
    }

    /// Fails if anybody at work saw something wrong.
    fn check(&mut self) -> Result<()> {
        for (name, fio) in &mut self.fios {
            fio.check().context(format!("{name}: fio"))?;
        }
        let dead = self.probes.iter().find(|(_, probe)| !probe.is_alive());
        let Some(name) = dead.map(|(name, _)| name.clone()) else {
            return Ok(());
        };
        let probe = self.probes.remove(&name).ok_or("no probe")?;
        let ended = probe.end().map(drop);
        ended.and(Err(format!("{name}: a probe has ended")))
    }

    /// Does something, and waits for what comes after it.
    fn step(&mut self, name: &str, what: impl FnOnce(&mut World) -> Result<()>) -> Result<()> {
        let from = Instant::now();
        what(self).context(name)?;
        let took = from.elapsed();
        self.report.steps.push(Step {
            name: name.into(),
            from,
            took,
        });
        std::thread::sleep(AFTER);
        self.check().context(format!("after {name}"))
    }

    /// Runs a verb of `brigade` as a step.
    fn verb(&mut self, words: &[&str]) -> Result<()> {
        let named = |word: &str| word.rsplit('/').next().unwrap_or(word).to_string();
        let name: Vec<String> = words.iter().map(|word| named(word)).collect();
        self.step(&name.join(" "), |world| {
            world.server()?.verb(words).map(drop)
        })
    }

    fn set(&mut self, label: &str, setting: &str, value: &str) -> Result<()> {
        self.verb(&["set", &format!("{label}.{setting}={value}")])
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// What the status says of a volume.
    fn volume(&self, label: &str) -> Result<Value> {
        let status = self.server()?.status()?;
        let volumes = status["volumes"].as_array().cloned().unwrap_or_default();
        let found = volumes.into_iter().find(|volume| volume["label"] == label);
        found.ok_or_else(|| format!("the status has no volume {label}"))
    }

    fn expect(&self, label: &str, key: &str, wanted: &Value) -> Result<()> {
        let found = &self.volume(label)?[key];
        match found == wanted {
            true => Ok(()),
            false => Err(format!("{label}: {key} is {found}, not {wanted}")),
        }
    }

    fn expect_state(&self, label: &str, is_attached: bool) -> Result<()> {
        let state = self.volume(label)?["state"].clone();
        match (state == "no cache") != is_attached {
            true => Ok(()),
            false => Err(format!("{label}: its state is {state}")),
        }
    }

    /// Uuids of what is served, each with its label.
    fn identity(&self) -> Result<BTreeMap<String, String>> {
        let status = self.server()?.status()?;
        let volumes = status["volumes"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let of = |volume: &Value| (text(&volume["uuid"]), text(&volume["label"]));
        Ok(volumes.iter().map(of).collect())
    }

    fn stop(&mut self) -> Result<()> {
        let server = self.server.take().ok_or("nothing is served")?;
        server.stop_by_verb()
    }

    /// `brigade check` finds nothing.
    fn check_devices(&self, backings: &[&str]) -> Result<()> {
        let mut check = Command::new(&self.program);
        check.current_dir(&self.folder);
        check.args(["check", "--data", "cache"]).args(backings);
        output(&mut check).map(drop)
    }

    /// Serves the set again, the devices in reverse order.
    fn serve(&mut self, backings: &[&str]) -> Result<()> {
        let paths = backings.iter().rev().map(|name| self.folder.join(name));
        let serve = Serve {
            caches: vec![self.folder.join("cache")],
            backings: paths.collect(),
            ..Serve::default()
        };
        self.server = Some(start_ready(&self.program, &serve, &self.folder)?);
        Ok(())
    }

    /// Writes a range that is to stay as it is.
    fn still(&mut self, label: &str, start: u64, bytes: u64) -> Result<()> {
        let tag = mix(self.seed ^ self.still.len() as u64) >> 8;
        let mut client = Client::connect(&self.server()?.socket, label)?;
        let mut data = vec![0; PIECE as usize];
        for at in (start..start + bytes).step_by(data.len()) {
            fill(&mut data, at / SECTOR as u64, tag);
            client.write_at(at, &data, false).context(label)?;
        }
        client.flush()?;
        client.disconnect();
        self.still.push((label.into(), start, bytes, tag));
        Ok(())
    }

    /// Writes blocks one by one, in an order in which none follows another, so that they are as many extents; they stay as they are.
    fn bulk(&mut self, label: &str) -> Result<()> {
        let (start, bytes) = (self.scale.bulk(), self.scale.bulk_bytes());
        self.still
            .retain(|(of, at, ..)| of != label || *at != start);
        let tag = mix(self.seed ^ mix(self.bulks)) >> 8;
        self.bulks += 1;
        let mut client = Client::connect(&self.server()?.socket, label)?;
        let blocks = bytes / BLOCK;
        let mut data = [0; BLOCK as usize];
        for number in 0..blocks + DEPTH {
            if number < blocks {
                // Every second one, and then those between.
                let half = blocks.div_ceil(2);
                let block = number % half * 2 + number / half;
                let at = start + block * BLOCK;
                fill(&mut data, at / SECTOR as u64, tag);
                client.send_write(at, &data, false);
            }
            if number >= DEPTH && client.receive()?.error != 0 {
                return Err(format!("{label}: a write failed"));
            }
        }
        client.flush()?;
        client.disconnect();
        self.still.push((label.into(), start, bytes, tag));
        Ok(())
    }

    /// Reads what was written once and what probes wrote, of volumes that are served.
    fn compare(&mut self) -> Result<()> {
        let names = exports(&self.server()?.socket)?;
        for (label, start, bytes, tag) in &self.still {
            if !names.contains(label) {
                continue;
            }
            let mut client = Client::connect(&self.server()?.socket, label)?;
            for at in (*start..start + bytes).step_by(PIECE as usize) {
                let data = client.read_at(at, PIECE as usize).context(label)?;
                for (sector, found) in (at / SECTOR as u64..).zip(data.chunks(SECTOR)) {
                    let found = classify(found, sector);
                    if found != Content::Tag(*tag) {
                        return Err(format!(
                            "{label}: sector {sector}: want {tag:#x}, found {found:?}"
                        ));
                    }
                }
            }
            client.disconnect();
            self.report.compared += bytes;
        }
        for (label, seen) in &self.seen {
            if names.contains(label) {
                self.report.compared += BLOCK * seen.verify(&self.server()?.socket, label)?;
            }
        }
        Ok(())
    }
}

/// A second device comes, and a device that is served already comes to the cache.
fn devices(world: &mut World) -> Result<()> {
    let scale = world.scale;
    let (beta, gamma, delta) = (world.path("beta"), world.path("gamma"), world.path("delta"));
    world.verb(&["attach", &beta])?;
    world.expect_state("beta", true)?;
    world.still("beta", scale.still(), scale.still_bytes())?;
    world.work("beta", "beta")?;
    world.expect_state("gamma", false)?;
    world.verb(&["attach", &gamma])?;
    world.expect_state("gamma", true)?;
    world.verb(&["attach", &delta])?;
    world.still("delta", scale.still(), scale.still_bytes())
}

fn modes(world: &mut World) -> Result<()> {
    for mode in MODES {
        world.set("alpha", "cache_mode", mode)?;
        world.expect("alpha", "mode", &mode.into())?;
    }
    for label in ["beta", "gamma", "delta"] {
        world.set(label, "cache_mode", "writeback")?;
    }
    Ok(())
}

/// A volume with dirty data leaves its cache, once not after all, and comes back.
fn detaching(world: &mut World) -> Result<()> {
    world.verb(&["set", "writeback_running=off"])?;
    world.bulk("gamma")?;
    std::thread::sleep(DIRTYING);
    world.step("detach gamma, cancelled", |world| {
        for _ in 0..ATTEMPTS {
            world.server()?.verb(&["detach", "gamma", "--no-wait"])?;
            if world
                .server()?
                .verb(&["detach", "gamma", "--cancel"])
                .is_ok()
            {
                return Ok(());
            }
            // It was too late: back, and again with something dirty.
            world.server()?.verb(&["detach", "gamma"]).ok();
            let gamma = world.path("gamma");
            world.server()?.verb(&["attach", &gamma])?;
            std::thread::sleep(DIRTYING);
        }
        Err("no detach could be cancelled".into())
    })?;
    world.expect_state("gamma", true)?;
    let dirty = world.volume("gamma")?["dirty_bytes"].as_u64();
    if dirty.is_none_or(|bytes| bytes == 0) {
        return Err("nothing is dirty for the detach to write back".into());
    }
    world.verb(&["detach", "gamma"])?;
    world.expect_state("gamma", false)?;
    let gamma = world.path("gamma");
    world.verb(&["attach", &gamma])?;
    world.expect_state("gamma", true)?;
    world.verb(&["set", "writeback_running=on"])
}

/// A backing file that is served becomes larger.
fn sizes(world: &mut World) -> Result<()> {
    let scale = world.scale;
    let was = world.volume("alpha")?["size_bytes"].as_u64().unwrap_or(0);
    world.step("volume resize alpha, its file is larger", |world| {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(world.path("alpha"));
        let grown = file.and_then(|file| file.set_len(scale.volume() + scale.grown()));
        grown.context("cannot make a file larger")?;
        world
            .server()?
            .verb(&["volume", "resize", "alpha"])
            .map(drop)
    })?;
    world.expect("alpha", "size_bytes", &(was + scale.grown()).into())?;
    // What is new reads as the file does, and takes data.
    let start = scale.volume();
    let mut client = Client::connect(&world.server()?.socket, "alpha")?;
    let bytes = client.read_at(start, MIB as usize)?;
    client.disconnect();
    if bytes.iter().any(|byte| *byte != 0) {
        return Err("what has grown is not zeros".into());
    }
    world.still("alpha", start, scale.still_bytes())
}

/// A volume of the cache alone is made, used, resized, named and deleted.
fn flash(world: &mut World) -> Result<()> {
    let scale = world.scale;
    let size = scale.volume().to_string();
    let larger = (scale.volume() + scale.grown()).to_string();
    world.verb(&["volume", "create", &size, "--label", "scratch"])?;
    world.work("scratch", "scratch")?;
    world.verb(&["volume", "resize", "scratch", &larger])?;
    world.still("scratch", scale.volume(), scale.still_bytes())?;
    world.step("use of what is new of scratch", World::compare)?;
    world.verb(&["volume", "resize", "scratch", &size, "--shrink"])?;
    world.still.pop();
    world.verb(&["volume", "resize", "scratch", &larger])?;
    let mut client = Client::connect(&world.server()?.socket, "scratch")?;
    let bytes = client.read_at(scale.volume(), MIB as usize)?;
    client.disconnect();
    if bytes.iter().any(|byte| *byte != 0) {
        return Err("a flash volume shows what lay behind its end".into());
    }
    world.rest("scratch")?;
    world.compare()?;
    let target = world.target("scratch", "scratch")?;
    fio::write_all(&target, &world.folder)?;
    fio::verify_all(&target, &world.folder)?;
    world.verb(&["volume", "delete", "scratch"])?;
    let names = exports(&world.server()?.socket)?;
    match names.iter().any(|name| name == "scratch") {
        true => Err("a deleted volume is exported".into()),
        false => Ok(()),
    }
}

fn names(world: &mut World) -> Result<()> {
    world.verb(&["volume", "label", "beta", "other"])?;
    Client::connect(&world.server()?.socket, "other")?.disconnect();
    if Client::connect(&world.server()?.socket, "beta").is_ok() {
        return Err("an old label is still exported".into());
    }
    world.verb(&["volume", "label", "other", "beta"])
}

/// A volume that nobody uses is not served for a while; what is dirty of it comes back with it.
fn idle_volume(world: &mut World) -> Result<()> {
    world.still("delta", 0, world.scale.still_bytes())?;
    world.verb(&["volume", "stop", "delta"])?;
    if world.volume("delta").is_ok() {
        return Err("a stopped volume is served".into());
    }
    let delta = world.path("delta");
    world.verb(&["attach", &delta])?;
    world.compare()
}

fn background(world: &mut World) -> Result<()> {
    world.verb(&["set", "writeback_running=off"])?;
    BUSY.iter().try_for_each(|label| world.bulk(label))?;
    world.verb(&["gc"])?;
    world.verb(&["gc", "--pause"])?;
    world.verb(&["gc", "--resume"])?;
    world.verb(&["drain", "alpha"])?;
    world.verb(&["drain"])?;
    world.verb(&["set", "writeback_running=on"])?;
    world.step("drain, cancelled", |world| {
        world.server()?.verb(&["drain", "--no-wait"])?;
        world.server()?.verb(&["drain", "--cancel"]).map(drop)
    })
}

/// Everything is written once, the server stops, the devices get other names, and everything is there again.
fn restart(mut world: World) -> Result<World> {
    settle(&mut world)?;
    let before = world.identity()?;
    world.step("stop", World::stop)?;
    world.check_devices(&LABELS)?;
    for (from, to) in LABELS.iter().zip(RENAMED) {
        let [from, to] = [from, to].map(|name| world.folder.join(name));
        std::fs::rename(from, to).context("rename")?;
    }
    world.step("serve", |world| world.serve(&RENAMED))?;
    let after = world.identity()?;
    if before != after {
        return Err(format!("after a restart: {after:?}, before it: {before:?}"));
    }
    recall(&mut world)?;
    for label in BUSY {
        world.work(label, label)?;
    }
    Ok(world)
}

/// The end: everything is written once more, and read by the next server.
fn finish(mut world: World) -> Result<Report> {
    settle(&mut world)?;
    world.stop()?;
    world.check_devices(&RENAMED)?;
    world.serve(&RENAMED)?;
    recall(&mut world)?;
    world.stop()?;
    world.check_devices(&RENAMED)?;
    let idle = world.idler.take().map(Idler::end);
    world.report.idle = idle.unwrap_or_default();
    Ok(world.report)
}

/// Work ends, and fio writes everything once.
fn settle(world: &mut World) -> Result<()> {
    for label in BUSY {
        world.rest(label)?;
    }
    world.compare()?;
    for label in BUSY {
        fio::write_all(&world.target(label, label)?, &world.folder)?;
    }
    Ok(())
}

/// All of that is there.
fn recall(world: &mut World) -> Result<()> {
    world.compare()?;
    for label in BUSY {
        let target = world.target(label, label)?;
        fio::verify_all(&target, &world.folder).context(label)?;
        world.report.compared += target.bytes;
    }
    Ok(())
}
