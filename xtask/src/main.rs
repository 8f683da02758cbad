//! `cargo x`: the entry to everything that is done to the project.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use xtask::{
    bench, bench_alloc, bench_drain, bench_fills, bench_gc, bench_lifecycle, bench_open,
    bench_reasons, bench_steps, bench_sync, bench_wa, golden, golden_fsck, interop, kernel,
    mkimage, process, sectors, sim, test, tests_table, tidy,
};

const USAGE: &str = "\
cargo x test [--fast] [--seed N] everything that must pass; --fast leaves the virtual machine out
cargo x tidy                     house rules
cargo x tests-table              docs/tests.md from the comments above tests
cargo x bench nbd [--rounds N]   beside nbdkit
cargo x bench open [--extents N] opening a set with a million extents
cargo x bench alloc [--quick]    the bucket allocator beside a full scan of all buckets
cargo x bench open --memory M,.. the same with ten million, and what memory it takes
cargo x bench wa                 bytes to the cache device for each byte written, beside the kernel
cargo x bench gc [--minutes M]   what clients notice of garbage collection
cargo x bench index [--quick]    the index's map beside other ordered maps
cargo x bench drain [--dirty SIZE]  all dirty data to a disk whose seeks take time, beside the kernel
cargo x bench sync [--rounds N]   a write and a flush, beside the cache device alone
cargo x bench lifecycle [--rounds N]  the longest pause while devices and volumes come, go and change
cargo x bench reasons [--minutes M]  is every request counted, exactly once and for a reason
cargo x bench steps [--passes N] how long background work keeps the thread at ten million extents
cargo x bench fills              what gets into a small cache, beside the kernel
cargo x mkimage ... CACHE BACKING  images of a set with many extents, in seconds
cargo x golden list              the kernel-made images in fixtures/
cargo x golden unpack NAME DIR   one of them, ready to open
cargo x golden check DIR [--rw]  every case of a folder against Brigade; --rw: and then against a kernel
cargo x golden fsck DIR          every case of a folder through `brigade check`
cargo x kernel setup|info|run    a real Linux with bcache, in QEMU
cargo x interop NAME|all         one interop test, or all; --long with many rounds (without NAME: the list)
cargo x sim [--seed N] [--runs N] [--minutes M] ...  the world on a seed (without a violation: the table)
cargo x sectors ...              patterned sectors, as in the guest";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let called = arguments
        .first()
        .map_or("", |name| name.rsplit('/').next().unwrap_or(name));
    // In the guest this program goes by the name of its one job.
    let result = match (called, arguments.get(1).map_or("", String::as_str)) {
        ("sectors", _) => sectors::main(&arguments[1..]),
        (_, "test") => test::main(&arguments[2..]),
        (_, "tidy") => tidy_only(),
        (_, "tests-table") => tests_table::main(),
        (_, "bench") if arguments.get(2).is_some_and(|name| name == "open") => {
            bench_open::main(&arguments[3..])
        }
        (_, "bench") if arguments.get(2).is_some_and(|name| name == "alloc") => {
            bench_alloc::main(&arguments[3..])
        }
        (_, "bench") if arguments.get(2).is_some_and(|name| name == "fills") => {
            bench_fills::main(&arguments[3..])
        }
        (_, "bench") if arguments.get(2).is_some_and(|name| name == "wa") => {
            bench_wa::main(&arguments[3..])
        }
        (_, "bench") if arguments.get(2).is_some_and(|name| name == "gc") => {
            bench_gc::main(&arguments[3..])
        }
        (_, "bench") if arguments.get(2).is_some_and(|name| name == "steps") => {
            bench_steps::main(&arguments[3..])
        }
        (_, "bench") if arguments.get(2).is_some_and(|name| name == "drain") => {
            bench_drain::main(&arguments[3..])
        }
        (_, "bench") if arguments.get(2).is_some_and(|name| name == "lifecycle") => {
            bench_lifecycle::main(&arguments[3..])
        }
        (_, "bench") if arguments.get(2).is_some_and(|name| name == "reasons") => {
            bench_reasons::main(&arguments[3..])
        }
        (_, "bench") if arguments.get(2).is_some_and(|name| name == "sync") => {
            bench_sync::main(&arguments[3..])
        }
        (_, "bench") if arguments.get(2).is_some_and(|name| name == "index") => {
            bench_alloc::index(&arguments[3..])
        }
        (_, "bench") => bench::main(&arguments[2..]),
        (_, "mkimage") => mkimage::main(&arguments[2..]),
        (_, "golden") if arguments.get(2).is_some_and(|name| name == "fsck") => {
            golden_fsck::main(&arguments[3..])
        }
        (_, "golden") => golden::main(&arguments[2..]),
        (_, "kernel") => kernel::main(&arguments[2..]),
        (_, "interop") => interop::main(&arguments[2..]),
        (_, "sim") => sim::main(&arguments[2..]),
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

fn tidy_only() -> process::Result<ExitCode> {
    tidy::check().map(|_| ExitCode::SUCCESS)
}
