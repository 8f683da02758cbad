//! One function per section.

use super::record::{Record, Writer};
use super::{Dump, Step};
use crate::journal;
use crate::prios as chain;
use crate::source::read;
use crate::tree::Gens;
use brigade_format::superblock::{Role, Superblock};
use brigade_format::{JsetHeader, Key, uuid_table};
use serde_json::{Value, json};
use std::io;
use uuid::Uuid;

/// Every field of the role.
pub(super) fn superblock(superblock: &Superblock, writer: &mut Writer<'_>) -> io::Result<()> {
    let record = Record::new("superblock", "superblock")
        .with("offset", brigade_format::superblock::DEVICE_OFFSET)
        .with("version", superblock.version)
        .with("uuid", Uuid::from_bytes(superblock.uuid).to_string())
        .with(
            "set_uuid",
            Uuid::from_bytes(superblock.set_uuid).to_string(),
        )
        .with("flags", format!("{:#x}", superblock.flags))
        .with("block_sectors", superblock.block_size)
        .with("last_mount", superblock.last_mount);
    match superblock.role() {
        Role::Cache => writer.put(
            record
                .with("role", "cache")
                .with("seq", superblock.seq)
                .with("sync", superblock.is_sync())
                .with("discard", superblock.discard())
                .with("replacement", superblock.replacement_raw())
                .with("feature_compat", superblock.feature_compat)
                .with("feature_incompat", superblock.feature_incompat)
                .with("feature_ro_compat", superblock.feature_ro_compat)
                .with("nbuckets", superblock.nbuckets)
                .with("bucket_sectors", superblock.bucket_sectors())
                .with("first_bucket", superblock.first_bucket)
                .with("nr_in_set", superblock.nr_in_set)
                .with("nr_this_dev", superblock.nr_this_dev)
                .with("journal_buckets", superblock.journal.len()),
        ),
        Role::Backing => writer.put(
            record
                .with("role", "backing")
                .with("label", superblock.label())
                .with("cache_mode", superblock.cache_mode_raw())
                .with("state", superblock.state().to_string())
                .with("data_offset", superblock.data_start()),
        ),
    }
}

/// Every entry with its keys, then what was found odd.
pub(super) fn journal(dump: &Dump<'_>, writer: &mut Writer<'_>) -> io::Result<()> {
    for found in &dump.scan.found {
        let entry = Record::new("journal", "entry")
            .with("index", found.index)
            .with("offset", found.offset)
            .with("seq", found.seq)
            .with("last_seq", found.last_seq)
            .with("behind_bad_block", found.is_behind_bad);
        match journal::load(dump.source, &dump.geometry, found) {
            Ok((head, keys)) => {
                writer.put(
                    entry
                        .with("version", head.version)
                        .with("uuid_bucket", head.uuid_bucket.to_string())
                        .with("btree_root", head.btree_root.to_string())
                        .with("btree_level", head.btree_level)
                        .with("prio_bucket", head.prio_bucket)
                        .with("keys", keys.len()),
                )?;
                for key in &keys {
                    writer.put(key_record("journal", key).with("seq", found.seq))?;
                }
            }
            Err(what) => {
                writer.put(entry)?;
                writer.put(
                    Record::error("journal", what)
                        .with("seq", found.seq)
                        .with("offset", found.offset),
                )?;
            }
        }
    }
    for suspect in &dump.scan.suspects {
        writer.put(
            Record::new("journal", "suspect")
                .with("index", suspect.index)
                .with("offset", suspect.offset)
                .with("claimed_seq", suspect.claimed_seq)
                .with("text", suspect.error.clone()),
        )?;
    }
    for what in &dump.scan.errors {
        writer.put(Record::error("journal", what.clone()))?;
    }
    journal_summary(dump, writer)
}

