//! The small structures that describe the set: superblocks, the gen table, the UUID table.

mod superblocks;
mod table;
mod uuids;

pub use superblocks::{BackingSuper, CacheSuper, write_superblock};
pub use table::{GenTable, TableSetup};
pub use uuids::{Turn, UuidTable};
