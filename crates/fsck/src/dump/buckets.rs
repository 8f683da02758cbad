//! Who owns how many buckets, by what the tree says.

use super::record::{Record, Writer};
use super::{Dump, Step};
use brigade_format::{JsetHeader, Key};
use std::convert::Infallible;
use std::io;

/// What a bucket is found to hold; the later ones win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    Nobody,
    Clean,
    Dirty,
    Node,
    Uuids,
    Prios,
    Journal,
    Superblock,
}

const OWNERS: [(Owner, &str); 8] = [
    (Owner::Superblock, "superblock"),
    (Owner::Journal, "journal"),
    (Owner::Prios, "prios"),
    (Owner::Uuids, "uuids"),
    (Owner::Node, "nodes"),
    (Owner::Dirty, "dirty"),
    (Owner::Clean, "clean"),
    (Owner::Nobody, "unreferenced"),
];

struct Owners {
    owners: Vec<Owner>,
    bucket_sectors: u32,
}

impl Owners {
    fn mark(&mut self, bucket: u64, owner: Owner) {
        if let Some(slot) = usize::try_from(bucket)
            .ok()
            .and_then(|bucket| self.owners.get_mut(bucket))
        {
            *slot = owner.max(*slot);
        }
    }

    fn mark_key(&mut self, key: &Key, owner: Owner) {
        for ptr in key.ptrs().filter(|ptr| ptr.is_available()) {
            self.mark(ptr.bucket(self.bucket_sectors).0, owner);
        }
    }
}

/// Counts by owner. Only the prio chain says how many buckets there really are, so without it there is no count.
pub(super) fn buckets(
    dump: &Dump<'_>,
    head: &JsetHeader,
    writer: &mut Writer<'_>,
) -> io::Result<()> {
    if !dump.gens_are_whole {
        return writer.put(Record::error("buckets", "the prio chain could not be read"));
    }
    let owners = owners(dump, head);
    let mut record = Record::new("buckets", "summary").with("total", owners.owners.len());
    for (owner, name) in OWNERS {
        record = record.with(name, owners.owners.iter().filter(|o| **o == owner).count());
    }
    writer.put(record)?;
    let by_chain = dump.prios.iter().filter(|prio| **prio == 0).count();
    writer.put(
        Record::new("buckets", "prios")
            .with("never_used", by_chain)
            .with("known_gens", dump.gens.len()),
    )
}

fn owners(dump: &Dump<'_>, head: &JsetHeader) -> Owners {
    let geometry = &dump.geometry;
    let count = dump.gens.len();
    let mut owners = Owners {
        owners: vec![Owner::Nobody; count],
        bucket_sectors: geometry.bucket_sectors,
    };
    (0..geometry.first_bucket).for_each(|bucket| owners.mark(bucket, Owner::Superblock));
    geometry
        .journal_buckets
        .iter()
        .for_each(|bucket| owners.mark(*bucket, Owner::Journal));
    dump.prio_buckets
        .iter()
        .for_each(|bucket| owners.mark(*bucket, Owner::Prios));
    owners.mark_key(&head.uuid_bucket, Owner::Uuids);
    let mut gens = dump.gens.clone();
    let Ok(()) = dump.walk(head).run(&mut gens, |gens, step| {
        if let Step::Node { level, key, node } = step {
            owners.mark_key(key, Owner::Node);
            let keys = node.sets.iter().flat_map(|set| set.keys.iter());
            for key in keys.filter(|key| level == 0 && key.size() > 0 && !gens.is_stale(key)) {
                owners.mark_key(
                    key,
                    if key.is_dirty() {
                        Owner::Dirty
                    } else {
                        Owner::Clean
                    },
                );
            }
        }
        Ok::<(), Infallible>(())
    });
    owners
}
