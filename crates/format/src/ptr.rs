//! Buckets, generations, positions and pointer words: the small values all structures share
//! (`docs/format.md` 3.2, 3.3, 6.3).

use std::fmt;

/// A bucket of the cache device; bucket `b` starts at sector `b * bucket_sectors`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BucketNr(pub u64);

impl fmt::Display for BucketNr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A bucket generation. Wraps at 256, so the derived order is that of the bytes and says nothing about age:
/// for that there is [`Gen::after`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Gen(pub u8);

impl Gen {
    /// The generation a bucket gets when it is taken over.
    #[must_use]
    pub fn next(self) -> Gen {
        Gen(self.0.wrapping_add(1))
    }

    /// How many generations `self` lies behind which `other` has fallen, or 0 if `other` is not older
    /// (`docs/format.md` 6.3). A pointer `p` into a bucket of generation `g` is stale iff `g.after(p) > 0`.
    pub fn after(self, other: Gen) -> u8 {
        let distance = self.0.wrapping_sub(other.0);
        if distance > 128 { 0 } else { distance }
    }
}

impl fmt::Display for Gen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

const SECTOR_BITS: u32 = 43;
const SECTOR_MASK: u64 = (1 << SECTOR_BITS) - 1;
const SECTOR_SHIFT: u32 = 8;
const DEV_SHIFT: u32 = 51;
const DEV_MASK: u64 = 0xfff;

/// One past the largest sector a pointer can name.
pub const PTR_SECTORS_MAX: u64 = 1 << SECTOR_BITS;

/// A pointer word: a place on the cache device with the generation its bucket had.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ptr(pub u64);

impl Ptr {
    /// The DEV of a check pointer, the placeholder a missed read leaves.
    pub const CHECK_DEV: u16 = 4095;
    /// The smallest DEV that names no device at all.
    pub const UNAVAILABLE_DEV: u16 = 8;

