//! One operation: what it needs kept alive, what to ask the kernel next, and what the answer means.
//!
//! An [`Operation`] stays on its thread and owns the file and the memory. A [`Request`] is the next step of it in
//! raw numbers, good for a submission entry or for a helper thread. Partial transfers, `EINTR` and `EAGAIN` are
//! handled here, once for all engines: [`Operation::advance`] says whether another request must follow.

use crate::sys;
use brigade_env::{Buffer, Segment};
use io_uring::{opcode, squeue, types};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

/// Most pieces one `sendmsg` takes (`UIO_MAXIOV`).
const PIECES_MAX: usize = 1024;
/// Most bytes asked for at once; the kernel's own limit is just below 2 GiB.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Fill the buffer from `offset`; ends early at the end of the file.
    Read { offset: u64 },
    /// Write the buffer at `offset`.
    Write { offset: u64, is_durable: bool },
    /// `fdatasync`.
    Sync,
    /// `fallocate`.
    Fallocate { mode: i32, offset: u64, length: u64 },
    /// `BLKDISCARD`, on a helper thread.
    Discard { offset: u64, length: u64 },
    /// Receive something, or with `is_exact` until the buffer is full or the stream ends.
    Receive { is_exact: bool },
    /// Send the message.
    Send,
    /// Accept a connection; the result is a descriptor.
    Accept,
}

impl Kind {
    /// It may wait for a peer for ever, and is cancelled when nobody wants the result any more.
    pub(crate) fn is_socket(self) -> bool {
        matches!(self, Kind::Receive { .. } | Kind::Send | Kind::Accept)
    }
}

/// Memory an operation works on.
pub(crate) enum Payload {
    /// None.
    Nothing,
    /// Read, write, receive.
    Buffer(Buffer),
    /// Send.
    Message(Box<Message>),
}

/// How an operation ended: bytes (or a descriptor), or an errno.
pub(crate) type Outcome = Result<usize, i32>;

/// See the module.
pub(crate) struct Operation {
    pub(crate) kind: Kind,
    pub(crate) payload: Payload,
    fd: Rc<OwnedFd>,
    done: usize,
}

impl Operation {
    pub(crate) fn new(kind: Kind, fd: Rc<OwnedFd>, payload: Payload) -> Self {
        Operation {
            kind,
            payload,
            fd,
            done: 0,
        }
    }

    /// The next request. What it points to is owned by this operation and does not move with it.
    pub(crate) fn request(&mut self) -> Request {
        let fd = self.fd.as_raw_fd();
        let done = self.done as u64;
        match self.kind {
            Kind::Read { offset } => {
                let (pointer, length) = self.rest();
                Request::Read {
                    fd,
                    pointer,
                    length,
                    offset: offset.saturating_add(done),
                }
            }
            Kind::Write { offset, is_durable } => {
                let (pointer, length) = self.rest();
                Request::Write {
                    fd,
                    pointer,
                    length,
                    offset: offset.saturating_add(done),
                    is_durable,
                }
            }
            Kind::Receive { is_exact } => {
                let (pointer, length) = self.rest();
                Request::Receive {
                    fd,
                    pointer,
                    length,
                    is_exact,
                }
            }
            Kind::Send => Request::Send {
                fd,
                header: self.header(),
            },
            Kind::Sync => Request::Sync { fd },
            Kind::Fallocate {
                mode,
                offset,
                length,
            } => Request::Fallocate {
                fd,
                mode,
                offset,
                length,
            },
            Kind::Discard { offset, length } => Request::Discard { fd, offset, length },
            Kind::Accept => Request::Accept { fd },
        }
    }

    fn rest(&mut self) -> (*mut u8, u32) {
        let Payload::Buffer(buffer) = &mut self.payload else {
            return (std::ptr::null_mut(), 0);
        };
        let rest = &mut buffer[self.done..];
        (rest.as_mut_ptr(), rest.len().min(TRANSFER_BYTES_MAX) as u32)
    }

