use super::*;
use brigade_format::jset::{self, JsetHeader};
use brigade_format::superblock::{NewCache, Replacement};
use brigade_format::{Pos, Ptr, UuidEntry, key_words, node, prio, uuid_table};
use serde_json::Value;

const BUCKET_SECTORS: u32 = 16;
const BUCKET: u64 = BUCKET_SECTORS as u64 * 512;
const BUCKETS: u64 = 600;
const ROOT: u64 = 20;
const UUIDS: u64 = 21;
const PRIOS: u64 = 22;
const DATA: u64 = 30;

fn pointer(bucket: u64, r#gen: u8) -> Ptr {
    Ptr::new(bucket * u64::from(BUCKET_SECTORS), Gen(r#gen))
}

/// A small set as a writer would leave it: one leaf, one volume, two entries, one of them to be replayed.
fn image() -> Vec<u8> {
    let mut superblock = Superblock::new_cache(&NewCache {
        device_sectors: BUCKETS * u64::from(BUCKET_SECTORS),
        bucket_sectors: BUCKET_SECTORS,
        block_sectors: 1,
        uuid: [1; 16],
        set_uuid: [2; 16],
        discard: false,
        replacement: Replacement::Lru,
    })
    .expect("fine");
    superblock.set_sync(true);
    superblock.journal = vec![2, 3, 4, 5];
    let geometry = superblock
        .cache_geometry(BUCKETS * u64::from(BUCKET_SECTORS), 512)
        .expect("fine");
    let magic = geometry.set_magic;
    let mut image = vec![0; (BUCKETS * BUCKET) as usize];
    let mut put =
        |offset: u64, bytes: &[u8]| image[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    put(4096, &superblock.encode());
    let clean = Key::extent(0, 100, 8, pointer(DATA, 1), false);
    let dirty = Key::extent(0, 200, 8, pointer(DATA + 1, 1), true);
    let stale = Key::extent(0, 300, 8, pointer(DATA + 2, 1), false);
    let set = node::encode_bset(
        &key_words([&clean, &dirty, &stale]),
        77,
        pointer(ROOT, 1),
        magic,
        512,
    );
    put(ROOT * BUCKET, &set);
    let mut table = vec![UuidEntry::EMPTY; geometry.uuid_slots as usize];
    table[0] = UuidEntry::cached([9; 16], [0; 32], 1000);
    put(UUIDS * BUCKET, &uuid_table::encode(&table));
    let mut gens = vec![(0_u16, Gen(0)); BUCKETS as usize];
    for bucket in [ROOT, UUIDS, DATA, DATA + 1] {
        gens[bucket as usize] = (prio::PRIO_INITIAL, Gen(1));
    }
    gens[DATA as usize + 2] = (prio::PRIO_INITIAL, Gen(3));
    assert_eq!(geometry.prio_buckets, 1);
    put(
        PRIOS * BUCKET,
        &prio::encode(1, 0, &gens, magic, geometry.meta_bytes()),
    );
    let head = |seq, last_seq| JsetHeader {
        seq,
        last_seq,
        version: 1,
        uuid_bucket: Key::node(Pos::ZERO, geometry.meta_sectors, pointer(UUIDS, 1)),
        btree_root: Key::node(Pos::MAX, geometry.node_sectors, pointer(ROOT, 1)),
        btree_level: 0,
        prio_bucket: PRIOS,
    };
    let first = jset::encode(&head(1, 1), &[], magic, 512);
    put(3 * BUCKET, &first);
    put(
        3 * BUCKET + first.len() as u64,
        &jset::encode(&head(2, 2), &key_words([&dirty]), magic, 512),
    );
    image
}

fn dumped(image: &[u8], sections: &[Section]) -> (u64, Vec<Value>) {
    let mut out = Vec::new();
    let source = image.to_vec();
    let device = Device {
        name: "image".into(),
        source: &source,
        size_bytes: image.len() as u64,
        logical_block_bytes: 512,
    };
    let errors = dump(&device, sections, Style::Json, &mut out).expect("memory can be written");
    let text = String::from_utf8(out).expect("text");
    (
        errors,
        text.lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect(),
    )
}

fn of<'a>(records: &'a [Value], section: &str, kind: &str) -> Vec<&'a Value> {
    records
        .iter()
        .filter(|r| r["section"] == section && r["kind"] == kind)
        .collect()
}

#[test]
fn every_structure_of_a_small_set_is_told() {
    let (errors, records) = dumped(&image(), &Section::ALL);
    assert_eq!(errors, 0, "{records:?}");
    assert_eq!(
        of(&records, "superblock", "superblock")[0]["nbuckets"],
        BUCKETS
    );
    let entries = of(&records, "journal", "entry");
    assert_eq!(
        (entries.len(), &entries[1]["seq"], &entries[1]["index"]),
        (2, &2.into(), &1.into())
    );
    let summary = of(&records, "journal", "summary")[0];
    assert_eq!(
        (&summary["newest_seq"], &summary["replay_entries"]),
        (&2.into(), &1.into())
    );
    assert_eq!(summary["kernel_search_agrees"], true);
    assert_eq!(of(&records, "journal", "key").len(), 1);
    assert_eq!(of(&records, "prios", "link")[0]["bucket"], PRIOS);
    let slots = of(&records, "uuids", "slot");
    assert_eq!((slots.len(), &slots[0]["slot"]), (1, &0.into()));
    let keys = of(&records, "btree", "key");
    assert_eq!(
        keys.iter().map(|k| &k["stale"]).collect::<Vec<_>>(),
        [false, false, true]
    );
    assert_eq!(
        (&keys[2]["staleness"], &keys[1]["dirty"], &keys[0]["start"]),
        (&2.into(), &true.into(), &100.into())
    );
    let buckets = of(&records, "buckets", "summary")[0];
    for (name, count) in [
        ("superblock", 2),
        ("journal", 4),
        ("prios", 1),
        ("uuids", 1),
        ("nodes", 1),
        ("dirty", 1),
        ("clean", 1),
    ] {
        assert_eq!(buckets[name], count, "{name}");
    }
}

#[test]
fn a_section_alone_tells_of_nothing_else() {
    for (section, name) in [
        (Section::Journal, "journal"),
        (Section::Btree, "btree"),
        (Section::Superblock, "superblock"),
    ] {
        let (_, records) = dumped(&image(), &[section]);
        assert!(
            !records.is_empty() && records.iter().all(|r| r["section"] == name),
            "{name}: {records:?}"
        );
    }
}

#[test]
fn what_is_broken_is_an_error_where_it_stands_and_the_rest_is_told() {
    let mut broken = image();
    broken[(PRIOS * BUCKET) as usize + 100] ^= 1;
    let (errors, records) = dumped(&broken, &Section::ALL);
    assert_eq!(errors, 2, "{records:?}");
    assert!(
        of(&records, "prios", "error")[0]["error"]
            .as_str()
            .expect("text")
            .contains("csum")
    );
    assert_eq!(of(&records, "btree", "key").len(), 3);
    assert!(
        of(&records, "btree", "key")[0]["stale"].is_null(),
        "nothing is known of generations"
    );

    let mut broken = image();
    broken[(ROOT * BUCKET) as usize + 40] ^= 1;
    let (errors, records) = dumped(&broken, &Section::ALL);
    assert_eq!(
        (errors, of(&records, "btree", "error").len()),
        (1, 1),
        "{records:?}"
    );
    assert_eq!(of(&records, "uuids", "slot").len(), 1);
}

#[test]
fn a_later_entry_behind_a_bad_block_is_told() {
    let mut broken = image();
    broken[(3 * BUCKET) as usize + 100] ^= 1;
    let (_, records) = dumped(&broken, &[Section::Journal]);
    let entries = of(&records, "journal", "entry");
    assert_eq!(
        (entries.len(), &entries[0]["behind_bad_block"]),
        (1, &true.into())
    );
    assert_eq!(of(&records, "journal", "suspect").len(), 1);
    assert!(!of(&records, "journal", "error").is_empty());
}

#[test]
fn no_flipped_bits_make_the_reader_panic_or_loop() {
    let whole = image();
    let regions = [
        (4096, 300),
        (3 * BUCKET, 1024),
        (ROOT * BUCKET, 300),
        (UUIDS * BUCKET, 256),
        (PRIOS * BUCKET, 2000),
    ];
    let mut random = 1_u64;
    let mut next = |bound: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    for round in 0..600 {
        let mut broken = whole.clone();
        for _ in 0..=next(3) {
            let (start, length) = regions[next(regions.len() as u64) as usize];
            broken[(start + next(length)) as usize] ^= 1 << next(8);
        }
        let (errors, records) = dumped(&broken, &Section::ALL);
        assert!(!records.is_empty(), "round {round}");
        assert_eq!(
            errors,
            records.iter().filter(|r| r["kind"] == "error").count() as u64
        );
    }
}

/// A node that names itself as its child, with everything sealed right.
#[test]
fn a_tree_that_bites_its_tail_ends() {
    let mut looped = image();
    let superblock = Superblock::parse(&looped[4096..8192]).expect("fine");
    let geometry = superblock
        .cache_geometry(BUCKETS * u64::from(BUCKET_SECTORS), 512)
        .expect("fine");
    let itself = Key::node(Pos::MAX, geometry.node_sectors, pointer(ROOT, 1));
    let set = node::encode_bset(
        &key_words([&itself]),
        78,
        pointer(ROOT, 1),
        geometry.set_magic,
        512,
    );
    looped[(ROOT * BUCKET) as usize..][..set.len()].copy_from_slice(&set);
    let head = JsetHeader {
        seq: 3,
        last_seq: 3,
        version: 1,
        uuid_bucket: Key::node(Pos::ZERO, geometry.meta_sectors, pointer(UUIDS, 1)),
        btree_root: itself,
        btree_level: 3,
        prio_bucket: PRIOS,
    };
    let entry = jset::encode(&head, &[], geometry.set_magic, 512);
    looped[(4 * BUCKET) as usize..][..entry.len()].copy_from_slice(&entry);
    let (errors, records) = dumped(&looped, &[Section::Btree]);
    assert_eq!(errors, 1, "{records:?}");
    assert!(
        of(&records, "btree", "error")[0]["error"]
            .as_str()
            .expect("text")
            .contains("twice")
    );
}

#[test]
fn a_blank_set_and_what_is_no_cache_device_are_told_apart() {
    let mut blank = image();
    let mut superblock = Superblock::parse(&blank[4096..8192]).expect("fine");
    superblock.set_sync(false);
    superblock.journal.clear();
    blank[4096..8192].copy_from_slice(&superblock.encode());
    let (errors, records) = dumped(&blank, &Section::ALL);
    assert_eq!((errors, of(&records, "superblock", "note").len()), (0, 1));
    for garbage in [vec![], vec![0; 4096], vec![0xa5; 20000]] {
        let (errors, records) = dumped(&garbage, &Section::ALL);
        assert_eq!((errors, records.len()), (1, 1), "{records:?}");
    }
}
