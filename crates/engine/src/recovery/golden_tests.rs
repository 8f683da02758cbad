//! Every golden image is opened as the kernel opened it: same refusals, same content, same states.
//!
//! The images are found by the environment variable `BRIGADE_GOLDEN` or in the repository's `fixtures/`; where they are
//! absent the test says so and passes. `BRIGADE_GOLDEN_CASE` picks one case.

use super::testing::{Image, TestEnv, run};
use super::{How, Loaded, load};
use brigade_format::superblock::{BackingState, Role, Superblock};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Cases a kernel opens and whose damage bars writing all the same (F51; F43 and F47): read-only they are equal.
const STRICTER: [&str; 2] = ["blank-uuids", "replay-stale"];

/// The archives have a 128 MiB window.
const WINDOW_LOG: u32 = 27;

fn golden_folder() -> Option<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures");
    let candidates = [
        std::env::var_os("BRIGADE_GOLDEN").map(PathBuf::from),
        Some(fixtures.join("golden")),
        Some(fixtures),
    ];
    candidates
        .into_iter()
        .flatten()
        .find(|folder| folder.join("wb-dirty.json").exists())
}

fn manifest(folder: &Path, name: &str) -> Value {
    let text = std::fs::read(folder.join(format!("{name}.json"))).expect("a manifest");
    serde_json::from_slice(&text).expect("a manifest in JSON")
}

fn unpack(folder: &Path, man: &Value, into: &Path) {
    if let Some(derive) = man.get("derive") {
        unpack(
            folder,
            &manifest(folder, derive["base"].as_str().unwrap()),
            into,
        );
        derive["patches"]
            .as_array()
            .unwrap()
            .iter()
            .for_each(|patch| apply(patch, into));
        return;
    }
    let archive = folder.join(man["archive"]["file"].as_str().unwrap());
    let mut plain = zstd::stream::read::Decoder::new(File::open(archive).unwrap()).unwrap();
    plain.window_log_max(WINDOW_LOG).unwrap();
    tar::Archive::new(plain).unpack(into).unwrap();
}

