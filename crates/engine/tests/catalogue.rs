//! Behaviour of a whole set that the catalogue asks for (docs/tests.md): small stories, each with what it observes on the devices.

use brigade_engine::settings::Knob;
use brigade_engine::{AckPolicy, Options, Server, Volume};
use brigade_env::{BlockDevice, Env, StreamId};
use brigade_format::{BackingState, NewCache, Replacement, Superblock};
use brigade_sim::disk::{DiskState, End, Io};
use brigade_sim::exec::{Chance, Store, World};
use brigade_sim::small::{disks, load, load_in, open, options};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

const JOURNAL_MAGIC: u64 = 0x2452_35c1_a362_5032;
const NODE_MAGIC: u64 = 0x9013_5c78_b99e_07f5;
const INSTANT: Duration = Duration::from_micros(100);

type Disk = Rc<RefCell<DiskState>>;

fn superblock(disk: &Disk) -> Superblock {
    let mut bytes = vec![0; 4096];
    disk.borrow().peek(4096, &mut bytes);
    Superblock::parse(&bytes).expect("a superblock")
}

async fn write(v: &Rc<Volume<World>>, sector: u64, sectors: u64, byte: u8) {
    let mut buffer = v.buffer(sectors as usize * 512);
    buffer.fill(byte);
    let done = v.write(StreamId(1), sector * 512, buffer, false).await;
    done.expect("written");
}

async fn read(v: &Rc<Volume<World>>, sector: u64, sectors: u64) -> u8 {
    let found = v.read(StreamId(2), sector * 512, sectors as usize * 512);
    let found = found.await.expect("read");
    assert!(found.iter().all(|byte| *byte == found[0]), "torn");
    found[0]
}

/// 0 not cached, 1 clean, 2 dirty.
async fn cached(v: &Rc<Volume<World>>, sector: u64, sectors: u64) -> u32 {
    let states = BlockDevice::status(&**v, sector * 512, sectors * 512, 1);
    states.await.expect("status")[0].cache_state
}

/// Runs a story with a server from its opening to its stop.
fn session<T: 'static, F: Future<Output = T> + 'static>(
    (c, b): &(Disk, Disk),
    how: Options,
    seed: u64,
    story: impl FnOnce(Rc<Server<World>>, Rc<Volume<World>>, World) -> F,
) -> T {
    let world = World::new(Chance::new(seed), Duration::from_secs(1));
    let server = open(&world, c, b, &Store::default(), how);
    let volume = server.volumes()[0].clone();
    let story = story(server.clone(), volume, world.clone());
    let run = async move {
        let told = story.await;
        server.stop().await.expect("stops");
        told
    };
    let told = world.run(run, || false).expect("ends");
    world.kill();
    told
}

/// T19.
#[test]
fn requests_that_bypass_the_cache_age_nothing() {
    let disks = disks(600, 64, 8, 20_000);
    session(&disks, options(false), 1, |_, v, _| async move {
        write(&v, 0, 8, 1).await;
    });
    let prio_of_data = || {
        let (loaded, layout) = load(&disks.0, Chance::new(1));
        let ptr = loaded.index.iter().find_map(|extent| extent.ptr);
        loaded.prios[ptr.expect("the data").bucket(layout.bucket_sectors).0 as usize]
    };
    let before = prio_of_data();
    // Everything bypasses: far more than many steps.
    let bypass = options(false).with(Knob::SequentialCutoff, 1);
    let bypassed = session(&disks, bypass, 2, |s, v, _| async move {
        for at in 0..200 {
            read(&v, 1000 + at * 64, 64).await;
        }
        s.status().volumes[0].reads.bypassed
    });
    assert_eq!((bypassed, prio_of_data()), (200, before));
    session(&disks, options(false), 3, |_, v, _| async move {
        for at in 0..200 {
            read(&v, 1000 + at * 64, 64).await;
        }
    });
    assert!(prio_of_data() < before - 100, "{}", prio_of_data());
}

