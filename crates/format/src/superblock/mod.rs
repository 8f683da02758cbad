//! The superblock of cache and backing devices (`docs/format.md` 1).
//!
//! There is one copy, and other software writes into it too, so a [`Superblock`] keeps the bytes it came
//! from: [`Superblock::encode`] writes the known fields of its role over them and leaves the rest alone.
//! `parse` checks what makes it a superblock at all; whether it fits the device it was read from is asked
//! with the device's size in hand, by [`Superblock::cache_geometry`] or [`Superblock::backing_data_offset`].

mod flags;
mod geometry;
mod make;
mod print;

pub use flags::{BackingState, CacheMode, Replacement};
pub use geometry::{CacheGeometry, KERNEL_NBUCKETS_MIN, META_SECTORS_MAX, NBUCKETS_MIN};
pub use make::{NewBacking, NewCache};

use crate::bytes::{array, put, u16_at, u32_at, u64_at};
use crate::crc;
use crate::error::{FormatError, ensure};

/// Bytes of a superblock.
pub const BYTES: usize = 4096;
/// Where it lies on every device.
pub const DEVICE_OFFSET: u64 = 4096;
/// The sector it names itself as lying at.
pub const SECTOR: u64 = 8;
/// What all superblocks carry.
pub const MAGIC: [u8; 16] = [
    0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca, 0x82, 0x65, 0xf5, 0x7f, 0x48, 0xba, 0x6d, 0x81,
];
/// Most buckets a journal may have.
pub const JOURNAL_BUCKETS_MAX: usize = 256;
/// Feature bit: the bucket size has 32 bits, and devices of the set are read-only.
pub const INCOMPAT_OBSOLETE_LARGE_BUCKET: u64 = 1;
/// Feature bit: the bucket size field holds a logarithm.
pub const INCOMPAT_LOG_LARGE_BUCKET: u64 = 2;

/// Byte offsets of the fields.
mod at {
    pub(super) const CSUM: usize = 0;
    pub(super) const OFFSET: usize = 8;
    pub(super) const VERSION: usize = 16;
    pub(super) const MAGIC: usize = 24;
    pub(super) const UUID: usize = 40;
    pub(super) const SET_UUID: usize = 56;
    pub(super) const LABEL: usize = 72;
    pub(super) const FLAGS: usize = 104;
    pub(super) const SEQ: usize = 112;
    pub(super) const COMPAT: usize = 120;
    /// Before ro_compat, unlike what one expects.
    pub(super) const INCOMPAT: usize = 128;
    pub(super) const RO_COMPAT: usize = 136;
    /// `nbuckets` of a cache device, `data_offset` of a backing device.
    pub(super) const UNION: usize = 184;
    pub(super) const BLOCK_SIZE: usize = 192;
    pub(super) const BUCKET_SIZE: usize = 194;
    pub(super) const NR_IN_SET: usize = 196;
    pub(super) const NR_THIS_DEV: usize = 198;
    pub(super) const LAST_MOUNT: usize = 200;
    pub(super) const FIRST_BUCKET: usize = 204;
    pub(super) const NJOURNAL: usize = 206;
    pub(super) const JOURNAL: usize = 208;
    pub(super) const BUCKET_SIZE_HI: usize = 2256;
}

const _: () = assert!(at::JOURNAL + 8 * JOURNAL_BUCKETS_MAX == at::BUCKET_SIZE_HI);
const _: () = assert!(at::BUCKET_SIZE_HI + 2 <= BYTES);

/// What a device is for; its version says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Versions 0, 3 and 5.
    Cache,
    /// Versions 1, 4 and 6.
    Backing,
}

impl Role {
    /// The role of a version; `None` for one that does not exist.
    pub fn of_version(version: u64) -> Option<Role> {
        match version {
            0 | 3 | 5 => Some(Role::Cache),
            1 | 4 | 6 => Some(Role::Backing),
            _ => None,
        }
    }
}

/// A superblock. Fields that mean nothing in its role are as read and are not written back from here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Superblock {
    /// 0, 3, 5 (cache) or 1, 4, 6 (backing).
    pub version: u64,
    /// This device.
    pub uuid: [u8; 16],
    /// The set. In a backing device that is not attached it may be anything.
    pub set_uuid: [u8; 16],
    /// Backing device: its name, without a NUL if it fills the field. Better through [`Superblock::label`].
    pub label: [u8; 32],
    /// All flag bits; better through the getters and setters.
    pub flags: u64,
    /// Counts writes of a cache superblock; never changes in a backing device.
    pub seq: u64,
    /// Version 5 only. In version 6 it is uninitialised memory of some kernel and means nothing.
    pub feature_compat: u64,
    /// As `feature_compat`.
    pub feature_incompat: u64,
    /// As `feature_compat`.
    pub feature_ro_compat: u64,
    /// Cache device: its buckets. 0 in a backing device.
    pub nbuckets: u64,
    /// Backing device: the field as it is; see [`Superblock::data_start`]. 0 in a cache device.
    pub data_offset: u64,
    /// Sectors of a block.
    pub block_size: u16,
    /// Cache device: the raw field; see [`Superblock::bucket_sectors`]. Means nothing in a backing device.
    pub bucket_size: u16,
    /// Cache devices of the set.
    pub nr_in_set: u16,
    /// Index of this one.
    pub nr_this_dev: u16,
    /// Unix seconds.
    pub last_mount: u32,
    /// Cache device: the first bucket in use behind the superblock.
    pub first_bucket: u16,
    /// Cache device: the buckets of the journal, in ring order.
    pub journal: Vec<u64>,
    /// Only with [`INCOMPAT_OBSOLETE_LARGE_BUCKET`].
    pub bucket_size_hi: u16,
    raw: Box<[u8; BYTES]>,
}

