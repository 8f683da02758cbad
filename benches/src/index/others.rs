//! What the index is measured beside: the standard library's map and redb, with the same keys in the same order.

use super::{INODE, SECTORS, Subject};
use redb::backends::InMemoryBackend;
use redb::{Database, Durability, ReadableDatabase, Table, TableDefinition};
use std::collections::BTreeMap;

/// Volume and end of an extent.
type Key = (u32, u64);
/// Place and length.
type Value = (u64, u32);

/// What no cache can do with less: one key, one value, no overlaps to look for.
#[derive(Default)]
pub struct Standard(BTreeMap<Key, Value>);

impl Subject for Standard {
    fn insert(&mut self, extents: &[(u64, u64)]) {
        for (start, place) in extents {
            let entry = (*place, SECTORS as u32);
            self.0.insert((INODE, start + SECTORS), entry);
        }
    }

    fn remove(&mut self, extents: &[(u64, u64)]) {
        for (start, _) in extents {
            self.0.remove(&(INODE, start + SECTORS));
        }
    }

    fn lookup(&self, starts: &[u64]) -> u64 {
        let place = |&start: &u64| {
            let (key, value) = self.0.range((INODE, start + 1)..).next()?;
            place_of(*key, *value, start)
        };
        starts.iter().filter_map(place).sum()
    }
}

/// Where a sector is if an extent covers it.
fn place_of((inode, end): Key, (place, sectors): Value, sector: u64) -> Option<u64> {
    let into = sector.checked_sub(end - u64::from(sectors))?;
    (inode == INODE).then_some(place + into)
}

/// An index that is bought and not built, in memory. Each call that changes it is one transaction, nothing is made durable.
pub struct Redb(Database);

/// The key in one number, which redb compares fastest.
const TABLE: TableDefinition<'_, u128, Value> = TableDefinition::new("extents");
/// All of it fits.
const CACHE_BYTES: usize = 4 << 30;

fn key(end: u64) -> u128 {
    u128::from(INODE) << 64 | u128::from(end)
}

impl Redb {
    /// An empty one.
    pub fn in_memory() -> Redb {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let made = builder.create_with_backend(InMemoryBackend::new());
        Redb(made.expect("a database in memory"))
    }

    fn change(&self, how: impl FnOnce(&mut Table<'_, u128, Value>)) {
        let mut transaction = self.0.begin_write().expect("a transaction");
        let set = transaction.set_durability(Durability::None);
        set.expect("durability");
        let mut table = transaction.open_table(TABLE).expect("a table");
        how(&mut table);
        drop(table);
        transaction.commit().expect("committed");
    }
}

impl Subject for Redb {
    fn insert(&mut self, extents: &[(u64, u64)]) {
        self.change(|table| {
            for (start, place) in extents {
                let entry = (*place, SECTORS as u32);
                let inserted = table.insert(key(start + SECTORS), entry);
                drop(inserted.expect("inserted"));
            }
        });
    }

    fn remove(&mut self, extents: &[(u64, u64)]) {
        self.change(|table| {
            for (start, _) in extents {
                drop(table.remove(key(start + SECTORS)).expect("removed"));
            }
        });
    }

    fn lookup(&self, starts: &[u64]) -> u64 {
        let transaction = self.0.begin_read().expect("a transaction");
        let table = transaction.open_table(TABLE).expect("a table");
        let place = |&start: &u64| {
            let next = table.range(key(start + 1)..).expect("a range").next()?;
            let (key, value) = next.expect("an entry");
            let key = key.value();
            place_of(((key >> 64) as u32, key as u64), value.value(), start)
        };
        starts.iter().filter_map(place).sum()
    }
}
