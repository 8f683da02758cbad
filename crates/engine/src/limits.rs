//! Every bound in one place, with the kernel's value beside it where it has one.

use std::time::Duration;

/// Bytes in a sector.
pub const SECTOR: u64 = 512;
/// Longest extent, in sectors (the SIZE field, docs/format.md 3.1).
pub const EXTENT_SECTORS_MAX: u64 = 65535;
/// Longest hole written as one key, in sectors (kernel: 32768).
pub const HOLE_SECTORS_MAX: u64 = 32768;
/// Longest piece of a discard or of zeroes handled at once, in sectors.
pub const CLEAR_SECTORS_MAX: u64 = 1 << 16;
/// Largest part of a miss that is put into the cache in one step, and largest copy of a write, in sectors (kernel: 2048 of a miss).
pub const FILL_SECTORS_MAX: u64 = 2048;
/// Bytes of fills of a set that wait for a bucket or are being written after a miss, unless an eighth of all memory is less; the
/// requests behind more of them wait too, for a while. They count as memory of the index does.
pub const FILL_BYTES_MAX: usize = 32 << 20;
/// Longest time a request waits as so many fills wait for buckets: some writes of the gen table, on a slow device. Then it goes
/// on, and what it read or wrote is not put into the cache.
pub const FILL_PATIENCE: Duration = Duration::from_millis(500);
/// The same where they do not wait for buckets: the cache device is slower than the backing device.
pub const FILL_PATIENCE_DEVICE: Duration = Duration::from_millis(20);
/// Placed clean data that waits for a flush of the backing device has that flushed at once when it is this part of the cache.
pub const UNFLUSHED_FILLS_PART: u64 = 16;
/// Open buckets nobody used for so long are closed (kernel: never).
pub const SLOT_IDLE: Duration = Duration::from_secs(30);
/// Memory for the state of one bucket, lists included.
pub const BUCKET_MEMORY_BYTES: u64 = 32;
/// The state of buckets may take this much whatever the limit on memory is.
pub const BUCKETS_MEMORY_BYTES_MIN: u64 = 64 << 20;
/// Open journal entries: newest minus oldest needed (kernel 20000; docs/format.md 5.6 says 16384).
pub const OPEN_ENTRIES_MAX: u64 = 16384;
/// Open entries at which leaves begin to be written.
pub const OPEN_ENTRIES_HIGH: u64 = 8192;
/// Longest time a key waits for the journal without a flush (kernel: 100 ms).
pub const JOURNAL_DELAY_MAX: Duration = Duration::from_millis(100);
/// Shortest such time: lets a burst share one entry.
pub const JOURNAL_DELAY_MIN: Duration = Duration::from_millis(2);
/// Longest time an entry may find no place in the ring while nothing is written and no leaf lets go of anything.
pub const JOURNAL_STUCK_MAX: Duration = Duration::from_secs(120);
/// Pending words at which a leaf is written early (kernel: 4048 bytes; larger sets make fewer, longer appends).
pub const LEAF_PENDING_WORDS: usize = 1536;
/// Longest time a leaf stays unwritten (kernel: 30 s).
pub const LEAF_DELAY: Duration = Duration::from_secs(30);
/// Leaves written in one round.
const LEAF_BATCH: usize = 64;
/// Keys of a leaf handled in one step.
pub const SLICE_KEYS: usize = 256;
/// Leaves read at the same time.
pub const LEAF_LOADS_MAX: usize = 4;
/// Memory of a process beside index, buckets and fills: the program, its buffers, leaves that are being read or written.
pub const OTHER_MEMORY_BYTES: u64 = 16 << 20;
/// Leaves that stay in memory however short that is.
const LEAVES_HERE_MIN: usize = 8;
/// Remembered recent requests per volume for sequential detection (kernel: 128).
pub const RECENT_REQUESTS: usize = 128;
/// Pauses before a leaf that could not be read is read again for a request; then its volume does without.
pub const LEAF_PAUSES: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(200)];
/// Copies that could not be read and are taken out of the index at once, of one volume; others wait for the next read of them.
pub const COPIES_DROPPED_AT_ONCE: usize = 16;
/// Time between looks whether a backing device answers (kernel: the same).
pub const PROBE_PAUSE: Duration = Duration::from_secs(1);
/// Looks in a row without an answer after which it is taken to be gone (kernel: the same).
pub const GONE_PROBES: u32 = 5;
/// How long one is remembered (kernel: 5 s).
pub const RECENT_VALID: Duration = Duration::from_secs(5);
/// Dirty extents written back in one round, which ends with a flush of the backing device (kernel: without any flush).
pub const WRITEBACK_EXTENTS: usize = 256;
/// Bytes written back in one round.
pub const WRITEBACK_BYTES: u64 = 16 << 20;
/// Longest run of adjacent extents that is written to the backing device at once, in sectors (kernel: one extent).
pub const WRITEBACK_RUN_SECTORS: u64 = 2048;
/// Longest span of dirty extents and what lies between them that is read from the backing device and written there at once, in sectors
/// (kernel: none is).
pub const WRITEBACK_SPAN_SECTORS: u64 = 4096;
/// Runs that are written back at the same time (kernel: 64 extents).
pub const WRITEBACK_DEPTH_MAX: usize = 32;
/// A backing device whose writes take no longer on average is not too busy for more at once.
pub const WRITEBACK_LATENCY_FINE: Duration = Duration::from_millis(20);
/// What is written back within this time, at a given rate, goes in one round.
pub const WRITEBACK_ROUND: Duration = Duration::from_secs(1);
/// A whole pass through a volume that found no more extents has found little (kernel: 500).
pub const WRITEBACK_LITTLE: u64 = 500;
/// In-use percentage above which dirty data is written back at full speed, whatever the rate (kernel: fragmentation counts from 50 on,
/// which is little until 64).
pub const WRITEBACK_IN_USE_PERCENT: u64 = 50;
/// In-use percentage above which data moves out of buckets that are mostly dead: below it there is room enough without.
pub const MOVING_IN_USE_PERCENT: u64 = 50;
/// A bucket is worth emptying if no more than this part of it is live, in percent: two then become one at most.
const MOVING_LIVE_PERCENT: u64 = 50;
/// Bytes moved are no more than this part of the bytes written to the cache for clients: a fifth more wear, and as much more work for the
/// device (kernel: no bound).
pub const MOVING_PART: u64 = 5;
/// Without any request for so long the device is there for moving too.
pub const MOVING_IDLE: Duration = Duration::from_secs(1);
/// Bytes moved in a second then: little for any device, so that whoever comes next hardly waits.
pub const MOVING_IDLE_RATE: u64 = 32 << 20;
/// Most bytes that may be moved at once after a time without.
pub const MOVING_BURST_BYTES: u64 = 16 << 20;
/// Extents moved at the same time (kernel: 64).
pub const MOVING_EXTENTS: usize = 16;
/// Longest piece moved in one I/O, in sectors.
pub const MOVING_PIECE_SECTORS: u64 = 512;
/// Buckets looked at in one step when some are chosen.
pub const MOVING_CHOICE_BUCKETS: u64 = 1 << 13;
/// Time between looks whether there is something to move, or may be moved yet.
pub const MOVING_LOOK: Duration = Duration::from_millis(250);
/// Extents of a removed device that leave the index in one step.
pub const SWEEP_EXTENTS: usize = 256;
/// Leaves that are rewritten at the same time, so that nothing of a removed device is in them.
pub const SWEEP_LEAVES: usize = 4;
/// Longest time an opening waits for a slot to become free, if a device needs one and all are taken.
pub const SWEEP_PATIENCE: Duration = Duration::from_secs(60);
/// Time between looks of the sweeper whether it may go on.
pub const SWEEP_LOOK: Duration = Duration::from_millis(250);
/// Clean data of a kernel's session that is compared with the backing device at open; of more than this none is.
pub const SETTLE_BYTES_MAX: u64 = 1 << 30;

