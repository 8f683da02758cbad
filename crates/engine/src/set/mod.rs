//! The parts put together: a cache set from open to stop, volumes, and the server that holds them all.
//!
//! This is the only place that knows a whole [`cache_set::CacheSet`]; everything below gets just the parts it uses.

mod assemble;
mod attach;
mod blank;
pub mod cache_set;
pub mod change;
mod drain;
mod examine;
mod lifecycle;
pub mod names;
mod open;
mod priorities;
pub mod server;
mod settle;
mod tasks;
pub mod volume;
