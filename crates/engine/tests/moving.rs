//! Moving gc: a cache whose buckets are mostly dead, though none can be recycled, and what becomes of it.

use brigade_engine::marks::{self, Mark};
use brigade_engine::settings::Knob;
use brigade_engine::{Server, Volume};
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_sim::disk::Io;
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, open, options};
use std::rc::Rc;
use std::time::Duration;

const BUCKETS: u64 = 600;
const BUCKET_SECTORS: u64 = 64;
const BLOCK_SECTORS: u64 = 8;
/// Buckets that are filled, well above the share from which on data moves.
const FILLED: u64 = 360;
/// Blocks of them, one after the other in the volume.
const BLOCKS: u64 = FILLED * BUCKET_SECTORS / BLOCK_SECTORS;
const BLOCK_BYTES: u64 = BLOCK_SECTORS * 512;

/// Marks are counted with the feature `instrumented` only.
fn assert_reached(mark: Mark) {
    assert!(
        !cfg!(feature = "instrumented") || marks::hits(mark) > 0,
        "{mark:?} is not reached"
    );
}

async fn write(volume: &Rc<Volume<World>>, block: u64, value: u8) {
    let mut buffer = volume.buffer(BLOCK_BYTES as usize);
    buffer.fill(value);
    let at = block * BLOCK_BYTES;
    volume.write(StreamId(1), at, buffer, false).await.unwrap();
}

async fn read(volume: &Rc<Volume<World>>, block: u64) -> u8 {
    let at = block * BLOCK_BYTES;
    let found = volume.read(StreamId(2), at, BLOCK_BYTES as usize).await;
    let found = found.unwrap();
    assert!(found.iter().all(|byte| *byte == found[0]), "block {block}");
    found[0]
}

fn first(block: u64) -> u8 {
    (block % 97) as u8 + 1
}

/// Of each four blocks the first stays as it was written; the others are dropped by writing zeroes, which bypass the cache.
fn is_kept(block: u64) -> bool {
    block.is_multiple_of(4)
}

/// Fills buckets with dirty data and lets three quarters of each die.
async fn fragment(volume: &Rc<Volume<World>>) {
    for block in 0..BLOCKS {
        write(volume, block, first(block)).await;
    }
    for block in (0..BLOCKS).filter(|block| !is_kept(*block)) {
        let at = block * BLOCK_BYTES;
        volume
            .write_zeroes(at, BLOCK_BYTES, false, false, false)
            .await
            .unwrap();
    }
}

async fn check(volume: &Rc<Volume<World>>) {
    for block in 0..BLOCKS {
        let expected = if is_kept(block) { first(block) } else { 0 };
        assert_eq!(read(volume, block).await, expected, "block {block}");
    }
}

fn dirty_buckets(server: &Server<World>) -> u64 {
    server.status().cache_sets[0].devices[0].buckets.dirty
}

/// T96, T97.
#[test]
fn a_fragmented_cache_is_compacted_and_what_is_dirty_stays_dirty() {
    marks::take();
    let (c, b) = disks(BUCKETS, BUCKET_SECTORS, BLOCK_SECTORS, 80_000);
    let store = Store::default();
    for moving_gc in [false, true] {
        let world = World::new(Chance::new(5), Duration::from_secs(1));
        let how = options(false).with(Knob::CopyGcEnabled, u64::from(moving_gc));
        let server = open(&world, &c, &b, &store, how);
        let (s, v, w) = (server.clone(), server.volumes()[0].clone(), world.clone());
        let story = async move {
            if !moving_gc {
                fragment(&v).await;
            }
            // Nobody asks for anything, but for a write now and then that makes it look again.
            for _ in 0..40 {
                w.sleep(Duration::from_secs(2)).await;
                write(&v, 0, first(0)).await;
            }
            s.audit();
            let gc = s.status().cache_sets[0].gc.clone();
            let after = (dirty_buckets(&s), v.dirty_bytes());
            check(&v).await;
            s.stop().await.unwrap();
            assert!(s.status().errors.is_empty(), "{:?}", s.status().errors);
            (after, gc)
        };
        let ((buckets, dirty), gc) = world.run(story, || false).expect("ends");
        world.kill();
        assert_eq!(dirty, BLOCKS / 4 * BLOCK_BYTES, "what is dirty stays dirty");
        if !moving_gc {
            assert!(buckets + 2 >= FILLED, "{buckets}");
            assert_eq!((gc.moved_bytes, gc.moved_buckets), (0, 0));
            continue;
        }
        // Until half of the cache is free again; then it does not pay any more.
        assert!(buckets <= BUCKETS / 2, "{buckets} {gc:?}");
        let emptied = FILLED - 2 - buckets;
        assert!(gc.moved_buckets >= emptied, "{gc:?}");
        // Each emptied bucket was a quarter full.
        let bucket_bytes = BUCKET_SECTORS * 512;
        assert!(gc.moved_bytes >= emptied * bucket_bytes / 4, "{gc:?}");
        assert!(
            gc.moved_bytes <= gc.moved_buckets * bucket_bytes / 2,
            "{gc:?}"
        );
        println!("{FILLED} dirty buckets became {buckets}: {gc:?}");
        assert_reached(Mark::MoveDirty);
    }
    // In the next session the new places count as the old ones did.
    let world = World::new(Chance::new(6), Duration::from_secs(1));
    let server = open(&world, &c, &b, &store, options(true));
    let (s, v) = (server.clone(), server.volumes()[0].clone());
    let story = async move {
        check(&v).await;
        s.stop().await.unwrap();
    };
    world.run(story, || false).expect("ends");
}

