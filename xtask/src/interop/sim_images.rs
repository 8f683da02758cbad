//! Crash images of the simulator, opened by the kernel: it must read what Brigade reads after recovering them.
//!
//! The simulator makes a case (`cargo x sim --export`): images as a crash left them, what Brigade's recovery of a copy reads, and
//! what the oracle allows where that is more. Of every few images the real program makes the recovery, read-write, before
//! the kernel's turn. Where nothing but the crash decides between two values, the kernel may read another one than Brigade,
//! if the oracle allows it; that is counted, and anything else is a failure.

use super::{Passed, Setting};
use crate::kernel::{self, Boot, drive_name};
use crate::process::{Context, Result};
use crate::server::{Serve, Server, dump_export, start_ready};
use crate::sim_values::{Value, list, spread, unlist};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

const CASES_PER_BOOT: usize = 24;
const CASES_PER_ROUND: usize = 8;
const MEMORY_MIB: u32 = 1536;
/// Of so many crash images one is recovered by the program itself.
const SERVED_OF: u64 = 4;
const SHOWN: usize = 6;

/// Lists every volume: a line "VOLUME BACKING SET" to /out/FOLDER/volumes, its values beside it.
const HELPER: &str = r#"
list_volumes() {
	_to=/out/$1
	mkdir -p "$_to"; : > "$_to/volumes"; sync
	for _v in /sys/block/bcache*; do
		[ -e "$_v" ] || continue
		_n=$(basename "$_v"); _by=none
		for _b in /sys/block/vd*/bcache/dev; do
			[ "$(basename "$(readlink -f "$_b")")" = "$_n" ] && _by=$(echo "$_b" | cut -d/ -f4)
		done
		sectors values "/dev/$_n" > "$_to/$_n.values" || echo "$_n" >> "$_to/unreadable"
		echo "$_n $_by $(basename "$(readlink -f "$_v/bcache/cache")")" >> "$_to/volumes"
	done
}
"#;

/// A volume of a case.
struct Volume {
    number: u64,
    /// File name of the backing device, or `none`.
    image: String,
    /// What Brigade reads.
    values: Vec<Value>,
    /// What may be read, where that is more than one value; `None` in it for anything.
    allowed: Vec<Vec<Value>>,
}

/// What the simulator left.
struct Case {
    folder: PathBuf,
    seed: u64,
    kind: String,
    /// Recoveries that were cut off before.
    cut: u64,
    /// How far the oldest pointer is behind its bucket, in generations.
    behind: u64,
    set: String,
    volumes: Vec<Volume>,
    /// Recovered by the program.
    is_served: bool,
}

impl Case {
    fn load(folder: PathBuf) -> Result<Case> {
        let text = read(&folder.join("case"))?;
        let word = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.map(str::to_string)
                .ok_or_else(|| format!("{}: no {name}", folder.display()))
        };
        let volumes = text
            .lines()
            .filter_map(|line| line.strip_prefix("volume "))
            .map(|line| Volume::load(&folder, line))
            .collect::<Result<_>>()?;
        Ok(Case {
            seed: word("seed")?.parse().context("seed")?,
            kind: word("kind")?,
            cut: word("cut")?.parse().context("cut")?,
            behind: word("behind")?.parse().context("behind")?,
            set: word("set")?,
            volumes,
            is_served: false,
            folder,
        })
    }

    fn backings(&self) -> Vec<String> {
        (0..)
            .map(|number| format!("backing{number}.img"))
            .take_while(|name| self.folder.join(name).exists())
            .collect()
    }

    fn name(&self) -> String {
        let how = if self.is_served { ", served" } else { "" };
        format!("image {} ({}{how})", self.seed, self.kind)
    }
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).context(format!("cannot read {}", path.display()))
}

impl Volume {
    fn load(folder: &Path, line: &str) -> Result<Volume> {
        let words: Vec<&str> = line.split(' ').collect();
        let [number, image, sectors] = words.as_slice() else {
            return Err(format!("bad line: volume {line}"));
        };
        let sectors = sectors.parse().context("sectors")?;
        let values = read(&folder.join(format!("{number}.values")))?;
        let allowed = read(&folder.join(format!("{number}.allowed")))?;
        let value = |word: &&str| match *word {
            "*" | "?" => Ok(None),
            word => word.parse().map(Some).context("a value"),
        };
        Ok(Volume {
            number: number.parse().context("number")?,
            image: image.to_string(),
            values: spread(&values, sectors, Some(0), |words| {
                value(words.first().ok_or("no value")?)
            })?,
            allowed: spread(&allowed, sectors, Vec::new(), |words| {
                words.iter().map(value).collect()
            })?,
        })
    }

    /// The sectors where it differs from what Brigade reads, those that are allowed first.
    fn compare(&self, other: &[Value]) -> [Vec<usize>; 2] {
        let differs = |at: &usize| other.get(*at) != Some(&self.values[*at]);
        let may = |at: &usize| {
            let allowed = &self.allowed[*at];
            let value = other.get(*at).copied().flatten();
            allowed.contains(&None) || (value.is_some() && allowed.contains(&value))
        };
        let differing = (0..self.values.len()).filter(differs);
        let (within, outside) = differing.partition(may);
        [within, outside]
    }

