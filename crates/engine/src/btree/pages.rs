//! Leaves that are away, brought back.
//!
//! ```text
//! request: range ─► all leaves here? ─ yes ─► go on in the same step
//!                        └ no ─► read the node (once for all who want it) ─► check, flatten in slices ─► here ─► look again
//! ```
//! Who wants to see or change a range waits for its leaves and acts in the step in which he sees them all here. Nobody
//! changes a leaf that is away, so what is read of it stays true until it is here. If memory is short others leave: those
//! nobody looked at lately, of which nothing is pending or being written.
//!
//! After a clean stop all leaves are away at first, and nothing is known of them. Each is counted when it comes, and one task
//! brings all of them. Until it is done no bucket is recycled.

use super::index::Index;
use super::nodes::NodeId;
use super::writer::Layout;
use crate::buckets::Buckets;
use crate::device::Disk;
use crate::error::Poison;
use crate::extents::{Ascending, Extent, Layers};
use crate::limits::{LEAF_LOADS_MAX, SECTOR, SLICE_KEYS, count_pause, leaves_here_min};
use crate::marks::{self, Mark};
use crate::steps::{Steps, Task};
use crate::times::IndexTimes;
use crate::watched::Watched;
use brigade_env::Env;
use brigade_env::sync::{Notify, Semaphore, join_all, yield_now};
use brigade_format::node::{self, RawSet};
use brigade_format::{Key, KeyRules, Pos};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Buckets taken in at once when all leaves are counted.
const COUNT_BUCKETS: usize = 256;
/// Turns of writing leaves after which one that waits for memory comes all the same.
const ROOM_TURNS: u64 = 4;
/// Time before a leaf that could not be read is tried again.
const PAUSE: Duration = Duration::from_secs(1);
/// How often it is tried before the set is given up.
const PATIENCE: usize = 10;

/// See the module documentation.
pub struct Pages<E: Env> {
    me: Weak<Pages<E>>,
    env: E,
    disk: Rc<Disk<E>>,
    poison: Rc<Poison>,
    steps: Rc<Steps>,
    layout: Layout,
    rules: KeyRules,
    index: Rc<Watched<Index>>,
    buckets: Rc<Buckets>,
    /// Memory for the index; `None` if nothing leaves it.
    bytes_max: Option<u64>,
    loading: RefCell<BTreeMap<NodeId, Rc<Load>>>,
    slots: Semaphore,
    /// Leaves went, or all are counted, or that is not waited for any more.
    freed: Notify,
    /// Turns of writing leaves that have ended.
    turns: Cell<u64>,
    /// How many had when a leaf came last although memory was short.
    let_in: Cell<u64>,
    /// Raised when leaves could go if they were written.
    pub leaf_writes_wanted: Notify,
    loads: Cell<u64>,
    waits: Cell<u64>,
    read_bytes: Cell<u64>,
    /// How long work on nodes takes.
    pub times: IndexTimes,
    is_closing: Cell<bool>,
}

/// A leaf on its way.
#[derive(Default)]
struct Load {
    ended: Notify,
    /// It does not wait for memory.
    is_urgent: Cell<bool>,
    error: RefCell<Option<(io::ErrorKind, String)>>,
}

/// A range whose leaves stay here.
struct Wanted<'a> {
    index: &'a Watched<Index>,
    number: u64,
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.index.borrow_mut().nodes.unwant(self.number);
    }
}

/// What pages need.
pub struct PagesSetup<E: Env> {
    /// The cache device.
    pub disk: Rc<Disk<E>>,
    /// Thrown when a leaf is not what it was.
    pub poison: Rc<Poison>,
    /// Where steps are timed.
    pub steps: Rc<Steps>,
    /// Sizes.
    pub layout: Layout,
    /// What keys have to be like.
    pub rules: KeyRules,
    /// What is cached.
    pub index: Rc<Watched<Index>>,
    /// Which pointers are stale.
    pub buckets: Rc<Buckets>,
    /// Memory for the index; `None` if nothing may leave it.
    pub bytes_max: Option<u64>,
}

