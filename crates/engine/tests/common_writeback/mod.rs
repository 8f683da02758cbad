//! One set with one volume whose devices take the time they are given, for stories about writing back.

#![allow(dead_code, reason = "each story uses some")]

use brigade_engine::settings::Knob;
use brigade_engine::{Options, Server, Volume, WritebackStatus};
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::{BackingState, Superblock};
use brigade_sim::disk::{DiskState, Io};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, open, options};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

pub const BLOCK: u64 = 4096;
/// Where the volume begins on the backing device.
pub const OFFSET: u64 = 16 * 512;
pub const MINUTE: Duration = Duration::from_secs(60);

/// A set with one volume, open.
pub struct Set {
    pub cache: Rc<RefCell<DiskState>>,
    pub backing: Rc<RefCell<DiskState>>,
    pub store: Store,
    pub chance: Chance,
    pub world: World,
    pub server: Rc<Server<World>>,
}

impl Set {
    pub fn new(options: Options) -> Set {
        Set::of(600, options)
    }

    pub fn of(buckets: u64, options: Options) -> Set {
        let (cache, backing) = disks(buckets, 64, 8, 200_000);
        let (chance, store) = (Chance::new(5), Store::default());
        let world = World::new(chance.clone(), Duration::from_secs(1));
        let server = open(&world, &cache, &backing, &store, options);
        Set {
            cache,
            backing,
            store,
            chance,
            world,
            server,
        }
    }

    /// Every I/O of the backing device takes so long, those of the cache hardly any time.
    pub fn paced(self, write: Duration) -> Set {
        let fast = |_: Io<'_>| Some(Duration::from_micros(20));
        self.cache.borrow_mut().pace = Some(Rc::new(fast));
        let pace = move |io: Io<'_>| match io {
            Io::Write(..) => Some(write),
            _ => Some(Duration::from_micros(100)),
        };
        self.backing.borrow_mut().pace = Some(Rc::new(pace));
        self
    }

    pub fn tell<T: 'static>(&self, story: impl Future<Output = T> + 'static) -> T {
        self.world.run(story, || false).expect("ends")
    }

    pub fn volume(&self) -> Teller {
        Teller {
            world: self.world.clone(),
            server: self.server.clone(),
            volume: self.server.volumes()[0].clone(),
        }
    }

    /// The same devices after a crash of the server.
    pub fn again(self, options: Options) -> Set {
        self.world.kill();
        let world = World::new(self.chance.clone(), Duration::from_secs(1000));
        let server = open(&world, &self.cache, &self.backing, &self.store, options);
        Set {
            world,
            server,
            ..self
        }
    }

    /// The first byte of a block of the backing device.
    pub fn on_backing(&self, block: u64) -> u8 {
        first_byte(&self.backing, block)
    }

    /// A block of the backing device that takes no data; a write takes so long.
    pub fn refuse(&self, block: u64, write: Duration) {
        let weak = Rc::downgrade(&self.backing);
        let bad = OFFSET + block * BLOCK;
        self.backing.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
            if let (Io::Write(at, data), Some(disk)) = (io, weak.upgrade())
                && (at..at + data.len() as u64).contains(&bad)
            {
                disk.borrow_mut().faults.write_in = Some(0);
            }
            Some(write)
        }));
    }

    /// Bytes of data that go to the backing device from now on: where, and how many.
    pub fn watch(&self) -> Rc<RefCell<Vec<(u64, u64)>>> {
        let log: Rc<RefCell<Vec<(u64, u64)>>> = Rc::default();
        let noted = log.clone();
        let pace = move |io: Io<'_>| {
            if let Io::Write(at, data) = io
                && at >= OFFSET
            {
                let block = (at - OFFSET) / BLOCK;
                noted.borrow_mut().push((block, data.len() as u64 / BLOCK));
            }
            Some(Duration::from_millis(1))
        };
        self.backing.borrow_mut().pace = Some(Rc::new(pace));
        log
    }

    pub fn state(&self) -> BackingState {
        let mut bytes = vec![0; 4096];
        self.backing.borrow().peek(4096, &mut bytes);
        Superblock::parse(&bytes).expect("a superblock").state()
    }
}

/// The first byte of a block of a backing device.
pub fn first_byte(backing: &RefCell<DiskState>, block: u64) -> u8 {
    let mut byte = [0; 512];
    backing.borrow().peek(OFFSET + block * BLOCK, &mut byte);
    byte[0]
}

/// What stories are told with.
#[derive(Clone)]
pub struct Teller {
    pub world: World,
    pub server: Rc<Server<World>>,
    pub volume: Rc<Volume<World>>,
}

impl Teller {
    pub async fn write(&self, block: u64, count: u64, byte: u8) {
        let mut buffer = self.volume.buffer((count * BLOCK) as usize);
        buffer.fill(byte);
        let written = self.volume.write(StreamId(1), block * BLOCK, buffer, false);
        written.await.expect("written");
    }

    pub async fn read(&self, block: u64) -> u8 {
        let read = self.volume.read(StreamId(2), block * BLOCK, BLOCK as usize);
        read.await.expect("read")[0]
    }

    pub async fn sleep(&self, seconds: f64) {
        self.world.sleep(Duration::from_secs_f64(seconds)).await;
    }

    pub async fn set(&self, name: &str, value: &str) {
        let one = [(name.to_string(), value.to_string())];
        self.server.change(&one).await.expect("changed");
    }

    pub fn status(&self) -> WritebackStatus {
        let mut status = self.server.status();
        status.volumes.remove(0).writeback.expect("a cached volume")
    }

    pub fn dirty(&self) -> u64 {
        self.volume.dirty_bytes()
    }

    /// Waits until nothing is dirty; gives how long that took.
    pub async fn clean(&self, most: Duration) -> Duration {
        let began = self.world.now();
        while self.dirty() > 0 {
            self.sleep(0.05).await;
            assert!(self.world.now() - began < most, "{:?}", self.status());
        }
        self.world.now() - began
    }
}

/// Nothing but what is dirty is written.
pub fn plain() -> Options {
    options(false).with(Knob::WritebackBridge, 0)
}

/// At full speed after a second.
pub fn eager() -> Options {
    options(true)
        .with(Knob::WritebackPercent, 0)
        .with(Knob::WritebackDelay, 1_000_000)
}
