//! Printing facts.

use crate::failure::{Failure, Outcome};
use serde::Serialize;
use std::io::Write;

/// One JSON value on standard output, indented.
pub fn print_json(value: &impl Serialize) -> Outcome {
    let mut text = serde_json::to_string_pretty(value).map_err(Failure::cannot)?;
    text.push('\n');
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// A line on standard output; for use through [`say!`].
pub fn print_line(line: std::fmt::Arguments<'_>) -> Outcome {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

/// `println!` that is an error instead of a panic when nobody reads any more.
macro_rules! say {
    ($($part:tt)*) => { crate::output::print_line(format_args!($($part)*)) };
}
pub(crate) use say;
