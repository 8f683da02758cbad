//! What happens, verb by verb, and what is to be seen after each.

use super::world::World;
use super::{ATTEMPTS, BUSY, DIRTYING, LABELS, MODES, PIECE, RENAMED, Report, Scale};
use crate::fio;
use crate::nbd::{Client, exports};
use crate::probe::Idler;
use crate::process::{Context, Result};
use std::path::Path;

/// All of it.
pub(super) fn round(program: &Path, folder: &Path, chance: (u64, Scale)) -> Result<Report> {
    let mut world = World::new(program, folder, chance)?;
    devices(&mut world)?;
    modes(&mut world)?;
    detaching(&mut world)?;
    sizes(&mut world)?;
    flash(&mut world)?;
    names(&mut world)?;
    idle_volume(&mut world)?;
    background(&mut world)?;
    together(&mut world)?;
    let mut world = restart(world)?;
    background(&mut world)?;
    finish(world)
}

/// A second device comes, and a device that is served already comes to the cache.
fn devices(world: &mut World) -> Result<()> {
    let scale = world.scale;
    let (beta, gamma, delta) = (world.path("beta"), world.path("gamma"), world.path("delta"));
    world.verb(&["attach", &beta])?;
    world.expect_state("beta", true)?;
    world.still("beta", scale.still(), scale.still_bytes())?;
    world.work("beta", "beta")?;
    world.expect_state("gamma", false)?;
    world.verb(&["attach", &gamma])?;
    world.expect_state("gamma", true)?;
    world.verb(&["attach", &delta])?;
    world.still("delta", scale.still(), scale.still_bytes())
}

fn modes(world: &mut World) -> Result<()> {
    for mode in MODES {
        world.set("alpha", "cache_mode", mode)?;
        world.expect("alpha", "mode", &mode.into())?;
    }
    for label in ["beta", "gamma", "delta"] {
        world.set(label, "cache_mode", "writeback")?;
    }
    Ok(())
}

/// A volume with dirty data leaves its cache, once not after all, and comes back.
fn detaching(world: &mut World) -> Result<()> {
    world.verb(&["set", "writeback_running=off"])?;
    world.bulk("gamma")?;
    std::thread::sleep(DIRTYING);
    world.step("detach gamma, cancelled", |world| {
        for _ in 0..ATTEMPTS {
            world.server()?.verb(&["detach", "gamma", "--no-wait"])?;
            if world
                .server()?
                .verb(&["detach", "gamma", "--cancel"])
                .is_ok()
            {
                return Ok(());
            }
            // It was too late: back, and again with something dirty.
            world.server()?.verb(&["detach", "gamma"]).ok();
            let gamma = world.path("gamma");
            world.server()?.verb(&["attach", &gamma])?;
            std::thread::sleep(DIRTYING);
        }
        Err("no detach could be cancelled".into())
    })?;
    world.expect_state("gamma", true)?;
    let dirty = world.volume("gamma")?["dirty_bytes"].as_u64();
    if dirty.is_none_or(|bytes| bytes == 0) {
        return Err("nothing is dirty for the detach to write back".into());
    }
    world.verb(&["detach", "gamma"])?;
    world.expect_state("gamma", false)?;
    let gamma = world.path("gamma");
    world.verb(&["attach", &gamma])?;
    world.expect_state("gamma", true)?;
    world.verb(&["set", "writeback_running=on"])
}

/// A backing file that is served becomes larger.
fn sizes(world: &mut World) -> Result<()> {
    let scale = world.scale;
    let was = world.volume("alpha")?["size_bytes"].as_u64().unwrap_or(0);
    world.step("volume resize alpha, its file is larger", |world| {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(world.path("alpha"));
        let grown = file.and_then(|file| file.set_len(scale.volume() + scale.grown()));
        grown.context("cannot make a file larger")?;
        world
            .server()?
            .verb(&["volume", "resize", "alpha"])
            .map(drop)
    })?;
    world.expect("alpha", "size_bytes", &(was + scale.grown()).into())?;
    // What is new reads as the file does, and takes data.
    let start = scale.volume();
    let mut client = Client::connect(&world.server()?.socket, "alpha")?;
    let bytes = client.read_at(start, PIECE as usize)?;
    client.disconnect();
    if bytes.iter().any(|byte| *byte != 0) {
        return Err("what has grown is not zeros".into());
    }
    world.still("alpha", start, scale.still_bytes())
}

