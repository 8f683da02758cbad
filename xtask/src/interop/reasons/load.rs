//! Clients that count exactly what they ask for, and what came of it.
//!
//! An episode is one connection with one way of asking: what decides whether a request is cached is different in each.

use crate::nbd::Client;
use crate::pattern::mix;
use crate::process::{Context, Result};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;
const BLOCK: u64 = 4 * KIB;
/// Requests in flight of a client.
const DEPTH: usize = 8;
/// Of a read ahead, always: so the bytes of those that were done follow from their number.
pub const AHEAD_BYTES: u64 = 64 * KIB;
/// What is zeroed or trimmed at once, at most. Where zeroes are stored, each mebibyte is a write.
const CLEAR_BYTES: u64 = 256 * KIB;
/// More than this is never copied into the cache beside a write.
const LONG_WRITE: u64 = 2 * MIB;
const EPISODE: Duration = Duration::from_millis(400);
/// A client that asks for long runs leaves others some of the processors.
const REST: Duration = Duration::from_millis(2);

/// What is counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Of bytes.
    Read,
    /// Of bytes, zeroes that are stored among them.
    Write,
    /// Trim.
    Discard,
    /// Zeroes that are not stored.
    Zeroes,
    /// Flush.
    Flush,
    /// Read ahead.
    Prefetch,
}

/// How many, and of how many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Requests that were answered.
    pub requests: u64,
    /// Those that were answered with an error.
    pub failed: u64,
    /// Bytes of those that were not.
    pub bytes: u64,
}

/// What was asked of each export.
pub type Asked = BTreeMap<(String, Kind), Count>;

/// Where to ask.
#[derive(Clone, Debug)]
pub struct Export {
    /// Name, a label.
    pub name: String,
    /// Bytes from its beginning on that are used.
    pub bytes: u64,
    /// It has no backing device.
    pub is_flash: bool,
}

/// A way of asking.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Anywhere, reads and writes, some of them durable at once.
    Random,
    /// The same few places again and again.
    Few,
    /// Long runs.
    Run { is_write: bool },
    /// Anywhere, not by blocks.
    Unaligned,
    /// Trims, zeroes of both kinds.
    Clears,
    /// Reads ahead, and reads of that.
    Ahead,
    /// Each write is flushed.
    Flushes,
    /// Writes too long to be copied.
    Long,
}

const WAYS: [Way; 11] = [
    Way::Random,
    Way::Random,
    Way::Random,
    Way::Few,
    Way::Run { is_write: false },
    Way::Run { is_write: true },
    Way::Unaligned,
    Way::Clears,
    Way::Ahead,
    Way::Flushes,
    Way::Long,
];

/// A client.
pub struct Asker {
    /// Where the server listens.
    pub socket: PathBuf,
    /// What may be asked.
    pub exports: Vec<Export>,
    /// Start of its randomness.
    pub seed: u64,
}

/// One connection.
struct Session<'a> {
    client: Client,
    export: &'a Export,
    under_way: HashMap<u64, (Kind, u64)>,
    chance: u64,
    at: u64,
    asked: &'a mut Asked,
}

impl Asker {
    /// Asks until it is over, and for its last answers.
    pub fn run(mut self, is_over: &AtomicBool) -> Result<Asked> {
        let mut asked = Asked::new();
        while !is_over.load(Ordering::Relaxed) {
            self.seed = mix(self.seed);
            // The first ones are asked more, the last one, which answers fastest, least.
            let (one, other) = (self.seed >> 32, self.seed >> 48);
            let count = self.exports.len() as u64;
            let export = &self.exports[(one % count).min(other % count) as usize];
            let way = WAYS[((self.seed >> 16) % WAYS.len() as u64) as usize];
            let session = Session {
                client: Client::connect(&self.socket, &export.name)?,
                export,
                under_way: HashMap::new(),
                chance: self.seed,
                at: 0,
                asked: &mut asked,
            };
            let what = format!("{way:?} of {}", export.name);
            session.episode(way, is_over).context(what)?;
        }
        Ok(asked)
    }
}

