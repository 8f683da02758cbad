//! A volume: what a frontend serves.
//!
//! What serves it may be exchanged while requests come: each request takes the [`Core`] that is there when it comes and goes on with it
//! to its end, so none waits and none fails because of an exchange. Who needs all requests on an older core to be over waits for
//! that ([`quiet`]); what two cores must not both do meanwhile is with whoever exchanges them (`set/lifecycle`).

use super::names::Names;
use crate::data::Writeback;
use crate::request;
use crate::request::{Clear, Core};
use crate::settings::Settings;
use crate::stats::{BackingStatus, DetachStatus, VolumeStatus};
use brigade_env::{BlockDevice, BlockSizes, Buffer, BufferPool, Env, StatusExtent, StreamId};
use brigade_format::{BackingState, CacheMode};
use std::cell::{Cell, Ref, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// Longest request, in bytes.
const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Zeros are written in pieces of this many sectors where they must be stored.
const ZERO_SECTORS: u64 = 2048;

/// Time between looks whether the requests on an older core are over.
const QUIET_LOOK: Duration = Duration::from_millis(2);

/// A cached backing device, a flash-only volume, or a backing device without cache.
pub struct Volume<E: Env> {
    /// Identity of the backing device or flash volume, as text.
    pub uuid: String,
    names: RefCell<Names>,
    label: RefCell<String>,
    buffers: BufferPool,
    /// Choices that may change; they stay when it is attached or detached.
    pub(super) settings: Rc<Settings>,
    served: RefCell<Option<Served<E>>>,
    /// How a detach goes.
    pub(super) detach: RefCell<Option<DetachStatus>>,
    /// It can no more be cancelled.
    pub(super) is_leaving: Cell<bool>,
}

/// What serves a volume now.
pub(super) struct Served<E: Env> {
    pub(super) core: Rc<Core<E>>,
    pub(super) writeback: Option<Rc<Writeback<E>>>,
    /// As a read-only opening would have it: nothing of it is on the device.
    pub(super) state_if_attached: Option<BackingState>,
}

impl<E: Env> Clone for Served<E> {
    fn clone(&self) -> Self {
        Served {
            core: self.core.clone(),
            writeback: self.writeback.clone(),
            state_if_attached: self.state_if_attached,
        }
    }
}

impl<E: Env> Served<E> {
    /// Without anything that is written back.
    pub(super) fn by(core: Rc<Core<E>>) -> Self {
        Served {
            core,
            writeback: None,
            state_if_attached: None,
        }
    }
}

/// Waits until every request that came to a core, and everything it left in the background, is over. Nobody keeps a core but those and
/// its volume, which has another one by now.
pub(super) async fn quiet<E: Env>(core: &Rc<Core<E>>) {
    // What waits for a bucket, or for memory, need not be cached any more.
    core.candidates.cancel(0, u64::MAX);
    while Rc::strong_count(core) > 1 {
        core.env.sleep(QUIET_LOOK).await;
        core.candidates.cancel(0, u64::MAX);
    }
}

impl<E: Env> Volume<E> {
    pub(super) fn new(names: Names, label: String, uuid: String, served: Served<E>) -> Rc<Self> {
        Rc::new(Volume {
            uuid,
            names: RefCell::new(names),
            label: RefCell::new(label),
            buffers: served.core.buffers.clone(),
            settings: served.core.settings.clone(),
            served: RefCell::new(Some(served)),
            detach: RefCell::default(),
            is_leaving: Cell::new(false),
        })
    }

    /// Export names, the main one first.
    pub fn names(&self) -> Vec<String> {
        self.names.borrow().all()
    }

    pub(super) fn names_now(&self) -> Ref<'_, Names> {
        self.names.borrow()
    }

    /// The main name.
    pub fn name(&self) -> String {
        self.names.borrow().number.clone()
    }

    /// Whether it is exported by this name, or has this uuid.
    pub fn is_called(&self, name: &str) -> bool {
        self.uuid == name || self.names.borrow().has(name)
    }

    /// Its label.
    pub fn label(&self) -> String {
        self.label.borrow().clone()
    }

    /// The name of the old label goes.
    pub(super) fn change_label(&self, label: &str) {
        self.label.replace(label.into());
        self.names.borrow_mut().label = (!label.is_empty()).then(|| label.into());
    }

    pub(super) fn change_number(&self, number: String) {
        self.names.borrow_mut().number = number;
    }

    /// Whether it is in the UUID table of a set; one that is not served may be.
    pub(super) fn has_slot(&self) -> bool {
        self.served().is_none_or(|it| it.core.cache.is_some())
    }

    /// What serves it, unless it was removed.
    pub(super) fn served(&self) -> Option<Served<E>> {
        self.served.borrow().clone()
    }

    /// Has something else serve it from now on, or nothing.
    pub(super) fn serve_with(&self, next: Option<Served<E>>) -> Option<Served<E>> {
        self.served.replace(next)
    }

    fn core(&self) -> io::Result<Rc<Core<E>>> {
        let served = self.served.borrow();
        let core = served.as_ref().map(|served| served.core.clone());
        core.ok_or_else(|| io::Error::other("the volume is not served any more"))
    }

    /// The core for a range, which may have come to lie behind the end since the client was told of it.
    fn core_of(&self, offset: u64, length: u64) -> io::Result<Rc<Core<E>>> {
        let core = self.core()?;
        let end = offset.checked_add(length);
        if end.is_none_or(|end| end > core.sectors * 512) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(core)
    }

    /// The way it stands to its cache: `no cache`, `clean`, `dirty`, `inconsistent` or `flash`.
    pub fn state(&self) -> &'static str {
        let Some(served) = self.served() else {
            return "removed";
        };
        let Some(backing) = &served.core.backing else {
            return "flash";
        };
        let state = served.state_if_attached;
        match state.unwrap_or_else(|| backing.superblock.state()) {
            BackingState::None => "no cache",
            BackingState::Clean => "clean",
            BackingState::Dirty => "dirty",
            BackingState::Stale => "inconsistent",
        }
    }

    /// Bytes that are only in the cache.
    pub fn dirty_bytes(&self) -> u64 {
        let Ok(core) = self.core() else { return 0 };
        core.cache.as_ref().map_or(0, |cache| {
            cache.index.borrow().dirty_sectors(core.inode) * 512
        })
    }

    /// Caches it in another way from now on, and after a restart that is not told otherwise. Requests under way go on as they
    /// began; what is dirty stays so until it is written back. A flash volume knows no modes.
    pub fn set_mode(&self, mode: CacheMode) -> impl Future<Output = io::Result<()>> + 'static {
        let core = self.core();
        async move { request::set_mode(core?, mode).await }
    }

    /// Where its backing device is.
    pub fn path(&self) -> Option<String> {
        let served = self.served()?;
        let backing = served.core.backing.as_ref()?;
        Some(backing.disk.name().to_string())
    }

    /// Panics if what is counted does not add up.
    pub fn audit(&self) {
        if let Some(served) = self.served() {
            served.core.counters.audit();
        }
    }

    /// For `status`.
    pub fn status(&self) -> Option<VolumeStatus> {
        let served = self.served()?;
        let core = served.core.clone();
        let counts = core.counters.snapshot(core.env.now());
        let mode = match core.cache {
            Some(_) => core.mode(),
            None => CacheMode::None,
        };
        let dirty_bytes = self.dirty_bytes();
        let mut detach = self.detach.borrow().clone();
        if let Some(detach) = &mut detach {
            detach.dirty_bytes = dirty_bytes;
        }
        Some(VolumeStatus {
            name: self.name(),
            label: self.label(),
            uuid: self.uuid.clone(),
            path: self.path(),
            mode: mode.to_string(),
            state: self.state().into(),
            read_only: core.is_read_only,
            size_bytes: core.sectors * 512,
            dirty_bytes,
            backing: core.backing.as_ref().map(|backing| BackingStatus {
                flushes: backing.disk.flushes(),
                written_bytes: backing.disk.written().0,
            }),
            detach,
            reads: counts.reads,
            writes: counts.writes,
            discards: counts.discards,
            zeroes: counts.zeroes,
            flushes: counts.flushes,
            prefetches: counts.prefetches,
            fills: counts.fills,
            stats: counts.stats,
            writeback: served.writeback.as_ref().map(|it| it.status()),
            latency: counts.latency,
        })
    }
}

