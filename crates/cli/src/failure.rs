//! Why a verb ends without having done its work, and the status the process ends with.

use std::fmt;
use std::process::ExitCode;

/// The end of a verb that could not do it.
#[derive(Debug)]
pub enum Failure {
    /// What, where, what was done about it: one line, exit status 1.
    Cannot(String),
    /// All has been said already; exit status 1.
    Said,
    /// All has been said already; with an exit status of the verb's own.
    Status(u8),
    /// The call makes no sense: exit status 2.
    Usage(String),
    /// Whoever read our output has gone; nobody is left to tell.
    NobodyReads,
}

/// What verbs return.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// `cannot(format!(..))`.
    pub fn cannot(what: impl fmt::Display) -> Failure {
        Failure::Cannot(what.to_string())
    }

    /// Says it on standard error, in one line, and gives the exit status.
    pub fn report(self) -> ExitCode {
        match self {
            Failure::Cannot(what) => {
                eprintln!("brigade: {}", one_line(&what));
                ExitCode::from(1)
            }
            Failure::Said => ExitCode::from(1),
            Failure::Status(status) => ExitCode::from(status),
            Failure::Usage(what) => {
                eprintln!("brigade: {}", one_line(&what));
                ExitCode::from(2)
            }
            Failure::NobodyReads => ExitCode::SUCCESS,
        }
    }
}

/// Errors of writing to standard output.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::NobodyReads,
            _ => Failure::Cannot(format!("standard output: {error}")),
        }
    }
}

/// Text from anywhere, fit for one line on a terminal.
pub fn one_line(text: &str) -> String {
    text.trim()
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
