//! Deliberate mistakes, to prove that simulation finds such.
//!
//! Without the feature `instrumented` every one of them is `false` at compile time. With it, one may be chosen per thread.

macro_rules! mutations {
    ($($name:ident: $what:literal,)*) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutation {
            $(#[doc = $what] $name,)*
        }

        /// Every mistake, its name and what it does.
        pub const ALL: &[(Mutation, &str, &str)] = &[$((Mutation::$name, stringify!($name), $what),)*];
    };
}

mutations! {
    AckBeforeJournal: "a write is acknowledged before its journal entry is durable",
    AckWithFailedData: "a failed write of data to the cache is taken for done",
    AllocForgetsGen: "a recycled bucket keeps its generation",
    AllocReleasesEarly: "buckets are reused before the gen table is durable",
    AllocTakesDirty: "a bucket with dirty data is recycled",
    AllocTakesPinned: "a bucket that somebody holds is recycled",
    AppendTailVolatile: "the rest of a set of keys is not durable before its first unit is",
    CleanWithoutFlush: "dirty data counts as written back before the backing device was flushed",
    CopyBeforeFlush: "clean data enters the index before the backing device was flushed (REQ-1)",
    CopyIgnoresWrites: "clean data enters the index although its range was written",
    CutOneShort: "what is left of a covered extent is a sector too short",
    CutOneLong: "what is left behind a covering extent begins a sector too early",
    DirectForgetsClean: "a direct write leaves clean copies in place",
    DirectHoleVolatile: "a direct write does not wait until its holes are durable (REQ-3)",
    DirectHidesEarly: "dirty data is hidden before the backing device was flushed (REQ-2)",
    DiscardOverDirty: "a discard over dirty data is left to the device",
    DirtyStateLate: "data becomes dirty before the backing superblock says so",
    CleanStateEarly: "a backing superblock says clean although data is dirty",
    FlushForgetsBacking: "a flush does not reach the backing device",
    FlushForgetsJournal: "a flush does not write the journal entry",
    FuaForgottenDirect: "FUA is forgotten on the way to the backing device",
    FuaForgottenCached: "FUA is forgotten on the way into the cache",
    JournalForgetsFlush: "an entry is written before the data of its keys is durable",
    JournalForgetsFua: "an entry is taken for durable when it is only written",
    JournalForgetsPins: "an entry says that it needs no older one",
    JournalOverwrites: "every ring bucket counts as free",
    LeafForgetsFlush: "a leaf names data that is not durable",
    LeafUnpinsEarly: "a leaf lets go of its journal entry before it is written",
    NodeFreedEarly: "a replaced node is reused while the durable root leads to it",
    RootForgotten: "the journal goes on naming the old root",
    PinLost: "a bucket is let go before the keys of its new data are in the index",
    PoisonForgotten: "a failed metadata write is not remembered",
    ReadIgnoresReuse: "a read does not look whether its bucket was recycled",
    RecordForgotten: "keys of the record in memory are not journalled again",
    RecordOfAnyone: "a record in memory of another set or opening is used",
    RecordWithoutHoles: "the record in memory leaves out keys without data",
    ReplayFromLater: "replay leaves out the oldest entry that is needed",
    ReplayBackwards: "replay prefers older keys",
    ReplayNotInLeaves: "replayed keys are not given to their leaves",
    WritebackIgnoresChange: "an extent becomes clean although it changed while it was written back",
    WritebackIgnoresDirect: "an extent becomes clean although its range was written directly",
}

#[cfg(feature = "instrumented")]
thread_local! {
    static CHOSEN: std::cell::Cell<Option<Mutation>> = const { std::cell::Cell::new(None) };
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
