//! A small deterministic world: one thread, virtual time, streams in memory, a RAM disk.
//!
//! Time moves only when every task waits, so a timeout costs nothing and a test that hangs ends with "stuck".
#![allow(dead_code)]

use brigade_env::{
    BlockDevice, BlockSizes, Buffer, BufferPool, Device, Durability, Env, Exports, Geometry,
    Listener, Segment, StatusExtent, Stream, StreamId, Survivor,
};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

type Task = Pin<Box<dyn Future<Output = ()>>>;

struct TaskWaker {
    nr: u64,
    ready: Arc<Mutex<VecDeque<u64>>>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.ready.lock().expect("one thread").push_back(self.nr);
    }
}

struct Inner {
    tasks: RefCell<BTreeMap<u64, Task>>,
    next: Cell<u64>,
    ready: Arc<Mutex<VecDeque<u64>>>,
    now: Cell<Duration>,
    timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
    buffers: BufferPool,
}

/// The world.
#[derive(Clone)]
pub struct World(Rc<Inner>);

impl World {
    pub fn new() -> Self {
        World(Rc::new(Inner {
            tasks: RefCell::default(),
            next: Cell::new(0),
            ready: Arc::default(),
            now: Cell::default(),
            timers: RefCell::default(),
            buffers: BufferPool::new(64 << 20),
        }))
    }

    /// Runs `main` and everything it spawns until `main` is done.
    pub fn run<T: 'static>(&self, main: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        self.spawn(async move {
            let value = main.await;
            *slot.borrow_mut() = Some(value);
        });
        loop {
            if let Some(value) = result.borrow_mut().take() {
                return value;
            }
            assert!(self.turn(), "stuck: every task waits and no timer is set");
        }
    }

    /// Runs until nothing is ready, without moving time.
    pub fn settle(&self) {
        while self.poll_one() {}
    }

    pub fn task_count(&self) -> usize {
        self.0.tasks.borrow().len()
    }

    fn poll_one(&self) -> bool {
        let next = self.0.ready.lock().expect("one thread").pop_front();
        let Some(nr) = next else { return false };
        let task = self.0.tasks.borrow_mut().remove(&nr);
        if let Some(mut task) = task {
            let waker = Waker::from(Arc::new(TaskWaker {
                nr,
                ready: self.0.ready.clone(),
            }));
            if task
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
            {
                self.0.tasks.borrow_mut().insert(nr, task);
            }
        }
        true
    }

    fn turn(&self) -> bool {
        if self.poll_one() {
            return true;
        }
        let first = self.0.timers.borrow_mut().pop_first();
        let Some(((deadline, _), waker)) = first else {
            return false;
        };
        self.0.now.set(self.0.now.get().max(deadline));
        waker.wake();
        true
    }
}

impl Env for World {
    type Device = NoDevice;
    type Survivor = NoSurvivor;

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let nr = self.0.next.get();
        self.0.next.set(nr + 1);
        self.0.tasks.borrow_mut().insert(nr, Box::pin(task));
        self.0.ready.lock().expect("one thread").push_back(nr);
    }

    fn now(&self) -> Duration {
        self.0.now.get()
    }

    fn sleep_until(&self, deadline: Duration) -> impl Future<Output = ()> + 'static {
        let world = self.clone();
        let nr = world.0.next.get();
        world.0.next.set(nr + 1);
        Sleep {
            world,
            deadline,
            nr,
        }
    }

    fn unix_seconds(&self) -> u32 {
        0
    }

    fn random_u64(&self) -> u64 {
        4
    }

    fn buffers(&self) -> &BufferPool {
        &self.0.buffers
    }
}

struct Sleep {
    world: World,
    deadline: Duration,
    nr: u64,
}

impl Future for Sleep {
    type Output = ();
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.world.now() >= self.deadline {
            return Poll::Ready(());
        }
        self.world
            .0
            .timers
            .borrow_mut()
            .insert((self.deadline, self.nr), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.world
            .0
            .timers
            .borrow_mut()
            .remove(&(self.deadline, self.nr));
    }
}

/// One direction of a connection.
#[derive(Default)]
struct Pipe {
    bytes: RefCell<VecDeque<u8>>,
    is_closed: Cell<bool>,
    wakers: RefCell<Vec<Waker>>,
    chunk: Cell<usize>,
    room: Cell<usize>,
    sends: Cell<usize>,
}

