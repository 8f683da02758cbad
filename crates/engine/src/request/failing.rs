//! What requests do when devices fail (docs/errors.md).
//!
//! ```text
//! a clean copy cannot be read ──► backing device; the copy leaves the index, its bucket is used no more
//! the cache cannot be used ──┬─► nothing dirty ─► superblock says stale, durable ─► as if there were no cache, for good
//!                            └─► something dirty ─► what needs a write is refused, and what cannot be read
//! the backing device has too many errors ─► everything is refused until `io_disable` is off
//! ```
//!
//! - **FAIL-1** Before the backing device is written without regard to what the cache has of it, its superblock says, durably, that all of
//!   that is void. A crash before only finds clean copies of what was there; no opening after, of whoever, brings them out.
//! - **FAIL-2** A volume with dirty data never leaves its cache: nobody else has that data, and older data must not be read in its place.
//! - **FAIL-3** A copy that is dropped from the index is dropped durably while its range is held: a direct write to it, which finds nothing
//!   cached, must not be undone by a crash that brings the copy back.

use super::{Admission, Cache, Core};
use crate::data::same;
use crate::device::{Disk, Illness};
use crate::extents::Extent;
use crate::health::Limits;
use crate::limits::{COPIES_DROPPED_AT_ONCE, GONE_PROBES, LEAF_PAUSES, PROBE_PAUSE};
use crate::marks::{self, Mark};
use crate::settings::{Knob, Settings};
use crate::steps::Task;
use brigade_env::{Buffer, Env};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};

/// What went wrong with a volume so far.
#[derive(Default)]
pub struct Troubles {
    /// It goes on without its cache, for this reason.
    left: RefCell<Option<String>>,
    /// Why `io_disable` was switched on, unless somebody asked for it.
    shut: RefCell<Option<String>>,
    /// Somebody looks whether the backing device answers.
    is_probing: Cell<bool>,
    /// It does.
    answers: Cell<bool>,
    /// Copies that are being dropped from the index.
    dropping: Cell<usize>,
}

impl Troubles {
    fn shut(&self, settings: &Settings, why: String) {
        marks::hit(Mark::BackingShut);
        tracing::error!(%why, "the volume refuses requests");
        *self.shut.borrow_mut() = Some(why);
        settings.set(Knob::VolumeIoDisable, 1);
    }
}

/// Who looks whether a backing device answers. It keeps nobody from letting go of the volume.
struct Probe<E: Env> {
    env: E,
    disk: Weak<Disk<E>>,
    troubles: Weak<Troubles>,
    settings: Rc<Settings>,
    admission: Rc<Admission>,
}

impl<E: Env> Probe<E> {
    async fn run(self) {
        let mut failed = 0;
        while !self.admission.is_closed.get() {
            self.env.sleep(PROBE_PAUSE).await;
            let Some(disk) = self.disk.upgrade() else {
                return;
            };
            let answers = disk.answers().await;
            drop(disk);
            let Some(troubles) = self.troubles.upgrade() else {
                return;
            };
            let is_on = self.settings.is_on(Knob::VolumeIoDisable);
            troubles.answers.set(answers);
            failed = if answers || is_on { 0 } else { failed + 1 };
            if answers && !is_on {
                break;
            }
            if failed >= GONE_PROBES {
                troubles.shut(&self.settings, "it does not answer".into());
            }
        }
        if let Some(troubles) = self.troubles.upgrade() {
            troubles.is_probing.set(false);
        }
    }
}

impl<E: Env> Core<E> {
    /// The cache, unless the volume runs without or went on without.
    pub(super) fn attached(&self) -> Option<&Rc<Cache<E>>> {
        self.cache.as_ref().filter(|_| !self.has_left())
    }

    /// Whether it goes on without its cache.
    pub fn has_left(&self) -> bool {
        self.troubles.left.borrow().is_some()
    }

    /// Fails if all requests are to be refused.
    pub(super) fn check_enabled(&self) -> io::Result<()> {
        let refused = |why: &str| Err(io::Error::other(why));
        if self.settings.is_on(Knob::VolumeIoDisable) {
            return refused("io_disable of the volume is on");
        }
        let Some(cache) = self.attached() else {
            return Ok(());
        };
        if cache.settings.is_on(Knob::SetIoDisable) {
            return refused("io_disable of the cache set is on");
        }
        match self.stops_with_set() {
            true => cache.poison.check(),
            false => Ok(()),
        }
    }