/// T31.
#[test]
fn what_is_read_again_stays_while_what_is_older_goes() {
    let disks = disks(1024, 64, 8, 200_000);
    session(&disks, options(false), 1, |_, v, w| async move {
        for at in 0..800 {
            read(&v, at * 64, 64).await;
        }
        w.sleep(Duration::from_secs(60)).await;
        for at in 0..50 {
            assert_eq!(cached(&v, at * 64, 64).await, 1, "extent {at}");
            read(&v, at * 64, 64).await;
        }
        for at in 2000..2600 {
            read(&v, at * 64, 64).await;
        }
        w.sleep(Duration::from_secs(60)).await;
        let mut stay = Vec::new();
        for at in 0..2600 {
            if cached(&v, at * 64, 64).await == 1 {
                stay.push(at);
            }
        }
        let of = |range: std::ops::Range<u64>| stay.iter().filter(|at| range.contains(at)).count();
        assert_eq!(of(0..50), 50, "what was read again");
        assert_eq!(of(2000..2600), 600, "what is new");
        let oldest = stay.iter().find(|at| (50..800).contains(*at)).copied();
        let oldest = oldest.expect("there is room for some");
        // Fills that are under way together may change places.
        assert_eq!(of(oldest + 40..800) as u64, 760 - oldest, "{stay:?}");
        assert!(oldest > 350, "{oldest}");
    });
}

/// T32: which goes next is asked of the allocator's own tests (A18).
#[test]
fn another_policy_is_stored_and_holds_after_a_restart() {
    let disks = disks(600, 64, 8, 20_000);
    let key = "cache_set.cache_replacement_policy";
    for (name, policy) in [
        ("fifo", Replacement::Fifo),
        ("random", Replacement::Random),
        ("lru", Replacement::Lru),
    ] {
        session(&disks, options(false), 1, |s, _, _| async move {
            let changed = s
                .change(&[(key.to_string(), name.to_string())])
                .await
                .expect("changed");
            assert_eq!(changed.len(), 1);
        });
        assert_eq!(superblock(&disks.0).replacement(), Some(policy));
        session(&disks, options(false), 2, |s, _, _| async move {
            let settings = s.settings().cache_set.expect("a set").settings;
            let now = format!("{:?}", settings["cache_replacement_policy"]);
            assert!(now.contains(name), "{now}");
        });
    }
}

/// T36: a kernel opens nothing smaller than 513 buckets, Brigade does with 128.
#[test]
fn a_device_of_128_buckets_is_served_and_127_are_not_made() {
    for buckets in [512, 128] {
        session(
            &disks(buckets, 64, 8, 20_000),
            options(false),
            1,
            |_, v, _| async move {
                for block in 0..400 {
                    write(&v, 80 + block * 8, 8, block as u8).await;
                }
                for block in [0, 100, 399] {
                    assert_eq!(read(&v, 80 + block * 8, 8).await, block as u8);
                }
                assert_eq!(cached(&v, 80 + 399 * 8, 8).await, 2);
            },
        );
    }
    let new = |buckets: u64| {
        Superblock::new_cache(&NewCache {
            device_sectors: buckets * 64,
            bucket_sectors: 64,
            block_sectors: 8,
            uuid: [1; 16],
            set_uuid: [9; 16],
            discard: false,
            replacement: Replacement::Lru,
        })
    };
    assert!(new(128).is_ok() && new(127).is_err());
}

/// T60.
#[test]
fn a_damaged_gen_table_is_refused_and_named() {
    let disks = disks(600, 64, 8, 20_000);
    session(&disks, options(false), 1, |_, v, _| async move {
        write(&v, 0, 8, 1).await;
    });
    let (loaded, layout) = load(&disks.0, Chance::new(1));
    let at = loaded.prio_buckets[0] * layout.bucket_bytes();
    // The magic, the number, an entry far behind.
    for byte in [8, 17, 1500] {
        let mut bytes = vec![0; 4096];
        disks.0.borrow().peek(at, &mut bytes);
        bytes[byte] ^= 1;
        let damaged = disks.0.borrow().fork();
        damaged.borrow_mut().poke(at, &bytes);
        let world = World::new(Chance::new(1), Duration::from_secs(1));
        let error = load_in(&world, &damaged).0.err().expect("refused");
        assert!(
            error.contains("prio") || error.contains("gen table"),
            "{error}"
        );
    }
}

