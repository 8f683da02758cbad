//! Which key wins where the journal and the tree both say something (`docs/format.md` 8.5).
//!
//! Pure: runs of extents in, a decision per sector out. K is the newest replayed key for a sector, T what the tree
//! alone has there. Replayed keys are first laid over each other, so that for each sector only the newest is left,
//! then one sweep compares them with the tree. Staleness must be final when this runs.

use crate::extents::{Extent, ExtentMap, Layers};
use crate::marks::{self, Mark};
use brigade_format::{Pos, Ptr};
use std::cell::OnceCell;
use std::collections::BTreeMap;

/// A live dirty extent of the tree under a replayed key that is stale and dirty: kept, never erased (F47).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) kept: Extent,
    pub(super) replayed: Extent,
}

/// The result of replay.
#[derive(Default)]
pub(super) struct Outcome {
    /// What is cached where.
    pub(super) index: ExtentMap,
    /// The decisions for all sectors that replayed keys cover, holes included; cut at leaf boundaries.
    pub(super) overlay: Vec<Extent>,
    pub(super) conflicts: Vec<Conflict>,
    /// Stale dirty extents nobody decided otherwise: their data is gone (F43).
    pub(super) lost: Vec<Extent>,
    /// Stale dirty replayed keys over nothing dirty: as a rule cleaned and reused (F43, a warning).
    pub(super) cleaned: Vec<Extent>,
}

/// A run of sectors with one location: the same for all extents that continue each other.
type Diagonal = (u32, u64, u8);

fn diagonal(e: &Extent) -> Option<Diagonal> {
    e.ptr
        .map(|ptr| (e.inode, ptr.sector().wrapping_sub(e.start), ptr.r#gen().0))
}

/// Ranges of sectors that replayed keys place, by location. Built only if a conflict asks for it.
struct Locations(BTreeMap<Diagonal, Vec<(u64, u64)>>);

impl Locations {
    fn new(replayed: &[Extent]) -> Locations {
        let mut map: BTreeMap<Diagonal, Vec<(u64, u64)>> = BTreeMap::new();
        for e in replayed {
            if let Some(diagonal) = diagonal(e) {
                map.entry(diagonal).or_default().push((e.start, e.end));
            }
        }
        for ranges in map.values_mut() {
            ranges.sort_unstable();
            let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
            for &(start, end) in ranges.iter() {
                match joined.last_mut() {
                    Some(last) if start <= last.1 => last.1 = last.1.max(end),
                    _ => joined.push((start, end)),
                }
            }
            *ranges = joined;
        }
        Locations(map)
    }

    /// Cuts `t` into pieces whose location was replayed (true) or was not.
    fn cut(&self, t: &Extent) -> Vec<(Extent, bool)> {
        let ranges = diagonal(t)
            .and_then(|d| self.0.get(&d))
            .map_or(&[][..], Vec::as_slice);
        let mut pieces = Vec::new();
        let mut at = t.start;
        for &(start, end) in &ranges[ranges.partition_point(|range| range.1 <= t.start)..] {
            if start >= t.end {
                break;
            }
            if at < start {
                pieces.push((t.slice(at, start), false));
            }
            pieces.push((t.slice(start, end), true));
            at = end.min(t.end);
        }
        if at < t.end {
            pieces.push((t.slice(at, t.end), false));
        }
        pieces
    }
}

struct Sweep<'a, F> {
    is_stale: F,
    replay: &'a Replay<'a>,
    /// The index so far, ascending.
    placed: Vec<Extent>,
    out: Outcome,
}

/// All that is to be replayed.
pub(super) struct Replay<'a> {
    replayed: &'a [Extent],
    /// The newest key of each sector, sorted, cut at the boundaries of leaves.
    newest: Vec<Extent>,
    locations: OnceCell<Locations>,
    bucket_sectors: u32,
}

impl<'a> Replay<'a> {
    /// `replayed` are the keys, oldest first; `boundaries` the highest positions of the leaves, ascending.
    pub(super) fn new(
        replayed: &'a [Extent],
        boundaries: &[Pos],
        bucket_sectors: u32,
    ) -> Replay<'a> {
        let mut layers = Layers::default();
        for e in replayed {
            layers.push(vec![*e]);
        }
        Replay {
            replayed,
            newest: cut_at_boundaries(layers.finish(), boundaries),
            locations: OnceCell::new(),
            bucket_sectors,
        }
    }

    /// The newest key of each sector.
    pub(super) fn newest(&self) -> &[Extent] {
        &self.newest
    }

    /// Lays some of the newest keys over what the tree has there (sorted, without holes, stale extents included).
    pub(super) fn resolve(
        &self,
        tree: &[Extent],
        newest: &[Extent],
        is_stale: impl Fn(Ptr) -> bool,
    ) -> Outcome {
        let mut sweep = Sweep {
            is_stale,
            replay: self,
            placed: Vec::with_capacity(tree.len()),
            out: Outcome {
                overlay: Vec::with_capacity(newest.len()),
                ..Outcome::default()
            },
        };
        sweep.run(tree, newest);
        sweep.out.index = ExtentMap::from_ascending(sweep.placed);
        sweep.out
    }
}

