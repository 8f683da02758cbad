//! Orders that were wrong once: each test is a story of acknowledged data that was lost, or of a stop that did not end.

mod world;

use brigade_engine::{AckPolicy, Options, Server};
use brigade_env::{BlockDevice, Env, Geometry, StreamId};
use brigade_format::{CacheMode, NewBacking, NewCache, Replacement, Superblock};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use world::disk::{DiskState, End};
use world::exec::{Chance, Store, World};

fn geo(sectors: u64) -> Geometry {
    Geometry {
        size_bytes: sectors * 512,
        logical_block_bytes: 512,
        physical_block_bytes: 512,
        can_discard: true,
        is_read_only: false,
    }
}

fn disks(
    buckets: u64,
    bucket: u64,
    block: u64,
    back: u64,
) -> (Rc<RefCell<DiskState>>, Rc<RefCell<DiskState>>) {
    let cache = DiskState::new("cache", geo(buckets * bucket));
    let new = NewCache {
        device_sectors: buckets * bucket,
        bucket_sectors: bucket as u32,
        block_sectors: block as u16,
        uuid: [1; 16],
        set_uuid: [9; 16],
        discard: false,
        replacement: Replacement::Lru,
    };
    cache
        .borrow_mut()
        .poke(4096, &Superblock::new_cache(&new).unwrap().encode());
    let backing = DiskState::new("backing", geo(back + 16));
    let new = NewBacking {
        device_sectors: back + 16,
        data_offset: 16,
        block_sectors: block as u16,
        uuid: [2; 16],
        set_uuid: [9; 16],
        mode: CacheMode::Writeback,
        label: "x".into(),
    };
    backing
        .borrow_mut()
        .poke(4096, &Superblock::new_backing(&new).unwrap().encode());
    (cache, backing)
}

fn options(running: bool) -> Options {
    Options {
        read_only: false,
        mode: Some(CacheMode::Writeback),
        memory_bytes: 1 << 30,
        ack: AckPolicy::Memory,
        journal_delay: Duration::from_millis(100),
        sequential_cutoff: 0,
        writeback_percent: 10,
        writeback_delay: Duration::from_secs(1000),
        writeback_running: running,
    }
}

fn open(
    world: &World,
    c: &Rc<RefCell<DiskState>>,
    b: &Rc<RefCell<DiskState>>,
    store: &Store,
    o: Options,
) -> Rc<Server<World>> {
    let store = store.clone();
    let f = Server::open(
        world.clone(),
        vec![world.device(c)],
        vec![world.device(b)],
        move |_| Some(store.clone()),
        o,
    );
    world
        .run(f, || false)
        .expect("ends")
        .unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn fua_over_a_hole_that_is_not_durable() {
    let chance = Chance::new(7);
    let (c, b) = disks(600, 64, 8, 20000);
    let store = Store::default();
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let server = open(&world, &c, &b, &store, options(false));
    let v = server.volumes()[0].clone();
    let run = async move {
        let w = |first: u64, count: usize, byte: u8, fua: bool| {
            let mut buf = v.buffer(count * 512);
            buf.fill(byte);
            v.write(StreamId(1), first * 512, buf, fua)
        };
        w(0, 8, 0xaa, false).await.unwrap();
        v.flush().await.unwrap();
        w(1, 6, 0xbb, false).await.unwrap();
        w(1, 6, 0xcc, true).await.unwrap();
    };
    world.run(run, || false).expect("done");
    world.kill();
    drop(server);
    c.borrow_mut().end(End::PowerLoss, &chance);
    b.borrow_mut().end(End::PowerLoss, &chance);
    store.0.borrow_mut().clear();
    let world = World::new(chance.clone(), Duration::from_secs(100));
    let server = open(&world, &c, &b, &store, options(false));
    let v = server.volumes()[0].clone();
    let got = world
        .run(
            async move { v.read(StreamId(1), 512, 512).await.unwrap()[0] },
            || false,
        )
        .unwrap();
    assert_eq!(got, 0xcc, "FUA write lost, reads {got:x}");
}

#[test]
fn a_backing_flush_that_failed_in_the_background_is_told() {
    let chance = Chance::new(7);
    let (c, b) = disks(600, 64, 8, 20000);
    let store = Store::default();
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let server = open(&world, &c, &b, &store, options(false));
    let v = server.volumes()[0].clone();
    let (b2, w) = (b.clone(), world.clone());
    let r = world
        .run(
            async move {
                v.flush().await.unwrap();
                let mut buf = v.buffer(6 * 512);
                buf.fill(0xbb);
                v.write(StreamId(1), 512, buf, false).await.unwrap();
                b2.borrow_mut().faults.flush_in = Some(0);
                v.read(StreamId(1), 4096 * 100, 4096).await.unwrap();
                w.sleep(Duration::from_secs(1)).await;
                {
                    let happened = b2.borrow().faults_happened;
                    let told = v.flush().await.is_err();
                    (happened, told)
                }
            },
            || false,
        )
        .unwrap();
    assert!(r.0 == 1 && r.1, "flush acknowledged after a failed one");
}

#[test]
fn a_stop_with_requests_running_ends_in_order() {
    for seed in 0..30 {
        let chance = Chance::new(seed);
        let (c, b) = disks(600, 64, 8, 20000);
        let store = Store::default();
        let world = World::new(chance.clone(), Duration::from_secs(1));
        let server = open(&world, &c, &b, &store, options(false));
        let v = server.volumes()[0].clone();
        for i in 0..200u64 {
            let (v, w) = (v.clone(), world.clone());
            let at = Duration::from_micros(chance.below(60_000));
            world.spawn(async move {
                w.sleep(at).await;
                let buf = v.buffer(4096);
                let _ = v.write(StreamId(1), i * 4096, buf, false).await;
            });
        }
        let (s, w) = (server.clone(), world.clone());
        let out = world.run(
            async move {
                w.sleep(Duration::from_millis(5)).await;
                s.stop().await.is_ok()
            },
            || false,
        );
        assert_eq!(out, Some(true), "seed {seed}");
    }
}

#[test]
fn stop_ends_when_leaves_split() {
    for seed in 0..3 {
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