/// T62.
#[test]
fn a_discard_that_fails_changes_nothing() {
    let disks = disks(600, 64, 8, 200_000);
    let failed = Rc::new(Cell::new(0u32));
    let is_open = Rc::new(Cell::new(false));
    let (count, opened, cache) = (failed.clone(), is_open.clone(), Rc::downgrade(&disks.0));
    disks.0.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        // What a discard leaves behind; nobody writes this.
        let is_discard = |data: &[u8]| {
            let is_filled = data.iter().all(|byte| *byte == 0x5a) || data.iter().all(|b| *b == 0);
            !data.is_empty() && data.len().is_multiple_of(64 * 512) && is_filled
        };
        if let Io::Write(at, data) = io
            && at > 1 << 20
            && opened.get()
            && is_discard(data)
        {
            let cache = cache.upgrade().expect("there");
            cache.borrow_mut().faults.write_in = Some(0);
            count.set(count.get() + 1);
        }
        Some(INSTANT)
    }));
    for sector in 0..200_000 {
        disks.1.borrow_mut().poke((16 + sector) * 512, &[0x77; 512]);
    }
    let with_discard = options(false).with(Knob::Discard, 1);
    session(&disks, with_discard, 1, |s, v, w| async move {
        s.change(&[("cache_set.discard".to_string(), "1".to_string())])
            .await
            .expect("on");
        is_open.set(true);
        for at in 0..1500 {
            assert_eq!(read(&v, at * 64, 64).await, 0x77);
        }
        w.sleep(Duration::from_secs(10)).await;
        assert!(s.status().errors.is_empty(), "{:?}", s.status().errors);
        write(&v, 0, 8, 3).await;
        v.flush().await.expect("flushed");
        is_open.set(false);
    });
    assert!(failed.get() > 10, "{}", failed.get());
}

/// T78.
#[test]
fn what_was_written_is_what_the_device_saw() {
    let disks = disks(600, 64, 8, 20_000);
    let seen = Rc::new(Cell::new(0u64));
    let count = seen.clone();
    disks.0.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        if let Io::Write(_, data) = io {
            count.set(count.get() + data.len() as u64);
        }
        Some(INSTANT)
    }));
    session(&disks, options(false), 1, |s, v, _| async move {
        let told = || {
            let device = s.status().cache_sets[0].devices[0].clone();
            let (all, metadata) = (device.written_bytes, device.metadata_written_bytes);
            [seen.get(), all, all - metadata]
        };
        let before = told();
        for at in 0..20 {
            write(&v, at * 24, 8, 1).await;
        }
        v.flush().await.expect("flushed");
        let after = told();
        let [saw, written, data] = [0, 1, 2].map(|at| after[at] - before[at]);
        assert_eq!((written, data), (saw, 20 * 8 * 512));
    });
}

/// T81.
#[test]
fn a_collection_begins_soon_when_asked_for_and_not_without_reason() {
    let disks = disks(600, 64, 8, 20_000);
    session(&disks, options(false), 1, |s, v, w| async move {
        let passes = |s: &Server<World>| s.status().cache_sets[0].gc.passes;
        for at in 0..200 {
            write(&v, at * 16, 8, 1).await;
        }
        w.sleep(Duration::from_secs(600)).await;
        assert_eq!(passes(&s), 0);
        s.collect();
        w.sleep(Duration::from_secs(1)).await;
        let gc = s.status().cache_sets[0].gc.clone();
        assert!(gc.passes == 1 || gc.running, "{gc:?}");
        w.sleep(Duration::from_secs(60)).await;
        assert_eq!(passes(&s), 1, "and no other");
    });
}

