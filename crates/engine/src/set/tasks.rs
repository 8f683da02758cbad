//! Background tasks on the data of a set that is written.

use crate::btree::Tree;
use crate::data::{Mover, MoverParts, Sweeper, SweeperParts};
use crate::journal::Journal;
use crate::meta::UuidTable;
use crate::request::Cache;
use crate::steps::Task;
use brigade_env::Env;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Starts the task that empties buckets while that is switched on.
pub(super) fn start_moving<E: Env>(env: &E, cache: &Rc<Cache<E>>) -> Rc<Mover<E>> {
    let writer = cache.writer.as_ref().expect("a set that is written");
    let mover = Mover::new(MoverParts {
        env: env.clone(),
        cache: cache.disk.clone(),
        poison: cache.poison.clone(),
        index: cache.index.clone(),
        pages: cache.pages.clone(),
        inserter: writer.inserter.clone(),
        buckets: cache.buckets.clone(),
        clients: cache.clients.clone(),
        block_sectors: cache.block_sectors,
        settings: cache.settings.clone(),
    });
    env.spawn(cache.steps.timed(env, Task::Moving, mover.clone().run()));
    mover
}

/// Starts the task that makes slots of removed devices free.
pub(super) fn start_sweeping<E: Env>(
    env: &E,
    cache: &Rc<Cache<E>>,
    tree: &Rc<Tree<E>>,
    journal: &Rc<Journal<E>>,
    uuids: &Rc<UuidTable<E>>,
    inodes_seen: &Rc<RefCell<BTreeSet<u32>>>,
) -> Rc<Sweeper<E>> {
    let writer = cache.writer.as_ref().expect("a set that is written");
    let sweeper = Sweeper::new(SweeperParts {
        env: env.clone(),
        poison: cache.poison.clone(),
        steps: cache.steps.clone(),
        index: cache.index.clone(),
        pages: cache.pages.clone(),
        inserter: writer.inserter.clone(),
        tree: tree.clone(),
        buckets: cache.buckets.clone(),
        journal: journal.clone(),
        uuids: uuids.clone(),
        inodes_seen: inodes_seen.clone(),
        clients: cache.clients.clone(),
    });
    sweeper.look();
    sweeper
}
