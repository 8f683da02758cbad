//! The controller of the rate, step by step.

use super::*;

/// The kernel's defaults, without what the kernel does not have.
const TERMS: Terms = Terms {
    p_inverse: 40,
    i_inverse: 10_000,
    fragments: Some([1, 10, 1000]),
    minimum: 8,
    period: 5,
    deadline: 0,
    latency: Duration::ZERO,
};

/// Little in use, keeping up, at the rate of the start.
const SEEN: Seen = Seen {
    dirty: 0,
    target: 0,
    in_use: 20,
    used_buckets: 100,
    bucket_sectors: 128,
    rate: 1024,
    keeps_up: true,
    most_dirty: 0,
    latency: Duration::ZERO,
};

/// T141: a session of one device, with each result worked out by hand.
#[test]
fn the_controller_goes_through_a_session_step_by_step() {
    // Dirty, keeps up, proportional, integral, rate.
    let steps: [(u64, bool, i64, i64, u64); 26] = [
        // A target of 13107: below it nothing is summed, and the minimum holds.
        (0, true, -327, 0, 8),
        (13_106, true, 0, 0, 8),
        // 39 below and above the target divide to 0 both ways.
        (13_068, true, 0, 0, 8),
        (13_107, true, 0, 0, 8),
        (13_146, false, 0, 0, 8),
        (13_147, false, 1, 0, 8),
        // As section F.4 was seen to be: 3277 too many, not keeping up.
        (16_384, false, 81, 0, 81),
        (16_384, false, 81, 0, 81),
        // Keeping up: 16385 more each time.
        (16_384, true, 81, 1, 82),
        (16_384, true, 81, 3, 84),
        (16_384, true, 81, 4, 85),
        (16_384, true, 81, 6, 87),
        // Lagging again, the sum (65540) stays.
        (20_000, false, 172, 6, 178),
        (50_000, false, 922, 6, 928),
        // 36893 too many: 184465 more.
        (50_000, true, 922, 25, 947),
        (50_000, true, 922, 43, 965),
        // Far below: the sum (434470) shrinks whether or not it keeps up, 65535 at a time, beside a negative distance.
        (0, false, -327, 36, 8),
        (0, true, -327, 30, 8),
        // At the target nothing is summed at all: 303400.
        (13_107, true, 0, 30, 30),
        (0, true, -327, 23, 8),
        (0, true, -327, 17, 8),
        (0, true, -327, 10, 8),
        // 41260 left; the next step takes it below nothing, and there it stays (-2.4 divides to -2).
        (0, true, -327, 4, 8),
        (0, true, -327, -2, 8),
        (0, true, -327, -2, 8),
        // Until there is too much again: -24275 + 16385 is -0.789.
        (16_384, true, 81, 0, 81),
    ];
    let mut controller = Controller::default();
    let mut rate = SEEN.rate;
    for (number, (dirty, keeps_up, proportional, integral, expected)) in
        steps.into_iter().enumerate()
    {
        let seen = Seen {
            dirty,
            keeps_up,
            rate,
            target: 13_107,
            ..SEEN
        };
        let old = rate;
        rate = controller.update(&TERMS, &seen);
        assert_eq!(
            (controller.proportional, controller.integral, rate),
            (proportional, integral, expected),
            "step {number}"
        );
        assert_eq!(controller.change, rate as i64 - old as i64);
    }
}

/// T141: fragments, by how much of the cache is in use and by how thinly dirty data lies.
#[test]
fn fragments_weigh_more_the_more_is_in_use() {
    let proportional = |in_use, used_buckets, dirty| {
        let seen = Seen {
            dirty,
            target: dirty,
            in_use,
            used_buckets,
            ..SEEN
        };
        let mut controller = Controller::default();
        controller.update(&TERMS, &seen);
        controller.proportional
    };
    // 32 sectors in each bucket of 128: four times as many buckets as needed.
    let at = |in_use| proportional(in_use, 600, 19_200);
    assert_eq!(
        [50, 51, 57, 58, 64, 65, 70].map(at),
        [0, 32, 224, 320, 2240, 32_000, 192_000]
    );
    // Exactly three times as many do not count, and a sector more in all makes three of four.
    assert_eq!(proportional(65, 600, 25_600), 0);
    assert_eq!(proportional(65, 600, 19_201), 0);
    assert_eq!(
        proportional(65, 0, 0),
        0,
        "nothing is divided by no buckets"
    );
    assert_eq!(proportional(65, 0, 1), 0);
}

/// T141: fragments do not slow down what is to go faster for another reason, and can be left out.
#[test]
fn fragments_never_take_from_the_rate() {
    let seen = Seen {
        dirty: 19_200,
        target: 200,
        in_use: 51,
        used_buckets: 600,
        ..SEEN
    };
    let mut controller = Controller::default();
    controller.update(&TERMS, &seen);
    assert_eq!(controller.proportional, 475);
    let without = Terms {
        fragments: None,
        ..TERMS
    };
    let full = Seen {
        in_use: 70,
        target: seen.dirty,
        ..seen
    };
    assert_eq!(Controller::default().update(&without, &full), 8);
}

/// T141: sums that the kernel's 32 bits do not hold.
#[test]
fn no_distance_is_too_far() {
    let mut controller = Controller::default();
    let far = Seen {
        dirty: u64::MAX,
        ..SEEN
    };
    for _ in 0..3 {
        assert_eq!(controller.update(&TERMS, &far), 1_000_000_000);
    }
    let near = Seen {
        target: u64::MAX,
        ..SEEN
    };
    assert_eq!(Controller::default().update(&TERMS, &near), 8);
    // 2^32 + 40 over 32 bits would be one sector a second.
    let wraps = Seen {
        dirty: ((1 << 32) + 1) * 40,
        keeps_up: false,
        ..SEEN
    };
    assert_eq!(Controller::default().update(&TERMS, &wraps), 1_000_000_000);
    let zeros = Terms {
        p_inverse: 0,
        i_inverse: 0,
        ..TERMS
    };
    Controller::default().update(&zeros, &far);
}