/// T86, T93: requests are served and buckets recycled meanwhile.
#[test]
fn a_collection_makes_way_for_requests_and_ends_all_the_same() {
    let disks = disks(3000, 8, 1, 200_000);
    for disk in [&disks.0, &disks.1] {
        // A turn of the collection takes longer than the client pauses.
        disk.borrow_mut().pace = Some(Rc::new(|io: Io<'_>| match io {
            Io::Write(..) => Some(Duration::from_millis(3)),
            _ => Some(INSTANT),
        }));
    }
    session(&disks, options(false), 1, |s, v, w| async move {
        for number in 0..8000u64 {
            read(&v, number * 7919 % 8000 * 2, 1).await;
        }
        // The rest of the cache is full of clean data.
        for at in 0..3000 {
            read(&v, 20_000 + at * 8, 8).await;
        }
        w.sleep(Duration::from_secs(60)).await;
        let passes = || s.status().cache_sets[0].gc.passes;
        let mut took = Vec::new();
        for is_busy in [false, true] {
            let (began, before) = (w.now(), passes());
            s.collect();
            let mut at = 0;
            while passes() == before {
                if is_busy {
                    let sector = 100_000 + at * 8;
                    at += 1;
                    let asked = w.now();
                    read(&v, sector, 8).await;
                    assert!(w.now() - asked < Duration::from_secs(1), "it waits");
                }
                w.sleep(Duration::from_millis(1)).await;
                assert!(w.now() - began < Duration::from_secs(3600), "it ends");
            }
            took.push(w.now() - began);
            let mut hits = 0;
            for at in at.saturating_sub(50)..at {
                hits += u64::from(cached(&v, 100_000 + at * 8, 8).await == 1);
            }
            let looked = at.min(50);
            assert!(!is_busy || looked > 20, "{at} requests meanwhile");
            assert!(hits * 2 >= looked, "{hits} of {looked} are cached");
        }
        assert!(took[1] > took[0] * 2, "it makes way: {took:?}");
    });
}

/// T97.
#[test]
fn moving_is_on_unless_it_is_switched_off() {
    assert_eq!(Knob::CopyGcEnabled.definition().default, 1);
    let disks = disks(600, 64, 8, 20_000);
    let how = Options {
        settings: Default::default(),
        ..options(false)
    };
    session(&disks, how, 1, |s, _, _| async move {
        let settings = s.settings().cache_set.expect("a set").settings;
        let now = serde_json::to_string(&settings["copy_gc_enabled"]).expect("text");
        assert!(now == "true" || now == "1", "{now}");
    });
}

/// How many writes begin with this magic, and when the last one began.
fn watch(disk: &Disk, magic: u64, world: &Rc<RefCell<Option<World>>>) -> Rc<Cell<(u64, Duration)>> {
    let seen = Rc::new(Cell::new((0, Duration::ZERO)));
    let magic = (superblock(disk).set_magic() ^ magic).to_le_bytes();
    let (count, world) = (seen.clone(), world.clone());
    disk.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        if let Io::Write(_, data) = io
            && data.get(8..16) == Some(&magic)
        {
            let now = world.borrow().as_ref().map_or(Duration::ZERO, |w| w.now());
            count.set((count.get().0 + 1, now));
        }
        Some(INSTANT)
    }));
    seen
}

/// T110.
#[test]
fn a_leaf_is_written_after_half_a_minute_or_when_much_is_pending() {
    let disks = disks(2000, 8, 1, 60_000);
    let clock = Rc::new(RefCell::new(None));
    let nodes = watch(&disks.0, NODE_MAGIC, &clock);
    session(&disks, options(false), 1, |_, v, w| async move {
        *clock.borrow_mut() = Some(w.clone());
        w.sleep(Duration::from_secs(60)).await;
        let before = nodes.get().0;
        let began = w.now();
        write(&v, 0, 1, 1).await;
        v.flush().await.expect("flushed");
        w.sleep(Duration::from_secs(60)).await;
        let (after, at) = nodes.get();
        assert!(after > before, "it is written");
        let waited = (at - began).as_secs();
        assert!((29..=36).contains(&waited), "after {waited} s");
        let began = w.now();
        // Three words each.
        for number in 1..600 {
            write(&v, number * 2, 1, 1).await;
        }
        w.sleep(Duration::from_millis(100)).await;
        assert!(nodes.get().0 > after && w.now() - began < Duration::from_secs(20));
        *clock.borrow_mut() = None;
    });
}

