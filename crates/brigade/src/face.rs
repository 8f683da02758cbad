//! The one place that names the engine: everything else in this crate uses it through here.

/// Everything that can be set.
pub use brigade_engine::settings as definitions;
pub use brigade_engine::settings::{DEFINITIONS, Definition, Knob, Plain, Scope};
pub use brigade_engine::{
    AckPolicy, Changed, Options, Orphans, Server, Status, Volume, is_volume_number,
};
