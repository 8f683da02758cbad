//! What a server can be told.

use crate::settings::{Initial, Knob};
use brigade_format::superblock::CacheMode;

/// What must have happened before a plain write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckPolicy {
    /// Its key is in a record in memory that outlives the process; the journal follows within
    /// [`Knob::JournalDelayMs`]. Survives `kill -9` of the server on the same host.
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
    /// What is set, but for defaults, and can be changed later.
    pub settings: Initial,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            read_only: false,
            mode: None,
            memory_bytes: 4 << 30,
            ack: AckPolicy::Memory,
            settings: Initial::new(),
        }
    }
}

impl Options {
    /// With a setting, in what it is kept in.
    pub fn with(mut self, knob: Knob, value: u64) -> Options {
        self.settings.insert(knob, value);
        self
    }
}
