//! The io_uring engine.
//!
//! One `io_uring_enter` per turn submits what has gathered and waits. What does not fit the submission queue, or
//! would let more completions be due than the completion queue holds, stays in a user-space backlog. Timeouts are an
//! entry in the ring (URING-3): a timeout given to `io_uring_enter` arms a timer for every single wait, which costs
//! several times the wait itself on virtual machines.

use crate::host::HostOptions;
use crate::operation::Request;
use crate::sys;
use crate::threads::Workers;
use crate::wake::Mailbox;
use io_uring::{IoUring, Probe, opcode, squeue, types};
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

/// Keys of the engine's own entries; slots never have them.
const KEY_BELL: u64 = u64::MAX;
const KEY_TIMER: u64 = u64::MAX - 1;
const KEY_IGNORED: u64 = u64::MAX - 2;
/// Completion queue entries kept for the engine's own entries.
const OWN_ENTRIES: usize = 8;
/// Kernel timeouts further away than this are as good as none (about 30 years).
const TIMEOUT_SECONDS_MAX: u64 = 1_000_000_000;

/// How long to look before sleeping: grows while looking pays, shrinks while it does not.
struct Spin {
    most: Duration,
    now: Duration,
    sleeps: u32,
}

impl Spin {
    fn next(&mut self) -> Duration {
        self.sleeps = self.sleeps.wrapping_add(1);
        if self.now.is_zero() && self.sleeps.is_multiple_of(64) {
            self.most
        } else {
            self.now
        }
    }

    fn learn(&mut self, has_paid: bool) {
        let least = Duration::from_micros(1);
        if has_paid {
            self.now = (self.now * 2)
                .clamp(least, self.most.max(least))
                .min(self.most);
        } else {
            self.now /= 2;
            if self.now < least {
                self.now = Duration::ZERO;
            }
        }
    }
}

/// One ring.
pub(crate) struct Ring {
    ring: IoUring,
    backlog: VecDeque<squeue::Entry>,
    in_flight: usize,
    in_flight_max: usize,
    is_bell_armed: bool,
    armed_deadline: Option<Duration>,
    timespec: Box<types::Timespec>,
    spin: Spin,
    mailbox: Arc<Mailbox>,
    helpers: Option<Workers>,
}

fn build(entries: u32) -> io::Result<IoUring> {
    let completions = entries.saturating_mul(4);
    let modern = IoUring::builder()
        .setup_cqsize(completions)
        .setup_clamp()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    match modern {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::builder()
            .setup_cqsize(completions)
            .setup_clamp()
            .build(entries),
        other => other,
    }
}

fn check_operations(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::Recv::CODE,
        opcode::SendMsg::CODE,
        opcode::Accept::CODE,
        opcode::PollAdd::CODE,
        opcode::Timeout::CODE,
        opcode::TimeoutRemove::CODE,
        opcode::AsyncCancel::CODE,
    ];
    if needed.iter().all(|&code| probe.is_supported(code)) && ring.params().is_feature_nodrop() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        "this kernel's io_uring is too old",
    ))
}

impl Ring {
    /// Sets a ring up and checks that it can do what is needed.
    pub(crate) fn new(options: &HostOptions, mailbox: Arc<Mailbox>) -> io::Result<Ring> {
        let ring = build(options.queue_depth.clamp(8, 16384))?;
        check_operations(&ring)?;
        let in_flight_max = (ring.params().cq_entries() as usize)
            .saturating_sub(OWN_ENTRIES)
            .max(1);
        let spin = Spin {
            most: options.spin,
            now: options.spin,
            sleeps: 0,
        };
        Ok(Ring {
            ring,
            backlog: VecDeque::new(),
            in_flight: 0,
            in_flight_max,
            is_bell_armed: false,
            armed_deadline: None,
            timespec: Box::default(),
            spin,
            mailbox,
            helpers: None,
        })
    }

    /// Takes a slot's request.
    pub(crate) fn push(&mut self, key: u64, request: Request) {
        let Some(entry) = request.entry() else {
            let helpers = self
                .helpers
                .get_or_insert_with(|| Workers::new(1, self.mailbox.clone()));
            helpers.give(key, request);
            return;
        };
        self.push_entry(entry.user_data(key));
    }

    /// Asks for a slot's request to end early; it will complete in any case.
    pub(crate) fn cancel(&mut self, key: u64) {
        self.push_entry(opcode::AsyncCancel::new(key).build().user_data(KEY_IGNORED));
    }

    fn push_entry(&mut self, entry: squeue::Entry) {
        self.backlog.push_back(entry);
        self.fill();
    }

