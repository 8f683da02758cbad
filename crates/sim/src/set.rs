//! A cache set at rest: its devices, the record in memory, and what its volumes have to hold. It can be forked, so that many
//! futures are tried from one past.

use crate::disk::{DiskState, End, Faults, Harm, Pace};
use crate::exec::{Chance, Store, Trace, World};
use crate::judge;
use crate::oracle::{Oracle, place_of};
use crate::plan::Plan;
use crate::register::{PLACES, Register};
use crate::small;
use crate::tally::Tally;
use crate::work::{Clients, Ledger};
use brigade_engine::alloc::GEN_AGE_MAX;
use brigade_engine::recovery::Loaded;
use brigade_engine::{Options, Server};
use brigade_env::Geometry;
use brigade_format::{
    BackingState, CacheMode, NewBacking, NewCache, Replacement, Superblock, uuid_text,
};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// Findings that images of our own may show (docs/format.md 11).
pub const FINDINGS: [&str; 3] = ["F18", "F51", "F54"];
const SET_UUID: [u8; 16] = [9; 16];
/// Identity of the flash volume.
pub const FLASH_UUID: [u8; 16] = [0x77; 16];

/// A backing device at rest.
#[derive(Clone)]
pub struct Backing {
    /// The device.
    pub disk: Rc<RefCell<DiskState>>,
    /// First sector of its volume.
    pub data_offset: u64,
    /// Its identity.
    pub uuid: [u8; 16],
}

/// See the module documentation.
pub struct Set {
    /// For messages.
    pub seed: u64,
    /// Chance of what happens at rest.
    pub chance: Chance,
    /// Where events are noted.
    pub trace: Trace,
    /// The cache device.
    pub cache: Rc<RefCell<DiskState>>,
    /// Backing devices.
    pub backings: Vec<Backing>,
    /// The record in memory.
    pub store: Store,
    /// What each volume may read as: those of the backing devices, and then the flash volume.
    pub oracles: Rc<Vec<RefCell<Oracle>>>,
    /// Virtual time.
    pub now: Duration,
    /// Another number is another order of events, with the same requests.
    pub shift: u64,
    /// Sectors of a block.
    pub block_sectors: u64,
    /// Sectors of a bucket.
    pub bucket_sectors: u64,
    /// The flash volume has been made.
    pub has_flash: bool,
    /// What must be true of volumes that come and go.
    pub register: Rc<RefCell<Register>>,
    /// What happened.
    pub tally: Tally,
}

fn geometry(sectors: u64, chance: &Chance) -> Geometry {
    let (logical, physical) = chance.pick(&[(512, 512), (512, 512), (512, 4096), (4096, 4096)]);
    Geometry {
        size_bytes: sectors * 512,
        logical_block_bytes: logical,
        physical_block_bytes: physical,
        can_discard: chance.percent(60),
        is_read_only: false,
        optimal_io_bytes: 0,
        partial_stripes_expensive: false,
    }
}

