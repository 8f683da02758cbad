//! Every extent against buckets, other extents, and the volume it belongs to (F40 to F43, F47, F53, F64, F70).

use super::chain::Chain;
use super::devices::{Backing, Cache};
use super::effective::{Effective, Event, Extent, Origin, STALE_MAX};
use super::nodes::Nodes;
use super::owners::{Class, Owners, SectorMap, windows};
use super::replay::Overlay;
use super::report::{Findings, Place, Severity, SlotKind};
use super::ring::Ring;
use super::slots::{Rule, Slots, rule};
use super::{Options, Phase, Progress, Watch};
use brigade_format::{BucketNr, SECTOR_BYTES};
use std::collections::BTreeMap;

/// What one inode has.
#[derive(Clone, Copy, Default)]
pub(super) struct Usage {
    pub extents: u64,
    pub clean_sectors: u64,
    pub dirty_sectors: u64,
}

/// All that is known when the extents are gone through.
pub(super) struct Scene<'a, 'b> {
    pub cache: &'a Cache<'b>,
    pub backings: &'a [Backing<'b>],
    pub ring: &'a Ring,
    pub slots: &'a Slots,
    pub nodes: &'a Nodes,
    pub options: &'a Options,
}

/// Goes through all extents; gives what each inode has.
pub(super) fn check(
    scene: &Scene<'_, '_>,
    chain: &mut Chain,
    owners: &mut Owners,
    watch: &mut dyn Watch,
    findings: &mut Findings,
) -> BTreeMap<u32, Usage> {
    let cache = scene.cache;
    let mut overlay = Overlay::new(&scene.ring.replayed);
    let sectors = cache.geometry.nbuckets * u64::from(cache.geometry.bucket_sectors);
    let mut usage = BTreeMap::new();
    for (nr, map) in windows(sectors, scene.options.memory_max).enumerate() {
        let mut pass = Pass {
            scene,
            map,
            is_first: nr == 0,
            owners,
            usage: &mut usage,
            rule: None,
            findings,
            buffers: Default::default(),
        };
        let mut done = 0;
        let mut effective = Effective::new(cache, &scene.ring.replayed, &mut overlay);
        // Both want the watch, one after the other.
        let watch = std::cell::RefCell::new(&mut *watch);
        let mut step = || {
            done += 1;
            watch.borrow_mut().progress(Progress {
                device: &cache.name,
                phase: Phase::Extents,
                done,
                total: scene.nodes.count.max(done),
            });
        };
        effective.run(scene.nodes.root, chain, &mut step, &mut |chain, event| {
            if let (true, Event::Live(extent, _)) = (pass.is_first, &event) {
                watch.borrow_mut().extent(cache.index, extent);
            }
            pass.event(chain, event);
        });
    }
    usage
}

struct Pass<'a, 'b, 'c> {
    scene: &'a Scene<'a, 'b>,
    map: SectorMap,
    /// The others are for sectors the first map had no room for.
    is_first: bool,
    owners: &'c mut Owners,
    usage: &'c mut BTreeMap<u32, Usage>,
    /// Of the inode in hand.
    rule: Option<(u32, Rule<'a, 'b>)>,
    findings: &'c mut Findings,
    buffers: [Vec<u8>; 2],
}

