//! Proofs carried by buckets on their way to reuse. None can be copied, and each is made by exactly the step that
//! earns it, so handing out a bucket before its gen is durable does not compile (ALLOC-2).

use brigade_format::{BucketNr, Gen};

use super::metadata::MetadataBucket;
use std::vec::IntoIter;

/// A recycled bucket whose new gen is not durable yet.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Incoming(BucketNr);

/// A bucket that nothing stored names with its current gen (docs/format.md 6.5).
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Unused(BucketNr);

/// A bucket that may be overwritten: no pointer into it can come back to life.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct Ready(BucketNr);

/// Says that a gen table with the gens of one batch is durable.
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub(super) struct TableDurable(());

impl TableDurable {
    /// Nothing durable points to any bucket yet, so there is nothing that could come back.
    pub fn not_needed() -> TableDurable {
        TableDurable(())
    }
}

impl Incoming {
    /// The caller has just added one to the gen.
    pub fn new(nr: BucketNr) -> Incoming {
        Incoming(nr)
    }

    pub fn release(self, _proof: &TableDurable) -> Ready {
        Ready(self.0)
    }

    pub fn nr(&self) -> BucketNr {
        self.0
    }
}

impl Unused {
    /// The caller knows that nothing stored names the bucket with its current gen.
    pub fn new(nr: BucketNr) -> Unused {
        Unused(nr)
    }

    /// Consumed by the step that adds one to the gen in memory; no table write is needed.
    pub fn incremented(self) -> Ready {
        Ready(self.0)
    }

    pub fn nr(&self) -> BucketNr {
        self.0
    }
}

impl Ready {
    pub fn nr(&self) -> BucketNr {
        self.0
    }
}

/// A gen table to be written: the recycled buckets that wait for it and the buckets to write it to.
///
/// The caller takes [`table_entries`](super::Allocator::table_entries), writes it to
/// [`table_buckets`](Batch::table_buckets), has the journal name it durably, and then releases it in steps
/// ([`Releasing`]) or at once ([`batch_durable`](super::Allocator::batch_durable)), or after a failure to
/// [`abandon_batch`](super::Allocator::abandon_batch). Until then no other batch begins.
///
/// A batch is decided once:
///
/// ```compile_fail
/// use brigade_engine::alloc::{Allocator, Batch};
/// fn decide_twice(alloc: &mut Allocator, batch: Batch) {
///     alloc.abandon_batch(batch);
///     alloc.batch_durable(batch);
/// }
/// ```
#[must_use = "without a decision the recycled buckets are lost until restart"]
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub struct Batch {
    incoming: Vec<Incoming>,
    table: Vec<MetadataBucket>,
    /// Gens that were ahead of the durable table when the batch began: the table written later says at least these.
    gens: Vec<(u32, Gen)>,
}

impl Batch {
    pub(super) fn new(
        incoming: Vec<Incoming>,
        table: Vec<MetadataBucket>,
        gens: Vec<(u32, Gen)>,
    ) -> Batch {
        Batch {
            incoming,
            table,
            gens,
        }
    }

    /// Where the table goes: as many buckets as it needs, first link first.
    pub fn table_buckets(&self) -> &[MetadataBucket] {
        &self.table
    }

    /// The recycled buckets, for instance to discard them once the table is durable.
    pub fn buckets(&self) -> impl Iterator<Item = BucketNr> + '_ {
        self.incoming.iter().map(Incoming::nr)
    }

    /// How many buckets wait for this table.
    pub fn len(&self) -> usize {
        self.incoming.len()
    }

    /// A table written for its own sake.
    pub fn is_empty(&self) -> bool {
        self.incoming.is_empty()
    }

    pub(super) fn abandoned(self) -> (Vec<Incoming>, Vec<(u32, Gen)>) {
        (self.incoming, self.gens)
    }
}

/// A batch whose table is durable, as it is released with [`release_some`](super::Allocator::release_some).
#[must_use = "without its end no other batch begins"]
#[cfg_attr(test, derive(Clone))]
#[derive(Debug)]
pub struct Releasing {
    pub(super) gens: IntoIter<(u32, Gen)>,
    pub(super) incoming: IntoIter<Incoming>,
    /// So many lagging buckets were looked at since.
    pub(super) looked_at: Option<usize>,
    pub(super) proof: TableDurable,
}

impl Releasing {
    /// The table is written and a durable journal entry names it.
    pub fn new(batch: Batch) -> Releasing {
        Releasing {
            gens: batch.gens.into_iter(),
            incoming: batch.incoming.into_iter(),
            looked_at: None,
            proof: TableDurable(()),
        }
    }
}
