//! `brigade set`: shows or changes the settings of a running server.

use super::status::word;
use crate::client;
use crate::failure::Outcome;
use crate::flags::SetFlags;
use crate::output::{print_json, say};
use brigade::definitions::{Knob, Scope};
use serde_json::{Map, Value};
use std::time::Duration;

const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));

/// Changes what is named, or shows all.
pub fn set(flags: &SetFlags) -> Outcome {
    let socket = client::find(flags.control.as_deref())?;
    if flags.settings.is_empty() {
        let all = client::request(&socket, "GET", "/v1/settings", PATIENCE)?;
        return match flags.json {
            true => print_json(&all),
            false => all_text(&all).iter().try_for_each(|line| say!("{line}")),
        };
    }
    let pairs = flags.settings.iter();
    let body: Map<String, Value> = pairs
        .map(|(key, value)| (key.clone(), value.clone().into()))
        .collect();
    let path = match flags.temporary {
        true => "/v1/settings?keep=false",
        false => "/v1/settings",
    };
    let done = client::send(&socket, "PATCH", path, Some(&body.into()), PATIENCE)?;
    if flags.json {
        return print_json(&done);
    }
    for changed in done["changed"].as_array().into_iter().flatten() {
        say!("{}", changed_text(changed))?;
    }
    match done["kept_in"].as_str() {
        Some(path) => say!("kept in {path}"),
        None => Ok(()),
    }
}

fn changed_text(changed: &Value) -> String {
    let value = |key: &str| shown(changed["section"].as_str(), &changed["name"], &changed[key]);
    let mut line = format!(
        "{}.{}: {} (was {})",
        word(&changed["of"]),
        word(&changed["name"]),
        value("is"),
        value("was")
    );
    if changed["was_cut"] == true {
        line += "; that is as far as it goes";
    }
    line
}

/// A value as people read it, if this program knows the setting.
fn shown(section: Option<&str>, name: &Value, value: &Value) -> String {
    let known = || {
        let scope = Scope::of_section(section?)?;
        let row = Knob::named(name.as_str()?, scope)?.definition();
        Some(row.shown(row.parse(&word(value)).ok()?).to_string())
    };
    known().unwrap_or_else(|| word(value))
}

fn all_text(all: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for (section, key, what) in [
        ("cache_set", "cache_sets", "cache set"),
        ("volumes", "volumes", "volume"),
    ] {
        for owner in all[key].as_array().into_iter().flatten() {
            lines.push(format!("{what} {}", word(&owner["name"])));
            for (name, value) in owner["settings"].as_object().into_iter().flatten() {
                let value = shown(Some(section), &name.clone().into(), value);
                lines.push(format!("  {name} = {value}"));
            }
        }
    }
    for differs in all["config"]["differs"].as_array().into_iter().flatten() {
        lines.push(format!(
            "{}.{} is {}, the configuration file says {}",
            word(&differs["of"]),
            word(&differs["name"]),
            word(&differs["is"]),
            word(&differs["configured"])
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_shown_as_people_read_them() {
        let all = json!({"cache_sets": [{"name": "u", "settings": {"errors": "panic"}}],
            "volumes": [{"name": "volume0", "settings": {"sequential_cutoff": 8388608, "new_one": 7}}],
            "config": {"differs": [{"of": "volume0", "name": "x", "is": 1, "configured": 2}]}});
        let text = all_text(&all).join("\n");
        for part in [
            "cache set u\n  errors = panic",
            "sequential_cutoff = 8.0M",
            "new_one = 7",
            "volume0.x is 1",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(all_text(&json!(7)).is_empty());
    }

    #[test]
    fn a_change_says_what_it_was_and_whether_it_was_cut() {
        let changed = json!({"of": "volume0", "section": "volumes", "name": "writeback_percent", "was": 10, "is": 40, "was_cut": true});
        let line = changed_text(&changed);
        assert_eq!(
            line,
            "volume0.writeback_percent: 40% (was 10%); that is as far as it goes"
        );
    }
}
