//! The stage being filled and the task that writes it.

use super::ring::{Ring, RingPlan, RingStart};
use super::survivor::SurvivorLog;
use crate::device::Disk;
use crate::error::Poison;
use crate::limits::{
    JOURNAL_DELAY_MIN, JOURNAL_STUCK_MAX, OPEN_ENTRIES_HIGH, OPEN_ENTRIES_MAX, SECTOR,
};
use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use crate::settings::{Knob, Settings};
use crate::stats::{Cause, Counter};
use brigade_env::sync::Notify;
use brigade_env::{Durability, Env};
use brigade_format::{Key, jset};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

/// What the header of every entry names. Set by those who own it.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Key of the root node.
    pub root: Key,
    /// Its level.
    pub root_level: u16,
    /// Key of the UUID table.
    pub uuid_bucket: Key,
    /// First bucket of the gen table.
    pub prio_head: u64,
}

/// How a session's journal starts.
pub struct JournalSetup<E: Env> {
    /// Where it is.
    pub disk: Rc<Disk<E>>,
    /// See [`brigade_format::superblock::CacheGeometry`].
    pub set_magic: u64,
    /// Sectors of a bucket.
    pub bucket_sectors: u64,
    /// Sectors of a block.
    pub block_sectors: u64,
    /// The ring as found.
    pub ring: RingStart,
    /// Number of the next entry.
    pub next_seq: u64,
    /// Oldest entry the newest durable one still needs; `next_seq` if none.
    pub last_seq: u64,
    /// First header.
    pub roots: Roots,
    /// Longest wait of a key.
    pub settings: Rc<Settings>,
}

struct State<S: brigade_env::Survivor> {
    ring: Ring,
    roots: Roots,
    seq: u64,
    words: Vec<u64>,
    is_wanted: bool,
    timer_set: bool,
    in_flight: bool,
    durable_seq: u64,
    durable_last_seq: u64,
    pins: BTreeMap<u64, usize>,
    survivor: Option<SurvivorLog<S>>,
    entries_written: u64,
    last_took: Duration,
    is_closing: bool,
    is_settled: bool,
    /// The gen table is one of a clean stop.
    is_stopped: bool,
}

/// See the module documentation.
pub struct Journal<E: Env> {
    env: E,
    disk: Rc<Disk<E>>,
    poison: Rc<Poison>,
    set_magic: u64,
    block_sectors: u64,
    words_max: usize,
    words_fit: usize,
    settings: Rc<Settings>,
    state: RefCell<State<E::Survivor>>,
    work: Notify,
    progress: Notify,
    room_waits: Counter,
    /// Raised when leaves should be written to make room.
    pub pressure: Notify,
}

impl<E: Env> Journal<E> {
    /// Starts the session's journal; nothing is written yet.
    pub fn new(env: E, poison: Rc<Poison>, setup: JournalSetup<E>) -> Rc<Self> {
        let plan = plan(
            setup.ring.buckets.len(),
            setup.bucket_sectors,
            setup.block_sectors,
        );
        let plan = plan.unwrap_or(RingPlan {
            entry_sectors: setup.bucket_sectors,
            reserve: setup.ring.buckets.len() - 1,
        });
        let words_of = |sectors: u64| {
            let bytes = jset::MAX_BYTES.min((sectors * SECTOR) as usize);
            ((bytes - jset::HEADER_BYTES) / 8).min(jset::MAX_KEY_WORDS)
        };
        let words_max = words_of(plan.entry_sectors);
        let words_fit = words_of(setup.bucket_sectors);
        let journal = Rc::new(Journal {
            env,
            disk: setup.disk,
            poison: poison.clone(),
            set_magic: setup.set_magic,
            block_sectors: setup.block_sectors,
            words_max,
            words_fit,
            settings: setup.settings,
            state: RefCell::new(State {
                ring: Ring::new(
                    setup.ring,
                    (setup.bucket_sectors, setup.block_sectors),
                    plan.reserve,
                    setup.last_seq,
                ),
                roots: setup.roots,
                seq: setup.next_seq,
                words: Vec::new(),
                is_wanted: false,
                timer_set: false,
                in_flight: false,
                durable_seq: setup.next_seq - 1,
                durable_last_seq: setup.last_seq,
                pins: BTreeMap::new(),
                survivor: None,
                entries_written: 0,
                last_took: Duration::ZERO,
                is_closing: false,
                is_settled: false,
                is_stopped: false,
            }),
            work: Notify::new(),
            progress: Notify::new(),
            room_waits: Counter::default(),
            pressure: Notify::new(),
        });
        let weak = Rc::downgrade(&journal);
        poison.when_thrown(move || {
            if let Some(journal) = weak.upgrade() {
                journal.work.notify_all();
                journal.progress.notify_all();
                journal.pressure.notify_all();
            }
        });
        journal
    }

