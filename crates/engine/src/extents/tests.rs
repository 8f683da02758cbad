//! The map against a naive twin that keeps one cell per sector, compared after every step.

use brigade_format::{Gen, Key, Pos, Ptr};
use proptest::prelude::*;

use super::{Extent, ExtentMap, Merge};

const BUCKET: u32 = 128;

/// What one sector holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cell {
    Nothing,
    Hole,
    Data { ptr: Ptr, dirty: bool },
}

/// Two volumes, one cell per sector.
struct Twin {
    cells: [Vec<Cell>; 2],
    keeps_holes: bool,
}

impl Twin {
    fn new(sectors: usize, keeps_holes: bool) -> Twin {
        Twin {
            cells: [vec![Cell::Nothing; sectors], vec![Cell::Nothing; sectors]],
            keeps_holes,
        }
    }

    fn cell_of(&self, e: &Extent, sector: u64) -> Cell {
        match e.ptr {
            Some(ptr) => Cell::Data {
                ptr: ptr.advance(sector - e.start),
                dirty: e.dirty,
            },
            None if self.keeps_holes => Cell::Hole,
            None => Cell::Nothing,
        }
    }

    fn write(&mut self, e: &Extent) {
        for sector in e.start..e.end {
            self.cells[e.inode as usize][sector as usize] = self.cell_of(e, sector);
        }
    }

    fn sectors(&self, inode: u32, start: u64, end: u64) -> Vec<(u64, Cell)> {
        let cells = &self.cells[inode as usize];
        (start..end)
            .map(|s| (s, cells[s as usize]))
            .filter(|(_, c)| *c != Cell::Nothing)
            .collect()
    }

    fn spread(&self, extents: &[Extent]) -> Vec<(u64, Cell)> {
        extents
            .iter()
            .flat_map(|e| (e.start..e.end).map(|s| (s, self.cell_of(e, s))))
            .collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(Extent, Merge),
    Remove(u32, u64, u64),
    Fill(Extent, Merge),
    /// Swap from what the first sector now suggests (or from an unrelated place) to the extent.
    Swap {
        new: Extent,
        guess_right: bool,
        merge: Merge,
    },
}

fn extents(sectors: u64) -> impl Strategy<Value = Extent> {
    let range =
        (0..sectors, 1..sectors).prop_map(move |(start, len)| (start, (start + len).min(sectors)));
    let small =
        (0..sectors, 1..9u64).prop_map(move |(start, len)| (start, (start + len).min(sectors)));
    let place = prop_oneof![
        1 => Just(None),
        // Often contiguous with what other extents point at, so that merging happens.
        3 => (0..3u64, 0..2u8).prop_map(|(shift, g)| Some((shift * 1000, g))),
    ];
    (0..2u32, prop_oneof![range, small], place, any::<bool>()).prop_map(
        |(inode, (start, end), place, dirty)| {
            let ptr = place.map(|(shift, g)| Ptr::new(start + shift, Gen(g)));
            Extent {
                inode,
                start,
                end,
                ptr,
                dirty: dirty && ptr.is_some(),
            }
        },
    )
}

fn merges() -> impl Strategy<Value = Merge> {
    any::<(bool, bool)>().prop_map(|(left, right)| Merge { left, right })
}

fn steps(sectors: u64) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (extents(sectors), merges()).prop_map(|(e, m)| Step::Insert(e, m)),
        1 => extents(sectors).prop_map(|e| Step::Remove(e.inode, e.start, e.end)),
        2 => (extents(sectors), merges()).prop_map(|(e, m)| Step::Fill(e, m)),
        2 => (extents(sectors), any::<bool>(), merges())
            .prop_map(|(new, guess_right, merge)| Step::Swap { new, guess_right, merge }),
    ];
    proptest::collection::vec(step, 1..40)
}

fn apply(map: &mut ExtentMap, twin: &mut Twin, step: &Step) {
    match step {
        Step::Insert(e, merge) => {
            let before = twin.sectors(e.inode, e.start, e.end);
            let mut removed = Vec::new();
            map.insert(*e, *merge, BUCKET, |old| removed.push(old));
            assert_eq!(twin.spread(&removed), before);
            twin.write(e);
        }
        Step::Remove(inode, start, end) => {
            let before = twin.sectors(*inode, *start, *end);
            let mut removed = Vec::new();
            map.remove(*inode, *start, *end, |old| removed.push(old));
            assert_eq!(twin.spread(&removed), before);
            twin.cells[*inode as usize][*start as usize..*end as usize].fill(Cell::Nothing);
        }
        Step::Fill(e, merge) => fill(map, twin, e, *merge),
        Step::Swap {
            new,
            guess_right,
            merge,
        } => swap(map, twin, new, *guess_right, *merge),
    }
}

