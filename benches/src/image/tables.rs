//! Everything about an image that is neither data nor tree: prio chain, UUID table, and the journal's newest entry.

use super::Image;
use super::layout::Layout;
use super::recipe::{Recipe, StoppedBy};
use brigade_format::jset::{self, JsetHeader};
use brigade_format::{BucketNr, Key, Pos, UuidEntry, prio, uuid_table};
use std::io;

/// Number of the newest journal entry.
const SEQ: u64 = 1000;
/// Place of its bucket in the ring: where a blank set begins.
const RING_INDEX: usize = 1;

/// Writes them.
pub(super) fn write(recipe: &Recipe, layout: &Layout, root: Key, cache: &Image) -> io::Result<()> {
    write_prios(layout, cache)?;
    let geometry = &layout.geometry;
    let mut table = vec![UuidEntry::EMPTY; geometry.uuid_slots as usize];
    table[0] = layout.uuid_entry();
    let start = |bucket| geometry.bucket_start(BucketNr(bucket));
    cache.write(start(layout.uuid_bucket), &uuid_table::encode(&table))?;
    let entry = newest_entry(recipe.by, layout, root);
    cache.write(start(geometry.journal_buckets[RING_INDEX]), &entry)
}

/// What a clean stop leaves as the newest journal entry. This is the one place to change when that changes.
fn newest_entry(by: StoppedBy, layout: &Layout, root: Key) -> Vec<u8> {
    let geometry = &layout.geometry;
    let uuids = layout.pointer(layout.uuid_bucket);
    let header = JsetHeader {
        seq: SEQ,
        last_seq: SEQ,
        version: jset::VERSION,
        uuid_bucket: Key::node(Pos::ZERO, geometry.meta_sectors, uuids),
        btree_root: root,
        btree_level: (layout.nodes.len() - 1) as u16,
        prio_bucket: layout.prio_start,
    };
    let mut entry = jset::encode(&header, &[], geometry.set_magic, geometry.block_bytes());
    match by {
        StoppedBy::Brigade => jset::mark(&mut entry, jset::Mark::Stopped),
        StoppedBy::Kernel => {}
    }
    entry
}

fn write_prios(layout: &Layout, cache: &Image) -> io::Result<()> {
    let geometry = &layout.geometry;
    let (per_bucket, links) = (geometry.prios_per_bucket, geometry.prio_buckets);
    for link in 0..links {
        let first = link * per_bucket;
        let own = first..(first + per_bucket).min(geometry.nbuckets);
        let entries: Vec<_> = own
            .map(|bucket| (layout.prio(bucket), layout.generation(bucket)))
            .collect();
        let bucket = layout.prio_start + link;
        // The last link names something that is not followed.
        let next = layout.prio_start + (link + 1) % links;
        let (seq, magic) = (layout.seq(layout.prio_start), geometry.set_magic);
        let bytes = prio::encode(seq, next, &entries, magic, geometry.meta_bytes());
        cache.write(geometry.bucket_start(BucketNr(bucket)), &bytes)?;
    }
    Ok(())
}
