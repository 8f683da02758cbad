//! A case: its manifest, its images, and what the kernel read from them.

use super::extents::{Extent, compare, unpack_extents};
use crate::pattern::SECTOR;
use crate::process::{Context, Result, project_root};
use crate::sectors::{hash_data, hash_file};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// The archives were made with a window of this many bits.
const WINDOW_LOG_MAX: u32 = 27;

/// One case.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name.
    pub name: String,
    folder: PathBuf,
    manifest: Value,
}

/// One image of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
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

    /// Files that the kernel refused.
    pub fn refused(&self) -> Vec<String> {
        let files = self.images().into_iter().map(|image| image.file);
        files.filter(|file| !self.registered(file)).collect()
    }

    /// Name of the case whose archive this one's images come from.
    pub fn base(&self) -> String {
        match self.manifest["derive"]["base"].as_str() {
            Some(base) => base.to_string(),
            None => self.name.clone(),
        }
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

    /// Every image with a hash of its whole content: SHA-256 where the manifest has that, and of the data only where
    /// the image is mostly one hole.
    pub fn hashes(&self, folder: &Path) -> Result<Vec<(Image, String)>> {
        let hash = |image: Image| {
            let path = folder.join(&image.file);
            let hash = match image.sha256 {
                Some(_) => hash_file(&path)?,
                None => hash_data(&path)?,
            };
            Ok((image, hash))
        };
        self.images().into_iter().map(hash).collect()
    }

    /// What the kernel read from a volume, as runs.
    pub fn extents(&self, volume: &Volume) -> Result<Vec<Extent>> {
        let packed = self.folder.join(&volume.extents);
        unpack_extents(&fs::read(&packed).context(format!("cannot read {}", packed.display()))?)
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
            for (image, hash) in case.hashes(folder.path()).expect("hashed") {
                assert_eq!(image.sha256.as_ref(), Some(&hash), "{name} {}", image.file);
            }
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
}
