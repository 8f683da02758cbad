//! Bytes nobody honest would send: no panic, no hang, no memory beyond the bounds; and, byte for byte, what known
//! clients do send.

mod support;

use brigade_env::{Env, Stream};
use brigade_nbd::proto::{self, command, request_header};
use brigade_nbd::{ServerOptions, Shutdown, serve};
use proptest::prelude::*;
use std::rc::Rc;
use std::time::Duration;
use support::{DISK_BYTES, Door, Ram, RamDisk, World};

/// Sends `bytes` cut into `chunk`s, closes the own side, and gives everything the server answered.
fn exchange(bytes: &[u8], chunk: usize) -> Vec<u8> {
    let world = World::new();
    let disk = Rc::new(RamDisk::new(&world));
    let (door, shutdown) = (Door::default(), Shutdown::new());
    let options = ServerOptions {
        requests_max: 16,
        request_bytes_max: 1 << 20,
        ..ServerOptions::default()
    };
    world.spawn(serve(
        world.clone(),
        door.clone(),
        Rc::new(Ram(disk.clone())),
        options,
        shutdown.clone(),
    ));
    let wire = door.connect(chunk, 64 << 20);
    let (bytes, clock) = (bytes.to_vec(), world.clone());
    let (answer, end) = (wire.clone(), world.clone());
    let answer = world.run(async move {
        wire.put(&bytes);
        clock.sleep(Duration::from_millis(1)).await;
        wire.finish();
        clock.sleep(Duration::from_secs(100)).await;
        assert!(
            wire.is_closed_by_peer(),
            "the server hangs on to a client that has left"
        );
        answer.take()
    });
    assert!(
        disk.in_flight_bytes_most.get() <= 2 << 20,
        "more in flight than allowed"
    );
    shutdown.trigger();
    end.settle();
    assert_eq!(end.task_count(), 0, "a task was left behind");
    answer
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let value = |digit: u8| (digit as char).to_digit(16).expect("a hex digit") as u8;
    digits
        .chunks(2)
        .map(|pair| value(pair[0]) << 4 | value(pair[1]))
        .collect()
}

fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let head = [
        proto::OPTION_MAGIC.to_be_bytes().to_vec(),
        kind.to_be_bytes().to_vec(),
    ]
    .concat();
    [
        head,
        (data.len() as u32).to_be_bytes().to_vec(),
        data.to_vec(),
    ]
    .concat()
}

const GREETING: &str = "4e42444d41474943 49484156454f5054 0003";

#[test]
fn an_export_name_handshake_is_answered_byte_for_byte() {
    // As nbd-client does when told not to use GO: flags, EXPORT_NAME "ram", a read, goodbye.
    let mut bytes = hex("00000003 49484156454f5054 00000001 00000003 72616d");
    bytes.extend(hex(
        "25609513 0000 0000 1122334455667788 0000000000000000 00000200",
    ));
    bytes.extend(hex(
        "25609513 0000 0002 0000000000000002 0000000000000000 00000000",
    ));
    let mut expected = hex(GREETING);
    expected.extend(hex("0000000000400000 0d6d"));
    expected.extend(hex("67446698 00000000 1122334455667788"));
    expected.extend([0; 512]);
    assert_eq!(exchange(&bytes, usize::MAX), expected);
    // An old client gets its 124 zeroes.
    bytes[3] = 1;
    let answer = exchange(&bytes, usize::MAX);
    assert_eq!(answer.len(), expected.len() + 124);
    assert!(answer[28..152].iter().all(|&byte| byte == 0));
}

