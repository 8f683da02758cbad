//! What goes wrong with the devices in a round.

use crate::disk::Faults;
use crate::plan::Plan;
use crate::set::Set;
use crate::work::Ledger;
use std::time::Duration;

/// What may go wrong in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// No faults.
    Calm,
    /// Faults that pass.
    Rough,
    /// Faults that end in a restart.
    Foul,
}

/// Faults to come in this round; `fail` is a disk and which I/O of it fails besides.
pub fn arm(set: &Set, plan: &Plan, fail: Option<(usize, u64)>, ledger: &Ledger) -> Weather {
    let chance = &set.chance;
    if plan.cache_faults {
        arm_cache_faults(set);
        return Weather::Foul;
    }
    let weather = if plan.faults && chance.percent(30) {
        Weather::Foul
    } else if plan.soft_faults && chance.percent(50) {
        Weather::Rough
    } else {
        Weather::Calm
    };
    match weather {
        Weather::Foul => arm_faults(set, ledger),
        Weather::Rough => arm_soft_faults(set, ledger),
        Weather::Calm => (),
    }
    if plan.lies && chance.percent(50) {
        arm_lies(set);
    }
    if let Some((disk, io)) = fail {
        be_blind(set, ledger);
        let disk = set.disks().nth(disk).expect("a disk").clone();
        disk.borrow_mut().faults.any_in = Some(io);
    }
    weather
}

/// Nothing fails any more.
pub fn faults_stop(set: &Set) {
    for disk in set.disks() {
        disk.borrow_mut().faults = Faults::default();
    }
}

fn be_blind(set: &Set, ledger: &Ledger) {
    ledger.faulty.set(true);
    set.oracles
        .iter()
        .for_each(|oracle| oracle.borrow_mut().blind = true);
}

/// Faults after which a set or volume takes no more writes.
fn arm_faults(set: &Set, ledger: &Ledger) {
    be_blind(set, ledger);
    let chance = &set.chance;
    for disk in set.disks().filter(|_| chance.percent(50)) {
        disk.borrow_mut().faults = Faults {
            write_in: chance.percent(60).then(|| chance.below(200)),
            flush_in: chance.percent(40).then(|| chance.below(20)),
            read_in: chance.percent(20).then(|| chance.below(100)),
            no_space_in: chance.percent(20).then(|| chance.below(100)),
            gone_in: chance.percent(15).then(|| {
                let time = Duration::from_millis(chance.between(1, 2_000));
                (chance.below(300), time)
            }),
            ..Faults::default()
        };
    }
}

/// Anything may fail on the cache device, and nothing on others. Clients must not notice: their data is all on the backing devices.
fn arm_cache_faults(set: &Set) {
    let chance = &set.chance;
    let is_hard = chance.percent(40);
    let hard = |most: u64| (is_hard && chance.percent(40)).then(|| chance.below(most));
    set.cache.borrow_mut().faults = Faults {
        write_in: hard(400),
        flush_in: hard(40),
        any_in: hard(800),
        gone_in: hard(600).map(|count| (count, Duration::from_millis(chance.between(1, 60_000)))),
        no_space_in: hard(400),
        reads_each: chance.percent(80).then(|| chance.between(2, 20)),
        data_each: chance.percent(60).then(|| chance.between(2, 30)),
        ..Faults::default()
    };
}

/// Faults that pass: reads, writes of data to backing devices, delays.
fn arm_soft_faults(set: &Set, ledger: &Ledger) {
    be_blind(set, ledger);
    let chance = &set.chance;
    let spikes = chance.pick(&[0, 1, 5]);
    for (number, disk) in set.disks().enumerate() {
        let is_backing = number > 0;
        let write = is_backing && chance.percent(40);
        disk.borrow_mut().faults = Faults {
            read_in: chance.percent(50).then(|| chance.below(60)),
            write_in: write.then(|| chance.below(40)),
            no_space_in: (is_backing && chance.percent(20)).then(|| chance.below(60)),
            spike_percent: spikes,
            from_byte: 8192,
            ..Faults::default()
        };
    }
}

/// The disks lie about data.
fn arm_lies(set: &Set) {
    let chance = &set.chance;
    for disk in set.disks().filter(|_| chance.percent(50)) {
        let mut disk = disk.borrow_mut();
        disk.faults.lost_in = chance.percent(50).then(|| chance.below(100));
        disk.faults.misdirected_in = chance.percent(50).then(|| chance.below(100));
    }
}
