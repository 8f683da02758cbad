//! A disk in memory with a volatile write cache, and everything that may go wrong with it.
//!
//! # What may be lost
//!
//! Must survive: what a flush covered (it had completed before the flush began) and what was written durably. May go at
//! a power loss: everything else, per block that the disk writes atomically, each block falling back to an older version
//! of its own, so any order and any tear. At `kill -9` only writes in flight are in doubt: whole, some blocks of them, or
//! nothing arrives. A discard leaves zeros behind or something else, or is ignored, all of it or some blocks.
//!
//! # The envelope of faults
//!
//! What the cache has to stand, written down before it is injected. "Told" means the request that needed it fails, or is
//! served from somewhere that has the same data.
//!
//! | fault | zone | must hold |
//! | --- | --- | --- |
//! | read fails | any | told; nothing else changes; an opening fails with one error and succeeds later |
//! | write fails (EIO, ENOSPC), perhaps arrived in part | data | told; the sectors of that write are old or new |
//! | | metadata, superblocks, a flush | the set (or volume) takes no more writes; after a restart everything acknowledged is there |
//! | device gone for a while | any | as if everything in that time failed |
//! | spike of latency | any | nothing, but everything ends |
//! | write lost, or lands elsewhere, and reported as done | data | only sectors of that write, and those it landed on, may read wrong |
//! | | metadata | no panic, no hang; not injected into lives that go on (no checksum can tell an older node from the newest) |
//! | bit rot at rest | data | only that sector may read wrong, as bcache has no checksums of data |
//! | | superblock, gen table | noticed: refused with one error, or repaired from elsewhere; nothing reads wrong |
//! | | UUID table, journal, nodes | no panic, no hang; one error or an opening. (The table has no checksum; the newest entry and the last set of a node cannot be told from torn ones.) |
//! | device shorter than it was | whole | refused, nothing written; at full length everything is there |

use crate::exec::{Chance, World};
use crate::image::Image;
use brigade_env::{Buffer, Device, Durability, Env, Geometry};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// What some disks fill discarded blocks with.
pub const DISCARD_FILL: u8 = 0x5a;
const SECTOR: usize = 512;
const EIO: i32 = 5;
const ENXIO: i32 = 6;
const ENOSPC: i32 = 28;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process dies; the devices live on.
    Kill,
    /// Everything dies.
    PowerLoss,
}

/// Kinds of faults, for counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// EIO on a read.
    Read,
    /// EIO on a write.
    Write,
    /// EIO on a flush.
    Flush,
    /// ENOSPC on a write.
    NoSpace,
    /// A delay of seconds.
    Spike,
    /// Failed since the device was gone.
    Gone,
    /// Reported as done, never done.
    Lost,
    /// Reported as done, done elsewhere.
    Misdirected,
    /// A bit turned at rest.
    Rot,
    /// Shorter than before.
    Short,
}

/// Names of [`Kind`], in order.
pub const KINDS: [&str; 10] = [
    "read EIO",
    "write EIO",
    "flush EIO",
    "ENOSPC",
    "latency spike",
    "device gone",
    "lost write",
    "misdirected write",
    "bit rot",
    "short device",
];

/// Faults to come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Writes until one fails.
    pub write_in: Option<u64>,
    /// Flushes until one fails.
    pub flush_in: Option<u64>,
    /// Reads until one fails.
    pub read_in: Option<u64>,
    /// Writes until one finds no space.
    pub no_space_in: Option<u64>,
    /// I/Os of any kind until one fails.
    pub any_in: Option<u64>,
    /// I/Os until the device goes, and for how long.
    pub gone_in: Option<(u64, Duration)>,
    /// Every so-many-th read fails.
    pub reads_each: Option<u64>,
    /// Every so-many-th write of clients' data fails.
    pub data_each: Option<u64>,
    /// How many of a hundred I/Os take seconds.
    pub spike_percent: u64,
    /// Writes of data until one is lost.
    pub lost_in: Option<u64>,
    /// Writes of data until one lands on other data.
    pub misdirected_in: Option<u64>,
    /// Write faults spare everything before this byte.
    pub from_byte: u64,
}

