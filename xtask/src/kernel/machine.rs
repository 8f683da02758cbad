//! One run of QEMU: start, follow the console, pull the plug when told, say how it ended.

use super::initramfs;
use super::setup::{Installed, installed};
use super::{Boot, Finished, KillWhen, Outcome};
use crate::process::{Context, Result, last_lines};
use regex_lite::Regex;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const BOOT_ATTEMPTS: u32 = 3;
const DRIVES_PER_SLOT: usize = 8;
const FIRST_SLOT: usize = 4;
const OUT_SIZE: u64 = 16 << 30;
const POWER_OFF_TIMEOUT: Duration = Duration::from_secs(120);

/// Boots the kernel and runs the script; the error is for what never got that far.
pub fn run(boot: &Boot) -> Result<Finished> {
    let kernel = installed().ok_or("no kernel yet: run `cargo x kernel setup` first")?;
    let scratch = tempfile::tempdir().context("cannot make a temporary folder")?;
    initramfs::build(&kernel, boot, &scratch.path().join("initramfs"))?;
    let arguments = arguments(&kernel, boot, scratch.path())?;
    let marker = match &boot.kill {
        Some(KillWhen::Marker(text)) => {
            Some(Regex::new(text).context("the kill marker is no regular expression")?)
        }
        _ => None,
    };
    let mut log = match &boot.log {
        Some(path) => {
            Some(fs::File::create(path).context(format!("cannot write {}", path.display()))?)
        }
        None => None,
    };
    let deadline = Instant::now() + boot.timeout;
    for attempt in 1..=BOOT_ATTEMPTS {
        let mut session = Session::start(
            &arguments,
            scratch.path(),
            boot,
            marker.as_ref(),
            log.as_mut(),
        )?;
        let outcome = session.follow(deadline)?;
        // An emulated machine now and then dies where its kernel patches code that another processor
        // runs. Before the script began that has touched nothing.
        if outcome == Outcome::Died && session.began.is_none() && attempt < BOOT_ATTEMPTS {
            eprintln!(
                "the guest died while booting (attempt {attempt}):\n{}",
                last_lines(&session.boot_lines, 3)
            );
            continue;
        }
        let boot_time = session
            .began
            .map_or(Duration::ZERO, |at| at - session.started);
        let mut console = std::mem::take(&mut session.console);
        if session.began.is_none() {
            console = format!("{}{}", session.boot_lines, session.errors(scratch.path()));
        }
        drop(session);
        if let (Some(out), Outcome::Exited(_) | Outcome::MarkerNotSeen(_)) = (&boot.out, outcome) {
            unpack_out(&scratch.path().join("out"), out)?;
        }
        return Ok(Finished {
            outcome,
            console,
            boot_time,
        });
    }
    Err("the guest died while booting, again and again".into())
}

fn unpack_out(tape: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).context("cannot make the output folder")?;
    let tape = fs::File::open(tape).context("cannot read the guest's output")?;
    tar::Archive::new(std::io::BufReader::new(tape))
        .unpack(target)
        .context("cannot unpack the guest's output")
}

const FIXED_ARGUMENTS: &str = "-accel tcg,thread=multi -cpu max -display none -monitor none -serial stdio -no-reboot -nodefaults";

fn arguments(kernel: &Installed, boot: &Boot, scratch: &Path) -> Result<Vec<String>> {
    let mut append = String::from("console=ttyS0 panic=-1 random.trust_cpu=on mitigations=off");
    if !boot.verbose {
        append.push_str(" quiet");
    }
    if boot.ends_at_oops {
        append.push_str(" oops=panic");
    }
    if boot.net {
        append.push_str(" brigade.net=user");
    }
    let mut list: Vec<String> = FIXED_ARGUMENTS.split(' ').map(String::from).collect();
    let mut add = |option: &str, value: String| list.extend([option.to_string(), value]);
    add("-smp", boot.processors.to_string());
    add("-m", boot.memory_mib.to_string());
    add("-kernel", kernel.vmlinuz().display().to_string());
    add("-initrd", scratch.join("initramfs").display().to_string());
    add("-append", append);
    if boot.net {
        add("-netdev", "user,id=n0".into());
        add("-device", "virtio-net-pci,netdev=n0,addr=0x1d".into());
    } else {
        add("-nic", "none".into());
    }
    for (i, image) in boot.images.iter().chain(&boot.data).enumerate() {
        list.extend(drive(boot, i, image)?);
    }
    if boot.out.is_some() {
        list.extend(tape(&scratch.join("out"))?);
    }
    Ok(list)
}

/// One image, or what an NBD server exports at a socket, as a drive of the guest.
fn drive(boot: &Boot, index: usize, image: &Path) -> Result<[String; 4]> {
    let name = image.display().to_string();
    if !image.exists() || name.contains(',') {
        return Err(format!("no such image, or a comma in its name: {name}"));
    }
    let is_socket = image.metadata().is_ok_and(|it| it.file_type().is_socket());
    let name = match is_socket {
        true => format!("nbd+unix:///?socket={name}"),
        false => name,
    };
    let is_snapshot = boot.snapshot && index < boot.images.len();
    let snapshot = if is_snapshot { ",snapshot=on" } else { "" };
    let sectors = boot.block_size.map_or(String::new(), |size| {
        format!(",logical_block_size={size},physical_block_size={size}")
    });
    // Eight drives to a slot, so that there is room for many; they come up in this order.
    let (slot, function) = (
        FIRST_SLOT + index / DRIVES_PER_SLOT,
        index % DRIVES_PER_SLOT,
    );
    let place = format!("addr=0x{slot:x}.0x{function:x},multifunction=on");
    Ok([
        "-drive".into(),
        format!("file={name},if=none,id=d{index},format=raw,cache=writeback{snapshot}"),
        "-device".into(),
        format!("virtio-blk-pci,drive=d{index},serial=image{index},{place}{sectors}"),
    ])
}

