//! `brigade attach`: a device joins the cache of a running server, and is served by it.

use crate::client;
use crate::failure::{Failure, Outcome};
use crate::flags::AttachFlags;
use crate::output::{print_json, say};
use crate::verbs::status::word;
use serde_json::json;
use std::time::Duration;

/// Longest wait for an answer: slots that were given up may have to be swept first.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(120));

/// Asks for it and says what it is served as.
pub fn attach(flags: &AttachFlags) -> Outcome {
    let socket = client::find(flags.control.as_deref())?;
    // The server may have been started elsewhere.
    let device = std::path::absolute(&flags.device)
        .map_err(|error| Failure::cannot(format!("{}: {error}", flags.device.display())))?;
    let body = json!({ "device": device, "set": flags.set });
    let volume = client::send(&socket, "POST", "/v1/attach", Some(&body), PATIENCE)?;
    if flags.json {
        return print_json(&volume);
    }
    let (name, state) = (word(&volume["name"]), word(&volume["state"]));
    let mode = word(&volume["mode"]);
    say!(
        "{}: attached as {name}, {state}, {mode}",
        flags.device.display()
    )
}
