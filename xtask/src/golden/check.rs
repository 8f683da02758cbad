//! Every case of a folder through `brigade serve`: read-only beside the manifest, or for writing and then by a kernel.

use super::case::{Case, Image};
use super::guest::kernel_reads;
use super::judge::{Observed, Refusal, Served, Verdict, judge};
use crate::process::{Context, Result};
use crate::sectors::hash_file;
use crate::server::{Serve, Server, Started, dump_export, start};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Where checks are done and by which program.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The program under judgement.
    pub program: &'a Path,
    /// A folder for images, sockets and dumps.
    pub scratch: &'a Path,
}

impl Place<'_> {
    /// A folder inside, made anew.
    pub fn fresh(&self, name: &str) -> Result<PathBuf> {
        let path = self.scratch.join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).context("cannot make a folder")?;
        Ok(path)
    }
}

/// Verdicts of a run, in its order; `say` hears each line as soon as it is known.
pub struct Results<'a> {
    say: &'a mut dyn FnMut(String),
    count: usize,
    differ: usize,
    stricter: usize,
}

impl<'a> Results<'a> {
    /// None yet.
    pub fn new(say: &'a mut dyn FnMut(String)) -> Self {
        Results {
            say,
            count: 0,
            differ: 0,
            stricter: 0,
        }
    }

    /// Takes one in; only what differs is worth a line.
    pub fn add(&mut self, case: &Case, verdict: &Verdict) {
        self.count += 1;
        if !verdict.wrong.is_empty() {
            self.differ += 1;
            (self.say)(format!("{}: {}", case.name, verdict.wrong.join("; ")));
        } else if !verdict.stricter.is_empty() {
            self.stricter += 1;
        }
    }

    /// How many cases differ.
    pub fn differ(&self) -> usize {
        self.differ
    }

    /// The figures in one line.
    pub fn summary(&self) -> String {
        format!(
            "{} cases: {} as the kernel, {} stricter as they may be, {} differ",
            self.count,
            self.count - self.differ - self.stricter,
            self.stricter,
            self.differ
        )
    }
}

/// Every case read-only: same content, states and refusals, and not a byte written.
pub fn read_only(place: Place, cases: &[Case], results: &mut Results) {
    for case in cases {
        let verdict = read_only_case(place, case).unwrap_or_else(Verdict::wrong);
        results.add(case, &verdict);
    }
    let _ = fs::remove_dir_all(place.scratch.join("images"));
}

/// Unpacks a case and hashes its images, which must be what the manifest says.
fn unpack(case: &Case, images: &Path) -> Result<Vec<(Image, String)>> {
    case.unpack(images)?;
    let hashes = case.hashes(images)?;
    for (image, hash) in &hashes {
        if image.sha256.as_ref().is_some_and(|sha256| sha256 != hash) {
            return Err(format!("{} is not what the manifest says", image.file));
        }
    }
    Ok(hashes)
}

fn read_only_case(place: Place, case: &Case) -> Result<Verdict> {
    let images = place.fresh("images")?;
    let before = unpack(case, &images)?;
    let mut verdict = observe(place, case, &images, true)?;
    for (was, is) in before.iter().zip(&case.hashes(&images)?) {
        if was != is {
            verdict.wrong.push(format!("{} was written to", is.0.file));
        }
    }
    Ok(verdict)
}

fn serve_of(images: &Path, given: &[Image], read_only: bool) -> Serve {
    let paths = |is_cache: bool| {
        let wanted = given.iter().filter(|image| image.is_cache == is_cache);
        wanted.map(|image| images.join(&image.file)).collect()
    };
    Serve {
        caches: paths(true),
        backings: paths(false),
        mode: None,
        read_only,
    }
}

/// Opens a case's images, reads every export, stops, and judges.
///
/// After a refusal what it named is left out and the rest is opened, as it would be with the kernel, which goes on
/// with what it took.
fn observe(place: Place, case: &Case, images: &Path, read_only: bool) -> Result<Verdict> {
    let mut observed = Observed {
        read_only,
        ..Observed::default()
    };
    let mut details = Vec::new();
    let mut given = case.images();
    while !given.is_empty() {
        let serve = serve_of(images, &given, read_only);
        match start(place.program, &serve, place.scratch)? {
            Started::Refused { status, lines } => {
                let refusal = refusal(images, &given, status, lines);
                given = without(given, &case.refused(), &refusal.named);
                observed.refusals.push(refusal);
            }
            Started::Ready(server) => {
                (observed.volumes, details) = read_volumes(place, case, &server)?;
                server.stop()?;
                break;
            }
        }
    }
    let mut verdict = judge(case, &observed);
    if !verdict.wrong.is_empty() {
        verdict.wrong.extend(details);
    }
    Ok(verdict)
}

