//! Orders that were wrong once: each test is a story of acknowledged data that was lost, or of a stop that did not end.

use brigade_env::{BlockDevice, Env, StreamId};
use brigade_sim::disk::End;
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, open, options};
use std::time::Duration;

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
