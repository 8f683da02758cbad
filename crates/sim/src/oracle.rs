//! What every sector of a volume may read as.
//!
//! Every write has a number; a sector holds the number and its own address. Per sector two lists of candidates are kept:
//! *live*, what the next read may see, and *kept*, what may be there after the next power loss. A write supersedes an earlier
//! one only if it began after that one had ended, and only for who comes after its own end (live) or once a flush that
//! began after its end, or its own FUA, was acknowledged (kept). A write cut off by a crash may have happened or not, until a
//! read tells; from then on it stays that way.
//!
//! A discard supersedes nothing, as a device may ignore it or a part of it: the sector reads as zeros, as what a device puts
//! there, or as what it held before. Anything older than that would be a flip back.

use crate::disk::DISCARD_FILL;
use std::collections::BTreeSet;

/// The range was discarded: besides what was there before, zeros or what a device puts there.
pub const ANYTHING: u64 = u64::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cand {
    value: u64,
    start: u64,
    end: Option<u64>,
    /// Never acknowledged and never will be: it may be superseded, but supersedes nothing.
    dead: bool,
    /// A read that ended then had seen it.
    seen: u64,
}

impl Cand {
    /// Who comes after its end does not see anything older.
    fn supersedes(&self) -> bool {
        !self.dead && self.value != ANYTHING
    }

    /// Whether a sector that holds this reads so.
    fn reads_as(&self, value: &Result<u64, String>, bytes: &[u8]) -> bool {
        match value {
            Ok(value) if self.value == ANYTHING => *value == 0,
            Ok(value) => self.value == *value,
            Err(_) => self.value == ANYTHING && bytes.iter().all(|byte| *byte == DISCARD_FILL),
        }
    }