impl<E: Env> Pages<E> {
    /// Ties the parts together.
    pub fn new(env: E, setup: PagesSetup<E>) -> Rc<Self> {
        let poison = setup.poison.clone();
        let pages = Rc::new_cyclic(|me: &Weak<Pages<E>>| Pages {
            me: me.clone(),
            env,
            disk: setup.disk,
            poison: setup.poison,
            steps: setup.steps,
            layout: setup.layout,
            rules: setup.rules,
            index: setup.index,
            buckets: setup.buckets,
            bytes_max: setup.bytes_max,
            loading: RefCell::default(),
            slots: Semaphore::new(LEAF_LOADS_MAX),
            freed: Notify::new(),
            turns: Cell::new(0),
            let_in: Cell::new(0),
            leaf_writes_wanted: Notify::new(),
            loads: Cell::new(0),
            waits: Cell::new(0),
            read_bytes: Cell::new(0),
            times: IndexTimes::default(),
            is_closing: Cell::new(false),
        });
        let weak = Rc::downgrade(&pages);
        poison.when_thrown(move || {
            if let Some(pages) = weak.upgrade() {
                pages.freed.notify_all();
            }
        });
        pages
    }

    /// Leaves read since the start, and their bytes.
    pub fn loads(&self) -> (u64, u64) {
        (self.loads.get(), self.read_bytes.get())
    }

    /// How often somebody waited for leaves.
    pub fn waits(&self) -> u64 {
        self.waits.get()
    }

    /// Leaves that have yet to be counted, and all of them.
    pub fn uncounted(&self) -> (usize, usize) {
        let nodes = &self.index.borrow().nodes;
        (nodes.uncounted(), nodes.leaf_count())
    }

    /// The time.
    pub fn now(&self) -> Duration {
        self.env.now()
    }

    /// Whether all leaves of a range are here.
    pub fn is_here(&self, inode: u32, start: u64, end: u64) -> bool {
        self.index.borrow().nodes.away(inode, start, end).is_none()
    }

    /// Brings the leaves of a range into memory. They are all here in the step in which this returns, and may leave after.
    pub async fn bring(&self, inode: u32, start: u64, end: u64) -> io::Result<()> {
        self.bring_all(inode, start, end, false).await
    }

    /// The same however short memory is, for what makes buckets free: others that hold memory may wait for these.
    pub async fn bring_urgently(&self, inode: u32, start: u64, end: u64) -> io::Result<()> {
        self.bring_all(inode, start, end, true).await
    }

    async fn bring_all(&self, inode: u32, start: u64, end: u64, is_urgent: bool) -> io::Result<()> {
        if self.is_here(inode, start, end) {
            return Ok(());
        }
        self.waits.set(self.waits.get() + 1);
        let pos = |offset| Pos { inode, offset };
        let _wanted = self.want(pos(start), pos(end));
        loop {
            let away = self.index.borrow().nodes.away(inode, start, end);
            match away {
                Some(leaf) => self.load(leaf, is_urgent).await?,
                None => return Ok(()),
            }
        }
    }

    /// Brings one leaf into memory, however short that is, unless it is no longer in the tree. For what makes others go.
    pub async fn bring_leaf(&self, leaf: NodeId) -> io::Result<()> {
        if !self.is_away(leaf) {
            return Ok(());
        }
        let (low, high) = {
            let index = self.index.borrow();
            let node = index.nodes.get(leaf);
            (node.low, node.key.pos())
        };
        let _wanted = self.want(low, high);
        while self.is_away(leaf) {
            self.load(leaf, true).await?;
        }
        Ok(())
    }

