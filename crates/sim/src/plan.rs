//! What a life uses: whole features are switched off by seed, so that what is left happens often and in odd company.

use crate::exec::Chance;
use brigade_engine::marks::Mark;

/// Branches behind which a crash is most likely to find something half done.
const AIMS: [Mark; 7] = [
    Mark::BtreeRetired,
    Mark::BtreeRetired,
    Mark::RecordReplayed,
    Mark::RecordReplayed,
    Mark::BtreeInteriorAppend,
    Mark::DirectHidesDirty,
    Mark::DirectDirtyHidden,
];

/// The same, of changes of what is served.
const CHANGES: [Mark; 8] = [
    Mark::AttachNewSlot,
    Mark::AttachSlotGivenUp,
    Mark::DetachDone,
    Mark::FlashCreated,
    Mark::FlashDeleted,
    Mark::FlashGrown,
    Mark::FlashShrunk,
    Mark::SlotSwept,
];

/// Features that a life uses; tests of one thing switch the rest off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Ends may be losses of power.
    pub power_loss: bool,
    /// Devices fail in ways that end in a restart.
    pub faults: bool,
    /// Devices fail in ways that pass.
    pub soft_faults: bool,
    /// The cache device fails in every way and nothing else does, and nothing is ever dirty.
    pub cache_faults: bool,
    /// Devices lie about data, and data rots.
    pub lies: bool,
    /// Metadata rots, in copies that are opened and thrown away.
    pub rot: bool,
    /// All cache modes, which also change between requests.
    pub modes: bool,
    /// Backing devices come late, stay away, and are run without their cache.
    pub attach: bool,
    /// A volume that is only in the cache.
    pub flash: bool,
    /// A record in memory of another set or a former opening is found where the set's own would be.
    pub foreign_record: bool,
    /// Discards and zeroes.
    pub clear: bool,
    /// Short rings and old generations.
    pub wear: bool,
    /// The index may not grow beyond some kilobytes.
    pub little_memory: bool,
    /// Much data for a small cache: buckets are recycled all the time.
    pub pressure: bool,
    /// Openings at most.
    pub rounds_max: u64,
    /// Requests of a round at most.
    pub requests_max: u64,
    /// Crashes come soon after this branch was taken. Only where marks are compiled in.
    pub aim: Option<Mark>,
    /// Leaves that are written in one round, so that a small tree takes several. Only where marks are compiled in.
    pub leaf_batch: Option<usize>,
    /// Interior nodes have room for so few children, and leaves for few keys, so that a small tree is deep. Only where marks are compiled in.
    pub narrow: Option<usize>,
    /// Leaves that are rewritten together, as if there were few buckets. Only where marks are compiled in.
    pub together: Option<usize>,
    /// Collections are asked for.
    pub collects: bool,
    /// Now and then much of a volume is discarded.
    pub wipes: bool,
    /// Small buckets and many short writes all over: many keys for a small set.
    pub deep: bool,
    /// Many clients write the same few sectors, in every way.
    pub crowded: bool,
    /// Leaves are counted slowly after a start.
    pub slow_count: bool,
    /// Data moves out of buckets that are mostly dead.
    pub moving: bool,
    /// It does so however much room there is. Only where marks are compiled in.
    pub moving_is_eager: bool,
    /// Devices and volumes come, go and change while clients work.
    pub lifecycle: bool,
    /// So many of a hundred I/Os of backing devices take up to a fifth of a second.
    pub slow_percent: u64,
    /// The set has so few buckets that no kernel would open it.
    pub small: bool,
    /// Requests of the cache device that take more microseconds are a sign of congestion.
    pub congested_after: Option<u64>,
    /// Plain writes do not become dirty with a fifth of the cache in use.
    pub early_cutoff: bool,
    /// Reads ahead do not fill the cache.
    pub refuses_read_ahead: bool,
}

