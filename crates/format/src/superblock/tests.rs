use super::*;
use crate::testing::hex;
use proptest::prelude::*;

fn new_cache() -> NewCache {
    NewCache {
        device_sectors: 1024 * 128 + 7,
        bucket_sectors: 128,
        block_sectors: 1,
        uuid: [1; 16],
        set_uuid: [2; 16],
        discard: true,
        replacement: Replacement::Fifo,
    }
}

fn new_backing() -> NewBacking {
    NewBacking {
        device_sectors: 100_000,
        data_offset: 16,
        block_sectors: 8,
        uuid: [3; 16],
        set_uuid: [2; 16],
        mode: CacheMode::Writeback,
        label: "attic".into(),
    }
}

/// A fresh version 0 cache superblock as a formatter left it, bytes 8 to 208.
const FRESH: &str = "08000000000000000000000000000000c68573f64e1a45ca8265f57f48ba6d81
    fa678b6198bb40e78aecfc033f466a81d5036ced794c4cb39b9273db3fe05532
    0000000000000000000000000000000000000000000000000000000000000000
    0000000000000000000000000000000000000000000000000000000000000000
    0000000000000000000000000000000000000000000000000000000000000000
    0000000000000000000000000000000000080000000000000800000401000000
    0000000001000000";

fn fresh() -> Vec<u8> {
    let mut bytes = vec![0; BYTES];
    put(&mut bytes, 8, &hex(FRESH));
    put(&mut bytes, 0, &0x88c0_c7a3_dcaf_fb83u64.to_le_bytes());
    bytes
}

/// `change` applied to the bytes of a superblock, with the checksum made right again.
fn resealed(bytes: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut raw = *bytes.first_chunk::<BYTES>().unwrap();
    change(&mut raw);
    seal(&mut raw);
    raw.to_vec()
}

#[test]
fn the_published_superblock_has_the_published_checksum() {
    let superblock = Superblock::parse(&fresh()).unwrap();
    assert_eq!(superblock.role(), Role::Cache);
    assert_eq!(
        (superblock.nbuckets, superblock.bucket_sectors()),
        (2048, 1024)
    );
    let geometry = superblock.cache_geometry(2048 * 1024, 512).unwrap();
    assert_eq!((geometry.node_sectors, geometry.uuid_slots), (512, 4096));
    assert_eq!(superblock.encode().to_vec(), fresh());
}

#[test]
fn a_wrong_byte_anywhere_under_the_checksum_is_noticed() {
    for at in 0..208 {
        let mut bytes = fresh();
        bytes[at] ^= 0x10;
        assert!(Superblock::parse(&bytes).is_err(), "byte {at}");
    }
}

#[test]
fn unknown_bytes_are_written_back_as_read() {
    let bytes = resealed(&fresh(), |raw| {
        raw[144..184].fill(0xa5);
        raw[3000..].fill(0x5a);
        raw[FLAG_BYTE] |= 0x40;
    });
    let mut superblock = Superblock::parse(&bytes).unwrap();
    superblock.set_sync(true);
    superblock.journal = vec![1, 2, 3];
    superblock.count_write();
    let written = superblock.encode();
    let again = Superblock::parse(&written).unwrap();
    assert_eq!((again.version, again.seq, again.is_sync()), (3, 1, true));
    assert_eq!(again.journal, [1, 2, 3]);
    assert_eq!(again.unknown_flags(), 0x40 << 24);
    assert_eq!(written[144..184], bytes[144..184]);
    assert_eq!(written[3000..], bytes[3000..]);
}

/// A byte of the flags in which no bit means anything to a cache device.
const FLAG_BYTE: usize = 107;

#[test]
fn a_journal_longer_than_the_list_is_refused_before_it_is_summed() {
    let bytes = resealed(&fresh(), |raw| {
        put(raw, at::NJOURNAL, &257u16.to_le_bytes())
    });
    let error = Superblock::parse(&bytes).unwrap_err();
    assert_eq!(error.structure, "superblock njournal");
}

#[test]
fn a_new_cache_device_is_blank_and_fits() {
    let superblock = Superblock::new_cache(&new_cache()).unwrap();
    assert_eq!((superblock.version, superblock.nbuckets), (3, 1024));
    assert!(!superblock.is_sync() && superblock.discard());
    assert_eq!(superblock.replacement(), Some(Replacement::Fifo));
    assert_eq!(superblock.first_bucket, 1);
    let small = NewCache {
        bucket_sectors: 8,
        ..new_cache()
    };
    assert_eq!(Superblock::new_cache(&small).unwrap().first_bucket, 3);
}

