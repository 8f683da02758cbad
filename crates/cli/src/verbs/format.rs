//! `brigade format`: superblocks for new cache and backing devices.
//!
//! Everything is checked before anything is written: [`plan`] opens and locks all devices and decides, [`Plan::write`]
//! only writes. The set uuid is always fresh, because an old journal comes back under an old one (docs/format.md 8.1).

use crate::failure::{Failure, Outcome};
use crate::flags::{FormatFlags, Replacement};
use crate::output::{print_json, say};
use crate::signatures;
use crate::size::show_size;
use crate::target::{Purpose, Target};
use brigade_format::superblock::{
    self, KERNEL_NBUCKETS_MIN, NBUCKETS_MIN, NewBacking, NewCache, Superblock,
};
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

const SECTOR: u64 = 512;
const BUCKET_BYTES_MIN: u64 = 4096;
const BUCKET_BYTES_MAX: u64 = 32 << 20;
const BLOCK_BYTES_MAX: u64 = 4096;
const DATA_OFFSET_MIN: u64 = 16 * SECTOR;

/// Plans, says what it will do, does it, sums up.
pub fn format(flags: &FormatFlags) -> Outcome {
    let plan = plan(flags)?;
    for step in &plan.steps {
        eprintln!(
            "brigade: writing a {} superblock to {} (bytes 0 to 8192)",
            step.role,
            step.target.name()
        );
    }
    plan.write()?;
    if flags.json {
        return print_json(&plan.json());
    }
    for step in &plan.steps {
        say!("{}: {}", step.target.name(), step.summary)?;
    }
    say!("set {}", plan.set_uuid)?;
    Ok(())
}

/// What will be written where; nothing has been.
#[derive(Debug)]
pub struct Plan {
    set_uuid: Uuid,
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Step {
    target: Target,
    role: &'static str,
    bytes: [u8; superblock::BYTES],
    uuid: Uuid,
    summary: String,
}

impl Plan {
    /// Writes all superblocks and makes them durable.
    pub fn write(&self) -> Outcome {
        for step in &self.steps {
            let file = &step.target.file;
            file.write_all_at(&[0; 4096], 0)
                .and_then(|()| file.write_all_at(&step.bytes, superblock::DEVICE_OFFSET))
                .and_then(|()| file.sync_all())
                .map_err(|e| {
                    Failure::cannot(format!(
                        "{}: superblock at byte 4096: {e}",
                        step.target.name()
                    ))
                })?;
        }
        Ok(())
    }

