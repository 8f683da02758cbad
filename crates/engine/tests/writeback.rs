//! Writing back in the background: order, rate, pauses, and what happens to data that changes meanwhile.

mod common_writeback;

use brigade_engine::DrainEnd;
use brigade_engine::settings::Knob;
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::BackingState;
use brigade_sim::disk::{DiskState, End, Io, Pace};
use brigade_sim::exec::{Chance, World};
use brigade_sim::small::{open, options};
use common_writeback::{BLOCK, MINUTE, OFFSET, Set, eager};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// T145: ascending, what lies side by side at once, and from the start again. The kernel's groups are of five extents or 5000 sectors;
/// ours are runs of up to a megabyte, several at a time.
#[test]
fn dirty_data_goes_out_in_ascending_order_and_side_by_side_in_one_piece() {
    let set = Set::new(eager()).paced(Duration::from_millis(1));
    let log = set.watch();
    let teller = set.volume();
    let told = set.tell({
        let (teller, log) = (teller.clone(), log.clone());
        async move {
            for block in (0..40).rev() {
                teller.write(block * 7 + 100, 1, 1).await;
            }
            for block in (0..16).rev() {
                teller.write(1000 + block, 1, 2).await;
            }
            teller.clean(MINUTE).await;
            let first = log.take();
            teller.write(500, 1, 3).await;
            teller.write(3, 1, 3).await;
            teller.clean(MINUTE).await;
            (first, log.take())
        }
    });
    let (first, second) = told;
    let mut expected: Vec<(u64, u64)> = (0..40).map(|block| (block * 7 + 100, 1)).collect();
    expected.push((1000, 16));
    assert_eq!(first, expected);
    assert_eq!(second, [(3, 1), (500, 1)]);
    assert_eq!((set.on_backing(1015), set.on_backing(100)), (2, 1));
}

/// T146: what is written while it is written back stays dirty, and is counted.
#[test]
fn an_overwrite_during_writeback_stays_dirty() {
    let set = Set::new(options(false)).paced(Duration::from_secs(1));
    let teller = set.volume();
    let dirty = set.tell({
        let teller = teller.clone();
        async move {
            teller.write(10, 1, 1).await;
            teller.write(20, 1, 1).await;
            teller.volume.drain();
            teller.sleep(0.5).await;
            teller.write(10, 1, 2).await;
            teller.volume.cancel_drain();
            teller.sleep(5.0).await;
            teller.dirty()
        }
    });
    assert_eq!(dirty, BLOCK);
    let status = teller.status();
    assert_eq!((status.keys_done, status.keys_failed), (1, 1));
    assert_eq!(set.on_backing(10), 1);
    let byte = set.tell({
        let teller = teller.clone();
        async move {
            teller.volume.drain();
            teller.clean(MINUTE).await;
            teller.read(10).await
        }
    });
    assert_eq!((byte, set.on_backing(10)), (2, 2));
}

/// Clients who write there wait for a run that is being written back; a block of it that has changed meanwhile must not make it take longer.
#[test]
fn what_changed_meanwhile_leaves_the_rest_of_a_run_in_few_pieces() {
    let set = Set::new(options(false));
    let log = set.watch();
    let slow_reads = |io: Io<'_>| match io {
        Io::Read(_) => Some(Duration::from_millis(20)),
        _ => Some(Duration::from_micros(20)),
    };
    set.cache.borrow_mut().pace = Some(Rc::new(slow_reads));
    let teller = set.volume();
    set.tell(async move {
        for block in (0..64).rev() {
            teller.write(block, 1, 1).await;
        }
        teller.volume.drain();
        teller.sleep(0.01).await;
        teller.write(30, 1, 2).await;
        assert_eq!(teller.volume.drained().await, Some(DrainEnd::Done));
        teller.volume.drain();
        teller.clean(MINUTE).await;
    });
    assert_eq!(*log.borrow(), [(0, 30), (31, 33), (30, 1)]);
    assert_eq!((set.on_backing(30), set.on_backing(63)), (2, 1));
}

