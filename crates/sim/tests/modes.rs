//! The mode of a volume changes while it is served.

use brigade_env::{BlockDevice, StreamId};
use brigade_format::CacheMode;
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small;
use std::time::Duration;

#[test]
fn a_new_mode_holds_for_the_next_write_and_after_a_restart() {
    let (cache, backing) = small::disks(520, 16, 8, 4096);
    let store = Store::default();
    let world = World::new(Chance::new(1), Duration::from_secs(1));
    let options = small::options(false);
    let server = small::open(&world, &cache, &backing, &store, options.clone());
    let volume = server.volumes()[0].clone();
    let write = |offset| {
        let volume = volume.clone();
        let written = async move {
            let buffer = volume.buffer(4096);
            volume.write(StreamId(1), offset, buffer, false).await
        };
        world
            .run(written, || false)
            .expect("ends")
            .expect("written");
    };
    write(0);
    assert_eq!(volume.dirty_bytes(), 4096);
    let changed = world.run(volume.set_mode(CacheMode::Writethrough), || false);
    changed.expect("ends").expect("changed");
    assert_eq!(
        volume.status().expect("it is served").mode,
        CacheMode::Writethrough.to_string()
    );
    write(8192);
    assert_eq!(volume.dirty_bytes(), 4096, "only what was dirty before");
    world.kill();

    let world = World::new(Chance::new(2), Duration::from_secs(9));
    let untold = brigade_engine::Options {
        mode: None,
        ..options
    };
    let server = small::open(&world, &cache, &backing, &store, untold);
    let volume = server.volumes()[0].clone();
    assert_eq!(
        volume.status().expect("it is served").mode,
        CacheMode::Writethrough.to_string()
    );
    assert_eq!(volume.dirty_bytes(), 4096);
    world.kill();
}
