//! `drain`, by a server and without one.

mod common;

use brigade::{Brigade, CacheMode};
use common::Bench;

const BLOCKS: u64 = 300;
const BLOCK: usize = 4096;
/// Where the volume begins on the backing device.
const OFFSET: usize = 8192;

const DRAIN: [&str; 7] = [
    "drain",
    "--cache",
    "c",
    "--backing",
    "b",
    "--state-dir",
    "state",
];

/// A set with dirty data, at rest.
fn dirty_set() -> Bench {
    let bench = Bench::new();
    bench.set(&["--label", "attic"]);
    let handle = Brigade::builder()
        .cache(bench.path("c"))
        .backing(bench.path("b"))
        .state_dir(bench.path("state"))
        .mode(CacheMode::Writeback)
        .open()
        .expect("opened");
    for block in 0..BLOCKS {
        let bytes = [block as u8 | 1; BLOCK];
        handle
            .write(0, block * 3 * BLOCK as u64, &bytes, false)
            .expect("written");
    }
    handle.stop().expect("stopped");
    assert!(!is_on_backing(&bench));
    bench
}

fn is_on_backing(bench: &Bench) -> bool {
    let bytes = std::fs::read(bench.path("b")).expect("readable");
    (0..BLOCKS as usize).all(|block| bytes[OFFSET + block * 3 * BLOCK] == block as u8 | 1)
}

fn is_clean(bench: &Bench) -> bool {
    bench.fine(&["show", "b"]).contains("clean")
}

#[test]
fn without_a_server_everything_is_written_back_and_again_nothing() {
    let bench = dirty_set();
    let ran = bench.run(&DRAIN);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(
        ran.stdout.contains("1.1M were written back"),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stderr
            .contains("1.1M of dirty data of volume volume0 go to b"),
        "{}",
        ran.stderr
    );
    assert!(is_on_backing(&bench) && is_clean(&bench));
    let again = bench.json(&[&DRAIN[..], &["--json"]].concat());
    assert_eq!(again["volumes"][0]["written_bytes"], 0, "{again}");
}

#[test]
fn a_server_drains_and_goes_on() {
    let bench = dirty_set();
    let server = bench.serve_set(&["--mode", "writeback"]);
    let status = bench.json(&["status", "--json"]);
    let writeback = &status["volumes"][0]["writeback"];
    for key in [
        "rate",
        "dirty",
        "target",
        "proportional",
        "integral",
        "change",
        "next_io_ms",
        "running",
        "drain",
    ] {
        assert!(writeback.get(key).is_some(), "{key}: {writeback}");
    }
    let refused = bench.refused(&["drain", "cellar"]);
    assert!(refused.contains("no such volume"), "{refused}");
    let nothing = bench.fine(&["drain", "--cancel"]);
    assert!(nothing.contains("no drain"), "{nothing}");
    let report = bench.json(&["drain", "attic", "--json"]);
    assert_eq!(
        report["volumes"][0]["written_bytes"],
        BLOCKS * BLOCK as u64,
        "{report}"
    );
    assert!(is_on_backing(&bench));
    let status = bench.json(&["status", "--json"]);
    let volume = &status["volumes"][0];
    assert_eq!(volume["writeback"]["drain"]["state"], "done", "{volume}");
    assert_eq!(
        (volume["dirty_bytes"].as_u64(), &volume["state"]),
        (Some(0), &"clean".into())
    );
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
}

#[test]
fn what_makes_no_sense_is_a_matter_of_usage() {
    let bench = Bench::new();
    for wrong in [
        &["drain", "--cache", "c"][..],
        &["drain", "--backing", "b"],
        &["drain", "v", "--cache", "c", "--backing", "b"],
        &["drain", "--cancel", "--no-wait"],
    ] {
        assert_eq!(bench.run(wrong).status, 2, "{wrong:?}");
    }
}
