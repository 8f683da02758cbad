//! What a power loss leaves, and the allocator that is loaded from it.

use brigade_format::{BucketNr, Gen};

use super::super::Allocator;
use super::{Key, NEVER, Table, World};

impl World {
    /// The power fails. What happened later than `time` is lost; if `is_newer`, a table under way is durable.
    pub fn crash(&mut self, time: u64, is_newer: bool) {
        let (mut table, mut time) = (self.table.clone(), time);
        if let Some((_, newer)) = self.batch.take()
            && is_newer
        {
            time = time.max(newer.time);
            table = newer;
        }
        self.lose(time);
        self.load(table);
        self.assert_nothing_stale_is_good();
        self.crashes += 1;
    }

    /// Puts the index back to what it was.
    fn lose(&mut self, time: u64) {
        let all: Vec<Key> = self.keys.drain(..).chain(self.removed.drain(..)).collect();
        for key in all.into_iter().filter(|key| key.born <= time) {
            let is_there = key.is_there_at(time);
            let is_cleaned = key.cleaned <= time;
            let before = Key {
                dirty: key.dirty || key.cleaned != NEVER && !is_cleaned,
                cleaned: NEVER,
                born: 0,
                died: if is_there { NEVER } else { 0 },
                ..key
            };
            let to = if is_there {
                &mut self.keys
            } else {
                &mut self.removed
            };
            to.push(before);
        }
        self.nodes.retain(|(_, born)| *born <= time);
        self.nodes.iter_mut().for_each(|(_, born)| *born = 0);
        (self.now, self.safe) = (0, 0);
        self.placements.clear();
        self.held.clear();
        self.gc_base = None;
    }

    /// Loads a new allocator as recovery does.
    fn load(&mut self, table: Table) {
        let (config, sizes) = (self.alloc.config, self.alloc.lists.sizes);
        let mut alloc = Allocator::with_sizes(config, sizes);
        for (nr, (prio, epoch)) in table.entries.iter().enumerate() {
            alloc.set_gen(BucketNr(nr as u64), Gen(*epoch as u8), *prio);
            let truth = &mut self.truth[nr];
            (truth.epoch, truth.durable) = (*epoch, *epoch);
            (truth.newest_key, truth.pins, truth.prio) = (None, 0, (*prio).min(32768));
        }
        let stored = || self.keys.iter().chain(&self.removed);
        for key in stored() {
            alloc.raise_gen(BucketNr(key.bucket as u64), key.ptr.r#gen());
            let truth = &mut self.truth[key.bucket];
            truth.epoch = truth.epoch.max(key.epoch);
            truth.newest_key = truth.newest_key.max(Some(key.epoch));
        }
        for node in self
            .nodes
            .iter()
            .map(|(node, _)| node)
            .chain(&table.buckets)
        {
            alloc.raise_gen(node.nr, node.r#gen);
            let truth = &mut self.truth[node.nr.0 as usize];
            let ahead = node.r#gen.after(Gen(truth.epoch as u8));
            truth.epoch += u64::from(ahead);
            alloc.mark_metadata(node.nr);
        }
        for key in stored() {
            let nr = BucketNr(key.bucket as u64);
            alloc.note_pointer_gen(nr, key.ptr.r#gen());
            if key.epoch == self.truth[key.bucket].epoch {
                alloc.mark_referenced(nr);
            }
        }
        for key in &self.keys {
            alloc.add_live(key.ptr, key.sectors, key.dirty);
        }
        for (nr, truth) in self.truth.iter().enumerate() {
            let r#gen = alloc.gen_of(BucketNr(nr as u64));
            assert_eq!(r#gen, Gen(truth.epoch as u8), "gen of {nr} after a crash");
        }
        self.table = table;
        alloc.start();
        self.alloc = alloc;
        (self.min_prio, self.rescale, self.fifo_cursor) = (0, 0, 0);
    }

    /// A pointer that a crash left is good only if its bucket was not overwritten in a later epoch.
    fn assert_nothing_stale_is_good(&mut self) {
        for key in &self.keys {
            let truth = &self.truth[key.bucket];
            assert!(
                self.alloc.is_stale(key.ptr) || truth.overwritten <= key.epoch,
                "ALLOC-2: {key:?} {truth:?}"
            );
        }
        // What was overwritten in an epoch that nobody remembers is nobody's.
        for truth in &mut self.truth {
            truth.overwritten = truth.overwritten.min(truth.epoch);
        }
    }

    /// Every way in which the power may fail now, each in a world of its own.
    #[cfg(test)]
    pub fn crash_every_way(&self) -> u64 {
        let mut ways = 0;
        for time in self.safe..=self.now {
            for is_newer in [false, true] {
                if is_newer && self.batch.is_none() {
                    continue;
                }
                let mut world = self.clone();
                world.crash(time, is_newer);
                world.follow_gens();
                world.check();
                ways += 1;
            }
        }
        ways
    }
}
