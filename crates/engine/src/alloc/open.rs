//! Open buckets: where the next data of each stream goes.
//!
//! Data written together ages together; mixing streams makes whole buckets lukewarm. Two cheap signals are used:
//! continuation of the same extent, and the same submitting stream. Data of flash volumes stays dirty for ever and
//! never shares a bucket with cached data. Differing from the kernel, the *most* recent slot of a stream wins, and the
//! fallback keeps the two kinds of data apart too.

use brigade_format::{BucketNr, Gen, Ptr};

use super::bucket::Place;
use super::lists::Reserve;
use super::tokens::Ready;
use super::{Allocator, PRIO_FRESH};

/// What kind of volume the data belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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
    was_used: bool,
    inode: u32,
    /// Where the last data handed out ends in its volume.
    end: u64,
    stream: u16,
    kind: Data,
    pub bucket: Option<BucketNr>,
    r#gen: Gen,
    next_sector: u64,
    pub sectors_free: u32,
}

impl Slot {
    const EMPTY: Slot = Slot {
        was_used: false,
        inode: 0,
        end: 0,
        stream: 0,
        kind: Data::Cached,
        bucket: None,
        r#gen: Gen(0),
        next_sector: 0,
        sectors_free: 0,
    };

    fn has_space_for(&self, kind: Data) -> bool {
        self.sectors_free > 0 && self.kind == kind
    }
}

/// The slots, least recently used first.
#[cfg_attr(test, derive(Clone))]
pub(super) struct OpenBuckets {
    pub slots: Vec<Slot>,
}

impl OpenBuckets {
    pub fn new(slots: usize) -> OpenBuckets {
        OpenBuckets {
            slots: vec![Slot::EMPTY; slots.max(1)],
        }
    }

    /// The slot this data belongs to. A sequential match is final even without space: the stream keeps its slot.
    fn pick(&self, inode: u32, start: u64, stream: u16, kind: Data) -> usize {
        let is_ours = |slot: &Slot| slot.was_used && slot.kind == kind;
        let follows = |slot: &Slot| is_ours(slot) && slot.inode == inode && slot.end == start;
        let sequential = self.slots.iter().rposition(follows);
        let of_stream = || {
            self.slots
                .iter()
                .rposition(|slot| is_ours(slot) && slot.stream == stream)
        };
        let oldest = || {
            self.slots
                .iter()
                .position(|slot| slot.sectors_free == 0 || slot.kind == kind)
        };
        // Else every slot is busy with the other kind, and the oldest has to go.
        sequential.or_else(of_stream).or_else(oldest).unwrap_or(0)
    }

    /// The most recent slot with space for this kind, whoever fills it.
    fn any_with_space(&self, kind: Data) -> Option<usize> {
        self.slots.iter().rposition(|slot| slot.has_space_for(kind))
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
        assert!(
            self.started && sectors > 0,
            "allocation of nothing, or while loading"
        );
        let mut index = self.open.pick(inode, start, stream, kind);
        if !self.open.slots[index].has_space_for(kind) {
            match self.take_data(write_prio) {
                Some(bucket) => self.attach(index, bucket, kind),
                None => index = self.open.any_with_space(kind)?,
            }
        }
        let count = sectors.min(u64::from(self.open.slots[index].sectors_free)) as u32;
        let slot = &mut self.open.slots[index];
        (slot.inode, slot.end, slot.stream) =
            (inode, start.saturating_add(u64::from(count)), stream);
        let placement = self.hand_out(index, count);
        let slot = self.open.slots.remove(index);
        self.open.slots.push(slot);
        Some(placement)
    }

    /// Sectors that [`Allocator::allocate`] would hand out for this kind of data before it finds nothing.
    pub fn obtainable_sectors(&self, kind: Data) -> u64 {
        let in_slots = |slot: &&Slot| slot.has_space_for(kind);
        let open = self.open.slots.iter().filter(in_slots);
        let buckets = self.lists.ready(Reserve::Normal).len() + self.lists.unused.len();
        open.map(|slot| u64::from(slot.sectors_free)).sum::<u64>()
            + buckets as u64 * u64::from(self.config.bucket_sectors)
    }

    /// Closes every open bucket: nothing more is put into them.
    pub fn close_open_buckets(&mut self) {
        for index in 0..self.open.slots.len() {
            self.seal(index);
        }
    }

    fn take_data(&mut self, write_prio: bool) -> Option<Ready> {
        let mut bucket = self.lists.pop_ready(Reserve::Normal);
        if bucket.is_none() {
            bucket = self.take_unused();
        }
        if bucket.is_none() && write_prio {
            bucket = self.lists.pop_ready(Reserve::MovingGc);
        }
        bucket
    }

    fn attach(&mut self, index: usize, bucket: Ready, kind: Data) {
        self.seal(index);
        let nr = bucket.nr();
        self.go(nr, Place::Ready, Place::Open);
        self.update(nr, |bucket| {
            assert_eq!(
                (bucket.live_sectors, bucket.pin),
                (0, 0),
                "ALLOC-4: a ready bucket holds nothing"
            );
            bucket.prio = PRIO_FRESH;
        });
        self.pin(nr);
        let slot = &mut self.open.slots[index];
        slot.was_used = true;
        slot.kind = kind;
        slot.bucket = Some(nr);
        slot.r#gen = self.buckets[nr.0 as usize].r#gen;
        slot.next_sector = nr.0 * u64::from(self.config.bucket_sectors);
        slot.sectors_free = self.config.bucket_sectors;
    }

    /// Pins for the new key; a slot without space lets go of its own pin.
    fn hand_out(&mut self, index: usize, count: u32) -> Placement {
        let slot = &mut self.open.slots[index];
        let bucket = slot
            .bucket
            .expect("ALLOC-6: a slot with space has a bucket");
        let placement = Placement {
            ptr: Ptr::new(slot.next_sector, slot.r#gen),
            sectors: count,
            bucket,
        };
        slot.next_sector += u64::from(count);
        slot.sectors_free -= count;
        self.pin(bucket);
        if self.open.slots[index].sectors_free < self.config.block_sectors {
            self.seal(index);
        }
        placement
    }

    /// The slot lets go of its bucket, and what space was left in it is wasted.
    fn seal(&mut self, index: usize) {
        let slot = &mut self.open.slots[index];
        slot.sectors_free = 0;
        if let Some(nr) = slot.bucket.take() {
            self.go(nr, Place::Open, Place::Idle);
            self.unpin(nr);
        }
    }
}
