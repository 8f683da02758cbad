//! A device in sectors, with flushes that share.
//!
//! Requests that ask for a flush while one is under way all wait for the *next* one together, so queue depth pays for it
//! once. A failed flush or metadata write throws the set's [`Poison`]. Errors are counted, and somebody is told when there are too
//! many, or when the device is no longer there.
//!
//! What is written is counted by cause, and of a cache device how long data and nodes take ([`Congestion`]).

mod congestion;

use crate::error::Poison;
use crate::health::{self, ErrorBudget, Limits};
use crate::limits::SECTOR;
use crate::settings::{Knob, Settings};
use crate::stats::{By, Cause};
use brigade_env::sync::Notify;
use brigade_env::{Buffer, BufferPool, Device, Durability, Env, Geometry};
use congestion::Congestion;
use std::cell::{Cell, OnceCell, RefCell};
use std::fmt::Display;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// What is wrong with a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Illness {
    /// It had too many errors; the last one.
    Errors(String),
    /// It is no longer there.
    Gone(String),
}

/// Who is told.
struct Watch {
    limits: Limits,
    settings: Rc<Settings>,
    tell: Box<dyn Fn(Illness)>,
}

/// Errors so far.
#[derive(Clone, Debug, Default)]
struct Errors {
    budget: ErrorBudget,
    count: u64,
    last: String,
}

/// A cache or backing device. Shared by everything that does I/O on it.
pub struct Disk<E: Env> {
    env: E,
    device: E::Device,
    buffers: BufferPool,
    poison: Rc<Poison>,
    /// Number of the newest flush somebody waits for; it may have to wait for an earlier one to start.
    flush_requested: Cell<u64>,
    flush_started: Cell<u64>,
    flush_finished: Cell<u64>,
    flush_running: Cell<bool>,
    flush_changed: Notify,
    written_bytes: Cell<u64>,
    metadata_bytes: Cell<u64>,
    flushes: Cell<u64>,
    watch: RefCell<Option<Watch>>,
    errors: RefCell<Errors>,
    written_by: By<Cause>,
    congestion: Congestion,
    /// Where thresholds of congestion are; only of a cache device.
    thresholds: OnceCell<Rc<Settings>>,
}

impl<E: Env> Disk<E> {
    /// Wraps an open device.
    pub fn new(env: &E, device: E::Device, poison: Rc<Poison>) -> Rc<Self> {
        Rc::new(Disk {
            env: env.clone(),
            device,
            buffers: env.buffers().clone(),
            poison,
            flush_requested: Cell::new(0),
            flush_started: Cell::new(0),
            flush_finished: Cell::new(0),
            flush_running: Cell::new(false),
            flush_changed: Notify::new(),
            written_bytes: Cell::new(0),
            metadata_bytes: Cell::new(0),
            flushes: Cell::new(0),
            watch: RefCell::default(),
            errors: RefCell::default(),
            written_by: By::default(),
            congestion: Congestion::default(),
            thresholds: OnceCell::new(),
        })
    }

    /// Has `tell` called for every error that is one too many by these limits, and whenever the device is found to be gone. It may
    /// throw switches and start tasks, and nothing else.
    pub fn watch(&self, limits: Limits, settings: Rc<Settings>, tell: impl Fn(Illness) + 'static) {
        *self.watch.borrow_mut() = Some(Watch {
            limits,
            settings,
            tell: Box::new(tell),
        });
    }

    /// Errors since it was opened and what the last one was, as long as that is not forgotten.
    pub fn errors(&self) -> Option<(u64, String)> {
        let errors = self.errors.borrow();
        (errors.count > 0 && !errors.budget.is_blank()).then(|| (errors.count, errors.last.clone()))
    }

    /// Counts a request and, if it failed, the error.
    fn counted<T>(&self, doing: &str, byte: u64, result: io::Result<T>) -> io::Result<T> {
        let watch = self.watch.borrow();
        let Some(watch) = &*watch else { return result };
        let (limit, halflife) = watch.limits.now(&watch.settings);
        let illness = {
            let mut errors = self.errors.borrow_mut();
            errors.budget.request(halflife);
            let Some(error) = result.as_ref().err().filter(|it| health::is_of_device(it)) else {
                return result;
            };
            errors.count += 1;
            errors.last = format!("{}: {doing} at byte {byte}: {error}", self.name());
            let is_spent = errors.budget.error(limit);
            match (health::is_gone(error), is_spent) {
                (true, _) => Some(Illness::Gone(errors.last.clone())),
                (false, true) => Some(Illness::Errors(errors.last.clone())),
                (false, false) => None,
            }
        };
        if let Some(illness) = illness {
            (watch.tell)(illness);
        }
        result
    }

