//! The one error of this crate: what was found where, and what would have been right.
//!
//! It names a structure and a byte offset in the slice that was parsed. The caller knows which device and
//! which bucket the slice came from and adds that.

use thiserror::Error;

/// Bytes that break a rule of the format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{structure} at byte {offset}: found {found}, expected {expected}")]
pub struct FormatError {
    /// The structure, and its field where there is one, in the words of `docs/format.md`.
    pub structure: &'static str,
    /// Byte offset in the slice that was given, not on the device.
    pub offset: u64,
    /// What the bytes say.
    pub found: String,
    /// What the rule asks for.
    pub expected: String,
}

impl FormatError {
    /// An error from its parts; `offset` is a byte offset in the slice that is being parsed.
    pub fn new(
        structure: &'static str,
        offset: u64,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) -> Self {
        Self {
            structure,
            offset,
            found: found.into(),
            expected: expected.into(),
        }
    }

    /// The same error seen from an enclosing slice in which this one starts at `by`.
    #[must_use]
    pub fn shifted(mut self, by: u64) -> Self {
        self.offset = self.offset.saturating_add(by);
        self
    }
}

/// `Ok` if `holds`, else an error; the texts are only made when needed.
pub(crate) fn ensure(
    holds: bool,
    structure: &'static str,
    offset: u64,
    found: impl FnOnce() -> String,
    expected: &str,
) -> Result<(), FormatError> {
    if holds {
        Ok(())
    } else {
        Err(FormatError::new(structure, offset, found(), expected))
    }
}
