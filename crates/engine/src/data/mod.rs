//! Bytes in and out of buckets: one way into the index for everybody, what keeps overlapping work apart, and the
//! background writing back, moving and sweeping.

mod candidates;
mod clients;
mod insert;
mod locks;
mod moving;
mod sweeping;
mod writeback;

pub use candidates::{Candidate, Candidates};
pub use clients::Clients;
pub use insert::Inserter;
pub use locks::RangeLocks;
pub use moving::{Mover, MoverParts};
pub use sweeping::{Sweeper, SweeperParts};
pub use writeback::{DrainEnd, Writeback, WritebackParts, same};
