//! The map of extents that the index is made of, beside the standard library's map and redb.
//!
//! All three hold extents of 4 KiB under the sector they end at, as the format orders them, and answer which extent covers a
//! sector. The standard map does what no cache can do with less: one key, one value, no overlaps to look for. redb (in memory,
//! a transaction for each `BATCH` inserts, nothing made durable) is what an index would be that is bought and not built.
//!
//! Times are processor time of the one thread.

use crate::HEAP;
use crate::chance::Chance;
use crate::report::{Report, Target, time};
use brigade_engine::extents::{Extent, ExtentMap, Merge};
use brigade_format::{Gen, Ptr};
use redb::backends::InMemoryBackend;
use redb::{Database, Durability, ReadableDatabase, TableDefinition};
use std::collections::BTreeMap;

const SECTORS: u64 = 8;
const BUCKET_SECTORS: u32 = 1024;
/// Inserts of a transaction of redb.
const BATCH: usize = 10_000;
/// Most lookups or overwrites that are timed.
const OPERATIONS: u64 = 1_000_000;
const TABLE: TableDefinition<'_, u64, u64> = TableDefinition::new("extents");

/// Something that knows where an extent is.
trait Subject {
    const NAME: &'static str;
    fn new() -> Self;
    /// Extents by where they start, and their places.
    fn insert(&mut self, extents: &[(u64, u64)]);
    /// The sum of the places where these sectors are, so that nothing is left out.
    fn lookup(&self, sectors: &[u64]) -> u64;
}

impl Subject for ExtentMap {
    const NAME: &'static str = "extent map";

    fn new() -> Self {
        ExtentMap::new()
    }

    fn insert(&mut self, extents: &[(u64, u64)]) {
        for &(start, place) in extents {
            let extent = Extent {
                inode: 0,
                start,
                end: start + SECTORS,
                ptr: Some(Ptr::new(place, Gen(0))),
                dirty: false,
            };
            ExtentMap::insert(self, extent, Merge::BOTH, BUCKET_SECTORS, |_| ());
        }
    }

    fn lookup(&self, sectors: &[u64]) -> u64 {
        let place = |&sector: &u64| self.range(0, sector, sector + 1).next()?.ptr;
        sectors.iter().filter_map(place).map(Ptr::sector).sum()
    }
}

impl Subject for BTreeMap<u64, u64> {
    const NAME: &'static str = "standard map";

    fn new() -> Self {
        BTreeMap::new()
    }

    fn insert(&mut self, extents: &[(u64, u64)]) {
        let entries = extents
            .iter()
            .map(|(start, place)| (start + SECTORS, *place));
        self.extend(entries);
    }

    fn lookup(&self, sectors: &[u64]) -> u64 {
        let place = |&sector: &u64| {
            let (end, place) = self.range(sector + 1..).next()?;
            Some(place + sector.checked_sub(end - SECTORS)?)
        };
        sectors.iter().filter_map(place).sum()
    }
}

impl Subject for Database {
    const NAME: &'static str = "redb";

    fn new() -> Self {
        let backend = InMemoryBackend::new();
        let made = Database::builder().create_with_backend(backend);
        made.expect("a database in memory")
    }

    fn insert(&mut self, extents: &[(u64, u64)]) {
        for batch in extents.chunks(BATCH) {
            let mut transaction = self.begin_write().expect("a transaction");
            let set = transaction.set_durability(Durability::None);
            set.expect("durability");
            let mut table = transaction.open_table(TABLE).expect("a table");
            for (start, place) in batch {
                table.insert(start + SECTORS, place).expect("inserted");
            }
            drop(table);
            transaction.commit().expect("committed");
        }
    }

    fn lookup(&self, sectors: &[u64]) -> u64 {
        let transaction = self.begin_read().expect("a transaction");
        let table = transaction.open_table(TABLE).expect("a table");
        let place = |&sector: &u64| {
            let next = table.range(sector + 1..).expect("a range").next()?;
            let (end, place) = next.expect("an entry");
            Some(place.value() + sector.checked_sub(end.value() - SECTORS)?)
        };
        sectors.iter().filter_map(place).sum()
    }
}

/// Measures all three at each size.
pub fn run(sizes: &[u64]) -> Report {
    let mut report = Report::default();
    for &size in sizes {
        report.head(&format!("{size} extents"));
        let sums = [
            measure::<ExtentMap>(&mut report, size),
            measure::<BTreeMap<u64, u64>>(&mut report, size),
            measure::<Database>(&mut report, size),
        ];
        assert!(
            sums.iter().all(|sum| *sum == sums[0]),
            "different answers: {sums:?}"
        );
    }
    report
}

/// What the lookups came to.
fn measure<S: Subject>(report: &mut Report, size: u64) -> u64 {
    let mut chance = Chance::new(size);
    // Every second place of 4 KiB has an extent; a prime spreads the order in which they come.
    let start = |nr: u64| nr * 2_147_483_647 % size * 2 * SECTORS;
    let extents: Vec<_> = (0..size).map(|nr| (start(nr), nr * SECTORS)).collect();
    let operations = size.min(OPERATIONS);
    let sectors: Vec<u64> = (0..operations)
        .map(|_| chance.below(size * 2 * SECTORS))
        .collect();
    let again: Vec<_> = (0..operations)
        .map(|nr| (start(chance.below(size)), (size + nr) * SECTORS))
        .collect();
    let before = HEAP.current_usage();
    let mut subject = S::new();
    let (inserting, ()) = time(|| subject.insert(&extents));
    let memory = HEAP.current_usage().saturating_sub(before);
    let (looking, sum) = time(|| subject.lookup(&sectors));
    let (overwriting, ()) = time(|| subject.insert(&again));
    let per_second = |count: u64, nanos: f64| count as f64 * 1e9 / nanos.max(1.0);
    let rows = [
        ("inserts", per_second(size, inserting), "/s"),
        ("overwrites", per_second(operations, overwriting), "/s"),
        ("lookups", per_second(operations, looking), "/s"),
        ("heap of an extent", memory as f64 / size as f64, "bytes"),
    ];
    for (what, value, unit) in rows {
        report.row(&format!("{}, {what}", S::NAME), value, unit, Target::None);
    }
    sum
}
