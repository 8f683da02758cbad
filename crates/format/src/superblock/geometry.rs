//! Whether a superblock fits its device, and the sizes that follow from it (`docs/format.md` 0, 1.5, 1.6).
//!
//! The rules come in the order a kernel applies them, so that the first complaint is the same, with those of
//! our own behind.

use super::{
    INCOMPAT_LOG_LARGE_BUCKET, INCOMPAT_OBSOLETE_LARGE_BUCKET, Role, Superblock, at, field,
};
use crate::error::{FormatError, ensure};
use crate::key::KeyRules;
use crate::ptr::PTR_SECTORS_MAX;
use crate::{SECTOR_BYTES, prio};

/// Metadata never uses more of a bucket than this.
pub const META_SECTORS_MAX: u32 = 8192;
/// Fewer buckets are no cache.
pub const NBUCKETS_MIN: u64 = 128;
/// Fewer no kernel runs, although its first check lets them pass.
pub const KERNEL_NBUCKETS_MIN: u64 = 513;
/// Sectors of a page of the kernels whose images we read.
const PAGE_SECTORS: u32 = 8;
const UUID_SLOT_BYTES: u32 = 128;
const KNOWN_INCOMPAT: u64 = INCOMPAT_OBSOLETE_LARGE_BUCKET | INCOMPAT_LOG_LARGE_BUCKET;

/// Sizes of a cache device, checked against the device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheGeometry {
    /// Sectors of a bucket.
    pub bucket_sectors: u32,
    /// Sectors of a block.
    pub block_sectors: u32,
    /// Buckets of the device, those in front of `first_bucket` included.
    pub nbuckets: u64,
    /// The first bucket in use behind the superblock.
    pub first_bucket: u64,
    /// Sectors of a bucket that prios and the UUID table use.
    pub meta_sectors: u32,
    /// Sectors of a *new* node; one that exists is as long as its key says.
    pub node_sectors: u32,
    /// Entries of a prio bucket.
    pub prios_per_bucket: u64,
    /// Links of the prio chain.
    pub prio_buckets: u64,
    /// Slots of the UUID table.
    pub uuid_slots: u32,
    /// Buckets of the journal in ring order; empty in a blank set.
    pub journal_buckets: Vec<u64>,
    /// The obsolete large-bucket layout: devices of the set are served read-only.
    pub read_only_layout: bool,
    /// What the magics of the set are made from.
    pub set_magic: u64,
}

impl CacheGeometry {
    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        bytes_of(self.block_sectors)
    }

    /// Bytes of a bucket that prios and the UUID table use.
    pub fn meta_bytes(&self) -> usize {
        bytes_of(self.meta_sectors)
    }

    /// Bytes of a bucket.
    pub fn bucket_bytes(&self) -> u64 {
        u64::from(self.bucket_sectors) * SECTOR_BYTES
    }

    /// Bytes of a new node.
    pub fn node_bytes(&self) -> usize {
        bytes_of(self.node_sectors)
    }

    /// What keys of this device are held to.
    pub fn key_rules(&self) -> KeyRules {
        KeyRules {
            bucket_sectors: self.bucket_sectors,
            first_bucket: self.first_bucket,
            nbuckets: self.nbuckets,
        }
    }

    /// The first sector of a bucket.
    pub fn bucket_start(&self, bucket: crate::BucketNr) -> u64 {
        bucket.0.saturating_mul(u64::from(self.bucket_sectors))
    }
}

fn bytes_of(sectors: u32) -> usize {
    usize::try_from(u64::from(sectors) * SECTOR_BYTES).unwrap_or(usize::MAX)
}

/// Sectors of a new node in buckets of which metadata may use `meta_sectors`.
fn node_sectors(meta_sectors: u32) -> u32 {
    let pages = meta_sectors / PAGE_SECTORS;
    let node_pages = if pages <= 64 {
        pages
    } else {
        (pages / 4).max(64)
    };
    node_pages * PAGE_SECTORS
}

impl Superblock {
    /// Sectors of a bucket, from whichever field holds them; 0 if that field is absurd.
    pub fn bucket_sectors(&self) -> u32 {
        let plain = u32::from(self.bucket_size);
        let incompat = if self.version == 5 {
            self.feature_incompat
        } else {
            0
        };
        if incompat & INCOMPAT_LOG_LARGE_BUCKET != 0 {
            1u32.checked_shl(plain).unwrap_or(0)
        } else if incompat & INCOMPAT_OBSOLETE_LARGE_BUCKET != 0 {
            plain | u32::from(self.bucket_size_hi) << 16
        } else {
            plain
        }
    }

