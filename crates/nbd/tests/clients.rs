//! Other people's clients against the server on a real host: libnbd's tools, qemu's and fio.
//!
//! A tool that is not installed makes its test print SKIPPED and the reason.

#[path = "../examples/support/disks.rs"]
mod disks;

use brigade_env::{BlockDevice, Env};
use brigade_nbd::load::{self, LoadOptions};
use brigade_nbd::{Client, ClientOptions, ServerOptions, Shutdown, serve};
use brigade_uring::{DeviceOptions, Engine, HostEnv, HostOptions};
use disks::{One, RamDisk, Through};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

const DISK_BYTES: u64 = 64 << 20;

/// A server on a thread of its own; it ends with this value.
struct Server {
    folder: tempfile::TempDir,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start<D: BlockDevice>(
        engine: Engine,
        make: impl FnOnce(&HostEnv, &Path) -> D + Send + 'static,
    ) -> Server {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_owned();
        let (stop, stopped) = mpsc::channel();
        let (started, ready) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let env = HostEnv::new(HostOptions {
                engine,
                ..HostOptions::default()
            })
            .expect("a world");
            let listener = env.listen_unix(&path.join("socket")).expect("a socket");
            let exports = Rc::new(One(Rc::new(make(&env, &path))));
            let shutdown = Shutdown::new();
            env.spawn(serve(
                env.clone(),
                listener,
                exports,
                ServerOptions::default(),
                shutdown.clone(),
            ));
            started.send(()).expect("the test waits");
            let world = env.clone();
            env.block_on(async move {
                while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
                    world.sleep(Duration::from_millis(20)).await;
                }
                shutdown.trigger();
                shutdown.wait().await;
            });
            env.shutdown();
        });
        ready.recv().expect("the server starts");
        Server {
            folder,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn ram() -> Server {
        Server::start(Engine::Auto, |env, _| {
            RamDisk::new(DISK_BYTES, env.buffers().clone())
        })
    }

    fn file() -> Server {
        Server::start(Engine::Auto, |env, folder| {
            let path = folder.join("disk");
            std::fs::File::create(&path)
                .and_then(|file| file.set_len(DISK_BYTES))
                .expect("a file");
            let device = env
                .open_device_with(&path, &DeviceOptions::default())
                .expect("a device");
            Through::new(device, env.buffers().clone())
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.path("socket").display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the server panicked");
        }
    }
}

fn has(tool: &str) -> bool {
    let found = Command::new(tool)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok();
    if !found {
        println!("SKIPPED: {tool} is not installed");
    }
    found
}

/// Runs a tool to its good end, within a minute, and gives what it printed.
fn run(tool: &str, arguments: &[&str]) -> String {
    let output = Command::new("timeout")
        .arg("60")
        .arg(tool)
        .args(arguments)
        .output()
        .expect("the tool starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{tool} {arguments:?}: {:?}\n{text}{errors}",
        output.status
    );
    text
}

/// An image with data, holes and an odd pattern.
fn image(path: &Path) {
    let mut bytes = vec![0u8; DISK_BYTES as usize];
    for (nr, byte) in bytes.iter_mut().enumerate() {
        if (nr >> 20) % 3 != 1 {
            *byte = (nr as u64)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .to_be_bytes()[0];
        }
    }
    std::fs::write(path, bytes).expect("an image");
}

fn assert_same(a: &Path, b: &Path) {
    assert!(
        std::fs::read(a).expect("a") == std::fs::read(b).expect("b"),
        "{} and {} differ",
        a.display(),
        b.display()
    );
}

#[test]
fn nbdinfo_reads_every_fact() {
    if !has("nbdinfo") {
        return;
    }
    let server = Server::ram();
    let facts = run("nbdinfo", &[&server.uri()]);
    for fact in [
        "structured packets",
        "export-size: 67108864",
        "base:allocation",
        "brigade:state",
        "can_multi_conn: true",
        "can_fast_zero: true",
        "can_cache: true",
        "can_df: true",
        "block_size_minimum: 512",
        "is_read_only: false",
    ] {
        assert!(facts.contains(fact), "{fact} is missing:\n{facts}");
    }
    let map = run("nbdinfo", &["--map", &server.uri()]);
    assert_eq!(
        map.split_whitespace().collect::<Vec<_>>(),
        ["0", "67108864", "3", "hole,zero"]
    );
    assert!(run("nbdinfo", &["--list", &server.uri()]).contains("volume0"));
}

#[test]
fn nbdcopy_brings_an_image_there_and_back_over_several_connections() {
    if !has("nbdcopy") {
        return;
    }
    for server in [Server::ram(), Server::file()] {
        let (source, target) = (server.path("source"), server.path("target"));
        image(&source);
        let (from, to) = (source.display().to_string(), target.display().to_string());
        run(
            "nbdcopy",
            &["--connections=4", "--flush", &from, &server.uri()],
        );
        run("nbdcopy", &["--connections=4", &server.uri(), &to]);
        assert_same(&source, &target);
    }
}

#[test]
fn qemu_converts_there_and_back_and_finds_the_holes() {
    if !has("qemu-img") {
        return;
    }
    let server = Server::ram();
    let (source, target) = (server.path("source"), server.path("target"));
    image(&source);
    let (from, to, uri) = (
        source.display().to_string(),
        target.display().to_string(),
        server.uri(),
    );
    run(
        "qemu-img",
        &["convert", "-n", "-W", "-f", "raw", "-O", "raw", &from, &uri],
    );
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", &from, &uri],
    );
    assert!(
        run("qemu-img", &["map", "-f", "raw", "--output=json", &uri]).contains("\"zero\": true")
    );
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "raw", &uri, &to],
    );
    assert_same(&source, &target);
    assert!(run("qemu-img", &["info", "-f", "raw", &uri]).contains("67108864"));
    for flags in [
        &["-c", "2000", "-d", "32"][..],
        &["-w", "-c", "2000", "-d", "32", "--flush-interval=100"],
    ] {
        run(
            "qemu-img",
            &[&["bench", "-f", "raw"], flags, &[&uri]].concat(),
        );
    }
}

