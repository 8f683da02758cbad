//! The thread the cache lives on: it makes the world, opens, serves, and ends in order.
//!
//! ```text
//! start ─► host env ─► listeners ─► devices (locked) ─► Server::open ─► serving ─► stop asked ─►
//!          frontends drained, embedded requests drained ─► Server::stop ─► finished
//! ```
//! Listeners are bound first: a taken address must be a refusal before anything is written. Other threads reach the
//! world only by closures posted to it; a thread-local holds it for them.

use crate::builder::Builder;
use crate::face::{Orphans, Server, Volume};
use crate::handle::{Handle, VolumeInfo};
use crate::{Config, Error, settings, state_dir};
use brigade_env::sync::Notify;
use brigade_env::{BlockDevice, Env, Exports};
use brigade_nbd::{ServerOptions, Shutdown};
use brigade_uring::{HostDevice, HostEnv, HostListener, OpenMode, Remote};
use std::cell::{Cell, RefCell};
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

thread_local! {
    static WORLD: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

/// What closures posted to the thread work with.
pub(crate) struct World {
    pub(crate) server: Rc<Server<HostEnv>>,
    pub(crate) volumes: Vec<Rc<Volume<HostEnv>>>,
    pub(crate) config: RefCell<Option<Config>>,
    pub(crate) env: HostEnv,
    pub(crate) mode: OpenMode,
    warnings: RefCell<Vec<String>>,
    records: Vec<PathBuf>,
    is_stopping: Cell<bool>,
    running: Cell<usize>,
    changed: Notify,
}

impl World {
    /// The world of this thread, unless it is ending.
    pub(crate) fn current() -> Option<Rc<World>> {
        WORLD
            .with(|world| world.borrow().clone())
            .filter(|world| !world.is_stopping.get())
    }

    /// Counts one request until it is dropped.
    pub(crate) fn begin(self: &Rc<Self>) -> Running {
        self.running.set(self.running.get() + 1);
        Running(self.clone())
    }

    /// No new requests from now on; the thread winds up.
    pub(crate) fn ask_to_stop(&self) {
        self.is_stopping.set(true);
        // What waits for something of a volume or set gives up.
        self.server.begin_to_stop();
        self.changed.notify_all();
    }
}

/// A request under way.
pub(crate) struct Running(Rc<World>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        self.0.changed.notify_all();
    }
}

/// How the thread ended, once it has.
#[derive(Default)]
pub(crate) struct Finish {
    outcome: Mutex<Option<Result<(), Error>>>,
    changed: Condvar,
}

impl Finish {
    fn set(&self, outcome: Result<(), Error>) {
        let mut slot = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(outcome);
        self.changed.notify_all();
    }

