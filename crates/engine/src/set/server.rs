//! Everything one process serves.
//!
//! Devices are examined all before any is written to: whatever is to be refused is refused with nothing changed. Then sets
//! are opened, backing devices attached by what their superblocks say, flash volumes added.

use super::attach::{self, Attach, Refusal};
use super::cache_set::CacheSet;
use super::examine::{
    FoundBacking, check_attach, find_backing, find_cache, refuse_copies, refuse_orphans,
    warn_of_nothing,
};
use super::open;
use super::settle::settle;
use super::volume::{Served, Volume};
use crate::data::{Candidates, RangeLocks, Writeback, WritebackParts};
use crate::error::Error;
use crate::marks::{self, Mark};
use crate::meta::{BackingSuper, Turn};
use crate::options::Options;
use crate::recovery::Finding;
use crate::request::{Backing, Core, Troubles};
use crate::settings::{Knob, Scope, Settings};
use crate::stats::Status;
use crate::steps::Task;
use brigade_env::sync::Lock;
use brigade_env::{Env, Exports};
use brigade_format::uuid_table::UuidEntry;
use brigade_format::{BackingState, CacheMode, Gen, Superblock, uuid_text};
use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

/// See the module documentation.
pub struct Server<E: Env> {
    pub(super) env: E,
    pub(super) options: Rc<Options>,
    pub(super) sets: Vec<Rc<CacheSet<E>>>,
    pub(super) volumes: RefCell<Vec<Rc<Volume<E>>>>,
    /// Uuid of the volume that `""` means: the first one that there was, for good, whether or not it is served now.
    default: OnceCell<String>,
    pub(super) warnings: RefCell<Vec<String>>,
    /// Who changes what is served, one at a time.
    pub(super) changes: Lock,
    /// Nothing is changed any more.
    pub(super) is_stopping: Cell<bool>,
    /// Detaches under way.
    pub(super) detaches: Cell<usize>,
}

/// What becomes of backing devices that say that a cache counts which is not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Orphans {
    /// Nothing is served.
    #[default]
    Refused,
    /// They are served without it. They say so before anything else happens, and from then on what a cache has of them is void, dirty
    /// data too (docs/format.md 9.2).
    RunAlone,
}

impl<E: Env> Server<E> {
    /// Opens everything; `survivor` gives the record in memory of a set, by the set's uuid. Refuses, with nothing written
    /// to any device, what must not be served.
    pub async fn open(
        env: E,
        caches: Vec<E::Device>,
        backings: Vec<E::Device>,
        survivor: impl Fn(&str) -> Option<E::Survivor>,
        options: Options,
    ) -> Result<Rc<Self>, Error> {
        let orphans = Orphans::Refused;
        Self::open_with(env, caches, backings, survivor, options, orphans).await
    }

    /// The same, with devices whose cache is not there served on request.
    pub async fn open_with(
        env: E,
        caches: Vec<E::Device>,
        backings: Vec<E::Device>,
        survivor: impl Fn(&str) -> Option<E::Survivor>,
        options: Options,
        orphans: Orphans,
    ) -> Result<Rc<Self>, Error> {
        let options = Rc::new(options);
        let mut found_caches = Vec::new();
        for device in caches {
            found_caches.push(find_cache(&env, device, &options).await?);
        }
        let mut found_backings = Vec::new();
        for device in backings {
            found_backings.push(find_backing(&env, device).await?);
        }
        refuse_copies(&found_caches, &found_backings)?;
        if orphans == Orphans::Refused {
            refuse_orphans(&found_caches, &found_backings)?;
        }
        let mut prepared = Vec::new();
        for found in found_caches {
            let store = survivor(&uuid_text(&found.superblock.set_uuid));
            prepared.push(open::prepare(&env, found, store, &options).await?);
        }
        for backing in &found_backings {
            check_attach(&env, &prepared, backing, &options).await?;
        }
        let mut warnings = warn_of_nothing(&prepared, &found_backings);
        for set in prepared
            .iter_mut()
            .filter(|set| !set.is_read_only(&options))
        {
            for backing in &mut found_backings {
                if backing.superblock.set_uuid == set.found.superblock.set_uuid {
                    let (disk, offset) = (backing.disk.clone(), backing.data_offset);
                    warnings.extend(settle(set, &disk, &mut backing.superblock, offset).await?);
                }
            }
        }
        let mut sets = Vec::new();
        for prepared in prepared {
            let set = open::open(&env, prepared, &options).await?;
            sets.push(Rc::new(set));
        }
        let server = Server {
            env,
            options,
            sets,
            volumes: RefCell::default(),
            default: OnceCell::new(),
            warnings: RefCell::new(warnings),
            changes: Lock::default(),
            is_stopping: Cell::new(false),
            detaches: Cell::new(0),
        };
        for (position, found) in found_backings.into_iter().enumerate() {
            server.add_backing(found, position).await?;
        }
        server.add_flash_volumes();
        server.note_findings();
        Ok(Rc::new(server))
    }

