//! Ending to serve a backing device.

use super::super::server::Server;
use super::super::volume::{Volume, quiet};
use crate::error::Error;
use brigade_env::Env;
use std::rc::Rc;

impl<E: Env> Server<E> {
    /// Ends serving a backing device and lets go of it. What is dirty of it stays so in the set, and its state stays: it can be attached
    /// again, here or after a restart.
    pub async fn stop_volume(&self, name: &str) -> Result<(), Error> {
        let _held = self.change_of(name).await?;
        let volume = self.volume(name)?;
        let served = self.idle(&volume).await?;
        if served.core.backing.is_none() {
            return Err(Error::refused(
                name,
                "a flash volume is there as long as its set",
            ));
        }
        drop(served);
        let served = volume.serve_with(None).expect("it was served");
        quiet(&served.core).await;
        if let Some(writeback) = &served.writeback {
            writeback.stop().await;
        }
        let mut result = Ok(());
        if !served.core.is_read_only {
            let flushed = served.core.flush_backing().await;
            result =
                flushed.map_err(|error| Error::io(name, "flush of the backing device", &error));
        }
        // Fills that had waited for the flush.
        quiet(&served.core).await;
        self.forget(&volume);
        result
    }

    /// Takes a volume off the list.
    pub(super) fn forget(&self, volume: &Rc<Volume<E>>) {
        let mut volumes = self.volumes.borrow_mut();
        volumes.retain(|it| !Rc::ptr_eq(it, volume));
    }
}
