//! A world around the allocator that knows the truth the naive way: gens that never wrap, every pointer ever made,
//! and what the durable table says. Its caller takes steps; after each one everything is compared.
//!
//! What happens to the index has a time, and the journal keeps it in order: what a power loss leaves is what was true at
//! some time not before the last one known to be durable. From that and a table the allocator is loaded anew.

mod crash;
#[cfg(test)]
mod digest;
mod victims;

use brigade_format::{BucketNr, Gen, Ptr};

use super::bucket::Place;
use super::{Allocator, Batch, Config, Data, GcBase, MetadataBucket, Placement, Reserve, Sizes};

/// One thing that can happen. What is impossible at the moment does nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Hand out sectors to a stream; the stream is its own volume.
    Allocate {
        stream: u16,
        sectors: u8,
        kind: Data,
    },
    /// The oldest placement's key enters the index.
    Insert {
        dirty: bool,
    },
    /// The oldest placement comes to nothing.
    Abandon,
    /// Some dirty key becomes clean.
    Clean(u8),
    /// Some key, stale or not, leaves the index.
    Remove(u8),
    /// A read hit of some key, under a pin or not.
    Touch(u8),
    /// Some key's bucket is held, or the one held longest is let go.
    Hold(u8),
    LetGo,
    /// Traffic without reads.
    Age(u8),
    TakeNode,
    FreeNode(u8),
    /// Victims for the next batch, so many at most.
    Gather(u8),
    BeginBatch,
    BeginTable,
    Durable,
    AbandonBatch,
    /// A gc notes the gens, or ends.
    Gc,
    CloseOpen,
    /// From now on recycled buckets are discarded before they are ready, or not; some of them were.
    Discards(bool),
    Discarded(u8),
    /// All that happened so far becomes durable, but no table.
    Flush,
    /// The power fails: some of the last events are lost, and of a table under way nobody knows.
    Crash(u8),
}

impl Step {
    /// The step that four bytes, perhaps drawn by chance, stand for.
    pub fn of([what, which, size, kind]: [u8; 4]) -> Step {
        match what % 64 {
            0..8 => Step::Allocate {
                stream: u16::from(which % 4),
                sectors: size % 8 + 1,
                kind: if kind % 4 == 0 {
                    Data::Flash
                } else {
                    Data::Cached
                },
            },
            8..16 => Step::Insert { dirty: size < 77 },
            16 => Step::Abandon,
            17..23 => Step::Clean(which),
            23..26 => Step::Remove(which),
            26..29 => Step::Touch(which),
            29..31 => Step::TakeNode,
            31..33 => Step::FreeNode(which),
            33..39 => Step::BeginBatch,
            39 => Step::BeginTable,
            40..47 => Step::Durable,
            47 => Step::AbandonBatch,
            48..50 => Step::Hold(which),
            50..52 => Step::LetGo,
            52 => Step::Age(which % 4),
            53..56 => Step::Gather(which % 5),
            56..58 => Step::Gc,
            58 => Step::CloseOpen,
            // Seldom, so that gens come far between two of them.
            59 if kind < 32 => Step::Crash(which),
            59 => Step::Discards(kind < 160),
            60 => Step::Discarded(which % 8),
            61 => Step::Flush,
            _ => Step::Insert { dirty: false },
        }
    }
}

/// A key in the index. `epoch` is its gen without wrapping.
#[derive(Clone, Copy, Debug)]
struct Key {
    ptr: Ptr,
    sectors: u32,
    dirty: bool,
    bucket: usize,
    epoch: u64,
    /// When it entered the index, and left it.
    born: u64,
    died: u64,
    /// When it became clean.
    cleaned: u64,
}

/// Has not happened.
const NEVER: u64 = u64::MAX;

impl Key {
    fn is_there_at(&self, time: u64) -> bool {
        self.born <= time && time < self.died
    }
}

/// A table on disk, or one that may be.
#[derive(Clone, Debug)]
struct Table {
    buckets: Vec<MetadataBucket>,
    /// Recency, and gen that does not wrap.
    entries: Vec<(u16, u64)>,
    /// All that happened until then is durable if the table is.
    time: u64,
}

