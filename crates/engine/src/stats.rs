//! Counters, and the shape in which `status` shows them. Sizes are bytes, times seconds.

mod decaying;
mod histogram;
mod reasons;
mod requests;

pub use decaying::{Decaying, Event, Statistics, Values};
pub use histogram::Histogram;
pub use reasons::{By, Cause, Fate, Named, NotDirty, Reason};
pub use requests::{
    FillCounts, Filling, OtherCounts, OtherOutcome, ReadCounts, ReadOutcome, WriteCounts,
    WriteOutcome,
};

use crate::steps::StepStatus;
use crate::times::IndexTimesStatus;
use serde::Serialize;
use std::cell::Cell;
use std::time::Duration;

/// A count that tasks of one thread add to.
#[derive(Debug, Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.set(self.0.get() + n);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// What happened on a cache set, whichever of its volumes did it.
#[derive(Default)]
pub struct SetCounters {
    /// What the kernel counts.
    pub decaying: Decaying,
    /// Cached reads whose bucket was recycled meanwhile.
    pub read_races: Counter,
    /// Writes that had to wait for buckets.
    pub bucket_waits: Counter,
    /// Clean data that had to wait for buckets.
    pub fill_waits: Counter,
    /// Requests that had to wait, as much clean data was on its way.
    pub fill_request_waits: Counter,
}

/// Times of requests, from their coming to their answer.
#[derive(Debug, Default)]
pub struct Latencies {
    /// Reads.
    pub read: Histogram,
    /// Writes.
    pub write: Histogram,
    /// Flushes.
    pub flush: Histogram,
    /// Discards.
    pub discard: Histogram,
    /// Zeroes.
    pub zeroes: Histogram,
}

/// What happened on one volume.
#[derive(Default)]
pub struct VolumeCounters {
    /// Reads.
    pub reads: ReadCounts,
    /// Cached reads whose bucket was recycled meanwhile.
    pub read_races: Counter,
    /// Reads of clean data that the cache device refused and the backing device served.
    pub read_fallbacks: Counter,
    /// Writes.
    pub writes: WriteCounts,
    /// Flushes.
    pub flushes: OtherCounts,
    /// Discards.
    pub discards: OtherCounts,
    /// Zeroes.
    pub zeroes: OtherCounts,
    /// Reads ahead.
    pub prefetches: OtherCounts,
    /// Clean data on its way into the cache.
    pub fills: FillCounts,
    /// Bytes written back.
    pub written_back_bytes: Counter,
    /// Extents that became clean.
    pub writeback_done: Counter,
    /// Extents that were written while they were written back, and stay dirty.
    pub writeback_failed: Counter,
    /// Times.
    pub latency: Latencies,
    /// What the kernel counts.
    pub decaying: Decaying,
}

impl VolumeCounters {
    /// Panics with what does not add up.
    pub fn audit(&self) {
        self.reads.audit();
        self.writes.audit();
        self.flushes.audit("flushes");
        self.discards.audit("discards");
        self.zeroes.audit("zeroes");
        self.prefetches.audit("reads ahead");
        self.fills.audit();
    }

    /// Totals of statistics and times begin anew. Nothing is decided by them.
    pub fn clear(&self) {
        self.decaying.clear_totals();
        let times = &self.latency;
        for times in [
            &times.read,
            &times.write,
            &times.flush,
            &times.discard,
            &times.zeroes,
        ] {
            times.clear();
        }
    }
}

/// Everything `status` says.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// The first (mostly the only) cache set.
    pub cache_set: Option<CacheSetStatus>,
    /// All cache sets.
    pub cache_sets: Vec<CacheSetStatus>,
    /// Everything served.
    pub volumes: Vec<VolumeStatus>,
    /// What is wrong now, one line each.
    pub errors: Vec<String>,
    /// What was noticed at open, one line each.
    pub warnings: Vec<String>,
}

