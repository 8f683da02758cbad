//! Values as people write and read them.

use super::{Definition, Kind, TimeUnit, Unit};
use serde::Serialize;
use std::fmt;

/// What somebody wrote is no value of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotAValue(String);

impl fmt::Display for NotAValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotAValue {}

/// A value for people: `4.0M`, `on`, `writeback`.
pub struct Shown(String);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A value for programs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Plain {
    /// On or off.
    Switch(bool),
    /// A number in the unit of the setting.
    Number(u64),
    /// A time that is no whole number of it.
    Fraction(f64),
    /// One of the words.
    Word(&'static str),
}

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Plain::Switch(is_on) => write!(f, "{is_on}"),
            Plain::Number(number) => write!(f, "{number}"),
            Plain::Fraction(number) => write!(f, "{number}"),
            Plain::Word(word) => f.write_str(word),
        }
    }
}

impl TimeUnit {
    /// In microseconds.
    pub(super) fn micros(self) -> u64 {
        match self {
            TimeUnit::Seconds => 1_000_000,
            TimeUnit::Millis => 1000,
            TimeUnit::Micros => 1,
        }
    }

    /// As it is written.
    pub fn symbol(self) -> &'static str {
        match self {
            TimeUnit::Seconds => "s",
            TimeUnit::Millis => "ms",
            TimeUnit::Micros => "us",
        }
    }
}

impl Definition {
    /// Least and greatest value, in what it is kept in.
    pub fn range(&self) -> (u64, u64) {
        match self.kind {
            Kind::Switch => (0, 1),
            Kind::Number(_, least, most) => (least, most),
            Kind::Time(unit, least, most) => (least * unit.micros(), most * unit.micros()),
            Kind::Choice(words) => (0, words.len() as u64 - 1),
        }
    }

    /// What somebody wrote, in what it is kept in and not yet cut to the range. Numbers are plain decimal ones; bytes and rates
    /// take `k` to `e`, times `us`, `ms`, `s`, `m` and `h`.
    pub fn parse(&self, text: &str) -> Result<u64, NotAValue> {
        let text = text.trim();
        let value = match self.kind {
            Kind::Choice(words) => words
                .iter()
                .position(|word| *word == text)
                .map(|at| at as u64),
            Kind::Switch => match text {
                "on" | "true" | "yes" => Some(1),
                "off" | "false" | "no" => Some(0),
                _ => plain(text).map(|number| u64::from(number != 0)),
            },
            Kind::Number(Unit::Bytes, ..) => size(text),
            Kind::Number(Unit::Percent, ..) => plain(text.strip_suffix('%').unwrap_or(text)),
            Kind::Number(..) => plain(text),
            Kind::Time(unit, ..) => time(text, unit),
        };
        value.ok_or_else(|| {
            NotAValue(format!(
                "{}: {text:?} is no value; it takes {}",
                self.name,
                self.values()
            ))
        })
    }

    /// What values there are, for people.
    pub fn values(&self) -> String {
        match self.kind {
            Kind::Switch => "on or off".into(),
            Kind::Choice(words) => words.join(", "),
            Kind::Number(unit, least, most) => format!("{least} to {most}{}", unit_of(unit)),
            Kind::Time(unit, least, most) => format!("{least} to {most} {}", unit.symbol()),
        }
    }

    /// A value for people.
    pub fn shown(&self, value: u64) -> Shown {
        Shown(match self.kind {
            Kind::Switch => if value == 0 { "off" } else { "on" }.into(),
            Kind::Choice(words) => (*words.get(value as usize).unwrap_or(&"?")).into(),
            Kind::Number(Unit::Bytes, ..) => human(value as i64),
            Kind::Number(Unit::SectorsPerSecond, ..) => {
                format!("{}/s", human(value.saturating_mul(512) as i64))
            }
            Kind::Number(Unit::Percent, ..) => format!("{value}%"),
            Kind::Number(Unit::Count, ..) => value.to_string(),
            Kind::Time(unit, ..) => {
                format!("{} {}", value as f64 / unit.micros() as f64, unit.symbol())
            }
        })
    }

    /// A value for programs: a number in the unit of the setting, a truth, a word.
    pub fn plain(&self, value: u64) -> Plain {
        match self.kind {
            Kind::Switch => Plain::Switch(value != 0),
            Kind::Choice(words) => Plain::Word(words.get(value as usize).unwrap_or(&"?")),
            Kind::Number(..) => Plain::Number(value),
            Kind::Time(unit, ..) if value.is_multiple_of(unit.micros()) => {
                Plain::Number(value / unit.micros())
            }
            Kind::Time(unit, ..) => Plain::Fraction(value as f64 / unit.micros() as f64),
        }
    }
}

fn unit_of(unit: Unit) -> &'static str {
    match unit {
        Unit::Bytes => " bytes",
        Unit::SectorsPerSecond => " sectors a second",
        Unit::Percent => " percent",
        Unit::Count => "",
    }
}

/// A decimal number without sign; one that is too large for 64 bits is as large as they are, since it is cut to a range anyway.
fn plain(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// The same with a suffix; too large is an error here (G.7).
fn size(text: &str) -> Option<u64> {
    let split = text.find(|letter: char| !letter.is_ascii_digit());
    let Some(at) = split else { return plain(text) };
    let number: u64 = text[..at].parse().ok()?;
    let shift = match &*text[at..].to_ascii_lowercase() {
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        "e" => 60,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// In microseconds. A fraction is understood.
fn time(text: &str, unit: TimeUnit) -> Option<u64> {
    let at = text
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(text.len());
    let micros = match text[at..].trim() {
        "" => unit.micros(),
        "us" => 1,
        "ms" => 1000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        _ => return None,
    };
    match plain(&text[..at]) {
        Some(number) => Some(number.saturating_mul(micros)),
        None => {
            let number: f64 = text[..at].parse().ok()?;
            // A cast saturates, and there is no sign in the text.
            Some((number * micros as f64) as u64)
        }
    }
}

/// Bytes as the kernel shows them (G.7): divided by 1024 at least once and until below 1000, one decimal that is cut off.
pub fn human(bytes: i64) -> String {
    let mut letters = "kMGTPE".chars();
    let mut unit = bytes.unsigned_abs();
    loop {
        let (value, rest) = (unit / 1024, unit % 1024);
        let letter = letters.next().unwrap_or('E');
        if value < 1000 {
            let sign = if bytes < 0 { "-" } else { "" };
            return format!("{sign}{value}.{}{letter}", rest * 10 / 1024);
        }
        unit = value;
    }
}
