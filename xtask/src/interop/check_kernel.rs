//! `brigade check` on images fresh from the kernel: sets of many geometries, used in many ways, stopped or killed.
//!
//! One boot works on several sets at once, each by a script of its own that the seed chooses, and ends with a stop or with
//! the plug pulled; then every set is checked as it lies there. Sets live through several boots, so that recovered ones are
//! among them. Everything that is more than a note fails the test.

use super::{MIB, Passed, Setting, folder};
use crate::golden_fsck::{self, Checked};
use crate::kernel::{self, Boot, KillWhen, Outcome, drive_name};
use crate::pattern::mix;
use crate::process::{Context, Result};
use crate::server;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

const SETS: u64 = 6;
/// How many boots a set lives through.
const LIVES: u64 = 3;
/// Deaths of the kernel by itself that are put up with.
const DEATHS_MAX: u32 = 5;
const BACKING_BYTES: u64 = 48 * MIB;

/// Numbers from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = mix(self.0.wrapping_add(0x9e37_79b9));
        (self.0 >> 8) % below
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len() as u64) as usize]
    }
}

/// One set.
struct Set {
    cache: PathBuf,
    backing: PathBuf,
    block: u64,
    geometry: String,
}

/// Makes sets, lets the kernel use them, checks them.
pub fn run(setting: &Setting) -> Result<Passed> {
    let mut dice = Dice(mix(setting.seed));
    let mut sets: Vec<Set> = Vec::new();
    let (mut images, mut boots, mut kills) = (0, 0, 0);
    let mut notes: BTreeMap<String, u64> = BTreeMap::new();
    let mut used = Used::default();
    let (mut lives, mut deaths) = (0, 0);
    while images < setting.rounds {
        if lives % LIVES == 0 {
            lives = 0;
            let home = folder(setting, "sets")?;
            sets = (0..SETS)
                .map(|nr| make(setting, &home, nr, &mut dice))
                .collect::<Result<_>>()?;
        }
        let is_killed = dice.roll(3) > 0;
        let seen = one_boot(&sets, is_killed, &mut dice).context(format!("boot {boots}"))?;
        if let Some(last_words) = seen {
            // It used its own sets only, and nobody knows what it wrote with its memory in that state.
            deaths += 1;
            let shown: Vec<_> = sets.iter().map(|set| set.geometry.as_str()).collect();
            println!(
                "    the kernel died by itself over {}:\n{last_words}",
                shown.join("; ")
            );
            if deaths > DEATHS_MAX {
                return Err(format!("the kernel died {deaths} times"));
            }
            lives = 0;
            continue;
        }
        lives += 1;
        kills += u64::from(is_killed);
        for set in &sets {
            let checked = golden_fsck::check(&setting.program, &[&set.cache, &set.backing])?;
            let how = if is_killed { "killed" } else { "stopped" };
            judge(&checked).context(format!("boot {boots} ({how}), {}", set.geometry))?;
            if !checked.of("warning").is_empty() {
                println!("    {how}, {}: {}", set.geometry, checked.rules());
            }
            for rule in checked.rules().split(", ").filter(|rule| !rule.is_empty()) {
                let id = rule.split(" x").next().unwrap_or_default().to_owned();
                *notes.entry(id).or_insert(0) += 1;
            }
            used.add(&checked.report["sets"][0]);
            images += 1;
        }
        boots += 1;
        println!(
            "  {images} images after {boots} boots, {kills} of them killed: {used}; {notes:?}"
        );
    }
    Ok(Passed::Ran(format!(
        "{images} images, {boots} boots, {kills} of them killed: {used}; images with notes: {notes:?}; \
         the kernel died {deaths} times by itself"
    )))
}

/// How much there was to check: that the kernel did what the scripts say.
#[derive(Default)]
struct Used {
    images_with_keys: u64,
    images_with_levels: u64,
    keys: u64,
    replayed_keys: u64,
    nodes: u64,
    dirty_buckets: u64,
    clean_buckets: u64,
}

