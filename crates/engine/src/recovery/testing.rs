//! A world for tests of recovery: one image, read synchronously; every future is ready at its first poll.

use brigade_env::{Buffer, BufferPool, Device, Durability, Env, Geometry, Survivor};
use std::cell::Cell;
use std::fs::File;
use std::future::{Future, Ready, ready};
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Runs a future that never waits.
pub(super) fn run<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a future of this world waited"),
    }
}

#[derive(Clone)]
pub(super) struct TestEnv(BufferPool);

impl TestEnv {
    pub(super) fn new() -> TestEnv {
        TestEnv(BufferPool::new(64 << 20))
    }
}

pub(super) struct NoSurvivor;

impl Survivor for NoSurvivor {
    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn read(&self) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
    fn clear(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Env for TestEnv {
    type Device = Image;
    type Survivor = NoSurvivor;

    fn spawn(&self, _: impl Future<Output = ()> + 'static) {
        panic!("recovery starts no tasks");
    }
    fn now(&self) -> Duration {
        Duration::ZERO
    }
    fn sleep_until(&self, _: Duration) -> impl Future<Output = ()> + 'static {
        ready(())
    }
    fn unix_seconds(&self) -> u32 {
        1
    }
    fn random_u64(&self) -> u64 {
        4
    }
    fn buffers(&self) -> &BufferPool {
        &self.0
    }
}

/// Bytes behind an [`Image`].
pub(super) enum Content {
    File(File),
    Memory(Vec<u8>),
}

/// A device that can only be read, and counts what is.
pub(super) struct Image {
    content: Content,
    size_bytes: u64,
    pub(super) bytes_read: Rc<Cell<u64>>,
}

impl Image {
    pub(super) fn open(path: &std::path::Path) -> Image {
        let file = File::open(path).expect("an image");
        let size_bytes = file.metadata().expect("its size").len() & !511;
        Image {
            content: Content::File(file),
            size_bytes,
            bytes_read: Rc::default(),
        }
    }

    pub(super) fn memory(bytes: Vec<u8>) -> Image {
        let size_bytes = bytes.len() as u64;
        Image {
            content: Content::Memory(bytes),
            size_bytes,
            bytes_read: Rc::default(),
        }
    }

    pub(super) fn sectors(&self) -> u64 {
        self.size_bytes / 512
    }

    pub(super) fn fill(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset + out.len() as u64 > self.size_bytes {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match &self.content {
            Content::File(file) => file.read_exact_at(out, offset),
            Content::Memory(bytes) => {
                out.copy_from_slice(&bytes[offset as usize..offset as usize + out.len()]);
                Ok(())
            }
        }
    }
}

fn refused<T>() -> Ready<io::Result<T>> {
    ready(Err(io::ErrorKind::Unsupported.into()))
}

impl Device for Image {
    fn name(&self) -> &str {
        "image"
    }
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: self.size_bytes,
            logical_block_bytes: 512,
            physical_block_bytes: 512,
            can_discard: false,
            is_read_only: true,
            optimal_io_bytes: 0,
            partial_stripes_expensive: false,
        }
    }
    fn read(
        &self,
        offset: u64,
        mut buffer: Buffer,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static {
        self.bytes_read
            .set(self.bytes_read.get() + buffer.len() as u64);
        let result = self.fill(offset, &mut buffer);
        ready(result.map(|()| buffer))
    }
    fn write(
        &self,
        _: u64,
        _: Buffer,
        _: Durability,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static {
        refused()
    }
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        refused()
    }
    fn discard(&self, _: u64, _: u64) -> impl Future<Output = io::Result<()>> + 'static {
        refused()
    }
    fn write_zeroes(
        &self,
        _: u64,
        _: u64,
        _: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        refused()
    }
}
