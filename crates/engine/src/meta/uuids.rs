//! The UUID table: which inode is which volume.
//!
//! Written whole into a new bucket; it counts once a journal entry names it, and only then is a new slot used
//! (docs/format.md 7, 10.8). Who reads it to write it has his turn over both.

use crate::buckets::Buckets;
use crate::device::Disk;
use crate::journal::Journal;
use crate::limits;
use crate::stats::Cause;
use brigade_env::sync::{Lock, Permits};
use brigade_env::{Durability, Env};
use brigade_format::uuid_table::{self, UuidEntry};
use brigade_format::{Key, Pos, Ptr};
use std::cell::{Ref, RefCell};
use std::io;
use std::rc::Rc;

/// See the module documentation.
pub struct UuidTable<E: Env> {
    disk: Rc<Disk<E>>,
    buckets: Rc<Buckets>,
    bucket_sectors: u32,
    meta_sectors: u32,
    entries: RefCell<Vec<UuidEntry>>,
    turns: Lock,
}

/// Nobody else changes the table meanwhile.
pub struct Turn<'a> {
    _held: Permits<'a>,
}

impl<E: Env> UuidTable<E> {
    /// The table as found.
    pub fn new(
        disk: Rc<Disk<E>>,
        buckets: Rc<Buckets>,
        bucket_sectors: u32,
        meta_sectors: u32,
        entries: Vec<UuidEntry>,
    ) -> Rc<Self> {
        Rc::new(UuidTable {
            disk,
            buckets,
            bucket_sectors,
            meta_sectors,
            entries: RefCell::new(entries),
            turns: Lock::default(),
        })
    }

    /// Waits until nobody else changes the table.
    pub async fn turn(&self) -> Turn<'_> {
        let _held = self.turns.lock().await;
        Turn { _held }
    }

    /// All slots.
    pub fn entries(&self) -> Ref<'_, Vec<UuidEntry>> {
        self.entries.borrow()
    }

    /// Writes a table with the given slots; nothing names it yet. Gives the key for the journal.
    pub async fn write_bucket(&self, entries: Vec<UuidEntry>) -> io::Result<Key> {
        let bucket = self.buckets.take_metadata(1).await?.remove(0);
        let sector = bucket.nr.0 * u64::from(self.bucket_sectors);
        let bytes = uuid_table::encode(&entries);
        self.disk
            .write_metadata(Cause::UuidTable, sector, &bytes, Durability::Durable)
            .await?;
        *self.entries.borrow_mut() = entries;
        Ok(Key::node(
            Pos::ZERO,
            self.meta_sectors,
            Ptr::new(sector, bucket.r#gen),
        ))
    }

    /// Fails if there is no bucket for another table now. Who waits for one for long poisons the set, and nobody needs to.
    pub fn check_room(&self) -> io::Result<()> {
        if limits::tables_held() || self.buckets.get().metadata_available() == 0 {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                "the cache set has no bucket for its UUID table now; try again later",
            ));
        }
        Ok(())
    }

    /// Replaces the table, durably, if there is room for another one.
    pub async fn try_write(
        &self,
        turn: &Turn<'_>,
        journal: &Journal<E>,
        entries: Vec<UuidEntry>,
    ) -> io::Result<()> {
        self.check_room()?;
        self.write(turn, journal, entries).await
    }

    /// Replaces the table, durably.
    pub async fn write(
        &self,
        _turn: &Turn<'_>,
        journal: &Journal<E>,
        entries: Vec<UuidEntry>,
    ) -> io::Result<()> {
        let key = self.write_bucket(entries).await?;
        let mut old = key;
        journal.set_roots(|roots| old = std::mem::replace(&mut roots.uuid_bucket, key));
        journal.write_now().await?;
        let place = old.ptr(0).expect("the table has a place");
        self.buckets
            .free_metadata([place.bucket(self.bucket_sectors)]);
        Ok(())
    }
}
