//! Histories of the allocator: sets whose buckets went through many lives under `brigade serve`, opened by the kernel.
//!
//! | case | history |
//! | --- | --- |
//! | `lru`, `fifo`, `random` | a small cache under each policy, every bucket recycled many times |
//! | `wrap` | so often that generations went past 255 |
//! | `behind` | killed when some generations were far ahead of their oldest pointers |
//! | `near-stopped`, `near-killed` | generations as far ahead of the oldest pointers as they may be, in leaves and interior nodes |
//! | `near-wrapped` | the same, and generations went past 255 in between |
//! | `full` | nearly all of it dirty, so that reserves and buckets ran out |
//! | `refilled` | the same, and then all of it overwritten with clean data |
//! | `blank` | formatted by the kernel's tools and never run (CACHE_SYNC off), first run by Brigade |
//!
//! Collections begin at 64 and a bucket is not recycled at 96, so no server left to itself gets near that: those sets are the
//! simulator's (its module `near`), where collections that are due were held back.
//!
//! Of each the kernel must read what was written, sector by sector; then it uses the set itself, which recycles buckets on top
//! of our generations, collects garbage, writes everything back, and must read what is there then. Brigade must read the same
//! after that, and find nothing wrong.

use super::alternation::write_load;
use super::{MIB, Passed, Setting, check_export, complain};
use crate::golden::{self, ExtentContent, parse_map};
use crate::kernel::{self, Boot, drive_name};
use crate::model::Model;
use crate::nbd::Client;
use crate::pattern::{Operation, RandomWorkload, SECTOR, fill, mix};
use crate::process::{Context, Result, output};
use crate::server::{self, Serve, Server, start_ready};
use crate::sim;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Few buckets, but as many as the kernel accepts: lives are short.
const CACHE_BYTES: u64 = 5 * MIB;
const BUCKET: &str = "8k";
const BACKING_BYTES: u64 = 8 * MIB;
const DATA_OFFSET_SECTORS: u64 = 16;
/// Operations between two looks at how far a history is.
const SLICE: u64 = 1500;
const KERNEL_OPERATIONS: u64 = 150;
/// Tags of a stretch of a case start here times its number.
const STRETCH: u64 = 10_000_000;
/// Lives of a bucket after which a generation of one byte has been at all values.
const LIVES_WRAP: u64 = 270;
const LIVES: u64 = 12;
/// Generations from the oldest pointer at which `behind` is killed; a collection begins at 64.
const BEHIND: u64 = 56;
/// Generations from the oldest pointer in the `near` sets, at least.
const NEAR: u64 = 90;
/// Sectors of one write of a whole volume.
const PIECE: u64 = 128;
const SLICES_MAX: u64 = 400;

/// A set with a history.
struct Case {
    name: &'static str,
    cache: PathBuf,
    backing: PathBuf,
    model: Model,
    seed: u64,
    stretches: u64,
    /// What the history came to.
    note: String,
}

/// How a history is made.
type History = fn(&Setting, &mut Case) -> Result<()>;

/// Stands for a policy: a pair that the simulator made.
const NEAR_SETS: &str = "near";

const CASES: [(&str, &str, History); 11] = [
    ("lru", "lru", many_lives),
    ("fifo", "fifo", many_lives),
    ("random", "random", many_lives),
    ("wrap", "lru", wrap),
    ("behind", "fifo", behind),
    ("near-stopped", NEAR_SETS, near),
    ("near-killed", NEAR_SETS, near),
    ("near-wrapped", NEAR_SETS, near),
    ("full", "lru", full),
    ("refilled", "lru", refilled),
    ("blank", "", many_lives),
];

/// See the module documentation. Images are in memory, where that is possible: recycling is a matter of flushes.
pub fn run(setting: &Setting) -> Result<Passed> {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        return run_in(setting);
    }
    let scratch = tempfile::Builder::new()
        .prefix("brigade-histories-")
        .tempdir_in(memory)
        .context("no scratch folder")?;
    let inner = Setting {
        program: setting.program.clone(),
        scratch: scratch.path().to_path_buf(),
        only: setting.only.clone(),
        ..*setting
    };
    run_in(&inner).map_err(|error| {
        let kept = scratch.keep();
        format!("{error}\n  images: {}", kept.display())
    })
}

