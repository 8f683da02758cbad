//! The client against the server: every command, both kinds of replies.

mod support;

use brigade_env::{Buffer, Env, StatusExtent};
use brigade_nbd::client::{self, ContextExtents};
use brigade_nbd::load::{self, LoadOptions};
use brigade_nbd::proto::{command, command_flag, transmission};
use brigade_nbd::{Client, ClientOptions, ServerOptions, Shutdown, serve};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use support::{DISK_BYTES, Door, Ram, RamDisk, Wire, World};

struct Stand {
    world: World,
    door: Door,
    disk: Rc<RamDisk>,
    shutdown: Rc<Shutdown>,
}

impl Stand {
    fn with(change: impl FnOnce(&mut RamDisk, &mut ServerOptions)) -> Self {
        let world = World::new();
        let mut disk = RamDisk::new(&world);
        let mut options = ServerOptions::default();
        change(&mut disk, &mut options);
        let stand = Stand {
            world: world.clone(),
            door: Door::default(),
            disk: Rc::new(disk),
            shutdown: Shutdown::new(),
        };
        let exports = Rc::new(Ram(stand.disk.clone()));
        world.spawn(serve(
            world.clone(),
            stand.door.clone(),
            exports,
            options,
            stand.shutdown.clone(),
        ));
        stand
    }

    fn new() -> Self {
        Self::with(|_, _| ())
    }

    fn open(&self, structured: bool, chunk: usize) -> impl Future<Output = Client<Wire>> + 'static {
        let (world, wire) = (self.world.clone(), self.door.connect(chunk, 1 << 20));
        async move {
            let options = ClientOptions {
                structured,
                ..ClientOptions::default()
            };
            Client::connect(&world, wire, "ram", options)
                .await
                .expect("an open export")
        }
    }

    fn buffer(&self, length: usize, seed: u8) -> Buffer {
        let mut buffer = self.world.buffers().get(length);
        for (nr, byte) in buffer.iter_mut().enumerate() {
            *byte = (nr as u8)
                .wrapping_mul(31)
                .wrapping_add((nr >> 8) as u8)
                .wrapping_add(seed);
        }
        buffer
    }
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn every_command_does_what_it_says_with_both_kinds_of_replies() {
    for structured in [false, true] {
        let stand = Stand::new();
        let (open, disk) = (stand.open(structured, usize::MAX), stand.disk.clone());
        let payload = stand.buffer(8192, 3);
        let expected = payload.to_vec();
        stand.world.run(async move {
            let client = open.await;
            let info = client.info();
            assert_eq!(info.size_bytes, DISK_BYTES as u64);
            assert_eq!(
                (info.block_sizes.minimum, info.block_sizes.maximum),
                (512, 1 << 20)
            );
            assert_eq!(info.is_structured, structured);
            assert_eq!(info.flags & transmission::SEND_DF != 0, structured);
            client.write(4096, payload, true).await.expect("write");
            assert!(disk.noted("write 4096+8192 fua=true"));
            assert_eq!(
                client.read(4096, 8192).await.expect("read").to_vec(),
                expected
            );
            assert_eq!(
                client.read(4608, 512).await.expect("read").to_vec(),
                expected[512..1024]
            );
            client.flush().await.expect("flush");
            assert!(disk.noted("flush"));
            client.trim(0, 4096, false).await.expect("trim");
            assert!(disk.noted("discard 0+4096 fua=false"));
            client.cache(8192, 512).await.expect("cache");
            assert!(disk.noted("prefetch 8192+512"));
            client
                .write_zeroes(4096, 4096, command_flag::NO_HOLE | command_flag::FUA)
                .await
                .expect("zeroes");
            assert!(disk.noted("zeroes 4096+4096 unmap=false fast=false fua=true"));
            assert_eq!(
                client.read(4096, 4096).await.expect("read").to_vec(),
                vec![0; 4096]
            );
            assert_eq!(
                errno(client.write_zeroes(0, 512, command_flag::FAST_ZERO).await),
                Some(95)
            );
            assert_eq!(client.read(0, 0).await.expect("nothing").len(), 0);
            client.disconnect().await;
        });
        stand.shutdown.trigger();
        stand.world.settle();
        assert_eq!(stand.world.task_count(), 0, "nothing is left behind");
    }
}

