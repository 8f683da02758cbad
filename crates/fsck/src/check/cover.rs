//! Ranges laid over each other: of what lies on top of each other the last stays.

use std::collections::BTreeMap;

/// A piece of what was laid: sectors `start..end` of `inode`, by number `by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub inode: u32,
    pub start: u64,
    pub end: u64,
    pub by: u32,
}

/// Ranges that do not overlap.
#[derive(Default)]
pub(super) struct Cover {
    pieces: BTreeMap<(u32, u64), (u64, u32)>,
}

impl Cover {
    /// Lays a range over what is there. An empty one is nothing.
    pub fn lay(&mut self, piece: Piece) {
        let Piece {
            inode,
            start,
            end,
            by,
        } = piece;
        if start >= end {
            return;
        }
        let below = self.pieces.range(..(inode, start)).next_back();
        if let Some((&(i, s), &(e, b))) = below
            && i == inode
            && e > start
        {
            self.pieces.insert((i, s), (start, b));
            if e > end {
                self.pieces.insert((inode, end), (e, b));
            }
        }
        while let Some((&place, &(e, b))) = self.pieces.range((inode, start)..(inode, end)).next() {
            self.pieces.remove(&place);
            if e > end {
                self.pieces.insert((inode, end), (e, b));
            }
        }
        self.pieces.insert((inode, start), (end, by));
    }

    /// What is left, ascending.
    pub fn into_pieces(self) -> impl Iterator<Item = Piece> {
        self.pieces
            .into_iter()
            .map(|((inode, start), (end, by))| Piece {
                inode,
                start,
                end,
                by,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The obvious way: a number for each sector.
    #[test]
    fn what_is_left_is_what_was_laid_last() {
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..300 {
            let mut cover = Cover::default();
            let mut naive = vec![None; 2 * 40];
            for by in 0..random(30) as u32 {
                let (inode, start) = (random(2), random(36));
                let end = start + random(5);
                cover.lay(Piece {
                    inode: inode as u32,
                    start,
                    end,
                    by,
                });
                (start..end).for_each(|s| naive[(inode * 40 + s) as usize] = Some(by));
            }
            let mut left = vec![None; 2 * 40];
            for piece in cover.into_pieces() {
                for s in piece.start..piece.end {
                    let slot = &mut left[(u64::from(piece.inode) * 40 + s) as usize];
                    assert_eq!(slot.replace(piece.by), None, "pieces overlap");
                }
            }
            assert_eq!(left, naive);
        }
    }
}
