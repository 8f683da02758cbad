//! The order in which buckets become victims, kept while things change, so that nobody ever looks at all buckets.
//!
//! The value of a bucket is (recency - lowest recency + floor) x live sectors (`victims`). All recencies fall together with
//! traffic, and the lowest one moves, so values of buckets with different live sectors change places without being touched.
//! But among buckets with the *same* number of live sectors the older one is always worth less. So there is one group per
//! number of live sectors, ordered by recency and number, and the next victim is the best of the groups' first ones.
//!
//! A group is a treap: a search tree by (recency, number), and a heap by a hash of the number that is salted by chance, so
//! that it stays balanced whatever an image says. Its links are in the buckets. Joining and leaving take O(log n).
//!
//! A bucket that is read gets more recent often and becomes a victim once, so the order does not follow: what it knows of a
//! bucket's recency is a lower bound, brought up to date when the bucket comes up. In the same way a bucket that is pinned
//! or dirty for a while may stay. What must be told at once is a change of live sectors, since it may lower the value.

use super::bucket::{Bucket, Flag, Place};
use std::collections::BTreeMap;

/// No bucket.
const NONE: u32 = u32::MAX;
/// Recency at most.
const RECENCY_MAX: u16 = 32768;

/// Where a link is.
#[derive(Clone, Copy)]
enum Hook {
    Root,
    Of(u32, Side),
}

#[derive(Clone, Copy)]
#[repr(u8)]
enum Side {
    Left,
    Right,
}

/// First by recency, then by number.
type Key = (u16, u32);

