//! `cargo x tests-table`: docs/tests.md, made from the comments above tests.
//!
//! A test that shows something of the catalogue says its number first thing in its comment: `/// T14: ...` above the test (or above what
//! judges, in the simulator), `//! T14: ...` where a whole file is the test, `// T14: ...` at an entry of the interop tests and in
//! the middle of a test. What the numbers
//! mean, and why some have no test, is in [`crate::catalogue`]. `cargo x tidy` holds the page against the sources.

use crate::catalogue::{NOT_HERE, SHOWN};
use crate::process::{Context, Result, project_root};
use crate::tidy::{Source, sources};
use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;

/// Where the page is.
pub const PAGE: &str = "docs/tests.md";

const HEAD: &str = "\
# What is tested

The catalogue of behaviour, by number: what a test shows, and which one does. Made by `cargo x tests-table` from the comments above the
tests; `cargo x tidy` holds it against them. *Better* says that Brigade does on purpose something else than the kernel, and the test
shows that.

| No | shows | test |
| --- | --- | --- |
";

/// Writes the page.
pub fn main() -> Result<ExitCode> {
    let root = project_root();
    let (numbered, complaints) = numbered(&sources(&root)?);
    if !complaints.is_empty() {
        return Err(complaints.join("\n"));
    }
    fs::write(root.join(PAGE), page(&numbered)).context(format!("cannot write {PAGE}"))?;
    println!("{PAGE}: {} numbers have tests", numbered.len());
    Ok(ExitCode::SUCCESS)
}

/// Numbers without a row, rows without a reason to be there, and a page that is not what the sources say.
pub(crate) fn check(sources: &[Source], complaints: &mut Vec<String>) {
    let (numbered, found) = numbered(sources);
    complaints.extend(found);
    complaints.extend(gaps(&numbered, NOT_HERE));
    let is_current = sources
        .iter()
        .any(|source| source.path == PAGE && source.text == page(&numbered));
    if !is_current {
        complaints.push(format!("{PAGE}: not current; `cargo x tests-table`"));
    }
}

type Numbered = BTreeMap<usize, Vec<String>>;

/// What has neither tests nor a reason to have none, or both.
fn gaps(numbered: &Numbered, not_here: &[(usize, &str)]) -> Vec<String> {
    let mut complaints = Vec::new();
    for number in 1..=SHOWN.len() {
        let has_reason = not_here.iter().any(|row| row.0 == number);
        let has_test = numbered.contains_key(&number);
        let problem = match (has_test, has_reason) {
            (true, false) | (false, true) => continue,
            (false, false) => "has no test, and no reason to have none",
            (true, true) => "has a test, though it is said not to apply",
        };
        complaints.push(format!("{PAGE}: T{number} {problem}"));
    }
    complaints
}

fn page(numbered: &Numbered) -> String {
    let row = |(at, shows): (usize, &&str)| {
        let number = at + 1;
        let reason = NOT_HERE.iter().find(|row| row.0 == number);
        let by = match (numbered.get(&number), reason) {
            (Some(tests), _) => tests.join("<br>"),
            (None, Some((_, reason))) => format!("does not apply: {reason}"),
            (None, None) => "missing".into(),
        };
        format!("| T{number:03} | {shows} | {by} |\n")
    };
    let rows: String = SHOWN.iter().enumerate().map(row).collect();
    format!("{HEAD}{rows}")
}

/// Tests by number, in the order of paths; and numbers that stand above nothing.
fn numbered(sources: &[Source]) -> (Numbered, Vec<String>) {
    let (mut numbered, mut complaints) = (Numbered::new(), Vec::new());
    for source in sources.iter().filter(|source| source.is_rust()) {
        let lines: Vec<&str> = source.text.lines().map(str::trim).collect();
        for (at, line) in lines.iter().enumerate() {
            let Some(numbers) = numbers_of(line) else {
                continue;
            };
            let around = || test_around(source, &lines[..at]).filter(|_| line.starts_with("// "));
            let Some(test) = test_below(source, &lines, at).or_else(around) else {
                let line = at + 1;
                complaints.push(format!("{}:{line}: a number above no test", source.path));
                continue;
            };
            for number in numbers {
                if number == 0 || number > SHOWN.len() {
                    complaints.push(format!("{}:{}: there is no T{number}", source.path, at + 1));
                }
                let tests = numbered.entry(number).or_default();
                if !tests.contains(&test) {
                    tests.push(test.clone());
                }
            }
        }
    }
    (numbered, complaints)
}

