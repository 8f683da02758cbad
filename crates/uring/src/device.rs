//! Disks, partitions and files.
//!
//! The fast path is one slot and no allocation: sector-aligned I/O that suits the device goes to the engine as it
//! is, when the call is made. What does not suit takes a detour through an aligned buffer; a write that must
//! read the rest of its first or last block first runs as a task of its own, so that it is completed even if nobody waits.

use crate::open::{self, DeviceOptions, Opened};
use crate::operation::{Kind, Outcome, Payload};
use crate::range_lock::RangeLock;
use crate::reactor::{Core, Op};
use crate::sys;
use crate::view::{self, View};
use brigade_env::{Buffer, Device, Durability, Geometry, SECTOR_BYTES, sync};
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// Zeros are written in pieces of this size where the device cannot make them itself.
const ZEROS_BYTES: u64 = 1 << 20;

struct Shared {
    core: Rc<Core>,
    fd: Rc<OwnedFd>,
    name: String,
    geometry: Cell<Geometry>,
    is_block: bool,
    is_in_memory: bool,
    view: Option<View>,
    unit_bytes: u64,
    memory_align: usize,
    blocks: RangeLock,
    cannot_punch: Cell<bool>,
    cannot_zero: Cell<bool>,
}

/// An open disk, partition or file. Clones are the same one; it is unlocked when the last is gone.
///
/// A regular file that is truncated while it is open gives `UnexpectedEof` for reads behind its new end. A write there
/// succeeds as on any file; the length is not asked for before every write.
#[derive(Clone)]
pub struct HostDevice(Rc<Shared>);

fn read_only() -> io::Error {
    io::Error::from_raw_os_error(libc::EROFS)
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV | libc::ENOTTY)
    )
}

async fn finish(op: Op) -> io::Result<usize> {
    let (outcome, _): (Outcome, _) = op.await;
    outcome.map_err(io::Error::from_raw_os_error)
}

impl HostDevice {
    pub(crate) fn open(
        core: Rc<Core>,
        path: &Path,
        options: &DeviceOptions,
    ) -> io::Result<HostDevice> {
        let Opened {
            fd,
            geometry,
            is_block,
            is_in_memory,
            unit_bytes,
            memory_align,
        } = open::open(path, options)?;
        // Whether a page is there is told only to those who may write the file.
        let is_viewed = is_in_memory && !geometry.is_read_only;
        Ok(HostDevice(Rc::new(Shared {
            core,
            view: is_viewed
                .then(|| View::new(&fd, geometry.size_bytes))
                .flatten(),
            fd: Rc::new(fd),
            name: path.display().to_string(),
            geometry: Cell::new(geometry),
            is_block,
            is_in_memory,
            unit_bytes,
            memory_align,
            blocks: RangeLock::default(),
            cannot_punch: Cell::new(false),
            cannot_zero: Cell::new(false),
        })))
    }

    /// Runs `work` as a task, so that it ends even if the future does not live to see it.
    fn detach<T: 'static>(
        &self,
        work: impl Future<Output = io::Result<T>> + 'static,
    ) -> Detached<T> {
        let (keeper, promise) = sync::promise();
        self.0.core.spawn(async move { keeper.keep(work.await) });
        Detached {
            core: self.0.core.clone(),
            promise,
        }
    }
}

/// The result of a task; an error if the world ends before it.
struct Detached<T> {
    core: Rc<Core>,
    promise: sync::Promise<io::Result<T>>,
}

impl<T> Future for Detached<T> {
    type Output = io::Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        match Pin::new(&mut self.promise).poll(context) {
            Poll::Pending if self.core.is_closed() => {
                Poll::Ready(Err(io::Error::from_raw_os_error(libc::ECANCELED)))
            }
            polled => polled,
        }
    }
}

/// How an I/O has begun.
enum Begun<D> {
    Over(io::Result<Buffer>),
    Direct(Op),
    Detour(D),
}