impl Used {
    fn add(&mut self, set: &serde_json::Value) {
        let number = |value: &serde_json::Value| value.as_u64().unwrap_or(0);
        let keys = number(&set["btree"]["keys"]);
        self.images_with_keys += u64::from(keys > 0);
        self.images_with_levels += u64::from(number(&set["btree"]["root_level"]) > 0);
        self.keys += keys;
        self.replayed_keys += number(&set["journal"]["replayed_keys"]);
        self.nodes += number(&set["btree"]["nodes"]);
        self.dirty_buckets += number(&set["buckets"]["dirty"]);
        self.clean_buckets += number(&set["buckets"]["clean"]);
    }
}

impl std::fmt::Display for Used {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} with keys, {} with a tree of levels, {} nodes, {} keys and {} to replay, {} dirty and {} clean buckets",
            self.images_with_keys,
            self.images_with_levels,
            self.nodes,
            self.keys,
            self.replayed_keys,
            self.dirty_buckets,
            self.clean_buckets
        )
    }
}

/// Only what a crash may leave, or what a kernel is known to do.
fn judge(checked: &Checked) -> Result<()> {
    let unexpected: Vec<String> = ["error", "warning"]
        .iter()
        .flat_map(|severity| checked.of(severity))
        .filter(|finding| !is_known(finding))
        .take(10)
        .map(ToString::to_string)
        .collect();
    if checked.status == Some(0) && unexpected.is_empty() {
        return Ok(());
    }
    Err(format!(
        "status {:?}, {}\n  {}\n  {}",
        checked.status,
        checked.rules(),
        unexpected.join("\n  "),
        checked.errors
    ))
}

/// Warnings that images of an undamaged kernel may have (docs/format.md 11): a torn newest entry, the kernel's own
/// leavings in a root that is a leaf (K22), and clean data unlike the backing device, from a crash (K3) or from writes that
/// overlapped (K23).
fn is_known(finding: &serde_json::Value) -> bool {
    finding["severity"] == "warning" && ["F18", "F43", "F70"].iter().any(|id| finding["id"] == *id)
}

fn make(setting: &Setting, home: &std::path::Path, nr: u64, dice: &mut Dice) -> Result<Set> {
    let bucket_kib = dice.pick(&[4, 4, 8, 8, 16, 16, 32, 64, 128, 256, 512]);
    let block = dice.pick(&[512, 512, 1024, 2048, 4096]);
    let buckets = 513 + dice.roll(600) + if bucket_kib <= 16 { dice.roll(3000) } else { 0 };
    let mode = dice.pick(&[
        "writeback",
        "writeback",
        "writeback",
        "writethrough",
        "writearound",
    ]);
    let replacement = dice.pick(&["lru", "lru", "fifo", "random"]);
    let offset = dice.pick(&["8k", "8k", "64k", "1M"]);
    let discard = dice.roll(4) == 0;
    let (cache, backing) = (
        home.join(format!("cache{nr}.img")),
        home.join(format!("back{nr}.img")),
    );
    let cache_bytes = buckets * bucket_kib * 1024 + dice.roll(8) * 512;
    let bucket_size = format!("{bucket_kib}k");
    let block_size = block.to_string();
    let mut options = vec![
        "--bucket-size",
        &bucket_size,
        "--block-size",
        &block_size,
        "--mode",
        mode,
        "--replacement",
        replacement,
        "--data-offset",
        offset,
    ];
    if discard {
        options.push("--discard");
    }
    server::format(
        &setting.program,
        (&cache, cache_bytes),
        (&backing, BACKING_BYTES),
        &options,
    )?;
    Ok(Set {
        cache,
        backing,
        block,
        geometry: format!(
            "set {nr}: {buckets} buckets of {bucket_size}, blocks of {block}, {mode}, {replacement}{}",
            if discard { ", discard" } else { "" }
        ),
    })
}