    /// The path.
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// The device itself.
    pub fn device(&self) -> &E::Device {
        &self.device
    }

    /// Size and units.
    pub fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    /// Size in sectors.
    pub fn sectors(&self) -> u64 {
        self.geometry().size_bytes / SECTOR
    }

    /// Bytes written since the server started, all of them and those of metadata.
    pub fn written(&self) -> (u64, u64) {
        (self.written_bytes.get(), self.metadata_bytes.get())
    }

    /// Flushes sent to it since the server started.
    pub fn flushes(&self) -> u64 {
        self.flushes.get()
    }

    /// The same by cause.
    pub fn written_by(&self) -> By<Cause> {
        let (sum, written) = (self.written_by.sum(), self.written_bytes.get());
        assert_eq!(sum, written, "what is written has one cause");
        self.written_by.clone()
    }

    /// From now on slow requests of data and nodes are signs of congestion, by the thresholds of a cache set.
    pub fn watch_congestion(&self, settings: &Rc<Settings>) {
        // Once per opening.
        let _ = self.thresholds.set(settings.clone());
    }

    /// Sectors of a run from which on its requests had better go elsewhere; 0: the device is not too busy.
    pub fn congested(&self) -> u64 {
        let is_off = |settings: &Rc<Settings>| {
            settings.get(Knob::CongestedReadThresholdUs) == 0
                && settings.get(Knob::CongestedWriteThresholdUs) == 0
        };
        if self.thresholds.get().is_none_or(is_off) {
            return 0;
        }
        let random = || self.env.random_u64() as u32;
        self.congestion.cutoff(self.env.now(), random)
    }

    fn note_time(&self, began: Duration, threshold: Knob) {
        if let Some(settings) = self.thresholds.get() {
            let now = self.env.now();
            let took = now.saturating_sub(began);
            self.congestion.record(now, took, settings.get(threshold));
        }
    }

    /// Where buffers come from.
    pub fn buffers(&self) -> &BufferPool {
        &self.buffers
    }

    /// Fills `buffer` from `sector`.
    pub async fn read(&self, sector: u64, buffer: Buffer) -> io::Result<Buffer> {
        let result = self.device.read(sector * SECTOR, buffer).await;
        self.counted("read", sector * SECTOR, result)
    }

    /// The same for cached data.
    pub async fn read_data(&self, sector: u64, buffer: Buffer) -> io::Result<Buffer> {
        let began = self.env.now();
        let result = self.read(sector, buffer).await;
        self.note_time(began, Knob::CongestedReadThresholdUs);
        result
    }

    /// Reads what could not be read before: one place is not to count again and again.
    pub async fn read_again(&self, sector: u64, buffer: Buffer) -> io::Result<Buffer> {
        self.device.read(sector * SECTOR, buffer).await
    }

    /// Writes data.
    pub async fn write(
        &self,
        cause: Cause,
        sector: u64,
        buffer: Buffer,
        durability: Durability,
    ) -> io::Result<Buffer> {
        self.count_written(cause, &buffer);
        let began = self.env.now();
        let result = self.device.write(sector * SECTOR, buffer, durability).await;
        if matches!(
            cause,
            Cause::Client | Cause::Fill | Cause::Moved | Cause::Nodes
        ) {
            self.note_time(began, Knob::CongestedWriteThresholdUs);
        }
        self.counted("write", sector * SECTOR, result)
    }

    /// Writes a part of what has just failed, and was counted, as a whole.
    pub async fn write_again(&self, cause: Cause, sector: u64, buffer: Buffer) -> io::Result<()> {
        self.count_written(cause, &buffer);
        let written = self
            .device
            .write(sector * SECTOR, buffer, Durability::Volatile);
        self.if_gone(written.await.map(|_| ()))
    }

