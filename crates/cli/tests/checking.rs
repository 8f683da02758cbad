//! `brigade check`: verdicts, statuses, and that it looks and does not touch.

mod common;

use common::Bench;
use serde_json::Value;
use std::os::unix::fs::FileExt;

/// A set that was served once and stopped.
fn used() -> Bench {
    let bench = Bench::new();
    bench.set(&["--mode", "writeback"]);
    let server = bench.serve_set(&[]);
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
    bench
}

fn flip(bench: &Bench, name: &str, offset: u64) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(bench.path(name));
    let file = file.expect("there");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("inside");
    byte[0] ^= 1;
    file.write_all_at(&byte, offset).expect("room");
}

fn checked(bench: &Bench, status: i32) -> Value {
    let ran = bench.run(&["check", "c", "b", "--json"]);
    assert_eq!(ran.status, status, "{} {}", ran.stdout, ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(report["exit_status"], status);
    report
}

#[test]
fn a_set_in_order_is_clean_and_one_line_says_so() {
    let bench = used();
    let bytes = |name: &str| std::fs::read(bench.path(name)).expect("readable");
    let before = [bytes("c"), bytes("b")];
    assert_eq!(bench.fine(&["check", "c", "b"]), "clean\n");
    assert_eq!(bench.fine(&["check", "b", "c", "--data"]), "clean\n");
    let report = checked(&bench, 0);
    for path in [
        "/verdict",
        "/errors",
        "/warnings",
        "/notes",
        "/rules",
        "/findings",
        "/unchecked",
        "/sets/0/uuid",
        "/sets/0/journal/newest_seq",
        "/sets/0/btree/nodes",
        "/sets/0/buckets/dirty",
        "/sets/0/volumes/0/dirty_bytes",
        "/sets/0/volumes/0/clean_bytes",
        "/backing_devices/0/state",
        "/backing_devices/0/slot",
    ] {
        assert!(report.pointer(path).is_some(), "{path}: {report}");
    }
    assert_eq!(report["verdict"], "clean");
    assert!(
        bench
            .fine(&["check", "c", "b", "--verbose"])
            .contains("keys to replay")
    );
    assert!([bytes("c"), bytes("b")] == before, "something was written");
}

#[test]
fn damage_is_status_4_and_named_with_device_structure_and_byte() {
    let bench = used();
    flip(&bench, "b", 4096 + 80);
    let report = checked(&bench, 4);
    let finding = &report["findings"][0];
    assert_eq!(
        (&finding["id"], &finding["device"], &finding["structure"]),
        (&"F60".into(), &"b".into(), &"backing superblock".into())
    );
    let ran = bench.run(&["check", "c", "b"]);
    assert_eq!(ran.status, 4);
    assert!(
        ran.stdout
            .contains("b: error backing superblock at byte 4096"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.ends_with("1 error\n"), "{}", ran.stdout);
}

#[test]
fn what_cannot_be_checked_is_status_8_and_a_senseless_call_16() {
    let bench = used();
    for call in [&["check", "missing"][..], &["check", "c", "run"]] {
        let ran = bench.run(call);
        assert_eq!(
            (ran.status, ran.stderr.lines().count()),
            (8, 1),
            "{}",
            ran.stderr
        );
    }
    for call in [
        &["check"][..],
        &["check", "c", "--frobnicate"],
        &["check", "c", "--repair"],
    ] {
        let ran = bench.run(call);
        assert_eq!(
            (ran.status, ran.stdout.as_str()),
            (16, ""),
            "{}",
            ran.stderr
        );
    }
    let server = bench.serve_set(&[]);
    let ran = bench.run(&["check", "c", "b"]);
    assert_eq!(ran.status, 8);
    assert!(ran.stderr.contains("in use"), "{}", ran.stderr);
    bench.fine(&["stop"]);
    server.end();
    assert_eq!(bench.fine(&["check", "c", "b"]), "clean\n");
}
