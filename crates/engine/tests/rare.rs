//! Branches that random lives hardly ever reach, and the two ways in which a set that cannot go on says so. Each test asserts
//! the mark it is for; docs/simulation.md lists them.

use brigade_engine::marks::{self, Mark};
use brigade_engine::{Server, Volume};
use brigade_env::sync::join_all;
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::{Key, Ptr, Superblock, jset, key_words};
use brigade_sim::disk::{DiskState, Io};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, header_behind, load, open, options, shorten_ring};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

const NODE_MAGIC: u64 = 0x9013_5c78_b99e_07f5;
const TABLE_MAGIC: u64 = 0x6750_e15f_8733_7f91;

/// Marks are counted with the feature `instrumented` only.
fn assert_reached(mark: Mark) {
    assert!(
        !cfg!(feature = "instrumented") || marks::hits(mark) > 0,
        "{mark:?} is not reached"
    );
}

fn superblock(disk: &Rc<RefCell<DiskState>>) -> Superblock {
    let mut bytes = vec![0; 4096];
    disk.borrow().peek(4096, &mut bytes);
    Superblock::parse(&bytes).unwrap()
}

/// A new set, stopped, whose ring is then made this short.
fn with_ring_of(
    ring: usize,
    (buckets, bucket, block): (u64, u64, u64),
    back: u64,
) -> (Rc<RefCell<DiskState>>, Rc<RefCell<DiskState>>) {
    let (c, b) = disks(buckets, bucket, block, back);
    let world = World::new(Chance::new(7), Duration::from_secs(1));
    let server = open(&world, &c, &b, &Store::default(), options(false));
    world
        .run(async move { server.stop().await.unwrap() }, || false)
        .unwrap();
    world.kill();
    shorten_ring(&c, ring);
    (c, b)
}

/// T105.
#[test]
fn a_tree_that_grows_write_by_write_splits_its_interior_nodes() {
    let chance = Chance::new(11);
    let (c, b) = disks(3400, 8, 1, 40_000);
    let world = World::new(chance, Duration::from_secs(1));
    let server = open(&world, &c, &b, &Store::default(), options(false));
    let (s, v) = (server.clone(), server.volumes()[0].clone());
    let story = async move {
        for number in 0..17_000u64 {
            // All over the volume, none beside another.
            let at = number * 7919 % 17_000 * 2;
            v.write(StreamId(1), at * 512, v.buffer(512), false)
                .await
                .unwrap();
        }
        let btree = s.status().cache_sets[0].btree;
        s.stop().await.unwrap();
        btree
    };
    let btree = world.run(story, || false).expect("ends");
    assert!(btree.depth >= 2 && btree.keys == 17_000, "{btree:?}");
    assert_reached(Mark::BtreeInteriorSplit);
}

/// T89, T106.
#[test]
fn leaves_that_find_few_buckets_are_rewritten_some_at_a_time() {
    marks::take();
    let (c, b) = disks(2000, 8, 1, 60_000);
    let magic = superblock(&c).set_magic() ^ TABLE_MAGIC;
    let is_slow = Rc::new(Cell::new(false));
    let slow = is_slow.clone();
    let world = World::new(Chance::new(17), Duration::from_secs(1));
    let server = open(&world, &c, &b, &Store::default(), options(false));
    c.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        let is_table = matches!(io, Io::Write(_, data) if data[8..16] == magic.to_le_bytes());
        Some(if is_table && slow.get() {
            Duration::from_secs(1000)
        } else {
            Duration::from_micros(100)
        })
    }));
    let (s, v, w) = (server.clone(), server.volumes()[0].clone(), world.clone());
    let story = async move {
        // Clean sectors all over the volume: more than a hundred leaves.
        for number in 0..10_000u64 {
            let at = number * 7919 % 10_000 * 2;
            v.read(StreamId(1), at * 512, 512).await.unwrap();
        }
        w.sleep(Duration::from_secs(100)).await;
        // While no table is finished, clean data takes the buckets that are ready, but for the reserves.
        is_slow.set(true);
        for number in 0..1500u64 {
            let at = 40_000 + number * 8;
            v.read(StreamId(2), at * 512, 4096).await.unwrap();
        }
        // Holes in all leaves at once take no bucket, until the leaves are written.
        let discard = |number: u64| {
            let v = v.clone();
            let at = number * 7919 % 10_000 * 2;
            async move { v.discard(at * 512, 512, false).await.unwrap() }
        };
        join_all((0..10_000).map(discard).collect::<Vec<_>>()).await;
        w.sleep(Duration::from_secs(100)).await;
        is_slow.set(false);
        s.stop().await.unwrap();
        s.status().errors
    };
    let errors = world.run(story, || false).expect("ends");
    assert!(errors.is_empty(), "{errors:?}");
    assert_reached(Mark::BtreeFewerAtOnce);
}

