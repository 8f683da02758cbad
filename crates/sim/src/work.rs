//! Clients: concurrent requests on all volumes, reported to the oracles.

use crate::exec::{Chance, World};
use crate::oracle::{Oracle, Writing};
use brigade_engine::{Server, Volume};
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::CacheMode;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// How long a client rests that finds no volume.
const ABSENT: Duration = Duration::from_micros(100);

/// Every way of caching.
pub const MODES: [CacheMode; 4] = [
    CacheMode::Writeback,
    CacheMode::Writethrough,
    CacheMode::Writearound,
    CacheMode::None,
];

/// Which requests are made, and how.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    /// Clients at once.
    pub clients: u64,
    /// Requests of all of them.
    pub requests: u64,
    /// Reads, in percent.
    pub read: u64,
    /// Flushes, in percent.
    pub flush: u64,
    /// Zeroes and discards, in percent.
    pub clear: u64,
    /// Writes that ask for FUA.
    pub fua_percent: u64,
    /// Longest request.
    pub sectors_max: u64,
    /// Half of the requests are of any length.
    pub is_long: bool,
    /// Sectors of each volume that are mostly used.
    pub hot: u64,
    /// All requests are multiples of this many sectors.
    pub align: u64,
    /// Cache modes change.
    pub modes: bool,
    /// One request in a hundred discards much of its volume.
    pub wipes: bool,
    /// How often a client rests.
    pub pause_percent: u64,
}

/// What is under way, for the crash and for a stall.
#[derive(Default)]
pub struct Ledger {
    /// What was asked for and not answered.
    pub open: RefCell<BTreeMap<u64, String>>,
    /// Writes not answered, with their volumes.
    pub writing: RefCell<BTreeMap<u64, (usize, Writing)>>,
    next: Cell<u64>,
    /// Requests answered.
    pub done: Cell<u64>,
    /// Requests that failed.
    pub failed: Cell<u64>,
    /// When something was answered last.
    pub last_done: Cell<Duration>,
    /// Failures are expected.
    pub faulty: Cell<bool>,
    /// Of each volume how often something began or ended for which its requests may fail: odd while it goes on.
    excuses: RefCell<BTreeMap<usize, u64>>,
}

impl Ledger {
    /// Something was asked for.
    pub fn open(&self, what: String) -> u64 {
        let id = self.next.get();
        self.next.set(id + 1);
        self.open.borrow_mut().insert(id, what);
        id
    }
    /// It was answered.
    pub fn close(&self, id: u64, now: Duration) {
        self.open.borrow_mut().remove(&id);
        self.done.set(self.done.get() + 1);
        self.last_done.set(now);
    }

    /// Requests of a volume may fail from now on, or no longer.
    pub fn excuse(&self, volume: usize) {
        *self.excuses.borrow_mut().entry(volume).or_default() += 1;
    }

    fn excuses(&self, volume: usize) -> u64 {
        self.excuses.borrow().get(&volume).copied().unwrap_or(0)
    }

    /// Whether a request that began when there were so many could fail.
    fn is_excused(&self, volume: usize, before: u64) -> bool {
        before % 2 == 1 || self.excuses(volume) != before
    }
}

/// Volumes that are served, by oracle.
pub type Table = Rc<RefCell<Vec<Option<Rc<Volume<World>>>>>>;

/// A volume as a request that begins finds it.
struct Target {
    volume: Rc<Volume<World>>,
    at: usize,
    excuses: u64,
}

/// Everything a client needs.
#[derive(Clone)]
pub struct Clients {
    /// The world of the server.
    pub world: World,
    /// What serves.
    pub server: Rc<Server<World>>,
    /// Its volumes, where it serves them, by oracle.
    pub volumes: Table,
    /// From here on volumes are only in the cache, and come and go.
    pub flashes_from: usize,
    /// What each may read as.
    pub oracles: Rc<Vec<RefCell<Oracle>>>,
    /// Where requests are noted.
    pub ledger: Rc<Ledger>,
}

