//! Writing back in the background: order, rate, pauses, what happens to data that changes meanwhile, and drains.

use brigade_engine::settings::Knob;
use brigade_engine::{DrainEnd, Options, Server, Volume, WritebackStatus};
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::{BackingState, Superblock};
use brigade_sim::disk::{DiskState, End, Io};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, open, options};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

const BLOCK: u64 = 4096;
/// Where the volume begins on the backing device.
const OFFSET: u64 = 16 * 512;
const MINUTE: Duration = Duration::from_secs(60);

/// A set with one volume, open.
struct Set {
    cache: Rc<RefCell<DiskState>>,
    backing: Rc<RefCell<DiskState>>,
    store: Store,
    chance: Chance,
    world: World,
    server: Rc<Server<World>>,
}

impl Set {
    fn new(options: Options) -> Set {
        Set::of(600, options)
    }

    fn of(buckets: u64, options: Options) -> Set {
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
    fn paced(self, write: Duration) -> Set {
        let fast = |_: Io<'_>| Some(Duration::from_micros(20));
        self.cache.borrow_mut().pace = Some(Rc::new(fast));
        let pace = move |io: Io<'_>| match io {
            Io::Write(..) => Some(write),
            _ => Some(Duration::from_micros(100)),
        };
        self.backing.borrow_mut().pace = Some(Rc::new(pace));
        self
    }

    fn tell<T: 'static>(&self, story: impl Future<Output = T> + 'static) -> T {
        self.world.run(story, || false).expect("ends")
    }

    fn volume(&self) -> Teller {
        Teller {
            world: self.world.clone(),
            server: self.server.clone(),
            volume: self.server.volumes()[0].clone(),
        }
    }

    /// The first byte of a block of the backing device.
    fn on_backing(&self, block: u64) -> u8 {
        let mut byte = [0; 512];
        let backing = self.backing.borrow();
        backing.peek(OFFSET + block * BLOCK, &mut byte);
        byte[0]
    }

    /// Bytes of data that go to the backing device from now on: where, and how many.
    fn watch(&self) -> Rc<RefCell<Vec<(u64, u64)>>> {
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

    fn state(&self) -> BackingState {
        let mut bytes = vec![0; 4096];
        self.backing.borrow().peek(4096, &mut bytes);
        Superblock::parse(&bytes).expect("a superblock").state()
    }
}

/// What stories are told with.
#[derive(Clone)]
struct Teller {
    world: World,
    server: Rc<Server<World>>,
    volume: Rc<Volume<World>>,
}

impl Teller {
    async fn write(&self, block: u64, count: u64, byte: u8) {
        let mut buffer = self.volume.buffer((count * BLOCK) as usize);
        buffer.fill(byte);
        let written = self.volume.write(StreamId(1), block * BLOCK, buffer, false);
        written.await.expect("written");
    }

    async fn read(&self, block: u64) -> u8 {
        let read = self.volume.read(StreamId(2), block * BLOCK, BLOCK as usize);
        read.await.expect("read")[0]
    }

    async fn sleep(&self, seconds: f64) {
        self.world.sleep(Duration::from_secs_f64(seconds)).await;
    }

    async fn set(&self, name: &str, value: &str) {
        let one = [(name.to_string(), value.to_string())];
        self.server.change(&one).await.expect("changed");
    }

    fn status(&self) -> WritebackStatus {
        let mut status = self.server.status();
        status.volumes.remove(0).writeback.expect("a cached volume")
    }

    fn dirty(&self) -> u64 {
        self.volume.dirty_bytes()
    }

    /// Waits until nothing is dirty; gives how long that took.
    async fn clean(&self, most: Duration) -> Duration {
        let began = self.world.now();
        while self.dirty() > 0 {
            self.sleep(0.05).await;
            assert!(self.world.now() - began < most, "{:?}", self.status());
        }
        self.world.now() - began
    }
}

