//! A set with one device attached and another beside it, clients who know what each sector may hold, and changes to be ended.

use brigade_engine::recovery::Loaded;
use brigade_engine::{Options, Server, Volume, set_count_pause, set_leaf_batch};
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::{CacheMode, NewBacking, Superblock};
use brigade_sim::disk::{DiskState, End};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, load};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

pub type Disk = Rc<RefCell<DiskState>>;

pub const SECTOR: u64 = 512;
pub const UNIT: u64 = 8;
pub const UNITS: u64 = 96;
const SECTORS: u64 = UNITS * UNIT;
const CLIENTS: u64 = 4;
const BACKING_SECTORS: u64 = 8192;
/// What the volume that is to be deleted, or the end that is to go, is filled with.
const FILLED: u8 = 0x5a;

/// What one sector may hold.
#[derive(Clone)]
struct Sector {
    /// All that was ever begun to be written since it was certain, the oldest first.
    history: Vec<u64>,
    /// The last acknowledged one.
    acked: usize,
    /// The last one that a loss of power cannot take.
    durable: usize,
}

/// What the volume under load may hold.
pub struct Model {
    sectors: Vec<Sector>,
    next: u64,
}

impl Default for Model {
    fn default() -> Self {
        let sector = Sector {
            history: vec![0],
            acked: 0,
            durable: 0,
        };
        Model {
            sectors: vec![sector; SECTORS as usize],
            next: 1,
        }
    }
}

fn content(sector: u64, version: u64) -> Vec<u8> {
    match version {
        0 => vec![0; SECTOR as usize],
        _ => (sector << 32 | version).to_le_bytes().repeat(64),
    }
}

/// A set that outlives the processes which serve it.
pub struct Rig {
    pub cache: Disk,
    pub first: Disk,
    pub other: Disk,
    store: RefCell<Store>,
    chance: Chance,
    model: Rc<RefCell<Model>>,
    /// Who is loaded.
    uuid: RefCell<String>,
}

/// A process that serves it.
pub struct Served {
    pub world: World,
    pub server: Rc<Server<World>>,
}

impl Rig {
    pub fn new(seed: u64) -> Rig {
        set_count_pause(Duration::ZERO);
        set_leaf_batch(None);
        let (cache, first) = disks(1200, 8, 1, BACKING_SECTORS);
        let other = first.borrow().fork();
        let new = NewBacking {
            device_sectors: BACKING_SECTORS + 16,
            data_offset: 16,
            block_sectors: 1,
            uuid: [7; 16],
            set_uuid: [0x55; 16],
            mode: CacheMode::Writeback,
            label: "y".into(),
        };
        let superblock = Superblock::new_backing(&new).unwrap();
        other.borrow_mut().poke(4096, &superblock.encode());
        Rig {
            cache,
            first,
            other,
            store: RefCell::default(),
            chance: Chance::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1),
            model: Rc::default(),
            uuid: RefCell::default(),
        }
    }

    pub fn superblock(&self, disk: &Disk) -> Superblock {
        let mut bytes = vec![0; 4096];
        disk.borrow().peek(4096, &mut bytes);
        Superblock::parse(&bytes).expect("a superblock")
    }

    pub fn serve(&self, options: Options) -> Served {
        self.serve_with(&[&self.first, &self.other], options)
    }

    pub fn serve_cache_alone(&self, options: Options) -> Served {
        self.serve_with(&[], options)
    }

    fn serve_with(&self, backings: &[&Disk], options: Options) -> Served {
        let world = World::new(self.chance.clone(), Duration::from_secs(1));
        let store = self.store.borrow().clone();
        let backings = backings.iter().map(|disk| world.device(disk));
        let opening = Server::open(
            world.clone(),
            vec![world.device(&self.cache)],
            backings.collect(),
            move |_| Some(store.clone()),
            options,
        );
        let opened = world.run(opening, || false).expect("it ends");
        let server = opened.unwrap_or_else(|error| panic!("{error}"));
        Served { world, server }
    }

    /// The process is gone already.
    pub fn ends(&self, how: End) {
        for disk in [&self.cache, &self.first, &self.other] {
            disk.borrow_mut().end(how, &self.chance);
        }
        let mut model = self.model.borrow_mut();
        if how == End::PowerLoss {
            *self.store.borrow_mut() = Store::default();
            model
                .sectors
                .iter_mut()
                .for_each(|it| it.acked = it.durable);
        }
    }

    /// What is on the cache device, which is well.
    pub fn load(&self) -> Loaded {
        let (loaded, _) = load(&self.cache, self.chance.clone());
        for inode in &loaded.inodes_seen {
            let entry = &loaded.uuids[*inode as usize];
            assert!(!entry.is_empty(), "slot {inode} is free and has keys");
        }
        loaded
    }

    pub fn used_slots(&self, served: &Served) -> Vec<u32> {
        let slots = served.server.status().volumes;
        let names = slots
            .iter()
            .map(|it| served.server.volume(&it.name).unwrap().names());
        let number = |name: String| name.strip_prefix("volume")?.parse().ok();
        let mut slots: Vec<u32> = names.flatten().filter_map(number).collect();
        slots.sort_unstable();
        slots
    }

    /// Opens once more and looks at everything.
    pub fn checks_after(&self, seed: u64) {
        let served = self.serve(brigade_sim::small::options(seed.is_multiple_of(2)));
        let uuid = self.uuid.borrow().clone();
        let volume = served.server.volume(&uuid).expect("it is served");
        served.verifies(self, &volume);
        served.stop();
    }

    /// Another volume is loaded from now on, which is empty.
    pub fn is_flash(&self, volume: &Volume<World>) {
        *self.model.borrow_mut() = Model::default();
        *self.uuid.borrow_mut() = volume.uuid.clone();
    }
}

