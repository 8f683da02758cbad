//! Other people's judges: fio's verification, and an ext4 file system that changes hands.

use super::alternation::Pair;
use super::{MIB, Passed, Setting};
use crate::kernel::{self, Boot};
use crate::process::{Context, Result, find_program, need_programs, output};
use crate::sectors::hash_file;
use crate::server::{dump_export, start_ready};
use std::fs;
use std::path::Path;
use std::process::Command;

const FIO_BYTES: u64 = 240 * MIB;

/// Random writes over four times the cache, verified by fio after a restart of the server.
pub fn fio(setting: &Setting) -> Result<Passed> {
    need_programs(&[("fio", "fio")])?;
    if !output(Command::new("fio").arg("--enghelp"))?
        .lines()
        .any(|line| line.trim() == "nbd")
    {
        return Ok(Passed::Skipped("this fio has no nbd engine".into()));
    }
    let pair = Pair::format(setting)?;
    let server = start_ready(&setting.program, &pair.serve(), &setting.scratch)?;
    fio_run(setting, &server.uri(""), &["--do_verify=0"])?;
    server.stop()?;
    let server = start_ready(&setting.program, &pair.serve(), &setting.scratch)?;
    fio_run(setting, &server.uri(""), &["--verify_only=1"])?;
    server.stop()?;
    Ok(Passed::Ran(format!(
        "{} MiB of random writes verified after a restart",
        FIO_BYTES / MIB
    )))
}

fn fio_run(setting: &Setting, uri: &str, more: &[&str]) -> Result<()> {
    output(
        Command::new("fio")
            .current_dir(&setting.scratch)
            .args([
                "--name=verify",
                "--ioengine=nbd",
                "--rw=randwrite",
                "--bsrange=4k-64k",
                "--iodepth=16",
            ])
            .args([
                "--verify=crc32c",
                "--verify_state_save=0",
                "--verify_fatal=1",
                "--fsync=256",
            ])
            .arg(format!("--uri={uri}"))
            .arg(format!("--size={FIO_BYTES}"))
            .arg(format!("--randseed={}", setting.seed & 0xffff_ffff))
            .args(more),
    )
    .map(drop)
}

/// A file system made on the host goes in through Brigade, the kernel mounts it and adds to it, and what comes
/// out of Brigade afterwards passes e2fsck with all files right.
pub fn ext4(setting: &Setting) -> Result<Passed> {
    need_programs(&[("mkfs.ext4", "e2fsprogs"), ("nbdcopy", "libnbd-bin")])?;
    let pair = Pair::format(setting)?;
    let image = setting.scratch.join("ext4.img");
    let first_hash = make_file_system(setting, &image, pair.model.sectors() * 512)?;
    let server = start_ready(&setting.program, &pair.serve(), &setting.scratch)?;
    output(
        Command::new("nbdcopy")
            .arg("--flush")
            .arg(&image)
            .arg(server.uri("")),
    )?;
    server.stop()?;

    let script = "register vda vdb || exit 1; await_volume vdb\n\
        set_mode vdb writeback; cache_everything vdb\n\
        mount -t ext4 /dev/$(volume_of vdb) /mnt || fail mount\n\
        echo SUM $(sha256sum < /mnt/first)\n\
        mkdir /mnt/more; for i in $(seq 200); do head -c $((i * 777)) /mnt/first > /mnt/more/$i; done\n\
        rm /mnt/second; sync; echo MORE $(cat /mnt/more/* | sha256sum)\n\
        umount /mnt || fail umount; kernel_log; stop_everything\n";
    let boot = Boot {
        script: script.into(),
        images: vec![pair.cache.clone(), pair.backing.clone()],
        ..Boot::default()
    };
    let console = kernel::run(&boot)?.ok()?;
    let said = |word: &str| {
        let line = console.lines().find_map(|line| line.strip_prefix(word));
        line.and_then(|rest| rest.split_whitespace().next())
            .map(str::to_string)
            .ok_or_else(|| format!("no {word} line"))
    };
    if said("SUM ")? != first_hash {
        return Err("the kernel reads another file than was written".into());
    }
    let server = start_ready(&setting.program, &pair.serve(), &setting.scratch)?;
    dump_export(&server, "", &image)?;
    server.stop()?;
    check_file_system(setting, &image, &first_hash)?;
    let more = setting.scratch.join("more");
    let names: Vec<String> = fs::read_dir(&more)
        .context("no folder came back")?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let joined = setting.scratch.join("joined");
    join(&more, names, &joined)?;
    if hash_file(&joined)? != said("MORE ")? {
        return Err("files written by the kernel came back different".into());
    }
    Ok(Passed::Ran("202 files, both ways".into()))
}

fn make_file_system(setting: &Setting, image: &Path, bytes: u64) -> Result<String> {
    let content = super::folder(setting, "content")?;
    for (name, tag) in [("first", 1), ("second", 2)] {
        let mut data = vec![0u8; 8 << 20];
        crate::pattern::fill(&mut data, setting.seed & 0xffff, tag);
        fs::write(content.join(name), data).context("cannot write a file")?;
    }
    fs::File::create(image)
        .and_then(|file| file.set_len(bytes))
        .context("cannot make an image")?;
    let mkfs = find_program("mkfs.ext4").ok_or("no mkfs.ext4")?;
    output(
        Command::new(mkfs)
            .args(["-q", "-F", "-d"])
            .arg(&content)
            .arg(image),
    )?;
    hash_file(&content.join("first"))
}

fn check_file_system(setting: &Setting, image: &Path, first_hash: &str) -> Result<()> {
    output(
        Command::new(find_program("e2fsck").ok_or("no e2fsck")?)
            .args(["-f", "-n"])
            .arg(image),
    )?;
    let debugfs = find_program("debugfs").ok_or("no debugfs")?;
    let first = setting.scratch.join("first");
    output(
        Command::new(&debugfs)
            .arg("-R")
            .arg(format!("dump /first {}", first.display()))
            .arg(image),
    )?;
    output(
        Command::new(&debugfs)
            .arg("-R")
            .arg(format!("rdump /more {}", setting.scratch.display()))
            .arg(image),
    )?;
    if hash_file(&first)? != first_hash {
        return Err("a file came back different".into());
    }
    Ok(())
}

/// Concatenates files in the order of the shell's `*`.
fn join(folder: &Path, mut names: Vec<String>, target: &Path) -> Result<()> {
    names.sort();
    let mut all = Vec::new();
    for name in names {
        all.extend(fs::read(folder.join(name)).context("cannot read a file")?);
    }
    fs::write(target, all).context("cannot write a file")
}
