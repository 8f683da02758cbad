//! The handle, from other threads than the cache's own.

use brigade::{Builder, Engine, Handle};
use brigade_format::superblock::{CacheMode, NewBacking, NewCache, Replacement, Superblock};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const CACHE_BYTES: u64 = 32 << 20;
const BACKING_BYTES: u64 = 64 << 20;

/// A formatted pair of files and a place for the record.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench {
            dir: tempfile::tempdir().expect("a directory"),
        };
        let cache = Superblock::new_cache(&NewCache {
            device_sectors: CACHE_BYTES / 512,
            bucket_sectors: 64,
            block_sectors: 8,
            uuid: [1; 16],
            set_uuid: *uuid_of(bench.dir.path()),
            discard: false,
            replacement: Replacement::Lru,
        });
        let backing = Superblock::new_backing(&NewBacking {
            device_sectors: BACKING_BYTES / 512,
            data_offset: 16,
            block_sectors: 8,
            uuid: [2; 16],
            set_uuid: *uuid_of(bench.dir.path()),
            mode: CacheMode::Writeback,
            label: "attic".into(),
        });
        for (name, bytes, superblock) in [
            ("cache", CACHE_BYTES, cache),
            ("backing", BACKING_BYTES, backing),
        ] {
            let file = File::create(bench.path(name)).expect("room");
            file.set_len(bytes).expect("room");
            file.write_all_at(&superblock.expect("fine").encode(), 4096)
                .expect("room");
        }
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn builder(&self) -> Builder {
        Builder::new()
            .cache(self.path("cache"))
            .backing(self.path("backing"))
            .state_dir(self.path("state"))
            .memory_bytes(64 << 20)
    }

    fn open(&self) -> Handle {
        self.builder().open().expect("opens")
    }
}

/// Sets of different tests differ.
fn uuid_of(path: &Path) -> Box<[u8; 16]> {
    let mut uuid = [7_u8; 16];
    for (index, byte) in path.as_os_str().as_encoded_bytes().iter().enumerate() {
        uuid[index % 16] = uuid[index % 16].wrapping_mul(31).wrapping_add(*byte);
    }
    Box::new(uuid)
}

#[test]
fn what_was_written_is_read_and_outlives_the_handle() {
    let bench = Bench::new();
    for engine in [Engine::Auto, Engine::Threads] {
        let handle = bench.builder().engine(engine).open().expect("opens");
        assert_eq!(handle.volumes()[0].size_bytes, BACKING_BYTES - 8192);
        assert!(
            handle.volumes()[0].names.contains(&"attic".to_owned()),
            "{:?}",
            handle.volumes()
        );
        let bytes: Vec<u8> = (0..3 << 20).map(|i: u32| (i >> 8) as u8).collect();
        handle.write(0, 1 << 20, &bytes, false).expect("written");
        handle.flush(0).expect("flushed");
        drop(handle);
        let handle = bench.open();
        let mut again = vec![0; bytes.len()];
        handle.read(0, 1 << 20, &mut again).expect("read");
        assert!(again == bytes);
    }
}

#[test]
fn several_threads_use_one_handle() {
    let bench = Bench::new();
    let handle = bench.open();
    std::thread::scope(|scope| {
        for worker in 0..4_u64 {
            let handle = handle.clone();
            scope.spawn(move || {
                for round in 0..50 {
                    let offset = (worker * 64 + round) * 4096;
                    let bytes = [worker as u8 * 50 + round as u8; 4096];
                    handle.write(0, offset, &bytes, false).expect("written");
                    let mut again = [0; 4096];
                    handle.read(0, offset, &mut again).expect("read");
                    assert_eq!(again, bytes);
                }
            });
        }
    });
    let status = handle.status().expect("status");
    assert!(status["volumes"][0]["dirty_bytes"].is_u64(), "{status}");
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let bench = Bench::new();
    let handle = bench.open();
    let size = handle.volumes()[0].size_bytes;
    assert!(handle.write(0, 100, &[0; 512], false).is_err());
    assert!(handle.read(0, 0, &mut [0; 100]).is_err());
    assert!(handle.read(0, size - 512, &mut [0; 1024]).is_err());
    assert!(handle.read(0, u64::MAX - 511, &mut [0; 1024]).is_err());
    assert!(handle.read(1, 0, &mut [0; 512]).is_err());
    assert!(handle.flush(1).is_err());
    handle
        .read(0, size - 4096, &mut [0; 4096])
        .expect("the last block is there");
}

#[test]
fn after_a_stop_everything_fails_and_stopping_again_is_fine() {
    let bench = Bench::new();
    let handle = bench.open();
    let other = handle.clone();
    handle.stop().expect("stops");
    other.stop().expect("is stopped");
    other.wait().expect("is stopped");
    assert!(other.read(0, 0, &mut [0; 4096]).is_err());
    assert!(other.status().is_err());
}

#[test]
fn a_read_only_volume_takes_no_writes() {
    let bench = Bench::new();
    bench.open().stop().expect("stops");
    let handle = bench.builder().read_only(true).open().expect("opens");
    assert!(handle.volumes()[0].is_read_only);
    assert!(handle.write(0, 0, &[1; 4096], false).is_err());
    handle.read(0, 0, &mut [0; 4096]).expect("read");
}

#[test]
fn a_device_that_cannot_be_served_is_one_line_that_names_it() {
    let bench = Bench::new();
    let open = |path: PathBuf| match Builder::new().backing(path).open() {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    };
    let missing = open(bench.path("missing"));
    assert!(
        missing.contains("missing") && missing.matches("missing").count() == 1,
        "{missing}"
    );
    let wrong = open(bench.path("cache"));
    assert!(wrong.contains("cache") && !wrong.contains('\n'), "{wrong}");
    let held = bench.open();
    assert!(open(bench.path("backing")).contains("in use"));
    drop(held);
}