impl Superblock {
    /// Reads a superblock from the first 4096 of `bytes`, checking what does not need the device.
    pub fn parse(bytes: &[u8]) -> Result<Superblock, FormatError> {
        let what = "superblock";
        let short = || {
            let found = format!("{} bytes", bytes.len());
            FormatError::new(what, 0, found, "4096 bytes")
        };
        let raw = bytes.first_chunk::<BYTES>().ok_or_else(short)?;
        check_identity(raw)?;
        check_checksum(raw)?;
        ensure(
            array::<16>(raw, at::UUID) != [0; 16],
            "superblock uuid",
            field(at::UUID),
            || "zero".into(),
            "a uuid",
        )?;
        let version = u64_at(raw, at::VERSION);
        let role = Role::of_version(version).ok_or_else(|| {
            let found = version.to_string();
            FormatError::new(
                "superblock version",
                field(at::VERSION),
                found,
                "0, 3, 5 (cache) or 1, 4, 6 (backing)",
            )
        })?;
        Ok(Self::from_raw(raw, role))
    }

    /// Whether `bytes` look like a superblock, good or bad: magic alone.
    pub fn is_claimed(bytes: &[u8]) -> bool {
        bytes.len() >= at::UUID && array::<16>(bytes, at::MAGIC) == MAGIC
    }

    fn from_raw(raw: &[u8; BYTES], role: Role) -> Superblock {
        let union = u64_at(raw, at::UNION);
        let journal_count = match role {
            Role::Cache => usize::from(u16_at(raw, at::NJOURNAL)),
            Role::Backing => 0,
        };
        Superblock {
            version: u64_at(raw, at::VERSION),
            uuid: array(raw, at::UUID),
            set_uuid: array(raw, at::SET_UUID),
            label: array(raw, at::LABEL),
            flags: u64_at(raw, at::FLAGS),
            seq: u64_at(raw, at::SEQ),
            feature_compat: u64_at(raw, at::COMPAT),
            feature_incompat: u64_at(raw, at::INCOMPAT),
            feature_ro_compat: u64_at(raw, at::RO_COMPAT),
            nbuckets: if role == Role::Cache { union } else { 0 },
            data_offset: if role == Role::Backing { union } else { 0 },
            block_size: u16_at(raw, at::BLOCK_SIZE),
            bucket_size: u16_at(raw, at::BUCKET_SIZE),
            nr_in_set: u16_at(raw, at::NR_IN_SET),
            nr_this_dev: u16_at(raw, at::NR_THIS_DEV),
            last_mount: u32_at(raw, at::LAST_MOUNT),
            first_bucket: u16_at(raw, at::FIRST_BUCKET),
            journal: (0..journal_count.min(JOURNAL_BUCKETS_MAX))
                .map(|index| u64_at(raw, at::JOURNAL + 8 * index))
                .collect(),
            bucket_size_hi: u16_at(raw, at::BUCKET_SIZE_HI),
            raw: Box::new(*raw),
        }
    }

    /// Cache or backing device.
    pub fn role(&self) -> Role {
        Role::of_version(self.version).unwrap_or(Role::Cache)
    }

    /// The 4096 bytes to write: this role's fields over the bytes as read, with a fresh checksum.
    ///
    /// The device's uuid, `nbuckets` or `data_offset`, and the sizes of block and bucket are settled when a
    /// device is formatted: those fields are for reading, and changing one changes nothing here.
    ///
    /// # Panics
    /// If the journal list has more than 256 buckets.
    pub fn encode(&self) -> [u8; BYTES] {
        let mut raw = *self.raw;
        put(&mut raw, at::VERSION, &self.version.to_le_bytes());
        put(&mut raw, at::SET_UUID, &self.set_uuid);
        put(&mut raw, at::FLAGS, &self.flags.to_le_bytes());
        put(&mut raw, at::LAST_MOUNT, &self.last_mount.to_le_bytes());
        match self.role() {
            Role::Cache => self.encode_cache_fields(&mut raw),
            Role::Backing => put(&mut raw, at::LABEL, &self.label),
        }
        seal(&mut raw);
        raw
    }