fn fill(map: &mut ExtentMap, twin: &mut Twin, e: &Extent, merge: Merge) {
    let absent: Vec<u64> = (e.start..e.end)
        .filter(|s| twin.cells[e.inode as usize][*s as usize] == Cell::Nothing)
        .collect();
    let inserted = map.insert_where_absent(*e, merge, BUCKET);
    let writes_nothing = e.ptr.is_none() && !twin.keeps_holes;
    let expected = if writes_nothing { Vec::new() } else { absent };
    let got: Vec<u64> = inserted.iter().flat_map(|e| e.start..e.end).collect();
    assert_eq!(got, expected);
    inserted.iter().for_each(|slice| twin.write(slice));
}

fn swap(map: &mut ExtentMap, twin: &mut Twin, new: &Extent, guess_right: bool, merge: Merge) {
    let old = match map.first_from(new.inode, new.start).filter(|_| guess_right) {
        // Extends the location found to the whole range, so that later sectors match only by chance.
        Some(found) if found.start <= new.start => {
            let at = found.slice(new.start, found.end);
            Extent { end: new.end, ..at }
        }
        _ => Extent {
            ptr: None,
            dirty: false,
            ..*new
        },
    };
    let same: Vec<u64> = (old.start..old.end)
        .filter(|s| twin.cells[old.inode as usize][*s as usize] == twin.cell_of(&old, *s))
        .collect();
    let replaced = map.replace_if_same(old, *new, merge, BUCKET);
    let got: Vec<u64> = replaced.iter().flat_map(|e| e.start..e.end).collect();
    assert_eq!(got, same);
    replaced
        .iter()
        .for_each(|slice| assert_eq!(*slice, new.slice(slice.start, slice.end)));
    replaced.iter().for_each(|slice| twin.write(slice));
}

fn compare(map: &ExtentMap, twin: &Twin) {
    map.check();
    let sectors = twin.cells[0].len() as u64;
    let mut entries = Vec::new();
    for inode in 0..2 {
        let all: Vec<Extent> = map.range(inode, 0, sectors).collect();
        assert_eq!(twin.spread(&all), twin.sectors(inode, 0, sectors));
        let (low, high) = (sectors / 3, sectors / 2);
        let part: Vec<Extent> = map.range(inode, low, high).collect();
        assert_eq!(twin.spread(&part), twin.sectors(inode, low, high));
        let between: Vec<Extent> = map
            .iter_between(
                Pos { inode, offset: low },
                Pos {
                    inode,
                    offset: high,
                },
            )
            .collect();
        assert_eq!(
            between,
            all.iter()
                .copied()
                .filter(|e| e.end > low && e.end <= high)
                .collect::<Vec<_>>()
        );
        assert_eq!(
            map.first_from(inode, low),
            all.iter().copied().find(|e| e.end > low)
        );
        let overlap: Vec<Extent> = map.overlapping(inode, low, high).collect();
        assert_eq!(
            overlap,
            all.iter()
                .copied()
                .filter(|e| e.end > low && e.start < high)
                .collect::<Vec<_>>()
        );
        entries.extend(all);
    }
    assert_eq!(map.iter().collect::<Vec<_>>(), entries);
    assert_eq!(map.len(), entries.len());
}

fn run(sectors: u64, keeps_holes: bool, steps: &[Step]) {
    let mut map = if keeps_holes {
        ExtentMap::keeping_holes()
    } else {
        ExtentMap::new()
    };
    let mut twin = Twin::new(sectors as usize, keeps_holes);
    for step in steps {
        apply(&mut map, &mut twin, step);
        compare(&map, &twin);
    }
}

proptest! {
    /// T98, T99, T100.
    #[test]
    fn a_crowded_map_equals_its_twin_after_every_step(keeps_holes: bool, steps in steps(64)) {
        run(64, keeps_holes, &steps);
    }

    /// T99.
    #[test]
    fn a_roomy_map_equals_its_twin_after_every_step(keeps_holes: bool, steps in steps(4096)) {
        run(4096, keeps_holes, &steps);
    }

    #[test]
    fn an_extent_survives_the_trip_through_its_key(e in extents(4096)) {
        prop_assert_eq!(Extent::from_key(&e.to_key()), Some(e));
    }
}

fn data(start: u64, end: u64, sector: u64) -> Extent {
    Extent {
        inode: 1,
        start,
        end,
        ptr: Some(Ptr::new(sector, Gen(3))),
        dirty: false,
    }
}

fn inserted(list: &[(Extent, Merge)]) -> Vec<Extent> {
    let mut map = ExtentMap::keeping_holes();
    list.iter()
        .for_each(|(e, merge)| map.insert(*e, *merge, BUCKET, |_| {}));
    map.check();
    map.iter().collect()
}

