//! Crash images for another reader: sets of a geometry that the kernel takes, as a crash left them, as files.
//!
//! A case is a folder: sparse images, the line-by-line `case`, and per volume what Brigade reads after recovering a copy
//! (`N.values`: `START COUNT VALUE`, zeros left out, `?` for what no client wrote there) and where the oracle allows more than
//! that (`N.allowed`: `START COUNT VALUE...`, `*` for anything). The record in memory is gone in every one of them, as only Brigade knows of it: an image in
//! which every completed write arrived is what a power loss may leave as well. A third of the images were opened, read and
//! stopped by Brigade before; that recovery has the record.
//!
//! Serves `cargo x interop sim-images`.

use crate::disk::{DiskState, End};
use crate::drive::drive;
use crate::exec::{Chance, Trace};
use crate::image::Image;
use crate::life::{Choice, Life, Observer, check_warnings};
use crate::oracle::{ANYTHING, Oracle};
use crate::plan::Plan;
use crate::register::Register;
use crate::set::{Backing, Set};
use crate::tally::Tally;
use crate::work::{Clients, Ledger};
use brigade_engine::recovery::Loaded;
use brigade_engine::settings::Knob;
use brigade_engine::{AckPolicy, Options, Server};
use brigade_env::{BlockDevice, Geometry, StreamId};
use brigade_format::{CacheMode, NewBacking, NewCache, Replacement, Superblock, uuid_text};
use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// How often a recovery is cut off at most before the image is taken.
const DEPTH_MAX: u64 = 3;
/// Sectors of one read.
const READ_SECTORS: u64 = 512;

/// What an image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Every completed write arrived, those under way in part.
    Prefix,
    /// What was not flushed arrived in part.
    Reordered,
    /// Recovered by Brigade after a kill, read and stopped.
    Recovered,
}

impl Kind {
    fn of(seed: u64) -> Kind {
        [Kind::Prefix, Kind::Reordered, Kind::Recovered][(seed % 3) as usize]
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Prefix => "prefix",
            Kind::Reordered => "reordered",
            Kind::Recovered => "recovered",
        }
    }

    fn end(self) -> End {
        match self {
            Kind::Reordered => End::PowerLoss,
            Kind::Prefix | Kind::Recovered => End::Kill,
        }
    }
}

fn plan(seed: u64) -> Plan {
    let swarm = Plan::swarm(seed);
    Plan {
        power_loss: true,
        modes: swarm.modes,
        clear: swarm.clear,
        flash: swarm.flash,
        wear: swarm.wear,
        pressure: swarm.pressure,
        moving: swarm.moving,
        moving_is_eager: swarm.moving_is_eager,
        rounds_max: 3,
        requests_max: 160,
        ..Plan::default()
    }
}

/// Writes the case of one seed to a folder.
pub fn export(seed: u64, folder: &Path) -> io::Result<()> {
    let points = Rc::new(Cell::new(0));
    let counted = points.clone();
    live(seed, Box::new(move |_, _| counted.set(counted.get() + 1)));
    if points.get() == 0 {
        return Err(io::Error::other(format!("seed {seed} does nothing")));
    }
    let chosen = Chance::new(seed ^ 0xe4b0_47ed).below(points.get());
    let (at, result) = (Cell::new(0), Rc::new(RefCell::new(Ok(()))));
    let (outcome, folder) = (result.clone(), folder.to_path_buf());
    let observer = move |set: &Set, ledger: &Ledger| {
        if at.replace(at.get() + 1) == chosen {
            let point = format!("{chosen} of {}", points.get());
            *outcome.borrow_mut() = take(seed, set, ledger, &point, &folder);
        }
    };
    live(seed, Box::new(observer));
    result.replace(Ok(()))
}

fn live(seed: u64, observer: Observer) {
    let plan = plan(seed);
    let mut life = Life::traced(seed, plan, Choice::default(), Trace::default());
    life.set = kernel_set(seed, &plan);
    life.observer = Some(observer);
    life.live();
}

