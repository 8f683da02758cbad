//! Coverage marks: each names a branch that is rarely taken, and simulation prints which were never reached.
//!
//! Without the feature `instrumented` a mark is nothing. A mark that no run hits is either a hole in the tests or code that
//! cannot be reached; both want looking at.

macro_rules! marks {
    ($($name:ident: $what:literal,)*) => {
        /// A branch.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mark {
            $(#[doc = $what] $name,)*
        }

        /// Every mark's name and what it stands for, in order.
        pub const ALL: &[(&str, &str)] = &[$((stringify!($name), $what),)*];
    };
}

marks! {
    AllocBatchOfNothing: "a gen table is written only since gens run ahead of it",
    AllocGenAtLimit: "a bucket is not recycled, as its generation is too far from the oldest pointer",
    AllocGenWraps: "a generation goes from 255 to 0",
    AllocDry: "buckets run low and nothing can be recycled",
    AllocMetadataWaits: "somebody waits for buckets for nodes",
    AllocPolicyFifo: "victims by bucket number",
    AllocPolicyRandom: "victims by chance",
    AttachKnownSlot: "a backing device keeps its slot",
    AttachNewSlot: "a backing device gets a slot",
    AttachOnline: "a device is attached while its set is served",
    AttachServed: "a device that is served without a cache is attached",
    AttachSlotHasKeys: "a free slot is not given out, as there are keys of it",
    AttachSlotGivenUp: "a slot is given up, as its device was run without the set",
    BackingGrown: "a backing device has grown",
    BackingFlushFailed: "a backing device that failed a flush takes no more writes",
    BackingShut: "a volume refuses requests, as its backing device had too many errors",
    BtreeAppend: "a leaf is appended to",
    BtreeFirstUnitApart: "a set is longer than what the device writes as one",
    BtreeGcPass: "all nodes were rewritten, as generations ran away from the oldest pointers",
    BtreeInteriorAppend: "an interior node is appended to",
    BtreeInteriorsJoin: "interior nodes with few children become one",
    BtreeInteriorRewrite: "an interior node is rewritten",
    BtreeInteriorSplit: "an interior node splits",
    BtreeLeafComesBack: "a leaf that left memory is read",
    BtreeLeafRewrite: "a leaf is rewritten as one",
    BtreeLeafSplit: "a leaf splits",
    BtreeLeavesJoin: "leaves that are mostly empty become one",
    BtreeLeftOutComesBack: "a leaf is read of which something was left out that a crash may bring back",
    BtreeLeafWaitsForMemory: "a leaf is not read before others are written and go",
    BtreeLevelGoes: "the tree loses a level",
    BtreeNewLevel: "the tree grows a level",
    BtreeRetired: "buckets of replaced nodes wait for the entry that names the new root",
    BtreeFewerAtOnce: "there are too few buckets to rewrite all leaves asked for at once",
    BucketSetAside: "a bucket is not used any more, as a request on it failed",
    CacheLeft: "a volume goes on without its cache",
    ClearBecomesZeroes: "a discard over dirty data is done as zeroes",
    ClearSplitRefused: "a hole that would split an extent finds no room for keys",
    CopyDropped: "clean data is not put into the cache, as there is no room",
    CopyFlushesEarly: "the backing device is flushed at once, as clean data that waits for that holds much of the cache",
    CopyLostRace: "clean data is not put into the cache, as its range was written",
    CopyWaitsForFlush: "clean data waits for a flush of the backing device",
    DetachCancelled: "a detach is cancelled",
    DetachDone: "a device is detached while it is served",
    DetachSendsAway: "a write that was to become dirty meets a detach and goes directly",
    DirectHidesClean: "a direct write makes durable holes over clean extents",
    DirectHidesDirty: "a direct write lets go of dirty extents after a flush",
    DirectDirtyHidden: "dirty extents that a direct write lets go of were hidden by somebody else",
    DirectHiddenMeanwhile: "clean extents that a direct write wanted to hide were hidden by somebody else",
    FlashCreated: "a flash volume is made",
    FlashDeleted: "a flash volume is deleted",
    FlashGrown: "a flash volume becomes larger",
    FlashShrunk: "a flash volume becomes smaller",
    FillCancelled: "clean data that waits for a bucket is written meanwhile, and leaves",
    FillDroppedDry: "clean data is dropped in a drought",
    FillDroppedKeys: "clean data is dropped as there is no room for keys",
    FillDroppedMemory: "clean data is dropped as too much of it is on its way",
    FillRequestWaits: "a request waits, as much clean data is on its way into the cache",
    FillWaits: "clean data waits for a bucket",
    InsertInPieces: "one operation's keys take more than one entry",
    InsertWaitsForRoom: "keys wait for room in the journal",
    JournalEmptyEntry: "an entry without keys",
    JournalFull: "an entry finds no place in the ring",
    JournalLastBucket: "the last free ring bucket is kept for an entry that frees another",
    JournalPressed: "leaves are written as the ring needs room",
    JournalStartsBehindNewest: "after opening, the first entry goes right behind the newest",
    JournalWraps: "the ring comes round",
    KeptKeysNotJournalled: "what the tree kept against the journal finds no place in the ring before leaves are written",
    SettledKeysNotJournalled: "what became dirty after a kernel's session finds the ring down to its reserve before leaves are written",
    LocksWait: "a direct write waits for another one",
    MoveClean: "clean data moves out of a bucket that is mostly dead",
    MoveDirty: "dirty data moves out of a bucket that is mostly dead",
    MoveFindsNoBucket: "there is no room for what is to be moved",
    MoveLostRace: "what was moved changed meanwhile, or its bucket was recycled",
    OpenCountsLater: "a set is opened without reading its leaves",
    OpenPassesLeaves: "a set is opened whose leaves are too many to be kept while they are read",
    PlaceNoRoom: "a write finds no room in the cache and goes to the backing device",
    PlaceSeveral: "a write is placed in several buckets",
    PlaceWaitsForKeys: "a write that has no other place waits until there is room for its keys",
    PlaceWaits: "a write waits for buckets",
    PoisonThrown: "a set takes no more writes",
    ReadDropsCopy: "a clean copy that could not be read leaves the index",
    ReadFallsBack: "a cached copy cannot be read, and the backing device is read instead",
    ReadStale: "a bucket was recycled while it was read",
    ReadUnwritten: "a read waits until what it saw survives",
    RecordAbsent: "writes are acknowledged by the journal",
    RecordReplayed: "keys are only in the record in memory",
    RecordStale: "a record of another opening is ignored",
    ReplayDropsStale: "a replayed key points to a recycled bucket",
    ReplayKeys: "keys are replayed",
    ReplayOverTree: "a replayed key and the tree disagree",
    RouteBypassAlignment: "a request bypasses the cache, as it is not aligned to its blocks",
    RouteBypassCongested: "a request bypasses the cache, as its device is busy",
    RouteBypassFull: "a request bypasses the cache, as that is full",
    RouteBypassMemory: "a request bypasses the cache, as the index may not grow",
    RouteBypassSequential: "a request bypasses the cache, as it continues a run",
    RouteNotDirty: "a write does not become dirty, as much of the cache is in use",
    StopRefusesLate: "a write comes after the stop began",
    SlotRecycled: "the slot of a removed device is free again",
    SlotSwept: "extents of a removed device leave the index",
    SlotClosedIdle: "an open bucket is closed, as nobody used it for a while",
    SlotsOfStreamCapped: "a stream loses a slot, as it has too many",
    SuperblockBecomesClean: "a backing device becomes clean",
    SuperblockStaysDirty: "a backing device does not become clean, as somebody is about to write",
    WritebackBridges: "dirty extents are written back with what lies between them",
    WritebackChanged: "an extent changed while it was written back",
    WritebackFailed: "a round of writeback failed",
    WritebackFullStripes: "stripes that are dirty as a whole are written back first",
    WritebackIdle: "an idle set is written back at full speed",
    WritebackMerges: "adjacent extents are written back in one piece",
    WritebackUrgent: "dirty data is written back at full speed as clean buckets are needed",
    WritebackWraps: "writeback begins again at the start of the volume",
}

#[cfg(feature = "instrumented")]
thread_local! {
    static HITS: std::cell::RefCell<[u64; ALL.len()]> = const { std::cell::RefCell::new([0; ALL.len()]) };
}

/// A branch was taken.
#[inline(always)]
pub fn hit(mark: Mark) {
    #[cfg(feature = "instrumented")]
    HITS.with(|hits| hits.borrow_mut()[mark as usize] += 1);
    let _ = mark;
}

/// Hits of a mark in this thread since the last [`take`]; none without the feature.
pub fn hits(mark: Mark) -> u64 {
    #[cfg(feature = "instrumented")]
    return HITS.with(|hits| hits.borrow()[mark as usize]);
    #[cfg(not(feature = "instrumented"))]
    {
        let _ = mark;
        0
    }
}

/// Hits of this thread since the last call, by mark; empty without the feature.
pub fn take() -> Vec<u64> {
    #[cfg(feature = "instrumented")]
    {
        HITS.with(|hits| hits.replace([0; ALL.len()]).to_vec())
    }
    #[cfg(not(feature = "instrumented"))]
    Vec::new()
}
