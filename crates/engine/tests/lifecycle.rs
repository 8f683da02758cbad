//! Devices come and go and volumes change while clients work on them: nobody notices but by what is asked for, and whatever ends the
//! process in between, what was acknowledged is there.
#![cfg(feature = "instrumented")]

mod common_life;

use brigade_engine::mutations::{Mutation, choose};
use brigade_engine::{Options, hold_tables};
use brigade_env::{BlockDevice, Device, Durability, Env, Exports, StreamId};
use brigade_format::{BackingState, CacheMode};
use brigade_sim::disk::{End, Io};
use brigade_sim::exec::{Chance, World};
use brigade_sim::small::options;
use common_life::{Kind, Rig, SECTOR, Served, UNIT, UNITS};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

/// The longest that a request may take of which the disks take a few milliseconds.
const PAUSE_MAX: Duration = Duration::from_millis(200);

fn fails(story: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(story)).is_err()
}

/// T151, T150: everything is written back although nothing else would, the content stays, the slot is given up, and the next attach
/// takes another one.
#[test]
fn a_device_with_dirty_data_is_detached_under_load_and_attached_again() {
    let rig = Rig::new(1);
    let served = rig.serve(options(false));
    let volume = served.attached();
    served.loads(&rig, &volume, 300);
    assert_eq!(volume.state(), "dirty");
    let (server, name) = (served.server.clone(), volume.name());
    let longest = served.does_under_load(&rig, &volume, async move {
        server.detach(&name).await.unwrap();
    });
    assert!(longest <= PAUSE_MAX, "{longest:?}");
    assert_eq!((volume.state(), volume.dirty_bytes()), ("no cache", 0));
    let superblock = rig.superblock(&rig.first);
    assert_eq!(
        (superblock.state(), superblock.set_uuid),
        (BackingState::None, [0; 16])
    );
    served.verifies(&rig, &volume);
    let (server, name) = (served.server.clone(), volume.name());
    let longest = served.does_under_load(&rig, &volume, async move {
        server.attach_volume(&name, None).await.unwrap();
    });
    assert!(longest <= PAUSE_MAX, "{longest:?}");
    assert_ne!(rig.superblock(&rig.first).state(), BackingState::None);
    served.loads(&rig, &volume, 300);
    assert_eq!(volume.state(), "dirty");
    let hits = volume.status().unwrap().reads.hits;
    assert!(hits > 0, "nothing of it is cached");
    served.verifies(&rig, &volume);
    let slots = rig.used_slots(&served);
    assert!(slots.contains(&1) || slots.contains(&2), "{slots:?}");
    served.stop();
}

/// T181: after a detach and a stop no key of the old slot is dirty, and in the end none is there.
#[test]
fn a_detached_device_leaves_nothing_dirty_behind() {
    for (seed, waits) in [(2, false), (3, true)] {
        let rig = Rig::new(seed);
        let served = rig.serve(options(false));
        let volume = served.attached();
        served.loads(&rig, &volume, 300);
        let (server, world, name) = (served.server.clone(), served.world.clone(), volume.name());
        served.does(async move {
            server.detach(&name).await.unwrap();
            while waits && server.status().cache_sets[0].gc.removed_slots > 0 {
                world.sleep(Duration::from_millis(100)).await;
            }
            if waits {
                world.sleep(Duration::from_secs(1)).await;
            }
        });
        served.stop();
        let loaded = rig.load();
        let mut dirty = loaded
            .index
            .range(0, 0, u64::MAX >> 1)
            .filter(|it| it.dirty);
        assert_eq!(dirty.next(), None);
        assert_eq!(loaded.uuids[0].is_empty(), waits);
        assert!(
            loaded.findings.is_empty() || !waits,
            "{:?}",
            loaded.findings
        );
        rig.checks_after(seed);
    }
}

