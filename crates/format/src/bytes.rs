//! Little-endian reads and writes that cannot leave their slice.
//!
//! A read past the end gives zero and a write past the end does nothing: every parser checks the length of
//! what it was given first, so this only matters if such a check is wrong, and then it must not panic.

/// `N` bytes at `offset`, zeros where the slice has ended.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes
        .get(offset..)
        .and_then(|rest| rest.first_chunk::<N>())
        .copied()
        .unwrap_or([0; N])
}

/// The u16 at `offset`.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array(bytes, offset))
}

/// The u32 at `offset`.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array(bytes, offset))
}

/// The u64 at `offset`.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array(bytes, offset))
}

/// Copies `value` to `offset`.
pub(crate) fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    let place = offset
        .checked_add(value.len())
        .and_then(|end| bytes.get_mut(offset..end));
    if let Some(place) = place {
        place.copy_from_slice(value);
    }
}

/// `words` as little-endian bytes from `offset` on.
pub(crate) fn put_words(bytes: &mut [u8], offset: usize, words: &[u64]) {
    let Some(area) = bytes.get_mut(offset..) else {
        return;
    };
    for (place, word) in area.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// `bytes` rounded up to a multiple of `unit`; unchanged for a unit of zero.
pub(crate) fn round_up(bytes: usize, unit: usize) -> usize {
    bytes.checked_next_multiple_of(unit).unwrap_or(bytes)
}

/// Whether every byte is zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}
