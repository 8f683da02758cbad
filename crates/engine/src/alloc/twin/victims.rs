//! Which buckets go first, the naive way: a look at all of them.

use brigade_format::BucketNr;

use super::super::Replacement;
use super::super::bucket::Place;
use super::{World, dice};

impl World {
    /// Live and dirty sectors of every bucket.
    pub(super) fn sums(&self) -> Vec<(u32, u32)> {
        let mut sums = vec![(0, 0); self.truth.len()];
        for key in &self.keys {
            if key.epoch == self.truth[key.bucket].epoch {
                let sum = &mut sums[key.bucket];
                sum.0 += key.sectors;
                sum.1 += if key.dirty { key.sectors } else { 0 };
            }
        }
        sums
    }

    fn is_eligible(&self, nr: BucketNr, dirty: u32) -> bool {
        let truth = &self.truth[nr.0 as usize];
        let bucket = self.alloc.bucket(nr);
        bucket.place() == Place::Idle
            && truth.pins == 0
            && dirty == 0
            && bucket.gen_age() < 94
            && truth.epoch - truth.durable < 64
    }

    /// The naive order: a look at everything.
    pub(super) fn expected_victims(&mut self, count: usize) -> Vec<BucketNr> {
        let sums = self.sums();
        let eligible: Vec<BucketNr> = self
            .alloc
            .all()
            .filter(|nr| self.is_eligible(*nr, sums[nr.0 as usize].1))
            .collect();
        match self.alloc.config.replacement {
            Replacement::Lru => self.lru(&sums, eligible, count),
            Replacement::Fifo => self.fifo(eligible, count),
            Replacement::Random => self.random(eligible, count),
        }
    }

    fn lru(&self, sums: &[(u32, u32)], eligible: Vec<BucketNr>, count: usize) -> Vec<BucketNr> {
        let min_prio = i128::from(self.min_prio.min(32768));
        let value = |nr: BucketNr| {
            let recency = i128::from(self.truth[nr.0 as usize].prio);
            let heat = (recency - min_prio + (32768 - min_prio) / 8).max(0);
            let live = i128::from(sums[nr.0 as usize].0);
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
}
