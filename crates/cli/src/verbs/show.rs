//! `brigade show`: what a superblock says, and whether it would be taken.
//!
//! A superblock with a wrong checksum is shown all the same, with that verdict; what is no superblock is one line.

use crate::failure::{Failure, Outcome, one_line};
use crate::flags::ShowFlags;
use crate::output::print_json;
use crate::size::show_size;
use crate::target::{Purpose, Target};
use brigade_format::superblock::{Role, Superblock};
use serde_json::{Map, Value, json};
use std::path::Path;
use uuid::Uuid;

/// Shows every device; fails at the end if one held no superblock.
pub fn show(flags: &ShowFlags) -> Outcome {
    let mut shown = Vec::new();
    let mut has_failed = false;
    for path in &flags.devices {
        match facts(path) {
            Ok(facts) => shown.push(facts),
            Err(failure) => {
                if let Failure::Cannot(what) = &failure {
                    shown.push(
                        json!({ "path": path.display().to_string(), "error": one_line(what) }),
                    );
                }
                failure.report();
                has_failed = true;
            }
        }
    }
    if flags.json {
        print_json(&shown)?;
    } else {
        let pages: Vec<String> = shown
            .iter()
            .filter(|f| f.get("error").is_none())
            .map(page)
            .collect();
        print_pages(&pages)?;
    }
    if has_failed {
        Err(Failure::Said)
    } else {
        Ok(())
    }
}

fn print_pages(pages: &[String]) -> Outcome {
    use std::io::Write;
    std::io::stdout()
        .lock()
        .write_all(pages.join("\n").as_bytes())?;
    Ok(())
}

fn facts(path: &Path) -> Outcome<Value> {
    let target = Target::open(path, Purpose::Look)?;
    let at = |what: String| {
        Failure::cannot(format!(
            "{}: superblock at byte 4096: {what}",
            target.name()
        ))
    };
    let mut bytes = target.superblock_bytes().map_err(|e| at(e.to_string()))?;
    if !Superblock::is_claimed(&bytes) {
        return Err(at("none (no bcache magic)".into()));
    }
    let (superblock, csum) = match Superblock::parse(&bytes) {
        Ok(superblock) => (superblock, None),
        Err(error) if error.structure == "superblock csum" => {
            let wanted =
                u64::from_str_radix(&error.expected, 16).map_err(|_| at(error.to_string()))?;
            bytes[..8].copy_from_slice(&wanted.to_le_bytes());
            (
                Superblock::parse(&bytes).map_err(|e| at(e.to_string()))?,
                Some(error),
            )
        }
        Err(error) => return Err(at(error.to_string())),
    };
    let mut facts = common_facts(&target, &superblock, csum.is_none());
    let verdict = match superblock.role() {
        Role::Cache => cache_facts(&mut facts, &target, &superblock),
        Role::Backing => backing_facts(&mut facts, &target, &superblock),
    };
    let verdict = csum.map(|e| e.to_string()).or(verdict);
    facts.insert("valid".into(), json!(verdict.is_none()));
    facts.insert(
        "verdict".into(),
        json!(verdict.unwrap_or_else(|| "valid".into())),
    );
    Ok(Value::Object(facts))
}

fn common_facts(
    target: &Target,
    superblock: &Superblock,
    csum_is_right: bool,
) -> Map<String, Value> {
    let mut facts = Map::new();
    let mut put = |key: &str, value: Value| facts.insert(key.into(), value);
    put("path", json!(target.name()));
    put(
        "kind",
        json!(if superblock.role() == Role::Cache {
            "cache"
        } else {
            "backing"
        }),
    );
    put("version", json!(superblock.version));
    put("checksum", json!(if csum_is_right { "ok" } else { "bad" }));
    put("uuid", json!(Uuid::from_bytes(superblock.uuid).to_string()));
    put(
        "set_uuid",
        json!(Uuid::from_bytes(superblock.set_uuid).to_string()),
    );
    put("size_bytes", json!(target.size_bytes));
    put("block_bytes", json!(u64::from(superblock.block_size) * 512));
    put("last_mount", json!(superblock.last_mount));
    put("flags", json!(format!("{:#x}", superblock.flags)));
    put(
        "unknown_flags",
        json!(format!("{:#x}", superblock.unknown_flags())),
    );
    facts
}

