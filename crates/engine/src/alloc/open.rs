//! Open buckets: where the next data of each stream goes.
//!
//! Data written together ages together; mixing streams makes whole buckets lukewarm. Two cheap signals are used:
//! continuation of the same extent, and the same submitting stream. Data of flash volumes stays dirty for ever and
//! never shares a bucket with cached data. Differing from the kernel, the *most* recent slot of a stream wins, the
//! fallback keeps the two kinds of data apart too, a stream has no claim to more than some slots, and buckets that nobody
//! used for a while are closed.
//!
//! A bucket is taken and put into its slot in one step, so there is never a surplus one that looks like hot data.

use std::collections::BTreeMap;

use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use brigade_format::{BucketNr, Gen, Ptr};

use super::bucket::Place;
use super::lists::Reserve;
use super::tokens::Ready;
use super::{Allocator, PRIO_FRESH};

/// A set has one cache device, and this is its number.
const DEVICE_NR: u32 = 0;

/// What kind of volume the data belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Data {
    /// Of a cached backing device.
    Cached,
    /// Of a flash-only volume.
    Flash,
}

/// Sectors handed out. Its bucket is pinned once for it, until [`Allocator::release_pin`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// Where to write.
    pub ptr: Ptr,
    /// How much; may be less than asked for.
    pub sectors: u32,
    /// The bucket of `ptr`.
    pub bucket: BucketNr,
}

/// One bucket being filled. Without space left it holds no bucket and no pin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub was_used: bool,
    pub inode: u32,
    /// Where the last data handed out ends in its volume.
    pub end: u64,
    /// Who claims it.
    pub stream: Option<u16>,
    pub kind: Data,
    /// Larger than that of every slot used earlier; no two are the same.
    pub used: u64,
    /// When it was last used, in ticks.
    pub tick: u64,
    pub bucket: Option<BucketNr>,
    pub r#gen: Gen,
    pub next_sector: u64,
    pub sectors_free: u32,
}

impl Slot {
    const EMPTY: Slot = Slot {
        was_used: false,
        inode: 0,
        end: 0,
        stream: None,
        kind: Data::Cached,
        used: 0,
        tick: 0,
        bucket: None,
        r#gen: Gen(0),
        next_sector: 0,
        sectors_free: 0,
    };

    fn has_space_for(&self, kind: Data) -> bool {
        self.sectors_free > 0 && self.kind == kind
    }

    fn end_key(&self) -> Option<(Data, u32, u64, u64)> {
        self.was_used
            .then_some((self.kind, self.inode, self.end, self.used))
    }

    fn stream_key(&self) -> Option<(Data, u16, u64)> {
        let stream = self.stream.filter(|_| self.was_used)?;
        Some((self.kind, stream, self.used))
    }

    /// For the order of use among slots without space, and among those with space for each kind.
    fn class(&self) -> Option<Data> {
        (self.sectors_free > 0).then_some(self.kind)
    }
}

/// The slots, and the ways to find one. Each way ends with the order of use, oldest first.
#[cfg_attr(test, derive(Clone))]
pub(super) struct OpenBuckets {
    pub slots: Vec<Slot>,
    /// By where the last data ends.
    ends: BTreeMap<(Data, u32, u64, u64), usize>,
    /// By who claims it.
    streams: BTreeMap<(Data, u16, u64), usize>,
    /// By whom it has space for.
    classes: BTreeMap<(Option<Data>, u64), usize>,
    /// Sectors free in slots of either kind.
    free: [u64; 2],
    used: u64,
    pub tick: u64,
}

impl OpenBuckets {
    pub fn new(slots: usize) -> OpenBuckets {
        let count = if mutations::is(Mutation::AllocOneSlot) {
            1
        } else {
            slots.max(1)
        };
        let mut open = OpenBuckets {
            slots: vec![Slot::EMPTY; count],
            ends: BTreeMap::new(),
            streams: BTreeMap::new(),
            classes: BTreeMap::new(),
            free: [0; 2],
            used: count as u64,
            tick: 0,
        };
        for index in 0..count {
            open.slots[index].used = index as u64;
            open.classes.insert((None, index as u64), index);
        }
        open
    }

