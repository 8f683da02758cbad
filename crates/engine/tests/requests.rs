//! What becomes of requests: which way each goes, what is cached after it, and that it is counted once.

use brigade_engine::settings::Knob;
use brigade_engine::{NotDirty, Options, Reason, Server, Volume, VolumeStatus};
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::CacheMode;
use brigade_sim::disk::{DiskState, Io};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, open, options};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

const BLOCK: u64 = 4096;
const MIB: u64 = 1 << 20;
/// Where the volume begins on its device.
const OFFSET: u64 = 16 * 512;

/// A server with a cache of 600 buckets of 64 KiB and a volume of 60 MiB.
struct Rig {
    world: World,
    server: Rc<Server<World>>,
    volume: Rc<Volume<World>>,
    cache: Rc<RefCell<DiskState>>,
    backing: Rc<RefCell<DiskState>>,
}

fn rig(mode: CacheMode, with: &[(Knob, u64)]) -> Rig {
    let (cache, backing) = disks(600, 128, 8, 60 * MIB / 512);
    let world = World::new(Chance::new(3), Duration::from_secs(1));
    let mut how = Options {
        mode: Some(mode),
        ..options(false)
    };
    how.settings.extend(with.iter().copied());
    let server = open(&world, &cache, &backing, &Store::default(), how);
    Rig {
        volume: server.volumes()[0].clone(),
        world,
        server,
        cache,
        backing,
    }
}

impl Rig {
    fn run<T: 'static>(&self, story: impl Future<Output = T> + 'static) -> T {
        let limit = self.world.now() + Duration::from_secs(5000);
        let result = self.world.run(story, || self.world.now() > limit);
        result.expect("ends in time")
    }

    fn write(&self, at: u64, length: u64, value: u8) {
        self.try_write(at, length, value, false).unwrap();
    }

    fn try_write(&self, at: u64, length: u64, value: u8, fua: bool) -> std::io::Result<()> {
        let mut buffer = self.volume.buffer(length as usize);
        buffer.fill(value);
        self.run(self.volume.write(StreamId(1), at, buffer, fua))
    }

    fn read(&self, at: u64, length: u64) -> Vec<u8> {
        let read = self.volume.read(StreamId(1), at, length as usize);
        self.run(read).unwrap().to_vec()
    }

    /// Lets what is under way come to its end; flushes let clean data in.
    fn settle(&self) {
        self.sleep(1);
        self.run(self.volume.flush()).unwrap();
        self.sleep(1);
        self.server.audit();
    }

    fn sleep(&self, seconds: u64) {
        let world = self.world.clone();
        self.run(async move { world.sleep(Duration::from_secs(seconds)).await });
    }

    fn set(&self, key: &'static str, value: &'static str) {
        let server = self.server.clone();
        let one = [(key.to_string(), value.to_string())];
        self.run(async move { server.change(&one).await.map(|_| ()) })
            .unwrap();
    }

    /// Length and state of what is cached: 0 not, 1 clean, 2 dirty.
    fn cached(&self, at: u64, length: u64) -> Vec<(u64, u32)> {
        let states = BlockDevice::status(&*self.volume, at, length, 100);
        let extents = self.run(states).unwrap();
        extents
            .iter()
            .map(|extent| (extent.length, extent.cache_state))
            .collect()
    }

    fn status(&self) -> VolumeStatus {
        self.server.audit();
        self.server.status().volumes[0].clone()
    }

    fn on_backing(&self, at: u64) -> u8 {
        let mut bytes = [0; 512];
        self.backing.borrow().peek(OFFSET + at, &mut bytes);
        bytes[0]
    }

    /// Puts bytes where no request has been.
    fn poke(&self, at: u64, length: u64, value: u8) {
        let bytes = vec![value; length as usize];
        self.backing.borrow_mut().poke(OFFSET + at, &bytes);
    }
}

