//! Backing devices that write whole stripes at less cost than parts of them.

mod common_writeback;

use brigade_engine::settings::Knob;
use brigade_engine::{DrainEnd, Options, StripeStatus};
use brigade_env::{BlockDevice, Env};
use brigade_sim::small::options;
use common_writeback::{BLOCK, Set, Teller, first_byte, plain};
use std::ops::Range;
use std::time::Duration;

/// The places of `off` and `on` among the values of `partial_stripes_expensive`.
const OFF: u64 = 1;
const ON: u64 = 2;
/// Blocks of a stripe: no power of two.
const STRIPE: u64 = 24;

fn striped() -> Options {
    of_stripes(plain(), ON)
}

fn of_stripes(options: Options, expensive: u64) -> Options {
    options
        .with(Knob::StripeSize, STRIPE * BLOCK)
        .with(Knob::PartialStripesExpensive, expensive)
}

/// The first block of a stripe. The volume begins two blocks into the backing device.
fn first(stripe: u64) -> u64 {
    stripe * STRIPE - 2
}

impl Teller {
    async fn fill(&self, stripe: u64) {
        for block in (0..STRIPE).rev() {
            self.write(first(stripe) + block, 1, stripe as u8).await;
        }
    }

    fn stripes(&self) -> StripeStatus {
        self.status().stripes
    }

    async fn counted(&self) -> StripeStatus {
        while !self.stripes().counted {
            self.sleep(0.01).await;
        }
        self.stripes()
    }
}

fn counts(stripes: StripeStatus) -> (u64, u64) {
    (stripes.dirty, stripes.full)
}

/// T147: stripes that are dirty as a whole go first, neighbours together, each once; then all else, ascending.
#[test]
fn whole_stripes_are_written_back_before_parts_of_others() {
    let set = Set::new(striped()).paced(Duration::from_millis(1));
    let log = set.watch();
    let teller = set.volume();
    set.tell(async move {
        for block in [3, 700, 50] {
            teller.write(block, 1, 1).await;
        }
        for stripe in [20, 6, 5] {
            teller.fill(stripe).await;
        }
        let stripes = teller.counted().await;
        assert_eq!(counts(stripes), (6, 3));
        assert!(stripes.partial_expensive && stripes.size == STRIPE * BLOCK);
        teller.volume.drain();
        assert_eq!(teller.volume.drained().await, Some(DrainEnd::Done));
        assert_eq!(counts(teller.stripes()), (0, 0));
    });
    let whole = [(first(5), 2 * STRIPE), (first(20), STRIPE)];
    let parts = [(3, 1), (50, 1), (700, 1)];
    assert_eq!(*log.borrow(), [&whole[..], &parts[..]].concat());
}

/// T147: dirty sectors count for the stripe they are in, also of what crosses borders, is overwritten, or goes; the first stripe is whole
/// when all that is served of it is dirty.
#[test]
fn sectors_are_counted_for_each_stripe_across_borders() {
    let teller = Set::new(striped()).volume();
    let world = teller.world.clone();
    let story = async move {
        teller.counted().await;
        teller.write(first(1), STRIPE + 1, 1).await;
        assert_eq!(counts(teller.stripes()), (2, 1));
        teller.write(first(2) - 1, 2, 2).await;
        assert_eq!(counts(teller.stripes()), (2, 1));
        teller.write(0, STRIPE - 2, 3).await;
        assert_eq!(counts(teller.stripes()), (3, 2));
        let zero = teller
            .volume
            .write_zeroes(BLOCK, BLOCK, false, false, false);
        zero.await.expect("cleared");
        assert_eq!(counts(teller.stripes()), (3, 1));
        let discard = teller
            .volume
            .discard(first(1) * BLOCK, 2 * STRIPE * BLOCK, false);
        discard.await.expect("discarded");
        assert_eq!(counts(teller.stripes()), (1, 0));
    };
    world.run(story, || false).expect("ends");
}

