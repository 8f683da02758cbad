//! The data of an image: which extents are dirty, and the pattern of those that are written.

use super::Image;
use super::layout::Layout;
use super::recipe::Recipe;
use crate::chance::Chance;
use std::io;

/// Tag of what the backing device has, and clean extents.
pub const TAG_BACKING: u64 = 1;
/// Tag of what dirty extents have.
pub const TAG_DIRTY: u64 = 2;
const SECTOR: usize = 512;
const MAGIC: u64 = 0x3154_4150_4447_5242;
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

fn mix(value: u64) -> u64 {
    Chance::new(value).number()
}

/// Whether an extent is dirty.
pub(super) fn is_dirty(recipe: &Recipe, extent: u64) -> bool {
    mix(extent) % 100 < recipe.dirty_percent
}

/// The first sector of an extent, as the volume counts.
pub(super) fn start(recipe: &Recipe, extent: u64) -> u64 {
    extent * (u64::from(recipe.extent_sectors) + recipe.gap_sectors)
}

/// Writes the sample.
pub(super) fn write(
    recipe: &Recipe,
    layout: &Layout,
    cache: &Image,
    backing: &Image,
) -> io::Result<()> {
    if recipe.sample == 0 {
        return Ok(());
    }
    let mut bytes = vec![0; recipe.extent_sectors as usize * SECTOR];
    let offset = layout.backing_superblock.data_start();
    for extent in (0..recipe.extents).step_by(recipe.sample as usize) {
        let start = start(recipe, extent);
        pattern(&mut bytes, start, TAG_BACKING);
        backing.write(offset + start, &bytes)?;
        if is_dirty(recipe, extent) {
            pattern(&mut bytes, start, TAG_DIRTY);
        }
        cache.write(layout.place(extent).sector(), &bytes)?;
    }
    Ok(())
}

/// Patterned sectors, as `xtask/src/pattern.rs` and the fixtures have them.
fn pattern(bytes: &mut [u8], first: u64, tag: u64) {
    for (number, sector) in (first..).zip(bytes.chunks_exact_mut(SECTOR)) {
        let hash = mix(number.wrapping_mul(GOLDEN_RATIO).wrapping_add(tag));
        let mut words = [hash; SECTOR / 8];
        (words[0], words[1], words[2], words[63]) = (MAGIC, number, tag, mix(hash));
        for (place, word) in sector.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }
}
