//! What recovery has to say about an image: findings that were tolerated, and the one error that was not.
//!
//! Ids are the rows of `docs/format.md` 11. Findings are bounded: of each id only the first few are kept in
//! words, the rest is counted, so that a damaged image cannot fill the memory with complaints.

use brigade_format::FormatError;
use std::collections::BTreeMap;
use std::fmt::Display;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Opened all the same, and reported.
    Warning,
    /// Never opened for writing; a read-only opening serves what the text of the rule says.
    BarsWriting,
    /// Never opened.
    Fatal,
}

/// One deviation from the rules of `docs/format.md` 11.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Row of the table, as "F18".
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Which structure.
    pub structure: String,
    /// Byte offset on the cache device.
    pub offset: u64,
    /// What is wrong.
    pub message: String,
}

/// Why a cache device was not opened. The caller puts the device's name in front.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{structure} at byte {byte_offset}: {message}{}", suffix(*.id))]
pub struct LoadError {
    /// Which structure.
    pub structure: String,
    /// Byte offset on the cache device.
    pub byte_offset: u64,
    /// What is wrong.
    pub message: String,
    /// Row of `docs/format.md` 11, if it is one.
    pub id: Option<&'static str>,
}

fn suffix(id: Option<&'static str>) -> String {
    id.map(|id| format!(" ({id})")).unwrap_or_default()
}

impl LoadError {
    pub(super) fn new(
        id: &'static str,
        structure: impl Display,
        byte_offset: u64,
        message: impl Display,
    ) -> LoadError {
        LoadError {
            structure: structure.to_string(),
            byte_offset,
            message: message.to_string(),
            id: Some(id),
        }
    }

    /// A structure that does not parse; `base` is where its bytes start on the device.
    pub(super) fn format(
        id: &'static str,
        structure: impl Display,
        base: u64,
        error: &FormatError,
    ) -> LoadError {
        let message = format!(
            "{}: found {}, expected {}",
            error.structure, error.found, error.expected
        );
        LoadError::new(id, structure, base.saturating_add(error.offset), message)
    }

    pub(super) fn io(
        structure: impl Display,
        byte_offset: u64,
        error: &std::io::Error,
    ) -> LoadError {
        let message = format!("cannot read: {error}");
        LoadError {
            structure: structure.to_string(),
            byte_offset,
            message,
            id: None,
        }
    }
}

/// How many findings of one id are kept in words.
const KEPT_PER_ID: u64 = 8;

/// Collects findings and stops the opening at the first that may not be tolerated.
pub(super) struct Findings {
    read_only: bool,
    kept: Vec<Finding>,
    counts: BTreeMap<&'static str, u64>,
}

impl Findings {
    pub(super) fn new(read_only: bool) -> Findings {
        Findings {
            read_only,
            kept: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Notes a finding, or fails with it if this opening may not tolerate it.
    pub(super) fn report(
        &mut self,
        id: &'static str,
        severity: Severity,
        structure: impl Display,
        offset: u64,
        message: impl Display,
    ) -> Result<(), LoadError> {
        if severity == Severity::Fatal || (severity == Severity::BarsWriting && !self.read_only) {
            return Err(LoadError::new(id, structure, offset, message));
        }
        let count = self.counts.entry(id).or_insert(0);
        *count += 1;
        if *count <= KEPT_PER_ID {
            let (structure, message) = (structure.to_string(), message.to_string());
            self.kept.push(Finding {
                id,
                severity,
                structure,
                offset,
                message,
            });
        }
        Ok(())
    }

    pub(super) fn warn(
        &mut self,
        id: &'static str,
        structure: impl Display,
        offset: u64,
        message: impl Display,
    ) {
        let stopped = self.report(id, Severity::Warning, structure, offset, message);
        debug_assert!(stopped.is_ok(), "a warning stops nothing");
    }

    /// What was kept, with a closing line for each id of which more was seen.
    /// Nothing was reported so far.
    pub(super) fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    pub(super) fn finish(mut self) -> Vec<Finding> {
        for (&id, &count) in self
            .counts
            .iter()
            .filter(|(_, count)| **count > KEPT_PER_ID)
        {
            let Some(first) = self.kept.iter().find(|f| f.id == id).cloned() else {
                continue;
            };
            let message = format!("{} more like these", count - KEPT_PER_ID);
            self.kept.push(Finding { message, ..first });
        }
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_structure_offset_and_rule() {
        let error = LoadError::new("F46", "btree node", 8192, "bad csum");
        assert_eq!(error.to_string(), "btree node at byte 8192: bad csum (F46)");
        let error = LoadError::io("prio bucket", 0, &std::io::Error::other("gone"));
        assert_eq!(
            error.to_string(),
            "prio bucket at byte 0: cannot read: gone"
        );
    }

    #[test]
    fn what_bars_writing_stops_only_an_opening_that_writes() {
        let bars = |read_only| {
            Findings::new(read_only)
                .report("F19", Severity::BarsWriting, "journal", 0, "later entry")
                .is_ok()
        };
        assert!(bars(true) && !bars(false));
        assert!(
            Findings::new(true)
                .report("F15", Severity::Fatal, "journal", 0, "gap")
                .is_err()
        );
    }

    #[test]
    fn findings_of_one_kind_are_bounded_and_counted() {
        let mut findings = Findings::new(false);
        (0..1000).for_each(|i| findings.warn("F44", "bucket", i, "ahead"));
        let kept = findings.finish();
        assert_eq!(kept.len() as u64, KEPT_PER_ID + 1);
        assert_eq!(kept.last().unwrap().message, "992 more like these");
    }
}
