//! The task of one volume: decides, as the table of the module says, whether to write back now, and how much.

use super::bridge::Bridge;
use super::depth::Depth;
use super::drain::{Drain, DrainEnd};
use super::rate::{Controller, Limiter, RATE_DISTURBED, RATE_IDLE, Seen, Terms, target};
use super::scan::{Batch, Budget};
use super::striped::Striped;
use crate::btree::{Index, Pages, Tree};
use crate::buckets::Buckets;
use crate::data::candidates::Candidates;
use crate::data::clients::Clients;
use crate::data::insert::Inserter;
use crate::data::locks::RangeLocks;
use crate::device::Disk;
use crate::extents::Extent;
use crate::journal::Journal;
use crate::limits::{
    WRITEBACK_BYTES, WRITEBACK_EXTENTS, WRITEBACK_IN_USE_PERCENT, WRITEBACK_LITTLE, WRITEBACK_ROUND,
};
use crate::marks::{self, Mark};
use crate::meta::BackingSuper;
use crate::settings::{Knob, Settings};
use crate::stats::{VolumeCounters, WritebackStatus};
use crate::wait::either;
use crate::watched::Watched;
use brigade_env::Env;
use brigade_env::sync::Notify;
use brigade_format::BackingState;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// Pause after an error, the first at least: that after a whole pass doubles up to `writeback_delay`, as the same places fail again.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// The longest one.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Longest time without a look whether there is hurry.
const LOOK: Duration = Duration::from_millis(100);
/// As much as goes at once.
const FULL: Budget = Budget {
    extents: WRITEBACK_EXTENTS,
    sectors: WRITEBACK_BYTES / 512,
};
/// The same where gaps are written over: what lies between takes as much time, and a round ends with a flush.
const SPANS: Budget = Budget {
    extents: 4 * WRITEBACK_EXTENTS,
    ..FULL
};

/// What a volume's writeback works with.
pub struct WritebackParts<E: Env> {
    /// The world.
    pub env: E,
    /// The volume's slot.
    pub inode: u32,
    /// Where dirty data is.
    pub cache: Rc<Disk<E>>,
    /// Where it goes.
    pub backing: Rc<Disk<E>>,
    /// Its state.
    pub superblock: Rc<BackingSuper<E>>,
    /// First and last sector (exclusive) of the backing device that are served.
    pub range: (u64, u64),
    /// The index.
    pub index: Rc<Watched<Index>>,
    /// Brings parts of it into memory.
    pub pages: Rc<Pages<E>>,
    /// The way into it.
    pub inserter: Rc<Inserter<E>>,
    /// For making cleanings durable.
    pub journal: Rc<Journal<E>>,
    /// For the collection that may follow.
    pub tree: Rc<Tree<E>>,
    /// Who writes to the backing device.
    pub locks: Rc<RangeLocks>,
    /// Tells whether somebody wrote to the backing device since data was copied there.
    pub candidates: Rc<Candidates>,
    /// What happened.
    pub counters: Rc<VolumeCounters>,
    /// Sectors of the cache, of which a share may be dirty, and of a bucket.
    pub cache_sectors: u64,
    /// Sectors of a bucket.
    pub bucket_sectors: u64,
    /// The cache's buckets: scattered dirty data fills many of them long before it fills the target.
    pub buckets: Rc<Buckets>,
    /// How fast, and whether at all.
    pub settings: Rc<Settings>,
    /// The same, of the set.
    pub set_settings: Rc<Settings>,
    /// The other volumes, and when somebody last asked for something.
    pub clients: Rc<Clients>,
    /// What the set's memory may be.
    pub memory_bytes: u64,
}

