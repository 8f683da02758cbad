//! The order in which buckets become victims, kept while things change, so that nobody ever looks at all buckets.
//!
//! The value of a bucket is (recency - lowest recency + floor) x live sectors (`victims`). All recencies fall together with
//! traffic, and the lowest one moves, so values of buckets with different live sectors change places without being touched.
//! But among buckets with the *same* number of live sectors the older one is always worth less. So there is one group per
//! number of live sectors, ordered by recency and number, and the next victim is the best of the groups' first ones.
//!
//! A group is a list of short sorted runs, found through a map of where each begins. Only the numbers of the buckets are in
//! them, since the rest of a key is in the bucket: 4 bytes a bucket and some room for growth. Joining and leaving are
//! O(log n), and the first one is at hand. (A search tree with links in the buckets took as much memory, and a miss of the
//! processor's cache for each link.)
//!
//! A bucket that is read gets more recent often and becomes a victim once, so the order does not follow: what it knows of a
//! bucket's recency is a lower bound, brought up to date when the bucket comes up. In the same way a bucket that is pinned
//! or dirty for a while may stay. What must be told at once is a change of live sectors, since it may lower the value.

use super::bucket::{Bucket, Flag, Place};
use std::collections::BTreeMap;

/// Recency at most.
const RECENCY_MAX: u16 = 32768;
/// Buckets in a run at most, and when it is made from many.
const RUN_MAX: usize = 128;
const RUN_FILL: usize = 112;
/// More live sectors than this make no difference.
const LIVE_MAX: u32 = 8191;
/// A run with fewer is joined to the one before.
const RUN_MIN: usize = 40;

/// First by the age at which recency comes to zero (0: it has come), then by number.
type Key = u64;

/// Buckets with the same number of live sectors.
#[derive(Clone, Debug, Default)]
struct Group {
    /// The first run, last one first, so that the first one is taken off its end.
    first: Vec<u32>,
    /// The others, by a key that is not above any in the run and above all in the runs before.
    rest: BTreeMap<Key, Vec<u32>>,
}

/// The first of a group and its stamp (`None`: lapsed), at hand without a look at the bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Top {
    nr: u32,
    stamp: Option<u16>,
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub(super) struct Order {
    /// By live sectors.
    groups: Vec<Group>,
    tops: Vec<Option<Top>>,
    /// Buckets are in the order of their numbers, and the rest does not matter.
    is_by_number: bool,
    /// The age of the cache: what a stamp is compared with.
    pub age: u64,
    len: usize,
}

/// The first of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub group: u32,
    pub nr: u32,
    /// Recency by what the order knows: a lower bound.
    pub recency: u16,
    /// It is known as one whose recency is zero.
    pub is_lapsed: bool,
}

/// What is left of a stamp at some age.
pub(super) fn recency_at(stamp: u16, age: u16) -> u16 {
    let left = stamp.wrapping_sub(age);
    if left <= RECENCY_MAX { left } else { 0 }
}

/// How long ago recency came to zero; 0 if it has not. Right only if that is less than half the range of stamps ago.
pub(super) fn past_at(stamp: u16, age: u16) -> u16 {
    if recency_at(stamp, age) > 0 {
        return 0;
    }
    age.wrapping_sub(stamp)
}

