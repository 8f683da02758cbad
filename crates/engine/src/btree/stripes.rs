//! Dirty sectors for each stripe of a backing device that writes whole stripes at less cost than parts of them: RAID 5 and 6 (F.2).
//!
//! Counts are exact from the start of the volume up to where leaves have been counted; behind that nothing is known, and changes
//! there are counted once their leaf's turn comes.
//!
//! - **STRIPE-1** Up to there, the dirty sectors of each stripe are those of the index, and the full ones are those all of whose
//!   sectors that can be dirty are.

use std::collections::BTreeSet;

/// Stripes that are taken in one step, at most.
const TAKEN_AT_ONCE: u64 = 64;

/// Where stripes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StripeLayout {
    /// Sectors of one. The first begins where the device does.
    pub sectors: u64,
    /// First and last sector (exclusive) that may be dirty.
    pub range: (u64, u64),
}

impl StripeLayout {
    /// Stripes of so many sectors, or of as few times that as makes them no more than `most`: each takes memory.
    pub fn new(sectors: u64, range: (u64, u64), most: u64) -> StripeLayout {
        let sectors = sectors.max(1);
        let times = range.1.div_ceil(sectors).div_ceil(most.max(1)).max(1);
        StripeLayout {
            sectors: sectors.saturating_mul(times),
            range,
        }
    }

    fn count(&self) -> usize {
        self.range.1.div_ceil(self.sectors) as usize
    }

    /// What of a stripe may be dirty.
    fn bounds(&self, stripe: u64) -> (u64, u64) {
        let start = stripe * self.sectors;
        let (low, high) = self.range;
        (start.max(low), (start + self.sectors).min(high))
    }

    fn len(&self, stripe: u64) -> u64 {
        let (start, end) = self.bounds(stripe);
        end.saturating_sub(start)
    }