/// T123: and both gaps are in the cache after (H.19).
#[test]
fn a_read_of_hits_and_gaps_is_right_is_a_miss_and_leaves_no_gap() {
    let rig = rig(CacheMode::Writethrough, &[]);
    for block in 0..4 {
        rig.poke(block * BLOCK, BLOCK, 10 + block as u8);
    }
    for block in [0, 2] {
        assert_eq!(rig.read(block * BLOCK, BLOCK), [10 + block as u8; 4096]);
    }
    rig.settle();
    let clean_and_gap = [(BLOCK, 1), (BLOCK, 0), (BLOCK, 1), (BLOCK, 0)];
    assert_eq!(rig.cached(0, 4 * BLOCK), clean_and_gap);
    let read = rig.read(0, 4 * BLOCK);
    for (block, bytes) in read.chunks(BLOCK as usize).enumerate() {
        assert_eq!(bytes, [10 + block as u8; 4096]);
    }
    rig.settle();
    assert_eq!(rig.cached(0, 4 * BLOCK), [(4 * BLOCK, 1)]);
    let reads = rig.status().reads;
    assert_eq!((reads.requests, reads.hits, reads.misses), (3, 0, 3));
    rig.read(0, 4 * BLOCK);
    let volume = rig.status();
    assert_eq!((volume.reads.hits, volume.reads.hit_bytes), (1, 4 * BLOCK));
    assert_eq!(volume.stats.total.cache_hit_ratio, 25);
    assert_eq!(volume.fills.bytes, 4 * BLOCK);
    assert_eq!((volume.fills.begun, volume.fills.under_way), (4, 0));
}

/// H.19: no length keeps a miss out.
#[test]
fn all_of_a_long_miss_gets_into_the_cache() {
    let rig = rig(CacheMode::Writethrough, &[]);
    rig.poke(0, 3 * MIB, 7);
    assert!(rig.read(BLOCK, 3 * MIB - BLOCK).iter().all(|it| *it == 7));
    rig.settle();
    assert_eq!(rig.cached(BLOCK, 3 * MIB - BLOCK), [(3 * MIB - BLOCK, 1)]);
    let fills = rig.status().fills;
    assert_eq!(fills.bytes, 3 * MIB - BLOCK);
}

/// T124: the bucket is recycled while it is read, and holds other data by the end.
#[test]
fn a_read_whose_bucket_is_recycled_meanwhile_gets_what_the_backing_device_has() {
    let rig = rig(CacheMode::Writethrough, &[]);
    // All of a bucket: one that is being filled stays.
    rig.write(0, 16 * BLOCK, 1);
    rig.settle();
    assert_eq!(rig.cached(0, BLOCK), [(BLOCK, 1)]);
    rig.cache.borrow_mut().pace = Some(Rc::new(|io: Io<'_>| {
        Some(match io {
            Io::Read(_) => Duration::from_secs(600),
            _ => Duration::from_micros(50),
        })
    }));
    let (v, w) = (rig.volume.clone(), rig.world.clone());
    let read = rig.volume.read(StreamId(1), 0, BLOCK as usize);
    let writes = async move {
        for number in 0..800 {
            let mut buffer = v.buffer(16 * BLOCK as usize);
            buffer.fill(2);
            let at = MIB + number * 16 * BLOCK;
            v.write(StreamId(2), at, buffer, false).await.unwrap();
            if number % 50 == 0 {
                v.flush().await.unwrap();
                w.sleep(Duration::from_secs(1)).await;
            }
        }
    };
    let both = async move { brigade_env::sync::join(read, writes).await };
    let (read, ()) = rig.run(both);
    assert_eq!(read.unwrap()[..], [1; 4096]);
    let reads = rig.status().reads;
    assert_eq!((reads.races, reads.misses, reads.hits), (1, 1, 0));
    let set = rig.server.status().cache_set.unwrap();
    assert_eq!(set.cache_read_races, 1);
    let recycled = set.devices[0].recycled;
    assert!(recycled.evicted > 0, "{recycled:?}");
    assert_eq!(recycled.buckets, recycled.empty + recycled.evicted);
}

/// T019: 1024 times a bucket and more.
#[test]
fn what_bypasses_the_cache_ages_nothing() {
    let rig = rig(CacheMode::Writethrough, &[(Knob::SequentialCutoff, 4096)]);
    let aged = || rig.server.status().cache_sets[0].devices[0].aged_steps;
    for number in 0..50 {
        rig.write(number * MIB, MIB, 1);
        rig.read(number * MIB, MIB);
    }
    assert_eq!(aged(), 0);
    rig.set("sequential_cutoff", "0");
    rig.read(0, BLOCK);
    assert_eq!(aged(), 1, "the first that does not");
    // Steps of 75 sectors, and one with a request at most.
    for number in 1..=10 {
        rig.read(number * 100 * BLOCK, 10 * BLOCK);
    }
    assert_eq!(aged(), 11);
}

