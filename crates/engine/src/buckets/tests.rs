//! Waiting for buckets of a real allocator, without a device.

use super::*;
use crate::alloc::{Config, Placement, Replacement};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

const CONFIG: Config = Config {
    first_bucket: 1,
    nbuckets: 64,
    bucket_sectors: 8,
    block_sectors: 1,
    table_buckets: 1,
    journal_buckets: 0,
    replacement: Replacement::Lru,
};

fn buckets() -> Rc<Buckets> {
    let mut alloc = Allocator::new(CONFIG);
    alloc.start();
    Buckets::new(alloc, Rc::default())
}

fn now<T>(future: impl Future<Output = T>) -> Poll<T> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Fills every bucket data may have, with dirty or clean data.
fn fill(buckets: &Buckets, dirty: bool) -> Vec<Placement> {
    let mut placed = Vec::new();
    let mut alloc = buckets.get_mut();
    while let Some(place) = alloc.allocate(1, 1, placed.len() as u64 * 8, 8, Data::Cached, false) {
        alloc.add_live(place.ptr, place.sectors, dirty);
        alloc.release_pin(place.bucket);
        placed.push(place);
    }
    placed
}

/// Takes all buckets there are for metadata.
fn take_all(buckets: &Rc<Buckets>) -> Vec<BucketNr> {
    let all = buckets.get().metadata_available();
    let Poll::Ready(Ok(taken)) = now(buckets.take_metadata(all)) else {
        panic!("they are there")
    };
    taken.into_iter().map(|bucket| bucket.nr).collect()
}

#[test]
fn metadata_is_served_in_the_order_of_asking_and_before_data() {
    let buckets = buckets();
    let mut taken = take_all(&buckets);
    let data = buckets.queue_for_data(8, Data::Cached);
    let mut context = Context::from_waker(Waker::noop());
    let mut large = pin!(buckets.take_metadata(3));
    let mut small = pin!(buckets.take_metadata(1));
    assert!(large.as_mut().poll(&mut context).is_pending());
    assert!(small.as_mut().poll(&mut context).is_pending());
    assert_eq!(buckets.metadata_wanted.get(), 3);
    buckets.free_metadata(taken.pop());
    assert!(
        small.as_mut().poll(&mut context).is_pending(),
        "not before the large one"
    );
    assert_eq!(
        buckets.data_turn(Some(&data)),
        Some(false),
        "nothing for data either"
    );
    buckets.free_metadata(taken.drain(..2));
    assert!(small.as_mut().poll(&mut context).is_pending());
    let Poll::Ready(Ok(three)) = large.as_mut().poll(&mut context) else {
        panic!("served")
    };
    assert_eq!((three.len(), buckets.metadata_wanted.get()), (3, 1));
    buckets.free_metadata(taken.pop());
    assert!(small.as_mut().poll(&mut context).is_ready());
    assert_eq!(buckets.metadata_wanted.get(), 0);
    assert_eq!(buckets.data_turn(Some(&data)), Some(true), "now it may");
    assert_eq!(buckets.data_turn(None), None, "but no newcomer");
    drop(data);
    assert_eq!(buckets.data_turn(None), Some(true));
}

#[test]
fn who_gives_up_waiting_lets_the_next_one_go_on() {
    let buckets = buckets();
    let mut taken = take_all(&buckets);
    let mut context = Context::from_waker(Waker::noop());
    let mut large = Box::pin(buckets.take_metadata(30));
    let mut small = pin!(buckets.take_metadata(1));
    assert!(large.as_mut().poll(&mut context).is_pending());
    assert!(small.as_mut().poll(&mut context).is_pending());
    buckets.free_metadata(taken.pop());
    assert!(small.as_mut().poll(&mut context).is_pending());
    drop(large);
    assert!(small.as_mut().poll(&mut context).is_ready());
}

