//! The client's side of the handshake: from the greeting to an open export, or to a list of them.

use super::reply::{gone, nonsense};
use crate::inbox::Inbox;
use crate::proto::{self, Fields, info, option, option_reply};
use brigade_env::{BlockSizes, BufferPool, Segment, Stream};
use std::io;
use std::rc::Rc;

/// Most reply data of an option that is believed.
pub(super) const OPTION_REPLY_BYTES_MAX: u32 = 64 << 10;

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