    /// A device that is no longer there may have lost what it had not made durable, whoever finds out, and however often it was counted.
    fn if_gone<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if let Err(error) = &result
            && health::is_gone(error)
        {
            self.poison.throw(format!("{}: {error}", self.name()));
        }
        result
    }

    fn count_written(&self, cause: Cause, buffer: &Buffer) {
        let bytes = buffer.len() as u64;
        self.written_bytes.set(self.written_bytes.get() + bytes);
        self.written_by.add(cause, bytes);
    }

    /// Writes metadata; a failure poisons the set.
    pub async fn write_metadata(
        &self,
        cause: Cause,
        sector: u64,
        bytes: &[u8],
        durability: Durability,
    ) -> io::Result<()> {
        let mut buffer = self.buffers.get(bytes.len());
        buffer.copy_from_slice(bytes);
        self.write_metadata_buffer(cause, sector, buffer, durability)
            .await
    }

    /// The same of what is in a buffer already.
    pub async fn write_metadata_buffer(
        &self,
        cause: Cause,
        sector: u64,
        buffer: Buffer,
        durability: Durability,
    ) -> io::Result<()> {
        self.poison.check()?;
        self.metadata_bytes
            .set(self.metadata_bytes.get() + buffer.len() as u64);
        let result = self.write(cause, sector, buffer, durability).await;
        if let Err(error) = &result {
            self.poison.throw(format!(
                "{}: metadata write at byte {}: {error}",
                self.name(),
                sector * SECTOR
            ));
        }
        result.map(|_| ())
    }

    /// Reads `bytes` bytes into memory of their own.
    pub async fn read_bytes(&self, sector: u64, bytes: usize) -> io::Result<Buffer> {
        self.read(sector, self.buffers.get(bytes)).await
    }

    /// Whether it can be read at all.
    pub async fn answers(&self) -> bool {
        let unit = self.geometry().logical_block_bytes.max(512) as usize;
        let read = self.device.read(0, self.buffers.get(unit)).await;
        self.if_gone(read).is_ok()
    }

    /// Tells the device that a range is not needed.
    pub async fn discard(&self, sector: u64, sectors: u64) -> io::Result<()> {
        let discarded = self.device.discard(sector * SECTOR, sectors * SECTOR);
        self.if_gone(discarded.await)
    }

    /// Zeroes a range.
    pub async fn write_zeroes(&self, sector: u64, sectors: u64, may_unmap: bool) -> io::Result<()> {
        let byte = sector * SECTOR;
        let zeroed = self.device.write_zeroes(byte, sectors * SECTOR, may_unmap);
        self.counted("zeroes", byte, zeroed.await)
    }

    /// Fails once a flush or metadata write has failed: what was written before it may be lost, and no later flush, which the
    /// operating system may well let succeed, brings it back.
    pub fn check(&self) -> io::Result<()> {
        self.poison.check()
    }

    /// Has it fail so: what was written before may be lost.
    pub fn fail(&self, why: impl Display) {
        self.poison.throw(why);
    }

    /// Why it fails, if it does.
    pub fn trouble(&self) -> Option<String> {
        self.poison.reason()
    }

    /// Makes every write that has completed durable. Callers that come while a flush runs share the next one.
    pub async fn flush(&self) -> io::Result<()> {
        self.check()?;
        let target = self.flush_started.get() + 1;
        self.flush_requested
            .set(target.max(self.flush_requested.get()));
        while self.flush_started.get() < target {
            if self.flush_running.get() {
                self.flush_changed.wait().await;
                continue;
            }
            self.flush_running.set(true);
            self.flush_started.set(target);
            self.flushes.set(self.flushes.get() + 1);
            let result = self.counted("flush", 0, self.device.flush().await);
            self.flush_running.set(false);
            self.flush_finished.set(target);
            if let Err(error) = &result {
                self.poison
                    .throw(format!("{}: flush: {error}", self.name()));
            }
            self.flush_changed.notify_all();
            // It may have been gone meanwhile.
            return result.and_then(|()| self.check());
        }
        while self.flush_finished.get() < target {
            self.flush_changed.wait().await;
        }
        self.check()
    }

    /// Whether a flush is under way, or about to start once another one is done.
    pub fn is_flushing(&self) -> bool {
        self.flush_finished.get() < self.flush_requested.get()
    }

    /// Waits for the flushes that others asked for so far.
    pub async fn flush_settled(&self) -> io::Result<()> {
        let target = self.flush_requested.get();
        while self.flush_finished.get() < target {
            self.flush_changed.wait().await;
        }
        self.check()
    }
}
