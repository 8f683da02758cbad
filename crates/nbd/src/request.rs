//! Twenty-eight bytes become a checked action, or an error for the client.
//!
//! Everything the wire can say wrong is refused here, so that what reaches the device is in range, aligned, and
//! allowed. A refused write still has its payload to be read past.

use crate::handshake::Contexts;
use crate::proto::{self, Errno, command, command_flag};

/// Bytes of a request header.
pub const REQUEST_BYTES: usize = 28;

/// A request as it is on the wire, unchecked but for its magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// See [`command_flag`].
    pub flags: u16,
    /// See [`command`].
    pub kind: u16,
    /// The client's name for the request, given back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

impl Request {
    /// Takes the fields out of a header; `None` if the magic is wrong.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Request> {
        let mut fields = proto::Fields(bytes);
        if fields.u32()? != proto::REQUEST_MAGIC {
            return None;
        }
        Some(Request {
            flags: fields.u16()?,
            kind: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u32()?,
        })
    }

    /// Bytes that follow the header.
    pub fn payload_bytes(&self) -> u32 {
        if self.kind == command::WRITE {
            self.length
        } else {
            0
        }
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// What a connection negotiated and its export allows.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Capacity.
    pub size_bytes: u64,
    /// Offsets and lengths are multiples of this; at least 1.
    pub block_bytes: u32,
    /// Longest read or write.
    pub payload_bytes_max: u32,
    /// No changes.
    pub is_read_only: bool,
    /// Structured replies were negotiated.
    pub is_structured: bool,
    /// Contexts selected for block status.
    pub contexts: Contexts,
}

/// A request that may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Action {
    Read,
    Write {
        fua: bool,
    },
    Flush,
    Trim {
        fua: bool,
    },
    Cache,
    WriteZeroes {
        may_unmap: bool,
        only_if_fast: bool,
        fua: bool,
    },
    BlockStatus {
        only_one: bool,
    },
    Disconnect,
}

