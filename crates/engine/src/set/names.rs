//! What volumes are called: each by its number, and by its label if it has one.
//!
//! - **Number.** `volumeN` means slot N of the UUID table. Where several sets have a slot N, those that come later are `volumeN-1` and so on.
//!   A volume without a slot, alone or detached, is called by the number that it had or by its place among the devices as long as no volume
//!   with a slot needs that, as it will be at the next opening: then the one without gets another.
//! - **Label.** Nobody can give a label that looks like a number. A superblock from elsewhere may have one all the same, and then it is taken.

use super::server::Server;
use super::volume::Volume;
use brigade_env::Env;
use std::rc::Rc;

/// The names of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Names {
    /// By its number.
    pub(super) number: String,
    /// Its label, if nobody else was called so when it got it.
    pub(super) label: Option<String>,
}

impl Names {
    /// All of them, the main one first.
    pub(super) fn all(&self) -> Vec<String> {
        let label = self.label.iter().filter(|label| **label != self.number);
        std::iter::once(&self.number)
            .chain(label)
            .cloned()
            .collect()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.number == name || self.label.as_deref() == Some(name)
    }
}

/// Whether a name is one that volumes get by their number: `volume7`, `volume7-1`.
pub fn is_number(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let Some(number) = name.strip_prefix("volume") else {
        return false;
    };
    match number.split_once('-') {
        Some((number, nth)) => digits(number) && digits(nth),
        None => digits(number),
    }
}

/// `volumeN`, `volumeN-1` and so on.
fn numbers(slot: u32) -> impl Iterator<Item = String> {
    let first = std::iter::once(format!("volume{slot}"));
    first.chain((1..).map(move |nth: u32| format!("volume{slot}-{nth}")))
}

impl<E: Env> Server<E> {
    /// Names for a volume that comes: the number of its slot if it `has_slot`, or else one that is free.
    pub(super) fn names(&self, label: &str, slot: u32, has_slot: bool) -> Names {
        let number = self.number(slot, has_slot, None);
        let is_taken = self.volumes().iter().any(|it| it.names_now().has(label));
        Names {
            number,
            label: (!label.is_empty() && !is_taken).then(|| label.into()),
        }
    }

    /// A volume got a slot, and is called by that from now on and no more by another. Who is connected to it stays so.
    pub(super) fn number_by_slot(&self, volume: &Rc<Volume<E>>, slot: u32) {
        volume.change_number(self.number(slot, true, Some(volume)));
    }

    /// The number that a volume gets. One without a slot that is called so gives it up to one that has it, and gets another.
    fn number(&self, slot: u32, has_slot: bool, of: Option<&Rc<Volume<E>>>) -> String {
        let others: Vec<_> = self.volumes();
        let others = || {
            others
                .iter()
                .filter(|it| of.is_none_or(|of| !Rc::ptr_eq(it, of)))
        };
        let yields = |other: &Volume<E>, name: &str| {
            let is_label = other.names_now().label.as_deref() == Some(name);
            has_slot && !is_label && !other.has_slot()
        };
        let is_kept = |name: &str| others().any(|it| it.names_now().has(name) && !yields(it, name));
        let number = numbers(slot).find(|name| !is_kept(name));
        let number = number.expect("there are fewer volumes than numbers");
        if let Some(other) = others().find(|it| it.names_now().has(&number)) {
            let is_taken =
                |name: &str| name == number || others().any(|it| it.names_now().has(name));
            let next = numbers(slot).find(|name| !is_taken(name));
            other.change_number(next.expect("there are fewer volumes than numbers"));
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_from_labels() {
        for number in ["volume0", "volume17", "volume3-1", "volume03"] {
            assert!(is_number(number), "{number}");
        }
        for label in [
            "volume",
            "volumes-db",
            "volume-1",
            "volume1-",
            "volume1-a",
            "volume1-1-1",
            "xvolume1",
            "Volume1",
            "",
        ] {
            assert!(!is_number(label), "{label}");
        }
    }
}
