//! What a removed device left in a set: it goes, its slot is given out again, and nothing of it is ever seen through that slot.
//!
//! Two devices share a set. The first is run without it, so that the next opening gives its slot up (docs/format.md 9.3), with
//! dirty and clean data behind it; the other one stays, and nothing of it may be lost meanwhile.
#![cfg(feature = "instrumented")]

use brigade_engine::marks::{self, Mark};
use brigade_engine::mutations::{Mutation, choose};
use brigade_engine::recovery::{self, How, Loaded};
use brigade_engine::{
    Options, Server, Volume, set_count_pause, set_leaf_batch, set_leaves_here_min,
};
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::uuid_table::{self, UuidEntry};
use brigade_format::{BackingState, CacheMode, NewBacking, Superblock};
use brigade_sim::disk::{DiskState, End, Io};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, load, options};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

type Disk = Rc<RefCell<DiskState>>;

const SECTOR: u64 = 512;
/// Dirty sectors of the device that goes, none beside another, so that there are many leaves.
const DIRTY: u64 = 1500;
/// First sector of what is read from its backing device, and how often.
const CLEAN: u64 = 20_000;
const CLEAN_READS: u64 = 100;
/// Dirty sectors of the one that stays.
const KEPT: u64 = 600;
const BACKING_SECTORS: u64 = 40_000;

/// A set that outlives the processes which serve it.
struct Rig {
    cache: Disk,
    first: Disk,
    other: Disk,
    store: Store,
    chance: Chance,
}

/// A process that serves it.
struct Served {
    world: World,
    server: Rc<Server<World>>,
}

impl Rig {
    /// A set with data of both devices, at rest after a stop or a kill.
    fn used(seed: u64, is_stopped: bool) -> Rig {
        set_count_pause(Duration::ZERO);
        set_leaves_here_min(None);
        set_leaf_batch(None);
        let chance = Chance::new(seed);
        let (cache, first) = disks(4000, 8, 1, BACKING_SECTORS);
        let other = first.borrow().fork();
        let rig = Rig {
            cache,
            first,
            other,
            store: Store::default(),
            chance,
        };
        let new = NewBacking {
            device_sectors: BACKING_SECTORS + 16,
            data_offset: 16,
            block_sectors: 1,
            uuid: [7; 16],
            set_uuid: [9; 16],
            mode: CacheMode::Writeback,
            label: "y".into(),
        };
        let superblock = Superblock::new_backing(&new).unwrap();
        rig.other.borrow_mut().poke(4096, &superblock.encode());
        let served = rig.serve(options(false));
        let (first, other) = (served.volume(0), served.volume(1));
        served.does(async move {
            for number in 0..DIRTY {
                write(&first, number * 1009 % DIRTY * 2, 1).await;
                if number < KEPT {
                    write(&other, kept(number), 1).await;
                }
            }
            for number in 0..CLEAN_READS {
                let at = (CLEAN + number * 8) * SECTOR;
                first.read(StreamId(3), at, 8 * 512).await.unwrap();
            }
        });
        match is_stopped {
            true => served.stop(),
            false => rig.end(served, End::Kill),
        }
        rig
    }

    /// The same, and the first device ran without it since.
    fn left(seed: u64, is_stopped: bool) -> Rig {
        let rig = Rig::used(seed, is_stopped);
        rig.runs_alone();
        rig
    }

    fn fork(&self, seed: u64) -> Rig {
        let fork = |disk: &Disk| disk.borrow().fork();
        Rig {
            cache: fork(&self.cache),
            first: fork(&self.first),
            other: fork(&self.other),
            store: Store::default(),
            chance: Chance::new(seed),
        }
    }

    fn superblock(&self, disk: &Disk) -> Superblock {
        let mut bytes = vec![0; 4096];
        disk.borrow().peek(4096, &mut bytes);
        Superblock::parse(&bytes).expect("a superblock")
    }

    fn runs_alone(&self) {
        self.sets_state(BackingState::Stale);
    }