impl Set {
    /// As a formatter leaves it.
    pub fn new(seed: u64, plan: &Plan, trace: Trace) -> Set {
        #[cfg(feature = "instrumented")]
        brigade_engine::set_leaf_batch(plan.leaf_batch);
        #[cfg(feature = "instrumented")]
        brigade_engine::set_children_most(plan.narrow);
        #[cfg(feature = "instrumented")]
        brigade_engine::set_rewritten_together(plan.together);
        #[cfg(feature = "instrumented")]
        brigade_engine::set_leaves_here_min(plan.little_memory.then_some(1));
        #[cfg(feature = "instrumented")]
        brigade_engine::set_count_pause(Duration::from_millis(if plan.slow_count {
            200
        } else {
            0
        }));
        #[cfg(feature = "instrumented")]
        brigade_engine::set_moving_eager(plan.moving_is_eager);
        let chance = Chance::new(seed.wrapping_mul(0x1234_5678_9abc_def1) ^ seed);
        // A bucket of a single block holds one journal entry and no second set of a node; that is not supported.
        let mut bucket_sectors = if plan.deep {
            8
        } else if plan.pressure {
            chance.pick(&[8, 8, 16])
        } else {
            chance.pick(&[8, 8, 16, 16, 32, 64])
        };
        let buckets = chance.between(513, 640);
        let buckets = match plan.small {
            true => 128 + 3 * (buckets - 513),
            false => buckets,
        };
        let mut cache_geometry = geometry(0, &chance);
        if cache_geometry.logical_block_bytes == 4096 {
            bucket_sectors = bucket_sectors.max(16);
        }
        let block_sectors = match cache_geometry.logical_block_bytes {
            4096 => 8,
            _ if bucket_sectors == 8 => chance.pick(&[1, 2, 4]),
            _ => chance.pick(&[1, 8, 8]),
        };
        cache_geometry.size_bytes = buckets * bucket_sectors * 512;
        let cache = DiskState::new("cache", cache_geometry);
        let new = NewCache {
            device_sectors: buckets * bucket_sectors,
            bucket_sectors: bucket_sectors as u32,
            block_sectors: block_sectors as u16,
            uuid: [1; 16],
            set_uuid: SET_UUID,
            discard: chance.percent(30),
            replacement: chance.pick(&[
                Replacement::Lru,
                Replacement::Lru,
                Replacement::Fifo,
                Replacement::Random,
            ]),
        };
        cache.borrow_mut().poke(
            4096,
            &Superblock::new_cache(&new).expect("a sound cache").encode(),
        );
        let count = chance.between(1, 3);
        let sizes = (0..count)
            .map(|_| {
                let tenths = if plan.pressure { 12 } else { 4 };
                buckets * bucket_sectors * chance.between(tenths, 25) / 10 / count
            })
            .map(|sectors| sectors.next_multiple_of(8) + 16);
        let sizes: Vec<u64> = sizes.collect();
        let new = |(number, sectors): (usize, &u64)| {
            new_backing(number as u8, *sectors, block_sectors as u16, &chance)
        };
        let backings = sizes.iter().enumerate().map(new).collect();
        let flash = plan.flash.then(|| {
            let in_buckets = if plan.pressure { buckets - 13 } else { 300 };
            in_buckets * bucket_sectors / 8 * 8
        });
        // Flash volumes that are made while a set is served.
        let places = if plan.lifecycle { PLACES } else { 0 };
        let made = std::iter::repeat_n(0, places);
        let sizes = sizes.iter().copied().chain(flash).chain(made);
        let oracles = sizes
            .enumerate()
            .map(|(number, sectors)| RefCell::new(Oracle::new(number as u64 + 1, sectors)));
        let register = Register::new(count as usize, places);
        let set = Set {
            seed,
            trace,
            cache,
            backings,
            register: Rc::new(RefCell::new(register)),
            store: Store::default(),
            oracles: Rc::new(oracles.collect()),
            now: Duration::from_secs(1),
            shift: 0,
            block_sectors,
            bucket_sectors,
            has_flash: false,
            tally: Tally::default(),
            chance,
        };
        set.tell_oracles_of_harm();
        set.slow_down(plan.slow_percent);
        set
    }

    fn tell_oracles_of_harm(&self) {
        let oracles = self.oracles.clone();
        let harm: Harm = Rc::new(move |sector: &[u8]| {
            let (volume, sector) = place_of(sector);
            if let Some(oracle) = oracles.get((volume as usize).wrapping_sub(1)) {
                oracle.borrow_mut().harm(sector);
            }
        });
        for disk in self.disks() {
            disk.borrow_mut().harm = Some(harm.clone());
        }
    }

    /// Requests overlap what is done to their volume.
    fn slow_down(&self, percent: u64) {
        for (number, backing) in self.backings.iter().enumerate() {
            let chance = Chance::new(self.seed ^ 0x5eed_510e_0000_0000 ^ number as u64);
            let pace: Pace = Rc::new(move |_| {
                let is_slow = chance.percent(percent);
                is_slow.then(|| Duration::from_millis(chance.between(1, 200)))
            });
            backing.disk.borrow_mut().pace = (percent > 0).then_some(pace);
        }
    }

    /// All devices, the cache first.
    pub fn disks(&self) -> impl Iterator<Item = &Rc<RefCell<DiskState>>> {
        std::iter::once(&self.cache).chain(self.backings.iter().map(|backing| &backing.disk))
    }

