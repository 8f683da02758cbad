//! The one place that names the engine: everything else in this crate uses it through here.
//!
//! Until the engine opens cache sets, a stand-in with the same face serves backing devices alone, passed through.

mod passthrough;

pub use passthrough::{AckPolicy, Options, Server, Volume};
