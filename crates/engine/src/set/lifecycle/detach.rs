//! Detaching a device that is served: everything is written back, and it goes on without the cache.
//!
//! The step that counts is one write of the device's superblock. Before it everything cached of the device is clean for good: its
//! cleanings are in the journal and the device was flushed after the last of them (docs/format.md 9.5). Until then the detach can be
//! cancelled, and whatever ends the process leaves an attached device. After it what the cache has is void, whoever looks.

use super::super::server::Server;
use super::super::volume::{Served, Volume, quiet};
use crate::data::Writeback;
use crate::error::Error;
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use crate::request::{Backing, Cache, CacheWriter};
use crate::stats::DetachStatus;
use brigade_env::Env;
use brigade_format::{BackingState, CacheMode};
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// How often is looked whether all is written back.
const PAUSE: Duration = Duration::from_millis(10);
/// And how often whether there is a bucket for the table.
const LOOKS: u32 = 1000;

/// What a volume is detached from.
struct Bond<E: Env> {
    served: Served<E>,
    cache: Rc<Cache<E>>,
    backing: Rc<Backing<E>>,
    writeback: Rc<Writeback<E>>,
    at: usize,
    /// The drain under way is the detach's own.
    has_begun_drain: bool,
}

/// Counted until it is dropped.
struct UnderWay<'a>(&'a Cell<usize>);

