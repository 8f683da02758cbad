//! Attaching a device to a set that is open (docs/format.md 9.3): one that comes, or one that is served without a cache.

use super::super::attach::{Attach, Refusal};
use super::super::examine::{FoundBacking, find_backing};
use super::super::server::Server;
use super::super::volume::{Served, Volume, quiet};
use super::{LOOK, is_dirty_in};
use crate::error::Error;
use crate::marks::{self, Mark};
use crate::meta::Turn;
use crate::mutations::{self, Mutation};
use crate::request;
use brigade_env::Env;
use brigade_format::{BackingState, Superblock, uuid_text};
use std::rc::Rc;

impl<E: Env> Server<E> {
    /// Attaches a device that is not served yet, to the set that is named, the one that its superblock names, or the only one; and
    /// serves it. What is refused is not written to.
    pub async fn attach(
        &self,
        device: E::Device,
        set: Option<&str>,
    ) -> Result<Rc<Volume<E>>, Error> {
        let found = find_backing(&self.env, device).await?;
        let name = found.disk.name().to_string();
        let _held = self.change_of(&name).await?;
        let uuid = uuid_text(&found.superblock.uuid);
        if let Some(other) = self.volumes().iter().find(|volume| volume.uuid == uuid) {
            let what = format!(
                "superblock uuid at byte 4136: {} has the same and is served; one of them is a copy",
                other.path().unwrap_or_else(|| other.name())
            );
            return Err(Error::refused(&name, what));
        }
        let at = self.set_for(&name, &found.superblock, set)?;
        self.running(at)?;
        let uuids = self.sets[at].uuids.clone();
        let (plan, turn) = self.plan_for(at, &name, &found.superblock, &uuids).await?;
        let (slot, label) = (plan.slot, found.superblock.label());
        if !plan.is_new {
            self.check_ends(at, &found, slot).await?;
        }
        let lost = self.dirty_given_up(at, &found.superblock, &plan);
        let backing = self.backing(found, at);
        self.check_room(at)?;
        let served = self
            .attach_to(at, backing, plan, &turn, None, false)
            .await?;
        self.warnings.borrow_mut().extend(lost);
        self.settle(at, &served).await?;
        let volume = Volume::new(self.names(&label, slot, true), label, uuid, served);
        self.add_volume(volume.clone());
        marks::hit(Mark::AttachOnline);
        Ok(volume)
    }

    /// Attaches a device that is served without a cache, to the set that is named or the only one. Its requests go on.
    pub async fn attach_volume(
        &self,
        name: &str,
        set: Option<&str>,
    ) -> Result<Rc<Volume<E>>, Error> {
        let _held = self.change_of(name).await?;
        let volume = self.volume(name)?;
        let old = self.idle(&volume).await?.core;
        let Some(backing) = old.backing.clone().filter(|_| old.cache.is_none()) else {
            return Err(Error::refused(
                name,
                "it is attached already, or a flash volume",
            ));
        };
        let superblock = backing.superblock.get();
        let device = backing.disk.name().to_string();
        let at = self.set_for(&device, &superblock, set)?;
        self.running(at)?;
        let uuids = self.sets[at].uuids.clone();
        let (plan, turn) = self.plan_for(at, &device, &superblock, &uuids).await?;
        let slot = plan.slot;
        let lost = self.dirty_given_up(at, &superblock, &plan);
        self.check_room(at)?;
        let served = self
            .attach_to(at, backing, plan, &turn, Some(&old), false)
            .await?;
        self.warnings.borrow_mut().extend(lost);
        // LIFE-2: those that write to the device and know of no cache must be over before anything of it is cached.
        let core = served.core.clone();
        core.joining.set(!mutations::is(Mutation::AttachMixes));
        drop(volume.serve_with(Some(served)));
        self.number_by_slot(&volume, slot);
        self.env.spawn(async move {
            quiet(&old).await;
            core.joining.set(false);
        });
        marks::hit(Mark::AttachServed);
        Ok(volume)
    }

