//! The server's side of option haggling, one option at a time, without a stream.
//!
//! ```text
//! greeting ->   <- client flags   (option -> replies)*   EXPORT_NAME or GO -> transmission
//! ```
//!
//! The caller keeps the bytes: [`Handshake::step`] looks at what has arrived, says how much of it is used up and what
//! to send. It answers one option a call, so that the replies to one are out before the next is looked at.

use crate::proto::{
    self, Fields, OPTION_BYTES_MAX, PAYLOAD_BYTES_MAX, STRING_BYTES_MAX, info, option,
    option_reply, transmission,
};
use crate::request::Rules;
use brigade_env::{BlockDevice, BlockSizes, Exports};
use std::rc::Rc;

/// An honest client sends about ten options.
const OPTIONS_MAX: u32 = 1000;
/// More than this is not skipped but ends the connection.
const SKIP_BYTES_MAX: u32 = 32 << 20;
const OPTION_HEADER_BYTES: usize = 16;

/// Meta contexts selected for block status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Contexts {
    /// `base:allocation`.
    pub allocation: bool,
    /// `brigade:state`.
    pub state: bool,
}

impl Contexts {
    /// None is.
    pub fn is_empty(self) -> bool {
        !self.allocation && !self.state
    }

    fn chosen(self) -> impl Iterator<Item = (u32, &'static str)> {
        let allocation = self
            .allocation
            .then_some((proto::CONTEXT_ALLOCATION, proto::CONTEXT_ALLOCATION_NAME));
        let state = self
            .state
            .then_some((proto::CONTEXT_STATE, proto::CONTEXT_STATE_NAME));
        allocation.into_iter().chain(state)
    }

    fn select(&mut self, query: &str) {
        self.allocation |= query == proto::CONTEXT_ALLOCATION_NAME;
        self.state |= query == proto::CONTEXT_STATE_NAME;
    }

    fn select_listed(&mut self, query: &str) {
        self.select(query);
        self.allocation |= query == "base:";
        self.state |= query == "brigade:";
    }
}

/// What a finished handshake agreed on.
pub struct Session<D> {
    /// What is served.
    pub device: Rc<D>,
    /// Structured replies.
    pub is_structured: bool,
    /// Block status contexts.
    pub contexts: Contexts,
}

impl<D: BlockDevice> Session<D> {
    /// The rules requests of this session are checked by.
    pub fn rules(&self) -> Rules {
        let sizes = block_sizes(&*self.device);
        Rules {
            size_bytes: self.device.size_bytes(),
            block_bytes: sizes.minimum,
            payload_bytes_max: sizes.maximum,
            is_read_only: self.device.is_read_only(),
            is_structured: self.is_structured,
            contexts: self.contexts,
        }
    }
}

/// What a step came to.
pub enum Step<D> {
    /// Nothing can be said before more bytes are there.
    NeedMore,
    /// Send the output, then step again.
    Again,
    /// Send the output, then serve.
    Serve(Session<D>),
    /// Send the output, then close, for this reason.
    Close(&'static str),
}

enum Phase {
    ClientFlags,
    Options,
    Skip { left: u32, option: u32 },
}

/// State of one handshake.
pub struct Handshake {
    phase: Phase,
    is_fixed: bool,
    no_zeroes: bool,
    is_structured: bool,
    contexts: Contexts,
    contexts_of: String,
    options_seen: u32,
}

impl Default for Handshake {
    fn default() -> Self {
        Self::new()
    }
}

impl Handshake {
    /// Before the client's flags.
    pub fn new() -> Self {
        Handshake {
            phase: Phase::ClientFlags,
            is_fixed: false,
            no_zeroes: false,
            is_structured: false,
            contexts: Contexts::default(),
            contexts_of: String::new(),
            options_seen: 0,
        }
    }

