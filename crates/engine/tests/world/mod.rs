//! A hostile, deterministic world for the engine: a seed replays a whole life of a cache set, crashes included.

pub mod disk;
pub mod exec;
pub mod life;
pub mod oracle;
pub mod work;