/// See the module documentation.
pub struct Writeback<E: Env> {
    pub(super) parts: WritebackParts<E>,
    pub(super) cursor: Cell<u64>,
    pub(super) is_closing: Cell<bool>,
    pub(super) depth: Cell<Depth>,
    pub(super) bridge: Cell<Bridge>,
    pub(super) stripes: Striped,
    is_detaching: Cell<bool>,
    running: Cell<bool>,
    changed: Notify,
    controller: Cell<Controller>,
    limiter: Cell<Limiter>,
    updated: Cell<Duration>,
    /// The last request when the set was found idle.
    idle_since: Cell<Option<Duration>>,
    pass: Cell<Pass>,
    /// No pass begins for the delay after this, unless more is dirty than is meant to be.
    rests_since: Cell<Option<Duration>>,
    drain: RefCell<Option<Drain>>,
    /// The pass has met errors.
    has_failed: Cell<bool>,
    /// What follows the next pass that does.
    error_pause: Cell<Duration>,
}

/// A pass through the volume, as far as it is.
#[derive(Clone, Copy, Default)]
struct Pass {
    extents: u64,
    most_dirty: u64,
}

/// What there is to do now.
enum Work {
    /// Nothing, until something is said.
    Wait,
    /// Nothing, for so long.
    Rest(Duration),
    /// A round, without regard for the rate, or with.
    Round(Budget, Option<u64>),
}

impl<E: Env> Writeback<E> {
    /// Of one volume, whose backing device is attached from now on.
    pub fn new(parts: WritebackParts<E>) -> Rc<Self> {
        let together = &parts.clients.writeback;
        together.attach(parts.inode, parts.backing.sectors());
        let now = parts.env.now();
        Rc::new(Writeback {
            cursor: Cell::new(0),
            is_closing: Cell::new(false),
            depth: Cell::default(),
            bridge: Cell::default(),
            stripes: Striped::default(),
            is_detaching: Cell::new(false),
            running: Cell::new(false),
            changed: Notify::new(),
            controller: Cell::default(),
            limiter: Cell::default(),
            updated: Cell::new(now),
            idle_since: Cell::new(None),
            pass: Cell::default(),
            rests_since: Cell::new(Some(now)),
            drain: RefCell::default(),
            has_failed: Cell::new(false),
            error_pause: Cell::new(PAUSE),
            parts,
        })
    }

    fn dirty(&self) -> u64 {
        self.parts.index.borrow().dirty_sectors(self.parts.inode)
    }

    fn now(&self) -> Duration {
        self.parts.env.now()
    }

    pub(super) fn change<T: Copy, R>(&self, cell: &Cell<T>, change: impl FnOnce(&mut T) -> R) -> R {
        let mut value = cell.get();
        let result = change(&mut value);
        cell.set(value);
        result
    }

    // ---- the task ------------------------------------------------------------------------------------------------

    /// The background task.
    pub async fn run(self: Rc<Self>) {
        self.running.set(true);
        while !self.is_closing.get() {
            self.update_if_due();
            let told = either(self.changed.wait(), self.parts.settings.changed.wait());
            if self.parts.index.borrow().nodes.uncounted() > 0 {
                // Nobody knows what is dirty.
                self.rest(LOOK, told).await;
                continue;
            }
            self.with_drain(|drain| drain.counted(self.dirty()));
            let is_counting = self.keep_stripes().await;
            if self.dirty() == 0 {
                self.be_clean(told).await;
            } else {
                match self.work() {
                    Work::Wait | Work::Rest(_) if is_counting => {}
                    Work::Wait if self.has_uncounted() => self.rest(PAUSE, told).await,
                    Work::Wait => told.await,
                    Work::Rest(pause) => self.rest(pause.min(LOOK), told).await,
                    Work::Round(budget, rate) => self.work_off_some(budget, rate).await,
                }
            }
        }
        self.parts.clients.writeback.detach(self.parts.inode);
        self.forget_stripes();
        self.end_drain(DrainEnd::Stopped);
        self.running.set(false);
        self.changed.notify_all();
    }

    async fn rest(&self, pause: Duration, told: impl Future<Output = ()>) {
        either(self.parts.env.sleep(pause), told).await;
    }

