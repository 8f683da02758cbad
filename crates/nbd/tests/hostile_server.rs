//! Servers that answer nonsense: the client and the load generator give an error, to every request in flight, and
//! neither panic nor wait for ever.

mod support;

use brigade_env::Env;
use brigade_env::sync::join_all;
use brigade_nbd::load::{self, LoadOptions};
use brigade_nbd::proto::{self, Header, chunk, data_chunk_header, simple_reply};
use brigade_nbd::{Client, ClientOptions};
use proptest::prelude::*;
use std::io;
use std::time::Duration;
use support::{World, wires};

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let head = [option, kind, data.len() as u32]
        .map(u32::to_be_bytes)
        .concat();
    [&proto::OPTION_REPLY_MAGIC.to_be_bytes()[..], &head, data].concat()
}

fn greeting() -> Vec<u8> {
    [&b"NBDMAGICIHAVEOPT"[..], &[0, 3]].concat()
}

fn export() -> Vec<u8> {
    [&[0, 0][..], &(1u64 << 20).to_be_bytes(), &[0, 1]].concat()
}

/// What a server says up to transmission, everything accepted.
fn handshake(structured: bool) -> Vec<u8> {
    let mut bytes = greeting();
    if structured {
        bytes.extend(reply(8, 1, &[]));
        bytes.extend(reply(10, 4, b"\0\0\0\x01base:allocation"));
        bytes.extend(reply(10, 1, &[]));
    }
    bytes.extend(reply(7, 3, &export()));
    bytes.extend(reply(7, 1, &[]));
    bytes
}

/// Two reads of 512 bytes at 0 and one block status, while the server says `bytes`.
fn ask(bytes: Vec<u8>, structured: bool) -> io::Result<Vec<io::Result<()>>> {
    let world = World::new();
    let (wire, server) = wires(usize::MAX, 1 << 20);
    let inner = world.clone();
    world.run(async move {
        let clock = inner.clone();
        inner.spawn(async move {
            server.put(&handshake(structured));
            clock.sleep(Duration::from_millis(1)).await;
            server.put(&bytes);
            clock.sleep(Duration::from_secs(1)).await;
            server.finish();
        });
        let client = Client::connect(
            &inner,
            wire,
            "",
            ClientOptions {
                structured,
                requests_max: 8,
            },
        )
        .await?;
        let reads = [client.read(0, 512), client.read(0, 512)];
        let results = join_all(reads)
            .await
            .into_iter()
            .map(|result| result.map(drop))
            .collect();
        Ok(results)
    })
}

/// The cookie the client gives its first request.
const FIRST: u64 = 1 << 32;

fn with(header: Header, data: &[u8]) -> Vec<u8> {
    [header.as_slice(), data].concat()
}

#[test]
fn nonsense_in_a_reply_fails_every_request_in_flight() {
    let data = [7u8; 512];
    let simple = [
        with(simple_reply(99, 0), &data),
        [
            with(simple_reply(FIRST, 0), &data),
            with(simple_reply(FIRST, 0), &data),
        ]
        .concat(),
        with(data_chunk_header(FIRST, 0, 512), &data),
        b"\x12\x34\x56\x78 and more".to_vec(),
    ];
    for (nr, bytes) in simple.into_iter().enumerate() {
        let results = ask(bytes, false).expect("open");
        assert!(results[1].is_err(), "case {nr}");
    }
    let structured = [
        with(simple_reply(FIRST, 0), &data),
        with(data_chunk_header(FIRST, 1, 512), &data),
        with(data_chunk_header(FIRST, u64::MAX, 512), &data),
        with(data_chunk_header(FIRST, 0, 511), &data[..511]),
        with(proto::chunk_header(FIRST, 1, chunk::NONE, 0), &[]),
        with(proto::chunk_header(FIRST, 1, chunk::NONE, 4), &[0; 4]),
        with(
            proto::chunk_header(FIRST, 1, chunk::OFFSET_HOLE, 12),
            b"\0\0\0\0\0\0\0\0\xff\xff\xff\xff",
        ),
        with(
            proto::chunk_header(FIRST, 1, chunk::BLOCK_STATUS, 12),
            b"\0\0\0\x01\0\0\x02\0\0\0\0\0",
        ),
        with(
            proto::chunk_header(FIRST, 1, chunk::ERROR, 6),
            b"\0\0\0\0\0\0",
        ),
        with(
            proto::chunk_header(FIRST, 1, chunk::ERROR, 6),
            b"\0\0\0\x05\xff\xff",
        ),
        with(proto::chunk_header(FIRST, 1, 77, u32::MAX), &[]),
    ];
    for (nr, bytes) in structured.into_iter().enumerate() {
        let results = ask(bytes, true).expect("open");
        assert!(results.iter().all(Result::is_err), "case {nr}: {results:?}");
    }
}

#[test]
fn an_honest_reply_in_pieces_is_put_together() {
    let mut bytes = Vec::new();
    let second = proto::chunk_header(FIRST, 0, chunk::OFFSET_DATA, 264);
    bytes.extend(with(
        second,
        &[&256u64.to_be_bytes()[..], &[2; 256]].concat(),
    ));
    bytes.extend(with(
        proto::chunk_header(FIRST, 1, chunk::OFFSET_HOLE, 12),
        b"\0\0\0\0\0\0\0\0\0\0\x01\0",
    ));
    bytes.extend(with(
        proto::chunk_header((2 << 32) | 1, 1, chunk::ERROR, 8),
        b"\0\0\0\x05\0\x02no",
    ));
    let results = ask(bytes, true).expect("open");
    assert!(results[0].is_ok(), "{results:?}");
    assert_eq!(
        results[1].as_ref().err().and_then(io::Error::raw_os_error),
        Some(5)
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_from_a_server_panic_or_hang_a_client(
        mut bytes in prop::collection::vec(any::<u8>(), 0..400),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        structured in any::<bool>(),
    ) {
        let _ = ask(bytes.clone(), structured);
        let mut answer = with(data_chunk_header(FIRST, 0, 512), &[1; 512]);
        answer.append(&mut bytes);
        for (at, byte) in &changes {
            let at = at.index(answer.len());
            answer[at] = *byte;
        }
        let _ = ask(answer, true);
        let mut opening = handshake(structured);
        for (at, byte) in changes {
            let at = at.index(opening.len());
            opening[at] = byte;
        }
        let world = World::new();
        let (wire, server) = wires(usize::MAX, 1 << 20);
        server.put(&opening);
        server.finish();
        let inner = world.clone();
        let options = LoadOptions { structured, ..LoadOptions::default() };
        let _ = world.run(async move { load::run(&inner, wire, "", options).await });
    }
}
