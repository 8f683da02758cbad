//! Single requests of which the reason is known: one counter is one higher after each, and no other of its kind.

use super::load::{AHEAD_BYTES, Asked, Count, Kind};
use crate::nbd::Client;
use crate::process::{Context, Result};
use crate::server::Server;
use serde_json::Value;

const BLOCK: u64 = 4096;

/// What is asked.
#[derive(Clone, Copy)]
enum Ask {
    Read(u64, u64),
    Write(u64, u64),
    Ahead(u64),
    Discard(u64),
    Flush,
}

/// A volume, what is set before, what is asked, and the counter that it is found in.
type Case = (
    &'static str,
    &'static [(&'static str, &'static str)],
    Ask,
    &'static str,
);

const CASES: [Case; 21] = [
    (
        "one",
        // However slow the machine is.
        &[
            ("sequential_cutoff", "0"),
            ("congested_read_threshold_us", "0"),
            ("congested_write_threshold_us", "0"),
        ],
        Ask::Read(0, BLOCK),
        "reads.misses",
    ),
    ("one", &[], Ask::Write(8 * BLOCK, BLOCK), "writes.writeback"),
    ("one", &[], Ask::Read(8 * BLOCK, BLOCK), "reads.hits"),
    (
        "one",
        &[],
        Ask::Read(8 * BLOCK, 512),
        "reads.bypassed_by.unaligned",
    ),
    (
        "one",
        &[],
        Ask::Write(20 * BLOCK + 512, 512),
        "writes.bypassed_by.unaligned",
    ),
    (
        "one",
        &[("one.cache_mode", "writethrough")],
        Ask::Write(30 * BLOCK, BLOCK),
        "writes.not_dirty_by.mode",
    ),
    (
        "one",
        &[("one.cache_mode", "writearound")],
        Ask::Write(40 * BLOCK, BLOCK),
        "writes.bypassed_by.writearound",
    ),
    ("one", &[], Ask::Read(50 * BLOCK, BLOCK), "reads.misses"),
    (
        "one",
        &[("one.cache_mode", "none")],
        Ask::Read(60 * BLOCK, BLOCK),
        "reads.bypassed_by.mode_none",
    ),
    (
        "one",
        &[],
        Ask::Write(70 * BLOCK, 512),
        "writes.bypassed_by.mode_none",
    ),
    (
        "one",
        &[],
        Ask::Ahead(80 * BLOCK),
        "prefetches.ignored_by.mode_none",
    ),
    (
        "one",
        &[("one.cache_mode", "writeback")],
        Ask::Ahead(80 * BLOCK),
        "prefetches.done",
    ),
    (
        "one",
        &[("readahead_cache_policy", "meta-only")],
        Ask::Ahead(120 * BLOCK),
        "prefetches.ignored_by.readahead_policy",
    ),
    (
        "one",
        &[
            ("readahead_cache_policy", "all"),
            ("sequential_cutoff", "8k"),
        ],
        Ask::Read(200 * BLOCK, 2 * BLOCK),
        "reads.bypassed_by.sequential",
    ),
    (
        "one",
        &[],
        Ask::Write(300 * BLOCK, 2 * BLOCK),
        "writes.bypassed_by.sequential",
    ),
    (
        "one",
        &[("sequential_cutoff", "4M")],
        Ask::Discard(400 * BLOCK),
        "discards.done",
    ),
    ("one", &[], Ask::Flush, "flushes.done"),
    (
        "raw",
        &[],
        Ask::Read(0, BLOCK),
        "reads.bypassed_by.no_cache",
    ),
    (
        "raw",
        &[],
        Ask::Write(0, BLOCK),
        "writes.bypassed_by.no_cache",
    ),
    ("raw", &[], Ask::Ahead(0), "prefetches.ignored_by.no_cache"),
    ("flash", &[], Ask::Write(0, BLOCK), "writes.writeback"),
];

