//! A set that was never used: nothing on it counts (docs/format.md 8.1).
//!
//! ```text
//! first block of every journal bucket zeroed (an old life must not come back) ─► gen table, UUID table, empty root leaf
//!    ─► journal entry 1, in ring bucket 1 ─► superblock with CACHE_SYNC
//! ```
//! Cut off anywhere before the last step, it is still blank.

use super::assemble::{self, assemble};
use super::cache_set::{CacheSet, Running};
use super::open::{Found, begin_record};
use super::tasks::{start_moving, start_sweeping};
use crate::alloc::Allocator;
use crate::btree::{Index, Nodes};
use crate::buckets::Buckets;
use crate::extents::ExtentMap;
use crate::journal::{self, RingStart, Roots};
use crate::meta::{CacheSuper, write_superblock};
use crate::options::Options;
use crate::recovery::LoadStats;
use crate::settings::Knob;
use crate::stats::Cause;
use crate::steps::Task;
use brigade_env::{Durability, Env};
use brigade_format::uuid_table::{self, UuidEntry};
use brigade_format::{BucketNr, Gen, Key, Pos, Ptr, node};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

/// A view of a blank set for reading: nothing is cached.
pub fn view<E: Env>(env: &E, found: Found<E>) -> CacheSet<E> {
    let mut alloc = found.allocator();
    alloc.start();
    let buckets = Buckets::new(alloc, found.poison.clone());
    let root = Key::node(Pos::MAX, found.geometry.node_sectors, Ptr::new(0, Gen(0)));
    let index = empty_index(&found, root, 1);
    let uuids = found.uuid_table(&buckets, empty_table(&found));
    let cache = assemble::view(env, &found, index, &buckets);
    CacheSet {
        cache,
        superblock: CacheSuper::new(found.disk, found.superblock),
        geometry: found.geometry,
        uuids,
        running: None,
        findings: Vec::new(),
        loaded: LoadStats::default(),
        opened: env.now(),
        unsettled: RefCell::default(),
        audited: Cell::default(),
        inodes_seen: Rc::default(),
        was_counted_later: false,
    }
}

pub(super) fn empty_table<E: Env>(found: &Found<E>) -> Vec<UuidEntry> {
    uuid_table::parse(
        &vec![0; found.geometry.meta_bytes()],
        found.geometry.uuid_slots as usize,
    )
}

fn empty_index<E: Env>(found: &Found<E>, root: Key, seq: u64) -> Index {
    let mut nodes = Nodes::default();
    let leaf = nodes.add(0, root, Pos::ZERO, seq, 1, None);
    nodes.set_root(leaf);
    Index::new(ExtentMap::new(), nodes, found.geometry.bucket_sectors)
}

/// Initialises a blank set and opens it.
pub async fn initialise<E: Env>(
    env: &E,
    mut found: Found<E>,
    store: Option<E::Survivor>,
    options: &Options,
) -> io::Result<CacheSet<E>> {
    let geometry = &mut found.geometry;
    let (bucket, block) = (
        u64::from(geometry.bucket_sectors),
        u64::from(geometry.block_sectors),
    );
    // A small set needs more of them than its share.
    let is_enough = |count: &u64| journal::plan(*count as usize, bucket, block).is_some();
    let least = (2..=256).find(is_enough).unwrap_or(256);
    let count = (geometry.nbuckets / 128).clamp(least, 256);
    geometry.journal_buckets = (geometry.first_bucket..geometry.first_bucket + count).collect();
    found
        .superblock
        .journal
        .clone_from(&geometry.journal_buckets);
    write(env, found, store, options).await
}

