//! One cache set: the steps in their order, and what is left out when one of them has no result.

use super::chain::{self, Chain};
use super::devices::{Backing, Cache};
use super::effective::STALE_MAX;
use super::extents::{self, Scene};
use super::nodes::{self, Nodes};
use super::owners::{Class, Owners};
use super::report::{Findings, SetView};
use super::ring::{self, Ring};
use super::slots;
use super::{Options, Watch, volumes};
use brigade_format::BucketNr;

/// Memory for each bucket: its generations, who has it, and room that lists have beyond that.
const BYTES_PER_BUCKET: u64 = 8;
/// Tables of buckets may take this much whatever the bound on memory is.
const TABLES_BYTES_MIN: u64 = 16 << 20;

/// Checks the set on `cache` and adds its view to the report.
pub(super) fn check(
    cache: &Cache<'_>,
    backings: &[Backing<'_>],
    options: &Options,
    watch: &mut dyn Watch,
    findings: &mut Findings,
) {
    let mut view = SetView {
        device: cache.name.clone(),
        set_uuid: cache.superblock.set_uuid,
        is_initialised: cache.superblock.is_sync(),
        bucket_sectors: cache.geometry.bucket_sectors,
        ..SetView::default()
    };
    if view.is_initialised {
        initialised(cache, backings, options, watch, findings, &mut view);
    } else {
        volumes::blank(cache, backings, findings);
    }
    findings.report.sets.push(view);
}

fn initialised(
    cache: &Cache<'_>,
    backings: &[Backing<'_>],
    options: &Options,
    watch: &mut dyn Watch,
    findings: &mut Findings,
    view: &mut SetView,
) {
    let Some(ring) = ring::check(cache, options, watch, findings) else {
        return leave_out(cache, findings, "everything the journal leads to");
    };
    view.newest_seq = ring.head.seq;
    view.last_seq = ring.head.last_seq;
    view.replayed_keys = ring.replayed.len() as u64;
    view.root_level = ring.head.btree_level;
    let slots = slots::check(cache, &ring, findings);
    let head = ring.head.prio_bucket;
    let mut usage = None;
    let fits = has_room(cache, options, findings);
    match fits
        .then(|| chain::check(cache, head, &ring.place, watch, findings))
        .flatten()
    {
        Some(mut chain) => {
            let mut owners = Owners::new(chain.gens.len());
            metadata(cache, &ring, &chain, &mut owners, findings);
            let nodes = tree(cache, &ring, &mut chain, &mut owners, watch, findings, view);
            if let (Some(nodes), Some(slots)) = (&nodes, &slots) {
                let scene = Scene {
                    cache,
                    backings,
                    ring: &ring,
                    slots,
                    nodes,
                    options,
                };
                usage = Some(extents::check(
                    &scene,
                    &mut chain,
                    &mut owners,
                    watch,
                    findings,
                ));
            } else {
                let what = "extents: not everything that says where they are could be read";
                leave_out(cache, findings, what);
            }
            view.buckets = owners.count();
        }
        None => {
            let what = "the tree: without the generations nobody knows which pointers hold";
            leave_out(cache, findings, what);
        }
    }
    view.has_extents = usage.is_some();
    if let Some(slots) = &slots {
        view.volumes = volumes::check(cache, slots, usage.as_ref(), backings, findings);
    }
}

/// Whether the tables of buckets fit the bound on memory: a file of some megabytes may say that it has any number of them.
fn has_room(cache: &Cache<'_>, options: &Options, findings: &mut Findings) -> bool {
    let nbuckets = cache.geometry.nbuckets;
    let limit = options.memory_max.max(TABLES_BYTES_MIN);
    let fits = nbuckets.saturating_mul(BYTES_PER_BUCKET) <= limit;
    if !fits {
        findings.unchecked(format!(
            "{}: generations: the tables of {nbuckets} buckets take more than {limit} bytes",
            cache.name
        ));
    }
    fits
}

fn leave_out(cache: &Cache<'_>, findings: &mut Findings, what: &str) {
    findings.unchecked(format!("{}: {what}", cache.name));
}

/// The first walk, and all that raises generations. `None` if not everything is known that the extents depend on.
fn tree(
    cache: &Cache<'_>,
    ring: &Ring,
    chain: &mut Chain,
    owners: &mut Owners,
    watch: &mut dyn Watch,
    findings: &mut Findings,
    view: &mut SetView,
) -> Option<Nodes> {
    let nodes = nodes::check(cache, ring, chain, watch, findings);
    if let Some(nodes) = &nodes {
        view.nodes = nodes.count;
        view.keys = nodes.keys;
        own_nodes(cache, nodes, owners, findings);
    }
    raise_by_replay(ring, chain);
    chain.check_lead(cache, findings);
    replayed_staleness(cache, ring, chain, findings);
    let nodes = nodes?;
    let are_current = nodes_are_current(cache, &nodes, chain, findings);
    (nodes.is_whole && ring.is_whole && are_current).then_some(nodes)
}

/// F40 for what is named by number or by the journal.
fn metadata(
    cache: &Cache<'_>,
    ring: &Ring,
    chain: &Chain,
    owners: &mut Owners,
    findings: &mut Findings,
) {
    let geometry = &cache.geometry;
    for bucket in 0..geometry.first_bucket {
        let _ = owners.claim(BucketNr(bucket), Class::Superblock);
    }
    for bucket in &geometry.journal_buckets {
        let _ = owners.claim(BucketNr(*bucket), Class::Journal);
    }
    let uuids = ring.head.uuid_bucket.ptr(0);
    let uuids = uuids.map(|ptr| ptr.bucket(geometry.bucket_sectors).0);
    let prios = chain.buckets.iter().map(|bucket| (*bucket, Class::Prios));
    let all = prios.chain(uuids.map(|bucket| (bucket, Class::Uuids)));
    for (bucket, class) in all {
        if let Err(owner) = owners.claim(BucketNr(bucket), class) {
            claimed_twice(cache, bucket, class, owner, findings);
        }
    }
}

fn claimed_twice(
    cache: &Cache<'_>,
    bucket: u64,
    class: Class,
    owner: Class,
    findings: &mut Findings,
) {
    let length = cache.geometry.bucket_bytes();
    let start = bucket.saturating_mul(length);
    let place = cache.place(format!("bucket {bucket}"), start, length);
    let text = format!(
        "it is that of {} and of {} as well",
        owner.name(),
        class.name()
    );
    findings.error("F40", &place, start, text);
}

fn own_nodes(cache: &Cache<'_>, nodes: &Nodes, owners: &mut Owners, findings: &mut Findings) {
    for (ptr, _) in &nodes.all {
        let bucket = ptr.bucket(cache.geometry.bucket_sectors);
        if let Err(owner) = owners.claim(bucket, Class::Node) {
            claimed_twice(cache, bucket.0, Class::Node, owner, findings);
        }
    }
}

/// Newest entry first, as at open; the table's pointer last.
fn raise_by_replay(ring: &Ring, chain: &mut Chain) {
    for replayed in ring.replayed.iter().rev() {
        chain.gens.raise(&replayed.key);
    }
    chain.gens.raise(&ring.head.uuid_bucket);
}

/// F42 for the journal.
fn replayed_staleness(cache: &Cache<'_>, ring: &Ring, chain: &Chain, findings: &mut Findings) {
    for replayed in &ring.replayed {
        let staleness = chain.key_staleness(&replayed.key);
        if staleness > STALE_MAX {
            let place = replayed.place(cache);
            let text = format!(
                "key {} is {staleness} generations behind its bucket, at most {STALE_MAX} are allowed",
                replayed.key
            );
            findings.error("F42", &place, replayed.entry, text);
        }
    }
}

/// A node whose bucket has a newer generation was let go of, by whatever says so; then it must not be in the tree.
fn nodes_are_current(
    cache: &Cache<'_>,
    nodes: &Nodes,
    chain: &Chain,
    findings: &mut Findings,
) -> bool {
    let mut are_current = true;
    for (ptr, named_at) in &nodes.all {
        let staleness = chain.staleness(*ptr);
        if staleness == 0 {
            continue;
        }
        are_current = false;
        let bucket = ptr.bucket(cache.geometry.bucket_sectors);
        let by_pointer = || {
            let place = cache.place("pointer to a btree node", *named_at, 24);
            (place, *named_at)
        };
        let (place, at) = chain.where_declared(cache, *ptr).unwrap_or_else(by_pointer);
        let text = format!(
            "the generation of bucket {bucket} says that it was given away, but a live node of the tree is there ({ptr}, {staleness} behind)"
        );
        findings.error("F40", &place, at, text);
    }
    are_current
}