/// What one request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Reads.
    Read,
    /// Asks for a later read to find it.
    Prefetch,
    /// Asks where data is.
    Status,
    /// Makes durable.
    Flush,
    /// Writes.
    Write,
    /// Zeroes, which may be deallocated.
    Zero,
    /// Zeroes that stay allocated.
    ZeroKeep,
    /// Says that a range is not needed.
    Discard,
    /// Has a volume cached in another way.
    Mode(CacheMode),
}

/// One request, fixed before anything runs, so that others can be left out.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Its number in the round.
    pub number: u64,
    /// What it does.
    pub verb: Verb,
    /// Which oracle's volume.
    pub volume: usize,
    /// First sector.
    pub first: u64,
    /// Sectors.
    pub count: u64,
    /// Durable when acknowledged.
    pub fua: bool,
    /// The client rests after it.
    pub pause: Duration,
}

impl Mix {
    /// The requests of a round, for volumes of these sizes.
    pub fn script(&self, chance: &Chance, volumes: &[(usize, u64)]) -> Vec<Request> {
        if volumes.is_empty() {
            return Vec::new();
        }
        (0..self.requests)
            .map(|number| {
                let (volume, size) = chance.pick(volumes);
                let is_wipe = self.wipes && chance.percent(1);
                let (first, count) = match is_wipe {
                    true => self.wiped(chance, size),
                    false => self.range(chance, size),
                };
                let pause = if chance.percent(self.pause_percent) {
                    chance.pick(&[1, 10, 100, 1000]) * chance.between(1, 10)
                } else {
                    0
                };
                Request {
                    number,
                    verb: match is_wipe {
                        true => Verb::Discard,
                        false => self.verb(chance),
                    },
                    volume,
                    first,
                    count,
                    fua: chance.percent(self.fua_percent),
                    pause: Duration::from_millis(pause),
                }
            })
            .collect()
    }

    /// Much of a volume, or all of it.
    fn wiped(&self, chance: &Chance, size: u64) -> (u64, u64) {
        let whole = size / self.align * self.align;
        let first = chance.below(whole / 2) / self.align * self.align;
        match chance.percent(50) {
            true => (0, whole),
            false => (first, whole / 2 / self.align * self.align),
        }
    }

    fn verb(&self, chance: &Chance) -> Verb {
        if self.modes && chance.percent(2) {
            return Verb::Mode(chance.pick(&MODES));
        }
        let kind = chance.below(100);
        if kind < self.read {
            match chance.below(20) {
                0 => Verb::Prefetch,
                1 => Verb::Status,
                _ => Verb::Read,
            }
        } else if kind < self.read + self.flush {
            Verb::Flush
        } else if kind < self.read + self.flush + self.clear {
            chance.pick(&[Verb::Zero, Verb::ZeroKeep, Verb::Discard])
        } else {
            Verb::Write
        }
    }

    fn range(&self, chance: &Chance, size: u64) -> (u64, u64) {
        let count = match chance.below(40) {
            20.. if self.is_long => chance.between(1, self.sectors_max),
            0 => self.sectors_max,
            1..3 => chance.between(1, self.sectors_max),
            3..12 => chance.between(1, self.sectors_max.min(64)),
            12..22 => 8,
            _ => chance.between(1, self.sectors_max.min(16)),
        };
        let count = count
            .next_multiple_of(self.align)
            .min(size / self.align * self.align);
        let room = if chance.percent(80) {
            self.hot.min(size)
        } else {
            size
        };
        let first = chance.below(room) / self.align * self.align;
        (first.min((size - count) / self.align * self.align), count)
    }
}

impl Clients {
    /// Runs all clients to the end of the script.
    pub async fn run(self, clients: u64, script: Vec<Request>) {
        let next = Rc::new(Cell::new(0));
        let script = Rc::new(script);
        let clients = (0..clients).map(|number| {
            let (this, next, script) = (self.clone(), next.clone(), script.clone());
            async move {
                while let Some(request) = script.get(next.get()) {
                    next.set(next.get() + 1);
                    this.one(request, number).await;
                    if !request.pause.is_zero() {
                        this.world.sleep(request.pause).await;
                    }
                }
            }
        });
        brigade_env::sync::join_all(clients).await;
    }

