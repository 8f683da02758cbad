//! `brigade check`: the independent reader goes through a cache set and its backing devices and says what is wrong.
//!
//! Statuses as those of fsck(8): 0 clean, 4 errors, 8 could not check, 16 usage. Nothing is repaired yet, so 1 does not occur.

use crate::failure::{Failure, Outcome};
use crate::flags::CheckFlags;
use crate::output::{print_json, say};
use crate::size::show_size;
use crate::target::{Purpose, Target};
use brigade_fsck::Device;
use brigade_fsck::check::{
    self, BackingView, Finding, Options, Phase, Progress, Report, SetView, Severity, SlotKind,
    Verdict, VolumeView,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::IsTerminal;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// Errors are left.
const STATUS_ERRORS: u8 = 4;
/// It could not be checked, or not all of it.
const STATUS_UNCHECKED: u8 = 8;
/// The call makes no sense.
pub const STATUS_USAGE: u8 = 16;

/// Checks the devices and prints what was found.
pub fn check(flags: &CheckFlags) -> Outcome {
    let targets = open(flags).map_err(|failure| {
        failure.report();
        Failure::Status(STATUS_UNCHECKED)
    })?;
    let devices: Vec<Device<'_>> = targets
        .iter()
        .map(|(target, _)| Device {
            name: target.name(),
            source: &target.file,
            size_bytes: target.size_bytes,
            logical_block_bytes: target.logical_block_bytes,
        })
        .collect();
    let defaults = Options::default();
    let options = Options {
        data: flags.data,
        memory_max: flags.memory.unwrap_or(defaults.memory_max),
        ..defaults
    };
    let bar = Bar::new();
    let report = check::run(&devices, &options, &mut |progress| bar.show(&progress));
    bar.end();
    if flags.json {
        print_json(&as_json(&report))?;
    } else {
        print(&report, flags.verbose)?;
    }
    match report.verdict() {
        Verdict::Clean => Ok(()),
        Verdict::Errors => Err(Failure::Status(STATUS_ERRORS)),
        Verdict::Unchecked => Err(Failure::Status(STATUS_UNCHECKED)),
    }
}

/// Every device with what keeps others from writing to it.
type Held = (Target, Option<File>);

/// What somebody is writing to cannot be judged, so nobody may.
fn open(flags: &CheckFlags) -> Outcome<Vec<Held>> {
    let open_one = |path: &std::path::PathBuf| {
        let target = Target::open(path, Purpose::Look)?;
        let in_use = || {
            let name = target.name();
            Failure::cannot(format!("{name}: in use; nothing was checked"))
        };
        share(&target.file).map_err(|_| in_use())?;
        let claim = claim(path).map_err(|_| in_use())?;
        Ok((target, claim))
    };
    flags.devices.iter().map(open_one).collect()
}

/// A server that has just ended may hold its devices a moment longer, while the kernel takes its ring down.
fn share(file: &File) -> Result<(), TryLockError> {
    const ATTEMPTS: u32 = 50;
    for _ in 1..ATTEMPTS {
        match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
            other => return other,
        }
    }
    file.try_lock_shared()
}

/// A block device that the kernel uses (mounted, or part of something larger) cannot be opened for oneself.
fn claim(path: &Path) -> std::io::Result<Option<File>> {
    if !std::fs::metadata(path)?.file_type().is_block_device() {
        return Ok(None);
    }
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_EXCL);
    options.open(path).map(Some)
}

/// A bar on a terminal, nothing elsewhere.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn new() -> Bar {
        Bar(std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(1).with_style(style)
        }))
    }

    fn show(&self, progress: &Progress<'_>) {
        let Some(bar) = &self.0 else {
            return;
        };
        let phase = match progress.phase {
            Phase::Journal => "journal buckets",
            Phase::Prios => "prio buckets",
            Phase::Nodes => "btree nodes",
            Phase::Extents => "btree nodes, extents",
        };
        bar.set_length(progress.total);
        bar.set_position(progress.done);
        bar.set_message(format!("{}: {phase}", progress.device));
    }

    fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn print(report: &Report, is_verbose: bool) -> Outcome {
    let is_shown = |finding: &&Finding| is_verbose || finding.severity > Severity::Note;
    for finding in report.findings.iter().filter(is_shown) {
        say!("{}", clean_text(&finding.to_string()))?;
    }
    for (&(id, severity), &count) in &report.counts {
        let kept = |f: &&Finding| f.id == id && f.severity == severity;
        let kept = report.findings.iter().filter(kept).count() as u64;
        if count > kept && (is_verbose || severity > Severity::Note) {
            say!("{} more of {id} ({})", count - kept, severity.name())?;
        }
    }
    for what in &report.unchecked {
        say!("not checked: {}", clean_text(what))?;
    }
    if is_verbose {
        for set in &report.sets {
            print_set(set)?;
        }
    }
    say!("{}", verdict_line(report))
}

