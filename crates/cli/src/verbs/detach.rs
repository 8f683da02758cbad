//! `brigade detach`: everything of a volume is written back, and it is served without the cache.
//!
//! It is asked for once and then looked at: the server goes on with it whether or not somebody waits, and it can be cancelled.

use crate::client;
use crate::failure::{Failure, Outcome};
use crate::flags::DetachFlags;
use crate::output::{print_json, say};
use crate::size::show_size;
use crate::verbs::status::word;
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

const LOOK: Duration = Duration::from_millis(100);
const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));

/// Asks for it, shows how it goes, and says how it ended.
pub fn detach(flags: &DetachFlags) -> Outcome {
    let socket = client::find(flags.control.as_deref())?;
    let body = json!({ "volume": flags.volume });
    let path = match flags.cancel {
        true => "/v1/detach/cancel",
        false => "/v1/detach",
    };
    let asked = client::send(&socket, "POST", path, Some(&body), PATIENCE)?;
    if flags.cancel || flags.no_wait {
        return match (flags.json, flags.cancel) {
            (true, _) => print_json(&asked),
            (_, true) => say!("{}: stays attached", flags.volume),
            (_, false) => say!("asked for; `brigade status` tells how it goes"),
        };
    }
    let volume = wait(&socket, &word(&asked["uuid"]))?;
    match flags.json {
        true => print_json(&volume),
        false => say!("{}: detached, served without a cache", flags.volume),
    }
}

fn wait(socket: &Path, uuid: &str) -> Outcome<Value> {
    let is_shown = std::io::stderr().is_terminal();
    loop {
        let status = client::request(socket, "GET", "/v1/status", PATIENCE)?;
        let volumes = status["volumes"].as_array().cloned().unwrap_or_default();
        let volume = volumes.into_iter().find(|volume| volume["uuid"] == uuid);
        let Some(volume) = volume else {
            return Err(Failure::cannot("the volume is not served any more"));
        };
        let detach = &volume["detach"];
        if detach.is_null() {
            return Ok(volume);
        }
        let left = show_size(detach["dirty_bytes"].as_u64().unwrap_or(0));
        if detach["running"] != true {
            let why = word(&detach["trouble"]);
            return Err(Failure::cannot(format!("not detached: {why}")));
        }
        if is_shown {
            let of = show_size(detach["began_with_bytes"].as_u64().unwrap_or(0));
            let _ = write!(
                std::io::stderr(),
                "\r{left} of {of} to be written back \x1b[K"
            );
        }
        std::thread::sleep(LOOK);
    }
}
