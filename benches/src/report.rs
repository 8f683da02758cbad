//! The table: a figure, what it should be, and whether it is.

use rustix::time::{ClockId, clock_gettime};
use std::fmt::Write as _;

/// What a figure is held to.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// For information.
    None,
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Target::AtLeast(least) => value >= least,
            Target::AtMost(most) => value <= most,
            Target::None => true,
        }
    }

    fn text(self, unit: &str) -> String {
        match self {
            Target::AtLeast(least) => format!(">= {least} {unit}"),
            Target::AtMost(most) => format!("<= {most} {unit}"),
            Target::None => String::new(),
        }
    }
}

/// All figures of a run.
#[derive(Default)]
pub struct Report {
    missed: Vec<String>,
    rows: usize,
}

impl Report {
    /// Prints a row at once, since a run is long.
    pub fn row(&mut self, name: &str, value: f64, unit: &str, target: Target) {
        let verdict = match target {
            Target::None => "",
            _ if target.is_met(value) => "ok",
            _ => "MISSED",
        };
        if verdict == "MISSED" {
            self.missed.push(name.to_string());
        }
        let mut line = String::new();
        let _ = write!(line, "{name:64} {:>12} {unit:6}", number(value));
        let _ = write!(line, " {:16} {verdict}", target.text(unit));
        println!("{}", line.trim_end());
        self.rows += 1;
    }

    /// A line between rows.
    pub fn head(&self, text: &str) {
        println!("\n{text}");
    }

    /// The head of a table of figures side by side, for information.
    pub fn table(&self, name: &str, columns: &[&str]) {
        let columns: String = columns.iter().map(|name| format!(" {name:>12}")).collect();
        println!("\n{name:40}{columns}");
    }

    /// A line of it.
    pub fn figures(&mut self, name: &str, values: &[f64]) {
        let values = values
            .iter()
            .map(|value| format!(" {:>12}", number(*value)));
        println!("{name:40}{}", values.collect::<String>());
        self.rows += 1;
    }

    /// How many rows were printed.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The figures that missed their targets.
    pub fn missed(&self) -> &[String] {
        &self.missed
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// The middle one.
///
/// # Panics
///
/// Without any.
pub fn median(mut values: Vec<f64>) -> f64 {
    assert!(!values.is_empty(), "a median of nothing");
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Processor time that something takes, in ns: other programs on the same processor do not count.
pub fn time<T>(what: impl FnOnce() -> T) -> (f64, T) {
    let start = processor_time();
    let result = what();
    (processor_time() - start, result)
}

fn processor_time() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_target_is_remembered_by_name() {
        let mut report = Report::default();
        report.row("good", 3.0, "ns", Target::AtMost(3.0));
        report.row("bad", 2.0, "x", Target::AtLeast(3.0));
        report.row("news", 9.0, "x", Target::None);
        assert_eq!(report.missed(), ["bad"]);
        assert_eq!(report.rows(), 3);
    }

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![5.0, 1.0, 900.0]), 5.0);
    }
}
