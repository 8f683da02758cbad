//! `cargo x`: the entry to everything that is done to the project.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use xtask::{interop, kernel, sectors};

const USAGE: &str = "\
cargo x kernel setup|info|run    a real Linux with bcache, in QEMU
cargo x interop NAME             one interop test (without NAME: the list)
cargo x sectors ...              patterned sectors, as in the guest";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let called = arguments
        .first()
        .map_or("", |name| name.rsplit('/').next().unwrap_or(name));
    // In the guest this program goes by the name of its one job.
    let result = match (called, arguments.get(1).map_or("", String::as_str)) {
        ("sectors", _) => sectors::main(&arguments[1..]),
        (_, "kernel") => kernel::main(&arguments[2..]),
        (_, "interop") => interop::main(&arguments[2..]),
        (_, "sectors") => sectors::main(&arguments[2..]),
        _ => {
            println!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("xtask: {error}");
        ExitCode::FAILURE
    })
}
