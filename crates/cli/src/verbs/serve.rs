//! `brigade serve`: open, say `ready`, serve until a signal or `brigade stop`, end in order.
//!
//! Whatever keeps it from serving is one line on standard error and exit status 1, with no `ready` before it.

use crate::client::socket_directories;
use crate::failure::{Failure, Outcome, one_line};
use crate::flags::{Ack, Engine, Mode, ServeFlags};
use brigade::control::Socket;
use brigade::{AckPolicy, Builder, CacheMode, Handle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Serves until told to stop.
pub fn serve(flags: &ServeFlags) -> Outcome {
    let serving = heed_signals()?;
    let (socket, control_path) = bind_control(flags.control.as_deref())?;
    let handle = builder(flags).open().map_err(Failure::cannot)?;
    let control = socket.answer(handle.clone()).map_err(Failure::cannot)?;
    for warning in handle.warnings() {
        eprintln!("brigade: warning: {}", one_line(warning));
    }
    crate::log::start();
    let _ = serving.set(handle.clone());
    say_ready(&handle, &control_path);
    tell_systemd("READY=1");
    let outcome = handle.wait();
    drop(control);
    outcome.map_err(Failure::cannot)
}

fn builder(flags: &ServeFlags) -> Builder {
    let mut builder = Builder::new()
        .read_only(flags.read_only)
        .engine(flags.engine.into())
        .expensive_checks(flags.expensive_checks)
        .ack(match flags.ack {
            Ack::Memory => AckPolicy::Memory,
            Ack::Journal => AckPolicy::Journal,
        });
    builder = flags.cache.iter().fold(builder, Builder::cache);
    builder = flags.backing.iter().fold(builder, Builder::backing);
    builder = flags.nbd.iter().fold(builder, Builder::nbd);
    if let Some(mode) = flags.mode {
        builder = builder.mode(mode.into());
    }
    if let Some(bytes) = flags.memory {
        builder = builder.memory_bytes(bytes);
    }
    if let Some(directory) = &flags.state_dir {
        builder = builder.state_dir(directory);
    }
    builder
}

fn bind_control(asked: Option<&Path>) -> Outcome<(Socket, PathBuf)> {
    if let Some(path) = asked {
        return Ok((
            Socket::bind(path).map_err(Failure::cannot)?,
            path.to_owned(),
        ));
    }
    let name = format!("{}.sock", std::process::id());
    let mut why = None;
    for directory in socket_directories() {
        let path = directory.join(&name);
        match Socket::bind(&path) {
            Ok(socket) => return Ok((socket, path)),
            Err(error) => why = Some(error),
        }
    }
    let why = why.map(|e| e.to_string()).unwrap_or_default();
    Err(Failure::cannot(format!(
        "{why}; choose another place with --control PATH"
    )))
}

/// The first signal stops in order, the second ends the process; before anything is served the first one does. Ending
/// at once is no worse than `kill -9`, which the format and the acknowledgement record are made for.
pub(super) fn heed_signals() -> Outcome<Arc<OnceLock<Handle>>> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT]).map_err(|e| Failure::cannot(format!("signals: {e}")))?;
    let serving = Arc::new(OnceLock::<Handle>::new());
    let served = serving.clone();
    let heed = move || {
        let mut has_asked = false;
        for _ in signals.forever() {
            match served.get() {
                Some(handle) if !has_asked => {
                    has_asked = true;
                    tell_systemd("STOPPING=1");
                    handle.ask_to_stop();
                }
                _ => {
                    eprintln!("brigade: ended by a signal, not in order");
                    std::process::exit(1);
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("brigade-signals".into())
        .spawn(heed)
        .map_err(|e| Failure::cannot(format!("no thread for signals: {e}")))?;
    Ok(serving)
}

fn say_ready(handle: &Handle, control: &Path) {
    let mut line = String::from("ready");
    for address in handle.addresses() {
        line += &format!(" nbd={address}");
    }
    for volume in handle.volumes() {
        line += &format!(" volume={}:{}", volume.names.join(","), volume.size_bytes);
    }
    line += &format!(
        " control={} engine={}",
        control.display(),
        handle.engine_name()
    );
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", one_line(&line)).and_then(|()| out.flush());
}

/// One datagram, if systemd (or whoever started us) listens.
fn tell_systemd(state: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    if let (Ok(socket), Ok(address)) = (UnixDatagram::unbound(), address) {
        let _ = socket.send_to_addr(state.as_bytes(), &address);
    }
}

impl From<Mode> for CacheMode {
    fn from(mode: Mode) -> CacheMode {
        match mode {
            Mode::Writethrough => CacheMode::Writethrough,
            Mode::Writeback => CacheMode::Writeback,
            Mode::Writearound => CacheMode::Writearound,
            Mode::None => CacheMode::None,
        }
    }
}

impl From<Engine> for brigade::Engine {
    fn from(engine: Engine) -> brigade::Engine {
        match engine {
            Engine::Auto => brigade::Engine::Auto,
            Engine::Uring => brigade::Engine::Uring,
            Engine::Threads => brigade::Engine::Threads,
        }
    }
}
