//! Other sizes: a flash volume gets the one that is asked for, a backing device has grown.
//!
//! A client is told the size when it connects, and keeps to it; a larger one is seen by the next connection. Behind a smaller one its
//! requests fail.

use super::super::server::Server;
use super::super::volume::{Served, Volume, quiet};
use super::is_dirty_in;
use crate::error::Error;
use crate::extents::Extent;
use crate::limits::{CLEAR_SECTORS_MAX, SECTOR};
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use crate::request::{self, Backing, Clear, Core};
use brigade_env::{Device, Env};
use brigade_format::CacheMode;
use std::io;
use std::rc::Rc;

impl<E: Env> Server<E> {
    /// Changes the size of a flash volume to `size_bytes`, or looks how large a backing device has become. What lies behind the end of a
    /// flash volume that becomes smaller is gone; that must be allowed.
    pub async fn resize(
        &self,
        name: &str,
        size_bytes: Option<u64>,
        may_shrink: bool,
    ) -> Result<Rc<Volume<E>>, Error> {
        let _held = self.change_of(name).await?;
        let volume = self.volume(name)?;
        let served = self.idle(&volume).await?;
        if served.core.is_read_only {
            return Err(Error::refused(name, "it is served read-only"));
        }
        match (served.core.backing.clone(), size_bytes) {
            (Some(backing), _) => {
                self.look_at_size(&volume, served, &backing, size_bytes)
                    .await?
            }
            (None, Some(size)) => self.resize_flash(&volume, served, size, may_shrink).await?,
            (None, None) => return Err(Error::refused(name, "how large is it to be?")),
        }
        Ok(volume)
    }

    async fn resize_flash(
        &self,
        volume: &Volume<E>,
        served: Served<E>,
        size_bytes: u64,
        may_shrink: bool,
    ) -> Result<(), Error> {
        let name = volume.name();
        let cache = served
            .core
            .cache
            .clone()
            .expect("a flash volume has a cache");
        let at = self.set_of(&cache);
        let running = self.running(at)?;
        let (was, wanted) = (served.core.sectors, self.flash_sectors(at, size_bytes)?);
        if wanted < was && !may_shrink {
            let what = format!(
                "what lies behind {size_bytes} bytes would be gone; say that this is meant"
            );
            return Err(Error::refused(&name, what));
        }
        self.check_room(at)?;
        drop(served);
        if wanted < was {
            self.resized(volume, at, wanted).await;
        }
        let changed = async {
            // Of a volume that was larger once something may lie there, too.
            let core = volume.served().expect("nobody else changes it").core;
            if !mutations::is(Mutation::ShrinkKeepsData) {
                drop_range(&core, was.min(wanted), was.max(wanted)).await?;
            }
            let turn = self.sets[at].uuids.turn().await;
            let mut entries = self.sets[at].uuids.entries().clone();
            entries[core.inode as usize].sectors = wanted;
            self.sets[at]
                .uuids
                .try_write(&turn, &running.journal, entries)
                .await
        };
        if let Err(error) = changed.await {
            self.resized(volume, at, was).await;
            return Err(Error::io(&name, "resize", &error));
        }
        if wanted > was {
            self.resized(volume, at, wanted).await;
        }
        marks::hit(if wanted < was {
            Mark::FlashShrunk
        } else {
            Mark::FlashGrown
        });
        Ok(())
    }