    /// Asks for an entry with the header as it is now and everything appended so far; gives its number. Does not wait.
    pub fn ask(&self) -> u64 {
        self.want();
        self.state.borrow().seq
    }

    /// Words of keys that clients may put into an empty entry.
    pub fn words_max(&self) -> usize {
        self.words_max
    }

    /// Words of keys that fit the longest entry there can be: a stage of a server that planned the ring in another way.
    pub fn words_fit(&self) -> usize {
        self.words_fit
    }

    /// Whether `words` more words of keys would be taken now from a client.
    pub fn has_room(&self, words: usize) -> bool {
        let state = self.state.borrow();
        state.words.len() + words <= self.words_max
            && state.ring.free(state.durable_last_seq) >= state.ring.reserve()
            && state.seq - state.pins.keys().next().copied().unwrap_or(state.seq) < OPEN_ENTRIES_MAX
    }

    /// Waits until [`Journal::has_room`].
    pub async fn room(&self, words: usize) -> io::Result<()> {
        assert!(words <= self.words_max, "one operation's keys fit an entry");
        if !self.has_room(words) {
            self.room_waits.add(1);
        }
        loop {
            self.poison.check()?;
            if self.has_room(words) {
                return Ok(());
            }
            let progress = self.progress.wait();
            marks::hit(Mark::InsertWaitsForRoom);
            let full = self.state.borrow().words.len() + words > self.words_max;
            if full {
                self.want();
            }
            self.pressure.notify_all();
            progress.await;
        }
    }

    /// Adds keys to the stage and to the record in memory, and gives the stage's number. There must be room
    /// (asked for in the same synchronous step), except for the few keys of the set's own recovery.
    pub fn append(self: &Rc<Self>, keys: impl IntoIterator<Item = Key>) -> u64 {
        self.append_at_most(self.words_max, keys)
    }

    /// The same of a stage out of the record, or a part of it, of at most [`Journal::words_fit`]. Nothing else is in the stage.
    pub fn append_recorded(self: &Rc<Self>, keys: impl IntoIterator<Item = Key>) -> u64 {
        self.append_at_most(self.words_fit, keys)
    }

    fn append_at_most(
        self: &Rc<Self>,
        words_most: usize,
        keys: impl IntoIterator<Item = Key>,
    ) -> u64 {
        let mut state = self.state.borrow_mut();
        let first = state.words.len();
        for key in keys {
            key.push_to(&mut state.words);
        }
        assert!(state.words.len() <= words_most, "room was asked for");
        let seq = state.seq;
        let State {
            survivor, words, ..
        } = &mut *state;
        if let Some(log) = survivor
            && let Err(error) = log.append(seq, recorded(&words[first..]))
        {
            tracing::warn!(%error, "record in memory failed; writes are acknowledged by the journal from now on");
            *survivor = None;
        }
        if !state.timer_set && !state.is_closing {
            state.timer_set = true;
            let most = self.settings.time(Knob::JournalDelayMs);
            let delay = (state.last_took * 4).clamp(JOURNAL_DELAY_MIN.min(most), most);
            drop(state);
            let journal = self.clone();
            self.env.spawn(async move {
                journal.env.sleep(delay).await;
                if journal.state.borrow().seq == seq {
                    journal.want();
                }
            });
        }
        seq
    }