fn journal_summary(dump: &Dump<'_>, writer: &mut Writer<'_>) -> io::Result<()> {
    let scan = &dump.scan;
    let Some(range) = scan.exhaustive() else {
        return writer.put(Record::error("journal", "no journal entry found"));
    };
    let searched = scan.by_kernel_search(dump.geometry.journal_buckets.len());
    let (later, suspects) = scan.later(range.newest_seq);
    writer.put(
        Record::new("journal", "summary")
            .with("entries", scan.found.len())
            .with("newest_seq", range.newest_seq)
            .with("replay_entries", range.replay.len())
            .with(
                "kernel_search_newest_seq",
                searched.as_ref().map(|s| s.newest_seq),
            )
            .with(
                "kernel_search_replay_entries",
                searched.as_ref().map(|s| s.replay.len()),
            )
            .with("kernel_search_agrees", searched.as_ref() == Some(&range))
            .with("later_entries", later.len())
            .with("later_suspect_blocks", suspects.len()),
    )?;
    let newest = scan
        .newest()
        .map_or(range.newest_seq, |found| found.last_seq);
    if let Some(missing) = (newest..=range.newest_seq).find(|seq| !range.replay.contains(seq)) {
        let what = format!(
            "entry {missing} of {newest} to {} is missing",
            range.newest_seq
        );
        writer.put(Record::error("journal", what))?;
    }
    Ok(())
}

/// Every link with its entries.
pub(super) fn prios(dump: &Dump<'_>, head: &JsetHeader, writer: &mut Writer<'_>) -> io::Result<()> {
    let mut first = 0_u64;
    chain::follow(
        dump.source,
        &dump.geometry,
        head.prio_bucket,
        |bucket, link| match link {
            Ok(link) => {
                writer.put(
                    Record::new("prios", "link")
                        .with("bucket", bucket)
                        .with("seq", link.seq)
                        .with("next_bucket", link.next_bucket)
                        .with("first", first)
                        .with("entries", link.entries.len()),
                )?;
                for (prio, r#gen) in &link.entries {
                    if *prio != 0 || r#gen.0 != 0 {
                        writer.put(
                            Record::new("prios", "bucket")
                                .with("bucket", first)
                                .with("prio", *prio)
                                .with("gen", r#gen.0),
                        )?;
                    }
                    first += 1;
                }
                Ok(())
            }
            Err(what) => {
                writer.put(Record::error("prios", what.to_string()).with("bucket", bucket))
            }
        },
    )
    .map(drop)
}

/// Every slot in use.
pub(super) fn uuids(dump: &Dump<'_>, head: &JsetHeader, writer: &mut Writer<'_>) -> io::Result<()> {
    let entries = match read_uuids(dump, head) {
        Ok(entries) => entries,
        Err(what) => return writer.put(Record::error("uuids", what)),
    };
    writer.put(
        Record::new("uuids", "table")
            .with("key", head.uuid_bucket.to_string())
            .with("slots", dump.geometry.uuid_slots)
            .with("old_format", head.version == 0),
    )?;
    for (slot, entry) in entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| !entry.is_empty())
    {
        writer.put(
            Record::new("uuids", "slot")
                .with("slot", slot)
                .with("uuid", Uuid::from_bytes(entry.uuid).to_string())
                .with("label", entry.label())
                .with("first_reg", entry.first_reg)
                .with("last_reg", entry.last_reg)
                .with("invalidated", entry.invalidated)
                .with("is_invalidated", entry.is_invalidated())
                .with("flash_only", entry.is_flash_only())
                .with("flags", format!("{:#x}", entry.flags))
                .with("sectors", entry.sectors),
        )?;
    }
    Ok(())
}