    /// Another set with the same past. What `ledger` has under way was cut off there.
    pub fn fork(&self, seed: u64, ledger: Option<&Ledger>) -> Set {
        let fork_backing = |backing: &Backing| Backing {
            disk: backing.disk.borrow().fork(),
            ..backing.clone()
        };
        let oracles = self.oracles.iter().cloned().collect::<Vec<_>>();
        let fork = Set {
            seed: self.seed,
            chance: Chance::new(seed),
            trace: Trace::default(),
            cache: self.cache.borrow().fork(),
            backings: self.backings.iter().map(fork_backing).collect(),
            store: self.store.fork(),
            oracles: Rc::new(oracles),
            now: self.now,
            shift: self.shift,
            block_sectors: self.block_sectors,
            bucket_sectors: self.bucket_sectors,
            has_flash: self.has_flash,
            register: Rc::new(RefCell::new(self.register.borrow().clone())),
            tally: Tally::default(),
        };
        fork.tell_oracles_of_harm();
        if let Some(ledger) = ledger {
            fork.cut_off(ledger);
        }
        fork
    }

    fn cut_off(&self, ledger: &Ledger) {
        for (volume, writing) in ledger.writing.borrow().values() {
            self.oracles[*volume].borrow_mut().abandon(*writing);
        }
        for oracle in self.oracles.iter() {
            oracle.borrow_mut().forget_reads();
        }
    }

    /// A new process.
    pub fn world(&self) -> World {
        World::traced(self.luck(), self.now, self.trace.clone())
    }

