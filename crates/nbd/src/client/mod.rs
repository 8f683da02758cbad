//! The other end: a client that keeps many requests in flight on one stream.
//!
//! Requests may be made by any number of tasks; a reader task matches replies to them by cookie, a writer task sends
//! what has queued up. Every field of a reply that can be checked is: a server that sends nonsense ends the
//! connection, and every request in flight gets the reason.

mod greeter;
mod reply;

pub(crate) use greeter::Greeter;
pub use greeter::{ExportInfo, list};
pub(crate) use reply::nonsense;
pub use reply::{ContextExtents, ReplyHeader};

use crate::inbox::Inbox;
use crate::outbox::{Message, Outbox};
use crate::proto::{self, Fields, chunk, command, command_flag};
use brigade_env::sync::{Notify, Semaphore, promise};
use brigade_env::{Buffer, BufferPool, Env, Segment, Stream};
use greeter::OPTION_REPLY_BYTES_MAX;
use reply::{Answer, Pending, Slots, errno, error_of, extents_of, gone};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

/// What a client asks for.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Negotiate structured replies, and with them the meta contexts `base:allocation` and `brigade:state`.
    pub structured: bool,
    /// Requests in flight.
    pub requests_max: usize,
}

impl Default for ClientOptions {
    fn default() -> Self {
        ClientOptions {
            structured: true,
            requests_max: 128,
        }
    }
}

struct Inner<S> {
    stream: Rc<S>,
    info: ExportInfo,
    buffers: BufferPool,
    outbox: Outbox<S>,
    slots: RefCell<Slots>,
    permits: Semaphore,
    is_over: Cell<bool>,
    over: Notify,
}

/// An open export.
pub struct Client<S: Stream> {
    inner: Rc<Inner<S>>,
}

impl<S: Stream> Drop for Client<S> {
    fn drop(&mut self) {
        self.inner.outbox.close();
        self.inner.stream.shutdown();
    }
}

impl<S: Stream> Client<S> {
    /// Opens `export` on a fresh stream; the reader and the writer become tasks of `env`.
    pub async fn connect<E: Env>(
        env: &E,
        stream: S,
        export: &str,
        options: ClientOptions,
    ) -> io::Result<Self> {
        let stream = Rc::new(stream);
        let mut inbox = Inbox::new(stream.clone(), env.buffers());
        let info = Greeter {
            stream: &*stream,
            inbox: &mut inbox,
        }
        .open(export, options.structured)
        .await?;
        let inner = Rc::new(Inner {
            outbox: Outbox::new(stream.clone()),
            stream,
            info,
            buffers: env.buffers().clone(),
            slots: RefCell::default(),
            permits: Semaphore::new(options.requests_max.max(1)),
            is_over: Cell::new(false),
            over: Notify::new(),
        });
        let writer = inner.clone();
        env.spawn(async move { writer.outbox.run(|_, _| ()).await });
        let reader = inner.clone();
        env.spawn(async move {
            let result = reader.read_replies(inbox).await;
            reader.fail_all(result.err().unwrap_or_else(gone));
        });
        Ok(Client { inner })
    }

    /// What the handshake told.
    pub fn info(&self) -> &ExportInfo {
        &self.inner.info
    }

    /// Reads.
    pub async fn read(&self, offset: u64, length: u32) -> io::Result<Buffer> {
        let buffer = self.inner.buffers.get(length as usize);
        let answer = self
            .inner
            .request(0, command::READ, offset, length, Some(buffer), None)
            .await?;
        answer.buffer.ok_or_else(|| nonsense("no data"))
    }

    /// Writes.
    pub async fn write(&self, offset: u64, buffer: Buffer, fua: bool) -> io::Result<()> {
        let flags = if fua { command_flag::FUA } else { 0 };
        let length = length_of(buffer.len() as u64)?;
        self.inner
            .request(flags, command::WRITE, offset, length, None, Some(buffer))
            .await?;
        Ok(())
    }

    /// Makes completed writes durable.
    pub async fn flush(&self) -> io::Result<()> {
        self.inner
            .request(0, command::FLUSH, 0, 0, None, None)
            .await?;
        Ok(())
    }

    /// Gives a range up.
    pub async fn trim(&self, offset: u64, length: u32, fua: bool) -> io::Result<()> {
        let flags = if fua { command_flag::FUA } else { 0 };
        self.inner
            .request(flags, command::TRIM, offset, length, None, None)
            .await?;
        Ok(())
    }

