//! Open buckets, rule by rule, and against a naive twin.

use brigade_format::{BucketNr, Ptr};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

use super::super::bucket::Place;
use super::super::{Allocator, Config, Replacement, Reserve, Sizes};
use super::{Data, Placement};

const CONFIG: Config = Config {
    first_bucket: 1,
    nbuckets: 4000,
    bucket_sectors: 16,
    block_sectors: 4,
    table_buckets: 1,
    journal_buckets: 0,
    replacement: Replacement::Lru,
};

fn with_slots(config: Config, slots: usize) -> Allocator {
    let sizes = Sizes {
        slots,
        ..Sizes::of(&config)
    };
    let mut alloc = Allocator::with_sizes(config, sizes);
    alloc.start();
    alloc
}

fn put(alloc: &mut Allocator, stream: u16, start: u64, sectors: u64) -> Placement {
    alloc
        .allocate(stream, 1, start, sectors, Data::Cached, false)
        .expect("space")
}

/// A slot as the twin has it.
#[derive(Clone, Copy)]
struct Plain {
    was_used: bool,
    inode: u32,
    end: u64,
    stream: Option<u16>,
    kind: Data,
    place: Option<(BucketNr, u64)>,
    free: u32,
    tick: u64,
}

/// The slots in a list, least recently used first, looked through from end to end each time.
struct Twin {
    slots: Vec<Plain>,
    claims: usize,
    tick: u64,
}

impl Twin {
    fn new(slots: usize) -> Twin {
        let empty = Plain {
            was_used: false,
            inode: 0,
            end: 0,
            stream: None,
            kind: Data::Cached,
            place: None,
            free: 0,
            tick: 0,
        };
        Twin {
            slots: vec![empty; slots],
            claims: (slots / 4).max(2),
            tick: 0,
        }
    }

    fn pick(&self, inode: u32, start: u64, stream: u16, kind: Data) -> usize {
        let is_ours = |slot: &Plain| slot.was_used && slot.kind == kind;
        let follows = |slot: &Plain| is_ours(slot) && slot.inode == inode && slot.end == start;
        let of_stream = |slot: &Plain| is_ours(slot) && slot.stream == Some(stream);
        let may_go = |slot: &Plain| slot.free == 0 || slot.kind == kind;
        let slots = &self.slots;
        slots
            .iter()
            .rposition(follows)
            .or_else(|| slots.iter().rposition(of_stream))
            .or_else(|| slots.iter().position(may_go))
            .unwrap_or(0)
    }

    fn has_space(slot: &Plain, kind: Data) -> bool {
        slot.free > 0 && slot.kind == kind
    }

    /// Follows an allocation, which may take a new bucket or may not.
    fn allocate(
        &mut self,
        (stream, inode, start, sectors, kind): (u16, u32, u64, u64, Data),
        got: Option<Placement>,
        may_take: bool,
    ) {
        let mut index = self.pick(inode, start, stream, kind);
        if !Self::has_space(&self.slots[index], kind) {
            let first = |got: &Placement| {
                got.ptr
                    .sector()
                    .is_multiple_of(CONFIG.bucket_sectors.into())
            };
            let is_open = |nr| {
                self.slots
                    .iter()
                    .any(|s| s.place.is_some_and(|p| p.0 == nr))
            };
            let new = got.filter(|got| first(got) && !is_open(got.bucket));
            assert_eq!(
                new.is_some(),
                may_take,
                "a new bucket is taken if one is ready"
            );
            match new {
                Some(got) => {
                    let slot = &mut self.slots[index];
                    (slot.was_used, slot.kind) = (true, kind);
                    slot.place = Some((got.bucket, got.ptr.sector()));
                    slot.free = CONFIG.bucket_sectors;
                }
                None => {
                    let any = self
                        .slots
                        .iter()
                        .rposition(|slot| Self::has_space(slot, kind));
                    let Some(any) = any else {
                        assert_eq!(got, None, "there is no space");
                        return;
                    };
                    index = any;
                }
            }
        }
        let mut slot = self.slots.remove(index);
        let count = sectors.min(u64::from(slot.free)) as u32;
        let (nr, sector) = slot.place.expect("with space");
        let got = got.expect("there is space");
        assert_eq!(
            (got.bucket, got.ptr.sector(), got.sectors),
            (nr, sector, count)
        );
        slot.free -= count;
        slot.place = Some((nr, sector + u64::from(count)));
        if slot.free < CONFIG.block_sectors {
            (slot.free, slot.place) = (0, None);
        }
        (slot.inode, slot.end) = (inode, start + u64::from(count));
        (slot.stream, slot.tick) = (Some(stream), self.tick);
        self.slots.push(slot);
        let is_claimed = |slot: &Plain| slot.kind == kind && slot.stream == Some(stream);
        if self.slots.iter().filter(|slot| is_claimed(slot)).count() > self.claims {
            let oldest = self.slots.iter().position(is_claimed).expect("counted");
            self.slots[oldest].stream = None;
        }
    }

