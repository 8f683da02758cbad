//! Golden images: what the kernel's bcache wrote, with what the kernel itself read from it afterwards.
//!
//! A case in `fixtures/` is a manifest `NAME.json` with either an archive of images or patches to another
//! case's images, and per device the extents the kernel read. Here they are listed, unpacked, and compared
//! with what Brigade made of them. [`judge`] holds the rule of agreement.

use crate::pattern::{Content, SECTOR, classify};
use crate::process::{Context, Result, project_root};
use crate::sectors::{each_piece, hash_file, hex};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The archives were made with a window of this many bits.
const WINDOW_LOG_MAX: u32 = 27;
const COMPLAINTS_MAX: usize = 20;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name.
    pub name: String,
    folder: PathBuf,
    manifest: Value,
}

/// One image of a case.
#[derive(Clone, Debug)]
pub struct Image {
    /// File name after unpacking.
    pub file: String,
    /// True for a cache device, false for a backing device.
    pub is_cache: bool,
    /// SHA-256 of the image as the kernel was given it.
    pub sha256: Option<String>,
}

/// One volume the kernel served.
#[derive(Clone, Debug)]
pub struct Volume {
    /// The kernel's name (`bcache0`).
    pub name: String,
    /// The backing device's file; none for a flash-only volume.
    pub backing: Option<String>,
    /// Size.
    pub sectors: u64,
    /// SHA-256 of what the kernel read.
    pub sha256: String,
    /// The kernel served it read-only.
    pub read_only: bool,
    extents: String,
}

/// The folder of the project's own cases.
pub fn fixtures() -> PathBuf {
    project_root().join("fixtures")
}

/// All cases of a folder by name.
pub fn list(folder: &Path) -> Result<Vec<Case>> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .context(format!("cannot list {}", folder.display()))?
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .strip_suffix(".json")
                .map(str::to_string)
        })
        .collect();
    names.sort();
    names.iter().map(|name| load(folder, name)).collect()
}

