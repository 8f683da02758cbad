//! Devices on regular files: a file system on disk (direct I/O) and one in memory.

use super::{fill, on_all_engines, pattern};
use crate::{DeviceOptions, HostDevice, HostEnv, OpenMode};
use brigade_env::{Device, Durability, Env, Survivor, sync};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tempfile::TempDir;

struct Place {
    _folder: TempDir,
    path: PathBuf,
}

/// Folders to test in: the default one, and one in memory if there is such.
fn places(length: u64) -> Vec<Place> {
    let shm = Path::new("/dev/shm");
    let mut folders = vec![tempfile::tempdir().unwrap()];
    folders.extend(
        shm.is_dir()
            .then(|| tempfile::tempdir_in(shm).ok())
            .flatten(),
    );
    let make = |folder: TempDir| {
        let path = folder.path().join("disk");
        std::fs::File::create(&path)
            .unwrap()
            .set_len(length)
            .unwrap();
        Place {
            _folder: folder,
            path,
        }
    };
    folders.into_iter().map(make).collect()
}

fn on_all_devices(length: u64, test: impl Fn(&HostEnv, &HostDevice, &Path)) {
    on_all_engines(|env| {
        for block in [None, Some(4096)] {
            for place in places(length) {
                let options = DeviceOptions {
                    logical_block_bytes: block,
                    ..DeviceOptions::default()
                };
                let device = env.open_device_with(&place.path, &options).unwrap();
                assert_eq!(device.geometry().size_bytes, length);
                assert_eq!(device.geometry().logical_block_bytes, block.unwrap_or(512));
                test(env, &device, &place.path);
            }
        }
    });
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, most: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % most
    }
}

#[test]
fn what_is_written_at_random_places_is_read_back() {
    const LENGTH: u64 = 1 << 20;
    on_all_devices(LENGTH, |env, device, path| {
        let mut twin = vec![0_u8; LENGTH as usize];
        let mut dice = Dice(1);
        env.block_on(async {
            for round in 0..150 {
                let start = dice.roll(LENGTH / 512);
                let sectors = 1 + dice.roll(40.min(LENGTH / 512 - start));
                let (offset, length) = (start * 512, (sectors * 512) as usize);
                let range = offset as usize..offset as usize + length;
                // The buffer's range starts anywhere in its pages, as protocols leave head room.
                let mut buffer = env.buffers().get(length + 4096);
                let head = [0, 16, 512, 4096][dice.roll(4) as usize];
                buffer.set_range(head..head + length);
                if dice.roll(3) > 0 {
                    fill(&mut buffer, round);
                    twin[range].copy_from_slice(&buffer);
                    let durability = if round % 8 == 0 {
                        Durability::Durable
                    } else {
                        Durability::Volatile
                    };
                    let back = device.write(offset, buffer, durability).await.unwrap();
                    assert_eq!(back.range(), head..head + length);
                } else {
                    let back = device.read(offset, buffer).await.unwrap();
                    assert!(back[..] == twin[range]);
                    assert_eq!(back.range(), head..head + length);
                }
                if round % 20 == 0 {
                    device.flush().await.unwrap();
                }
            }
        });
        assert!(std::fs::read(path).unwrap() == twin);
    });
}

#[test]
fn concurrent_writes_of_parts_of_blocks_lose_nothing() {
    const LENGTH: u64 = 64 << 10;
    on_all_devices(LENGTH, |env, device, path| {
        for round in 0..10_u64 {
            // Every sector is written once, in runs of 1 to 12 sectors, all at the same time.
            let mut dice = Dice(round);
            let mut expected = vec![0; LENGTH as usize];
            let mut writes = Vec::new();
            let mut at = 0;
            while at < LENGTH {
                let length = (512 * (1 + dice.roll(12))).min(LENGTH - at);
                let buffer = pattern(env, length as usize, round * 1000 + at);
                expected[at as usize..(at + length) as usize].copy_from_slice(&buffer);
                writes.push((at, buffer));
                at += length;
            }
            for swap in 0..writes.len() {
                let other = dice.roll(writes.len() as u64) as usize;
                writes.swap(swap, other);
            }
            let all = writes
                .into_iter()
                .map(|(at, buffer)| device.write(at, buffer, Durability::Volatile));
            env.block_on(sync::join_all(all))
                .into_iter()
                .for_each(|result| drop(result.unwrap()));
            assert!(std::fs::read(path).unwrap() == expected);
        }
    });
}

