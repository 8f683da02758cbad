//! Unix and TCP streams.

use super::{fill, on_all_engines, pattern};
use crate::{HostEnv, HostListener, HostStream};
use brigade_env::{Env, Listener, Segment, Stream, sync};
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

fn pair(
    env: &HostEnv,
    listener: &HostListener,
    connect: impl Fn() -> HostStream,
) -> (HostStream, HostStream) {
    let client = connect();
    let server = env.block_on(listener.accept()).expect("a connection");
    (client, server)
}

fn on_all_pairs(test: impl Fn(&HostEnv, HostStream, HostStream)) {
    on_all_engines(|env| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = env.listen_unix(&path).unwrap();
        assert_eq!(listener.address(), format!("unix:{}", path.display()));
        let (client, server) = pair(env, &listener, || env.connect_unix(&path).unwrap());
        assert!(server.peer().starts_with("unix:pid "), "{}", server.peer());
        test(env, client, server);

        let listener = env.listen_tcp("127.0.0.1:0").unwrap();
        let address = listener.address().strip_prefix("tcp:").unwrap().to_owned();
        let (client, server) = pair(env, &listener, || env.connect_tcp(&address).unwrap());
        assert!(
            server.peer().starts_with("tcp:127.0.0.1:"),
            "{}",
            server.peer()
        );
        test(env, client, server);
    });
}

#[test]
fn large_segments_arrive_whole_and_in_order() {
    on_all_pairs(|env, client, server| {
        // More than 1024 pieces, and far more bytes than a socket buffer holds, so that sends are partial.
        let mut segments = vec![Segment::Bytes(Vec::new())];
        let mut expected = Vec::new();
        for number in 0..1500_usize {
            let length = if number % 100 == 7 {
                100_000
            } else {
                number % 37
            };
            let mut bytes = vec![0; length];
            fill(&mut bytes, number as u64);
            expected.extend_from_slice(&bytes);
            let mut buffer = env.buffers().get(length);
            buffer.copy_from_slice(&bytes);
            segments.push(if number % 2 == 0 {
                Segment::Bytes(bytes)
            } else {
                Segment::Buffer(buffer)
            });
        }
        let length = expected.len();
        let buffer = env.buffers().get(length);
        let (sent, (received, buffer)) = env.block_on(sync::join(
            client.send(segments),
            server.receive_exact(buffer),
        ));
        sent.unwrap();
        received.unwrap();
        assert!(buffer[..] == expected[..]);
    });
}

#[test]
fn an_echo_of_many_messages_comes_back() {
    on_all_pairs(|env, client, server| {
        let echo_env = env.clone();
        env.spawn(async move {
            loop {
                let mut buffer = echo_env.buffers().get(65536);
                let (count, back) = server.receive(buffer).await;
                buffer = back;
                match count.unwrap() {
                    0 => return,
                    count => buffer.set_range(0..count),
                }
                server.send(vec![Segment::Buffer(buffer)]).await.unwrap();
            }
        });
        env.block_on(async {
            for number in 0..200_u64 {
                let length = 1 + (number as usize * 977) % 200_000;
                let message = pattern(env, length, number);
                let send = client.send(vec![Segment::Bytes(vec![9; 16]), Segment::Buffer(message)]);
                let receive = client.receive_exact(env.buffers().get(16 + length));
                let (sent, (received, buffer)) = sync::join(send, receive).await;
                sent.unwrap();
                received.unwrap();
                assert_eq!(buffer[..16], [9; 16]);
                assert!(buffer[16..] == pattern(env, length, number)[..]);
            }
        });
        client.shutdown();
        env.block_on(env.sleep(Duration::from_millis(1)));
    });
}

#[test]
fn the_end_of_a_stream_is_zero_bytes_or_unexpected() {
    on_all_pairs(|env, client, server| {
        env.block_on(async {
            client
                .send(vec![Segment::Bytes(vec![1, 2, 3])])
                .await
                .unwrap();
            drop(client);
            let (result, buffer) = server.receive_exact(env.buffers().get(10)).await;
            assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            assert_eq!(buffer[..3], [1, 2, 3]);
            assert_eq!(server.receive(buffer).await.0.unwrap(), 0);
        });
    });
}