/// A set with four ring buckets, two entries in each, whose nodes take this long to write from a write on that is acknowledged.
/// Then the cache is filled, so that tables have to be named by the journal. Gives what the next writes and a flush say.
fn ring_behind_slow_nodes(node_takes: Duration) -> (std::io::Result<()>, Vec<String>) {
    let (c, b) = with_ring_of(4, (600, 8, 4), 40_000);
    let magic = superblock(&c).set_magic() ^ NODE_MAGIC;
    let is_slow = Rc::new(Cell::new(false));
    let slow = is_slow.clone();
    c.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        let is_node = matches!(io, Io::Write(_, data) if data[8..16] == magic.to_le_bytes());
        Some(if is_node && slow.get() {
            node_takes
        } else {
            Duration::from_micros(100)
        })
    }));
    let world = World::new(Chance::new(13), Duration::from_secs(100));
    let server = open(&world, &c, &b, &Store::default(), options(false));
    let (s, v, w) = (server.clone(), server.volumes()[0].clone(), world.clone());
    let story = async move {
        is_slow.set(true);
        write(&v, 0).await.unwrap();
        let flushed = v.flush().await;
        for number in 1..900 {
            let (v, at) = (v.clone(), number * 4096);
            // A read may wait for its copy, so not one after the other.
            w.spawn(async move { drop(v.read(StreamId(2), at, 4096).await) });
            w.sleep(Duration::from_millis(50)).await;
        }
        w.sleep(Duration::from_secs(300)).await;
        is_slow.set(false);
        let mut result = flushed;
        for number in 0..20 {
            result = result.and(write(&v, number).await).and(v.flush().await);
        }
        (result, s.status().errors)
    };
    let limit = Duration::from_secs(20_000);
    let out = world.run(story, || world.now() > limit);
    out.expect("ends")
}

fn write(v: &Rc<Volume<World>>, block: u64) -> impl Future<Output = std::io::Result<()>> + 'static {
    let v = v.clone();
    async move {
        let buffer = v.buffer(4096);
        v.write(StreamId(1), block * 4096, buffer, false).await
    }
}

/// T117.
#[test]
fn a_full_ring_waits_for_nodes_that_take_their_time() {
    let (result, errors) = ring_behind_slow_nodes(Duration::from_secs(100));
    assert!(result.is_ok() && errors.is_empty(), "{result:?} {errors:?}");
    assert_reached(Mark::JournalFull);
    assert_reached(Mark::JournalLastBucket);
}

#[test]
fn a_ring_that_nothing_makes_room_in_poisons_the_set() {
    let (result, errors) = ring_behind_slow_nodes(Duration::from_secs(3000));
    assert!(result.is_err(), "{errors:?}");
    let is_told = |error: &String| error.contains("the ring is full");
    assert!(errors.iter().any(is_told), "{errors:?}");
    assert_reached(Mark::JournalFull);
}

/// T63.
#[test]
fn a_set_without_buckets_for_its_nodes_is_refused_and_does_not_hang() {
    let (buckets, bucket) = (2600, 8);
    let (c, b) = disks(buckets, bucket, 1, 60_000);
    let world = World::new(Chance::new(5), Duration::from_secs(1));
    let server = open(&world, &c, &b, &Store::default(), options(false));
    world
        .run(async move { server.stop().await.unwrap() }, || false)
        .unwrap();
    world.kill();
    // An image no Brigade would leave: dirty data in nearly every bucket, all of it only in the journal.
    let (loaded, layout) = load(&c, Chance::new(5));
    let newest = &loaded.newest;
    let slot = loaded.uuids.iter().position(|entry| !entry.is_empty());
    let inode = slot.unwrap() as u32;
    let named = [newest.uuid_bucket, newest.root].map(|key| key.ptr(0).unwrap().sector() / bucket);
    let is_free = |nr: &u64| {
        ![&named[..], &loaded.prio_buckets, &layout.journal_buckets]
            .iter()
            .any(|taken| taken.contains(nr))
    };
    let data: Vec<u64> = (layout.first_bucket..buckets).filter(is_free).collect();
    let mut places = (0..bucket).flat_map(|at| data.iter().map(move |nr| (*nr, at)));
    let mut offset = 100;
    let ring = &layout.journal_buckets;
    for entry in 1..ring.len() as u64 - 1 {
        let mut key = || {
            let (nr, at) = places.next().unwrap();
            offset += 2;
            let r#gen = loaded.gens[nr as usize];
            Key::extent(inode, offset, 1, Ptr::new(nr * bucket + at, r#gen), true)
        };
        let keys: Vec<Key> = (0..160).map(|_| key()).collect();
        let header = header_behind(&loaded, newest.seq + entry);
        let bytes = jset::encode(&header, &key_words(&keys), layout.set_magic, 512);
        let place = ring[(loaded.ring.newest_index + entry as usize) % ring.len()];
        c.borrow_mut().poke(place * bucket * 512, &bytes);
    }
    world.kill();
    let world = World::new(Chance::new(5), Duration::from_secs(20));
    let (caches, backings) = (vec![world.device(&c)], vec![world.device(&b)]);
    let opening = Server::open(
        world.clone(),
        caches,
        backings,
        |_| Some(Store::default()),
        options(false),
    );
    let opened = world.run(
        async move { opening.await.map(|_| ()).map_err(|e| e.to_string()) },
        || world.now() > Duration::from_secs(2000),
    );
    let error = opened.expect("ends").expect_err("refused");
    assert!(error.contains("no buckets for nodes"), "{error}");
    assert_reached(Mark::AllocMetadataWaits);
}