#[derive(Clone, Debug, Default)]
struct Truth {
    /// The gen, never wrapping.
    epoch: u64,
    /// What the durable table says, never wrapping.
    durable: u64,
    /// Epoch of the newest key that ever pointed here.
    newest_key: Option<u64>,
    pins: u32,
    prio: u16,
    /// The epoch in which it was last overwritten.
    overwritten: u64,
    /// How often it was.
    pub reuses: u64,
}

#[cfg_attr(test, derive(Clone))]
pub struct World {
    pub alloc: Allocator,
    truth: Vec<Truth>,
    keys: Vec<Key>,
    /// Keys that left the index, and still stand in some leaf.
    removed: Vec<Key>,
    /// Events so far, and those that are surely durable.
    now: u64,
    safe: u64,
    placements: Vec<Placement>,
    /// With the time when they were taken.
    nodes: Vec<(MetadataBucket, u64)>,
    table: Table,
    batch: Option<(Batch, Table)>,
    gc_base: Option<(GcBase, Vec<u64>, u64)>,
    positions: [u64; 4],
    held: Vec<usize>,
    /// The kernel's way to age buckets: one by one.
    min_prio: u16,
    rescale: i64,
    fifo_cursor: u64,
    dice: u64,
    /// How often data or metadata was handed out; a test that never gets there tests nothing.
    pub handed_out: u64,
    pub recycled: u64,
    pub crashes: u64,
}

impl World {
    pub fn new(config: Config, sizes: Sizes) -> World {
        let mut alloc = Allocator::with_sizes(config, sizes);
        alloc.start();
        let mut world = World {
            alloc,
            truth: vec![Truth::default(); config.nbuckets as usize],
            keys: Vec::new(),
            removed: Vec::new(),
            now: 0,
            safe: 0,
            placements: Vec::new(),
            nodes: Vec::new(),
            table: Table {
                buckets: Vec::new(),
                entries: vec![(0, 0); config.nbuckets as usize],
                time: 0,
            },
            batch: None,
            gc_base: None,
            positions: [0; 4],
            held: Vec::new(),
            min_prio: 0,
            rescale: 0,
            fifo_cursor: 0,
            dice: 0,
            handed_out: 0,
            recycled: 0,
            crashes: 0,
        };
        world.follow_gens();
        world.check();
        world
    }

    pub fn step(&mut self, step: Step) {
        self.act(step);
        self.follow_gens();
        self.check();
    }

    fn act(&mut self, step: Step) {
        match step {
            Step::Allocate {
                stream,
                sectors,
                kind,
            } => self.allocate(stream, sectors, kind),
            Step::Insert { dirty } => self.insert(dirty),
            Step::Abandon => drop(self.release()),
            Step::Clean(which) => self.clean(which),
            Step::Remove(which) => self.remove(which),
            Step::Touch(which) => self.touch(which),
            Step::Hold(which) => self.hold(which),
            Step::LetGo => self.let_go(),
            Step::Age(steps) => (0..steps).for_each(|_| self.traffic(1 << 20)),
            Step::TakeNode => self.take_node(),
            Step::FreeNode(which) => self.free_node(which),
            Step::Gather(most) => self.gather(usize::from(most)),
            Step::BeginBatch => self.begin_batch(),
            Step::BeginTable => self.begin_table(),
            Step::Durable => self.durable(),
            Step::AbandonBatch => self.abandon_batch(),
            Step::Gc => self.gc(),
            Step::CloseOpen => self.alloc.close_open_buckets(),
            Step::Discards(on) => self.alloc.set_discards(on),
            Step::Discarded(most) => {
                let discarding = self.alloc.take_discards(usize::from(most));
                let runs = discarding.runs();
                let count = runs.iter().map(|run| run.end - run.start).sum::<u64>();
                assert!(count <= u64::from(most) && (count == 0) == discarding.is_empty());
                self.alloc.discarded(discarding);
            }
            Step::Flush => self.safe = self.now,
            Step::Crash(which) => {
                let lost = u64::from(which >> 1) % (self.now - self.safe + 1);
                self.crash(self.now - lost, which & 1 != 0);
            }
        }
    }

