//! An ordered map of non-overlapping extents: which sectors of which volume are cached where.
//!
//! Serves as the index of a whole cache set and, keeping holes, as the set of changes a leaf still has to write.
//! It is pure: no clock, no I/O, and no opinion on staleness. Every change tells its caller slice by slice what it
//! displaced, so that the live counters of the buckets stay exact without any later counting pass.
//!
//! Decisions that shaped it: entries are keyed by (inode, end) because the format orders keys that way
//! (docs/format.md 3.3), so a leaf's share is one range of the map; key and value are packed into 12 bytes each,
//! because a large cache has tens of millions of them.
//!
//! Invariants:
//! * EXT-1: no two entries of one inode overlap.
//! * EXT-2: an entry covers between 1 and [`Extent::MAX_SECTORS`] sectors and starts at 0 or later.
//! * EXT-3: a map made by [`ExtentMap::new`] holds no hole.
//! * EXT-4: a hole is never dirty.

use crate::mutations::{self, Mutation};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use brigade_format::{Key, Pos, Ptr};

mod layers;
#[cfg(test)]
mod tests;

pub use layers::Layers;

/// A run of sectors of one volume and where its data lives in the cache.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Volume, as numbered by the set.
    pub inode: u32,
    /// First sector covered.
    pub start: u64,
    /// First sector no longer covered.
    pub end: u64,
    /// Where the data of `start` lives; `None` is a hole: nothing is cached here.
    pub ptr: Option<Ptr>,
    /// The cache holds the only current copy. Never set on a hole.
    pub dirty: bool,
}

impl Extent {
    /// Longest extent a key can express (docs/format.md 3.1).
    pub const MAX_SECTORS: u64 = 65535;

    /// A hole over the range.
    pub fn hole(inode: u32, start: u64, end: u64) -> Extent {
        Extent {
            inode,
            start,
            end,
            ptr: None,
            dirty: false,
        }
    }

    /// Length in sectors.
    pub fn sectors(&self) -> u64 {
        self.end - self.start
    }

    /// The part of this extent inside `start..end`, its pointer advanced to match (docs/format.md 3.4).
    ///
    /// The two must overlap.
    pub fn slice(&self, start: u64, end: u64) -> Extent {
        let start = start.max(self.start);
        let end = end.min(self.end);
        assert!(start < end, "slice of an extent outside of it");
        let ptr = self.ptr.map(|ptr| ptr.advance(start - self.start));
        Extent {
            start,
            end,
            ptr,
            ..*self
        }
    }

    /// The part of it that a leaf holds, whose range is from `low` to `high`.
    pub fn within(&self, low: Pos, high: Pos) -> Option<Extent> {
        if self.inode < low.inode || self.inode > high.inode {
            return None;
        }
        let start = if low.inode == self.inode {
            low.offset
        } else {
            0
        };
        let end = if high.inode == self.inode {
            high.offset
        } else {
            u64::MAX
        };
        (start.max(self.start) < end.min(self.end)).then(|| self.slice(start, end))
    }

    /// The key that says this on disk. The extent must not exceed [`Extent::MAX_SECTORS`].
    pub fn to_key(&self) -> Key {
        assert!(
            self.sectors() <= Extent::MAX_SECTORS,
            "extent longer than a key can say"
        );
        let sectors = self.sectors() as u32;
        match self.ptr {
            Some(ptr) => Key::extent(self.inode, self.start, sectors, ptr, self.dirty),
            None => Key::hole(self.inode, self.start, sectors),
        }
    }

    /// What a leaf key says, or `None` for a dead key (SIZE 0) and for one whose range is impossible.
    ///
    /// A key without pointer, or with any unavailable one, is a hole (docs/format.md 3.4).
    pub fn from_key(key: &Key) -> Option<Extent> {
        let start = key.start()?;
        if key.size() == 0 || key.offset() >= 1 << 63 {
            return None;
        }
        let available =
            (0..key.ptr_count()).all(|i| key.ptr(i).is_some_and(|ptr| ptr.is_available()));
        let ptr = if available { key.ptr(0) } else { None };
        let dirty = key.is_dirty() && ptr.is_some();
        Some(Extent {
            inode: key.inode(),
            start,
            end: key.offset(),
            ptr,
            dirty,
        })
    }