/// T126: of several lengths and moments; the write is what a later read returns, from wherever.
#[test]
fn a_write_that_races_the_fill_of_a_miss_wins() {
    for delay in 0..12 {
        let rig = rig(CacheMode::Writearound, &[]);
        rig.poke(0, 16 * BLOCK, 1);
        let pace = |io: Io<'_>| {
            Some(Duration::from_millis(match io {
                Io::Read(_) => 4,
                _ => 1,
            }))
        };
        rig.backing.borrow_mut().pace = Some(Rc::new(pace));
        rig.cache.borrow_mut().pace = Some(Rc::new(|_| Some(Duration::from_millis(3))));
        let (v, w) = (rig.volume.clone(), rig.world.clone());
        let read = rig.volume.read(StreamId(1), 0, 16 * BLOCK as usize);
        let write = async move {
            w.sleep(Duration::from_millis(delay)).await;
            let mut buffer = v.buffer(BLOCK as usize);
            buffer.fill(2);
            v.write(StreamId(2), 4 * BLOCK, buffer, false).await
        };
        let both = async move { brigade_env::sync::join(read, write).await };
        let (read, written) = rig.run(both);
        written.unwrap();
        assert!(read.unwrap().iter().all(|byte| *byte == 1 || *byte == 2));
        rig.settle();
        assert_eq!(rig.read(4 * BLOCK, BLOCK), [2; 4096], "after {delay} ms");
        rig.settle();
        assert_eq!(rig.read(4 * BLOCK, BLOCK), [2; 4096], "from the cache");
    }
}

/// T128: 5 of 8 MiB bypass; with pauses of more than five seconds none do.
#[test]
fn the_fourth_mebibyte_of_a_run_and_all_after_bypass() {
    let rig = rig(
        CacheMode::Writethrough,
        &[(Knob::SequentialCutoff, 4 << 20)],
    );
    for number in 0..8 {
        rig.write(number * MIB, MIB, 1);
    }
    let volume = rig.status();
    assert_eq!(volume.stats.total.bypassed, 5 * MIB);
    assert_eq!((volume.writes.bypassed, volume.writes.writethrough), (5, 3));
    assert_eq!(volume.writes.bypassed_bytes, 5 * MIB);
    assert_eq!(volume.writes.bypassed_by.get(Reason::Sequential), 5);
    assert_eq!(volume.writes.not_dirty_by.get(NotDirty::Mode), 3);
    let stream = StreamId(7);
    for number in 8..16 {
        rig.sleep(6);
        let mut buffer = rig.volume.buffer(MIB as usize);
        buffer.fill(2);
        rig.run(rig.volume.write(stream, number * MIB, buffer, false))
            .unwrap();
    }
    assert_eq!(rig.status().writes.bypassed, 5);
}

/// T130, of a whole set: slow reads of the cache make runs bypass it, which pass again once it is fast.
#[test]
fn a_slow_cache_device_is_spared_until_it_recovers() {
    let rig = rig(
        CacheMode::Writethrough,
        &[
            (Knob::CongestedReadThresholdUs, 2000),
            (Knob::CongestedWriteThresholdUs, 20_000),
        ],
    );
    rig.write(0, 16 * BLOCK, 3);
    rig.settle();
    rig.sleep(60);
    rig.cache.borrow_mut().pace = Some(Rc::new(|_| Some(Duration::from_millis(700))));
    for _ in 0..2 {
        rig.read(0, BLOCK);
    }
    assert!(rig.server.status().cache_sets[0].congested > 0);
    rig.cache.borrow_mut().pace = None;
    rig.read(8 * BLOCK, 4 * BLOCK);
    let reads = rig.status().reads;
    assert_eq!(reads.bypassed_by.get(Reason::Congested), 1, "{reads:?}");
    assert_eq!(reads.bypass_hits, 1, "it is there all the same");
    rig.sleep(3);
    assert_eq!(rig.server.status().cache_sets[0].congested, 0);
    rig.read(8 * BLOCK, 4 * BLOCK);
    assert_eq!(rig.status().reads.bypassed, 1);
    rig.set("congested_read_threshold_us", "0");
    rig.set("congested_write_threshold_us", "0");
    rig.cache.borrow_mut().pace = Some(Rc::new(|_| Some(Duration::from_millis(700))));
    for _ in 0..4 {
        rig.read(0, BLOCK);
    }
    assert_eq!(rig.status().reads.bypassed, 1, "switched off");
}