    fn old(value: u64, at: u64) -> Self {
        Cand {
            value,
            start: at,
            end: Some(at),
            dead: false,
            seen: u64::MAX,
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Sector {
    live: Vec<Cand>,
    kept: Vec<Cand>,
    /// No write since the last power loss: live and kept are one choice.
    one: bool,
    /// A fault put it in doubt for which nobody is to blame.
    is_harmed: bool,
    /// It is there since then: who began before may have seen what a larger volume had there once.
    born: u64,
    /// What has happened, for messages; empty unless asked for.
    log: Vec<(u64, &'static str, u64)>,
}

impl Sector {
    /// Zeros, since then.
    fn zero(born: u64) -> Self {
        let zero = vec![Cand::old(0, born)];
        Sector {
            live: zero.clone(),
            kept: zero,
            one: true,
            is_harmed: false,
            born,
            log: Vec::new(),
        }
    }

    /// Nothing to learn from a read of the one value there can be.
    fn is_settled(&self) -> bool {
        matches!((&self.live[..], &self.kept[..]), ([live], [_]) if live.end.is_some() && !live.dead && live.value != ANYTHING)
    }
}

/// See the module documentation.
#[derive(Clone, Default)]
pub struct Oracle {
    volume: u64,
    sectors: Vec<Option<Box<Sector>>>,
    touched: BTreeSet<u64>,
    clock: u64,
    next_value: u64,
    reads: BTreeSet<u64>,
    /// Nothing is learned from reads while true (after faults).
    pub blind: bool,
    /// Every sector remembers its story.
    pub keeps_log: bool,
}

/// A write under way.
#[derive(Clone, Copy, Debug)]
pub struct Writing {
    /// What it writes.
    pub value: u64,
    start: u64,
    first: u64,
    count: u64,
}

impl Oracle {
    /// All zeros.
    pub fn new(volume: u64, sectors: u64) -> Self {
        let sectors = vec![None; sectors as usize];
        Oracle {
            volume,
            sectors,
            touched: BTreeSet::new(),
            clock: 1,
            next_value: 1,
            reads: BTreeSet::new(),
            blind: false,
            keeps_log: false,
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Sectors of the volume.
    pub fn size(&self) -> u64 {
        self.sectors.len() as u64
    }

    /// It has another size from now on. What lay behind a smaller one is gone; what is new is zeros, and all of it is read by who reads
    /// what was used.
    pub fn set_size(&mut self, sectors: u64) {
        let (born, was) = (self.tick(), self.size());
        self.sectors.truncate(sectors as usize);
        self.touched.retain(|sector| *sector < sectors);
        let new = (was..sectors).map(|_| Some(Box::new(Sector::zero(born))));
        self.sectors.extend(new);
    }

    /// Sectors of a write that are still there.
    fn left_of(&self, writing: &Writing) -> std::ops::Range<u64> {
        let size = self.size();
        writing.first.min(size)..(writing.first + writing.count).min(size)
    }

    fn sector(&mut self, sector: u64) -> &mut Sector {
        self.sectors[sector as usize].get_or_insert_with(|| Box::new(Sector::zero(0)))
    }

    /// The bytes of a value.
    pub fn fill(&self, value: u64, first: u64, out: &mut [u8]) {
        for (i, chunk) in out.chunks_mut(512).enumerate() {
            let place = (first + i as u64) | self.volume << 48;
            chunk[..8].copy_from_slice(&value.to_le_bytes());
            chunk[8..16].copy_from_slice(&place.to_le_bytes());
            let mut done = 16;
            while done < chunk.len() {
                chunk.copy_within(..done, done);
                done *= 2;
            }
        }
    }

    /// The value that these bytes of a sector are, 0 for zeros; what else they are, if no client wrote them there.
    pub fn value_of(&self, sector: u64, bytes: &[u8]) -> Result<u64, String> {
        let is_whole = bytes[16..] == bytes[..bytes.len() - 16];
        if is_whole && bytes[..16] == [0; 16] {
            return Ok(0);
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let (value, place) = (word(0), word(8));
        if !is_whole || place != (sector | self.volume << 48) {
            return Err(format!(
                "foreign bytes: value {value}, place {:x} of volume {}",
                place & 0xffff_ffff_ffff,
                place >> 48
            ));
        }
        Ok(value)
    }

    fn begin(&mut self, first: u64, count: u64, value: u64, what: &'static str) -> Writing {
        let oldest = self.oldest_read();
        let start = self.tick();
        let keeps_log = self.keeps_log;
        for sector in first..first + count {
            let cand = Cand {
                value,
                start,
                end: None,
                dead: false,
                seen: u64::MAX,
            };
            let s = self.sector(sector);
            let over = s
                .live
                .iter()
                .filter(|c| c.supersedes() && c.end.is_some_and(|end| end < oldest))
                .map(|c| c.start)
                .max();
            if let Some(over) = over {
                s.live
                    .retain(|c| c.end.is_none_or(|end| end >= over) || c.start == over);
            }
            if value == ANYTHING {
                // Whatever an earlier discard allows this one allows too.
                let is_same = |c: &Cand| c.value == ANYTHING && c.end.is_some();
                s.live.retain(|c| !is_same(c));
                s.kept.retain(|c| !is_same(c));
            }
            s.live.push(cand);
            s.kept.push(cand);
            s.one = false;
            if keeps_log {
                s.log.push((start, what, value));
            }
            self.touched.insert(sector);
        }
        Writing {
            value,
            start,
            first,
            count,
        }
    }

    /// A write is about to be asked for.
    pub fn begin_write(&mut self, first: u64, count: u64) -> Writing {
        let value = self.next_value;
        self.next_value += 1;
        self.begin(first, count, value, "write")
    }
    /// Zeroes are about to be asked for.
    pub fn begin_zero(&mut self, first: u64, count: u64) -> Writing {
        self.begin(first, count, 0, "zero")
    }
    /// A discard is about to be asked for.
    pub fn begin_discard(&mut self, first: u64, count: u64) -> Writing {
        self.begin(first, count, ANYTHING, "discard")
    }

    /// It was acknowledged.
    pub fn finish(&mut self, writing: Writing, fua: bool) {
        let end = self.tick();
        let keeps_log = self.keeps_log;
        for sector in self.left_of(&writing) {
            let s = self.sector(sector);
            if keeps_log {
                s.log
                    .push((end, if fua { "ack FUA" } else { "ack" }, writing.value));
            }
            for cand in s
                .live
                .iter_mut()
                .chain(&mut s.kept)
                .filter(|cand| cand.start == writing.start)
            {
                cand.end = Some(end);
            }
            if fua && writing.value != ANYTHING {
                s.kept.retain(|cand| {
                    cand.end.is_none_or(|e| e >= writing.start) || cand.start == writing.start
                });
            }
        }
    }

    /// It failed, or the process ended: it may have happened or not.
    pub fn abandon(&mut self, writing: Writing) {
        let end = self.tick();
        let keeps_log = self.keeps_log;
        for sector in self.left_of(&writing) {
            let s = self.sector(sector);
            if keeps_log {
                s.log.push((end, "never acknowledged", writing.value));
            }
            for cand in s
                .live
                .iter_mut()
                .chain(&mut s.kept)
                .filter(|cand| cand.start == writing.start)
            {
                (cand.end, cand.dead) = (Some(end), true);
            }
        }
    }

    /// A flush is about to be asked for; gives its time.
    pub fn begin_flush(&mut self) -> u64 {
        self.tick()
    }

    /// A flush that began then was acknowledged.
    pub fn finish_flush(&mut self, began: u64) {
        let now = self.tick();
        let keeps_log = self.keeps_log;
        let touched: Vec<u64> = self.touched.iter().copied().collect();
        for sector in touched {
            let s = self.sector(sector);
            let durable = s
                .kept
                .iter()
                .filter(|c| c.supersedes() && c.end.is_some_and(|end| end < began))
                .map(|c| c.start)
                .max();
            if let Some(start) = durable {
                s.kept
                    .retain(|cand| cand.end.is_none_or(|end| end >= start) || cand.start == start);
                if keeps_log && s.log.len() < 200 {
                    s.log.push((now, "flushed since", began));
                }
            }
            if s.kept.len() == 1 && s.live.len() == 1 {
                self.touched.remove(&sector);
            }
        }
    }

    /// A read is about to be asked for; gives its time.
    pub fn begin_read(&mut self) -> u64 {
        let began = self.tick();
        self.reads.insert(began);
        began
    }

    /// A read failed or was cut off.
    pub fn abandon_read(&mut self, began: u64) {
        self.reads.remove(&began);
    }

    /// All readers are gone.
    pub fn forget_reads(&mut self) {
        self.reads.clear();
    }

    fn oldest_read(&self) -> u64 {
        self.reads.first().copied().unwrap_or(u64::MAX)
    }

    /// Judges what a read gave.
    pub fn check(&mut self, began: u64, first: u64, bytes: &[u8], who: &str) {
        let now = self.tick();
        let blind = self.blind;
        let oldest = self.oldest_read().min(began);
        let volume = self.volume;
        self.reads.remove(&began);
        for (i, chunk) in bytes.chunks(512).enumerate() {
            let sector = first + i as u64;
            if sector >= self.size() {
                break;
            }
            let value = self.value_of(sector, chunk);
            let s = self.sector(sector);
            if s.is_harmed || s.born > began || (s.is_settled() && Ok(s.live[0].value) == value) {
                continue;
            }
            // What had been superseded before the read began is not allowed.
            let newest_over = s.live.iter().filter(|c| {
                let is_over = !c.dead && c.end.is_some_and(|end| end < began);
                c.value != ANYTHING && (is_over || c.seen < began)
            });
            let newest_start = newest_over.map(|c| c.start).max().unwrap_or(0);
            let allowed =
                |c: &Cand| c.end.is_none_or(|end| end >= newest_start) || c.start == newest_start;
            let matching: Vec<Cand> = s
                .live
                .iter()
                .filter(|c| allowed(c) && c.reads_as(&value, chunk))
                .copied()
                .collect();
            if matching.is_empty() {
                let allowed: Vec<_> = s
                    .live
                    .iter()
                    .filter(|c| allowed(c))
                    .map(|c| c.value)
                    .collect();
                let log = &s.log[s.log.len().saturating_sub(24)..];
                panic!(
                    "{who}: volume {} sector {sector}: read {value:?}, allowed {allowed:?}\n  live {:?}\n  kept {:?}\n  log {log:?}",
                    volume, s.live, s.kept
                );
            }
            if blind {
                continue;
            }
            let is_quiet = s.live.iter().all(|c| c.end.is_some_and(|end| end < oldest));
            if is_quiet {
                let kept_is_same = s.one;
                s.live = matching.clone();
                if kept_is_same {
                    s.kept = matching;
                }
            } else if let [only] = matching[..]
                && s.live
                    .iter()
                    .all(|c| c.start == only.start || c.end.is_some_and(|end| end < oldest))
            {
                // It was under way, alone, and has been seen: what was there before is gone. (Of two writes under way, a read
                // may find the later one where it looked first and the next read the earlier one where it still stands.)
                let cand = s
                    .live
                    .iter_mut()
                    .find(|c| c.start == only.start)
                    .expect("found just now");
                cand.seen = cand.seen.min(now);
            }
        }
    }

    /// The lights went out: what was volatile may be gone.
    pub fn power_loss(&mut self) {
        let at = self.tick();
        let keeps_log = self.keeps_log;
        let touched: Vec<u64> = self.touched.iter().copied().collect();
        for sector in touched {
            let s = self.sector(sector);
            // Which of them it is shows at the first read.
            s.kept = s
                .kept
                .iter()
                .map(|cand| Cand::old(cand.value, at))
                .collect();
            s.live.clone_from(&s.kept);
            s.one = true;
            if keeps_log {
                s.log.push((at, "power loss", 0));
            }
        }
    }

    /// A fault for which the cache is not to blame put this sector in doubt, for good.
    pub fn harm(&mut self, sector: u64) {
        if sector < self.size() {
            self.sector(sector).is_harmed = true;
        }
    }

    /// Sectors that may read as more than one value, with all of them ([`ANYTHING`] included), once all writes have ended.
    pub fn doubts(&self) -> Vec<(u64, Vec<u64>)> {
        let values = |sector: &Sector| -> Vec<u64> {
            let distinct: BTreeSet<u64> = sector.live.iter().map(|cand| cand.value).collect();
            distinct.into_iter().collect()
        };
        (0..)
            .zip(&self.sectors)
            .filter_map(|(at, sector)| Some((at, values(sector.as_deref()?))))
            .filter(|(_, values)| values.len() > 1 || values == &[ANYTHING])
            .collect()
    }

    /// Sectors ever written.
    pub fn used(&self) -> Vec<u64> {
        (0..self.size())
            .filter(|sector| self.sectors[*sector as usize].is_some())
            .collect()
    }
}

/// The volume (counted from 1) and the sector that data of a client was written for.
pub fn place_of(sector: &[u8]) -> (u64, u64) {
    let place = u64::from_le_bytes(sector[8..16].try_into().expect("eight"));
    (place >> 48, place & 0xffff_ffff_ffff)
}