/// One case by name.
pub fn load(folder: &Path, name: &str) -> Result<Case> {
    let path = folder.join(format!("{name}.json"));
    let text = fs::read_to_string(&path).context(format!("cannot read {}", path.display()))?;
    let manifest = serde_json::from_str(&text).context(format!("{}", path.display()))?;
    Ok(Case {
        name: name.to_string(),
        folder: folder.to_path_buf(),
        manifest,
    })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

impl Case {
    /// What the case is about.
    pub fn title(&self) -> String {
        text(&self.manifest["title"])
    }

    /// The manifest itself.
    pub fn manifest(&self) -> &Value {
        &self.manifest
    }

    /// True where a reader may be stricter than the kernel.
    pub fn may_differ(&self) -> bool {
        self.manifest["latitude"] == "may differ"
    }

    /// True where the kernel's own content is no measure: it depends on how a search happens to go.
    pub fn content_may_differ(&self) -> bool {
        self.may_differ() && text(&self.manifest["latitude_why"]).contains("content")
    }

    /// True for cases made of another by patches.
    pub fn is_derived(&self) -> bool {
        self.manifest["derive"].is_object()
    }

    /// The images, in the manifest's order.
    pub fn images(&self) -> Vec<Image> {
        items(&self.manifest["images"])
            .iter()
            .map(|image| Image {
                file: text(&image["file"]),
                is_cache: image["role"] == "cache" || text(&image["file"]).starts_with("cache"),
                sha256: image["sha256"].as_str().map(str::to_string),
            })
            .collect()
    }

    /// What the kernel served.
    pub fn volumes(&self) -> Vec<Volume> {
        items(&self.manifest["reopen"]["devices"])
            .iter()
            .map(|device| Volume {
                name: text(&device["name"]),
                backing: device["backing"].as_str().map(str::to_string),
                sectors: device["sectors"].as_u64().unwrap_or(0),
                sha256: text(&device["sha256"]),
                read_only: device["readonly"] == true,
                extents: text(&device["extents"]),
            })
            .collect()
    }

    /// State of a backing device's superblock once registered, as the kernel had it.
    pub fn state(&self, file: &str) -> Option<&str> {
        self.manifest["reopen"]["states"][file].as_str()
    }

    /// Whether the kernel took this image.
    pub fn registered(&self, file: &str) -> bool {
        self.manifest["reopen"]["register"][file] == "ok"
    }

    /// Unpacks the images into `target`, patches applied, and returns their paths.
    pub fn unpack(&self, target: &Path) -> Result<Vec<PathBuf>> {
        let derive = &self.manifest["derive"];
        if derive.is_object() {
            load(&self.folder, &text(&derive["base"]))?.unpack(target)?;
            for patch in items(&derive["patches"]) {
                apply(patch, target).context(format!("{}: patch", self.name))?;
            }
        } else {
            self.unpack_archive(target).context(&self.name)?;
        }
        Ok(self
            .images()
            .iter()
            .map(|image| target.join(&image.file))
            .collect())
    }

    fn unpack_archive(&self, target: &Path) -> Result<()> {
        let file = self.folder.join(text(&self.manifest["archive"]["file"]));
        let file = fs::File::open(&file).context(format!("cannot open {}", file.display()))?;
        let mut plain = zstd::stream::read::Decoder::new(file).context("not zstd")?;
        plain
            .window_log_max(WINDOW_LOG_MAX)
            .context("zstd window")?;
        fs::create_dir_all(target).context("cannot make the folder")?;
        tar::Archive::new(plain)
            .unpack(target)
            .context("cannot unpack")
    }

    /// Names of images that are not what the manifest says, e.g. because somebody wrote to them.
    pub fn changed_images(&self, folder: &Path) -> Result<Vec<String>> {
        let mut changed = Vec::new();
        for image in self.images() {
            let Some(expected) = image.sha256 else {
                continue;
            };
            if hash_file(&folder.join(&image.file))? != expected {
                changed.push(image.file);
            }
        }
        Ok(changed)
    }

    /// What the kernel read from a volume, as runs.
    pub fn extents(&self, volume: &Volume) -> Result<Vec<Extent>> {
        let packed = self.folder.join(&volume.extents);
        parse_extents(&fs::read(&packed).context(format!("cannot read {}", packed.display()))?)
    }

    /// The first differences between a dump of a volume and what the kernel read, by extents.
    pub fn explain(&self, volume: &Volume, dump: &Path) -> Result<Vec<String>> {
        let file = fs::File::open(dump).context("cannot open the dump")?;
        let size = file.metadata().context("cannot look at the dump")?.len();
        if size != volume.sectors * SECTOR as u64 {
            return Ok(vec![format!(
                "{size} bytes long, the kernel has {}",
                volume.sectors * SECTOR as u64
            )]);
        }
        let extents = self.extents(volume)?;
        compare(&file, &extents)
    }
}

fn apply(patch: &Value, folder: &Path) -> Result<()> {
    let path = folder.join(text(&patch["file"]));
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .context(format!("cannot open {}", path.display()))?;
    if let Some(length) = patch["truncate"].as_u64() {
        return file.set_len(length).context("cannot truncate");
    }
    let offset = patch["offset"].as_u64().ok_or("no offset")?;
    let bytes = match patch["zero"].as_u64() {
        Some(count) => vec![0; usize::try_from(count).context("too many zeros")?],
        None => unhex(&text(&patch["hex"]))?,
    };
    file.write_all_at(&bytes, offset).context("cannot write")
}

fn unhex(digits: &str) -> Result<Vec<u8>> {
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return Err("odd hexadecimal digits".into());
    }
    (0..digits.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).context("bad digit"))
        .collect()
}

/// A run of sectors that are not zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First sector.
    pub start: u64,
    /// Number of sectors.
    pub count: u64,
    /// What is there.
    pub what: ExtentContent,
}

/// Content of an extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExtentContent {
    /// The pattern with this tag.
    Tag(u64),
    /// Other bytes with this SHA-256.
    Hash(String),
}

/// Parses the lines of an extents file (`P START COUNT TAG`, `R START COUNT SHA256`).
pub fn parse_map(text: &str) -> Result<Vec<Extent>> {
    text.lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [kind, start, count, value] = words.as_slice() else {
                return Err(format!("bad line: {line}"));
            };
            let number = |word: &str| word.parse::<u64>().context(format!("bad line: {line}"));
            let what = match *kind {
                "P" => ExtentContent::Tag(number(value)?),
                _ => ExtentContent::Hash((*value).to_string()),
            };
            Ok(Extent {
                start: number(start)?,
                count: number(count)?,
                what,
            })
        })
        .collect()
}