/// T148: what could not be written to the backing device stays dirty and is tried again; the rest of the round is not kept from
/// becoming clean.
#[test]
fn data_that_the_backing_device_does_not_take_stays_dirty() {
    let set = Set::new(options(false)).paced(Duration::from_millis(10));
    let teller = set.volume();
    let backing = set.backing.clone();
    let (dirty, byte, error) = set.tell({
        let teller = teller.clone();
        async move {
            for block in 0..10 {
                teller.write(block * 2, 1, 1).await;
            }
            backing.borrow_mut().faults.from_byte = OFFSET;
            backing.borrow_mut().faults.write_in = Some(3);
            teller.volume.drain();
            teller.sleep(0.5).await;
            let error = teller.status().drain.expect("a drain").last_error;
            (teller.dirty(), teller.read(6).await, error)
        }
    });
    assert_eq!((dirty, byte), (BLOCK, 1));
    assert!(error.is_some());
    let state = set.tell({
        let teller = teller.clone();
        async move {
            teller.clean(MINUTE).await;
            teller.volume.drained().await
        }
    });
    assert_eq!(state, Some(DrainEnd::Done));
    assert!((0..10).all(|block| set.on_backing(block * 2) == 1));
}

/// T149: wherever power is lost while data is written back, every flushed write is there.
#[test]
fn a_loss_of_power_during_writeback_loses_nothing() {
    let mut has_ended = false;
    for steps in (0..).step_by(11).take_while(|steps| *steps < 3000) {
        if has_ended {
            break;
        }
        let set = Set::new(options(false));
        let teller = set.volume();
        set.tell({
            let teller = teller.clone();
            async move {
                for block in 0..30 {
                    teller.write(block * 3, 1, 1 + block as u8).await;
                }
                teller.volume.flush().await.expect("flushed");
            }
        });
        let limit = set.world.steps() + steps;
        let drain = {
            let teller = teller.clone();
            async move {
                teller.volume.drain();
                teller.clean(MINUTE).await;
                teller.sleep(1.0).await;
            }
        };
        let world = set.world.clone();
        has_ended = set.world.run(drain, || world.steps() > limit).is_some();
        set.world.kill();
        set.cache.borrow_mut().end(End::PowerLoss, &set.chance);
        set.backing.borrow_mut().end(End::PowerLoss, &set.chance);
        set.store.0.borrow_mut().clear();
        let world = World::new(set.chance.clone(), Duration::from_secs(100));
        let (cache, backing) = (&set.cache, &set.backing);
        let server = open(&world, cache, backing, &set.store, options(false));
        let volume = server.volumes()[0].clone();
        let read = async move {
            for block in 0..30 {
                let bytes = volume.read(StreamId(1), block * 3 * BLOCK, 512).await;
                assert_eq!(bytes.expect("read")[0], 1 + block as u8, "after {steps}");
            }
        };
        world.run(read, || false).expect("ends");
        world.kill();
    }
    assert!(has_ended, "the last one was not disturbed");
}

/// T150: clean as soon as nothing is dirty, however long the delay; dirty again with the next write.
#[test]
fn the_device_says_clean_once_it_is_and_dirty_before_it_is_not() {
    let set = Set::new(options(false)).paced(Duration::from_millis(1));
    let teller = set.volume();
    let tell = |block| {
        let teller = teller.clone();
        set.tell(async move {
            teller.write(block, 4, 1).await;
            assert_eq!(teller.volume.state(), "dirty");
        });
        assert_eq!(set.state(), BackingState::Dirty);
        let teller = set.volume();
        set.tell(async move {
            teller.volume.drain();
            teller.clean(MINUTE).await;
            teller.sleep(0.2).await;
        });
        assert_eq!(set.state(), BackingState::Clean);
    };
    tell(5);
    tell(6);
}

/// T151: what is dirty of a device that is to leave goes out at full speed, whatever is set, and nothing more becomes dirty. (Its slot is
/// in `lifecycle.rs`.)
#[test]
fn a_device_that_is_to_leave_is_written_back_whatever_is_set() {
    let slow = options(false)
        .with(Knob::WritebackPercent, 40)
        .with(Knob::WritebackRate, 8);
    let set = Set::new(slow).paced(Duration::from_millis(1));
    let teller = set.volume();
    let took = set.tell({
        let teller = teller.clone();
        async move {
            for block in 0..256 {
                teller.write(block * 3, 1, 7).await;
            }
            let began = teller.world.now();
            teller.server.start_detach("volume0").expect("it begins");
            teller.write(5, 1, 8).await;
            while teller.server.status().volumes[0].detach.is_some() {
                teller.sleep(0.01).await;
            }
            teller.world.now() - began
        }
    });
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!((0..256).all(|block| set.on_backing(block * 3) == 7));
    assert_eq!(set.on_backing(5), 8);
}

