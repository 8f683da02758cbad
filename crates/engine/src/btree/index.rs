//! The index in memory: what is cached where, per sector, and which leaf has yet to be told.
//!
//! It is one ordered map for each leaf, of which those that were not looked at lately may be away, on disk only. Changing
//! it is one synchronous step: the map, the bucket counters, the dirty counters and the leaf's pending set change together.

use super::nodes::{NodeId, Nodes};
use super::stripes::{StripeLayout, Stripes};
use crate::alloc::Allocator;
use crate::extents::{EXTENT_BYTES, Extent, ExtentMap, Merge};
use brigade_format::BucketNr;
use std::collections::BTreeMap;
use std::time::Duration;

/// See the module documentation.
pub struct Index {
    /// The tree, whose leaves say what is cached.
    pub nodes: Nodes,
    dirty_sectors: BTreeMap<u32, u64>,
    /// Of volumes whose backing devices are better off with whole ones.
    stripes: BTreeMap<u32, Stripes>,
    bucket_sectors: u32,
    /// Extents in memory, pending ones not counted.
    here: usize,
    /// Extents of all leaves, as far as is known.
    extents: usize,
}

/// Where a change goes besides memory.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// Journal entry that has it; `None` for a fill, which only the leaf will know.
    pub seq: Option<u64>,
    /// Now.
    pub now: Duration,
}

impl Index {
    /// An index over a map and its tree as found at open. No extent crosses a leaf's boundary.
    pub fn new(map: ExtentMap, mut nodes: Nodes, bucket_sectors: u32) -> Self {
        let mut dirty_sectors = BTreeMap::new();
        for extent in map.iter().filter(|extent| extent.dirty) {
            *dirty_sectors.entry(extent.inode).or_insert(0) += extent.sectors();
        }
        let extents = map.len();
        let mut rest = map;
        for id in nodes.leaves() {
            if !nodes.is_counted(id) {
                continue;
            }
            let leaf = nodes.get_mut(id);
            let behind = rest.split_off(leaf.key.pos());
            let mine = std::mem::replace(&mut rest, behind);
            let dirty = mine.dirty_sectors();
            leaf.hold(mine, dirty);
        }
        Index {
            nodes,
            dirty_sectors,
            stripes: BTreeMap::new(),
            bucket_sectors,
            here: extents,
            extents,
        }
    }

    /// An index of which nothing is here: leaves are counted, with what they have yet to be told ([`Index::tell`]).
    pub fn away(nodes: Nodes, dirty_sectors: BTreeMap<u32, u64>, bucket_sectors: u32) -> Self {
        let leaves = nodes.leaves().into_iter();
        let extents = leaves.map(|id| nodes.get(id).extents).sum();
        Index {
            nodes,
            dirty_sectors,
            stripes: BTreeMap::new(),
            bucket_sectors,
            here: 0,
            extents,
        }
    }

    /// Tells a leaf that is here what was counted as if it had it already. Gives the journal entry to pin, if it now needs it.
    pub fn tell(&mut self, leaf: NodeId, extents: &[Extent], change: Change) -> Vec<u64> {
        let node = self.nodes.get_mut(leaf);
        let content = node.content.as_mut().expect("brought before");
        let before = content.len();
        for extent in extents {
            content.insert(*extent, Merge::BOTH, self.bucket_sectors, |_| ());
        }
        let after = content.len();
        node.extents = after;
        self.here = self.here + after - before;
        self.extents = self.extents + after - before;
        let told = extents
            .iter()
            .flat_map(|extent| self.add_pending(*extent, change));
        told.collect()
    }

    /// Dirty sectors of a volume.
    pub fn dirty_sectors(&self, inode: u32) -> u64 {
        self.dirty_sectors.get(&inode).copied().unwrap_or(0)
    }