impl Served {
    pub fn does<T: 'static>(&self, story: impl Future<Output = T> + 'static) -> T {
        self.world.run(story, || false).expect("it ends")
    }

    pub fn attached(&self) -> Rc<Volume<World>> {
        self.server.volumes()[0].clone()
    }

    pub fn alone(&self) -> Rc<Volume<World>> {
        self.server.volumes()[1].clone()
    }

    /// A new flash volume, just large enough.
    pub fn flash(&self, rig: &Rig) -> Rc<Volume<World>> {
        let server = self.server.clone();
        let made = async move { server.create_flash(SECTORS * SECTOR, "flash", None).await };
        let flash = self.does(made).unwrap();
        rig.is_flash(&flash);
        flash
    }

    fn clients(&self, rig: &Rig, volume: &Rc<Volume<World>>, requests: u64) -> Clients {
        *rig.uuid.borrow_mut() = volume.uuid.clone();
        let load = Rc::new(Load {
            world: self.world.clone(),
            volume: volume.clone(),
            model: rig.model.clone(),
            chance: Chance::new(rig.chance.next()),
            is_over: Cell::new(false),
            longest: Cell::new(Duration::ZERO),
        });
        let running = Rc::new(Cell::new(CLIENTS));
        for number in 0..CLIENTS {
            let (load, running) = (load.clone(), running.clone());
            self.world.spawn(async move {
                load.client(number, requests).await;
                running.set(running.get() - 1);
            });
        }
        Clients { load, running }
    }

    /// So many requests of each client.
    pub fn loads(&self, rig: &Rig, volume: &Rc<Volume<World>>, requests: u64) {
        let clients = self.clients(rig, volume, requests);
        self.does(clients.end(self.world.clone()));
    }

    /// A change while clients work; gives the longest time of a request.
    pub fn does_under_load(
        &self,
        rig: &Rig,
        volume: &Rc<Volume<World>>,
        change: impl Future<Output = ()> + 'static,
    ) -> Duration {
        let clients = self.clients(rig, volume, u64::MAX);
        let (world, load) = (self.world.clone(), clients.load.clone());
        self.does(async move {
            world.sleep(Duration::from_millis(50)).await;
            change.await;
            world.sleep(Duration::from_millis(50)).await;
            clients.load.is_over.set(true);
            clients.end(world).await;
        });
        load.longest.get()
    }

    /// A change while clients work, until so many operations are done; whether it came to its end.
    pub fn does_until(
        &self,
        rig: &Rig,
        volume: &Rc<Volume<World>>,
        kind: Kind,
        operations: u64,
    ) -> bool {
        let _clients = self.clients(rig, volume, u64::MAX);
        let most = self.world.device_operations() + operations;
        let (server, volume) = (self.server.clone(), volume.clone());
        let change = kind.run(server, volume);
        let world = self.world.clone();
        let done = self.world.run(change, || world.device_operations() >= most);
        done.is_some()
    }

    pub fn verifies(&self, rig: &Rig, volume: &Rc<Volume<World>>) {
        let (model, volume) = (rig.model.clone(), volume.clone());
        self.does(async move {
            for sector in 0..SECTORS {
                let got = read(&volume, sector, 1).await;
                let mut model = model.borrow_mut();
                let known = &mut model.sectors[sector as usize];
                let mut allowed = known.history[known.acked..].iter();
                let version = allowed.find(|version| content(sector, **version) == got);
                let version = *version.unwrap_or_else(|| {
                    let (a, b) = (
                        u64::from_le_bytes(got[..8].try_into().unwrap()),
                        known.acked,
                    );
                    panic!(
                        "sector {sector} has {:x}; may be {:?} from {b} on",
                        a, known.history
                    )
                });
                *known = Sector {
                    history: vec![version],
                    acked: 0,
                    durable: 0,
                };
            }
        });
    }

    pub fn stop(self) {
        let server = self.server.clone();
        self.does(async move { server.stop().await.unwrap() });
        self.server.audit();
        self.world.kill();
    }

    pub fn volume_for(&self, rig: &Rig, kind: Kind) -> Rc<Volume<World>> {
        match kind {
            Kind::Attach => self.alone(),
            Kind::Grow | Kind::Shrink => self.flash(rig),
            _ => self.attached(),
        }
    }

    pub fn volume_again(&self, rig: &Rig, _kind: Kind) -> Option<Rc<Volume<World>>> {
        let uuid = rig.uuid.borrow().clone();
        self.server.volume(&uuid).ok()
    }
}

