//! The program under judgement: building, starting, stopping and killing `brigade`.

use crate::process::{Context, Result, find_program, last_lines, output, project_root, run};
use serde_json::Value;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const READY_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(120);
const DUMP_BYTES: u64 = 1 << 20;

/// Settings with which most writes become dirty. With the defaults nearly all go to both devices in a cache of which much is in use, so that
/// little is there to be drained or moved.
pub const DIRTIEST: [(&str, &str); 2] =
    [("cutoff_writeback_sync", "90"), ("cutoff_writeback", "70")];

/// Builds `brigade` in release mode (or takes the one named by `BRIGADE_BIN`) and returns its path.
pub fn brigade() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("BRIGADE_BIN") {
        return Ok(path.into());
    }
    run(cargo().args(["build", "--quiet", "--release", "-p", "brigade-cli"]))?;
    let path = target_dir()?.join("release/brigade");
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{} was not built", path.display()))
    }
}

/// Cargo, in the project's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(project_root());
    command
}

/// Cargo's target folder: this program lies in `<target>/<profile>/`.
pub fn target_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program")?;
    own.ancestors()
        .find(|path| path.join("CACHEDIR.TAG").exists())
        .map(Path::to_path_buf)
        .ok_or_else(|| "cannot find the target folder".into())
}

/// How to serve.
#[derive(Clone, Debug, Default)]
pub struct Serve {
    /// Cache devices.
    pub caches: Vec<PathBuf>,
    /// Backing devices.
    pub backings: Vec<PathBuf>,
    /// Cache mode, if it is to be set.
    pub mode: Option<&'static str>,
    /// Open for reading only.
    pub read_only: bool,
}

/// A running server.
pub struct Server {
    child: Child,
    /// Its NBD socket.
    pub socket: PathBuf,
    /// Its control socket.
    pub control: PathBuf,
    /// The line it said when it was ready.
    pub ready: String,
    program: PathBuf,
    errors: PathBuf,
}

/// What came of starting one.
pub enum Started {
    /// It serves.
    Ready(Server),
    /// It ended instead.
    Refused {
        /// Exit status.
        status: Option<i32>,
        /// Lines of standard error.
        lines: Vec<String>,
    },
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lines_of(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes)
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(str::to_string)
        .collect()
}

impl Serve {
    fn arguments(&self) -> Vec<OsString> {
        let mut list: Vec<OsString> = vec!["serve".into()];
        let devices = self.caches.iter().map(|path| ("--cache", path));
        for (flag, path) in devices.chain(self.backings.iter().map(|path| ("--backing", path))) {
            list.extend([flag.into(), path.into()]);
        }
        if let Some(mode) = self.mode {
            list.extend(["--mode".into(), mode.into()]);
        }
        if self.read_only {
            list.push("--read-only".into());
        }
        list
    }
}

/// Starts `brigade serve`; sockets and logs go to `scratch`.
pub fn start(program: &Path, serve: &Serve, scratch: &Path) -> Result<Started> {
    start_with(program, serve, &Extra::default(), scratch)
}

/// What is out of the ordinary about a start.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// More options of `brigade serve`.
    pub options: Vec<String>,
    /// A command line to run it under, which must become the server itself.
    pub under: Vec<String>,
}

/// Starts `brigade serve` in a special way.
pub fn start_with(program: &Path, serve: &Serve, extra: &Extra, scratch: &Path) -> Result<Started> {
    let at = |name: &str| scratch.join(name);
    let (socket, control, errors) = (at("nbd"), at("control"), at("stderr"));
    let _ = fs::remove_file(&socket);
    let log = fs::File::create(&errors).context("cannot make a log file")?;
    let mut line: Vec<OsString> = extra.under.iter().map(OsString::from).collect();
    line.push(program.into());
    let mut child = Command::new(&line[0])
        .args(&line[1..])
        .args(serve.arguments())
        .args(&extra.options)
        .arg("--nbd")
        .arg(format!("unix:{}", socket.display()))
        .arg("--control")
        .arg(&control)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context(format!("cannot start {}", program.display()))?;
    let stdout = child.stdout.take().ok_or("no standard output")?;
    let ready = String::new();
    let mut server = Server {
        child,
        socket,
        control,
        ready,
        program: program.to_path_buf(),
        errors,
    };
    match await_ready(stdout) {
        Some(line) => {
            server.ready = line;
            Ok(Started::Ready(server))
        }
        None => server.gone(),
    }
}