/// What was counted is counted again after a restart, and when the size of a stripe is another; not at all when nobody wants it.
#[test]
fn stripes_are_counted_anew_when_they_must_be() {
    let set = Set::new(striped());
    let teller = set.volume();
    set.tell(async move {
        teller.write(3, 1, 1).await;
        teller.fill(6).await;
        teller.set("stripe_size", "64k").await;
        teller.sleep(1.0).await;
        // Sectors 1152 to 1344 of the device.
        assert_eq!(counts(teller.counted().await), (3, 1));
        teller.set("stripe_size", "32k").await;
        teller.sleep(1.0).await;
        assert_eq!(counts(teller.counted().await), (4, 3));
        teller.set("partial_stripes_expensive", "off").await;
        teller.sleep(1.0).await;
        let stripes = teller.stripes();
        assert!(counts(stripes) == (0, 0) && !stripes.counted && !stripes.partial_expensive);
        teller.server.stop().await.expect("stopped");
    });
    let set = set.again(striped());
    let teller = set.volume();
    set.tell(async move {
        assert_eq!(counts(teller.counted().await), (2, 1));
        assert!(teller.volume.drain());
        assert_eq!(teller.volume.drained().await, Some(DrainEnd::Done));
        assert_eq!(counts(teller.stripes()), (0, 0));
    });
    assert_eq!((set.on_backing(first(6)), set.on_backing(3)), (6, 1));
}

/// A long run that goes around the cache goes through it where a stripe has dirty data, or else the next write of that stripe's rest would
/// be one of a part.
#[test]
fn a_long_run_becomes_dirty_where_a_stripe_is() {
    for (expensive, expected) in [(OFF, 1), (ON, STRIPE)] {
        let options = of_stripes(options(false), expensive).with(Knob::SequentialCutoff, 2 * BLOCK);
        let set = Set::new(options);
        let teller = set.volume();
        set.tell(async move {
            if expensive == ON {
                teller.counted().await;
            }
            for block in 0..3 * STRIPE {
                teller.write(first(5) + block, 1, 1).await;
            }
            assert_eq!(teller.stripes().full, u64::from(expensive == ON));
            assert_eq!(teller.dirty() / BLOCK, expected);
        });
    }
}

/// What the device says of itself holds if nothing else is set.
#[test]
fn a_device_that_says_so_is_written_in_stripes() {
    let (set, optimal) = (Set::new(plain()), 3 << 20);
    set.backing.borrow_mut().be_striped(optimal, true);
    let set = set.again(plain());
    let teller = set.volume();
    set.tell(async move {
        let stripes = teller.counted().await;
        assert!(stripes.partial_expensive && stripes.size == 6 << 20);
        teller.set("partial_stripes_expensive", "off").await;
        let stripes = teller.stripes();
        assert!(!stripes.partial_expensive && stripes.size == 6 << 20);
    });
}

/// Clients write stripes again and again; some block besides is dirty, and has to be written back soon.
fn is_not_kept_waiting(by: Range<u64>, refused: Option<u64>) {
    let eager = striped()
        .with(Knob::WritebackPercent, 0)
        .with(Knob::WritebackDelay, 0);
    let set = Set::of(4000, eager);
    let nowhere = 20_000;
    set.refuse(refused.unwrap_or(nowhere), Duration::from_millis(20));
    let (teller, backing) = (set.volume(), set.backing.clone());
    set.tell(async move {
        teller.counted().await;
        teller.write(700, 1, 1).await;
        for hot in by {
            let teller = teller.clone();
            teller.world.clone().spawn(async move {
                loop {
                    teller.fill(hot).await;
                    teller.sleep(0.001).await;
                }
            });
        }
        teller.sleep(0.1).await;
        teller.set("writeback_running", "on").await;
        let began = teller.world.now();
        while first_byte(&backing, 700) == 0 {
            teller.sleep(0.01).await;
            let took = teller.world.now() - began;
            assert!(took < Duration::from_secs(5), "{:?}", teller.stripes());
        }
    });
}

#[test]
fn stripes_that_are_full_again_and_again_do_not_keep_the_others_waiting() {
    // More than go in one round.
    is_not_kept_waiting(40..240, None);
}

#[test]
fn nor_does_one_that_cannot_be_written() {
    is_not_kept_waiting(9..10, Some(first(9) + 3));
}