impl Order {
    /// For buckets of this size.
    pub fn new(bucket_sectors: u32, is_by_number: bool) -> Order {
        let count = if is_by_number {
            1
        } else {
            bucket_sectors.min(LIVE_MAX) as usize + 1
        };
        Order {
            groups: vec![Group::default(); count],
            tops: vec![None; count],
            is_by_number,
            age: 0,
            len: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// The group of a bucket with so many live sectors.
    pub fn group_of(&self, live: u32) -> u32 {
        live.min(self.groups.len() as u32 - 1)
    }

    /// Puts a bucket into the order, by its present recency.
    pub fn insert(&mut self, buckets: &mut [Bucket], nr: u32) {
        let bucket = &mut buckets[nr as usize];
        assert!(!bucket.is(Flag::Ordered), "ALLOC-9: ordered twice");
        let number = self.group_of(bucket.live.get());
        self.note(bucket, number);
        let (key, top) = (key(bucket, nr, self.age), top(bucket, nr));
        self.len += 1;
        let group = &mut self.groups[number as usize];
        let Some((_, run)) = group.rest.range_mut(..=key).next_back() else {
            let at = place_back(buckets, &group.first, key, self.age);
            if at == group.first.len() {
                self.tops[number as usize] = Some(top);
            }
            group.first.insert(at, nr);
            if group.first.len() > RUN_MAX {
                let split = group.split_first();
                let from = self::key(&buckets[split[0] as usize], split[0], self.age);
                group.rest.insert(from, split);
            }
            return;
        };
        let at = place(buckets, run, key, self.age);
        if run.len() < RUN_MAX {
            run.insert(at, nr);
        } else {
            let split = split(run, at, nr);
            let from = self::key(&buckets[split[0] as usize], split[0], self.age);
            group.rest.insert(from, split);
        }
    }

    /// How the order will know this bucket.
    fn note(&self, bucket: &mut Bucket, group: u32) {
        let stamp = if bucket.ages() {
            bucket.stamp
        } else {
            (self.age as u16).wrapping_add(bucket.stamp)
        };
        bucket.ordered = stamp;
        bucket.set(Flag::Ordered, true);
        let is_past = recency_at(stamp, self.age as u16) == 0;
        bucket.set(Flag::Lapsed, group == 0 || is_past);
    }

    /// Takes a bucket out. `live` are its live sectors when it was put in.
    pub fn remove(&mut self, buckets: &mut [Bucket], nr: u32, live: u32) {
        assert!(
            buckets[nr as usize].is(Flag::Ordered),
            "ALLOC-9: not ordered"
        );
        let number = self.group_of(live);
        let group = &mut self.groups[number as usize];
        let is_head = group.first.last() == Some(&nr);
        if is_head {
            group.first.pop();
        } else {
            group.take(buckets, nr, self.age);
        }
        let bucket = &mut buckets[nr as usize];
        bucket.set(Flag::Ordered, false);
        bucket.set(Flag::Lapsed, false);
        self.len -= 1;
        if group.first.is_empty()
            && let Some((_, next)) = group.rest.pop_first()
        {
            group.first = next;
            group.first.reverse();
        }
        if is_head {
            let next = group.first.last();
            self.tops[number as usize] = next.map(|nr| top(&buckets[*nr as usize], *nr));
        }
    }

    /// Brings what the order knows of a bucket up to date.
    pub fn renew(&mut self, buckets: &mut [Bucket], nr: u32) {
        self.remove(buckets, nr, buckets[nr as usize].live.get());
        self.insert(buckets, nr);
    }

    /// From now on the order knows the bucket as one whose recency is zero, which may be less than it is.
    pub fn lapse(&mut self, buckets: &mut [Bucket], nr: u32) {
        let (ages, stamp) = (buckets[nr as usize].ages(), buckets[nr as usize].stamp);
        self.remove(buckets, nr, buckets[nr as usize].live.get());
        buckets[nr as usize].stamp = if ages { self.age as u16 } else { 0 };
        self.insert(buckets, nr);
        buckets[nr as usize].stamp = stamp;
    }

    /// The first of each group, fewest live sectors first.
    pub fn heads(&self) -> impl Iterator<Item = Head> {
        (0..)
            .zip(&self.tops)
            .filter_map(|(group, top)| Some(self.to_head(group, (*top)?)))
    }

    /// Looks at what is about to come up, so that the processor fetches all of it at the same time instead of piece by piece.
    /// The sum means nothing.
    pub fn warm(&self, buckets: &[Bucket], group: u32, count: usize) -> u64 {
        let next = self.groups[group as usize].first.iter().rev().take(count);
        next.map(|nr| u64::from(buckets[*nr as usize].ordered))
            .sum()
    }

    /// The first of one group.
    pub fn head_of(&self, group: u32) -> Option<Head> {
        self.tops[group as usize].map(|top| self.to_head(group, top))
    }

    fn to_head(&self, group: u32, top: Top) -> Head {
        let recency = |stamp| recency_at(stamp, self.age as u16);
        Head {
            group,
            nr: top.nr,
            recency: top.stamp.map_or(0, recency),
            is_lapsed: top.stamp.is_none(),
        }
    }

    /// One of a group whose recency came to zero since the order was told of it, and which is not yet among the lapsed.
    pub fn next_past(&self, buckets: &[Bucket], head: Head) -> Option<u32> {
        if head.group == 0 || head.recency > 0 {
            return None;
        }
        if !head.is_lapsed {
            return Some(head.nr);
        }
        let first = self.next(buckets, head.group, 1 << 32)?;
        let recency = recency_at(buckets[first as usize].ordered, self.age as u16);
        (recency == 0).then_some(first)
    }

    /// The first of a group with this key or a higher one.
    fn next(&self, buckets: &[Bucket], group: u32, least: Key) -> Option<u32> {
        let group = &self.groups[group as usize];
        let first_from = |from: Key| group.rest.range(from..).next().map(|(_, run)| run[0]);
        let Some((from, run)) = group.rest.range(..=least).next_back() else {
            // Those before this place are not below.
            let at = match least.checked_sub(1) {
                Some(below) => place_back(buckets, &group.first, below, self.age),
                None => group.first.len(),
            };
            return match at.checked_sub(1) {
                Some(at) => Some(group.first[at]),
                None => first_from(0),
            };
        };
        let at = place(buckets, run, least, self.age);
        run.get(at).copied().or_else(|| first_from(*from + 1))
    }

    /// The first bucket from a number on, in an order by number.
    pub fn next_number(&self, buckets: &[Bucket], least: u32) -> Option<u32> {
        assert!(self.is_by_number);
        self.next(buckets, 0, u64::from(least))
    }

    /// Puts all that may be let go into an empty order at once: much faster than one by one.
    pub fn fill(&mut self, buckets: &mut [Bucket]) {
        assert_eq!(self.len, 0, "it is empty");
        let mut groups: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (nr, bucket) in (0..).zip(buckets.iter_mut()) {
            bucket.set(Flag::Ordered, false);
            bucket.set(Flag::Lapsed, false);
            if bucket.place() != Place::Idle || !bucket.is_let_go() || bucket.is(Flag::Parked) {
                continue;
            }
            let group = self.group_of(bucket.live.get());
            self.note(bucket, group);
            groups.entry(group).or_default().push(nr);
            self.len += 1;
        }
        for (number, mut all) in groups {
            let key = |nr: u32| key(&buckets[nr as usize], nr, self.age);
            if !all.is_sorted_by_key(|nr| key(*nr)) {
                all.sort_by_cached_key(|nr| key(*nr));
            }
            self.tops[number as usize] = Some(top(&buckets[all[0] as usize], all[0]));
            let mut runs = all.chunks(RUN_FILL).map(|run| {
                let mut some = Vec::with_capacity(if all.len() > RUN_MAX { RUN_MAX } else { 0 });
                some.extend_from_slice(run);
                some
            });
            let mut first = runs.next().expect("not empty");
            first.reverse();
            let rest = runs.map(|run| (key(run[0]), run)).collect();
            self.groups[number as usize] = Group { first, rest };
        }
    }

    /// Every bucket in the order, by group; the slow way, for checks.
    fn all(&self) -> Vec<(u32, u32)> {
        let all = (0..).zip(&self.groups).flat_map(|(number, group)| {
            let all = group
                .first
                .iter()
                .rev()
                .chain(group.rest.values().flatten());
            all.map(move |nr| (number, *nr))
        });
        all.collect()
    }

    /// Panics if a group is not in order or its head is not the first one (ALLOC-9).
    pub fn check(&self, buckets: &[Bucket]) {
        let all = self.all();
        assert_eq!(all.len(), self.len, "ALLOC-9");
        let key = |nr: u32| key(&buckets[nr as usize], nr, self.age);
        for pair in all.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            assert!(key(pair[0].1) < key(pair[1].1), "ALLOC-9: {pair:?}");
        }
        for (group, kept) in self.groups.iter().zip(&self.tops) {
            let first = group.first.last();
            let first = first.map(|nr| top(&buckets[*nr as usize], *nr));
            assert_eq!(*kept, first, "ALLOC-9: head");
            assert!(first.is_some() || group.rest.is_empty(), "ALLOC-9");
            for (from, run) in &group.rest {
                assert!(*from <= key(run[0]), "ALLOC-9: a run before its key");
                assert!(run.len() <= RUN_MAX);
            }
        }
        for (number, nr) in all {
            let bucket = &buckets[nr as usize];
            assert!(bucket.is(Flag::Ordered), "ALLOC-9");
            assert_eq!(self.group_of(bucket.live.get()), number, "ALLOC-9: {nr}");
        }
    }
}

impl Group {
    /// Takes one out of the run of its key. A short one is joined to the one before, if both fit.
    fn take(&mut self, buckets: &[Bucket], nr: u32, age: u64) {
        let key = key(&buckets[nr as usize], nr, age);
        let Some((from, run)) = self.rest.range_mut(..=key).next_back() else {
            let at = place_back(buckets, &self.first, key, age);
            assert_eq!(
                self.first.get(at),
                Some(&nr),
                "ALLOC-9: not where its key says"
            );
            self.first.remove(at);
            return;
        };
        let from = *from;
        let at = place(buckets, run, key, age);
        assert_eq!(run.get(at), Some(&nr), "ALLOC-9: not where its key says");
        run.remove(at);
        if run.len() >= RUN_MIN {
            return;
        }
        let short = self.rest.remove(&from).expect("found just now");
        if short.is_empty() {
            return;
        }
        match self.rest.range_mut(..from).next_back() {
            Some((_, before)) if before.len() + short.len() <= RUN_FILL => before.extend(short),
            None if self.first.len() + short.len() <= RUN_FILL => {
                self.first.splice(..0, short.into_iter().rev());
            }
            _ => drop(self.rest.insert(from, short)),
        }
    }

