//! Makes a large cache set in seconds: the image of a cache device with any number of extents in its index, and that of its
//! backing device, both sparse.
//!
//! Writing ten million extents through a server takes minutes and says nothing about opening them. So the bytes are laid out
//! here, by the format crate alone and not by the engine that is measured with them: superblock, journal with one entry, gen
//! table, UUID table, and a tree written leaf by leaf from left to right, so that memory does not grow with the extents.
//!
//! ```text
//! | superblock | journal | prio chain | UUID table | leaves, interior nodes, root | data ... | free ... |
//! ```
//!
//! - Extent `i` covers `extent_sectors` from sector `i * (extent_sectors + gap_sectors)` of the volume on, so no two of them can be
//!   merged. Where it lies on the cache device jumps about: each leaf points into buckets all over the device, as after
//!   random writes.
//! - Of most extents nothing is written: cache and backing device read as zeros there. Every `sample`th has the pattern of
//!   patterned sectors (`xtask/src/pattern.rs`): [`TAG_BACKING`] on the backing device and in clean extents, [`TAG_DIRTY`] in dirty
//!   ones. So a reader can tell whose data it got.
//! - The same recipe makes the same bytes.

mod data;
mod layout;
mod recipe;
mod tables;
#[cfg(test)]
mod tests;
mod tree;

pub use data::{TAG_BACKING, TAG_DIRTY};
pub use layout::Layout;
pub use recipe::{Recipe, StoppedBy, USAGE, parse};

use brigade_format::superblock::DEVICE_OFFSET;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The bytes of one device.
pub(crate) struct Image(File);

impl Image {
    /// A new sparse file; one that is there is replaced, what is no regular file is left alone.
    fn create(path: &Path, bytes: u64) -> io::Result<Image> {
        if std::fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            let text = format!("{}: there, and no regular file", path.display());
            return Err(io::Error::other(text));
        }
        let file = File::create(path)?;
        file.set_len(bytes)?;
        Ok(Image(file))
    }

    pub(crate) fn write(&self, sector: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, sector * 512)
    }
}

/// Makes both images.
pub fn make(recipe: &Recipe, cache: &Path, backing: &Path) -> io::Result<Layout> {
    let layout = Layout::of(recipe).map_err(io::Error::other)?;
    let cache = Image::create(cache, layout.cache_sectors * 512)?;
    let backing = Image::create(backing, layout.backing_sectors * 512)?;
    data::write(recipe, &layout, &cache, &backing)?;
    let root = tree::write(recipe, &layout, &cache)?;
    tables::write(recipe, &layout, root, &cache)?;
    let superblocks = [
        (&cache, &layout.cache_superblock),
        (&backing, &layout.backing_superblock),
    ];
    for (image, superblock) in superblocks {
        image.write(DEVICE_OFFSET / 512, &superblock.encode())?;
        // Or who opens it waits for that.
        image.0.sync_all()?;
    }
    Ok(layout)
}
