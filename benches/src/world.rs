//! A cache in memory: an allocator that was loaded with buckets of any state, and the task that makes buckets ready.

use crate::chance::Chance;
use brigade_engine::alloc::{Allocator, Config, Data, GcBase, Placement, Replacement, Sizes};
use brigade_engine::alloc::{GEN_AGE_WANTS_GC, PRIO_FRESH};
use brigade_format::{BucketNr, Gen, Ptr, prio};

/// Victims that the engine chooses in one step.
pub use brigade_engine::alloc::GATHER_STEP as GATHER_AT_ONCE;
/// Sectors of the usual request.
pub const PIECE: u64 = 8;
/// The volume everything is written to.
const INODE: u32 = 1;
const STREAM: u16 = 7;

/// The size of a cache.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Buckets.
    pub nbuckets: u64,
    /// Sectors of each.
    pub bucket_sectors: u32,
}

impl Size {
    /// As a new cache device of this size would have it.
    pub fn config(&self) -> Config {
        let per_table = prio::entries_per_bucket(self.bucket_sectors as usize * 512) as u64;
        Config {
            first_bucket: 16u64.div_ceil(u64::from(self.bucket_sectors)).max(1),
            nbuckets: self.nbuckets,
            bucket_sectors: self.bucket_sectors,
            block_sectors: 8,
            table_buckets: self.nbuckets.div_ceil(per_table) as u32,
            journal_buckets: (self.nbuckets / 128).clamp(2, 256) as u32,
            replacement: Replacement::Lru,
        }
    }

    /// Buckets that a cache that ran for a while has not in use: the reserves, and what is left of the last batch.
    fn spare(&self) -> u64 {
        let sizes = Sizes::of(&self.config());
        (sizes.btree + sizes.prio + sizes.moving_gc + sizes.low_water) as u64
            + u64::from(self.config().table_buckets)
    }
}

/// What a bucket is when it is loaded.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// Does anything name it?
    pub is_named: bool,
    /// Its generation.
    pub r#gen: u8,
    /// Its recency.
    pub prio: u16,
    /// Live sectors.
    pub live: u32,
    /// All of them are dirty.
    pub is_dirty: bool,
}

/// A full cache after some use: any recency, any number of live sectors, one bucket of 32 dirty.
pub fn used(size: Size) -> impl Fn(u64) -> State {
    let spare_every = (size.nbuckets / size.spare().max(1)).max(1);
    move |nr| {
        let mut chance = Chance::new(nr);
        State {
            is_named: !nr.is_multiple_of(spare_every),
            r#gen: chance.number() as u8,
            prio: chance.below(u64::from(PRIO_FRESH)) as u16 + 1,
            live: chance.below(u64::from(size.bucket_sectors)) as u32 + 1,
            is_dirty: chance.below(32) == 0,
        }
    }
}

/// A cache that was filled from one end to the other.
pub fn full(size: Size) -> impl Fn(u64) -> State {
    let spare_every = (size.nbuckets / size.spare().max(1)).max(1);
    move |nr| State {
        is_named: !nr.is_multiple_of(spare_every),
        r#gen: 1,
        prio: PRIO_FRESH,
        live: size.bucket_sectors,
        is_dirty: false,
    }
}

/// An allocator at work.
pub struct World {
    /// It.
    pub alloc: Allocator,
    config: Config,
    chain: Vec<BucketNr>,
    chance: Chance,
    next: u64,
    /// Tables written.
    pub tables: u64,
    /// Collections of garbage.
    pub collections: u64,
}

impl World {
    /// Loads a cache; it is not started.
    pub fn load(size: Size, state: impl Fn(u64) -> State) -> World {
        let config = size.config();
        let mut alloc = Allocator::new(config);
        for nr in config.first_bucket..config.nbuckets {
            let state = state(nr);
            let (bucket, r#gen) = (BucketNr(nr), Gen(state.r#gen));
            alloc.set_gen(bucket, r#gen, state.prio);
            if state.is_named {
                alloc.mark_referenced(bucket);
                let ptr = Ptr::new(nr * u64::from(config.bucket_sectors), r#gen);
                alloc.add_live(ptr, state.live, state.is_dirty);
            }
        }
        World {
            alloc,
            config,
            chain: Vec::new(),
            chance: Chance::new(size.nbuckets),
            next: 0,
            tables: 0,
            collections: 0,
        }
    }

    /// As [`World::load`], and started.
    pub fn start(size: Size, state: impl Fn(u64) -> State) -> World {
        let mut world = World::load(size, state);
        world.alloc.start();
        world
    }

    /// Any bucket that may hold data.
    pub fn any_bucket(&mut self) -> BucketNr {
        let config = &self.config;
        let below = config.nbuckets - config.first_bucket;
        BucketNr(config.first_bucket + self.chance.below(below))
    }

    /// Writes a stretch of data that follows the last one, and enters it in the index; gives the sectors.
    pub fn write(&mut self, sectors: u64) -> u64 {
        let placement = self.place(sectors);
        self.alloc.add_live(placement.ptr, placement.sectors, false);
        self.alloc.release_pin(placement.bucket);
        self.alloc.account_traffic(u64::from(placement.sectors));
        u64::from(placement.sectors)
    }

    /// Only the room for it.
    pub fn place(&mut self, sectors: u64) -> Placement {
        loop {
            let found = self
                .alloc
                .allocate(STREAM, INODE, self.next, sectors, Data::Cached, false);
            if let Some(placement) = found {
                self.next += u64::from(placement.sectors);
                return placement;
            }
            self.recycle();
        }
    }

    /// What the engine's task does when it is woken: collects garbage if gens are far ahead, and recycles if buckets run low.
    pub fn tend(&mut self) {
        if self.alloc.wants_batch() {
            self.recycle();
        }
    }

    /// One batch, steps and table.
    pub fn recycle(&mut self) {
        self.collect();
        while !self.alloc.is_batch_full() && self.step(GATHER_AT_ONCE) > 0 {}
        self.write_table();
    }

    /// One step of choosing victims.
    pub fn step(&mut self, count: usize) -> usize {
        let chance = &mut self.chance;
        self.alloc.gather(count, || chance.number())
    }

    /// The table of a batch, with all that is not encoding and writing.
    pub fn write_table(&mut self) {
        let batch = self.alloc.begin_batch().expect("buckets for a table");
        let links: Vec<BucketNr> = batch.table_buckets().iter().map(|link| link.nr).collect();
        let per_link = self.config.nbuckets.div_ceil(links.len() as u64);
        for at in 0..links.len() as u64 {
            let entries = self.alloc.table_entries(at * per_link..(at + 1) * per_link);
            std::hint::black_box(entries);
        }
        let old = std::mem::replace(&mut self.chain, links);
        self.alloc.batch_durable(batch);
        for nr in old {
            self.alloc.free_metadata(nr);
        }
        self.tables += 1;
    }

    fn collect(&mut self) {
        if self.alloc.need_gc() < GEN_AGE_WANTS_GC {
            return;
        }
        let mut base = GcBase::default();
        while !self.alloc.gc_note(&mut base, 1 << 16) {}
        while !self.alloc.gc_finish(&mut base, 1 << 16) {}
        self.collections += 1;
    }
}