/// The numbers a comment begins with.
fn numbers_of(line: &str) -> Option<Vec<usize>> {
    let text = line.strip_prefix("//")?;
    let text = text.strip_prefix(['/', '!']).unwrap_or(text);
    let mut rest = text.strip_prefix(' ')?;
    let mut numbers = Vec::new();
    loop {
        let digits = rest.strip_prefix('T')?;
        let length = digits.bytes().take_while(u8::is_ascii_digit).count();
        numbers.push(digits[..length].parse().ok()?);
        rest = &digits[length..];
        match rest.strip_prefix(", ") {
            Some(more) if more.starts_with('T') => rest = more,
            _ => break,
        }
    }
    rest.starts_with([':', '.', ',']).then_some(numbers)
}

/// What a comment belongs to, as the page names it.
fn test_below(source: &Source, lines: &[&str], at: usize) -> Option<String> {
    if lines[at].starts_with("//!") {
        return Some(format!("`{}`", source.path));
    }
    let mut is_test = false;
    for line in &lines[at + 1..] {
        if let Some(name) = line.strip_prefix("name: \"") {
            let name = name.split('"').next()?;
            return Some(format!("`cargo x interop {name}`"));
        }
        is_test |= *line == "#[test]";
        if line.starts_with("//") || line.starts_with("#[") || *line == "Test {" {
            continue;
        }
        let name = declared(line)?;
        let judges = source.path.starts_with("crates/sim/src/");
        return (is_test || judges).then(|| format!("`{}::{name}`", source.path));
    }
    None
}

/// The test that a remark in its middle belongs to.
fn test_around(source: &Source, lines: &[&str]) -> Option<String> {
    let mark = lines.iter().rposition(|line| *line == "#[test]")?;
    let name = lines[mark..].iter().find_map(|line| declared(line))?;
    Some(format!("`{}::{name}`", source.path))
}

/// The function or type a line declares.
fn declared(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    words.find(|word| matches!(*word, "fn" | "struct" | "enum" | "const"))?;
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    words.next()?.split(|c| !is_part(c)).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, text: &str) -> (Numbered, Vec<String>) {
        let source = Source {
            path: path.into(),
            text: text.into(),
        };
        numbered(&[source])
    }

    #[test]
    fn numbers_above_tests_files_and_entries_are_found() {
        let text =
            "//! T1: all of it.\n/// T2, T3: both.\n/// More.\n#[test]\n#[ignore]\nfn t() {}\n";
        let (found, complaints) = of("crates/engine/tests/a.rs", text);
        assert!(complaints.is_empty());
        assert_eq!(found[&1], ["`crates/engine/tests/a.rs`"]);
        assert_eq!(found[&2], ["`crates/engine/tests/a.rs::t`"]);
        assert_eq!(found[&2], found[&3]);
        let entry = "    // T4: it.\n    Test {\n        name: \"kill\",\n";
        let (found, _) = of("xtask/src/interop/mod.rs", entry);
        assert_eq!(found[&4], ["`cargo x interop kill`"]);
        let within = "#[test]\nfn t() {\n    one();\n    // T6: and then.\n    two();\n}\n";
        let (found, _) = of("crates/cli/tests/a.rs", within);
        assert_eq!(found[&6], ["`crates/cli/tests/a.rs::t`"]);
        let judge = "/// T5: it.\npub async fn judge(a: u8) {\n";
        let (found, _) = of("crates/sim/src/judge.rs", judge);
        assert_eq!(found[&5], ["`crates/sim/src/judge.rs::judge`"]);
    }

    #[test]
    fn a_number_above_no_test_or_beyond_the_last_is_told() {
        let no_test = "/// T2: it.\nfn helper() {}\n";
        assert_eq!(of("crates/engine/src/a.rs", no_test).1.len(), 1);
        let beyond = "/// T187: it.\n#[test]\nfn t() {}\n";
        assert_eq!(of("crates/engine/src/a.rs", beyond).1.len(), 1);
        let words = "/// T2 is not meant, nor is\n/// Time: it\nfn helper() {}\n";
        assert_eq!(of("crates/engine/src/a.rs", words), Default::default());
    }

    #[test]
    fn every_number_has_tests_or_a_reason_and_not_both() {
        let all: Numbered = (1..=SHOWN.len()).map(|number| (number, vec![])).collect();
        assert!(gaps(&all, &[]).is_empty());
        assert_eq!(gaps(&all, &[(7, "why")]).len(), 1);
        let mut some = all.clone();
        some.remove(&7);
        assert_eq!(gaps(&some, &[]).len(), 1);
        assert!(gaps(&some, &[(7, "why")]).is_empty());
    }

    #[test]
    fn what_is_shown_is_told_in_a_dozen_words() {
        assert_eq!(SHOWN.len(), 186);
        for (at, shows) in SHOWN.iter().enumerate() {
            let words = shows.split_whitespace().count();
            assert!((2..=12).contains(&words), "T{}: {words} words", at + 1);
            assert!(!shows.contains('|'));
        }
    }
}
