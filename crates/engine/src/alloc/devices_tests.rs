//! Sets of buckets on several devices; sets that need no table; discards; checks of what is handed out.

use brigade_format::{BucketNr, Gen, Ptr};

use super::super::bucket::Place;
use super::super::tokens::Unused;
use super::super::{Allocator, Config, Data, PRIO_EMPTY, Releasing, Replacement, Reserve};
use super::{allocate_set, give_back};

const CONFIG: Config = Config {
    first_bucket: 1,
    nbuckets: 64,
    bucket_sectors: 8,
    block_sectors: 1,
    table_buckets: 1,
    journal_buckets: 0,
    replacement: Replacement::Lru,
};

fn started() -> Allocator {
    let mut alloc = Allocator::new(CONFIG);
    alloc.start();
    alloc
}

/// Fills buckets with clean data until nothing is ready.
fn fill(alloc: &mut Allocator) -> u64 {
    let mut filled = 0;
    while let Some(placement) = alloc.allocate(1, 1, filled * 8, 8, Data::Cached, false) {
        alloc.add_live(placement.ptr, placement.sectors, false);
        alloc.release_pin(placement.bucket);
        filled += 1;
    }
    filled
}

/// T47.
#[test]
fn copies_are_on_different_devices_and_each_pointer_names_its_device_gen_and_first_sector() {
    for reserve in [Reserve::Normal, Reserve::MovingGc, Reserve::Btree] {
        let mut devices: Vec<Allocator> = (0..8).map(|_| started()).collect();
        let copies = allocate_set(&mut devices, reserve, 8).expect("room");
        let mut numbers: Vec<usize> = copies.iter().map(|copy| copy.device).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..8).collect::<Vec<_>>());
        for copy in &copies {
            let device = &devices[copy.device];
            assert_eq!(usize::from(copy.ptr.dev()), copy.device);
            assert_eq!(copy.ptr.r#gen(), device.gen_of(copy.bucket.nr));
            assert_eq!(copy.ptr.sector(), copy.bucket.nr.0 * 8);
            assert_eq!(device.bucket(copy.bucket.nr).pin, 1, "the key's own");
            device.audit();
        }
    }
}

#[test]
fn the_emptiest_device_is_preferred_then_the_lowest_number() {
    let mut devices: Vec<Allocator> = (0..3).map(|_| started()).collect();
    let first = |devices: &mut [Allocator]| {
        let copies = allocate_set(devices, Reserve::Normal, 2).expect("room");
        let numbers: Vec<usize> = copies.iter().map(|copy| copy.device).collect();
        give_back(devices, &copies);
        numbers
    };
    assert_eq!(first(&mut devices), [0, 1]);
    // Dirty data on the first two, more of it on the first.
    for (device, count) in [(0, 8), (1, 4)] {
        for at in 0..count {
            let device: &mut Allocator = &mut devices[device];
            let placed = device.allocate(1, 1, at * 8, 8, Data::Cached, false);
            let placed = placed.expect("room");
            device.add_live(placed.ptr, 8, true);
        }
    }
    assert_eq!(first(&mut devices), [2, 1]);
}

#[test]
fn of_devices_as_full_as_each_other_the_one_with_the_oldest_data_is_preferred() {
    let mut devices: Vec<Allocator> = (0..2).map(|_| started()).collect();
    for device in &mut devices {
        fill(device);
    }
    // A step of ageing brings the lowest recency of a device down to that of its oldest data.
    devices[0].account_traffic(1);
    for _ in 0..5 {
        devices[1].account_traffic(1 << 20);
    }
    let bucket = |alloc: &mut Allocator| {
        alloc.gather(usize::MAX, || 0);
        let batch = alloc.begin_batch().expect("victims");
        alloc.batch_durable(batch);
    };
    devices.iter_mut().for_each(bucket);
    let copies = allocate_set(&mut devices, Reserve::Normal, 1).expect("room");
    assert_eq!(copies[0].device, 1);
}