    fn stops_with_set(&self) -> bool {
        self.settings.get(Knob::StopWhenCacheSetFailed) != 0
    }

    /// Whether the backing device has all that the volume holds.
    pub(super) fn backing_has_all(&self, cache: &Cache<E>) -> bool {
        let Some(backing) = &self.backing else {
            return false;
        };
        let index = cache.index.borrow();
        let is_counted = index.nodes.uncounted() == 0;
        // Where not all is counted, the superblock knows.
        let says_dirty = backing.superblock.state() == brigade_format::BackingState::Dirty;
        index.dirty_sectors(self.inode) == 0 && (is_counted || !says_dirty)
    }

    /// Goes on without the cache, which fails with `error`, if nothing is lost by that; otherwise gives the error back. The caller
    /// is not about to make anything dirty.
    pub(super) async fn leave(&self, error: io::Error) -> io::Result<()> {
        if self.has_left() {
            return Ok(());
        }
        let (Some(cache), Some(backing)) = (&self.cache, &self.backing) else {
            return Err(error);
        };
        // A set that only stops is taken up again.
        let only_stops = self.admission.is_closed.get() && !cache.poison.is_thrown();
        let may_leave = !self.is_read_only && !self.stops_with_set() && !only_stops;
        if !may_leave || !self.backing_has_all(cache) {
            return Err(error);
        }
        if !backing
            .superblock
            .leave(|| self.backing_has_all(cache))
            .await?
        {
            return Err(error);
        }
        if !self.has_left() {
            marks::hit(Mark::CacheLeft);
            tracing::error!(device = backing.disk.name(), %error, "the volume goes on without its cache");
            *self.troubles.left.borrow_mut() = Some(error.to_string());
            self.candidates.cancel(0, u64::MAX);
        }
        Ok(())
    }

    /// Reads from the backing device what the cache failed to say anything of, if that has it.
    pub(super) async fn read_instead(
        &self,
        cache: &Cache<E>,
        start: u64,
        sectors: u64,
        error: io::Error,
    ) -> io::Result<Buffer> {
        match &self.backing {
            Some(backing) if self.backing_has_all(cache) => {
                marks::hit(Mark::ReadFallsBack);
                self.counters.read_fallbacks.add(1);
                backing.disk.read_bytes(start, sectors as usize * 512).await
            }
            _ => Err(error),
        }
    }

    /// Reads a cached piece. One that is clean comes from the backing device if it cannot be read, and is not cached any more.
    pub(super) async fn read_cached(
        self: &Rc<Self>,
        cache: &Rc<Cache<E>>,
        piece: Extent,
    ) -> io::Result<Buffer> {
        let bytes = piece.sectors() as usize * 512;
        let ptr = piece.ptr.expect("it is cached");
        let read = cache.disk.read_data(ptr.sector(), self.buffers.get(bytes));
        let error = match read.await {
            Ok(buffer) => return Ok(buffer),
            Err(error) => error,
        };
        cache.buckets.set_aside([ptr]);
        let Some(backing) = self.backing.as_ref().filter(|_| !piece.dirty) else {
            return Err(error);
        };
        marks::hit(Mark::ReadFallsBack);
        self.counters.read_fallbacks.add(1);
        let (start, sectors) = (piece.start, piece.sectors());
        tracing::warn!(%error, start, sectors, "cached read failed; reading the backing device");
        self.drop_copy(cache, piece);
        backing.disk.read_bytes(piece.start, bytes).await
    }

    /// Takes a clean copy out of the index, in the background (FAIL-3).
    fn drop_copy(self: &Rc<Self>, cache: &Rc<Cache<E>>, copy: Extent) {
        let dropping = &self.troubles.dropping;
        if cache.writer.is_none() || dropping.get() >= COPIES_DROPPED_AT_ONCE {
            return;
        }
        dropping.set(dropping.get() + 1);
        let (core, cache) = (self.clone(), cache.clone());
        let (env, steps) = (core.env.clone(), cache.steps.clone());
        let work = async move {
            if let Err(error) = core.drop_held(&cache, copy).await {
                tracing::warn!(%error, "a copy that cannot be read stays in the index");
            }
            core.troubles.dropping.set(core.troubles.dropping.get() - 1);
        };
        env.spawn(steps.timed(&env, Task::Fill, work));
    }

