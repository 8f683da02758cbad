//! What is done with a request, rule by rule.

use super::*;
use CacheMode::{None as NoMode, Writearound, Writeback, Writethrough};

const CUTOFF: u64 = 4 << 20;

/// What is asked late, and how often.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Later {
    is_full: bool,
    congested: u64,
    run_bytes: u64,
    noted: u32,
    asked_memory: u32,
}

impl Late for Later {
    fn is_memory_full(&mut self) -> bool {
        self.asked_memory += 1;
        self.is_full
    }

    fn congested(&mut self) -> u64 {
        self.congested
    }

    fn run_bytes(&mut self) -> u64 {
        self.noted += 1;
        self.run_bytes
    }
}

fn read() -> Asked {
    Asked {
        kind: Kind::Read,
        start: 16,
        sectors: 8,
    }
}

fn calm() -> State {
    State {
        is_detaching: false,
        in_use_percent: 0,
        mode: Writeback,
        refuses_read_ahead: false,
        block_sectors: 8,
        sequential_cutoff: CUTOFF,
    }
}

fn of(kind: Kind) -> Asked {
    Asked { kind, ..read() }
}

fn why(asked: Asked, state: State, late: Later) -> Option<Reason> {
    let mut late = late;
    bypass(&asked, &state, &mut late)
}

/// T127: items 1 to 9, each by itself.
#[test]
fn each_rule_has_its_reason() {
    let late = Later::default();
    for kind in [Kind::Read, Kind::Write, Kind::ReadAhead] {
        assert_eq!(why(of(kind), calm(), late), None);
        let leaving = State {
            is_detaching: true,
            ..calm()
        };
        assert_eq!(why(of(kind), leaving, late), Some(Reason::Detaching));
        let used = |in_use_percent| State {
            in_use_percent,
            ..calm()
        };
        assert_eq!(why(of(kind), used(95), late), None);
        assert_eq!(why(of(kind), used(96), late), Some(Reason::CacheFull));
        let without = State {
            mode: NoMode,
            ..calm()
        };
        assert_eq!(why(of(kind), without, late), Some(Reason::ModeNone));
        let around = State {
            mode: Writearound,
            ..calm()
        };
        let is_write = kind == Kind::Write;
        let expected = is_write.then_some(Reason::Writearound);
        assert_eq!(why(of(kind), around, late), expected);
        let meta_only = State {
            refuses_read_ahead: true,
            ..calm()
        };
        let expected = (kind == Kind::ReadAhead).then_some(Reason::ReadaheadPolicy);
        assert_eq!(why(of(kind), meta_only, late), expected);
        for (start, sectors) in [(1, 8), (16, 7), (12, 4)] {
            let asked = Asked {
                kind,
                start,
                sectors,
            };
            assert_eq!(why(asked, calm(), late), Some(Reason::Unaligned));
        }
        let full = Later {
            is_full: true,
            ..late
        };
        assert_eq!(why(of(kind), calm(), full), Some(Reason::Memory));
    }
    assert_eq!(why(of(Kind::Clear), calm(), late), Some(Reason::Discard));
}

/// T127: a cutoff of zero is none, and runs count in whole sectors.
#[test]
fn long_runs_bypass_and_shorter_ones_too_where_the_device_is_busy() {
    let run = |run_bytes, congested| Later {
        run_bytes,
        congested,
        ..Later::default()
    };
    for kind in [Kind::Read, Kind::Write] {
        let asked = of(kind);
        assert_eq!(why(asked, calm(), run(CUTOFF - 1, 0)), None);
        assert_eq!(why(asked, calm(), run(CUTOFF, 0)), Some(Reason::Sequential));
        assert_eq!(
            why(asked, calm(), run(CUTOFF, 1)),
            Some(Reason::Sequential),
            "a long run comes first"
        );
        assert_eq!(why(asked, calm(), run(99 * 512, 100)), None);
        assert_eq!(
            why(asked, calm(), run(100 * 512, 100)),
            Some(Reason::Congested)
        );
        let no_cutoff = State {
            sequential_cutoff: 0,
            ..calm()
        };
        assert_eq!(why(asked, no_cutoff, run(u64::MAX, 0)), None);
        assert_eq!(
            why(asked, no_cutoff, run(100 * 512, 100)),
            Some(Reason::Congested)
        );
        let tiny = State {
            sequential_cutoff: 1,
            ..calm()
        };
        assert_eq!(why(asked, tiny, run(0, 0)), Some(Reason::Sequential));
    }
    let asked = of(Kind::ReadAhead);
    assert_eq!(
        why(asked, calm(), run(CUTOFF, 1)),
        None,
        "asked for by name"
    );
}

/// T127: a request that bypasses for another reason is not noted, nor is one where runs do not matter.
#[test]
fn what_costs_something_is_asked_only_in_its_turn() {
    let asks = |asked: Asked, state: State| {
        let mut late = Later::default();
        bypass(&asked, &state, &mut late);
        (late.asked_memory, late.noted)
    };
    assert_eq!(asks(read(), calm()), (1, 1));
    let no_cutoff = State {
        sequential_cutoff: 0,
        ..calm()
    };
    assert_eq!(asks(read(), no_cutoff), (1, 0));
    let without = State {
        mode: NoMode,
        ..calm()
    };
    assert_eq!(asks(read(), without), (0, 0));
    assert_eq!(asks(of(Kind::ReadAhead), calm()), (1, 0));
}

