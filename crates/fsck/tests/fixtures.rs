//! The kernel's own images with bits flipped where the checker reads: it comes to an end, never panics, and sees the change
//! wherever a checksum covers it.

use brigade_fsck::check::{Options, Report, run};
use brigade_fsck::{Device, ReadAt};
use serde_json::Value;
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// The archives were made with a window of this many bits.
const WINDOW_LOG_MAX: u32 = 27;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn unpack(name: &str, target: &Path) {
    let manifest = std::fs::read(fixtures().join(format!("{name}.json"))).expect("a manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let archive = manifest["archive"]["file"].as_str().expect("an archive");
    let archive = File::open(fixtures().join(archive)).expect("an archive");
    let mut plain = zstd::stream::read::Decoder::new(archive).expect("zstd");
    plain.window_log_max(WINDOW_LOG_MAX).expect("a window");
    tar::Archive::new(plain).unpack(target).expect("tar");
}

/// An image of which some bytes read otherwise, and that knows what was read.
struct Changed<'a> {
    file: &'a File,
    changes: Vec<(u64, u8)>,
    reads: RefCell<Vec<(u64, u64)>>,
}

impl ReadAt for Changed<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        ReadAt::read_at(self.file, offset, buffer)?;
        let length = buffer.len() as u64;
        self.reads.borrow_mut().push((offset, length));
        for (at, flip) in &self.changes {
            if (offset..offset + length).contains(at) {
                buffer[(at - offset) as usize] ^= flip;
            }
        }
        Ok(())
    }
}

fn check(image: &Changed<'_>) -> Report {
    let device = Device {
        name: "cache".into(),
        source: image,
        size_bytes: image.file.metadata().expect("there").len(),
        logical_block_bytes: 512,
    };
    run(&[device], &Options::default(), &mut |_| {})
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % below.max(1)
    }
}

#[test]
fn bits_flipped_in_a_kernels_metadata_never_make_the_checker_panic_or_hang() {
    let mut tried = 0;
    for name in [
        "bucket-4k",
        "btree-tiny-buckets",
        "kill-wb-8",
        "flash-and-backing",
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        unpack(name, folder.path());
        let file = File::open(folder.path().join("cache.img")).expect("an image");
        let plain = Changed {
            file: &file,
            changes: Vec::new(),
            reads: RefCell::default(),
        };
        let fine = check(&plain);
        let is_bad = |report: &Report| report.findings.iter().any(|f| f.severity.name() != "note");
        assert!(!is_bad(&fine), "{name}: {:?}", fine.findings);
        let reads = plain.reads.take();
        let mut dice = Dice(tried + 1);
        let mut seen = 0;
        for _ in 0..150 {
            let flips = 1 + dice.roll(3);
            let changes = (0..flips)
                .map(|_| {
                    let (offset, length) = reads[dice.roll(reads.len() as u64) as usize];
                    // Nearer to the start of a structure there is more to break.
                    let length = if dice.roll(2) == 0 {
                        length.min(600)
                    } else {
                        length
                    };
                    (offset + dice.roll(length), 1 << dice.roll(8))
                })
                .collect();
            let changed = Changed {
                changes,
                reads: RefCell::default(),
                file: &file,
            };
            let report = check(&changed);
            seen += u64::from(is_bad(&report));
            let read: u64 = changed.reads.borrow().iter().map(|read| read.1).sum();
            let plainly: u64 = reads.iter().map(|read| read.1).sum();
            assert!(
                read < 3 * plainly + (1 << 20),
                "{name}: {read} bytes were read"
            );
            tried += 1;
        }
        assert!(seen > 10, "{name}: only {seen} changes were seen");
    }
    println!("{tried} images");
}
