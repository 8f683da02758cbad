//! When a crash comes: at a step, or soon after a rare branch was taken.

use crate::exec::{Chance, World};
use brigade_engine::marks::{self, Mark};
use std::cell::Cell;

/// When a crash comes, unless what is run ends before.
pub struct Crash {
    /// At this step.
    pub step: Option<u64>,
    /// Or here.
    pub aim: Option<Aim>,
}

/// Soon after a branch was taken.
pub struct Aim {
    mark: Mark,
    /// Hits of the mark that it takes.
    hits: u64,
    /// Device operations that are completed after that.
    after: u64,
    /// The operation at which it comes, once the branch was taken.
    at: Cell<Option<u64>>,
}

impl Crash {
    /// Never.
    pub const NEVER: Crash = Crash {
        step: None,
        aim: None,
    };

    /// Whether it comes now.
    pub fn strikes(&self, world: &World) -> bool {
        self.step.is_some_and(|at| world.steps() >= at)
            || self.aim.as_ref().is_some_and(|aim| aim.strikes(world))
    }
}

impl Aim {
    /// Some time after this branch was taken.
    pub fn new(mark: Mark, chance: &Chance) -> Aim {
        // An opening takes up the record once, and then has all leaves to write.
        let (hits, after) = if mark == Mark::RecordReplayed {
            (1, chance.pick(&[15, 30, 60]))
        } else if mark == Mark::DirectDirtyHidden {
            (chance.between(1, 4), chance.pick(&[1, 2, 4, 8]))
        } else {
            (
                chance.between(1, chance.pick(&[1, 1, 3, 12])),
                chance.pick(&[4, 8, 20, 60]),
            )
        };
        Aim {
            mark,
            hits: marks::hits(mark) + hits,
            after: chance.below(after),
            at: Cell::new(None),
        }
    }

    fn strikes(&self, world: &World) -> bool {
        if self.at.get().is_none() && marks::hits(self.mark) >= self.hits {
            self.at.set(Some(world.device_operations() + self.after));
        }
        self.at
            .get()
            .is_some_and(|at| world.device_operations() >= at)
    }
}