impl Shared {
    fn check(&self, offset: u64, length: u64) -> io::Result<()> {
        let is_aligned = offset.is_multiple_of(SECTOR_BYTES) && length.is_multiple_of(SECTOR_BYTES);
        let end = offset.checked_add(length);
        if is_aligned && end.is_some_and(|end| end <= self.geometry.get().size_bytes) {
            return Ok(());
        }
        let what = if is_aligned {
            "is behind the end of the device"
        } else {
            "is not made of whole sectors"
        };
        let message = format!(
            "{}: the range of {length} bytes at {offset} {what}",
            self.name
        );
        Err(io::Error::new(io::ErrorKind::InvalidInput, message))
    }

    fn check_write(&self, offset: u64, length: u64) -> io::Result<()> {
        if self.geometry.get().is_read_only {
            return Err(read_only());
        }
        self.check(offset, length)
    }

    fn measure(&self) -> io::Result<Geometry> {
        let mut geometry = self.geometry.get();
        let bytes = match self.is_block {
            true => sys::block_size_bytes(&self.fd)?,
            false => sys::length_bytes(&self.fd).ok_or_else(io::Error::last_os_error)?,
        };
        let unit = u64::from(geometry.logical_block_bytes).max(self.unit_bytes);
        let size_bytes = bytes - bytes % unit;
        if size_bytes < geometry.size_bytes {
            let message = format!(
                "{}: it has become smaller, {bytes} bytes instead of {}",
                self.name, geometry.size_bytes
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        geometry.size_bytes = size_bytes;
        self.geometry.set(geometry);
        Ok(geometry)
    }

    fn is_whole(&self, offset: u64, length: u64) -> bool {
        offset.is_multiple_of(self.unit_bytes) && length.is_multiple_of(self.unit_bytes)
    }

    fn suits(&self, offset: u64, buffer: &Buffer) -> bool {
        self.is_whole(offset, buffer.len() as u64)
            && (buffer.as_ptr() as usize).is_multiple_of(self.memory_align)
    }

    /// The whole blocks around a range. They end within the device: its size is a multiple of the unit, or the
    /// unit is one byte.
    fn widen(&self, offset: u64, length: u64) -> (u64, u64) {
        let start = offset - offset % self.unit_bytes;
        (
            start,
            offset
                .saturating_add(length)
                .next_multiple_of(self.unit_bytes),
        )
    }

    /// A ring would hand a file in memory to a kernel thread, at many times the cost of copying it here.
    fn submit(&self, kind: Kind, payload: Payload) -> Op {
        if self.is_in_memory {
            return self.core.submit_in_place(kind, &self.fd, payload);
        }
        self.core.submit(kind, &self.fd, payload)
    }

    fn submit_read(&self, offset: u64, mut buffer: Buffer) -> Op {
        if let Some(view) = &self.view
            && buffer.len() <= view::READ_BYTES_MAX
            && self.core.take_in_place(buffer.len())
            && view.read(offset, &mut buffer)
            && !self.may_be_cut(&buffer)
        {
            return Op::done(buffer.len(), Payload::Buffer(buffer));
        }
        self.submit(Kind::Read { offset }, Payload::Buffer(buffer))
    }

    /// Behind the end of a file that was cut within a page the rest of that page is zeros and no signal. A read that
    /// goes there ends there.
    fn may_be_cut(&self, bytes: &[u8]) -> bool {
        bytes.last() == Some(&0)
            && sys::length_bytes(&self.fd)
                .is_none_or(|length| length < self.geometry.get().size_bytes)
    }

    fn submit_write(&self, offset: u64, buffer: Buffer, durability: Durability) -> Op {
        let is_durable = durability == Durability::Durable;
        self.submit(Kind::Write { offset, is_durable }, Payload::Buffer(buffer))
    }

    /// The buffer of a finished read or write, which must have been complete.
    async fn whole(&self, op: Op, offset: u64, verb: &str) -> io::Result<Buffer> {
        let (outcome, payload) = op.await;
        let count = outcome.map_err(io::Error::from_raw_os_error)?;
        let Payload::Buffer(buffer) = payload else {
            unreachable!("it had a buffer")
        };
        if count == buffer.len() {
            return Ok(buffer);
        }
        let at = offset.saturating_add(count as u64);
        let message = format!(
            "{}: the device ends at byte {at}; it is shorter than when it was opened, cannot {verb}",
            self.name
        );
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, message))
    }

