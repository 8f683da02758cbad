//! Lives of cache sets under crashes, from seeds.
//!
//! `BRIGADE_SEED=n` runs one seed (`BRIGADE_VERBOSE=1` tells its story, `BRIGADE_TRACE=1` also every write), `BRIGADE_SEEDS=n` runs
//! the first n.

use brigade_sim::life::{Life, Plan};
use std::sync::atomic::{AtomicU64, Ordering};

fn seeds(standard: u64) -> Vec<u64> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    if let Some(seed) = number("BRIGADE_SEED") {
        return vec![seed];
    }
    let start = number("BRIGADE_START").unwrap_or(0);
    (start..start + number("BRIGADE_SEEDS").unwrap_or(standard)).collect()
}

/// A step of the world that never ends cannot be seen from within it.
fn watch(now: &'static AtomicU64) {
    std::thread::spawn(move || {
        let mut last = (u64::MAX, 0);
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
            let seed = now.load(Ordering::Relaxed);
            last = if last.0 == seed {
                (seed, last.1 + 1)
            } else {
                (seed, 0)
            };
            if last.1 > 120 {
                eprintln!("seed {seed}: does not come back");
                std::process::abort();
            }
        }
    });
}

fn run(plan: Plan, standard: u64) {
    static SEED: AtomicU64 = AtomicU64::new(0);
    watch(&SEED);
    let keep_going = std::env::var("BRIGADE_KEEP_GOING").is_ok();
    let mut failed = Vec::new();
    for seed in seeds(standard) {
        SEED.store(seed, Ordering::Relaxed);
        let life = std::panic::AssertUnwindSafe(|| Life::new(seed, plan).run());
        if std::panic::catch_unwind(life).is_err() {
            eprintln!("FAILED seed {seed}");
            failed.push(seed);
            if !keep_going {
                break;
            }
        }
    }
    assert!(failed.is_empty(), "seeds {failed:?}");
}

#[test]
fn nothing_acknowledged_is_lost_when_the_server_is_killed() {
    run(
        Plan {
            power_loss: false,
            faults: false,
            modes: false,
            rounds_max: 5,
        },
        25,
    );
}

#[test]
fn nothing_flushed_is_lost_when_the_power_goes() {
    run(
        Plan {
            power_loss: true,
            faults: false,
            modes: true,
            rounds_max: 5,
        },
        25,
    );
}

#[test]
fn after_a_failed_write_or_flush_nothing_false_is_acknowledged() {
    run(
        Plan {
            power_loss: true,
            faults: true,
            modes: true,
            rounds_max: 4,
        },
        25,
    );
}
