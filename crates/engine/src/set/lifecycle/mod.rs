//! What changes while everything is served: devices come and go, volumes are made, resized, named and deleted.
//!
//! ```text
//! attach   slot in the table ═► device says clean, of this set ═► core with the cache; takes nothing until requests without it are over
//! detach   takes nothing new ─► all written back ═► device says none, of no set ═► core without the cache
//!             ─► requests with it are over ─► slot invalidated in the table ═► swept
//! create   slot in the table ═► served                          delete   not served ─► requests over ─► slot invalidated ═► swept
//! shrink   smaller for requests ─► those before are over ─► what is behind the end dropped ═► table
//! grow     what is behind the end dropped ═► table ═► larger for requests ─► those before are over
//! ```
//! `═►` waits for durability. One change at a time; writing back for a detach goes on beside others. Each rests on one durable write
//! that turns it from not done to done (docs/durability.md), so whatever ends the process, asking again is right.
//!
//! - **LIFE-1** No request waits or fails because what serves its volume is exchanged.
//! - **LIFE-2** Nothing is put into the cache for a volume while a request that does not know of the cache may write to the device.
//! - **LIFE-3** No request leaves out the cache while the device says that a cache counts.
//! - **LIFE-4** A slot is given up only when everything that uses it has ended.

mod attach;
mod detach;
mod flash;
mod label;
mod remove;
mod resize;

use super::cache_set::{CacheSet, Running};
use super::server::Server;
use super::volume::{Served, Volume};
use crate::error::Error;
use crate::request::Cache;
use brigade_env::Env;
use brigade_env::sync::Permits;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// Time between looks for what is waited for.
const LOOK: Duration = Duration::from_millis(10);

impl<E: Env> Server<E> {
    /// Waits until nobody else changes what is served.
    async fn change_of(&self, what: &str) -> Result<Permits<'_>, Error> {
        let held = self.changes.lock().await;
        self.check_open(what)?;
        Ok(held)
    }

    fn check_open(&self, what: &str) -> Result<(), Error> {
        match self.is_stopping.get() {
            true => Err(Error::refused(what, "the server is being stopped")),
            false => Ok(()),
        }
    }

    /// The volume of that name or uuid.
    pub fn volume(&self, name: &str) -> Result<Rc<Volume<E>>, Error> {
        let volumes = self.volumes.borrow();
        let found = volumes
            .iter()
            .find(|it| it.is_called(name) && it.served().is_some());
        found
            .cloned()
            .ok_or_else(|| Error::refused(name, "there is no such volume"))
    }

    /// The set that is named, or the only one.
    fn set_named(&self, about: &str, wanted: Option<&str>) -> Result<usize, Error> {
        let digits = |text: &str| text.replace('-', "").to_lowercase();
        let found = match (wanted, self.sets.len()) {
            (Some(uuid), _) => {
                let is_it = |set: &Rc<CacheSet<E>>| digits(&set.uuid()) == digits(uuid);
                self.sets.iter().position(is_it)
            }
            (None, 1) => Some(0),
            (None, 0) => None,
            (None, _) => {
                let what = "there are several cache sets: say which one";
                return Err(Error::refused(about, what));
            }
        };
        let what = || match wanted {
            Some(uuid) => format!("cache set {uuid} is not served here"),
            None => "no cache set is served here".into(),
        };
        found.ok_or_else(|| Error::refused(about, what()))
    }

    /// Where a volume's cache is among the sets.
    fn set_of(&self, cache: &Rc<Cache<E>>) -> usize {
        let is_it = |set: &Rc<CacheSet<E>>| Rc::ptr_eq(&set.cache, cache);
        let found = self.sets.iter().position(is_it);
        found.expect("sets stay as long as the server")
    }

    /// The parts of a set that may be written.
    fn running(&self, at: usize) -> Result<&Running<E>, Error> {
        let set = &self.sets[at];
        let name = set.disk().name();
        if let Some(reason) = set.cache.poison.reason() {
            return Err(Error {
                kind: crate::ErrorKind::Poisoned,
                device: name.into(),
                what: reason,
            });
        }
        let running = set.running.as_ref();
        running.ok_or_else(|| Error::refused(name, "the cache set is served read-only"))
    }

    /// Waits until slots that were given up are free, or not for much longer.
    async fn swept(&self, at: usize, what: &str) -> Result<(), Error> {
        let is_wanted = || !self.is_stopping.get();
        self.running(at)?.sweeper.swept(is_wanted).await;
        self.check_open(what)
    }

    /// Fails if the table of a set cannot be written now.
    fn check_room(&self, at: usize) -> Result<(), Error> {
        let set = &self.sets[at];
        let no_room = |error: io::Error| Error::io(set.disk().name(), "UUID table", &error);
        set.uuids.check_room().map_err(no_room)
    }

    /// What serves a volume, once it has joined its cache; not while it is being detached.
    async fn idle(&self, volume: &Volume<E>) -> Result<Served<E>, Error> {
        loop {
            let served = self.not_detaching(volume)?;
            if !served.core.joining.get() {
                return Ok(served);
            }
            drop(served);
            self.env.sleep(LOOK).await;
            self.check_open(&volume.name())?;
        }
    }

    fn not_detaching(&self, volume: &Volume<E>) -> Result<Served<E>, Error> {
        let refused = |what: &str| Error::refused(&volume.name(), what);
        let Some(served) = volume.served() else {
            return Err(refused("it is not served any more"));
        };
        match served.core.detaching.get() {
            true => Err(refused("it is being detached")),
            false => Ok(served),
        }
    }
}

/// Whether anything of a volume is dirty in a range of the index.
async fn is_dirty_in<E: Env>(cache: &Cache<E>, inode: u32, range: (u64, u64)) -> io::Result<bool> {
    let (mut at, to) = range;
    while at < to {
        let next = cache.index.borrow().nodes.next_dirty(inode, at, to);
        let Some((start, end)) = next else { break };
        cache.pages.bring(inode, start, end).await?;
        let index = cache.index.borrow();
        if index.range(inode, start, end).any(|extent| extent.dirty) {
            return Ok(true);
        }
        at = end;
    }
    Ok(false)
}