impl Pipe {
    fn wake(&self) {
        for waker in self.wakers.take() {
            waker.wake();
        }
    }

    fn close(&self) {
        self.is_closed.set(true);
        self.wake();
    }

    fn poll_receive(&self, into: &mut [u8], context: &mut Context<'_>) -> Poll<usize> {
        let mut bytes = self.bytes.borrow_mut();
        if bytes.is_empty() {
            if self.is_closed.get() {
                return Poll::Ready(0);
            }
            self.wakers.borrow_mut().push(context.waker().clone());
            return Poll::Pending;
        }
        let count = bytes.len().min(into.len()).min(self.chunk.get());
        for (to, from) in into.iter_mut().zip(bytes.drain(..count)) {
            *to = from;
        }
        drop(bytes);
        self.wake();
        Poll::Ready(count)
    }
}

/// One end of a connection in memory.
#[derive(Clone)]
pub struct Wire {
    receive: Rc<Pipe>,
    send: Rc<Pipe>,
}

/// Both ends. Receives give at most `chunk` bytes; `room` bytes fit in each direction.
pub fn wires(chunk: usize, room: usize) -> (Wire, Wire) {
    let make = || {
        let pipe = Pipe::default();
        pipe.chunk.set(chunk);
        pipe.room.set(room);
        Rc::new(pipe)
    };
    let (a, b) = (make(), make());
    (
        Wire {
            receive: a.clone(),
            send: b.clone(),
        },
        Wire {
            receive: b,
            send: a,
        },
    )
}

impl Wire {
    /// Sends without waiting.
    pub fn put(&self, bytes: &[u8]) {
        self.send.bytes.borrow_mut().extend(bytes);
        self.send.wake();
    }

    /// Everything that has arrived.
    pub fn take(&self) -> Vec<u8> {
        let bytes = self.receive.bytes.borrow_mut().drain(..).collect();
        self.receive.wake();
        bytes
    }

    /// Bytes sent and not yet received by the other end.
    pub fn unread_by_peer(&self) -> usize {
        self.send.bytes.borrow().len()
    }

    pub fn is_closed_by_peer(&self) -> bool {
        self.receive.is_closed.get()
    }

    /// How often the other end has sent.
    pub fn sends_of_peer(&self) -> usize {
        self.receive.sends.get()
    }

    /// Ends only the own direction.
    pub fn finish(&self) {
        self.send.close();
    }

    async fn receive_some(&self, into: &mut [u8]) -> usize {
        std::future::poll_fn(|context| self.receive.poll_receive(into, context)).await
    }
}

impl Stream for Wire {
    fn receive(
        &self,
        mut buffer: Buffer,
    ) -> impl Future<Output = (io::Result<usize>, Buffer)> + 'static {
        let wire = self.clone();
        async move {
            let count = wire.receive_some(&mut buffer).await;
            (Ok(count), buffer)
        }
    }

    fn receive_exact(
        &self,
        mut buffer: Buffer,
    ) -> impl Future<Output = (io::Result<()>, Buffer)> + 'static {
        let wire = self.clone();
        async move {
            let mut have = 0;
            while have < buffer.len() {
                let count = wire.receive_some(&mut buffer[have..]).await;
                if count == 0 {
                    return (Err(io::ErrorKind::UnexpectedEof.into()), buffer);
                }
                have += count;
            }
            (Ok(()), buffer)
        }
    }

    fn send(&self, segments: Vec<Segment>) -> impl Future<Output = io::Result<()>> + 'static {
        let pipe = self.send.clone();
        async move {
            pipe.sends.set(pipe.sends.get() + 1);
            for segment in &segments {
                let mut rest = segment.as_slice();
                while !rest.is_empty() {
                    let count = std::future::poll_fn(|context| {
                        if pipe.is_closed.get() {
                            return Poll::Ready(0);
                        }
                        let mut bytes = pipe.bytes.borrow_mut();
                        let room = pipe.room.get().saturating_sub(bytes.len());
                        if room == 0 {
                            pipe.wakers.borrow_mut().push(context.waker().clone());
                            return Poll::Pending;
                        }
                        let count = room.min(rest.len());
                        bytes.extend(&rest[..count]);
                        Poll::Ready(count)
                    })
                    .await;
                    if count == 0 {
                        return Err(io::ErrorKind::BrokenPipe.into());
                    }
                    rest = &rest[count..];
                    pipe.wake();
                }
            }
            Ok(())
        }
    }

    fn shutdown(&self) {
        self.receive.close();
        self.send.close();
    }

    fn peer(&self) -> String {
        "memory".to_owned()
    }
}

