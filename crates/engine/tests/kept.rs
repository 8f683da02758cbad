//! What the tree kept against a key of the journal (F47, proved newer) outlives openings that are killed, whatever place the ring has.

use brigade_engine::Server;
use brigade_engine::marks::{self, Mark};
use brigade_env::{BlockDevice, StreamId};
use brigade_format::{Gen, Key, Ptr, key_words, node};
use brigade_sim::disk::{DiskState, End};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, fill_ring, load, open, options, write_gens};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

type Disk = Rc<RefCell<DiskState>>;

const BUCKET: u64 = 64;
const BYTES: usize = 8 * 512;
const VALUE: u8 = 0x33;

/// Sectors 0..8 are dirty. The leaf and the journal have an older dirty key of sectors 2..4 too, to a bucket that was recycled since;
/// the ring has so many buckets free, and so many blocks of the one before.
fn kept(chance: &Chance, free: (usize, usize)) -> (Disk, Disk) {
    let (cache, backing) = disks(600, BUCKET, 8, 20000);
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let server = open(&world, &cache, &backing, &Store::default(), options(false));
    let volume = server.volumes()[0].clone();
    let life = async move {
        let mut buffer = volume.buffer(BYTES);
        buffer.fill(VALUE);
        volume
            .write(StreamId(1), 0, buffer, false)
            .await
            .expect("write");
        server.stop().await.expect("stop");
    };
    world.run(life, || false).expect("ends");
    world.kill();

    let (loaded, layout) = load(&cache, chance.clone());
    let newer = loaded.index.iter().next().expect("what was written");
    let recycled = layout.nbuckets - 1;
    let older = Key::extent(
        newer.inode,
        newer.start + 2,
        2,
        Ptr::new(recycled * BUCKET, loaded.gens[recycled as usize]),
        true,
    );
    let leaf = loaded.nodes.last().expect("a leaf").key;
    let place = leaf.ptr(0).expect("a place");
    for (at, key) in (0..).zip([older, newer.to_key()]) {
        let set = node::encode_bset(
            &key_words(&[key]),
            7,
            place,
            layout.set_magic,
            layout.block_bytes(),
        );
        let sector = place.sector() + at * u64::from(layout.block_sectors);
        cache.borrow_mut().poke(sector * 512, &set);
    }
    write_gens(&mut cache.borrow_mut(), &loaded, &layout, |nr| {
        let more = u8::from(nr as u64 == recycled);
        let now = Gen(loaded.gens[nr].0.wrapping_add(more));
        (loaded.prios[nr], now)
    });
    fill_ring(&cache, chance.clone(), &[older], free);
    (cache, backing)
}

/// Opens, and kills that after so many operations. Whether it came to its end before.
fn open_and_kill(disks: &(Disk, Disk), chance: &Chance, operations: u64) -> bool {
    let world = World::new(chance.clone(), Duration::from_secs(50));
    let opening = Server::open(
        world.clone(),
        vec![world.device(&disks.0)],
        vec![world.device(&disks.1)],
        |_| Some(Store::default()),
        options(false),
    );
    let opened = world.run(opening, || world.device_operations() >= operations);
    world.kill();
    disks.0.borrow_mut().end(End::Kill, chance);
    disks.1.borrow_mut().end(End::Kill, chance);
    if let Some(Err(error)) = &opened {
        panic!("killed after {operations}: {error}");
    }
    opened.is_some()
}

/// What sectors 0..8 are, and how much is dirty.
fn content(disks: &(Disk, Disk), chance: &Chance) -> (Vec<u8>, u64) {
    let world = World::new(chance.clone(), Duration::from_secs(100));
    let server = open(
        &world,
        &disks.0,
        &disks.1,
        &Store::default(),
        options(false),
    );
    let volume = server.volumes()[0].clone();
    let life = async move {
        let read = volume.read(StreamId(1), 0, BYTES).await.expect("read");
        let dirty = volume.dirty_bytes();
        server.stop().await.expect("stop");
        (read.to_vec(), dirty)
    };
    let content = world.run(life, || false).expect("ends");
    world.kill();
    content
}

#[test]
fn what_the_tree_kept_is_journalled_where_the_ring_has_a_place_and_stays_anyway() {
    let rings = [
        ((1, 0), false),
        ((0, 1), false),
        ((0, 2), true),
        ((1, 1), true),
    ];
    for (free, has_place) in rings {
        let mut kills = 0;
        marks::take();
        for operations in 1..40 {
            let chance = Chance::new(operations);
            let disks = kept(&chance, free);
            for _ in 0..20 {
                if open_and_kill(&disks, &chance, operations) {
                    break;
                }
                kills += 1;
            }
            assert_eq!(
                content(&disks, &chance),
                (vec![VALUE; BYTES], BYTES as u64),
                "{free:?}, killed after {operations}"
            );
        }
        assert!(kills > 20, "they were killed at all: {kills}");
        let left_out = marks::hits(Mark::KeptKeysNotJournalled);
        assert!(
            !cfg!(feature = "instrumented") || (left_out == 0) == has_place,
            "{free:?}: {left_out} times of {kills}"
        );
    }
}
