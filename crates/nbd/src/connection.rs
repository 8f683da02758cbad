//! One client, from its first byte to its last reply.
//!
//! The connection's task receives, checks and starts requests; the writer task sends replies; a request that has to
//! wait is a task of its own. The three meet in [`Budget`]: the receiver waits for room in it, the end of the
//! connection for its emptiness.
//!
//! Invariants:
//! - (NBD-2) room in the budget is taken before a request's buffer is made and given back when its reply is out.
//! - A request once started is run to its end even if the client has gone. Once a reply could not be sent none is started.

use crate::handshake::{Contexts, Handshake, Session, Step};
use crate::inbox::Inbox;
use crate::outbox::{Message, Outbox};
use crate::proto::{self, Errno, chunk, command};
use crate::request::{Action, REQUEST_BYTES, Refusal, Request, Rules, check};
use crate::server::{ServerOptions, Shutdown};
use crate::wait::{Either, WaitCell, race};
use brigade_env::sync::yield_now;
use brigade_env::{BlockDevice, Buffer, Env, Exports, Segment, StatusExtent, Stream, StreamId};
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::task::{Context, Waker};

/// Most extents in one block status reply: 32 KiB of descriptors for each context.
const STATUS_EXTENTS_MAX: usize = 4096;
/// How many device extents may be merged to find the one extent a client asks for.
const STATUS_EXTENTS_FOR_ONE: usize = 64;

/// Serves one client.
pub(crate) async fn run<E: Env, S: Stream, X: Exports>(
    env: E,
    stream: S,
    number: u64,
    exports: Rc<X>,
    options: Rc<ServerOptions>,
    shutdown: Rc<Shutdown>,
) {
    let stream = Rc::new(stream);
    let peer = stream.peer();
    tracing::debug!(number, peer, "nbd: connected");
    let mut inbox = Inbox::new(stream.clone(), env.buffers());
    let negotiated = {
        let limit = async {
            race(env.sleep(options.handshake_timeout), shutdown.triggered()).await;
        };
        match race(negotiate(&stream, &mut inbox, &*exports), limit).await {
            Either::First(negotiated) => negotiated,
            Either::Second(()) => {
                Err("the handshake took too long, or the server stops".to_owned())
            }
        }
    };
    match negotiated {
        Ok(session) => {
            let connection = Rc::new(Connection::new(&session, number, stream.clone(), &options));
            let reason = transmit(&env, connection, inbox, session, &options, &shutdown).await;
            tracing::debug!(number, peer, reason, "nbd: disconnected");
        }
        Err(reason) => tracing::debug!(number, peer, reason, "nbd: handshake ended"),
    }
    stream.shutdown();
}

async fn negotiate<S: Stream, X: Exports>(
    stream: &Rc<S>,
    inbox: &mut Inbox<S>,
    exports: &X,
) -> Result<Session<X::Device>, String> {
    let mut handshake = Handshake::new();
    let mut out = Handshake::greeting();
    loop {
        if !out.is_empty() {
            let segments = vec![Segment::Bytes(std::mem::take(&mut out))];
            stream
                .send(segments)
                .await
                .map_err(|error| error.to_string())?;
        }
        let (used, step) = handshake.step(inbox.bytes(), exports, &mut out);
        inbox.consume(used);
        match step {
            Step::Again => {}
            Step::NeedMore => {
                if !inbox.fill().await.map_err(|error| error.to_string())? {
                    return Err("the client left".to_owned());
                }
            }
            Step::Serve(session) => {
                if !out.is_empty() {
                    stream
                        .send(vec![Segment::Bytes(out)])
                        .await
                        .map_err(|error| error.to_string())?;
                }
                return Ok(session);
            }
            Step::Close(reason) => {
                // The reply to ABORT; the client may be gone already, and that is fine.
                if !out.is_empty() {
                    let _ = stream.send(vec![Segment::Bytes(out)]).await;
                }
                return Err(reason.to_owned());
            }
        }
    }
}

/// What requests between header and sent reply take.
struct Budget {
    requests: Cell<usize>,
    bytes: Cell<usize>,
    requests_max: usize,
    bytes_max: usize,
    changed: WaitCell,
}

impl Budget {
    fn has_room(&self, bytes: usize) -> bool {
        let is_empty = self.requests.get() == 0;
        let fits = self.bytes.get().saturating_add(bytes) <= self.bytes_max;
        is_empty || (self.requests.get() < self.requests_max && fits)
    }

