//! Settings of a running server: reading, changing, keeping them in the configuration file, and where they differ from it.

use crate::config::Entry;
use crate::face::{Changed, Knob, Scope};
use crate::world::World;
use crate::{Config, Error, Handle};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
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
    /// one. The file is read again first, since somebody may have worked on it, and written on the thread of the caller.
    pub fn set(&self, wanted: Wanted, keep: bool) -> Result<Value, Error> {
        let _one_at_a_time = self.changing();
        let done = self.call(move |world| change(world, wanted))??;
        let kept_in = match &done.config {
            Some(path) if keep => {
                let kept = done.keep(path);
                let config =
                    kept.map_err(|error| Error::new(format!("changed, but not kept: {error}")))?;
                self.call(move |world| async move {
                    *world.config.borrow_mut() = Some(config);
                })?;
                Some(path.display().to_string())
            }
            _ => None,
        };
        match done.failure {
            Some(error) => Err(error),
            None => {
                let changed: Vec<_> = done.changed.iter().flat_map(|it| &it.1).collect();
                Ok(json!({ "changed": changed, "kept_in": kept_in }))
            }
        }
    }
}

/// What became of changes.
struct Done {
    /// What each key changed.
    changed: Vec<(String, Vec<Changed>)>,
    /// What kept the rest from being made.
    failure: Option<Error>,
    /// The configuration file.
    config: Option<PathBuf>,
}

impl Done {
    /// Notes them in the file.
    fn keep(&self, path: &Path) -> Result<Config, Error> {
        let mut config = Config::read(path)?;
        for (key, changed) in &self.changed {
            config.note(key, changed);
        }
        config.save()?;
        Ok(config)
    }
}

async fn change(world: Rc<World>, wanted: Wanted) -> Result<Done, Error> {
    let path = |config: &Config| config.path().to_owned();
    let mut done = Done {
        changed: Vec::new(),
        failure: None,
        config: world.config.borrow().as_ref().map(path),
    };
    world.server.check_change(&wanted).map_err(Error::new)?;
    // One after the other, since the file wants to know which key changed what.
    for one in &wanted {
        match world.server.change(std::slice::from_ref(one)).await {
            Ok(changed) => done.changed.push((one.0.clone(), changed)),
            Err(error) => {
                done.failure = Some(Error::new(error));
                break;
            }
        }
    }
    Ok(done)
}

/// Applies the configuration file, for all or for a volume that has just come. Sections for volumes and sets that are not here are no error: they may be attached later.
/// The mode is left alone if it was `said` on the command line.
pub(crate) async fn apply(world: &Rc<World>, config: &Config, mode_said: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let is_mode = |key: &str| key.ends_with(Knob::CacheMode.definition().name);
    let mut warn = |what: &str| warnings.push(format!("{}: {what}", config.path().display()));
    // What one may be can depend on another one behind it, so the second time decides.
    for round in 0..2 {
        for Entry { key, text } in config.entries() {
            if mode_said && is_mode(&key) {
                continue;
            }
            let changed = world.server.change(&[(key.clone(), text.clone())]).await;
            match changed {
                _ if round == 0 => {}
                Ok(changed) if changed.iter().any(|it| it.was_cut) => {
                    warn(&format!("{key} = {text} is more or less than there is"));
                }
                Ok(_) => {}
                Err(why) => warn(&why.to_string()),
            }
        }
    }
    warnings
}

/// The configuration file for a volume that was opened or made meanwhile.
pub(crate) async fn apply_new(world: &Rc<World>, name: &str) {
    let Some(config) = world.config.borrow().clone() else {
        return;
    };
    let Ok(volume) = world.server.volume(name) else {
        return;
    };
    let names = volume.names();
    for Entry { key, text } in config.entries() {
        let Some((of, setting)) = key.rsplit_once('.') else {
            continue;
        };
        // What its superblock says, or the command line did, is how it is cached.
        if setting == Knob::CacheMode.definition().name {
            continue;
        }
        let is_all = of == Scope::Volume.section();
        if !(is_all || of == volume.uuid || names.iter().any(|it| it == of)) {
            continue;
        }
        let one = [(format!("{}.{setting}", volume.uuid), text)];
        if let Err(error) = world.server.change(&one).await {
            tracing::warn!(%error, key, "a setting of the configuration file is left out");
        }
    }
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
