//! Naming volumes.

use super::super::names::is_number;
use super::super::server::Server;
use super::super::volume::Volume;
use super::flash::label_field;
use crate::error::Error;
use brigade_env::Env;
use std::rc::Rc;

/// Longest label, in bytes.
const LABEL_BYTES_MAX: usize = 32;

impl<E: Env> Server<E> {
    /// Gives a volume another label, on its device and in its slot; it is exported by that instead of the old one.
    pub async fn set_label(&self, name: &str, label: &str) -> Result<Rc<Volume<E>>, Error> {
        let _held = self.change_of(name).await?;
        let volume = self.volume(name)?;
        let served = self.idle(&volume).await?;
        self.check_label(label, Some(&volume))?;
        if served.core.is_read_only {
            return Err(Error::refused(name, "it is served read-only"));
        }
        if let Some(cache) = &served.core.cache {
            self.check_room(self.set_of(cache))?;
        }
        if let Some(backing) = &served.core.backing {
            let change = backing
                .superblock
                .change(|superblock| superblock.set_label(label));
            let io = |error| Error::io(backing.disk.name(), "label", &error);
            change.await.map_err(io)?;
        }
        if let Some(cache) = &served.core.cache {
            let at = self.set_of(cache);
            let (set, running) = (&self.sets[at], self.running(at)?);
            let turn = set.uuids.turn().await;
            let mut entries = set.uuids.entries().clone();
            entries[served.core.inode as usize].label = label_field(label);
            let write = set.uuids.try_write(&turn, &running.journal, entries);
            let io = |error| Error::io(set.disk().name(), "UUID table", &error);
            write.await.map_err(io)?;
        }
        volume.change_label(label);
        Ok(volume)
    }

    /// Whether a volume, or a new one, can have a label.
    pub(super) fn check_label(&self, label: &str, of: Option<&Rc<Volume<E>>>) -> Result<(), Error> {
        let refused = |what: &str| Err(Error::refused("label", format!("{label:?}: {what}")));
        if label.len() > LABEL_BYTES_MAX {
            return refused("more than 32 bytes");
        }
        if label.chars().any(char::is_control) {
            return refused("control characters");
        }
        if is_number(label) {
            return refused("volumes are called so by their slots");
        }
        let volumes = self.volumes();
        let mut others = volumes
            .iter()
            .filter(|it| of.is_none_or(|of| !Rc::ptr_eq(it, of)));
        if !label.is_empty() && others.any(|it| it.is_called(label)) {
            return refused("another volume is called so");
        }
        Ok(())
    }
}