#[test]
fn a_detach_that_is_cancelled_leaves_an_attached_device() {
    let rig = Rig::new(4);
    let served = rig.serve(options(false));
    let volume = served.attached();
    served.loads(&rig, &volume, 300);
    // The backing device takes its time.
    rig.first.borrow_mut().pace = Some(Rc::new(|io: Io<'_>| {
        matches!(io, Io::Write(..)).then_some(Duration::from_secs(5))
    }));
    served.server.start_detach(&volume.name()).unwrap();
    let again = served.server.start_detach(&volume.name()).unwrap_err();
    assert!(again.to_string().contains("being detached"), "{again}");
    let (server, world, name) = (served.server.clone(), served.world.clone(), volume.name());
    served.does(async move {
        world.sleep(Duration::from_secs(1)).await;
        let going = server.status().volumes[0].detach.clone().unwrap();
        assert!(going.running && going.dirty_bytes > 0, "{going:?}");
        server.cancel_detach(&name).unwrap();
        assert!(server.cancel_detach(&name).is_err());
        world.sleep(Duration::from_secs(20)).await;
    });
    rig.first.borrow_mut().pace = None;
    let detach = volume.status().unwrap().detach.unwrap();
    assert!(!detach.running && detach.trouble.unwrap().contains("cancelled"));
    assert_eq!(volume.state(), "dirty");
    served.loads(&rig, &volume, 100);
    assert!(volume.dirty_bytes() > 0);
    served.verifies(&rig, &volume);
    served.stop();
    rig.checks_after(4);
}

/// LIFE-2: a write that began before the device had a cache does not land under a clean copy of another one.
fn attached_under_a_write() {
    let rig = Rig::new(11);
    let served = rig.serve(options(false));
    let volume = served.alone();
    rig.other.borrow_mut().pace = Some(Rc::new(|io: Io<'_>| match io {
        Io::Write(_, data) if data[0] == 9 => Some(Duration::from_secs(5)),
        _ => None,
    }));
    let writing = volume.clone();
    let written = async move { write(&writing, 65536, 9).await.unwrap() };
    served.world.spawn(written);
    let (server, world) = (served.server.clone(), served.world.clone());
    served.does(async move {
        world.sleep(Duration::from_millis(10)).await;
        server.attach_volume(&volume.uuid, None).await.unwrap();
        write(&volume, 65536, 5).await.unwrap();
        volume.drain();
        volume.drained().await;
        world.sleep(Duration::from_secs(10)).await;
        let cached = volume.read(StreamId(2), 65536, 512).await.unwrap();
        server.detach(&volume.uuid).await.unwrap();
        let read = volume.read(StreamId(2), 65536, 512).await.unwrap();
        assert_eq!(read[0], cached[0]);
    });
    served.stop();
}

#[test]
fn what_is_written_while_a_device_is_attached_is_not_cached_as_it_was() {
    attached_under_a_write();
    choose(Some(Mutation::AttachMixes));
    let found = fails(attached_under_a_write);
    choose(None);
    assert!(found, "the story cannot fail");
}

/// T161: a stop in the middle of a detach ends it, soon, and leaves an attached device.
#[test]
fn a_stop_ends_a_detach_and_all_that_was_acknowledged_is_there() {
    let rig = Rig::new(5);
    let served = rig.serve(options(false));
    let volume = served.attached();
    served.loads(&rig, &volume, 400);
    rig.first.borrow_mut().pace = Some(Rc::new(|io: Io<'_>| {
        matches!(io, Io::Write(..)).then_some(Duration::from_millis(100))
    }));
    served.server.start_detach(&volume.name()).unwrap();
    let began = served.world.now();
    let world = served.world.clone();
    served.stop();
    assert!(world.now() - began < Duration::from_secs(10));
    rig.first.borrow_mut().pace = None;
    assert_eq!(rig.superblock(&rig.first).state(), BackingState::Dirty);
    rig.checks_after(5);
}

/// T157: the volume ends, its dirty data and its state stay; who attaches the device again has it.
#[test]
fn a_device_that_is_not_served_any_more_keeps_its_dirty_data_and_comes_back() {
    let rig = Rig::new(6);
    let served = rig.serve(options(false));
    let volume = served.attached();
    served.loads(&rig, &volume, 300);
    let (server, name) = (served.server.clone(), volume.name());
    served.does(async move { server.stop_volume(&name).await.unwrap() });
    assert_eq!(rig.superblock(&rig.first).state(), BackingState::Dirty);
    assert!(served.server.volume("x").is_err());
    let gone = volume.clone();
    served.does(async move {
        let read = gone.read(StreamId(1), 0, 512).await;
        assert!(read.is_err() && gone.flush().await.is_err());
    });
    let (server, device) = (served.server.clone(), served.world.device(&rig.first));
    let volume = served.does(async move { server.attach(device, None).await.unwrap() });
    assert_eq!(volume.state(), "dirty");
    served.verifies(&rig, &volume);
    served.loads(&rig, &volume, 100);
    served.stop();
    rig.checks_after(6);
}

