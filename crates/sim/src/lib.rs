//! The world on a seed: everything the engine may ask of a machine, played by one number.
//!
//! - [`exec`]: tasks in any order, a clock that jumps. [`image`], [`disk`]: devices with a volatile write cache, and what may go
//!   wrong with them, written down first.
//! - [`oracle`]: what every sector may read as. [`judge`]: the independent reader on every image.
//! - [`set`]: a cache set at rest, which can be forked. [`work`]: clients. [`life`]: rounds of opening, working and ending;
//!   [`choices`]: how; [`warden`]: what changes meanwhile, and [`register`]: what must be true of that;
//!   [`rest`]: what happens in between, [`weather`]: which faults come, [`crash`]: when it ends, [`drive`]: that everything ends. [`plan`]: which features a seed uses.
//! - [`run`]: one run as the command line names it. [`swarm`]: many lives. [`sweep`]: every crash and every failure of short ones. [`shrink`]: fewer requests, same violation.
//!   [`mutants`]: mistakes that must be found.
//! - [`export`]: crash images as files, for the kernel.
//! - `near`: images whose oldest pointers are nearly as old as they may be, for the kernel too.
//! - [`small`]: one small set, for tests that tell one story.
//!
//! `BRIGADE_VERBOSE=1` makes a life tell its story.
#![forbid(unsafe_code)]

pub mod choices;
pub mod crash;
pub mod disk;
pub mod drive;
pub mod exec;
pub mod export;
pub mod image;
pub mod judge;
pub mod life;
pub mod mutants;
pub mod near;
pub mod oracle;
pub mod plan;
pub mod register;
pub mod rest;
pub mod run;
pub mod set;
pub mod shrink;
pub mod small;
pub mod swarm;
pub mod sweep;
pub mod tally;
pub mod warden;
pub mod weather;
pub mod work;
