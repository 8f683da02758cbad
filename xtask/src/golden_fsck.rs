//! `cargo x golden fsck DIR`: `brigade check` over every case of a folder of golden images.
//!
//! An undamaged case must be clean, without a warning; clean data unlike the backing device (F70, K3) is let pass where the
//! kernel was killed. One that no kernel takes must have an error in the image that was refused. A damaged one must have an error or a warning in the structure that
//! the manifest says was damaged: on that image, and with one of the changed bytes inside the structure that is named. Damage
//! that no rule of the format can see is listed here, with the reason, and must be clean.

use crate::golden::{Case, list, load};
use crate::process::{Context, Result};
use crate::server::brigade;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, ExitCode};

const USAGE: &str = "cargo x golden fsck DIR [--only NAME] [--verbose]";

/// Damaged cases whose images keep every rule.
const LAWFUL: &[(&str, &str)] = &[
    ("bad-data", "dirty data has no checksum and no second copy"),
    (
        "flip-past-keys",
        "no checksum covers it and nobody reads it",
    ),
    (
        "check-over-dirty",
        "a set as a kernel could have written it",
    ),
    (
        "stale-over-dirty",
        "a set as a kernel could have written it",
    ),
    ("prio-behind-freed", "a chain may be older than the tree"),
    (
        "prio-behind-freed-kill",
        "a chain may be older than the tree",
    ),
    (
        "prio-behind-journal",
        "a chain may be older than the journal",
    ),
    ("prio-behind-leaf", "a chain may be older than the tree"),
    ("prio-behind-node", "a chain may be older than the tree"),
];

/// What `brigade check --json` said.
pub struct Checked {
    /// Exit status.
    pub status: Option<i32>,
    /// The report.
    pub report: Value,
    /// Standard error.
    pub errors: String,
}

impl Checked {
    /// Findings of a severity.
    pub fn of(&self, severity: &str) -> Vec<&Value> {
        let all = self.report["findings"]
            .as_array()
            .map_or(&[][..], |all| all);
        all.iter().filter(|f| f["severity"] == severity).collect()
    }

    /// Rules with severity and number, for one line.
    pub fn rules(&self) -> String {
        let all = self.report["rules"].as_array().map_or(&[][..], |all| all);
        let one = |rule: &Value| {
            let text = |key: &str| rule[key].as_str().unwrap_or("?").to_owned();
            format!("{} {} x{}", text("id"), text("severity"), rule["count"])
        };
        all.iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

/// Runs `brigade check --json --data` on images.
pub fn check<P: AsRef<Path>>(program: &Path, images: &[P]) -> Result<Checked> {
    let output = Command::new(program)
        .args(["check", "--json", "--data"])
        .args(images.iter().map(AsRef::as_ref))
        .output()
        .context("cannot run brigade check")?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).context(format!(
        "brigade check printed no JSON (status {:?}): {errors}",
        output.status.code()
    ))?;
    Ok(Checked {
        status: output.status.code(),
        report,
        errors,
    })
}

/// Runs `cargo x golden fsck ARGUMENTS`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let (mut folder, mut only, mut is_verbose) = (None, None, false);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--only" => only = words.next(),
            "--verbose" => is_verbose = true,
            _ => folder = Some(word),
        }
    }
    let Some(folder) = folder.map(Path::new) else {
        println!("{USAGE}");
        return Ok(ExitCode::from(2));
    };
    let cases = match only {
        Some(name) => vec![load(folder, name)?],
        None => list(folder)?,
    };
    let (summary, wrong) = run(&brigade()?, folder, &cases, is_verbose)?;
    println!("{summary}");
    Ok(ExitCode::from(u8::from(!wrong.is_empty())))
}

/// Checks every case; gives a line about all of them and the names of those that are wrong.
pub fn run(
    program: &Path,
    folder: &Path,
    cases: &[Case],
    is_verbose: bool,
) -> Result<(String, Vec<String>)> {
    let (mut clean, mut named, mut lawful, mut wrong) = (0, 0, 0, Vec::new());
    for case in cases {
        let (outcome, line) = judge(program, folder, case)?;
        match outcome {
            Outcome::Clean => clean += 1,
            Outcome::Named => named += 1,
            Outcome::Lawful => lawful += 1,
            Outcome::Wrong => wrong.push(case.name.clone()),
        }
        if is_verbose || outcome == Outcome::Wrong {
            println!("{:24} {line}", case.name);
        }
    }
    let summary = format!(
        "{} cases: {clean} undamaged and clean, {named} damaged or refused and named, {lawful} damaged within the rules and clean, {} wrong",
        cases.len(),
        wrong.len()
    );
    Ok((summary, wrong))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Clean,
    Named,
    Lawful,
    Wrong,
}

