//! The world on a seed: everything the engine may ask of a machine, played by one number.
//!
//! - [`exec`]: tasks in any order, a clock that jumps.
//! - [`disk`]: devices with a volatile write cache, and what may go wrong with them, written down first.
//! - [`oracle`]: what every sector may read as.
//! - [`work`], [`life`]: clients; rounds of opening, working and ending.
//! - [`small`]: one small set, for tests that tell one story.
#![forbid(unsafe_code)]

pub mod disk;
pub mod exec;
pub mod image;
pub mod life;
pub mod oracle;
pub mod plan;
pub mod rest;
pub mod set;
pub mod small;
pub mod swarm;
pub mod tally;
pub mod work;
