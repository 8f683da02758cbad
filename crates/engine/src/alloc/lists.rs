//! The lists of buckets on their way to reuse, and how many each should hold.

use brigade_format::BucketNr;
use std::collections::{BTreeSet, VecDeque};

use crate::limits::nodes_at_once;
use crate::mutations::{self, Mutation};

use super::Config;
use super::tokens::{Incoming, Ready, Unused};

/// Whom a ready bucket is kept for, in the kernel's order; `Normal` is its RESERVE_NONE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reserve {
    /// Btree nodes and the uuid table.
    Btree,
    /// The gen table.
    Prio,
    /// Output of the copying collector.
    MovingGc,
    /// Ordinary data, and the overflow everybody shares.
    Normal,
}

/// Fewest buckets kept for nodes, if the device is not tiny.
const BTREE_LEAST: usize = 16;

/// How many buckets are kept where.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Kept for btree nodes.
    pub btree: usize,
    /// Kept for the gen table.
    pub prio: usize,
    /// Kept for the copying collector.
    pub moving_gc: usize,
    /// Below this many buckets for data a batch is wanted.
    pub low_water: usize,
    /// Most buckets recycled by one table write.
    pub batch: usize,
    /// Buckets open at the same time.
    pub slots: usize,
}

impl Sizes {
    /// At least the kernel's sizes, and batches that make a table write cheap: of what is written to the cache less than a
    /// hundredth is table with buckets of 512 KiB or more and less than a thirtieth with small ones, as far as a sixteenth of
    /// a small device allows.
    pub fn of(config: &Config) -> Sizes {
        let nbuckets = config.nbuckets as usize;
        let unit = nbuckets.next_power_of_two() / 1024;
        let normal = unit.max((nbuckets / 64).clamp(1, 16));
        let per_table = if config.bucket_sectors >= 1024 {
            110
        } else {
            40
        };
        let cheap = config.table_buckets as usize * per_table;
        let normal = if mutations::is(Mutation::AllocSizesSmall) {
            unit.max(1)
        } else {
            normal
        };
        let batch = (4 * normal)
            .max(nbuckets / 100)
            .max(cheap.min(nbuckets / 16));
        let journal = if config.journal_buckets == 0 {
            8
        } else {
            config.journal_buckets as usize
        };
        Sizes {
            // Enough to rewrite a leaf and everything above it without a table write: that one may be waiting for room in
            // the journal, which only writing leaves makes.
            btree: journal
                .max(nodes_at_once(BTREE_LEAST))
                .min((nbuckets / 8).max(8)),
            prio: 2 * config.table_buckets as usize,
            moving_gc: normal,
            low_water: normal.div_ceil(2).max(batch / 4),
            batch,
            // The kernel always has 128; on a small device they would hold a good part of it.
            slots: (nbuckets / 32).clamp(4, 128),
        }
    }
}

#[cfg_attr(test, derive(Clone))]
pub(super) struct Lists {
    pub sizes: Sizes,
    /// Recycled buckets for the next batch.
    pub incoming: Vec<Incoming>,
    pub unused: VecDeque<Unused>,
    ready: [VecDeque<Ready>; 4],
    /// Recycled buckets whose gens are durable, to be discarded before they are ready.
    pub to_discard: VecDeque<Ready>,
    /// Buckets taken as a whole, see `devices`.
    pub whole: BTreeSet<BucketNr>,
    /// How many buckets were taken from what everybody shares.
    pub taken: u64,
}

impl Lists {
    pub fn new(sizes: Sizes) -> Lists {
        Lists {
            sizes,
            incoming: Vec::new(),
            unused: VecDeque::new(),
            ready: Default::default(),
            to_discard: VecDeque::new(),
            whole: BTreeSet::new(),
            taken: 0,
        }
    }

    pub fn ready(&self, reserve: Reserve) -> &VecDeque<Ready> {
        &self.ready[reserve as usize]
    }

    pub fn pop_ready(&mut self, reserve: Reserve) -> Option<Ready> {
        let bucket = self.ready[reserve as usize].pop_front();
        self.taken += u64::from(bucket.is_some() && reserve == Reserve::Normal);
        bucket
    }

    /// The reserve that should be filled next, the table's first: without a table nothing can be recycled.
    pub fn hungry_reserve(&self) -> Option<Reserve> {
        let mut reserves = [
            (Reserve::Prio, self.sizes.prio),
            (Reserve::Btree, self.sizes.btree),
            (Reserve::MovingGc, self.sizes.moving_gc),
        ];
        if mutations::is(Mutation::AllocReserveOrder) {
            reserves.swap(0, 1);
        }
        reserves
            .into_iter()
            .find(|(reserve, size)| self.ready(*reserve).len() < *size)
            .map(|(reserve, _)| reserve)
    }

    /// Puts a bucket where it is missed most; what no reserve misses is for everybody.
    pub fn push_ready(&mut self, bucket: Ready) {
        let reserve = self.hungry_reserve().unwrap_or(Reserve::Normal);
        self.ready[reserve as usize].push_back(bucket);
    }
}
