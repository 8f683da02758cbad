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