    fn explain(&self, sectors: &[usize], other: &[Value]) -> String {
        let one = |at: &usize| {
            format!(
                "sector {at}: {:?} instead of {:?}, allowed {:?}",
                other.get(*at),
                self.values[*at],
                self.allowed[*at]
            )
        };
        let shown: Vec<String> = sectors.iter().take(SHOWN).map(one).collect();
        format!(
            "volume {} ({}): {} sectors, {}",
            self.number,
            self.image,
            sectors.len(),
            shown.join("; ")
        )
    }
}

/// What was seen in all of them.
#[derive(Default)]
struct Seen {
    images: u64,
    volumes: u64,
    sectors: u64,
    in_doubt: u64,
    /// What was read another way than Brigade does, as the oracle allows.
    within: Vec<String>,
    wrong: Vec<String>,
}

/// See the module documentation.
pub fn run(setting: &Setting) -> Result<Passed> {
    let (seed, count) = (setting.seed & 0xffff_ffff, setting.rounds.max(1));
    let images = super::folder(setting, "images")?;
    crate::sim::export(&images, seed, count)?;
    let mut cases = (seed..seed + count)
        .map(|seed| Case::load(images.join(seed.to_string())))
        .collect::<Result<Vec<Case>>>()?;
    let mut seen = Seen::default();
    let mut crashed = 0;
    for case in cases.iter_mut().filter(|case| case.kind != "recovered") {
        crashed += 1;
        if crashed % SERVED_OF == 1 {
            serve(setting, case, &mut seen).context(case.name())?;
        }
    }
    for boot in cases.chunks(CASES_PER_BOOT) {
        let whole = one_boot(setting, boot, &mut seen);
        let Err(error) = whole else { continue };
        if boot.len() == 1 {
            return Err(format!("{}: {error}", boot[0].name()));
        }
        // One of them spoils it for all: alone each shows what it does.
        for case in boot {
            if let Err(error) = one_boot(setting, std::slice::from_ref(case), &mut seen) {
                seen.wrong.push(format!("{}: {error}", case.name()));
            }
        }
    }
    report(&cases, &seen)
}

fn report(cases: &[Case], seen: &Seen) -> Result<Passed> {
    let of = |kind: &str| cases.iter().filter(|case| case.kind == kind).count();
    let summary = format!(
        "{} images ({} prefixes, {} reordered, {} recovered; {} after cut-off recoveries, {} through brigade serve; oldest pointer {} \
         generations behind, {} images with one of 64 and more), {} volumes, {} sectors, \
         {} of them in doubt: {} read otherwise as they may, {} wrong",
        seen.images,
        of("prefix"),
        of("reordered"),
        of("recovered"),
        cases.iter().filter(|case| case.cut > 0).count(),
        cases.iter().filter(|case| case.is_served).count(),
        cases.iter().map(|case| case.behind).max().unwrap_or(0),
        cases.iter().filter(|case| case.behind >= 64).count(),
        seen.volumes,
        seen.sectors,
        seen.in_doubt,
        seen.within.len(),
        seen.wrong.len()
    );
    for line in &seen.within {
        println!("   otherwise, as allowed: {line}");
    }
    match seen.wrong.is_empty() {
        true => Ok(Passed::Ran(summary)),
        false => Err(format!("{summary}\n  {}", seen.wrong.join("\n  "))),
    }
}

/// The program recovers the images, says what it reads, and stops; from then on nothing is in doubt.
fn serve(setting: &Setting, case: &mut Case, seen: &mut Seen) -> Result<()> {
    case.is_served = true;
    let serve = Serve {
        caches: vec![case.folder.join("cache.img")],
        backings: case
            .backings()
            .iter()
            .map(|name| case.folder.join(name))
            .collect(),
        ..Serve::default()
    };
    let server = start_ready(&setting.program, &serve, &setting.scratch)?;
    let read = served(setting, case, &server)?;
    server.stop()?;
    let name = case.name();
    for (volume, values) in case.volumes.iter_mut().zip(read) {
        let [within, outside] = volume.compare(&values);
        let which = [(&within, &mut seen.within), (&outside, &mut seen.wrong)];
        for (sectors, lines) in which.into_iter().filter(|(sectors, _)| !sectors.is_empty()) {
            let why = volume.explain(sectors, &values);
            lines.push(format!("{name}: brigade serve, not the simulator: {why}"));
        }
        volume.values = values;
        volume.allowed.fill(Vec::new());
    }
    Ok(())
}

fn served(setting: &Setting, case: &Case, server: &Server) -> Result<Vec<Vec<Value>>> {
    let status = server.status()?;
    let exports = status["volumes"].as_array().ok_or("no volumes")?;
    if exports.len() != case.volumes.len() {
        return Err(format!("{} volumes are served", exports.len()));
    }
    let dump = setting.scratch.join("dump");
    let one = |volume: &Volume| {
        let is_it = |export: &&serde_json::Value| match export["path"].as_str() {
            Some(path) => path.ends_with(&volume.image),
            None => volume.image == "none",
        };
        let export = exports.iter().find(is_it).ok_or("a volume is missing")?;
        dump_export(server, export["name"].as_str().unwrap_or_default(), &dump)?;
        let text = list(&File::open(&dump).context("no dump")?)?;
        unlist(&text, volume.values.len() as u64, volume.number + 1)
    };
    case.volumes.iter().map(one).collect()
}

