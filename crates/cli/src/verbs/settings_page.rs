//! `docs/settings.md`, made from the definitions of the settings.

use crate::failure::Outcome;
use brigade::definitions::{DEFINITIONS, Definition, Scope, Stored};
use std::fmt::Write as _;
use std::io::Write as _;

/// Prints the page.
pub fn print() -> Outcome {
    std::io::stdout().lock().write_all(page().as_bytes())?;
    Ok(())
}

/// The text of `docs/settings.md`.
pub fn page() -> String {
    let mut page = String::from(
        "# Settings\n\n\
        Made from the definitions (`brigade settings-reference`); a test compares. Do not edit.\n\n\
        All of them can be changed while a server runs: `brigade set KEY=VALUE...`, or `PATCH /v1/settings` with an object of keys and \
        values on the control socket; a change holds from the next decision on. `brigade set` without keys, or `GET /v1/settings`, shows \
        them. A key is a name of the tables, for all sets or volumes, or has before it, with a dot, a volume's name or label, a uuid, \
        `volumes` or `cache_set`.\n\n\
        Names are those of the kernel's attributes where it has one; its sysfs tables are in docs/attributes.md. Numbers beyond a range are \
        cut to it and the answer says so (`was_cut`), as the kernel does without saying; what is no value is refused, and then nothing is \
        changed. Bytes take `k`, `M`, `G`, `T`, `P` and `E` (powers of 1024), times `us`, `ms`, `s`, `m` and `h`, switches `on` and `off`, \
        too.\n\n\
        A configuration file (`brigade serve --config FILE`, TOML) has them in its sections `cache_set` and `volumes`, and in sections within \
        these for one volume or set:\n\n\
        ```toml\n[serve]\ncache = \"/dev/nvme0n1p3\"\nbacking = [\"/dev/sdb\"]\nnbd = \"unix:/run/volume.sock\"\n\n\
        [cache_set]\njournal_delay_ms = 50\n\n[volumes]\nsequential_cutoff = \"8M\"\n\n[volumes.data]\ncache_mode = \"writeback\"\n```\n\n\
        Changes are kept there, all else in the file stays as it is; `--temporary` (`PATCH /v1/settings?keep=false`) leaves it alone. What \
        lies in a superblock as well is written there at once. Where the values differ from the file, `brigade set` and `brigade status` \
        (`config.differs`) say so.\n",
    );
    for (scope, title) in [
        (Scope::Volume, "Of a volume"),
        (Scope::CacheSet, "Of a cache set"),
    ] {
        let _ = write!(
            page,
            "\n## {title}\n\n| name | kernel's attribute | values | default | kept in | meaning |\n| --- | --- | --- | --- | --- | --- |\n"
        );
        for row in DEFINITIONS.iter().filter(|row| row.scope == scope) {
            line(&mut page, row);
        }
    }
    page
}

fn line(page: &mut String, row: &Definition) {
    let kernel = match row.is_kernels {
        true => "same name",
        false => "none",
    };
    let stored = match row.stored {
        Stored::Nowhere => "file",
        Stored::BackingSuperblock => "file, superblock of the backing device",
        Stored::CacheSuperblock => "superblock of the cache device",
    };
    let _ = writeln!(
        page,
        "| `{}` | {kernel} | {} | {} | {stored} | {} |",
        row.name,
        row.values(),
        row.shown(row.default),
        row.meaning
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_settings_md_is_what_the_definitions_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/settings.md");
        if std::env::var_os("BRIGADE_UPDATE_DOCS").is_some() {
            std::fs::write(path, page()).expect("docs/settings.md can be written");
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == page(),
            "docs/settings.md is old; run the test with BRIGADE_UPDATE_DOCS=1"
        );
    }
}