impl Session<'_> {
    fn episode(mut self, way: Way, is_over: &AtomicBool) -> Result<()> {
        let start = Instant::now();
        self.at = self.place(MIB) / MIB * MIB;
        while start.elapsed() < EPISODE && !is_over.load(Ordering::Relaxed) {
            self.ask(way);
            self.client.push()?;
            while self.under_way.len() >= DEPTH {
                self.answer()?;
            }
            if matches!(way, Way::Run { .. } | Way::Long) {
                std::thread::sleep(REST);
            }
        }
        while !self.under_way.is_empty() {
            self.answer()?;
        }
        self.client.disconnect();
        Ok(())
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.chance = self.chance.wrapping_add(1);
        mix(self.chance) % bound.max(1)
    }

    /// First byte of a random block that has so many bytes behind it.
    fn place(&mut self, bytes: u64) -> u64 {
        let blocks = self.export.bytes.saturating_sub(bytes) / BLOCK;
        self.below(blocks) * BLOCK
    }

    fn ask(&mut self, way: Way) {
        let dice = self.below(100);
        match way {
            Way::Random => {
                let bytes = (1 + self.below(16)) * BLOCK;
                let at = self.place(bytes);
                match dice {
                    ..50 => self.read(at, bytes),
                    _ => self.write(at, bytes, dice >= 90),
                }
            }
            Way::Few => {
                let at = self.below(64) * BLOCK;
                match dice {
                    ..80 => self.read(at, BLOCK),
                    _ => self.write(at, BLOCK, false),
                }
            }
            Way::Run { is_write } => {
                let bytes = 128 * KIB;
                if self.at + bytes > self.export.bytes {
                    self.at = 0;
                }
                let at = self.at;
                self.at += bytes;
                match is_write {
                    true => self.write(at, bytes, false),
                    false => self.read(at, bytes),
                }
            }
            Way::Unaligned => {
                let bytes = (1 + self.below(63)) * SECTOR;
                let at = self.place(64 * KIB) + self.below(8) * SECTOR;
                match dice {
                    ..60 => self.read(at, bytes),
                    _ => self.write(at, bytes, dice >= 90),
                }
            }
            Way::Clears => self.clear(dice),
            Way::Ahead => {
                let at = self.place(AHEAD_BYTES);
                match dice {
                    ..50 => {
                        let cookie = self.client.send_cache(at, AHEAD_BYTES as u32);
                        self.sent(cookie, Kind::Prefetch, AHEAD_BYTES);
                    }
                    _ => self.read(at, AHEAD_BYTES),
                }
            }
            Way::Flushes => {
                let at = self.place(BLOCK);
                self.write(at, BLOCK, false);
                let cookie = self.client.send_flush();
                self.sent(cookie, Kind::Flush, 0);
            }
            Way::Long => {
                let at = self.place(LONG_WRITE);
                match dice {
                    ..30 => self.read(at, LONG_WRITE),
                    _ => self.write(at, LONG_WRITE, false),
                }
            }
        }
    }

    fn read(&mut self, at: u64, bytes: u64) {
        let cookie = self.client.send_read(at, bytes as usize);
        self.sent(cookie, Kind::Read, bytes);
    }

    fn write(&mut self, at: u64, bytes: u64, fua: bool) {
        let byte = self.below(255) as u8 + 1;
        let data = vec![byte; bytes as usize];
        let cookie = self.client.send_write(at, &data, fua);
        self.sent(cookie, Kind::Write, bytes);
    }

    fn clear(&mut self, dice: u64) {
        let bytes = (1 + self.below(CLEAR_BYTES / BLOCK)) * BLOCK;
        let at = self.place(bytes);
        let (length, fua) = (bytes as u32, dice.is_multiple_of(5));
        match dice {
            ..40 => {
                let cookie = self.client.send_trim(at, length, fua);
                self.sent(cookie, Kind::Discard, bytes);
            }
            40..70 => {
                let cookie = self.client.send_zeroes(at, length, fua, true);
                self.sent(cookie, Kind::Zeroes, bytes);
            }
            _ => {
                let cookie = self.client.send_zeroes(at, length, fua, false);
                let kind = match self.export.is_flash {
                    true => Kind::Write,
                    false => Kind::Zeroes,
                };
                self.sent(cookie, kind, bytes);
            }
        }
    }

    fn sent(&mut self, cookie: u64, kind: Kind, bytes: u64) {
        self.under_way.insert(cookie, (kind, bytes));
    }

    fn answer(&mut self) -> Result<()> {
        let reply = self.client.receive()?;
        let asked = self.under_way.remove(&reply.cookie);
        let (kind, bytes) = asked.ok_or("an answer to no request")?;
        let key = (self.export.name.clone(), kind);
        let count = self.asked.entry(key).or_default();
        count.requests += 1;
        match reply.error {
            0 => count.bytes += bytes,
            _ => count.failed += 1,
        }
        Ok(())
    }
}

/// All of it together.
pub fn add(all: &mut Asked, more: Asked) {
    for (key, count) in more {
        let sum = all.entry(key).or_default();
        sum.requests += count.requests;
        sum.failed += count.failed;
        sum.bytes += count.bytes;
    }
}
