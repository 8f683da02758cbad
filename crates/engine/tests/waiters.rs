//! Who waits for buckets: fills are never dropped because a batch is being persisted, and nobody waits for ever.

use brigade_engine::marks::{self, Mark};
use brigade_engine::{Options, ReadStatus, Server};
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::CacheMode;
use brigade_sim::disk::{DiskState, Io};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, open, options};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

type Disk = Rc<RefCell<DiskState>>;

const KIB: u64 = 1024;
/// A cache of 65 MiB: the least number of buckets a cache may have, of 128 KiB, or twice as many.
const CACHE_BYTES: u64 = 65 << 20;

fn through() -> Options {
    Options {
        mode: Some(CacheMode::Writethrough),
        ..options(false)
    }
}

/// A server with a cache of 64 MiB and three times as much behind it.
fn small_cache(bucket_bytes: u64, options: Options) -> (World, Rc<Server<World>>) {
    let (world, server, _) = with_disk(bucket_bytes, options);
    (world, server)
}

/// The same, with the cache device.
fn with_disk(bucket_bytes: u64, options: Options) -> (World, Rc<Server<World>>, Disk) {
    let (buckets, bucket) = (CACHE_BYTES / bucket_bytes, bucket_bytes / 512);
    let (c, b) = disks(buckets, bucket, 8, 3 * CACHE_BYTES / 512);
    let world = World::new(Chance::new(11), Duration::from_secs(1));
    let server = open(&world, &c, &b, &Store::default(), options);
    (world, server, c)
}

/// Makes a device fast but for its flushes, which hold up each write of a table.
fn slow_flushes(disk: &Disk, flush: Duration) {
    disk.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        Some(match io {
            Io::Flush => flush,
            _ => Duration::from_micros(50),
        })
    }));
}

/// Makes a cache device fast but for its nodes.
fn slow_nodes(disk: &Disk, node: Duration) {
    // The constant for nodes and the magic of the set that all disks here are of.
    let magic = 0x9013_5c78_b99e_07f5_u64 ^ 0x0909_0909_0909_0909;
    disk.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        let is_node = matches!(io, Io::Write(_, data) if data[8..16] == magic.to_le_bytes());
        Some(if is_node {
            node
        } else {
            Duration::from_micros(50)
        })
    }));
}

/// Marks are counted with the feature `instrumented` only.
fn assert_reached(marks: &[Mark]) {
    for mark in marks {
        let is_reached = !cfg!(feature = "instrumented") || marks::hits(*mark) > 0;
        assert!(is_reached, "{mark:?} is not reached");
    }
}

fn reads(server: &Server<World>) -> ReadStatus {
    server.status().volumes[0].reads.clone()
}

/// Goes over the whole volume once, `depth` requests at a time, each as soon as one before is done.
fn fill(world: &World, server: &Rc<Server<World>>, request: u64, depth: usize, by_writes: bool) {
    let next = Rc::new(Cell::new(0));
    let end = 3 * CACHE_BYTES;
    let client = |number: usize| {
        let (next, v) = (next.clone(), server.volumes()[0].clone());
        async move {
            while next.get() < end {
                let at = next.replace(next.get() + request);
                if by_writes {
                    let buffer = v.buffer(request as usize);
                    v.write(StreamId(number as u16 + 1), at, buffer, false)
                        .await
                        .unwrap();
                } else {
                    v.read(StreamId(number as u16 + 1), at, request as usize)
                        .await
                        .unwrap();
                }
            }
        }
    };
    let clients: Vec<_> = (0..depth).map(client).collect();
    let all = async move {
        brigade_env::sync::join_all(clients).await;
    };
    let limit = world.now() + Duration::from_secs(3000);
    world
        .run(all, || world.now() > limit)
        .expect("ends in time");
}

/// Lets what is under way come to its end.
fn settle(world: &World) {
    let w = world.clone();
    world.run(
        async move { w.sleep(Duration::from_secs(20)).await },
        || false,
    );
}

fn nothing_is_dropped(bucket_bytes: u64, request: u64, depth: usize, by_writes: bool) {
    marks::take();
    let options = if by_writes { through() } else { options(false) };
    let (world, server) = small_cache(bucket_bytes, options);
    fill(&world, &server, request, depth, by_writes);
    settle(&world);
    let reads = reads(&server);
    assert_eq!(
        reads.fill_dropped, 0,
        "{bucket_bytes} {request} {depth} {by_writes}: {reads:?}"
    );
    assert_eq!(
        reads.fill_bytes,
        3 * CACHE_BYTES,
        "all went through the cache"
    );
}

#[test]
fn sequential_misses_are_all_filled_in_a_cache_of_520_buckets() {
    for (request, depth) in [(128 * KIB, 1), (1024 * KIB, 4), (64 * KIB, 32)] {
        nothing_is_dropped(128 * KIB, request, depth, false);
    }
}

