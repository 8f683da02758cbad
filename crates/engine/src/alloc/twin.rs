//! A world around the allocator that knows the truth the naive way: gens that never wrap, every pointer ever made,
//! and what the durable table says. Its caller takes steps; after each one everything is compared.

use brigade_format::{BucketNr, Gen, Ptr};

use super::bucket::Place;
use super::{
    Allocator, Batch, Config, Data, GcBase, MetadataBucket, Placement, Replacement, Reserve, Sizes,
};

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
}

/// A key in the index. `epoch` is its gen without wrapping.
#[derive(Clone, Copy, Debug)]
struct Key {
    ptr: Ptr,
    sectors: u32,
    dirty: bool,
    bucket: usize,
    epoch: u64,
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
}

#[derive(Clone)]
pub struct World {
    pub alloc: Allocator,
    truth: Vec<Truth>,
    keys: Vec<Key>,
    placements: Vec<Placement>,
    nodes: Vec<MetadataBucket>,
    table: Vec<MetadataBucket>,
    batch: Option<(Batch, Vec<u64>)>,
    gc_base: Option<(GcBase, Vec<u64>)>,
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
}

impl World {
    pub fn new(config: Config, sizes: Sizes) -> World {
        let mut alloc = Allocator::with_sizes(config, sizes);
        alloc.start();
        let mut world = World {
            alloc,
            truth: vec![Truth::default(); config.nbuckets as usize],
            keys: Vec::new(),
            placements: Vec::new(),
            nodes: Vec::new(),
            table: Vec::new(),
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
        self.keys.push(Key {
            ptr: placement.ptr,
            sectors: placement.sectors,
            dirty,
            bucket,
            epoch,
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
        self.alloc.sub_live(key.ptr, key.sectors, true);
        self.alloc.add_live(key.ptr, key.sectors, false);
        key.dirty = false;
    }

    fn remove(&mut self, which: u8) {
        let Some(index) = self.pick(which) else {
            return;
        };
        let key = self.keys.swap_remove(index);
        self.alloc.sub_live(key.ptr, key.sectors, key.dirty);
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
            self.nodes.push(node);
        }
    }

    fn free_node(&mut self, which: u8) {
        if !self.nodes.is_empty() {
            let node = self
                .nodes
                .swap_remove(usize::from(which) % self.nodes.len());
            self.alloc.free_metadata(node.nr);
        }
    }

    fn is_eligible(&self, nr: BucketNr) -> bool {
        let truth = &self.truth[nr.0 as usize];
        let bucket = self.alloc.bucket(nr);
        bucket.place() == Place::Idle
            && truth.pins == 0
            && !self.live_keys(nr.0 as usize).any(|key| key.dirty)
            && bucket.gen_age() < 96
            && truth.epoch - truth.durable < 64
    }

    /// The naive order: a look at everything.
    fn expected_victims(&mut self, count: usize) -> Vec<BucketNr> {
        let eligible: Vec<BucketNr> = self
            .alloc
            .all()
            .filter(|nr| self.is_eligible(*nr))
            .collect();
        match self.alloc.config.replacement {
            Replacement::Lru => self.lru(eligible, count),
            Replacement::Fifo => self.fifo(eligible, count),
            Replacement::Random => self.random(eligible, count),
        }
    }

    fn lru(&self, eligible: Vec<BucketNr>, count: usize) -> Vec<BucketNr> {
        let min_prio = i128::from(self.min_prio.min(32768));
        let value = |nr: BucketNr| {
            let recency = i128::from(self.truth[nr.0 as usize].prio);
            let heat = (recency - min_prio + (32768 - min_prio) / 8).max(0);
            let live = self.live_keys(nr.0 as usize);
            let live = live.map(|key| i128::from(key.sectors)).sum::<i128>();
            let is_cut_off = heat == 0 && live > 0;
            (heat * live, if is_cut_off { recency } else { 0 })
        };
        let mut sorted: Vec<_> = eligible.into_iter().map(|nr| (value(nr), nr)).collect();
        sorted.sort();
        sorted.into_iter().map(|(_, nr)| nr).take(count).collect()
    }

    fn fifo(&mut self, eligible: Vec<BucketNr>, count: usize) -> Vec<BucketNr> {
        let split = eligible.partition_point(|nr| nr.0 < self.fifo_cursor);
        let (before, after) = eligible.split_at(split);
        let round: Vec<BucketNr> = after.iter().chain(before).copied().take(count).collect();
        if let Some(last) = round.last()
            && round.len() == count
        {
            self.fifo_cursor = last.0 + 1;
        }
        round
    }

    fn random(&self, mut eligible: Vec<BucketNr>, count: usize) -> Vec<BucketNr> {
        let (first, nbuckets) = (self.alloc.config.first_bucket, self.alloc.config.nbuckets);
        let mut dice = dice(self.dice);
        let mut chosen = Vec::new();
        while chosen.len() < count && !eligible.is_empty() {
            let mut drawn = 0;
            let hit = (0..16).find_map(|_| {
                drawn = first + dice() % (nbuckets - first);
                eligible.iter().position(|nr| nr.0 == drawn)
            });
            let next = || eligible.iter().position(|nr| nr.0 >= drawn).unwrap_or(0);
            chosen.push(eligible.remove(hit.unwrap_or_else(next)));
        }
        chosen
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
        let epochs: Vec<u64> = self.truth.iter().map(|truth| truth.epoch).collect();
        assert!(
            snapshot
                .iter()
                .zip(&epochs)
                .all(|((_, r#gen), epoch)| r#gen.0 == *epoch as u8)
        );
        self.batch = Some((batch, epochs));
    }

    fn durable(&mut self) {
        let Some((batch, epochs)) = self.batch.take() else {
            return;
        };
        self.truth
            .iter_mut()
            .zip(epochs)
            .for_each(|(truth, epoch)| truth.durable = epoch);
        let old = std::mem::replace(&mut self.table, batch.table_buckets().to_vec());
        self.alloc.batch_durable(batch);
        old.iter()
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
                self.gc_base = Some((self.alloc.gc_base(), epochs));
            }
            Some((mut base, epochs)) => {
                self.keys.retain(|key| key.epoch >= epochs[key.bucket]);
                self.alloc.gc_finished(&mut base);
            }
        }
    }

    fn live_keys(&self, bucket: usize) -> impl Iterator<Item = &Key> {
        let epoch = self.truth[bucket].epoch;
        self.keys
            .iter()
            .filter(move |key| key.bucket == bucket && key.epoch == epoch)
    }

    /// After a crash the table says `durable`; no key that ever pointed here may count again then.
    fn assert_may_be_overwritten(&self, nr: BucketNr) {
        let truth = &self.truth[nr.0 as usize];
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
        for index in 0..self.truth.len() {
            let sum = |dirty_only: bool| -> u32 {
                self.live_keys(index)
                    .filter(|key| key.dirty || !dirty_only)
                    .map(|key| key.sectors)
                    .sum()
            };
            assert_eq!(
                self.alloc.live_of(BucketNr(index as u64)),
                (sum(false), sum(true)),
                "ALLOC-4: bucket {index}"
            );
            let slot_pins = self
                .alloc
                .open
                .slots
                .iter()
                .filter(|slot| slot.bucket == Some(BucketNr(index as u64)));
            let pins = self.truth[index].pins + slot_pins.count() as u32;
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
}

/// The same numbers for the same seed.
fn dice(seed: u64) -> impl FnMut() -> u64 {
    let mut x = seed;
    move || {
        x = x
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        x >> 33
    }
}