/// Is told of each sector of data that a lie of the disk put in doubt, by content.
pub type Harm = Rc<dyn Fn(&[u8])>;

/// An I/O, as a [`Pace`] sees it.
#[derive(Clone, Copy, Debug)]
pub enum Io<'a> {
    /// From this byte on.
    Read(u64),
    /// From this byte on; also discards and zeroes.
    Write(u64, &'a [u8]),
    /// A flush.
    Flush,
}

/// Says how long an I/O takes; what it says nothing of is left to chance.
pub type Pace = Rc<dyn Fn(Io<'_>) -> Option<Duration>>;

#[derive(Clone)]
struct InFlight {
    offset: u64,
    data: Rc<Vec<u8>>,
    is_durable: bool,
    /// It is not where it should be.
    is_astray: bool,
}

/// A completed write that a power loss may undo, in part.
#[derive(Clone)]
struct Unflushed {
    stamp: u64,
    sector: u64,
    data: Rc<Vec<u8>>,
    /// It stays; it is listed since earlier ones below it may still be applied.
    is_durable: bool,
}

/// What is left of a disk when nobody uses it.
#[derive(Clone)]
pub struct DiskState {
    /// For messages.
    pub name: String,
    /// Size and units.
    pub geometry: Geometry,
    current: Image,
    durable: Image,
    unflushed: VecDeque<Unflushed>,
    stamp: u64,
    in_flight: BTreeMap<u64, InFlight>,
    next_io: u64,
    /// Faults to come.
    pub faults: Faults,
    /// Faults that came.
    pub faults_happened: u64,
    /// Faults that came, by [`Kind`].
    pub happened: [u64; KINDS.len()],
    gone_until: Duration,
    /// Writes so far.
    pub writes: u64,
    /// Reads, writes and flushes so far.
    pub ios: u64,
    /// See [`Harm`].
    pub harm: Option<Harm>,
    /// See [`Pace`].
    pub pace: Option<Pace>,
}

impl DiskState {
    /// It has become larger, by zeros.
    pub fn grow(&mut self, sectors: u64) {
        let bytes = sectors * SECTOR as u64;
        assert!(bytes >= self.geometry.size_bytes);
        self.current.grow(bytes);
        self.durable.grow(bytes);
        self.geometry.size_bytes = bytes;
    }

    /// It says from now on that it is best written so many bytes at once.
    pub fn be_striped(&mut self, optimal_io_bytes: u32, partial_stripes_expensive: bool) {
        self.geometry.optimal_io_bytes = optimal_io_bytes;
        self.geometry.partial_stripes_expensive = partial_stripes_expensive;
    }

    /// A disk of zeros.
    pub fn new(name: &str, geometry: Geometry) -> Rc<RefCell<Self>> {
        let image = Image::new(geometry.size_bytes);
        Rc::new(RefCell::new(DiskState {
            name: name.into(),
            geometry,
            current: image.clone(),
            durable: image,
            unflushed: VecDeque::new(),
            stamp: 0,
            in_flight: BTreeMap::new(),
            next_io: 0,
            faults: Faults::default(),
            faults_happened: 0,
            happened: [0; KINDS.len()],
            gone_until: Duration::ZERO,
            writes: 0,
            ios: 0,
            harm: None,
            pace: None,
        }))
    }

    /// Another disk with the same past.
    pub fn fork(&self) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(self.clone()))
    }

    /// What is there.
    pub fn peek(&self, offset: u64, out: &mut [u8]) {
        self.current.read(offset / SECTOR as u64, out);
    }

    /// All that is there.
    pub fn image(&self) -> Image {
        self.current.clone()
    }

    /// Completed writes that a power loss may undo.
    pub fn unflushed(&self) -> usize {
        self.unflushed.len()
    }

    /// Puts bytes there for good, as a formatter would.
    pub fn poke(&mut self, offset: u64, bytes: &[u8]) {
        self.store(offset / SECTOR as u64, Rc::new(bytes.to_vec()), true);
    }

    fn store(&mut self, sector: u64, data: Rc<Vec<u8>>, is_durable: bool) {
        self.current.write(sector, &data);
        if is_durable && self.unflushed.is_empty() {
            self.durable.write(sector, &data);
            return;
        }
        self.unflushed.push_back(Unflushed {
            stamp: self.stamp,
            sector,
            data,
            is_durable,
        });
    }

    fn complete_write(&mut self, io: u64) {
        if let Some(write) = self.in_flight.remove(&io) {
            if write.is_astray && !self.harm_below(&write) {
                return;
            }
            self.stamp += 1;
            self.store(write.offset / SECTOR as u64, write.data, write.is_durable);
        }
    }

    /// Tells whose data a write that went astray is about to overwrite. False if there is anything but data by now.
    fn harm_below(&self, write: &InFlight) -> bool {
        let mut victim = vec![0; write.data.len()];
        self.current.read(write.offset / SECTOR as u64, &mut victim);
        let is_data = victim.chunks(SECTOR).all(is_pattern);
        if let Some(harm) = self.harm.as_ref().filter(|_| is_data) {
            victim.chunks(SECTOR).for_each(|sector| harm(sector));
        }
        is_data
    }

    fn complete_flush(&mut self, up_to: u64) {
        while self
            .unflushed
            .front()
            .is_some_and(|write| write.stamp <= up_to)
        {
            let write = self.unflushed.pop_front().expect("seen just now");
            self.durable.write(write.sector, &write.data);
        }
        while self.unflushed.front().is_some_and(|write| write.is_durable) {
            let write = self.unflushed.pop_front().expect("seen just now");
            self.durable.write(write.sector, &write.data);
        }
    }

    /// The process, or everything, ends.
    pub fn end(&mut self, end: End, chance: &Chance) {
        for (_, write) in std::mem::take(&mut self.in_flight) {
            if !write.is_astray || self.harm_below(&write) {
                self.arrive_in_part(&write, chance);
            }
        }
        if end == End::PowerLoss {
            self.lose(chance);
        }
        self.gone_until = Duration::ZERO;
    }

    /// Some blocks of a write arrive, all or none.
    fn arrive_in_part(&mut self, write: &InFlight, chance: &Chance) {
        let block = u64::from(self.geometry.physical_block_bytes);
        self.stamp += 1;
        let share = chance.pick(&[0, 0, 100, 30, 50, 90]);
        let first = write.offset / SECTOR as u64;
        let end = first + (write.data.len() / SECTOR) as u64;
        let block_sectors = block / SECTOR as u64;
        let mut at = first;
        while at < end {
            let next = end.min((at / block_sectors + 1) * block_sectors);
            if chance.percent(share) {
                let bytes = (at - first) as usize * SECTOR..(next - first) as usize * SECTOR;
                self.store(at, Rc::new(write.data[bytes].to_vec()), false);
            }
            at = next;
        }
    }

    /// Takes some of what is volatile away, in one of several styles.
    fn lose(&mut self, chance: &Chance) {
        let writes: Vec<Unflushed> = std::mem::take(&mut self.unflushed).into();
        let style = chance.below(6);
        let single = chance.below(writes.len() as u64) as usize;
        let block_sectors = u64::from(self.geometry.physical_block_bytes) / SECTOR as u64;
        // Which writes there are of each block, in order.
        let mut blocks: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (i, write) in writes.iter().enumerate() {
            let end = write.sector + (write.data.len() / SECTOR) as u64;
            for block in write.sector / block_sectors..end.div_ceil(block_sectors) {
                blocks.entry(block).or_default().push(i);
            }
        }
        let mut image = self.durable.clone();
        for (block, of_block) in blocks {
            let least = of_block
                .iter()
                .rposition(|i| writes[*i].is_durable)
                .map_or(0, |at| at + 1);
            let all = of_block.len();
            let kept = match style {
                0 => 0,
                1 => all,
                2 => chance.pick(&[0, all]),
                3 => chance.below(all as u64 + 1) as usize,
                // A prefix of time, and all but one.
                4 => of_block.iter().take_while(|i| **i < single).count(),
                _ if of_block.last() == Some(&single) => all - 1,
                _ => all,
            };
            for write in of_block[..kept.max(least)].iter().map(|i| &writes[*i]) {
                let first = (block * block_sectors).max(write.sector);
                let write_end = write.sector + (write.data.len() / SECTOR) as u64;
                let end = ((block + 1) * block_sectors).min(write_end);
                let bytes = (first - write.sector) as usize * SECTOR
                    ..(end - write.sector) as usize * SECTOR;
                image.write(first, &write.data[bytes]);
            }
        }
        self.current = image.clone();
        self.durable = image;
    }

    fn happen(&mut self, kind: Kind) {
        self.faults_happened += 1;
        self.happened[kind as usize] += 1;
    }

    /// Whether this I/O fails, and how. `write_at` is where a write begins.
    fn failure(&mut self, kind: Kind, now: Duration, write_at: Option<u64>) -> Option<i32> {
        self.ios += 1;
        if let Some((count, time)) = self.faults.gone_in {
            self.faults.gone_in = count.checked_sub(1).map(|count| (count, time));
            if count == 0 {
                self.gone_until = now + time;
            }
        }
        if now < self.gone_until {
            self.happen(Kind::Gone);
            return Some(ENXIO);
        }
        let is_spared = write_at.is_some_and(|at| at < self.faults.from_byte);
        let mut fails = count_down(&mut self.faults.any_in);
        match kind {
            Kind::Read => {
                let each = self.faults.reads_each;
                fails |= count_down(&mut self.faults.read_in)
                    || each.is_some_and(|each| self.ios.is_multiple_of(each));
            }
            Kind::Flush => fails |= count_down(&mut self.faults.flush_in),
            _ if is_spared => (),
            _ => {
                if count_down(&mut self.faults.no_space_in) {
                    self.happen(Kind::NoSpace);
                    return Some(ENOSPC);
                }
                fails |= count_down(&mut self.faults.write_in);
            }
        }
        if fails {
            self.happen(kind);
        }
        fails.then_some(EIO)
    }

    /// The disk lies about a write of data: it is lost, or lands on other data. Gives where it goes, if anywhere.
    fn lie(&mut self, offset: u64, data: &[u8], chance: &Chance) -> Option<u64> {
        let Some(harm) = self.harm.clone() else {
            return Some(offset);
        };
        if !data.chunks(SECTOR).all(is_pattern) {
            return Some(offset);
        }
        if count_down(&mut self.faults.lost_in) {
            self.happen(Kind::Lost);
            data.chunks(SECTOR).for_each(|sector| harm(sector));
            return None;
        }
        if !count_down(&mut self.faults.misdirected_in) {
            return Some(offset);
        }
        let sectors = (data.len() / SECTOR) as u64;
        let places = (self.geometry.size_bytes / SECTOR as u64).saturating_sub(sectors);
        let mut victim = vec![0; data.len()];
        for _ in 0..20 {
            let unit = u64::from(self.geometry.logical_block_bytes) / SECTOR as u64;
            let place = chance.below(places) / unit * unit;
            self.current.read(place, &mut victim);
            if victim.chunks(SECTOR).all(is_pattern) {
                self.happen(Kind::Misdirected);
                data.chunks(SECTOR).for_each(|sector| harm(sector));
                return Some(place * SECTOR as u64);
            }
        }
        Some(offset)
    }

    /// Turns a bit of this sector, at rest.
    pub fn rot(&mut self, sector: u64, chance: &Chance) {
        let mut bytes = vec![0; SECTOR];
        self.current.read(sector, &mut bytes);
        let bit = chance.below(SECTOR as u64 * 8) as usize;
        bytes[bit / 8] ^= 1 << (bit % 8);
        self.happen(Kind::Rot);
        self.poke(sector * SECTOR as u64, &bytes);
    }

    /// A sector that holds data of clients, if one is found.
    pub fn some_data(&self, chance: &Chance) -> Option<(u64, Vec<u8>)> {
        let mut bytes = vec![0; SECTOR];
        (0..200).find_map(|_| {
            let sector = chance.below(self.geometry.size_bytes / SECTOR as u64);
            self.current.read(sector, &mut bytes);
            is_pattern(&bytes).then(|| (sector, bytes.clone()))
        })
    }
}