fn print_set(set: &SetView) -> Outcome {
    let uuid = Uuid::from_bytes(set.set_uuid);
    if !set.is_initialised {
        return say!("{}: set {uuid}, blank", set.device);
    }
    let buckets = &set.buckets;
    say!(
        "{}: set {uuid}, journal entries {} to {}, {} keys to replay, {} nodes, {} keys; buckets: {} dirty, {} clean, {} nodes, {} unreferenced",
        set.device,
        set.last_seq,
        set.newest_seq,
        set.replayed_keys,
        set.nodes,
        set.keys,
        buckets.dirty,
        buckets.clean,
        buckets.nodes,
        buckets.unreferenced
    )?;
    for volume in set.volumes.iter().filter(|_| set.has_extents) {
        say!(
            "{}: slot {} ({}): {} extents, {} clean, {} dirty",
            set.device,
            volume.slot,
            kind_name(volume.kind),
            volume.extents,
            show_size(volume.clean_sectors * 512),
            show_size(volume.dirty_sectors * 512)
        )?;
    }
    Ok(())
}

fn verdict_line(report: &Report) -> String {
    let count = |severity: Severity| {
        let count = report.count(severity);
        let plural = if count == 1 { "" } else { "s" };
        format!("{count} {}{plural}", severity.name())
    };
    let warnings = match report.count(Severity::Warning) {
        0 => String::new(),
        _ => format!(", {}", count(Severity::Warning)),
    };
    match report.verdict() {
        Verdict::Clean => format!("clean{warnings}"),
        Verdict::Errors => format!("{}{warnings}", count(Severity::Error)),
        Verdict::Unchecked => format!("no error where it could be checked{warnings}"),
    }
}

fn clean_text(text: &str) -> String {
    crate::failure::one_line(text)
}

fn kind_name(kind: SlotKind) -> &'static str {
    match kind {
        SlotKind::Free => "free",
        SlotKind::Cached => "cached",
        SlotKind::Flash => "flash",
        SlotKind::Invalidated => "invalidated",
    }
}

fn as_json(report: &Report) -> Value {
    let (verdict, status) = match report.verdict() {
        Verdict::Clean => ("clean", 0),
        Verdict::Errors => ("errors", STATUS_ERRORS),
        Verdict::Unchecked => ("unchecked", STATUS_UNCHECKED),
    };
    let rules: Vec<Value> = report
        .counts
        .iter()
        .map(|((id, severity), count)| {
            json!({ "id": id, "severity": severity.name(), "count": count })
        })
        .collect();
    json!({
        "verdict": verdict,
        "exit_status": status,
        "errors": report.count(Severity::Error),
        "warnings": report.count(Severity::Warning),
        "notes": report.count(Severity::Note),
        "rules": rules,
        "findings": report.findings.iter().map(finding_json).collect::<Vec<_>>(),
        "unchecked": report.unchecked,
        "sets": report.sets.iter().map(set_json).collect::<Vec<_>>(),
        "backing_devices": report.backings.iter().map(backing_json).collect::<Vec<_>>(),
    })
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "severity": finding.severity.name(),
        "id": finding.id,
        "device": finding.device,
        "structure": finding.structure,
        "start_bytes": finding.start,
        "length_bytes": finding.length,
        "offset_bytes": finding.offset,
        "message": finding.message,
    })
}

fn set_json(set: &SetView) -> Value {
    let buckets = &set.buckets;
    let volumes = |volume: &VolumeView| {
        json!({
            "slot": volume.slot,
            "kind": kind_name(volume.kind),
            "uuid": Uuid::from_bytes(volume.uuid).to_string(),
            "label": volume.label,
            "extents": volume.extents,
            "clean_bytes": volume.clean_sectors * 512,
            "dirty_bytes": volume.dirty_sectors * 512,
        })
    };
    json!({
        "device": set.device,
        "uuid": Uuid::from_bytes(set.set_uuid).to_string(),
        "initialised": set.is_initialised,
        "bucket_bytes": u64::from(set.bucket_sectors) * 512,
        "journal": {
            "newest_seq": set.newest_seq,
            "last_seq": set.last_seq,
            "replayed_keys": set.replayed_keys,
        },
        "btree": { "root_level": set.root_level, "nodes": set.nodes, "keys": set.keys },
        "buckets": {
            "superblock": buckets.superblock,
            "journal": buckets.journal,
            "prios": buckets.prios,
            "uuids": buckets.uuids,
            "nodes": buckets.nodes,
            "dirty": buckets.dirty,
            "clean": buckets.clean,
            "unreferenced": buckets.unreferenced,
        },
        "extents_known": set.has_extents,
        "volumes": set.volumes.iter().map(volumes).collect::<Vec<_>>(),
    })
}

fn backing_json(backing: &BackingView) -> Value {
    json!({
        "device": backing.device,
        "uuid": Uuid::from_bytes(backing.uuid).to_string(),
        "set_uuid": Uuid::from_bytes(backing.set_uuid).to_string(),
        "state": backing.state.to_string(),
        "mode": backing.mode.map(|mode| mode.to_string()),
        "slot": backing.slot,
    })
}