impl<'a> UnderWay<'a> {
    fn begin(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        UnderWay(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<E: Env> Bond<E> {
    fn writer(&self) -> &CacheWriter<E> {
        self.cache.writer.as_ref().expect("the set runs")
    }

    /// The volume stays attached after all.
    fn stay(&self) {
        self.served.core.detaching.set(false);
        self.writeback.set_detaching(false);
        if self.has_begun_drain {
            self.writeback.cancel_drain();
        }
    }

    fn dirty(&self) -> u64 {
        let inode = self.served.core.inode;
        self.cache.index.borrow().dirty_sectors(inode)
    }

    /// Everything is counted, clean, and stays so: nobody is about to make anything dirty, and nobody will.
    fn is_clean(&self) -> bool {
        !self.cache.buckets.get().is_counting()
            && self.dirty() == 0
            && !self.backing.superblock.has_intents()
    }
}

impl<E: Env> Server<E> {
    /// Waits until nothing is written back for a detach any more.
    pub(in crate::set) async fn end_detaches(&self) {
        while self.detaches.get() > 0 {
            self.env.sleep(PAUSE).await;
        }
    }

    /// Detaches a volume from its set and waits for that; meanwhile and afterwards it is served. Goes on at errors of the backing
    /// device until they pass, it is cancelled, or the server stops.
    pub async fn detach(&self, name: &str) -> Result<(), Error> {
        let volume = self.volume(name)?;
        let bond = self.begin_detach(&volume)?;
        self.finish_detach(volume, bond).await
    }

    /// The same without waiting; [`VolumeStatus::detach`] tells how it goes.
    ///
    /// [`VolumeStatus::detach`]: crate::VolumeStatus::detach
    pub fn start_detach(self: &Rc<Self>, name: &str) -> Result<(), Error> {
        let volume = self.volume(name)?;
        let bond = self.begin_detach(&volume)?;
        let server = self.clone();
        self.env.spawn(async move {
            if let Err(error) = server.finish_detach(volume, bond).await {
                tracing::warn!(%error, "not detached");
            }
        });
        Ok(())
    }

    async fn finish_detach(&self, volume: Rc<Volume<E>>, bond: Bond<E>) -> Result<(), Error> {
        let _under_way = UnderWay::begin(&self.detaches);
        let result = self.detach_with(&volume, bond).await;
        volume.is_leaving.set(false);
        let mut status = volume.detach.borrow_mut();
        *status = match &result {
            Ok(()) => None,
            Err(error) => Some(DetachStatus {
                running: false,
                trouble: Some(error.what.clone()),
                ..status.clone().unwrap_or_default()
            }),
        };
        result
    }

    /// Has a detach end without having happened, unless it is too late for that. What was written back stays so.
    pub fn cancel_detach(&self, name: &str) -> Result<(), Error> {
        let volume = self.volume(name)?;
        let served = volume.served();
        let mut status = volume.detach.borrow_mut();
        let running = status
            .as_mut()
            .filter(|status| status.running && !volume.is_leaving.get());
        let is_over = |served: &Served<E>| served.is_attached() && served.core.detaching.get();
        match (running, served.filter(is_over)) {
            (Some(status), Some(_)) => {
                status.running = false;
                marks::hit(Mark::DetachCancelled);
                Ok(())
            }
            _ => Err(Error::refused(
                name,
                "it is not being detached, or just was",
            )),
        }
    }

    fn begin_detach(&self, volume: &Volume<E>) -> Result<Bond<E>, Error> {
        let refused = |what: &str| Error::refused(&volume.name(), what);
        self.check_open(&volume.name())?;
        let served = self.not_detaching(volume)?;
        let core = &served.core;
        let (Some(cache), Some(backing)) = (core.cache.clone(), core.backing.clone()) else {
            return Err(refused(match &core.backing {
                None => "a flash volume has no other place for its data; it can only be deleted",
                Some(_) => "it is not attached",
            }));
        };
        let at = self.set_of(&cache);
        self.running(at)?;
        let Some(writeback) = served.writeback.clone() else {
            return Err(refused("nothing of it can be written back"));
        };
        core.detaching.set(true);
        let has_begun_drain = writeback.drain();
        writeback.set_detaching(true);
        *volume.detach.borrow_mut() = Some(DetachStatus {
            running: true,
            began_with_bytes: volume.dirty_bytes(),
            ..DetachStatus::default()
        });
        Ok(Bond {
            served,
            cache,
            backing,
            writeback,
            at,
            has_begun_drain,
        })
    }

    async fn detach_with(&self, volume: &Volume<E>, bond: Bond<E>) -> Result<(), Error> {
        let held = loop {
            let drained = self.drain_for_detach(volume, &bond).await;
            if drained.is_err() {
                bond.stay();
                return drained;
            }
            let held = self.changes.lock().await;
            // Somebody may have changed his mind meanwhile.
            if self.may_go_on(volume, &bond).is_ok() && bond.is_clean() {
                volume.is_leaving.set(true);
                break held;
            }
        };
        let is_early = mutations::is(Mutation::DetachServesEarly);
        let served_early = match is_early {
            true => Some(self.exchange_for_none(volume, &bond).await),
            false => None,
        };
        let left = self.leave(&bond).await;
        if let Err(error) = left {
            bond.stay();
            return Err(Error::io(bond.backing.disk.name(), "detach", &error));
        }
        let old = match served_early {
            Some(old) => old,
            None => self.exchange_for_none(volume, &bond).await,
        };
        let at = bond.at;
        drop(bond);
        // LIFE-4: they may still read from the cache, or put into it what they read.
        quiet(&old).await;
        // What is not given up now is by the next attach; the device says none already.
        let mut looks = 0;
        while self.check_room(at).is_err() && looks < LOOKS {
            self.check_open(&volume.name())?;
            self.running(at)?;
            self.env.sleep(PAUSE).await;
            looks += 1;
        }
        marks::hit(Mark::DetachDone);
        if looks == LOOKS {
            tracing::warn!(slot = old.inode, "no room to give the slot up");
            return Ok(());
        }
        self.give_up_slot(at, old.inode).await?;
        drop(held);
        Ok(())
    }

    fn may_go_on(&self, volume: &Volume<E>, bond: &Bond<E>) -> Result<(), Error> {
        let name = volume.name();
        self.check_open(&name)?;
        self.running(bond.at)?;
        bond.backing
            .disk
            .check()
            .map_err(|error| Error::io(bond.backing.disk.name(), "detach", &error))?;
        let status = volume.detach.borrow();
        match status.as_ref().is_some_and(|status| status.running) {
            true => Ok(()),
            false => Err(Error::refused(&name, "the detach was cancelled")),
        }
    }

    /// Waits until everything is written back, which goes as fast as it can.
    async fn drain_for_detach(&self, volume: &Volume<E>, bond: &Bond<E>) -> Result<(), Error> {
        loop {
            self.may_go_on(volume, bond)?;
            // Requests from before it was attached are waited for by whoever attached it.
            if bond.is_clean() && !bond.served.core.joining.get() {
                return Ok(());
            }
            let drain = bond.writeback.status().drain;
            if let Some(status) = volume.detach.borrow_mut().as_mut() {
                status.trouble = drain.and_then(|drain| drain.last_error);
            }
            self.env.sleep(PAUSE).await;
        }
    }

    /// The device says that it has no cache.
    async fn leave(&self, bond: &Bond<E>) -> io::Result<()> {
        assert!(bond.is_clean(), "LIFE-3: everything is written back");
        bond.writer().journal.flush().await?;
        bond.backing.disk.flush().await?;
        bond.cache.poison.check()?;
        let leave = bond.backing.superblock.change(|superblock| {
            superblock.set_state(BackingState::None);
            superblock.set_uuid = [0; 16];
        });
        leave.await
    }

    /// Serves it without the cache from now on; gives what served it so far.
    async fn exchange_for_none(
        &self,
        volume: &Volume<E>,
        bond: &Bond<E>,
    ) -> Rc<crate::request::Core<E>> {
        let old = bond.served.core.clone();
        let core = self.core(
            None,
            Some(bond.backing.clone()),
            0,
            old.sectors,
            false,
            CacheMode::None,
            Some(&old),
        );
        drop(volume.serve_with(Some(Served::by(core))));
        bond.writeback.stop().await;
        old
    }

    /// Invalidates a slot that nobody uses any more; the sweeper makes it free.
    pub(super) async fn give_up_slot(&self, at: usize, slot: u32) -> Result<(), Error> {
        let running = self.running(at)?;
        let set = &self.sets[at];
        let io = |error: io::Error| Error::io(set.disk().name(), "UUID table", &error);
        let turn = set.uuids.turn().await;
        let mut entries = set.uuids.entries().clone();
        entries[slot as usize].invalidate(self.env.unix_seconds());
        let write = set.uuids.try_write(&turn, &running.journal, entries);
        write.await.map_err(io)?;
        running.sweeper.look();
        Ok(())
    }
}
