//! What other threads hold: requests to the cache's thread, answered while the caller waits.

use crate::Error;
use crate::face::{Status, Volume};
use crate::world::{Finish, LOOK_AGAIN, Opened, World};
use brigade_env::{BlockDevice, StreamId};
use brigade_uring::{HostEnv, Remote};
use serde_json::{Value, json};
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

/// A volume, as it was at open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// All names it is exported by.
    pub names: Vec<String>,
    /// Text about it.
    pub description: String,
    /// Capacity.
    pub size_bytes: u64,
    /// Offsets and lengths are multiples of this.
    pub block_bytes: u32,
    /// Longest request one call is cut into.
    pub request_bytes_max: u32,
    /// No writes.
    pub is_read_only: bool,
}

/// An open cache. Clones are the same cache; it is stopped by [`Handle::stop`] or when the last one is dropped.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

struct Shared {
    opened: Opened,
    /// Held while settings are changed.
    changing: Mutex<()>,
    finish: Arc<Finish>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        ask_to_stop(&self.opened.remote);
        if let Err(error) = self.finish.wait() {
            tracing::error!(%error, "the cache did not stop in order");
        }
    }
}

fn ask_to_stop(remote: &Remote) {
    remote.post(Box::new(|_| {
        if let Some(world) = World::current() {
            world.ask_to_stop();
        }
    }));
}

impl Handle {
    pub(crate) fn new(opened: Opened, finish: Arc<Finish>) -> Handle {
        Handle(Arc::new(Shared {
            opened,
            changing: Mutex::default(),
            finish,
        }))
    }

