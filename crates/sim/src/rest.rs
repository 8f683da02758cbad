//! What happens to a set at rest: volumes are added and detached, time wears on it, bits rot.

use crate::disk::Kind;
use crate::drive::drive;
use crate::life::check_warnings;
use crate::oracle::place_of;
use crate::plan::Plan;
use crate::set::{FLASH_UUID, Set};
use crate::small::write_gens;
use crate::work::{Ledger, Mix};
use brigade_engine::Options;
use brigade_engine::alloc::{GEN_AGE_MAX, PRIO_EMPTY};
use brigade_engine::recovery::{Loaded, SurvivorLog};
use brigade_format::uuid_table::{self, UuidEntry};
use brigade_format::{BackingState, BucketNr, Gen, Key, key_words};
use std::rc::Rc;

/// Sectors of a hole in a record that is not the set's own.
const FOREIGN_HOLE: u64 = 1 << 14;

/// After a clean stop, with the set as it was found then.
pub fn after_stop(set: &mut Set, plan: &Plan, loaded: &Loaded) {
    if plan.flash && !set.has_flash && set.chance.percent(70) {
        add_flash_volume(set, loaded);
    }
    if plan.wear && set.chance.percent(50) {
        age_gens(set, loaded);
    }
    if plan.wear && set.chance.percent(50) {
        shorten_ring(set, loaded);
    }
    if plan.attach && set.chance.percent(40) {
        detach(set);
    }
}

/// After a crash or a stop.
pub fn after_any_end(set: &mut Set, plan: &Plan) {
    if plan.lies && set.chance.percent(30) {
        rot_data(set);
    }
    if plan.rot && set.chance.percent(50) {
        open_rotten(set);
    }
    if plan.rot && set.chance.percent(30) {
        open_short(set);
    }
    if plan.attach && set.chance.percent(40) {
        run_alone(set);
    }
    if plan.foreign_record && set.store.0.borrow().is_empty() && set.chance.percent(60) {
        leave_foreign_record(set);
    }
}

/// Where the set's record in memory would be lies that of another set, or of a former opening of this one, whose stages seem to
/// follow the newest entry. It says that nothing is cached.
fn leave_foreign_record(set: &mut Set) {
    let Some(Ok(loaded)) = set.load() else { return };
    let mut keys = Vec::new();
    for (inode, entry) in (0..).zip(&loaded.uuids) {
        let backing = set.backings.iter().position(|b| b.uuid == entry.uuid);
        let is_flash = entry.uuid == FLASH_UUID;
        let Some(at) = backing.or(is_flash.then_some(set.backings.len())) else {
            continue;
        };
        let offset = set.backings.get(at).map_or(0, |b| b.data_offset);
        let end = offset + set.oracles[at].borrow().size();
        let starts = (offset..end).step_by(FOREIGN_HOLE as usize);
        keys.extend(
            starts.map(|start| Key::hole(inode, start, FOREIGN_HOLE.min(end - start) as u32)),
        );
    }
    let superblock = set.superblock();
    let (uuid, session) = if set.chance.percent(50) {
        ([8; 16], superblock.seq)
    } else {
        (superblock.set_uuid, superblock.seq.wrapping_sub(1))
    };
    let words = key_words(&keys);
    let seq = loaded.newest.seq + set.chance.between(1, 2);
    SurvivorLog::start(set.store.clone(), &uuid, session)
        .and_then(|mut log| log.append(seq, &words))
        .expect("memory");
    set.trace
        .note(set.now, "record", "of another", [session, seq]);
}

/// Puts a flash volume into the UUID table.
fn add_flash_volume(set: &mut Set, loaded: &Loaded) {
    let sectors = set
        .oracles
        .last()
        .expect("of the flash volume")
        .borrow()
        .size();
    let mut entries = loaded.uuids.clone();
    let free = entries.iter().position(|entry| entry.is_empty());
    let slot = free.expect("a free slot");
    entries[slot] = UuidEntry::flash_only(FLASH_UUID, [0; 32], 1_700_000_000, sectors);
    let place = loaded.newest.uuid_bucket.ptr(0).expect("a place").sector();
    set.cache
        .borrow_mut()
        .poke(place * 512, &uuid_table::encode(&entries));
    set.has_flash = true;
}

