//! From a cache device to a running set: recovery, then a first state that needs no replay.
//!
//! ```text
//! load (reads only) ─► read-only: done
//!   ─► buckets, tree, journal ─► keys of the record in memory: journalled, durable
//!   ─► replayed ranges: into the leaves, durable ─► entry that needs nothing
//!   ─► gen table ─► UUID table if it was old ─► superblock (seq + 1) ─► new record in memory ─► background tasks
//! ```
//! Each step may be cut off: until the entry that needs nothing is durable, the old range is replayed again
//! (docs/format.md 8.2).

use super::assemble::{assemble, load_buckets, load_nodes, view};
use super::blank;
use super::cache_set::{CacheSet, Running};
use super::tasks::{start_moving, start_sweeping};
use crate::alloc::{Allocator, Config, Replacement};
use crate::btree::{Change, Index, Layout, Tree};
use crate::buckets::Buckets;
use crate::device::Disk;
use crate::error::{Error, Poison};
use crate::extents::Extent;
use crate::journal::{self, Journal, JournalSetup, RingStart, Roots, survivor};
use crate::marks::{self, Mark};
use crate::meta::{CacheSuper, GenTable, TableSetup, UuidTable, write_superblock};
use crate::mutations::{self, Mutation};
use crate::options::{AckPolicy, Options};
use crate::recovery::{self, How, Loaded, SurvivorEntry};
use crate::request::Cache;
use crate::settings::{Knob, Settings};
use crate::steps::{Steps, Task};
use brigade_env::Env;
use brigade_format::uuid_table::UuidEntry;
use brigade_format::{BucketNr, CacheGeometry, Key, Superblock, uuid_text};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;

/// Words of an extent's key.
const KEY_WORDS: usize = 3;
/// Leaves that are here to be told what replay decided.
const TOLD_AT_ONCE: usize = 8;

/// A cache device whose superblock was read and found good.
pub struct Found<E: Env> {
    /// The device.
    pub disk: Rc<Disk<E>>,
    /// Thrown when durability fails.
    pub poison: Rc<Poison>,
    /// As read.
    pub superblock: Superblock,
    /// Sizes.
    pub geometry: CacheGeometry,
    /// How long background tasks take.
    pub steps: Rc<Steps>,
    /// Choices that may change.
    pub settings: Rc<Settings>,
}

impl<E: Env> Found<E> {
    /// Bucket state with everything that is in place for good marked.
    pub(super) fn allocator(&self) -> Allocator {
        let geometry = &self.geometry;
        let replacement = match self.superblock.replacement() {
            Some(brigade_format::Replacement::Fifo) => Replacement::Fifo,
            Some(brigade_format::Replacement::Random) => Replacement::Random,
            Some(brigade_format::Replacement::Lru) | None => Replacement::Lru,
        };
        Allocator::new(Config {
            first_bucket: geometry.first_bucket,
            nbuckets: geometry.nbuckets,
            bucket_sectors: geometry.bucket_sectors,
            block_sectors: geometry.block_sectors,
            table_buckets: geometry.prio_buckets as u32,
            journal_buckets: geometry.journal_buckets.len() as u32,
            replacement,
        })
    }

    pub(super) fn layout(&self) -> Layout {
        let device = self.disk.geometry();
        let block = self.geometry.block_bytes();
        let unit = block
            .min(device.physical_block_bytes as usize)
            .max(device.logical_block_bytes as usize);
        Layout {
            set_magic: self.geometry.set_magic,
            bucket_sectors: u64::from(self.geometry.bucket_sectors),
            block_sectors: u64::from(self.geometry.block_sectors),
            node_sectors: u64::from(self.geometry.node_sectors),
            unit_bytes: unit,
        }
    }

    pub(super) fn table(
        &self,
        env: &E,
        buckets: &Rc<Buckets>,
        chain: Vec<BucketNr>,
        seq: u64,
    ) -> Rc<GenTable<E>> {
        let setup = TableSetup {
            set_magic: self.geometry.set_magic,
            bucket_sectors: u64::from(self.geometry.bucket_sectors),
            meta_bytes: self.geometry.meta_bytes(),
            chain,
            seq,
            discard: self.superblock.discard() && self.disk.geometry().can_discard,
        };
        GenTable::new(
            env.clone(),
            self.disk.clone(),
            self.poison.clone(),
            buckets.clone(),
            setup,
        )
    }

