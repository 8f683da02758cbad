//! `brigade drain`: has all dirty data written back, by a running server or without one, and waits until it is.
//!
//! It is over for a volume when the server says so of the drain that was asked for. Without a server the set is opened with no frontend,
//! drained and stopped in order; whatever ends that early leaves a set that can be drained again, from where it was.

use super::serve::heed_signals;
use super::status::{number, word};
use crate::client;
use crate::failure::{Failure, Outcome, one_line};
use crate::flags::DrainFlags;
use crate::output::{print_json, say};
use crate::progress::Progress;
use crate::size::show_size;
use brigade::{Builder, Handle};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often the server is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Longest wait for an answer.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));

/// Drains, shows how it goes, says what was done.
pub fn drain(flags: &DrainFlags) -> Outcome {
    if !flags.cache.is_empty() {
        return offline(flags);
    }
    let socket = client::find(flags.control.as_deref())?;
    if flags.cancel {
        let said = post(&socket, "/v1/drain/cancel", flags)?;
        return match (flags.json, said["cancelled"] == true) {
            (true, _) => print_json(&said),
            (false, true) => say!("cancelled; what was written back stays so"),
            (false, false) => say!("there was no drain"),
        };
    }
    let asked = post(&socket, "/v1/drain", flags)?;
    if flags.no_wait {
        return match flags.json {
            true => print_json(&asked),
            false => say!("asked for; `brigade status` tells how it goes"),
        };
    }
    let status = || client::request(&socket, "GET", "/v1/status", PATIENCE);
    say_report(flags, &wait(&asked, status)?)
}

fn post(socket: &Path, path: &str, flags: &DrainFlags) -> Outcome<Value> {
    let body = flags
        .volume
        .as_ref()
        .map(|volume| json!({ "volume": volume }));
    client::send(socket, "POST", path, body.as_ref(), PATIENCE)
}

/// Opens the set, drains it, stops it.
fn offline(flags: &DrainFlags) -> Outcome {
    let ending = heed_signals()?;
    let builder = flags.cache.iter().fold(Builder::new(), Builder::cache);
    let builder = flags.backing.iter().fold(builder, Builder::backing);
    let builder = flags.state_dir.iter().fold(builder, Builder::state_dir);
    let handle = builder.open().map_err(Failure::cannot)?;
    let _ = ending.set(handle.clone());
    for warning in handle.warnings() {
        eprintln!("brigade: warning: {}", one_line(warning));
    }
    let drained = drain_open(&handle);
    let stopped = handle.stop().map_err(Failure::cannot);
    let report = drained?;
    stopped?;
    say_report(flags, &report)
}

fn drain_open(handle: &Handle) -> Outcome<Value> {
    let status = || handle.status().map_err(|_| stopped_early());
    let before = status()?;
    for volume in list(&before["volumes"]).filter(|it| number(&it["dirty_bytes"]) > 0) {
        eprintln!(
            "brigade: {} of dirty data of volume {} go to {}",
            show_size(number(&volume["dirty_bytes"])),
            word(&volume["name"]),
            word(&volume["path"])
        );
    }
    let asked = handle.drain(None).map_err(Failure::cannot)?;
    wait(&asked, status)
}

fn stopped_early() -> Failure {
    Failure::cannot("stopped in order before everything was written back; run it again to go on")
}

