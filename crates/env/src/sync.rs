//! Waiting, for tasks of one thread.
//!
//! All primitives are first come, first served, and none can lose a wake-up: a waiter is registered when its future is
//! *made*, not when it is first polled (a [`Notify`]), or takes its place in the queue at its first poll (a [`Semaphore`]).
//!
//! With the feature `instrumented` waits and holders are listed in [`crate::waits`], with the place where they were asked for.

use crate::waits::{Hold, Place, Wait};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

#[derive(Default)]
struct Waiter {
    woken: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Waiter {
    fn wake(&self) {
        self.woken.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// "Something changed": waiters re-check their condition when notified.
#[derive(Default)]
pub struct Notify {
    waiters: RefCell<VecDeque<Rc<Waiter>>>,
}

impl Notify {
    /// No waiters.
    pub fn new() -> Self {
        Self::default()
    }

    /// A future that completes at the next notification after this call.
    #[cfg_attr(feature = "instrumented", track_caller)]
    pub fn wait(&self) -> Notified<'_> {
        self.wait_at(Place::here())
    }

    fn wait_at(&self, place: Place) -> Notified<'_> {
        let waiter = Rc::new(Waiter::default());
        self.waiters.borrow_mut().push_back(waiter.clone());
        Notified {
            notify: self,
            waiter,
            wait: Wait::new("a notification", self, None, place),
        }
    }

    /// Wakes everybody who waits now.
    pub fn notify_all(&self) {
        let waiters = std::mem::take(&mut *self.waiters.borrow_mut());
        for waiter in waiters {
            waiter.wake();
        }
    }

    /// Wakes the one who waits longest, if any.
    pub fn notify_one(&self) {
        let first = self.waiters.borrow_mut().pop_front();
        if let Some(waiter) = first {
            waiter.wake();
        }
    }

    /// How many wait.
    pub fn waiters(&self) -> usize {
        self.waiters.borrow().len()
    }

    /// Waits until `condition` gives a value, re-checking at each notification.
    #[cfg_attr(feature = "instrumented", track_caller)]
    pub fn until<T>(&self, mut condition: impl FnMut() -> Option<T>) -> impl Future<Output = T> {
        let place = Place::here();
        async move {
            loop {
                if let Some(value) = condition() {
                    return value;
                }
                self.wait_at(place).await;
            }
        }
    }
}

/// See [`Notify::wait`].
pub struct Notified<'a> {
    notify: &'a Notify,
    waiter: Rc<Waiter>,
    wait: Wait,
}

impl Future for Notified<'_> {
    type Output = ();
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.waiter.woken.get() {
            self.wait.end();
            return Poll::Ready(());
        }
        self.wait.is_polled();
        *self.waiter.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        if !self.waiter.woken.get() {
            self.notify
                .waiters
                .borrow_mut()
                .retain(|w| !Rc::ptr_eq(w, &self.waiter));
        }
    }
}

/// A number of permits, handed out in the order of asking; a large request at the front makes later ones wait.
pub struct Semaphore {
    free: Cell<usize>,
    queue: RefCell<VecDeque<(usize, Rc<Waiter>)>>,
}

impl Semaphore {
    /// `permits` of them.
    pub fn new(permits: usize) -> Self {
        Semaphore {
            free: Cell::new(permits),
            queue: RefCell::default(),
        }
    }

    /// Takes `count` permits, waiting for them; the guard gives them back. `count` must not exceed the total.
    #[cfg_attr(feature = "instrumented", track_caller)]
    pub fn acquire(&self, count: usize) -> impl Future<Output = Permits<'_>> {
        self.acquire_at(count, "permits", Place::here())
    }

    async fn acquire_at(&self, count: usize, kind: &'static str, place: Place) -> Permits<'_> {
        let waiter = Rc::new(Waiter::default());
        self.queue.borrow_mut().push_back((count, waiter.clone()));
        self.hand_out();
        Acquire {
            semaphore: self,
            waiter,
            count,
            taken: false,
            wait: Wait::new(kind, self, None, place),
        }
        .await;
        Permits {
            semaphore: self,
            count,
            _hold: Hold::new(self, None, place),
        }
    }

    /// Takes `count` permits if they are there and nobody waits.
    #[cfg_attr(feature = "instrumented", track_caller)]
    pub fn try_acquire(&self, count: usize) -> Option<Permits<'_>> {
        if !self.queue.borrow().is_empty() || self.free.get() < count {
            return None;
        }
        self.free.set(self.free.get() - count);
        Some(Permits {
            semaphore: self,
            count,
            _hold: Hold::new(self, None, Place::here()),
        })
    }

    /// Permits nobody holds.
    pub fn free(&self) -> usize {
        self.free.get()
    }

    fn hand_out(&self) {
        loop {
            let waiter = {
                let mut queue = self.queue.borrow_mut();
                match queue.front() {
                    Some((count, _)) if *count <= self.free.get() => {
                        self.free.set(self.free.get() - *count);
                        queue.pop_front().map(|(_, waiter)| waiter)
                    }
                    _ => None,
                }
            };
            match waiter {
                Some(waiter) => waiter.wake(),
                None => return,
            }
        }
    }
}

