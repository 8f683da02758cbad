//! The benchmark runs through on small sizes.

use brigade_benches::alloc;

#[test]
fn every_part_of_the_quick_benchmark_prints_figures() {
    for part in alloc::PARTS {
        let report = alloc::run(true, Some(part));
        assert!(report.rows() > 0, "{part}");
    }
}