    async fn take(&self, bytes: usize) -> Claim<'_> {
        if !self.has_room(bytes) {
            self.changed.until(|| self.has_room(bytes)).await;
        }
        self.requests.set(self.requests.get() + 1);
        self.bytes.set(self.bytes.get() + bytes);
        Claim {
            budget: self,
            bytes,
        }
    }

    fn give_back(&self, requests: usize, bytes: usize) {
        self.requests.set(self.requests.get() - requests);
        self.bytes.set(self.bytes.get() - bytes);
        self.changed.wake();
    }

    async fn emptied(&self) {
        self.changed.until(|| self.requests.get() == 0).await;
    }
}

/// Room for a request that has not started: given back if it never does, because the client left or the server stops.
struct Claim<'a> {
    budget: &'a Budget,
    bytes: usize,
}

impl Claim<'_> {
    /// From here on the writer gives it back, with the reply.
    fn hand_over(self) {
        std::mem::forget(self);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.budget.give_back(1, self.bytes);
    }
}

struct Connection<D, S> {
    device: Rc<D>,
    rules: Rules,
    stream_id: StreamId,
    budget: Budget,
    outbox: Outbox<S>,
}

impl<D: BlockDevice, S: Stream> Connection<D, S> {
    fn new(session: &Session<D>, number: u64, stream: Rc<S>, options: &ServerOptions) -> Self {
        Connection {
            device: session.device.clone(),
            rules: session.rules(),
            stream_id: stream_id(number),
            budget: Budget {
                requests: Cell::new(0),
                bytes: Cell::new(0),
                requests_max: options.requests_max.max(1),
                bytes_max: options.request_bytes_max,
                changed: WaitCell::default(),
            },
            outbox: Outbox::new(stream),
        }
    }
}

/// Connection numbers spread over the stream ids (Fibonacci hashing), so that neighbours do not meet in small tables.
fn stream_id(number: u64) -> StreamId {
    StreamId((number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16)
}

async fn transmit<E: Env, D: BlockDevice, S: Stream>(
    env: &E,
    connection: Rc<Connection<D, S>>,
    inbox: Inbox<S>,
    session: Session<D>,
    options: &ServerOptions,
    shutdown: &Shutdown,
) -> String {
    drop(session);
    let writer = connection.clone();
    env.spawn(async move {
        writer
            .outbox
            .run(|requests, bytes| writer.budget.give_back(requests, bytes))
            .await;
    });
    let reason = match race(
        receive_requests(env, &connection, inbox),
        shutdown.triggered(),
    )
    .await
    {
        Either::First(Ok(reason)) => reason.to_owned(),
        Either::First(Err(error)) => error.to_string(),
        Either::Second(()) => "the server stops".to_owned(),
    };
    // A client that has gone half-way and never reads its replies must not stay for ever.
    let drained = race(
        connection.budget.emptied(),
        env.sleep(options.drain_timeout),
    )
    .await;
    connection.outbox.close();
    match drained {
        Either::First(()) => reason,
        Either::Second(()) => format!("{reason}; requests in flight did not finish in time"),
    }
}

async fn receive_requests<E: Env, D: BlockDevice, S: Stream>(
    env: &E,
    connection: &Rc<Connection<D, S>>,
    mut inbox: Inbox<S>,
) -> io::Result<&'static str> {
    loop {
        if connection.outbox.is_due() {
            yield_now().await;
        }
        // What the client sent before it went may be hours of work, in nobody's interest.
        if connection.outbox.has_failed() {
            return Ok("the client left without reading its replies");
        }
        let Some(header) = inbox.bytes().first_chunk::<REQUEST_BYTES>() else {
            if !inbox.fill().await? {
                return Ok("the client left without saying so");
            }
            continue;
        };
        let Some(request) = Request::parse(header) else {
            return Ok("wrong request magic");
        };
        inbox.consume(REQUEST_BYTES);
        let payload = request.payload_bytes();
        if payload > proto::PAYLOAD_BYTES_MAX {
            return Ok("write payload far too long");
        }
        match check(&request, &connection.rules) {
            Ok(Action::Disconnect) => return Ok("the client said goodbye"),
            Ok(Action::Write { fua }) if payload > 0 => {
                let claim = connection.budget.take(payload as usize).await;
                let buffer = inbox
                    .take_into(connection.device.buffer(payload as usize))
                    .await?;
                claim.hand_over();
                start(env, write(connection.clone(), request, buffer, fua));
            }
            Ok(action) => {
                connection
                    .budget
                    .take(cost_bytes(&request, &action))
                    .await
                    .hand_over();
                start(env, perform(connection.clone(), request, action));
            }
            Err(refusal) => {
                inbox.skip(payload as usize).await?;
                connection.budget.take(0).await.hand_over();
                connection.outbox.push(refused(
                    &request,
                    refusal,
                    connection.rules.is_structured,
                    0,
                ));
            }
        }
    }
}

