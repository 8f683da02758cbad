//! `brigade status` and `brigade stop`: clients of the control socket.

use super::drain::writeback_text;
use crate::client;
use crate::failure::{Outcome, one_line};
use crate::flags::{StatusFlags, StopFlags};
use crate::output::print_json;
use crate::size::show_size;
use serde_json::Value;
use std::io::Write;
use std::time::Duration;

/// Prints what a server is doing.
pub fn status(flags: &StatusFlags) -> Outcome {
    let socket = client::find(flags.control.as_deref())?;
    let status = client::request(&socket, "GET", "/v1/status", Some(Duration::from_secs(30)))?;
    if flags.json {
        return print_json(&status);
    }
    let mut out = std::io::stdout().lock();
    out.write_all(text(&status).as_bytes())?;
    Ok(())
}

/// Stops a server and waits until it has stopped.
pub fn stop(flags: &StopFlags) -> Outcome {
    let socket = client::find(flags.control.as_deref())?;
    client::request(&socket, "POST", "/v1/stop", None)?;
    Ok(())
}

/// A page of text; whatever is missing in the answer is left out.
pub fn text(status: &Value) -> String {
    let mut page = String::new();
    let set = &status["cache_set"];
    if set.is_object() {
        page += &format!(
            "cache set {}: {}\n",
            word(&set["uuid"]),
            word(&set["state"])
        );
    }
    for device in set["devices"].as_array().into_iter().flatten() {
        let buckets = &device["buckets"];
        page += &format!(
            "  {}: {} buckets of {} ({} free, {} clean, {} dirty, {} metadata)\n",
            word(&device["path"]),
            number(&buckets["total"]),
            show_size(number(&device["bucket_bytes"])),
            number(&buckets["free"]),
            number(&buckets["clean"]),
            number(&buckets["dirty"]),
            number(&buckets["metadata"]),
        );
    }
    if set["gc"].is_object() {
        page += &format!("  gc: {}\n", gc_text(&set["gc"]));
    }
    for volume in status["volumes"].as_array().into_iter().flatten() {
        page += &volume_text(volume);
    }
    for error in status["errors"].as_array().into_iter().flatten() {
        page += &format!("error: {}\n", word(error));
    }
    page
}

/// What garbage collection did, why it ran, how far it is, and how long requests may have to wait for it.
pub fn gc_text(gc: &Value) -> String {
    let (passes, reason) = (number(&gc["passes"]), word(&gc["reason"]));
    let mut parts = vec![match passes {
        1 => "1 pass".to_owned(),
        _ => format!("{passes} passes"),
    }];
    if gc["running"] == true {
        parts.push(format!(
            "one under way ({reason}): {}%, {} s left",
            number(&gc["progress_percent"]),
            number(&gc["eta_seconds"]),
        ));
    } else if passes > 0 {
        parts.push(format!("the last one: {reason}"));
    }
    if gc["paused"] == true {
        parts.push("paused".to_owned());
    }
    let failed = number(&gc["failed_passes"]);
    if failed > 0 {
        parts.push(format!("{failed} failed: {}", word(&gc["last_failure"])));
    }
    if gc["marks_built"] == false {
        parts.push("not all buckets are counted yet".to_owned());
    }
    if let Some(moved) = gc["moved_bytes"].as_u64() {
        parts.push(format!("{} moved", show_size(moved)));
    }
    parts.push(format!(
        "generations {} behind",
        number(&gc["generations_behind"])
    ));
    parts.push(format!(
        "longest background step {}",
        show_micros(number(&gc["longest_step_us"]))
    ));
    parts.join(", ")
}

/// A short time.
pub fn show_micros(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros} us"),
        _ => format!("{}.{} ms", micros / 1000, micros / 100 % 10),
    }
}

fn volume_text(volume: &Value) -> String {
    let mut page = format!(
        "volume {}: {}, {}, {}, dirty {}\n",
        word(&volume["name"]),
        show_size(number(&volume["size_bytes"])),
        word(&volume["mode"]),
        word(&volume["state"]),
        show_size(number(&volume["dirty_bytes"])),
    );
    if volume["writeback"].is_object() {
        page += &format!("  writeback: {}\n", writeback_text(&volume["writeback"]));
    }
    for direction in ["reads", "writes"] {
        let counters: Vec<String> = volume[direction]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| {
                let n = value.as_u64()?;
                Some(if key.ends_with("bytes") {
                    format!("{key} {}", show_size(n))
                } else {
                    format!("{key} {n}")
                })
            })
            .collect();
        if !counters.is_empty() {
            page += &format!("  {direction}: {}\n", counters.join(", "));
        }
        for reasons in ["bypassed_by", "not_dirty_by"] {
            let why = reasons_text(&volume[direction][reasons]);
            if !why.is_empty() {
                page += &format!("    {reasons}: {why}\n");
            }
        }
    }
    page
}

/// Those that were the reason of something.
fn reasons_text(reasons: &Value) -> String {
    let reasons = reasons.as_object().into_iter().flatten();
    let named: Vec<String> = reasons
        .filter(|(_, count)| number(count) > 0)
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    named.join(", ")
}

pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

pub(super) fn word(value: &Value) -> String {
    value.as_str().map_or_else(
        || {
            if value.is_null() {
                "-".to_owned()
            } else {
                value.to_string()
            }
        },
        one_line,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_line_about_gc_says_what_it_did_why_and_how_far_it_is() {
        let mut gc = json!({"marks_built": true, "running": false, "reason": "generations", "progress_percent": 100,
            "eta_seconds": 0, "longest_step_us": 1234, "passes": 2, "generations_behind": 7});
        let idle = gc_text(&gc);
        for part in [
            "2 passes",
            "the last one: generations",
            "7 behind",
            "1.2 ms",
        ] {
            assert!(idle.contains(part), "{part}: {idle}");
        }
        assert!(!idle.contains('%') && !idle.contains("counted"), "{idle}");
        gc["running"] = true.into();
        gc["marks_built"] = false.into();
        gc["reason"] = "first count".into();
        gc["progress_percent"] = 40.into();
        gc["eta_seconds"] = 12.into();
        let busy = gc_text(&gc);
        for part in [
            "under way (first count): 40%, 12 s left",
            "not all buckets are counted",
        ] {
            assert!(busy.contains(part), "{part}: {busy}");
        }
    }

    #[test]
    fn the_page_says_what_the_status_says_and_bears_what_is_missing() {
        let status = json!({"cache_set": {"uuid": "u", "state": "running", "devices": [{"path": "c", "bucket_bytes": 4096}]},
            "volumes": [{"name": "volume0", "size_bytes": 1048576, "mode": "writeback", "reads": {"hits": 3, "hit_bytes": 2048, "bypassed_by": {"sequential": 4, "memory": 0}}}],
            "errors": ["x\ny"]});
        let page = text(&status);
        assert!(
            page.contains("volume volume0: 1M, writeback")
                && page.contains("hits 3")
                && page.contains("hit_bytes 2k")
                && page.contains("bypassed_by: sequential 4\n")
        );
        assert!(page.contains("error: x y\n"));
        assert_eq!(text(&json!(7)), "");
    }
}
