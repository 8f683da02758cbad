//! Where everything of an image is.

use super::recipe::Recipe;
use crate::chance::Chance;
use brigade_format::{
    BackingState, BucketNr, CacheGeometry, CacheMode, FormatError, Gen, NewBacking, NewCache, Ptr,
    Replacement, Superblock,
};

/// Sectors in front of a backing device's data.
const DATA_OFFSET: u64 = 16;
/// Least buckets of a cache device.
const BUCKETS_MIN: u64 = 513;
/// Buckets without data beside the tenth.
const FREE_MIN: u64 = 16;
/// Each key of a leaf has one pointer.
const KEY_BYTES: u64 = 24;
/// Header of a set.
const SET_BYTES: u64 = 32;
/// Some moment in 2023; images are the same whenever they are made.
const MADE: u32 = 1_700_000_000;

/// Where everything is, in buckets and sectors, and the superblocks.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Sizes of the cache device.
    pub geometry: CacheGeometry,
    /// Its superblock.
    pub cache_superblock: Superblock,
    /// The backing device's.
    pub backing_superblock: Superblock,
    /// Size of the cache device.
    pub cache_sectors: u64,
    /// Size of the backing device.
    pub backing_sectors: u64,
    /// The first bucket of the prio chain.
    pub prio_start: u64,
    /// The bucket of the UUID table.
    pub uuid_bucket: u64,
    /// The first bucket of the tree; one for each node.
    pub node_start: u64,
    /// Nodes by level, leaves first.
    pub nodes: Vec<u64>,
    /// The first bucket of data.
    pub data_start: u64,
    /// The first bucket behind data.
    pub data_end: u64,
    /// Keys of a leaf.
    pub leaf_keys: u64,
    /// Most children of an interior node.
    pub fanout: u64,
    /// Places for an extent in a bucket.
    pub slots_per_bucket: u64,
    /// Where an extent is: its number times this, modulo all slots.
    stride: u64,
    seed: u64,
}

/// A number that depends on nothing but these.
fn chance(seed: u64, about: u64) -> u64 {
    Chance::new(seed.rotate_left(32) ^ about).number()
}

fn uuid(seed: u64, about: u64) -> [u8; 16] {
    let numbers = [chance(seed, about), chance(seed, about + 1)];
    std::array::from_fn(|i| numbers[i / 8].to_le_bytes()[i % 8])
}

impl Layout {
    /// The layout of a recipe; the number of buckets depends on itself by the tables, so it is approached from below.
    pub(super) fn of(recipe: &Recipe) -> Result<Layout, String> {
        let bucket = u64::from(recipe.bucket_sectors.max(1));
        if let Some(sectors) = recipe.cache_sectors {
            let layout = Layout::with_buckets(recipe, sectors / bucket)?;
            let there = sectors / bucket;
            return match layout.data_end <= there {
                true => Ok(layout),
                false => Err(format!("--size: at least {} buckets", layout.data_end)),
            };
        }
        let mut buckets = BUCKETS_MIN;
        loop {
            let layout = Layout::with_buckets(recipe, buckets)?;
            let data = layout.data_end - layout.data_start;
            let wanted = layout.data_end + data / 10 + FREE_MIN;
            if wanted <= buckets {
                return Ok(layout);
            }
            buckets = wanted;
        }
    }

    fn with_buckets(recipe: &Recipe, buckets: u64) -> Result<Layout, String> {
        let bucket = u64::from(recipe.bucket_sectors);
        let spacing = u64::from(recipe.extent_sectors) + recipe.gap_sectors;
        let (cache_sectors, backing_sectors) =
            (buckets * bucket, DATA_OFFSET + recipe.extents * spacing);
        let words = |error: FormatError| error.to_string();
        let cache_superblock = cache_superblock(recipe, buckets, cache_sectors).map_err(words)?;
        let backing_superblock = backing_superblock(recipe, backing_sectors).map_err(words)?;
        let geometry = cache_superblock
            .cache_geometry(cache_sectors, 512)
            .map_err(words)?;
        let block = u64::from(geometry.block_sectors) * 512;
        let room = (geometry.node_bytes() as u64)
            .checked_sub(recipe.sets * (SET_BYTES + block))
            .filter(|room| *room >= 4 * KEY_BYTES)
            .ok_or("a node has no room for so many sets")?;
        let leaf_keys = (room / KEY_BYTES * recipe.fill_percent / 100).max(1);
        let fanout = leaf_keys.max(2).min(recipe.fanout);
        let nodes = levels(recipe.extents.div_ceil(leaf_keys), fanout);
        let slots_per_bucket = u64::from(recipe.bucket_sectors / recipe.extent_sectors);
        let prio_start = geometry.first_bucket + geometry.journal_buckets.len() as u64;
        let uuid_bucket = prio_start + geometry.prio_buckets;
        let node_start = uuid_bucket + 1;
        let data_start = node_start + nodes.iter().sum::<u64>();
        let slots = (recipe.extents * 100).div_ceil(recipe.live_percent);
        let data_end = data_start + slots.div_ceil(slots_per_bucket);
        Ok(Layout {
            geometry,
            cache_superblock,
            backing_superblock,
            cache_sectors,
            backing_sectors,
            prio_start,
            uuid_bucket,
            node_start,
            nodes,
            data_start,
            data_end,
            leaf_keys,
            fanout,
            slots_per_bucket,
            stride: stride((data_end - data_start) * slots_per_bucket),
            seed: recipe.seed,
        })
    }