fn apply(patch: &Value, into: &Path) {
    let file = OpenOptions::new()
        .write(true)
        .open(into.join(patch["file"].as_str().unwrap()))
        .unwrap();
    let offset = patch["offset"].as_u64().unwrap_or(0);
    if let Some(size) = patch["truncate"].as_u64() {
        file.set_len(size).unwrap();
    } else if let Some(count) = patch["zero"].as_u64() {
        file.write_all_at(&vec![0; count as usize], offset).unwrap();
    } else {
        let hex = patch["hex"].as_str().unwrap();
        let bytes: Vec<u8> = (0..hex.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
            .collect();
        file.write_all_at(&bytes, offset).unwrap();
    }
}

fn superblock(image: &Image) -> Result<Superblock, String> {
    let mut bytes = vec![0; 4096];
    image.fill(4096, &mut bytes).map_err(|e| e.to_string())?;
    Superblock::parse(&bytes).map_err(|e| e.to_string())
}

enum Cache {
    Absent,
    Refused,
    Blank(Superblock),
    Open(Superblock, Box<Loaded>, Image),
}

fn open_cache(path: &Path, how: How) -> Result<Cache, String> {
    let image = Image::open(path);
    let sb = superblock(&image)?;
    if sb.role() != Role::Cache {
        return Err("not a cache".into());
    }
    let geometry = sb
        .cache_geometry(image.sectors(), 512)
        .map_err(|e| e.to_string())?;
    if !sb.is_sync() {
        return Ok(Cache::Blank(sb));
    }
    let loaded = run(load(
        &TestEnv::new(),
        &image,
        sb.clone(),
        geometry,
        &[],
        how,
    ));
    let mut loaded = loaded.map_err(|e| e.to_string())?;
    // The one thing a kernel serves otherwise: live dirty data under a stale dirty replayed key, which it erases.
    for e in std::mem::take(&mut loaded.doubtful) {
        loaded.index.remove(e.inode, e.start, e.end, |_| ());
    }
    Ok(Cache::Open(sb, Box::new(loaded), image))
}

/// Hash of `sectors` of the volume: what the index places, else `backing` from `data_offset`, else zeros.
fn hash(
    cache: Option<(&Loaded, &Image, u32)>,
    backing: Option<(&Image, u64)>,
    sectors: u64,
) -> String {
    let mut hasher = Sha256::new();
    let shift = backing.map_or(0, |(_, data_offset)| data_offset);
    const STEP: u64 = 2048;
    for at in (0..sectors).step_by(STEP as usize) {
        let count = STEP.min(sectors - at);
        let mut bytes = vec![0; count as usize * 512];
        if let Some((image, data_offset)) = backing {
            image.fill((at + data_offset) * 512, &mut bytes).unwrap();
        }
        if let Some((loaded, image, inode)) = cache {
            for e in loaded.index.range(inode, at + shift, at + shift + count) {
                let to = (e.start - shift - at) as usize * 512;
                let length = e.sectors() as usize * 512;
                image
                    .fill(e.ptr.unwrap().sector() * 512, &mut bytes[to..to + length])
                    .unwrap();
            }
        }
        hasher.update(&bytes);
    }
    let hash = hasher.finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a reader by the rules makes of the images: registrations, states, devices (backing, sectors, hash).
#[derive(Default, PartialEq, Debug)]
struct Report {
    register: Vec<(String, bool)>,
    states: Vec<(String, String)>,
    devices: Vec<(Option<String>, u64, String)>,
}

fn wanted(man: &Value) -> Report {
    let reopen = &man["reopen"];
    let mut report = Report::default();
    for (file, result) in reopen["register"].as_object().unwrap() {
        report.register.push((file.clone(), result == "ok"));
    }
    for (file, state) in reopen["states"].as_object().unwrap() {
        report
            .states
            .push((file.clone(), state.as_str().unwrap().to_string()));
    }
    for device in reopen["devices"].as_array().unwrap() {
        let backing = device["backing"].as_str().map(str::to_string);
        let sha = device["sha256"].as_str().unwrap().to_string();
        report
            .devices
            .push((backing, device["sectors"].as_u64().unwrap(), sha));
    }
    report.sorted()
}

impl Report {
    fn sorted(mut self) -> Report {
        self.register.sort();
        self.states.sort();
        self.devices.sort();
        self
    }
}

fn add_backing(report: &mut Report, file: &str, path: &Path, cache: &Cache) {
    let image = Image::open(path);
    let parsed = superblock(&image).and_then(|sb| {
        sb.backing_data_offset(image.sectors(), 512)
            .map(|at| (sb, at))
            .map_err(|e| e.to_string())
    });
    report.register.push((file.to_string(), parsed.is_ok()));
    let Ok((sb, data_offset)) = parsed else {
        return;
    };
    let (set_uuid, loaded) = match cache {
        Cache::Open(set, loaded, image) => (Some(set.set_uuid), Some((loaded, image))),
        Cache::Blank(set) => (Some(set.set_uuid), None),
        Cache::Absent | Cache::Refused => (None, None),
    };
    let is_member = set_uuid == Some(sb.set_uuid);
    let slot = loaded.and_then(|(loaded, _)| {
        loaded
            .uuids
            .iter()
            .position(|entry| entry.uuid == sb.uuid && !entry.is_invalidated())
            .map(|slot| slot as u32)
    });
    let is_attached = matches!(sb.state(), BackingState::Clean | BackingState::Dirty);
    let state = match sb.state() {
        BackingState::Dirty => "dirty",
        BackingState::Clean => "clean",
        _ if is_member => "clean",
        BackingState::None => "no cache",
        BackingState::Stale => "stale",
    };
    report.states.push((file.to_string(), state.to_string()));
    let is_served = match sb.state() {
        BackingState::Dirty => is_member && slot.is_some(),
        BackingState::Clean => is_member,
        _ => true,
    };
    if is_served {
        let sectors = image.sectors() - data_offset;
        let cached = loaded.filter(|_| is_attached && is_member);
        let cached = cached.and_then(|(loaded, image)| slot.map(|slot| (&**loaded, image, slot)));
        let sha = hash(cached, Some((&image, data_offset)), sectors);
        report.devices.push((Some(file.to_string()), sectors, sha));
    }
}

fn observe(man: &Value, folder: &Path, how: How) -> (Report, Option<String>) {
    let mut report = Report::default();
    let mut refusal = None;
    let mut cache = Cache::Absent;
    let registered = man["reopen"]["register"].as_object().unwrap();
    for image in man["images"].as_array().unwrap() {
        let file = image["file"].as_str().unwrap();
        if image["role"] == "cache" && registered.contains_key(file) {
            let opened = open_cache(&folder.join(file), how);
            report.register.push((file.to_string(), opened.is_ok()));
            cache = opened.unwrap_or_else(|error| {
                refusal = Some(error);
                Cache::Refused
            });
        }
    }
    for image in man["images"].as_array().unwrap() {
        let file = image["file"].as_str().unwrap();
        if image["role"] != "cache" && registered.contains_key(file) {
            add_backing(&mut report, file, &folder.join(file), &cache);
        }
    }
    if let Cache::Open(_, loaded, image) = &cache {
        for (slot, entry) in loaded.uuids.iter().enumerate() {
            // A table of garbage claims volumes of any size.
            if entry.is_used() && entry.is_flash_only() && entry.sectors < 1 << 24 {
                let sha = hash(Some((loaded, image, slot as u32)), None, entry.sectors);
                report.devices.push((None, entry.sectors, sha));
            }
        }
        assert!(image.bytes_read.get() >= loaded.stats.bytes_read);
        for finding in &loaded.findings {
            eprintln!("    {finding:?}");
            let is_damaged = man.get("derive").is_some();
            assert!(
                is_damaged || finding.id == "F51",
                "a kernel's own image shows {finding:?}"
            );
        }
        eprintln!("    {:?}", loaded.stats);
    }
    (report.sorted(), refusal)
}

/// Opens one case for writing and, if that is refused, for reading. `Err` says how it differs from the kernel.
fn check(folder: &Path, name: &str) -> Result<String, String> {
    let man = manifest(folder, name);
    let unpacked =
        std::env::temp_dir().join(format!("brigade-golden-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&unpacked).unwrap();
    unpack(folder, &man, &unpacked);
    let want = wanted(&man);
    let (writing, refusal) = observe(&man, &unpacked, How::default());
    let result = if writing == want {
        Ok(format!("as the kernel: {}", refusal.unwrap_or_default()))
    } else {
        let (reading, _) = observe(
            &man,
            &unpacked,
            How {
                read_only: true,
                ..How::default()
            },
        );
        let may_differ = man["latitude"] == "may differ";
        let is_stricter = |(file, is_taken): &(String, bool)| {
            !is_taken && want.register.contains(&(file.clone(), true))
        };
        let is_refused = may_differ && writing.register.iter().any(is_stricter);
        let is_known = may_differ || STRICTER.contains(&name);
        if (reading == want && is_known) || is_refused {
            Ok(format!(
                "stricter, read-only {}: {refusal:?}",
                reading == want
            ))
        } else {
            Err(format!(
                "{refusal:?}\nwant {want:#?}\nhave {writing:#?}\nread-only {reading:#?}"
            ))
        }
    };
    std::fs::remove_dir_all(&unpacked).unwrap();
    result
}

#[test]
fn every_golden_image_is_opened_as_the_kernel_opened_it() {
    let Some(folder) = golden_folder() else {
        eprintln!("SKIPPED: no golden images; set BRIGADE_GOLDEN to the folder that holds them");
        return;
    };
    let only = std::env::var("BRIGADE_GOLDEN_CASE").ok();
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| {
            entry
                .unwrap()
                .file_name()
                .to_str()?
                .strip_suffix(".json")
                .map(str::to_string)
        })
        .filter(|name| only.as_ref().is_none_or(|only| only == name))
        .collect();
    names.sort();
    let mut wrong = Vec::new();
    for name in &names {
        match check(&folder, name) {
            Ok(text) => eprintln!("{name}: {text}"),
            Err(text) => {
                eprintln!("{name}: WRONG {text}");
                wrong.push(name.clone());
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} cases differ: {wrong:?}",
        wrong.len(),
        names.len()
    );
}
