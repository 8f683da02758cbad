//! Orders that were wrong once: each test is a story of acknowledged data that was lost, or of a stop that did not end.

use brigade_engine::AckPolicy;
use brigade_engine::settings::Knob;
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_sim::disk::{End, Io};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, open, options};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

const JOURNAL_MAGIC: u64 = 0x2452_35c1_a362_5032;
const TABLE_MAGIC: u64 = 0x6750_e15f_8733_7f91;

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

/// T122.
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

/// How long the backing device of a story takes.
#[derive(Clone)]
struct Tempo {
    /// Writes of the range that the story is about.
    here: Rc<Cell<Duration>>,
    /// Other writes.
    elsewhere: Rc<Cell<Duration>>,
    flushes: Rc<Cell<Duration>>,
}

/// T101.
#[test]
fn a_copy_that_was_overtaken_stays_out_although_what_overtook_it_is_gone() {
    const BUCKET: u64 = 128;
    const BLOCK: u64 = 8;
    // The range of the story, and another one.
    const HERE: u64 = 119_200;
    const THERE: u64 = 119_000;
    let instant = Duration::from_micros(100);
    let chance = Chance::new(7);
    let (c, b) = disks(520, BUCKET, BLOCK, 120_000);
    let cell = |time| Rc::new(Cell::new(time));
    let tempo = Tempo {
        here: cell(instant),
        elsewhere: cell(Duration::from_secs(5)),
        flushes: cell(instant),
    };
    let of_backing = tempo.clone();
    b.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        Some(match io {
            Io::Read(_) => instant,
            // The volume begins at sector 16.
            Io::Write(at, _) if at == (16 + HERE) * 512 => of_backing.here.get(),
            Io::Write(..) => of_backing.elsewhere.get(),
            Io::Flush => of_backing.flushes.get(),
        })
    }));
    c.borrow_mut().pace = Some(Rc::new(move |_: Io<'_>| Some(instant)));
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let running = options(true).with(Knob::WritebackDelay, 20_000);
    let server = open(&world, &c, &b, &Store::default(), running);
    let (v, w) = (server.volumes()[0].clone(), world.clone());
    let story = async move {
        let write = |stream: u16, first: u64, sectors: u64, byte: u8| {
            let mut buffer = v.buffer(sectors as usize * 512);
            buffer.fill(byte);
            v.write(StreamId(stream), first * 512, buffer, false)
        };
        let in_use = || {
            let buckets = server.status().cache_sets[0].devices[0].buckets;
            (buckets.dirty + buckets.metadata) * 100 / buckets.total
        };
        // 0 not cached, 1 clean, 2 dirty.
        let cached = || {
            let status = BlockDevice::status(&*v, HERE * 512, BLOCK * 512, 1);
            async move { status.await.unwrap()[0].cache_state }
        };
        // More of the cache is in use than a write may become dirty with.
        let mut at = 0;
        while in_use() <= 70 {
            write(1, at, BUCKET, 0x11).await.unwrap();
            at += BUCKET;
        }
        // So this one goes to the backing device, which takes its time, and a copy of it is to enter the cache.
        tempo.here.set(Duration::from_secs(100));
        let (old, is_done) = (write(2, HERE, BLOCK, 0xaa), Rc::new(Cell::new(false)));
        let done = is_done.clone();
        w.spawn(async move {
            old.await.unwrap();
            done.set(true);
        });
        // Meanwhile others are written back, and a newer write of the same range becomes dirty.
        tempo.elsewhere.set(instant);
        while in_use() > 60 {
            w.sleep(Duration::from_millis(10)).await;
        }
        tempo.here.set(instant);
        write(3, HERE, BLOCK, 0xbb).await.unwrap();
        assert!(cached().await == 2 && !is_done.get(), "it overtakes");
        // Of its bucket nothing else is live, so it goes first when one is recycled.
        for _ in 0..2 {
            write(3, THERE, BUCKET - BLOCK, 0x22).await.unwrap();
        }
        while !is_done.get() {
            w.sleep(Duration::from_millis(1)).await;
        }
        // The newer one is written back before the flush begins that the copy waits for.
        while cached().await == 2 {
            w.sleep(Duration::from_millis(1)).await;
        }
        tempo.flushes.set(Duration::from_secs(100));
        // During that flush its bucket is recycled.
        while cached().await != 0 {
            at += BUCKET;
            assert!(at + BUCKET <= THERE, "it stays");
            v.read(StreamId(2), at * 512, BUCKET as usize * 512)
                .await
                .unwrap();
        }
        // A copy would enter now, and be read at once.
        let until = w.now() + Duration::from_secs(250);
        while cached().await == 0 && w.now() < until {
            w.sleep(Duration::from_millis(1)).await;
        }
        let got = v
            .read(StreamId(3), HERE * 512, BLOCK as usize * 512)
            .await
            .unwrap();
        assert!(got.iter().all(|byte| *byte == 0xbb), "reads {:x}", got[0]);
    };
    world.run(story, || false).expect("ends");
}

#[test]
fn zeroes_over_dirty_data_that_an_unacknowledged_write_hides_survive_with_it_or_alone() {
    for seed in 0..8 {
        let seen = dirty_data_hidden_twice(seed);
        assert_ne!(seen, (true, 0xaa), "seed {seed}: the old data is back");
    }
}

#[test]
fn an_opening_makes_what_it_read_durable_before_it_writes() {
    let chance = Chance::new(7);
    let (c, b) = disks(600, 8, 1, 20_000);
    let store = Store::default();
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let server = open(&world, &c, &b, &store, options(false));
    // No table is ever done, so buckets are used up and none is recycled, which the next opening has to do at once.
    let magic = u64::from_le_bytes([9; 8]) ^ TABLE_MAGIC;
    let is_table =
        move |io: &Io<'_>| matches!(io, Io::Write(_, data) if data[8..16] == magic.to_le_bytes());
    c.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        Some(Duration::from_micros(if is_table(&io) {
            1 << 40
        } else {
            100
        }))
    }));
    let (v, w) = (server.volumes()[0].clone(), world.clone());
    let story = async move {
        let buffer = v.buffer(4096);
        v.write(StreamId(1), 0, buffer, false).await.unwrap();
        for block in 0..1000 {
            v.read(StreamId(1), block * 4096, 4096).await.unwrap();
        }
        // The journal gets all keys.
        w.sleep(Duration::from_secs(1)).await;
    };
    world.run(story, || false).expect("ends");
    world.kill();
    drop(server);
    // Of each device, when its first flush is done, whether it was written before that, and whether with a table first.
    let flush = Duration::from_secs(1);
    let world = World::new(chance.clone(), Duration::from_secs(100));
    let watched = [&c, &b].map(|disk| {
        let seen = Rc::new(Cell::new((Duration::MAX, false, None)));
        let (of_disk, clock) = (seen.clone(), world.clone());
        disk.borrow_mut().end(End::Kill, &chance);
        disk.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
            let (done, is_early, first) = of_disk.get();
            let now = clock.now();
            of_disk.set(match io {
                Io::Flush => (done.min(now + flush), is_early, first),
                Io::Write(..) => {
                    let first = first.or(Some(is_table(&io)));
                    (done, is_early || now < done, first)
                }
                Io::Read(_) => (done, is_early, first),
            });
            let time = if matches!(io, Io::Flush) {
                flush
            } else {
                flush / 10_000
            };
            Some(time)
        }));
        seen
    });
    // What the record in memory has would be journalled first, behind a flush.
    let _server = open(&world, &c, &b, &Store::default(), options(false));
    for seen in &watched {
        let (done, is_early, _) = seen.get();
        assert!(done <= world.now() && !is_early, "{done:?} {is_early}");
    }
    // Other writes to the cache device wait for a flush of their own.
    assert_eq!(watched[0].get().2, Some(true), "nothing is recycled");
}

