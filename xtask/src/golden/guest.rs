//! The kernel's turn: many cases' images in one boot, every volume hashed in the guest.
//!
//! Cases patched from the same base have the same set in them, which one kernel takes once; they are opened in different
//! rounds, with everything stopped in between. A boot that goes wrong as a whole is tried again case by case, so that
//! the blame falls on one.

use super::case::{Case, Volume};
use super::check::{Place, Results};
use super::extents::{Extent, parse_map};
use super::judge::Verdict;
use crate::kernel::{self, Boot, drive_name};
use crate::process::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CASES_PER_BOOT: usize = 16;
const CASES_PER_ROUND: usize = 8;
const MEMORY_MIB: u32 = 1536;

/// A case and the folder with its images.
type Ready = (Case, PathBuf);

/// Lets the kernel read the cases and compares each with its manifest; the images are removed as they are done with.
pub fn kernel_reads(place: Place, cases: &[Ready], results: &mut Results) {
    for batch in cases.chunks(CASES_PER_BOOT) {
        let verdicts = one_boot(place, batch);
        for (i, ready) in batch.iter().enumerate() {
            let verdict = match &verdicts {
                Ok(all) => all[i].clone(),
                Err(error) if batch.len() == 1 => Verdict::wrong(error.clone()),
                Err(_) => one_boot(place, std::slice::from_ref(ready))
                    .map_or_else(Verdict::wrong, |mut all| all.remove(0)),
            };
            results.add(&ready.0, &verdict);
            let _ = fs::remove_dir_all(&ready.1);
        }
    }
}

/// Groups that are opened together: not too many, and no base twice.
fn rounds(cases: &[Ready]) -> Vec<Vec<&Ready>> {
    let mut groups: Vec<Vec<&Ready>> = Vec::new();
    for ready in cases {
        let base = ready.0.base();
        let room = groups.iter_mut().find(|group| {
            group.len() < CASES_PER_ROUND && group.iter().all(|(other, _)| other.base() != base)
        });
        match room {
            Some(group) => group.push(ready),
            None => groups.push(vec![ready]),
        }
    }
    groups
}

/// Verdicts in the order of the cases.
fn one_boot(place: Place, batch: &[Ready]) -> Result<Vec<Verdict>> {
    let out = place.fresh("out")?;
    let mut boot = Boot {
        snapshot: true,
        timeout: Duration::from_secs(1200),
        out: Some(out.clone()),
        memory_mib: MEMORY_MIB,
        ..Boot::default()
    };
    let mut drives = BTreeMap::new();
    for (number, round) in rounds(batch).iter().enumerate() {
        let mut hashes = Vec::new();
        for (case, images) in round {
            let mut mine = Vec::new();
            for image in case.images() {
                let drive = drive_name(boot.images.len());
                boot.images.push(images.join(&image.file));
                let line = open_line(&drive, case, &image.file, image.is_cache);
                boot.script.push_str(&line);
                mine.push((image.file, drive));
            }
            hashes.extend(case.volumes().into_iter().map(|volume| volume.sha256));
            drives.insert(case.name.clone(), (number, mine));
        }
        let hashes = hashes.join(" ");
        let line = format!("hash_volumes {number} {hashes}\nstop_everything\n");
        boot.script.push_str(&line);
    }
    boot.script.push_str("kernel_log\nexit 0\n");
    kernel::run(&boot)?.ok()?;
    let verdict = |(case, _): &Ready| {
        let (round, drives) = drives.get(&case.name).ok_or("a case without a round")?;
        judge(case, drives, &Seen::read(&out, *round)?)
    };
    batch.iter().map(verdict).collect()
}

/// Registers an image and waits for what the kernel is to make of it; what does not work is noted.
fn open_line(drive: &str, case: &Case, file: &str, is_cache: bool) -> String {
    let has_volume = |volume: &Volume| volume.backing.as_deref() == Some(file);
    let await_it = match is_cache {
        true => "await_set",
        false if case.volumes().iter().any(has_volume) => "await_volume",
        false => ":",
    };
    format!("{{ register {drive} && ( {await_it} {drive} ); }} || echo {drive} >> /out/refused\n")
}

/// Images of a case and the drives they are in the guest.
type Drives = Vec<(String, String)>;

/// What the guest left of a round.
struct Seen {
    /// Drives that were not taken.
    refused: Vec<String>,
    /// Volume, drive of its backing device (`none`), SHA-256.
    volumes: Vec<[String; 3]>,
    folder: PathBuf,
}

