//! `brigade serve`: open, say `ready`, serve until a signal or `brigade stop`, end in order.
//!
//! Whatever keeps it from serving is one line on standard error and exit status 1, with no `ready` before it.

use crate::client::socket_directories;
use crate::failure::{Failure, Outcome, one_line};
use crate::flags::{Ack, Engine, Mode, ServeFlags, parse_nbd};
use crate::size::parse_size;
use brigade::control::Socket;
use brigade::{AckPolicy, Builder, CacheMode, Config, Handle, Serve};
use clap::ValueEnum;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Serves until told to stop.
pub fn serve(flags: &ServeFlags) -> Outcome {
    let config = match &flags.config {
        Some(path) => Some(Config::read(path).map_err(Failure::cannot)?),
        None => None,
    };
    let plan = Plan::of(flags, config.as_ref())?;
    let serving = heed_signals()?;
    let (socket, control_path) = bind_control(plan.control.as_deref())?;
    let mut builder = plan.builder(flags);
    if let Some(config) = config {
        builder = builder.config(config);
    }
    let handle = builder.open().map_err(Failure::cannot)?;
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

/// What to serve and how: what flags say, and otherwise the configuration file.
struct Plan {
    caches: Vec<PathBuf>,
    backings: Vec<PathBuf>,
    nbd: Vec<String>,
    mode: Option<Mode>,
    memory: Option<u64>,
    ack: Option<Ack>,
    engine: Option<Engine>,
    state_dir: Option<PathBuf>,
    control: Option<PathBuf>,
}

/// The keys of the file's section `serve`.
const KEYS: [&str; 9] = [
    "cache",
    "backing",
    "nbd",
    "mode",
    "memory",
    "ack",
    "engine",
    "state_dir",
    "control",
];

impl Plan {
    fn of(flags: &ServeFlags, config: Option<&Config>) -> Outcome<Plan> {
        let serve = match config {
            Some(config) => config.serve().map_err(Failure::cannot)?,
            None => Serve::default(),
        };
        let at = |what: String| {
            let path = config.map(|config| config.path().display().to_string());
            Failure::cannot(format!("{}: {what}", path.unwrap_or_default()))
        };
        if let Some(key) = serve.keys().find(|key| !KEYS.contains(key)) {
            return Err(at(format!(
                "serve has no key {key}; there are {}",
                KEYS.join(", ")
            )));
        }
        let paths = |said: &[PathBuf], key: &str| match said {
            [] => serve.all(key).into_iter().map(PathBuf::from).collect(),
            said => said.to_vec(),
        };
        let path = |said: &Option<PathBuf>, key: &str| {
            said.clone()
                .or_else(|| serve.all(key).pop().map(PathBuf::from))
        };
        let (caches, backings) = (
            paths(&flags.cache, "cache"),
            paths(&flags.backing, "backing"),
        );
        if caches.is_empty() && backings.is_empty() {
            return Err(Failure::Usage(
                "nothing to serve: name a device with --cache or --backing, or in the configuration file".into(),
            ));
        }
        let nbd = match &flags.nbd[..] {
            [] => serve.all("nbd"),
            said => said.to_vec(),
        };
        if nbd.is_empty() {
            return Err(Failure::Usage(
                "no frontend: say --nbd, or nbd in the configuration file".into(),
            ));
        }
        for address in &nbd {
            parse_nbd(address).map_err(|why| at(format!("serve.nbd: {why}")))?;
        }
        let memory = match (flags.memory, serve.all("memory").pop()) {
            (None, Some(text)) => {
                Some(parse_size(&text).map_err(|why| at(format!("serve.memory: {why}")))?)
            }
            (said, _) => said,
        };
        Ok(Plan {
            caches,
            backings,
            nbd,
            memory,
            mode: choice(flags.mode, &serve, "mode").map_err(at)?,
            ack: choice(flags.ack, &serve, "ack").map_err(at)?,
            engine: choice(flags.engine, &serve, "engine").map_err(at)?,
            state_dir: path(&flags.state_dir, "state_dir"),
            control: path(&flags.control, "control"),
        })
    }

    fn builder(&self, flags: &ServeFlags) -> Builder {
        let mut builder = Builder::new()
            .read_only(flags.read_only)
            .run_anyway(flags.run_anyway)
            .engine(self.engine.unwrap_or(Engine::Auto).into())
            .expensive_checks(flags.expensive_checks)
            .ack(match self.ack {
                None | Some(Ack::Memory) => AckPolicy::Memory,
                Some(Ack::Journal) => AckPolicy::Journal,
            });
        builder = self.caches.iter().fold(builder, Builder::cache);
        builder = self.backings.iter().fold(builder, Builder::backing);
        builder = self.nbd.iter().fold(builder, Builder::nbd);
        if let Some(mode) = self.mode {
            builder = builder.mode(mode.into());
        }
        if let Some(bytes) = self.memory {
            builder = builder.memory_bytes(bytes);
        }
        if let Some(directory) = &self.state_dir {
            builder = builder.state_dir(directory);
        }
        builder
    }
}

/// One of a flag's words, from the flag or the file.
fn choice<T: ValueEnum>(said: Option<T>, serve: &Serve, key: &str) -> Result<Option<T>, String> {
    match (said, serve.all(key).pop()) {
        (None, Some(text)) => {
            let wrong = |why| format!("serve.{key}: {text:?}: {why}");
            T::from_str(&text, false).map(Some).map_err(wrong)
        }
        (said, _) => Ok(said),
    }
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