#[test]
fn errors_reach_the_client_as_their_numbers_and_the_connection_stays_usable() {
    for structured in [false, true] {
        let stand = Stand::new();
        let (open, disk) = (stand.open(structured, 100), stand.disk.clone());
        let (odd, past, bad, good) = (
            stand.buffer(100, 0),
            stand.buffer(1024, 0),
            stand.buffer(512, 0),
            stand.buffer(512, 9),
        );
        stand.world.run(async move {
            let client = open.await;
            let end = DISK_BYTES as u64;
            disk.bad_from.set(end - 512);
            assert_eq!(errno(client.read(end, 512).await), Some(22));
            assert_eq!(errno(client.read(1, 512).await), Some(22));
            assert_eq!(errno(client.read(end - 512, 512).await), Some(5));
            assert_eq!(errno(client.write(0, odd, false).await), Some(22));
            assert_eq!(errno(client.write(end - 512, past, false).await), Some(28));
            assert_eq!(errno(client.write(end - 512, bad, false).await), Some(5));
            assert_eq!(errno(client.raw(0, 77, 0, 0).await), Some(22));
            assert_eq!(
                errno(client.raw(1 << 9, command::FLUSH, 0, 0).await),
                Some(22)
            );
            if !structured {
                assert_eq!(errno(client.block_status(0, 512, false).await), Some(22));
            }
            client.write(512, good, false).await.expect("still usable");
            assert_eq!(client.read(512, 512).await.expect("read")[0], 9);
        });
    }
}

#[test]
fn a_read_only_export_says_so_and_refuses_changes() {
    let stand = Stand::with(|disk, _| disk.is_read_only = true);
    let open = stand.open(true, usize::MAX);
    let buffer = stand.buffer(512, 0);
    stand.world.run(async move {
        let client = open.await;
        assert_ne!(client.info().flags & transmission::READ_ONLY, 0);
        assert_eq!(errno(client.write(0, buffer, false).await), Some(1));
        assert_eq!(errno(client.trim(0, 512, false).await), Some(1));
        assert_eq!(errno(client.write_zeroes(0, 512, 0).await), Some(1));
        client.read(0, 512).await.expect("reads are fine");
    });
}

#[test]
fn block_status_tells_holes_and_cache_states_each_merged_for_its_context() {
    let stand = Stand::new();
    let extent = |length, is_hole, cache_state| StatusExtent {
        length,
        is_hole,
        cache_state,
    };
    let told = vec![
        extent(4096, false, 1),
        extent(4096, false, 2),
        extent(8192, true, 0),
        extent(1 << 40, false, 0),
    ];
    *stand.disk.extents.borrow_mut() = Some(told);
    let open = stand.open(true, 13);
    stand.world.run(async move {
        let client = open.await;
        let names: Vec<_> = client.info().contexts.clone();
        assert_eq!(
            names,
            [
                (1, "base:allocation".to_owned()),
                (2, "brigade:state".to_owned())
            ]
        );
        let all = client.block_status(0, 32768, false).await.expect("status");
        let allocation = ContextExtents {
            context: 1,
            extents: vec![(8192, 0), (8192, 3), (16384, 0)],
        };
        let state = ContextExtents {
            context: 2,
            extents: vec![(4096, 1), (4096, 2), (24576, 0)],
        };
        assert_eq!(all, [allocation, state]);
        let one = client.block_status(0, 32768, true).await.expect("status");
        assert_eq!(
            (&one[0].extents[..], &one[1].extents[..]),
            (&[(8192, 0)][..], &[(4096, 1)][..])
        );
        assert_eq!(errno(client.block_status(0, 0, false).await), Some(22));
    });
    *stand.disk.extents.borrow_mut() = Some(Vec::new());
    let open = stand.open(true, usize::MAX);
    let refused = stand
        .world
        .run(async move { errno(open.await.block_status(0, 4096, false).await) });
    assert_eq!(
        refused,
        Some(5),
        "a device that reports nothing is an error, not an endless loop of the client"
    );
}

#[test]
fn large_payloads_arrive_whole_however_the_stream_is_cut() {
    for chunk in [1, 27, 28, 29, 4095, 50_000, 200_000] {
        let stand = Stand::new();
        let open = stand.open(chunk % 2 == 0, chunk);
        let length = if chunk == 1 { 33 << 10 } else { 300 << 10 };
        let (payload, second) = (stand.buffer(length, 1), stand.buffer(512, 2));
        let expected = payload.to_vec();
        let disk = stand.disk.clone();
        stand.world.run(async move {
            let client = open.await;
            let writes = (
                client.write(512, payload, false),
                client.write(1 << 20, second, false),
            );
            let (first, second) = brigade_env::sync::join(writes.0, writes.1).await;
            first.and(second).expect("both written");
            assert_eq!(
                client
                    .read(512, length as u32)
                    .await
                    .expect("read")
                    .to_vec(),
                expected
            );
            assert_eq!(disk.bytes.borrow()[1 << 20], 2);
        });
    }
}

