//! A client that only looks how long an answer takes: one small write and one small read every few milliseconds, one at a time, in a
//! range of its own, whose content it knows.
//!
//! On a busy machine a client is late by itself. So there is a second loop that only sleeps, and tells by how much too long: a
//! pause that both saw is the machine's.

use crate::nbd::Client;
use crate::pattern::{Content, SECTOR, classify, fill, mix};
use crate::process::{Context, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a request.
const BLOCK: u64 = 4096;
/// Rest between two pairs.
const REST: Duration = Duration::from_millis(4);
/// Every so many writes are followed by a flush, which counts like them.
const FLUSH_EVERY: u64 = 16;

/// How long something took, and when that was.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// When it was asked.
    pub sent: Instant,
    /// How long it took.
    pub took: Duration,
}

/// What a probe wrote where, and what it saw.
pub struct Seen {
    /// Export.
    pub export: String,
    /// Times of requests, in order.
    pub samples: Vec<Sample>,
    /// First byte of its range.
    start: u64,
    tags: BTreeMap<u64, u64>,
}

/// A probe at work.
pub struct Probe {
    thread: JoinHandle<Result<Seen>>,
    is_over: Arc<AtomicBool>,
}

impl Probe {
    /// Begins to probe `blocks` blocks of an export from byte `start` on.
    pub fn start(socket: &Path, export: &str, start: u64, blocks: u64, seed: u64) -> Result<Probe> {
        let client = Client::connect(socket, export)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let mut work = Work {
            client,
            blocks,
            seed,
            count: 0,
            writes: 0,
            seen: Seen {
                export: export.into(),
                samples: Vec::new(),
                start,
                tags: BTreeMap::new(),
            },
        };
        let over = is_over.clone();
        let thread = std::thread::spawn(move || {
            for block in 0..blocks {
                work.write(block)?;
            }
            work.seen.samples.clear();
            while !over.load(Ordering::Relaxed) {
                work.pair()?;
                std::thread::sleep(REST);
            }
            work.client.flush()?;
            work.client.disconnect();
            Ok(work.seen)
        });
        Ok(Probe { thread, is_over })
    }

    /// Whether it goes on.
    pub fn is_alive(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Ends it.
    pub fn end(self) -> Result<Seen> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "a probe panicked")?
    }
}

struct Work {
    client: Client,
    blocks: u64,
    seed: u64,
    count: u64,
    writes: u64,
    seen: Seen,
}

impl Work {
    fn pair(&mut self) -> Result<()> {
        self.count += 1;
        let chance = mix(self.seed.wrapping_add(self.count));
        self.write(chance % self.blocks)?;
        let sent = Instant::now();
        let block = (chance >> 32) % self.blocks;
        self.seen.check(&mut self.client, block)?;
        self.note(sent);
        if self.count.is_multiple_of(FLUSH_EVERY) {
            let sent = Instant::now();
            self.client.flush().context(self.seen.export.as_str())?;
            self.note(sent);
        }
        Ok(())
    }

    fn note(&mut self, sent: Instant) {
        let took = sent.elapsed();
        self.seen.samples.push(Sample { sent, took });
    }

    fn write(&mut self, block: u64) -> Result<()> {
        self.writes += 1;
        let tag = (self.seed << 24) | self.writes;
        let at = self.seen.start + block * BLOCK;
        let mut data = [0; BLOCK as usize];
        fill(&mut data, at / SECTOR as u64, tag);
        let sent = Instant::now();
        let done = self.client.write_at(at, &data, false);
        done.context(format!("{}: write at {at}", self.seen.export))?;
        self.note(sent);
        self.seen.tags.insert(block, tag);
        Ok(())
    }
}

impl Seen {
    fn check(&self, client: &mut Client, block: u64) -> Result<()> {
        let at = self.start + block * BLOCK;
        let read = client.read_at(at, BLOCK as usize);
        let bytes = read.context(format!("{}: read at {at}", self.export))?;
        let wanted = self
            .tags
            .get(&block)
            .map_or(Content::Zeros, |tag| Content::Tag(*tag));
        for (sector, data) in (at / SECTOR as u64..).zip(bytes.chunks(SECTOR)) {
            let found = classify(data, sector);
            if found != wanted {
                return Err(format!(
                    "{}: sector {sector}: want {wanted:?}, found {found:?}",
                    self.export
                ));
            }
        }
        Ok(())
    }

    /// Reads all of its range again.
    pub fn verify(&self, socket: &Path, export: &str) -> Result<u64> {
        let mut client = Client::connect(socket, export)?;
        for block in self.tags.keys() {
            self.check(&mut client, *block)?;
        }
        client.disconnect();
        Ok(self.tags.len() as u64)
    }
}

/// A loop that does nothing but sleep.
pub struct Idler {
    thread: JoinHandle<Vec<Sample>>,
    is_over: Arc<AtomicBool>,
}

impl Idler {
    /// Begins.
    pub fn start() -> Idler {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let thread = std::thread::spawn(move || {
            let mut samples = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let sent = Instant::now();
                std::thread::sleep(REST);
                let took = sent.elapsed().saturating_sub(REST);
                samples.push(Sample { sent, took });
            }
            samples
        });
        Idler { thread, is_over }
    }

    /// By how much each sleep was too long.
    pub fn end(self) -> Vec<Sample> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

/// The longest of those that were under way at any time between two moments.
pub fn longest(samples: &[Sample], from: Instant, to: Instant) -> Duration {
    let during = |sample: &&Sample| sample.sent < to && sample.sent + sample.took >= from;
    let took = samples.iter().filter(during).map(|sample| sample.took);
    took.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_belongs_to_every_interval_that_it_touches() {
        let zero = Instant::now();
        let at = |ms: u64| zero + Duration::from_millis(ms);
        let sample = |sent, took| Sample {
            sent: at(sent),
            took: Duration::from_millis(took),
        };
        let samples = [sample(0, 1), sample(50, 100), sample(160, 2)];
        let longest = |from, to| longest(&samples, at(from), at(to)).as_millis();
        assert_eq!(longest(0, 40), 1);
        assert_eq!(longest(0, 60), 100);
        assert_eq!(longest(120, 170), 100);
        assert_eq!(longest(155, 300), 2);
        assert_eq!(longest(300, 400), 0);
    }
}