/// P4: a device whose superblock says that it has nothing in the cache begins anew, and what is lost is said.
#[test]
fn a_device_that_comes_back_and_says_none_is_told_what_it_gives_up() {
    let rig = Rig::new(12);
    let served = rig.serve(options(false));
    let volume = served.attached();
    served.loads(&rig, &volume, 300);
    let (server, name) = (served.server.clone(), volume.name());
    served.does(async move { server.stop_volume(&name).await.unwrap() });
    let mut superblock = rig.superblock(&rig.first);
    superblock.set_state(BackingState::None);
    rig.first.borrow_mut().poke(4096, &superblock.encode());
    let (server, device) = (served.server.clone(), served.world.device(&rig.first));
    served.does(async move { server.attach(device, None).await.unwrap() });
    let warnings = served.server.warnings().join(" ");
    assert!(warnings.contains("are given up"), "{warnings}");
    served.stop();
}

/// A mode that is acknowledged while the device is being attached stays on the device.
#[test]
fn a_mode_that_is_set_while_a_device_is_attached_stays() {
    let rig = Rig::new(13);
    let served = rig.serve(Options {
        mode: None,
        ..options(false)
    });
    let volume = served.alone();
    rig.cache.borrow_mut().pace = Some(Rc::new(|io: Io<'_>| {
        matches!(io, Io::Write(..)).then_some(Duration::from_secs(1))
    }));
    let (server, world, other) = (served.server.clone(), served.world.clone(), volume.clone());
    served.world.spawn(async move {
        world.sleep(Duration::from_millis(100)).await;
        other.set_mode(CacheMode::Writearound).await.unwrap();
    });
    served.does(async move { server.attach_volume(&volume.uuid, None).await.unwrap() });
    rig.cache.borrow_mut().pace = None;
    let superblock = rig.superblock(&rig.other);
    assert_eq!(superblock.state(), BackingState::Clean);
    assert_eq!(superblock.cache_mode(), Some(CacheMode::Writearound));
    served.stop();
}

/// T158: a flash volume is made, used and deleted; its space and its slot come back, and who gets them sees nothing of it.
#[test]
fn a_deleted_volume_gives_its_space_and_its_slot_back() {
    let rig = Rig::new(7);
    let served = rig.serve(options(false));
    let server = served.server.clone();
    let bytes = UNITS * UNIT * SECTOR;
    let flash =
        served.does(async move { server.create_flash(bytes, "scratch", None).await.unwrap() });
    assert!(flash.is_called("scratch") && flash.state() == "flash");
    rig.is_flash(&flash);
    served.loads(&rig, &flash, 300);
    served.verifies(&rig, &flash);
    let slots = rig.used_slots(&served);
    let dirty = |served: &Served| {
        served.server.status().cache_sets[0].devices[0]
            .buckets
            .dirty
    };
    let before = dirty(&served);
    let (server, world) = (served.server.clone(), served.world.clone());
    served.does(async move {
        server.delete_flash("scratch").await.unwrap();
        assert!(server.volume("scratch").is_err());
        while server.status().cache_sets[0].gc.removed_slots > 0 {
            world.sleep(Duration::from_millis(100)).await;
        }
        world.sleep(Duration::from_secs(1)).await;
    });
    assert!(dirty(&served) < before, "{before}");
    let (server, old) = (served.server.clone(), flash.clone());
    let flash = served.does(async move {
        assert!(old.read(StreamId(1), 0, 512).await.is_err());
        server.create_flash(bytes, "", None).await.unwrap()
    });
    assert_eq!(rig.used_slots(&served), slots);
    let empty = flash.clone();
    served.does(async move {
        let read = empty.read(StreamId(1), 0, bytes as usize).await.unwrap();
        assert!(
            read.iter().all(|byte| *byte == 0),
            "data of the volume before"
        );
    });
    served.stop();
}

