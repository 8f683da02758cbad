//! How long background tasks keep the thread to themselves.
//!
//! Everything runs on one thread, so a step of a background task, from one await to the next, is how long a request may have
//! to wait for it. Each task's steps are timed by the processor time of the thread: a busy host makes everybody wait, whatever
//! the step.

use brigade_env::Env;
use serde::Serialize;
use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// Background tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Leaves are written, old pointers go.
    Index,
    /// Journal entries are written.
    Journal,
    /// Buckets are made ready, gen tables are written.
    Allocator,
    /// Dirty data goes to the backing device.
    Writeback,
    /// Clean data goes into the cache.
    Fill,
    /// Leaves come back into memory.
    Leaf,
    /// Leaves are counted after the start.
    Count,
    /// Data moves out of buckets that are mostly dead.
    Moving,
    /// What removed devices and volumes left goes.
    Sweep,
}

/// Names of [`Task`], in order.
const NAMES: [&str; 9] = [
    "index",
    "journal",
    "allocator",
    "writeback",
    "fill",
    "leaf",
    "count",
    "moving",
    "sweep",
];

/// Times of one task's steps.
#[derive(Default)]
struct Times {
    count: Cell<u64>,
    total: Cell<Duration>,
    longest: Cell<Duration>,
    long: Cell<u64>,
}

/// No step should take longer. (One that does may have waited for memory, or for a host that had something else to do.)
const LONG: Duration = Duration::from_micros(500);

/// The steps of all background tasks.
#[derive(Default)]
pub struct Steps([Times; NAMES.len()]);

/// For `status`: the steps of a task since the server started.
#[derive(Clone, Debug, Serialize)]
pub struct StepStatus {
    /// Which.
    pub task: &'static str,
    /// Steps.
    pub steps: u64,
    /// All of them.
    pub total_ms: u64,
    /// The longest one.
    pub longest_us: u64,
    /// Those of more than 500 us.
    pub over_500_us: u64,
}

impl Steps {
    /// A background task whose steps are timed.
    pub fn timed<E: Env>(
        self: &Rc<Self>,
        env: &E,
        task: Task,
        future: impl Future<Output = ()> + 'static,
    ) -> impl Future<Output = ()> + 'static {
        let (steps, env) = (self.clone(), env.clone());
        async move {
            let mut future = pin!(future);
            std::future::poll_fn(move |context| {
                let began = env.time_at_work();
                let polled = future.as_mut().poll(context);
                steps.took(task, env.time_at_work().saturating_sub(began));
                match polled {
                    Poll::Ready(()) => Poll::Ready(()),
                    Poll::Pending => Poll::Pending,
                }
            })
            .await;
        }
    }

    fn took(&self, task: Task, time: Duration) {
        let times = &self.0[task as usize];
        times.count.set(times.count.get() + 1);
        times.total.set(times.total.get() + time);
        times.longest.set(times.longest.get().max(time));
        times.long.set(times.long.get() + u64::from(time > LONG));
    }

    /// The longest step of any task.
    pub fn longest(&self) -> Duration {
        let longest = self.0.iter().map(|times| times.longest.get());
        longest.max().unwrap_or_default()
    }

    /// For `status`, by task.
    pub fn status(&self) -> Vec<StepStatus> {
        let status = |(task, times): (&'static str, &Times)| StepStatus {
            task,
            steps: times.count.get(),
            total_ms: times.total.get().as_millis() as u64,
            longest_us: times.longest.get().as_micros() as u64,
            over_500_us: times.long.get(),
        };
        NAMES.into_iter().zip(&self.0).map(status).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_step_is_kept_and_all_are_counted() {
        let steps = Steps::default();
        for micros in [3, 700, 40] {
            steps.took(Task::Index, Duration::from_micros(micros));
        }
        let status = steps.status();
        let index = &status[0];
        assert_eq!(
            (index.task, index.steps, index.longest_us, index.over_500_us),
            ("index", 3, 700, 1)
        );
        assert!(status[1..].iter().all(|task| task.steps == 0));
    }
}
