//! New superblocks, as a formatter writes them (`docs/format.md` 1.8).
//!
//! Nothing else needs to be on the device: the first open of a blank set makes the rest. What does need doing
//! is wiping what may be mistaken for something else, and that is the caller's.

use super::{
    BYTES, BackingState, CacheMode, INCOMPAT_LOG_LARGE_BUCKET, MAGIC, Replacement, Role, SECTOR,
    Superblock, at, field, label_bytes, seal,
};
use crate::bytes::put;
use crate::error::FormatError;

/// The least sector at which the data of a backing device may start, and where it does in version 1.
pub const DATA_OFFSET_MIN: u64 = 16;
/// The largest power of two the plain bucket size field holds.
const PLAIN_BUCKET_SECTORS_MAX: u32 = 1 << 15;
/// Sectors a formatter keeps free at the start, rounded up to buckets.
const FRONT_SECTORS: u32 = 23;

/// What a new, blank cache device is to be.
#[derive(Clone, Debug)]
pub struct NewCache {
    /// Sectors of the device; what is left behind the last whole bucket is not used.
    pub device_sectors: u64,
    /// Sectors of a bucket, a power of two.
    pub bucket_sectors: u32,
    /// Sectors of a block, a power of two up to 8.
    pub block_sectors: u16,
    /// This device.
    pub uuid: [u8; 16],
    /// The set. It MUST be new: under an old one, an old journal comes back (`docs/format.md` 8.1).
    pub set_uuid: [u8; 16],
    /// Whether to discard buckets.
    pub discard: bool,
    /// The replacement policy.
    pub replacement: Replacement,
}

/// What a new backing device is to be.
#[derive(Clone, Debug)]
pub struct NewBacking {
    /// Sectors of the device.
    pub device_sectors: u64,
    /// The sector at which its data starts, at least 16.
    pub data_offset: u64,
    /// Sectors of a block, a power of two.
    pub block_sectors: u16,
    /// This device.
    pub uuid: [u8; 16],
    /// The set to attach to at the first open; anything else if none.
    pub set_uuid: [u8; 16],
    /// The cache mode.
    pub mode: CacheMode,
    /// The label, up to 32 bytes.
    pub label: String,
}

impl Superblock {
    /// The superblock of a blank cache device, or what about it no kernel would take.
    pub fn new_cache(new: &NewCache) -> Result<Superblock, FormatError> {
        let buckets = new
            .device_sectors
            .checked_div(u64::from(new.bucket_sectors));
        let nbuckets = buckets.ok_or_else(|| {
            FormatError::new(
                "superblock bucket_size",
                field(at::BUCKET_SIZE),
                "0",
                "a power of two",
            )
        })?;
        let large = new.bucket_sectors > PLAIN_BUCKET_SECTORS_MAX;
        let bucket_size = if large {
            new.bucket_sectors.ilog2()
        } else {
            new.bucket_sectors
        };
        let mut raw = blank(&new.uuid, &new.set_uuid, if large { 5 } else { 3 });
        put(&mut raw, at::UNION, &nbuckets.to_le_bytes());
        put(&mut raw, at::BLOCK_SIZE, &new.block_sectors.to_le_bytes());
        put(&mut raw, at::BUCKET_SIZE, &low_half(bucket_size));
        put(&mut raw, at::NR_IN_SET, &1u16.to_le_bytes());
        put(
            &mut raw,
            at::FIRST_BUCKET,
            &low_half(FRONT_SECTORS / new.bucket_sectors + 1),
        );
        let mut made = Superblock::from_raw(&raw, Role::Cache);
        made.feature_incompat = if large { INCOMPAT_LOG_LARGE_BUCKET } else { 0 };
        made.set_discard(new.discard);
        made.set_replacement(new.replacement);
        if made.bucket_sectors() != new.bucket_sectors {
            let found = new.bucket_sectors.to_string();
            let at = field(at::BUCKET_SIZE);
            return Err(FormatError::new(
                "superblock bucket_size",
                at,
                found,
                "a power of two",
            ));
        }
        made.cache_geometry(new.device_sectors, 512)?;
        Superblock::parse(&made.encode())
    }

    /// The superblock of a backing device that is not attached, or what about it nobody would take.
    pub fn new_backing(new: &NewBacking) -> Result<Superblock, FormatError> {
        let version = if new.data_offset == DATA_OFFSET_MIN {
            1
        } else {
            4
        };
        let mut raw = blank(&new.uuid, &new.set_uuid, version);
        put(&mut raw, at::LABEL, &label_bytes(&new.label));
        put(&mut raw, at::UNION, &new.data_offset.to_le_bytes());
        put(&mut raw, at::BLOCK_SIZE, &new.block_sectors.to_le_bytes());
        let mut made = Superblock::from_raw(&raw, Role::Backing);
        made.set_cache_mode(new.mode);
        made.set_state(BackingState::None);
        made.backing_data_offset(new.device_sectors, 512)?;
        Superblock::parse(&made.encode())
    }
}

fn blank(uuid: &[u8; 16], set_uuid: &[u8; 16], version: u64) -> [u8; BYTES] {
    let mut raw = [0; BYTES];
    put(&mut raw, at::OFFSET, &SECTOR.to_le_bytes());
    put(&mut raw, at::VERSION, &version.to_le_bytes());
    put(&mut raw, at::MAGIC, &MAGIC);
    put(&mut raw, at::UUID, uuid);
    put(&mut raw, at::SET_UUID, set_uuid);
    seal(&mut raw);
    raw
}

fn low_half(value: u32) -> [u8; 2] {
    let [low, high, ..] = value.to_le_bytes();
    [low, high]
}