    fn sets_state(&self, state: BackingState) {
        let mut superblock = self.superblock(&self.first);
        superblock.set_state(state);
        self.first.borrow_mut().poke(4096, &superblock.encode());
    }

    /// Writes another UUID table at rest.
    fn changes_slots(&self, how: impl FnOnce(&mut Vec<UuidEntry>)) {
        let (loaded, _) = load(&self.cache, self.chance.clone());
        let mut entries = loaded.uuids.clone();
        how(&mut entries);
        let place = loaded.newest.uuid_bucket.ptr(0).expect("a place").sector();
        let bytes = uuid_table::encode(&entries);
        self.cache.borrow_mut().poke(place * SECTOR, &bytes);
    }

    fn opening(
        &self,
        world: &World,
        backings: &[&Disk],
        options: Options,
    ) -> impl Future<Output = Result<Rc<Server<World>>, brigade_engine::Error>> + 'static {
        let store = self.store.clone();
        let backings = backings.iter().map(|disk| world.device(disk)).collect();
        let survivor = move |_: &str| Some(store.clone());
        let caches = vec![world.device(&self.cache)];
        Server::open(world.clone(), caches, backings, survivor, options)
    }

    fn world(&self) -> World {
        World::new(self.chance.clone(), Duration::from_secs(1))
    }

    fn serve(&self, options: Options) -> Served {
        self.serve_only(&[&self.first, &self.other], options)
    }

    fn serve_only(&self, backings: &[&Disk], options: Options) -> Served {
        let world = self.world();
        let opening = self.opening(&world, backings, options);
        let opened = world.run(opening, || false).expect("it ends");
        let server = opened.unwrap_or_else(|error| panic!("{error}"));
        Served { world, server }
    }

    fn end(&self, served: Served, how: End) {
        served.world.kill();
        drop(served);
        self.ends(how);
    }

    fn ends(&self, how: End) {
        for disk in [&self.cache, &self.first, &self.other] {
            disk.borrow_mut().end(how, &self.chance);
        }
    }

    /// What is on the cache device, whatever is wrong with it.
    fn load_anyhow(&self) -> Loaded {
        let world = self.world();
        let superblock = self.superblock(&self.cache);
        let sectors = self.cache.borrow().geometry.size_bytes / 512;
        let layout = superblock.cache_geometry(sectors, 512).expect("sizes");
        let (disk, env) = (world.device(&self.cache), world.clone());
        let how = How {
            read_only: true,
            ..How::default()
        };
        let loading =
            async move { recovery::load(&env, &disk, superblock, layout, &[], how).await };
        let loaded = world.run(loading, || false).expect("it ends");
        loaded.unwrap_or_else(|error| panic!("{error}"))
    }

    /// No slot is free that has a key in the tree or the replay range (docs/format.md 4.6). Gives which were given up.
    fn free_slots_have_no_keys(&self) -> Vec<usize> {
        let (loaded, _) = load(&self.cache, self.chance.clone());
        for inode in &loaded.inodes_seen {
            let entry = &loaded.uuids[*inode as usize];
            assert!(!entry.is_empty(), "slot {inode} is free and has keys");
        }
        let slots = loaded.uuids.iter().enumerate();
        let removed = slots.filter(|(_, entry)| entry.is_invalidated());
        removed.map(|(slot, _)| slot).collect()
    }
}

impl Served {
    fn does<T: 'static>(&self, story: impl Future<Output = T> + 'static) -> T {
        self.world.run(story, || false).expect("it ends")
    }

    fn volume(&self, at: usize) -> Rc<Volume<World>> {
        self.server.volumes()[at].clone()
    }

    /// Slots that were given up, those that became free, and the bytes that went with them.
    fn reclaimed(&self) -> (u64, u64, u64) {
        let gc = self.server.status().cache_sets[0].gc.clone();
        (gc.removed_slots, gc.reclaimed_slots, gc.reclaimed_bytes)
    }

    fn waits_until_swept(&self) {
        let swept = is_swept(self.server.clone(), self.world.clone());
        self.does(swept);
        self.server.audit();
    }

    fn stop(self) {
        let server = self.server.clone();
        self.does(async move { server.stop().await.unwrap() });
        self.server.audit();
        self.world.kill();
    }
}