    fn close(&mut self, is_idle: impl Fn(&Plain) -> bool) {
        for slot in self.slots.iter_mut().filter(|slot| is_idle(slot)) {
            (slot.free, slot.place) = (0, None);
        }
    }

    fn check(&self, alloc: &Allocator) {
        for kind in [Data::Cached, Data::Flash] {
            let of_kind = self.slots.iter().filter(|slot| slot.kind == kind);
            let free: u64 = of_kind.map(|slot| u64::from(slot.free)).sum();
            assert_eq!(alloc.room_for(kind, false), free);
        }
        let mut ours: Vec<_> = self.slots.iter().filter_map(|s| Some(s.place?.0)).collect();
        let mut theirs: Vec<_> = alloc.open.slots.iter().filter_map(|s| s.bucket).collect();
        ours.sort_unstable_by_key(|nr| nr.0);
        theirs.sort_unstable_by_key(|nr| nr.0);
        assert_eq!(ours, theirs);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(u16, u32, u64, u64, Data),
    /// Goes on where some earlier data ended.
    Follow(u16, usize, u64),
    InOpen(u16, u64, Data),
    CloseAll,
    Tick,
}

fn kind() -> impl Strategy<Value = Data> {
    prop_oneof![3 => Just(Data::Cached), 1 => Just(Data::Flash)]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..7u16, 0..2u32, 0..40u64, 1..24u64, kind())
            .prop_map(|(s, i, at, n, kind)| Step::Allocate(s, i, at, n, kind)),
        6 => (0..7u16, any::<usize>(), 1..24u64).prop_map(|(s, which, n)| Step::Follow(s, which, n)),
        2 => (0..7u16, 1..24u64, kind()).prop_map(|(s, n, kind)| Step::InOpen(s, n, kind)),
        1 => Just(Step::Tick),
        1 => prop::bool::weighted(0.1).prop_map(|all| if all { Step::CloseAll } else { Step::Tick }),
    ]
}

proptest! {
    /// T67, T68, T75.
    #[test]
    fn slots_are_picked_as_a_list_looked_through_from_end_to_end_would(
        slots in 1..12usize,
        nbuckets in prop_oneof![Just(80u64), Just(4000)],
        steps in proptest::collection::vec(step(), 1..300),
    ) {
        let mut alloc = with_slots(Config { nbuckets, ..CONFIG }, slots);
        let mut twin = Twin::new(slots);
        let mut ends = vec![(0u32, 0u64, Data::Cached)];
        for step in steps {
            let (request, may_take) = match step {
                Step::Allocate(stream, inode, at, n, kind) => ((stream, inode, at, n, kind), true),
                Step::Follow(stream, which, n) => {
                    let (inode, end, kind) = ends[which % ends.len()];
                    ((stream, inode, end, n, kind), true)
                }
                Step::InOpen(stream, n, kind) => ((stream, 0, 1000, n, kind), false),
                Step::CloseAll => {
                    alloc.close_open_buckets();
                    twin.close(|_| true);
                    twin.check(&alloc);
                    continue;
                }
                Step::Tick => {
                    alloc.close_idle();
                    twin.tick += 1;
                    let now = twin.tick;
                    twin.close(|slot| slot.tick + 2 <= now);
                    twin.check(&alloc);
                    continue;
                }
            };
            let (stream, inode, at, n, kind) = request;
            let is_ready = alloc.room_for(kind, true) > alloc.room_for(kind, false);
            let got = if may_take {
                alloc.allocate(stream, inode, at, n, kind, false)
            } else {
                alloc.allocate_in_open(stream, inode, at, n, kind)
            };
            twin.allocate(request, got, may_take && is_ready);
            twin.check(&alloc);
            if let Some(got) = got {
                alloc.release_pin(got.bucket);
                ends.push((inode, at + u64::from(got.sectors), kind));
            }
        }
    }
}