    /// Has stripes of a volume counted, in another way, or not any more. They begin with nothing known ([`Index::count_stripes`]),
    /// unless only the device's end is another.
    pub fn set_stripes(&mut self, inode: u32, layout: Option<StripeLayout>) {
        let Some(layout) = layout else {
            self.stripes.remove(&inode);
            return;
        };
        if let Some(stripes) = self.stripes.get_mut(&inode) {
            let now = stripes.layout();
            if (now.sectors, now.range.0) == (layout.sectors, layout.range.0) {
                return stripes.resize(layout.range.1);
            }
        }
        self.stripes.insert(inode, Stripes::new(layout));
    }

    /// Stripes of a volume, if they are counted.
    pub fn stripes(&self, inode: u32) -> Option<&Stripes> {
        self.stripes.get(&inode)
    }

    /// The same, to be taken.
    pub fn stripes_mut(&mut self, inode: u32) -> Option<&mut Stripes> {
        self.stripes.get_mut(&inode)
    }

    /// Counts what is dirty into stripes, up to a sector or for so many extents, of which those in many stripes count for each. All leaves
    /// from where they are counted to there are here, or have nothing dirty.
    pub fn count_stripes(&mut self, inode: u32, mut to: u64, most: usize) {
        let Some(stripes) = self.stripes.get_mut(&inode) else {
            return;
        };
        let from = stripes.counted_to();
        let leaves = self.nodes.leaves_of(inode, from, to);
        let leaves = leaves.filter(|id| self.nodes.get(*id).dirty_sectors > 0);
        let (mut some, mut work) = (Vec::new(), 0);
        for extent in leaves.flat_map(|id| self.nodes.content(id).range(inode, from, to)) {
            if work >= most {
                to = extent.start;
                break;
            }
            work += 1 + (extent.sectors() / stripes.layout().sectors) as usize;
            if extent.dirty {
                some.push((extent.start, extent.end));
            }
        }
        stripes.count(to, some.into_iter());
    }

    /// Extents of all leaves, those that are away too.
    pub fn extents(&self) -> usize {
        self.extents
    }

