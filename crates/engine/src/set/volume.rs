//! A volume: what a frontend serves.

use crate::data::Writeback;
use crate::request;
use crate::request::{Clear, Core};
use crate::stats::VolumeStatus;
use brigade_env::{BlockDevice, BlockSizes, Buffer, Env, StatusExtent, StreamId};
use brigade_format::{BackingState, CacheMode};
use std::io;
use std::rc::Rc;

/// Longest request, in bytes.
const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Zeros are written in pieces of this many sectors where they must be stored.
const ZERO_SECTORS: u64 = 2048;

/// A cached backing device, a flash-only volume, or a backing device without cache.
pub struct Volume<E: Env> {
    /// Export names, the main one first.
    pub names: Vec<String>,
    /// Its label.
    pub label: String,
    /// Identity of the backing device or flash volume, as text.
    pub uuid: String,
    pub(super) core: Rc<Core<E>>,
    pub(super) writeback: Option<Rc<Writeback<E>>>,
    /// As a read-only opening would have it: nothing of it is on the device.
    pub(super) state_if_attached: Option<BackingState>,
}

impl<E: Env> Volume<E> {
    /// The way it stands to its cache: `no cache`, `clean`, `dirty`, `inconsistent` or `flash`.
    pub fn state(&self) -> &'static str {
        let Some(backing) = &self.core.backing else {
            return "flash";
        };
        match self
            .state_if_attached
            .unwrap_or_else(|| backing.superblock.state())
        {
            BackingState::None => "no cache",
            BackingState::Clean => "clean",
            BackingState::Dirty => "dirty",
            BackingState::Stale => "inconsistent",
        }
    }

    /// Bytes that are only in the cache.
    pub fn dirty_bytes(&self) -> u64 {
        self.core.cache.as_ref().map_or(0, |cache| {
            cache.index.borrow().dirty_sectors(self.core.inode) * 512
        })
    }

    /// Caches it in another way from now on, and after a restart that is not told otherwise. Requests under way go on as they
    /// began; what is dirty stays so until it is written back. A flash volume knows no modes.
    pub fn set_mode(&self, mode: CacheMode) -> impl Future<Output = io::Result<()>> + 'static {
        request::set_mode(self.core.clone(), mode)
    }

    /// For `status`.
    pub fn status(&self) -> VolumeStatus {
        let (reads, writes, latency) = self.core.counters.snapshot();
        VolumeStatus {
            name: self.names.first().cloned().unwrap_or_default(),
            label: self.label.clone(),
            uuid: self.uuid.clone(),
            path: self
                .core
                .backing
                .as_ref()
                .map(|backing| backing.disk.name().to_string()),
            mode: self.core.mode().to_string(),
            state: self.state().into(),
            read_only: self.core.is_read_only,
            size_bytes: self.core.sectors * 512,
            dirty_bytes: self.dirty_bytes(),
            reads,
            writes,
            latency,
            writeback: self.writeback.as_ref().map(|it| it.status()),
        }
    }
}

impl<E: Env> BlockDevice for Volume<E> {
    fn size_bytes(&self) -> u64 {
        self.core.sectors * 512
    }

    fn block_sizes(&self) -> BlockSizes {
        BlockSizes {
            minimum: 512,
            preferred: 4096,
            maximum: REQUEST_BYTES_MAX,
        }
    }

    fn is_read_only(&self) -> bool {
        self.core.is_read_only
    }

    fn description(&self) -> String {
        match &self.core.backing {
            Some(backing) => format!("{} ({})", backing.disk.name(), self.state()),
            None => format!("flash volume {}", self.uuid),
        }
    }

    fn buffer(&self, length: usize) -> Buffer {
        self.core.buffers.get(length)
    }

    fn read(
        &self,
        stream: StreamId,
        offset: u64,
        length: usize,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static {
        request::read(self.core.clone(), stream, offset / 512, length as u64 / 512)
    }

    fn write(
        &self,
        stream: StreamId,
        offset: u64,
        buffer: Buffer,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        request::write(self.core.clone(), stream, offset / 512, buffer, fua)
    }

    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        request::flush(self.core.clone())
    }

    fn discard(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let what = Clear::Discard;
        request::clear(self.core.clone(), offset / 512, length / 512, what, fua)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        may_unmap: bool,
        only_if_fast: bool,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let core = self.core.clone();
        let stored = core.backing.is_none() && !may_unmap;
        let is_fast = !stored
            && core
                .backing
                .as_ref()
                .is_none_or(|b| b.disk.geometry().can_discard);
        async move {
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
        request::prefetch(self.core.clone(), stream, offset / 512, length / 512)
    }

    fn status(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> impl Future<Output = io::Result<Vec<StatusExtent>>> + 'static {
        request::status(self.core.clone(), offset / 512, length / 512, most)
    }
}
