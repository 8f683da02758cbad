//! Replies, and the requests that wait for them.

use crate::proto::{self, Fields, command};
use brigade_env::Buffer;
use brigade_env::sync::Keeper;
use std::io;

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

pub(super) fn gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "nbd server: connection closed",
    )
}

#[derive(Default)]
pub(super) struct Answer {
    pub(super) buffer: Option<Buffer>,
    pub(super) contexts: Vec<ContextExtents>,
}

pub(super) struct Pending {
    pub(super) kind: u16,
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) received: u32,
    pub(super) answer: Answer,
    pub(super) error: Option<io::Error>,
    pub(super) keeper: Keeper<io::Result<Answer>>,
}

impl Pending {
    pub(super) fn finish(self) {
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
pub(super) struct Slots {
    pub(super) slots: Vec<Option<Pending>>,
    free: Vec<usize>,
    turn: u32,
}

impl Slots {
    pub(super) fn insert(&mut self, pending: Pending) -> u64 {
        let nr = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[nr] = Some(pending);
        // The low half finds the slot; the high half only makes wire traces easier to read.
        self.turn = self.turn.wrapping_add(1);
        (u64::from(self.turn) << 32) | nr as u64
    }

    pub(super) fn get(&mut self, cookie: u64) -> io::Result<&mut Pending> {
        let slot = self.slots.get_mut((cookie & 0xffff_ffff) as usize);
        slot.and_then(Option::as_mut)
            .ok_or_else(|| nonsense("reply to no request"))
    }

    pub(super) fn remove(&mut self, cookie: u64) -> io::Result<Pending> {
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

pub(super) fn errno(error: u32) -> io::Error {
    io::Error::from_raw_os_error(i32::try_from(error).unwrap_or(5))
}

pub(super) fn error_of(fields: &mut Fields<'_>) -> io::Result<io::Error> {
    let (Some(number), Some(length)) = (fields.u32(), fields.u16()) else {
        return Err(nonsense("short error chunk"));
    };
    if number == 0 || fields.bytes(usize::from(length)).is_none() {
        return Err(nonsense("malformed error chunk"));
    }
    Ok(errno(number))
}

pub(super) fn extents_of(
    fields: &mut Fields<'_>,
    request_length: u32,
) -> io::Result<ContextExtents> {
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