/// Buckets that no pointer names, not even a stale one, come close to the wrap of their generations; those that only stale
/// pointers name, from data or from nodes, come close to where they may not be recycled any more (not to it: if that were so of
/// all, no collection would find buckets).
fn age_gens(set: &mut Set, loaded: &Loaded) {
    let superblock = set.superblock();
    let geometry = set.cache.borrow().geometry;
    let layout = superblock
        .cache_geometry(geometry.size_bytes / 512, geometry.logical_block_bytes)
        .expect("sizes");
    let mut is_named = loaded.referenced.clone();
    let mut name = |nr: BucketNr| is_named[nr.0 as usize] = true;
    let place = |key: &Key| key.ptr(0).map(|ptr| ptr.bucket(layout.bucket_sectors));
    loaded
        .nodes
        .iter()
        .filter_map(|node| place(&node.key))
        .for_each(&mut name);
    place(&loaded.newest.uuid_bucket)
        .into_iter()
        .for_each(&mut name);
    let tables = loaded.prio_buckets.iter().chain(&layout.journal_buckets);
    tables.for_each(|nr| name(BucketNr(*nr)));
    let age = set.chance.between(240, 255) as u8;
    let distance = set.chance.between(60, u64::from(GEN_AGE_MAX) - 1) as u8;
    let entry = |nr: usize| {
        let (now, oldest) = (loaded.chain_gens[nr], loaded.oldest_gens[nr]);
        if is_named[nr] || (nr as u64) < layout.first_bucket {
            return (loaded.prios[nr], now);
        }
        // After a clean stop what old pointers name is not called empty.
        let prio = loaded.prios[nr].max(PRIO_EMPTY + 1);
        // An old, stale pointer must not become a new one.
        let generation = if oldest == loaded.gens[nr] {
            return (loaded.prios[nr], Gen(age));
        } else if loaded.gens[nr].after(oldest) < distance {
            Gen(oldest.0.wrapping_add(distance))
        } else {
            now
        };
        (prio, generation)
    };
    write_gens(&mut set.cache.borrow_mut(), loaded, &layout, entry);
}

/// Makes the journal ring shorter, where the newest entry allows it.
fn shorten_ring(set: &mut Set, loaded: &Loaded) {
    let mut superblock = set.superblock();
    let count = set.chance.between(4, 6) as usize;
    if loaded.ring.newest_index >= count || superblock.journal.len() <= count {
        return;
    }
    superblock.journal.truncate(count);
    set.cache.borrow_mut().poke(4096, &superblock.encode());
}

/// A clean backing device forgets its cache set.
fn detach(set: &mut Set) {
    let at = set.chance.below(set.backings.len() as u64) as usize;
    let mut superblock = set.backing_superblock(at);
    if superblock.state() == BackingState::Clean {
        superblock.set_state(BackingState::None);
        superblock.count_write();
        set.backings[at]
            .disk
            .borrow_mut()
            .poke(4096, &superblock.encode());
    }
}

/// A backing device is served without its cache: refused if that may hold newer data.
fn run_alone(set: &mut Set) {
    let at = set.chance.below(set.backings.len() as u64) as usize;
    let state = set.backing_superblock(at).state();
    let (world, ledger) = (set.world(), Rc::new(Ledger::default()));
    let before = set.backings[at].disk.borrow().image();
    let opening = set.open_alone(&world, &Options::default(), at);
    let opened = drive(set, &world, "open alone", opening, None, &ledger, None);
    let server = match (opened.expect("it ends"), state) {
        (Ok(server), BackingState::None | BackingState::Stale) => server,
        (Err(_), BackingState::Clean | BackingState::Dirty) => {
            world.kill();
            let after = set.backings[at].disk.borrow().image();
            assert!(after.is_same(&before), "what is refused is not written");
            return;
        }
        (other, _) => panic!(
            "seed {}: a backing device in state {state} alone: {:?}",
            set.seed,
            other.map(|_| ())
        ),
    };
    let clients = set.clients(&world, &server, &ledger);
    let mix = Mix {
        clients: 4,
        requests: set.chance.below(30),
        read: 20,
        flush: 10,
        clear: 10,
        fua_percent: 10,
        sectors_max: 64,
        is_long: false,
        hot: 512,
        align: 1,
        wipes: false,
        modes: false,
        pause_percent: 0,
    };
    let size = set.oracles[at].borrow().size();
    let script = mix.script(&set.chance, &[(at, size)]);
    let server_of_stall = server.clone();
    let work = async move {
        clients.clone().run(4, script).await;
        clients.read_everything().await;
        clients.server.stop().await.expect("a stop");
    };
    drive(
        set,
        &world,
        "work alone",
        work,
        None,
        &ledger,
        Some(&server_of_stall),
    );
    drop((server, server_of_stall));
    set.end(&world, crate::disk::End::Kill, Some(&ledger));
}

