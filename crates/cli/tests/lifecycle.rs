//! Devices that come and go and volumes that change, by the verbs that people use.

mod common;

use common::Bench;

fn control(verb: &[&'static str]) -> Vec<&'static str> {
    [verb, &["--control", "control"]].concat()
}

/// T158, T156, T185: a cache alone is served, volumes are made in it and deleted, devices are attached and detached.
#[test]
fn a_cache_alone_is_served_and_volumes_come_and_go() {
    let bench = Bench::new();
    let format = [
        "format",
        "--cache",
        "c",
        "--create",
        "64M",
        "--bucket-size",
        "64k",
    ];
    bench.fine(&format);
    bench.backing("b");
    let arguments = [
        "--cache",
        "c",
        "--nbd",
        "unix:nbd",
        "--control",
        "control",
        "--state-dir",
        "state",
    ];
    let served = bench.serve(&arguments);
    let fine = |verb: &[&'static str]| bench.fine(&control(verb));
    let refused = |verb: &[&'static str]| bench.refused(&control(verb));
    let volumes = || bench.json(&control(&["status", "--json"]))["volumes"].clone();
    assert_eq!(volumes().as_array().map(Vec::len), Some(0));
    fine(&["volume", "create", "16M", "--label", "scratch"]);
    assert!(refused(&["volume", "create", "16M", "--label", "scratch"]).contains("another volume"));
    assert!(refused(&["volume", "create", "1000"]).contains("block size"));
    assert!(refused(&["volume", "resize", "scratch", "8M"]).contains("would be gone"));
    fine(&["volume", "resize", "scratch", "8M", "--shrink"]);
    fine(&["volume", "resize", "scratch", "32M"]);
    assert_eq!(volumes()[0]["size_bytes"], 32 << 20);
    fine(&["volume", "label", "scratch", "attic room"]);
    assert!(refused(&["detach", "attic room"]).contains("flash volume"));
    fine(&["attach", "b"]);
    assert_eq!(volumes()[1]["state"], "clean");
    assert!(refused(&["attach", "b"]).contains("attached already"));
    assert!(refused(&["attach", "c"]).contains("in use"));
    assert!(refused(&["attach", "nothing"]).contains("nothing"));
    fine(&["detach", "volume1"]);
    assert_eq!(volumes()[1]["state"], "no cache");
    assert!(refused(&["detach", "volume1"]).contains("not attached"));
    assert!(refused(&["detach", "volume1", "--cancel"]).contains("not being detached"));
    fine(&["attach", "b"]);
    // By now it may be in another slot.
    let name = volumes()[1]["name"].as_str().expect("a name").to_owned();
    bench.fine(&["volume", "stop", &name, "--control", "control"]);
    fine(&["volume", "delete", "attic room"]);
    assert_eq!(volumes().as_array().map(Vec::len), Some(0));
    fine(&["attach", "b"]);
    // Everything is taken as long as it is served.
    let second = [
        "serve",
        "--cache",
        "c",
        "--nbd",
        "unix:nbd2",
        "--state-dir",
        "state",
    ];
    assert!(bench.refused(&second).contains("in use"));
    let second = ["serve", "--backing", "b", "--nbd", "unix:nbd2"];
    assert!(bench.refused(&second).contains("in use"));
    fine(&["stop"]);
    served.end();
    // T154: without its set it is served only on request.
    let alone = [
        "--backing",
        "b",
        "--nbd",
        "unix:nbd",
        "--control",
        "control",
    ];
    assert!(
        bench
            .refused(&[&["serve"][..], &alone].concat())
            .contains("state is clean")
    );
    let served = bench.serve(&[&alone[..], &["--run-anyway"]].concat());
    assert_eq!(volumes()[0]["state"], "inconsistent");
    fine(&["stop"]);
    served.end();
}
