//! The benchmark runs through on small sizes.

use brigade_benches::{alloc, index};

#[test]
fn every_part_of_the_quick_benchmark_prints_figures() {
    for part in alloc::PARTS {
        let report = alloc::run(true, Some(part));
        assert!(report.rows() > 0, "{part}");
    }
}

#[test]
fn all_maps_of_the_index_benchmark_give_the_same_answers() {
    assert_eq!(index::run(&[100, 5000]).rows(), 28);
}
