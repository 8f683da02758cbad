//! Changing settings while everything runs.
//!
//! A key is the name of a setting, alone or after whom it is of: `sequential_cutoff` changes all volumes (or the sets, if it is a
//! setting of those), `volume0.sequential_cutoff` one; so do a label or the uuid of a volume or set, `cache_set.` and `volumes.`.
//! What lies in a superblock is written there before anybody acts on it. Nothing is changed unless all of it can be.

use super::cache_set::CacheSet;
use super::server::Server;
use super::volume::Volume;
use crate::alloc::Replacement;
use crate::error::Error;
use crate::request::mode_of;
use crate::settings::{Definition, Knob, Plain, Scope, Settings};
use brigade_env::Env;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

/// A setting that was changed, or would have been.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Changed {
    /// Whose it is.
    pub of: String,
    /// `cache_set` or `volumes`.
    pub section: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What it was.
    pub was: Plain,
    /// What it is.
    pub is: Plain,
    /// It was asked for more or less than there is.
    pub was_cut: bool,
    /// What was asked for.
    #[serde(skip)]
    pub wanted: Plain,
    /// All that whose it is is called: its names and its uuid.
    #[serde(skip)]
    pub called: Vec<String>,
}

/// All values.
#[derive(Clone, Debug, Serialize)]
pub struct SettingsStatus {
    /// Of the first set.
    pub cache_set: Option<SettingsOf>,
    /// Of each set.
    pub cache_sets: Vec<SettingsOf>,
    /// Of each volume.
    pub volumes: Vec<SettingsOf>,
}

/// The values of one set or volume.
#[derive(Clone, Debug, Serialize)]
pub struct SettingsOf {
    /// Its first name, or the uuid of a set.
    pub name: String,
    /// Its uuid.
    pub uuid: String,
    /// All names of a volume.
    pub names: Vec<String>,
    /// By name.
    pub settings: BTreeMap<&'static str, Plain>,
}

/// Whom a key speaks of.
enum Owner<E: Env> {
    Set(Rc<CacheSet<E>>),
    Volume(Rc<Volume<E>>),
}