    /// What the server says first.
    pub fn greeting() -> Vec<u8> {
        let mut out = Vec::with_capacity(18);
        out.extend(proto::GREETING_MAGIC.to_be_bytes());
        out.extend(proto::OPTION_MAGIC.to_be_bytes());
        out.extend((proto::FLAG_FIXED_NEWSTYLE | proto::FLAG_NO_ZEROES).to_be_bytes());
        out
    }

    /// Looks at `input`, appends replies to `out`, and says how many bytes of the input are used up.
    ///
    /// An input of 16 bytes + [`OPTION_BYTES_MAX`] is never answered with [`Step::NeedMore`] and 0.
    pub fn step<X: Exports>(
        &mut self,
        input: &[u8],
        exports: &X,
        out: &mut Vec<u8>,
    ) -> (usize, Step<X::Device>) {
        match self.phase {
            Phase::ClientFlags => self.client_flags(input),
            Phase::Options => self.option(input, exports, out),
            Phase::Skip { left, option } => {
                let now = input.len().min(left as usize);
                let left = left - now as u32;
                self.phase = Phase::Skip { left, option };
                if left > 0 {
                    return (now, Step::NeedMore);
                }
                self.phase = Phase::Options;
                put_reply(
                    out,
                    option,
                    option_reply::ERR_TOO_BIG,
                    b"option data too long",
                );
                (now, Step::Again)
            }
        }
    }

    fn client_flags<D>(&mut self, input: &[u8]) -> (usize, Step<D>) {
        let Some(flags) = Fields(input).u32() else {
            return (0, Step::NeedMore);
        };
        let known = u32::from(proto::FLAG_FIXED_NEWSTYLE | proto::FLAG_NO_ZEROES);
        if flags & !known != 0 {
            return (4, Step::Close("unknown client flags"));
        }
        self.is_fixed = flags & u32::from(proto::FLAG_FIXED_NEWSTYLE) != 0;
        self.no_zeroes = flags & u32::from(proto::FLAG_NO_ZEROES) != 0;
        self.phase = Phase::Options;
        (4, Step::Again)
    }

    fn option<X: Exports>(
        &mut self,
        input: &[u8],
        exports: &X,
        out: &mut Vec<u8>,
    ) -> (usize, Step<X::Device>) {
        let mut fields = Fields(input);
        let Some(magic) = fields.u64() else {
            return (0, Step::NeedMore);
        };
        if magic != proto::OPTION_MAGIC {
            return (input.len(), Step::Close("wrong option magic"));
        }
        let (Some(kind), Some(length)) = (fields.u32(), fields.u32()) else {
            return (0, Step::NeedMore);
        };
        if !self.is_fixed && kind != option::EXPORT_NAME {
            return (
                input.len(),
                Step::Close("option from a client that is not fixed newstyle"),
            );
        }
        if length as usize > OPTION_BYTES_MAX {
            if length > SKIP_BYTES_MAX || kind == option::EXPORT_NAME {
                return (input.len(), Step::Close("option far too long"));
            }
            self.phase = Phase::Skip {
                left: length,
                option: kind,
            };
            return (OPTION_HEADER_BYTES, Step::Again);
        }
        let Some(data) = fields.bytes(length as usize) else {
            return (0, Step::NeedMore);
        };
        self.options_seen += 1;
        if self.options_seen > OPTIONS_MAX {
            return (input.len(), Step::Close("too many options"));
        }
        (
            OPTION_HEADER_BYTES + data.len(),
            self.answer(kind, data, exports, out),
        )
    }

    fn answer<X: Exports>(
        &mut self,
        kind: u32,
        data: &[u8],
        exports: &X,
        out: &mut Vec<u8>,
    ) -> Step<X::Device> {
        match kind {
            option::EXPORT_NAME => return self.export_name(data, exports, out),
            option::INFO | option::GO => return self.go(kind, data, exports, out),
            option::ABORT => {
                put_reply(out, kind, option_reply::ACK, &[]);
                return Step::Close("the client aborted the handshake");
            }
            option::LIST => list(data, exports, out),
            option::STRUCTURED_REPLY => self.structured_reply(data, out),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(kind, data, exports, out)
            }
            _ => put_reply(out, kind, option_reply::ERR_UNSUP, b"option not supported"),
        }
        Step::Again
    }

