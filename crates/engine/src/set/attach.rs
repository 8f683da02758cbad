//! Which slot a backing device gets, and what is written where for it (docs/format.md 9.3). The deciding part is pure.

use crate::marks::{self, Mark};
use brigade_format::uuid_table::{INVALIDATED, UuidEntry};
use brigade_format::{BackingState, Superblock};
use std::collections::BTreeSet;

/// What attaching a device means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// The slot, which is the inode.
    pub slot: u32,
    /// The table as it is to be.
    pub entries: Vec<UuidEntry>,
    /// The device gets the set's uuid and state clean. Otherwise its superblock stays.
    pub is_new: bool,
}

/// Why a device is not attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It never was, or was run without its set: it can be served without a cache.
    RunsAlone(String),
    /// Part of its data may be in a cache: it must not be served.
    Waits(String),
    /// There is no slot yet, but one that was given up will be free.
    UntilSwept,
}

/// Decides for a device whose superblock names this set. `may_sweep`: slots that were given up become free if that is waited for.
pub fn plan(
    entries: &[UuidEntry],
    inodes_seen: &BTreeSet<u32>,
    backing: &Superblock,
    cache_block_sectors: u32,
    now: u32,
    may_sweep: bool,
) -> Result<Attach, Refusal> {
    let state = backing.state();
    let refuse = |what: String| match state {
        BackingState::None | BackingState::Stale => Refusal::RunsAlone(what),
        BackingState::Clean | BackingState::Dirty => Refusal::Waits(what),
    };
    if backing.uuid == INVALIDATED {
        let what = "its uuid is the one that stands for slots of removed devices";
        return Err(refuse(what.into()));
    }
    if u32::from(backing.block_size) < cache_block_sectors {
        let what = format!(
            "block size {} sectors is smaller than the cache's {cache_block_sectors}",
            backing.block_size
        );
        return Err(refuse(what));
    }
    let may_wait = may_sweep && entries.iter().any(UuidEntry::is_invalidated);
    let mut entries = entries.to_vec();
    let is_mine =
        |entry: &UuidEntry| entry.is_used() && !entry.is_flash_only() && entry.uuid == backing.uuid;
    if let Some(slot) = entries.iter().position(is_mine) {
        if matches!(state, BackingState::Clean | BackingState::Dirty) {
            marks::hit(Mark::AttachKnownSlot);
            entries[slot].last_reg = now;
            return Ok(Attach {
                slot: slot as u32,
                entries,
                is_new: false,
            });
        }
        marks::hit(Mark::AttachSlotGivenUp);
        entries[slot].invalidate(now);
    }
    if state == BackingState::Dirty {
        let what = "state is dirty, but the set's UUID table has no slot for it: its newer data is in another cache";
        return Err(Refusal::Waits(what.into()));
    }
    let is_free = |(slot, entry): &(usize, &UuidEntry)| {
        entry.is_empty() && !inodes_seen.contains(&(*slot as u32))
    };
    let Some((slot, _)) = entries.iter().enumerate().find(is_free) else {
        let full = || refuse("the set's UUID table has no free slot".into());
        return Err(if may_wait {
            Refusal::UntilSwept
        } else {
            full()
        });
    };
    marks::hit(Mark::AttachNewSlot);
    entries[slot] = UuidEntry::cached(backing.uuid, backing.label, now);
    Ok(Attach {
        slot: slot as u32,
        entries,
        is_new: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use brigade_format::{CacheMode, NewBacking};

    fn backing(state: BackingState) -> Superblock {
        let new = NewBacking {
            device_sectors: 1000,
            data_offset: 16,
            block_sectors: 8,
            uuid: [5; 16],
            set_uuid: [9; 16],
            mode: CacheMode::Writeback,
            label: "data".into(),
        };
        let mut superblock = Superblock::new_backing(&new).expect("sound");
        superblock.set_state(state);
        superblock
    }

    fn table() -> Vec<UuidEntry> {
        vec![
            UuidEntry::cached([1; 16], [0; 32], 7),
            UuidEntry::EMPTY,
            UuidEntry::EMPTY,
        ]
    }

    fn table_with_slot() -> Vec<UuidEntry> {
        let mut table = table();
        table[1] = UuidEntry::cached([5; 16], [0; 32], 7);
        table
    }

    fn run(entries: &[UuidEntry], state: BackingState) -> Result<Attach, Refusal> {
        plan(entries, &BTreeSet::new(), &backing(state), 8, 100, false)
    }

    /// T183.
    #[test]
    fn without_a_slot_none_stale_and_clean_get_the_lowest_free_one() {
        for state in [BackingState::None, BackingState::Stale, BackingState::Clean] {
            let attach = run(&table(), state).expect("attached");
            assert_eq!(
                (attach.slot, attach.is_new, attach.entries[1].uuid),
                (1, true, [5; 16])
            );
        }
    }

    /// T183.
    #[test]
    fn a_dirty_device_without_a_slot_is_refused_and_waits() {
        assert!(matches!(
            run(&table(), BackingState::Dirty),
            Err(Refusal::Waits(_))
        ));
    }

    /// T183.
    #[test]
    fn with_a_slot_clean_and_dirty_keep_it() {
        for state in [BackingState::Clean, BackingState::Dirty] {
            let attach = run(&table_with_slot(), state).expect("attached");
            assert_eq!(
                (attach.slot, attach.is_new, attach.entries[1].last_reg),
                (1, false, 100)
            );
        }
    }

    /// T183.
    #[test]
    fn with_a_slot_none_and_stale_lose_it_and_get_a_new_one() {
        for state in [BackingState::None, BackingState::Stale] {
            let attach = run(&table_with_slot(), state).expect("attached");
            assert_eq!((attach.slot, attach.is_new), (2, true));
            assert!(attach.entries[1].is_invalidated());
        }
    }

    /// T186.
    #[test]
    fn a_slot_whose_inode_has_keys_is_not_given_out() {
        let attach = plan(
            &table(),
            &BTreeSet::from([1]),
            &backing(BackingState::None),
            8,
            1,
            false,
        )
        .expect("attached");
        assert_eq!(attach.slot, 2);
    }

    #[test]
    fn a_full_table_with_a_slot_given_up_is_worth_waiting_for_unless_it_is_only_read() {
        let mut full = table_with_slot();
        full[0].invalidate(8);
        full.truncate(2);
        let run = |state, may_sweep| {
            let none_seen = BTreeSet::new();
            plan(&full, &none_seen, &backing(state), 8, 100, may_sweep)
        };
        assert_eq!(run(BackingState::Stale, true), Err(Refusal::UntilSwept));
        let alone = run(BackingState::Stale, false);
        assert!(matches!(alone, Err(Refusal::RunsAlone(_))));
        assert!(run(BackingState::Clean, true).is_ok_and(|attach| attach.slot == 1));
        // Its own slot, which it would only give up now, is no reason: what is refused changes nothing.
        let mut used = full.clone();
        used[0] = UuidEntry::cached([1; 16], [0; 32], 7);
        let stale = backing(BackingState::Stale);
        let refused = plan(&used, &BTreeSet::new(), &stale, 8, 100, true);
        assert!(matches!(refused, Err(Refusal::RunsAlone(_))));
    }

    #[test]
    fn a_full_table_or_a_small_block_refuses() {
        let full = vec![UuidEntry::cached([1; 16], [0; 32], 7)];
        assert!(matches!(
            run(&full, BackingState::None),
            Err(Refusal::RunsAlone(_))
        ));
        assert!(matches!(
            run(&full, BackingState::Clean),
            Err(Refusal::Waits(_))
        ));
        let small = plan(
            &table(),
            &BTreeSet::new(),
            &backing(BackingState::None),
            16,
            1,
            false,
        );
        assert!(matches!(small, Err(Refusal::RunsAlone(_))));
    }
}