    fn allocate(&mut self, stream: u16, sectors: u8, kind: Data) {
        let start = self.positions[stream as usize];
        let obtainable = self.alloc.obtainable_sectors(kind);
        let got = self.alloc.allocate(
            stream,
            u32::from(stream),
            start,
            u64::from(sectors),
            kind,
            stream == 0,
        );
        // The collector may have what others may not.
        assert!(got.is_some() == (obtainable > 0) || stream == 0 && obtainable == 0);
        let Some(placement) = got else { return };
        assert!(placement.sectors > 0 && placement.sectors <= u32::from(sectors));
        assert_eq!(self.alloc.nr_of(placement.ptr), placement.bucket);
        let last = placement.ptr.advance(u64::from(placement.sectors) - 1);
        assert_eq!(
            self.alloc.nr_of(last),
            placement.bucket,
            "a placement stays in its bucket"
        );
        self.positions[stream as usize] += u64::from(placement.sectors);
        self.follow_gens();
        assert!(!self.alloc.is_stale(placement.ptr));
        self.assert_may_be_overwritten(placement.bucket);
        self.truth[placement.bucket.0 as usize].pins += 1;
        self.placements.push(placement);
    }

    fn release(&mut self) -> Option<Placement> {
        if self.placements.is_empty() {
            return None;
        }
        let placement = self.placements.remove(0);
        self.alloc.release_pin(placement.bucket);
        self.truth[placement.bucket.0 as usize].pins -= 1;
        Some(placement)
    }

    fn insert(&mut self, dirty: bool) {
        let Some(placement) = self.release() else {
            return;
        };
        let bucket = placement.bucket.0 as usize;
        let epoch = self.truth[bucket].epoch;
        assert_eq!(
            placement.ptr.r#gen(),
            Gen(epoch as u8),
            "a pinned bucket keeps its gen"
        );
        self.alloc.add_live(placement.ptr, placement.sectors, dirty);
        self.truth[bucket].newest_key = Some(epoch);
        self.now += 1;
        self.keys.push(Key {
            ptr: placement.ptr,
            sectors: placement.sectors,
            dirty,
            bucket,
            epoch,
            born: self.now,
            died: NEVER,
            cleaned: NEVER,
        });
    }

    fn pick(&self, which: u8) -> Option<usize> {
        (!self.keys.is_empty()).then(|| usize::from(which) % self.keys.len())
    }

    fn clean(&mut self, which: u8) {
        let Some(index) = self.pick(which).filter(|index| self.keys[*index].dirty) else {
            return;
        };
        let key = &mut self.keys[index];
        self.now += 1;
        key.cleaned = self.now;
        self.alloc.sub_live(key.ptr, key.sectors, true);
        self.alloc.add_live(key.ptr, key.sectors, false);
        key.dirty = false;
    }

    fn remove(&mut self, which: u8) {
        let Some(index) = self.pick(which) else {
            return;
        };
        let mut key = self.keys.swap_remove(index);
        self.alloc.sub_live(key.ptr, key.sectors, key.dirty);
        self.now += 1;
        key.died = self.now;
        self.removed.push(key);
    }

    fn touch(&mut self, which: u8) {
        let Some(index) = self.pick(which) else {
            return;
        };
        self.traffic(u64::from(which));
        let key = self.keys[index];
        if !self.alloc.is_stale(key.ptr) {
            self.alloc.touch(BucketNr(key.bucket as u64));
            self.truth[key.bucket].prio = 32768;
        }
    }

    /// One look at every bucket per 1024th of the cache's size.
    fn traffic(&mut self, sectors: u64) {
        let config = self.alloc.config;
        let step = (config.nbuckets * u64::from(config.bucket_sectors) / 1024).max(1);
        self.rescale -= sectors as i64;
        if self.rescale < 0 {
            self.rescale += step as i64;
            self.min_prio = 65535;
            for (truth, bucket) in self.truth.iter_mut().zip(&self.alloc.buckets) {
                if bucket.place() == Place::Idle && truth.pins == 0 && truth.prio != 0 {
                    truth.prio -= 1;
                    self.min_prio = self.min_prio.min(truth.prio);
                }
            }
        }
        self.alloc.account_traffic(sectors);
        assert_eq!(self.alloc.ageing.min_prio, self.min_prio);
    }