fn run_in(setting: &Setting) -> Result<Passed> {
    let mut notes = Vec::new();
    for round in 0..setting.rounds.max(1) {
        let mut cases = Vec::new();
        let is_chosen = |name: &str| setting.only.as_ref().is_none_or(|only| only == name);
        if CASES
            .iter()
            .any(|(name, from, _)| *from == NEAR_SETS && is_chosen(name))
        {
            sim::near(
                &setting.scratch.join(NEAR_SETS),
                mix(setting.seed ^ round) >> 16,
            )?;
        }
        for (name, policy, history) in CASES.into_iter().filter(|(name, ..)| is_chosen(name)) {
            let seed = mix(setting.seed ^ (round << 32) ^ cases.len() as u64);
            let mut case = match policy {
                "" => Case::unpacked(setting, name, seed),
                NEAR_SETS => Case::simulated(setting, name, seed),
                policy => Case::formatted(setting, name, policy, seed),
            }
            .context(name)?;
            let start = Instant::now();
            history(setting, &mut case).context(name)?;
            check(setting, &case).context(name)?;
            let seconds = start.elapsed().as_secs_f32();
            println!("  {name}: {} in {seconds:.1} s", case.note);
            cases.push(case);
        }
        if cases.is_empty() {
            return Err("there is no such case".into());
        }
        kernel_turn(setting, &mut cases)?;
        notes = cases
            .iter()
            .map(|case| format!("{} ({})", case.name, case.note))
            .collect();
    }
    Ok(Passed::Ran(notes.join(", ")))
}

impl Case {
    /// A case of no stretch yet, whose images are `cache.img` and `back.img` of a folder.
    fn new(folder: &Path, name: &'static str, model: Model, seed: u64) -> Case {
        Case {
            name,
            cache: folder.join("cache.img"),
            backing: folder.join("back.img"),
            model,
            seed,
            stretches: 0,
            note: String::new(),
        }
    }

    fn formatted(setting: &Setting, name: &'static str, policy: &str, seed: u64) -> Result<Case> {
        let folder = super::folder(setting, name)?;
        let model = Model::new(BACKING_BYTES / SECTOR as u64 - DATA_OFFSET_SECTORS);
        let case = Case::new(&folder, name, model, seed);
        server::format(
            &setting.program,
            (&case.cache, CACHE_BYTES),
            (&case.backing, BACKING_BYTES),
            &["--bucket-size", BUCKET, "--replacement", policy],
        )?;
        Ok(case)
    }

    /// A pair that the kernel's tools formatted.
    fn unpacked(setting: &Setting, name: &'static str, seed: u64) -> Result<Case> {
        let folder = super::folder(setting, name)?;
        let case = golden::load(&golden::fixtures(), "fresh")?;
        case.unpack(&folder)?;
        let volumes = case.volumes();
        let volume = volumes.first().ok_or("the case has no volume")?;
        let mut model = Model::new(volume.sectors);
        for extent in case.extents(volume)? {
            let ExtentContent::Tag(tag) = extent.what else {
                return Err("the case holds other than pattern".into());
            };
            let operation = Operation {
                sector: extent.start,
                count: extent.count,
            };
            model.lasting(operation, tag);
        }
        Ok(Case::new(&folder, name, model, seed))
    }

    /// What the simulator made.
    fn simulated(setting: &Setting, name: &'static str, seed: u64) -> Result<Case> {
        let kind = name.strip_prefix("near-").unwrap_or(name);
        let folder = setting.scratch.join(NEAR_SETS).join(kind);
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).context(name);
        let (text, written) = (read("case")?, read("written")?);
        let word = |name: &str| {
            let mut lines = text.lines();
            let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.ok_or_else(|| format!("no {name}"))
        };
        let mut model = Model::new(word("sectors")?.parse().context("sectors")?);
        for line in written.lines() {
            let numbers = line.split(' ').map(|word| word.parse().context("written"));
            let numbers = numbers.collect::<Result<Vec<u64>>>()?;
            let [sector, count, tag] = numbers[..] else {
                return Err(format!("bad line: {line}"));
            };
            model.lasting(Operation { sector, count }, tag);
        }
        Ok(Case {
            note: word("note")?.to_string(),
            ..Case::new(&folder, name, model, seed)
        })
    }

    fn start(&self, setting: &Setting, mode: &'static str) -> Result<Server> {
        let serve = Serve {
            caches: vec![self.cache.clone()],
            backings: vec![self.backing.clone()],
            mode: Some(mode),
            read_only: false,
        };
        start_ready(&setting.program, &serve, &setting.scratch)
    }

    /// The next part of its workload, which nothing later writes in the same way.
    fn load(&mut self) -> (RandomWorkload, u64) {
        self.stretches += 1;
        let load = RandomWorkload {
            seed: mix(self.seed ^ self.stretches),
            start: 0,
            range: self.model.sectors() / 8 * 8,
            align: 8,
            count_max: 16,
        };
        (load, self.stretches * STRETCH)
    }

    /// From now on it is about copies, so that the history itself is kept.
    fn hand_over(&mut self) -> Result<()> {
        for image in [&mut self.cache, &mut self.backing] {
            let copy = image.with_extension("kernel");
            std::fs::copy(&*image, &copy).context("cannot copy an image")?;
            *image = copy;
        }
        Ok(())
    }

    fn write(&mut self, client: &mut Client) -> Result<()> {
        let (load, tag) = self.load();
        write_load(client, &mut self.model, &load, tag, SLICE)
    }
}

