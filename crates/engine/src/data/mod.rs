//! Bytes in and out of buckets: one way into the index for everybody, what keeps overlapping work apart, and the
//! background writing back.

mod candidates;
mod insert;
mod locks;
mod writeback;

pub use candidates::{Candidate, Candidates};
pub use insert::Inserter;
pub use locks::RangeLocks;
pub use writeback::{Writeback, WritebackParts, same};