    /// Takes the later half off a first run that is too long.
    fn split_first(&mut self) -> Vec<u32> {
        let mut split = Vec::with_capacity(RUN_MAX);
        split.extend(self.first.drain(..RUN_MAX / 2));
        split.reverse();
        split
    }
}

/// Keys do not change while a bucket is in the order, although they are told apart by the age: stamps are within 32768 of it
/// on either side, see `ageing`.
fn key(bucket: &Bucket, nr: u32, age: u64) -> Key {
    if bucket.is(Flag::Lapsed) {
        return u64::from(nr);
    }
    let ahead = bucket.ordered.wrapping_sub(age as u16);
    let zero_at = if ahead <= RECENCY_MAX {
        age + u64::from(ahead)
    } else {
        age - u64::from(ahead.wrapping_neg())
    };
    // One more, so that none has the key of a lapsed one.
    (zero_at + 1) << 32 | u64::from(nr)
}

/// Where a key is in a run, or would be.
fn place(buckets: &[Bucket], run: &[u32], key: Key, age: u64) -> usize {
    run.partition_point(|nr| self::key(&buckets[*nr as usize], *nr, age) < key)
}

/// The same in a run that begins with the last one.
fn place_back(buckets: &[Bucket], run: &[u32], key: Key, age: u64) -> usize {
    run.partition_point(|nr| self::key(&buckets[*nr as usize], *nr, age) > key)
}

/// Puts one more into a full run, which becomes two; gives the second. At its end it just goes on in a new one, so that what is
/// filled in order is dense.
fn split(run: &mut Vec<u32>, at: usize, nr: u32) -> Vec<u32> {
    let mut split = Vec::with_capacity(RUN_MAX);
    if at == run.len() {
        split.push(nr);
        return split;
    }
    split.extend(run.drain(RUN_MAX / 2..));
    match at.checked_sub(run.len()) {
        None | Some(0) => run.insert(at, nr),
        Some(at) => split.insert(at, nr),
    }
    split
}

fn top(bucket: &Bucket, nr: u32) -> Top {
    let stamp = (!bucket.is(Flag::Lapsed)).then_some(bucket.ordered);
    Top { nr, stamp }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// Everything in one sorted set: group, whether it has recency left, when that ends, number.
    type Naive = BTreeSet<(u32, bool, u64, u32)>;

    fn entry(bucket: &Bucket, nr: u32, age: u64) -> (u32, bool, u64, u32) {
        let left = u64::from(recency_at(bucket.stamp, age as u16));
        let has_left = left > 0 && bucket.live.get() > 0;
        let zero_at = if has_left { age + left } else { 0 };
        (bucket.live.get(), has_left, zero_at, nr)
    }

    fn idle(live: u32, stamp: u16) -> Bucket {
        let mut bucket = Bucket::new(Place::Idle);
        bucket.add_live(live, false);
        bucket.stamp = stamp;
        bucket
    }

    fn heads(naive: &Naive) -> Vec<(u32, u32)> {
        let mut heads: Vec<(u32, u32)> = Vec::new();
        for (group, _, _, nr) in naive {
            if heads.last().is_none_or(|last| last.0 != *group) {
                heads.push((*group, *nr));
            }
        }
        heads
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn runs_split_join_and_stay_in_order(
            live in prop::collection::vec(0..4u32, 1500),
            stamps in prop::collection::vec(0..40u16, 1500),
            is_filled in any::<bool>(),
            ops in prop::collection::vec((0..1500u32, 0..4u8), 1..4000),
        ) {
            let mut buckets: Vec<Bucket> =
                live.iter().zip(&stamps).map(|(live, stamp)| idle(*live, *stamp)).collect();
            let (mut order, mut naive) = (Order::new(64, false), Naive::new());
            if is_filled {
                order.fill(&mut buckets);
                naive = (0..).zip(&buckets).map(|(nr, bucket)| entry(bucket, nr, 0)).collect();
            }
            let mut age = 0;
            for (nr, what) in ops {
                let bucket = &buckets[nr as usize];
                let live = bucket.live.get();
                match (bucket.is(Flag::Ordered), what) {
                    (true, 0..3) => {
                        prop_assert!(naive.iter().any(|entry| entry.3 == nr));
                        naive.retain(|entry| entry.3 != nr);
                        order.remove(&mut buckets, nr, live);
                    }
                    (true, _) => {
                        naive.retain(|entry| entry.3 != nr);
                        order.lapse(&mut buckets, nr);
                        naive.insert((live, false, 0, nr));
                    }
                    (false, _) => {
                        order.insert(&mut buckets, nr);
                        naive.insert(entry(&buckets[nr as usize], nr, age));
                    }
                }
                if nr % 97 == 0 {
                    age += 1;
                    order.age = age;
                }
                if nr % 31 == 0 {
                    order.check(&buckets);
                    let all: Vec<(u32, u32)> = naive.iter().map(|e| (e.0, e.3)).collect();
                    prop_assert_eq!(order.all(), all);
                    let got: Vec<_> = order.heads().map(|head| (head.group, head.nr)).collect();
                    prop_assert_eq!(got, heads(&naive));
                }
            }
        }

        #[test]
        fn an_order_by_number_finds_the_next_one(
            present in prop::collection::btree_set(0..5000u32, 1..3000),
            least in prop::collection::vec(0..5001u32, 50),
            is_filled in any::<bool>(),
        ) {
            let mut buckets: Vec<Bucket> = (0..5000)
                .map(|nr| {
                    let place = if present.contains(&nr) { Place::Idle } else { Place::Open };
                    Bucket::new(place)
                })
                .collect();
            let mut order = Order::new(64, true);
            if is_filled {
                order.fill(&mut buckets);
            } else {
                // Not in their order, so that runs split in the middle.
                for nr in present.iter().step_by(2).chain(present.iter().skip(1).step_by(2)) {
                    order.insert(&mut buckets, *nr);
                }
            }
            order.check(&buckets);
            for least in least {
                prop_assert_eq!(
                    order.next_number(&buckets, least),
                    present.range(least..).next().copied()
                );
            }
        }
    }
}
