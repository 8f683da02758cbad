//! Recency: traffic ages all buckets at once, without looking at them.
//!
//! The cache has an age, in steps of a 1024th of its size of traffic. A bucket that ages has a stamp, the age at which its
//! recency comes to zero; what does not age (pinned, being filled, in a list) has its recency itself. So a step is: add one
//! to the age, and find the lowest recency, for which the number of buckets per stamp is kept. Once in 16384 steps every
//! bucket is passed, a few at each step, so that stamps of 16 bits are never further than half their range from the age.

use super::order::recency_at;
use super::{PRIO_FRESH, PRIO_METADATA};

/// Steps in which each bucket is passed once.
const SWEEP_STEPS: u64 = 1 << 14;
/// A stamp that was passed so many steps ago is brought up to the age.
pub(super) const STAMP_PAST: u16 = 1 << 13;

#[derive(Clone, Debug)]
pub(super) struct Ageing {
    age: u64,
    /// Buckets per stamp that age and are not at zero.
    counts: Counts,
    /// No counted stamp is lower than this one.
    lowest: u64,
    /// Smallest recency met by the last step, as the spec has it: 0 before the first, [`PRIO_METADATA`] if there was none.
    pub min_prio: u16,
    /// Sectors of traffic until the next step; below zero one is due.
    traffic: i64,
    /// The bucket the sweep comes to next.
    sweep: u64,
}

impl Ageing {
    pub fn new() -> Ageing {
        Ageing {
            age: 0,
            counts: Counts::new(),
            lowest: 0,
            min_prio: 0,
            traffic: 0,
            sweep: 0,
        }
    }

    /// The age as stamps have it.
    pub fn age(&self) -> u16 {
        self.age as u16
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.age
    }

    /// The stamp of a bucket that begins to age with this recency.
    pub fn stamp(&mut self, prio: u16) -> u16 {
        let stamp = self.age + u64::from(prio);
        if prio > 0 {
            *self.counts.of(stamp as u16) += 1;
            self.lowest = self.lowest.min(stamp);
        }
        stamp as u16
    }

    /// The recency of a bucket that ends ageing.
    pub fn unstamp(&mut self, stamp: u16) -> u16 {
        let prio = recency_at(stamp, self.age());
        if prio > 0 {
            *self.counts.of(stamp) -= 1;
        }
        prio
    }

    /// Counts traffic; says whether a step is due. `step` is its size.
    pub fn traffic(&mut self, sectors: u64, step: u64) -> bool {
        self.traffic = self
            .traffic
            .saturating_sub(i64::try_from(sectors).unwrap_or(i64::MAX));
        if self.traffic >= 0 {
            return false;
        }
        let step = i64::try_from(step).unwrap_or(i64::MAX);
        self.traffic = self.traffic.saturating_add(step);
        true
    }

    /// One step.
    pub fn step(&mut self) {
        self.age += 1;
        self.lowest = self.lowest.max(self.age);
        let end = self.age + u64::from(PRIO_FRESH);
        self.lowest = self.counts.first(self.lowest, end);
        self.min_prio = if self.lowest < end {
            (self.lowest - self.age) as u16
        } else {
            PRIO_METADATA
        };
        // These are at zero now, and are counted no more.
        self.counts.clear(self.age as u16);
    }

    /// The buckets to pass at this step.
    pub fn sweep(&mut self, nbuckets: u64) -> impl Iterator<Item = u64> + use<> {
        let (start, count) = (self.sweep, nbuckets.div_ceil(SWEEP_STEPS));
        self.sweep = (start + count) % nbuckets;
        (start..start + count).map(move |nr| nr % nbuckets)
    }

    /// Stamps that are somebody's and how many have each, to be compared with a recount.
    pub fn counts(&self) -> impl Iterator<Item = (u16, u32)> + '_ {
        let pages = (0..).zip(&self.counts.0);
        let used = pages.filter_map(|(at, page)| Some((at, page.as_ref()?)));
        used.flat_map(|(at, page)| (at * PAGE..).zip(page.iter()))
            .filter(|(_, count)| **count > 0)
            .map(|(stamp, count)| (stamp as u16, *count))
    }
}

/// Stamps in a page of counts.
const PAGE: usize = 1 << 8;

/// How many buckets have each stamp, in pages: nearly all stamps are nobody's for a long time.
#[derive(Clone, Debug)]
struct Counts(Vec<Option<Box<[u32; PAGE]>>>);

impl Counts {
    fn new() -> Counts {
        Counts(vec![None; (1 << 16) / PAGE])
    }

    fn of(&mut self, stamp: u16) -> &mut u32 {
        let at = usize::from(stamp);
        let page = self.0[at / PAGE].get_or_insert_with(|| Box::new([0; PAGE]));
        &mut page[at % PAGE]
    }

    /// The first stamp from one on that is somebody's, before an end.
    fn first(&self, mut from: u64, end: u64) -> u64 {
        while from < end {
            let at = usize::from(from as u16);
            match &self.0[at / PAGE] {
                Some(page) if page[at % PAGE] > 0 => return from,
                Some(_) => from += 1,
                None => from += (PAGE - at % PAGE) as u64,
            }
        }
        end
    }

    /// The stamp is nobody's any more, as all before it.
    fn clear(&mut self, stamp: u16) {
        let at = usize::from(stamp);
        if let Some(page) = &mut self.0[at / PAGE] {
            page[at % PAGE] = 0;
        }
        if at % PAGE == PAGE - 1 {
            self.0[at / PAGE] = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2048 buckets of 1024 sectors: a step of 2048.
    const STEP: u64 = 2048 * 1024 / 1024;

    /// T014: also what is left until the next step.
    #[test]
    fn the_first_traffic_makes_a_step_and_counts_towards_the_next() {
        let mut ageing = Ageing::new();
        assert!(ageing.traffic(8, STEP));
        assert_eq!(ageing.traffic, STEP as i64 - 8);
        assert!(!ageing.traffic(STEP - 8, STEP));
        assert!(ageing.traffic(1, STEP));
    }

    /// T015.
    #[test]
    fn five_steps_of_traffic_make_five_more_steps() {
        let mut ageing = Ageing::new();
        assert!(ageing.traffic(8, STEP));
        let requests = 5 * STEP / 8;
        let steps = (0..requests).filter(|_| ageing.traffic(8, STEP)).count();
        assert_eq!(steps, 5);
    }

    /// T016: what it is more than a step is made up for by those that come after.
    #[test]
    fn one_request_makes_one_step_however_long_it_is() {
        let mut ageing = Ageing::new();
        assert!(ageing.traffic(8, STEP));
        assert!(ageing.traffic(4 * STEP, STEP), "one of its own");
        let next = (0..10).filter(|_| ageing.traffic(0, STEP)).count();
        assert_eq!(next, 3, "and the others with those that follow");
    }
}
