//! The table of everything that can be set while a server runs (docs/settings.md is made from it).
//!
//! Names are those of the kernel's attributes where there is one (section G.8 of the behaviour specification); defaults are its
//! defaults, too, unless the meaning says otherwise.

use Kind::{Choice, Number, Switch, Time};
use Scope::{CacheSet, Volume};
use TimeUnit::{Micros, Millis, Seconds};

/// What a setting belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// A cache set with its device.
    CacheSet,
    /// What is served.
    Volume,
}

impl Scope {
    /// What all of this scope are called in keys and in the configuration file.
    pub fn section(self) -> &'static str {
        match self {
            Scope::CacheSet => "cache_set",
            Scope::Volume => "volumes",
        }
    }

    /// The scope of that name.
    pub fn of_section(section: &str) -> Option<Scope> {
        let all = [Scope::CacheSet, Scope::Volume];
        all.into_iter().find(|scope| scope.section() == section)
    }
}

/// The unit of a time as it is written without one and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeUnit {
    /// s.
    Seconds,
    /// ms.
    Millis,
    /// us.
    Micros,
}

/// The unit of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes; suffixes are understood.
    Bytes,
    /// 512 bytes each second.
    SectorsPerSecond,
    /// Percent of the cache.
    Percent,
    /// How many; or a divisor, or a factor.
    Count,
}

/// What values there are. All are kept as one number: a switch as 0 or 1, a choice by its place, a time in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// On or off.
    Switch,
    /// From the first to the last, both included.
    Number(Unit, u64, u64),
    /// The same for times, in the unit they are shown in.
    Time(TimeUnit, u64, u64),
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// Where a value outlives the server, but for the configuration file, which has all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Nowhere else.
    Nowhere,
    /// In the superblock of the backing device.
    BackingSuperblock,
    /// In the superblock of the cache device.
    CacheSuperblock,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// Which.
    pub knob: Knob,
    /// Its name, which is the kernel's if `is_kernels`.
    pub name: &'static str,
    /// What it belongs to.
    pub scope: Scope,
    /// Whether the kernel has it.
    pub is_kernels: bool,
    /// Its values.
    pub kind: Kind,
    /// In the unit it is kept in.
    pub default: u64,
    /// Where it is stored.
    pub stored: Stored,
    /// What it means.
    pub meaning: &'static str,
}

macro_rules! knobs {
    ($($knob:ident $name:literal $scope:ident $origin:ident $kind:expr, $default:expr, $stored:ident, $meaning:literal;)*) => {
        /// What can be set.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Knob {
            $(
                #[doc = $meaning]
                $knob,
            )*
        }

        /// All of it, in the order of [`Knob`].
        pub const DEFINITIONS: &[Definition] = &[
            $(Definition {
                knob: Knob::$knob,
                name: $name,
                scope: $scope,
                is_kernels: is_kernels(Origin::$origin),
                kind: $kind,
                default: $default,
                stored: Stored::$stored,
                meaning: $meaning,
            },)*
        ];
    };
}

enum Origin {
    Kernel,
    Brigade,
}

const fn is_kernels(origin: Origin) -> bool {
    matches!(origin, Origin::Kernel)
}

const SECOND: u64 = 1_000_000;
const MILLI: u64 = 1000;
const U32: u64 = u32::MAX as u64;
const I31: u64 = i32::MAX as u64;

/// The cutoffs above which less becomes dirty (E.5).
const CUTOFF_MAX: u64 = 70;
const CUTOFF_SYNC_MAX: u64 = 90;

