//! The other end: a client that keeps many requests in flight on one stream.
//!
//! Requests may be made by any number of tasks; a reader task matches replies to them by cookie, a writer task sends
//! what has queued up. Every field of a reply that can be checked is: a server that sends nonsense ends the
//! connection, and every request in flight gets the reason.

use crate::inbox::Inbox;
use crate::outbox::{Message, Outbox};
use crate::proto::{self, Fields, chunk, command, command_flag, info, option, option_reply};
use brigade_env::sync::{Keeper, Notify, Semaphore, promise};
use brigade_env::{BlockSizes, Buffer, BufferPool, Env, Segment, Stream};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

/// Most reply data of an option that is believed.
const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;

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

/// What an export is like, as the handshake told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Capacity.
    pub size_bytes: u64,
    /// See [`proto::transmission`].
    pub flags: u16,
    /// Request constraints; the protocol's defaults if the server told none.
    pub block_sizes: BlockSizes,
    /// Structured replies are in use.
    pub is_structured: bool,
    /// Context ids for block status, with their names.
    pub contexts: Vec<(u32, String)>,
}

/// Extents of one meta context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextExtents {
    /// Which context.
    pub context: u32,
    /// Lengths in bytes and flags.
    pub extents: Vec<(u32, u32)>,
}

/// The first bytes of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ReplyHeader {
    Simple {
        cookie: u64,
        error: u32,
    },
    Chunk {
        cookie: u64,
        flags: u16,
        kind: u16,
        length: u32,
    },
}

impl ReplyHeader {
    /// Parses the front of `bytes`: the header and its length, `None` if there are not enough bytes.
    pub fn parse(bytes: &[u8]) -> io::Result<Option<(ReplyHeader, usize)>> {
        let mut fields = Fields(bytes);
        let Some(magic) = fields.u32() else {
            return Ok(None);
        };
        let header = match magic {
            proto::SIMPLE_REPLY_MAGIC => {
                let (Some(error), Some(cookie)) = (fields.u32(), fields.u64()) else {
                    return Ok(None);
                };
                ReplyHeader::Simple { cookie, error }
            }
            proto::STRUCTURED_REPLY_MAGIC => {
                let (Some(flags), Some(kind)) = (fields.u16(), fields.u16()) else {
                    return Ok(None);
                };
                let (Some(cookie), Some(length)) = (fields.u64(), fields.u32()) else {
                    return Ok(None);
                };
                ReplyHeader::Chunk {
                    cookie,
                    flags,
                    kind,
                    length,
                }
            }
            _ => return Err(nonsense("wrong reply magic")),
        };
        Ok(Some((header, bytes.len() - fields.0.len())))
    }
}

pub(crate) fn nonsense(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("nbd server: {what}"))
}

fn gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "nbd server: connection closed",
    )
}

struct OptionReply {
    kind: u32,
    data: Vec<u8>,
}

/// The client's side of the handshake.
pub(crate) struct Greeter<'a, S> {
    pub(crate) stream: &'a S,
    pub(crate) inbox: &'a mut Inbox<S>,
}

