//! Lives of cache sets under crashes, from seeds.
//!
//! `BRIGADE_SEED=n` runs one seed (`BRIGADE_VERBOSE=1` tells its story), `BRIGADE_SEEDS=n` runs
//! the first n.

use brigade_sim::life::Life;
use brigade_sim::plan::Plan;

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

fn run(plan: Plan, standard: u64) {
    let keep_going = std::env::var("BRIGADE_KEEP_GOING").is_ok();
    let mut failed = Vec::new();
    for seed in seeds(standard) {
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
    run(Plan::kills(), 25);
}

/// T113.
#[test]
fn nothing_flushed_is_lost_when_the_power_goes() {
    run(Plan::power(), 25);
}

/// T121.
#[test]
fn after_a_failed_write_or_flush_nothing_false_is_acknowledged() {
    run(Plan::failing(), 25);
}