async fn read(volume: &Rc<Volume<World>>, sector: u64, sectors: u64) -> Vec<u8> {
    let length = (sectors * SECTOR) as usize;
    let got = volume.read(StreamId(2), sector * SECTOR, length).await;
    got.expect("a read").to_vec()
}

struct Clients {
    load: Rc<Load>,
    running: Rc<Cell<u64>>,
}

impl Clients {
    async fn end(self, world: World) {
        while self.running.get() > 0 {
            world.sleep(Duration::from_millis(1)).await;
        }
    }
}

struct Load {
    world: World,
    volume: Rc<Volume<World>>,
    model: Rc<RefCell<Model>>,
    chance: Chance,
    is_over: Cell<bool>,
    longest: Cell<Duration>,
}

impl Load {
    /// Works on its own part of the volume.
    async fn client(&self, number: u64, requests: u64) {
        let part = SECTORS / CLIENTS;
        for _ in 0..requests {
            if self.is_over.get() {
                return;
            }
            let sectors = self.chance.between(1, 8);
            let start = number * part + self.chance.below(part - sectors);
            let began = self.world.now();
            match self.chance.below(20) {
                0 => self.flush().await,
                1..=3 => self.pry(sectors).await,
                4..=11 => self.write(start, sectors).await,
                _ => self.look(start, sectors).await,
            }
            let took = self.world.now() - began;
            self.longest.set(self.longest.get().max(took));
            self.world
                .sleep(Duration::from_micros(self.chance.below(300)))
                .await;
        }
    }

    async fn write(&self, start: u64, sectors: u64) {
        let mut buffer = self.volume.buffer((sectors * SECTOR) as usize);
        let mut at = Vec::new();
        {
            let mut model = self.model.borrow_mut();
            model.next += 1;
            let version = model.next;
            for (sector, bytes) in (start..).zip(buffer.chunks_mut(SECTOR as usize)) {
                bytes.copy_from_slice(&content(sector, version));
                let known = &mut model.sectors[sector as usize];
                known.history.push(version);
                at.push((sector, known.history.len() - 1));
            }
        }
        let written = self
            .volume
            .write(StreamId(1), start * SECTOR, buffer, false);
        written.await.expect("no write fails");
        let mut model = self.model.borrow_mut();
        for (sector, at) in at {
            model.sectors[sector as usize].acked = at;
        }
    }

    async fn look(&self, start: u64, sectors: u64) {
        let got = read(&self.volume, start, sectors).await;
        let model = self.model.borrow();
        for (sector, got) in (start..).zip(got.chunks(SECTOR as usize)) {
            let known = &model.sectors[sector as usize];
            let is_it = got == content(sector, known.history[known.acked]);
            assert!(is_it, "sector {sector} is not what was written last");
        }
    }

    /// Reads what others write, and has it cached.
    async fn pry(&self, sectors: u64) {
        let start = self.chance.below(SECTORS - sectors);
        read(&self.volume, start, sectors).await;
    }

    async fn flush(&self) {
        let acked: Vec<_> = self
            .model
            .borrow()
            .sectors
            .iter()
            .map(|it| it.acked)
            .collect();
        self.volume.flush().await.expect("no flush fails");
        let mut model = self.model.borrow_mut();
        for (known, acked) in model.sectors.iter_mut().zip(acked) {
            known.durable = known.durable.max(acked);
        }
    }
}

/// What is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Detach,
    Attach,
    Cycle,
    Create,
    Delete,
    Grow,
    Shrink,
}

const SMALL: u64 = SECTORS * SECTOR;
const LARGE: u64 = 2 * SMALL;

impl Kind {
    pub const ALL: [Kind; 7] = [
        Kind::Detach,
        Kind::Attach,
        Kind::Cycle,
        Kind::Create,
        Kind::Delete,
        Kind::Grow,
        Kind::Shrink,
    ];