#[test]
fn a_write_whose_future_is_dropped_is_still_made() {
    const LENGTH: u64 = 4 << 20;
    on_all_devices(LENGTH, |env, device, path| {
        let mut expected = vec![0; LENGTH as usize];
        env.block_on(async {
            for round in 0..1000_u64 {
                let offset = round * 4096 + 512 * (round % 4);
                let length = 512 * (1 + round as usize % 4);
                let buffer = pattern(env, length, round);
                expected[offset as usize..offset as usize + length].copy_from_slice(&buffer);
                let mut write = Box::pin(device.write(offset, buffer, Durability::Volatile));
                std::future::poll_fn(|context| {
                    let _ = write.as_mut().poll(context);
                    std::task::Poll::Ready(())
                })
                .await;
                drop(write);
                let mut read = Box::pin(device.read(offset, env.buffers().get(length)));
                if round % 2 == 0 {
                    std::future::poll_fn(|context| {
                        let _ = read.as_mut().poll(context);
                        std::task::Poll::Ready(())
                    })
                    .await;
                }
                drop(read);
                // The memory of both must not be anybody else's yet.
                drop(pattern(env, length, !round));
            }
            device.flush().await.unwrap();
            env.sleep(Duration::from_millis(20)).await;
            for _ in 0..500 {
                if std::fs::read(path).unwrap() == expected {
                    return;
                }
                env.sleep(Duration::from_millis(10)).await;
            }
            panic!("a write was lost");
        });
    });
}

#[test]
fn ranges_that_do_not_fit_are_refused_and_nothing_grows() {
    on_all_devices(65536, |env, device, path| {
        env.block_on(async {
            let buffer = |length| env.buffers().get_zeroed(length);
            for (offset, length) in [
                (65536, 512),
                (65024, 1024),
                (u64::MAX - 511, 512),
                (256, 512),
                (0, 100),
            ] {
                let read = device.read(offset, buffer(length)).await;
                assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidInput);
                let write = device
                    .write(offset, buffer(length), Durability::Volatile)
                    .await;
                assert_eq!(write.unwrap_err().kind(), io::ErrorKind::InvalidInput);
                let length = length as u64;
                assert_eq!(
                    device.discard(offset, length).await.unwrap_err().kind(),
                    io::ErrorKind::InvalidInput
                );
                let zeroes = device.write_zeroes(offset, length, true).await;
                assert_eq!(zeroes.unwrap_err().kind(), io::ErrorKind::InvalidInput);
            }
            device.read(65536, buffer(0)).await.unwrap();
            device
                .write(65536, buffer(0), Durability::Durable)
                .await
                .unwrap();
            device.write_zeroes(65536, 0, false).await.unwrap();
        });
        assert_eq!(std::fs::metadata(path).unwrap().len(), 65536);
    });
}

#[test]
fn a_device_opened_for_reading_refuses_writes_with_erofs() {
    on_all_engines(|env| {
        let place = &places(8192)[0];
        let device = env
            .open_device(&place.path, OpenMode::ReadOnly, true)
            .unwrap();
        assert!(device.geometry().is_read_only && !device.geometry().can_discard);
        let code = |result: io::Result<()>| result.unwrap_err().raw_os_error();
        env.block_on(async {
            let write = device
                .write(0, env.buffers().get_zeroed(512), Durability::Volatile)
                .await;
            assert_eq!(code(write.map(drop)), Some(libc::EROFS));
            assert_eq!(code(device.discard(0, 512).await), Some(libc::EROFS));
            assert_eq!(
                code(device.write_zeroes(0, 512, true).await),
                Some(libc::EROFS)
            );
            device.read(0, env.buffers().get(8192)).await.unwrap();
            device.flush().await.unwrap();
        });
    });
}

