//! Small sets, as a writer would leave them or with something changed.

use brigade_format::jset::{self, JsetHeader};
use brigade_format::superblock::{CacheGeometry, NewBacking, NewCache, Replacement, Superblock};
use brigade_format::{
    BackingState, CacheMode, Gen, Key, Pos, Ptr, UuidEntry, key_words, node, prio, uuid_table,
};

pub const BUCKET_SECTORS: u32 = 16;
pub const BUCKET: u64 = BUCKET_SECTORS as u64 * 512;
pub const BUCKETS: u64 = 600;
pub const ROOT: u64 = 20;
pub const UUIDS: u64 = 21;
pub const PRIOS: u64 = 22;
/// From here on buckets hold data or nodes.
pub const DATA: u64 = 30;
pub const DEVICE_UUID: [u8; 16] = [9; 16];
const SET_UUID: [u8; 16] = [2; 16];

/// The start of a bucket.
pub fn pointer(bucket: u64, r#gen: u8) -> Ptr {
    Ptr::new(bucket * u64::from(BUCKET_SECTORS), Gen(r#gen))
}

/// An extent of slot 0 at the start of a bucket.
pub fn extent(start: u64, sectors: u32, bucket: u64, dirty: bool) -> Key {
    Key::extent(0, start, sectors, pointer(bucket, 1), dirty)
}

/// A set to be.
pub struct Made {
    pub superblock: Superblock,
    pub geometry: CacheGeometry,
    pub image: Vec<u8>,
    /// What all journal entries say besides numbers and keys.
    pub head: JsetHeader,
    /// Number of the first entry, and of the oldest that is needed.
    pub first_seq: u64,
    pub last_seq: u64,
    /// Keys of the entries.
    pub entries: Vec<Vec<Key>>,
    pub gens: Vec<(u16, Gen)>,
    pub table: Vec<UuidEntry>,
}

impl Made {
    /// An empty root, one slot, no keys; generation 1 everywhere.
    pub fn new() -> Made {
        Made::with_blocks(1)
    }

    /// As [`Made::new`], with blocks of so many sectors.
    pub fn with_blocks(block_sectors: u16) -> Made {
        let sectors = BUCKETS * u64::from(BUCKET_SECTORS);
        let mut superblock = Superblock::new_cache(&NewCache {
            device_sectors: sectors,
            bucket_sectors: BUCKET_SECTORS,
            block_sectors,
            uuid: [1; 16],
            set_uuid: SET_UUID,
            discard: false,
            replacement: Replacement::Lru,
        })
        .expect("fine");
        superblock.set_sync(true);
        superblock.journal = vec![2, 3, 4, 5];
        let geometry = superblock.cache_geometry(sectors, 512).expect("fine");
        let mut table = vec![UuidEntry::EMPTY; geometry.uuid_slots as usize];
        table[0] = UuidEntry::cached(DEVICE_UUID, [0; 32], 1000);
        let head = JsetHeader {
            seq: 0,
            last_seq: 0,
            version: 1,
            uuid_bucket: Key::node(Pos::ZERO, geometry.meta_sectors, pointer(UUIDS, 1)),
            btree_root: Key::node(Pos::MAX, geometry.node_sectors, pointer(ROOT, 1)),
            btree_level: 0,
            prio_bucket: PRIOS,
        };
        let mut made = Made {
            superblock,
            geometry,
            image: vec![0; (BUCKETS * BUCKET) as usize],
            head,
            first_seq: 1,
            last_seq: 1,
            entries: vec![Vec::new()],
            gens: vec![(prio::PRIO_INITIAL, Gen(1)); BUCKETS as usize],
            table,
        };
        made.node(ROOT, &[vec![]]);
        made
    }

    pub fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.image[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Writes a node of generation 1; gives the byte at which the last set starts.
    pub fn node(&mut self, bucket: u64, sets: &[Vec<Key>]) -> u64 {
        let (start, mut at, mut last) = (bucket * BUCKET, 0, 0);
        self.image[start as usize..][..BUCKET as usize].fill(0);
        for keys in sets {
            let magic = self.geometry.set_magic;
            let set = node::encode_bset(
                &key_words(keys),
                7000 + bucket,
                pointer(bucket, 1),
                magic,
                self.geometry.block_bytes(),
            );
            assert!(at + set.len() as u64 <= BUCKET, "the node is full");
            self.put(start + at, &set);
            last = start + at;
            at += set.len() as u64;
        }
        last
    }

    /// A root over leaves, whose buckets and last positions are given.
    pub fn root_over(&mut self, leaves: &[(u64, Pos)]) {
        let children = leaves
            .iter()
            .map(|&(bucket, pos)| self.child(bucket, pos, 1))
            .collect();
        self.node(ROOT, &[children]);
        self.head.btree_level = 1;
    }

    pub fn child(&self, bucket: u64, pos: Pos, r#gen: u8) -> Key {
        Key::node(pos, self.geometry.node_sectors, pointer(bucket, r#gen))
    }

    /// Bytes of a journal entry.
    pub fn entry(&self, seq: u64, last_seq: u64, keys: &[Key]) -> Vec<u8> {
        let head = JsetHeader {
            seq,
            last_seq,
            ..self.head
        };
        let block = self.geometry.block_bytes();
        jset::encode(&head, &key_words(keys), self.geometry.set_magic, block)
    }

    /// Where entry `nr` stands in the image; they follow each other from ring index 1 on.
    pub fn entry_offsets(&self) -> Vec<u64> {
        let (mut bucket, mut at) = (3, 0);
        let mut offsets = Vec::new();
        for keys in &self.entries {
            let length = self.entry(1, 1, keys).len() as u64;
            if at + length > BUCKET {
                (bucket, at) = (bucket + 1, 0);
            }
            assert!(bucket < 6, "the journal is full");
            offsets.push(bucket * BUCKET + at);
            at += length;
        }
        offsets
    }

    /// Writes everything that is not written yet.
    pub fn finish(mut self) -> Vec<u8> {
        let superblock = self.superblock.encode();
        self.put(4096, &superblock);
        let table = uuid_table::encode(&self.table);
        self.put(UUIDS * BUCKET, &table);
        assert_eq!(self.geometry.prio_buckets, 1);
        let magic = self.geometry.set_magic;
        let chain = prio::encode(1, 0, &self.gens, magic, self.geometry.meta_bytes());
        self.put(PRIOS * BUCKET, &chain);
        let offsets = self.entry_offsets();
        for (nr, keys) in std::mem::take(&mut self.entries).iter().enumerate() {
            let seq = self.first_seq + nr as u64;
            let entry = self.entry(seq, self.last_seq.min(seq), keys);
            self.put(offsets[nr], &entry);
        }
        self.image
    }
}

/// A backing device of the set with zeros for data.
pub fn backing(state: BackingState, sectors: u64) -> Vec<u8> {
    let mut superblock = Superblock::new_backing(&NewBacking {
        device_sectors: sectors,
        block_sectors: 1,
        data_offset: 16,
        uuid: DEVICE_UUID,
        set_uuid: SET_UUID,
        mode: CacheMode::Writeback,
        label: String::new(),
    })
    .expect("fine");
    superblock.set_state(state);
    let mut image = vec![0; sectors as usize * 512];
    image[4096..8192].copy_from_slice(&superblock.encode());
    image
}
