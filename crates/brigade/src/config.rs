//! The configuration file: what to serve and how, and all settings.
//!
//! ```toml
//! [serve]
//! cache = "/dev/nvme0n1p3"
//! backing = ["/dev/sdb", "/dev/sdc"]
//! nbd = "unix:/run/volume.sock"
//! memory = "512M"
//!
//! [cache_set]
//! journal_delay_ms = 50
//!
//! [volumes]
//! sequential_cutoff = "8M"
//!
//! [volumes.data]
//! cache_mode = "writeback"
//! ```
//! A section of its own within `cache_set` (by uuid) or `volumes` (by label, `volumeN` or uuid) is for that one. The keys of `serve` are
//! those of the flags of `brigade serve`. What is changed while the server runs is written back, and all else stays as it was written,
//! comments included. A file is replaced by a new one that was made durable, so a crash leaves one or the other.

use crate::Error;
use crate::face::{Changed, DEFINITIONS, Definition, Knob, Plain, Scope};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use toml_edit::{DocumentMut, Item, Table, TableLike, Value};

/// The largest file that is read.
const BYTES_MAX: u64 = 1 << 20;
const SERVE: &str = "serve";

/// A configuration file, as it was read.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    document: DocumentMut,
}

/// The keys of `[serve]`: text, or lists of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Serve(Vec<(String, Vec<String>)>);

impl Serve {
    /// All values of a key.
    pub fn all(&self, key: &str) -> Vec<String> {
        let it = self.0.iter().find(|(name, _)| name == key);
        it.map(|(_, values)| values.clone()).unwrap_or_default()
    }

    /// The keys that are there.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}

/// A setting in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The key by which the engine knows it.
    pub(crate) key: String,
    /// Its value as text.
    pub(crate) text: String,
}

impl Config {
    /// Reads a file. What is wrong in it is an error that names the place.
    pub fn read(path: &Path) -> Result<Config, Error> {
        let at = |what: &dyn std::fmt::Display| Error::at(path.display(), what);
        let is_file = std::fs::metadata(path).map_err(|e| at(&e))?.is_file();
        if !is_file {
            return Err(at(&"is no regular file"));
        }
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|e| at(&e))?;
        let read = file.take(BYTES_MAX + 1).read_to_string(&mut text);
        if read.map_err(|e| at(&e))? as u64 > BYTES_MAX {
            return Err(at(&format!(
                "is no configuration file: more than {BYTES_MAX} bytes"
            )));
        }
        Config::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Config, Error> {
        let document: DocumentMut = text.parse().map_err(|error| {
            // The parser draws the place over several lines.
            let said = format!("{error}");
            let lines: Vec<&str> = said.split('\n').map(str::trim).collect();
            Error::at(path.display(), lines.join(" "))
        })?;
        let config = Config {
            path: path.to_owned(),
            document,
        };
        let wrong = |what: String| Error::at(path.display(), what);
        config.check().map_err(wrong)?;
        Ok(config)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What and how to serve.
    pub fn serve(&self) -> Result<Serve, Error> {
        let wrong = |what: String| Error::at(self.path.display(), what);
        serve_of(&self.document).map_err(wrong)
    }

    fn check(&self) -> Result<(), String> {
        for (section, item) in self.document.iter() {
            match (section == SERVE, Scope::of_section(section)) {
                (true, _) => serve_of(&self.document).map(drop)?,
                (false, Some(scope)) => drop(entries_of(scope, section, item)?),
                (false, None) => {
                    return Err(format!(
                        "there is no section {section}; there are {SERVE}, cache_set and volumes"
                    ));
                }
            }
        }
        Ok(())
    }

    /// All settings, those for all before those for one.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        let of = |scope: Scope| {
            let section = scope.section();
            let item = self.document.get(section)?;
            // It was checked when it was read, and what was written since is right.
            entries_of(scope, section, item).ok()
        };
        let scopes = [Scope::CacheSet, Scope::Volume];
        scopes.into_iter().filter_map(of).flatten().collect()
    }

    /// Notes what a key changed: for the one that it names wherever that has a value, or for all and for each that had a value of its own.
    pub(crate) fn note(&mut self, key: &str, changed: &[Changed]) {
        let Some((scope, row)) = changed.first().and_then(row_of) else {
            return;
        };
        let of = key.rsplit_once('.').map(|(of, _)| of);
        let of = of.filter(|of| *of != scope.section());
        let section = table(self.document.as_table_mut(), scope.section());
        let for_all = common(changed);
        let mut is_noted = false;
        // It may be in several sections, by several names, and the last one would count.
        for (name, item) in section.iter_mut() {
            let own = item.as_table_like_mut();
            let Some(own) = own.filter(|own| own.contains_key(row.name)) else {
                continue;
            };
            let is_it = |it: &&Changed| it.called.iter().any(|called| called == name.get());
            match (changed.iter().find(is_it), of) {
                (Some(one), _) => put(own, row, &one.is),
                // One that is not here.
                (None, None) => put(own, row, &for_all),
                (None, Some(_)) => continue,
            }
            is_noted = true;
        }
        match of {
            Some(_) if is_noted => {}
            Some(one) => put(table(section, one), row, &for_all),
            None => put(section, row, &for_all),
        }
    }

    /// Replaces the file.
    pub(crate) fn save(&self) -> Result<(), Error> {
        let at = |what: std::io::Error| Error::at(self.path.display(), what);
        // A link stays one.
        let path = std::fs::canonicalize(&self.path).map_err(at)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let new = folder.join(format!(".{name}.{}", std::process::id()));
        let write = || {
            let mut file = std::fs::File::create(&new)?;
            file.set_permissions(std::fs::metadata(&path)?.permissions())?;
            file.write_all(self.document.to_string().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            std::fs::File::open(folder)?.sync_all()
        };
        write().map_err(|error| {
            let _ = std::fs::remove_file(&new);
            at(error)
        })
    }
}

