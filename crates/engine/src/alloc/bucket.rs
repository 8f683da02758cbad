//! What is known of one bucket, in 16 bytes, because a large device has tens of millions. (Its place in the order of victims
//! takes some 6 more, see `order`.)

use crate::limits::gen_age_max;
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use std::ops::Index;

use brigade_format::Gen;

use super::{GEN_AGE_MAX, TABLE_LAG_MAX};

/// Where a bucket is in its life. Names as in the drawing of the module above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Place {
    /// Below the first bucket.
    Fixed,
    /// Holds data, or did.
    Idle,
    /// Being filled by a slot.
    Open,
    /// Node, table or journal.
    Metadata,
    /// Nothing stored names it with its current gen.
    Unused,
    /// Recycled, the new gen not yet durable.
    Incoming,
    /// May be filled at once.
    Ready,
}

/// The places by their numbers.
const PLACES: [Place; 8] = [
    Place::Fixed,
    Place::Idle,
    Place::Open,
    Place::Metadata,
    Place::Unused,
    Place::Incoming,
    Place::Ready,
    Place::Ready,
];
const PLACE_BITS: u8 = 7;

/// A count of sectors. At the top of its range, 8 GiB, it sticks: only a forged index gets there.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sectors([u8; 3]);

impl Sectors {
    pub const MAX: Sectors = Sectors([u8::MAX; 3]);

    pub fn get(self) -> u32 {
        let [a, b, c] = self.0;
        u32::from_le_bytes([a, b, c, 0])
    }

    fn add(self, sectors: u32) -> Sectors {
        let sum = self.get().saturating_add(sectors);
        let [a, b, c, rest] = sum.to_le_bytes();
        if rest > 0 {
            return Sectors::MAX;
        }
        Sectors([a, b, c])
    }

    /// A counter at the top has lost count. It stays, and its bucket with it.
    fn sub(self, sectors: u32) -> Sectors {
        if self == Sectors::MAX {
            return self;
        }
        let left = self.get().checked_sub(sectors);
        Sectors::default().add(left.expect("ALLOC-4: more sectors leave than entered"))
    }
}

impl std::fmt::Debug for Sectors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.get().fmt(f)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// Sectors of keys with the current gen, in the index.
    pub live: Sectors,
    /// Those of them that are dirty.
    pub dirty: Sectors,
    /// Holders that keep the bucket from being recycled; being in a list is not one. At the top of its range it sticks.
    pub pin: u16,
    /// Recency, as `ageing` keeps it: see [`Bucket::ages`].
    pub stamp: u16,
    /// The stamp by which the order knows the bucket; it may be older than `stamp`.
    pub ordered: u16,
    pub r#gen: Gen,
    /// Not newer than the oldest gen of any pointer to the bucket that may still stand in the tree.
    pub last_gc: Gen,
    /// Not newer than what the durable gen table says.
    pub durable_gen: Gen,
    /// The place, and above it the flags.
    state: u8,
}

const _: () = assert!(size_of::<Bucket>() == 16);

/// A statement about a bucket.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(super) enum Flag {
    /// Loading only: something stored names it with its current gen.
    Referenced = 1 << 3,
    /// It is in the order of victims.
    Ordered = 1 << 4,
    /// The order knows it as one whose recency is zero, whatever `ordered` says.
    Lapsed = 1 << 5,
    /// It came up as victim when its gen had no room for one more, and waits for a table or a gc.
    Parked = 1 << 6,
}

impl Bucket {
    pub fn new(place: Place) -> Bucket {
        Bucket {
            live: Sectors::default(),
            dirty: Sectors::default(),
            pin: 0,
            stamp: 0,
            ordered: 0,
            r#gen: Gen(0),
            last_gc: Gen(0),
            durable_gen: Gen(0),
            state: place as u8,
        }
    }

    pub fn place(&self) -> Place {
        PLACES[usize::from(self.state & PLACE_BITS)]
    }

    pub fn put(&mut self, place: Place) {
        self.state = self.state & !PLACE_BITS | place as u8;
    }