#[test]
fn one_writer_excludes_everybody_and_readers_share() {
    on_all_engines(|env| {
        let places = places(8192);
        let path = &places[0].path;
        let open = |mode| env.open_device(path, mode, true);
        let writer = open(OpenMode::ReadWrite).unwrap();
        for mode in [OpenMode::ReadWrite, OpenMode::ReadOnly] {
            let error = open(mode).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
            assert!(
                error.to_string().contains("device already in use"),
                "{error}"
            );
        }
        env.open_device(path, OpenMode::ReadWrite, false).unwrap();
        drop(writer);
        let readers = [
            open(OpenMode::ReadOnly).unwrap(),
            open(OpenMode::ReadOnly).unwrap(),
        ];
        assert_eq!(
            open(OpenMode::ReadWrite).err().unwrap().kind(),
            io::ErrorKind::ResourceBusy
        );
        drop(readers);
        open(OpenMode::ReadWrite).unwrap();
    });
}

#[test]
fn a_file_truncated_under_us_is_an_error_that_says_where() {
    on_all_devices(1 << 20, |env, device, path| {
        env.block_on(async {
            let all = pattern(env, 1 << 20, 1);
            device.write(0, all, Durability::Volatile).await.unwrap();
            // A file in memory is mapped from here on.
            device
                .read(512 << 10, env.buffers().get(4096))
                .await
                .unwrap();
        });
        std::fs::OpenOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(300 << 10)
            .unwrap();
        env.block_on(async {
            device.read(0, env.buffers().get(300 << 10)).await.unwrap();
            let error = device
                .read(256 << 10, env.buffers().get(128 << 10))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            assert!(
                error.to_string().contains(&(300 << 10).to_string()),
                "{error}"
            );
            let error = device
                .read(512 << 10, env.buffers().get(512))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        });
    });
}

#[test]
fn a_file_cut_within_a_page_has_no_zeros_behind_the_cut() {
    on_all_devices(1 << 20, |env, device, path| {
        env.block_on(async {
            let all = pattern(env, 1 << 20, 1);
            device.write(0, all, Durability::Volatile).await.unwrap();
            let warm = env.buffers().get(4096);
            device.read(256 << 10, warm).await.unwrap();
        });
        let file = std::fs::OpenOptions::new().write(true).open(path);
        file.unwrap().set_len((256 << 10) + 1000).unwrap();
        env.block_on(async {
            for (offset, length) in [(256 << 10, 4096), ((256 << 10) + 1024, 512)] {
                let buffer = env.buffers().get(length);
                let error = device.read(offset, buffer).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            }
        });
    });
}

#[test]
fn zeroes_and_discards_read_as_zeros_on_files_and_touch_nothing_else() {
    const LENGTH: u64 = 4 << 20;
    on_all_devices(LENGTH, |env, device, path| {
        let mut dice = Dice(5);
        let mut twin = vec![0; LENGTH as usize];
        env.block_on(async {
            for round in 0..30 {
                let all = pattern(env, LENGTH as usize, round);
                if round % 10 == 0 {
                    twin.copy_from_slice(&all);
                    device.write(0, all, Durability::Volatile).await.unwrap();
                }
                let start = dice.roll(LENGTH / 512);
                let sectors = 1 + dice.roll((LENGTH / 512 - start).min(if round % 3 == 0 {
                    6000
                } else {
                    20
                }));
                let (offset, length) = (start * 512, sectors * 512);
                device
                    .write_zeroes(offset, length, round % 2 == 0)
                    .await
                    .unwrap();
                twin[offset as usize..(offset + length) as usize].fill(0);
                assert!(std::fs::read(path).unwrap() == twin);
            }
            assert!(device.geometry().can_discard);
            device.discard(8192, 65536).await.unwrap();
            twin[8192..8192 + 65536].fill(0);
            device.discard(512, 1024).await.unwrap();
        });
        let now = std::fs::read(path).unwrap();
        assert!(now[4096..] == twin[4096..] && now[..512] == twin[..512]);
        assert_eq!(now.len() as u64, LENGTH);
    });
}