    /// The slot this data belongs to. A sequential match is final even without space: the stream keeps its slot.
    fn pick(&self, inode: u32, start: u64, stream: u16, kind: Data) -> usize {
        let follows = (kind, inode, start, 0)..=(kind, inode, start, u64::MAX);
        let sequential = self.ends.range(follows).next_back();
        let sequential = sequential.filter(|_| !mutations::is(Mutation::AllocSequentialForgotten));
        let mine = (kind, stream, 0)..=(kind, stream, u64::MAX);
        let of_stream = || {
            let found = self.streams.range(mine).next_back().map(|(_, at)| *at);
            found.filter(|_| !mutations::is(Mutation::AllocStreamForgotten))
        };
        // If every slot is busy with the other kind, the oldest has to go.
        sequential
            .map(|(_, at)| *at)
            .or_else(of_stream)
            .or_else(|| self.oldest([None, Some(kind)]))
            .or_else(|| self.oldest([Some(Data::Cached), Some(Data::Flash)]))
            .expect("there are slots")
    }

    /// The most recent slot of a stream, if it has space.
    pub fn slot_with_space(&self, stream: u16, kind: Data) -> Option<usize> {
        let mine = (kind, stream, 0)..=(kind, stream, u64::MAX);
        let at = *self.streams.range(mine).next_back()?.1;
        self.slots[at].has_space_for(kind).then_some(at)
    }

    /// The slot in which a stream fills its next bucket: its own, or the one that was not used for longest.
    pub fn slot_for(&self, stream: u16, kind: Data) -> usize {
        let mine = (kind, stream, 0)..=(kind, stream, u64::MAX);
        let of_stream = self.streams.range(mine).next_back().map(|(_, at)| *at);
        of_stream
            .or_else(|| self.oldest([None, Some(kind)]))
            .or_else(|| self.oldest([Some(Data::Cached), Some(Data::Flash)]))
            .expect("there are slots")
    }

    /// The most recent slot with space for this kind, whoever fills it.
    fn any_with_space(&self, kind: Data) -> Option<usize> {
        let space = (Some(kind), 0)..=(Some(kind), u64::MAX);
        self.classes.range(space).next_back().map(|(_, at)| *at)
    }

    /// The least recently used slot of two classes.
    fn oldest(&self, classes: [Option<Data>; 2]) -> Option<usize> {
        let first = |class| self.classes.range((class, 0)..=(class, u64::MAX)).next();
        let oldest = classes.into_iter().filter_map(first);
        oldest.min_by_key(|((_, used), _)| *used).map(|(_, at)| *at)
    }

    /// Slots a stream may claim.
    fn claims_max(&self) -> usize {
        (self.slots.len() / 4).max(2)
    }

    /// Changes a slot, and what says something about it that is no longer so.
    fn change(&mut self, index: usize, change: impl FnOnce(&mut Slot)) {
        let old = self.slots[index];
        change(&mut self.slots[index]);
        let new = self.slots[index];
        follow(&mut self.ends, old.end_key(), new.end_key(), index);
        follow(&mut self.streams, old.stream_key(), new.stream_key(), index);
        let classes = [old, new].map(|slot| Some((slot.class(), slot.used)));
        follow(&mut self.classes, classes[0], classes[1], index);
        self.free[old.kind as usize] -= u64::from(old.sectors_free);
        self.free[new.kind as usize] += u64::from(new.sectors_free);
    }

    /// The slot was used last, for data of this stream that ends here.
    fn used_by(&mut self, index: usize, inode: u32, end: u64, stream: u16) {
        let (old, mut used) = (self.slots[index], self.used);
        if old.used + 1 == used {
            // It is the last one already, and stays what it is.
            used = old.used;
        }
        (self.used, self.slots[index].tick) = (used + 1, self.tick);
        self.change(index, |slot| {
            (slot.inode, slot.end, slot.stream, slot.used) = (inode, end, Some(stream), used);
        });
        if old.stream == Some(stream) && old.was_used {
            return;
        }
        let kind = old.kind;
        let mine = (kind, stream, 0)..=(kind, stream, u64::MAX);
        if self.streams.range(mine.clone()).count() > self.claims_max() {
            marks::hit(Mark::SlotsOfStreamCapped);
            let oldest = *self.streams.range(mine).next().expect("just counted").1;
            self.change(oldest, |slot| slot.stream = None);
        }
    }
}

/// Takes an entry to its new key, if that is another one.
fn follow<K: Ord>(map: &mut BTreeMap<K, usize>, old: Option<K>, new: Option<K>, index: usize) {
    if old == new {
        return;
    }
    if let Some(old) = old {
        map.remove(&old);
    }
    if let Some(new) = new {
        map.insert(new, index);
    }
}

