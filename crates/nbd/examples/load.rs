//! Loads an NBD server and says what it made of it.
//!
//! ```text
//! cargo run --release -p brigade-nbd --example load -- unix:/tmp/ram.sock [BLOCK_BYTES [DEPTH [READ_PERCENT [SECONDS]]]]
//! ```

use brigade_nbd::load::{self, LoadOptions};
use brigade_uring::{HostEnv, HostOptions};
use std::io;
use std::path::Path;
use std::time::Duration;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(address) = arguments.first() else {
        eprintln!(
            "usage: load unix:PATH|tcp:HOST:PORT [BLOCK_BYTES [DEPTH [READ_PERCENT [SECONDS]]]]"
        );
        std::process::exit(2);
    };
    let number = |nr: usize, default: u64| {
        arguments
            .get(nr)
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let options = LoadOptions {
        block_bytes: number(1, 4096) as u32,
        depth: number(2, 32) as usize,
        read_percent: number(3, 100) as u32,
        duration: Duration::from_secs(number(4, 2)),
        ..LoadOptions::default()
    };
    let env = HostEnv::new(HostOptions::default())?;
    let stream = match address.split_once(':') {
        Some(("unix", path)) => env.connect_unix(Path::new(path))?,
        Some(("tcp", address)) => env.connect_tcp(address)?,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the address is unix:PATH or tcp:HOST:PORT",
            ));
        }
    };
    let report = env.block_on(load::run(&env, stream, "", options))?;
    println!(
        "{:.0} IOPS, {:.0} MB/s, p50 {:?}, p99 {:?}, p99.9 {:?}",
        report.iops(),
        report.bytes as f64 / report.elapsed.as_secs_f64() / 1e6,
        report.latencies.quantile(0.5),
        report.latencies.quantile(0.99),
        report.latencies.quantile(0.999),
    );
    Ok(())
}
