//! Waiting for one of two things, and for a condition that only one task waits for.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::task::{Poll, Waker};

/// Which of two futures was done first; the first one wins a tie.
pub(crate) enum Either<A, B> {
    First(A),
    Second(B),
}

/// Runs both until one is done and drops the other.
pub(crate) async fn race<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    let mut a = pin!(a);
    let mut b = pin!(b);
    std::future::poll_fn(move |context| {
        if let Poll::Ready(value) = a.as_mut().poll(context) {
            return Poll::Ready(Either::First(value));
        }
        b.as_mut().poll(context).map(Either::Second)
    })
    .await
}

/// Where the one task that waits leaves its waker.
#[derive(Default)]
pub(crate) struct WaitCell(Cell<Option<Waker>>);

impl WaitCell {
    /// Wakes the task, if one waits.
    pub(crate) fn wake(&self) {
        if let Some(waker) = self.0.take() {
            waker.wake();
        }
    }

    /// Waits until `condition` holds, re-checking at each wake.
    pub(crate) async fn until(&self, condition: impl Fn() -> bool) {
        std::future::poll_fn(|context| {
            if condition() {
                return Poll::Ready(());
            }
            self.0.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}
