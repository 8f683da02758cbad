//! Keys, the entries of the index, and the rules they must keep (`docs/format.md` 3).
//!
//! A key is two words and up to six pointer words. It is kept as read, unused bits and all, so that copying
//! one writes back exactly what was there; only keys made here have the bits a writer must choose.
//!
//! A key's offset is the *end* of what it covers. `start` is the offset less the size, and a damaged key can
//! have a size beyond its offset: then it has no start.

use crate::bytes;
use crate::error::{FormatError, ensure};
use crate::ptr::{Gen, Pos, Ptr};
use std::fmt;

/// Most pointers a key may have.
pub const PTRS_MAX: usize = 6;
/// Most sectors one key can describe.
pub const KEY_SECTORS_MAX: u32 = 0xffff;
/// Offsets stay below this.
pub const KEY_OFFSET_LIMIT: u64 = 1 << 63;
/// Inodes stay below this.
pub const INODE_LIMIT: u32 = 1 << 20;

const INODE_MASK: u64 = 0xf_ffff;
const SIZE_SHIFT: u32 = 20;
const SIZE_MASK: u64 = 0xffff;
const DIRTY_BIT: u64 = 1 << 36;
const CSUM_SHIFT: u32 = 56;
const PTRS_SHIFT: u32 = 60;
const PTRS_MASK: u64 = 7;
/// Means nothing, but the kernel sets it in every key and so do we.
const RELIC_BIT: u64 = 1 << 63;

/// An entry of the index.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    high: u64,
    low: u64,
    /// Zero behind the last pointer, so that derived equality is that of the words.
    ptrs: [u64; PTRS_MAX],
}

fn high_word(inode: u32, sectors: u32, ptr_count: u64) -> u64 {
    assert!(inode < INODE_LIMIT, "inode {inode} has over 20 bits");
    assert!(
        sectors <= KEY_SECTORS_MAX,
        "{sectors} sectors do not fit a key"
    );
    RELIC_BIT
        | ptr_count << PTRS_SHIFT
        | u64::from(sectors) << SIZE_SHIFT
        | u64::from(inode) & INODE_MASK
}

impl Key {
    /// Sectors `start..start + sectors` of `inode` lie at `ptr`.
    ///
    /// # Panics
    /// If the inode, the size or the end does not fit a key.
    pub fn extent(inode: u32, start: u64, sectors: u32, ptr: Ptr, dirty: bool) -> Key {
        let mut key = Key::node(Pos::new(inode, end_of(start, sectors)), sectors, ptr);
        if dirty {
            key.high |= DIRTY_BIT;
        }
        key
    }

    /// Nothing is cached of sectors `start..start + sectors` of `inode`.
    ///
    /// # Panics
    /// As [`Key::extent`].
    pub fn hole(inode: u32, start: u64, sectors: u32) -> Key {
        Key {
            high: high_word(inode, sectors, 0),
            low: end_of(start, sectors),
            ptrs: [0; PTRS_MAX],
        }
    }

    /// The node of `sectors` sectors at `ptr`, whose keys go up to `pos` inclusive.
    ///
    /// # Panics
    /// If the inode or the size does not fit a key.
    pub fn node(pos: Pos, sectors: u32, ptr: Ptr) -> Key {
        Key {
            high: high_word(pos.inode, sectors, 1),
            low: pos.offset,
            ptrs: [ptr.0, 0, 0, 0, 0, 0],
        }
    }

    /// The key that carries the raised generation of a node just replaced; `ptr` has the new generation.
    ///
    /// # Panics
    /// If the size does not fit a key.
    pub fn freeing(sectors: u32, ptr: Ptr) -> Key {
        Key::node(Pos::ZERO, sectors, ptr)
    }

    /// The key at the start of `words`, or `None` if it is cut short or has more than six pointers.
    pub fn from_words(words: &[u64]) -> Option<Key> {
        let (&high, rest) = words.split_first()?;
        let (&low, rest) = rest.split_first()?;
        let count = ptr_count_of(high);
        let mut ptrs = [0; PTRS_MAX];
        ptrs.get_mut(..count)?.copy_from_slice(rest.get(..count)?);
        Some(Key { high, low, ptrs })
    }

