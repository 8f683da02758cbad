//! What was read, put together: bucket state and nodes from it, and around the index the pages, the tree and what requests use.
//!
//! Nothing here waits or touches a device, so a set that is only looked at and a blank one are put together from the same pieces.

use super::open::Found;
use crate::alloc::{Allocator, PRIO_EMPTY};
use crate::btree::{Index, Nodes, Pages, PagesSetup, Tree};
use crate::buckets::Buckets;
use crate::data::Inserter;
use crate::journal::Journal;
use crate::limits::{BUCKET_MEMORY_BYTES, OTHER_MEMORY_BYTES};
use crate::options::Options;
use crate::recovery::Loaded;
use crate::request::{Cache, CacheWriter};
use crate::stats::SetCounters;
use crate::watched::Watched;
use brigade_env::Env;
use brigade_format::{BucketNr, Ptr};
use std::rc::Rc;

pub(super) fn load_buckets<E: Env>(found: &Found<E>, loaded: &Loaded) -> Allocator {
    let mut alloc = found.allocator();
    let first = found.geometry.first_bucket;
    for nr in first..found.geometry.nbuckets {
        let at = nr as usize;
        alloc.set_gen(BucketNr(nr), loaded.chain_gens[at], loaded.prios[at]);
        alloc.raise_gen(BucketNr(nr), loaded.gens[at]);
        alloc.note_pointer_gen(BucketNr(nr), loaded.oldest_gens[at]);
        let may_be_named = !loaded.is_counted && loaded.prios[at] != PRIO_EMPTY;
        if loaded.referenced[at] || may_be_named {
            alloc.mark_referenced(BucketNr(nr));
        }
    }
    let node_buckets = loaded
        .nodes
        .iter()
        .map(|node| &node.key)
        .chain([&loaded.newest.uuid_bucket]);
    let places = node_buckets
        .filter_map(|key| key.ptr(0))
        .map(|ptr| ptr.bucket(found.geometry.bucket_sectors));
    let tables = loaded
        .prio_buckets
        .iter()
        .chain(&found.geometry.journal_buckets)
        .copied()
        .map(BucketNr);
    places.chain(tables).for_each(|nr| alloc.mark_metadata(nr));
    for extent in loaded.index.iter() {
        if let Some(ptr) = extent.ptr {
            alloc.add_live(ptr, extent.sectors() as u32, extent.dirty);
        }
    }
    for (at, (live, dirty)) in loaded
        .held
        .iter()
        .flat_map(|held| &held.buckets)
        .enumerate()
    {
        let sector = at as u64 * u64::from(found.geometry.bucket_sectors);
        let ptr = Ptr::new(sector, loaded.gens[at]);
        for (sectors, is_dirty) in [(live - dirty, false), (*dirty, true)] {
            if sectors > 0 {
                alloc.add_live(ptr, sectors, is_dirty);
            }
        }
    }
    match loaded.is_counted {
        true => alloc.start(),
        false => alloc.start_counting(loaded.referenced.clone()),
    }
    alloc
}

pub(super) fn load_nodes(loaded: &Loaded) -> Nodes {
    let mut nodes = Nodes::default();
    let mut ids = Vec::with_capacity(loaded.nodes.len());
    for node in &loaded.nodes {
        let parent = node.parent.map(|at| ids[at]);
        let id = nodes.add(
            node.level,
            node.key,
            node.low,
            node.seq,
            u64::from(node.blocks_used),
            parent,
        );
        match parent {
            Some(parent) => nodes.adopt(parent, &[id]),
            None => nodes.set_root(id),
        }
        // A kernel takes version 0 sets only as long as the node's sets all are.
        nodes.get_mut(id).rewrite_wanted = node.has_old_bset_version;
        if node.level == 0 && !loaded.is_counted {
            nodes.leave_uncounted(id);
        }
        ids.push(id);
    }
    if let Some(held) = &loaded.held {
        for (leaf, (extents, dirty_sectors)) in nodes.leaves().into_iter().zip(&held.leaves) {
            nodes.leave_counted(leaf, *extents, *dirty_sectors);
        }
    }
    // Dirty keys that point at reused buckets go with the next write of their leaf.
    if loaded.findings.iter().any(|finding| finding.id == "F43") {
        let leaves = nodes.leaves();
        leaves
            .into_iter()
            .for_each(|leaf| nodes.get_mut(leaf).rewrite_wanted = true);
    }
    nodes
}