#[test]
fn replies_may_overtake_each_other() {
    let stand = Stand::new();
    let (open, disk) = (stand.open(false, usize::MAX), stand.disk.clone());
    let world = stand.world.clone();
    let flushed = stand.world.run(async move {
        let client = Rc::new(open.await);
        disk.is_held.set(true);
        let slow = client.clone();
        let order = Rc::new(std::cell::RefCell::new(Vec::new()));
        let note = order.clone();
        world.spawn(async move {
            slow.read(0, 4096).await.expect("read");
            note.borrow_mut().push("read");
        });
        world.sleep(Duration::from_millis(1)).await;
        disk.is_held.set(false);
        client.flush().await.expect("flush");
        order.borrow_mut().push("flush");
        disk.release();
        world.sleep(Duration::from_millis(1)).await;
        order.take()
    });
    assert_eq!(flushed, ["flush", "read"]);
}

#[test]
fn queued_replies_leave_many_at_a_time() {
    let stand = Stand::new();
    let wire = stand.door.connect(usize::MAX, 1 << 20);
    let (watch, world) = (wire.clone(), stand.world.clone());
    stand.world.run(async move {
        let client = Client::connect(&world, wire, "", ClientOptions::default())
            .await
            .expect("open");
        let before = watch.sends_of_peer();
        let reads: Vec<_> = (0..64).map(|nr| client.read(nr * 4096, 4096)).collect();
        for result in brigade_env::sync::join_all(reads).await {
            result.expect("read");
        }
        // Sixteen at a time, so that the client has something to do meanwhile, and some more for what arrived apart.
        let sends = watch.sends_of_peer() - before;
        assert!((4..=6).contains(&sends), "{sends} sends for 64 replies");
    });
}

#[test]
fn exports_are_listed_and_unknown_ones_refused() {
    let stand = Stand::new();
    let (listing, opening) = (
        stand.door.connect(7, 1 << 20),
        stand.door.connect(7, 1 << 20),
    );
    let world = stand.world.clone();
    stand.world.run(async move {
        let names = client::list(listing, world.buffers()).await.expect("names");
        assert_eq!(names, ["", "ram"]);
        let refused = Client::connect(&world, opening, "rum", ClientOptions::default()).await;
        assert_eq!(
            refused.err().map(|error| error.kind()),
            Some(std::io::ErrorKind::NotFound)
        );
    });
}

#[test]
fn requests_and_bytes_in_flight_stay_below_their_limits() {
    for (requests_max, request_bytes_max, length) in [(4, 64 << 20, 512), (128, 64 << 10, 16384)] {
        let stand = Stand::with(|_, options| {
            options.requests_max = requests_max;
            options.request_bytes_max = request_bytes_max;
        });
        stand.disk.is_held.set(true);
        let open = stand.open(true, usize::MAX);
        let (world, disk) = (stand.world.clone(), stand.disk.clone());
        stand.world.run(async move {
            let client = Rc::new(open.await);
            let done = Rc::new(std::cell::Cell::new(0));
            for nr in 0..40 {
                let (client, done, buffers) =
                    (client.clone(), done.clone(), world.buffers().clone());
                world.spawn(async move {
                    client
                        .write(nr * 16384, buffers.get_zeroed(length), false)
                        .await
                        .expect("write");
                    done.set(done.get() + 1);
                });
            }
            world.sleep(Duration::from_secs(1)).await;
            assert_eq!(disk.in_flight.get(), 4);
            while done.get() < 40 {
                disk.release();
                world.sleep(Duration::from_secs(1)).await;
            }
            assert!(disk.in_flight_bytes_most.get() <= request_bytes_max);
        });
    }
}

#[test]
fn a_client_that_reads_no_replies_holds_no_more_than_its_limit() {
    let stand = Stand::with(|_, options| options.requests_max = 8);
    let wire = stand.door.connect(usize::MAX, 64 << 10);
    let (world, disk) = (stand.world.clone(), stand.disk.clone());
    stand.world.run(async move {
        wire.put(&support_go());
        world.sleep(Duration::from_millis(1)).await;
        wire.take();
        for nr in 0..10_000u64 {
            wire.put(
                brigade_nbd::proto::request_header(0, command::READ, nr, 0, 64 << 10).as_slice(),
            );
        }
        world.sleep(Duration::from_secs(5)).await;
        let reads = disk.log.borrow().len();
        assert!(
            (8..=10).contains(&reads),
            "{reads} reads for a client that takes no reply"
        );
        assert!(
            wire.unread_by_peer() > 100_000,
            "the rest was not even received"
        );
    });
}

fn support_go() -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    bytes.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0");
    bytes
}

