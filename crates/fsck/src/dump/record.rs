//! Records and their two shapes on a line.

use serde_json::Value;
use std::io::{self, Write};

/// How records are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// For people.
    Text,
    /// One object to a line.
    Json,
}

/// A fact.
pub(crate) struct Record {
    section: &'static str,
    kind: &'static str,
    fields: Vec<(&'static str, Value)>,
}

impl Record {
    pub fn new(section: &'static str, kind: &'static str) -> Record {
        Record {
            section,
            kind,
            fields: Vec::new(),
        }
    }

    /// Something is wrong.
    pub fn error(section: &'static str, what: impl Into<String>) -> Record {
        Record::new(section, "error").with("error", what.into())
    }

    /// One field more; `Null` is left out of text.
    pub fn with(mut self, name: &'static str, value: impl Into<Value>) -> Record {
        self.fields.push((name, value.into()));
        self
    }
}

/// Prints records as they come.
pub(crate) struct Writer<'a> {
    out: &'a mut dyn Write,
    style: Style,
    errors: u64,
}

impl<'a> Writer<'a> {
    pub fn new(out: &'a mut dyn Write, style: Style) -> Self {
        Writer {
            out,
            style,
            errors: 0,
        }
    }

    /// Errors printed so far.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    pub fn put(&mut self, record: Record) -> io::Result<()> {
        self.errors += u64::from(record.kind == "error");
        match self.style {
            Style::Text => self.text(&record),
            Style::Json => self.json(&record),
        }
    }

    fn text(&mut self, record: &Record) -> io::Result<()> {
        write!(self.out, "{} {}", record.section, record.kind)?;
        for (name, value) in record.fields.iter().filter(|(_, value)| !value.is_null()) {
            match value {
                Value::String(text)
                    if !text.is_empty() && !text.contains([' ', '"']) && is_plain(text) =>
                {
                    write!(self.out, " {name}={text}")?;
                }
                other => write!(self.out, " {name}={other}")?,
            }
        }
        writeln!(self.out)
    }

    fn json(&mut self, record: &Record) -> io::Result<()> {
        let (section, kind) = (record.section, record.kind);
        write!(self.out, "{{\"section\":\"{section}\",\"kind\":\"{kind}\"")?;
        for (name, value) in &record.fields {
            write!(self.out, ",\"{name}\":{value}")?;
        }
        writeln!(self.out, "}}")
    }
}

fn is_plain(text: &str) -> bool {
    !text.chars().any(char::is_control)
}