    fn hold(&mut self, which: u8) {
        let Some(key) = self.pick(which).map(|index| self.keys[index]) else {
            return;
        };
        if !self.alloc.is_stale(key.ptr) {
            self.alloc.pin(BucketNr(key.bucket as u64));
            self.truth[key.bucket].pins += 1;
            self.held.push(key.bucket);
        }
    }

    fn let_go(&mut self) {
        if !self.held.is_empty() {
            let bucket = self.held.remove(0);
            self.alloc.unpin(BucketNr(bucket as u64));
            self.truth[bucket].pins -= 1;
        }
    }

    fn take_node(&mut self) {
        let could = self.alloc.can_take_metadata(1);
        let got = self.alloc.take_metadata(Reserve::Btree);
        assert_eq!(got.is_some(), could);
        self.follow_gens();
        if let Some(node) = got {
            self.assert_may_be_overwritten(node.nr);
            assert_eq!(self.alloc.gen_of(node.nr), node.r#gen);
            self.now += 1;
            self.nodes.push((node, self.now));
        }
    }

    fn free_node(&mut self, which: u8) {
        if !self.nodes.is_empty() {
            let which = usize::from(which) % self.nodes.len();
            let (node, _) = self.nodes.swap_remove(which);
            // That it left the tree has to be durable before.
            self.now += 1;
            self.safe = self.now;
            self.alloc.free_metadata(node.nr);
        }
    }

    fn gather(&mut self, most: usize) {
        let before: Vec<BucketNr> = self.incoming();
        let room = self.alloc.lists.sizes.batch.saturating_sub(before.len());
        let expected = self.expected_victims(room.min(most));
        let gathered = self.alloc.gather(most, dice(self.dice));
        self.dice += 1;
        assert_eq!(gathered, expected.len());
        let all: Vec<BucketNr> = before.into_iter().chain(expected).collect();
        assert_eq!(self.incoming(), all, "victims in order");
        self.recycled += gathered as u64;
    }

    fn incoming(&self) -> Vec<BucketNr> {
        let incoming = &self.alloc.lists.incoming;
        incoming.iter().map(|bucket| bucket.nr()).collect()
    }

    fn begin_batch(&mut self) {
        if self.batch.is_none() {
            self.gather(usize::MAX);
        }
        let gathered = self.incoming();
        if let Some(batch) = self.alloc.begin_batch() {
            assert!(self.batch.is_none(), "one batch at a time");
            assert_eq!(batch.buckets().collect::<Vec<_>>(), gathered);
            self.begun(batch);
        }
    }

    fn begin_table(&mut self) {
        if let Some(batch) = self.alloc.begin_table_write() {
            self.begun(batch);
        }
    }

    fn begun(&mut self, batch: Batch) {
        self.follow_gens();
        assert_eq!(
            batch.table_buckets().len(),
            self.alloc.config.table_buckets as usize
        );
        batch
            .table_buckets()
            .iter()
            .for_each(|bucket| self.assert_may_be_overwritten(bucket.nr));
        let snapshot = self.alloc.table_entries(0..u64::MAX);
        let entries: Vec<(u16, u64)> = snapshot
            .iter()
            .zip(&self.truth)
            .map(|((prio, _), truth)| (*prio, truth.epoch))
            .collect();
        assert!(
            snapshot
                .iter()
                .zip(&entries)
                .all(|((_, r#gen), (_, epoch))| r#gen.0 == *epoch as u8)
        );
        let table = Table {
            buckets: batch.table_buckets().to_vec(),
            entries,
            time: self.now,
        };
        self.batch = Some((batch, table));
    }

    fn durable(&mut self) {
        let Some((batch, table)) = self.batch.take() else {
            return;
        };
        for (truth, (_, epoch)) in self.truth.iter_mut().zip(&table.entries) {
            truth.durable = *epoch;
        }
        self.safe = self.safe.max(table.time);
        let old = std::mem::replace(&mut self.table, table);
        self.alloc.batch_durable(batch);
        old.buckets
            .iter()
            .for_each(|bucket| self.alloc.free_metadata(bucket.nr));
    }

    fn abandon_batch(&mut self) {
        let Some((batch, _)) = self.batch.take() else {
            return;
        };
        let table = batch.table_buckets().to_vec();
        self.alloc.abandon_batch(batch);
        table
            .iter()
            .for_each(|bucket| self.alloc.free_metadata(bucket.nr));
    }

    fn gc(&mut self) {
        match self.gc_base.take() {
            None => {
                let epochs = self.truth.iter().map(|truth| truth.epoch).collect();
                self.gc_base = Some((self.alloc.gc_base(), epochs, self.now));
            }
            Some((mut base, epochs, time)) => {
                let is_kept = |key: &Key| key.epoch >= epochs[key.bucket];
                self.keys.retain(is_kept);
                self.removed.retain(|key| is_kept(key) && key.died > time);
                self.safe = self.safe.max(time);
                self.alloc.gc_finished(&mut base);
            }
        }
    }

    /// After a crash the table says `durable`; no key that ever pointed here may count again then.
    fn assert_may_be_overwritten(&mut self, nr: BucketNr) {
        let truth = &mut self.truth[nr.0 as usize];
        truth.reuses += u64::from(truth.overwritten < truth.epoch);
        truth.overwritten = truth.epoch;
        let newest_key = truth.newest_key.filter(|epoch| *epoch != truth.epoch);
        assert!(
            newest_key.is_none_or(|epoch| epoch < truth.durable),
            "ALLOC-2: {nr:?} {truth:?}"
        );
        // A key of the current gen is legal only in the bucket that is still being filled with that gen.
        let is_filling = truth.newest_key == Some(truth.epoch);
        let holds_data = matches!(self.alloc.bucket(nr).place(), Place::Open | Place::Idle);
        assert!(!is_filling || holds_data, "ALLOC-3: {nr:?} {truth:?}");
    }

    fn follow_gens(&mut self) {
        for (truth, bucket) in self.truth.iter_mut().zip(&self.alloc.buckets) {
            let step = bucket.r#gen.0.wrapping_sub(truth.epoch as u8);
            assert!(step <= 1, "a gen moves by one");
            truth.epoch += u64::from(step);
            // What holds no data, or is being filled, is as fresh as can be.
            if bucket.place() != Place::Idle {
                truth.prio = 32768;
            }
        }
    }

    fn check(&mut self) {
        self.alloc
            .check(self.batch.as_ref().map(|(batch, _)| batch));
        let mut slot_pins = vec![0; self.truth.len()];
        for slot in &self.alloc.open.slots {
            slot.bucket
                .iter()
                .for_each(|nr| slot_pins[nr.0 as usize] += 1);
        }
        for (index, sum) in self.sums().into_iter().enumerate() {
            assert_eq!(
                self.alloc.live_of(BucketNr(index as u64)),
                sum,
                "ALLOC-4: bucket {index}"
            );
            let pins = self.truth[index].pins + slot_pins[index];
            let bucket = BucketNr(index as u64);
            if self.alloc.bucket(bucket).holds_data() {
                assert_eq!(self.alloc.prio_of(bucket), self.truth[index].prio);
            }
            assert_eq!(
                u32::from(self.alloc.buckets[index].pin),
                pins,
                "pins of bucket {index}"
            );
        }
        for (truth, bucket) in self.truth.iter().zip(&self.alloc.buckets) {
            assert_eq!(u64::from(bucket.table_lag()), truth.epoch - truth.durable);
        }
        for key in &self.keys {
            assert_eq!(
                self.alloc.is_stale(key.ptr),
                key.epoch < self.truth[key.bucket].epoch,
                "{key:?}"
            );
        }
        let free = |place| matches!(place, Place::Unused | Place::Incoming | Place::Ready);
        let stats = self.alloc.stats();
        assert_eq!(
            stats.free,
            self.alloc
                .buckets
                .iter()
                .filter(|bucket| free(bucket.place()))
                .count() as u64
        );
        assert_eq!(
            stats.free + stats.clean + stats.dirty + stats.metadata,
            stats.total
        );
        self.handed_out += self.placements.len() as u64;
    }

    /// The most often any bucket was overwritten in a new epoch.
    #[cfg(test)]
    pub fn reuses(&self) -> u64 {
        let reuses = self.truth.iter().map(|truth| truth.reuses);
        reuses.max().unwrap_or(0)
    }
}

/// The same numbers for the same seed.
pub fn dice(seed: u64) -> impl FnMut() -> u64 {
    let mut x = seed;
    move || {
        x = x
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        x >> 33
    }
}
