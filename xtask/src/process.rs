//! Running other programs: search in PATH, output capture, packages by apt when that is possible.
//!
//! Every failure is one sentence with the command in it; nothing here panics on what a program prints.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What xtask functions return: a sentence for people on failure.
pub type Result<T> = std::result::Result<T, String>;

/// Turns any error into a sentence that starts with what was being done.
pub trait Context<T> {
    /// Puts `what` in front of the error.
    fn context(self, what: impl AsRef<str>) -> Result<T>;
}

impl<T, E: std::fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl AsRef<str>) -> Result<T> {
        self.map_err(|error| format!("{}: {error}", what.as_ref()))
    }
}

/// Finds a program in PATH and in the system administrator's directories.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"])
        .map(|dir| Path::new(dir).join(name))
        .find(|file| file.is_file())
}

/// Runs a command to its end with its output passed through; fails unless it succeeds.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().context(format!("cannot run {shown}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{shown}: {status}"))
    }
}

/// Runs a command quietly and returns its standard output; on failure the error has the end of what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let out = command
        .stdin(Stdio::null())
        .output()
        .context(format!("cannot run {shown}"))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&out.stderr);
    Err(format!("{shown}: {}: {}", out.status, last_lines(&said, 8)))
}

/// The last `count` lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

fn show(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}

/// True when this process may install packages: it is root and apt is there.
pub fn may_install() -> bool {
    let root = std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|s| {
            s.lines()
                .find(|l| l.starts_with("Uid:"))
                .map(|l| l.split_whitespace().nth(2) == Some("0"))
        })
        .unwrap_or(false);
    root && find_program("apt-get").is_some()
}

/// Makes sure programs are there; `wanted` pairs a program with the package that brings it.
///
/// Installs what is missing when it may, and otherwise says what somebody has to install.
pub fn need_programs(wanted: &[(&str, &str)]) -> Result<()> {
    let missing = |wanted: &[(&str, &str)]| -> Vec<String> {
        let mut packages: Vec<String> = wanted
            .iter()
            .filter(|w| find_program(w.0).is_none())
            .map(|w| w.1.to_string())
            .collect();
        packages.dedup();
        packages
    };
    let packages = missing(wanted);
    if packages.is_empty() {
        return Ok(());
    }
    if !may_install() {
        return Err(format!(
            "not installed and not root: apt-get install {}",
            packages.join(" ")
        ));
    }
    eprintln!("installing {}", packages.join(" "));
    apt_install(&packages)?;
    let still = missing(wanted);
    if still.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "still missing after installation: {}",
            still.join(" ")
        ))
    }
}

fn apt_install(packages: &[String]) -> Result<()> {
    let install = || {
        output(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "-y", "--no-install-recommends"])
                .args(packages),
        )
    };
    if install().is_err() {
        output(Command::new("apt-get").arg("update"))?;
        install()?;
    }
    Ok(())
}

/// The root of the source tree this binary was built from.
pub fn project_root() -> PathBuf {
    let here =
        std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&here)
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The cache folder for things too big or too slow to make twice.
pub fn cache_dir() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            std::env::var_os("HOME")
                .map_or_else(|| PathBuf::from("/root"), PathBuf::from)
                .join(".cache")
        });
    base.join("brigade")
}
