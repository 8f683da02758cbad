//! Generations come round after 256 reuses, so no old pointer may stay in the tree, not even a stale one to a node.

use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::{Gen, Ptr};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, load, open, options, write_gens};
use std::collections::BTreeSet;
use std::time::Duration;

#[test]
fn a_collection_leaves_no_stale_pointer_to_a_node() {
    const FAR: u8 = 70;
    let chance = Chance::new(19);
    let (c, b) = disks(2000, 8, 1, 40_000);
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let server = open(&world, &c, &b, &Store::default(), options(false));
    let v = server.volumes()[0].clone();
    let story = async move {
        // Leaves that split leave stale pointers in the root's first sets.
        for number in 0..2000u64 {
            let at = number * 7919 % 2000 * 2;
            let buffer = v.buffer(512);
            v.write(StreamId(1), at * 512, buffer, false).await.unwrap();
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
    assert!(!stale.is_empty(), "the root still names replaced leaves");
    // Their buckets seem to have been reused many times since, for nothing that is still there.
    write_gens(&mut c.borrow_mut(), &loaded, &layout, |nr| {
        let old = Gen(loaded.oldest_gens[nr].0.wrapping_add(FAR));
        let is_free = stale.contains(&nr) && !in_use.contains(&nr);
        let now = if is_free { old } else { loaded.gens[nr] };
        (loaded.prios[nr], now)
    });
    let (aged, _) = load(&c, chance.clone());
    let distance = |nr: &usize| aged.gens[*nr].after(aged.oldest_gens[*nr]);
    let far: Vec<usize> = stale.into_iter().filter(|nr| distance(nr) == FAR).collect();
    assert!(!far.is_empty(), "some are {FAR} behind");

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
