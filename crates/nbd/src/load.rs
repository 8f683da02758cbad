//! A closed-loop load generator: a fixed number of requests in flight, each answer followed by the next request.
//!
//! One task, no task per request: requests are encoded into one piece, replies are parsed where they were received and
//! read data is stepped over. So the generator costs a fraction of what it measures. Every reply's magic, error and
//! cookie is checked.

use crate::client::{ExportInfo, Greeter, ReplyHeader, nonsense};
use crate::inbox::Inbox;
use crate::proto::{self, chunk, command};
use brigade_env::{Env, Segment, Stream};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// What load to make.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Bytes of a request; a multiple of the export's minimum.
    pub block_bytes: u32,
    /// Requests in flight.
    pub depth: usize,
    /// How many of 100 requests are reads.
    pub read_percent: u32,
    /// How long new requests are made.
    pub duration: Duration,
    /// First byte of the range that is used.
    pub range_start: u64,
    /// Bytes of that range; 0 for all of the export.
    pub range_bytes: u64,
    /// One after the other instead of at random.
    pub is_sequential: bool,
    /// Structured replies.
    pub structured: bool,
    /// What chance starts from.
    pub seed: u64,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            block_bytes: 4096,
            depth: 32,
            read_percent: 100,
            duration: Duration::from_secs(1),
            range_start: 0,
            range_bytes: 0,
            is_sequential: false,
            structured: false,
            seed: 1,
        }
    }
}

/// What it came to.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Completed requests.
    pub requests: u64,
    /// Of them, reads.
    pub reads: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// From the first request to the last reply.
    pub elapsed: Duration,
    /// Times between a request and its reply, in turns of the generator's loop.
    pub latencies: Latencies,
}

impl LoadReport {
    /// Requests per second.
    pub fn iops(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Counts of latencies in classes 1/16 of an octave or less apart.
#[derive(Clone, Debug)]
pub struct Latencies {
    counts: Vec<u64>,
}

const SUB_BITS: u32 = 4;
const CLASSES: usize = 64 << SUB_BITS;

impl Default for Latencies {
    fn default() -> Self {
        Latencies {
            counts: vec![0; CLASSES],
        }
    }
}

impl Latencies {
    /// Counts one.
    pub fn add(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.counts[class_of(nanos)] += 1;
    }

    /// The latency `fraction` (0 to 1) of all are at most as long as, to within 1/16; zero if there are none.
    pub fn quantile(&self, fraction: f64) -> Duration {
        let total: u64 = self.counts.iter().sum();
        let wanted = ((total as f64 * fraction).ceil() as u64).max(1);
        let mut seen = 0;
        for (class, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(ceiling_of(class));
            }
        }
        Duration::ZERO
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Latencies) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
    }
}

fn class_of(nanos: u64) -> usize {
    let octave = nanos.max(1 << SUB_BITS).ilog2() - SUB_BITS;
    ((octave as usize) << SUB_BITS) + (nanos >> octave) as usize
}

fn ceiling_of(class: usize) -> u64 {
    if class < 2 << SUB_BITS {
        return class as u64;
    }
    let octave = (class >> SUB_BITS) - 1;
    let mantissa = (class - (octave << SUB_BITS)) as u64;
    ((mantissa + 1) << octave) - 1
}

struct Slot {
    is_read: bool,
    is_busy: bool,
    sent: Duration,
}

struct Load {
    options: LoadOptions,
    blocks: u64,
    next_block: u64,
    random: u64,
    slots: Vec<Slot>,
    idle: Vec<usize>,
    report: LoadReport,
}