    /// What the table of the module says.
    fn work(&self) -> Work {
        let settings = &self.parts.settings;
        let (now, dirty) = (self.now(), self.dirty());
        self.change(&self.pass, |pass| {
            pass.most_dirty = pass.most_dirty.max(dirty)
        });
        if self.is_draining() {
            return Work::Round(FULL, None);
        }
        if !settings.is_on(Knob::WritebackRunning) {
            return Work::Wait;
        }
        if self.is_urgent() {
            marks::hit(Mark::WritebackUrgent);
            return Work::Round(FULL, None);
        }
        let has_no_target = settings.get(Knob::WritebackPercent) == 0;
        let rest = self.rest_of_delay(now);
        if !rest.is_zero() && (has_no_target || dirty <= self.target()) {
            self.change(&self.limiter, |limiter| limiter.reset(now));
            return Work::Rest(rest);
        }
        if has_no_target || self.is_idle() {
            return Work::Round(FULL, None);
        }
        let rest = self.limiter.get().rest(now);
        if !rest.is_zero() {
            return Work::Rest(rest);
        }
        let rate = settings.get(Knob::WritebackRate);
        let sectors = rate.saturating_mul(WRITEBACK_ROUND.as_secs());
        let budget = Budget {
            sectors: sectors.min(FULL.sectors),
            ..FULL
        };
        Work::Round(budget, Some(rate))
    }

    fn is_draining(&self) -> bool {
        let drain = self.drain.borrow();
        self.is_detaching.get() || drain.as_ref().is_some_and(|it| it.ended().is_none())
    }

    fn is_urgent(&self) -> bool {
        let in_use = u64::from(self.parts.buckets.get().stats().in_use_percent);
        in_use > WRITEBACK_IN_USE_PERCENT || self.parts.buckets.is_dry.get()
    }

    /// Some of what is next, and what follows from how that went.
    async fn work_off_some(&self, budget: Budget, rate: Option<u64>) {
        let (outcome, is_over) = self.write_some(budget, rate).await;
        let pause = match &outcome {
            Err(error) => {
                marks::hit(Mark::WritebackFailed);
                tracing::warn!(device = self.parts.backing.name(), %error, "write-back failed; the data stays dirty");
                self.with_drain(|drain| drain.failed(error.to_string()));
                PAUSE
            }
            // What is dirty is not to be had, or is written by others.
            Ok(false) => LOOK,
            Ok(true) => Duration::ZERO,
        };
        let pause = match is_over {
            true => pause.max(self.pause_of_pass()),
            false => pause,
        };
        if self.is_beyond_repair() {
            self.end_drain(DrainEnd::Failed);
        }
        if !pause.is_zero() {
            self.pause(pause).await;
        }
    }

    /// One of the devices takes nothing any more, so nothing becomes clean.
    fn is_beyond_repair(&self) -> bool {
        self.parts.backing.check().is_err() || self.parts.cache.check().is_err()
    }

    /// How long to rest after a whole pass, by the errors it has met.
    fn pause_of_pass(&self) -> Duration {
        if !self.has_failed.replace(false) {
            self.error_pause.set(PAUSE);
            return Duration::ZERO;
        }
        if self.is_draining() || self.is_urgent() {
            return PAUSE;
        }
        let delay = self.parts.settings.time(Knob::WritebackDelay);
        // Somebody may be in need of buckets before it is over.
        let most = delay.clamp(PAUSE, PAUSE_MAX);
        let pause = self.error_pause.get().min(most);
        self.error_pause.set(pause.saturating_mul(2));
        pause
    }

    /// These extents were to be written back, and are still dirty.
    pub(super) fn note_left(&self, left: &[Extent]) {
        if !left.is_empty() {
            self.leave_some();
        }
    }

    /// The pass leaves something dirty.
    fn leave_some(&self) {
        if !self.stripes.is_ahead.get() {
            self.with_drain(Drain::leave_some);
        }
    }

    async fn pause(&self, pause: Duration) {
        let told = self.changed.wait();
        if !self.is_closing.get() {
            self.rest(pause, told).await;
        }
    }

