//! Several reads in flight, answered in the order they were asked.
//!
//! Recovery is bound by the latency of metadata reads; parsing one answer overlaps with the device working on
//! the next ones. The window is bounded in bytes and in number.

use brigade_env::{Buffer, Device};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::Poll;

/// Most bytes in flight.
pub(super) const WINDOW_BYTES: usize = 32 << 20;
/// Most reads in flight.
pub(super) const WINDOW_READS: usize = 64;

type Read = Pin<Box<dyn Future<Output = io::Result<Buffer>>>>;

enum Slot {
    Pending(Read),
    Done(io::Result<Buffer>),
}

/// Reads in flight, oldest first.
#[derive(Default)]
pub(super) struct ReadWindow {
    slots: VecDeque<(usize, Slot)>,
    bytes: usize,
}

impl ReadWindow {
    /// May another read of `length` bytes be started now? One always may.
    pub(super) fn has_room(&self, length: usize) -> bool {
        self.slots.is_empty()
            || (self.slots.len() < WINDOW_READS
                && self.bytes.saturating_add(length) <= WINDOW_BYTES)
    }

    /// Asks for `buffer`'s range from `offset`.
    pub(super) fn start<D: Device>(&mut self, device: &D, offset: u64, buffer: Buffer) {
        let length = buffer.len();
        self.bytes += length;
        self.slots
            .push_back((length, Slot::Pending(Box::pin(device.read(offset, buffer)))));
    }

    /// The answer to the oldest read.
    ///
    /// # Panics
    /// If none is in flight.
    pub(super) async fn next(&mut self) -> io::Result<Buffer> {
        poll_fn(|context| {
            for (_, slot) in &mut self.slots {
                if let Slot::Pending(read) = slot
                    && let Poll::Ready(result) = read.as_mut().poll(context)
                {
                    *slot = Slot::Done(result);
                }
            }
            match self.slots.front() {
                Some((_, Slot::Pending(_))) => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })
        .await;
        let (length, slot) = self.slots.pop_front().expect("a read in flight");
        self.bytes -= length;
        match slot {
            Slot::Done(result) => result,
            Slot::Pending(_) => unreachable!("the oldest read was waited for"),
        }
    }
}
