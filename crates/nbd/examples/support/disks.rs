//! Two things to serve that need no cache: memory, and a file or disk as it is.
#![allow(dead_code)]

use brigade_env::{
    BlockDevice, BlockSizes, Buffer, BufferPool, Device, Durability, Exports, StatusExtent,
    StreamId,
};
use std::cell::RefCell;
use std::future::{Future, ready};
use std::io;
use std::rc::Rc;

const PIECE_BYTES: usize = 64 << 10;

/// The same device under any of its names.
pub struct One<D>(pub Rc<D>);

impl<D: BlockDevice> Exports for One<D> {
    type Device = D;
    fn find(&self, name: &str) -> Option<Rc<D>> {
        matches!(name, "" | "volume0").then(|| self.0.clone())
    }
    fn names(&self) -> Vec<String> {
        vec![String::new(), "volume0".to_owned()]
    }
}

/// Memory, allocated where it is written.
pub struct RamDisk {
    pieces: RefCell<Vec<Option<Box<[u8]>>>>,
    size_bytes: u64,
    pool: BufferPool,
}

impl RamDisk {
    pub fn new(size_bytes: u64, pool: BufferPool) -> Self {
        let count = size_bytes.div_ceil(PIECE_BYTES as u64) as usize;
        RamDisk {
            pieces: RefCell::new((0..count).map(|_| None).collect()),
            size_bytes,
            pool,
        }
    }

    /// Cuts a range at the borders of pieces: piece, start within it, length.
    fn parts(offset: u64, length: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let mut at = offset as usize;
        let end = at + length;
        std::iter::from_fn(move || {
            let (nr, start) = (at / PIECE_BYTES, at % PIECE_BYTES);
            let count = (PIECE_BYTES - start).min(end - at);
            at += count;
            (count > 0).then_some((nr, start, count))
        })
    }

    fn get(&self, offset: u64, length: usize) -> Buffer {
        let mut buffer = self.pool.get(length);
        let mut done = 0;
        for (nr, start, count) in Self::parts(offset, length) {
            match &self.pieces.borrow()[nr] {
                Some(piece) => {
                    buffer[done..done + count].copy_from_slice(&piece[start..start + count])
                }
                None => buffer[done..done + count].fill(0),
            }
            done += count;
        }
        buffer
    }

    fn put(&self, offset: u64, bytes: &[u8]) {
        let mut pieces = self.pieces.borrow_mut();
        let mut done = 0;
        for (nr, start, count) in Self::parts(offset, bytes.len()) {
            let piece = pieces[nr].get_or_insert_with(|| vec![0; PIECE_BYTES].into_boxed_slice());
            piece[start..start + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
    }

    fn clear(&self, offset: u64, length: u64, may_unmap: bool) {
        let mut pieces = self.pieces.borrow_mut();
        for (nr, start, count) in Self::parts(offset, length as usize) {
            if count == PIECE_BYTES && may_unmap {
                pieces[nr] = None;
            } else if !may_unmap || pieces[nr].is_some() {
                let piece =
                    pieces[nr].get_or_insert_with(|| vec![0; PIECE_BYTES].into_boxed_slice());
                piece[start..start + count].fill(0);
            }
        }
    }
}

impl BlockDevice for RamDisk {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
    fn block_sizes(&self) -> BlockSizes {
        BlockSizes {
            minimum: 512,
            preferred: 4096,
            maximum: 32 << 20,
        }
    }
    fn is_read_only(&self) -> bool {
        false
    }
    fn description(&self) -> String {
        "memory".to_owned()
    }
    fn buffer(&self, length: usize) -> Buffer {
        self.pool.get(length)
    }
    fn read(
        &self,
        _: StreamId,
        offset: u64,
        length: usize,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static {
        ready(Ok(self.get(offset, length)))
    }
    fn write(
        &self,
        _: StreamId,
        offset: u64,
        buffer: Buffer,
        _: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        self.put(offset, &buffer);
        ready(Ok(()))
    }
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        ready(Ok(()))
    }
    fn discard(
        &self,
        offset: u64,
        length: u64,
        _: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        self.clear(offset, length, true);
        ready(Ok(()))
    }
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        may_unmap: bool,
        only_if_fast: bool,
        _: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        if only_if_fast && !may_unmap {
            return ready(Err(io::Error::from_raw_os_error(95)));
        }
        self.clear(offset, length, may_unmap);
        ready(Ok(()))
    }
    fn prefetch(
        &self,
        _: StreamId,
        _: u64,
        _: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        ready(Ok(()))
    }
    fn status(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> impl Future<Output = io::Result<Vec<StatusExtent>>> + 'static {
        let pieces = self.pieces.borrow();
        let mut extents: Vec<StatusExtent> = Vec::new();
        for (nr, _, count) in Self::parts(offset, length as usize) {
            let is_hole = pieces[nr].is_none();
            let is_full = extents.len() == most;
            match extents.last_mut() {
                Some(last) if last.is_hole == is_hole => last.length += count as u64,
                _ if is_full => break,
                _ => extents.push(StatusExtent {
                    length: count as u64,
                    is_hole,
                    cache_state: u32::from(!is_hole),
                }),
            }
        }
        ready(Ok(extents))
    }
}

/// A device as it is, nothing cached.
pub struct Through<D> {
    device: Rc<D>,
    pool: BufferPool,
}

impl<D: Device> Through<D> {
    pub fn new(device: D, pool: BufferPool) -> Self {
        Through {
            device: Rc::new(device),
            pool,
        }
    }
}

impl<D: Device> BlockDevice for Through<D> {
    fn size_bytes(&self) -> u64 {
        self.device.geometry().size_bytes
    }
    fn block_sizes(&self) -> BlockSizes {
        let geometry = self.device.geometry();
        let minimum = geometry.logical_block_bytes;
        BlockSizes {
            minimum,
            preferred: geometry.physical_block_bytes.max(4096),
            maximum: 4 << 20,
        }
    }
    fn is_read_only(&self) -> bool {
        self.device.geometry().is_read_only
    }
    fn description(&self) -> String {
        self.device.name().to_owned()
    }
    fn buffer(&self, length: usize) -> Buffer {
        self.pool.get(length)
    }
    fn read(
        &self,
        _: StreamId,
        offset: u64,
        length: usize,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static {
        self.device.read(offset, self.pool.get(length))
    }
    fn write(
        &self,
        _: StreamId,
        offset: u64,
        buffer: Buffer,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let durability = if fua {
            Durability::Durable
        } else {
            Durability::Volatile
        };
        let written = self.device.write(offset, buffer, durability);
        async move { written.await.map(drop) }
    }
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        self.device.flush()
    }
    fn discard(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let device = self.device.clone();
        async move {
            device.discard(offset, length).await?;
            if fua { device.flush().await } else { Ok(()) }
        }
    }
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        may_unmap: bool,
        _: bool,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let device = self.device.clone();
        async move {
            device.write_zeroes(offset, length, may_unmap).await?;
            if fua { device.flush().await } else { Ok(()) }
        }
    }
    fn prefetch(
        &self,
        _: StreamId,
        _: u64,
        _: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        ready(Ok(()))
    }
    fn status(
        &self,
        _: u64,
        length: u64,
        _: usize,
    ) -> impl Future<Output = io::Result<Vec<StatusExtent>>> + 'static {
        ready(Ok(vec![StatusExtent {
            length,
            is_hole: false,
            cache_state: 0,
        }]))
    }
}
