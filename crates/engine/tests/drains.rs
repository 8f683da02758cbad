//! Draining a volume on demand: when it is over, how long it takes, and what ends it.

mod common_writeback;

use brigade_engine::DrainEnd;
use brigade_env::Env;
use brigade_sim::small::options;
use common_writeback::{BLOCK, Set, plain};
use std::time::Duration;

/// A drain says how long it will take, rightly from its first quarter on, and heeds no setting.
#[test]
fn a_drain_knows_when_it_ends() {
    let set = Set::of(4000, plain()).paced(Duration::from_millis(7));
    let teller = set.volume();
    set.tell(async move {
        for block in 0..6000 {
            teller.write(block * 3, 1, 7).await;
        }
        let (began, all) = (teller.world.now(), teller.dirty());
        assert!(teller.volume.drain() && !teller.volume.drain());
        let mut seen = Vec::new();
        loop {
            let drain = teller.status().drain.expect("a drain");
            if drain.state != "running" {
                assert_eq!(drain.state, "done");
                assert_eq!((drain.left_bytes, drain.written_bytes), (0, all));
                break;
            }
            assert_eq!(drain.dirty_at_start_bytes, all);
            if drain.left_bytes * 4 <= all * 3 {
                let eta = drain.eta_seconds.expect("a speed");
                seen.push((teller.world.now(), eta));
            }
            teller.sleep(0.013).await;
        }
        let end = teller.world.now();
        assert!(seen.len() > 10, "{}", seen.len());
        for (at, eta) in seen {
            let really = (end - at).as_secs_f64();
            let off = (eta - really).abs() / (end - began).as_secs_f64();
            assert!(off < 0.1, "{eta} at {at:?}, really {really}");
        }
        assert_eq!(teller.volume.drained().await, Some(DrainEnd::Done));
    });
}

/// A drain that was cancelled leaves the rest dirty; one that a stop ends goes on with the next.
#[test]
fn a_drain_can_be_ended_and_begun_again() {
    let set = Set::of(2000, plain()).paced(Duration::from_millis(20));
    let teller = set.volume();
    let left = set.tell({
        let teller = teller.clone();
        async move {
            for block in 0..3000 {
                teller.write(block * 3, 1, 7).await;
            }
            teller.server.drain(Some("x")).expect("begun");
            assert!(teller.server.drain(Some("nobody")).is_err());
            teller.sleep(1.0).await;
            assert_eq!(teller.server.cancel_drain(None).expect("ended").len(), 1);
            assert_eq!(teller.volume.drained().await, Some(DrainEnd::Cancelled));
            teller.sleep(2.0).await;
            let left = teller.dirty();
            teller.sleep(10.0).await;
            assert!(left == teller.dirty() && left > 0 && left < 3000 * BLOCK);
            assert!(!teller.volume.cancel_drain());
            assert!(teller.volume.drain());
            teller.sleep(1.0).await;
            teller.server.stop().await.expect("stopped");
            assert_eq!(teller.volume.drained().await, Some(DrainEnd::Stopped));
            left
        }
    });
    let set = set.again(options(false));
    let volume = set.volume().volume;
    assert!(volume.dirty_bytes() < left);
    let ended = set.tell(async move {
        volume.drain();
        let ended = volume.drained().await;
        (ended, volume.dirty_bytes(), volume.state())
    });
    assert_eq!(ended, (Some(DrainEnd::Done), 0, "clean"));
    assert!((0..3000).all(|block| set.on_backing(block * 3) == 7));
}

/// Under writes that never end a drain is over when what was dirty at its beginning is written back.
#[test]
fn a_drain_ends_although_clients_go_on_writing() {
    let set = Set::of(2000, options(false)).paced(Duration::from_millis(20));
    let teller = set.volume();
    set.tell(async move {
        for block in 0..500 {
            teller.write(block * 3, 1, 7).await;
        }
        teller.volume.drain();
        let mut number = 0;
        while teller.status().drain.expect("a drain").state == "running" {
            teller.write(3000 + number % 400 * 2, 1, 8).await;
            number += 1;
            teller.sleep(0.003).await;
            assert!(number < 20_000, "{:?}", teller.status());
        }
        let drain = teller.status().drain.expect("a drain");
        assert_eq!(drain.state, "done");
        assert_eq!(drain.left_bytes, teller.dirty());
        assert!(drain.left_bytes > 0);
    });
    assert!((0..500).all(|block| set.on_backing(block * 3) == 7));
}

/// A device whose state could not be written is not thought to be clean.
#[test]
fn a_device_that_could_not_be_called_clean_still_says_dirty() {
    let set = Set::new(options(false)).paced(Duration::from_millis(1));
    let teller = set.volume();
    let backing = set.backing.clone();
    set.tell(async move {
        teller.write(5, 1, 1).await;
        backing.borrow_mut().faults.write_in = Some(1);
        teller.volume.drain();
        teller.sleep(5.0).await;
        assert_eq!((teller.dirty(), teller.volume.state()), (0, "dirty"));
        let drain = teller.status().drain.expect("a drain");
        assert_eq!(drain.state, "failed");
        assert!(drain.last_error.is_some());
    });
}

/// Nobody waits for a drain that cannot get anywhere any more, whichever device it is that has failed.
#[test]
fn a_drain_over_a_device_that_has_failed_ends() {
    for is_cache in [false, true] {
        let set = Set::new(options(false)).paced(Duration::from_millis(1));
        let teller = set.volume();
        let failing = match is_cache {
            true => set.cache.clone(),
            false => set.backing.clone(),
        };
        set.tell(async move {
            for block in 0..50 {
                teller.write(block * 3, 1, 1).await;
            }
            failing.borrow_mut().faults.flush_in = Some(0);
            teller.volume.drain();
            assert_eq!(teller.volume.drained().await, Some(DrainEnd::Failed));
            let drain = teller.status().drain.expect("a drain");
            assert_eq!(drain.state, "failed");
            assert!(drain.last_error.is_some() && drain.left_bytes == 50 * BLOCK);
        });
    }
}
