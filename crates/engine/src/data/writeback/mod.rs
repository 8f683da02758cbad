//! Background writing back of dirty data.
//!
//! ```text
//! dirty extents, ascending ─► keys durable ─► adjacent ones together: hold the range ─► read from the cache ─► still the same?
//!    ─► one write to the backing device      (several runs at a time)
//!    ─► flush it ─► still the same? clean in the index, journalled      (docs/format.md 10.10)
//! nothing dirty left: cleanings durable ─► the backing device says clean   (docs/format.md 9.5)
//! ```
//! "Still the same" compares location and dirty flag per sector in the step that acts on it, so a write that came meanwhile
//! is never called clean. Nor is a range that was written directly since: there the backing device has newer data before the
//! index says so, and a candidate tells. A round is bounded in extents, bytes and keys looked at.
//!
//! When, and how fast, goes by the first of these that holds:
//!
//! | | |
//! |---|---|
//! | a drain is under way, or the device is being detached | at full speed, whatever the settings say |
//! | `writeback_running` is off | not at all |
//! | more than half of the cache is in use, or nothing can be recycled | at full speed: clean buckets are needed at once, and what few dirty sectors keep many of them are below any target |
//! | a pass found little, and no more is dirty than is meant to be | not until `writeback_delay` is over; so it is with the first dirty data after none |
//! | `writeback_percent` is 0, or the set is idle | at full speed |
//! | else | at `writeback_rate`, which [`rate`] works out |
//!
//! At full speed, gaps between dirty extents may be written over with what the backing device has there, where [`bridge`] finds that
//! quicker.
//!
//! Where partial stripes cost much, those that are dirty as a whole go before all else ([`striped`]).
//!
//! Nobody waits for a scan of the index: what is being written is known by its range lock and its candidate, so that clients need not
//! be kept out while the next extents are looked for.

mod bridge;
mod depth;
mod drain;
mod rate;
mod round;
mod scan;
mod striped;
mod task;
mod together;

pub use drain::DrainEnd;
pub use scan::same;
pub use task::{Writeback, WritebackParts};
pub(super) use together::Together;