    /// May `right` be appended to this extent (docs/format.md 3.4)?
    pub fn can_merge(&self, right: &Extent, bucket_sectors: u32) -> bool {
        if self.inode != right.inode || self.end != right.start || self.dirty != right.dirty {
            return false;
        }
        if self.sectors() + right.sectors() > Extent::MAX_SECTORS {
            return false;
        }
        match (self.ptr, right.ptr) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                a.advance(self.sectors()) == b
                    && a.bucket(bucket_sectors) == b.bucket(bucket_sectors)
            }
            _ => false,
        }
    }
}

/// Which neighbours an inserted extent may grow together with. A leaf boundary forbids one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Merge {
    /// The extent that ends where the new one starts.
    pub left: bool,
    /// The extent that starts where the new one ends.
    pub right: bool,
}

impl Merge {
    /// No merging at all.
    pub const NONE: Merge = Merge {
        left: false,
        right: false,
    };
    /// Merge with both neighbours where the format allows it.
    pub const BOTH: Merge = Merge {
        left: true,
        right: true,
    };
}

/// Twelve bytes that order like (inode, end).
#[derive(Clone, Copy, PartialEq, Eq)]
struct EndKey {
    inode: u32,
    end_high: u32,
    end_low: u32,
}

impl EndKey {
    fn new(inode: u32, end: u64) -> EndKey {
        EndKey {
            inode,
            end_high: (end >> 32) as u32,
            end_low: end as u32,
        }
    }

    fn end(self) -> u64 {
        u64::from(self.end_high) << 32 | u64::from(self.end_low)
    }
}

impl Ord for EndKey {
    fn cmp(&self, other: &EndKey) -> Ordering {
        (self.inode, self.end()).cmp(&(other.inode, other.end()))
    }
}

impl PartialOrd for EndKey {
    fn partial_cmp(&self, other: &EndKey) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Twelve bytes: the pointer in two halves, length and flags in the third word.
#[derive(Clone, Copy)]
struct Packed {
    ptr_high: u32,
    ptr_low: u32,
    size_flags: u32,
}

/// Memory of an entry: 24 bytes in tree nodes that random inserts leave about two thirds full.
pub const EXTENT_BYTES: usize = 40;

const DIRTY: u32 = 1 << 31;
const HOLE: u32 = 1 << 30;
const SIZE_MASK: u32 = 0xffff;

const _: () = assert!(size_of::<EndKey>() == 12 && size_of::<Packed>() == 12);

impl Packed {
    fn new(e: &Extent) -> Packed {
        assert!(
            e.start < e.end && e.sectors() <= Extent::MAX_SECTORS,
            "EXT-2"
        );
        assert!(e.ptr.is_some() || !e.dirty, "EXT-4");
        let word = e.ptr.map_or(0, |ptr| ptr.0);
        let mut size_flags = e.sectors() as u32;
        if e.dirty {
            size_flags |= DIRTY;
        }
        if e.ptr.is_none() {
            size_flags |= HOLE;
        }
        Packed {
            ptr_high: (word >> 32) as u32,
            ptr_low: word as u32,
            size_flags,
        }
    }

    fn unpack(&self, key: &EndKey) -> Extent {
        let end = key.end();
        let word = u64::from(self.ptr_high) << 32 | u64::from(self.ptr_low);
        Extent {
            inode: key.inode,
            start: end - u64::from(self.size_flags & SIZE_MASK),
            end,
            ptr: (self.size_flags & HOLE == 0).then_some(Ptr(word)),
            dirty: self.size_flags & DIRTY != 0,
        }
    }
}

fn unpack((key, value): (&EndKey, &Packed)) -> Extent {
    value.unpack(key)
}

/// What adjoins a range.
struct Neighbours {
    left: Option<Extent>,
    right: Option<Extent>,
}

/// The map. See the module's text.
#[derive(Default)]
pub struct ExtentMap {
    entries: BTreeMap<EndKey, Packed>,
    keeps_holes: bool,
}

/// Extents without holes that come in ascending order, on their way into a map.
#[derive(Default)]
pub struct Ascending {
    entries: Vec<(EndKey, Packed)>,
    dirty_sectors: u64,
}

impl Ascending {
    /// Room for so many.
    pub fn with_capacity(extents: usize) -> Ascending {
        Ascending {
            entries: Vec::with_capacity(extents),
            dirty_sectors: 0,
        }
    }

