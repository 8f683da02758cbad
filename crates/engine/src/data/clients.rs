//! What background work on a whole set knows of its volumes: who else writes there, and when somebody last asked for something.

use super::locks::RangeLocks;
use super::writeback::Together;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// The volumes of a set, by inode. One that is not served yet is there as soon as somebody asks, so that who works on it before and
/// who works on it after keep out of each other's way.
#[derive(Default)]
pub struct Clients {
    volumes: RefCell<BTreeMap<u32, Rc<Client>>>,
    /// What is written back of all of them.
    pub writeback: Together,
}

/// One volume.
#[derive(Default)]
pub struct Client {
    /// Who writes to its backing device.
    pub locks: Rc<RangeLocks>,
    /// When its last request came.
    pub last_request: Rc<Cell<Duration>>,
    /// It is only in the cache.
    pub is_flash: Cell<bool>,
}

impl Clients {
    /// A volume.
    pub fn of(&self, inode: u32) -> Rc<Client> {
        self.volumes.borrow_mut().entry(inode).or_default().clone()
    }

    /// When the last request to any of them came.
    pub fn last_request(&self) -> Duration {
        let clients = self.volumes.borrow();
        let times = clients.values().map(|client| client.last_request.get());
        times.max().unwrap_or_default()
    }
    /// Those that are only in the cache.
    pub fn flash_volumes(&self) -> Vec<u32> {
        let clients = self.volumes.borrow();
        let flash = clients.iter().filter(|(_, client)| client.is_flash.get());
        flash.map(|(inode, _)| *inode).collect()
    }
}
