//! `brigade gc`: has a running server collect, and waits until it has.
//!
//! The server is asked once and then looked at: the collection is its own affair and goes on whether or not somebody waits. It is
//! over for a set when that set has done a pass more than it had when it was asked.

use super::status::{number, show_micros, word};
use crate::client;
use crate::failure::{Failure, Outcome};
use crate::flags::GcFlags;
use crate::output::{print_json, say};
use crate::progress::Progress;
use crate::size::show_size;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

/// How often the server is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Longest wait for an answer.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));

/// Asks for a collection, shows how it goes, says what it did.
pub fn gc(flags: &GcFlags) -> Outcome {
    let socket = client::find(flags.control.as_deref())?;
    if flags.pause || flags.resume {
        return pause(&socket, flags);
    }
    let before = status(&socket)?;
    let asked = client::request(&socket, "POST", "/v1/gc", PATIENCE)?;
    if flags.no_wait {
        return match flags.json {
            true => print_json(&asked),
            false => say!("asked for; `brigade status` tells how it goes"),
        };
    }
    let began = Instant::now();
    let after = wait(&socket, &asked)?;
    let reports: Vec<Value> = sets(&asked["sets"])
        .map(|set| report(set, &before, &after))
        .collect();
    if flags.json {
        let seconds = began.elapsed().as_secs_f64();
        return print_json(&json!({ "seconds": seconds, "sets": reports }));
    }
    for report in &reports {
        say!("{}", text(report))?;
    }
    Ok(())
}

fn pause(socket: &Path, flags: &GcFlags) -> Outcome {
    let path = match flags.pause {
        true => "/v1/gc/pause",
        false => "/v1/gc/resume",
    };
    let said = client::request(socket, "POST", path, PATIENCE)?;
    match (flags.json, flags.pause) {
        (true, _) => print_json(&said),
        (false, true) => say!("garbage collection rests; `brigade gc --resume` lets it go on"),
        (false, false) => say!("garbage collection goes on"),
    }
}

fn status(socket: &Path) -> Outcome<Value> {
    client::request(socket, "GET", "/v1/status", PATIENCE)
}

/// Looks until every set that was asked is through, and gives the last status.
fn wait(socket: &Path, asked: &Value) -> Outcome<Value> {
    let mut progress = Progress::default();
    loop {
        let status = status(socket)?;
        let mut left = None;
        for set in sets(&asked["sets"]) {
            match how_far(set, &status) {
                Step::Done => {}
                Step::Failed(why) => {
                    progress.end();
                    return Err(Failure::cannot(why));
                }
                Step::Going(how) => left = Some(how),
            }
        }
        match left {
            None => {
                progress.end();
                return Ok(status);
            }
            Some(how) => progress.show(&how),
        }
        std::thread::sleep(LOOK);
    }
}

/// Where a set stands.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Done,
    Going(String),
    Failed(String),
}

fn how_far(asked: &Value, status: &Value) -> Step {
    let Some(set) = find(&asked["uuid"], status) else {
        return Step::Failed(format!(
            "cache set {} is not served any more",
            word(&asked["uuid"])
        ));
    };
    let gc = &set["gc"];
    if set["state"] != "running" {
        let errors: Vec<String> = sets(&status["errors"]).map(word).collect();
        return Step::Failed(format!(
            "the garbage collection of cache set {} did not end: the set is {}: {}",
            word(&set["uuid"]),
            word(&set["state"]),
            errors.join("; ")
        ));
    }
    if gc["running"] == true {
        return Step::Going(format!(
            "gc ({}): {}%, {} s left",
            word(&gc["reason"]),
            number(&gc["progress_percent"]),
            number(&gc["eta_seconds"])
        ));
    }
    if number(&gc["failed_passes"]) > number(&asked["failed_passes"]) {
        return Step::Failed(format!(
            "the garbage collection of cache set {} failed: {}",
            word(&set["uuid"]),
            word(&gc["last_failure"])
        ));
    }
    match number(&gc["passes"]) > number(&asked["passes"]) {
        true => Step::Done,
        // There may be no buckets for it at the moment; the server tries again.
        false => Step::Going("gc: waits for its turn".to_owned()),
    }
}