#[test]
fn busy_clients_leave_a_fifth_of_what_they_write_for_moving() {
    let (c, b) = disks(BUCKETS, BUCKET_SECTORS, BLOCK_SECTORS, 80_000);
    let world = World::new(Chance::new(5), Duration::from_secs(1));
    let how = options(false).with(Knob::CopyGcEnabled, 1);
    let server = open(&world, &c, &b, &Store::default(), how);
    let (s, v, w) = (server.clone(), server.volumes()[0].clone(), world.clone());
    let story = async move {
        fragment(&v).await;
        for number in 0..3000 {
            // One place over and over: dirty data, but hardly any more buckets of it.
            write(&v, 4 * (number % 16), first(4 * (number % 16))).await;
            w.sleep(Duration::from_millis(20)).await;
        }
        let gc = s.status().cache_sets[0].gc.clone();
        let written = v.status().expect("it is served").writes.bytes;
        check(&v).await;
        s.stop().await.unwrap();
        (gc.moved_bytes, written)
    };
    let (moved, written) = world.run(story, || false).expect("ends");
    assert!(moved > 0);
    // One batch may begin with next to no credit.
    let batch = 16 * BUCKET_SECTORS * 512;
    assert!(moved <= written / 5 + batch, "{moved} of {written}");
}

/// T95: the range is locked while it moves, so the write comes after it; what can be lost is a range that was dropped or written
/// before the lock.
#[test]
fn a_write_beats_a_move_of_the_same_range() {
    marks::take();
    let (c, b) = disks(BUCKETS, BUCKET_SECTORS, BLOCK_SECTORS, 80_000);
    let store = Store::default();
    let world = World::new(Chance::new(5), Duration::from_secs(1));
    let server = open(&world, &c, &b, &store, options(false));
    let (s, v) = (server.clone(), server.volumes()[0].clone());
    let first_session = async move {
        fragment(&v).await;
        s.stop().await.unwrap();
    };
    world.run(first_session, || false).expect("ends");
    world.kill();
    // Copies are long under way.
    let pace = |io: Io<'_>| {
        Some(match io {
            Io::Write(..) => Duration::from_millis(60),
            _ => Duration::from_micros(100),
        })
    };
    c.borrow_mut().pace = Some(Rc::new(pace));
    let newer = |block: u64| first(block) + 100;
    for is_moving in [true, false] {
        let world = World::new(Chance::new(6), Duration::from_secs(1));
        let how = options(false).with(Knob::CopyGcEnabled, u64::from(is_moving));
        let server = open(&world, &c, &b, &store, how);
        let (s, v, w) = (server.clone(), server.volumes()[0].clone(), world.clone());
        let story = async move {
            for block in (0..BLOCKS).filter(|block| is_moving && is_kept(*block)) {
                let v = v.clone();
                w.spawn(async move { write(&v, block, newer(block)).await });
                w.sleep(Duration::from_millis(20)).await;
            }
            w.sleep(Duration::from_secs(60)).await;
            for block in (0..BLOCKS).filter(|block| is_kept(*block)) {
                assert_eq!(read(&v, block).await, newer(block), "block {block}");
            }
            let gc = s.status().cache_sets[0].gc.clone();
            assert!(!is_moving || gc.moved_buckets > 10, "{gc:?}");
            s.stop().await.unwrap();
        };
        world.run(story, || false).expect("ends");
        world.kill();
    }
}