/// Crashes a fork of the set, has another fork of that recovered and read, and writes it all down.
fn take(seed: u64, set: &Set, ledger: &Ledger, point: &str, folder: &Path) -> io::Result<()> {
    let kind = Kind::of(seed);
    let mut fork = set.fork(seed ^ 0x0ddb_a115, Some(ledger));
    fork.end_devices(kind.end());
    let cut = match kind {
        Kind::Recovered => 0,
        _ => {
            fork.after_end(End::PowerLoss);
            cut_recoveries(&mut fork)
        }
    };
    fork.inspect();
    let before = fork.fork(seed ^ 0x0b5e_55ed, None);
    let values = recover(&mut fork, kind == Kind::Recovered);
    fs::create_dir_all(folder)?;
    // A recovered image is certain, and what a recovery of the others did to them is nobody's business.
    let source = match kind {
        Kind::Recovered => &fork,
        _ => &before,
    };
    let mut text = format!(
        "seed {seed}\nkind {}\npoint {point}\ncut {cut}\nbehind {}\nset {}\n",
        kind.name(),
        source.inspect().map_or(0, |loaded| behind_most(&loaded)),
        uuid_text(&source.superblock().set_uuid)
    );
    write_image(
        &source.cache.borrow().image(),
        &source.cache,
        &folder.join("cache.img"),
    )?;
    for (number, backing) in source.backings.iter().enumerate() {
        let name = format!("backing{number}.img");
        write_image(
            &backing.disk.borrow().image(),
            &backing.disk,
            &folder.join(name),
        )?;
    }
    for (number, values) in values.iter().enumerate() {
        let Some(values) = values else { continue };
        let image = match number < source.backings.len() {
            true => format!("backing{number}.img"),
            false => "none".into(),
        };
        let _ = writeln!(text, "volume {number} {image} {}", values.len());
        let runs = runs(values, |value| match value {
            Some(0) => None,
            Some(value) => Some(value.to_string()),
            None => Some("?".into()),
        });
        fs::write(folder.join(format!("{number}.values")), runs)?;
        let doubts = match kind {
            Kind::Recovered => String::new(),
            _ => doubts(&before.oracles[number].borrow()),
        };
        fs::write(folder.join(format!("{number}.allowed")), doubts)?;
    }
    fs::write(folder.join("case"), text)
}

/// How far the oldest pointer is behind its bucket.
fn behind_most(loaded: &Loaded) -> u8 {
    let buckets = loaded.gens.iter().zip(&loaded.oldest_gens);
    let behind = buckets.map(|(now, oldest)| now.after(*oldest));
    behind.max().unwrap_or(0)
}

/// Cuts openings off, sometimes; gives how many.
fn cut_recoveries(set: &mut Set) -> u64 {
    let given: Vec<usize> = (0..set.backings.len()).collect();
    for number in 0..DEPTH_MAX {
        if !set.chance.percent(35) {
            return number;
        }
        let world = set.world();
        let last = set.chance.below(60);
        let opening = set.open(&world, &options(set), &given);
        let opened = world.run(opening, || world.device_operations() >= last);
        if let Some(Err(error)) = &opened {
            panic!("seed {}: open: {error}", set.seed);
        }
        drop(opened);
        let end = set.chance.pick(&[End::Kill, End::PowerLoss]);
        set.end(&world, end, None);
        set.after_end(End::PowerLoss);
    }
    DEPTH_MAX
}

fn options(set: &Set) -> Options {
    // Otherwise nothing is dirty any more once everything has been read.
    let (ack, runs) = (
        set.chance.pick(&[AckPolicy::Memory, AckPolicy::Journal]),
        set.chance.percent(40),
    );
    Options {
        ack,
        ..Options::default()
    }
    .with(Knob::WritebackDelay, 10_000)
    .with(Knob::WritebackRunning, u64::from(runs))
}