    /// Whether what is appended is in the record in memory at once.
    pub fn remembers(&self) -> bool {
        self.state.borrow().survivor.is_some()
    }

    /// Waits until keys appended to stage `seq` survive this process.
    pub async fn survives(&self, seq: u64) -> io::Result<()> {
        if self.state.borrow().survivor.is_some() || mutations::is(Mutation::AckBeforeJournal) {
            return self.poison.check();
        }
        marks::hit(Mark::RecordAbsent);
        self.flush_through(seq).await
    }

    /// Waits until entry `seq` is durable.
    pub async fn flush_through(&self, seq: u64) -> io::Result<()> {
        loop {
            self.poison.check()?;
            let progress = self.progress.wait();
            {
                let mut state = self.state.borrow_mut();
                if state.durable_seq >= seq {
                    return Ok(());
                }
                if state.seq <= seq {
                    state.is_wanted = true;
                }
            }
            self.work.notify_all();
            progress.await;
        }
    }

    /// Makes everything appended so far durable. Costs nothing if there is nothing.
    pub async fn flush(&self) -> io::Result<()> {
        let target = {
            let state = self.state.borrow();
            if state.words.is_empty() {
                state.seq - 1
            } else {
                state.seq
            }
        };
        self.flush_through(target).await
    }

    /// Writes an entry even without keys, with the header as it is now, and waits for it.
    pub async fn write_now(&self) -> io::Result<u64> {
        let seq = self.state.borrow().seq;
        self.flush_through(seq).await?;
        Ok(seq)
    }

    /// Whether an entry of so many words of keys that frees nothing could be written, and behind it one that makes room.
    pub fn has_place(&self, words: usize) -> bool {
        let state = self.state.borrow();
        let sectors = self.entry_sectors(words);
        state.ring.has_place(sectors, state.durable_last_seq)
    }

    fn entry_sectors(&self, words: usize) -> u64 {
        let bytes = jset::HEADER_BYTES + words * 8;
        (bytes as u64).div_ceil(self.block_sectors * SECTOR) * self.block_sectors
    }

    /// Changes the header of the entries to come.
    pub fn set_roots(&self, change: impl FnOnce(&mut Roots)) {
        change(&mut self.state.borrow_mut().roots);
    }

    /// Keeps entry `seq` and all later ones needed until [`Journal::unpin`].
    pub fn pin(&self, seq: u64) {
        *self.state.borrow_mut().pins.entry(seq).or_default() += 1;
    }

    /// Gives a pin back: the leaf with the keys of that entry is durable.
    pub fn unpin(&self, seq: u64) {
        let mut state = self.state.borrow_mut();
        let count = state.pins.get_mut(&seq).expect("a pin held");
        *count -= 1;
        if *count == 0 {
            state.pins.remove(&seq);
            if state.is_wanted {
                self.work.notify_all();
            }
        }
    }

    /// Panics unless the entries that leaves hold are held here, and nothing held has been let go (JNL-2, TREE-3).
    pub fn audit(&self, leaves: impl Iterator<Item = u64>) {
        let state = self.state.borrow();
        for seq in leaves {
            assert!(
                state.pins.contains_key(&seq),
                "TREE-3: entry {seq} is not held"
            );
        }
        if let Some(oldest) = state.pins.keys().next() {
            assert!(
                *oldest >= state.durable_last_seq,
                "JNL-2: entry {oldest} is gone"
            );
        }
    }

    /// Newest number that is durable.
    pub fn durable_seq(&self) -> u64 {
        self.state.borrow().durable_seq
    }