struct Acquire<'a> {
    semaphore: &'a Semaphore,
    waiter: Rc<Waiter>,
    count: usize,
    taken: bool,
    wait: Wait,
}

impl Future for Acquire<'_> {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.waiter.woken.get() {
            self.taken = true;
            self.wait.end();
            return Poll::Ready(());
        }
        self.wait.is_polled();
        *self.waiter.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        if self.waiter.woken.get() {
            self.semaphore
                .free
                .set(self.semaphore.free.get() + self.count);
        } else {
            self.semaphore
                .queue
                .borrow_mut()
                .retain(|(_, w)| !Rc::ptr_eq(w, &self.waiter));
        }
        self.semaphore.hand_out();
    }
}

/// Permits held; dropping gives them back.
pub struct Permits<'a> {
    semaphore: &'a Semaphore,
    count: usize,
    _hold: Hold,
}

impl Drop for Permits<'_> {
    fn drop(&mut self) {
        self.semaphore
            .free
            .set(self.semaphore.free.get() + self.count);
        self.semaphore.hand_out();
    }
}

/// A lock that is waited for in turn. It guards a duty rather than data; put data in a `RefCell` beside it.
pub struct Lock(Semaphore);

impl Default for Lock {
    fn default() -> Self {
        Lock(Semaphore::new(1))
    }
}

impl Lock {
    /// Waits for its turn.
    #[cfg_attr(feature = "instrumented", track_caller)]
    pub fn lock(&self) -> impl Future<Output = Permits<'_>> {
        self.0.acquire_at(1, "a lock", Place::here())
    }
}

/// One value, handed over once.
pub struct Promise<T> {
    state: Rc<PromiseState<T>>,
    wait: Wait,
}

struct PromiseState<T> {
    value: RefCell<Option<T>>,
    waker: RefCell<Option<Waker>>,
}

/// Both ends of a [`Promise`]: the one who keeps it and the one who waits.
#[cfg_attr(feature = "instrumented", track_caller)]
pub fn promise<T>() -> (Keeper<T>, Promise<T>) {
    promise_of("a promise")
}

/// The same, saying what it is that is promised.
#[cfg_attr(feature = "instrumented", track_caller)]
pub fn promise_of<T>(what: &'static str) -> (Keeper<T>, Promise<T>) {
    let state = Rc::new(PromiseState {
        value: RefCell::new(None),
        waker: RefCell::new(None),
    });
    let wait = Wait::new(what, &*state, None, Place::here());
    (Keeper(state.clone()), Promise { state, wait })
}

/// The giving end of a [`Promise`].
pub struct Keeper<T>(Rc<PromiseState<T>>);

impl<T> Keeper<T> {
    /// Hands the value over.
    pub fn keep(self, value: T) {
        *self.0.value.borrow_mut() = Some(value);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }
}

impl<T> Future for Promise<T> {
    type Output = T;
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        if let Some(value) = self.state.value.borrow_mut().take() {
            self.wait.end();
            return Poll::Ready(value);
        }
        self.wait.is_polled();
        *self.state.waker.borrow_mut() = Some(context.waker().clone());
        Poll::Pending
    }
}

/// Runs all futures at once and gives their results in order.
pub fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> JoinAll<F> {
    join_by(usize::MAX, futures)
}

/// The same, but no more than `at_once` of them begin in one step: what a device in memory is asked for is done at once, and others
/// have to wait for it.
pub fn join_by<F: Future>(at_once: usize, futures: impl IntoIterator<Item = F>) -> JoinAll<F> {
    let slots = futures
        .into_iter()
        .map(|f| Slot::Running(Box::pin(f)))
        .collect();
    JoinAll {
        slots,
        at_once: at_once.max(1),
        begun: 0,
    }
}

enum Slot<F: Future> {
    Running(Pin<Box<F>>),
    Done(F::Output),
    Taken,
}

/// See [`join_all`].
pub struct JoinAll<F: Future> {
    slots: Vec<Slot<F>>,
    at_once: usize,
    begun: usize,
}