/// What the history has come to.
struct Progress {
    /// Times that the cache was written.
    lives: u64,
    /// Generations from the oldest pointer.
    behind: u64,
    dirty: u64,
    buckets: u64,
    passes: u64,
}

fn progress(server: &Server) -> Result<Progress> {
    let status = server.status()?;
    let set = &status["cache_set"];
    let device = &set["devices"][0];
    let number = |value: &serde_json::Value| value.as_u64().ok_or("a number is missing");
    let (buckets, bytes) = (
        number(&device["buckets"]["total"])?,
        number(&device["bucket_bytes"])?,
    );
    Ok(Progress {
        lives: number(&device["written_bytes"])? / (buckets * bytes),
        behind: number(&set["gc"]["generations_behind"])?,
        dirty: number(&device["buckets"]["dirty"])?,
        buckets,
        passes: number(&set["gc"]["passes"])?,
    })
}

/// Writes until it is enough.
fn write_until(
    case: &mut Case,
    server: &Server,
    is_enough: impl Fn(&Progress) -> bool,
) -> Result<Progress> {
    let mut client = Client::connect(&server.socket, "")?;
    for _ in 0..SLICES_MAX {
        case.write(&mut client)?;
        let now = progress(server)?;
        if is_enough(&now) {
            client.flush()?;
            client.disconnect();
            return Ok(now);
        }
    }
    Err(format!("{SLICES_MAX} times {SLICE} writes were not enough"))
}

fn many_lives(setting: &Setting, case: &mut Case) -> Result<()> {
    lives(setting, case, LIVES)
}

fn wrap(setting: &Setting, case: &mut Case) -> Result<()> {
    lives(setting, case, LIVES_WRAP)
}

fn lives(setting: &Setting, case: &mut Case, lives: u64) -> Result<()> {
    let server = case.start(setting, "writethrough")?;
    let now = write_until(case, &server, |now| now.lives >= lives)?;
    check_export(&server, &mut case.model, "what Brigade reads")?;
    case.note = format!("written {} times, {} collections", now.lives, now.passes);
    server.stop()
}

fn behind(setting: &Setting, case: &mut Case) -> Result<()> {
    let server = case.start(setting, "writethrough")?;
    let now = write_until(case, &server, |now| now.behind >= BEHIND)?;
    case.note = format!("{} generations behind", now.behind);
    server.kill()
}

/// The history was made by the simulator; this looks at it, read-only.
fn near(setting: &Setting, case: &mut Case) -> Result<()> {
    let serve = Serve {
        caches: vec![case.cache.clone()],
        backings: vec![case.backing.clone()],
        mode: None,
        read_only: true,
    };
    let server = start_ready(&setting.program, &serve, &setting.scratch)?;
    let behind = progress(&server)?.behind;
    if behind < NEAR {
        return Err(format!(
            "the oldest pointer is {behind} generations behind only"
        ));
    }
    check_export(&server, &mut case.model, "what Brigade reads")?;
    case.note = format!("{behind} generations behind; {}", case.note);
    server.stop()
}

fn full(setting: &Setting, case: &mut Case) -> Result<()> {
    let server = case.start(setting, "writeback")?;
    server.set(&[("writeback_running", "off"), ("cutoff_writeback", "70")])?;
    let now = write_until(case, &server, |now| 2 * now.dirty >= now.buckets)?;
    // And on, when writes have to find another way.
    let mut client = Client::connect(&server.socket, "")?;
    case.write(&mut client)?;
    client.flush()?;
    client.disconnect();
    case.note = format!("{} of {} buckets dirty", now.dirty, now.buckets);
    server.stop()
}

