//! What the keys of the tree and the journal say about each bucket: gens raised, hints, oldest pointers, owners.
//!
//! Follows `docs/format.md` 6.3 and 6.4. A pointer newer than its bucket raises the bucket's gen; a stale one does
//! nothing to it. Nothing here decides on its own what is damage: owners are claimed, and the claimer reports.

use brigade_format::superblock::CacheGeometry;
use brigade_format::{Gen, Ptr};

/// Who holds a bucket; at most one (`docs/format.md` 11, F40).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Nobody,
    Superblock,
    Journal,
    Prio,
    Uuids,
    Node,
    Data,
}

impl Owner {
    pub(super) fn name(self) -> &'static str {
        match self {
            Owner::Nobody => "nobody",
            Owner::Superblock => "the superblock",
            Owner::Journal => "the journal",
            Owner::Prio => "the prio chain",
            Owner::Uuids => "the uuid table",
            Owner::Node => "a btree node",
            Owner::Data => "data",
        }
    }
}

const PRIO_METADATA: u16 = 65535;
const PRIO_INITIAL: u16 = 32768;

/// Per-bucket conclusions. Pointers given must have been checked to lie inside the device.
pub(super) struct Marks {
    bucket_sectors: u64,
    pub(super) gens: Vec<Gen>,
    pub(super) chain_gens: Vec<Gen>,
    pub(super) prios: Vec<u16>,
    /// Data pointers only, which is what F42 is about.
    oldest: Vec<Option<Gen>>,
    /// The same of pointers to nodes, those of freeing keys too, from every set and whether current or not.
    oldest_to_nodes: Vec<Option<Gen>>,
    pub(super) referenced: Vec<bool>,
    /// A pointer to a node is newer than the table says. (That of a freeing key may be.)
    pub(super) is_ahead: bool,
    owners: Vec<Owner>,
}

impl Marks {
    pub(super) fn new(geometry: &CacheGeometry, chain: Vec<(u16, Gen)>) -> Marks {
        let count = chain.len();
        let gens: Vec<Gen> = chain.iter().map(|(_, r#gen)| *r#gen).collect();
        let mut marks = Marks {
            bucket_sectors: u64::from(geometry.bucket_sectors).max(1),
            chain_gens: gens.clone(),
            gens,
            prios: chain.iter().map(|(prio, _)| *prio).collect(),
            oldest: vec![None; count],
            oldest_to_nodes: vec![None; count],
            referenced: vec![false; count],
            is_ahead: false,
            owners: vec![Owner::Nobody; count],
        };
        for bucket in 0..geometry.first_bucket {
            marks.claim(bucket, Owner::Superblock);
        }
        for &bucket in &geometry.journal_buckets {
            marks.claim(bucket, Owner::Journal);
        }
        marks
    }

    /// The bucket's index. Pointers were checked before; a wild one lands in bucket 0, which nobody may point into.
    pub(super) fn bucket(&self, ptr: Ptr) -> usize {
        let bucket = (ptr.sector() / self.bucket_sectors) as usize;
        if bucket < self.gens.len() { bucket } else { 0 }
    }

    /// Byte on the device where a bucket starts.
    pub(super) fn bucket_offset(&self, bucket: usize) -> u64 {
        (bucket as u64)
            .saturating_mul(self.bucket_sectors)
            .saturating_mul(brigade_env::SECTOR_BYTES)
    }

    /// How many gens the bucket is ahead of the pointer; 0 means the pointer is good.
    pub(super) fn staleness(&self, ptr: Ptr) -> u8 {
        self.gens[self.bucket(ptr)].after(ptr.r#gen())
    }

    pub(super) fn is_stale(&self, ptr: Ptr) -> bool {
        self.staleness(ptr) > 0
    }

    /// Raises the bucket's gen to the pointer's, unless the pointer is stale. Says whether it is current.
    fn raise(&mut self, ptr: Ptr) -> bool {
        if self.is_stale(ptr) {
            return false;
        }
        let bucket = self.bucket(ptr);
        self.gens[bucket] = ptr.r#gen();
        self.referenced[bucket] = true;
        true
    }

    /// A pointer to a node: current ones make their bucket metadata as far as hints go.
    pub(super) fn see_node(&mut self, ptr: Ptr) {
        let chain = self.chain_gens[self.bucket(ptr)];
        self.is_ahead |= ptr.r#gen().after(chain) > 0;
        if self.see_freed(ptr) {
            let bucket = self.bucket(ptr);
            self.prios[bucket] = PRIO_METADATA;
        }
    }

    /// A pointer of a freeing key, which carries a gen and nothing else. Says whether it is current.
    pub(super) fn see_freed(&mut self, ptr: Ptr) -> bool {
        let bucket = self.bucket(ptr);
        keep_oldest(&mut self.oldest_to_nodes[bucket], ptr.r#gen());
        self.raise(ptr)
    }

    /// A pointer to data.
    pub(super) fn see_data(&mut self, ptr: Ptr) {
        let bucket = self.bucket(ptr);
        if self.raise(ptr) && self.prios[bucket] == PRIO_METADATA {
            self.prios[bucket] = PRIO_INITIAL;
        }
        keep_oldest(&mut self.oldest[bucket], ptr.r#gen());
    }

    /// Gens of a chain that is newer than the one the marks were made from (`docs/format.md` 5.9).
    pub(super) fn raise_by_chain(&mut self, entries: &[(u16, Gen)]) {
        for (bucket, (_, newer)) in entries.iter().enumerate().take(self.gens.len()) {
            if newer.after(self.gens[bucket]) > 0 {
                self.gens[bucket] = *newer;
                self.referenced[bucket] = false;
            }
        }
    }

    /// Makes `owner` the bucket's owner and returns whose it was; data may share a bucket with data.
    pub(super) fn claim(&mut self, bucket: u64, owner: Owner) -> Owner {
        let Some(slot) = usize::try_from(bucket)
            .ok()
            .and_then(|b| self.owners.get_mut(b))
        else {
            return Owner::Nobody;
        };
        let before = *slot;
        if before == Owner::Nobody {
            *slot = owner;
        }
        if before == owner && owner == Owner::Data {
            Owner::Nobody
        } else {
            before
        }
    }

    /// Per bucket the oldest gen of a data pointer to it, its own gen if there is none.
    pub(super) fn oldest_data_gens(&self) -> Vec<Gen> {
        self.oldest
            .iter()
            .zip(&self.gens)
            .map(|(oldest, own)| oldest.unwrap_or(*own))
            .collect()
    }

    /// Per bucket the oldest gen of any pointer to it, its own gen if there is none.
    pub(super) fn oldest_gens(&self) -> Vec<Gen> {
        let mut oldest = self.oldest_data_gens();
        for ((oldest, to_node), own) in oldest.iter_mut().zip(&self.oldest_to_nodes).zip(&self.gens)
        {
            if let Some(to_node) = to_node
                && own.after(*to_node) > own.after(*oldest)
            {
                *oldest = *to_node;
            }
        }
        oldest
    }
}

fn keep_oldest(oldest: &mut Option<Gen>, seen: Gen) {
    if oldest.is_none_or(|oldest| oldest.after(seen) > 0) {
        *oldest = Some(seen);
    }
}
