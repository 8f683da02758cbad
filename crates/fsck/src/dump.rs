//! Everything on a cache device as a stream of records, in the words of `docs/format.md`.
//!
//! A record has a section, a kind and fields. As text it is one line, `section kind name=value ...`; as JSON one object
//! on one line. What is wrong is a record of kind `error` where it was met, and reading goes on.

mod buckets;
mod record;
mod sections;
#[cfg(test)]
mod tests;

use crate::journal::{self, Scan};
pub use crate::source::Device;
use crate::source::{ReadAt, read};
use crate::tree::{Gens, Step, Walk};
use crate::{prios, tree};
use brigade_format::superblock::{self, CacheGeometry, Role, Superblock};
use brigade_format::{Gen, JsetHeader, Key};
pub use record::Style;
use record::{Record, Writer};
use std::convert::Infallible;
use std::io::{self, Write};

/// A part of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// The superblock.
    Superblock,
    /// Every journal entry, and what two ways of searching find.
    Journal,
    /// The prio chain.
    Prios,
    /// The UUID table.
    Uuids,
    /// Every node, set and key.
    Btree,
    /// Who owns how many buckets.
    Buckets,
}

impl Section {
    /// All, in the order in which they are read at open.
    pub const ALL: [Section; 6] = [
        Section::Superblock,
        Section::Journal,
        Section::Prios,
        Section::Uuids,
        Section::Btree,
        Section::Buckets,
    ];
}

/// Writes the sections; gives how many errors were met and shown. Fails only when `out` does.
pub fn dump(
    device: &Device<'_>,
    sections: &[Section],
    style: Style,
    out: &mut dyn Write,
) -> io::Result<u64> {
    let mut writer = Writer::new(out, style);
    let is_wanted = sections.contains(&Section::Superblock);
    let Some((superblock, geometry)) = open(device, is_wanted, &mut writer)? else {
        return Ok(writer.errors());
    };
    let rest: Vec<Section> = sections
        .iter()
        .copied()
        .filter(|s| *s != Section::Superblock)
        .collect();
    if !rest.is_empty() && !superblock.is_sync() {
        writer.put(
            Record::new("superblock", "note")
                .with("text", "blank set: nothing else on it means anything"),
        )?;
    } else if !rest.is_empty() {
        Dump::new(device.source, geometry).write(&rest, &mut writer)?;
    }
    Ok(writer.errors())
}

fn open(
    device: &Device<'_>,
    is_wanted: bool,
    writer: &mut Writer<'_>,
) -> io::Result<Option<(Superblock, CacheGeometry)>> {
    let error =
        |what: String| Record::error("superblock", what).with("offset", superblock::DEVICE_OFFSET);
    if device.size_bytes < superblock::DEVICE_OFFSET + superblock::BYTES as u64 {
        writer.put(error(format!(
            "{} bytes are too few for one",
            device.size_bytes
        )))?;
        return Ok(None);
    }
    let parsed = read(device.source, superblock::DEVICE_OFFSET, superblock::BYTES)
        .map_err(|e| e.to_string())
        .and_then(|bytes| Superblock::parse(&bytes).map_err(|e| e.to_string()));
    let superblock = match parsed {
        Ok(superblock) => superblock,
        Err(what) => {
            writer.put(error(what))?;
            return Ok(None);
        }
    };
    if is_wanted {
        sections::superblock(&superblock, writer)?;
    }
    if superblock.role() == Role::Backing {
        if !is_wanted {
            writer.put(error("of a backing device; name the cache device".into()))?;
        }
        return Ok(None);
    }
    match superblock.cache_geometry(device.size_bytes / 512, device.logical_block_bytes) {
        Ok(geometry) => Ok(Some((superblock, geometry))),
        Err(what) => {
            writer.put(error(what.to_string()))?;
            Ok(None)
        }
    }
}