/// A cache set.
#[derive(Clone, Debug, Serialize)]
pub struct CacheSetStatus {
    /// Its identity.
    pub uuid: String,
    /// `running`, `read-only` or `poisoned`.
    pub state: String,
    /// Its cache devices.
    pub devices: Vec<DeviceStatus>,
    /// Its index.
    pub btree: BtreeStatus,
    /// Its journal.
    pub journal: JournalStatus,
    /// Rewriting of nodes, moving of data.
    pub gc: GcStatus,
    /// How often work on nodes happens and how long it takes.
    pub times: IndexTimesStatus,
    /// Steps of background tasks; a request may have to wait for one of them.
    pub background: Vec<StepStatus>,
    /// What its volumes but for those of flash count as the kernel does, together.
    pub stats: Statistics,
    /// How often something had to wait for what the set did not have at once.
    pub stalls: StallStatus,
    /// Cached reads whose bucket was recycled meanwhile.
    pub cache_read_races: u64,
    /// Share of buckets that can be had without writing anything back.
    pub cache_available_percent: u64,
    /// Bytes of an extent, on average.
    pub average_key_size: u64,
    /// Bytes of a run from which on its requests bypass the cache, as its device is busy; 0 if it is not.
    pub congested: u64,
    /// Bytes of nodes on disk, but for the root.
    pub btree_cache_size: u64,
    /// Part of the root that keys take.
    pub root_usage_percent: u64,
}

/// Waits.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct StallStatus {
    /// Of writes for buckets.
    pub bucket: u64,
    /// Of clean data for buckets.
    pub fill_bucket: u64,
    /// Of requests, as much clean data was on its way.
    pub fill_memory: u64,
    /// Of keys for room in the journal.
    pub journal: u64,
    /// Of anything for a leaf that was not in memory.
    pub leaf: u64,
}

/// A cache device.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceStatus {
    /// Where it is.
    pub path: String,
    /// Size of a bucket.
    pub bucket_bytes: u64,
    /// Smallest unit of I/O.
    pub block_bytes: u64,
    /// Buckets by use.
    pub buckets: BucketStatus,
    /// How often a bucket came up to be recycled and was not, by reason, since the server started.
    pub victims_refused: VictimStatus,
    /// Written since the server started.
    pub written_bytes: u64,
    /// Of these, metadata.
    pub metadata_written_bytes: u64,
    /// All of these by cause.
    pub written_by: By<Cause>,
    /// Buckets that were recycled since then.
    pub recycled: RecycledStatus,
    /// Steps by which its buckets aged since then, each for a 1024th of its size of requests that did not bypass it.
    pub aged_steps: u64,
}

/// Buckets that were recycled.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct RecycledStatus {
    /// All.
    pub buckets: u64,
    /// Nothing in them was live.
    pub empty: u64,
    /// They held clean data, which left the cache.
    pub evicted: u64,
    /// Bytes of it.
    pub evicted_bytes: u64,
}

/// Why buckets that came up were not recycled.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct VictimStatus {
    /// Some of the data is dirty.
    pub dirty: u64,
    /// Somebody reads or fills it.
    pub pinned: u64,
    /// Its generation is too far ahead of the oldest pointer: leaves have to be rewritten first.
    pub generation: u64,
    /// Its generation is too far ahead of the table on the device.
    pub table: u64,
    /// It was read since it was last looked at.
    pub used: u64,
}

/// Buckets by use.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct BucketStatus {
    /// All of them.
    pub total: u64,
    /// Holding nothing.
    pub free: u64,
    /// Holding clean data only.
    pub clean: u64,
    /// Holding some dirty data.
    pub dirty: u64,
    /// Journal, nodes, tables, superblock.
    pub metadata: u64,
    /// Of those that hold data, not used any more, as a request on them failed.
    pub set_aside: u64,
}

/// The index.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct BtreeStatus {
    /// Extents.
    pub keys: u64,
    /// Nodes on disk.
    pub nodes: u64,
    /// Level of the root; 0 is a single leaf.
    pub depth: u64,
    /// Memory the index takes.
    pub memory_bytes: u64,
    /// Part of all leaves that live keys take.
    pub used_percent: u64,
    /// Metadata bytes read at open.
    pub read_bytes: u64,
    /// Leaves that were brought into memory since.
    pub leaf_reads: u64,
    /// Bytes read for that.
    pub leaf_read_bytes: u64,
}

/// The journal.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct JournalStatus {
    /// Number of the entry being filled.
    pub seq: u64,
    /// Newest durable entry.
    pub durable_seq: u64,
    /// Oldest entry still needed.
    pub last_seq: u64,
    /// Buckets in the ring.
    pub buckets: u64,
    /// Buckets that may be written next without waiting.
    pub buckets_free: u64,
    /// Entries written since the server started.
    pub entries_written: u64,
    /// Plain writes are acknowledged by the record in memory.
    pub memory_record: bool,
}