    pub fn is(&self, flag: Flag) -> bool {
        self.state & flag as u8 != 0
    }

    pub fn set(&mut self, flag: Flag, value: bool) {
        self.state = self.state & !(flag as u8) | if value { flag as u8 } else { 0 };
    }

    pub fn holds_data(&self) -> bool {
        matches!(self.place(), Place::Idle | Place::Open)
    }

    /// Does traffic age it? Then `stamp` is the age of the cache at which its recency comes to zero; else it is the recency.
    pub fn ages(&self) -> bool {
        self.place() == Place::Idle && self.pin == 0
    }

    pub fn add_live(&mut self, sectors: u32, dirty: bool) {
        self.live = self.live.add(sectors);
        if dirty {
            self.dirty = self.dirty.add(sectors);
        }
    }

    pub fn sub_live(&mut self, sectors: u32, dirty: bool) {
        self.live = self.live.sub(sectors);
        if dirty {
            self.dirty = self.dirty.sub(sectors);
        }
        assert!(
            self.live.get() >= self.dirty.get(),
            "ALLOC-4: more dirty than live"
        );
    }

    /// All pointers became stale.
    pub fn forget_data(&mut self) {
        self.live = Sectors::default();
        self.dirty = Sectors::default();
    }

    pub fn add_pin(&mut self) {
        self.pin = self.pin.saturating_add(1);
    }

    /// So many pins that their number was lost keep the bucket for good.
    pub fn sub_pin(&mut self) {
        if self.pin != u16::MAX {
            self.pin = self.pin.checked_sub(1).expect("unpin without pin");
        }
    }

    /// Distance from the oldest pointer.
    pub fn gen_age(&self) -> u8 {
        self.r#gen.0.wrapping_sub(self.last_gc.0)
    }

    /// Distance from the durable table.
    pub fn table_lag(&self) -> u8 {
        self.r#gen.0.wrapping_sub(self.durable_gen.0)
    }

    /// Is there room for one more gen?
    pub fn may_increment(&self) -> bool {
        (self.gen_age() < gen_age_max(GEN_AGE_MAX) || mutations::is(Mutation::AllocGenAgeIgnored))
            && (self.table_lag() < TABLE_LAG_MAX || mutations::is(Mutation::AllocTableLagIgnored))
    }

    /// Does nothing but its gen keep it from being recycled?
    pub fn is_let_go(&self) -> bool {
        self.place() == Place::Idle
            && (self.dirty == Sectors::default() || mutations::is(Mutation::AllocTakesDirty))
            && (self.pin == 0 || mutations::is(Mutation::AllocTakesPinned))
    }

    /// May this bucket be recycled (ALLOC-5)?
    pub fn is_eligible(&self) -> bool {
        if self.is_let_go() && !self.may_increment() {
            marks::hit(Mark::AllocGenAtLimit);
        }
        self.is_let_go() && self.may_increment()
    }

    pub fn class(&self) -> Class {
        match self.place() {
            Place::Fixed | Place::Metadata => Class::Metadata,
            Place::Unused | Place::Incoming | Place::Ready => Class::Free,
            Place::Idle | Place::Open if self.dirty != Sectors::default() => Class::Dirty,
            Place::Idle => Class::Clean,
            Place::Open => Class::OpenClean,
        }
    }
}

/// What the statistics call a bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    Free,
    Clean,
    OpenClean,
    Dirty,
    Metadata,
}

/// Buckets per class.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Counts([u64; 5]);

impl Counts {
    pub fn of(buckets: &[Bucket]) -> Counts {
        let mut counts = Counts::default();
        for bucket in buckets {
            counts.0[bucket.class() as usize] += 1;
        }
        counts
    }

    pub fn shift(&mut self, from: Class, to: Class) {
        self.0[from as usize] -= 1;
        self.0[to as usize] += 1;
    }
}

impl Index<Class> for Counts {
    type Output = u64;

    fn index(&self, class: Class) -> &u64 {
        &self.0[class as usize]
    }
}