#[test]
fn large_buckets_are_written_as_a_logarithm() {
    let large = NewCache {
        bucket_sectors: 1 << 16,
        device_sectors: 600 << 16,
        ..new_cache()
    };
    let superblock = Superblock::new_cache(&large).unwrap();
    assert_eq!((superblock.version, superblock.feature_incompat), (5, 2));
    assert_eq!(
        (superblock.bucket_size, superblock.bucket_sectors()),
        (16, 65536)
    );
    let geometry = superblock.cache_geometry(600 << 16, 512).unwrap();
    assert_eq!((geometry.meta_sectors, geometry.node_sectors), (8192, 2048));
    assert!(!geometry.read_only_layout);
}

#[test]
fn bad_wishes_for_a_cache_device_are_refused() {
    let refused = |new: NewCache| Superblock::new_cache(&new).unwrap_err().structure;
    let with = |bucket_sectors| NewCache {
        bucket_sectors,
        ..new_cache()
    };
    assert_eq!(refused(with(0)), "superblock bucket_size");
    assert_eq!(refused(with(4)), "superblock bucket_size");
    assert_eq!(refused(with(100)), "superblock bucket_size");
    assert_eq!(refused(with((1 << 16) + 1)), "superblock bucket_size");
    assert_eq!(refused(with(2048)), "superblock nbuckets");
    let block = |block_sectors| NewCache {
        block_sectors,
        ..new_cache()
    };
    assert_eq!(refused(block(0)), "superblock block_size");
    assert_eq!(refused(block(3)), "superblock block_size");
    assert_eq!(refused(block(16)), "superblock block_size");
    assert_eq!(
        refused(NewCache {
            set_uuid: [0; 16],
            ..new_cache()
        }),
        "superblock set_uuid"
    );
    assert_eq!(
        refused(NewCache {
            uuid: [0; 16],
            ..new_cache()
        }),
        "superblock uuid"
    );
}

/// T36.
#[test]
fn the_cache_rules_reject_each_broken_field() {
    let whole = |change: fn(&mut Superblock)| {
        let mut superblock = Superblock::new_cache(&new_cache()).unwrap();
        superblock.journal = vec![1, 2];
        superblock.set_sync(true);
        change(&mut superblock);
        superblock
            .cache_geometry(1024 * 128, 512)
            .err()
            .map(|error| error.structure)
    };
    assert_eq!(whole(|_| ()), None);
    assert_eq!(whole(|s| s.nbuckets = 127), Some("superblock nbuckets"));
    assert_eq!(whole(|s| s.nbuckets = 128), None);
    assert_eq!(whole(|s| s.nbuckets = 1025), Some("superblock nbuckets"));
    assert_eq!(
        whole(|s| s.nbuckets = u64::MAX),
        Some("superblock nbuckets")
    );
    assert_eq!(
        whole(|s| s.nbuckets = (1 << 63) - 1),
        Some("superblock nbuckets")
    );
    assert_eq!(whole(|s| s.nr_in_set = 2), Some("superblock nr_in_set"));
    assert_eq!(whole(|s| s.nr_this_dev = 1), Some("superblock nr_this_dev"));
    assert_eq!(
        whole(|s| s.journal = vec![1, 3]),
        Some("superblock journal bucket")
    );
    assert_eq!(whole(|s| s.journal = vec![1]), Some("superblock njournal"));
    assert_eq!(
        whole(|s| s.first_bucket = 2),
        Some("superblock journal bucket")
    );
    assert_eq!(whole(|s| s.version = 4), Some("superblock version"));
    let refused_start = whole(|s| {
        s.first_bucket = 0;
        s.journal = vec![0, 1];
    });
    assert_eq!(refused_start, Some("superblock first_bucket"));
}

#[test]
fn feature_bits_count_in_version_5_only() {
    let with = |version, incompat| {
        let mut superblock = Superblock::new_cache(&new_cache()).unwrap();
        superblock.version = version;
        superblock.feature_incompat = incompat;
        superblock.cache_geometry(1024 * 128, 512)
    };
    assert!(with(3, 4).is_ok());
    assert_eq!(
        with(5, 4).unwrap_err().structure,
        "superblock feature_incompat"
    );
    assert!(with(5, 1).unwrap().read_only_layout);
    assert!(!with(3, 1).unwrap().read_only_layout);
    // A logarithm of 128 is no bucket size.
    assert_eq!(with(5, 2).unwrap_err().structure, "superblock bucket_size");
}