    pub(super) fn uuid_table(
        &self,
        buckets: &Rc<Buckets>,
        entries: Vec<UuidEntry>,
    ) -> Rc<UuidTable<E>> {
        let geometry = &self.geometry;
        let (disk, buckets) = (self.disk.clone(), buckets.clone());
        UuidTable::new(
            disk,
            buckets,
            geometry.bucket_sectors,
            geometry.meta_sectors,
            entries,
        )
    }

    pub(super) fn journal(
        &self,
        env: &E,
        ring: RingStart,
        seqs: (u64, u64),
        roots: Roots,
    ) -> Rc<Journal<E>> {
        let (next_seq, last_seq) = seqs;
        let setup = JournalSetup {
            disk: self.disk.clone(),
            set_magic: self.geometry.set_magic,
            bucket_sectors: u64::from(self.geometry.bucket_sectors),
            block_sectors: u64::from(self.geometry.block_sectors),
            ring,
            next_seq,
            last_seq,
            roots,
            settings: self.settings.clone(),
        };
        Journal::new(env.clone(), self.poison.clone(), setup)
    }
}

/// A set that was read but not written: what may be refused is refused now.
pub struct Prepared<E: Env> {
    /// The device.
    pub found: Found<E>,
    /// What was read; `None` for a blank set.
    pub loaded: Option<Loaded>,
    survivors: Vec<SurvivorEntry>,
    store: Option<E::Survivor>,
}

impl<E: Env> Prepared<E> {
    /// The set's UUID table, empty if it is blank.
    pub fn uuids(&self) -> Vec<UuidEntry> {
        match &self.loaded {
            Some(loaded) => loaded.uuids.clone(),
            None => blank::empty_table(&self.found),
        }
    }

    /// Whether it is going to be opened without writing.
    pub fn is_read_only(&self, options: &Options) -> bool {
        options.read_only || self.found.geometry.read_only_layout
    }
}

/// Reads a set and judges it.
pub async fn prepare<E: Env>(
    env: &E,
    found: Found<E>,
    store: Option<E::Survivor>,
    options: &Options,
) -> Result<Prepared<E>, Error> {
    if !found.superblock.is_sync() {
        return Ok(Prepared {
            found,
            loaded: None,
            survivors: Vec::new(),
            store,
        });
    }
    let survivors = match &store {
        Some(store) => survivor::recall(store, &found.superblock.set_uuid, found.superblock.seq),
        None => Vec::new(),
    };
    let read_only = options.read_only || found.geometry.read_only_layout;
    if !read_only {
        check_ring(&found)?;
    }
    let how = How {
        read_only,
        may_count_later: !read_only && survivors.is_empty(),
        // What replay decides can leave memory only once the leaves have been told.
        memory_bytes: (!read_only).then_some(options.memory_bytes),
    };
    let (superblock, geometry) = (found.superblock.clone(), found.geometry.clone());
    let device = found.disk.device();
    let loaded = recovery::load(env, device, superblock, geometry, &survivors, how)
        .await
        .map_err(|error| Error::format(found.disk.name(), error))?;
    Ok(Prepared {
        found,
        loaded: Some(loaded),
        survivors,
        store,
    })
}

/// Opens a set that was read.
pub async fn open<E: Env>(
    env: &E,
    prepared: Prepared<E>,
    options: &Options,
) -> Result<CacheSet<E>, Error> {
    let read_only = prepared.is_read_only(options);
    let Prepared {
        found,
        loaded,
        survivors,
        store,
    } = prepared;
    let name = found.disk.name().to_string();
    let io = |error: io::Error| Error::io(&name, "open", &error);
    match (loaded, read_only) {
        (Some(loaded), true) => Ok(open_read_only(env, found, loaded)),
        (Some(loaded), false) => start(env, found, loaded, survivors, store, options)
            .await
            .map_err(io),
        (None, true) => Ok(blank::view(env, found)),
        (None, false) => blank::initialise(env, found, store, options)
            .await
            .map_err(io),
    }
}

