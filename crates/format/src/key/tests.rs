use super::*;
use proptest::prelude::*;

const RULES: KeyRules = KeyRules {
    bucket_sectors: 128,
    first_bucket: 1,
    nbuckets: 1000,
};

fn extent(sector: u64, size: u32) -> Key {
    Key::extent(3, 1000, size, Ptr::new(sector, Gen(7)), true)
}

#[test]
fn a_made_key_has_the_words_of_the_specification() {
    let mut words = Vec::new();
    Key::freeing(0x200, Ptr(0x0b54_1000)).push_to(&mut words);
    assert_eq!(words, [0x9000_0000_2000_0000, 0, 0x0b54_1000]);
    let root = Key::node(Pos::MAX, 128, Ptr(0x5_0001));
    assert_eq!(root.high_word(), 0x9000_0000_080f_ffff);
    assert_eq!(root.offset(), 0x7fff_ffff_ffff_ffff);
}

#[test]
fn an_extent_gives_back_its_parts() {
    let key = extent(256, 8);
    assert_eq!(
        (key.inode(), key.start(), key.offset()),
        (3, Some(1000), 1008)
    );
    assert_eq!((key.size(), key.is_dirty(), key.words()), (8, true, 3));
    assert!(!key.with_dirty(false).is_dirty());
    assert_eq!(Key::hole(3, 1000, 8).ptr_count(), 0);
}

#[test]
fn cutting_the_front_moves_pointers_and_cutting_the_back_does_not() {
    let key = extent(256, 8);
    assert_eq!(
        key.cut_front(3),
        Key::extent(3, 1003, 5, Ptr::new(259, Gen(7)), true)
    );
    assert_eq!(
        key.cut_back(3),
        Key::extent(3, 1000, 5, Ptr::new(256, Gen(7)), true)
    );
    assert_eq!(key.cut_front(99).size(), 0);
    assert_eq!(key.cut_back(99).offset(), 1000);
}

#[test]
fn halves_of_an_extent_merge_again_but_not_across_buckets() {
    let key = extent(256, 8);
    let (left, right) = (key.cut_back(3), key.cut_front(5));
    assert_eq!(left.merged_with(&right, 128), Some(key));
    assert_eq!(left.merged_with(&right.with_dirty(false), 128), None);
    assert_eq!(right.merged_with(&left, 128), None);
    let across = extent(380, 8);
    assert_eq!(
        across.cut_back(4).merged_with(&across.cut_front(4), 128),
        None
    );
    let (left, right) = (Key::hole(1, 0, 40000), Key::hole(1, 40000, 40000));
    assert_eq!(left.merged_with(&right, 128), None);
}

#[test]
fn extents_must_lie_inside_one_usable_bucket() {
    assert!(RULES.check_extent(&extent(128, 128)).is_ok());
    assert!(RULES.check_extent(&extent(999 * 128, 128)).is_ok());
    assert!(RULES.check_extent(&extent(127, 1)).is_err());
    assert!(RULES.check_extent(&extent(1000 * 128, 1)).is_err());
    assert!(RULES.check_extent(&extent(129, 128)).is_err());
    assert!(RULES.check_extent(&Key::hole(0, 5, 60000)).is_ok());
}

#[test]
fn extents_on_other_devices_are_refused_and_check_pointers_are_not() {
    let on = |dev: u64| extent(128, 8).with_ptr(Ptr(dev << 51 | 128 << 8));
    assert!(RULES.check_extent(&on(0)).is_ok());
    assert!(RULES.check_extent(&on(1)).is_err());
    assert!(RULES.check_extent(&on(7)).is_err());
    assert!(RULES.check_extent(&on(8)).is_ok());
    assert!(RULES.check_extent(&on(4095)).is_ok());
    assert!(RULES.check_node(&on(4095).with_dirty(false)).is_err());
}

#[test]
fn keys_beyond_the_ends_of_the_number_line_are_refused() {
    let high = Key::hole(0, 0, 9).high_word();
    let short = Key::from_words(&[high, 8]).unwrap();
    assert_eq!(short.start(), None);
    assert!(RULES.check_extent(&short).is_err());
    let far = Key::from_words(&[high, 1 << 63]).unwrap();
    assert!(RULES.check_extent(&far).is_err());
    assert!(
        RULES
            .check_extent(&Key::hole(0, 0, 9).with_dirty(true))
            .is_err()
    );
}

#[test]
fn node_keys_need_a_pointer_a_size_and_no_dirt() {
    let node = Key::node(Pos::MAX, 128, Ptr::new(256, Gen(1)));
    assert!(RULES.check_node(&node).is_ok());
    assert!(RULES.check_node(&node.with_dirty(true)).is_err());
    assert!(RULES.check_node(&Key::hole(0, 0, 8)).is_err());
    assert!(
        RULES
            .check_node(&Key::node(Pos::MAX, 0, Ptr::new(256, Gen(1))))
            .is_err()
    );
    assert!(
        RULES
            .check_node(&Key::node(Pos::MAX, 129, Ptr::new(256, Gen(1))))
            .is_err()
    );
    assert!(
        RULES
            .check_node(&Key::freeing(128, Ptr::new(256, Gen(2))))
            .is_ok()
    );
}

#[test]
fn a_key_that_runs_over_the_end_is_named_by_its_byte() {
    let words = key_words(&[extent(128, 8), extent(256, 8)]);
    let mut bytes = vec![0; words.len() * 8];
    bytes::put_words(&mut bytes, 0, &words);
    assert_eq!(parse_keys(&bytes).unwrap().len(), 2);
    assert_eq!(parse_keys(&bytes[..40]).unwrap_err().offset, 24);
    assert_eq!(parse_keys(&bytes[..32]).unwrap_err().offset, 24);
    assert_eq!(parse_keys(&bytes[..47]).unwrap_err().offset, 47);
    bytes[7] |= 0x70;
    let error = parse_keys(&bytes).unwrap_err();
    assert_eq!((error.offset, error.found.as_str()), (0, "7 pointers"));
}

proptest! {
    #[test]
    fn words_survive_parsing_and_writing(
        raw in proptest::collection::vec((any::<u64>(), any::<u64>(), any::<[u64; 6]>()), 0..20),
    ) {
        let keys: Vec<Key> = raw
            .iter()
            .filter_map(|(high, low, ptrs)| {
                let words: Vec<u64> = [*high, *low].into_iter().chain(*ptrs).collect();
                Key::from_words(&words)
            })
            .collect();
        let words = key_words(&keys);
        let mut bytes = vec![0; words.len() * 8];
        bytes::put_words(&mut bytes, 0, &words);
        prop_assert_eq!(parse_keys(&bytes).unwrap(), keys);
    }

    #[test]
    fn no_bytes_make_keys_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        crate::fuzzing::keys(&bytes);
    }

    #[test]
    fn cutting_any_key_anywhere_keeps_its_other_end(words: [u64; 8], sectors: u32) {
        if let Some(key) = Key::from_words(&words) {
            prop_assert_eq!(key.cut_front(sectors).offset(), key.offset());
            if key.start().is_some() {
                prop_assert_eq!(key.cut_back(sectors).start(), key.start());
            }
        }
    }
}
