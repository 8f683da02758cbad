//! What the index says after replay, sector by sector: leaves in order, each merged from its sets, with the replayed keys
//! laid over by the table in `docs/format.md` 8.5.

use super::chain::Chain;
use super::cover::{Cover, Piece};
use super::devices::Cache;
use super::nodes::{self, Spot, keys_of};
use super::replay::{Locations, Overlay, location, piece_of};
use super::ring::Replayed;
use brigade_format::{Key, Node, Pos, Ptr};

/// A run of cached sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Slot of its volume.
    pub inode: u32,
    /// First sector; of the raw device if it is a backing device's.
    pub start: u64,
    /// How many.
    pub sectors: u64,
    /// Where they lie on the cache device.
    pub ptr: Ptr,
    /// Whether only the cache has them.
    pub dirty: bool,
}

impl Extent {
    /// One past the last sector.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.sectors)
    }
}

/// Where an extent was found.
#[derive(Clone, Copy)]
pub(super) enum Origin {
    /// In a leaf, with the key's byte on the device.
    Leaf(Spot, u64),
    /// In the journal, by number among the replayed keys.
    Journal(u32),
}

/// What is met on the way.
pub(super) enum Event {
    /// Cached.
    Live(Extent, Origin),
    /// Stale and dirty, and nothing newer: the data is gone.
    Lost(Extent, Origin),
    /// Stale and dirty by replay alone: as a rule written back before.
    Cleaned(Extent, Origin),
    /// Live and dirty in the tree, under a replayed key that is stale and dirty.
    Kept {
        extent: Extent,
        /// The key over it, and the place it names.
        replayed: u32,
        replayed_ptr: Ptr,
        /// The leaf shows that the replayed key is the older one.
        is_proved: bool,
    },
    /// A leaf key too far behind its bucket.
    TooStale {
        key: Key,
        staleness: u8,
        origin: Origin,
        is_hidden: bool,
    },
}

/// Keys further behind are refused by a kernel.
pub(super) const STALE_MAX: u8 = 96;

/// How many keys are searched for proofs in all.
const PROOF_KEYS_MAX: usize = 50_000_000;

/// What a key is for its sectors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Nothing,
    Live,
    Stale,
}

fn state(chain: &Chain, key: &Key) -> State {
    if key.ptr_count() == 0 || key.ptrs().any(|ptr| !ptr.is_available()) {
        State::Nothing
    } else if chain.key_staleness(key) > 0 {
        State::Stale
    } else {
        State::Live
    }
}

/// A key of the leaf in hand.
struct LeafKey {
    key: Key,
    set: usize,
    at: u64,
    is_seen: bool,
}

/// A part of a leaf's key that is effective, with what it is.
#[derive(Clone, Copy)]
struct Below {
    piece: Piece,
    state: State,
    is_dirty: bool,
}

/// Walks the tree and gives events in the order of positions.
pub(super) struct Effective<'a, 'b> {
    pub cache: &'a Cache<'b>,
    pub replayed: &'a [Replayed],
    pub overlay: &'a mut Overlay,
    pub locations: Option<Locations>,
    pub proof_keys_left: usize,
}

impl<'a, 'b> Effective<'a, 'b> {
    pub fn new(
        cache: &'a Cache<'b>,
        replayed: &'a [Replayed],
        overlay: &'a mut Overlay,
    ) -> Effective<'a, 'b> {
        overlay.rewind();
        Effective {
            cache,
            replayed,
            overlay,
            locations: None,
            proof_keys_left: PROOF_KEYS_MAX,
        }
    }

    /// Goes through everything.
    pub fn run(
        &mut self,
        root: Spot,
        chain: &mut Chain,
        leaf: &mut dyn FnMut(),
        sink: &mut dyn FnMut(&Chain, Event),
    ) {
        nodes::walk(self.cache, root, chain, &mut |chain, spot, node| {
            if let Ok(node) = node {
                leaf();
                if spot.level == 0 {
                    self.leaf(chain, spot, node, &mut |event| sink(chain, event));
                }
            }
        });
        // Nothing of the tree lies behind its last leaf.
        let mut rest = Leaf::empty(root);
        while let Some(piece) = self.overlay.up_to(Pos::new(u32::MAX, u64::MAX)) {
            self.over(chain, &mut rest, piece, &mut |event| sink(chain, event));
        }
    }

