//! What becomes of requests when devices fail (docs/errors.md).

use brigade_engine::marks::{self, Mark};
use brigade_engine::settings::Knob;
use brigade_engine::{Options, Server};
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::{BackingState, CacheMode, Superblock};
use brigade_sim::disk::{DiskState, End, Io};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, open, options};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

type Disk = Rc<RefCell<DiskState>>;

const KIB: u64 = 1024;
const EACH: u64 = 64 * KIB;

/// A set of one volume that is served.
struct Story {
    world: World,
    server: Rc<Server<World>>,
    cache: Disk,
    backing: Disk,
    store: Store,
}

fn begin(mode: CacheMode, knobs: &[(Knob, u64)]) -> Story {
    let (cache, backing) = disks(520, 64, 8, 1 << 16);
    serve(cache, backing, Store::default(), mode, knobs, 1)
}

fn serve(
    cache: Disk,
    backing: Disk,
    store: Store,
    mode: CacheMode,
    knobs: &[(Knob, u64)],
    start: u64,
) -> Story {
    let mut options = Options {
        mode: Some(mode),
        ..options(false)
    };
    options.settings.extend(knobs.iter().copied());
    let world = World::new(Chance::new(5), Duration::from_secs(start));
    let server = open(&world, &cache, &backing, &store, options);
    Story {
        world,
        server,
        cache,
        backing,
        store,
    }
}

impl Story {
    fn run<T: 'static>(&self, what: impl Future<Output = T> + 'static) -> T {
        let limit = self.world.now() + Duration::from_secs(3000);
        self.world
            .run(what, || self.world.now() > limit)
            .expect("it ends")
    }

    fn write(&self, at: u64, value: u8, fua: bool) -> io::Result<()> {
        let volume = self.server.volumes()[0].clone();
        let mut buffer = volume.buffer(4096);
        buffer.fill(value);
        self.run(async move { volume.write(StreamId(1), at, buffer, fua).await })
    }

    fn bytes(&self, at: u64) -> io::Result<Vec<u8>> {
        let volume = self.server.volumes()[0].clone();
        let read = self.run(async move { volume.read(StreamId(2), at, 4096).await });
        read.map(|buffer| buffer.to_vec())
    }

    fn read(&self, at: u64) -> io::Result<u8> {
        let bytes = self.bytes(at)?;
        assert!(bytes.iter().all(|byte| *byte == bytes[0]));
        Ok(bytes[0])
    }

    fn flush(&self) -> io::Result<()> {
        let volume = self.server.volumes()[0].clone();
        self.run(async move { volume.flush().await })
    }

    fn rest(&self, seconds: u64) {
        let world = self.world.clone();
        self.run(async move { world.sleep(Duration::from_secs(seconds)).await });
    }

    fn set(&self, key: &str, value: &str) {
        let (server, key, value) = (self.server.clone(), key.to_string(), value.to_string());
        let changed = self.run(async move { server.change(&[(key, value)]).await });
        changed.expect("it can be set");
    }

    fn hits(&self) -> u64 {
        self.server.status().volumes[0].reads.hits
    }

    fn is_failed(&self) -> bool {
        self.server.status().cache_sets[0].state == "poisoned"
    }

    fn errors(&self) -> String {
        self.server.status().errors.join("\n")
    }

    fn state(&self) -> &'static str {
        self.server.volumes()[0].state()
    }

    fn dirty(&self) -> u64 {
        self.server.status().volumes[0].dirty_bytes
    }

    /// The set fails as a flush of its device does, which a FUA write needs: what is cached has to be hidden, or what is new journalled.
    fn fail_set(&self) -> io::Result<()> {
        self.cache.borrow_mut().faults.flush_in = Some(0);
        let result = self.write(0, 2, true);
        assert!(self.is_failed());
        result
    }

    fn break_reads(&self, disk: &Disk) {
        disk.borrow_mut().faults.reads_each = Some(1);
    }

    fn mend(&self) {
        for disk in [&self.cache, &self.backing] {
            disk.borrow_mut().faults = Default::default();
        }
    }

    fn superblock(&self) -> Superblock {
        let mut bytes = vec![0; 4096];
        self.backing.borrow().peek(4096, &mut bytes);
        Superblock::parse(&bytes).expect("a superblock")
    }

    /// Ends and is served again.
    fn again(self, end: End, mode: CacheMode) -> Story {
        self.mend();
        let now = self.world.now().as_secs() + 1;
        self.world.kill();
        for disk in [&self.cache, &self.backing] {
            disk.borrow_mut().end(end, &Chance::new(7));
        }
        let Story {
            cache,
            backing,
            store,
            server,
            world,
        } = self;
        drop((server, world));
        if end == End::PowerLoss {
            store.0.borrow_mut().clear();
        }
        serve(cache, backing, store, mode, &[], now)
    }
}

