//! What can be set while a server runs, and the values.
//!
//! One table says everything about a setting ([`DEFINITIONS`]): reading and showing values, the command line, the control API, the
//! configuration file and docs/settings.md all follow it. A value is one number in a cell that whoever needs it looks at whenever it
//! decides, so a change holds from the next decision on.
//!
//! Numbers beyond a range are cut to it, as the kernel does, and the answer says so; what is no value at all is an error.

mod definitions;
mod text;

pub use definitions::{DEFINITIONS, Definition, Kind, Knob, Scope, Stored, TimeUnit, Unit};
pub use text::{NotAValue, Plain, Shown, human};

use brigade_env::sync::Notify;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

impl Knob {
    /// Its row.
    pub fn definition(self) -> &'static Definition {
        &DEFINITIONS[self as usize]
    }

    /// The one with this name.
    pub fn named(name: &str, scope: Scope) -> Option<Knob> {
        let is_it = |row: &&Definition| row.name == name && row.scope == scope;
        DEFINITIONS.iter().find(is_it).map(|row| row.knob)
    }
}

/// Values that are not the defaults, for all sets and volumes of a server.
pub type Initial = BTreeMap<Knob, u64>;

/// The values of one set or volume.
pub struct Settings {
    scope: Scope,
    values: Vec<Cell<u64>>,
    /// Somebody changed one.
    pub changed: Notify,
}

impl Settings {
    /// Defaults, but for what is said otherwise.
    pub fn new(scope: Scope, initial: &Initial) -> Settings {
        let value = |row: &Definition| {
            let said = initial.get(&row.knob).copied();
            Cell::new(said.unwrap_or(row.default))
        };
        Settings {
            scope,
            values: DEFINITIONS.iter().map(value).collect(),
            changed: Notify::new(),
        }
    }

    /// Whose they are.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// A value.
    pub fn get(&self, knob: Knob) -> u64 {
        assert_eq!(knob.definition().scope, self.scope, "{knob:?}");
        self.values[knob as usize].get()
    }

    /// Whether a switch is on.
    pub fn is_on(&self, knob: Knob) -> bool {
        self.get(knob) != 0
    }

    /// A time.
    pub fn time(&self, knob: Knob) -> Duration {
        assert!(matches!(knob.definition().kind, Kind::Time(..)), "{knob:?}");
        Duration::from_micros(self.get(knob))
    }

    /// Sets a value, cut to what it may be now, and gives what it became.
    pub fn set(&self, knob: Knob, value: u64) -> u64 {
        assert_eq!(knob.definition().scope, self.scope, "{knob:?}");
        let (least, most) = self.range(knob);
        let value = value.clamp(least, most);
        self.values[knob as usize].set(value);
        self.changed.notify_all();
        value
    }

    /// Least and greatest value, in what it is kept in; some depend on others.
    pub fn range(&self, knob: Knob) -> (u64, u64) {
        let (least, most) = knob.definition().range();
        match knob {
            Knob::WritebackRateFpTermLow => (
                least,
                self.get(Knob::WritebackRateFpTermMid)
                    .saturating_sub(1)
                    .max(least),
            ),
            Knob::WritebackRateFpTermMid => {
                let low = self.get(Knob::WritebackRateFpTermLow) + 1;
                (
                    low,
                    self.get(Knob::WritebackRateFpTermHigh)
                        .saturating_sub(1)
                        .max(low),
                )
            }
            Knob::WritebackRateFpTermHigh => (self.get(Knob::WritebackRateFpTermMid) + 1, most),
            Knob::CutoffWriteback => (least, most.min(self.get(Knob::CutoffWritebackSync))),
            Knob::CutoffWritebackSync => (least.max(self.get(Knob::CutoffWriteback)), most),
            _ => (least, most),
        }
    }
}

#[cfg(test)]
mod tests;
