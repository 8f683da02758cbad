//! The generations: what the prio chain says, and what pointers raise them to (F20 to F22, F42, F44).

use super::devices::Cache;
use super::report::{Findings, Place};
use super::{Phase, Progress, Watch};
use crate::prios::{self, LinkError};
use crate::tree::Gens;
use brigade_format::prio::{ENTRY_BYTES, HEADER_BYTES, PRIO_NODE};
use brigade_format::{Gen, Key, Ptr};
use std::convert::Infallible;

/// Further ahead of the chain no pointer should be.
const LEAD_MAX: u8 = 64;

/// Generations of all buckets.
pub(super) struct Chain {
    /// As raised so far.
    pub gens: Gens,
    on_disk: Vec<Gen>,
    /// The buckets of the chain.
    pub buckets: Vec<u64>,
    /// How many buckets the chain has as metadata: an estimate of the nodes.
    pub nodes_hint: u64,
}

/// Reads the chain from `head`; `None` if a link is missing, since then no pointer can be judged.
pub(super) fn check(
    cache: &Cache<'_>,
    head: u64,
    entry: &Place,
    watch: &mut dyn Watch,
    findings: &mut Findings,
) -> Option<Chain> {
    let mut on_disk: Vec<Gen> = Vec::new();
    let (mut buckets, mut nodes_hint) = (Vec::new(), 0_u64);
    let mut first_seq = None;
    let mut named_by = (entry.clone(), entry.start + 176);
    let geometry = &cache.geometry;
    let Ok(is_whole) = prios::follow(cache.source, geometry, head, |bucket, link| {
        watch.progress(Progress {
            device: &cache.name,
            phase: Phase::Prios,
            done: buckets.len() as u64,
            total: geometry.prio_buckets,
        });
        let place = link_place(cache, bucket);
        match link {
            Ok(link) => {
                let first = *first_seq.get_or_insert(link.seq);
                if link.seq != first {
                    let text = format!("seq {}, the first link has {first}", link.seq);
                    findings.warn("F22", &place, place.start + 16, text);
                }
                nodes_hint += link.entries.iter().filter(|e| e.0 == PRIO_NODE).count() as u64;
                on_disk.extend(link.entries.iter().map(|entry| entry.1));
                buckets.push(bucket);
                let next_at = place.start + 32;
                named_by = (place, next_at);
            }
            Err(LinkError::Link(what)) => {
                findings.error(
                    "F20",
                    &named_by.0,
                    named_by.1,
                    format_args!("next prio bucket: {what}"),
                );
            }
            Err(LinkError::Io(what)) => {
                findings.unchecked(format!("{}: {}: {what}", cache.name, place.structure));
            }
            Err(LinkError::Content(error)) => {
                let what = format!(
                    "{}: found {}, expected {}",
                    error.structure, error.found, error.expected
                );
                if error.structure == "prio_set magic" {
                    let text = format!("it leads to bucket {bucket}, which is no prio bucket");
                    findings.error("F20", &named_by.0, named_by.1, text);
                }
                findings.error("F21", &place, error.offset, what);
            }
        }
        Ok::<(), Infallible>(())
    });
    is_whole.then(|| Chain {
        gens: Gens::new(on_disk.clone(), geometry),
        on_disk,
        buckets,
        nodes_hint,
    })
}

fn link_place(cache: &Cache<'_>, bucket: u64) -> Place {
    let start = bucket.saturating_mul(cache.geometry.bucket_bytes());
    cache.place(
        format!("prio bucket {bucket}"),
        start,
        cache.geometry.meta_bytes() as u64,
    )
}

impl Chain {
    /// How far a pointer is behind its bucket; 0 for one that holds.
    pub fn staleness(&self, ptr: Ptr) -> u8 {
        self.gens.staleness(ptr).unwrap_or(0)
    }

    /// The furthest of a key's pointers.
    pub fn key_staleness(&self, key: &Key) -> u8 {
        key.ptrs().map(|ptr| self.staleness(ptr)).max().unwrap_or(0)
    }

    /// Where the chain itself says that a pointer is stale: link and byte of the entry. `None` if another pointer says so.
    pub fn where_declared(&self, cache: &Cache<'_>, ptr: Ptr) -> Option<(Place, u64)> {
        let bucket = ptr.bucket(cache.geometry.bucket_sectors).0;
        let on_disk = self.on_disk.get(usize::try_from(bucket).ok()?)?;
        if on_disk.after(ptr.r#gen()) == 0 {
            return None;
        }
        let per_link = cache.geometry.prios_per_bucket;
        let link = usize::try_from(bucket.checked_div(per_link)?).ok()?;
        let place = link_place(cache, *self.buckets.get(link)?);
        let at = HEADER_BYTES as u64 + bucket.checked_rem(per_link)? * ENTRY_BYTES as u64;
        let offset = place.start + at;
        Some((place, offset))
    }

    /// Once all pointers were seen: how far they are ahead of the chain (F44).
    pub fn check_lead(&self, cache: &Cache<'_>, findings: &mut Findings) {
        let (mut ahead, mut most) = (0_u64, 0);
        for (bucket, on_disk) in self.on_disk.iter().enumerate() {
            let Some(now) = self.gens.at(bucket) else {
                continue;
            };
            let lead = now.after(*on_disk);
            ahead += u64::from(lead > 0);
            most = most.max(lead);
            if lead > LEAD_MAX {
                let start = bucket as u64 * cache.geometry.bucket_bytes();
                let place = cache.place(
                    format!("bucket {bucket}"),
                    start,
                    cache.geometry.bucket_bytes(),
                );
                let text = format!("a pointer is {lead} generations ahead of the prio chain");
                findings.warn("F44", &place, start, text);
            }
        }
        if ahead > 0 {
            let place = link_place(cache, self.buckets.first().copied().unwrap_or(0));
            let text = format!(
                "pointers into {ahead} buckets are newer than the chain, by at most {most}"
            );
            findings.note("F44", &place, place.start, text);
        }
    }
}
