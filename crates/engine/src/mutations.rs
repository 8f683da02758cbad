//! Deliberate mistakes, to prove that simulation and unit tests find such.
//!
//! Without the feature `instrumented` every one of them is `false` at compile time. With it, one may be chosen per thread.
//! Those marked `(unit)` are no matter of life and death for data, so simulation may miss them; the tests that the
//! allocator's table of rules names (`docs/allocator.md`) have to find all of the allocator's. What is marked `(story)` does
//! harm so rarely that a story in `crates/engine/tests` is told with it.

macro_rules! mutations {
    ($($name:ident $(($unit:ident))?: $what:literal,)*) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutation {
            $(#[doc = $what] $name,)*
        }

        /// Every mistake, its name and what it does.
        pub const ALL: &[(Mutation, &str, &str)] = &[$((Mutation::$name, stringify!($name), $what),)*];

        const TESTED: &[(Mutation, &str)] = &[$($((Mutation::$name, stringify!($unit)),)?)*];
    };
}

mutations! {
    AckBeforeJournal: "a write is acknowledged before its journal entry is durable",
    AckWithFailedData: "a failed write of data to the cache is taken for done",
    AllocAbandonReleases (unit): "a batch whose table failed is released all the same",
    AllocAgeForgotten (unit): "nobody notes how far gens are ahead of the oldest pointers",
    AllocAgesDouble (unit): "a step of traffic ages buckets by two",
    AllocBatchLate (unit): "buckets are made ready only when none is left",
    AllocBatchOfOne (unit): "a gen table is written for every recycled bucket",
    AllocChecksNothing (unit): "expensive checks find nothing",
    AllocCloseLeaks (unit): "a bucket that is closed stays pinned",
    AllocCopiesTogether (unit): "copies of one key are on the same device",
    AllocCountsStale (unit): "totals do not follow what becomes of buckets",
    AllocCountsTooMany (unit): "one bucket more is promised for metadata than there is",
    AllocDataTakesAll (unit): "data may take what is kept for btree nodes",
    AllocDataBeforeMetadata (unit): "data takes buckets while somebody waits for some for metadata",
    AllocDiscardSkipped (unit): "a bucket that is to be discarded is ready before",
    AllocEndForgotten (unit): "an open bucket does not remember where its data ends",
    AllocEventsWrong (unit): "the event of an allocation gives the reserve for the bucket",
    AllocFailsSilently (unit): "an allocation that fails leaves no event",
    AllocFifoRestarts (unit): "FIFO begins at the first bucket every time",
    AllocFloorless (unit): "the oldest data is worth nothing",
    AllocFreeLeaks (unit): "a freed node's bucket stays metadata",
    AllocForgetsGen: "a recycled bucket keeps its generation",
    AllocGenAgeIgnored (unit): "a bucket is recycled however far its gen is ahead of its oldest pointer",
    AllocHandsOutMore (unit): "more is handed out than an open bucket has",
    AllocIdleStaysOpen (unit): "open buckets that nobody uses are not closed",
    AllocIgnoresLive (unit): "the value of a bucket does not depend on its live sectors",
    AllocKeepsPrio (unit): "a recycled bucket keeps the recency of its old data",
    AllocKindsMix (unit): "data of flash volumes shares buckets with cached data",
    AllocLagUnseen (unit): "gens may run far ahead of the durable table without a new one",
    AllocMetadataCold (unit): "metadata has the recency of data",
    AllocNewBucketElsewhere (unit): "a new bucket goes to the oldest slot instead of the one picked",
    AllocNewcomerOvertakes (unit): "who comes takes what others wait for",
    AllocNoPreference (unit): "devices are asked by number, however full they are",
    AllocNoTable (unit): "a set that is synchronous reuses buckets without a table",
    AllocNoUnwind (unit): "a copy that finds no bucket leaves those of the others taken",
    AllocNoUnused (unit): "a bucket that nothing names waits for a gen table as any other",
    AllocOneSlot (unit): "there is one open bucket",
    AllocOpensCold (unit): "a bucket just opened has the recency it had before",
    AllocOpensOldGen (unit): "pointers into a new bucket carry the gen before its own",
    AllocOwnReserveFirst (unit): "metadata takes its own reserve before what everybody shares",
    AllocParkedForgotten (unit): "buckets that wait for a gc or a table are not looked at again",
    AllocPinForgotten (unit): "data handed out does not hold its bucket",
    AllocPlaceForgotten (unit): "a bucket taken for metadata still counts as ready",
    AllocPolicyStuck (unit): "another policy does not take effect",
    AllocRandomFixed (unit): "RANDOM does not throw the dice",
    AllocReleasesEarly: "buckets are reused before the gen table is durable",
    AllocReserveOrder (unit): "the table's reserve is filled after that of nodes",
    AllocSequentialForgotten (unit): "data that continues an extent does not follow it",
    AllocSizesSmall (unit): "lists are as small as a kernel's",
    AllocStaleLate (unit): "a pointer one gen behind its bucket is good",
    AllocStreamForgotten (unit): "who writes does not matter for where",
    AllocSurplus (unit): "a bucket is taken although the open one has space",
    AllocTableLagIgnored (unit): "a gen may be any distance ahead of the durable table",
    AllocTableSaysNow (unit): "a table is taken to say what became true after it was begun",
    AllocTailKept (unit): "a rest shorter than a block is handed out",
    AllocTakesDirty: "a bucket with dirty data is recycled",
    AllocTakesPinned: "a bucket that somebody holds is recycled",
    AllocTakesReferenced (unit): "a bucket that something hidden names is taken over without a table",
    AllocTouchForgotten (unit): "a read does not make a bucket more recent",
    AllocTrustsOrder (unit): "what was read since the order heard of it is taken in its old place",
    AllocWakesNobody (unit): "nobody is woken when there is what he waits for",
    AllocWriterHasNoReserve (unit): "the copying collector's reserve is for nobody",
    AppendTailVolatile: "the rest of a set of keys is not durable before its first unit is",
    AttachMixes (story): "a device that is attached is cached while requests that know of no cache are under way",
    BridgeUnlocked (story): "what lies between dirty extents is written back while others may write there",
    CleanWithoutFlush: "dirty data counts as written back before the backing device was flushed",
    CopyBeforeFlush: "clean data enters the index before the backing device was flushed (REQ-1)",
    CopyIgnoresWrites: "clean data enters the index although its range was written",
    CutOneShort: "what is left of a covered extent is a sector too short",
    CutOneLong: "what is left behind a covering extent begins a sector too early",
    DetachServesEarly (story): "a device is served without its cache before it says that it has none",
    DirectForgetsClean: "a direct write leaves clean copies in place",
    DirectHiddenVolatile (story): "a direct write does not wait for the key of somebody else that hides dirty data under it",
    DirectHoleVolatile: "a direct write does not wait until its holes are durable (REQ-3)",
    DirectHidesEarly: "dirty data is hidden before the backing device was flushed (REQ-2)",
    DiscardOverDirty: "a discard over dirty data is left to the device",
    DirtyStateLate: "data becomes dirty before the backing superblock says so",
    CleanStateEarly: "a backing superblock says clean although data is dirty",
    FlushForgetsBacking: "a flush does not reach the backing device",
    FlushForgetsJournal: "a flush does not write the journal entry",
    FuaForgottenDirect: "FUA is forgotten on the way to the backing device",
    FuaForgottenCached: "FUA is forgotten on the way into the cache",
    GcLeavesOnly: "a garbage collection leaves stale pointers in interior nodes",
    GrowthLeavesRequests (story): "who makes a volume larger leaves requests of the size before to themselves",
    JournalForgetsFlush: "an entry is written before the data of its keys is durable",
    JournalForgetsFua: "an entry is taken for durable when it is only written",
    JournalForgetsPins: "an entry says that it needs no older one",
    JournalOverwrites: "every ring bucket counts as free",
    LeafForgetsFlush: "a leaf names data that is not durable",
    LeafForgetsRevivable (story): "a leaf that was written anew forgets what a crash may bring back of it",
    LeavesClean: "a volume goes on without its cache while its superblock says clean",
    LeavesJoinEarly (story): "neighbours become one before it is settled what is written with them",
    LeafUnpinsEarly: "a leaf lets go of its journal entry before it is written",
    MoveIgnoresChange: "an extent gets its new place although it changed while it was moved",
    MoveIgnoresReuse: "an extent gets its new place although its old bucket was recycled meanwhile",
    MoveWithoutLock: "what is moved does not hold its range",
    NodeFreedEarly: "a replaced node is reused while the durable root leads to it",
    RootForgotten: "the journal goes on naming the old root",
    ShrinkKeepsData (story): "what lies behind the new end of a volume stays in the cache",
    SlotRecycledEarly (story): "the slot of a removed device is free while its keys may be replayed",
    SlotSweptInMemory: "leaves that may hide keys of a removed device are left as they are",
    StopCallsAllEmpty: "the gen table of a clean stop says of every bucket of data that nothing names it",
    PinLost: "a bucket is let go before the keys of its new data are in the index",
    PoisonForgotten: "a failed metadata write is not remembered",
    ReadIgnoresReuse: "a read does not look whether its bucket was recycled",
    RecordForgotten: "keys of the record in memory are not journalled again",
    RecordInPieces: "a stage of the record in memory is journalled in several entries",
    RecordOfAnyone: "a record in memory of another set or opening is used",
    RecordWithoutHoles: "the record in memory leaves out keys without data",
    ReplayFromLater: "replay leaves out the oldest entry that is needed",
    ReplayBackwards: "replay prefers older keys",
    ReplayNotInLeaves: "replayed keys are not given to their leaves",
    WritebackIgnoresChange: "an extent becomes clean although it changed while it was written back",
    WritebackIgnoresDirect: "an extent becomes clean although its range was written directly",
}