/// A ring that is too small fills up for good as soon as something is written.
fn check_ring<E: Env>(found: &Found<E>) -> Result<(), Error> {
    let geometry = &found.geometry;
    let count = geometry.journal_buckets.len();
    let plan = journal::plan(
        count,
        u64::from(geometry.bucket_sectors),
        u64::from(geometry.block_sectors),
    );
    if plan.is_some() {
        return Ok(());
    }
    let what = format!(
        "superblock journal list: {count} buckets are too few to be written to; the set can only be served read-only"
    );
    Err(Error::refused(found.disk.name(), what))
}

fn open_read_only<E: Env>(env: &E, found: Found<E>, mut loaded: Loaded) -> CacheSet<E> {
    let buckets = Buckets::new(load_buckets(&found, &loaded), found.poison.clone());
    let nodes = load_nodes(&loaded);
    let mut map = std::mem::take(&mut loaded.index);
    for extent in &loaded.doubtful {
        map.remove(extent.inode, extent.start, extent.end, |_| ());
    }
    let index = Index::new(map, nodes, found.geometry.bucket_sectors);
    let uuids = found.uuid_table(&buckets, std::mem::take(&mut loaded.uuids));
    let cache = view(env, &found, index, &buckets);
    CacheSet {
        cache,
        superblock: CacheSuper::new(found.disk, found.superblock),
        geometry: found.geometry,
        uuids,
        running: None,
        findings: loaded.findings,
        loaded: loaded.stats,
        opened: env.now(),
        unsettled: RefCell::default(),
        audited: Cell::default(),
        inodes_seen: Rc::new(RefCell::new(loaded.inodes_seen)),
        was_counted_later: false,
    }
}

async fn start<E: Env>(
    env: &E,
    mut found: Found<E>,
    mut loaded: Loaded,
    survivors: Vec<SurvivorEntry>,
    store: Option<E::Survivor>,
    options: &Options,
) -> io::Result<CacheSet<E>> {
    // What was read may not be durable: a process that was killed had it under way. Nothing it let go of is overwritten before.
    found.disk.flush().await?;
    let mut alloc = load_buckets(&found, &loaded);
    alloc.set_expensive_checks(found.settings.is_on(Knob::ExpensiveDebugChecks));
    let buckets = Buckets::new(alloc, found.poison.clone());
    let nodes = load_nodes(&loaded);
    let map = std::mem::take(&mut loaded.index);
    let index = match &loaded.held {
        Some(held) => {
            let dirty = held.inodes.iter();
            let dirty = dirty.map(|(nr, inode)| (*nr, inode.dirty_sectors));
            Index::away(nodes, dirty.collect(), found.geometry.bucket_sectors)
        }
        None => Index::new(map, nodes, found.geometry.bucket_sectors),
    };
    let newest = &loaded.newest;
    let ring = RingStart {
        buckets: found.geometry.journal_buckets.clone(),
        newest_index: loaded.ring.newest_index,
        newest_end_sector: loaded.ring.newest_end_sector,
        bucket_max_seq: loaded.ring.bucket_max_seq.clone(),
    };
    let roots = Roots {
        root: newest.root,
        root_level: newest.root_level,
        uuid_bucket: newest.uuid_bucket,
        prio_head: newest.prio_head,
    };
    let journal = found.journal(env, ring, (newest.seq + 1, newest.last_seq), roots);
    // Held until the leaves that do not have the replayed ranges yet hold it, each until it has them.
    journal.pin(newest.last_seq);
    let steps = found.steps.clone();
    env.spawn(steps.timed(env, Task::Journal, journal.clone().run()));
    let (tree, cache) = assemble(env, &found, index, &buckets, &journal, options);
    let chain = loaded.prio_buckets.iter().copied().map(BucketNr).collect();
    let table = found.table(env, &buckets, chain, loaded.prio_seq);

    // Every entry of ours says version 1, so the first one must name a table in the new format (docs/format.md 7).
    let uuids = found.uuid_table(&buckets, std::mem::take(&mut loaded.uuids));
    if loaded.uuids_are_old_format {
        let entries = uuids.entries().clone();
        uuids.write(&uuids.turn().await, &journal, entries).await?;
    }
    let unwritten = survivors.iter().filter(|entry| entry.seq > newest.seq);
    journal_again(&journal, unwritten, &loaded.rejournal).await?;
    // Until an entry says that it was compared, the next opening compares again: these need no place that others may need.
    if !journal_while(&journal, &loaded.settled, Journal::has_room).await? {
        marks::hit(Mark::SettledKeysNotJournalled);
    }
    if loaded.held.is_none() {
        lay_overlay(&cache, &loaded.overlay, env, &journal, newest.last_seq);
    }
    // Writing leaves may need buckets that have yet to be recycled.
    let run = table.clone().run(journal.clone());
    env.spawn(steps.timed(env, Task::Allocator, run));
    if loaded.held.is_some() {
        tell_leaves(&cache, &tree, &loaded.overlay, &journal, newest.last_seq).await?;
    }
    journal.unpin(newest.last_seq);
    tree.write_all().await?;
    let unsettled = unsettled(&loaded, &uuids.entries());
    if unsettled.is_empty() {
        journal.settle();
    }
    journal.write_now().await?;

    // From here on the allocator measures its lead over the table from what the table really says.
    let batch = buckets.get_mut().begin_table_write();
    if let Some(batch) = batch {
        table.write(&journal, batch).await?;
    }
    found.superblock.count_write();
    found.superblock.last_mount = env.unix_seconds();
    write_superblock(&found.disk, &found.superblock).await?;
    begin_record(&journal, &found, store, options);
    env.spawn(steps.timed(env, Task::Index, tree.clone().run()));
    if !loaded.is_counted {
        let count = cache.pages.clone().count_all();
        env.spawn(steps.timed(env, Task::Count, count));
    }
    let mover = start_moving(env, &cache);
    let inodes_seen = Rc::new(RefCell::new(loaded.inodes_seen));
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
        findings: loaded.findings,
        loaded: loaded.stats,
        opened: env.now(),
        unsettled: RefCell::new(unsettled),
        audited: Cell::default(),
        inodes_seen,
        was_counted_later: !loaded.is_counted,
    })
}

