//! `format`, `show` and `dump` on files.

mod common;

use common::{Bench, bytes};
use std::os::unix::fs::FileExt;

fn keys(value: &serde_json::Value) -> Vec<&str> {
    value
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn devices_formatted_together_are_one_set() {
    let bench = Bench::new();
    let made = bench.json(&[
        "format",
        "--cache",
        "c",
        "--backing",
        "b1",
        "--backing",
        "b2",
        "--create",
        "64M",
        "--bucket-size",
        "64k",
        "--mode",
        "writeback",
        "--replacement",
        "fifo",
        "--discard",
        "--json",
    ]);
    let shown = bench.json(&["show", "c", "b1", "b2", "--json"]);
    for device in shown.as_array().expect("a list") {
        assert_eq!(device["set_uuid"], made["set_uuid"]);
        assert_eq!(
            (&device["checksum"], &device["valid"]),
            (&"ok".into(), &true.into()),
            "{device}"
        );
    }
    let (cache, backing) = (&shown[0], &shown[1]);
    assert_eq!(
        (&cache["version"], &cache["buckets"], &cache["bucket_bytes"]),
        (&3.into(), &1024.into(), &65536.into())
    );
    assert_eq!(
        (&cache["replacement"], &cache["discard"], &cache["state"]),
        (&"fifo".into(), &true.into(), &"blank".into())
    );
    assert_eq!(
        (&backing["version"], &backing["mode"], &backing["state"]),
        (&1.into(), &"writeback".into(), &"none".into())
    );
    assert_eq!(
        (&backing["data_offset_bytes"], &backing["data_bytes"]),
        (&8192.into(), &((64 << 20) - 8192).into())
    );
    assert_ne!(shown[1]["uuid"], shown[2]["uuid"]);
    for key in [
        "path",
        "kind",
        "uuid",
        "size_bytes",
        "block_bytes",
        "flags",
        "last_mount",
        "verdict",
    ] {
        assert!(
            keys(cache).contains(&key) && keys(backing).contains(&key),
            "{key}"
        );
    }
}

#[test]
fn formatting_says_before_what_it_writes_where() {
    let bench = Bench::new();
    let ran = bench.run(&["format", "--backing", "b", "--create", "16M"]);
    assert_eq!(ran.status, 0);
    assert!(
        ran.stderr
            .contains("brigade: writing a backing superblock to b (bytes 0 to 8192)"),
        "{}",
        ran.stderr
    );
}

#[test]
fn a_data_offset_and_large_buckets_take_the_newer_versions() {
    let bench = Bench::new();
    bench.fine(&[
        "format",
        "--backing",
        "b",
        "--create",
        "16M",
        "--data-offset",
        "1M",
        "--label",
        "attic",
    ]);
    bench.fine(&[
        "format",
        "--cache",
        "c",
        "--create",
        "17G",
        "--bucket-size",
        "32M",
    ]);
    let shown = bench.json(&["show", "b", "c", "--json"]);
    assert_eq!(
        (&shown[0]["version"], &shown[0]["label"]),
        (&4.into(), &"attic".into())
    );
    assert_eq!(
        (&shown[1]["version"], &shown[1]["features"]["incompat"]),
        (&5.into(), &"0x2".into())
    );
    assert_eq!(
        (&shown[1]["bucket_bytes"], &shown[1]["valid"]),
        (&(32 << 20).into(), &true.into())
    );
}

#[test]
fn what_holds_something_is_refused_until_forced() {
    let bench = Bench::new();
    bench.backing("b");
    let before = bytes(&bench.path("b"));
    let line = bench.refused(&["format", "--backing", "b"]);
    assert!(
        line.contains("bcache") && line.contains("--force"),
        "{line}"
    );
    let file = std::fs::File::options()
        .write(true)
        .open(bench.zeros("ext", 16 << 20))
        .expect("ours");
    file.write_all_at(&[0x53, 0xef], 1080).expect("written");
    assert!(
        bench
            .refused(&["format", "--cache", "ext", "--bucket-size", "4k"])
            .contains("ext2/3/4")
    );
    assert!(
        before == bytes(&bench.path("b")),
        "a refused device was written"
    );
    bench.fine(&["format", "--backing", "b", "--force"]);
    assert!(before != bytes(&bench.path("b")));
}

#[test]
fn all_devices_are_checked_before_one_is_written() {
    let bench = Bench::new();
    bench.zeros("good", 16 << 20);
    bench.backing("taken");
    bench.refused(&[
        "format",
        "--cache",
        "made",
        "--backing",
        "good",
        "--backing",
        "taken",
        "--create",
        "64M",
        "--bucket-size",
        "4k",
    ]);
    assert!(bytes(&bench.path("good")).iter().all(|b| *b == 0));
    assert!(
        !bench.path("made").exists(),
        "a file made for nothing stays behind"
    );
}

#[test]
fn one_device_by_two_names_is_noticed() {
    let bench = Bench::new();
    bench.zeros("b", 16 << 20);
    std::os::unix::fs::symlink("b", bench.path("link")).expect("room");
    assert!(
        bench
            .refused(&["format", "--backing", "b", "--backing", "link"])
            .contains("one device")
    );
    assert!(
        bench
            .refused(&["format", "--backing", "b", "--cache", "./b"])
            .contains("one device")
    );
}

#[test]
fn a_device_in_use_is_refused() {
    let bench = Bench::new();
    let path = bench.zeros("b", 16 << 20);
    let held = std::fs::File::open(path).expect("ours");
    held.lock().expect("free");
    assert!(
        bench
            .refused(&["format", "--backing", "b"])
            .contains("in use")
    );
    drop(held);
    bench.fine(&["format", "--backing", "b"]);
}

#[test]
fn too_few_buckets_come_with_a_size_that_would_do() {
    let bench = Bench::new();
    bench.zeros("c", 64 << 20);
    let line = bench.refused(&["format", "--cache", "c"]);
    let hint = line
        .split("--bucket-size ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .expect("a hint");
    bench.fine(&["format", "--cache", "c", "--bucket-size", hint]);
    bench.zeros("tiny", 1 << 20);
    assert!(
        bench
            .refused(&["format", "--cache", "tiny"])
            .contains("no bucket size will do")
    );
}

/// T36: 512 buckets are enough for Brigade, 127 for nobody.
#[test]
fn fewer_buckets_than_a_kernel_takes_are_made_on_request() {
    let bench = Bench::new();
    bench.zeros("c", 512 * 65536);
    let small = ["format", "--cache", "c", "--bucket-size", "64k"];
    let refused = bench.refused(&small);
    assert!(refused.contains("at least 513 are needed"), "{refused}");
    let ran = bench.run(&[&small[..], &["--small"]].concat());
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(ran.stderr.contains("no kernel opens"), "{}", ran.stderr);
    bench.zeros("d", 127 * 65536);
    let less = ["format", "--cache", "d", "--bucket-size", "64k", "--small"];
    let refused = bench.refused(&less);
    assert!(refused.contains("at least 128 are needed"), "{refused}");
}

#[test]
fn garbage_is_one_line_for_each_device_and_the_others_are_shown() {
    let bench = Bench::new();
    bench.backing("b");
    let noise: Vec<u8> = (0..65536_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    std::fs::write(bench.path("noise"), noise).expect("room");
    bench.zeros("zeros", 1 << 20);
    let ran = bench.run(&["show", "noise", "b", "zeros"]);
    assert_eq!(
        (ran.status, ran.stderr.lines().count()),
        (1, 2),
        "{}",
        ran.stderr
    );
    assert!(
        ran.stderr.contains("noise: superblock at byte 4096") && ran.stdout.contains("backing")
    );
    let ran = bench.run(&["show", "noise", "b", "--json"]);
    let shown: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert!(shown[0]["error"].is_string() && shown[1]["valid"] == true);
}

#[test]
fn a_wrong_checksum_is_a_verdict_and_the_facts_are_shown() {
    let bench = Bench::new();
    bench.backing("b");
    let file = std::fs::File::options()
        .write(true)
        .open(bench.path("b"))
        .expect("ours");
    file.write_all_at(b"x", 4096 + 72).expect("written");
    let shown = &bench.json(&["show", "b", "--json"])[0];
    assert_eq!(
        (&shown["checksum"], &shown["valid"]),
        (&"bad".into(), &false.into())
    );
    assert!(shown["verdict"].as_str().expect("text").contains("csum"));
    assert_eq!(shown["label"], "x");
}

#[test]
fn no_flipped_bit_of_a_superblock_makes_a_reader_panic() {
    let bench = Bench::new();
    bench.fine(&[
        "format",
        "--cache",
        "c",
        "--create",
        "4M",
        "--bucket-size",
        "4k",
    ]);
    let whole = bytes(&bench.path("c"));
    for bit in (0..2300 * 8).step_by(397) {
        let mut bytes = whole.clone();
        bytes[4096 + bit / 8] ^= 1 << (bit % 8);
        std::fs::write(bench.path("c"), bytes).expect("room");
        for verb in ["show", "dump"] {
            let ran = bench.run(&[verb, "c"]);
            assert!(
                ran.status == 0 || ran.status == 1,
                "{verb} bit {bit}: {}",
                ran.stderr
            );
            assert!(
                ran.stderr.lines().count() <= 1,
                "{verb} bit {bit}: {}",
                ran.stderr
            );
        }
    }
}

#[test]
fn a_dump_names_section_and_kind_in_every_line() {
    let bench = Bench::new();
    bench.fine(&[
        "format",
        "--cache",
        "c",
        "--create",
        "4M",
        "--bucket-size",
        "4k",
    ]);
    let text = bench.fine(&["dump", "c", "--json"]);
    for line in text.lines() {
        let record: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(
            record["section"].is_string() && record["kind"].is_string(),
            "{line}"
        );
    }
    assert!(text.contains("\"role\":\"cache\""), "{text}");
}
