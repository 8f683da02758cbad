//! The life of one cache set: rounds of opening, working and ending, and what must hold in between.

use crate::disk::{DiskState, End, Faults};
use crate::exec::{Chance, Store, World};
use crate::oracle::Oracle;
use crate::work::{Clients, Ledger, Mix};
use brigade_engine::recovery::{self, How, Loaded};
use brigade_engine::{AckPolicy, Options, Server};
use brigade_env::{Env, Geometry};
use brigade_format::uuid_table::{self, UuidEntry};
use brigade_format::{BackingState, CacheMode, NewBacking, NewCache, Replacement, Superblock};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// Findings that images of our own may show (docs/format.md 11).
const FINDINGS: [&str; 3] = ["F18", "F51", "F54"];
/// Virtual time in which something must get done.
const PATIENCE: Duration = Duration::from_secs(600);
const STEPS_MAX: u64 = 4_000_000;

/// Features that a life uses; tests of one thing switch the rest off.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Ends may be losses of power.
    pub power_loss: bool,
    /// Devices fail now and then.
    pub faults: bool,
    /// All cache modes.
    pub modes: bool,
    /// Openings at most.
    pub rounds_max: u64,
}

/// See the module documentation.
pub struct Life {
    seed: u64,
    chance: Chance,
    cache: Rc<RefCell<DiskState>>,
    backings: Vec<Rc<RefCell<DiskState>>>,
    store: Store,
    oracles: Rc<Vec<RefCell<Oracle>>>,
    data_offsets: Vec<u64>,
    now: Duration,
    plan: Plan,
    block_sectors: u64,
    bucket_sectors: u64,
    trace: bool,
    verbose: bool,
    has_flash: bool,
}

fn geometry(sectors: u64, chance: &Chance) -> Geometry {
    let (logical, physical) = chance.pick(&[(512, 512), (512, 512), (512, 4096), (4096, 4096)]);
    Geometry {
        size_bytes: sectors * 512,
        logical_block_bytes: logical,
        physical_block_bytes: physical,
        can_discard: chance.percent(60),
        is_read_only: false,
    }
}

