//! The flag bits of both roles (`docs/format.md` 1.4). Bits that mean nothing are kept.

use super::{Role, Superblock};
use std::fmt;

const SYNC: u64 = 1;
const DISCARD: u64 = 1 << 1;
const REPLACEMENT_SHIFT: u32 = 2;
const REPLACEMENT_MASK: u64 = 7;
const MODE_MASK: u64 = 0xf;
const STATE_SHIFT: u32 = 61;
const STATE_MASK: u64 = 3;

/// Which clean bucket goes first. Values 3 to 7 exist on disk only by accident, and hang a kernel: never
/// written, read as `Lru` and reported (F5).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Replacement {
    /// Least recently used.
    #[default]
    Lru,
    /// Oldest filled.
    Fifo,
    /// Any.
    Random,
}

impl Replacement {
    fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Lru),
            1 => Some(Self::Fifo),
            2 => Some(Self::Random),
            _ => None,
        }
    }
}

impl fmt::Display for Replacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lru => "lru",
            Self::Fifo => "fifo",
            Self::Random => "random",
        })
    }
}

/// What happens to writes of a backing device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CacheMode {
    /// To the backing device and the cache.
    #[default]
    Writethrough,
    /// To the cache, later to the backing device.
    Writeback,
    /// To the backing device only.
    Writearound,
    /// Nothing is cached, reads neither.
    None,
}

impl CacheMode {
    fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::Writethrough),
            1 => Some(Self::Writeback),
            2 => Some(Self::Writearound),
            3 => Some(Self::None),
            _ => None,
        }
    }
}

impl fmt::Display for CacheMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Writethrough => "writethrough",
            Self::Writeback => "writeback",
            Self::Writearound => "writearound",
            Self::None => "none",
        })
    }
}

/// How a backing device stands to its set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum BackingState {
    /// Not attached; the set uuid means nothing, or which set to attach to.
    #[default]
    None,
    /// Attached; the cache should hold nothing the device lacks. No proof of that.
    Clean,
    /// Attached; the cache holds newer data.
    Dirty,
    /// Was run without its cache; what the cache holds is obsolete.
    Stale,
}

impl BackingState {
    fn from_bits(bits: u64) -> Self {
        match bits & STATE_MASK {
            1 => Self::Clean,
            2 => Self::Dirty,
            3 => Self::Stale,
            _ => Self::None,
        }
    }
}

impl fmt::Display for BackingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Clean => "clean",
            Self::Dirty => "dirty",
            Self::Stale => "stale",
        })
    }
}

impl Superblock {
    /// Cache device: the set is initialised and journalled. If not, its contents are to be discarded.
    pub fn is_sync(&self) -> bool {
        self.flags & SYNC != 0
    }

    /// Marks the set initialised, or blank.
    pub fn set_sync(&mut self, sync: bool) {
        self.set_flag(SYNC, sync);
    }

    /// Cache device: buckets are discarded before they are filled again.
    pub fn discard(&self) -> bool {
        self.flags & DISCARD != 0
    }

    /// Switches discards on or off.
    pub fn set_discard(&mut self, discard: bool) {
        self.set_flag(DISCARD, discard);
    }

    /// Cache device: the replacement bits as they are, 0 to 7.
    pub fn replacement_raw(&self) -> u8 {
        u8::try_from(self.flags >> REPLACEMENT_SHIFT & REPLACEMENT_MASK).unwrap_or(0)
    }

    /// Cache device: the replacement policy; `None` for the values that are none (use the default, F5).
    pub fn replacement(&self) -> Option<Replacement> {
        Replacement::from_bits(self.replacement_raw())
    }

    /// Sets the replacement policy.
    pub fn set_replacement(&mut self, replacement: Replacement) {
        self.set_bits(REPLACEMENT_SHIFT, REPLACEMENT_MASK, replacement as u64);
    }

    /// Backing device: the mode bits as they are, 0 to 15.
    pub fn cache_mode_raw(&self) -> u8 {
        u8::try_from(self.flags & MODE_MASK).unwrap_or(0)
    }

    /// Backing device: the cache mode; `None` for the values that are none.
    pub fn cache_mode(&self) -> Option<CacheMode> {
        CacheMode::from_bits(self.cache_mode_raw())
    }

    /// Sets the cache mode.
    pub fn set_cache_mode(&mut self, mode: CacheMode) {
        self.set_bits(0, MODE_MASK, mode as u64);
    }

    /// Backing device: its state.
    pub fn state(&self) -> BackingState {
        BackingState::from_bits(self.flags >> STATE_SHIFT)
    }

    /// Sets the state.
    pub fn set_state(&mut self, state: BackingState) {
        self.set_bits(STATE_SHIFT, STATE_MASK, state as u64);
    }

    /// Flag bits without a meaning in this role (F5).
    pub fn unknown_flags(&self) -> u64 {
        let known = match self.role() {
            Role::Cache => SYNC | DISCARD | REPLACEMENT_MASK << REPLACEMENT_SHIFT,
            Role::Backing => MODE_MASK | STATE_MASK << STATE_SHIFT,
        };
        self.flags & !known
    }

    fn set_flag(&mut self, bit: u64, on: bool) {
        self.flags = if on {
            self.flags | bit
        } else {
            self.flags & !bit
        };
    }

    fn set_bits(&mut self, shift: u32, mask: u64, value: u64) {
        self.flags = self.flags & !(mask << shift) | (value & mask) << shift;
    }
}
