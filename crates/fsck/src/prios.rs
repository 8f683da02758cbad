//! The chain of prio buckets (docs/format.md 6.1, 6.2): counted, never followed to an end mark.

use crate::source::{ReadAt, read};
use brigade_format::FormatError;
use brigade_format::prio::{self, PrioBucket};
use brigade_format::superblock::CacheGeometry;
use std::collections::BTreeSet;
use std::fmt;

/// Why a link cannot be used.
#[derive(Clone, Debug)]
pub(crate) enum LinkError {
    /// It leads nowhere, or in a circle.
    Link(String),
    /// The bucket cannot be read.
    Io(String),
    /// What is in the bucket is no link.
    Content(FormatError),
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkError::Link(what) | LinkError::Io(what) => f.write_str(what),
            LinkError::Content(error) => error.fmt(f),
        }
    }
}

/// Follows the chain from `head`; each link, or what is wrong with it, goes to `link` with its bucket. Gives whether the
/// chain is complete.
pub(crate) fn follow<E>(
    source: &dyn ReadAt,
    geometry: &CacheGeometry,
    head: u64,
    mut link: impl FnMut(u64, Result<PrioBucket, LinkError>) -> Result<(), E>,
) -> Result<bool, E> {
    let mut seen = BTreeSet::new();
    let mut bucket = head;
    let mut left = geometry.nbuckets;
    for _ in 0..geometry.prio_buckets {
        let count = left.min(geometry.prios_per_bucket);
        let read = read_link(source, geometry, bucket, count, seen.insert(bucket));
        let next = read.as_ref().ok().map(|read| read.next_bucket);
        link(bucket, read)?;
        let Some(next) = next else { return Ok(false) };
        bucket = next;
        left -= count;
    }
    Ok(true)
}

fn read_link(
    source: &dyn ReadAt,
    geometry: &CacheGeometry,
    bucket: u64,
    entries: u64,
    is_new: bool,
) -> Result<PrioBucket, LinkError> {
    if !(geometry.first_bucket..geometry.nbuckets).contains(&bucket) {
        return Err(LinkError::Link(format!(
            "bucket {bucket} is not on the device"
        )));
    }
    if !is_new {
        return Err(LinkError::Link(format!(
            "bucket {bucket} is in the chain twice"
        )));
    }
    let offset = bucket * geometry.bucket_bytes();
    let bytes =
        read(source, offset, geometry.meta_bytes()).map_err(|e| LinkError::Io(e.to_string()))?;
    let entries = usize::try_from(entries).unwrap_or(usize::MAX);
    prio::parse_prio_bucket(&bytes, geometry.set_magic, entries)
        .map_err(|e| LinkError::Content(e.shifted(offset)))
}