#[test]
fn a_go_handshake_is_answered_byte_for_byte() {
    // As libnbd and qemu do: TLS is not asked for; structured replies, contexts, GO with block sizes.
    let mut bytes = hex("00000003 49484156454f5054 00000008 00000000");
    bytes.extend(hex(
        "49484156454f5054 0000000a 0000001e 00000003 72616d 00000001 0000000f",
    ));
    bytes.extend(b"base:allocation");
    bytes.extend(hex(
        "49484156454f5054 00000007 0000000b 00000003 72616d 0001 0003",
    ));
    bytes.extend(hex(
        "25609513 0000 0000 0000000000000001 0000000000000400 00000200",
    ));
    bytes.extend(hex(
        "25609513 0000 0007 0000000000000002 0000000000000000 00100000",
    ));
    bytes.extend(hex(
        "25609513 0000 0002 0000000000000003 0000000000000000 00000000",
    ));
    let mut expected = hex(GREETING);
    expected.extend(hex("0003e889045565a9 00000008 00000001 00000000"));
    expected.extend(hex("0003e889045565a9 0000000a 00000004 00000013 00000001"));
    expected.extend(b"base:allocation");
    expected.extend(hex("0003e889045565a9 0000000a 00000001 00000000"));
    expected.extend(hex(
        "0003e889045565a9 00000007 00000003 0000000c 0000 0000000000400000 0ded",
    ));
    expected.extend(hex(
        "0003e889045565a9 00000007 00000003 0000000e 0003 00000200 00001000 00100000",
    ));
    expected.extend(hex("0003e889045565a9 00000007 00000001 00000000"));
    expected.extend(hex(
        "668e33ef 0001 0001 0000000000000001 00000208 0000000000000400",
    ));
    expected.extend([0; 512]);
    expected.extend(hex(
        "668e33ef 0001 0005 0000000000000002 0000000c 00000001 00100000 00000000",
    ));
    assert_eq!(exchange(&bytes, usize::MAX), expected);
    for chunk in 1..=64 {
        assert_eq!(exchange(&bytes, chunk), expected, "cut every {chunk} bytes");
    }
}

