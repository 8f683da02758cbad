//! Sets with hardly any room: tiny rings, full volumes, leaves that split while nothing can be recycled.

use brigade_engine::Server;
use brigade_engine::marks::{self, Mark};
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::{Key, Ptr, jset, key_words};
use brigade_sim::disk::DiskState;
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, header_behind, load, open, options, shorten_ring};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

#[test]
fn large_writes_to_small_buckets_end() {
    let chance = Chance::new(7);
    let (c, b) = disks(5000, 8, 1, 80000);
    let store = Store::default();
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let server = open(&world, &c, &b, &store, options(true));
    let v = server.volumes()[0].clone();
    let run = async move {
        // Fill the cache with clean data.
        for i in 0..1200u64 {
            v.read(StreamId(1), i * 32 * 512, 32 * 512).await.unwrap();
        }
        for i in 0..20u64 {
            let buf = v.buffer(3000 * 512);
            v.write(StreamId(2), i * 3000 * 512, buf, false)
                .await
                .unwrap();
        }
    };
    let limit = 3_000_000;
    let w2 = world.clone();
    let out = world.run(run, || {
        w2.steps() > limit || w2.now() > Duration::from_secs(2000)
    });
    assert!(out.is_some(), "does not end");
}

fn with_ring_of(
    buckets: usize,
    bucket: u64,
    block: u64,
) -> (Chance, Rc<RefCell<DiskState>>, Rc<RefCell<DiskState>>) {
    let chance = Chance::new(7);
    let (c, b) = disks(600, bucket, block, 20000);
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let server = open(&world, &c, &b, &Store::default(), options(false));
    world
        .run(async move { server.stop().await.unwrap() }, || false)
        .unwrap();
    world.kill();
    shorten_ring(&c, buckets);
    (chance, c, b)
}

#[test]
fn a_ring_too_small_to_make_room_in_is_refused() {
    for (buckets, bucket) in [(2, 64), (3, 16)] {
        let (chance, c, b) = with_ring_of(buckets, bucket, 8);
        let world = World::new(chance, Duration::from_secs(100));
        let caches = vec![world.device(&c)];
        let f = Server::open(
            world.clone(),
            caches,
            vec![world.device(&b)],
            |_| Some(Store::default()),
            options(false),
        );
        let out = world.run(
            async move { f.await.map(|_| ()).map_err(|e| e.to_string()) },
            || world.now() > Duration::from_secs(2000),
        );
        let error = out.expect("ends").expect_err("refused");
        assert!(error.contains("journal"), "{error}");
    }
}

/// Writes of single sectors all over make many keys, so leaves split and the root is replaced again and again.
fn small_writes(
    server: &Rc<Server<World>>,
    chance: &Chance,
    count: u64,
) -> impl Future<Output = ()> + 'static {
    let (v, server, chance) = (server.volumes()[0].clone(), server.clone(), chance.clone());
    async move {
        for number in 0..count {
            let at = chance.below(1500);
            v.write(StreamId(2), at * 2 * 512, v.buffer(512), chance.percent(10))
                .await
                .unwrap();
            if number % 100 == 0 {
                v.flush().await.unwrap();
            }
        }
        server.stop().await.unwrap();
    }
}

#[test]
fn the_smallest_rings_never_stall() {
    for (buckets, bucket, block) in [
        (3, 64, 8),
        (3, 16, 1),
        (4, 8, 4),
        (4, 16, 8),
        (4, 8, 1),
        (4, 16, 1),
    ] {
        let (chance, c, b) = with_ring_of(buckets, bucket, block);
        for round in 0..3 {
            let world = World::new(chance.clone(), Duration::from_secs(100 + round * 100_000));
            let server = open(&world, &c, &b, &Store::default(), options(round % 2 == 0));
            let limit = world.now() + Duration::from_secs(50_000);
            let done = world.run(small_writes(&server, &chance, 1500), || {
                world.now() > limit || world.steps() > 30_000_000
            });
            let status = server.status();
            let set = &status.cache_sets[0];
            assert!(
                done.is_some(),
                "{buckets} {bucket} {block}: {:?} {:?}",
                status.errors,
                set.journal
            );
            world.kill();
        }
    }
}

