//! `cargo x tidy`: house rules that compilers do not check.
//!
//! Layers of the engine, words that must not stay, module docs, white space, paths of somebody's machine,
//! numbers of invariants, the allocator's table of rules, the tables of marks, tests and attributes. The longest functions and files are printed as news; they are no error.

use crate::interop::Passed;
use crate::process::{Context, Result, project_root};
use crate::{attributes, tests_table};
use regex_lite::Regex;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Engine modules, lowest layer first; a module uses its own line and the ones above it.
const LAYERS: &[&[&str]] = &[
    &[
        "error",
        "extents",
        "health",
        "limits",
        "marks",
        "mutations",
        "options",
        "settings",
        "stats",
        "steps",
        "times",
        "wait",
        "watched",
    ],
    &["alloc", "buckets", "device"],
    &["journal"],
    &["btree", "meta"],
    &["data", "recovery"],
    &["request"],
    &["set"],
];

/// Crates that may hold unsafe code, each block with its argument.
const UNSAFE_CRATES: &[&str] = &["uring", "ublk", "vhost-user"];

/// What must not stay in the tree. Written in halves, so that this file may.
const BANNED: &[(&str, &str)] = &[
    (concat!("to", "do!("), "unfinished code"),
    (concat!("unimpl", "emented!("), "unfinished code"),
    (concat!("db", "g!("), "left from debugging"),
    (
        concat!("FIX", "ME"),
        "say what is wrong in an issue, or mend it",
    ),
    (concat!("/wo", "rk/"), "a path of somebody's machine"),
    (concat!("/ro", "ot/"), "a path of somebody's machine"),
    (concat!("/home", "/"), "a path of somebody's machine"),
    (concat!("../sha", "red"), "a path of somebody's machine"),
];

const LONG_FUNCTION_LINES: usize = 60;
const LONG_FILE_LINES: usize = 700;
const NEWS_MAX: usize = 8;

/// A text file of the project.
pub(crate) struct Source {
    /// Relative to the project's root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_test(&self) -> bool {
        let parts: Vec<&str> = self.path.split('/').collect();
        parts.iter().any(|part| {
            matches!(
                *part,
                "tests" | "tests.rs" | "twin.rs" | "benches" | "examples"
            )
        })
    }
}

/// Checks all of the tree; prints the news.
pub fn check() -> Result<Passed> {
    let sources = sources(&project_root())?;
    let mut complaints = Vec::new();
    for source in &sources {
        white_space(source, &mut complaints);
        banned_words(source, &mut complaints);
        module_doc(source, &mut complaints);
        unsafe_forbidden(source, &mut complaints);
        layers(source, &mut complaints);
    }
    invariants(&sources, &mut complaints);
    allocator_rules(&sources, &mut complaints);
    marks_table(&sources, &mut complaints);
    tests_table::check(&sources, &mut complaints);
    attributes::check(&sources, &mut complaints);
    news(&sources);
    if complaints.is_empty() {
        return Ok(Passed::Ran(format!("{} files", sources.len())));
    }
    Err(format!(
        "{}\n{} complaints",
        complaints.join("\n"),
        complaints.len()
    ))
}