struct Dice(u64);

impl Dice {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// The rules as the specification has them, one after the other.
fn plainly(asked: &Asked, state: &State, late: &Later) -> Option<Reason> {
    if state.is_detaching {
        return Some(Reason::Detaching);
    }
    if asked.kind == Kind::Clear {
        return Some(Reason::Discard);
    }
    if state.in_use_percent >= 96 {
        return Some(Reason::CacheFull);
    }
    match (state.mode, asked.kind) {
        (NoMode, _) => return Some(Reason::ModeNone),
        (Writearound, Kind::Write) => return Some(Reason::Writearound),
        _ => (),
    }
    if asked.kind == Kind::ReadAhead && state.refuses_read_ahead {
        return Some(Reason::ReadaheadPolicy);
    }
    if asked.start % state.block_sectors + asked.sectors % state.block_sectors > 0 {
        return Some(Reason::Unaligned);
    }
    if late.is_full {
        return Some(Reason::Memory);
    }
    if asked.kind == Kind::ReadAhead {
        return None;
    }
    let run = late.run_bytes / 512;
    if state.sequential_cutoff > 0 && run >= state.sequential_cutoff / 512 {
        return Some(Reason::Sequential);
    }
    if late.congested > 0 && run >= late.congested {
        return Some(Reason::Congested);
    }
    None
}

/// T127: for random settings and requests, the first matching rule.
#[test]
fn the_reason_is_always_that_of_the_first_rule_that_matches() {
    use crate::stats::Named;
    let mut dice = Dice(1);
    let mut seen = vec![0; Reason::ALL.len() + 1];
    for _ in 0..200_000 {
        let kinds = [
            Kind::Read,
            Kind::Write,
            Kind::ReadAhead,
            Kind::Read,
            Kind::Clear,
        ];
        let asked = Asked {
            kind: kinds[dice.next(5) as usize],
            start: dice.next(64) * if dice.next(4) > 0 { 8 } else { 1 },
            sectors: dice.next(64) * if dice.next(4) > 0 { 8 } else { 1 },
        };
        let modes = [Writeback, Writethrough, Writeback, Writearound, NoMode];
        let state = State {
            is_detaching: dice.next(10) == 0,
            in_use_percent: 80 + dice.next(21),
            mode: modes[dice.next(5) as usize],
            refuses_read_ahead: dice.next(2) > 0,
            block_sectors: 1 << dice.next(4),
            sequential_cutoff: dice.next(2) * dice.next(CUTOFF),
        };
        let late = Later {
            is_full: dice.next(10) == 0,
            congested: dice.next(2) * dice.next(10_000),
            run_bytes: dice.next(2 * CUTOFF),
            ..Later::default()
        };
        let found = why(asked, state, late);
        assert_eq!(
            found,
            plainly(&asked, &state, &late),
            "{asked:?} {state:?} {late:?}"
        );
        seen[found.map_or(Reason::ALL.len(), Named::at)] += 1;
    }
    // Who has no cache does not ask.
    assert!(seen[1..].iter().all(|count| *count > 100), "{seen:?}");
    assert_eq!(seen[Reason::NoCache.at()], 0);
}

fn plain_write() -> Dirtying {
    Dirtying {
        mode: Writeback,
        is_detaching: false,
        in_use_percent: 0,
        cutoff: 40,
        cutoff_sync: 70,
        is_discard: false,
        touches_dirty_stripe: false,
        bypasses: false,
        is_sync: false,
    }
}

/// T131: the limits of both cutoffs.
#[test]
fn with_much_in_use_only_what_is_flushed_becomes_dirty_and_then_nothing() {
    let with = |in_use_percent, is_sync| {
        should_writeback(&Dirtying {
            in_use_percent,
            is_sync,
            ..plain_write()
        })
    };
    assert_eq!([with(40, false), with(40, true)], [Ok(()), Ok(())]);
    assert_eq!(
        [with(41, false), with(41, true)],
        [Err(NotDirty::Cutoff), Ok(())]
    );
    assert_eq!(
        [with(70, false), with(70, true)],
        [Err(NotDirty::Cutoff), Ok(())]
    );
    let refused = Err(NotDirty::CutoffSync);
    assert_eq!([with(71, false), with(71, true)], [refused, refused]);
}

/// T131: all of the table.
#[test]
fn a_write_becomes_dirty_as_the_table_says() {
    for case in 0..1 << 6 {
        let bit = |at: u32| case & 1 << at != 0;
        for mode in [Writeback, Writethrough, Writearound, NoMode] {
            for in_use_percent in [0, 40, 41, 70, 71, 100] {
                let write = Dirtying {
                    mode,
                    in_use_percent,
                    is_detaching: bit(0),
                    is_discard: bit(1),
                    touches_dirty_stripe: bit(2),
                    bypasses: bit(3),
                    is_sync: bit(4),
                    ..plain_write()
                };
                let refused = mode != Writeback || bit(0) || in_use_percent > 70 || bit(1);
                let wanted = bit(2) || (!bit(3) && (bit(4) || in_use_percent <= 40));
                let found = should_writeback(&write);
                assert_eq!(found.is_ok(), !refused && wanted, "{write:?}");
            }
        }
    }
}