fn refusal(images: &Path, given: &[Image], status: Option<i32>, lines: Vec<String>) -> Refusal {
    let said = lines.join("\n");
    let is_named = |image: &&Image| said.contains(&images.join(&image.file).display().to_string());
    Refusal {
        status,
        named: given
            .iter()
            .filter(is_named)
            .map(|image| image.file.clone())
            .collect(),
        lines,
    }
}

/// What is left after a refusal: without the named images that the kernel refuses too, if there are such, or without
/// the named ones. Nothing if none was named.
fn without(given: Vec<Image>, theirs: &[String], named: &[String]) -> Vec<Image> {
    let both: Vec<&String> = named.iter().filter(|file| theirs.contains(file)).collect();
    let gone = if both.is_empty() {
        named.iter().collect()
    } else {
        both
    };
    if gone.is_empty() {
        return Vec::new();
    }
    given
        .into_iter()
        .filter(|image| !gone.contains(&&image.file))
        .collect()
}

/// Hashes every export; where the content is not the kernel's, says where.
fn read_volumes(place: Place, case: &Case, server: &Server) -> Result<(Vec<Served>, Vec<String>)> {
    let dump = place.scratch.join("dump");
    let (mut volumes, mut details) = (Vec::new(), Vec::new());
    let status = server.status()?;
    for volume in status["volumes"].as_array().into_iter().flatten() {
        let served = read_volume(server, volume, &dump)?;
        let kernel = case.volumes();
        let alike = kernel
            .iter()
            .find(|theirs| theirs.backing == served.backing && served.backing.is_some());
        if let Some(theirs) = alike.filter(|theirs| theirs.sha256 != served.sha256) {
            details.extend(case.explain(theirs, &dump)?);
        }
        volumes.push(served);
    }
    let _ = fs::remove_file(&dump);
    Ok((volumes, details))
}

fn read_volume(server: &Server, volume: &Value, dump: &Path) -> Result<Served> {
    let text = |key: &str| volume[key].as_str().map(str::to_string);
    let name = text("name").ok_or("a volume without a name in the status")?;
    dump_export(server, &name, dump)?;
    let backing = text("path").and_then(|path| {
        let file = Path::new(&path).file_name()?;
        Some(file.to_string_lossy().into_owned())
    });
    Ok(Served {
        name,
        backing,
        state: text("state"),
        read_only: volume["read_only"] == true,
        size: fs::metadata(dump).context("no dump")?.len(),
        sha256: hash_file(dump)?,
    })
}

/// Whether a case is for writing: undamaged, or patched in a way that the kernel takes whole and `must equal`.
pub fn is_for_writing(case: &Case) -> bool {
    case.refused().is_empty()
        && !case.volumes().is_empty()
        && !(case.is_derived() && case.may_differ())
}

/// Every case for writing, stopped, and then read by the kernel: still the content of its manifest.
///
/// A case that was damaged may be refused; then nothing may have been written.
pub fn read_write(place: Place, cases: &[Case], results: &mut Results) {
    let mut ready = Vec::new();
    for case in cases {
        match open_for_writing(place, case) {
            Ok((verdict, images)) if verdict.wrong.is_empty() && verdict.stricter.is_empty() => {
                ready.push((case.clone(), images));
            }
            Ok((verdict, _)) => results.add(case, &verdict),
            Err(error) => results.add(case, &Verdict::wrong(error)),
        }
    }
    kernel_reads(place, &ready, results);
}

fn open_for_writing(place: Place, case: &Case) -> Result<(Verdict, PathBuf)> {
    let images = place.fresh(&format!("images-{}", case.name))?;
    let before = unpack(case, &images)?;
    let mut verdict = observe(place, case, &images, false)?;
    if !verdict.stricter.is_empty() && case.hashes(&images)? != before {
        verdict.wrong.push("refused, and written to".into());
    }
    if !verdict.wrong.is_empty() || !verdict.stricter.is_empty() {
        let _ = fs::remove_dir_all(&images);
    }
    Ok((verdict, images))
}