/// Nothing but what is dirty is written.
fn plain() -> Options {
    options(false).with(Knob::WritebackBridge, 0)
}

/// At full speed after a second.
fn eager() -> Options {
    options(true)
        .with(Knob::WritebackPercent, 0)
        .with(Knob::WritebackDelay, 1_000_000)
}

/// T145: ascending, what lies side by side at once, and from the start again. The kernel's groups are of five extents or 5000 sectors;
/// ours are runs of up to a megabyte, several at a time.
#[test]
fn dirty_data_goes_out_in_ascending_order_and_side_by_side_in_one_piece() {
    let set = Set::new(eager()).paced(Duration::from_millis(1));
    let log = set.watch();
    let teller = set.volume();
    let told = set.tell({
        let (teller, log) = (teller.clone(), log.clone());
        async move {
            for block in (0..40).rev() {
                teller.write(block * 7 + 100, 1, 1).await;
            }
            for block in (0..16).rev() {
                teller.write(1000 + block, 1, 2).await;
            }
            teller.clean(MINUTE).await;
            let first = log.take();
            teller.write(500, 1, 3).await;
            teller.write(3, 1, 3).await;
            teller.clean(MINUTE).await;
            (first, log.take())
        }
    });
    let (first, second) = told;
    let mut expected: Vec<(u64, u64)> = (0..40).map(|block| (block * 7 + 100, 1)).collect();
    expected.push((1000, 16));
    assert_eq!(first, expected);
    assert_eq!(second, [(3, 1), (500, 1)]);
    assert_eq!((set.on_backing(1015), set.on_backing(100)), (2, 1));
}

/// T146: what is written while it is written back stays dirty, and is counted.
#[test]
fn an_overwrite_during_writeback_stays_dirty() {
    let set = Set::new(options(false)).paced(Duration::from_secs(1));
    let teller = set.volume();
    let dirty = set.tell({
        let teller = teller.clone();
        async move {
            teller.write(10, 1, 1).await;
            teller.write(20, 1, 1).await;
            teller.volume.drain();
            teller.sleep(0.5).await;
            teller.write(10, 1, 2).await;
            teller.volume.cancel_drain();
            teller.sleep(5.0).await;
            teller.dirty()
        }
    });
    assert_eq!(dirty, BLOCK);
    let status = teller.status();
    assert_eq!((status.keys_done, status.keys_failed), (1, 1));
    assert_eq!(set.on_backing(10), 1);
    let byte = set.tell({
        let teller = teller.clone();
        async move {
            teller.volume.drain();
            teller.clean(MINUTE).await;
            teller.read(10).await
        }
    });
    assert_eq!((byte, set.on_backing(10)), (2, 2));
}

/// T148: what could not be written to the backing device stays dirty and is tried again; the rest of the round is not kept from
/// becoming clean.
#[test]
fn data_that_the_backing_device_does_not_take_stays_dirty() {
    let set = Set::new(options(false)).paced(Duration::from_millis(10));
    let teller = set.volume();
    let backing = set.backing.clone();
    let (dirty, byte, error) = set.tell({
        let teller = teller.clone();
        async move {
            for block in 0..10 {
                teller.write(block * 2, 1, 1).await;
            }
            backing.borrow_mut().faults.from_byte = OFFSET;
            backing.borrow_mut().faults.write_in = Some(3);
            teller.volume.drain();
            teller.sleep(0.5).await;
            let error = teller.status().drain.expect("a drain").last_error;
            (teller.dirty(), teller.read(6).await, error)
        }
    });
    assert_eq!((dirty, byte), (BLOCK, 1));
    assert!(error.is_some());
    let state = set.tell({
        let teller = teller.clone();
        async move {
            teller.clean(MINUTE).await;
            teller.volume.drained().await
        }
    });
    assert_eq!(state, Some(DrainEnd::Done));
    assert!((0..10).all(|block| set.on_backing(block * 2) == 1));
}

