//! Tasks, timers, wake-ups from elsewhere, and the choice of an engine.

use super::on_all_engines;
use crate::{Engine, HostEnv, HostOptions};
use brigade_env::{Env, sync};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

#[test]
fn auto_takes_threads_where_the_kernel_refuses_a_ring() {
    for errno in [libc::EPERM, libc::ENOSYS, libc::ENOMEM] {
        let env = HostEnv::with_ring(HostOptions::default(), |_, _| {
            Err(io::Error::from_raw_os_error(errno))
        });
        assert_eq!(env.expect("a fallback").engine_name(), "threads");
    }
}

#[test]
fn a_demanded_ring_that_is_refused_is_an_error() {
    let options = HostOptions {
        engine: Engine::Uring,
        ..HostOptions::default()
    };
    let refused = HostEnv::with_ring(options, |_, _| {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    });
    assert_eq!(
        refused.err().and_then(|error| error.raw_os_error()),
        Some(libc::EPERM)
    );
}

#[test]
fn the_engine_asked_for_is_the_engine_taken() {
    let name = |engine| {
        HostEnv::new(HostOptions {
            engine,
            ..HostOptions::default()
        })
        .unwrap()
        .engine_name()
    };
    assert_eq!(name(Engine::Uring), "uring");
    assert_eq!(name(Engine::Threads), "threads");
    assert_eq!(name(Engine::Auto), "uring");
}

#[test]
fn sleepers_wake_in_the_order_of_their_deadlines() {
    on_all_engines(|env| {
        let order = Rc::new(RefCell::new(Vec::new()));
        let start = env.now();
        for delay in [30_u64, 10, 20, 0] {
            let (env, order) = (env.clone(), order.clone());
            env.clone().spawn(async move {
                let deadline = start + Duration::from_millis(delay);
                env.sleep_until(deadline).await;
                assert!(env.now() >= deadline);
                order.borrow_mut().push(delay);
            });
        }
        env.block_on(env.sleep(Duration::from_millis(45)));
        assert_eq!(*order.borrow(), [0, 10, 20, 30]);
        assert!(env.now() - start < Duration::from_secs(5));
    });
}

#[test]
fn a_nearer_deadline_set_while_asleep_is_kept() {
    on_all_engines(|env| {
        let far = env.clone();
        env.spawn(async move { far.sleep(Duration::from_secs(3600)).await });
        env.spawn({
            let env = env.clone();
            async move { env.sleep_until(Duration::MAX).await }
        });
        let start = env.now();
        env.block_on(env.sleep(Duration::from_millis(5)));
        // A sleep given up leaves no deadline behind that would matter.
        env.block_on(async {
            drop(env.sleep(Duration::from_millis(1)));
            let mut short = Box::pin(env.sleep(Duration::from_millis(2)));
            std::future::poll_fn(|context| {
                let _ = short.as_mut().poll(context);
                Poll::Ready(())
            })
            .await;
            drop(short);
            env.sleep(Duration::from_millis(8)).await;
        });
        let took = env.now() - start;
        assert!(
            took >= Duration::from_millis(13) && took < Duration::from_secs(5),
            "{took:?}"
        );
    });
}

#[test]
fn ten_thousand_tasks_all_run_and_their_places_are_reused() {
    on_all_engines(|env| {
        let count = Rc::new(Cell::new(0));
        for round in 0..3 {
            let notify = Rc::new(sync::Notify::new());
            for _ in 0..10_000 {
                let (count, notify) = (count.clone(), notify.clone());
                env.spawn(async move {
                    notify.wait().await;
                    sync::yield_now().await;
                    count.set(count.get() + 1);
                });
            }
            env.block_on(async {
                while notify.waiters() < 10_000 {
                    sync::yield_now().await;
                }
                notify.notify_all();
                while count.get() < (round + 1) * 10_000 {
                    sync::yield_now().await;
                }
            });
        }
        assert_eq!(count.get(), 30_000);
    });
}