/// Most requests find everything they need at once (a hit in memory, a RAM device): those never become a task.
fn start<E: Env>(env: &E, request: impl Future<Output = ()> + 'static) {
    let mut request = Box::pin(request);
    // Its wake-ups before it is a task may be lost: the task's first poll asks again.
    if request
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_pending()
    {
        env.spawn(request);
    }
}

fn cost_bytes(request: &Request, action: &Action) -> usize {
    match action {
        Action::Read => request.length as usize,
        Action::BlockStatus { .. } => STATUS_EXTENTS_MAX * 8 * 2,
        _ => 0,
    }
}

async fn write<D: BlockDevice, S: Stream>(
    connection: Rc<Connection<D, S>>,
    request: Request,
    buffer: Buffer,
    fua: bool,
) {
    let cost = request.length as usize;
    let result = connection
        .device
        .write(connection.stream_id, request.offset, buffer, fua)
        .await;
    connection
        .outbox
        .push(done(&request, result, connection.rules.is_structured, cost));
}

async fn perform<D: BlockDevice, S: Stream>(
    connection: Rc<Connection<D, S>>,
    request: Request,
    action: Action,
) {
    let cost = cost_bytes(&request, &action);
    let is_structured = connection.rules.is_structured;
    let message = match action {
        Action::Read => read(&connection, &request, cost).await,
        Action::BlockStatus { only_one } => {
            block_status(&connection, &request, only_one, cost).await
        }
        _ => done(
            &request,
            change(&connection, &request, action).await,
            is_structured,
            cost,
        ),
    };
    connection.outbox.push(message);
}

async fn change<D: BlockDevice, S>(
    c: &Connection<D, S>,
    request: &Request,
    action: Action,
) -> io::Result<()> {
    let (offset, length) = (request.offset, u64::from(request.length));
    match action {
        Action::Flush => c.device.flush().await,
        // Nothing to do for nothing.
        _ if length == 0 => Ok(()),
        Action::Trim { fua } => c.device.discard(offset, length, fua).await,
        Action::Cache => c.device.prefetch(c.stream_id, offset, length).await,
        Action::WriteZeroes {
            may_unmap,
            only_if_fast,
            fua,
        } => {
            c.device
                .write_zeroes(offset, length, may_unmap, only_if_fast, fua)
                .await
        }
        // Writes with a payload, reads and block status have their own functions; goodbyes end the loop.
        Action::Read | Action::Write { .. } | Action::BlockStatus { .. } | Action::Disconnect => {
            Ok(())
        }
    }
}

async fn read<D: BlockDevice, S>(c: &Connection<D, S>, request: &Request, cost: usize) -> Message {
    let is_structured = c.rules.is_structured;
    if request.length == 0 {
        return done(request, Ok(()), is_structured, cost);
    }
    let result = c
        .device
        .read(c.stream_id, request.offset, request.length as usize)
        .await;
    match result {
        Ok(buffer) if buffer.len() == request.length as usize => {
            let header = if is_structured {
                proto::data_chunk_header(request.cookie, request.offset, request.length)
            } else {
                proto::simple_reply(request.cookie, 0)
            };
            Message {
                header,
                body: Some(Segment::Buffer(buffer)),
                cost_bytes: cost,
            }
        }
        // Anything but the promised length would shift every byte that follows on the wire.
        Ok(_) => refused(
            request,
            (Errno::Io, "the device read a different length"),
            is_structured,
            cost,
        ),
        Err(error) => failed(request, &error, is_structured, cost),
    }
}

async fn block_status<D: BlockDevice, S>(
    c: &Connection<D, S>,
    request: &Request,
    only_one: bool,
    cost: usize,
) -> Message {
    let most = if only_one {
        STATUS_EXTENTS_FOR_ONE
    } else {
        STATUS_EXTENTS_MAX
    };
    match c
        .device
        .status(request.offset, u64::from(request.length), most)
        .await
    {
        Ok(extents) => status_reply(request, &extents, c.rules.contexts, only_one, cost),
        Err(error) => failed(request, &error, true, cost),
    }
}