    async fn add_backing(&self, found: FoundBacking<E>, position: usize) -> Result<(), Error> {
        let mine =
            |set: &Rc<CacheSet<E>>| set.superblock.get().set_uuid == found.superblock.set_uuid;
        let Some(at) = self.sets.iter().position(mine) else {
            return self.add_alone(found, position).await;
        };
        let uuids = self.sets[at].uuids.clone();
        let mut turn = uuids.turn().await;
        let mut plan = self.plan(at, &found.superblock, true).await?;
        if plan == Err(Refusal::UntilSwept) {
            drop(turn);
            if let Some(running) = &self.sets[at].running {
                running.sweeper.swept(|| true).await;
            }
            turn = uuids.turn().await;
            plan = self.plan(at, &found.superblock, false).await?;
        }
        match plan {
            Ok(plan) => {
                let lost = self.dirty_given_up(at, &found.superblock, &plan);
                self.warnings.borrow_mut().extend(lost);
                let (label, uuid) = label_and_uuid(&found.superblock);
                let slot = plan.slot;
                let backing = self.backing(found, at);
                let served = self.attach_to(at, backing, plan, &turn, None, true).await?;
                self.sets[at].settled(slot);
                let names = self.names(&label, slot, true);
                self.add_volume(Volume::new(names, label, uuid, served));
            }
            Err(Refusal::RunsAlone(why)) => {
                self.warnings.borrow_mut().push(format!(
                    "{}: not attached, served without cache: {why}",
                    found.disk.name()
                ));
                self.add_alone(found, position).await?;
            }
            Err(Refusal::Waits(why)) => {
                return Err(Error::refused(
                    found.disk.name(),
                    format!("backing superblock: {why}"),
                ));
            }
            Err(Refusal::UntilSwept) => unreachable!("that was waited for"),
        }
        Ok(())
    }

    /// What is lost as a device begins anew that had dirty data in the set (docs/format.md 9.3), in words.
    pub(super) fn dirty_given_up(
        &self,
        at: usize,
        device: &Superblock,
        plan: &Attach,
    ) -> Option<String> {
        let set = &self.sets[at];
        let entries = set.uuids.entries();
        let is_its = |entry: &UuidEntry| {
            entry.is_used() && !entry.is_flash_only() && entry.uuid == device.uuid
        };
        let slot = entries.iter().position(is_its).filter(|_| plan.is_new)?;
        let sectors = set.cache.index.borrow().dirty_sectors(slot as u32);
        (sectors > 0).then(|| {
            format!(
                "device {}: its superblock says that it {}, so {} KiB of dirty data of it are given up",
                uuid_text(&device.uuid),
                match device.state() {
                    BackingState::Stale => "was used without its cache",
                    _ => "has nothing in the cache",
                },
                sectors / 2
            )
        })
    }