/// T125: what is clean and cannot be read comes from the backing device, once: then it is not cached any more, and its bucket is not
/// used again.
#[test]
fn a_clean_copy_that_cannot_be_read_comes_from_the_backing_device_and_leaves_the_cache() {
    let story = begin(CacheMode::Writethrough, &[]);
    story.write(0, 7, false).expect("a write");
    story.flush().expect("a flush");
    assert_eq!((story.read(0).expect("a read"), story.hits()), (7, 1));
    story.break_reads(&story.cache);
    assert_eq!(story.read(0).expect("from the backing device"), 7);
    story.mend();
    story.rest(1);
    let misses = |story: &Story| story.server.status().volumes[0].reads.misses;
    let before = misses(&story);
    assert_eq!(story.read(0).expect("a read"), 7);
    assert_eq!(misses(&story), before + 1);
    let set = &story.server.status().cache_sets[0];
    assert_eq!(set.devices[0].buckets.set_aside, 1);
    assert!(
        story.errors().contains("1 errors so far"),
        "{}",
        story.errors()
    );
    story.server.audit();
}

/// T125: what is dirty and cannot be read is an error, and stays dirty; what was there before does not come to light.
#[test]
fn dirty_data_that_cannot_be_read_is_an_error_and_never_older_data() {
    let story = begin(CacheMode::Writeback, &[]);
    story.write(0, 7, false).expect("a write");
    story.break_reads(&story.cache);
    assert!(story.read(0).is_err());
    assert_eq!(story.dirty(), 4096);
    story.mend();
    assert_eq!(story.read(0).expect("it is there"), 7);
}

/// T135: a copy that cannot be written is not in the cache, nor is what was there before; the write succeeds.
#[test]
fn a_writethrough_whose_copy_fails_succeeds_and_nothing_is_cached() {
    let story = begin(CacheMode::Writethrough, &[]);
    story.write(0, 1, false).expect("a write");
    story.flush().expect("a flush");
    story.cache.borrow_mut().faults.data_each = Some(1);
    for value in 2..6 {
        story
            .write(0, value, false)
            .expect("it is on the backing device");
        story.flush().expect("a flush");
        assert_eq!(story.read(0).expect("a read"), value);
    }
    assert_eq!(story.hits(), 0);
    assert!(!story.is_failed());
}

/// T135: a write to the cache alone that fails puts nothing into the index.
#[test]
fn a_writeback_that_fails_inserts_nothing() {
    let story = begin(CacheMode::Writeback, &[]);
    story.write(0, 1, false).expect("a write");
    story.cache.borrow_mut().faults.data_each = Some(1);
    assert!(story.write(0, 2, false).is_err());
    assert!(story.write(EACH, 2, false).is_err());
    story.mend();
    assert_eq!(story.read(0).expect("what was acknowledged"), 1);
    assert_eq!(story.read(EACH).expect("nothing was written"), 0);
    assert_eq!(story.dirty(), 4096);
}

/// T139: the eighth error of the cache device is one too many, the seventh is not.
#[test]
fn a_set_fails_with_the_eighth_error_and_its_clean_volume_goes_on() {
    let story = begin(CacheMode::Writethrough, &[]);
    for i in 0..10 {
        story.write(i * EACH, i as u8 + 1, false).expect("a write");
    }
    story.flush().expect("a flush");
    story.break_reads(&story.cache);
    for i in 0..7 {
        assert_eq!(story.read(i * EACH).expect("a read"), i as u8 + 1);
    }
    assert!(!story.is_failed());
    assert_eq!(story.read(7 * EACH).expect("a read"), 8);
    assert!(story.is_failed());
    assert_eq!(story.read(8 * EACH).expect("a read"), 9);
    story.write(8 * EACH, 99, true).expect("without the cache");
    assert_eq!(story.read(8 * EACH).expect("a read"), 99);
    assert!(story.errors().contains("goes on without its cache"));
}