/// Where the counters of a kind of request are.
fn counters(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Read => &[
            "reads.hits",
            "reads.misses",
            "reads.failed",
            "reads.bypassed_by",
        ],
        Kind::Write => &[
            "writes.writeback",
            "writes.not_dirty_by",
            "writes.bypassed_by",
            "writes.failed",
        ],
        Kind::Prefetch => &[
            "prefetches.done",
            "prefetches.failed",
            "prefetches.ignored_by",
        ],
        Kind::Discard => &["discards.done", "discards.ignored", "discards.failed"],
        Kind::Zeroes => &["zeroes.done", "zeroes.ignored", "zeroes.failed"],
        Kind::Flush => &["flushes.done", "flushes.ignored", "flushes.failed"],
    }
}

/// All counters of a kind that are not zero.
fn found(volume: &Value, kind: Kind) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    for path in counters(kind) {
        let value = path.split('.').fold(volume, |at, key| &at[key]);
        match value.as_object() {
            Some(reasons) => all.extend(
                reasons
                    .iter()
                    .map(|(reason, count)| (format!("{path}.{reason}"), count.as_u64())),
            ),
            None => all.push((path.to_string(), value.as_u64())),
        }
    }
    let numbers = all.into_iter().filter_map(|(path, n)| Some((path, n?)));
    numbers.collect()
}

fn volume(server: &Server, label: &str) -> Result<Value> {
    let status = server.status()?;
    let volumes = status["volumes"].as_array().into_iter().flatten();
    let found = volumes.into_iter().find(|volume| volume["label"] == label);
    found
        .cloned()
        .ok_or_else(|| format!("the status has no {label}"))
}

/// Asks for one thing; what it counts as.
fn one(client: &mut Client, ask: Ask) -> Result<(Kind, u64)> {
    let (cookie, kind, bytes) = match ask {
        Ask::Read(at, bytes) => (client.send_read(at, bytes as usize), Kind::Read, bytes),
        Ask::Write(at, bytes) => {
            let data = vec![1; bytes as usize];
            (client.send_write(at, &data, false), Kind::Write, bytes)
        }
        Ask::Ahead(at) => {
            let cookie = client.send_cache(at, AHEAD_BYTES as u32);
            (cookie, Kind::Prefetch, AHEAD_BYTES)
        }
        Ask::Discard(at) => {
            let cookie = client.send_trim(at, BLOCK as u32, false);
            (cookie, Kind::Discard, BLOCK)
        }
        Ask::Flush => (client.send_flush(), Kind::Flush, 0),
    };
    let reply = client.receive()?;
    match (reply.cookie == cookie, reply.error) {
        (true, 0) => Ok((kind, bytes)),
        (_, error) => Err(format!("answered with error {error}")),
    }
}

/// Goes through all cases; what was asked.
pub fn ask(server: &Server) -> Result<Asked> {
    let mut asked = Asked::new();
    for (number, (label, settings, ask, wanted)) in CASES.iter().enumerate() {
        let what = format!("case {number} ({label}, {settings:?}, {wanted})");
        if !settings.is_empty() {
            server.set(settings).context(&what)?;
        }
        let mut client = Client::connect(&server.socket, label)?;
        let before = volume(server, label)?;
        let (kind, bytes) = one(&mut client, *ask).context(&what)?;
        client.disconnect();
        let after = volume(server, label)?;
        let changed: Vec<(String, u64)> = found(&after, kind)
            .into_iter()
            .zip(found(&before, kind))
            .filter(|((_, now), (_, then))| now != then)
            .map(|((path, now), (_, then))| (path, now.wrapping_sub(then)))
            .collect();
        if changed != [(wanted.to_string(), 1)] {
            return Err(format!("{what}: what changed is {changed:?}"));
        }
        let count: &mut Count = asked.entry((label.to_string(), kind)).or_default();
        count.requests += 1;
        count.bytes += bytes;
    }
    Ok(asked)
}
