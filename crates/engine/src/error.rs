//! What can go wrong, and the switch that is thrown when durability failed.
//!
//! ```text
//! FormatError / LoadError (structure, offset) ──► Error (device, what) ──► one line for the user
//! io::Error (errno) ────────────────────────────► Error or, in the request path, straight to the client
//! failed journal or metadata write ─────────────► Poison ──► every later write and flush fails
//! ```

use crate::marks::{self, Mark};
use crate::mutations::{self, Mutation};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;

/// What kind of trouble, for callers that branch on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The bytes on a device are not what they should be.
    Format,
    /// The device failed or is not usable.
    Device,
    /// The devices are fine one by one but must not be served together, or not like this.
    Refused,
    /// A journal or metadata write failed earlier: nothing more is acknowledged.
    Poisoned,
}

/// A failure, with the device it is about. Displays as one line.
#[derive(Clone, Debug)]
pub struct Error {
    /// What to branch on.
    pub kind: ErrorKind,
    /// Path of the device.
    pub device: String,
    /// Structure, offset and what was found there.
    pub what: String,
}

impl Error {
    /// Bytes on `device` are wrong.
    pub fn format(device: &str, what: impl fmt::Display) -> Self {
        Error {
            kind: ErrorKind::Format,
            device: device.into(),
            what: what.to_string(),
        }
    }

    /// The devices are refused as given.
    pub fn refused(device: &str, what: impl fmt::Display) -> Self {
        Error {
            kind: ErrorKind::Refused,
            device: device.into(),
            what: what.to_string(),
        }
    }

    /// An I/O failed; `doing` says which.
    pub fn io(device: &str, doing: &str, error: &io::Error) -> Self {
        Error {
            kind: ErrorKind::Device,
            device: device.into(),
            what: format!("{doing}: {error}"),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.device, self.what)
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::other(error.to_string())
    }
}

/// Thrown once, never reset: after a failed journal or metadata write nothing is acknowledged any more (promise P4).
#[derive(Default)]
pub struct Poison {
    /// Wake those who would wait for ever.
    alarms: RefCell<Vec<Box<dyn Fn()>>>,
    thrown: Cell<bool>,
    reason: RefCell<Option<String>>,
}

impl Poison {
    /// Throws it; the first reason stays.
    pub fn throw(&self, reason: impl fmt::Display) {
        if mutations::is(Mutation::PoisonForgotten) {
            return;
        }
        if !self.thrown.replace(true) {
            marks::hit(Mark::PoisonThrown);
            tracing::error!(%reason, "poisoned: no later write is acknowledged");
            *self.reason.borrow_mut() = Some(reason.to_string());
            self.alarms.borrow().iter().for_each(|alarm| alarm());
        }
    }

    /// Has `alarm` called once it is thrown. It may wake waiters and nothing else.
    pub fn when_thrown(&self, alarm: impl Fn() + 'static) {
        self.alarms.borrow_mut().push(Box::new(alarm));
    }

    /// Whether it was thrown.
    pub fn is_thrown(&self) -> bool {
        self.thrown.get()
    }

    /// Why, if it was.
    pub fn reason(&self) -> Option<String> {
        self.reason.borrow().clone()
    }

    /// Fails if it was thrown.
    pub fn check(&self) -> io::Result<()> {
        if self.thrown.get() {
            let reason = self.reason().unwrap_or_default();
            return Err(io::Error::other(format!("poisoned: {reason}")));
        }
        Ok(())
    }
}