/// T48.
#[test]
fn when_one_device_has_no_bucket_the_others_get_theirs_back_unused() {
    for reserve in [Reserve::Normal, Reserve::Btree] {
        let mut devices: Vec<Allocator> = (0..3).map(|_| started()).collect();
        while devices[1].take_metadata(Reserve::Btree).is_some() {}
        while devices[1].take_whole(Reserve::MovingGc).is_some() {}
        let before: Vec<_> = devices.iter().map(Allocator::stats).collect();
        assert_eq!(allocate_set(&mut devices, reserve, 3), None);
        let after: Vec<_> = devices.iter().map(Allocator::stats).collect();
        assert_eq!(before, after, "nothing is lost");
        for device in &devices {
            device.audit();
            let open = device
                .all()
                .filter(|nr| device.bucket(*nr).place() == Place::Open);
            assert!(open.count() <= device.lists.whole.len());
        }
        assert!(
            allocate_set(&mut devices, reserve, 2).is_some(),
            "two still have some"
        );
    }
}

/// T49.
#[test]
#[should_panic(expected = "each on its own device")]
fn more_copies_than_devices_are_refused() {
    allocate_set(&mut [started()], Reserve::Normal, 2);
}

/// T49.
#[test]
#[should_panic(expected = "each on its own device")]
fn no_copy_at_all_is_refused() {
    allocate_set(&mut [started()], Reserve::Normal, 0);
}

/// T49: a key has eight pointers.
#[test]
#[should_panic(expected = "each on its own device")]
fn nine_copies_are_refused_even_on_nine_devices() {
    let mut devices: Vec<Allocator> = (0..9).map(|_| started()).collect();
    allocate_set(&mut devices, Reserve::Normal, 9);
}