    /// No entry before this one can be replayed.
    pub fn durable_last_seq(&self) -> u64 {
        self.state.borrow().durable_last_seq
    }

    /// Whether leaves should be written: the ring is half full, or clients are about to be held back, or too many entries are open.
    pub fn is_pressed(&self) -> bool {
        let state = self.state.borrow();
        let oldest = state.pins.keys().next().copied().unwrap_or(state.seq);
        let free = state.ring.free(state.durable_last_seq);
        let is_low =
            free <= state.ring.reserve().max(state.ring.len() / 2) && free + 1 < state.ring.len();
        is_low || free < state.ring.reserve() || state.seq - oldest > OPEN_ENTRIES_HIGH
    }

    /// Whether writing one more entry now would free buckets of the ring.
    pub fn would_free(&self) -> bool {
        let state = self.state.borrow();
        state.ring.free(last_seq(&state)) > state.ring.free(state.durable_last_seq)
    }

    /// How often keys had to wait for room.
    pub fn room_waits(&self) -> u64 {
        self.room_waits.get()
    }

    /// For `status`.
    pub fn status(&self) -> crate::stats::JournalStatus {
        let state = self.state.borrow();
        crate::stats::JournalStatus {
            seq: state.seq,
            durable_seq: state.durable_seq,
            last_seq: last_seq(&state),
            buckets: state.ring.len() as u64,
            buckets_free: state.ring.free(state.durable_last_seq) as u64,
            entries_written: state.entries_written,
            memory_record: state.survivor.is_some(),
        }
    }

    /// From now on entries are marked as Brigade's: what an opening has to put right after a kernel is in the leaves. Until then
    /// a crash must let the next opening compare again.
    pub fn settle(&self) {
        self.state.borrow_mut().is_settled = true;
    }

    /// From now on plain writes are acknowledged by the record in memory.
    pub fn use_survivor(&self, log: SurvivorLog<E::Survivor>) {
        let mut state = self.state.borrow_mut();
        assert!(
            state.words.is_empty(),
            "the record begins with an empty stage"
        );
        state.survivor = Some(log);
    }

    /// Ends the session: an empty entry that needs nothing (docs/format.md 8.4), then no more. `with_table`: the gen table it
    /// names is one of a clean stop.
    pub async fn close(&self, with_table: bool) -> io::Result<()> {
        self.flush().await?;
        self.state.borrow_mut().is_stopped = with_table;
        self.write_now().await?;
        let mut state = self.state.borrow_mut();
        assert!(
            state.pins.is_empty() || self.poison.is_thrown(),
            "all leaves are durable"
        );
        if let Some(mut survivor) = state.survivor.take() {
            survivor.finish()?;
        }
        state.is_closing = true;
        drop(state);
        self.work.notify_all();
        Ok(())
    }

    /// Lets the writer task end without writing anything more.
    pub fn abandon(&self) {
        self.state.borrow_mut().is_closing = true;
        self.work.notify_all();
        self.progress.notify_all();
    }

    fn want(&self) {
        self.state.borrow_mut().is_wanted = true;
        self.work.notify_all();
    }

    /// The writer task.
    pub async fn run(self: Rc<Self>) {
        loop {
            let work = self.work.wait();
            let (closing, wanted) = {
                let state = self.state.borrow();
                (state.is_closing, state.is_wanted)
            };
            if closing || self.poison.is_thrown() {
                self.progress.notify_all();
                return;
            }
            if !wanted {
                work.await;
                continue;
            }
            let Some((sector, entry, seq, last_seq)) = self.take_stage() else {
                marks::hit(Mark::JournalFull);
                self.pressure.notify_all();
                crate::wait::either(work, self.watch()).await;
                continue;
            };
            let started = self.env.now();
            let result = self.write_entry(sector, &entry).await;
            let mut state = self.state.borrow_mut();
            state.in_flight = false;
            if result.is_ok() {
                state.durable_seq = seq;
                state.durable_last_seq = last_seq;
                state.entries_written += 1;
                state.last_took = self.env.now().saturating_sub(started);
            }
            drop(state);
            self.progress.notify_all();
            if self.is_pressed() {
                self.pressure.notify_all();
            }
        }
    }