#[test]
fn sequential_misses_are_all_filled_in_a_cache_of_1040_buckets() {
    for (request, depth) in [(64 * KIB, 1), (1024 * KIB, 8), (64 * KIB, 32)] {
        nothing_is_dropped(64 * KIB, request, depth, false);
    }
}

#[test]
fn copies_of_sequential_writes_all_enter_a_cache_of_520_buckets() {
    for (request, depth) in [(128 * KIB, 1), (1024 * KIB, 4), (64 * KIB, 32)] {
        nothing_is_dropped(128 * KIB, request, depth, true);
    }
}

#[test]
fn copies_of_sequential_writes_all_enter_a_cache_of_1040_buckets() {
    for (request, depth) in [(64 * KIB, 1), (1024 * KIB, 8), (64 * KIB, 32)] {
        nothing_is_dropped(64 * KIB, request, depth, true);
    }
}

/// Misses that nobody waits for come at the speed of memory, while each table takes long.
#[test]
fn misses_far_ahead_of_the_tables_wait_for_them_and_no_request_waits_long() {
    marks::take();
    let (world, server, cache) = with_disk(64 * KIB, options(false));
    slow_flushes(&cache, Duration::from_millis(100));
    let slowest = Rc::new(Cell::new(Duration::ZERO));
    let clients: Vec<_> = (0..4u16)
        .map(|client| {
            let (v, w, slowest) = (server.volumes()[0].clone(), world.clone(), slowest.clone());
            async move {
                for i in 0..3 * CACHE_BYTES / (256 * KIB) / 4 {
                    let at = (i * 4 + u64::from(client)) * 256 * KIB;
                    let began = w.now();
                    v.read(StreamId(client), at, 256 * 1024).await.unwrap();
                    slowest.set(slowest.get().max(w.now() - began));
                }
            }
        })
        .collect();
    let all = async move {
        brigade_env::sync::join_all(clients).await;
    };
    world.run(all, || false).unwrap();
    settle(&world);
    let reads = reads(&server);
    assert!(reads.fill_waits > 100, "{reads:?}");
    assert_eq!(reads.fill_dropped, 0, "{reads:?}");
    assert!(slowest.get() < Duration::from_millis(600), "{slowest:?}");
}

/// Tables take longer than a request waits, and misses that nobody waits for fill all memory there is for them.
#[test]
fn a_request_that_waited_long_enough_for_memory_goes_on_and_its_fill_is_dropped() {
    marks::take();
    let (world, server, cache) = with_disk(64 * KIB, options(false));
    slow_flushes(&cache, Duration::from_secs(3));
    fill(&world, &server, 256 * KIB, 4, false);
    settle(&world);
    let reads = reads(&server);
    assert!(reads.fill_dropped_memory > 0, "{reads:?}");
    assert_eq!(reads.fill_dropped, reads.fill_dropped_memory, "{reads:?}");
    assert_reached(&[
        Mark::FillRequestWaits,
        Mark::FillDroppedMemory,
        Mark::CopyDropped,
    ]);
}

#[test]
fn fills_whose_keys_might_find_no_buckets_for_nodes_are_dropped() {
    marks::take();
    // How many writes it takes for that depends on how they fall into leaves.
    let dropped: u64 = (3300..3500).step_by(25).map(fills_after_writes).sum();
    assert!(dropped > 0);
    assert_reached(&[Mark::FillDroppedKeys, Mark::CopyDropped]);
}

/// Writes that came all at once, and so were all let into the cache, have taken nearly all buckets. Then nodes take their time,
/// and each fill leaves something to write in another leaf.
fn fills_after_writes(count: u64) -> u64 {
    let (c, b) = disks(520, 8, 1, 60_000);
    let world = World::new(Chance::new(11), Duration::from_secs(1));
    let server = open(&world, &c, &b, &Store::default(), options(false));
    let v = server.volumes()[0].clone();
    let write = |number: u64| {
        let v = v.clone();
        async move {
            let buffer = v.buffer(512);
            v.write(StreamId(1), number * 2 * 512, buffer, false)
                .await
                .unwrap();
        }
    };
    let writes: Vec<_> = (0..count).map(write).collect();
    let all = async move {
        brigade_env::sync::join_all(writes).await;
    };
    world.run(all, || false).unwrap();
    slow_nodes(&c, Duration::from_secs(5));
    let read = async move {
        for number in 0..300 {
            // All over the volume, between what was written.
            let at = (number * 1409 % count * 2 + 1) * 512;
            v.read(StreamId(2), at, 512).await.unwrap();
        }
    };
    world.run(read, || false).unwrap();
    settle(&world);
    let dropped = reads(&server).fill_dropped_keys;
    let stopped = world.run(async move { server.stop().await }, || false);
    stopped.expect("ends").expect("in order");
    dropped
}

