//! Messages to a stream: queued by whoever has one, sent many at a time by one writer task.
//!
//! The writer is woken by the first message of a batch and runs after the tasks that are ready already, so that
//! everything that finished in the same turn leaves in the same call. But not too much at a time ([`Outbox::is_due`]): while the
//! client works on one half of its queue depth the server should have the other half.

use crate::proto::Header;
use crate::wait::WaitCell;
use brigade_env::{Segment, Stream};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

/// Most messages in one send.
const BATCH_MESSAGES: usize = 64;

/// Enough to be sent before more is worked on. A batch costs some microseconds in calls and wake-ups: with 16 of 4 KiB that is
/// little for each, and a client with 32 in flight and the server are both busy all the time.
const DUE_MESSAGES: usize = 16;
/// The same for large messages.
const DUE_BYTES: usize = 128 << 10;

/// A header and what follows it.
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) body: Option<Segment>,
    /// Given to the `sent` callback of [`Outbox::run`] when the message is out (or lost).
    pub(crate) cost_bytes: usize,
}

impl Message {
    fn body_bytes(&self) -> usize {
        self.body.as_ref().map_or(0, |body| body.as_slice().len())
    }
}

/// The queue in front of a stream.
pub(crate) struct Outbox<S> {
    stream: Rc<S>,
    queue: RefCell<VecDeque<Message>>,
    queued_bytes: Cell<usize>,
    writer: WaitCell,
    is_closing: Cell<bool>,
    has_failed: Cell<bool>,
}

impl<S: Stream> Outbox<S> {
    /// Empty. Nothing is sent before [`Outbox::run`] runs.
    pub(crate) fn new(stream: Rc<S>) -> Self {
        Outbox {
            stream,
            queue: RefCell::default(),
            queued_bytes: Cell::new(0),
            writer: WaitCell::default(),
            is_closing: Cell::new(false),
            has_failed: Cell::new(false),
        }
    }

    /// Queues a message.
    pub(crate) fn push(&self, message: Message) {
        self.queued_bytes
            .set(self.queued_bytes.get() + message.body_bytes());
        self.queue.borrow_mut().push_back(message);
        self.writer.wake();
    }

    /// Whether the writer should have its turn now.
    pub(crate) fn is_due(&self) -> bool {
        self.queue.borrow().len() >= DUE_MESSAGES || self.queued_bytes.get() >= DUE_BYTES
    }

    /// Whether a send has failed: nobody will hear of anything any more.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.get()
    }

    /// Ends the writer once the queue is empty.
    pub(crate) fn close(&self) {
        self.is_closing.set(true);
        self.writer.wake();
    }

    /// The writer task. After a failed send it shuts the stream down and drops what is queued. `sent` hears how many
    /// messages are gone and their cost.
    pub(crate) async fn run(&self, sent: impl Fn(usize, usize)) {
        loop {
            self.writer
                .until(|| self.is_closing.get() || !self.queue.borrow().is_empty())
                .await;
            let batch = self.take_batch();
            if batch.messages == 0 {
                return;
            }
            if !self.has_failed.get()
                && let Err(error) = self.stream.send(batch.segments).await
            {
                tracing::debug!(%error, "nbd: send failed");
                self.has_failed.set(true);
                self.stream.shutdown();
            }
            sent(batch.messages, batch.cost_bytes);
        }
    }

    fn take_batch(&self) -> Batch {
        let mut queue = self.queue.borrow_mut();
        let count = queue.len().min(BATCH_MESSAGES);
        let mut batch = Batch {
            segments: Vec::with_capacity(count * 2),
            messages: count,
            cost_bytes: 0,
        };
        for message in queue.drain(..count) {
            batch.cost_bytes += message.cost_bytes;
            let left = self.queued_bytes.get() - message.body_bytes();
            self.queued_bytes.set(left);
            batch.push(message);
        }
        batch
    }
}

struct Batch {
    segments: Vec<Segment>,
    messages: usize,
    cost_bytes: usize,
}

impl Batch {
    fn push(&mut self, message: Message) {
        let bytes = message.header.as_slice();
        match self.segments.last_mut() {
            // Headers without a body follow each other: one piece for all of them.
            Some(Segment::Bytes(run)) => run.extend_from_slice(bytes),
            Some(last @ Segment::Inline(..)) => {
                let mut run = Vec::with_capacity(1024);
                run.extend_from_slice(last.as_slice());
                run.extend_from_slice(bytes);
                *last = Segment::Bytes(run);
            }
            _ => self.segments.push(message.header.segment()),
        }
        self.segments.extend(message.body);
    }
}
