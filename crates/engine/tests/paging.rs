//! Leaves that are away: a set is served before they were looked at, and goes on when memory is short of them.
//!
//! After a clean stop the gen table says which buckets nothing names; everything else waits until all leaves were counted once
//! (docs/format.md 8.4). So what has to hold meanwhile: what is read is right, nothing is recycled, nothing is lost, and an image
//! that lies is found out before anything is written over.
#![cfg(feature = "instrumented")]

use brigade_engine::alloc::PRIO_METADATA;
use brigade_engine::marks::{self, Mark};
use brigade_engine::mutations::{Mutation, choose};
use brigade_engine::recovery::Loaded;
use brigade_engine::{
    CacheSetStatus, Options, Server, Volume, set_count_pause, set_leaves_here_min,
};
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::{BackingState, CacheGeometry, Gen, Ptr, Superblock};
use brigade_sim::disk::{DiskState, End};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, load, options, write_gens};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

type Disk = Rc<RefCell<DiskState>>;

const SECTOR: u64 = 512;
/// Dirty sectors, none beside another, so that there are many leaves.
const DIRTY: u64 = 4000;
/// First sector of what is read from the backing device.
const CLEAN: u64 = 20_000;
const BACKING_SECTORS: u64 = 60_000;

/// A set that outlives the processes which serve it.
struct Rig {
    cache: Disk,
    backing: Disk,
    store: Store,
    chance: Chance,
}

/// A process that serves it.
struct Served {
    world: World,
    server: Rc<Server<World>>,
    volume: Rc<Volume<World>>,
}

impl Rig {
    /// A set with [`DIRTY`] dirty sectors and, if it is to be full, clean data in every other bucket, stopped in order.
    fn stopped(seed: u64, is_full: bool) -> Rig {
        set_count_pause(Duration::ZERO);
        set_leaves_here_min(None);
        let chance = Chance::new(seed);
        let (cache, backing) = disks(1600, 8, 1, BACKING_SECTORS);
        let rig = Rig {
            cache,
            backing,
            store: Store::default(),
            chance,
        };
        let served = rig.serve(options(false));
        let volume = served.volume.clone();
        served.does(async move {
            for number in 0..DIRTY {
                write(&volume, place(number), 1).await;
            }
            let clean = if is_full { 1600 } else { 100 };
            for number in 0..clean {
                read_clean(&volume, number).await;
            }
        });
        served.stop();
        rig
    }