impl<'a, 'b> Pass<'a, 'b, '_> {
    fn rule(&mut self, inode: u32) -> Rule<'a, 'b> {
        if let Some((of, rule)) = self.rule
            && of == inode
        {
            return rule;
        }
        let scene = self.scene;
        let set_uuid = &scene.cache.superblock.set_uuid;
        let rule = rule(scene.slots, inode, set_uuid, scene.backings);
        self.rule = Some((inode, rule));
        rule
    }

    fn place(&self, origin: Origin) -> (Place, u64) {
        let cache = self.scene.cache;
        match origin {
            Origin::Leaf(spot, at) => (spot.place(cache), at),
            Origin::Journal(by) => match self.scene.ring.replayed.get(by as usize) {
                Some(replayed) => (replayed.place(cache), replayed.entry),
                None => (self.scene.ring.place.clone(), self.scene.ring.place.start),
            },
        }
    }

    fn say(
        &mut self,
        severity: Severity,
        id: &'static str,
        origin: Origin,
        text: std::fmt::Arguments<'_>,
    ) {
        let (place, at) = self.place(origin);
        self.findings.add(severity, id, &place, at, text);
    }

    fn event(&mut self, chain: &Chain, event: Event) {
        match event {
            Event::Live(extent, origin) => self.live(&extent, origin),
            _ if !self.is_first => {}
            Event::Lost(extent, origin) => self.lost(chain, &extent, origin),
            Event::Cleaned(extent, origin) => self.say(
                Severity::Note,
                "F43",
                origin,
                format_args!(
                    "{} is dirty and stale: written back before its bucket was reused",
                    Shown(&extent)
                ),
            ),
            Event::Kept {
                extent,
                replayed,
                replayed_ptr,
                is_proved,
            } => self.kept(chain, &extent, replayed, replayed_ptr, is_proved),
            Event::TooStale {
                key,
                staleness,
                origin,
                is_hidden,
            } => {
                let severity = match is_hidden {
                    true => Severity::Note,
                    false => Severity::Error,
                };
                self.say(
                    severity,
                    "F42",
                    origin,
                    format_args!(
                        "key {key} is {staleness} generations behind its bucket, at most {STALE_MAX} are allowed"
                    ),
                );
            }
        }
    }

    fn lost(&mut self, chain: &Chain, extent: &Extent, origin: Origin) {
        let rule = self.rule(extent.inode);
        let is_leaf_root = self.scene.ring.head.btree_level == 0;
        let severity = match rule {
            Rule::Void => Severity::Note,
            Rule::Cached(_) if is_leaf_root => Severity::Warning,
            _ => Severity::Error,
        };
        let consequence = match severity {
            Severity::Error => "the data is lost",
            Severity::Warning => {
                "a kernel's gc leaves such keys in a root that is a leaf; as a rule the data was written back"
            }
            Severity::Note => "nobody's data",
        };
        let staleness = chain.staleness(extent.ptr);
        let by = chain.where_declared(self.scene.cache, extent.ptr);
        let by = by.map_or("another pointer".into(), |(place, _)| place.structure);
        self.say(
            severity,
            "F43",
            origin,
            format_args!(
                "{} is dirty and {staleness} generations stale by {by}: {consequence}",
                Shown(extent)
            ),
        );
    }

    fn kept(
        &mut self,
        chain: &Chain,
        extent: &Extent,
        replayed: u32,
        replayed_ptr: brigade_format::Ptr,
        is_proved: bool,
    ) {
        let cache = self.scene.cache;
        let severity = match (self.rule(extent.inode), is_proved) {
            (Rule::Void, _) => Severity::Note,
            (_, true) => Severity::Warning,
            (_, false) => Severity::Error,
        };
        let (entry, entry_at) = self.place(Origin::Journal(replayed));
        let bucket = replayed_ptr.bucket(cache.geometry.bucket_sectors);
        let text = format!(
            "{} is live and dirty under a dirty key of {} for {replayed_ptr}, of which the generation of bucket {bucket} says that it is stale: \
             a kernel loses the data",
            Shown(extent),
            entry.structure,
        );
        // What makes it stale is what is doubtful: the chain, if it says so by itself.
        let (place, at) = chain
            .where_declared(cache, replayed_ptr)
            .unwrap_or((entry, entry_at));
        self.findings.add(severity, "F47", &place, at, text);
    }

    fn live(&mut self, extent: &Extent, origin: Origin) {
        let start = extent.ptr.sector();
        let twice = self.map.mark(start, start.saturating_add(extent.sectors));
        if let Some(twice) = twice {
            self.say(
                Severity::Error,
                "F41",
                origin,
                format_args!(
                    "{}: sector {twice} of the cache belongs to another live extent as well",
                    Shown(extent)
                ),
            );
        }
        if !self.is_first {
            return;
        }
        let usage = self.usage.entry(extent.inode).or_default();
        usage.extents += 1;
        match extent.dirty {
            true => usage.dirty_sectors += extent.sectors,
            false => usage.clean_sectors += extent.sectors,
        }
        let is_first_of_inode = usage.extents == 1;
        self.bucket(extent, origin);
        if is_first_of_inode && self.scene.slots.kind(extent.inode) == SlotKind::Free {
            // Either the table or this key is wrong.
            self.say(
                Severity::Error,
                "F51",
                origin,
                format_args!("{}: the slot was never given to anybody", Shown(extent)),
            );
        }
        match self.rule(extent.inode) {
            Rule::Void => {}
            Rule::Flash(sectors) => self.flash(extent, origin, sectors),
            Rule::Cached(Some(backing)) => {
                // What belongs to two is compared once: there may be any number of them.
                let may_compare = self.scene.options.data && twice.is_none();
                self.cached(extent, origin, backing, may_compare);
            }
            Rule::Cached(None) => {}
        }
    }

    fn bucket(&mut self, extent: &Extent, origin: Origin) {
        let class = if extent.dirty {
            Class::Dirty
        } else {
            Class::Clean
        };
        let bucket: BucketNr = extent.ptr.bucket(self.scene.cache.geometry.bucket_sectors);
        if let Err(owner) = self.owners.claim(bucket, class) {
            self.say(
                Severity::Error,
                "F40",
                origin,
                format_args!(
                    "{} lies in bucket {bucket}, which is that of {}",
                    Shown(extent),
                    owner.name()
                ),
            );
        }
    }

    fn flash(&mut self, extent: &Extent, origin: Origin, sectors: u64) {
        if extent.end() > sectors {
            self.say(
                Severity::Warning,
                "F53",
                origin,
                format_args!("{}: the volume has {sectors} sectors", Shown(extent)),
            );
        }
        if !extent.dirty {
            self.say(
                Severity::Warning,
                "F53",
                origin,
                format_args!("{} of a flash-only volume is clean", Shown(extent)),
            );
        }
    }

    fn cached(
        &mut self,
        extent: &Extent,
        origin: Origin,
        backing: &Backing<'_>,
        may_compare: bool,
    ) {
        let (first, end) = (backing.data_start, backing.sectors);
        if extent.start < first || extent.end() > end {
            let severity = match extent.dirty {
                true => Severity::Error,
                false => Severity::Warning,
            };
            let place = Place {
                structure: "backing device".into(),
                start: 0,
                length: end.saturating_mul(SECTOR_BYTES),
                ..backing.place()
            };
            let (leaf, at) = self.place(origin);
            let text = format!(
                "{} ({} at byte {at} of {}) lies outside its data, sectors {first} to {end}",
                Shown(extent),
                leaf.structure,
                leaf.device
            );
            let offset = end.saturating_mul(SECTOR_BYTES);
            self.findings.add(severity, "F64", &place, offset, text);
            return;
        }
        if may_compare && !extent.dirty {
            self.compare(extent, origin, backing);
        }
    }

    /// F70, in pieces.
    fn compare(&mut self, extent: &Extent, origin: Origin, backing: &Backing<'_>) {
        const PIECE_SECTORS: u64 = 512;
        let mut at = 0;
        while at < extent.sectors {
            let count = PIECE_SECTORS.min(extent.sectors - at);
            let length = (count * SECTOR_BYTES) as usize;
            let places = [
                (self.scene.cache.source, extent.ptr.sector() + at),
                (backing.source, extent.start + at),
            ];
            for (buffer, (source, sector)) in self.buffers.iter_mut().zip(places) {
                buffer.resize(length, 0);
                if let Err(error) = source.read_at(sector * SECTOR_BYTES, buffer) {
                    let text = format!("data of {}: {error}", Shown(extent));
                    return self.findings.unchecked(text);
                }
            }
            let [ours, theirs] = &self.buffers;
            if ours != theirs {
                let differ = ours.iter().zip(theirs).position(|(a, b)| a != b);
                let sector = extent.start + at + differ.unwrap_or(0) as u64 / SECTOR_BYTES;
                let (leaf, at) = self.place(origin);
                let place = Place {
                    structure: "clean data".into(),
                    start: extent.start * SECTOR_BYTES,
                    length: extent.sectors * SECTOR_BYTES,
                    ..backing.place()
                };
                let text = format!(
                    "{} is clean in the cache ({} at byte {at} of {}) and not what is here",
                    Shown(extent),
                    leaf.structure,
                    leaf.device
                );
                let offset = sector * SECTOR_BYTES;
                return self.findings.warn("F70", &place, offset, text);
            }
            at += count;
        }
    }
}

/// An extent in words.
struct Shown<'a>(&'a Extent);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Extent {
            inode, start, ptr, ..
        } = self.0;
        write!(
            f,
            "sectors {start} to {} of slot {inode} -> {ptr}",
            self.0.end()
        )
    }
}