#[cfg(feature = "instrumented")]
thread_local! {
    static LEAF_BATCH_NOW: std::cell::Cell<usize> = const { std::cell::Cell::new(LEAF_BATCH) };
    static CHILDREN_MOST_NOW: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) };
    static REWRITTEN_MOST_NOW: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) };
    static COUNT_PAUSE: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) };
    static LEAVES_HERE_MIN_NOW: std::cell::Cell<usize> = const { std::cell::Cell::new(LEAVES_HERE_MIN) };
    static MOVING_IS_EAGER: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    static TABLES_HELD: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    static HELD_UNTIL: std::cell::Cell<Option<u8>> = const { std::cell::Cell::new(None) };
}

/// Whether collections wait although they are due, as they would behind work that never ends. Only simulation has them wait, so
/// that gens get as far ahead of old pointers as they may.
#[inline(always)]
pub fn collections_held() -> bool {
    #[cfg(feature = "instrumented")]
    return HELD_UNTIL.with(std::cell::Cell::get).is_some();
    #[cfg(not(feature = "instrumented"))]
    false
}

/// So many generations may a bucket be ahead of its oldest pointer where `most` is the rule. Only simulation has less.
#[inline(always)]
pub fn gen_age_max(most: u8) -> u8 {
    #[cfg(feature = "instrumented")]
    return HELD_UNTIL
        .with(std::cell::Cell::get)
        .map_or(most, |until| until.min(most));
    #[cfg(not(feature = "instrumented"))]
    most
}

/// From now on no collection begins on this thread, and no gen gets further than this ahead of an old pointer; `None`: all is as
/// ever.
#[cfg(feature = "instrumented")]
pub fn hold_collections(until: Option<u8>) {
    HELD_UNTIL.with(|now| now.set(until));
}

/// Whether sets say that they have no bucket for another UUID table. Only tests have them say so, at a moment of their choice.
#[inline(always)]
pub fn tables_held() -> bool {
    #[cfg(feature = "instrumented")]
    return TABLES_HELD.with(std::cell::Cell::get);
    #[cfg(not(feature = "instrumented"))]
    false
}