    /// Adds one that lies behind the last one; a hole is left out.
    pub fn push(&mut self, e: &Extent) {
        if e.ptr.is_none() {
            return;
        }
        if let Some((last, _)) = self.entries.last() {
            let follows = (last.inode, last.end()) <= (e.inode, e.start);
            assert!(follows, "EXT-1");
        }
        if e.dirty {
            self.dirty_sectors += e.sectors();
        }
        self.entries
            .push((EndKey::new(e.inode, e.end), Packed::new(e)));
    }

    /// Sectors of all dirty ones.
    pub fn dirty_sectors(&self) -> u64 {
        self.dirty_sectors
    }

    /// The map.
    pub fn into_map(self) -> ExtentMap {
        ExtentMap {
            entries: BTreeMap::from_iter(self.entries),
            keeps_holes: false,
        }
    }
}

impl ExtentMap {
    /// A map in which a hole simply removes what it covers: the index.
    pub fn new() -> ExtentMap {
        ExtentMap::default()
    }

    /// A map that stores holes as entries: changes still to be written must say "nothing here" too.
    pub fn keeping_holes() -> ExtentMap {
        ExtentMap {
            entries: BTreeMap::new(),
            keeps_holes: true,
        }
    }

    /// A map without holes from extents in ascending order, much faster than one by one.
    pub fn from_ascending(extents: Vec<Extent>) -> ExtentMap {
        let mut ascending = Ascending::with_capacity(extents.len());
        extents.iter().for_each(|extent| ascending.push(extent));
        ascending.into_map()
    }

