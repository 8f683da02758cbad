//! One small set, for tests that tell one story.

use crate::disk::DiskState;
use crate::exec::{Store, World};
use brigade_engine::{AckPolicy, Options, Server};
use brigade_env::Geometry;
use brigade_format::{CacheMode, NewBacking, NewCache, Replacement, Superblock};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

fn geo(sectors: u64) -> Geometry {
    Geometry {
        size_bytes: sectors * 512,
        logical_block_bytes: 512,
        physical_block_bytes: 512,
        can_discard: true,
        is_read_only: false,
    }
}

/// A blank cache device of so many buckets, bucket and block sizes in sectors, and a backing device that names its set.
pub fn disks(
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

/// Writeback, nothing bypasses; background writeback runs or not.
pub fn options(running: bool) -> Options {
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
        expensive_checks: true,
    }
}

/// Opens both, and must succeed.
pub fn open(
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