/// Buckets with the same number of live sectors.
#[derive(Clone, Copy, Debug)]
struct Group {
    root: u32,
    /// The first one, and its stamp (`None`: lapsed), at hand without a look at the bucket.
    head: u32,
    stamp: Option<u16>,
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub(super) struct Order {
    groups: BTreeMap<u32, Group>,
    salt: u32,
    /// Buckets are in the order of their numbers, and the rest does not matter.
    is_by_number: bool,
    /// More live sectors than this make no difference.
    live_max: u32,
    /// The age of the cache: what a stamp is compared with.
    pub age: u16,
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

impl Order {
    pub fn new(live_max: u32, is_by_number: bool, salt: u32) -> Order {
        Order {
            groups: BTreeMap::new(),
            salt,
            is_by_number,
            live_max,
            age: 0,
            len: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn salt(&self) -> u32 {
        self.salt
    }

    /// The group of a bucket with so many live sectors.
    pub fn group_of(&self, live: u32) -> u32 {
        if self.is_by_number {
            return 0;
        }
        live.min(self.live_max)
    }

    /// A bijection, so that no two buckets are alike (a mix of shifts and odd factors).
    fn rank(&self, nr: u32) -> u32 {
        let mut x = nr ^ self.salt;
        x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
        x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
        x ^ (x >> 16)
    }

    /// Stamps are within 32768 of the age on either side, see `ageing`.
    fn key(&self, bucket: &Bucket, nr: u32) -> Key {
        if bucket.is(Flag::Lapsed) {
            return (0, nr);
        }
        let ahead = bucket.ordered.wrapping_sub(self.age);
        (ahead.wrapping_add(RECENCY_MAX - 1).max(1), nr)
    }

    fn key_of(&self, buckets: &[Bucket], nr: u32) -> Key {
        self.key(&buckets[nr as usize], nr)
    }

    /// Puts a bucket into the order, by its present recency.
    pub fn insert(&mut self, buckets: &mut [Bucket], nr: u32) {
        let bucket = &mut buckets[nr as usize];
        assert!(!bucket.is(Flag::Ordered), "ALLOC-9: ordered twice");
        let group = self.group_of(bucket.live.get());
        self.note(bucket, group);
        let bucket = &buckets[nr as usize];
        let (key, rank) = (self.key(bucket, nr), self.rank(nr));
        let stamp = (!bucket.is(Flag::Lapsed)).then_some(bucket.ordered);
        let first = Group {
            root: NONE,
            head: nr,
            stamp,
        };
        let mut root = self.groups.get(&group).map_or(NONE, |group| group.root);
        let (mut hook, mut at) = (Hook::Root, root);
        while at != NONE && self.rank(at) > rank {
            let side = side(key < self.key_of(buckets, at));
            hook = Hook::Of(at, side);
            at = link(buckets, at, side);
        }
        self.split(buckets, at, key, nr);
        set(buckets, &mut root, hook, nr);
        let head = self.groups.get(&group).map(|group| group.head);
        let is_head = head.is_none_or(|head| key < self.key_of(buckets, head));
        let group = self.groups.entry(group).or_insert(first);
        group.root = root;
        if is_head {
            (group.head, group.stamp) = (nr, stamp);
        }
        self.len += 1;
    }

    /// How the order will know this bucket.
    fn note(&self, bucket: &mut Bucket, group: u32) {
        let stamp = if bucket.ages() {
            bucket.stamp
        } else {
            self.age.wrapping_add(bucket.stamp)
        };
        bucket.ordered = stamp;
        bucket.set(Flag::Ordered, true);
        bucket.set(Flag::Lapsed, group == 0 || recency_at(stamp, self.age) == 0);
    }

    /// What is below `at` goes to both sides of `nr`.
    fn split(&self, buckets: &mut [Bucket], mut at: u32, key: Key, nr: u32) {
        let (mut left, mut right) = (Hook::Of(nr, Side::Left), Hook::Of(nr, Side::Right));
        let mut unused = NONE;
        while at != NONE {
            if self.key_of(buckets, at) < key {
                set(buckets, &mut unused, left, at);
                left = Hook::Of(at, Side::Right);
                at = link(buckets, at, Side::Right);
            } else {
                set(buckets, &mut unused, right, at);
                right = Hook::Of(at, Side::Left);
                at = link(buckets, at, Side::Left);
            }
        }
        set(buckets, &mut unused, left, NONE);
        set(buckets, &mut unused, right, NONE);
    }

    /// Takes a bucket out. `live` are its live sectors when it was put in.
    pub fn remove(&mut self, buckets: &mut [Bucket], nr: u32, live: u32) {
        assert!(
            buckets[nr as usize].is(Flag::Ordered),
            "ALLOC-9: not ordered"
        );
        let number = self.group_of(live);
        let group = *self.groups.get(&number).expect("ALLOC-9: a group");
        let key = self.key_of(buckets, nr);
        let (mut root, mut hook, mut at) = (group.root, Hook::Root, group.root);
        while at != nr {
            assert!(at != NONE, "ALLOC-9: {nr} is not where its key says");
            let side = side(key < self.key_of(buckets, at));
            hook = Hook::Of(at, side);
            at = link(buckets, at, side);
        }
        self.merge(buckets, &mut root, hook, nr);
        let bucket = &mut buckets[nr as usize];
        bucket.set(Flag::Ordered, false);
        bucket.set(Flag::Lapsed, false);
        self.len -= 1;
        if root == NONE {
            self.groups.remove(&number);
            return;
        }
        let mut changed = Group { root, ..group };
        if group.head == nr {
            changed.head = leftmost(buckets, root);
            let head = &buckets[changed.head as usize];
            changed.stamp = (!head.is(Flag::Lapsed)).then_some(head.ordered);
        }
        self.groups.insert(number, changed);
    }

    /// What is below `nr` takes its place.
    fn merge(&self, buckets: &mut [Bucket], root: &mut u32, mut hook: Hook, nr: u32) {
        let [mut left, mut right] = buckets[nr as usize].links;
        loop {
            if left == NONE || right == NONE {
                let rest = if left == NONE { right } else { left };
                return set(buckets, root, hook, rest);
            }
            if self.rank(left) > self.rank(right) {
                set(buckets, root, hook, left);
                hook = Hook::Of(left, Side::Right);
                left = link(buckets, left, Side::Right);
            } else {
                set(buckets, root, hook, right);
                hook = Hook::Of(right, Side::Left);
                right = link(buckets, right, Side::Left);
            }
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
        buckets[nr as usize].stamp = if ages { self.age } else { 0 };
        self.insert(buckets, nr);
        buckets[nr as usize].stamp = stamp;
    }

    /// The first of each group, fewest live sectors first.
    pub fn heads(&self) -> impl Iterator<Item = Head> {
        let head = |(number, group): (&u32, &Group)| self.to_head(*number, group);
        self.groups.iter().map(head)
    }

    /// The first of one group.
    pub fn head_of(&self, group: u32) -> Option<Head> {
        self.groups
            .get(&group)
            .map(|found| self.to_head(group, found))
    }

    fn to_head(&self, number: u32, group: &Group) -> Head {
        Head {
            group: number,
            nr: group.head,
            recency: group.stamp.map_or(0, |stamp| recency_at(stamp, self.age)),
            is_lapsed: group.stamp.is_none(),
        }
    }

    /// One of a group whose recency came to zero since the order was told of it, and which is not yet among the lapsed.
    pub fn next_past(&self, buckets: &[Bucket], head: Head) -> Option<u32> {
        let is_past = |nr: u32| recency_at(buckets[nr as usize].ordered, self.age) == 0;
        if head.group == 0 || head.recency > 0 {
            return None;
        }
        if !head.is_lapsed {
            return Some(head.nr);
        }
        let (mut at, mut first) = (self.groups.get(&head.group)?.root, None);
        while at != NONE {
            if buckets[at as usize].is(Flag::Lapsed) {
                at = link(buckets, at, Side::Right);
            } else {
                first = Some(at);
                at = link(buckets, at, Side::Left);
            }
        }
        first.filter(|nr| is_past(*nr))
    }

    /// The first bucket from a number on, in an order by number.
    pub fn next_number(&self, buckets: &[Bucket], least: u32) -> Option<u32> {
        assert!(self.is_by_number);
        let (mut at, mut best) = (self.groups.get(&0)?.root, None);
        while at != NONE {
            if at >= least {
                best = Some(at);
                at = link(buckets, at, Side::Left);
            } else {
                at = link(buckets, at, Side::Right);
            }
        }
        best
    }

    /// Puts all that may be let go into an empty order at once: much faster than one by one.
    pub fn fill(&mut self, buckets: &mut [Bucket]) {
        assert!(self.groups.is_empty());
        let mut sorted: Vec<(u64, u32)> = Vec::new();
        for (nr, bucket) in (0..).zip(buckets.iter_mut()) {
            bucket.set(Flag::Ordered, false);
            bucket.set(Flag::Lapsed, false);
            if bucket.place() != Place::Idle || !bucket.is_let_go() || bucket.is(Flag::Parked) {
                continue;
            }
            let group = self.group_of(bucket.live.get());
            self.note(bucket, group);
            let recency = self.key(bucket, nr).0;
            sorted.push((u64::from(group) << 16 | u64::from(recency), nr));
        }
        sorted.sort_unstable();
        self.len = sorted.len();
        for group in sorted.chunk_by(|a, b| a.0 >> 16 == b.0 >> 16) {
            let number = (group[0].0 >> 16) as u32;
            let root = self.grow(buckets, group.iter().map(|(_, nr)| *nr));
            let (head, first) = (group[0].1, &buckets[group[0].1 as usize]);
            let stamp = (!first.is(Flag::Lapsed)).then_some(first.ordered);
            self.groups.insert(number, Group { root, head, stamp });
        }
    }

    /// A treap of buckets in order, along its right edge.
    fn grow(&self, buckets: &mut [Bucket], sorted: impl Iterator<Item = u32>) -> u32 {
        let mut edge: Vec<u32> = Vec::new();
        for nr in sorted {
            let mut below = NONE;
            while let Some(last) = edge.pop_if(|last| self.rank(*last) < self.rank(nr)) {
                below = last;
            }
            buckets[nr as usize].links = [below, NONE];
            if let Some(last) = edge.last() {
                buckets[*last as usize].links[Side::Right as usize] = nr;
            }
            edge.push(nr);
        }
        edge.first().copied().unwrap_or(NONE)
    }

    /// Every bucket in the order, by group; the slow way, for checks.
    pub fn all(&self, buckets: &[Bucket]) -> Vec<(u32, u32)> {
        let mut found = Vec::new();
        for (number, group) in &self.groups {
            let (mut path, mut at) = (Vec::new(), group.root);
            while at != NONE || !path.is_empty() {
                while at != NONE {
                    path.push(at);
                    at = link(buckets, at, Side::Left);
                }
                at = path.pop().expect("not empty");
                found.push((*number, at));
                at = link(buckets, at, Side::Right);
            }
        }
        found
    }

    /// Panics if a group is not in order or its head is not the first one (ALLOC-9).
    pub fn check(&self, buckets: &[Bucket]) {
        let all = self.all(buckets);
        assert_eq!(all.len(), self.len, "ALLOC-9");
        for pair in all.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            let [before, after] = [pair[0].1, pair[1].1].map(|nr| self.key_of(buckets, nr));
            assert!(before < after, "ALLOC-9: {before:?} before {after:?}");
        }
        for group in all.chunk_by(|a, b| a.0 == b.0) {
            let (number, nr) = group[0];
            let kept = &self.groups[&number];
            let head = &buckets[nr as usize];
            let stamp = (!head.is(Flag::Lapsed)).then_some(head.ordered);
            assert_eq!((kept.head, kept.stamp), (nr, stamp), "ALLOC-9: head");
        }
        for (number, nr) in all {
            let bucket = &buckets[nr as usize];
            assert!(bucket.is(Flag::Ordered), "ALLOC-9");
            assert_eq!(self.group_of(bucket.live.get()), number, "ALLOC-9: {nr}");
        }
    }
}

fn side(is_left: bool) -> Side {
    if is_left { Side::Left } else { Side::Right }
}

fn link(buckets: &[Bucket], nr: u32, side: Side) -> u32 {
    buckets[nr as usize].links[side as usize]
}

fn set(buckets: &mut [Bucket], root: &mut u32, hook: Hook, to: u32) {
    match hook {
        Hook::Root => *root = to,
        Hook::Of(nr, side) => buckets[nr as usize].links[side as usize] = to,
    }
}

fn leftmost(buckets: &[Bucket], mut at: u32) -> u32 {
    while link(buckets, at, Side::Left) != NONE {
        at = link(buckets, at, Side::Left);
    }
    at
}