    async fn one(&self, request: &Request, client: u64) {
        let Request { fua, .. } = *request;
        let Some((volume, first, count)) = self.place_for(request) else {
            return self.world.sleep(ABSENT).await;
        };
        match request.verb {
            Verb::Read => self.read(volume, first, count, client).await,
            Verb::Prefetch => self.other("prefetch", volume, first, count).await,
            Verb::Status => self.other("status", volume, first, count).await,
            Verb::Flush => self.flush(volume).await,
            Verb::Mode(mode) => self.set_mode(volume, mode).await,
            Verb::Write => self.write("write", volume, first, count, fua, client).await,
            Verb::Zero => self.write("zero", volume, first, count, fua, client).await,
            Verb::ZeroKeep => {
                self.write("zero keep", volume, first, count, fua, client)
                    .await;
            }
            Verb::Discard => {
                self.write("discard", volume, first, count, fua, client)
                    .await;
            }
        }
    }

    /// Where a request goes: volumes come and go and change their size after the script was written. `None`: there is nothing for it.
    fn place_for(&self, request: &Request) -> Option<(usize, u64, u64)> {
        let table = self.volumes.borrow();
        let is_flash = request.volume >= self.flashes_from;
        let others = (self.flashes_from..table.len()).filter(|_| is_flash);
        let mut places = std::iter::once(request.volume).chain(others);
        let at = places.find(|at| table[*at].is_some())?;
        let (first, count) = (request.first, request.count);
        let size = table[at].as_ref()?.size_bytes() / 512;
        if first + count <= size {
            return Some((at, first, count));
        }
        let room = size.checked_sub(count)?;
        Some((at, first % (room + 1) / 8 * 8, count))
    }

    fn target(&self, at: usize) -> Target {
        let volume = self.volumes.borrow()[at].clone();
        Target {
            volume: volume.expect("it is served"),
            at,
            excuses: self.ledger.excuses(at),
        }
    }

    fn now(&self) -> Duration {
        self.world.now()
    }

    fn judge<T>(&self, target: &Target, what: &str, result: &std::io::Result<T>) {
        if let Err(error) = result {
            self.ledger.failed.set(self.ledger.failed.get() + 1);
            let is_full_flash = error.kind() == std::io::ErrorKind::StorageFull;
            let is_gone = error.kind() == std::io::ErrorKind::InvalidInput
                || error.to_string().ends_with("not served any more");
            let is_excused = is_gone && self.ledger.is_excused(target.at, target.excuses);
            assert!(
                self.ledger.faulty.get() || is_full_flash || is_excused,
                "{what} failed: {error}"
            );
        }
    }

    /// Reads and has the oracle judge.
    pub async fn read(&self, volume: usize, first: u64, count: u64, stream: u64) {
        let what = format!("read v{volume} {first}+{count}");
        let id = self.ledger.open(what.clone());
        let began = self.oracles[volume].borrow_mut().begin_read();
        self.world.note(&what, "begin", [id, began]);
        let target = self.target(volume);
        let result = target
            .volume
            .read(StreamId(stream as u16), first * 512, count as usize * 512)
            .await;
        self.judge(&target, &what, &result);
        self.world.note(
            &what,
            if result.is_ok() { "done" } else { "failed" },
            [id, 0],
        );
        let mut oracle = self.oracles[volume].borrow_mut();
        match result {
            Ok(buffer) => {
                assert_eq!(buffer.len() as u64, count * 512, "{what}");
                oracle.check(began, first, &buffer, &what);
            }
            Err(_) => oracle.abandon_read(began),
        }
        drop(oracle);
        self.ledger.close(id, self.now());
    }

    async fn flush(&self, volume: usize) {
        let id = self.ledger.open(format!("flush v{volume}"));
        let began = self.oracles[volume].borrow_mut().begin_flush();
        let target = self.target(volume);
        let result = target.volume.flush().await;
        self.judge(&target, "flush", &result);
        if result.is_ok() {
            self.oracles[volume].borrow_mut().finish_flush(began);
        }
        self.ledger.close(id, self.now());
    }

