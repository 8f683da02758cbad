//! `serve` and those who talk to it: `status`, `gc`, `stop`, signals, the service manager.

mod common;

use common::{Bench, Served};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

/// Serves backing device `b` alone, at `unix:nbd`, with its control socket at `control`.
fn serve_with_control(bench: &Bench) -> Served {
    bench.serve(&[
        "--backing",
        "b",
        "--nbd",
        "unix:nbd",
        "--control",
        "control",
    ])
}

#[test]
fn a_server_says_ready_once_and_stops_when_told() {
    let bench = Bench::new();
    bench.backing("b");
    let server = serve_with_control(&bench);
    assert!(
        server.ready.contains("nbd=unix:nbd") && server.ready.contains("volume0"),
        "{}",
        server.ready
    );
    let status = bench.json(&["status", "--control", "control", "--json"]);
    let volume = &status["volumes"][0];
    for key in [
        "name",
        "uuid",
        "mode",
        "state",
        "size_bytes",
        "dirty_bytes",
        "reads",
        "writes",
    ] {
        assert!(volume.get(key).is_some(), "{key}: {status}");
    }
    assert!(status["errors"].is_array() && status.get("cache_set").is_some());
    assert!(
        bench
            .fine(&["status", "--control", "control"])
            .contains("volume0")
    );
    bench.fine(&["stop", "--control", "control"]);
    let ran = server.end();
    assert_eq!(
        (ran.status, ran.stdout.as_str(), ran.stderr.as_str()),
        (0, "", "")
    );
    assert!(
        !bench.path("nbd").exists() && !bench.path("control").exists(),
        "sockets stay behind"
    );
}

#[test]
fn a_cache_set_is_served_and_its_status_has_every_promised_key() {
    let bench = Bench::new();
    bench.set(&["--label", "attic"]);
    for mode in ["writeback", "writethrough"] {
        let server = bench.serve_set(&["--mode", mode]);
        assert!(server.ready.contains("attic"), "{}", server.ready);
        let status = bench.json(&["status", "--json"]);
        for path in [
            "/cache_set/uuid",
            "/cache_set/state",
            "/cache_set/devices/0/path",
            "/cache_set/devices/0/bucket_bytes",
            "/cache_set/devices/0/buckets/total",
            "/cache_set/devices/0/buckets/free",
            "/cache_set/devices/0/buckets/clean",
            "/cache_set/devices/0/buckets/dirty",
            "/cache_set/devices/0/buckets/metadata",
            "/cache_set/devices/0/written_bytes",
            "/cache_set/btree/keys",
            "/cache_set/btree/nodes",
            "/cache_set/btree/depth",
            "/cache_set/btree/memory_bytes",
            "/cache_set/journal",
            "/cache_set/gc",
            "/volumes/0/name",
            "/volumes/0/uuid",
            "/volumes/0/state",
            "/volumes/0/size_bytes",
            "/volumes/0/dirty_bytes",
            "/volumes/0/reads/hits",
            "/volumes/0/reads/misses",
            "/volumes/0/reads/bypassed",
            "/volumes/0/reads/hit_bytes",
            "/volumes/0/writes",
            "/volumes/0/latency",
            "/errors",
        ] {
            assert!(status.pointer(path).is_some(), "{path}: {status}");
        }
        assert_eq!(status.pointer("/volumes/0/mode"), Some(&mode.into()));
        bench.fine(&["stop"]);
        let ran = server.end();
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
        let left = std::fs::read_dir(bench.path("state"))
            .expect("there")
            .count();
        assert_eq!(left, 0, "a record stays behind an orderly stop");
        let shown = bench.json(&["show", "c", "b", "--json"]);
        assert_eq!(
            (&shown[0]["state"], &shown[1]["state"]),
            (&"initialised".into(), &"clean".into()),
            "{shown}"
        );
        assert_eq!(shown[1]["mode"], mode);
        bench.fine(&["dump", "c"]);
    }
}