/// Slots of devices of which a kernel may have left clean data that is unlike them: of all, if it had the set last.
fn unsettled(loaded: &Loaded, entries: &[UuidEntry]) -> BTreeSet<u32> {
    if loaded.newest.mark.is_some() {
        return BTreeSet::new();
    }
    let is_cached = |(_, entry): &(u32, &UuidEntry)| entry.is_used() && !entry.is_flash_only();
    let cached = (0..).zip(entries).filter(is_cached);
    cached.map(|(slot, _)| slot).collect()
}

/// Starts the record in memory for this opening of the set. Without one, writes are acknowledged by the journal.
pub(super) fn begin_record<E: Env>(
    journal: &Rc<Journal<E>>,
    found: &Found<E>,
    store: Option<E::Survivor>,
    options: &Options,
) {
    let Some(store) = store.filter(|_| options.ack == AckPolicy::Memory) else {
        return;
    };
    match survivor::SurvivorLog::start(store, &found.superblock.set_uuid, found.superblock.seq) {
        Ok(log) => journal.use_survivor(log),
        Err(error) => {
            let set = uuid_text(&found.superblock.set_uuid);
            tracing::warn!(%set, %error, "no record in memory; writes are acknowledged by the journal");
        }
    }
}

/// Gives keys that only the record in memory had, and dirty keys that the tree kept against the journal, a durable entry.
///
/// A stage of the record becomes one entry (JNL-8): should this opening be cut off, the next one goes by the number of the newest
/// entry, and takes stages out of the record only from there on, whole ones. (An entry without keys that never got to the disk
/// leaves a gap before a stage. Then that is taken up once more, which changes nothing.) There is a place for it: clients put keys
/// into the record only while the ring has what these need, an entry on its way to the disk included (JNL-4).
///
/// What the tree kept may find a ring without one. Then the leaves alone have it, and the entry that makes room needs no older one.
async fn journal_again<E: Env>(
    journal: &Rc<Journal<E>>,
    survivors: impl Iterator<Item = &SurvivorEntry>,
    kept: &[Extent],
) -> io::Result<()> {
    for entry in survivors {
        marks::hit(Mark::RecordReplayed);
        if mutations::is(Mutation::RecordForgotten) {
            continue;
        }
        let words_max = match mutations::is(Mutation::RecordInPieces) {
            true => journal.words_fit() / 8,
            false => journal.words_fit(),
        };
        for keys in in_entries(&entry.keys, words_max) {
            journal.append_recorded(keys.iter().copied());
            journal.flush().await?;
        }
    }
    if !journal_while(journal, kept, Journal::has_place).await? {
        marks::hit(Mark::KeptKeysNotJournalled);
    }
    Ok(())
}