    /// Only one changes settings at a time.
    pub(crate) fn changing(&self) -> MutexGuard<'_, ()> {
        let locked = self.0.changing.lock();
        locked.unwrap_or_else(PoisonError::into_inner)
    }

    /// The volumes, the default one first.
    pub fn volumes(&self) -> &[VolumeInfo] {
        &self.0.opened.volumes
    }

    /// Where frontends really listen.
    pub fn addresses(&self) -> &[String] {
        &self.0.opened.addresses
    }

    /// What was found at open that does not keep the set from being served.
    pub fn warnings(&self) -> &[String] {
        &self.0.opened.warnings
    }

    /// How I/O is done.
    pub fn engine_name(&self) -> &'static str {
        self.0.opened.engine
    }

    /// Reads; offset and length are multiples of the volume's block.
    pub fn read(&self, volume: usize, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let step = self.check(volume, offset, into.len(), false)?;
        let mut at = offset;
        for piece in into.chunks_mut(step) {
            let length = piece.len();
            let bytes = self.on_volume(volume, move |device| async move {
                Ok(device.read(StreamId::default(), at, length).await?.to_vec())
            })?;
            piece.copy_from_slice(&bytes);
            at += length as u64;
        }
        Ok(())
    }

    /// Writes; with `fua` it is durable on return.
    pub fn write(&self, volume: usize, offset: u64, bytes: &[u8], fua: bool) -> io::Result<()> {
        let step = self.check(volume, offset, bytes.len(), true)?;
        let mut at = offset;
        for piece in bytes.chunks(step) {
            let piece = piece.to_vec();
            let length = piece.len() as u64;
            self.on_volume(volume, move |device| async move {
                let mut buffer = device.buffer(piece.len());
                buffer.copy_from_slice(&piece);
                device.write(StreamId::default(), at, buffer, fua).await
            })?;
            at += length;
        }
        Ok(())
    }

    /// Makes every write that returned durable.
    pub fn flush(&self, volume: usize) -> io::Result<()> {
        self.on_volume(volume, |device| async move { device.flush().await })
    }

    /// What the cache is doing, in the shape of `brigade status --json`.
    pub fn status(&self) -> Result<Value, Error> {
        self.call(|world| async move {
            let status = serde_json::to_value(world.server.status());
            let mut status = status.map_err(Error::new)?;
            status["config"] = crate::settings::configured(&world);
            Ok(status)
        })?
    }

    /// Has statistics begin anew: totals and latencies of all volumes and sets.
    pub fn clear_stats(&self) -> Result<Value, Error> {
        self.call(|world| async move {
            world.server.clear_stats();
            json!({ "cleared": true })
        })
    }

    /// How recent what is cached is: shares of buckets, and quantiles of their ages. Counts all buckets, while requests go on.
    pub fn priorities(&self) -> Result<Value, Error> {
        self.call(|world| async move {
            let sets = world.server.priorities().await;
            json!({ "cache_set": sets.first(), "cache_sets": sets })
        })
    }

    /// Asks for a garbage collection and does not wait for it; [`Handle::status`] tells how it goes. The answer names the
    /// sets that were asked, each with the passes it had done by then: it is over when there is one more.
    pub fn gc(&self) -> Result<Value, Error> {
        self.call(|world| async move {
            let status = world.server.status();
            if let Some(why) = no_gc_because(&status) {
                return Err(Error::new(format!("no garbage collection: {why}")));
            }
            world.server.collect();
            let running = status.cache_sets.iter().filter(|set| set.state == RUNNING);
            let asked: Vec<Value> = running
                .clone()
                .map(|set| {
                    let (passes, failed) = (set.gc.passes, set.gc.failed_passes);
                    json!({ "uuid": set.uuid, "passes": passes, "failed_passes": failed })
                })
                .collect();
            let passes: u64 = running.map(|set| set.gc.passes).sum();
            Ok(json!({ "started": true, "passes": passes, "sets": asked }))
        })?
    }

    /// Has garbage collection rest, or go on. It goes on by itself where nothing could be written otherwise.
    pub fn pause_gc(&self, is_paused: bool) -> Result<Value, Error> {
        self.call(move |world| async move {
            world.server.pause_gc(is_paused);
            json!({ "paused": is_paused })
        })
    }

    /// Begins to write all dirty data of a volume, or of all, back to the backing devices, at full speed, and does not wait for it;
    /// [`Handle::status`] tells how it goes. The answer names the volumes.
    pub fn drain(&self, volume: Option<&str>) -> Result<Value, Error> {
        let name = volume.map(str::to_owned);
        self.call(move |world| async move {
            let drained = world.server.drain(name.as_deref()).map_err(Error::new)?;
            Ok(json!({ "started": true, "volumes": names(&drained) }))
        })?
    }

    /// Ends the drain of a volume, or all drains. What was written back stays so.
    pub fn cancel_drain(&self, volume: Option<&str>) -> Result<Value, Error> {
        let name = volume.map(str::to_owned);
        self.call(move |world| async move {
            let ended = world.server.cancel_drain(name.as_deref());
            let ended = ended.map_err(Error::new)?;
            Ok(json!({ "cancelled": !ended.is_empty(), "volumes": names(&ended) }))
        })?
    }

    /// Stops in order: no new requests, running ones end, everything written. Waits for it; all callers get the outcome.
    pub fn stop(&self) -> Result<(), Error> {
        ask_to_stop(&self.0.opened.remote);
        self.wait()
    }

    /// Asks for a stop and does not wait.
    pub fn ask_to_stop(&self) {
        ask_to_stop(&self.0.opened.remote);
    }

    /// Waits until somebody has stopped it.
    pub fn wait(&self) -> Result<(), Error> {
        self.0.finish.wait()
    }

    fn check(
        &self,
        volume: usize,
        offset: u64,
        length: usize,
        is_write: bool,
    ) -> io::Result<usize> {
        let invalid = |what: String| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let Some(info) = self.volumes().get(volume) else {
            return invalid(format!("no volume {volume}"));
        };
        let block = u64::from(info.block_bytes.max(1));
        if !offset.is_multiple_of(block) || !(length as u64).is_multiple_of(block) {
            return invalid(format!(
                "offset {offset}, length {length}: no multiples of {block}"
            ));
        }
        if offset
            .checked_add(length as u64)
            .is_none_or(|end| end > info.size_bytes)
        {
            return invalid(format!(
                "offset {offset}, length {length}: beyond the end at {}",
                info.size_bytes
            ));
        }
        if is_write && info.is_read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(info.request_bytes_max.max(info.block_bytes).max(512) as usize)
    }

    fn on_volume<T, F, R>(&self, volume: usize, request: R) -> io::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = io::Result<T>> + 'static,
        R: FnOnce(Rc<Volume<HostEnv>>) -> F + Send + 'static,
    {
        self.call(move |world| async move {
            let device = world.volumes.get(volume).cloned();
            request(device.ok_or(io::ErrorKind::NotFound)?).await
        })?
    }

    /// Runs a request on the cache's thread and waits for its answer.
    pub(crate) fn call<T, F, R>(&self, request: R) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
        R: FnOnce(Rc<World>) -> F + Send + 'static,
    {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.0.opened.remote.post(Box::new(move |env: &HostEnv| {
            let Some(world) = World::current() else {
                return;
            };
            let running = world.begin();
            brigade_env::Env::spawn(env, async move {
                let _ = sender.send(request(world).await);
                drop(running);
            });
        }));
        loop {
            match receiver.recv_timeout(LOOK_AGAIN) {
                Ok(answer) => return Ok(answer),
                Err(mpsc::RecvTimeoutError::Timeout) if !self.0.finish.is_set() => {}
                Err(_) => {
                    return receiver
                        .try_recv()
                        .map_err(|_| Error::new("the cache is stopped"));
                }
            }
        }
    }
}

fn names(volumes: &[Rc<Volume<HostEnv>>]) -> Vec<String> {
    volumes.iter().map(|volume| volume.name()).collect()
}

/// State of a set that takes writes.
const RUNNING: &str = "running";

/// What keeps every set from collecting.
fn no_gc_because(status: &Status) -> Option<String> {
    if status.cache_sets.is_empty() {
        return Some("there is no cache set".into());
    }
    if status.cache_sets.iter().any(|set| set.gc.paused) {
        return Some("it is paused; `brigade gc --resume` lets it go on".into());
    }
    if status.cache_sets.iter().any(|set| set.state == RUNNING) {
        return None;
    }
    let states = status.cache_sets.iter().map(|set| {
        format!(
            "cache set {} is {}, nothing is written to it",
            set.uuid, set.state
        )
    });
    let reasons: Vec<String> = states.chain(status.errors.iter().cloned()).collect();
    Some(reasons.join("; "))
}
