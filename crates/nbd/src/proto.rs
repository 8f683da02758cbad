//! Numbers of the NBD protocol, and the encoding of its headers. All integers are big-endian.

use brigade_env::Segment;
use std::io;

/// First word of the server's greeting, "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the greeting, and first of every option: "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag, both ways: option haggling with replies.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag, both ways: no 124 zero bytes after the answer to `EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Longest export name or meta context query.
pub const STRING_BYTES_MAX: usize = 4096;
/// Longest option data that is looked at.
pub const OPTION_BYTES_MAX: usize = 64 << 10;
/// Longest payload of a read or write.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// Context id of `base:allocation`.
pub const CONTEXT_ALLOCATION: u32 = 1;
/// Context id of `brigade:state`.
pub const CONTEXT_STATE: u32 = 2;
/// Name of the context with holes.
pub const CONTEXT_ALLOCATION_NAME: &str = "base:allocation";
/// Name of the context with the state in the cache: 0 not cached, 1 clean, 2 dirty.
pub const CONTEXT_STATE_NAME: &str = "brigade:state";
/// Flags of `base:allocation` for a hole that reads as zeros.
pub const STATE_HOLE_ZERO: u32 = 3;

/// Options of the handshake.
pub mod option {
    #![allow(missing_docs)]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Kinds of option replies.
pub mod option_reply {
    #![allow(missing_docs)]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERROR_BIT: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    pub const ERR_POLICY: u32 = ERROR_BIT | 2;
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
}

/// Kinds of information in `INFO` replies.
pub mod info {
    #![allow(missing_docs)]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags: what an export can do.
pub mod transmission {
    #![allow(missing_docs)]
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Kinds of requests.
pub mod command {
    #![allow(missing_docs)]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISCONNECT: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub mod command_flag {
    #![allow(missing_docs)]
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Kinds of structured reply chunks.
pub mod chunk {
    #![allow(missing_docs)]
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR_BIT: u16 = 1 << 15;
    pub const ERROR: u16 = ERROR_BIT | 1;
    pub const ERROR_OFFSET: u16 = ERROR_BIT | 2;
    /// Flag: the last chunk of a reply.
    pub const DONE: u16 = 1;
}

/// The error numbers the protocol knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// The export is read-only.
    Perm = 1,
    /// Input/output error.
    Io = 5,
    /// Out of memory.
    NoMem = 12,
    /// A request that makes no sense here.
    Invalid = 22,
    /// No space, or a write beyond the end.
    NoSpace = 28,
    /// Value too large.
    Overflow = 75,
    /// Not supported (or not fast).
    NotSupported = 95,
    /// The server is going away.
    Shutdown = 108,
}

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Errno {
        match error.raw_os_error() {
            Some(1 | 13 | 30) => return Errno::Perm, // EPERM, EACCES, EROFS
            Some(12) => return Errno::NoMem,
            Some(22) => return Errno::Invalid,
            Some(27 | 28 | 122) => return Errno::NoSpace, // EFBIG, ENOSPC, EDQUOT
            Some(75) => return Errno::Overflow,
            Some(95) => return Errno::NotSupported,
            Some(108) => return Errno::Shutdown,
            Some(_) => return Errno::Io,
            None => {}
        }
        match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Errno::Perm,
            io::ErrorKind::OutOfMemory => Errno::NoMem,
            io::ErrorKind::InvalidInput => Errno::Invalid,
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => Errno::NoSpace,
            io::ErrorKind::Unsupported => Errno::NotSupported,
            _ => Errno::Io,
        }
    }
}

/// A header built in place, without an allocation.
#[derive(Clone, Copy)]
pub struct Header {
    bytes: [u8; 32],
    length: u8,
}

impl Header {
    fn new() -> Self {
        Header {
            bytes: [0; 32],
            length: 0,
        }
    }

    fn with(mut self, field: &[u8]) -> Self {
        let at = usize::from(self.length);
        self.bytes[at..at + field.len()].copy_from_slice(field);
        self.length += field.len() as u8;
        self
    }

