//! Order and range of the keys of a node (`docs/format.md` 4.4, 4.5; F31, F32, F33).
//!
//! The kernel checks none of the order inside a set and finds the wrong keys when it is broken, so whoever
//! reads a node asks here. Whether the keys themselves are valid is for [`crate::KeyRules`].

use crate::error::FormatError;
use crate::key::Key;
use crate::ptr::Pos;

/// Keys of one leaf set: by position, extents not overlapping (F32). Dead keys only keep their place.
///
/// Offsets in an error count from the first key.
pub fn check_leaf_set(keys: &[Key]) -> Result<(), FormatError> {
    let (mut last, mut covered) = (Pos::ZERO, Pos::ZERO);
    let mut at = 0;
    for key in keys {
        if key.pos() < last {
            return Err(misplaced("leaf bset order", at, key, "a key behind", last));
        }
        last = key.pos();
        if key.size() > 0 {
            if key.start_pos().is_none_or(|start| start < covered) {
                return Err(misplaced(
                    "leaf bset order",
                    at,
                    key,
                    "an extent starting at or behind",
                    covered,
                ));
            }
            covered = key.pos();
        }
        at += key_bytes(key);
    }
    Ok(())
}

/// Keys of one interior set: strictly ascending, equal only among freeing keys (F31).
///
/// Offsets in an error count from the first key.
pub fn check_interior_set(keys: &[Key]) -> Result<(), FormatError> {
    let mut last: Option<Pos> = None;
    let mut at = 0;
    for key in keys {
        let pos = key.pos();
        if let Some(last) = last
            && pos <= last
            && !(key.is_freeing() && last == Pos::ZERO)
        {
            return Err(misplaced(
                "interior bset order",
                at,
                key,
                "a key behind",
                last,
            ));
        }
        last = Some(pos);
        at += key_bytes(key);
    }
    Ok(())
}

/// A leaf key inside its leaf, which holds what lies between `low` and `high` (F33). Dead keys are exempt.
pub fn check_leaf_range(key: &Key, low: Pos, high: Pos) -> Result<(), FormatError> {
    let starts_inside = key.start_pos().is_some_and(|start| start >= low);
    if key.size() == 0 || starts_inside && key.pos() <= high {
        return Ok(());
    }
    Err(out_of_range("leaf key", key, low, high))
}

/// An interior key inside its node (F33). Freeing keys are exempt.
pub fn check_interior_range(key: &Key, low: Pos, high: Pos) -> Result<(), FormatError> {
    if key.is_freeing() || low < key.pos() && key.pos() <= high {
        return Ok(());
    }
    Err(out_of_range("interior key", key, low, high))
}

fn misplaced(structure: &'static str, at: u64, key: &Key, rule: &str, limit: Pos) -> FormatError {
    FormatError::new(structure, at, key.to_string(), format!("{rule} {limit}"))
}

fn out_of_range(structure: &'static str, key: &Key, low: Pos, high: Pos) -> FormatError {
    let expected = format!("a key between {low} and {high}");
    FormatError::new(structure, 0, key.to_string(), expected)
}

fn key_bytes(key: &Key) -> u64 {
    u64::try_from(key.words() * 8).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ptr::{Gen, Ptr};

    fn extent(inode: u32, start: u64, size: u32) -> Key {
        Key::extent(inode, start, size, Ptr::new(128, Gen(1)), false)
    }

    fn child(offset: u64) -> Key {
        Key::node(Pos::new(0, offset), 8, Ptr::new(128, Gen(1)))
    }

    #[test]
    fn extents_may_touch_and_not_overlap() {
        assert!(check_leaf_set(&[extent(0, 0, 8), extent(0, 8, 8), extent(1, 0, 8)]).is_ok());
        let error = check_leaf_set(&[extent(0, 0, 8), extent(0, 7, 8)]).unwrap_err();
        assert_eq!(error.offset, 24);
        assert!(check_leaf_set(&[extent(0, 8, 8), extent(0, 0, 8)]).is_err());
        assert!(check_leaf_set(&[extent(1, 0, 8), extent(0, 8, 8)]).is_err());
    }

    #[test]
    fn dead_keys_keep_their_place_and_cover_nothing() {
        let dead = |at| Key::hole(0, at, 0);
        assert!(check_leaf_set(&[extent(0, 0, 8), dead(12), extent(0, 8, 8)]).is_ok());
        assert!(check_leaf_set(&[extent(0, 0, 8), dead(4)]).is_err());
    }

    #[test]
    fn children_ascend_strictly_behind_freeing_keys() {
        let freeing = Key::freeing(8, Ptr::new(128, Gen(2)));
        assert!(check_interior_set(&[freeing, freeing, child(5), child(9)]).is_ok());
        assert!(check_interior_set(&[child(5), child(5)]).is_err());
        assert!(check_interior_set(&[child(5), freeing]).is_err());
    }

    #[test]
    fn keys_stay_between_their_neighbour_and_their_nodes_end() {
        let (low, high) = (Pos::new(0, 8), Pos::new(0, 24));
        assert!(check_leaf_range(&extent(0, 8, 16), low, high).is_ok());
        assert!(check_leaf_range(&extent(0, 7, 4), low, high).is_err());
        assert!(check_leaf_range(&extent(0, 20, 8), low, high).is_err());
        assert!(check_interior_range(&child(24), low, high).is_ok());
        assert!(check_interior_range(&child(8), low, high).is_err());
        assert!(check_interior_range(&child(25), low, high).is_err());
        let freeing = Key::freeing(8, Ptr::new(128, Gen(2)));
        assert!(check_interior_range(&freeing, low, high).is_ok());
    }
}