impl Life {
    /// A set as a formatter leaves it.
    pub fn new(seed: u64, plan: Plan) -> Life {
        let chance = Chance::new(seed.wrapping_mul(0x1234_5678_9abc_def1) ^ seed);
        // A bucket of a single block holds one journal entry and no second set of a node; that is not supported.
        let bucket_sectors = chance.pick(&[8, 16, 16, 32, 64]);
        let buckets = chance.between(513, 700);
        let mut cache_geometry = geometry(0, &chance);
        let bucket_sectors = if cache_geometry.logical_block_bytes == 4096 {
            bucket_sectors.max(16)
        } else {
            bucket_sectors
        };
        let block_sectors = match cache_geometry.logical_block_bytes {
            4096 => 8,
            _ if bucket_sectors == 8 => chance.pick(&[1, 2, 4]),
            _ => chance.pick(&[1, 8, 8]),
        };
        cache_geometry.size_bytes = buckets * bucket_sectors * 512;
        let set_uuid = [9; 16];
        let cache = DiskState::new("cache", cache_geometry);
        let new = NewCache {
            device_sectors: buckets * bucket_sectors,
            bucket_sectors: bucket_sectors as u32,
            block_sectors: block_sectors as u16,
            uuid: [1; 16],
            set_uuid,
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
        let mut backings = Vec::new();
        let mut oracles = Vec::new();
        let mut data_offsets = Vec::new();
        for number in 0..count {
            let sectors = (buckets * bucket_sectors * chance.between(10, 40) / 10 / count)
                .next_multiple_of(8)
                + 16;
            let data_offset = chance.pick(&[16, 16, 24, 64]);
            let mut geometry = geometry(sectors + data_offset, &chance);
            geometry.logical_block_bytes =
                geometry.logical_block_bytes.min(block_sectors as u32 * 512);
            let disk = DiskState::new(&format!("backing{number}"), geometry);
            let new = NewBacking {
                device_sectors: sectors + data_offset,
                data_offset,
                block_sectors: block_sectors as u16,
                uuid: [number as u8 + 2; 16],
                set_uuid,
                mode: CacheMode::Writeback,
                label: format!("data{number}"),
            };
            disk.borrow_mut().poke(
                4096,
                &Superblock::new_backing(&new)
                    .expect("a sound backing device")
                    .encode(),
            );
            backings.push(disk);
            oracles.push(RefCell::new(Oracle::new(number + 1, sectors)));
            data_offsets.push(data_offset);
        }
        let trace = std::env::var("BRIGADE_TRACE").is_ok();
        let verbose = trace || std::env::var("BRIGADE_VERBOSE").is_ok();
        Life {
            seed,
            chance,
            cache,
            backings,
            store: Store::default(),
            oracles: Rc::new(oracles),
            data_offsets,
            now: Duration::from_secs(1),
            plan,
            block_sectors,
            bucket_sectors,
            trace,
            verbose,
            has_flash: false,
        }
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.verbose {
            eprintln!("seed {}: {:?} {}", self.seed, self.now, what());
        }
    }

    fn world(&self) -> World {
        World::new(Chance::new(self.chance.next()), self.now)
    }

    fn options(&self) -> Options {
        let chance = &self.chance;
        let modes = [
            CacheMode::Writeback,
            CacheMode::Writethrough,
            CacheMode::Writearound,
            CacheMode::None,
        ];
        let mode = if self.plan.modes && chance.percent(40) {
            chance.pick(&modes)
        } else {
            CacheMode::Writeback
        };
        Options {
            read_only: false,
            mode: Some(mode),
            memory_bytes: 1 << 30,
            ack: if chance.percent(70) {
                AckPolicy::Memory
            } else {
                AckPolicy::Journal
            },
            journal_delay: Duration::from_millis(chance.pick(&[1, 10, 100])),
            sequential_cutoff: chance.pick(&[0, 0, 64 << 10, 512 << 10]),
            writeback_percent: chance.pick(&[0, 1, 10, 50]),
            writeback_delay: Duration::from_millis(chance.pick(&[10, 200, 5000])),
            writeback_running: chance.percent(85),
        }
    }

    fn mix(&self, requests: u64) -> Mix {
        let chance = &self.chance;
        let least = self.block_sectors.max(1);
        let hot = self
            .oracles
            .iter()
            .map(|oracle| oracle.borrow().size())
            .min()
            .unwrap_or(0);
        Mix {
            clients: chance.pick(&[1, 4, 8, 16]),
            requests,
            read: chance.pick(&[10, 30, 60]),
            flush: chance.pick(&[0, 5, 15]),
            clear: chance.pick(&[0, 5, 15]),
            fua_percent: chance.pick(&[0, 10, 50]),
            sectors_max: chance.pick(&[16, 64, 512, 2048]),
            hot: (hot / chance.pick(&[1, 4, 16, 64])).max(64),
            align: chance.pick(&[1, least, 8]),
            pause_percent: chance.pick(&[0, 0, 5, 30]),
        }
    }

    fn open(
        &self,
        world: &World,
        options: &Options,
    ) -> impl Future<Output = Result<Rc<Server<World>>, brigade_engine::Error>> + 'static {
        let caches = vec![world.device(&self.cache)];
        let backings = self
            .backings
            .iter()
            .map(|disk| world.device(disk))
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

    fn end(&mut self, world: &World, end: End, ledger: Option<&Ledger>) {
        self.now = world.now();
        world.kill();
        for disk in std::iter::once(&self.cache).chain(&self.backings) {
            let mut disk = disk.borrow_mut();
            disk.end(end, &self.chance);
            disk.faults = Faults::default();
        }
        if let Some(ledger) = ledger {
            for (volume, writing) in ledger.writing.take().into_values() {
                self.oracles[volume].borrow_mut().abandon(writing);
            }
        }
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

    fn which_end(&self) -> End {
        if self.plan.power_loss && self.chance.percent(50) {
            End::PowerLoss
        } else {
            End::Kill
        }
    }

    /// Reads the cache device as an opening would, and looks at what it says.
    fn inspect(&self) -> Option<Loaded> {
        let world = self.world();
        let mut bytes = vec![0; 4096];
        self.cache.borrow().peek(4096, &mut bytes);
        let superblock = Superblock::parse(&bytes).expect("a superblock");
        if !superblock.is_sync() {
            return None;
        }
        let geometry = self.cache.borrow().geometry;
        let layout = superblock
            .cache_geometry(geometry.size_bytes / 512, geometry.logical_block_bytes)
            .expect("sizes");
        let device = world.device(&self.cache);
        let env = world.clone();
        let load = async move {
            recovery::load(&env, &device, superblock, layout, &[], How::default()).await
        };
        let loaded = world.run(load, || false).expect("loading ends");
        let loaded = loaded
            .unwrap_or_else(|error| panic!("seed {}: image does not load: {error}", self.seed));
        self.probe(&loaded);
        for finding in &loaded.findings {
            assert!(
                FINDINGS.contains(&finding.id),
                "seed {}: {finding:?}",
                self.seed
            );
        }
        Some(loaded)
    }

    /// Puts a flash volume into the UUID table of a set at rest. Its oracle comes last.
    fn add_flash_volume(&mut self, loaded: &Loaded) {
        let sectors = 400 * self.bucket_sectors / 8 / 8 * 8;
        let mut entries = loaded.uuids.clone();
        let slot = entries
            .iter()
            .position(|entry| entry.is_empty())
            .expect("a free slot");
        entries[slot] = UuidEntry::flash_only([0x77; 16], [0; 32], 1_700_000_000, sectors);
        let place = loaded.newest.uuid_bucket.ptr(0).expect("a place").sector();
        self.cache
            .borrow_mut()
            .poke(place * 512, &uuid_table::encode(&entries));
        let number = self.oracles.len() as u64 + 1;
        let mut oracles: Vec<RefCell<Oracle>> = std::mem::take(&mut self.oracles)
            .iter()
            .map(|o| RefCell::new(o.take()))
            .collect();
        oracles.push(RefCell::new(Oracle::new(number, sectors)));
        self.oracles = Rc::new(oracles);
        self.has_flash = true;
    }

    /// For debugging: `BRIGADE_PROBE=volume:sector` tells what an image says of a sector.
    fn probe(&self, loaded: &Loaded) {
        let Ok(text) = std::env::var("BRIGADE_PROBE") else {
            return;
        };
        let (volume, sector) = text.split_once(':').expect("volume:sector");
        let (volume, sector): (usize, u64) = (
            volume.parse().expect("number"),
            sector.parse().expect("number"),
        );
        let at = sector + self.data_offsets[volume];
        let newest = (loaded.newest.last_seq, loaded.newest.seq);
        eprintln!(
            "probe: {newest:?} nodes {} findings {:?}",
            loaded.nodes.len(),
            loaded.findings
        );
        for inode in 0..self.backings.len() as u32 {
            for extent in loaded.index.range(inode, at, at + 1) {
                let mut bytes = [0; 512];
                let place = extent.ptr.expect("live").sector() + at - extent.start;
                self.cache.borrow().peek(place * 512, &mut bytes);
                eprintln!(
                    "probe: index {extent:?} holds {}",
                    u64::from_le_bytes(bytes[..8].try_into().expect("8"))
                );
            }
            for extent in loaded
                .overlay
                .iter()
                .filter(|e| e.inode == inode && e.start <= at && e.end > at)
            {
                eprintln!("probe: overlay {extent:?}");
            }
        }
        let mut bytes = [0; 512];
        self.backings[volume].borrow().peek(at * 512, &mut bytes);
        eprintln!(
            "probe: backing holds {}",
            u64::from_le_bytes(bytes[..8].try_into().expect("8"))
        );
    }

    fn stalled(&self, what: &str, ledger: &Ledger, server: Option<&Rc<Server<World>>>) -> ! {
        let status = server
            .map(|server| format!("{:#?}", server.status().cache_sets))
            .unwrap_or_default();
        panic!(
            "seed {}: stalled: {what}; outstanding {:#?}\n{status}",
            self.seed,
            ledger.open.borrow()
        )
    }

    /// Runs something that must end; `None` if the crash came first.
    fn drive<T: 'static>(
        &mut self,
        world: &World,
        what: &str,
        future: impl Future<Output = T> + 'static,
        crash_at: Option<u64>,
        ledger: &Rc<Ledger>,
        server: Option<&Rc<Server<World>>>,
    ) -> Option<T> {
        ledger.last_done.set(world.now());
        let stuck = Cell::new(false);
        let limit = world.steps() + STEPS_MAX;
        let result = world.run(future, || {
            stuck.set(
                world.now().saturating_sub(ledger.last_done.get()) > PATIENCE
                    || world.steps() > limit,
            );
            stuck.get() || crash_at.is_some_and(|at| world.steps() >= at)
        });
        self.now = world.now();
        if result.is_none() && (stuck.get() || crash_at.is_none_or(|at| world.steps() < at)) {
            self.stalled(what, ledger, server);
        }
        result
    }

    /// Opens until it succeeds; may be cut off on the way.
    fn reopen(&mut self, options: &Options) -> (World, Rc<Server<World>>, Rc<Ledger>) {
        loop {
            self.inspect();
            let world = self.world();
            let ledger = Rc::new(Ledger::default());
            let crash_at = self.chance.percent(25).then(|| self.chance.below(400));
            let opening = self.open(&world, options);
            match self.drive(&world, "open", opening, crash_at, &ledger, None) {
                Some(Ok(server)) => {
                    for warning in server.warnings() {
                        let is_known = FINDINGS
                            .iter()
                            .any(|id| warning.ends_with(&format!("({id})")));
                        assert!(is_known, "seed {}: {warning}", self.seed);
                    }
                    return (world, server, ledger);
                }
                Some(Err(error)) => panic!("seed {}: open: {error}", self.seed),
                None => {
                    let end = self.which_end();
                    self.say(|| format!("{end:?} while opening, at step {}", world.steps()));
                    self.end(&world, end, None);
                }
            }
        }
    }

    fn clients(&self, world: &World, server: &Rc<Server<World>>, ledger: &Rc<Ledger>) -> Clients {
        let volumes = server.volumes();
        assert_eq!(volumes.len(), self.oracles.len(), "all volumes are served");
        Clients {
            world: world.clone(),
            server: server.clone(),
            volumes,
            oracles: self.oracles.clone(),
            ledger: ledger.clone(),
            trace: self.trace,
        }
    }

    fn set_trace(&self) {
        for disk in std::iter::once(&self.cache).chain(&self.backings) {
            disk.borrow_mut().trace = self.trace;
        }
    }

    fn read_only_look(&mut self) {
        let before: Vec<u64> = std::iter::once(&self.cache)
            .chain(&self.backings)
            .map(|d| d.borrow().digest())
            .collect();
        let world = self.world();
        let ledger = Rc::new(Ledger::default());
        let options = Options {
            read_only: true,
            ..self.options()
        };
        let opening = self.open(&world, &options);
        let opened = self
            .drive(&world, "open read-only", opening, None, &ledger, None)
            .expect("it ends");
        let server = match opened {
            Ok(server) => server,
            Err(error) => panic!("seed {}: open read-only: {error}", self.seed),
        };
        let reading = self.clients(&world, &server, &ledger);
        self.drive(
            &world,
            "reads",
            async move { reading.read_everything().await },
            None,
            &ledger,
            Some(&server),
        );
        let stop = server.clone();
        let stopped = self.drive(
            &world,
            "stop",
            async move { stop.stop().await },
            None,
            &ledger,
            Some(&server),
        );
        assert!(
            matches!(stopped, Some(Ok(()))),
            "seed {}: stop of a read-only server",
            self.seed
        );
        drop(server);
        world.kill();
        let after: Vec<u64> = std::iter::once(&self.cache)
            .chain(&self.backings)
            .map(|d| d.borrow().digest())
            .collect();
        assert_eq!(
            before, after,
            "seed {}: a read-only opening changed a device",
            self.seed
        );
    }

    /// One opening with work, ended by a crash or cleanly.
    fn round(&mut self, number: u64) {
        let options = self.options();
        self.say(|| format!("round {number} {options:?}"));
        self.set_trace();
        if number > 0 && self.chance.percent(20) {
            self.read_only_look();
        }
        let (world, server, ledger) = self.reopen(&options);
        if self.chance.percent(50) {
            let reading = self.clients(&world, &server, &ledger);
            self.drive(
                &world,
                "reads",
                async move { reading.read_everything().await },
                None,
                &ledger,
                Some(&server),
            );
        }
        let faulty = self.plan.faults && self.chance.percent(30);
        if faulty {
            self.arm_faults(&ledger);
        }
        let mix = self.mix(self.chance.between(20, 400));
        self.say(|| format!("{mix:?}"));
        let crash_at = self
            .chance
            .percent(75)
            .then(|| world.steps() + self.chance.below(6000));
        let work = self.clients(&world, &server, &ledger).run(mix);
        let done = self.drive(&world, "work", work, crash_at, &ledger, Some(&server));
        self.say(|| {
            format!(
                "{} requests done, {} failed",
                ledger.done.get(),
                ledger.failed.get()
            )
        });
        if done.is_some() && self.chance.percent(40) && !faulty {
            self.pause(&world, &ledger, &server);
        }
        let is_clean = done.is_some() && self.chance.percent(50) && !faulty;
        if is_clean {
            self.stop(&world, &server, &ledger);
            drop(server);
            // A clean stop of the process says nothing about power, but nothing acknowledged is only in memory.
            self.end(&world, End::Kill, Some(&ledger));
            let loaded = self.check_stopped();
            if !self.has_flash && self.chance.percent(50) {
                self.add_flash_volume(&loaded);
            }
        } else {
            drop(server);
            let end = self.which_end();
            self.say(|| format!("{end:?}"));
            self.end(&world, end, Some(&ledger));
        }
        self.oracles
            .iter()
            .for_each(|oracle| oracle.borrow_mut().blind = false);
    }

    fn arm_faults(&mut self, ledger: &Rc<Ledger>) {
        ledger.faulty.set(true);
        let chance = &self.chance;
        for disk in std::iter::once(&self.cache).chain(&self.backings) {
            if chance.percent(50) {
                let write_in = chance.percent(70).then(|| chance.below(200));
                let flush_in = chance.percent(50).then(|| chance.below(20));
                disk.borrow_mut().faults = Faults { write_in, flush_in };
            }
        }
        self.oracles
            .iter()
            .for_each(|oracle| oracle.borrow_mut().blind = true);
    }

    /// Lets background work go on for a while.
    fn pause(&mut self, world: &World, ledger: &Rc<Ledger>, server: &Rc<Server<World>>) {
        let time = Duration::from_secs(self.chance.pick(&[1, 40, 100]));
        let env = world.clone();
        self.drive(
            world,
            "pause",
            async move { env.sleep(time).await },
            None,
            ledger,
            Some(server),
        );
    }

    fn stop(&mut self, world: &World, server: &Rc<Server<World>>, ledger: &Rc<Ledger>) {
        let stop = server.clone();
        let stopped = self.drive(
            world,
            "stop",
            async move { stop.stop().await },
            None,
            ledger,
            Some(server),
        );
        match stopped {
            Some(Ok(())) => self.say(|| "clean stop".into()),
            other => panic!("seed {}: stop: {other:?}", self.seed),
        }
    }

    fn check_stopped(&self) -> Loaded {
        let loaded = self.inspect().expect("an initialised set");
        assert_eq!(
            loaded.newest.last_seq, loaded.newest.seq,
            "seed {}: something to replay after a clean stop",
            self.seed
        );
        assert!(
            loaded.overlay.is_empty(),
            "seed {}: keys in the entry of a clean stop",
            self.seed
        );
        loaded
    }

    /// The whole life.
    pub fn run(mut self) {
        self.say(|| {
            let state = self.cache.borrow();
            format!(
                "bucket {} block {} {:?} volumes {:?}",
                self.bucket_sectors,
                self.block_sectors,
                state.geometry,
                self.backings.len()
            )
        });
        let rounds = self.chance.between(1, self.plan.rounds_max);
        for number in 0..rounds {
            self.round(number);
        }
        self.finish();
    }

    fn read_all(&mut self, world: &World, server: &Rc<Server<World>>, ledger: &Rc<Ledger>) {
        let reading = self.clients(world, server, ledger);
        self.drive(
            world,
            "reads",
            async move { reading.read_everything().await },
            None,
            ledger,
            Some(server),
        );
    }

    /// Everything is read twice, written back, and compared with what is on the backing devices.
    fn finish(&mut self) {
        let options = Options {
            mode: Some(CacheMode::Writeback),
            writeback_running: true,
            writeback_percent: 0,
            writeback_delay: Duration::from_millis(1),
            ..self.options()
        };
        let (world, server, ledger) = self.reopen(&options);
        self.read_all(&world, &server, &ledger);
        let waiting = (server.clone(), world.clone());
        let until_clean = async move {
            while waiting.0.volumes().iter().any(|volume| {
                volume.state() != "flash" && volume.dirty_bytes() > 0 || volume.state() == "dirty"
            }) {
                waiting.1.sleep(Duration::from_millis(100)).await;
            }
        };
        self.drive(
            &world,
            "writeback",
            until_clean,
            None,
            &ledger,
            Some(&server),
        );
        self.read_all(&world, &server, &ledger);
        self.stop(&world, &server, &ledger);
        drop(server);
        self.end(&world, End::Kill, None);
        self.check_stopped();
        let chance = self.chance.clone();
        if self.plan.power_loss && chance.percent(50) {
            for disk in std::iter::once(&self.cache).chain(&self.backings) {
                disk.borrow_mut().end(End::PowerLoss, &chance);
            }
        }
        for (number, disk) in self.backings.iter().enumerate() {
            let disk = disk.borrow();
            let mut superblock = vec![0; 4096];
            disk.peek(4096, &mut superblock);
            let state = Superblock::parse(&superblock)
                .expect("a superblock")
                .state();
            assert_eq!(
                state,
                BackingState::Clean,
                "seed {}: everything is written back",
                self.seed
            );
            let mut oracle = self.oracles[number].borrow_mut();
            for sector in oracle.used() {
                let mut bytes = [0; 512];
                disk.peek((self.data_offsets[number] + sector) * 512, &mut bytes);
                let began = oracle.begin_read();
                oracle.check(began, sector, &bytes, "backing device alone");
            }
        }
    }
}