/// T144: after half a minute without a request everything goes out at full speed; the first request ends that.
#[test]
fn an_idle_set_is_written_back_at_full_speed_until_somebody_asks() {
    let slow = options(true)
        .with(Knob::WritebackPercent, 40)
        .with(Knob::WritebackDelay, 0)
        .with(Knob::WritebackRate, 8);
    let set = Set::new(slow).paced(Duration::from_millis(50));
    let teller = set.volume();
    set.tell({
        let teller = teller.clone();
        async move {
            for block in 0..1500 {
                teller.write(block * 3, 1, 7).await;
            }
            teller.sleep(28.0).await;
            assert!(!teller.status().idle && teller.dirty() > 1400 * BLOCK);
            teller.sleep(3.0).await;
            let status = teller.status();
            assert!(status.idle, "{status:?}");
            assert_eq!(status.rate, 512 * (i32::MAX as u64));
            teller.read(4000).await;
            let status = teller.status();
            assert!(!status.idle && status.dirty > 0, "{status:?}");
            teller.sleep(3.0).await;
            assert!(teller.status().rate <= 8 * 512, "{:?}", teller.status());
            let left = teller.dirty();
            teller.sleep(10.0).await;
            assert!(left - teller.dirty() <= 8 * BLOCK * 15, "it is slow again");
        }
    });
}

/// So many sectors a second are asked for, and are written.
#[test]
fn the_rate_is_kept() {
    let asked = options(true)
        .with(Knob::WritebackPercent, 40)
        .with(Knob::WritebackDelay, 0)
        .with(Knob::WritebackRate, 64)
        .with(Knob::WritebackRateMinimum, 64)
        .with(Knob::WritebackDeadline, 0)
        .with(Knob::IdleMaxWritebackRate, 0);
    let set = Set::of(4000, asked).paced(Duration::from_millis(1));
    let teller = set.volume();
    set.tell(async move {
        for block in 0..6000 {
            teller.write(block * 3, 1, 7).await;
        }
        let before = teller.dirty();
        teller.sleep(100.0).await;
        let sectors = (before - teller.dirty()) / 512;
        assert!((6000..=6700).contains(&sectors), "{sectors}");
        teller.set("writeback_rate_minimum", "640").await;
        teller.sleep(10.0).await;
        let before = teller.dirty();
        teller.sleep(20.0).await;
        let sectors = (before - teller.dirty()) / 512;
        assert!((12_000..=13_500).contains(&sectors), "{sectors}");
        teller.set("writeback_running", "0").await;
        teller.sleep(2.0).await;
        let before = teller.dirty();
        teller.sleep(60.0).await;
        assert_eq!(before, teller.dirty());
    });
}

/// After a pass that found little the next one waits for the delay, unless more is dirty than is meant to be.
#[test]
fn passes_rest_for_the_delay() {
    let delayed = options(true)
        .with(Knob::WritebackPercent, 1)
        .with(Knob::WritebackDelay, 20_000_000)
        .with(Knob::WritebackRate, 1 << 20)
        .with(Knob::WritebackRateMinimum, 1 << 20);
    let set = Set::new(delayed).paced(Duration::from_millis(1));
    let teller = set.volume();
    set.tell(async move {
        teller.write(0, 1, 1).await;
        teller.sleep(18.0).await;
        assert_eq!(teller.dirty(), BLOCK);
        teller.clean(Duration::from_secs(3)).await;
        // The target is a hundredth of 600 buckets of 64 sectors.
        for block in 0..60 {
            teller.write(block * 2, 1, 1).await;
        }
        let took = teller.clean(Duration::from_secs(3)).await;
        assert!(took < Duration::from_secs(2), "{took:?}");
    });
}

/// Buckets that nothing else can be put into are emptied, however slow the rate.
#[test]
fn much_of_the_cache_in_use_is_written_back_in_a_hurry() {
    let slow = options(true)
        .with(Knob::WritebackPercent, 40)
        .with(Knob::WritebackRate, 1)
        .with(Knob::WritebackRateMinimum, 1)
        .with(Knob::WritebackRateUpdateSeconds, 60_000_000)
        .with(Knob::IdleMaxWritebackRate, 0);
    let set = Set::new(slow).paced(Duration::from_millis(1));
    let teller = set.volume();
    set.tell(async move {
        for block in 0..2800 {
            teller.write(block * 2, 1, 7).await;
        }
        teller.sleep(5.0).await;
        let status = teller.server.status();
        let buckets = &status.cache_sets[0].devices[0].buckets;
        let in_use = (buckets.dirty + buckets.metadata) * 100 / buckets.total;
        assert!((30..=51).contains(&in_use), "{in_use}");
    });
}

