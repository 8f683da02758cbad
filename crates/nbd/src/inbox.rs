//! Bytes from a stream: received many at a time, looked at in place, large payloads straight into their buffer.

use brigade_env::{Buffer, BufferPool, Stream};
use std::io;
use std::rc::Rc;

/// What one receive asks for.
pub(crate) const INBOX_BYTES: usize = 124 << 10;
/// A rest of at least this is received straight into the payload's buffer. A smaller one is cheaper to copy, because the
/// receive that brings it brings the next requests too.
const DIRECT_BYTES: usize = 32 << 10;

/// Received and not yet used bytes of one stream.
pub(crate) struct Inbox<S> {
    stream: Rc<S>,
    // Away while a receive is in flight; a receive that was dropped takes it along, and the inbox is of no use then.
    buffer: Option<Buffer>,
    start: usize,
    end: usize,
}

impl<S: Stream> Inbox<S> {
    /// Empty.
    pub(crate) fn new(stream: Rc<S>, buffers: &BufferPool) -> Self {
        Inbox {
            stream,
            buffer: Some(buffers.get(INBOX_BYTES)),
            start: 0,
            end: 0,
        }
    }

    /// What is there.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer
            .as_ref()
            .and_then(|buffer| buffer.get(self.start..self.end))
            .unwrap_or_default()
    }

    /// Uses up the first `count` bytes.
    pub(crate) fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start.saturating_add(count));
    }

    /// Receives more, behind what is there; false at the end of the stream.
    pub(crate) async fn fill(&mut self) -> io::Result<bool> {
        let Some(mut buffer) = self.buffer.take() else {
            return Ok(false);
        };
        buffer.set_range(0..INBOX_BYTES);
        if self.start > 0 {
            buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == INBOX_BYTES {
            self.buffer = Some(buffer);
            return Err(io::Error::other("a message longer than the receive buffer"));
        }
        buffer.set_range(self.end..INBOX_BYTES);
        let (result, mut buffer) = self.stream.receive(buffer).await;
        buffer.set_range(0..INBOX_BYTES);
        self.buffer = Some(buffer);
        let received = result?;
        self.end = INBOX_BYTES.min(self.end.saturating_add(received));
        Ok(received > 0)
    }

    /// Receives until `count` bytes are there; false if the stream ends before.
    pub(crate) async fn fill_to(&mut self, count: usize) -> io::Result<bool> {
        while self.bytes().len() < count {
            if !self.fill().await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Fills `buffer` with the next bytes.
    pub(crate) async fn take_into(&mut self, mut buffer: Buffer) -> io::Result<Buffer> {
        let range = buffer.range();
        let mut have = 0;
        loop {
            let count = self.bytes().len().min(range.len() - have);
            buffer[have..have + count].copy_from_slice(&self.bytes()[..count]);
            self.consume(count);
            have += count;
            let rest = range.len() - have;
            if rest == 0 {
                return Ok(buffer);
            }
            if rest >= DIRECT_BYTES {
                buffer.set_range(range.start + have..range.end);
                let (result, mut buffer) = self.stream.receive_exact(buffer).await;
                result?;
                buffer.set_range(range);
                return Ok(buffer);
            }
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Throws the next `count` bytes away.
    pub(crate) async fn skip(&mut self, mut count: usize) -> io::Result<()> {
        loop {
            let now = self.bytes().len().min(count);
            self.consume(now);
            count -= now;
            if count == 0 {
                return Ok(());
            }
            if !self.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
