//! Random 4k reads of a file at a depth, on both engines, every block checked: a sanity check, not a benchmark.
//!
//! `cargo run --release -p brigade-uring --example reads -- [FOLDER] [READS] [DEPTH] [uring|threads]`
#![forbid(unsafe_code)]

use brigade_env::{Device, Env, Listener, Segment, Stream, sync};
use brigade_uring::{Engine, HostEnv, HostOptions, OpenMode};
use std::path::{Path, PathBuf};
use std::rc::Rc;

const BLOCK_BYTES: usize = 4096;
const BLOCKS: u64 = 16384;

fn stamp(block: u64) -> u64 {
    block.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5bd1_e995
}

fn make_file(path: &Path) -> std::io::Result<()> {
    let mut content = vec![0; BLOCKS as usize * BLOCK_BYTES];
    for (block, bytes) in content.chunks_exact_mut(BLOCK_BYTES).enumerate() {
        bytes[..8].copy_from_slice(&stamp(block as u64).to_le_bytes());
        bytes[BLOCK_BYTES - 8..].copy_from_slice(&stamp(block as u64).to_le_bytes());
    }
    std::fs::write(path, content)
}

async fn read_some(env: HostEnv, device: Rc<impl Device>, reads: u64) {
    for _ in 0..reads {
        let block = env.random_u64() % BLOCKS;
        let buffer = device
            .read(block * BLOCK_BYTES as u64, env.buffers().get(BLOCK_BYTES))
            .await
            .expect("a read");
        assert_eq!(buffer[..8], stamp(block).to_le_bytes());
        assert_eq!(buffer[BLOCK_BYTES - 8..], stamp(block).to_le_bytes());
    }
}

fn spawn_joined(env: &HostEnv, task: impl Future<Output = ()> + 'static) -> sync::Promise<()> {
    let (keeper, promise) = sync::promise();
    env.spawn(async move {
        task.await;
        keeper.keep(());
    });
    promise
}

fn read_file(env: &HostEnv, path: &Path, reads: u64, depth: u64) -> std::io::Result<()> {
    let device = Rc::new(env.open_device(path, OpenMode::ReadOnly, true)?);
    let start = env.now();
    let readers = (0..depth).map(|_| read_some(env.clone(), device.clone(), reads / depth));
    let promises: Vec<_> = readers.map(|reader| spawn_joined(env, reader)).collect();
    env.block_on(sync::join_all(promises));
    let took = env.now() - start;
    let per_read = took.as_nanos() as u64 / reads.max(1);
    println!(
        "{}: {reads} reads at depth {depth} in {took:?}, {per_read} ns each",
        env.engine_name()
    );
    Ok(())
}

fn ping(env: &HostEnv, folder: &Path, rounds: u64) -> std::io::Result<()> {
    let path = folder.join("ping");
    let listener = env.listen_unix(&path)?;
    let client = env.connect_unix(&path)?;
    let server = env.block_on(listener.accept())?;
    let echo = env.clone();
    env.spawn(async move {
        loop {
            let (count, mut buffer) = server.receive(echo.buffers().get(BLOCK_BYTES)).await;
            match count {
                Ok(count) if count > 0 => buffer.set_range(0..count),
                _ => return,
            }
            if server.send(vec![Segment::Buffer(buffer)]).await.is_err() {
                return;
            }
        }
    });
    let start = env.now();
    env.block_on(async {
        for _ in 0..rounds {
            client
                .send(vec![Segment::Bytes(vec![1; 28])])
                .await
                .expect("a send");
            let (result, _) = client.receive_exact(env.buffers().get(28)).await;
            result.expect("an echo");
        }
    });
    let took = env.now() - start;
    println!(
        "{}: {rounds} echoes in {took:?}, {} ns each",
        env.engine_name(),
        took.as_nanos() as u64 / rounds.max(1)
    );
    Ok(())
}

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = PathBuf::from(arguments.first().map_or("/dev/shm", String::as_str));
    let number = |at: usize, default| {
        arguments
            .get(at)
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let (reads, depth): (u64, u64) = (number(1, 200_000), number(2, 32));
    let path = folder.join(format!("brigade-reads-{}", std::process::id()));
    make_file(&path)?;
    let wanted = arguments.get(3).map_or("", String::as_str);
    for (engine, name) in [(Engine::Uring, "uring"), (Engine::Threads, "threads")] {
        if !wanted.is_empty() && wanted != name {
            continue;
        }
        let env = HostEnv::new(HostOptions {
            engine,
            ..HostOptions::default()
        })?;
        read_file(&env, &path, reads, depth.max(1))?;
        ping(&env, &folder, reads / 16)?;
        env.shutdown();
    }
    std::fs::remove_file(&path)
}
