//! A disk in memory with a volatile write cache.
//!
//! Must survive: what a flush covered (it had completed before the flush began) and what was written durably. May go at
//! a power loss: everything else, per block that the disk writes atomically, each block falling back to an older version
//! of its own. At `kill -9` only writes in flight are in doubt: whole, some blocks of them, or nothing arrives.

use crate::exec::{Chance, World};
use brigade_env::{Buffer, Device, Durability, Env, Geometry};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

const SECTOR: usize = 512;
const PAGE: usize = 4096;
type SectorBytes = [u8; SECTOR];

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process dies; the devices live on.
    Kill,
    /// Everything dies.
    PowerLoss,
}

/// Faults to come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Writes until one fails.
    pub write_in: Option<u64>,
    /// Flushes until one fails.
    pub flush_in: Option<u64>,
}

struct InFlight {
    offset: u64,
    data: Rc<Vec<u8>>,
    is_durable: bool,
}

/// What is left of a disk when nobody uses it.
pub struct DiskState {
    /// For messages.
    pub name: String,
    /// Size and units.
    pub geometry: Geometry,
    pages: BTreeMap<u64, Box<[u8; PAGE]>>,
    /// Sectors with more than one possible content: the durable one (stamp 0) first, then versions by stamp.
    versions: BTreeMap<u64, Vec<(u64, SectorBytes)>>,
    stamp: u64,
    in_flight: BTreeMap<u64, InFlight>,
    next_io: u64,
    /// Faults to come.
    pub faults: Faults,
    /// Faults that came.
    pub faults_happened: u64,
    /// Writes so far.
    pub writes: u64,
    /// Every write is printed.
    pub trace: bool,
}

impl DiskState {
    /// A disk of zeros.
    pub fn new(name: &str, geometry: Geometry) -> Rc<RefCell<Self>> {
        Rc::new(RefCell::new(DiskState {
            name: name.into(),
            geometry,
            pages: BTreeMap::new(),
            versions: BTreeMap::new(),
            stamp: 0,
            in_flight: BTreeMap::new(),
            next_io: 0,
            faults: Faults::default(),
            faults_happened: 0,
            writes: 0,
            trace: false,
        }))
    }

    /// What is there.
    pub fn peek(&self, offset: u64, out: &mut [u8]) {
        for (i, chunk) in out.chunks_mut(SECTOR).enumerate() {
            chunk.copy_from_slice(&self.sector(offset / SECTOR as u64 + i as u64));
        }
    }

    fn sector(&self, sector: u64) -> SectorBytes {
        let at = (sector % 8) as usize * SECTOR;
        match self.pages.get(&(sector / 8)) {
            Some(page) => page[at..at + SECTOR].try_into().expect("a sector"),
            None => [0; SECTOR],
        }
    }

    fn set_sector(&mut self, sector: u64, bytes: &[u8]) {
        let at = (sector % 8) as usize * SECTOR;
        let page = self
            .pages
            .entry(sector / 8)
            .or_insert_with(|| Box::new([0; PAGE]));
        page[at..at + SECTOR].copy_from_slice(bytes);
    }

    /// Puts bytes there for good, as a formatter would.
    pub fn poke(&mut self, offset: u64, bytes: &[u8]) {
        for (i, chunk) in bytes.chunks(SECTOR).enumerate() {
            self.versions.remove(&(offset / SECTOR as u64 + i as u64));
            self.set_sector(offset / SECTOR as u64 + i as u64, chunk);
        }
    }

    fn store(&mut self, sector: u64, bytes: &[u8], is_durable: bool) {
        if is_durable {
            self.versions.remove(&sector);
        } else {
            let before = self.sector(sector);
            let stamp = self.stamp;
            let versions = self
                .versions
                .entry(sector)
                .or_insert_with(|| vec![(0, before)]);
            versions.push((stamp, bytes.try_into().expect("a sector")));
        }
        self.set_sector(sector, bytes);
    }

    fn complete_write(&mut self, io: u64) {
        let Some(write) = self.in_flight.remove(&io) else {
            return;
        };
        self.stamp += 1;
        for (i, chunk) in write.data.chunks(SECTOR).enumerate() {
            self.store(
                write.offset / SECTOR as u64 + i as u64,
                chunk,
                write.is_durable,
            );
        }
    }

    fn complete_flush(&mut self, up_to: u64) {
        self.versions.retain(|_, versions| {
            let covered = versions
                .iter()
                .rposition(|(stamp, _)| *stamp <= up_to)
                .unwrap_or(0);
            versions.drain(..covered);
            versions[0].0 = 0;
            versions.len() > 1
        });
    }

