//! `cargo x kernel`: the harness for people and scripts.

use super::{Boot, KillWhen, Outcome, installed, run, setup};
use crate::process::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

const USAGE: &str = "\
cargo x kernel setup [--upgrade] [--deb FILE]   install QEMU (apt, as root) and fetch a 6.12 kernel
cargo x kernel info                             which kernel, which modules, where
cargo x kernel run [OPTION]... SCRIPT IMAGE...  boot it with the images as /dev/vda..., run SCRIPT (busybox sh)
  --copy FILE|COMMAND   under /payload (in PATH), with its shared libraries; repeatable
  --env NAME=VALUE      for the script; repeatable
  --snapshot            leave the images as they are
  --data FILE           one more drive, not touched by --snapshot; repeatable
  --block-size N        sector size of the drives
  --kill-after WHAT     SIGKILL to QEMU when a console line matches WHAT, or after WHAT seconds
  --kill-delay MS       ...and this much later
  --timeout S           give up (300)
  --out DIR             what the script leaves in /out comes back
  --log FILE            the console, also to FILE
  --net user            guest 10.0.2.15, host 10.0.2.2
  --mem MIB, --smp N    1024, 2
  --quiet, --verbose    no console; boot messages too
status: the script's; 0 killed as ordered; 123 no marker; 124 timeout; 125 usage; 126 the guest died";

/// Runs `cargo x kernel ARGUMENTS`.
pub fn main(arguments: &[String]) -> Result<ExitCode> {
    match arguments.first().map(String::as_str) {
        Some("setup") => {
            let deb = arguments
                .iter()
                .skip_while(|a| *a != "--deb")
                .nth(1)
                .map(Path::new);
            let kernel = setup::setup(deb, arguments.iter().any(|a| a == "--upgrade"))?;
            println!("kernel {} in {}", kernel.version, kernel.folder.display());
            Ok(ExitCode::SUCCESS)
        }
        Some("info") => info(),
        Some("run") => match parse(&arguments[1..]) {
            Ok(boot) => boot_once(&boot),
            Err(error) => {
                eprintln!("{error}\n{USAGE}");
                Ok(ExitCode::from(125))
            }
        },
        _ => {
            println!("{USAGE}");
            Ok(ExitCode::from(125))
        }
    }
}

fn info() -> Result<ExitCode> {
    let kernel = installed().ok_or("no kernel yet: run `cargo x kernel setup` first")?;
    println!(
        "kernel  {}\nfolder  {}\nmodules {}",
        kernel.version,
        kernel.folder.display(),
        kernel.modules().join(" ")
    );
    let finished = run(&setup::greeting())?;
    println!(
        "boots in {:.1} s; says: {}",
        finished.boot_time.as_secs_f32(),
        finished.ok()?.trim()
    );
    Ok(ExitCode::SUCCESS)
}

fn boot_once(boot: &Boot) -> Result<ExitCode> {
    let finished = run(boot)?;
    match finished.outcome {
        Outcome::Exited(_) => {}
        Outcome::Killed => eprintln!("killed as ordered"),
        Outcome::MarkerNotSeen(status) => {
            eprintln!("the script ended (status {status}) before the kill")
        }
        Outcome::TimedOut => eprintln!("timed out after {:?}", boot.timeout),
        Outcome::Died => eprintln!(
            "the guest died:\n{}",
            crate::process::last_lines(&finished.console, 12)
        ),
    }
    Ok(ExitCode::from(
        u8::try_from(finished.outcome.status()).unwrap_or(126),
    ))
}

fn number<T: FromStr>(text: &str) -> Result<T>
where
    T::Err: std::fmt::Display,
{
    text.parse().context(format!("{text} is no number"))
}

fn parse(arguments: &[String]) -> Result<Boot> {
    let mut boot = Boot {
        echo: true,
        ..Boot::default()
    };
    let mut rest = arguments.iter();
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(argument) = rest.next() {
        let mut value = || {
            rest.next()
                .cloned()
                .ok_or_else(|| format!("{argument} wants a value"))
        };
        match argument.as_str() {
            "--copy" => boot.copies.push(value()?),
            "--env" => {
                let pair = value()?;
                let (name, text) = pair.split_once('=').ok_or("--env wants NAME=VALUE")?;
                boot.env.push((name.into(), text.into()));
            }
            "--snapshot" => boot.snapshot = true,
            "--data" => boot.data.push(value()?.into()),
            "--block-size" => boot.block_size = Some(number(&value()?)?),
            "--kill-after" => boot.kill = Some(kill_when(&value()?)),
            "--kill-delay" => boot.kill_delay = Duration::from_millis(number(&value()?)?),
            "--timeout" => boot.timeout = Duration::from_secs(number(&value()?)?),
            "--out" => boot.out = Some(value()?.into()),
            "--log" => boot.log = Some(value()?.into()),
            "--net" => boot.net = value()? == "user",
            "--mem" => boot.memory_mib = number(&value()?)?,
            "--smp" => boot.processors = number(&value()?)?,
            "--quiet" => boot.echo = false,
            "--verbose" => boot.verbose = true,
            _ if argument.starts_with("--") => return Err(format!("unknown option {argument}")),
            _ => files.push(argument.into()),
        }
    }
    if files.is_empty() {
        return Err("a script is wanted".into());
    }
    let script = files.remove(0);
    boot.script =
        std::fs::read_to_string(&script).context(format!("cannot read {}", script.display()))?;
    boot.images = files;
    Ok(boot)
}

fn kill_when(text: &str) -> KillWhen {
    match text.parse::<f64>() {
        Ok(seconds) if seconds.is_finite() && seconds >= 0.0 => {
            KillWhen::After(Duration::from_secs_f64(seconds))
        }
        _ => KillWhen::Marker(text.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_time_and_anything_else_a_marker() {
        assert!(matches!(kill_when("2.5"), KillWhen::After(d) if d == Duration::from_millis(2500)));
        assert!(matches!(kill_when("^GO"), KillWhen::Marker(m) if m == "^GO"));
    }
}
