//! What a server can be told.

use brigade_format::superblock::CacheMode;
use std::time::Duration;

/// What must have happened before a plain write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckPolicy {
    /// Its key is in a record in memory that outlives the process; the journal follows within
    /// [`Options::journal_delay`]. Survives `kill -9` of the server on the same host.
    Memory,
    /// Its key is in the journal, on the device, flushed. Survives `kill -9` whoever opens the set next.
    Journal,
}

/// Choices for all sets and volumes of a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Write nothing to any device.
    pub read_only: bool,
    /// Cache mode of all cached volumes, instead of what their superblocks say; stored there.
    pub mode: Option<CacheMode>,
    /// Bound on the memory of the process: index, buckets, fills and buffers. What does not fit of the index is read when it is wanted;
    /// an opening that has to read all of it keeps no more than this either. The tables of buckets (32 bytes each) and the keys of the
    /// replay range are not cut down to it.
    pub memory_bytes: u64,
    /// When a plain write is acknowledged.
    pub ack: AckPolicy,
    /// Longest time an acknowledged write waits for the journal.
    pub journal_delay: Duration,
    /// Requests that continue a run of this many bytes bypass the cache; 0 never.
    pub sequential_cutoff: u64,
    /// Share of the cache that may be dirty before background writeback runs at full speed, in percent.
    pub writeback_percent: u64,
    /// Dirty data is written back although there is little of it once a volume had no request for this long.
    pub writeback_delay: Duration,
    /// Background writeback runs at all.
    pub writeback_running: bool,
    /// Data moves out of buckets that are mostly dead, so that these can be recycled (the kernel's `copy_gc_enabled`, which is off).
    pub moving_gc: bool,
    /// Look for every bucket that is handed out in all lists, which is slow (the kernel's `expensive_debug_checks`).
    pub expensive_checks: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            read_only: false,
            mode: None,
            memory_bytes: 4 << 30,
            ack: AckPolicy::Memory,
            journal_delay: crate::limits::JOURNAL_DELAY_MAX,
            sequential_cutoff: 4 << 20,
            writeback_percent: 10,
            writeback_delay: Duration::from_secs(30),
            writeback_running: true,
            moving_gc: true,
            expensive_checks: false,
        }
    }
}
