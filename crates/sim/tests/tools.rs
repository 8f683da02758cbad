//! What helps with a violation: it is replayed by one command, made shorter, and a stall says who waits for whom.
#![cfg(feature = "instrumented")]

use brigade_env::Env;
use brigade_env::sync::Semaphore;
use brigade_sim::exec::{Chance, World};
use brigade_sim::life::Choice;
use brigade_sim::run::{Kind, Spec};
use brigade_sim::{shrink, swarm};
use std::rc::Rc;
use std::time::Duration;

fn mistake(name: &str, kind: Kind) -> Spec {
    Spec {
        kind: Some(kind),
        ..Spec::of_mutant(name).expect("a mistake of this name")
    }
}

/// A seed that finds the mistake.
fn find(spec: Spec) -> u64 {
    let violates = |seed: &u64| shrink::violates(spec, *seed, &Choice::default()).is_some();
    (1..200).find(violates).expect("some seed finds it")
}

#[test]
fn a_failure_gets_shorter_and_fails_again() {
    swarm::catch_panics();
    let spec = mistake("ReplayBackwards", Kind::Swarm);
    let seed = find(spec);
    let shrunk = shrink::shrink(spec, seed).expect("it fails");
    assert!(
        shrunk.after() < shrunk.before,
        "{} requests",
        shrunk.after()
    );
    let (again, scripts) = shrink::violates(spec, seed, &shrunk.choice).expect("it fails again");
    assert_eq!(again, shrunk.message);
    assert_eq!(scripts.iter().map(Vec::len).sum::<usize>(), shrunk.after());
    let command = shrunk.command(spec, seed);
    assert!(
        command.contains("--mutant ReplayBackwards --plan swarm --seed"),
        "{command}"
    );
    let right = Spec {
        mutant: None,
        ..spec
    };
    assert!(
        shrink::violates(right, seed, &shrunk.choice).is_none(),
        "without the mistake nothing fails"
    );
}

#[test]
fn a_run_for_mistakes_is_the_same_by_its_seed_alone() {
    swarm::catch_panics();
    for seed in [8, 9, 12] {
        let spec = Spec::of_mutant("AckBeforeJournal").expect("a mistake");
        let [one, other] = [(); 2].map(|()| {
            let (result, trace) = swarm::traced(spec, seed, Choice::default());
            (result.err(), trace.take_text())
        });
        assert!(one == other, "seed {seed}");
    }
}

#[test]
fn a_stall_names_those_who_wait_for_each_other() {
    let world = World::new(Chance::new(1), Duration::ZERO);
    let (one, other) = (Rc::new(Semaphore::new(1)), Rc::new(Semaphore::new(1)));
    for (mine, its) in [(one.clone(), other.clone()), (other, one)] {
        let env = world.clone();
        world.spawn(async move {
            let _mine = mine.acquire(1).await;
            env.sleep(Duration::from_millis(1)).await;
            let _its = its.acquire(1).await;
        });
    }
    while world.step() {}
    let text = world.pending();
    assert_eq!(text.matches("waits for permits at").count(), 2, "{text}");
    assert_eq!(text.matches("held by task").count(), 2, "{text}");
    assert!(
        text.contains("spawned at crates/sim/tests/tools.rs:"),
        "{text}"
    );
    assert!(text.contains("in a circle: "), "{text}");
    world.kill();
}