impl Plan {
    /// What the swarm does with a seed.
    pub fn swarm(seed: u64) -> Plan {
        let size = Chance::new(seed ^ 0x5eed_0512_b0c4_e75a);
        let plan = Plan::of_seed(seed);
        let plan = Plan {
            small: size.percent(8),
            ..plan
        };
        let lifecycle = Chance::new(seed ^ 0x5eed_11fe_c7c1_e0d5);
        if lifecycle.percent(20) && !plan.cache_faults {
            plan.with_lifecycle(&lifecycle)
        } else {
            plan
        }
    }

    /// As those seeds of the swarm in which volumes come and go, whatever the seed.
    pub fn lifecycle(seed: u64) -> Plan {
        let plan = Plan {
            cache_faults: false,
            ..Plan::of_seed(seed)
        };
        plan.with_lifecycle(&Chance::new(seed ^ 0x11fe_c7c1_5eed_e0d5))
    }

    fn with_lifecycle(self, chance: &Chance) -> Plan {
        Plan {
            lifecycle: true,
            attach: true,
            // Its own are made, and images that are opened and thrown away know nothing of them.
            flash: false,
            lies: false,
            rot: false,
            rounds_max: self.rounds_max.max(3),
            requests_max: self.requests_max.min(400),
            slow_percent: chance.pick(&[0, 0, 5, 20]),
            aim: match chance.percent(40) {
                true => Some(chance.pick(&CHANGES)),
                false => self.aim,
            },
            ..self
        }
    }

    fn of_seed(seed: u64) -> Plan {
        let chance = Chance::new(seed ^ 0x5eed_0f9a_1154_a1a1);
        // Dice of its own: the seeds from before there was moving gc do what they did.
        let moving = Chance::new(seed ^ 0x5eed_0aa0_71c6_33b7);
        let policy = Chance::new(seed ^ 0x5eed_0c3d_1f20_93a7);
        let shape = Chance::new(seed ^ 0x5eed_0b17_3c9e_6a55);
        let plan = Plan {
            power_loss: chance.percent(70),
            faults: chance.percent(25),
            soft_faults: chance.percent(25),
            cache_faults: false,
            lies: chance.percent(10),
            rot: chance.percent(15),
            modes: chance.percent(60),
            attach: chance.percent(30),
            flash: chance.percent(40),
            foreign_record: chance.percent(25),
            clear: chance.percent(70),
            wear: chance.percent(30),
            little_memory: chance.percent(20),
            pressure: chance.percent(35),
            rounds_max: chance.pick(&[2, 3, 3, 4]),
            requests_max: chance.pick(&[100, 140, 180, 240]),
            aim: chance.percent(25).then(|| chance.pick(&AIMS)),
            leaf_batch: chance.percent(35).then(|| chance.pick(&[1, 1, 2, 4])),
            narrow: shape.percent(40).then(|| shape.pick(&[8, 8, 12, 16])),
            together: shape.percent(30).then(|| shape.pick(&[1, 1, 2])),
            collects: shape.percent(30),
            wipes: false,
            deep: false,
            crowded: false,
            lifecycle: false,
            slow_percent: 0,
            small: false,
            slow_count: chance.percent(20),
            moving: moving.percent(75),
            moving_is_eager: moving.percent(60),
            congested_after: policy.percent(30).then(|| policy.pick(&[100, 500, 2000])),
            early_cutoff: policy.percent(40),
            refuses_read_ahead: policy.percent(20),
        };
        let errors = Chance::new(seed ^ 0x5eed_0e44_0b5a_91c3);
        if errors.percent(6) {
            plan.of_cache_faults()
        } else if chance.percent(8) {
            plan.crowded()
        } else if shape.percent(12) {
            plan.losing_much(&shape)
        } else if chance.percent(15) {
            let is_of_opening = chance.percent(50);
            plan.aimed(&chance, is_of_opening)
        } else {
            plan
        }
    }