pub(crate) fn sources(root: &Path) -> Result<Vec<Source>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)
            .context(format!("cannot list {}", folder.display()))?
            .flatten()
        {
            let (path, name) = (
                entry.path(),
                entry.file_name().to_string_lossy().into_owned(),
            );
            if path.is_dir() {
                let skipped = name == ".git"
                    || name.starts_with("target")
                    || name == "fixtures"
                    || name == "corpus";
                if !skipped {
                    folders.push(path);
                }
            } else if is_text(&path)
                && let Ok(text) = fs::read_to_string(&path)
            {
                let relative = path.strip_prefix(root).unwrap_or(&path);
                found.push(Source {
                    path: relative.to_string_lossy().into_owned(),
                    text,
                });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn is_text(path: &Path) -> bool {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let by_suffix = [
        ".rs", ".toml", ".md", ".sh", ".html", ".js", ".css", ".json", ".yml",
    ];
    by_suffix.iter().any(|suffix| name.ends_with(suffix))
        || path.to_string_lossy().contains("/.ci/")
}

fn white_space(source: &Source, complaints: &mut Vec<String>) {
    for (i, line) in source.text.lines().enumerate() {
        // Two spaces at the end are a line break in Markdown.
        if line.ends_with([' ', '\t', '\r']) && !source.path.ends_with(".md") {
            complaints.push(format!("{}:{}: white space at the end", source.path, i + 1));
        }
    }
    if source.text.contains('\r') {
        complaints.push(format!("{}: carriage returns", source.path));
    }
    if !source.text.is_empty() && !source.text.ends_with('\n') {
        complaints.push(format!("{}: the last line has no end", source.path));
    }
}

fn banned_words(source: &Source, complaints: &mut Vec<String>) {
    for (i, line) in source.text.lines().enumerate() {
        for (word, why) in BANNED.iter().filter(|(word, _)| line.contains(word)) {
            complaints.push(format!("{}:{}: `{word}`: {why}", source.path, i + 1));
        }
    }
}

fn module_doc(source: &Source, complaints: &mut Vec<String>) {
    let first = source
        .text
        .lines()
        .find(|line| !line.trim().is_empty() && !line.starts_with("#!["));
    if source.is_rust()
        && !source.path.ends_with("/tests.rs")
        && !first.is_some_and(|line| line.starts_with("//!"))
    {
        complaints.push(format!(
            "{}:1: a module opens with //! and what it is for",
            source.path
        ));
    }
}

fn unsafe_forbidden(source: &Source, complaints: &mut Vec<String>) {
    let parts: Vec<&str> = source.path.split('/').collect();
    let root_of = match parts.as_slice() {
        ["crates", name, "src", "lib.rs" | "main.rs"] => *name,
        ["xtask", "src", "lib.rs" | "main.rs"] => "xtask",
        _ => return,
    };
    if !UNSAFE_CRATES.contains(&root_of) && !source.text.contains("#![forbid(unsafe_code)]") {
        complaints.push(format!("{}: no #![forbid(unsafe_code)]", source.path));
    }
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

/// The part of a file before its unit tests.
fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod tests {")
        .map_or(text, |at| &text[..at])
}

fn layers(source: &Source, complaints: &mut Vec<String>) {
    let Some(inner) = source.path.strip_prefix("crates/engine/src/") else {
        return;
    };
    let own = inner.split(['/', '.']).next().unwrap_or_default();
    if own == "lib" || source.is_test() || !source.is_rust() {
        return;
    }
    let Some(own_layer) = layer_of(own) else {
        complaints.push(format!(
            "{}: the module `{own}` has no layer (see LAYERS in xtask/src/tidy.rs)",
            source.path
        ));
        return;
    };
    for (line, used) in used_modules(without_tests(&source.text)) {
        if let Some(layer) = layer_of(&used).filter(|layer| *layer > own_layer) {
            complaints.push(format!(
                "{}:{line}: `{own}` (layer {own_layer}) uses `{used}` (layer {layer})",
                source.path
            ));
        }
    }
}

/// Top-level modules named by `crate::x` and `use crate::{x, y::z}`, with the line; comments do not count.
fn used_modules(text: &str) -> Vec<(usize, String)> {
    let mut used = Vec::new();
    let code: Vec<&str> = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or(line))
        .collect();
    let joined = code.join("\n");
    for (at, _) in joined.match_indices("crate::") {
        let line = joined[..at].matches('\n').count() + 1;
        let rest = &joined[at + "crate::".len()..];
        let names = if rest.starts_with('{') {
            group_heads(rest)
        } else {
            vec![identifier(rest)]
        };
        used.extend(
            names
                .into_iter()
                .filter(|name| !name.is_empty())
                .map(|name| (line, name)),
        );
    }
    used
}

fn identifier(text: &str) -> String {
    text.trim_start()
        .chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// First identifiers of the members of `{a::b, c::{d, e}}`.
fn group_heads(text: &str) -> Vec<String> {
    let (mut depth, mut heads, mut start) = (0, Vec::new(), 1);
    for (i, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => {
                heads.push(identifier(&text[start..i]));
                start = i + 1;
            }
            _ => {}
        }
        if depth == 0 {
            heads.push(identifier(&text[start..i]));
            break;
        }
    }
    heads
}

/// Every invariant that code cites is in `docs/invariants.md`.
fn invariants(sources: &[Source], complaints: &mut Vec<String>) {
    let Some(list) = sources
        .iter()
        .find(|source| source.path == "docs/invariants.md")
    else {
        return;
    };
    let Ok(number) = Regex::new(r"\b([A-Z]{3,8})-([0-9]{1,3})\b") else {
        return;
    };
    let known: BTreeSet<&str> = number
        .find_iter(&list.text)
        .map(|found| found.as_str())
        .collect();
    let kinds: BTreeSet<&str> = known
        .iter()
        .filter_map(|name| name.split('-').next())
        .collect();
    for source in sources.iter().filter(|source| source.is_rust()) {
        for found in number.find_iter(&source.text).map(|found| found.as_str()) {
            let kind = found.split('-').next().unwrap_or_default();
            if kinds.contains(kind) && !known.contains(found) {
                complaints.push(format!(
                    "{}: {found} is not in docs/invariants.md",
                    source.path
                ));
            }
        }
    }
}

const ALLOCATOR_RULES: &str = "docs/allocator.md";
const ALLOCATOR_RULES_COUNT: usize = 58;

/// The allocator's table of rules names functions, tests and deliberate mistakes that exist, and every rule once.
fn allocator_rules(sources: &[Source], complaints: &mut Vec<String>) {
    let text_of = |path: &str| {
        let source = sources.iter().find(|source| source.path == path);
        source.map(|source| source.text.as_str())
    };
    let Some(table) = text_of(ALLOCATOR_RULES) else {
        return;
    };
    let mistakes = text_of("crates/engine/src/mutations.rs").unwrap_or_default();
    let rust = sources.iter().filter(|source| source.is_rust());
    let tests: BTreeSet<String> = rust.flat_map(|source| test_names(&source.text)).collect();
    let mut numbers = Vec::new();
    for (at, row) in table.lines().enumerate() {
        let columns: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, number, _, places, tested, broken, _] = columns.as_slice() else {
            continue;
        };
        let Some(number) = number.strip_prefix('A') else {
            continue;
        };
        numbers.extend(number.parse::<usize>());
        let mut complain = |what: String| {
            complaints.push(format!("{ALLOCATOR_RULES}:{}: A{number}: {what}", at + 1));
        };
        for place in quoted(places) {
            let (file, name) = place.split_once("::").unwrap_or((place, ""));
            let text = text_of(&format!("crates/engine/src/{file}"));
            let is_there = |text: &str| functions(text).iter().any(|found| found.1 == name);
            if !text.is_some_and(is_there) {
                complain(format!("there is no function {place}"));
            }
        }
        for test in quoted(tested).filter(|test| !tests.contains(*test)) {
            complain(format!("there is no test {test}"));
        }
        let is_known = |name: &str| {
            let starts = [format!("    {name}: "), format!("    {name} (unit): ")];
            let mut lines = mistakes.lines();
            lines.any(|line| starts.iter().any(|start| line.starts_with(start)))
        };
        for name in quoted(broken).filter(|name| !is_known(name)) {
            complain(format!("there is no deliberate mistake {name}"));
        }
    }
    for number in 1..=ALLOCATOR_RULES_COUNT {
        let count = numbers.iter().filter(|found| **found == number).count();
        if count != 1 {
            complaints.push(format!(
                "{ALLOCATOR_RULES}: A{number} is there {count} times"
            ));
        }
    }
}

const MARKS_TABLE: &str = "docs/simulation.md";

/// The table of marks that the swarm rarely reaches names marks and tests that exist, and the tests assert them.
fn marks_table(sources: &[Source], complaints: &mut Vec<String>) {
    let text_of = |path: &str| {
        let source = sources.iter().find(|source| source.path == path);
        source.map_or("", |source| source.text.as_str())
    };
    let known = text_of("crates/engine/src/marks.rs");
    let rows = text_of(MARKS_TABLE)
        .lines()
        .enumerate()
        .skip_while(|(_, row)| *row != "| mark | test |")
        .skip(2)
        .take_while(|(_, row)| row.starts_with('|'));
    for (at, row) in rows {
        let columns: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, marks, test, _] = columns.as_slice() else {
            complaints.push(format!("{MARKS_TABLE}:{}: not two columns", at + 1));
            continue;
        };
        let (file, test) = test.split_once("::").unwrap_or((test, ""));
        let (file, test) = (file.trim_matches('`'), test.trim_matches('`'));
        let text = text_of(&format!("crates/engine/{file}"));
        let body = body_of_test(text, test);
        for mark in marks.split(',').map(str::trim) {
            let mut complain = |what: String| {
                complaints.push(format!("{MARKS_TABLE}:{}: {mark}: {what}", at + 1));
            };
            if !known.contains(&format!("\n    {mark}: \"")) {
                complain("there is no such mark".into());
            }
            match body {
                None => complain(format!("there is no test {test} in {file}")),
                Some(body) if !names(body, &format!("Mark::{mark}")) => {
                    complain(format!("{test} does not assert it"));
                }
                Some(_) => (),
            }
        }
    }
}