/// Unpacks a case, checks it, and compares.
fn judge(program: &Path, folder: &Path, case: &Case) -> Result<(Outcome, String)> {
    let scratch = tempfile::Builder::new()
        .prefix("brigade-fsck-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    let images = case.unpack(scratch.path())?;
    let before = stamps(&images)?;
    let checked = check(program, &images)?;
    if stamps(&images)? != before {
        return Ok((Outcome::Wrong, "an image was written to".into()));
    }
    let rules = checked.rules();
    let manifest = manifest(folder, &case.name)?;
    let warnings = checked.of("warning");
    let is_killed = was_killed(folder, &manifest)?;
    let is_known = |finding: &&Value| is_killed && finding["id"] == "F70";
    let is_clean = checked.status == Some(0)
        && checked.of("error").is_empty()
        && warnings.iter().all(is_known);
    let lawful = LAWFUL.iter().find(|(name, _)| *name == case.name);
    let refused = case.refused();
    if !case.is_derived() || lawful.is_some() {
        let errors = checked.of("error");
        let is_named = |file: &String| errors.iter().any(|error| is_on(error, file));
        let outcome = match (is_clean, lawful) {
            (true, Some(_)) => Outcome::Lawful,
            (true, None) if refused.is_empty() => Outcome::Clean,
            (false, None) if !refused.is_empty() && refused.iter().all(is_named) => Outcome::Named,
            _ => Outcome::Wrong,
        };
        let why = lawful.map_or("undamaged", |(_, why)| why);
        return Ok((outcome, format!("{why}: {}", shown(&checked))));
    }
    let patches = manifest["derive"]["patches"]
        .as_array()
        .map_or(&[][..], |all| all);
    let hits: Vec<&Value> = ["error", "warning"]
        .iter()
        .flat_map(|severity| checked.of(severity))
        .filter(|finding| patches.iter().any(|patch| is_of(patch, finding)))
        .collect();
    let is_refused = !refused.is_empty();
    let is_said = checked.status == Some(4) || !is_refused;
    let title = case.title();
    if hits.is_empty() || !is_said {
        return Ok((Outcome::Wrong, format!("{title}: {}", shown(&checked))));
    }
    let structures: Vec<String> = hits
        .iter()
        .take(3)
        .map(|hit| {
            let text = |key: &str| hit[key].as_str().unwrap_or("?").to_owned();
            format!("{} {}", text("id"), text("structure"))
        })
        .collect();
    Ok((
        Outcome::Named,
        format!("{title}: {} [{rules}]", structures.join("; ")),
    ))
}

fn shown(checked: &Checked) -> String {
    let all = ["error", "warning"].iter().flat_map(|s| checked.of(s));
    let lines: Vec<String> = all.take(4).map(|finding| finding.to_string()).collect();
    format!(
        "status {:?} [{}] {} {}",
        checked.status,
        checked.rules(),
        lines.join("\n    "),
        checked.errors.trim()
    )
}

/// Size and time of every image, as far as they exist.
fn stamps(images: &[std::path::PathBuf]) -> Result<Vec<(u64, std::time::SystemTime)>> {
    let stamp = |path: &std::path::PathBuf| {
        let metadata = std::fs::metadata(path).context("no image")?;
        let modified = metadata.modified().context("no time")?;
        Ok((metadata.len(), modified))
    };
    images.iter().map(stamp).collect()
}

fn manifest(folder: &Path, name: &str) -> Result<Value> {
    let path = folder.join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).context("cannot read the manifest")?;
    serde_json::from_str(&text).context("the manifest")
}

/// Whether the machine was killed over the images, of this case or of the one it was made from.
fn was_killed(folder: &Path, manifest: &Value) -> Result<bool> {
    let base = manifest["derive"]["base"].as_str();
    let base = base.map(|base| self::manifest(folder, base)).transpose()?;
    let recipe = &base.as_ref().unwrap_or(manifest)["recipe"];
    Ok(!recipe["kill"].is_null())
}

/// Whether a finding is about this image.
fn is_on(finding: &Value, file: &str) -> bool {
    let device = finding["device"].as_str().unwrap_or_default();
    device.ends_with(&format!("/{file}"))
}

/// Whether a finding names the structure that a patch changed.
fn is_of(patch: &Value, finding: &Value) -> bool {
    if !is_on(finding, patch["file"].as_str().unwrap_or_default()) {
        return false;
    }
    let Some(start) = patch["offset"].as_u64() else {
        // Cut short: the device itself was damaged.
        return true;
    };
    let length = match (patch["zero"].as_u64(), patch["hex"].as_str()) {
        (Some(zeros), _) => zeros,
        (None, hex) => hex.map_or(0, |hex| hex.len() as u64 / 2),
    };
    let number = |key: &str| finding[key].as_u64().unwrap_or(0);
    let (from, bytes) = (number("start_bytes"), number("length_bytes"));
    from < start.saturating_add(length) && start < from.saturating_add(bytes)
}