    pub fn prepare(self, served: &Served, volume: &Rc<Volume<World>>) {
        let (server, volume) = (served.server.clone(), volume.clone());
        served.does(async move {
            match self {
                Kind::Delete => {
                    let victim = server.create_flash(SMALL, "victim", None).await.unwrap();
                    fill(&victim, 0).await;
                }
                Kind::Shrink => {
                    server
                        .resize(&volume.name(), Some(LARGE), false)
                        .await
                        .unwrap();
                    fill(&volume, SMALL).await;
                }
                _ => {}
            }
        });
    }

    async fn run(self, server: Rc<Server<World>>, volume: Rc<Volume<World>>) {
        let name = volume.uuid.clone();
        match self {
            Kind::Detach => server.detach(&name).await.unwrap(),
            Kind::Attach => drop(server.attach_volume(&name, None).await.unwrap()),
            Kind::Cycle => loop {
                server.detach(&name).await.unwrap();
                server.attach_volume(&name, None).await.unwrap();
                while server.status().cache_sets[0].gc.removed_slots > 20 {
                    volume.flush().await.unwrap();
                }
            },
            Kind::Create => drop(server.create_flash(SMALL, "new", None).await.unwrap()),
            Kind::Delete => server.delete_flash("victim").await.unwrap(),
            Kind::Grow => drop(server.resize(&name, Some(LARGE), false).await.unwrap()),
            Kind::Shrink => drop(server.resize(&name, Some(SMALL), true).await.unwrap()),
        }
    }

    /// After an end: as if it had not been asked for, or as if it had been done.
    pub fn check(self, rig: &Rig, served: &Served, is_done: bool) {
        let server = served.server.clone();
        let uuid = rig.uuid.borrow().clone();
        let volume = server
            .volume(&uuid)
            .expect("the volume under load is there");
        match self {
            Kind::Detach if is_done => assert_eq!(volume.state(), "no cache"),
            Kind::Attach if is_done => assert_ne!(volume.state(), "no cache"),
            Kind::Detach | Kind::Attach | Kind::Cycle => {}
            Kind::Create => match server.volume("new") {
                Ok(new) => served.does(async move { holds(&new, 0, &[0]).await }),
                Err(_) => assert!(!is_done, "what was made is not there"),
            },
            Kind::Delete => {
                if let Ok(victim) = server.volume("victim") {
                    assert!(!is_done, "what was deleted is there");
                    served.does(async move { holds(&victim, 0, &[FILLED]).await });
                }
            }
            Kind::Grow => {
                let size = volume.size_bytes();
                assert!(size == LARGE || (size == SMALL && !is_done));
                if size == LARGE {
                    served.does(async move { holds(&volume, SMALL, &[0]).await });
                }
            }
            Kind::Shrink => {
                let size = volume.size_bytes();
                assert!(size == SMALL || (size == LARGE && !is_done));
                served.does(async move {
                    if size == LARGE {
                        return holds(&volume, SMALL, &[0, FILLED]).await;
                    }
                    let name = volume.name();
                    server.resize(&name, Some(LARGE), false).await.unwrap();
                    holds(&volume, SMALL, &[0]).await;
                });
            }
        }
    }

    /// Asks again; it may be done already.
    pub fn run_again(self, served: &Served, volume: &Rc<Volume<World>>) {
        let (server, volume) = (served.server.clone(), volume.clone());
        served.does(async move {
            let name = volume.uuid.clone();
            match self {
                Kind::Detach | Kind::Cycle if volume.state() != "no cache" => {
                    server.detach(&name).await.unwrap();
                }
                Kind::Attach | Kind::Cycle if volume.state() == "no cache" => {
                    server.attach_volume(&name, None).await.unwrap();
                }
                Kind::Detach | Kind::Attach | Kind::Cycle => {}
                Kind::Create => drop(server.create_flash(SMALL, "newer", None).await.unwrap()),
                Kind::Delete => drop(server.delete_flash("victim").await),
                Kind::Grow => drop(server.resize(&name, Some(LARGE), false).await.unwrap()),
                Kind::Shrink => drop(server.resize(&name, Some(SMALL), true).await.unwrap()),
            }
        });
    }
}

async fn fill(volume: &Rc<Volume<World>>, from: u64) {
    for offset in (from..from + SMALL).step_by(4096) {
        let mut buffer = volume.buffer(4096);
        buffer.fill(FILLED);
        let written = volume.write(StreamId(1), offset, buffer, false);
        written.await.unwrap();
    }
    volume.flush().await.unwrap();
}

async fn holds(volume: &Rc<Volume<World>>, from: u64, allowed: &[u8]) {
    let read = volume
        .read(StreamId(1), from, SMALL as usize)
        .await
        .unwrap();
    let is_allowed = |byte: &u8| allowed.contains(byte);
    assert!(read.iter().all(is_allowed), "{from}: not only {allowed:?}");
}