/// T149: wherever power is lost while data is written back, every flushed write is there.
#[test]
fn a_loss_of_power_during_writeback_loses_nothing() {
    let mut has_ended = false;
    for steps in (0..).step_by(11).take_while(|steps| *steps < 3000) {
        if has_ended {
            break;
        }
        let set = Set::new(options(false));
        let teller = set.volume();
        set.tell({
            let teller = teller.clone();
            async move {
                for block in 0..30 {
                    teller.write(block * 3, 1, 1 + block as u8).await;
                }
                teller.volume.flush().await.expect("flushed");
            }
        });
        let limit = set.world.steps() + steps;
        let drain = {
            let teller = teller.clone();
            async move {
                teller.volume.drain();
                teller.clean(MINUTE).await;
                teller.sleep(1.0).await;
            }
        };
        let world = set.world.clone();
        has_ended = set.world.run(drain, || world.steps() > limit).is_some();
        set.world.kill();
        set.cache.borrow_mut().end(End::PowerLoss, &set.chance);
        set.backing.borrow_mut().end(End::PowerLoss, &set.chance);
        set.store.0.borrow_mut().clear();
        let world = World::new(set.chance.clone(), Duration::from_secs(100));
        let (cache, backing) = (&set.cache, &set.backing);
        let server = open(&world, cache, backing, &set.store, options(false));
        let volume = server.volumes()[0].clone();
        let read = async move {
            for block in 0..30 {
                let bytes = volume.read(StreamId(1), block * 3 * BLOCK, 512).await;
                assert_eq!(bytes.expect("read")[0], 1 + block as u8, "after {steps}");
            }
        };
        world.run(read, || false).expect("ends");
        world.kill();
    }
    assert!(has_ended, "the last one was not disturbed");
}

/// T150: clean as soon as nothing is dirty, however long the delay; dirty again with the next write.
#[test]
fn the_device_says_clean_once_it_is_and_dirty_before_it_is_not() {
    let set = Set::new(options(false)).paced(Duration::from_millis(1));
    let teller = set.volume();
    let tell = |block| {
        let teller = teller.clone();
        set.tell(async move {
            teller.write(block, 4, 1).await;
            assert_eq!(teller.volume.state(), "dirty");
        });
        assert_eq!(set.state(), BackingState::Dirty);
        let teller = set.volume();
        set.tell(async move {
            teller.volume.drain();
            teller.clean(MINUTE).await;
            teller.sleep(0.2).await;
        });
        assert_eq!(set.state(), BackingState::Clean);
    };
    tell(5);
    tell(6);
}

/// T151: what is dirty of a device that is to leave goes out at full speed, whatever is set, and nothing more becomes dirty. (Its slot is
/// in `lifecycle.rs`.)
#[test]
fn a_device_that_is_to_leave_is_written_back_whatever_is_set() {
    let slow = options(false)
        .with(Knob::WritebackPercent, 40)
        .with(Knob::WritebackRate, 8);
    let set = Set::new(slow).paced(Duration::from_millis(1));
    let teller = set.volume();
    let took = set.tell({
        let teller = teller.clone();
        async move {
            for block in 0..256 {
                teller.write(block * 3, 1, 7).await;
            }
            let began = teller.world.now();
            teller.server.start_detach("volume0").expect("it begins");
            teller.write(5, 1, 8).await;
            while teller.server.status().volumes[0].detach.is_some() {
                teller.sleep(0.01).await;
            }
            teller.world.now() - began
        }
    });
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!((0..256).all(|block| set.on_backing(block * 3) == 7));
    assert_eq!(set.on_backing(5), 8);
}