    async fn drop_held(&self, cache: &Cache<E>, copy: Extent) -> io::Result<()> {
        let Some(writer) = &cache.writer else {
            return Ok(());
        };
        // Nothing changes behind the last entry of a set that stops.
        let _admitted = self.admission.enter()?;
        let _held = self.locks.lock(copy.start, copy.end).await;
        let hole = [Extent::hole(copy.inode, copy.start, copy.end)];
        let inserted = writer.inserter.insert(&hole, |index, hole| {
            super::direct::holes(&same(index, &copy.slice(hole.start, hole.end)))
        });
        let Some(seq) = inserted.await? else {
            return Ok(());
        };
        marks::hit(Mark::ReadDropsCopy);
        writer.journal.flush_through(seq).await
    }

    /// Brings the leaves of a range, trying again if one cannot be read.
    pub(super) async fn bring(&self, cache: &Cache<E>, start: u64, end: u64) -> io::Result<()> {
        for pause in LEAF_PAUSES {
            match cache.pages.bring(self.inode, start, end).await {
                Err(_) if !cache.poison.is_thrown() => self.env.sleep(pause).await,
                result => return result,
            }
        }
        cache.pages.bring(self.inode, start, end).await
    }

    /// Has errors of the backing device counted. With too many of them, or when it is gone for long, the volume refuses requests.
    pub fn watch_backing(self: &Rc<Self>) {
        let Some(backing) = &self.backing else { return };
        let weak = Rc::downgrade(self);
        let tell = move |illness: Illness| {
            let Some(core) = weak.upgrade() else { return };
            match illness {
                Illness::Errors(last) => {
                    let why = format!("too many errors, the last: {last}");
                    core.troubles.shut(&core.settings, why);
                }
                // One that comes back may have lost what it had not made durable.
                Illness::Gone(last) => {
                    if let Some(backing) = &core.backing {
                        backing.disk.fail(format!("the device is gone: {last}"));
                    }
                }
            }
            core.probe();
        };
        backing
            .disk
            .watch(Limits::BACKING, self.settings.clone(), tell);
    }

    /// Looks every second whether the backing device answers, until it serves again.
    fn probe(&self) {
        let Some(backing) = &self.backing else {
            return;
        };
        if self.troubles.is_probing.replace(true) {
            return;
        }
        self.troubles.answers.set(false);
        let probe = Probe {
            env: self.env.clone(),
            disk: Rc::downgrade(&backing.disk),
            troubles: Rc::downgrade(&self.troubles),
            settings: self.settings.clone(),
            admission: self.admission.clone(),
        };
        self.env.spawn(probe.run());
    }

    /// What is wrong with it now, in words.
    pub fn troubles(&self) -> Vec<String> {
        let mut said = Vec::new();
        let name = self.backing.as_ref().map(|backing| backing.disk.name());
        let name = name.map_or(format!("volume{}", self.inode), String::from);
        if let Some(why) = &*self.troubles.left.borrow() {
            said.push(format!(
                "{name}: goes on without its cache, which is void from now on: {why}"
            ));
        }
        if let Some(cache) = self.attached().filter(|cache| cache.poison.is_thrown()) {
            said.push(self.failed_with_set(&name, cache));
        }
        if self.settings.is_on(Knob::VolumeIoDisable) {
            let shut = self.troubles.shut.borrow();
            let why = shut.as_deref().unwrap_or("io_disable is on");
            let answers = match self.troubles.is_probing.get() && self.troubles.answers.get() {
                true => "; the device answers again, and io_disable=0 lets requests in",
                false => "",
            };
            said.push(format!("{name}: refuses requests: {why}{answers}"));
        }
        if let Some(backing) = &self.backing {
            said.extend(backing.disk.trouble());
            if let Some((count, last)) = backing.disk.errors() {
                said.push(format!(
                    "{last} ({count} errors so far); what was to be written back stays dirty"
                ));
            }
        }
        said
    }

    fn failed_with_set(&self, name: &str, cache: &Cache<E>) -> String {
        let dirty = cache.index.borrow().dirty_sectors(self.inode) / 2;
        if self.stops_with_set() {
            return format!(
                "{name}: refuses requests, as its cache set failed ({dirty} KiB are only there)"
            );
        }
        match self.backing_has_all(cache) {
            true => format!("{name}: goes on without its cache with the next write"),
            false => format!(
                "{name}: takes no writes, as {dirty} KiB of its data are only in the cache set that failed; they are there when it is opened again"
            ),
        }
    }
}