#[test]
fn a_collection_is_asked_for_waited_for_and_shown() {
    let bench = Bench::new();
    bench.set(&[]);
    let server = bench.serve_set(&["--mode", "writeback"]);
    let mut client = nbd::Client::connect(&bench.path("nbd"));
    for block in 0..50_u64 {
        client.write(block * 8192, &[block as u8 + 1; 4096]);
    }
    let page = bench.fine(&["status"]);
    assert!(page.contains("gc: 0 passes"), "{page}");
    let ran = bench.run(&["gc"]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    assert!(
        ran.stdout.contains("pass 1 is done (asked for)"),
        "{}",
        ran.stdout
    );
    assert!(
        ran.stderr.lines().all(|line| line.starts_with("gc")),
        "{}",
        ran.stderr
    );
    let report = bench.json(&["gc", "--json"]);
    let set = &report["sets"][0];
    assert_eq!(
        (set["passes"].as_u64(), set["reason"].as_str()),
        (Some(2), Some("asked for")),
        "{report}"
    );
    let written = set["metadata_written_bytes"].as_u64();
    assert!(
        written.is_some_and(|bytes| bytes > 0) && report["seconds"].is_number(),
        "{report}"
    );
    let page = bench.fine(&["status"]);
    assert!(
        page.contains("gc: 2 passes, the last one: asked for"),
        "{page}"
    );
    assert!(bench.fine(&["gc", "--no-wait"]).contains("brigade status"));
    assert!(bench.fine(&["gc", "--pause"]).contains("rests"));
    assert!(bench.refused(&["gc"]).contains("paused"));
    assert!(bench.fine(&["status"]).contains("paused"));
    assert_eq!(bench.json(&["gc", "--resume", "--json"])["paused"], false);
    bench.fine(&["gc"]);
    for block in 0..50_u64 {
        assert!(
            client.read(block * 8192) == [block as u8 + 1; 4096],
            "block {block}"
        );
    }
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
}

#[test]
fn a_collection_that_cannot_be_is_refused_with_the_reason() {
    let bench = Bench::new();
    bench.backing("alone");
    let server = bench.serve(&["--backing", "alone", "--nbd", "unix:nbd"]);
    let line = bench.refused(&["gc"]);
    assert!(line.contains("there is no cache set"), "{line}");
    bench.fine(&["stop"]);
    server.end();
    bench.set(&[]);
    for more in [&[][..], &["--read-only"]] {
        let server = bench.serve_set(more);
        if !more.is_empty() {
            let before = common::bytes(&bench.path("c"));
            for arguments in [&["gc"][..], &["gc", "--no-wait"], &["gc", "--json"]] {
                let line = bench.refused(arguments);
                assert!(line.contains("is read-only"), "{line}");
            }
            assert!(
                before == common::bytes(&bench.path("c")),
                "the cache was written"
            );
        }
        bench.fine(&["stop"]);
        assert_eq!(server.end().status, 0);
    }
    assert!(bench.refused(&["gc"]).contains("no running server"));
}

#[test]
fn read_only_writes_nothing_anywhere() {
    let bench = Bench::new();
    bench.set(&[]);
    let serve = |more: &[&str]| {
        let server = bench.serve_set(more);
        bench.fine(&["stop"]);
        assert_eq!(server.end().status, 0);
    };
    serve(&[]);
    let content = || {
        (
            common::bytes(&bench.path("c")),
            common::bytes(&bench.path("b")),
        )
    };
    let before = content();
    serve(&["--read-only"]);
    assert!(before == content(), "a device was written");
}

#[test]
fn the_only_server_is_found_by_itself() {
    let bench = Bench::new();
    bench.backing("b1");
    bench.backing("b2");
    let first = bench.serve(&["--backing", "b1", "--nbd", "unix:nbd1"]);
    bench.fine(&["status"]);
    let second = bench.serve(&["--backing", "b2", "--nbd", "unix:nbd2"]);
    assert!(bench.refused(&["stop"]).contains("several servers"));
    second.signal("INT");
    assert_eq!(second.end().status, 0);
    bench.fine(&["stop"]);
    assert_eq!(first.end().status, 0);
}

#[test]
fn both_signals_stop_in_order() {
    let bench = Bench::new();
    bench.backing("b");
    for signal in ["TERM", "INT"] {
        let server = bench.serve(&["--backing", "b", "--nbd", "unix:nbd"]);
        server.signal(signal);
        assert_eq!(server.end().status, 0, "{signal}");
    }
}

#[test]
fn both_engines_serve() {
    let bench = Bench::new();
    bench.backing("b");
    let server = bench.serve(&["--backing", "b", "--nbd", "unix:nbd", "--engine", "threads"]);
    assert!(server.ready.contains("engine=threads"), "{}", server.ready);
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
}

#[test]
fn a_connected_client_does_not_keep_the_server_from_stopping() {
    let bench = Bench::new();
    bench.backing("b");
    let server = bench.serve(&["--backing", "b", "--nbd", "unix:nbd"]);
    let mut client = UnixStream::connect(bench.path("nbd")).expect("it listens");
    let mut greeting = [0; 8];
    client.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting, b"NBDMAGIC");
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
}