    /// What is sent.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// As a piece to send.
    pub fn segment(&self) -> Segment {
        Segment::Inline(self.bytes, self.length)
    }
}

/// The header of a request.
pub fn request_header(flags: u16, kind: u16, cookie: u64, offset: u64, length: u32) -> Header {
    Header::new()
        .with(&REQUEST_MAGIC.to_be_bytes())
        .with(&flags.to_be_bytes())
        .with(&kind.to_be_bytes())
        .with(&cookie.to_be_bytes())
        .with(&offset.to_be_bytes())
        .with(&length.to_be_bytes())
}

/// A simple reply; `error` 0 is success.
pub fn simple_reply(cookie: u64, error: u32) -> Header {
    Header::new()
        .with(&SIMPLE_REPLY_MAGIC.to_be_bytes())
        .with(&error.to_be_bytes())
        .with(&cookie.to_be_bytes())
}

/// The header of a chunk of a structured reply with `length` bytes to follow.
pub fn chunk_header(cookie: u64, flags: u16, kind: u16, length: u32) -> Header {
    Header::new()
        .with(&STRUCTURED_REPLY_MAGIC.to_be_bytes())
        .with(&flags.to_be_bytes())
        .with(&kind.to_be_bytes())
        .with(&cookie.to_be_bytes())
        .with(&length.to_be_bytes())
}

/// The header of the only chunk of a read: `length` bytes of data from `offset` follow.
///
/// `length` is bounded by [`PAYLOAD_BYTES_MAX`], so the offset's eight bytes never overflow the chunk's length.
pub fn data_chunk_header(cookie: u64, offset: u64, length: u32) -> Header {
    chunk_header(
        cookie,
        chunk::DONE,
        chunk::OFFSET_DATA,
        length.saturating_add(8),
    )
    .with(&offset.to_be_bytes())
}

/// The last chunk of a failed structured reply, with a message for people.
pub fn error_chunk(cookie: u64, errno: Errno, message: &str) -> (Header, Vec<u8>) {
    let message = &message.as_bytes()[..message.floor_char_boundary(200)];
    let header = chunk_header(cookie, chunk::DONE, chunk::ERROR, 6 + message.len() as u32)
        .with(&(errno as u32).to_be_bytes())
        .with(&(message.len() as u16).to_be_bytes());
    (header, message.to_vec())
}

/// Big-endian fields from the front of untrusted bytes.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `length` bytes.
    pub fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(front)
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*front))
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*front))
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*front))
    }

    /// A string preceded by its length, at most [`STRING_BYTES_MAX`], UTF-8.
    pub fn string(&mut self) -> Option<&'a str> {
        let length = self.u32()? as usize;
        if length > STRING_BYTES_MAX {
            return None;
        }
        std::str::from_utf8(self.bytes(length)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_become_the_numbers_the_protocol_knows() {
        let os = |number| Errno::from(&io::Error::from_raw_os_error(number));
        assert_eq!([os(1), os(13), os(30)], [Errno::Perm; 3]);
        assert_eq!([os(27), os(28), os(122)], [Errno::NoSpace; 3]);
        assert_eq!([os(5), os(6), os(110)], [Errno::Io; 3]);
        assert_eq!(
            [os(95), os(108), os(22)],
            [Errno::NotSupported, Errno::Shutdown, Errno::Invalid]
        );
        let kind = |kind: io::ErrorKind| Errno::from(&io::Error::from(kind));
        assert_eq!(kind(io::ErrorKind::InvalidInput), Errno::Invalid);
        assert_eq!(kind(io::ErrorKind::ReadOnlyFilesystem), Errno::Perm);
        assert_eq!(kind(io::ErrorKind::Unsupported), Errno::NotSupported);
        assert_eq!(kind(io::ErrorKind::UnexpectedEof), Errno::Io);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let (header, message) = error_chunk(1, Errno::Io, &"ä".repeat(150));
        assert_eq!(message.len(), 200);
        assert!(std::str::from_utf8(&message).is_ok());
        let (_, odd) = error_chunk(1, Errno::Io, &format!("x{}", "ä".repeat(150)));
        assert_eq!(odd.len(), 199);
        assert_eq!(header.as_slice()[16..20], 206u32.to_be_bytes());
    }
}
