//! Byte streams to clients.

use crate::Buffer;
use std::future::Future;
use std::io;

/// A piece of what is sent: a few bytes in place, or a buffer that comes back when it is out.
#[derive(Debug)]
pub enum Segment {
    /// Protocol bytes.
    Bytes(Vec<u8>),
    /// A few protocol bytes that are not worth an allocation, and how many of them count.
    Inline([u8; 32], u8),
    /// Payload.
    Buffer(Buffer),
}

impl Segment {
    /// The bytes to send.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Segment::Bytes(bytes) => bytes,
            Segment::Inline(bytes, length) => &bytes[..usize::from(*length).min(bytes.len())],
            Segment::Buffer(buffer) => buffer,
        }
    }
}

/// One connection.
///
/// # Contract
/// At most one receive and one send are in flight at a time (one of each may be).
pub trait Stream: 'static {
    /// Receives at least one byte into the front of `buffer`'s range; 0 at the end of the stream.
    fn receive(
        &self,
        buffer: Buffer,
    ) -> impl Future<Output = (io::Result<usize>, Buffer)> + 'static;
    /// Receives until `buffer`'s range is full; `UnexpectedEof` if the stream ends before.
    fn receive_exact(
        &self,
        buffer: Buffer,
    ) -> impl Future<Output = (io::Result<()>, Buffer)> + 'static;
    /// Sends all segments, in order, in as few system calls as possible.
    fn send(&self, segments: Vec<Segment>) -> impl Future<Output = io::Result<()>> + 'static;
    /// Ends both directions; pending calls return.
    fn shutdown(&self);
    /// Who is at the other end, for logs.
    fn peer(&self) -> String;
}

/// Something that accepts connections.
pub trait Listener: 'static {
    /// What comes out.
    type Stream: Stream;
    /// The next connection.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + 'static;
    /// The address it really listens on: `unix:PATH` or `tcp:HOST:PORT`.
    fn address(&self) -> String;
}