    /// A round. Gives whether anything came of it, and whether the pass is over.
    async fn write_some(&self, budget: Budget, rate: Option<u64>) -> (io::Result<bool>, bool) {
        if self.cursor.get() <= self.parts.range.0 {
            self.with_drain(Drain::begin_pass);
        }
        let (gap, moves) = (self.gap(rate), self.parts.clients.writeback.moves());
        let budget = match gap {
            0 => budget,
            _ => SPANS,
        };
        let mut batch = self.next_batch(budget).await;
        self.stripes.is_ahead.set(batch.is_of_stripes);
        let found = batch.extents.len() as u64;
        let all = self.change(&self.pass, |pass| {
            pass.extents += found;
            pass.extents
        });
        if batch.is_last {
            self.end_pass(all);
        }
        let outcome = match batch.error.take() {
            Some(error) => Err(error),
            None if batch.extents.is_empty() => Ok(all > 0 || !batch.is_last),
            None => self.write_batch(&batch, rate, gap, moves).await,
        };
        self.note_round(&batch, outcome.is_err());
        if outcome.is_err() {
            self.has_failed.set(true);
            self.leave_some();
        }
        if batch.is_last && self.with_drain(Drain::end_pass) == Some(true) && self.dirty() > 0 {
            self.end_drain(DrainEnd::Done);
        }
        (outcome, batch.is_last)
    }

    /// Sectors of the longest gap between dirty extents that is written over. Whoever wants short writes, or few, wants none.
    fn gap(&self, rate: Option<u64>) -> u64 {
        let settings = &self.parts.settings;
        let is_wanted = rate.is_none() && settings.get(Knob::WritebackLatency) == 0;
        match is_wanted {
            true => self
                .bridge
                .get()
                .gap(settings.get(Knob::WritebackBridge) / 512),
            false => 0,
        }
    }

    async fn write_batch(
        &self,
        batch: &Batch,
        rate: Option<u64>,
        gap: u64,
        moves: u64,
    ) -> io::Result<bool> {
        if let Some(rate) = rate {
            let now = self.now();
            self.change(&self.limiter, |limiter| {
                limiter.take(batch.sectors, rate, now)
            });
        }
        let (cleaned, error) = self.round(batch, gap, moves).await?;
        let now = self.now();
        self.with_drain(|drain| drain.wrote(now, cleaned));
        error.map_or(Ok(cleaned > 0), Err)
    }

    fn end_pass(&self, extents: u64) {
        self.pass.set(Pass::default());
        self.rests_since.set(None);
        if extents < WRITEBACK_LITTLE {
            self.rest_for_delay();
        }
    }

    fn rest_for_delay(&self) {
        self.rests_since.set(Some(self.now()));
    }

    fn rest_of_delay(&self, now: Duration) -> Duration {
        let delay = self.parts.settings.time(Knob::WritebackDelay);
        let until = |since: Duration| since.saturating_add(delay).saturating_sub(now);
        self.rests_since.get().map_or(Duration::ZERO, until)
    }

    // ---- nothing dirty -------------------------------------------------------------------------------------------

    /// Has the device say that it is clean, and waits until it is not.
    async fn be_clean(&self, told: impl Future<Output = ()>) {
        let dirtied = self.parts.inserter.dirtied.wait();
        let outcome = self.become_clean().await;
        if self.dirty() > 0 || self.is_closing.get() {
            return;
        }
        self.pass.set(Pass::default());
        self.has_failed.set(false);
        if outcome.is_ok() {
            self.end_drain(DrainEnd::Done);
        }
        if let Err(error) = &outcome {
            self.with_drain(|drain| drain.failed(error.to_string()));
            tracing::warn!(device = self.parts.backing.name(), %error, "its state stays dirty");
        }
        let has_failed = self.is_beyond_repair();
        if has_failed {
            self.end_drain(DrainEnd::Failed);
        }
        let is_clean = self.parts.superblock.state() != BackingState::Dirty;
        if is_clean || has_failed {
            either(dirtied, told).await;
        } else {
            // Somebody was about to make something dirty, and perhaps did not.
            self.rest(LOOK, told).await;
        }
        if self.dirty() > 0 {
            self.updated.set(self.now());
            self.rest_for_delay();
        }
    }