/// What is known of the device so far.
struct Dump<'a> {
    source: &'a dyn ReadAt,
    geometry: CacheGeometry,
    scan: Scan,
    newest: Result<JsetHeader, String>,
    gens: Gens,
    /// Whether the prio chain could be read to its end.
    gens_are_whole: bool,
    /// Prio of each bucket, as far as read.
    prios: Vec<u16>,
    prio_buckets: Vec<u64>,
}

impl<'a> Dump<'a> {
    fn new(source: &'a dyn ReadAt, geometry: CacheGeometry) -> Self {
        let scan = Scan::read(source, &geometry);
        let newest = match scan.newest() {
            Some(found) => journal::load(source, &geometry, &found).map(|(head, _)| head),
            None => Err("no journal entry found".into()),
        };
        let gens = Gens::new(Vec::new(), &geometry);
        Dump {
            source,
            geometry,
            scan,
            newest,
            gens,
            gens_are_whole: false,
            prios: Vec::new(),
            prio_buckets: Vec::new(),
        }
    }

    fn write(&mut self, sections: &[Section], writer: &mut Writer<'_>) -> io::Result<()> {
        if sections.contains(&Section::Journal) {
            sections::journal(self, writer)?;
        }
        if sections.iter().all(|s| *s == Section::Journal) {
            return Ok(());
        }
        let head = match &self.newest {
            Ok(head) => *head,
            Err(what) => return writer.put(Record::error("journal", what.clone())),
        };
        self.learn_gens(&head);
        for section in sections {
            match section {
                Section::Prios => sections::prios(self, &head, writer)?,
                Section::Uuids => sections::uuids(self, &head, writer)?,
                Section::Btree => sections::btree(self, &head, writer)?,
                Section::Buckets => buckets::buckets(self, &head, writer)?,
                Section::Superblock | Section::Journal => {}
            }
        }
        Ok(())
    }

    /// Generations from the prio chain, raised by every key that is not stale.
    fn learn_gens(&mut self, head: &JsetHeader) {
        let mut gens: Vec<Gen> = Vec::new();
        let (prios, buckets) = (&mut self.prios, &mut self.prio_buckets);
        let Ok(is_whole) = prios::follow(
            self.source,
            &self.geometry,
            head.prio_bucket,
            |bucket, link| {
                if let Ok(link) = link {
                    buckets.push(bucket);
                    gens.extend(link.entries.iter().map(|entry| entry.1));
                    prios.extend(link.entries.iter().map(|entry| entry.0));
                }
                Ok::<(), Infallible>(())
            },
        );
        self.gens_are_whole = is_whole;
        let mut gens = Gens::new(gens, &self.geometry);
        gens.raise(&head.btree_root);
        let Ok(()) = self.walk(head).run(&mut gens, |gens, step| {
            if let Step::Node { level, node, .. } = step {
                let keys = node.sets.iter().flat_map(|set| set.keys.iter());
                keys.filter(|key| level > 0 || key.size() > 0)
                    .for_each(|key| gens.raise(key));
            }
            Ok::<(), Infallible>(())
        });
        self.raise_by_replay(head, &mut gens);
        gens.raise(&head.uuid_bucket);
        self.gens = gens;
    }

    /// Newest entry first.
    fn raise_by_replay(&self, head: &JsetHeader, gens: &mut Gens) {
        let mut replay: Vec<_> = self
            .scan
            .found
            .iter()
            .filter(|f| !f.is_behind_bad && (head.last_seq..=head.seq).contains(&f.seq))
            .collect();
        replay.sort_by_key(|f| std::cmp::Reverse(f.seq));
        for found in replay {
            if let Ok((_, keys)) = journal::load(self.source, &self.geometry, found) {
                keys.iter().for_each(|key| gens.raise(key));
            }
        }
    }

    fn walk(&self, head: &JsetHeader) -> Walk<'_> {
        tree::Walk {
            source: self.source,
            geometry: &self.geometry,
            root: head.btree_root,
            root_level: head.btree_level,
        }
    }

    /// Whether a key is stale; nothing if the chain could not be read so far.
    fn is_stale(&self, gens: &Gens, key: &Key) -> Option<bool> {
        self.gens_are_whole.then(|| gens.is_stale(key))
    }
}