impl Allocator {
    /// Finds room for data of a volume, at most `sectors` of it; the caller comes back for the rest.
    ///
    /// `stream` identifies who writes (0 is the copying collector); `write_prio` may use the collector's reserve.
    /// When no bucket is ready, data shares whatever open bucket of its kind has space; `None` means there is none.
    pub fn allocate(
        &mut self,
        stream: u16,
        inode: u32,
        start: u64,
        sectors: u64,
        kind: Data,
        write_prio: bool,
    ) -> Option<Placement> {
        let mix = mutations::is(Mutation::AllocKindsMix);
        let kind = if mix { Data::Cached } else { kind };
        let index = self.open.pick(inode, start, stream, kind);
        let surplus = mutations::is(Mutation::AllocSurplus);
        if self.open.slots[index].has_space_for(kind) && !surplus {
            return Some(self.put(index, (inode, start, sectors), stream));
        }
        match self.take_data(write_prio) {
            Some(bucket) => {
                let index = if mutations::is(Mutation::AllocNewBucketElsewhere) {
                    let oldest = self.open.oldest([None, Some(kind)]);
                    oldest.unwrap_or(index)
                } else {
                    index
                };
                self.attach(index, bucket, kind);
                self.trace_allocation(bucket_of(&self.open, index), reserve_of(write_prio));
                Some(self.put(index, (inode, start, sectors), stream))
            }
            None => {
                let placement = self.allocate_in_open(stream, inode, start, sectors, kind);
                if placement.is_none() {
                    self.trace_failure(reserve_of(write_prio));
                }
                placement
            }
        }
    }

    /// The same without taking a bucket: only what open ones still have, that of the right slot first.
    pub fn allocate_in_open(
        &mut self,
        stream: u16,
        inode: u32,
        start: u64,
        sectors: u64,
        kind: Data,
    ) -> Option<Placement> {
        let mut index = self.open.pick(inode, start, stream, kind);
        if !self.open.slots[index].has_space_for(kind) {
            index = self.open.any_with_space(kind)?;
        }
        Some(self.put(index, (inode, start, sectors), stream))
    }

    /// Sectors that [`Allocator::allocate`] would hand out for this kind of data before it finds nothing.
    pub fn obtainable_sectors(&self, kind: Data) -> u64 {
        self.room_for(kind, true)
    }

    /// Sectors there are for this kind of data, in open buckets only or also in new ones.
    pub fn room_for(&self, kind: Data, new_buckets: bool) -> u64 {
        let buckets = if new_buckets {
            self.lists.ready(Reserve::Normal).len() + self.lists.unused.len()
        } else {
            0
        };
        self.open.free[kind as usize] + buckets as u64 * u64::from(self.config.bucket_sectors)
    }

    /// Sectors that are obtainable at once some day whatever happens, unless nothing can be recycled: batches go on until
    /// so many are there.
    pub fn sure_sectors(&self) -> u64 {
        let buckets = self.lists.sizes.low_water.max(1) as u64;
        buckets * u64::from(self.config.bucket_sectors)
    }

    /// Closes every open bucket: nothing more is put into them.
    pub fn close_open_buckets(&mut self) {
        for index in 0..self.open.slots.len() {
            self.seal(index);
        }
    }

    /// A tick: closes the open buckets not used since the tick before the last one. What space they have is wasted, but they can
    /// be recycled. None of them is empty, as a bucket is taken only to put something into it at once.
    pub fn close_idle(&mut self) {
        if mutations::is(Mutation::AllocIdleStaysOpen) {
            return;
        }
        self.open.tick += 1;
        for index in 0..self.open.slots.len() {
            let slot = &self.open.slots[index];
            if slot.bucket.is_some() && slot.tick + 2 <= self.open.tick {
                marks::hit(Mark::SlotClosedIdle);
                self.seal(index);
            }
        }
    }

    /// A bucket was taken for a reserve.
    pub fn trace_allocation(&self, nr: BucketNr, reserve: Reserve) {
        let wrong = mutations::is(Mutation::AllocEventsWrong);
        let nr = if wrong { BucketNr(reserve as u64) } else { nr };
        let sector = nr.0 * u64::from(self.config.bucket_sectors);
        tracing::debug!(
            target: "brigade::alloc",
            device = DEVICE_NR, bucket = nr.0, sector, ?reserve, "alloc"
        );
    }

    /// There was no bucket for a reserve.
    pub fn trace_failure(&self, reserve: Reserve) {
        if mutations::is(Mutation::AllocFailsSilently) {
            return;
        }
        let ready = self.lists.ready(reserve).len();
        let batch = self.batch_in_progress;
        tracing::debug!(
            target: "brigade::alloc",
            device = DEVICE_NR, ?reserve, ready, incoming = self.incoming(), batch, "alloc_fail"
        );
    }