/// Whether a sector is one that clients write: a value and its place, again and again, and not what a discard leaves.
pub fn is_pattern(sector: &[u8]) -> bool {
    sector[..8] != [0; 8]
        && sector[..8] != [DISCARD_FILL; 8]
        && sector[16..] == sector[..sector.len() - 16]
}

/// The disk in the hands of a process.
pub struct Disk {
    world: World,
    state: Rc<RefCell<DiskState>>,
    name: String,
}

impl Disk {
    /// Hands a disk to a process.
    pub fn new(world: World, state: Rc<RefCell<DiskState>>) -> Self {
        let name = state.borrow().name.clone();
        Disk { world, state, name }
    }

    fn delay(&self) -> Duration {
        let chance = self.world.chance();
        let spikes = self.state.borrow().faults.spike_percent;
        if spikes > 0 && chance.percent(spikes) {
            self.state.borrow_mut().happen(Kind::Spike);
            return Duration::from_millis(chance.between(1_000, 20_000));
        }
        Duration::from_micros(match chance.below(20) {
            0 => chance.between(5_000, 50_000),
            1..5 => chance.between(500, 5_000),
            _ => chance.between(10, 500),
        })
    }

    fn paced(&self, io: Io<'_>) -> Option<Duration> {
        let pace = self.state.borrow().pace.clone();
        pace.and_then(|pace| pace(io))
    }

