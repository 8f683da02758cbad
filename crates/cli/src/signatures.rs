//! What a device holds, as far as a few bytes at known places tell: enough not to overwrite somebody's data.
//!
//! The table is about formats in use on whole devices, partitions and image files. It errs on the side of
//! recognising: a false alarm costs a `--force`, a miss costs a file system.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Where a signature stands.
enum At {
    /// Bytes from the start.
    Start(u64),
    /// Bytes back from the end, after rounding the size down to a multiple of the second number.
    End(u64, u64),
}

struct Signature {
    name: &'static str,
    at: At,
    bytes: &'static [u8],
}

const fn start(name: &'static str, offset: u64, bytes: &'static [u8]) -> Signature {
    Signature {
        name,
        at: At::Start(offset),
        bytes,
    }
}

const fn end(name: &'static str, back: u64, unit: u64, bytes: &'static [u8]) -> Signature {
    Signature {
        name,
        at: At::End(back, unit),
        bytes,
    }
}

const MD: &[u8] = &[0xfc, 0x4e, 0x2b, 0xa9];

/// More telling ones first: several formats also carry a boot sector mark.
const SIGNATURES: &[Signature] = &[
    start(
        "bcache",
        4096 + 24,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
    ),
    start(
        "bcachefs",
        4096 + 24,
        b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef",
    ),
    start("ext2/3/4", 1080, &[0x53, 0xef]),
    start("xfs", 0, b"XFSB"),
    start("btrfs", 0x1_0040, b"_BHRfS_M"),
    start("f2fs", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    start("erofs", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    start("squashfs", 0, b"hsqs"),
    start("iso9660", 0x8001, b"CD001"),
    start("udf", 0x8001, b"BEA01"),
    start("jfs", 0x8000, b"JFS1"),
    start("reiserfs", 0x1_0034, b"ReIsEr"),
    start("ntfs", 3, b"NTFS    "),
    start("exfat", 3, b"EXFAT   "),
    start("vfat", 82, b"FAT32   "),
    start("vfat", 54, b"FAT16   "),
    start("vfat", 54, b"FAT12   "),
    start("LUKS", 0, b"LUKS\xba\xbe"),
    start("LUKS", 0x4000, b"SKUL\xba\xbe"),
    start("LVM2 physical volume", 0, b"LABELONE"),
    start("LVM2 physical volume", 512, b"LABELONE"),
    start("LVM2 physical volume", 1024, b"LABELONE"),
    start("LVM2 physical volume", 1536, b"LABELONE"),
    start("md raid member", 0, MD),
    start("md raid member", 4096, MD),
    end("md raid member", 8192, 4096, MD),
    end("md raid member", 65536, 65536, MD),
    start("swap", 4096 - 10, b"SWAPSPACE2"),
    start("swap", 4096 - 10, b"SWAP-SPACE"),
    start("swap", 16384 - 10, b"SWAPSPACE2"),
    start("swap", 65536 - 10, b"SWAPSPACE2"),
    start("hibernation image", 4096 - 10, b"S1SUSPEND"),
    start("dm-vdo", 0, b"dmvdo001"),
    start("bluestore", 0, b"bluestore block device"),
    start("qcow2", 0, b"QFI\xfb"),
    start("GPT", 512, b"EFI PART"),
    start("GPT", 4096, b"EFI PART"),
    end("GPT", 512, 512, b"EFI PART"),
    end("GPT", 4096, 4096, b"EFI PART"),
    start("MBR or boot sector", 510, &[0x55, 0xaa]),
];

/// ZFS has no fixed mark but rings of uberblocks in each 256 KiB label.
const ZFS_MAGIC: [u8; 8] = 0x00ba_b10c_u64.to_le_bytes();

/// Something found on a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub name: &'static str,
    /// Where its signature stands, in bytes.
    pub offset: u64,
}

/// The first thing recognised in `size_bytes` of `file`.
pub fn recognise(file: &File, size_bytes: u64) -> io::Result<Option<Found>> {
    for signature in SIGNATURES {
        let offset = match signature.at {
            At::Start(offset) => Some(offset),
            At::End(back, unit) => (size_bytes / unit * unit).checked_sub(back),
        };
        if let Some(offset) = offset
            && holds(file, size_bytes, offset, signature.bytes)?
        {
            return Ok(Some(Found {
                name: signature.name,
                offset,
            }));
        }
    }
    zfs(file, size_bytes)
}

fn holds(file: &File, size_bytes: u64, offset: u64, bytes: &[u8]) -> io::Result<bool> {
    if offset
        .checked_add(bytes.len() as u64)
        .is_none_or(|end| end > size_bytes)
    {
        return Ok(false);
    }
    let mut there = [0_u8; 32];
    let there = &mut there[..bytes.len()];
    file.read_exact_at(there, offset)?;
    Ok(there == bytes)
}

fn zfs(file: &File, size_bytes: u64) -> io::Result<Option<Found>> {
    const LABEL: u64 = 256 << 10;
    let labels = [
        Some(0),
        Some(LABEL),
        (size_bytes / LABEL * LABEL).checked_sub(2 * LABEL),
    ];
    let mut ring = vec![0_u8; 128 << 10];
    for label in labels.into_iter().flatten() {
        let offset = label + (128 << 10);
        if offset + ring.len() as u64 > size_bytes {
            continue;
        }
        file.read_exact_at(&mut ring, offset)?;
        let found = ring
            .chunks_exact(1024)
            .position(|u| u[..8] == ZFS_MAGIC || u[..8].iter().rev().eq(&ZFS_MAGIC));
        if let Some(index) = found {
            return Ok(Some(Found {
                name: "zfs member",
                offset: offset + index as u64 * 1024,
            }));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: u64, offset: u64, bytes: &[u8]) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(size).expect("room");
        file.write_all_at(bytes, offset).expect("written");
        file
    }

    #[test]
    fn each_signature_of_the_table_is_recognised_where_it_stands() {
        const SIZE: u64 = (1 << 20) + 512;
        for signature in SIGNATURES {
            let offset = match signature.at {
                At::Start(offset) => offset,
                At::End(back, unit) => SIZE / unit * unit - back,
            };
            let found = recognise(&file(SIZE, offset, signature.bytes), SIZE).expect("readable");
            assert_eq!(
                found.map(|f| (f.name, f.offset)),
                Some((signature.name, offset))
            );
        }
        let uberblock = file(SIZE, (128 << 10) + 5 * 1024, &ZFS_MAGIC);
        assert_eq!(
            recognise(&uberblock, SIZE)
                .expect("readable")
                .map(|f| f.name),
            Some("zfs member")
        );
    }

    #[test]
    fn zeros_and_devices_of_any_size_hold_nothing() {
        for size in [0, 1, 511, 512, 4096, 70_000, 1 << 20] {
            assert_eq!(
                recognise(&file(size, 0, &[]), size).expect("readable"),
                None,
                "{size}"
            );
        }
    }

    #[test]
    fn no_signature_is_longer_than_the_buffer_it_is_compared_in() {
        assert!(SIGNATURES.iter().all(|s| s.bytes.len() <= 32));
    }
}