/// The line that says it is ready; none when it ended or said nothing for too long.
fn await_ready(stdout: ChildStdout) -> Option<String> {
    let (sender, lines) = channel();
    // The thread reads on until the end, so that the server never waits for a full pipe.
    std::thread::spawn(move || {
        for line in BufReader::new(stdout)
            .lines()
            .map_while(std::result::Result::ok)
        {
            let _ = sender.send(line);
        }
    });
    loop {
        match lines.recv_timeout(READY_TIMEOUT) {
            Ok(line) if line.starts_with("ready") => return Some(line),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

/// Starts a server that has to serve.
pub fn start_ready(program: &Path, serve: &Serve, scratch: &Path) -> Result<Server> {
    must_serve(start(program, serve, scratch)?)
}

/// The server, or an error if there is none.
pub fn must_serve(started: Started) -> Result<Server> {
    match started {
        Started::Ready(server) => Ok(server),
        Started::Refused { status, lines } => Err(format!(
            "brigade serve ended with status {status:?}: {}",
            last_lines(&lines.join("\n"), 5)
        )),
    }
}

impl Server {
    fn gone(mut self) -> Result<Started> {
        let Some(status) = self.wait(Duration::from_secs(5))? else {
            return Err("brigade serve is neither ready nor gone after a minute".into());
        };
        Ok(Started::Refused {
            status,
            lines: lines_of(&self.errors),
        })
    }

    fn wait(&mut self, patience: Duration) -> Result<Option<Option<i32>>> {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for brigade")? {
                return Ok(Some(status.code()));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The address of an export for other clients.
    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    /// What `brigade status --json` says.
    pub fn status(&self) -> Result<Value> {
        let mut status = Command::new(&self.program);
        status.args(["status", "--json", "--control"]);
        let text = output(status.arg(&self.control))?;
        serde_json::from_str(&text).context("brigade status --json")
    }

    /// Changes settings by `brigade set`, and gives what it says.
    pub fn set(&self, settings: &[(&str, &str)]) -> Result<Value> {
        let mut set = Command::new(&self.program);
        set.args(["set", "--json", "--control"]).arg(&self.control);
        set.args(settings.iter().map(|(key, value)| format!("{key}={value}")));
        serde_json::from_str(&output(&mut set)?).context("brigade set --json")
    }

    /// Runs a verb of `brigade` on this server and gives what it says.
    pub fn verb(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        output(command.args(words).arg("--control").arg(&self.control))
    }

    /// SIGTERM, and waits for the clean end.
    pub fn stop(self) -> Result<()> {
        output(Command::new("sh").args(["-c", &format!("kill -TERM {}", self.pid())]))?;
        self.ended()
    }

    /// `brigade stop`, and waits for the clean end.
    pub fn stop_by_verb(self) -> Result<()> {
        self.verb(&["stop"])?;
        self.ended()
    }

    fn ended(mut self) -> Result<()> {
        match self.wait(STOP_TIMEOUT)? {
            Some(Some(0)) => Ok(()),
            Some(status) => {
                let said = last_lines(&lines_of(&self.errors).join("\n"), 5);
                Err(format!(
                    "brigade serve ended with status {status:?}: {said}"
                ))
            }
            None => Err("brigade serve does not stop on SIGTERM".into()),
        }
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("cannot kill brigade")?;
        self.child
            .wait()
            .context("cannot wait for brigade")
            .map(drop)
    }
}

/// Content of an export, read by nbdcopy if it is there and by our own client otherwise.
pub fn dump_export(server: &Server, export: &str, target: &Path) -> Result<()> {
    if find_program("nbdcopy").is_some() {
        let _ = fs::remove_file(target);
        let mut copy = Command::new("nbdcopy");
        return output(copy.arg(server.uri(export)).arg(target)).map(drop);
    }
    let mut client = crate::nbd::Client::connect(&server.socket, export)?;
    let mut file = fs::File::create(target).context("cannot make a dump")?;
    let mut at = 0;
    while at < client.size {
        let length = (client.size - at).min(DUMP_BYTES) as usize;
        file.write_all(&client.read_at(at, length)?)
            .context("cannot write a dump")?;
        at += length as u64;
    }
    client.disconnect();
    Ok(())
}

/// Runs `brigade format` on new sparse files of these sizes.
pub fn format(
    program: &Path,
    cache: (&Path, u64),
    backing: (&Path, u64),
    options: &[&str],
) -> Result<()> {
    for (path, size) in [cache, backing] {
        fs::File::create(path)
            .and_then(|file| file.set_len(size))
            .context("cannot make an image")?;
    }
    output(
        Command::new(program)
            .arg("format")
            .arg("--cache")
            .arg(cache.0)
            .arg("--backing")
            .arg(backing.0)
            .args(options),
    )
    .map(drop)
}