/// T68, T69.
#[test]
fn the_most_recent_slot_of_a_stream_is_taken_if_nothing_is_continued() {
    let mut alloc = with_slots(CONFIG, 8);
    let old = put(&mut alloc, 1, 0, 4);
    let other = put(&mut alloc, 2, 1000, 4);
    // By continuing it, stream 1 takes over the slot of stream 2.
    let taken = put(&mut alloc, 1, 1004, 4);
    assert_eq!(
        (taken.bucket, old.bucket == other.bucket),
        (other.bucket, false)
    );
    assert_eq!(put(&mut alloc, 1, 5000, 4).bucket, other.bucket);
    assert_eq!(put(&mut alloc, 1, 4, 4).bucket, old.bucket, "continued");
    assert_eq!(
        put(&mut alloc, 1, 9000, 4).bucket,
        old.bucket,
        "most recent"
    );
}

#[test]
fn a_stream_claims_no_more_than_some_slots_and_the_others_are_for_everybody() {
    let mut alloc = with_slots(CONFIG, 8);
    // Four streams each begin a bucket; then stream 9 continues all of them.
    let begun: Vec<_> = (1..5)
        .map(|s| put(&mut alloc, s, u64::from(s) * 100, 4))
        .collect();
    for stream in 1..5u64 {
        put(&mut alloc, 9, stream * 100 + 4, 4);
    }
    let claimed = alloc
        .open
        .slots
        .iter()
        .filter(|slot| slot.stream == Some(9));
    assert_eq!(claimed.count(), 2, "a quarter of the slots");
    let open = begun
        .iter()
        .filter(|b| alloc.bucket(b.bucket).place() == Place::Open);
    assert_eq!(open.count(), 4, "nothing was closed for that");
}

/// T70.
#[test]
fn a_full_slot_that_is_continued_gets_the_new_bucket() {
    let mut alloc = with_slots(CONFIG, 4);
    let first = put(&mut alloc, 1, 0, 16);
    assert_eq!(first.sectors, 16);
    put(&mut alloc, 2, 500, 4);
    let next = put(&mut alloc, 3, 16, 4);
    assert_ne!(next.bucket, first.bucket);
    let used = alloc.open.slots.iter().filter(|slot| slot.was_used);
    assert_eq!(used.count(), 2, "the stream kept its slot");
}

/// T71, A44: no more is handed out than the bucket has.
#[test]
fn a_request_larger_than_the_room_gets_the_room_and_comes_back() {
    let mut alloc = with_slots(CONFIG, 4);
    put(&mut alloc, 1, 0, 6);
    let rest = put(&mut alloc, 1, 6, 30);
    assert_eq!(rest.sectors, 10);
    let more = put(&mut alloc, 1, 16, 20);
    assert_eq!((more.sectors, more.bucket == rest.bucket), (16, false));
}

/// A45: the slot remembers where the data ends, and who wrote it.
#[test]
fn data_handed_out_makes_its_slot_the_most_recent_and_moves_its_end() {
    let mut alloc = with_slots(CONFIG, 4);
    let a = put(&mut alloc, 1, 0, 4);
    let b = put(&mut alloc, 2, 100, 4);
    assert_eq!(put(&mut alloc, 3, 4, 4).ptr, a.ptr.advance(4));
    let most_recent = alloc.open.any_with_space(Data::Cached).unwrap();
    assert_eq!(alloc.open.slots[most_recent].bucket, Some(a.bucket));
    assert_eq!(
        put(&mut alloc, 3, 900, 4).bucket,
        a.bucket,
        "now of stream 3"
    );
    assert_eq!(put(&mut alloc, 7, 104, 4).ptr, b.ptr.advance(4));
}

