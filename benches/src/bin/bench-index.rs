//! `bench-index [--quick] [EXTENTS]...`: the engine's index beside other ordered maps.

#![forbid(unsafe_code)]

use brigade_benches::index;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let sizes: Vec<u64> = arguments.iter().flat_map(|word| word.parse()).collect();
    let report = match (is_quick, sizes.as_slice()) {
        (true, _) => index::run(&[10_000, 1_000_000]),
        (false, []) => index::run(&[10_000, 1_000_000, 10_000_000]),
        (false, sizes) => index::run(sizes),
    };
    match report.missed() {
        [] => ExitCode::SUCCESS,
        missed => {
            println!("\nmissed: {}", missed.join("; "));
            ExitCode::FAILURE
        }
    }
}
