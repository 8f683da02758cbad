//! The journal: makes changes of the index durable cheaply, and outlives the process.
//!
//! Keys are appended to the *stage*, the entry being filled, in the same synchronous step in which they enter the index, so
//! their order in the journal is their order in the index. One writer task writes stages, one at a time, each with a flush
//! before it and durably, so that whatever completed before an entry was issued is durable once the entry is
//! (docs/format.md 5.8). Until then the keys stand in the [`survivor`] record, which `kill -9` does not take.
//!
//! The header of every entry names the root, the UUID table and the gen table; others set these, the journal carries
//! them.
//!
//! - **JNL-1** Entries have consecutive numbers and are written in that order, never two in flight.
//! - **JNL-2** `last_seq` never decreases, and no leaf has an unwritten key from an entry before it.
//! - **JNL-3** A ring bucket is overwritten only if every entry in it is older than `last_seq` of a durable entry.
//! - **JNL-4** Clients are held back while fewer than a reserve of ring buckets are free (`RingPlan`), so that what they let
//!   in before and the entries that make room (new roots, new tables) can be written.
//! - **JNL-6** The last free ring bucket goes to an entry that frees another one once it is durable, and if none is free, so does the
//!   last block of the current one; so an entry that frees can always be written.
//! - **JNL-7** An entry that finds no place although nothing else moves any more poisons the set; it does not wait for ever.
//! - **JNL-5** After a failed write nothing is durable any more: the set is poisoned, all who wait fail.

mod ring;
mod stage;
pub mod survivor;

pub use ring::RingStart;
pub use stage::{Journal, JournalSetup, Roots, plan};