/// T152: a collection follows when all is written back, if half of the cache was in use.
#[test]
fn a_collection_follows_once_all_is_written_back() {
    for wanted in [0, 1] {
        let set = Set::new(
            options(false)
                .with(Knob::WritebackPercent, 40)
                .with(Knob::WritebackDelay, 0)
                .with(Knob::WritebackRateMinimum, 1 << 20)
                .with(Knob::GcAfterWriteback, wanted),
        );
        let teller = set.volume();
        let passes = set.tell(async move {
            for block in 0..2600 {
                teller.write(block * 2, 1, 7).await;
            }
            teller.sleep(10.0).await;
            let passes = || teller.server.status().cache_sets[0].gc.passes;
            let before = passes();
            teller.set("writeback_running", "1").await;
            teller.clean(MINUTE).await;
            teller.sleep(10.0).await;
            passes() - before
        });
        assert_eq!(passes, wanted);
    }
}

/// One extent that is written all the time keeps only itself dirty, not those beside it.
#[test]
fn a_hot_block_does_not_keep_its_neighbours_dirty() {
    let set = Set::new(options(false)).paced(Duration::from_millis(5));
    let teller = set.volume();
    set.tell(async move {
        for block in (0..256).rev() {
            teller.write(1000 + block, 1, 1).await;
        }
        teller.volume.drain();
        for round in 0..200 {
            teller.write(1100, 1, round as u8).await;
            teller.sleep(0.001).await;
        }
        assert!(teller.dirty() <= BLOCK, "{}", teller.dirty());
    });
    assert!((0..256).all(|block| block == 100 || set.on_backing(1000 + block) == 1));
}

/// Has every read of the cache that begins there fail.
fn break_sector(disk: &Rc<RefCell<DiskState>>, byte: u64) {
    let weak = Rc::downgrade(disk);
    disk.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        if let (Io::Read(at), Some(disk)) = (io, weak.upgrade())
            && at == byte
        {
            disk.borrow_mut().faults.read_in = Some(0);
        }
        Some(Duration::from_micros(20))
    }));
}

/// Where the cache has what begins with such a block.
fn place_of(disk: &Rc<RefCell<DiskState>>, byte: u8) -> u64 {
    let disk = disk.borrow();
    let (mut block, size) = (vec![0; BLOCK as usize], disk.geometry.size_bytes);
    let is_it = |at: &u64| {
        disk.peek(*at, &mut block);
        block.iter().all(|it| *it == byte)
    };
    (0..size)
        .step_by(BLOCK as usize)
        .find(is_it)
        .expect("it is cached")
}

/// What cannot be read stays dirty and is told of; all else becomes clean, and the set does not fail however often it is tried.
#[test]
fn dirty_data_that_cannot_be_read_keeps_nothing_else_dirty_and_does_not_fail_the_set() {
    let set = Set::new(options(false)).paced(Duration::from_millis(1));
    let teller = set.volume();
    let cache = set.cache.clone();
    set.tell(async move {
        for block in (0..64).rev() {
            teller
                .write(block, 1, if block == 30 { 0xa7 } else { 1 })
                .await;
        }
        teller.write(500, 1, 1).await;
        break_sector(&cache, place_of(&cache, 0xa7));
        teller.volume.drain();
        teller.sleep(60.0).await;
        assert_eq!(teller.dirty(), BLOCK);
        let status = teller.server.status();
        assert_eq!(status.cache_sets[0].state, "running");
        assert!(!status.errors.is_empty());
        let drain = teller.status().drain.expect("a drain");
        assert_eq!(drain.state, "running");
        assert!(drain.last_error.is_some());
        assert!(teller.volume.cancel_drain());
        teller.set("writeback_percent", "0").await;
        teller.set("writeback_delay", "20").await;
        teller.set("writeback_running", "1").await;
        let before = cache.borrow().faults_happened;
        teller.sleep(120.0).await;
        let tried = cache.borrow().faults_happened - before;
        assert!((2..=20).contains(&tried), "{tried}");
    });
    assert!((0..64).all(|block| block == 30 || set.on_backing(block) == 1));
    assert_eq!(set.on_backing(500), 1);
}