fn cut_at_boundaries(run: Vec<Extent>, boundaries: &[Pos]) -> Vec<Extent> {
    let mut out = Vec::with_capacity(run.len());
    let mut leaf = 0;
    for mut e in run {
        loop {
            while boundaries
                .get(leaf)
                .is_some_and(|high| (high.inode, high.offset) <= (e.inode, e.start))
            {
                leaf += 1;
            }
            match boundaries.get(leaf) {
                Some(high) if high.inode == e.inode && high.offset < e.end => {
                    out.push(e.slice(e.start, high.offset));
                    e = e.slice(high.offset, e.end);
                }
                _ => break,
            }
        }
        out.push(e);
    }
    out
}

impl<F: Fn(Ptr) -> bool> Sweep<'_, F> {
    fn run(&mut self, tree: &[Extent], newest: &[Extent]) {
        let mut below = tree.iter().copied();
        let mut rest = below.next();
        for k in newest {
            while let Some(t) = rest
                && (t.inode, t.end) <= (k.inode, k.start)
            {
                self.keep(t);
                rest = below.next();
            }
            if let Some(t) = rest
                && t.inode == k.inode
                && t.start < k.start
            {
                self.keep(t.slice(t.start, k.start));
                rest = Some(t.slice(k.start, t.end));
            }
            let mut decided = Vec::new();
            let mut at = k.start;
            while at < k.end {
                let piece = match rest {
                    Some(t) if t.inode == k.inode && t.start <= at => {
                        let end = t.end.min(k.end);
                        rest = if t.end > k.end {
                            Some(t.slice(k.end, t.end))
                        } else {
                            below.next()
                        };
                        (k.slice(at, end), Some(t.slice(at, end)))
                    }
                    Some(t) if t.inode == k.inode && t.start < k.end => {
                        (k.slice(at, t.start), None)
                    }
                    _ => (k.slice(at, k.end), None),
                };
                at = piece.0.end;
                self.decide(piece.0, piece.1, &mut decided);
            }
            self.store(decided);
        }
        rest.into_iter().chain(below).for_each(|t| self.keep(t));
    }

    /// The tree alone decides.
    fn keep(&mut self, t: Extent) {
        match t.ptr {
            Some(ptr) if !(self.is_stale)(ptr) => self.put(t),
            Some(_) if t.dirty => self.out.lost.push(t),
            _ => {}
        }
    }

    fn put(&mut self, e: Extent) {
        self.placed.push(e);
    }

    /// One row of the table in `docs/format.md` 8.5.
    fn decide(&mut self, k: Extent, t: Option<Extent>, decided: &mut Vec<Extent>) {
        let hole = Extent {
            ptr: None,
            dirty: false,
            ..k
        };
        let Some(ptr) = k.ptr else {
            return self.push(decided, hole);
        };
        if t.is_some_and(|t| t.ptr != k.ptr) {
            marks::hit(Mark::ReplayOverTree);
        }
        if !(self.is_stale)(ptr) {
            let is_revived = k.dirty && t.is_some_and(|t| t.ptr == k.ptr && !t.dirty);
            return self.push(
                decided,
                Extent {
                    dirty: k.dirty && !is_revived,
                    ..k
                },
            );
        }
        marks::hit(Mark::ReplayDropsStale);
        if !k.dirty {
            return self.push(decided, hole);
        }
        match t {
            Some(t) if t.dirty && t.ptr.is_some_and(|ptr| !(self.is_stale)(ptr)) => {
                self.conflict(k, t, decided)
            }
            Some(t) if t.dirty => {
                self.out.lost.push(t);
                self.push(decided, hole);
            }
            _ => {
                self.out.cleaned.push(k);
                self.push(decided, hole);
            }
        }
    }

    /// K is stale and dirty, T live and dirty: T stays, except where an older replayed key placed it.
    fn conflict(&mut self, k: Extent, t: Extent, decided: &mut Vec<Extent>) {
        let replay = self.replay;
        let locations = replay
            .locations
            .get_or_init(|| Locations::new(replay.replayed));
        for (piece, is_replayed) in locations.cut(&t) {
            if is_replayed {
                self.push(
                    decided,
                    Extent {
                        ptr: None,
                        dirty: false,
                        ..piece
                    },
                );
            } else {
                self.out.conflicts.push(Conflict {
                    kept: piece,
                    replayed: k.slice(piece.start, piece.end),
                });
                self.push(decided, piece);
            }
        }
    }

    fn push(&self, decided: &mut Vec<Extent>, e: Extent) {
        match decided.last_mut() {
            Some(last) if last.can_merge(&e, self.replay.bucket_sectors) => last.end = e.end,
            _ => decided.push(e),
        }
    }

    fn store(&mut self, decided: Vec<Extent>) {
        for e in decided {
            if e.ptr.is_some() {
                self.put(e);
            }
            self.out.overlay.push(e);
        }
    }
}
