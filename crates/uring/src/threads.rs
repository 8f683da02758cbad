//! The engine without io_uring: a few threads for files, `poll(2)` for sockets.
//!
//! A socket request is tried at once and waits in the poll set only if it would block. File requests go to the
//! workers, never more at a time than the queue depth; the rest wait here. Results come back through the mailbox.

use crate::operation::Request;
use crate::sys;
use crate::wake::Mailbox;
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

#[derive(Default)]
struct Work {
    requests: VecDeque<(u64, Request)>,
    is_closed: bool,
}

#[derive(Default)]
struct WorkQueue {
    work: Mutex<Work>,
    is_available: Condvar,
}

impl WorkQueue {
    fn next(&self) -> Option<(u64, Request)> {
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(next) = work.requests.pop_front() {
                return Some(next);
            }
            if work.is_closed {
                return None;
            }
            work = self
                .is_available
                .wait(work)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Threads that run requests and mail the results.
pub(crate) struct Workers {
    queue: Arc<WorkQueue>,
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Starts them. Where no thread can be started requests are run in place.
    pub(crate) fn new(count: usize, mailbox: Arc<Mailbox>) -> Workers {
        let queue = Arc::new(WorkQueue::default());
        let start = |number: usize| {
            let (queue, mailbox) = (queue.clone(), mailbox.clone());
            let builder = std::thread::Builder::new()
                .name(format!("brigade-io-{number}"))
                .stack_size(128 << 10);
            builder.spawn(move || serve(&queue, &mailbox)).ok()
        };
        let threads: Vec<_> = (0..count.max(1)).filter_map(start).collect();
        if threads.is_empty() {
            queue
                .work
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_closed = true;
        }
        Workers { queue, threads }
    }

    /// Hands a request over.
    pub(crate) fn give(&self, key: u64, request: Request) {
        self.queue
            .work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .requests
            .push_back((key, request));
        self.queue.is_available.notify_one();
    }

    fn is_empty(&self) -> bool {
        self.threads.is_empty()
    }
}

fn serve(queue: &WorkQueue, mailbox: &Mailbox) {
    while let Some((key, request)) = queue.next() {
        // SAFETY: the slot keeps the operation until this completion is delivered (URING-1).
        let result = unsafe { request.run() };
        mailbox.mail(|mail| mail.completions.push((key, result)));
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue
            .work
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_closed = true;
        self.queue.is_available.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// See the module.
pub(crate) struct Threads {
    workers: Workers,
    given: usize,
    given_max: usize,
    files: VecDeque<(u64, Request)>,
    untried: VecDeque<(u64, Request)>,
    blocked: Vec<(u64, Request)>,
    polls: Vec<libc::pollfd>,
    mailbox: Arc<Mailbox>,
}

impl Threads {
    /// `threads` workers that have at most `depth` requests at a time.
    pub(crate) fn new(
        threads: usize,
        depth: usize,
        mailbox: Arc<Mailbox>,
    ) -> std::io::Result<Threads> {
        let workers = Workers::new(threads, mailbox.clone());
        if workers.is_empty() {
            return Err(std::io::Error::other(
                "cannot start threads for file input and output",
            ));
        }
        Ok(Threads {
            workers,
            given: 0,
            given_max: depth.max(1),
            files: VecDeque::new(),
            untried: VecDeque::new(),
            blocked: Vec::new(),
            polls: Vec::new(),
            mailbox,
        })
    }

    /// Takes a slot's request.
    pub(crate) fn push(&mut self, key: u64, request: Request) {
        if request.socket_event().is_some() {
            self.untried.push_back((key, request));
        } else {
            self.files.push_back((key, request));
            self.flush();
        }
    }

    /// Forgets a socket request.
    pub(crate) fn cancel(&mut self, key: u64) {
        self.untried.retain(|(other, _)| *other != key);
        self.blocked.retain(|(other, _)| *other != key);
    }

    /// Workers have finished some requests.
    pub(crate) fn note_finished(&mut self, count: usize) {
        self.given = self.given.saturating_sub(count);
        self.flush();
    }

    /// Hands file requests to the workers as far as the bound allows.
    pub(crate) fn flush(&mut self) {
        while self.given < self.given_max {
            let Some((key, request)) = self.files.pop_front() else {
                return;
            };
            self.given += 1;
            self.workers.give(key, request);
        }
    }

    /// Tries sockets, waits if told to, and collects what sockets completed.
    pub(crate) fn turn(
        &mut self,
        may_wait: bool,
        deadline: Option<Duration>,
        completions: &mut Vec<(u64, i32)>,
    ) {
        while let Some((key, request)) = self.untried.pop_front() {
            match attempt(&request) {
                Some(result) => completions.push((key, result)),
                None => self.blocked.push((key, request)),
            }
        }
        let may_wait = may_wait && completions.is_empty();
        if may_wait || !self.blocked.is_empty() {
            self.poll(may_wait, deadline);
            self.collect(completions);
        }
    }

    fn poll(&mut self, may_wait: bool, deadline: Option<Duration>) {
        self.polls.clear();
        self.polls.push(libc::pollfd {
            fd: self.mailbox.bell().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        });
        for (_, request) in &self.blocked {
            let (fd, events) = request.socket_event().unwrap_or((-1, 0));
            self.polls.push(libc::pollfd {
                fd,
                events,
                revents: 0,
            });
        }
        let timeout = match (may_wait, deadline) {
            (false, _) => Some(Duration::ZERO),
            (true, deadline) => deadline.map(|deadline| deadline.saturating_sub(sys::monotonic())),
        };
        sys::poll(&mut self.polls, timeout);
    }

    fn collect(&mut self, completions: &mut Vec<(u64, i32)>) {
        let polls = &self.polls;
        if polls[0].revents != 0 {
            sys::silence_bell(self.mailbox.bell());
        }
        let mut at = 0;
        self.blocked.retain(|(key, request)| {
            at += 1;
            if polls[at].revents == 0 {
                return true;
            }
            let result = attempt(request);
            completions.extend(result.map(|result| (*key, result)));
            result.is_none()
        });
    }
}

fn attempt(request: &Request) -> Option<i32> {
    // SAFETY: a request in these lists belongs to an operation in its slot; cancelling removes it first (URING-1).
    let result = unsafe { request.run() };
    (result != -libc::EAGAIN).then_some(result)
}