/// T112.
#[test]
fn a_write_is_journalled_within_the_delay_a_flush_at_once_and_many_share_an_entry() {
    let disks = disks(600, 64, 8, 20_000);
    let clock = Rc::new(RefCell::new(None));
    let _seen = watch(&disks.0, JOURNAL_MAGIC, &clock);
    disks.1.borrow_mut().pace = Some(Rc::new(|_: Io<'_>| Some(INSTANT)));
    let how = Options {
        ack: AckPolicy::Memory,
        ..options(false)
    };
    session(&disks, how, 1, |s, v, w| async move {
        let journal = || s.status().cache_sets[0].journal;
        w.sleep(Duration::from_secs(60)).await;
        let before = journal().entries_written;
        write(&v, 0, 8, 1).await;
        assert_eq!(journal().entries_written, before, "it is not flushed");
        w.sleep(Duration::from_millis(110)).await;
        assert_eq!(journal().entries_written, before + 1, "one, in time");
        for at in 0..50 {
            // None waits for the journal, so all are in one window.
            let (v, byte) = (v.clone(), at as u8);
            w.spawn(async move { write(&v, 104 + at * 8, 8, byte).await });
        }
        w.sleep(Duration::from_millis(110)).await;
        let many = journal().entries_written - before - 1;
        assert!((1..=2).contains(&many), "{many} entries");
        let began = w.now();
        write(&v, 0, 8, 2).await;
        v.flush().await.expect("flushed");
        assert!(w.now() - began < Duration::from_millis(2), "at once");
    });
}

/// T114.
#[test]
fn data_is_written_before_the_entry_that_names_it() {
    let disks = disks(600, 64, 8, 20_000);
    let magic = (superblock(&disks.0).set_magic() ^ JOURNAL_MAGIC).to_le_bytes();
    let clock: Rc<RefCell<Option<World>>> = Rc::default();
    let seen: Rc<RefCell<Vec<(bool, Duration)>>> = Rc::default();
    let (now, notes) = (clock.clone(), seen.clone());
    disks.0.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        let Io::Write(_, data) = io else {
            return Some(INSTANT);
        };
        let (is_entry, is_data) = (data[8..16] == magic, data[0] == 0xd7);
        if let Some(world) = now.borrow().as_ref().filter(|_| is_entry || is_data) {
            notes.borrow_mut().push((is_entry, world.now()));
        }
        Some(if is_data {
            Duration::from_millis(700)
        } else {
            INSTANT
        })
    }));
    session(&disks, options(false), 1, |_, v, w| async move {
        w.sleep(Duration::from_secs(60)).await;
        *clock.borrow_mut() = Some(w.clone());
        for at in 0..5 {
            let v = v.clone();
            w.spawn(async move { write(&v, at * 8, 8, 0xd7).await });
        }
        // Somebody else's flush in between names none of them.
        w.sleep(Duration::from_millis(300)).await;
        v.flush().await.expect("flushed");
        w.sleep(Duration::from_secs(5)).await;
        v.flush().await.expect("flushed");
        *clock.borrow_mut() = None;
    });
    let seen = seen.borrow();
    let data: Vec<Duration> = seen.iter().filter(|it| !it.0).map(|it| it.1).collect();
    let entries: Vec<Duration> = seen.iter().filter(|it| it.0).map(|it| it.1).collect();
    assert!(data.len() == 5 && !entries.is_empty(), "{seen:?}");
    let done = *data.first().expect("five") + Duration::from_millis(700);
    let named = entries.iter().find(|at| **at >= data[0]);
    assert!(*named.expect("an entry") >= done, "{seen:?}");
}

/// T118: the bound here is 16384 (docs/format.md 5.6), so that a kernel can open the journal.
#[test]
fn clients_wait_when_too_many_entries_are_open() {
    let disks = disks(9000, 1024, 1, 60_000);
    let magic = (superblock(&disks.0).set_magic() ^ NODE_MAGIC).to_le_bytes();
    let is_slow = Rc::new(Cell::new(false));
    let slow = is_slow.clone();
    disks.0.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
        let is_node = matches!(io, Io::Write(_, data) if data.get(8..16) == Some(&magic));
        let hangs = is_node && slow.get();
        Some(if hangs {
            Duration::from_secs(100_000)
        } else {
            INSTANT
        })
    }));
    session(&disks, options(false), 1, |s, v, w| async move {
        is_slow.set(true);
        let done = Rc::new(Cell::new(0u64));
        let (count, to, slow) = (done.clone(), v.clone(), is_slow.clone());
        w.spawn(async move {
            for number in 0..17_000u64 {
                write(&to, number % 8, 1, number as u8).await;
                to.flush().await.expect("flushed");
                count.set(number + 1);
                slow.set(slow.get() && number < 16_999);
            }
        });
        w.sleep(Duration::from_secs(50_000)).await;
        let journal = s.status().cache_sets[0].journal;
        let open = journal.seq - journal.last_seq;
        assert!(open <= 16_384 + 1, "{open}");
        assert!((16_000..17_000).contains(&done.get()), "{}", done.get());
        is_slow.set(false);
        w.sleep(Duration::from_secs(200_000)).await;
        assert_eq!(done.get(), 17_000, "then it goes on");
    });
}

