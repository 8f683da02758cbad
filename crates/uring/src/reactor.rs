//! The core of a world: tasks, timers, slots and the engine, and the turn of the loop that joins them.

use crate::host::HostEnv;
use crate::operation::{Kind, Operation, Outcome, Payload, Request};
use crate::ring::Ring;
use crate::slots::{Abandoned, Completed, Slots};
use crate::sys;
use crate::tasks::Tasks;
use crate::threads::Threads;
use crate::timers::{TimerKey, Timers};
use crate::wake::{MAIN_TASK, Mailbox, RunQueue};
use brigade_env::BufferPool;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::os::fd::{OwnedFd, RawFd};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// Tasks polled before the engine gets a turn.
const POLLS_PER_TURN: usize = 128;
/// What may be done in place between two turns and be over at once. More is done too, but is over at the next turn, so
/// that whoever does nothing else still lets others run.
const IN_PLACE_BYTES_PER_TURN: usize = 1 << 20;
/// What an operation in place counts besides its bytes.
const IN_PLACE_BYTES_EACH: usize = 4096;

/// The engine in use.
pub(crate) enum Driver {
    Ring(Box<Ring>),
    Threads(Box<Threads>),
}

impl Driver {
    fn push(&mut self, key: u64, request: Request) {
        match self {
            Driver::Ring(ring) => ring.push(key, request),
            Driver::Threads(threads) => threads.push(key, request),
        }
    }

    fn flush(&mut self) {
        match self {
            Driver::Ring(ring) => ring.flush(),
            Driver::Threads(threads) => threads.flush(),
        }
    }

    fn turn(
        &mut self,
        may_wait: bool,
        deadline: Option<Duration>,
        completions: &mut Vec<(u64, i32)>,
    ) {
        match self {
            Driver::Ring(ring) => ring.turn(may_wait, deadline, completions),
            Driver::Threads(threads) => threads.turn(may_wait, deadline, completions),
        }
    }
}

/// Everything clones of a [`HostEnv`] share.
pub(crate) struct Core {
    pub(crate) tasks: Tasks,
    pub(crate) queue: Rc<RunQueue>,
    pub(crate) timers: Timers,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) pool: BufferPool,
    driver: RefCell<Driver>,
    slots: RefCell<Slots>,
    completions: RefCell<Vec<(u64, i32)>>,
    done_in_place: RefCell<Vec<(u64, i32)>>,
    in_place_left: Cell<usize>,
    started: Duration,
    chance: Cell<u64>,
    is_running: Cell<bool>,
    is_closed: Cell<bool>,
}

struct Running<'a>(&'a Cell<bool>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Core {
    pub(crate) fn new(
        driver: Driver,
        queue: Rc<RunQueue>,
        mailbox: Arc<Mailbox>,
        pool: BufferPool,
    ) -> Core {
        Core {
            tasks: Tasks::default(),
            queue,
            timers: Timers::default(),
            mailbox,
            pool,
            driver: RefCell::new(driver),
            slots: RefCell::default(),
            completions: RefCell::default(),
            done_in_place: RefCell::default(),
            in_place_left: Cell::new(IN_PLACE_BYTES_PER_TURN),
            started: sys::monotonic(),
            chance: Cell::new(sys::seed()),
            is_running: Cell::new(false),
            is_closed: Cell::new(false),
        }
    }

