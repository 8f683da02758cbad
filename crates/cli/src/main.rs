//! The `brigade` command: each verb parses its flags, names the devices it touches, and does one thing.
#![forbid(unsafe_code)]

mod client;
mod failure;
mod flags;
mod log;
mod output;
mod signatures;
mod size;
mod target;
mod verbs;

use clap::Parser;
use flags::{Flags, Verb};
use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = match Flags::parse().verb {
        Verb::Format(flags) => verbs::format::format(&flags),
        Verb::Show(flags) => verbs::show::show(&flags),
        Verb::Serve(flags) => verbs::serve::serve(&flags),
        Verb::Dump(flags) => verbs::dump::dump(&flags),
        Verb::Demo(flags) => verbs::demo::demo(&flags),
        Verb::Status(flags) => verbs::status::status(&flags),
        Verb::Stop(flags) => verbs::status::stop(&flags),
        Verb::Completions(flags) => verbs::pages::completions(&flags),
        Verb::Man => verbs::pages::man(),
        Verb::CliReference => verbs::pages::cli_reference(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