    fn export_name<X: Exports>(
        &mut self,
        data: &[u8],
        exports: &X,
        out: &mut Vec<u8>,
    ) -> Step<X::Device> {
        let name = (data.len() <= STRING_BYTES_MAX)
            .then(|| std::str::from_utf8(data).ok())
            .flatten();
        let Some((name, device)) = name.and_then(|name| Some((name, exports.find(name)?))) else {
            return Step::Close("no export of that name");
        };
        out.extend(device.size_bytes().to_be_bytes());
        out.extend(transmission_flags(&*device, self.is_structured).to_be_bytes());
        if !self.no_zeroes {
            out.extend([0; 124]);
        }
        Step::Serve(self.session(name, device))
    }

    fn session<D>(&self, name: &str, device: Rc<D>) -> Session<D> {
        let is_same = self.is_structured && self.contexts_of == name;
        let contexts = if is_same {
            self.contexts
        } else {
            Contexts::default()
        };
        Session {
            device,
            is_structured: self.is_structured,
            contexts,
        }
    }

    fn go<X: Exports>(
        &mut self,
        kind: u32,
        data: &[u8],
        exports: &X,
        out: &mut Vec<u8>,
    ) -> Step<X::Device> {
        let Some((name, wanted)) = parse_go(data) else {
            put_reply(
                out,
                kind,
                option_reply::ERR_INVALID,
                b"malformed INFO or GO",
            );
            return Step::Again;
        };
        let Some(device) = exports.find(name) else {
            put_reply(
                out,
                kind,
                option_reply::ERR_UNKNOWN,
                b"no export of that name",
            );
            return Step::Again;
        };
        self.put_infos(kind, name, &*device, wanted, out);
        put_reply(out, kind, option_reply::ACK, &[]);
        if kind == option::GO {
            Step::Serve(self.session(name, device))
        } else {
            Step::Again
        }
    }

    fn put_infos(
        &self,
        kind: u32,
        name: &str,
        device: &impl BlockDevice,
        wanted: Wanted,
        out: &mut Vec<u8>,
    ) {
        let mut export = info::EXPORT.to_be_bytes().to_vec();
        export.extend(device.size_bytes().to_be_bytes());
        export.extend(transmission_flags(device, self.is_structured).to_be_bytes());
        put_reply(out, kind, option_reply::INFO, &export);
        if wanted.name {
            put_reply(
                out,
                kind,
                option_reply::INFO,
                &[&info::NAME.to_be_bytes(), name.as_bytes()].concat(),
            );
        }
        if wanted.description {
            let text = device.description();
            let text = &text.as_bytes()[..text.floor_char_boundary(STRING_BYTES_MAX)];
            put_reply(
                out,
                kind,
                option_reply::INFO,
                &[&info::DESCRIPTION.to_be_bytes(), text].concat(),
            );
        }
        // Sent unasked as well: a client that knows it is better off, one that does not must ignore it.
        let sizes = block_sizes(device);
        let mut block_size = info::BLOCK_SIZE.to_be_bytes().to_vec();
        block_size.extend(sizes.minimum.to_be_bytes());
        block_size.extend(sizes.preferred.to_be_bytes());
        block_size.extend(sizes.maximum.to_be_bytes());
        put_reply(out, kind, option_reply::INFO, &block_size);
    }

    fn structured_reply(&mut self, data: &[u8], out: &mut Vec<u8>) {
        if !data.is_empty() {
            return put_reply(
                out,
                option::STRUCTURED_REPLY,
                option_reply::ERR_INVALID,
                b"no data expected",
            );
        }
        self.is_structured = true;
        put_reply(out, option::STRUCTURED_REPLY, option_reply::ACK, &[]);
    }

