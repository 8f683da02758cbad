//! A server, fio and probes at work on its volumes, and what is to be found there in the end.

use super::{AFTER, BLOCK, DEPTH, JOBS, LABELS, PIECE, PROBE_BLOCKS, Report, Scale, Step};
use crate::fio::{Fio, Target};
use crate::nbd::{Client, exports};
use crate::pattern::{Content, SECTOR, classify, fill, mix};
use crate::probe::{Idler, Probe, Seen};
use crate::process::{Context, Result, output};
use crate::server::{Serve, Server, format, start_ready};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// Everything at work.
pub(super) struct World {
    pub(super) folder: PathBuf,
    pub(super) program: PathBuf,
    pub(super) seed: u64,
    pub(super) scale: Scale,
    pub(super) server: Option<Server>,
    pub(super) fios: BTreeMap<String, Fio>,
    pub(super) probes: BTreeMap<String, Probe>,
    pub(super) idler: Option<Idler>,
    pub(super) report: Report,
    /// Of probes that ended, by the label of their volume.
    pub(super) seen: BTreeMap<String, Seen>,
    /// Ranges that were written once: label, first byte, bytes, tag.
    pub(super) still: Vec<(String, u64, u64, u64)>,
    pub(super) bulks: u64,
}

impl World {
    /// A set with one volume, and one that is served without a cache.
    pub(super) fn new(program: &Path, folder: &Path, (seed, scale): (u64, Scale)) -> Result<World> {
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

    pub(super) fn server(&self) -> Result<&Server> {
        self.server
            .as_ref()
            .ok_or_else(|| "nothing is served".into())
    }

    pub(super) fn target(&self, label: &str, export: &str) -> Result<Target> {
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
    pub(super) fn work(&mut self, label: &str, export: &str) -> Result<()> {
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
    pub(super) fn rest(&mut self, label: &str) -> Result<()> {
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
    pub(super) fn check(&mut self) -> Result<()> {
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
    pub(super) fn step(
        &mut self,
        name: &str,
        what: impl FnOnce(&mut World) -> Result<()>,
    ) -> Result<()> {
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
    pub(super) fn verb(&mut self, words: &[&str]) -> Result<()> {
        let named = |word: &str| word.rsplit('/').next().unwrap_or(word).to_string();
        let name: Vec<String> = words.iter().map(|word| named(word)).collect();
        self.step(&name.join(" "), |world| {
            world.server()?.verb(words).map(drop)
        })
    }

    pub(super) fn set(&mut self, label: &str, setting: &str, value: &str) -> Result<()> {
        self.verb(&["set", &format!("{label}.{setting}={value}")])
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// What the status says of a volume.
    pub(super) fn volume(&self, label: &str) -> Result<Value> {
        let status = self.server()?.status()?;
        let volumes = status["volumes"].as_array().cloned().unwrap_or_default();
        let found = volumes.into_iter().find(|volume| volume["label"] == label);
        found.ok_or_else(|| format!("the status has no volume {label}"))
    }

    pub(super) fn expect(&self, label: &str, key: &str, wanted: &Value) -> Result<()> {
        let found = &self.volume(label)?[key];
        match found == wanted {
            true => Ok(()),
            false => Err(format!("{label}: {key} is {found}, not {wanted}")),
        }
    }

    pub(super) fn expect_state(&self, label: &str, is_attached: bool) -> Result<()> {
        let state = self.volume(label)?["state"].clone();
        match (state == "no cache") != is_attached {
            true => Ok(()),
            false => Err(format!("{label}: its state is {state}")),
        }
    }

    /// Uuids of what is served, each with its label.
    pub(super) fn identity(&self) -> Result<BTreeMap<String, String>> {
        let status = self.server()?.status()?;
        let volumes = status["volumes"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let of = |volume: &Value| (text(&volume["uuid"]), text(&volume["label"]));
        Ok(volumes.iter().map(of).collect())
    }

    pub(super) fn stop(&mut self) -> Result<()> {
        let server = self.server.take().ok_or("nothing is served")?;
        server.stop_by_verb()
    }

    /// `brigade check` finds nothing.
    pub(super) fn check_devices(&self, backings: &[&str]) -> Result<()> {
        let mut check = Command::new(&self.program);
        check.current_dir(&self.folder);
        check.args(["check", "--data", "cache"]).args(backings);
        output(&mut check).map(drop)
    }

    /// Serves the set again, the devices in reverse order.
    pub(super) fn serve(&mut self, backings: &[&str]) -> Result<()> {
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
    pub(super) fn still(&mut self, label: &str, start: u64, bytes: u64) -> Result<()> {
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
    pub(super) fn bulk(&mut self, label: &str) -> Result<()> {
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
    pub(super) fn compare(&mut self) -> Result<()> {
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