/// A test's text, from its name on.
fn body_of_test<'a>(text: &'a str, test: &str) -> Option<&'a str> {
    let after_marks = text.split("#[test]").skip(1);
    let mut found = after_marks.filter_map(|after| Some(&after[after.find("fn ")? + 3..]));
    let body = found.find(|after| !test.is_empty() && identifier(after) == test)?;
    Some(&body[..body.find("\n}").unwrap_or(body.len())])
}

/// Whether a path is there as a whole, not as the start of a longer one.
fn names(text: &str, path: &str) -> bool {
    text.match_indices(path).any(|(at, _)| {
        let next = text[at + path.len()..].chars().next();
        !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

/// What stands in back quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Functions that are tests.
fn test_names(text: &str) -> Vec<String> {
    let after_marks = text.split("#[test]").skip(1);
    let name = |after: &str| Some(identifier(&after[after.find("fn ")? + 3..]));
    after_marks.filter_map(name).collect()
}

fn news(sources: &[Source]) {
    let mut long: BTreeMap<(usize, String), ()> = BTreeMap::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        for (line, name, length) in functions(&source.text) {
            if length > LONG_FUNCTION_LINES {
                long.insert((length, format!("{}:{line} {name}", source.path)), ());
            }
        }
        let lines = source.text.lines().count();
        if lines > LONG_FILE_LINES {
            println!("   news: {} has {lines} lines", source.path);
        }
    }
    for ((length, name), ()) in long.iter().rev().take(NEWS_MAX) {
        println!("   news: {length} lines: {name}");
    }
}

/// Functions of a formatted file: line, name, length. The end is the brace at the indentation of the start.
fn functions(text: &str) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let body = line.trim_start();
        let before_fn = body.split("fn ").next().unwrap_or(body);
        let is_start = body.contains("fn ") && before_fn.split_whitespace().all(is_qualifier);
        if !is_start || body.ends_with(';') {
            continue;
        }
        let indent = line.len() - body.len();
        let end = format!("{}}}", " ".repeat(indent));
        if let Some(length) = lines[i..].iter().position(|later| *later == end) {
            found.push((i + 1, identifier(&body[before_fn.len() + 3..]), length + 1));
        }
    }
    found
}