    /// Whether it has.
    pub(crate) fn is_set(&self) -> bool {
        self.outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// Waits for it.
    pub(crate) fn wait(&self) -> Result<(), Error> {
        let mut slot = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(outcome) = &*slot {
                return outcome.clone();
            }
            slot = self
                .changed
                .wait(slot)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Tells the waiting even if the thread panics.
struct FinishGuard(Arc<Finish>);

impl Drop for FinishGuard {
    fn drop(&mut self) {
        self.0.set(Err(Error::new("the cache's thread died")));
    }
}

/// What a successful open reports.
pub(crate) struct Opened {
    pub(crate) remote: Remote,
    pub(crate) engine: &'static str,
    pub(crate) volumes: Vec<VolumeInfo>,
    pub(crate) addresses: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

/// Starts the thread and waits until it serves.
pub(crate) fn start(builder: Builder) -> Result<Handle, Error> {
    let finish = Arc::new(Finish::default());
    let (sender, receiver) = mpsc::channel();
    let guard = FinishGuard(finish.clone());
    std::thread::Builder::new()
        .name("brigade".into())
        .spawn(move || run(&builder, &sender, &guard))
        .map_err(|e| Error::new(format!("no thread for the cache: {e}")))?;
    match receiver.recv() {
        Ok(opened) => Ok(Handle::new(opened?, finish)),
        Err(_) => Err(Error::new("the cache's thread died")),
    }
}

fn run(builder: &Builder, sender: &mpsc::Sender<Result<Opened, Error>>, guard: &FinishGuard) {
    let env = match HostEnv::new(builder.host.clone()) {
        Ok(env) => env,
        Err(error) => {
            let _ = sender.send(Err(Error::new(format!("no I/O engine: {error}"))));
            return;
        }
    };
    let mut sockets = Sockets::default();
    let outcome = env.block_on(live(builder, &env, &mut sockets, sender));
    WORLD.with(|world| world.borrow_mut().take());
    drop(sockets);
    env.shutdown();
    guard.0.set(outcome);
}

async fn live(
    builder: &Builder,
    env: &HostEnv,
    sockets: &mut Sockets,
    sender: &mpsc::Sender<Result<Opened, Error>>,
) -> Result<(), Error> {
    let (world, listeners) = match open(builder, env, sockets).await {
        Ok(parts) => parts,
        Err(error) => {
            let _ = sender.send(Err(error));
            return Ok(());
        }
    };
    WORLD.with(|slot| *slot.borrow_mut() = Some(world.clone()));
    let addresses = listeners
        .iter()
        .map(brigade_env::Listener::address)
        .collect();
    let shutdown = Shutdown::new();
    for listener in listeners {
        let options = ServerOptions::default();
        env.spawn(brigade_nbd::serve(
            env.clone(),
            listener,
            world.server.clone(),
            options,
            shutdown.clone(),
        ));
    }
    let opened = Opened {
        remote: env.remote(),
        engine: env.engine_name(),
        volumes: volume_infos(&world),
        addresses,
        warnings: world.warnings.borrow().clone(),
    };
    if sender.send(Ok(opened)).is_err() {
        world.ask_to_stop();
    }
    world
        .changed
        .until(|| world.is_stopping.get().then_some(()))
        .await;
    shutdown.trigger();
    shutdown.wait().await;
    world
        .changed
        .until(|| (world.running.get() == 0).then_some(()))
        .await;
    world.server.stop().await.map_err(Error::new)?;
    remove_empty(&world.records);
    Ok(())
}

async fn open(
    builder: &Builder,
    env: &HostEnv,
    sockets: &mut Sockets,
) -> Result<(Rc<World>, Vec<HostListener>), Error> {
    let listeners = builder
        .nbd
        .iter()
        .map(|a| listen(env, a, sockets))
        .collect::<Result<Vec<_>, _>>()?;
    let state_dir = if builder.caches.is_empty() {
        None
    } else {
        Some(state_dir::choose(builder.state_dir.as_deref())?)
    };
    let caches = open_devices(env, &builder.caches, builder.options.read_only)?;
    let backings = open_devices(env, &builder.backings, builder.options.read_only)?;
    let troubles = RefCell::new(Vec::new());
    let records = RefCell::new(Vec::new());
    let survivor = |set: &str| {
        let path = state_dir::record(state_dir.as_ref()?, set)?;
        let opened = env.open_survivor(&path);
        records.borrow_mut().push(path.clone());
        opened
            .map_err(|e| troubles.borrow_mut().push(record_trouble(&path, &e)))
            .ok()
    };
    let orphans = match builder.run_anyway {
        true => Orphans::RunAlone,
        false => Orphans::Refused,
    };
    let server = Server::open_with(
        env.clone(),
        caches,
        backings,
        survivor,
        builder.options.clone(),
        orphans,
    )
    .await
    .map_err(Error::new)?;
    let volumes = server.volumes();
    let mut warnings = server.warnings();
    warnings.append(&mut troubles.take());
    let world = World {
        server,
        config: RefCell::default(),
        env: env.clone(),
        mode: open_mode(builder.options.read_only),
        warnings: RefCell::new(warnings),
        records: records.take(),
        volumes,
        is_stopping: Cell::new(false),
        running: Cell::new(0),
        changed: Notify::new(),
    };
    let world = Rc::new(world);
    if let Some(config) = &builder.config {
        let mode_said = builder.options.mode.is_some();
        let mut noted = settings::apply(&world, config, mode_said).await;
        world.warnings.borrow_mut().append(&mut noted);
        *world.config.borrow_mut() = Some(config.clone());
    }
    Ok((world, listeners))
}

fn open_mode(read_only: bool) -> OpenMode {
    match read_only {
        true => OpenMode::ReadOnly,
        false => OpenMode::ReadWrite,
    }
}

/// A device that comes while everything is served. What is taken gets a second chance, without holding anybody up.
pub(crate) async fn open_device(world: &World, path: &Path) -> Result<HostDevice, Error> {
    let deadline = world.env.now() + PATIENCE;
    loop {
        match world.env.open_device(path, world.mode, true) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && world.env.now() < deadline => {
                world.env.sleep(PATIENCE / 100).await;
            }
            opened => return opened.map_err(|error| named(path, &error)),
        }
    }
}

fn open_devices(
    env: &HostEnv,
    paths: &[PathBuf],
    read_only: bool,
) -> Result<Vec<HostDevice>, Error> {
    let mode = open_mode(read_only);
    let open = |path: &PathBuf| {
        let mut outcome = Err(ErrorKind::ResourceBusy.into());
        patiently(|| {
            outcome = env.open_device(path, mode, true);
            let is_busy = matches!(&outcome, Err(e) if e.kind() == ErrorKind::ResourceBusy);
            (!is_busy).then_some(())
        });
        outcome.map_err(|e| named(path, &e))
    };
    paths.iter().map(open).collect()
}

fn volume_infos(world: &World) -> Vec<VolumeInfo> {
    let names = world.server.names();
    let names_of = |volume: &Rc<Volume<HostEnv>>| {
        let is_it = |name: &&String| {
            world
                .server
                .find(name)
                .is_some_and(|found| Rc::ptr_eq(&found, volume))
        };
        names.iter().filter(is_it).cloned().collect::<Vec<_>>()
    };
    let info = |volume: &Rc<Volume<HostEnv>>| VolumeInfo {
        names: names_of(volume),
        description: volume.description(),
        size_bytes: volume.size_bytes(),
        block_bytes: volume.block_sizes().minimum,
        request_bytes_max: volume.block_sizes().maximum,
        is_read_only: volume.is_read_only(),
    };
    world.volumes.iter().map(info).collect()
}

/// An orderly stop empties the records; what is empty is litter. The devices are still locked, so nobody else uses them.
fn remove_empty(records: &[PathBuf]) {
    for path in records {
        if std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() == 0) {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn record_trouble(path: &Path, error: &std::io::Error) -> String {
    format!(
        "{}: no acknowledgement record here ({error}); writes wait for the journal",
        path.display()
    )
}

/// Some errors name their path already.
fn named(path: &Path, error: &std::io::Error) -> Error {
    let text = error.to_string();
    let name = path.display().to_string();
    if text.starts_with(&name) {
        Error::new(text)
    } else {
        Error::at(name, text)
    }
}

/// Socket files of ours, removed at the end.
#[derive(Default)]
struct Sockets(Vec<PathBuf>);

impl Drop for Sockets {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn listen(env: &HostEnv, address: &str, sockets: &mut Sockets) -> Result<HostListener, Error> {
    match address.split_once(':') {
        Some(("unix", path)) => {
            let path = Path::new(path);
            clear_dead_socket(path)?;
            let listener = env.listen_unix(path).map_err(|e| Error::at(address, e))?;
            sockets.0.push(path.to_owned());
            Ok(listener)
        }
        Some(("tcp", rest)) => env.listen_tcp(rest).map_err(|e| Error::at(address, e)),
        _ => Err(Error::at(address, "expected unix:PATH or tcp:HOST:PORT")),
    }
}

/// Removes a socket nobody listens on any more; one that is in use is an error, and so is anything else in its place.
pub(crate) fn clear_dead_socket(path: &Path) -> Result<(), Error> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::at(path.display(), "exists and is no socket"));
    }
    let is_dead = || match std::os::unix::net::UnixStream::connect(path) {
        Err(error) => (error.kind() == ErrorKind::ConnectionRefused).then_some(()),
        Ok(_) => None,
    };
    match patiently(is_dead) {
        Some(()) => std::fs::remove_file(path).map_err(|e| Error::at(path.display(), e)),
        None => Err(Error::at(path.display(), "another server listens there")),
    }
}

/// Tries until it gives something. A process that was killed lets go of its sockets and devices a moment *after* it is
/// gone, since the kernel takes its ring down in the background: what is taken gets a second chance.
fn patiently<T>(mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let outcome = attempt();
        if outcome.is_some() || Instant::now() >= deadline {
            return outcome;
        }
        std::thread::sleep(PATIENCE / 100);
    }
}

/// How long what is taken is tried again.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often a waiting caller looks whether the thread has ended meanwhile.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(100);