/// T132: the clean state of a first block, a second that nobody touched; what the device has, what the cache has.
#[test]
fn each_mode_puts_data_where_it_should() {
    use CacheMode::{None, Writearound, Writeback, Writethrough};
    for (mode, writes_back, cached) in [
        (Writethrough, 5, 1),
        (Writeback, 0, 2),
        (Writearound, 5, 0),
        (None, 5, 0),
    ] {
        let rig = rig(mode, &[]);
        rig.poke(BLOCK, BLOCK, 4);
        rig.write(0, BLOCK, 5);
        assert_eq!(rig.on_backing(0), writes_back, "{mode}");
        rig.settle();
        assert_eq!(rig.cached(0, BLOCK), [(BLOCK, cached)], "{mode}");
        assert_eq!(rig.read(0, BLOCK), [5; 4096]);
        assert_eq!(rig.read(BLOCK, BLOCK), [4; 4096]);
        rig.settle();
        let filled = u32::from(mode != None);
        assert_eq!(rig.cached(BLOCK, BLOCK), [(BLOCK, filled)], "{mode}");
        rig.run(rig.volume.discard(0, 2 * BLOCK, false)).unwrap();
        assert_eq!(rig.cached(0, 2 * BLOCK), [(2 * BLOCK, 0)], "{mode}");
        let volume = rig.status();
        assert_eq!(volume.dirty_bytes, 0, "{mode}");
        assert_eq!(
            (volume.discards.done, volume.discards.bytes),
            (1, 2 * BLOCK)
        );
        let reads = volume.reads;
        let expected = if mode == None { 2 } else { 0 };
        assert_eq!(reads.bypassed_by.get(Reason::ModeNone), expected);
        let writes = volume.writes;
        assert_eq!(writes.writeback, u64::from(mode == Writeback));
        assert_eq!(
            writes.not_dirty_by.get(NotDirty::Mode),
            u64::from(mode == Writethrough)
        );
        let around = writes.bypassed_by.get(Reason::Writearound);
        assert_eq!(around, u64::from(mode == Writearound));
        assert_eq!(
            writes.bypassed_by.get(Reason::ModeNone),
            u64::from(mode == None)
        );
    }
}

/// T133: counted among the hits of what bypasses.
#[test]
fn without_a_mode_what_is_cached_is_still_served_from_there() {
    let rig = rig(CacheMode::Writethrough, &[]);
    rig.write(0, BLOCK, 6);
    rig.settle();
    rig.set("cache_mode", "none");
    // Nobody but the test writes behind the cache's back.
    rig.poke(0, BLOCK, 9);
    assert_eq!(rig.read(0, BLOCK), [6; 4096]);
    rig.read(BLOCK, BLOCK);
    let volume = rig.status();
    let reads = &volume.reads;
    assert_eq!((reads.bypass_hits, reads.bypass_misses), (1, 1));
    assert_eq!((reads.hits, reads.misses), (0, 0));
    let total = &volume.stats.total;
    assert_eq!((total.cache_bypass_hits, total.cache_bypass_misses), (1, 1));
    assert_eq!(total.cache_hit_ratio, 0);
    assert_eq!(total.bypassed, 2 * BLOCK);
}

/// T134: everything else of the cache is dirty.
#[test]
fn a_plain_write_without_a_bucket_succeeds_and_leaves_nothing_old() {
    let rig = rig(CacheMode::Writethrough, &[(Knob::CutoffWritebackSync, 90)]);
    rig.write(0, BLOCK, 1);
    rig.settle();
    assert_eq!(rig.cached(0, BLOCK), [(BLOCK, 1)]);
    rig.set("cache_mode", "writeback");
    rig.set("cutoff_writeback", "70");
    let mut at = MIB;
    while rig.status().writes.not_dirty_by.sum() < 2 && at < 50 * MIB {
        assert!(rig.try_write(at, 16 * BLOCK, 2, true).is_ok());
        at += 16 * BLOCK;
    }
    rig.set("cache_mode", "writethrough");
    rig.write(0, BLOCK, 3);
    assert_eq!(rig.on_backing(0), 3);
    assert_eq!(rig.read(0, BLOCK), [3; 4096]);
    rig.settle();
    assert_eq!(rig.read(0, BLOCK), [3; 4096]);
    let writes = rig.status().writes;
    assert_eq!(writes.failed, 0);
    assert!(
        writes.writeback > 0 && writes.not_dirty_by.sum() > 1,
        "{writes:?}"
    );
}