/// Opens the set, reads all of every volume, perhaps stops. Values by volume and sector.
fn recover(set: &mut Set, stops: bool) -> Vec<Option<Vec<Option<u64>>>> {
    let given: Vec<usize> = (0..set.backings.len()).collect();
    let (world, ledger) = (set.world(), Rc::new(Ledger::default()));
    let opening = set.open(&world, &options(set), &given);
    let opened = drive(set, &world, "open", opening, None, &ledger, None);
    let server: Rc<Server<_>> = opened
        .expect("it ends")
        .unwrap_or_else(|error| panic!("seed {}: open: {error}", set.seed));
    check_warnings(set.seed, &server);
    let clients = set.clients(&world, &server, &ledger);
    let reads = async move { read_all(&clients).await };
    let values = drive(set, &world, "reads", reads, None, &ledger, Some(&server));
    server.audit();
    if stops {
        let stopping = server.clone();
        let stop = async move { stopping.stop().await };
        let stopped = drive(set, &world, "stop", stop, None, &ledger, Some(&server));
        stopped
            .expect("it ends")
            .unwrap_or_else(|error| panic!("seed {}: stop: {error}", set.seed));
    }
    set.end(&world, End::Kill, None);
    values.expect("reads end")
}

async fn read_all(clients: &Clients) -> Vec<Option<Vec<Option<u64>>>> {
    let mut all = Vec::new();
    let table = clients.volumes.borrow().clone();
    for (volume, oracle) in table.iter().zip(clients.oracles.iter()) {
        let Some(volume) = volume else {
            all.push(None);
            continue;
        };
        let size = oracle.borrow().size();
        let (mut values, mut first) = (Vec::with_capacity(size as usize), 0);
        while first < size {
            let count = READ_SECTORS.min(size - first);
            let began = oracle.borrow_mut().begin_read();
            let bytes = volume
                .read(StreamId(9), first * 512, count as usize * 512)
                .await
                .expect("nothing fails here");
            oracle
                .borrow_mut()
                .check(began, first, &bytes, "after recovery");
            let oracle = oracle.borrow();
            let sectors = (first..).zip(bytes.chunks_exact(512));
            values.extend(sectors.map(|(at, sector)| oracle.value_of(at, sector).ok()));
            drop(oracle);
            first += count;
        }
        all.push(Some(values));
    }
    all
}

/// Lines `START COUNT TEXT`; sectors without a text are left out.
pub(crate) fn runs<T>(items: &[T], text: impl Fn(&T) -> Option<String>) -> String {
    let (mut out, mut start) = (String::new(), 0);
    let texts: Vec<Option<String>> = items.iter().map(text).collect();
    for run in texts.chunk_by(|a, b| a == b) {
        if let Some(text) = &run[0] {
            let _ = writeln!(out, "{start} {} {text}", run.len());
        }
        start += run.len();
    }
    out
}

fn doubts(oracle: &Oracle) -> String {
    let mut all = vec![Vec::new(); oracle.size() as usize];
    for (sector, values) in oracle.doubts() {
        all[sector as usize] = values;
    }
    let text = |value: &u64| match *value {
        ANYTHING => "*".into(),
        value => value.to_string(),
    };
    runs(&all, |values| {
        let words: Vec<String> = values.iter().map(text).collect();
        (!words.is_empty()).then(|| words.join(" "))
    })
}

/// A sparse file.
pub(crate) fn write_image(image: &Image, disk: &RefCell<DiskState>, path: &Path) -> io::Result<()> {
    let size = disk.borrow().geometry.size_bytes;
    let file = File::create(path)?;
    file.set_len(size)?;
    let mut page = [0; 4096];
    for at in (0..size).step_by(page.len()) {
        let length = (size - at).min(page.len() as u64) as usize;
        image.read(at / 512, &mut page[..length]);
        if page[..length].iter().any(|byte| *byte != 0) {
            file.write_all_at(&page[..length], at)?;
        }
    }
    Ok(())
}

fn geometry(sectors: u64, chance: &Chance) -> Geometry {
    Geometry {
        size_bytes: sectors * 512,
        // As a file has it, and as a drive of the virtual machine.
        logical_block_bytes: 512,
        physical_block_bytes: chance.pick(&[512, 512, 4096]),
        can_discard: chance.percent(60),
        is_read_only: false,
        optimal_io_bytes: 0,
        partial_stripes_expensive: false,
    }
}

fn uuid(chance: &Chance) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&chance.next().to_le_bytes());
    uuid[8..].copy_from_slice(&chance.next().to_le_bytes());
    uuid
}