/// One chunk for each context; the first chunk's header is the message's, all else its body.
fn status_reply(
    request: &Request,
    extents: &[StatusExtent],
    contexts: Contexts,
    only_one: bool,
    cost: usize,
) -> Message {
    let extents = &extents[..extents.len().min(STATUS_EXTENTS_MAX)];
    let mut chunks = Vec::with_capacity(2);
    if contexts.allocation {
        let flags = |extent: &StatusExtent| {
            if extent.is_hole {
                proto::STATE_HOLE_ZERO
            } else {
                0
            }
        };
        chunks.push(descriptors(
            proto::CONTEXT_ALLOCATION,
            extents,
            request.length,
            only_one,
            flags,
        ));
    }
    if contexts.state {
        let flags = |extent: &StatusExtent| extent.cache_state;
        chunks.push(descriptors(
            proto::CONTEXT_STATE,
            extents,
            request.length,
            only_one,
            flags,
        ));
    }
    if chunks.iter().any(|chunk| chunk.len() <= 4) {
        return refused(
            request,
            (Errno::Io, "the device reported no extents"),
            true,
            cost,
        );
    }
    let last = chunks.len() - 1;
    let mut header = None;
    let mut body = Vec::new();
    for (nr, payload) in chunks.iter().enumerate() {
        let flags = if nr == last { chunk::DONE } else { 0 };
        let this = proto::chunk_header(
            request.cookie,
            flags,
            chunk::BLOCK_STATUS,
            payload.len() as u32,
        );
        if nr == 0 {
            header = Some(this);
        } else {
            body.extend_from_slice(this.as_slice());
        }
        body.extend_from_slice(payload);
    }
    match header {
        Some(header) => Message {
            header,
            body: Some(Segment::Bytes(body)),
            cost_bytes: cost,
        },
        None => refused(request, (Errno::Invalid, "no meta context"), true, cost),
    }
}

/// Descriptors of one context, neighbours of one state merged, never past the end of the request.
fn descriptors(
    context: u32,
    extents: &[StatusExtent],
    length: u32,
    only_one: bool,
    flags_of: impl Fn(&StatusExtent) -> u32,
) -> Vec<u8> {
    let mut merged: Vec<(u32, u32)> = Vec::new();
    let mut left = length;
    for extent in extents {
        let now = extent.length.min(u64::from(left)) as u32;
        let flags = flags_of(extent);
        if now == 0 {
            continue;
        }
        left -= now;
        match merged.last_mut() {
            // Both are parts of one request's length: the sum cannot overflow.
            Some((length, same)) if *same == flags => *length += now,
            Some(_) if only_one => break,
            _ => merged.push((now, flags)),
        }
    }
    let mut payload = context.to_be_bytes().to_vec();
    for (length, flags) in merged {
        payload.extend(length.to_be_bytes());
        payload.extend(flags.to_be_bytes());
    }
    payload
}

fn done(
    request: &Request,
    result: io::Result<()>,
    is_structured: bool,
    cost_bytes: usize,
) -> Message {
    match result {
        Ok(()) => {
            let header = if is_structured && request.kind == command::READ {
                proto::chunk_header(request.cookie, chunk::DONE, chunk::NONE, 0)
            } else {
                proto::simple_reply(request.cookie, 0)
            };
            Message {
                header,
                body: None,
                cost_bytes,
            }
        }
        Err(error) => failed(request, &error, is_structured, cost_bytes),
    }
}

fn failed(request: &Request, error: &io::Error, is_structured: bool, cost_bytes: usize) -> Message {
    let errno = Errno::from(error);
    if errno == Errno::Io {
        tracing::warn!(%error, kind = request.kind, offset = request.offset, length = request.length, "nbd: request failed");
    }
    if is_structured {
        error_message(request, errno, &error.to_string(), cost_bytes)
    } else {
        Message {
            header: proto::simple_reply(request.cookie, errno as u32),
            body: None,
            cost_bytes,
        }
    }
}

fn refused(
    request: &Request,
    (errno, reason): Refusal,
    is_structured: bool,
    cost_bytes: usize,
) -> Message {
    if is_structured {
        error_message(request, errno, reason, cost_bytes)
    } else {
        Message {
            header: proto::simple_reply(request.cookie, errno as u32),
            body: None,
            cost_bytes,
        }
    }
}

fn error_message(request: &Request, errno: Errno, text: &str, cost_bytes: usize) -> Message {
    let (header, text) = proto::error_chunk(request.cookie, errno, text);
    let body = (!text.is_empty()).then_some(Segment::Bytes(text));
    Message {
        header,
        body,
        cost_bytes,
    }
}