    fn meta_context<X: Exports>(&mut self, kind: u32, data: &[u8], exports: &X, out: &mut Vec<u8>) {
        let is_set = kind == option::SET_META_CONTEXT;
        if is_set {
            self.contexts = Contexts::default();
        }
        if !self.is_structured {
            return put_reply(
                out,
                kind,
                option_reply::ERR_INVALID,
                b"structured replies come first",
            );
        }
        let Some((name, contexts)) = parse_meta_context(data, is_set) else {
            return put_reply(
                out,
                kind,
                option_reply::ERR_INVALID,
                b"malformed meta context query",
            );
        };
        if exports.find(name).is_none() {
            return put_reply(
                out,
                kind,
                option_reply::ERR_UNKNOWN,
                b"no export of that name",
            );
        }
        for (id, context) in contexts.chosen() {
            let id = if is_set { id } else { 0 };
            put_reply(
                out,
                kind,
                option_reply::META_CONTEXT,
                &[&id.to_be_bytes(), context.as_bytes()].concat(),
            );
        }
        if is_set {
            self.contexts = contexts;
            self.contexts_of = name.to_owned();
        }
        put_reply(out, kind, option_reply::ACK, &[]);
    }
}

#[derive(Clone, Copy, Default)]
struct Wanted {
    name: bool,
    description: bool,
}

fn parse_go(data: &[u8]) -> Option<(&str, Wanted)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u16()?;
    let mut wanted = Wanted::default();
    for _ in 0..count {
        match fields.u16()? {
            info::NAME => wanted.name = true,
            info::DESCRIPTION => wanted.description = true,
            _ => {}
        }
    }
    fields.0.is_empty().then_some((name, wanted))
}

fn parse_meta_context(data: &[u8], is_set: bool) -> Option<(&str, Contexts)> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let count = fields.u32()?;
    let mut contexts = Contexts::default();
    if count == 0 && !is_set {
        contexts = Contexts {
            allocation: true,
            state: true,
        };
    }
    // Each query takes at least four bytes, so the data bounds the loop whatever the count claims.
    for _ in 0..count {
        let query = fields.string()?;
        if is_set {
            contexts.select(query)
        } else {
            contexts.select_listed(query)
        }
    }
    fields.0.is_empty().then_some((name, contexts))
}

fn list<X: Exports>(data: &[u8], exports: &X, out: &mut Vec<u8>) {
    if !data.is_empty() {
        return put_reply(
            out,
            option::LIST,
            option_reply::ERR_INVALID,
            b"no data expected",
        );
    }
    for name in exports.names() {
        let name = name.as_bytes();
        put_reply(
            out,
            option::LIST,
            option_reply::SERVER,
            &[&(name.len() as u32).to_be_bytes(), name].concat(),
        );
    }
    put_reply(out, option::LIST, option_reply::ACK, &[]);
}

fn put_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend(proto::OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(option.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}

fn block_sizes(device: &impl BlockDevice) -> BlockSizes {
    let sizes = device.block_sizes();
    let minimum = sizes.minimum.clamp(1, 64 << 10);
    let maximum = sizes.maximum.clamp(minimum, PAYLOAD_BYTES_MAX);
    let preferred = sizes
        .preferred
        .max(512)
        .clamp(minimum, maximum.max(minimum));
    BlockSizes {
        minimum,
        preferred,
        maximum,
    }
}

fn transmission_flags(device: &impl BlockDevice, is_structured: bool) -> u16 {
    use transmission::*;
    let mut flags = HAS_FLAGS | SEND_FLUSH | CAN_MULTI_CONN | SEND_CACHE;
    if is_structured {
        flags |= SEND_DF;
    }
    if device.is_read_only() {
        flags | READ_ONLY
    } else {
        flags | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO
    }
}
