//! Patterned sectors: every sector written by a test tells where it belongs and which write it is of.
//!
//! A sector is 64 little-endian words: the magic `BRGDPAT1`, the sector number on the volume, the tag of
//! the write, sixty times one hash of both, and the hash of that hash. So a reader can tell a lost write, a
//! misplaced one and a torn one apart. The same code runs on the host (model, NBD client) and in the guest
//! (the `sectors` tool), and `fixtures/` was written with the same pattern.
//!
//! Invariant: the pattern and the operation sequence of [`RandomWorkload`] are a data format of the
//! fixtures and never change.

/// Bytes of a sector.
pub const SECTOR: usize = 512;
/// First word of every patterned sector.
pub const MAGIC: u64 = 0x3154_4150_4447_5242;
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

/// splitmix64: the mixing function of the pattern and of the random workloads.
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(GOLDEN_RATIO);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn hash(sector: u64, tag: u64) -> u64 {
    mix(sector.wrapping_mul(GOLDEN_RATIO).wrapping_add(tag))
}

/// Writes the pattern of consecutive sectors from `first` on into `bytes` (a whole number of sectors).
pub fn fill(bytes: &mut [u8], first: u64, tag: u64) {
    for (i, sector) in bytes.chunks_exact_mut(SECTOR).enumerate() {
        let number = first + i as u64;
        let h = hash(number, tag);
        for (w, word) in sector.chunks_exact_mut(8).enumerate() {
            let value = match w {
                0 => MAGIC,
                1 => number,
                2 => tag,
                63 => mix(h),
                _ => h,
            };
            word.copy_from_slice(&value.to_le_bytes());
        }
    }
}

/// What a sector turned out to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but zeros.
    Zeros,
    /// The intact pattern of this very sector, of the write with this tag.
    Tag(u64),
    /// The intact pattern of another sector.
    Misplaced {
        /// The sector it was written for.
        sector: u64,
        /// The write it is of.
        tag: u64,
    },
    /// A pattern with the magic in front and other bytes behind.
    Torn,
    /// No pattern.
    Other,
}

fn word(sector: &[u8], index: usize) -> u64 {
    sector
        .get(index * 8..index * 8 + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// Says what the 512 bytes found at sector `number` are.
pub fn classify(sector: &[u8], number: u64) -> Content {
    if sector.iter().all(|&byte| byte == 0) {
        return Content::Zeros;
    }
    if word(sector, 0) != MAGIC {
        return Content::Other;
    }
    let (at, tag) = (word(sector, 1), word(sector, 2));
    let h = hash(at, tag);
    let intact = (3..63).all(|i| word(sector, i) == h) && word(sector, 63) == mix(h);
    match (intact, at == number) {
        (false, _) => Content::Torn,
        (true, true) => Content::Tag(tag),
        (true, false) => Content::Misplaced { sector: at, tag },
    }
}

/// A reproducible random workload: operation `i` follows from the seed and `i` alone.
#[derive(Clone, Copy, Debug)]
pub struct RandomWorkload {
    /// Seed of the sequence.
    pub seed: u64,
    /// First sector of the range.
    pub start: u64,
    /// Sectors in the range.
    pub range: u64,
    /// Alignment and granularity in sectors.
    pub align: u64,
    /// Most units of `align` that one operation covers.
    pub count_max: u64,
}

/// One operation of a workload, in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// First sector.
    pub sector: u64,
    /// Number of sectors.
    pub count: u64,
}

impl RandomWorkload {
    /// Operation number `index`.
    pub fn operation(&self, index: u64) -> Operation {
        let r = mix(self.seed.wrapping_add(index));
        let slots = (self.range / self.align).max(1);
        let slot = (r & 0xff_ffff_ffff) % slots;
        let count = (1 + (r >> 40) % self.count_max.max(1)).min(slots - slot);
        Operation {
            sector: self.start + slot * self.align,
            count: count * self.align,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_sector_names_its_place_and_tag() {
        let mut bytes = [0u8; 2 * SECTOR];
        fill(&mut bytes, 77, 5);
        assert_eq!(classify(&bytes[..SECTOR], 77), Content::Tag(5));
        assert_eq!(classify(&bytes[SECTOR..], 78), Content::Tag(5));
        assert_eq!(
            classify(&bytes[SECTOR..], 77),
            Content::Misplaced { sector: 78, tag: 5 }
        );
        bytes[400] ^= 1;
        assert_eq!(classify(&bytes[..SECTOR], 77), Content::Torn);
    }

    #[test]
    fn operations_stay_in_range() {
        let load = RandomWorkload {
            seed: 3,
            start: 8,
            range: 800,
            align: 8,
            count_max: 9,
        };
        for i in 0..10_000 {
            let op = load.operation(i);
            assert!(op.sector >= 8 && op.sector + op.count <= 808 && op.count > 0);
            assert_eq!(op.sector % 8, 0);
        }
    }
}