/// T72, A47: a rest shorter than a block is wasted, a block is not.
#[test]
fn a_rest_of_a_block_stays_open_and_a_shorter_one_is_closed() {
    for (first, is_open) in [(12, true), (13, false)] {
        let mut alloc = with_slots(CONFIG, 4);
        let placed = put(&mut alloc, 1, 0, first);
        assert_eq!(alloc.bucket(placed.bucket).place() == Place::Open, is_open);
        assert_eq!(
            alloc.room_for(Data::Cached, false),
            if is_open { 4 } else { 0 }
        );
    }
}

/// T73, A48: each key has a pin, an open slot one more; the write that fills the bucket gets the slot's.
#[test]
fn the_write_that_fills_a_bucket_takes_over_the_pin_of_its_slot() {
    let mut alloc = with_slots(CONFIG, 4);
    let mut placed: Vec<_> = (0..3).map(|i| put(&mut alloc, 1, i * 4, 4)).collect();
    let nr = placed[0].bucket;
    assert_eq!(alloc.bucket(nr).pin, 4, "three keys and the slot");
    placed.push(put(&mut alloc, 1, 12, 4));
    assert_eq!(
        alloc.bucket(nr).pin,
        4,
        "four keys, the slot is done with it"
    );
    placed
        .iter()
        .for_each(|placed| alloc.release_pin(placed.bucket));
    assert_eq!(
        (alloc.bucket(nr).pin, alloc.bucket(nr).place()),
        (0, Place::Idle)
    );
}

/// T76, A43: the kernel takes a bucket and then may not need it. Here every bucket that leaves the lists is in a slot with data.
#[test]
fn no_bucket_is_taken_that_is_not_used_at_once() {
    let mut alloc = with_slots(
        Config {
            nbuckets: 100,
            ..CONFIG
        },
        4,
    );
    let idle = |alloc: &Allocator| {
        let is_surplus = |nr: &BucketNr| {
            let bucket = alloc.bucket(*nr);
            bucket.place() == Place::Open && bucket.pin < 2
        };
        alloc.all().filter(is_surplus).count()
    };
    let free = alloc.stats().free;
    let mut opened = 0;
    for i in 0..200u64 {
        let Some(placed) = alloc.allocate((i % 9) as u16, 1, i * 1000, 5, Data::Cached, false)
        else {
            break;
        };
        assert!(alloc.bucket(placed.bucket).pin >= 1 && idle(&alloc) == 0);
        opened += u64::from(placed.ptr.sector().is_multiple_of(16));
        assert_eq!(
            alloc.stats().free,
            free - opened,
            "taken one by one, as used"
        );
    }
    assert!(opened > 50);
}

#[test]
fn slots_not_used_since_the_tick_before_the_last_are_closed() {
    let mut alloc = with_slots(CONFIG, 4);
    let idle = put(&mut alloc, 1, 0, 4);
    let busy = put(&mut alloc, 2, 100, 4);
    alloc.add_live(idle.ptr, 4, false);
    alloc.release_pin(idle.bucket);
    alloc.close_idle();
    put(&mut alloc, 2, 104, 4);
    alloc.close_idle();
    assert_eq!(alloc.bucket(busy.bucket).place(), Place::Open);
    let bucket = *alloc.bucket(idle.bucket);
    assert_eq!((bucket.place(), bucket.pin), (Place::Idle, 0));
    assert!(bucket.is_eligible(), "it can be recycled now");
    assert_eq!(alloc.room_for(Data::Cached, false), 8);
    assert_ne!(put(&mut alloc, 1, 4, 4).bucket, idle.bucket);
}