#[test]
fn shutdown_lets_requests_in_flight_finish_and_takes_no_new_ones() {
    let stand = Stand::new();
    let (open, disk) = (stand.open(true, usize::MAX), stand.disk.clone());
    let (world, shutdown) = (stand.world.clone(), stand.shutdown.clone());
    let buffer = stand.buffer(4096, 5);
    stand.world.run(async move {
        let client = Rc::new(open.await);
        disk.is_held.set(true);
        let writer = client.clone();
        let result = Rc::new(std::cell::RefCell::new(None));
        let note = result.clone();
        world.spawn(async move { *note.borrow_mut() = Some(writer.write(0, buffer, false).await) });
        world.sleep(Duration::from_millis(1)).await;
        shutdown.trigger();
        world.sleep(Duration::from_secs(1)).await;
        assert!(result.borrow().is_none());
        disk.release();
        shutdown.wait().await;
        world.sleep(Duration::from_secs(1)).await;
        result
            .borrow_mut()
            .take()
            .expect("answered")
            .expect("written");
        assert_eq!(disk.bytes.borrow()[0], 5);
        client.read(0, 512).await.expect_err("gone");
    });
}

#[test]
fn shutdown_does_not_wait_for_ever_for_a_device_that_hangs_nor_for_a_payload_that_never_comes() {
    let stand = Stand::new();
    let wire = stand.door.connect(usize::MAX, 1 << 20);
    let half = stand.door.connect(usize::MAX, 1 << 20);
    let (world, shutdown, disk) = (
        stand.world.clone(),
        stand.shutdown.clone(),
        stand.disk.clone(),
    );
    stand.world.run(async move {
        disk.is_held.set(true);
        for wire in [&wire, &half] {
            wire.put(&support_go());
        }
        wire.put(brigade_nbd::proto::request_header(0, command::READ, 1, 0, 4096).as_slice());
        half.put(brigade_nbd::proto::request_header(0, command::WRITE, 1, 0, 65536).as_slice());
        world.sleep(Duration::from_secs(1)).await;
        let start = world.now();
        shutdown.trigger();
        world.sleep(Duration::from_secs(1)).await;
        assert!(
            half.is_closed_by_peer(),
            "a payload that has not come yet is not waited for"
        );
        shutdown.wait().await;
        assert!(world.now() - start <= Duration::from_secs(31));
        assert!(wire.is_closed_by_peer());
    });
}

#[test]
fn a_silent_client_is_dropped_and_one_too_many_refused() {
    let stand = Stand::with(|_, options| options.connections_max = 2);
    let wires: Vec<_> = (0..3)
        .map(|_| stand.door.connect(usize::MAX, 1 << 20))
        .collect();
    let world = stand.world.clone();
    let (open, again) = (stand.door.clone(), stand.world.clone());
    stand.world.run(async move {
        world.sleep(Duration::from_secs(1)).await;
        assert_eq!(
            wires
                .iter()
                .map(Wire::is_closed_by_peer)
                .collect::<Vec<_>>(),
            [false, false, true]
        );
        world.sleep(Duration::from_secs(30)).await;
        assert!(wires.iter().all(Wire::is_closed_by_peer));
        let wire = open.connect(usize::MAX, 1 << 20);
        Client::connect(&again, wire, "", ClientOptions::default())
            .await
            .expect("room again");
    });
}

#[test]
fn the_load_generator_counts_what_the_device_saw() {
    for structured in [false, true] {
        let stand = Stand::new();
        let wire = stand.door.connect(usize::MAX, 1 << 20);
        let (world, disk) = (stand.world.clone(), stand.disk.clone());
        let ticking = stand.world.clone();
        // Time only moves when all wait: this device takes a microsecond a batch.
        let report = stand.world.run(async move {
            let ticker = disk.clone();
            let ticks = ticking.clone();
            ticking.spawn(async move {
                loop {
                    ticker.is_held.set(true);
                    ticks.sleep(Duration::from_micros(1)).await;
                    ticker.release();
                    brigade_env::sync::yield_now().await;
                }
            });
            let options = LoadOptions {
                read_percent: 70,
                duration: Duration::from_millis(1),
                structured,
                ..LoadOptions::default()
            };
            load::run(&world, wire, "", options).await.expect("load")
        });
        let log = stand.disk.log.borrow();
        let reads = log.iter().filter(|line| line.starts_with("read")).count() as u64;
        assert_eq!((report.requests, report.reads), (log.len() as u64, reads));
        assert_eq!(report.bytes, report.requests * 4096);
        assert!(report.requests > 1000 && (0.6..0.8).contains(&(reads as f64 / log.len() as f64)));
        assert!(report.latencies.quantile(0.5) > Duration::ZERO);
    }
}
