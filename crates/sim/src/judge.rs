//! The independent reader as a judge: it finds nothing wrong with an image of ours, and sees in it what the engine sees.

use crate::image::Image;
use crate::set::Set;
use brigade_engine::recovery::Loaded;
use brigade_format::BackingState;
use brigade_fsck::check::{self, Extent, Report, Severity, Watch};
use brigade_fsck::{Device, ReadAt};
use std::io;

struct Bytes(Image);

impl ReadAt for Bytes {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        // Whole sectors around what was asked for.
        let first = offset / 512;
        let end = (offset + buffer.len() as u64).div_ceil(512);
        let mut sectors = vec![0; (end - first) as usize * 512];
        self.0.read(first, &mut sectors);
        let at = (offset - first * 512) as usize;
        buffer.copy_from_slice(&sectors[at..at + buffer.len()]);
        Ok(())
    }
}

/// Extents in one piece where they continue each other.
#[derive(Default)]
struct Seen(Vec<(u32, u64, u64, u64, bool)>);

impl Seen {
    fn add(&mut self, inode: u32, start: u64, end: u64, place: u64, dirty: bool) {
        match self.0.last_mut() {
            Some(last)
                if (last.0, last.2, last.3 + (last.2 - last.1), last.4)
                    == (inode, start, place, dirty) =>
            {
                last.2 = end;
            }
            _ => self.0.push((inode, start, end, place, dirty)),
        }
    }
}

impl Watch for Seen {
    fn extent(&mut self, _device: usize, extent: &Extent) {
        let place = extent.ptr.sector();
        self.add(
            extent.inode,
            extent.start,
            extent.end(),
            place,
            extent.dirty,
        );
    }
}

/// Checks an image at rest; panics if the reader finds an error, or sees another index than the engine does.
pub fn check(set: &Set, loaded: &Loaded) {
    let (report, seen) = look(set);
    if report.count(Severity::Error) > 0 || !report.unchecked.is_empty() {
        let is_error = |finding: &&check::Finding| finding.severity == Severity::Error;
        let errors: Vec<_> = report.findings.iter().filter(is_error).collect();
        panic!(
            "seed {}: check: {errors:#?} {:?}",
            set.seed, report.unchecked
        );
    }
    for backing in report
        .backings
        .iter()
        .filter(|b| b.state == BackingState::Clean)
    {
        let volumes = report.sets.iter().flat_map(|view| &view.volumes);
        let dirty = volumes.filter(|volume| Some(volume.slot) == backing.slot);
        let dirty: u64 = dirty.map(|volume| volume.dirty_sectors).sum();
        assert_eq!(
            dirty, 0,
            "seed {}: {} says clean, and the cache has dirty data of it",
            set.seed, backing.device
        );
    }
    let mut expected = Seen::default();
    for extent in loaded.index.iter() {
        let place = extent.ptr.expect("the index has no holes").sector();
        expected.add(extent.inode, extent.start, extent.end, place, extent.dirty);
    }
    if seen.0 != expected.0 {
        let differs = seen.0.iter().zip(&expected.0).find(|(a, b)| a != b);
        panic!(
            "seed {}: check and engine see different indexes: {} and {} extents, first difference {differs:?}",
            set.seed,
            seen.0.len(),
            expected.0.len()
        );
    }
}

fn look(set: &Set) -> (Report, Seen) {
    let disks: Vec<_> = set
        .disks()
        .map(|disk| {
            let disk = disk.borrow();
            (disk.name.clone(), disk.geometry, Bytes(disk.image()))
        })
        .collect();
    let devices: Vec<Device<'_>> = disks
        .iter()
        .map(|(name, geometry, bytes)| Device {
            name: name.clone(),
            source: bytes,
            size_bytes: geometry.size_bytes,
            logical_block_bytes: geometry.logical_block_bytes,
        })
        .collect();
    let mut seen = Seen::default();
    let report = check::run_watched(&devices, &check::Options::default(), &mut seen);
    (report, seen)
}