    /// The inode: a slot in the UUID table.
    pub fn inode(&self) -> u32 {
        u32::try_from(self.high & INODE_MASK).unwrap_or(0)
    }

    /// The end of the range.
    pub fn offset(&self) -> u64 {
        self.low
    }

    /// The start of the range; `None` in a damaged key whose size exceeds its offset.
    pub fn start(&self) -> Option<u64> {
        self.low.checked_sub(u64::from(self.size()))
    }

    /// Sectors covered; 0 in a dead key.
    pub fn size(&self) -> u32 {
        u32::try_from(self.high >> SIZE_SHIFT & SIZE_MASK).unwrap_or(0)
    }

    /// Whether the cache alone has this data.
    pub fn is_dirty(&self) -> bool {
        self.high & DIRTY_BIT != 0
    }

    /// The CSUM type, 0 in any key worth trusting (F35). It never changes the length of a key.
    pub fn csum_type(&self) -> u8 {
        u8::try_from(self.high >> CSUM_SHIFT & 3).unwrap_or(0)
    }

    /// Pointers, 0 to 6.
    pub fn ptr_count(&self) -> usize {
        ptr_count_of(self.high)
    }

    /// Pointer `index`.
    pub fn ptr(&self, index: usize) -> Option<Ptr> {
        self.ptr_words().get(index).copied().map(Ptr)
    }

    /// All pointers.
    pub fn ptrs(&self) -> impl Iterator<Item = Ptr> + '_ {
        self.ptr_words().iter().copied().map(Ptr)
    }

    /// Inode and end.
    pub fn pos(&self) -> Pos {
        Pos::new(self.inode(), self.low)
    }

    /// Inode and start; `None` as for [`Key::start`].
    pub fn start_pos(&self) -> Option<Pos> {
        Some(Pos::new(self.inode(), self.start()?))
    }

    /// Whether an interior key is a freeing key: position (0,0). Never follow one.
    pub fn is_freeing(&self) -> bool {
        self.pos() == Pos::ZERO
    }

    /// Length in words.
    pub fn words(&self) -> usize {
        2 + self.ptr_count()
    }

    /// Appends the key's words.
    pub fn push_to(&self, out: &mut Vec<u64>) {
        out.extend([self.high, self.low]);
        out.extend(self.ptr_words());
    }

    /// The first word as it is on disk.
    pub fn high_word(&self) -> u64 {
        self.high
    }

    /// The same key, dirty or clean.
    #[must_use]
    pub fn with_dirty(mut self, dirty: bool) -> Key {
        self.high = if dirty {
            self.high | DIRTY_BIT
        } else {
            self.high & !DIRTY_BIT
        };
        self
    }

    /// The same key with its first pointer replaced; a key without pointers stays as it is.
    #[must_use]
    pub fn with_ptr(mut self, ptr: Ptr) -> Key {
        if self.ptr_count() > 0 {
            self.ptrs[0] = ptr.0;
        }
        self
    }

    /// The key without its first `sectors` sectors (all of it, if it has no more): pointers move, the end
    /// stays.
    #[must_use]
    pub fn cut_front(mut self, sectors: u32) -> Key {
        let sectors = sectors.min(self.size());
        let count = self.ptr_count();
        for word in self.ptrs.iter_mut().take(count) {
            *word = Ptr(*word).advance(u64::from(sectors)).0;
        }
        self.with_size(self.size() - sectors)
    }

    /// The key without its last `sectors` sectors (all of it, if it has no more): the end moves, pointers
    /// stay.
    #[must_use]
    pub fn cut_back(mut self, sectors: u32) -> Key {
        let sectors = sectors.min(self.size());
        self.low = self.low.saturating_sub(u64::from(sectors));
        self.with_size(self.size() - sectors)
    }

    /// This extent and the adjacent `right` as one, where `docs/format.md` 3.4 allows it.
    pub fn merged_with(&self, right: &Key, bucket_sectors: u32) -> Option<Key> {
        let same_kind = self.high & !(SIZE_MASK << SIZE_SHIFT);
        let contiguous = same_kind == right.high & !(SIZE_MASK << SIZE_SHIFT)
            && right.start() == Some(self.low)
            && self.ptrs().zip(right.ptrs()).all(|(left, right)| {
                left.is_available()
                    && left.advance(u64::from(self.size())) == right
                    && left.bucket(bucket_sectors) == right.bucket(bucket_sectors)
            });
        let size = self.size() + right.size();
        if !contiguous || size > KEY_SECTORS_MAX {
            return None;
        }
        let mut merged = self.with_size(size);
        merged.low = right.low;
        Some(merged)
    }

    fn with_size(mut self, sectors: u32) -> Key {
        self.high = self.high & !(SIZE_MASK << SIZE_SHIFT) | u64::from(sectors) << SIZE_SHIFT;
        self
    }

    fn ptr_words(&self) -> &[u64] {
        self.ptrs.get(..self.ptr_count()).unwrap_or_default()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} size {}", self.pos(), self.size())?;
        if self.is_dirty() {
            write!(f, " dirty")?;
        }
        if self.csum_type() != 0 {
            write!(f, " csum {}", self.csum_type())?;
        }
        if self.ptr_count() == 0 {
            return write!(f, " hole");
        }
        self.ptrs().try_for_each(|ptr| write!(f, " -> {ptr}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self}; high {:#018x})", self.high)
    }
}