/// A volume that left its cache does not come back to it because its size is looked at.
#[test]
fn a_volume_that_left_its_cache_stays_away_when_its_device_has_grown() {
    let story = begin(CacheMode::Writethrough, &[]);
    for at in [0, EACH] {
        story.write(at, 1, false).expect("a write");
    }
    story.flush().expect("a flush");
    assert_eq!((story.read(EACH).expect("a read"), story.hits()), (1, 1));
    story.fail_set().expect("the request that met the error");
    story.write(EACH, 3, true).expect("past the cache");
    let sectors = story.backing.borrow().geometry.size_bytes / 512;
    story.backing.borrow_mut().grow(sectors + 4096);
    let server = story.server.clone();
    let name = server.volumes()[0].name();
    story
        .run(async move { server.resize(&name, None, false).await })
        .expect("it has grown");
    assert_eq!(story.read(EACH).expect("a read"), 3);
    assert!(story.errors().contains("goes on without its cache"));
}

/// T121, T140: with auto a volume with nothing dirty goes on when the journal fails, and no later opening takes up what was cached, even
/// if the cache device is well again.
#[test]
fn a_clean_volume_goes_on_without_a_set_that_failed_and_its_old_copies_never_come_back() {
    for end in [End::Kill, End::PowerLoss] {
        let story = begin(CacheMode::Writethrough, &[]);
        story.write(0, 1, false).expect("a write");
        story.flush().expect("a flush");
        assert_eq!((story.read(0).expect("a read"), story.hits()), (1, 1));
        story.fail_set().expect("the request that met the error");
        assert_eq!(story.state(), "inconsistent");
        assert_eq!(story.superblock().state(), BackingState::Stale);
        story.write(EACH, 3, false).expect("later ones");
        story.flush().expect("a flush");
        let story = story.again(end, CacheMode::Writethrough);
        assert_eq!(story.read(0).expect("a read"), 2);
        assert_eq!(story.read(EACH).expect("a read"), 3);
        assert_eq!((story.state(), story.errors().as_str()), ("clean", ""));
    }
}

/// T140: with auto a volume with dirty data takes no writes when its set failed, says what is at stake, and has all of it later.
#[test]
fn a_dirty_volume_of_a_failed_set_takes_no_writes_and_loses_nothing() {
    let story = begin(CacheMode::Writeback, &[]);
    story.write(0, 1, true).expect("a write");
    assert!(story.fail_set().is_err());
    assert!(story.write(EACH, 2, false).is_err());
    assert!(story.flush().is_err());
    assert!(
        story
            .errors()
            .contains("4 KiB of its data are only in the cache set")
    );
    assert_eq!(story.superblock().state(), BackingState::Dirty);
    let story = story.again(End::Kill, CacheMode::Writeback);
    let value = story.read(0).expect("a read");
    assert!(
        [1, 2].contains(&value),
        "acknowledged, or under way: {value}"
    );
    assert_eq!(story.read(EACH).expect("a read"), 0);
}

/// T140: with always everything is refused, dirty or not.
#[test]
fn a_volume_that_stops_with_its_set_refuses_everything() {
    for mode in [CacheMode::Writethrough, CacheMode::Writeback] {
        let story = begin(mode, &[(Knob::StopWhenCacheSetFailed, 1)]);
        story.write(0, 1, true).expect("a write");
        story.flush().expect("a flush");
        assert!(story.fail_set().is_err());
        assert!(story.read(0).is_err());
        assert!(story.write(EACH, 2, false).is_err());
        assert!(story.flush().is_err());
        assert_ne!(story.superblock().state(), BackingState::Stale);
        assert!(story.errors().contains("refuses requests"));
    }
}

/// T140: the process ends at once if that is how errors are to be met.
#[test]
fn a_failed_set_ends_the_process_if_errors_is_panic() {
    for (choice, ends) in [(0, false), (1, true)] {
        let story = begin(CacheMode::Writethrough, &[(Knob::Errors, choice)]);
        story.write(0, 1, false).expect("a write");
        story.flush().expect("a flush");
        let _ = story.fail_set();
        assert_eq!(story.world.ended_for().is_some(), ends);
    }
}