/// The same of a place of the backing device that takes nothing.
#[test]
fn a_place_that_takes_no_data_keeps_nothing_else_dirty_and_does_not_shut_the_volume() {
    let set = Set::new(options(false)).paced(Duration::from_millis(1));
    let teller = set.volume();
    set.refuse(30, Duration::from_millis(1));
    set.tell(async move {
        for block in (0..64).rev() {
            teller.write(block, 1, 1).await;
        }
        teller.volume.drain();
        teller.sleep(55.0).await;
        assert_eq!(teller.dirty(), BLOCK);
        assert!(teller.status().drain.expect("a drain").last_error.is_some());
        assert_eq!(teller.read(1).await, 1, "it is served");
    });
    assert!((0..64).all(|block| block == 30 || set.on_backing(block) == 1));
}

/// F.3: the only device has all of the target, however large it becomes.
#[test]
fn a_device_that_grows_is_meant_to_have_no_more_dirty_than_before() {
    let set = Set::new(options(true).with(Knob::WritebackDelay, 1_000_000));
    let (teller, backing) = (set.volume(), set.backing.clone());
    set.tell(async move {
        teller.write(0, 1, 1).await;
        teller.sleep(6.0).await;
        let before = teller.status().target;
        assert!(before > 0);
        let sectors = backing.borrow().geometry.size_bytes / 512;
        backing.borrow_mut().grow(sectors * 8);
        let name = teller.volume.name();
        let resized = teller.server.resize(&name, None, false);
        resized.await.expect("it has grown");
        teller.write(1, 1, 1).await;
        teller.sleep(12.0).await;
        assert_eq!(teller.status().target, before);
    });
}

/// Single blocks are written, and discarded soon after, until the power goes. Gives how often the device said clean then, and how often
/// wrongly.
fn clean_after_a_loss_of_power(lives: u64) -> (u64, u64) {
    let (mut clean, mut wrong) = (0, 0);
    for seed in 0..lives {
        let set = Set::new(eager());
        let chance = Chance::new(seed);
        let paces = chance.clone();
        let slow: Pace = Rc::new(move |_: Io<'_>| {
            let most = paces.pick(&[50, 500, 5000]);
            Some(Duration::from_micros(paces.between(10, most)))
        });
        set.cache.borrow_mut().pace = Some(slow.clone());
        set.backing.borrow_mut().pace = Some(slow);
        let (teller, dice) = (set.volume(), chance.clone());
        let (reader, reads) = (teller.clone(), chance.clone());
        set.world.spawn(async move {
            // What is read is cached, so something is on its way to the journal most of the time.
            loop {
                reader.read(100 + reads.below(2000)).await;
                reader.sleep(reads.below(2000) as f64 / 1e6).await;
            }
        });
        let story = async move {
            loop {
                let block = dice.below(4);
                teller.write(block, 1, 1).await;
                teller.sleep(dice.below(4000) as f64 / 1e6).await;
                let bytes = BLOCK * dice.pick(&[1, 8]);
                let discarded = teller.volume.discard(block * BLOCK, bytes, false);
                discarded.await.expect("discarded");
                teller.sleep(dice.below(10_000) as f64 / 1e6).await;
            }
        };
        let (world, mut end) = (set.world.clone(), Duration::from_secs(20));
        let late = Duration::from_micros(chance.below(3000));
        let _: Option<()> = world.run(story, || {
            let now = world.now();
            if now > Duration::from_millis(1100) && set.state() == BackingState::Clean {
                end = end.min(now + late);
            }
            now > end
        });
        set.world.kill();
        for disk in [&set.cache, &set.backing] {
            disk.borrow_mut().end(End::PowerLoss, &chance);
            disk.borrow_mut().pace = None;
        }
        if set.state() == BackingState::Clean {
            clean += 1;
            let set = set.again(options(false));
            wrong += u64::from(set.volume().dirty() > 0);
        }
    }
    (clean, wrong)
}

/// F.7: what makes data clean is durable before the device says clean.
#[test]
fn a_device_that_says_clean_has_nothing_dirty_whenever_the_power_goes() {
    let (clean, wrong) = clean_after_a_loss_of_power(200);
    assert!(clean > 50, "{clean}");
    assert_eq!(wrong, 0);
}

#[cfg(feature = "instrumented")]
#[test]
fn a_device_that_says_clean_too_early_would_be_seen() {
    brigade_engine::mutations::choose(Some(brigade_engine::mutations::Mutation::CleanStateEarly));
    let (_, wrong) = clean_after_a_loss_of_power(200);
    brigade_engine::mutations::choose(None);
    assert!(wrong > 0, "nobody sees it");
}