    /// The process, or everything, ends.
    pub fn end(&mut self, end: End, chance: &Chance) {
        let block = u64::from(self.geometry.physical_block_bytes);
        for (_, write) in std::mem::take(&mut self.in_flight) {
            self.stamp += 1;
            let share = chance.pick(&[0, 0, 100, 30, 50, 90]);
            let mut last = (u64::MAX, false);
            for (i, chunk) in write.data.chunks(SECTOR).enumerate() {
                let sector = write.offset / SECTOR as u64 + i as u64;
                let number = sector * SECTOR as u64 / block;
                if last.0 != number {
                    last = (number, chance.percent(share));
                }
                if last.1 {
                    self.store(sector, chunk, false);
                }
            }
        }
        if end == End::PowerLoss {
            let style = chance.below(4);
            let mut last = (u64::MAX, 0);
            for (sector, versions) in std::mem::take(&mut self.versions) {
                let number = sector * SECTOR as u64 / block;
                if last.0 != number {
                    let cut = match style {
                        0 => 0,
                        1 => u64::MAX,
                        _ => chance.pick(&[0, u64::MAX, chance.below(self.stamp + 1)]),
                    };
                    last = (number, cut);
                }
                let kept = versions
                    .iter()
                    .rfind(|(stamp, _)| *stamp <= last.1)
                    .unwrap_or(&versions[0]);
                self.set_sector(sector, &kept.1);
            }
        }
    }

    /// A number that changes with every byte.
    pub fn digest(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for (number, page) in &self.pages {
            hash = (hash ^ number).wrapping_mul(0x0000_0100_0000_01b3);
            for word in page.chunks(8) {
                let word = u64::from_le_bytes(word.try_into().expect("eight"));
                hash = (hash ^ word)
                    .wrapping_mul(0x0000_0100_0000_01b3)
                    .rotate_left(17);
            }
        }
        hash
    }
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
        Duration::from_micros(match chance.below(20) {
            0 => chance.between(5_000, 50_000),
            1..5 => chance.between(500, 5_000),
            _ => chance.between(10, 500),
        })
    }

    fn io<T: 'static>(
        &self,
        then: impl FnOnce() -> T + 'static,
    ) -> impl Future<Output = T> + 'static {
        let (keeper, promise) = brigade_env::sync::promise();
        self.world.after(self.delay(), move || keeper.keep(then()));
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

    fn start_write(
        &self,
        offset: u64,
        data: Vec<u8>,
        is_durable: bool,
    ) -> io::Result<impl Future<Output = io::Result<()>> + 'static> {
        self.check(offset, data.len() as u64)?;
        let mut state = self.state.borrow_mut();
        if state.geometry.is_read_only {
            panic!("{}: write at {offset} to a read-only device", self.name);
        }
        state.writes += 1;
        if state.trace {
            let (name, now) = (&self.name, self.world.now());
            eprintln!(
                "{now:?} {name} write {}+{} {}",
                offset / 512,
                data.len() / 512,
                if is_durable { "FUA" } else { "" }
            );
        }
        let io = state.next_io;
        state.next_io += 1;
        let fails = count_down(&mut state.faults.write_in);
        let data = Rc::new(data);
        state.in_flight.insert(
            io,
            InFlight {
                offset,
                data,
                is_durable: is_durable && !fails,
            },
        );
        drop(state);
        let state = self.state.clone();
        let chance = self.world.chance().clone();
        Ok(self.io(move || {
            let mut state = state.borrow_mut();
            if fails {
                state.faults_happened += 1;
                // A failed write may have arrived or not.
                if chance.percent(50) {
                    state.complete_write(io);
                } else {
                    state.in_flight.remove(&io);
                }
                return Err(io::Error::from_raw_os_error(5));
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
        if self.state.borrow().trace {
            eprintln!(
                "{:?} {} read {}+{}",
                self.world.now(),
                self.name,
                offset / 512,
                buffer.len() / 512
            );
        }
        let checked = self.check(offset, buffer.len() as u64);
        let state = self.state.clone();
        let done = checked.map(|()| {
            self.io(move || {
                state.borrow().peek(offset, &mut buffer);
                buffer
            })
        });
        async move { Ok(done?.await) }
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
        let (up_to, fails) = {
            let mut state = self.state.borrow_mut();
            if state.trace {
                eprintln!("{:?} {} flush", self.world.now(), self.name);
            }
            (state.stamp, count_down(&mut state.faults.flush_in))
        };
        let state = self.state.clone();
        self.io(move || {
            if fails {
                state.borrow_mut().faults_happened += 1;
                return Err(io::Error::from_raw_os_error(5));
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
            let fill = chance.pick(&[0_u8, 0, 0x5a]);
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