    fn serve(&self, options: Options) -> Served {
        let served = self.tries_to_serve(options);
        served.unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    fn tries_to_serve(&self, options: Options) -> Result<Served, String> {
        let world = World::new(self.chance.clone(), Duration::from_secs(1));
        let (caches, backings) = (world.device(&self.cache), world.device(&self.backing));
        let store = self.store.clone();
        let survivor = move |_: &str| Some(store.clone());
        let opening = Server::open(
            world.clone(),
            vec![caches],
            vec![backings],
            survivor,
            options,
        );
        let opened = world.run(opening, || false).expect("it ends");
        let server = opened.map_err(|error| error.to_string())?;
        let volume = server.volumes()[0].clone();
        Ok(Served {
            world,
            server,
            volume,
        })
    }

    /// Serves it, reads all dirty sectors, of which the first so many were written a second time, and stops.
    fn has_all(&self, newer: u64) {
        let served = self.serve(options(false));
        served.has_all(newer);
        served.stop();
    }

    /// What would be found if it were opened, every leaf read.
    fn load(&self) -> (Loaded, CacheGeometry) {
        load(&self.cache, self.chance.clone())
    }

    fn kill(&self, served: Served) {
        served.world.kill();
        drop(served);
        for disk in [&self.cache, &self.backing] {
            disk.borrow_mut().end(End::Kill, &self.chance);
        }
    }

    /// Leaves of the volume that hold many of its dirty sectors, in key order: where they lie on the device, and the sectors of the volume they hold.
    fn leaves(&self) -> Vec<Leaf> {
        let (loaded, _) = self.load();
        let leaves = loaded.nodes.iter().filter(|node| node.level == 0);
        leaves
            .map(|node| Leaf {
                byte: node.key.ptr(0).unwrap().sector() * SECTOR,
                // The volume begins at sector 16 of its device.
                first: node.low.offset.saturating_sub(16),
                end: node.key.pos().offset.saturating_sub(16),
            })
            .filter(|leaf| leaf.end - leaf.first > 40 && leaf.end < place_end())
            .collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Leaf {
    byte: u64,
    first: u64,
    end: u64,
}

impl Leaf {
    /// A dirty sector whose key it holds.
    fn holds(&self) -> u64 {
        let at = (self.first + 2) / 2 * 2;
        assert!(at + 2 < self.end && at < place_end(), "{self:?}");
        at
    }
}

impl Served {
    fn does<T: 'static>(&self, story: impl Future<Output = T> + 'static) -> T {
        self.world.run(story, || false).expect("it ends")
    }

    /// All dirty sectors are read, of which the first so many were written a second time.
    fn has_all(&self, newer: u64) {
        let volume = self.volume.clone();
        self.does(async move { all_are_at(&volume, newer).await });
    }

    fn set(&self) -> CacheSetStatus {
        self.server.status().cache_sets[0].clone()
    }

    fn is_counted(&self) -> bool {
        self.set().gc.marks_built
    }

    fn waits_until_counted(&self) {
        let (server, world) = (self.server.clone(), self.world.clone());
        self.does(async move {
            while !server.status().cache_sets[0].gc.marks_built {
                assert!(world.now() < Duration::from_secs(100_000), "never counted");
                world.sleep(Duration::from_millis(100)).await;
            }
        });
    }

    fn stop(self) {
        let server = self.server.clone();
        self.does(async move { server.stop().await.unwrap() });
        self.server.audit();
        self.world.kill();
    }
}

/// Sector of a dirty one: all over their range, one after the other.
fn place(number: u64) -> u64 {
    number * 1009 % DIRTY * 2
}

fn place_end() -> u64 {
    DIRTY * 2
}

/// What a sector holds after so many writes of it.
fn content(sector: u64, version: u64) -> Vec<u8> {
    (sector << 8 | version).to_le_bytes().repeat(64)
}

async fn write(volume: &Rc<Volume<World>>, sector: u64, version: u64) {
    let mut buffer = volume.buffer(SECTOR as usize);
    buffer.copy_from_slice(&content(sector, version));
    let written = volume.write(StreamId(1), sector * SECTOR, buffer, false);
    written.await.unwrap();
}

async fn is_at(volume: &Rc<Volume<World>>, sector: u64, version: u64) {
    let read = volume.read(StreamId(2), sector * SECTOR, SECTOR as usize);
    let got = read.await.unwrap();
    assert!(got[..] == content(sector, version), "sector {sector}");
}

/// Four of eight sectors of the backing device that nobody wrote.
async fn read_clean(volume: &Rc<Volume<World>>, number: u64) {
    let read = volume.read(StreamId(3), (CLEAN + number * 8) * SECTOR, 8 * 512);
    assert!(read.await.unwrap().iter().all(|byte| *byte == 0));
}

/// Writes the first so many dirty sectors a second time.
async fn write_again(volume: &Rc<Volume<World>>, newer: u64) {
    for number in 0..newer {
        write(volume, place(number), 2).await;
    }
}

/// Reads all dirty sectors, of which the first so many were written a second time.
async fn all_are_at(volume: &Rc<Volume<World>>, newer: u64) {
    for number in 0..DIRTY {
        is_at(volume, place(number), if number < newer { 2 } else { 1 }).await;
    }
}

/// Buckets of data that something names, and the gens these have. (Those of nodes may be replaced.)
fn gens_in_use(loaded: &Loaded) -> Vec<Option<Gen>> {
    let is_data = |at: usize| loaded.referenced[at] && loaded.prios[at] != PRIO_METADATA;
    let gens = loaded.gens.iter().enumerate();
    gens.map(|(at, now)| is_data(at).then_some(*now)).collect()
}

/// Serves a full set that is not counted yet, has it take what would need buckets recycled, and kills the process. Gives how many
/// buckets in use have another gen then.
fn recycled_while_uncounted(newer: u64) -> (Rig, usize) {
    let rig = Rig::stopped(3, true);
    let before = gens_in_use(&rig.load().0);
    marks::take();
    set_count_pause(Duration::from_secs(1000));
    let served = rig.serve(options(false));
    assert!(marks::hits(Mark::OpenCountsLater) == 1 && !served.is_counted());
    let volume = served.volume.clone();
    served.does(async move {
        write_again(&volume, newer).await;
        // More than all buckets hold.
        for number in 2000..4000 {
            read_clean(&volume, number).await;
        }
        all_are_at(&volume, newer).await;
    });
    assert!(!served.is_counted(), "the test is too slow for its pause");
    set_count_pause(Duration::ZERO);
    rig.kill(served);
    let (after, _) = rig.load();
    let is_recycled =
        |(before, now): &(&Option<Gen>, &Gen)| before.is_some_and(|gen_then| gen_then != **now);
    let recycled = before.iter().zip(&after.gens).filter(is_recycled).count();
    (rig, recycled)
}

#[test]
fn reads_are_served_before_all_leaves_are_counted() {
    let rig = Rig::stopped(1, false);
    let leaves = rig.leaves();
    assert!(leaves.len() > 20, "{} leaves", leaves.len());
    marks::take();
    set_count_pause(Duration::from_secs(100));
    let served = rig.serve(options(false));
    assert_eq!(marks::hits(Mark::OpenCountsLater), 1);
    let (volume, began) = (served.volume.clone(), served.world.now());
    let some = [
        leaves[leaves.len() / 3],
        leaves[1],
        leaves[leaves.len() / 2],
    ];
    served.does(async move {
        for leaf in some {
            is_at(&volume, leaf.holds(), 1).await;
        }
        read_clean(&volume, 3).await;
    });
    let took = served.world.now() - began;
    assert!(took < Duration::from_secs(50), "{took:?}");
    let set = served.set();
    assert!(!set.gc.marks_built && set.gc.running, "{:?}", set.gc);
    assert_eq!(set.gc.reason, "first count");
    assert!(set.btree.leaf_reads < 10, "{:?}", set.btree);
    // In the end all of it is known, and nothing else has changed.
    set_count_pause(Duration::ZERO);
    served.waits_until_counted();
    let set = served.set();
    assert!(!set.gc.running && set.gc.eta_seconds == 0, "{:?}", set.gc);
    assert!(set.btree.leaf_reads >= leaves.len() as u64);
    served.has_all(0);
    served.server.audit();
    served.stop();
}

#[test]
fn a_backing_device_that_shrank_under_dirty_data_is_refused_before_its_leaves_are_counted() {
    let rig = Rig::stopped(11, false);
    let before = rig.cache.borrow().image();
    rig.backing.borrow_mut().geometry.size_bytes = place_end() / 2 * SECTOR;
    marks::take();
    let refusal = rig.tries_to_serve(options(false)).err().expect("refused");
    assert!(refusal.contains("F64"), "{refusal}");
    assert_eq!(marks::hits(Mark::OpenCountsLater), 1);
    let is_same = rig.cache.borrow().image().is_same(&before);
    assert!(is_same, "what is refused is not written");
}

#[test]
fn a_backing_device_that_wrongly_says_clean_says_dirty_once_all_leaves_are_counted() {
    let rig = Rig::stopped(12, false);
    let state = || {
        let mut bytes = vec![0; 4096];
        rig.backing.borrow().peek(4096, &mut bytes);
        Superblock::parse(&bytes).expect("a superblock")
    };
    let mut older = state();
    assert_eq!(older.state(), BackingState::Dirty);
    older.set_state(BackingState::Clean);
    rig.backing.borrow_mut().poke(4096, &older.encode());
    let served = rig.serve(options(false));
    served.waits_until_counted();
    let world = served.world.clone();
    served.does(async move { world.sleep(Duration::from_secs(1)).await });
    assert_eq!(state().state(), BackingState::Dirty);
    served.world.kill();
}

#[test]
fn no_bucket_is_recycled_before_all_leaves_are_counted_and_no_write_is_lost() {
    const NEWER: u64 = 700;
    let (rig, recycled) = recycled_while_uncounted(NEWER);
    assert_eq!(recycled, 0, "buckets in use were recycled");
    rig.has_all(NEWER);
}

#[test]
fn buckets_are_recycled_again_once_all_leaves_are_counted() {
    let rig = Rig::stopped(4, true);
    set_count_pause(Duration::from_secs(1));
    let served = rig.serve(options(false));
    assert!(!served.is_counted());
    served.waits_until_counted();
    let (volume, world) = (served.volume.clone(), served.world.clone());
    let filled = |served: &Served| served.server.status().volumes[0].reads.fill_bytes;
    let before = filled(&served);
    served.does(async move {
        for number in 2000..2600 {
            read_clean(&volume, number).await;
            world.sleep(Duration::from_millis(10)).await;
        }
        all_are_at(&volume, 0).await;
    });
    // Far more than what was free.
    let more = filled(&served) - before;
    assert!(more > 400 * 8 * 512, "{more} bytes entered the cache");
    served.stop();
}

#[test]
fn after_a_kill_all_leaves_are_read_at_once() {
    const NEWER: u64 = 50;
    let rig = Rig::stopped(5, false);
    let served = rig.serve(options(false));
    let volume = served.volume.clone();
    served.waits_until_counted();
    served.does(async move {
        write_again(&volume, NEWER).await;
    });
    rig.kill(served);
    marks::take();
    set_count_pause(Duration::from_secs(100));
    let served = rig.serve(options(false));
    assert_eq!(marks::hits(Mark::OpenCountsLater), 0);
    assert!(served.is_counted());
    served.has_all(NEWER);
    set_count_pause(Duration::ZERO);
    served.stop();
}

#[test]
fn a_kill_before_anything_was_written_ends_the_promise_of_the_stop_too() {
    let rig = Rig::stopped(6, false);
    set_count_pause(Duration::from_secs(100));
    rig.kill(rig.serve(options(false)));
    marks::take();
    let served = rig.serve(options(false));
    assert_eq!(marks::hits(Mark::OpenCountsLater), 0);
    assert!(served.is_counted());
    set_count_pause(Duration::ZERO);
    served.stop();
}

/// Which bucket a table lies about.
#[derive(Clone, Copy)]
enum Victim {
    /// One with dirty data, which is handed out as soon as the set is open.
    First,
    /// One that nobody takes while little is written: many others are empty too.
    Last,
}

/// A bucket in use is empty, says the table that a clean stop seems to have left. Gives the set and the bucket.
fn with_a_table_that_lies(seed: u64, victim: Victim) -> (Rig, u64) {
    let rig = Rig::stopped(seed, true);
    let (loaded, layout) = rig.load();
    let place = |ptr: Ptr| ptr.bucket(layout.bucket_sectors).0;
    let used = |is_wanted: fn(bool) -> bool| {
        let extents = loaded.index.iter().filter(move |e| is_wanted(e.dirty));
        extents.filter_map(|extent| extent.ptr).map(place)
    };
    let bucket = match victim {
        Victim::First => used(|is_dirty| is_dirty).min(),
        Victim::Last => used(|_| true).max(),
    };
    let bucket = bucket.expect("data");
    write_gens(&mut rig.cache.borrow_mut(), &loaded, &layout, |nr| {
        let is_victim = nr as u64 == bucket;
        let prio = if is_victim { 0 } else { loaded.prios[nr] };
        (prio, loaded.gens[nr])
    });
    (rig, bucket)
}

fn bytes_of(rig: &Rig, bucket: u64) -> Vec<u8> {
    let mut bytes = vec![0; 8 * 512];
    rig.cache.borrow().peek(bucket * 8 * SECTOR, &mut bytes);
    bytes
}

/// The set is poisoned for what a leaf says, says where that is, and takes no write.
fn is_poisoned_by_a_leaf(served: &Served) {
    let status = served.server.status();
    assert_eq!(status.cache_sets[0].state, "poisoned");
    names_a_leaf(&status.errors[0]);
    let volume = served.volume.clone();
    let refused = served.does(async move {
        let buffer = volume.buffer(512);
        volume.write(StreamId(1), 0, buffer, false).await.is_err()
    });
    assert!(refused, "a poisoned set takes a write");
}

fn names_a_leaf(text: &str) {
    for part in ["cache", "btree node at byte "] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.is_empty() && !text.contains('\n'), "one line: {text}");
}

#[test]
fn a_table_that_calls_a_bucket_in_use_empty_is_found_out_by_the_count() {
    let (rig, bucket) = with_a_table_that_lies(8, Victim::Last);
    let before = bytes_of(&rig, bucket);
    a_lie_is_found_out(&rig);
    assert!(bytes_of(&rig, bucket) == before, "live data is overwritten");
}

#[test]
fn a_table_that_calls_a_bucket_empty_that_is_handed_out_at_once_is_found_out() {
    // What is in it is lost: nobody but a forger writes such a table under its checksum.
    let (rig, _) = with_a_table_that_lies(8, Victim::First);
    a_lie_is_found_out(&rig);
}

fn a_lie_is_found_out(rig: &Rig) {
    marks::take();
    let served = match rig.tries_to_serve(options(false)) {
        Ok(served) => served,
        Err(refusal) => return names_a_leaf(&refusal),
    };
    assert_eq!(marks::hits(Mark::OpenCountsLater), 1);
    let world = served.world.clone();
    served.does(async move { world.sleep(Duration::from_secs(200)).await });
    is_poisoned_by_a_leaf(&served);
    served.world.kill();
}

#[test]
fn a_stop_that_called_everything_empty_would_be_seen() {
    let seen = std::panic::catch_unwind(|| {
        let rig = Rig::stopped(14, false);
        let served = rig.serve(options(false));
        served.waits_until_counted();
        choose(Some(Mutation::StopCallsAllEmpty));
        served.stop();
        choose(None);
        let served = rig.serve(options(false));
        let volume = served.volume.clone();
        served.does(async move {
            write_again(&volume, 100).await;
            all_are_at(&volume, 100).await;
        });
        served.waits_until_counted();
    });
    choose(None);
    assert!(seen.is_err(), "nobody sees it");
}

/// T108.
#[test]
fn a_leaf_that_rots_after_the_opening_fails_its_own_range_and_poisons_the_set() {
    let rig = Rig::stopped(10, false);
    let leaves = rig.leaves();
    let (bad, good) = (leaves[leaves.len() / 2], leaves[leaves.len() / 4]);
    set_count_pause(Duration::from_secs(1000));
    let served = rig.serve(options(false));
    rig.cache.borrow_mut().poke(bad.byte, &[0xee; 8]);
    let volume = served.volume.clone();
    let error = served.does(async move {
        is_at(&volume, good.holds(), 1).await;
        let read = volume.read(StreamId(2), bad.holds() * SECTOR, 512).await;
        let error = read.expect_err("a leaf is damaged");
        // What is known, and what is not yet.
        is_at(&volume, good.holds(), 1).await;
        is_at(&volume, leaves[leaves.len() / 5].holds(), 1).await;
        error
    });
    let place = format!("btree node at byte {}", bad.byte);
    let text = error.to_string();
    assert!(text.contains("cache") && text.contains(&place), "{text}");
    is_poisoned_by_a_leaf(&served);
    set_count_pause(Duration::ZERO);
    let server = served.server.clone();
    served.does(async move { assert!(server.stop().await.is_err()) });
    rig.kill(served);
}

/// T111.
#[test]
fn with_little_memory_leaves_go_and_come_back_and_a_range_of_more_than_fit_is_served() {
    const NEWER: u64 = 300;
    let rig = Rig::stopped(11, false);
    let leaves = rig.leaves().len() as u64;
    set_leaves_here_min(Some(2));
    let all = {
        let served = rig.serve(options(false));
        served.waits_until_counted();
        let memory = served.set().btree.memory_bytes;
        served.stop();
        memory
    };
    marks::take();
    let mut little = options(false);
    little.memory_bytes = 64 << 10;
    let served = rig.serve(little);
    served.waits_until_counted();
    let (volume, world) = (served.volume.clone(), served.world.clone());
    served.does(async move {
        write_again(&volume, NEWER).await;
        // What is pending keeps its leaf.
        world.sleep(Duration::from_secs(100)).await;
        for _ in 0..2 {
            let length = (place_end() * SECTOR) as usize;
            let got = volume.read(StreamId(2), 0, length).await.unwrap();
            for number in 0..DIRTY {
                let at = (place(number) * SECTOR) as usize;
                let version = if number < NEWER { 2 } else { 1 };
                let wanted = content(place(number), version);
                assert!(got[at..at + 512] == wanted, "sector {}", place(number));
            }
        }
        // Gaps that were read are cached now, so something was pending again.
        world.sleep(Duration::from_secs(100)).await;
        all_are_at(&volume, NEWER).await;
    });
    let btree = served.set().btree;
    assert!(marks::hits(Mark::BtreeLeafComesBack) > 2 * leaves);
    assert!(btree.leaf_reads > 2 * leaves, "{btree:?}");
    assert!(btree.memory_bytes < all / 2, "{btree:?} of {all}");
    served.stop();
    // What was said of leaves that were away is on the device.
    set_leaves_here_min(None);
    rig.has_all(NEWER);
}

/// Clean data is read, far more than fits, so that buckets are recycled, leaves written anew, sent away and read again all the time. (What
/// comes back is compared with what went, by the index itself.) Says how often something was left out of them.
fn leaves_come_back_while_buckets_are_recycled() -> u64 {
    let rig = Rig::stopped(21, true);
    set_leaves_here_min(Some(2));
    let mut little = options(true);
    little.memory_bytes = 64 << 10;
    let served = rig.serve(little);
    served.waits_until_counted();
    marks::take();
    let volume = served.volume.clone();
    served.does(async move {
        for number in 0..20_000 {
            read_clean(&volume, number * 1009 % 4500).await;
        }
    });
    let times = marks::hits(Mark::BtreeLeftOutComesBack);
    served.has_all(0);
    served.stop();
    set_leaves_here_min(None);
    rig.has_all(0);
    times
}

/// TREE-7: a direct write makes holes of what a crash may bring back, so the index has to know of it however its leaf came to be here.
#[test]
fn a_leaf_that_comes_back_says_what_a_crash_may_bring_back_although_it_was_written_without() {
    assert!(leaves_come_back_while_buckets_are_recycled() > 0);
    choose(Some(Mutation::LeafForgetsRevivable));
    let seen = std::panic::catch_unwind(leaves_come_back_while_buckets_are_recycled);
    choose(None);
    assert!(seen.is_err(), "nobody sees it");
}

#[test]
fn a_leaf_that_cannot_be_read_is_no_matter_where_nothing_is_dirty() {
    let rig = Rig::stopped(12, false);
    let leaves = rig.leaves();
    let (first, second) = (leaves[leaves.len() / 3], leaves[leaves.len() / 2]);
    set_count_pause(Duration::from_secs(1000));
    let served = rig.serve(options(false));
    let (volume, cache) = (served.volume.clone(), rig.cache.clone());
    served.does(async move {
        cache.borrow_mut().faults.read_in = Some(0);
        let read = volume.read(StreamId(2), first.holds() * SECTOR, 512).await;
        assert!(read.expect("the backing device has it")[..] == content(first.holds(), 1));
        is_at(&volume, first.holds(), 1).await;
        // A write has to know what it replaces.
        cache.borrow_mut().faults.read_in = Some(0);
        let mut buffer = volume.buffer(512);
        buffer.copy_from_slice(&content(second.holds(), 2));
        let written = volume.write(StreamId(1), second.holds() * SECTOR, buffer, false);
        match written.await {
            Ok(()) => is_at(&volume, second.holds(), 2).await,
            Err(_) => write(&volume, second.holds(), 2).await,
        }
        cache.borrow_mut().faults.read_in = None;
        is_at(&volume, second.holds(), 2).await;
    });
    assert_eq!(rig.cache.borrow().faults_happened, 2);
    assert_eq!(served.set().state, "running");
    set_count_pause(Duration::ZERO);
    served.waits_until_counted();
    served.stop();
}

#[test]
fn the_count_goes_on_after_a_leaf_that_could_not_be_read() {
    let rig = Rig::stopped(13, false);
    set_count_pause(Duration::from_secs(1));
    let served = rig.serve(options(false));
    rig.cache.borrow_mut().faults.read_in = Some(3);
    served.waits_until_counted();
    assert_eq!(rig.cache.borrow().faults_happened, 1);
    assert_eq!(served.set().state, "running");
    served.has_all(0);
    set_count_pause(Duration::ZERO);
    served.stop();
}

#[test]
fn a_pass_goes_on_behind_a_leaf_that_cannot_be_read_and_is_not_made_again_and_again() {
    let rig = Rig::stopped(14, false);
    set_leaves_here_min(Some(2));
    let mut little = options(false);
    little.memory_bytes = 64 << 10;
    let served = rig.serve(little);
    served.waits_until_counted();
    let after = |seconds| {
        let world = served.world.clone();
        served.does(async move { world.sleep(Duration::from_secs(seconds)).await });
        let set = served.set();
        (set.gc.passes, set.devices[0].metadata_written_bytes)
    };
    let (_, before) = after(1);
    rig.cache.borrow_mut().faults.read_in = Some(2);
    served.server.collect();
    let (passes, first) = after(20);
    assert_eq!((passes, rig.cache.borrow().faults_happened), (0, 1));
    let all = rig.leaves().len() as u64;
    assert!(
        first - before >= (all - 1) * 512,
        "the others were rewritten"
    );
    let (passes, later) = after(30);
    assert_eq!(
        (passes, later),
        (0, first),
        "nothing is done again and again"
    );
    let gc = served.set().gc;
    assert_eq!(gc.failed_passes, 1);
    assert!(
        gc.last_failure.contains("os error 5"),
        "{:?}",
        gc.last_failure
    );
    served.server.collect();
    assert_eq!(after(20).0, 1);
    set_leaves_here_min(None);
    served.stop();
}

#[test]
fn while_collections_are_paused_none_is_made_and_writes_go_on() {
    let rig = Rig::stopped(15, false);
    let served = rig.serve(options(false));
    served.waits_until_counted();
    let (world, volume) = (served.world.clone(), served.volume.clone());
    served.server.pause_gc(true);
    served.server.collect();
    served.does(async move {
        write_again(&volume, 300).await;
        volume.flush().await.unwrap();
        world.sleep(Duration::from_secs(100)).await;
    });
    let gc = served.set().gc;
    assert!(gc.paused && gc.passes == 0, "{gc:?}");
    served.server.pause_gc(false);
    let world = served.world.clone();
    served.does(async move { world.sleep(Duration::from_secs(20)).await });
    let gc = served.set().gc;
    assert!(!gc.paused && gc.passes == 1, "{gc:?}");
    served.stop();
}

#[test]
fn the_table_of_any_clean_stop_has_all_gens() {
    let late: Vec<u64> = (0..10)
        .filter(|seed| {
            let rig = Rig::stopped(*seed, false);
            marks::take();
            rig.serve(options(false)).stop();
            marks::hits(Mark::OpenCountsLater) == 0
        })
        .collect();
    assert!(late.is_empty(), "seeds {late:?}: all leaves are read");
}

/// Places are told apart.
#[test]
fn every_dirty_sector_of_these_tests_is_a_different_one() {
    let places: BTreeSet<u64> = (0..DIRTY).map(place).collect();
    assert!(places.len() as u64 == DIRTY && places.last() < Some(&place_end()));
}
