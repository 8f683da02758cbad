//! Stories of the record in memory: acknowledged data that a cut-off opening lost.

use brigade_engine::Server;
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_sim::disk::{DiskState, End, Io};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, open, options, shorten_ring};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// What is left when a server is killed.
struct Left {
    cache: Rc<RefCell<DiskState>>,
    backing: Rc<RefCell<DiskState>>,
    record: Store,
    chance: Chance,
    writes: u64,
}

impl Left {
    fn end(&self, world: &World) {
        world.kill();
        self.cache.borrow_mut().end(End::Kill, &self.chance);
        self.backing.borrow_mut().end(End::Kill, &self.chance);
    }

    /// Every other sector is written, so many or as many as are acknowledged before any entry has them; then the server is killed.
    fn by_a_server_with_long_stages(
        (cache, backing): (Rc<RefCell<DiskState>>, Rc<RefCell<DiskState>>),
        writes: u64,
        seed: u64,
        write: Duration,
    ) -> Left {
        let mut left = Left {
            writes: 0,
            cache,
            backing,
            record: Store::default(),
            chance: Chance::new(seed),
        };
        let pace = |write: Duration, flush: Duration| {
            left.cache.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| match io {
                Io::Flush => Some(flush),
                _ => Some(write),
            }));
        };
        // An entry takes 2 ms; so keys are on their way to the next one four times as long.
        let (moment, ages) = (Duration::from_millis(1), Duration::from_secs(1000));
        pace(moment, moment);
        let world = World::new(left.chance.clone(), Duration::from_secs(1));
        let server = open(
            &world,
            &left.cache,
            &left.backing,
            &left.record,
            options(false),
        );
        let volume = server.volumes()[0].clone();
        let entries = || server.status().cache_sets[0].journal.entries_written;
        // Its first buckets are ready by then.
        let sleeper = world.clone();
        let settled = async move { sleeper.sleep(Duration::from_secs(10)).await };
        world.run(settled, || false).expect("ends");
        let entries_before = entries();
        // One stage is on its way and gets no further; what comes after that is the next one.
        pace(write, ages);
        let acknowledged = Rc::new(Cell::new(0));
        let counted = acknowledged.clone();
        let writes = async move {
            for at in 0..writes {
                let mut buffer = volume.buffer(512);
                buffer.fill(value(at));
                let offset = at * 1024;
                volume
                    .write(StreamId(1), offset, buffer, false)
                    .await
                    .expect("acknowledged");
                counted.set(at + 1);
            }
        };
        let (limited, until) = (world.clone(), world.now() + moment * 100);
        world.run(writes, || limited.now() > until);
        left.writes = acknowledged.get();
        assert_eq!(entries(), entries_before, "all of it is only in the record");
        left.end(&world);
        left.cache.borrow_mut().pace = None;
        left
    }

    /// Opens until so many device operations were completed. Whether it came to its end before.
    fn open_and_kill(&self, operations: u64) -> bool {
        let world = World::new(self.chance.clone(), Duration::from_secs(50));
        let record = self.record.clone();
        let opening = Server::open(
            world.clone(),
            vec![world.device(&self.cache)],
            vec![world.device(&self.backing)],
            move |_| Some(record.clone()),
            options(false),
        );
        let limited = world.clone();
        let opened = world.run(opening, || limited.device_operations() >= operations);
        self.end(&world);
        let is_whole = opened.is_some();
        drop(opened.map(|server| server.expect("it can be opened")));
        is_whole
    }

    /// Sectors that do not read as what was acknowledged.
    fn lost(&self) -> Vec<u64> {
        let world = World::new(self.chance.clone(), Duration::from_secs(100));
        let server = open(
            &world,
            &self.cache,
            &self.backing,
            &self.record,
            options(false),
        );
        let (volume, writes) = (server.volumes()[0].clone(), self.writes);
        let reads = async move {
            let mut lost = Vec::new();
            for at in 0..writes {
                let read = volume.read(StreamId(1), at * 1024, 512).await;
                if read.expect("read")[..] != [value(at); 512] {
                    lost.push(at);
                }
            }
            server.stop().await.expect("stop");
            lost
        };
        world.run(reads, || false).expect("ends")
    }
}

fn value(at: u64) -> u8 {
    (at % 255) as u8 + 1
}

/// T120: the opening gave the keys of one stage several entries. Their numbers were also those of stages in the record, so after the
/// first of these entries the next opening took the whole stage for journalled, and the keys of the others were gone.
#[test]
fn an_opening_cut_off_while_it_journals_the_record_loses_nothing_of_it() {
    // All of it is one stage, or the second one is long.
    for write in [10, 150].map(Duration::from_micros) {
        nothing_is_lost_of(|seed| {
            // One entry takes 160 keys.
            let disks = disks(1500, 8, 1, 80000);
            let left = Left::by_a_server_with_long_stages(disks, 140, seed, write);
            assert_eq!(left.writes, 140);
            left
        });
    }
}

/// Two stages in the record of a set whose ring has so many buckets, all that the server took before an entry has them.
fn with_all_that_goes_into_the_record(ring: usize, seed: u64) -> Left {
    let disks = disks(600, 16, 1, 80000);
    let world = World::new(Chance::new(7), Duration::from_millis(1));
    let server = open(
        &world,
        &disks.0,
        &disks.1,
        &Store::default(),
        options(false),
    );
    let stop = async move { server.stop().await.expect("stop") };
    world.run(stop, || false).expect("ends");
    world.kill();
    shorten_ring(&disks.0, ring);
    Left::by_a_server_with_long_stages(disks, 1000, seed, Duration::from_micros(100))
}

/// Openings are killed after ever more operations, and lose nothing.
fn nothing_is_lost_of(left: impl Fn(u64) -> Left) {
    for operations in 1.. {
        let left = left(operations);
        let mut is_whole = true;
        for _ in 0..3 {
            is_whole &= left.open_and_kill(operations);
        }
        let lost = left.lost();
        assert!(
            lost.is_empty(),
            "after {operations} operations: {lost:?} are gone"
        );
        if is_whole {
            assert!(operations > 10, "it was cut off at all");
            break;
        }
    }
}

/// The first of two long stages was on its way to a place behind the newest entry. An opening that put it into the next bucket had none
/// for the second one.
#[test]
fn both_stages_of_the_record_find_a_place_in_the_smallest_ring() {
    nothing_is_lost_of(|seed| {
        let left = with_all_that_goes_into_the_record(3, seed);
        // A full entry has five blocks.
        let in_an_entry = (5 * 512 - 88) / 24;
        assert!(left.writes > in_an_entry, "{} writes", left.writes);
        left
    });
}

/// A server that planned the ring in another way may have left longer stages than this one would.
#[test]
fn a_long_stage_of_another_server_is_one_entry_all_the_same() {
    nothing_is_lost_of(|seed| {
        let left = with_all_that_goes_into_the_record(4, seed);
        shorten_ring(&left.cache, 3);
        let in_two_entries = 2 * (5 * 512 - 88) / 24;
        assert!(left.writes > in_two_entries, "{} writes", left.writes);
        left
    });
}
