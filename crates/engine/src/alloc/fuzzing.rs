//! What the fuzz target runs: any bytes are a history, which has to equal its twin after every step.

use super::twin::{Step, World};
use super::{Config, Replacement, Sizes};

/// The first four bytes say what the world is like, then each four are a step.
pub fn steps(input: &[u8]) {
    let Some((world, steps)) = input.split_first_chunk::<4>() else {
        return;
    };
    let mut world = made(*world);
    for step in steps.as_chunks::<4>().0 {
        world.step(Step::of(*step));
    }
}

fn made([policy, nbuckets, table, sizes]: [u8; 4]) -> World {
    let policies = [Replacement::Lru, Replacement::Fifo, Replacement::Random];
    let config = Config {
        first_bucket: 1,
        nbuckets: u64::from(nbuckets % 32) + 8,
        bucket_sectors: 8,
        block_sectors: 2,
        table_buckets: u32::from(table % 2) + 1,
        journal_buckets: 0,
        replacement: policies[usize::from(policy) % policies.len()],
    };
    let sizes = Sizes {
        btree: usize::from(sizes % 3) + 1,
        prio: 2 * config.table_buckets as usize,
        moving_gc: usize::from(sizes / 4 % 3),
        low_water: 1,
        batch: usize::from(sizes / 16 % 8) + 1,
        slots: usize::from(sizes / 128) + 2,
    };
    World::new(config, sizes)
}
