//! Generations come round after 256 reuses, so no old pointer may stay in the tree, not even a stale one to a node.

use brigade_engine::Volume;
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::{Gen, Ptr};
use brigade_sim::disk::{DiskState, End};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, load, open, options, write_gens};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

const SECTORS: u64 = 2000;

type Disk = Rc<RefCell<DiskState>>;

/// A set whose root names leaves that were replaced, and the buckets of these, which nothing uses since. They seem to have been
/// reused until they are so far ahead of the root's stale pointers.
fn aged(chance: &Chance, far: u8) -> (Disk, Disk, BTreeSet<usize>) {
    // A root that was written last of all names none.
    let mut tries = (0..20).map(|more| aged_by(chance, far, SECTORS + 50 * more));
    let found = tries.find(|(_, _, far)| !far.is_empty());
    found.expect("the root still names replaced leaves")
}

fn aged_by(chance: &Chance, far: u8, writes: u64) -> (Disk, Disk, BTreeSet<usize>) {
    let (c, b) = disks(2000, 8, 1, 40_000);
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let server = open(&world, &c, &b, &Store::default(), options(false));
    let v = server.volumes()[0].clone();
    let story = async move {
        for number in 0..writes {
            write(&v, number).await;
        }
        server.stop().await.unwrap();
    };
    world.run(story, || false).expect("ends");
    world.kill();

    let (loaded, layout) = load(&c, chance.clone());
    let nodes = loaded.nodes.iter().filter_map(|node| node.key.ptr(0));
    let data = loaded.index.iter().filter_map(|extent| extent.ptr);
    let place = |ptr: Ptr| ptr.bucket(layout.bucket_sectors).0 as usize;
    let in_use: BTreeSet<usize> = nodes.chain(data).map(place).collect();
    let is_stale = |nr: &usize| loaded.gens[*nr] != loaded.oldest_gens[*nr];
    let stale: BTreeSet<usize> = (0..loaded.gens.len()).filter(is_stale).collect();
    write_gens(&mut c.borrow_mut(), &loaded, &layout, |nr| {
        let old = Gen(loaded.oldest_gens[nr].0.wrapping_add(far));
        let is_free = stale.contains(&nr) && !in_use.contains(&nr);
        let now = if is_free { old } else { loaded.gens[nr] };
        (loaded.prios[nr], now)
    });
    let (aged, _) = load(&c, chance.clone());
    let distance = |nr: &usize| aged.gens[*nr].after(aged.oldest_gens[*nr]);
    let far: BTreeSet<usize> = stale.into_iter().filter(|nr| distance(nr) == far).collect();
    (c, b, far)
}

/// Writes one of the sectors all over the volume, none beside another.
async fn write(v: &Rc<Volume<World>>, number: u64) {
    let at = number * 7919 % SECTORS * 2;
    let buffer = v.buffer(512);
    v.write(StreamId(1), at * 512, buffer, false).await.unwrap();
}

/// T6.
#[test]
fn a_collection_leaves_no_stale_pointer_to_a_node() {
    let chance = Chance::new(19);
    let (c, b, far) = aged(&chance, 70);
    let world = World::new(chance.clone(), Duration::from_secs(100));
    let server = open(&world, &c, &b, &Store::default(), options(false));
    let w = world.clone();
    let story = async move {
        w.sleep(Duration::from_secs(60)).await;
        let passes = server.status().cache_sets[0].gc.passes;
        server.stop().await.unwrap();
        passes
    };
    let passes = world.run(story, || false).expect("ends");
    world.kill();
    assert_eq!(passes, 1, "one collection is enough");
    let (after, _) = load(&c, chance);
    for nr in far {
        let behind = after.gens[nr].after(after.oldest_gens[nr]);
        assert!(behind < 3, "a pointer is {behind} gens behind bucket {nr}");
    }
}

/// T8, T91.
#[test]
fn when_a_collection_ends_nothing_from_before_it_is_replayed() {
    let chance = Chance::new(19);
    let (c, b, _) = aged(&chance, 63);
    let world = World::new(chance.clone(), Duration::from_secs(100));
    let server = open(&world, &c, &b, &Store::default(), options(false));
    let (s, v, w) = (server.clone(), server.volumes()[0].clone(), world.clone());
    let story = async move {
        // Leaves have something pending, which entries of the journal have, when a bucket is taken once too often.
        let status = || s.status().cache_sets.remove(0);
        let (mut seq, mut number) = (0, 0);
        while status().gc.passes == 0 {
            if status().gc.generations_behind < 64 {
                seq = status().journal.seq;
            }
            write(&v, number).await;
            w.sleep(Duration::from_micros(100)).await;
            number += 1;
            assert!(number < 20 * SECTORS, "a collection is due");
        }
        seq
    };
    let before = world.run(story, || false).expect("ends");
    world.kill();
    drop(server);
    for disk in [&c, &b] {
        disk.borrow_mut().end(End::Kill, &chance);
    }
    let (loaded, _) = load(&c, chance);
    let needed = loaded.newest.last_seq;
    assert!(
        needed > before,
        "entries from {needed} on are replayed, and {before} is old"
    );
}
