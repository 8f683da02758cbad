//! Everything one process serves.
//!
//! Devices are examined all before any is written to: whatever is to be refused is refused with nothing changed. Then sets
//! are opened, backing devices attached by what their superblocks say, flash volumes added.

use super::attach::{self, Attach, Refusal};
use super::cache_set::{CacheSet, uuid_text};
use super::examine::{
    FoundBacking, check_attach, find_backing, find_cache, refuse_copies, refuse_nothing,
    refuse_orphans,
};
use super::open;
use super::settle::settle;
use super::volume::Volume;
use crate::data::{Candidates, RangeLocks, Writeback, WritebackParts};
use crate::error::Error;
use crate::marks::{self, Mark};
use crate::meta::{BackingSuper, Turn, write_superblock};
use crate::options::Options;
use crate::recovery::Finding;
use crate::request::{Backing, Core};
use crate::settings::{Knob, Scope, Settings};
use crate::stats::Status;
use crate::steps::Task;
use brigade_env::{Env, Exports};
use brigade_format::uuid_table::UuidEntry;
use brigade_format::{BackingState, CacheMode, Gen, Superblock};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// See the module documentation.
pub struct Server<E: Env> {
    env: E,
    options: Rc<Options>,
    sets: Vec<Rc<CacheSet<E>>>,
    volumes: Vec<Rc<Volume<E>>>,
    warnings: Vec<String>,
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
        refuse_orphans(&found_caches, &found_backings)?;
        let mut prepared = Vec::new();
        for found in found_caches {
            let store = survivor(&uuid_text(&found.superblock.set_uuid));
            prepared.push(open::prepare(&env, found, store, &options).await?);
        }
        refuse_nothing(&prepared, &found_backings)?;
        for backing in &found_backings {
            check_attach(&env, &prepared, backing, &options).await?;
        }
        let mut warnings = Vec::new();
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
        let mut server = Server {
            env,
            options,
            sets: Vec::new(),
            volumes: Vec::new(),
            warnings,
        };
        for prepared in prepared {
            let set = open::open(&server.env, prepared, &server.options).await?;
            server.sets.push(Rc::new(set));
        }
        for (position, found) in found_backings.into_iter().enumerate() {
            server.add_backing(found, position).await?;
        }
        server.add_flash_volumes();
        server.note_findings();
        Ok(Rc::new(server))
    }

    async fn add_backing(&mut self, found: FoundBacking<E>, position: usize) -> Result<(), Error> {
        let mine =
            |set: &Rc<CacheSet<E>>| set.superblock.get().set_uuid == found.superblock.set_uuid;
        let Some(at) = self.sets.iter().position(mine) else {
            self.add_alone(found, position);
            return Ok(());
        };
        let uuids = self.sets[at].uuids.clone();
        let mut turn = uuids.turn().await;
        let mut plan = self.plan(at, &found, true).await?;
        if plan == Err(Refusal::UntilSwept) {
            drop(turn);
            if let Some(running) = &self.sets[at].running {
                running.sweeper.swept().await;
            }
            turn = uuids.turn().await;
            plan = self.plan(at, &found, false).await?;
        }
        match plan {
            Ok(plan) => {
                let lost = self.dirty_given_up(at, &found.superblock, &plan);
                self.warnings.extend(lost);
                let volume = self.attach(at, found, plan, &turn).await?;
                self.add_volume(volume);
            }
            Err(Refusal::RunsAlone(why)) => {
                self.warnings.push(format!(
                    "{}: not attached, served without cache: {why}",
                    found.disk.name()
                ));
                self.add_alone(found, position);
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
    fn dirty_given_up(&self, at: usize, device: &Superblock, plan: &Attach) -> Option<String> {
        let set = &self.sets[at];
        let entries = set.uuids.entries();
        let is_its = |entry: &UuidEntry| {
            entry.is_used() && !entry.is_flash_only() && entry.uuid == device.uuid
        };
        let slot = entries.iter().position(is_its).filter(|_| plan.is_new)?;
        let sectors = set.cache.index.borrow().dirty_sectors(slot as u32);
        (sectors > 0).then(|| {
            format!(
                "device {}: its superblock says that it has nothing in the cache, so {} KiB of dirty data of it are given up",
                uuid_text(&device.uuid),
                sectors / 2
            )
        })
    }

    /// What attaching a device to a set that is open means. The table may say that a slot is free although there are keys of it, which
    /// nobody knows before all leaves are counted: such a slot is not given out.
    async fn plan(
        &self,
        at: usize,
        found: &FoundBacking<E>,
        may_wait: bool,
    ) -> Result<Result<Attach, Refusal>, Error> {
        let set = &self.sets[at];
        let io = |error: std::io::Error| Error::io(set.disk().name(), "attach", &error);
        loop {
            let plan = {
                let (entries, seen) = (set.uuids.entries(), set.inodes_seen.borrow());
                let (block, now) = (set.geometry.block_sectors, self.env.unix_seconds());
                let may_sweep = may_wait && set.running.is_some();
                attach::plan(&entries, &seen, &found.superblock, block, now, may_sweep)
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

    async fn attach(
        &self,
        at: usize,
        found: FoundBacking<E>,
        plan: Attach,
        turn: &Turn<'_>,
    ) -> Result<Volume<E>, Error> {
        let set = &self.sets[at];
        let name = found.disk.name().to_string();
        let io = |error: std::io::Error| Error::io(&name, "attach", &error);
        let range = (found.data_offset, found.disk.sectors());
        let dirty = if plan.is_new {
            0
        } else {
            set.cache.index.borrow().dirty_sectors(plan.slot)
        };
        let mut superblock = found.superblock;
        let mut state_if_attached = None;
        let is_read_only = set.running.is_none();
        if let Some(running) = &set.running {
            // Its state is relied on from now on, and may have been under way when a process was killed.
            found.disk.flush().await.map_err(io)?;
            set.uuids
                .write(turn, &running.journal, plan.entries)
                .await
                .map_err(io)?;
            running.sweeper.look();
            let mut next = superblock.clone();
            if plan.is_new {
                next.set_uuid = set.superblock.get().set_uuid;
                next.set_state(BackingState::Clean);
            }
            if dirty > 0 {
                next.set_state(BackingState::Dirty);
            }
            if let Some(mode) = self.options.mode {
                next.set_cache_mode(mode);
            }
            if next != superblock {
                write_superblock(&found.disk, &next).await.map_err(io)?;
                superblock = next;
            }
        } else {
            // What a kernel would have on the device after registering it.
            state_if_attached = Some(match superblock.state() {
                BackingState::Dirty => BackingState::Dirty,
                BackingState::None | BackingState::Clean | BackingState::Stale => {
                    BackingState::Clean
                }
            });
        }
        let label = superblock.label();
        let uuid = uuid_text(&superblock.uuid);
        let mode = self
            .options
            .mode
            .or(superblock.cache_mode())
            .unwrap_or_default();
        let backing = Rc::new(Backing {
            superblock: Rc::new(BackingSuper::new(found.disk.clone(), superblock)),
            disk: found.disk,
            data_offset: range.0,
            unflushed: Cell::new(!is_read_only),
        });
        let core = self.core(
            Some(at),
            Some(backing),
            plan.slot,
            range.1 - range.0,
            is_read_only,
            mode,
        );
        if !is_read_only && !plan.is_new {
            self.correct_state(set, &core);
        }
        let writeback = self.start_writeback(set, &core, range);
        let names = self.names(&label, plan.slot);
        Ok(Volume {
            names,
            label,
            uuid,
            core,
            writeback,
            state_if_attached,
        })
    }

    fn core(
        &self,
        set: Option<usize>,
        backing: Option<Rc<Backing<E>>>,
        inode: u32,
        sectors: u64,
        is_read_only: bool,
        mode: CacheMode,
    ) -> Rc<Core<E>> {
        let cache = set.map(|at| self.sets[at].cache.clone());
        let client = match &cache {
            Some(cache) => cache.clients.of(inode),
            None => Rc::default(),
        };
        client.is_flash.set(backing.is_none());
        let settings = Settings::new(Scope::Volume, &self.options.settings);
        settings.set(Knob::CacheMode, mode as u64);
        Rc::new(Core {
            env: self.env.clone(),
            buffers: self.env.buffers().clone(),
            cache,
            backing,
            inode,
            sectors,
            is_read_only,
            options: self.options.clone(),
            settings: Rc::new(settings),
            counters: Rc::default(),
            locks: client.locks.clone(),
            candidates: Rc::<Candidates>::default(),
            unflushed_fills: RefCell::default(),
            recent: RefCell::default(),
            last_request: client.last_request.clone(),
            fill_flush_set: Cell::new(false),
            admission: Rc::default(),
        })
    }

    /// A device that says clean over dirty data, as an old copy of it does, says so no longer once that data is counted.
    fn correct_state(&self, set: &CacheSet<E>, core: &Rc<Core<E>>) {
        let Some(backing) = core.backing.clone() else {
            return;
        };
        if !set.cache.buckets.get().is_counting() {
            return;
        }
        let (cache, inode) = (set.cache.clone(), core.inode);
        self.env.spawn(async move {
            cache.pages.counted().await;
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
        range: (u64, u64),
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
            range,
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
        });
        let run = writeback.clone().run();
        let steps = &set.cache.steps;
        self.env.spawn(steps.timed(&self.env, Task::Writeback, run));
        Some(writeback)
    }

    fn add_alone(&mut self, found: FoundBacking<E>, position: usize) {
        let sectors = found.disk.sectors() - found.data_offset;
        let label = found.superblock.label();
        let uuid = uuid_text(&found.superblock.uuid);
        let is_read_only = self.options.read_only;
        let backing = Rc::new(Backing {
            superblock: Rc::new(BackingSuper::new(found.disk.clone(), found.superblock)),
            disk: found.disk,
            data_offset: found.data_offset,
            unflushed: Cell::new(!is_read_only),
        });
        let core = self.core(
            None,
            Some(backing),
            0,
            sectors,
            is_read_only,
            CacheMode::None,
        );
        let names = self.names(&label, position as u32);
        self.add_volume(Volume {
            names,
            label,
            uuid,
            core,
            writeback: None,
            state_if_attached: None,
        });
    }

    fn add_flash_volumes(&mut self) {
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

    fn add_flash_volume(&mut self, at: usize, slot: u32, entry: &UuidEntry) {
        let is_read_only = self.sets[at].running.is_none();
        let core = self.core(
            Some(at),
            None,
            slot,
            entry.sectors,
            is_read_only,
            CacheMode::Writeback,
        );
        let (label, uuid) = (entry.label(), uuid_text(&entry.uuid));
        let names = self.names(&label, slot);
        self.add_volume(Volume {
            names,
            label,
            uuid,
            core,
            writeback: None,
            state_if_attached: None,
        });
    }

    /// Names not taken yet: the label, and `volumeN`.
    fn names(&self, label: &str, slot: u32) -> Vec<String> {
        let taken = |name: &String| {
            self.volumes
                .iter()
                .any(|volume| volume.names.contains(name))
        };
        let mut names = Vec::new();
        let wanted = format!("volume{slot}");
        let free = (0..)
            .map(|n| {
                if n == 0 {
                    wanted.clone()
                } else {
                    format!("{wanted}-{n}")
                }
            })
            .find(|name| !taken(name));
        names.extend(free);
        let label = label.to_string();
        if !label.is_empty() && !taken(&label) && !names.contains(&label) {
            names.push(label);
        }
        names
    }

    fn add_volume(&mut self, volume: Volume<E>) {
        self.volumes.push(Rc::new(volume));
    }

    fn note_findings(&mut self) {
        for set in &self.sets {
            let name = set.disk().name();
            let line = |f: &Finding| {
                format!(
                    "{name}: {} at byte {}: {} ({})",
                    f.structure, f.offset, f.message, f.id
                )
            };
            self.warnings.extend(set.findings.iter().map(line));
        }
    }

    /// Everything that is served, the default volume first.
    pub fn volumes(&self) -> Vec<Rc<Volume<E>>> {
        self.volumes.clone()
    }

    pub(super) fn sets(&self) -> Vec<Rc<CacheSet<E>>> {
        self.sets.clone()
    }

    /// What was noticed at open, a line each.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    /// Facts and counters as they are now.
    pub fn status(&self) -> Status {
        let cache_sets: Vec<_> = self.sets.iter().map(|set| set.status()).collect();
        let poisoned = |set: &Rc<CacheSet<E>>| {
            set.cache
                .poison
                .reason()
                .map(|why| format!("{}: {why}", set.disk().name()))
        };
        let trouble = |volume: &Rc<Volume<E>>| {
            volume
                .core
                .backing
                .as_ref()
                .and_then(|backing| backing.disk.trouble())
        };
        Status {
            cache_set: cache_sets.first().cloned(),
            cache_sets,
            volumes: self.volumes.iter().map(|volume| volume.status()).collect(),
            errors: self
                .sets
                .iter()
                .filter_map(poisoned)
                .chain(self.volumes.iter().filter_map(trouble))
                .collect(),
            warnings: self.warnings.clone(),
        }
    }

    /// Has all nodes of all sets rewritten soon; `status` tells how it goes.
    pub fn collect(&self) {
        self.sets.iter().for_each(|set| set.ask_for_gc());
    }

    /// Has garbage collection of all sets rest, or go on.
    pub fn pause_gc(&self, is_paused: bool) {
        self.sets.iter().for_each(|set| set.pause_gc(is_paused));
    }

    /// Checks the invariants of all sets, slowly; panics with what does not hold. For simulation and tests.
    pub fn audit(&self) {
        self.sets.iter().for_each(|set| set.audit());
    }

    /// Per cache set and bucket the gen that no pointer in the tree is older than. For simulation and tests.
    pub fn oldest_gens(&self) -> Vec<Vec<Gen>> {
        self.sets.iter().map(|set| set.oldest_gens()).collect()
    }

    /// Stops in order: writes that come late fail, those under way are waited for. Dirty data stays dirty.
    pub async fn stop(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for volume in &self.volumes {
            volume.core.admission.close().await;
            if let Some(writeback) = &volume.writeback {
                writeback.stop().await;
            }
            if volume.core.is_read_only {
                continue;
            }
            if let Err(error) = volume.core.flush_backing().await {
                result = Err(Error::io(
                    &volume.names[0],
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

impl<E: Env> Exports for Server<E> {
    type Device = Volume<E>;

    fn find(&self, name: &str) -> Option<Rc<Volume<E>>> {
        if name.is_empty() {
            return self.volumes.first().cloned();
        }
        self.volumes
            .iter()
            .find(|volume| volume.names.iter().any(|n| n == name))
            .cloned()
    }

    fn names(&self) -> Vec<String> {
        self.volumes
            .iter()
            .flat_map(|volume| volume.names.clone())
            .collect()
    }
}