/// A bit of somebody's data turns.
fn rot_data(set: &mut Set) {
    let at = set.chance.below(1 + set.backings.len() as u64) as usize;
    let disk = set.disks().nth(at).expect("a disk").clone();
    let found = disk.borrow().some_data(&set.chance);
    let Some((sector, bytes)) = found else { return };
    let (volume, place) = place_of(&bytes);
    if let Some(oracle) = set.oracles.get((volume as usize).wrapping_sub(1)) {
        oracle.borrow_mut().harm(place);
    }
    disk.borrow_mut().rot(sector, &set.chance);
}

/// Where metadata is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zone {
    Superblock,
    Gens,
    Uuids,
    Journal,
    Node,
}

/// Turns a bit of metadata in a copy and opens that: it ends, with one error or with a set. Where a checksum covers everything,
/// nothing reads wrong.
fn open_rotten(set: &mut Set) {
    let Some(Ok(loaded)) = set.load() else { return };
    let mut fork = set.fork(set.chance.next(), None);
    let zones = [
        Zone::Superblock,
        Zone::Gens,
        Zone::Uuids,
        Zone::Journal,
        Zone::Node,
    ];
    let zone = set.chance.pick(&zones);
    let bucket = set.bucket_sectors;
    let chance = &set.chance;
    let first = match zone {
        Zone::Superblock => 8,
        Zone::Gens => loaded.prio_buckets[0] * bucket,
        Zone::Uuids => loaded.newest.uuid_bucket.ptr(0).expect("a place").sector(),
        Zone::Journal => chance.pick(&set.superblock().journal) * bucket,
        Zone::Node => {
            let node = &loaded.nodes[chance.below(loaded.nodes.len() as u64) as usize];
            node.key.ptr(0).expect("a place").sector()
        }
    };
    let sector = match zone {
        Zone::Superblock => first,
        // The entries of some small sets end in the first sectors.
        Zone::Gens | Zone::Uuids => first + chance.below(4),
        Zone::Journal | Zone::Node => first + chance.below(bucket),
    };
    fork.cache.borrow_mut().rot(sector, &set.chance);
    set.tally.faults[Kind::Rot as usize] += 1;
    set.trace
        .note(set.now, &format!("{zone:?}"), "rots", [sector, 0]);
    let (world, ledger) = (fork.world(), Rc::new(Ledger::default()));
    ledger.faulty.set(true);
    let given: Vec<usize> = (0..fork.backings.len()).collect();
    let opening = fork.open(&world, &Options::default(), &given);
    let opened = drive(
        &mut fork,
        &world,
        "open rotten",
        opening,
        None,
        &ledger,
        None,
    );
    let server = match opened.expect("it ends") {
        Ok(server) => server,
        Err(error) => {
            set.tally.rotten[0] += 1;
            let text = error.to_string();
            assert!(!text.is_empty() && !text.contains('\n'), "one line: {text}");
            world.kill();
            return;
        }
    };
    set.tally.rotten[1] += 1;
    if std::env::var("BRIGADE_VERBOSE").is_ok() {
        eprintln!(
            "opened with a bit turned in {zone:?} {sector}: {:?}",
            server.warnings()
        );
    }
    if matches!(zone, Zone::Superblock | Zone::Gens) {
        check_warnings(set.seed, &server);
        let clients = fork.clients(&world, &server, &ledger);
        let reads = async move { clients.read_everything().await };
        drive(
            &mut fork,
            &world,
            "reads",
            reads,
            None,
            &ledger,
            Some(&server),
        );
    }
    world.kill();
}

/// A cache device that became shorter is refused, and nothing is written.
fn open_short(set: &mut Set) {
    let mut fork = set.fork(set.chance.next(), None);
    let bucket_bytes = set.bucket_sectors * 512;
    let size = fork.cache.borrow().geometry.size_bytes;
    let less = set.chance.pick(&[1, 100, 500]);
    let less = less.min(size / bucket_bytes - 1);
    fork.cache.borrow_mut().geometry.size_bytes = size - bucket_bytes * less;
    set.tally.faults[Kind::Short as usize] += 1;
    let before: Vec<_> = fork.disks().map(|disk| disk.borrow().image()).collect();
    let (world, ledger) = (fork.world(), Rc::new(Ledger::default()));
    let given: Vec<usize> = (0..fork.backings.len()).collect();
    let opening = fork.open(&world, &Options::default(), &given);
    let opened = drive(
        &mut fork,
        &world,
        "open short",
        opening,
        None,
        &ledger,
        None,
    );
    assert!(
        opened.expect("it ends").is_err(),
        "seed {}: a short cache device is served",
        set.seed
    );
    world.kill();
    let is_same = fork
        .disks()
        .zip(&before)
        .all(|(disk, before)| disk.borrow().image().is_same(before));
    assert!(is_same, "what is refused is not written");
}
