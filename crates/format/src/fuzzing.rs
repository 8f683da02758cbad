//! What the fuzz targets run, as plain functions, so that ordinary tests run the same over random and
//! mutated input. Each must return for any bytes; what it asserts is that what was read writes back the same.

use crate::bytes;
use crate::key::{KeyRules, key_words, parse_keys};

/// Keys: parse, judge, cut, print, write back.
pub fn keys(input: &[u8]) {
    let Ok(keys) = parse_keys(input) else {
        return;
    };
    let rules = KeyRules {
        bucket_sectors: 128,
        first_bucket: 1,
        nbuckets: 4096,
    };
    for key in &keys {
        let _ = (
            rules.check_extent(key),
            rules.check_node(key),
            key.to_string(),
        );
        let _ = key
            .cut_front(key.size() / 2)
            .merged_with(&key.cut_back(1), 128);
    }
    let words = key_words(&keys);
    let mut output = vec![0; words.len() * 8];
    bytes::put_words(&mut output, 0, &words);
    assert_eq!(output, input, "keys must write back as they were read");
}
