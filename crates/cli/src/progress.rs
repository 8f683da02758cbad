//! Progress of something that takes a while, on standard error.

use crate::failure::one_line;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a line is written where lines stay.
const LINE: Duration = Duration::from_secs(5);

/// One line that changes on a terminal, a line now and then elsewhere.
#[derive(Default)]
pub struct Progress {
    last: String,
    said: Option<Instant>,
}

impl Progress {
    /// Says how far it is, if that is news.
    pub fn show(&mut self, how: &str) {
        let is_terminal = std::io::stderr().is_terminal();
        let is_due = self.said.is_none_or(|said| said.elapsed() >= LINE);
        if self.last == how || !(is_terminal || is_due) {
            return;
        }
        let how = one_line(how);
        let mut stderr = std::io::stderr().lock();
        // Progress that nobody reads is no failure.
        let _ = match is_terminal {
            true => write!(stderr, "\r\x1b[K{how}"),
            false => writeln!(stderr, "{how}"),
        };
        let _ = stderr.flush();
        self.last = how;
        self.said = Some(Instant::now());
    }

    /// Leaves nothing behind on a terminal.
    pub fn end(&self) {
        if self.said.is_some() && std::io::stderr().is_terminal() {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}