    /// The sector at which a backing device's data starts.
    pub fn data_start(&self) -> u64 {
        if self.version == 1 {
            super::make::DATA_OFFSET_MIN
        } else {
            self.data_offset
        }
    }

    /// Checks a cache superblock against its device and gives the sizes that follow.
    pub fn cache_geometry(
        &self,
        device_sectors: u64,
        logical_block_bytes: u32,
    ) -> Result<CacheGeometry, FormatError> {
        self.check_role(Role::Cache)?;
        self.check_block_fits(logical_block_bytes)?;
        self.check_features()?;
        self.check_sizes(device_sectors)?;
        self.check_set()?;
        self.check_journal_list()?;
        let bucket_sectors = self.bucket_sectors();
        let meta_sectors = bucket_sectors.min(META_SECTORS_MAX);
        let prios_per_bucket =
            u64::try_from(prio::entries_per_bucket(bytes_of(meta_sectors))).unwrap_or(u64::MAX);
        Ok(CacheGeometry {
            bucket_sectors,
            block_sectors: u32::from(self.block_size),
            nbuckets: self.nbuckets,
            first_bucket: u64::from(self.first_bucket),
            meta_sectors,
            node_sectors: node_sectors(meta_sectors),
            prios_per_bucket,
            prio_buckets: self.nbuckets.div_ceil(prios_per_bucket.max(1)),
            uuid_slots: meta_sectors * 512 / UUID_SLOT_BYTES,
            journal_buckets: self.journal.clone(),
            read_only_layout: self.version == 5
                && self.feature_incompat & INCOMPAT_OBSOLETE_LARGE_BUCKET != 0,
            set_magic: self.set_magic(),
        })
    }

    /// Checks a backing superblock against its device and gives the sector at which its data starts.
    pub fn backing_data_offset(
        &self,
        device_sectors: u64,
        logical_block_bytes: u32,
    ) -> Result<u64, FormatError> {
        self.check_role(Role::Backing)?;
        self.check_block_fits(logical_block_bytes)?;
        let start = self.data_start();
        rule(
            start >= super::make::DATA_OFFSET_MIN,
            "superblock data_offset",
            at::UNION,
            start,
            ">= 16",
        )?;
        if start >= device_sectors {
            let expected = format!("below the device's {device_sectors} sectors");
            return broken("superblock data_offset", at::UNION, start, expected);
        }
        let block = self.block_size;
        rule(
            block.is_power_of_two(),
            "superblock block_size",
            at::BLOCK_SIZE,
            block,
            "a power of two",
        )?;
        let mode = self.cache_mode_raw();
        rule(
            self.cache_mode().is_some(),
            "superblock cache mode",
            at::FLAGS,
            mode,
            "at most 3",
        )?;
        Ok(start)
    }

    fn check_role(&self, role: Role) -> Result<(), FormatError> {
        let expected = match role {
            Role::Cache => "a cache device (0, 3, 5)",
            Role::Backing => "a backing device (1, 4, 6)",
        };
        let is_role = Role::of_version(self.version) == Some(role);
        rule(
            is_role,
            "superblock version",
            at::VERSION,
            self.version,
            expected,
        )
    }

    fn check_block_fits(&self, logical_block_bytes: u32) -> Result<(), FormatError> {
        let block_bytes = u64::from(self.block_size) * SECTOR_BYTES;
        if block_bytes >= u64::from(logical_block_bytes) {
            return Ok(());
        }
        let expected = format!("at least the device's block of {logical_block_bytes} bytes");
        broken(
            "superblock block_size",
            at::BLOCK_SIZE,
            self.block_size,
            expected,
        )
    }

