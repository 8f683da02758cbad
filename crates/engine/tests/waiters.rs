//! Who waits for buckets: fills are never dropped because a batch is being persisted, and nobody waits for ever.

use brigade_engine::marks::{self, Mark};
use brigade_engine::{Options, ReadStatus, Server};
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::CacheMode;
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, open, options};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

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
    let (buckets, bucket) = (CACHE_BYTES / bucket_bytes, bucket_bytes / 512);
    let (c, b) = disks(buckets, bucket, 8, 3 * CACHE_BYTES / 512);
    let world = World::new(Chance::new(11), Duration::from_secs(1));
    let server = open(&world, &c, &b, &Store::default(), options);
    (world, server)
}

fn reads(server: &Server<World>) -> ReadStatus {
    server.status().volumes[0].reads
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