    async fn read_blocks(&self, offset: u64, length: u64) -> io::Result<Buffer> {
        let buffer = self.core.pool.get(length as usize);
        self.whole(self.submit_read(offset, buffer), offset, "read")
            .await
    }

    async fn read_around(&self, offset: u64, mut buffer: Buffer) -> io::Result<Buffer> {
        let (start, end) = self.widen(offset, buffer.len() as u64);
        let wide = self.read_blocks(start, end - start).await?;
        let skip = (offset - start) as usize;
        let length = buffer.len();
        buffer.copy_from_slice(&wide[skip..skip + length]);
        Ok(buffer)
    }

    /// Writes any sectors; the caller holds the claim on the blocks.
    async fn write_claimed(
        &self,
        offset: u64,
        buffer: Buffer,
        durability: Durability,
    ) -> io::Result<Buffer> {
        if self.suits(offset, &buffer) {
            return self
                .whole(
                    self.submit_write(offset, buffer, durability),
                    offset,
                    "write",
                )
                .await;
        }
        let (start, end) = self.widen(offset, buffer.len() as u64);
        let (unit, skip) = (self.unit_bytes, (offset - start) as usize);
        let mut wide = self.core.pool.get((end - start) as usize);
        let is_one_block = end - start == unit;
        if skip > 0 || (is_one_block && buffer.len() as u64 != unit) {
            let head = self.read_blocks(start, unit).await?;
            wide[..unit as usize].copy_from_slice(&head);
        }
        if !is_one_block && skip + buffer.len() < wide.len() {
            let tail = self.read_blocks(end - unit, unit).await?;
            let at = wide.len() - unit as usize;
            wide[at..].copy_from_slice(&tail);
        }
        wide[skip..skip + buffer.len()].copy_from_slice(&buffer);
        self.whole(self.submit_write(start, wide, durability), start, "write")
            .await?;
        Ok(buffer)
    }

    async fn claim(&self, offset: u64, length: u64) -> Option<crate::range_lock::Claim<'_>> {
        if self.unit_bytes <= SECTOR_BYTES {
            return None;
        }
        let (start, end) = self.widen(offset, length);
        Some(
            self.blocks
                .claim(start..end, !self.is_whole(offset, length))
                .await,
        )
    }

    async fn write(
        &self,
        offset: u64,
        buffer: Buffer,
        durability: Durability,
    ) -> io::Result<Buffer> {
        let _claim = self.claim(offset, buffer.len() as u64).await;
        self.write_claimed(offset, buffer, durability).await
    }

    async fn fallocate(&self, mode: i32, offset: u64, length: u64) -> io::Result<()> {
        let kind = Kind::Fallocate {
            mode: mode | libc::FALLOC_FL_KEEP_SIZE,
            offset,
            length,
        };
        let result = finish(self.core.submit(kind, &self.fd, Payload::Nothing)).await;
        if let Some(view) = &self.view {
            view.forget(offset, length);
        }
        result.map(drop)
    }

    async fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        let start = offset.next_multiple_of(self.unit_bytes);
        let end = offset + length - (offset + length) % self.unit_bytes;
        if start >= end || !self.geometry.get().can_discard || self.cannot_punch.get() {
            return Ok(());
        }
        let result = if self.is_block {
            let kind = Kind::Discard {
                offset: start,
                length: end - start,
            };
            finish(self.core.submit(kind, &self.fd, Payload::Nothing))
                .await
                .map(drop)
        } else {
            self.fallocate(libc::FALLOC_FL_PUNCH_HOLE, start, end - start)
                .await
        };
        match result {
            Err(error) if is_unsupported(&error) => {
                self.cannot_punch.set(true);
                Ok(())
            }
            other => other,
        }
    }

    /// Asks the device to make zeros of whole blocks; `false` if it cannot.
    async fn zero_by_device(&self, offset: u64, length: u64, may_unmap: bool) -> io::Result<bool> {
        let attempts = [
            (libc::FALLOC_FL_PUNCH_HOLE, &self.cannot_punch, may_unmap),
            (libc::FALLOC_FL_ZERO_RANGE, &self.cannot_zero, true),
        ];
        for (mode, cannot, is_wanted) in attempts {
            if !is_wanted || cannot.get() {
                continue;
            }
            match self.fallocate(mode, offset, length).await {
                Err(error) if is_unsupported(&error) => cannot.set(true),
                other => return other.map(|()| true),
            }
        }
        Ok(false)
    }

    async fn write_zeros(&self, mut offset: u64, end: u64) -> io::Result<()> {
        if offset >= end {
            return Ok(());
        }
        let mut zeros = self
            .core
            .pool
            .get_zeroed(ZEROS_BYTES.min(end - offset) as usize);
        while offset < end {
            let length = ZEROS_BYTES.min(end - offset);
            zeros.set_range(0..length as usize);
            zeros = self
                .write_claimed(offset, zeros, Durability::Volatile)
                .await?;
            offset += length;
        }
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, length: u64, may_unmap: bool) -> io::Result<()> {
        let _claim = self.claim(offset, length).await;
        let end = offset + length;
        let first = offset.next_multiple_of(self.unit_bytes).min(end);
        let last = (end - end % self.unit_bytes).max(first);
        if first < last && self.zero_by_device(first, last - first, may_unmap).await? {
            self.write_zeros(offset, first).await?;
            return self.write_zeros(last, end).await;
        }
        self.write_zeros(offset, end).await
    }
}