#[test]
fn a_deadline_counts_from_the_most_that_was_dirty_in_a_pass() {
    let terms = Terms {
        deadline: 100,
        ..TERMS
    };
    let rate = |dirty, most_dirty| {
        let seen = Seen {
            dirty,
            most_dirty,
            target: 1 << 30,
            ..SEEN
        };
        Controller::default().update(&terms, &seen)
    };
    assert_eq!((rate(10_000, 0), rate(10_001, 0)), (100, 101));
    assert_eq!(rate(1, 50_000), 500);
    assert_eq!(rate(100, 100), 8, "the minimum is more");
}

#[test]
fn a_slow_device_is_asked_for_less_but_never_for_less_than_the_least() {
    let terms = Terms {
        latency: Duration::from_millis(10),
        ..TERMS
    };
    let rate = |millis, deadline| {
        let seen = Seen {
            dirty: 40_000,
            keeps_up: false,
            latency: Duration::from_millis(millis),
            ..SEEN
        };
        Controller::default().update(&Terms { deadline, ..terms }, &seen)
    };
    assert_eq!((rate(10, 0), rate(20, 0), rate(100, 0)), (1000, 500, 100));
    assert_eq!(rate(10_000_000, 0), 8);
    assert_eq!(rate(100, 100), 400, "the deadline goes first");
}

/// T142: shares of two devices, of one so small that it would have none, and what flash volumes take.
#[test]
fn a_target_is_shared_by_size() {
    let of = |mine, flash| target(131_072, flash, 10, mine, [1_000_000, 3_000_000].into_iter());
    assert_eq!((of(1_000_000, 0), of(3_000_000, 0)), (3276, 9830));
    // A tenth of what is left.
    assert_eq!(of(1_000_000, 31_072), 2500);
    assert_eq!(of(1_000_000, 200_000), 0);
    let tiny = target(1 << 24, 0, 10, 1, [1 << 40, 1].into_iter());
    assert_eq!(tiny, (1 << 24) / 10 / (1 << 14));
    // As the kernel was seen to have it: 64 MiB, one device, 10 %.
    assert_eq!(
        target(131_072, 0, 10, 1 << 21, [1 << 21].into_iter()),
        13_107
    );
    assert_eq!(
        target(u64::MAX, 0, 40, u64::MAX, [u64::MAX; 2].into_iter()),
        u64::MAX / 5
    );
}

/// T143: how far behind and ahead it may be, and a rate that changes on the way.
#[test]
fn the_limiter_is_never_far_from_the_clock() {
    let at = Duration::from_millis;
    let mut limiter = Limiter::default();
    limiter.reset(at(10_000));
    assert_eq!(limiter.take(100, 1000, at(10_000)), at(100));
    assert_eq!(limiter.rest(at(10_060)), at(40));
    // What was asked for earlier keeps its pace: 40 ms, and 50 more at twice the rate.
    assert_eq!(limiter.take(100, 2000, at(10_060)), at(90));
    assert_eq!(limiter.take(0, 2000, at(10_100)), at(50));
    // No rest is longer than 2.5 s, whatever was written, however slowly.
    assert_eq!(limiter.take(1_000_000, 1, at(10_150)), at(2500));
    assert_eq!(limiter.take(u64::MAX, 1, at(10_150)), at(2500));
    // After a long time without work, two seconds of it are made up for.
    assert!(limiter.keeps_up(at(12_650)) && !limiter.keeps_up(at(12_651)));
    assert_eq!(limiter.take(0, 1000, at(60_000)), at(0));
    assert_eq!(limiter.take(1999, 1000, at(60_000)), at(0));
    assert!(!limiter.keeps_up(at(60_000)));
    assert_eq!(limiter.take(1, 1000, at(60_000)), at(0));
    assert!(limiter.keeps_up(at(60_000)));
    assert_eq!(limiter.take(500, 1000, at(60_000)), at(500));
    limiter.reset(at(60_000));
    assert_eq!(limiter.rest(at(60_000)), at(0));
    assert_eq!(limiter.take(1, 0, at(60_000)), at(1000));
}

/// T144: six updates of one device, four times as many of two, which count together; a request ends it.
#[test]
fn a_set_is_idle_after_updates_without_a_request() {
    let at = Duration::from_millis;
    let mut idle = Idle::default();
    let mut count = |request, devices| (1..100).find(|_| idle.update(at(request), devices));
    assert_eq!(count(5, 1), Some(6));
    assert_eq!(count(5, 1), Some(1), "and stays so");
    assert_eq!(count(6, 1), Some(6), "until a request comes");
    assert_eq!(count(7, 2), Some(24));
    assert_eq!(count(8, 3), Some(54));
}

/// T152: from half of the cache on, once.
#[test]
fn a_collection_follows_if_half_was_in_use_and_only_once() {
    let mut gc = GcAfter::default();
    gc.update(true, 49);
    assert!(!gc.became_clean());
    gc.update(true, 50);
    gc.update(true, 10);
    assert!(gc.became_clean());
    assert!(!gc.became_clean());
    gc.update(false, 99);
    assert!(!gc.became_clean());
    gc.update(true, 50);
    gc.update(false, 50);
    assert!(!gc.became_clean(), "not wanted any more");
}