/// H.27: what lay behind the end never comes back.
#[test]
fn a_volume_becomes_smaller_and_larger_under_load() {
    let rig = Rig::new(8);
    let served = rig.serve(options(false));
    let flash = served.flash(&rig);
    served.loads(&rig, &flash, 200);
    let (small, large) = (UNITS * UNIT * SECTOR, 2 * UNITS * UNIT * SECTOR);
    let (server, volume) = (served.server.clone(), flash.clone());
    let longest = served.does_under_load(&rig, &flash, async move {
        let name = volume.name();
        server.resize(&name, Some(large), false).await.unwrap();
        write(&volume, small, 7).await.unwrap();
        let refused = server.resize(&name, Some(small), false).await;
        assert!(refused.err().unwrap().to_string().contains("would be gone"));
        server.resize(&name, Some(small), true).await.unwrap();
        assert_eq!(volume.size_bytes(), small);
        assert!(write(&volume, small, 8).await.is_err(), "behind the end");
        server.resize(&name, Some(large), false).await.unwrap();
        let read = volume.read(StreamId(1), small, 4096).await.unwrap();
        assert!(
            read.iter().all(|byte| *byte == 0),
            "what was gone came back"
        );
    });
    assert!(longest <= PAUSE_MAX, "{longest:?}");
    served.verifies(&rig, &flash);
    served.stop();
    rig.checks_after(8);
}

/// LIFE-4: a write from before the volume grew does not land behind the end that it got afterwards.
fn smaller_after_it_grew_under_a_write() {
    let rig = Rig::new(14);
    let served = rig.serve(options(false));
    let flash = served.flash(&rig);
    rig.cache.borrow_mut().pace = Some(Rc::new(|io: Io<'_>| match io {
        Io::Write(_, data) if data[0] == 9 => Some(Duration::from_secs(5)),
        _ => None,
    }));
    let size = flash.size_bytes();
    let writing = flash.clone();
    let written = async move { write(&writing, size - SECTOR, 9).await.unwrap() };
    served.world.spawn(written);
    let (server, world) = (served.server.clone(), served.world.clone());
    served.does(async move {
        world.sleep(Duration::from_millis(10)).await;
        let name = flash.name();
        server.resize(&name, Some(2 * size), false).await.unwrap();
        server.resize(&name, Some(size / 2), true).await.unwrap();
        server.resize(&name, Some(size), false).await.unwrap();
        world.sleep(Duration::from_secs(10)).await;
        let read = flash.read(StreamId(1), size - SECTOR, 512).await.unwrap();
        assert_eq!(read[..], [0; 512], "what was gone came back");
    });
    served.stop();
    rig.checks_after(14);
}

#[test]
fn a_volume_that_grew_becomes_smaller_when_writes_from_before_are_over() {
    smaller_after_it_grew_under_a_write();
    choose(Some(Mutation::GrowthLeavesRequests));
    let found = fails(smaller_after_it_grew_under_a_write);
    choose(None);
    assert!(found, "the story cannot fail");
}

/// H.27: the larger size is served at once.
#[test]
fn a_backing_device_that_has_grown_is_noticed_when_asked() {
    for attached in [true, false] {
        let rig = Rig::new(9);
        let served = rig.serve(options(true));
        let (disk, volume) = match attached {
            true => (&rig.first, served.attached()),
            false => (&rig.other, served.alone()),
        };
        served.loads(&rig, &volume, 100);
        let was = volume.size_bytes();
        let sectors = disk.borrow().geometry.size_bytes / SECTOR;
        disk.borrow_mut().grow(sectors + 4096);
        let (server, grown) = (served.server.clone(), volume.clone());
        let longest = served.does_under_load(&rig, &volume, async move {
            assert!(write(&grown, was, 7).await.is_err());
            server.resize(&grown.name(), None, false).await.unwrap();
            assert_eq!(grown.size_bytes(), was + 4096 * SECTOR);
            write(&grown, was, 7).await.unwrap();
            let refused = server.resize(&grown.name(), Some(was), true).await;
            assert!(refused.is_err());
        });
        assert!(longest <= PAUSE_MAX, "{longest:?}");
        let name = volume.name();
        if attached {
            let server = served.server.clone();
            served.does(async move { server.detach(&name).await.unwrap() });
        }
        let grown = volume.clone();
        served.does(async move {
            let read = grown.read(StreamId(1), was, 512).await.unwrap();
            assert_eq!(read[..], [7; 512]);
        });
        served.verifies(&rig, &volume);
        served.stop();
    }
}

