//! What frontends serve.

use crate::Buffer;
use std::future::Future;
use std::io;
use std::rc::Rc;

/// Identity of a stream of requests: a client connection, or a hint from it. Data of one stream is kept together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u16);

/// Constraints on requests, in bytes; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths must be multiples of this.
    pub minimum: u32,
    /// Requests of this size and alignment are served best.
    pub preferred: u32,
    /// Longest request.
    pub maximum: u32,
}

/// A run of a volume with one state, as block status reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusExtent {
    /// Bytes.
    pub length: u64,
    /// Known to read as zeros (and not stored).
    pub is_hole: bool,
    /// 0 not cached, 1 clean in the cache, 2 dirty in the cache.
    pub cache_state: u32,
}

/// A volume as a frontend sees it.
///
/// # Contract
/// Ranges are checked by the frontend against [`BlockDevice::size_bytes`] and [`BlockDevice::block_sizes`].
/// A completed write is readable and survives the death of this process; with `fua`, or once a later
/// [`BlockDevice::flush`] completes, it survives a power loss. Errors carry an OS error number where there is one.
/// Futures own what they need: they may outlive the borrow and are run to their end even when the client has gone.
pub trait BlockDevice: 'static {
    /// Capacity in bytes.
    fn size_bytes(&self) -> u64;
    /// Request constraints.
    fn block_sizes(&self) -> BlockSizes;
    /// No writes, discards or zeroes.
    fn is_read_only(&self) -> bool;
    /// Text for the export's description.
    fn description(&self) -> String;
    /// Where request buffers come from.
    fn buffer(&self, length: usize) -> Buffer;
    /// Reads `length` bytes.
    fn read(
        &self,
        stream: StreamId,
        offset: u64,
        length: usize,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static;
    /// Writes the buffer.
    fn write(
        &self,
        stream: StreamId,
        offset: u64,
        buffer: Buffer,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static;
    /// Makes every completed write durable.
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static;
    /// The range is not needed any more; it may read as anything afterwards.
    fn discard(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static;
    /// The range reads as zeros afterwards. With `may_unmap` space may be given back. With `only_if_fast` it fails
    /// with `EOPNOTSUPP` (as `ENOTSUP`) at once, nothing changed, if zeroing is no faster than writing.
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        may_unmap: bool,
        only_if_fast: bool,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static;
    /// Brings the range into the cache.
    fn prefetch(
        &self,
        stream: StreamId,
        offset: u64,
        length: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static;
    /// States of the range, adjacent extents of one state merged, covering it exactly or stopping early after `most` extents.
    fn status(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> impl Future<Output = io::Result<Vec<StatusExtent>>> + 'static;
}

/// The volumes a frontend can offer.
pub trait Exports: 'static {
    /// What they are.
    type Device: BlockDevice;
    /// The volume of that name; `""` is the default one.
    fn find(&self, name: &str) -> Option<Rc<Self::Device>>;
    /// Names to list, each volume once or under several names.
    fn names(&self) -> Vec<String>;
}