    /// The engine's name.
    pub(crate) fn engine_name(&self) -> &'static str {
        match *self.driver.borrow() {
            Driver::Ring(_) => "uring",
            Driver::Threads(_) => "threads",
        }
    }

    /// Sockets of this engine must not block.
    pub(crate) fn wants_nonblocking_sockets(&self) -> bool {
        matches!(*self.driver.borrow(), Driver::Threads(_))
    }

    /// The world has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.get()
    }

    /// Time since this world began.
    pub(crate) fn now(&self) -> Duration {
        sys::monotonic().saturating_sub(self.started)
    }

    /// The next number of a splitmix64 sequence.
    pub(crate) fn random(&self) -> u64 {
        let state = self.chance.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.chance.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Starts a task; after the end of the world it is dropped at once.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if self.is_closed.get() {
            return;
        }
        let index = self.tasks.insert(Box::pin(task));
        self.queue.begin(index);
    }

    fn run_task(&self, index: u32) {
        let Some(mut task) = self.tasks.take(index) else {
            return;
        };
        let waker = self.queue.token(index).waker();
        match task.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending if self.is_closed.get() => {}
            Poll::Pending => self.tasks.put_back(index, task),
            Poll::Ready(()) => {
                drop(task);
                self.tasks.retire(index);
            }
        }
    }

    /// Runs the world until `future` is done.
    pub(crate) fn block_on<F: Future>(&self, env: &HostEnv, future: F) -> F::Output {
        assert!(!self.is_running.replace(true), "block_on inside block_on");
        let _running = Running(&self.is_running);
        let mut future = pin!(future);
        let waker = self.queue.begin(MAIN_TASK).waker();
        let mut context = Context::from_waker(&waker);
        loop {
            for _ in 0..POLLS_PER_TURN {
                match self.queue.pop() {
                    None => break,
                    Some(MAIN_TASK) => {
                        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                            self.driver.borrow_mut().flush();
                            return output;
                        }
                    }
                    Some(index) => self.run_task(index),
                }
            }
            self.turn(Some(env));
        }
    }

    /// Mail, timers, engine; sleeps if nothing else is to be done.
    fn turn(&self, env: Option<&HostEnv>) {
        self.in_place_left.set(IN_PLACE_BYTES_PER_TURN);
        self.read_mail(env);
        let nearest = self.timers.nearest();
        if nearest.is_some() {
            self.timers.fire(self.now());
        }
        let deadline = self
            .timers
            .nearest()
            .and_then(|deadline| deadline.checked_add(self.started));
        // Without an `env` this is the end of the world, where the mail may have been the last to wait for.
        let is_over = env.is_none() && self.slots.borrow().in_flight() == 0;
        let mut completions = self.completions.take();
        completions.append(&mut self.done_in_place.borrow_mut());
        let is_idle = self.queue.is_empty() && completions.is_empty() && !self.mailbox.is_full();
        let may_wait = is_idle && !is_over;
        self.driver
            .borrow_mut()
            .turn(may_wait, deadline, &mut completions);
        for (key, result) in completions.drain(..) {
            self.complete(key, result);
        }
        self.completions.replace(completions);
    }

    fn read_mail(&self, env: Option<&HostEnv>) {
        let Some(mail) = self.mailbox.take() else {
            return;
        };
        if !mail.completions.is_empty()
            && let Driver::Threads(threads) = &mut *self.driver.borrow_mut()
        {
            threads.note_finished(mail.completions.len());
        }
        for (key, result) in mail.completions {
            self.complete(key, result);
        }
        for token in mail.wakes {
            self.queue.push(token);
        }
        if let Some(env) = env {
            mail.posts.into_iter().for_each(|post| post(env));
        }
    }

    fn complete(&self, key: u64, result: i32) {
        let completed = self.slots.borrow_mut().complete(key, result);
        self.settle(key, completed);
    }

    fn settle(&self, key: u64, completed: Completed) {
        match completed {
            Completed::Again(request) => self.driver.borrow_mut().push(key, request),
            Completed::Wake(Some(waker)) => waker.wake(),
            Completed::Orphan(operation, outcome) => discard(operation, outcome),
            Completed::Wake(None) | Completed::Unknown => {}
        }
    }

    /// Starts an operation.
    pub(crate) fn submit(self: &Rc<Self>, kind: Kind, fd: &Rc<OwnedFd>, payload: Payload) -> Op {
        self.start(Operation::new(kind, fd.clone(), payload))
    }

    fn start(self: &Rc<Self>, operation: Operation) -> Op {
        let (key, request) = self.slots.borrow_mut().insert(operation);
        if self.is_closed.get() {
            self.slots.borrow_mut().finish(key, Err(libc::ECANCELED));
        } else {
            self.driver.borrow_mut().push(key, request);
        }
        self.op(key)
    }

    fn op(self: &Rc<Self>, key: u64) -> Op {
        Op(Progress::InSlot {
            core: self.clone(),
            key,
        })
    }

    /// Whether an operation of `length` bytes may be done in place and be over at once.
    pub(crate) fn take_in_place(&self, length: usize) -> bool {
        let cost = length.saturating_add(IN_PLACE_BYTES_EACH);
        let left = self.in_place_left.get().checked_sub(cost);
        if let Some(left) = left {
            self.in_place_left.set(left);
        }
        left.is_some() && !self.is_closed.get()
    }

    /// Does an operation that does not wait, or says so, here and now. Usually it is over then.
    pub(crate) fn submit_in_place(
        self: &Rc<Self>,
        kind: Kind,
        fd: &Rc<OwnedFd>,
        payload: Payload,
    ) -> Op {
        let mut operation = Operation::new(kind, fd.clone(), payload);
        if self.is_closed.get() {
            return self.start(operation);
        }
        if !self.take_in_place(operation.length()) {
            return self.submit_in_place_for_later(operation);
        }
        // SAFETY: `operation` owns what the request points to and outlives the call (URING-1).
        let result = unsafe { operation.request().run() };
        match operation.advance(result) {
            Some(outcome) => Op(Progress::Done(outcome, operation.payload)),
            None => self.start(operation),
        }
    }

    fn submit_in_place_for_later(self: &Rc<Self>, operation: Operation) -> Op {
        let (key, request) = self.slots.borrow_mut().insert(operation);
        // SAFETY: the operation is in its slot and stays there until the completion below is delivered (URING-1).
        let result = unsafe { request.run() };
        self.done_in_place.borrow_mut().push((key, result));
        self.op(key)
    }

    /// Operations the engine has.
    #[cfg(test)]
    pub(crate) fn in_flight(&self) -> usize {
        self.slots.borrow().in_flight()
    }

    fn abandon(&self, key: u64) {
        let abandoned = self.slots.borrow_mut().abandon(key);
        match abandoned {
            Abandoned::RunsOn => {}
            Abandoned::Finished(operation, outcome) => discard(operation, outcome),
            Abandoned::Cancel => self.cancel(key),
        }
    }

    fn cancel(&self, key: u64) {
        match &mut *self.driver.borrow_mut() {
            Driver::Ring(ring) => return ring.cancel(key),
            Driver::Threads(threads) => threads.cancel(key),
        }
        let completed = self.slots.borrow_mut().finish(key, Err(libc::ECANCELED));
        self.settle(key, completed);
    }

    /// Ends the world: drops its tasks, cancels what waits for peers and waits for what devices still do.
    pub(crate) fn shutdown(&self) {
        if self.is_closed.replace(true) {
            return;
        }
        self.tasks.clear();
        self.drain();
        if let Some(mail) = self.mailbox.take() {
            drop(mail.posts);
        }
        self.queue.unregister();
    }

    fn drain(&self) {
        let sockets = self.slots.borrow().sockets_in_flight();
        sockets.into_iter().for_each(|key| self.cancel(key));
        while self.slots.borrow().in_flight() > 0 {
            self.turn(None);
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Frees what is left of an operation nobody wants.
fn discard(operation: Operation, outcome: Outcome) {
    if let (Kind::Accept, Ok(fd)) = (operation.kind, outcome) {
        drop(sys::own(fd as RawFd));
    }
    drop(operation);
}

/// The future of an operation. Dropping it leaves the operation to itself.
pub(crate) struct Op(Progress);

enum Progress {
    InSlot { core: Rc<Core>, key: u64 },
    Done(Outcome, Payload),
    Over,
}

impl Op {
    /// One that is over.
    pub(crate) fn done(count: usize, payload: Payload) -> Op {
        Op(Progress::Done(Ok(count), payload))
    }
}

impl Future for Op {
    type Output = (Outcome, Payload);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Progress::InSlot { core, key } = &self.0 {
            let polled = core.slots.borrow_mut().poll(*key, context.waker());
            let Some((outcome, payload)) = polled else {
                return Poll::Pending;
            };
            self.0 = Progress::Done(outcome, payload);
        }
        match std::mem::replace(&mut self.0, Progress::Over) {
            Progress::Done(outcome, payload) => Poll::Ready((outcome, payload)),
            Progress::InSlot { .. } | Progress::Over => panic!("polled after completion"),
        }
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        if let Progress::InSlot { core, key } = &self.0 {
            core.abandon(*key);
        }
    }
}

/// The future of a sleep.
pub(crate) struct Sleep {
    core: Rc<Core>,
    deadline: Duration,
    place: Option<TimerKey>,
}

impl Sleep {
    pub(crate) fn new(core: Rc<Core>, deadline: Duration) -> Sleep {
        Sleep {
            core,
            deadline,
            place: None,
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.core.now() >= self.deadline {
            return Poll::Ready(());
        }
        match self.place {
            Some(place) => self.core.timers.renew(place, context.waker()),
            None => {
                let place = self.core.timers.add(self.deadline, context.waker().clone());
                self.place = Some(place);
            }
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.core.timers.remove(place);
        }
    }
}