/// T139: a backing device with 64 errors is shut, is let in again by hand, and says in between whether it answers.
#[test]
fn a_backing_device_with_too_many_errors_refuses_requests_until_it_is_let_in() {
    let story = begin(CacheMode::Writethrough, &[]);
    story.break_reads(&story.backing);
    for i in 0..63 {
        assert!(story.read(i * EACH).is_err());
    }
    assert!(!story.errors().contains("refuses requests"));
    assert!(story.read(0).is_err());
    assert!(story.errors().contains("refuses requests: too many errors"));
    assert!(!cfg!(feature = "instrumented") || marks::hits(Mark::BackingShut) > 0);
    let ios = story.backing.borrow().ios;
    assert!(story.read(0).is_err() && story.write(0, 1, false).is_err());
    assert_eq!(story.backing.borrow().ios, ios, "it is not even asked");
    story.rest(2);
    assert!(!story.errors().contains("answers again"));
    story.mend();
    story.rest(2);
    assert!(
        story.errors().contains("answers again"),
        "{}",
        story.errors()
    );
    story.set("volumes.io_disable", "0");
    story.write(0, 1, false).expect("a write");
    assert_eq!(story.read(0).expect("a read"), 1);
    story.rest(2);
    assert!(!story.errors().contains("refuses"), "{}", story.errors());
}

/// A backing device that was gone for a moment may have lost what it had not made durable: no flush of it counts any more.
#[test]
fn a_backing_device_that_was_gone_takes_no_writes_until_it_is_opened_again() {
    let story = begin(CacheMode::Writearound, &[]);
    story.write(0, 1, false).expect("a write");
    story.backing.borrow_mut().faults.gone_in = Some((0, Duration::from_millis(100)));
    assert!(story.read(EACH).is_err());
    story.rest(2);
    assert_eq!(story.read(EACH).expect("it is there again"), 0);
    assert!(story.flush().is_err(), "what was lost was not flushed");
    assert!(story.write(0, 2, false).is_err());
    assert!(story.errors().contains("is gone"), "{}", story.errors());
    let story = story.again(End::Kill, CacheMode::Writearound);
    story.write(0, 2, false).expect("a write");
    story.flush().expect("a flush");
    assert_eq!(
        (story.read(0).expect("a read"), story.errors()),
        (2, String::new())
    );
}

/// Whoever looks whether a backing device answers keeps nobody from letting go of it.
#[test]
fn a_volume_whose_backing_device_is_gone_for_good_can_be_stopped() {
    let story = begin(CacheMode::Writethrough, &[]);
    story.backing.borrow_mut().faults.gone_in = Some((0, Duration::from_secs(1_000_000)));
    assert!(story.read(0).is_err());
    story.rest(10);
    assert!(
        story.errors().contains("does not answer"),
        "{}",
        story.errors()
    );
    let (server, began) = (story.server.clone(), story.world.now());
    let name = server.volumes()[0].name();
    let _ = story.run(async move { server.stop_volume(&name).await });
    assert!(story.world.now() - began < Duration::from_secs(10));
    assert!(story.server.volumes().is_empty());
}

/// T148: what cannot be written to the backing device stays dirty, `status` says so, and later it is written.
#[test]
fn dirty_data_that_cannot_be_written_back_stays_dirty() {
    let knobs = [
        (Knob::WritebackRunning, 1),
        (Knob::WritebackPercent, 0),
        (Knob::WritebackDelay, 1000),
    ];
    let story = begin(CacheMode::Writeback, &knobs);
    story.backing.borrow_mut().faults.data_each = Some(1);
    story.write(0, 1, true).expect("a write");
    story.rest(20);
    assert_eq!(story.dirty(), 4096);
    assert!(story.errors().contains("stays dirty"), "{}", story.errors());
    story.mend();
    story.rest(60);
    assert_eq!((story.dirty(), story.state()), (0, "clean"));
    assert_eq!(story.read(0).expect("a read"), 1);
}

