//! The handle to a world, how to make one, and how other threads reach it.

use crate::device::HostDevice;
use crate::open::{DeviceOptions, OpenMode};
use crate::reactor::{Core, Driver, Sleep};
use crate::ring::Ring;
use crate::socket::{HostListener, HostStream};
use crate::survivor::HostSurvivor;
use crate::threads::Threads;
use crate::wake::{Mailbox, RunQueue};
use brigade_env::{BufferPool, Env};
use std::future::Future;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Which way system calls take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// io_uring where the kernel lets us, else threads.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// Threads for files, `poll(2)` for sockets.
    Threads,
}

/// How to set a world up.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Which engine.
    pub engine: Engine,
    /// Most bytes of free buffers kept for reuse.
    pub buffer_pool_bytes: usize,
    /// Submission queue entries; with threads, most file requests handed over at a time.
    pub queue_depth: u32,
    /// Threads for files (thread engine only).
    pub threads: usize,
    /// Longest time to look for completions before sleeping. It adapts: no time is spent where it does not pay. The default
    /// is 20 µs, and zero where there is a single processor, which whoever is waited for needs.
    pub spin: Duration,
}

impl Default for HostOptions {
    fn default() -> Self {
        HostOptions {
            engine: Engine::Auto,
            buffer_pool_bytes: 64 << 20,
            queue_depth: 256,
            threads: 8,
            spin: match std::thread::available_parallelism() {
                Ok(processors) if processors.get() > 1 => Duration::from_micros(20),
                _ => Duration::ZERO,
            },
        }
    }
}

/// A world on this thread. Clones are the same world.
///
/// Tasks usually hold clones themselves, so a world is ended by [`HostEnv::shutdown`]; dropping all handles ends only a
/// world without tasks. A world that is never ended goes with the process.
#[derive(Clone)]
pub struct HostEnv(pub(crate) Rc<Core>);

impl HostEnv {
    /// Sets a world up on this thread.
    ///
    /// # Errors
    /// If no descriptor or thread can be had, or io_uring was demanded and the kernel refuses it.
    pub fn new(options: HostOptions) -> io::Result<HostEnv> {
        HostEnv::with_ring(options, Ring::new)
    }

    /// As [`HostEnv::new`], with the ring made by `make_ring`.
    pub(crate) fn with_ring(
        options: HostOptions,
        make_ring: impl FnOnce(&HostOptions, Arc<Mailbox>) -> io::Result<Ring>,
    ) -> io::Result<HostEnv> {
        let mailbox = Mailbox::new()?;
        let driver = match options.engine {
            Engine::Threads => threads(&options, &mailbox)?,
            Engine::Uring => Driver::Ring(Box::new(make_ring(&options, mailbox.clone())?)),
            Engine::Auto => match make_ring(&options, mailbox.clone()) {
                Ok(ring) => Driver::Ring(Box::new(ring)),
                Err(error) if is_refusal(&error) => threads(&options, &mailbox)?,
                Err(error) => return Err(error),
            },
        };
        let queue = RunQueue::register(mailbox.clone())?;
        let pool = BufferPool::new(options.buffer_pool_bytes);
        Ok(HostEnv(Rc::new(Core::new(driver, queue, mailbox, pool))))
    }