fn refilled(setting: &Setting, case: &mut Case) -> Result<()> {
    full(setting, case)?;
    let server = case.start(setting, "writethrough")?;
    let mut client = Client::connect(&server.socket, "")?;
    overwrite(case, &mut client)?;
    client.flush()?;
    client.disconnect();
    let dirty = progress(&server)?.dirty;
    let now = write_until(case, &server, |now| now.lives >= LIVES / 2)?;
    case.note = format!(
        "{}, then {dirty}, then written {} times",
        case.note, now.lives
    );
    server.stop()
}

/// Writes the whole volume, from its beginning to its end.
fn overwrite(case: &mut Case, client: &mut Client) -> Result<()> {
    let (_, tag) = case.load();
    let (mut at, end) = (0, case.model.sectors());
    let mut bytes = vec![0; PIECE as usize * SECTOR];
    while at < end {
        let operation = Operation {
            sector: at,
            count: PIECE.min(end - at),
        };
        let data = &mut bytes[..operation.count as usize * SECTOR];
        fill(data, at, tag);
        client.write_at(at * SECTOR as u64, data, false)?;
        case.model.lasting(operation, tag);
        at += operation.count;
    }
    Ok(())
}

/// `brigade check` finds nothing.
fn check(setting: &Setting, case: &Case) -> Result<()> {
    let check = |program: &Path| {
        let mut command = Command::new(program);
        command.arg("check").arg(&case.cache);
        output(command.arg(&case.backing)).map(drop)
    };
    check(&setting.program).context("brigade check")
}

/// One boot for all of them. While anything is dirty the kernel reads without filling or writing back: in a cache this small it
/// may recycle a bucket that a request reads from, and if that request read something dirty as well, the kernel answers with an
/// error (`cache_read_races`).
fn kernel_turn(setting: &Setting, cases: &mut [Case]) -> Result<()> {
    let out = super::folder(setting, "out")?;
    let mut boot = Boot {
        timeout: Duration::from_secs(600),
        out: Some(out.clone()),
        ..Boot::default()
    };
    let mut loads = Vec::new();
    for case in cases.iter_mut() {
        let (cache, backing) = (
            drive_name(boot.images.len()),
            drive_name(boot.images.len() + 1),
        );
        case.hand_over()?;
        boot.images
            .extend([case.cache.clone(), case.backing.clone()]);
        let (load, tag) = case.load();
        let name = case.name;
        boot.script.push_str(&format!(
            "register {cache} {backing} || fail {name}: refused\n\
             await_volume {backing}; await_set {cache}\n\
             v=/dev/$(volume_of {backing}); hold_writeback {backing}\n\
             echo 4096 > /sys/block/{backing}/bcache/sequential_cutoff\n\
             echo CASE {name} $(state_of {backing})\n\
             sectors map $v > /out/{name}.before || fail {name}: map\n\
             cache_everything {backing}\n\
             sectors rand $v {} {KERNEL_OPERATIONS} {} {} {} {} {tag} 1 50 0 > /dev/null || fail {name}: rand\n\
             collect_garbage {cache} || fail {name}: no collection\n\
             drain {backing} || fail {name}: not drained\n\
             sectors map $v > /out/{name}.after || fail {name}: map\n",
            load.seed, load.start, load.range, load.align, load.count_max
        ));
        loads.push((load, tag));
    }
    boot.script.push_str("kernel_log\nstop_everything\n");
    let console = kernel::run(&boot)?.ok()?;
    let bad = console
        .lines()
        .find(|line| line.starts_with("LOG") && (line.contains("BUG:") || line.contains("error")));
    if let Some(line) = bad {
        return Err(format!("the kernel complains: {line}"));
    }
    for (case, (load, tag)) in cases.iter_mut().zip(loads) {
        let map = |when: &str| {
            let file = out.join(format!("{}.{when}", case.name));
            std::fs::read_to_string(file).context("the guest left no map")
        };
        let (before, after) = (parse_map(&map("before")?)?, parse_map(&map("after")?)?);
        let what = |when: &str| format!("{}: what the kernel reads {when}", case.name);
        let (first, second) = (what("first"), what("after its own writes"));
        complain(&first, case.model.observe_map(&before))?;
        case.model
            .workload(&load, tag, KERNEL_OPERATIONS, KERNEL_OPERATIONS);
        complain(&second, case.model.observe_map(&after))?;
        brigade_turn(setting, case).context(case.name)?;
    }
    Ok(())
}

/// Brigade after the kernel.
fn brigade_turn(setting: &Setting, case: &mut Case) -> Result<()> {
    check(setting, case)?;
    let server = case.start(setting, "writeback")?;
    check_export(&server, &mut case.model, "what Brigade reads at last")?;
    server.stop()?;
    check(setting, case)
}