    fn leaf(&mut self, chain: &Chain, spot: &Spot, node: &Node, sink: &mut dyn FnMut(Event)) {
        let mut leaf = Leaf::merge(self.cache, chain, spot, node);
        leaf.too_stale(chain, sink);
        while let Some(piece) = self.overlay.up_to(spot.key.pos()) {
            self.over(chain, &mut leaf, piece, sink);
        }
        leaf.rest(sink);
    }

    /// One piece of the overlay with what lies in front of it and under it.
    fn over(&mut self, chain: &Chain, leaf: &mut Leaf, over: Piece, sink: &mut dyn FnMut(Event)) {
        leaf.up_to(over.inode, over.start, sink);
        let mut at = over.start;
        while at < over.end {
            let (end, below) = leaf.under(over.inode, at, over.end);
            let piece = Piece {
                start: at,
                end,
                ..over
            };
            self.decide(chain, leaf, piece, below, sink);
            at = end;
        }
    }

    /// One row of the table.
    fn decide(
        &mut self,
        chain: &Chain,
        leaf: &Leaf,
        over: Piece,
        below: Option<Below>,
        sink: &mut dyn FnMut(Event),
    ) {
        let Some(replayed) = self.replayed.get(over.by as usize) else {
            return;
        };
        let origin = Origin::Journal(over.by);
        let key = replayed.key;
        let Some(ptr) = location(&key, over.start) else {
            return;
        };
        let extent = Extent {
            inode: over.inode,
            start: over.start,
            sectors: over.end - over.start,
            ptr,
            dirty: key.is_dirty(),
        };
        match state(chain, &key) {
            State::Nothing => {}
            State::Live => {
                // Written back since: a place never goes from clean to dirty.
                let is_revived = key.is_dirty()
                    && below.is_some_and(|below| {
                        !below.is_dirty && leaf.ptr(&below) == Some(extent.ptr)
                    });
                let dirty = key.is_dirty() && !is_revived;
                sink(Event::Live(Extent { dirty, ..extent }, origin));
            }
            State::Stale if !key.is_dirty() => {}
            State::Stale => match below {
                Some(below) if below.is_dirty && below.state == State::Live => {
                    self.conflict(leaf, over.by, extent, &below, sink);
                }
                Some(below) if below.is_dirty && below.state == State::Stale => {
                    if let Some((extent, origin)) = leaf.extent(&below) {
                        sink(Event::Lost(extent, origin));
                    }
                }
                _ => sink(Event::Cleaned(extent, origin)),
            },
        }
    }

    fn conflict(
        &mut self,
        leaf: &Leaf,
        replayed: u32,
        over: Extent,
        below: &Below,
        sink: &mut dyn FnMut(Event),
    ) {
        let Some((extent, origin)) = leaf.extent(below) else {
            return;
        };
        let keys = self.replayed;
        let locations = self
            .locations
            .get_or_insert_with(|| Locations::new(keys.iter().map(|replayed| &replayed.key)));
        let parts = locations.cut(extent.inode, extent.start, extent.end(), extent.ptr);
        for (start, end, is_replayed) in parts {
            if is_replayed {
                continue;
            }
            let part = |extent: Extent| Extent {
                start,
                sectors: end - start,
                ptr: extent.ptr.advance(start - extent.start),
                ..extent
            };
            let is_proved = match self.proof_keys_left.checked_sub(leaf.keys.len()) {
                Some(left) => {
                    self.proof_keys_left = left;
                    leaf.is_older(&part(over), below)
                }
                None => false,
            };
            let kept = part(extent);
            sink(Event::Kept {
                extent: kept,
                replayed,
                replayed_ptr: part(over).ptr,
                is_proved,
            });
            sink(Event::Live(kept, origin));
        }
    }
}

/// A merged leaf and how far it was gone through.
struct Leaf {
    spot: Spot,
    keys: Vec<LeafKey>,
    below: Vec<Below>,
    next: usize,
}

impl Leaf {
    fn empty(spot: Spot) -> Leaf {
        Leaf {
            spot,
            keys: Vec::new(),
            below: Vec::new(),
            next: 0,
        }
    }