impl Load {
    fn new(options: LoadOptions, info: &ExportInfo) -> io::Result<Self> {
        let whole = info.size_bytes.saturating_sub(options.range_start);
        let range = if options.range_bytes == 0 {
            whole
        } else {
            options.range_bytes.min(whole)
        };
        let blocks = range
            .checked_div(u64::from(options.block_bytes))
            .unwrap_or(0);
        if blocks == 0 || options.depth == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "load needs a block, a range and a depth",
            ));
        }
        let slots = (0..options.depth)
            .map(|_| Slot {
                is_read: true,
                is_busy: false,
                sent: Duration::ZERO,
            })
            .collect();
        let idle = (0..options.depth).rev().collect();
        let random = options.seed;
        Ok(Load {
            options,
            blocks,
            next_block: 0,
            random,
            slots,
            idle,
            report: LoadReport::default(),
        })
    }

    /// SplitMix64: a few instructions, and good enough to spread blocks.
    fn chance(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn pick(&mut self) -> (bool, u64) {
        let chance = self.chance();
        let block = if self.options.is_sequential {
            let block = self.next_block;
            self.next_block = (block + 1) % self.blocks;
            block
        } else {
            ((u128::from(chance) * u128::from(self.blocks)) >> 64) as u64
        };
        let is_read = (chance & 0xffff) % 100 < u64::from(self.options.read_percent);
        (
            is_read,
            self.options.range_start + block * u64::from(self.options.block_bytes),
        )
    }

    fn requests<E: Env>(&mut self, env: &E, now: Duration) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut run = Vec::with_capacity(self.idle.len() * 28);
        while let Some(nr) = self.idle.pop() {
            let (is_read, offset) = self.pick();
            self.slots[nr] = Slot {
                is_read,
                is_busy: true,
                sent: now,
            };
            let kind = if is_read {
                command::READ
            } else {
                command::WRITE
            };
            let header =
                proto::request_header(0, kind, nr as u64, offset, self.options.block_bytes);
            run.extend_from_slice(header.as_slice());
            if !is_read {
                segments.push(Segment::Bytes(std::mem::take(&mut run)));
                segments.push(Segment::Buffer(
                    env.buffers().get(self.options.block_bytes as usize),
                ));
            }
        }
        if !run.is_empty() {
            segments.push(Segment::Bytes(run));
        }
        segments
    }

    /// Notes a reply and says how many bytes follow its header.
    fn reply(&mut self, header: ReplyHeader, now: Duration) -> io::Result<usize> {
        let block_bytes = self.options.block_bytes as usize;
        let (cookie, follows) = match header {
            ReplyHeader::Simple { cookie, error: 0 } => (cookie, 0),
            ReplyHeader::Simple { error, .. } => {
                return Err(io::Error::from_raw_os_error(
                    i32::try_from(error).unwrap_or(5),
                ));
            }
            ReplyHeader::Chunk {
                cookie,
                flags: chunk::DONE,
                kind: chunk::OFFSET_DATA,
                length,
            } => {
                if length as usize != block_bytes + 8 {
                    return Err(nonsense("data chunk of a wrong length"));
                }
                (cookie, 8)
            }
            ReplyHeader::Chunk { .. } => {
                return Err(nonsense("a reply the load generator does not expect"));
            }
        };
        let nr = usize::try_from(cookie).unwrap_or(usize::MAX);
        let slot = self
            .slots
            .get_mut(nr)
            .filter(|slot| slot.is_busy)
            .ok_or_else(|| nonsense("reply to no request"))?;
        slot.is_busy = false;
        self.report.latencies.add(now.saturating_sub(slot.sent));
        self.report.requests += 1;
        self.report.reads += u64::from(slot.is_read);
        self.report.bytes += block_bytes as u64;
        let data = if slot.is_read { block_bytes } else { 0 };
        self.idle.push(nr);
        Ok(follows + data)
    }
}

/// Opens `export` on a fresh stream and keeps it busy.
pub async fn run<E: Env, S: Stream>(
    env: &E,
    stream: S,
    export: &str,
    options: LoadOptions,
) -> io::Result<LoadReport> {
    let stream = Rc::new(stream);
    let mut inbox = Inbox::new(stream.clone(), env.buffers());
    let info = Greeter {
        stream: &*stream,
        inbox: &mut inbox,
    }
    .open(export, options.structured)
    .await?;
    let start = env.now();
    let deadline = start.saturating_add(options.duration);
    let depth = options.depth;
    let mut load = Load::new(options, &info)?;
    let mut now = start;
    while now < deadline || load.idle.len() < depth {
        if now < deadline && !load.idle.is_empty() {
            let segments = load.requests(env, now);
            stream.send(segments).await?;
        }
        if !inbox.fill().await? {
            return Err(nonsense("closed the connection under load"));
        }
        now = env.now();
        while let Some((header, used)) = ReplyHeader::parse(inbox.bytes())? {
            inbox.consume(used);
            let follows = load.reply(header, now)?;
            inbox.skip(follows).await?;
        }
    }
    load.report.elapsed = now.saturating_sub(start);
    let goodbye = proto::request_header(0, command::DISCONNECT, 0, 0, 0);
    stream.send(vec![goodbye.segment()]).await?;
    stream.shutdown();
    Ok(load.report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_never_less_than_the_latency_and_at_most_a_sixteenth_more() {
        for nanos in (0..64).chain(
            (6..60).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + (1 << (bit - 2))]),
        ) {
            let mut latencies = Latencies::default();
            latencies.add(Duration::from_nanos(nanos));
            let told = latencies.quantile(0.5).as_nanos() as u64;
            assert!(
                told >= nanos && told <= nanos + nanos / 16 + 1,
                "{nanos} told as {told}"
            );
        }
    }

    #[test]
    fn quantiles_come_in_order() {
        let mut latencies = Latencies::default();
        for micros in 1..=1000 {
            latencies.add(Duration::from_micros(micros));
        }
        let p50 = latencies.quantile(0.5).as_micros();
        let p99 = latencies.quantile(0.99).as_micros();
        assert!(
            (500..=532).contains(&p50) && (990..=1054).contains(&p99),
            "{p50} {p99}"
        );
    }
}
