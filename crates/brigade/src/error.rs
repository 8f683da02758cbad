//! Why something could not be done: one line.

use std::fmt;

/// A failure; displays as one line that names the device or path.
#[derive(Clone, Debug)]
pub struct Error(String);

impl Error {
    /// From anything that can be said in one line.
    pub fn new(what: impl fmt::Display) -> Error {
        Error(what.to_string())
    }

    /// Something about a path.
    pub(crate) fn at(path: impl fmt::Display, what: impl fmt::Display) -> Error {
        Error(format!("{path}: {what}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        std::io::Error::other(error)
    }
}
