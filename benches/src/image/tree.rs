//! The tree, from its leaves up, each level from left to right.

use super::layout::Layout;
use super::recipe::Recipe;
use super::{Image, data};
use brigade_format::node::encode_bset;
use brigade_format::{Key, Pos};
use std::io;

/// The inode of the one volume.
const INODE: u32 = 0;

/// Writes all nodes and gives the key of the root.
pub(super) fn write(recipe: &Recipe, layout: &Layout, cache: &Image) -> io::Result<Key> {
    let mut bucket = layout.node_start;
    let mut children = Vec::new();
    for leaf in 0..layout.nodes[0] {
        let range = leaf * layout.leaf_keys..((leaf + 1) * layout.leaf_keys).min(recipe.extents);
        let keys: Vec<Key> = range.map(|i| extent_key(recipe, layout, i)).collect();
        let is_last = leaf + 1 == layout.nodes[0];
        children.push(node(layout, cache, bucket, &keys, recipe.sets, is_last)?);
        bucket += 1;
    }
    while children.len() > 1 {
        let mut parents = Vec::new();
        let count = children.len().div_ceil(layout.fanout as usize);
        for (nr, some) in children.chunks(layout.fanout as usize).enumerate() {
            parents.push(node(layout, cache, bucket, some, 1, nr + 1 == count)?);
            bucket += 1;
        }
        children = parents;
    }
    Ok(children[0])
}

fn extent_key(recipe: &Recipe, layout: &Layout, extent: u64) -> Key {
    let start = layout.backing_superblock.data_start() + data::start(recipe, extent);
    let dirty = data::is_dirty(recipe, extent);
    Key::extent(
        INODE,
        start,
        recipe.extent_sectors,
        layout.place(extent),
        dirty,
    )
}

/// Writes a node with these keys, dealt out to several sets, and gives the key that names it. It ends with its last key, and
/// the last node of a level where the key space does.
fn node(
    layout: &Layout,
    cache: &Image,
    bucket: u64,
    keys: &[Key],
    sets: u64,
    is_last: bool,
) -> io::Result<Key> {
    let (ptr, seq) = (layout.pointer(bucket), layout.seq(bucket));
    let geometry = &layout.geometry;
    let sets = (sets as usize).clamp(1, keys.len().max(1));
    let mut bytes = Vec::with_capacity(geometry.node_bytes());
    for set in 0..sets {
        let mut words = Vec::with_capacity(3 * keys.len().div_ceil(sets));
        let own = keys.iter().skip(set).step_by(sets);
        own.for_each(|key| key.push_to(&mut words));
        let block_bytes = geometry.block_bytes();
        let set = encode_bset(&words, seq, ptr, geometry.set_magic, block_bytes);
        bytes.extend(set);
    }
    assert!(bytes.len() <= geometry.node_bytes(), "a node overflows");
    cache.write(ptr.sector(), &bytes)?;
    let end = keys.last().filter(|_| !is_last).map_or(Pos::MAX, Key::pos);
    Ok(Key::node(end, geometry.node_sectors, ptr))
}