/// T135: no error of the cache device reaches who wrote to the backing device too.
#[test]
fn a_cache_device_that_refuses_data_fails_writeback_alone() {
    for mode in [CacheMode::Writethrough, CacheMode::Writeback] {
        let rig = rig(mode, &[]);
        rig.poke(0, 2 * BLOCK, 1);
        rig.read(0, BLOCK);
        rig.settle();
        assert_eq!(rig.cached(0, BLOCK), [(BLOCK, 1)]);
        let is_back = mode == CacheMode::Writeback;
        // Data lies behind what was written so far; the journal does not.
        let refused = Rc::new(std::cell::Cell::new(false));
        let told = refused.clone();
        rig.cache.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
            if let Io::Write(_, data) = io {
                told.set(told.get() || data[0] == 2);
            }
            None
        }));
        rig.cache.borrow_mut().faults.write_in = Some(u64::from(!is_back));
        let written = rig.try_write(0, BLOCK, 2, false);
        let volume = rig.server.status().volumes[0].clone();
        assert_eq!(written.is_err(), is_back, "{mode}");
        assert_eq!(volume.writes.failed, u64::from(is_back));
        let expected = if is_back { 1 } else { 2 };
        assert_eq!(rig.on_backing(0), expected);
        assert_eq!(rig.read(0, BLOCK), [expected; 4096]);
        assert!(refused.get(), "the data was on its way");
        rig.settle();
        let left = rig.status();
        let failed = left.fills.ended_by.get(brigade_engine::Fate::Failed);
        assert_eq!((failed, left.dirty_bytes), (u64::from(!is_back), 0));
    }
}

/// T136.
#[test]
fn what_is_not_aligned_bypasses_and_still_hides_what_was_cached() {
    let rig = rig(CacheMode::Writethrough, &[]);
    rig.write(0, 2 * BLOCK, 1);
    rig.settle();
    rig.write(512, 1024, 2);
    assert_eq!(
        rig.cached(0, 2 * BLOCK),
        [(512, 1), (1024, 0), (2 * BLOCK - 1536, 1)]
    );
    let expected = [vec![1; 512], vec![2; 1024], vec![1; 512]].concat();
    assert_eq!(rig.read(0, 2048), expected);
    rig.settle();
    let volume = rig.status();
    assert_eq!(volume.writes.bypassed_by.get(Reason::Unaligned), 1);
    assert_eq!(volume.reads.bypassed_by.get(Reason::Unaligned), 1);
    assert_eq!(rig.cached(0, BLOCK)[1], (1024, 0), "nor is it filled");
}

/// T137.
#[test]
fn a_discard_takes_dirty_data_and_its_accounting() {
    let rig = rig(CacheMode::Writeback, &[]);
    rig.write(0, 8 * BLOCK, 1);
    assert_eq!(rig.status().dirty_bytes, 8 * BLOCK);
    rig.run(rig.volume.discard(2 * BLOCK, 4 * BLOCK, false))
        .unwrap();
    assert_eq!(rig.status().dirty_bytes, 4 * BLOCK);
    let left = [(2 * BLOCK, 2), (4 * BLOCK, 0), (2 * BLOCK, 2)];
    assert_eq!(rig.cached(0, 8 * BLOCK), left);
    let volume = rig.status();
    assert_eq!((volume.discards.requests, volume.discards.done), (1, 1));
    assert_eq!(volume.stats.total.bypassed, 4 * BLOCK);
}

