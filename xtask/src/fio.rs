//! fio against an NBD server: writes whose content it verifies itself, for as long as it is let, or one whole pass.

use crate::process::{Context, Result, last_lines, need_programs, output};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Writes until the oldest of them are read back.
const BACKLOG: u32 = 128;
const DEPTH: u32 = 8;
/// What fio ends with on SIGINT.
const INTERRUPTED: i32 = 128;

/// Where and how much.
#[derive(Clone, Debug)]
pub struct Target {
    /// Address of the export.
    pub uri: String,
    /// Bytes from the beginning on, a multiple of those of a job.
    pub bytes: u64,
    /// Jobs beside each other, each with a part.
    pub jobs: u64,
    /// What its data follows from.
    pub seed: u64,
}

/// What it saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Requests.
    pub reads: u64,
    /// Requests.
    pub writes: u64,
    /// Longest time from submission to completion.
    pub longest: Duration,
}

/// A fio that goes on until it is ended.
pub struct Fio {
    child: Child,
    log: PathBuf,
    errors: PathBuf,
}

impl Drop for Fio {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether there is a fio that speaks NBD; installs one if it may.
pub fn speaks_nbd() -> Result<bool> {
    need_programs(&[("fio", "fio")])?;
    let engines = output(Command::new("fio").arg("--enghelp"))?;
    Ok(engines.lines().any(|line| line.trim() == "nbd"))
}

fn command(target: &Target, folder: &Path) -> Command {
    let mut fio = Command::new("fio");
    fio.current_dir(folder)
        .args(["--ioengine=nbd", "--rw=randwrite", "--bsrange=4k-32k"])
        .args([
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ])
        .args(["--thread", "--fsync=64", "--output-format=json"])
        .arg(format!("--iodepth={DEPTH}"))
        .arg(format!("--uri={}", target.uri))
        .arg(format!("--randseed={}", target.seed & 0xffff_ffff));
    fio
}

fn jobs(fio: &mut Command, target: &Target) {
    let part = target.bytes / target.jobs;
    for job in 0..target.jobs {
        fio.arg(format!("--name=job{job}"))
            .arg(format!("--offset={}", job * part))
            .arg(format!("--size={part}"));
    }
}

impl Fio {
    /// Writes and reads back again and again, at most `rate` writes a second and job.
    pub fn start(target: &Target, rate: u64, folder: &Path, name: &str) -> Result<Fio> {
        let [log, errors] = ["json", "err"].map(|end| folder.join(format!("fio-{name}.{end}")));
        let mut fio = command(target, folder);
        fio.args(["--loops=1000000", &format!("--verify_backlog={BACKLOG}")])
            .arg(format!("--rate_iops={rate}"))
            .arg(format!("--output={}", log.display()));
        jobs(&mut fio, target);
        let file = fs::File::create(&errors).context("cannot make a log file")?;
        let child = fio
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("cannot start fio")?;
        Ok(Fio { child, log, errors })
    }

    /// Fails if it has ended by itself.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait().context("cannot wait for fio")? {
            None => Ok(()),
            Some(status) => Err(format!("fio ended with {status}: {}", self.said())),
        }
    }

    fn said(&self) -> String {
        let text = fs::read_to_string(&self.errors).unwrap_or_default();
        last_lines(&text, 6)
    }

    /// Has it end, and judges it.
    pub fn end(mut self) -> Result<Report> {
        self.check()?;
        let interrupt = format!("kill -INT {}", self.child.id());
        output(Command::new("sh").args(["-c", &interrupt]))?;
        let status = self.child.wait().context("cannot wait for fio")?;
        if !matches!(status.code(), Some(0 | INTERRUPTED)) {
            return Err(format!("fio ended with {status}: {}", self.said()));
        }
        let text = fs::read_to_string(&self.log).context("fio's report")?;
        report(&text).map_err(|why| format!("{why}: {}", self.said()))
    }
}

/// Writes all of it once, without reading it.
pub fn write_all(target: &Target, folder: &Path) -> Result<Report> {
    whole(target, folder, "--do_verify=0")
}

/// Reads all of what [`write_all`] wrote, and verifies it.
pub fn verify_all(target: &Target, folder: &Path) -> Result<Report> {
    whole(target, folder, "--verify_only=1")
}

fn whole(target: &Target, folder: &Path, how: &str) -> Result<Report> {
    let mut fio = command(target, folder);
    fio.arg(how);
    jobs(&mut fio, target);
    report(&output(&mut fio)?)
}

/// Judges what fio says in JSON; there may be other lines before it.
fn report(text: &str) -> Result<Report> {
    let start = text.find('{').ok_or("fio's report is empty")?;
    let said: Value = serde_json::from_str(&text[start..]).context("fio's report")?;
    let jobs = said["jobs"].as_array().filter(|jobs| !jobs.is_empty());
    let mut report = Report::default();
    for job in jobs.ok_or("fio's report has no jobs")? {
        if job["error"].as_i64() != Some(0) {
            return Err(format!("fio: {}: error {}", job["jobname"], job["error"]));
        }
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        report.reads += number(&job["read"]["total_ios"]);
        report.writes += number(&job["write"]["total_ios"]);
        for kind in ["read", "write"] {
            let longest = Duration::from_nanos(number(&job[kind]["clat_ns"]["max"]));
            report.longest = report.longest.max(longest);
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_adds_up_its_jobs_and_an_error_of_any_is_one() {
        let job = |error: u32| {
            format!(
                "{{\"jobname\": \"a\", \"error\": {error}, \"read\": {{\"total_ios\": 2, \"clat_ns\": {{\"max\": 7}}}}, \
                 \"write\": {{\"total_ios\": 3, \"clat_ns\": {{\"max\": 9}}}}}}"
            )
        };
        let text = |errors: [u32; 2]| {
            let jobs = errors.map(job).join(", ");
            format!("fio: connected\n{{\"jobs\": [{jobs}]}}")
        };
        let fine = report(&text([0, 0])).expect("no error");
        assert_eq!((fine.reads, fine.writes), (4, 6));
        assert_eq!(fine.longest, Duration::from_nanos(9));
        assert!(report(&text([0, 84])).is_err());
        assert!(report("{\"jobs\": []}").is_err() && report("").is_err());
    }
}
