//! Completions, the manual page and `docs/cli.md`, all made from the flag definitions.

use crate::failure::Outcome;
use crate::flags::{CompletionsFlags, Flags};
use clap::{Arg, Command, CommandFactory};
use std::fmt::Write as _;
use std::io::Write as _;

/// Prints a completion script.
pub fn completions(flags: &CompletionsFlags) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(flags.shell, &mut Flags::command(), "brigade", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(())
}

/// Prints the manual page, verbs included.
pub fn man() -> Outcome {
    let mut page = Vec::new();
    let command = Flags::command();
    let man = clap_mangen::Man::new(command.clone());
    man.render(&mut page)?;
    for verb in command
        .get_subcommands()
        .filter(|v| !v.is_hide_set() && v.get_name() != "help")
    {
        let verb = verb
            .clone()
            .bin_name(format!("brigade {}", verb.get_name()));
        let man = clap_mangen::Man::new(verb.clone());
        writeln!(page, ".SH \"VERB {}\"", verb.get_name().to_uppercase())?;
        man.render_synopsis_section(&mut page)?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
    }
    std::io::stdout().lock().write_all(&page)?;
    Ok(())
}

/// Prints `docs/cli.md`.
pub fn cli_reference() -> Outcome {
    std::io::stdout().lock().write_all(reference().as_bytes())?;
    Ok(())
}

/// The text of `docs/cli.md`.
pub fn reference() -> String {
    let command = Flags::command();
    let mut page = String::from(
        "# The command line\n\n\
        Made from the flag definitions (`brigade cli-reference`); a test compares. Do not edit.\n\n\
        DEV is a block device or a regular file, used as it is. SIZE takes `4096`, `4k`, `512K`, `1M`, `10G` (powers of \
        1024). A *volume* is what is served: a cached backing device or a flash volume.\n\n\
        ## Exit status\n\n\
        0 fine. 1 could not do it: one line on standard error says what, where, and what was done about it. 2 usage. \
        `brigade check` has those of fsck(8): 0 clean, 4 errors, 8 could not check, 16 usage.\n\n\
        ## Control socket\n\n\
        HTTP/1.1 and JSON on a unix socket: `GET /v1/status` gives the status, `GET /v1/settings` and `PATCH /v1/settings` show and \
        change settings (docs/settings.md), `GET /v1/priority_stats` counts buckets by recency, `POST /v1/clear_stats` has statistics begin anew, `POST /v1/gc` asks for a garbage \
        collection and answers at once, `POST /v1/gc/pause` and `POST /v1/gc/resume` have it rest and go on, `POST /v1/drain` begins to \
        write dirty data back, of all volumes or of one (`{\"volume\": NAME}`), and answers at once, `POST /v1/drain/cancel` ends that, `POST /v1/stop` stops the server and answers once it has stopped. What could not be \
        done is answered with a status of 4xx or 5xx and `{\"error\": ...}`. 64 connections are served at a time, more wait; one on which no request, or not the whole of it, comes for five \
        seconds, or whose answer is not read, is closed, and a body is at most 1 MiB.\n",
    );
    for verb in command
        .get_subcommands()
        .filter(|v| !v.is_hide_set() && v.get_name() != "help")
    {
        verb_page(&mut page, verb);
    }
    page
}

fn verb_page(page: &mut String, verb: &Command) {
    let mut verb = verb
        .clone()
        .bin_name(format!("brigade {}", verb.get_name()));
    let about = verb
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    let usage = verb.render_usage().to_string();
    let _ = write!(
        page,
        "\n## `brigade {}`\n\n{about}.\n\n```\n{usage}\n```\n",
        verb.get_name()
    );
    let shown: Vec<&Arg> = verb
        .get_arguments()
        .filter(|a| !a.is_hide_set() && a.get_id() != "help")
        .collect();
    if !shown.is_empty() {
        page.push_str("\n| flag | meaning |\n| --- | --- |\n");
    }
    for arg in shown {
        let _ = writeln!(page, "| `{}` | {} |", flag(arg), meaning(arg));
    }
    if let Some(examples) = verb.get_after_help() {
        let _ = write!(page, "\n{}\n", examples_as_markdown(&examples.to_string()));
    }
}

fn flag(arg: &Arg) -> String {
    let values: Vec<String> = arg
        .get_value_names()
        .into_iter()
        .flatten()
        .map(ToString::to_string)
        .collect();
    let takes_value = arg.get_action().takes_values();
    match arg.get_long() {
        Some(long) if takes_value => format!("--{long} {}", values.join(" ")),
        Some(long) => format!("--{long}"),
        None => values.join(" "),
    }
}

fn meaning(arg: &Arg) -> String {
    let mut text = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let choices: Vec<String> = arg
        .get_possible_values()
        .iter()
        .map(|v| format!("`{}`", v.get_name()))
        .collect();
    if !choices.is_empty() && arg.get_action().takes_values() {
        let _ = write!(text, ": {}", choices.join(", "));
    }
    let defaults: Vec<_> = arg
        .get_default_values()
        .iter()
        .filter_map(|v| v.to_str())
        .collect();
    if !defaults.is_empty() && arg.get_action().takes_values() {
        let _ = write!(text, " (default `{}`)", defaults.join(" "));
    }
    text.replace('|', "\\|")
}

/// Indented lines are commands.
fn examples_as_markdown(text: &str) -> String {
    let mut page = String::new();
    let mut in_code = false;
    for line in text.lines() {
        let is_code = line.starts_with("  ");
        if is_code != in_code {
            page.push_str(if is_code { "\n```\n" } else { "```\n" });
            in_code = is_code;
        }
        page.push_str(line.trim_start());
        page.push('\n');
    }
    if in_code {
        page.push_str("```\n");
    }
    page.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_cli_md_is_what_the_flags_say() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
        if std::env::var_os("BRIGADE_UPDATE_DOCS").is_some() {
            std::fs::write(path, reference()).expect("docs/cli.md can be written");
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == reference(),
            "docs/cli.md is old; run the test with BRIGADE_UPDATE_DOCS=1"
        );
    }
}