fn parse_extents(packed: &[u8]) -> Result<Vec<Extent>> {
    let mut plain = String::new();
    let mut decoder = zstd::stream::read::Decoder::new(packed).context("extents are not zstd")?;
    decoder
        .read_to_string(&mut plain)
        .context("cannot unpack extents")?;
    parse_map(&plain)
}

fn compare(dump: &fs::File, extents: &[Extent]) -> Result<Vec<String>> {
    let mut complaints = Vec::new();
    let mut wrong = 0u64;
    let mut next = 0;
    let mut hash: Option<Sha256> = None;
    let mut complain = |line: String| {
        wrong += 1;
        if complaints.len() < COMPLAINTS_MAX {
            complaints.push(line);
        }
    };
    each_piece(dump, |offset, bytes| {
        for (i, sector) in bytes.chunks_exact(SECTOR).enumerate() {
            let number = offset / SECTOR as u64 + i as u64;
            while extents
                .get(next)
                .is_some_and(|extent| number >= extent.start + extent.count)
            {
                next += 1;
            }
            let found = classify(sector, number);
            match extents.get(next).filter(|extent| number >= extent.start) {
                None if found != Content::Zeros => {
                    complain(format!("sector {number}: want zeros, found {found:?}"))
                }
                Some(Extent {
                    what: ExtentContent::Tag(tag),
                    ..
                }) if found != Content::Tag(*tag) => {
                    complain(format!("sector {number}: want tag {tag}, found {found:?}"));
                }
                None
                | Some(Extent {
                    what: ExtentContent::Tag(_),
                    ..
                }) => {}
                Some(
                    extent @ Extent {
                        what: ExtentContent::Hash(expected),
                        ..
                    },
                ) => {
                    let running = hash.get_or_insert_default();
                    running.update(sector);
                    if number + 1 == extent.start + extent.count {
                        let digest = hex(&std::mem::take(running).finalize());
                        if digest != *expected {
                            complain(format!(
                                "sectors {}+{}: other bytes than the kernel's",
                                extent.start, extent.count
                            ));
                        }
                    }
                }
            }
        }
        Ok(())
    })?;
    if wrong > complaints.len() as u64 {
        complaints.push(format!("{wrong} differences in all"));
    }
    Ok(complaints)
}

/// One volume that Brigade served of a case.
#[derive(Clone, Debug)]
pub struct Served {
    /// Export name.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 of the content read.
    pub sha256: String,
}

/// What Brigade did with a case's images.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// It ended with this status and these lines on standard error.
    Refused {
        /// Exit status.
        status: Option<i32>,
        /// Lines of standard error.
        lines: Vec<String>,
    },
    /// It served these, read-only or not.
    Served {
        /// Every volume once.
        volumes: Vec<Served>,
        /// Opened for reading only.
        read_only: bool,
    },
}

/// The judge's finding: agreement if `wrong` is empty.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Disagreements.
    pub wrong: Vec<String>,
    /// Where Brigade was stricter than the kernel and may be.
    pub stricter: Vec<String>,
}

/// Compares Brigade's behaviour with the kernel's.
///
/// The same volumes with the same content, or a refusal (status 1, one line) where the kernel served
/// nothing. Where the case says `may differ`, refusing and serving read-only are as good; what is served must
/// still be what the kernel read, where the kernel read it.
pub fn judge(case: &Case, behaviour: &Behaviour) -> Verdict {
    let mut verdict = Verdict::default();
    match behaviour {
        Behaviour::Refused { status, lines } => judge_refusal(case, *status, lines, &mut verdict),
        Behaviour::Served { volumes, read_only } => {
            judge_volumes(case, volumes, *read_only, &mut verdict)
        }
    }
    verdict
}

fn judge_refusal(case: &Case, status: Option<i32>, lines: &[String], verdict: &mut Verdict) {
    if status != Some(1) {
        verdict.wrong.push(format!(
            "ended with status {status:?} instead of 1: {}",
            lines.join(" | ")
        ));
    }
    if lines.len() != 1 {
        verdict.wrong.push(format!(
            "{} lines on standard error instead of one: {}",
            lines.len(),
            lines.join(" | ")
        ));
    }
    if !case.volumes().is_empty() {
        let why = format!("refused, the kernel serves it: {}", lines.join(" | "));
        if case.may_differ() {
            verdict.stricter.push(why)
        } else {
            verdict.wrong.push(why)
        }
    }
}