fn cache_facts(
    facts: &mut Map<String, Value>,
    target: &Target,
    superblock: &Superblock,
) -> Option<String> {
    let mut put = |key: &str, value: Value| facts.insert(key.into(), value);
    put("seq", json!(superblock.seq));
    put(
        "state",
        json!(if superblock.is_sync() {
            "initialised"
        } else {
            "blank"
        }),
    );
    put(
        "bucket_bytes",
        json!(u64::from(superblock.bucket_sectors()) * 512),
    );
    put("buckets", json!(superblock.nbuckets));
    put("first_bucket", json!(superblock.first_bucket));
    put("journal_buckets", json!(superblock.journal.len()));
    put("nr_in_set", json!(superblock.nr_in_set));
    put("nr_this_dev", json!(superblock.nr_this_dev));
    put("discard", json!(superblock.discard()));
    let replacement = superblock.replacement().map(|r| r.to_string());
    put(
        "replacement",
        json!(replacement.unwrap_or_else(|| format!("invalid ({})", superblock.replacement_raw()))),
    );
    put("features", json!(features(superblock)));
    superblock
        .cache_geometry(target.size_bytes / 512, target.logical_block_bytes)
        .err()
        .map(|e| e.to_string())
}

fn features(superblock: &Superblock) -> Value {
    if superblock.version != 5 {
        return Value::Null;
    }
    json!({
        "compat": format!("{:#x}", superblock.feature_compat),
        "incompat": format!("{:#x}", superblock.feature_incompat),
        "ro_compat": format!("{:#x}", superblock.feature_ro_compat),
    })
}

fn backing_facts(
    facts: &mut Map<String, Value>,
    target: &Target,
    superblock: &Superblock,
) -> Option<String> {
    let mut put = |key: &str, value: Value| facts.insert(key.into(), value);
    put("label", json!(superblock.label()));
    let mode = superblock.cache_mode().map(|m| m.to_string());
    put(
        "mode",
        json!(mode.unwrap_or_else(|| format!("invalid ({})", superblock.cache_mode_raw()))),
    );
    put("state", json!(superblock.state().to_string()));
    let start_bytes = superblock.data_start().saturating_mul(512);
    put("data_offset_bytes", json!(start_bytes));
    put(
        "data_bytes",
        json!(target.size_bytes.saturating_sub(start_bytes)),
    );
    superblock
        .backing_data_offset(target.size_bytes / 512, target.logical_block_bytes)
        .err()
        .map(|e| e.to_string())
}

/// What people look for first, in this order; the rest follows by name.
const FIRST: [&str; 9] = [
    "verdict", "kind", "version", "checksum", "uuid", "set_uuid", "label", "mode", "state",
];

/// The same facts as text, sizes in short.
fn page(facts: &Value) -> String {
    let mut page = format!("{}\n", one_line(facts["path"].as_str().unwrap_or_default()));
    let empty = Map::new();
    let facts = facts.as_object().unwrap_or(&empty);
    let rest = facts
        .iter()
        .filter(|(key, _)| !FIRST.contains(&key.as_str()));
    let first = FIRST.iter().filter_map(|key| facts.get_key_value(*key));
    for (key, value) in first.chain(rest) {
        let text = match value {
            Value::Null => continue,
            Value::String(_) if key == "path" => continue,
            Value::String(text) => one_line(text),
            Value::Number(n) if key.ends_with("_bytes") => show_size(n.as_u64().unwrap_or(0)),
            other => other.to_string(),
        };
        let name = key.trim_end_matches("_bytes").replace('_', " ");
        page += &format!("  {name:<16} {text}\n");
    }
    page
}