    /// What attaching a device to a set that is open means. The table may say that a slot is free although there are keys of it, which
    /// nobody knows before all leaves are counted: such a slot is not given out.
    pub(super) async fn plan(
        &self,
        at: usize,
        superblock: &Superblock,
        may_wait: bool,
    ) -> Result<Result<Attach, Refusal>, Error> {
        let set = &self.sets[at];
        let io = |error: std::io::Error| Error::io(set.disk().name(), "attach", &error);
        loop {
            let plan = {
                let (entries, seen) = (set.uuids.entries(), set.inodes_seen.borrow());
                let (block, now) = (set.geometry.block_sectors, self.env.unix_seconds());
                let may_sweep = may_wait && set.running.is_some();
                attach::plan(&entries, &seen, superblock, block, now, may_sweep)
            };
            let (Ok(attach), Some(running)) = (&plan, &set.running) else {
                return Ok(plan);
            };
            let is_unknown = attach.is_new && set.was_counted_later;
            if !is_unknown || running.sweeper.is_unused(attach.slot).await.map_err(io)? {
                return Ok(plan);
            }
            marks::hit(Mark::AttachSlotHasKeys);
            set.inodes_seen.borrow_mut().insert(attach.slot);
        }
    }

    /// A backing device that was found, for the set it is to be attached to.
    pub(super) fn backing(&self, found: FoundBacking<E>, at: usize) -> Rc<Backing<E>> {
        Rc::new(Backing {
            superblock: Rc::new(BackingSuper::new(found.disk.clone(), found.superblock)),
            disk: found.disk,
            data_offset: found.data_offset,
            unflushed: Cell::new(self.sets[at].running.is_some()),
        })
    }

    /// Attaches a device as planned: the table that has its slot is durable before the device says so (docs/format.md 9.3). Gives what
    /// serves it from then on. `may_wait`: nobody is served yet, so it may wait for a bucket for the table.
    pub(super) async fn attach_to(
        &self,
        at: usize,
        backing: Rc<Backing<E>>,
        plan: Attach,
        turn: &Turn<'_>,
        kept: Option<&Core<E>>,
        may_wait: bool,
    ) -> Result<Served<E>, Error> {
        let set = &self.sets[at];
        let name = backing.disk.name().to_string();
        let io = |error: std::io::Error| Error::io(&name, "attach", &error);
        let range = (backing.data_offset, backing.disk.sectors());
        let dirty = if plan.is_new {
            0
        } else {
            set.cache.index.borrow().dirty_sectors(plan.slot)
        };
        let mut state_if_attached = None;
        let is_read_only = set.running.is_none();
        if let Some(running) = &set.running {
            // Its state is relied on from now on, and may have been under way when a process was killed.
            backing.disk.flush().await.map_err(io)?;
            let (uuids, journal) = (&set.uuids, &running.journal);
            if may_wait {
                uuids.write(turn, journal, plan.entries).await.map_err(io)?;
            } else {
                let no_room = |error| Error::io(set.disk().name(), "UUID table", &error);
                let write = uuids.try_write(turn, journal, plan.entries);
                write.await.map_err(no_room)?;
            }
            running.sweeper.look();
            // Somebody may have changed something else of it meanwhile.
            let join = backing.superblock.join(|superblock| {
                if plan.is_new {
                    superblock.set_uuid = set.superblock.get().set_uuid;
                    superblock.set_state(BackingState::Clean);
                }
                if dirty > 0 {
                    superblock.set_state(BackingState::Dirty);
                }
                if let Some(mode) = self.options.mode {
                    superblock.set_cache_mode(mode);
                }
            });
            join.await.map_err(io)?;
        } else {
            // What a kernel would have on the device after registering it.
            state_if_attached = Some(match backing.superblock.state() {
                BackingState::Dirty => BackingState::Dirty,
                BackingState::None | BackingState::Clean | BackingState::Stale => {
                    BackingState::Clean
                }
            });
        }
        let mode = self.options.mode.or(backing.superblock.get().cache_mode());
        let core = self.core(
            Some(at),
            Some(backing),
            plan.slot,
            range.1 - range.0,
            is_read_only,
            mode.unwrap_or_default(),
            kept,
        );
        if !is_read_only && !plan.is_new {
            self.correct_state(set, &core);
        }
        let writeback = self.start_writeback(set, &core, range.0);
        Ok(Served {
            core,
            writeback,
            state_if_attached,
        })
    }