    /// Moves the backlog into the submission queue as far as both queues allow.
    fn fill(&mut self) {
        let mut submission = self.ring.submission();
        while self.in_flight < self.in_flight_max {
            let Some(entry) = self.backlog.front() else {
                return;
            };
            // SAFETY: what a slot's entry points to is owned by the slot until the completion (URING-1); the other
            // entries point to nothing.
            if unsafe { submission.push(entry) }.is_err() {
                return;
            }
            self.backlog.pop_front();
            self.in_flight += 1;
        }
    }

    /// Pushes one of the engine's own entries, which go before the backlog.
    fn push_own(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: the bell's entry points to nothing; a timeout's points to `self.timespec`, boxed and only
            // rewritten with a nearer deadline, which the kernel reads during submission.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            self.enter(0);
        }
    }

    fn arm_bell(&mut self) {
        if !self.is_bell_armed {
            let bell = types::Fd(self.mailbox.bell().as_raw_fd());
            self.push_own(
                &opcode::PollAdd::new(bell, libc::POLLIN as u32)
                    .build()
                    .user_data(KEY_BELL),
            );
            self.is_bell_armed = true;
        }
    }

    fn arm_timer(&mut self, deadline: Option<Duration>) {
        let Some(deadline) = deadline else { return };
        if self.armed_deadline.is_some_and(|armed| armed <= deadline) {
            return;
        }
        let seconds = deadline.as_secs().min(TIMEOUT_SECONDS_MAX);
        *self.timespec = types::Timespec::new()
            .sec(seconds)
            .nsec(deadline.subsec_nanos());
        let time: *const types::Timespec = &raw const *self.timespec;
        let flags = types::TimeoutFlags::ABS;
        let entry = match self.armed_deadline {
            None => opcode::Timeout::new(time)
                .flags(flags)
                .build()
                .user_data(KEY_TIMER),
            Some(_) => opcode::TimeoutUpdate::new(KEY_TIMER, time)
                .flags(flags)
                .build()
                .user_data(KEY_IGNORED),
        };
        if self.armed_deadline.is_some() {
            self.in_flight += 1;
        }
        self.push_own(&entry);
        self.armed_deadline = Some(deadline);
    }

    fn enter(&mut self, wait_for: usize) {
        match self.ring.submit_and_wait(wait_for) {
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
                ) => {}
            Err(error) => panic!("io_uring_enter: {error}"),
        }
    }

    fn has_completions(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Submits without waiting, if there is anything to submit or to run.
    fn submit(&mut self) {
        let submission = self.ring.submission();
        let is_needed = !submission.is_empty() || submission.taskrun() || submission.cq_overflow();
        drop(submission);
        if is_needed {
            self.enter(0);
        }
    }

    /// Hands everything that fits to the kernel.
    pub(crate) fn flush(&mut self) {
        loop {
            self.fill();
            self.submit();
            if self.backlog.is_empty() || self.in_flight >= self.in_flight_max {
                return;
            }
        }
    }

    /// Submits, waits if told to (for a completion, the bell or the absolute monotonic `deadline`), and reaps.
    pub(crate) fn turn(
        &mut self,
        may_wait: bool,
        deadline: Option<Duration>,
        completions: &mut Vec<(u64, i32)>,
    ) {
        self.fill();
        while !self.backlog.is_empty() && self.in_flight < self.in_flight_max {
            self.enter(0);
            self.fill();
        }
        self.arm_bell();
        self.arm_timer(deadline);
        if !may_wait {
            self.submit();
        } else if !self.spin() {
            self.enter(1);
        }
        self.reap(completions);
    }

    /// Looks for completions for a while; tells whether there are any.
    fn spin(&mut self) -> bool {
        if self.spin.most.is_zero() {
            return false;
        }
        let limit = self.spin.next();
        if limit.is_zero() {
            return false;
        }
        self.submit();
        let end = sys::monotonic() + limit;
        loop {
            if self.ring.submission().taskrun() {
                self.enter(0);
            }
            if self.has_completions() || self.mailbox.is_full() {
                self.spin.learn(true);
                return true;
            }
            if sys::monotonic() >= end {
                self.spin.learn(false);
                return false;
            }
            std::hint::spin_loop();
        }
    }

    fn reap(&mut self, completions: &mut Vec<(u64, i32)>) {
        let mut is_ringing = false;
        for entry in self.ring.completion() {
            match entry.user_data() {
                KEY_BELL => {
                    self.is_bell_armed = false;
                    is_ringing = true;
                }
                KEY_TIMER => self.armed_deadline = None,
                KEY_IGNORED => self.in_flight = self.in_flight.saturating_sub(1),
                key => {
                    self.in_flight = self.in_flight.saturating_sub(1);
                    completions.push((key, entry.result()));
                }
            }
        }
        if is_ringing {
            sys::silence_bell(self.mailbox.bell());
        }
    }
}