impl<S: Stream> Greeter<'_, S> {
    async fn need(&mut self, count: usize) -> io::Result<()> {
        if self.inbox.fill_to(count).await? {
            Ok(())
        } else {
            Err(gone())
        }
    }

    async fn greet(&mut self) -> io::Result<()> {
        self.need(18).await?;
        let mut fields = Fields(self.inbox.bytes());
        if fields.u64() != Some(proto::GREETING_MAGIC) || fields.u64() != Some(proto::OPTION_MAGIC)
        {
            return Err(nonsense("not a newstyle server"));
        }
        let flags = fields.u16().unwrap_or(0);
        let ours = proto::FLAG_FIXED_NEWSTYLE | proto::FLAG_NO_ZEROES;
        if flags & ours != ours {
            return Err(nonsense("not fixed newstyle without zeroes"));
        }
        self.inbox.consume(18);
        self.stream
            .send(vec![Segment::Bytes(u32::from(ours).to_be_bytes().to_vec())])
            .await
    }

    async fn ask(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        let mut out = proto::OPTION_MAGIC.to_be_bytes().to_vec();
        out.extend(option.to_be_bytes());
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
        self.stream.send(vec![Segment::Bytes(out)]).await
    }

    async fn answer(&mut self, option: u32) -> io::Result<OptionReply> {
        self.need(20).await?;
        let mut fields = Fields(self.inbox.bytes());
        if fields.u64() != Some(proto::OPTION_REPLY_MAGIC) || fields.u32() != Some(option) {
            return Err(nonsense("reply to another option"));
        }
        let (kind, length) = (fields.u32().unwrap_or(0), fields.u32().unwrap_or(0));
        if length > OPTION_REPLY_BYTES_MAX {
            return Err(nonsense("option reply too long"));
        }
        self.inbox.consume(20);
        self.need(length as usize).await?;
        let data = self.inbox.bytes()[..length as usize].to_vec();
        self.inbox.consume(length as usize);
        Ok(OptionReply { kind, data })
    }

    async fn structured(&mut self) -> io::Result<bool> {
        self.ask(option::STRUCTURED_REPLY, &[]).await?;
        Ok(self.answer(option::STRUCTURED_REPLY).await?.kind == option_reply::ACK)
    }

    async fn contexts(&mut self, export: &str) -> io::Result<Vec<(u32, String)>> {
        let mut data = string(export);
        data.extend(2u32.to_be_bytes());
        data.extend(string(proto::CONTEXT_ALLOCATION_NAME));
        data.extend(string(proto::CONTEXT_STATE_NAME));
        self.ask(option::SET_META_CONTEXT, &data).await?;
        let mut contexts = Vec::new();
        loop {
            let reply = self.answer(option::SET_META_CONTEXT).await?;
            match reply.kind {
                option_reply::META_CONTEXT if contexts.len() < 2 => {
                    let mut fields = Fields(&reply.data);
                    let id = fields.u32().ok_or_else(|| nonsense("short meta context"))?;
                    contexts.push((id, String::from_utf8_lossy(fields.0).into_owned()));
                }
                option_reply::ACK => return Ok(contexts),
                kind if kind & option_reply::ERROR_BIT != 0 => return Ok(Vec::new()),
                _ => return Err(nonsense("unexpected reply to SET_META_CONTEXT")),
            }
        }
    }

    /// From the greeting to the start of transmission.
    pub(crate) async fn open(&mut self, export: &str, structured: bool) -> io::Result<ExportInfo> {
        self.greet().await?;
        let mut export_info = ExportInfo {
            size_bytes: 0,
            flags: 0,
            block_sizes: BlockSizes {
                minimum: 1,
                preferred: 4096,
                maximum: proto::PAYLOAD_BYTES_MAX,
            },
            is_structured: structured && self.structured().await?,
            contexts: Vec::new(),
        };
        if export_info.is_structured {
            export_info.contexts = self.contexts(export).await?;
        }
        let mut data = string(export);
        data.extend(1u16.to_be_bytes());
        data.extend(info::BLOCK_SIZE.to_be_bytes());
        self.ask(option::GO, &data).await?;
        loop {
            let reply = self.answer(option::GO).await?;
            match reply.kind {
                option_reply::INFO => take_info(&reply.data, &mut export_info)?,
                option_reply::ACK if export_info.flags != 0 => return Ok(export_info),
                option_reply::ERR_UNKNOWN => {
                    return Err(io::Error::new(
                        io::ErrorKind::NotFound,
                        format!("no export named {export:?}"),
                    ));
                }
                kind if kind & option_reply::ERROR_BIT != 0 => {
                    let text = String::from_utf8_lossy(&reply.data).into_owned();
                    return Err(io::Error::other(format!(
                        "nbd server refused {export:?}: {text} ({kind:#x})"
                    )));
                }
                _ => return Err(nonsense("unexpected reply to GO")),
            }
        }
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

fn take_info(data: &[u8], export_info: &mut ExportInfo) -> io::Result<()> {
    let mut fields = Fields(data);
    let short = || nonsense("short INFO reply");
    match fields.u16().ok_or_else(short)? {
        info::EXPORT => {
            export_info.size_bytes = fields.u64().ok_or_else(short)?;
            export_info.flags = fields.u16().ok_or_else(short)?;
        }
        info::BLOCK_SIZE => {
            let minimum = fields.u32().ok_or_else(short)?;
            let preferred = fields.u32().ok_or_else(short)?;
            let maximum = fields.u32().ok_or_else(short)?;
            export_info.block_sizes = BlockSizes {
                minimum,
                preferred,
                maximum,
            };
        }
        _ => {}
    }
    Ok(())
}

/// Names of the exports a server lists.
pub async fn list<S: Stream>(stream: S, buffers: &BufferPool) -> io::Result<Vec<String>> {
    let stream = Rc::new(stream);
    let mut inbox = Inbox::new(stream.clone(), buffers);
    let mut greeter = Greeter {
        stream: &*stream,
        inbox: &mut inbox,
    };
    greeter.greet().await?;
    greeter.ask(option::LIST, &[]).await?;
    let mut names = Vec::new();
    loop {
        let reply = greeter.answer(option::LIST).await?;
        match reply.kind {
            option_reply::SERVER if names.len() < 100_000 => {
                let name = Fields(&reply.data)
                    .string()
                    .ok_or_else(|| nonsense("malformed export name"))?;
                names.push(name.to_owned());
            }
            option_reply::ACK => break,
            _ => return Err(nonsense("refused to list its exports")),
        }
    }
    greeter.ask(option::ABORT, &[]).await?;
    stream.shutdown();
    Ok(names)
}

#[derive(Default)]
struct Answer {
    buffer: Option<Buffer>,
    contexts: Vec<ContextExtents>,
}

struct Pending {
    kind: u16,
    offset: u64,
    length: u32,
    received: u32,
    answer: Answer,
    error: Option<io::Error>,
    keeper: Keeper<io::Result<Answer>>,
}

impl Pending {
    fn finish(self) {
        let result = match self.error {
            Some(error) => Err(error),
            None if self.kind == command::READ && self.received != self.length => {
                Err(nonsense("success before all data"))
            }
            None => Ok(self.answer),
        };
        self.keeper.keep(result);
    }
}

#[derive(Default)]
struct Slots {
    slots: Vec<Option<Pending>>,
    free: Vec<usize>,
    turn: u32,
}

impl Slots {
    fn insert(&mut self, pending: Pending) -> u64 {
        let nr = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[nr] = Some(pending);
        // The low half finds the slot; the high half only makes wire traces easier to read.
        self.turn = self.turn.wrapping_add(1);
        (u64::from(self.turn) << 32) | nr as u64
    }

    fn get(&mut self, cookie: u64) -> io::Result<&mut Pending> {
        let slot = self.slots.get_mut((cookie & 0xffff_ffff) as usize);
        slot.and_then(Option::as_mut)
            .ok_or_else(|| nonsense("reply to no request"))
    }

    fn remove(&mut self, cookie: u64) -> io::Result<Pending> {
        let nr = (cookie & 0xffff_ffff) as usize;
        let pending = self
            .slots
            .get_mut(nr)
            .and_then(Option::take)
            .ok_or_else(|| nonsense("reply to no request"))?;
        self.free.push(nr);
        Ok(pending)
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

fn errno(error: u32) -> io::Error {
    io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(5))
}

fn error_of(fields: &mut Fields<'_>) -> io::Result<io::Error> {
    let (Some(number), Some(length)) = (fields.u32(), fields.u16()) else {
        return Err(nonsense("short error chunk"));
    };
    if number == 0 || fields.bytes(usize::from(length)).is_none() {
        return Err(nonsense("malformed error chunk"));
    }
    Ok(errno(number))
}

fn extents_of(fields: &mut Fields<'_>, request_length: u32) -> io::Result<ContextExtents> {
    let context = fields.u32().ok_or_else(|| nonsense("short block status"))?;
    let mut extents = Vec::new();
    let mut total: u64 = 0;
    while !fields.0.is_empty() {
        let (Some(length), Some(flags)) = (fields.u32(), fields.u32()) else {
            return Err(nonsense("torn block status extent"));
        };
        total += u64::from(length);
        if length == 0 || total > u64::from(request_length) {
            return Err(nonsense("block status extent of a wrong length"));
        }
        extents.push((length, flags));
    }
    if extents.is_empty() {
        return Err(nonsense("block status without extents"));
    }
    Ok(ContextExtents { context, extents })
}
