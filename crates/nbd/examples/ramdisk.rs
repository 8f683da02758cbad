//! Serves memory, or a file as it is, over NBD: what the protocol and the engine below it cost without a cache.
//!
//! ```text
//! cargo run --release -p brigade-nbd --example ramdisk -- unix:/tmp/ram.sock 1024        # MiB of memory
//! cargo run --release -p brigade-nbd --example ramdisk -- tcp:127.0.0.1:10809 disk.img   # a file
//! ```

#[path = "support/disks.rs"]
mod disks;

use brigade_env::{BlockDevice, Env, Listener};
use brigade_nbd::{ServerOptions, Shutdown, serve};
use brigade_uring::{DeviceOptions, HostEnv, HostOptions};
use disks::{One, RamDisk, Through};
use std::io;
use std::path::Path;
use std::rc::Rc;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, what] = &arguments[..] else {
        eprintln!("usage: ramdisk unix:PATH|tcp:HOST:PORT MEBIBYTES|FILE");
        std::process::exit(2);
    };
    let env = HostEnv::new(HostOptions::default())?;
    match what.parse::<u64>() {
        Ok(mebibytes) => run(
            &env,
            address,
            RamDisk::new(mebibytes << 20, env.buffers().clone()),
        ),
        Err(_) => {
            let device = env.open_device_with(Path::new(what), &DeviceOptions::default())?;
            run(&env, address, Through::new(device, env.buffers().clone()))
        }
    }
}

fn run(env: &HostEnv, address: &str, disk: impl BlockDevice) -> io::Result<()> {
    let listener = match address.split_once(':') {
        Some(("unix", path)) => env.listen_unix(Path::new(path))?,
        Some(("tcp", address)) => env.listen_tcp(address)?,
        _ => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the address is unix:PATH or tcp:HOST:PORT",
            ));
        }
    };
    println!("ready {} engine={}", listener.address(), env.engine_name());
    let exports = Rc::new(One(Rc::new(disk)));
    env.block_on(serve(
        env.clone(),
        listener,
        exports,
        ServerOptions::default(),
        Shutdown::new(),
    ));
    Ok(())
}
