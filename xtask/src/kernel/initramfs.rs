//! The guest's root file system: a cpio archive made anew for every boot, in memory order, without root.

use super::Boot;
use super::setup::{Installed, LOADED};
use crate::process::{Context, Result, cache_dir, find_program, output};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const INIT: &str = include_str!("../../guest/init");
const HELPERS: &str = include_str!("../../guest/lib.sh");
const FOLDERS: &[&str] = &[
    "bin", "sbin", "usr", "usr/bin", "usr/sbin", "usr/lib", "dev", "proc", "sys", "tmp", "run",
    "root", "mnt", "etc", "out", "payload", "lib", "lib64", "var",
];

/// Writes the archive for one boot to `target`.
pub fn build(kernel: &Installed, boot: &Boot, target: &Path) -> Result<()> {
    let file = fs::File::create(target).context("cannot make the initramfs")?;
    let mut archive = Archive {
        out: std::io::BufWriter::new(file),
        inode: 0,
        seen: BTreeSet::new(),
    };
    for folder in FOLDERS {
        archive.folder(folder)?;
    }
    let busybox = find_program("busybox").ok_or("no busybox (package busybox-static)")?;
    archive.file("bin/busybox", &read(&busybox)?, true)?;
    archive.link("sbin/modprobe", "/bin/busybox")?;
    archive.link("etc/mtab", "/proc/mounts")?;
    archive.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", false)?;
    archive.file("etc/group", b"root:x:0:\n", false)?;
    archive.file("init", INIT.as_bytes(), true)?;
    archive.file("lib/helpers.sh", HELPERS.as_bytes(), false)?;
    archive.file(
        "lib/modules.load",
        (LOADED.join("\n") + "\n").as_bytes(),
        false,
    )?;
    archive.file("env.sh", environment(&boot.env).as_bytes(), false)?;
    archive.file("script.sh", boot.script.as_bytes(), false)?;
    archive.tree(&kernel.root(), "")?;
    archive.program(&own_tool()?, "payload/sectors")?;
    for copy in &boot.copies {
        archive.copy(copy)?;
    }
    archive.finish()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).context(format!("cannot read {}", path.display()))
}

/// Shell assignments that survive any value.
fn environment(variables: &[(String, String)]) -> String {
    variables
        .iter()
        .map(|(name, value)| format!("export {name}='{}'\n", value.replace('\'', "'\\''")))
        .collect()
}

/// This very program without its symbols: in the guest, called `sectors`, it writes and judges patterns.
fn own_tool() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let Some(strip) = find_program("strip") else {
        return Ok(own);
    };
    let stripped = cache_dir().join("sectors");
    let age = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    if age(&stripped).is_none_or(|made| age(&own).is_none_or(|built| built > made)) {
        fs::create_dir_all(cache_dir()).context("cannot make the cache folder")?;
        let fresh = cache_dir().join(format!("sectors.{}", std::process::id()));
        output(Command::new(strip).arg("-o").arg(&fresh).arg(&own))?;
        fs::rename(&fresh, &stripped).context("cannot write to the cache")?;
    }
    Ok(stripped)
}

/// Shared libraries of a program, as the loader would find them; none for what is no ELF file.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let mut magic = [0u8; 4];
    let elf = fs::File::open(program)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    if elf.is_err() || &magic != b"\x7fELF" {
        return Vec::new();
    }
    let Ok(text) = output(Command::new("ldd").arg(program)) else {
        return Vec::new();
    };
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

