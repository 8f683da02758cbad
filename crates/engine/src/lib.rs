//! The cache, generic over [`brigade_env::Env`].
//!
//! A [`Server`] holds what one process serves: cache sets with their volumes, and backing devices that run without a
//! cache. Everything runs on one thread; tasks are cooperative, and between two awaits a function runs to completion.
//! A request waits for the leaves of the index that its range needs; in the step in which all of them are in memory it
//! decides, synchronously, and then moves bytes ("map first, move after").
//!
//! Layers, lowest first; a module uses its own line and the ones above it:
//!
//! | layer | modules |
//! |---|---|
//! | 0 | `error`, `extents`, `health`, `limits`, `marks`, `mutations`, `options`, `settings`, `stats`, `steps`, `times`, `wait` |
//! | 1 | `alloc` (pure), `buckets`, `device` |
//! | 2 | `journal` |
//! | 3 | `btree`, `meta` |
//! | 4 | `data`, `recovery` |
//! | 5 | `request` |
//! | 6 | `set` |
#![forbid(unsafe_code)]

pub mod alloc;
mod btree;
mod buckets;
mod data;
mod device;
mod error;
pub mod extents;
mod health;
mod journal;
mod limits;
pub mod marks;
mod meta;
pub mod mutations;
mod options;
pub mod recovery;
mod request;
mod set;
pub mod settings;
mod stats;
mod steps;
mod times;
mod wait;
mod watched;

/// The index in memory, for benchmarks.
#[doc(hidden)]
pub use btree::{Change, Index, Nodes};
pub use data::DrainEnd;
pub use error::{Error, ErrorKind};
#[cfg(feature = "instrumented")]
pub use limits::{
    hold_collections, hold_tables, set_children_most, set_count_pause, set_leaf_batch,
    set_leaves_here_min, set_moving_eager, set_rewritten_together,
};
pub use options::{AckPolicy, Options};
pub use set::change::{Changed, SettingsOf, SettingsStatus};
pub use set::names::is_number as is_volume_number;
pub use set::server::{Orphans, Server};
pub use set::volume::Volume;
pub use stats::{
    BackingStatus, BtreeStatus, BucketStatus, By, CacheSetStatus, Cause, DetachStatus,
    DeviceStatus, DrainStatus, Fate, FillStatus, JournalStatus, LatencyStatus, Named, NotDirty,
    OtherStatus, ReadStatus, Reason, RecycledStatus, StallStatus, Statistics, Status, StripeStatus,
    Values, VolumeStatus, WriteStatus, WritebackStatus,
};
pub use steps::StepStatus;
pub use times::{IndexTimesStatus, TimesStatus};