    /// As some seeds of the swarm, whatever the seed.
    pub fn half_done(seed: u64) -> Plan {
        Plan::of_seed(seed).aimed(&Chance::new(seed ^ 0x0a1f_d02e_5eed_a13d), false)
    }

    /// The same, of openings that are cut off.
    pub fn cut_openings(seed: u64) -> Plan {
        Plan::of_seed(seed).aimed(&Chance::new(seed ^ 0x0a1f_d02e_5eed_a13d), true)
    }

    /// The same, of requests that overtake each other. A kill leaves fewer excuses than a loss of power.
    pub fn overtaking(seed: u64) -> Plan {
        Plan {
            power_loss: false,
            ..Plan::of_seed(seed).crowded()
        }
    }

    /// The same, of a tree that shrinks.
    pub fn shrinking(seed: u64) -> Plan {
        Plan::of_seed(seed).losing_much(&Chance::new(seed ^ 0x0b17_3c9e_5eed_51a2))
    }

    /// The same, without writeback and with faults of the cache device only.
    pub fn cache_faults(seed: u64) -> Plan {
        Plan::of_seed(seed).of_cache_faults()
    }

    fn of_cache_faults(self) -> Plan {
        Plan {
            cache_faults: true,
            faults: false,
            soft_faults: false,
            lies: false,
            modes: false,
            attach: false,
            flash: false,
            aim: None,
            requests_max: 400,
            ..self
        }
    }

    fn crowded(self) -> Plan {
        Plan {
            soft_faults: false,
            lies: false,
            attach: false,
            little_memory: false,
            pressure: false,
            deep: false,
            clear: true,
            crowded: true,
            aim: Some(Mark::DirectDirtyHidden),
            ..self
        }
    }

    /// The tree is deep for its size and the cache is full, and crashes come where one root or record takes the place of another.
    fn aimed(self, chance: &Chance, is_of_opening: bool) -> Plan {
        Plan {
            // The record does not outlive a loss of power.
            power_loss: self.power_loss && !is_of_opening,
            faults: false,
            soft_faults: false,
            lies: false,
            rot: false,
            attach: false,
            little_memory: chance.percent(20),
            pressure: !is_of_opening || chance.percent(50),
            // Passes over all leaves replace one root after the other.
            wear: self.wear || !is_of_opening,
            deep: true,
            rounds_max: 5,
            requests_max: chance.pick(&[240, 400, 800]),
            aim: Some(if is_of_opening {
                Mark::RecordReplayed
            } else {
                Mark::BtreeRetired
            }),
            leaf_batch: chance.percent(80).then(|| chance.pick(&[1, 1, 2])),
            ..self
        }
    }

    /// The tree is deep and loses much of what it holds, again and again.
    fn losing_much(self, shape: &Chance) -> Plan {
        let narrow = shape.pick(&[7, 7, 8, 12]);
        Plan {
            lies: false,
            little_memory: false,
            clear: true,
            crowded: false,
            deep: true,
            narrow: Some(narrow),
            together: shape.percent(60).then_some(1),
            leaf_batch: shape.percent(20).then_some(2),
            collects: true,
            wipes: true,
            // No root is above level 4.
            requests_max: if narrow < 8 {
                240
            } else {
                shape.pick(&[240, 400, 800])
            },
            aim: shape.percent(50).then_some(Mark::BtreeInteriorsJoin),
            ..self
        }
    }

    /// Kills only.
    pub fn kills() -> Plan {
        Plan {
            clear: true,
            flash: true,
            rounds_max: 5,
            requests_max: 400,
            ..Plan::default()
        }
    }

    /// Losses of power too.
    pub fn power() -> Plan {
        Plan {
            power_loss: true,
            modes: true,
            ..Plan::kills()
        }
    }

    /// Devices that fail.
    pub fn failing() -> Plan {
        Plan {
            faults: true,
            rounds_max: 4,
            ..Plan::power()
        }
    }
}