/// A volume of the cache alone is made, used, resized, named and deleted.
fn flash(world: &mut World) -> Result<()> {
    let scale = world.scale;
    let size = scale.volume().to_string();
    let larger = (scale.volume() + scale.grown()).to_string();
    world.verb(&["volume", "create", &size, "--label", "scratch"])?;
    world.work("scratch", "scratch")?;
    world.verb(&["volume", "resize", "scratch", &larger])?;
    world.still("scratch", scale.volume(), scale.still_bytes())?;
    world.step("use of what is new of scratch", World::compare)?;
    world.verb(&["volume", "resize", "scratch", &size, "--shrink"])?;
    world.still.pop();
    world.verb(&["volume", "resize", "scratch", &larger])?;
    let mut client = Client::connect(&world.server()?.socket, "scratch")?;
    let bytes = client.read_at(scale.volume(), PIECE as usize)?;
    client.disconnect();
    if bytes.iter().any(|byte| *byte != 0) {
        return Err("a flash volume shows what lay behind its end".into());
    }
    world.rest("scratch")?;
    world.compare()?;
    let target = world.target("scratch", "scratch")?;
    fio::write_all(&target, &world.folder)?;
    fio::verify_all(&target, &world.folder)?;
    world.verb(&["volume", "delete", "scratch"])?;
    let names = exports(&world.server()?.socket)?;
    match names.iter().any(|name| name == "scratch") {
        true => Err("a deleted volume is exported".into()),
        false => Ok(()),
    }
}

fn names(world: &mut World) -> Result<()> {
    world.verb(&["volume", "label", "beta", "other"])?;
    Client::connect(&world.server()?.socket, "other")?.disconnect();
    if Client::connect(&world.server()?.socket, "beta").is_ok() {
        return Err("an old label is still exported".into());
    }
    world.verb(&["volume", "label", "other", "beta"])
}

/// A volume that nobody uses is not served for a while; what is dirty of it comes back with it.
fn idle_volume(world: &mut World) -> Result<()> {
    world.still("delta", 0, world.scale.still_bytes())?;
    world.verb(&["volume", "stop", "delta"])?;
    if world.volume("delta").is_ok() {
        return Err("a stopped volume is served".into());
    }
    let delta = world.path("delta");
    world.verb(&["attach", &delta])?;
    world.compare()
}

/// Several things at once, of a volume with dirty data.
fn together(world: &mut World) -> Result<()> {
    world.verb(&["set", "writeback_running=off"])?;
    world.bulk("beta")?;
    world.step("detach, attach beta during gc, drain", |world| {
        let (server, beta) = (world.server()?, world.path("beta"));
        server.verb(&["gc", "--no-wait"])?;
        server.verb(&["drain", "--no-wait"])?;
        server.verb(&["detach", "beta"])?;
        world.expect_state("beta", false)?;
        server.verb(&["attach", &beta])?;
        world.expect_state("beta", true)
    })?;
    world.verb(&["set", "writeback_running=on"])
}

fn background(world: &mut World) -> Result<()> {
    world.verb(&["set", "writeback_running=off"])?;
    BUSY.iter().try_for_each(|label| world.bulk(label))?;
    world.verb(&["gc"])?;
    world.verb(&["gc", "--pause"])?;
    world.verb(&["gc", "--resume"])?;
    world.verb(&["drain", "alpha"])?;
    world.verb(&["drain"])?;
    world.verb(&["set", "writeback_running=on"])?;
    world.step("drain, cancelled", |world| {
        world.server()?.verb(&["drain", "--no-wait"])?;
        world.server()?.verb(&["drain", "--cancel"]).map(drop)
    })
}

/// Everything is written once, the server stops, the devices get other names, and everything is there again.
fn restart(mut world: World) -> Result<World> {
    settle(&mut world)?;
    let before = world.identity()?;
    world.step("stop", World::stop)?;
    world.check_devices(&LABELS)?;
    for (from, to) in LABELS.iter().zip(RENAMED) {
        let [from, to] = [from, to].map(|name| world.folder.join(name));
        std::fs::rename(from, to).context("rename")?;
    }
    world.step("serve", |world| world.serve(&RENAMED))?;
    let after = world.identity()?;
    if before != after {
        return Err(format!("after a restart: {after:?}, before it: {before:?}"));
    }
    recall(&mut world)?;
    for label in BUSY {
        world.work(label, label)?;
    }
    Ok(world)
}

/// The end: everything is written once more, and read by the next server.
fn finish(mut world: World) -> Result<Report> {
    settle(&mut world)?;
    world.stop()?;
    world.check_devices(&RENAMED)?;
    world.serve(&RENAMED)?;
    recall(&mut world)?;
    world.stop()?;
    world.check_devices(&RENAMED)?;
    let idle = world.idler.take().map(Idler::end);
    world.report.idle = idle.unwrap_or_default();
    Ok(world.report)
}

/// Work ends, and fio writes everything once.
fn settle(world: &mut World) -> Result<()> {
    for label in BUSY {
        world.rest(label)?;
    }
    world.compare()?;
    for label in BUSY {
        fio::write_all(&world.target(label, label)?, &world.folder)?;
    }
    Ok(())
}

/// All of that is there.
fn recall(world: &mut World) -> Result<()> {
    world.compare()?;
    for label in BUSY {
        let target = world.target(label, label)?;
        fio::verify_all(&target, &world.folder).context(label)?;
        world.report.compared += target.bytes;
    }
    Ok(())
}