#[test]
fn stop_ends_when_leaves_split() {
    for seed in 0..6 {
        let chance = Chance::new(seed);
        let (c, b) = disks(1500, 8, 1, 80000);
        let store = Store::default();
        let world = World::new(chance.clone(), Duration::from_secs(1));
        let server = open(&world, &c, &b, &store, options(false));
        let v = server.volumes()[0].clone();
        let s2 = server.clone();
        let ch = chance.clone();
        let w = world.clone();
        let run = async move {
            for i in 0..1200u64 {
                v.read(StreamId(1), i * 8 * 512, 8 * 512).await.unwrap();
            }
            w.sleep(Duration::from_secs(60)).await;
            // Many small keys in every leaf.
            for _ in 0..(3000 + 500 * seed) {
                let at = ch.below(9600);
                let buf = v.buffer(512);
                v.write(StreamId(2), at * 512, buf, false).await.unwrap();
            }
            assert!(s2.stop().await.is_ok());
        };
        let w2 = world.clone();
        let out = world.run(run, || {
            w2.steps() > 20_000_000 || w2.now() > Duration::from_secs(5000)
        });
        assert!(out.is_some(), "does not end");
    }
}
#[test]
fn a_full_flash_volume_refuses_but_never_wedges() {
    use brigade_format::uuid_table::{self, UuidEntry};
    let chance = Chance::new(3);
    let (c, b) = disks(700, 16, 1, 4000);
    let store = Store::default();
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let server = open(&world, &c, &b, &store, options(false));
    let s = server.clone();
    world
        .run(async move { s.stop().await.unwrap() }, || false)
        .unwrap();
    drop(server);
    world.kill();
    let (loaded, _) = load(&c, chance.clone());
    let mut entries = loaded.uuids.clone();
    let free = entries.iter().position(|e| e.is_empty()).unwrap();
    entries[free] = UuidEntry::flash_only([7; 16], [0; 32], 10, 20000);
    let place = loaded.newest.uuid_bucket.ptr(0).unwrap().sector() * 512;
    c.borrow_mut().poke(place, &uuid_table::encode(&entries));
    let world = World::new(chance.clone(), Duration::from_secs(20));
    let server = open(&world, &c, &b, &store, options(false));
    let s = server.clone();
    let v = server.volumes()[1].clone();
    let w = world.clone();
    let chance = chance.clone();
    let run = async move {
        let may_be_full = |result: std::io::Result<()>| match result {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
                false
            }
        };
        let mut full = 0;
        while may_be_full(
            v.write(StreamId(1), full * 16 * 512, v.buffer(16 * 512), false)
                .await,
        ) {
            full += 1;
        }
        assert!(full > 640, "buckets that data may have: {full}");
        // Each of these splits an extent. One that is refused may find room when leaves have been written; if not, none does.
        let set = || s.status().cache_sets.remove(0);
        let buckets = set().devices[0].buckets;
        let kept = buckets.free + buckets.clean;
        let mut holes = 0;
        for i in 0..full * 8 {
            let hole = async || may_be_full(v.discard(i * 2 * 512, 512, false).await);
            if !hole().await {
                w.sleep(Duration::from_secs(6)).await;
                if !hole().await {
                    break;
                }
            }
            holes += 1;
        }
        // Buckets that data cannot have are there for leaves, but for half of them and four more, without which nothing can be
        // rewritten. A leaf that was split is half full at least: 170 keys of the 340 that a node of 16 sectors has room for. A
        // hole takes one key or none.
        let least = (kept / 2 - 4) * 170;
        assert!(
            holes >= least,
            "{kept} buckets for the index took {holes} holes, not {least}"
        );
        for _ in 0..3000 {
            let at = chance.below(full * 16);
            may_be_full(v.write(StreamId(2), at * 512, v.buffer(512), false).await);
        }
        // What is dropped whole makes room again.
        v.discard(0, full * 8 * 512, true).await.unwrap();
        w.sleep(Duration::from_secs(100)).await;
        assert!(may_be_full(
            v.write(StreamId(1), 0, v.buffer(100 * 16 * 512), true)
                .await
        ));
        server.stop().await.unwrap();
    };
    let out = world.run(run, || {
        world.steps() > 5_000_000 || world.now() > Duration::from_secs(3000)
    });
    assert!(out.is_some(), "does not end");
    let hits = marks::hits(Mark::ClearSplitRefused);
    assert!(!cfg!(feature = "instrumented") || hits > 0);
}

#[test]
fn a_leaf_that_becomes_hundreds_gets_as_many_levels_as_they_need() {
    let chance = Chance::new(5);
    let (buckets, bucket) = (24_000, 8);
    let (c, b) = disks(buckets, bucket, 1, 60_000);
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let server = open(&world, &c, &b, &Store::default(), options(false));
    world
        .run(async move { server.stop().await.unwrap() }, || false)
        .unwrap();
    world.kill();
    // An image no Brigade would leave: a journal full of keys, all for the one leaf.
    let (loaded, layout) = load(&c, chance.clone());
    let newest = &loaded.newest;
    let inode = loaded
        .uuids
        .iter()
        .position(|entry| !entry.is_empty())
        .unwrap() as u32;
    let mut places = (10_000..20_000u64).flat_map(|nr| (0..bucket).map(move |at| (nr, at)));
    let mut offset = 100;
    for entry in 1..=100u64 {
        let mut key = || {
            let (nr, at) = places.next().unwrap();
            offset += 2;
            Key::extent(
                inode,
                offset,
                1,
                Ptr::new(nr * bucket + at, loaded.gens[nr as usize]),
                true,
            )
        };
        let keys: Vec<Key> = (0..160).map(|_| key()).collect();
        let header = header_behind(&loaded, newest.seq + entry);
        let bytes = jset::encode(&header, &key_words(&keys), layout.set_magic, 512);
        let ring = &layout.journal_buckets;
        let place = ring[(loaded.ring.newest_index + entry as usize) % ring.len()];
        c.borrow_mut().poke(place * bucket * 512, &bytes);
    }
    let world = World::new(chance.clone(), Duration::from_secs(20));
    let server = open(&world, &c, &b, &Store::default(), options(false));
    let btree = server.status().cache_sets[0].btree;
    assert!(btree.depth >= 2 && btree.keys == 16_000, "{btree:?}");
    world
        .run(async move { server.stop().await.unwrap() }, || false)
        .expect("ends");
}