impl<F: Future> Unpin for JoinAll<F> {}

impl<F: Future> Future for JoinAll<F> {
    type Output = Vec<F::Output>;
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let begun = self.begun.saturating_add(self.at_once);
        self.begun = begun.min(self.slots.len());
        let mut pending = self.begun < self.slots.len();
        if pending {
            context.waker().wake_by_ref();
        }
        let begun = self.begun;
        for slot in &mut self.slots[..begun] {
            if let Slot::Running(future) = slot {
                match future.as_mut().poll(context) {
                    Poll::Ready(value) => *slot = Slot::Done(value),
                    Poll::Pending => pending = true,
                }
            }
        }
        if pending {
            return Poll::Pending;
        }
        let values = self
            .slots
            .iter_mut()
            .map(|slot| match std::mem::replace(slot, Slot::Taken) {
                Slot::Done(value) => value,
                Slot::Running(_) | Slot::Taken => unreachable!("polled after completion"),
            });
        Poll::Ready(values.collect())
    }
}

/// Runs two futures at once.
pub async fn join<A: Future, B: Future>(a: A, b: B) -> (A::Output, B::Output) {
    let mut a = std::pin::pin!(a);
    let mut b = std::pin::pin!(b);
    let mut first = None;
    let mut second = None;
    std::future::poll_fn(move |context| {
        if first.is_none()
            && let Poll::Ready(value) = a.as_mut().poll(context)
        {
            first = Some(value);
        }
        if second.is_none()
            && let Poll::Ready(value) = b.as_mut().poll(context)
        {
            second = Some(value);
        }
        match (first.take(), second.take()) {
            (Some(x), Some(y)) => Poll::Ready((x, y)),
            (x, y) => {
                first = x;
                second = y;
                Poll::Pending
            }
        }
    })
    .await
}

/// Lets other ready tasks run once.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(move |context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn no_more_than_so_many_begin_in_one_step_and_all_end_in_order() {
        let begun = std::cell::Cell::new(0);
        let one = |number: usize| {
            let begun = &begun;
            async move {
                begun.set(begun.get() + 1);
                yield_now().await;
                number
            }
        };
        let mut all = std::pin::pin!(join_by(2, (0..5).map(one)));
        for expected in [2, 4, 5] {
            assert_eq!(begun.get(), expected - if expected == 5 { 1 } else { 2 });
            assert!(poll_once(all.as_mut()).is_pending());
            assert_eq!(begun.get(), expected);
        }
        assert_eq!(poll_once(all.as_mut()), Poll::Ready(vec![0, 1, 2, 3, 4]));
        let mut none = std::pin::pin!(join_by(2, (0..0).map(one)));
        assert_eq!(poll_once(none.as_mut()), Poll::Ready(vec![]));
    }

    #[test]
    fn a_notification_between_wait_and_poll_is_not_lost() {
        let notify = Notify::new();
        let wait = notify.wait();
        notify.notify_all();
        let mut wait = std::pin::pin!(wait);
        assert!(poll_once(wait.as_mut()).is_ready());
    }

    #[test]
    fn permits_are_handed_out_in_the_order_of_asking() {
        let semaphore = Semaphore::new(2);
        let held = semaphore.try_acquire(2).expect("free");
        let mut large = Box::pin(semaphore.acquire(2));
        let mut small = Box::pin(semaphore.acquire(1));
        assert!(poll_once(large.as_mut()).is_pending());
        assert!(poll_once(small.as_mut()).is_pending());
        assert!(semaphore.try_acquire(1).is_none());
        drop(held);
        assert!(poll_once(small.as_mut()).is_pending());
        let Poll::Ready(taken) = poll_once(large.as_mut()) else {
            panic!("its turn")
        };
        drop(taken);
        assert!(poll_once(small.as_mut()).is_ready());
    }

    #[test]
    fn a_waiter_that_leaves_gives_its_turn_back() {
        let semaphore = Semaphore::new(1);
        let held = semaphore.try_acquire(1).expect("free");
        let mut first = Box::pin(semaphore.acquire(1));
        assert!(poll_once(first.as_mut()).is_pending());
        drop(held);
        drop(first);
        assert_eq!(semaphore.free(), 1);
    }

    #[test]
    fn join_runs_both_to_their_end() {
        let (keeper, promise) = promise::<u32>();
        let mut both = Box::pin(join(promise, async { 5 }));
        assert!(poll_once(both.as_mut()).is_pending());
        keeper.keep(3);
        assert!(matches!(poll_once(both.as_mut()), Poll::Ready((3, 5))));
    }
}