    async fn become_clean(&self) -> io::Result<()> {
        if self.parts.superblock.state() != BackingState::Dirty {
            return Ok(());
        }
        let superblock = &self.parts.superblock;
        // Whoever is at it now may have made something dirty and clean again before both are flushed.
        if superblock.has_intents() {
            return Ok(());
        }
        let intended = superblock.intended();
        self.parts.backing.flush().await?;
        self.parts.journal.flush().await?;
        let is_clean = || self.dirty() == 0;
        let became = superblock.become_clean(intended, is_clean).await?;
        if became && self.parts.clients.writeback.became_clean() {
            self.parts.tree.ask_for_gc();
        }
        Ok(())
    }

    // ---- the rate ------------------------------------------------------------------------------------------------

    fn target(&self) -> u64 {
        let parts = &self.parts;
        let flash = parts.clients.flash_volumes().into_iter();
        let flash_dirty = {
            let index = parts.index.borrow();
            flash.map(|inode| index.dirty_sectors(inode)).sum()
        };
        let percent = parts.settings.get(Knob::WritebackPercent);
        let sizes = parts.clients.writeback.sizes().into_iter();
        let mine = parts.backing.sectors();
        // It may have grown.
        parts.clients.writeback.attach(parts.inode, mine);
        target(parts.cache_sectors, flash_dirty, percent, mine, sizes)
    }

    /// Whether the set was found idle, and nobody has asked for anything since. Who does ends it.
    fn is_idle(&self) -> bool {
        let Some(since) = self.idle_since.get() else {
            return false;
        };
        if since == self.parts.clients.last_request() {
            return true;
        }
        self.idle_since.set(None);
        self.parts.settings.set(Knob::WritebackRate, RATE_DISTURBED);
        false
    }

    fn update_if_due(&self) {
        let settings = &self.parts.settings;
        let period = settings.time(Knob::WritebackRateUpdateSeconds);
        let now = self.now();
        let is_due = now.saturating_sub(self.updated.get()) >= period;
        if !is_due || self.dirty() == 0 || settings.get(Knob::WritebackPercent) == 0 {
            return;
        }
        self.updated.set(now);
        self.update(now, period.as_secs());
    }

    fn update(&self, now: Duration, period: u64) {
        let (parts, set) = (&self.parts, &self.parts.set_settings);
        let (used_buckets, in_use, is_counting) = {
            let alloc = parts.buckets.get();
            let stats = alloc.stats();
            let used = stats.total - stats.available;
            (used, u64::from(stats.in_use_percent), alloc.is_counting())
        };
        let together = &parts.clients.writeback;
        together.note_use(set.is_on(Knob::GcAfterWriteback), in_use);
        let last_request = parts.clients.last_request();
        let may_idle = set.is_on(Knob::IdleMaxWritebackRate) && !is_counting;
        if may_idle && together.is_idle(last_request) {
            marks::hit(Mark::WritebackIdle);
            self.idle_since.set(Some(last_request));
            self.change(&self.controller, Controller::rest);
            parts.settings.set(Knob::WritebackRate, RATE_IDLE);
            return;
        }
        self.idle_since.set(None);
        let seen = Seen {
            dirty: self.dirty(),
            target: self.target(),
            in_use,
            used_buckets,
            bucket_sectors: parts.bucket_sectors,
            rate: parts.settings.get(Knob::WritebackRate),
            keeps_up: self.limiter.get().keeps_up(now),
            most_dirty: self.pass.get().most_dirty,
            latency: self.depth.get().average(),
        };
        let terms = self.terms(period);
        let rate = self.change(&self.controller, |it| it.update(&terms, &seen));
        parts.settings.set(Knob::WritebackRate, rate);
    }

    fn terms(&self, period: u64) -> Terms {
        let settings = &self.parts.settings;
        let weights = [
            Knob::WritebackRateFpTermLow,
            Knob::WritebackRateFpTermMid,
            Knob::WritebackRateFpTermHigh,
        ];
        Terms {
            p_inverse: settings.get(Knob::WritebackRatePTermInverse),
            i_inverse: settings.get(Knob::WritebackRateITermInverse),
            fragments: settings
                .is_on(Knob::WritebackConsiderFragment)
                .then(|| weights.map(|knob| settings.get(knob))),
            minimum: settings.get(Knob::WritebackRateMinimum),
            period,
            deadline: settings
                .time(Knob::WritebackDeadline)
                .as_micros()
                .div_ceil(1_000_000) as u64,
            latency: settings.time(Knob::WritebackLatency),
        }
    }