/// P1: what a device said when it was opened stays so; otherwise a loss of power could have it say again that a cache counts, after it was
/// written without.
#[test]
fn what_a_device_without_a_cache_says_is_durable_before_it_is_served() {
    for seed in 0..16 {
        let rig = Rig::new(seed);
        let later = {
            let mut superblock = rig.superblock(&rig.other);
            superblock.label[..5].copy_from_slice(b"later");
            superblock
        };
        let world = World::new(Chance::new(seed), Duration::from_secs(1));
        let device = world.device(&rig.other);
        let mut bytes = world.buffers().get(4096);
        bytes.copy_from_slice(&later.encode());
        let write = device.write(4096, bytes, Durability::Volatile);
        world.run(write, || false).expect("ends").expect("written");
        world.kill();
        rig.other.borrow_mut().end(End::Kill, &Chance::new(seed));
        let served = rig.serve(options(false));
        served.world.kill();
        drop(served);
        rig.other
            .borrow_mut()
            .end(End::PowerLoss, &Chance::new(seed));
        assert_eq!(rig.superblock(&rig.other).label, later.label);
    }
}

#[test]
fn a_label_is_on_the_device_and_in_the_slot_and_names_the_volume() {
    let rig = Rig::new(10);
    let served = rig.serve(options(false));
    let flash = served.flash(&rig);
    let (server, uuid) = (served.server.clone(), flash.uuid.clone());
    served.does(async move {
        server.set_label("x", "attic").await.unwrap();
        server.set_label(&uuid, "cellar").await.unwrap();
        assert!(server.volume("x").is_err() && server.volume("attic").is_ok());
        let taken = server.set_label("cellar", "attic").await;
        assert!(taken.err().unwrap().to_string().contains("another volume"));
        for bad in ["a\nb", &"x".repeat(33)] {
            assert!(server.set_label("cellar", bad).await.is_err(), "{bad:?}");
        }
    });
    served.stop();
    assert_eq!(rig.superblock(&rig.first).label(), "attic");
    let loaded = rig.load();
    let labels: Vec<_> = loaded.uuids.iter().map(|entry| entry.label()).collect();
    assert!(labels.contains(&"attic".into()) && labels.contains(&"cellar".into()));
    let served = rig.serve(options(false));
    assert!(served.server.volume("cellar").is_ok());
    served.stop();
}

/// A label that begins as the names by slot do is a label all the same, and none that looks as one of those can be given.
#[test]
fn a_label_that_begins_as_a_number_goes_and_one_that_is_a_number_is_refused() {
    let rig = Rig::new(15);
    let served = rig.serve(options(false));
    let volume = served.attached();
    let server = served.server.clone();
    served.does(async move {
        server.set_label("x", "volumes-db").await.unwrap();
        assert_eq!(volume.names(), ["volume0", "volumes-db"]);
        server.set_label("volumes-db", "db").await.unwrap();
        assert_eq!(volume.names(), ["volume0", "db"]);
        assert!(server.volume("volumes-db").is_err());
        let made = server.create_flash(4096, "volumes-db", None).await;
        assert!(made.is_ok(), "the name is free");
        for number in ["volume7", "volume7-1"] {
            let refused = server.set_label("db", number).await.err().unwrap();
            assert!(refused.to_string().contains("by their slots"), "{refused}");
            let refused = server.create_flash(4096, number, None).await;
            assert!(refused.is_err(), "{number}");
        }
    });
    served.stop();
    // Whoever labelled it so finds it by that.
    let mut superblock = rig.superblock(&rig.first);
    superblock.set_label("volume7");
    rig.first.borrow_mut().poke(4096, &superblock.encode());
    let served = rig.serve(options(false));
    assert_eq!(served.attached().names(), ["volume0", "volume7"]);
    let server = served.server.clone();
    served.does(async move { server.set_label("volume7", "db").await.unwrap() });
    assert_eq!(served.attached().names(), ["volume0", "db"]);
    served.stop();
}

