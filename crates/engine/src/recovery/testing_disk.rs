//! Small images for tests of recovery, laid out by hand from the byte tables of `docs/format.md`.
//!
//! The encoders here share nothing with the format crate's but the checksum, on purpose.

use super::testing::{Image, TestEnv, run};
use super::{How, LoadError, Loaded, SurvivorEntry, load};
use brigade_format::superblock::{CacheGeometry, NewCache, Replacement, Superblock};
use brigade_format::{Gen, Key, Pos, Ptr, crc, prio};

pub(super) const BUCKET: u64 = 16;
const BUCKETS: u64 = 600;
const FIRST: u64 = 2;
pub(super) const JOURNAL: u64 = 8;
const PRIO_BUCKET: u64 = 20;
const UUID_BUCKET: u64 = 21;
const ROOT_BUCKET: u64 = 22;
const SET_UUID: [u8; 16] = *b"a set for tests!";

/// One journal entry; where it goes is up to [`Disk::journal`].
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) seq: u64,
    pub(super) last_seq: u64,
    pub(super) keys: Vec<Key>,
}

/// An image in the making.
pub(super) struct Disk {
    pub(super) bytes: Vec<u8>,
    pub(super) gens: Vec<u8>,
    /// Sets of the root, which is a leaf, unless `level` and `nodes` say otherwise.
    pub(super) sets: Vec<Vec<Key>>,
    pub(super) level: u16,
    /// Further nodes: the bucket and its sets.
    pub(super) nodes: Vec<(u64, Vec<Vec<Key>>)>,
    /// Uuid and flash size of each slot; a size of 0 is a backing device.
    pub(super) slots: Vec<([u8; 16], u64)>,
    pub(super) discard: bool,
}

