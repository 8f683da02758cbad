//! Draining: all dirty data of a volume, or of all of them, goes to the backing devices at full speed, whatever the settings say.

use super::server::Server;
use super::volume::{Served, Volume};
use crate::data::{DrainEnd, Writeback};
use crate::error::Error;
use brigade_env::{Env, Exports};
use std::rc::Rc;

const READ_ONLY: &str = "it is open read-only, nothing is written";

fn refusal(name: &str, why: &str) -> Error {
    Error::refused(name, format!("drain: {why}"))
}

impl<E: Env> Volume<E> {
    /// Begins to drain it, unless that is under way, and says whether it did. A volume without dirty data of a backing device has
    /// nothing to drain.
    pub fn drain(&self) -> bool {
        self.writeback().is_some_and(|it| it.drain())
    }

    /// Ends a drain, and says whether there was one. What was written back stays so.
    pub fn cancel_drain(&self) -> bool {
        self.writeback().is_some_and(|it| it.cancel_drain())
    }

    fn writeback(&self) -> Option<Rc<Writeback<E>>> {
        self.served()?.writeback
    }

    /// Completes when the last drain has ended, and says how it did; at once if there was none.
    pub fn drained(&self) -> impl Future<Output = Option<DrainEnd>> + 'static {
        let writeback = self.writeback();
        async move {
            match writeback {
                Some(writeback) => writeback.drained().await,
                None => None,
            }
        }
    }
}

impl<E: Env> Server<E> {
    /// Begins to drain a volume, or all that can be; gives those that are being drained now. It does not wait.
    pub fn drain(&self, name: Option<&str>) -> Result<Vec<Rc<Volume<E>>>, Error> {
        let volumes = self.drainable(name)?;
        for volume in &volumes {
            volume.drain();
        }
        Ok(volumes)
    }

    /// Ends the drain of a volume, or all drains; gives the volumes that had one.
    pub fn cancel_drain(&self, name: Option<&str>) -> Result<Vec<Rc<Volume<E>>>, Error> {
        let mut volumes = self.drainable(name)?;
        volumes.retain(|volume| volume.cancel_drain());
        Ok(volumes)
    }

    fn drainable(&self, name: Option<&str>) -> Result<Vec<Rc<Volume<E>>>, Error> {
        let Some(name) = name else {
            let mut volumes = self.volumes();
            let is_stuck = |it: &Rc<Volume<E>>| {
                let served = it.served();
                let is_cached = |it: &Served<E>| it.core.is_read_only && it.core.backing.is_some();
                served.is_some_and(|served| is_cached(&served)) && it.dirty_bytes() > 0
            };
            if let Some(volume) = volumes.iter().find(|it| is_stuck(it)) {
                return Err(refusal(&volume.name(), READ_ONLY));
            }
            volumes.retain(|volume| volume.writeback().is_some());
            return Ok(volumes);
        };
        let refused = |why: &str| Err(refusal(name, why));
        let by_uuid = || self.volumes().into_iter().find(|it| it.uuid == name);
        let found = self.find(name).or_else(by_uuid);
        let found = found.and_then(|volume| Some((volume.served()?.core, volume)));
        match found {
            None => refused("there is no such volume"),
            Some((core, _)) if core.backing.is_none() => {
                refused("a flash volume has no backing device that its data could go to")
            }
            Some((core, _)) if core.is_read_only => refused(READ_ONLY),
            // Without a cache nothing of it is dirty.
            Some((_, volume)) => Ok(vec![volume]),
        }
    }
}