    /// The generation of a bucket.
    pub fn generation(&self, bucket: u64) -> Gen {
        Gen(chance(self.seed, bucket << 8).to_le_bytes()[0])
    }

    /// What a node or chain in this bucket is numbered with.
    pub(super) fn seq(&self, bucket: u64) -> u64 {
        chance(self.seed, bucket << 8 | 1).max(1)
    }

    /// The start of a bucket, with its generation.
    pub fn pointer(&self, bucket: u64) -> Ptr {
        let sector = self.geometry.bucket_start(BucketNr(bucket));
        Ptr::new(sector, self.generation(bucket))
    }

    /// Where an extent is on the cache device.
    pub fn place(&self, extent: u64) -> Ptr {
        let slots = (self.data_end - self.data_start) * self.slots_per_bucket;
        let slot = (u128::from(extent) * u128::from(self.stride) % u128::from(slots)) as u64;
        let bucket = self.data_start + slot / self.slots_per_bucket;
        let size = u64::from(self.geometry.bucket_sectors) / self.slots_per_bucket;
        self.pointer(bucket)
            .advance(slot % self.slots_per_bucket * size)
    }

    /// How recently a bucket was used.
    pub(super) fn prio(&self, bucket: u64) -> u16 {
        match bucket {
            _ if bucket < self.data_start => brigade_format::prio::PRIO_NODE,
            _ if bucket < self.data_end => 1 + (chance(self.seed, bucket << 8 | 2) & 0x7fff) as u16,
            _ => 0,
        }
    }

    /// The slot 0 of the UUID table.
    pub(super) fn uuid_entry(&self) -> brigade_format::UuidEntry {
        brigade_format::UuidEntry::cached(self.backing_superblock.uuid, [0; 32], MADE)
    }
}

/// Nodes by level.
fn levels(leaves: u64, fanout: u64) -> Vec<u64> {
    let mut nodes = vec![leaves];
    while let Some(&count) = nodes.last().filter(|count| **count > 1) {
        nodes.push(count.div_ceil(fanout));
    }
    nodes
}

/// A number without a common divisor with `slots`, near their golden section.
fn stride(slots: u64) -> u64 {
    let divisor = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let near = (u128::from(slots) * 618 / 1000) as u64;
    (near.max(1)..)
        .find(|stride| divisor(*stride, slots) == 1)
        .unwrap_or(1)
}

fn cache_superblock(
    recipe: &Recipe,
    buckets: u64,
    device_sectors: u64,
) -> Result<Superblock, FormatError> {
    let mut superblock = Superblock::new_cache(&NewCache {
        device_sectors,
        bucket_sectors: recipe.bucket_sectors,
        block_sectors: recipe.block_sectors,
        uuid: uuid(recipe.seed, 2),
        set_uuid: uuid(recipe.seed, 4),
        discard: false,
        replacement: Replacement::Lru,
    })?;
    let first = u64::from(superblock.first_bucket);
    let journal = (buckets / 128).clamp(2, 256);
    superblock.journal = (first..first + journal).collect();
    superblock.last_mount = MADE;
    superblock.set_sync(true);
    superblock.count_write();
    Superblock::parse(&superblock.encode())
}

fn backing_superblock(recipe: &Recipe, device_sectors: u64) -> Result<Superblock, FormatError> {
    let mut superblock = Superblock::new_backing(&NewBacking {
        device_sectors,
        data_offset: DATA_OFFSET,
        block_sectors: recipe.block_sectors,
        uuid: uuid(recipe.seed, 6),
        set_uuid: uuid(recipe.seed, 4),
        mode: CacheMode::Writeback,
        label: String::new(),
    })?;
    superblock.set_state(match recipe.dirty_percent {
        0 => BackingState::Clean,
        _ => BackingState::Dirty,
    });
    superblock.last_mount = MADE;
    Superblock::parse(&superblock.encode())
}