    /// After a kernel's session what is cached of a device may be older than what it has (F70). At open it is compared; of a device that
    /// comes later it is dropped, before anybody is served.
    async fn settle(&self, at: usize, served: &Served<E>) -> Result<(), Error> {
        let (core, set) = (&served.core, &self.sets[at]);
        let Some(backing) = &core.backing else {
            return Ok(());
        };
        if !set.unsettled.borrow().contains(&core.inode) {
            return Ok(());
        }
        let (start, end) = (backing.data_offset, backing.disk.sectors());
        let forgotten =
            request::forget_all_clean(core, start, end, || !self.is_stopping.get()).await;
        if let Err(error) = forgotten {
            if let Some(writeback) = &served.writeback {
                writeback.stop().await;
            }
            let name = backing.disk.name();
            self.check_open(name)?;
            return Err(Error::io(name, "attach", &error));
        }
        set.settled(core.inode);
        Ok(())
    }

    /// The set a device is to be attached to. What another set may have newer data of is not for this one.
    fn set_for(
        &self,
        name: &str,
        superblock: &Superblock,
        wanted: Option<&str>,
    ) -> Result<usize, Error> {
        let own = uuid_text(&superblock.set_uuid);
        let is_own = self.sets.iter().any(|set| set.uuid() == own);
        let at = self.set_named(name, wanted.or(is_own.then_some(own.as_str())))?;
        let state = superblock.state();
        let may_count = matches!(state, BackingState::Clean | BackingState::Dirty);
        if may_count && self.sets[at].uuid() != own {
            let what = format!(
                "superblock set uuid at byte 4152: state is {state} in cache set {own}, which may have newer data of it; detach it there"
            );
            return Err(Error::refused(name, what));
        }
        Ok(at)
    }

    /// Slot and table, with the turn to write it.
    async fn plan_for<'a>(
        &self,
        at: usize,
        name: &str,
        superblock: &Superblock,
        uuids: &'a crate::meta::UuidTable<E>,
    ) -> Result<(Attach, Turn<'a>), Error> {
        let mut turn = uuids.turn().await;
        let mut plan = self.plan(at, superblock, true).await?;
        if plan == Err(Refusal::UntilSwept) {
            drop(turn);
            self.swept(at, name).await?;
            turn = uuids.turn().await;
            plan = self.plan(at, superblock, false).await?;
        }
        match plan {
            Ok(plan) => Ok((plan, turn)),
            Err(Refusal::RunsAlone(why) | Refusal::Waits(why)) => {
                Err(Error::refused(name, format!("backing superblock: {why}")))
            }
            Err(Refusal::UntilSwept) => unreachable!("that was waited for"),
        }
    }

    /// Dirty data of a device that keeps its slot must lie on it (F64).
    async fn check_ends(&self, at: usize, found: &FoundBacking<E>, slot: u32) -> Result<(), Error> {
        let (cache, name) = (&self.sets[at].cache, found.disk.name());
        while cache.buckets.get().is_counting() {
            self.check_open(name)?;
            self.running(at)?;
            self.env.sleep(LOOK).await;
        }
        let (low, high) = (found.data_offset, found.disk.sectors());
        for range in [(0, low), (high, u64::MAX >> 1)] {
            let is_outside = is_dirty_in(cache, slot, range).await;
            let is_outside = is_outside.map_err(|error| Error::io(name, "attach", &error))?;
            if is_outside {
                let what = format!(
                    "size: the cache holds dirty data outside sectors {low}..{high} of this device (F64)"
                );
                return Err(Error::refused(name, what));
            }
        }
        Ok(())
    }
}

impl<E: Env> Served<E> {
    /// Whether a cache takes part.
    pub(super) fn is_attached(&self) -> bool {
        self.core.cache.is_some() && self.core.backing.is_some()
    }
}
