//! Accepts connections and ends them.
//!
//! ```text
//! serve --accept--> task per connection: handshake -> requests -> drain -> gone
//!   ^                                        ^
//!   +------------- Shutdown::trigger --------+
//! ```

use crate::connection;
use crate::wait::{Either, race};
use brigade_env::sync::Notify;
use brigade_env::{Env, Exports, Listener, Stream};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// Bounds of a server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Connections at a time; one more is closed as soon as it is accepted.
    pub connections_max: usize,
    /// Requests of one connection between their header and their sent reply. At least 1.
    pub requests_max: usize,
    /// Bytes of such requests' payloads. A single request may be as large as the protocol permits even if this is less.
    pub request_bytes_max: usize,
    /// Time for a client to get from connecting to its first request.
    pub handshake_timeout: Duration,
    /// Time for requests in flight to finish once a client leaves or the server stops.
    pub drain_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            connections_max: 64,
            requests_max: 128,
            request_bytes_max: 64 << 20,
            handshake_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// Ends servers: any number of [`serve`] loops may share one.
#[derive(Default)]
pub struct Shutdown {
    is_triggered: Cell<bool>,
    active: Cell<usize>,
    changed: Notify,
}

impl Shutdown {
    /// Not triggered.
    pub fn new() -> Rc<Self> {
        Rc::default()
    }

    /// Stops accepting and receiving; requests in flight still finish.
    pub fn trigger(&self) {
        self.is_triggered.set(true);
        self.changed.notify_all();
    }

    /// Whether [`Shutdown::trigger`] was called.
    pub fn is_triggered(&self) -> bool {
        self.is_triggered.get()
    }

    /// Waits for [`Shutdown::trigger`].
    pub async fn triggered(&self) {
        self.changed
            .until(|| self.is_triggered.get().then_some(()))
            .await;
    }

    /// Waits until it has been triggered and no connection and no accept loop is left.
    pub async fn wait(&self) {
        self.changed
            .until(|| (self.is_triggered.get() && self.active.get() == 0).then_some(()))
            .await;
    }

    fn enter(self: &Rc<Self>) -> Active {
        self.active.set(self.active.get() + 1);
        Active(self.clone())
    }
}

struct Active(Rc<Shutdown>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.active.set(self.0.active.get().saturating_sub(1));
        self.0.changed.notify_all();
    }
}

struct Slot(Rc<Cell<usize>>);

impl Slot {
    fn take(used: &Rc<Cell<usize>>, most: usize) -> Option<Slot> {
        if used.get() >= most {
            return None;
        }
        used.set(used.get() + 1);
        Some(Slot(used.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Serves `exports` on `listener` until `shutdown` is triggered. Connections may outlive the call: wait for
/// [`Shutdown::wait`].
pub async fn serve<E: Env, L: Listener, X: Exports>(
    env: E,
    listener: L,
    exports: Rc<X>,
    options: ServerOptions,
    shutdown: Rc<Shutdown>,
) {
    let _active = shutdown.enter();
    let options = Rc::new(options);
    let used = Rc::new(Cell::new(0));
    let mut number: u64 = 0;
    loop {
        if shutdown.is_triggered() {
            return;
        }
        let accepted = match race(shutdown.triggered(), listener.accept()).await {
            Either::First(()) => return,
            Either::Second(accepted) => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: others will close some.
                tracing::warn!(%error, address = listener.address(), "nbd: accept failed");
                env.sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(slot) = Slot::take(&used, options.connections_max) else {
            tracing::warn!(
                peer = stream.peer(),
                "nbd: too many connections, one more is refused"
            );
            stream.shutdown();
            continue;
        };
        number = number.wrapping_add(1);
        let active = shutdown.enter();
        let connection = connection::run(
            env.clone(),
            stream,
            number,
            exports.clone(),
            options.clone(),
            shutdown.clone(),
        );
        env.spawn(async move {
            connection.await;
            drop((slot, active));
        });
    }
}