#[test]
fn join_and_promises_work_across_tasks() {
    on_all_engines(|env| {
        let (keeper, promise) = sync::promise();
        let inner = env.clone();
        env.spawn(async move {
            inner.sleep(Duration::from_millis(1)).await;
            keeper.keep(7);
        });
        assert_eq!(env.block_on(sync::join(promise, async { 5 })), (7, 5));
        let many = (0..100_u64).map(|i| {
            let env = env.clone();
            async move {
                env.sleep(Duration::from_micros(i % 7)).await;
                i
            }
        });
        assert_eq!(
            env.block_on(sync::join_all(many)),
            (0..100).collect::<Vec<_>>()
        );
    });
}

#[test]
fn another_thread_posts_work_and_wakes_a_sleeping_world() {
    on_all_engines(|env| {
        let remote = env.remote();
        let thread = std::thread::spawn(move || {
            for number in 0..200_u32 {
                remote.post(Box::new(move |env| {
                    let inner = env.clone();
                    env.spawn(async move {
                        inner.sleep(Duration::ZERO).await;
                        SEEN.with(|seen| seen.set(seen.get() + number));
                    });
                }));
                if number % 50 == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        });
        SEEN.with(|seen| seen.set(0));
        env.block_on(async {
            while SEEN.with(Cell::get) < 199 * 100 {
                env.sleep(Duration::from_millis(1)).await;
            }
        });
        thread.join().unwrap();
    });
}

thread_local! {
    static SEEN: Cell<u32> = const { Cell::new(0) };
}

#[test]
fn a_waker_works_from_another_thread_and_after_the_end_of_its_world() {
    on_all_engines(|env| {
        let mut thread = None;
        let mut kept = None;
        let is_woken = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let mut polls = 0;
        env.block_on(std::future::poll_fn(|context| {
            polls += 1;
            if is_woken.load(std::sync::atomic::Ordering::Acquire) {
                return Poll::Ready(());
            }
            kept = Some(context.waker().clone());
            if thread.is_none() {
                let (waker, is_woken) = (context.waker().clone(), is_woken.clone());
                thread = Some(std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(5));
                    is_woken.store(true, std::sync::atomic::Ordering::Release);
                    waker.wake_by_ref();
                    waker
                }));
            }
            Poll::Pending
        }));
        assert_eq!(polls, 2, "it slept until it was woken");
        let waker = thread.unwrap().join().unwrap();
        env.shutdown();
        waker.wake();
        kept.unwrap().wake();
    });
}

#[test]
fn the_end_of_a_world_drops_its_tasks_and_refuses_new_ones() {
    on_all_engines(|env| {
        struct Bell(Rc<Cell<u32>>);
        impl Drop for Bell {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let dropped = Rc::new(Cell::new(0));
        for _ in 0..10 {
            let (env, bell) = (env.clone(), Bell(dropped.clone()));
            env.clone().spawn(async move {
                let _bell = bell;
                env.sleep(Duration::from_secs(1000)).await;
            });
        }
        env.block_on(sync::yield_now());
        assert_eq!(dropped.get(), 0);
        env.shutdown();
        assert_eq!(dropped.get(), 10);
        env.spawn({
            let bell = Bell(dropped.clone());
            async move { drop(bell) }
        });
        assert_eq!(dropped.get(), 11);
        env.remote()
            .post(Box::new(|_| panic!("posted to a world that has ended")));
    });
}

#[test]
fn two_worlds_on_one_thread_do_not_mix_their_wakers() {
    let one = HostEnv::new(HostOptions {
        engine: Engine::Auto,
        ..HostOptions::default()
    })
    .unwrap();
    let two = HostEnv::new(HostOptions {
        engine: Engine::Threads,
        ..HostOptions::default()
    })
    .unwrap();
    let (keeper, promise) = sync::promise();
    one.spawn(async move { keeper.keep(promise_of_two().await) });
    async fn promise_of_two() -> u32 {
        sync::yield_now().await;
        9
    }
    let (keeper_two, promise_two) = sync::promise();
    two.spawn(async move { keeper_two.keep(promise.await) });
    two.block_on(sync::yield_now());
    one.block_on(sync::yield_now());
    one.block_on(sync::yield_now());
    assert_eq!(two.block_on(promise_two), 9);
}

#[test]
fn chance_and_clocks_move() {
    on_all_engines(|env| {
        let first = env.random_u64();
        assert_ne!(first, env.random_u64());
        assert!(env.unix_seconds() > 1_700_000_000);
        let now = env.now();
        assert!(env.now() >= now);
    });
}
