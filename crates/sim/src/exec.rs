//! One thread, one seed, no real time: tasks are polled in random order, time jumps to the next event.

use crate::disk::{Disk, DiskState};
#[cfg(feature = "instrumented")]
use brigade_env::waits;
use brigade_env::waits::{Place, Wait};
use brigade_env::{BufferPool, Env, Survivor};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// Chance from a seed (splitmix64).
#[derive(Clone)]
pub struct Chance(Rc<Cell<u64>>);

impl Chance {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Chance(Rc::new(Cell::new(seed)))
    }
    /// Any number.
    pub fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Below `n`.
    pub fn below(&self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    /// In `low..=high`.
    pub fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }
    /// True so often.
    pub fn percent(&self, share: u64) -> bool {
        self.below(100) < share
    }
    /// One of these.
    pub fn pick<T: Copy>(&self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

thread_local! {
    /// Beats with every step of this thread's worlds, for who watches from outside.
    static HEART: Cell<Option<&'static AtomicU64>> = const { Cell::new(None) };
}

/// Has every step of this thread's worlds counted.
pub fn beat(heart: &'static AtomicU64) {
    HEART.with(|slot| slot.set(Some(heart)));
}

/// What happened, in order: always as a number that two equal runs share, and as text if asked for.
#[derive(Clone, Default)]
pub struct Trace(Rc<RefCell<Traced>>);

#[derive(Default)]
struct Traced {
    digest: u64,
    events: u64,
    text: Option<String>,
}

impl Trace {
    /// A trace that keeps the text.
    pub fn with_text() -> Self {
        let trace = Trace::default();
        trace.0.borrow_mut().text = Some(String::new());
        trace
    }

    /// Notes an event.
    pub fn note(&self, now: Duration, who: &str, what: &str, numbers: [u64; 2]) {
        let mut traced = self.0.borrow_mut();
        let bytes = who.bytes().chain(what.bytes()).map(u64::from);
        let words = [now.as_nanos() as u64, numbers[0], numbers[1]];
        for word in bytes.chain(words) {
            traced.digest = (traced.digest ^ word)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(23);
        }
        traced.events += 1;
        if let Some(text) = &mut traced.text {
            let _ = writeln!(text, "{now:?} {who} {what} {}+{}", numbers[0], numbers[1]);
        }
    }

    /// Events so far, and the number that stands for all of them.
    pub fn digest(&self) -> (u64, u64) {
        let traced = self.0.borrow();
        (traced.events, traced.digest)
    }

    /// Whether the text is kept.
    pub fn keeps_text(&self) -> bool {
        self.0.borrow().text.is_some()
    }

    /// The text so far.
    pub fn take_text(&self) -> String {
        self.0.borrow_mut().text.take().unwrap_or_default()
    }
}

struct TaskWaker {
    id: usize,
    is_queued: AtomicBool,
    ready: Arc<Mutex<Vec<usize>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().expect("one thread").push(self.id);
        }
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;
/// A task, while it is not being polled, and how it is woken.
type Slot = (Option<Task>, Arc<TaskWaker>, Born);

/// The name of a task: where it was spawned.
#[cfg(feature = "instrumented")]
#[derive(Clone, Copy)]
struct Born {
    task: waits::Task,
    place: &'static std::panic::Location<'static>,
}

#[cfg(not(feature = "instrumented"))]
#[derive(Clone, Copy)]
struct Born;

impl Born {
    #[cfg_attr(feature = "instrumented", track_caller)]
    fn here() -> Self {
        #[cfg(feature = "instrumented")]
        {
            Born {
                task: waits::new_task(),
                place: std::panic::Location::caller(),
            }
        }
        #[cfg(not(feature = "instrumented"))]
        Born
    }

    /// Does something as this task.
    fn poll<T>(self, poll: impl FnOnce() -> T) -> T {
        #[cfg(feature = "instrumented")]
        {
            waits::poll_as(self.task, poll)
        }
        #[cfg(not(feature = "instrumented"))]
        poll()
    }
}

struct Inner {
    chance: Chance,
    now: Cell<Duration>,
    steps: Cell<u64>,
    device_operations: Cell<u64>,
    trace: Trace,
    tasks: RefCell<BTreeMap<usize, Slot>>,
    next_task: Cell<usize>,
    ready: Arc<Mutex<Vec<usize>>>,
    timers: RefCell<BTreeMap<(Duration, u64), Event>>,
    next_timer: Cell<u64>,
    buffers: BufferPool,
    ended_for: RefCell<Option<String>>,
}

enum Event {
    Wake(Waker),
    Run(Box<dyn FnOnce()>),
}

/// The world of one process. Dropping its tasks is the end of the process.
#[derive(Clone)]
pub struct World(Rc<Inner>);

impl World {
    /// A new process.
    pub fn new(chance: Chance, start: Duration) -> Self {
        World::traced(chance, start, Trace::default())
    }

    /// A new process whose events are noted.
    pub fn traced(chance: Chance, start: Duration, trace: Trace) -> Self {
        World(Rc::new(Inner {
            chance,
            now: Cell::new(start),
            steps: Cell::new(0),
            device_operations: Cell::new(0),
            trace,
            tasks: RefCell::default(),
            next_task: Cell::new(0),
            ready: Arc::default(),
            timers: RefCell::default(),
            next_timer: Cell::new(0),
            buffers: BufferPool::new(8 << 20),
            ended_for: RefCell::default(),
        }))
    }

    /// The one source of chance.
    pub fn chance(&self) -> &Chance {
        &self.0.chance
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.0.steps.get()
    }

    /// Writes, discards and flushes that devices have completed. A step completes one at most, and no task has run since.
    pub fn device_operations(&self) -> u64 {
        self.0.device_operations.get()
    }

    /// Why the process asked to be ended at once, if it did.
    pub fn ended_for(&self) -> Option<String> {
        self.0.ended_for.borrow().clone()
    }

    pub(crate) fn count_device_operation(&self) {
        self.0
            .device_operations
            .set(self.0.device_operations.get() + 1);
    }

    /// Notes an event.
    pub fn note(&self, who: &str, what: &str, numbers: [u64; 2]) {
        self.0.trace.note(self.0.now.get(), who, what, numbers);
    }

    /// Tasks that have not ended, and timers that are set, for who looks at a stall; with the feature `instrumented` also who waits
    /// for whom.
    pub fn pending(&self) -> String {
        #[cfg(feature = "instrumented")]
        {
            let tasks = self.0.tasks.borrow();
            let name = |born: &Born| (born.task, format!("spawned at {}", born.place));
            let tasks: Vec<_> = tasks.values().map(|(.., born)| name(born)).collect();
            format!("{}\n{}", self.count(), waits::story(&tasks))
        }
        #[cfg(not(feature = "instrumented"))]
        self.count()
    }

    fn count(&self) -> String {
        let timers = self.0.timers.borrow();
        let next = timers.first_key_value().map(|((at, _), _)| *at);
        format!(
            "{} tasks, {} timers and I/Os, the next at {next:?}, now {:?}",
            self.0.tasks.borrow().len(),
            timers.len(),
            self.0.now.get()
        )
    }

    /// Opens a disk.
    pub fn device(&self, disk: &Rc<RefCell<DiskState>>) -> Disk {
        Disk::new(self.clone(), disk.clone())
    }

    fn event(&self, at: Duration, event: Event) {
        let number = self.0.next_timer.get();
        self.0.next_timer.set(number + 1);
        self.0.timers.borrow_mut().insert((at, number), event);
    }

    /// Runs something after a delay, outside of any task.
    pub fn after(&self, delay: Duration, run: impl FnOnce() + 'static) {
        self.event(self.now() + delay, Event::Run(Box::new(run)));
    }

    /// One step: a ready task is polled, or time passes. False if nothing will ever happen again.
    pub fn step(&self) -> bool {
        self.0.steps.set(self.0.steps.get() + 1);
        if let Some(heart) = HEART.with(Cell::get) {
            heart.fetch_add(1, Ordering::Relaxed);
        }
        let id = {
            let mut ready = self.0.ready.lock().expect("one thread");
            let count = ready.len() as u64;
            (count > 0).then(|| ready.swap_remove(self.0.chance.below(count) as usize))
        };
        // Now and then something completes although tasks are ready.
        if let Some(id) = id {
            self.poll(id);
            let soon = self.now() + Duration::from_millis(1);
            let is_near = self
                .0
                .timers
                .borrow()
                .first_key_value()
                .is_some_and(|((at, _), _)| *at < soon);
            if !is_near || !self.0.chance.percent(5) {
                return true;
            }
        }
        let next = self.0.timers.borrow_mut().pop_first();
        match next {
            Some(((at, _), event)) => {
                if at > self.0.now.get() {
                    self.0.now.set(at);
                }
                match event {
                    Event::Wake(waker) => waker.wake(),
                    Event::Run(run) => run(),
                }
                true
            }
            None => id.is_some(),
        }
    }

    fn poll(&self, id: usize) {
        let taken = {
            let mut tasks = self.0.tasks.borrow_mut();
            let Some((task, waker, born)) = tasks.get_mut(&id) else {
                return;
            };
            (task.take(), waker.clone(), *born)
        };
        let (Some(mut task), waker, born) = taken else {
            return;
        };
        waker.is_queued.store(false, Ordering::Relaxed);
        let waker = Waker::from(waker);
        let mut context = Context::from_waker(&waker);
        if born.poll(|| task.as_mut().poll(&mut context)).is_ready() {
            self.0.tasks.borrow_mut().remove(&id);
        } else if let Some((slot, ..)) = self.0.tasks.borrow_mut().get_mut(&id) {
            *slot = Some(task);
        }
    }

    /// Runs a future to its end as a task; `None` if `stop` says so before or nothing moves any more.
    #[cfg_attr(feature = "instrumented", track_caller)]
    pub fn run<T: 'static>(
        &self,
        future: impl Future<Output = T> + 'static,
        mut stop: impl FnMut() -> bool,
    ) -> Option<T> {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        self.spawn(async move {
            let value = future.await;
            *slot.borrow_mut() = Some(value);
        });
        loop {
            if let Some(value) = result.borrow_mut().take() {
                return Some(value);
            }
            if stop() || !self.step() {
                return None;
            }
        }
    }

    /// The process ends: tasks and what they hold go, nothing of them runs any more.
    pub fn kill(&self) {
        self.0.timers.borrow_mut().clear();
        loop {
            let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
            if tasks.is_empty() {
                break;
            }
            drop(tasks);
        }
        self.0.timers.borrow_mut().clear();
    }
}

