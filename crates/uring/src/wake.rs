//! Waking tasks: from the world's own thread without atomics, from any other thread through a mailbox.
//!
//! A `Waker` may be sent anywhere and outlive everything, so it refers to nothing: its data pointer is a packed
//! [`Token`] (world, generation, task index). Cloning and dropping it are free. Waking looks whether the world
//! lives on this thread; if so the task goes on the run queue, else the token is mailed and an eventfd rung. A token
//! that outlived its task has a stale generation; at worst (all bits wrapped) some task is polled once too often,
//! which every future must bear anyway.

use crate::host::HostEnv;
use crate::sys;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{RawWaker, RawWakerVTable, Waker};

const INDEX_BITS: u32 = 26;
const GENERATION_BITS: u32 = 26;
const WORLDS_MAX: usize = 1 << (64 - INDEX_BITS - GENERATION_BITS);
/// Most tasks of one world.
pub(crate) const TASKS_MAX: usize = 1 << INDEX_BITS;
/// The index of the future that `block_on` runs.
pub(crate) const MAIN_TASK: u32 = 0;

const _: () = assert!(
    size_of::<usize>() == 8,
    "a waker packs its token into a 64-bit pointer"
);

/// Names a task without keeping it alive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Token {
    world: u16,
    generation: u32,
    index: u32,
}

impl Token {
    fn pack(self) -> usize {
        (usize::from(self.world) << (INDEX_BITS + GENERATION_BITS))
            | ((self.generation as usize) << INDEX_BITS)
            | self.index as usize
    }

    fn unpack(packed: usize) -> Token {
        let mask = |bits: u32| (1_usize << bits) - 1;
        Token {
            world: (packed >> (INDEX_BITS + GENERATION_BITS)) as u16,
            generation: ((packed >> INDEX_BITS) & mask(GENERATION_BITS)) as u32,
            index: (packed & mask(INDEX_BITS)) as u32,
        }
    }

    /// A waker for the task.
    pub(crate) fn waker(self) -> Waker {
        // SAFETY: the functions of VTABLE never dereference the data pointer; it is plain bits, valid for ever
        // on every thread, so clone, wake and drop are trivially sound.
        unsafe { Waker::new(std::ptr::without_provenance(self.pack()), &VTABLE) }
    }

    fn wake(self) {
        let is_local = LOCAL.try_with(|queues| {
            let queues = queues.borrow();
            let queue = queues.iter().find(|queue| queue.world == self.world);
            queue.map(|queue| queue.push(self)).is_some()
        });
        if !is_local.unwrap_or(false)
            && let Some(mailbox) = mailbox_of(self.world)
        {
            mailbox.mail(|mail| mail.wakes.push(self));
        }
    }
}

static VTABLE: RawWakerVTable = RawWakerVTable::new(
    |data| RawWaker::new(data, &VTABLE),
    |data| Token::unpack(data.addr()).wake(),
    |data| Token::unpack(data.addr()).wake(),
    |_| {},
);

thread_local! {
    /// Run queues of the worlds that live on this thread; nearly always one.
    static LOCAL: RefCell<Vec<Rc<RunQueue>>> = const { RefCell::new(Vec::new()) };
}

/// Mailboxes by world, so that a foreign waker finds its way.
static WORLDS: Mutex<Vec<Option<Arc<Mailbox>>>> = Mutex::new(Vec::new());

fn worlds() -> MutexGuard<'static, Vec<Option<Arc<Mailbox>>>> {
    WORLDS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn mailbox_of(world: u16) -> Option<Arc<Mailbox>> {
    worlds().get(usize::from(world)).cloned().flatten()
}

#[derive(Default)]
struct Mark {
    generation: u32,
    is_queued: bool,
}

#[derive(Default)]
struct Runnable {
    ready: VecDeque<u32>,
    marks: Vec<Mark>,
}

/// Tasks that want to be polled, each at most once.
pub(crate) struct RunQueue {
    world: u16,
    runnable: RefCell<Runnable>,
}

impl RunQueue {
    /// Registers a world of this thread.
    pub(crate) fn register(mailbox: Arc<Mailbox>) -> io::Result<Rc<RunQueue>> {
        let mut worlds = worlds();
        let world = worlds
            .iter()
            .position(Option::is_none)
            .unwrap_or(worlds.len());
        if world >= WORLDS_MAX {
            return Err(io::Error::other(format!(
                "more than {WORLDS_MAX} event loops in one process"
            )));
        }
        if world == worlds.len() {
            worlds.push(None);
        }
        worlds[world] = Some(mailbox);
        drop(worlds);
        let queue = Rc::new(RunQueue {
            world: world as u16,
            runnable: RefCell::default(),
        });
        LOCAL.with_borrow_mut(|queues| queues.push(queue.clone()));
        Ok(queue)
    }