/// Whoever writes to `volumeN` writes to what is in slot N, now and after a restart.
#[test]
fn a_volume_is_called_by_its_slot_and_no_more_by_one_that_it_had() {
    for is_attached_again in [true, false] {
        let rig = Rig::new(16);
        let served = rig.serve(options(false));
        let (volume, other) = (served.attached(), served.alone());
        assert_eq!(other.names(), ["volume1", "y"]);
        let (server, world) = (served.server.clone(), served.world.clone());
        let uuid = served.does(async move {
            server.detach("volume0").await.unwrap();
            assert_eq!(volume.names(), ["volume0", "x"]);
            if is_attached_again {
                server.attach_volume("x", None).await.unwrap();
                assert_eq!(volume.names(), ["volume1", "x"]);
                assert_eq!(other.names(), ["volume1-1", "y"]);
                assert!(server.volume("volume0").is_err());
            }
            while server.status().cache_sets[0].gc.removed_slots > 0 {
                world.sleep(Duration::from_millis(100)).await;
            }
            let flash = server.create_flash(4096, "", None).await.unwrap();
            assert_eq!(flash.names(), ["volume0"]);
            if !is_attached_again {
                assert_eq!(volume.names(), ["volume0-1", "x"]);
            }
            flash.uuid.clone()
        });
        let names = |served: &Served| -> Vec<_> {
            let volumes = served.server.volumes();
            volumes
                .iter()
                .map(|it| (it.uuid.clone(), it.names()))
                .collect()
        };
        let before = names(&served);
        served.stop();
        let served = rig.serve(options(false));
        assert_eq!(served.server.volume("volume0").unwrap().uuid, uuid);
        assert_eq!(names(&served), before);
        served.stop();
    }
}

/// A client of the default export that comes back gets the volume that it had, or none.
#[test]
fn the_default_export_is_one_volume_for_good() {
    let rig = Rig::new(17);
    let served = rig.serve(options(false));
    let uuid = served.attached().uuid.clone();
    let device = served.world.device(&rig.first);
    let server = served.server.clone();
    served.does(async move {
        let default = || server.find("").map(|it| it.uuid.clone());
        assert_eq!(default(), Some(uuid.clone()));
        server.stop_volume("x").await.unwrap();
        assert!(server.find("y").is_some());
        assert_eq!(default(), None);
        server.create_flash(4096, "", None).await.unwrap();
        assert_eq!(default(), None);
        server.attach(device, None).await.unwrap();
        assert_eq!(default(), Some(uuid));
    });
    served.stop();
}

#[test]
fn the_first_volume_of_a_cache_that_had_none_is_the_default_until_it_is_deleted_and_then_none_is() {
    let rig = Rig::new(18);
    let served = rig.serve_cache_alone(options(false));
    let server = served.server.clone();
    let device = served.world.device(&rig.other);
    served.does(async move {
        assert!(server.find("").is_none());
        let first = server.create_flash(4096, "first", None).await.unwrap();
        server.attach(device, None).await.unwrap();
        assert_eq!(server.find("").unwrap().uuid, first.uuid);
        server.delete_flash("first").await.unwrap();
        assert!(server.find("y").is_some() && server.find("").is_none());
        server.create_flash(4096, "first", None).await.unwrap();
        assert!(server.find("").is_none());
    });
    served.stop();
}

/// What is cached behind the end of a device goes bit by bit, as long as the server is wanted.
#[test]
fn a_stop_ends_a_growth_that_has_much_to_forget() {
    let rig = Rig::new(19);
    let served = rig.serve(options(true));
    let volume = served.attached();
    let was = volume.size_bytes();
    let larger = rig.first.borrow().geometry.size_bytes + (4 << 20);
    rig.first.borrow_mut().grow(larger / SECTOR);
    let (server, grown) = (served.server.clone(), volume.clone());
    served.does(async move {
        server.resize(&grown.name(), None, false).await.unwrap();
        for offset in (was..was + (4 << 20)).step_by(8192) {
            write(&grown, offset, 7).await.unwrap();
        }
        grown.drain();
        grown.drained().await;
    });
    served.stop();
    rig.first.borrow_mut().geometry.size_bytes = larger - (4 << 20);
    let served = rig.serve(options(true));
    let volume = served.attached();
    assert_eq!(volume.size_bytes(), was);
    rig.first.borrow_mut().geometry.size_bytes = larger;
    let (server, world) = (served.server.clone(), served.world.clone());
    served.world.spawn(async move {
        world.sleep(Duration::from_micros(10)).await;
        server.begin_to_stop();
    });
    let (server, name) = (served.server.clone(), volume.name());
    let ended = served.does(async move { server.resize(&name, None, false).await.err() });
    let ended = ended.expect("it has only just begun").to_string();
    assert!(ended.contains("being stopped"), "{ended}");
    assert_eq!(volume.size_bytes(), was);
    served.stop();
}