#[test]
fn what_is_no_device_is_refused_with_its_name() {
    on_all_engines(|env| {
        let folder = tempfile::tempdir().unwrap();
        let open = |path: &Path| {
            env.open_device(path, OpenMode::ReadOnly, true)
                .err()
                .unwrap()
        };
        assert!(open(folder.path()).to_string().contains("is a directory"));
        assert!(
            open(Path::new("/dev/null"))
                .to_string()
                .contains("/dev/null: neither a block device")
        );
        let error = open(&folder.path().join("nothing"));
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("nothing"));
    });
}

#[test]
fn odd_lengths_are_rounded_down_and_the_last_sector_is_usable() {
    on_all_engines(|env| {
        for place in places(10 * 512 + 100) {
            let device = env
                .open_device(&place.path, OpenMode::ReadWrite, true)
                .unwrap();
            assert_eq!(device.geometry().size_bytes, 5120);
            env.block_on(async {
                device
                    .write(4608, pattern(env, 512, 3), Durability::Durable)
                    .await
                    .unwrap();
                let back = device.read(4608, env.buffers().get(512)).await.unwrap();
                assert!(back[..] == pattern(env, 512, 3)[..]);
            });
            assert_eq!(std::fs::metadata(&place.path).unwrap().len(), 5220);
            let options = DeviceOptions {
                lock: false,
                logical_block_bytes: Some(4096),
                ..DeviceOptions::default()
            };
            assert_eq!(
                env.open_device_with(&place.path, &options)
                    .unwrap()
                    .geometry()
                    .size_bytes,
                4096
            );
            let empty = place.path.with_file_name("empty");
            std::fs::write(&empty, "").unwrap();
            let empty = env.open_device(&empty, OpenMode::ReadWrite, true).unwrap();
            assert_eq!(empty.geometry().size_bytes, 0);
        }
    });
}

#[test]
fn many_random_reads_at_depth_32_all_bring_the_right_data() {
    const LENGTH: u64 = 8 << 20;
    on_all_engines(|env| {
        for place in places(LENGTH) {
            let mut content = vec![0; LENGTH as usize];
            fill(&mut content, 77);
            std::fs::write(&place.path, &content).unwrap();
            let content = Rc::new(content);
            let device = env
                .open_device(&place.path, OpenMode::ReadOnly, true)
                .unwrap();
            let readers = (0..32).map(|seed| {
                let (env, device, content) = (env.clone(), device.clone(), content.clone());
                async move {
                    let mut dice = Dice(seed);
                    for _ in 0..200 {
                        let offset = dice.roll(LENGTH / 4096) * 4096;
                        let buffer = device.read(offset, env.buffers().get(4096)).await.unwrap();
                        assert!(buffer[..] == content[offset as usize..offset as usize + 4096]);
                    }
                }
            });
            env.block_on(sync::join_all(readers));
        }
    });
}

#[test]
fn the_end_of_a_world_waits_for_writes_under_way_and_later_calls_fail() {
    on_all_engines(|env| {
        let place = &places(1 << 20)[0];
        let device = env
            .open_device(&place.path, OpenMode::ReadWrite, true)
            .unwrap();
        for number in 0..100 {
            drop(device.write(
                number * 8192,
                pattern(env, 8192, number),
                Durability::Volatile,
            ));
        }
        env.shutdown();
        let content = std::fs::read(&place.path).unwrap();
        for number in 0..100_usize {
            assert!(content[number * 8192..][..8192] == pattern(env, 8192, number as u64)[..]);
        }
        let error = env
            .block_on(device.read(0, env.buffers().get(512)))
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
        assert!(env.block_on(device.write_zeroes(0, 512, true)).is_err());
    });
}