/// What all of them have now, or else what was asked for: each may have been cut in another way, and will be again.
fn common(changed: &[Changed]) -> Plain {
    let first = &changed[0];
    match changed.iter().all(|it| it.is == first.is) {
        true => first.is,
        false => first.wanted,
    }
}

fn row_of(changed: &Changed) -> Option<(Scope, &'static Definition)> {
    let scope = Scope::of_section(changed.section)?;
    let knob = Knob::named(changed.name, scope)?;
    Some((scope, knob.definition()))
}

fn table<'a>(within: &'a mut dyn TableLike, name: &str) -> &'a mut dyn TableLike {
    let item = within.entry(name).or_insert_with(|| {
        let mut new = Table::new();
        // A header of its own is only worth while once there is something below it.
        new.set_implicit(true);
        Item::Table(new)
    });
    if !item.is_table_like() {
        *item = Item::Table(Table::new());
    }
    item.as_table_like_mut().expect("it was just made one")
}

fn put(table: &mut dyn TableLike, row: &Definition, value: &Plain) {
    let mut new: Value = match value {
        Plain::Switch(is_on) => (*is_on).into(),
        Plain::Number(number) => i64::try_from(*number).unwrap_or(i64::MAX).into(),
        Plain::Fraction(number) => (*number).into(),
        Plain::Word(word) => (*word).into(),
    };
    if let Some(old) = table.get(row.name).and_then(Item::as_value) {
        *new.decor_mut() = old.decor().clone();
    }
    match table.get_mut(row.name) {
        Some(item) => *item = Item::Value(new),
        None => drop(table.insert(row.name, Item::Value(new))),
    }
}

fn serve_of(document: &DocumentMut) -> Result<Serve, String> {
    let Some(item) = document.get(SERVE) else {
        return Ok(Serve::default());
    };
    let table = item
        .as_table_like()
        .ok_or_else(|| format!("{SERVE} is no section"))?;
    let mut keys = Vec::new();
    for (key, item) in table.iter() {
        let wrong = || format!("{SERVE}.{key} is neither a value nor a list of values");
        let values = match item.as_array() {
            Some(array) => array.iter().map(text_of).collect::<Option<_>>(),
            None => item.as_value().and_then(text_of).map(|text| vec![text]),
        };
        keys.push((key.to_owned(), values.ok_or_else(wrong)?));
    }
    Ok(Serve(keys))
}