    /// Sectors of all dirty extents, counted.
    pub fn dirty_sectors(&self) -> u64 {
        let dirty = self.entries.values().filter(|e| e.size_flags & DIRTY != 0);
        dirty.map(|e| u64::from(e.size_flags & SIZE_MASK)).sum()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// No entries at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Estimate of the heap in use.
    pub fn memory_bytes(&self) -> usize {
        self.entries.len() * EXTENT_BYTES
    }

    /// Takes out what lies behind a position. An entry that spans it is cut there.
    pub fn split_off(&mut self, pos: Pos) -> ExtentMap {
        let spans = |e: &Extent| e.start < pos.offset && pos.offset < e.end;
        let spanning = self.first_from(pos.inode, pos.offset).filter(spans);
        if let Some(whole) = spanning {
            self.entries.remove(&EndKey::new(whole.inode, whole.end));
            self.put(whole.slice(whole.start, pos.offset));
            self.put(whole.slice(pos.offset, whole.end));
        }
        let mut above = self.entries.split_off(&EndKey::new(pos.inode, pos.offset));
        if let Some((key, value)) = above.first_key_value()
            && *key == EndKey::new(pos.inode, pos.offset)
        {
            self.entries.insert(*key, *value);
            above.pop_first();
        }
        ExtentMap {
            entries: above,
            keeps_holes: self.keeps_holes,
        }
    }

    /// Puts everything of a map that lies behind this one's last entry into this one.
    pub fn append(&mut self, behind: &mut ExtentMap) {
        self.entries.append(&mut behind.entries);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Makes `e` the content of its range. `removed` gets each slice that was there, in order.
    ///
    /// A hole is stored only by a map that keeps holes. An extent longer than a key can say is stored in pieces.
    pub fn insert(
        &mut self,
        e: Extent,
        merge: Merge,
        bucket_sectors: u32,
        removed: impl FnMut(Extent),
    ) {
        let around = self.displace(e.inode, e.start, e.end, removed);
        if (e.ptr.is_none() && !self.keeps_holes) || e.start >= e.end {
            return;
        }
        let left = around.left.filter(|_| merge.left);
        let right = around.right.filter(|_| merge.right);
        if e.sectors() <= Extent::MAX_SECTORS {
            self.store(e, Neighbours { left, right }, bucket_sectors);
        } else {
            self.store_in_pieces(e, Neighbours { left, right }, bucket_sectors);
        }
    }

    /// Empties the range. `removed` gets each slice that was there, in order.
    pub fn remove(&mut self, inode: u32, start: u64, end: u64, removed: impl FnMut(Extent)) {
        self.displace(inode, start, end, removed);
    }

    /// Empties the range in one pass over it and tells what adjoins it now.
    fn displace(
        &mut self,
        inode: u32,
        start: u64,
        end: u64,
        mut removed: impl FnMut(Extent),
    ) -> Neighbours {
        let mut around = Neighbours {
            left: None,
            right: None,
        };
        if start >= end {
            return around;
        }
        let mut left_rest = None;
        let mut doomed = Vec::new();
        for (key, value) in self.entries.range_mut(EndKey::new(inode, start)..) {
            let old = value.unpack(key);
            if old.inode != inode || old.start >= end {
                around.right = Some(old).filter(|old| old.inode == inode && old.start == end);
                break;
            }
            if old.end == start {
                around.left = Some(old);
                continue;
            }
            removed(old.slice(start, end));
            if old.start < start {
                let short =
                    u64::from(mutations::is(Mutation::CutOneShort) && start - old.start > 1);
                left_rest = Some(old.slice(old.start, start - short));
            }
            if old.end > end {
                let long = u64::from(mutations::is(Mutation::CutOneLong) && start + 1 < end);
                let right_rest = old.slice(old.start.max(end - long), old.end);
                *value = Packed::new(&right_rest);
                around.right = Some(right_rest);
                break;
            }
            doomed.push(*key);
        }
        for key in doomed {
            self.entries.remove(&key);
        }
        if let Some(rest) = left_rest {
            self.put(rest);
            around.left = Some(rest);
        }
        around
    }

    /// The parts of the range that hold something, clipped to it, ascending.
    pub fn range(&self, inode: u32, start: u64, end: u64) -> impl Iterator<Item = Extent> + '_ {
        self.overlapping(inode, start, end)
            .map(move |e| e.slice(start, end))
    }

    /// Every extent that has a sector in the range, whole, ascending.
    pub fn overlapping(
        &self,
        inode: u32,
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = Extent> + '_ {
        let low = Bound::Excluded(EndKey::new(inode, start));
        self.entries
            .range((low, Bound::Unbounded))
            .map(unpack)
            .take_while(move |e| e.inode == inode && e.start < end && start < end)
    }

    /// Every extent in key order.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.entries.iter().map(unpack)
    }

    /// Every extent whose end position lies above `low` and not above `high`: the share of a leaf.
    pub fn iter_between(&self, low: Pos, high: Pos) -> impl Iterator<Item = Extent> + '_ {
        let low = EndKey::new(low.inode, low.offset);
        let high = EndKey::new(high.inode, high.offset);
        let bounds = (Bound::Excluded(low.min(high)), Bound::Included(high));
        self.entries.range(bounds).map(unpack)
    }

    /// The first extent of the volume that covers `offset` or lies behind it.
    pub fn first_from(&self, inode: u32, offset: u64) -> Option<Extent> {
        self.overlapping(inode, offset, u64::MAX).next()
    }

    /// Fills only what the range leaves empty; returns what was inserted.
    ///
    /// An entry that says "hole" counts as content. Inserting a hole into a map without holes inserts nothing.
    pub fn insert_where_absent(
        &mut self,
        e: Extent,
        merge: Merge,
        bucket_sectors: u32,
    ) -> Vec<Extent> {
        if e.ptr.is_none() && !self.keeps_holes {
            return Vec::new();
        }
        let gaps: Vec<Extent> = self
            .gaps(e.inode, e.start, e.end)
            .map(|gap| e.slice(gap.start, gap.end))
            .collect();
        self.insert_slices(&gaps, &e, merge, bucket_sectors);
        gaps
    }