impl Env for World {
    type Device = Disk;
    type Survivor = Store;

    #[cfg_attr(feature = "instrumented", track_caller)]
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let id = self.0.next_task.get();
        self.0.next_task.set(id + 1);
        let waker = Arc::new(TaskWaker {
            id,
            is_queued: AtomicBool::new(false),
            ready: self.0.ready.clone(),
        });
        self.0
            .tasks
            .borrow_mut()
            .insert(id, (Some(Box::pin(task)), waker.clone(), Born::here()));
        waker.wake();
    }
    fn now(&self) -> Duration {
        self.0.now.get()
    }
    #[cfg_attr(feature = "instrumented", track_caller)]
    fn sleep_until(&self, deadline: Duration) -> impl Future<Output = ()> + 'static {
        let world = self.clone();
        let mut is_set = false;
        let range = (self.now().as_micros() as u64, deadline.as_micros() as u64);
        let wait = Wait::new("the time (in us)", &*self.0, Some(range), Place::here());
        std::future::poll_fn(move |context| {
            if world.now() >= deadline {
                wait.end();
                return Poll::Ready(());
            }
            wait.is_polled();
            if !is_set {
                is_set = true;
                world.event(deadline, Event::Wake(context.waker().clone()));
            }
            Poll::Pending
        })
    }
    fn unix_seconds(&self) -> u32 {
        1_700_000_000 + self.0.now.get().as_secs() as u32
    }
    fn random_u64(&self) -> u64 {
        self.0.chance.next()
    }
    fn buffers(&self) -> &BufferPool {
        &self.0.buffers
    }
    /// Whoever runs the world looks for it and kills the rest.
    fn end_process(&self, why: &str) {
        self.0
            .ended_for
            .borrow_mut()
            .get_or_insert_with(|| why.into());
    }
}

/// Memory that only a power loss clears.
#[derive(Clone, Default)]
pub struct Store(pub Rc<RefCell<Vec<u8>>>);

impl Store {
    /// Another one with the same content.
    pub fn fork(&self) -> Store {
        Store(Rc::new(RefCell::new(self.0.borrow().clone())))
    }
}

impl Survivor for Store {
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut all = self.0.borrow_mut();
        let end = offset as usize + bytes.len();
        if all.len() < end {
            all.resize(end, 0);
        }
        all[offset as usize..end].copy_from_slice(bytes);
        Ok(())
    }
    fn read(&self) -> io::Result<Vec<u8>> {
        Ok(self.0.borrow().clone())
    }
    fn clear(&self) -> io::Result<()> {
        self.0.borrow_mut().clear();
        Ok(())
    }
}