#[cfg(feature = "instrumented")]
#[test]
fn and_without_waiting_for_its_key_they_do_not() {
    use brigade_engine::mutations::{Mutation, choose};
    choose(Some(Mutation::DirectHiddenVolatile));
    let is_lost = |seed| dirty_data_hidden_twice(seed) == (true, 0xaa);
    let lost = (0..8).any(is_lost);
    choose(None);
    assert!(lost, "nothing is lost");
}

/// Dirty data is written, then zeroes over it, and while these wait for the backing device a newer write hides the data with a
/// key that the journal takes long to store. Then the process dies. Says whether the zeroes were acknowledged, and what is read.
fn dirty_data_hidden_twice(seed: u64) -> (bool, u8) {
    let instant = Duration::from_micros(100);
    let chance = Chance::new(seed);
    let (c, b) = disks(600, 64, 8, 20_000);
    let magic = u64::from_le_bytes([9; 8]) ^ JOURNAL_MAGIC;
    let (journal, flushes) = (Rc::new(Cell::new(instant)), Rc::new(Cell::new(instant)));
    let (of_journal, of_flushes) = (journal.clone(), flushes.clone());
    c.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        let is_entry = matches!(io, Io::Write(_, data) if data[8..16] == magic.to_le_bytes());
        Some(if is_entry { of_journal.get() } else { instant })
    }));
    b.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        Some(if matches!(io, Io::Flush) {
            of_flushes.get()
        } else {
            instant
        })
    }));
    let store = Store::default();
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let mut waiting = options(false);
    waiting.ack = AckPolicy::Journal;
    let server = open(&world, &c, &b, &store, waiting.clone());
    let (v, w) = (server.volumes()[0].clone(), world.clone());
    let story = async move {
        let write = |byte: u8| {
            let mut buffer = v.buffer(4096);
            buffer.fill(byte);
            v.write(StreamId(1), 0, buffer, false)
        };
        write(0xaa).await.unwrap();
        flushes.set(Duration::from_secs(10));
        let is_done = Rc::new(Cell::new(false));
        let (zeroes, done) = (
            v.write_zeroes(0, 4096, false, false, false),
            is_done.clone(),
        );
        w.spawn(async move {
            zeroes.await.unwrap();
            done.set(true);
        });
        w.sleep(Duration::from_secs(5)).await;
        journal.set(Duration::from_secs(100));
        let newer = write(0xbb);
        w.spawn(async move { drop(newer.await) });
        w.sleep(Duration::from_secs(45)).await;
        is_done.get()
    };
    let is_done = world.run(story, || false).expect("ends");
    world.kill();
    drop(server);
    c.borrow_mut().end(End::Kill, &chance);
    b.borrow_mut().end(End::Kill, &chance);
    let world = World::new(chance, Duration::from_secs(1000));
    c.borrow_mut().pace = None;
    b.borrow_mut().pace = None;
    let server = open(&world, &c, &b, &store, waiting);
    let v = server.volumes()[0].clone();
    let read = async move { v.read(StreamId(1), 0, 512).await.unwrap()[0] };
    (is_done, world.run(read, || false).expect("ends"))
}