    /// What is cached of a range, ascending, cut at leaf boundaries. Its leaves are here.
    pub fn range(&self, inode: u32, start: u64, end: u64) -> impl Iterator<Item = Extent> + '_ {
        self.nodes
            .leaves_of(inode, start, end)
            .flat_map(move |id| self.nodes.content(id).range(inode, start, end))
    }

    /// Lays an extent or hole over what is there, whose leaves are here. Gives the journal entry to pin, if a leaf now needs
    /// it.
    pub fn insert(&mut self, alloc: &mut Allocator, extent: Extent, change: Change) -> Vec<u64> {
        let mut pins = Vec::new();
        let mut at = extent.start;
        while at < extent.end {
            let (leaf, leaf_end) = self.nodes.leaf_of(extent.inode, at);
            let piece = extent.slice(at, extent.end.min(leaf_end));
            at = piece.end;
            self.insert_piece(alloc, leaf, piece);
            if self
                .nodes
                .add_pending(leaf, piece, self.bucket_sectors, change.seq, change.now)
            {
                pins.extend(change.seq);
            }
        }
        pins
    }

    fn insert_piece(&mut self, alloc: &mut Allocator, leaf: NodeId, piece: Extent) {
        let bucket_sectors = self.bucket_sectors;
        self.change(leaf, piece.inode, |content, mut stripes| {
            let mut dirty = 0;
            content.insert(piece, Merge::BOTH, bucket_sectors, |removed| {
                let Some(ptr) = removed.ptr else { return };
                if removed.dirty {
                    dirty -= removed.sectors() as i64;
                    if let Some(stripes) = &mut stripes {
                        stripes.sub(removed.start, removed.end);
                    }
                }
                alloc.sub_live(ptr, removed.sectors() as u32, removed.dirty);
            });
            if let Some(ptr) = piece.ptr {
                if piece.dirty {
                    dirty += piece.sectors() as i64;
                    if let Some(stripes) = &mut stripes {
                        stripes.add(piece.start, piece.end);
                    }
                }
                alloc.add_live(ptr, piece.sectors() as u32, piece.dirty);
            }
            dirty
        });
    }

    /// Changes what a leaf says of a volume, and all that is counted of it. `how` gives by how much its dirty sectors change, and has
    /// told its stripes.
    fn change(
        &mut self,
        leaf: NodeId,
        inode: u32,
        how: impl FnOnce(&mut ExtentMap, Option<&mut Stripes>) -> i64,
    ) {
        let node = self.nodes.get_mut(leaf);
        let content = node.content.as_mut().expect("brought before");
        let before = content.len();
        let dirty = how(content, self.stripes.get_mut(&inode));
        let after = content.len();
        node.extents = after;
        node.dirty_sectors = node.dirty_sectors.wrapping_add_signed(dirty);
        self.here = self.here + after - before;
        self.extents = self.extents + after - before;
        let of_volume = self.dirty_sectors.entry(inode).or_default();
        *of_volume = of_volume.wrapping_add_signed(dirty);
    }

    /// What a leaf says, read back from disk, and how much of it is dirty.
    pub fn arrive(
        &mut self,
        alloc: &Allocator,
        leaf: NodeId,
        content: ExtentMap,
        dirty_sectors: u64,
    ) {
        let len = content.len();
        if let Some(shadow) = self.nodes.get_mut(leaf).shadow.take() {
            let said = |map: &ExtentMap| self.normal(alloc, map);
            assert_eq!(
                said(&content),
                said(&shadow),
                "what comes back is what went"
            );
        }
        self.extents = self.extents + len - self.nodes.get(leaf).extents;
        self.here += len;
        self.nodes.arrive(leaf, content, dirty_sectors);
    }

    /// What is live, or would be after a crash, in as few extents as it takes.
    fn normal(&self, alloc: &Allocator, map: &ExtentMap) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        let counts = |extent: &Extent| extent.ptr.is_some_and(|ptr| !alloc.is_stale_durably(ptr));
        for extent in map.iter().filter(counts) {
            match extents.last_mut() {
                Some(last) if last.can_merge(&extent, self.bucket_sectors) => last.end = extent.end,
                _ => extents.push(extent),
            }
        }
        extents
    }

    /// A leaf that is looked at for the first time holds this live extent. Fails if that contradicts what is known.
    pub fn count(&mut self, alloc: &mut Allocator, extent: &Extent) -> Result<(), String> {
        let Some(ptr) = extent.ptr else { return Ok(()) };
        alloc.count_live(ptr, extent.sectors() as u32, extent.dirty)?;
        if extent.dirty {
            *self.dirty_sectors.entry(extent.inode).or_default() += extent.sectors();
        }
        Ok(())
    }

    /// Lets a leaf that nobody looked at lately go if more than so many bytes are taken, and more than `least` are here.
    /// Says whether one went.
    pub fn send_away(&mut self, bytes_max: u64, least: usize) -> bool {
        if self.memory_bytes() <= bytes_max || self.nodes.here_count() <= least {
            return false;
        }
        let Some(leaf) = self.nodes.send_away() else {
            return false;
        };
        self.here -= self.nodes.get(leaf).extents;
        true
    }

    /// New leaves, in order, take over what old ones say and have pending. Their pins are theirs; gives the further ones, and
    /// calls `unpin` for those that are too many.
    pub(super) fn hand_over(
        &mut self,
        olds: &[NodeId],
        news: &[NodeId],
        mut unpin: impl FnMut(u64),
    ) -> Vec<u64> {
        let (mut content, mut pending) = (ExtentMap::new(), ExtentMap::keeping_holes());
        let (mut pin, mut since) = (None, None);
        let mut dirty = 0;
        for &old in olds {
            let node = self.nodes.get_mut(old);
            content.append(&mut node.content.take().expect("brought before"));
            dirty += node.dirty_sectors;
            self.extents -= node.extents;
            self.here -= node.extents;
            let its_since = node.pending_since;
            let (mut its_pending, its_pin) = self.nodes.take_pending(old);
            pending.append(&mut its_pending);
            since = [since, its_since].into_iter().flatten().min();
            // The older of two entries is held, which holds the other, too.
            let (kept, given) = match (pin, its_pin) {
                (Some(a), Some(b)) => (Some(std::cmp::min(a, b)), Some(std::cmp::max(a, b))),
                (a, b) => (a.or(b), None),
            };
            given.into_iter().for_each(&mut unpin);
            pin = kept;
        }
        let mut pins = Vec::new();
        for (i, &new) in news.iter().enumerate() {
            let pos = self.nodes.get(new).key.pos();
            let (behind, pending_behind) = (content.split_off(pos), pending.split_off(pos));
            let mine = std::mem::replace(&mut content, behind);
            self.extents += mine.len();
            self.here += mine.len();
            // Counting takes time, so the last one has what is left.
            let of_this = match i + 1 == news.len() {
                true => dirty,
                false => mine.dirty_sectors(),
            };
            dirty -= of_this;
            self.nodes.get_mut(new).hold(mine, of_this);
            let mine = std::mem::replace(&mut pending, pending_behind);
            if self.nodes.take_over_pending(new, mine, pin, since) {
                pins.extend(pin);
            }
        }
        // One of them goes on with the pin that there is.
        pins.pop();
        assert!(content.is_empty() && pending.is_empty(), "TREE-1");
        pins
    }

    /// Tells the leaves something that the map has already. Gives the journal entry to pin, once for each leaf that now
    /// needs it.
    pub fn add_pending(&mut self, extent: Extent, change: Change) -> Vec<u64> {
        let mut pins = Vec::new();
        let mut at = extent.start;
        while at < extent.end {
            let (leaf, leaf_end) = self.nodes.leaf_of(extent.inode, at);
            let piece = extent.slice(at, extent.end.min(leaf_end));
            at = piece.end;
            if self
                .nodes
                .add_pending(leaf, piece, self.bucket_sectors, change.seq, change.now)
            {
                pins.extend(change.seq);
            }
        }
        pins
    }

    /// Live extents of a range, ascending; stale ones are left out.
    pub fn live(&self, alloc: &Allocator, inode: u32, start: u64, end: u64) -> Vec<Extent> {
        let is_live = |extent: &Extent| extent.ptr.is_some_and(|ptr| !alloc.is_stale(ptr));
        self.range(inode, start, end).filter(is_live).collect()
    }

    /// Live extents of a range, and those stale ones that a crash may make live again, since the gen that made them
    /// stale is not durable yet.
    pub fn revivable(&self, alloc: &Allocator, inode: u32, start: u64, end: u64) -> Vec<Extent> {
        let is_there = |extent: &Extent| extent.ptr.is_some_and(|ptr| !alloc.is_stale_durably(ptr));
        self.range(inode, start, end).filter(is_there).collect()
    }

    /// Parts of a range that hold nothing live.
    pub fn absent(&self, alloc: &Allocator, inode: u32, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = start;
        for extent in self.live(alloc, inode, start, end) {
            if at < extent.start {
                gaps.push((at, extent.start));
            }
            at = extent.end;
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }

    /// Forgets stale extents of a leaf, so that they take no memory. Those that a crash may revive stay.
    pub fn purge_stale(&mut self, alloc: &Allocator, leaf: NodeId, extents: &[Extent]) {
        for extent in extents {
            if extent.ptr.is_some_and(|ptr| alloc.is_stale_durably(ptr)) {
                assert!(!extent.dirty, "a bucket with dirty data is not recycled");
                self.change(leaf, extent.inode, |content, _| {
                    content.remove(extent.inode, extent.start, extent.end, |_| ());
                    0
                });
            }
        }
    }

    /// Recounts and compares everything, slowly; panics with what does not hold. Where leaves are away without a trace it can
    /// only look at what is pending.
    pub fn audit(&self, alloc: &Allocator) {
        self.nodes.audit();
        if self.nodes.uncounted() > 0 {
            return self.audit_pending(alloc);
        }
        let mut dirty: BTreeMap<u32, u64> = BTreeMap::new();
        let mut live: BTreeMap<BucketNr, (u32, u32)> = BTreeMap::new();
        let (mut here, mut extents) = (0, 0);
        for id in self.nodes.leaves() {
            let leaf = self.nodes.get(id);
            let Some(content) = leaf.content.as_ref().or(leaf.shadow.as_ref()) else {
                return self.audit_pending(alloc);
            };
            content.check();
            assert_eq!(content.len(), leaf.extents, "extents of a leaf");
            extents += content.len();
            here += leaf.content.as_ref().map_or(0, ExtentMap::len);
            let mut of_leaf = 0;
            for extent in content.iter() {
                let (at, leaf_end) = self.nodes.leaf_of(extent.inode, extent.start);
                assert!(at == id && extent.end <= leaf_end, "TREE-1: {extent:?}");
                let sectors = extent.sectors();
                if extent.dirty {
                    *dirty.entry(extent.inode).or_default() += sectors;
                    of_leaf += sectors;
                }
                if let Some(ptr) = extent.ptr.filter(|ptr| !alloc.is_stale(*ptr)) {
                    let of_bucket = live.entry(ptr.bucket(self.bucket_sectors)).or_default();
                    of_bucket.0 += sectors as u32;
                    of_bucket.1 += if extent.dirty { sectors as u32 } else { 0 };
                }
            }
            assert_eq!(leaf.dirty_sectors, of_leaf, "dirty sectors of a leaf");
        }
        assert_eq!((here, extents), (self.here, self.extents), "extents");
        for (inode, sectors) in &self.dirty_sectors {
            let recount = dirty.get(inode).copied().unwrap_or(0);
            assert_eq!(*sectors, recount, "dirty sectors of inode {inode}");
        }
        for (inode, stripes) in &self.stripes {
            let maps = self.nodes.leaves().into_iter().filter_map(|id| {
                let leaf = self.nodes.get(id);
                leaf.content.as_ref().or(leaf.shadow.as_ref())
            });
            let extents = maps.flat_map(ExtentMap::iter);
            let dirty = extents.filter(|extent| extent.dirty && extent.inode == *inode);
            stripes.audit(dirty.map(|extent| (extent.start, extent.end)));
        }
        for nr in alloc.bucket_numbers() {
            let recount = live.get(&nr).copied().unwrap_or((0, 0));
            assert_eq!(alloc.live_of(nr), recount, "ALLOC-4: {nr:?}");
        }
        self.audit_pending(alloc);
    }

    /// TREE-2: what a leaf has yet to be told is what it says in memory.
    fn audit_pending(&self, alloc: &Allocator) {
        for id in self.nodes.dirty() {
            for told in self.nodes.get(id).pending.iter() {
                let is_stale = |ptr| alloc.is_stale(ptr);
                if told.ptr.is_some_and(is_stale) {
                    continue;
                }
                let mut at = told.start;
                for has in self.range(told.inode, told.start, told.end) {
                    assert_eq!(has, told.slice(has.start, has.end), "TREE-2: {told:?}");
                    at = if has.start == at { has.end } else { at };
                }
                let is_whole = told.ptr.is_none() || at == told.end;
                assert!(is_whole, "TREE-2: {told:?} ends at {at}");
            }
        }
    }

    /// Memory it takes, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let nodes = self.nodes.count() * size_of::<super::nodes::Node>();
        let extents = self.here + self.nodes.pending_keys() + self.nodes.left_out();
        let stripes: usize = self.stripes.values().map(Stripes::memory_bytes).sum();
        (extents * EXTENT_BYTES + nodes + stripes) as u64
    }
}
