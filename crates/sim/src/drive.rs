//! Running something that must end, and what is said if it does not.

use crate::crash::Crash;
use crate::exec::World;
use crate::set::Set;
use crate::work::Ledger;
use brigade_engine::Server;
use brigade_env::Env;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Virtual time in which something must get done.
const PATIENCE: Duration = Duration::from_secs(600);
/// Steps in which something must get done.
pub const STEPS_MAX: u64 = 4_000_000;

fn stalled(
    set: &Set,
    what: &str,
    world: &World,
    ledger: &Ledger,
    server: Option<&Server<World>>,
) -> ! {
    let status = server
        .map(|server| format!("{:#?}", server.status().cache_sets))
        .unwrap_or_default();
    panic!(
        "seed {}: stalled: {what}; {}; outstanding {:#?}\n{status}",
        set.seed,
        world.pending(),
        ledger.open.borrow()
    )
}

/// Runs something that must end; `None` if the crash came first.
pub fn drive<T: 'static>(
    set: &mut Set,
    world: &World,
    what: &str,
    future: impl Future<Output = T> + 'static,
    crash_at: Option<u64>,
    ledger: &Rc<Ledger>,
    server: Option<&Rc<Server<World>>>,
) -> Option<T> {
    let crash = Crash {
        step: crash_at,
        ..Crash::NEVER
    };
    drive_until(set, world, what, future, &crash, ledger, server)
}

/// Steps of the engine between two recounts; 0: none.
static RECOUNT_EVERY: AtomicU64 = AtomicU64::new(0);

/// From now on everything that is counted as it changes is recounted and compared after every so many steps of the engine, and not only at
/// the end of each of a life's parts.
pub fn recount_every(steps: u64) {
    RECOUNT_EVERY.store(steps, Ordering::Relaxed);
}

/// Runs something that must end; `None` if this crash came first.
pub fn drive_until<T: 'static>(
    set: &mut Set,
    world: &World,
    what: &str,
    future: impl Future<Output = T> + 'static,
    crash: &Crash,
    ledger: &Rc<Ledger>,
    server: Option<&Rc<Server<World>>>,
) -> Option<T> {
    ledger.last_done.set(world.now());
    let stuck = Cell::new(false);
    let limit = world.steps() + STEPS_MAX;
    let result = world.run(future, || {
        let every = RECOUNT_EVERY.load(Ordering::Relaxed);
        if let Some(server) = server
            && every > 0
            && world.steps().is_multiple_of(every)
        {
            server.audit_changes();
        }
        stuck.set(
            world.now().saturating_sub(ledger.last_done.get()) > PATIENCE || world.steps() > limit,
        );
        stuck.get() || crash.strikes(world)
    });
    set.now = world.now();
    if result.is_none() && (stuck.get() || !crash.strikes(world)) {
        stalled(set, what, world, ledger, server.map(|server| &**server));
    }
    result
}