    /// A pointer to `sector` of the one cache device (DEV 0). Sectors have 43 bits.
    pub fn new(sector: u64, r#gen: Gen) -> Ptr {
        debug_assert!(sector < PTR_SECTORS_MAX, "sector {sector} has over 43 bits");
        Ptr((sector & SECTOR_MASK) << SECTOR_SHIFT | u64::from(r#gen.0))
    }

    /// The same place on the device with this number, at most seven.
    #[must_use]
    pub fn on_device(self, device: u16) -> Ptr {
        debug_assert!(device < Self::UNAVAILABLE_DEV, "device {device} is none");
        Ptr(self.0 & !(DEV_MASK << DEV_SHIFT) | u64::from(device) << DEV_SHIFT)
    }

    /// A check pointer; `nonce` tells one from another and may be anything.
    pub fn check(nonce: u64) -> Ptr {
        Ptr(u64::from(Self::CHECK_DEV) << DEV_SHIFT | nonce & ((1 << DEV_SHIFT) - 1))
    }

    /// The device: 0, or 8 and more for a pointer that is no location.
    pub fn dev(self) -> u16 {
        u16::try_from(self.0 >> DEV_SHIFT & DEV_MASK).unwrap_or(u16::MAX)
    }

    /// The absolute sector on the cache device.
    pub fn sector(self) -> u64 {
        self.0 >> SECTOR_SHIFT & SECTOR_MASK
    }

    /// The generation the bucket had when the pointer was made.
    pub fn r#gen(self) -> Gen {
        Gen(self.0.to_le_bytes()[0])
    }

    /// Whether this is a location; check pointers and the like are not.
    pub fn is_available(self) -> bool {
        self.dev() < Self::UNAVAILABLE_DEV
    }

    /// The pointer `sectors` further on; DEV, GEN and bit 63 stay.
    #[must_use]
    pub fn advance(self, sectors: u64) -> Ptr {
        self.at_sector(self.sector().wrapping_add(sectors))
    }

    /// The same pointer with another generation.
    #[must_use]
    pub fn with_gen(self, r#gen: Gen) -> Ptr {
        Ptr(self.0 & !0xff | u64::from(r#gen.0))
    }

    /// The bucket the pointer lies in.
    pub fn bucket(self, bucket_sectors: u32) -> BucketNr {
        BucketNr(
            self.sector()
                .checked_div(u64::from(bucket_sectors))
                .unwrap_or(u64::MAX),
        )
    }

    fn at_sector(self, sector: u64) -> Ptr {
        let other_bits = self.0 & !(SECTOR_MASK << SECTOR_SHIFT);
        Ptr(other_bits | (sector & SECTOR_MASK) << SECTOR_SHIFT)
    }
}

impl fmt::Display for Ptr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dev() {
            Self::CHECK_DEV => write!(f, "check"),
            0 => write!(f, "{} gen {}", self.sector(), self.r#gen()),
            dev => write!(f, "dev {dev} {} gen {}", self.sector(), self.r#gen()),
        }
    }
}

/// A place in the index: an inode and a sector in it (`docs/format.md` 3.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Pos {
    /// Slot in the UUID table, 20 bits.
    pub inode: u32,
    /// Sector; what a key holds is the *end* of its range.
    pub offset: u64,
}

impl Pos {
    /// Before everything; the position of freeing keys.
    pub const ZERO: Pos = Pos {
        inode: 0,
        offset: 0,
    };
    /// The position of the root.
    pub const MAX: Pos = Pos {
        inode: 0xf_ffff,
        offset: 0x7fff_ffff_ffff_ffff,
    };

    /// A position from its parts.
    pub fn new(inode: u32, offset: u64) -> Pos {
        Pos { inode, offset }
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Pos::MAX {
            write!(f, "MAX")
        } else {
            write!(f, "{}:{}", self.inode, self.offset)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T1.
    #[test]
    fn a_generation_is_stale_up_to_128_and_newer_beyond() {
        assert_eq!(Gen(5).after(Gen(5)), 0);
        assert_eq!(Gen(5).after(Gen(4)), 1);
        assert_eq!(Gen(128).after(Gen(0)), 128);
        assert_eq!(Gen(129).after(Gen(0)), 0);
        assert_eq!(Gen(3).after(Gen(250)), 9);
        assert_eq!(Gen(255).next(), Gen(0));
        for (a, b) in (0..=255u8).flat_map(|a| (0..=255u8).map(move |b| (a, b))) {
            let distance = (256 + u32::from(a) - u32::from(b)) % 256;
            let after = if distance > 128 { 0 } else { distance };
            assert_eq!(u32::from(Gen(a).after(Gen(b))), after, "{a} {b}");
        }
    }

    #[test]
    fn a_pointer_gives_back_its_parts() {
        let ptr = Ptr(0x0000_0000_0005_0001);
        assert_eq!((ptr.dev(), ptr.sector(), ptr.r#gen()), (0, 0x500, Gen(1)));
        assert_eq!(Ptr::new(0x500, Gen(1)), ptr);
        assert_eq!(ptr.bucket(128), BucketNr(10));
        let check = Ptr(1 << 63 | 4095 << 51 | 77);
        assert_eq!(check.dev(), 4095);
        assert!(!check.is_available());
        assert!(!Ptr(8 << 51).is_available());
        assert!(Ptr(7 << 51).is_available());
    }

    #[test]
    fn advancing_touches_the_sector_only() {
        let ptr = Ptr(1 << 63 | 9 << 51 | SECTOR_MASK << 8 | 200);
        let next = ptr.advance(2);
        assert_eq!((next.dev(), next.sector(), next.r#gen()), (9, 1, Gen(200)));
        assert_eq!(next.0 >> 63, 1);
    }

    #[test]
    fn a_bucket_size_of_zero_does_not_divide() {
        assert_eq!(Ptr::new(8, Gen(0)).bucket(0), BucketNr(u64::MAX));
    }
}