/// A value as somebody would write it on the command line.
fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.value().clone()),
        Value::Integer(number) => Some(number.value().to_string()),
        Value::Float(number) => Some(number.value().to_string()),
        Value::Boolean(is_on) => Some(is_on.value().to_string()),
        Value::Datetime(_) | Value::Array(_) | Value::InlineTable(_) => None,
    }
}

/// The settings of a section and of those within it.
fn entries_of(scope: Scope, section: &str, item: &Item) -> Result<Vec<Entry>, String> {
    let table = item
        .as_table_like()
        .ok_or_else(|| format!("{section} is no section"))?;
    let mut entries = Vec::new();
    let mut single = Vec::new();
    for (name, item) in table.iter() {
        match item.as_table_like() {
            Some(own) => {
                for (setting, item) in own.iter() {
                    single.push(entry(scope, name, setting, item)?);
                }
            }
            None => entries.push(entry(scope, section, name, item)?),
        }
    }
    entries.extend(single);
    Ok(entries)
}

fn entry(scope: Scope, of: &str, name: &str, item: &Item) -> Result<Entry, String> {
    let known = DEFINITIONS.iter().filter(|row| row.scope == scope);
    let knob = Knob::named(name, scope).ok_or_else(|| {
        let names: Vec<&str> = known.map(|row| row.name).collect();
        format!(
            "{of}: there is no setting {name}; there are {}",
            names.join(", ")
        )
    })?;
    let text = item
        .as_value()
        .and_then(text_of)
        .ok_or_else(|| format!("{of}.{name} is no value"))?;
    let row = knob.definition();
    row.parse(&text).map_err(|why| format!("{of}: {why}"))?;
    Ok(Entry {
        key: format!("{of}.{name}"),
        text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, Error> {
        Config::parse(Path::new("b.toml"), text)
    }

    fn changed(section: &'static str, name: &'static str, is: Plain) -> Changed {
        Changed {
            of: "volume0".into(),
            section,
            name,
            was: is,
            is,
            was_cut: false,
            wanted: is,
            called: vec!["volume0".into(), "attic".into(), "a.b".into()],
        }
    }

    fn pairs(config: &Config) -> Vec<String> {
        let entries = config.entries().into_iter();
        entries
            .map(|it| format!("{}={}", it.key, it.text))
            .collect()
    }

    const TEXT: &str = "# mine\n[serve]\ncache = \"c.img\"\nbacking = [\"a\", \"b\"]\nmemory = \"64M\"\n\n[cache_set]\njournal_delay_ms = 50\n\n\
        [volumes.\"a.b\"]\ncache_mode = \"writeback\" # fast\n\n[volumes]\nsequential_cutoff = \"8M\"\nwriteback_running = false\n";

    #[test]
    fn sections_for_all_come_before_those_for_one() {
        let config = config(TEXT).expect("parses");
        let entries: Vec<_> = config
            .entries()
            .into_iter()
            .map(|it| (it.key, it.text))
            .collect();
        let pairs: Vec<_> = entries.iter().map(|it| (&*it.0, &*it.1)).collect();
        assert_eq!(
            pairs,
            [
                ("cache_set.journal_delay_ms", "50"),
                ("volumes.sequential_cutoff", "8M"),
                ("volumes.writeback_running", "false"),
                ("a.b.cache_mode", "writeback"),
            ]
        );
        let serve = config.serve().expect("it is right");
        assert_eq!(serve.all("backing"), ["a", "b"]);
        assert_eq!(serve.all("memory"), ["64M"]);
        assert!(serve.all("nbd").is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (text, part) in [
            ("[volumes]\nsequential_cutof = 1\n", "sequential_cutof"),
            ("[volumes]\nsequential_cutoff = \"many\"\n", "many"),
            ("[volumes.x]\ncache_mode = 7\n", "cache_mode"),
            ("[cache_set]\nsequential_cutoff = 1\n", "sequential_cutoff"),
            ("[caches]\n", "caches"),
            ("volumes = 3\n", "volumes"),
            ("[serve]\ncache = [[1]]\n", "serve.cache"),
            ("[volumes\n", "b.toml"),
        ] {
            let error = config(text).expect_err(text).to_string();
            assert!(error.contains(part) && error.contains("b.toml"), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_change_keeps_all_else_as_it_was_written() {
        let mut config = config(TEXT).expect("parses");
        config.note(
            "a.b.cache_mode",
            &[changed("volumes", "cache_mode", Plain::Word("none"))],
        );
        config.note(
            "sequential_cutoff",
            &[changed("volumes", "sequential_cutoff", Plain::Number(4))],
        );
        config.note(
            "u-u.errors",
            &[changed("cache_set", "errors", Plain::Word("panic"))],
        );
        let text = config.document.to_string();
        assert!(text.contains("cache_mode = \"none\" # fast"), "{text}");
        assert!(
            text.contains("sequential_cutoff = 4\n") && text.contains("# mine"),
            "{text}"
        );
        assert!(
            text.contains("[cache_set.u-u]\nerrors = \"panic\""),
            "{text}"
        );
        let again = Config::parse(Path::new("b.toml"), &text).expect("parses");
        assert_eq!(again.entries().len(), config.entries().len());
    }

    /// Otherwise the value of its own would come back at the next start.
    #[test]
    fn a_change_for_all_reaches_those_that_had_a_value_of_their_own() {
        let mut config = config("[volumes.x]\nwriteback_percent = 20\n").expect("parses");
        let to = changed("volumes", "writeback_percent", Plain::Number(5));
        config.note("volumes.writeback_percent", &[to]);
        let texts: Vec<_> = config.entries().into_iter().map(|it| it.text).collect();
        assert_eq!(texts, ["5", "5"]);
    }

    #[test]
    fn a_change_for_one_reaches_every_section_that_names_it() {
        let mut config = config(
            "[volumes.volume0]\nwriteback_percent = 20\n[volumes.other]\nwriteback_percent = 7\n[volumes.attic]\nwriteback_percent = 30\n",
        )
        .expect("parses");
        let to = changed("volumes", "writeback_percent", Plain::Number(5));
        config.note("a.b.writeback_percent", std::slice::from_ref(&to));
        let expected = [
            "volume0.writeback_percent=5",
            "other.writeback_percent=7",
            "attic.writeback_percent=5",
        ];
        assert_eq!(pairs(&config), expected);
        // What no section says is said by the name that was used.
        let to = changed("volumes", "writeback_delay", Plain::Number(9));
        config.note("attic.writeback_delay", &[to]);
        let said = pairs(&config);
        assert!(said.contains(&"attic.writeback_delay=9".into()), "{said:?}");
        assert_eq!(said.len(), 4);
    }

    /// One volume took less than another: all get what was asked for, and as much of it as each takes.
    #[test]
    fn a_change_for_all_that_was_cut_for_some_notes_what_was_asked_for() {
        let mut config = config("[volumes.attic]\nwriteback_percent = 1\n").expect("parses");
        let wanted = Plain::Number(30);
        let cut = Changed {
            wanted,
            ..changed("volumes", "writeback_percent", Plain::Number(20))
        };
        let whole = Changed {
            called: vec!["volume1".into()],
            ..changed("volumes", "writeback_percent", wanted)
        };
        config.note("writeback_percent", &[whole, cut]);
        let expected = ["volumes.writeback_percent=30", "attic.writeback_percent=20"];
        assert_eq!(pairs(&config), expected);
    }

    #[test]
    fn a_saved_file_is_whole_and_keeps_its_permissions_and_its_link() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let (real, link) = (
            folder.path().join("real.toml"),
            folder.path().join("link.toml"),
        );
        std::fs::write(&real, TEXT).expect("written");
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).expect("set");
        std::os::unix::fs::symlink(&real, &link).expect("linked");
        let mut config = Config::read(&link).expect("read");
        config.note(
            "errors",
            &[changed("cache_set", "errors", Plain::Word("panic"))],
        );
        config.save().expect("saved");
        assert!(
            std::fs::symlink_metadata(&link)
                .expect("there")
                .is_symlink()
        );
        let mode = std::fs::metadata(&real)
            .expect("there")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o640);
        let text = std::fs::read_to_string(&real).expect("read");
        assert!(text.contains("errors = \"panic\""));
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 2);
    }
}