knobs! {
    CacheMode "cache_mode" Volume Kernel Choice(&["writethrough", "writeback", "writearound", "none"]), 0, BackingSuperblock,
        "How writes and misses are cached (E.6). Dirty data stays where it is until it is written back.";
    ReadaheadCachePolicy "readahead_cache_policy" Volume Kernel Choice(&["all", "meta-only"]), 0, Nowhere,
        "Whether reads ahead (NBD CACHE requests) fill the cache: all of them, or none but metadata, of which no frontend tells (E.2.5).";
    StopWhenCacheSetFailed "stop_when_cache_set_failed" Volume Kernel Choice(&["auto", "always"]), 0, Nowhere,
        "When the cache set fails: auto goes on without a cache if nothing is dirty and refuses requests otherwise; always refuses them (E.9).";
    SequentialCutoff "sequential_cutoff" Volume Kernel Number(Unit::Bytes, 0, U32), 4 << 20, Nowhere,
        "Requests that continue a run of so many bytes bypass the cache; 0: none do (E.3).";
    WritebackRunning "writeback_running" Volume Kernel Switch, 1, Nowhere,
        "Dirty data is written back in the background; a detach or a drain goes on whatever this says (F.1).";
    WritebackPercent "writeback_percent" Volume Kernel Number(Unit::Percent, 0, 40), 10, Nowhere,
        "Share of the cache that is meant to be dirty, for all volumes together; 0: written back as fast as it goes (F.3).";
    WritebackDelay "writeback_delay" Volume Kernel Time(Seconds, 0, U32), 30 * SECOND, Nowhere,
        "Rest after a whole round through the volume that found little to write back (F.1).";
    WritebackRate "writeback_rate" Volume Kernel Number(Unit::SectorsPerSecond, 1, I31), 1024, Nowhere,
        "What is written back a second, until the controller sets it anew (F.4).";
    WritebackRateMinimum "writeback_rate_minimum" Volume Kernel Number(Unit::SectorsPerSecond, 1, I31), 8, Nowhere,
        "What the controller goes down to (F.4).";
    WritebackRateUpdateSeconds "writeback_rate_update_seconds" Volume Kernel Time(Seconds, 1, 60), 5 * SECOND, Nowhere,
        "How often the controller sets the rate (F.4).";
    WritebackRatePTermInverse "writeback_rate_p_term_inverse" Volume Kernel Number(Unit::Count, 1, U32), 40, Nowhere,
        "What the distance from the target is divided by (F.4).";
    WritebackRateITermInverse "writeback_rate_i_term_inverse" Volume Kernel Number(Unit::Count, 1, U32), 10_000, Nowhere,
        "What the sum of distances is divided by (F.4).";
    WritebackRateFpTermLow "writeback_rate_fp_term_low" Volume Kernel Number(Unit::Count, 1, U32), 1, Nowhere,
        "Weight of fragmentation with 51 to 57 percent of the cache in use; below the next (F.4).";
    WritebackRateFpTermMid "writeback_rate_fp_term_mid" Volume Kernel Number(Unit::Count, 1, U32), 10, Nowhere,
        "The same with 58 to 64 percent; between the other two (F.4).";
    WritebackRateFpTermHigh "writeback_rate_fp_term_high" Volume Kernel Number(Unit::Count, 1, U32), 1000, Nowhere,
        "The same above 64 percent; above the one before (F.4).";
    WritebackConsiderFragment "writeback_consider_fragment" Volume Kernel Switch, 1, Nowhere,
        "Buckets that hold little but dirty data speed writing back up (F.4).";
    WritebackMetadata "writeback_metadata" Volume Kernel Switch, 1, Nowhere,
        "Kept, without effect, as in the kernel.";
    WritebackDeadline "writeback_deadline" Volume Brigade Time(Seconds, 0, U32), 3600 * SECOND, Nowhere,
        "The rate is at least what writes all dirty data back within this time; 0: no such bound (H.22).";
    WritebackLatency "writeback_latency" Volume Brigade Time(Millis, 0, U32), 0, Nowhere,
        "Writing back slows down while writes to the backing device take longer than this on average; 0: it does not (H.22).";
    WritebackBridge "writeback_bridge" Volume Brigade Number(Unit::Bytes, 0, 1 << 20), 256 << 10, Nowhere,
        "At full speed, gaps between dirty extents up to this long are read from the backing device and written with them, where that is \
         measured to be quicker; 0: never, as is best where what was never written takes no space.";
    StripeSize "stripe_size" Volume Kernel Number(Unit::Bytes, 0, 1 << 40), 0, Nowhere,
        "Bytes of a stripe of the backing device, for what lies below a file or a network; 0: what the device says, as many times as make \
         4 MiB. At least 32 KiB, and as many times that as keeps their number within what memory there is. The kernel's cannot be changed (F.2).";
    PartialStripesExpensive "partial_stripes_expensive" Volume Kernel Choice(&["auto", "off", "on"]), 0, Nowhere,
        "Stripes that are dirty as a whole are written back first, and long runs that touch a dirty one are not kept out of the cache, if \
         the size of a stripe is known; auto: on RAID 4, 5 and 6. The kernel's cannot be changed (E.5, F.2, F.6).";
    VolumeIoErrorLimit "io_error_limit" Volume Kernel Number(Unit::Count, 0, I31), 64, Nowhere,
        "After so many errors of the backing device the volume refuses requests (E.9).";
    VolumeIoDisable "io_disable" Volume Kernel Switch, 0, Nowhere,
        "The volume refuses all requests; off lets it serve again (E.9).";
    JournalDelayMs "journal_delay_ms" CacheSet Kernel Time(Millis, 0, 65_535), 100 * MILLI, Nowhere,
        "Longest time a write waits for a journal entry that nobody asked to flush (D.3).";
    Errors "errors" CacheSet Kernel Choice(&["unregister", "panic"]), 0, Nowhere,
        "What a failed cache set does: its volumes go on without it as far as they can, or the process ends at once (E.9).";
    SetIoErrorLimit "io_error_limit" CacheSet Kernel Number(Unit::Count, 0, U32), 8, Nowhere,
        "After so many errors, decayed, of the cache device the set fails (E.9).";
    IoErrorHalflife "io_error_halflife" CacheSet Kernel Number(Unit::Count, 0, U32), 100_056, Nowhere,
        "After so many requests to the cache device half of its errors are forgotten, in steps of 88; 0: never. The kernel's default is 0 (E.9, H.25).";
    SetIoDisable "io_disable" CacheSet Kernel Switch, 0, Nowhere,
        "All requests that the cache is needed for are refused; off lets them in again (E.9).";
    CongestedReadThresholdUs "congested_read_threshold_us" CacheSet Kernel Time(Micros, 0, U32), 2000, Nowhere,
        "Reads of the cache device that take longer are a sign of congestion, which has long runs bypass the cache; 0: none are (E.3.2).";
    CongestedWriteThresholdUs "congested_write_threshold_us" CacheSet Kernel Time(Micros, 0, U32), 20_000, Nowhere,
        "The same for writes (E.3.2).";
    CutoffWriteback "cutoff_writeback" CacheSet Kernel Number(Unit::Percent, 1, CUTOFF_MAX), 40, Nowhere,
        "With more of the cache in use only writes that are flushed become dirty; at most the next (E.5). The kernel's cannot be changed.";
    CutoffWritebackSync "cutoff_writeback_sync" CacheSet Kernel Number(Unit::Percent, 1, CUTOFF_SYNC_MAX), 70, Nowhere,
        "With more of the cache in use no write becomes dirty (E.5). The kernel's cannot be changed.";
    CopyGcEnabled "copy_gc_enabled" CacheSet Kernel Switch, 1, Nowhere,
        "Data moves out of buckets that are mostly dead, so that these can be reused. The kernel's default is 0 (B.9, H.12).";
    GcAlwaysRewrite "gc_always_rewrite" CacheSet Kernel Switch, 0, Nowhere,
        "Kept, without effect: a collection rewrites every node anyway.";
    IdleMaxWritebackRate "idle_max_writeback_rate" CacheSet Kernel Switch, 1, Nowhere,
        "Dirty data is written back as fast as it goes while there are no requests (F.5).";
    GcAfterWriteback "gc_after_writeback" CacheSet Kernel Switch, 0, Nowhere,
        "A collection once all dirty data was written back, if at least half of the cache was in use (F.8).";
    Discard "discard" CacheSet Kernel Switch, 0, CacheSuperblock,
        "The cache device is told of buckets that are about to be reused (A.16).";
    CacheReplacementPolicy "cache_replacement_policy" CacheSet Kernel Choice(&["lru", "fifo", "random"]), 0, CacheSuperblock,
        "Which clean buckets are reused first (A.7).";
    ExpensiveDebugChecks "expensive_debug_checks" CacheSet Kernel Switch, 0, Nowhere,
        "Every bucket that is handed out is looked for in all lists, which is slow (A.18).";
}