    fn header(&mut self) -> *const libc::msghdr {
        match &mut self.payload {
            Payload::Message(message) => message.header(),
            _ => std::ptr::null(),
        }
    }

    /// Bytes it is about.
    pub(crate) fn length(&self) -> usize {
        match &self.payload {
            Payload::Buffer(buffer) => buffer.len(),
            Payload::Message(message) => message.length,
            Payload::Nothing => 0,
        }
    }

    /// Takes the kernel's answer; `None` means another request must follow.
    pub(crate) fn advance(&mut self, result: i32) -> Option<Outcome> {
        if result < 0 {
            let errno = -result;
            let is_again = matches!(errno, libc::EINTR | libc::EAGAIN)
                || (self.kind == Kind::Accept && errno == libc::ECONNABORTED);
            return if is_again { None } else { Some(Err(errno)) };
        }
        let count = result as usize;
        match self.kind {
            Kind::Sync | Kind::Fallocate { .. } | Kind::Discard { .. } | Kind::Accept => {
                return Some(Ok(count));
            }
            Kind::Receive { is_exact: false } => return Some(Ok(count)),
            Kind::Send => {
                if let Payload::Message(message) = &mut self.payload {
                    message.consume(count);
                }
            }
            Kind::Read { .. } | Kind::Write { .. } | Kind::Receive { is_exact: true } => {}
        }
        self.done = self.done.saturating_add(count).min(self.length());
        let is_over = count == 0 || self.done == self.length();
        is_over.then_some(Ok(self.done))
    }
}

/// Pieces to send, as the kernel wants them.
pub(crate) struct Message {
    segments: Vec<Segment>,
    pieces: Vec<libc::iovec>,
    next: usize,
    length: usize,
    header: libc::msghdr,
}

impl Message {
    pub(crate) fn new(segments: Vec<Segment>) -> Box<Message> {
        // SAFETY: an all-zero msghdr is a valid value: null pointers with zero lengths.
        let header = unsafe { std::mem::zeroed() };
        let mut message = Box::new(Message {
            segments,
            pieces: Vec::new(),
            next: 0,
            length: 0,
            header,
        });
        message.pieces.reserve_exact(message.segments.len());
        for segment in &message.segments {
            let bytes = segment.as_slice();
            if !bytes.is_empty() {
                message.length += bytes.len();
                let base = bytes.as_ptr().cast_mut().cast();
                message.pieces.push(libc::iovec {
                    iov_base: base,
                    iov_len: bytes.len(),
                });
            }
        }
        message
    }

    /// Bytes in all pieces.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    fn header(&mut self) -> *const libc::msghdr {
        let rest = &mut self.pieces[self.next..];
        self.header.msg_iovlen = rest.len().min(PIECES_MAX) as _;
        self.header.msg_iov = rest.as_mut_ptr();
        &raw const self.header
    }

    fn consume(&mut self, mut count: usize) {
        while let Some(piece) = self.pieces.get_mut(self.next) {
            if count < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(count);
                piece.iov_len -= count;
                return;
            }
            count -= piece.iov_len;
            self.next += 1;
        }
    }
}

/// A step of an operation in raw numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Request {
    Read {
        fd: RawFd,
        pointer: *mut u8,
        length: u32,
        offset: u64,
    },
    Write {
        fd: RawFd,
        pointer: *mut u8,
        length: u32,
        offset: u64,
        is_durable: bool,
    },
    Sync {
        fd: RawFd,
    },
    Fallocate {
        fd: RawFd,
        mode: i32,
        offset: u64,
        length: u64,
    },
    Discard {
        fd: RawFd,
        offset: u64,
        length: u64,
    },
    Receive {
        fd: RawFd,
        pointer: *mut u8,
        length: u32,
        is_exact: bool,
    },
    Send {
        fd: RawFd,
        header: *const libc::msghdr,
    },
    Accept {
        fd: RawFd,
    },
}

// SAFETY: the pointers lead to memory owned by a slot that neither frees nor touches it until the completion is
// back on the slot's thread (URING-1), so for that time the thread that has the request has the memory.
unsafe impl Send for Request {}

