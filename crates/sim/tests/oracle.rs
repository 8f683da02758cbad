//! What a sector may read as after a discard.

use brigade_sim::disk::DISCARD_FILL;
use brigade_sim::oracle::Oracle;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Sector 5 was written twice, and the second write acknowledged.
fn written_twice() -> (Oracle, [u64; 2]) {
    let mut oracle = Oracle::new(1, 16);
    let values = [(); 2].map(|()| {
        let writing = oracle.begin_write(5, 1);
        oracle.finish(writing, false);
        writing.value
    });
    (oracle, values)
}

fn allows(oracle: &Oracle, bytes: &[u8]) -> bool {
    let mut oracle = oracle.clone();
    let began = oracle.begin_read();
    let check = || oracle.check(began, 5, bytes, "test");
    catch_unwind(AssertUnwindSafe(check)).is_ok()
}

fn bytes_of(oracle: &Oracle, value: u64) -> Vec<u8> {
    let mut bytes = vec![0; 512];
    oracle.fill(value, 5, &mut bytes);
    bytes
}

#[test]
fn a_discard_shows_what_was_there_or_nothing_of_a_client() {
    let (mut oracle, [_, last]) = written_twice();
    let discard = oracle.begin_discard(4, 4);
    oracle.finish(discard, false);
    assert!(allows(&oracle, &bytes_of(&oracle, last)));
    assert!(allows(&oracle, &[0; 512]));
    assert!(allows(&oracle, &[DISCARD_FILL; 512]));
    assert!(!allows(&oracle, &[1; 512]), "bytes of nobody");
}

#[test]
fn a_discard_does_not_bring_older_data_back() {
    let (mut oracle, [first, _]) = written_twice();
    for fua in [false, true, false] {
        let discard = oracle.begin_discard(4, 4);
        oracle.finish(discard, fua);
        assert!(!allows(&oracle, &bytes_of(&oracle, first)));
    }
    oracle.power_loss();
    assert!(
        allows(&oracle, &bytes_of(&oracle, first)),
        "it was not flushed"
    );
}

#[test]
fn a_flush_after_a_discard_keeps_older_data_away() {
    let (mut oracle, [first, last]) = written_twice();
    let discard = oracle.begin_discard(4, 4);
    oracle.finish(discard, false);
    let flush = oracle.begin_flush();
    oracle.finish_flush(flush);
    oracle.power_loss();
    assert!(!allows(&oracle, &bytes_of(&oracle, first)));
    assert!(allows(&oracle, &bytes_of(&oracle, last)));
    assert!(allows(&oracle, &[0; 512]));
}

#[test]
fn what_was_read_after_a_discard_stays() {
    let (mut oracle, [_, last]) = written_twice();
    let discard = oracle.begin_discard(4, 4);
    oracle.finish(discard, false);
    let began = oracle.begin_read();
    oracle.check(began, 5, &[0; 512], "test");
    assert!(!allows(&oracle, &bytes_of(&oracle, last)));
}

#[test]
fn a_write_after_a_discard_is_what_is_there() {
    let (mut oracle, [_, last]) = written_twice();
    let discard = oracle.begin_discard(4, 4);
    oracle.finish(discard, false);
    let writing = oracle.begin_write(5, 1);
    oracle.finish(writing, false);
    assert!(allows(&oracle, &bytes_of(&oracle, writing.value)));
    assert!(!allows(&oracle, &bytes_of(&oracle, last)));
    assert!(!allows(&oracle, &[0; 512]));
}