/// A set as a formatter leaves it, with identities of its own, so that one kernel takes many.
fn kernel_set(seed: u64, plan: &Plan) -> Set {
    let chance = Chance::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x6b65_726e);
    let (bucket_sectors, buckets) = match plan.pressure {
        true => (16, chance.between(520, 700)),
        false => (chance.pick(&[16, 32, 64, 128]), chance.between(1024, 1300)),
    };
    let block_sectors = chance.pick(&[1, 8, 8]);
    let set_uuid = uuid(&chance);
    let cache_sectors = buckets * bucket_sectors;
    let cache = DiskState::new("cache", geometry(cache_sectors, &chance));
    let new = NewCache {
        device_sectors: cache_sectors,
        bucket_sectors: bucket_sectors as u32,
        block_sectors: block_sectors as u16,
        uuid: uuid(&chance),
        set_uuid,
        discard: chance.percent(30),
        replacement: chance.pick(&[Replacement::Lru, Replacement::Fifo, Replacement::Random]),
    };
    let superblock = Superblock::new_cache(&new).expect("a sound cache");
    cache.borrow_mut().poke(4096, &superblock.encode());
    let count = chance.between(1, 2);
    let sizes: Vec<u64> = (0..count)
        .map(|_| chance.between(8 << 10, 24 << 10) / count)
        .map(|sectors| sectors.next_multiple_of(8))
        .collect();
    let backings = sizes
        .iter()
        .enumerate()
        .map(|(number, sectors)| backing(number, *sectors, block_sectors as u16, set_uuid, &chance))
        .collect();
    let flash = plan
        .flash
        .then(|| (buckets / 4 * bucket_sectors).min(16 << 10) / 8 * 8);
    let oracles = sizes
        .iter()
        .copied()
        .chain(flash)
        .enumerate()
        .map(|(number, sectors)| RefCell::new(Oracle::new(number as u64 + 1, sectors)));
    Set {
        seed,
        trace: Trace::default(),
        cache,
        backings,
        store: Default::default(),
        oracles: Rc::new(oracles.collect()),
        now: Duration::from_secs(1),
        shift: 0,
        block_sectors,
        bucket_sectors,
        has_flash: false,
        register: Rc::new(RefCell::new(Register::new(sizes.len(), 0))),
        tally: Tally::default(),
        chance,
    }
}

fn backing(
    number: usize,
    sectors: u64,
    block_sectors: u16,
    set_uuid: [u8; 16],
    chance: &Chance,
) -> Backing {
    let data_offset = chance.pick(&[16, 16, 24, 64]);
    let device_sectors = sectors + data_offset;
    let disk = DiskState::new(
        &format!("backing{number}"),
        geometry(device_sectors, chance),
    );
    let new = NewBacking {
        device_sectors,
        data_offset,
        block_sectors,
        uuid: uuid(chance),
        set_uuid,
        mode: CacheMode::Writeback,
        label: format!("data{number}"),
    };
    let superblock = Superblock::new_backing(&new).expect("a sound backing device");
    disk.borrow_mut().poke(4096, &superblock.encode());
    Backing {
        disk,
        data_offset,
        uuid: new.uuid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_the_same_twice_and_its_images_are_whole() {
        for seed in 0..3 {
            let folder =
                std::env::temp_dir().join(format!("brigade-export-{}-{seed}", std::process::id()));
            let read = || {
                let mut files: Vec<_> = fs::read_dir(&folder)
                    .expect("a folder")
                    .map(|entry| entry.expect("an entry").path())
                    .map(|path| (fs::read(&path).expect("a file"), path))
                    .collect();
                files.sort();
                files
            };
            export(seed, &folder).expect("written");
            let first = read();
            export(seed, &folder).expect("written");
            assert!(first == read());
            assert!(first.len() >= 5);
            let case = fs::read_to_string(folder.join("case")).expect("text");
            assert!(case.contains(&format!("kind {}\n", Kind::of(seed).name())));
            fs::remove_dir_all(&folder).expect("removed");
        }
    }

    #[test]
    fn runs_leave_out_what_has_no_text() {
        let text = runs(&[0, 7, 7, 8, 0], |value| {
            (*value > 0).then(|| value.to_string())
        });
        assert_eq!(text, "1 2 7\n3 1 8\n");
    }
}