    /// Forgets the world; wakers still around do nothing from now on.
    pub(crate) fn unregister(&self) {
        let _ = LOCAL.try_with(|queues| {
            queues
                .borrow_mut()
                .retain(|queue| queue.world != self.world)
        });
        if let Some(slot) = worlds().get_mut(usize::from(self.world)) {
            *slot = None;
        }
    }

    /// Starts a new life of a task index and queues it.
    pub(crate) fn begin(&self, index: u32) -> Token {
        let token = {
            let mut runnable = self.runnable.borrow_mut();
            let at = index as usize;
            if runnable.marks.len() <= at {
                runnable.marks.resize_with(at + 1, Mark::default);
            }
            let mark = &mut runnable.marks[at];
            mark.generation = (mark.generation + 1) % (1 << GENERATION_BITS);
            Token {
                world: self.world,
                generation: mark.generation,
                index,
            }
        };
        self.push(token);
        token
    }

    /// The token of the present life of a task index.
    pub(crate) fn token(&self, index: u32) -> Token {
        let generation = self
            .runnable
            .borrow()
            .marks
            .get(index as usize)
            .map_or(0, |mark| mark.generation);
        Token {
            world: self.world,
            generation,
            index,
        }
    }

    /// Queues the task unless it is queued already or gone.
    pub(crate) fn push(&self, token: Token) {
        let mut runnable = self.runnable.borrow_mut();
        let Some(mark) = runnable.marks.get_mut(token.index as usize) else {
            return;
        };
        if mark.generation == token.generation && !mark.is_queued {
            mark.is_queued = true;
            runnable.ready.push_back(token.index);
        }
    }

    /// The next task to poll.
    pub(crate) fn pop(&self) -> Option<u32> {
        let mut runnable = self.runnable.borrow_mut();
        let index = runnable.ready.pop_front()?;
        if let Some(mark) = runnable.marks.get_mut(index as usize) {
            mark.is_queued = false;
        }
        Some(index)
    }

    /// Nothing wants to be polled.
    pub(crate) fn is_empty(&self) -> bool {
        self.runnable.borrow().ready.is_empty()
    }
}

/// A closure for a world's thread.
pub(crate) type Post = Box<dyn FnOnce(&HostEnv) + Send>;

/// What other threads left for the world.
#[derive(Default)]
pub(crate) struct Mail {
    pub(crate) wakes: Vec<Token>,
    pub(crate) posts: Vec<Post>,
    /// Completions of helper threads: slot key and result.
    pub(crate) completions: Vec<(u64, i32)>,
}

/// Where other threads leave mail, and the bell that ends the world's sleep.
pub(crate) struct Mailbox {
    bell: OwnedFd,
    is_full: AtomicBool,
    mail: Mutex<Mail>,
}

impl Mailbox {
    pub(crate) fn new() -> io::Result<Arc<Mailbox>> {
        Ok(Arc::new(Mailbox {
            bell: sys::eventfd()?,
            is_full: AtomicBool::new(false),
            mail: Mutex::default(),
        }))
    }

    /// The eventfd to wait on.
    pub(crate) fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    /// Leaves something; rings if the box was empty.
    pub(crate) fn mail(&self, leave: impl FnOnce(&mut Mail)) {
        leave(&mut self.mail.lock().unwrap_or_else(PoisonError::into_inner));
        if !self.is_full.swap(true, Ordering::AcqRel) {
            sys::ring_bell(&self.bell);
        }
    }

    /// Somebody left something.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Acquire)
    }

    /// Takes everything. The flag is cleared first: whoever leaves mail after the look rings again.
    pub(crate) fn take(&self) -> Option<Mail> {
        if !self.is_full() {
            return None;
        }
        self.is_full.swap(false, Ordering::AcqRel);
        Some(std::mem::take(
            &mut *self.mail.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_packing() {
        let token = Token {
            world: 4095,
            generation: (1 << 26) - 1,
            index: (1 << 26) - 2,
        };
        assert_eq!(Token::unpack(token.pack()), token);
        let token = Token {
            world: 1,
            generation: 2,
            index: 3,
        };
        assert_eq!(Token::unpack(token.pack()), token);
    }

    #[test]
    fn a_stale_waker_does_not_queue_the_next_task_of_its_index() {
        let queue = RunQueue::register(Mailbox::new().unwrap()).unwrap();
        let old = queue.begin(5).waker();
        assert_eq!(queue.pop(), Some(5));
        let new = queue.begin(5).waker();
        assert_eq!(queue.pop(), Some(5));
        old.wake_by_ref();
        assert!(queue.is_empty());
        new.wake_by_ref();
        new.wake_by_ref();
        assert_eq!((queue.pop(), queue.pop()), (Some(5), None));
        queue.unregister();
        new.wake();
        assert!(queue.is_empty());
    }
}
