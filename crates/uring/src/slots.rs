//! Operations in flight, by key. A slot owns what the kernel works on until the completion is in (URING-1).

use crate::operation::{Operation, Outcome, Payload, Request};
use std::task::Waker;

enum State {
    Free,
    InFlight,
    Done(Outcome),
}

struct Slot {
    generation: u32,
    state: State,
    operation: Option<Operation>,
    waker: Option<Waker>,
    is_orphan: bool,
}

/// What a completion leads to.
pub(crate) enum Completed {
    /// Ask for the rest.
    Again(Request),
    /// The owner may look.
    Wake(Option<Waker>),
    /// Nobody waits; what is left of it, to be dropped outside.
    Orphan(Operation, Outcome),
    /// No such operation.
    Unknown,
}

/// What the owner's departure leads to.
pub(crate) enum Abandoned {
    /// It runs on to its end by itself.
    RunsOn,
    /// It should be cancelled.
    Cancel,
    /// It was done; to be dropped outside.
    Finished(Operation, Outcome),
}

/// The table. A key is the slot's index and, above, its generation; generations have 31 bits, so the highest keys
/// are free for the engines' own use.
#[derive(Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    in_flight: usize,
}

fn key_of(index: u32, generation: u32) -> u64 {
    (u64::from(generation) << 32) | u64::from(index)
}

impl Slots {
    /// Keeps an operation and gives its key and first request.
    pub(crate) fn insert(&mut self, mut operation: Operation) -> (u64, Request) {
        let request = operation.request();
        let index = self.free.pop().unwrap_or_else(|| {
            let state = State::Free;
            self.slots.push(Slot {
                generation: 0,
                state,
                operation: None,
                waker: None,
                is_orphan: false,
            });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.state = State::InFlight;
        slot.operation = Some(operation);
        slot.is_orphan = false;
        self.in_flight += 1;
        (key_of(index, slot.generation), request)
    }

    fn get(&mut self, key: u64) -> Option<&mut Slot> {
        let slot = self.slots.get_mut((key & u64::from(u32::MAX)) as usize)?;
        (u64::from(slot.generation) == key >> 32).then_some(slot)
    }

    fn release(&mut self, key: u64) -> Option<Operation> {
        let slot = self.get(key)?;
        slot.state = State::Free;
        slot.generation = (slot.generation + 1) & (u32::MAX >> 1);
        slot.waker = None;
        let operation = slot.operation.take();
        self.free.push((key & u64::from(u32::MAX)) as u32);
        operation
    }

    /// How many the engine still has.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Keys of socket operations the engine still has.
    pub(crate) fn sockets_in_flight(&self) -> Vec<u64> {
        let pending = self.slots.iter().enumerate().filter(|(_, slot)| {
            let is_socket = slot
                .operation
                .as_ref()
                .is_some_and(|operation| operation.kind.is_socket());
            is_socket && matches!(slot.state, State::InFlight)
        });
        pending
            .map(|(index, slot)| key_of(index as u32, slot.generation))
            .collect()
    }

    /// The engine answered.
    pub(crate) fn complete(&mut self, key: u64, result: i32) -> Completed {
        let Some(slot) = self.get(key) else {
            return Completed::Unknown;
        };
        let (State::InFlight, Some(operation)) = (&slot.state, slot.operation.as_mut()) else {
            return Completed::Unknown;
        };
        let is_given_up = slot.is_orphan && operation.kind.is_socket();
        match operation.advance(result) {
            None if !is_given_up => Completed::Again(operation.request()),
            outcome => self.finish(key, outcome.unwrap_or(Err(libc::ECANCELED))),
        }
    }

    /// The operation is over, whatever the engine thinks.
    pub(crate) fn finish(&mut self, key: u64, outcome: Outcome) -> Completed {
        let Some(slot) = self.get(key) else {
            return Completed::Unknown;
        };
        let waker = slot.waker.take();
        let is_orphan = slot.is_orphan;
        slot.state = State::Done(outcome);
        self.in_flight -= 1;
        if !is_orphan {
            return Completed::Wake(waker);
        }
        match self.release(key) {
            Some(operation) => Completed::Orphan(operation, outcome),
            None => Completed::Unknown,
        }
    }

    /// The owner looks: the outcome, or its waker is kept.
    pub(crate) fn poll(&mut self, key: u64, waker: &Waker) -> Option<(Outcome, Payload)> {
        let slot = self.get(key)?;
        let State::Done(outcome) = slot.state else {
            match &mut slot.waker {
                Some(known) => known.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
            return None;
        };
        let operation = self.release(key)?;
        Some((outcome, operation.payload))
    }

    /// The owner leaves.
    pub(crate) fn abandon(&mut self, key: u64) -> Abandoned {
        let Some(slot) = self.get(key) else {
            return Abandoned::RunsOn;
        };
        slot.waker = None;
        slot.is_orphan = true;
        let is_socket = slot
            .operation
            .as_ref()
            .is_some_and(|operation| operation.kind.is_socket());
        match slot.state {
            State::Done(outcome) => match self.release(key) {
                Some(operation) => Abandoned::Finished(operation, outcome),
                None => Abandoned::RunsOn,
            },
            _ if is_socket => Abandoned::Cancel,
            _ => Abandoned::RunsOn,
        }
    }
}
