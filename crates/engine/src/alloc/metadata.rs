//! Buckets for btree nodes and tables, and the way of a bucket through Unused.

use crate::mutations::{self, Mutation};
use brigade_format::{BucketNr, Gen};

use super::bucket::{Class, Place};
use super::lists::Reserve;
use super::tokens::{Ready, Unused};
use super::{Allocator, PRIO_FRESH};

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
    /// Unused buckets go first, since they cost no table write; then what everybody shares; then the own reserve, and at last
    /// the copying collector's: a node that cannot be written stops everything, a copy that cannot be made stops nothing.
    pub fn take_metadata(&mut self, reserve: Reserve) -> Option<MetadataBucket> {
        self.assert_metadata(reserve);
        let own = mutations::is(Mutation::AllocOwnReserveFirst);
        let first = own.then(|| self.lists.pop_ready(reserve)).flatten();
        let bucket = first
            .or_else(|| self.take_unused())
            .or_else(|| self.lists.pop_ready(Reserve::Normal))
            .or_else(|| self.lists.pop_ready(reserve))
            .or_else(|| self.lists.pop_ready(Reserve::MovingGc))?;
        let nr = bucket.nr();
        self.go(nr, Place::Ready, Place::Metadata);
        self.top_up();
        Some(MetadataBucket {
            nr,
            r#gen: self.gen_of(nr),
        })
    }

    /// Buckets [`Allocator::take_metadata`] could hand out for the btree right now.
    pub fn metadata_available(&self) -> usize {
        let more = usize::from(mutations::is(Mutation::AllocCountsTooMany));
        self.available_for(Reserve::Btree) + more
    }

    /// Would `n` calls of [`Allocator::take_metadata`] for the btree succeed?
    pub fn can_take_metadata(&self, n: usize) -> bool {
        self.metadata_available() >= n
    }

    /// Nothing durable names this metadata bucket any more: the update that removed a node from its parent, or the
    /// journal entry that names a newer table, is durable; or it was never used.
    pub fn free_metadata(&mut self, nr: BucketNr) {
        assert_eq!(self.bucket(nr).pin, 0, "free of a bucket in use");
        if mutations::is(Mutation::AllocFreeLeaks) {
            return;
        }
        self.set_prio(nr, PRIO_FRESH);
        self.enter_unused(nr, Place::Metadata);
        self.top_up();
    }

    pub(super) fn available_for(&self, reserve: Reserve) -> usize {
        self.assert_metadata(reserve);
        self.lists.unused.len()
            + self.lists.ready(Reserve::Normal).len()
            + self.lists.ready(reserve).len()
            + self.lists.ready(Reserve::MovingGc).len()
    }

    /// May keys be added that the tree has yet to write, while `dirty_leaves` leaves have something pending? Each of them may
    /// become two, and rewriting any takes a few buckets more for a while. Buckets that can be recycled count as there.
    pub fn has_room_for_keys(&self, dirty_leaves: usize) -> bool {
        let sizes = &self.lists.sizes;
        let there = (self.counts[Class::Free] + self.counts[Class::Clean]) as usize;
        there.saturating_sub(sizes.prio) >= (sizes.btree + sizes.moving_gc) / 2 + 2 + dirty_leaves
    }

    /// To Unused, or if its gen has no room for one more, to Idle: then a batch takes it once the table or a gc
    /// caught up.
    pub(super) fn enter_unused(&mut self, nr: BucketNr, from: Place) {
        if self.bucket(nr).may_increment() && !mutations::is(Mutation::AllocNoUnused) {
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
