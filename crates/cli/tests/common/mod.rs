//! Running the `brigade` command and looking at what it did.
#![allow(dead_code, reason = "each test file uses a part of this")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A directory of a test's own, in which commands run.
pub struct Bench {
    pub dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Bench {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("run")).expect("room");
        Bench { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade"));
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .env("XDG_RUNTIME_DIR", self.path("run"));
        command.env_remove("NOTIFY_SOCKET");
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().expect("it starts"))
    }

    /// Runs what must work; gives its standard output.
    pub fn fine(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.status, 0, "{arguments:?}: {}", ran.stderr);
        ran.stdout
    }

    /// Runs what must be refused in one line; gives that line.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.status, 1, "{arguments:?}: {}", ran.stderr);
        let lines: Vec<&str> = ran.stderr.lines().collect();
        assert!(
            lines.len() == 1 && lines[0].starts_with("brigade: "),
            "{arguments:?}: {}",
            ran.stderr
        );
        assert_eq!(ran.stdout, "", "{arguments:?}");
        lines[0].to_owned()
    }

    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.fine(arguments)).expect("JSON")
    }

    pub fn zeros(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.path(name);
        std::fs::File::create(&path)
            .and_then(|file| file.set_len(bytes))
            .expect("room");
        path
    }

    /// A formatted backing device.
    pub fn backing(&self, name: &str) {
        self.fine(&["format", "--backing", name, "--create", "16M"]);
    }

    /// A cache device `c` of 64 MiB and a backing device `b` of its set.
    pub fn set(&self, more: &[&str]) {
        let all = "format --cache c --backing b --create 64M --bucket-size 64k";
        self.fine(
            &all.split(' ')
                .chain(more.iter().copied())
                .collect::<Vec<_>>(),
        );
    }

    /// Serves that set at `unix:nbd`.
    pub fn serve_set(&self, more: &[&str]) -> Served {
        let all = "--cache c --backing b --nbd unix:nbd --state-dir state";
        self.serve(
            &all.split(' ')
                .chain(more.iter().copied())
                .collect::<Vec<_>>(),
        )
    }

    /// Starts a server and waits for its `ready` line.
    pub fn serve(&self, arguments: &[&str]) -> Served {
        let mut all = vec!["serve"];
        all.extend(arguments);
        let mut command = self.command(&all);
        Served::start(&mut command)
    }
}

/// What a command left.
pub struct Ran {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Ran {
        Ran {
            status: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A running server; killed if the test forgets it.
pub struct Served {
    child: Child,
    pub ready: String,
}

impl Served {
    pub fn start(command: &mut Command) -> Served {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut ready = String::new();
        let stdout = child.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut ready).expect("text");
        if !ready.starts_with("ready") {
            let mut stderr = String::new();
            let _ = child
                .stderr
                .as_mut()
                .expect("piped")
                .read_to_string(&mut stderr);
            panic!("not ready: {ready:?} {stderr}");
        }
        Served { child, ready }
    }

    /// Open descriptors of the server.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))
            .expect("it runs")
            .count()
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill")
            .args(["-s", name, &id])
            .status()
            .expect("kill is there");
        assert!(status.success());
    }

    /// Waits for its end; gives status, the rest of its standard output, and its standard error.
    pub fn end(mut self) -> Ran {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.child.try_wait().expect("ours").is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let _ = self
            .child
            .stdout
            .take()
            .expect("piped")
            .read_to_string(&mut stdout);
        let _ = self
            .child
            .stderr
            .take()
            .expect("piped")
            .read_to_string(&mut stderr);
        Ran {
            status: self.child.wait().expect("ours").code().unwrap_or(-1),
            stdout,
            stderr,
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("readable")
}
