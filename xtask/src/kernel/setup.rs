//! Fetching a kernel: Debian's newest 6.12 for bookworm, unpacked (never installed) into the cache folder.

use super::Boot;
use crate::process::{Context, Result, cache_dir, find_program, need_programs, output, run};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bumped when the layout of the cache folder changes.
const LAYOUT: &str = "1";

/// Modules that are kept, with all they depend on. `initramfs` loads [`LOADED`] at boot, the kernel asks
/// for the others when they are first used.
const KEPT: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "bcache",
    "ublk_drv",
    "nbd",
    "loop",
    "dm_mod",
    "dm_flakey",
    "ext4",
    "crc32c_generic",
    "null_blk",
];

/// Modules loaded at boot, in this order.
pub const LOADED: &[&str] = &[
    "crc32c_generic",
    "virtio_pci",
    "virtio_blk",
    "bcache",
    "ublk_drv",
    "nbd",
    "loop",
];

/// A kernel that is ready to boot.
#[derive(Clone, Debug)]
pub struct Installed {
    /// Its release, as in `uname -r`.
    pub version: String,
    /// Its folder in the cache.
    pub folder: PathBuf,
}

impl Installed {
    /// The bootable image.
    pub fn vmlinuz(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// What lies under `/` in the guest: modules and their index.
    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// Names of the modules that are there.
    pub fn modules(&self) -> Vec<String> {
        let folder = self
            .root()
            .join("lib/modules")
            .join(&self.version)
            .join("kernel");
        let mut names: Vec<String> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| module_name(&entry.file_name().to_string_lossy()))
            .collect();
        names.sort();
        names
    }
}

fn kernels_dir() -> PathBuf {
    cache_dir().join("kernel")
}

/// The kernel that was set up, if one was.
pub fn installed() -> Option<Installed> {
    let version = fs::read_to_string(kernels_dir().join("current"))
        .ok()?
        .trim()
        .to_string();
    let folder = kernels_dir().join(&version);
    let layout = fs::read_to_string(folder.join("layout")).ok()?;
    (layout.trim() == LAYOUT && folder.join("vmlinuz").exists())
        .then_some(Installed { version, folder })
}

/// Makes everything a boot needs be there: programs (by apt, when root) and a kernel. Quick when done.
///
/// `package` names a kernel package file at hand; `upgrade` looks for a newer one.
pub fn setup(package: Option<&Path>, upgrade: bool) -> Result<Installed> {
    need_programs(&[
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("xz", "xz-utils"),
        ("zstd", "zstd"),
        ("depmod", "kmod"),
    ])?;
    if package.is_none()
        && !upgrade
        && let Some(kernel) = installed()
    {
        return Ok(kernel);
    }
    fs::create_dir_all(kernels_dir()).context("cannot make the cache folder")?;
    let scratch =
        tempfile::tempdir_in(kernels_dir()).context("cannot make a folder in the cache")?;
    let package = match package {
        Some(file) => file.to_path_buf(),
        None => download(scratch.path())?,
    };
    eprintln!(
        "unpacking {}",
        package.file_name().unwrap_or_default().to_string_lossy()
    );
    let tree = scratch.path().join("tree");
    unpack(&package, &tree)?;
    import(&tree, scratch.path())
}