    /// Brings a range into the cache.
    pub async fn cache(&self, offset: u64, length: u32) -> io::Result<()> {
        self.inner
            .request(0, command::CACHE, offset, length, None, None)
            .await?;
        Ok(())
    }

    /// Zeroes a range; `flags` are [`command_flag`]s.
    pub async fn write_zeroes(&self, offset: u64, length: u32, flags: u16) -> io::Result<()> {
        self.inner
            .request(flags, command::WRITE_ZEROES, offset, length, None, None)
            .await?;
        Ok(())
    }

    /// States of a range in every negotiated context.
    pub async fn block_status(
        &self,
        offset: u64,
        length: u32,
        only_one: bool,
    ) -> io::Result<Vec<ContextExtents>> {
        let flags = if only_one { command_flag::REQ_ONE } else { 0 };
        let answer = self
            .inner
            .request(flags, command::BLOCK_STATUS, offset, length, None, None)
            .await?;
        if answer.contexts.len() != self.inner.info.contexts.len() {
            return Err(nonsense("not one chunk for each context"));
        }
        Ok(answer.contexts)
    }

    /// Any request without a payload, for tests of servers.
    pub async fn raw(&self, flags: u16, kind: u16, offset: u64, length: u32) -> io::Result<()> {
        self.inner
            .request(flags, kind, offset, length, None, None)
            .await?;
        Ok(())
    }

    /// Says goodbye after everything sent before, and waits for the server to close.
    pub async fn disconnect(self) {
        let header = proto::request_header(0, command::DISCONNECT, 0, 0, 0);
        self.inner.outbox.push(Message {
            header,
            body: None,
            cost_bytes: 0,
        });
        self.inner.outbox.close();
        self.inner
            .over
            .until(|| self.inner.is_over.get().then_some(()))
            .await;
    }
}

fn length_of(bytes: u64) -> io::Result<u32> {
    u32::try_from(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "request longer than 4 GiB"))
}

impl<S: Stream> Inner<S> {
    async fn request(
        &self,
        flags: u16,
        kind: u16,
        offset: u64,
        length: u32,
        read_into: Option<Buffer>,
        payload: Option<Buffer>,
    ) -> io::Result<Answer> {
        let _permit = self.permits.acquire(1).await;
        if self.is_over.get() {
            return Err(gone());
        }
        let (keeper, promise) = promise();
        let answer = Answer {
            buffer: read_into,
            contexts: Vec::new(),
        };
        let pending = Pending {
            kind,
            offset,
            length,
            received: 0,
            answer,
            error: None,
            keeper,
        };
        let cookie = self.slots.borrow_mut().insert(pending);
        let header = proto::request_header(flags, kind, cookie, offset, length);
        self.outbox.push(Message {
            header,
            body: payload.map(Segment::Buffer),
            cost_bytes: 0,
        });
        promise.await
    }

    fn fail_all(&self, error: io::Error) {
        self.is_over.set(true);
        self.stream.shutdown();
        self.outbox.close();
        let slots = std::mem::take(&mut *self.slots.borrow_mut());
        for pending in slots.slots.into_iter().flatten() {
            pending
                .keeper
                .keep(Err(io::Error::new(error.kind(), error.to_string())));
        }
        self.over.notify_all();
    }

    async fn read_replies(&self, mut inbox: Inbox<S>) -> io::Result<()> {
        loop {
            let Some((header, used)) = ReplyHeader::parse(inbox.bytes())? else {
                if !inbox.fill().await? {
                    return Ok(());
                }
                continue;
            };
            inbox.consume(used);
            match header {
                ReplyHeader::Simple { cookie, error } => {
                    self.simple(&mut inbox, cookie, error).await?
                }
                ReplyHeader::Chunk {
                    cookie,
                    flags,
                    kind,
                    length,
                } => {
                    if !self.info.is_structured {
                        return Err(nonsense("structured reply that was not negotiated"));
                    }
                    self.chunk(&mut inbox, cookie, kind, length).await?;
                    if flags & chunk::DONE != 0 {
                        self.finish(cookie)?;
                    }
                }
            }
        }
    }

    /// A request leaves its slot only with its result: until then [`Inner::fail_all`] must find it.
    async fn simple(&self, inbox: &mut Inbox<S>, cookie: u64, error: u32) -> io::Result<()> {
        let expected = {
            let mut slots = self.slots.borrow_mut();
            let pending = slots.get(cookie)?;
            match pending.kind {
                _ if error != 0 => {
                    pending.error = Some(errno(error));
                    None
                }
                command::READ if self.info.is_structured => {
                    return Err(nonsense("simple reply to a read"));
                }
                command::READ => Some((pending.offset, pending.length)),
                _ => None,
            }
        };
        if let Some((offset, length)) = expected {
            let (buffer, _) = self.part(cookie, offset, length)?;
            let buffer = inbox.take_into(buffer).await?;
            self.put_back(cookie, buffer)?;
        }
        self.finish(cookie)
    }

