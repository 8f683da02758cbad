//! A hostile, deterministic world for the engine: a seed replays a whole life of a cache set, crashes included.
#![allow(dead_code, reason = "each test binary uses a part of the world")]

pub mod disk;
pub mod exec;
pub mod life;
pub mod oracle;
pub mod small;
pub mod work;