#[test]
fn a_whole_bucket_becomes_ordinary_data_once_its_key_is_in() {
    let mut alloc = started();
    let bucket = alloc.take_whole(Reserve::Normal).expect("room");
    alloc.add_live(Ptr::new(bucket.nr.0 * 8, bucket.r#gen), 8, false);
    alloc.release_whole(bucket);
    alloc.audit();
    alloc.gather(usize::MAX, || 0);
    let batch = alloc.begin_batch().expect("it can be recycled");
    assert_eq!(batch.buckets().collect::<Vec<_>>(), [bucket.nr]);
}

/// T64.
#[test]
fn a_set_that_is_not_synchronous_reuses_buckets_without_a_table() {
    let mut alloc = started();
    let filled = fill(&mut alloc);
    assert!(filled > 10);
    alloc.set_synchronous(false);
    let gathered = alloc.gather(usize::MAX, || 0);
    assert!(
        gathered > 0 && alloc.begin_batch().is_none(),
        "nothing waits"
    );
    assert!(fill(&mut alloc) > 0);
    alloc.set_synchronous(true);
    alloc.audit();
    assert!(alloc.gather(usize::MAX, || 0) > 0);
    assert!(alloc.allocate(9, 1, 0, 8, Data::Cached, false).is_none());
    let batch = alloc.begin_batch().expect("now they wait for a table");
    alloc.batch_durable(batch);
    assert!(alloc.allocate(9, 1, 0, 8, Data::Cached, false).is_some());
}

/// T61.
#[test]
fn recycled_buckets_are_discarded_between_the_durable_table_and_reuse() {
    let mut alloc = started();
    fill(&mut alloc);
    alloc.set_discards(true);
    let gathered = alloc.gather(usize::MAX, || 0);
    assert!(
        alloc.take_discards(64).is_empty(),
        "their gens are not durable"
    );
    let batch = alloc.begin_batch().expect("victims");
    let mut recycled: Vec<u64> = batch.buckets().map(|nr| nr.0).collect();
    alloc.batch_durable(batch);
    alloc.audit();
    assert!(alloc.allocate(9, 1, 0, 8, Data::Cached, false).is_none());
    let (some, others) = (alloc.take_discards(gathered - 1), alloc.take_discards(64));
    recycled.sort_unstable();
    let runs = [some.runs(), others.runs()].concat();
    let mut discarded: Vec<u64> = runs.iter().cloned().flatten().collect();
    discarded.sort_unstable();
    assert_eq!(discarded, recycled, "each is in the hands of one");
    assert!(some.runs().len() < gathered - 1, "neighbours go together");
    assert!(alloc.allocate(9, 1, 0, 8, Data::Cached, false).is_none());
    alloc.discarded(some);
    alloc.audit();
    assert!(alloc.allocate(9, 1, 0, 8, Data::Cached, false).is_some());
    alloc.discarded(others);
    alloc.audit();
}

/// T61.
#[test]
fn discards_switched_off_hold_nothing_back() {
    let mut alloc = started();
    fill(&mut alloc);
    alloc.set_discards(true);
    alloc.gather(usize::MAX, || 0);
    let batch = alloc.begin_batch().expect("victims");
    alloc.batch_durable(batch);
    alloc.set_discards(false);
    assert!(alloc.take_discards(64).is_empty());
    assert!(alloc.allocate(9, 1, 0, 8, Data::Cached, false).is_some());
}

/// T50.
#[test]
#[should_panic(expected = "ALLOC-1")]
fn expensive_checks_find_a_bucket_that_is_handed_out_while_it_is_listed() {
    let mut alloc = started();
    alloc.set_expensive_checks(true);
    let bucket = alloc.take_whole(Reserve::Normal).expect("room");
    // What no other step can do: it is listed again while it is in use.
    let listed = Unused::new(bucket.nr);
    alloc.lists.unused.push_back(listed);
    alloc.check_handed_out(bucket.nr);
}

#[test]
fn expensive_checks_find_nothing_wrong_in_ordinary_use() {
    let mut alloc = started();
    alloc.set_expensive_checks(true);
    fill(&mut alloc);
    alloc.gather(usize::MAX, || 0);
    let batch = alloc.begin_batch().expect("victims");
    alloc.batch_durable(batch);
    assert!(alloc.take_metadata(Reserve::Btree).is_some());
    assert!(alloc.take_whole(Reserve::MovingGc).is_some());
}

#[test]
fn a_collection_that_begins_before_all_leaves_are_counted_finds_none() {
    let mut alloc = Allocator::new(CONFIG);
    let bucket = BucketNr(9);
    alloc.set_gen(bucket, Gen(0), 1);
    alloc.mark_referenced(bucket);
    alloc.start_counting(vec![false; CONFIG.nbuckets as usize]);
    let mut base = alloc.gc_base();
    // A leaf comes, is written again as it is, and then told that it holds nothing there.
    let ptr = Ptr::new(9 * 8, Gen(0));
    alloc.count_pointer(ptr).expect("not called empty");
    alloc.count_live(ptr, 8, false).expect("room");
    alloc.sub_live(ptr, 8, false);
    assert!(alloc.finish_counting(usize::MAX));
    alloc.gc_finished(&mut base);
    assert!(alloc.gc_release_empty(&mut base, 10));
    alloc.audit();
    assert_eq!(alloc.bucket(bucket).place(), Place::Idle);
}

#[test]
fn reserves_are_full_after_each_step_of_the_end_of_counting() {
    let mut alloc = Allocator::new(CONFIG);
    // Nothing is known to be empty, and in the end everything is.
    let first = CONFIG.first_bucket;
    for nr in (first..CONFIG.nbuckets).map(BucketNr) {
        alloc.set_gen(nr, Gen(0), 1);
        alloc.mark_referenced(nr);
    }
    alloc.start_counting(vec![false; CONFIG.nbuckets as usize]);
    alloc.audit();
    while !alloc.finish_counting(3) {
        alloc.audit();
    }
    alloc.audit();
}

/// P5: nobody waits for all of a batch.
#[test]
fn a_batch_is_released_in_steps_between_which_everything_holds_and_buckets_are_taken() {
    let mut alloc = Allocator::new(Config {
        nbuckets: 2000,
        ..CONFIG
    });
    alloc.start();
    fill(&mut alloc);
    assert!(alloc.gather(usize::MAX, || 0) > 4);
    let batch = alloc.begin_batch().expect("victims");
    let (mut releasing, mut steps, mut taken) = (Releasing::new(batch), 0, 0);
    while !alloc.release_some(&mut releasing, 1) {
        alloc.audit();
        assert!(alloc.begin_batch().is_none(), "one at a time");
        steps += 1;
        let placed = alloc.allocate(1, 1, steps * 8, 8, Data::Cached, false);
        if let Some(placed) = placed {
            alloc.add_live(placed.ptr, placed.sectors, false);
            alloc.release_pin(placed.bucket);
            taken += 1;
        }
    }
    assert!(steps > 8 && taken > 0, "{steps} steps, {taken} taken");
    alloc.audit();
    assert!(alloc.gather(usize::MAX, || 0) > 0 && alloc.begin_batch().is_some());
}

/// The policy may change at any time, and counts go on changing.
#[test]
fn a_policy_that_changes_while_leaves_are_counted_finds_every_bucket_in_its_place() {
    let mut config = CONFIG;
    config.replacement = Replacement::Fifo;
    let mut alloc = Allocator::new(config);
    let first = CONFIG.first_bucket;
    let buckets = || (first..CONFIG.nbuckets).map(BucketNr);
    for nr in buckets() {
        alloc.set_gen(nr, Gen(0), 1);
        alloc.mark_referenced(nr);
    }
    alloc.start_counting(vec![false; CONFIG.nbuckets as usize]);
    let ptr = |nr: BucketNr| Ptr::new(nr.0 * 8, Gen(0));
    let half = (first + CONFIG.nbuckets) / 2;
    for nr in buckets() {
        if nr.0 == half {
            alloc.set_replacement(Replacement::Lru);
            alloc.audit();
        }
        alloc.count_pointer(ptr(nr)).expect("not called empty");
        alloc.count_live(ptr(nr), 8, false).expect("room");
    }
    let mut step = 0;
    while !alloc.finish_counting(3) {
        step += 1;
        alloc.sub_live(ptr(BucketNr(first + step)), 1, false);
        alloc.sub_live(ptr(BucketNr(CONFIG.nbuckets - step)), 1, false);
        alloc.audit();
    }
    alloc.audit();
    assert!(alloc.gather(usize::MAX, || 0) > 0);
    alloc.audit();
}

/// What a bucket's oldest pointer may be is not what it is: buckets that are taken before that is known ask for no collection.
#[test]
fn buckets_that_are_taken_at_the_end_of_counting_do_not_make_it_look_as_if_generations_were_late() {
    let mut alloc = Allocator::new(CONFIG);
    for nr in (CONFIG.first_bucket..CONFIG.nbuckets).map(BucketNr) {
        alloc.set_gen(nr, Gen(0), PRIO_EMPTY);
    }
    alloc.start_counting(vec![false; CONFIG.nbuckets as usize]);
    let mut taken = 0;
    while !alloc.finish_counting(3) {
        taken += usize::from(
            alloc
                .allocate(1, 1, taken as u64 * 8, 8, Data::Cached, false)
                .is_some(),
        );
    }
    assert!(taken > 2, "{taken} taken");
    assert!(alloc.need_gc() <= 2, "{} behind", alloc.need_gc());
    alloc.audit();
}

#[test]
fn a_collection_finds_buckets_that_nothing_points_to_any_more() {
    let mut alloc = started();
    let placed: Vec<_> = (0..4)
        .map(|at| {
            alloc
                .allocate(1, 1, at * 8, 8, Data::Cached, false)
                .expect("room")
        })
        .collect();
    for placement in &placed {
        alloc.add_live(placement.ptr, 8, false);
        alloc.release_pin(placement.bucket);
    }
    for placement in &placed[..2] {
        alloc.sub_live(placement.ptr, 8, false);
    }
    let mut base = alloc.gc_base();
    // This one is emptied too late: the collection may have written its key again.
    alloc.sub_live(placed[2].ptr, 8, false);
    alloc.gc_finished(&mut base);
    assert!(!alloc.gc_release_empty(&mut base, 1), "one by one");
    assert!(alloc.gc_release_empty(&mut base, 10));
    alloc.audit();
    let places: Vec<Place> = placed
        .iter()
        .map(|p| alloc.bucket(p.bucket).place())
        .collect();
    assert_eq!(
        places,
        [Place::Unused, Place::Unused, Place::Idle, Place::Idle]
    );
    let gen_before = alloc.gen_of(BucketNr(placed[0].bucket.0));
    while alloc.bucket(placed[0].bucket).place() == Place::Unused {
        assert!(alloc.take_whole(Reserve::Normal).is_some());
    }
    assert_eq!(alloc.gen_of(placed[0].bucket), gen_before.next());
}