/// What is said of one set in the end; what the server does not tell is left out.
fn report(asked: &Value, before: &Value, after: &Value) -> Value {
    let metadata = |status: &Value| -> u64 {
        let set = find(&asked["uuid"], status);
        let devices = set.and_then(|set| set["devices"].as_array());
        let each = devices.into_iter().flatten();
        each.map(|device| number(&device["metadata_written_bytes"]))
            .sum()
    };
    let gc = find(&asked["uuid"], after).map_or(&Value::Null, |set| &set["gc"]);
    let mut report = json!({
        "uuid": asked["uuid"],
        "passes": gc["passes"],
        "passes_waited_for": number(&gc["passes"]).saturating_sub(number(&asked["passes"])),
        "reason": gc["reason"],
        "longest_step_us": gc["longest_step_us"],
        "generations_behind": gc["generations_behind"],
        "metadata_written_bytes": metadata(after).saturating_sub(metadata(before)),
    });
    if let Some(moved) = gc["moved_bytes"].as_u64() {
        let earlier =
            find(&asked["uuid"], before).map_or(0, |set| number(&set["gc"]["moved_bytes"]));
        report["moved_bytes"] = moved.saturating_sub(earlier).into();
    }
    report
}

fn text(report: &Value) -> String {
    let mut line = format!(
        "cache set {}: pass {} is done ({}), generations {} behind, {} of metadata written meanwhile",
        word(&report["uuid"]),
        number(&report["passes"]),
        word(&report["reason"]),
        number(&report["generations_behind"]),
        show_size(number(&report["metadata_written_bytes"])),
    );
    if let Some(moved) = report["moved_bytes"].as_u64() {
        line += &format!(", {} moved", show_size(moved));
    }
    line + &format!(
        ", longest background step so far {}",
        show_micros(number(&report["longest_step_us"]))
    )
}

fn find<'a>(uuid: &Value, status: &'a Value) -> Option<&'a Value> {
    sets(&status["cache_sets"]).find(|set| set["uuid"] == *uuid)
}

fn sets(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: &str, running: bool, passes: u64) -> Value {
        json!({"cache_sets": [{"uuid": "u", "state": state, "devices": [{"metadata_written_bytes": passes * 4096}],
            "gc": {"running": running, "reason": "asked for", "progress_percent": 40, "eta_seconds": 3, "passes": passes,
                "longest_step_us": 2500, "generations_behind": 1}}],
            "errors": ["cache.img: journal at byte 8192: no room"]})
    }

    #[test]
    fn it_is_over_when_there_is_a_pass_more_and_none_under_way() {
        let asked = json!({"uuid": "u", "passes": 4});
        let step = |state, running, passes| how_far(&asked, &status(state, running, passes));
        assert_eq!(step("running", false, 5), Step::Done);
        assert!(matches!(step("running", false, 4), Step::Going(_)));
        assert!(
            matches!(step("running", true, 4), Step::Going(how) if how.contains("40%") && how.contains("3 s"))
        );
        assert!(matches!(step("running", true, 5), Step::Going(_)));
    }

    #[test]
    fn a_set_that_is_poisoned_or_gone_is_not_waited_for() {
        let asked = json!({"uuid": "u", "passes": 4});
        let Step::Failed(why) = how_far(&asked, &status("poisoned", false, 4)) else {
            panic!("it waits");
        };
        assert!(
            why.contains("poisoned") && why.contains("byte 8192"),
            "{why}"
        );
        let gone = json!({"cache_sets": [], "errors": []});
        assert!(matches!(how_far(&asked, &gone), Step::Failed(_)));
    }

    #[test]
    fn the_report_counts_what_came_since_and_bears_what_is_missing() {
        let asked = json!({"uuid": "u", "passes": 4});
        let mut after = status("running", false, 5);
        let report_of = |after: &Value| report(&asked, &status("running", false, 4), after);
        let line = text(&report_of(&after));
        assert!(
            line.contains("pass 5") && line.contains("4k of metadata") && line.contains("2.5 ms"),
            "{line}"
        );
        assert!(!line.contains("moved"), "{line}");
        after["cache_sets"][0]["gc"]["moved_bytes"] = 8192.into();
        assert!(text(&report_of(&after)).contains("8k moved"));
        text(&report(&asked, &json!(7), &json!(null)));
    }
}