impl<E: Env> BlockDevice for Volume<E> {
    fn size_bytes(&self) -> u64 {
        self.core().map_or(0, |core| core.sectors * 512)
    }

    fn block_sizes(&self) -> BlockSizes {
        BlockSizes {
            minimum: 512,
            preferred: 4096,
            maximum: REQUEST_BYTES_MAX,
        }
    }

    fn is_read_only(&self) -> bool {
        self.core().map_or(true, |core| core.is_read_only)
    }

    fn description(&self) -> String {
        match self.path() {
            Some(path) => format!("{path} ({})", self.state()),
            None => format!("flash volume {}", self.uuid),
        }
    }

    fn buffer(&self, length: usize) -> Buffer {
        self.buffers.get(length)
    }

    fn read(
        &self,
        stream: StreamId,
        offset: u64,
        length: usize,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static {
        let core = self.core_of(offset, length as u64);
        async move { request::read(core?, stream, offset / 512, length as u64 / 512).await }
    }

    fn write(
        &self,
        stream: StreamId,
        offset: u64,
        buffer: Buffer,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let core = self.core_of(offset, buffer.len() as u64);
        async move { request::write(core?, stream, offset / 512, buffer, fua).await }
    }

    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        let core = self.core();
        async move { request::flush(core?).await }
    }

    fn discard(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let (core, what) = (self.core_of(offset, length), Clear::Discard);
        async move { request::clear(core?, offset / 512, length / 512, what, fua).await }
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        may_unmap: bool,
        only_if_fast: bool,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let core = self.core_of(offset, length);
        async move {
            let core = core?;
            let stored = core.backing.is_none() && !may_unmap;
            let is_fast = !stored
                && core
                    .backing
                    .as_ref()
                    .is_none_or(|b| b.disk.geometry().can_discard);
            if only_if_fast && !is_fast {
                return Err(io::ErrorKind::Unsupported.into());
            }
            if !stored {
                let what = Clear::Zeroes { may_unmap };
                return request::clear(core, offset / 512, length / 512, what, fua).await;
            }
            let (mut at, end) = (offset / 512, (offset + length) / 512);
            while at < end {
                let sectors = ZERO_SECTORS.min(end - at);
                let zeros = core.buffers.get_zeroed(sectors as usize * 512);
                request::write(core.clone(), StreamId::default(), at, zeros, fua).await?;
                at += sectors;
            }
            Ok(())
        }
    }

    fn prefetch(
        &self,
        stream: StreamId,
        offset: u64,
        length: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let core = self.core_of(offset, length);
        async move { request::prefetch(core?, stream, offset / 512, length / 512).await }
    }

    fn status(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> impl Future<Output = io::Result<Vec<StatusExtent>>> + 'static {
        let core = self.core_of(offset, length);
        async move { request::status(core?, offset / 512, length / 512, most).await }
    }
}