/// T176.
#[test]
fn no_power_loss_within_an_append_of_several_blocks_is_seen() {
    let chance = Chance::new(3);
    let (c, b) = disks(2000, 64, 1, 60_000);
    let magic = (superblock(&c).set_magic() ^ NODE_MAGIC).to_le_bytes();
    let fork: Rc<RefCell<Vec<Disk>>> = Rc::default();
    let world = World::new(chance.clone(), Duration::from_secs(1));
    let server = open(&world, &c, &b, &Store::default(), options(false));
    let (v, w, forks, disk) = (
        server.volumes()[0].clone(),
        world.clone(),
        fork.clone(),
        c.clone(),
    );
    let story = async move {
        w.sleep(Duration::from_secs(60)).await;
        let began = Rc::new(Cell::new(Duration::ZERO));
        let (when, now) = (began.clone(), w.clone());
        disk.borrow_mut().pace = Some(Rc::new(move |io: Io<'_>| {
            let Io::Write(_, data) = io else {
                return Some(Duration::from_millis(10));
            };
            // Only leaves write as much as that now; what is behind a set's first block has no magic.
            let is_node = data.get(8..16) == Some(&magic) || data.len() > 2048;
            when.set(if is_node { now.now() } else { when.get() });
            Some(Duration::from_millis(10))
        }));
        for number in 0..400u64 {
            write(&v, number * 2, 1, number as u8).await;
        }
        v.flush().await.expect("flushed");
        // The leaf goes out somewhere in here, its first block last.
        for _ in 0..40_000 {
            w.sleep(Duration::from_millis(1)).await;
            if w.now() < began.get() + Duration::from_millis(40) && forks.borrow().len() < 60 {
                forks.borrow_mut().push(disk.borrow().fork());
            }
        }
        disk.borrow_mut().pace = None;
    };
    world.run(story, || false).expect("ends");
    world.kill();
    let forks = fork.borrow();
    assert!(forks.len() >= 20, "{} moments", forks.len());
    for (number, fork) in forks.iter().enumerate() {
        for seed in 0..6 {
            let chance = Chance::new(number as u64 * 10 + seed);
            let lost = fork.borrow().fork();
            lost.borrow_mut().end(End::PowerLoss, &chance);
            let (loaded, _) = load(&lost, chance);
            assert_eq!(loaded.index.len(), 400, "moment {number}");
            assert!(loaded.findings.is_empty(), "{:?}", loaded.findings);
        }
    }
}

/// T180.
#[test]
fn what_was_written_back_is_not_dirty_when_opened_again() {
    for is_killed in [false, true] {
        let (c, b) = disks(600, 64, 8, 20_000);
        let chance = Chance::new(1);
        let world = World::new(chance.clone(), Duration::from_secs(1));
        let how = options(true).with(Knob::WritebackDelay, 0);
        let server = open(&world, &c, &b, &Store::default(), how);
        let (v, w) = (server.volumes()[0].clone(), world.clone());
        let story = async move {
            for at in 0..40 {
                write(&v, at * 16, 8, 1).await;
            }
            let mut looks = 0;
            while v.dirty_bytes() > 0 || v.status().expect("served").state != "clean" {
                w.sleep(Duration::from_secs(1)).await;
                looks += 1;
                assert!(
                    looks < 100_000,
                    "{} {}",
                    v.dirty_bytes(),
                    v.status().expect("served").state
                );
            }
            v.flush().await.expect("flushed");
            if !is_killed {
                server.stop().await.expect("stops");
            }
        };
        world.run(story, || false).expect("ends");
        world.kill();
        for disk in [&c, &b] {
            disk.borrow_mut().end(End::Kill, &chance);
        }
        assert_eq!(superblock(&b).state(), BackingState::Clean);
        let (loaded, _) = load(&c, chance);
        assert!(!loaded.index.is_empty());
        assert!(loaded.index.iter().all(|extent| !extent.dirty));
        session(&(c, b), options(false), 2, |_, v, _| async move {
            assert_eq!(
                (v.dirty_bytes(), v.status().expect("served").state.as_str()),
                (0, "clean")
            );
        });
    }
}