/// The index of a set that is not written to. Nothing of it leaves memory: what was read may have been put right there.
pub(super) fn view<E: Env>(
    env: &E,
    found: &Found<E>,
    index: Index,
    buckets: &Rc<Buckets>,
) -> Rc<Cache<E>> {
    let index = Rc::new(Watched::new(index));
    let pages = pages(env, found, &index, buckets, None);
    cache(found, index, pages, buckets, None)
}

fn pages<E: Env>(
    env: &E,
    found: &Found<E>,
    index: &Rc<Watched<Index>>,
    buckets: &Rc<Buckets>,
    bytes_max: Option<u64>,
) -> Rc<Pages<E>> {
    let setup = PagesSetup {
        disk: found.disk.clone(),
        poison: found.poison.clone(),
        steps: found.steps.clone(),
        layout: found.layout(),
        rules: found.geometry.key_rules(),
        index: index.clone(),
        buckets: buckets.clone(),
        bytes_max,
    };
    Pages::new(env.clone(), setup)
}

fn cache<E: Env>(
    found: &Found<E>,
    index: Rc<Watched<Index>>,
    pages: Rc<Pages<E>>,
    buckets: &Rc<Buckets>,
    writer: Option<CacheWriter<E>>,
) -> Rc<Cache<E>> {
    found.disk.watch_congestion(&found.settings);
    Rc::new(Cache {
        disk: found.disk.clone(),
        poison: found.poison.clone(),
        index,
        pages,
        buckets: buckets.clone(),
        writer,
        settings: found.settings.clone(),
        steps: found.steps.clone(),
        clients: Rc::default(),
        counters: SetCounters::default(),
        bucket_sectors: found.geometry.bucket_sectors,
        block_sectors: u64::from(found.geometry.block_sectors),
    })
}

/// What of the memory allowed is left for the index, and at least a quarter of it.
fn index_bytes<E: Env>(found: &Found<E>, buckets: &Buckets, options: &Options) -> u64 {
    let of_buckets = found.geometry.nbuckets * BUCKET_MEMORY_BYTES;
    let taken = of_buckets + buckets.fill_bytes_max() as u64 + OTHER_MEMORY_BYTES;
    let memory = options.memory_bytes;
    memory.saturating_sub(taken).max(memory / 4)
}

/// The parts of a running set around an index.
pub(super) fn assemble<E: Env>(
    env: &E,
    found: &Found<E>,
    index: Index,
    buckets: &Rc<Buckets>,
    journal: &Rc<Journal<E>>,
    options: &Options,
) -> (Rc<Tree<E>>, Rc<Cache<E>>) {
    let index = Rc::new(Watched::new(index));
    buckets.limit_fills(options.memory_bytes);
    let bytes_max = index_bytes(found, buckets, options);
    let pages = pages(env, found, &index, buckets, Some(bytes_max));
    let tree = Tree::new(
        env.clone(),
        found.disk.clone(),
        found.poison.clone(),
        found.layout(),
        index.clone(),
        pages.clone(),
        buckets.clone(),
        journal.clone(),
    );
    let demand = {
        let tree = Rc::downgrade(&tree);
        Rc::new(move || {
            if let Some(tree) = tree.upgrade() {
                tree.demand.notify_all();
            }
        })
    };
    let words_high = tree.pending_words_high();
    let inserter = Inserter::new(
        env.clone(),
        index.clone(),
        pages.clone(),
        buckets.clone(),
        journal.clone(),
        words_high,
        demand,
    );
    let writer = CacheWriter {
        inserter,
        journal: journal.clone(),
    };
    (tree, cache(found, index, pages, buckets, Some(writer)))
}