    /// `"uring"` or `"threads"`.
    pub fn engine_name(&self) -> &'static str {
        self.0.engine_name()
    }

    /// Runs this world's tasks until `future` is done, and gives its output.
    ///
    /// # Panics
    /// Inside itself.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.0.block_on(self, future)
    }

    /// Ends the world: its tasks are dropped where they stand, sockets cancelled, device operations waited for.
    /// Whatever is asked of it afterwards fails.
    pub fn shutdown(&self) {
        self.0.shutdown();
    }

    /// A handle for other threads.
    pub fn remote(&self) -> Remote {
        Remote(self.0.mailbox.clone())
    }

    /// Opens a block device or a regular file; with `lock` nobody else may have it open (for reading: may write it).
    ///
    /// # Errors
    /// [`io::ErrorKind::ResourceBusy`] if it is in use, and what opening may give.
    pub fn open_device(&self, path: &Path, mode: OpenMode, lock: bool) -> io::Result<HostDevice> {
        self.open_device_with(
            path,
            &DeviceOptions {
                mode,
                lock,
                logical_block_bytes: None,
            },
        )
    }

    /// As [`HostEnv::open_device`], with everything that can be said.
    ///
    /// # Errors
    /// As [`HostEnv::open_device`].
    pub fn open_device_with(&self, path: &Path, options: &DeviceOptions) -> io::Result<HostDevice> {
        HostDevice::open(self.0.clone(), path, options)
    }

    /// Opens, or makes, a record that outlives the process; give it a path on a memory file system.
    ///
    /// # Errors
    /// What opening a file may give.
    pub fn open_survivor(&self, path: &Path) -> io::Result<HostSurvivor> {
        HostSurvivor::open(path)
    }

    /// Listens on a unix socket. A socket file nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] if somebody listens there, and what binding may give.
    pub fn listen_unix(&self, path: &Path) -> io::Result<HostListener> {
        HostListener::unix(self.0.clone(), path)
    }

    /// Listens on `HOST:PORT`.
    ///
    /// # Errors
    /// What binding may give.
    pub fn listen_tcp(&self, address: &str) -> io::Result<HostListener> {
        HostListener::tcp(self.0.clone(), address)
    }

    /// Connects to a unix socket, waiting for it in place.
    ///
    /// # Errors
    /// What connecting may give.
    pub fn connect_unix(&self, path: &Path) -> io::Result<HostStream> {
        HostStream::connect_unix(self.0.clone(), path)
    }

    /// Connects to `HOST:PORT`, waiting for it in place.
    ///
    /// # Errors
    /// What connecting may give.
    pub fn connect_tcp(&self, address: &str) -> io::Result<HostStream> {
        HostStream::connect_tcp(self.0.clone(), address)
    }
}

fn threads(options: &HostOptions, mailbox: &Arc<Mailbox>) -> io::Result<Driver> {
    let threads = Threads::new(
        options.threads,
        options.queue_depth as usize,
        mailbox.clone(),
    )?;
    Ok(Driver::Threads(Box::new(threads)))
}

/// The kernel or a container does not let us have io_uring, or has no memory to lock for it.
fn is_refusal(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || matches!(
            error.raw_os_error(),
            Some(
                libc::EPERM
                    | libc::EACCES
                    | libc::ENOSYS
                    | libc::ENOMEM
                    | libc::EINVAL
                    | libc::EOPNOTSUPP
            )
        )
}

impl Env for HostEnv {
    type Device = HostDevice;
    type Survivor = HostSurvivor;

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.spawn(task);
    }

    fn now(&self) -> Duration {
        self.0.now()
    }

    fn time_at_work(&self) -> Duration {
        crate::sys::thread_time()
    }

    fn sleep_until(&self, deadline: Duration) -> impl Future<Output = ()> + 'static {
        Sleep::new(self.0.clone(), deadline)
    }

    fn unix_seconds(&self) -> u32 {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    }

    fn random_u64(&self) -> u64 {
        self.0.random()
    }

    fn buffers(&self) -> &BufferPool {
        &self.0.pool
    }

    fn end_process(&self, why: &str) {
        eprintln!("brigade: {why}");
        std::process::abort();
    }
}

/// Reaches a world from another thread. It outlives the world harmlessly.
#[derive(Clone)]
pub struct Remote(Arc<Mailbox>);

impl Remote {
    /// Runs `f` on the world's thread at its next turn. If the world has ended, or ends before, `f` is dropped unrun.
    pub fn post(&self, f: Box<dyn FnOnce(&HostEnv) + Send>) {
        self.0.mail(|mail| mail.posts.push(f));
    }
}
