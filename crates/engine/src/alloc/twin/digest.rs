//! Which worlds are alike.

use std::hash::{DefaultHasher, Hash, Hasher};

use brigade_format::{BucketNr, Gen};

use super::super::Reserve;
use super::super::bucket::Flag;
use super::super::order::recency_at;
use super::{NEVER, World};

impl World {
    /// Of all worlds that go on in the same way the same number, and of others another. Leaves out how far gens, times and
    /// positions have come, where only differences matter, and what only statistics see.
    pub fn digest(&self) -> [u64; 2] {
        [0, 1].map(|salt: u8| {
            let mut hasher = DefaultHasher::new();
            salt.hash(&mut hasher);
            self.hash_buckets(&mut hasher);
            self.hash_lists(&mut hasher);
            self.hash_index(&mut hasher);
            hasher.finish()
        })
    }

    fn behind(&self, nr: BucketNr, r#gen: Gen) -> u8 {
        self.alloc.gen_of(nr).0.wrapping_sub(r#gen.0)
    }

    fn hash_buckets(&self, hasher: &mut DefaultHasher) {
        let age = self.alloc.ageing.age();
        for (nr, (bucket, truth)) in self.alloc.buckets.iter().zip(&self.truth).enumerate() {
            let nr = BucketNr(nr as u64);
            (bucket.place() as u8, bucket.live.get(), bucket.dirty.get()).hash(hasher);
            (bucket.pin, self.alloc.prio_of(nr), bucket.gen_age()).hash(hasher);
            let flags = [Flag::Ordered, Flag::Lapsed, Flag::Parked].map(|flag| bucket.is(flag));
            flags.hash(hasher);
            if bucket.is(Flag::Ordered) {
                recency_at(bucket.ordered, age).hash(hasher);
            }
            let lag = truth.epoch - truth.durable;
            let newest = truth.newest_key.map(|epoch| (truth.epoch - epoch).min(64));
            (lag, newest, truth.pins, truth.prio).hash(hasher);
            (truth.epoch - truth.overwritten).min(64).hash(hasher);
        }
        (self.alloc.need_gc, self.alloc.need_gc_since).hash(hasher);
        (self.alloc.table_lag, self.min_prio, self.rescale).hash(hasher);
    }

    fn hash_lists(&self, hasher: &mut DefaultHasher) {
        let lists = &self.alloc.lists;
        let waiting: Vec<u64> = lists.to_discard.iter().map(|one| one.nr().0).collect();
        (waiting, self.alloc.discards).hash(hasher);
        let unused: Vec<u64> = lists.unused.iter().map(|bucket| bucket.nr().0).collect();
        let incoming: Vec<u64> = self.incoming().iter().map(|nr| nr.0).collect();
        (unused, incoming).hash(hasher);
        for reserve in [
            Reserve::Btree,
            Reserve::Prio,
            Reserve::MovingGc,
            Reserve::Normal,
        ] {
            let ready = lists.ready(reserve).iter();
            ready
                .map(|bucket| bucket.nr().0)
                .collect::<Vec<_>>()
                .hash(hasher);
        }
        let parked: Vec<u32> = self.alloc.parked.iter().copied().collect();
        let (to_unpark, parked) = parked.split_at(self.alloc.unpark_left);
        for set in [&self.alloc.lagging[..], to_unpark, parked] {
            let mut set = set.to_vec();
            set.sort_unstable();
            set.hash(hasher);
        }
        let slots = &self.alloc.open.slots;
        for slot in slots {
            let before = slots.iter().filter(|other| other.used < slot.used);
            let rank = before.count();
            let is_followed = self.positions[slot.inode as usize % 4] == slot.end;
            let place = slot.bucket.map(|nr| nr.0);
            (rank, slot.inode, is_followed, place, slot.sectors_free).hash(hasher);
            let idle = self.alloc.open.tick - slot.tick;
            (slot.was_used, slot.stream, slot.kind as u8, idle.min(3)).hash(hasher);
            if slot.bucket.is_some() {
                slot.next_sector.hash(hasher);
            }
        }
    }

    fn hash_index(&self, hasher: &mut DefaultHasher) {
        let since = |time: u64| match time {
            NEVER => NEVER,
            time => time.saturating_sub(self.safe),
        };
        for keys in [&self.keys, &self.removed] {
            keys.len().hash(hasher);
            for key in keys {
                let behind = self.truth[key.bucket].epoch - key.epoch;
                (key.ptr.sector(), behind, key.sectors, key.dirty).hash(hasher);
                (since(key.born), since(key.died), since(key.cleaned)).hash(hasher);
            }
        }
        (self.now - self.safe).hash(hasher);
        for placement in &self.placements {
            (placement.ptr.sector(), placement.sectors).hash(hasher);
        }
        self.held.hash(hasher);
        for (node, born) in &self.nodes {
            (node.nr.0, self.behind(node.nr, node.r#gen), since(*born)).hash(hasher);
        }
        let tables = [
            Some(&self.table),
            self.batch.as_ref().map(|(_, table)| table),
        ];
        for (table, is_newer) in tables.into_iter().flatten().zip([false, true]) {
            (is_newer, since(table.time)).hash(hasher);
            for bucket in &table.buckets {
                (bucket.nr.0, self.behind(bucket.nr, bucket.r#gen)).hash(hasher);
            }
            for ((prio, epoch), truth) in table.entries.iter().zip(&self.truth) {
                (prio, truth.epoch - epoch).hash(hasher);
            }
        }
        if let Some((batch, _)) = &self.batch {
            let incoming: Vec<u64> = batch.buckets().map(|nr| nr.0).collect();
            incoming.hash(hasher);
        }
        if let Some((_, epochs, time)) = &self.gc_base {
            since(*time).hash(hasher);
            let behind = epochs
                .iter()
                .zip(&self.truth)
                .map(|(epoch, truth)| truth.epoch - epoch);
            behind.collect::<Vec<_>>().hash(hasher);
        }
    }
}