/// T144: after half a minute without a request everything goes out at full speed; the first request ends that.
#[test]
fn an_idle_set_is_written_back_at_full_speed_until_somebody_asks() {
    let slow = options(true)
        .with(Knob::WritebackPercent, 40)
        .with(Knob::WritebackDelay, 0)
        .with(Knob::WritebackRate, 8);
    let set = Set::new(slow).paced(Duration::from_millis(50));
    let teller = set.volume();
    set.tell({
        let teller = teller.clone();
        async move {
            for block in 0..1500 {
                teller.write(block * 3, 1, 7).await;
            }
            teller.sleep(28.0).await;
            assert!(!teller.status().idle && teller.dirty() > 1400 * BLOCK);
            teller.sleep(3.0).await;
            let status = teller.status();
            assert!(status.idle, "{status:?}");
            assert_eq!(status.rate, 512 * (i32::MAX as u64));
            teller.read(4000).await;
            let status = teller.status();
            assert!(!status.idle && status.dirty > 0, "{status:?}");
            teller.sleep(3.0).await;
            assert!(teller.status().rate <= 8 * 512, "{:?}", teller.status());
            let left = teller.dirty();
            teller.sleep(10.0).await;
            assert!(left - teller.dirty() <= 8 * BLOCK * 15, "it is slow again");
        }
    });
}

/// So many sectors a second are asked for, and are written.
#[test]
fn the_rate_is_kept() {
    let asked = options(true)
        .with(Knob::WritebackPercent, 40)
        .with(Knob::WritebackDelay, 0)
        .with(Knob::WritebackRate, 64)
        .with(Knob::WritebackRateMinimum, 64)
        .with(Knob::WritebackDeadline, 0)
        .with(Knob::IdleMaxWritebackRate, 0);
    let set = Set::of(4000, asked).paced(Duration::from_millis(1));
    let teller = set.volume();
    set.tell(async move {
        for block in 0..6000 {
            teller.write(block * 3, 1, 7).await;
        }
        let before = teller.dirty();
        teller.sleep(100.0).await;
        let sectors = (before - teller.dirty()) / 512;
        assert!((6000..=6700).contains(&sectors), "{sectors}");
        teller.set("writeback_rate_minimum", "640").await;
        teller.sleep(10.0).await;
        let before = teller.dirty();
        teller.sleep(20.0).await;
        let sectors = (before - teller.dirty()) / 512;
        assert!((12_000..=13_500).contains(&sectors), "{sectors}");
        teller.set("writeback_running", "0").await;
        teller.sleep(2.0).await;
        let before = teller.dirty();
        teller.sleep(60.0).await;
        assert_eq!(before, teller.dirty());
    });
}

/// After a pass that found little the next one waits for the delay, unless more is dirty than is meant to be.
#[test]
fn passes_rest_for_the_delay() {
    let delayed = options(true)
        .with(Knob::WritebackPercent, 1)
        .with(Knob::WritebackDelay, 20_000_000)
        .with(Knob::WritebackRate, 1 << 20)
        .with(Knob::WritebackRateMinimum, 1 << 20);
    let set = Set::new(delayed).paced(Duration::from_millis(1));
    let teller = set.volume();
    set.tell(async move {
        teller.write(0, 1, 1).await;
        teller.sleep(18.0).await;
        assert_eq!(teller.dirty(), BLOCK);
        teller.clean(Duration::from_secs(3)).await;
        // The target is a hundredth of 600 buckets of 64 sectors.
        for block in 0..60 {
            teller.write(block * 2, 1, 1).await;
        }
        let took = teller.clean(Duration::from_secs(3)).await;
        assert!(took < Duration::from_secs(2), "{took:?}");
    });
}

/// Buckets that nothing else can be put into are emptied, however slow the rate.
#[test]
fn much_of_the_cache_in_use_is_written_back_in_a_hurry() {
    let slow = options(true)
        .with(Knob::WritebackPercent, 40)
        .with(Knob::WritebackRate, 1)
        .with(Knob::WritebackRateMinimum, 1)
        .with(Knob::WritebackRateUpdateSeconds, 60_000_000)
        .with(Knob::IdleMaxWritebackRate, 0);
    let set = Set::new(slow).paced(Duration::from_millis(1));
    let teller = set.volume();
    set.tell(async move {
        for block in 0..2800 {
            teller.write(block * 2, 1, 7).await;
        }
        teller.sleep(5.0).await;
        let status = teller.server.status();
        let buckets = &status.cache_sets[0].devices[0].buckets;
        let in_use = (buckets.dirty + buckets.metadata) * 100 / buckets.total;
        assert!((30..=51).contains(&in_use), "{in_use}");
    });
}