    async fn look_at_size(
        &self,
        volume: &Volume<E>,
        served: Served<E>,
        backing: &Backing<E>,
        size_bytes: Option<u64>,
    ) -> Result<(), Error> {
        let name = volume.name();
        let io = |error: io::Error| Error::io(backing.disk.name(), "resize", &error);
        let geometry = backing.disk.device().measure().map_err(io)?;
        let was = served.core.sectors;
        let is = (geometry.size_bytes / SECTOR).saturating_sub(backing.data_offset);
        if size_bytes.is_some_and(|wanted| wanted != is * SECTOR) {
            let what = format!(
                "its backing device has {} bytes for it; make that larger first",
                is * SECTOR
            );
            return Err(Error::refused(&name, what));
        }
        if is <= was {
            return Ok(());
        }
        let offset = backing.data_offset;
        let end = (offset + was, offset + is);
        self.forget_end(&served.core, backing, end).await?;
        let at = served.core.cache.as_ref().map(|cache| self.set_of(cache));
        // A detach may have begun meanwhile, and goes on with the core it began with.
        drop(self.not_detaching(volume)?);
        drop(served);
        let old = self.give_size(volume, at, is).core;
        // Who detaches it waits for those of the core that is there then.
        quiet(&old).await;
        marks::hit(Mark::BackingGrown);
        Ok(())
    }

    /// Of a device that was larger once something may be cached behind its end, which is not what the device has there now.
    async fn forget_end(
        &self,
        core: &Core<E>,
        backing: &Backing<E>,
        (from, to): (u64, u64),
    ) -> Result<(), Error> {
        let Some(cache) = &core.cache else {
            return Ok(());
        };
        let name = backing.disk.name();
        let io = |error: io::Error| Error::io(name, "resize", &error);
        let is_dirty = is_dirty_in(cache, core.inode, (from, to)).await;
        if is_dirty.map_err(io)? {
            return Err(io(io::Error::other("the cache has dirty data there")));
        }
        let is_wanted = || !self.is_stopping.get();
        let forgotten = request::forget_all_clean(core, from, to, is_wanted).await;
        if forgotten.is_err() {
            self.check_open(name)?;
        }
        forgotten.map_err(io)
    }

    /// Has requests to a flash volume see another size, and waits for those before: who changes it next waits for those of the core that is
    /// there then (LIFE-4).
    async fn resized(&self, volume: &Volume<E>, at: usize, sectors: u64) {
        let old = self.give_size(volume, Some(at), sectors).core;
        let is_larger = old.sectors < sectors;
        if !(is_larger && mutations::is(Mutation::GrowthLeavesRequests)) {
            quiet(&old).await;
        }
    }

    /// Has requests from now on see another size; gives what served those before.
    fn give_size(&self, volume: &Volume<E>, at: Option<usize>, sectors: u64) -> Served<E> {
        let old = volume.served().expect("nobody else changes it");
        let core = &old.core;
        let mode = match at {
            Some(_) => core.mode(),
            None => CacheMode::None,
        };
        let (backing, is_read_only) = (core.backing.clone(), core.is_read_only);
        let next = Served {
            core: self.core(
                at,
                backing,
                core.inode,
                sectors,
                is_read_only,
                mode,
                Some(core),
            ),
            ..old.clone()
        };
        volume.serve_with(Some(next)).expect("it was served")
    }
}

/// Drops everything a flash volume has in a range, durably.
async fn drop_range<E: Env>(core: &Rc<Core<E>>, start: u64, end: u64) -> io::Result<()> {
    let cache = core.cache.clone().expect("a flash volume has a cache");
    let mut at = start;
    while at < end {
        let leaf_end = cache.index.borrow().nodes.leaf_of(core.inode, at).1;
        let to = end.min(leaf_end);
        cache.pages.bring(core.inode, at, to).await?;
        let found: Vec<Extent> = cache.index.borrow().range(core.inode, at, to).collect();
        for (start, end) in runs(&found) {
            request::clear(core.clone(), start, end - start, Clear::Discard, false).await?;
        }
        brigade_env::sync::yield_now().await;
        at = to;
    }
    request::flush(core.clone()).await
}

/// As few ranges as cover extents, none of them too long.
fn runs(extents: &[Extent]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for extent in extents {
        match runs.last_mut() {
            Some(last) if extent.end - last.0 <= CLEAR_SECTORS_MAX => last.1 = extent.end,
            _ => runs.push((extent.start, extent.end)),
        }
    }
    runs
}
