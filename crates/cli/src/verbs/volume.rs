//! `brigade volume`: makes, deletes, resizes and names volumes of a running server, and ends serving one.

use crate::client;
use crate::failure::Outcome;
use crate::flags::{ServerFlags, VolumeFlags, VolumeVerb};
use crate::output::{print_json, say};
use crate::size::show_size;
use crate::verbs::status::word;
use serde_json::{Value, json};
use std::time::Duration;

/// Longest wait for an answer: what lies behind a new end is dropped first.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(600));

/// Does what is asked for and says what came of it.
pub fn volume(flags: &VolumeFlags) -> Outcome {
    match &flags.verb {
        VolumeVerb::Create(flags) => {
            let body = json!({ "size": flags.size, "label": flags.label, "set": flags.set });
            let made = send(&flags.server, "POST", "/v1/volumes", Some(&body))?;
            let (name, size) = (word(&made["name"]), bytes(&made));
            told(&flags.server, &made, &format!("{name}: made, {size}"))
        }
        VolumeVerb::Delete(flags) => {
            let path = format!("/v1/volumes/{}", escaped(&flags.volume));
            let deleted = send(&flags.server, "DELETE", &path, None)?;
            told(
                &flags.server,
                &deleted,
                &format!("{}: deleted", flags.volume),
            )
        }
        VolumeVerb::Resize(flags) => {
            let path = format!("/v1/volumes/{}/resize", escaped(&flags.volume));
            let body = json!({ "size": flags.size, "shrink": flags.shrink });
            let resized = send(&flags.server, "POST", &path, Some(&body))?;
            let text = format!(
                "{}: {}; clients see it when they connect again",
                flags.volume,
                bytes(&resized)
            );
            told(&flags.server, &resized, &text)
        }
        VolumeVerb::Label(flags) => {
            let path = format!("/v1/volumes/{}/label", escaped(&flags.volume));
            let body = json!({ "label": flags.label });
            let labelled = send(&flags.server, "POST", &path, Some(&body))?;
            let text = format!("{}: label {:?}", flags.volume, flags.label);
            told(&flags.server, &labelled, &text)
        }
        VolumeVerb::Stop(flags) => {
            let path = format!("/v1/volumes/{}/stop", escaped(&flags.volume));
            let stopped = send(&flags.server, "POST", &path, None)?;
            told(
                &flags.server,
                &stopped,
                &format!("{}: not served any more", flags.volume),
            )
        }
    }
}

fn send(server: &ServerFlags, method: &str, path: &str, body: Option<&Value>) -> Outcome<Value> {
    let socket = client::find(server.control.as_deref())?;
    client::send(&socket, method, path, body, PATIENCE)
}

fn told(server: &ServerFlags, value: &Value, text: &str) -> Outcome {
    match server.json {
        true => print_json(value),
        false => say!("{text}"),
    }
}

fn bytes(volume: &Value) -> String {
    show_size(volume["size_bytes"].as_u64().unwrap_or(0))
}

/// A name as a part of a URL.
fn escaped(name: &str) -> String {
    let mut escaped = String::new();
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                escaped.push(char::from(byte));
            }
            other => escaped += &format!("%{other:02X}"),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_anything_in_it_stays_one_part_of_a_url() {
        assert_eq!(escaped("volume0"), "volume0");
        assert_eq!(escaped("a b/c?ä"), "a%20b%2Fc%3F%C3%A4");
    }
}
