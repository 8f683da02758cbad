//! The log of a running server, on standard error.
//!
//! It begins once requests are accepted: until then a refusal is one line, and nothing else may stand beside it.

use tracing_subscriber::filter::LevelFilter;

/// Prints what is at least as grave as `BRIGADE_LOG` says: `off`, `error`, `warn` (the default), `info`, `debug`.
pub fn start() {
    let asked = std::env::var("BRIGADE_LOG")
        .ok()
        .and_then(|level| level.parse::<LevelFilter>().ok());
    let _ = tracing_subscriber::fmt()
        .with_max_level(asked.unwrap_or(LevelFilter::WARN))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .try_init();
}
