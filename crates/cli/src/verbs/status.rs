//! `brigade status` and `brigade stop`: clients of the control socket.

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
    for volume in status["volumes"].as_array().into_iter().flatten() {
        page += &volume_text(volume);
    }
    for error in status["errors"].as_array().into_iter().flatten() {
        page += &format!("error: {}\n", word(error));
    }
    page
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
    }
    page
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn word(value: &Value) -> String {
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
    fn the_page_says_what_the_status_says_and_bears_what_is_missing() {
        let status = json!({"cache_set": {"uuid": "u", "state": "running", "devices": [{"path": "c", "bucket_bytes": 4096}]},
            "volumes": [{"name": "volume0", "size_bytes": 1048576, "mode": "writeback", "reads": {"hits": 3, "hit_bytes": 2048}}],
            "errors": ["x\ny"]});
        let page = text(&status);
        assert!(
            page.contains("volume volume0: 1M, writeback")
                && page.contains("hits 3")
                && page.contains("hit_bytes 2k")
        );
        assert!(page.contains("error: x y\n"));
        assert_eq!(text(&json!(7)), "");
    }
}