/// Nobody waits for a bucket for the table, since who waits for long poisons the set.
#[test]
fn an_attach_is_refused_if_the_last_bucket_for_the_table_goes_while_the_device_is_flushed() {
    let rig = Rig::new(20);
    let served = rig.serve(options(false));
    let volume = served.alone();
    rig.other.borrow_mut().pace = Some(Rc::new(|io: Io<'_>| {
        matches!(io, Io::Flush).then_some(Duration::from_secs(1))
    }));
    let world = served.world.clone();
    served.world.spawn(async move {
        world.sleep(Duration::from_millis(500)).await;
        hold_tables(true);
    });
    let (server, uuid) = (served.server.clone(), volume.uuid.clone());
    let refused = served.does(async move { server.attach_volume(&uuid, None).await.err() });
    hold_tables(false);
    let refused = refused.expect("there is no room").to_string();
    assert!(
        refused.contains("no bucket for its UUID table"),
        "{refused}"
    );
    assert_eq!(rig.superblock(&rig.other).set_uuid, [0x55; 16]);
    assert_eq!(volume.state(), "no cache");
    rig.other.borrow_mut().pace = None;
    let (server, uuid) = (served.server.clone(), volume.uuid.clone());
    served.does(async move { server.attach_volume(&uuid, None).await.unwrap() });
    served.stop();
}

async fn write(
    volume: &Rc<brigade_engine::Volume<brigade_sim::exec::World>>,
    offset: u64,
    byte: u8,
) -> std::io::Result<()> {
    let mut buffer = volume.buffer(512);
    buffer.fill(byte);
    volume.write(StreamId(1), offset, buffer, true).await
}

// ---- ends in between -------------------------------------------------------------------------------------------------

/// T163 in small: every change of a volume under load, ended by a kill or by a loss of power after any number of operations.
#[test]
fn whatever_ends_a_change_leaves_what_was_acknowledged() {
    for kind in Kind::ALL {
        for seed in 0..24 {
            ended(kind, seed);
        }
    }
}

/// Some mistakes that these stories must find.
#[test]
fn mistakes_in_the_order_of_a_change_are_found() {
    let seeds = 0..1500;
    for (mistake, kind) in [
        (Mutation::DetachServesEarly, Kind::Detach),
        (Mutation::ShrinkKeepsData, Kind::Shrink),
    ] {
        choose(Some(mistake));
        let found = seeds.clone().any(|seed| fails(|| ended(kind, seed)));
        choose(None);
        assert!(found, "{mistake:?} is not found");
    }
}

/// One change, ended after a number of operations that the seed says; then it is asked for again.
fn ended(kind: Kind, seed: u64) {
    let end = [End::Kill, End::PowerLoss][seed as usize % 2];
    let rig = Rig::new(seed + 100 * kind as u64);
    let served = rig.serve(options(seed.is_multiple_of(3)));
    let volume = served.volume_for(&rig, kind);
    served.loads(&rig, &volume, 150);
    kind.prepare(&served, &volume);
    if seed % 4 < 2 {
        // Much happens while the device is told.
        for disk in [&rig.first, &rig.other] {
            disk.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| match io {
                Io::Write(4096, _) => Some(Duration::from_millis(40)),
                Io::Write(..) if kind == Kind::Attach => Some(Duration::from_millis(5)),
                _ => None,
            }));
        }
    }
    let mut most = 20 + seed * seed * 3;
    if seed.is_multiple_of(3) {
        // Everything is clean, and cached: a detach has nothing to wait for.
        let (world, volume) = (served.world.clone(), volume.clone());
        served.does(async move {
            while volume.state() == "dirty" {
                world.sleep(Duration::from_millis(100)).await;
            }
        });
        most = 20 + seed * 37 % 600;
    }
    let is_done = served.does_until(&rig, &volume, kind, most);
    served.world.kill();
    drop((volume, served));
    rig.ends(end);
    rig.first.borrow_mut().pace = None;
    rig.other.borrow_mut().pace = None;
    let served = rig.serve(options(seed.is_multiple_of(2)));
    kind.check(&rig, &served, is_done);
    if let Some(volume) = served.volume_again(&rig, kind) {
        served.verifies(&rig, &volume);
        kind.run_again(&served, &volume);
        served.loads(&rig, &volume, 50);
        served.verifies(&rig, &volume);
    }
    served.stop();
    rig.load();
}