#[test]
fn whatever_keeps_it_from_serving_is_one_line_and_no_ready() {
    let bench = Bench::new();
    bench.backing("b");
    bench.backing("other");
    std::fs::write(bench.path("file"), "precious").expect("room");
    let server = serve_with_control(&bench);
    let refused = |backing: &str, nbd: &str, control: &str| {
        bench.refused(&[
            "serve",
            "--backing",
            backing,
            "--nbd",
            nbd,
            "--control",
            control,
        ])
    };
    assert!(refused("b", "unix:n", "c").contains("in use"));
    assert!(refused("other", "unix:nbd", "c").contains("another server listens"));
    assert!(refused("other", "unix:n", "control").contains("another server listens"));
    assert!(refused("other", "unix:file", "c").contains("is no socket"));
    assert!(refused("other", "unix:n", "file").contains("is no socket"));
    assert!(refused("other", "unix:no/such/directory", "c").contains("no/such/directory"));
    assert_eq!(
        std::fs::read(bench.path("file")).expect("there"),
        b"precious"
    );
    assert!(
        !bench.path("n").exists() && !bench.path("c").exists(),
        "sockets stay behind"
    );
    drop(server);
    let server = serve_with_control(&bench);
    bench.fine(&["stop", "--control", "control"]);
    assert_eq!(
        server.end().status,
        0,
        "sockets of a killed server are taken over"
    );
}

#[test]
fn a_killed_server_is_not_found() {
    let bench = Bench::new();
    bench.backing("b");
    let server = bench.serve(&["--backing", "b", "--nbd", "unix:nbd"]);
    drop(server);
    assert!(bench.refused(&["status"]).contains("no running server"));
    assert!(
        bench
            .refused(&["stop", "--control", "nowhere"])
            .contains("nowhere")
    );
}

#[test]
fn the_service_manager_is_told() {
    let bench = Bench::new();
    bench.backing("b");
    let manager = UnixDatagram::bind(bench.path("notify")).expect("room");
    let mut command = bench.command(&["serve", "--backing", "b", "--nbd", "unix:nbd"]);
    let server = Served::start(command.env("NOTIFY_SOCKET", bench.path("notify")));
    let mut word = [0; 64];
    let length = manager.recv(&mut word).expect("a word");
    assert_eq!(&word[..length], b"READY=1");
    server.signal("TERM");
    assert_eq!(server.end().status, 0);
}

#[test]
fn the_control_socket_answers_wrong_requests_and_goes_on() {
    let bench = Bench::new();
    bench.backing("b");
    let server = serve_with_control(&bench);
    for (request, status) in [
        (
            "GET /v1/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "404",
        ),
        (
            "GET /v1/stop HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            "405",
        ),
        ("rubbish\r\n\r\n", "400"),
    ] {
        let mut stream = UnixStream::connect(bench.path("control")).expect("it listens");
        stream.write_all(request.as_bytes()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{request}: {answer}"
        );
    }
    bench.fine(&["status", "--control", "control"]);
    bench.fine(&["stop", "--control", "control"]);
    assert_eq!(server.end().status, 0);
}

/// P5: connections are bounded, and those that say nothing make room for others.
#[test]
fn clients_that_stop_in_the_middle_of_a_request_do_not_close_the_control_socket_to_others() {
    let bench = Bench::new();
    bench.backing("b");
    let server = serve_with_control(&bench);
    let before = server.descriptors();
    let whole = "GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n";
    let beginnings = [
        "",
        "GET /v1/sta",
        "POST /v1/drain HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
        whole,
        // Far more than is answered before somebody reads.
        &whole.repeat(10_000),
    ];
    let mut clients: Vec<_> = (0..100)
        .map(|n| {
            let mut stream = UnixStream::connect(bench.path("control")).expect("it listens");
            let patience = Some(Duration::from_millis(50));
            stream.set_write_timeout(patience).expect("fine");
            let _ = stream.write_all(beginnings[n % beginnings.len()].as_bytes());
            stream
        })
        .collect();
    bench.fine(&["status", "--control", "control"]);
    assert!(server.descriptors() <= before + 64);
    for stream in &mut clients {
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .expect("fine");
        let error = stream.read_to_end(&mut Vec::new()).err();
        let kind = error.map(|error| error.kind());
        assert!(
            matches!(kind, None | Some(ErrorKind::ConnectionReset)),
            "{kind:?}"
        );
    }
    bench.fine(&["stop", "--control", "control"]);
    assert_eq!(server.end().status, 0);
}