/// T103.
#[test]
fn an_extent_merges_with_both_neighbours() {
    let list = [data(0, 8, 128), data(16, 24, 144), data(8, 16, 136)].map(|e| (e, Merge::BOTH));
    assert_eq!(inserted(&list), [data(0, 24, 128)]);
}

#[test]
fn a_forbidden_side_is_left_alone() {
    let only_left = Merge {
        left: true,
        right: false,
    };
    let only_right = Merge {
        left: false,
        right: true,
    };
    let sides = [
        (data(0, 8, 128), Merge::NONE),
        (data(16, 24, 144), Merge::NONE),
    ];
    let with = |merge| inserted(&[sides[0], sides[1], (data(8, 16, 136), merge)]);
    assert_eq!(with(only_left), [data(0, 16, 128), data(16, 24, 144)]);
    assert_eq!(with(only_right), [data(0, 8, 128), data(8, 24, 136)]);
    assert_eq!(with(Merge::NONE).len(), 3);
}

/// T103.
#[test]
fn extents_of_different_kind_stay_apart() {
    let first = data(0, 8, 128);
    let next = data(8, 16, 136);
    let other_gen = Extent {
        ptr: Some(Ptr::new(136, Gen(4))),
        ..next
    };
    let elsewhere = data(8, 16, 137);
    let dirty = Extent {
        dirty: true,
        ..next
    };
    let hole = Extent::hole(1, 8, 16);
    let other_volume = Extent { inode: 2, ..next };
    for second in [other_gen, elsewhere, dirty, hole, other_volume] {
        assert_eq!(
            inserted(&[(first, Merge::BOTH), (second, Merge::BOTH)]),
            [first, second]
        );
    }
    let (end_of_bucket, next_bucket) = (data(0, 8, 120), data(8, 16, 128));
    assert_eq!(
        inserted(&[(end_of_bucket, Merge::BOTH), (next_bucket, Merge::BOTH)]).len(),
        2
    );
}

/// T103.
#[test]
fn no_entry_outgrows_what_a_key_can_say() {
    let long = inserted(&[(Extent::hole(1, 5, 200_005), Merge::BOTH)]);
    assert_eq!(long.iter().map(Extent::sectors).sum::<u64>(), 200_000);
    assert!(long.len() >= 4);
    let nearly = Extent::hole(1, 0, 65535);
    assert_eq!(
        inserted(&[
            (nearly, Merge::BOTH),
            (Extent::hole(1, 65535, 65536), Merge::BOTH)
        ])
        .len(),
        2
    );
    let fits = [
        (Extent::hole(1, 0, 65534), Merge::BOTH),
        (Extent::hole(1, 65534, 65535), Merge::BOTH),
    ];
    assert_eq!(inserted(&fits), [nearly]);
}

#[test]
fn keys_that_say_nothing_give_no_extent() {
    assert_eq!(Extent::from_key(&Key::hole(1, 8, 0)), None);
    let check = Ptr(4095 << 51 | 77 << 8 | 1);
    let placeholder = Key::extent(1, 8, 8, check, false);
    assert_eq!(Extent::from_key(&placeholder), Some(Extent::hole(1, 8, 16)));
}

#[test]
fn a_hole_removes_from_the_index() {
    let mut map = ExtentMap::new();
    map.insert(data(0, 24, 128), Merge::BOTH, BUCKET, |_| {});
    let mut removed = Vec::new();
    map.insert(Extent::hole(1, 8, 16), Merge::BOTH, BUCKET, |old| {
        removed.push(old)
    });
    assert_eq!(removed, [data(8, 16, 136)]);
    assert_eq!(
        map.iter().collect::<Vec<_>>(),
        [data(0, 8, 128), data(16, 24, 144)]
    );
}

/// Not a pass or fail by itself; run with `--release --ignored --nocapture` to see nanoseconds per insert.
#[test]
#[ignore = "a measurement"]
#[allow(clippy::disallowed_methods, reason = "measures real time")]
fn random_inserts_into_a_million_entries_are_fast() {
    let mut map = ExtentMap::new();
    let mut x = 88_172_645_463_325_252u64;
    let mut next = move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    let mut insert = |map: &mut ExtentMap, n: u64| {
        let start = std::time::Instant::now();
        for _ in 0..n {
            let at = next() % 1_500_000 * 8;
            let e = Extent {
                inode: 1,
                start: at,
                end: at + 8,
                ptr: Some(Ptr::new(next() % (1 << 40), Gen(0))),
                dirty: false,
            };
            map.insert(e, Merge::BOTH, 1024, |_| {});
        }
        start.elapsed().as_nanos() as u64 / n
    };
    insert(&mut map, 2_000_000);
    let entries = map.len();
    let nanos = insert(&mut map, 1_000_000);
    println!(
        "{nanos} ns per insert with {entries} entries, {} MiB",
        map.memory_bytes() >> 20
    );
}