/// From now on sets of this thread have no room for another UUID table, or as much as they have.
#[cfg(feature = "instrumented")]
pub fn hold_tables(is_held: bool) {
    TABLES_HELD.with(|now| now.set(is_held));
}

/// Leaves written in one round. Only simulation makes it smaller, so that small trees take several rounds too.
#[inline(always)]
pub fn leaf_batch() -> usize {
    #[cfg(feature = "instrumented")]
    return LEAF_BATCH_NOW.with(std::cell::Cell::get);
    #[cfg(not(feature = "instrumented"))]
    LEAF_BATCH
}

/// From now on this thread writes so many leaves in one round; as many as ever if `None`.
#[cfg(feature = "instrumented")]
pub fn set_leaf_batch(leaves: Option<usize>) {
    LEAF_BATCH_NOW.with(|now| now.set(leaves.unwrap_or(LEAF_BATCH).max(1)));
}

/// Keys that a node of this level has room for, of as many as fit. Only simulation makes it fewer, so that small trees are deep.
#[inline(always)]
pub fn keys_most(level: u16, fit: usize) -> usize {
    #[cfg(feature = "instrumented")]
    {
        let children = CHILDREN_MOST_NOW.with(std::cell::Cell::get);
        let keys = if level == 0 {
            children.saturating_mul(6)
        } else {
            children
        };
        keys.min(fit)
    }
    #[cfg(not(feature = "instrumented"))]
    {
        let _ = level;
        fit
    }
}

/// From now on interior nodes that this thread writes have room for so many children, and leaves for six times as many keys;
/// for as many as ever if `None`.
#[cfg(feature = "instrumented")]
pub fn set_children_most(children: Option<usize>) {
    CHILDREN_MOST_NOW.with(|now| now.set(children.unwrap_or(usize::MAX)));
}

/// Buckets that rewriting a leaf and everything above it takes at most, of a tree as deep as they get. Those of simulation are deeper.
#[inline(always)]
pub fn nodes_at_once(most: usize) -> usize {
    #[cfg(feature = "instrumented")]
    {
        let is_deep = CHILDREN_MOST_NOW.with(std::cell::Cell::get) < usize::MAX;
        if is_deep { 3 * most } else { most }
    }
    #[cfg(not(feature = "instrumented"))]
    most
}

/// Of so many leaves those that are rewritten together. Only simulation makes it fewer, as if there were few buckets.
#[inline(always)]
pub fn rewritten_together(leaves: usize) -> usize {
    #[cfg(feature = "instrumented")]
    return REWRITTEN_MOST_NOW.with(std::cell::Cell::get).min(leaves);
    #[cfg(not(feature = "instrumented"))]
    leaves
}

/// From now on this thread rewrites so many leaves together at most; as many as ever if `None`.
#[cfg(feature = "instrumented")]
pub fn set_rewritten_together(leaves: Option<usize>) {
    REWRITTEN_MOST_NOW.with(|now| now.set(leaves.unwrap_or(usize::MAX).max(1)));
}

/// Leaves that stay in memory however short that is. Only simulation makes it smaller, so that those of small trees go too.
#[inline(always)]
pub fn leaves_here_min() -> usize {
    #[cfg(feature = "instrumented")]
    return LEAVES_HERE_MIN_NOW.with(std::cell::Cell::get);
    #[cfg(not(feature = "instrumented"))]
    LEAVES_HERE_MIN
}

/// From now on so many leaves stay in memory on this thread; as many as ever if `None`.
#[cfg(feature = "instrumented")]
pub fn set_leaves_here_min(leaves: Option<usize>) {
    LEAVES_HERE_MIN_NOW.with(|now| now.set(leaves.unwrap_or(LEAVES_HERE_MIN)));
}

/// Time between leaves that are counted after the start. Only simulation takes any.
#[inline(always)]
pub fn count_pause() -> Duration {
    #[cfg(feature = "instrumented")]
    return COUNT_PAUSE.with(std::cell::Cell::get);
    #[cfg(not(feature = "instrumented"))]
    Duration::ZERO
}

/// From now on counting pauses so long between leaves on this thread.
#[cfg(feature = "instrumented")]
pub fn set_count_pause(pause: Duration) {
    COUNT_PAUSE.with(|now| now.set(pause));
}

/// Whether data moves although there is room enough and however little was written. Only simulation has it so.
#[inline(always)]
pub fn moving_is_eager() -> bool {
    #[cfg(feature = "instrumented")]
    return MOVING_IS_EAGER.with(std::cell::Cell::get);
    #[cfg(not(feature = "instrumented"))]
    false
}

/// From now on data on this thread moves whenever it can, or as ever.
#[cfg(feature = "instrumented")]
pub fn set_moving_eager(is_eager: bool) {
    MOVING_IS_EAGER.with(|now| now.set(is_eager));
}

/// Part of a bucket that is live at most if it is worth emptying, in percent.
#[inline(always)]
pub fn moving_live_percent() -> u64 {
    if moving_is_eager() {
        95
    } else {
        MOVING_LIVE_PERCENT
    }
}
