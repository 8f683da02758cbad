//! Unix and TCP sockets.

use crate::operation::{Kind, Message, Outcome, Payload};
use crate::reactor::{Core, Op};
use crate::sys;
use brigade_env::{Buffer, Listener, Segment, Stream};
use std::future::Future;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// A unix socket's queue should take a batch of replies at once: a send that must wait for the peer in its middle costs
/// two more switches. (TCP sizes its queue by itself.)
const UNIX_SEND_BYTES: libc::c_int = 1 << 20;

fn result_of(outcome: Outcome) -> io::Result<usize> {
    outcome.map_err(io::Error::from_raw_os_error)
}

fn prepare(core: &Core, fd: OwnedFd) -> io::Result<Rc<OwnedFd>> {
    if core.wants_nonblocking_sockets() {
        sys::change_flags(&fd, libc::O_NONBLOCK, 0)?;
    }
    Ok(Rc::new(fd))
}

/// One connection. A future dropped before its end cancels the call; after a cancelled send the stream is cut
/// at an unknown place and good for [`Stream::shutdown`] only.
pub struct HostStream {
    core: Rc<Core>,
    fd: Rc<OwnedFd>,
    peer: String,
}

impl HostStream {
    fn tcp(core: Rc<Core>, stream: TcpStream) -> io::Result<HostStream> {
        stream.set_nodelay(true)?;
        let peer = stream
            .peer_addr()
            .map_or_else(|_| "tcp:?".into(), |address| format!("tcp:{address}"));
        Ok(HostStream {
            fd: prepare(&core, stream.into())?,
            core,
            peer,
        })
    }

    fn unix(core: Rc<Core>, stream: UnixStream) -> io::Result<HostStream> {
        let fd = prepare(&core, stream.into())?;
        sys::want_send_room(&fd, UNIX_SEND_BYTES);
        let peer =
            sys::peer_pid(&fd).map_or_else(|| "unix:?".into(), |pid| format!("unix:pid {pid}"));
        Ok(HostStream { core, fd, peer })
    }

    pub(crate) fn connect_unix(core: Rc<Core>, path: &Path) -> io::Result<HostStream> {
        HostStream::unix(core, UnixStream::connect(path)?)
    }

    pub(crate) fn connect_tcp(core: Rc<Core>, address: &str) -> io::Result<HostStream> {
        HostStream::tcp(core, TcpStream::connect(address)?)
    }

    fn start_receive(&self, buffer: Buffer, is_exact: bool) -> Op {
        self.core.submit(
            Kind::Receive { is_exact },
            &self.fd,
            Payload::Buffer(buffer),
        )
    }
}

async fn received(op: Op) -> (io::Result<usize>, Buffer) {
    match op.await {
        (outcome, Payload::Buffer(buffer)) => (result_of(outcome), buffer),
        _ => unreachable!("a receive has a buffer"),
    }
}

impl Stream for HostStream {
    fn receive(
        &self,
        buffer: Buffer,
    ) -> impl Future<Output = (io::Result<usize>, Buffer)> + 'static {
        received(self.start_receive(buffer, false))
    }

    fn receive_exact(
        &self,
        buffer: Buffer,
    ) -> impl Future<Output = (io::Result<()>, Buffer)> + 'static {
        let wanted = buffer.len();
        let started = if wanted > 0 {
            Ok(self.start_receive(buffer, true))
        } else {
            Err(buffer)
        };
        async move {
            let op = match started {
                Ok(op) => op,
                Err(buffer) => return (Ok(()), buffer),
            };
            let (result, buffer) = received(op).await;
            let result = match result {
                Ok(count) if count < wanted => Err(io::ErrorKind::UnexpectedEof.into()),
                other => other.map(drop),
            };
            (result, buffer)
        }
    }

    fn send(&self, segments: Vec<Segment>) -> impl Future<Output = io::Result<()>> + 'static {
        let message = Message::new(segments);
        let wanted = message.length();
        // Usually the queue takes all of it at once. What does not fit goes on in the engine.
        let op = (wanted > 0).then(|| {
            self.core
                .submit_in_place(Kind::Send, &self.fd, Payload::Message(message))
        });
        async move {
            let Some(op) = op else { return Ok(()) };
            let (outcome, _message) = op.await;
            if result_of(outcome)? < wanted {
                return Err(io::ErrorKind::WriteZero.into());
            }
            Ok(())
        }
    }

    fn shutdown(&self) {
        sys::shutdown(&self.fd);
    }

    fn peer(&self) -> String {
        self.peer.clone()
    }
}

/// A socket file, removed when its listener goes if it is still the same one.
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity_of(&self.path).ok() == Some(self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Removes a socket file nobody listens on.
fn remove_stale(path: &Path) -> io::Result<()> {
    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    if !is_socket {
        return Ok(());
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)
        }
        _ => Ok(()),
    }
}

/// Accepts connections.
pub struct HostListener {
    core: Rc<Core>,
    fd: Rc<OwnedFd>,
    address: String,
    file: Option<SocketFile>,
}

impl HostListener {
    pub(crate) fn unix(core: Rc<Core>, path: &Path) -> io::Result<HostListener> {
        remove_stale(path)?;
        let listener = UnixListener::bind(path)?;
        let file = SocketFile {
            path: path.to_owned(),
            identity: identity_of(path)?,
        };
        let address = format!("unix:{}", path.display());
        Ok(HostListener {
            fd: prepare(&core, listener.into())?,
            core,
            address,
            file: Some(file),
        })
    }

    pub(crate) fn tcp(core: Rc<Core>, address: &str) -> io::Result<HostListener> {
        let listener = TcpListener::bind(address)?;
        let address = format!("tcp:{}", listener.local_addr()?);
        Ok(HostListener {
            fd: prepare(&core, listener.into())?,
            core,
            address,
            file: None,
        })
    }
}

impl Listener for HostListener {
    type Stream = HostStream;

    fn accept(&self) -> impl Future<Output = io::Result<HostStream>> + 'static {
        let op = self.core.submit(Kind::Accept, &self.fd, Payload::Nothing);
        let core = self.core.clone();
        let is_unix = self.file.is_some();
        async move {
            let (outcome, _) = op.await;
            let fd = sys::own(result_of(outcome)? as i32);
            if is_unix {
                HostStream::unix(core, fd.into())
            } else {
                HostStream::tcp(core, fd.into())
            }
        }
    }

    fn address(&self) -> String {
        self.address.clone()
    }
}