fn put(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn words(keys: &[Key]) -> Vec<u8> {
    let mut words = Vec::new();
    keys.iter().for_each(|key| key.push_to(&mut words));
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn set_magic() -> u64 {
    u64::from_le_bytes(SET_UUID[..8].try_into().unwrap())
}

/// The key of a node in `bucket` that ends at `pos`.
pub(super) fn node_key(pos: Pos, bucket: u64, r#gen: u8) -> Key {
    Key::node(pos, BUCKET as u32, Ptr::new(bucket * BUCKET, Gen(r#gen)))
}

/// A key of inode 0: sectors `start..end` at the start of data bucket `bucket` plus `at`.
pub(super) fn extent(start: u64, end: u64, bucket: u64, r#gen: u8, dirty: bool) -> Key {
    Key::extent(
        0,
        start,
        (end - start) as u32,
        Ptr::new(bucket * BUCKET, Gen(r#gen)),
        dirty,
    )
}

impl Disk {
    pub(super) fn new() -> Disk {
        Disk {
            bytes: vec![0; (BUCKETS * BUCKET * 512) as usize],
            gens: vec![0; BUCKETS as usize],
            sets: vec![Vec::new()],
            level: 0,
            nodes: Vec::new(),
            slots: vec![(*b"device in slot 0", 0)],
            discard: false,
        }
    }

    pub(super) fn geometry() -> CacheGeometry {
        let meta_bytes = BUCKET * 512;
        let prios_per_bucket = (meta_bytes - 40) / 3;
        CacheGeometry {
            bucket_sectors: BUCKET as u32,
            block_sectors: 1,
            nbuckets: BUCKETS,
            first_bucket: FIRST,
            meta_sectors: BUCKET as u32,
            node_sectors: BUCKET as u32,
            prios_per_bucket,
            prio_buckets: BUCKETS.div_ceil(prios_per_bucket),
            uuid_slots: (meta_bytes / 128) as u32,
            journal_buckets: (FIRST..FIRST + JOURNAL).collect(),
            read_only_layout: false,
            set_magic: set_magic(),
        }
    }

    fn root_key(&self) -> Key {
        node_key(Pos::MAX, ROOT_BUCKET, 1)
    }

    /// The bytes of a journal entry that names this disk's metadata.
    pub(super) fn entry(&self, entry: &Entry) -> Vec<u8> {
        let keys = words(&entry.keys);
        let mut bytes = vec![0; 240];
        put(&mut bytes, 8, set_magic() ^ 0x2452_35c1_a362_5032);
        put(&mut bytes, 16, entry.seq);
        put32(&mut bytes, 24, 1);
        put32(&mut bytes, 28, (keys.len() / 8) as u32);
        put(&mut bytes, 32, entry.last_seq);
        let uuid_key = node_key(Pos::ZERO, UUID_BUCKET, 1);
        bytes[40..40 + 24].copy_from_slice(&words(&[uuid_key]));
        bytes[104..104 + 24].copy_from_slice(&words(&[self.root_key()]));
        bytes[168..170].copy_from_slice(&self.level.to_le_bytes());
        put(&mut bytes, 176, PRIO_BUCKET);
        bytes.extend(keys);
        let csum = crc::checksum(crc::SEED, &bytes[8..]);
        put(&mut bytes, 0, csum);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    /// Writes entries back to back from the start of a ring bucket; gives the sector behind the last one.
    pub(super) fn journal(&mut self, index: u64, entries: &[Entry]) -> u64 {
        let mut at = ((FIRST + index) * BUCKET * 512) as usize;
        for entry in entries {
            let bytes = self.entry(entry);
            self.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
            at += bytes.len();
        }
        at as u64 / 512 - (FIRST + index) * BUCKET
    }

    /// Changes one byte of a sector of a ring bucket, past the header's first words.
    pub(super) fn damage(&mut self, index: u64, sector: u64) {
        self.bytes[(((FIRST + index) * BUCKET + sector) * 512 + 200) as usize] ^= 1;
    }

    /// Takes the magic away from an entry, so that nothing there looks like one.
    pub(super) fn erase_magic(&mut self, index: u64, sector: u64) {
        let at = (((FIRST + index) * BUCKET + sector) * 512) as usize;
        self.bytes[at + 8..at + 16].fill(0);
    }

    fn node(&mut self, bucket: u64, r#gen: u8, sets: &[Vec<Key>]) {
        let mut at = (bucket * BUCKET * 512) as usize;
        for keys in sets {
            let keys = words(keys);
            let mut bytes = vec![0; 32];
            put(&mut bytes, 8, set_magic() ^ 0x9013_5c78_b99e_07f5);
            put(&mut bytes, 16, 0x1000 + bucket);
            put32(&mut bytes, 24, 1);
            put32(&mut bytes, 28, (keys.len() / 8) as u32);
            bytes.extend(keys);
            let csum = crc::checksum(Ptr::new(bucket * BUCKET, Gen(r#gen)).0, &bytes[8..]);
            put(&mut bytes, 0, csum);
            self.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
            at += bytes.len().next_multiple_of(512);
        }
    }

    /// Writes everything but the journal.
    pub(super) fn finish(&mut self) {
        let sets = std::mem::take(&mut self.sets);
        self.node(ROOT_BUCKET, 1, &sets);
        for (bucket, sets) in std::mem::take(&mut self.nodes) {
            self.node(bucket, 1, &sets);
        }
        for (i, (uuid, sectors)) in self.slots.iter().enumerate() {
            let at = (UUID_BUCKET * BUCKET * 512) as usize + 128 * i;
            let slot = &mut self.bytes[at..at + 128];
            slot[..16].copy_from_slice(uuid);
            put32(slot, 48, 1);
            put32(slot, 52, 1);
            put32(slot, 60, u32::from(*sectors != 0));
            put(slot, 64, *sectors);
        }
        let entries: Vec<(u16, Gen)> = self.gens.iter().map(|r#gen| (0, Gen(*r#gen))).collect();
        let table = prio::encode(1, 0, &entries, set_magic(), (BUCKET * 512) as usize);
        let at = (PRIO_BUCKET * BUCKET * 512) as usize;
        self.bytes[at..at + table.len()].copy_from_slice(&table);
    }

    pub(super) fn load_with(
        &self,
        survivors: &[SurvivorEntry],
        how: How,
    ) -> Result<Loaded, LoadError> {
        let mut sb = Superblock::new_cache(&NewCache {
            device_sectors: BUCKETS * BUCKET,
            bucket_sectors: BUCKET as u32,
            block_sectors: 1,
            uuid: [1; 16],
            set_uuid: SET_UUID,
            discard: self.discard,
            replacement: Replacement::Lru,
        })
        .unwrap();
        sb.set_sync(true);
        let image = Image::memory(self.bytes.clone());
        run(load(
            &TestEnv::new(),
            &image,
            sb,
            Disk::geometry(),
            survivors,
            how,
        ))
    }

    pub(super) fn load(&self) -> Result<Loaded, LoadError> {
        self.load_with(&[], How::default())
    }
}