    /// Compare and swap, sector by sector: where the range still holds exactly what `old` says (location and dirty
    /// flag), it gets what `new` says; returns those slices of `new`.
    ///
    /// Both cover the same range. With `old` a hole, a map without holes takes emptiness for it, one that keeps
    /// holes only a stored hole.
    pub fn replace_if_same(
        &mut self,
        old: Extent,
        new: Extent,
        merge: Merge,
        bucket_sectors: u32,
    ) -> Vec<Extent> {
        assert!(
            old.inode == new.inode && old.start == new.start && old.end == new.end,
            "swap of different ranges"
        );
        let mut same: Vec<Extent> = Vec::new();
        let mut note = |start: u64, end: u64| match same.last_mut() {
            Some(last) if last.end == start => *last = new.slice(last.start, end),
            _ => same.push(new.slice(start, end)),
        };
        if old.ptr.is_none() && !self.keeps_holes {
            self.gaps(old.inode, old.start, old.end)
                .for_each(|gap| note(gap.start, gap.end));
        } else {
            self.range(old.inode, old.start, old.end)
                .filter(|now| *now == old.slice(now.start, now.end))
                .for_each(|now| note(now.start, now.end));
        }
        self.insert_slices(&same, &new, merge, bucket_sectors);
        same
    }

    /// The parts of the range that hold nothing, as holes, ascending.
    pub fn gaps(&self, inode: u32, start: u64, end: u64) -> impl Iterator<Item = Extent> + '_ {
        let mut from = start;
        let end_mark = std::iter::once(Extent::hole(inode, end, end));
        self.overlapping(inode, start, end)
            .chain(end_mark)
            .filter_map(move |e| {
                let gap = (from < e.start).then(|| Extent::hole(inode, from, e.start));
                from = e.end;
                gap
            })
    }

    /// Inserts slices of `whole`; only those at its edges touch the neighbours that `merge` speaks of.
    fn insert_slices(
        &mut self,
        slices: &[Extent],
        whole: &Extent,
        merge: Merge,
        bucket_sectors: u32,
    ) {
        for slice in slices {
            let merge = Merge {
                left: merge.left || slice.start > whole.start,
                right: merge.right || slice.end < whole.end,
            };
            self.insert(*slice, merge, bucket_sectors, |_| {});
        }
    }

    fn store_in_pieces(&mut self, e: Extent, around: Neighbours, bucket_sectors: u32) {
        /// Keeps the cuts aligned; the longest key length is odd.
        const PIECE_SECTORS: u64 = 32768;
        let mut start = e.start;
        while start < e.end {
            let end = (start + PIECE_SECTORS).min(e.end);
            let left = around.left.filter(|_| start == e.start);
            let right = around.right.filter(|_| end == e.end);
            self.store(
                e.slice(start, end),
                Neighbours { left, right },
                bucket_sectors,
            );
            start = end;
        }
    }

    /// Puts `e` into its range, which is empty, growing together with the neighbours given where the format allows it.
    fn store(&mut self, mut e: Extent, around: Neighbours, bucket_sectors: u32) {
        if let Some(left) = around
            .left
            .filter(|left| left.can_merge(&e, bucket_sectors))
        {
            self.entries.remove(&EndKey::new(left.inode, left.end));
            e = Extent { end: e.end, ..left };
        }
        if let Some(right) = around
            .right
            .filter(|right| e.can_merge(right, bucket_sectors))
        {
            // The merged extent ends where the right one did, so `put` overwrites its entry.
            e.end = right.end;
        }
        self.put(e);
    }

    fn put(&mut self, e: Extent) {
        self.entries
            .insert(EndKey::new(e.inode, e.end), Packed::new(&e));
    }

    /// EXT-1 to EXT-4, for tests and debug builds.
    pub fn check(&self) {
        let mut last: Option<Extent> = None;
        for e in self.iter() {
            assert!(
                e.start < e.end && e.sectors() <= Extent::MAX_SECTORS,
                "EXT-2: {e:?}"
            );
            assert!(self.keeps_holes || e.ptr.is_some(), "EXT-3: {e:?}");
            assert!(e.ptr.is_some() || !e.dirty, "EXT-4: {e:?}");
            if let Some(before) = last.filter(|before| before.inode == e.inode) {
                assert!(before.end <= e.start, "EXT-1: {before:?} {e:?}");
            }
            last = Some(e);
        }
    }
}