/// Journals extents as long as there is a place for them. The leaves will have them all, and then no older entry is needed.
/// Says whether it were all.
async fn journal_while<E: Env>(
    journal: &Rc<Journal<E>>,
    extents: &[Extent],
    has_place: impl Fn(&Journal<E>, usize) -> bool,
) -> io::Result<bool> {
    for some in extents.chunks(journal.words_max() / KEY_WORDS) {
        if !has_place(journal, some.len() * KEY_WORDS) {
            return Ok(false);
        }
        journal.append(some.iter().map(Extent::to_key));
        journal.flush().await?;
    }
    Ok(true)
}

/// Cuts keys into as few runs as their order allows, each of at most so many words. What was a stage once is one run; only a
/// record that no server of this set can have written is cut.
fn in_entries(keys: &[Key], words_max: usize) -> Vec<&[Key]> {
    let mut runs = Vec::with_capacity(1);
    let (mut from, mut words) = (0, 0);
    for (at, key) in keys.iter().enumerate() {
        if words + key.words() > words_max {
            runs.push(&keys[from..at]);
            (from, words) = (at, 0);
        }
        words += key.words();
    }
    runs.push(&keys[from..]);
    runs
}

/// Puts what replay decided into the leaves' pending sets. The map has it already.
fn lay_overlay<E: Env>(
    cache: &Cache<E>,
    overlay: &[Extent],
    env: &E,
    journal: &Journal<E>,
    last_seq: u64,
) {
    if mutations::is(Mutation::ReplayNotInLeaves) {
        return;
    }
    let change = Change {
        seq: Some(last_seq),
        now: env.now(),
    };
    let mut index = cache.index.borrow_mut();
    for &extent in overlay {
        index
            .add_pending(extent, change)
            .into_iter()
            .for_each(|pin| journal.pin(pin));
    }
}

/// Puts what replay decided into leaves that are away, a few at a time, and has these written: they may leave again then.
async fn tell_leaves<E: Env>(
    cache: &Cache<E>,
    tree: &Tree<E>,
    overlay: &[Extent],
    journal: &Journal<E>,
    last_seq: u64,
) -> io::Result<()> {
    if mutations::is(Mutation::ReplayNotInLeaves) {
        return Ok(());
    }
    let leaf_of = |e: &Extent| cache.index.borrow().nodes.leaf_of(e.inode, e.start).0;
    let mut told = Vec::new();
    let mut rest = overlay;
    while let Some(first) = rest.first() {
        let leaf = leaf_of(first);
        let (mine, behind) = rest.split_at(rest.iter().take_while(|e| leaf_of(e) == leaf).count());
        rest = behind;
        cache.pages.bring_leaf(leaf).await?;
        let change = Change {
            seq: Some(last_seq),
            now: cache.pages.now(),
        };
        let pins = cache.index.borrow_mut().tell(leaf, mine, change);
        pins.into_iter().for_each(|pin| journal.pin(pin));
        told.push(leaf);
        if told.len() == TOLD_AT_ONCE || rest.is_empty() {
            tree.write_leaves(&told).await?;
            told.clear();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use brigade_format::{Gen, Ptr};

    /// T115.
    #[test]
    fn keys_of_a_stage_stay_together_and_what_is_too_long_for_one_is_cut() {
        let key = |at: u64| Key::extent(1, at * 8, 8, Ptr::new(at * 8, Gen(0)), false);
        let keys: Vec<_> = (0..10).map(key).collect();
        let counts = |words| -> Vec<usize> {
            in_entries(&keys, words)
                .iter()
                .map(|run| run.len())
                .collect()
        };
        assert_eq!(counts(30), [10]);
        assert_eq!(counts(29), [9, 1]);
        assert_eq!(counts(12), [4, 4, 2]);
        assert_eq!(in_entries(&keys, 12).concat(), keys);
    }
}