/// Hands out connections made with [`Door::connect`].
#[derive(Clone, Default)]
pub struct Door {
    waiting: Rc<RefCell<VecDeque<Wire>>>,
    waker: Rc<RefCell<Option<Waker>>>,
}

impl Door {
    pub fn connect(&self, chunk: usize, room: usize) -> Wire {
        let (client, server) = wires(chunk, room);
        self.waiting.borrow_mut().push_back(server);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        client
    }
}

impl Listener for Door {
    type Stream = Wire;

    fn accept(&self) -> impl Future<Output = io::Result<Wire>> + 'static {
        let door = self.clone();
        std::future::poll_fn(move |context| match door.waiting.borrow_mut().pop_front() {
            Some(wire) => Poll::Ready(Ok(wire)),
            None => {
                *door.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
    }

    fn address(&self) -> String {
        "memory".to_owned()
    }
}

/// A RAM disk that notes what it was asked for.
pub struct RamDisk {
    pub bytes: RefCell<Vec<u8>>,
    pub log: RefCell<Vec<String>>,
    pub pool: BufferPool,
    pub is_read_only: bool,
    /// While set, requests wait.
    pub is_held: Cell<bool>,
    pub waiting: Rc<RefCell<Vec<Waker>>>,
    pub in_flight: Cell<usize>,
    pub in_flight_bytes: Cell<usize>,
    pub in_flight_bytes_most: Cell<usize>,
    /// Bytes from here fail with an I/O error.
    pub bad_from: Cell<u64>,
    pub extents: RefCell<Option<Vec<StatusExtent>>>,
}

pub const DISK_BYTES: usize = 4 << 20;

impl RamDisk {
    pub fn new(world: &World) -> Self {
        RamDisk {
            bytes: RefCell::new(vec![0; DISK_BYTES]),
            log: RefCell::default(),
            pool: world.buffers().clone(),
            is_read_only: false,
            is_held: Cell::new(false),
            waiting: Rc::default(),
            in_flight: Cell::new(0),
            in_flight_bytes: Cell::new(0),
            in_flight_bytes_most: Cell::new(0),
            bad_from: Cell::new(u64::MAX),
            extents: RefCell::default(),
        }
    }

    pub fn release(&self) {
        self.is_held.set(false);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    pub fn noted(&self, what: &str) -> bool {
        self.log.borrow().iter().any(|line| line == what)
    }
}

/// The one export of tests, under the names `""` and `ram`.
#[derive(Clone)]
pub struct Ram(pub Rc<RamDisk>);

impl Exports for Ram {
    type Device = Ram;
    fn find(&self, name: &str) -> Option<Rc<Ram>> {
        matches!(name, "" | "ram").then(|| Rc::new(self.clone()))
    }
    fn names(&self) -> Vec<String> {
        vec![String::new(), "ram".to_owned()]
    }
}

impl Ram {
    fn then<T: 'static>(
        &self,
        what: String,
        bytes: usize,
        end: u64,
        act: impl FnOnce(&RamDisk) -> T + 'static,
    ) -> impl Future<Output = io::Result<T>> + 'static {
        let disk = self.0.clone();
        async move {
            disk.in_flight.set(disk.in_flight.get() + 1);
            disk.in_flight_bytes.set(disk.in_flight_bytes.get() + bytes);
            disk.in_flight_bytes_most.set(
                disk.in_flight_bytes_most
                    .get()
                    .max(disk.in_flight_bytes.get()),
            );
            std::future::poll_fn(|context| {
                if !disk.is_held.get() {
                    return Poll::Ready(());
                }
                disk.waiting.borrow_mut().push(context.waker().clone());
                Poll::Pending
            })
            .await;
            disk.in_flight.set(disk.in_flight.get() - 1);
            disk.in_flight_bytes.set(disk.in_flight_bytes.get() - bytes);
            disk.log.borrow_mut().push(what);
            if end > disk.bad_from.get() {
                return Err(io::Error::from_raw_os_error(5));
            }
            Ok(act(&disk))
        }
    }
}

impl BlockDevice for Ram {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES as u64
    }
    fn block_sizes(&self) -> BlockSizes {
        BlockSizes {
            minimum: 512,
            preferred: 4096,
            maximum: 1 << 20,
        }
    }
    fn is_read_only(&self) -> bool {
        self.0.is_read_only
    }
    fn description(&self) -> String {
        "a RAM disk".to_owned()
    }
    fn buffer(&self, length: usize) -> Buffer {
        self.0.pool.get(length)
    }
    fn read(
        &self,
        _: StreamId,
        offset: u64,
        length: usize,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static {
        let at = offset as usize;
        self.then(
            format!("read {offset}+{length}"),
            length,
            offset + length as u64,
            move |disk| {
                let mut buffer = disk.pool.get(length);
                buffer.copy_from_slice(&disk.bytes.borrow()[at..at + length]);
                buffer
            },
        )
    }
    fn write(
        &self,
        _: StreamId,
        offset: u64,
        buffer: Buffer,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let (at, length) = (offset as usize, buffer.len());
        self.then(
            format!("write {offset}+{length} fua={fua}"),
            length,
            offset + length as u64,
            move |disk| {
                disk.bytes.borrow_mut()[at..at + length].copy_from_slice(&buffer);
            },
        )
    }
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        self.then("flush".to_owned(), 0, 0, |_| ())
    }
    fn discard(
        &self,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        self.then(
            format!("discard {offset}+{length} fua={fua}"),
            0,
            offset + length,
            |_| (),
        )
    }
    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        may_unmap: bool,
        only_if_fast: bool,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let (from, to) = (offset as usize, (offset + length) as usize);
        let what =
            format!("zeroes {offset}+{length} unmap={may_unmap} fast={only_if_fast} fua={fua}");
        let done = self.then(what, 0, offset + length, move |disk| {
            if only_if_fast {
                return Err(io::Error::from_raw_os_error(95));
            }
            disk.bytes.borrow_mut()[from..to].fill(0);
            Ok(())
        });
        async move { done.await? }
    }
    fn prefetch(
        &self,
        _: StreamId,
        offset: u64,
        length: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        self.then(
            format!("prefetch {offset}+{length}"),
            0,
            offset + length,
            |_| (),
        )
    }
    fn status(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> impl Future<Output = io::Result<Vec<StatusExtent>>> + 'static {
        self.then(
            format!("status {offset}+{length}"),
            0,
            offset + length,
            move |disk| {
                let told = disk.extents.borrow().clone();
                let mut told = told.unwrap_or_else(|| {
                    vec![StatusExtent {
                        length,
                        is_hole: false,
                        cache_state: 0,
                    }]
                });
                told.truncate(most);
                told
            },
        )
    }
}

