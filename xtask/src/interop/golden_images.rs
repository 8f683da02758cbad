//! Images the kernel wrote: read by Brigade, opened read-write by Brigade, and read again by the kernel.

use super::{Passed, Setting, drive_name, dump_export, folder};
use crate::golden::{
    Behaviour, Case, Extent, Served, Verdict, Volume, fixtures, judge, list, load, parse_map,
};
use crate::kernel::{self, Boot};
use crate::pattern::SECTOR;
use crate::process::{Context, Result};
use crate::sectors::hash_file;
use crate::server::{Serve, Server, Started, start, start_ready, volume_exports};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Cases of which the kernel says that it reads them, or that nobody damaged.
fn chosen(setting: &Setting) -> Result<Vec<Case>> {
    let mut cases = list(&fixtures())?;
    if let Some(only) = &setting.only {
        cases.retain(|case| case.name == *only);
    }
    Ok(cases)
}

fn serve_of(case: &Case, images: &Path, read_only: bool) -> Serve {
    let (caches, backings): (Vec<_>, Vec<_>) =
        case.images().into_iter().partition(|image| image.is_cache);
    let paths = |list: Vec<crate::golden::Image>| {
        list.iter().map(|image| images.join(&image.file)).collect()
    };
    Serve {
        caches: paths(caches),
        backings: paths(backings),
        mode: None,
        read_only,
    }
}

/// Every fixture through `brigade serve --read-only`: same content, same refusals, no byte written.
pub fn read_only(setting: &Setting) -> Result<Passed> {
    let (mut agree, mut stricter, mut failed) = (0, 0, Vec::new());
    for case in chosen(setting)? {
        let verdict = read_only_case(setting, &case).unwrap_or_else(|error| Verdict {
            wrong: vec![error],
            stricter: Vec::new(),
        });
        if verdict.wrong.is_empty() {
            agree += 1;
            stricter += usize::from(!verdict.stricter.is_empty());
        } else {
            failed.push(format!("{}: {}", case.name, verdict.wrong.join("; ")));
        }
    }
    if failed.is_empty() {
        return Ok(Passed::Ran(format!(
            "{agree} fixtures agree with the kernel, {stricter} of them stricter"
        )));
    }
    Err(format!(
        "{agree} agree, {} do not:\n  {}",
        failed.len(),
        failed.join("\n  ")
    ))
}

fn read_only_case(setting: &Setting, case: &Case) -> Result<Verdict> {
    let images = folder(setting, "images")?;
    case.unpack(&images)?;
    let serve = serve_of(case, &images, true);
    let mut verdict = match start(&setting.program, &serve, &setting.scratch)? {
        Started::Refused { status, lines } => judge(case, &Behaviour::Refused { status, lines }),
        Started::Ready(server) => {
            let (volumes, details) = read_volumes(setting, case, &server)?;
            server.stop()?;
            let mut verdict = judge(
                case,
                &Behaviour::Served {
                    volumes,
                    read_only: true,
                },
            );
            if !verdict.wrong.is_empty() {
                verdict.wrong.extend(details);
            }
            verdict
        }
    };
    for file in case.changed_images(&images)? {
        verdict.wrong.push(format!("{file} was written to"));
    }
    Ok(verdict)
}

/// Hashes every export; where it differs from a kernel's volume of that size, says where.
fn read_volumes(
    setting: &Setting,
    case: &Case,
    server: &Server,
) -> Result<(Vec<Served>, Vec<String>)> {
    let dump = setting.scratch.join("dump");
    let (mut volumes, mut details) = (Vec::new(), Vec::new());
    for name in volume_exports(&server.socket)? {
        dump_export(server, &name, &dump)?;
        let size = std::fs::metadata(&dump).context("no dump")?.len();
        let sha256 = hash_file(&dump)?;
        let kernel = case.volumes();
        let alike = kernel
            .iter()
            .find(|volume| volume.sectors * SECTOR as u64 == size);
        if let Some(volume) = alike.filter(|_| kernel.iter().all(|volume| volume.sha256 != sha256))
        {
            details.extend(case.explain(volume, &dump)?);
        }
        volumes.push(Served { name, size, sha256 });
    }
    Ok((volumes, details))
}

/// What the guest found on one volume: its backing device's drive, none for a flash volume.
struct KernelVolume {
    backing: Option<String>,
    map: Vec<Extent>,
}

/// Reads the maps that the guest's `map_volumes` left: `VOLUME.BACKING.map`.
fn read_maps(folder: &Path) -> Result<Vec<KernelVolume>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)
        .context("nothing came out of the guest")?
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let [_, backing, "map"] = name.split('.').collect::<Vec<_>>()[..] else {
            continue;
        };
        let backing = (backing != "none").then(|| backing.to_string());
        let text = std::fs::read_to_string(entry.path()).context("cannot read a map")?;
        found.push(KernelVolume {
            backing,
            map: parse_map(&text)?,
        });
    }
    Ok(found)
}

