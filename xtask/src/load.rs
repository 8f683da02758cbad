//! A closed loop of NBD requests: as many in flight as asked for, each answer followed by the next request, and every one's
//! times told to the caller.
//!
//! Like the client of `cargo x bench nbd` it sends and takes whatever is due in one call, so that it costs little beside the
//! server. An error in an answer is the caller's to judge.

use crate::nbd::{Client, REPLY_MAGIC, REQUEST_MAGIC};
use crate::process::{Context, Result};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

const REPLY_BYTES: usize = 16;
const INBOX_BYTES: usize = 1 << 20;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Data comes back.
    Read = 0,
    /// Data goes there.
    Write = 1,
    /// The data is of no use any more.
    Trim = 4,
}

/// A request, of at most 64 KiB.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What.
    pub kind: Kind,
    /// Where.
    pub offset: u64,
    /// How much.
    pub bytes: u32,
}

/// An answer.
pub struct Done<'a> {
    /// What was asked.
    pub request: Request,
    /// When it was sent.
    pub sent: Instant,
    /// When its answer was seen.
    pub at: Instant,
    /// 0, or an errno.
    pub error: u32,
    /// What was read.
    pub data: &'a [u8],
}

struct Loop {
    socket: UnixStream,
    /// By cookie.
    slots: Vec<Option<(Request, Instant)>>,
    outbox: Vec<u8>,
    inbox: Vec<u8>,
    received: usize,
    data: Vec<u8>,
}

/// Keeps `depth` requests in flight until there is no next one, and waits for all answers. What is written is not zeros.
pub fn run(
    client: Client,
    depth: usize,
    mut next: impl FnMut() -> Option<Request>,
    mut done: impl FnMut(Done<'_>) -> Result<()>,
) -> Result<()> {
    let mut data = vec![0; 64 << 10];
    crate::pattern::fill(&mut data, 0, 7);
    let mut own = Loop {
        socket: client.into_stream()?,
        slots: vec![None; depth],
        outbox: Vec::new(),
        inbox: vec![0; INBOX_BYTES],
        received: 0,
        data,
    };
    let mut is_over = false;
    loop {
        let now = Instant::now();
        for slot in 0..depth {
            if is_over || own.slots[slot].is_some() {
                continue;
            }
            match next() {
                Some(request) => own.ask(slot, request, now),
                None => is_over = true,
            }
        }
        if own.slots.iter().all(Option::is_none) {
            return Ok(());
        }
        own.exchange(&mut done)?;
    }
}

impl Loop {
    fn ask(&mut self, slot: usize, request: Request, now: Instant) {
        let mut header = [0u8; 28];
        header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        header[7] = request.kind as u8;
        header[8..16].copy_from_slice(&(slot as u64).to_be_bytes());
        header[16..24].copy_from_slice(&request.offset.to_be_bytes());
        header[24..].copy_from_slice(&request.bytes.to_be_bytes());
        self.outbox.extend_from_slice(&header);
        if request.kind == Kind::Write {
            self.outbox
                .extend_from_slice(&self.data[..request.bytes as usize]);
        }
        self.slots[slot] = Some((request, now));
    }

    fn exchange(&mut self, done: &mut impl FnMut(Done<'_>) -> Result<()>) -> Result<()> {
        let sent = self.socket.write_all(&self.outbox);
        sent.context("NBD connection")?;
        self.outbox.clear();
        let space = &mut self.inbox[self.received..];
        let count = self.socket.read(space).context("NBD connection")?;
        if count == 0 {
            return Err("the server closed the connection".into());
        }
        self.received += count;
        let (mut at, now) = (0, Instant::now());
        while let Some((slot, error, length)) = self.reply(at)? {
            let (request, sent) = self.slots[slot].take().ok_or("an answer to no request")?;
            let body = at + REPLY_BYTES;
            done(Done {
                request,
                sent,
                at: now,
                error,
                data: &self.inbox[body..body + length],
            })?;
            at = body + length;
        }
        self.inbox.copy_within(at..self.received, 0);
        self.received -= at;
        Ok(())
    }

    /// The slot, error and length of the whole answer that begins here, if there is one.
    fn reply(&self, at: usize) -> Result<Option<(usize, u32, usize)>> {
        let Some(header) = self.inbox[..self.received].get(at..at + REPLY_BYTES) else {
            return Ok(None);
        };
        let word = |i: usize| u32::from_be_bytes([0, 1, 2, 3].map(|byte| header[i * 4 + byte]));
        if word(0) != REPLY_MAGIC {
            return Err(format!("an answer with magic {:#x}", word(0)));
        }
        let slot = (u64::from(word(2)) << 32 | u64::from(word(3))) as usize;
        let asked = self.slots.get(slot).copied().flatten();
        let (request, _) = asked.ok_or(format!("an answer to no request: {slot}"))?;
        let error = word(1);
        let length = match (request.kind, error) {
            (Kind::Read, 0) => request.bytes as usize,
            _ => 0,
        };
        Ok((at + REPLY_BYTES + length <= self.received).then_some((slot, error, length)))
    }
}

/// The value that this part of the values is at most, in a sorted list; 0 in an empty one.
pub fn quantile(sorted: &[u32], part: f64) -> u32 {
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_at_its_rank() {
        let values: Vec<u32> = (1..=1000).collect();
        assert_eq!(quantile(&values, 0.5), 500);
        assert_eq!(quantile(&values, 0.999), 999);
        assert_eq!(quantile(&values, 1.0), 1000);
        assert_eq!(quantile(&[], 0.5), 0);
    }
}