    // ---- draining ------------------------------------------------------------------------------------------------

    /// Writes everything back at full speed from now on, whatever the settings say, until nothing of it is dirty. Says whether that begins:
    /// one that is under way goes on.
    pub fn drain(&self) -> bool {
        if self.is_closing.get() {
            return false;
        }
        let mut drain = self.drain.borrow_mut();
        if drain.as_ref().is_some_and(|it| it.ended().is_none()) {
            return false;
        }
        let is_counted = self.parts.index.borrow().nodes.uncounted() == 0;
        *drain = Some(Drain::new(self.now(), is_counted.then(|| self.dirty())));
        self.cursor.set(0);
        drop(drain);
        self.changed.notify_all();
        true
    }

    /// Ends a drain; what it has written back stays so. Says whether there was one.
    pub fn cancel_drain(&self) -> bool {
        self.end_drain(DrainEnd::Cancelled)
    }

    /// Completes when the last drain has ended, with how it did; at once if there was none.
    pub async fn drained(&self) -> Option<DrainEnd> {
        loop {
            let changed = self.changed.wait();
            let is_over = self.is_closing.get() && !self.running.get();
            if self.drain.borrow().is_none() || self.drain_outcome().is_some() || is_over {
                return self.drain_outcome();
            }
            changed.await;
        }
    }

    fn drain_outcome(&self) -> Option<DrainEnd> {
        self.drain.borrow().as_ref().and_then(Drain::ended)
    }

    /// Everything is written back at full speed until nothing is dirty, and so is what becomes dirty later, as long as this is on: the
    /// device is to leave the set.
    pub fn set_detaching(&self, is_detaching: bool) {
        self.is_detaching.set(is_detaching);
        self.changed.notify_all();
    }

    fn with_drain<R>(&self, change: impl FnOnce(&mut Drain) -> R) -> Option<R> {
        self.drain.borrow_mut().as_mut().map(change)
    }

    /// Ends a drain, and says whether there was one.
    fn end_drain(&self, how: DrainEnd) -> bool {
        let now = self.now();
        let was_running = match &mut *self.drain.borrow_mut() {
            Some(drain) if drain.ended().is_none() => {
                drain.end(now, how);
                true
            }
            _ => false,
        };
        if was_running {
            self.changed.notify_all();
        }
        was_running
    }

    // ---- from outside --------------------------------------------------------------------------------------------

    /// For `status`.
    pub fn status(&self) -> WritebackStatus {
        let (now, dirty) = (self.now(), self.dirty());
        let (settings, counters) = (&self.parts.settings, &self.parts.counters);
        let is_running = settings.is_on(Knob::WritebackRunning);
        let controller = match is_running {
            true => self.controller.get(),
            false => Controller::default(),
        };
        let rate = match is_running || self.is_draining() {
            true => settings.get(Knob::WritebackRate),
            false => 0,
        };
        let depth = self.depth.get();
        let drain = self.drain.borrow();
        let stripes = self.stripe_status();
        WritebackStatus {
            running: is_running,
            rate: rate * 512,
            dirty: dirty * 512,
            target: self.target() * 512,
            proportional: controller.proportional * 512,
            integral: controller.integral * 512,
            change: controller.change * 512,
            next_io_ms: self.limiter.get().rest(now).as_millis() as u64,
            idle: self.idle_since.get() == Some(self.parts.clients.last_request()),
            urgent: dirty > 0 && self.is_urgent(),
            detaching: self.is_detaching.get(),
            keys_done: counters.writeback_done.get(),
            keys_failed: counters.writeback_failed.get(),
            depth: depth.get() as u64,
            latency: depth.average().as_secs_f64(),
            stripes,
            drain: drain.as_ref().map(|drain| drain.status(now, dirty)),
        }
    }

    /// Stops the task and waits for its round to end.
    pub async fn stop(&self) {
        self.is_closing.set(true);
        self.changed.notify_all();
        self.parts.inserter.dirtied.notify_all();
        while self.running.get() {
            self.changed.wait().await;
        }
    }
}