/// T138: here a write waits for the writing back of its range instead of becoming dirty, so that it lands later; what is yet to be
/// written back, and was written since, is found changed.
#[test]
fn a_write_over_what_is_being_written_back_is_what_stays() {
    for bypasses in [false, true] {
        for delay in [0, 5, 40] {
            let rig = rig(CacheMode::Writeback, &[(Knob::WritebackPercent, 0)]);
            rig.write(0, 8 * BLOCK, 1);
            if bypasses {
                rig.set("cache_mode", "writearound");
            }
            rig.backing.borrow_mut().pace = Some(Rc::new(|_| Some(Duration::from_millis(30))));
            rig.set("writeback_running", "1");
            let (v, w) = (rig.volume.clone(), rig.world.clone());
            rig.run(async move {
                w.sleep(Duration::from_millis(delay)).await;
                let mut buffer = v.buffer(BLOCK as usize);
                buffer.fill(2);
                v.write(StreamId(1), 2 * BLOCK, buffer, false).await
            })
            .unwrap();
            assert_eq!(rig.read(2 * BLOCK, BLOCK), [2; 4096]);
            rig.sleep(2000);
            assert_eq!(rig.status().dirty_bytes, 0);
            assert_eq!(rig.on_backing(2 * BLOCK), 2, "{bypasses} {delay}");
            assert_eq!(rig.on_backing(3 * BLOCK), 1);
            assert_eq!(rig.read(2 * BLOCK, BLOCK), [2; 4096]);
        }
    }
}

/// E.2.5: a client asks by name, and is told nothing.
#[test]
fn reads_ahead_fill_the_cache_unless_the_policy_refuses_them() {
    let rig = rig(CacheMode::Writethrough, &[(Knob::SequentialCutoff, 4096)]);
    let ahead = |at| rig.volume.prefetch(StreamId(1), at, 2 * MIB);
    rig.run(ahead(0)).unwrap();
    rig.settle();
    assert_eq!(
        rig.cached(0, 2 * MIB),
        [(2 * MIB, 1)],
        "whatever its length"
    );
    rig.set("readahead_cache_policy", "meta-only");
    rig.run(ahead(4 * MIB)).unwrap();
    rig.settle();
    assert_eq!(rig.cached(4 * MIB, 2 * MIB), [(2 * MIB, 0)]);
    let ahead = rig.status().prefetches;
    assert_eq!((ahead.requests, ahead.done, ahead.ignored), (2, 1, 1));
    assert_eq!(ahead.ignored_by.get(Reason::ReadaheadPolicy), 1);
    assert_eq!(rig.status().reads.requests, 0);
}

/// E.5, of a whole set: the first cutoff holds for plain writes, the second for all.
#[test]
fn with_the_cache_in_use_plain_writes_go_through_before_flushed_ones_do() {
    let rig = rig(
        CacheMode::Writeback,
        &[(Knob::CutoffWriteback, 10), (Knob::CutoffWritebackSync, 20)],
    );
    let in_use = || 100 - rig.server.status().cache_sets[0].cache_available_percent;
    let mut at = 0;
    for (fua, limit) in [(false, 10), (true, 20)] {
        let through = || rig.status().writes.writethrough;
        let before = through();
        while through() == before {
            assert!(in_use() <= limit + 2, "{}", in_use());
            rig.try_write(at, 16 * BLOCK, 1, fua).unwrap();
            at += 16 * BLOCK;
        }
        assert!(in_use() > limit, "{}", in_use());
    }
    let by = rig.status().writes.not_dirty_by;
    let counts = [by.get(NotDirty::Cutoff), by.get(NotDirty::CutoffSync)];
    assert_eq!((counts, by.sum()), ([1, 1], 2));
}

