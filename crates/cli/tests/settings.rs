//! Settings of a running server: seen, changed, kept, refused.

mod common;

use common::{Bench, Served};

const CONFIG: &str = "# how we run it\n[serve]\ncache = \"c\"\nbacking = [\"b\"]\nnbd = \"unix:nbd\"\nstate_dir = \"state\"\nmemory = \"64M\"\n\n\
    [cache_set]\njournal_delay_ms = 20 # short\n\n[volumes]\nsequential_cutoff = \"8M\"\n";

fn configured(bench: &Bench, text: &str) -> Served {
    std::fs::write(bench.path("brigade.toml"), text).expect("room");
    bench.serve(&["--config", "brigade.toml"])
}

fn setting(bench: &Bench, owner: &str, name: &str) -> serde_json::Value {
    let all = bench.json(&["set", "--json"]);
    let settings = match owner {
        "cache_set" => &all["cache_set"]["settings"],
        _ => &all["volumes"][0]["settings"],
    };
    settings[name].clone()
}

#[test]
fn a_change_holds_at_once_and_says_what_it_was() {
    let bench = Bench::new();
    bench.set(&[]);
    let server = bench.serve_set(&[]);
    assert_eq!(setting(&bench, "volumes", "sequential_cutoff"), 4 << 20);
    let said = bench.fine(&["set", "sequential_cutoff=1M", "cache_set.io_error_limit=3"]);
    assert!(
        said.contains("volume0.sequential_cutoff: 1.0M (was 4.0M)"),
        "{said}"
    );
    assert_eq!(setting(&bench, "volumes", "sequential_cutoff"), 1 << 20);
    assert_eq!(setting(&bench, "cache_set", "io_error_limit"), 3);
    assert_eq!(setting(&bench, "volumes", "io_error_limit"), 64);
    let cut = bench.fine(&["set", "writeback_percent=80"]);
    assert!(
        cut.contains("40% (was 10%); that is as far as it goes"),
        "{cut}"
    );
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
}

#[test]
fn what_makes_no_sense_is_refused_and_nothing_is_changed() {
    let bench = Bench::new();
    bench.set(&[]);
    let server = bench.serve_set(&[]);
    for (wrong, part) in [
        ("sequential_cutof=1", "no setting"),
        ("sequential_cutoff=lots", "lots"),
        ("nobody.sequential_cutoff=1", "nobody"),
        ("io_error_limit=1", "cache_set.io_error_limit"),
        ("cache_mode=Writeback", "writethrough, writeback"),
        ("cache_set.sequential_cutoff=1", "cache_set"),
    ] {
        let line = bench.refused(&["set", "writeback_delay=7", wrong]);
        assert!(line.contains(part), "{wrong}: {line}");
        assert_eq!(setting(&bench, "volumes", "writeback_delay"), 30, "{wrong}");
    }
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
}

/// The superblocks keep what they have a field for, whoever opens the set next.
#[test]
fn mode_replacement_and_discard_are_in_the_superblocks() {
    let bench = Bench::new();
    bench.set(&[]);
    let server = bench.serve_set(&[]);
    bench.fine(&[
        "set",
        "cache_mode=writearound",
        "cache_replacement_policy=fifo",
        "discard=on",
    ]);
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
    let (cache, backing) = (bench.fine(&["show", "c"]), bench.fine(&["show", "b"]));
    assert!(
        cache.contains("fifo") && backing.contains("writearound"),
        "{cache}{backing}"
    );
    let server = bench.serve_set(&[]);
    assert_eq!(setting(&bench, "volumes", "cache_mode"), "writearound");
    assert_eq!(
        setting(&bench, "cache_set", "cache_replacement_policy"),
        "fifo"
    );
    assert_eq!(setting(&bench, "cache_set", "discard"), true);
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
}

#[test]
fn a_configuration_file_says_what_to_serve_and_keeps_what_is_changed() {
    let bench = Bench::new();
    bench.set(&[]);
    let server = configured(&bench, CONFIG);
    assert_eq!(setting(&bench, "cache_set", "journal_delay_ms"), 20);
    assert_eq!(setting(&bench, "volumes", "sequential_cutoff"), 8 << 20);
    let said = bench.fine(&["set", "journal_delay_ms=40", "volume0.writeback_percent=20"]);
    assert!(
        said.contains("kept in") && said.contains("brigade.toml"),
        "{said}"
    );
    bench.fine(&["set", "--temporary", "sequential_cutoff=0"]);
    let status = bench.json(&["status", "--json"]);
    let differs = &status["config"]["differs"];
    assert_eq!(differs.as_array().map(Vec::len), Some(1), "{differs}");
    assert_eq!(differs[0]["name"], "sequential_cutoff");
    assert_eq!(
        (&differs[0]["is"], &differs[0]["configured"]),
        (&0.into(), &(8 << 20).into())
    );
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
    let text = std::fs::read_to_string(bench.path("brigade.toml")).expect("it is there");
    assert!(
        text.contains("journal_delay_ms = 40 # short") && text.starts_with("# how we run it"),
        "{text}"
    );
    let server = bench.serve(&["--config", "brigade.toml"]);
    assert_eq!(setting(&bench, "volumes", "writeback_percent"), 20);
    assert_eq!(setting(&bench, "volumes", "sequential_cutoff"), 8 << 20);
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
}