#[test]
fn a_drought_is_one_only_if_nothing_changes_and_nothing_is_under_way() {
    let buckets = buckets();
    let placed = fill(&buckets, true);
    let look = || buckets.released.notify_all();
    look();
    look();
    look();
    assert!(!buckets.is_drought(), "nobody searched in vain");
    buckets.is_dry.set(true);
    look();
    look();
    assert!(
        !buckets.is_drought(),
        "once is nothing, as before may have been long ago"
    );
    look();
    assert!(buckets.is_drought());
    // A pin that will end may be that of the only bucket to recycle.
    buckets.get_mut().pin(placed[0].bucket);
    buckets.pins_begin(1);
    assert!(!buckets.is_drought());
    buckets.pins_end([placed[0].bucket]);
    assert!(!buckets.is_drought(), "it ended after the last look");
    (0..3).for_each(|_| look());
    assert!(buckets.is_drought());
    // Something was written back.
    let (ptr, sectors) = (placed[3].ptr, placed[3].sectors);
    buckets.get_mut().sub_live(ptr, sectors, true);
    buckets.get_mut().add_live(ptr, sectors, false);
    assert!(!buckets.is_drought());
}

#[test]
fn a_drought_that_never_ends_poisons_who_waits_for_metadata() {
    let buckets = buckets();
    fill(&buckets, true);
    let mut wait = pin!(buckets.take_metadata(63));
    buckets.is_dry.set(true);
    let mut context = Context::from_waker(Waker::noop());
    let mut looks = 0;
    while wait.as_mut().poll(&mut context).is_pending() {
        buckets.released.notify_all();
        looks += 1;
        assert!(looks < 2 * DRY_LOOKS_MAX);
    }
    assert!(looks > DRY_LOOKS_MAX && buckets.is_closed(), "{looks}");
}

#[test]
fn fills_hold_so_many_bytes_and_those_beyond_wait_in_turn() {
    let buckets = buckets();
    let half = FILL_BYTES_MAX / 2;
    let first = buckets.try_fill_room(half).unwrap();
    let mut second = buckets.try_fill_room(half).unwrap();
    assert!(buckets.try_fill_room(1).is_none());
    let mut context = Context::from_waker(Waker::noop());
    let mut large = pin!(buckets.fill_room(half + 1));
    let mut small = pin!(buckets.fill_room(1));
    assert!(large.as_mut().poll(&mut context).is_pending());
    assert!(small.as_mut().poll(&mut context).is_pending());
    drop(first);
    assert!(
        small.as_mut().poll(&mut context).is_pending(),
        "not before the large one"
    );
    drop(second.split(1));
    let Poll::Ready(Some(room)) = large.as_mut().poll(&mut context) else {
        panic!("served")
    };
    assert_eq!(buckets.fill_bytes(), FILL_BYTES_MAX);
    drop((room, second));
    assert!(matches!(
        small.as_mut().poll(&mut context),
        Poll::Ready(Some(_))
    ));
    assert_eq!(buckets.fill_bytes(), 0);
    // What is larger than all of it goes alone.
    assert!(buckets.try_fill_room(2 * FILL_BYTES_MAX).is_some());
}

/// T43, T65.
#[test]
fn once_it_is_over_nobody_waits() {
    let buckets = buckets();
    take_all(&buckets);
    let _all = buckets.try_fill_room(FILL_BYTES_MAX);
    let mut context = Context::from_waker(Waker::noop());
    let mut metadata = pin!(buckets.take_metadata(1));
    let mut memory = pin!(buckets.fill_room(1));
    let ticket = buckets.queue_for_data(8, Data::Cached);
    let mut data = pin!(ticket.turn());
    assert!(metadata.as_mut().poll(&mut context).is_pending());
    assert!(memory.as_mut().poll(&mut context).is_pending());
    assert!(data.as_mut().poll(&mut context).is_pending());
    buckets.wake_all();
    assert!(matches!(
        metadata.as_mut().poll(&mut context),
        Poll::Ready(Err(_))
    ));
    assert!(matches!(
        memory.as_mut().poll(&mut context),
        Poll::Ready(None)
    ));
    assert!(data.as_mut().poll(&mut context).is_ready() && buckets.is_closed());
}

#[test]
fn a_tick_closes_open_buckets_only_after_a_while() {
    let buckets = buckets();
    let place = buckets
        .get_mut()
        .allocate(1, 1, 0, 2, Data::Cached, false)
        .unwrap();
    buckets.get_mut().release_pin(place.bucket);
    let room = || buckets.get().room_for(Data::Cached, false);
    for step in 0..20 {
        buckets.tick(SLOT_IDLE / 10 * step);
        assert_eq!(room(), 6);
    }
    buckets.tick(SLOT_IDLE * 2);
    assert_eq!(room(), 0);
}