#[test]
fn unknown_malformed_and_oversize_options_are_answered_and_the_haggling_goes_on() {
    let mut bytes = hex("00000003");
    bytes.extend(option(5, b"")); // STARTTLS
    bytes.extend(option(11, b"")); // EXTENDED_HEADERS
    bytes.extend(option(4711, &[9; 1000]));
    bytes.extend(option(7, &hex("ffffffff 00"))); // GO, name longer than the data
    bytes.extend(option(7, &hex("00000001 ff 0000"))); // GO, not UTF-8
    bytes.extend(option(7, &hex("00000000 0001"))); // GO, an info request is missing
    bytes.extend(option(9, &hex("00000000 00000000"))); // contexts before structured replies
    bytes.extend(option(4711, &vec![0; 70_000]));
    bytes.extend(option(6, &hex("00000004 6e6f7065 0000"))); // INFO "nope"
    bytes.extend(option(2, b"")); // ABORT
    let answer = exchange(&bytes, 999);
    let mut kinds = Vec::new();
    let mut fields = proto::Fields(&answer[18..]);
    while !fields.0.is_empty() {
        assert_eq!(fields.u64(), Some(proto::OPTION_REPLY_MAGIC));
        let (option, kind, length) = (fields.u32(), fields.u32(), fields.u32());
        fields
            .bytes(length.expect("a length") as usize)
            .expect("the data");
        kinds.push((option.expect("an option"), kind.expect("a kind") & 0xff));
    }
    let expected = [
        (5, 1),
        (11, 1),
        (4711, 1),
        (7, 3),
        (7, 3),
        (7, 3),
        (9, 3),
        (4711, 9),
        (6, 6),
        (2, 1),
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn a_wrong_magic_or_an_absurd_length_ends_the_connection() {
    let session = session(&[]);
    let open = exchange(&session, usize::MAX).len();
    for bad in [
        hex("25609514 0000 0000 0000000000000001 0000000000000000 00000200"),
        hex("25609513 0000 0001 0000000000000001 0000000000000000 ffffffff"),
    ] {
        let good = hex("25609513 0000 0003 0000000000000007 0000000000000000 00000000");
        let answer = exchange(&[session.clone(), bad, good].concat(), usize::MAX);
        assert_eq!(
            answer.len(),
            open,
            "nothing after the bad request is answered"
        );
    }
    assert_eq!(
        exchange(&hex("00000004"), usize::MAX),
        hex(GREETING),
        "unknown client flags"
    );
    assert_eq!(
        exchange(&hex("00000003 49484156454f5055"), usize::MAX),
        hex(GREETING),
        "wrong option magic"
    );
}

#[test]
fn contexts_selected_for_one_export_say_nothing_about_another() {
    let status = request_header(0, command::BLOCK_STATUS, 1, 0, 512)
        .as_slice()
        .to_vec();
    let contexts = [&hex("00000000 00000001 0000000f")[..], b"base:allocation"].concat();
    for (name, expected) in [("00000000 0000", 5), ("00000003 72616d 0000", 0x8001)] {
        let mut bytes = hex("00000003");
        bytes.extend(option(8, b""));
        bytes.extend(option(10, &contexts));
        bytes.extend(option(7, &hex(name)));
        let before = exchange(&bytes, usize::MAX).len();
        bytes.extend(&status);
        let answer = exchange(&bytes, usize::MAX);
        assert_eq!(
            u16::from_be_bytes([answer[before + 6], answer[before + 7]]),
            expected
        );
    }
}

/// A handshake with everything, then `requests`.
fn session(requests: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = hex("00000003");
    bytes.extend(option(8, b""));
    bytes.extend(option(
        10,
        &[
            &hex("00000000 00000002 0000000f")[..],
            b"base:allocation",
            &hex("0000000d"),
            b"brigade:state",
        ]
        .concat(),
    ));
    bytes.extend(option(7, &hex("00000000 0003 0001 0002 0003")));
    bytes.extend(requests.concat());
    bytes
}

#[test]
fn what_a_client_left_behind_unread_is_not_worked_off_after_it_has_gone() {
    let world = World::new();
    let disk = Rc::new(RamDisk::new(&world));
    let (door, shutdown) = (Door::default(), Shutdown::new());
    let options = ServerOptions {
        requests_max: 16,
        ..ServerOptions::default()
    };
    let exports = Rc::new(Ram(disk.clone()));
    world.spawn(serve(
        world.clone(),
        door.clone(),
        exports,
        options,
        shutdown.clone(),
    ));
    let wire = door.connect(usize::MAX, 64 << 10);
    let reads: Vec<Vec<u8>> = (0..1000)
        .map(|cookie| {
            let header = request_header(0, command::READ, cookie, 0, 1 << 20);
            header.as_slice().to_vec()
        })
        .collect();
    let bytes = session(&reads);
    let clock = world.clone();
    world.run(async move {
        wire.put(&bytes);
        clock.sleep(Duration::from_secs(1)).await;
        wire.shutdown();
        clock.sleep(Duration::from_secs(1)).await;
    });
    let done = disk.log.borrow().len();
    assert!(
        (1..=2 * 16).contains(&done),
        "{done} reads for nobody, though at most 16 are in flight"
    );
    shutdown.trigger();
    world.settle();
    assert_eq!(world.task_count(), 0, "a task was left behind");
}

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let offset = prop_oneof![
        (0..DISK_BYTES as u64 / 512).prop_map(|block| block * 512),
        any::<u64>()
    ];
    let length = prop_oneof![(0u32..20).prop_map(|blocks| blocks * 512), 0u32..5000];
    (
        0u16..9,
        prop_oneof![Just(0u16), 0u16..32],
        any::<u64>(),
        offset,
        length,
    )
        .prop_map(|(kind, flags, cookie, offset, length)| {
            let mut bytes = request_header(flags, kind, cookie, offset, length)
                .as_slice()
                .to_vec();
            if kind == command::WRITE {
                bytes.extend((0..length).map(|nr| nr as u8));
            }
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic_or_hang_the_server(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        exchange(&bytes, usize::MAX);
        exchange(&[hex("00000003"), bytes.clone()].concat(), usize::MAX);
        exchange(&[session(&[]), bytes].concat(), usize::MAX);
    }

    #[test]
    fn mutated_sessions_never_panic_or_hang_the_server(
        requests in prop::collection::vec(any_request(), 0..20),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
        chunk in prop_oneof![1usize..100, Just(usize::MAX)],
    ) {
        let mut bytes = session(&requests);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        exchange(&bytes, chunk);
    }

    #[test]
    fn every_honest_request_is_answered_exactly_once(requests in prop::collection::vec(any_request(), 0..40), chunk in 1usize..3000) {
        let requests: Vec<_> = requests.into_iter().filter(|bytes| bytes[6..8] != [0, 2]).enumerate().map(|(nr, mut bytes)| {
            bytes[8..16].copy_from_slice(&(nr as u64).to_be_bytes());
            bytes
        }).collect();
        let answer = exchange(&session(&requests), chunk);
        let start = exchange(&session(&[]), usize::MAX).len();
        let mut rest = &answer[start..];
        let mut answered = vec![0; requests.len()];
        while !rest.is_empty() {
            use brigade_nbd::client::ReplyHeader;
            let (header, used) = ReplyHeader::parse(rest).expect("magic").expect("whole");
            rest = &rest[used..];
            match header {
                ReplyHeader::Simple { cookie, .. } => answered[cookie as usize] += 1,
                ReplyHeader::Chunk { cookie, flags, length, .. } => {
                    rest = &rest[length as usize..];
                    answered[cookie as usize] += i32::from(flags & 1);
                }
            }
        }
        prop_assert!(answered.iter().all(|&count| count == 1), "{:?}", answered);
    }
}