/// A cpio archive in the kernel's "newc" format.
struct Archive {
    out: std::io::BufWriter<fs::File>,
    inode: u32,
    seen: BTreeSet<String>,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        if !self.seen.insert(name.to_string()) {
            return Ok(());
        }
        self.inode += 1;
        let size =
            u32::try_from(content.len()).context(format!("{name} is too big for the initramfs"))?;
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
            self.inode,
            0,
            0,
            1,
            0,
            0,
            0,
            0,
            0,
            name.len() + 1,
            0
        );
        let mut put = |bytes: &[u8]| {
            self.out
                .write_all(bytes)
                .context("cannot write the initramfs")
        };
        put(header.as_bytes())?;
        put(name.as_bytes())?;
        put(&[0u8; 4][..1 + padding(header.len() + name.len() + 1)])?;
        put(content)?;
        put(&[0u8; 4][..padding(content.len())])
    }

    fn folder(&mut self, name: &str) -> Result<()> {
        self.entry(name, 0o040_755, b"")
    }

    fn parents(&mut self, name: &str) -> Result<()> {
        for (at, _) in name.match_indices('/') {
            self.folder(&name[..at])?;
        }
        Ok(())
    }

    fn file(&mut self, name: &str, content: &[u8], executable: bool) -> Result<()> {
        self.parents(name)?;
        self.entry(
            name,
            if executable { 0o100_755 } else { 0o100_644 },
            content,
        )
    }

    fn link(&mut self, name: &str, target: &str) -> Result<()> {
        self.entry(name, 0o120_777, target.as_bytes())
    }

    /// A program and the libraries it is linked with, at the places where the loader looks.
    fn program(&mut self, source: &Path, name: &str) -> Result<()> {
        let executable =
            fs::metadata(source).is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0);
        self.file(name, &read(source)?, executable)?;
        for library in libraries(source) {
            let place = library
                .to_string_lossy()
                .trim_start_matches('/')
                .to_string();
            self.file(&place, &read(&library)?, true)?;
        }
        Ok(())
    }

    fn tree(&mut self, source: &Path, name: &str) -> Result<()> {
        let listing = fs::read_dir(source).context(format!("cannot list {}", source.display()))?;
        for entry in listing.flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            let inner = if name.is_empty() {
                file
            } else {
                format!("{name}/{file}")
            };
            if entry.path().is_dir() {
                self.parents(&inner)?;
                self.folder(&inner)?;
                self.tree(&entry.path(), &inner)?;
            } else {
                self.program(&entry.path(), &inner)?;
            }
        }
        Ok(())
    }

    /// A file, a folder, or a command of the host, under `/payload`.
    fn copy(&mut self, what: &str) -> Result<()> {
        let source = match Path::new(what) {
            path if path.exists() => path.to_path_buf(),
            _ if what.contains('/') => return Err(format!("no such file: {what}")),
            _ => find_program(what).ok_or_else(|| format!("no such file or command: {what}"))?,
        };
        let file = source
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let name = format!("payload/{file}");
        if file.starts_with("mkfs.ext") && Path::new("/etc/mke2fs.conf").exists() {
            self.file(
                "etc/mke2fs.conf",
                &read(Path::new("/etc/mke2fs.conf"))?,
                false,
            )?;
        }
        if source.is_dir() {
            self.folder(&name)?;
            return self.tree(&source, &name);
        }
        self.program(&source, &name)
    }

    fn finish(mut self) -> Result<()> {
        self.entry("TRAILER!!!", 0, b"")?;
        self.out.flush().context("cannot write the initramfs")
    }
}

fn padding(length: usize) -> usize {
    (4 - length % 4) % 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_padded_to_four_bytes_and_written_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.cpio");
        let file = fs::File::create(&path).expect("a file");
        let mut archive = Archive {
            out: std::io::BufWriter::new(file),
            inode: 0,
            seen: BTreeSet::new(),
        };
        archive.file("a/b", b"xyz", false).expect("written");
        archive.file("a/b", b"again", false).expect("ignored");
        archive.finish().expect("finished");
        let bytes = fs::read(&path).expect("read");
        assert_eq!(bytes.len() % 4, 0);
        assert_eq!(bytes.windows(6).filter(|w| w == b"070701").count(), 3);
        assert!(!bytes.windows(5).any(|w| w == b"again"));
    }

    #[test]
    fn quotes_in_the_environment_survive_the_shell() {
        assert_eq!(
            environment(&[("A".into(), "it's".into())]),
            "export A='it'\\''s'\n"
        );
    }
}