    fn check_features(&self) -> Result<(), FormatError> {
        if self.version != 5 {
            return Ok(());
        }
        let words = [
            (
                "superblock feature_compat",
                at::COMPAT,
                self.feature_compat,
                0,
            ),
            (
                "superblock feature_incompat",
                at::INCOMPAT,
                self.feature_incompat,
                KNOWN_INCOMPAT,
            ),
            (
                "superblock feature_ro_compat",
                at::RO_COMPAT,
                self.feature_ro_compat,
                0,
            ),
        ];
        for (name, at, word, known) in words {
            let found = format!("{word:#x}");
            rule(
                word & !known == 0,
                name,
                at,
                found,
                &format!("no bits but {known:#x}"),
            )?;
        }
        Ok(())
    }

    fn check_sizes(&self, device_sectors: u64) -> Result<(), FormatError> {
        let nbuckets = self.nbuckets;
        rule(
            nbuckets < 1 << 63,
            "superblock nbuckets",
            at::UNION,
            nbuckets,
            "below 2^63",
        )?;
        rule(
            nbuckets >= NBUCKETS_MIN,
            "superblock nbuckets",
            at::UNION,
            nbuckets,
            "at least 128",
        )?;
        let block = self.block_size;
        let block_is_fine = block.is_power_of_two() && u32::from(block) <= PAGE_SECTORS;
        rule(
            block_is_fine,
            "superblock block_size",
            at::BLOCK_SIZE,
            block,
            "a power of two up to 8",
        )?;
        let bucket = self.bucket_sectors();
        let bucket_is_fine = bucket.is_power_of_two() && bucket >= PAGE_SECTORS;
        rule(
            bucket_is_fine,
            "superblock bucket_size",
            at::BUCKET_SIZE,
            format!("{bucket} sectors (field {})", self.bucket_size),
            "a power of two of at least 8 sectors",
        )?;
        let end = nbuckets.checked_mul(u64::from(bucket));
        if end.is_none_or(|end| end > device_sectors) {
            let found = format!("{nbuckets} buckets of {bucket} sectors");
            let expected = format!("at most the device's {device_sectors} sectors");
            return broken("superblock nbuckets", at::UNION, found, expected);
        }
        let addressable = end.is_some_and(|end| end <= PTR_SECTORS_MAX);
        rule(
            addressable,
            "superblock nbuckets",
            at::UNION,
            nbuckets,
            "sectors a pointer can name (2^43)",
        )
    }

    fn check_set(&self) -> Result<(), FormatError> {
        rule(
            self.set_uuid != [0; 16],
            "superblock set_uuid",
            at::SET_UUID,
            "zero",
            "a uuid",
        )?;
        rule(
            self.nr_in_set == 1,
            "superblock nr_in_set",
            at::NR_IN_SET,
            self.nr_in_set,
            "1",
        )?;
        rule(
            self.nr_this_dev == 0,
            "superblock nr_this_dev",
            at::NR_THIS_DEV,
            self.nr_this_dev,
            "0",
        )
    }

    fn check_journal_list(&self) -> Result<(), FormatError> {
        let first = u64::from(self.first_bucket);
        for (index, (bucket, expected)) in self.journal.iter().zip(first..).enumerate() {
            if *bucket != expected {
                let at = at::JOURNAL + 8 * index;
                return broken(
                    "superblock journal bucket",
                    at,
                    bucket,
                    expected.to_string(),
                );
            }
        }
        let count = u64::try_from(self.journal.len()).unwrap_or(u64::MAX);
        if first.saturating_add(count) > self.nbuckets {
            let expected = format!("first_bucket + njournal up to {}", self.nbuckets);
            return broken("superblock njournal", at::NJOURNAL, count, expected);
        }
        let in_front = first * u64::from(self.bucket_sectors());
        rule(
            in_front >= 16,
            "superblock first_bucket",
            at::FIRST_BUCKET,
            first,
            "16 sectors in front of it",
        )?;
        let enough = !self.is_sync() || count >= 2;
        rule(
            enough,
            "superblock njournal",
            at::NJOURNAL,
            count,
            "at least 2 in an initialised set",
        )
    }
}

fn broken<T>(
    name: &'static str,
    at: usize,
    found: impl ToString,
    expected: String,
) -> Result<T, FormatError> {
    Err(FormatError::new(
        name,
        field(at),
        found.to_string(),
        expected,
    ))
}

fn rule(
    holds: bool,
    name: &'static str,
    at: usize,
    found: impl ToString,
    expected: &str,
) -> Result<(), FormatError> {
    ensure(holds, name, field(at), || found.to_string(), expected)
}