/// What is switched off by hand refuses, and serves again when it is on.
#[test]
fn io_disable_refuses_requests_while_it_is_on() {
    let story = begin(CacheMode::Writethrough, &[]);
    for key in ["cache_set.io_disable", "volumes.io_disable"] {
        story.set(key, "1");
        assert!(story.read(0).is_err() && story.write(0, 1, false).is_err());
        assert!(story.flush().is_err());
        assert!(story.errors().contains("io_disable"));
        story.set(key, "0");
        story.write(0, 1, false).expect("a write");
        assert_eq!(story.read(0).expect("a read"), 1);
    }
}

/// Unlike what a discard leaves.
fn value_at(at: u64) -> u8 {
    0x80 | (at / EACH % 100) as u8
}

/// Writes all over the volume, so that buckets are recycled.
fn churn(story: &Story) {
    let volume = story.server.volumes()[0].clone();
    let work = async move {
        for at in (0..(2 * 28) << 20).step_by(EACH as usize) {
            let mut buffer = volume.buffer(EACH as usize);
            buffer.fill(value_at(at));
            let written = volume.write(StreamId(1), at % (28 << 20), buffer, false);
            written.await.expect("a write");
        }
    };
    story.run(work);
}

/// Has each write of the cache device that is of this kind fail; says how many did.
fn fail_writes(story: &Story, is_it: impl Fn(&[u8]) -> bool + 'static) -> Rc<Cell<u64>> {
    let failed = Rc::new(Cell::new(0));
    let (count, disk) = (failed.clone(), Rc::downgrade(&story.cache));
    story.cache.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        if let (Io::Write(_, data), Some(disk)) = (io, disk.upgrade())
            && is_it(data)
        {
            disk.borrow_mut().faults.write_in = Some(0);
            count.set(count.get() + 1);
        }
        None
    }));
    failed
}

/// T058: the set fails when its gen table cannot be written; its clean volume goes on.
#[test]
fn a_set_whose_gen_table_cannot_be_written_fails_and_its_clean_volume_goes_on() {
    let story = begin(CacheMode::Writethrough, &[]);
    // The constant for tables and the magic of the set that all disks here are of.
    let magic = 0x6750_e15f_8733_7f91_u64 ^ 0x0909_0909_0909_0909;
    let failed = fail_writes(&story, move |data| data[8..16] == magic.to_le_bytes());
    churn(&story);
    assert_eq!(
        failed.get(),
        1,
        "nothing is written after the first failure"
    );
    assert!(story.is_failed());
    assert_eq!(story.read(0).expect("a read"), value_at(28 << 20));
}

/// T062: a discard that fails is nothing.
#[test]
fn a_discard_of_the_cache_device_that_fails_means_nothing() {
    let story = begin(CacheMode::Writethrough, &[]);
    story.set("cache_set.discard", "1");
    let is_discard =
        |data: &[u8]| data.len() >= 32 << 10 && data.iter().all(|it| *it == 0 || *it == 0x5a);
    let failed = fail_writes(&story, is_discard);
    churn(&story);
    assert!(failed.get() > 0);
    assert!(!story.is_failed());
    assert_eq!(story.errors(), "");
}

/// T164: a range that was cached is written directly and not flushed when power fails: it reads as old or new, and stays so.
#[test]
fn what_was_cached_and_then_written_directly_reads_the_same_for_good_after_a_loss_of_power() {
    let story = begin(CacheMode::Writearound, &[]);
    story.write(0, 1, true).expect("a write");
    story.flush().expect("a flush");
    story.read(0).expect("a miss");
    story.rest(1);
    story.read(0).expect("a hit");
    assert_eq!(story.hits(), 1);
    story
        .write(0, 2, false)
        .expect("a write that is not flushed");
    let story = story.again(End::PowerLoss, CacheMode::Writearound);
    let first = story.bytes(0).expect("a read");
    assert!(first.iter().all(|byte| [1, 2].contains(byte)));

    assert_eq!(story.hits(), 0, "it is not what the cache had");
    churn_reads(&story);
    assert_eq!(story.bytes(0).expect("a read"), first);
}

fn churn_reads(story: &Story) {
    for i in 1..600 {
        let volume = story.server.volumes()[0].clone();
        let read = async move { volume.read(StreamId(3), i * 48 * KIB, 48 << 10).await };
        story.run(read).expect("a read");
    }
}