/// Why a request is refused.
pub type Refusal = (Errno, &'static str);

/// What to do about a request.
pub fn check(request: &Request, rules: &Rules) -> Result<Action, Refusal> {
    let action = action_of(request, rules)?;
    let changes = matches!(
        action,
        Action::Write { .. } | Action::Trim { .. } | Action::WriteZeroes { .. }
    );
    if changes && rules.is_read_only {
        return Err((Errno::Perm, "the export is read-only"));
    }
    if matches!(action, Action::Flush | Action::Disconnect) {
        return Ok(action);
    }
    check_range(request, rules, &action)?;
    Ok(action)
}

fn action_of(request: &Request, rules: &Rules) -> Result<Action, Refusal> {
    let fua = request.has(command_flag::FUA);
    let (action, flags) = match request.kind {
        command::READ => (
            Action::Read,
            if rules.is_structured {
                command_flag::DF
            } else {
                0
            },
        ),
        command::WRITE => (Action::Write { fua }, 0),
        command::DISCONNECT => return Ok(Action::Disconnect),
        command::FLUSH => (Action::Flush, 0),
        command::TRIM => (Action::Trim { fua }, 0),
        command::CACHE => (Action::Cache, 0),
        command::WRITE_ZEROES => {
            let may_unmap = !request.has(command_flag::NO_HOLE);
            let only_if_fast = request.has(command_flag::FAST_ZERO);
            let action = Action::WriteZeroes {
                may_unmap,
                only_if_fast,
                fua,
            };
            (action, command_flag::NO_HOLE | command_flag::FAST_ZERO)
        }
        command::BLOCK_STATUS => {
            if rules.contexts.is_empty() {
                return Err((
                    Errno::Invalid,
                    "block status without a negotiated meta context",
                ));
            }
            let only_one = request.has(command_flag::REQ_ONE);
            (Action::BlockStatus { only_one }, command_flag::REQ_ONE)
        }
        _ => return Err((Errno::Invalid, "unknown command")),
    };
    // Clients are known to set FUA on anything.
    if request.flags & !(flags | command_flag::FUA) != 0 {
        return Err((Errno::Invalid, "flag not valid for this command"));
    }
    Ok(action)
}

fn check_range(request: &Request, rules: &Rules, action: &Action) -> Result<(), Refusal> {
    let length = u64::from(request.length);
    let end = request.offset.checked_add(length);
    if end.is_none_or(|end| end > rules.size_bytes) {
        return Err(match action {
            Action::Write { .. } | Action::WriteZeroes { .. } => {
                (Errno::NoSpace, "beyond the end of the export")
            }
            _ => (Errno::Invalid, "beyond the end of the export"),
        });
    }
    let block = u64::from(rules.block_bytes.max(1));
    if !request.offset.is_multiple_of(block) || !length.is_multiple_of(block) {
        return Err((Errno::Invalid, "not a multiple of the minimum block size"));
    }
    if matches!(action, Action::Read | Action::Write { .. })
        && request.length > rules.payload_bytes_max
    {
        return Err((Errno::Invalid, "longer than the maximum block size"));
    }
    if matches!(action, Action::BlockStatus { .. }) && length == 0 {
        return Err((Errno::Invalid, "block status of nothing"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            size_bytes: 1 << 20,
            block_bytes: 512,
            payload_bytes_max: 64 << 10,
            is_read_only: false,
            is_structured: false,
            contexts: Contexts::default(),
        }
    }

    fn request(kind: u16, flags: u16, offset: u64, length: u32) -> Request {
        Request {
            flags,
            kind,
            cookie: 7,
            offset,
            length,
        }
    }

    fn errno(request: Request, rules: &Rules) -> Option<Errno> {
        check(&request, rules).err().map(|(errno, _)| errno)
    }

    #[test]
    fn a_header_survives_encoding_and_parsing() {
        let header = proto::request_header(1, 6, u64::MAX - 1, 1 << 40, 4096);
        let bytes: [u8; REQUEST_BYTES] = header.as_slice().try_into().expect("28 bytes");
        let parsed = Request::parse(&bytes).expect("magic");
        assert_eq!(
            parsed,
            Request {
                flags: 1,
                kind: 6,
                cookie: u64::MAX - 1,
                offset: 1 << 40,
                length: 4096
            }
        );
        let mut wrong = bytes;
        wrong[3] ^= 1;
        assert_eq!(Request::parse(&wrong), None);
    }

    #[test]
    fn a_range_past_the_end_is_no_space_for_writes_and_invalid_for_the_rest() {
        for (offset, length) in [
            (1u64 << 20, 512),
            ((1 << 20) - 512, 1024),
            (u64::MAX - 511, 512),
        ] {
            assert_eq!(
                errno(request(command::WRITE, 0, offset, length), &rules()),
                Some(Errno::NoSpace)
            );
            assert_eq!(
                errno(request(command::WRITE_ZEROES, 0, offset, length), &rules()),
                Some(Errno::NoSpace)
            );
            assert_eq!(
                errno(request(command::READ, 0, offset, length), &rules()),
                Some(Errno::Invalid)
            );
            assert_eq!(
                errno(request(command::TRIM, 0, offset, length), &rules()),
                Some(Errno::Invalid)
            );
        }
        assert_eq!(
            errno(request(command::READ, 0, (1 << 20) - 512, 512), &rules()),
            None
        );
    }

    #[test]
    fn misaligned_and_overlong_requests_are_invalid() {
        assert_eq!(
            errno(request(command::READ, 0, 1, 512), &rules()),
            Some(Errno::Invalid)
        );
        assert_eq!(
            errno(request(command::READ, 0, 0, 511), &rules()),
            Some(Errno::Invalid)
        );
        assert_eq!(
            errno(request(command::READ, 0, 0, (64 << 10) + 512), &rules()),
            Some(Errno::Invalid)
        );
        assert_eq!(
            errno(request(command::TRIM, 0, 0, 1 << 20), &rules()),
            None,
            "no payload, no maximum"
        );
    }

    #[test]
    fn a_read_only_export_permits_no_change() {
        let rules = Rules {
            is_read_only: true,
            ..rules()
        };
        for kind in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            assert_eq!(errno(request(kind, 0, 0, 512), &rules), Some(Errno::Perm));
        }
        assert_eq!(errno(request(command::READ, 0, 0, 512), &rules), None);
        assert_eq!(errno(request(command::FLUSH, 0, 0, 0), &rules), None);
    }

    #[test]
    fn flags_are_refused_where_they_mean_nothing() {
        assert_eq!(
            errno(request(command::READ, command_flag::DF, 0, 512), &rules()),
            Some(Errno::Invalid)
        );
        let structured = Rules {
            is_structured: true,
            ..rules()
        };
        assert_eq!(
            errno(
                request(command::READ, command_flag::DF, 0, 512),
                &structured
            ),
            None
        );
        assert_eq!(
            errno(request(command::READ, command_flag::FUA, 0, 512), &rules()),
            None
        );
        assert_eq!(
            errno(
                request(command::WRITE, command_flag::NO_HOLE, 0, 512),
                &rules()
            ),
            Some(Errno::Invalid)
        );
        assert_eq!(
            errno(request(command::WRITE, 1 << 5, 0, 512), &rules()),
            Some(Errno::Invalid)
        );
        assert_eq!(
            errno(request(99, 0, 0, 512), &rules()),
            Some(Errno::Invalid)
        );
        assert_eq!(
            errno(request(command::BLOCK_STATUS, 0, 0, 512), &rules()),
            Some(Errno::Invalid)
        );
    }
}
