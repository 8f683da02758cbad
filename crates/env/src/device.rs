//! What the engine stands on: a disk, a partition, a file.

use crate::Buffer;
use std::future::Future;
use std::io;

/// A sector is 512 bytes, whatever the device's own block size.
pub const SECTOR_BYTES: u64 = 512;

/// What a device is like. Fixed while it is open, but for its size, which changes when [`Device::measure`] says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Usable size in bytes, a multiple of 512.
    pub size_bytes: u64,
    /// Smallest unit the device itself takes, in bytes; 512 for a regular file.
    pub logical_block_bytes: u32,
    /// Unit the device writes atomically as far as known, in bytes; at least the logical one.
    pub physical_block_bytes: u32,
    /// Discards do something.
    pub can_discard: bool,
    /// Opened without the right to write; every write fails with `EROFS`.
    pub is_read_only: bool,
    /// What is written best at once, aligned to its multiples, in bytes; 0 if nobody knows. Of a RAID a stripe.
    pub optimal_io_bytes: u32,
    /// Writing parts of that costs much more than all of it, as it does on RAID 4, 5 and 6.
    pub partial_stripes_expensive: bool,
}

/// How durable a completed write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It survives the death of the process; a power loss may take it until the next completed flush.
    Volatile,
    /// It is durable when it completes (FUA). Says nothing of earlier writes.
    Durable,
}

/// A disk-like thing the engine reads and writes.
///
/// # Contract
/// - Offsets and lengths are multiples of 512 bytes; where the device itself wants more the implementation bounces.
/// - A call starts its I/O when its future is first polled at the latest, and completes it even if the future
///   is dropped: the implementation owns the buffer until then.
/// - A read fills the whole range of the buffer or fails; a write writes all of it or fails. Both give the buffer back
///   on success; on failure it may be lost.
/// - Two writes in flight to the same sectors end in either order, sector by sector.
/// - [`Device::flush`] makes durable every write that *completed* before the flush was called.
/// - Ranges beyond the end fail with `InvalidInput`; nothing is grown.
pub trait Device: 'static {
    /// The path it was opened by, for messages.
    fn name(&self) -> &str;
    /// Size and units.
    fn geometry(&self) -> Geometry;
    /// Looks again how large it is: it may have grown. That it became smaller is an error, and its size as it was.
    fn measure(&self) -> io::Result<Geometry> {
        Ok(self.geometry())
    }
    /// Fills `buffer` from `offset` bytes.
    fn read(
        &self,
        offset: u64,
        buffer: Buffer,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static;
    /// Writes `buffer` at `offset` bytes.
    fn write(
        &self,
        offset: u64,
        buffer: Buffer,
        durability: Durability,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static;
    /// Makes every completed write durable.
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static;
    /// Tells the device the range is not needed; its content becomes undefined. May do nothing.
    fn discard(&self, offset: u64, length: u64) -> impl Future<Output = io::Result<()>> + 'static;
    /// Makes the range read as zeros; with `may_unmap` it may be deallocated.
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        may_unmap: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static;
}