    fn finish(&self, cookie: u64) -> io::Result<()> {
        let pending = self.slots.borrow_mut().remove(cookie)?;
        pending.finish();
        Ok(())
    }

    async fn chunk(
        &self,
        inbox: &mut Inbox<S>,
        cookie: u64,
        kind: u16,
        length: u32,
    ) -> io::Result<()> {
        match kind {
            chunk::NONE if length == 0 => Ok(()),
            chunk::OFFSET_DATA if length > 8 => self.data(inbox, cookie, length - 8).await,
            chunk::OFFSET_HOLE if length == 12 => self.hole(inbox, cookie).await,
            _ => self.small_chunk(inbox, cookie, kind, length).await,
        }
    }

    /// The part of the request a content chunk is about, as a range of its buffer.
    fn part(&self, cookie: u64, offset: u64, length: u32) -> io::Result<(Buffer, usize)> {
        let mut slots = self.slots.borrow_mut();
        let pending = slots.get(cookie)?;
        let start = offset
            .checked_sub(pending.offset)
            .ok_or_else(|| nonsense("data before the request's start"))?;
        if start.saturating_add(u64::from(length)) > u64::from(pending.length) {
            return Err(nonsense("data past the request's end"));
        }
        pending.received = pending.received.saturating_add(length);
        let buffer = pending
            .answer
            .buffer
            .take()
            .ok_or_else(|| nonsense("data for a request that is no read"))?;
        Ok((buffer, start as usize))
    }

    fn put_back(&self, cookie: u64, mut buffer: Buffer) -> io::Result<()> {
        let mut slots = self.slots.borrow_mut();
        let pending = slots.get(cookie)?;
        buffer.set_range(0..pending.length as usize);
        pending.answer.buffer = Some(buffer);
        Ok(())
    }

    async fn data(&self, inbox: &mut Inbox<S>, cookie: u64, length: u32) -> io::Result<()> {
        let offset = take_u64(inbox).await?;
        let (mut buffer, start) = self.part(cookie, offset, length)?;
        buffer.set_range(start..start + length as usize);
        let buffer = inbox.take_into(buffer).await?;
        self.put_back(cookie, buffer)
    }

    async fn hole(&self, inbox: &mut Inbox<S>, cookie: u64) -> io::Result<()> {
        let offset = take_u64(inbox).await?;
        inbox.fill_to(4).await?;
        let length = Fields(inbox.bytes()).u32().ok_or_else(gone)?;
        inbox.consume(4);
        let (mut buffer, start) = self.part(cookie, offset, length)?;
        buffer[start..start + length as usize].fill(0);
        self.put_back(cookie, buffer)
    }

    async fn small_chunk(
        &self,
        inbox: &mut Inbox<S>,
        cookie: u64,
        kind: u16,
        length: u32,
    ) -> io::Result<()> {
        if length > OPTION_REPLY_BYTES_MAX {
            return Err(nonsense("chunk too long"));
        }
        let length = length as usize;
        if !inbox.fill_to(length).await? {
            return Err(gone());
        }
        {
            let mut slots = self.slots.borrow_mut();
            let pending = slots.get(cookie)?;
            let mut fields = Fields(&inbox.bytes()[..length]);
            if kind & chunk::ERROR_BIT != 0 {
                pending.error = Some(error_of(&mut fields)?);
            } else if kind == chunk::BLOCK_STATUS && pending.kind == command::BLOCK_STATUS {
                let extents = extents_of(&mut fields, pending.length)?;
                let is_known = self
                    .info
                    .contexts
                    .iter()
                    .any(|(id, _)| *id == extents.context);
                if !is_known
                    || pending
                        .answer
                        .contexts
                        .iter()
                        .any(|c| c.context == extents.context)
                {
                    return Err(nonsense("block status for an unexpected context"));
                }
                pending.answer.contexts.push(extents);
            } else {
                return Err(nonsense("unexpected chunk"));
            }
        }
        inbox.consume(length);
        Ok(())
    }
}

async fn take_u64<S: Stream>(inbox: &mut Inbox<S>) -> io::Result<u64> {
    inbox.fill_to(8).await?;
    let value = Fields(inbox.bytes()).u64().ok_or_else(gone)?;
    inbox.consume(8);
    Ok(value)
}