/// Whether only tests have to find this mistake, and not simulation.
pub fn is_for_tests(mutation: Mutation) -> bool {
    TESTED.iter().any(|(unit, _)| *unit == mutation)
}

#[cfg(all(feature = "instrumented", not(test)))]
thread_local! {
    static CHOSEN: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
}

// Unit tests are told from outside which mistake to make: each then runs in a process of its own.
#[cfg(all(feature = "instrumented", test))]
thread_local! {
    static CHOSEN: std::cell::Cell<Option<Mutation>> = std::cell::Cell::new(told());
}

#[cfg(all(feature = "instrumented", test))]
fn told() -> Option<Mutation> {
    let name = std::env::var("BRIGADE_MISTAKE").ok()?;
    let found = ALL.iter().find(|(_, text, _)| *text == name);
    // A mistake may also make a test run for ever, and then it is seen.
    static LIMIT: std::sync::Once = std::sync::Once::new();
    LIMIT.call_once(|| {
        std::thread::spawn(|| {
            std::thread::sleep(std::time::Duration::from_secs(30));
            std::process::exit(1);
        });
    });
    Some(found.expect("a mistake of this name").0)
}

/// Whether this mistake is to be made.
#[inline(always)]
pub fn is(mutation: Mutation) -> bool {
    #[cfg(feature = "instrumented")]
    {
        CHOSEN.with(|chosen| chosen.get() == Some(mutation))
    }
    #[cfg(not(feature = "instrumented"))]
    {
        let _ = mutation;
        false
    }
}

/// Makes this thread make a mistake from now on.
#[cfg(feature = "instrumented")]
pub fn choose(mutation: Option<Mutation>) {
    CHOSEN.with(|chosen| chosen.set(mutation));
}