async fn is_swept(server: Rc<Server<World>>, world: World) {
    while server.status().cache_sets[0].gc.removed_slots > 0 {
        assert!(world.now() < Duration::from_secs(10_000), "never swept");
        world.sleep(Duration::from_millis(100)).await;
    }
    // The table says so before it is durable.
    world.sleep(Duration::from_secs(1)).await;
}

/// A sector of the device that stays. The last ones come first: they share no leaf with the other device.
fn kept(number: u64) -> u64 {
    (KEPT - 1 - number) * 2
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

async fn read(volume: &Rc<Volume<World>>, sector: u64, sectors: u64) -> Vec<u8> {
    let length = (sectors * SECTOR) as usize;
    let got = volume.read(StreamId(2), sector * SECTOR, length).await;
    got.unwrap().to_vec()
}

/// The first device has nothing but zeros: all it ever had was in the cache.
async fn is_empty(volume: &Rc<Volume<World>>) {
    for (from, sectors) in [(0, 2 * DIRTY), (CLEAN, 8 * CLEAN_READS)] {
        let got = read(volume, from, sectors).await;
        let old = got.iter().position(|byte| *byte != 0);
        assert!(old.is_none(), "old data behind sector {from}: {old:?}");
    }
}

/// The other one has what it had, the first so many sectors in a version from `least` on.
async fn is_kept(volume: &Rc<Volume<World>>, newer: u64, least: u64) {
    for number in 0..KEPT {
        let sector = kept(number);
        let got = read(volume, sector, 1).await;
        let mut versions = if number < newer { least..=2 } else { 1..=2 };
        let is_one = versions.any(|version| got == content(sector, version));
        assert!(is_one, "sector {sector} of the other device");
    }
}

fn extents_of(loaded: &Loaded, inode: u32) -> usize {
    loaded.index.range(inode, 0, u64::MAX >> 1).count()
}

fn goes_and_the_slot_is_given_out_again(rig: &Rig, options: &Options) {
    let served = rig.serve(options.clone());
    served.waits_until_swept();
    let (removed, reclaimed, bytes) = served.reclaimed();
    assert_eq!((removed, reclaimed), (0, 1));
    // Clean data may have gone with a crash or for want of memory.
    let all = DIRTY * SECTOR..=(DIRTY + CLEAN_READS * 8) * SECTOR;
    assert!(all.contains(&bytes), "{bytes} bytes");
    let (first, other) = (served.volume(0), served.volume(1));
    assert!(
        first.names().contains(&"volume2".into()),
        "{:?}",
        first.names()
    );
    served.does(async move {
        is_empty(&first).await;
        is_kept(&other, 0, 1).await;
        write(&first, 5, 3).await;
    });
    served.stop();
    assert_eq!(rig.free_slots_have_no_keys(), [0; 0]);
    let (loaded, _) = load(&rig.cache, rig.chance.clone());
    assert_eq!(loaded.uuids[0], UuidEntry::EMPTY);
    assert!(loaded.findings.is_empty(), "{:?}", loaded.findings);
    // Given up once more, the device gets the slot that was its own at first.
    rig.runs_alone();
    let served = rig.serve(options.clone());
    let (first, other) = (served.volume(0), served.volume(1));
    assert!(
        first.names().contains(&"volume0".into()),
        "{:?}",
        first.names()
    );
    served.does(async move {
        is_empty(&first).await;
        write(&first, 4, 4).await;
        assert!(read(&first, 4, 1).await == content(4, 4));
        is_kept(&other, 0, 1).await;
    });
    served.waits_until_swept();
    served.stop();
    assert_eq!(rig.free_slots_have_no_keys(), [0; 0]);
}

#[test]
fn what_a_removed_device_left_goes_and_its_slot_is_given_out_again() {
    marks::take();
    let rig = Rig::left(1, false);
    goes_and_the_slot_is_given_out_again(&rig, &options(false));
    assert!(marks::hits(Mark::SlotSwept) > 0 && marks::hits(Mark::SlotRecycled) == 2);
}

#[test]
fn it_goes_as_well_where_leaves_are_counted_after_the_start() {
    let rig = Rig::left(2, true);
    marks::take();
    set_count_pause(Duration::from_secs(1));
    let served = rig.serve(options(false));
    let world = served.world.clone();
    served.does(async move { world.sleep(Duration::from_secs(2)).await });
    assert_eq!(marks::hits(Mark::OpenCountsLater), 1);
    assert_eq!(marks::hits(Mark::SlotSwept), 0, "nothing is known yet");
    set_count_pause(Duration::ZERO);
    rig.end(served, End::Kill);
    let rig = Rig::left(2, true);
    marks::take();
    goes_and_the_slot_is_given_out_again(&rig, &options(false));
    assert!(marks::hits(Mark::OpenCountsLater) > 0);
}

#[test]
fn it_goes_as_well_with_little_memory() {
    let rig = Rig::left(3, true);
    set_leaves_here_min(Some(2));
    set_leaf_batch(Some(2));
    let mut little = options(false);
    little.memory_bytes = 64 << 10;
    goes_and_the_slot_is_given_out_again(&rig, &little);
    set_leaves_here_min(None);
    set_leaf_batch(None);
}

#[test]
fn requests_are_served_while_it_goes() {
    let rig = Rig::left(4, true);
    let served = rig.serve(options(false));
    let (server, world, other) = (
        served.server.clone(),
        served.world.clone(),
        served.volume(1),
    );
    let longest = served.does(async move {
        let mut longest = Duration::ZERO;
        let mut number = 0;
        while server.status().cache_sets[0].gc.removed_slots > 0 {
            let began = world.now();
            write(&other, kept(number % KEPT), 2).await;
            longest = longest.max(world.now() - began);
            number += 1;
            world.sleep(Duration::from_millis(20)).await;
        }
        assert!(number > 20, "{number} writes");
        is_kept(&other, number.min(KEPT), 2).await;
        longest
    });
    assert!(longest < Duration::from_millis(500), "{longest:?}");
    served.stop();
    assert_eq!(rig.free_slots_have_no_keys(), [0; 0]);
}

/// Serves for so many steps, the other device being written meanwhile, then dies. Gives the writes that were acknowledged, and
/// whether it came to the end.
fn serves_for(rig: &Rig, steps: u64) -> (u64, bool) {
    let world = rig.world();
    let opening = rig.opening(&world, &[&rig.first, &rig.other], options(false));
    let opened = world.run(opening, || world.steps() > steps);
    let acknowledged = Rc::new(Cell::new(0));
    let mut is_over = false;
    if let Some(opened) = opened {
        let server = opened.unwrap_or_else(|error| panic!("{error}"));
        let (other, count) = (server.volumes()[1].clone(), acknowledged.clone());
        let pace = world.clone();
        world.spawn(async move {
            for number in 0..KEPT {
                write(&other, kept(number), 2).await;
                count.set(number + 1);
                pace.sleep(Duration::from_millis(100)).await;
            }
        });
        let swept = is_swept(server, world.clone());
        is_over = world.run(swept, || world.steps() > steps).is_some();
    }
    world.kill();
    (acknowledged.get(), is_over)
}

/// Whoever comes after a crash sees nothing of the removed device and all of the other one.
fn is_well_after(rig: &Rig, how: End, acknowledged: u64) {
    rig.ends(how);
    rig.free_slots_have_no_keys();
    rig.runs_alone();
    let served = rig.serve(options(false));
    let (first, other) = (served.volume(0), served.volume(1));
    let least = match how {
        End::Kill => 2,
        End::PowerLoss => 1,
    };
    served.does(async move {
        is_empty(&first).await;
        is_kept(&other, acknowledged, least).await;
        write(&first, 8, 5).await;
    });
    served.waits_until_swept();
    served.stop();
    assert_eq!(rig.free_slots_have_no_keys(), [0; 0]);
    rig.runs_alone();
    let served = rig.serve(options(false));
    let (first, other) = (served.volume(0), served.volume(1));
    served.does(async move {
        is_empty(&first).await;
        is_kept(&other, acknowledged, least).await;
    });
    served.world.kill();
}

/// Steps from the opening until all is swept.
fn steps_needed(rig: &Rig) -> u64 {
    let rig = rig.fork(1);
    let (mut few, mut many) = (0, 1 << 20);
    assert!(serves_for(&rig.fork(1), many).1, "so many are enough");
    while many - few > 50 {
        let middle = (few + many) / 2;
        match serves_for(&rig.fork(1), middle).1 {
            true => many = middle,
            false => few = middle,
        }
    }
    many
}

fn crashes(is_stopped: bool, points: u64) {
    let rig = Rig::left(5, is_stopped);
    let all = steps_needed(&rig);
    for point in 0..points {
        let how = match point % 3 {
            2 => End::PowerLoss,
            _ => End::Kill,
        };
        let mut rig = rig.fork(1);
        let (acknowledged, _) = serves_for(&rig, all * (point + 1) / points);
        if matches!(how, End::PowerLoss) {
            rig.store = Store::default();
        }
        is_well_after(&rig, how, acknowledged);
    }
}

#[test]
fn a_crash_at_any_time_shows_nothing_old_and_loses_nothing_of_others() {
    crashes(false, 40);
}

#[test]
fn neither_does_one_after_an_opening_that_counts_later() {
    crashes(true, 40);
}

/// The process is killed as soon as the slot is free. Leaves of the other device have pending then what keeps entries needed.
fn killed_when_free(seed: u64) -> Vec<usize> {
    let rig = Rig::left(seed, true);
    // So that the first of these comes before anything is swept.
    set_count_pause(Duration::from_millis(20));
    assert!(serves_for(&rig, u64::MAX).1);
    set_count_pause(Duration::ZERO);
    rig.ends(End::Kill);
    rig.free_slots_have_no_keys()
}

#[test]
fn a_slot_that_is_free_has_no_keys_from_that_moment_on() {
    assert_eq!(killed_when_free(6), [0; 0]);
}

#[test]
fn slots_that_became_free_too_early_would_be_seen() {
    for mutation in [Mutation::SlotRecycledEarly, Mutation::SlotSweptInMemory] {
        choose(Some(mutation));
        let seen = catch_unwind(AssertUnwindSafe(|| killed_when_free(6)));
        choose(None);
        let told = seen.expect_err("nobody sees it");
        let told = told.downcast_ref::<String>().expect("words");
        assert!(
            told.ends_with("is free and has keys"),
            "{mutation:?}: {told}"
        );
    }
}

#[test]
fn a_slot_that_is_free_and_has_keys_all_the_same_is_left_alone() {
    let rig = Rig::used(7, true);
    let (loaded, _) = load(&rig.cache, rig.chance.clone());
    let before = extents_of(&loaded, 0);
    assert!(before as u64 > DIRTY);
    // The table is damaged: the first device's slot is lost. Another one was given up in order.
    rig.changes_slots(|entries| {
        entries[0] = UuidEntry::EMPTY;
        entries[5] = UuidEntry::cached([5; 16], [0; 32], 1);
        entries[5].invalidate(2);
    });
    marks::take();
    let served = rig.serve_only(&[&rig.other], options(false));
    assert_eq!(marks::hits(Mark::OpenCountsLater), 1, "nobody noticed");
    served.waits_until_swept();
    assert_eq!(served.reclaimed(), (0, 1, 0));
    let other = served.volume(0);
    served.does(async move { is_kept(&other, 0, 1).await });
    rig.end(served, End::Kill);
    let after = rig.load_anyhow();
    assert_eq!(extents_of(&after, 0), before);
    assert_eq!(after.uuids[5], UuidEntry::EMPTY);
    let is_told = |finding: &recovery::Finding| {
        finding.id == "F51" && finding.message.contains("never given out")
    };
    assert!(after.findings.iter().any(is_told), "{:?}", after.findings);
}

#[test]
fn a_free_slot_with_keys_that_nobody_looked_at_yet_is_not_given_out() {
    let rig = Rig::used(12, true);
    rig.changes_slots(|entries| {
        // The device that stays comes as one that was attached to nothing, and the other one's slot is lost.
        entries[0] = UuidEntry::EMPTY;
        entries[1] = UuidEntry::EMPTY;
    });
    let mut superblock = rig.superblock(&rig.other);
    superblock.set_state(BackingState::None);
    rig.other.borrow_mut().poke(4096, &superblock.encode());
    marks::take();
    set_count_pause(Duration::from_secs(100));
    let served = rig.serve_only(&[&rig.other], options(false));
    assert_eq!(marks::hits(Mark::OpenCountsLater), 1);
    assert_eq!(marks::hits(Mark::AttachSlotHasKeys), 2);
    let other = served.volume(0);
    assert!(
        other.names().contains(&"volume2".into()),
        "{:?}",
        other.names()
    );
    served.does(async move { is_empty(&other).await });
    set_count_pause(Duration::ZERO);
    served.stop();
    // This stop makes no promise, so that the next opening looks at everything, and finds it.
    let world = rig.world();
    let opened = world.run(rig.opening(&world, &[&rig.other], options(false)), || false);
    let refusal = opened.expect("it ends").err().expect("refused");
    assert!(refusal.to_string().contains("F51"), "{refusal}");
}

#[test]
fn nor_is_it_after_all_leaves_were_counted_while_another_device_was_attached() {
    let rig = Rig::used(12, true);
    rig.changes_slots(|entries| entries[1] = UuidEntry::EMPTY);
    let mut superblock = rig.superblock(&rig.other);
    superblock.set_state(BackingState::None);
    rig.other.borrow_mut().poke(4096, &superblock.encode());
    rig.first.borrow_mut().pace = Some(Rc::new(|io: Io<'_>| {
        matches!(io, Io::Flush).then_some(Duration::from_secs(50))
    }));
    marks::take();
    let served = rig.serve(options(false));
    assert_eq!(marks::hits(Mark::OpenCountsLater), 1);
    assert_eq!(marks::hits(Mark::AttachSlotHasKeys), 1);
    let other = served.volume(1);
    assert!(
        other.names().contains(&"volume2".into()),
        "{:?}",
        other.names()
    );
    served.does(async move { is_empty(&other).await });
    served.world.kill();
}