#[test]
fn qemu_io_verifies_writes_zeroes_and_discards() {
    if !has("qemu-io") {
        return;
    }
    for server in [Server::ram(), Server::file()] {
        let mut arguments = vec!["-f", "raw"];
        for command in [
            "write -P 7 0 1M",
            "read -P 7 0 1M",
            "write -f -P 9 4k 512",
            "read -P 9 4k 512",
            "write -z 64k 128k",
            "read -P 0 64k 128k",
            "write -zu 256k 64k",
            "read -P 0 256k 64k",
            "discard 512k 64k",
            "read -P 7 576k 64k",
            "write -P 3 100 1000",
            "read -P 3 100 1000",
            "read -P 7 0 100",
            "flush",
        ] {
            arguments.extend(["-c", command]);
        }
        let uri = server.uri();
        arguments.push(&uri);
        let told = run("qemu-io", &arguments);
        assert!(
            !told.contains("failed") && !told.contains("error"),
            "{told}"
        );
    }
}

#[test]
fn fio_verifies_random_writes() {
    if !has("fio") {
        return;
    }
    if !run("fio", &["--enghelp"]).contains("nbd") {
        println!("SKIPPED: this fio has no nbd engine");
        return;
    }
    for server in [Server::ram(), Server::file()] {
        let uri = format!("--uri={}", server.uri());
        let arguments = "--name=verify --ioengine=nbd --rw=randrw --bsrange=512-64k --iodepth=32 --size=16M \
                         --verify=crc32c --verify_state_save=0 --verify_fatal=1 --fsync=64 --randseed=7";
        let mut arguments: Vec<_> = arguments.split_whitespace().collect();
        arguments.push(&uri);
        run("fio", &arguments);
    }
}

#[test]
fn our_own_client_and_load_work_with_every_engine() {
    for engine in [Engine::Auto, Engine::Threads] {
        let server = Server::start(engine, |env, _| {
            RamDisk::new(DISK_BYTES, env.buffers().clone())
        });
        let env = HostEnv::new(HostOptions {
            engine,
            ..HostOptions::default()
        })
        .expect("a world");
        let path = server.path("socket");
        let world = env.clone();
        let report = env.block_on(async move {
            let stream = world.connect_unix(&path).expect("a stream");
            let client = Client::connect(&world, stream, "", ClientOptions::default())
                .await
                .expect("open");
            let mut buffer = world.buffers().get(1 << 20);
            buffer.fill(0x5a);
            client.write(1 << 20, buffer, true).await.expect("write");
            assert!(
                client
                    .read(1 << 20, 1 << 20)
                    .await
                    .expect("read")
                    .iter()
                    .all(|&byte| byte == 0x5a)
            );
            client.disconnect().await;
            let stream = world.connect_unix(&path).expect("a stream");
            let duration = Duration::from_millis(200);
            let options = LoadOptions {
                read_percent: 50,
                duration,
                ..LoadOptions::default()
            };
            load::run(&world, stream, "", options).await.expect("load")
        });
        println!("{} engine: {:.0} IOPS", env.engine_name(), report.iops());
        assert!(report.requests > 0 && report.reads > 0 && report.reads < report.requests);
        env.shutdown();
    }
}