    /// A range cut where stripes end: which one, and how many sectors of it.
    fn parts(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (low, high) = self.range;
        let (mut at, end, sectors) = (start.max(low), end.min(high), self.sectors);
        std::iter::from_fn(move || {
            let stripe = at / sectors;
            let until = end.min((stripe + 1) * sectors);
            let part = (at < end).then(|| (stripe, until - at));
            at = until;
            part
        })
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Stripes {
    layout: StripeLayout,
    counted_to: u64,
    dirty: Vec<u32>,
    /// How many have dirty data.
    touched: usize,
    /// All of each is dirty.
    full: BTreeSet<u64>,
    /// Those that nobody has taken since they became so.
    waiting: BTreeSet<u64>,
}

impl Stripes {
    /// Nothing is counted yet.
    pub fn new(layout: StripeLayout) -> Stripes {
        Stripes {
            layout,
            counted_to: layout.range.0,
            dirty: vec![0; layout.count()],
            touched: 0,
            full: BTreeSet::new(),
            waiting: BTreeSet::new(),
        }
    }

    /// Where they are.
    pub fn layout(&self) -> StripeLayout {
        self.layout
    }

    /// The device has grown up to here: what was its last stripe may be longer, and what is behind is to be counted.
    pub fn resize(&mut self, end: u64) {
        let last = (self.dirty.len() as u64).checked_sub(1);
        self.layout.range.1 = end;
        self.dirty.resize(self.layout.count(), 0);
        let is_shorter =
            |last: &u64| u64::from(self.dirty[*last as usize]) < self.layout.len(*last);
        if let Some(last) = last.filter(is_shorter) {
            self.full.remove(&last);
            self.waiting.remove(&last);
        }
    }

    /// Up to where leaves are counted.
    pub fn counted_to(&self) -> u64 {
        self.counted_to
    }

    /// All are.
    pub fn is_counted(&self) -> bool {
        self.counted_to >= self.layout.range.1
    }

    /// What follows up to here is counted from now on: these ranges of it, ascending, are dirty.
    pub fn count(&mut self, to: u64, dirty: impl Iterator<Item = (u64, u64)>) {
        let from = self.counted_to;
        self.counted_to = to.clamp(from, self.layout.range.1);
        dirty.for_each(|(start, end)| self.add(start.max(from), end));
    }

    fn parts(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        self.layout.parts(start, end.min(self.counted_to))
    }

    /// What was clean or not there is dirty.
    pub fn add(&mut self, start: u64, end: u64) {
        for (stripe, sectors) in self.parts(start, end) {
            let dirty = &mut self.dirty[stripe as usize];
            self.touched += usize::from(*dirty == 0);
            *dirty += sectors as u32;
            if u64::from(*dirty) == self.layout.len(stripe) {
                self.full.insert(stripe);
                self.waiting.insert(stripe);
            }
        }
    }

    /// What was dirty is not.
    pub fn sub(&mut self, start: u64, end: u64) {
        for (stripe, sectors) in self.parts(start, end) {
            let dirty = &mut self.dirty[stripe as usize];
            if u64::from(*dirty) == self.layout.len(stripe) {
                self.full.remove(&stripe);
                self.waiting.remove(&stripe);
            }
            *dirty -= sectors as u32;
            self.touched -= usize::from(*dirty == 0);
        }
    }

    /// Whether a stripe of this range has dirty data, as far as is known.
    pub fn touches_dirty(&self, start: u64, end: u64) -> bool {
        let mut parts = self.parts(start, end);
        parts.any(|(stripe, _)| self.dirty[stripe as usize] > 0)
    }

    /// There is one to be taken.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The first that begins at or behind a sector of the stripes that are dirty as a whole and were not taken since they became so, with some that
    /// follow it. They are taken then, whatever becomes of them.
    pub fn take_full(&mut self, from: u64) -> Option<(u64, u64)> {
        let first = *self
            .waiting
            .range(from.div_ceil(self.layout.sectors)..)
            .next()?;
        let mut end = first;
        while end - first < TAKEN_AT_ONCE && self.waiting.remove(&end) {
            end += 1;
        }
        Some((self.layout.bounds(first).0, self.layout.bounds(end - 1).1))
    }

    /// How many have dirty data, and how many nothing else.
    pub fn counts(&self) -> (usize, usize) {
        (self.touched, self.full.len())
    }

    /// Memory they take, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.dirty.len() * size_of::<u32>() + 32 * (self.full.len() + self.waiting.len())
    }

    /// Compares with what is dirty, ascending; panics with what does not hold.
    pub fn audit(&self, dirty: impl Iterator<Item = (u64, u64)>) {
        let mut recount = Stripes::new(self.layout);
        recount.count(self.counted_to, dirty);
        assert_eq!(self.counted_to, recount.counted_to, "STRIPE-1");
        for (stripe, (has, should)) in self.dirty.iter().zip(&recount.dirty).enumerate() {
            assert_eq!(has, should, "STRIPE-1: dirty sectors of stripe {stripe}");
        }
        assert_eq!(self.touched, recount.touched, "STRIPE-1: touched");
        assert_eq!(self.full, recount.full, "STRIPE-1: full");
        assert!(self.waiting.is_subset(&self.full), "STRIPE-1: waiting");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(sectors: u64, range: (u64, u64)) -> Stripes {
        let mut stripes = Stripes::new(StripeLayout::new(sectors, range, 1 << 20));
        stripes.count(range.1, std::iter::empty());
        stripes
    }

    /// T147: a length that is no power of two, ranges across borders, a first and a last stripe of which only a part is served.
    #[test]
    fn sectors_count_for_the_stripes_they_are_in() {
        let mut stripes = counted(48, (16, 200));
        stripes.add(40, 150);
        assert_eq!(stripes.dirty, [8, 48, 48, 6, 0]);
        assert_eq!(stripes.counts(), (4, 2));
        stripes.sub(95, 97);
        assert_eq!(stripes.dirty, [8, 47, 47, 6, 0]);
        assert_eq!(stripes.counts(), (4, 0));
        stripes.add(16, 40);
        stripes.add(192, 200);
        assert_eq!(
            stripes.counts(),
            (5, 2),
            "what is served of the first and the last"
        );
        assert!(stripes.touches_dirty(150, 151), "another part of a stripe");
        stripes.sub(16, 48);
        assert!(!stripes.touches_dirty(0, 48) && stripes.touches_dirty(0, 49));
        // What nobody can write is nobody's.
        stripes.add(200, 900);
        stripes.audit([(48, 95), (97, 150), (192, 200)].into_iter());
        // The last one, which ends before its border, is not behind its own end.
        assert_eq!(stripes.take_full(200), None);
    }

    /// T147.
    #[test]
    fn runs_of_full_stripes_are_taken_once_from_the_position_on() {
        let mut stripes = counted(32, (0, 320));
        stripes.add(0, 32);
        stripes.add(96, 192);
        stripes.add(256, 288);
        assert_eq!(stripes.take_full(96), Some((96, 192)));
        assert_eq!(stripes.take_full(192), Some((256, 288)));
        assert_eq!(stripes.take_full(288), None);
        assert_eq!(stripes.take_full(0), Some((0, 32)));
        assert_eq!(stripes.take_full(0), None, "each is taken once");
        stripes.sub(100, 104);
        stripes.add(100, 104);
        assert_eq!(stripes.take_full(97), None, "it begins before");
        assert_eq!(stripes.take_full(95), Some((96, 128)), "full again");
    }

    #[test]
    fn what_is_not_counted_yet_does_not_count_and_a_change_before_that_does() {
        let mut stripes = Stripes::new(StripeLayout::new(32, (0, 320), 10));
        stripes.add(0, 64);
        assert!(!stripes.touches_dirty(0, 320));
        stripes.count(40, [(0, 64)].into_iter());
        assert_eq!(stripes.dirty[..3], [32, 8, 0]);
        stripes.sub(30, 50);
        assert_eq!(stripes.dirty[..3], [30, 0, 0]);
        stripes.count(320, [(50, 64)].into_iter());
        assert!(stripes.is_counted());
        stripes.audit([(0, 30), (50, 64)].into_iter());
    }

    #[test]
    fn a_device_that_has_grown_has_a_longer_last_stripe_and_more() {
        let mut stripes = counted(64, (16, 100));
        stripes.add(64, 100);
        assert_eq!(stripes.counts(), (1, 1));
        stripes.resize(400);
        assert!(!stripes.is_counted());
        stripes.count(400, [(100, 104)].into_iter());
        stripes.sub(100, 104);
        assert_eq!((stripes.counts(), stripes.take_full(0)), ((1, 0), None));
        stripes.add(100, 256);
        assert_eq!(stripes.take_full(0), Some((64, 256)));
        stripes.audit([(64, 256)].into_iter());
    }

    #[test]
    fn there_are_never_too_many_stripes() {
        let layout = StripeLayout::new(24, (0, 1 << 40), 1000);
        assert!((900..=1000).contains(&layout.count()));
        assert!(layout.sectors.is_multiple_of(24));
        assert_eq!(StripeLayout::new(0, (0, 8), 8).count(), 8);
        let mut stripes = counted(8, (0, 8 << 10));
        stripes.add(0, 8 << 10);
        assert_eq!(stripes.take_full(0), Some((0, 8 * TAKEN_AT_ONCE)));
    }
}