/// All slots but those of the two devices were given up.
fn with_a_full_table(seed: u64) -> Rig {
    let rig = Rig::left(seed, true);
    rig.changes_slots(|entries| {
        for (slot, entry) in entries.iter_mut().enumerate().skip(2) {
            *entry = UuidEntry::cached([slot as u8 + 100; 16], [0; 32], 1);
            entry.invalidate(2);
        }
    });
    rig
}

#[test]
fn a_device_that_needs_a_slot_where_all_are_taken_waits_for_one_that_was_given_up() {
    for state in [BackingState::Stale, BackingState::Clean] {
        let rig = with_a_full_table(10);
        if state == BackingState::Clean {
            // Then its own slot is not there any more.
            rig.changes_slots(|entries| entries[0].invalidate(2));
            rig.sets_state(state);
        }
        let served = rig.serve(options(false));
        let (first, other) = (served.volume(0), served.volume(1));
        assert_eq!(first.state(), "clean");
        served.does(async move {
            is_empty(&first).await;
            is_kept(&other, 0, 1).await;
        });
        served.waits_until_swept();
        served.stop();
        assert_eq!(rig.free_slots_have_no_keys(), [0; 0]);
    }
}

/// Who waits for a slot is told at once that there will be none.
#[test]
fn a_stop_ends_the_wait_for_a_slot() {
    for is_attach in [false, true] {
        let rig = Rig::used(13, true);
        rig.sets_state(BackingState::None);
        rig.changes_slots(|entries| {
            for (slot, entry) in entries
                .iter_mut()
                .enumerate()
                .filter(|(slot, _)| *slot != 1)
            {
                *entry = UuidEntry::cached([slot as u8 + 100; 16], [0; 32], 1);
                entry.invalidate(2);
            }
        });
        // Nothing is swept before all is counted.
        set_count_pause(Duration::from_secs(100));
        let served = rig.serve_only(&[&rig.other], options(false));
        let (server, world) = (served.server.clone(), served.world.clone());
        let device = served.world.device(&rig.first);
        served.world.spawn(async move {
            world.sleep(Duration::from_secs(1)).await;
            server.begin_to_stop();
        });
        let (server, world) = (served.server.clone(), served.world.clone());
        let took = served.does(async move {
            let began = world.now();
            let refused = match is_attach {
                true => server.attach(device, None).await.err(),
                false => server.create_flash(4096, "", None).await.err(),
            };
            let refused = refused.expect("there is no slot").to_string();
            assert!(refused.contains("being stopped"), "{refused}");
            world.now() - began
        });
        assert!(took < Duration::from_millis(1100), "{took:?}");
        set_count_pause(Duration::ZERO);
        served.stop();
    }
}