#[test]
fn a_read_larger_than_the_cache_ends_although_its_misses_recycle_its_hits() {
    const BUCKETS: u64 = 600;
    const BUCKET: u64 = 8 * 512;
    let (c, b) = disks(BUCKETS, 8, 8, 20_000);
    // Nothing is hit as fast as misses are filled.
    c.borrow_mut().pace = Some(Rc::new(|io: Io<'_>| {
        Some(match io {
            Io::Read(_) => Duration::from_millis(100),
            _ => Duration::from_micros(1),
        })
    }));
    b.borrow_mut().pace = Some(Rc::new(|_: Io<'_>| Some(Duration::from_micros(1))));
    let world = World::new(Chance::new(3), Duration::from_secs(1));
    let server = open(&world, &c, &b, &Store::default(), options(true));
    let v = server.volumes()[0].clone();
    let ended = server.clone();
    let story = async move {
        for bucket in 0..BUCKETS {
            v.read(StreamId(1), bucket * BUCKET, BUCKET as usize)
                .await
                .unwrap();
        }
        v.read(StreamId(2), 0, 2 * (BUCKETS * BUCKET) as usize)
            .await
            .unwrap();
        ended.stop().await.unwrap();
    };
    let limit = Duration::from_secs(20);
    world.run(story, || world.now() > limit).expect("ends");
}