/// Lets the kernel open several cases in one boot and compares each with its manifest.
fn kernel_reads(setting: &Setting, cases: &[(Case, PathBuf)]) -> Result<Vec<String>> {
    let out = folder(setting, "out")?;
    let mut boot = Boot {
        snapshot: true,
        timeout: Duration::from_secs(600),
        out: Some(out.clone()),
        ..Boot::default()
    };
    // Which drive serves which volume of which case.
    let mut owners = Vec::new();
    let mut script = String::from("bad=0\n");
    for (case, images) in cases {
        for image in case.images() {
            let name = drive_name(boot.images.len());
            script.push_str(&format!("register {name} || bad=1\n"));
            let volume = case
                .volumes()
                .into_iter()
                .find(|volume| volume.backing.as_deref() == Some(&image.file));
            if let Some(volume) = volume {
                script.push_str(&format!("await_volume {name}\n"));
                owners.push((name, case, volume));
            } else if image.is_cache {
                script.push_str(&format!("await_set {name}\n"));
            }
            boot.images.push(images.join(&image.file));
        }
    }
    script.push_str("map_volumes; kernel_log; exit $bad\n");
    boot.script = script;
    kernel::run(&boot)?.ok()?;
    compare_maps(cases, &owners, &read_maps(&out)?)
}

fn compare_maps(
    cases: &[(Case, PathBuf)],
    owners: &[(String, &Case, Volume)],
    found: &[KernelVolume],
) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (drive, case, volume) in owners {
        let expected = case.extents(volume)?;
        match found
            .iter()
            .find(|theirs| theirs.backing.as_ref() == Some(drive))
        {
            None => wrong.push(format!(
                "{}: the kernel serves no volume on {drive}",
                case.name
            )),
            Some(theirs) if theirs.map != expected => {
                let first = theirs.map.iter().zip(&expected).find(|(a, b)| a != b);
                wrong.push(format!(
                    "{}: the kernel reads other content than before: {first:?}",
                    case.name
                ));
            }
            Some(_) => {}
        }
    }
    for (case, _) in cases {
        for volume in case
            .volumes()
            .iter()
            .filter(|volume| volume.backing.is_none())
        {
            let expected = case.extents(volume)?;
            if !found
                .iter()
                .any(|theirs| theirs.backing.is_none() && theirs.map == expected)
            {
                wrong.push(format!(
                    "{}: flash-only volume {} is not as before",
                    case.name, volume.name
                ));
            }
        }
    }
    Ok(wrong)
}

/// The harness against itself: the kernel opens what it wrote.
pub fn kernel_alone(setting: &Setting) -> Result<Passed> {
    let mut cases = Vec::new();
    for name in ["wb-dirty", "flash-and-backing"] {
        let images = folder(setting, name)?;
        let case = load(&fixtures(), name)?;
        case.unpack(&images)?;
        cases.push((case, images));
    }
    super::complain("the kernel alone", kernel_reads(setting, &cases)?)?;
    Ok(Passed::Ran(
        "two of the kernel's own images read as their manifests say".into(),
    ))
}

/// Undamaged images, opened read-write by Brigade, stopped, and read by the kernel.
pub fn read_write(setting: &Setting) -> Result<Passed> {
    let mut cases = Vec::new();
    let mut wrong = Vec::new();
    for case in chosen(setting)?
        .into_iter()
        .filter(|case| !case.is_derived() && !case.volumes().is_empty())
    {
        let images = folder(setting, &format!("images-{}", case.name))?;
        case.unpack(&images)?;
        let serve = serve_of(&case, &images, false);
        let round = start_ready(&setting.program, &serve, &setting.scratch).and_then(|server| {
            let (volumes, details) = read_volumes(setting, &case, &server)?;
            server.stop()?;
            let verdict = judge(
                &case,
                &Behaviour::Served {
                    volumes,
                    read_only: false,
                },
            );
            super::complain(
                "content",
                verdict.wrong.into_iter().chain(details).collect(),
            )
        });
        match round {
            Ok(()) => cases.push((case, images)),
            Err(error) => wrong.push(format!("{}: {error}", case.name)),
        }
    }
    if !cases.is_empty() {
        wrong.extend(kernel_reads(setting, &cases)?);
    }
    super::complain("fixtures opened read-write", wrong)?;
    Ok(Passed::Ran(format!("{} fixtures", cases.len())))
}