fn read_uuids(dump: &Dump<'_>, head: &JsetHeader) -> Result<Vec<uuid_table::UuidEntry>, String> {
    let key = &head.uuid_bucket;
    dump.geometry
        .key_rules()
        .check_node(key)
        .map_err(|e| e.to_string())?;
    let ptr = key.ptr(0).ok_or("uuid_bucket without pointer")?;
    let length = (key.size() as usize * 512).min(dump.geometry.meta_bytes());
    let bytes = read(dump.source, ptr.sector() * 512, length).map_err(|e| e.to_string())?;
    let slots = dump.geometry.uuid_slots as usize;
    Ok(match head.version {
        0 => uuid_table::parse_old(&bytes, slots).0,
        _ => uuid_table::parse(&bytes, slots),
    })
}

/// Every node, set and key.
pub(super) fn btree(dump: &Dump<'_>, head: &JsetHeader, writer: &mut Writer<'_>) -> io::Result<()> {
    let mut gens = dump.gens.clone();
    let mut counts = Counts::default();
    dump.walk(head).run(&mut gens, |gens, step| match step {
        Step::Error { level, key, error } => writer.put(
            Record::error("btree", error)
                .with("level", level)
                .with("key", key.to_string()),
        ),
        Step::Node { level, key, node } => {
            counts.add(
                level,
                node.sets.iter().map(|set| set.keys.len() as u64).sum(),
            );
            writer.put(
                Record::new("btree", "node")
                    .with("level", level)
                    .with("key", key.to_string())
                    .with(
                        "offset",
                        key.ptr(0).map(|ptr| ptr.sector().saturating_mul(512)),
                    )
                    .with("seq", format!("{:016x}", node.seq))
                    .with("sets", node.sets.len()),
            )?;
            node.sets.iter().enumerate().try_for_each(|(index, set)| {
                writer.put(
                    Record::new("btree", "set")
                        .with("set", index)
                        .with("version", set.version)
                        .with("block", set.block_offset)
                        .with("keys", set.keys.len()),
                )?;
                set.keys
                    .iter()
                    .try_for_each(|key| tree_key(dump, gens, key, writer))
            })
        }
    })?;
    writer.put(
        Record::new("btree", "summary")
            .with("root_level", head.btree_level)
            .with("nodes_by_level", counts.nodes_by_level())
            .with("leaf_keys", counts.leaf_keys)
            .with("generations_known", dump.gens_are_whole),
    )
}

#[derive(Default)]
struct Counts {
    nodes: Vec<u64>,
    leaf_keys: u64,
}

impl Counts {
    fn add(&mut self, level: u16, keys: u64) {
        let level = usize::from(level);
        if self.nodes.len() <= level {
            self.nodes.resize(level + 1, 0);
        }
        self.nodes[level] += 1;
        if level == 0 {
            self.leaf_keys += keys;
        }
    }

    fn nodes_by_level(&self) -> Value {
        Value::Object(
            self.nodes
                .iter()
                .enumerate()
                .map(|(level, n)| (level.to_string(), json!(n)))
                .collect(),
        )
    }
}

fn tree_key(dump: &Dump<'_>, gens: &Gens, key: &Key, writer: &mut Writer<'_>) -> io::Result<()> {
    let staleness = key
        .ptr(0)
        .filter(|_| dump.gens_are_whole)
        .and_then(|ptr| gens.staleness(ptr));
    writer.put(
        key_record("btree", key)
            .with("freeing", key.is_freeing().then_some(true))
            .with(
                "stale",
                dump.is_stale(gens, key).filter(|_| key.ptr_count() > 0),
            )
            .with("staleness", staleness.filter(|staleness| *staleness > 0)),
    )
}

fn key_record(section: &'static str, key: &Key) -> Record {
    let ptrs: Vec<Value> = key
        .ptrs()
        .map(|ptr| json!({ "dev": ptr.dev(), "sector": ptr.sector(), "gen": ptr.r#gen().0 }))
        .collect();
    Record::new(section, "key")
        .with("inode", key.inode())
        .with("start", key.start())
        .with("end", key.offset())
        .with("sectors", key.size())
        .with("dirty", key.is_dirty())
        .with("ptrs", ptrs)
}