#[test]
fn a_survivor_is_seen_by_the_next_one_who_opens_it() {
    on_all_engines(|env| {
        let place = &places(0)[0];
        let survivor = env.open_survivor(&place.path).unwrap();
        survivor.write(0, b"hello").unwrap();
        survivor.write(10, b"world").unwrap();
        let next = env.open_survivor(&place.path).unwrap();
        let content = next.read().unwrap();
        assert!(content.starts_with(b"hello\0\0\0\0\0world\0"));
        assert!(content[15..].iter().all(|&byte| byte == 0));
        survivor.clear().unwrap();
        assert!(next.read().unwrap().is_empty());
        assert!(env.open_survivor(Path::new("/")).is_err());
    });
}

#[test]
fn a_survivor_takes_writes_anywhere_and_after_it_was_cleared() {
    on_all_engines(|env| {
        let place = &places(0)[0];
        let survivor = env.open_survivor(&place.path).unwrap();
        survivor.write(5 << 20, b"far").unwrap();
        survivor.write((2 << 20) + (64 << 10) - 2, b"edge").unwrap();
        survivor.write(0, b"near").unwrap();
        let content = survivor.read().unwrap();
        assert!(content.starts_with(b"near\0") && content.ends_with(b"\0far"));
        assert_eq!(content.len(), (5 << 20) + 3);
        assert_eq!(&content[(2 << 20) + (64 << 10) - 2..][..4], b"edge");
        survivor.clear().unwrap();
        survivor.write(7, b"again").unwrap();
        drop(survivor);
        let content = env.open_survivor(&place.path).unwrap().read().unwrap();
        assert!(content.starts_with(b"\0\0\0\0\0\0\0again\0"));
    });
}

/// Overwrites the block device named by `BRIGADE_SCRATCH_DEVICE`, which must have at least 4 MiB.
#[test]
#[ignore = "needs a scratch block device in BRIGADE_SCRATCH_DEVICE"]
fn a_real_block_device_keeps_the_contract() {
    const LENGTH: u64 = 4 << 20;
    let path = std::env::var_os("BRIGADE_SCRATCH_DEVICE").expect("BRIGADE_SCRATCH_DEVICE");
    on_all_engines(|env| {
        let device = env
            .open_device(Path::new(&path), OpenMode::ReadWrite, true)
            .unwrap();
        println!("{}: {:?}", device.name(), device.geometry());
        let again = env.open_device(Path::new(&path), OpenMode::ReadWrite, true);
        assert_eq!(again.err().unwrap().kind(), io::ErrorKind::ResourceBusy);
        let mut dice = Dice(9);
        let mut twin = vec![0_u8; LENGTH as usize];
        env.block_on(async {
            device.write_zeroes(0, LENGTH, true).await.unwrap();
            for round in 0..300 {
                let start = dice.roll(LENGTH / 512);
                let sectors = 1 + dice.roll(40.min(LENGTH / 512 - start));
                let (offset, length) = (start * 512, sectors * 512);
                let range = offset as usize..(offset + length) as usize;
                if round % 4 == 3 {
                    device
                        .write_zeroes(offset, length, round % 8 == 3)
                        .await
                        .unwrap();
                    twin[range].fill(0);
                } else {
                    let buffer = pattern(env, length as usize, round);
                    twin[range].copy_from_slice(&buffer);
                    device
                        .write(offset, buffer, Durability::Durable)
                        .await
                        .unwrap();
                }
            }
            device.flush().await.unwrap();
            let all = device
                .read(0, env.buffers().get(LENGTH as usize))
                .await
                .unwrap();
            assert!(all[..] == twin[..]);
            device.discard(512, LENGTH - 512).await.unwrap();
            let first = device.read(0, env.buffers().get(512)).await.unwrap();
            assert!(first[..] == twin[..512]);
            let end = device.geometry().size_bytes;
            assert!(device.read(end, env.buffers().get(512)).await.is_err());
        });
    });
}