/// Who gets what.
type Judged<E> = (Vec<Owner<E>>, &'static Definition, u64);

impl<E: Env> Owner<E> {
    fn name(&self) -> String {
        match self {
            Owner::Set(set) => set.uuid(),
            Owner::Volume(volume) => volume.name(),
        }
    }

    fn called(&self) -> Vec<String> {
        match self {
            Owner::Set(set) => vec![set.uuid()],
            Owner::Volume(volume) => [volume.names(), vec![volume.uuid.clone()]].concat(),
        }
    }

    fn settings(&self) -> &Settings {
        match self {
            Owner::Set(set) => &set.cache.settings,
            Owner::Volume(volume) => &volume.settings,
        }
    }

    async fn apply(&self, row: &Definition, value: u64) -> io::Result<Changed> {
        let settings = self.settings();
        let was = row.plain(settings.get(row.knob));
        let (least, most) = settings.range(row.knob);
        let cut = value.clamp(least, most);
        match self {
            Owner::Set(set) => apply_to_set(set, row.knob, cut).await?,
            Owner::Volume(volume) if row.knob == Knob::CacheMode => {
                volume.set_mode(mode_of(cut)).await?;
            }
            Owner::Volume(_) => {}
        }
        let is = settings.set(row.knob, cut);
        Ok(Changed {
            of: self.name(),
            section: row.scope.section(),
            name: row.name,
            was,
            is: row.plain(is),
            was_cut: is != value,
            wanted: row.plain(value),
            called: self.called(),
        })
    }
}

/// What more there is to some settings than their value.
async fn apply_to_set<E: Env>(set: &CacheSet<E>, knob: Knob, value: u64) -> io::Result<()> {
    let buckets = &set.cache.buckets;
    let is_read_only = set.running.is_none();
    match knob {
        Knob::Discard | Knob::CacheReplacementPolicy if is_read_only => {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Knob::Discard => {
            set.superblock
                .change(|superblock| superblock.set_discard(value != 0))
                .await?;
            let is_active = value != 0 && set.disk().geometry().can_discard;
            buckets.get_mut().set_discards(is_active);
        }
        Knob::CacheReplacementPolicy => {
            use brigade_format::Replacement as Stored;
            let (stored, policy) = [
                (Stored::Lru, Replacement::Lru),
                (Stored::Fifo, Replacement::Fifo),
                (Stored::Random, Replacement::Random),
            ][value as usize];
            set.superblock
                .change(|superblock| superblock.set_replacement(stored))
                .await?;
            buckets.get_mut().set_replacement(policy);
        }
        Knob::ExpensiveDebugChecks => buckets.get_mut().set_expensive_checks(value != 0),
        _ => {}
    }
    Ok(())
}

impl<E: Env> Server<E> {
    /// Sets what each key names to what the text with it says, everywhere it is meant, and says what changed. Nothing is if one of them
    /// makes no sense.
    pub async fn change(&self, wanted: &[(String, String)]) -> Result<Vec<Changed>, Error> {
        let all: Result<Vec<_>, Error> = wanted.iter().map(|one| self.judge(one)).collect();
        let mut changed = Vec::new();
        for (owners, row, value) in all? {
            for owner in owners {
                let done = owner.apply(row, value).await;
                changed.push(done.map_err(|error| Error::io(&owner.name(), row.name, &error))?);
            }
        }
        Ok(changed)
    }

    /// Whether these keys and values make sense.
    pub fn check_change(&self, wanted: &[(String, String)]) -> Result<(), Error> {
        wanted.iter().try_for_each(|one| self.judge(one).map(drop))
    }

    fn judge(&self, (key, text): &(String, String)) -> Result<Judged<E>, Error> {
        let refused = |what: String| Error::refused("settings", format!("{key}: {what}"));
        let (owners, row) = self.owners(key).map_err(refused)?;
        let value = row.parse(text).map_err(|why| refused(why.to_string()))?;
        Ok((owners, row, value))
    }

    fn owners(&self, key: &str) -> Result<(Vec<Owner<E>>, &'static Definition), String> {
        let (of, name) = match key.rsplit_once('.') {
            Some((of, name)) => (Some(of), name),
            None => (None, key),
        };
        let (volumes, sets) = (self.volumes(), self.sets());
        let scopes = [Scope::CacheSet, Scope::Volume];
        let knobs: Vec<Knob> = scopes
            .into_iter()
            .filter_map(|scope| Knob::named(name, scope))
            .collect();
        if knobs.is_empty() {
            return Err(format!("there is no setting {name}"));
        }
        let named = |knob: &Knob| {
            let owners: Vec<Owner<E>> = match knob.definition().scope {
                Scope::CacheSet => sets
                    .iter()
                    .filter(|set| is_set(set, of))
                    .cloned()
                    .map(Owner::Set)
                    .collect(),
                Scope::Volume => volumes
                    .iter()
                    .filter(|volume| is_volume(volume, of) && has(volume, *knob))
                    .cloned()
                    .map(Owner::Volume)
                    .collect(),
            };
            (owners, knob.definition())
        };
        let mut found: Vec<_> = knobs
            .iter()
            .map(named)
            .filter(|it| !it.0.is_empty())
            .collect();
        match (found.pop(), found.pop()) {
            (Some(_), Some(_)) => Err(format!(
                "both cache sets and volumes have it: say cache_set.{name} or volumes.{name}"
            )),
            (Some(only), None) => Ok(only),
            (None, _) => Err(match of {
                Some(of) => format!("nothing here is called {of} and has a setting {name}"),
                None => "nothing here has this setting".into(),
            }),
        }
    }

    /// All values as they are now.
    pub fn settings(&self) -> SettingsStatus {
        let of = |owner: Owner<E>, uuid: String| {
            let settings = owner.settings();
            let rows = crate::settings::DEFINITIONS.iter();
            let own = rows.filter(|row| row.scope == settings.scope());
            SettingsOf {
                name: owner.name(),
                uuid,
                names: match &owner {
                    Owner::Set(_) => Vec::new(),
                    Owner::Volume(volume) => volume.names(),
                },
                settings: own
                    .map(|row| (row.name, row.plain(settings.get(row.knob))))
                    .collect(),
            }
        };
        let set = |set: Rc<CacheSet<E>>| {
            let uuid = set.uuid();
            of(Owner::Set(set), uuid)
        };
        let volume = |volume: Rc<Volume<E>>| {
            let uuid = volume.uuid.clone();
            of(Owner::Volume(volume), uuid)
        };
        let cache_sets: Vec<_> = self.sets().into_iter().map(set).collect();
        let volumes = self.volumes().into_iter().map(volume);
        SettingsStatus {
            cache_set: cache_sets.first().cloned(),
            volumes: volumes.collect(),
            cache_sets,
        }
    }
}

fn is_set<E: Env>(set: &CacheSet<E>, of: Option<&str>) -> bool {
    of.is_none_or(|of| of == Scope::CacheSet.section() || of == set.uuid())
}

/// A flash volume has no modes.
fn has<E: Env>(volume: &Volume<E>, knob: Knob) -> bool {
    knob != Knob::CacheMode || volume.state() != "flash"
}

fn is_volume<E: Env>(volume: &Volume<E>, of: Option<&str>) -> bool {
    let is_it = |of: &str| of == Scope::Volume.section() || volume.is_called(of);
    of.is_none_or(is_it)
}
