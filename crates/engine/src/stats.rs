//! Counters, and the shape in which `status` shows them. Sizes are bytes, times seconds.

use crate::steps::StepStatus;
use crate::times::IndexTimesStatus;
use serde::Serialize;
use std::cell::Cell;

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

/// Latencies in powers of two of microseconds: enough for percentiles within a factor of two.
#[derive(Debug, Default)]
pub struct Latencies {
    buckets: [Cell<u64>; 32],
}

impl Latencies {
    /// Records one.
    pub fn record(&self, took: std::time::Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let slot = (64 - micros.leading_zeros() as usize).min(31);
        self.buckets[slot].set(self.buckets[slot].get() + 1);
    }

    /// Upper bound, in seconds, of the `percent` smallest.
    pub fn percentile(&self, percent: u64) -> f64 {
        let total: u64 = self.buckets.iter().map(Cell::get).sum();
        let mut left = (total * percent).div_ceil(100);
        for (slot, count) in self.buckets.iter().enumerate() {
            if left <= count.get() && total > 0 {
                return (1u64 << slot) as f64 / 1e6;
            }
            left = left.saturating_sub(count.get());
        }
        0.0
    }
}

/// What happened on one volume.
#[derive(Debug, Default)]
pub struct VolumeCounters {
    /// Reads served from the cache alone, and their bytes.
    pub hits: Counter,
    /// Bytes of hits.
    pub hit_bytes: Counter,
    /// Reads of which any part came from the backing device.
    pub misses: Counter,
    /// Bytes of misses.
    pub miss_bytes: Counter,
    /// Reads that were not to be cached.
    pub read_bypassed: Counter,
    /// Bytes put into the cache after misses.
    pub fill_bytes: Counter,
    /// Fills that lost against a write.
    pub fill_collisions: Counter,
    /// Fills that had to wait for a bucket, or their request for them.
    pub fill_waits: Counter,
    /// Fills that waited for a bucket when their range was written, and left.
    pub fill_cancelled: Counter,
    /// Fills dropped as nothing could be recycled.
    pub fill_dropped_dry: Counter,
    /// Fills dropped as too many bytes were under way to the cache or waited for buckets.
    pub fill_dropped_memory: Counter,
    /// Fills dropped as the index could not grow.
    pub fill_dropped_keys: Counter,
    /// Cached reads whose bucket was recycled meanwhile.
    pub read_races: Counter,
    /// Writes that went to the cache alone.
    pub writeback: Counter,
    /// Writes that went to both.
    pub writethrough: Counter,
    /// Writes that went to the backing device alone.
    pub write_bypassed: Counter,
    /// Bytes written by clients.
    pub write_bytes: Counter,
    /// Flushes.
    pub flushes: Counter,
    /// Bytes written back.
    pub written_back_bytes: Counter,
    /// Time of reads.
    pub read_latency: Latencies,
    /// Time of writes.
    pub write_latency: Latencies,
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
    /// Reads.
    pub reads: ReadStatus,
    /// Writes.
    pub writes: WriteStatus,
    /// Times.
    pub latency: LatencyStatus,
}

/// Reads of a volume.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of the JSON and say it")]
pub struct ReadStatus {
    pub hits: u64,
    pub misses: u64,
    pub bypassed: u64,
    pub hit_bytes: u64,
    pub miss_bytes: u64,
    pub fill_bytes: u64,
    pub fill_collisions: u64,
    pub fill_dropped: u64,
    pub fill_dropped_dry: u64,
    pub fill_dropped_memory: u64,
    pub fill_dropped_keys: u64,
    pub fill_cancelled: u64,
    pub fill_waits: u64,
    pub races: u64,
}

/// Writes of a volume.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of the JSON and say it")]
pub struct WriteStatus {
    pub writeback: u64,
    pub writethrough: u64,
    pub bypassed: u64,
    pub bytes: u64,
    pub flushes: u64,
    pub written_back_bytes: u64,
}

/// Upper bounds in seconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names are the keys of the JSON and say it")]
pub struct LatencyStatus {
    pub read_p50: f64,
    pub read_p99: f64,
    pub write_p50: f64,
    pub write_p99: f64,
}

impl VolumeCounters {
    /// As `status` shows them.
    pub fn snapshot(&self) -> (ReadStatus, WriteStatus, LatencyStatus) {
        let (dry, memory, keys) = (
            self.fill_dropped_dry.get(),
            self.fill_dropped_memory.get(),
            self.fill_dropped_keys.get(),
        );
        let reads = ReadStatus {
            hits: self.hits.get(),
            misses: self.misses.get(),
            bypassed: self.read_bypassed.get(),
            hit_bytes: self.hit_bytes.get(),
            miss_bytes: self.miss_bytes.get(),
            fill_bytes: self.fill_bytes.get(),
            fill_collisions: self.fill_collisions.get(),
            fill_dropped: dry + memory + keys,
            fill_dropped_dry: dry,
            fill_dropped_memory: memory,
            fill_dropped_keys: keys,
            fill_cancelled: self.fill_cancelled.get(),
            fill_waits: self.fill_waits.get(),
            races: self.read_races.get(),
        };
        let writes = WriteStatus {
            writeback: self.writeback.get(),
            writethrough: self.writethrough.get(),
            bypassed: self.write_bypassed.get(),
            bytes: self.write_bytes.get(),
            flushes: self.flushes.get(),
            written_back_bytes: self.written_back_bytes.get(),
        };
        let latency = LatencyStatus {
            read_p50: self.read_latency.percentile(50),
            read_p99: self.read_latency.percentile(99),
            write_p50: self.write_latency.percentile(50),
            write_p99: self.write_latency.percentile(99),
        };
        (reads, writes, latency)
    }
}