/// Rewriting of nodes that hold old pointers, moving of data, and what else is done so that buckets can be reused.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GcStatus {
    /// Every leaf was counted, so that all buckets that hold nothing dirty can be reused.
    pub marks_built: bool,
    /// A pass is under way.
    pub running: bool,
    /// Passes and moving rest until they are let go on, or generations are so far behind that they cannot.
    pub paused: bool,
    /// Why the last pass ran, or this one does.
    pub reason: String,
    /// Leaves of this pass, or of the first count, that are done.
    pub progress_percent: u64,
    /// Time this will take at the rate so far, in seconds; 0 if nothing is under way.
    pub eta_seconds: u64,
    /// Longest step of any background task, in microseconds of processor time. A request may have to wait for one.
    pub longest_step_us: u64,
    /// Passes since the server started.
    pub passes: u64,
    /// Those that failed, since a leaf could not be read; not among `passes`.
    pub failed_passes: u64,
    /// Why the last of them did.
    pub last_failure: String,
    /// Largest distance of a bucket's generation from the oldest pointer to it.
    pub generations_behind: u64,
    /// Written to the cache since the server started to move data out of buckets that are mostly dead; a part of the device's
    /// written bytes.
    pub moved_bytes: u64,
    /// Buckets emptied in this way.
    pub moved_buckets: u64,
    /// Slots of removed devices and volumes in the UUID table; each is free again once nothing names it any more.
    pub removed_slots: u64,
    /// Those that became free since the server started.
    pub reclaimed_slots: u64,
    /// Bytes of removed devices and volumes that left the cache since then.
    pub reclaimed_bytes: u64,
}

/// A volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeStatus {
    /// Its first export name.
    pub name: String,
    /// Label, if it has one.
    pub label: String,
    /// Identity of the backing device or flash volume.
    pub uuid: String,
    /// Backing device; absent for a flash volume.
    pub path: Option<String>,
    /// Cache mode.
    pub mode: String,
    /// `no cache`, `clean`, `dirty`, `inconsistent` or `flash`.
    pub state: String,
    /// Served without write access.
    pub read_only: bool,
    /// Capacity.
    pub size_bytes: u64,
    /// Only in the cache.
    pub dirty_bytes: u64,
    /// What the backing device was asked for; absent for a flash volume.
    pub backing: Option<BackingStatus>,
    /// How its detaching goes, or how the last one failed.
    pub detach: Option<DetachStatus>,
    /// Reads.
    pub reads: ReadStatus,
    /// Writes.
    pub writes: WriteStatus,
    /// Discards.
    pub discards: OtherStatus,
    /// Zeroes.
    pub zeroes: OtherStatus,
    /// Flushes.
    pub flushes: OtherStatus,
    /// Reads ahead.
    pub prefetches: OtherStatus,
    /// Clean data on its way into the cache.
    pub fills: FillStatus,
    /// What the kernel counts; nothing of flash volumes.
    pub stats: Statistics,
    /// Its writing back, if anything of it can be dirty.
    pub writeback: Option<WritebackStatus>,
    /// Times.
    pub latency: LatencyStatus,
}

/// Writing back of a volume's dirty data: bytes, and bytes a second.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of the JSON and say it")]
pub struct WritebackStatus {
    pub running: bool,
    pub rate: u64,
    pub dirty: u64,
    pub target: u64,
    pub proportional: i64,
    pub integral: i64,
    pub change: i64,
    pub next_io_ms: u64,
    /// At full speed, as nobody asks for anything.
    pub idle: bool,
    /// At full speed, as clean buckets are needed.
    pub urgent: bool,
    pub detaching: bool,
    pub keys_done: u64,
    pub keys_failed: u64,
    /// Writes to the backing device at the same time, at most.
    pub depth: u64,
    /// What they take on average, in seconds.
    pub latency: f64,
    pub stripes: StripeStatus,
    /// The last drain.
    pub drain: Option<DrainStatus>,
}

/// Stripes of a backing device (F.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of the JSON and say it")]
pub struct StripeStatus {
    /// In bytes; a tebibyte if nobody knows.
    pub size: u64,
    /// Whether whole ones are preferred.
    pub partial_expensive: bool,
    /// How many have dirty data, as far as they are counted.
    pub dirty: u64,
    /// How many have nothing else.
    pub full: u64,
    /// All are counted.
    pub counted: bool,
}

