//! The checker against sets made here, one broken rule at a time, against a naive reading of section 8.5, and against
//! content that means it harm.

mod hostile;
mod made;
mod naive;
mod rules;

use super::{Options, Report, Severity, Verdict, run};
use crate::source::Device;

/// A device in memory.
pub(super) fn device<'a>(name: &str, image: &'a Vec<u8>) -> Device<'a> {
    Device {
        name: name.into(),
        source: image,
        size_bytes: image.len() as u64,
        logical_block_bytes: 512,
    }
}

/// Checks a cache device alone; that its backing device is missing is expected.
pub(super) fn check(image: &Vec<u8>) -> Report {
    check_with(image, &Options::default())
}

/// As [`check`], as told.
pub(super) fn check_with(image: &Vec<u8>, options: &Options) -> Report {
    let mut report = run(&[device("c", image)], options, &mut |_| {});
    report.counts.remove(&("F61", Severity::Note));
    report.findings.retain(|finding| finding.id != "F61");
    report
}

/// Rules and severities that were met, each once.
pub(super) fn met(report: &Report) -> Vec<(&'static str, Severity)> {
    report.counts.keys().copied().collect()
}

/// The verdict goes with what was met.
pub(super) fn assert_consistent(report: &Report) {
    let is_error = report.count(Severity::Error) > 0;
    assert_eq!(report.verdict() == Verdict::Errors, is_error);
    let kept = report.findings.len() as u64;
    assert!(kept <= report.counts.values().sum());
}
