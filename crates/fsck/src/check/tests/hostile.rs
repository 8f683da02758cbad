//! Content that means harm: checksums are right and everything else is chance. Nothing may panic, loop or pile up.

use super::made::{BUCKET, BUCKETS, DATA, Made, PRIOS, ROOT, UUIDS, backing, pointer};
use super::{assert_consistent, check, device};
use crate::check::{Options, run};
use brigade_format::{BackingState, Gen, Key, Pos, Ptr};

/// Chance, and whether it keeps to keys that are good by themselves.
struct Dice(u64, bool);

impl Dice {
    fn word(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ (self.0 >> 29);
        x.wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ (x >> 32)
    }

    fn roll(&mut self, below: u64) -> u64 {
        (self.word() >> 11) % below
    }

    /// An extent that is good by itself, anywhere in a small place.
    fn mild_key(&mut self) -> Key {
        let (start, bucket) = (self.roll(300), ROOT + self.roll(40));
        let (sectors, r#gen) = (self.roll(9) as u32, self.roll(3) as u8);
        let ptr = pointer(bucket, r#gen).advance(self.roll(8));
        let inode = self.roll(3) as u32;
        match self.roll(8) {
            0 => Key::hole(inode, start, sectors),
            _ => Key::extent(inode, start, sectors, ptr, self.roll(2) == 0),
        }
    }

    fn pointer(&mut self) -> Ptr {
        match self.roll(8) {
            0 => Ptr(self.word()),
            1 => Ptr::new(self.roll(BUCKETS * 16), Gen(self.roll(256) as u8)),
            _ => pointer(ROOT + self.roll(20), self.roll(3) as u8),
        }
    }

    /// Anything from a plausible key to noise.
    fn key(&mut self) -> Key {
        if self.1 {
            return self.mild_key();
        }
        let inode = if self.roll(4) == 0 {
            self.roll(1 << 20)
        } else {
            self.roll(3)
        } as u32;
        let offset = match self.roll(6) {
            0 => self.word(),
            1 => u64::MAX - self.roll(3),
            _ => self.roll(4000),
        };
        let size = if self.roll(4) == 0 {
            self.roll(1 << 16)
        } else {
            self.roll(17)
        } as u32;
        let key = Key::node(Pos::new(inode, offset), size, self.pointer());
        match self.roll(5) {
            0 => {
                let words = [self.word(), self.word(), self.word(), 0, 0, 0, 0, 0];
                Key::from_words(&words).unwrap_or(key)
            }
            1 => Key::node(Pos::MAX, 16, self.pointer()),
            2 => key.with_dirty(true),
            _ => key,
        }
    }

    fn keys(&mut self, most: u64) -> Vec<Key> {
        let mut keys: Vec<Key> = (0..self.roll(most)).map(|_| self.key()).collect();
        if self.roll(2) == 0 {
            keys.sort_by_key(Key::pos);
        }
        keys
    }
}

fn chance(seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed, seed.is_multiple_of(3));
    let mut made = Made::new();
    for bucket in ROOT..ROOT + 20 {
        if [UUIDS, PRIOS].contains(&bucket) && dice.roll(4) > 0 {
            continue;
        }
        let sets: Vec<_> = (0..1 + dice.roll(3)).map(|_| dice.keys(12)).collect();
        made.node(bucket, &sets);
    }
    made.entries = (0..1 + dice.roll(4)).map(|_| dice.keys(20)).collect();
    if dice.1 {
        made.entries
            .iter_mut()
            .for_each(|keys| keys.retain(|key| key.size() > 0));
        made.node(UUIDS, &[vec![]]);
        return made.finish();
    }
    made.head.btree_level = dice.roll(4) as u16;
    if dice.roll(8) == 0 {
        made.head.btree_level = dice.word() as u16;
    }
    if dice.roll(4) == 0 {
        made.head.btree_root = dice.key();
    }
    if dice.roll(4) == 0 {
        made.head.uuid_bucket = dice.key();
    }
    if dice.roll(4) == 0 {
        made.head.prio_bucket = dice.word() >> dice.roll(64);
    }
    if dice.roll(4) == 0 {
        made.first_seq = dice.word() >> dice.roll(64);
        made.first_seq = made.first_seq.min(u64::MAX - 10);
        made.last_seq = dice.word() >> dice.roll(64);
    }
    for entry in &mut made.gens {
        if dice.roll(3) == 0 {
            entry.1 = Gen(dice.roll(256) as u8);
        }
    }
    for slot in 0..made.table.len() {
        if dice.roll(4) == 0 {
            made.table[slot].flags = dice.roll(4) as u32;
            made.table[slot].sectors = dice.word() >> dice.roll(64);
            made.table[slot].uuid = [dice.roll(3) as u8; 16];
        }
    }
    made.finish()
}

#[test]
fn sets_of_chance_with_good_checksums_are_checked_to_the_end() {
    let back = backing(BackingState::Dirty, 4096);
    let options = Options {
        data: true,
        memory_max: 1 << 16,
        findings_max: 50,
    };
    let mut with_extents = 0;
    for seed in 0..600 {
        let image = chance(seed);
        let report = run(
            &[device("c", &image), device("b", &back)],
            &options,
            &mut |_| {},
        );
        assert_consistent(&report);
        assert!(report.findings.len() <= 50 && report.unchecked.len() <= 50);
        with_extents += u32::from(report.sets.iter().any(|set| set.has_extents));
    }
    assert!(with_extents > 10, "{with_extents} came to their extents");
}

#[test]
fn no_flipped_bit_of_a_set_makes_the_checker_panic_and_none_under_a_checksum_is_missed() {
    let mut made = Made::new();
    let keys = (0..20).map(|i| super::made::extent(100 + 8 * i, 8, DATA + i, i % 2 == 0));
    let keys: Vec<Key> = keys.collect();
    made.root_over(&[(50, Pos::new(0, 180)), (51, Pos::MAX)]);
    made.node(50, &[keys[..5].to_vec(), keys[5..10].to_vec()]);
    made.node(51, &[keys[10..].to_vec()]);
    made.entries = vec![keys[..3].to_vec(), keys[15..].to_vec()];
    let image = made.finish();
    let fine = check(&image);
    assert_eq!(fine.counts.len(), 0, "{:?}", fine.findings);
    // Superblock, journal, root, chain, leaves; of the chain's 8 KiB not all.
    let places = [
        (4096, 240),
        (3 * BUCKET, 700),
        (ROOT * BUCKET, 80),
        (PRIOS * BUCKET, 900),
        (50 * BUCKET, 150),
        (51 * BUCKET, 270),
    ];
    let mut dice = Dice(7, false);
    for (start, length) in places {
        for byte in (0..length).step_by(3) {
            let mut image = image.clone();
            image[(start + byte) as usize] ^= 1 << dice.roll(8);
            let report = check(&image);
            assert_consistent(&report);
            let is_padding = start == 3 * BUCKET && (byte % 512) >= 312;
            assert!(
                is_padding || !report.counts.is_empty(),
                "byte {byte} of what starts at {start} was missed"
            );
        }
    }
}

#[test]
fn a_device_cut_short_or_filled_with_anything_is_an_error_and_no_more() {
    let whole = Made::new().finish();
    for length in [0, 1, 4096, 8191, 8192, 100_000] {
        let report = check(&whole[..length].to_vec());
        assert!(report.count(crate::check::Severity::Error) > 0, "{length}");
    }
    let mut dice = Dice(3, false);
    let noise: Vec<u8> = (0..200_000).map(|_| dice.word() as u8).collect();
    assert!(check(&noise).count(crate::check::Severity::Error) > 0);
}