fn is_qualifier(word: &str) -> bool {
    word.starts_with("pub") || matches!(word, "async" | "const" | "unsafe" | "extern" | "\"C\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source {
            path: path.into(),
            text: text.into(),
        }
    }

    #[test]
    fn a_lower_module_that_uses_a_higher_one_is_found() {
        let mut complaints = Vec::new();
        layers(
            &source(
                "crates/engine/src/journal/entry.rs",
                "use crate::{error::E, set::CacheSet};\n",
            ),
            &mut complaints,
        );
        assert_eq!(
            complaints,
            ["crates/engine/src/journal/entry.rs:1: `journal` (layer 2) uses `set` (layer 6)"]
        );
        complaints.clear();
        layers(
            &source(
                "crates/engine/src/set/volume.rs",
                "// crate::nothing\nuse crate::journal::J;\n",
            ),
            &mut complaints,
        );
        assert!(complaints.is_empty());
    }

    #[test]
    fn tests_may_reach_everywhere_and_unknown_modules_may_not_exist() {
        let mut complaints = Vec::new();
        let text = "//! x\n#[cfg(test)]\nmod tests {\nuse crate::set::CacheSet;\n}\n";
        layers(&source("crates/engine/src/alloc.rs", text), &mut complaints);
        assert!(complaints.is_empty());
        layers(&source("crates/engine/src/misc.rs", ""), &mut complaints);
        assert_eq!(complaints.len(), 1);
    }

    #[test]
    fn white_space_banned_words_and_missing_docs_are_found() {
        let mut complaints = Vec::new();
        let bad = source(
            "crates/format/src/x.rs",
            concat!("fn f() { to", "do!() } \n"),
        );
        white_space(&bad, &mut complaints);
        banned_words(&bad, &mut complaints);
        module_doc(&bad, &mut complaints);
        assert_eq!(complaints.len(), 3, "{complaints:?}");
    }

    #[test]
    fn a_table_of_rules_that_names_what_is_not_there_is_found() {
        let table = |row: &str| {
            let rest = (2..=58).map(|number| format!("| A{number} | | | | |\n"));
            source(
                ALLOCATOR_RULES,
                &format!("{row}\n{}", rest.collect::<String>()),
            )
        };
        let code = source(
            "crates/engine/src/alloc/a.rs",
            "#[test]\n#[should_panic]\nfn t() {\n}\nfn f() {\n}\n",
        );
        let mistakes = source("crates/engine/src/mutations.rs", "    M (unit): \"x\",\n");
        let complain = |row: &str| {
            let mut complaints = Vec::new();
            let code = source(&code.path, &code.text);
            let mistakes = source(&mistakes.path, &mistakes.text);
            allocator_rules(&[table(row), code, mistakes], &mut complaints);
            complaints.len()
        };
        assert_eq!(complain("| A1 | r | `alloc/a.rs::f` | `t` | `M` |"), 0);
        assert_eq!(complain("| A1 | r | `alloc/a.rs::g` | `t` | `M` |"), 1);
        assert_eq!(complain("| A1 | r | `alloc/b.rs::f` | `t` | `M` |"), 1);
        assert_eq!(complain("| A1 | r | `alloc/a.rs::f` | `f` | `M` |"), 1);
        assert_eq!(complain("| A1 | r | `alloc/a.rs::f` | `t` | `N` |"), 1);
        assert_eq!(complain("| A2 | r | | | |"), 2, "one missing, one twice");
    }

    #[test]
    fn a_table_of_marks_that_names_what_is_not_there_is_found() {
        let complain = |row: &str| {
            let head = "# x\n\n| mark | test |\n| --- | --- |\n";
            let marks = "marks! {\n    One: \"x\",\n    OneMore: \"x\",\n}\n";
            let test =
                "#[test]\nfn t() {\n    reached(Mark::OneMore);\n}\nfn f() {\n    Mark::One;\n}\n";
            let sources = [
                source(
                    MARKS_TABLE,
                    &format!("{head}{row}\n\n| a | table | more |\n"),
                ),
                source("crates/engine/src/marks.rs", marks),
                source("crates/engine/tests/rare.rs", test),
            ];
            let mut complaints = Vec::new();
            marks_table(&sources, &mut complaints);
            complaints.len()
        };
        assert_eq!(complain("| OneMore | `tests/rare.rs::t` |"), 0);
        assert_eq!(complain("| One | `tests/rare.rs::t` |"), 1);
        assert_eq!(complain("| OneMore, One | `tests/rare.rs::t` |"), 1);
        assert_eq!(complain("| OneMore | `tests/rare.rs::f` |"), 1);
        assert_eq!(complain("| OneMore | `tests/tight.rs::t` |"), 1);
        assert_eq!(complain("| OneMore | none yet |"), 1);
        assert_eq!(complain("| Two | `tests/rare.rs::t` |"), 2);
    }

    #[test]
    fn lengths_of_functions_are_measured() {
        let text = "impl A {\n    pub async fn long(\n        &self,\n    ) {\n        x();\n    }\n}\nfn one() {\n}\n";
        assert_eq!(
            functions(text),
            [(2, "long".to_string(), 5), (8, "one".to_string(), 2)]
        );
    }
}
