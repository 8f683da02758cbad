//! The images that `cargo x mkimage` makes: accepted and read by the kernel and by Brigade, before and after the kernel had them.

use super::{Passed, Setting, folder};
use crate::kernel::{self, Boot};
use crate::mkimage::{Sample, make};
use crate::nbd::Client;
use crate::pattern::{Content, SECTOR, classify};
use crate::process::{Result, output};
use crate::server::{Serve, start_ready};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Extents of an image for each round asked for.
const EXTENTS: u64 = 200_000;
/// Extents of which the kernel reads the data.
const READ_BY_KERNEL: u64 = 60;
/// Extents of which Brigade reads the data.
const READ_BY_BRIGADE: u64 = 2000;

struct Made {
    sample: Sample,
    cache: PathBuf,
    backing: PathBuf,
}

/// Makes two sets, one as if Brigade had stopped it, clean, and one as if the kernel had, a third of it dirty.
pub fn run(setting: &Setting) -> Result<Passed> {
    let home = folder(setting, "made")?;
    let extents = EXTENTS * setting.rounds;
    let makes = [("brigade", 0, "1"), ("kernel", 30, "2")];
    let mut sets = Vec::new();
    for (by, dirty_percent, seed) in makes {
        let sample = Sample {
            extents,
            dirty_percent,
            every: (extents / READ_BY_BRIGADE).max(1),
        };
        let [cache, backing] = ["cache", "back"].map(|name| home.join(format!("{name}-{by}")));
        let mut options = sample.options();
        options.extend(["--by", by, "--seed", seed].map(String::from));
        println!("    {}", make(&options, &cache, &backing)?);
        sets.push(Made {
            sample,
            cache,
            backing,
        });
    }
    for set in &sets {
        check(&setting.program, set)?;
    }
    let read = ask_kernel(&sets)?;
    for set in &sets {
        check(&setting.program, set)?;
        serve(&setting.program, set, &home)?;
        check(&setting.program, set)?;
    }
    Ok(Passed::Ran(format!(
        "two sets of {extents} extents; {read} of them read by the kernel"
    )))
}

fn check(program: &Path, set: &Made) -> Result<()> {
    let mut check = Command::new(program);
    output(check.arg("check").arg(&set.cache).arg(&set.backing)).map(drop)
}

/// One boot: both sets are registered, read, and stopped.
fn ask_kernel(sets: &[Made]) -> Result<usize> {
    let (mut script, mut images, mut read) = (String::new(), Vec::new(), 0);
    for set in sets {
        let [cache, backing] = [0, 1].map(|i| kernel::drive_name(images.len() + i));
        script += &format!(
            "register {cache} {backing} || exit 1; await_set {cache}; await_volume {backing}\n\
             hold_writeback {backing}; v=/dev/$(volume_of {backing})\n"
        );
        let sample = set.sample;
        let spots: Vec<String> = sample
            .some(READ_BY_KERNEL)
            .iter()
            .map(|extent| format!("{}:{}", sample.sector(*extent), sample.tag(*extent)))
            .collect();
        read += spots.len();
        script += &format!(
            "sectors spots $v {} {} || fail content\n",
            Sample::SECTORS,
            spots.join(" ")
        );
        images.extend([set.cache.clone(), set.backing.clone()]);
    }
    script += "facts; kernel_log; stop_everything\n";
    let boot = Boot {
        script,
        images,
        timeout: Duration::from_secs(600),
        memory_mib: 3072,
        ..Boot::default()
    };
    let console = kernel::run(&boot)?.ok()?;
    let told = ["LOG ", "FACT "];
    let lines = console.lines();
    lines
        .filter(|line| told.iter().any(|start| line.starts_with(start)))
        .for_each(|line| println!("    {line}"));
    Ok(read)
}

fn serve(program: &Path, set: &Made, folder: &Path) -> Result<()> {
    let serve = Serve {
        caches: vec![set.cache.clone()],
        backings: vec![set.backing.clone()],
        ..Serve::default()
    };
    let server = start_ready(program, &serve, folder)?;
    let mut client = Client::connect(&server.socket, "")?;
    for extent in set.sample.some(READ_BY_BRIGADE) {
        let first = set.sample.sector(extent);
        let bytes = client.read_at(first * SECTOR as u64, Sample::SECTORS as usize * SECTOR)?;
        for (number, sector) in (first..).zip(bytes.chunks_exact(SECTOR)) {
            let content = classify(sector, number);
            if content != Content::Tag(set.sample.tag(extent)) {
                return Err(format!("extent {extent}, sector {number}: {content:?}"));
            }
        }
    }
    client.disconnect();
    server.stop()
}