/// T152: a collection follows when all is written back, if half of the cache was in use.
#[test]
fn a_collection_follows_once_all_is_written_back() {
    for wanted in [0, 1] {
        let set = Set::new(
            options(false)
                .with(Knob::WritebackPercent, 40)
                .with(Knob::WritebackDelay, 0)
                .with(Knob::WritebackRateMinimum, 1 << 20)
                .with(Knob::GcAfterWriteback, wanted),
        );
        let teller = set.volume();
        let passes = set.tell(async move {
            for block in 0..2600 {
                teller.write(block * 2, 1, 7).await;
            }
            teller.sleep(10.0).await;
            let passes = || teller.server.status().cache_sets[0].gc.passes;
            let before = passes();
            teller.set("writeback_running", "1").await;
            teller.clean(MINUTE).await;
            teller.sleep(10.0).await;
            passes() - before
        });
        assert_eq!(passes, wanted);
    }
}

/// A drain says how long it will take, rightly from its first quarter on, and heeds no setting.
#[test]
fn a_drain_knows_when_it_ends() {
    let set = Set::of(4000, plain()).paced(Duration::from_millis(7));
    let teller = set.volume();
    set.tell(async move {
        for block in 0..6000 {
            teller.write(block * 3, 1, 7).await;
        }
        let (began, all) = (teller.world.now(), teller.dirty());
        assert!(teller.volume.drain() && !teller.volume.drain());
        let mut seen = Vec::new();
        loop {
            let drain = teller.status().drain.expect("a drain");
            if drain.state != "running" {
                assert_eq!(drain.state, "done");
                assert_eq!((drain.left_bytes, drain.written_bytes), (0, all));
                break;
            }
            assert_eq!(drain.dirty_at_start_bytes, all);
            if drain.left_bytes * 4 <= all * 3 {
                let eta = drain.eta_seconds.expect("a speed");
                seen.push((teller.world.now(), eta));
            }
            teller.sleep(0.013).await;
        }
        let end = teller.world.now();
        assert!(seen.len() > 10, "{}", seen.len());
        for (at, eta) in seen {
            let really = (end - at).as_secs_f64();
            let off = (eta - really).abs() / (end - began).as_secs_f64();
            assert!(off < 0.1, "{eta} at {at:?}, really {really}");
        }
        assert_eq!(teller.volume.drained().await, Some(DrainEnd::Done));
    });
}

/// A drain that was cancelled leaves the rest dirty; one that a stop ends goes on with the next.
#[test]
fn a_drain_can_be_ended_and_begun_again() {
    let set = Set::of(2000, plain()).paced(Duration::from_millis(20));
    let teller = set.volume();
    let left = set.tell({
        let teller = teller.clone();
        async move {
            for block in 0..3000 {
                teller.write(block * 3, 1, 7).await;
            }
            teller.server.drain(Some("x")).expect("begun");
            assert!(teller.server.drain(Some("nobody")).is_err());
            teller.sleep(1.0).await;
            assert_eq!(teller.server.cancel_drain(None).expect("ended").len(), 1);
            assert_eq!(teller.volume.drained().await, Some(DrainEnd::Cancelled));
            teller.sleep(2.0).await;
            let left = teller.dirty();
            teller.sleep(10.0).await;
            assert!(left == teller.dirty() && left > 0 && left < 3000 * BLOCK);
            assert!(!teller.volume.cancel_drain());
            assert!(teller.volume.drain());
            teller.sleep(1.0).await;
            teller.server.stop().await.expect("stopped");
            assert_eq!(teller.volume.drained().await, Some(DrainEnd::Stopped));
            left
        }
    });
    set.world.kill();
    let world = World::new(set.chance.clone(), Duration::from_secs(1000));
    let server = open(&world, &set.cache, &set.backing, &set.store, options(false));
    let volume = server.volumes()[0].clone();
    assert!(volume.dirty_bytes() < left);
    let drain = async move {
        volume.drain();
        let ended = volume.drained().await;
        (ended, volume.dirty_bytes(), volume.state())
    };
    let ended = world.run(drain, || false).expect("ends");
    assert_eq!(ended, (Some(DrainEnd::Done), 0, "clean"));
    assert!((0..3000).all(|block| set.on_backing(block * 3) == 7));
}