#[test]
fn node_sizes_follow_the_table() {
    let sizes = [
        (8, 8),
        (128, 128),
        (256, 256),
        (512, 512),
        (1024, 512),
        (2048, 512),
        (4096, 1024),
    ];
    for (bucket_sectors, node_sectors) in sizes {
        let new = NewCache {
            bucket_sectors,
            device_sectors: 1000 * u64::from(bucket_sectors),
            ..new_cache()
        };
        let made = Superblock::new_cache(&new).unwrap();
        let geometry = made.cache_geometry(new.device_sectors, 512).unwrap();
        assert_eq!(
            geometry.node_sectors, node_sectors,
            "bucket of {bucket_sectors}"
        );
    }
}

#[test]
fn a_new_backing_device_is_unattached_and_fits() {
    let superblock = Superblock::new_backing(&new_backing()).unwrap();
    assert_eq!(
        (superblock.version, superblock.label()),
        (1, "attic".into())
    );
    assert_eq!(superblock.state(), BackingState::None);
    assert_eq!(superblock.cache_mode(), Some(CacheMode::Writeback));
    assert_eq!(superblock.backing_data_offset(100_000, 4096), Ok(16));
    let offset = NewBacking {
        data_offset: 2048,
        ..new_backing()
    };
    let superblock = Superblock::new_backing(&offset).unwrap();
    assert_eq!((superblock.version, superblock.data_start()), (4, 2048));
}

#[test]
fn the_backing_rules_reject_each_broken_field() {
    let whole = |change: fn(&mut Superblock)| {
        let wish = NewBacking {
            data_offset: 64,
            ..new_backing()
        };
        let mut superblock = Superblock::new_backing(&wish).unwrap();
        change(&mut superblock);
        superblock
            .backing_data_offset(1000, 512)
            .err()
            .map(|error| error.structure)
    };
    assert_eq!(whole(|_| ()), None);
    assert_eq!(
        whole(|s| s.data_offset = 15),
        Some("superblock data_offset")
    );
    assert_eq!(
        whole(|s| s.data_offset = 1000),
        Some("superblock data_offset")
    );
    assert_eq!(whole(|s| s.block_size = 0), Some("superblock block_size"));
    assert_eq!(whole(|s| s.block_size = 6), Some("superblock block_size"));
    assert_eq!(whole(|s| s.flags = 9), Some("superblock cache mode"));
    assert_eq!(whole(|s| s.version = 3), Some("superblock version"));
}

#[test]
fn a_block_smaller_than_the_device_can_write_is_refused() {
    let superblock = Superblock::new_cache(&new_cache()).unwrap();
    assert!(superblock.cache_geometry(1024 * 128, 4096).is_err());
}

#[test]
fn a_label_is_cut_at_a_character_and_ends_at_a_nul() {
    assert_eq!(label_text(&label_bytes(&"é".repeat(20))), "é".repeat(16));
    assert_eq!(
        label_text(&label_bytes(&format!("x{}", "é".repeat(20)))).len(),
        31
    );
    assert_eq!(label_text(b"ab\0cdefghijklmnopqrstuvwxyz01234"), "ab");
}

#[test]
fn flags_of_one_kind_leave_the_others_alone() {
    let mut superblock = Superblock::new_backing(&new_backing()).unwrap();
    superblock.flags |= 1 << 30;
    superblock.set_state(BackingState::Dirty);
    superblock.set_cache_mode(CacheMode::None);
    assert_eq!(superblock.state(), BackingState::Dirty);
    assert_eq!(superblock.cache_mode(), Some(CacheMode::None));
    assert_eq!(superblock.unknown_flags(), 1 << 30);
}

proptest! {
    #[test]
    fn no_bytes_make_a_superblock_panic(
        noise in proptest::collection::vec(any::<u8>(), BYTES),
        version in 0u64..8,
        njournal in 0u16..260,
    ) {
        let bytes = resealed(&noise, |raw| {
            put(raw, at::OFFSET, &8u64.to_le_bytes());
            put(raw, at::VERSION, &version.to_le_bytes());
            put(raw, at::MAGIC, &MAGIC);
            put(raw, at::NJOURNAL, &njournal.to_le_bytes());
        });
        crate::fuzzing::superblock(&bytes);
    }

    #[test]
    fn a_flipped_bit_never_panics(bit in 0..BYTES * 8) {
        let mut bytes = fresh();
        bytes[bit / 8] ^= 1 << (bit % 8);
        crate::fuzzing::superblock(&bytes);
        let resealed = resealed(&bytes, |_| ());
        crate::fuzzing::superblock(&resealed);
    }
}