    /// Completes after the time given, or after one that chance gives.
    fn io<T: 'static>(
        &self,
        what: &'static str,
        paced: Option<Duration>,
        then: impl FnOnce() -> T + 'static,
    ) -> impl Future<Output = T> + 'static {
        let (keeper, promise) = brigade_env::sync::promise_of(what);
        let delay = paced.unwrap_or_else(|| self.delay());
        self.world.after(delay, move || keeper.keep(then()));
        promise
    }

    fn check(&self, offset: u64, length: u64) -> io::Result<()> {
        let geometry = self.state.borrow().geometry;
        assert!(
            offset.is_multiple_of(512) && length.is_multiple_of(512),
            "{}: {offset}+{length}",
            self.name
        );
        if offset
            .checked_add(length)
            .is_none_or(|end| end > geometry.size_bytes)
        {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(())
    }

    /// What a disk does of a discard: all, nothing, or some blocks of it.
    fn heeded(&self, offset: u64, length: u64) -> (u64, u64) {
        let chance = self.world.chance();
        let block = u64::from(self.state.borrow().geometry.physical_block_bytes);
        let start = offset + chance.below(length / block + 1) * block;
        let end = start + chance.below((offset + length - start) / block + 1) * block;
        match chance.below(4) {
            0 | 1 => (offset, length),
            2 if start < end => (start, end - start),
            _ => (offset, 0),
        }
    }

    fn note(&self, what: &str, offset: u64, length: u64) {
        self.world
            .note(&self.name, what, [offset / 512, length / 512]);
    }

    fn start_write(
        &self,
        offset: u64,
        data: Vec<u8>,
        is_durable: bool,
    ) -> io::Result<impl Future<Output = io::Result<()>> + 'static> {
        self.check(offset, data.len() as u64)?;
        self.note(
            if is_durable { "write FUA" } else { "write" },
            offset,
            data.len() as u64,
        );
        let paced = self.paced(Io::Write(offset, &data));
        let mut state = self.state.borrow_mut();
        if state.geometry.is_read_only {
            panic!("{}: write at {offset} to a read-only device", self.name);
        }
        state.writes += 1;
        let io = state.next_io;
        state.next_io += 1;
        let mut fails = state.failure(Kind::Write, self.world.now(), Some(offset));
        let each = state.faults.data_each.unwrap_or(0);
        let is_hit = each > 0 && state.ios.is_multiple_of(each);
        if is_hit && fails.is_none() && data.chunks(SECTOR).all(is_pattern) {
            state.happen(Kind::Write);
            fails = Some(EIO);
        }
        let place = if data.is_empty() {
            None
        } else {
            state.lie(offset, &data, self.world.chance())
        };
        if let Some(place) = place {
            let write = InFlight {
                offset: place,
                is_astray: place != offset,
                data: Rc::new(data),
                is_durable: is_durable && fails.is_none(),
            };
            state.in_flight.insert(io, write);
        }
        drop(state);
        let state = self.state.clone();
        let world = self.world.clone();
        Ok(self.io("a write of a disk", paced, move || {
            let mut state = state.borrow_mut();
            world.count_device_operation();
            world.note(&state.name, "written", [io, 0]);
            if let Some(number) = fails {
                // A failed write may have arrived, in part.
                if let Some(write) = state.in_flight.remove(&io).filter(|write| !write.is_astray) {
                    state.arrive_in_part(&write, world.chance());
                }
                return Err(io::Error::from_raw_os_error(number));
            }
            state.complete_write(io);
            Ok(())
        }))
    }
}