#[test]
fn writes_acknowledged_before_a_kill_are_there_after_it() {
    let bench = Bench::new();
    bench.set(&[]);
    let server = bench.serve_set(&["--mode", "writeback"]);
    let mut client = nbd::Client::connect(&bench.path("nbd"));
    for block in 0..200_u64 {
        client.write(block * 3 % 200 * 8192, &[block as u8 + 1; 4096]);
    }
    server.signal("KILL");
    drop(server);
    let server = bench.serve_set(&["--mode", "writeback"]);
    let mut client = nbd::Client::connect(&bench.path("nbd"));
    for block in 0..200_u64 {
        assert!(
            client.read(block * 3 % 200 * 8192) == [block as u8 + 1; 4096],
            "block {block}"
        );
    }
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
}

/// A set with a block of dirty data.
fn with_dirty_data() -> Bench {
    let bench = Bench::new();
    bench.set(&[]);
    let server = bench.serve_set(&["--mode", "writeback"]);
    bench.fine(&["set", "writeback_running=off"]);
    nbd::Client::connect(&bench.path("nbd")).write(8192, &[7; 4096]);
    bench.fine(&["stop"]);
    assert_eq!(server.end().status, 0);
    bench
}

/// T155: without its set a dirty device is not served; with it, it is, in whatever order they are named.
#[test]
fn a_dirty_device_is_served_with_its_set_in_any_order_and_never_without() {
    let bench = with_dirty_data();
    let before = common::bytes(&bench.path("b"));
    let line = bench.refused(&["serve", "--backing", "b", "--nbd", "unix:nbd"]);
    assert!(line.contains("dirty"), "{line}");
    assert!(before == common::bytes(&bench.path("b")), "it was written");
    for order in [
        ["--cache", "c", "--backing", "b"],
        ["--backing", "b", "--cache", "c"],
    ] {
        let more = ["--nbd", "unix:nbd", "--state-dir", "state"];
        let server = bench.serve(&[order, more].concat());
        let read = nbd::Client::connect(&bench.path("nbd")).read(8192);
        assert!(read == [7; 4096], "{order:?}");
        bench.fine(&["stop"]);
        assert_eq!(server.end().status, 0);
    }
}

/// T184: here all of a call is refused if one device of it is, so devices without a set are not served either.
#[test]
fn devices_of_a_set_that_does_not_start_stay_as_they_are() {
    let bench = with_dirty_data();
    bench.backing("none");
    let mut cache = common::bytes(&bench.path("c"));
    // The set's identity, under the checksum.
    cache[4096 + 40] ^= 1;
    std::fs::write(bench.path("c"), &cache).expect("room");
    let others = || {
        (
            common::bytes(&bench.path("b")),
            common::bytes(&bench.path("none")),
        )
    };
    let before = others();
    let devices = ["--cache", "c", "--backing", "b", "--backing", "none"];
    let more = ["--nbd", "unix:nbd", "--state-dir", "state"];
    let line = bench.refused(&[&["serve"], &devices[..], &more[..]].concat());
    assert!(line.contains("superblock"), "{line}");
    assert!(before == others(), "another device was written");
    assert!(
        cache == common::bytes(&bench.path("c")),
        "the cache was written"
    );
}

/// Just enough of a client to write and read a block.
mod nbd {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::Path;

    pub struct Client(UnixStream);

    impl Client {
        /// Fixed newstyle without zeroes, the default export by its old option.
        pub fn connect(path: &Path) -> Client {
            let mut stream = UnixStream::connect(path).expect("it listens");
            stream.read_exact(&mut [0; 18]).expect("a greeting");
            stream.write_all(&3_u32.to_be_bytes()).expect("sent");
            stream
                .write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0")
                .expect("sent");
            stream.read_exact(&mut [0; 10]).expect("size and flags");
            Client(stream)
        }

        pub fn write(&mut self, offset: u64, bytes: &[u8; 4096]) {
            self.request(1, offset);
            self.0.write_all(bytes).expect("sent");
            self.reply();
        }

        pub fn read(&mut self, offset: u64) -> [u8; 4096] {
            self.request(0, offset);
            self.reply();
            let mut bytes = [0; 4096];
            self.0.read_exact(&mut bytes).expect("a block");
            bytes
        }

        fn request(&mut self, kind: u32, offset: u64) {
            let mut header = 0x2560_9513_u32.to_be_bytes().to_vec();
            header.extend(kind.to_be_bytes());
            header.extend([0; 8]);
            header.extend(offset.to_be_bytes());
            header.extend(4096_u32.to_be_bytes());
            self.0.write_all(&header).expect("sent");
        }

        fn reply(&mut self) {
            let mut header = [0; 16];
            self.0.read_exact(&mut header).expect("a reply");
            assert_eq!(&header[..8], b"\x67\x44\x66\x98\0\0\0\0");
        }
    }
}