    /// What requests to a volume work with; `kept` is what they worked with so far, if there was something.
    #[allow(clippy::too_many_arguments, reason = "each is a fact of its own")]
    pub(super) fn core(
        &self,
        set: Option<usize>,
        backing: Option<Rc<Backing<E>>>,
        inode: u32,
        sectors: u64,
        is_read_only: bool,
        mode: CacheMode,
        kept: Option<&Core<E>>,
    ) -> Rc<Core<E>> {
        let cache = set.map(|at| self.sets[at].cache.clone());
        let client = match &cache {
            Some(cache) => cache.clients.of(inode),
            None => Rc::default(),
        };
        client.is_flash.set(backing.is_none());
        // A volume that left its cache does not come back to it with another core.
        let of_cache = kept.filter(|kept| match (&kept.cache, &cache) {
            (Some(one), Some(other)) => Rc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        });
        let troubles: Rc<Troubles> = of_cache.map_or_else(Rc::default, |it| it.troubles.clone());
        let settings = match kept {
            Some(kept) => kept.settings.clone(),
            None => Rc::new(Settings::new(Scope::Volume, &self.options.settings)),
        };
        settings.set(Knob::CacheMode, mode as u64);
        let core = Rc::new(Core {
            env: self.env.clone(),
            buffers: self.env.buffers().clone(),
            cache,
            backing,
            inode,
            sectors,
            is_read_only,
            options: self.options.clone(),
            settings,
            counters: kept.map_or_else(Rc::default, |kept| kept.counters.clone()),
            locks: client.locks.clone(),
            candidates: kept.map_or_else(Rc::<Candidates>::default, |kept| kept.candidates.clone()),
            unflushed_fills: RefCell::default(),
            recent: RefCell::default(),
            last_request: client.last_request.clone(),
            fill_flush_set: Cell::new(false),
            admission: kept.map_or_else(Rc::default, |kept| kept.admission.clone()),
            troubles,
            detaching: Cell::new(false),
            joining: Cell::new(false),
        });
        core.watch_backing();
        core
    }

    /// A device that says clean over dirty data, as an old copy of it does, says so no longer once that data is counted.
    fn correct_state(&self, set: &CacheSet<E>, core: &Rc<Core<E>>) {
        let Some(backing) = &core.backing else {
            return;
        };
        if !set.cache.buckets.get().is_counting() {
            return;
        }
        let (cache, inode) = (set.cache.clone(), core.inode);
        // Who is not served any more meanwhile is let go of.
        let backing = Rc::downgrade(backing);
        self.env.spawn(async move {
            cache.pages.counted().await;
            let Some(backing) = backing.upgrade() else {
                return;
            };
            if cache.index.borrow().dirty_sectors(inode) > 0
                && let Err(error) = backing.superblock.dirty_intent().await
            {
                tracing::warn!(device = backing.disk.name(), %error, "its state stays what it says");
            }
        });
    }

    fn start_writeback(
        &self,
        set: &CacheSet<E>,
        core: &Rc<Core<E>>,
        data_offset: u64,
    ) -> Option<Rc<Writeback<E>>> {
        let (backing, writer) = (core.backing.as_ref()?, set.cache.writer.as_ref()?);
        let cache_sectors = set.geometry.nbuckets * u64::from(set.geometry.bucket_sectors);
        let locks: Rc<RangeLocks> = core.locks.clone();
        let writeback = Writeback::new(WritebackParts {
            env: self.env.clone(),
            inode: core.inode,
            cache: set.disk().clone(),
            backing: backing.disk.clone(),
            superblock: backing.superblock.clone(),
            // The device may grow; nothing of it is dirty behind its end.
            range: (data_offset, u64::MAX >> 1),
            index: set.cache.index.clone(),
            pages: set.cache.pages.clone(),
            inserter: writer.inserter.clone(),
            journal: writer.journal.clone(),
            tree: set.running.as_ref()?.tree.clone(),
            locks,
            candidates: core.candidates.clone(),
            counters: core.counters.clone(),
            buckets: set.cache.buckets.clone(),
            cache_sectors,
            bucket_sectors: u64::from(set.geometry.bucket_sectors),
            settings: core.settings.clone(),
            set_settings: set.cache.settings.clone(),
            clients: set.cache.clients.clone(),
            memory_bytes: self.options.memory_bytes,
        });
        let run = writeback.clone().run();
        let steps = &set.cache.steps;
        self.env.spawn(steps.timed(&self.env, Task::Writeback, run));
        Some(writeback)
    }