/// What a test knows of a volume: the newest byte of each piece written.
type Model = Rc<RefCell<BTreeMap<u64, u8>>>;

/// T101.
#[test]
fn a_fill_that_waits_leaves_when_its_range_is_written_and_nothing_old_is_read() {
    const PIECE: u64 = 64 * KIB;
    for mode in [CacheMode::Writeback, CacheMode::Writethrough] {
        let options = Options {
            mode: Some(mode),
            ..options(true)
        };
        let (world, server, cache) = with_disk(64 * KIB, options);
        slow_flushes(&cache, Duration::from_millis(50));
        let model = Model::default();
        let pieces = 3 * CACHE_BYTES / PIECE;
        let clients: Vec<_> = (0..8u64)
            .map(|client| {
                let (v, w, model) = (server.volumes()[0].clone(), world.clone(), model.clone());
                async move {
                    for i in 0..pieces / 8 {
                        let at = (i * 8 + client) * PIECE;
                        v.read(StreamId(1), at, PIECE as usize).await.unwrap();
                        // Some of them at once, while what was read is still on its way.
                        if w.random_u64() % 4 == 0 {
                            let byte = (i % 250) as u8 + 1;
                            let mut buffer = v.buffer(PIECE as usize);
                            buffer.fill(byte);
                            v.write(StreamId(2), at, buffer, false).await.unwrap();
                            model.borrow_mut().insert(at, byte);
                        }
                    }
                }
            })
            .collect();
        let all = async move {
            brigade_env::sync::join_all(clients).await;
        };
        world.run(all, || false).unwrap();
        settle(&world);
        let cancelled = reads(&server).fill_cancelled;
        assert!(cancelled > 10, "{mode}: {:?}", reads(&server));
        let v = server.volumes()[0].clone();
        let look = async move {
            for at in (0..pieces).map(|piece| piece * PIECE) {
                let expected = model.borrow().get(&at).copied().unwrap_or(0);
                let found = v.read(StreamId(3), at, PIECE as usize).await.unwrap();
                assert!(found.iter().all(|byte| *byte == expected), "at {at}");
            }
        };
        world.run(look, || false).unwrap();
    }
}

#[test]
fn a_write_larger_than_what_is_ever_ready_at_once_ends() {
    let (world, server) = small_cache(128 * KIB, options(true));
    fill(&world, &server, 1024 * KIB, 2, false);
    let v = server.volumes()[0].clone();
    let run = async move {
        for i in 0..20 {
            let buffer = v.buffer(8 << 20);
            v.write(StreamId(1), i * (8 << 20), buffer, false)
                .await
                .unwrap();
        }
    };
    let limit = world.now() + Duration::from_secs(1000);
    world.run(run, || world.now() > limit).expect("ends");
}

/// T65.
#[test]
fn a_stop_does_not_wait_for_fills_that_wait() {
    for by_writes in [false, true] {
        let options = if by_writes { through() } else { options(false) };
        let (world, server, cache) = with_disk(64 * KIB, options);
        slow_flushes(&cache, Duration::from_millis(50));
        fill(&world, &server, 256 * KIB, 8, by_writes);
        let s = server.clone();
        let limit = world.now() + Duration::from_secs(100);
        let stopped = world.run(async move { s.stop().await }, || world.now() > limit);
        stopped.expect("ends").expect("in order");
    }
}

/// T43.
#[test]
fn a_poisoned_set_keeps_nobody_waiting() {
    for fails_in in [1, 40, 300] {
        let (world, server, cache) = with_disk(64 * KIB, options(false));
        slow_flushes(&cache, Duration::from_millis(20));
        cache.borrow_mut().faults.flush_in = Some(fails_in);
        let clients: Vec<_> = (0..8u64)
            .map(|client| {
                let v = server.volumes()[0].clone();
                async move {
                    for i in 0..400 {
                        let at = (i * 8 + client) * 32 * KIB;
                        // Whether it fails is not the question here.
                        let _ = v.read(StreamId(1), at, 32 * 1024).await;
                        let buffer = v.buffer(32 * 1024);
                        let _ = v
                            .write(StreamId(2), at + 100 * KIB * 1024, buffer, true)
                            .await;
                    }
                }
            })
            .collect();
        let all = async move {
            brigade_env::sync::join_all(clients).await;
        };
        let limit = world.now() + Duration::from_secs(1000);
        world.run(all, || world.now() > limit).expect("ends");
        let status = server.status();
        assert_eq!(status.cache_sets[0].state, "poisoned", "{fails_in}");
    }
}