#[test]
fn a_send_to_a_closed_peer_is_an_error_and_no_signal() {
    on_all_pairs(|env, client, server| {
        drop(client);
        env.block_on(async {
            for _ in 0..100 {
                if server
                    .send(vec![Segment::Bytes(vec![0; 1 << 20])])
                    .await
                    .is_err()
                {
                    return;
                }
            }
            panic!("a closed peer took everything");
        });
    });
}

#[test]
fn shutdown_ends_a_pending_receive() {
    on_all_pairs(|env, client, server| {
        let server = Rc::new(server);
        let is_over = Rc::new(Cell::new(false));
        let receive = server.receive(env.buffers().get(10));
        env.spawn({
            let is_over = is_over.clone();
            async move {
                assert_eq!(receive.await.0.unwrap(), 0);
                is_over.set(true);
            }
        });
        env.block_on(async {
            env.sleep(Duration::from_millis(2)).await;
            server.shutdown();
            while !is_over.get() {
                env.sleep(Duration::from_millis(1)).await;
            }
        });
        drop(client);
    });
}

#[test]
fn receives_and_accepts_dropped_while_pending_do_no_harm() {
    on_all_pairs(|env, client, server| {
        env.block_on(async {
            for round in 0..1000_u64 {
                let mut receive = Box::pin(server.receive(env.buffers().get(4096)));
                if round % 3 != 0 {
                    std::future::poll_fn(|context| {
                        let _ = receive.as_mut().poll(context);
                        std::task::Poll::Ready(())
                    })
                    .await;
                }
                if round % 5 == 0 {
                    sync::yield_now().await;
                }
                drop(receive);
                // Its memory goes back to the pool only when the kernel has let go of it.
                let guard = pattern(env, 4096, round);
                if round % 7 == 0 {
                    env.sleep(Duration::ZERO).await;
                }
                assert!(guard[..] == pattern(env, 4096, round)[..]);
            }
            // One that is still being cancelled would take what is meant for the next.
            for _ in 0..5000 {
                if env.0.in_flight() == 0 {
                    break;
                }
                env.sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(env.0.in_flight(), 0);
            client
                .send(vec![Segment::Bytes(vec![5; 100])])
                .await
                .unwrap();
            let (result, buffer) = server.receive_exact(env.buffers().get(100)).await;
            result.unwrap();
            assert!(buffer.iter().all(|&byte| byte == 5));
        });
    });
}

#[test]
fn accepts_given_up_leak_no_connection_and_others_follow() {
    on_all_engines(|env| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = env.listen_unix(&path).unwrap();
        for _ in 0..50 {
            env.block_on(async {
                let mut accept = Box::pin(listener.accept());
                std::future::poll_fn(|context| {
                    let _ = accept.as_mut().poll(context);
                    std::task::Poll::Ready(())
                })
                .await;
            });
        }
        env.block_on(env.sleep(Duration::from_millis(1)));
        let _client = env.connect_unix(&path).unwrap();
        env.block_on(listener.accept()).unwrap();
    });
}

#[test]
fn a_world_ends_though_peers_never_answer() {
    on_all_pairs(|env, client, server| {
        env.spawn(async move {
            let buffer = brigade_env::BufferPool::new(0).get(100);
            let _ = server.receive(buffer).await;
        });
        let stuck = client.send(vec![Segment::Bytes(vec![0; 64 << 20])]);
        env.block_on(env.sleep(Duration::from_millis(1)));
        drop(stuck);
    });
}

#[test]
fn a_socket_file_nobody_listens_on_is_replaced_and_one_in_use_is_not() {
    on_all_engines(|env| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = env.listen_unix(&path).unwrap();
        assert_eq!(
            env.listen_unix(&path).err().unwrap().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(listener);
        assert!(!path.exists());
        std::fs::write(&path, "precious").unwrap();
        assert!(env.listen_unix(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    });
}
