//! Writing back over what lies between dirty extents (docs/settings.md, `writeback_bridge`).

use brigade_engine::Server;
use brigade_engine::settings::Knob;
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_sim::disk::{DiskState, Io};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, open, options};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

const BLOCK: u64 = 4096;
/// Where the volume begins on the backing device.
const OFFSET: u64 = 16 * 512;
/// Every fourth block is dirty.
const EXTENTS: u64 = 3000;
const STEP: u64 = 4;
/// What dirty blocks hold, and blocks that are written to the backing device meanwhile.
const DIRTY: u8 = 7;
const DIRECT: u8 = 8;
/// Dirty blocks that are written again.
const OVER_MAX: usize = 200;

/// What a drain did.
struct Drained {
    /// Writes to the backing device while it was drained, without those of clients.
    writes: u64,
    /// The first byte of each block of the backing device.
    blocks: Vec<u8>,
    /// Blocks that clients wrote meanwhile.
    direct: Vec<u64>,
}

impl Drained {
    fn dirty_is_there(&self) -> bool {
        let expected = |block: u64| match self.direct.contains(&block) {
            true => DIRECT,
            false => DIRTY,
        };
        let mut blocks = (0..EXTENTS).map(|number| number * STEP);
        blocks.all(|block| self.blocks[block as usize] == expected(block))
    }

    /// Blocks between the dirty ones that hold what they should not.
    fn harmed(&self) -> usize {
        let expected = |block: u64| match self.direct.contains(&block) {
            true => DIRECT,
            false => 0,
        };
        let between = (0..EXTENTS * STEP).filter(|block| block % STEP != 0);
        between
            .filter(|block| self.blocks[*block as usize] != expected(*block))
            .count()
    }
}

/// Every request to the backing device takes four milliseconds, however long it is, and writes longer than `taken` fail there. Gives the
/// number of writes.
fn slow(disk: &Rc<RefCell<DiskState>>, taken: u64) -> Rc<Cell<u64>> {
    let (writes, weak) = (Rc::new(Cell::new(0)), Rc::downgrade(disk));
    let counted = writes.clone();
    disk.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        if let (Io::Write(_, data), Some(disk)) = (io, weak.upgrade()) {
            counted.set(counted.get() + 1);
            if data.len() as u64 > taken {
                disk.borrow_mut().faults.write_in = Some(0);
            }
        }
        Some(Duration::from_millis(4))
    }));
    writes
}

/// Drains while clients write between the dirty blocks, to the backing device.
fn drain(longest_gap: u64, taken: u64) -> Drained {
    drain_beside(longest_gap, taken, false)
}

/// The same, or clients write some of the dirty blocks again, to the cache.
fn drain_beside(longest_gap: u64, taken: u64, is_over: bool) -> Drained {
    let (cache, backing) = disks(4000, 64, 8, 200_000);
    let (chance, store) = (Chance::new(3), Store::default());
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let set = options(false).with(Knob::WritebackBridge, longest_gap);
    let server: Rc<Server<World>> = open(&world, &cache, &backing, &store, set);
    let volume = server.volumes()[0].clone();
    let env = world.clone();
    let writes = slow(&backing, taken);
    let story = async move {
        let write = async |block: u64, byte: u8| {
            let mut buffer = volume.buffer(BLOCK as usize);
            buffer.fill(byte);
            let written = volume.write(StreamId(1), block * BLOCK, buffer, false);
            written.await.expect("written");
        };
        for number in 0..EXTENTS {
            write(number * STEP, DIRTY).await;
        }
        if !is_over {
            let mode = [("cache_mode".to_string(), "writearound".to_string())];
            server.change(&mode).await.expect("changed");
        }
        writes.set(0);
        volume.drain();
        let mut direct = Vec::new();
        while volume.dirty_bytes() > 0 {
            // What was written again may have come too late for the one that is over.
            volume.drain();
            // Just ahead of what is clean already, as everything goes in order.
            let clean = EXTENTS - volume.dirty_bytes() / BLOCK;
            let dirty = (clean + chance.below(600)) * STEP;
            let block = match is_over {
                true => dirty,
                false => dirty + 1 + chance.below(STEP - 1),
            };
            if block < EXTENTS * STEP && (!is_over || direct.len() < OVER_MAX) {
                write(block, DIRECT).await;
                direct.push(block);
                if is_over {
                    env.sleep(Duration::from_millis(2)).await;
                }
            } else {
                env.sleep(Duration::from_millis(1)).await;
            }
            assert!(env.now() < Duration::from_secs(600), "it ends");
        }
        let by_clients = if is_over { 0 } else { direct.len() as u64 };
        (writes.get() - by_clients, direct)
    };
    let (writes, direct) = world.run(story, || false).expect("ends");
    let first = |block: u64| {
        let mut bytes = [0; 512];
        backing.borrow().peek(OFFSET + block * BLOCK, &mut bytes);
        bytes[0]
    };
    Drained {
        writes,
        blocks: (0..EXTENTS * STEP).map(first).collect(),
        direct,
    }
}

#[test]
fn where_requests_cost_much_dirty_data_goes_with_what_lies_between_and_nobody_loses_a_write() {
    let drained = drain(256 << 10, u64::MAX);
    assert!(drained.dirty_is_there());
    assert_eq!(drained.harmed(), 0);
    assert!(drained.direct.len() > 50, "{}", drained.direct.len());
    assert!(drained.writes < EXTENTS / 3, "{} writes", drained.writes);
}

/// Clients who write there wait for a span that is being written; what changed of it meanwhile must not make it take longer.
#[test]
fn a_span_of_which_something_has_changed_goes_in_few_pieces() {
    let drained = drain_beside(256 << 10, u64::MAX, true);
    assert!(drained.dirty_is_there());
    assert_eq!(drained.harmed(), 0);
    assert!(drained.direct.len() > 100, "{}", drained.direct.len());
    assert!(drained.writes < EXTENTS / 3, "{} writes", drained.writes);
}

#[test]
fn who_wants_no_gap_written_has_none_written() {
    let drained = drain(0, u64::MAX);
    assert!(drained.dirty_is_there());
    assert_eq!(drained.harmed(), 0);
    assert!(drained.writes >= EXTENTS, "{} writes", drained.writes);
}

/// A span that is not taken goes in parts, and no other one is tried.
#[test]
fn a_device_that_does_not_take_spans_gets_what_is_dirty_alone() {
    let drained = drain(256 << 10, BLOCK);
    assert!(drained.dirty_is_there());
    assert_eq!(drained.harmed(), 0);
    assert!(drained.writes >= EXTENTS, "{} writes", drained.writes);
}

#[cfg(feature = "instrumented")]
#[test]
fn and_if_others_are_not_kept_out_they_lose_writes() {
    use brigade_engine::mutations::{Mutation, choose};
    choose(Some(Mutation::BridgeUnlocked));
    let drained = drain(256 << 10, u64::MAX);
    choose(None);
    assert!(drained.harmed() > 0);
}
