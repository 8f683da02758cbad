//! Backing devices without a cache, behind the engine's face.

use brigade_env::{
    BlockDevice, BlockSizes, Buffer, Device, Durability, Env, Exports, SECTOR_BYTES, StatusExtent,
    StreamId,
};
use brigade_format::superblock::{BackingState, CacheMode, Role, Superblock};
use serde_json::{Value, json};
use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::io;
use std::rc::Rc;

/// When a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AckPolicy {
    /// Once it survives the death of this process.
    Memory,
    /// Once its index entry is in the journal.
    Journal,
}

/// How to open.
#[derive(Clone, Debug)]
pub struct Options {
    /// Write nothing.
    pub read_only: bool,
    /// Cache mode from now on.
    pub mode: Option<CacheMode>,
    /// Memory for the index.
    pub memory_bytes: u64,
    /// When a write is acknowledged.
    pub ack: AckPolicy,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            read_only: false,
            mode: None,
            memory_bytes: 4 << 30,
            ack: AckPolicy::Memory,
        }
    }
}

/// Why it could not be opened: one line.
#[derive(Clone, Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Everything one process serves.
pub struct Server<E: Env> {
    volumes: Vec<Rc<Volume<E>>>,
}

impl<E: Env> Server<E> {
    /// Opens everything or nothing.
    pub async fn open(
        env: E,
        caches: Vec<E::Device>,
        backings: Vec<E::Device>,
        _survivor: impl Fn(&str) -> Option<E::Survivor>,
        options: Options,
    ) -> Result<Rc<Self>, Error> {
        if let Some(cache) = caches.first() {
            return Err(Error(format!(
                "{}: cache set: this build serves backing devices alone",
                cache.name()
            )));
        }
        let mut volumes = Vec::new();
        for (index, device) in backings.into_iter().enumerate() {
            volumes.push(Rc::new(
                Volume::open(&env, device, index, options.read_only).await?,
            ));
        }
        Ok(Rc::new(Server { volumes }))
    }

    /// What it is doing.
    pub fn status(&self) -> Value {
        let volumes: Vec<Value> = self.volumes.iter().map(|v| v.status_json()).collect();
        json!({ "cache_set": null, "volumes": volumes, "errors": [] })
    }

    /// Makes everything durable.
    pub async fn stop(&self) -> Result<(), Error> {
        for volume in self.volumes.iter().filter(|v| !v.is_read_only) {
            volume
                .device
                .flush()
                .await
                .map_err(|e| Error(format!("{}: flush: {e}", volume.device.name())))?;
        }
        Ok(())
    }

    /// The volumes, the default one first.
    pub fn volumes(&self) -> Vec<Rc<Volume<E>>> {
        self.volumes.clone()
    }

    /// What was found that does not matter for serving.
    pub fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

impl<E: Env> Exports for Server<E> {
    type Device = Volume<E>;

    fn find(&self, name: &str) -> Option<Rc<Volume<E>>> {
        if name.is_empty() {
            return self.volumes.first().cloned();
        }
        self.volumes
            .iter()
            .find(|v| v.name == name || v.label == name)
            .cloned()
    }

