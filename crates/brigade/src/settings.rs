//! Settings of a running server: reading, changing, keeping them in the configuration file, and where they differ from it.

use crate::config::Entry;
use crate::face::{Changed, Knob, Scope};
use crate::world::World;
use crate::{Config, Error, Handle};
use serde_json::{Value, json};
use std::rc::Rc;

/// What is to be changed: keys with their values as text.
pub type Wanted = Vec<(String, String)>;

impl Handle {
    /// All settings as they are now, and where they differ from the configuration file.
    pub fn settings(&self) -> Result<Value, Error> {
        self.call(|world| async move {
            let mut value = serde_json::to_value(world.server.settings()).map_err(Error::new)?;
            value["config"] = configured(&world);
            Ok(value)
        })?
    }

    /// Changes settings, all or none; from now on, and with `keep` also after a restart with the same configuration file, if there is
    /// one.
    pub fn set(&self, wanted: Wanted, keep: bool) -> Result<Value, Error> {
        self.call(move |world| async move {
            let mut changed = Vec::new();
            let mut keys = Vec::new();
            // One after the other, since the file wants to know which key changed what; whether all make sense is known before.
            world.server.check_change(&wanted).map_err(Error::new)?;
            for one in &wanted {
                let done = world.server.change(std::slice::from_ref(one)).await;
                let done = done.map_err(Error::new)?;
                keys.extend(done.iter().map(|_| one.0.clone()));
                changed.extend(done);
            }
            let kept = match keep {
                true => note(&world, &keys, &changed)?,
                false => None,
            };
            Ok(json!({ "changed": changed, "kept_in": kept }))
        })?
    }
}

/// Writes changes to the configuration file and gives its name, if there is one.
fn note(world: &World, keys: &[String], changed: &[Changed]) -> Result<Option<String>, Error> {
    let mut config = world.config.borrow_mut();
    let Some(config) = &mut *config else {
        return Ok(None);
    };
    for (key, changed) in keys.iter().zip(changed) {
        config.note(key, changed);
    }
    config
        .save()
        .map_err(|error| Error::new(format!("changed, but not kept: {error}")))?;
    Ok(Some(config.path().display().to_string()))
}

/// Applies the configuration file. Sections for volumes and sets that are not here are no error: they may be attached later.
/// The mode is left alone if it was `said` on the command line.
pub(crate) async fn apply(world: &Rc<World>, config: &Config, mode_said: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let is_mode = |key: &str| key.ends_with(Knob::CacheMode.definition().name);
    for Entry { key, text } in config.entries() {
        if mode_said && is_mode(&key) {
            continue;
        }
        if let Err(why) = world.server.change(&[(key, text)]).await {
            warnings.push(format!("{}: {why}", config.path().display()));
        }
    }
    warnings
}

/// The name of the file and what is not as it says.
pub(crate) fn configured(world: &World) -> Value {
    let config = world.config.borrow();
    let Some(config) = &*config else {
        return json!({ "path": null, "differs": [] });
    };
    json!({ "path": config.path().display().to_string(), "differs": differs(world, &config.entries()) })
}

fn differs(world: &World, entries: &[Entry]) -> Vec<Value> {
    let now = world.server.settings();
    let mut differs = Vec::new();
    for (scope, owners) in [
        (Scope::CacheSet, &now.cache_sets),
        (Scope::Volume, &now.volumes),
    ] {
        for owner in owners {
            for (name, is) in &owner.settings {
                let is_owner = |of: &str| {
                    of == scope.section()
                        || of == owner.uuid
                        || owner.names.iter().any(|it| it == of)
                };
                // The last one that fits is the one that counts.
                let said = entries.iter().rev().find(|entry| {
                    let key = entry.key.rsplit_once('.');
                    key.is_some_and(|(of, it)| it == *name && is_owner(of))
                });
                let Some(said) = said else { continue };
                let configured = Knob::named(name, scope).and_then(|knob| {
                    let row = knob.definition();
                    let (least, most) = row.range();
                    let value = row.parse(&said.text).ok()?;
                    Some(row.plain(value.clamp(least, most)))
                });
                if configured.is_some_and(|it| it != *is) {
                    differs.push(json!({ "of": owner.name, "name": name, "is": is, "configured": configured }));
                }
            }
        }
    }
    differs
}
