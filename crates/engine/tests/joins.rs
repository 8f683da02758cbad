//! Trees that lose most of what they hold: nodes with few children become one, levels go, and nothing else does, wherever that is
//! cut off.

use brigade_engine::marks::{self, Mark};
use brigade_engine::{BtreeStatus, Server};
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_sim::disk::DiskState;
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, load, open, options};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// Sectors that hold something in the end.
const LEFT: u64 = 20;
/// Buckets that are filled with something else meanwhile, where nodes are to be reused soon.
const READS: u64 = 800;
/// Passes after which nothing changes any more.
const PASSES: u64 = 8;

/// A set at rest.
struct Rest {
    cache: Rc<RefCell<DiskState>>,
    backing: Rc<RefCell<DiskState>>,
    chance: Chance,
    /// Every other sector, up to twice as many, was cached.
    sectors: u64,
}

impl Rest {
    /// Many sectors were cached, none beside another, then all were discarded, and a few written all over the volume.
    fn after_loss(buckets: u64, sectors: u64) -> (Rest, BtreeStatus) {
        let (cache, backing) = disks(buckets, 8, 1, 2 * sectors + 8 * READS);
        let rest = Rest {
            cache,
            backing,
            chance: Chance::new(23),
            sectors,
        };
        let (world, server) = rest.serve();
        let (s, v) = (server.clone(), server.volumes()[0].clone());
        let story = async move {
            for number in 0..sectors {
                let at = number * 7919 % sectors * 2;
                v.read(StreamId(1), at * 512, 512).await.unwrap();
            }
            s.collect();
            while s.status().cache_sets[0].gc.passes == 0 {
                v.read(StreamId(1), 0, 512).await.unwrap();
            }
            let grown = s.status().cache_sets[0].btree;
            v.discard(0, 2 * sectors * 512, false).await.unwrap();
            for number in 0..LEFT {
                let mut buffer = v.buffer(512);
                buffer.fill(number as u8 + 1);
                let at = place(number, sectors);
                v.write(StreamId(1), at * 512, buffer, false).await.unwrap();
            }
            s.stop().await.unwrap();
            grown
        };
        let grown = world.run(story, || false).expect("ends");
        world.kill();
        (rest, grown)
    }

    fn serve(&self) -> (World, Rc<Server<World>>) {
        let world = World::new(self.chance.clone(), Duration::from_secs(100));
        let (cache, backing) = (&self.cache, &self.backing);
        let server = open(&world, cache, backing, &Store::default(), options(false));
        (world, server)
    }

    #[cfg(feature = "instrumented")]
    fn fork(&self) -> Rest {
        Rest {
            cache: self.cache.borrow().fork(),
            backing: self.backing.borrow().fork(),
            chance: self.chance.clone(),
            sectors: self.sectors,
        }
    }

    #[cfg(feature = "instrumented")]
    fn end(&self, end: brigade_sim::disk::End) {
        for disk in [&self.cache, &self.backing] {
            disk.borrow_mut().end(end, &self.chance);
        }
    }

    /// It opens, is sound, and holds what is left; gives the tree after so many passes, when it was stopped.
    fn check(&self, passes: u64) -> BtreeStatus {
        let (world, server) = self.serve();
        let (s, w, v, sectors) = (
            server.clone(),
            world.clone(),
            server.volumes()[0].clone(),
            self.sectors,
        );
        let story = async move {
            collect(&s, &w, passes).await;
            for number in 0..LEFT {
                let at = place(number, sectors);
                let got = v.read(StreamId(1), at * 512, 512).await.unwrap();
                let is_it = got.iter().all(|byte| *byte == number as u8 + 1);
                assert!(is_it, "sector {at} reads {:x}", got[0]);
            }
            s.audit();
            let btree = s.status().cache_sets[0].btree;
            s.stop().await.unwrap();
            btree
        };
        let btree = world.run(story, || false).expect("ends");
        world.kill();
        btree
    }

    /// Nodes of each level, from the leaves on.
    fn levels(&self) -> Vec<usize> {
        let (loaded, _) = load(&self.cache, self.chance.clone());
        let mut levels = vec![0; usize::from(loaded.nodes[0].level) + 1];
        for node in loaded.nodes {
            levels[usize::from(node.level)] += 1;
        }
        levels
    }
}

/// Where one of the last writes goes.
fn place(number: u64, sectors: u64) -> u64 {
    number * (2 * sectors / LEFT) + 7
}

/// So many passes.
async fn collect(server: &Server<World>, world: &World, passes: u64) {
    let done = || server.status().cache_sets[0].gc.passes;
    for pass in done()..passes {
        server.collect();
        while done() == pass {
            world.sleep(Duration::from_millis(1)).await;
        }
    }
}

fn assert_reached(mark: Mark) {
    assert!(
        !cfg!(feature = "instrumented") || marks::hits(mark) > 0,
        "{mark:?} is not reached"
    );
}