/// A drain. Left is what is dirty now, also if it became so later.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of the JSON and say it")]
pub struct DrainStatus {
    /// `running`, `done`, `cancelled` or `stopped`.
    pub state: String,
    pub dirty_at_start_bytes: u64,
    pub left_bytes: u64,
    pub written_bytes: u64,
    pub seconds: f64,
    /// In the last while.
    pub bytes_per_second: u64,
    /// Nothing while there is no speed to go by.
    pub eta_seconds: Option<f64>,
    pub last_error: Option<String>,
}

/// What a backing device was asked for since the server started.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct BackingStatus {
    /// Flushes.
    pub flushes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// A detach.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DetachStatus {
    /// It goes on; otherwise it failed or was cancelled.
    pub running: bool,
    /// What was to be written back when it began.
    pub began_with_bytes: u64,
    /// What is left of that.
    pub dirty_bytes: u64,
    /// What keeps it from going on, or what ended it.
    pub trouble: Option<String>,
}

/// Reads of a volume. `requests` is the sum of `hits`, `misses`, `bypassed`, `failed` and `in_flight`.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of the JSON and say it")]
pub struct ReadStatus {
    pub requests: u64,
    pub hits: u64,
    pub misses: u64,
    pub bypassed: u64,
    pub failed: u64,
    pub in_flight: u64,
    pub bypass_hits: u64,
    pub bypass_misses: u64,
    pub bypassed_by: By<Reason>,
    pub hit_bytes: u64,
    pub miss_bytes: u64,
    pub bypassed_bytes: u64,
    pub fill_bytes: u64,
    pub fill_collisions: u64,
    pub fill_dropped: u64,
    pub fill_dropped_dry: u64,
    pub fill_dropped_memory: u64,
    pub fill_dropped_keys: u64,
    pub fill_cancelled: u64,
    pub fill_waits: u64,
    pub races: u64,
    pub fallbacks: u64,
}

/// Writes of a volume. `requests` is the sum of `writeback`, `writethrough`, `bypassed`, `failed` and `in_flight`.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of the JSON and say it")]
pub struct WriteStatus {
    pub requests: u64,
    pub writeback: u64,
    pub writethrough: u64,
    pub bypassed: u64,
    pub failed: u64,
    pub in_flight: u64,
    pub not_dirty_by: By<NotDirty>,
    pub bypassed_by: By<Reason>,
    pub bytes: u64,
    pub bypassed_bytes: u64,
    pub flushes: u64,
    pub written_back_bytes: u64,
    pub bucket_waits: u64,
}

/// Other requests. `requests` is the sum of `done`, `ignored`, `failed` and `in_flight`.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of the JSON and say it")]
pub struct OtherStatus {
    pub requests: u64,
    pub done: u64,
    pub ignored: u64,
    pub failed: u64,
    pub in_flight: u64,
    pub ignored_by: By<Reason>,
    pub bytes: u64,
}

/// Clean data on its way into the cache. `begun` is the sum of `under_way` and `ended_by`.
#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of the JSON and say it")]
pub struct FillStatus {
    pub begun: u64,
    pub under_way: u64,
    pub ended_by: By<Fate>,
    pub bytes: u64,
    pub waits: u64,
    pub request_waits: u64,
}

macro_rules! latency {
    ($($times:ident: $p50:ident $p90:ident $p99:ident $p999:ident $max:ident $count:ident;)*) => {
        /// Upper bounds in seconds, at most a sixteenth too high; and how many there were.
        #[derive(Clone, Copy, Debug, Default, Serialize)]
        #[allow(missing_docs, reason = "the names are the keys of the JSON and say it")]
        pub struct LatencyStatus {
            $(pub $p50: f64, pub $p90: f64, pub $p99: f64, pub $p999: f64, pub $max: f64, pub $count: u64,)*
        }

        impl Latencies {
            fn snapshot(&self) -> LatencyStatus {
                LatencyStatus {
                    $(
                        $p50: self.$times.permille(500),
                        $p90: self.$times.permille(900),
                        $p99: self.$times.permille(990),
                        $p999: self.$times.permille(999),
                        $max: self.$times.max(),
                        $count: self.$times.count(),
                    )*
                }
            }
        }
    };
}