/// One extent that is written all the time keeps only itself dirty, not those beside it.
#[test]
fn a_hot_block_does_not_keep_its_neighbours_dirty() {
    let set = Set::new(options(false)).paced(Duration::from_millis(5));
    let teller = set.volume();
    set.tell(async move {
        for block in (0..256).rev() {
            teller.write(1000 + block, 1, 1).await;
        }
        teller.volume.drain();
        for round in 0..200 {
            teller.write(1100, 1, round as u8).await;
            teller.sleep(0.001).await;
        }
        assert!(teller.dirty() <= BLOCK, "{}", teller.dirty());
    });
    assert!((0..256).all(|block| block == 100 || set.on_backing(1000 + block) == 1));
}

/// Has every read of the cache that begins there fail.
fn break_sector(disk: &Rc<RefCell<DiskState>>, byte: u64) {
    let weak = Rc::downgrade(disk);
    disk.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        if let (Io::Read(at), Some(disk)) = (io, weak.upgrade())
            && at == byte
        {
            disk.borrow_mut().faults.read_in = Some(0);
        }
        Some(Duration::from_micros(20))
    }));
}

/// Where the cache has what begins with such a block.
fn place_of(disk: &Rc<RefCell<DiskState>>, byte: u8) -> u64 {
    let disk = disk.borrow();
    let (mut block, size) = (vec![0; BLOCK as usize], disk.geometry.size_bytes);
    let is_it = |at: &u64| {
        disk.peek(*at, &mut block);
        block.iter().all(|it| *it == byte)
    };
    (0..size)
        .step_by(BLOCK as usize)
        .find(is_it)
        .expect("it is cached")
}

/// What cannot be read stays dirty and is told of; all else becomes clean, and the set does not fail however often it is tried.
#[test]
fn dirty_data_that_cannot_be_read_keeps_nothing_else_dirty_and_does_not_fail_the_set() {
    let set = Set::new(options(false)).paced(Duration::from_millis(1));
    let teller = set.volume();
    let cache = set.cache.clone();
    set.tell(async move {
        for block in (0..64).rev() {
            teller
                .write(block, 1, if block == 30 { 0xa7 } else { 1 })
                .await;
        }
        teller.write(500, 1, 1).await;
        break_sector(&cache, place_of(&cache, 0xa7));
        teller.volume.drain();
        teller.sleep(60.0).await;
        assert_eq!(teller.dirty(), BLOCK);
        let status = teller.server.status();
        assert_eq!(status.cache_sets[0].state, "running");
        assert!(!status.errors.is_empty());
        let drain = teller.status().drain.expect("a drain");
        assert_eq!(drain.state, "running");
        assert!(drain.last_error.is_some());
        assert!(teller.volume.cancel_drain());
        teller.set("writeback_percent", "0").await;
        teller.set("writeback_delay", "20").await;
        teller.set("writeback_running", "1").await;
        let before = cache.borrow().faults_happened;
        teller.sleep(120.0).await;
        let tried = cache.borrow().faults_happened - before;
        assert!((2..=20).contains(&tried), "{tried}");
    });
    assert!((0..64).all(|block| block == 30 || set.on_backing(block) == 1));
    assert_eq!(set.on_backing(500), 1);
}

