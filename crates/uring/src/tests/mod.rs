//! Tests of the crate as its users see it, on both engines.

mod device;
mod executor;
mod network;

use crate::{Engine, HostEnv, HostOptions};
use brigade_env::{Buffer, Env};
use std::time::Duration;

/// Runs a test on every engine, and on io_uring also with spinning and with queues that overflow all the time.
fn on_all_engines(test: impl Fn(&HostEnv)) {
    let base = HostOptions {
        buffer_pool_bytes: 16 << 20,
        threads: 4,
        ..HostOptions::default()
    };
    let worlds = [
        HostOptions {
            engine: Engine::Uring,
            ..base.clone()
        },
        HostOptions {
            engine: Engine::Uring,
            queue_depth: 8,
            spin: Duration::from_micros(20),
            ..base.clone()
        },
        HostOptions {
            engine: Engine::Threads,
            ..base.clone()
        },
        HostOptions {
            engine: Engine::Threads,
            queue_depth: 1,
            threads: 1,
            ..base
        },
    ];
    for options in worlds {
        let env = HostEnv::new(options).expect("a world");
        test(&env);
        env.shutdown();
    }
}

/// A buffer with a recognisable content.
fn pattern(env: &HostEnv, length: usize, seed: u64) -> Buffer {
    let mut buffer = env.buffers().get(length);
    fill(&mut buffer, seed);
    buffer
}

fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for byte in bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
}
