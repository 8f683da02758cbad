//! `bench-alloc [--quick] [--only PART]`: the figures of the bucket allocator.

#![forbid(unsafe_code)]

use brigade_benches::alloc;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let only = arguments.iter().skip_while(|a| *a != "--only").nth(1);
    let is_quick = arguments.iter().any(|argument| argument == "--quick");
    let report = alloc::run(is_quick, only.map(String::as_str));
    if report.rows() == 0 {
        println!("there is no such part; parts: {}", alloc::PARTS.join(" "));
        return ExitCode::from(2);
    }
    match report.missed() {
        [] => ExitCode::SUCCESS,
        missed => {
            println!("\nmissed: {}", missed.join("; "));
            ExitCode::FAILURE
        }
    }
}