/// What keys of one cache device are held to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyRules {
    /// Sectors of a bucket.
    pub bucket_sectors: u32,
    /// The first bucket that may hold data or nodes.
    pub first_bucket: u64,
    /// Buckets of the device.
    pub nbuckets: u64,
}

const OFFSET_BYTE: u64 = 8;
const PTR_BYTE: u64 = 16;

impl KeyRules {
    /// Validity of a leaf or journal key (`docs/format.md` 3.4, F16, F34). A key of size 0 is not special
    /// here; the caller skips those of leaves and rejects those of the journal.
    pub fn check_extent(&self, key: &Key) -> Result<(), FormatError> {
        let what = "extent key";
        ensure(
            key.start().is_some(),
            what,
            0,
            || key.to_string(),
            "SIZE <= OFFSET",
        )?;
        check_offset(what, key)?;
        let dirty_hole = key.is_dirty() && key.ptr_count() == 0;
        ensure(
            !dirty_hole,
            what,
            0,
            || key.to_string(),
            "no hole that is DIRTY",
        )?;
        for (index, ptr) in (0u64..).zip(key.ptrs()) {
            if ptr.is_available() {
                self.check_ptr(what, key, ptr, PTR_BYTE + 8 * index)?;
            }
        }
        Ok(())
    }

    /// Validity of an interior, root or UUID bucket key, freeing keys included (`docs/format.md` 3.5, F36,
    /// F50).
    pub fn check_node(&self, key: &Key) -> Result<(), FormatError> {
        let what = "node key";
        ensure(
            key.ptr_count() > 0,
            what,
            0,
            || key.to_string(),
            "PTRS >= 1",
        )?;
        ensure(key.size() > 0, what, 0, || key.to_string(), "SIZE >= 1")?;
        ensure(
            !key.is_dirty(),
            what,
            0,
            || key.to_string(),
            "a key not DIRTY",
        )?;
        check_offset(what, key)?;
        for (index, ptr) in (0u64..).zip(key.ptrs()) {
            self.check_ptr(what, key, ptr, PTR_BYTE + 8 * index)?;
        }
        Ok(())
    }

