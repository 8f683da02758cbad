//! The keys to be replayed, laid over each other, and where they put things (`docs/format.md` 8.5).

use super::cover::{Cover, Piece};
use super::ring::Replayed;
use brigade_format::{Key, Pos, Ptr};
use std::collections::BTreeMap;

/// The newest replayed key for each sector, in the order of positions.
pub(super) struct Overlay {
    pieces: Vec<Piece>,
    next: usize,
    /// Where the next piece was cut.
    from: Option<u64>,
}

impl Overlay {
    pub fn new(replayed: &[Replayed]) -> Overlay {
        let mut cover = Cover::default();
        for (by, replayed) in (0..).zip(replayed) {
            cover.lay(piece_of(&replayed.key, by));
        }
        Overlay {
            pieces: cover.into_pieces().collect(),
            next: 0,
            from: None,
        }
    }

    /// Starts again.
    pub fn rewind(&mut self) {
        self.next = 0;
        self.from = None;
    }

    /// What comes next and ends at `high` or before; cut there.
    pub fn up_to(&mut self, high: Pos) -> Option<Piece> {
        let mut piece = *self.pieces.get(self.next)?;
        piece.start = self.from.unwrap_or(piece.start);
        if (piece.inode, piece.start) >= (high.inode, high.offset) {
            return None;
        }
        if piece.inode == high.inode && piece.end > high.offset {
            piece.end = high.offset;
            self.from = Some(high.offset);
        } else {
            self.next += 1;
            self.from = None;
        }
        Some(piece)
    }
}

/// The range of a key; empty for a dead one, or one that has no start.
pub(super) fn piece_of(key: &Key, by: u32) -> Piece {
    Piece {
        inode: key.inode(),
        start: key.start().unwrap_or(key.offset()),
        end: key.offset(),
        by,
    }
}

/// Where a key has sector `start`; `None` if it has it nowhere.
pub(super) fn location(key: &Key, start: u64) -> Option<Ptr> {
    let ptr = key.ptr(0).filter(|ptr| ptr.is_available())?;
    Some(ptr.advance(start.checked_sub(key.start()?)?))
}

/// A run of sectors with one location: the same for all keys that continue each other.
type Diagonal = (u32, u64, u16, u8);

fn diagonal(inode: u32, start: u64, ptr: Ptr) -> Diagonal {
    (
        inode,
        ptr.sector().wrapping_sub(start),
        ptr.dev(),
        ptr.r#gen().0,
    )
}

/// Ranges that replayed keys place, by location; ascending and apart.
pub(super) struct Locations(BTreeMap<Diagonal, Vec<(u64, u64)>>);

impl Locations {
    pub fn new<'k>(keys: impl Iterator<Item = &'k Key>) -> Locations {
        let mut map: BTreeMap<Diagonal, Vec<(u64, u64)>> = BTreeMap::new();
        for key in keys {
            let start = key.start().unwrap_or(key.offset());
            if let Some(ptr) = location(key, start) {
                map.entry(diagonal(key.inode(), start, ptr))
                    .or_default()
                    .push((start, key.offset()));
            }
        }
        for ranges in map.values_mut() {
            *ranges = joined(std::mem::take(ranges));
        }
        Locations(map)
    }

    /// Cuts `start..end`, which lie at `ptr`, into parts that a key places there (true) and parts that none does.
    pub fn cut(&self, inode: u32, start: u64, end: u64, ptr: Ptr) -> Vec<(u64, u64, bool)> {
        let ranges = self
            .0
            .get(&diagonal(inode, start, ptr))
            .map_or(&[][..], Vec::as_slice);
        let mut parts = Vec::new();
        let mut at = start;
        let first = ranges.partition_point(|range| range.1 <= start);
        for &(from, to) in ranges.iter().skip(first).take_while(|range| range.0 < end) {
            if at < from {
                parts.push((at, from, false));
            }
            let to = to.min(end);
            parts.push((at.max(from), to, true));
            at = to;
        }
        if at < end {
            parts.push((at, end, false));
        }
        parts
    }
}

fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut out: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (start, end) in ranges {
        match out.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => out.push((start, end)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use brigade_format::Gen;

    fn replayed(start: u64, sectors: u32) -> Replayed {
        let ptr = Ptr::new(1000 + start, Gen(1));
        Replayed {
            key: Key::extent(3, start, sectors, ptr, true),
            seq: 1,
            entry: 0,
        }
    }

    #[test]
    fn an_overlay_is_cut_at_the_ends_of_leaves_and_starts_again_as_it_was() {
        let mut overlay = Overlay::new(&[replayed(0, 10), replayed(20, 10), replayed(8, 4)]);
        for _ in 0..2 {
            let mut seen = Vec::new();
            for high in [Pos::new(3, 4), Pos::new(3, 25), Pos::new(9, 0)] {
                while let Some(piece) = overlay.up_to(high) {
                    seen.push((piece.start, piece.end, piece.by));
                }
                seen.push((0, 0, 99));
            }
            let end = (0, 0, 99);
            let expected = [
                (0, 4, 0),
                end,
                (4, 8, 0),
                (8, 12, 2),
                (20, 25, 1),
                end,
                (25, 30, 1),
                end,
            ];
            assert_eq!(seen, expected);
            overlay.rewind();
        }
    }

    #[test]
    fn a_range_is_cut_where_the_same_place_was_replayed() {
        let keys = [replayed(10, 5).key, replayed(12, 6).key];
        let locations = Locations::new(keys.iter());
        let cut = locations.cut(3, 8, 20, Ptr::new(1008, Gen(1)));
        assert_eq!(cut, [(8, 10, false), (10, 18, true), (18, 20, false)]);
        let other = locations.cut(3, 8, 20, Ptr::new(1008, Gen(2)));
        assert_eq!(other, [(8, 20, false)]);
        let inside = locations.cut(3, 11, 13, Ptr::new(1011, Gen(1)));
        assert_eq!(inside, [(11, 13, true)]);
    }
}