latency! {
    read: read_p50 read_p90 read_p99 read_p999 read_max read_count;
    write: write_p50 write_p90 write_p99 write_p999 write_max write_count;
    flush: flush_p50 flush_p90 flush_p99 flush_p999 flush_max flush_count;
    discard: discard_p50 discard_p90 discard_p99 discard_p999 discard_max discard_count;
    zeroes: zeroes_p50 zeroes_p90 zeroes_p99 zeroes_p999 zeroes_max zeroes_count;
}

/// Everything that is counted on a volume, as `status` shows it.
pub struct Counts {
    /// Reads.
    pub reads: ReadStatus,
    /// Writes.
    pub writes: WriteStatus,
    /// Discards.
    pub discards: OtherStatus,
    /// Zeroes.
    pub zeroes: OtherStatus,
    /// Flushes.
    pub flushes: OtherStatus,
    /// Reads ahead.
    pub prefetches: OtherStatus,
    /// Fills.
    pub fills: FillStatus,
    /// What the kernel counts.
    pub stats: Statistics,
    /// Times.
    pub latency: LatencyStatus,
}

impl VolumeCounters {
    /// As `status` shows them.
    pub fn snapshot(&self, now: Duration) -> Counts {
        Counts {
            reads: self.read_status(),
            writes: self.write_status(),
            discards: self.discards.snapshot(),
            zeroes: self.zeroes.snapshot(),
            flushes: self.flushes.snapshot(),
            prefetches: self.prefetches.snapshot(),
            fills: self.fills.snapshot(),
            stats: self.decaying.shown(now),
            latency: self.latency.snapshot(),
        }
    }

    fn read_status(&self) -> ReadStatus {
        let (reads, fills) = (&self.reads, &self.fills);
        let ended = |fate| fills.ended_by.get(fate);
        let (dry, memory, keys) = (
            ended(Fate::DroppedDry),
            ended(Fate::DroppedMemory),
            ended(Fate::DroppedKeys),
        );
        ReadStatus {
            requests: reads.all.requests.get(),
            hits: reads.hits.get(),
            misses: reads.misses.get(),
            bypassed: reads.bypassed.get(),
            failed: reads.all.failed.get(),
            in_flight: reads.all.in_flight.get(),
            bypass_hits: reads.bypass_hits.get(),
            bypass_misses: reads.bypass_misses.get(),
            bypassed_by: reads.bypassed_by.clone(),
            hit_bytes: reads.hit_bytes.get(),
            miss_bytes: reads.miss_bytes.get(),
            bypassed_bytes: reads.bypassed_bytes.get(),
            fill_bytes: fills.bytes.get(),
            fill_collisions: ended(Fate::Collided),
            fill_dropped: dry + memory + keys,
            fill_dropped_dry: dry,
            fill_dropped_memory: memory,
            fill_dropped_keys: keys,
            fill_cancelled: ended(Fate::Cancelled),
            fill_waits: fills.waits.get(),
            races: self.read_races.get(),
            fallbacks: self.read_fallbacks.get(),
        }
    }

    fn write_status(&self) -> WriteStatus {
        let writes = &self.writes;
        WriteStatus {
            requests: writes.all.requests.get(),
            writeback: writes.writeback.get(),
            writethrough: writes.writethrough.get(),
            bypassed: writes.bypassed.get(),
            failed: writes.all.failed.get(),
            in_flight: writes.all.in_flight.get(),
            not_dirty_by: writes.not_dirty_by.clone(),
            bypassed_by: writes.bypassed_by.clone(),
            bytes: writes.bytes.get(),
            bypassed_bytes: writes.bypassed_bytes.get(),
            flushes: self.flushes.all.requests.get(),
            written_back_bytes: self.written_back_bytes.get(),
            bucket_waits: writes.bucket_waits.get(),
        }
    }
}

impl OtherCounts {
    fn snapshot(&self) -> OtherStatus {
        OtherStatus {
            requests: self.all.requests.get(),
            done: self.done.get(),
            ignored: self.ignored.get(),
            failed: self.all.failed.get(),
            in_flight: self.all.in_flight.get(),
            ignored_by: self.ignored_by.clone(),
            bytes: self.bytes.get(),
        }
    }
}

impl FillCounts {
    fn snapshot(&self) -> FillStatus {
        FillStatus {
            begun: self.begun.get(),
            under_way: self.under_way.get(),
            ended_by: self.ended_by.clone(),
            bytes: self.bytes.get(),
            waits: self.waits.get(),
            request_waits: self.request_waits.get(),
        }
    }
}
