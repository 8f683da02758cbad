//! The one place that names the engine: everything else in this crate uses it through here.

pub use brigade_engine::settings::Knob;
pub use brigade_engine::{AckPolicy, Options, Orphans, Server, Status, Volume};