impl Seen {
    fn read(out: &Path, round: usize) -> Result<Seen> {
        let refused = fs::read_to_string(out.join("refused")).unwrap_or_default();
        let folder = out.join(round.to_string());
        let volumes = folder.join("volumes");
        let volumes = fs::read_to_string(&volumes).context("nothing came out of the guest")?;
        let parse = |line: &str| {
            let words: Vec<String> = line.split_whitespace().map(str::to_string).collect();
            <[String; 3]>::try_from(words).map_err(|_| format!("bad line from the guest: {line}"))
        };
        Ok(Seen {
            refused: refused.lines().map(str::to_string).collect(),
            volumes: volumes.lines().map(parse).collect::<Result<_>>()?,
            folder,
        })
    }

    /// The map that the guest left of a volume with unexpected content.
    fn map(&self, volume: &str) -> Result<Vec<Extent>> {
        let path = self.folder.join(format!("{volume}.map"));
        parse_map(&fs::read_to_string(path).context("no map from the guest")?)
    }
}

fn judge(case: &Case, drives: &Drives, seen: &Seen) -> Result<Verdict> {
    let mut verdict = Verdict::default();
    for (file, drive) in drives {
        if seen.refused.contains(drive) {
            verdict
                .wrong
                .push(format!("{file}: the kernel does not take it any more"));
        }
    }
    for volume in case.volumes() {
        let drive = volume.backing.as_ref().map_or("none", |backing| {
            drives
                .iter()
                .find(|(file, _)| file == backing)
                .map_or("", |(_, drive)| drive)
        });
        let mut there = seen.volumes.iter().filter(|found| found[1] == drive);
        if there.clone().any(|found| found[2] == volume.sha256) {
            continue;
        }
        let mut why = format!(
            "the kernel reads other content than before on {}",
            volume.name
        );
        match there.next() {
            None => why = format!("the kernel does not serve {} any more", volume.name),
            Some([name, ..]) if drive != "none" => {
                let (theirs, before) = (seen.map(name)?, case.extents(&volume)?);
                let pairs = theirs.iter().zip(&before);
                let first = pairs.clone().find(|(now, before)| now != before);
                let _ = write!(why, ": (now, before) {first:?}");
            }
            Some(_) => {}
        }
        verdict.wrong.push(why);
    }
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::super::{fixtures, load};
    use super::*;

    #[test]
    fn no_round_has_a_set_twice_or_too_many_cases() {
        let names = ["wb-dirty", "check-over-dirty", "fresh", "flip-past-keys"];
        let cases = names.map(|name| (load(&fixtures(), name).expect("there"), PathBuf::new()));
        let groups = rounds(&cases);
        for group in &groups {
            let mut bases: Vec<String> = group.iter().map(|(case, _)| case.base()).collect();
            bases.sort();
            bases.dedup();
            assert_eq!(bases.len(), group.len());
        }
        assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), names.len());
        let many = vec![cases[0].clone(); 3];
        assert_eq!(rounds(&many).len(), 3);
    }

    #[test]
    fn what_the_guest_hashed_is_held_against_the_manifest() {
        let case = load(&fixtures(), "wb-dirty").expect("a manifest");
        let volume = case.volumes().remove(0);
        let drives = vec![
            ("cache.img".to_string(), "vdc".to_string()),
            ("back.img".into(), "vdd".into()),
        ];
        let folder = tempfile::tempdir().expect("a folder");
        let verdict = |refused: &str, volumes: String| {
            fs::write(folder.path().join("refused"), refused).expect("written");
            let round = folder.path().join("2");
            fs::create_dir_all(&round).expect("made");
            fs::write(round.join("volumes"), volumes).expect("written");
            fs::write(round.join("bcache0.map"), "P 0 1 7\n").expect("written");
            let seen = Seen::read(folder.path(), 2).expect("parsed");
            judge(&case, &drives, &seen).expect("judged").wrong
        };
        let right = format!("bcache0 vdd {}\n", volume.sha256);
        assert_eq!(verdict("", right.clone()), Vec::<String>::new());
        assert_eq!(verdict("vda\n", right.clone()), Vec::<String>::new());
        assert_eq!(verdict("vdc\n", right).len(), 1);
        assert_eq!(verdict("", String::new()).len(), 1);
        let wrong = verdict("", "bcache0 vdd 00\n".into());
        assert!(wrong[0].contains("other content") && wrong[0].contains("start: 0, count: 1"));
    }
}
