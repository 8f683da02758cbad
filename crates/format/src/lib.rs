//! Bytes to values and back: the on-disk format of bcache, as written down in `docs/format.md`.
//!
//! No I/O, no waiting, no clock, no policy. Everything that reads a cache set goes through here, the engine
//! as well as the offline checker, so this is the one thing they share.
//!
//! # Invariants
//! - FMT-1: no input panics, overflows or allocates beyond a small multiple of its own length. What is wrong
//!   with it comes back as a [`FormatError`] that names the structure, the byte, what is there and what
//!   should be.
//! - FMT-2: what was read and not changed is written back byte for byte, unknown bits included.
//! - FMT-3: lengths taken from the bytes are checked against the slice before anything is summed or copied.
#![forbid(unsafe_code)]

mod bytes;
pub mod crc;
mod error;
#[doc(hidden)]
pub mod fuzzing;
pub mod jset;
pub mod key;
pub mod node;
pub mod order;
pub mod prio;
mod ptr;
pub mod superblock;
#[cfg(test)]
mod testing;
pub mod uuid_table;

pub use error::FormatError;
pub use jset::{Jset, JsetHeader, JsetView, Probe};
pub use key::{Key, KeyRules, key_words, parse_key, parse_keys};
pub use node::{Bset, Node, NodeError};
pub use prio::PrioBucket;
pub use ptr::{BucketNr, Gen, PTR_SECTORS_MAX, Pos, Ptr};
pub use superblock::{
    BackingState, CacheGeometry, CacheMode, NewBacking, NewCache, Replacement, Role, Superblock,
};
pub use uuid_table::{UuidEntry, uuid_text};

/// Bytes of a sector, everywhere and always.
pub const SECTOR_BYTES: u64 = 512;