/// Boots the kernel on all sets; their scripts run side by side. Gives the kernel's last words if it died by itself.
fn one_boot(sets: &[Set], is_killed: bool, dice: &mut Dice) -> Result<Option<String>> {
    let mut boot = Boot {
        timeout: Duration::from_secs(500),
        ends_at_oops: true,
        ..Boot::default()
    };
    let mut script = String::from(PRELUDE);
    for (set, nr) in sets.iter().zip(0..) {
        let (cache, backing) = (drive_name(2 * nr), drive_name(2 * nr + 1));
        boot.images.extend([set.cache.clone(), set.backing.clone()]);
        script.push_str(&format!("(\n{}\n) &\n", work(set, &cache, &backing, dice)));
    }
    if is_killed {
        // The work goes on while the plug is pulled; sets that are done lie still.
        script.push_str("echo @@working; sleep 400\n");
        boot.kill = Some(KillWhen::Marker("@@working".into()));
        boot.kill_delay = Duration::from_millis(4000 + dice.roll(30_000));
    } else {
        script.push_str("wait\nkernel_log\nstop_everything\n");
    }
    boot.script = script;
    let finished = kernel::run(&boot)?;
    let has_failed = |line: &&str| line.starts_with("FAIL") || line.starts_with("REFUSED");
    if let Some(line) = finished.console.lines().find(has_failed) {
        return Err(format!("in the guest: {line}"));
    }
    match finished.outcome {
        Outcome::Killed if is_killed => Ok(None),
        Outcome::Exited(0) if !is_killed => Ok(None),
        Outcome::Died => Ok(Some(crate::process::last_lines(&finished.console, 5))),
        outcome => Err(format!(
            "the guest ended otherwise ({outcome:?}):\n{}",
            crate::process::last_lines(&finished.console, 20)
        )),
    }
}

/// Helpers that take the set by its devices: those of `lib.sh` know one set only.
const PRELUDE: &str = "\
set_of() { echo /sys/block/$1/bcache/set; }\n\
gc_of() { echo 1 > \"$(set_of $1)/internal/trigger_gc\" 2>/dev/null; sleep 2; }\n\
bring_up() { register $1 $2 || exit 0; await_set $1; await_volume $2; cache_everything $2; v=/dev/$(volume_of $2); }\n\
detach() { echo 1 > /sys/block/$1/bcache/detach; until_true 60 grep -q 'no cache' /sys/block/$1/bcache/state; }\n\
attach() { basename \"$(readlink -f \"$(set_of $1)\")\" > /sys/block/$2/bcache/attach; sleep 1; cache_everything $2; }\n";

/// What happens to one set.
fn work(set: &Set, cache: &str, backing: &str, dice: &mut Dice) -> String {
    let mut lines = vec![format!("bring_up {cache} {backing}")];
    if dice.roll(8) == 0 {
        lines.push(format!(
            "echo {}M > \"$(set_of {cache})/flash_vol_create\"; sleep 1",
            2 + dice.roll(6)
        ));
    }
    for _ in 0..3 + dice.roll(5) {
        lines.push(step(set, cache, backing, dice));
    }
    lines.join("\n")
}

fn step(set: &Set, cache: &str, backing: &str, dice: &mut Dice) -> String {
    let align = set.block / 512;
    let sectors = (BACKING_BYTES - 2 * MIB) / 512 / align * align;
    match dice.roll(14) {
        0 => format!("hold_writeback {backing}"),
        1 => format!("release_writeback {backing}; sleep {}", dice.roll(4)),
        2 => format!(
            "set_mode {backing} {}",
            dice.pick(&[
                "writeback",
                "writeback",
                "writethrough",
                "writearound",
                "none"
            ])
        ),
        3 => format!("gc_of {cache}"),
        4 => format!(
            "dd if=$v of=/dev/null bs=64k skip={} count={} 2>/dev/null",
            dice.roll(300),
            20 + dice.roll(300)
        ),
        5 => format!(
            "blkdiscard -o {} -l {} $v 2>/dev/null",
            dice.roll(40) * MIB,
            (1 + dice.roll(64)) * 65536
        ),
        6 if dice.roll(3) == 0 => {
            format!("detach {backing}; sleep 1; attach {cache} {backing}")
        }
        7 => format!(
            "dd if=/dev/urandom of=$v bs=256k seek={} count={} conv=notrunc 2>/dev/null",
            dice.roll(100),
            1 + dice.roll(40)
        ),
        8 => "sync".into(),
        _ => {
            let count = 1 + dice.roll(6);
            let range = dice.pick(&[sectors, sectors, sectors / 4, sectors / 16]) / align * align;
            format!(
                "sectors rand $v {} {} 0 {range} {align} {} {} {} {} >/dev/null",
                dice.roll(1 << 30),
                300 + dice.roll(3000),
                align * count,
                1 + dice.roll(1 << 40),
                dice.pick(&[1, 1, 4]),
                dice.pick(&[50, 200, 1000])
            )
        }
    }
}
