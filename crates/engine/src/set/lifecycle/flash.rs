//! Making and deleting flash volumes (docs/format.md 7).

use super::super::server::Server;
use super::super::volume::{Volume, quiet};
use crate::error::Error;
use crate::limits::SECTOR;
use crate::marks::{self, Mark};
use crate::meta::Turn;
use brigade_env::Env;
use brigade_format::uuid_table::{INVALIDATED, SECTORS_LIMIT, UuidEntry};
use std::rc::Rc;

impl<E: Env> Server<E> {
    /// Makes a flash volume in the set that is named or the only one, and serves it. It exists once this returns.
    pub async fn create_flash(
        &self,
        size_bytes: u64,
        label: &str,
        set: Option<&str>,
    ) -> Result<Rc<Volume<E>>, Error> {
        let _held = self.change_of("new volume").await?;
        let at = self.set_named("new volume", set)?;
        let running = self.running(at)?;
        let sectors = self.flash_sectors(at, size_bytes)?;
        self.check_label(label, None)?;
        let set = &self.sets[at];
        let io = |error: std::io::Error| Error::io(set.disk().name(), "UUID table", &error);
        let (slot, turn) = self.free_slot(at, &set.uuids).await?;
        let now = self.env.unix_seconds();
        let entry = UuidEntry::flash_only(self.new_uuid(), label_field(label), now, sectors);
        let mut entries = set.uuids.entries().clone();
        entries[slot as usize] = entry.clone();
        let write = set.uuids.try_write(&turn, &running.journal, entries);
        write.await.map_err(io)?;
        marks::hit(Mark::FlashCreated);
        Ok(self.add_flash_volume(at, slot, &entry))
    }

    /// Deletes a flash volume with everything in it: this is the order that gives its data up. Requests under way end as they would,
    /// later ones fail.
    pub async fn delete_flash(&self, name: &str) -> Result<(), Error> {
        let _held = self.change_of(name).await?;
        let volume = self.volume(name)?;
        let served = self.idle(&volume).await?;
        let Some(cache) = served
            .core
            .cache
            .clone()
            .filter(|_| served.core.backing.is_none())
        else {
            return Err(Error::refused(name, "it is not a flash volume"));
        };
        let at = self.set_of(&cache);
        self.running(at)?;
        self.check_room(at)?;
        drop((served, cache));
        let served = volume.serve_with(None).expect("it was served");
        quiet(&served.core).await;
        let result = self.give_up_slot(at, served.core.inode).await;
        if result.is_err() {
            // What is known of it is not that it is gone.
            volume.serve_with(Some(served));
            return result;
        }
        self.forget(&volume);
        marks::hit(Mark::FlashDeleted);
        Ok(())
    }

    /// Capacity of a flash volume, in whole blocks.
    pub(super) fn flash_sectors(&self, at: usize, size_bytes: u64) -> Result<u64, Error> {
        let set = &self.sets[at];
        let block = set.cache.block_sectors * SECTOR;
        let refused = |what: String| Err(Error::refused(set.disk().name(), what));
        if size_bytes == 0 || !size_bytes.is_multiple_of(block) {
            return refused(format!(
                "size {size_bytes}: it must be a multiple of the block size, {block} bytes"
            ));
        }
        let sectors = size_bytes / SECTOR;
        // Sizes are bytes of 64 bits everywhere else.
        if sectors >= SECTORS_LIMIT {
            return refused(format!("size {size_bytes}: more than a volume can have"));
        }
        Ok(sectors)
    }

    /// The lowest slot that nothing in the set speaks of, with the turn to write the table.
    async fn free_slot<'a>(
        &self,
        at: usize,
        uuids: &'a crate::meta::UuidTable<E>,
    ) -> Result<(u32, Turn<'a>), Error> {
        let (set, running) = (&self.sets[at], self.running(at)?);
        let name = set.disk().name();
        let io = |error: std::io::Error| Error::io(name, "UUID table", &error);
        let mut has_waited = false;
        let mut turn = uuids.turn().await;
        loop {
            let is_free = |(slot, entry): &(usize, &UuidEntry)| {
                entry.is_empty() && !set.inodes_seen.borrow().contains(&(*slot as u32))
            };
            let slot = set
                .uuids
                .entries()
                .iter()
                .enumerate()
                .find(is_free)
                .map(|it| it.0 as u32);
            match slot {
                Some(slot) if !set.was_counted_later => return Ok((slot, turn)),
                Some(slot) => {
                    if running.sweeper.is_unused(slot).await.map_err(io)? {
                        return Ok((slot, turn));
                    }
                    set.inodes_seen.borrow_mut().insert(slot);
                }
                None if !has_waited && !running.sweeper.removed().is_empty() => {
                    drop(turn);
                    self.swept(at, name).await?;
                    turn = uuids.turn().await;
                    has_waited = true;
                }
                None => {
                    return Err(Error::refused(
                        name,
                        "the set's UUID table has no free slot",
                    ));
                }
            }
        }
    }

    fn new_uuid(&self) -> [u8; 16] {
        loop {
            let (a, b) = (self.env.random_u64(), self.env.random_u64());
            let mut uuid = ((u128::from(a) << 64) | u128::from(b)).to_be_bytes();
            uuid[6] = uuid[6] & 0x0f | 0x40;
            uuid[8] = uuid[8] & 0x3f | 0x80;
            let is_taken = |set: &Rc<_>| has(set, &uuid);
            if uuid != INVALIDATED && !self.sets.iter().any(is_taken) {
                return uuid;
            }
        }
    }
}

fn has<E: Env>(set: &Rc<super::CacheSet<E>>, uuid: &[u8; 16]) -> bool {
    set.uuids.entries().iter().any(|entry| entry.uuid == *uuid)
}

/// A label as superblock and table have it.
pub(super) fn label_field(label: &str) -> [u8; 32] {
    brigade_format::superblock::label_bytes(label)
}