/// The sums of the issue: whatever is asked for is counted once, and bytes written have one cause.
#[test]
fn everything_that_was_asked_for_is_counted_once() {
    let rig = rig(CacheMode::Writeback, &[(Knob::SequentialCutoff, 64 << 10)]);
    let mut chance = 9u64;
    let mut asked = [0u64; 5];
    for _ in 0..400 {
        chance = chance
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let (what, at) = ((chance >> 33) % 5, (chance >> 40) % 900 * BLOCK);
        let length = ((chance >> 55) % 20 + 1) * 1024;
        asked[what as usize] += 1;
        match what {
            0 => drop(rig.read(at, length)),
            1 => rig.write(at, length, what as u8),
            2 => rig.run(rig.volume.discard(at, length, false)).unwrap(),
            3 => {
                let zeroes = rig.volume.write_zeroes(at, length, true, false, false);
                rig.run(zeroes).unwrap();
            }
            _ => rig.run(rig.volume.flush()).unwrap(),
        }
    }
    let before = rig.status();
    let requests = [
        before.reads.requests,
        before.writes.requests,
        before.discards.requests,
        before.zeroes.requests,
        before.flushes.requests,
    ];
    assert_eq!(requests, asked);
    let times = before.latency;
    let counts = [
        times.read_count,
        times.write_count,
        times.discard_count,
        times.zeroes_count,
        times.flush_count,
    ];
    assert_eq!(counts, asked);
    assert!(times.read_p50 > 0.0 && times.read_p50 <= times.read_p99);
    assert!(times.write_p999 <= times.write_max);
    let set = rig.server.status().cache_set.unwrap();
    assert_eq!(set.stats.total, before.stats.total);
    let device = &set.devices[0];
    assert_eq!(device.written_by.sum(), device.written_bytes);
    use brigade_engine::Cause;
    for cause in [Cause::Client, Cause::Fill, Cause::Journal, Cause::GenTable] {
        assert!(device.written_by.get(cause) > 0, "{cause:?}");
    }
    assert_eq!(device.written_by.get(Cause::WrittenBack), 0);
    let data = [Cause::Client, Cause::Fill, Cause::Moved].map(|it| device.written_by.get(it));
    let metadata = device.written_bytes - data.iter().sum::<u64>();
    assert_eq!(metadata, device.metadata_written_bytes);
}

/// T160, of a whole server; H.41.
#[test]
fn statistics_fade_totals_stay_and_clearing_decides_nothing() {
    let rig = rig(CacheMode::Writethrough, &[]);
    rig.write(0, BLOCK, 1);
    rig.settle();
    for _ in 0..1000 {
        rig.read(0, BLOCK);
    }
    let stats = || rig.status().stats;
    assert_eq!(stats().five_minute.cache_hits, 1000, "live");
    rig.sleep(300);
    let faded = stats();
    assert!(
        (480..=520).contains(&faded.five_minute.cache_hits),
        "{faded:?}"
    );
    assert!(faded.day.cache_hits > 990 && faded.total.cache_hits == 1000);
    let before = rig.server.status().cache_set.unwrap();
    rig.server.clear_stats();
    let set = rig.server.status().cache_set.unwrap();
    assert_eq!(set.cache_available_percent, before.cache_available_percent);
    assert_eq!(set.stats.total, Default::default());
    assert_eq!(
        set.devices[0].written_bytes,
        before.devices[0].written_bytes
    );
    let volume = rig.status();
    assert_eq!(
        (volume.stats.total.cache_hits, volume.latency.read_count),
        (0, 0)
    );
    assert_eq!(volume.reads.hits, 1000, "what is counted for sums stays");
    assert!(volume.stats.day.cache_hits > 990);
}

/// A volume without a cache is counted too.
#[test]
fn without_a_cache_everything_bypasses_it() {
    let (_, backing) = disks(600, 128, 8, 1000);
    let world = World::new(Chance::new(3), Duration::from_secs(1));
    // A device that names no set.
    let mut bytes = vec![0; 4096];
    backing.borrow().peek(4096, &mut bytes);
    let mut superblock = brigade_format::Superblock::parse(&bytes).unwrap();
    superblock.set_uuid = [0; 16];
    backing.borrow_mut().poke(4096, &superblock.encode());
    let devices = vec![world.device(&backing)];
    let opening = Server::open(world.clone(), vec![], devices, |_| None, options(false));
    let server = world.run(opening, || false).expect("ends").unwrap();
    let (v, s) = (server.volumes()[0].clone(), server.clone());
    let story = async move {
        let buffer = v.buffer(4096);
        v.write(StreamId(1), 0, buffer, false).await.unwrap();
        v.read(StreamId(1), 0, 4096).await.unwrap();
        v.prefetch(StreamId(1), 0, 4096).await.unwrap();
        s.audit();
    };
    world.run(story, || false).expect("ends");
    let volume = &server.status().volumes[0];
    assert_eq!(volume.reads.bypassed_by.get(Reason::NoCache), 1);
    assert_eq!(volume.writes.bypassed_by.get(Reason::NoCache), 1);
    assert_eq!(volume.prefetches.ignored_by.get(Reason::NoCache), 1);
    assert_eq!(volume.stats, Default::default());
}
