//! One small set, for tests that tell one story.

use crate::disk::DiskState;
use crate::exec::{Chance, Store, World};
use brigade_engine::recovery::{self, How, Loaded};
use brigade_engine::settings::{Initial, Knob};
use brigade_engine::{AckPolicy, Options, Server};
use brigade_env::Geometry;
use brigade_format::{
    CacheGeometry, CacheMode, Gen, Key, NewBacking, NewCache, Replacement, Superblock, jset,
    key_words, prio,
};
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
        optimal_io_bytes: 0,
        partial_stripes_expensive: false,
    }
}

/// A blank cache device of so many buckets, bucket and block sizes in sectors, and a backing device that names its set.
pub fn disks(
    buckets: u64,
    bucket: u64,
    block: u64,
    back: u64,
) -> (Rc<RefCell<DiskState>>, Rc<RefCell<DiskState>>) {
    disks_of(9, Replacement::Lru, buckets, bucket, block, back)
}

/// The same under a policy, for a set with this in all bytes of its identity; identities of devices follow from it.
pub fn disks_of(
    set: u8,
    replacement: Replacement,
    buckets: u64,
    bucket: u64,
    block: u64,
    back: u64,
) -> (Rc<RefCell<DiskState>>, Rc<RefCell<DiskState>>) {
    let (cache_uuid, backing_uuid) = ([set ^ 8; 16], [set ^ 11; 16]);
    let cache = DiskState::new("cache", geo(buckets * bucket));
    let new = NewCache {
        device_sectors: buckets * bucket,
        bucket_sectors: bucket as u32,
        block_sectors: block as u16,
        uuid: cache_uuid,
        set_uuid: [set; 16],
        discard: false,
        replacement,
    };
    cache
        .borrow_mut()
        .poke(4096, &Superblock::new_cache(&new).unwrap().encode());
    let backing = DiskState::new("backing", geo(back + 16));
    let new = NewBacking {
        device_sectors: back + 16,
        data_offset: 16,
        block_sectors: block as u16,
        uuid: backing_uuid,
        set_uuid: [set; 16],
        mode: CacheMode::Writeback,
        label: "x".into(),
    };
    backing
        .borrow_mut()
        .poke(4096, &Superblock::new_backing(&new).unwrap().encode());
    (cache, backing)
}

/// Writeback, nothing bypasses, nothing moves; background writeback runs or not.
pub fn options(running: bool) -> Options {
    Options {
        read_only: false,
        mode: Some(CacheMode::Writeback),
        memory_bytes: 1 << 30,
        ack: AckPolicy::Memory,
        settings: Initial::from([
            (Knob::SequentialCutoff, 0),
            (Knob::CongestedReadThresholdUs, 0),
            (Knob::CongestedWriteThresholdUs, 0),
            (Knob::CutoffWriteback, 70),
            (Knob::WritebackDelay, 1_000_000_000),
            (Knob::WritebackRunning, u64::from(running)),
            (Knob::CopyGcEnabled, 0),
            (Knob::ExpensiveDebugChecks, 1),
        ]),
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

/// Makes the ring of a set at rest shorter. The newest entry stands in its first buckets.
pub fn shorten_ring(disk: &Rc<RefCell<DiskState>>, buckets: usize) {
    let mut bytes = vec![0; 4096];
    disk.borrow().peek(4096, &mut bytes);
    let mut superblock = Superblock::parse(&bytes).unwrap();
    superblock.journal.truncate(buckets);
    disk.borrow_mut().poke(4096, &superblock.encode());
}

/// The header of an entry behind the newest one, which needs all since and changes nothing.
pub fn header_behind(loaded: &Loaded, seq: u64) -> jset::JsetHeader {
    let newest = &loaded.newest;
    jset::JsetHeader {
        seq,
        last_seq: newest.seq,
        version: 1,
        uuid_bucket: newest.uuid_bucket,
        btree_root: newest.root,
        btree_level: newest.root_level,
        prio_bucket: newest.prio_head,
    }
}

/// Entries behind the newest one of a set at rest that need all since, as many as leave so many buckets of the ring free, and so
/// many blocks of the one before. The first one has these keys, the others none.
pub fn fill_ring(
    cache: &Rc<RefCell<DiskState>>,
    chance: Chance,
    keys: &[Key],
    (buckets, blocks): (usize, usize),
) {
    let (loaded, layout) = load(cache, chance);
    let (newest, ring) = (&loaded.newest, &layout.journal_buckets);
    let bucket = u64::from(layout.bucket_sectors);
    let places = (0..ring.len() - buckets).flat_map(|ahead| {
        let start = ring[(loaded.ring.newest_index + ahead) % ring.len()] * bucket;
        let first = match ahead {
            0 => loaded.ring.newest_end_sector,
            _ => 0,
        };
        let sectors = (first..bucket).step_by(layout.block_sectors as usize);
        sectors.map(move |at| start + at)
    });
    let places: Vec<u64> = places.collect();
    let last = places.len() - blocks;
    let mut words = key_words(keys);
    for (seq, sector) in (newest.seq + 1..).zip(&places[..last]) {
        let header = header_behind(&loaded, seq);
        let bytes = jset::encode(&header, &words, layout.set_magic, layout.block_bytes());
        assert_eq!(bytes.len(), layout.block_bytes(), "few keys");
        cache.borrow_mut().poke(*sector * 512, &bytes);
        words.clear();
    }
}

/// Writes prio and gen of each bucket into the gen table of a set at rest, whatever they were.
pub fn write_gens(
    cache: &mut DiskState,
    loaded: &Loaded,
    layout: &CacheGeometry,
    entry: impl Fn(usize) -> (u16, Gen),
) {
    let entries: Vec<_> = (0..layout.nbuckets as usize).map(entry).collect();
    let per_link = prio::entries_per_bucket(layout.meta_bytes());
    for (i, entries) in entries.chunks(per_link).enumerate() {
        let next = loaded.prio_buckets.get(i + 1).copied().unwrap_or(0);
        let bytes = prio::encode(
            loaded.prio_seq,
            next,
            entries,
            layout.set_magic,
            layout.meta_bytes(),
        );
        let place = loaded.prio_buckets[i] * layout.bucket_bytes();
        cache.poke(place, &bytes);
    }
}

/// What an opening finds on a cache device, which must be well, and its layout.
pub fn load(cache: &Rc<RefCell<DiskState>>, chance: Chance) -> (Loaded, CacheGeometry) {
    let world = World::new(chance, Duration::from_secs(1));
    let (loaded, layout) = load_in(&world, cache);
    world.kill();
    (loaded.unwrap_or_else(|error| panic!("{error}")), layout)
}

/// The same in a world that is there, of a device that may be ill.
pub fn load_in(
    world: &World,
    cache: &Rc<RefCell<DiskState>>,
) -> (Result<Loaded, String>, CacheGeometry) {
    let mut bytes = vec![0; 4096];
    cache.borrow().peek(4096, &mut bytes);
    let superblock = Superblock::parse(&bytes).expect("a superblock");
    let device = cache.borrow().geometry;
    let layout = superblock
        .cache_geometry(device.size_bytes / 512, device.logical_block_bytes)
        .expect("sizes");
    let (disk, env, geometry) = (world.device(cache), world.clone(), layout.clone());
    let load =
        async move { recovery::load(&env, &disk, superblock, geometry, &[], How::default()).await };
    let loaded = world.run(load, || false).expect("loading ends");
    (loaded.map_err(|error| error.to_string()), layout)
}
