//! The independent reader of cache sets: it shares the byte formats with the engine and nothing else, so that one can
//! find the other's mistakes. [`dump`] tells everything that is on a cache device, [`check`] says what of it breaks a rule.
//!
//! # Invariants
//! - FSCK-1: nothing is ever written.
//! - FSCK-2: no content of a device makes it panic, loop, or use memory out of proportion to what it really read; what is
//!   wrong is reported where it stands, and reading goes on with what does not depend on it.
#![forbid(unsafe_code)]

pub mod check;
pub mod dump;
mod journal;
mod prios;
mod source;
mod tree;

pub use source::{Device, ReadAt};