    /// Memory being short must not take a leaf before whoever waits for it has seen it.
    fn want(&self, low: Pos, high: Pos) -> Wanted<'_> {
        let number = self.index.borrow_mut().nodes.want(low, high);
        Wanted {
            index: &self.index,
            number,
        }
    }

    fn is_away(&self, leaf: NodeId) -> bool {
        self.index.borrow().nodes.is_away(leaf)
    }

    /// Lets a leaf go if memory is short; says whether one went. Those that have something pending can go once it is written,
    /// which is asked for.
    pub fn shrink(&self) -> bool {
        let durable = self.buckets.get().tables_durable();
        self.index.borrow_mut().nodes.forget_left_out(durable);
        let Some(bytes_max) = self.bytes_max else {
            return false;
        };
        let went = self
            .index
            .borrow_mut()
            .send_away(bytes_max, leaves_here_min());
        if self.is_short() {
            self.leaf_writes_wanted.notify_all();
        } else {
            self.freed.notify_all();
        }
        went
    }

    /// Lets leaves go, one at a step, until memory is not short any more.
    pub async fn shrink_all(&self) {
        while self.shrink() {
            yield_now().await;
        }
    }

    /// Leaves were written, and those went that could.
    pub fn turn_ended(&self) {
        self.turns.set(self.turns.get() + 1);
        self.freed.notify_all();
    }

    /// Whether more is here than should be, some of which could go if it were written.
    pub fn is_short(&self) -> bool {
        let index = self.index.borrow();
        let is_over = |most| index.memory_bytes() > most;
        index.nodes.dirty_count() > 0 && self.bytes_max.is_some_and(is_over)
    }

    /// Waits until a leaf may come although memory is short, as others will have gone. Where writers always have too much pending, one
    /// may come every few turns of writing that: they must not keep it away for ever.
    async fn room(&self, load: &Load) {
        let began = self.turns.get();
        let may_come = || {
            let is_free = load.is_urgent.get() || !self.is_short() || self.is_over();
            let turns = self.turns.get();
            if !is_free && turns < began.max(self.let_in.get()) + ROOM_TURNS {
                return None;
            }
            if !is_free {
                self.let_in.set(turns);
            }
            Some(())
        };
        if may_come().is_none() {
            marks::hit(Mark::BtreeLeafWaitsForMemory);
            self.leaf_writes_wanted.notify_all();
            self.freed.until(may_come).await;
        }
    }

    /// Reads a leaf, or waits for whoever reads it already. It may have left again when this returns.
    async fn load(&self, leaf: NodeId, is_urgent: bool) -> io::Result<()> {
        let load = self.begin_load(leaf);
        if is_urgent {
            load.is_urgent.set(true);
            self.freed.notify_all();
        }
        load.ended.wait().await;
        match &*load.error.borrow() {
            Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
            None => Ok(()),
        }
    }

    fn begin_load(&self, leaf: NodeId) -> Rc<Load> {
        if let Some(load) = self.loading.borrow().get(&leaf) {
            return load.clone();
        }
        let load = Rc::<Load>::default();
        self.loading.borrow_mut().insert(leaf, load.clone());
        let me = self.me.upgrade().expect("whoever calls this has it");
        let (theirs, steps) = (load.clone(), self.steps.clone());
        let work = async move {
            let result = {
                me.room(&theirs).await;
                let _slot = me.slots.acquire(1).await;
                me.read(leaf).await
            };
            if let Err(error) = result {
                tracing::warn!(device = me.disk.name(), %error, "btree node not read");
                *theirs.error.borrow_mut() = Some((error.kind(), error.to_string()));
            }
            me.loading.borrow_mut().remove(&leaf);
            theirs.ended.notify_all();
        };
        self.env.spawn(steps.timed(&self.env, Task::Leaf, work));
        load
    }

    async fn read(&self, leaf: NodeId) -> io::Result<()> {
        if !self.is_away(leaf) {
            return Ok(());
        }
        let (key, low, blocks, is_new) = {
            let nodes = &self.index.borrow().nodes;
            let node = nodes.get(leaf);
            (
                node.key,
                node.low,
                node.blocks_used,
                !nodes.is_counted(leaf),
            )
        };
        if !is_new {
            marks::hit(Mark::BtreeLeafComesBack);
        }
        let ptr = key.ptr(0).expect("a node has a place");
        let block_bytes = (self.layout.block_sectors * SECTOR) as usize;
        let bytes = match is_new {
            true => u64::from(key.size()) * SECTOR / block_bytes as u64 * block_bytes as u64,
            false => blocks * block_bytes as u64,
        };
        let began = self.env.now();
        let buffer = self.disk.read_bytes(ptr.sector(), bytes as usize).await?;
        self.times.read.record(began, self.env.now());
        self.loads.set(self.loads.get() + 1);
        self.read_bytes.set(self.read_bytes.get() + bytes);
        let wrong = |what: String| {
            let byte = ptr.sector() * SECTOR;
            let text = format!("{}: btree node at byte {byte}: {what}", self.disk.name());
            self.poison.throw(&text);
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        yield_now().await;
        let node = node::parse_sets(&buffer, block_bytes, ptr, self.layout.set_magic)
            .map_err(|error| wrong(error.to_string()))?;
        if is_new {
            self.first_seen(leaf, &node);
        } else {
            let known = self.known_of(leaf);
            if (node.seq, node.blocks_used as u64) != known {
                let (seq, blocks) = (node.seq, node.blocks_used);
                return Err(wrong(format!(
                    "{blocks} blocks of seq {seq:016x}, but {known:?} were written"
                )));
            }
        }
        let mut layers = Layers::default();
        let left_out = self.index.borrow().nodes.left_out_of(leaf).to_vec();
        if !left_out.is_empty() {
            marks::hit(Mark::BtreeLeftOutComesBack);
        }
        // It lies under what was appended since, and beside all else.
        layers.push(left_out);
        for set in node.sets {
            yield_now().await;
            let run = self.run_of(set, &buffer, (low, key.pos()), is_new).await;
            let run = run.map_err(wrong)?;
            yield_now().await;
            layers.push(run);
        }
        drop(buffer);
        yield_now().await;
        let extents = layers.finish();
        let mut live = Ascending::with_capacity(extents.len());
        for some in extents.chunks(SLICE_KEYS) {
            yield_now().await;
            self.take_in(some, &mut live, is_new).map_err(wrong)?;
        }
        drop(extents);
        yield_now().await;
        let dirty_sectors = live.dirty_sectors();
        let content = live.into_map();
        yield_now().await;
        {
            let mut index = self.index.borrow_mut();
            index.arrive(&self.buckets.get(), leaf, content, dirty_sectors);
        }
        self.shrink_all().await;
        Ok(())
    }

    fn known_of(&self, leaf: NodeId) -> (u64, u64) {
        let index = self.index.borrow();
        let node = index.nodes.get(leaf);
        (node.seq, node.blocks_used)
    }

    /// Nothing was known of the leaf but where it is.
    fn first_seen(&self, leaf: NodeId, node: &node::RawNode) {
        let mut index = self.index.borrow_mut();
        let known = index.nodes.get_mut(leaf);
        (known.seq, known.blocks_used) = (node.seq, node.blocks_used as u64);
        // A kernel takes version 0 sets only as long as the node's sets all are.
        known.rewrite_wanted |= node.sets.iter().any(|set| set.version == 0);
    }

    /// Adds what may be live of some extents to a leaf's content, and counts it if that was not done before.
    fn take_in(&self, some: &[Extent], live: &mut Ascending, is_new: bool) -> Result<(), String> {
        let mut index = self.index.borrow_mut();
        let mut alloc = self.buckets.get_mut();
        for extent in some {
            let Some(ptr) = extent.ptr else { continue };
            let is_stale = alloc.is_stale(ptr);
            // What a crash may bring back is kept, but for what was not there when the set was opened.
            if alloc.is_stale_durably(ptr) || is_stale && (is_new || extent.dirty) {
                continue;
            }
            if is_new {
                index.count(&mut alloc, extent)?;
            } else if !is_stale && !alloc.is_current(ptr) {
                return Err(format!("{ptr:?} is newer than its bucket"));
            }
            live.push(extent);
        }
        Ok(())
    }

    /// Looks at every leaf once, so that everything is counted and buckets can be recycled.
    pub async fn count_all(self: Rc<Self>) {
        let leaves = self.index.borrow().nodes.leaves();
        let at_once = match count_pause().is_zero() {
            true => LEAF_LOADS_MAX,
            false => 1,
        };
        for some in leaves.chunks(at_once) {
            if !count_pause().is_zero() {
                self.env.sleep(count_pause()).await;
            }
            let uncounted: Vec<_> = {
                let nodes = &self.index.borrow().nodes;
                let is_new = |id: &NodeId| nodes.is_live(*id) && !nodes.is_counted(*id);
                some.iter().copied().filter(is_new).collect()
            };
            let mut patience = PATIENCE;
            while let Err(error) = self.bring_leaves(&uncounted).await {
                tracing::warn!(%error, "not all btree leaves are counted, so nothing can be recycled");
                if self.is_over() {
                    return;
                }
                patience -= 1;
                if patience == 0 {
                    // Others may wait for buckets for ever.
                    self.poison.throw(error);
                    return;
                }
                self.env.sleep(PAUSE).await;
            }
            if self.is_over() {
                return;
            }
        }
        while !self.buckets.get_mut().finish_counting(COUNT_BUCKETS) {
            yield_now().await;
        }
        self.buckets.is_dry.set(false);
        self.buckets.demand.notify_all();
        self.buckets.released.notify_all();
        self.freed.notify_all();
    }

    /// Waits until all leaves are counted, or never will be.
    pub async fn counted(&self) {
        let is_over = || (self.is_over() || !self.buckets.get().is_counting()).then_some(());
        self.freed.until(is_over).await;
    }

    async fn bring_leaves(&self, leaves: &[NodeId]) -> io::Result<()> {
        let brought = join_all(leaves.iter().map(|id| self.bring_leaf(*id))).await;
        brought.into_iter().collect()
    }

    /// Lets the task that counts end.
    pub fn stop(&self) {
        self.is_closing.set(true);
        self.freed.notify_all();
    }

    fn is_over(&self) -> bool {
        self.is_closing.get() || self.poison.is_thrown()
    }

    /// A set as extents. It was found good when the set was opened, or written since.
    async fn run_of(
        &self,
        mut set: RawSet,
        bytes: &[u8],
        (low, high): (Pos, Pos),
        is_new: bool,
    ) -> Result<Vec<Extent>, String> {
        let mut run: Vec<Extent> = Vec::with_capacity(set.keys_at_most());
        loop {
            let some = set.keys(bytes, SLICE_KEYS);
            let some = some.map_err(|error| error.to_string())?;
            if some.is_empty() {
                return Ok(run);
            }
            for key in some.iter().filter(|key| key.size() > 0) {
                let extent = self.extent_of(key, low, high)?;
                if let Some(last) = run.last()
                    && (last.inode, last.end) > (extent.inode, extent.start)
                {
                    return Err(format!("{extent:?} does not follow {last:?}"));
                }
                run.push(extent);
            }
            if is_new {
                let mut alloc = self.buckets.get_mut();
                let checked = some.iter().filter(|key| key.size() > 0);
                let pointers = checked.flat_map(|key| key.ptr(0));
                for ptr in pointers.filter(|ptr| ptr.is_available()) {
                    alloc.count_pointer(ptr)?;
                }
            }
            yield_now().await;
        }
    }

    fn extent_of(&self, key: &Key, low: Pos, high: Pos) -> Result<Extent, String> {
        self.rules
            .check_extent(key)
            .map_err(|error| error.to_string())?;
        let extent = Extent::from_key(key).ok_or("a key of an impossible range")?;
        let start = Pos {
            inode: extent.inode,
            offset: extent.start,
        };
        if key.ptr_count() > 1 || start < low || key.pos() > high {
            return Err(format!("{extent:?} does not belong there"));
        }
        Ok(extent)
    }
}
