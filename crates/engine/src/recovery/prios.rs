//! Reading the table of gens and priorities: a chain of buckets, counted, never followed to a terminator.
//!
//! `docs/format.md` 6.1 and 6.2.

use super::findings::{Findings, LoadError};
use brigade_env::{Device, Env, SECTOR_BYTES};
use brigade_format::superblock::CacheGeometry;
use brigade_format::{Gen, prio};
use std::collections::BTreeSet;

/// The whole table.
pub(super) struct Chain {
    pub(super) buckets: Vec<u64>,
    pub(super) seq: u64,
    /// One per bucket of the device.
    pub(super) entries: Vec<(u16, Gen)>,
    pub(super) bytes_read: u64,
}

/// Reads the chain that starts at `head`. A missing or damaged link is fatal.
pub(super) async fn read<E: Env>(
    env: &E,
    device: &E::Device,
    geometry: &CacheGeometry,
    head: u64,
    findings: &mut Findings,
) -> Result<Chain, LoadError> {
    let bucket_bytes = u64::from(geometry.bucket_sectors).saturating_mul(SECTOR_BYTES);
    let meta_bytes = u64::from(geometry.meta_sectors) * SECTOR_BYTES;
    let mut chain = Chain {
        buckets: Vec::new(),
        seq: 0,
        entries: Vec::new(),
        bytes_read: 0,
    };
    let mut seen = BTreeSet::new();
    let mut next = head;
    let mut from = 0;
    for link in 0..geometry.prio_buckets {
        check_link(geometry, &mut seen, link, next, from)?;
        let offset = next.saturating_mul(bucket_bytes);
        let structure = format!("prio bucket {next}");
        let buffer = env.buffers().get(meta_bytes as usize);
        let buffer = device
            .read(offset, buffer)
            .await
            .map_err(|e| LoadError::io(&structure, offset, &e))?;
        chain.bytes_read += meta_bytes;
        let left = geometry.nbuckets - link * geometry.prios_per_bucket;
        let count = left.min(geometry.prios_per_bucket) as usize;
        let parsed = prio::parse_prio_bucket(&buffer, geometry.set_magic, count)
            .map_err(|e| LoadError::format("F21", &structure, offset, &e))?;
        match link {
            0 => chain.seq = parsed.seq,
            _ if chain.seq != parsed.seq => {
                findings.warn(
                    "F22",
                    &structure,
                    offset,
                    format_args!("seq {}, the head has {}", parsed.seq, chain.seq),
                );
            }
            _ => {}
        }
        chain.entries.extend_from_slice(&parsed.entries);
        chain.buckets.push(next);
        (next, from) = (parsed.next_bucket, offset);
    }
    Ok(chain)
}

fn check_link(
    geometry: &CacheGeometry,
    seen: &mut BTreeSet<u64>,
    link: u64,
    next: u64,
    from: u64,
) -> Result<(), LoadError> {
    let structure = "prio chain";
    if next < geometry.first_bucket || next >= geometry.nbuckets {
        let text = format!(
            "link {link} names bucket {next}, not one of {}..{}",
            geometry.first_bucket, geometry.nbuckets
        );
        return Err(LoadError::new("F20", structure, from, text));
    }
    if !seen.insert(next) {
        return Err(LoadError::new(
            "F20",
            structure,
            from,
            format!("link {link} names bucket {next} again"),
        ));
    }
    Ok(())
}