/// The drive to which the guest writes its `/out` as a tar archive.
fn tape(path: &Path) -> Result<[String; 4]> {
    fs::File::create(path)
        .and_then(|file| file.set_len(OUT_SIZE))
        .context("cannot make the output drive")?;
    Ok([
        "-drive".into(),
        format!(
            "file={},if=none,id=out,format=raw,cache=unsafe",
            path.display()
        ),
        "-device".into(),
        "virtio-blk-pci,drive=out,serial=brigade-out,addr=0x1e".into(),
    ])
}

/// QEMU while it runs; dropping it kills it.
struct Session<'a> {
    child: Child,
    lines: Receiver<String>,
    boot: &'a Boot,
    marker: Option<&'a Regex>,
    log: Option<&'a mut fs::File>,
    started: Instant,
    began: Option<Instant>,
    kill_at: Option<Instant>,
    status: Option<i32>,
    boot_lines: String,
    console: String,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl<'a> Session<'a> {
    fn start(
        arguments: &[String],
        scratch: &Path,
        boot: &'a Boot,
        marker: Option<&'a Regex>,
        log: Option<&'a mut fs::File>,
    ) -> Result<Self> {
        let errors =
            fs::File::create(scratch.join("errors")).context("cannot make a temporary file")?;
        let mut child = Command::new("qemu-system-x86_64")
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .context("cannot start qemu-system-x86_64")?;
        let stdout = child.stdout.take().ok_or("no console")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || split_lines(stdout, |line| sender.send(line).is_ok()));
        Ok(Session {
            child,
            lines,
            boot,
            marker,
            log,
            started: Instant::now(),
            began: None,
            kill_at: None,
            status: None,
            boot_lines: String::new(),
            console: String::new(),
        })
    }

    fn errors(&self, scratch: &Path) -> String {
        fs::read_to_string(scratch.join("errors")).unwrap_or_default()
    }

    /// Follows the console until the guest is gone, one way or another.
    fn follow(&mut self, deadline: Instant) -> Result<Outcome> {
        loop {
            let now = Instant::now();
            if self.kill_at.is_some_and(|at| now >= at) {
                self.pull_the_plug()?;
                return Ok(Outcome::Killed);
            }
            if now >= deadline {
                self.pull_the_plug()?;
                return Ok(Outcome::TimedOut);
            }
            let until = self.kill_at.map_or(deadline, |at| at.min(deadline));
            match self
                .lines
                .recv_timeout((until - now).min(Duration::from_millis(500)))
            {
                Ok(line) => self.line(&line),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(Outcome::Died),
            }
            if let Some(status) = self.status {
                self.power_off();
                return Ok(if self.boot.kill.is_some() {
                    Outcome::MarkerNotSeen(status)
                } else {
                    Outcome::Exited(status)
                });
            }
        }
    }

    fn line(&mut self, line: &str) {
        if let Some((_, rest)) = line.split_once("@@vm exit=") {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            self.status = digits.parse().ok();
        } else if line.contains("@@vm begin") {
            self.began = Some(Instant::now());
            if let Some(KillWhen::After(delay)) = self.boot.kill {
                self.kill_at = Some(Instant::now() + delay);
            }
        } else if self.began.is_none() {
            self.boot_lines.push_str(line);
            self.boot_lines.push('\n');
            if self.boot.verbose {
                println!("{line}");
            }
        } else {
            self.script_line(line);
        }
    }

    fn script_line(&mut self, line: &str) {
        if self.kill_at.is_none() && self.marker.is_some_and(|marker| marker.is_match(line)) {
            self.kill_at = Some(Instant::now() + self.boot.kill_delay);
        }
        self.console.push_str(line);
        self.console.push('\n');
        if self.boot.echo {
            println!("{line}");
        }
        if let Some(log) = &mut self.log {
            let _ = writeln!(log, "{line}");
        }
    }

    fn pull_the_plug(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill QEMU")?;
        self.child.wait().context("cannot wait for QEMU")?;
        // What the guest had said before it died counts.
        while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(200)) {
            if self.began.is_some() && !line.contains("@@vm") {
                self.script_line(&line);
            }
        }
        Ok(())
    }

    /// Lets the guest power off by itself; the drop kills one that will not.
    fn power_off(&mut self) {
        let end = Instant::now() + POWER_OFF_TIMEOUT;
        while Instant::now() < end {
            match self.lines.recv_timeout(Duration::from_millis(500)) {
                Err(RecvTimeoutError::Disconnected) => break,
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

fn split_lines(mut source: impl Read, mut give: impl FnMut(String) -> bool) {
    let (mut line, mut chunk) = (Vec::new(), [0u8; 4096]);
    while let Ok(count) = source.read(&mut chunk) {
        if count == 0 {
            break;
        }
        for &byte in &chunk[..count] {
            if byte != b'\n' {
                line.push(byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line)
                .trim_end_matches('\r')
                .to_string();
            line.clear();
            if !give(text) {
                return;
            }
        }
    }
    if !line.is_empty() {
        give(String::from_utf8_lossy(&line).into_owned());
    }
}
