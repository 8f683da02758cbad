//! What volumes are called: each by its number, and by its label if it has one.
//!
//! - **Number.** `volumeN` means slot N of the UUID table. Where several sets have a slot N, those that come later are `volumeN-1` and so on.
//! - **Label.** Nobody can give a label that looks like a number. A superblock from elsewhere may have one all the same, and then it is taken.

use super::server::Server;
use brigade_env::Env;

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
pub(super) fn is_number(name: &str) -> bool {
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
    /// Names not taken yet, for a volume that comes.
    pub(super) fn names(&self, label: &str, slot: u32) -> Names {
        let volumes = self.volumes();
        let is_taken = |name: &str| volumes.iter().any(|it| it.names_now().has(name));
        let number = numbers(slot).find(|name| !is_taken(name));
        Names {
            number: number.expect("there are fewer volumes than numbers"),
            label: (!label.is_empty() && !is_taken(label)).then(|| label.into()),
        }
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