/// There are no devices below a test.
pub struct NoDevice;
/// Nor survivors.
pub struct NoSurvivor;

fn none() -> io::Error {
    io::ErrorKind::Unsupported.into()
}

impl Device for NoDevice {
    fn name(&self) -> &str {
        "none"
    }
    fn geometry(&self) -> Geometry {
        Geometry {
            size_bytes: 0,
            logical_block_bytes: 512,
            physical_block_bytes: 512,
            can_discard: false,
            is_read_only: true,
            optimal_io_bytes: 0,
            partial_stripes_expensive: false,
        }
    }
    fn read(&self, _: u64, _: Buffer) -> impl Future<Output = io::Result<Buffer>> + 'static {
        std::future::ready(Err(none()))
    }
    fn write(
        &self,
        _: u64,
        _: Buffer,
        _: Durability,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static {
        std::future::ready(Err(none()))
    }
    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::ready(Err(none()))
    }
    fn discard(&self, _: u64, _: u64) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::ready(Err(none()))
    }
    fn write_zeroes(
        &self,
        _: u64,
        _: u64,
        _: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::ready(Err(none()))
    }
}

impl Survivor for NoSurvivor {
    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(none())
    }
    fn read(&self) -> io::Result<Vec<u8>> {
        Err(none())
    }
    fn clear(&self) -> io::Result<()> {
        Err(none())
    }
}
