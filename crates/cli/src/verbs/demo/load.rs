//! The demo's load and the model it is compared with.
//!
//! Each block of the volume has a version; its bytes follow from number and version. Workers own disjoint parts of the
//! volume, so each knows what its reads must give without asking the others.

use brigade::Handle;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Granularity of the model.
pub const BLOCK_BYTES: u64 = 4096;
const WORKERS: usize = 4;
const REQUEST_BLOCKS_MAX: u64 = 32;
const SCAN_BYTES: usize = 1 << 20;

/// Version of each block.
pub struct Model {
    versions: Vec<u32>,
}

impl Model {
    /// All blocks at version 0.
    pub fn new(blocks: u64) -> Model {
        Model {
            versions: vec![0; blocks as usize],
        }
    }
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Bytes read and compared.
    pub bytes_compared: u64,
}

impl Totals {
    fn add(&mut self, other: Totals) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.flushes += other.flushes;
        self.bytes_compared += other.bytes_compared;
    }
}

/// A small random sequence (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// The bytes of a block at a version; never zeros.
fn fill_block(bytes: &mut [u8], block: u64, version: u32) {
    let mut random = Random(block << 32 | u64::from(version));
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
}

fn fill_blocks(bytes: &mut [u8], first: u64, versions: &[u32]) {
    for (index, chunk) in bytes.chunks_exact_mut(BLOCK_BYTES as usize).enumerate() {
        fill_block(chunk, first + index as u64, versions[index]);
    }
}

/// Puts version 0 of everything on the backing file itself, before there is a cache.
pub fn fill(path: &Path, data_offset: u64, model: &Model) -> io::Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let mut bytes = vec![0; SCAN_BYTES];
    for (index, versions) in model
        .versions
        .chunks(SCAN_BYTES / BLOCK_BYTES as usize)
        .enumerate()
    {
        let bytes = &mut bytes[..versions.len() * BLOCK_BYTES as usize];
        let first = (index * SCAN_BYTES) as u64 / BLOCK_BYTES;
        fill_blocks(bytes, first, versions);
        file.write_all_at(bytes, data_offset + first * BLOCK_BYTES)?;
    }
    Ok(())
}

/// Puts the volume under load until the time is over or `is_done` is set. The first mismatch ends it.
pub fn run(
    handle: &Handle,
    model: &mut Model,
    duration: Duration,
    is_done: &AtomicBool,
) -> io::Result<Totals> {
    let deadline = Instant::now() + duration;
    let part = model.versions.len().div_ceil(WORKERS).max(1);
    std::thread::scope(|scope| {
        let workers: Vec<_> = model
            .versions
            .chunks_mut(part)
            .enumerate()
            .map(|(index, versions)| {
                let first = (index * part) as u64;
                scope.spawn(move || {
                    let mut worker = Worker::new(handle, first, versions);
                    let outcome = worker.run(deadline, is_done);
                    is_done.fetch_or(outcome.is_err(), Ordering::Relaxed);
                    outcome.map(|()| worker.totals)
                })
            })
            .collect();
        let mut totals = Totals::default();
        for worker in workers {
            totals.add(
                worker
                    .join()
                    .map_err(|_| io::Error::other("a worker died"))??,
            );
        }
        Ok(totals)
    })
}

struct Worker<'a> {
    handle: &'a Handle,
    first: u64,
    versions: &'a mut [u32],
    random: Random,
    totals: Totals,
    bytes: Vec<u8>,
    expected: Vec<u8>,
}

impl<'a> Worker<'a> {
    fn new(handle: &'a Handle, first: u64, versions: &'a mut [u32]) -> Self {
        let room = (REQUEST_BLOCKS_MAX * BLOCK_BYTES) as usize;
        let random = Random(first + 1);
        Worker {
            handle,
            first,
            versions,
            random,
            totals: Totals::default(),
            bytes: vec![0; room],
            expected: vec![0; room],
        }
    }

    fn run(&mut self, deadline: Instant, is_done: &AtomicBool) -> io::Result<()> {
        while Instant::now() < deadline && !is_done.load(Ordering::Relaxed) {
            match self.random.below(100) {
                0..=64 => self.read()?,
                65..=98 => self.write()?,
                _ => {
                    self.handle.flush(0)?;
                    self.totals.flushes += 1;
                }
            }
        }
        Ok(())
    }

    /// Nine of ten requests go to the first tenth of the part; most are small.
    fn choose(&mut self) -> (usize, usize) {
        let blocks = self.versions.len() as u64;
        let hot = blocks.div_ceil(10);
        let start = if self.random.below(10) < 9 {
            self.random.below(hot)
        } else {
            self.random.below(blocks)
        };
        let length = if self.random.below(4) < 3 {
            1
        } else {
            1 + self.random.below(REQUEST_BLOCKS_MAX)
        };
        (start as usize, length.min(blocks - start) as usize)
    }

    fn read(&mut self) -> io::Result<()> {
        let (start, length) = self.choose();
        let block = self.first + start as u64;
        let size = length * BLOCK_BYTES as usize;
        let (bytes, expected) = (&mut self.bytes[..size], &mut self.expected[..size]);
        self.handle.read(0, block * BLOCK_BYTES, bytes)?;
        fill_blocks(expected, block, &self.versions[start..start + length]);
        compare(bytes, expected, block)?;
        self.totals.reads += 1;
        self.totals.bytes_compared += size as u64;
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let (start, length) = self.choose();
        let block = self.first + start as u64;
        let versions = &mut self.versions[start..start + length];
        versions.iter_mut().for_each(|version| *version += 1);
        let bytes = &mut self.bytes[..length * BLOCK_BYTES as usize];
        fill_blocks(bytes, block, versions);
        let fua = self.random.below(50) == 0;
        self.handle.write(0, block * BLOCK_BYTES, bytes, fua)?;
        self.totals.writes += 1;
        Ok(())
    }
}

/// Compares the whole volume; gives the bytes compared.
pub fn verify(handle: &Handle, model: &Model) -> io::Result<u64> {
    let mut bytes = vec![0; SCAN_BYTES];
    let mut expected = vec![0; SCAN_BYTES];
    let mut block = 0;
    for versions in model.versions.chunks(SCAN_BYTES / BLOCK_BYTES as usize) {
        let size = versions.len() * BLOCK_BYTES as usize;
        handle.read(0, block * BLOCK_BYTES, &mut bytes[..size])?;
        fill_blocks(&mut expected[..size], block, versions);
        compare(&bytes[..size], &expected[..size], block)?;
        block += versions.len() as u64;
    }
    Ok(block * BLOCK_BYTES)
}

fn compare(bytes: &[u8], expected: &[u8], first_block: u64) -> io::Result<()> {
    if bytes == expected {
        return Ok(());
    }
    let at = bytes
        .iter()
        .zip(expected)
        .position(|(a, b)| a != b)
        .unwrap_or(0) as u64;
    let offset = first_block * BLOCK_BYTES + at;
    Err(io::Error::other(format!(
        "MISMATCH in the volume at byte {offset} (block {}): not what was written",
        offset / BLOCK_BYTES
    )))
}