fn count_down(counter: &mut Option<u64>) -> bool {
    match counter {
        Some(0) => {
            *counter = None;
            true
        }
        Some(n) => {
            *n -= 1;
            false
        }
        None => false,
    }
}

impl Device for Disk {
    fn name(&self) -> &str {
        &self.name
    }
    fn geometry(&self) -> Geometry {
        self.state.borrow().geometry
    }
    fn read(
        &self,
        offset: u64,
        mut buffer: Buffer,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static {
        self.note("read", offset, buffer.len() as u64);
        let checked = self.check(offset, buffer.len() as u64);
        let paced = self.paced(Io::Read(offset));
        let fails = self
            .state
            .borrow_mut()
            .failure(Kind::Read, self.world.now(), None);
        let state = self.state.clone();
        let done = checked.map(|()| {
            self.io("a read of a disk", paced, move || {
                if let Some(number) = fails {
                    return Err(io::Error::from_raw_os_error(number));
                }
                state.borrow().peek(offset, &mut buffer);
                Ok(buffer)
            })
        });
        async move { done?.await }
    }
    fn write(
        &self,
        offset: u64,
        buffer: Buffer,
        durability: Durability,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static {
        let done = self.start_write(offset, buffer.to_vec(), durability == Durability::Durable);
        async move {
            done?.await?;
            Ok(buffer)
        }
    }
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        self.note("flush", 0, 0);
        let (up_to, fails) = {
            let mut state = self.state.borrow_mut();
            let fails = state.failure(Kind::Flush, self.world.now(), None);
            (state.stamp, fails)
        };
        let state = self.state.clone();
        let world = self.world.clone();
        self.io("a flush of a disk", self.paced(Io::Flush), move || {
            world.count_device_operation();
            world.note(&state.borrow().name, "flushed", [up_to, 0]);
            if let Some(number) = fails {
                return Err(io::Error::from_raw_os_error(number));
            }
            state.borrow_mut().complete_flush(up_to);
            Ok(())
        })
    }
    fn discard(&self, offset: u64, length: u64) -> impl Future<Output = io::Result<()>> + 'static {
        let can = self.state.borrow().geometry.can_discard;
        let chance = self.world.chance();
        let done = if !can {
            Err(io::ErrorKind::Unsupported.into())
        } else {
            let fill = chance.pick(&[0_u8, 0, DISCARD_FILL]);
            let (offset, length) = self.heeded(offset, length);
            self.start_write(offset, vec![fill; length as usize], false)
        };
        async move { done?.await }
    }
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        _may_unmap: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let done = self.start_write(offset, vec![0; length as usize], false);
        async move { done?.await }
    }
}