#[test]
fn a_table_that_is_full_of_devices_refuses_as_ever() {
    let rig = with_a_full_table(11);
    rig.changes_slots(|entries| entries[2..].iter_mut().enumerate().for_each(in_use));
    let served = rig.serve(options(false));
    let warnings = served.server.warnings().join("\n");
    assert!(warnings.contains("no free slot"), "{warnings}");
    assert_eq!(served.volume(0).state(), "inconsistent");
    served.stop();
}

fn in_use((at, entry): (usize, &mut UuidEntry)) {
    *entry = UuidEntry::cached([at as u8 + 100; 16], [0; 32], 1);
}

#[test]
fn a_set_that_is_only_read_keeps_what_was_left() {
    let rig = Rig::left(8, true);
    let images = || [&rig.cache, &rig.first].map(|disk| disk.borrow().image());
    let before = images();
    let read_only = Options {
        read_only: true,
        ..options(false)
    };
    let served = rig.serve(read_only);
    let world = served.world.clone();
    served.does(async move { world.sleep(Duration::from_secs(100)).await });
    assert_eq!(served.reclaimed(), (0, 0, 0));
    served.stop();
    let is_same = images().iter().zip(&before).all(|(a, b)| a.is_same(b));
    assert!(is_same, "something was written");
}

#[test]
fn a_set_that_is_poisoned_keeps_what_was_left() {
    let rig = Rig::left(9, true);
    let served = rig.serve(options(false));
    rig.cache.borrow_mut().faults.write_in = Some(10);
    let world = served.world.clone();
    served.does(async move { world.sleep(Duration::from_secs(200)).await });
    assert_eq!(served.server.status().cache_sets[0].state, "poisoned");
    let (removed, reclaimed, _) = served.reclaimed();
    assert_eq!((removed, reclaimed), (1, 0));
    rig.end(served, End::Kill);
    goes_on_after(&rig);
}

/// The next opening does what is left to do.
fn goes_on_after(rig: &Rig) {
    assert_eq!(rig.free_slots_have_no_keys(), [0]);
    let served = rig.serve(options(false));
    served.waits_until_swept();
    let (first, other) = (served.volume(0), served.volume(1));
    served.does(async move {
        is_empty(&first).await;
        is_kept(&other, 0, 1).await;
    });
    served.stop();
    assert_eq!(rig.free_slots_have_no_keys(), [0; 0]);
}