    fn json(&self) -> Value {
        let device = |step: &Step| {
            json!({
                "path": step.target.name(), "kind": step.role, "uuid": step.uuid.to_string(),
                "size_bytes": step.target.size_bytes,
            })
        };
        json!({
            "set_uuid": self.set_uuid.to_string(),
            "devices": self.steps.iter().map(device).collect::<Vec<_>>(),
        })
    }
}

/// Checks the wishes, then every device; files made on the way are removed again if one is refused.
pub fn plan(flags: &FormatFlags) -> Outcome<Plan> {
    check_wishes(flags)?;
    let mut made = Made::default();
    if let Some(bytes) = flags.create {
        for path in flags
            .cache
            .iter()
            .chain(&flags.backing)
            .filter(|p| !p.exists())
        {
            made.make(path, bytes)?;
        }
    }
    refuse_twins(flags.cache.iter().chain(&flags.backing))?;
    let open = |path: &PathBuf| Target::open(path, Purpose::Write);
    let caches = flags.cache.iter().map(open).collect::<Outcome<Vec<_>>>()?;
    let backings = flags
        .backing
        .iter()
        .map(open)
        .collect::<Outcome<Vec<_>>>()?;
    if !flags.force {
        caches
            .iter()
            .chain(&backings)
            .try_for_each(refuse_if_in_use)?;
    }
    let set_uuid = Uuid::new_v4();
    let mut steps = Vec::new();
    for target in caches {
        steps.push(cache_step(flags, target, set_uuid)?);
    }
    for target in backings {
        steps.push(backing_step(flags, target, set_uuid)?);
    }
    made.keep();
    Ok(Plan { set_uuid, steps })
}

fn check_wishes(flags: &FormatFlags) -> Outcome {
    let usage = |what: String| Err(Failure::Usage(what));
    if flags.cache.len() > 1 {
        return usage("--cache: a set has one cache device; format others by themselves".into());
    }
    let bucket = flags.bucket_size;
    if !bucket.is_power_of_two() || !(BUCKET_BYTES_MIN..=BUCKET_BYTES_MAX).contains(&bucket) {
        return usage(format!(
            "--bucket-size {bucket}: a power of two from 4k to 32M is needed"
        ));
    }
    let block = block_bytes(flags);
    if !block.is_power_of_two() || !(SECTOR..=BLOCK_BYTES_MAX).contains(&block) {
        return usage(format!(
            "--block-size {block}: a power of two from 512 to 4k is needed"
        ));
    }
    let offset = flags.data_offset;
    if offset < DATA_OFFSET_MIN || !offset.is_multiple_of(block) {
        return usage(format!(
            "--data-offset {offset}: a multiple of the block size ({block}), at least 8k, is needed"
        ));
    }
    if let Some(label) = &flags.label {
        if label.len() > 32 || label.is_empty() || label.chars().any(char::is_control) {
            return usage("--label: 1 to 32 bytes of text are needed".into());
        }
        if brigade::is_volume_number(label) {
            return usage(format!(
                "--label {label}: volumes are called so by their slots"
            ));
        }
        if flags.backing.len() > 1 {
            return usage("--label: one name for several backing devices".into());
        }
    }
    Ok(())
}

/// One device by two names.
fn refuse_twins<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Outcome {
    let mut seen: Vec<(PathBuf, &Path)> = Vec::new();
    for path in paths {
        let Ok(real) = path.canonicalize() else {
            continue;
        };
        if let Some((_, other)) = seen.iter().find(|(there, _)| *there == real) {
            return Err(Failure::cannot(format!(
                "{} and {} are one device",
                other.display(),
                path.display()
            )));
        }
        seen.push((real, path));
    }
    Ok(())
}

fn block_bytes(flags: &FormatFlags) -> u64 {
    flags.block_size.unwrap_or(BLOCK_BYTES_MAX)
}

fn refuse_if_in_use(target: &Target) -> Outcome {
    let found = signatures::recognise(&target.file, target.size_bytes)
        .map_err(|e| Failure::cannot(format!("{}: reading: {e}", target.name())))?;
    match found {
        None => Ok(()),
        Some(found) => Err(Failure::cannot(format!(
            "{}: holds {} (signature at byte {}); nothing written; --force overwrites it",
            target.name(),
            found.name,
            found.offset
        ))),
    }
}

fn cache_step(flags: &FormatFlags, target: Target, set_uuid: Uuid) -> Outcome<Step> {
    let block = checked_block(flags, &target)?;
    let buckets = target.size_bytes / flags.bucket_size;
    let least = match flags.small {
        true => NBUCKETS_MIN,
        false => KERNEL_NBUCKETS_MIN,
    };
    if buckets < least {
        let too_few = too_few_buckets(&target, flags.bucket_size, block, least);
        return Err(Failure::cannot(too_few));
    }
    if buckets < KERNEL_NBUCKETS_MIN {
        eprintln!(
            "brigade: warning: {}: no kernel opens a set of {buckets} buckets; those have {KERNEL_NBUCKETS_MIN} at least",
            target.name()
        );
    }
    let uuid = Uuid::new_v4();
    let wish = NewCache {
        device_sectors: target.size_bytes / SECTOR,
        bucket_sectors: (flags.bucket_size / SECTOR) as u32,
        block_sectors: (block / SECTOR) as u16,
        uuid: uuid.into_bytes(),
        set_uuid: set_uuid.into_bytes(),
        discard: flags.discard,
        replacement: flags.replacement.into(),
    };
    let made = Superblock::new_cache(&wish)
        .map_err(|e| Failure::cannot(format!("{}: {e}", target.name())))?;
    let summary = format!(
        "cache {uuid}, version {}, {buckets} buckets of {}, blocks of {}",
        made.version,
        show_size(flags.bucket_size),
        show_size(block)
    );
    Ok(Step {
        target,
        role: "cache",
        bytes: made.encode(),
        uuid,
        summary,
    })
}

fn too_few_buckets(target: &Target, bucket: u64, block: u64, buckets: u64) -> String {
    let least = BUCKET_BYTES_MIN.max(block);
    let fits = (0..=13)
        .map(|shift| BUCKET_BYTES_MAX >> shift)
        .find(|&size| target.size_bytes / size >= buckets);
    let hint = match fits.filter(|&size| size >= least) {
        Some(size) => format!("--bucket-size {} would do", show_size(size)),
        None => format!(
            "no bucket size will do; at least {} are needed",
            show_size(buckets * least)
        ),
    };
    format!(
        "{}: {} hold {} buckets of {}, at least {buckets} are needed; {hint}",
        target.name(),
        show_size(target.size_bytes),
        target.size_bytes / bucket,
        show_size(bucket)
    )
}

fn backing_step(flags: &FormatFlags, target: Target, set_uuid: Uuid) -> Outcome<Step> {
    let block = checked_block(flags, &target)?;
    if target.size_bytes < flags.data_offset.saturating_add(block) {
        return Err(Failure::cannot(format!(
            "{}: {} bytes leave no room for data at {}",
            target.name(),
            target.size_bytes,
            flags.data_offset
        )));
    }
    let uuid = Uuid::new_v4();
    let wish = NewBacking {
        device_sectors: target.size_bytes / SECTOR,
        data_offset: flags.data_offset / SECTOR,
        block_sectors: (block / SECTOR) as u16,
        uuid: uuid.into_bytes(),
        set_uuid: set_uuid.into_bytes(),
        mode: flags.mode.into(),
        label: flags.label.clone().unwrap_or_default(),
    };
    let made = Superblock::new_backing(&wish)
        .map_err(|e| Failure::cannot(format!("{}: {e}", target.name())))?;
    let summary = format!(
        "backing {uuid}, version {}, {} of data at {}, {}",
        made.version,
        show_size(target.size_bytes - flags.data_offset),
        show_size(flags.data_offset),
        superblock::CacheMode::from(flags.mode)
    );
    Ok(Step {
        target,
        role: "backing",
        bytes: made.encode(),
        uuid,
        summary,
    })
}

fn checked_block(flags: &FormatFlags, target: &Target) -> Outcome<u64> {
    let block = block_bytes(flags);
    let least = u64::from(target.logical_block_bytes);
    if block < least {
        return Err(Failure::cannot(format!(
            "{}: blocks of {block} are smaller than the device's {least}",
            target.name()
        )));
    }
    Ok(block)
}

/// Files made by `--create`.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn make(&mut self, path: &Path, bytes: u64) -> Outcome {
        let at = |e: std::io::Error| Failure::cannot(format!("{}: {e}", path.display()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(at)?;
        self.0.push(path.to_owned());
        file.set_len(bytes).map_err(at)
    }

    fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl From<Replacement> for superblock::Replacement {
    fn from(replacement: Replacement) -> Self {
        match replacement {
            Replacement::Lru => Self::Lru,
            Replacement::Fifo => Self::Fifo,
            Replacement::Random => Self::Random,
        }
    }
}
