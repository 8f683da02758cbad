//! Draining: all dirty data of a volume, or of all of them, goes to the backing devices at full speed, whatever the settings say.

use super::server::Server;
use super::volume::Volume;
use crate::data::DrainEnd;
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
        self.writeback.as_ref().is_some_and(|it| it.drain())
    }

    /// Ends a drain, and says whether there was one. What was written back stays so.
    pub fn cancel_drain(&self) -> bool {
        self.writeback.as_ref().is_some_and(|it| it.cancel_drain())
    }

    /// Has everything written back at full speed, also what becomes dirty later, as long as it is to leave its set: whatever the
    /// settings say, and without an end of its own. [`Volume::state`] says clean once nothing is dirty.
    pub fn set_detaching(&self, is_detaching: bool) {
        if let Some(writeback) = &self.writeback {
            writeback.set_detaching(is_detaching);
        }
    }

    /// Completes when the last drain has ended, and says how it did; at once if there was none.
    pub fn drained(&self) -> impl Future<Output = Option<DrainEnd>> + 'static {
        let writeback = self.writeback.clone();
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
                let has_backing = it.core.backing.is_some();
                it.core.is_read_only && has_backing && it.dirty_bytes() > 0
            };
            if let Some(volume) = volumes.iter().find(|it| is_stuck(it)) {
                return Err(refusal(&volume.names[0], READ_ONLY));
            }
            volumes.retain(|volume| volume.writeback.is_some());
            return Ok(volumes);
        };
        let refused = |why: &str| Err(refusal(name, why));
        let by_uuid = || self.volumes().into_iter().find(|it| it.uuid == name);
        match self.find(name).or_else(by_uuid) {
            None => refused("there is no such volume"),
            Some(volume) if volume.core.backing.is_none() => {
                refused("a flash volume has no backing device that its data could go to")
            }
            Some(volume) if volume.core.is_read_only => refused(READ_ONLY),
            // Without a cache nothing of it is dirty.
            Some(volume) => Ok(vec![volume]),
        }
    }
}