/// The same of a place of the backing device that takes nothing.
#[test]
fn a_place_that_takes_no_data_keeps_nothing_else_dirty_and_does_not_shut_the_volume() {
    let set = Set::new(options(false)).paced(Duration::from_millis(1));
    let teller = set.volume();
    let weak = Rc::downgrade(&set.backing);
    let bad = OFFSET + 30 * BLOCK;
    set.backing.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        if let (Io::Write(at, data), Some(disk)) = (io, weak.upgrade())
            && (at..at + data.len() as u64).contains(&bad)
        {
            disk.borrow_mut().faults.write_in = Some(0);
        }
        Some(Duration::from_millis(1))
    }));
    set.tell(async move {
        for block in (0..64).rev() {
            teller.write(block, 1, 1).await;
        }
        teller.volume.drain();
        teller.sleep(55.0).await;
        assert_eq!(teller.dirty(), BLOCK);
        assert!(teller.status().drain.expect("a drain").last_error.is_some());
        assert_eq!(teller.read(1).await, 1, "it is served");
    });
    assert!((0..64).all(|block| block == 30 || set.on_backing(block) == 1));
}

/// Under writes that never end a drain is over when what was dirty at its beginning is written back.
#[test]
fn a_drain_ends_although_clients_go_on_writing() {
    let set = Set::of(2000, options(false)).paced(Duration::from_millis(20));
    let teller = set.volume();
    set.tell(async move {
        for block in 0..500 {
            teller.write(block * 3, 1, 7).await;
        }
        teller.volume.drain();
        let mut number = 0;
        while teller.status().drain.expect("a drain").state == "running" {
            teller.write(3000 + number % 400 * 2, 1, 8).await;
            number += 1;
            teller.sleep(0.003).await;
            assert!(number < 20_000, "{:?}", teller.status());
        }
        let drain = teller.status().drain.expect("a drain");
        assert_eq!(drain.state, "done");
        assert_eq!(drain.left_bytes, teller.dirty());
        assert!(drain.left_bytes > 0);
    });
    assert!((0..500).all(|block| set.on_backing(block * 3) == 7));
}

/// A device whose state could not be written is not thought to be clean.
#[test]
fn a_device_that_could_not_be_called_clean_still_says_dirty() {
    let set = Set::new(options(false)).paced(Duration::from_millis(1));
    let teller = set.volume();
    let backing = set.backing.clone();
    set.tell(async move {
        teller.write(5, 1, 1).await;
        backing.borrow_mut().faults.write_in = Some(1);
        teller.volume.drain();
        teller.sleep(5.0).await;
        assert_eq!((teller.dirty(), teller.volume.state()), (0, "dirty"));
        let drain = teller.status().drain.expect("a drain");
        assert_eq!(drain.state, "failed");
        assert!(drain.last_error.is_some());
    });
}

/// Nobody waits for a drain that cannot get anywhere any more, whichever device it is that has failed.
#[test]
fn a_drain_over_a_device_that_has_failed_ends() {
    for is_cache in [false, true] {
        let set = Set::new(options(false)).paced(Duration::from_millis(1));
        let teller = set.volume();
        let failing = match is_cache {
            true => set.cache.clone(),
            false => set.backing.clone(),
        };
        set.tell(async move {
            for block in 0..50 {
                teller.write(block * 3, 1, 1).await;
            }
            failing.borrow_mut().faults.flush_in = Some(0);
            teller.volume.drain();
            assert_eq!(teller.volume.drained().await, Some(DrainEnd::Failed));
            let drain = teller.status().drain.expect("a drain");
            assert_eq!(drain.state, "failed");
            assert!(drain.last_error.is_some() && drain.left_bytes == 50 * BLOCK);
        });
    }
}