fn judge_volumes(case: &Case, served: &[Served], read_only: bool, verdict: &mut Verdict) {
    let mut kernel = case.volumes();
    for volume in served {
        if let Some(i) = kernel
            .iter()
            .position(|theirs| theirs.sha256 == volume.sha256)
        {
            kernel.remove(i);
        } else if let Some(i) = kernel
            .iter()
            .position(|theirs| theirs.sectors * SECTOR as u64 == volume.size)
        {
            kernel.remove(i);
            let why = format!("{}: content differs from the kernel's", volume.name);
            if case.content_may_differ() {
                verdict.stricter.push(why)
            } else {
                verdict.wrong.push(why)
            }
        } else if kernel.is_empty() && case.may_differ() && read_only {
            verdict.stricter.push(format!(
                "{}: served read-only, the kernel serves nothing",
                volume.name
            ));
        } else {
            verdict.wrong.push(format!(
                "{}: served ({} bytes), the kernel has no such volume",
                volume.name, volume.size
            ));
        }
    }
    for theirs in kernel {
        let why = format!(
            "{} is not served, the kernel serves it",
            theirs.backing.unwrap_or(theirs.name)
        );
        if case.may_differ() {
            verdict.stricter.push(why)
        } else {
            verdict.wrong.push(why)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fixture_unpacks_to_the_images_its_manifest_names() {
        // Bases only, and the smallest derived ones: all of them are unpacked by the interop part anyway.
        for name in ["fresh", "bucket-4k", "prio-link-self", "truncated-cache"] {
            let case = load(&fixtures(), name).expect("a manifest");
            let folder = tempfile::tempdir().expect("a folder");
            case.unpack(folder.path()).expect("unpacked");
            assert_eq!(
                case.changed_images(folder.path()).expect("hashed"),
                Vec::<String>::new(),
                "{name}"
            );
        }
    }

    #[test]
    fn every_derived_fixture_has_its_base_and_every_volume_its_extents() {
        let cases = list(&fixtures()).expect("listed");
        assert!(cases.len() > 50);
        for case in &cases {
            if case.is_derived() {
                load(&fixtures(), &text(&case.manifest["derive"]["base"]))
                    .expect("the base is there");
            }
            for volume in case.volumes() {
                case.extents(&volume).expect("parsed");
            }
        }
    }

    #[test]
    fn judgement_follows_the_kernel_and_grants_latitude() {
        let refusal = Behaviour::Refused {
            status: Some(1),
            lines: vec!["one".into()],
        };
        let serve = |sha256: &str| Behaviour::Served {
            volumes: vec![Served {
                name: String::new(),
                size: 196_592 * 512,
                sha256: sha256.into(),
            }],
            read_only: true,
        };
        let load = |name| load(&fixtures(), name).expect("a manifest");
        let dirty = load("wb-dirty");
        assert!(
            judge(&dirty, &serve(&dirty.volumes()[0].sha256))
                .wrong
                .is_empty()
        );
        assert_eq!(judge(&dirty, &serve("00")).wrong.len(), 1);
        assert_eq!(judge(&dirty, &refusal).wrong.len(), 1);
        assert!(judge(&load("bad-btree-leaf"), &refusal).wrong.is_empty());
        assert!(
            !judge(&load("bad-btree-leaf"), &serve("00"))
                .wrong
                .is_empty()
        );
        assert!(judge(&load("root-gen-stale"), &refusal).wrong.is_empty());
        let panicked = Behaviour::Refused {
            status: Some(101),
            lines: vec!["a".into(), "b".into()],
        };
        assert_eq!(judge(&load("bad-btree-leaf"), &panicked).wrong.len(), 2);
    }

    #[test]
    fn comparison_names_the_sector_that_differs() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("dump");
        let mut bytes = vec![0u8; 8 * SECTOR];
        crate::pattern::fill(&mut bytes[2 * SECTOR..4 * SECTOR], 2, 9);
        fs::write(&path, &bytes).expect("written");
        let file = fs::File::open(&path).expect("opened");
        let extents = parse_map("P 2 2 9\n").expect("parsed");
        assert!(compare(&file, &extents).expect("compared").is_empty());
        let extents = parse_map("P 2 3 9\n").expect("parsed");
        assert_eq!(
            compare(&file, &extents).expect("compared"),
            ["sector 4: want tag 9, found Zeros"]
        );
    }
}