    fn names(&self) -> Vec<String> {
        let names = self
            .volumes
            .iter()
            .flat_map(|v| [v.name.clone(), v.label.clone()]);
        names.filter(|name| !name.is_empty()).collect()
    }
}

/// A backing device passed through.
pub struct Volume<E: Env> {
    env: E,
    device: Rc<E::Device>,
    name: String,
    label: String,
    uuid: String,
    start_bytes: u64,
    size_bytes: u64,
    is_read_only: bool,
    reads: Cell<u64>,
    writes: Cell<u64>,
}

impl<E: Env> Volume<E> {
    async fn open(
        env: &E,
        device: E::Device,
        index: usize,
        read_only: bool,
    ) -> Result<Self, Error> {
        let wrong = |what: String| {
            Error(format!(
                "{}: superblock at byte 4096: {what}",
                device.name()
            ))
        };
        let geometry = device.geometry();
        let sectors = geometry.size_bytes / SECTOR_BYTES;
        let bytes = device
            .read(4096, env.buffers().get(4096))
            .await
            .map_err(|e| wrong(e.to_string()))?;
        let superblock = Superblock::parse(&bytes).map_err(|e| wrong(e.to_string()))?;
        if superblock.role() != Role::Backing {
            return Err(wrong("not a backing device".into()));
        }
        let offset = superblock
            .backing_data_offset(sectors, geometry.logical_block_bytes)
            .map_err(|e| wrong(e.to_string()))?;
        if superblock.state() == BackingState::Dirty {
            return Err(wrong(
                "has dirty data in its cache; name the cache device as well".into(),
            ));
        }
        Ok(Volume {
            env: env.clone(),
            name: format!("volume{index}"),
            label: superblock.label(),
            uuid: uuid_text(&superblock),
            start_bytes: offset * SECTOR_BYTES,
            size_bytes: (sectors - offset) * SECTOR_BYTES,
            is_read_only: read_only || geometry.is_read_only,
            device: Rc::new(device),
            reads: Cell::new(0),
            writes: Cell::new(0),
        })
    }

    fn status_json(&self) -> Value {
        json!({
            "name": self.name, "uuid": self.uuid, "mode": "none", "state": "none",
            "size_bytes": self.size_bytes, "dirty_bytes": 0,
            "reads": { "hits": 0, "misses": 0, "bypassed": self.reads.get(), "hit_bytes": 0 },
            "writes": { "bypassed": self.writes.get() },
        })
    }
}

fn uuid_text(superblock: &Superblock) -> String {
    superblock.uuid.iter().map(|b| format!("{b:02x}")).collect()
}

impl<E: Env> BlockDevice for Volume<E> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn block_sizes(&self) -> BlockSizes {
        BlockSizes {
            minimum: 512,
            preferred: 4096,
            maximum: 32 << 20,
        }
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    fn description(&self) -> String {
        format!("{} (passed through)", self.device.name())
    }

    fn buffer(&self, length: usize) -> Buffer {
        self.env.buffers().get(length)
    }

    fn read(
        &self,
        _: StreamId,
        offset: u64,
        length: usize,
    ) -> impl Future<Output = io::Result<Buffer>> + 'static {
        self.reads.set(self.reads.get() + 1);
        self.device
            .read(self.start_bytes + offset, self.buffer(length))
    }

    fn write(
        &self,
        _: StreamId,
        offset: u64,
        buffer: Buffer,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        self.writes.set(self.writes.get() + 1);
        let durability = if fua {
            Durability::Durable
        } else {
            Durability::Volatile
        };
        let write = self
            .device
            .write(self.start_bytes + offset, buffer, durability);
        async move { write.await.map(drop) }
    }

    fn flush(&self) -> impl Future<Output = io::Result<()>> + 'static {
        self.device.flush()
    }

    fn discard(
        &self,
        offset: u64,
        length: u64,
        _: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        self.device.discard(self.start_bytes + offset, length)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        may_unmap: bool,
        _only_if_fast: bool,
        fua: bool,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        let device = self.device.clone();
        let at = self.start_bytes + offset;
        async move {
            device.write_zeroes(at, length, may_unmap).await?;
            if fua { device.flush().await } else { Ok(()) }
        }
    }

    fn prefetch(
        &self,
        _: StreamId,
        _: u64,
        _: u64,
    ) -> impl Future<Output = io::Result<()>> + 'static {
        std::future::ready(Ok(()))
    }

    fn status(
        &self,
        _: u64,
        length: u64,
        _: usize,
    ) -> impl Future<Output = io::Result<Vec<StatusExtent>>> + 'static {
        std::future::ready(Ok(vec![StatusExtent {
            length,
            is_hole: false,
            cache_state: 0,
        }]))
    }
}