/// Looks until every volume that was asked for is through, and gives what is said in the end.
fn wait(asked: &Value, status: impl Fn() -> Outcome<Value>) -> Outcome<Value> {
    let began = Instant::now();
    let mut progress = Progress::default();
    loop {
        let status = status().inspect_err(|_| progress.end())?;
        let steps: Vec<Step> = list(&asked["volumes"])
            .map(|name| how_far(name, &status))
            .collect();
        let failed = steps.iter().find_map(|step| match step {
            Step::Failed(why) => Some(why),
            _ => None,
        });
        if let Some(why) = failed {
            progress.end();
            return Err(Failure::cannot(why));
        }
        let going = steps.iter().find_map(|step| match step {
            Step::Going(how) => Some(how),
            _ => None,
        });
        match going {
            Some(how) => progress.show(how),
            None => {
                progress.end();
                let volumes: Vec<Value> = steps.into_iter().filter_map(Step::report).collect();
                return Ok(json!({ "seconds": began.elapsed().as_secs_f64(), "volumes": volumes }));
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// Where a volume stands.
#[derive(Debug, PartialEq)]
enum Step {
    Done(Value),
    Going(String),
    Failed(String),
}

impl Step {
    fn report(self) -> Option<Value> {
        match self {
            Step::Done(report) => Some(report),
            _ => None,
        }
    }
}

fn how_far(name: &Value, status: &Value) -> Step {
    let shown = word(name);
    let mut volumes = list(&status["volumes"]);
    let Some(volume) = volumes.find(|volume| volume["name"] == *name) else {
        return Step::Failed(format!("volume {shown} is not served any more"));
    };
    let drain = &volume["writeback"]["drain"];
    let left = number(&drain["left_bytes"]);
    match drain["state"].as_str() {
        Some("running") => match hopeless(drain, status) {
            None => Step::Going(going(&shown, drain)),
            Some(why) => Step::Failed(format!(
                "volume {shown} is not drained, {} are left: {why}",
                show_size(left)
            )),
        },
        Some("cancelled" | "stopped") => Step::Failed(format!(
            "volume {shown}: the drain was {}, {} are left",
            word(&drain["state"]),
            show_size(left)
        )),
        Some("failed") => Step::Failed(format!(
            "volume {shown}: the drain has failed, {} are left: {}",
            show_size(left),
            word(&drain["last_error"])
        )),
        // Nothing of it could be dirty, or nothing is.
        _ => Step::Done(json!({
            "name": name,
            "dirty_at_start_bytes": number(&drain["dirty_at_start_bytes"]),
            "written_bytes": number(&drain["written_bytes"]),
            "left_bytes": left,
            "seconds": drain["seconds"].as_f64().unwrap_or(0.0),
        })),
    }
}

/// Why a drain that is under way cannot get there any more. What else is wrong is tried again.
fn hopeless(drain: &Value, status: &Value) -> Option<String> {
    let last = drain["last_error"].as_str();
    if let Some(why) = last.filter(|why| why.starts_with("poisoned: ")) {
        return Some(why.to_owned());
    }
    let mut sets = list(&status["cache_sets"]).peekable();
    if sets.peek().is_none() || sets.any(|set| set["state"] != "poisoned") {
        return None;
    }
    let errors: Vec<String> = list(&status["errors"]).map(word).collect();
    Some(errors.join("; "))
}

fn going(name: &str, drain: &Value) -> String {
    let mut line = format!(
        "drain of {name}: {} of {} left",
        show_size(number(&drain["left_bytes"])),
        show_size(number(&drain["dirty_at_start_bytes"])),
    );
    if let Some(eta) = drain["eta_seconds"].as_f64() {
        line += &format!(
            ", {}/s, {eta:.0} s to go",
            show_size(number(&drain["bytes_per_second"]))
        );
    }
    if !drain["last_error"].is_null() {
        line += &format!(" (tried again: {})", word(&drain["last_error"]));
    }
    line
}

/// What `status` says of writing back.
pub fn writeback_text(writeback: &Value) -> String {
    let drain = &writeback["drain"];
    let how = if drain["state"] == "running" {
        going("all of it", drain)
    } else if writeback["running"] == false {
        "off".to_owned()
    } else if writeback["urgent"] == true || writeback["idle"] == true {
        "at full speed".to_owned()
    } else {
        format!("{}/s", show_size(number(&writeback["rate"])))
    };
    format!(
        "{how}, {} are meant to be dirty",
        show_size(number(&writeback["target"]))
    )
}

fn say_report(flags: &DrainFlags, report: &Value) -> Outcome {
    if flags.json {
        return print_json(report);
    }
    for volume in list(&report["volumes"]) {
        let (name, written) = (word(&volume["name"]), number(&volume["written_bytes"]));
        let written = show_size(written);
        match number(&volume["left_bytes"]) {
            0 => say!("volume {name}: nothing is dirty any more, {written} were written back")?,
            left => say!(
                "volume {name}: what was dirty is written back, {written} in all; {} became dirty meanwhile",
                show_size(left)
            )?,
        }
    }
    if list(&report["volumes"]).next().is_none() {
        say!("no volume here has dirty data of a backing device")?;
    }
    Ok(())
}

fn list(values: &Value) -> impl Iterator<Item = &Value> {
    values.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(drain: Value) -> Value {
        json!({"volumes": [{"name": "v", "writeback": {"drain": drain}}], "errors": []})
    }

    #[test]
    fn a_drain_is_over_when_the_server_says_so() {
        let running = json!({"state": "running", "left_bytes": 4096, "dirty_at_start_bytes": 8192,
            "bytes_per_second": 1024, "eta_seconds": 4.2});
        let Step::Going(how) = how_far(&json!("v"), &status(running.clone())) else {
            panic!("it is under way");
        };
        for part in ["4k of 8k", "1k/s", "4 s to go"] {
            assert!(how.contains(part), "{part}: {how}");
        }
        let mut early = running.clone();
        early["eta_seconds"] = Value::Null;
        let Step::Going(how) = how_far(&json!("v"), &status(early)) else {
            panic!("it is under way");
        };
        assert!(!how.contains("to go"), "{how}");
        let done = json!({"state": "done", "written_bytes": 8192, "dirty_at_start_bytes": 8192, "seconds": 1.5});
        let Step::Done(report) = how_far(&json!("v"), &status(done)) else {
            panic!("it is over");
        };
        assert_eq!(report["written_bytes"], 8192);
    }

    #[test]
    fn the_line_of_the_status_says_how_fast_and_what_for() {
        let of = |key: &str, value: Value| {
            let mut writeback = json!({"running": true, "rate": 4096, "target": 1048576});
            writeback[key] = value;
            writeback_text(&writeback)
        };
        assert_eq!(of("x", 1.into()), "4k/s, 1M are meant to be dirty");
        assert!(of("running", false.into()).starts_with("off"));
        assert!(of("idle", true.into()).starts_with("at full speed"));
        let drain = json!({"state": "running", "left_bytes": 4096, "dirty_at_start_bytes": 8192});
        assert!(of("drain", drain).contains("4k of 8k left"));
    }

    #[test]
    fn what_else_is_wrong_does_not_end_a_drain_that_goes_on() {
        let drain = json!({"state": "running", "left_bytes": 4096, "last_error": "read: EIO"});
        let mut status = status(drain);
        status["cache_sets"] = json!([{"state": "running"}]);
        status["errors"] = json!(["cache: read: EIO (1 errors so far)"]);
        let step = how_far(&json!("v"), &status);
        assert!(matches!(step, Step::Going(how) if how.contains("EIO")));
    }

    #[test]
    fn a_drain_that_does_not_get_there_is_a_failure() {
        let of = |status: &Value| how_far(&json!("v"), status);
        for state in ["cancelled", "stopped"] {
            let ended = status(json!({"state": state, "left_bytes": 4096}));
            assert!(
                matches!(of(&ended), Step::Failed(why) if why.contains(state) && why.contains("4k"))
            );
        }
        let mut poisoned = status(json!({"state": "running"}));
        poisoned["errors"] = json!(["b: flush: EIO"]);
        poisoned["cache_sets"] = json!([{"state": "poisoned"}]);
        assert!(matches!(of(&poisoned), Step::Failed(why) if why.contains("EIO")));
        let backing = status(json!({"state": "running", "last_error": "poisoned: flush: EIO"}));
        assert!(matches!(of(&backing), Step::Failed(why) if why.contains("EIO")));
        assert!(matches!(of(&json!({})), Step::Failed(_)));
    }
}
