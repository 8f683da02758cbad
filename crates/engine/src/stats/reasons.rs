//! Why a request went the way it went, with names that do not change: they are keys of `status`.

use serde::{Serialize, Serializer};
use std::cell::Cell;
use std::marker::PhantomData;

/// One of a few reasons, each with a name.
pub trait Named: Copy + 'static {
    /// All of them, in order.
    const ALL: &'static [Self];
    /// Its place among them.
    fn at(self) -> usize;
    /// Its name.
    fn name(self) -> &'static str;
}

macro_rules! reasons {
    ($(#[$doc:meta])* $type:ident { $($(#[$why:meta])* $reason:ident $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $type {
            $($(#[$why])* $reason,)*
        }

        impl Named for $type {
            const ALL: &'static [$type] = &[$($type::$reason,)*];

            fn at(self) -> usize {
                self as usize
            }

            fn name(self) -> &'static str {
                match self {
                    $($type::$reason => $name,)*
                }
            }
        }
    };
}

reasons! {
    /// Why a request bypasses the cache, in the order in which it is decided.
    Reason {
        /// There is no cache.
        NoCache "no_cache",
        /// The volume is leaving its cache.
        Detaching "detaching",
        /// It says that data is not needed.
        Discard "discard",
        /// More of the cache is in use than may be, and cannot be had back without writing dirty data back.
        CacheFull "cache_full",
        /// The volume is not to be cached.
        ModeNone "mode_none",
        /// Its writes are not.
        Writearound "writearound",
        /// Its reads ahead are not.
        ReadaheadPolicy "readahead_policy",
        /// The range is not in whole blocks of the cache.
        Unaligned "unaligned",
        /// The index may take no more memory.
        Memory "memory",
        /// It continues a long run.
        Sequential "sequential",
        /// It continues a run that is long for a cache device as busy as this one is.
        Congested "congested",
    }
}

reasons! {
    /// Why a write that was admitted went to the backing device all the same.
    NotDirty {
        /// The mode is another one.
        Mode "mode",
        /// The volume is leaving its cache.
        Detaching "detaching",
        /// So much of the cache is in use that nothing becomes dirty.
        CutoffSync "cutoff_sync",
        /// It says that data is not needed.
        Discard "discard",
        /// It bypasses the cache.
        Bypass "bypass",
        /// So much of the cache is in use that only what is to be durable at once becomes dirty.
        Cutoff "cutoff",
        /// No bucket was to be had soon, or no room for keys.
        NoRoom "no_room",
    }
}

reasons! {
    /// What became of clean data on its way into the cache.
    Fate {
        /// It is in the cache.
        Entered "entered",
        /// Its range was written meanwhile.
        Collided "collided",
        /// The same, while it waited for a bucket.
        Cancelled "cancelled",
        /// Nothing could be recycled.
        DroppedDry "dropped_dry",
        /// Too much was on its way already.
        DroppedMemory "dropped_memory",
        /// The index could not grow.
        DroppedKeys "dropped_keys",
        /// It is a write too long to be copied.
        DroppedSize "dropped_size",
        /// It could not be read, written or flushed.
        Failed "failed",
        /// The server stopped.
        Stopped "stopped",
    }
}

reasons! {
    /// Why something is written to a device.
    Cause {
        /// A client wrote it.
        Client "client",
        /// It was read on a miss, or is a copy of what goes to the backing device.
        Fill "fill",
        /// It moves out of a bucket that is mostly dead.
        Moved "moved",
        /// It was dirty in the cache and goes to the backing device.
        WrittenBack "written_back",
        /// Journal entries.
        Journal "journal",
        /// Nodes of the index.
        Nodes "nodes",
        /// Tables of gens.
        GenTable "gen_table",
        /// The table of volumes.
        UuidTable "uuid_table",
        /// Superblocks.
        Superblock "superblock",
    }
}

/// Counts by reason.
#[derive(Clone, Debug)]
pub struct By<R>(Vec<Cell<u64>>, PhantomData<R>);

impl<R: Named> Default for By<R> {
    fn default() -> Self {
        By(vec![Cell::new(0); R::ALL.len()], PhantomData)
    }
}

impl<R: Named> By<R> {
    /// Adds to one of them.
    pub fn add(&self, reason: R, n: u64) {
        let count = &self.0[reason.at()];
        count.set(count.get() + n);
    }

    /// One of them.
    pub fn get(&self, reason: R) -> u64 {
        self.0[reason.at()].get()
    }

    /// All of them together.
    pub fn sum(&self) -> u64 {
        self.0.iter().map(Cell::get).sum()
    }
}

/// As an object with all names, in order.
impl<R: Named> Serialize for By<R> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            R::ALL
                .iter()
                .map(|reason| (reason.name(), self.get(*reason))),
        )
    }
}
