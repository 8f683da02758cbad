//! Everything that can happen to short workloads: a crash after every device operation, with samples of what a loss of power
//! may leave, and the failure of every single I/O.
//!
//! A crash is tried on a fork of the set, so the workload itself runs once. What is tried: the images pass the independent reader;
//! opening them, which is cut off up to three times itself, succeeds; every sector reads as one of what it may.

use crate::disk::End;
use crate::drive::drive;
use crate::exec::Trace;
use crate::life::{Choice, Life, check_warnings};
use crate::plan::Plan;
use crate::run::Scripts;
use crate::set::Set;
use crate::tally::Tally;
use crate::work::Ledger;
use brigade_engine::settings::Knob;
use brigade_engine::{AckPolicy, Options, marks};
use std::cell::RefCell;
use std::rc::Rc;

/// Losses of power that are tried at each point besides one kill.
pub const REORDERINGS: u64 = 3;
/// How often a recovery is cut off at most.
const DEPTH_MAX: u64 = 3;

fn short(seed: u64) -> Plan {
    let swarm = Plan::swarm(seed);
    Plan {
        power_loss: true,
        modes: swarm.modes,
        clear: swarm.clear,
        flash: swarm.flash,
        wear: swarm.wear,
        pressure: swarm.pressure,
        moving: swarm.moving,
        moving_is_eager: swarm.moving_is_eager,
        rounds_max: 2,
        requests_max: 40,
        ..Plan::default()
    }
}

/// Crashes one short workload after every device operation. `runs` counts the crashes that were tried.
pub fn prefixes(seed: u64) -> Tally {
    prefixes_of(
        seed,
        Choice::default(),
        Trace::default(),
        Scripts::default(),
    )
}

/// The same, perhaps without some requests.
pub fn prefixes_of(seed: u64, choice: Choice, trace: Trace, scripts: Scripts) -> Tally {
    marks::take();
    let tried = Rc::new(RefCell::new(Tally::default()));
    let mut life = Life::traced(seed, short(seed), choice, trace);
    life.scripts = scripts;
    let tally = tried.clone();
    life.observer = Some(Box::new(move |set, ledger| {
        try_ends(set, ledger, &mut tally.borrow_mut());
    }));
    life.live();
    let mut tally = tried.borrow().clone();
    tally.requests = life.tally().requests;
    tally.marks = marks::take();
    tally
}

fn try_ends(set: &Set, ledger: &Ledger, tally: &mut Tally) {
    for number in 0..=REORDERINGS {
        let end = if number == 0 {
            End::Kill
        } else {
            End::PowerLoss
        };
        let seed = set.seed ^ (set.now.as_nanos() as u64) << 8 ^ number << 60;
        let mut fork = set.fork(seed, Some(ledger));
        fork.end_devices(end);
        fork.after_end(end);
        tally.runs += 1;
        match end {
            End::Kill => tally.kills += 1,
            End::PowerLoss => tally.power_losses += 1,
        }
        recover(&mut fork, tally);
    }
}

/// Opens what a crash left and reads everything.
fn recover(set: &mut Set, tally: &mut Tally) {
    let given: Vec<usize> = (0..set.backings.len()).collect();
    let options = Options {
        ack: set.chance.pick(&[AckPolicy::Memory, AckPolicy::Journal]),
        ..Options::default()
    }
    .with(Knob::WritebackDelay, 10_000);
    for _ in 0..DEPTH_MAX {
        if !set.chance.percent(35) {
            break;
        }
        set.inspect();
        let world = set.world();
        let last = set.chance.below(40);
        let opening = set.open(&world, &options, &given);
        let opened = world.run(opening, || world.device_operations() >= last);
        if let Some(Err(error)) = &opened {
            panic!("seed {}: open: {error}", set.seed);
        }
        drop(opened);
        let end = set.chance.pick(&[End::Kill, End::PowerLoss]);
        set.end(&world, end, None);
        tally.cut_openings += 1;
    }
    set.inspect();
    let (world, ledger) = (set.world(), Rc::new(Ledger::default()));
    let opening = set.open(&world, &options, &given);
    let opened = drive(set, &world, "open", opening, None, &ledger, None);
    let server = opened
        .expect("it ends")
        .unwrap_or_else(|error| panic!("seed {}: open: {error}", set.seed));
    check_warnings(set.seed, &server);
    let clients = set.clients(&world, &server, &ledger);
    let reads = async move { clients.read_everything().await };
    drive(set, &world, "reads", reads, None, &ledger, Some(&server));
    server.audit();
    world.kill();
}

/// Fails every single I/O of one short workload, one at a time, and lives on. `runs` counts the failures.
pub fn faults(seed: u64) -> Tally {
    marks::take();
    let plan = Plan {
        rounds_max: 1,
        ..short(seed)
    };
    let mut life = Life::traced(seed, plan, Choice::default(), Trace::default());
    life.live();
    let mut tally = Tally::default();
    for (disk, count) in life.ios.iter().enumerate() {
        for io in 0..*count {
            let mut life = Life::traced(seed, plan, Choice::default(), Trace::default());
            life.fail = Some((disk, io));
            tally.add(&life.run());
        }
    }
    tally.marks = marks::take();
    tally
}