    /// Chance of what has nothing to do with the requests.
    pub fn luck(&self) -> Chance {
        Chance::new(self.chance.next() ^ self.shift.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Opens the set with some of its backing devices.
    pub fn open(
        &self,
        world: &World,
        options: &Options,
        given: &[usize],
    ) -> impl Future<Output = Result<Rc<Server<World>>, brigade_engine::Error>> + 'static + use<>
    {
        let caches = vec![world.device(&self.cache)];
        let backings = given
            .iter()
            .map(|at| world.device(&self.backings[*at].disk))
            .collect();
        let store = self.store.clone();
        Server::open(
            world.clone(),
            caches,
            backings,
            move |_| Some(store.clone()),
            options.clone(),
        )
    }

    /// Serves backing devices without their cache.
    pub fn open_alone(
        &self,
        world: &World,
        options: &Options,
        at: usize,
    ) -> impl Future<Output = Result<Rc<Server<World>>, brigade_engine::Error>> + 'static + use<>
    {
        let backings = vec![world.device(&self.backings[at].disk)];
        Server::open(
            world.clone(),
            Vec::new(),
            backings,
            |_| None,
            options.clone(),
        )
    }

    /// Clients of what is served.
    pub fn clients(
        &self,
        world: &World,
        server: &Rc<Server<World>>,
        ledger: &Rc<Ledger>,
    ) -> Clients {
        let mut volumes = vec![None; self.oracles.len()];
        for volume in server.volumes() {
            let is_this = |uuid: &[u8; 16]| text_of(uuid) == volume.uuid;
            let at = self
                .backings
                .iter()
                .position(|backing| is_this(&backing.uuid))
                .or_else(|| is_this(&FLASH_UUID).then_some(self.backings.len()))
                .or_else(|| self.register.borrow().flash(&volume.uuid, &volume.label()));
            if let Some(at) = at {
                volumes[at] = Some(volume);
            }
        }
        Clients {
            world: world.clone(),
            server: server.clone(),
            volumes: Rc::new(RefCell::new(volumes)),
            flashes_from: self.backings.len(),
            oracles: self.oracles.clone(),
            ledger: ledger.clone(),
        }
    }

    /// The process, or everything, ends.
    pub fn end(&mut self, world: &World, end: End, ledger: Option<&Ledger>) {
        use brigade_env::Env;
        self.now = world.now();
        world.note(
            "world",
            if end == End::Kill {
                "kill"
            } else {
                "power loss"
            },
            [0; 2],
        );
        world.kill();
        self.end_devices(end);
        if let Some(ledger) = ledger {
            self.cut_off(ledger);
            ledger.writing.borrow_mut().clear();
            self.tally.requests += ledger.done.get();
            self.tally.failed += ledger.failed.get();
        }
        self.after_end(end);
    }

    /// What an end does to the devices.
    pub fn end_devices(&mut self, end: End) {
        for disk in self.disks() {
            let mut disk = disk.borrow_mut();
            disk.end(end, &self.chance);
            disk.faults = Faults::default();
        }
    }

    /// What an end does to everything else.
    pub fn after_end(&mut self, end: End) {
        for oracle in self.oracles.iter() {
            oracle.borrow_mut().forget_reads();
        }
        if end == End::PowerLoss {
            self.store.0.borrow_mut().clear();
            self.oracles
                .iter()
                .for_each(|oracle| oracle.borrow_mut().power_loss());
        }
    }

    /// The cache device's superblock.
    pub fn superblock(&self) -> Superblock {
        let mut bytes = vec![0; 4096];
        self.cache.borrow().peek(4096, &mut bytes);
        Superblock::parse(&bytes).expect("a superblock")
    }

    /// A backing device's superblock.
    pub fn backing_superblock(&self, at: usize) -> Superblock {
        let mut bytes = vec![0; 4096];
        self.backings[at].disk.borrow().peek(4096, &mut bytes);
        Superblock::parse(&bytes).expect("a superblock")
    }

    /// Backing devices that say that they were used without their cache.
    pub fn devices_that_left(&self) -> Vec<String> {
        let superblocks = (0..self.backings.len()).map(|at| self.backing_superblock(at));
        let left = superblocks.filter(|superblock| superblock.state() == BackingState::Stale);
        left.map(|superblock| uuid_text(&superblock.uuid)).collect()
    }

    /// Reads the cache device as an opening would.
    pub fn load(&self) -> Option<Result<Loaded, String>> {
        let world = self.world();
        if !self.superblock().is_sync() {
            return None;
        }
        Some(small::load_in(&world, &self.cache).0)
    }

    /// Reads the cache device, which nothing is wrong with.
    pub fn inspect(&self) -> Option<Loaded> {
        let loaded = self
            .load()?
            .unwrap_or_else(|error| panic!("seed {}: image does not load: {error}", self.seed));
        for finding in &loaded.findings {
            assert!(
                FINDINGS.contains(&finding.id),
                "seed {}: {finding:?}",
                self.seed
            );
        }
        for inode in &loaded.inodes_seen {
            let is_free = loaded.uuids[*inode as usize].is_empty();
            assert!(
                !is_free,
                "seed {}: SWEEP-2: slot {inode} is free and has keys",
                self.seed
            );
        }
        for (nr, (now, oldest)) in loaded.gens.iter().zip(&loaded.oldest_gens).enumerate() {
            let behind = now.after(*oldest);
            // A10.
            assert!(
                behind <= GEN_AGE_MAX,
                "seed {}: TREE-6: a pointer is {behind} gens behind bucket {nr}",
                self.seed
            );
        }
        judge::check(self, &loaded);
        Some(loaded)
    }
}

/// An identity as volumes have it.
pub fn text_of(uuid: &[u8; 16]) -> String {
    uuid_text(uuid)
}

fn new_backing(number: u8, sectors: u64, block_sectors: u16, chance: &Chance) -> Backing {
    let data_offset = chance.pick(&[16, 16, 24, 64]);
    let mut geometry = geometry(sectors + data_offset, chance);
    geometry.logical_block_bytes = geometry
        .logical_block_bytes
        .min(u32::from(block_sectors) * 512);
    let disk = DiskState::new(&format!("backing{number}"), geometry);
    let uuid = [number + 2; 16];
    let new = NewBacking {
        device_sectors: sectors + data_offset,
        data_offset,
        block_sectors,
        uuid,
        set_uuid: SET_UUID,
        mode: CacheMode::Writeback,
        label: format!("data{number}"),
    };
    let superblock = Superblock::new_backing(&new).expect("a sound backing device");
    assert_eq!(superblock.state(), BackingState::None);
    disk.borrow_mut().poke(4096, &superblock.encode());
    Backing {
        disk,
        data_offset,
        uuid,
    }
}