    /// Serves a device without a cache. If it says that a cache counts it says first that it has run without (T154).
    async fn add_alone(&self, found: FoundBacking<E>, position: usize) -> Result<(), Error> {
        let sectors = found.disk.sectors() - found.data_offset;
        let (label, uuid) = label_and_uuid(&found.superblock);
        let is_read_only = self.options.read_only;
        let state = found.superblock.state();
        let name = found.disk.name().to_string();
        let backing = Rc::new(Backing {
            superblock: Rc::new(BackingSuper::new(found.disk.clone(), found.superblock)),
            disk: found.disk,
            data_offset: found.data_offset,
            unflushed: Cell::new(!is_read_only),
        });
        if !is_read_only {
            // What it says may have been under way when a process was killed; without this a loss of power could bring back what counted
            // before, over what is written now.
            let flushed = backing.disk.flush().await;
            flushed.map_err(|error| Error::io(&name, "running without a cache", &error))?;
        }
        let counts = matches!(state, BackingState::Clean | BackingState::Dirty);
        if counts {
            self.warnings.borrow_mut().push(format!(
                "{name}: state was {state}; served without its cache set, which counts no more"
            ));
        }
        if counts && !is_read_only {
            let stale = backing
                .superblock
                .change(|it| it.set_state(BackingState::Stale));
            let io = |error: std::io::Error| Error::io(&name, "running without its cache", &error);
            stale.await.map_err(io)?;
        }
        let mode = CacheMode::None;
        let core = self.core(None, Some(backing), 0, sectors, is_read_only, mode, None);
        let names = self.names(&label, position as u32, false);
        let served = Served {
            state_if_attached: counts.then_some(BackingState::Stale),
            ..Served::by(core)
        };
        self.add_volume(Volume::new(names, label, uuid, served));
        Ok(())
    }

    fn add_flash_volumes(&self) {
        for at in 0..self.sets.len() {
            let entries = self.sets[at].uuids.entries().clone();
            for (slot, entry) in entries
                .iter()
                .enumerate()
                .filter(|(_, entry)| entry.is_servable())
            {
                self.add_flash_volume(at, slot as u32, entry);
            }
        }
    }

    pub(super) fn add_flash_volume(
        &self,
        at: usize,
        slot: u32,
        entry: &UuidEntry,
    ) -> Rc<Volume<E>> {
        let is_read_only = self.sets[at].running.is_none();
        let mode = CacheMode::Writeback;
        let core = self.core(
            Some(at),
            None,
            slot,
            entry.sectors,
            is_read_only,
            mode,
            None,
        );
        let (label, uuid) = (entry.label(), uuid_text(&entry.uuid));
        let names = self.names(&label, slot, true);
        let volume = Volume::new(names, label, uuid, Served::by(core));
        self.add_volume(volume.clone());
        volume
    }

    pub(super) fn add_volume(&self, volume: Rc<Volume<E>>) {
        // A client that comes back must not get another one.
        self.default.get_or_init(|| volume.uuid.clone());
        self.volumes.borrow_mut().push(volume);
    }

    fn note_findings(&self) {
        for set in &self.sets {
            let name = set.disk().name();
            let line = |f: &Finding| {
                format!(
                    "{name}: {} at byte {}: {} ({})",
                    f.structure, f.offset, f.message, f.id
                )
            };
            let mut warnings = self.warnings.borrow_mut();
            warnings.extend(set.findings.iter().map(line));
        }
    }

    /// Everything that is served, in the order in which it came.
    pub fn volumes(&self) -> Vec<Rc<Volume<E>>> {
        self.volumes.borrow().clone()
    }

    pub(super) fn sets(&self) -> Vec<Rc<CacheSet<E>>> {
        self.sets.clone()
    }