    fn merge(cache: &Cache<'_>, chain: &Chain, spot: &Spot, node: &Node) -> Leaf {
        let rules = cache.geometry.key_rules();
        let mut leaf = Leaf::empty(*spot);
        let mut cover = Cover::default();
        for (set, key, at) in keys_of(cache, spot, node) {
            if key.size() == 0 || rules.check_extent(key).is_err() {
                continue;
            }
            let by = u32::try_from(leaf.keys.len()).unwrap_or(u32::MAX);
            cover.lay(piece_of(key, by));
            leaf.keys.push(LeafKey {
                key: *key,
                set,
                at,
                is_seen: false,
            });
        }
        for piece in cover.into_pieces() {
            let Some(leaf_key) = leaf.keys.get_mut(piece.by as usize) else {
                continue;
            };
            leaf_key.is_seen = true;
            let state = state(chain, &leaf_key.key);
            if state != State::Nothing {
                leaf.below.push(Below {
                    piece,
                    state,
                    is_dirty: leaf_key.key.is_dirty(),
                });
            }
        }
        leaf
    }

    fn too_stale(&self, chain: &Chain, sink: &mut dyn FnMut(Event)) {
        for LeafKey {
            key, at, is_seen, ..
        } in &self.keys
        {
            let staleness = chain.key_staleness(key);
            if staleness > STALE_MAX {
                sink(Event::TooStale {
                    key: *key,
                    staleness,
                    origin: Origin::Leaf(self.spot, *at),
                    is_hidden: !is_seen,
                });
            }
        }
    }

    fn ptr(&self, below: &Below) -> Option<Ptr> {
        let key = self.keys.get(below.piece.by as usize)?;
        location(&key.key, below.piece.start)
    }

    fn extent(&self, below: &Below) -> Option<(Extent, Origin)> {
        let Piece {
            inode, start, end, ..
        } = below.piece;
        let extent = Extent {
            inode,
            start,
            sectors: end - start,
            ptr: self.ptr(below)?,
            dirty: below.is_dirty,
        };
        let at = self.keys.get(below.piece.by as usize)?.at;
        Some((extent, Origin::Leaf(self.spot, at)))
    }

    /// Gives what lies in front of a sector, cutting what goes over it.
    fn up_to(&mut self, inode: u32, start: u64, sink: &mut dyn FnMut(Event)) {
        while let Some(below) = self.below.get_mut(self.next) {
            if (below.piece.inode, below.piece.start) >= (inode, start) {
                return;
            }
            let mut first = *below;
            if below.piece.inode == inode && below.piece.end > start {
                first.piece.end = start;
                below.piece.start = start;
            } else {
                self.next += 1;
            }
            self.alone(&first, sink);
        }
    }

    fn rest(&mut self, sink: &mut dyn FnMut(Event)) {
        self.up_to(u32::MAX, u64::MAX, sink);
    }

    /// Nothing replayed over it.
    fn alone(&self, below: &Below, sink: &mut dyn FnMut(Event)) {
        let Some((extent, origin)) = self.extent(below) else {
            return;
        };
        match below.state {
            State::Live => sink(Event::Live(extent, origin)),
            State::Stale if below.is_dirty => sink(Event::Lost(extent, origin)),
            _ => {}
        }
    }

    /// Takes what lies under `at..end`, as far as it is of one piece: how far, and what.
    fn under(&mut self, inode: u32, at: u64, end: u64) -> (u64, Option<Below>) {
        let Some(below) = self.below.get_mut(self.next) else {
            return (end, None);
        };
        if below.piece.inode != inode || below.piece.start >= end {
            return (end, None);
        }
        if below.piece.start > at {
            return (below.piece.start, None);
        }
        let mut first = *below;
        if below.piece.end > end {
            first.piece.end = end;
            below.piece.start = end;
        } else {
            self.next += 1;
        }
        (first.piece.end, Some(first))
    }

    /// Whether sets in front of that of `below` have all sectors of `over` where it has them: then what is below is newer.
    fn is_older(&self, over: &Extent, below: &Below) -> bool {
        let Some(newest) = self.keys.get(below.piece.by as usize).map(|key| key.set) else {
            return false;
        };
        let older = self.keys.iter().filter(|key| key.set < newest);
        Locations::new(older.map(|key| &key.key))
            .cut(over.inode, over.start, over.end(), over.ptr)
            .iter()
            .all(|part| part.2)
    }
}