    /// Waits as long as an entry without a place may have to wait, and poisons the set if nothing moved meanwhile (JNL-7).
    async fn watch(&self) {
        let traces = || {
            let state = self.state.borrow();
            (state.seq, last_seq(&state), self.disk.written().1)
        };
        let before = traces();
        self.env.sleep(JOURNAL_STUCK_MAX).await;
        if traces() == before {
            let name = self.disk.name();
            self.poison.throw(format!(
                "{name}: journal: the ring is full, and nothing can be written that would make room"
            ));
        }
    }

    async fn write_entry(&self, sector: u64, entry: &[u8]) -> io::Result<()> {
        if !mutations::is(Mutation::JournalForgetsFlush) {
            self.disk.flush().await?;
        }
        let durability = if mutations::is(Mutation::JournalForgetsFua) {
            Durability::Volatile
        } else {
            Durability::Durable
        };
        self.disk
            .write_metadata(Cause::Journal, sector, entry, durability)
            .await
    }

    /// Closes the stage and opens the next: what is to be written where. `None` if the ring has no room.
    fn take_stage(&self) -> Option<(u64, Vec<u8>, u64, u64)> {
        let mut state = self.state.borrow_mut();
        assert!(!state.in_flight, "JNL-1");
        let seq = state.seq;
        let last = last_seq(&state);
        assert!(last >= state.durable_last_seq.min(seq), "JNL-2");
        let block_bytes = self.block_sectors * SECTOR;
        let sectors = self.entry_sectors(state.words.len());
        let durable_last = state.durable_last_seq;
        let sector = state.ring.take(sectors, seq, last, durable_last)?;
        if state.words.is_empty() {
            marks::hit(Mark::JournalEmptyEntry);
        }
        let header = jset::JsetHeader {
            seq,
            version: 1,
            last_seq: last,
            uuid_bucket: state.roots.uuid_bucket,
            btree_root: state.roots.root,
            btree_level: state.roots.root_level,
            prio_bucket: state.roots.prio_head,
        };
        let mut entry = jset::encode(&header, &state.words, self.set_magic, block_bytes as usize);
        let is_empty = state.words.is_empty() && last == seq;
        match (state.is_settled, state.is_stopped && is_empty) {
            (true, true) => jset::mark(&mut entry, jset::Mark::Stopped),
            (true, false) => jset::mark(&mut entry, jset::Mark::Running),
            (false, _) => (),
        }
        state.words.clear();
        state.seq = seq + 1;
        state.is_wanted = false;
        state.timer_set = false;
        state.in_flight = true;
        Some((sector, entry, seq, last))
    }
}

/// The keys that go into the record in memory.
fn recorded(words: &[u64]) -> &[u64] {
    let is_hole = words.len() == 2;
    if is_hole && mutations::is(Mutation::RecordWithoutHoles) {
        return &[];
    }
    words
}

/// How the ring is shared; `None` if it is too small.
pub fn plan(count: usize, bucket_sectors: u64, block_sectors: u64) -> Option<RingPlan> {
    RingPlan::new(
        count,
        bucket_sectors,
        block_sectors,
        jset::MAX_BYTES as u64 / SECTOR,
    )
}

fn last_seq<S: brigade_env::Survivor>(state: &State<S>) -> u64 {
    if mutations::is(Mutation::JournalForgetsPins) {
        return state.seq;
    }
    state
        .pins
        .keys()
        .next()
        .copied()
        .unwrap_or(state.seq)
        .min(state.seq)
}
