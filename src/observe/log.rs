//! Where log lines go and how much is said. Begun once by the command line; the level can be another one later.

use std::io::IsTerminal as _;

use tracing::Level;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

/// Sets what is logged from now on.
pub(crate) struct LogLevel(reload::Handle<LevelFilter, Registry>);

impl LogLevel {
    /// Lines go to standard error: standard output belongs to what a command was asked for. What is below the level costs a
    /// comparison: the filter is the only one, so its level is also that of the macros.
    pub(crate) fn start(level: Level, json: bool) -> LogLevel {
        let (filter, handle) = reload::Layer::new(LevelFilter::from_level(level));
        let lines = fmt::layer().with_writer(std::io::stderr).with_target(false);
        let registry = tracing_subscriber::registry().with(filter);
        // A second subscriber in one process only happens in tests; the first one stays.
        let _ = if json {
            registry.with(lines.json().flatten_event(true)).try_init()
        } else {
            registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init()
        };
        LogLevel(handle)
    }

    pub(crate) fn set(&self, level: Level) {
        if let Err(e) = self.0.modify(|filter| *filter = LevelFilter::from_level(level)) {
            tracing::warn!("the log level stays what it was: {e}");
        }
    }
}