    /// Buckets that wait for a table write.
    fn incoming(&self) -> u64 {
        let reserves = [
            Reserve::Btree,
            Reserve::Prio,
            Reserve::MovingGc,
            Reserve::Normal,
        ];
        let ready = reserves.map(|reserve| self.lists.ready(reserve).len());
        let there = ready.iter().sum::<usize>() + self.lists.unused.len();
        self.stats().free.saturating_sub(there as u64)
    }

    pub(super) fn take_data(&mut self, write_prio: bool) -> Option<Ready> {
        let mut bucket = self.lists.pop_ready(Reserve::Normal);
        if bucket.is_none() {
            bucket = self.take_unused();
        }
        if bucket.is_none() && write_prio && !mutations::is(Mutation::AllocWriterHasNoReserve) {
            bucket = self.lists.pop_ready(Reserve::MovingGc);
        }
        if bucket.is_none() && mutations::is(Mutation::AllocDataTakesAll) {
            bucket = self.lists.pop_ready(Reserve::Btree);
        }
        bucket
    }

    pub(super) fn attach(&mut self, index: usize, bucket: Ready, kind: Data) {
        self.seal(index);
        let nr = bucket.nr();
        self.go(nr, Place::Ready, Place::Open);
        self.update(nr, |bucket| {
            assert_eq!(
                (bucket.live.get(), bucket.pin),
                (0, 0),
                "ALLOC-4: a ready bucket holds nothing"
            );
            if !mutations::is(Mutation::AllocOpensCold) {
                bucket.stamp = PRIO_FRESH;
            }
        });
        self.pin(nr);
        let r#gen = self.buckets[nr.0 as usize].r#gen;
        let old = u8::from(mutations::is(Mutation::AllocOpensOldGen));
        let r#gen = Gen(r#gen.0.wrapping_sub(old));
        let size = self.config.bucket_sectors;
        self.open.change(index, |slot| {
            slot.was_used = true;
            slot.kind = kind;
            slot.bucket = Some(nr);
            slot.r#gen = r#gen;
            slot.next_sector = nr.0 * u64::from(size);
            slot.sectors_free = size;
        });
    }

    /// Puts data into a slot with space.
    pub(super) fn put(
        &mut self,
        index: usize,
        (inode, start, sectors): (u32, u64, u64),
        stream: u16,
    ) -> Placement {
        assert!(
            self.started && sectors > 0,
            "allocation of nothing, or while loading"
        );
        let more = mutations::is(Mutation::AllocHandsOutMore);
        let free = u64::from(self.open.slots[index].sectors_free);
        let count = sectors.min(if more { u64::MAX } else { free }) as u32;
        let stays = mutations::is(Mutation::AllocEndForgotten);
        let end = start.saturating_add(if stays { 0 } else { u64::from(count) });
        self.open.used_by(index, inode, end, stream);
        self.hand_out(index, count)
    }

    /// Pins for the new key; a slot without space hands its own pin over to it.
    fn hand_out(&mut self, index: usize, count: u32) -> Placement {
        let slot = self.open.slots[index];
        let bucket = slot
            .bucket
            .expect("ALLOC-6: a slot with space has a bucket");
        let placement = Placement {
            ptr: Ptr::new(slot.next_sector, slot.r#gen),
            sectors: count,
            bucket,
        };
        debug_assert!(
            !self.is_stale(placement.ptr),
            "ALLOC-6: an open bucket was recycled"
        );
        self.open.change(index, |slot| {
            slot.next_sector += u64::from(count);
            slot.sectors_free -= count;
        });
        if !mutations::is(Mutation::AllocPinForgotten) {
            self.pin(bucket);
        }
        let kept = mutations::is(Mutation::AllocTailKept);
        let least = if kept { 1 } else { self.config.block_sectors };
        if self.open.slots[index].sectors_free < least {
            self.seal(index);
        }
        placement
    }

    /// The slot lets go of its bucket, and what space was left in it is wasted.
    pub(super) fn seal(&mut self, index: usize) {
        self.open.change(index, |slot| slot.sectors_free = 0);
        if let Some(nr) = self.open.slots[index].bucket.take() {
            self.go(nr, Place::Open, Place::Idle);
            if !mutations::is(Mutation::AllocCloseLeaks) {
                self.unpin(nr);
            }
        }
    }
}

fn bucket_of(open: &OpenBuckets, index: usize) -> BucketNr {
    open.slots[index].bucket.expect("just attached")
}

fn reserve_of(write_prio: bool) -> Reserve {
    if write_prio {
        Reserve::MovingGc
    } else {
        Reserve::Normal
    }
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