fn newest_package() -> Result<Option<String>> {
    let names = output(Command::new("apt-cache").args(["pkgnames", "linux-image-6.12"]))?;
    let wanted = |name: &&str| {
        name.strip_prefix("linux-image-6.12.")
            .and_then(|rest| rest.strip_suffix("+deb12-amd64"))
            .is_some_and(|point| point.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let point = |name: &str| {
        name["linux-image-6.12.".len()..]
            .split('+')
            .next()
            .and_then(|n| n.parse::<u32>().ok())
    };
    Ok(names
        .lines()
        .filter(wanted)
        .max_by_key(|name| point(name))
        .map(str::to_string))
}

fn download(scratch: &Path) -> Result<PathBuf> {
    if find_program("apt-get").is_none() {
        return Err("no apt here; give a Debian kernel package with --deb FILE".into());
    }
    let name = match newest_package()? {
        Some(name) => name,
        None => {
            output(Command::new("apt-get").arg("update"))?;
            newest_package()?.ok_or(
                "apt offers no linux-image-6.12.*+deb12-amd64 (is bookworm-security enabled?)",
            )?
        }
    };
    eprintln!("downloading {name} (about 105 MB)");
    let fetch = || {
        output(Command::new("apt-get").current_dir(scratch).args([
            "-o",
            "APT::Sandbox::User=root",
            "download",
            &name,
        ]))
    };
    if fetch().is_err() {
        output(Command::new("apt-get").arg("update"))?;
        fetch()?;
    }
    fs::read_dir(scratch)
        .context("cannot list the download")?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .ok_or_else(|| format!("apt-get download {name} left no package"))
}

fn unpack(package: &Path, tree: &Path) -> Result<()> {
    fs::create_dir_all(tree).context("cannot make a folder in the cache")?;
    run(Command::new("dpkg-deb").arg("-x").arg(package).arg(tree))
}

/// Moves what a boot needs out of an unpacked package, modules decompressed.
fn import(tree: &Path, scratch: &Path) -> Result<Installed> {
    let modules = [tree.join("lib/modules"), tree.join("usr/lib/modules")]
        .into_iter()
        .find(|path| path.is_dir())
        .ok_or("the package holds no modules")?;
    let version = fs::read_dir(&modules)
        .context("cannot list the package")?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .next()
        .ok_or("the package holds no modules")?;
    let made = scratch.join("made");
    let target = made.join("root/lib/modules").join(&version);
    fs::create_dir_all(target.join("kernel")).context("cannot make a folder in the cache")?;
    fs::copy(
        tree.join(format!("boot/vmlinuz-{version}")),
        made.join("vmlinuz"),
    )
    .context("no kernel in the package")?;
    copy_modules(&modules.join(&version), &target)?;
    depmod(&made.join("root"), &version)?;
    fs::write(made.join("layout"), LAYOUT).context("cannot write to the cache")?;
    let folder = kernels_dir().join(&version);
    let _ = fs::remove_dir_all(&folder);
    fs::rename(&made, &folder).context("cannot move the kernel into place")?;
    fs::write(kernels_dir().join("current"), &version).context("cannot write to the cache")?;
    Ok(Installed { version, folder })
}

fn depmod(root: &Path, version: &str) -> Result<()> {
    let program = find_program("depmod").ok_or("no depmod (package kmod)")?;
    output(Command::new(program).arg("-b").arg(root).arg(version)).map(drop)
}

/// `drivers/md/dm-mod.ko.xz` is the module `dm_mod`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn find_modules(folder: &Path, found: &mut BTreeMap<String, PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find_modules(&path, found);
        } else if path.to_string_lossy().contains(".ko") {
            found.insert(module_name(&path.to_string_lossy()), path);
        }
    }
}

fn copy_modules(source: &Path, target: &Path) -> Result<()> {
    let mut all = BTreeMap::new();
    find_modules(&source.join("kernel"), &mut all);
    for index in [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        let _ = fs::copy(source.join(index), target.join(index));
    }
    let mut todo: Vec<String> = KEPT.iter().map(|name| (*name).to_string()).collect();
    let mut done = BTreeSet::new();
    while let Some(name) = todo.pop() {
        // What is not a file is built in.
        let Some(path) = all.get(&name).filter(|_| done.insert(name.clone())) else {
            continue;
        };
        let file = target.join("kernel").join(format!("{name}.ko"));
        fs::write(&file, decompress(path)?).context("cannot write to the cache")?;
        todo.extend(dependencies(&file)?);
    }
    Ok(())
}

fn decompress(path: &Path) -> Result<Vec<u8>> {
    let text = path.to_string_lossy();
    let program = match text.rsplit('.').next() {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).context(format!("cannot read {text}")),
    };
    let out = Command::new(program)
        .arg("-dc")
        .arg(path)
        .output()
        .context(format!("cannot run {program}"))?;
    if out.status.success() {
        Ok(out.stdout)
    } else {
        Err(format!("{program} -dc {text}: {}", out.status))
    }
}

fn dependencies(module: &Path) -> Result<Vec<String>> {
    let modinfo = find_program("modinfo").ok_or("no modinfo (package kmod)")?;
    let mut names = Vec::new();
    for field in ["depends", "softdep"] {
        let text = output(Command::new(&modinfo).args(["-F", field]).arg(module))?;
        let words = text
            .split([',', ' ', '\n', '\t'])
            .filter(|word| !word.is_empty() && !word.ends_with(':'));
        names.extend(words.map(|word| word.replace('-', "_")));
    }
    Ok(names)
}

/// A boot that only says which kernel it is; the smoke test of a setup.
pub fn greeting() -> Boot {
    Boot {
        script: "echo kernel $(uname -r), bcache $(ls -d /sys/fs/bcache)".into(),
        ..Boot::default()
    }
}

#[cfg(test)]
mod tests {
    use super::module_name;

    #[test]
    fn module_names_lose_folder_suffix_and_dashes() {
        assert_eq!(module_name("kernel/drivers/md/dm-mod.ko.xz"), "dm_mod");
        assert_eq!(module_name("ext4.ko"), "ext4");
    }
}
