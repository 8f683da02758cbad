//! The `brigade` command: each verb parses its flags, names the devices it touches, and does one thing.
#![forbid(unsafe_code)]

mod client;
mod failure;
mod flags;
mod log;
mod output;
mod progress;
mod signatures;
mod size;
mod target;
mod verbs;

use clap::Parser;
use flags::{Flags, Verb};
use std::process::ExitCode;

fn main() -> ExitCode {
    let flags = match Flags::try_parse() {
        Ok(flags) => flags,
        Err(error) => return refuse(&error),
    };
    let outcome = match flags.verb {
        Verb::Format(flags) => verbs::format::format(&flags),
        Verb::Show(flags) => verbs::show::show(&flags),
        Verb::Serve(flags) => verbs::serve::serve(&flags),
        Verb::Check(flags) => verbs::check::check(&flags),
        Verb::Dump(flags) => verbs::dump::dump(&flags),
        Verb::Demo(flags) => verbs::demo::demo(&flags),
        Verb::Status(flags) => verbs::status::status(&flags),
        Verb::Set(flags) => verbs::set::set(&flags),
        Verb::Attach(flags) => verbs::attach::attach(&flags),
        Verb::Detach(flags) => verbs::detach::detach(&flags),
        Verb::Volume(flags) => verbs::volume::volume(&flags),
        Verb::Gc(flags) => verbs::gc::gc(&flags),
        Verb::Drain(flags) => verbs::drain::drain(&flags),
        Verb::Stop(flags) => verbs::status::stop(&flags),
        Verb::Completions(flags) => verbs::pages::completions(&flags),
        Verb::Man => verbs::pages::man(),
        Verb::CliReference => verbs::pages::cli_reference(),
        Verb::SettingsReference => verbs::settings_page::print(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Prints help, or what is wrong with the call. `check` has a status of its own for that.
fn refuse(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    let is_check = std::env::args_os()
        .nth(1)
        .is_some_and(|verb| verb == "check");
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if is_check => ExitCode::from(verbs::check::STATUS_USAGE),
        status => ExitCode::from(u8::try_from(status).unwrap_or(2)),
    }
}