/// The kernel's turn.
fn one_boot(setting: &Setting, cases: &[Case], seen: &mut Seen) -> Result<()> {
    let out = super::folder(setting, "out")?;
    let mut boot = Boot {
        snapshot: true,
        timeout: Duration::from_secs(1200),
        out: Some(out.clone()),
        memory_mib: MEMORY_MIB,
        script: HELPER.into(),
        ..Boot::default()
    };
    let mut drives = Vec::new();
    for (round, cases) in cases.chunks(CASES_PER_ROUND).enumerate() {
        for case in cases {
            let mut mine = Vec::new();
            for (file, await_it) in std::iter::once(("cache.img".to_string(), "await_set")).chain(
                case.backings()
                    .into_iter()
                    .map(|file| (file, "await_volume")),
            ) {
                let drive = drive_name(boot.images.len());
                boot.images.push(case.folder.join(&file));
                boot.script.push_str(&format!(
                    "{{ register {drive} && ( {await_it} {drive} ); }} || echo {drive} >> /out/refused\n"
                ));
                mine.push((file, drive));
            }
            drives.push((round, mine));
        }
        let line = format!("list_volumes {round}\nstop_everything\n");
        boot.script.push_str(&line);
    }
    boot.script.push_str("kernel_log\nexit 0\n");
    let console = kernel::run(&boot)?.ok()?;
    let refused = fs::read_to_string(out.join("refused")).unwrap_or_default();
    for (case, (round, drives)) in cases.iter().zip(&drives) {
        let folder = out.join(round.to_string());
        seen.images += 1;
        for (file, drive) in drives {
            if refused.lines().any(|line| line == drive) {
                let log = console.lines().filter(|line| line.contains(drive.as_str()));
                let log: Vec<&str> = log.take(SHOWN).collect();
                let name = case.name();
                seen.wrong
                    .push(format!("{name}: {file} is not taken: {}", log.join(" | ")));
            }
        }
        for volume in &case.volumes {
            if let Err(why) = judge(case, volume, drives, &folder, seen) {
                seen.wrong.push(format!("{}: {why}", case.name()));
            }
        }
    }
    Ok(())
}

/// One volume as the kernel read it.
fn judge(
    case: &Case,
    volume: &Volume,
    drives: &[(String, String)],
    folder: &Path,
    seen: &mut Seen,
) -> Result<()> {
    let drive = drives
        .iter()
        .find(|(file, _)| *file == volume.image)
        .map_or("none", |(_, drive)| drive);
    let volumes = read(&folder.join("volumes"))?;
    let name = volumes
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find_map(|words| match words.as_slice() {
            [name, by, set] if *by == drive && *set == case.set => Some(name.to_string()),
            _ => None,
        })
        .ok_or_else(|| format!("volume {} ({}) is not served", volume.number, volume.image))?;
    let unreadable = fs::read_to_string(folder.join("unreadable")).unwrap_or_default();
    if unreadable.lines().any(|line| line == name) {
        return Err(format!("volume {} cannot be read", volume.number));
    }
    let text = read(&folder.join(format!("{name}.values")))?;
    let values = unlist(&text, volume.values.len() as u64, volume.number + 1)?;
    seen.volumes += 1;
    seen.sectors += values.len() as u64;
    seen.in_doubt += volume.allowed.iter().filter(|all| !all.is_empty()).count() as u64;
    let [within, outside] = volume.compare(&values);
    if !within.is_empty() {
        let why = volume.explain(&within, &values);
        seen.within
            .push(format!("{}: the kernel: {why}", case.name()));
    }
    match outside.is_empty() {
        true => Ok(()),
        false => Err(format!("the kernel: {}", volume.explain(&outside, &values))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_value_passes_only_where_the_oracle_allows_it() {
        let volume = Volume {
            number: 0,
            image: "backing0.img".into(),
            values: vec![Some(0), Some(4), Some(4), Some(5), Some(6)],
            allowed: vec![
                vec![],
                vec![Some(3), Some(4)],
                vec![Some(3), Some(4)],
                vec![None],
                vec![],
            ],
        };
        let same = volume.values.clone();
        let nothing: [Vec<usize>; 2] = Default::default();
        assert_eq!(volume.compare(&same), nothing);
        let other = [Some(0), Some(3), Some(2), Some(9), Some(6)];
        assert_eq!(volume.compare(&other), [vec![1, 3], vec![2]]);
        let foreign = [None, None, Some(4), None, Some(6)];
        assert_eq!(volume.compare(&foreign), [vec![3], vec![0, 1]]);
        assert_eq!(volume.compare(&same[..4]), [vec![], vec![4]]);
    }
}
