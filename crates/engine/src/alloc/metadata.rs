//! Buckets for btree nodes and tables, and the way of a bucket through Unused.

use brigade_format::{BucketNr, Gen};

use super::bucket::Place;
use super::lists::Reserve;
use super::tokens::{Ready, Unused};
use super::{Allocator, PRIO_FRESH, PRIO_METADATA};

/// A bucket handed out for metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MetadataBucket {
    /// The bucket.
    pub nr: BucketNr,
    /// The gen pointers to it carry.
    pub r#gen: Gen,
}

impl Allocator {
    /// A bucket to overwrite with metadata, or `None` if everything it may come from is empty.
    ///
    /// Unused buckets go first, since they cost no table write; then what everybody shares; the own reserve last.
    pub fn take_metadata(&mut self, reserve: Reserve) -> Option<MetadataBucket> {
        self.assert_metadata(reserve);
        let bucket = self
            .take_unused()
            .or_else(|| self.lists.pop_ready(Reserve::Normal))
            .or_else(|| self.lists.pop_ready(reserve))?;
        let nr = bucket.nr();
        self.go(nr, Place::Ready, Place::Metadata);
        self.update(nr, |bucket| bucket.prio = PRIO_METADATA);
        self.top_up();
        Some(MetadataBucket {
            nr,
            r#gen: self.gen_of(nr),
        })
    }

    /// Buckets [`Allocator::take_metadata`] could hand out for the btree right now.
    pub fn metadata_available(&self) -> usize {
        self.available_for(Reserve::Btree)
    }

    /// Would `n` calls of [`Allocator::take_metadata`] for the btree succeed?
    pub fn can_take_metadata(&self, n: usize) -> bool {
        self.metadata_available() >= n
    }

    /// Nothing durable names this metadata bucket any more: the update that removed a node from its parent, or the
    /// journal entry that names a newer table, is durable; or it was never used.
    pub fn free_metadata(&mut self, nr: BucketNr) {
        assert_eq!(self.bucket(nr).pin, 0, "free of a bucket in use");
        self.update(nr, |bucket| bucket.prio = PRIO_FRESH);
        self.enter_unused(nr, Place::Metadata);
        self.top_up();
    }

    pub(super) fn available_for(&self, reserve: Reserve) -> usize {
        self.assert_metadata(reserve);
        self.lists.unused.len()
            + self.lists.ready(Reserve::Normal).len()
            + self.lists.ready(reserve).len()
    }

    /// To Unused, or if its gen has no room for one more, to Idle: then a batch takes it once the table or a gc
    /// caught up.
    pub(super) fn enter_unused(&mut self, nr: BucketNr, from: Place) {
        if self.bucket(nr).may_increment() {
            self.go(nr, from, Place::Unused);
            self.lists.unused.push_back(Unused::new(nr));
        } else {
            self.go(nr, from, Place::Idle);
        }
    }

    /// An unused bucket, one gen on. The reserves are full whenever there is one (ALLOC-7).
    pub(super) fn take_unused(&mut self) -> Option<Ready> {
        let bucket = self.lists.unused.pop_front()?;
        self.increment_gen(bucket.nr());
        self.go(bucket.nr(), Place::Unused, Place::Ready);
        Some(bucket.incremented())
    }

    /// Fills the reserves from Unused.
    pub(super) fn top_up(&mut self) {
        while self.lists.hungry_reserve().is_some()
            && let Some(bucket) = self.take_unused()
        {
            self.lists.push_ready(bucket);
        }
    }

    fn assert_metadata(&self, reserve: Reserve) {
        assert!(
            matches!(reserve, Reserve::Btree | Reserve::Prio),
            "metadata has two reserves"
        );
    }
}