impl Device for HostDevice {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry.get()
    }

    fn measure(&self) -> io::Result<Geometry> {
        self.0.measure()
    }

    fn read(
        &self,
        offset: u64,
        buffer: Buffer,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static {
        let shared = self.0.clone();
        let begun = match shared.check(offset, buffer.len() as u64) {
            Err(error) => Begun::Over(Err(error)),
            Ok(()) if buffer.is_empty() => Begun::Over(Ok(buffer)),
            Ok(()) if shared.suits(offset, &buffer) => {
                Begun::Direct(shared.submit_read(offset, buffer))
            }
            Ok(()) => Begun::Detour(buffer),
        };
        async move {
            match begun {
                Begun::Over(result) => result,
                Begun::Direct(op) => shared.whole(op, offset, "read").await,
                Begun::Detour(buffer) => shared.read_around(offset, buffer).await,
            }
        }
    }

    fn write(
        &self,
        offset: u64,
        buffer: Buffer,
        durability: Durability,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static {
        let shared = self.0.clone();
        let is_simple = shared.unit_bytes <= SECTOR_BYTES && shared.suits(offset, &buffer);
        let begun = match shared.check_write(offset, buffer.len() as u64) {
            Err(error) => Begun::Over(Err(error)),
            Ok(()) if buffer.is_empty() => Begun::Over(Ok(buffer)),
            Ok(()) if is_simple => Begun::Direct(shared.submit_write(offset, buffer, durability)),
            Ok(()) => {
                let shared = shared.clone();
                Begun::Detour(
                    self.detach(async move { shared.write(offset, buffer, durability).await }),
                )
            }
        };
        async move {
            match begun {
                Begun::Over(result) => result,
                Begun::Direct(op) => shared.whole(op, offset, "write").await,
                Begun::Detour(task) => task.await,
            }
        }
    }

    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        // A device opened for reading has nothing to make durable.
        let op = (!self.0.geometry.get().is_read_only)
            .then(|| self.0.submit(Kind::Sync, Payload::Nothing));
        async move {
            match op {
                Some(op) => finish(op).await.map(drop),
                None => Ok(()),
            }
        }
    }

    fn discard(&self, offset: u64, length: u64) -> impl Future<Output = io::Result<()>> + 'static {
        let checked = self.0.check_write(offset, length);
        let shared = self.0.clone();
        let task =
            checked.map(|()| self.detach(async move { shared.discard(offset, length).await }));
        async move { task?.await }
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        may_unmap: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let checked = self.0.check_write(offset, length);
        let shared = self.0.clone();
        let task = checked.map(|()| {
            self.detach(async move { shared.write_zeroes(offset, length, may_unmap).await })
        });
        async move { task?.await }
    }
}