/// A56, always checked where assertions are on.
#[test]
fn what_is_handed_out_is_never_stale() {
    let mut alloc = with_slots(
        Config {
            nbuckets: 60,
            ..CONFIG
        },
        4,
    );
    let mut handed_out = 0;
    for i in 0..2000u64 {
        match alloc.allocate((i % 5) as u16, 1, i * 7, 1 + i % 9, Data::Cached, false) {
            Some(placed) => {
                assert!(!alloc.is_stale(placed.ptr));
                alloc.add_live(placed.ptr, placed.sectors, false);
                alloc.release_pin(placed.bucket);
                handed_out += 1;
            }
            None => {
                alloc.gather(usize::MAX, || 0);
                let batch = alloc.begin_batch().expect("victims");
                let table: Vec<_> = batch.table_buckets().iter().map(|b| b.nr).collect();
                alloc.batch_durable(batch);
                table.into_iter().for_each(|nr| alloc.free_metadata(nr));
            }
        }
    }
    assert!(handed_out > 1500);
}

// ---- trace events ------------------------------------------------------------------------------------------------------

/// Keeps the fields of the allocator's events.
#[derive(Clone, Default)]
struct Listener(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.target() == "brigade::alloc"
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{}={value:?} ", field.name());
            }
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.lock().unwrap().push(text.0.trim_end().to_string());
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// T39, H.39: the kernel gives the reserve for the bucket, and so a sector that is never right.
#[test]
fn an_allocation_is_traced_with_its_bucket_its_first_sector_and_its_reserve() {
    let listener = Listener::default();
    let events = listener.0.clone();
    let (placed, failed) = tracing::subscriber::with_default(listener, || {
        let mut alloc = with_slots(
            Config {
                nbuckets: 40,
                ..CONFIG
            },
            4,
        );
        let first = put(&mut alloc, 1, 0, 4);
        put(&mut alloc, 1, 4, 4);
        while let Some(placed) = alloc.allocate(1, 1, 77, 16, Data::Cached, false) {
            alloc.add_live(placed.ptr, placed.sectors, false);
            alloc.release_pin(placed.bucket);
        }
        alloc.gather(usize::MAX, || 0);
        let batch = alloc.begin_batch().expect("victims");
        events
            .lock()
            .unwrap()
            .push(format!("batch of {}", batch.len()));
        assert!(alloc.allocate(1, 1, 77, 16, Data::Cached, false).is_none());
        let failed = format!(
            "message=alloc_fail device=0 reserve=Normal ready=0 incoming={} batch=true",
            batch.len()
        );
        alloc.abandon_batch(batch);
        (first, failed)
    });
    let events = events.lock().unwrap();
    let (nr, sector) = (placed.bucket.0, placed.ptr.sector());
    assert_eq!(sector, nr * 16);
    assert_eq!(
        events[0],
        format!("message=alloc device=0 bucket={nr} sector={sector} reserve=Normal")
    );
    let of_first = format!("bucket={nr} ");
    let again = events.iter().filter(|event| event.contains(&of_first));
    assert_eq!(again.count(), 1, "one event a bucket, not one a request");
    assert_eq!(events.last(), Some(&failed), "{events:?}");
}

#[test]
fn reserves_are_named_as_asked_for() {
    let listener = Listener::default();
    let events = listener.0.clone();
    tracing::subscriber::with_default(listener, || {
        let mut alloc = with_slots(CONFIG, 4);
        alloc
            .allocate(0, 1, 0, 4, Data::Cached, true)
            .expect("space");
        alloc.trace_allocation(BucketNr(7), Reserve::Btree);
        alloc.trace_failure(Reserve::Prio);
    });
    let events = events.lock().unwrap();
    assert!(events[0].ends_with("reserve=MovingGc"), "{events:?}");
    assert_eq!(
        events[1],
        format!(
            "message=alloc device=0 bucket=7 sector={} reserve=Btree",
            7 * 16
        )
    );
    assert!(events[2].contains("alloc_fail device=0 reserve=Prio"));
}

/// T74.
#[test]
fn many_streams_share_the_slots_there_are() {
    let mut alloc = with_slots(CONFIG, 4);
    let placed: Vec<Ptr> = (0..9)
        .map(|s| put(&mut alloc, s, u64::from(s) * 100, 2).ptr)
        .collect();
    let mut buckets: Vec<_> = placed.iter().map(|ptr| ptr.bucket(16).0).collect();
    buckets.sort_unstable();
    buckets.dedup();
    assert_eq!(
        buckets.len(),
        4,
        "the fifth joins the oldest bucket, and nothing is closed"
    );
}