    fn encode_cache_fields(&self, raw: &mut [u8; BYTES]) {
        let journal_count = u16::try_from(self.journal.len()).unwrap_or(u16::MAX);
        assert!(
            usize::from(journal_count) <= JOURNAL_BUCKETS_MAX,
            "a journal of {journal_count} buckets"
        );
        put(raw, at::SEQ, &self.seq.to_le_bytes());
        put(raw, at::FIRST_BUCKET, &self.first_bucket.to_le_bytes());
        put(raw, at::NJOURNAL, &journal_count.to_le_bytes());
        crate::bytes::put_words(raw, at::JOURNAL, &self.journal);
        if self.version >= 5 {
            put(raw, at::COMPAT, &self.feature_compat.to_le_bytes());
            put(raw, at::INCOMPAT, &self.feature_incompat.to_le_bytes());
            put(raw, at::RO_COMPAT, &self.feature_ro_compat.to_le_bytes());
        }
    }

    /// What every write of a cache superblock changes: the sequence number and, from version 0, the version
    /// (`docs/format.md` 1.7). Call it once before [`Superblock::encode`]. Nothing in a backing device.
    pub fn count_write(&mut self) {
        if self.role() == Role::Cache {
            self.seq = self.seq.wrapping_add(1);
            self.version = self.version.max(3);
        }
    }

    /// The bytes this was read from, or made as.
    pub fn raw(&self) -> &[u8; BYTES] {
        &self.raw
    }

    /// The number all magics of the set are made from: the start of the set uuid (`docs/format.md` 4.1).
    pub fn set_magic(&self) -> u64 {
        u64_at(&self.set_uuid, 0)
    }

    /// The label up to its first NUL, with what is no UTF-8 replaced.
    pub fn label(&self) -> String {
        label_text(&self.label)
    }

    /// Sets the label; what is longer than 32 bytes is cut at a character's start.
    pub fn set_label(&mut self, label: &str) {
        self.label = label_bytes(label);
    }
}

/// A label field as text: up to the first NUL, what is no UTF-8 replaced.
pub fn label_text(label: &[u8; 32]) -> String {
    let end = label.iter().position(|&byte| byte == 0).unwrap_or(32);
    String::from_utf8_lossy(label.get(..end).unwrap_or_default()).into_owned()
}

/// Text as a label field, cut at a character's start if it is longer than 32 bytes.
pub fn label_bytes(label: &str) -> [u8; 32] {
    let end = (0..=label.len().min(32))
        .rev()
        .find(|&end| label.is_char_boundary(end))
        .unwrap_or(0);
    let mut field = [0; 32];
    put(
        &mut field,
        0,
        label.get(..end).unwrap_or_default().as_bytes(),
    );
    field
}

fn field(at: usize) -> u64 {
    u64::try_from(at).unwrap_or(u64::MAX)
}

fn check_identity(raw: &[u8; BYTES]) -> Result<(), FormatError> {
    let offset = u64_at(raw, at::OFFSET);
    ensure(
        offset == SECTOR,
        "superblock offset",
        field(at::OFFSET),
        || offset.to_string(),
        "8",
    )?;
    ensure(
        array::<16>(raw, at::MAGIC) == MAGIC,
        "superblock magic",
        field(at::MAGIC),
        || uuid::Uuid::from_bytes(array(raw, at::MAGIC)).to_string(),
        "c68573f6-4e1a-45ca-8265-f57f48ba6d81",
    )?;
    let journal_count = usize::from(u16_at(raw, at::NJOURNAL));
    ensure(
        journal_count <= JOURNAL_BUCKETS_MAX,
        "superblock njournal",
        field(at::NJOURNAL),
        || journal_count.to_string(),
        "at most 256",
    )
}

fn check_checksum(raw: &[u8; BYTES]) -> Result<(), FormatError> {
    let (stored, computed) = (u64_at(raw, at::CSUM), checksum_of(raw));
    if stored == computed {
        return Ok(());
    }
    let (found, expected) = (format!("{stored:016x}"), format!("{computed:016x}"));
    Err(FormatError::new("superblock csum", 0, found, expected))
}

/// The checksum over the bytes up to the end of the journal list, wherever `njournal` says that is.
fn checksum_of(raw: &[u8; BYTES]) -> u64 {
    let journal_count = usize::from(u16_at(raw, at::NJOURNAL)).min(JOURNAL_BUCKETS_MAX);
    let end = at::JOURNAL + 8 * journal_count;
    crc::checksum(crc::SEED, raw.get(at::OFFSET..end).unwrap_or_default())
}

fn seal(raw: &mut [u8; BYTES]) {
    let csum = checksum_of(raw);
    put(raw, at::CSUM, &csum.to_le_bytes());
}

#[cfg(test)]
mod tests;
