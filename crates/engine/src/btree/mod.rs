//! The index on disk: a tree of nodes, each a log of sorted sets (docs/format.md 4).
//!
//! In memory the index is an ordered map of extents ([`crate::extents`]) for each leaf, unless that is *away* (see `pages`); this
//! module keeps what the maps do not say: which leaf owns which range, what each leaf still has to write (its *pending* set), and
//! where nodes are. Inserting never changes the tree's shape. Shape changes when leaves are *written*: a leaf whose pending set does not fit any more is
//! rewritten from the map into one or more new nodes, and its parent is told. So an insert never waits for a bucket, a node
//! or a read.
//!
//! - **TREE-1** Leaves tile the whole key space; no extent crosses a leaf boundary.
//! - **TREE-2** What a leaf's sets on disk say, with its pending set on top, is what the map has for its range,
//!   up to pointers that have become stale.
//! - **TREE-3** A leaf with journalled keys pending pins the oldest of their entries.
//! - **TREE-4** A set longer than one unit becomes visible by its first unit, written last (docs/format.md 10.6).
//! - **TREE-5** A replaced node's bucket is free only when the parent's append (or the journal entry with the new root)
//!   that lets go of it is durable.
//! - **TREE-6** No pointer in a set of the tree or the range of replay, be it hidden or stale, to data or to a node, is older than
//!   what the allocator takes for the oldest one to its bucket.

mod index;
mod nodes;
mod pages;
mod stripes;
mod writer;

pub use index::{Change, Index};
pub use nodes::Nodes;
pub use pages::{Pages, PagesSetup};
pub use stripes::StripeLayout;
pub use writer::{Layout, Tree};