impl Request {
    /// The descriptor and event a socket request waits for.
    pub(crate) fn socket_event(&self) -> Option<(RawFd, libc::c_short)> {
        match *self {
            Request::Receive { fd, .. } | Request::Accept { fd } => Some((fd, libc::POLLIN)),
            Request::Send { fd, .. } => Some((fd, libc::POLLOUT)),
            _ => None,
        }
    }

    /// As a submission entry; `None` for what a ring cannot do.
    pub(crate) fn entry(&self) -> Option<squeue::Entry> {
        Some(match *self {
            Request::Read {
                fd,
                pointer,
                length,
                offset,
            } => opcode::Read::new(types::Fd(fd), pointer, length)
                .offset(offset)
                .build(),
            Request::Write {
                fd,
                pointer,
                length,
                offset,
                is_durable,
            } => {
                let flags = if is_durable { libc::RWF_DSYNC } else { 0 };
                opcode::Write::new(types::Fd(fd), pointer, length)
                    .offset(offset)
                    .rw_flags(flags)
                    .build()
            }
            Request::Sync { fd } => opcode::Fsync::new(types::Fd(fd))
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            Request::Fallocate {
                fd,
                mode,
                offset,
                length,
            } => opcode::Fallocate::new(types::Fd(fd), length)
                .offset(offset)
                .mode(mode)
                .build(),
            Request::Receive {
                fd,
                pointer,
                length,
                is_exact,
            } => {
                let flags = if is_exact { libc::MSG_WAITALL } else { 0 };
                opcode::Recv::new(types::Fd(fd), pointer, length)
                    .flags(flags)
                    .build()
            }
            Request::Send { fd, header } => {
                let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
                opcode::SendMsg::new(types::Fd(fd), header)
                    .flags(flags)
                    .build()
            }
            Request::Accept { fd } => {
                let nobody = std::ptr::null_mut();
                opcode::Accept::new(types::Fd(fd), nobody, std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build()
            }
            Request::Discard { .. } => return None,
        })
    }

    /// Does it here and now: the result, or a negative errno. Sockets must be non-blocking.
    ///
    /// # Safety
    /// The operation this request was made from must stay in its slot until the call returns.
    pub(crate) unsafe fn run(&self) -> i32 {
        // SAFETY: by the function's contract the memory behind the pointers is alive, of the given lengths, and used
        // by nobody else; the descriptors are open because the operation owns them.
        let result = unsafe {
            match *self {
                Request::Read {
                    fd,
                    pointer,
                    length,
                    offset,
                } => libc::pread(fd, pointer.cast(), length as usize, offset as libc::off_t),
                Request::Write {
                    fd,
                    pointer,
                    length,
                    offset,
                    is_durable,
                } => {
                    let piece = libc::iovec {
                        iov_base: pointer.cast(),
                        iov_len: length as usize,
                    };
                    let flags = if is_durable { libc::RWF_DSYNC } else { 0 };
                    libc::pwritev2(fd, &raw const piece, 1, offset as libc::off_t, flags)
                }
                Request::Sync { fd } => libc::fdatasync(fd) as isize,
                Request::Fallocate {
                    fd,
                    mode,
                    offset,
                    length,
                } => {
                    libc::fallocate(fd, mode, offset as libc::off_t, length as libc::off_t) as isize
                }
                Request::Discard { fd, offset, length } => {
                    let range = [offset, length];
                    libc::ioctl(fd, sys::BLKDISCARD, &raw const range) as isize
                }
                Request::Receive {
                    fd,
                    pointer,
                    length,
                    ..
                } => libc::recv(fd, pointer.cast(), length as usize, 0),
                Request::Send { fd, header } => {
                    libc::sendmsg(fd, header, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
                }
                Request::Accept { fd } => {
                    let nobody = std::ptr::null_mut();
                    libc::accept4(
                        fd,
                        nobody,
                        std::ptr::null_mut(),
                        libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                    ) as isize
                }
            }
        };
        if result < 0 {
            sys::negative_errno()
        } else {
            result as i32
        }
    }
}
