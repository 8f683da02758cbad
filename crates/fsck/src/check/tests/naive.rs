//! Section 8.5 read literally, a sector at a time, beside what the checker makes of the same set.

use super::made::{BUCKET_SECTORS, DATA, Made, pointer};
use super::{assert_consistent, device};
use crate::check::{Extent, Options, Progress, Watch, run_watched};
use brigade_format::{Key, Pos, Ptr};
use std::collections::BTreeMap;

/// Sectors the game is played on; leaves end in the middle.
const SECTORS: u64 = 96;
const SPLIT: u64 = 43;

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % below
    }

    /// A key for sectors from `start`. Few buckets, and a place that depends on the sector alone, so that places meet again.
    fn key(&mut self, start: u64, sectors: u64) -> Key {
        let ptr = match self.roll(12) {
            0 => return Key::hole(0, start, sectors as u32),
            1 => Ptr::check(start),
            _ => {
                let r#gen = if self.roll(3) == 0 { 0 } else { 1 };
                pointer(DATA + self.roll(3), r#gen).advance(start % 8)
            }
        };
        let is_dirty = self.roll(2) == 0;
        Key::extent(0, start, sectors as u32, ptr, is_dirty)
    }

    /// Ascending keys in `low..high` that do not overlap.
    fn set(&mut self, low: u64, high: u64) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut at = low + self.roll(6);
        while at < high {
            let sectors = (1 + self.roll(8)).min(high - at);
            keys.push(self.key(at, sectors));
            at += sectors + self.roll(9);
        }
        keys
    }
}

/// Where a sector is said to lie, and whether dirty.
type Place = Option<(Ptr, bool)>;

fn place(key: &Key, sector: u64) -> Place {
    let ptr = key.ptr(0).filter(|ptr| ptr.is_available())?;
    Some((ptr.advance(sector - key.start()?), key.is_dirty()))
}

fn covers(key: &Key, sector: u64) -> bool {
    key.start().is_some_and(|start| start <= sector) && sector < key.offset()
}

fn is_stale(ptr: Ptr) -> bool {
    ptr.r#gen().0 == 0
}

/// The table, row by row.
fn row(tree: &[Key], journal: &[Key], sector: u64) -> Place {
    let t = tree.iter().rfind(|key| covers(key, sector));
    let t = t.and_then(|key| place(key, sector));
    let live = |place: Place| place.filter(|(ptr, _)| !is_stale(*ptr));
    let over: Vec<&Key> = journal.iter().filter(|key| covers(key, sector)).collect();
    let Some((newest, older)) = over.split_last() else {
        return live(t);
    };
    match place(newest, sector) {
        None => None,
        Some((ptr, false)) if !is_stale(ptr) => Some((ptr, false)),
        Some((ptr, true)) if !is_stale(ptr) => Some((ptr, t != Some((ptr, false)))),
        Some((_, false)) => None,
        Some((_, true)) => live(t).filter(|(t_ptr, t_dirty)| {
            let is_replayed = older
                .iter()
                .any(|key| place(key, sector).is_some_and(|(ptr, _)| ptr == *t_ptr));
            *t_dirty && !is_replayed
        }),
    }
}

#[derive(Default)]
struct Collected {
    sectors: BTreeMap<u64, (Ptr, bool)>,
    last_end: u64,
}

impl Watch for Collected {
    fn progress(&mut self, _: Progress<'_>) {}

    fn extent(&mut self, device: usize, extent: &Extent) {
        assert_eq!((device, extent.inode), (0, 0));
        assert!(extent.sectors > 0 && extent.start >= self.last_end);
        self.last_end = extent.end();
        for i in 0..extent.sectors {
            let place = (extent.ptr.advance(i), extent.dirty);
            self.sectors.insert(extent.start + i, place);
        }
    }
}

#[test]
fn what_is_live_after_replay_is_what_the_table_says_for_each_sector() {
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let mut made = Made::new();
        let (leaves, mut tree) = ([50, 51], Vec::new());
        made.root_over(&[(leaves[0], Pos::new(0, SPLIT)), (leaves[1], Pos::MAX)]);
        for (leaf, range) in leaves.iter().zip([(0, SPLIT), (SPLIT, SECTORS)]) {
            let sets: Vec<_> = (0..1 + dice.roll(4))
                .map(|_| dice.set(range.0, range.1))
                .filter(|set| !set.is_empty())
                .collect();
            tree.extend(sets.iter().flatten().copied());
            made.node(*leaf, &sets);
        }
        made.entries = (0..1 + dice.roll(4))
            .map(|_| dice.set(0, SECTORS))
            .collect();
        let journal: Vec<Key> = made.entries.iter().flatten().copied().collect();
        assert!(u64::from(BUCKET_SECTORS) >= 16);
        let image = made.finish();
        let mut collected = Collected::default();
        let report = run_watched(&[device("c", &image)], &Options::default(), &mut collected);
        assert_consistent(&report);
        let view = &report.sets[0];
        assert!(view.has_extents, "seed {seed}: {:?}", report.findings);
        let expected: BTreeMap<u64, (Ptr, bool)> = (0..SECTORS)
            .filter_map(|sector| Some((sector, row(&tree, &journal, sector)?)))
            .collect();
        assert_eq!(collected.sectors, expected, "seed {seed}");
        let dirty = expected.values().filter(|(_, dirty)| *dirty).count() as u64;
        let volume = &view.volumes[0];
        assert_eq!(
            (volume.dirty_sectors, volume.clean_sectors),
            (dirty, expected.len() as u64 - dirty)
        );
    }
}
