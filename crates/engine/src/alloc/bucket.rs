//! What is known of one bucket, in 24 bytes, because a large device has tens of millions.

use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use std::ops::Index;

use brigade_format::Gen;

use super::{GEN_AGE_MAX, TABLE_LAG_MAX};

/// Where a bucket is in its life. Names as in the drawing of the module above.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
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

#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// Sectors of keys with the current gen, in the index. At the top of its range it sticks.
    pub live_sectors: u32,
    /// Those of them that are dirty. Sticks likewise.
    pub dirty_sectors: u32,
    /// Holders that keep the bucket from being recycled; being in a list is not one.
    pub pin: u32,
    /// Recency; 65535 is metadata.
    pub prio: u16,
    pub r#gen: Gen,
    /// Not newer than the oldest gen of any pointer to the bucket that may still stand in the tree.
    pub last_gc: Gen,
    /// Not newer than what the durable gen table says.
    pub durable_gen: Gen,
    pub place: Place,
    /// Loading only: something stored names it with its current gen.
    pub is_referenced: bool,
}

const _: () = assert!(size_of::<Bucket>() <= 24);

impl Bucket {
    pub fn new(place: Place) -> Bucket {
        Bucket {
            live_sectors: 0,
            dirty_sectors: 0,
            pin: 0,
            prio: 0,
            r#gen: Gen(0),
            last_gc: Gen(0),
            durable_gen: Gen(0),
            place,
            is_referenced: false,
        }
    }

    pub fn holds_data(&self) -> bool {
        matches!(self.place, Place::Idle | Place::Open)
    }

    pub fn add_live(&mut self, sectors: u32, dirty: bool) {
        self.live_sectors = self.live_sectors.saturating_add(sectors);
        if dirty {
            self.dirty_sectors = self.dirty_sectors.saturating_add(sectors);
        }
    }

    pub fn sub_live(&mut self, sectors: u32, dirty: bool) {
        subtract(&mut self.live_sectors, sectors);
        if dirty {
            subtract(&mut self.dirty_sectors, sectors);
        }
        assert!(
            self.live_sectors >= self.dirty_sectors,
            "ALLOC-4: more dirty than live"
        );
    }

    /// All pointers became stale.
    pub fn forget_data(&mut self) {
        self.live_sectors = 0;
        self.dirty_sectors = 0;
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
        self.gen_age() < GEN_AGE_MAX && self.table_lag() < TABLE_LAG_MAX
    }

    /// May this bucket be recycled (ALLOC-5)?
    pub fn is_eligible(&self) -> bool {
        let is_let_go = self.place == Place::Idle
            && (self.dirty_sectors == 0 || mutations::is(Mutation::AllocTakesDirty))
            && (self.pin == 0 || mutations::is(Mutation::AllocTakesPinned));
        if is_let_go && !self.may_increment() {
            marks::hit(Mark::AllocGenAtLimit);
        }
        is_let_go && self.may_increment()
    }

    pub fn class(&self) -> Class {
        match self.place {
            Place::Fixed | Place::Metadata => Class::Metadata,
            Place::Unused | Place::Incoming | Place::Ready => Class::Free,
            Place::Idle | Place::Open if self.dirty_sectors > 0 => Class::Dirty,
            Place::Idle => Class::Clean,
            Place::Open => Class::OpenClean,
        }
    }
}

/// A counter at the top of its range has lost count: only a forged index gets there. It stays, and its bucket with it.
fn subtract(counter: &mut u32, sectors: u32) {
    if *counter != u32::MAX {
        *counter = counter
            .checked_sub(sectors)
            .expect("ALLOC-4: more sectors leave than entered");
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