async fn write<E: Env>(
    env: &E,
    mut found: Found<E>,
    store: Option<E::Survivor>,
    options: &Options,
) -> io::Result<CacheSet<E>> {
    wipe_journal(&found).await?;
    let mut alloc = blank_buckets(&found);
    alloc.set_expensive_checks(found.settings.is_on(Knob::ExpensiveDebugChecks));
    let buckets = Buckets::new(alloc, found.poison.clone());
    let table = found.table(env, &buckets, Vec::new(), 0);
    let batch = buckets
        .get_mut()
        .begin_table_write()
        .ok_or_else(|| io::Error::other("no room for the gen table"))?;
    let prio_head = table.write_links(&batch).await?.0;
    let uuids = found.uuid_table(&buckets, Vec::new());
    let uuid_bucket = uuids.write_bucket(empty_table(&found)).await?;
    let (root, seq) = write_root(env, &found, &buckets).await?;
    let ring_size = found.geometry.journal_buckets.len();
    let ring = RingStart {
        buckets: found.geometry.journal_buckets.clone(),
        newest_index: 0,
        newest_end_sector: u64::from(found.geometry.bucket_sectors),
        bucket_max_seq: vec![0; ring_size],
    };
    let roots = Roots {
        root,
        root_level: 0,
        uuid_bucket,
        prio_head,
    };
    let journal = found.journal(env, ring, (1, 1), roots);
    let steps = found.steps.clone();
    env.spawn(steps.timed(env, Task::Journal, journal.clone().run()));
    journal.settle();
    journal.write_now().await?;
    table.finish(batch).await;
    buckets.get_mut().set_synchronous(true);
    found.superblock.set_sync(true);
    found.superblock.count_write();
    found.superblock.last_mount = env.unix_seconds();
    write_superblock(&found.disk, &found.superblock).await?;
    begin_record(&journal, &found, store, options);
    let (tree, cache) = assemble(
        env,
        &found,
        empty_index(&found, root, seq),
        &buckets,
        &journal,
        options,
    );
    let run = table.clone().run(journal.clone());
    env.spawn(steps.timed(env, Task::Allocator, run));
    env.spawn(steps.timed(env, Task::Index, tree.clone().run()));
    let mover = start_moving(env, &cache);
    let inodes_seen = Rc::default();
    let sweeper = start_sweeping(env, &cache, &tree, &journal, &uuids, &inodes_seen);
    Ok(CacheSet {
        cache,
        superblock: CacheSuper::new(found.disk, found.superblock),
        geometry: found.geometry,
        uuids,
        running: Some(Running {
            journal,
            tree,
            table,
            mover,
            sweeper,
        }),
        findings: Vec::new(),
        loaded: LoadStats::default(),
        opened: env.now(),
        unsettled: RefCell::default(),
        audited: Cell::default(),
        inodes_seen,
        was_counted_later: false,
    })
}

fn blank_buckets<E: Env>(found: &Found<E>) -> Allocator {
    let mut alloc = found.allocator();
    found
        .geometry
        .journal_buckets
        .iter()
        .for_each(|nr| alloc.mark_metadata(BucketNr(*nr)));
    alloc.start();
    alloc.set_synchronous(false);
    alloc
}

async fn wipe_journal<E: Env>(found: &Found<E>) -> io::Result<()> {
    let zeros = vec![0; found.geometry.block_bytes()];
    let bucket_sectors = u64::from(found.geometry.bucket_sectors);
    for nr in &found.geometry.journal_buckets {
        found
            .disk
            .write_metadata(
                Cause::Journal,
                nr * bucket_sectors,
                &zeros,
                Durability::Volatile,
            )
            .await?;
    }
    // The bucket with the first entries whole: an old entry behind them would look like a lost tail (docs/format.md 5.9).
    let first = found.geometry.journal_buckets[1] * bucket_sectors;
    found
        .disk
        .write_zeroes(first, bucket_sectors, false)
        .await?;
    found.disk.flush().await
}

async fn write_root<E: Env>(
    env: &E,
    found: &Found<E>,
    buckets: &Rc<Buckets>,
) -> io::Result<(Key, u64)> {
    let bucket = buckets.take_metadata(1).await?.remove(0);
    let sector = bucket.nr.0 * u64::from(found.geometry.bucket_sectors);
    let ptr = Ptr::new(sector, bucket.r#gen);
    let seq = env.random_u64().max(1);
    let bytes = node::encode_bset(
        &[],
        seq,
        ptr,
        found.geometry.set_magic,
        found.geometry.block_bytes(),
    );
    found
        .disk
        .write_metadata(Cause::Nodes, sector, &bytes, Durability::Durable)
        .await?;
    Ok((Key::node(Pos::MAX, found.geometry.node_sectors, ptr), seq))
}
