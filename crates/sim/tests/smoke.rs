//! A spell of simulation in the gate; hours of it are `cargo x sim`.

use brigade_sim::exec::Trace;
use brigade_sim::life::{Choice, Life};
use brigade_sim::plan::Plan;
use brigade_sim::run::Spec;
use brigade_sim::{swarm, sweep};

/// T82, T87, T99, T163, T171.
#[test]
fn lives_of_the_swarm_show_no_violation() {
    for seed in 0..60 {
        let tally = Life::new(seed, Plan::swarm(seed)).run();
        assert!(tally.requests > 0, "seed {seed} did nothing");
    }
}

/// T163.
#[test]
fn lives_whose_volumes_come_and_go_show_no_violation() {
    for seed in 0..40 {
        let tally = Life::new(seed, Plan::lifecycle(seed)).run();
        assert!(tally.requests > 0, "seed {seed} did nothing");
    }
}

/// T53, T57, T90, T92, T113, T120, T171, T177, T178.
#[test]
fn a_crash_after_every_operation_of_short_workloads_is_survived() {
    let crashes: u64 = (0..3).map(|seed| sweep::prefixes(seed).crashes()).sum();
    assert!(crashes > 100, "only {crashes} crashes were tried");
}

/// T58, T121.
#[test]
fn the_failure_of_every_single_io_of_short_workloads_is_survived() {
    let tried: u64 = (1..5).map(|seed| sweep::faults(seed).runs).sum();
    assert!(tried > 50, "only {tried} failures were tried");
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in [3, 77] {
        let [one, other] = [(); 2].map(|()| {
            let trace = Trace::with_text();
            let life = Life::traced(seed, Plan::swarm(seed), Choice::default(), trace.clone());
            life.run();
            trace.take_text()
        });
        assert!(one.lines().count() > 100, "a trace of something");
        assert_eq!(one, other, "seed {seed}");
    }
}

#[test]
fn fewer_requests_are_a_shorter_run() {
    let none = Choice {
        only: Some(std::collections::BTreeSet::new()),
        rounds: Some(1),
        ..Choice::default()
    };
    let (result, _) = swarm::traced(Spec::default(), 5, none);
    let all = swarm::traced(Spec::default(), 5, Choice::default()).0;
    let (few, many) = (result.expect("no violation"), all.expect("no violation"));
    assert!(few.requests < many.requests);
}
