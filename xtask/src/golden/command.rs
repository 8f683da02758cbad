//! `cargo x golden`: the cases of `fixtures/`, and any folder of them against Brigade.

use super::check::{Place, Results, is_for_writing, read_only, read_write};
use super::{Case, fixtures, list, load};
use crate::kernel;
use crate::process::{Context, Result, need_programs};
use crate::server::brigade;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

const USAGE: &str = "\
cargo x golden list                             the kernel-made images in fixtures/
cargo x golden unpack NAME DIR                  one of them, ready to open
cargo x golden check DIR [--rw] [--only NAME]   every case of a folder through `brigade serve --read-only`; --rw:
    those that can be written to are opened for writing, stopped, and read by a kernel in a virtual machine";

/// Runs `cargo x golden ARGUMENTS`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["list"] => {
            for case in list(&fixtures())? {
                println!("{:28} {}", case.name, case.title());
            }
        }
        ["unpack", name, folder] => {
            for path in load(&fixtures(), name)?.unpack(folder.as_ref())? {
                println!("{}", path.display());
            }
        }
        ["check", folder, options @ ..] => return check(Path::new(folder), options),
        _ => {
            println!("{USAGE}");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn check(folder: &Path, options: &[&str]) -> Result<ExitCode> {
    let (mut is_for_kernel, mut only) = (false, None);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        match *option {
            "--rw" => is_for_kernel = true,
            "--only" => only = Some(*options.next().ok_or("--only: which case?")?),
            _ => return Err(format!("unknown option {option}\n{USAGE}")),
        }
    }
    let mut cases = match only {
        Some(name) => vec![load(folder, name)?],
        None => list(folder)?,
    };
    if is_for_kernel {
        cases.retain(is_for_writing);
    }
    if cases.is_empty() {
        return Err(format!("{}: no such cases", folder.display()));
    }
    run(&cases, is_for_kernel)
}

fn run(cases: &[Case], is_for_kernel: bool) -> Result<ExitCode> {
    need_programs(&[("nbdcopy", "libnbd-bin")])?;
    let program = brigade()?;
    if is_for_kernel {
        kernel::setup(None, false)?;
    }
    let scratch = tempfile::Builder::new()
        .prefix("brigade-golden-")
        .tempdir()
        .context("cannot make a temporary folder")?;
    let place = Place {
        program: &program,
        scratch: scratch.path(),
    };
    let start = Instant::now();
    let mut say = |line: String| println!("{line}");
    let mut results = Results::new(&mut say);
    if is_for_kernel {
        read_write(place, cases, &mut results);
    } else {
        read_only(place, cases, &mut results);
    }
    let seconds = start.elapsed().as_secs_f32();
    println!("{}; {seconds:.0} s", results.summary());
    Ok(match results.differ() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