/// A volume has several names, and what the file says by any of them counts.
#[test]
fn what_is_changed_by_one_name_is_kept_although_the_file_has_another_one() {
    let bench = Bench::new();
    bench.set(&[]);
    let text = format!("{CONFIG}\n[volumes.volume0]\nwriteback_percent = 20\n");
    let server = configured(&bench, &text);
    let status = bench.json(&["status", "--json"]);
    let uuid = status["volumes"][0]["uuid"].as_str().expect("a uuid");
    std::fs::write(
        bench.path("brigade.toml"),
        format!("[volumes.{uuid}]\nwriteback_percent = 25\n\n{text}"),
    )
    .expect("room");
    bench.fine(&["set", &format!("{uuid}.writeback_percent=30")]);
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
    let server = bench.serve(&["--config", "brigade.toml"]);
    assert_eq!(setting(&bench, "volumes", "writeback_percent"), 30);
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
}

#[test]
fn a_wrong_configuration_file_is_refused_before_anything_is_opened() {
    let bench = Bench::new();
    bench.set(&[]);
    let before = (
        common::bytes(&bench.path("c")),
        common::bytes(&bench.path("b")),
    );
    for (text, part) in [
        ("[volumes]\nsequential_cutof = 1\n", "sequential_cutof"),
        ("[serve]\ncaches = \"c\"\n", "caches"),
        (
            "[serve]\ncache = \"c\"\nbacking = \"b\"\nnbd = \"nowhere\"\n",
            "serve.nbd",
        ),
        (
            "[serve]\ncache = \"c\"\nnbd = \"unix:nbd\"\nack = \"perhaps\"\n",
            "serve.ack",
        ),
        ("[[", "brigade.toml"),
    ] {
        std::fs::write(bench.path("brigade.toml"), text).expect("room");
        let line = bench.refused(&["serve", "--config", "brigade.toml"]);
        assert!(line.contains(part), "{text}: {line}");
    }
    let after = (
        common::bytes(&bench.path("c")),
        common::bytes(&bench.path("b")),
    );
    assert!(before == after, "a refused call wrote");
}

/// Somebody's own client, not ours.
#[test]
fn the_api_takes_numbers_words_and_truths_and_refuses_what_is_no_object() {
    use std::io::{Read, Write};
    let bench = Bench::new();
    bench.set(&[]);
    let server = bench.serve_set(&["--control", "control"]);
    let ask = |body: &str| {
        let mut stream =
            std::os::unix::net::UnixStream::connect(bench.path("control")).expect("it listens");
        let length = body.len();
        let request = format!(
            "PATCH /v1/settings HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    let fine = ask(
        r#"{"writeback_running": false, "writeback_percent": 5, "volume0.cache_mode": "none"}"#,
    );
    assert!(fine.starts_with("HTTP/1.1 200"), "{fine}");
    assert_eq!(fine.matches("\"was\"").count(), 3, "{fine}");
    for wrong in [
        "[]",
        "{",
        "",
        r#"{"writeback_percent": [1]}"#,
        r#"{"writeback_percent": null}"#,
    ] {
        let answer = ask(wrong);
        assert!(
            answer.starts_with("HTTP/1.1 400") && answer.contains("\"error\""),
            "{wrong}: {answer}"
        );
    }
    bench.fine(&["stop", "--control", "control"]);
    assert_eq!(server.end().status, 0);
}

/// What was set for a volume while it is served stays when it gets a cache; one that comes is set as the file says.
#[test]
fn the_configuration_file_is_for_volumes_that_come_and_not_for_those_that_are_attached_while_served()
 {
    let bench = Bench::new();
    bench.set(&[]);
    let server = configured(&bench, CONFIG);
    let cutoff = || setting(&bench, "volumes", "sequential_cutoff");
    bench.fine(&["set", "--temporary", "sequential_cutoff=1M"]);
    bench.fine(&["detach", "volume0"]);
    bench.fine(&["attach", "b"]);
    assert_eq!(cutoff(), 1 << 20);
    let status = bench.json(&["status", "--json"]);
    let name = status["volumes"][0]["name"].as_str().expect("a name");
    bench.fine(&["volume", "stop", name]);
    bench.fine(&["attach", "b"]);
    assert_eq!(cutoff(), 8 << 20);
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
}
