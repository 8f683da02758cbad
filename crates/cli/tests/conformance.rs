//! What holds for every verb: exit statuses, help, one line for a refusal.

mod common;

use common::Bench;
use std::process::Stdio;

const VERBS: [&str; 15] = [
    "format",
    "show",
    "serve",
    "check",
    "dump",
    "demo",
    "status",
    "set",
    "attach",
    "detach",
    "volume",
    "gc",
    "stop",
    "completions",
    "man",
];

#[test]
fn every_verb_has_help_with_an_example() {
    let bench = Bench::new();
    for verb in VERBS {
        let help = bench.fine(&[verb, "--help"]);
        assert!(
            help.contains("Example") && help.contains("Usage: brigade"),
            "{verb}: {help}"
        );
    }
    let help = bench.fine(&["--help"]);
    assert!(VERBS.iter().all(|verb| help.contains(verb)), "{help}");
}

#[test]
fn a_call_that_makes_no_sense_is_status_2_and_touches_nothing() {
    let bench = Bench::new();
    let cases: &[&[&str]] = &[
        &[],
        &["frobnicate"],
        &["format"],
        &["format", "--cache", "c", "--cache", "d", "--create", "64M"],
        &["format", "--backing", "b", "--create", "1x"],
        &[
            "format",
            "--backing",
            "b",
            "--create",
            "16M",
            "--block-size",
            "1000",
        ],
        &[
            "format",
            "--backing",
            "b",
            "--create",
            "16M",
            "--block-size",
            "8k",
        ],
        &[
            "format",
            "--backing",
            "b",
            "--create",
            "16M",
            "--data-offset",
            "4k",
        ],
        &["format", "--backing", "b", "--create", "16M", "--label", ""],
        &[
            "format",
            "--backing",
            "b",
            "--create",
            "16M",
            "--label",
            "volume7",
        ],
        &[
            "format",
            "--backing",
            "b",
            "--create",
            "16M",
            "--mode",
            "fast",
        ],
        &[
            "format",
            "--cache",
            "c",
            "--create",
            "64M",
            "--bucket-size",
            "100k",
        ],
        &[
            "format",
            "--cache",
            "c",
            "--create",
            "64M",
            "--bucket-size",
            "2k",
        ],
        &["format", "--cache", "c", "--create", "64M", "--label", "x"],
        &["show"],
        &["serve", "--nbd", "unix:x"],
        &["serve", "--backing", "b"],
        &["serve", "--backing", "b", "--nbd", "x"],
        &["serve", "--backing", "b", "--nbd", "tcp:host"],
        &["dump"],
        &["dump", "b", "--section", "everything"],
        &["demo", "--seconds", "0"],
        &["completions", "sh"],
        &["gc", "cache.img"],
        &["stop", "--now"],
    ];
    for case in cases {
        let ran = bench.run(case);
        assert_eq!(ran.status, 2, "{case:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "", "{case:?}");
        assert!(!ran.stderr.is_empty(), "{case:?}");
    }
    assert!(!bench.path("b").exists() && !bench.path("c").exists());
}

#[test]
fn a_set_with_more_buckets_than_memory_is_refused_before_anything_is_made_for_them() {
    let bench = Bench::new();
    // Sparse, on a file system that takes it.
    bench.zeros("vast", 8 << 40);
    let made = bench.run(&["format", "--cache", "vast", "--bucket-size", "4k"]);
    assert_eq!(made.status, 0, "{}", made.stderr);
    let line = bench.refused(&[
        "serve",
        "--cache",
        "vast",
        "--nbd",
        "unix:sock",
        "--control",
        "control",
    ]);
    assert!(line.contains("vast") && line.contains("nbuckets"), "{line}");
}

#[test]
fn what_cannot_be_opened_is_one_line_that_names_it() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("directory")).expect("room");
    bench.zeros("empty", 0);
    bench.zeros("short", 5000);
    for name in ["missing", "directory", "empty", "short"] {
        for line in [
            bench.refused(&["show", name]),
            bench.refused(&["format", "--backing", name]),
            bench.refused(&["format", "--cache", name]),
            bench.refused(&[
                "serve",
                "--backing",
                name,
                "--nbd",
                "unix:sock",
                "--control",
                "control",
            ]),
            bench.refused(&[
                "serve",
                "--cache",
                name,
                "--nbd",
                "unix:sock",
                "--control",
                "control",
            ]),
        ] {
            assert!(line.contains(name), "{line}");
        }
        let ran = bench.run(&["dump", name]);
        assert_eq!(
            (ran.status, ran.stderr.lines().count()),
            (1, 1),
            "{name}: {}",
            ran.stderr
        );
    }
    assert!(!bench.path("sock").exists() && !bench.path("control").exists());
}

#[test]
fn names_that_hold_control_characters_stay_on_one_line() {
    let bench = Bench::new();
    let line = bench.refused(&["show", "two\nlines\u{1b}[31m"]);
    assert!(!line.contains('\u{1b}'), "{line:?}");
}

#[test]
fn completions_and_the_manual_come_from_the_same_flags() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(
            bench.fine(&["completions", shell]).contains("bucket-size"),
            "{shell}"
        );
    }
    let page = bench.fine(&["man"]);
    assert!(
        page.contains(".TH brigade")
            && page.contains("VERB SERVE")
            && page.contains("bucket\\-size")
    );
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let bench = Bench::new();
    let mut child = bench
        .command(&["man"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