    fn check_ptr(
        &self,
        what: &'static str,
        key: &Key,
        ptr: Ptr,
        at: u64,
    ) -> Result<(), FormatError> {
        ensure(ptr.dev() == 0, what, at, || key.to_string(), "DEV 0")?;
        let bucket = ptr.bucket(self.bucket_sectors).0;
        if bucket < self.first_bucket || bucket >= self.nbuckets {
            let expected = format!("a bucket in {}..{}", self.first_bucket, self.nbuckets);
            let found = format!("bucket {bucket} in {key}");
            return Err(FormatError::new(what, at, found, expected));
        }
        let in_bucket = ptr
            .sector()
            .checked_rem(u64::from(self.bucket_sectors))
            .unwrap_or(0);
        ensure(
            in_bucket + u64::from(key.size()) <= u64::from(self.bucket_sectors),
            what,
            at,
            || key.to_string(),
            "a range inside one bucket",
        )
    }
}

fn check_offset(what: &'static str, key: &Key) -> Result<(), FormatError> {
    ensure(
        key.offset() < KEY_OFFSET_LIMIT,
        what,
        OFFSET_BYTE,
        || key.to_string(),
        "OFFSET < 2^63",
    )
}

/// The keys that tile `bytes` exactly, each with at most six pointers (F12, F45).
pub fn parse_keys(bytes: &[u8]) -> Result<Vec<Key>, FormatError> {
    let what = "keys";
    ensure(
        bytes.len().is_multiple_of(8),
        what,
        as_offset(bytes.len()),
        || format!("{} bytes", bytes.len()),
        "whole u64 words",
    )?;
    let mut keys = Vec::with_capacity(bytes.len() / 24);
    let mut at = 0;
    while at < bytes.len() {
        let rest = bytes.get(at..).unwrap_or_default();
        let key = parse_key(rest).map_err(|error| error.shifted(as_offset(at)))?;
        at += key.words() * 8;
        keys.push(key);
    }
    Ok(keys)
}

/// The key at the start of `bytes`, whatever follows it: what a padded slot holds (`docs/format.md` 5.1).
pub fn parse_key(bytes: &[u8]) -> Result<Key, FormatError> {
    let what = "key";
    let too_short = |words: usize| {
        let found = format!("{} bytes left", bytes.len());
        FormatError::new(what, 0, found, format!("a key of {words} words"))
    };
    if bytes.len() < 16 {
        return Err(too_short(2));
    }
    let high = bytes::u64_at(bytes, 0);
    let count = ptr_count_of(high);
    ensure(
        count <= PTRS_MAX,
        what,
        0,
        || format!("{count} pointers"),
        "at most 6",
    )?;
    if bytes.len() < 16 + 8 * count {
        return Err(too_short(2 + count));
    }
    let mut ptrs = [0; PTRS_MAX];
    for (index, word) in ptrs.iter_mut().take(count).enumerate() {
        *word = bytes::u64_at(bytes, 16 + 8 * index);
    }
    let low = bytes::u64_at(bytes, 8);
    Ok(Key { high, low, ptrs })
}

/// `keys` as the words a set or journal entry holds.
pub fn key_words<'a>(keys: impl IntoIterator<Item = &'a Key>) -> Vec<u64> {
    let mut words = Vec::new();
    keys.into_iter().for_each(|key| key.push_to(&mut words));
    words
}

fn ptr_count_of(high: u64) -> usize {
    usize::try_from(high >> PTRS_SHIFT & PTRS_MASK).unwrap_or(0)
}

fn end_of(start: u64, sectors: u32) -> u64 {
    let end = start.saturating_add(u64::from(sectors));
    assert!(end < KEY_OFFSET_LIMIT, "sector {end} does not fit a key");
    end
}

fn as_offset(at: usize) -> u64 {
    u64::try_from(at).unwrap_or(u64::MAX)
}

/// How far `ptr` has fallen behind its bucket's generation; 0 if it is not stale (`docs/format.md` 6.3).
pub fn staleness(bucket_gen: Gen, ptr: Ptr) -> u8 {
    bucket_gen.after(ptr.r#gen())
}

#[cfg(test)]
mod tests;