    async fn set_mode(&self, volume: usize, mode: CacheMode) {
        let target = self.target(volume);
        if target.volume.state() == "flash" {
            return;
        }
        let what = format!("mode v{volume} {mode}");
        let id = self.ledger.open(what.clone());
        let result = target.volume.set_mode(mode).await;
        self.judge(&target, &what, &result);
        self.ledger.close(id, self.now());
    }

    async fn other(&self, kind: &str, volume: usize, first: u64, count: u64) {
        let id = self
            .ledger
            .open(format!("{kind} v{volume} {first}+{count}"));
        let target = self.target(volume);
        if kind == "prefetch" {
            let result = target
                .volume
                .prefetch(StreamId(3), first * 512, count * 512)
                .await;
            self.judge(&target, kind, &result);
        } else {
            let result =
                BlockDevice::status(&*target.volume, first * 512, count * 512, 10_000).await;
            self.judge(&target, kind, &result);
            if let Ok(runs) = result {
                let total: u64 = runs.iter().map(|run| run.length).sum();
                assert_eq!(total, count * 512, "block status covers its range");
            }
            let _ = self.server.status();
        }
        self.ledger.close(id, self.now());
    }

    async fn write(
        &self,
        kind: &str,
        volume: usize,
        first: u64,
        count: u64,
        fua: bool,
        stream: u64,
    ) {
        let target = self.target(volume);
        let what = format!(
            "{kind} v{volume} {first}+{count}{}",
            if fua { " FUA" } else { "" }
        );
        let id = self.ledger.open(what.clone());
        self.world.note(&what, "begin", [id, 0]);
        let (offset, bytes) = (first * 512, count * 512);
        let writing = {
            let mut oracle = self.oracles[volume].borrow_mut();
            match kind {
                "write" => oracle.begin_write(first, count),
                "discard" => oracle.begin_discard(first, count),
                _ => oracle.begin_zero(first, count),
            }
        };
        self.ledger
            .writing
            .borrow_mut()
            .insert(id, (volume, writing));
        let result = match kind {
            "write" => {
                let mut buffer = target.volume.buffer(bytes as usize);
                self.oracles[volume]
                    .borrow()
                    .fill(writing.value, first, &mut buffer);
                target
                    .volume
                    .write(StreamId(stream as u16), offset, buffer, fua)
                    .await
            }
            "discard" => target.volume.discard(offset, bytes, fua).await,
            _ => {
                target
                    .volume
                    .write_zeroes(offset, bytes, kind == "zero", false, fua)
                    .await
            }
        };
        self.ledger.writing.borrow_mut().remove(&id);
        self.judge(&target, &what, &result);
        self.world.note(
            &what,
            if result.is_ok() { "done" } else { "failed" },
            [id, 0],
        );
        let mut oracle = self.oracles[volume].borrow_mut();
        match result {
            Ok(()) => oracle.finish(writing, fua),
            Err(_) => oracle.abandon(writing),
        }
        drop(oracle);
        self.ledger.close(id, self.now());
    }

    /// Reads every sector ever written, and some more.
    pub async fn read_everything(&self) {
        let table = self.volumes.borrow().clone();
        for (volume, served) in table.iter().enumerate() {
            let Some(served) = served else { continue };
            let size = served.size_bytes() / 512;
            let mut used = self.oracles[volume].borrow().used();
            used.retain(|sector| *sector < size);
            let mut runs: Vec<(u64, u64)> = Vec::new();
            for sector in used {
                match runs.last_mut() {
                    Some((first, count))
                        if sector - (*first + *count) < 16 && sector - *first < 1024 =>
                    {
                        *count = sector + 1 - *first;
                    }
                    _ => runs.push((sector, 1)),
                }
            }
            for (first, count) in runs {
                self.read(volume, first, count, 7).await;
            }
        }
    }
}