/// T88.
#[test]
fn a_tree_that_lost_nearly_all_keys_loses_its_interior_nodes_and_a_level() {
    marks::take();
    let (rest, grown) = Rest::after_loss(3400, 17_000);
    assert!(grown.depth == 2 && grown.nodes > 140, "{grown:?}");
    let shrunk = rest.check(PASSES);
    // Leaves that a root of one level can name.
    assert!(shrunk.depth == 1 && shrunk.nodes < 20, "{shrunk:?}");
    let levels = rest.levels();
    assert_eq!(levels.len(), 2, "{levels:?}");
    assert_reached(Mark::BtreeInteriorsJoin);
    assert_reached(Mark::BtreeLevelGoes);
}

/// Nodes have room for few keys while it is there.
#[cfg(feature = "instrumented")]
struct Narrow;

#[cfg(feature = "instrumented")]
impl Narrow {
    fn new(children: usize) -> Narrow {
        brigade_engine::set_children_most(Some(children));
        Narrow
    }
}

#[cfg(feature = "instrumented")]
impl Drop for Narrow {
    fn drop(&mut self) {
        brigade_engine::set_children_most(None);
        brigade_engine::set_rewritten_together(None);
        brigade_engine::mutations::choose(None);
    }
}

#[cfg(feature = "instrumented")]
#[test]
fn a_deep_tree_gets_as_low_as_its_keys_allow_but_no_leaf_becomes_the_root() {
    let _narrow = Narrow::new(8);
    let (rest, grown) = Rest::after_loss(1200, 2500);
    assert!(grown.depth >= 3 && grown.nodes > 80, "{grown:?}");
    rest.check(PASSES);
    let levels = rest.levels();
    assert!(levels == [1, 1] || levels == [2, 1], "{levels:?}");
}

/// T90.
#[cfg(feature = "instrumented")]
#[test]
fn wherever_a_collection_that_joins_is_cut_off_the_tree_is_sound_and_holds_all() {
    use brigade_sim::disk::End;
    let _narrow = Narrow::new(8);
    let (rest, _) = Rest::after_loss(540, 1300);
    let sectors = rest.sectors;
    let cut = |at: Option<u64>| {
        let fork = rest.fork();
        let (world, server) = fork.serve();
        let (s, w) = (server.clone(), world.clone());
        let v = server.volumes()[0].clone();
        world.spawn(async move {
            for bucket in 0..READS {
                let at = 2 * sectors + 8 * bucket;
                drop(v.read(StreamId(3), at * 512, 4096).await);
                drop(v.discard(at * 512, 4096, false).await);
            }
        });
        let done = async move { collect(&s, &w, PASSES).await };
        let at = at.map(|at| world.device_operations() + at);
        world.run(done, || {
            at.is_some_and(|at| world.device_operations() >= at)
        });
        let operations = world.device_operations();
        world.kill();
        (fork, operations)
    };
    let before = cut(Some(0)).1;
    marks::take();
    let all = cut(None).1 - before;
    assert_reached(Mark::BtreeInteriorsJoin);
    assert_reached(Mark::BtreeLevelGoes);
    for at in 0..all {
        for end in [End::Kill, End::PowerLoss] {
            let (fork, _) = cut(Some(at));
            fork.end(end);
            fork.levels();
            fork.check(0);
        }
    }
}

/// Leaves are rewritten one by one, while what surrounds them is discarded and filled again; parents split on the way.
#[cfg(feature = "instrumented")]
fn rewritten_one_by_one(seed: u64) {
    const SECTORS: u64 = 2000;
    const ROUNDS: u64 = 20;
    let chance = Chance::new(seed);
    let (cache, backing) = disks(1200, 8, 1, SECTORS);
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let server = open(&world, &cache, &backing, &Store::default(), options(false));
    let (s, w, v) = (server.clone(), world.clone(), server.volumes()[0].clone());
    let story = async move {
        for round in 0..ROUNDS {
            for _ in 0..60 {
                let at = chance.below(SECTORS);
                v.read(StreamId(1), at * 512, 512).await.unwrap();
            }
            let dense = chance.below(SECTORS - 100);
            for at in 0..50 {
                let at = dense + 2 * at;
                v.read(StreamId(2), at * 512, 512).await.unwrap();
            }
            let (at, count) = (chance.below(SECTORS - 300), chance.between(20, 300));
            v.discard(at * 512, count * 512, false).await.unwrap();
            collect(&s, &w, round + 1).await;
            s.audit();
        }
        s.stop().await.unwrap();
    };
    world.run(story, || false).expect("ends");
    world.kill();
    load(&cache, Chance::new(seed));
}

#[cfg(feature = "instrumented")]
#[test]
fn neighbours_are_joined_only_as_long_as_they_have_one_parent() {
    use brigade_engine::mutations::{Mutation, choose};
    let _narrow = Narrow::new(6);
    brigade_engine::set_rewritten_together(Some(1));
    (0..10).for_each(rewritten_one_by_one);
    choose(Some(Mutation::LeavesJoinEarly));
    let is_sound = |seed| std::panic::catch_unwind(|| rewritten_one_by_one(seed)).is_ok();
    assert!(!(0..100).all(is_sound), "joined too early, nothing happens");
}