    /// What was noticed at open, a line each.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.borrow().clone()
    }

    /// Facts and counters as they are now.
    pub fn status(&self) -> Status {
        let cache_sets: Vec<_> = self.sets.iter().map(|set| set.status()).collect();
        let volumes = self.volumes();
        Status {
            cache_set: cache_sets.first().cloned(),
            cache_sets,
            volumes: volumes
                .iter()
                .filter_map(|volume| volume.status())
                .collect(),
            errors: self
                .sets
                .iter()
                .flat_map(|set| set.troubles())
                .chain(
                    volumes
                        .iter()
                        .filter_map(|it| it.served())
                        .flat_map(|it| it.core.troubles()),
                )
                .collect(),
            warnings: self.warnings.borrow().clone(),
        }
    }

    /// Statistics and times of all sets and volumes begin anew; nothing is decided by them (H.41).
    pub fn clear_stats(&self) {
        let sets = self.sets.iter();
        sets.for_each(|set| set.cache.counters.decaying.clear_totals());
        let volumes = self.volumes();
        let served = volumes.iter().filter_map(|volume| volume.served());
        served.for_each(|served| served.core.counters.clear());
    }

    /// Has all nodes of all sets rewritten soon; `status` tells how it goes.
    pub fn collect(&self) {
        self.sets.iter().for_each(|set| set.ask_for_gc());
    }

    /// Has garbage collection of all sets rest, or go on.
    pub fn pause_gc(&self, is_paused: bool) {
        self.sets.iter().for_each(|set| set.pause_gc(is_paused));
    }

    /// From now on no change of volumes begins, and those that wait for something give up; [`Server::stop`] does it as well.
    pub fn begin_to_stop(&self) {
        self.is_stopping.set(true);
    }

    /// Checks the invariants of all sets, slowly; panics with what does not hold. For simulation and tests.
    pub fn audit(&self) {
        self.sets.iter().for_each(|set| set.audit());
        self.volumes().iter().for_each(|volume| volume.audit());
    }

    /// The same, leaving out sets in which nothing can have changed since the last call. For simulation, after every step.
    pub fn audit_changes(&self) {
        self.sets.iter().for_each(|set| set.audit_changes());
        self.volumes().iter().for_each(|volume| volume.audit());
    }

    /// Per cache set and bucket the gen that no pointer in the tree is older than. For simulation and tests.
    pub fn oldest_gens(&self) -> Vec<Vec<Gen>> {
        self.sets.iter().map(|set| set.oldest_gens()).collect()
    }

    /// Stops in order: writes that come late fail, those under way are waited for. Dirty data stays dirty.
    pub async fn stop(&self) -> Result<(), Error> {
        let mut result = Ok(());
        self.begin_to_stop();
        self.end_detaches().await;
        let _held = self.changes.lock().await;
        for volume in self.volumes() {
            let Some(served) = volume.served() else {
                continue;
            };
            served.core.admission.close().await;
            if let Some(writeback) = &served.writeback {
                writeback.stop().await;
            }
            if served.core.is_read_only {
                continue;
            }
            if let Err(error) = served.core.flush_backing().await {
                result = Err(Error::io(
                    &volume.name(),
                    "flush of the backing device",
                    &error,
                ));
            }
        }
        for set in &self.sets {
            if let Err(error) = set.stop().await {
                result = Err(error);
            }
        }
        result
    }
}

fn label_and_uuid(superblock: &Superblock) -> (String, String) {
    (superblock.label(), uuid_text(&superblock.uuid))
}

impl<E: Env> Exports for Server<E> {
    type Device = Volume<E>;

    fn find(&self, name: &str) -> Option<Rc<Volume<E>>> {
        let volumes = self.volumes.borrow();
        let mut served = volumes.iter().filter(|volume| volume.served().is_some());
        let is_it = |volume: &&Rc<Volume<E>>| match name {
            "" => self.default.get() == Some(&volume.uuid),
            name => volume.names_now().has(name),
        };
        served.find(is_it).cloned()
    }

    fn names(&self) -> Vec<String> {
        let volumes = self.volumes.borrow();
        let served = volumes.iter().filter(|volume| volume.served().is_some());
        served.flat_map(|volume| volume.names()).collect()
    }
}
